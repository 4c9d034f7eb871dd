"""A recipe: how the residues of a protein are written for a language model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .residues import RESIDUE_LETTERS, STANDARD_RESIDUES

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
