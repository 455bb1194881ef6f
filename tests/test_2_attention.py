"""Chapter 2: cross-attention, against loops in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import oracles
from tests import strategies as draw


def setting(s):
    """-> attention in float64 with random weights, x, Z and mask."""
    attention = draw.randomise(
        flowclip.CrossAttention(s.heads * s.d, s.D_z, s.heads).double(), s.seed
    )
    return attention, *s.tensors()


@pytest.mark.spec("ATTN-1", "ATTN-2", "ATTN-3", "ATTN-6")
@given(draw.readings)
def test_equals_the_loop(s):
    attention, x, Z, mask = setting(s)
    out, A = oracles.attention(attention, x, Z, mask)
    torch.testing.assert_close(attention(x, Z, mask), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.attention_weights(x, Z, mask), A, atol=1e-6, rtol=1e-5)
    out, A = oracles.attention(attention, x, Z, torch.ones_like(mask))
    torch.testing.assert_close(attention(x, Z), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.attention_weights(x, Z), A, atol=1e-6, rtol=1e-5)


@pytest.mark.spec("ATTN-3")
@given(draw.readings)
def test_rows_sum_to_one(s):
    attention, x, Z, mask = setting(s)
    A = attention.attention_weights(x, Z, mask)
    assert A.shape == (s.B, s.heads, s.N, s.M) and A.min() >= 0
    torch.testing.assert_close(A.sum(-1), torch.ones_like(A[..., 0]))


@pytest.mark.spec("ATTN-4")
@given(draw.readings, st.sampled_from([1e30, math.nan, math.inf, -math.inf]))
def test_masked_tokens_weigh_nothing_whatever_they_hold(s, value):
    attention, x, Z, mask = setting(s)
    expected = attention(x, Z, mask)
    poisoned = torch.where(mask[..., None], Z, torch.tensor(value).double())
    A = attention.attention_weights(x, poisoned, mask)
    assert (A.transpose(1, 3)[~mask] == 0).all()
    out = attention(x, poisoned, mask)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())
    longer = torch.cat([poisoned, poisoned.new_full((s.B, 3, s.D_z), value)], 1)
    longer_mask = torch.cat([mask, mask.new_zeros(s.B, 3)], 1)
    torch.testing.assert_close(attention(x, longer, longer_mask), expected)


@pytest.mark.spec("CLIP-13")
@given(draw.readings, st.integers(0, 3))
def test_trimming_changes_nothing(s, padding):
    attention, x, Z, mask = setting(s)
    Z = torch.cat([Z, torch.full((s.B, padding, s.D_z), 7.0).double()], 1)
    mask = torch.cat([mask, mask.new_zeros(s.B, padding)], 1)
    short, short_mask = flowclip.trim_context(Z, mask)
    assert short_mask[:, -1].any() and short.shape[1] <= s.M
    torch.testing.assert_close(attention(x, short, short_mask), attention(x, Z, mask))


@pytest.mark.spec("ATTN-5")
@given(draw.readings)
def test_nothing_to_read_gives_the_bias_and_finite_gradients(s):
    attention, x, Z, mask = setting(s)
    mask[0] = False
    out = attention(x, Z, mask)
    assert (attention.attention_weights(x, Z, mask)[0] == 0).all()
    torch.testing.assert_close(out[0], attention.out_proj.bias.expand_as(out[0]))
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.spec("ATTN-6")
@given(draw.readings)
def test_one_real_token_returns_its_value(s):
    attention, x, Z, mask = setting(s)
    only = torch.zeros_like(mask)
    only[:, s.seed % s.M] = True
    value = attention.out_proj(attention.v_proj(Z[:, s.seed % s.M]))
    torch.testing.assert_close(attention(x, Z, only), value[:, None].expand_as(x))


@pytest.mark.spec("ATTN-3")
def test_the_scale_is_of_one_head():
    attention = flowclip.CrossAttention(32, 5, num_heads=4)
    assert attention.head_dim == 8 and attention.scale == pytest.approx(1 / math.sqrt(8))
    assert isinstance(attention.head_dim, int) and flowclip.CrossAttention(16, 5).num_heads == 8


@pytest.mark.spec("ATTN-7")
def test_self_attention_is_the_same_equation():
    attention, x = flowclip.CrossAttention(16, 16, 2), torch.randn(2, 3, 16)
    W = {name: getattr(attention, f"{name}_proj") for name in ("q", "k", "v")}
    q, k, v = (W[name](x).unflatten(-1, (2, 8)).transpose(1, 2) for name in ("q", "k", "v"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, x), attention.out_proj(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.spec("ATTN-8", "ATTN-9")
@given(draw.readings)
def test_permutations(s):
    attention, x, Z, mask = setting(s)
    g = torch.Generator().manual_seed(s.seed)
    tokens, patches = torch.randperm(s.M, generator=g), torch.randperm(s.N, generator=g)
    out = attention(x, Z, mask)
    torch.testing.assert_close(attention(x, Z[:, tokens], mask[:, tokens]), out)
    torch.testing.assert_close(attention(x[:, patches], Z, mask), out[:, patches])
