"""Loading of backbones: from the Hub, from a folder, or from the files of their authors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .backbone import STANDING_ON_ANOTHER, Backbone
from .backbones import NON_COMMERCIAL, RECIPES, KnownBackbone, find_backbone, find_recipe
from .language_model import load_language_model
from .modeling_protssn import ProtSSNModel
from .modeling_residue_encoder import ResidueEncoderModel
from .modeling_substitution import SubstitutionModel
from .modeling_tmvec import TMVecModel
from .processing_plasma import PlasmaProcessor
from .recipe import Recipe, generic_recipe
from .safe_weights import WeightsError
from .weights_digest import weights_digest

logger = logging.get_logger(__name__)

OWN_MODELS: dict[str, Any] = {
    model.config_class.model_type: model
    for model in (SubstitutionModel, ResidueEncoderModel, TMVecModel, ProtSSNModel)
}
"""Backbones that this package brings, by model type."""

LEARNED_POSITIONS = {"bert": False, "electra": False, "albert": False, "esm": True, "roberta": True}
"""Model types that look positions up in a table, and whether they count on from padding."""

PROTSSN_FILE = "protssn_k20_h512.pt"


def load_backbone(
    name_or_path: str | Path,
    recipe: str | Recipe | None = None,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    max_residues: int | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
) -> Backbone:
    """Load a protein language model with the recipe of its input.

    Args:
        name_or_path: A name of `BACKBONES`, a Hub id, a local folder, or "substitution" for the
            encoder without weights. For TM-Vec and ProtSSN also a folder with the files that their
            authors publish.
        recipe: "native" (default) or "upstream" for a named backbone, a name of `RECIPES`, a
            `Recipe`, or "generic"; other backbones get one worked out from their tokenizer.
        revision: Commit, branch or tag on the Hub.
        dtype: Of the weights. float16 overflows in T5 encoders.
        device: Where to put the model.
        max_residues: Embed longer proteins in windows of so many residues.
        trust_remote_code: Run Python code that the model brings.
        use_safetensors: False to read weights that are there as a pickle alone
            (`pytorch_model.bin`), with `torch.load(weights_only=True)`; they are refused otherwise.
            The files that authors publish (`.ckpt`, `.pt`) are read in that way in any case.

    Raises:
        OSError: If the backbone is neither here nor can be fetched, or its weights are a pickle.
        ValueError: If it does not give one vector a residue.

    Example:
        >>> load_backbone("substitution").embed(["MKVLA"])[0].shape
        torch.Size([5, 420])
    """
    name = str(name_or_path)
    if name == "substitution":
        encoder: Any = SubstitutionModel(SubstitutionModel.config_class())
        encoder.to(device)
        return Backbone(encoder, PlasmaProcessor(), name, digest=weights_digest(encoder))
    known = find_backbone(name)
    if known is not None and known.licence == NON_COMMERCIAL:
        logger.warning_once(f"{name}: its licence, {known.licence}, allows no commercial use.")
    wanted = recipe if isinstance(recipe, Recipe) else find_recipe(name, recipe)
    source = _source(name, known)
    # A branch moves; its commit is what the embeddings depend on.
    revision = extract_commit_hash(_find_file(source, "config.json", revision), None) or revision
    options = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    options["use_safetensors"] = use_safetensors
    model, tokenizer = _load(source, wanted, options)
    model.to(device)
    wanted = _settle(model, tokenizer, wanted, max_residues)
    processor = PlasmaProcessor(tokenizer, wanted)
    return Backbone(model, processor, source, revision, weights_digest(model))


def _source(name: str, known: KnownBackbone | None) -> str:
    if known is None or Path(name).is_dir() or "/" in name:
        return name
    if known.model_id is None:
        raise OSError(f"{name} is no folder here, and is not on the Hub: {known.files}.")
    return known.model_id


def _load(source: str, recipe: Recipe | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load model and tokenizer; a model that stands on another gets that one too."""
    if recipe is not None and recipe.language_model and not _has_config(source):
        model = _fetch(source, options, partial(_load_published, recipe=recipe))
    else:
        model = _fetch(source, options, _load_model)
    model_type = model.config.model_type
    if model_type not in STANDING_ON_ANOTHER:
        return model, _fetch(source, options, _load_tokenizer)
    if recipe is not None and recipe.k_neighbors:
        model.set_neighbors(recipe.k_neighbors)
    under = _language_model_of(model, recipe, source)
    options = options | {"revision": model.config.plm_revision}
    if model.language_model is None:
        model.attach_language_model(_fetch(under, options, _load_model), under)
    if _find_file(source, "tokenizer_config.json"):
        under = source
    return model, _fetch(under, options, _load_tokenizer)


def _language_model_of(model: Any, recipe: Recipe | None, source: str) -> str:
    """Say which language model feeds a model: the one inside it, or that of the recipe."""
    saved, wanted = model.config.plm_name_or_path, recipe.language_model if recipe else None
    inside = find_backbone(saved) if saved and model.language_model is not None else None
    if inside is not None and wanted and inside is not find_backbone(wanted):
        raise ValueError(
            f"{source} stands on {saved}, the recipe {recipe and recipe.name!r} asks for {wanted}; "
            "load it without a recipe, or load the files of its authors with this one."
        )
    under = saved if model.language_model is not None else wanted or saved
    if under is None:
        accepted = ", ".join(name for name, r in RECIPES.items() if r.language_model)
        raise ValueError(
            f"{source} is a {model.config.model_type} model that does not say which language "
            f"model it stands on; give a recipe, one of {accepted}."
        )
    return under


def _has_config(source: str) -> bool:
    """Tell a folder that `save_pretrained` made from the files of the authors."""
    return (Path(source) / "config.json").exists()


def _load_published(
    source: str, recipe: Recipe, revision: str | None, dtype: torch.dtype, **_: Any
) -> Any:
    """Load TM-Vec or ProtSSN from the files of their authors."""
    folder: str | Path = source
    if not Path(source).is_dir():
        pattern = f"*{PROTSSN_FILE}"
        folder = snapshot_download(source, revision=revision, allow_patterns=pattern)
    model: Any = (
        ProtSSNModel.from_upstream(_only(folder, "*.pt"), k_neighbors=recipe.k_neighbors)
        if recipe.k_neighbors
        else TMVecModel.from_upstream(_only(folder, "*.ckpt"), _only(folder, "*.json"))
    )
    return model.to(dtype)


def _only(folder: str | Path, pattern: str) -> Path:
    files = sorted(Path(folder).rglob(pattern))
    if len(files) != 1:
        raise ValueError(
            f"{folder} has {len(files)} files {pattern}, and needs exactly one: "
            f"{', '.join(file.name for file in files) or 'none is there'}."
        )
    return files[0]


def _fetch(source: str, options: dict[str, Any], load: Any) -> Any:
    """Load, and say what to fetch where the backbone is missing."""
    try:
        return load(source, **options)
    except WeightsError as error:
        raise WeightsError(f"the backbone {source}: {error}") from error
    except OSError as error:
        at = f" (revision {options['revision']})" if options["revision"] else ""
        raise OSError(
            f"the backbone {source}{at} is no folder here, is not in the cache of the Hub and "
            f"cannot be fetched. While online, type: hf download {source}"
            f"{' --revision ' + options['revision'] if options['revision'] else ''}. "
            f"What the loader says: {error}"
        ) from error


def _load_model(
    source: str,
    revision: str | None,
    dtype: torch.dtype,
    use_safetensors: bool | None,
    **options: Any,
) -> Any:
    fields, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    model_type = fields.get("model_type")
    weights = {"revision": revision, "dtype": dtype, "use_safetensors": use_safetensors}
    if model_type in OWN_MODELS:
        return OWN_MODELS[model_type].from_pretrained(source, **weights)
    if model_type == "plasma":
        raise ValueError(
            f"{source} is a PLASMA model, not a backbone; load it with "
            "AutoModel.from_pretrained, or give the id of its backbone."
        )
    config = AutoConfig.from_pretrained(source, revision=revision, **options)
    return load_language_model(source, config, **weights, **options)


def _load_tokenizer(
    source: str, dtype: torch.dtype, use_safetensors: bool | None, **options: Any
) -> Any:
    revision = options["revision"]
    fields, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    # transformers rebuilds any T5 tokenizer with the text splitting of T5, which puts an unknown
    # token in front of every residue of Ankh; read as plain data, the file says what it means.
    if fields.get("model_type") == "t5" and _find_file(source, "tokenizer.json", revision):
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    return AutoTokenizer.from_pretrained(source, **options)


def _find_file(source: str, name: str, revision: str | None = None) -> str | None:
    """Return the path of a file of a folder or of a repository on the Hub, None without it."""
    try:
        return cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, HFValidationError):  # no such repository, or a path that does not exist
        return None


def _settle(
    model: PreTrainedModel, tokenizer: Any, recipe: Recipe | None, max_residues: int | None
) -> Recipe:
    """Decide on the recipe: the one asked for, that of the model type, or a generic one."""
    config: Any = model.config
    if recipe is None and config.model_type == "esmc":
        recipe = RECIPES["esmc/native"]
    if recipe is None and config.model_type in STANDING_ON_ANOTHER:
        recipe = _recipe_of_saved(config)
    if recipe is None:
        recipe = generic_recipe(tokenizer)
    limits = [max_residues, recipe.max_residues, _positions(config)]
    if recipe.name == "generic":
        limits.append(_tokenizer_limit(tokenizer))
    known = [limit for limit in limits if limit is not None]
    return replace(recipe, max_residues=min(known) if known else None)


def _recipe_of_saved(config: Any) -> Recipe:
    if config.model_type == "protssn":
        form = "upstream" if config.k_neighbors == 10 else "native"
        return RECIPES[f"protssn/{form}"]
    over_prott5 = config.plm_name_or_path == RECIPES["tm_vec/native"].language_model
    return RECIPES[f"tm_vec/{'native' if over_prott5 else 'upstream'}"]


def _positions(config: Any) -> int | None:
    """Return the residues that fit into learned positions, two special tokens beside them."""
    if config.model_type not in LEARNED_POSITIONS:
        return None
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    # In some families positions begin after that of the padding token.
    first = (config.pad_token_id or 0) + 1 if LEARNED_POSITIONS[config.model_type] else 0
    return int(config.max_position_embeddings) - first - 2


def _tokenizer_limit(tokenizer: Any) -> int | None:
    """Return the residues that a tokenizer states as its limit; many state an absurd one."""
    tokens = int(tokenizer.model_max_length)
    return tokens - tokenizer.num_special_tokens_to_add() if tokens < 10**6 else None
