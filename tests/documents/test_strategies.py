"""The strategies and oracles judge, so they must not be wrong: small tests of their own."""

import math

import torch
from hypothesis import given
from pytest import approx, raises

from tests.spec import compare, oracles
from tests.spec import strategies as draw


@given(draw.readings)
def test_readings(s):
    x, Z, mask = s.tensors()
    assert x.shape == (s.B, s.N, s.heads * s.d) and Z.shape == (s.B, s.M, s.D_z)
    assert mask.any(dim=1).all()
    for first, again in zip((x, Z, mask), s.tensors()):
        assert torch.equal(first, again), "the same draw gives the same numbers"
    for values in (x, Z):
        assert len(values.unique()) > 0.9 * values.numel(), "values differ everywhere"


@given(draw.grids)
def test_grids(s):
    assert s.images().shape == (s.B, s.C, s.rows * s.p, s.columns * s.p)
    assert len(s.images().unique()) == s.images().numel()
    assert len(oracles.patches(s.images(), s.p)) == s.B * s.rows * s.columns


@given(draw.texts)
def test_texts(s):
    context, mask, null_context, null_mask, drop = s.tensors()
    assert context.shape == (s.B, s.M, s.D) and null_context.shape == (1, s.M, s.D)
    assert mask.dtype == null_mask.dtype == drop.dtype == torch.bool
    assert null_mask.sum() == 1 and drop.shape == (s.B,)


def test_readings_mask_something_and_not_only_at_the_end():
    masks = [draw.Reading(2, 2, 4, 1, 1, 1, seed).tensors()[2] for seed in range(50)]
    assert any((~mask).any() for mask in masks)
    gap = [(mask[:, 1:] & ~mask[:, :-1]).any() for mask in masks]
    assert any(gap), "a real token after a masked one"


def test_randomise_leaves_no_zero():
    layer = draw.randomise(torch.nn.Linear(3, 3), 0)
    assert layer.bias.abs().min() > 0 and layer.weight.abs().min() > 0


def test_oracles_at_values_known_by_hand():
    assert oracles.sinusoids(0.0, 4) == [1, 1, 0, 0]
    assert oracles.sinusoids(math.pi, 2) == [-1, math.sin(math.pi)]
    assert oracles.path(2.0, 10.0, 0.25) == (4.0, 8.0)
    assert oracles.mean_square([1, 2], [1, 4]) == 2
    assert oracles.layer_norm([1.0, 3.0]) == [-1 / math.sqrt(1 + 1e-5), 1 / math.sqrt(1 + 1e-5)]
    assert oracles.gaussian_velocity(0.0, 1.0, 0.0) == (0.0, -1.0)
    assert oracles.gaussian_velocity(2.0, 1.0, 1.0) == (-2.0, 1.0)
    for solver in ("euler", "heun"):
        assert oracles.solve(lambda x, t: 1.0, 5.0, 4, solver) == 4.0
    assert oracles.solve(lambda x, t: x, 1.0, 1000, "heun") == approx(math.exp(-1), abs=1e-6)
    weight, m, u = oracles.adamw_step(1.0, 5.0, 0.0, 0.0, step=1, lr=0.1, decay=0.5)
    assert weight == approx(0.95 - 0.1, abs=1e-8)
    assert (m, u) == approx((0.5, 0.025), abs=1e-12)
    weight, m, u = oracles.adamw_step(1.0, -5.0, m, u, step=2, lr=0.1, decay=0.0)
    assert m == approx(0.9 * 0.5 - 0.5, abs=1e-12)
    assert weight == approx(1 - 0.1 * (-0.05 / 0.19) / 5, abs=1e-6)
    assert oracles.ema_decay(0.9, 1) == 2 / 11 and oracles.ema_decay(0.1, 1000) == 0.1


def test_the_velocity_model_depends_on_everything():
    x, t = draw.Texts(2, 3, 2, 0).images()
    context, mask, *_ = draw.Texts(2, 3, 2, 0).tensors()
    inputs = [x, t, context, mask]
    v = draw.Velocity()(*inputs)
    for i, other in enumerate([x + 1, t / 2, context + 1, ~mask]):
        changed = draw.Velocity()(*inputs[:i], other, *inputs[i + 1 :])
        assert (changed - v).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_comparison_names_the_first_place_that_differs():
    with raises(AssertionError, match=r"^A\[1, 0\]: expected 3, found 3.5 \(2 of 4 differ\)$"):
        compare.close("A", [[1.0, 2.0], [3.5, 5.0]], [[1.0, 2.0], [3.0, 4.0]])
    with raises(AssertionError, match=r"^the loss: expected 1, found nan \(1 of 1 differ\)$"):
        compare.close("the loss", math.nan, 1.0)
    with raises(AssertionError, match=r"^A has shape \[2\], expected \[1, 2\]$"):
        compare.close("A", [1, 2], [[1, 2]])
    compare.close("A", torch.tensor([1.0 + 1e-6]).half(), [1])
    with raises(AssertionError):
        compare.equal("A", 1 + 1e-9, 1)


def test_chance_passes_and_what_is_none_does_not():
    g = torch.Generator().manual_seed(0)
    normal, uniform = torch.randn(4000, 3, generator=g), torch.rand(4000, generator=g)
    compare.follows_normal("x", normal)
    compare.follows_uniform("x", 3 * uniform - 1, -1, 2)
    compare.unrelated("x", normal)
    compare.within_chance("x", normal.mean(), 0, 1 / math.sqrt(12_000))
    same_moments = (uniform - 0.5) * math.sqrt(12)
    for sample in (1.05 * normal, 0.95 * normal, normal + 0.1, same_moments):
        with raises(AssertionError):
            compare.follows_normal("x", sample)
    with raises(AssertionError):
        compare.follows_uniform("x", uniform**1.2, 0, 1)
    mixed = normal + 0.15 * normal[:, :1]
    with raises(AssertionError, match=r"\b0 (and|go)"):
        compare.unrelated("x", mixed)
    with raises(AssertionError):
        compare.within_chance("x", normal.mean() + 0.1, 0, 1 / math.sqrt(12_000))
