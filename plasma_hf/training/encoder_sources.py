"""What a residue encoder learns from, read from files and kept apart from what it is judged on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from ..data.alignments import FamilyAlignment, ResidueAlignment, read_alignments
from ..data.clusters import nearest_identity
from ..data.pairs import SiteProtein, read_site_table
from ..data.sequences import BadRecord, read_sequences

logger = logging.getLogger(__name__)

AnyPath: TypeAlias = "str | PathLike[str]"

SOURCES = ("families", "pairs", "sites", "unrelated")

LIKE = 0.5
"""Identity from which on a protein is too like an excluded one to learn from."""


@dataclass
class EncoderSources:
    """Hold what pairs are drawn from.

    Attributes:
        families: Alignments of families, such as those of Pfam.
        pairs: Alignments of pairs.
        proteins: Proteins with sites; those of one family correspond.
        sequences: Any sequences, for masked residues.
        weights: How often each of `SOURCES` is drawn; a source without data is left out.
    """

    families: Sequence[FamilyAlignment] = ()
    pairs: Sequence[ResidueAlignment] = ()
    proteins: Sequence[SiteProtein] = ()
    sequences: Sequence[str] = ()
    weights: dict[str, float] = field(
        default_factory=lambda: {"families": 3.0, "pairs": 0.5, "sites": 9.0, "unrelated": 2.0}
    )

    def describe(self) -> dict[str, int]:
        """Count what there is."""
        return {
            "families": len(self.families),
            "aligned rows": sum(len(family.rows) for family in self.families),
            "aligned pairs": len(self.pairs),
            "site proteins": len(self.proteins),
            "site families": len({protein.family for protein in self.proteins}),
            "sequences": len(self.sequences),
        }


def read_sources(
    alignments: Iterable[AnyPath] = (),
    sites: Iterable[AnyPath] = (),
    sequences: Iterable[AnyPath] = (),
    *,
    exclude_uids: Iterable[str] = (),
    exclude_families: Iterable[str] = (),
    bad: list[BadRecord] | None = None,
) -> EncoderSources:
    """Read what to learn from, and leave out what is like the proteins to be judged on.

    Args:
        alignments: Aligned FASTA (Pfam), or JSON with pairs, or folders of them.
        sites: Tables of sites, see `read_site_table`.
        sequences: Files of sequences, see `read_sequences`.
        exclude_uids: Proteins of the tables not to learn from.
        exclude_families: Families of the tables, or names of alignments, not to learn from.
        bad: List that records left out as wrong are added to; else they are logged.

    Raises:
        ValueError: If a file cannot be read, or an excluded protein is in no table.

    Example:
        >>> rows = [{"uid": u, "interpro_id": "F", "seq_full": "MKV", "label": [0, 1, 1]}
        ...         for u in "AB"]
        >>> read_sources(sites=[rows]).describe()["site proteins"]
        2
    """
    wrong: list[BadRecord] = [] if bad is None else bad
    out = set(exclude_families)
    families, pairs = read_alignments(alignments, wrong)
    proteins = [protein for table in sites for protein in _read_sites(table, wrong)]
    plain = [
        protein.sequence or "" for file in sequences for protein in read_sequences(file, bad=wrong)
    ]
    if bad is None:
        for record in wrong:
            logger.warning("%s left out: %s", record.id, record.reason)
    sources = EncoderSources(
        [family for family in families if family.name not in out],
        [pair for pair in pairs if pair.name not in out],
        proteins,
        plain,
    )
    return exclude(sources, exclude_uids, out)


def exclude(
    sources: EncoderSources, uids: Iterable[str] = (), families: Iterable[str] = ()
) -> EncoderSources:
    """Leave out proteins, whole families, and whatever is `LIKE` them.

    Aligned families of domains stay: that a domain occurs in an excluded protein says nothing of
    its site.

    Args:
        sources: What there is.
        uids: Proteins with sites.
        families: Families of proteins with sites.

    Raises:
        ValueError: If a uid is not there.
    """
    unwanted, groups = set(uids), set(families)
    if missing := sorted(unwanted - {protein.uid for protein in sources.proteins}):
        raise ValueError(
            f"{len(missing)} proteins to exclude are in no table, the first {missing[0]!r}; give "
            "the tables that they are from, so that what is like them can be left out as well."
        )
    # A protein of an excluded family may stand in the table under another family as well.
    unwanted |= {protein.uid for protein in sources.proteins if protein.family in groups}
    judged = sorted({p.sequence for p in sources.proteins if p.uid in unwanted})
    if not judged:
        return sources
    texts = sorted({p.sequence for p in sources.proteins} | set(sources.sequences))
    near, method = nearest_identity(texts, judged)
    like = {text for text, identity in zip(texts, near, strict=True) if identity >= LIKE}
    kept = [p for p in sources.proteins if p.uid not in unwanted and p.sequence not in like]
    plain = [sequence for sequence in sources.sequences if sequence not in like]
    logger.info(
        "%d proteins excluded, with them %d others and %d sequences alike (by %s)",
        len(unwanted),
        len(sources.proteins) - len(kept) - len(unwanted),
        len(sources.sequences) - len(plain),
        method,
    )
    return EncoderSources(sources.families, sources.pairs, kept, plain, sources.weights)


def read_names(path: AnyPath) -> list[str]:
    """Read names, one a line; `#` begins a remark."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [line for line in lines if line]


def _read_sites(table: AnyPath, bad: list[BadRecord]) -> list[SiteProtein]:
    proteins, wrong = read_site_table(table)
    name = str(table) if isinstance(table, str | PathLike) else "table"
    bad += [BadRecord(f"{name}, row {row.row} ({row.uid})", row.reason) for row in wrong]
    return proteins
