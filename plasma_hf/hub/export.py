"""One folder that loads on its own, wherever transformers is installed; and the check of it."""

from __future__ import annotations

import ast
import filecmp
import inspect
import json
import logging
import re
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file

from ..models import modeling_backbone
from ..models.modeling_backbone import (
    OWN_BACKBONES,
    WeightsError,
    download_command,
    folder_of,
    is_whole,
    weight_files,
)
from .card import ANY_REPOSITORY, KINDS, METRICS, MODULES, benchmark_results, model_card, read_json

logger = logging.getLogger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz")
"""Names of files that may hold a pickle, and with it any code."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MULTI_VECTOR = Path(modeling_backbone.__file__).parent / "multi_vector.py"
RECORD = "export.json"
"""File of an exported folder that says what it was made from and with."""
PLACES = ("_name_or_path", "plm_name_or_path", "base_model_name_or_path")
"""Fields of a configuration that may hold a folder of this machine."""
LOCAL_FIELDS = ("is_local", "local_files_only")
"""Fields of a tokenizer's configuration that say how it was loaded here."""
AGAIN = "export the model again with plasma_hf.export_to_hub_folder(model, processor, folder)"

REQUIREMENTS = """\
# What the code in this folder needs; plasma_hf itself need not be installed.
torch>=2.6
transformers>=5.14,<6
numpy>=2.0
# To read structures (PDB, mmCIF): gemmi>=0.7.4
# For MultiVectorEncoder: sentence-transformers>=6.2
# For the backbone 3di: mini3di
"""


def export_to_hub_folder(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    save_backbone: bool | None = None,
    base_model: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a model as a folder that loads where plasma_hf is not installed.

    The folder holds the weights (safetensors), the configurations, every Python file that the
    model, its processor and its pipelines need and no other, the licence of that code,
    `requirements.txt`, a card if there is no README.md yet, and `export.json`, which says from
    which revision it was made. Metrics (`metrics.json`) that lie where the model was loaded from
    go along while its weights are still those. `check_hub_folder` has the last word.

    Args:
        model: PLASMA, ProtAlign, an encoder, or an adapter over one of them; of this package, or
            loaded as remote code.
        processor: Its processor or tokenizer; None for none, as in the folder of an adapter, which
            takes that of its base.
        save_backbone: Write the backbone's weights as well; by default where they are not, or no
            longer, those of an id on the Hub.
        base_model: For an adapter, the Hub id of the model it was trained on; by default what it
            was loaded from.
        repo_id: Where it will be on the Hub, for the lines of the card that load it.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If a file that loading needs is missing.
        ValueError: If the folder would point to a folder of this machine, or has files that do
            not belong there.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from plasma_hf import PlasmaConfig, PlasmaModel
        >>> model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
        >>> with TemporaryDirectory() as folder:
        ...     exported = export_to_hub_folder(model, None, folder)
        ...     sorted(f.name for f in exported.iterdir() if f.suffix not in (".py", ".md"))
        ['LICENSE', 'config.json', 'export.json', 'model.safetensors', 'requirements.txt']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Of PEFT, or loaded into its base by transformers.
    adapter = type(model).__module__.startswith("peft.")
    adapter |= bool(getattr(model, "_hf_peft_config_loaded", False))
    if adapter:
        _save_adapter(model, folder, base_model)
    else:
        _save_model(model, folder, save_backbone)
    if processor is not None:
        processor.save_pretrained(folder)
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        fields = read_json(folder / name)
        if (kept := _portable(fields, fields.get("dtype"))) != fields:
            write_json(folder / name, kept, sort_keys=True)
    shutil.copyfile(Path(__file__).parent / "LICENSE", folder / "LICENSE")
    if processor is not None and read_json(folder / "config.json").get("model_type") == "plasma":
        if not processor.input_format.reads_structures:  # it would be given sequences
            _write_modules(folder)
    needs = REQUIREMENTS + ("peft>=0.20\n" if adapter else "")
    (folder / "requirements.txt").write_text(needs, encoding="utf-8")
    write_json(folder / RECORD, _record(model))
    if not (folder / "README.md").is_file():
        _write_card(model, folder, repo_id)
    check_hub_folder(folder)
    return folder


def _save_model(model: Any, folder: Path, save_backbone: bool | None) -> None:
    config, backbone = model.config, getattr(model, "backbone", None)
    name = getattr(config, "plm_name_or_path", None)
    options = {}
    if hasattr(config, "backbone_saved"):
        local = name is not None and Path(name).is_dir()
        if local and (backbone is None or save_backbone is False):
            raise ValueError(
                f"the backbone of this head is {name}, a folder of this machine, which nobody else "
                "has; load it with model.load_backbone() and export with save_backbone=True, or "
                "set model.config.plm_name_or_path to its Hub id."
            )
        options["save_backbone"] = True if local and save_backbone is None else save_backbone
    model.save_pretrained(folder, **options)


def _write_modules(folder: Path) -> None:
    """Have `MultiVectorEncoder` of sentence-transformers load the model, too."""
    shutil.copyfile(MULTI_VECTOR, folder / MULTI_VECTOR.name)
    module = {"idx": 0, "name": "0", "path": "", "type": f"{MULTI_VECTOR.stem}.ResidueVectors"}
    (folder / MODULES).write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")
    settings = {"model_type": "MultiVectorEncoder", "similarity_fn_name": "maxsim"}
    write_json(folder / "config_sentence_transformers.json", settings)


def bring_code_of_backbone(model: Any, folder: str | Path) -> None:
    """Add the code of a backbone of ours that no import of a saved head names, TM-Vec's say.

    transformers fetches what the code of a folder imports from it. A line at the end of that of
    the configuration makes it import the backbone, which thereby becomes known.
    """
    own = OWN_BACKBONES.get(getattr(model.config.plm_config, "model_type", ""))
    configuration = Path(folder) / Path(inspect.getfile(type(model.config))).name
    if own is None or not configuration.is_file():  # a model of transformers, or saved without code
        return
    code = Path(inspect.getfile(own))
    if code.name not in _code_of(Path(folder), {configuration.stem: "a model"}):
        for file in map(Path, (str(code), *get_relative_import_files(code))):
            shutil.copyfile(file, Path(folder) / file.name)
        with configuration.open("a", encoding="utf-8") as opened:
            opened.write(f"\nfrom .{code.stem} import {own.__name__}  # noqa: E402, F401\n")


def _save_adapter(model: Any, folder: Path, base_model: str | None) -> None:
    with TemporaryDirectory() as saved:
        model.save_pretrained(saved)  # a card of PEFT as well, or code that the base has already
        for name in ADAPTER:
            shutil.copyfile(Path(saved) / name, folder / name)
    fields = read_json(folder / ADAPTER[0])
    base = base_model or fields.get("base_model_name_or_path")
    if not base or (base_model is None and Path(base).is_dir()):
        raise ValueError(
            f"this adapter was trained on {base or 'a model that was never saved'}, which nobody "
            "else has; publish that model with plasma_hf.push, then give its id: "
            "base_model='<org>/<name>'."
        )
    write_json(folder / ADAPTER[0], fields | {"base_model_name_or_path": base}, sort_keys=True)


def _portable(value: Any, dtype: str | None = None, name: str = "") -> Any:
    """Say nothing of this machine: last names of its folders; parts have the dtype of the whole."""
    if isinstance(value, dict):
        return {k: _portable(v, dtype, k) for k, v in value.items() if k not in LOCAL_FIELDS}
    if name == "dtype" and value is None:
        return dtype
    local = name in PLACES and isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if local else value


def _record(model: Any) -> dict[str, Any]:
    """Say what an export was made from: ids and revisions on the Hub, versions of libraries."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config: Any = inner.config
    source = getattr(config, "_name_or_path", None) or None
    # Code that is older than the attribute is in a module that is named after its commit.
    commit = re.search(r"\.([0-9a-f]{40})\.", type(inner).__module__)
    revision = getattr(inner, "source_revision", None) or (commit[1] if commit else None)
    local = source is None or Path(source).is_dir()
    record = {
        "model": None if local else source,
        "revision": None if local else revision,
        "plm_name_or_path": getattr(config, "plm_name_or_path", None),
        "plm_revision": getattr(config, "plm_revision", None),
        "transformers": version("transformers"),
        "torch": version("torch"),
    }
    return dict(_portable(record))


def _write_card(model: Any, folder: Path, repo_id: str | None) -> None:
    """Write README.md, with the metrics of the run that the model comes from."""
    record = _record(model)
    copied = _copy_metrics(model, folder, record["revision"])
    try:
        card = model_card(folder, repo_id or ANY_REPOSITORY)
    except ValueError as error:  # what the metrics are of is not what is exported
        logger.warning("the card has no metrics: %s", error)
        for file in copied:
            file.unlink()
        card = model_card(folder, repo_id or ANY_REPOSITORY)
    text = str(card)
    if record["model"] and record["revision"]:
        text += f"\nExported from `{record['model']}` at revision `{record['revision']}`.\n"
    if record["plm_name_or_path"] and record["plm_revision"]:
        plm, revision = record["plm_name_or_path"], record["plm_revision"]
        text += f"\nBackbone: `{plm}` at revision `{revision}`.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    kind = KINDS.get(getattr(model.config, "model_type", ""))
    if kind and (found := benchmark_results(read_json(folder / METRICS), kind)):
        results = folder / ".eval_results" / f"{Path(found[0].dataset_id).name}.yaml"
        results.parent.mkdir(exist_ok=True)
        results.write_text(yaml.safe_dump(eval_result_entries_to_yaml(found)), encoding="utf-8")


def _copy_metrics(model: Any, folder: Path, revision: str | None) -> list[Path]:
    """Copy the metrics beside the weights that a model was loaded from, if they are the same."""
    source = getattr(model.config, "_name_or_path", "")

    def find(name: str) -> str | None:
        with suppress(OSError, HFValidationError):  # in a folder, or on the Hub and in its cache
            return str(cached_file(source, name, revision=revision))
        return None

    weights, exported = find("model.safetensors"), folder / "model.safetensors"
    if weights is None or not exported.is_file() or not filecmp.cmp(weights, exported, False):
        return []
    if (folder / METRICS).exists() or not (file := find(METRICS)):
        return []
    return [Path(shutil.copyfile(file, folder / METRICS))]


def write_json(file: Path, fields: dict[str, Any], sort_keys: bool = False) -> None:
    """Write a JSON file as `read_json` reads it."""
    file.write_text(json.dumps(fields, indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")


# Is a folder complete? Walk what its code imports, look for its weights.


def check_hub_folder(folder: str | Path, revision: str | None = None) -> list[str]:
    """Check that a folder has all that loading it takes, and no code or pickle besides.

    Every class that its configurations name must be there, and every file that those files
    import from their folder, through any number of steps; the weights must be safetensors.

    Args:
        folder: Of a model or of an adapter; or its id on the Hub, to check what the cache has.

    Returns:
        Names of the Python files that loading the folder may run, sorted.

    Raises:
        FileNotFoundError: If a file is missing; the message says which, and what asks for it.
        WeightsError: If a file of weights is cut short or damaged.
        ValueError: If there is a Python file that nothing imports, one that needs plasma_hf
            installed, or a file that may hold a pickle.
    """
    name, local = str(folder), Path(folder).is_dir()
    remedy = AGAIN if local else f"while online, type: {download_command(name, revision)}"
    options = {"revision": revision}
    found = folder_of(name, options) or folder_of(name, options, ADAPTER[0])
    if found is None:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{name}{at} is no folder here and is not in the cache of the Hub; {remedy}."
        )
    folder = found
    try:
        _check_files(folder)
        needed = _code_of(folder, _entry_points(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {remedy}.") from None
    for weights in folder.glob("*.safetensors"):
        if not is_whole(weights):
            force = "" if local else " --force-download"
            raise WeightsError(f"{weights} is cut short or damaged; {remedy}{force}.")
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
    """Return the files of a folder, and of folders in it, that may hold a pickle, sorted.

    They are told by their names, and by their first bytes: those of a pickle, or of the archive
    that `torch.save` writes.
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


def _code_of(folder: Path, modules: dict[str, str]) -> set[str]:
    """Return the Python files that some modules, each with who asks for it, need; also their own.

    One that imports plasma_hf, or what is not beside it in its folder, is a ValueError.
    """
    found, wanted = set(), dict(modules)
    while wanted:
        module, asked_by = wanted.popitem()
        file = folder / f"{module}.py"
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}, which {asked_by} needs")
        found.add(file.name)
        for sibling in _siblings(file):
            if f"{sibling}.py" not in found:
                wanted[sibling] = file.name
    return found


def _siblings(file: Path) -> set[str]:
    """Return the modules of its own folder that a file imports, as transformers finds them.

    What an import inside `try:` asks of other packages is optional, and not followed.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    tried = {id(part) for node in tries for part in ast.walk(node)}
    siblings = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        if level == 1 and module and "." not in module:
            siblings.add(module)
        elif level or ((module or "").split(".")[0] == "plasma_hf" and id(node) not in tried):
            raise ValueError(
                f"{file.name}, line {node.lineno}: `{ast.unparse(node)}` cannot be followed where "
                "plasma_hf is not installed; write `from .sibling import name`, with sibling.py "
                "in the same folder."
            )
    return siblings


def _entry_points(folder: Path) -> dict[str, str]:
    """Return the modules that the configurations name, each with the file that does."""
    named: dict[str, str] = {}
    for configuration in ("config.json", "processor_config.json", "tokenizer_config.json"):
        fields = read_json(folder / configuration)
        references = [task["impl"] for task in fields.get("custom_pipelines", {}).values()]
        for given in fields.get("auto_map", {}).values():
            references += [given] if isinstance(given, str) else filter(None, given)
        for reference in references:
            if "--" in reference:
                raise ValueError(
                    f"{folder / configuration} takes code from another repository, {reference}; "
                    f"{AGAIN}."
                )
            named[reference.split(".")[0]] = configuration
    if (folder / MODULES).exists():
        for module in json.loads((folder / MODULES).read_text(encoding="utf-8")):
            named[module["type"].split(".")[0]] = MODULES
    return named


def _check_files(folder: Path) -> None:
    """Check that configuration and weights are there; large models have several files of them."""
    files, asked_by = weight_files(folder), "a model"
    if (folder / ADAPTER[0]).is_file():
        files, asked_by = [folder / name for name in ADAPTER], "an adapter"
    index = next((file.name for file in files if file.name.endswith(".index.json")), None)
    for file in files:
        if not file.is_file():
            part = index and file.suffix == ".safetensors"
            raise FileNotFoundError(
                f"{folder} has no {file.name}, which {index if part else asked_by} needs"
            )
