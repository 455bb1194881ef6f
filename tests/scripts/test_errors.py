"""What does not fit is refused by name: what it was and what it should have been, word for word."""

import einops
import pytest
import torch
from torch import ones

import flowclip
from tests.spec import strategies as draw


def yes(*shape):
    return ones(shape, dtype=torch.bool)


def attend(mask):
    flowclip.CrossAttention(8, 4, 2)(ones(3, 2, 8), Z, mask)


def text_model(xt, t, context):
    flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)(xt, t, context)


def guide(null_context, w):
    x, t, model = ones(3, 1, 2, 2), ones(3), draw.Velocity()
    flowclip.cfg_velocity(model, x, t, Z, mask, null_context, null_mask, w)


def sample(noise):
    model = flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)
    flowclip.sample_text_conditional(model, draw.StandIn(), "dog", (3, 8, 8), noise=noise)


Z, mask, null, null_mask = ones(3, 5, 4), yes(3, 5), ones(1, 5, 4), yes(1, 5)
images, t, context = ones(2, 3, 8, 8), ones(2), ones(2, 4, 12)
CASES = [
    (lambda: flowclip.CrossAttention(10, 4, 4),
     "embed_dim is 10, expected a multiple of 4, as 8 or 12"),
    (lambda: attend(yes(3, 4)),
     "mask has shape [3, 4], expected [3, 5]"),
    (lambda: flowclip.DiT(img_size=30),
     "img_size is 30, expected a multiple of 4, as 28 or 32"),
    (lambda: flowclip.DiT(embed_dim=6, num_heads=2),
     "embed_dim is 6, expected a multiple of 4, as 4 or 8"),
    (lambda: text_model(ones(2, 1, 8, 8), t, context),
     "xt has shape [2, 1, 8, 8], expected [B, 3, 8, 8]"),
    (lambda: text_model(images, t, ones(1, 4, 12)),
     "context has shape [1, 4, 12], expected [2, M, 12]"),
    (lambda: text_model(images, t, ones(2, 12)),
     "context has shape [2, 12], expected [2, M, 12]"),
    (lambda: flowclip.make_cifar10_captions([3, 10]),
     "labels are [3, 10], expected 0 to 9"),
    (lambda: flowclip.make_cifar10_captions([-1]),
     "labels are [-1], expected 0 to 9"),
    (lambda: flowclip.drop_text(Z, mask, null, null_mask, yes(2)),
     "drop has shape [2], expected [3]"),
    (lambda: guide(null, ones(2)),
     "cfg_scale has shape [2], expected [3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 4), t),
     "x1 has shape [2, 4], expected [2, 3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 3), ones(3)),
     "t has shape [3], expected [2]"),
    (lambda: flowclip.integrate(None, t, 5, "rk4"),
     "solver 'rk4' not euler or heun, or num_steps 5 below 1"),
    (lambda: flowclip.integrate(None, t, 0),
     "solver 'euler' not euler or heun, or num_steps 0 below 1"),
    (lambda: sample(images),
     "context has shape [2, 9, 12], expected [4, M, 12]"),
    (lambda: flowclip.CLIPTextEncoder("ViT-B-32", "openai"),
     "'openai' has another activation, see ViT-B-32-quickgelu"),
    (lambda: flowclip.CLIPTextEncoder("RN50-quickgelu", "no.pt"),
     "'no.pt' gives no text tower of RN50-quickgelu: FileNotFoundError(2, 'No such file or "
     "directory'). Take the path of open_clip's open_clip_model.safetensors or of transformers' "
     "model.safetensors, or 'untrained', or one of ['openai', 'yfcc15m', 'cc12m']"),
]  # fmt: skip


@pytest.mark.parametrize("call, message", CASES, ids=[message for _, message in CASES])
def test_refused_by_name(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("name", [
    "zzzz", "openai/clip-vit-base-patch32", "roberta-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP",
])  # fmt: skip
def test_other_text_towers_are_refused(name):
    """Unknown to open_clip, as transformers' names are; of another library; with other parts."""
    with pytest.raises(ValueError) as caught:
        flowclip.CLIPTextEncoder(name, "untrained")
    said = "is no model of open_clip with CLIP's own text tower, as ViT-B-32-quickgelu is"
    assert str(caught.value).startswith(f"{name!r} {said} (OpenAI's clip-vit-base-patch32)")


@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (1, 3, 8, 7)])
def test_patches_that_do_not_fit_are_refused(shape):
    with pytest.raises(einops.EinopsError):
        flowclip.patchify(ones(shape), 2)
