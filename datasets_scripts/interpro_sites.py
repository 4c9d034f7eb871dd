"""InterPro sites by residue (VenusX): tables in, checked rows and Parquet with a card out.

`load_dataset` runs no scripts any more, so the builder is used as a class:

    InterProSites("active_site", data_files={"train": "train.csv"}).download_and_prepare()

or from the shell:

    python datasets_scripts/interpro_sites.py active_site --csv VenusX/ --out active_site

Splits come in the order train, validation, test, whatever the order of the files: pairs of the
upstream protocol depend on it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import datasets
import typer

from plasma_hf.data.pdbbind import push_folder
from plasma_hf.data.sites import SiteTableReport, iter_site_rows

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).parents[1] / "hub_cards" / "dataset_interpro_sites.md"
SPLITS = {"train": "train", "validation": "valid|dev", "test": "test"}
FEATURES = datasets.Features(
    {
        "uid": datasets.Value("string"),
        "interpro_id": datasets.Value("string"),
        "seq_full": datasets.Value("string"),
        "seq_fragment": datasets.Value("string"),
        "start": datasets.Value("string"),
        "end": datasets.Value("string"),
        "label": datasets.List(datasets.Value("int8")),
        "interpro_label": datasets.Value("string"),
    }
)


@dataclass
class InterProSitesConfig(datasets.BuilderConfig):
    """Name a task and where its tables are on the Hub.

    Attributes:
        hub_id: Data set with the CSV tables; none for tables of one's own.
        hub_revision: Commit, branch or tag there.
    """

    hub_id: str | None = None
    hub_revision: str | None = None


class InterProSites(datasets.GeneratorBasedBuilder):
    """Build a data set of proteins with labelled sites from tables in the VenusX schema.

    Rows are read one at a time; rows that are wrong are left out and named in `reports`.

    Args:
        config_name: "motif", "binding_site", "active_site", or "custom" for other tables.
        data_files: CSV files by split, or a single one; from the Hub by default.
        cache_dir: Folder for prepared data sets.
        options: What `datasets.DatasetBuilder` takes.

    Attributes:
        reports: What was wrong with the rows, by split; filled while the data set is prepared.
    """

    BUILDER_CONFIG_CLASS = InterProSitesConfig
    BUILDER_CONFIGS = [
        InterProSitesConfig(name, hub_id=f"AI4Protein/VenusX_Res_{short}_MP50", version="1.0.0")
        for name, short in (("motif", "Motif"), ("binding_site", "BindI"), ("active_site", "Act"))
    ] + [InterProSitesConfig("custom", version="1.0.0")]

    def __init__(
        self,
        config_name: str = "custom",
        data_files: Any = None,
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        """Choose the task; without files, "custom" has nothing to read."""
        self.reports: dict[str, SiteTableReport] = {}
        if config_name == "custom" and not data_files:
            raise ValueError(
                "the task 'custom' has no tables of its own; give data_files={'train': 'my.csv'} "
                "(on the command line: --csv my.csv)"
            )
        # Named here: run as a script, the module is called __main__.
        options |= {"dataset_name": "interpro_sites", "config_name": config_name}
        super().__init__(cache_dir=cache_dir, data_files=data_files, **options)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(
        self, dl_manager: datasets.DownloadManager
    ) -> list[datasets.SplitGenerator]:
        files: Mapping[str, Sequence[Any]] = self.config.data_files or {}
        if not files:
            folder = download(self.config.hub_id, self.config.hub_revision)
            files = {name: [path] for name, path in find_tables([folder]).items()}
        return [
            datasets.SplitGenerator(name, gen_kwargs={"files": [str(file) for file in files[name]]})
            for name in sorted(files, key=_place)
        ]

    def _generate_examples(
        self, files: Sequence[str]
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        for number, file in enumerate(files):
            report = SiteTableReport()
            # Kept by file: a split may be of several.
            self.reports[file] = report
            for protein, row in iter_site_rows(file, report):
                given = {name: str(row.get(name) or "") for name in FEATURES if name != "label"}
                yield (number, report.n_rows), given | {"label": list(protein.site_labels)}
            if not report.n_good:
                raise ValueError(f"no row can be used. {report.to_markdown()}")


def _place(split: str) -> int:
    return list(SPLITS).index(split) if split in SPLITS else len(SPLITS)


def download(hub_id: str, revision: str | None = None) -> Path:
    """Fetch the CSV tables of a data set from the Hub.

    Args:
        hub_id: Data set, as `org/name`.
        revision: Commit, branch or tag.

    Returns:
        Folder with the tables.

    Raises:
        ConnectionError: If they cannot be fetched and were not fetched before.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            hub_id, repo_type="dataset", revision=revision, allow_patterns="*.csv"
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConnectionError(
            f"{hub_id} cannot be fetched from the Hub ({type(error).__name__}); go online, or give "
            "tables you have: data_files={'train': ..., 'validation': ..., 'test': ...} "
            "(on the command line: --csv FOLDER)"
        ) from error
    return Path(folder)


def find_tables(paths: Sequence[str | PathLike[str]]) -> dict[str, str]:
    """Find the CSV tables of each split by their names.

    Args:
        paths: CSV files, or folders with CSV files.

    Returns:
        File by split, in the order train, validation, test; a single file of another name is
        "train".

    Raises:
        FileNotFoundError: If there is no CSV file.
        ValueError: If a file name says no split, or two say the same.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"no CSV file at {', '.join(missing or map(str, paths))}")
    if len(files) == 1 and _split_of(files[0]) is None:
        return {"train": str(files[0])}
    found: dict[str, str] = {}
    for file in files:
        split = _split_of(file)
        if split is None or split in found:
            raise ValueError(
                f"{file} is {'of no split' if split is None else f'a second table of {split}'}; "
                "name one table train, one valid and one test, or give a single one"
            )
        found[split] = str(file)
    return {split: found[split] for split in SPLITS if split in found}


def _split_of(file: Path) -> str | None:
    names = [name for name, pattern in SPLITS.items() if re.search(pattern, file.stem.lower())]
    return names[0] if len(names) == 1 else None


def export(builder: InterProSites, out: str | PathLike[str]) -> Path:
    """Write a data set as a folder of Parquet files with a card and a report of bad rows.

    The folder loads with `datasets.load_dataset(out)`.

    Args:
        builder: The data set.
        out: Folder, made if need be.

    Returns:
        The folder.

    Raises:
        ValueError: If a table has no row that can be used, or cannot be read.
        ConnectionError: If the tables are neither given nor to be had from the Hub.
    """
    out = Path(out)
    try:
        builder.download_and_prepare(
            str(out), file_format="parquet", download_mode="force_redownload"
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    reports = {name: report.to_dict() for name, report in builder.reports.items()}
    (out / "report.json").write_text(json.dumps(reports, indent=1))
    report = "\n\n".join(report.to_markdown() for report in builder.reports.values())
    (out / "report.md").write_text(report + "\n")
    _write_card(builder, out)
    return out


def _write_card(builder: InterProSites, out: Path) -> None:
    from huggingface_hub import DatasetCard, DatasetCardData

    splits = builder.info.splits or {}
    files = [{"split": name, "path": f"{builder.dataset_name}-{name}*.parquet"} for name in splits]
    n_rows = sum(split.num_examples for split in splits.values())
    source = builder.config.hub_id
    if builder.config.data_files:
        source = ", ".join(Path(file).name for file in builder.reports)
    data = DatasetCardData(
        license="other" if builder.config.data_files else "apache-2.0",
        tags=["biology", "protein", "interpro", "active site", "binding site"],
        task_categories=["token-classification"],
        pretty_name=f"InterPro sites by residue: {builder.config.name}",
        size_categories=[_size_category(n_rows)],
        configs=[{"config_name": builder.config.name, "default": True, "data_files": files}],
    )
    reports = builder.reports.values()
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=data.pretty_name,
        config=builder.config.name,
        source=source,
        splits=[(name, split.num_examples) for name, split in splits.items()],
        n_rows=sum(report.n_rows for report in reports),
        n_bad=sum(len(report.bad) for report in reports),
        n_notes=sum(len(report.notes) for report in reports),
    )
    card.save(out / "README.md")


def _size_category(count: int) -> str:
    steps = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    return next((name for limit, name in steps if count < limit), "100K<n<1M")


class Task(StrEnum):
    """Tasks, as typer takes a choice."""

    motif = "motif"
    binding_site = "binding_site"
    active_site = "active_site"
    custom = "custom"


def main(
    task: Annotated[Task, typer.Argument(help="Which sites; custom for tables of your own.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, made if need be.")],
    csv: Annotated[
        list[Path] | None,
        typer.Option(help="CSV file or folder with train, valid and test; can be repeated."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of the tables on the Hub.")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make it private there.")] = False,
) -> None:
    """Check InterPro site tables (VenusX schema) and write them as Parquet with a card.

    Without --csv the tables come from the Hub. Rows that are wrong are named on standard error and
    in report.md, the others are used, and the exit code is 2.

    Example: python datasets_scripts/interpro_sites.py active_site --csv VenusX/ --out active_site
    """
    datasets.disable_progress_bars()
    try:
        files = find_tables(csv) if csv else None
        options = {"hub_revision": revision} if revision else {}
        builder = InterProSites(task.value, files, **options)
        export(builder, out)
        if push_to:
            push_folder(out, push_to, private)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"interpro_sites: {error}", err=True)
        raise typer.Exit(2) from None
    bad = [(report.source, row) for report in builder.reports.values() for row in report.bad]
    for source, row in bad:
        typer.echo(f"{source}: row {row.row} ({row.uid or 'no uid'}): {row.reason}", err=True)
    splits = ", ".join(f"{name} {s.num_examples}" for name, s in builder.info.splits.items())
    typer.echo(f"{out}: {splits}; {len(bad)} rows left out", err=True)
    if bad:
        raise typer.Exit(2)


# Made here, once: a builder changes names of its module, Path among them, for streaming, and typer
# could not read the options after that.
app = typer.Typer(add_completion=False)
app.command()(main)
command = typer.main.get_command(app)

if __name__ == "__main__":
    command()
