"""Any folder of protein structures: PDB and mmCIF files in, sequences with coordinates out.

`load_dataset` runs no scripts any more, so the builder is used as a class:

    StructureFolder("structures/").download_and_prepare()

or from the shell:

    python datasets_scripts/structure_folder.py structures/ --out chains --split-by-cluster
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import datasets
import typer
from dataset_folder import (
    SPLITS,
    count_examples,
    digest_files,
    errors_reported_by,
    list_invalid,
    push_folder,
    report_and_exit,
    shell_command,
    split_generators,
    write_card,
    write_parquet,
    write_report,
)

from plasma_hf.data import InvalidRecord, split_by_cluster
from plasma_hf.io.structures import (
    POLICIES,
    ChainPolicy,
    find_structure_files,
    pair_of,
    pair_to_row,
    read_structure_file,
    row_features,
)


@dataclass
class StructureFolderConfig(datasets.BuilderConfig):
    """Say which structures to take and how to split them.

    Attributes:
        folder: Folder of structure files.
        chains: What to make of the chains of a file, as for `read_structure_folder`.
        min_residues: Structures of fewer residues are left out.
        max_residues: Structures of more residues are left out.
        family_from_folder: Take the folder that a file is in for the family of its structures.
        by_cluster: Split into train, validation and test that share no sequence cluster.
        seed: Seed of that split.
        state: Digest of the files, so that a changed folder is read anew.
    """

    folder: str = ""
    chains: str = "each"
    min_residues: int = 20
    max_residues: int = 100_000
    family_from_folder: bool = False
    by_cluster: bool = False
    seed: int = 0
    state: str = ""


class StructureFolder(datasets.GeneratorBasedBuilder):
    """Build a data set of sequences and backbone coordinates from a folder of structures.

    Files are read one at a time; those that are invalid are left out and named in `invalid`. With
    `by_cluster` each file is read twice, first for its sequences.

    Args:
        folder: Folder of structure files.
        cache_dir: Folder for prepared data sets.
        options: Attributes of `StructureFolderConfig`, and what `datasets.DatasetBuilder` takes.

    Attributes:
        invalid: Files and chains left out; filled while the data set is prepared.
        clustered_by: What split the structures: method and identity; empty if not split.
    """

    BUILDER_CONFIG_CLASS = StructureFolderConfig
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows are large

    def __init__(
        self, folder: str | PathLike[str], cache_dir: str | None = None, **options: Any
    ) -> None:
        """List the files."""
        if options.get("chains", "each") not in POLICIES:
            raise ValueError(
                f"there is no choice of chains {options['chains']!r}; give {', '.join(POLICIES)}"
            )
        self.files = dict((name, file) for file, name in find_structure_files(folder))
        self.invalid: list[InvalidRecord] = []
        self.clustered_by = ""
        options |= {"dataset_name": "structure_folder", "config_name": "default"}
        options |= {"folder": str(folder), "state": digest_files(self.files.values())}
        super().__init__(cache_dir=cache_dir, **options)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=row_features())

    def _split_generators(
        self, dl_manager: datasets.DownloadManager
    ) -> list[datasets.SplitGenerator]:
        self.invalid.clear()
        every = {"train": dict.fromkeys(self.files)}
        return split_generators("wanted", self._by_cluster() if self.config.by_cluster else every)

    def _by_cluster(self) -> dict[str, dict[str, set[int]]]:
        """Return, by split and file, which of the structures of the file are in it."""
        places, sequences = [], []
        for name in self.files:
            for number, row in self._rows(name, self.invalid):
                places.append((name, number))
                sequences.append(row["sequence"])
        split = split_by_cluster(sequences, seed=self.config.seed)
        self.clustered_by = f"{split.method}, {split.identity:.0%} identity"
        found: dict[str, dict[str, set[int]]] = {part: {} for part in SPLITS}
        for part, wanted in found.items():
            for place in getattr(split, part):
                name, number = places[place]
                wanted.setdefault(name, set()).add(number)
        return found

    def _rows(
        self, name: str, invalid: list[InvalidRecord]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the structures of a file that have a fitting size, numbered."""
        shortest, longest = self.config.min_residues, self.config.max_residues
        family = name.rpartition("/")[0] if self.config.family_from_folder else ""
        structures = read_structure_file(self.files[name], name, invalid.append, self.config.chains)
        for number, structure in enumerate(structures):
            if shortest <= len(structure) <= longest:
                yield number, pair_to_row(pair_of(structure, family or None))
            else:
                reason = f"it has {len(structure)} residues, not {shortest} to {longest}"
                invalid.append(InvalidRecord(structure.id, reason))

    def _generate_examples(
        self, wanted: Mapping[str, set[int] | None]
    ) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
        # Invalid records were noted when the splits were made, if they were.
        invalid: list[InvalidRecord] = [] if self.clustered_by else self.invalid
        empty = True
        for name, numbers in wanted.items():
            for number, row in self._rows(name, invalid):
                if numbers is None or number in numbers:
                    empty = False
                    yield (name, number), row
        if empty:
            raise ValueError(f"no structure can be used. {list_invalid(invalid)}")


def export(builder: StructureFolder, out: str | PathLike[str]) -> Path:
    """Write a data set as a folder of Parquet files with a card and a report of what was left out.

    The folder loads with `datasets.load_dataset(out)`.

    Raises:
        ValueError: If no structure can be used.
    """
    out = write_parquet(builder, out)
    values = {"splits": count_examples(builder), "clustered_by": builder.clustered_by}
    values |= {"invalid": [vars(record) for record in builder.invalid]}
    write_report(out, values, list_invalid(builder.invalid))
    tags = ["biology", "protein", "protein structure"]
    data = {"license": "unknown", "tags": tags, "pretty_name": "Protein structures"}
    write_card(
        *(builder, out, "dataset_structure_folder.md", data),
        source=Path(builder.config.folder).resolve().name,
        n_files=len(builder.files),
        n_invalid=len(builder.invalid),
        clustered_by=builder.clustered_by,
    )
    return out


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of PDB and mmCIF files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    chains: Annotated[
        ChainPolicy, typer.Option(help="What to make of the chains of a file.")
    ] = "each",
    min_residues: Annotated[int, typer.Option(help="Leave out shorter structures.")] = 20,
    max_residues: Annotated[int, typer.Option(help="Leave out longer structures.")] = 100_000,
    family_from_folder: Annotated[
        bool, typer.Option("--family-from-folder", help="A file's folder names its family.")
    ] = False,
    by_cluster: Annotated[
        bool,
        typer.Option("--split-by-cluster", help="Train, validation, test by sequence cluster."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of that split.")] = 0,
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see there.")] = False,
) -> None:
    """Read a folder of protein structures and write them as Parquet with a card.

    Files that cannot be read are named on standard error and in report.md, the others are used,
    and the exit code is 2.

    Example: python datasets_scripts/structure_folder.py structures/ --out chains
    """
    options = {"min_residues": min_residues, "max_residues": max_residues, "seed": seed}
    options |= {"family_from_folder": family_from_folder, "by_cluster": by_cluster}
    with errors_reported_by("structure_folder"):
        builder = StructureFolder(folder, chains=chains, **options)
        export(builder, out)
        if push_to:
            push_folder(out, push_to, private=not public)
    lines = [f"{record.id}: {record.reason}" for record in builder.invalid]
    splits = ", ".join(f"{name} {count}" for name, count in count_examples(builder).items())
    lines.append(f"{out}: {splits}; {len(builder.invalid)} left out")
    report_and_exit(lines, bool(builder.invalid))


command = shell_command(main)

if __name__ == "__main__":
    command()
