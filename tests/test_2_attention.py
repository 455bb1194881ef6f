"""Chapter 2: cross-attention, against loops in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip

shapes = st.fixed_dictionaries({
    "B": st.integers(1, 3), "N": st.integers(1, 5), "M": st.integers(1, 5), "heads": st.sampled_from([1, 2, 3]),
    "d": st.integers(1, 4), "D_z": st.integers(1, 6), "seed": st.integers(0, 10**6),
})  # fmt: skip


def setting(s):
    """-> attention in float64 with random weights, x, Z, and a mask with at least one real token a sample."""
    g = torch.Generator().manual_seed(s["seed"])
    attention = flowclip.CrossAttention(s["heads"] * s["d"], s["D_z"], s["heads"]).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    x = torch.randn(s["B"], s["N"], s["heads"] * s["d"], generator=g).double()
    Z = torch.randn(s["B"], s["M"], s["D_z"], generator=g).double()
    mask = torch.rand(s["B"], s["M"], generator=g) < 0.6
    mask[torch.arange(s["B"]), torch.randint(s["M"], (s["B"],), generator=g)] = True
    return attention, x, Z, mask


def linear(layer, vector):
    W, b = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * u for w, u in zip(row, vector)) + bias for row, bias in zip(W, b)]


def oracle(attention, x, Z, mask, heads, d):
    """The equation, one number at a time -> (output, A)."""
    out, weights = [], []
    for xb, Zb, mb in zip(x.tolist(), Z.tolist(), mask.tolist()):
        keys, values = [linear(attention.k_proj, z) for z in Zb], [linear(attention.v_proj, z) for z in Zb]
        rows, A = [], [[] for _ in range(heads)]
        for patch in xb:
            q, joined = linear(attention.q_proj, patch), []
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                scores = [sum(a * b for a, b in zip(q[part], k[part])) / math.sqrt(d) for k in keys]
                total = sum(math.exp(s) for s, real in zip(scores, mb) if real)
                a = [math.exp(s) / total if real else 0.0 for s, real in zip(scores, mb)]
                A[h].append(a)
                joined += [sum(w * v[part][i] for w, v in zip(a, values)) for i in range(d)]
            rows.append(linear(attention.out_proj, joined))
        out.append(rows)
        weights.append(A)
    return torch.tensor(out).double(), torch.tensor(weights).double()


@pytest.mark.spec("ATTN-1", "ATTN-2", "ATTN-3", "ATTN-6")
@given(shapes)
def test_equals_the_loop(s):
    attention, x, Z, mask = setting(s)
    out, A = oracle(attention, x, Z, mask, s["heads"], s["d"])
    torch.testing.assert_close(attention(x, Z, mask), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.attention_weights(x, Z, mask), A, atol=1e-6, rtol=1e-5)
    out, A = oracle(attention, x, Z, torch.ones_like(mask), s["heads"], s["d"])
    torch.testing.assert_close(attention(x, Z), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.attention_weights(x, Z), A, atol=1e-6, rtol=1e-5)


@pytest.mark.spec("ATTN-3")
@given(shapes)
def test_rows_sum_to_one(s):
    attention, x, Z, mask = setting(s)
    A = attention.attention_weights(x, Z, mask)
    assert A.shape == (s["B"], s["heads"], s["N"], s["M"]) and A.min() >= 0
    torch.testing.assert_close(A.sum(-1), torch.ones_like(A[..., 0]))


@pytest.mark.spec("ATTN-4", "CLIP-13")
@given(shapes, st.sampled_from([1e30, math.nan, math.inf, -math.inf]))
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
    longer = torch.cat([poisoned, poisoned.new_full((s["B"], 3, s["D_z"]), value)], 1)
    longer_mask = torch.cat([mask, mask.new_zeros(s["B"], 3)], 1)
    torch.testing.assert_close(attention(x, longer, longer_mask), expected)
    torch.testing.assert_close(attention(x, *flowclip.trim_context(longer, longer_mask)), expected)


@pytest.mark.spec("ATTN-5")
@given(shapes)
def test_nothing_to_read_gives_the_bias_and_finite_gradients(s):
    attention, x, Z, mask = setting(s)
    mask[0] = False
    out = attention(x, Z, mask)
    assert (attention.attention_weights(x, Z, mask)[0] == 0).all()
    torch.testing.assert_close(out[0], attention.out_proj.bias.expand_as(out[0]))
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.spec("ATTN-6")
@given(shapes)
def test_one_real_token_returns_its_value(s):
    attention, x, Z, mask = setting(s)
    only = torch.zeros_like(mask)
    only[:, s["seed"] % s["M"]] = True
    value = attention.out_proj(attention.v_proj(Z[:, s["seed"] % s["M"]]))
    torch.testing.assert_close(attention(x, Z, only), value[:, None].expand_as(x))


@pytest.mark.spec("ATTN-3")
def test_the_scale_is_of_one_head():
    attention = flowclip.CrossAttention(32, 5, num_heads=4)
    assert attention.head_dim == 8 and attention.scale == pytest.approx(1 / math.sqrt(8))


@pytest.mark.spec("ATTN-7")
def test_self_attention_is_the_same_equation(make_model):
    block = make_model().blocks[0]
    assert type(block.self_attn) is type(block.cross_attn) is flowclip.CrossAttention
    x = torch.randn(2, 3, 16)
    W = {name: getattr(block.self_attn, f"{name}_proj") for name in ("q", "k", "v")}
    q, k, v = (W[name](x).unflatten(-1, (2, 8)).transpose(1, 2) for name in ("q", "k", "v"))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.self_attn(x, x), block.self_attn.out_proj(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.spec("ATTN-8", "ATTN-9")
@given(shapes)
def test_permutations(s):
    attention, x, Z, mask = setting(s)
    g = torch.Generator().manual_seed(s["seed"])
    tokens, patches = torch.randperm(s["M"], generator=g), torch.randperm(s["N"], generator=g)
    out = attention(x, Z, mask)
    torch.testing.assert_close(attention(x, Z[:, tokens], mask[:, tokens]), out)
    torch.testing.assert_close(attention(x[:, patches], Z, mask), out[:, patches])


def test_errors_name_the_argument():
    attention = flowclip.CrossAttention(8, 4, 2)
    x, Z, mask = torch.randn(2, 3, 8), torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    for args, words in {
        (x[..., :7], Z, mask): r"x has shape \[2, 3, 7\], expected \[B, N, 8\]",
        (x, Z[:1], mask): r"context has shape \[1, 5, 4\], expected \[2, M, 4\]",
        (x, Z, mask[:, :4]): r"mask has shape \[2, 4\], expected \[2, 5\]",
        (x, Z, mask.float()): "mask has dtype torch.float32, expected torch.bool",
    }.items():
        with pytest.raises(ValueError, match=words):
            attention(*args)
    with pytest.raises(ValueError, match="embed_dim is 10, expected a multiple of num_heads = 4"):
        flowclip.CrossAttention(10, 4, 4)
