"""Loading of weights: safetensors alone, one clear error, and the commit they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash, has_file

ALLOW_PICKLE = "PLASMA_HF_ALLOW_PICKLE"
"""Environment variable; with 1, weights that are there as a pickle alone are read."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER, PICKLED_ADAPTER = "adapter_model.safetensors", "adapter_model.bin"

_IS_PICKLE = (
    "has its weights as {} alone, a pickle, which may run code when it is read, and {} is what is "
    "read here."
)


class WeightsError(OSError):
    """Weights that are missing, damaged or a pickle; the message has the file and the remedy."""


class SafeWeights(PreTrainedModel):
    """A model that is read from safetensors and knows which commit of the Hub it came from."""

    source_revision: str | None = None  # None for a folder, and for what was never loaded

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: Any,
        *args: Any,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model.

        Args:
            name_or_path: Folder or Hub id.
            *args: See `PreTrainedModel.from_pretrained`.
            use_safetensors: False to read `pytorch_model.bin`, a pickle, with
                `torch.load(weights_only=True)`; it is refused otherwise.
            **kwargs: See `PreTrainedModel.from_pretrained`: revision, dtype, ...

        Raises:
            WeightsError: If weights are missing, damaged or a pickle.
        """
        load = super().from_pretrained
        loaded = load_weights(load, name_or_path, *args, use_safetensors=use_safetensors, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.source_revision = commit_of(model.config._name_or_path or name_or_path, kwargs)
        return loaded


def load_weights(
    load: Callable[..., Any],
    name_or_path: Any,
    *args: Any,
    use_safetensors: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Call a `from_pretrained` so that it reads safetensors, and say what is wrong with files.

    Args:
        load: `from_pretrained` of a model class.
        name_or_path: Folder or Hub id.
        *args: For `load`.
        use_safetensors: None for safetensors alone, unless the environment allows more.
        **kwargs: For `load`.

    Raises:
        WeightsError: If weights are missing, damaged or a pickle.
    """
    safe = use_safetensors
    if safe is None and os.environ.get(ALLOW_PICKLE) != "1":
        safe = True
    try:
        return load(name_or_path, *args, use_safetensors=safe, **kwargs)
    except WeightsError:
        raise
    # What a reader makes of a damaged file may be an error of any kind.
    except Exception as error:
        reason = what_is_wrong(name_or_path, kwargs) if safe is not False else None
        if reason is None:
            raise
        raise WeightsError(reason) from error


def commit_of(name_or_path: Any, options: dict[str, Any]) -> str | None:
    """Return the commit that the cache of the Hub has of a repository, None for a folder.

    Args:
        name_or_path: Folder or Hub id.
        options: Of `from_pretrained`: revision, cache_dir, subfolder.
    """
    folder = None if os.path.isdir(name_or_path or "") else folder_of(name_or_path, options)
    return None if folder is None else extract_commit_hash(str(folder / "config.json"), None)


def what_is_wrong(name_or_path: Any, options: dict[str, Any]) -> str | None:
    """Say which file of a model is missing, damaged or a pickle, and what to do; None if none is.

    Args:
        name_or_path: Folder or Hub id; of the Hub, the cache is looked at.
        options: Of `from_pretrained`: revision, cache_dir, subfolder.
    """
    folder = folder_of(name_or_path, options)
    if folder is None and (Path(name_or_path or "").is_absolute()):
        return f"{name_or_path} is no folder here; give a folder, or an id on the Hub, org/name."
    if folder is None:  # nothing of it was ever downloaded; transformers says so
        return None
    revision = options.get("revision")
    for name in ("config.json", INDEX):
        if (folder / name).is_file() and not _is_json(folder / name):
            return _damaged(name_or_path, folder / name, revision)
    index = folder / INDEX
    files = _shards(index) if index.is_file() else [WEIGHTS]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and not index.is_file() and (pickled := _pickled(name_or_path, PICKLED, options)):
        return refusal(name_or_path, pickled, WEIGHTS)
    if missing:
        return _missing(name_or_path, missing, revision)
    damaged = [folder / name for name in files if not is_whole(folder / name)]
    return _damaged(name_or_path, damaged[0], revision) if damaged else None


def check_adapter(name_or_path: Any, use_safetensors: bool | None, options: dict[str, Any]) -> None:
    """Check that the weights of an adapter are safetensors, before PEFT takes what it finds.

    Raises:
        WeightsError: If they are a pickle and `use_safetensors` is not False.
    """
    if use_safetensors is False:
        return
    if _find(name_or_path, ADAPTER, options) is None and _pickled(
        name_or_path, [PICKLED_ADAPTER], options
    ):
        raise WeightsError(
            f"{name_or_path} {_IS_PICKLE.format(PICKLED_ADAPTER, ADAPTER)} If you trust where it "
            f"comes from, load its base and type model.load_adapter({str(name_or_path)!r}, "
            "use_safetensors=False): it is then read with torch.load(weights_only=True)."
        )


def is_whole(file: Path) -> bool:
    """Tell a safetensors file from one that is cut short or something else."""
    try:
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError, ValueError):
        return False
    return True


def refusal(name_or_path: Any, pickled: str, wanted: str) -> str:
    """Say why a pickle is not read, and how it can be."""
    return (
        f"{name_or_path} {_IS_PICKLE.format(pickled, wanted)} If you trust where it comes from, "
        f"pass use_safetensors=False (or set {ALLOW_PICKLE}=1): it is then read with "
        "torch.load(weights_only=True), and save_pretrained writes safetensors."
    )


def folder_of(
    name_or_path: Any, options: dict[str, Any], files: Iterable[str] = ("config.json", INDEX)
) -> Path | None:
    """Return the folder that a model is in, complete or not, None if it is nowhere here.

    Args:
        name_or_path: Folder or Hub id; of the Hub, the cache is looked at.
        options: Of `from_pretrained`: revision, cache_dir, subfolder.
        files: Any of these tells which folder of the cache it is.
    """
    inside = options.get("subfolder") or ""
    if os.path.isdir(name_or_path or ""):
        return Path(name_or_path, inside)
    for name in files:
        with suppress(HFValidationError, TypeError):  # a path that does not exist, or None
            found = try_to_load_from_cache(
                str(name_or_path),
                str(Path(inside, name)),
                cache_dir=options.get("cache_dir"),
                revision=options.get("revision"),
            )
            if isinstance(found, str):
                return Path(found).parent
    return None


def _pickled(name_or_path: Any, names: Iterable[str], options: dict[str, Any]) -> str | None:
    """Return the pickle that weights are in, None without one."""
    known = _given(options, "revision", "token", "cache_dir")
    inside = options.get("subfolder") or ""
    for name in names:
        with suppress(OSError, ValueError):
            if has_file(str(name_or_path), str(Path(inside, name)), **known):
                return name
    return None


def _find(name_or_path: Any, name: str, options: dict[str, Any]) -> str | None:
    known = _given(options, "revision", "token", "cache_dir", "subfolder", "local_files_only")
    found: str | None = cached_file(
        name_or_path, name, _raise_exceptions_for_missing_entries=False, **known
    )
    return found


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _is_json(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False


def _shards(index: Path) -> list[str]:
    weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    return sorted(set(weight_map.values()))


def _missing(name_or_path: Any, files: list[str], revision: str | None) -> str:
    named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if os.path.isdir(name_or_path):
        return f"{name_or_path} has no {named}; copy it again, or save the model to it again."
    return (
        f"{name_or_path} has no {named} here: its download was not finished, or the Hub does not "
        f"have it either. While online, type: {download_command(name_or_path, revision)}."
    )


def _damaged(name_or_path: Any, file: Path, revision: str | None) -> str:
    told = f"{file.name} of {name_or_path} is cut short or damaged ({file}"
    with suppress(OSError):
        told += f", {file.stat().st_size} bytes"
    if os.path.isdir(name_or_path):
        return f"{told}); copy it again, or save the model to its folder again."
    again = download_command(name_or_path, revision)
    return f"{told}). While online, type: {again} --force-download."


def download_command(name: Any, revision: str | None) -> str:
    """Return the command that gets a repository of the Hub whole."""
    at = f" --revision {revision}" if revision else ""
    return f"hf download {name}{at}"
