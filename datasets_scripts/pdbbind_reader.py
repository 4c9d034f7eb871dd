"""PDBbind from a user's own download: index files, protein chains, and which of them to keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, product
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from dataset_folder import SPLITS, list_invalid

from plasma_hf.data import InvalidRecord, Structure, StructurePair, read_structures
from plasma_hf.io.structures import ChainPolicy, choose_chains

ChainChoice = Literal["first", "longest", "concat", "pocket"]
Deduplication = Literal["global", "split", "none"]
CHAIN_CHOICES: tuple[ChainChoice, ...] = get_args(ChainChoice)
DEDUPLICATIONS: tuple[Deduplication, ...] = get_args(Deduplication)
PAPER_COUNTS = {"train": 10_071, "validation": 3_387, "test": 215}

CODE = re.compile(r"[0-9][a-z0-9]{3}")
# Index files of each set, the fuller ones first; the year comes from the name.
INDEX_FILES = {
    "general": (
        r"INDEX_general_PL_data\.(\d{4})",
        r"INDEX\.(\d{4})\.general\.data",
        r"INDEX_general_PL\.(\d{4})",
    ),
    "refined": (
        r"INDEX_refined_data\.(\d{4})",
        r"INDEX\.(\d{4})\.refined\.data",
        r"INDEX_refined_set\.(\d{4})",
    ),
    "core": (r"INDEX_core_data\.(\d{4})", r"INDEX\.(\d{4})\.core\.data"),
    "names": (r"INDEX_general_PL_name\.(\d{4})",),
}
# Folders that the archives unpack to, for a download without index files.
REFINED_FOLDER, CORE_FOLDER = "refined-set", "coreset"
POLICIES: dict[str, ChainPolicy] = {"first": "first", "longest": "longest", "concat": "joined"}
CA = 1
SAME_PLACE = 0.01  # angstrom
# By products of matrices, as torch does by default, distances are wrong by more than that.
EXACT = "donot_use_mm_for_euclid_dist"


# --- Index files: which complexes there are, in which set, of which target.


@dataclass(frozen=True)
class IndexRecord:
    """Hold one line of an index file.

    Attributes:
        code: PDB code, in lower case.
        year: Year of release.
        resolution: Angstrom; None for NMR, or where the file does not say.
        affinity: -log10 of Kd, Ki or IC50 in mol/l, where the file says.
        binding: Binding datum as written ("Kd=49uM").
        target: Target of the core set, from 1 to 57 in CASF-2016, where the file says.
        uniprot: UniProt accession, where the file says.
        name: Name of the protein, where the file says.
    """

    code: str
    year: int
    resolution: float | None = None
    affinity: float | None = None
    binding: str = ""
    target: str | None = None
    uniprot: str | None = None
    name: str = ""


def find_index_files(root: str | PathLike[str]) -> dict[str, dict[str, Path]]:
    """Find the index files of a download, wherever its archives were unpacked.

    Args:
        root: Folder of the download; searched to a depth of three.

    Returns:
        File by what it lists ("general", "refined", "core", "names"), by year of the release. Of
        copies, which every archive brings along, the first is taken.
    """
    found: dict[str, dict[str, Path]] = {}
    files = _find(Path(root), "INDEX*")
    for kind, names in INDEX_FILES.items():
        for name, file in product(names, files):
            if match := re.fullmatch(name, file.name):
                found.setdefault(match[1], {}).setdefault(kind, file)
    return found


def _find(root: Path, pattern: str) -> list[Path]:
    return [path for depth in ("", "*/", "*/*/") for path in sorted(root.glob(depth + pattern))]


def read_index(file: str | PathLike[str], invalid: list[InvalidRecord]) -> dict[str, IndexRecord]:
    """Read an index of binding data: `INDEX_*_data`, `INDEX_general_PL` or `INDEX_refined_set`.

    A line is `code resolution year [affinity] binding // reference (ligand)`; lines that begin
    with `#` are comments.

    Args:
        file: Index file.
        invalid: List to which malformed lines are added, with their numbers.

    Returns:
        Records by PDB code, in the order of the file.

    Raises:
        OSError: If the file cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "INDEX_refined_data.2020"
        >>> lines = ["# comment", "4yef  1.72  2015   5.35  Kd=4.44uM  // 4yee.pdf (4CQ)", "4yef?"]
        >>> _ = file.write_text(chr(10).join(lines))
        >>> invalid = []
        >>> read_index(file, invalid)["4yef"].affinity
        5.35
        >>> invalid[0].id, invalid[0].reason
        ('INDEX_refined_data.2020 line 3', "'4yef?' is not a PDB code")
    """
    return _read(file, invalid, _parse_binding)


def read_name_index(
    file: str | PathLike[str], invalid: list[InvalidRecord]
) -> dict[str, IndexRecord]:
    """Read `INDEX_general_PL_name`: `code year UniProt name`, the accession `------` if unknown.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, invalid, _parse_name)


def read_core_set(
    file: str | PathLike[str], invalid: list[InvalidRecord]
) -> dict[str, IndexRecord]:
    """Read `CoreSet.dat` of CASF: `code resolution year affinity binding target`.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, invalid, _parse_core)


def _read(
    file: str | PathLike[str],
    invalid: list[InvalidRecord],
    parse: Callable[[list[str]], IndexRecord],
) -> dict[str, IndexRecord]:
    records: dict[str, IndexRecord] = {}
    # Some names of proteins are not UTF-8; none of those letters is needed.
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                record = parse(line.partition("//")[0].split())
                if record.code in records:
                    raise ValueError(f"{record.code} stands in an earlier line too")
                records[record.code] = record
            except (ValueError, IndexError) as error:
                reason = "it has too few fields" if isinstance(error, IndexError) else str(error)
                invalid.append(InvalidRecord(f"{Path(file).name} line {number}", reason))
    return records


def _parse_binding(fields: list[str]) -> IndexRecord:
    code = _code(fields[0])
    resolution, year = _resolution(fields[1]), _year(fields[2])
    affinity = _number(fields[3])
    binding = fields[3:] if affinity is None else fields[4:]
    if not binding:
        raise ValueError("it has no binding datum")
    return IndexRecord(code, year, resolution, affinity, " ".join(binding))


def _parse_name(fields: list[str]) -> IndexRecord:
    code, year, uniprot = _code(fields[0]), _year(fields[1]), fields[2]
    known = uniprot.strip("-") or None
    return IndexRecord(code, year, uniprot=known, name=" ".join(fields[3:]))


def _parse_core(fields: list[str]) -> IndexRecord:
    code, target = _code(fields[0]), fields[5]
    if not target.isdecimal():
        raise ValueError(f"target is {target!r}, not a number")
    affinity = _number(fields[3])
    if affinity is None:
        raise ValueError(f"affinity is {fields[3]!r}, not a number")
    resolution, year = _resolution(fields[1]), _year(fields[2])
    return IndexRecord(code, year, resolution, affinity, fields[4], target=target)


def _code(text: str) -> str:
    if not CODE.fullmatch(text.lower()):
        raise ValueError(f"{text!r} is not a PDB code")
    return text.lower()


def _resolution(text: str) -> float | None:
    value = _number(text)
    if value is None and text.upper() != "NMR":
        raise ValueError(f"resolution is {text!r}, neither a number nor NMR")
    return value


def _year(text: str) -> int:
    if not re.fullmatch(r"(19|20)\d\d", text):
        raise ValueError(f"year is {text!r}")
    return int(text)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d*)?", text) else None


# --- The download: which complexes it has, and their protein chains.


@dataclass
class PdbbindRelease:
    """Say which complexes a download holds and in which split they belong.

    Attributes:
        codes: PDB codes by split, sorted: all that the index files list.
        folders: Folder with the files of a complex, by code; of those that are there.
        records: What the index files say of a complex, by code.
        version: Year of the release, empty without index files.
        invalid: Malformed lines of index files, with their numbers.
    """

    codes: dict[str, list[str]]
    folders: dict[str, Path]
    records: dict[str, IndexRecord] = field(default_factory=dict)
    version: str = ""
    invalid: list[InvalidRecord] = field(default_factory=list)

    def family(self, code: str) -> str | None:
        """Name the target of the core set, or else the UniProt accession."""
        record = self.records.get(code)
        if record is None:
            return None
        return f"target {record.target}" if record.target else record.uniprot


def open_pdbbind(
    root: str | PathLike[str], casf: str | PathLike[str] | None = None, version: str | None = None
) -> PdbbindRelease:
    """Look through a download of PDBbind for its index files and complexes.

    Layouts read: `refined-set/`, `v2020-other-PL/` or `general-set-except-refined/` (2016 and
    2020), all complexes in one folder (older), and `CASF-2016/`, here or beside it. The core set
    is that of `CoreSet.dat`, else of `INDEX_core_data`. A download without index files is split by
    the names of its folders.

    Args:
        root: Folder that the archives were unpacked in.
        casf: Folder of CASF, if not below `root`.
        version: Year of the release, where there are index files of several; by default the newest.

    Returns:
        Codes by split, folders, records and malformed lines.

    Raises:
        FileNotFoundError: If there is no complex.
        ValueError: If there are no index files of that year.
    """
    root = Path(root)
    places = [Path(casf), root] if casf else [root]
    folders = {code: place for where in reversed(places) for code, place in _complexes(where)}
    if not folders:
        raise FileNotFoundError(
            f"there is no complex below {str(root)!r}, such as 10gs/10gs_protein.pdb; unpack the "
            "archives of PDBbind (https://www.pdbbind-plus.org.cn, after registering) there"
        )
    indexes = find_index_files(root)
    if version and version not in indexes:
        raise ValueError(
            f"{str(root)!r} has no index files of {version}, "
            f"only of {', '.join(sorted(indexes)) or 'no year'}"
        )
    version = version or max(indexes, default="")
    release = PdbbindRelease({}, folders, version=version)
    files = indexes.get(version, {})
    sets = {
        kind: read_index(files[kind], release.invalid) if kind in files else {}
        for kind in ("general", "refined", "core")
    }
    names = read_name_index(files["names"], release.invalid) if "names" in files else {}
    core_files = [file for place in places for file in _find(place, "CoreSet.dat")]
    if core_files:
        sets["core"] = read_core_set(core_files[0], release.invalid)
    release.records = _merge([*sets.values(), names])
    release.codes = _split(sets, folders)
    return release


def _complexes(root: Path) -> Iterator[tuple[str, Path]]:
    """Find folders named by a PDB code; of several with one code, a core set comes last."""
    found = [place for place in _find(root, "*") if CODE.fullmatch(place.name) and place.is_dir()]
    ordered = sorted(found, key=lambda place: (place.parent.name == CORE_FOLDER, place))
    return ((place.name, place) for place in ordered)


def _merge(indexes: Iterable[Mapping[str, IndexRecord]]) -> dict[str, IndexRecord]:
    """Put together what several indexes say of a complex; the first that says something counts."""
    merged: dict[str, IndexRecord] = {}
    for index in indexes:
        for code, record in index.items():
            known = merged.setdefault(code, record)
            news = {k: v for k, v in vars(record).items() if getattr(known, k) in (None, "")}
            merged[code] = replace(known, **news)
    return merged


def _split(
    sets: Mapping[str, Mapping[str, IndexRecord]], folders: Mapping[str, Path]
) -> dict[str, list[str]]:
    def below(name: str) -> set[str]:
        return {code for code, place in folders.items() if place.parent.name == name}

    core = set(sets["core"]) or below(CORE_FOLDER)
    refined = set(sets["refined"]) or below(REFINED_FOLDER)
    general = set(sets["general"]) or set(folders)
    return {
        "train": sorted(general - refined - core),
        "validation": sorted(refined - core),
        "test": sorted(core),
    }


def read_complex(
    release: PdbbindRelease, code: str, chains: ChainChoice = "longest", keep_unknown: bool = False
) -> StructurePair:
    """Read the protein of one complex.

    Args:
        release: The download.
        code: PDB code.
        chains: "first", "longest" (of equally long ones the first by its id), "concat" for all
            one after another, or "pocket" for the one with most residues in `CODE_pocket.pdb`.
        keep_unknown: Keep residues that have no letter, as X.

    Returns:
        The observed residues that have a CA atom, and their letters; the id is the code.

    Raises:
        FileNotFoundError: If the complex is not in the download.
        ValueError: If its files cannot be used.
    """
    structure = _choose(release, code, read_chains(release, code, keep_unknown), chains)
    return StructurePair(code, structure.sequence, structure, release.family(code))


def read_chains(release: PdbbindRelease, code: str, keep_unknown: bool = False) -> list[Structure]:
    """Read all protein chains of one complex, as `read_complex` does."""
    if code not in release.folders:
        raise FileNotFoundError("the download has no folder of this complex")
    found = read_structures(_file(release, code, "protein"))
    found = [chain for chain in (_observed(c, keep_unknown) for c in found) if len(chain)]
    if not found:
        raise ValueError("no chain has a residue with a letter and a CA atom")
    return found


def _file(release: PdbbindRelease, code: str, part: str) -> Path:
    files = [release.folders[code] / f"{code}_{part}.pdb{end}" for end in ("", ".gz")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"its folder has no {files[0].name}")
    return file


def _observed(chain: Structure, keep_unknown: bool) -> Structure:
    has_place = chain.backbone[:, CA].isfinite().all(dim=-1).tolist()
    keep = [
        place and (keep_unknown or letter != "X")
        for place, letter in zip(has_place, chain.sequence, strict=True)
    ]
    return replace(
        chain,
        sequence="".join(compress(chain.sequence, keep)),
        backbone=chain.backbone[torch.tensor(keep, dtype=torch.bool)],
        author_numbers=tuple(compress(chain.author_numbers, keep)),
        chain_ids=tuple(compress(chain.chain_ids, keep)),
    )


def _choose(
    release: PdbbindRelease, code: str, chains: Sequence[Structure], choice: ChainChoice
) -> Structure:
    if choice in POLICIES:
        return choose_chains(chains, POLICIES[choice], f"{code}_protein.pdb")[0]
    # By place, not by name: pocket files of some releases leave the chain out.
    parts = read_structures(_file(release, code, choice))
    pocket = torch.cat([part.backbone[:, CA] for part in parts])
    distances = [torch.cdist(c.backbone[:, CA], pocket, compute_mode=EXACT) for c in chains]
    shared = [int((near < SAME_PLACE).any(dim=-1).sum()) for near in distances]
    if not any(shared):
        raise ValueError("no residue of its pocket is one of the protein")
    return chains[int(np.argmax(shared))]


# --- Which complexes to keep, counted beside the ProtAlign paper.


@dataclass
class PdbbindReport:
    """Count the proteins of each split, beside those of the paper.

    Attributes:
        version: Year of the release.
        chains: How the chain was chosen.
        deduplication: How equal sequences were treated.
        listed: Complexes of the index files, by split.
        read: Of those, complexes with a readable protein.
        kept: Of those, proteins left after de-duplication.
        invalid: Lines of the index files and complexes that are left out, with reasons.
        tried: Proteins left by split, for every other choice, if asked for.
    """

    version: str
    chains: ChainChoice
    deduplication: Deduplication
    listed: dict[str, int]
    read: dict[str, int]
    kept: dict[str, int]
    invalid: list[InvalidRecord]
    tried: dict[tuple[ChainChoice, Deduplication], dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        tried = [
            {"chains": chains, "deduplication": how, **counts, "as_paper": counts == PAPER_COUNTS}
            for (chains, how), counts in self.tried.items()
        ]
        invalid = [vars(record) for record in self.invalid]
        return vars(self) | {"paper": PAPER_COUNTS, "invalid": invalid, "tried": tried}

    def to_markdown(self) -> str:
        """Write the counts as tables, and what was left out.

        Example:
            >>> counts = {"train": 3, "validation": 2, "test": 1}
            >>> report = PdbbindReport("2020", "longest", "global", counts, counts, counts, [])
            >>> print(report.to_markdown())
            | PDBbind 2020, longest chain, de-duplication global | train | validation | test |
            |---|---|---|---|
            | listed | 3 | 2 | 1 |
            | read | 3 | 2 | 1 |
            | kept | 3 | 2 | 1 |
            | ProtAlign paper | 10,071 | 3,387 | 215 |
            <BLANKLINE>
            Left out: 0.
        """
        release = f"PDBbind {self.version or 'of unknown year'}"
        rows = {name: getattr(self, name) for name in ("listed", "read", "kept")}
        lines = _table(
            f"{release}, {self.chains} chain, de-duplication {self.deduplication}",
            rows | {"ProtAlign paper": PAPER_COUNTS},
        )
        if self.tried:
            note = " (as in the paper)"
            tried = {
                f"{chains}, {how}{note if counts == PAPER_COUNTS else ''}": counts
                for (chains, how), counts in self.tried.items()
            }
            lines += ["", *_table("chain, de-duplication", tried)]
        return "\n".join([*lines, "", list_invalid(self.invalid)])


def _table(title: str, rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = [f"| {title} | {' | '.join(SPLITS)} |", "|---|---|---|---|"]
    for name, counts in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{counts[split]:,}" for split in SPLITS) + " |")
    return lines


def select(
    release: PdbbindRelease,
    chains: ChainChoice = "longest",
    deduplication: Deduplication = "global",
    keep_unknown: bool = False,
    try_all: bool = False,
) -> tuple[dict[str, list[str]], PdbbindReport]:
    """Decide which complexes to keep: those that can be read, each sequence once.

    Args:
        release: The download.
        chains: As in `read_complex`.
        deduplication: "global" to keep a sequence in one split only, test before validation before
            train; "split" to keep it once in each; "none" to keep all. Of one split the first code
            stays.
        keep_unknown: As in `read_complex`.
        try_all: Count all other choices too.

    Returns:
        Codes by split, and the report.

    Raises:
        ValueError: If there is no such choice.
    """
    for given, accepted in ((chains, CHAIN_CHOICES), (deduplication, DEDUPLICATIONS)):
        if given not in accepted:
            raise ValueError(f"there is no choice {given!r}; give {', '.join(accepted)}")
    choices = CHAIN_CHOICES if try_all else (chains,)
    sequences, invalid = _sequences(release, choices, keep_unknown)

    def keep(choice: ChainChoice, how: Deduplication) -> dict[str, list[str]]:
        return deduplicate(release.codes, sequences[choice], how)

    kept = keep(chains, deduplication)
    report = PdbbindReport(
        release.version,
        chains,
        deduplication,
        listed=_counts(release.codes),
        read=_counts(keep(chains, "none")),
        kept=_counts(kept),
        invalid=[*release.invalid, *invalid[chains]],
    )
    if try_all:
        every = product(CHAIN_CHOICES, DEDUPLICATIONS)
        report.tried = {(choice, how): _counts(keep(choice, how)) for choice, how in every}
    return kept, report


def _sequences(
    release: PdbbindRelease, choices: Sequence[ChainChoice], keep_unknown: bool
) -> tuple[dict[ChainChoice, dict[str, str]], dict[ChainChoice, list[InvalidRecord]]]:
    """Read the sequence of each complex, and what cannot be read, by choice of chain."""
    sequences: dict[ChainChoice, dict[str, str]] = {choice: {} for choice in choices}
    invalid: dict[ChainChoice, list[InvalidRecord]] = {choice: [] for choice in choices}
    for code in (code for split in SPLITS for code in release.codes[split]):
        try:
            protein = read_chains(release, code, keep_unknown)
        except (ValueError, OSError, EOFError) as error:
            for choice in choices:
                invalid[choice].append(InvalidRecord(code, str(error)))
            continue
        for choice in choices:
            try:
                sequences[choice][code] = _choose(release, code, protein, choice).sequence
            except (ValueError, OSError, EOFError) as error:
                invalid[choice].append(InvalidRecord(code, str(error)))
    return sequences, invalid


def deduplicate(
    codes: Mapping[str, Sequence[str]], sequences: Mapping[str, str], how: Deduplication
) -> dict[str, list[str]]:
    """Keep each sequence once, as `select` says.

    Args:
        codes: Codes by split.
        sequences: Sequence by code; codes that have none are left out.
        how: "global", "split" or "none".

    Returns:
        Codes kept, by split.

    Example:
        >>> codes = {"train": ["1aaa", "1aab"], "validation": ["1aac"], "test": ["1aad"]}
        >>> sequences = {"1aaa": "MK", "1aab": "MV", "1aac": "MK", "1aad": "MV"}
        >>> deduplicate(codes, sequences, "global")
        {'train': [], 'validation': ['1aac'], 'test': ['1aad']}
    """
    kept: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for split in reversed(SPLITS):
        if how == "split":
            seen = set()
        for code in codes[split]:
            if code in sequences and (how == "none" or sequences[code] not in seen):
                seen.add(sequences[code])
                kept[split].append(code)
    return kept


def _counts(codes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {split: len(codes[split]) for split in SPLITS}
