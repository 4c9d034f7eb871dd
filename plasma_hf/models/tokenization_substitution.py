"""The tokenizer of the substitution encoder: one letter, one token."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .residues import RESIDUE_LETTERS

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
