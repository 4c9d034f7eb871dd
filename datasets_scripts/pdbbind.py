"""PDBbind from your own download: index files and structures in, sequences with coordinates out.

PDBbind may not be passed on: register at https://www.pdbbind-plus.org.cn, unpack the archives, and
keep what this writes to yourself. The builder is used as a class:

    Pdbbind("2020", root="pdbbind/", casf="CASF-2016/").download_and_prepare()

or from the shell:

    python datasets_scripts/pdbbind.py 2020 --root pdbbind/ --casf CASF-2016/ --out chains
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import typer
from dataset_folder import (
    digest_files,
    errors_reported_by,
    push_folder,
    report_and_exit,
    shell_command,
    split_generators,
    write_card,
    write_parquet,
    write_report,
)
from pdbbind_reader import (
    PAPER_COUNTS,
    ChainChoice,
    Deduplication,
    PdbbindReport,
    open_pdbbind,
    read_complex,
    select,
)

from plasma_hf.io.structures import pair_to_row, row_features


@dataclass
class PdbbindConfig(datasets.BuilderConfig):
    """Say which proteins of a download to take.

    Attributes:
        root: Folder that the archives were unpacked in.
        casf: Folder of CASF, if not below that.
        chains: Which chain of a complex, as for `read_complex`.
        deduplication: How to treat equal sequences, as for `select`.
        keep_unknown: Keep residues that have no letter, as X.
        state: Digest of the folders, so that a changed download is read anew.
    """

    root: str = ""
    casf: str | None = None
    chains: str = "longest"
    deduplication: str = "global"
    keep_unknown: bool = False
    state: str = ""


class Pdbbind(datasets.GeneratorBasedBuilder):
    """Build a data set of protein chains of PDBbind: sequences and backbone coordinates.

    Each structure is read twice, first to compare the sequences of all splits.

    Args:
        config_name: "2016", "2020", or "custom" for the newest index files there, or none.
        root: Folder that the archives were unpacked in.
        cache_dir: Folder for prepared data sets.
        try_all: Count the proteins for every choice of chain and de-duplication.
        options: Attributes of `PdbbindConfig`, and what `datasets.DatasetBuilder` takes.

    Attributes:
        release: What the download holds.
        report: Counts beside those of the paper; made while the data set is prepared.
    """

    BUILDER_CONFIG_CLASS = PdbbindConfig
    BUILDER_CONFIGS = [PdbbindConfig(name, version="1.0.0") for name in ("2016", "2020", "custom")]
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows are large

    def __init__(
        self,
        config_name: str = "custom",
        root: str | PathLike[str] = ".",
        cache_dir: str | None = None,
        try_all: bool = False,
        **options: Any,
    ) -> None:
        """Look through the download."""
        version = None if config_name == "custom" else config_name
        self.release = open_pdbbind(root, options.get("casf"), version)
        self.report: PdbbindReport | None = None
        self.try_all = try_all
        state = digest_files(self.release.folders.values())
        options |= {"dataset_name": "pdbbind", "config_name": config_name}
        options |= {"root": str(root), "state": state}
        super().__init__(cache_dir=cache_dir, **options)

    def _info(self) -> datasets.DatasetInfo:
        more = {name: datasets.Value("float32") for name in ("resolution", "affinity")}
        more |= {"year": datasets.Value("int32"), "uniprot": datasets.Value("string")}
        return datasets.DatasetInfo(features=datasets.Features(row_features() | more))

    def _split_generators(
        self, dl_manager: datasets.DownloadManager
    ) -> list[datasets.SplitGenerator]:
        config = self.config
        kept, self.report = select(
            *(self.release, config.chains, config.deduplication, config.keep_unknown),
            try_all=self.try_all,
        )
        if not any(kept.values()):
            raise ValueError(f"no complex can be used. {self.report.to_markdown()}")
        return split_generators("codes", kept)

    def _generate_examples(self, codes: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for code in codes:
            pair = read_complex(self.release, code, self.config.chains, self.config.keep_unknown)
            record = self.release.records.get(code)
            names = ("resolution", "affinity", "year", "uniprot")
            yield code, pair_to_row(pair) | {name: getattr(record, name, None) for name in names}


def export(builder: Pdbbind, out: str | PathLike[str]) -> Path:
    """Write a data set as a folder of Parquet files with a card and a report, for your own use.

    The folder loads with `datasets.load_dataset(out)`.

    Raises:
        ValueError: If no complex can be used.
    """
    out = write_parquet(builder, out)
    report = builder.report
    write_report(out, report.to_dict(), report.to_markdown())
    data = {
        "license": "other",
        "license_name": "pdbbind",
        "license_link": "https://www.pdbbind-plus.org.cn",
        "tags": ["biology", "protein", "protein structure", "pdbbind"],
        "pretty_name": f"Protein chains of PDBbind {builder.config.name}",
    }
    write_card(
        *(builder, out, "dataset_pdbbind.md", data),
        listed=report.listed,
        kept=report.kept,
        paper=PAPER_COUNTS,
        chains=report.chains,
        deduplication=report.deduplication,
        n_invalid=len(report.invalid),
    )
    return out


def main(
    release: Annotated[
        Literal["2016", "2020", "custom"],
        typer.Argument(help="Year of the index files; custom for any."),
    ],
    root: Annotated[Path, typer.Option(help="Folder that the archives were unpacked in.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    casf: Annotated[Path | None, typer.Option(help="Folder of CASF, if not below that.")] = None,
    chains: Annotated[ChainChoice, typer.Option(help="Which chain of a complex.")] = "longest",
    deduplication: Annotated[
        Deduplication,
        typer.Option(help="Keep equal sequences once in all, once in each split, or always."),
    ] = "global",
    keep_unknown: Annotated[
        bool, typer.Option("--keep-unknown", help="Keep residues that have no letter, as X.")
    ] = False,
    try_all: Annotated[
        bool, typer.Option("--try-all", help="Report the counts of every choice.")
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Upload it to a private data set."),
    ] = None,
) -> None:
    """Read PDBbind from your own download and write its protein chains as Parquet with a card.

    The report stands beside the counts of the ProtAlign paper. Complexes that cannot be read are
    named there, the others are used, and the exit code is 2.

    Example: python datasets_scripts/pdbbind.py 2020 --root pdbbind/ --out chains --try-all
    """
    options = {"chains": chains, "deduplication": deduplication, "keep_unknown": keep_unknown}
    options["casf"] = str(casf) if casf else None
    with errors_reported_by("pdbbind"):
        builder = Pdbbind(release, root, try_all=try_all, **options)
        export(builder, out)
        if push_to:
            push_folder(out, push_to)
    report_and_exit([builder.report.to_markdown()], bool(builder.report.invalid))


command = shell_command(main)

if __name__ == "__main__":
    command()
