"""What a residue letter is, and how a typed sequence becomes a clean one."""

from __future__ import annotations

import string
from itertools import takewhile

STANDARD_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""The twenty residues, in the order of the rows of BLOSUM62."""

RESIDUE_LETTERS = string.ascii_uppercase
"""Every letter is a residue: the twenty, and six with a rule of their own (`LETTER_RULES`)."""

LETTER_RULES = {
    "U": "C",  # selenocysteine stands where a cysteine would
    "O": "K",  # pyrrolysine, a lysine derivative
    "B": "DN",
    "Z": "EQ",
    "J": "IL",
    "X": STANDARD_RESIDUES,
}
"""What a letter outside the twenty may stand for; its embedding is the mean over these."""


def clean_sequence(sequence: str, name: str = "sequence") -> str:
    """Return a protein sequence in upper case, without white space and trailing stop.

    One residue in, one letter out: nothing but white space and one final `*` is removed, so
    positions in the result are positions in the residues that were given.

    Args:
        sequence: One-letter residues, in either case.
        name: What to call the sequence in an error message.

    Raises:
        TypeError: If `sequence` is not a string.
        ValueError: If it is empty or holds a character that is no residue.

    Example:
        >>> clean_sequence("mkv laX*")
        'MKVLAX'
    """
    if not isinstance(sequence, str):
        raise TypeError(
            f"{name} is a {type(sequence).__name__}; give a string of one-letter residues."
        )
    residues = "".join(sequence.split()).removesuffix("*")
    if not residues:
        raise ValueError(f"{name} is empty; give at least one residue, for example 'MKVLA'.")
    good = sum(1 for _ in takewhile(string.ascii_letters.__contains__, residues))
    if good < len(residues):
        raise ValueError(
            f"{name} has the character {residues[good]!r} at position {good + 1}, which is no "
            "residue; accepted are the letters A-Z in either case. Remove gaps ('-', '.') and "
            "inner stops ('*') before aligning."
        )
    return residues.upper()
