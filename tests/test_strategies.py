"""The strategies and oracles have small tests of their own: they judge, so they must not be wrong themselves."""

import math

import torch
from hypothesis import given

from tests import oracles
from tests import strategies as draw


@given(draw.readings)
def test_readings(s):
    x, Z, mask = s.tensors()
    assert x.shape == (s.B, s.N, s.heads * s.d) and Z.shape == (s.B, s.M, s.D_z) and mask.any(dim=1).all()
    assert all(torch.equal(a, b) for a, b in zip(s.tensors(), (x, Z, mask))), "the same draw gives the same numbers"
    assert len(x.unique()) > 0.9 * x.numel() and len(Z.unique()) > 0.9 * Z.numel(), "values differ everywhere"


@given(draw.grids)
def test_grids(s):
    assert s.images().shape == (s.B, s.C, s.rows * s.p, s.columns * s.p)
    assert len(s.images().unique()) == s.images().numel()
    assert len(oracles.patches(s.images(), s.p)) == s.B * s.rows * s.columns


@given(draw.texts)
def test_texts(s):
    context, mask, null_context, null_mask, drop = s.tensors()
    assert context.shape == (s.B, s.M, s.D) and mask.dtype == null_mask.dtype == drop.dtype == torch.bool
    assert null_context.shape == (1, s.M, s.D) and null_mask.sum() == 1 and drop.shape == (s.B,)


def test_readings_mask_something_and_not_only_at_the_end():
    masks = [draw.Reading(2, 2, 4, 1, 1, 1, seed).tensors()[2] for seed in range(50)]
    assert any((~mask).any() for mask in masks)
    assert any((mask[:, 1:] & ~mask[:, :-1]).any() for mask in masks), "a real token after a masked one"


def test_randomise_leaves_no_zero():
    layer = draw.randomise(torch.nn.Linear(3, 3), 0)
    assert layer.bias.abs().min() > 0 and layer.weight.abs().min() > 0


def test_oracles_at_values_known_by_hand():
    assert oracles.waves(0.0, 4) == [1, 1, 0, 0] and oracles.waves(math.pi, 2) == [-1, math.sin(math.pi)]
    assert oracles.path(2.0, 10.0, 0.25) == (4.0, 8.0) and oracles.mean_square([1, 2], [1, 4]) == 2
    assert oracles.layer_norm([1.0, 3.0]) == [-1 / math.sqrt(1 + 1e-5), 1 / math.sqrt(1 + 1e-5)]
    assert oracles.gaussian_velocity(0.0, 1.0, 0.0) == (0.0, -1.0) and oracles.gaussian_velocity(2.0, 1.0, 1.0) == (-2.0, 1.0)
    assert oracles.solve(lambda x, t: 1.0, 5.0, 4, "euler") == oracles.solve(lambda x, t: 1.0, 5.0, 4, "heun") == 4.0
    assert abs(oracles.solve(lambda x, t: x, 1.0, 1000, "heun") - math.exp(-1)) < 1e-6
    weight, m, u = oracles.adamw_step(1.0, 5.0, 0.0, 0.0, step=1, lr=0.1, decay=0.5)
    assert abs(weight - (0.95 - 0.1)) < 1e-8 and abs(m - 0.5) < 1e-12 and abs(u - 0.025) < 1e-12
    weight, m, u = oracles.adamw_step(1.0, -5.0, m, u, step=2, lr=0.1, decay=0.0)
    assert abs(m - (0.9 * 0.5 - 0.5)) < 1e-12 and abs(weight - (1 - 0.1 * (-0.05 / 0.19) / 5)) < 1e-6
    assert oracles.ema_decay(0.9, 1) == 2 / 11 and oracles.ema_decay(0.1, 1000) == 0.1


def test_the_velocity_model_depends_on_everything():
    x, t = draw.Texts(2, 3, 2, 0).images()
    context, mask, *_ = draw.Texts(2, 3, 2, 0).tensors()
    v = draw.Velocity()(x, t, context, mask)
    for change in ((x + 1, t, context, mask), (x, t / 2, context, mask), (x, t, context + 1, mask), (x, t, context, ~mask)):
        assert (draw.Velocity()(*change) - v).abs().amax((1, 2, 3)).min() > 1e-4
