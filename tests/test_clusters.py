"""Clusters of similar sequences, by k-mers and by an MMseqs2 that is not really there."""

from __future__ import annotations

import numpy as np
import pytest

from plasma_hf.data import clusters
from plasma_hf.data.clusters import cluster_sequences, nearest_identity

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def make_sequence(rng: np.random.Generator, length: int = 200) -> str:
    return "".join(rng.choice(LETTERS, length))


def mutate(sequence: str, identity: float, rng: np.random.Generator) -> str:
    """Change a share of the residues to others."""
    new = list(sequence)
    for i in rng.permutation(len(new))[: round((1 - identity) * len(new))]:
        new[i] = rng.choice([letter for letter in LETTERS if letter != new[i]])
    return "".join(new)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_near_copies_are_together_and_others_apart(rng):
    ancestors = [make_sequence(rng) for _ in range(30)]
    named = {f"A{i:02d}": sequence for i, sequence in enumerate(ancestors)}
    named |= {f"B{i:02d}": mutate(sequence, 0.75, rng) for i, sequence in enumerate(ancestors)}
    found = cluster_sequences(named, method="kmers")
    assert found == {key: f"A{key[1:]}" for key in sorted(named)}
    assert (found.method, found.identity) == ("kmers", 0.5)


def test_a_chain_is_one_cluster(rng):
    first = make_sequence(rng)
    second = mutate(first, 0.7, rng)
    third = mutate(second, 0.7, rng)
    chain = {"P1": first, "P2": second, "P3": third}
    assert set(cluster_sequences(chain, 0.6, "kmers").values()) == {"P1"}


def test_a_fragment_is_with_its_protein(rng):
    whole = make_sequence(rng, 400)
    assert set(cluster_sequences({"P1": whole, "P2": whole[100:160]}, method="kmers").values()) == {
        "P1"
    }


def test_a_higher_identity_takes_clusters_apart(rng):
    first = make_sequence(rng)
    pair = {"P1": first, "P2": mutate(first, 0.75, rng)}
    assert len(set(cluster_sequences(pair, 0.5, "kmers").values())) == 1
    assert len(set(cluster_sequences(pair, 0.9, "kmers").values())) == 2


def test_equal_sequences_are_together_whatever_they_are_of():
    odd = {"P1": "MK", "P2": "MK", "P3": "XXXXXXXXXX", "P4": "XXXXXXXXXX", "P5": "MKV"}
    found = cluster_sequences(odd, method="kmers")
    assert found == {"P1": "P1", "P2": "P1", "P3": "P3", "P4": "P3", "P5": "P5"}
    assert cluster_sequences({}, method="kmers") == {}


def test_order_has_no_influence(rng):
    named = {f"P{i}": make_sequence(rng, 60) for i in range(10)}
    turned = dict(reversed(named.items()))
    assert cluster_sequences(named, method="kmers") == cluster_sequences(turned, method="kmers")


def test_identity_is_checked():
    with pytest.raises(ValueError, match="identity is 0.2; give 0.4 to 1"):
        cluster_sequences({"P1": "MKV"}, 0.2, "kmers")


def test_nearest_identity_is_near_the_truth(rng):
    targets = [make_sequence(rng) for _ in range(20)]
    for identity in (0.6, 0.8, 0.95):
        queries = [mutate(target, identity, rng) for target in targets]
        found, method = nearest_identity(queries, targets, "kmers")
        assert method == "kmers"
        # Changes strewn evenly leave fewer 4-mers than those of evolution: the value is low.
        assert identity - 0.2 < np.median(found) < identity + 0.05
    strange, _ = nearest_identity([make_sequence(rng) for _ in range(20)], targets, "kmers")
    assert strange.max() < 0.4
    assert nearest_identity(targets[:1], [], "kmers")[0].tolist() == [0]


def test_mmseqs_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(clusters.shutil, "which", lambda name: None)
    assert cluster_sequences({"P1": "MKV"}).method == "kmers"
    with pytest.raises(FileNotFoundError, match="no mmseqs on the PATH"):
        cluster_sequences({"P1": "MKV"}, method="mmseqs")


FAKE = """#!/bin/sh
# mmseqs easy-search QUERIES TARGETS HITS TMP ...: the first two sequences are 60 % identical
printf 'n0\\tn0\\t10\\t10\\t10\\nn0\\tn1\\t6\\t10\\t12\\nn1\\tn2\\t3\\t12\\t14\\n' > "$4"
"""


@pytest.fixture
def fake_mmseqs(tmp_path, monkeypatch):
    def install(text: str) -> None:
        program = tmp_path / "mmseqs"
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_mmseqs_compares_where_it_is_installed(fake_mmseqs):
    fake_mmseqs(FAKE)
    named = {"P3": "C" * 14, "P1": "A" * 10, "P2": "B" * 12}
    found = cluster_sequences(named)
    assert found.method == "mmseqs"
    assert found == {"P1": "P1", "P2": "P1", "P3": "P3"}
    assert len(set(cluster_sequences(named, 0.1).values())) == 1
    values, method = nearest_identity(["M" * 10, "K" * 12], ["L" * 9, "V" * 12, "W" * 14])
    assert method == "mmseqs"
    assert values.tolist() == [1.0, 0.25]


def test_what_mmseqs_says_of_a_failure_is_passed_on(fake_mmseqs):
    fake_mmseqs("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    with pytest.raises(OSError, match="mmseqs failed: no space left"):
        cluster_sequences({"P1": "MKV", "P2": "MKL"})
