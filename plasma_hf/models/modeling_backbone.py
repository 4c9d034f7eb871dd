"""Backbones: load language models safely, embed proteins, put a head on them; the default one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, BatchFeature, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.hub import extract_commit_hash, has_file

from .processing_plasma import INPUT_FORMATS, PUBLISHERS, InputFormat, PlasmaProcessor
from .protein import LETTER_RULES, RESIDUE_LETTERS, STANDARD_RESIDUES, Protein

ALLOW_PICKLE = "PLASMA_HF_ALLOW_PICKLE"  # variable; with 1, weights in a pickle alone are read
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
PADDED_RESIDUES = 8192  # computed together; how many changes last bits at most


class WeightsError(OSError):
    """Weights that are missing, damaged or a pickle; the message has the file and the remedy."""


class SafeWeights(PreTrainedModel):
    """A model that is read from safetensors and knows which commit of the Hub it came from."""

    source_revision: str | None = None  # None for a folder, and for what was never loaded
    _no_split_modules: list[str] = []
    _supports_sdpa = True  # one without attention meets any request for a kind of it

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a saved model as `PreTrainedModel` does; pickles with `use_safetensors=False`."""
        loaded = _load_safely(super().from_pretrained, name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.source_revision = _commit_of(model.config._name_or_path or name_or_path, kwargs)
        return loaded

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating point tensor; that may be a buffer, unlike elsewhere."""
        tensors = chain(self.parameters(), self.buffers())
        return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the first tensor, parameter or buffer."""
        return next(chain(self.parameters(), self.buffers())).device


def _load_safely(load: Any, name: Any, *args: Any, **options: Any) -> Any:
    """Call a `from_pretrained` so that it reads safetensors alone, or raises a `WeightsError`."""
    safe = options.get("use_safetensors")
    if safe is None and os.environ.get(ALLOW_PICKLE) != "1":
        safe = True
    try:
        return load(name, *args, **options | {"use_safetensors": safe})
    except Exception as error:  # what a reader makes of a damaged file may be of any kind
        told = safe is False or isinstance(error, WeightsError)
        if told or not (reason := _what_is_wrong(name, options)):
            raise
        raise WeightsError(reason) from error


def _what_is_wrong(name: Any, options: dict[str, Any]) -> str | None:
    folder, local = folder_of(name, options), os.path.isdir(name or "")
    if folder is None:  # transformers says what was never downloaded
        gone = f"{name} is not a folder here; give a folder, or an id on the Hub, org/name."
        return gone if Path(name or "").is_absolute() else None
    remedy = f"while online, type: {download_command(name, options.get('revision'))}"
    remedy = "copy it again, or save the model to it again" if local else remedy
    files = weight_files(folder)
    for file in files:
        if file.is_file() and not is_whole(file):
            told = f"{file.name} of {name} is cut short or damaged ({file}, {file.stat().st_size}"
            return f"{told} bytes); {remedy}{'' if local else ' --force-download'}."
    missing = [file.name for file in files if not file.is_file()]
    if WEIGHTS in missing and (refusal := _pickle_refusal(name, WEIGHTS, options)):
        return refusal
    where = "" if local else " here: its download was not finished, or the Hub does not have it"
    more = f" and {len(missing) - 3} more" if missing[3:] else ""
    return f"{name} has no {', '.join(missing[:3])}{more}{where}; {remedy}." if missing else None


def _pickle_refusal(name: Any, wanted: str, options: dict[str, Any]) -> str | None:
    """Say why weights are not read if they are a pickle and not the `wanted` file, else None."""
    known = {k: v for k, v in options.items() if k in ("revision", "token", "cache_dir") and v}
    pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    how = f"pass use_safetensors=False (or set {ALLOW_PICKLE}=1)"
    if wanted == ADAPTER:
        call = f"model.load_adapter({str(name)!r}, use_safetensors=False)"
        how, pickles = f"load its base and type {call}", ["adapter_model.bin"]
    there = []
    for file in (wanted, *pickles):
        with suppress(OSError, ValueError):
            if has_file(str(name), str(Path(options.get("subfolder") or "", file)), **known):
                there.append(file)
    if not there or there[0] == wanted:
        return None
    return (
        f"{name} has its weights as {there[0]} alone, a pickle, which may run code when it is "
        f"read, and {wanted} is what is read here. If you trust where it comes from, {how}: it is "
        "then read with torch.load(weights_only=True), and save_pretrained writes safetensors."
    )


def folder_of(name: Any, options: dict[str, Any], file: str = "config.json") -> Path | None:
    """Return a model's folder, here or in the cache of the Hub, where it has that `file`."""
    inside = options.get("subfolder") or ""
    if os.path.isdir(name or ""):
        return Path(name, inside)
    place = {key: options.get(key) for key in ("cache_dir", "revision")}
    with suppress(HFValidationError, TypeError):  # a path that does not exist, or None
        found = try_to_load_from_cache(str(name), str(Path(inside, file)), **place)
        return Path(found).parent if isinstance(found, str) else None
    return None


def _commit_of(name: Any, options: dict[str, Any]) -> str | None:
    """Return the commit that the cache of the Hub has of a model, None for a folder."""
    folder = None if os.path.isdir(name or "") else folder_of(name, options)
    return extract_commit_hash(str(folder / "config.json"), None) if folder else None


def weight_files(folder: Path) -> list[Path]:
    """List what a model needs: configuration, index of the weights if there is one, weights."""
    names, index = [WEIGHTS], folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        names = [index.name]
        with suppress(ValueError):
            names += sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    return [folder / name for name in ("config.json", *names)]


def is_whole(file: Path) -> bool:
    """Tell a whole safetensors or JSON file from one that is cut short or something else."""
    try:
        if file.suffix == ".json":
            return isinstance(json.loads(file.read_text("utf-8")), dict)
        with safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError, ValueError):
        return False
    return True


def download_command(name: Any, revision: str | None) -> str:
    """Return the command that gets a whole repository of the Hub."""
    return f"hf download {name}{f' --revision {revision}' if revision else ''}"


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that depend on every weight of a module, none copied."""
    # Integers add up exactly, hence in any order.
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        bits = tensor.detach().contiguous().flatten()
        bits = bits.view(integers[tensor.element_size()]) if tensor.numel() else bits
        total = int(bits.sum(dtype=torch.int64))
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {total}".encode())
    return digest.hexdigest()[:16]


def pad_residues(proteins: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack residue embeddings `(residues, hidden)`, padded with zeros, and mask the residues."""
    embeddings = pad_sequence(list(proteins), batch_first=True)
    lengths = torch.tensor([len(protein) for protein in proteins], device=embeddings.device)
    position = torch.arange(embeddings.shape[1], device=embeddings.device)
    return embeddings, position < lengths.unsqueeze(-1)


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads OpenMP waits for
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def free_memory() -> float:
    """Return the bytes that Linux has for a process, or for its container; elsewhere no limit."""
    found = [math.inf]
    for file, unit in (("/proc/meminfo", 1024), ("/sys/fs/cgroup/memory.max", 1)):
        with suppress(OSError):
            told = re.search(r"(?:MemAvailable: +|^)(\d+)", Path(file).read_text())
            found += [unit * int(told[1])] if told else []
    return min(found)


def residue_mask(side: str, embeddings: Any, mask: Tensor | None, width: int | None) -> Tensor:
    """Return the mask of a side, all True if it has none; refuse shapes that do not fit."""
    shape, wanted = tuple(embeddings.shape), width or "hidden"
    if len(shape) != 3 or width not in (None, shape[2]) or not embeddings.is_floating_point():
        raise ValueError(
            f"{side}_embeddings is {embeddings.dtype} of shape {shape}; give floating point "
            f"numbers of shape (batch, residues, {wanted}), of the encoder the model was made for."
        )
    if mask is None:
        return torch.ones(shape[:2], dtype=torch.bool, device=embeddings.device)
    if mask.shape != shape[:2]:
        raise ValueError(
            f"{side}_mask has shape {tuple(mask.shape)}; give {shape[:2]}, True at residues."
        )
    return mask.bool()


LARGEST = 1e12  # embeddings beyond it overflow when they are squared and summed


def check_embeddings(embeddings: Tensor, name: str, mask: Tensor | None = None) -> None:
    """Refuse embeddings `(..., hidden)` that are NaN, infinite or beyond `LARGEST` at residues."""
    given = embeddings.detach()
    if not given.numel() or max(abs(float(end)) for end in given.aminmax()) < LARGEST:
        return
    wrong = ~(given.abs() < LARGEST).all(-1)  # NaN is not, either
    if (wrong := wrong if mask is None else wrong & mask).any():
        raise ValueError(
            f"{name} has NaN or infinite embeddings, or beyond {LARGEST:g}, at residue "
            f"{wrong.nonzero()[0].tolist()}; load a backbone with dtype=torch.float32."
        )


def check_settings(
    config: Any, above_0: Sequence[str], from_0: Sequence[str] = (), choices: dict | None = None
) -> None:
    """Refuse settings that are no choice, or no finite number above 0 or from 0; None may be."""
    for name, accepted in (choices or {}).items():
        if (value := getattr(config, name)) not in accepted:
            raise ValueError(f"{name}={value!r}; accepted are {', '.join(map(repr, accepted))}.")
    for name in (*above_0, *from_0):
        value, may_be_0 = getattr(config, name), name in from_0
        if value is not None and not (0 < value < math.inf or (value == 0 and may_be_0)):
            accepted = "0 or more" if may_be_0 else "a number above 0"
            raise ValueError(f"{name}={value}; give {accepted}.")


UNTRAINED = {"substitution": "substitution_window", "3di": "three_di"}
"""Encoders with nothing trained, by the names that load them: their types."""
OWN_BACKBONES: dict[str, Any] = {}  # those that are not of transformers; importing them adds them


def register_backbone(model_class: Any) -> Any:
    """Make an encoder known as a backbone, by the model type of its configuration."""
    OWN_BACKBONES[model_class.config_class.model_type] = model_class
    return model_class


def backbone_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build a backbone's configuration from its fields; `model_type` says which class."""
    fields = dict(fields)
    model_type = fields.pop("model_type", "")
    if model_type in OWN_BACKBONES:
        return OWN_BACKBONES[model_type].config_class(**fields)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"plm_config has model_type={model_type!r}, which transformers does not know; give the "
            "configuration of a backbone, for example EsmConfig(...)."
        )
    return transformers.CONFIG_MAPPING[model_type](**fields)


def build_backbone(config: Any) -> PreTrainedModel:
    """Build an untrained backbone from its configuration."""
    if config.model_type in OWN_BACKBONES:
        return OWN_BACKBONES[config.model_type](config)
    auto, options = _auto_class(config)
    return auto.from_config(config, **options)


def _auto_class(config: Any) -> tuple[Any, dict[str, bool]]:
    """Return the class that makes an encoder alone: no decoder, and no pooling layer."""
    if config.model_type in ("t5", "mt5", "umt5"):
        return transformers.AutoModelForTextEncoding, {}
    pooled = config.model_type in ("bert", "esm")
    return transformers.AutoModel, {"add_pooling_layer": False} if pooled else {}


def width_of(config: PreTrainedConfig) -> int:
    """Return the width of the residue embeddings of an encoder, as its configuration names it."""
    for name in ("hidden_size", "d_model", "embed_dim"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    raise ValueError(
        f"{type(config).__name__} names no width (hidden_size, d_model or embed_dim); "
        "is it the configuration of an encoder?"
    )


def _residue_embeddings(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    residue_mask: Tensor | None = None,
    backbone_atoms: Tensor | None = None,
) -> list[Tensor]:
    """Run a backbone on tokens and keep the residues alone, `(residues, hidden)` each."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    residues = (mask if residue_mask is None else residue_mask).bool()
    further = {"residue_mask": residues} if getattr(model, "reads_residue_mask", False) else {}
    if backbone_atoms is not None:
        further["backbone_atoms"] = backbone_atoms
    output = model(input_ids=input_ids, attention_mask=mask, **further)
    return [row[kept] for row, kept in zip(output.last_hidden_state, residues, strict=True)]


def windows(length: int, limit: int | None) -> list[tuple[int, int, int, int]]:
    """Cut a protein into overlapping windows `(start, end, keep_start, keep_end)`.

    Neighbours overlap by at least `limit // 4` and share the overlap half and half.

    Example:
        >>> windows(10, 8)
        [(0, 8, 0, 5), (2, 10, 5, 10)]
    """
    if limit is None or length <= limit:
        return [(0, length, 0, length)]
    count = -(-(length - limit) // (limit - limit // 4)) + 1
    # Spread evenly, so that the last window overlaps no more than the others.
    starts = [round(i * (length - limit) / (count - 1)) for i in range(count)]
    cuts = [0, *((a + b + limit) // 2 for a, b in zip(starts, starts[1:], strict=False)), length]
    return [(s, s + limit, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


@dataclass(eq=False)
class Backbone:
    """A language model and the processor that writes sequences for it: proteins in, embeddings out.

    A protein longer than `input_format.max_residues` is embedded in overlapping windows; a
    residue takes its embedding from the one in which it is further from the border.
    """

    model: Any  # an encoder with one vector per token
    processor: PlasmaProcessor
    name: str = ""  # id on the Hub, or folder
    revision: str | None = None
    digest: str | None = None  # `weights_digest` of what was loaded under this name

    def __post_init__(self) -> None:
        self.model.eval()
        self.name = self.name or self.model.config.name_or_path or type(self.model).__name__

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        input_format: InputFormat | str | None = None,
        *,
        model: Any = None,
        revision: str | None = None,
        device: str | torch.device | None = None,
        max_residues: int | None = None,
        **options: Any,
    ) -> Self:
        """Load by Hub id or folder, see `plasma_hf.load_backbone`; `model` is one loaded before."""
        if name in UNTRAINED:
            encoder = OWN_BACKBONES[UNTRAINED[name]]
            model = encoder(encoder.config_class()).to(device)
            processor = PlasmaProcessor(None, INPUT_FORMATS.get(f"{UNTRAINED[name]}/native"))
            return cls(model, processor, name, digest=weights_digest(model))
        if isinstance(input_format, str):
            family = input_format.split("/")[0]
            input_format = InputFormat.named(input_format, of=name)
            if family in PUBLISHERS and "/" not in name and not os.path.isdir(name):
                name = f"{PUBLISHERS[family]}/{name}"  # a released head has the last part alone
        model = model or fetch(load_encoder, name, revision, **options)
        # A branch moves; its commit is what the embeddings depend on.
        revision = _commit_of(name, {"revision": revision}) or revision
        words = (name, revision)
        if hasattr(model, "complete"):  # with the language model it stands on, and by its tokenizer
            words = model.complete(name, input_format, **options)
        tokenizer = fetch(_load_tokenizer, *words, **options)
        saved = getattr(model, "saved_format", f"{model.config.model_type}/native")  # as of ESM C
        processor = PlasmaProcessor(tokenizer, input_format or INPUT_FORMATS.get(saved))
        window = _window(model.config, processor, max_residues)
        processor.input_format = replace(processor.input_format, max_residues=window)
        return cls(model, processor, name, revision, weights_digest(model.to(device)))

    @property
    def input_format(self) -> InputFormat:
        """How sequences are written for the model."""
        return self.processor.input_format

    @property
    def hidden_size(self) -> int:
        """Numbers in a residue embedding."""
        return width_of(self.model.config)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What an embedding depends on: the model, its weights, and the format of its input."""
        name = Path(self.name).name if Path(self.name).is_dir() else self.name  # a folder may move
        return {
            "backbone": name,
            "revision": self.revision or "",
            "recipe": self.input_format.name,
            "max_residues": str(self.input_format.max_residues or "any"),
            "weights": weights_digest(self.model),
        }

    @torch.no_grad()
    def embed(self, proteins: Sequence[str | Path | Protein]) -> list[Tensor]:
        """Embed proteins, or paths of them, as `(residues, hidden)` each, float32 on the CPU."""
        read = [self.processor.read(p, f"protein {i}") for i, p in enumerate(proteins)]
        sequences = [protein.sequence or "" for protein in read]
        limit = None if self.input_format.reads_structures else self.input_format.max_residues
        pieces = [(i, *w) for i, s in enumerate(sequences) for w in windows(len(s), limit)]
        pieces.sort(key=lambda piece: piece[1] - piece[2])  # longest first
        rows: list[list[Tensor]] = [[] for _ in read]
        while pieces:
            count = max(1, PADDED_RESIDUES // (pieces[0][2] - pieces[0][1]))
            batch, pieces = pieces[:count], pieces[count:]
            cut = [
                read[i] if e - s == len(sequences[i]) else Protein(read[i].id, sequences[i][s:e])
                for i, s, e, *_ in batch
            ]
            encoded = BatchFeature(self.processor.encode(cut)).to(self.model.device)
            mask = encoded.pop("mask")
            embedded = _residue_embeddings(self.model, residue_mask=mask, **encoded)
            for (i, start, _, first, last), hidden in zip(batch, embedded, strict=True):
                rows[i].append(hidden[first - start : last - start].float().cpu())
        return [self._checked(p, torch.cat(parts)) for p, parts in zip(read, rows, strict=True)]

    def _checked(self, protein: Protein, embeddings: Tensor) -> Tensor:
        residues = len(protein.sequence or "")
        if len(embeddings) != residues:
            raise ValueError(
                f"{self.name} gives {len(embeddings)} rows for {protein.id} of {residues} "
                "residues; a backbone gives one per residue."
            )
        check_embeddings(embeddings, f"{protein.id}, by {self.name} in {self.model.dtype},")
        return embeddings


def fetch(load: Callable[..., Any], source: str, revision: str | None, **options: Any) -> Any:
    """Load a part of a backbone; an `OSError` says what to download where it is missing."""
    try:
        return load(source, revision=revision, **options)
    except WeightsError as error:
        raise WeightsError(f"the backbone {source}: {error}") from error
    except OSError as error:
        raise OSError(
            f"the backbone {source} is no folder here, is not in the cache of the Hub and cannot "
            f"be fetched. While online, type: {download_command(source, revision)}. "
            f"What the loader says: {error}"
        ) from error


def load_encoder(
    source: str,
    revision: str | None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,  # not that of the file: T5 overflows in half precision
    use_safetensors: bool | None = None,
) -> Any:
    """Load the model of a backbone: one of our own, or the encoder of one of transformers."""
    model_type = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    weights = {"revision": revision, "dtype": dtype, "use_safetensors": use_safetensors}
    if model_type in OWN_BACKBONES:
        return OWN_BACKBONES[model_type].from_pretrained(source, **weights)
    if model_type == "plasma":
        raise ValueError(
            f"{source} is a PLASMA model, not a backbone; load it with "
            "AutoModel.from_pretrained, or give the id of its backbone."
        )
    remote = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, revision=revision, **remote)
    auto, encoder = _auto_class(config)
    return _load_safely(auto.from_pretrained, source, config=config, **weights, **remote, **encoder)


def _load_tokenizer(
    source: str, revision: str | None, trust_remote_code: bool = False, **_: Any
) -> Any:
    model_type = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    # transformers rebuilds any T5 tokenizer with the text splitting of T5, which puts an unknown
    # token in front of every residue of Ankh; read as plain data, the file says what it means.
    options: dict[str, Any] = {"revision": revision}
    if model_type == "t5" and has_file(source, "tokenizer.json", revision):
        return transformers.PreTrainedTokenizerFast.from_pretrained(source, **options)
    options["trust_remote_code"] = trust_remote_code
    return transformers.AutoTokenizer.from_pretrained(source, **options)


def _window(config: Any, processor: PlasmaProcessor, max_residues: int | None) -> int | None:
    """Return how many residues are embedded at once, None for any number."""
    tokenizer, form = processor.tokenizer, processor.input_format
    limits = [max_residues, form.max_residues]
    # Types that look positions up in a table, and whether they count on from the padding token.
    tables = {"bert": 0, "electra": 0, "albert": 0, "esm": 1, "roberta": 1}
    kind = getattr(config, "position_embedding_type", "absolute")
    if config.model_type in tables and kind == "absolute":
        first = tables[config.model_type] * ((config.pad_token_id or 0) + 1)
        limits.append(int(config.max_position_embeddings) - first - 2)  # two special tokens
    tokens = int(tokenizer.model_max_length)
    if form.name == "generic" and tokens < 10**6:  # many tokenizers state an absurd limit
        limits.append(tokens - tokenizer.num_special_tokens_to_add())
    return min(filter(None, limits), default=None)


def from_package(module: str, what: str) -> Any:
    """Import a module of the package, whose tools do not travel with a saved model."""
    try:
        return import_module(f"plasma_hf.{module}")
    except ImportError as error:
        raise ImportError(f"{what} by the package: pip install plasma-hf.") from error


IN_PACKAGE = __name__.startswith("plasma_hf.")  # or a copy on its own


@strict
class HeadConfig(PreTrainedConfig):
    """Say which backbone a head stands on, and what pipeline a saved folder offers.

    Args:
        plm_config: The backbone's configuration, or its fields, or None for ready embeddings.
        plm_name_or_path: Where the backbone's weights come from.
        plm_revision: Which revision of them.
        plm_recipe: How sequences are written for the backbone, a name of `INPUT_FORMATS`.
        backbone_saved: Whether a saved model has the backbone's weights as well.
    """

    sub_configs = {"plm_config": AutoConfig}
    pipelines: ClassVar[dict[str, Any]] = {}  # for `pipeline(...)` without this package

    plm_config: dict[str, Any] | PreTrainedConfig | None = None
    plm_name_or_path: str | None = None
    plm_revision: str | None = None
    plm_recipe: str | None = None
    backbone_saved: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        custom_pipelines = kwargs.pop("custom_pipelines", self.pipelines)
        if isinstance(self.plm_config, dict):
            self.plm_config = backbone_config(self.plm_config)
        config: Any = self
        if self.plm_config is not None:
            config.embedding_size = width_of(self.plm_config)
        self._check_settings()
        super().__post_init__(**kwargs)
        # As remote code, the folder's own pipeline is the one to use; installed, the package's.
        if __name__.startswith("transformers_modules"):
            self.custom_pipelines = custom_pipelines

    def _check_settings(self) -> None:
        """Refuse what makes no sense, and fill in what depends on other settings."""

    def to_dict(self) -> dict[str, Any]:
        """Return every field, and the pipelines that a saved folder offers."""
        return super().to_dict() | {"custom_pipelines": self.pipelines}


class PreTrainedHead(SafeWeights):
    """A head that stands on a backbone, and does not have to carry it along.

    Saved, it names its backbone by configuration, id, revision and input format, and is loaded
    with the backbone from there. Weights that are no longer those of the id are saved with it.
    """

    backbone: Any
    encoders: tuple[str, ...] = ("backbone",)  # attributes; frozen until something else is said
    takes_embeddings = "query_embeddings and candidate_embeddings"  # for an error message
    _fetched: Backbone | None = None  # the backbone as it came from its id
    _processor: Any = None  # what a derived class has made for the backbone

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: Any, *args: Any, load_backbone: bool = True, **kwargs: Any
    ) -> Any:
        """Load a saved model, and the backbone it stands on if that is not saved with it.

        With `load_backbone=False` the model takes embeddings alone; with `use_safetensors=False`
        pickles are read as well. All else is as for `PreTrainedModel`.
        """
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if load_backbone and model.backbone is None and model.config.plm_config is not None:
            model.load_backbone(use_safetensors=kwargs.get("use_safetensors"))
        for encoder in model._encoders():
            encoder.requires_grad_(False).eval()
        return loaded

    def _encoders(self) -> list[Any]:
        return [one for name in self.encoders if (one := getattr(self, name)) is not None]

    @property
    def processor(self) -> PlasmaProcessor | None:
        """The processor that came with the backbone, if the backbone came by itself."""
        return self._fetched.processor if self._fetched is not None else None

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen encoder goes on embedding as in inference."""
        super().train(mode)
        for encoder in self._encoders():
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def load_backbone(self, source: str | Path | None = None, **options: Any) -> PlasmaProcessor:
        """Load the backbone that the head was made for, and return its processor.

        It comes from a folder, `source`, or else by the id in the configuration. The options are
        those of `plasma_hf.load_backbone`: revision, trust_remote_code, ...
        """
        config, load = self.config, Backbone.from_pretrained
        name = config.plm_name_or_path
        if IN_PACKAGE:  # which knows what authors publish as well
            load = import_module("plasma_hf.backbones").load_backbone
        if source is None:
            if name is None:
                raise ValueError(
                    "this head does not say which backbone it was made for; give one: "
                    "model.load_backbone('facebook/esm2_t33_650M_UR50D')."
                )
            options["revision"] = options.get("revision") or config.plm_revision
        backbone = load(str(source or name), config.plm_recipe, device=self.device, **options)
        self.attach_backbone(backbone, name if source is not None else None)
        if source is not None:
            config.plm_name_or_path, config.plm_revision = str(source), backbone.revision
        return backbone.processor

    def attach_backbone(
        self, backbone: Backbone | PreTrainedModel, name: str | None = None
    ) -> Self:
        """Put a backbone under a head-only model, frozen, so that it takes token ids.

        It is what `load_backbone` gives, or an encoder with one vector per token; `name`, its Hub
        id or folder, is kept in the configuration.
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
        self.backbone, self._processor = encoder.requires_grad_(False).eval(), None
        config.plm_config, config.embedding_size = encoder.config, width
        config.plm_name_or_path = name or made_for
        if isinstance(backbone, Backbone):
            config.plm_recipe = backbone.input_format.name
            # Under another name the commit would be of another repository.
            config.plm_revision = backbone.revision if name == backbone.name else None
            self._fetched = backbone
        return self

    def embed(self, input_ids: Tensor, *further: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embed token ids, with attention and residue mask and atoms, as padded residues."""
        if self.backbone is None:
            raise ValueError(
                "this model is a head without a backbone and takes no token ids; pass "
                f"{self.takes_embeddings}, or put its backbone under it: model.load_backbone()."
            )
        return pad_residues(_residue_embeddings(self.backbone, input_ids, *further))

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter, of safetensors; the backbone that it may sit on first."""
        told = vars(kwargs["load_config"]) if kwargs.get("load_config") else {}
        name = peft_model_id or told.get("pretrained_model_name_or_path")
        options = told.get("download_kwargs", {}) | kwargs | (kwargs.get("adapter_kwargs") or {})
        safe = kwargs.get("use_safetensors", told.get("use_safetensors")) is not False
        # PEFT would take what it finds.
        if safe and name and (refusal := _pickle_refusal(name, ADAPTER, options)):
            raise WeightsError(refusal)
        if self.backbone is None and self.config.plm_config is not None:
            self.load_backbone()
        return super().load_adapter(peft_model_id, *args, **kwargs)

    def save_pretrained(
        self, save_directory: Any, *args: Any, save_backbone: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the model, by default with the backbone's weights unless its id has the same."""
        under, fetched = self.backbone, self._fetched and self._fetched.digest
        changed = under is not None and fetched != weights_digest(under)
        if save_backbone is False and changed:
            raise ValueError(
                f"the backbone's weights are not of {self.config.plm_name_or_path or 'any id'}; "
                "left out they would be lost: save with save_backbone=True."
            )
        keep = changed if save_backbone is None else save_backbone
        weights = [] if keep or under is None else under.state_dict()
        self._keys_to_ignore_on_save = {f"backbone.{name}" for name in weights}
        self.config.backbone_saved = keep and under is not None
        super().save_pretrained(save_directory, *args, **kwargs)
        if IN_PACKAGE:
            import_module("plasma_hf.hub.export").bring_code_of_backbone(self, save_directory)


# --- The default backbone: substitution windows, with nothing trained.


@strict
class SubstitutionConfig(PreTrainedConfig):
    """Configure the substitution encoder: a window of BLOSUM62 vectors, nothing trained.

    Args:
        window: Residues looked at on each side; the embedding has `20 * (2 * window + 1)` numbers.
        decay: Distance in residues at which a neighbour's vector is scaled by `exp(-1/2)`.
    """

    model_type = "substitution_window"

    window: int = 10
    decay: float | int = 7.0

    def __post_init__(self, **kwargs: object) -> None:
        check_settings(self, ("decay",), ("window",))
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a residue embedding."""
        return 20 * (2 * self.window + 1)


# Henikoff & Henikoff 1992, half-bits; the lower triangle, row by row, in the order of
# STANDARD_RESIDUES.
BLOSUM62 = """
4 -1 5 -2 0 6 -2 -2 1 6 0 -3 -3 -3 9 -1 1 0 0 -3 5 -1 0 0 2 -4 2 5 0 -2 0 -1 -3 -2 -2 6 -2 0 1 -1
-3 0 0 -2 8 -1 -3 -3 -3 -1 -3 -3 -4 -3 4 -1 -2 -3 -4 -1 -2 -3 -4 -3 2 4 -1 2 0 -1 -3 1 1 -2 -1 -3
-2 5 -1 -1 -2 -3 -1 0 -2 -3 -2 1 2 -1 5 -2 -3 -3 -3 -2 -3 -3 -3 -1 0 0 -3 0 6 -1 -2 -2 -1 -3 -1 -1
-2 -2 -3 -3 -1 -2 -4 7 1 -1 1 0 -1 0 0 0 -1 -2 -2 0 -1 -2 -1 4 0 -1 0 -1 -1 -1 -1 -2 -2 -1 -1 -1
-1 -2 -1 1 5 -3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1 1 -4 -3 -2 11 -2 -2 -2 -3 -2 -1 -2 -3 2 -1 -1
-2 -1 3 -3 -2 -2 2 7 0 -3 -3 -3 -1 -2 -2 -3 -3 3 1 -2 1 -1 -2 -2 0 -3 -1 4
"""


def residue_vectors() -> np.ndarray:
    """Return one vector per token, `(27 tokens, 20)`: `<pad>` (zeros), then the letters A-Z.

    For the vectors X of the twenty residues `X @ X.T` is BLOSUM62 with its negative eigenvalues
    set to 0; the other letters are means over what they may stand for.
    """
    scores = np.zeros((20, 20))
    scores[np.tril_indices(20)] = [float(score) for score in BLOSUM62.split()]
    values, axes = np.linalg.eigh(scores)  # which reads the lower triangle alone
    vectors = axes * np.sqrt(np.clip(values, 0, None))
    meanings = [LETTER_RULES.get(letter, letter) for letter in RESIDUE_LETTERS]
    means = [vectors[[STANDARD_RESIDUES.index(r) for r in each]].mean(0) for each in meanings]
    return np.stack([np.zeros(20), *means]).astype(np.float32)


SEE_LETTERS = ("substitution_window", "residue_encoder", "near", "three_di")
"""Types of encoders that see the letters around a residue."""


def vectors_of(sequence: str) -> Tensor:
    """Return the vector of each letter of a protein, `(residues, 20)`."""
    numbers = [1 + RESIDUE_LETTERS.index(letter) for letter in sequence]
    return torch.from_numpy(residue_vectors()[numbers])


def in_windows(vectors: Tensor, window: int = 10, decay: float = 7.0) -> Tensor:
    """Put a residue's neighbours beside it, `(..., residues, channels * (2 * window + 1))`.

    Args:
        vectors: `(..., residues, channels)`; beyond either end there is nothing, 0.
        window: Residues on each side.
        decay: Distance in residues at which a neighbour's vector is scaled by `exp(-1/2)`.
    """
    offsets = torch.arange(-window, window + 1, device=vectors.device)
    weights = torch.exp(-((offsets / decay) ** 2) / 2).to(vectors.dtype)
    padded = nn.functional.pad(vectors, (0, 0, window, window))
    around = padded.unfold(-2, 2 * window + 1, 1) * weights  # (..., residues, channels, offsets)
    return around.transpose(-2, -1).flatten(-2)


@register_backbone
class SubstitutionModel(SafeWeights):
    """Embed each residue by the BLOSUM62 vectors in a window around it.

    The embedding of residue i is the concatenation over offsets k = -window..window of the vector
    of residue i + k times `exp(-(k / decay)^2 / 2)`, zeros beyond either end. Nothing is trained.

    Example:
        >>> model = SubstitutionModel(SubstitutionConfig())
        >>> model(torch.tensor([[13, 11, 22]])).last_hidden_state.shape
        torch.Size([1, 3, 420])
    """

    config_class = SubstitutionConfig
    base_model_prefix = "substitution"
    main_input_name = "input_ids"

    vectors: Tensor

    def __init__(self, config: SubstitutionConfig) -> None:
        super().__init__(config)
        # Saved with the model, the vectors do not depend on the reader's linear algebra.
        self.register_buffer("vectors", torch.from_numpy(residue_vectors()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SubstitutionModel):
            init.copy_(module.vectors, torch.from_numpy(residue_vectors()))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)`, 0 at padding, as `(batch, residues, hidden)`."""
        vectors = self.vectors[input_ids]  # (batch, residues, 20)
        if attention_mask is not None:
            vectors = vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)
        hidden = in_windows(vectors, self.config.window, self.config.decay)
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)
