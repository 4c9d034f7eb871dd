"""Train the ProtAlign that comes with the package, and measure it beside a mean of residues.

Run as `python -m reproduce.bundled_protalign --out FOLDER [--start ENCODER]`; needs `../shared`.
The sequence encoder starts as `python -m reproduce.encoder` left it, or untrained. Test are the
clusters of the bound and unbound structures and a tenth of the others: no step of training sees
them. Tables go to `tests/benchmarks/results/bundled_protalign.md`; `--steps` names single steps.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from plasma_hf import DEFAULT_RETRIEVAL_CHECKPOINT
from plasma_hf.data.clusters import split_by_cluster
from plasma_hf.evaluation.retrieval import (
    chance_floors,
    length_similarity,
    pair_vectors,
    retrieval_values,
)
from plasma_hf.io.structures import StructurePair, pair_of, read_structure_folder
from plasma_hf.metrics import recall_at_k
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_backbone import Backbone
from plasma_hf.models.modeling_protalign import ProtAlignModel
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.protein import Structure
from plasma_hf.training import ProtAlignRun
from plasma_hf.training.residue_contrast import ResidueTraining, train_encoders
from plasma_hf.training.structure_data import PairParts
from reproduce.default_checkpoint import RESULTS, bundle
from reproduce.protalign_study import MeanPoolModel

STRUCTURES = Path(__file__).parents[2] / "shared" / "data" / "structures"
BOUND_UNBOUND = "db5_bound_unbound/"
SEEDS = range(5)
SHORTEST, LONGEST, POOLED = 20, 1200, 400
ARGUMENTS = {"use_cpu": True, "num_train_epochs": 30, "learning_rate": 2e-3}
ENCODER = {"hidden_size": 64, "k_neighbors": 16, "dropout": 0.0}
RESIDUES = ResidueTraining(steps=1600, chains=24, max_residues=64, device="cpu", save_steps=250)
DETAILS = {
    "name": "ProtAlign, bundled",
    "data": "PDB (CC0); its sequence encoder began with Pfam and balifam alignments (CC0) and with "
    "sites of UniProtKB/Swiss-Prot (CC BY 4.0)",
    "encoders": f"trained before, residue by residue, in {RESIDUES.steps} batches of "
    f"{RESIDUES.chains} chains",
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
def parts() -> tuple[PairParts, list[str]]:
    """Split them, and give the cluster of each training pair."""
    split = split_by_cluster([pair.sequence for pair in pairs()], (0.8, 0.1, 0.1), seed=0)
    named = [
        replace(pair, family=str(cluster))
        for pair, cluster in zip(pairs(), split.clusters, strict=True)
    ]
    apart = {pair.family for pair in named if pair.id.startswith(BOUND_UNBOUND)}
    apart |= {named[i].family for i in split.test}
    kept = [i for i in split.train if named[i].family not in apart]
    train = [named[i] for i in kept]
    validation = [named[i] for i in split.validation if named[i].family not in apart]
    test = [pair for pair in named if pair.family in apart]
    details = {"clusters by": split.method, "identity of clusters": split.identity}
    found = PairParts(train, one_of_each(validation), one_of_each(test), details)
    return found, [pair.family for pair in train]


def one_of_each(some: list[StructurePair]) -> list[StructurePair]:
    """Keep the first pair of each cluster."""
    return list({pair.family: pair for pair in reversed(some)}.values())[::-1]


def encoders(out: Path, start: Path | None = None) -> ProtAlignModel:
    """Train both encoders residue by residue; what is there is not trained again."""
    folder = out / "encoders"
    if (folder / "model.safetensors").exists():
        return ProtAlignModel.from_pretrained(folder)
    torch.manual_seed(RESIDUES.seed)
    structures = ProteinMPNNEncoder(ProteinMPNNConfig(**ENCODER))
    model = ProtAlignModel(
        ProtAlignConfig(sequence_size=420, structure_size=structures.config.hidden_size)
    )
    sequences = (
        ResidueEncoderModel(ResidueEncoderConfig())
        if start is None
        else ResidueEncoderModel.from_pretrained(start)
    )
    model.attach_backbone(sequences).attach_structure_encoder(structures)
    found, clusters = parts()
    train_encoders(model, found.train, clusters, out / "checkpoints", RESIDUES, resume=True)
    model.save_pretrained(folder, save_backbone=True)
    model.processor.save_pretrained(folder)
    return model


def pools(out: Path) -> None:
    """Train the pools on frozen encoders, and the baseline beside them, with five seeds."""
    model = encoders(out)
    backbone = Backbone(model.sequence_encoder, model.processor, "residue_encoder")
    whole = parts()[0]
    # A batch is padded to its longest chain, and few chains are long.
    short = replace(whole, train=[p for p in whole.train if len(p.sequence) <= POOLED])
    for name, kind in POOLS.items():
        for seed in SEEDS:
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


def figures(out: Path) -> str:
    """Measure on test clusters, one chain of each; and bound against unbound structures."""
    test = parts()[0].test
    families = [pair.family for pair in test]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in POOLS}
    unbound: list[float] = []
    for name, kind in POOLS.items():
        for seed in SEEDS:
            model = kind.from_pretrained(folder_of(out, name, seed))
            sequences, structures = pair_vectors(model, test)
            values = retrieval_values(sequences @ structures.T, families)
            rows[name].append({key: float(value.mean()) for key, value in values.items()})
            if kind is ProtAlignModel:
                unbound.append(bound_unbound(model))
    found = {name: _spread(runs) for name, runs in rows.items()}
    found["length alone"] = {
        key: (float(value.mean()), 0.0)
        for key, value in retrieval_values(length_similarity(test), families).items()
    }
    found["chance"] = {key: (v, 0.0) for key, v in chance_floors(families)["chance"].items()}
    (out / "figures.json").write_text(json.dumps({"retrieval": rows, "bound": unbound}, indent=1))
    lines = [
        f"{len(test)} chains, one of each cluster that no training has seen; "
        f"{len(parts()[0].train)} chains were learnt from. Means over {len(SEEDS)} seeds of the "
        "pools ± standard error.",
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
    ]
    return "\n".join(lines)


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
    parser.add_argument("--start", type=Path, help="what python -m reproduce.encoder wrote")
    parser.add_argument("--steps", nargs="+", default=["encoders", "pools", "figures", "build"])
    options = parser.parse_args(words)
    if "encoders" in options.steps:
        encoders(options.out, options.start)
    if "pools" in options.steps:
        pools(options.out)
    if "figures" in options.steps:
        text = figures(options.out)
        print(text)
        (RESULTS / "bundled_protalign.md").write_text(text + "\n")
    if "build" in options.steps:
        bundle(folder_of(options.out, "attention", 0), Path(DEFAULT_RETRIEVAL_CHECKPOINT))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
