"""Write the models without parameters: `python -m reproduce.default_checkpoint`; needs `../shared`.

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
from plasma_hf.backbones import new_aligner
from plasma_hf.models.modeling_backbone import SubstitutionConfig, weights_digest
from plasma_hf.search.calibration import UNRELATED, calibrate

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
SCOPE = Path(__file__).parents[2] / "shared" / "data" / "scope40"
PROCESSOR = PlasmaProcessor()
Domain = tuple[str, str, str]
"""Name, fold and sequence."""


def labelled_domains() -> tuple[list[Domain], list[Domain]]:
    """Return name, fold and sequence of labelled domains: some of half of the folds, all others."""
    text = gzip.decompress((SCOPE / "domains.fasta.gz").read_bytes()).decode()
    records = (record.split() for record in text.split(">")[1:])
    sequences = {name: "".join(parts).upper() for name, *parts in records}
    rows = (row.split("\t") for row in (SCOPE / "labels.tsv").read_text().splitlines())
    domains = [(n, ".".join(family.split(".")[:2]), sequences[n]) for n, family in sorted(rows)]
    rng = random.Random(0)
    rng.shuffle(domains)
    folds = sorted({fold for _, fold, _ in domains})
    chosen = set(rng.sample(folds, len(folds) // 2))
    measured = [domain for domain in domains if domain[1] in chosen]
    return measured[:300], [domain for domain in domains if domain[1] not in chosen]


def build() -> None:
    """Write the bundled domains, and the models without parameters, calibrated by them.

    The code that the package has anyway is left out.
    """
    measured, _ = labelled_domains()
    UNRELATED.write_text("".join(f">{name} {fold}\n{one}\n" for name, fold, one in measured))
    domains = [(fold, one) for _, fold, one in measured]
    window = SubstitutionConfig(window=10, decay=7.0)
    settings: dict[str, Any] = {"head": "hinge", "kernel_scale": 0.2, "threshold": 0.2}
    settings |= {"reading": "posterior", "plm_name_or_path": "substitution"}
    model = PlasmaModel(PlasmaConfig(plm_config=window, **settings)).eval()
    calibrate(model, domains, load_backbone("substitution").embed)
    save(model, Path(DEFAULT_CHECKPOINT))
    near = load_backbone("near")
    near.digest = weights_digest(near.model)  # bundled, they do not go along
    model = new_aligner(near)
    calibrate(model, domains, near.embed)
    save(model, Path(DEFAULT_CHECKPOINT).parent / "plasma_pf_near", processor=False)


def save(model: PlasmaModel, target: Path, processor: bool = True) -> None:
    """Save a model, and its processor, as the package has them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        if processor:
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
