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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaConfig, PlasmaModel, PlasmaProcessor, load_backbone
from plasma_hf.backbones import new_aligner
from plasma_hf.models.modeling_backbone import SubstitutionConfig, weights_digest
from plasma_hf.search.calibration import UNRELATED, calibrate

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
STATE_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
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
    model = new_aligner(load_backbone("3di"))
    calibrate(model, domains, by_states(model.backbone))
    save(model, Path(DEFAULT_CHECKPOINT).parent / "plasma_pf_3di", processor=False)


def by_states(encoder: Any) -> Callable[[Sequence[str]], list[Tensor]]:
    """Return what embeds domains by the 3Di states of the benchmark, and what is made of them.

    A shuffled domain has its states, shuffled; a peptide those of where it is cut from, or any;
    domains one after another have those of each.
    """
    text = gzip.decompress((SCOPE / "domains_3di.fasta.gz").read_bytes()).decode()
    known = {record.split()[0]: "".join(record.split()[1:]) for record in text.split(">")[1:]}
    states = {one: known[name] for name, _, one in labelled_domains()[0]}
    by_letters = {"".join(sorted(one)): of for one, of in states.items()}
    rng, number = random.Random(0), {letter: n for n, letter in enumerate(STATE_LETTERS)}

    def states_of(sequence: str) -> str:
        if joined := _joined(sequence, states):
            return joined
        if (shuffled := by_letters.get("".join(sorted(sequence)))) is not None:
            return "".join(rng.sample(shuffled, len(shuffled)))
        for one, of in states.items():
            if (place := one.find(sequence)) >= 0:
                return of[place : place + len(sequence)]
        every = "".join(states.values())
        start = rng.randrange(len(every) - len(sequence))
        return every[start : start + len(sequence)]

    def embed(sequences: Sequence[str]) -> list[Tensor]:
        found = []
        for sequence in sequences:
            ids = PROCESSOR.encode([sequence])["input_ids"]
            (letters,) = encoder.substitution(ids, return_dict=False)
            which = [number.get(letter, len(STATE_LETTERS)) for letter in states_of(sequence)]
            found.append(encoder.embed_states(torch.tensor([which]), letters)[0])
        return found

    return embed


def _joined(sequence: str, states: dict[str, str]) -> str:
    """Return the states of domains one after another, the last perhaps cut off; else nothing."""
    found = ""
    while len(found) < len(sequence):
        rest = sequence[len(found) :]
        whole = [of for one, of in states.items() if rest.startswith(one)]
        cut = [of[: len(rest)] for one, of in states.items() if one.startswith(rest)]
        if not (whole or (found and cut)):
            return ""
        found += max(whole, key=len) if whole else cut[0]
    return found


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
