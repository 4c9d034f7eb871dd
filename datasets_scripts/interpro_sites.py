"""InterPro sites by residue (VenusX): tables in, checked rows and Parquet with a card out.

`load_dataset` runs no scripts any more, so the builder is used as a class:

    InterProSites("active_site", data_files={"train": "train.csv"}).download_and_prepare()

or from the shell:

    python datasets_scripts/interpro_sites.py active_site --csv VenusX/ --out active_site

Splits come in the order train, validation, test, whatever the order of the files: pairs of the
upstream protocol depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import huggingface_hub
import typer
from dataset_folder import (
    count_examples,
    errors_reported_by,
    push_folder,
    report_and_exit,
    shell_command,
    split_generators,
    write_card,
    write_parquet,
    write_report,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from plasma_hf.data import SiteTableReport, iter_site_rows

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

    Rows are read one at a time; invalid rows are left out and named in `reports`.

    Args:
        config_name: "motif", "binding_site", "active_site", or "custom" for other tables.
        data_files: CSV files by split, or a single one; from the Hub by default.
        cache_dir: Folder for prepared data sets.
        options: What `datasets.DatasetBuilder` takes.

    Attributes:
        reports: Which rows were invalid, and why, by file; filled while the data set is prepared.
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
        ordered = sorted(files, key=_place)
        return split_generators("files", {name: list(map(str, files[name])) for name in ordered})

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
            if not report.n_used:
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
    try:
        folder = huggingface_hub.snapshot_download(
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
    """Write a data set as a folder of Parquet files with a card and a report of invalid rows.

    The folder loads with `datasets.load_dataset(out)`.

    Raises:
        ValueError: If a table has no row that can be used, or cannot be read.
        ConnectionError: If the tables are neither given nor to be had from the Hub.
    """
    out = write_parquet(builder, out)
    reports = list(builder.reports.values())
    values = {name: report.to_dict() for name, report in builder.reports.items()}
    write_report(out, values, "\n\n".join(report.to_markdown() for report in reports))
    own, source = builder.config.data_files, builder.config.hub_id
    data = {
        "license": "other" if own else "apache-2.0",
        "tags": ["biology", "protein", "interpro", "active site", "binding site"],
        "task_categories": ["token-classification"],
        "pretty_name": f"InterPro sites by residue: {builder.config.name}",
    }
    write_card(
        *(builder, out, "dataset_interpro_sites.md", data),
        source=", ".join(Path(file).name for file in builder.reports) if own else source,
        n_rows=sum(report.n_rows for report in reports),
        n_invalid=sum(len(report.invalid) for report in reports),
        n_notes=sum(len(report.notes) for report in reports),
    )
    return out


def main(
    task: Annotated[
        Literal["motif", "binding_site", "active_site", "custom"],
        typer.Argument(help="Which sites; custom for tables of your own."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
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

    Without --csv the tables come from the Hub. Invalid rows are named on standard error and
    in report.md, the others are used, and the exit code is 2.

    Example: python datasets_scripts/interpro_sites.py active_site --csv VenusX/ --out active_site
    """
    with errors_reported_by("interpro_sites"):
        files = find_tables(csv) if csv else None
        options = {"hub_revision": revision} if revision else {}
        builder = InterProSites(task, files, **options)
        export(builder, out)
        if push_to:
            push_folder(out, push_to, private)
    lines = [
        f"{report.source}: row {row.row} ({row.uid or 'no uid'}): {row.reason}"
        for report in builder.reports.values()
        for row in report.invalid
    ]
    splits = ", ".join(f"{name} {count}" for name, count in count_examples(builder).items())
    report_and_exit([*lines, f"{out}: {splits}; {len(lines)} rows left out"], bool(lines))


command = shell_command(main)

if __name__ == "__main__":
    command()
