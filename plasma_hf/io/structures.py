"""Structures from a folder of files, and as rows of plain columns for data sets and Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..models.protein import (
    BACKBONE_ATOMS,
    STRUCTURE_SUFFIXES,
    InvalidRecord,
    Structure,
    files_below,
    join_structures,
    open_text,
    read_structures,
    suffix_of,
)
from .sequences import OnInvalid, log_invalid

if TYPE_CHECKING:
    from datasets import Features


ChainPolicy = Literal["each", "first", "longest", "joined"]
POLICIES: tuple[ChainPolicy, ...] = ("each", "first", "longest", "joined")
CHAIN_LIST_SUFFIX = ".jsonl"
# What the first line of a PDB file begins with, for files named without an ending.
PDB_RECORDS = ("HEADER", "TITLE ", "COMPND", "REMARK", "CRYST1", "MODEL ", "ATOM  ", "HETATM")


@dataclass(frozen=True, eq=False)
class StructurePair:
    """A sequence and the structure that belongs to it; a family groups them, such as a target."""

    id: str
    sequence: str
    structure: Structure
    family: str | None = None


def pair_of(structure: Structure, family: str | None = None) -> StructurePair:
    """Pair a structure with the sequence of its own observed residues."""
    return StructurePair(structure.id, structure.sequence, structure, family)


def row_features() -> Features:
    """Return the columns of a row, for `datasets`."""
    try:
        from datasets import Features, List, Value
    except ImportError as error:
        raise ImportError(
            "data sets of structures need datasets; pip install 'plasma-hf[train]'"
        ) from error
    text = ("id", "sequence", "family", "structure_id", "structure_sequence")
    columns = {name: Value("string") for name in text} | {"coordinates": List(Value("float32"))}
    return Features(columns | dict.fromkeys(("author_numbers", "chain_ids"), List(Value("string"))))


def pair_to_row(pair: StructurePair) -> dict[str, Any]:
    """Write a pair as plain values that pass through `datasets`, JSON and Parquet unharmed.

    `coordinates` are those of N, CA, C, O of each residue, flattened from `(residues, 4 atoms, 3)`,
    Å, None for a missing atom.

    Example:
        >>> structure = Structure("1abc.pdb:A", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A"))
        >>> row = pair_to_row(pair_of(structure, family="P1"))
        >>> row["sequence"], len(row["coordinates"]), row_to_pair(row).structure.author_numbers
        ('MK', 24, ('1', '2'))
    """
    structure = pair.structure
    # None, not NaN: JSON has no NaN, and a null is the same to every reader of Parquet.
    coordinates = structure.backbone.flatten().to(torch.float32).numpy().astype(object)
    coordinates[np.isnan(coordinates.astype(np.float32))] = None
    return {
        "id": pair.id,
        "sequence": pair.sequence,
        "family": pair.family,
        "structure_id": structure.id,
        "structure_sequence": structure.sequence,
        "coordinates": coordinates.tolist(),
        "author_numbers": list(structure.author_numbers),
        "chain_ids": list(structure.chain_ids),
    }


def row_to_pair(row: Mapping[str, Any]) -> StructurePair:
    """Read a row written by `pair_to_row`, from `datasets`, JSON or Parquet.

    `coordinates` may hold None or NaN for a missing atom.
    """
    missing = [name for name in ("id", "sequence", "coordinates") if row.get(name) is None]
    if missing:
        raise ValueError(f"the row has no {', '.join(missing)}; give rows made by pair_to_row")
    letters = row.get("structure_sequence") or row["sequence"]
    values = np.array(row["coordinates"], dtype=np.float32)
    if values.size != len(letters) * 12:
        raise ValueError(
            f"{row['id']} has {values.size} coordinates for {len(letters)} residues; give 12 for "
            "each: x, y, z of N, CA, C, O"
        )
    numbers = row.get("author_numbers") or [str(i + 1) for i in range(len(letters))]
    structure = Structure(
        id=row.get("structure_id") or row["id"],
        sequence=letters,
        backbone=torch.from_numpy(values.reshape(-1, 4, 3)),
        author_numbers=tuple(numbers),
        chain_ids=tuple(row.get("chain_ids") or ["A"] * len(letters)),
    )
    return StructurePair(row["id"], row["sequence"], structure, row.get("family"))


def read_structure_folder(
    path: str | PathLike[str],
    on_invalid: OnInvalid = log_invalid,
    policy: ChainPolicy = "each",
    min_residues: int = 1,
    atoms: Sequence[str] = BACKBONE_ATOMS,
) -> Iterator[Structure]:
    """Read the structures of all files below a folder, one file in memory at a time.

    Besides structure files (also `.gz`, and PDB files named without an ending) it reads lists of
    chains, `.jsonl` and `.jsonl.gz`: one JSON object per line with `id`, `seq`, and `N`, `CA`, `C`
    and `O` as one `[x, y, z]` per residue, null where unknown. Where there is `O_derived` instead,
    that is taken for O: it is a place computed from ideal geometry, not a measured one. Files of
    any other kind are passed over.

    Args:
        path: Folder, searched with all folders below it in sorted order, or a single file.
        on_invalid: Called with each file and chain that is left out.
        policy: What to make of the chains of a file: "each" for a structure of its own, "first",
            "longest" (of equally long ones the first by its name), or "joined" for all as one
            structure. A chain of a list is always by itself.
        min_residues: Structures of fewer residues are left out.
        atoms: What a residue of a file must have to count as observed, see `read_structures`.

    Yields:
        Structures, called by their file's place below the folder ("kinases/1abc.pdb.gz:A").

    Example:
        >>> [one.id for one in read_structure_folder("chains/")]  # doctest: +SKIP
        ['a/1abc.pdb.gz:A', 'a/1abc.pdb.gz:B', 'b.cif:A']
    """
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; give {', '.join(map(repr, POLICIES))}")
    for file, name in find_structure_files(path):
        for structure in read_structure_file(file, name, on_invalid, policy, atoms):
            if len(structure) < min_residues:
                reason = f"it has {len(structure)} residues, fewer than {min_residues}"
                on_invalid(InvalidRecord(structure.id, reason))
            else:
                yield structure


def find_structure_files(path: str | PathLike[str]) -> list[tuple[Path, str]]:
    """List the files below a folder that can hold structures, each with its place in there.

    Linked folders are entered, once; a link to nothing is listed, so that its reader reports it.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return [(path, path.name)]
    files = files_below(path)
    found = [(f, f.relative_to(path).as_posix()) for f in files if _may_hold_structures(f)]
    if not found:
        raise FileNotFoundError(
            f"there is no structure file below {str(path)!r}; give a folder with files of the kind "
            f"{', '.join((*STRUCTURE_SUFFIXES, CHAIN_LIST_SUFFIX))}, each also with .gz"
        )
    return found


def _may_hold_structures(file: Path) -> bool:
    if suffix := suffix_of(file):
        # BinaryCIF cannot be read; it is tried, so that the reason is told.
        return suffix in (*STRUCTURE_SUFFIXES, ".bcif", CHAIN_LIST_SUFFIX)
    return begins_as_structure(file)


def begins_as_structure(file: Path) -> bool:
    """Tell a PDB or mmCIF file by how it begins; what cannot be read may be one."""
    try:
        with open_text(file) as lines:
            start = re.sub(r"^(?:\s|#.*\n)*", "", lines.read(2**12))
    except (ValueError, OSError):
        return True
    return start[:6] in PDB_RECORDS or start[:5].lower() == "data_"


def read_structure_file(
    file: Path,
    name: str,
    on_invalid: OnInvalid = log_invalid,
    policy: ChainPolicy = "each",
    atoms: Sequence[str] = BACKBONE_ATOMS,
) -> Iterator[Structure]:
    """Read one file as `read_structure_folder` does; `name` begins the ids of its structures."""
    try:
        if suffix_of(file) == CHAIN_LIST_SUFFIX:
            yield from _read_chain_list(file, name, on_invalid)
            return
        read = read_structures(file, atoms=atoms)
        chains = [replace(chain, id=f"{name}:{chain.chain_ids[0]}") for chain in read]
        yield from choose_chains(chains, policy, name)
    except (ValueError, OSError, EOFError) as error:
        on_invalid(InvalidRecord(name, str(error)))


def choose_chains(
    chains: Sequence[Structure], policy: ChainPolicy, name: str
) -> Sequence[Structure]:
    """Make of the chains of a file what a policy says, as in `read_structure_folder`."""
    if not chains:
        raise ValueError("it holds no protein chain")
    if policy == "first":
        return chains[:1]
    if policy == "longest":
        return [min(chains, key=lambda chain: (-len(chain), chain.chain_ids[0]))]
    if policy == "joined":
        return [join_structures(f"{name}:*", chains)]
    return chains


def _read_chain_list(file: Path, name: str, on_invalid: OnInvalid) -> Iterator[Structure]:
    with open_text(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _chain_of_list(json.loads(line), name)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                on_invalid(InvalidRecord(f"{name} line {number}", str(error)))


def lists_chains(file: str | Path) -> bool:
    """Tell a list of chains from JSON Lines of sequences, by its first line."""
    if suffix_of(file) != CHAIN_LIST_SUFFIX:
        return False
    with open_text(Path(file)) as lines:
        return '"CA"' in next(lines, "")


def read_listed_chain(file: str | PathLike[str], key: str) -> Structure:
    """Read the chain of a list that has an id."""
    with open_text(Path(file)) as lines:
        for line in lines:
            if key in line or json.dumps(key)[1:-1] in line:  # JSON takes its time
                record = json.loads(line)
                if str(record.get("id")) == key:
                    return _chain_of_list(record, Path(file).name)
    raise ValueError(f"{file} has no chain {key!r}")


def _chain_of_list(record: Mapping[str, Any], name: str) -> Structure:
    key, sequence = record.get("id"), record.get("seq") or record.get("sequence")
    if not key or not sequence:
        raise ValueError("it lacks id or seq; give a JSON object with id, seq, N, CA, C")
    residues = len(sequence)
    oxygens = record.get("O") or record.get("O_derived") or [None] * residues
    atoms: list[Any] = [record.get("N"), record.get("CA"), record.get("C"), oxygens]
    if any(atom is None or len(atom) != residues for atom in atoms):
        raise ValueError(f"it has not one N, CA, C for each of its {residues} residues")
    nowhere = (None, None, None)
    places = [[nowhere if place is None else place for place in atom] for atom in atoms]
    if any(len(place) != 3 for atom in places for place in atom):
        raise ValueError("it has atoms that are not x, y, z")
    backbone = torch.from_numpy(np.array(places, dtype=np.float32)).transpose(0, 1).contiguous()
    # The chain as PDB calls it, where the id ends with it: "1A2X_B".
    chain = str(key).rpartition("_")[2] if "_" in str(key) else "A"
    numbers = tuple(str(i + 1) for i in range(residues))
    return Structure(f"{name}:{key}", sequence, backbone, numbers, (chain,) * residues)
