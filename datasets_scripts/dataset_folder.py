"""A prepared data set as a folder of Parquet files with a card and reports; and on to the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import huggingface_hub
import typer
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.errors import RemoteEntryNotFoundError

from plasma_hf.data import InvalidRecord

SPLITS = ("train", "validation", "test")
TEMPLATES = Path(__file__).parents[1] / "hub_cards"
UPLOADED = ("*.parquet", "report.*")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def digest_files(files: Iterable[Path]) -> str:
    """Return a value that changes when a file or folder is added, removed or written.

    A builder keeps it in its config, so that a prepared data set is not taken for one of files
    that have changed since.
    """
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def split_generators(argument: str, values: Mapping[str, Any]) -> list[datasets.SplitGenerator]:
    """Make a generator of each split that has something, which is its `argument`."""
    return [
        datasets.SplitGenerator(name, gen_kwargs={argument: value})
        for name, value in values.items()
        if value
    ]


def write_parquet(builder: datasets.DatasetBuilder, out: str | PathLike[str]) -> Path:
    """Prepare a data set as Parquet files in a folder, which is created if it does not exist.

    Raises:
        ValueError: If there is nothing to write; any other error of the builder is raised as it
            was there.
    """
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


def list_invalid(records: Sequence[InvalidRecord]) -> str:
    """Name the records that were left out, as a list in Markdown.

    Example:
        >>> print(list_invalid([InvalidRecord("1abc.pdb", "it holds no protein chain")]))
        Left out: 1.
        - 1abc.pdb: it holds no protein chain
    """
    return "\n".join(
        [f"Left out: {len(records)}.", *(f"- {one.id}: {one.reason}" for one in records)]
    )


def write_card(
    builder: datasets.DatasetBuilder,
    out: Path,
    template: str,
    card_data: dict[str, Any],
    **values: Any,
) -> None:
    """Write the card of a prepared data set as `README.md`.

    Args:
        builder: The data set, prepared.
        out: Folder of its Parquet files.
        template: File in `hub_cards`.
        card_data: Fields of the card's header, besides its files and size.
        **values: What the template names, besides `title`, `config` and `splits`.
    """
    splits = count_examples(builder)
    total = sum(splits.values())
    name = builder.config.name
    files = [{"split": s, "path": f"{builder.dataset_name}-{s}*.parquet"} for s in splits]
    data = DatasetCardData(
        size_categories=[next((size for most, size in SIZES if total < most), "100K<n<1M")],
        configs=[{"config_name": name, "default": True, "data_files": files}],
        **card_data,
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATES / template),
        title=data.pretty_name,
        config=name,
        splits=list(splits.items()),
        **values,
    )
    card.save(out / "README.md")


def count_examples(builder: datasets.DatasetBuilder) -> dict[str, int]:
    """Return the number of rows of each split of a prepared data set."""
    return {name: split.num_examples for name, split in (builder.info.splits or {}).items()}


def push_folder(
    folder: str | PathLike[str], repository: str, private: bool = True
) -> huggingface_hub.CommitInfo:
    """Upload a folder written by a builder to a data set on the Hub, created if missing.

    The files go to a folder named after their configuration; other configurations of the data set
    stay, and the card names them all: `load_dataset(repository, configuration)`.

    Args:
        folder: Folder with Parquet files, card and report.
        repository: Data set on the Hub, as `org/name`.
        private: Make a new one private, and refuse one that is public.

    Returns:
        The commit; `load_dataset(..., revision=commit.oid)` loads exactly this one.

    Raises:
        ValueError: If the data set is to be private and a public one of this name exists.
    """
    folder, api = Path(folder), huggingface_hub.HfApi()
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
            Path(scratch, name).mkdir()
            for file in (file for pattern in UPLOADED for file in folder.glob(pattern)):
                shutil.copy(file, Path(scratch, name))
            card.save(Path(scratch, name, "README.md"))
        _join_cards(card, repository).save(Path(scratch, "README.md"))
        return api.upload_folder(
            repo_id=repository,
            folder_path=scratch,
            repo_type="dataset",
            delete_patterns=[f"{name}/*" for name in names],
        )


def _join_cards(card: Any, repository: str) -> Any:
    """Return a card of all configurations of a data set on the Hub, this one's renewed."""

    def load(path: str) -> Any:
        file = huggingface_hub.hf_hub_download(repository, path, repo_type="dataset")
        return DatasetCard.load(file)

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


# --- What the command lines of the builders share.


def shell_command(main: Callable[..., None]) -> Any:
    """Make a function a command, once, when its module is loaded.

    A builder changes names of its module, Path among them, for streaming, and typer could not read
    the options after that.
    """
    app = typer.Typer(add_completion=False)
    app.command()(main)
    return typer.main.get_command(app)


@contextmanager
def errors_reported_by(name: str) -> Iterator[None]:
    """Print an expected error as one line on standard error, and exit with code 2."""
    datasets.disable_progress_bars()
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"{name}: {error}", err=True)
        raise typer.Exit(2) from None


def report_and_exit(lines: Iterable[str], invalid: bool) -> None:
    """Print a report on standard error; exit with code 2 if something was left out."""
    for line in lines:
        typer.echo(line, err=True)
    if invalid:
        raise typer.Exit(2)
