"""The named backbones: where their weights are, and the recipes of their input.

Each family has two forms. "native" is what the authors of the backbone prescribe, and the default.
"upstream" is what the released PLASMA heads were trained on; a released head selects it by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from .recipe import Recipe

PROST_T5, PROT_T5 = "Rostlab/ProstT5", "Rostlab/prot_t5_xl_half_uniref50-enc"
ESM2 = "facebook/esm2_t33_650M_UR50D"

# The released embeddings stop at 1024 residues; here a longer protein goes on in windows.
UPSTREAM_LIMIT = 1024

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("esm2/native"),
        Recipe("esm2/upstream", special_tokens=False, max_residues=UPSTREAM_LIMIT),
        Recipe("prot_bert/native", "spaced", as_x="UZOB"),
        Recipe("prot_bert/upstream", "spaced", special_tokens=False, max_residues=UPSTREAM_LIMIT),
        Recipe("prot_t5/native", "spaced", as_x="UZOB"),
        Recipe("prot_t5/upstream", "spaced", as_x="UZOB", max_residues=UPSTREAM_LIMIT),
        Recipe("prost_t5/native", "spaced", as_x="UZOB", prefix="<AA2fold>"),
        Recipe("prost_t5/upstream", "spaced", as_x="UZOB"),
        Recipe("ankh/native", "list"),
        Recipe("ankh/upstream", special_tokens=False, max_residues=UPSTREAM_LIMIT),
        Recipe("tm_vec/native", "spaced", as_x="UZOB", language_model=PROT_T5),
        Recipe("tm_vec/upstream", "spaced", as_x="UZOB", language_model=PROST_T5),
        Recipe("protssn/native", language_model=ESM2, k_neighbors=20),
        Recipe("protssn/upstream", language_model=ESM2, k_neighbors=10),
        Recipe("esmc/native", max_residues=2046),
    )
}
"""Every named recipe, by its name "family/form"."""


@dataclass(frozen=True)
class KnownBackbone:
    """Say what is known of a published backbone.

    Attributes:
        model_id: Its id on the Hub; None where it is published elsewhere.
        family: First part of the names of its recipes.
        width: Numbers in a residue embedding.
        licence: Of the weights.
        files: What to do where there is no id.
    """

    model_id: str | None
    family: str
    width: int
    licence: str
    files: str = ""

    @property
    def forms(self) -> tuple[str, ...]:
        """Return the forms its recipes come in."""
        names = (name.split("/") for name in RECIPES)
        return tuple(form for family, form in names if family == self.family)


TM_VEC_FILES = (
    "download the checkpoint (.ckpt) and its params (.json) that the TM-Vec authors publish "
    "(figshare files 46296322 and 46296310) into one folder and give the path of that folder"
)
NON_COMMERCIAL = "CC-BY-NC-SA-4.0"

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
    """Return what is known of a backbone, by the last part of its id or path.

    Example:
        >>> find_backbone("Rostlab/prot_bert").width
        1024
    """
    return BACKBONES.get(PurePath(name_or_path).name)


def find_recipe(name_or_path: str, recipe: str | None = None) -> Recipe | None:
    """Return the recipe of a backbone, None where it has to be worked out from the tokenizer.

    Args:
        name_or_path: Id or path of the backbone.
        recipe: "native" (the default) or "upstream" for a named backbone, a name of `RECIPES`
            for any, or "generic".

    Raises:
        ValueError: If there is no such recipe.

    Example:
        >>> find_recipe("facebook/esm2_t6_8M_UR50D", "upstream").special_tokens
        False
    """
    if recipe == "generic":
        return None
    if recipe in RECIPES:
        return RECIPES[recipe]
    known = find_backbone(name_or_path)
    if known is None and recipe is None:
        return None
    if known is not None and (recipe or "native") in known.forms:
        return RECIPES[f"{known.family}/{recipe or 'native'}"]
    forms = known.forms if known is not None else ()
    raise ValueError(
        f"recipe={recipe!r} for {name_or_path}; accepted are "
        f"{', '.join(map(repr, (*forms, 'generic', *RECIPES)))}."
    )
