"""Sequences to token ids: input formats of language models, and the processor of PLASMA."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
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

TEXT_FORMS = ("raw", "spaced", "list")
PROBES = (STANDARD_RESIDUES, STANDARD_RESIDUES[::-1], "LLLLAAAAGGSSVVEEKKKK", "MKVLAAGIVGAAL")


def substitution_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of the substitution encoder: `<pad>` is 0, the letters A-Z are 1-26.

    Lower case is read as upper case, what is no letter as X; a copy loads without code of ours.
    """
    vocabulary = {token: i for i, token in enumerate(("<pad>", *RESIDUE_LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="X"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(letter, letter.upper()) for letter in string.ascii_lowercase]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", model_input_names=names
    )


@dataclass(frozen=True)
class InputFormat:
    """How sequences become tokens, one per residue, and what stands around them.

    Example:
        >>> InputFormat("mine", text="spaced", as_x="UZOB").write("MKU")
        'M K X'
    """

    name: str  # "family/form" for the named ones
    text: str = "raw"  # "raw" ("MKV"), "spaced" ("M K V"), or "list" (["M", "K", "V"])
    as_x: str = ""  # letters given as X though the tokenizer may know them; those unknown are
    special_tokens: bool = True  # whether the language model sees its special tokens
    prefix: str = ""  # token in front of the residues
    max_residues: int | None = None  # longer proteins are embedded in overlapping windows
    language_model: str | None = None  # which one feeds a model that stands on another
    k_neighbors: int | None = None  # in the graph of a model that reads structures

    def __post_init__(self) -> None:
        if self.text not in TEXT_FORMS:
            raise ValueError(f"text={self.text!r}; accepted are {', '.join(TEXT_FORMS)}.")
        if self.max_residues is not None and self.max_residues < 2:
            raise ValueError(f"max_residues={self.max_residues}; give at least 2, or None.")

    @staticmethod
    def named(
        name: str, of: str = "this tokenizer", forms: Sequence[str] = ()
    ) -> InputFormat | None:
        """Return a named format, `of` some model; None for "generic": its tokenizer decides."""
        if name != "generic" and name not in INPUT_FORMATS:
            accepted = ", ".join(map(repr, (*forms, "generic", *INPUT_FORMATS)))
            raise ValueError(f"input_format={name!r} for {of}; accepted are {accepted}.")
        return INPUT_FORMATS.get(name)

    @property
    def reads_structures(self) -> bool:
        """Whether the model needs backbone atoms beside the sequence."""
        return self.k_neighbors is not None

    def write(self, sequence: str, unknown: str = "", prefix: bool = True) -> str | list[str]:
        """Write a clean sequence as the tokenizer takes it, `unknown` letters as X."""
        letters = sequence.translate({ord(letter): "X" for letter in self.as_x + unknown})
        front = [self.prefix] if self.prefix and prefix else []
        if self.text == "list":
            return [*front, *letters]
        return " ".join([*front, " ".join(letters) if self.text == "spaced" else letters])


PROST_T5, PROT_T5 = "Rostlab/ProstT5", "Rostlab/prot_t5_xl_half_uniref50-enc"
ESM2 = "facebook/esm2_t33_650M_UR50D"

# The released embeddings stop at 1024 residues; here a longer protein goes on in windows.
CUT, AS_X = 1024, "UZOB"

_FORMATS = (
    InputFormat("esm2/native"),
    InputFormat("esm2/upstream", special_tokens=False, max_residues=CUT),
    InputFormat("prot_bert/native", "spaced", AS_X),
    InputFormat("prot_bert/upstream", "spaced", special_tokens=False, max_residues=CUT),
    InputFormat("prot_t5/native", "spaced", AS_X),
    InputFormat("prot_t5/upstream", "spaced", AS_X, max_residues=CUT),
    InputFormat("prost_t5/native", "spaced", AS_X, prefix="<AA2fold>"),
    InputFormat("prost_t5/upstream", "spaced", AS_X),
    InputFormat("ankh/native", "list"),
    InputFormat("ankh/upstream", special_tokens=False, max_residues=CUT),
    InputFormat("tm_vec/native", "spaced", AS_X, language_model=PROT_T5),
    InputFormat("tm_vec/upstream", "spaced", AS_X, language_model=PROST_T5),
    InputFormat("protssn/native", language_model=ESM2, k_neighbors=20),
    InputFormat("protssn/upstream", language_model=ESM2, k_neighbors=10),
    InputFormat("esmc/native", max_residues=2046),
    InputFormat("three_di/native", k_neighbors=1),
)
INPUT_FORMATS = {input_format.name: input_format for input_format in _FORMATS}

# Who has the models of a family on the Hub; released heads name the last part of an id alone.
PUBLISHERS = {"esm2": "facebook", "ankh": "ElnaggarLab", "esmc": "biohub"}
PUBLISHERS |= dict.fromkeys(("prot_bert", "prot_t5", "prost_t5"), "Rostlab")


class PlasmaProcessor(ProcessorMixin):
    """Turn pairs of sequences into what `PlasmaModel` takes, one token per residue.

    Args:
        tokenizer: The backbone's tokenizer; None for that of the substitution encoder.
        input_format: An `InputFormat`, its fields, or a name of `INPUT_FORMATS`; None for the
            first text form by which the tokenizer gives one token per residue.

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
        input_format: InputFormat | Mapping[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        tokenizer = substitution_tokenizer() if tokenizer is None else tokenizer
        if isinstance(input_format, str):
            input_format = InputFormat.named(input_format)
        elif isinstance(input_format, Mapping):
            input_format = InputFormat(**input_format)
        self.input_format = input_format or _generic_input_format(tokenizer)
        super().__init__(tokenizer, **kwargs)

    def __call__(
        self,
        query: str | Protein | Sequence[str | Protein],
        candidate: str | Protein | Sequence[str | Protein],
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode pairs, each side one sequence or several, as `{side}_{name}`; see `encode`."""
        features: dict[str, Tensor] = {}
        for side, given in (("query", query), ("candidate", candidate)):
            proteins: Any = [given] if isinstance(given, str) or is_protein(given) else given
            encoded = self.encode(proteins, side)
            features |= {f"{side}_{name}": tensor for name, tensor in encoded.items()}
        return BatchFeature(features)

    def read(self, value: str | Path | Protein, name: str = "protein") -> Protein:
        """Read a protein as this backbone needs it, with atoms if it reads structures."""
        protein = read_protein(value, name)
        if protein.sequence is None:
            raise ValueError(f"{name} is residue embeddings already; give a sequence or a path.")
        return with_backbone_atoms(protein) if self.input_format.reads_structures else protein

    def encode(
        self, proteins: Sequence[str | Protein], name: str = "sequence"
    ) -> dict[str, Tensor]:
        """Encode sequences or proteins, each a `name`: as `input_ids`, `attention_mask` and `mask`.

        They are `(batch, tokens)`, the mask True at residues. For a model that reads structures
        there is also `backbone_atoms`, `(batch, residues, 3, 3)` in Å.
        """
        sequences = []
        for protein in proteins:
            letters: Any = protein.sequence or "" if is_protein(protein) else protein
            checked = getattr(protein, "checked", False)
            sequences.append(letters if checked else clean_sequence(letters, name))
        rows = [torch.tensor(row) for row in self.token_ids(sequences, name)]
        input_ids = pad_sequence(rows, True, padding_value=self.tokenizer.pad_token_id or 0)
        position, first = torch.arange(input_ids.shape[1]), self._surroundings[0]
        tokens = torch.tensor([len(row) for row in rows]).unsqueeze(-1)
        residues = torch.tensor([len(sequence) for sequence in sequences]).unsqueeze(-1)
        encoded = {
            "input_ids": input_ids,
            "attention_mask": position < tokens,
            "mask": (position >= first) & (position < first + residues),
        }
        if self.input_format.reads_structures:
            atoms: Any = [getattr(protein, "backbone_atoms", None) for protein in proteins]
            if any(each is None for each in atoms):
                raise ValueError(
                    f"a {name} has no backbone atoms, and this backbone reads structures; give "
                    "the path of a PDB or mmCIF file."
                )
            encoded["backbone_atoms"] = pad_sequence(atoms, True, padding_value=float("nan"))
        return encoded

    def token_ids(self, sequences: Sequence[str], name: str = "sequence") -> list[list[int]]:
        """Tokenize clean sequences (each a `name`), special tokens and prefix included."""
        front, back, unknown = self._surroundings
        if "X" in unknown:
            for letter in sorted(set("".join(sequences)) & set(unknown + self.input_format.as_x)):
                raise ValueError(
                    f"a {name} has the residue {letter!r}, for which "
                    f"{type(self.tokenizer).__name__} has no token, nor one for X."
                )
        rows = self._tokenize(sequences, unknown.replace("X", ""))
        for sequence, row in zip(sequences, rows, strict=True):
            if (residues := len(row) - front - back) != len(sequence):
                raise ValueError(
                    f"the tokenizer gives {residues} residue tokens for a {name} of "
                    f"{len(sequence)} residues; the backbone needs one token per residue."
                )
        return rows

    @cached_property
    def _surroundings(self) -> tuple[int, int, str]:
        """Count the tokens before and after the residues, and list letters without a token."""
        tokenizer, form, probe = self.tokenizer, self.input_format, PROBES[-1]
        kind = type(tokenizer).__name__
        [bare], [full] = self._tokenize([probe], bare=True), self._tokenize([probe])
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        if len(bare) != len(probe) or not starts:
            raise ValueError(
                f"{kind} makes {len(bare)} tokens of the {len(probe)} residues {probe}, and one "
                f"per residue is needed; give another input format than {form.name!r}."
            )
        front = starts[0]
        if form.prefix and tokenizer.get_vocab().get(form.prefix) not in full[:front]:
            raise ValueError(
                f"the input format {form.name!r} begins with {form.prefix}, for which {kind} has "
                "no token; give the backbone's own tokenizer, or another input format."
            )
        alone = zip(RESIDUE_LETTERS, self._tokenize(RESIDUE_LETTERS, bare=True), strict=True)
        lost = [a for a, ids in alone if len(ids) != 1 or ids[0] == tokenizer.unk_token_id]
        unknown = "".join(lost).replace(str(tokenizer.unk_token), "")  # some have X for the unknown
        return front, len(full) - len(bare) - front, unknown

    def _tokenize(
        self, sequences: Sequence[str], unknown: str = "", bare: bool = False
    ) -> list[list[int]]:
        """Tokenize; `bare` leaves away special tokens and prefix."""
        form = self.input_format
        encoded = self.tokenizer(
            [form.write(sequence, unknown, prefix=not bare) for sequence in sequences],
            is_split_into_words=form.text == "list",
            add_special_tokens=form.special_tokens and not bare,
            return_attention_mask=False,
            verbose=False,
        )
        return encoded["input_ids"]

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved; the file calls the input format "recipe"."""
        self.__dict__.pop("_surroundings", None)  # the base class would copy it
        saved: dict[str, Any] = super().to_dict()
        return saved | {"recipe": asdict(saved.pop("input_format"))}

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build what was saved."""
        fields = {{"recipe": "input_format"}.get(k, k): v for k, v in processor_dict.items()}
        return super().from_args_and_dict(args, fields, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        atoms = ["backbone_atoms"] if self.input_format.reads_structures else []
        parts = ("input_ids", "attention_mask", "mask", *atoms)
        return [f"{side}_{part}" for side in ("query", "candidate") for part in parts]


def _generic_input_format(tokenizer: Any) -> InputFormat:
    """Return the first text form that gives one token per residue."""
    for text in TEXT_FORMS:
        processor = PlasmaProcessor(tokenizer, InputFormat("generic", text))
        with suppress(ValueError):
            processor.token_ids(PROBES)
            if not set(STANDARD_RESIDUES) & set(processor._surroundings[2]):
                return processor.input_format
    raise ValueError(
        f"{type(tokenizer).__name__} gives one token per residue in none of the text forms "
        f"{', '.join(TEXT_FORMS)}; take a model of single residues, or give an InputFormat(...)."
    )
