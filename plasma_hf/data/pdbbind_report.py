"""How many proteins of PDBbind each split keeps, beside the counts of the ProtAlign paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .dataset_folder import SPLITS, list_bad
from .sequences import BadRecord

ChainChoice = Literal["first", "longest", "concat", "pocket"]
Deduplication = Literal["global", "split", "none"]
PAPER_COUNTS = {"train": 10_071, "validation": 3_387, "test": 215}


@dataclass
class PdbbindReport:
    """Count the proteins of each split, beside those of the paper.

    Attributes:
        version: Year of the release.
        chains: How the chain was chosen.
        deduplication: How equal sequences were treated.
        listed: Complexes of the index files, by split.
        read: Of those, complexes with a readable protein.
        kept: Of those, proteins left after de-duplication.
        bad: Lines of the index files and complexes that are left out, with reasons.
        tried: Proteins left by split, for every other choice, if asked for.
    """

    version: str
    chains: ChainChoice
    deduplication: Deduplication
    listed: dict[str, int]
    read: dict[str, int]
    kept: dict[str, int]
    bad: list[BadRecord]
    tried: dict[tuple[ChainChoice, Deduplication], dict[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values, for JSON."""
        tried = [
            {"chains": chains, "deduplication": how, **counts, "as_paper": counts == PAPER_COUNTS}
            for (chains, how), counts in self.tried.items()
        ]
        return vars(self) | {
            "paper": PAPER_COUNTS,
            "bad": [vars(record) for record in self.bad],
            "tried": tried,
        }

    def to_markdown(self) -> str:
        """Write the counts as tables, and what was left out.

        Example:
            >>> counts = {"train": 3, "validation": 2, "test": 1}
            >>> report = PdbbindReport("2020", "longest", "global", counts, counts, counts, [])
            >>> print(report.to_markdown())
            | PDBbind 2020, longest chain, de-duplication global | train | validation | test |
            |---|---|---|---|
            | listed | 3 | 2 | 1 |
            | read | 3 | 2 | 1 |
            | kept | 3 | 2 | 1 |
            | ProtAlign paper | 10,071 | 3,387 | 215 |
            <BLANKLINE>
            Left out: 0.
        """
        title = f"PDBbind {self.version or 'of unknown year'}, {self.chains} chain, "
        lines = [
            f"| {title}de-duplication {self.deduplication} | {' | '.join(SPLITS)} |",
            "|---|---|---|---|",
        ]
        for name in ("listed", "read", "kept"):
            lines.append(_row(name, getattr(self, name)))
        lines.append(_row("ProtAlign paper", PAPER_COUNTS))
        if self.tried:
            lines += [
                "",
                "| chain, de-duplication | train | validation | test |",
                "|---|---|---|---|",
            ]
            for (chains, how), counts in self.tried.items():
                note = " (as in the paper)" if counts == PAPER_COUNTS else ""
                lines.append(_row(f"{chains}, {how}{note}", counts))
        return "\n".join([*lines, "", list_bad(self.bad)])


def _row(name: str, counts: Mapping[str, int]) -> str:
    return f"| {name} | " + " | ".join(f"{counts[split]:,}" for split in SPLITS) + " |"
