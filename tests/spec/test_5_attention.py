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


def asking(layer, wanted):
    """What a linear of as many inputs as outputs maps to `wanted`."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    return torch.linalg.solve(weight, (wanted - bias)[..., None])[..., 0]


def square(width, heads, seed):
    """Attention to a text as wide as the image, its biases 0."""
    attention = flowclip.CrossAttention(width, width, heads).double()
    draw.randomise(attention, seed)
    with torch.no_grad():
        for parameter in attention.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
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
    x, Z = numbers(2, 3, width, seed=seed), numbers(2, 1, D_z, seed=seed + 1)
    values = [oracles.linear(attention.v_proj, row) for row in Z[:, 0].tolist()]
    found = asking(attention.out_proj, attention(x, Z))
    close("the value", found, torch.tensor(values)[:, None].expand_as(x))


@pytest.mark.spec("ATTN-2")
@given(st.integers(2, 3), st.integers(1, 4), draw.seeds)
def test_a_head_owns_its_features(heads, d, seed):
    """Queries (or keys) of head i are changed: its A changes, that of all others stays."""
    attention = square(heads * d, heads, seed)
    asked = {
        "queries": numbers(1, 3, heads * d, seed=seed + 1),
        "keys": numbers(1, 4, heads * d, seed=seed + 2),
    }

    def A(queries, keys):
        x, Z = asking(attention.q_proj, queries), asking(attention.k_proj, keys)
        return attention.attention_weights(x, Z)

    before = A(**asked)
    assert before.shape == (1, heads, 3, 4), f"A has shape {list(before.shape)}"
    for i in range(heads):
        own = slice(i * d, (i + 1) * d)
        for name in ("queries", "keys"):
            other = asked[name].clone()
            other[..., own] += numbers(*other[..., own].shape, seed=seed + 3)
            change = (A(**(asked | {name: other})) - before).abs().amax((0, 2, 3))
            moved = (change > 1e-9).nonzero().flatten().tolist()
            assert moved == [i], f"features {own} of the {name} moved A of the heads {moved}"


@pytest.mark.spec("ATTN-2")
def test_eight_heads_unless_told():
    attention = flowclip.CrossAttention(16, 5).double()
    A = attention.attention_weights(numbers(1, 3, 16, seed=0), numbers(1, 4, 5, seed=1))
    assert A.shape == (1, 8, 3, 4), f"A has shape {list(A.shape)}, expected [1, 8, 3, 4]"


@pytest.mark.spec("ATTN-3")
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), draw.seeds)
def test_the_softmax_of_scaled_scores(heads, d, M, seed):
    """All features of query n are a_n, of key m are b_m: q k / sqrt(d) = sqrt(d) a_n b_m."""
    a, b = numbers(2, 3, seed=seed), numbers(2, M, seed=seed + 1)
    queries, keys = (u[..., None].expand(*u.shape, heads * d) for u in (a, b))
    attention = square(heads * d, heads, seed)
    x, Z = asking(attention.q_proj, queries), asking(attention.k_proj, keys)
    found = attention.attention_weights(x, Z)
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

    def gradients(Z):
        attention.zero_grad()
        attention(x, Z, mask).square().sum().backward()
        return {name: p.grad for name, p in attention.named_parameters() if p.grad is not None}

    expected, expected_gradients = attention(x, Z, mask), gradients(Z)
    poisoned = torch.where(mask[..., None], Z, torch.tensor(value).double())
    A = attention.attention_weights(x, poisoned, mask)
    masked = A.transpose(1, 3)[~mask]
    equal("A of the masked tokens", masked, torch.zeros_like(masked))
    out = attention(x, poisoned, mask)
    close(f"the output, masked tokens being {value},", out, expected)
    for name, found in gradients(poisoned).items():
        close(f"the gradient of {name}", found, expected_gradients[name], rtol=1e-6)
    longer = torch.cat([poisoned, poisoned.new_full((s.B, 3, s.D_z), value)], 1)
    longer_mask = torch.cat([mask, mask.new_zeros(s.B, 3)], 1)
    close("the output with more padding", attention(x, longer, longer_mask), expected)


@pytest.mark.spec("ATTN-4")
@given(draw.readings)
def test_what_is_handed_in_is_not_written_to(s):
    attention, *given_tensors = setting(s)
    before = [tensor.clone() for tensor in given_tensors]
    attention(*given_tensors)
    attention.attention_weights(*given_tensors)
    for name, tensor, copy in zip(("x", "the context", "the mask"), given_tensors, before):
        equal(f"{name}, after the call,", tensor, copy)


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
    alone = [attention(x[:, :1], Z[:, m : m + 1])[:, 0] for m in range(s.M)]
    values = [asking(attention.out_proj, one).tolist() for one in alone]  # its A is 1
    joined = []  # [B, N, D_x]
    for b in range(s.B):
        joined.append([[
            sum(a * values[m][b][feature] for m, a in enumerate(A[b][feature // s.d][n]))
            for feature in range(s.heads * s.d)
        ] for n in range(s.N)])  # fmt: skip
    expected = [[oracles.linear(attention.out_proj, row) for row in rows] for rows in joined]
    close("the output, W_o of A V, plus b_o,", out, expected)


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


def test_the_head_dim():
    attention = flowclip.CrossAttention(32, 5, num_heads=4)
    assert attention.head_dim == 8 and attention.scale == pytest.approx(1 / math.sqrt(8))
    assert isinstance(attention.head_dim, int)
