"""Lists of pairs, and one protein against a store: what `forward` computes, by another way."""

import pytest
import torch

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import EmbeddingStore
from plasma_hf.kernels import use_kernels

LENGTHS = [(40, 40), (70, 25), (12, 90), (7, 60), (33, 5), (1, 1), (1, 30)]
CONFIGS = {
    "published": {},
    "hinge": {"head": "hinge", "kernel_scale": 0.3},
    "mass": {"score_form": "mass"},
    "posterior": {"reading": "posterior"},
    "no window": {"diagonal_window": 0},
}


def make_model(**fields):
    torch.manual_seed(0)
    options = {"embedding_size": 24, "head_size": 20, "threshold": 0.3, "kernel_scale": 3.0}
    return PlasmaModel(PlasmaConfig(**options | fields)).eval()


def make_proteins(lengths, seed=0):
    """Make proteins that share a stretch, so that something is matched."""
    generator = torch.Generator().manual_seed(seed)
    common = 4 * torch.randn(30, 24, generator=generator)
    proteins = []
    for length in lengths:
        protein = 4 * torch.randn(length, 24, generator=generator)
        shared = min(length, 30)
        protein[:shared] = common[:shared] + 0.1 * torch.randn(shared, 24, generator=generator)
        proteins.append(protein)
    return proteins


KERNELS = [(name, kernels) for name in CONFIGS for kernels in ("numba", "torch")]
KERNELS += [("published", "triton"), ("mass", "triton")]  # slow in its interpreter


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), KERNELS)
def test_lists_of_pairs_give_what_forward_gives(name, kernels):
    if kernels != "torch":
        pytest.importorskip(kernels)
    model = make_model(**CONFIGS[name])
    queries, candidates = (make_proteins(side, 1) for side in zip(*LENGTHS, strict=True))
    with use_kernels(kernels):
        aligned = model.align_pairs(queries, candidates)
        scores = model.align_pairs(queries, candidates, return_plans=False)
        ready = model.align_pairs(
            queries,
            candidates,
            query_projections=[model.project(query) for query in queries],
            candidate_projections=[model.project(candidate) for candidate in candidates],
        )
    assert scores.plans is None and aligned.scores.max() > 0.1
    assert torch.allclose(scores.scores, aligned.scores, atol=1e-6)
    assert torch.equal(ready.scores, aligned.scores)
    with use_kernels("torch"), torch.no_grad():
        for p, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
            wanted = model(query[None], candidate[None], return_plan=True)
            assert torch.allclose(aligned.scores[p], wanted.scores[0], atol=1e-5), LENGTHS[p]
            assert torch.allclose(aligned.plans[p], wanted.plan[0], atol=1e-5), LENGTHS[p]


def test_lists_that_do_not_fit():
    model = make_model()
    with pytest.raises(ValueError, match="1 queries and 2 candidates"):
        model.align_pairs(make_proteins([5]), make_proteins([5, 6]))
    assert model.align_pairs([], []).scores.shape == (0,)
    anything = PlasmaModel(PlasmaConfig(embedding_size=None, head="hinge"))
    message = "query embeddings have width 24, candidate embeddings 8; embed both with the same"
    for kernels in ("numba", "torch"):
        with use_kernels(kernels), pytest.raises(ValueError, match=message):
            anything.align_pairs([torch.randn(5, 24)], [torch.randn(5, 8)])
        with use_kernels(kernels), pytest.raises(ValueError, match=message):
            anything(torch.randn(1, 5, 24), torch.randn(1, 5, 8))


class Ready:
    """An embedder whose proteins were embedded before."""

    fingerprint = {"backbone": "ready", "revision": "", "recipe": "none", "weights": "0"}
    hidden_size = 24

    def __init__(self, proteins):
        self.proteins = proteins

    def embed(self, sequences):
        return [self.proteins[sequence] for sequence in sequences]


def spell(number, length):
    """Give every protein a sequence of its own."""
    letters = "ACDEFGHIKLMNPQRSTVWY"
    return "".join(letters[(number // 20**i) % 20] for i in range(3)) + "A" * (length - 3)


@pytest.fixture
def proteins():
    lengths = [20 + 7 * i for i in range(40)]
    embedded = make_proteins(lengths, 2)
    for i in range(0, 40, 2):  # every other one shares nothing
        torch.manual_seed(i)
        embedded[i] = 4 * torch.randn(len(embedded[i]), 24)
    return {spell(i, len(rows)): rows for i, rows in enumerate(embedded)}


def make_store(folder, model, proteins, kinds):
    embedder = Ready(proteins)
    store = EmbeddingStore.create(folder, embedder, model, kinds=kinds)
    store.shard_bytes = 100_000
    store.add([(f"P{i}", sequence) for i, sequence in enumerate(proteins)], embedder, model)
    return EmbeddingStore.open(folder)


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("name", ["published", "hinge", "mass", "posterior"])
@pytest.mark.parametrize("kinds", [("embeddings", "projections"), ("embeddings",)])
def test_one_against_many_finds_the_best(tmp_path, proteins, name, kernels, kinds):
    model = make_model(**CONFIGS[name])
    store = make_store(tmp_path, model, proteins, kinds)
    queries = make_proteins([35, 61], 2)
    with use_kernels(kernels):
        found = model.score_many(queries, store, top_k=7)
    for query, hits in zip(queries, found, strict=True):
        every = model.align_pairs([query] * len(proteins), list(proteins.values()))
        order = every.scores.argsort(descending=True)[:7].tolist()
        assert [hit.score for hit in hits] == pytest.approx(every.scores[order].tolist(), abs=1e-5)
        assert hits[0].score > 0.05
        for hit in hits:
            number = int(hit.ids[0][1:])
            assert hit.score == pytest.approx(every.scores[number].item(), abs=1e-5)
            assert torch.allclose(hit.plan, every.plans[number], atol=1e-5)


def test_one_query_few_proteins_and_no_plans(tmp_path, proteins):
    model = make_model()
    store = make_store(tmp_path, model, proteins, None)
    [hits] = model.score_many(make_proteins([35], 2)[0], store, top_k=100, return_plans=False)
    assert len(hits) == len(proteins) and all(hit.plan is None for hit in hits)
    with pytest.raises(ValueError, match="top_k=0; give at least 1"):
        model.score_many(make_proteins([35], 2)[0], store, top_k=0)


def test_stores_that_do_not_fit(tmp_path, proteins):
    model = make_model()
    store = make_store(tmp_path / "both", model, proteins, None)
    with pytest.raises(ValueError, match="projections of another head than this model's"):
        make_model(head="hinge").score_many(make_proteins([9]), store)
    alone = make_store(tmp_path / "alone", model, proteins, ["projections"])
    with pytest.raises(ValueError, match="make one that keeps both"):
        model.score_many(make_proteins([9]), alone)
    plain = make_store(tmp_path / "plain", model, proteins, ["embeddings"])
    with pytest.raises(ValueError, match="keeps embeddings of width 24, this model takes 32"):
        make_model(embedding_size=32).score_many([torch.randn(9, 32)], plain)
