"""Loading of weights: safetensors alone, one clear error, and the commit they came from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file, extract_commit_hash, has_file

from .processing_plasma import PlasmaProcessor, Recipe
from .protein import Protein

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


# --- A digest of weights, to tell whether two models are the same.


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that depend on every weight of a module.

    Any training, merging or conversion changes them. The digest adds up bit patterns as integers,
    exactly and hence in any order: it takes a pass over the weights and no copy of them.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> before = weights_digest(layer)
        >>> layer.weight.data[0, 0] += 1
        >>> before == weights_digest(layer)
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(
            f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sum_of_bits(tensor)}".encode()
        )
    return digest.hexdigest()[:16]


def _sum_of_bits(tensor: Tensor) -> int:
    flat = tensor.detach().contiguous().flatten()
    if not flat.numel():
        return 0
    return int(flat.view(INTEGERS[flat.element_size()]).sum(dtype=torch.int64))


# --- Proteins of different length in one batch.


def pad_residues(proteins: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack residue embeddings, padded with zeros at the end, and say where residues are.

    Args:
        proteins: Embeddings, `(residues, hidden)` each.

    Returns:
        Embeddings `(batch, residues, hidden)` and residue mask `(batch, residues)`.

    Example:
        >>> pad_residues([torch.ones(2, 8), torch.ones(1, 8)])[1]
        tensor([[ True,  True],
                [ True, False]])
    """
    embeddings = pad_sequence(list(proteins), batch_first=True)
    lengths = torch.tensor([len(protein) for protein in proteins], device=embeddings.device)
    position = torch.arange(embeddings.shape[1], device=embeddings.device)
    return embeddings, position < lengths.unsqueeze(-1)


# --- What a model needs that may have no parameter at all.


class ParameterFree:
    """Tell dtype and device by buffers where a model has no parameters.

    transformers asks the parameters, and fails where there are none. A frozen parameter is no way
    out: loading a checkpoint makes it trainable again.
    """

    parameters: Any
    buffers: Any

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating point tensor."""
        return next(tensor.dtype for tensor in self._tensors() if tensor.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return next(self._tensors()).device

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.parameters(), self.buffers())


# --- What the configuration of a model says of the language model that it stands on.


@strict
class OverLanguageModelConfig(PreTrainedConfig):
    """Say which language model feeds a model, and how wide its residue embeddings are.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.

    Raises:
        ValueError: If the language model has another width.
    """

    sub_configs = {"plm_config": AutoConfig}

    hidden_size: int = 1024
    plm_config: dict[str, Any] | PreTrainedConfig | None = None
    plm_name_or_path: str | None = None
    plm_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the language model's configuration and check its width."""
        if isinstance(self.plm_config, dict):
            self.plm_config = language_model_config(self.plm_config)
        if self.hidden_size <= 0:
            raise ValueError(f"hidden_size={self.hidden_size}; give a number above 0.")
        if self.plm_config is not None:
            self.check_width(self.plm_config)
        super().__post_init__(**kwargs)

    def check_width(self, plm_config: PreTrainedConfig) -> None:
        """Refuse a language model of another width than this model's.

        Raises:
            ValueError: If the widths differ.
        """
        if (width := width_of(plm_config)) != self.hidden_size:
            name = type(self).__name__
            raise ValueError(
                f"the language model ({plm_config.model_type}) gives residue embeddings of width "
                f"{width}, {name.removesuffix('Config')} takes hidden_size={self.hidden_size}; use "
                "the language model it was trained on, or make a new one with "
                f"{name}(hidden_size={width})."
            )


# --- The language models of transformers, as encoders with one vector a token.


ENCODERS_OF_TEXT = ("t5", "mt5", "umt5")
"""Model types whose AutoModel has a decoder as well; only their encoder is wanted."""

WITH_POOLER = ("bert", "esm")
"""Model types whose AutoModel adds a pooling layer, which nothing here reads."""


def language_model_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build the configuration of a language model from its fields; `model_type` says which.

    Raises:
        ValueError: If transformers does not know the model type.
    """
    model_type = str(fields.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"plm_config has model_type={model_type!r}, which transformers does not know; give the "
            "configuration of a backbone, for example EsmConfig(...) or "
            "AutoConfig.from_pretrained('facebook/esm2_t6_8M_UR50D')."
        )
    return CONFIG_MAPPING[model_type](**{k: v for k, v in fields.items() if k != "model_type"})


def build_language_model(config: Any) -> PreTrainedModel:
    """Build an untrained language model from its configuration."""
    if config.model_type in ENCODERS_OF_TEXT:
        return AutoModelForTextEncoding.from_config(config)
    return AutoModel.from_config(config, **_without_pooler(config))


def load_language_model(name_or_path: str, config: Any, **kwargs: Any) -> PreTrainedModel:
    """Load a pretrained language model, in float32 unless told otherwise.

    Args:
        name_or_path: Hub id or folder.
        config: Its configuration.
        **kwargs: For `from_pretrained`: revision, dtype, device_map, use_safetensors, ...

    Raises:
        WeightsError: If weights are missing, damaged or a pickle; see `load_weights`.
    """
    # transformers would take the file's dtype; ProtT5 is stored in half precision, in which T5
    # activations overflow.
    kwargs = {"dtype": torch.float32} | kwargs
    if config.model_type in ENCODERS_OF_TEXT:
        load: Any = AutoModelForTextEncoding.from_pretrained
    else:
        load, kwargs = AutoModel.from_pretrained, kwargs | _without_pooler(config)
    return load_weights(load, name_or_path, config=config, **kwargs)


def _without_pooler(config: Any) -> dict[str, bool]:
    return {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}


def width_of(config: PreTrainedConfig) -> int:
    """Return the width of the residue embeddings of an encoder.

    Raises:
        ValueError: If the configuration names no width.
    """
    for name in ("hidden_size", "d_model", "embed_dim"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    raise ValueError(
        f"{type(config).__name__} names no width (hidden_size, d_model or embed_dim); "
        "is it the configuration of an encoder?"
    )


# --- A model that stands on a language model: TM-Vec, ProtSSN.


class OverLanguageModel(SafeWeights):
    """Take residue embeddings, or token ids through the language model underneath."""

    main_input_name = "input_ids"
    _supports_sdpa = True
    trained_on = ""  # id of the language model to name in an error message

    language_model: Any

    def __init__(self, config: Any) -> None:
        """Build the language model, if the configuration has one."""
        super().__init__(config)
        under = config.plm_config
        self.language_model = None if under is None else build_language_model(under)

    def attach_language_model(
        self, language_model: PreTrainedModel, name: str | None = None, revision: str | None = None
    ) -> Self:
        """Put a language model under this one, so that it takes token ids.

        Args:
            language_model: An encoder with one vector a token.
            name: Its Hub id or folder; kept in the configuration.
            revision: Which revision of it; None keeps what the configuration says of that name.

        Raises:
            ValueError: If it has another width.
        """
        self.config.check_width(language_model.config)
        self.language_model, self.config.plm_config = language_model, language_model.config
        name = name or getattr(language_model.config, "name_or_path", None) or None
        if revision is not None or name != self.config.plm_name_or_path:
            self.config.plm_name_or_path, self.config.plm_revision = name, revision
        return self

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        residue_mask: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return residue embeddings and residue mask, run the language model where need be.

        Args:
            input_ids: `(batch, tokens)`, for the language model, with its special tokens.
            attention_mask: `(batch, tokens)`, what the language model attends to; None is all.
            residue_mask: `(batch, tokens)` or `(batch, residues)`, True at residues and never at
                special tokens or padding; None takes attention_mask.
            inputs_embeds: `(batch, residues, hidden)`, residue embeddings of the language model.

        Raises:
            ValueError: If proteins are given not at all or twice, as token ids without a language
                model to read them, or in shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "give proteins either as input_ids or as inputs_embeds"
                + ("; neither is here." if input_ids is None else ", not as both.")
            )
        if inputs_embeds is None:
            self._check_language_model()
            output = self.language_model(input_ids=input_ids, attention_mask=attention_mask)
            inputs_embeds = output.last_hidden_state
        mask = attention_mask if residue_mask is None else residue_mask
        if mask is None:
            mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)
        self._check_shapes(inputs_embeds, mask)
        return inputs_embeds, mask.bool()

    def _check_language_model(self) -> None:
        if self.language_model is None:
            name = self.config.plm_name_or_path or self.trained_on
            raise ValueError(
                f"this {type(self).__name__} has no language model under it and takes no "
                f"input_ids; pass inputs_embeds, residue embeddings of {name!r}, or attach it: "
                f"model.attach_language_model(plasma_hf.load_backbone({name!r}).model)."
            )

    def _check_shapes(self, embeddings: Tensor, mask: Tensor) -> None:
        width = self.config.hidden_size
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise ValueError(
                f"inputs_embeds has shape {tuple(embeddings.shape)}; give (batch, residues, "
                f"{width}), from the language model that {type(self).__name__} was trained on."
            )
        if mask.shape != embeddings.shape[:2]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}; give {tuple(embeddings.shape[:2])}, "
                "True (or 1) at residues."
            )


# --- A backbone ready for use: proteins in, residue embeddings out, one row a residue.


STANDING_ON_ANOTHER = ("tmvec", "protssn")
"""Model types that run a language model first, and then look at its residues alone."""


class Piece(NamedTuple):
    """A stretch of a protein that is embedded at once, and the rows of it that are kept."""

    protein: int
    start: int
    end: int
    keep_start: int
    keep_end: int


class Backbone:
    """A language model and the recipe of its input.

    A protein longer than `recipe.max_residues` is embedded in windows of that length, each of
    which overlaps the next by a quarter at least; a residue takes its embedding from the window in
    which it is further from the border. Nothing is cut off.

    Args:
        model: An encoder with one vector a token.
        processor: Its tokenizer and recipe.
        name: Its id on the Hub, or its folder.
        revision: Commit of it.
        digest: `weights_digest` of the model as it was loaded under this name; None if its weights
            are not known to be those.

    Example:
        >>> import plasma_hf
        >>> backbone = plasma_hf.load_backbone("substitution")
        >>> [tuple(rows.shape) for rows in backbone.embed(["MKVLA", "ac"])]
        [(5, 420), (2, 420)]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: PlasmaProcessor,
        name: str | None = None,
        revision: str | None = None,
        digest: str | None = None,
    ) -> None:
        """Put model and processor together; the model is made to infer."""
        self.model, self.processor = model.eval(), processor
        self.name = name or model.config.name_or_path or type(model).__name__
        self.revision, self.digest = revision, digest

    @property
    def recipe(self) -> Recipe:
        """How sequences are written for the model."""
        return self.processor.recipe

    @property
    def hidden_size(self) -> int:
        """Numbers in a residue embedding."""
        return width_of(self.model.config)

    @property
    def identity(self) -> dict[str, str]:
        """What an embedding depends on: the model, its weights, and the recipe of its input."""
        # A folder may move; the digest of the weights stays.
        name = Path(self.name).name if Path(self.name).is_dir() else self.name
        return {
            "backbone": name,
            "revision": self.revision or "",
            "recipe": self.recipe.name,
            "max_residues": str(self.recipe.max_residues or "any"),
            "weights": weights_digest(self.model),
        }

    @torch.no_grad()
    def embed(
        self, proteins: Sequence[str | Path | Protein], residues_per_batch: int = 8192
    ) -> list[Tensor]:
        """Embed proteins, in batches of like length.

        Args:
            proteins: Sequences; for a model that reads structures, paths to PDB or mmCIF.
            residues_per_batch: Padded residues computed together. It changes results in the last
                bits of a float at most.

        Returns:
            Residue embeddings `(residues, hidden)` each, float32, on the CPU.

        Raises:
            ValueError: If a protein is unusable, or its embeddings are not finite.
        """
        read = [self.processor.read(p, f"protein {i}") for i, p in enumerate(proteins)]
        rows: list[list[Tensor]] = [[] for _ in read]
        pieces = list(self._pieces(read))
        for batch in _batches(pieces, residues_per_batch):
            parts = [_cut(read[piece.protein], piece) for piece in batch]
            for piece, hidden in zip(batch, self._embed_batch(parts), strict=True):
                kept = hidden[piece.keep_start - piece.start : piece.keep_end - piece.start]
                rows[piece.protein].append(kept.float().cpu())
        embedded = [torch.cat(parts) for parts in rows]
        for protein, embeddings in zip(read, embedded, strict=True):
            self._check(protein, embeddings)
        return embedded

    def _pieces(self, proteins: list[Protein]) -> Iterator[Piece]:
        limit = None if self.recipe.reads_structures else self.recipe.max_residues
        for i, protein in enumerate(proteins):
            for window in windows(len(protein.sequence or ""), limit):
                yield Piece(i, *window)

    def _embed_batch(self, proteins: list[Protein]) -> list[Tensor]:
        encoded = self.processor.encode(proteins)
        on_device = {name: tensor.to(self.model.device) for name, tensor in encoded.items()}
        mask = on_device.pop("mask")
        return residue_embeddings(self.model, residue_mask=mask, **on_device)

    def _check(self, protein: Protein, embeddings: Tensor) -> None:
        if len(embeddings) != len(protein.sequence or ""):
            raise ValueError(
                f"{self.name} gives {len(embeddings)} rows for {protein.id} of "
                f"{len(protein.sequence or '')} residues; a backbone gives one a residue."
            )
        if not torch.stack(embeddings.aminmax()).isfinite().all():  # NaN is both, and it is fast
            raise ValueError(
                f"{self.name} gives NaN or infinite embeddings for {protein.id}; it runs in "
                f"{self.model.dtype}: load it with dtype=torch.float32."
            )


def windows(length: int, limit: int | None) -> list[tuple[int, int, int, int]]:
    """Cut a protein into overlapping windows and say which rows each of them gives.

    Args:
        length: Residues of the protein.
        limit: Residues of a window; None for one window over everything.

    Returns:
        `(start, end, keep_start, keep_end)` each, 0-based with exclusive ends. Neighbours overlap
        by `limit // 4` residues or more and share the overlap half and half.

    Example:
        >>> windows(10, 8)
        [(0, 8, 0, 5), (2, 10, 5, 10)]
    """
    if limit is None or length <= limit:
        return [(0, length, 0, length)]
    step = limit - limit // 4
    count = -(-(length - limit) // step) + 1
    # Spread evenly, so that the last window overlaps no more than the others.
    starts = [round(i * (length - limit) / (count - 1)) for i in range(count)]
    cuts = [0]
    cuts += [(b + a + limit) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    cuts += [length]
    return [(s, s + limit, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


def residue_embeddings(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    residue_mask: Tensor | None = None,
    backbone_atoms: Tensor | None = None,
) -> list[Tensor]:
    """Run a backbone and keep the residues alone.

    Args:
        model: An encoder with one vector a token.
        input_ids: `(batch, tokens)`.
        attention_mask: True at every token that is no padding; None if there is none.
        residue_mask: True at tokens that are residues; None if all attended ones are.
        backbone_atoms: Coordinates of N, CA and C in Å, `(batch, residues, 3, 3)`, for a model
            that reads structures.

    Returns:
        Embeddings `(residues, hidden)` each.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if residue_mask is None:
        residue_mask = attention_mask
    # Models that stand on another look at residues alone, and one of them at atoms as well.
    further: dict[str, Tensor] = {}
    if model.config.model_type in STANDING_ON_ANOTHER:
        further["residue_mask"] = residue_mask.bool()
    if backbone_atoms is not None:
        further["backbone_atoms"] = backbone_atoms
    output = model(input_ids=input_ids, attention_mask=attention_mask, **further)
    hidden = output.last_hidden_state
    return [row[kept] for row, kept in zip(hidden, residue_mask.bool(), strict=True)]


def _batches(pieces: list[Piece], residues_per_batch: int) -> Iterator[list[Piece]]:
    """Yield pieces of like length, as many as the padded batch allows, longest first."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start - piece.end):
        longest = batch[0].end - batch[0].start if batch else 0
        if batch and (len(batch) + 1) * longest > residues_per_batch:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _cut(protein: Protein, piece: Piece) -> Protein:
    if piece.end - piece.start == len(protein):
        return protein
    return Protein(protein.id, (protein.sequence or "")[piece.start : piece.end])
