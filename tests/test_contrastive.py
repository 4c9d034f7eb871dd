"""Contrastive losses: reference values and gradients, groups, chunks, what is learnt."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from plasma_hf import ProtAlignConfig
from plasma_hf.models.modeling_protalign import PairLoss, clip_loss, siglip_loss

DTYPES = {"f64": torch.float64, "f32": torch.float32}


def draw(pairs=12, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, pairs, width, generator=generator, dtype=torch.float64)
    return normalize(x, dim=-1).requires_grad_(), normalize(y, dim=-1).requires_grad_()


def printed_siglip(x, y):
    """The loss at scale 10 and bias -10 with the sign of the paper."""
    fixed = {"learn_temperature": False, "learn_bias": False, "logit_temperature": 0.1}
    return PairLoss(ProtAlignConfig(loss="siglip", siglip_sign="paper", **fixed))(x, y)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.fixture(params=["N7", "N64"])
def case(request, golden):
    folder = golden / "contrastive"
    expected = json.loads((folder / "expected.json").read_text())["cases"]
    return load_file(folder / f"{request.param}.safetensors"), expected[f"{request.param}.extra"]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_reference_loss_and_gradients(case, kind, precision):
    tensors, _ = case
    dtype = DTYPES[precision]
    x, y = (tensors[name].to(dtype).requires_grad_() for name in "xy")
    names = {"clip": ["tau"], "siglip": ["t", "b"]}[kind]
    values = {"tau": 0.07, "t": 10.0, "b": -10.0}
    learnt = [torch.tensor(values[name], dtype=dtype, requires_grad=True) for name in names]
    form = {"clip": clip_loss, "siglip": siglip_loss}[kind]
    loss = form(normalize(x, dim=-1), normalize(y, dim=-1), *learnt)
    found = dict(zip(["x", "y", *names], gradients(loss, x, y, *learnt), strict=True))
    exact = precision == "f64"

    def equal(one, name, rtol, atol):
        other = tensors[f"{kind}.{precision}.{name}"].reshape(one.shape)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)

    equal(loss.detach(), "loss", 0 if exact else 1e-6, 1e-10 if exact else 0)
    for name, gradient in found.items():
        loose = 1e-5 if name == "tau" else 0
        equal(gradient, f"grad_{name}", 0 if exact else loose, 1e-10 if exact else 1e-6)


def test_reference_sweeps(case):
    tensors, expected = case
    raw = tensors["x"], tensors["y"]
    x, y = (normalize(each, dim=-1) for each in raw)

    def close(loss, value):
        assert float(loss) == pytest.approx(value, rel=1e-10)

    close(clip_loss(*raw, 0.07), expected["clip_loss_unnormalised_f64"])
    close(printed_siglip(x, y), expected["siglip_loss_paper_literal_sign_f64"])
    for tau, value in expected["clip_loss_tau"].items():
        close(clip_loss(x, y, float(tau)), value)
    for bias, value in expected["siglip_loss_bias"].items():
        close(siglip_loss(x, y, 10.0, float(bias)), value)
    zeros = torch.zeros_like(x)
    close(clip_loss(zeros, zeros, 0.07), expected["clip_loss_zero_similarity"])


@pytest.mark.parametrize("pairs", [1, 2, 100])
def test_clip_begins_at_the_logarithm_of_the_pairs(pairs):
    x = torch.zeros(pairs, 8)
    assert float(clip_loss(x, x, 0.07)) == pytest.approx(math.log(pairs), abs=1e-5)


def test_siglip_begins_low_with_the_published_sign_and_high_with_the_printed_one():
    # 1024 pairs at right angles: what matters is the bias alone.
    x, y = torch.eye(2048).split(1024)
    assert float(siglip_loss(x, y, 10.0, -10.0)) == pytest.approx(10.1, abs=0.1)
    assert float(printed_siglip(x, y)) == pytest.approx(10230, rel=1e-3)


LOSSES = {
    "clip": lambda x, y, groups=None: clip_loss(x, y, 0.1, groups),
    "siglip": lambda x, y, groups=None: siglip_loss(x, y, 10.0, -5.0, groups=groups),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_pairs_of_a_group_are_no_negatives_of_each_other(kind):
    form, (x, y) = LOSSES[kind], draw(pairs=3)
    twins = torch.tensor([7, 7, 8])
    assert torch.equal(form(x, y, torch.arange(3)), form(x, y))
    assert form(x, y, twins) < form(x, y)
    # Sequence 0 alone, beside structures 0 and 2: structure 1 is not there for it.
    (gradient,) = gradients(form(x, y, twins), x)
    moved = y.detach().clone()
    moved[1] = -moved[1]
    (after,) = gradients(form(x, moved, twins), x)
    assert torch.equal(after[0], gradient[0])
    assert not torch.equal(after[2], gradient[2])


def test_one_group_alone_leaves_clip_nothing_to_learn():
    x, y = draw()
    assert clip_loss(x, y, 0.1, groups=torch.zeros(12, dtype=torch.long)) == 0.0


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 12, 50])
def test_chunks_change_neither_loss_nor_gradient(chunk, grouped):
    x, y = draw()
    learnt = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (10.0, -10.0)]
    groups = torch.arange(12) // 3 if grouped else None
    whole = siglip_loss(x, y, *learnt, groups=groups)
    parts = siglip_loss(x, y, *learnt, groups=groups, chunk=chunk)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    for one, other in zip(
        gradients(parts, x, y, *learnt), gradients(whole, x, y, *learnt), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_order_of_pairs_does_not_matter(kind):
    form, (x, y) = LOSSES[kind], draw()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(form(x[order], y[order]), form(x, y))
    assert not torch.isclose(form(x[order], y), form(x, y))


def test_what_does_not_fit_is_refused():
    x, y = draw()
    with pytest.raises(ValueError, match=r"sequences have shape \(12, 8\), structures \(5, 8\)"):
        clip_loss(x, y[:5], 0.07)
    with pytest.raises(ValueError, match="accepted are 'pseudocode', 'paper'"):
        ProtAlignConfig(siglip_sign="minus")
    with pytest.raises(ValueError, match=r"groups has shape \(3,\); give \(12,\)"):
        clip_loss(x, y, 0.07, groups=torch.arange(3))


@pytest.mark.parametrize(
    ("fields", "learnt"),
    [
        ({}, {}),
        ({"learn_temperature": True}, {"log_scale": math.log(1 / 0.07)}),
        ({"loss": "siglip"}, {"log_scale": math.log(10), "bias": -10.0}),
        ({"loss": "siglip", "learn_temperature": False, "learn_bias": False}, {}),
    ],
)
def test_what_is_learnt(fields, learnt):
    loss = PairLoss(ProtAlignConfig(**fields))
    found = {name: value.item() for name, value in loss.named_parameters()}
    assert found == pytest.approx(learnt)
    x, y = (each.float() for each in draw())
    loss(x, y).backward()
    assert all(value.grad.abs() > 1e-4 for value in loss.parameters())


@pytest.mark.parametrize("sign", ["pseudocode", "paper"])
def test_the_configured_loss_is_that_of_its_logits(sign):
    config = ProtAlignConfig(loss="siglip", siglip_sign=sign, logit_bias=-3.0, loss_chunk=5)
    loss, (x, y) = PairLoss(config), draw()
    direct = siglip_loss(x, y, 10.0, -3.0 if sign == "pseudocode" else 3.0)
    assert loss(x, y).item() == pytest.approx(direct.item(), rel=1e-6)
    together = 2 * torch.eye(12) - 1
    by_logits = -torch.nn.functional.logsigmoid(together * loss.logits(x, y)).sum() / 12
    assert by_logits.item() == pytest.approx(direct.item(), rel=1e-6)


def test_a_learnt_scale_stays_below_a_hundred_and_can_come_back():
    loss = PairLoss(ProtAlignConfig(learn_temperature=True, logit_temperature=0.001))
    assert loss.scale.item() == pytest.approx(100)
    x, y = draw()
    loss(x, y.flip(0)).backward()
    assert loss.scale.item() == pytest.approx(100)
    assert loss.log_scale.grad > 1  # of random pairs, whose logits had better be small
    assert PairLoss(ProtAlignConfig(logit_temperature=0.001)).scale == pytest.approx(1000)
