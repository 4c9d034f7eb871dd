"""PDBbind from a user's own download: protein chains with their sequences, split by its sets.

PDBbind is licensed to each user and may not be passed on; nothing here fetches or holds any of it.
The splits follow the ProtAlign paper: the general set without the refined one for training, the
refined set without the core set for validation, the core set (CASF-2016) for testing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, product
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from ..models.structure import Structure, read_structures
from .pdbbind_index import (
    CODE,
    IndexRecord,
    find_index_files,
    read_core_set,
    read_index,
    read_name_index,
)
from .pdbbind_report import SPLITS, ChainChoice, Deduplication, PdbbindReport
from .sequences import BadRecord
from .structure_rows import StructurePair, choose_chains

CHAIN_CHOICES: tuple[ChainChoice, ...] = ("first", "longest", "concat", "pocket")
DEDUPLICATIONS: tuple[Deduplication, ...] = ("global", "split", "none")
# Folders that the archives unpack to, for a download without index files.
REFINED_FOLDERS = ("refined-set",)
CORE_FOLDERS = ("coreset",)
CA = 1
SAME_PLACE = 0.01  # angstrom
# By products of matrices, as torch does by default, distances are wrong by more than that.
EXACT = "donot_use_mm_for_euclid_dist"


@dataclass
class PdbbindRelease:
    """Say which complexes a download holds and in which split they belong.

    Attributes:
        codes: PDB codes by split, sorted: all that the index files list.
        folders: Folder with the files of a complex, by code; of those that are there.
        records: What the index files say of a complex, by code.
        version: Year of the release, empty without index files.
        bad: Malformed lines of index files, with their numbers.
    """

    codes: dict[str, list[str]]
    folders: dict[str, Path]
    records: dict[str, IndexRecord] = field(default_factory=dict)
    version: str = ""
    bad: list[BadRecord] = field(default_factory=list)

    def family(self, code: str) -> str | None:
        """Name the target of the core set, or else the UniProt accession."""
        record = self.records.get(code)
        if record is None:
            return None
        return f"target {record.target}" if record.target else record.uniprot


def open_pdbbind(
    root: str | PathLike[str],
    casf: str | PathLike[str] | None = None,
    version: str | None = None,
) -> PdbbindRelease:
    """Look through a download of PDBbind for its index files and complexes.

    Layouts read: `refined-set/`, `v2020-other-PL/` or `general-set-except-refined/` (2016 and
    2020), all complexes in one folder (older), and `CASF-2016/`, here or beside it. The core set
    is that of `CoreSet.dat`, else of `INDEX_core_data`. A download without index files is split by
    the names of its folders.

    Args:
        root: Folder that the archives were unpacked in.
        casf: Folder of CASF, if not below `root`.
        version: Year of the release, where index files of several are there; the newest by
            default.

    Returns:
        Codes by split, folders, records and bad lines.

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
    files: dict[str, Path] = indexes.get(version, {})
    sets = {
        kind: read_index(files[kind], release.bad) if kind in files else {}
        for kind in ("general", "refined", "core")
    }
    names = read_name_index(files["names"], release.bad) if "names" in files else {}
    core_files = [file for place in places for file in _core_sets(place)]
    if core_files:
        sets["core"] = read_core_set(core_files[0], release.bad)
    release.records = _merge([*sets.values(), names])
    release.codes = _split(sets, folders)
    return release


def _complexes(root: Path) -> Iterator[tuple[str, Path]]:
    """Find folders named by a PDB code; of several with one code, a core set comes last."""
    found = []
    for depth in ("*", "*/*", "*/*/*"):
        for place in sorted(root.glob(depth)):
            if CODE.fullmatch(place.name) and place.is_dir():
                found.append((place.parent.name in CORE_FOLDERS, place))
    return ((place.name, place) for _, place in sorted(found))


def _core_sets(root: Path) -> list[Path]:
    return [
        file for depth in ("", "*/", "*/*/") for file in sorted(root.glob(f"{depth}CoreSet.dat"))
    ]


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
    def below(names: Sequence[str]) -> set[str]:
        return {code for code, place in folders.items() if place.parent.name in names}

    core = set(sets["core"]) or below(CORE_FOLDERS)
    refined = set(sets["refined"]) or below(REFINED_FOLDERS)
    general = set(sets["general"]) or set(folders)
    return {
        "train": sorted(general - refined - core),
        "validation": sorted(refined - core),
        "test": sorted(core),
    }


def read_complex(
    release: PdbbindRelease,
    code: str,
    chains: ChainChoice = "longest",
    keep_unknown: bool = False,
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
    protein = read_chains(release, code, keep_unknown)
    structure = CHOOSE[chains](release, code, protein)
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
    if all(keep):
        return chain
    return replace(
        chain,
        sequence="".join(compress(chain.sequence, keep)),
        backbone=chain.backbone[torch.tensor(keep)],
        author_numbers=tuple(compress(chain.author_numbers, keep)),
        chain_ids=tuple(compress(chain.chain_ids, keep)),
    )


def _first(release: PdbbindRelease, code: str, chains: Sequence[Structure]) -> Structure:
    return chains[0]


def _longest(release: PdbbindRelease, code: str, chains: Sequence[Structure]) -> Structure:
    return choose_chains(chains, "longest", code)[0]


def _concat(release: PdbbindRelease, code: str, chains: Sequence[Structure]) -> Structure:
    return choose_chains(chains, "joined", f"{code}_protein.pdb")[0]


def _by_pocket(release: PdbbindRelease, code: str, chains: Sequence[Structure]) -> Structure:
    # By place, not by name: pocket files of some releases leave the chain out.
    pocket = _alpha_carbons(_file(release, code, "pocket"))
    counts = [_shared_places(chain, pocket) for chain in chains]
    if not any(counts):
        raise ValueError("no residue of its pocket is one of the protein")
    return chains[int(np.argmax(counts))]


def _alpha_carbons(file: Path) -> torch.Tensor:
    """Read the places of the CA atoms of a PDB file, `(residues, 3)`."""
    chains = read_structures(file)
    return torch.cat([chain.backbone[:, CA] for chain in chains])


def _shared_places(chain: Structure, places: torch.Tensor) -> int:
    distances = torch.cdist(chain.backbone[:, CA], places, compute_mode=EXACT)
    return int((distances < SAME_PLACE).any(dim=-1).sum())


CHOOSE: dict[str, Callable[[PdbbindRelease, str, Sequence[Structure]], Structure]] = {
    "first": _first,
    "longest": _longest,
    "concat": _concat,
    "pocket": _by_pocket,
}


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
    bad = {choice: list(release.bad) for choice in choices}
    sequences = _sequences(release, choices, keep_unknown, bad)
    kept = deduplicate(release.codes, sequences[chains], deduplication)
    report = PdbbindReport(
        release.version,
        chains,
        deduplication,
        listed=_counts(release.codes),
        read=_counts(deduplicate(release.codes, sequences[chains], "none")),
        kept=_counts(kept),
        bad=bad[chains],
    )
    if try_all:
        report.tried = {
            (choice, how): _counts(deduplicate(release.codes, sequences[choice], how))
            for choice, how in product(CHAIN_CHOICES, DEDUPLICATIONS)
        }
    return kept, report


def _sequences(
    release: PdbbindRelease,
    choices: Sequence[ChainChoice],
    keep_unknown: bool,
    bad: Mapping[ChainChoice, list[BadRecord]],
) -> dict[ChainChoice, dict[str, str]]:
    """Read the sequence of each complex, by choice of chain."""
    sequences: dict[ChainChoice, dict[str, str]] = {choice: {} for choice in choices}
    for code in (code for split in SPLITS for code in release.codes[split]):
        protein: list[Structure] | Exception
        try:
            protein = read_chains(release, code, keep_unknown)
        except (ValueError, OSError, EOFError) as error:
            for choice in choices:
                bad[choice].append(BadRecord(code, str(error)))
            continue
        for choice in choices:
            try:
                sequences[choice][code] = CHOOSE[choice](release, code, protein).sequence
            except (ValueError, OSError, EOFError) as error:
                bad[choice].append(BadRecord(code, str(error)))
    return sequences


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
    kept: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split in reversed(SPLITS):
        if how == "split":
            seen = set()
        kept[split] = []
        for code in codes[split]:
            if code in sequences and (how == "none" or sequences[code] not in seen):
                seen.add(sequences[code])
                kept[split].append(code)
    return {split: kept[split] for split in SPLITS}


def _counts(codes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {split: len(codes[split]) for split in SPLITS}
