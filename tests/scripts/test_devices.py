"""Everything follows its inputs to their device; `meta`, without memory, shows it anywhere."""

import contextlib

import pytest
import torch

import flowclip
from tests.spec import strategies as draw


def meta(*shape):
    return torch.ones(shape, device="meta")


def test_equations_stay_where_their_inputs_are(make_model):
    model, labelled = make_model().to("meta"), make_model("ConditionalDiT").to("meta")
    x, t, labels, drop = meta(2, 3, 8, 8), meta(2), meta(2).long(), meta(2) > 0
    Z, mask = meta(2, 5, 12), meta(2, 5) > 0
    null, w = (Z[:1], mask[:1]), torch.tensor([1.0, 2.0])
    made = [
        model(x, t, Z, mask),
        labelled(x, t, labels),
        flowclip.timestep_embedding(t, 8),
        flowclip.flow_matching_loss(model, x, Z, mask),
        flowclip.cfg_velocity(model, x, t, Z, mask, *null, w),
        *flowclip.drop_text(Z, mask, *null, drop),
        flowclip.clip_loss(Z[:, 0], Z[:, 1], 0.1),
        flowclip.integrate(lambda x, t: x * t[:, None], meta(2, 3), 2, "heun"),
    ]
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_the_text_encoder_works_where_it_is_wanted(monkeypatch):
    asked = []  # meta knows no autocast, no unique, no sizes that depend on values, no fast MHA
    stub = lambda kind, **given: asked.append(kind) or contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr(torch, "autocast", stub)
    monkeypatch.setattr(torch.Tensor, "unique", lambda ids, **given: (ids, torch.arange(len(ids))))
    monkeypatch.setattr(flowclip, "trim_context", lambda Z, mask: (Z[:, :3], mask[:, :3]))
    with pytest.warns(UserWarning, match="untrained"):
        encoder = flowclip.CLIPTextEncoder("small-clip", "untrained", device="meta")
    encoder.tower.transformer.forward = lambda x, attn_mask: x + attn_mask[..., None].sum()
    made = encoder.tower.token_embedding.weight, *encoder(["dog", ""])
    assert {tensor.device.type for tensor in made} == {"meta"} and asked == ["meta"]


@pytest.mark.parametrize("given", [
    {}, {"generator": torch.Generator()}, {"noise": torch.ones(1, 3, 8, 8)},
], ids=["alone", "generator", "noise"])  # fmt: skip
def test_the_sampler_works_on_the_device_of_the_model(make_model, monkeypatch, given):
    """Its noise comes from the CPU, alike for every device."""
    model, encoder, randn, drawn = make_model().to("meta"), draw.StandIn(), torch.randn, []

    def noted(*args, **options):
        drawn.append(randn(*args, **options).device.type)
        return randn(*args, **options)

    monkeypatch.setattr(torch, "randn", noted)
    images = flowclip.sample_text_conditional(model, encoder, "dog", (3, 8, 8), 1, **given)
    assert images.device.type == "meta" and images.shape == (1, 3, 8, 8)
    assert drawn == ["cpu"] * ("noise" not in given)


def test_the_sampler_works_on_the_device_given():
    said = []  # by a model that has no parameters to tell

    def model(x, t, context, mask):
        said.extend(tensor.device.type for tensor in (x, t, context, mask))
        return x

    flowclip.sample_text_conditional(model, draw.StandIn(), "dog", (3, 8, 8), 1, device="meta")
    assert set(said) == {"meta"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_checkpoint_is_loaded_where_it_is_wanted(make_model, tmp_path, device):
    model = make_model()
    flowclip.save_checkpoint(tmp_path / "c.pt", model, {"config": model.config})
    loaded, _ = flowclip.load_checkpoint(tmp_path / "c.pt", device)
    assert draw.flat(loaded).device.type == device


def test_a_checkpoint_of_a_gpu_is_read_without_one(make_model, tmp_path, monkeypatch):
    model, path = make_model(), tmp_path / "c.pt"
    with monkeypatch.context() as patch:  # what torch.save notes there
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        flowclip.save_checkpoint(path, model, {"config": model.config})
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    assert torch.equal(draw.flat(flowclip.load_checkpoint(path)[0]), draw.flat(model))


def test_guidance_is_computed_in_the_precision_of_the_state():
    x, t, Z, mask = torch.randn(1, 1, 2, 2), torch.ones(1), torch.randn(1, 2, 3), torch.ones(1, 2)

    def model(x, t, context, mask):
        return (x + context.mean(dim=(1, 2))[:, None, None, None]).bfloat16()

    v = flowclip.cfg_velocity(model, x, t, Z, mask, torch.zeros(1, 2, 3), mask, 7.5)
    cond, uncond = (x + Z.mean()).bfloat16().float(), x.bfloat16().float()
    assert v.dtype == torch.float32 and torch.equal(v, uncond + 7.5 * (cond - uncond))
