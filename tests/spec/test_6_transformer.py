"""Chapter 6: patches, positions, times, and the three transformers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import close, equal, follows_normal, follows_uniform

KINDS = ["DiT", "ConditionalDiT", "TextConditionalDiT"]
kinds = pytest.mark.parametrize("kind", KINDS)

# no two sizes that could be taken for each other: 2 images of 5 channels, 9 patches of 20 numbers,
# 24 features in 3 heads, 7 tokens of 12 numbers
SIZES = {"img_size": 6, "patch_size": 2, "in_channels": 5, "embed_dim": 24, "depth": 3,
         "num_heads": 3}  # fmt: skip


@pytest.fixture(scope="session")
def make_model(make_model):
    return lambda kind, seed=0, **changes: make_model(kind, seed, **(SIZES | changes))


@pytest.mark.spec("PATCH-1")
@given(draw.grids)
def test_patches_in_order(s):
    images = s.images()
    patches = flowclip.patchify(images, s.p)
    sizes = s.B, s.rows * s.columns, s.p * s.p * s.C
    assert patches.shape == sizes, f"the patches have shape {list(patches.shape)}, not {sizes}"
    for (b, n), pixels in oracles.patches(images, s.p).items():
        equal(f"patch {n} of image {b}", patches[b, n], pixels)


@pytest.mark.spec("PATCH-1")
def test_patches_of_cifar():
    sizes = list(flowclip.patchify(torch.zeros(1, 3, 32, 32), 4).shape)
    assert sizes == [1, 64, 48], f"a CIFAR image becomes {sizes}"


@pytest.mark.spec("PATCH-2")
@given(draw.grids)
def test_patches_and_back(s):
    images = s.images()
    patches = flowclip.patchify(images, s.p)
    equal("the images", flowclip.unpatchify(patches, s.p, grid=(s.rows, s.columns)), images)
    if s.rows == s.columns:
        equal("the images, without a grid,", flowclip.unpatchify(patches, s.p), images)


@pytest.mark.spec("POS-1")
@pytest.mark.parametrize("dim, grid", [(4, 1), (8, 3), (256, 8)])
def test_positions(dim, grid):
    table = flowclip.position_embedding_2d(dim, grid)
    close("the positions", table, oracles.positions(dim, grid), atol=1e-4)


@pytest.mark.spec("TIME-1")
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.sampled_from([2, 8, 64]))
def test_times(times, dim):
    t = torch.tensor(times)
    expected = [oracles.sinusoids(1000 * u, dim) for u in t.double().tolist()]
    close("the embedding", flowclip.timestep_embedding(t, dim), expected, atol=2e-4)


@pytest.mark.spec("TIME-2")
def test_times_are_computed_in_float32_also_under_autocast():
    t = torch.linspace(0, 1, 5)
    expected = flowclip.timestep_embedding(t, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = flowclip.timestep_embedding(t, 8)
    assert found.dtype == torch.float32, f"under autocast it is {found.dtype}"
    close("the embedding under autocast", found, expected, atol=2e-4)


@pytest.mark.spec("TIME-2")
@given(draw.seeds)
def test_times_are_computed_in_float32(seed):
    times = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        t = times.to(dtype)
        found = flowclip.timestep_embedding(t, 8)
        assert found.dtype == torch.float32, f"of t in {dtype} it is {found.dtype}"
        expected = flowclip.timestep_embedding(t.float(), 8)
        close(f"the embedding of t in {dtype}", found, expected, atol=2e-4)


class Recorder(torch.nn.Module):
    """In place of a block: it remembers what it is given, and answers with what it was told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c, context=None, mask=None):
        given_tensors = (u if u is None else u.clone() for u in (x, c, context, mask))
        self.x, self.c, self.context, self.mask = given_tensors
        return self.answer.clone()


@torch.no_grad()
def recorded(model, xt, t, *condition, scale=1.0):
    """Three recorders in place of the blocks -> these, and v."""
    answers = torch.randn(3, len(xt), 9, 24, generator=torch.Generator().manual_seed(9))
    model.blocks = torch.nn.ModuleList(map(Recorder, scale * answers))
    v = model(xt, t, *condition)
    return list(model.blocks), v


def inputs(kind, seed, B=2, M=7, classes=10):
    """-> xt, t and what the model of this kind is told beside them."""
    g = torch.Generator().manual_seed(seed)
    xt, t = torch.randn(B, 5, 6, 6, generator=g), torch.rand(B, generator=g)
    Z, mask = torch.randn(B, M, 12, generator=g), torch.rand(B, M, generator=g) < 0.7
    labels = torch.randint(0, classes + 1, (B,), generator=g)
    told = {"DiT": [], "ConditionalDiT": [labels], "TextConditionalDiT": [Z, mask]}[kind]
    return xt, t, *told


@pytest.mark.spec("POS-2")
@kinds
@given(draw.seeds)
def test_positions_are_added_once_before_the_first_block(make_model, kind, seed):
    """Every parameter is random, so that a position that is learned would be, too."""
    model, (xt, *rest) = make_model(kind, seed), inputs(kind, seed)
    (first, second, third), _ = recorded(model, xt, *rest)
    pixels = flowclip.patchify(xt, 2).tolist()
    embedded = [[oracles.linear(model.patch_embed, patch) for patch in rows] for rows in pixels]
    expected = torch.tensor(embedded) + flowclip.position_embedding_2d(24, 3)
    close("what the first block is given", first.x, expected, atol=1e-4)
    equal("what the second block is given", second.x, first.answer)
    equal("what the third block is given", third.x, second.answer)


@pytest.mark.spec("TIME-3")
@pytest.mark.parametrize("kind", [
    pytest.param("DiT", marks=pytest.mark.spec("DIT-3")),
    pytest.param("ConditionalDiT", marks=pytest.mark.spec("DIT-4")),
    pytest.param("TextConditionalDiT", marks=pytest.mark.spec("DIT-3")),
])  # fmt: skip
@given(draw.seeds)
def test_the_vector_of_the_time(make_model, kind, seed):
    """It is c, in each block; in ConditionalDiT the class is added."""
    model, (xt, t, *told) = make_model(kind, seed), inputs(kind, seed)
    blocks, _ = recorded(model, xt, t, *told)
    expected = []
    for row in flowclip.timestep_embedding(t, 24).tolist():
        hidden = [u / (1 + math.exp(-u)) for u in oracles.linear(model.time_mlp[0], row)]
        assert len(hidden) == 96, f"the hidden width is {len(hidden)}, expected 4 d = 96"
        expected.append(oracles.linear(model.time_mlp[2], hidden))
    if kind == "ConditionalDiT":
        expected = torch.tensor(expected) + model.label_embedding.weight[told[0]]
    for n, block in enumerate(blocks):
        close(f"c of block {n}", block.c, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.spec("DIT-1")
@given(draw.seeds)
def test_adaln(seed):
    """Also of small numbers, beside which the epsilon of LN shows."""
    layer = draw.randomise(flowclip.AdaLN(4, 3).double(), seed)
    count = sum(parameter.numel() for parameter in layer.parameters())
    assert count == (3 + 1) * 8, f"{count} parameters, expected those of W and b alone, 32"
    g = torch.Generator().manual_seed(seed)
    u, c = torch.randn(2, 5, 4, generator=g).double(), torch.randn(2, 3, generator=g).double()
    for x in (u, 0.003 * u):
        expected = [
            [oracles.adaln(layer, patch, condition) for patch in rows]
            for rows, condition in zip(x.tolist(), c.tolist())
        ]
        close("AdaLN(x, c)", layer(x, c), expected)


@pytest.mark.spec("DIT-2")
@kinds
@given(draw.seeds, st.integers(0, 2))
def test_a_block_is_its_residual_steps(make_model, kind, seed, n):
    """Put together from the block's own AdaLN and attention, whatever these are."""
    block, g = make_model(kind, seed).blocks[n].double(), torch.Generator().manual_seed(seed)
    x, c = (torch.randn(2, *size, generator=g).double() for size in ((5, 24), (96,)))
    text = ()
    if kind == "TextConditionalDiT":
        text = torch.randn(2, 7, 12, generator=g).double(), torch.rand(2, 7, generator=g) < 0.7
    found = block(x, c, *text)
    h = block.norm1(x, c)
    x = x + block.self_attn(h, h)
    norms = [block.norm1, block.norm3]
    if text:
        x = x + block.cross_attn(block.norm2(x, c), *text)
        norms.insert(1, block.norm2)
    hidden = [
        [oracles.linear(block.mlp[0], patch) for patch in rows]
        for rows in block.norm3(x, c).tolist()
    ]
    hidden = torch.tensor(hidden).double()
    assert hidden.shape[-1] == 96, f"the MLP has {hidden.shape[-1]} hidden features, not 4 d = 96"
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    out = [[oracles.linear(block.mlp[2], patch) for patch in rows] for rows in hidden.tolist()]
    close("the block's output", found, x + torch.tensor(out).double())
    weights = [norm.linear.weight for norm in norms]
    for one, other in zip(weights, weights[1:]):
        assert not torch.equal(one, other), "two steps share their AdaLN"


@pytest.mark.spec("DIT-2")
@kinds
def test_the_attentions_of_a_block_are_those_of_chapter_5(make_model, kind):
    """Each against the loops, with as many heads as were asked for; not 8, the default."""
    g = torch.Generator().manual_seed(1)
    for n, block in enumerate(make_model(kind).double().blocks):
        x, Z = (torch.randn(2, *size, generator=g).double() for size in ((5, 24), (7, 12)))
        mask = torch.rand(2, 7, generator=g) < 0.7
        calls = [("self_attn", x, None), ("self_attn", x[:, :1], None)]
        if kind == "TextConditionalDiT":
            calls += [("cross_attn", Z, mask), ("cross_attn", Z, None)]
        for name, read, m in calls:
            attention = getattr(block, name)
            count = attention.num_heads
            assert count == 3, f"blocks[{n}].{name} has {count} heads, asked for 3"
            real = torch.ones(read.shape[:2]) if m is None else m
            asking = read if name == "self_attn" else x
            found = attention(asking, read) if m is None else attention(asking, read, m)
            expected = oracles.attention(attention, asking, read, real)[0]
            close(f"blocks[{n}].{name}", found, expected)


@pytest.mark.spec("DIT-2")
@kinds
def test_the_hidden_width_of_the_mlp(make_model, kind):
    for ratio, width in ((1.5, 36), (3, 72)):
        for block in make_model(kind, mlp_ratio=ratio).blocks:
            found = [list(block.mlp[i].weight.shape) for i in (0, 2)]
            assert found == [[width, 24], [24, width]], f"mlp_ratio {ratio}: the MLP has {found}"


@pytest.mark.spec("DIT-2", "SAMPLE-7")
@kinds
def test_train_mode_changes_nothing(make_model, kind):
    """There is neither dropout nor a batch statistic. Many images, as some might be dropped."""
    model, given_inputs = make_model(kind), inputs(kind, 1, B=40)
    expected = model(*given_inputs)
    for mode in (True, True, False):
        v = model.train(mode)(*given_inputs)
        close("v in train mode" if mode else "v in eval mode again", v, expected)


@pytest.mark.spec("DIT-3")
@pytest.mark.parametrize("kind", ["DiT", "TextConditionalDiT"])
@given(draw.seeds)
def test_time_alone_is_the_condition(make_model, kind, seed):
    """Other images and texts, the same c in each block; another time, another c."""
    model, (xt, t, *told) = make_model(kind, seed), inputs(kind, seed)
    others, _, *other_text = inputs(kind, seed + 1)
    c = recorded(model, xt, t, *told)[0][0].c
    for block in recorded(model, others, t, *other_text)[0]:
        close("c, of other images and texts,", block.c, c)
    other = recorded(model, xt, t.roll(1), *told)[0][0].c
    close("c, of the times in another order,", other, c.roll(1, 0))


@pytest.mark.spec("DIT-4")
@given(draw.seeds, st.integers(1, 4))
def test_a_class_is_added_to_the_time(make_model, seed, classes):
    model = make_model("ConditionalDiT", seed, num_classes=classes)
    rows, count = model.label_embedding.weight.detach(), classes + 1
    assert rows.shape == (count, 96), f"e has shape {list(rows.shape)}, not {[count, 96]}"
    xt, t, _ = inputs("ConditionalDiT", seed, B=count)
    labels = torch.arange(count).flip(0)
    for block in recorded(model, xt, t[:1].expand(count), labels)[0]:
        e_t = block.c - rows[labels]
        close("c, less the row of the class, of one time,", e_t, e_t[:1].expand_as(e_t), atol=1e-4)


@pytest.mark.spec("DIT-5")
@given(draw.seeds)
def test_each_block_reads_the_text_after_its_layer(make_model, seed):
    """At the real tokens: what stands at the padding is read by nobody."""
    kind = "TextConditionalDiT"
    model, (xt, t, Z, mask) = make_model(kind, seed), inputs(kind, seed)
    expected = [
        [oracles.linear(model.context_proj, token) for token in text] for text in Z.tolist()
    ]
    expected, everything = torch.tensor(expected), torch.ones_like(mask)
    for told, real in (([Z, mask], mask), ([Z, everything], everything), ([Z], everything)):
        for block in recorded(model, xt, t, *told)[0]:
            read = block.mask
            if read is None:
                read = torch.ones(block.context.shape[:2]).bool()
            for b in range(len(Z)):
                close(f"the real tokens that a block is given, text {b}",
                      block.context[b][read[b]], expected[b][real[b]], atol=1e-4)  # fmt: skip


@pytest.mark.spec("DIT-6")
@kinds
@given(draw.seeds)
def test_the_head(make_model, kind, seed):
    """The last block answers in the thousands: what is of the order of 1 plays no part here."""
    model, (xt, *rest) = make_model(kind, seed), inputs(kind, seed)
    blocks, v = recorded(model, xt, *rest, scale=10_000.0)
    close("v", v, head(model, blocks[-1].answer), atol=2e-3, rtol=1e-3)


@pytest.mark.spec("DIT-6")
@kinds
def test_the_epsilon_of_the_last_norm(make_model, kind):
    """It shows where the last block answers in thousandths."""
    model = make_model(kind)
    blocks, v = recorded(model, *inputs(kind, 0), scale=0.003)
    close("v", v, head(model, blocks[-1].answer), atol=1e-4, rtol=1e-3)


def head(model, answer):
    """[DIT-6]: from the last block's answer to v."""
    weight, bias = model.final_norm.weight.tolist(), model.final_norm.bias.tolist()
    patches = [
        [
            oracles.linear(
                model.final_linear,
                [u * w + b for u, w, b in zip(oracles.layer_norm(patch), weight, bias)],
            )
            for patch in rows
        ]
        for rows in answer.tolist()
    ]
    return flowclip.unpatchify(torch.tensor(patches), 2)


def untrained(kind, **sizes):
    """-> a model as it is at the start, and xt, t and the rest."""
    torch.manual_seed(0)
    defaults = SIZES | {"embed_dim": 48}
    if kind == "TextConditionalDiT":
        defaults["context_dim"] = 12
    return getattr(flowclip, kind)(**(defaults | sizes)), inputs(kind, 0)


def parts(model):
    """{name: a linear layer} of the backbone; those that start at zero, and all others."""
    zero, others = {"final_linear": model.final_linear}, {"patch_embed": model.patch_embed}
    for i in (0, 2):
        others[f"time_mlp[{i}]"] = model.time_mlp[i]
    for n, block in enumerate(model.blocks):
        both = "self_attn", "cross_attn"
        attentions = [name for name in both if getattr(block, name, None) is not None]
        for i in (0, 2):
            others[f"blocks[{n}].mlp[{i}]"] = block.mlp[i]
        for name in attentions:
            for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
                attention = getattr(block, name)
                others[f"blocks[{n}].{name}.{layer}"] = getattr(attention, layer)
        for name in ("norm1", "norm3", *(["norm2"] if len(attentions) > 1 else [])):
            zero[f"blocks[{n}].{name}.linear"] = getattr(block, name).linear
    return zero, others


@pytest.mark.spec("DIT-7")
@kinds
def test_the_first_prediction_is_zero(kind):
    model, given_inputs = untrained(kind)
    v = model(*given_inputs)
    equal("the first v", v, torch.zeros_like(v))


@pytest.mark.spec("DIT-7")
@kinds
def test_the_last_layer_and_adaln_start_at_zero(kind):
    zero, others = parts(untrained(kind)[0])
    for name, layer in zero.items():
        equal(f"{name}.weight", layer.weight, torch.zeros_like(layer.weight))
    for name, layer in (zero | others).items():
        equal(f"{name}.bias", layer.bias, torch.zeros_like(layer.bias))


@pytest.mark.spec("DIT-7")
@kinds
def test_the_backbone_starts_by_xavier_s_uniform_law(kind):
    for name, layer in parts(untrained(kind)[0])[1].items():
        width_out, width_in = layer.weight.shape
        bound = math.sqrt(6 / (width_in + width_out))
        follows_uniform(f"{name}.weight", layer.weight, -bound, bound)


@pytest.mark.spec("DIT-7")
def test_the_layer_on_the_text_starts_as_pytorch_starts_it():
    """Weights and biases uniform between +- 1 / sqrt(width), as nn.Linear documents it."""
    layer, bound = untrained("TextConditionalDiT", context_dim=96)[0].context_proj, 96**-0.5
    follows_uniform("context_proj.weight", layer.weight, -bound, bound)
    follows_uniform("context_proj.bias", layer.bias, -bound, bound)


@pytest.mark.spec("DIT-7")
def test_class_vectors_start_normal():
    model, _ = untrained("ConditionalDiT", num_classes=99)
    follows_normal("label_embedding.weight", model.label_embedding.weight, 0.02)


@pytest.mark.spec("DIT-7")
@kinds
def test_which_step_reaches_which_layer(kind):
    """A step follows the signs of the gradients: what has any gradient moves, and is seen to."""
    model, given_inputs = untrained(kind)
    zero, others = parts(model)
    layers, waiting = zero | others, {"time_mlp[0]", "time_mlp[2]", "label_embedding"}
    for name in ("label_embedding", "context_proj"):
        if getattr(model, name, None) is not None:
            layers[name] = getattr(model, name)
    target = torch.randn_like(given_inputs[0])
    for step in (1, 2, 3):
        before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        model.zero_grad()
        (model(*given_inputs) - target).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad.sign()
        for name, layer in layers.items():
            reached = name == "final_linear" if step == 1 else step == 3 or name not in waiting
            has = not torch.equal(layer.weight, before[name])
            assert has == reached, (
                f"{name}.weight has {'a' if has else 'no'} gradient at step {step}, "
                f"expected {'one' if reached else 'none'}"
            )


@pytest.mark.spec("DIT-8")
@pytest.mark.parametrize("kind, expected", [
    ("DiT", 12_368_176), ("ConditionalDiT", 12_379_440), ("TextConditionalDiT", 18_145_072),
])  # fmt: skip
def test_parameter_counts(kind, expected):
    model = getattr(flowclip, kind)()
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == expected, f"{kind}() has {found:,} parameters, expected {expected:,}"
    sizes = {
        "blocks": (len(model.blocks), 6),
        "heads": (model.blocks[-1].self_attn.num_heads, 8),
        "shape of v": (list(model(*inputs_of_cifar(kind)).shape), [1, 3, 32, 32]),
    }
    for name, (found, expected) in sizes.items():
        assert found == expected, f"{kind}(): {name} {found}, expected {expected}"


def inputs_of_cifar(kind):
    told = {"ConditionalDiT": [torch.tensor([10])], "TextConditionalDiT": [torch.zeros(1, 2, 512)]}
    return torch.zeros(1, 3, 32, 32), torch.zeros(1), *told.get(kind, [])


@pytest.mark.spec("DIT-9")
@kinds
def test_the_others_of_a_batch_play_no_part(make_model, kind):
    model, told = make_model(kind).train(), inputs(kind, 3, B=4)
    v = model(*told)
    for b in (0, 3):
        alone = model(*(tensor[b : b + 1] for tensor in told))
        close(f"v of image {b} alone", alone[0], v[b], rtol=1e-4)


@pytest.mark.spec("DIT-9")
@given(draw.seeds, st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_each_image_goes_its_own_way(make_model, seed, lengths):
    model, g = make_model("TextConditionalDiT", seed), torch.Generator().manual_seed(seed)
    B = len(lengths)
    xt, t = torch.randn(B, 5, 6, 6, generator=g), torch.rand(B, generator=g)
    Z, mask = torch.randn(B, 5, 12, generator=g), torch.arange(5) < torch.tensor(lengths)[:, None]
    v = model(xt, t, Z, mask)
    for b in range(B):
        real = int(mask[b].sum())
        alone = model(xt[b : b + 1], t[b : b + 1], Z[b : b + 1, :real], mask[b : b + 1, :real])
        close(f"v of image {b} alone", alone[0], v[b], rtol=1e-4)
    padding = torch.where(mask[..., None], Z, torch.tensor(1e6))
    close("v with other padding", model(xt, t, padding, mask), v)


# ---- Beyond the statements ----
@kinds
def test_the_model_is_the_composition_of_its_documented_parts(make_model, kind):
    model, (xt, t, *told) = make_model(kind), inputs(kind, 1)
    c = model.time_mlp(flowclip.timestep_embedding(t, 24))
    text = ()
    if kind == "ConditionalDiT":
        c = c + model.label_embedding(told[0])
    if kind == "TextConditionalDiT":
        text = model.context_proj(told[0]), told[1]
    x = model.patch_embed(flowclip.patchify(xt, 2)) + model.positions
    for block in model.blocks:
        x = block(x, c, *text)
    expected = flowclip.unpatchify(model.final_linear(model.final_norm(x)), 2)
    close("v", model(xt, t, *told), expected)


def test_patches_of_other_kinds_of_numbers():
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    assert torch.equal(flowclip.unpatchify(flowclip.patchify(pixels, 2), 2), pixels)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.sampled_from([2, 6, 8]))
def test_sinusoids_of_any_shape_of_values(values, dim):
    expected = torch.tensor([oracles.sinusoids(value, dim) for value in values])
    for u, sinusoids in ((values, expected), ([values], expected[None])):
        close("the sinusoids", flowclip.sinusoids(torch.tensor(u), dim), sinusoids, atol=1e-4)


def test_places_and_times_are_told_apart():
    assert torch.pdist(flowclip.position_embedding_2d(256, 8)).min() > 0.1
    e = flowclip.timestep_embedding(torch.linspace(0, 1, 101), 256)
    assert torch.pdist(e).min() > 2, "t and t + 0.01 clearly differ"


def test_positions_are_no_part_of_a_checkpoint(make_model):
    model = make_model("TextConditionalDiT")
    assert "positions" not in {*model.state_dict(), *dict(model.named_parameters())}
    assert torch.equal(model.positions, flowclip.position_embedding_2d(24, 3))


def test_every_parameter_gets_a_gradient(make_model):
    model = make_model("TextConditionalDiT").train()
    mask = torch.ones(2, 4, dtype=torch.bool)
    v = model(torch.randn(2, 5, 6, 6), torch.rand(2), torch.randn(2, 4, 12), mask)
    v.square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax does not see it, as chapter 6 says
            assert parameter.grad.abs().max() > 1e-6, name


def test_the_three_rows_share_one_backbone():
    assert issubclass(flowclip.TextConditionalDiT, flowclip.DiT)
    assert issubclass(flowclip.ConditionalDiT, flowclip.DiT)


def test_arguments_by_place():
    by_place = flowclip.ConditionalDiT(8, 2, 1, 16, 1, 2, 2.0, num_classes=3)
    assert by_place.image_shape == (1, 8, 8) and len(by_place.blocks) == 1
    assert by_place.label_embedding.weight.shape == (4, 64)
    assert by_place.blocks[0].mlp[0].out_features == 32
    assert by_place.blocks[0].self_attn.num_heads == 2
    text = flowclip.TextConditionalDiT(8, 2, 1, 16, 1, 2, 2.0, context_dim=12)
    assert text.config == dict(
        img_size=8, patch_size=2, in_channels=1, embed_dim=16, depth=1, num_heads=2,
        mlp_ratio=2.0, context_dim=12,
    )  # fmt: skip
    block = text.blocks[0]
    assert block.cross_attn.num_heads == block.self_attn.num_heads == 2
    assert block.cross_attn.k_proj.in_features == 12 and block.mlp[0].out_features == 32
