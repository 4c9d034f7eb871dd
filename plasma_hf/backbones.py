"""The published backbones by name, and how to load any: from the Hub, a folder, authors' files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from transformers.safetensors_conversion import previous_pr
from transformers.utils import logging

from . import DEFAULT_CHECKPOINT
from .models.configuration_plasma import PlasmaConfig
from .models.local_alignment import MOST_EVIDENCE, SEARCHING
from .models.modeling_backbone import (
    ALLOW_PICKLE,
    UNTRAINED,
    Backbone,
    download_command,
    fetch,
    folder_of,
    is_whole,
    weight_files,
)
from .models.modeling_plasma import Background, PlasmaModel
from .models.modeling_protssn import ProtSSNModel
from .models.modeling_tmvec import TMVecModel
from .models.processing_plasma import ESM2, INPUT_FORMATS, PROST_T5, PROT_T5, InputFormat

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class KnownBackbone:
    """What is known of a published backbone."""

    model_id: str | None  # on the Hub, or a bundled folder; None where it is published elsewhere
    family: str  # first part of the names of its input formats
    width: int
    licence: str
    size: str = ""  # of the download, "about" where it was worked out from the architecture
    short: str = ""  # name to type
    files: str = ""  # what to do where there is no id

    @property
    def forms(self) -> tuple[str, ...]:
        """Return the forms its input formats come in; none where the tokenizer decides."""
        names = (name.split("/") for name in INPUT_FORMATS)
        return tuple(form for family, form in names if family == self.family)


TM_VEC_FILES = (
    "download the checkpoint (.ckpt) and its params (.json) that the TM-Vec authors publish "
    "(figshare files 46296322 and 46296310) into one folder and give the path of that folder"
)
NON_COMMERCIAL = "CC-BY-NC-SA-4.0"
PROTSSN_FILE = "protssn_k20_h512.pt"
BUNDLED_NEAR = Path(__file__).parent / "checkpoints" / "near"


def _on_hub(model_id: str, *fields: Any) -> dict[str, KnownBackbone]:
    return {PurePath(model_id).name: KnownBackbone(model_id, *fields)}


BACKBONES = {
    "substitution": KnownBackbone("substitution", "substitution", 420, "MIT", "", "substitution"),
    "3di": KnownBackbone("3di", "three_di", 560, "MIT", "", "3di"),
    "near": KnownBackbone(str(BUNDLED_NEAR), "near", 256, "BSD-3-Clause", "", "near"),
    **_on_hub("facebook/esm2_t6_8M_UR50D", "esm2", 320, "MIT", "31 MB", "esm2-8m"),
    **_on_hub("facebook/esm2_t12_35M_UR50D", "esm2", 480, "MIT", "136 MB", "esm2-35m"),
    **_on_hub("facebook/esm2_t30_150M_UR50D", "esm2", 640, "MIT", "595 MB", "esm2-150m"),
    **_on_hub(ESM2, "esm2", 1280, "MIT", "2.6 GB", "esm2-650m"),
    **_on_hub("facebook/esm2_t36_3B_UR50D", "esm2", 2560, "MIT", "11.4 GB", "esm2-3b"),
    **_on_hub("facebook/esm2_t48_15B_UR50D", "esm2", 5120, "MIT", "about 61 GB"),
    **_on_hub("Rostlab/prot_bert", "prot_bert", 1024, "AFL-3.0", "about 1.7 GB", "protbert"),
    **_on_hub(PROT_T5, "prot_t5", 1024, "AFL-3.0", "2.4 GB", "prott5"),
    **_on_hub(PROST_T5, "prost_t5", 1024, "MIT", "11.3 GB"),
    **_on_hub("Rostlab/ProstT5_fp16", "prost_t5", 1024, "MIT", "5.6 GB", "prostt5"),
    **_on_hub("ElnaggarLab/ankh-base", "ankh", 768, NON_COMMERCIAL, "about 2.9 GB", "ankh"),
    **_on_hub("ElnaggarLab/ankh-large", "ankh", 1536, NON_COMMERCIAL, "about 7.5 GB"),
    **_on_hub("biohub/ESMC-300M", "esmc", 960, "see its card", "about 1.3 GB", "esmc-300m"),
    **_on_hub("biohub/ESMC-600M", "esmc", 1152, "see its card", "about 2.3 GB"),
    **_on_hub("biohub/ESMC-6B", "esmc", 2560, "MIT and third-party notices", "about 25 GB"),
    "TM-Vec": KnownBackbone(None, "tm_vec", 1024, "BSD-3-Clause", files=TM_VEC_FILES),
    **_on_hub("tyang816/ProtSSN", "protssn", 1280, "MIT"),
}
"""The published backbones, by the last part of their id; seven of them have released heads."""

SHORT_NAMES = {known.short: name for name, known in BACKBONES.items() if known.short}


def find_backbone(name_or_path: str | PurePath) -> KnownBackbone | None:
    """Return what is known of a backbone, by its short name or the last part of its id or path."""
    name = str(name_or_path)
    return BACKBONES.get(SHORT_NAMES.get(name, PurePath(name).name))


def find_input_format(name_or_path: str, input_format: str | None = None) -> InputFormat | None:
    """Return the input format of a backbone, None where its tokenizer or the model decides."""
    known = find_backbone(name_or_path)
    forms = known.forms if known is not None else ()
    if input_format is None and not forms:
        return None
    name = input_format or "native"
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
        name_or_path: A short name ("esm2-8m", "prott5", "near", ...), a name of `BACKBONES`, a Hub
            id, a local folder, or "substitution" or "3di" for encoders without weights. For TM-Vec
            and ProtSSN also a folder with the files that their authors publish. What is on the Hub
            is downloaded at first use, after its size and licence are logged.
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
    source, wanted, model = _source_of(name, known), input_format, None
    if not isinstance(wanted, InputFormat) and source not in UNTRAINED:
        wanted = find_input_format(name, wanted)
    published = isinstance(wanted, InputFormat) and wanted.language_model
    if published and not (Path(source) / "config.json").exists():
        model = fetch(_load_published, source, revision, input_format=wanted).to(dtype)
    folder = None
    pickled = use_safetensors is False or os.environ.get(ALLOW_PICKLE) == "1"
    if model is None and not pickled:
        folder = _downloaded(source, revision, known)
    backbone = Backbone.from_pretrained(
        str(folder or source),
        wanted,
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        max_residues=max_residues,
        trust_remote_code=trust_remote_code,
        use_safetensors=use_safetensors,
    )
    if folder is not None:
        backbone.name, backbone.revision = source, folder.name
    elif source == str(BUNDLED_NEAR):  # its weights go along with a saved head, its path does not
        backbone.name, backbone.digest = "near", None
    backbone.model.config.name_or_path = backbone.name
    return backbone


def load_aligner(
    name_or_path: str | Path, input_format: str | None = None, **options: Any
) -> PlasmaModel:
    """Load a backbone under the head without parameters, PLASMA-PF, as the default model reads it.

    What `plasma-hf calibrate` measured of the backbone goes along: without it a pair is its own
    background, and nothing has bits or p-values. Args and errors are those of `load_backbone`.

    Example:
        >>> model = load_aligner("near")
        >>> model.config.embedding_size, model.calibration is not None
        (256, True)
    """
    backbone = load_backbone(name_or_path, input_format, **options)
    for folder in (bundled_aligner(name_or_path), kept_head(backbone)):
        if folder.is_dir():
            model = PlasmaModel.from_pretrained(folder, load_backbone=False)
            return model.attach_backbone(backbone).to(backbone.model.device).eval()
    logger.warning_once(
        f"{name_or_path} is not calibrated, so that scores have no bits or p-values and residues "
        f"are read less well; once and for all: plasma-hf calibrate {name_or_path}"
    )
    return new_aligner(backbone)


def bundled_aligner(name: str | Path) -> Path:
    """Return the folder of the head over a backbone that comes calibrated, if one does."""
    return Path(DEFAULT_CHECKPOINT).parent / f"plasma_pf_{name}"


def new_aligner(backbone: Backbone) -> PlasmaModel:
    """Put a backbone under a head as the default's, which is not calibrated."""
    fields, _ = PlasmaConfig.get_config_dict(DEFAULT_CHECKPOINT)
    own = {name: value for name, value in fields.items() if not name.startswith("plm_")}
    model = PlasmaModel(PlasmaConfig(**own | {"embedding_size": None, "calibration": None}))
    return model.attach_backbone(backbone).to(backbone.model.device).eval()


def is_backbone(name: str) -> bool:
    """Tell whether a name is that of a backbone, and not of a model over one."""
    if find_backbone(name) is not None:
        return True
    try:
        fields, _ = PlasmaConfig.get_config_dict(name)
    except OSError:
        return False
    return fields.get("model_type") not in (None, "plasma", "protalign")


def kept_head(backbone: Backbone) -> Path:
    """Return the folder in which the calibrated head over a backbone is kept."""
    # By other settings p-values are others.
    settings = SEARCHING, MOST_EVIDENCE, Background.POWER, Background.LETTERS
    about = backbone.fingerprint, settings, list(Background(0).state_dict())
    words = json.dumps(about, sort_keys=True).encode()
    name = PurePath(backbone.name).name
    kept = Path(constants.HF_HOME, "plasma_hf", "calibrated")
    return kept / f"{name}-{hashlib.sha256(words).hexdigest()[:16]}"


# --- Where a backbone is: a folder, or a repository of the Hub, downloaded at first use.


def _source_of(name: str, known: KnownBackbone | None) -> str:
    """Return the Hub id or the folder that a name stands for."""
    if "/" in name or (name not in SHORT_NAMES and os.path.exists(name)):
        return name
    if known is None:
        near = get_close_matches(name, {*SHORT_NAMES, *BACKBONES}, n=2)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise OSError(
            f"{name} is neither a folder here nor the name of a backbone{meant}; give a Hub id, "
            f"org/name, the path of a folder, or one of {', '.join(SHORT_NAMES)}."
        )
    if known.model_id is None:
        raise OSError(f"{name} is no folder here, and is not on the Hub: {known.files}.")
    return known.model_id


def _downloaded(name: str, revision: str | None, known: KnownBackbone | None) -> Path | None:
    """Return where the cache has a repository whole, downloaded if need be, with safetensors.

    None is for a folder, and where the Hub refuses or has no safetensors: loading then says what is
    missing.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or os.path.exists(name):
        return None
    folder = _in_cache(name, revision)
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return folder
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        revision, files, licence = _on_offer(name, revision)
    except HfHubHTTPError:
        return None
    except Exception as error:  # of the HTTP client, which depends on the version of the library
        if folder is not None:
            return None
        raise OSError(
            f"the backbone {name} is not, or not whole, in the cache of the Hub, which cannot be "
            f"reached. While online, type: {download_command(name, revision)}. What was said: "
            f"{error}"
        ) from error
    return _download(name, revision, files, known, licence) if files else None


def _download(
    name: str,
    revision: str | None,
    files: dict[str, int],
    known: KnownBackbone | None,
    licence: str | None,
) -> Path:
    """Say what is downloaded, and download it into the cache of the Hub."""
    total = sum(files.values())
    size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
    logger.warning(
        f"downloading {name}, {size if total else known.size if known else 'size not stated'}, "
        f"licence: {known.licence if known else licence or 'not stated'}; it stays in "
        f"{constants.HF_HUB_CACHE}."
    )
    small = [file for file in files if not file.endswith(".safetensors")]
    try:
        # Weights come last: where they are whole, all is.
        snapshot_download(name, revision=revision, allow_patterns=small)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise OSError(
            f"the download of {name} broke off; files that are whole stay. Run the same again, or "
            f"type: {download_command(name, revision)}. What was said: {error}"
        ) from error


def _in_cache(name: str, revision: str | None) -> Path | None:
    """Return where the cache has the weights whole, maybe as the Hub's converter wrote them."""
    refs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "refs")
    converted = [] if revision else sorted(refs.glob("refs/pr/*"))
    for cached in (revision, *(ref.relative_to(refs).as_posix() for ref in converted)):
        folder = folder_of(name, {"revision": cached})
        if folder is not None and all(map(is_whole, weight_files(folder))):
            return folder
    return None


def _on_offer(name: str, revision: str | None) -> tuple[str | None, dict[str, int], str | None]:
    """Ask the Hub for revision, files to download by their size, and licence.

    No file means no safetensors, neither of the authors nor of the Hub's converter.
    """
    hub = HfApi()
    info = hub.model_info(name, revision=revision, files_metadata=True)
    if not (files := _needed(info)) and revision is None:
        title = "Adding `safetensors` variant of this model"
        offered = previous_pr(hub, name, title, token=None)  # type: ignore[arg-type]
        if offered is not None and offered.author == "SFconvertbot":
            revision = offered.git_reference
            files = _needed(hub.model_info(name, revision=revision, files_metadata=True))
    return revision, files, getattr(info.card_data, "license", None)


def _needed(info: Any) -> dict[str, int]:
    """Pick the files of a repository that loading takes, none if it has no safetensors."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    weights = [name for name in sizes if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
    rest = [name for name in sizes if re.fullmatch(r"[^/]+\.(json|txt|model|py)", name)]
    return {name: sizes[name] for name in (*rest, *weights)} if weights else {}


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
