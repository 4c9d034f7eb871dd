"""Aligners: PLASMA, sequence, embedding and structure baselines."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaModel, load_backbone
from plasma_hf.data import EmbeddingStore, ProteinPair, SiteProtein
from plasma_hf.evaluation import (
    CachedEmbeddings,
    Composition,
    EmbeddingAlignment,
    Foldseek,
    Length,
    MeanCosine,
    NeedlemanWunsch,
    PlasmaAligner,
    SmithWaterman,
    StoredEmbeddings,
    TMAlign,
    align_sequences,
    global_identity,
    parameter_free,
    with_settings,
)
from plasma_hf.evaluation.aligners import _enhanced_similarity, _path_of_rows

CHAIN = "MKVLATWCHEGQRSDIFYNP"
STRUCTURES = Path(__file__).parents[2] / "shared" / "data" / "structures" / "foldseek_example"


def site_protein(uid: str, sequence: str) -> SiteProtein:
    return SiteProtein(uid, "F", sequence, (0,) * len(sequence))


def pair_of(query: str, candidate: str) -> ProteinPair:
    return ProteinPair(site_protein("Q", query), site_protein("C", candidate), 1)


class CountingBackbone:
    """Embed with the substitution encoder, and count the sequences."""

    def __init__(self) -> None:
        self.backbone, self.embedded = load_backbone("substitution"), []
        self.fingerprint, self.hidden_size = self.backbone.fingerprint, self.backbone.hidden_size

    def embed(self, sequences: Any) -> Any:
        self.embedded += sequences
        return self.backbone.embed(sequences)


@pytest.fixture
def source() -> CachedEmbeddings:
    return CachedEmbeddings(CountingBackbone())


def test_plasma_gives_what_the_model_gives(source: CachedEmbeddings) -> None:
    model = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT)
    pairs = [pair_of(CHAIN, CHAIN[4:]), pair_of(CHAIN[4:], CHAIN + CHAIN)]
    results = PlasmaAligner(model, source, "default").align(pairs)
    for pair, result in zip(pairs, results, strict=True):
        rows = source.get([pair.query.sequence, pair.candidate.sequence])
        out = model(
            query_embeddings=rows[pair.query.sequence][None],
            candidate_embeddings=rows[pair.candidate.sequence][None],
            return_plan=True,
        )
        assert result.score == pytest.approx(float(out.scores), abs=1e-4)
        np.testing.assert_allclose(result.plan, out.plan[0].numpy(), atol=1e-4)
    assert sorted(source.embedder.embedded) == sorted({CHAIN, CHAIN[4:], CHAIN + CHAIN})


def test_embeddings_beyond_the_limit_are_forgotten() -> None:
    source = CachedEmbeddings(CountingBackbone(), max_residues=25)
    for sequence in (CHAIN, CHAIN[:4], CHAIN[:15], CHAIN):
        assert len(source.get([sequence])[sequence]) == len(sequence)
    assert source.embedder.embedded == [CHAIN, CHAIN[:4], CHAIN[:15], CHAIN]
    assert sum(map(len, source.kept.values())) <= 25


def test_a_store_gives_the_same(source: CachedEmbeddings, tmp_path: Path) -> None:
    embedder = load_backbone("substitution")
    store = EmbeddingStore.create(tmp_path / "store", embedder)
    store.add([("whole", CHAIN), ("part", CHAIN[3:])], embedder)
    pairs = [pair_of(CHAIN, CHAIN[3:])]
    sources = (source, StoredEmbeddings(store))
    first, second = (PlasmaAligner(parameter_free(), s, "pf").align(pairs)[0] for s in sources)
    assert first.score == second.score
    with pytest.raises(KeyError, match="plasma-hf embed"):
        StoredEmbeddings(store).get(["WWW"])


def test_settings_leave_the_model_as_it_is() -> None:
    model = parameter_free()
    changed = with_settings(model, kernel_scale=0.3, n_iters=5)
    assert (changed.config.kernel_scale, changed.config.n_iters) == (0.3, 5)
    assert (model.config.kernel_scale, model.config.n_iters) == (0.1, 20)
    with pytest.raises(ValueError, match="kernel_scale=-1"):
        with_settings(model, kernel_scale=-1)


def test_sequence_alignments_differ_in_their_ends() -> None:
    query, candidate = "WWWW" + CHAIN, CHAIN[2:] + "GGGG"
    local = align_sequences(query, candidate, "local")
    free = align_sequences(query, candidate, "free-ends")
    charged = align_sequences(query, candidate, "global")
    assert local[0] == free[0] > charged[0]
    assert local[1].tolist() == [[i + 6, i] for i in range(18)]
    assert free[1].tolist() == local[1].tolist()


def test_paths_become_plans() -> None:
    pair = pair_of("WW" + CHAIN, CHAIN)
    for aligner in (SmithWaterman(), NeedlemanWunsch()):
        [result] = aligner.align([pair])
        np.testing.assert_array_equal(result.plan, np.eye(22, 20, k=-2))
    nothing = SmithWaterman().align([pair_of("WWW", "GGG")])[0]
    assert (nothing.score, nothing.plan.sum(), nothing.plan.shape) == (0.0, 0.0, (3, 3))


def test_letters_that_blosum_lacks() -> None:
    assert align_sequences("mkUOJ", "MKCKX", "global")[0] > 0
    assert global_identity("MKVL", "MKVL") == 1.0


def test_length_and_composition_have_no_plan() -> None:
    pair = pair_of("MKKM", "KM")
    assert [a.align([pair])[0].score for a in (Length(), Composition())] == [0.5, 1.0]
    assert all(a.align([pair])[0].plan is None for a in (Length(), Composition()))


def test_mean_cosine(source: CachedEmbeddings) -> None:
    rows = source.get([CHAIN, CHAIN[:7]])
    means = [rows[s].double().mean(0) for s in (CHAIN, CHAIN[:7])]
    want = torch.nn.functional.cosine_similarity(*means, dim=0)
    [result] = MeanCosine(source).align([pair_of(CHAIN, CHAIN[:7])])
    assert result.score == pytest.approx(float(want))
    assert result.plan is None


def test_eba_finds_a_shifted_copy(source: CachedEmbeddings) -> None:
    aligner = EmbeddingAlignment(source)
    same, part = aligner.align([pair_of(CHAIN, CHAIN), pair_of(CHAIN, CHAIN[5:])])
    np.testing.assert_array_equal(same.plan, np.eye(20))
    assert [row.argmax() for row in part.plan[8:]] == list(range(3, 15))
    assert same.score > aligner.align([pair_of(CHAIN, CHAIN[::-1])])[0].score > 0


def test_enhanced_similarity_follows_its_definition() -> None:
    rng = np.random.default_rng(0)
    query, candidate = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    similarity = torch.exp(-torch.cdist(torch.tensor(query), torch.tensor(candidate)))
    parts = [
        (similarity - similarity.mean(dim, keepdim=True)) / similarity.std(dim, keepdim=True)
        for dim in (0, 1)
    ]
    want = ((parts[0] + parts[1]) / 2).numpy()
    np.testing.assert_allclose(_enhanced_similarity(query, candidate), want, atol=1e-10)
    far = _enhanced_similarity(1000 * query, 1000 * candidate)
    assert np.isfinite(far).all() and far.std() > 0
    assert (_enhanced_similarity(query[:1], candidate[:1]) == 0).all()
    assert np.isfinite(_enhanced_similarity(np.ones((3, 2)), np.ones((4, 2)))).all()


def test_rows_with_gaps_on_both_sides() -> None:
    assert _path_of_rows("M-KV", "MLK-", (2, 5)).tolist() == [[2, 5], [3, 7]]
    assert _path_of_rows("M-", "-M").shape == (0, 2)


@pytest.fixture(scope="module")
def globins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SiteProtein]]:
    if not STRUCTURES.is_dir():
        pytest.skip("the structures (../shared/data/structures) are not beside this clone")
    from plasma_hf.models.protein import read_protein

    folder = tmp_path_factory.mktemp("globins")
    found = []
    for uid in ("d1asha_", "d1b0ba_"):
        path = folder / f"{uid}.pdb"
        path.write_bytes((STRUCTURES / uid).read_bytes())
        found.append(site_protein(uid, read_protein(path).sequence or ""))
    return folder, found


def test_tm_align_on_two_structures(globins: tuple[Path, list[SiteProtein]]) -> None:
    pytest.importorskip("tmtools")
    folder, (one, other) = globins
    aligner = TMAlign(folder)
    same, two = aligner.align([ProteinPair(one, one, 1), ProteinPair(one, other, 1)])
    assert same.score == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_array_equal(same.plan, np.eye(len(one.sequence)))
    assert 0 < two.score < 1 and two.plan.sum() > 0
    shorter = site_protein(one.uid, one.sequence[1:])
    with pytest.raises(ValueError, match=f"structure of {one.uid} has"):
        aligner.align([ProteinPair(shorter, other, 1)])
    with pytest.raises(FileNotFoundError, match="no structure of nobody"):
        aligner.align([ProteinPair(site_protein("nobody", "MK"), other, 1)])


FAKE_FOLDSEEK = """#!/bin/sh
# easy-search QUERIES CANDIDATES OUT TMP ...: every query hits itself, with its first two residues
for file in $2/*; do name=$(basename "$file")
printf '%s\\t%s\\t100\\t1\\t1\\tAA\\tAA\\n' "$name" "$name"
printf '%s\\t%s\\t12.5\\t3\\t3\\tA-A\\tAAA\\n' "$name" "$name"; done > $4
"""


def test_foldseek_scores_a_miss_0(globins: tuple[Path, list[SiteProtein]], tmp_path: Path) -> None:
    folder, (one, other) = globins
    program = tmp_path / "foldseek"
    program.write_text(FAKE_FOLDSEEK)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    aligner = Foldseek(folder, str(program))
    hit, miss = aligner.align([ProteinPair(one, one, 1), ProteinPair(one, other, 0)])
    assert (hit.score, np.argwhere(hit.plan).tolist()) == (100.0, [[0, 0], [1, 1]])
    assert (miss.score, miss.plan.sum()) == (0.0, 0.0)


def test_foldseek_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="leave this baseline out"):
        Foldseek(".", "no-such-foldseek")
