"""One structure laid upon another by their aligned residues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from ..models.alignment_result import residue_labels
from ..models.protein import BACKBONE_ATOMS, Protein, Structure, parse_structure, split_record

logger = logging.get_logger(__name__)

Floats = NDArray[np.float64]
CA = BACKBONE_ATOMS.index("CA")
FAR, TIMES = 3.0, 2.5  # a pair is left out beyond 3 A and 2.5 times the median distance
ROUNDS = 10


@dataclass(frozen=True)
class Superposition:
    """How a candidate is moved so that it lies on a query.

    Attributes:
        rotation: `(3, 3)`, proper: mirror images are never laid on each other.
        translation: `(3,)`, Å; a place x of the candidate goes to `rotation @ x + translation`.
        pairs: Pairs that it was fitted to, as given, `[query index, candidate index, weight]`.
        matched: Pairs with a CA on both sides, outliers among them.
        rmsd: Root of the mean squared distance of `pairs`, Å.
        rmsd_all: The same of all that are matched.
        tm_score: Sum of `1 / (1 + (distance / d0)**2)` over all that are matched, by residues of
            the shorter protein, d0 of that length (Zhang and Skolnick 2004); in [0, 1].
    """

    rotation: Floats
    translation: Floats
    pairs: list[Sequence[Any]]
    matched: int
    rmsd: float
    rmsd_all: float
    tm_score: float

    def apply(self, places: Any) -> Floats:
        """Move places of the candidate, `(..., 3)`, Å."""
        return np.asarray(places, dtype=float) @ self.rotation.T + self.translation

    def about(self) -> dict[str, Any]:
        """Return what a result keeps of it, as JSON takes it."""
        kept = {"rmsd": self.rmsd, "rmsd_all": self.rmsd_all, "tm_score": self.tm_score}
        moved = {"rotation": self.rotation.tolist(), "translation": self.translation.tolist()}
        return kept | {"pairs": len(self.pairs), "matched": self.matched} | moved


def superpose(
    query: Structure, candidate: Structure, pairs: Iterable[Sequence[Any]], weighted: bool = True
) -> Superposition:
    """Lay a candidate on a query by the CA atoms of aligned residues.

    Rotation and translation make the sum of squared distances least (Kabsch 1976), each weighed by
    the probability of its pair. Pairs that are then farther apart than 3 Å and 2.5 times the median
    distance are left out and the rest is fitted anew, until the same ones stay, at most ten times.

    Args:
        query: Stays where it is.
        candidate: Is moved.
        pairs: `[query index, candidate index, probability]`, as a result has them.
        weighted: Whether the probabilities count; else all pairs count the same.

    Raises:
        ValueError: If fewer than three pairs have a CA on both sides, or all lie on a line.

    Example:
        >>> import torch
        >>> backbone = torch.randn(5, 4, 3)
        >>> one, other = (Structure("s", "MKVLA", x, tuple("12345"), ("A",) * 5)
        ...               for x in (backbone, backbone + 7))
        >>> found = superpose(one, other, [(i, i, 1.0) for i in range(5)])
        >>> round(found.rmsd, 4), found.translation.round(3).tolist()
        (0.0, [-7.0, -7.0, -7.0])
    """
    given = list(pairs)
    fixed = query.backbone[[pair[0] for pair in given], CA].double().numpy()
    moving = candidate.backbone[[pair[1] for pair in given], CA].double().numpy()
    there = np.isfinite(fixed).all(1) & np.isfinite(moving).all(1)
    fixed, moving = fixed[there], moving[there]
    matched = [pair for pair, both in zip(given, there, strict=True) if both]
    weights = np.array([float(pair[2]) if weighted else 1.0 for pair in matched])
    if len(matched) < 3:
        raise ValueError(
            f"{query.id} and {candidate.id} have {len(matched)} aligned residues with a CA atom; "
            "a superposition needs 3 or more"
        )
    kept = np.ones(len(matched), dtype=bool)
    for _ in range(ROUNDS):
        rotation, translation = _fit(fixed[kept], moving[kept], weights[kept])
        distances = np.linalg.norm(moving @ rotation.T + translation - fixed, axis=1)
        near = distances <= max(FAR, TIMES * float(np.median(distances[kept])))
        if near.sum() < 3 or (near == kept).all():
            break
        kept = near
    rotation, translation = _fit(fixed[kept], moving[kept], weights[kept])
    squared = ((moving @ rotation.T + translation - fixed) ** 2).sum(1)
    shorter = min(len(query), len(candidate))
    scale = max(0.5, 1.24 * np.cbrt(shorter - 15) - 1.8)
    return Superposition(
        rotation,
        translation,
        [pair for pair, stays in zip(matched, kept, strict=True) if stays],
        len(matched),
        float(np.sqrt(squared[kept].mean())),
        float(np.sqrt(squared.mean())),
        float((1 / (1 + squared / scale**2)).sum() / shorter),
    )


def _fit(fixed: Floats, moving: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the proper rotation and the translation with the least weighted squared distances."""
    weights = weights / weights.sum()
    to, of = weights @ fixed, weights @ moving
    left, sizes, right = np.linalg.svd((fixed - to).T @ (weights[:, None] * (moving - of)))
    if sizes[1] < 1e-6 * max(sizes[0], 1e-12):
        raise ValueError(
            "the aligned residues lie on a line, or in a point: their place in space is not "
            "determined; give three or more that do not"
        )
    mirrored = np.linalg.det(left) * np.linalg.det(right) < 0
    rotation = left @ np.diag([1.0, 1.0, -1.0 if mirrored else 1.0]) @ right
    return rotation, to - rotation @ of


def write_superposed(
    path: str | Path,
    superposition: Superposition,
    query: Protein,
    candidate: Protein,
    with_query: bool = False,
) -> None:
    """Write the candidate as it lies on the query, as mmCIF.

    B-factors are the probabilities of the pairs that were superposed, 0 elsewhere. All atoms of its
    chains are moved where the file it was read from still has them as they were read, else those of
    the backbone, with a warning. With `with_query` the query is in the same model, since programs
    show models one at a time, and chains of the candidate that have a name of the query's get a
    free one.

    Raises:
        ValueError: If the file's name has another ending than mmCIF has.
    """
    if Path(path).suffix.lower() not in (".cif", ".mmcif"):
        raise ValueError(f"{path} would hold mmCIF; give a name that ends in .cif")
    places = superposition.pairs
    moved = _atoms(candidate, {pair[1]: float(pair[2]) for pair in places})
    transform = gemmi.Transform()
    transform.mat.fromlist(superposition.rotation.tolist())
    transform.vec.fromlist(superposition.translation.tolist())
    moved.transform_pos_and_adp(transform)
    written = gemmi.Structure()
    written.name = Path(path).stem
    model = written.add_model(gemmi.Model(1))
    if with_query:
        for chain in _atoms(query, {pair[0]: float(pair[2]) for pair in places}):
            model.add_chain(chain)
    for chain in moved:
        taken = {one.name for one in model}
        if chain.name in taken:
            free = (one for one in ascii_uppercase + digits if one not in taken)
            chain.name = next(free, f"{chain.name}_moved")
        model.add_chain(chain)
    # Labels of the files would name chains of both sides alike.
    written.add_entity_types(True)
    written.assign_subchains(True, False)
    written.ensure_entities()
    written.assign_label_seq_id(True)
    written.make_mmcif_document().write_file(str(path))


def _atoms(protein: Protein, weights: dict[int, float]) -> Any:
    """Return the atoms of a protein as a model, with the weights of its residues as B-factors."""
    structure = protein.structure
    if structure is None:
        raise ValueError(f"{protein.id} is no structure; give a PDB or mmCIF file of it")
    labels = residue_labels(protein)
    by_label = {labels[place]: weight for place, weight in weights.items()}
    model = _of_file(protein, labels)
    if model is None:
        logger.warning("%s: backbone atoms alone are written, of its file's not all", protein.id)
        model = _of_backbone(structure)
    for chain in model:
        for residue in chain:
            for atom in residue:
                atom.b_iso = by_label.get(_label(chain, residue), 0.0)
    return model


def _label(chain: Any, residue: Any) -> str:
    return f"{chain.name}:{str(residue.seqid).strip()}"


def _of_file(protein: Protein, labels: Sequence[str]) -> Any:
    """Read the chains of a protein, None where its file has not what was read of it."""
    structure, file = protein.structure, Path(split_record(protein.source)[0])
    if structure is None or not protein.source or not file.is_file():
        return None
    chains: dict[str, Any] = {name: None for name in structure.chain_ids}
    places: dict[str, list[list[float]]] = {}
    try:
        parts = parse_structure(file)[0]
    except (ValueError, OSError):
        return None
    for part in parts:
        if part.name in chains:
            for residue in part:
                there = [atom.pos.tolist() for atom in residue if atom.name == "CA"]
                places.setdefault(_label(part, residue), []).extend(there)
            chains[part.name] = _joined(chains[part.name], part)
    if not _is_as_read(structure, labels, places):
        return None
    model = gemmi.Model(1)
    for chain in chains.values():
        model.add_chain(chain)
    return model


def _is_as_read(
    structure: Structure, labels: Sequence[str], places: Mapping[str, Sequence[Sequence[float]]]
) -> bool:
    """Tell whether each CA that was read is in its place in the file, and no other one far off.

    Else it is another file by now, or has chains of one name; alternate locations are near.
    """
    for label, place in zip(labels, structure.backbone[:, CA].double().numpy(), strict=True):
        apart = np.linalg.norm(np.array(places.get(label) or [[np.inf] * 3]) - place, axis=1)
        if np.isfinite(place).all() and not (apart.min() < 0.01 and apart.max() < 5.0):
            return False
    return True


def _joined(chain: Any, part: Any) -> Any:
    """Put what a file has of a chain behind its polymer, its ligands say, to it."""
    if chain is None:
        return part.clone()
    for residue in part:
        chain.add_residue(residue)
    return chain


def _of_backbone(structure: Structure) -> Any:
    model = gemmi.Model(1)
    names = gemmi.expand_one_letter_sequence(structure.sequence, gemmi.ResidueKind.AA)
    rows = zip(structure.chain_ids, structure.author_numbers, names, strict=True)
    for (name, number, residue_name), places in zip(rows, structure.backbone, strict=True):
        chain = model.find_chain(name) or model.add_chain(gemmi.Chain(name))
        residue = gemmi.Residue()
        residue.name, residue.seqid = residue_name, gemmi.SeqId(number)
        for atom_name, place in zip(BACKBONE_ATOMS, places.tolist(), strict=True):
            if all(map(np.isfinite, place)):
                atom = gemmi.Atom()
                atom.name, atom.pos = atom_name, gemmi.Position(*place)
                atom.element = gemmi.Element(atom_name[0])
                residue.add_atom(atom)
        chain.add_residue(residue)
    return model
