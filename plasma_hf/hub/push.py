"""Push a model to the Hub, whole."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from .completeness import PICKLES
from .export import RECORD, export_to_hub_folder

logger = logging.getLogger(__name__)

OUTDATED = ["*.py", "*.safetensors", "*.safetensors.index.json", *PICKLES]
"""What goes from the repository where the new commit does not have it."""


def push(
    model: Any,
    processor: Any,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    revision: str | None = None,
    private: bool | None = None,
    message: str = "Upload of a complete folder by plasma_hf",
    token: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Export a model with `export_to_hub_folder` and push the folder as one commit.

    To load exactly this commit later, whatever is pushed then, pin it: `AutoModel.from_pretrained(
    repo_id, revision=commit.oid, trust_remote_code=True)`. That pins the code as well.

    Args:
        model: See `export_to_hub_folder`.
        processor: See `export_to_hub_folder`.
        repo_id: On the Hub, "<org>/<name>"; made if it is not there. A card that it has stays,
            unless `folder` brings a README.md.
        folder: Where to export to, and to keep it; its `export.json` then tells the commit. By
            default a temporary folder.
        revision: Branch to push to, by default "main".
        private: Whether a new repository is private.
        message: Of the commit.
        token: Of the Hub; by default that of `hf auth login`.
        **options: See `export_to_hub_folder`.

    Returns:
        The commit; its hash is `.oid`.

    Raises:
        ValueError: See `export_to_hub_folder`.
    """
    api = HfApi(token=token)
    kept = TemporaryDirectory() if folder is None else nullcontext(str(folder))
    with kept as name:
        own_card = (Path(name) / "README.md").is_file()
        exported = export_to_hub_folder(model, processor, name, repo_id=repo_id, **options)
        api.create_repo(repo_id, private=private, exist_ok=True)
        keep_card = not own_card and api.file_exists(repo_id, "README.md", revision=revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=exported,
            revision=revision,
            commit_message=message,
            ignore_patterns=["README.md"] if keep_card else None,
            delete_patterns=OUTDATED,
        )
        record = json.loads((exported / RECORD).read_text(encoding="utf-8"))
        record |= {"pushed_to": repo_id, "commit": commit.oid}
        (exported / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    logger.info("%s is at revision %s", repo_id, commit.oid)
    return commit
