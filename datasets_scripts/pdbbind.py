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
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import datasets
import typer

from plasma_hf.data.pdbbind import (
    CHAIN_CHOICES,
    DEDUPLICATIONS,
    PAPER_COUNTS,
    SPLITS,
    PdbbindReport,
    digest_files,
    open_pdbbind,
    push_folder,
    read_complex,
    select,
    write_card,
    write_parquet,
    write_report,
)
from plasma_hf.io.structures import pair_to_row, row_features

TEMPLATE = Path(__file__).parents[1] / "hub_cards" / "dataset_pdbbind.md"


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
        return [
            datasets.SplitGenerator(name, gen_kwargs={"codes": kept[name]})
            for name in SPLITS
            if kept[name]
        ]

    def _generate_examples(self, codes: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for code in codes:
            pair = read_complex(self.release, code, self.config.chains, self.config.keep_unknown)
            record = self.release.records.get(code)
            names = ("resolution", "affinity", "year", "uniprot")
            yield code, pair_to_row(pair) | {name: getattr(record, name, None) for name in names}


def export(builder: Pdbbind, out: str | PathLike[str]) -> Path:
    """Write a data set as a folder of Parquet files with a card and a report, for your own use.

    The folder loads with `datasets.load_dataset(out)`.

    Args:
        builder: The data set.
        out: Folder, made if need be.

    Returns:
        The folder.

    Raises:
        ValueError: If no complex can be used.
    """
    out = write_parquet(builder, out)
    report = builder.report
    if report is None:
        raise ValueError("the data set was not prepared anew, and there is no report")
    write_report(out, report.to_dict(), report.to_markdown())
    data = {
        "license": "other",
        "license_name": "pdbbind",
        "license_link": "https://www.pdbbind-plus.org.cn",
        "tags": ["biology", "protein", "protein structure", "pdbbind"],
        "pretty_name": f"Protein chains of PDBbind {builder.config.name}",
    }
    write_card(
        *(builder, out, TEMPLATE, data),
        listed=report.listed,
        kept=report.kept,
        paper=PAPER_COUNTS,
        chains=report.chains,
        deduplication=report.deduplication,
        n_bad=len(report.bad),
    )
    return out


class Release(StrEnum):
    """Releases, as typer takes a choice."""

    v2016 = "2016"
    v2020 = "2020"
    custom = "custom"


Chains = StrEnum("Chains", [(name, name) for name in CHAIN_CHOICES])
Equal = StrEnum("Equal", [(name, name) for name in DEDUPLICATIONS])


def main(
    release: Annotated[Release, typer.Argument(help="Year of the index files; custom for any.")],
    root: Annotated[Path, typer.Option(help="Folder that the archives were unpacked in.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, made if need be.")],
    casf: Annotated[Path | None, typer.Option(help="Folder of CASF, if not below that.")] = None,
    chains: Annotated[Chains, typer.Option(help="Which chain of a complex.")] = Chains.longest,
    deduplication: Annotated[
        Equal, typer.Option(help="Keep equal sequences once in all, once in each split, or always.")
    ] = Equal["global"],
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
    datasets.disable_progress_bars()
    options = {"chains": chains.value, "deduplication": deduplication.value}
    options |= {"keep_unknown": keep_unknown, "casf": str(casf) if casf else None}
    try:
        builder = Pdbbind(release.value, root, try_all=try_all, **options)
        export(builder, out)
        if push_to:
            push_folder(out, push_to)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"pdbbind: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(builder.report.to_markdown(), err=True)
    if builder.report.bad:
        raise typer.Exit(2)


# Made here, once: a builder changes names of its module, Path among them, for streaming, and typer
# could not read the options after that.
app = typer.Typer(add_completion=False)
app.command()(main)
command = typer.main.get_command(app)

if __name__ == "__main__":
    command()
