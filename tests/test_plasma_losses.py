"""What a head is trained on, and the head that starts as PLASMA-PF."""

import pytest
import torch

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.models.modeling_plasma import correspondence_losses, label_match_losses

WIDTH = 48


def make_model(head, **fields):
    torch.manual_seed(0)
    return PlasmaModel(PlasmaConfig(embedding_size=WIDTH, head=head, kernel_scale=0.5, **fields))


def make_pair(n=30, m=25, seed=0):
    """A candidate that holds a noisy copy of a stretch of the query."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, n, WIDTH, generator=generator)
    candidate = torch.randn(1, m, WIDTH, generator=generator)
    noise = torch.randn(1, 15, WIDTH, generator=generator)
    candidate[:, 2:17] = query[:, 5:20] + 0.4 * noise
    return query, candidate


def test_symmetric_label_match():
    plan = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]])
    query, candidate = torch.tensor([[1, 0]]), torch.tensor([[1, 1, 0]])
    assert label_match_losses(plan, query, candidate).tolist() == [0.5]
    assert label_match_losses(plan.mT, candidate, query).tolist() == [0.0]
    assert label_match_losses(plan, query, candidate, "symmetric").tolist() == [0.25]


def test_correspondences_want_mass_where_they_are():
    plan = torch.tensor([[[0.5, 0.0], [0.25, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    known = torch.tensor([[[0, 0], [1, 0]], [[-1, -1], [-1, -1]]])
    losses = correspondence_losses(plan, known)
    wanted = -(torch.tensor(0.5).log() + torch.tensor(0.25).log()) / 2
    torch.testing.assert_close(losses, torch.stack([wanted, torch.tensor(0.0)]))
    nowhere = correspondence_losses(torch.zeros(1, 2, 2), known[:1])
    assert nowhere.isfinite().all() and nowhere > 10


def test_loss_is_the_mean_of_what_pairs_lose_alone():
    model = make_model("residual", score_loss_form="affine", label_match_weight=2.0)
    query, candidate = make_pair()
    sites = torch.zeros(1, 30), torch.zeros(1, 25)
    sites[0][:, 8:14] = sites[1][:, 5:11] = 1
    known = torch.tensor([[[8, 5], [9, 6]]])
    alone = [
        model(
            query,
            candidate,
            query_site_labels=sites[0],
            candidate_site_labels=sites[1],
            labels=torch.tensor([label]),
            correspondences=known if label else torch.full_like(known, -1),
        )
        for label in (1, 0)
    ]
    assert alone[1].label_match_loss == alone[1].correspondence_loss == 0
    parts = alone[0].score_loss + 2 * alone[0].label_match_loss + alone[0].correspondence_loss
    torch.testing.assert_close(alone[0].loss, parts)
    both = model(
        query.repeat(2, 1, 1),
        candidate.repeat(2, 1, 1),
        query_site_labels=sites[0].repeat(2, 1),
        candidate_site_labels=sites[1].repeat(2, 1),
        labels=torch.tensor([1, 0]),
        correspondences=torch.cat([known, torch.full_like(known, -1)]),
    )
    torch.testing.assert_close(both.loss, (alone[0].loss + alone[1].loss) / 2)
    torch.testing.assert_close(both.label_match_loss, alone[0].label_match_loss)


@torch.no_grad()
def test_a_fresh_residual_head_is_plasma_pf():
    query, candidate = make_pair()
    options = {"return_plan": True}
    fresh = make_model("residual", head_size=16)(query, candidate, **options)
    free = make_model("hinge")(query, candidate, **options)
    assert (fresh.plan - free.plan).abs().max() < 1e-4
    assert abs(fresh.scores - free.scores) < 1e-4 and fresh.scores > 0.5


def test_a_residual_head_learns_and_saves(tmp_path):
    model = make_model("residual", head_size=16, score_form="mass")
    query, candidate = make_pair()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    known = torch.tensor([[[i + 5, i + 2] for i in range(15)]])
    losses = []
    for _ in range(8):
        loss = model(query, candidate, correspondences=known).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    model.eval().save_pretrained(tmp_path)
    loaded = PlasmaModel.from_pretrained(tmp_path)
    with torch.no_grad():
        found = loaded(query, candidate).scores
        torch.testing.assert_close(found, model(query, candidate).scores, rtol=0, atol=1e-6)
        aligned = model.align_pairs([query[0]], [candidate[0]])
        plan = model(query, candidate, return_plan=True).plan[0]
    assert (aligned.plans[0] - plan).abs().max() < 1e-4


def test_a_residual_head_is_no_released_one(tmp_path):
    with pytest.raises(ValueError, match="no place for"):
        make_model("residual").save_upstream(tmp_path)


def test_unknown_forms():
    with pytest.raises(ValueError, match="label_match_form='both'"):
        PlasmaConfig(label_match_form="both")
