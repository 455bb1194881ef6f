"""Chapter 5: cross-attention, against loops in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import close, equal


def setting(s):
    """-> attention in float64 with random weights, x, Z and mask."""
    attention = draw.randomise(
        flowclip.CrossAttention(s.heads * s.d, s.D_z, s.heads).double(), s.seed
    )
    return attention, *s.tensors()


@torch.no_grad()
def pass_on(layer):
    """Its output is its input: W is 1, b is 0."""
    layer.weight.copy_(torch.eye(len(layer.weight)))
    layer.bias.zero_()


def plain(width, heads):
    attention = flowclip.CrossAttention(width, width, heads).double()
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        pass_on(getattr(attention, name))
    return attention


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.spec("ATTN-1")
@given(st.integers(1, 5), st.integers(2, 6), draw.seeds)
def test_queries_and_keys_are_linear_with_a_bias(width, D_z, seed):
    """One head: log A is q k, times one positive number (ATTN-3), but for a constant a row."""
    attention = draw.randomise(flowclip.CrossAttention(width, D_z, 1).double(), seed, 0.5)
    x, Z = numbers(1, 3, width, seed=seed), numbers(1, 4, D_z, seed=seed + 1)
    found = attention.attention_weights(x, Z)[0, 0].log()
    q = [oracles.linear(attention.q_proj, row) for row in x[0].tolist()]
    k = [oracles.linear(attention.k_proj, row) for row in Z[0].tolist()]
    expected = torch.tensor(q).double() @ torch.tensor(k).double().T
    found, expected = (rows - rows.mean(1, keepdim=True) for rows in (found, expected))
    factor = found.norm() / expected.norm()
    close("log A, less its mean over the tokens,", found, factor * expected, atol=1e-8)


@pytest.mark.spec("ATTN-1")
@given(st.integers(1, 5), st.integers(2, 6), draw.seeds)
def test_a_value_is_linear_with_a_bias(width, D_z, seed):
    """One head and one token: A is 1, and its value arrives, whatever the query."""
    attention = draw.randomise(flowclip.CrossAttention(width, D_z, 1).double(), seed)
    pass_on(attention.out_proj)
    x, Z = numbers(2, 3, width, seed=seed), numbers(2, 1, D_z, seed=seed + 1)
    values = [oracles.linear(attention.v_proj, row) for row in Z[:, 0].tolist()]
    close("the value", attention(x, Z), torch.tensor(values)[:, None].expand_as(x))


@pytest.mark.spec("ATTN-2")
@given(st.integers(2, 3), st.integers(1, 4), draw.seeds)
def test_a_head_owns_its_features(heads, d, seed):
    """Queries (or keys) of head i are changed: its A changes, that of all others stays."""
    attention = plain(heads * d, heads)
    x, Z = numbers(1, 3, heads * d, seed=seed), numbers(1, 4, heads * d, seed=seed + 1)
    before = attention.attention_weights(x, Z)
    assert before.shape == (1, heads, 3, 4), f"A has shape {list(before.shape)}"
    for i in range(heads):
        own = slice(i * d, (i + 1) * d)
        for name in ("queries", "keys"):
            inputs = {"queries": x.clone(), "keys": Z.clone()}
            inputs[name][..., own] += numbers(*inputs[name][..., own].shape, seed=seed + 2)
            change = (attention.attention_weights(*inputs.values()) - before).abs().amax((0, 2, 3))
            moved = (change > 1e-9).nonzero().flatten().tolist()
            assert moved == [i], f"features {own} of the {name} moved A of the heads {moved}"


@pytest.mark.spec("ATTN-3")
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), draw.seeds)
def test_the_softmax_of_scaled_scores(heads, d, M, seed):
    """All features of query n are a_n, of key m are b_m: q k / sqrt(d) = sqrt(d) a_n b_m."""
    a, b = numbers(2, 3, seed=seed), numbers(2, M, seed=seed + 1)
    x, Z = (u[..., None].expand(*u.shape, heads * d) for u in (a, b))
    found = plain(heads * d, heads).attention_weights(x, Z)
    scores = (math.sqrt(d) * a[:, :, None] * b[:, None]).exp()
    expected = scores / scores.sum(2, keepdim=True)
    close("A", found, expected[:, None].expand(2, heads, 3, M), atol=1e-8)


@pytest.mark.spec("ATTN-3")
@given(draw.readings)
def test_rows_sum_to_one(s):
    attention, x, Z, mask = setting(s)
    A = attention.attention_weights(x, Z, mask)
    assert A.min() >= 0, f"a weight of {A.min():.4g}"
    close("the sum over the tokens of A", A.sum(-1), torch.ones(s.B, s.heads, s.N))


@pytest.mark.spec("ATTN-4")
@given(draw.readings, st.sampled_from([1e30, math.nan, math.inf, -math.inf]))
def test_masked_tokens_weigh_nothing_whatever_they_hold(s, value):
    attention, x, Z, mask = setting(s)
    expected = attention(x, Z, mask)
    poisoned = torch.where(mask[..., None], Z, torch.tensor(value).double())
    before = poisoned.clone()
    A = attention.attention_weights(x, poisoned, mask)
    masked = A.transpose(1, 3)[~mask]
    equal("A of the masked tokens", masked, torch.zeros_like(masked))
    out = attention(x, poisoned, mask)
    close(f"the output, masked tokens being {value},", out, expected)
    kept = torch.equal(poisoned.nan_to_num(7), before.nan_to_num(7))
    assert kept, "the call has written to the caller's context"
    out.square().sum().backward()
    for name, parameter in attention.named_parameters():
        finite = parameter.grad is None or parameter.grad.isfinite().all()
        assert finite, f"the gradient of {name} is not finite"
    longer = torch.cat([poisoned, poisoned.new_full((s.B, 3, s.D_z), value)], 1)
    longer_mask = torch.cat([mask, mask.new_zeros(s.B, 3)], 1)
    close("the output with more padding", attention(x, longer, longer_mask), expected)


@pytest.mark.spec("ATTN-5")
@given(draw.readings)
def test_nothing_to_read_gives_the_bias(s):
    attention, x, Z, mask = setting(s)
    mask[0] = False
    A = attention.attention_weights(x, Z, mask)[0]
    equal("A where nothing can be read", A, torch.zeros_like(A))
    out = attention(x, Z, mask)[0]
    close("the output where nothing can be read", out, attention.out_proj.bias.expand_as(out))


@pytest.mark.spec("ATTN-6")
@given(draw.readings)
def test_the_heads_side_by_side(s):
    """Whatever A and the values are, the output is made of them."""
    attention, x, Z, mask = setting(s)
    out, A = attention(x, Z, mask), attention.attention_weights(x, Z, mask).tolist()
    weights = [getattr(attention.out_proj, name).clone() for name in ("weight", "bias")]
    pass_on(attention.out_proj)
    values = [attention(x[:, :1], Z[:, m : m + 1])[:, 0].tolist() for m in range(s.M)]
    joined = []  # [B, N, D_x]
    for b in range(s.B):
        joined.append([[
            sum(a * values[m][b][feature] for m, a in enumerate(A[b][feature // s.d][n]))
            for feature in range(s.heads * s.d)
        ] for n in range(s.N)])  # fmt: skip
    joined = torch.tensor(joined).double()
    close("A V, its heads side by side,", attention(x, Z, mask), joined)
    close("the output, W_o of A V, plus b_o,", out, joined @ weights[0].T + weights[1])


@pytest.mark.spec("ATTN-7")
@given(draw.readings)
def test_self_attention_is_the_same_equation(s):
    """Read as a text that happens to be equal, with every token real."""
    attention = draw.randomise(
        flowclip.CrossAttention(s.heads * s.d, s.heads * s.d, s.heads).double(), s.seed
    )
    x = s.tensors()[0]
    as_a_text = attention(x, x.clone(), torch.ones(s.B, s.N, dtype=torch.bool))
    close("the output", attention(x, x), as_a_text)


def permutations(s):
    g = torch.Generator().manual_seed(s.seed)
    return torch.randperm(s.M, generator=g), torch.randperm(s.N, generator=g)


@pytest.mark.spec("ATTN-8")
@given(draw.readings)
def test_tokens_may_be_permuted(s):
    attention, x, Z, mask = setting(s)
    tokens, _ = permutations(s)
    out = attention(x, Z, mask)
    close("the output", attention(x, Z[:, tokens], mask[:, tokens]), out)


@pytest.mark.spec("ATTN-9")
@given(draw.readings)
def test_permuted_patches_permute_the_output(s):
    attention, x, Z, mask = setting(s)
    _, patches = permutations(s)
    out = attention(x, Z, mask)
    close("the output", attention(x[:, patches], Z, mask), out[:, patches])


# ---- Beyond the statements ----
@given(draw.readings)
def test_equals_the_loop(s):
    attention, x, Z, mask = setting(s)
    for given_mask, real in ((mask, mask), (None, torch.ones_like(mask))):
        out, A = oracles.attention(attention, x, Z, real)
        close("the output", attention(x, Z, given_mask), out)
        close("A", attention.attention_weights(x, Z, given_mask), A, atol=1e-6)


def test_gradients_are_finite_where_nothing_can_be_read():
    attention, x, Z, mask = setting(draw.Reading(2, 3, 4, 2, 3, 5, 0))
    mask[0] = False
    attention(x, Z, mask).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_the_head_dim_and_the_default_of_eight_heads():
    attention = flowclip.CrossAttention(32, 5, num_heads=4)
    assert attention.head_dim == 8 and attention.scale == pytest.approx(1 / math.sqrt(8))
    assert isinstance(attention.head_dim, int) and flowclip.CrossAttention(16, 5).num_heads == 8
