"""Training, validation and test parts of structures that share no sequence cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .clusters import IDENTITIES, Method, choose_method, cluster_sequences, connect

LOWEST_IDENTITY = {"mmseqs": 0.3, "kmers": IDENTITIES[0]}


@dataclass(frozen=True)
class ClusterSplit:
    """Say which proteins are in which part; no cluster is in two of them.

    Attributes:
        train: Places of the proteins to learn from, in rising order.
        validation: Places of those to stop by.
        test: Places of those to judge by.
        clusters: Cluster of each protein, named by the place of its first member.
        method: What compared the sequences, "mmseqs" or "kmers".
        identity: Identity from which on two proteins are in one cluster.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    clusters: tuple[int, ...]
    method: str
    identity: float


def split_by_cluster(
    sequences: Sequence[str],
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    groups: Sequence[Hashable] | None = None,
    identity: float | None = None,
    method: Method = "auto",
) -> ClusterSplit:
    """Split proteins so that none in one part is similar to one in another.

    Clusters are drawn in random order and fill test, then validation, as long as they fit; what
    does not, large clusters above all, is for training. Two forms of one protein, such as bound
    and unbound, are near-identical and so end in one part; the two sides of a complex are in
    general not, and stay together only if `groups` says so.

    Args:
        sequences: One-letter residues of each protein.
        fractions: Shares of the proteins for train, validation and test; they sum to 1.
        seed: Seed of the order of clusters.
        groups: Group of each protein, such as its complex; a group is not divided.
        identity: Identical residues / length of the shorter protein, from which on two are
            similar; by default 0.3 with MMseqs2, and 0.4 by k-mers, which see no further.
        method: As in `cluster_sequences`.

    Returns:
        Places by part, and clusters.

    Raises:
        ValueError: If fractions do not sum to 1, or there is not one group for each protein.
        FileNotFoundError: If MMseqs2 is asked for and is not installed.

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
    if groups is not None and len(groups) != len(sequences):
        raise ValueError(f"{len(groups)} groups for {len(sequences)} sequences; give one for each")
    method = choose_method(method)
    identity = LOWEST_IDENTITY[method] if identity is None else identity
    clusters = _clusters(sequences, identity, method, groups)
    parts = _draw(clusters, fractions, seed)
    train, validation, test = (tuple(np.flatnonzero(parts == part).tolist()) for part in range(3))
    return ClusterSplit(train, validation, test, tuple(clusters), method, identity)


def _clusters(
    sequences: Sequence[str], identity: float, method: Method, groups: Sequence[Hashable] | None
) -> list[int]:
    # Ids of one width, so that their order as text is that of the places.
    by_id = {f"{place:09d}": sequence for place, sequence in enumerate(sequences)}
    found = cluster_sequences(by_id, identity, method)
    clusters = [int(found[key]) for key in by_id]
    first: dict[Hashable, int] = {}
    links = [(place, clusters[place]) for place in range(len(clusters))]
    links += [(place, first.setdefault(group, place)) for place, group in enumerate(groups or ())]
    component = connect(range(len(clusters)), links)
    return [component[place] for place in range(len(clusters))]


def _draw(
    clusters: Sequence[int], fractions: tuple[float, float, float], seed: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Give the part of each protein: 0 for train, 1 for validation, 2 for test."""
    sizes = Counter(clusters)
    room = [round(len(clusters) * share) for share in fractions]
    parts = dict.fromkeys(sizes, 0)
    for cluster in np.random.default_rng(seed).permutation(sorted(sizes)).tolist():
        for part in (2, 1):
            if sizes[cluster] <= room[part]:
                room[part] -= sizes[cluster]
                parts[cluster] = part
                break
    return np.array([parts[cluster] for cluster in clusters], dtype=np.int64)
