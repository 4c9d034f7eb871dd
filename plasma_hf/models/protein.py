"""What a residue letter is, and how a typed sequence becomes a clean one."""

# mypy: disable-error-code="override"

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import re
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import compress, islice, takewhile
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Pipeline

STANDARD_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""The twenty residues, in the order of the rows of BLOSUM62."""

RESIDUE_LETTERS = string.ascii_uppercase
"""Every letter is a residue: the twenty, and six with a rule of their own (`LETTER_RULES`)."""

LETTER_RULES = {
    "U": "C",  # selenocysteine stands where a cysteine would
    "O": "K",  # pyrrolysine, a lysine derivative
    "B": "DN",
    "Z": "EQ",
    "J": "IL",
    "X": STANDARD_RESIDUES,
}
"""What a letter outside the twenty may stand for; its embedding is the mean over these."""


def clean_sequence(sequence: str, name: str = "sequence") -> str:
    """Return a protein sequence in upper case, without white space and trailing stop.

    One residue in, one letter out: nothing but white space and one final `*` is removed, so
    positions in the result are positions in the residues that were given.

    Args:
        sequence: One-letter residues, in either case.
        name: What to call the sequence in an error message.

    Raises:
        TypeError: If `sequence` is not a string.
        ValueError: If it is empty or holds a character that is no residue.

    Example:
        >>> clean_sequence("mkv laX*")
        'MKVLAX'
    """
    if not isinstance(sequence, str):
        raise TypeError(
            f"{name} is a {type(sequence).__name__}; give a string of one-letter residues."
        )
    residues = "".join(sequence.split()).removesuffix("*")
    if not residues:
        raise ValueError(f"{name} is empty; give at least one residue, for example 'MKVLA'.")
    good = sum(1 for _ in takewhile(string.ascii_letters.__contains__, residues))
    if good < len(residues):
        raise ValueError(
            f"{name} has the character {residues[good]!r} at position {good + 1}, which is no "
            "residue; accepted are the letters A-Z in either case. Remove gaps ('-', '.') and "
            "inner stops ('*') before aligning."
        )
    return residues.upper()


# --- A structure as users give it: a PDB or mmCIF file, read into backbone atoms chain by chain.


try:
    import gemmi
except ImportError:  # structures are optional; sequences need nothing beyond torch
    gemmi = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

STRUCTURE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
BACKBONE_ATOMS = ("N", "CA", "C", "O")

FARTHEST = 9999.0
"""A coordinate this large (Å) or larger is no measurement: 9999 is what files write for none."""

_CIF_START = re.compile(r"(?:\s|#.*\n)*data_", re.IGNORECASE)
_COORDINATE = re.compile(r" *[-+]?(?:\d+\.?\d*|\.\d+) *")
_USUAL = r"(?:(?:   \d|  [-\d]\d| [-\d]\d\d|[-\d]\d{3})\.\d{3}){3}"
_TER_INSIDE_A_CHAIN = re.compile(
    r"^((?:ATOM  |HETATM).{15}(.).*\n)TER.*\n(?=ATOM  .{15}\2)", re.MULTILINE
)
_UNUSUAL_ATOM_LINE = re.compile(rf"^((?:ATOM  |HETATM).{{24}})(?!{_USUAL})(.{{24}})", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Structure:
    """Residues of one or more protein chains, with their backbone atoms.

    Args:
        id: What to call it: `file.pdb:A` for a chain, `file.pdb:*` for all.
        sequence: One letter an observed residue; a modified one by its parent, an unknown one X.
        backbone: N, CA, C and O of each residue, `(residues, 4 atoms, 3)`, float32, Å; NaN for a
            missing atom.
        author_numbers: Number and insertion code of each residue as the file has them (`52A`).
        chain_ids: Chain of each residue as its authors call it.

    Raises:
        ValueError: If these are not of one length.

    Example:
        >>> Structure("p", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A")).residue_mask
        tensor([True, True])
    """

    id: str
    sequence: str
    backbone: Tensor = field(repr=False)
    author_numbers: tuple[str, ...] = field(repr=False)
    chain_ids: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse parts of different length."""
        residues = len(self.sequence)
        shape = (residues, len(BACKBONE_ATOMS), 3)
        lengths = len(self.author_numbers), len(self.chain_ids)
        if tuple(self.backbone.shape) != shape or lengths != (residues, residues):
            raise ValueError(
                f"{self.id} has {residues} residues, a backbone of shape "
                f"{tuple(self.backbone.shape)}, {lengths[0]} author_numbers and {lengths[1]} "
                f"chain_ids; give a backbone of shape {shape} and one number and chain a residue."
            )

    def __len__(self) -> int:
        """Return the number of residues."""
        return len(self.sequence)

    @property
    def residue_mask(self) -> Tensor:
        """Which residues have all four atoms, `(residues,)`, bool."""
        return self.backbone.isfinite().flatten(1).all(dim=1)


def is_structure(value: Any) -> TypeGuard[Structure]:
    """Tell a `Structure` from anything else, also one made by another copy of this file.

    transformers loads the remote code of a model and of its processor as separate packages, each
    with a class `Structure` of its own; between them `isinstance` says no.

    Example:
        >>> is_structure("1abc.pdb")
        False
    """
    return all(hasattr(value, part.name) for part in fields(Structure))


def read_structures(
    path: str | Path,
    model: int = 1,
    chains: str | Iterable[str] | None = None,
    atoms: Sequence[str] = BACKBONE_ATOMS,
) -> list[Structure]:
    """Read the protein chains of a PDB or mmCIF file, each as one structure.

    What a file is, its content tells, not its ending; it may be gzipped. Waters, ligands and
    nucleic acids are left out. Of alternate locations a residue has the most occupied one.

    Args:
        path: A file.
        model: Which of its models, counted from 1.
        chains: Names of the chains wanted, as the authors call them; by default all.
        atoms: What a residue must have to count as observed; a chain without any such residue is
            left out with a warning. `("CA",)` also keeps C-alpha traces.

    Raises:
        ImportError: If gemmi is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or has no such model, chain or atoms.

    Example:
        >>> [chain.id for chain in read_structures("4cha.pdb.gz")]  # doctest: +SKIP
        ['4cha.pdb.gz:A', '4cha.pdb.gz:B', '4cha.pdb.gz:C']
    """
    file = Path(path)
    found = _protein_chains(file, model)
    if not found:
        raise ValueError(f"{file} holds no protein chain.")
    wanted = [chains] if isinstance(chains, str) else chains
    if wanted is not None:
        found = _choose(file, found, list(wanted))
    structures = [_structure(file, name, places) for name, places in found.items()]
    columns = _columns(atoms)
    kept = []
    for structure, name in zip(structures, found, strict=True):
        if structure.backbone[:, columns].isfinite().flatten(1).all(dim=1).any():
            kept.append(structure)
        else:
            lacking = ", ".join(atoms)
            logger.warning(
                "chain %r of %s has no residue with %s and is left out", name, file, lacking
            )
    if not kept:
        raise ValueError(
            f"{file} has no residue with the backbone atoms {', '.join(atoms)} in chain "
            f"{', '.join(found)}; give a structure with backbone atoms."
        )
    return kept


def read_structure(place: str | Path, atoms: Sequence[str] = BACKBONE_ATOMS) -> Structure:
    """Read the one protein chain of a file, the one named behind a colon, or all as one.

    Args:
        place: A file with one chain, `file.pdb:A` for one of several chains, or `file.pdb:*` for
            all of them one after another.
        atoms: What a residue must have to count as observed, as for `read_structures`.

    Raises:
        ImportError: If gemmi is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, holds several chains, or not the one named.

    Example:
        >>> read_structure("1abc.pdb:A").id  # doctest: +SKIP
        '1abc.pdb:A'
    """
    file, wanted = split_place(place)
    if wanted is not None and wanted != "*":
        return read_structures(file, chains=wanted, atoms=atoms)[0]
    structures = read_structures(file, atoms=atoms)
    if wanted == "*":
        return join_structures(f"{Path(file).name}:*", structures)
    if len(structures) > 1:
        names = [structure.chain_ids[0] for structure in structures]
        raise ValueError(
            f"{file} holds {len(names)} chains: {_listed(names)}; name one, as in "
            f"'{file}:{names[0]}', or take all as one protein with '{file}:*'."
        )
    return structures[0]


def join_structures(name: str, structures: Sequence[Structure]) -> Structure:
    """Put structures one after another.

    Args:
        name: What to call the whole.
        structures: One at least.

    Raises:
        ValueError: If there are none.

    Example:
        >>> one = Structure("p", "M", torch.zeros(1, 4, 3), ("1",), ("A",))
        >>> join_structures("both", [one, one]).sequence
        'MM'
    """
    if not structures:
        raise ValueError(f"no structures were given to join as {name}; give one at least.")
    return Structure(
        name,
        "".join(structure.sequence for structure in structures),
        torch.cat([structure.backbone for structure in structures]),
        tuple(number for structure in structures for number in structure.author_numbers),
        tuple(chain for structure in structures for chain in structure.chain_ids),
    )


def split_place(place: str | Path) -> tuple[str, str | None]:
    """Split `file:chain` into its parts; the chain is None where none is named.

    Example:
        >>> split_place("1abc.pdb:A"), split_place("1abc.pdb")
        (('1abc.pdb', 'A'), ('1abc.pdb', None))
    """
    text = str(place)
    file, colon, wanted = text.rpartition(":")
    if not file or not colon or Path(text).exists():
        return text, None
    return file, wanted


def _columns(atoms: Sequence[str]) -> list[int]:
    if isinstance(atoms, str) or not atoms or not set(atoms) <= set(BACKBONE_ATOMS):
        raise ValueError(
            f"atoms is {atoms!r}; give some of {BACKBONE_ATOMS}, for example ('CA',) for a trace."
        )
    return [BACKBONE_ATOMS.index(atom) for atom in atoms]


def _protein_chains(file: Path, model: int) -> dict[str, list[list[Any]]]:
    """Return the places of each protein chain of a model, by the chain's name."""
    models = _models(file)
    if not 1 <= model <= len(models):
        raise ValueError(
            f"{file} has no model {model}; it has {len(models)}, counted from 1."
            if len(models)
            else f"{file} holds no atoms."
        )
    chains: dict[str, list[list[Any]]] = {}
    for chain in models[model - 1]:
        if places := _places(chain):
            chains.setdefault(chain.name, []).extend(places)
    return chains


def _choose(
    file: Path, found: dict[str, list[list[Any]]], wanted: list[str]
) -> dict[str, list[list[Any]]]:
    for name in wanted:
        if name not in found:
            raise ValueError(f"{file} has no chain {name!r}; it has: {_listed(found)}.")
    return {name: found[name] for name in wanted}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _models(file: Path) -> Any:
    if gemmi is None:
        raise ImportError(f"reading {file} needs gemmi; install it with: pip install gemmi")
    text = _text(file)
    is_cif = "_atom_site." in text or _CIF_START.match(text)
    if not is_cif and not re.search("^(ATOM  |HETATM)", text, re.MULTILINE):
        raise ValueError(
            f"{file} is no readable structure file: it has neither atoms as a PDB file has them "
            "('ATOM  ') nor those of an mmCIF file ('_atom_site.')."
        )
    try:
        if is_cif:
            models = gemmi.read_structure_string(text, format=gemmi.CoorFormat.Mmcif)
        else:
            models = _parse_pdb(text)
        models.setup_entities()
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is no readable structure file: {error}.") from error
    return models


def _text(file: Path) -> str:
    """Return the text of a file that may be gzipped; what is not ASCII becomes a question mark."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(file)!r}; check the path.")
    data = file.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is no readable gzip file: {error}.") from error
    if b"dataBlocks" in data[:10_000]:
        raise ValueError(
            f"{file} is BinaryCIF, which gemmi does not read; give the same entry as mmCIF (.cif), "
            "as the PDB offers it or converted with biotite or Mol*."
        )
    return data.decode("ascii", errors="replace").replace("\ufffd", "?").replace("\0", "?")


def _parse_pdb(text: str) -> Any:
    """Parse a PDB file; atoms whose coordinates are no numbers are marked as absent.

    gemmi takes such coordinates for zero, and what follows a TER inside a chain, as some files have
    it at a gap, for no part of the polymer. Of a line it sees what comes before element and charge
    (column 77), where older files have other things; the atom's name tells the element.
    """
    cleaned = _UNUSUAL_ATOM_LINE.sub(_cleaned, _TER_INSIDE_A_CHAIN.sub(r"\1", text))
    models = gemmi.read_pdb_string(cleaned, max_line_length=76)
    models.merge_chain_parts()
    return models


def _cleaned(line: re.Match[str]) -> str:
    atom, place = line.groups()
    if not all(_COORDINATE.fullmatch(place, start, start + 8) for start in (0, 8, 16)):
        place = "9999.999" * 3
    return atom + place


def _places(chain: Any) -> list[list[Any]]:
    """Group the amino acids of a chain by place: several where residues alternate in one.

    Residues of one number alternate where their labels differ; otherwise the file has numbered
    two residues alike.
    """
    places: dict[tuple[str, int], list[Any]] = {}
    for residue in filter(_is_amino_acid, chain):
        number, again = _number(residue), 0
        while (number, again) in places and not _alternate(residue, places[number, again]):
            again += 1
        places.setdefault((number, again), []).append(residue)
    return list(places.values())


def _number(residue: Any) -> str:
    """Return the author's number; an mmCIF file may lack it and have only its own."""
    return str(residue.label_seq if residue.seqid.num is None else residue.seqid)


def _alternate(residue: Any, others: list[Any]) -> bool:
    labels = _labels(residue)
    return bool(labels) and all(labels.isdisjoint(_labels(other)) for other in others)


def _labels(residue: Any) -> set[str]:
    return {atom.altloc for atom in residue if atom.altloc != "\0"}


def _is_amino_acid(residue: Any) -> bool:
    """Tell a residue of a protein from a ligand, and from a cap of the chain."""
    if residue.entity_type != gemmi.EntityType.Polymer:
        return False
    known = gemmi.find_tabulated_residue(residue.name)
    if known.found():
        return bool(known.is_amino_acid())
    return all(name in residue for name in ("N", "CA", "C"))


def _structure(file: Path, chain: str, places: list[list[Any]]) -> Structure:
    residues = [_most_occupied(place) for place in places]
    backbone = torch.tensor(
        [_backbone(residue, altloc) for residue, altloc in residues], dtype=torch.float32
    )
    measured = (backbone.abs() < FARTHEST).all(dim=-1, keepdim=True)
    letters = (gemmi.find_tabulated_residue(r.name).one_letter_code for r, _ in residues)
    return Structure(
        f"{file.name}:{chain}",
        "".join(letter.upper() if letter.strip() else "X" for letter in letters),
        backbone.where(measured, math.nan),
        tuple(_number(residue) for residue, _ in residues),
        (chain,) * len(residues),
    )


def _most_occupied(place: list[Any]) -> tuple[Any, str]:
    """Choose among alternates one residue and one label, by occupancy; the first of equals."""
    occupancy: dict[tuple[int, str], float] = {}
    for number, residue in enumerate(place):
        for atom in residue:
            # Backbone only, or of two residue types the one with the longer side chain would win.
            if atom.name in BACKBONE_ATOMS and (len(place) > 1 or atom.altloc != "\0"):
                key = number, atom.altloc
                occupancy[key] = occupancy.get(key, 0.0) + (atom.occ if atom.occ > 0 else 0.0)
    number, altloc = max(occupancy, key=occupancy.__getitem__, default=(0, "\0"))
    return place[number], altloc


def _backbone(residue: Any, altloc: str) -> list[list[float]]:
    """Return the four atoms; one that lacks the label as most occupied under another."""
    atoms = []
    for name in BACKBONE_ATOMS:
        found = list(residue[name]) if name in residue else []
        if len(found) > 1:
            found.sort(key=lambda atom: (atom.altloc != altloc, atom.altloc != "\0", -atom.occ))
        atoms.append(found[0].pos.tolist() if found else [math.nan] * 3)
    return atoms


# --- A protein as users give it: a sequence, a file, or ready residue embeddings.


logger = logging.getLogger(__name__)

FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fas")
FILE_SUFFIXES = FASTA_SUFFIXES + STRUCTURE_SUFFIXES
PROTEIN_ATOMS = ("N", "CA", "C")


@dataclass
class Protein:
    """One side of a pair: residues as letters, or as embeddings `(residues, hidden)`.

    Args:
        id: What to call it.
        sequence: One letter a residue.
        embeddings: One vector a residue, `(residues, hidden)`.
        backbone_atoms: N, CA and C of each residue, `(residues, 3 atoms, 3)`, Å, float32, for a
            protein read from a structure. A residue that lacks one of the three has NaN.
    """

    id: str
    sequence: str | None = None
    embeddings: Tensor | None = None
    backbone_atoms: Tensor | None = field(default=None, repr=False, compare=False)


def read_protein(value: Any, name: str = "protein") -> Protein:
    """Read one protein from whatever a user may give for it.

    Args:
        value: A sequence; a path to FASTA, PDB or mmCIF (also `.gz`), with `:id` or `:chain`
            behind it where the file holds several, `:*` for all chains one after another; or
            embeddings `(residues, hidden)`.
        name: What to call it in an error message.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the sequence or embeddings are unusable, or the file holds several records.
        FileNotFoundError: If there is no such file.

    Example:
        >>> read_protein("mkvla").sequence
        'MKVLA'
    """
    if is_protein(value):
        return _check_protein(value, name)
    if isinstance(value, Path) or (isinstance(value, str) and looks_like_path(value)):
        return read_protein(read_record(str(value)), name)
    if isinstance(value, str):
        return Protein(name, clean_sequence(value, name))
    if isinstance(value, Tensor | np.ndarray | list):
        return Protein(name, embeddings=_read_embeddings(value, name))
    raise TypeError(
        f"{name} is a {type(value).__name__}; give a sequence, a path to a FASTA, PDB or mmCIF "
        "file, or residue embeddings (residues, hidden)."
    )


def is_protein(value: Any) -> TypeGuard[Protein]:
    """Tell a `Protein` from anything else, also one made by another copy of this file.

    transformers loads the remote code of a model and of its processor as separate packages, each
    with a class `Protein` of its own; between them `isinstance` says no.

    Example:
        >>> is_protein(Protein("p", "MKV")), is_protein("MKV")
        (True, False)
    """
    return all(hasattr(value, part.name) for part in fields(Protein))


def with_backbone_atoms(protein: Protein) -> Protein:
    """Keep the residues that have all of N, CA and C, as a structure encoder needs them.

    A warning names those that are left out. Whatever a residue's name, it stays: ProtSSN's own
    reader gives up on a protein with a modified residue, here it is spelled by its parent.

    Raises:
        ValueError: If the protein has no atoms, or no residue has all three.

    Example:
        >>> atoms = torch.tensor([1.0, float("nan"), 3.0]).expand(3, 3, 3).transpose(0, 2)
        >>> with_backbone_atoms(Protein("p", "MKV", backbone_atoms=atoms)).sequence
        'MV'
    """
    atoms = protein.backbone_atoms
    if atoms is None:
        raise ValueError(
            f"{protein.id} comes without atoms, and a structure encoder such as ProtSSN reads "
            "structures; give the path of a PDB or mmCIF file, for example 'file.pdb:A'."
        )
    complete = atoms.isfinite().all(dim=-1).all(dim=-1)
    if complete.all():
        return protein
    letters = protein.sequence or "?" * len(atoms)
    lacking = [f"{letters[i]}{i + 1}" for i in (~complete).nonzero()[:, 0].tolist()]
    names = ", ".join(lacking[:20]) + (", ..." if len(lacking) > 20 else "")
    lack = f"lack one of the backbone atoms {', '.join(BACKBONE_ATOMS)}"
    if not complete.any():
        raise ValueError(f"all residues of {protein.id} {lack}; give a complete structure.")
    logger.warning(
        "%s: %d of %d residues %s and are left out: %s (by their place in the sequence)",
        *(protein.id, len(lacking), len(atoms), lack, names),
    )
    return replace(
        protein,
        sequence=protein.sequence and "".join(compress(letters, complete.tolist())),
        embeddings=None if protein.embeddings is None else protein.embeddings[complete],
        backbone_atoms=atoms[complete],
    )


def looks_like_path(text: str) -> bool:
    """Tell a path from a sequence: a path holds a dot or a slash, a sequence neither.

    Example:
        >>> looks_like_path("1abc.pdb:A"), looks_like_path("MKVLA")
        (True, False)
    """
    return "." in text or "/" in text or "\\" in text


def read_record(path: str) -> Protein:
    """Read the one protein of a file, or the one named behind a colon, unchecked.

    `file.pdb:*` is all chains of a structure one after another, as one protein.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is unreadable, holds several proteins, or not the one named.
    """
    file, wanted = split_place(path)
    if _suffix_of(Path(file)) in STRUCTURE_SUFFIXES:
        return _from_structure(read_structure(path, atoms=PROTEIN_ATOMS))
    records = list(read_records(file))
    names = ", ".join(record.id for record in records[:20])
    if wanted:
        for record in records:
            if wanted in (record.id, record.id.rpartition(":")[2]):
                return record
        raise ValueError(f"{file} has no record {wanted!r}; it has: {names}.")
    if len(records) > 1:
        raise ValueError(
            f"{file} holds {len(records)} records: {names}; name one, as in "
            f"'{file}:{records[0].id}'."
        )
    return records[0]


def read_records(path: str | Path) -> Iterator[Protein]:
    """Read every protein of a FASTA, PDB or mmCIF file, sequences unchecked.

    A FASTA record is called by the first word of its header, a chain `file:chain`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as what its name says.
    """
    file = Path(path)
    suffix = _suffix_of(file)
    if suffix not in FILE_SUFFIXES:
        raise ValueError(
            f"{path}: files are read by their ending, and this one "
            + (f"has {suffix!r}, which is not one of" if suffix else "has no ending; give one of")
            + f" {', '.join(FILE_SUFFIXES)} (each also with .gz)."
        )
    if suffix in STRUCTURE_SUFFIXES:
        return map(_from_structure, read_structures(file, atoms=PROTEIN_ATOMS))
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; check the path.")
    return iter(_read_fasta(file))


def parse_fasta(lines: Iterable[str]) -> Iterator[Protein]:
    """Read FASTA records from lines as they come, sequences unchecked.

    A record is called by the first word of its header, or else by the number of its line.

    Args:
        lines: An open file, or the lines of a text.

    Raises:
        ValueError: If a line comes before any header.

    Example:
        >>> [(p.id, p.sequence) for p in parse_fasta([">one first", "MK", "VL", ">two", "AC"])]
        [('one', 'MKVL'), ('two', 'AC')]
    """
    name: str | None = None
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if line.startswith(">"):
            if name is not None:
                yield Protein(name, "".join(parts))
            name, parts = (line[1:].split() or [f"line{number}"])[0], []
        elif line and name is None:
            raise ValueError(f"line {number} comes before any '>' header line")
        else:
            parts.append(line)
    if name is not None:
        yield Protein(name, "".join(parts))


def _suffix_of(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _read_fasta(file: Path) -> list[Protein]:
    opened = gzip.open if file.name.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            records = list(parse_fasta(lines))
    except (OSError, UnicodeDecodeError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no readable FASTA file: {error}.") from error
    if not records:
        raise ValueError(f"{file} holds no FASTA record; a record begins with a '>' line.")
    return records


def _from_structure(structure: Structure) -> Protein:
    atoms = structure.backbone[:, : len(PROTEIN_ATOMS)]
    return Protein(structure.id, structure.sequence, backbone_atoms=atoms)


def _check_protein(protein: Protein, name: str) -> Protein:
    """Return a protein with its embeddings, or else its sequence, checked; and its atoms."""
    sequence = embeddings = None
    if protein.embeddings is not None:
        embeddings = _read_embeddings(protein.embeddings, name)
        residues = len(embeddings)
    else:
        sequence = clean_sequence(protein.sequence or "", f"{name} {protein.id!r}")
        residues = len(sequence)
    atoms = protein.backbone_atoms
    if atoms is not None and tuple(atoms.shape) != (residues, len(PROTEIN_ATOMS), 3):
        raise ValueError(
            f"{name} {protein.id!r} has {residues} residues and backbone_atoms of shape "
            f"{tuple(atoms.shape)}; give N, CA and C of each residue, ({residues}, 3, 3)."
        )
    return Protein(protein.id, sequence, embeddings, atoms)


def _read_embeddings(value: Tensor | np.ndarray | list, name: str) -> Tensor:
    try:
        embeddings = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no table of numbers (residues, hidden): {error}.") from error
    if embeddings.ndim != 2 or 0 in embeddings.shape or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} is {embeddings.dtype} of shape {tuple(embeddings.shape)}; residue embeddings "
            "are floating point numbers of shape (residues, hidden), with at least one residue."
        )
    if not embeddings.isfinite().all():
        raise ValueError(f"{name} has embeddings that are NaN or infinite.")
    return embeddings


# --- What retrieval looks for and among: a sequence or a structure with an id and a source.


logger = logging.getLogger(__name__)

KINDS = ("sequence", "structure")
RESIDUES_PER_BATCH = 2048
ACCEPTED = (
    f"a sequence, a path to FASTA ({', '.join(FASTA_SUFFIXES)}) or a structure "
    f"({', '.join(STRUCTURE_SUFFIXES)}; each also with .gz), a Structure, or a mapping with "
    "'sequence' or 'structure', and 'id' if you like"
)


@dataclass(frozen=True, eq=False)
class RetrievalRecord:
    """Hold a protein as one of its two kinds.

    Args:
        id: What to call it.
        content: One-letter residues, or a `Structure`.
        source: File and record it was read from, "" if from none.
    """

    id: str
    content: str | Structure
    source: str = ""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "sequence" if isinstance(self.content, str) else "structure"

    @property
    def residues(self) -> str:
        """One letter a residue."""
        return self.content if isinstance(self.content, str) else self.content.sequence

    @cached_property
    def sha(self) -> str:
        """SHA-256 of all that its vector depends on, in hexadecimal.

        Example:
            >>> RetrievalRecord("a", "MKVLA").sha == RetrievalRecord("b", "MKVLA").sha
            True
        """
        digest = hashlib.sha256(f"{self.kind}\0{self.residues}\0".encode())
        if not isinstance(self.content, str):
            structure = self.content
            for names in (structure.author_numbers, structure.chain_ids):
                digest.update(" ".join(names).encode() + b"\0")
            places = structure.backbone.to(torch.float32).cpu().numpy()
            # NaN is many patterns of bits; here it is one.
            digest.update(np.where(np.isnan(places), np.float32("nan"), places).tobytes())
        return digest.hexdigest()


def is_record(value: Any) -> TypeGuard[RetrievalRecord]:
    """Tell a record from anything else, also one made by another copy of this file."""
    return all(hasattr(value, part.name) for part in fields(RetrievalRecord))


def record_of(value: Any, name: str = "query") -> RetrievalRecord:
    """Read one record from whatever a user may give for it.

    Args:
        value: A sequence; a path to FASTA or a structure, with `:record` or `:chain` behind it
            where the file holds several; a `Structure` or `Protein`; or a mapping with `sequence`
            or `structure`, and `id`.
        name: What to call it in an error message, and where it has no id.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it cannot be used, or the file holds several.
        FileNotFoundError: If there is no such file.

    Example:
        >>> record = record_of({"id": "P1", "sequence": "mkvla"})
        >>> record.id, record.kind, record.residues
        ('P1', 'sequence', 'MKVLA')
    """
    if is_record(value):
        return _checked(value, name)
    if isinstance(value, Mapping):
        return _of_mapping(value, name)
    if is_structure(value):
        return _checked(RetrievalRecord(value.id, value), name)
    if is_protein(value):
        return _checked(RetrievalRecord(value.id, value.sequence or ""), name)
    if isinstance(value, Path) or (isinstance(value, str) and looks_like_path(value)):
        return _of_path(str(value), name)
    if isinstance(value, str):
        return RetrievalRecord(name, clean_sequence(value, name))
    raise TypeError(f"{name} is a {type(value).__name__}; give {ACCEPTED}.")


def records_in(place: str | Path, bad: list[tuple[str, str]]) -> Iterator[RetrievalRecord]:
    """Read all records of a FASTA or structure file, or of the structures below a folder.

    Args:
        place: File or folder; or one record or chain, as `file:record` or `file:chain`.
        bad: List to which what cannot be used is added, as (id, reason).

    Raises:
        FileNotFoundError: If there is no such place.
        ValueError: If it holds nothing that can be read.
    """
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_structure_file(file))
        if not files:
            raise ValueError(
                f"there is no structure file below {str(place)!r}; structures are read from "
                f"{', '.join(STRUCTURE_SUFFIXES)}, each also with .gz."
            )
        for file in files:
            name = file.relative_to(path).as_posix()
            yield from _reporting(_chains(file, name), name, bad)
    elif not path.exists():
        yield _named_record(str(place))
    elif is_structure_file(path):
        yield from _chains(path, path.name)
    else:
        for protein in read_records(path):
            record = RetrievalRecord(protein.id, protein.sequence or "", f"{path}:{protein.id}")
            yield from _reporting([record], protein.id, bad)


def _named_record(place: str) -> RetrievalRecord:
    """Read the one record that is named behind a file."""
    if not Path(split_place(place)[0]).is_file():
        raise FileNotFoundError(
            f"there is no file or folder {place!r}; check the path. A sequence goes into a list: "
            "candidates=['MKVLA']."
        )
    return _of_path(place, "candidate")


def _reporting(
    records: Iterable[RetrievalRecord], name: str, bad: list[tuple[str, str]]
) -> Iterator[RetrievalRecord]:
    try:
        for record in records:
            yield _checked(record, "record")
    except (ValueError, OSError, EOFError) as error:
        bad.append((name, str(error)))


def _chains(file: Path, name: str) -> Iterator[RetrievalRecord]:
    for structure in read_structures(file):
        chain = structure.id.rpartition(":")[2]
        yield RetrievalRecord(f"{name}:{chain}", structure, f"{file}:{chain}")


def is_structure_file(file: Path) -> bool:
    """Tell by its ending whether a file may hold structures."""
    return _suffix_of_record(file) in STRUCTURE_SUFFIXES


def _suffix_of_record(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _of_mapping(value: Mapping[str, Any], name: str) -> RetrievalRecord:
    given = [kind for kind in KINDS if value.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{name} is a mapping with the keys {', '.join(map(repr, value)) or 'none'}; give "
            "either 'sequence' or 'structure', and 'id' if you like."
        )
    content = value[given[0]]
    if given[0] == "sequence" and isinstance(content, str):
        content = clean_sequence(content, name)  # never a path, whatever it looks like
    record = record_of(content, name)
    if record.kind != given[0]:
        raise ValueError(f"{name} has a {record.kind} under the key {given[0]!r}.")
    return RetrievalRecord(str(value.get("id") or record.id), record.content, record.source)


def _of_path(place: str, name: str) -> RetrievalRecord:
    file = Path(split_place(place)[0])
    if file.is_dir():
        raise ValueError(
            f"{name} is the folder {place!r}, not one protein; give a file in it. What to search "
            "can be a folder: candidates=FOLDER, or plasma-hf index build FOLDER."
        )
    if is_structure_file(file):
        structure = read_structure(place)
        chain = structure.id.rpartition(":")[2]
        return _checked(RetrievalRecord(structure.id, structure, f"{file}:{chain}"), name)
    protein = read_record(place)
    record = RetrievalRecord(protein.id, protein.sequence or "", f"{file}:{protein.id}")
    return _checked(record, name)


def _checked(record: RetrievalRecord, name: str) -> RetrievalRecord:
    if isinstance(record.content, str):
        letters = clean_sequence(record.content, f"{name} {record.id!r}")
        return RetrievalRecord(record.id, letters, record.source)
    if not is_structure(record.content):
        raise TypeError(
            f"{name} {record.id!r} is a {type(record.content).__name__}; give {ACCEPTED}."
        )
    return record


def embed_records(
    model: Any, records: Sequence[RetrievalRecord], residues_per_batch: int = RESIDUES_PER_BATCH
) -> list[Tensor | Exception]:
    """Embed records, each kind by its own side of the model, in batches of like length.

    Args:
        model: With `embed_sequences` and `embed_structures`, such as `ProtAlignModel`.
        records: Sequences and structures, mixed as they come.
        residues_per_batch: Most residues embedded at once, padding included.

    Returns:
        One L2-normalised vector `(width,)` a record, float32 on the CPU, or what went wrong.

    Raises:
        ValueError: If the model has no encoder for a kind.
    """
    results: dict[int, Tensor | Exception] = {}
    for kind in KINDS:
        chosen = [i for i, record in enumerate(records) if record.kind == kind]
        if chosen:
            check_encoder(model, kind)
        chosen.sort(key=lambda i: -len(records[i].residues))
        while chosen:
            longest = len(records[chosen[0]].residues)
            size = max(1, residues_per_batch // max(1, longest))
            batch, chosen = chosen[:size], chosen[size:]
            found = _embed_batch(model, [records[i] for i in batch])
            results |= dict(zip(batch, found, strict=True))
    return [results[i] for i in range(len(records))]


def check_encoder(model: Any, kind: str) -> None:
    """Refuse a model without an encoder for a kind, if it can tell; see `ProtAlignModel`."""
    check = getattr(model, "check_encoder", None)
    if check is not None:
        check(kind)


def _embed_batch(model: Any, records: Sequence[RetrievalRecord]) -> list[Tensor | Exception]:
    """Embed a batch; if that fails, each by itself, to find the one to blame."""
    embed = model.embed_sequences if records[0].kind == "sequence" else model.embed_structures
    try:
        vectors = embed([record.content for record in records], batch_size=len(records))
        vectors = F.normalize(vectors.detach().float().cpu(), dim=-1)
    except (ValueError, RuntimeError) as error:
        if len(records) == 1:
            return [error]
        return [found for record in records for found in _embed_batch(model, [record])]
    return [
        vector if bool(vector.isfinite().all()) else ValueError("its vector is not finite")
        for vector in vectors
    ]


# --- A pipeline that answers in order, and computes in batches of like size.


# The base class types its hooks for one dict of tensors.


READ_AHEAD = 16
"""Batches that are looked at together, so that inputs of like size share a batch."""


class BatchedPipeline(Pipeline):
    """Answer every input in order; one that cannot be used does not keep others from an answer.

    `preprocess` reads an input, or returns `{"error": str}`, which is its answer then. `_forward`
    takes a list of what was read, and returns as many outputs. A derived class has `size_of`.
    """

    def size_of(self, prepared: Any) -> Any:
        """Return what inputs are sorted by, so that batches have little padding."""
        raise NotImplementedError

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield one answer an input."""
        prepared = (self.preprocess(one, **preprocess_params) for one in inputs)
        ahead = batch_size * READ_AHEAD if batch_size > 1 else 1
        while window := list(islice(prepared, ahead)):
            answers: dict[int, Any] = {}
            good = [i for i, one in enumerate(window) if not _is_error(one)]
            good.sort(key=lambda i: self.size_of(window[i]))
            for start in range(0, len(good), batch_size):
                chosen = good[start : start + batch_size]
                outputs = self.forward([window[i] for i in chosen], **forward_params)
                for i, output in zip(chosen, outputs, strict=True):
                    answers[i] = self.postprocess(output, **postprocess_params)
            yield from (answers.get(i, one) for i, one in enumerate(window))

    def run_single(self, inputs: Any, *params: dict[str, Any]) -> Any:
        """Answer one input."""
        return next(self.get_iterator([inputs], 0, 1, *params))


def _is_error(prepared: Any) -> bool:
    return isinstance(prepared, Mapping) and "error" in prepared
