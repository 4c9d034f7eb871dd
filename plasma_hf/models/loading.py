"""Loading of backbones: from the Hub, from a folder, or from the files of their authors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .modeling_backbone import (
    STANDING_ON_ANOTHER,
    Backbone,
    SafeWeights,
    WeightsError,
    build_language_model,
    check_adapter,
    load_language_model,
    pad_residues,
    residue_embeddings,
    weights_digest,
    width_of,
)
from .modeling_protssn import ProtSSNModel
from .modeling_substitution import ResidueEncoderModel, SubstitutionModel
from .modeling_tmvec import TMVecModel
from .processing_plasma import (
    NON_COMMERCIAL,
    RECIPES,
    KnownBackbone,
    PlasmaProcessor,
    Recipe,
    find_backbone,
    find_recipe,
    generic_recipe,
)

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


# --- What a head does with its backbone: load it, stand on it, run it, save it or not.


class WithBackbone(SafeWeights):
    """Let a head stand on a backbone that it does not have to carry along.

    Saved, the model holds its head, the configuration of its backbone in full, and the backbone's
    id, revision and recipe; loaded, it takes the backbone from there. Once the backbone's weights
    are no longer those of its id, trained or merged, they are saved with the head.
    """

    backbone: Any
    takes_embeddings = "query_embeddings and candidate_embeddings"  # for an error message
    _fetched: Backbone | None = None  # the backbone as it came from its id

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: Any,
        *args: Any,
        load_backbone: bool = True,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a saved model, and the backbone it stands on if that is not saved with it.

        Args:
            name_or_path: Folder or Hub id.
            *args: See `PreTrainedModel.from_pretrained`.
            load_backbone: False to leave the backbone away; the model then takes embeddings.
            use_safetensors: False to read pickles as well, of the model and of its backbone.
            **kwargs: See `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: If weights are missing, damaged or a pickle, or the backbone is neither here
                nor can be fetched; the message has file or id, and what to do.
        """
        kwargs["use_safetensors"] = use_safetensors
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if load_backbone and model.backbone is None and model.config.plm_config is not None:
            model.load_backbone(use_safetensors=use_safetensors)
        if model.backbone is not None:
            model.backbone.requires_grad_(False).eval()
        return loaded

    @property
    def processor(self) -> PlasmaProcessor | None:
        """The processor that came with the backbone, if the backbone came by itself."""
        return self._fetched.processor if self._fetched is not None else None

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen backbone goes on embedding as in inference."""
        super().train(mode)
        if self.backbone is not None and not any(
            parameter.requires_grad for parameter in self.backbone.parameters()
        ):
            self.backbone.eval()
        return self

    def load_backbone(
        self,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool | None = None,
    ) -> PlasmaProcessor:
        """Load the backbone that the head was made for and put it under the head.

        Args:
            source: Folder with it, by default the id in the configuration.
            revision: Commit, branch or tag on the Hub, by default that of the configuration.
            trust_remote_code: Run Python code that the backbone brings.
            use_safetensors: See `plasma_hf.load_backbone`.

        Returns:
            Its processor, with the recipe that the head was trained on.

        Raises:
            ValueError: If the configuration names no backbone, or this one does not fit.
            OSError: If it is neither here nor can be fetched.
        """
        name = self.config.plm_name_or_path
        if source is None and name is None:
            raise ValueError(
                "this head does not say which backbone it was made for; give one: "
                "model.load_backbone('facebook/esm2_t33_650M_UR50D')."
            )
        backbone = load_backbone(
            source or name,
            self.config.plm_recipe,
            revision=revision or (self.config.plm_revision if source is None else None),
            device=self.device,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
        self.attach_backbone(backbone, name if source is not None else None)
        if source is not None:
            self.config.plm_name_or_path = str(source)
            self.config.plm_revision = backbone.revision
        return backbone.processor

    def attach_backbone(
        self, backbone: Backbone | PreTrainedModel, name: str | None = None
    ) -> Self:
        """Put a backbone under a head-only model, so that it takes token ids.

        The backbone is frozen: what trains is the head, or an adapter. To train all of it, call
        `model.backbone.requires_grad_(True)`.

        Args:
            backbone: What `load_backbone` gives, or an encoder with one vector a token.
            name: Its Hub id or folder; kept in the configuration.

        Raises:
            ValueError: If the head was made for another width or another backbone.
        """
        encoder: Any = backbone.model if isinstance(backbone, Backbone) else backbone
        config, width = self.config, width_of(encoder.config)
        if config.embedding_size not in (None, width):
            raise ValueError(
                f"this head takes residue embeddings of width {config.embedding_size}, "
                f"{type(encoder).__name__} gives {width}; attach the backbone the head was made "
                f"for, or make a head with {type(config).__name__}"
                f"({config.attribute_map.get('embedding_size', 'embedding_size')}={width})."
            )
        name = name or getattr(backbone, "name", None) or encoder.config.name_or_path or None
        made_for = config.plm_name_or_path
        if made_for and name and Path(made_for).name != Path(name).name:
            raise ValueError(
                f"this head was made for the backbone {made_for!r}, not for {name!r}; load "
                f"{made_for!r}, or train a head on {name!r}."
            )
        self.backbone = encoder.requires_grad_(False).eval()
        config.plm_config, config.embedding_size = encoder.config, width
        config.plm_name_or_path = name or made_for
        if isinstance(backbone, Backbone):
            config.plm_recipe = backbone.recipe.name
            # Under another name the commit would be of another repository.
            config.plm_revision = backbone.revision if name == backbone.name else None
            self._fetched = backbone
        return self

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        residue_mask: Tensor | None = None,
        backbone_atoms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the backbone and keep the residues alone.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: True at every token that is no padding; None if there is none.
            residue_mask: True at tokens that are residues; None if all attended ones are.
            backbone_atoms: N, CA and C in Å, `(batch, residues, 3, 3)`, for a backbone that reads
                structures.

        Returns:
            Embeddings `(batch, residues, hidden)`, padded with zeros, and their residue mask.
        """
        if self.backbone is None:
            raise ValueError(
                "this model is a head without a backbone and takes no token ids; pass "
                f"{self.takes_embeddings}, or put its backbone under it with "
                "model.load_backbone()."
            )
        return pad_residues(
            residue_embeddings(
                self.backbone, input_ids, attention_mask, residue_mask, backbone_atoms
            )
        )

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter, of safetensors; the backbone that it may sit on first."""
        self._check_adapter(*args, **kwargs)
        if self.backbone is None and self.config.plm_config is not None:
            self.load_backbone()
        return super().load_adapter(*args, **kwargs)

    def _check_adapter(
        self,
        peft_model_id: Any = None,
        *_: Any,
        load_config: Any = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        loading = dict(vars(load_config)) if load_config is not None else {}
        name = peft_model_id or loading.get("pretrained_model_name_or_path")
        options = loading.get("download_kwargs", {}) | kwargs | (adapter_kwargs or {})
        safe = kwargs.get("use_safetensors", loading.get("use_safetensors"))
        if name is not None:
            check_adapter(name, safe, options)

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_backbone: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the model.

        Args:
            save_directory: Folder to write.
            *args: See `PreTrainedModel.save_pretrained`.
            save_backbone: Save the backbone's weights as well; by default only where they are not,
                or no longer, those of the backbone's id.
            **kwargs: See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: If `save_backbone=False` would lose weights.
        """
        fetched = self._fetched.digest if self._fetched is not None else None
        changed = self.backbone is not None and fetched != weights_digest(self.backbone)
        if save_backbone is False and changed:
            raise ValueError(
                "the weights of the backbone are not those of "
                f"{self.config.plm_name_or_path or 'any id'}; left out they would be lost. Save "
                "with save_backbone=True."
            )
        keep = changed if save_backbone is None else save_backbone
        names = (
            [] if self.backbone is None else [f"backbone.{k}" for k in self.backbone.state_dict()]
        )
        self._keys_to_ignore_on_save = set() if keep else set(names)
        self.config.backbone_saved = keep and self.backbone is not None
        super().save_pretrained(save_directory, *args, **kwargs)


def build_backbone(config: Any) -> PreTrainedModel:
    """Build an untrained backbone from its configuration."""
    if config.model_type in OWN_MODELS:
        return OWN_MODELS[config.model_type](config)
    return build_language_model(config)
