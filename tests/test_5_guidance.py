"""Chapter 5: leaving the text out, and exaggerating it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import strategies as draw


@pytest.mark.spec("DROP-1", "DROP-2")
@given(draw.texts)
def test_drop_replaces_both_and_only_where_asked(s):
    args = s.tensors()
    before = [tensor.clone() for tensor in args]
    context, mask = flowclip.drop_text(*args)
    for b in range(s.B):
        source = (args[2][0], args[3][0]) if args[4][b] else (args[0][b], args[1][b])
        assert torch.equal(context[b], source[0]) and torch.equal(mask[b], source[1]), b
    context.fill_(9)
    mask.fill_(True)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(args, before)), (
        "an input was written to"
    )


@pytest.mark.spec("DROP-2")
def test_drop_all_and_none():
    context, mask, null_context, null_mask, drop = draw.Texts(3, 4, 2, 1).tensors()
    texts = context, mask, null_context, null_mask
    null, real = flowclip.drop_text(*texts, torch.ones_like(drop))
    assert torch.equal(null, null_context.expand(3, -1, -1))
    assert torch.equal(real, null_mask.expand(3, -1))
    same, same_mask = flowclip.drop_text(*texts, torch.zeros_like(drop))
    assert torch.equal(same, context) and torch.equal(same_mask, mask)


def both(s):
    context, mask, null_context, null_mask, _ = s.tensors()
    x, t = s.images()
    cond = draw.Velocity()(x, t, context, mask)
    uncond = draw.Velocity()(x, t, null_context.expand_as(context), null_mask.expand_as(mask))
    return (x, t, context, mask, null_context, null_mask), cond, uncond


@pytest.mark.spec("CFG-1", "CFG-3")
@given(draw.texts, draw.scales)
def test_guidance_equals_two_passes(s, w):
    args, cond, uncond = both(s)
    model = draw.Velocity()
    v = flowclip.cfg_velocity(model, *args, w)
    torch.testing.assert_close(v, uncond + w * (cond - uncond), atol=1e-4, rtol=1e-4)
    assert model.calls == ([s.B] if w in (0, 1) else [2 * s.B])


@pytest.mark.spec("CFG-2")
@given(draw.texts)
def test_one_and_zero_cost_one_pass(s):
    args, cond, uncond = both(s)
    for w, expected in ((1, cond), (1.0, cond), (0, uncond), (0.0, uncond)):
        model = draw.Velocity()
        torch.testing.assert_close(flowclip.cfg_velocity(model, *args, w), expected)
        assert model.calls == [s.B]


@pytest.mark.spec("CFG-4")
@given(draw.texts, st.data())
def test_one_scale_a_sample(s, data):
    args, cond, uncond = both(s)
    w = torch.tensor(data.draw(st.lists(draw.scales, min_size=s.B, max_size=s.B), label="w"))
    v = flowclip.cfg_velocity(draw.Velocity(), *args, w)
    for b in range(s.B):
        torch.testing.assert_close(
            v[b], uncond[b] + w[b] * (cond[b] - uncond[b]), atol=1e-4, rtol=1e-4
        )
    whole = torch.arange(s.B)
    v = flowclip.cfg_velocity(draw.Velocity(), *args, whole)
    torch.testing.assert_close(v, flowclip.cfg_velocity(draw.Velocity(), *args, whole.float()))


@pytest.mark.spec("CFG-1")
@given(draw.texts, draw.scales, draw.scales)
def test_affine_in_w_and_blind_where_texts_are_equal(s, w, u):
    args, _, _ = both(s)
    a, b, middle = (
        flowclip.cfg_velocity(draw.Velocity(), *args, scale) for scale in (w, u, (w + u) / 2)
    )
    torch.testing.assert_close(middle, (a + b) / 2, atol=1e-3, rtol=1e-3)
    x, t, context, mask, _, _ = args
    same, alone = (x, t, context, mask, context, mask), draw.Velocity()(x, t, context, mask)
    torch.testing.assert_close(
        flowclip.cfg_velocity(draw.Velocity(), *same, w), alone, atol=1e-4, rtol=1e-4
    )
