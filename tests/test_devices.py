"""Everything follows its inputs to their device. `meta`, the device without memory, shows it on any machine."""

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


def test_guidance_is_computed_in_the_precision_of_the_state():
    x, t = torch.randn(1, 1, 2, 2), torch.ones(1)
    Z, mask = torch.randn(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    model = lambda x, t, context, mask: (x + context.mean(dim=(1, 2))[:, None, None, None]).bfloat16()  # noqa: E731
    v = flowclip.cfg_velocity(model, x, t, Z, mask, torch.zeros(1, 2, 3), mask, 7.5)
    cond, uncond = (x + Z.mean()).bfloat16().float(), x.bfloat16().float()
    assert v.dtype == torch.float32 and torch.equal(v, uncond + 7.5 * (cond - uncond))
