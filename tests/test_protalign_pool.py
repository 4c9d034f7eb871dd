"""Attention pools of ProtAlign: what they compute, and what a vector depends on."""

import pytest
import torch

from plasma_hf import ProtAlignConfig, ProtAlignModel
from tests.test_protalign import check_equal, draw, tiny_model


def test_fresh_pools_are_drawn_as_published():
    torch.manual_seed(0)
    model = ProtAlignModel(ProtAlignConfig())
    for pool in (model.sequence_pool, model.structure_pool):
        assert pool.query.std().item() == pytest.approx(0.02, rel=0.3)
        assert pool.attention.out_proj.weight.abs().max().item() == pytest.approx(
            128**-0.5, rel=0.01
        )
        assert not pool.attention.in_proj_bias.any()


def test_a_pool_computes_what_its_equation_says():
    model = tiny_model()
    pool, (rows, mask) = model.sequence_pool, draw((5,))
    attention, query = pool.attention, pool.query[0]
    shift = attention.in_proj_bias.chunk(3)
    q = query @ attention.q_proj_weight.T + shift[0]
    k = rows[0] @ attention.k_proj_weight.T + shift[1]
    v = rows[0] @ attention.v_proj_weight.T + shift[2]
    weights, seen = [], []
    for head in (slice(0, 8), slice(8, 16)):
        weights.append(torch.softmax(q[:, head] @ k[:, head].T / 8**0.5, dim=-1))
        seen.append(weights[-1] @ v[:, head])
    expected = pool.norm(attention.out_proj(torch.cat(seen, dim=-1)))
    found, found_weights = pool(rows, mask)
    check_equal([found, found_weights], [expected, sum(weights) / 2])


@pytest.mark.parametrize("queries", [1, 3])
def test_spread_adds_the_deviation_of_what_a_head_sees(queries):
    model = tiny_model(num_queries=queries, spread=True)
    (rows, mask), plain = draw(), tiny_model(num_queries=queries).sequence_pool
    pool = model.sequence_pool
    plain.load_state_dict(pool.state_dict(), strict=False)
    deviation = torch.nn.Linear(16, 16, bias=False)
    deviation.load_state_dict(pool.spread.state_dict())
    pool.spread.weight.data.zero_()
    check_equal(pool(rows, mask), plain(rows, mask))  # without it, what is published
    pool.spread.load_state_dict(deviation.state_dict())
    assert not torch.allclose(pool(rows, mask)[0], plain(rows, mask)[0], atol=1e-2)
    # By hand, where one query weighs all residues of a protein alike.
    pool.query.data.zero_()
    pool.attention.in_proj_bias.data.zero_()
    values = rows[0] @ pool.attention.v_proj_weight.T
    seen = pool.attention.out_proj(values.mean(0)) + deviation(values.std(0, unbiased=False))
    check_equal([pool(rows, mask)[0][0]], [pool.norm(seen)], 1e-4)


def test_spread_of_a_single_residue_has_a_gradient():
    model = tiny_model(spread=True)
    model.get_sequence_features(torch.ones(2, 1, 12))[:, 0].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.sequence_pool.parameters())


def test_standardized_vectors_are_those_of_training_and_of_no_batch(tmp_path):
    model = tiny_model(standardize=True, spread=True)
    rows, mask = draw((9, 4, 7, 5, 6))
    model.train()
    for _ in range(80):
        seen, _ = model.pool_sequences(rows, mask)
    check_equal(
        [seen.mean(0), seen.std(0, unbiased=False)], [torch.zeros(16), torch.ones(16)], 1e-3
    )
    model.eval()
    check_equal([model.pool_sequences(rows[:1], mask[:1])[0]], [seen[:1]], 0.2)
    model.save_pretrained(tmp_path)
    loaded = ProtAlignModel.from_pretrained(tmp_path).eval()
    features = model.get_sequence_features(rows, mask)
    # Its matrices lie elsewhere in memory, where products may be summed in another order.
    check_equal([loaded.get_sequence_features(rows, mask)], [features], 1e-6)


@pytest.mark.parametrize("fields", [{}, {"spread": True, "standardize": True}])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_vector_depends_on_the_residues_alone(queries, fields):
    model = tiny_model(num_queries=queries, **fields)
    rows, mask = draw()
    together = model.get_sequence_features(rows, mask)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for i, residues in enumerate(mask.sum(1)):
        alone = rows[i : i + 1, :residues]
        check_equal([model.get_sequence_features(alone)[0]], [together[i]], 1e-5)
        # The pool knows no order.
        turned = model.get_sequence_features(alone.flip(1))[0]
        check_equal([turned], [together[i]], 1e-5)
    order = [2, 0, 1]
    check_equal([model.get_sequence_features(rows[order], mask[order])], [together[order]], 1e-5)
    _, weights = model.sequence_pool(rows, mask)
    assert not weights[~mask].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
