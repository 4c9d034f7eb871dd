"""Reference alignments: which residues of two proteins stand in the same place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.protein import InvalidRecord, open_text

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class ResidueAlignment:
    """Two proteins and the residues of them that correspond.

    `pairs` are 0-based, `(pairs, 2)`, and trusted, where the source says which are; `columns` are
    all that are aligned, trusted or not, None for `pairs`.
    """

    query: str
    candidate: str
    pairs: Pairs
    name: str = ""  # where it comes from
    names: tuple[str, str] = ("", "")  # of the two proteins
    columns: Pairs | None = None

    @cached_property
    def identity(self) -> float:
        """Identical residues per aligned pair, 0 without any."""
        columns = self.pairs if self.columns is None else self.columns
        same = [self.query[i] == self.candidate[j] for i, j in columns]
        return float(np.mean(same)) if same else 0.0


def read_reference_alignments(
    path: str | PathLike[str], invalid: list[InvalidRecord] | None = None
) -> list[ResidueAlignment]:
    """Read reference alignments of pairs from JSON, also gzipped.

    Args:
        path: A list of records with `seq_a`, `seq_b` and `pairs` (`[[i, j], ...]`, 0-based), where
            they are known with names `a` and `b`, and with `core_pairs`, the trusted columns.
        invalid: Takes the invalid records; without it the first of them raises.
    """
    try:
        with open_text(Path(path)) as lines:
            records = json.load(lines)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON, or gzipped JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}; give a list of records")
    found = []
    for number, record in enumerate(records, start=1):
        try:
            found.append(_reference(record))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            lacking = isinstance(error, KeyError)
            reason = f"it lacks {error.args[0]}" if lacking else str(error)
            if invalid is None:
                raise ValueError(f"{path}, record {number}: {reason}") from error
            invalid.append(InvalidRecord(f"record {number}", reason))
    return found


def _reference(record: dict[str, Any]) -> ResidueAlignment:
    query, candidate = record["seq_a"].upper(), record["seq_b"].upper()
    columns, core = (
        np.asarray(found or [], dtype=np.int64).reshape(-1, 2)
        for found in (record["pairs"], record.get("core_pairs"))
    )
    for pairs in (columns, core):
        if len(pairs) and (pairs.min() < 0 or (pairs.max(0) >= (len(query), len(candidate))).any()):
            lengths = f"{len(query)} and {len(candidate)}"
            raise ValueError(f"a pair lies outside of its sequences of {lengths} residues")
    names = str(record.get("a", "")), str(record.get("b", ""))
    trusted, group = core if len(core) else columns, str(record.get("set", ""))
    aligned = columns if len(columns) else trusted
    return ResidueAlignment(query, candidate, trusted, group, names, aligned)
