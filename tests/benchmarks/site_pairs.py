"""Site benchmark: pairs of proteins, what sequence baselines make of them, and a summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plasma_hf.data import (
    ProteinPair,
    SiteProtein,
    read_site_table,
    sample_matched_negatives,
    sample_matched_pairs,
)
from plasma_hf.evaluation import align_sequences as align
from plasma_hf.evaluation import plan_of_path
from plasma_hf.evaluation.sequence_alignment import (
    Per,
    composition_cosine,
    identity,
    length_ratio,
)
from plasma_hf.metrics import label_match_score, roc_auc

SITES = Path(__file__).parents[3] / "shared" / "data" / "sites"
ACTIVE_SITES = SITES / "active_site.csv"
LOW_IDENTITY = 0.20
# Positives drawn in search of enough low ones, as a multiple of those asked for.
POOL = 40
# "Gap 11/1" is read in two ways: opening pays for the first residue of the gap, so that k
# residues cost 11 + (k - 1) (EMBOSS), or comes on top of it, 11 + k (BLAST).
GAP_OPEN = {"smith_waterman": 11, "smith_waterman_blast": 12}
METHODS = (*GAP_OPEN, "identity", "length", "composition")


@dataclass
class PairResult:
    """Hold what the baselines say about one pair.

    Attributes:
        query_uid: accession of the query.
        candidate_uid: accession of the candidate.
        label: 1 for the same family, 0 for different families.
        identity: identical columns of a global alignment / length of the shorter protein.
        identity_columns: the same / number of columns of the alignment.
        scores: score by method.
        label_match: label match score by method; methods without an alignment are absent, and
            so are all of them in negative pairs.
        seconds: time for score and traceback, by aligning method.
    """

    query_uid: str
    candidate_uid: str
    label: int
    identity: float = 0.0
    identity_columns: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    label_match: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SummaryRow:
    """Hold the metrics of one method, over all pairs and over those of low identity.

    Attributes:
        method: name of the method.
        roc_auc: over all pairs.
        roc_auc_low: over pairs, positive and negative, under 20 % identity.
        label_match: mean over positives, NaN for a method without an alignment.
        label_match_low: the same under 20 % identity.
        n_positive: number of positives.
        n_negative: number of negatives.
        n_positive_low: positives under 20 % identity.
        n_negative_low: negatives under 20 % identity.
    """

    method: str
    roc_auc: float
    roc_auc_low: float
    label_match: float
    label_match_low: float
    n_positive: int
    n_negative: int
    n_positive_low: int
    n_negative_low: int


def load_pairs(
    seed: int,
    n_positive: int = 600,
    n_negative: int = 600,
    path: Path = ACTIVE_SITES,
    n_low: int = 0,
    per: Per = "shorter",
) -> list[ProteinPair]:
    """Draw the pairs of the benchmark from a table of sites.

    Args:
        seed: seed of the draw.
        n_positive: pairs of one family.
        n_negative: pairs of different families, matched to the positives in length.
        path: VenusX-style table.
        n_low: how many of the positives must be under 20 % identity; 0 takes them as they come,
            which leaves about one in fifty (per shorter protein) or one in eight (per column).
        per: what identical residues are divided by, see `identity`.

    Returns:
        The positives, then the negatives.

    Raises:
        ValueError: if the table holds rows that are wrong, since leaving them out would change
            the draw, or too few positives of low identity.
    """
    proteins, bad_rows = read_site_table(path)
    if bad_rows:
        raise ValueError(f"{path} holds {len(bad_rows)} bad rows, the first {bad_rows[0]}; mend it")
    if not n_low:
        return sample_matched_pairs(proteins, n_positive, n_negative, seed)
    positives = _split_positives(proteins, n_positive, n_low, seed, per)
    return positives + sample_matched_negatives(proteins, positives, n_negative, seed)


def _split_positives(
    proteins: Sequence[SiteProtein], n_positive: int, n_low: int, seed: int, per: Per
) -> list[ProteinPair]:
    sizes = Counter(protein.family for protein in proteins)
    pool_size = min(POOL * n_positive, sum(comb(size, 2) for size in sizes.values()))
    wanted = {True: n_low, False: n_positive - n_low}
    positives = []
    for pair in sample_matched_pairs(proteins, pool_size, 0, seed):
        query, candidate = pair.query.sequence, pair.candidate.sequence
        low = identity(query, candidate, align(query, candidate, "global")[1], per) < LOW_IDENTITY
        if wanted[low]:
            wanted[low] -= 1
            positives.append(pair)
        if not any(wanted.values()):
            return positives
    raise ValueError(f"{pool_size} draws lack {wanted[True]} positives of low identity; ask fewer")


def run_baselines(pair: ProteinPair) -> PairResult:
    """Run all baselines on one pair.

    Args:
        pair: query, candidate and label.

    Returns:
        Scores, label match and times; see `METHODS` for the names.

    Example:
        >>> protein = SiteProtein("P", "F", "MKVLA", (0, 1, 1, 0, 0))
        >>> result = run_baselines(ProteinPair(protein, protein, label=1))
        >>> result.identity, result.label_match["smith_waterman"]
        (1.0, 1.0)
    """
    query, candidate = pair.query.sequence, pair.candidate.sequence
    result = PairResult(pair.query.uid, pair.candidate.uid, pair.label)
    aligned = {}
    for method, gap_open in GAP_OPEN.items():
        start = time.perf_counter()
        result.scores[method], aligned[method] = align(query, candidate, "local", gap_open)
        result.seconds[method] = time.perf_counter() - start
    aligned["identity"] = align(query, candidate, "global")[1]
    result.identity = identity(query, candidate, aligned["identity"], per="shorter")
    result.identity_columns = identity(query, candidate, aligned["identity"], per="columns")
    result.scores["identity"] = result.identity
    result.scores["length"] = length_ratio(query, candidate)
    result.scores["composition"] = composition_cosine(query, candidate)
    if pair.label:
        sites = (pair.query.site_labels, pair.candidate.site_labels)
        result.label_match = {
            name: label_match_score(plan_of_path(path, len(query), len(candidate)), *sites)
            for name, path in aligned.items()
        }
    return result


def summary(
    scores_by_method: Mapping[str, Sequence[float]],
    label_match_by_method: Mapping[str, Sequence[float]],
    labels: Sequence[int],
    identities: Sequence[float],
) -> list[SummaryRow]:
    """Summarise methods over all pairs and over pairs under 20 % identity.

    Args:
        scores_by_method: one score per pair, shape `(pairs,)` each.
        label_match_by_method: one label match score per pair, shape `(pairs,)` each; negatives
            are ignored, so NaN will do there. Methods may be absent.
        labels: 1 or 0 per pair, shape `(pairs,)`.
        identities: sequence identity per pair between 0 and 1, shape `(pairs,)`.

    Returns:
        One row per method, in the order of `scores_by_method`.

    Raises:
        ValueError: if lengths disagree, a score is NaN, or a positive lacks its label match.

    Example:
        >>> rows = summary({"m": [0.9, 0.2]}, {"m": [0.5, float("nan")]}, [1, 0], [0.1, 0.1])
        >>> rows[0].roc_auc, rows[0].label_match, rows[0].n_positive_low
        (1.0, 0.5, 1)
    """
    positive = np.asarray(labels) == 1
    low = np.asarray(identities) < LOW_IDENTITY
    counts = [int(group.sum()) for group in (positive, ~positive, positive & low, ~positive & low)]
    rows = []
    for method, scores in scores_by_method.items():
        matches = label_match_by_method.get(method)
        rows.append(
            SummaryRow(
                method,
                _area(positive, scores, np.ones_like(low)),
                _area(positive, scores, low),
                _mean(method, matches, positive),
                _mean(method, matches, positive & low),
                *counts,
            )
        )
    return rows


def _area(positive: NDArray[np.bool_], scores: Sequence[float], chosen: NDArray[np.bool_]) -> float:
    if len(np.unique(positive[chosen])) < 2:
        return float("nan")
    return roc_auc(positive[chosen], np.asarray(scores)[chosen])


def _mean(method: str, matches: Sequence[float] | None, chosen: NDArray[np.bool_]) -> float:
    if matches is None or not chosen.any():
        return float("nan")
    values = np.asarray(matches, dtype=float)[chosen]
    missing = int(np.isnan(values).sum())
    if missing:
        raise ValueError(
            f"{method} lacks a label match score for {missing} of {len(values)} positives; "
            "leave out proteins without a labelled residue before drawing pairs"
        )
    return float(values.mean())


def summarise_results(results: Sequence[PairResult], per: Per = "shorter") -> list[SummaryRow]:
    """Summarise the results of `run_baselines`, one row per method."""
    scores = {name: [result.scores[name] for result in results] for name in METHODS}
    matches = {
        name: [result.label_match.get(name, float("nan")) for result in results]
        for name in (*GAP_OPEN, "identity")
    }
    labels = [result.label for result in results]
    field_name = "identity_columns" if per == "columns" else "identity"
    return summary(scores, matches, labels, [getattr(result, field_name) for result in results])


def median_milliseconds(results: Sequence[PairResult]) -> dict[str, float]:
    """Take the median time per pair of each aligning method, in milliseconds."""
    return {
        name: 1000 * float(np.median([result.seconds[name] for result in results]))
        for name in GAP_OPEN
    }


def to_markdown(rows: Sequence[SummaryRow]) -> str:
    """Render rows as a Markdown table, the numbers of pairs in its header.

    Args:
        rows: rows over the same pairs.

    Returns:
        The table, without a final newline.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> rows = summary({"m": [0.9, 0.2]}, {}, [1, 0], [0.1, 0.5])
        >>> print(to_markdown(rows).splitlines()[-1])
        | m | 1.000 | - | - | - |
    """
    if not rows:
        raise ValueError("there are no rows to render; give the rows that `summary` returns")
    first = rows[0]
    header = (
        "method",
        f"ROC-AUC ({first.n_positive} + {first.n_negative})",
        f"ROC-AUC < 20 % ({first.n_positive_low} + {first.n_negative_low})",
        f"label match ({first.n_positive})",
        f"label match < 20 % ({first.n_positive_low})",
    )
    lines = [_line(header), _line(["---"] + ["--:"] * 4)]
    for row in rows:
        values = (row.roc_auc, row.roc_auc_low, row.label_match, row.label_match_low)
        lines.append(_line([row.method, *("-" if v != v else f"{v:.3f}" for v in values)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
