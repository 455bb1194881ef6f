"""Everything follows its inputs to their device. `meta`, the device without memory, shows it on any machine."""

import contextlib

import pytest
import torch

import flowclip
from tests import strategies as draw


def meta(*shape):
    return torch.ones(shape, device="meta")


def test_equations_stay_where_their_inputs_are(make_model):
    model = make_model().to("meta")
    Z, mask = meta(2, 5, 12), meta(2, 5) > 0
    assert model(meta(2, 3, 8, 8), meta(2), Z, mask).device.type == "meta"
    assert make_model("ConditionalDiT").to("meta")(meta(2, 3, 8, 8), meta(2), meta(2).long()).device.type == "meta"
    assert flowclip.timestep_embedding(meta(2), 8).device.type == "meta"
    assert flowclip.flow_matching_loss(model, meta(2, 3, 8, 8), Z, mask).device.type == "meta"
    guided = flowclip.cfg_velocity(model, meta(2, 3, 8, 8), meta(2), Z, mask, Z[:1], mask[:1], torch.tensor([1.0, 2.0]))
    assert guided.device.type == "meta"
    assert all(tensor.device.type == "meta" for tensor in flowclip.drop_text(Z, mask, Z[:1], mask[:1], meta(2) > 0))
    assert flowclip.integrate(lambda x, t: x * t[:, None], meta(2, 3), 2, "heun").device.type == "meta"


def test_the_text_encoder_works_where_it_is_wanted(monkeypatch):
    asked = []  # of autocast, which does not know meta
    monkeypatch.setattr(torch, "autocast", lambda device, **given: asked.append(device) or contextlib.nullcontext())
    monkeypatch.setattr(flowclip, "int", lambda length: 3, raising=False)  # meta has no numbers to give
    with pytest.warns(UserWarning, match="untrained"):
        encoder = flowclip.CLIPTextEncoder("ViT-S-32-alt", "untrained", device="meta")
    assert encoder.tower.token_embedding.weight.device.type == encoder.tokenize("dog").device.type == "meta"
    encoder.tower.transformer.forward = lambda x, attn_mask: x + attn_mask[..., None].sum()  # its fast path does not know meta
    assert all(tensor.device.type == "meta" for tensor in encoder(["dog", ""])) and asked == ["meta"]


def test_noise_is_drawn_where_the_generator_is_or_the_model(make_model, monkeypatch):
    asked, randn = [], torch.randn
    model, options = make_model().to("meta"), {"image_shape": (3, 8, 8), "num_steps": 1, "progress": False}
    encoder = draw.StandIn()
    monkeypatch.setattr(torch, "randn", lambda *size, device, **given: asked.append(str(device)) or randn(*size, device=device))
    for given in ({}, {"generator": torch.Generator()}):
        flowclip.sample_text_conditional(model, encoder, "dog", **options, **given)
    assert asked == ["meta", "cpu"]


def test_the_sampler_works_on_the_model_s_device(make_model):
    model, options = make_model().to("meta"), {"image_shape": (3, 8, 8), "num_steps": 1, "progress": False}
    for given in ({}, {"generator": torch.Generator()}, {"noise": torch.ones(1, 3, 8, 8)}, {"device": "meta"}):
        images = flowclip.sample_text_conditional(model, draw.StandIn(), "dog", **options, **given)
        assert images.device.type == "meta" and images.shape == (1, 3, 8, 8), given


def test_a_checkpoint_is_loaded_where_it_is_wanted(make_model, tmp_path):
    model = make_model()
    flowclip.save_checkpoint(tmp_path / "c.pt", model, {"config": model.config})
    assert next(flowclip.load_checkpoint(tmp_path / "c.pt", "meta")[0].parameters()).device.type == "meta"
    assert next(flowclip.load_checkpoint(tmp_path / "c.pt")[0].parameters()).device.type == "cpu"


def test_a_checkpoint_of_a_gpu_is_read_without_one(make_model, tmp_path, monkeypatch):
    model = make_model()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")  # as torch.save writes it there
        flowclip.save_checkpoint(tmp_path / "c.pt", model, {"config": model.config})
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "c.pt", weights_only=True)
    assert torch.equal(draw.flat(flowclip.load_checkpoint(tmp_path / "c.pt")[0]), draw.flat(model))


def test_guidance_is_computed_in_the_precision_of_the_state():
    x, t = torch.randn(1, 1, 2, 2), torch.ones(1)
    Z, mask = torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    model = lambda x, t, context, mask: (x + context.mean(dim=(1, 2))[:, None, None, None]).bfloat16()  # noqa: E731
    v = flowclip.cfg_velocity(model, x, t, Z, mask, torch.zeros(1, 2, 3), mask, 7.5)
    cond, uncond = (x + Z.mean()).bfloat16().float(), x.bfloat16().float()
    assert v.dtype == torch.float32 and torch.equal(v, uncond + 7.5 * (cond - uncond))
