"""Write the default checkpoint: `python -m reproduce.default_checkpoint`; needs `../shared`.

How it reads was chosen by `reproduce.reading_study`; what is chance is measured here, on domains of
one half of the SCOPe folds, so that the other half says how true it is.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaConfig, PlasmaModel, PlasmaProcessor, load_backbone
from plasma_hf.models.modeling_backbone import SubstitutionConfig
from plasma_hf.search.calibration import calibrate

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
SCOPE = Path(__file__).parents[2] / "shared" / "data" / "scope40"
PROCESSOR = PlasmaProcessor()


def unrelated_domains(count: int = 300) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return fold and sequence of labelled domains: some of half of the folds, all others."""
    text = gzip.decompress((SCOPE / "domains.fasta.gz").read_bytes()).decode()
    records = (record.split() for record in text.split(">")[1:])
    sequences = {name: "".join(parts).upper() for name, *parts in records}
    rows = (row.split("\t") for row in (SCOPE / "labels.tsv").read_text().splitlines())
    domains = [(".".join(family.split(".")[:2]), sequences[name]) for name, family in sorted(rows)]
    rng = random.Random(0)
    rng.shuffle(domains)
    folds = sorted({fold for fold, _ in domains})
    chosen = set(rng.sample(folds, len(folds) // 2))
    measured = [domain for domain in domains if domain[0] in chosen]
    return measured[:count], [domain for domain in domains if domain[0] not in chosen]


def build(target: Path = Path(DEFAULT_CHECKPOINT)) -> PlasmaModel:
    """Write the default checkpoint, without the code that the package has anyway."""
    window = SubstitutionConfig(window=10, decay=7.0)
    settings: dict[str, Any] = {"head": "hinge", "kernel_scale": 0.2, "threshold": 0.2}
    settings |= {"reading": "posterior", "plm_name_or_path": "substitution"}
    model = PlasmaModel(PlasmaConfig(plm_config=window, **settings)).eval()
    calibrate(model, unrelated_domains()[0], load_backbone("substitution").embed)
    save(model, target)
    return model


def save(model: PlasmaModel, target: Path) -> None:
    """Save a model and its processor as the package has them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        PROCESSOR.save_pretrained(scratch)
        bundle(Path(scratch), target)


def bundle(saved: Path, target: Path) -> None:
    """Copy a saved model, without the code that the package has anyway."""
    target.mkdir(parents=True, exist_ok=True)
    for file in saved.iterdir():
        if file.suffix in (".json", ".safetensors", ".md"):
            shutil.copyfile(file, target / file.name)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if not (target / name).is_file():  # an encoder alone has no processor
            continue
        fields = json.loads((target / name).read_text())
        for key in ("auto_map", "custom_pipelines"):
            fields.pop(key, None)
        (target / name).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    build()
