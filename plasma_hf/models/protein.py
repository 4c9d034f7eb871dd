"""A protein as users give it: sequence, structure or residue embeddings, read and cleaned once.

This file reads FASTA, PDB and mmCIF with gemmi alone, also where plasma_hf is not installed.
"""

# mypy: disable-error-code="override, assignment"

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import logging
import math
import os
import re
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain as chained
from itertools import compress, count, islice, pairwise
from operator import not_
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Pipeline

try:
    import gemmi
except ImportError:  # structures are optional; sequences need nothing beyond torch
    gemmi = None
try:
    from Bio.Data.PDBData import protein_letters_3to1_extended as PARENTS
except ImportError:  # gemmi knows the modified residues that are frequent
    PARENTS = {}

logger = logging.getLogger(__name__)

STANDARD_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""The twenty residues, in the order of the rows of BLOSUM62."""

RESIDUE_LETTERS = string.ascii_uppercase
"""Every letter is a residue: the twenty, and six with a rule of their own (`LETTER_RULES`)."""

# What a letter outside the twenty may stand for; its embedding is the mean over these. U is
# selenocysteine, in the place of a cysteine, O pyrrolysine, a lysine derivative.
LETTER_RULES = {"U": "C", "O": "K", "B": "DN", "Z": "EQ", "J": "IL", "X": STANDARD_RESIDUES}
_nucleotides_named: list[str] = []  # the first that was noticed

BACKBONE_ATOMS = ("N", "CA", "C", "O")
STRUCTURE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
KINDS = ("sequence", "structure")
ACCEPTED = (
    "a sequence, a path to FASTA, PDB or mmCIF, a Structure or Protein, a mapping with 'sequence' "
    "or 'structure', and 'id' if you like, or, to align, residue embeddings (residues, hidden)"
)


def clean_sequence(sequence: str, name: str = "sequence") -> str:
    """Return a protein sequence in upper case, without white space and trailing stop.

    Nothing else is removed, so positions in the result are residues as given. Errors call it
    `name`; so does a warning, once, if it `is_nucleotides`.

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
    if not (residues.isascii() and residues.isalpha()):
        wrong = next(i for i, one in enumerate(residues) if one not in string.ascii_letters)
        raise ValueError(
            f"{name} has the character {residues[wrong]!r} at position {wrong + 1}, which is no "
            "residue; accepted are the letters A-Z in either case. Remove gaps ('-', '.') and "
            "inner stops ('*') before aligning."
        )
    residues = residues.upper()
    if not _nucleotides_named and is_nucleotides(residues):
        _nucleotides_named.append(name)
        logger.warning("%s looks like DNA or RNA; it is read as a protein (said once)", name)
    return residues


def is_nucleotides(letters: str) -> bool:
    """Tell DNA or RNA: of 20 letters or more 95 % are A, C, G, T, U, N, four different ones."""
    counts = sorted(map(letters.count, "ACGTUN"))
    return counts[2] > 0 and sum(counts) >= 0.95 * max(len(letters), 20)


# --- Text files, plain or gzipped. What a file is, its content tells, not its name.

MOST_UNPACKED, MOST_GROWTH = 2**26, 50  # bytes of any gzipped file, and times its own size
_piped = lru_cache(maxsize=2)(lambda pipe, number: Path(pipe).read_bytes())  # which works once


def _as_latin_1(error: Any) -> tuple[str, int]:
    line = re.compile(rb"[^\r\n]*").match(error.object, error.start)[0]  # type: ignore[index]
    return line.decode("latin-1"), error.start + len(line)


codecs.register_error("or-latin-1", _as_latin_1)


class _Unpacked(gzip.GzipFile):
    def read1(self, size: int = -1) -> bytes:
        try:
            piece = super().read1(size)
            if self.tell() > (most := max(MOST_UNPACKED, MOST_GROWTH * os.path.getsize(self.name))):
                raise OSError(f"it unpacks to over {most // 10**6} MB; gunzip what you trust first")
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{self.name} is not a valid gzip file: {error}.") from error
        return piece

    def read(self, size: int | None = -1) -> bytes:  # of a whole file, as TextIOWrapper asks
        return b"".join(iter(lambda: self.read1(2**20), b""))


def open_text(file: str | Path) -> io.TextIOWrapper:
    """Open a file or pipe as lines, ended by CR, LF or both; where it is not UTF-8, Latin-1."""
    if not os.path.exists(file) or os.path.isdir(file):
        link = " (a link to nothing)" if os.path.islink(file) else ""
        if os.path.isdir(file):
            raise IsADirectoryError(f"{str(file)!r} is a folder, not a file; give a file in it.")
        raise FileNotFoundError(f"there is no file {str(file)!r}{link}; check the path.")
    regular, number = os.path.isfile(file), os.stat(file).st_ino
    raw: Any = open(file, "rb") if regular else io.BytesIO(_piped(str(file), number))
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    opened: Any = _Unpacked(str(file), "rb", fileobj=raw) if packed else raw
    if packed:
        opened.myfileobj = raw  # is closed with it
    return io.TextIOWrapper(opened, "utf-8-sig", "or-latin-1")


def is_fasta(file: str | Path) -> bool:
    """Tell FASTA by its first line that is no comment."""
    with open_text(file) as lines:
        return bool(re.match(r"(?:\s*[;#].*\n)*\s*>", lines.read(2**16)))


def files_below(folder: str | Path) -> list[Path]:
    """List the files below a folder, and links to nothing; linked folders are entered once."""
    entered, found, waiting = set(), [], [str(folder)]  # the linked come last
    for place, folders, files in chained.from_iterable(map(os.walk, waiting)):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
        else:
            entered.add(real)
            linked = (os.path.join(place, name) for name in sorted(folders))
            waiting += filter(os.path.islink, linked)
            found += [Path(place, name) for name in files]
    return sorted((f for f in found if f.is_file() or not f.exists()), key=Path.as_posix)


# --- Structures: PDB and mmCIF files, read into backbone atoms chain by chain.

_FARTHEST = 9999.0  # Å; a coordinate this large is none: 9999 is what files write for that
_BOND, _BREAK = 2.5, 5.0  # Å; no bond is longer, and no C and next N in a chain are farther apart
_CIF_START = re.compile(r"(?:\s|#.*\n)*data_", re.IGNORECASE)
_COORDINATE = re.compile(r" *[-+]?(?:\d+\.?\d*|\.\d+) *")
_USUAL = r"(?:(?:   \d|  [-\d]\d| [-\d]\d\d|[-\d]\d{3})\.\d{3}){3}"
_UNUSUAL_ATOM_LINE = re.compile(rf"^((?:ATOM  |HETATM).{{24}})(?!{_USUAL})(.{{24}})", re.MULTILINE)
# Chain, number and segment of each backbone atom.
_PDB_ROW = re.compile(
    r"^(?:ATOM  |HETATM)(?=.{6} ?(?:N|CA|C|O) ).{14}(..)( *-?\d+)(?<=^.{26})(?:.{46}(.{1,4}))?",
    re.M,
)
# What force fields call the twenty by their protons, and with N or C before it at a chain's ends.
_STATES = """ALA|ARG ARN ARGN|ASN|ASP ASH ASPH ASPP|CYS CYM CYX CYS1 CYS2 CYSH|GLN|GLU GLH GLUH
 GLUP|GLY|HIS HID HIE HIP HSD HSE HSP HIS1 HIS2 HISA HISB HISD HISE HISH|ILE|LEU|LYS LSN LYN LYSH
|MET|PHE|PRO|SER|THR|TRP|TYR TYM|VAL"""
_STANDARD = {name: names.split()[0] for names in _STATES.split("|") for name in names.split()}
_STANDARD |= {end + name: _STANDARD[name] for end in "NC" for name in _STANDARD if len(name) == 3}


@dataclass(frozen=True, eq=False)
class Structure:
    """Residues of one or more protein chains, with their backbone atoms.

    Args:
        id: `file.pdb:A` for a chain, `file.pdb:*` for all.
        sequence: One letter per observed residue; a modified one by its parent, an unknown one X.
        backbone: N, CA, C and O, `(residues, 4 atoms, 3)`, float32, Å; NaN for a missing atom.
        author_numbers: Number and insertion code of each residue as the file has them (`52A`).
        chain_ids: Chain of each residue as its authors call it.

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
        residues = len(self.sequence)
        shape = (residues, len(BACKBONE_ATOMS), 3)
        lengths = len(self.author_numbers), len(self.chain_ids)
        if tuple(self.backbone.shape) != shape or lengths != (residues, residues):
            raise ValueError(
                f"{self.id} has {residues} residues, a backbone of shape "
                f"{tuple(self.backbone.shape)}, {lengths[0]} author_numbers and {lengths[1]} "
                f"chain_ids; give a backbone of shape {shape} and one number and chain per residue."
            )

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def residue_mask(self) -> Tensor:
        """Which residues have all four atoms, `(residues,)`, bool."""
        return self.backbone.isfinite().flatten(1).all(dim=1)


def is_structure(value: Any) -> TypeGuard[Structure]:
    """Tell a `Structure` from anything else, also one of another copy; see `is_protein`."""
    return hasattr(value, "backbone") and hasattr(value, "author_numbers")


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

    Example:
        >>> [chain.id for chain in read_structures("4cha.pdb.gz")]  # doctest: +SKIP
        ['4cha.pdb.gz:A', '4cha.pdb.gz:B', '4cha.pdb.gz:C']
    """
    if isinstance(atoms, str) or not atoms or not set(atoms) <= set(BACKBONE_ATOMS):
        raise ValueError(
            f"atoms is {atoms!r}; give some of {BACKBONE_ATOMS}, for example ('CA',) for a trace."
        )
    file, needed = Path(path), ", ".join(atoms)
    found = _protein_chains(file, model)
    wanted = [chains] if isinstance(chains, str) else list(found if chains is None else chains)
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"{file} has no chain {unknown[0]!r}; it has: {_listed(found)}.")
    every = [_structure(f"{file.name}:{name}", name, found[name]) for name in wanted]
    columns = [BACKBONE_ATOMS.index(atom) for atom in atoms]
    there = [one.backbone[:, columns].isfinite().flatten(1).all(dim=1).any() for one in every]
    if not any(there):
        raise ValueError(
            f"{file} has no residue with the backbone atoms {needed} in chain {', '.join(wanted)}; "
            "give a structure with backbone atoms."
        )
    residues = (one.name for name in wanted for place in found[name] for one in place)
    unknown = dict.fromkeys(name for name in residues if not _letter(name))
    left_out = compress(wanted, map(not_, there))
    for problem, places in (
        (f"chains that are left out, without any residue with {needed}", left_out),
        ("residues with names that are not known, read as X", unknown),
        ("residues with N and CA, or C and the next N, too far apart", chained(*map(_torn, every))),
    ):
        if listed := _listed(places):
            logger.warning("%s has %s: %s", file, problem, listed)
    return list(compress(every, there))


def _torn(one: Structure) -> list[str]:
    """Name residues that cannot be: N far from CA, or from C of the residue numbered before."""
    nitrogen, alpha, carbon = one.backbone[:, :3].unbind(1)
    numbers = [int(m[0]) if (m := re.match(r"-?\d+", n)) else 0 for n in one.author_numbers]
    far = (nitrogen - alpha).norm(dim=1) > _BOND
    between = (carbon[:-1] - nitrogen[1:]).norm(dim=1) > _BREAK
    far[1:] |= between & (torch.tensor(numbers).diff() == 1)
    return [f"{one.chain_ids[i]}{one.author_numbers[i]}" for i in far.nonzero().flatten()]


def read_structure(place: str | Path, atoms: Sequence[str] = BACKBONE_ATOMS) -> Structure:
    """Read the one protein chain of a file, a named one, or all as one.

    Args:
        place: A file with one chain, `file.pdb:A` for one of several chains, or `file.pdb:*` for
            all of them one after another.
        atoms: What a residue must have to count as observed, as for `read_structures`.
    """
    return _only(_read_chains(place, atoms), place).structure  # type: ignore[return-value]


def join_structures(name: str, structures: Sequence[Structure]) -> Structure:
    """Put structures, one at least, one after another, and call the whole `name`."""
    if not structures:
        raise ValueError(f"no structures were given to join as {name}; give one at least.")
    return Structure(
        name,
        "".join(part.sequence for part in structures),
        torch.cat([part.backbone for part in structures]),
        tuple(chained.from_iterable(part.author_numbers for part in structures)),
        tuple(chained.from_iterable(part.chain_ids for part in structures)),
    )


def split_record(place: str | Path) -> tuple[str, str | None]:
    """Split `file:record` into file and record; the record is None where none is named."""
    text = str(place)
    colons = [] if os.path.exists(text) else [i for i, one in enumerate(text) if one == ":" and i]
    for i in ([i for i in colons if os.path.exists(text[:i])] or colons)[-1:]:
        return text[:i], text[i + 1 :]
    return text, None


def suffix_of(path: str | Path) -> str:
    """Return the ending of a name, in lower case; that of `x.PDB.gz` is `.pdb`."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _protein_chains(file: Path, model: int) -> dict[str, list[list[Any]]]:
    """Return the residues of each protein chain of a model, see `_places`, by the chain's name."""
    structure = parse_structure(file)
    if not 1 <= model <= len(structure):
        has = f"has no model {model}; it has {len(structure)}, counted from 1."
        raise ValueError(f"{file} {has if len(structure) else 'holds no atoms.'}")
    chains = _gathered(structure[model - 1])
    if not chains:
        raise ValueError(f"{file} holds no protein chain.")
    if copies := chains.keys() - {part.name for part in structure[model - 1]}:
        message = "%s has several chains of one name; others than the first are called %s"
        logger.warning(message, file, _listed(sorted(copies)))
    return {name: _places(residues) for name, residues in chains.items()}


def parse_structure(file: Path) -> Any:
    """Read all that is in a PDB or mmCIF file, by its content, as `gemmi.Structure`."""
    if gemmi is None:
        raise ImportError(f"reading {file} needs gemmi; install it with: pip install gemmi")
    return _parse(file, re.sub("\r\n?", "\n", _text(file)))


def _parse(file: Path, text: str) -> Any:
    is_cif = "_atom_site." in text or _CIF_START.match(text)
    if not is_cif and not re.search("^(ATOM  |HETATM)", text, re.MULTILINE):
        raise ValueError(
            f"{file} is not a valid structure file: it has neither atoms as a PDB file has them "
            "('ATOM  ') nor those of mmCIF ('_atom_site.'), nor begins with '>' as FASTA does."
        )
    before, last = ["", "", *text.rsplit("\n", 2)][-2:]
    is_atom = last and any(kind.startswith(last[:6]) for kind in ("ATOM  ", "HETATM"))
    if is_atom and not is_cif and len(last) < min(len(before), 66):
        logger.warning("%s is cut off in its last line, behind %s", file, before[12:27].strip())
        text = text[: -len(last)]
    try:
        structure = _parse_cif(text) if is_cif else _parse_pdb(text)
        for one in chained.from_iterable(chained.from_iterable(structure)):
            one.name = _STANDARD.get(one.name, one.name)
        structure.setup_entities()
    except (RuntimeError, ValueError, IndexError) as error:
        cut_off = " (is it cut off?)" if "Wrong number of values" in str(error) else ""
        raise ValueError(f"{file} is not a valid structure file: {error}{cut_off}.") from error
    return structure


def _gathered(parts: Iterable[Any]) -> dict[str, list[Any]]:
    """Gather the amino acids of each chain; another of the same name is `A2`, then `A3`, ..."""
    chains: dict[str, list[Any]] = {}
    last: dict[str, str] = {}
    taken = {part.name for part in parts}
    for part in parts:
        chain, acids = chains.get(last.get(part.name, ""), []), [*filter(_is_amino_acid, part)]
        # Behind a chain are its ligands; of those it has what is bound to it, where that is.
        polymer = not chain or any(one.het_flag != "H" for one in part)
        sure = [polymer and one.entity_type == gemmi.EntityType.Polymer for one in acids]
        residues = list(compress(acids, sure))
        if residues and not (chain and _goes_on(chain, residues)):
            taken.update(chains)
            copies = (f"{part.name}{k}" for k in count(2) if f"{part.name}{k}" not in taken)
            name = next(copies) if chain else part.name
            last[part.name], chain = name, chains.setdefault(name, [])
        chain += residues
        for one in compress(acids, map(not_, sure)):
            bound = (i for i, other in enumerate(chain, 1) if _apart(other, one) < _BOND)
            if at := next(bound, 0):
                chain.insert(at, one)
    return chains


def _goes_on(chain: list[Any], part: list[Any]) -> bool:
    """Tell whether residues go on with a chain of the same name, or are a copy of it."""
    end, start = chain[-1], part[0]
    if _apart(end, start) < _BOND:
        return True
    there = {(_number(one), atom.altloc) for one in chain for atom in one}
    again = any((_number(one), atom.altloc) in there for one in part for atom in one)
    if again or (end.segment, end.subchain) != (start.segment, start.subchain):
        return False
    step = (start.seqid.num or 0) - (end.seqid.num or 0)
    # As far as what is missing between them reaches; where numbers go back, that is unknown.
    return not _apart(end, start) > (10 + 3.8 * step if step > 0 else 25)


def _apart(one: Any, following: Any) -> float:
    """Return the distance from C of a residue to N of another, in Å; NaN without them."""
    return math.dist(_most_occupied([one])[1][2], _most_occupied([following])[1][0])


def _text(file: Path) -> str:
    """Return the text of a file; what is not ASCII becomes a question mark."""
    with open_text(file) as lines:
        text = "".join(iter(lambda: lines.read(2**20), ""))  # no more than is let through
    if "dataBlocks" in text[:10_000]:
        raise ValueError(
            f"{file} is BinaryCIF, which gemmi does not read; give the same entry as mmCIF (.cif), "
            "as the PDB offers it or converted with biotite or Mol*."
        )
    text = text if text.isascii() else text.encode("ascii", "replace").decode()
    return text.replace("\0", "?")


def _parse_pdb(text: str) -> Any:
    """Parse a PDB file; a TER is where a chain's numbers go back or its segment is another.

    gemmi mixes residues of one chain, name and number, stops at END, and takes coordinates that are
    no numbers for zero; those are marked as absent. Of a line it sees what comes before element and
    charge (column 77), where older files have other things; the atom's name tells the element.
    """

    def cleaned(line: re.Match[str]) -> str:
        atom, place = line.groups()
        known = all(_COORDINATE.fullmatch(place, start, start + 8) for start in (0, 8, 16))
        return atom + (place if known else "9999.999" * 3)

    text = re.sub("^END *$", "TER", _UNUSUAL_ATOM_LINE.sub(cleaned, text), flags=re.MULTILINE)
    long_name = r"^((?:ATOM  |HETATM).{11})(\S{4})"
    text = re.sub(long_name, lambda m: f"{m[1]}{_STANDARD.get(m[2], m[2]):4}", text, flags=re.M)
    starts = [0]
    last: dict[str, tuple[str, int]] = {}
    for row in _PDB_ROW.finditer(text):
        chain, number, segment = row[1], int(row[2]), (row[3] or "").strip()
        before = last.get(chain, (segment, number))
        if segment != before[0] or number < before[1]:
            starts.append(row.start())
        last[chain] = segment, number
    text = "TER\n".join(text[start:stop] for start, stop in pairwise([*starts, len(text)]))
    return gemmi.read_pdb_string(text, max_line_length=76, split_chain_on_ter=True)


def _parse_cif(text: str) -> Any:
    """Parse an mmCIF file; a chain ends where its numbers go back or its label is another."""
    document = gemmi.cif.read_string(text)
    blocks = [one for one in document if one.find_mmcif_category("_atom_site.").loop]
    if not blocks:
        return gemmi.Structure()
    if len(blocks) > 1:
        raise ValueError(f"{len(blocks)} of its data blocks have atoms; give a file for each")

    def column(*names: str) -> Any:
        found = (blocks[0].find_values(f"_atom_site.{name}") for name in names)
        return next(filter(len, found), ())

    for name in ("Cartn_x", "Cartn_y", "Cartn_z", "label_seq_id"):
        if not column(name, name.replace("label", "auth")):
            raise ValueError(f"its atoms have no column _atom_site.{name}")
    needed = ("id", "type_symbol", "label_alt_id", "label_asym_id", "occupancy")  # by gemmi
    added = [f"_atom_site.{name}" for name in needed if not column(name)]
    blocks[0].find_mmcif_category("_atom_site.").loop.add_columns(added, ".")
    chains, labels = column("auth_asym_id", "label_asym_id"), column("label_asym_id")
    last: dict[str, tuple[int, int]] = {}
    for i, place in enumerate(column("auth_seq_id", "label_seq_id")):
        number = int(place) if place.removeprefix("-").isdigit() else 0
        name = f"{gemmi.cif.as_string(chains[i])}\x1f{labels[i]}"
        part, before = last.get(name, (0, number))
        last[name] = part + (number < before), number
        chains[i] = f"{name}\x1f{last[name][0]}"
    structure = gemmi.make_structure_from_block(blocks[0])
    for chain in chained.from_iterable(structure):
        chain.name = chain.name.partition("\x1f")[0]
    return structure


def _places(residues: list[Any]) -> list[list[Any]]:
    """Group amino acids by place; those of one number alternate in it where their labels differ."""
    places: dict[tuple[str, int], list[Any]] = {}
    taken: dict[tuple[str, int], set[str]] = {}
    for residue in residues:
        key, labels = (_number(residue), 0), {a.altloc for a in residue if a.altloc != "\0"}
        # Where they do not, the file has numbered two residues alike.
        while key in places and (not labels or labels & taken[key]):
            key = key[0], key[1] + 1
        places.setdefault(key, []).append(residue)
        taken.setdefault(key, set()).update(labels)
    return list(places.values())


def _number(residue: Any) -> str:
    """Return the author's number; an mmCIF file may lack it and have only its own."""
    return str(residue.label_seq if residue.seqid.num is None else residue.seqid)


def _is_amino_acid(residue: Any) -> bool:
    """Tell a residue of a protein from a ligand, and from a cap of the chain."""
    known = gemmi.find_tabulated_residue(residue.name).is_amino_acid()
    return known or all(atom in residue for atom in ("N", "CA", "C"))


def _letter(name: str) -> str:
    """Return the letter of a residue or of its parent, "" for one that no table knows."""
    letter = gemmi.find_tabulated_residue(name).one_letter_code.strip() or PARENTS.get(name, "")
    return letter.upper() if len(letter) == 1 else ""


def _structure(name: str, chain: str, places: list[list[Any]]) -> Structure:
    residues, atoms = zip(*map(_most_occupied, places), strict=True)
    backbone = torch.tensor(atoms, dtype=torch.float32)
    measured = (backbone.abs() < _FARTHEST).all(dim=-1, keepdim=True)
    return Structure(
        name,
        "".join(_letter(one.name) or "X" for one in residues),
        backbone.where(measured, math.nan),
        tuple(map(_number, residues)),
        (chain,) * len(residues),
    )


def _most_occupied(place: list[Any]) -> tuple[Any, list[list[float]]]:
    """Choose among alternates one residue and label, by occupancy, and return its four atoms.

    Of equals it is the first. An atom that lacks the label is the most occupied under another.
    """
    occupancy: dict[tuple[int, str], float] = {}
    for number, residue in enumerate(place):
        for atom in residue:
            # Backbone only, or of two residue types the one with the longer side chain would win.
            if atom.name in BACKBONE_ATOMS and (len(place) > 1 or atom.altloc != "\0"):
                key = number, atom.altloc
                occupancy[key] = occupancy.get(key, 0.0) + (atom.occ if atom.occ > 0 else 0.0)
    number, altloc = max(occupancy, key=occupancy.__getitem__, default=(0, "\0"))
    residue, atoms = place[number], []
    for name in BACKBONE_ATOMS:
        found = list(residue[name]) if name in residue else []
        if len(found) > 1:
            found.sort(key=lambda atom: (atom.altloc != altloc, atom.altloc != "\0", -atom.occ))
        atoms.append(found[0].pos.tolist() if found else [math.nan] * 3)
    return residue, atoms


# --- Proteins, from whatever a user may give.


@dataclass(frozen=True, eq=False)
class Protein:
    """A protein as letters, as a structure, or as residue embeddings.

    Args:
        id: What to call it.
        sequence: One letter per residue; by default those of the structure.
        embeddings: One vector per residue, `(residues, hidden)`, with or without a sequence.
        structure: Backbone atoms of the same residues.
        source: File and record that it was read from, "" if from none.

    Example:
        >>> protein = Protein("P1", "mkvla")
        >>> protein.kind, len(protein), protein.checked, read_protein(protein).sequence
        ('sequence', 5, False, 'MKVLA')
    """

    id: str
    sequence: str | None = None
    embeddings: Tensor | None = field(default=None, repr=False)
    structure: Structure | None = field(default=None, repr=False)
    source: str = ""
    checked: bool = field(default=False, init=False, repr=False)  # by `read_protein`, and clean

    def __post_init__(self) -> None:
        if self.sequence is None and self.structure is not None:
            object.__setattr__(self, "sequence", self.structure.sequence)

    def __len__(self) -> int:
        return len((self.sequence or "") if self.embeddings is None else self.embeddings)

    @property
    def kind(self) -> str:
        """How it is given: "structure", "sequence" or "embeddings"."""
        if self.structure is not None:
            return "structure"
        return "embeddings" if self.sequence is None else "sequence"

    @property
    def backbone_atoms(self) -> Tensor | None:
        """N, CA and C of each residue, `(residues, 3 atoms, 3)`, Å, NaN where one is missing."""
        return None if self.structure is None else self.structure.backbone[:, :3]

    @cached_property
    def sha(self) -> str:
        """SHA-256 of letters and structure, in hexadecimal, whatever the protein is called."""
        digest = hashlib.sha256(f"{self.kind}\0{self.sequence}\0".encode(errors="surrogatepass"))
        if self.structure is not None:
            for names in (self.structure.author_numbers, self.structure.chain_ids):
                digest.update(" ".join(names).encode(errors="surrogatepass") + b"\0")
            places = self.structure.backbone.to(torch.float32).cpu().numpy()
            # NaN is many patterns of bits; here it is one.
            digest.update(np.where(np.isnan(places), np.float32("nan"), places).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class InvalidRecord:
    """A record that is left out: its id, or where it stands if it has none, and why."""

    id: str
    reason: str


def is_protein(value: Any) -> TypeGuard[Protein]:
    """Tell a `Protein`, also of another copy: remote code of a processor brings one of its own."""
    return all(hasattr(value, name) for name in ("id", "sequence", "embeddings"))


def read_protein(
    value: Any, name: str = "protein", atoms: Sequence[str] = BACKBONE_ATOMS[:3]
) -> Protein:
    """Read one protein from whatever a user may give for it; one that was read stays as it is.

    Args:
        value: A sequence; a path to FASTA, PDB or mmCIF (also `.gz`), with `:id` or `:chain`
            behind it where the file holds several, `:*` for all chains one after another; a
            `Structure` or `Protein`; a mapping with `sequence` or `structure`, and `id`; or
            embeddings `(residues, hidden)`.
        name: What to call it in an error message, and where it has no id.
        atoms: What a residue of a structure must have to count as observed.

    Example:
        >>> read_protein({"id": "P1", "sequence": "mkvla"})
        Protein(id='P1', sequence='MKVLA', source='')
    """
    if isinstance(value, str) and not looks_like_path(value):
        return _as_checked(Protein(name, clean_sequence(value, name)))
    if is_protein(value):
        return value if getattr(value, "checked", False) else _check(value, name)
    if isinstance(value, str | Path):
        if os.path.isdir(value):
            raise ValueError(
                f"{name} is the folder {str(value)!r}, not one protein; give a file in it. What to "
                "search can be a folder: candidates=FOLDER, or plasma-hf index build FOLDER."
            )
        return _check(_only(read_records(value, atoms), value), name)
    if isinstance(value, Mapping):
        return _read_mapping(value, name, atoms)
    if is_structure(value):
        return _check(Protein(value.id, structure=value), name)
    if isinstance(value, Tensor | np.ndarray | list):
        return _as_checked(Protein(name, embeddings=_check_embeddings(value, name)))
    raise TypeError(f"{name} is a {type(value).__name__}; give {ACCEPTED}.")


def read_records(place: str | Path, atoms: Sequence[str] = BACKBONE_ATOMS[:3]) -> list[Protein]:
    """Read every protein of a FASTA, PDB or mmCIF file, or the one that is named, unchecked.

    A FASTA record is called by the first word of its header, a chain `file:chain`.
    """
    file, wanted = split_record(place)
    if not is_fasta(file):
        return _read_chains(place, atoms)
    with open_text(file) as lines:
        records = [replace(p, source=f"{file}:{p.id}") for p in parse_fasta(lines)]
    if suffix_of(file) == ".fna" and any(is_nucleotides(p.sequence or "") for p in records):
        raise ValueError(f"{file} holds nucleotides; give proteins, as a .faa file holds.")
    if not wanted:
        return records
    same = {one.sequence: one for one in reversed(records) if one.id == wanted}
    named = list(same.values()) or [one for one in records if one.id.rpartition(":")[2] == wanted]
    if len(named) != 1:
        has = _listed(record.id for record in named or records)
        raise ValueError(f"{file} has {len(named) or 'no'} record {wanted!r}; it has: {has}.")
    return named


def _read_chains(place: str | Path, atoms: Sequence[str]) -> list[Protein]:
    """Read the chains of a structure file, the one named behind a colon, or with `*` all as one."""
    file, wanted = split_record(place)
    chains = read_structures(file, chains=None if wanted == "*" else wanted, atoms=atoms)
    name = f"{Path(file).name}:"
    if wanted == "*":
        chains = [join_structures(f"{name}*", chains)]
    return [Protein(c.id, structure=c, source=f"{file}:{c.id.removeprefix(name)}") for c in chains]


def _only(found: list[Protein], place: str | Path) -> Protein:
    """Return the one protein that a file holds; of several, say how to name one."""
    if len(found) == 1:
        return found[0]
    chains = found[0].kind == "structure"
    names = [one.id.removeprefix(f"{Path(place).name}:") if chains else one.id for one in found]
    # So quoted, it means the same in Python and in a shell.
    one, every = (f"{place}:{name}".replace("'", "'\"'\"'") for name in (names[0], "*"))
    raise ValueError(
        f"{place} holds {len(names)} {'chains' if chains else 'records'}: {_listed(names)}; name "
        f"one, as in '{one}'" + (f", or take all as one protein with '{every}'." if chains else ".")
    )


def parse_fasta(lines: Iterable[str]) -> Iterator[Protein]:
    """Read FASTA records from lines as they come, unchecked; lines with `;` are comments.

    A record is called by the first word of its header, or else by the number of its line.
    """
    name: str | None = None
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip().removeprefix("\ufeff")
        if line.startswith(">"):
            if name is not None:
                yield Protein(name, "".join(parts))
            name, parts = (line[1:].split() or [f"line{number}"])[0], []
        elif name is None and line[:1] not in ("", ";", "#"):
            raise ValueError(f"line {number} comes before any '>' header line")
        elif line[:1] != ";":
            parts.append(line)
    if name is not None:
        yield Protein(name, "".join(parts))


def looks_like_path(text: str) -> bool:
    """Tell a path, which is there or holds a dot or a slash, from a sequence, also with dots."""
    gapped = re.fullmatch(r"[A-Z.*\s-]{12,}|[A-Za-z.*\s-]{50,}|(?s:.*\n.*)", text)
    dotted = not {".", "/", "\\"}.isdisjoint(text)
    return (dotted and not gapped) or os.path.exists(split_record(text)[0])


def usual_beta(nitrogen: Tensor, alpha: Tensor, carbon: Tensor) -> Tensor:
    """Return where CB usually is, by N, CA and C of residues, `(..., 3)` each, Å.

    Source: ProteinMPNN (Dauparas et al. 2022).
    """
    b, c = alpha - nitrogen, carbon - alpha
    a = torch.linalg.cross(b, c)
    return -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + alpha


def with_backbone_atoms(protein: Protein) -> Protein:
    """Keep the residues that have all of N, CA and C; a warning names the others."""
    structure, atoms = protein.structure, protein.backbone_atoms
    if structure is None or atoms is None or not (whole := atoms.isfinite().all(-1).all(-1)).any():
        raise ValueError(
            f"{protein.id} has no residue with N, CA and C, which this backbone reads; give the "
            "path of a PDB or mmCIF file, for example 'file.pdb:A'."
        )
    if whole.all():
        return protein
    lacking = [f"{structure.sequence[i]}{i + 1}" for i in (~whole).nonzero().flatten().tolist()]
    message = "%s: %d of %d residues lack N, CA or C and are left out: %s (place in the sequence)"
    logger.warning(message, protein.id, len(lacking), len(whole), _listed(lacking))
    parts = (structure.sequence, structure.author_numbers, structure.chain_ids)
    letters, *names = (tuple(compress(part, whole)) for part in parts)
    rest = Structure(structure.id, "".join(letters), structure.backbone[whole], *names)
    embeddings = None if protein.embeddings is None else protein.embeddings[whole]
    kept = replace(protein, sequence=rest.sequence, embeddings=embeddings, structure=rest)
    return _as_checked(kept)


def _as_checked(protein: Protein) -> Protein:
    object.__setattr__(protein, "checked", True)
    return protein


def _check(protein: Protein, name: str) -> Protein:
    """Return a protein with clean letters and all its parts checked against each other."""
    name, sequence, embeddings = f"{name} {protein.id!r}", protein.sequence, protein.embeddings
    if embeddings is not None:
        embeddings = _check_embeddings(embeddings, name)
    if embeddings is None or sequence is not None:
        sequence = clean_sequence(sequence or "", name)
    residues = len(sequence or "") if embeddings is None else len(embeddings)
    if sequence is not None and len(sequence) != residues:
        raise ValueError(
            f"{name} has {len(sequence)} residues, but {residues} embeddings; give one per residue."
        )
    structure, atoms = getattr(protein, "structure", None), getattr(protein, "backbone_atoms", None)
    if atoms is not None and tuple(atoms.shape) != (residues, 3, 3):
        raise ValueError(
            f"{name} has {residues} residues and backbone_atoms of shape {tuple(atoms.shape)}; "
            f"give N, CA and C of each residue, ({residues}, 3, 3)."
        )
    if atoms is not None and structure is None:  # of code from before proteins had structures
        numbers = tuple(str(i + 1) for i in range(residues))
        backbone = F.pad(atoms, (0, 0, 0, 1), value=math.nan)
        letters = sequence or "X" * residues
        structure = Structure(protein.id, letters, backbone, numbers, ("A",) * residues)
    source = getattr(protein, "source", "")
    return _as_checked(Protein(protein.id, sequence, embeddings, structure, source))


def _check_embeddings(value: Tensor | np.ndarray | list, name: str) -> Tensor:
    try:
        embeddings = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not a table of numbers (residues, hidden): {error}") from error
    if embeddings.ndim != 2 or 0 in embeddings.shape or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} is {embeddings.dtype} of shape {tuple(embeddings.shape)}; residue embeddings "
            "are floating point numbers of shape (residues, hidden), with at least one residue."
        )
    if not embeddings.isfinite().all():
        raise ValueError(f"{name} has embeddings that are NaN or infinite.")
    return embeddings


def _read_mapping(value: Mapping[str, Any], name: str, atoms: Sequence[str]) -> Protein:
    given = [kind for kind in KINDS if value.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{name} is a mapping with the keys {', '.join(map(repr, value)) or 'none'}; give "
            "either 'sequence' or 'structure', and 'id' if you like."
        )
    content = value[given[0]]
    if given[0] == "sequence" and isinstance(content, str):  # never a path, whatever it looks like
        protein = Protein(name, clean_sequence(content, name))
    else:
        protein = read_protein(content, name, atoms)
    if protein.kind != given[0]:
        raise ValueError(f"{name} has a {protein.kind} under the key {given[0]!r}.")
    return _as_checked(replace(protein, id=str(value.get("id") or protein.id)))


# --- What the pipelines share: answers in order, computed in batches of like size.

_READ_AHEAD = 16  # batches that are looked at together, so that inputs of like size share one


class ProteinPipeline(Pipeline):
    """Answer every input in order; one that cannot be used does not keep others from an answer.

    A derived class reads an input by `read` and sorts what was read by `size_of`; its `_forward`
    takes a list of what was read, and returns as many outputs.
    """

    model: Any
    processor: Any
    read: Callable[..., Any]
    size_of: Callable[..., Any]

    _load_processor = None  # a model may have none
    _load_tokenizer = _load_image_processor = _load_video_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(self, on_error: str | None = None) -> tuple[dict, dict, dict]:
        if on_error not in (None, "raise", "report"):
            raise ValueError(f"on_error={on_error!r}; accepted are 'raise' and 'report'.")
        return ({} if on_error is None else {"on_error": on_error}), {}, {}

    def answer_each(self, inputs: Any, refusal: str, **options: Any) -> Any:
        """Answer several inputs: a list where they can be counted, else an iterator."""
        try:
            several = iter(inputs)
        except TypeError:
            raise TypeError(refusal) from None
        lazily = super().__call__((one for one in several), **options)
        return list(lazily) if hasattr(inputs, "__len__") else lazily

    def preprocess(self, value: Any, on_error: str = "raise", **options: Any) -> Any:
        """Read one input, or say what is wrong with it, as `{"error": str}`."""
        try:
            return self.read(value, **options)
        except (ValueError, TypeError, OSError, ImportError) as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}

    def get_iterator(
        self, inputs: Iterable[Any], num_workers: int, batch_size: int, *params: dict[str, Any]
    ) -> Iterator[Any]:
        """Yield one answer per input; `params` are those to read, to compute and to answer."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; give 1 or more.")
        reading, forward, post = params
        prepared = (self.preprocess(one, **reading) for one in inputs)
        ahead = batch_size * _READ_AHEAD if batch_size > 1 else 1
        while window := list(islice(prepared, ahead)):
            answers = dict(enumerate(window))  # what is wrong with an input is its answer
            good = [i for i, one in answers.items() if not (type(one) is dict and "error" in one)]
            good.sort(key=lambda i: self.size_of(window[i]))
            for start in range(0, len(good), batch_size):
                chosen = good[start : start + batch_size]
                outputs = self.forward([window[i] for i in chosen], **forward)
                for i, output in zip(chosen, outputs, strict=True):
                    answers[i] = self.postprocess(output, **post)
            yield from answers.values()

    def run_single(self, inputs: Any, *params: dict[str, Any]) -> Any:
        """Answer one input."""
        return next(self.get_iterator([inputs], 0, 1, *params))
