"""A structure as users give it: a PDB or mmCIF file, read into backbone atoms chain by chain."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

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
