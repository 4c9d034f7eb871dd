"""The model: reference, invariance to batch and padding, extremes, scores, losses, backbones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config
from transformers.utils import logging

from plasma_hf import PlasmaConfig, PlasmaModel, SubstitutionConfig
from plasma_hf.kernels import use_kernels
from plasma_hf.models import modeling_plasma
from plasma_hf.models.modeling_plasma import label_match_losses, own_background, score_losses
from tests.helpers import reference

WIDTH = 12
FORMS = {"published": {}, "mass": {"score_form": "mass"}, "posterior": {"reading": "posterior"}}


def make_model(head="hinge", **options):
    torch.manual_seed(0)
    options = {"kernel_scale": 1.0, "head_size": 16, "diagonal_window": 4} | options
    return PlasmaModel(PlasmaConfig(embedding_size=WIDTH, head=head, **options)).eval()


def make_pair(n, m, seed=0):
    """Random proteins; the candidate begins with a noisy copy of the query's end."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(n, WIDTH, generator=generator)
    candidate = torch.randn(m, WIDTH, generator=generator)
    shared = min(n, m, 8)
    candidate[:shared] = query[n - shared :] + 0.1 * candidate[:shared]
    return {
        "query_embeddings": query,
        "candidate_embeddings": candidate,
        "query_site_labels": (torch.rand(n, generator=generator) < 0.4).long(),
        "candidate_site_labels": (torch.rand(m, generator=generator) < 0.4).long(),
    }


def collate(pairs, left=0, right=0):
    """Pad pairs into one batch, rubbish at the padding, `left` and `right` positions more."""
    batch = {}
    for side in ("query", "candidate"):
        longest = max(len(pair[f"{side}_embeddings"]) for pair in pairs)
        shape = (len(pairs), left + longest + right)
        embeddings = torch.full((*shape, WIDTH), 7.7)
        labels = torch.full(shape, -100)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, pair in enumerate(pairs):
            at = slice(left, left + len(pair[f"{side}_embeddings"]))
            embeddings[i, at] = pair[f"{side}_embeddings"]
            labels[i, at] = pair[f"{side}_site_labels"]
            mask[i, at] = True
        batch |= {
            f"{side}_embeddings": embeddings,
            f"{side}_mask": mask,
            f"{side}_site_labels": labels,
        }
    return batch


def run(model, pairs, labels, **padding):
    return model(**collate(pairs, **padding), labels=torch.tensor(labels), return_plan=True)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 20), (20, 20), (25, 9), (9, 25)])
@torch.no_grad()
def test_a_pair_is_what_the_reference_says(n, m):
    pair = make_pair(n, m)
    out = run(make_model(), [pair], [1])
    q, c = (pair[f"{side}_embeddings"].double().numpy() for side in ("query", "candidate"))
    cost = reference.cost(reference.layer_norm(q), reference.layer_norm(c))
    plan = reference.plan(cost, 1.0)
    np.testing.assert_allclose(out.cost[0], cost, atol=1e-4)
    np.testing.assert_allclose(out.plan[0], plan, atol=1e-5)
    assert abs(float(out.scores) - reference.score(plan, q, c, window=4)) < 1e-5
    labels = [pair[f"{side}_site_labels"].numpy() for side in ("query", "candidate")]
    if labels[1].any():
        wanted = reference.label_match_loss(plan, *labels)
        assert abs(float(out.label_match_loss) - wanted) < 1e-5


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4),
    form=st.sampled_from(sorted(FORMS)),
    head=st.sampled_from(["hinge", "lrl"]),
    left=st.integers(0, 4),
    right=st.integers(0, 12),
    data=st.data(),
)
@torch.no_grad()
def test_a_pair_does_not_know_its_batch(shapes, form, head, left, right, data):
    model = make_model(head, **FORMS[form])
    pairs = [make_pair(n, m, seed) for seed, (n, m) in enumerate(shapes)]
    order = data.draw(st.permutations(range(len(pairs))))
    labels = [i % 2 for i in range(len(pairs))]
    batch = run(
        model, [pairs[i] for i in order], [labels[i] for i in order], left=left, right=right
    )
    losses = []
    for place, i in enumerate(order):
        n, m = shapes[i]
        alone = run(model, [pairs[i]], [labels[i]])
        assert abs(alone.scores[0] - batch.scores[place]) < 1e-5
        inner = batch.plan[place, left : left + n, left : left + m]
        assert (alone.plan[0] - inner).abs().max() < 1e-5
        inner.zero_()
        assert batch.plan[place].abs().max() == 0  # no mass elsewhere
        losses.append((alone.score_loss, alone.label_match_loss, labels[i], pairs[i]))
    assert abs(torch.stack([loss for loss, *_ in losses]).mean() - batch.score_loss) < 1e-5
    counted = [lml for _, lml, y, p in losses if y and p["candidate_site_labels"].any()]
    wanted = torch.stack(counted).mean() if counted else torch.tensor(0.0)
    assert abs(wanted - batch.label_match_loss) < 1e-5


@pytest.mark.slow
def test_an_all_negative_batch_has_a_finite_loss():
    model = make_model("lrl")
    out = run(model, [make_pair(9, 12), make_pair(5, 5)], [0, 0])
    assert out.loss.isfinite() and out.label_match_loss == 0
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", sorted(FORMS))
def test_fully_masked_pairs_neither_spread_nor_score(form):
    model = make_model("lrl", **FORMS[form])
    batch = collate([make_pair(9, 12), make_pair(7, 7)])
    batch["query_mask"][1] = False
    out = model(**batch, labels=torch.tensor([1, 1]), return_plan=True)
    assert out.plan[1].abs().sum() == 0 and out.scores[1] == 0
    assert out.loss.isfinite() and out.plan.isfinite().all()
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2000), (2000, 1), (2000, 700)])
@torch.no_grad()
def test_lengths_1_and_2000(form, n, m):
    out = run(make_model(**FORMS[form]), [make_pair(n, m)], [1])
    assert out.plan.isfinite().all() and out.scores.isfinite().all() and 0 <= out.scores <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", ["hinge", "lrl"])
@torch.no_grad()
def test_half_precision_embeddings(dtype, head):
    pair, model = make_pair(30, 40), make_model(head)
    batch = collate([pair])
    exact = model(**batch).scores
    for side in ("query", "candidate"):
        batch[f"{side}_embeddings"] = batch[f"{side}_embeddings"].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(**batch, return_plan=True)
    assert out.plan.dtype == torch.float32 and out.plan.isfinite().all()
    assert (out.scores - exact).abs().max() < 0.05
    batch["query_embeddings"] = torch.full_like(batch["query_embeddings"], 6e4)
    assert model(**batch).scores.isfinite().all()


@torch.no_grad()
def test_costs_that_underflow_give_an_empty_plan():
    out = run(make_model(kernel_scale=1e6), [make_pair(12, 12)], [1])
    assert out.plan.isfinite().all() and out.scores == 0


def gradient_of_score_loss(**form):
    """Of a pair in which nothing reaches the threshold."""
    model = make_model("lrl", kernel_scale=0.3, **form)
    generator = torch.Generator().manual_seed(3)
    sides = {s: torch.randn(1, 20, WIDTH, generator=generator) for s in ("query", "candidate")}
    out = model(**{f"{s}_embeddings": e for s, e in sides.items()}, labels=torch.tensor([1]))
    out.loss.backward()
    return float(model.alignment_head.output.weight.grad.norm())


def test_gradient_reaches_an_unmatched_pair_through_the_posterior_alone():
    assert gradient_of_score_loss() == 0
    assert gradient_of_score_loss(reading="posterior") > 0


AXES = torch.tensor([5.0, 3.0, 2.0, *[1.0] * 7, 0.3, 0.1])  # along which residues vary


def draw_residues(count, residues=50, seed=0):
    """Unrelated proteins, whose residues vary much along some axes, about a place of their own."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    fresh = torch.Generator().manual_seed(seed + 1)
    return [
        2.0 + (AXES * torch.randn(residues, WIDTH, generator=fresh)) @ turned for _ in range(count)
    ]


def measured(proteins):
    """A model that compares residues as they are given, against these."""
    model = make_model("hinge", normalize=False, reading="posterior")
    model.measure_background(proteins)
    return model


def test_evidence_of_unrelated_residues_is_standardised():
    proteins = draw_residues(60)
    model = measured(proteins[:30])
    known, other = (model.project(torch.cat(some)) for some in (proteins[:30], proteins[30:]))
    for query, candidate, near in ((known, known, 0.02), (known, other, 0.05)):
        evidence = model.evidence(query, candidate)
        values = evidence.read
        assert abs(float(values.mean())) < near and abs(float(values.std()) - 1) < near
        # What residues have in common with their own proteins is taken off, and nothing added.
        assert (evidence.scored <= evidence.read + 1e-4).all()


def test_evidence_does_not_know_which_protein_is_the_query():
    proteins = draw_residues(10)
    model = measured(proteins)
    query, candidate = map(model.project, (proteins[0], proteins[1][:20]))
    both = model.evidence(query, candidate), model.evidence(candidate, query)
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other.T, rtol=1e-4, atol=1e-4)


def test_what_a_protein_has_in_common_with_itself_tells_no_relatives():
    proteins = draw_residues(20)
    model = measured(proteins)
    vectors = model.project(proteins[0])
    evidence = model.evidence(vectors, vectors)
    assert torch.equal(evidence.read.argmax(1), torch.arange(50))
    assert float(evidence.scored.diagonal().mean()) > 1.5
    repeat = model.project(proteins[0][:1] + 0.01 * proteins[1])  # one residue again and again
    evidence = model.evidence(repeat, repeat)
    assert float(evidence.read.mean()) > 1.5 and float(evidence.scored.mean()) < 0.5


def test_a_protein_of_one_residue_has_evidence():
    model = measured(draw_residues(10))
    one, many = model.project(draw_residues(1, 1, seed=7)[0]), model.project(draw_residues(1, 9)[0])
    for evidence in model.evidence(one, many):
        assert evidence.shape == (1, 9) and evidence.isfinite().all()


def test_without_calibration_a_pair_is_its_own_background():
    query, candidate = draw_residues(2, 40)
    evidence = own_background(query, candidate[:25])
    assert evidence.shape == (40, 25) and abs(float(evidence.mean())) < 1e-4
    assert 0.8 < float(evidence.std()) < 1.05
    torch.testing.assert_close(evidence.T, own_background(candidate[:25], query))
    assert own_background(query[:1], query[:1]).isfinite().all()
    assert (own_background(torch.ones(3, 4), torch.ones(5, 4)) == 0).all()
    model = make_model(reading="posterior")
    assert not model.knows_background and model.calibration is None
    aligned = model.align_pairs([query], [candidate])
    projected = [model.project(side) for side in (query, candidate)]
    assert all(torch.equal(part, own_background(*projected)) for part in aligned.evidence[0])


@pytest.mark.parametrize("head", ["hinge", "lrl"])
def test_a_measured_background_is_saved_and_loaded(head, tmp_path):
    model, proteins = make_model(head, reading="posterior"), draw_residues(12)
    before = model.align_pairs(proteins[:2], proteins[2:4]).raw_scores
    identity = model.head_identity
    model.measure_background(proteins)
    expected = model.align_pairs(proteins[:2], proteins[2:4])
    assert not torch.allclose(before, expected.raw_scores)
    assert model.head_identity != identity  # projections kept before are of no use any more
    model.save_pretrained(tmp_path)
    again = PlasmaModel.from_pretrained(tmp_path)
    assert again.knows_background and again.head_identity == model.head_identity
    found = again.align_pairs(proteins[:2], proteins[2:4])
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.plans, expected.plans, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "label", "wanted"), [(0, 1, 0.6931), (1, 1, 0.3133), (0, 0, 0.6931), (1, 0, 1.3133)]
)
def test_published_score_loss_values(score, label, wanted):
    loss = score_losses(torch.tensor([float(score)]), torch.tensor([label]))
    assert abs(float(loss) - wanted) < 1e-4


def test_other_score_losses():
    scores, labels = torch.tensor([1.0, 0.0]), torch.tensor([1, 0])
    assert score_losses(scores, labels, "affine", torch.tensor([10.0, -5.0])).mean() < 0.01
    with pytest.raises(ValueError, match="scale and shift"):
        score_losses(scores, labels, "affine")


def test_label_match_is_a_recall_of_the_candidate():
    plan = torch.eye(3)[None]
    query, candidate = torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1, 0]])
    assert label_match_losses(plan, query, candidate).tolist() == [0.5]
    assert label_match_losses(plan, query, torch.zeros_like(candidate)).tolist() == [0.0]


def test_tokens_and_embeddings_agree_whatever_the_special_tokens(tiny_esm):
    model, processor = tiny_esm
    queries, candidates = ["MKTAYIAKQR", "GG"], ["MKTAYLAKQ", "ACDEFGHIKLMN"]
    with torch.no_grad():
        batch = model(**processor(query=queries, candidate=candidates), return_plan=True)
        for i, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
            alone = model(**processor(query=query, candidate=candidate), return_plan=True)
            assert alone.plan.shape == (1, len(query), len(candidate))
            assert abs(alone.scores[0] - batch.scores[i]) < 1e-5
            block = batch.plan[i, : len(query), : len(candidate)]
            assert (alone.plan[0] - block).abs().max() < 1e-5


@pytest.mark.slow
def test_saved_models_return_equal(tiny_esm, tmp_path):
    model, processor = tiny_esm
    model.save_pretrained(tmp_path)
    again = PlasmaModel.from_pretrained(tmp_path)
    batch = processor(query="MKTAYIAK", candidate="MKTAYLAK")
    assert (model(**batch).scores - again(**batch).scores).abs().max() < 1e-6
    affine = make_model("lrl", score_loss_form="affine")
    affine.save_pretrained(tmp_path / "affine")
    loaded = PlasmaModel.from_pretrained(tmp_path / "affine")
    assert torch.equal(loaded.score_affine.weight, affine.score_affine.weight)


def test_an_encoder_decoder_gives_its_encoder():
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=30)
    model = PlasmaModel(PlasmaConfig(plm_config=config, head_size=8))
    ids = torch.tensor([[3, 4, 5]])
    assert model(query_input_ids=ids, candidate_input_ids=ids).scores.shape == (1,)


ABOVE_0 = ("kernel_scale", "eps")
FROM_0 = ("threshold", "label_match_weight", "correspondence_weight")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "neither is here"),
        (
            {"query_embeddings": torch.ones(1, 3, 5)},
            r"of shape \(1, 3, 5\); give .* \(batch, residues, 12\)",
        ),
        (
            {"query_embeddings": torch.ones(3, WIDTH)},
            r"of shape \(3, 12\); give .* \(batch, residues, 12\)",
        ),
        ({"query_embeddings": torch.ones(1, 3, WIDTH, dtype=torch.long)}, "floating point"),
        ({"query_input_ids": torch.ones(1, 3).long()}, "head without a backbone"),
        ({"query_embeddings": torch.ones(2, 3, WIDTH)}, "2 queries and 1 candidates"),
        (
            {"query_embeddings": torch.ones(1, 3, WIDTH), "query_mask": torch.ones(1, 4)},
            r"query_mask has shape \(1, 4\); give \(1, 3\)",
        ),
        (
            {"query_embeddings": torch.ones(1, 3, WIDTH), "query_site_labels": torch.ones(1, 4)},
            r"query_site_labels has shape \(1, 4\)",
        ),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs, candidate_embeddings=torch.ones(1, 3, WIDTH))


WRONG = [float("nan"), float("inf"), -float("inf"), 1e20]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_embeddings_that_are_no_numbers_are_named(value, kernels, form):
    model = make_model("hinge", normalize=False, **FORMS[form])
    good, bad = torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    bad[1, 4, 2] = value
    with use_kernels(kernels):
        for gradient in (True, False):
            with torch.set_grad_enabled(gradient):
                with pytest.raises(ValueError, match=r"query_embeddings has NaN.* \[1, 4"):
                    model(bad, good)
                with pytest.raises(ValueError, match="candidate_embeddings has NaN or infinite"):
                    model(good, bad)
                mask = torch.ones(2, 7).bool()
                mask[1, 4:] = False
                assert model(bad, good, query_mask=mask).scores.isfinite().all()
        with pytest.raises(ValueError, match=r"candidate 1 has NaN or infinite.*at residue \[4\]"):
            model.align_pairs(list(good), list(bad))


def test_a_pair_that_does_not_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(modeling_plasma, "FEW_CELLS", 1000)
    monkeypatch.setattr(modeling_plasma, "free_memory", lambda: 30_000.0)
    model, long, short = make_model("hinge"), torch.randn(200, WIDTH), torch.randn(20, WIDTH)
    refused = "pairs, up to 200 and 200 residues, take .* GB and 0.0 GB of memory are free; give"
    with pytest.raises(ValueError, match=refused):
        model.align_pairs([short, long], [short, long])
    with pytest.raises(ValueError, match=refused):
        model(long[None], long[None])
    assert len(model.align_pairs([short], [short]).plans) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_size": None}, "needs to know embedding_size"),
        ({"kernel_scale": 0}, "kernel_scale=0; give a number above 0"),
        ({"diagonal_window": -1}, "diagonal_window=-1; give 0 or more"),
        ({"reading": "both"}, "reading='both'; accepted are 'plan', 'posterior'"),
        *(({name: float("nan")}, f"{name}=nan; give a number above 0") for name in ABOVE_0),
        *(({name: float("inf")}, f"{name}=inf; give 0 or more") for name in FROM_0),
        ({"threshold": -0.1}, "threshold=-0.1; give 0 or more"),
        ({"embedding_size": 0}, "embedding_size=0; give a number above 0"),
        ({"plm_config": {"model_type": "nonsense"}}, "model_type='nonsense'"),
        ({"head": "mlp"}, "head='mlp'; accepted are 'lrl', 'hinge'"),
        ({"score_form": "soft"}, "score_form='soft'; accepted are 'published', 'mass'"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(Exception, match=message):
        PlasmaConfig(**options)


def test_fields_that_are_no_more_are_read_and_ignored(caplog):
    logging.enable_propagation()
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    old = {"tol": None, "max_iters": 2000, "domain": "linear", "softness": 0.05}
    config = PlasmaConfig(**old)
    assert not caplog.messages and not old.keys() & config.to_dict().keys()
    PlasmaConfig(**old | {"tol": 1e-3, "domain": "log"})
    PlasmaConfig(**old | {"tol": 1e-3, "domain": "log"})
    logging.set_verbosity(before)
    logging.disable_propagation()
    [warning] = caplog.messages
    assert warning.startswith("tol=0.001, domain='log': PLASMA has no such settings any more")


def test_a_head_refuses_another_backbone(tiny_esm):
    backbone = tiny_esm[0].backbone
    with pytest.raises(
        ValueError, match="takes residue embeddings of width 1280, EsmModel gives 16"
    ):
        PlasmaModel(PlasmaConfig()).attach_backbone(backbone)
    head = PlasmaModel(PlasmaConfig(embedding_size=16, plm_name_or_path="prot_bert"))
    with pytest.raises(ValueError, match="for the backbone 'prot_bert', not for 'org/esm2_t6'"):
        head.attach_backbone(backbone, "org/esm2_t6")
    assert head.attach_backbone(backbone, "org/prot_bert").backbone is backbone


def test_a_backbone_brings_its_width():
    assert PlasmaConfig(plm_config=SubstitutionConfig(window=2)).embedding_size == 100
