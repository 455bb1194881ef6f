"""Chapter 3: leaving the text out, and exaggerating it."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import close, equal


@pytest.mark.spec("DROP-1")
@given(draw.texts)
def test_the_null_text_takes_the_place_of_vectors_and_mask(s):
    context, mask, null_context, null_mask, drop = s.tensors()
    found, found_mask = flowclip.drop_text(context, mask, null_context, null_mask, drop)
    for b in drop.nonzero().flatten().tolist():
        equal(f"the vectors of sample {b}, dropped,", found[b], null_context[0])
        equal(f"the mask of sample {b}, dropped,", found_mask[b], null_mask[0])


@pytest.mark.spec("DROP-2")
@given(draw.texts)
def test_the_others_keep_theirs_and_nothing_is_written_to(s):
    args = s.tensors()
    before = [tensor.clone() for tensor in args]
    context, mask = flowclip.drop_text(*args)
    for b in (~before[4]).nonzero().flatten().tolist():
        equal(f"the vectors of sample {b}, kept,", context[b], before[0][b])
        equal(f"the mask of sample {b}, kept,", mask[b], before[1][b])
    for name, tensor, copy in zip(("context", "mask", "null_context", "null_mask"), args, before):
        equal(f"{name}, after the call,", tensor, copy)


def both(s):
    context, mask, null_context, null_mask, _ = s.tensors()
    x, t = s.images()
    cond = draw.Velocity()(x, t, context, mask)
    uncond = draw.Velocity()(x, t, null_context.expand_as(context), null_mask.expand_as(mask))
    return (x, t, context, mask, null_context, null_mask), cond, uncond


@pytest.mark.spec("CFG-1")
@given(draw.texts, draw.scales)
@example(draw.Texts(3, 4, 2, 1), 7.5)
@example(draw.Texts(3, 4, 2, 1), 0.5)
@example(draw.Texts(3, 4, 2, 1), 0.99)
@example(draw.Texts(3, 4, 2, 1), 0.01)
@example(draw.Texts(3, 4, 2, 1), -1.0)
def test_the_walk_from_the_null_text_to_the_prompt(s, w):
    args, cond, uncond = both(s)
    v = flowclip.cfg_velocity(draw.Velocity(), *args, w)
    close("v", v, uncond + w * (cond - uncond), atol=1e-4, rtol=1e-4)


@pytest.mark.spec("CFG-2")
@pytest.mark.parametrize("w", [1, 1.0, 0, 0.0])
@given(draw.texts)
def test_one_and_zero_cost_one_pass(w, s):
    args, cond, uncond = both(s)
    model = draw.Velocity()
    close(f"v at w = {w}", flowclip.cfg_velocity(model, *args, w), cond if w else uncond)
    assert model.calls == [s.B], f"at w = {w} passes of {model.calls} samples, expected [{s.B}]"


@pytest.mark.spec("CFG-3")
@given(draw.texts, draw.scales.filter(lambda w: w not in (0, 1)))
def test_both_answers_in_one_pass(s, w):
    args, model = both(s)[0], draw.Velocity()
    flowclip.cfg_velocity(model, *args, w)
    assert model.calls == [2 * s.B], f"passes of {model.calls} samples, expected [{2 * s.B}]"


@pytest.mark.spec("CFG-4")
@pytest.mark.parametrize("w", [0.0, 1.0, 7.5])
def test_scales_that_are_all_the_same_cost_both_answers(w):
    args, model = both(draw.Texts(3, 4, 2, 1))[0], draw.Velocity()
    flowclip.cfg_velocity(model, *args, torch.full((3,), w))
    assert model.calls == [6], f"passes of {model.calls} samples, expected [6]"


@pytest.mark.spec("CFG-4")
@given(draw.texts, st.data())
def test_one_scale_a_sample(s, data):
    """Each sample as if its scale were that of all."""
    args, model = both(s)[0], draw.Velocity()
    some = st.sampled_from([0.0, 1.0]) | draw.scales
    w = torch.tensor(data.draw(st.lists(some, min_size=s.B, max_size=s.B), label="w"))
    v = flowclip.cfg_velocity(model, *args, w)
    assert model.calls == [2 * s.B], f"passes of {model.calls} samples, expected [{2 * s.B}]"
    for b, scale in enumerate(w.tolist()):
        if scale not in (0, 1):  # there a number has a way of its own
            alone = flowclip.cfg_velocity(draw.Velocity(), *args, scale)
            close(f"v of sample {b}", v[b], alone[b], atol=1e-4, rtol=1e-4)


@pytest.mark.spec("CFG-5")
@given(
    st.tuples(st.floats(-2, 2), st.floats(0.3, 2)), st.tuples(st.floats(-2, 2), st.floats(0.3, 2)),
    st.floats(0.1, 0.9), st.floats(0.05, 0.95), st.floats(-3, 3), draw.scales,
)  # fmt: skip
@example((1.0, 0.5), (-1.0, 0.5), 0.5, 0.5, 0.2, 3.0)
@example((1.0, 0.5), (-1.0, 1.5), 0.2, 0.7, -1.0, 1.0)
def test_guidance_climbs_to_where_the_text_is_likely(mine, other, share, t, x, w):
    """An exact model of two texts, each a Gaussian: both sides have closed forms."""
    v_mine, v_all, gradient = oracles.two_texts(mine, other, share, t, x)

    def exact(xt, t, context, mask):
        return torch.where(context[:, :, :, None] == 1, v_mine, v_all).to(xt)

    text, null, mask = torch.ones(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=bool)
    xt = torch.full((1, 1, 1, 1), x).double()
    times = torch.full((1,), t).double()
    v = flowclip.cfg_velocity(exact, xt, times, text, mask, null, mask, w)
    expected = v_all - w * t / (1 - t) * gradient
    close("v", v.flatten(), [expected], atol=1e-6, rtol=1e-6)


# ---- Beyond the statements ----
def test_the_gradient_of_the_oracle_is_that_of_its_density():
    """By a difference: log P_t(mine | x_t) itself, a little to the right and to the left."""
    mine, other, share, t, x, step = (1.0, 0.5), (-0.5, 1.5), 0.3, 0.4, 0.2, 1e-4

    def log_sure(x):
        a = share * oracles.gaussian_density(*mine, t, x)
        return math.log(a / (a + (1 - share) * oracles.gaussian_density(*other, t, x)))

    found = (log_sure(x + step) - log_sure(x - step)) / (2 * step)
    close("the gradient", oracles.two_texts(mine, other, share, t, x)[2], found, atol=1e-6)


def test_whole_numbers_as_scales_of_the_samples():
    args = both(draw.Texts(3, 4, 2, 1))[0]
    v, whole = (flowclip.cfg_velocity(draw.Velocity(), *args, torch.arange(3).to(d))
                for d in (torch.float32, torch.int64))  # fmt: skip
    close("v", whole, v)


@given(draw.texts, draw.scales)
def test_no_scale_matters_where_the_texts_are_equal(s, w):
    (x, t, context, mask, _, _), alone, _ = both(s)
    same = x, t, context, mask, context, mask
    close("v", flowclip.cfg_velocity(draw.Velocity(), *same, w), alone, atol=1e-4, rtol=1e-4)
