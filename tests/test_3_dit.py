"""Chapter 3: patches, positions, times, and the three transformers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import oracles
from tests import strategies as draw


@pytest.mark.spec("PATCH-1", "PATCH-2")
@given(draw.grids)
def test_patches_in_order_and_back(s):
    images = s.images()
    patches = flowclip.patchify(images, s.p)
    assert patches.shape == (s.B, s.rows * s.columns, s.p * s.p * s.C)
    for (b, n), pixels in oracles.patches(images, s.p).items():
        assert patches[b, n].tolist() == pixels, (b, n)
    assert torch.equal(flowclip.unpatchify(patches, s.p, grid=(s.rows, s.columns)), images)
    if s.rows == s.columns:
        assert torch.equal(flowclip.unpatchify(patches, s.p), images)
    pixels = images.to(torch.uint8)  # numbers of any kind may be cut
    assert torch.equal(
        flowclip.unpatchify(flowclip.patchify(pixels, s.p), s.p, (s.rows, s.columns)), pixels
    )


@pytest.mark.spec("PATCH-1")
def test_patches_of_cifar():
    assert flowclip.patchify(torch.zeros(1, 3, 32, 32), 4).shape == (1, 64, 48)


@pytest.mark.spec("POS-1")
@pytest.mark.parametrize("dim, grid", [(4, 1), (8, 3), (256, 8)])
def test_positions(dim, grid):
    table = flowclip.position_embedding_2d(dim, grid)
    torch.testing.assert_close(table, torch.tensor(oracles.positions(dim, grid)))
    if grid > 1:
        assert torch.pdist(table).min() > 0.1, "no two patches have the same"


@pytest.mark.spec("POS-2")
def test_positions_are_fixed_and_each_matters(make_model):
    model = make_model()
    assert (
        "positions" not in dict(model.named_parameters()) and "positions" not in model.state_dict()
    )
    torch.testing.assert_close(model.positions, flowclip.position_embedding_2d(16, 4))
    xt, t, Z = torch.randn(1, 3, 8, 8), torch.tensor([0.3]), torch.randn(1, 4, 12)
    v = model(xt, t, Z)
    for n in range(16):
        kept = model.positions[n].clone()
        model.positions[n] += torch.randn(16)  # (a constant would vanish in the LayerNorms)
        assert (model(xt, t, Z) - v).abs().max() > 1e-4, f"position {n} does not matter"
        model.positions[n] = kept


@pytest.mark.spec("TIME-1")
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.sampled_from([2, 8, 64]))
def test_times(times, dim):
    t = torch.tensor(times)
    expected = torch.tensor(
        [oracles.sinusoids(1000 * u, dim) for u in t.double().tolist()], dtype=torch.float32
    )
    torch.testing.assert_close(flowclip.timestep_embedding(t, dim), expected, atol=2e-4, rtol=0)


@pytest.mark.spec("TIME-1", "POS-1")
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=4), st.sampled_from([2, 6, 8]))
def test_sinusoids_of_any_shape_of_values(values, dim):
    expected = torch.tensor([oracles.sinusoids(value, dim) for value in values])
    for u, sinusoids in ((values, expected), ([values], expected[None])):
        mine = flowclip.sinusoids(torch.tensor(u), dim)
        torch.testing.assert_close(mine, sinusoids, atol=1e-4, rtol=0)


@pytest.mark.spec("TIME-1", "TIME-2")
def test_times_are_distinct_and_float32():
    t = torch.linspace(0, 1, 101)
    e = flowclip.timestep_embedding(t, 256)
    distances = torch.cdist(e, e)
    assert (distances + 99 * torch.eye(101)).min() > 2, "t and t + 0.01 clearly differ"
    for dtype in (torch.float64, torch.bfloat16):
        t = torch.tensor([0.504]).to(dtype)  # in bfloat16 0.50390625, 1000 times that 503.90625
        e, expected = flowclip.timestep_embedding(t, 8), oracles.sinusoids(1000 * t.item(), 8)
        assert e.dtype == torch.float32
        torch.testing.assert_close(e, torch.tensor([expected]), atol=2e-4, rtol=0)
    a, b = flowclip.timestep_embedding(torch.tensor([0.501, 0.502]), 8)
    assert (a - b).abs().max() > 0.5


@pytest.mark.spec("TIME-3", "DIT-2", "DIT-3", "DIT-4", "DIT-5", "DIT-6")
@pytest.mark.parametrize("kind", ["DiT", "ConditionalDiT", "TextConditionalDiT"])
@given(draw.seeds, st.integers(1, 3), st.integers(1, 5))
def test_the_model_is_the_composition_of_its_documented_parts(make_model, kind, seed, B, M):
    model, g = make_model(kind, seed), torch.Generator().manual_seed(seed)
    xt, t = torch.randn(B, 3, 8, 8, generator=g), torch.rand(B, generator=g)
    Z = torch.randn(B, M, 12, generator=g)
    mask = torch.arange(M) < torch.randint(1, M + 1, (B, 1), generator=g)
    first, second = model.time_mlp[0], model.time_mlp[2]
    h = first(flowclip.timestep_embedding(t, 16))
    c, labels = second(h * torch.sigmoid(h)), torch.randint(0, 11, (B,), generator=g)
    assert c.shape == (B, 64)
    if kind == "ConditionalDiT":
        c = c + model.label_embedding.weight[labels]
    x = model.patch_embed(flowclip.patchify(xt, 2)) + flowclip.position_embedding_2d(16, 4)
    for block in model.blocks:
        h = block.norm1(x, c)
        x = x + block.self_attn(h, h)
        if kind == "TextConditionalDiT":
            x = x + block.cross_attn(block.norm2(x, c), model.context_proj(Z), mask)
        hidden = block.mlp[0](block.norm3(x, c))
        x = x + block.mlp[2](hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    x = (x - mean) / (var + 1e-5).sqrt() * model.final_norm.weight + model.final_norm.bias
    expected = flowclip.unpatchify(model.final_linear(x), 2)
    condition = {"DiT": [], "ConditionalDiT": [labels], "TextConditionalDiT": [Z, mask]}[kind]
    torch.testing.assert_close(model(xt, t, *condition), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.spec("DIT-1")
@given(draw.seeds)
def test_adaln(seed):
    layer = draw.randomise(flowclip.AdaLN(4, 3).double(), seed)
    assert {name for name, _ in layer.named_parameters()} == {"linear.weight", "linear.bias"}
    g = torch.Generator().manual_seed(seed)
    x, c = torch.randn(2, 3, 4, generator=g).double(), torch.randn(2, 3, generator=g).double()
    expected = [
        [oracles.adaln(layer, patch, condition) for patch in rows]
        for rows, condition in zip(x.tolist(), c.tolist())
    ]
    torch.testing.assert_close(layer(x, c), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.spec("DIT-4")
@given(draw.seeds, st.integers(1, 4))
def test_a_class_is_added_to_the_time(make_model, seed, classes):
    model, g, count = (
        make_model("ConditionalDiT", seed, num_classes=classes),
        torch.Generator().manual_seed(seed),
        classes + 1,
    )
    xt, t = torch.randn(count, 3, 8, 8, generator=g), torch.rand(count, generator=g)
    assert model.label_embedding.weight.shape == (count, 64)
    outputs = model(xt[:1].expand(count, -1, -1, -1), t[:1].expand(count), torch.arange(count))
    assert torch.pdist(outputs.flatten(1)).min() > 1e-3, (
        "each class, the null class too, has its own v"
    )
    with torch.no_grad():
        model.label_embedding.weight.zero_()
    torch.testing.assert_close(
        model(xt, t, torch.arange(count)), flowclip.DiT.forward(model, xt, t)
    )


@pytest.mark.spec("DIT-7")
@pytest.mark.parametrize("kind", ["DiT", "ConditionalDiT", "TextConditionalDiT"])
def test_the_first_prediction_is_zero(kind):
    model = getattr(flowclip, kind)(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2)
    condition = {
        "DiT": [],
        "ConditionalDiT": [torch.tensor([1, 2])],
        "TextConditionalDiT": [torch.randn(2, 3, 512)],
    }[kind]
    xt, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert (model(xt, t, *condition) == 0).all()
    layers = [module.linear for module in model.modules() if isinstance(module, flowclip.AdaLN)]
    assert len(layers) == (6 if kind == "TextConditionalDiT" else 4)
    assert all((layer.weight == 0).all() and (layer.bias == 0).all() for layer in layers)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Embedding):
            assert 0.017 < layer.weight.std() < 0.023
        if (
            isinstance(layer, torch.nn.Linear)
            and layer not in (*layers, model.final_linear)
            and name != "context_proj"
        ):
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert (layer.bias == 0).all() and 0.9 * bound < layer.weight.abs().max() <= bound, name


@pytest.mark.spec("DIT-8")
def test_parameter_counts():
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    text, labels = (
        flowclip.TextConditionalDiT(),
        flowclip.ConditionalDiT(img_size=32, patch_size=4, in_channels=3),
    )
    assert (count(text), count(labels), count(flowclip.DiT())) == (
        18_145_072,
        12_379_440,
        12_368_176,
    )
    assert count(text) - count(labels) == 5_765_632
    assert issubclass(flowclip.TextConditionalDiT, flowclip.DiT) and issubclass(
        flowclip.ConditionalDiT, flowclip.DiT
    )


@pytest.mark.spec("DIT-9", "CLIP-13")
@given(draw.seeds, st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_each_image_goes_its_own_way(make_model, seed, lengths):
    model, g, B = make_model(seed=seed), torch.Generator().manual_seed(seed), len(lengths)
    xt, t = torch.randn(B, 3, 8, 8, generator=g), torch.rand(B, generator=g)
    Z, mask = torch.randn(B, 5, 12, generator=g), torch.arange(5) < torch.tensor(lengths)[:, None]
    v = model(xt, t, Z, mask)
    assert v.shape == xt.shape
    for b in range(B):
        real = int(mask[b].sum())
        alone = model(xt[b : b + 1], t[b : b + 1], Z[b : b + 1, :real], mask[b : b + 1, :real])
        torch.testing.assert_close(alone[0], v[b], atol=1e-5, rtol=1e-4)
    padding = torch.where(mask[..., None], Z, torch.tensor(1e6))
    torch.testing.assert_close(model(xt, t, padding, mask), v)


@pytest.mark.spec("DIT-5", "DIT-3")
def test_text_and_time_matter(make_model):
    model = make_model()
    xt, t, Z = torch.randn(1, 3, 8, 8), torch.tensor([0.3]), torch.randn(2, 1, 4, 12)
    assert (model(xt, t, Z[0]) - model(xt, t, Z[1])).abs().max() > 1e-3
    assert (model(xt, t, Z[0]) - model(xt, t + 0.01, Z[0])).abs().max() > 1e-3


@pytest.mark.spec("DIT-2", "DIT-5")
def test_every_parameter_gets_a_gradient(make_model):
    model = make_model().train()
    mask = torch.ones(2, 4, dtype=torch.bool)
    v = model(torch.randn(2, 3, 8, 8), torch.rand(2), torch.randn(2, 4, 12), mask)
    v.square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax does not see it, as chapter 3 says
            assert parameter.grad.abs().max() > 1e-6, name


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
