"""The published backbones by name, and how to load any: from the Hub, a folder, authors' files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging

from .models.modeling_backbone import Backbone, fetch
from .models.modeling_protssn import ProtSSNModel
from .models.modeling_tmvec import TMVecModel
from .models.processing_plasma import ESM2, INPUT_FORMATS, PROST_T5, PROT_T5, InputFormat

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class KnownBackbone:
    """What is known of a published backbone."""

    model_id: str | None  # on the Hub; None where it is published elsewhere
    family: str  # first part of the names of its input formats
    width: int
    licence: str
    files: str = ""  # what to do where there is no id

    @property
    def forms(self) -> tuple[str, ...]:
        """Return the forms its input formats come in."""
        names = (name.split("/") for name in INPUT_FORMATS)
        return tuple(form for family, form in names if family == self.family)


TM_VEC_FILES = (
    "download the checkpoint (.ckpt) and its params (.json) that the TM-Vec authors publish "
    "(figshare files 46296322 and 46296310) into one folder and give the path of that folder"
)
NON_COMMERCIAL = "CC-BY-NC-SA-4.0"
PROTSSN_FILE = "protssn_k20_h512.pt"

BACKBONES = {
    "esm2_t6_8M_UR50D": KnownBackbone("facebook/esm2_t6_8M_UR50D", "esm2", 320, "MIT"),
    "esm2_t12_35M_UR50D": KnownBackbone("facebook/esm2_t12_35M_UR50D", "esm2", 480, "MIT"),
    "esm2_t30_150M_UR50D": KnownBackbone("facebook/esm2_t30_150M_UR50D", "esm2", 640, "MIT"),
    "esm2_t33_650M_UR50D": KnownBackbone(ESM2, "esm2", 1280, "MIT"),
    "esm2_t36_3B_UR50D": KnownBackbone("facebook/esm2_t36_3B_UR50D", "esm2", 2560, "MIT"),
    "esm2_t48_15B_UR50D": KnownBackbone("facebook/esm2_t48_15B_UR50D", "esm2", 5120, "MIT"),
    "prot_bert": KnownBackbone("Rostlab/prot_bert", "prot_bert", 1024, "AFL-3.0"),
    "prot_t5_xl_half_uniref50-enc": KnownBackbone(PROT_T5, "prot_t5", 1024, "AFL-3.0"),
    "ProstT5": KnownBackbone(PROST_T5, "prost_t5", 1024, "MIT"),
    "ProstT5_fp16": KnownBackbone("Rostlab/ProstT5_fp16", "prost_t5", 1024, "MIT"),
    "ankh-base": KnownBackbone("ElnaggarLab/ankh-base", "ankh", 768, NON_COMMERCIAL),
    "ankh-large": KnownBackbone("ElnaggarLab/ankh-large", "ankh", 1536, NON_COMMERCIAL),
    "ESMC-300M": KnownBackbone("biohub/ESMC-300M", "esmc", 960, "see its card"),
    "ESMC-600M": KnownBackbone("biohub/ESMC-600M", "esmc", 1152, "see its card"),
    "ESMC-6B": KnownBackbone("biohub/ESMC-6B", "esmc", 2560, "MIT and third-party notices"),
    "TM-Vec": KnownBackbone(None, "tm_vec", 1024, "BSD-3-Clause", TM_VEC_FILES),
    "ProtSSN": KnownBackbone("tyang816/ProtSSN", "protssn", 1280, "MIT"),
}
"""The published backbones, by the last part of their id; seven of them have released heads."""


def find_backbone(name_or_path: str | PurePath) -> KnownBackbone | None:
    """Return what is known of a backbone, by the last part of its id or path."""
    return BACKBONES.get(PurePath(name_or_path).name)


def find_input_format(name_or_path: str, input_format: str | None = None) -> InputFormat | None:
    """Return the input format of a backbone, None where its tokenizer or the model decides."""
    known = find_backbone(name_or_path)
    if known is None and input_format is None:
        return None
    name, forms = input_format or "native", known.forms if known is not None else ()
    if known is not None and name in forms:
        name = f"{known.family}/{name}"
    return InputFormat.named(name, name_or_path, forms)


def load_backbone(
    name_or_path: str | Path,
    input_format: str | InputFormat | None = None,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    max_residues: int | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
) -> Backbone:
    """Load a protein language model with the format of its input.

    Args:
        name_or_path: A name of `BACKBONES`, a Hub id, a local folder, or "substitution" for the
            encoder without weights. For TM-Vec and ProtSSN also a folder with the files that their
            authors publish.
        input_format: "native" (default) or "upstream" for a named backbone, a name of
            `INPUT_FORMATS`, an `InputFormat`, or "generic"; other backbones get one worked out
            from their tokenizer.
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
        ValueError: If it does not give one vector per residue.

    Example:
        >>> load_backbone("substitution").embed(["MKVLA"])[0].shape
        torch.Size([5, 420])
    """
    name = str(name_or_path)
    known = find_backbone(name)
    if known is not None and known.licence == NON_COMMERCIAL:
        logger.warning_once(f"{name}: its licence, {known.licence}, allows no commercial use.")
    wanted = input_format
    if not isinstance(wanted, InputFormat) and name != "substitution":
        wanted = find_input_format(name, wanted)
    if known is not None and not Path(name).is_dir() and "/" not in name:
        if known.model_id is None:
            raise OSError(f"{name} is no folder here, and is not on the Hub: {known.files}.")
        name = known.model_id
    model = None
    published = isinstance(wanted, InputFormat) and wanted.language_model
    if published and not (Path(name) / "config.json").exists():
        model = fetch(_load_published, name, revision, input_format=wanted).to(dtype)
    return Backbone.from_pretrained(
        name,
        wanted,
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        max_residues=max_residues,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )


def _load_published(source: str, revision: str | None, input_format: InputFormat) -> Any:
    """Load TM-Vec or ProtSSN from the files of their authors."""
    folder: str | Path = source
    if not Path(source).is_dir():
        pattern = f"*{PROTSSN_FILE}"
        folder = snapshot_download(source, revision=revision, allow_patterns=pattern)
    if input_format.k_neighbors:
        return ProtSSNModel.from_upstream(_only(folder, "*.pt"), input_format.k_neighbors)
    return TMVecModel.from_upstream(_only(folder, "*.ckpt"), _only(folder, "*.json"))


def _only(folder: str | Path, pattern: str) -> Path:
    files = sorted(Path(folder).rglob(pattern))
    if len(files) != 1:
        raise ValueError(
            f"{folder} has {len(files)} files {pattern}, and needs exactly one: "
            f"{', '.join(file.name for file in files) or 'none is there'}."
        )
    return files[0]
