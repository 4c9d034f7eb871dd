"""Is a folder for the Hub complete? Walk what its code imports, look for its weights."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..models.safe_weights import WeightsError, download_command, folder_of, is_whole

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz")
"""Names of files that may hold a pickle, and with it any code."""

CONFIGURATIONS = ("config.json", "processor_config.json", "tokenizer_config.json")
"""Files that may name Python classes of their folder."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")

AGAIN = "export the model again with plasma_hf.export_to_hub_folder(model, processor, folder)"


def check_hub_folder(folder: str | Path, revision: str | None = None) -> list[str]:
    """Check that a folder has all that loading it takes, and no code or pickle besides.

    Every class that its configurations name must be there, and every file that those files
    import from their folder, through any number of steps; the weights must be safetensors.

    Args:
        folder: Of a model or of an adapter; or its id on the Hub, to check what the cache has.
        revision: Commit, branch or tag on the Hub.

    Returns:
        Names of the Python files that loading the folder may run, sorted.

    Raises:
        FileNotFoundError: If a file is missing; the message names it, what asks for it, and what
            to do.
        WeightsError: If a file of weights is cut short or damaged.
        ValueError: If there is a Python file that nothing imports, one that needs plasma_hf
            installed, or a file that may hold a pickle.

    Example:
        >>> import plasma_hf
        >>> "cost.py" in code_of(plasma_hf.models.__path__[0], {"modeling_plasma": "a test"})
        True
    """
    name, local = str(folder), Path(folder).is_dir()
    remedy = AGAIN if local else f"while online, type: {download_command(name, revision)}"
    found = folder_of(name, {"revision": revision}, ("config.json", ADAPTER[0]))
    if found is None:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{name}{at} is no folder here and is not in the cache of the Hub; {remedy}."
        )
    folder = found
    try:
        _check_weights(folder)
        needed = code_of(folder, _entry_points(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {remedy}.") from None
    for file in folder.glob("*.safetensors"):
        if not is_whole(file):
            force = "" if local else " --force-download"
            raise WeightsError(f"{file} is cut short or damaged; {remedy}{force}.")
    surplus = sorted({file.name for file in folder.glob("*.py")} - needed)
    if surplus:
        raise ValueError(
            f"{folder} has Python files that its model does not use: {', '.join(surplus)}; delete "
            "them, or export into an empty folder."
        )
    if pickles := pickles_in(folder):
        raise ValueError(
            f"{folder} has files that may run code when they are read: {', '.join(pickles)}; "
            "delete them, weights belong into model.safetensors."
        )
    return sorted(needed)


def pickles_in(folder: str | Path) -> list[str]:
    r"""Return the files of a folder, and of folders in it, that may hold a pickle, sorted.

    They are told by their names, and by their first bytes: those of a pickle, or of the archive
    that `torch.save` writes.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.json").write_text("{}")
        ...     _ = Path(folder, "b.json").write_bytes(b"\x80\x04K\x01.")
        ...     pickles_in(folder)
        ['b.json']
    """
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files if _may_be_pickle(file))


def _may_be_pickle(file: Path) -> bool:
    if any(file.match(pattern) for pattern in PICKLES):
        return True
    if file.suffix == ".safetensors":  # these begin with a length, which may be any bytes
        return False
    with file.open("rb") as opened:
        first = opened.read(4)
    return first == b"PK\x03\x04" or (first[:1] == b"\x80" and 2 <= max(first[1:2], default=0) <= 5)


def code_of(folder: str | Path, modules: dict[str, str]) -> set[str]:
    """Return the Python files of a folder that some of its modules need, themselves among them.

    Args:
        folder: A flat folder of modules.
        modules: Names of modules, each with who asks for it.

    Raises:
        FileNotFoundError: If one of them is not there.
        ValueError: If one imports plasma_hf, or what is not beside it in its folder.
    """
    folder, found, wanted = Path(folder), set(), dict(modules)
    while wanted:
        module, asked_by = wanted.popitem()
        file = folder / f"{module}.py"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}, which {asked_by} needs")
        found.add(file.name)
        siblings = set(_siblings(file)) - {Path(name).stem for name in found}
        wanted |= dict.fromkeys(siblings, file.name)
    return found


def _siblings(file: Path) -> Iterator[str]:
    """Yield the modules of its own folder that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        if level == 1 and module and "." not in module:
            yield module
        elif level or (module or "").split(".")[0] == "plasma_hf":
            raise ValueError(
                f"{file.name}, line {node.lineno}: `{ast.unparse(node)}` cannot be followed where "
                "plasma_hf is not installed; write `from .sibling import name`, with sibling.py "
                "in the same folder."
            )


def _entry_points(folder: Path) -> dict[str, str]:
    """Return the modules that the configurations name, each with the file that does."""
    named: dict[str, str] = {}
    for configuration in CONFIGURATIONS:
        if not (folder / configuration).is_file():
            continue
        fields = json.loads((folder / configuration).read_text(encoding="utf-8"))
        for reference in _references(fields):
            if "--" in reference:
                raise ValueError(
                    f"{folder / configuration} takes code from another repository, {reference}; "
                    f"{AGAIN}."
                )
            named[reference.split(".")[0]] = configuration
    return named


def _references(fields: dict[str, Any]) -> Iterator[str]:
    for given in fields.get("auto_map", {}).values():
        yield from [given] if isinstance(given, str) else filter(None, given)
    for task in fields.get("custom_pipelines", {}).values():
        yield task["impl"]


def _check_weights(folder: Path) -> None:
    if (folder / ADAPTER[0]).is_file():
        needed = dict.fromkeys(ADAPTER, "an adapter")
    else:
        needed = {"config.json": "a model"} | _weight_files(folder)
    for name, asked_by in needed.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}, which {asked_by} needs")


def _weight_files(folder: Path) -> dict[str, str]:
    """Return the files with weights, each with who asks for it; large models have several."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {"model.safetensors": "a model"}
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return dict.fromkeys(parts, index.name)
