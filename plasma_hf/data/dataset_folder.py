"""A prepared data set as a folder of Parquet files with a card and reports; and on to the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .sequences import BadRecord

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
