"""The tokenizer of the substitution encoder: one letter, one token."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from .protein import (
    RESIDUE_LETTERS,
    STANDARD_RESIDUES,
    Protein,
    clean_sequence,
    is_protein,
    read_protein,
    with_backbone_atoms,
)

PAD_TOKEN = "<pad>"  # noqa: S105 - a token of text, no password


def substitution_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the substitution encoder.

    `<pad>` is 0 and the letters A-Z are 1-26; there are no other tokens. Lower case is read as
    upper case, and any character that is no letter as X. It is plain data of the `tokenizers`
    library, so a saved copy loads without any code of ours.

    Example:
        >>> substitution_tokenizer()("ABz").input_ids
        [1, 2, 26]
    """
    vocabulary = {PAD_TOKEN: 0} | {letter: i for i, letter in enumerate(RESIDUE_LETTERS, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="X"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(letter, letter.upper()) for letter in string.ascii_lowercase]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        model_input_names=["input_ids", "attention_mask"],
    )


# --- A recipe: how the residues of a protein are written for a language model's tokenizer.


TEXT_FORMS = ("raw", "spaced", "list")
PROBES = (STANDARD_RESIDUES, STANDARD_RESIDUES[::-1], "LLLLAAAAGGSSVVEEKKKK", "MKVLAAGIVGAAL")


@dataclass(frozen=True)
class Recipe:
    """Say how sequences become tokens, one a residue, and what stands around them.

    Attributes:
        name: "family/form" for the named ones, see `RECIPES`.
        text: "raw" ("MKV"), "spaced" ("M K V"), or "list" (["M", "K", "V"]).
        as_x: Letters that are given as X though the tokenizer may know them. A letter that the
            tokenizer does not know is given as X under every recipe.
        special_tokens: Whether the language model sees its special tokens.
        prefix: Token in front of the residues.
        max_residues: Longer proteins are embedded in overlapping windows of so many.
        language_model: Which one feeds a model that stands on another (TM-Vec, ProtSSN).
        k_neighbors: Neighbours in the graph of a model that reads structures.

    Example:
        >>> Recipe("mine", text="spaced", as_x="UZOB").write("MKU")
        'M K X'
    """

    name: str
    text: str = "raw"
    as_x: str = ""
    special_tokens: bool = True
    prefix: str = ""
    max_residues: int | None = None
    language_model: str | None = None
    k_neighbors: int | None = None

    def __post_init__(self) -> None:
        """Check the text form and the window."""
        if self.text not in TEXT_FORMS:
            raise ValueError(f"text={self.text!r}; accepted are {', '.join(TEXT_FORMS)}.")
        if self.max_residues is not None and self.max_residues < 2:
            raise ValueError(f"max_residues={self.max_residues}; give at least 2, or None.")

    @property
    def reads_structures(self) -> bool:
        """Whether the model needs backbone atoms beside the sequence."""
        return self.k_neighbors is not None

    def write(self, sequence: str, unknown: str = "", bare: bool = False) -> str | list[str]:
        """Write a clean sequence as the tokenizer takes it.

        Args:
            sequence: Upper-case residues.
            unknown: Further letters to give as X.
            bare: Leave the prefix out.
        """
        letters = sequence.translate({ord(letter): "X" for letter in self.as_x + unknown})
        if self.text == "list":
            return [*([self.prefix] if self.prefix and not bare else []), *letters]
        text = " ".join(letters) if self.text == "spaced" else letters
        return f"{self.prefix} {text}" if self.prefix and not bare else text


class ResidueTokenizer:
    """Give every residue of a sequence one token, under a recipe.

    Args:
        tokenizer: A tokenizer of transformers.
        recipe: How to write for it.

    Raises:
        ValueError: If under this recipe the tokenizer does not give one token a residue.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        """Find out what stands around the residues, and which letters have no token."""
        self.tokenizer, self.recipe = tokenizer, recipe
        bare = self._ids([PROBES[-1]], special_tokens=False, bare=True)[0]
        full = self._ids([PROBES[-1]])[0]
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        if len(bare) != len(PROBES[-1]) or not starts:
            raise ValueError(
                f"{type(tokenizer).__name__} makes {len(bare)} tokens of the "
                f"{len(PROBES[-1])} residues {PROBES[-1]} under the recipe {recipe.name!r} "
                f"(text={recipe.text!r}), and one a residue is needed; give another recipe."
            )
        self.front = starts[0]
        self.back = len(full) - len(bare) - self.front
        self._check_prefix(full[: self.front])
        self.unknown = "".join(filter(self._is_unknown, RESIDUE_LETTERS))

    def encode(self, sequences: Sequence[str], name: str = "sequence") -> list[list[int]]:
        """Return the token ids of clean sequences, special tokens and prefix included.

        Args:
            sequences: Upper-case residues.
            name: What to call them in an error message.

        Raises:
            ValueError: If a sequence does not get one token a residue, or has a letter without
                a token where X has none either.
        """
        unknown = self.unknown
        if "X" in unknown:
            for letter in sorted(set("".join(sequences)) & set(unknown + self.recipe.as_x)):
                raise ValueError(
                    f"a {name} has the residue {letter!r}, for which "
                    f"{type(self.tokenizer).__name__} has no token, nor one for X."
                )
        rows = self._ids(sequences, unknown=unknown.replace("X", ""))
        for sequence, row in zip(sequences, rows, strict=True):
            if (residues := len(row) - self.front - self.back) != len(sequence):
                raise ValueError(
                    f"the tokenizer gives {residues} residue tokens for a {name} of "
                    f"{len(sequence)} residues; the backbone needs one token a residue."
                )
        return rows

    def _is_unknown(self, letter: str) -> bool:
        if letter == self.tokenizer.unk_token:  # some tokenizers read the unknown as X
            return False
        ids = self._ids([letter], special_tokens=False, bare=True)[0]
        return len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id

    def _check_prefix(self, front: list[int]) -> None:
        prefix = self.recipe.prefix
        if prefix and self.tokenizer.get_vocab().get(prefix) not in front:
            raise ValueError(
                f"the recipe {self.recipe.name!r} begins with {prefix}, for which "
                f"{type(self.tokenizer).__name__} has no token; give the tokenizer of the backbone "
                "it was made for, or another recipe."
            )

    def _ids(
        self,
        sequences: Sequence[str],
        unknown: str = "",
        special_tokens: bool | None = None,
        bare: bool = False,
    ) -> list[list[int]]:
        if not sequences:
            return []
        recipe = self.recipe
        written = [recipe.write(sequence, unknown, bare) for sequence in sequences]
        encoded = self.tokenizer(
            written,
            is_split_into_words=recipe.text == "list",
            add_special_tokens=recipe.special_tokens if special_tokens is None else special_tokens,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"]


def generic_recipe(tokenizer: Any, max_residues: int | None = None) -> Recipe:
    """Work out a recipe from a tokenizer: the first text form that gives one token a residue.

    Args:
        tokenizer: A tokenizer of transformers.
        max_residues: What the language model takes at most.

    Raises:
        ValueError: If no text form does; residues cannot be told apart then.

    Example:
        >>> from .tokenization_substitution import substitution_tokenizer
        >>> generic_recipe(substitution_tokenizer()).text
        'raw'
    """
    for text in TEXT_FORMS:
        recipe = Recipe("generic", text, max_residues=max_residues)
        try:
            tokens = ResidueTokenizer(tokenizer, recipe)
            if set(STANDARD_RESIDUES) & set(tokens.unknown):
                continue
            for probe in PROBES:
                tokens.encode([probe])
        except ValueError:
            continue
        return recipe
    raise ValueError(
        f"{type(tokenizer).__name__} gives one token a residue in none of the text forms "
        f"{', '.join(TEXT_FORMS)}: residues cannot be told apart. Give a model of single residues, "
        "or the recipe it needs, recipe=Recipe(...)."
    )


# --- The named backbones: where their weights are, and the recipes of their input.


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


# --- Processor of PLASMA: sequences to token ids, with a mask of what is a residue.


class PlasmaProcessor(ProcessorMixin):
    """Turn pairs of sequences into what `PlasmaModel` takes.

    Sequences are checked and cleaned (`clean_sequence`), then written for the tokenizer as the
    recipe says, one token a residue; special tokens are attended to but are no residues.

    Args:
        tokenizer: The backbone's tokenizer; None for that of the substitution encoder.
        recipe: A `Recipe`, its fields, or a name of `RECIPES`; None to work one out from the
            tokenizer.

    Raises:
        ValueError: If the tokenizer does not give one token a residue.

    Example:
        >>> processor = PlasmaProcessor()
        >>> batch = processor(query=["MKV", "AC"], candidate=["MKVL", "G"])
        >>> batch.query_mask
        tensor([[ True,  True,  True],
                [ True,  True, False]])
    """

    def __init__(
        self,
        tokenizer: Any = None,
        recipe: Recipe | Mapping[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep tokenizer and recipe."""
        tokenizer = substitution_tokenizer() if tokenizer is None else tokenizer
        if isinstance(recipe, str):
            recipe = find_recipe("this tokenizer", recipe)
        elif isinstance(recipe, Mapping):
            recipe = Recipe(**recipe)
        self.recipe = generic_recipe(tokenizer) if recipe is None else recipe
        super().__init__(tokenizer, **kwargs)

    def __call__(
        self,
        query: str | Protein | Sequence[str | Protein],
        candidate: str | Protein | Sequence[str | Protein],
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode pairs.

        Args:
            query: One sequence or several; proteins with atoms for a model that reads structures.
            candidate: As many.
            **kwargs: Nothing else is read; transformers passes `return_tensors`, always "pt" here.

        Returns:
            `{query,candidate}_{input_ids,attention_mask,mask}`, each `(batch, tokens)`.

        Raises:
            ValueError: If a sequence is empty, holds a character that is no residue, or does not
                get one token a residue.
        """
        sides = {"query": query, "candidate": candidate}
        features: dict[str, Tensor] = {}
        for side, given in sides.items():
            encoded = self.encode(_as_list(given), side)
            features |= {f"{side}_{name}": tensor for name, tensor in encoded.items()}
        return BatchFeature(features)

    def read(self, value: str | Path | Protein, name: str = "protein") -> Protein:
        """Read a protein as this backbone needs it, see `read_protein`.

        Raises:
            ValueError: If it is unusable, or has no atoms where the backbone reads structures.
        """
        protein = read_protein(value, name)
        if protein.sequence is None:
            raise ValueError(f"{name} is residue embeddings already; give a sequence or a path.")
        return with_backbone_atoms(protein) if self.recipe.reads_structures else protein

    def encode(
        self, proteins: Sequence[str | Protein], name: str = "sequence"
    ) -> dict[str, Tensor]:
        """Encode one side.

        Args:
            proteins: Sequences, or proteins that hold one.
            name: What to call them in an error message.

        Returns:
            `input_ids`, `attention_mask` and `mask` (True at residues), each `(batch, tokens)`,
            and for a model that reads structures `backbone_atoms`, `(batch, residues, 3, 3)` in Å.
        """
        sequences = [
            protein.sequence or ""
            if getattr(protein, "checked", False)
            else clean_sequence(protein.sequence or "" if is_protein(protein) else protein, name)
            for protein in proteins
        ]
        rows = [torch.tensor(row) for row in self.residue_tokenizer.encode(sequences, name)]
        padding_token = self.tokenizer.pad_token_id or 0
        input_ids = pad_sequence(rows, batch_first=True, padding_value=padding_token)
        position = torch.arange(input_ids.shape[1])
        first = self.residue_tokenizer.front
        tokens = torch.tensor([len(row) for row in rows]).unsqueeze(-1)
        residues = torch.tensor([len(sequence) for sequence in sequences]).unsqueeze(-1)
        encoded = {
            "input_ids": input_ids,
            "attention_mask": position < tokens,
            "mask": (position >= first) & (position < first + residues),
        }
        if self.recipe.reads_structures:
            encoded["backbone_atoms"] = _stack_atoms(proteins, name)
        return encoded

    @cached_property
    def residue_tokenizer(self) -> ResidueTokenizer:
        """The tokenizer under the recipe."""
        return ResidueTokenizer(self.tokenizer, self.recipe)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        self.__dict__.pop("residue_tokenizer", None)  # the base class would copy all of it
        return super().to_dict() | {"recipe": asdict(self.recipe)}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        parts = ["input_ids", "attention_mask", "mask"]
        parts += ["backbone_atoms"] if self.recipe.reads_structures else []
        return [f"{side}_{part}" for side in ("query", "candidate") for part in parts]


def _as_list(given: Any) -> Sequence[str | Protein]:
    return [given] if isinstance(given, str) or is_protein(given) else given


def _stack_atoms(proteins: Sequence[str | Protein], name: str) -> Tensor:
    """Stack backbone atoms `(batch, residues, 3, 3)`, padded with NaN."""
    atoms = [p.backbone_atoms if is_protein(p) else None for p in proteins]
    known = [a for a in atoms if a is not None]
    if len(known) < len(atoms):
        raise ValueError(
            f"a {name} has no backbone atoms, and this backbone reads structures; give the path "
            "of a PDB or mmCIF file."
        )
    return pad_sequence(known, batch_first=True, padding_value=float("nan"))
