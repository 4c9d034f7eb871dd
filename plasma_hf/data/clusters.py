"""Groups of similar proteins: identity by MMseqs2 where it is installed, by k-mers otherwise.

Identity is the number of identical residues in the alignment / length of the shorter protein, so
that a fragment is as close to its full-length protein as a copy is.

Without MMseqs2 identity is read from how many different 4-mers two proteins have in common, as a
share of those of the shorter, less what chance gives two proteins of their lengths (`KmerIndex`).
Calibrated on 4,073 pairs of one family (UniProtKB/Swiss-Prot and InterPro) by global BLOSUM62
alignments, gap 11/1, free ends: `MEDIAN_SHARE` is the share that half of the pairs of an identity
exceed, `LEAST_SHARE` the one that nine tenths do. Two proteins are called similar from
`LEAST_SHARE` on. At 50 % that takes in 98.6 % of the pairs of at least that identity and 3 % of
those under 40 %; of pairs of different families, fewer than one in a thousand comes that far, most
of them homologous (a sample had a median identity of 47 %).
"""

from __future__ import annotations

import csv
import logging
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Method = Literal["auto", "mmseqs", "kmers"]
Item = TypeVar("Item", int, str)

K = 4
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
# Fewer common 4-mers than this are chance, however short a protein is.
MIN_SHARED = 6
# Pairs of 4-mers that are equal by chance, as a multiple of 20 ** -4: residues are not uniform.
CHANCE = 1.5
IDENTITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LEAST_SHARE = (0.036, 0.072, 0.134, 0.264, 0.386, 0.624, 1.0)
# Shares and the identity that they stand for; under 40 % they say no more than chance.
MEDIAN_SHARE = (0.0, 0.039, 0.083, 0.156, 0.254, 0.406, 0.543, 0.892, 1.0)
AT_IDENTITY = (0.0, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0)


class Clusters(dict[str, str]):
    """Map the id of each protein to the id of its cluster, which is that of its first member."""

    method: str  # "mmseqs" or "kmers", whichever compared the sequences
    identity: float  # from which on two proteins are in one cluster


def cluster_sequences(
    sequences: Mapping[str, str], identity: float = 0.5, method: Method = "auto"
) -> Clusters:
    """Put proteins together that are linked by a chain of similar ones.

    These are connected components (single linkage), so that no protein of one cluster is similar
    to one of another: what a split without leaks needs.

    Args:
        sequences: Sequence by id; their order has no influence.
        identity: Identical residues / length of the shorter protein, from which on two are
            similar; for k-mers from 0.4 to 1.
        method: "mmseqs", "kmers", or "auto" for MMseqs2 if `mmseqs` is on the PATH.

    Example:
        >>> a, b = "MKVLAWQERTYHGFDSPNIC", "WYTRHNMQDCEKPVLFGAIS"
        >>> clusters = cluster_sequences({"P3": b, "P1": a, "P2": a[2:]}, method="kmers")
        >>> clusters, clusters.method
        ({'P1': 'P1', 'P2': 'P1', 'P3': 'P3'}, 'kmers')
    """
    method = _choose_method(method)
    ids = sorted(sequences)
    found = _components([sequences[key] for key in ids], identity, method)
    clusters = Clusters(zip(ids, (ids[first] for first in found), strict=True))
    clusters.method, clusters.identity = method, identity
    return clusters


def _components(
    sequences: Sequence[str], identity: float, method: Literal["mmseqs", "kmers"]
) -> list[int]:
    """Return, by protein, the place of the first that a chain of similar ones links."""
    lowest = IDENTITIES[0]
    if not (lowest if method == "kmers" else 0) <= identity <= 1:
        raise ValueError(
            f"identity is {identity}; give {lowest} to 1, or, with MMseqs2 on the PATH, 0 to 1"
        )
    different = sorted(set(sequences))
    first: dict[str, int] = {}
    links = [(place, first.setdefault(sequence, place)) for place, sequence in enumerate(sequences)]
    links += [
        (first[different[i]], first[different[j]])
        for i, j in _similar_pairs(different, identity, method)
    ]
    clusters = list(connect(range(len(sequences)), links).values())
    logger.info("%d proteins in %d clusters, by %s", len(clusters), len(set(clusters)), method)
    return clusters


def _similar_pairs(
    sequences: Sequence[str], identity: float, method: str
) -> Iterator[tuple[int, int]]:
    if method == "mmseqs":
        for i, j, value in _mmseqs_search(sequences, sequences):
            if value >= identity:
                yield i, j
        return
    index = KmerIndex(sequences)
    least = np.interp(identity, IDENTITIES, LEAST_SHARE)
    for i, sequence in enumerate(sequences):
        for j in np.flatnonzero(index.shares(sequence) >= least).tolist():
            yield i, j


def nearest_identity(
    queries: Sequence[str], targets: Sequence[str], method: Method = "auto"
) -> tuple[NDArray[np.float64], str]:
    """Estimate how close each query comes to any target.

    Returns:
        Identity of each query with its nearest target, 0 where nothing is found, `(queries,)`;
        and "mmseqs" or "kmers", whichever found it. By k-mers, values under 0.4 are no more than
        what unrelated proteins reach by chance.
    """
    method = _choose_method(method)
    nearest = np.zeros(len(queries))
    if not queries or not targets:
        return nearest, method
    if method == "mmseqs":
        for number, _, value in _mmseqs_search(queries, targets):
            nearest[number] = max(nearest[number], value)
    else:
        index = KmerIndex(targets)
        for number, query in enumerate(queries):
            nearest[number] = np.interp(index.shares(query).max(), MEDIAN_SHARE, AT_IDENTITY)
    same = set(targets)
    nearest[[query in same for query in queries]] = 1.0
    return nearest, method


def _choose_method(method: Method) -> Literal["mmseqs", "kmers"]:
    """Choose what compares sequences: MMseqs2 where it is installed, unless told otherwise."""
    installed = shutil.which("mmseqs") is not None
    if method == "mmseqs" and not installed:
        raise FileNotFoundError(
            "there is no mmseqs on the PATH; install MMseqs2 (https://mmseqs.com), or give "
            "method='kmers'"
        )
    return "mmseqs" if installed and method != "kmers" else "kmers"


def connect(items: Iterable[Item], pairs: Iterable[tuple[Item, Item]]) -> dict[Item, Item]:
    """Find connected components: for each item, the smallest of those linked to it."""
    parent = {item: item for item in items}

    def root(item: Item) -> Item:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {item: root(item) for item in parent}


class KmerIndex:
    """Find the sequences that have many 4-mers, of the twenty letters, in common with one."""

    def __init__(self, sequences: Sequence[str]) -> None:
        found = [_kmers(sequence) for sequence in sequences]
        self.sizes = np.array([len(kmers) for kmers in found], dtype=np.int64)
        kmers = np.concatenate([*found, np.empty(0, dtype=np.int64)])
        order = np.argsort(kmers, kind="stable")
        self.owners = np.repeat(np.arange(len(found)), self.sizes)[order]
        counts = np.bincount(kmers, minlength=len(LETTERS) ** K)
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def shares(self, sequence: str) -> NDArray[np.float64]:
        """Compute the share of the 4-mers of the shorter that is in the other, less chance."""
        kmers = _kmers(sequence)
        counts = self.starts[kmers + 1] - self.starts[kmers]
        # Positions of the listed owners of all k-mers, one after the other.
        before = np.repeat(np.cumsum(counts) - counts, counts)
        where = np.repeat(self.starts[kmers], counts) + np.arange(counts.sum()) - before
        shared = np.bincount(self.owners[where], minlength=len(self.sizes))
        shorter = np.minimum(self.sizes, len(kmers))
        chance = CHANCE * self.sizes * len(kmers) / len(LETTERS) ** K
        shares = (shared - chance) / np.maximum(shorter - chance, 1)
        return np.where(shared >= MIN_SHARED, np.clip(shares, 0, 1), 0.0)


_CODES = np.full(256, -1, dtype=np.int64)
_CODES[[ord(letter) for letter in LETTERS]] = range(len(LETTERS))


def _kmers(sequence: str) -> NDArray[np.int64]:
    """Return the different 4-mers of a sequence as numbers."""
    codes = _CODES[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]
    count = max(len(codes) - K + 1, 0)
    windows = [codes[start : start + count] for start in range(K)]
    numbers = sum(window * len(LETTERS) ** power for power, window in enumerate(windows))
    whole = np.logical_and.reduce([window >= 0 for window in windows])
    return np.unique(np.asarray(numbers)[whole])


def _mmseqs_search(
    queries: Sequence[str], targets: Sequence[str]
) -> Iterator[tuple[int, int, float]]:
    """Search all queries among all targets; yield their numbers and the identity."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("queries.fasta", "targets.fasta", "hits.tsv")]
        for file, sequences in zip(files, (queries, targets), strict=False):
            # Numbers for names: MMseqs2 reads accessions out of names that look like UniProt's.
            file.write_text("".join(f">n{i}\n{s}\n" for i, s in enumerate(sequences)))
        command = ["mmseqs", "easy-search", *map(str, files), str(Path(folder) / "tmp"), "-a"]
        command += ["--format-output", "query,target,nident,qlen,tlen"]
        command += ["-s", "7.5", "-e", "0.001", "--max-seqs", "1000", "-v", "1"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise OSError(f"mmseqs failed: {result.stderr.strip() or result.stdout.strip()}")
        with open(files[2], newline="") as hits:
            for query, target, same, *lengths in csv.reader(hits, delimiter="\t"):
                yield int(query[1:]), int(target[1:]), float(same) / min(map(int, lengths))


# --- Training, validation and test parts of structures that share no sequence cluster.

PARTS = ("train", "validation", "test")
LOWEST_IDENTITY = {"mmseqs": 0.3, "kmers": IDENTITIES[0]}


@dataclass(frozen=True)
class ClusterSplit:
    """Places of the proteins of each part, in rising order; no cluster is in two parts."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    clusters: tuple[int, ...]  # of each protein, named by the place of its first member
    method: str  # "mmseqs" or "kmers", whichever compared the sequences
    identity: float  # from which on two proteins are in one cluster


def split_by_cluster(
    sequences: Sequence[str],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    identity: float | None = None,
    method: Method = "auto",
) -> ClusterSplit:
    """Split proteins so that none in one part is similar to one in another.

    Clusters are drawn in random order and fill test, then validation, as long as they fit; those
    that do not, large ones above all, are for training. Two forms of one protein, such as bound
    and unbound, are near-identical and so end in one part; the two sides of a complex in general
    are not.

    Args:
        fractions: Shares of the proteins for train, validation and test; they sum to 1.
        identity: Identical residues / length of the shorter protein, from which on two are
            similar; by default 0.3 with MMseqs2, and 0.4 by k-mers, which see no further.

    Example:
        >>> a, b = "MKVLAWQERTYHGFDSPNIC", "WYTRHNMQDCEKPVLFGAIS"
        >>> split = split_by_cluster([a, b, a[1:], a], (0.75, 0, 0.25), method="kmers")
        >>> split.train, split.test, split.clusters
        ((0, 2, 3), (1,), (0, 1, 0, 0))
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"fractions are {fractions}; give shares for train, validation and test that sum to 1"
        )
    method = _choose_method(method)
    identity = LOWEST_IDENTITY[method] if identity is None else identity
    clusters = _components(sequences, identity, method)
    sizes = Counter(clusters)
    counts = (round(len(clusters) * share) for share in fractions)
    room = dict(zip(PARTS, counts, strict=True))
    part_of = {}
    for cluster in np.random.default_rng(seed).permutation(sorted(sizes)).tolist():
        fits = [part for part in ("test", "validation") if sizes[cluster] <= room[part]]
        part_of[cluster] = fits[0] if fits else "train"
        room[part_of[cluster]] -= sizes[cluster]
    places = {
        part: tuple(i for i, cluster in enumerate(clusters) if part_of[cluster] == part)
        for part in PARTS
    }
    return ClusterSplit(**places, clusters=tuple(clusters), method=method, identity=identity)
