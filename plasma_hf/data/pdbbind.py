"""A prepared data set as a folder of Parquet files with a card and reports; and on to the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, product
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..io.sequences import BadRecord
from ..io.structures import StructurePair, choose_chains
from ..models.protein import Structure, read_structures

if TYPE_CHECKING:
    from datasets import DatasetBuilder
    from huggingface_hub import CommitInfo


SPLITS = ("train", "validation", "test")
UPLOADED = ("*.parquet", "report.*")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def digest_files(files: Iterable[Path]) -> str:
    """Give a value that changes when a file or folder is added, removed or written.

    A builder keeps it in its config, so that a prepared data set is not taken for one of files
    that have changed since.
    """
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def write_parquet(builder: DatasetBuilder, out: str | PathLike[str]) -> Path:
    """Prepare a data set as Parquet files in a folder, made if need be.

    Args:
        builder: The data set.
        out: Folder.

    Returns:
        The folder.

    Raises:
        ValueError: If there is nothing to write; likewise any other error of the builder, as it
            was raised there.
    """
    from datasets.exceptions import DatasetGenerationError

    try:
        builder.download_and_prepare(
            str(out), file_format="parquet", download_mode="force_redownload"
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    return Path(out)


def write_report(out: Path, values: Mapping[str, Any], markdown: str) -> None:
    """Write a report as `report.json` and `report.md`."""
    (out / "report.json").write_text(json.dumps(values, indent=1))
    (out / "report.md").write_text(markdown + "\n")


def list_bad(bad: Sequence[BadRecord]) -> str:
    """Name records that were left out, as a list in Markdown.

    Example:
        >>> print(list_bad([BadRecord("1abc.pdb", "it holds no protein chain")]))
        Left out: 1.
        - 1abc.pdb: it holds no protein chain
    """
    return "\n".join([f"Left out: {len(bad)}.", *(f"- {one.id}: {one.reason}" for one in bad)])


def write_card(
    builder: DatasetBuilder, out: Path, template: Path, card_data: dict[str, Any], **values: Any
) -> None:
    """Write the card of a prepared data set as `README.md`.

    Args:
        builder: The data set, prepared.
        out: Folder of its Parquet files.
        template: Card in Jinja.
        card_data: Fields of the card's header, besides its files and size.
        values: What the template names, besides `title`, `config` and `splits`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    found = builder.info.splits or {}
    splits = [(name, found[name].num_examples) for name in SPLITS if name in found]
    name = builder.config.name
    files = [{"split": s, "path": f"{builder.dataset_name}-{s}*.parquet"} for s, _ in splits]
    data = DatasetCardData(
        size_categories=[_size_category(sum(count for _, count in splits))],
        configs=[{"config_name": name, "default": True, "data_files": files}],
        **card_data,
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(template),
        title=data.pretty_name,
        config=name,
        splits=splits,
        **values,
    )
    card.save(out / "README.md")


def _size_category(count: int) -> str:
    return next((name for limit, name in SIZES if count < limit), "100K<n<1M")


def push_folder(folder: str | PathLike[str], repository: str, private: bool = True) -> CommitInfo:
    """Upload a folder written by a builder to the Hub, to a data set made there if need be.

    It goes to a folder of its configuration's name; other configurations that the data set has
    stay, and the card names them all: `load_dataset(repository, configuration)`.

    Args:
        folder: Folder with Parquet files, card and report.
        repository: Data set on the Hub, as `org/name`.
        private: Make a new one private, and refuse one that is public.

    Returns:
        The commit; `load_dataset(..., revision=commit.oid)` loads exactly this one.

    Raises:
        ValueError: If the data set is to be private and is there already, for all to see.
    """
    from huggingface_hub import DatasetCard, HfApi

    folder, api = Path(folder), HfApi()
    api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
    if private and not api.dataset_info(repository).private:
        raise ValueError(
            f"{repository} is public, and this data set is not to be; make it private in its "
            "settings on the Hub, or give another name"
        )
    card: Any = DatasetCard.load(folder / "README.md")
    for config in card.data.configs:
        for files in config["data_files"]:
            files["path"] = f"{config['config_name']}/{files['path']}"
    card.text = re.sub(r'(load_dataset\(")FOLDER(_OR_ORG/NAME)?"', rf'\1{repository}"', card.text)
    names = [config["config_name"] for config in card.data.configs]
    with TemporaryDirectory() as scratch:
        for name in names:
            for pattern in UPLOADED:
                for file in folder.glob(pattern):
                    Path(scratch, name).mkdir(exist_ok=True)
                    shutil.copy(file, Path(scratch, name))
            card.save(Path(scratch, name, "README.md"))
        _join_card(card, repository).save(Path(scratch, "README.md"))
        return api.upload_folder(
            repo_id=repository,
            folder_path=scratch,
            repo_type="dataset",
            delete_patterns=[f"{name}/*" for name in names],
        )


def _join_card(card: Any, repository: str) -> Any:
    """Return a card of all configurations of a data set on the Hub, with that of one anew."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def load(path: str) -> Any:
        return DatasetCard.load(hf_hub_download(repository, path, repo_type="dataset"))

    try:
        before = load("README.md").data.configs or []
    except RemoteEntryNotFoundError:
        before = []
    mine = [config["config_name"] for config in card.data.configs]
    others = [config for config in before if config["config_name"] not in mine]
    joined: Any = DatasetCard(str(card))
    joined.data.configs = [
        {"config_name": config["config_name"], "data_files": config["data_files"]}
        for config in [*others, *card.data.configs]
    ]
    joined.data.configs[0]["default"] = True  # a data set has one
    if others:
        cards = [load(f"{config['config_name']}/README.md") for config in others] + [card]
        joined.text = "\n\n".join(one.text.strip() for one in cards)
        joined.data.pretty_name = repository.rpartition("/")[2]
        sizes = {size: None for one in cards for size in one.data.size_categories}
        joined.data.size_categories = list(sizes)
    return joined


# --- How many proteins of PDBbind each split keeps, beside the counts of the ProtAlign paper.


ChainChoice = Literal["first", "longest", "concat", "pocket"]
Deduplication = Literal["global", "split", "none"]
PAPER_COUNTS = {"train": 10_071, "validation": 3_387, "test": 215}


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
        bad: Lines of the index files and complexes that are left out, with reasons.
        tried: Proteins left by split, for every other choice, if asked for.
    """

    version: str
    chains: ChainChoice
    deduplication: Deduplication
    listed: dict[str, int]
    read: dict[str, int]
    kept: dict[str, int]
    bad: list[BadRecord]
    tried: dict[tuple[ChainChoice, Deduplication], dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values, for JSON."""
        tried = [
            {"chains": chains, "deduplication": how, **counts, "as_paper": counts == PAPER_COUNTS}
            for (chains, how), counts in self.tried.items()
        ]
        return vars(self) | {
            "paper": PAPER_COUNTS,
            "bad": [vars(record) for record in self.bad],
            "tried": tried,
        }

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
        title = f"PDBbind {self.version or 'of unknown year'}, {self.chains} chain, "
        lines = [
            f"| {title}de-duplication {self.deduplication} | {' | '.join(SPLITS)} |",
            "|---|---|---|---|",
        ]
        for name in ("listed", "read", "kept"):
            lines.append(_row(name, getattr(self, name)))
        lines.append(_row("ProtAlign paper", PAPER_COUNTS))
        if self.tried:
            lines += [
                "",
                "| chain, de-duplication | train | validation | test |",
                "|---|---|---|---|",
            ]
            for (chains, how), counts in self.tried.items():
                note = " (as in the paper)" if counts == PAPER_COUNTS else ""
                lines.append(_row(f"{chains}, {how}{note}", counts))
        return "\n".join([*lines, "", list_bad(self.bad)])


def _row(name: str, counts: Mapping[str, int]) -> str:
    return f"| {name} | " + " | ".join(f"{counts[split]:,}" for split in SPLITS) + " |"


# --- Index files of PDBbind and CASF: which complexes there are, in which set, of which target.


CODE = re.compile(r"[0-9][a-z0-9]{3}")
# Sets and the index files that list them, the fuller one first; the year comes from the name.
INDEX_FILES = {
    "general": (r"INDEX_general_PL_data\.(\d{4})", r"INDEX\.(\d{4})\.general\.data"),
    "general (short)": (r"INDEX_general_PL\.(\d{4})",),
    "refined": (r"INDEX_refined_data\.(\d{4})", r"INDEX\.(\d{4})\.refined\.data"),
    "refined (short)": (r"INDEX_refined_set\.(\d{4})",),
    "core": (r"INDEX_core_data\.(\d{4})", r"INDEX\.(\d{4})\.core\.data"),
    "names": (r"INDEX_general_PL_name\.(\d{4})",),
}


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
        root: Folder of the download; looked at to a depth of three.

    Returns:
        File by what it lists ("general", "refined", "core", "names"), by year of the release. Of
        copies, which every archive brings along, the first is taken.
    """
    found: dict[str, dict[str, Path]] = {}
    for pattern in ("INDEX*", "*/INDEX*", "*/*/INDEX*"):
        for file in sorted(Path(root).glob(pattern)):
            for kind, names in INDEX_FILES.items():
                match = next((m for name in names if (m := re.fullmatch(name, file.name))), None)
                if match:
                    found.setdefault(match[1], {}).setdefault(kind, file)
    for files in found.values():
        for kind in ("general", "refined"):
            short = files.pop(f"{kind} (short)", None)
            if short:
                files.setdefault(kind, short)
    return found


def read_index(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read an index of binding data: `INDEX_*_data`, `INDEX_general_PL` or `INDEX_refined_set`.

    A line is `code resolution year [affinity] binding // reference (ligand)`; lines that begin
    with `#` are comments.

    Args:
        file: Index file.
        bad: List to which malformed lines are added, with their numbers.

    Returns:
        Records by PDB code, in the order of the file.

    Raises:
        OSError: If the file cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "INDEX_refined_data.2020"
        >>> lines = ["# comment", "4yef  1.72  2015   5.35  Kd=4.44uM  // 4yee.pdf (4CQ)", "4yef?"]
        >>> _ = file.write_text(chr(10).join(lines))
        >>> bad = []
        >>> read_index(file, bad)["4yef"].affinity
        5.35
        >>> bad[0].id, bad[0].reason
        ('INDEX_refined_data.2020 line 3', "'4yef?' is no PDB code")
    """
    return _read(file, bad, _parse_binding)


def read_name_index(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read `INDEX_general_PL_name`: `code year UniProt name`, the accession `------` if unknown.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, bad, _parse_name)


def read_core_set(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read `CoreSet.dat` of CASF: `code resolution year affinity binding target`.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, bad, _parse_core)


def _read(
    file: str | PathLike[str], bad: list[BadRecord], parse: Callable[[list[str]], IndexRecord]
) -> dict[str, IndexRecord]:
    file = Path(file)
    records: dict[str, IndexRecord] = {}
    for number, line in _lines(file):
        where = f"{file.name} line {number}"
        try:
            record = parse(line.partition("//")[0].split())
        except (ValueError, IndexError) as error:
            reason = "it has too few fields" if isinstance(error, IndexError) else str(error)
            bad.append(BadRecord(where, reason))
            continue
        if record.code in records:
            bad.append(BadRecord(where, f"{record.code} stands in an earlier line too"))
        records.setdefault(record.code, record)
    return records


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # Some names of proteins are not UTF-8; none of those letters is needed.
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, line


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
        raise ValueError(f"{text!r} is no PDB code")
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


# --- PDBbind from a user's own download: protein chains with their sequences, split by its sets.


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
