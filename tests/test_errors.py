"""What does not fit is refused by name: what it was and what it should have been, word for word."""

import math

import pytest
import torch

import flowclip
from tests import strategies as draw


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def yes(*shape):
    return ones(*shape, dtype=torch.bool)


def meta(*shape):
    return torch.ones(shape, device="meta")


def attend(x, Z, mask=None):
    flowclip.CrossAttention(8, 4, 2)(x, Z, mask)


def text_model(*args):
    flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)(*args)


def labelled_model(*args):
    flowclip.ConditionalDiT(8, 2, 3, 16, 1, 2)(*args)


def guide(context, mask, null_context, null_mask, w):
    flowclip.cfg_velocity(draw.Velocity(), ones(3, 1, 2, 2), ones(3), context, mask, null_context, null_mask, w)


def sample(*args, **options):
    model = flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)
    flowclip.sample_text_conditional(model, draw.StandIn(), *args, image_shape=(3, 8, 8), progress=False, **options)


Z, mask, null, null_mask = ones(3, 5, 4), yes(3, 5), ones(1, 5, 4), yes(1, 5)
CASES = [
    (lambda: flowclip.trim_context(Z, yes(3, 4)), "mask has shape [3, 4], expected [3, 5]"),
    (lambda: flowclip.CrossAttention(10, 4, 4), "embed_dim is 10, expected a multiple of num_heads = 4"),
    (lambda: attend(ones(3, 2, 7), Z), "x has shape [3, 2, 7], expected [B, N, 8]"),
    (lambda: attend(ones(3, 8), Z), "x has shape [3, 8], expected [B, N, 8]"),
    (lambda: attend(ones(2, 2, 8), Z), "context has shape [3, 5, 4], expected [2, M, 4]"),
    (lambda: attend(ones(3, 2, 8), ones(3, 5, 6)), "context has shape [3, 5, 6], expected [3, M, 4]"),
    (lambda: attend(ones(3, 2, 8), Z, yes(3, 4)), "mask has shape [3, 4], expected [3, 5]"),
    (lambda: attend(ones(3, 2, 8), Z, ones(3, 5)), "mask has dtype torch.float32, expected torch.bool"),
    (lambda: flowclip.patchify(ones(3, 8, 8), 2), "images has shape [3, 8, 8], expected [B, C, H, W]"),
    (
        lambda: flowclip.patchify(ones(1, 3, 7, 8), 2),
        "images has shape [1, 3, 7, 8], expected H and W divisible by patch_size = 2",
    ),
    (
        lambda: flowclip.patchify(ones(1, 3, 8, 7), 2),
        "images has shape [1, 3, 8, 7], expected H and W divisible by patch_size = 2",
    ),
    (lambda: flowclip.unpatchify(ones(4, 12), 2), "patches has shape [4, 12], expected [B, 4, 12]"),
    (lambda: flowclip.unpatchify(ones(1, 6, 12), 2), "patches has shape [1, 6, 12], expected [B, 4, 12]"),
    (lambda: flowclip.unpatchify(ones(1, 4, 14), 2), "patches has shape [1, 4, 14], expected [B, 4, 12]"),
    (lambda: flowclip.unpatchify(ones(1, 6, 12), 2, (4, 1)), "patches has shape [1, 6, 12], expected [B, 4, 12]"),
    (lambda: flowclip.timestep_embedding(ones(2, 1), 8), "t has shape [2, 1], expected [B]"),
    (lambda: flowclip.timestep_embedding(ones(2), 7), "dim is 7, expected an even number"),
    (lambda: flowclip.position_embedding_2d(6, 2), "dim is 6 (embed_dim of a model), expected a multiple of 4"),
    (lambda: flowclip.timestep_embedding(torch.tensor([0.5, 500.0]), 8), "t is [0.5, 500.0], expected values from 0 to 1"),
    (lambda: flowclip.timestep_embedding(torch.tensor([-0.5]), 8), "t is [-0.5], expected values from 0 to 1"),
    (lambda: flowclip.timestep_embedding(torch.tensor([math.nan]), 8), "t is [nan], expected values from 0 to 1"),
    (lambda: flowclip.timestep_embedding(torch.tensor([1]), 8), "t has dtype torch.int64, expected a float"),
    (lambda: flowclip.DiT(img_size=30), "img_size is 30, expected a multiple of patch_size = 4"),
    (lambda: text_model(ones(2, 1, 8, 8), ones(2), ones(2, 4, 12)), "xt has shape [2, 1, 8, 8], expected [B, 3, 8, 8]"),
    (lambda: text_model(ones(2, 3, 8, 8), ones(1), ones(2, 4, 12)), "t has shape [1], expected [2]"),
    (lambda: text_model(ones(2, 3, 8, 8), ones(2), ones(1, 4, 12)), "context has shape [1, 4, 12], expected [2, M, 12]"),
    (lambda: text_model(ones(2, 3, 8, 8), ones(2), ones(2, 12)), "context has shape [2, 12], expected [2, M, 12]"),
    (lambda: labelled_model(ones(2, 3, 8, 8), ones(2), torch.tensor([1])), "labels has shape [1], expected [2]"),
    (lambda: labelled_model(ones(1, 3, 8, 8), ones(1), torch.tensor([11])), "labels is [11], expected values from 0 to 10"),
    (lambda: labelled_model(ones(1, 3, 8, 8), ones(1), torch.tensor([-1])), "labels is [-1], expected values from 0 to 10"),
    (lambda: labelled_model(ones(1, 3, 8, 8), ones(1), ones(1)), "labels has dtype torch.float32, expected torch.int64"),
    (
        lambda: text_model(ones(2, 3, 8, 8, dtype=torch.uint8), ones(2), ones(2, 4, 12)),
        "xt has dtype torch.uint8, expected a float",
    ),
    (lambda: text_model(ones(1, 3, 8, 8), ones(1), meta(1, 4, 12)), "context is on device meta, expected cpu"),
    (lambda: text_model(ones(1, 3, 8, 8), meta(1), ones(1, 4, 12)), "t is on device meta, expected cpu"),
    (lambda: labelled_model(ones(1, 3, 8, 8), ones(1), meta(1).long()), "labels is on device meta, expected cpu"),
    (lambda: attend(ones(3, 2, 8), meta(3, 5, 4)), "context is on device meta, expected cpu"),
    (lambda: attend(ones(3, 2, 8), Z, meta(3, 5) > 0), "mask is on device meta, expected cpu"),
    (lambda: attend(ones(3, 2, 8, dtype=torch.int64), Z), "x has dtype torch.int64, expected a float"),
    (lambda: flowclip.trim_context(Z, ones(3, 5)), "mask has dtype torch.float32, expected torch.bool"),
    (lambda: flowclip.trim_context(Z, meta(3, 5) > 0), "mask is on device meta, expected cpu"),
    (lambda: flowclip.make_cifar10_captions([3, 10]), "labels are [3, 10], expected 0..9"),
    (lambda: flowclip.drop_text(Z, mask, null, null_mask, yes(2)), "drop has shape [2], expected [3]"),
    (
        lambda: flowclip.drop_text(Z, mask, ones(1, 4, 4), null_mask, yes(3)),
        "null_context has shape [1, 4, 4], expected [B, 5, 4]",
    ),
    (lambda: flowclip.drop_text(Z, yes(3, 4), null, null_mask, yes(3)), "mask has shape [3, 4], expected [3, 5]"),
    (lambda: flowclip.drop_text(Z, ones(3, 5), null, null_mask, yes(3)), "mask has dtype torch.float32, expected torch.bool"),
    (
        lambda: flowclip.drop_text(Z, mask, null, ones(1, 5), yes(3)),
        "null_mask has dtype torch.float32, expected torch.bool",
    ),
    (lambda: flowclip.drop_text(Z, mask, null, null_mask, ones(3)), "drop has dtype torch.float32, expected torch.bool"),
    (lambda: flowclip.drop_text(Z, mask, null, null_mask, meta(3) > 0), "drop is on device meta, expected cpu"),
    (lambda: flowclip.drop_text(Z, mask, meta(1, 5, 4), null_mask, yes(3)), "null_context is on device meta, expected cpu"),
    (lambda: flowclip.drop_text(Z, mask, null, meta(1, 5) > 0, yes(3)), "null_mask is on device meta, expected cpu"),
    (lambda: flowclip.drop_text(Z, meta(3, 5) > 0, null, null_mask, yes(3)), "mask is on device meta, expected cpu"),
    (lambda: flowclip.drop_text(Z, mask, null, yes(1, 4), yes(3)), "null_mask has shape [1, 4], expected [1, 5]"),
    (lambda: guide(Z, mask, ones(1, 4, 4), null_mask, 1), "null_context has shape [1, 4, 4], expected [B, 5, 4]"),
    (lambda: guide(Z, mask, null, yes(1, 4), 1), "null_mask has shape [1, 4], expected [1, 5]"),
    (lambda: guide(Z, mask, null, null_mask, ones(2)), "cfg_scale has shape [2], expected [3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 4), ones(2)), "x1 has shape [2, 4], expected [2, 3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 3), ones(3)), "t has shape [3], expected [2]"),
    (
        lambda: flowclip.interpolate(ones(2, 3, dtype=torch.uint8), ones(2, 3), ones(2)),
        "x0 has dtype torch.uint8, expected a float",
    ),
    (lambda: flowclip.interpolate(ones(2, 3), meta(2, 3), ones(2)), "x1 is on device meta, expected cpu"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 3), meta(2)), "t is on device meta, expected cpu"),
    (lambda: flowclip.integrate(None, ones(1), 5, "rk4"), "solver is 'rk4', expected 'euler' or 'heun'"),
    (lambda: flowclip.integrate(None, ones(1), 0), "num_steps is 0, expected at least 1"),
    (lambda: sample("dog", noise=ones(2, 3, 8, 8)), "noise has shape [2, 3, 8, 8], expected [1, 3, 8, 8]"),
    (lambda: flowclip.load_checkpoint("no/such.pt"), "no checkpoint file at no/such.pt"),
]


@pytest.mark.parametrize("call, message", CASES, ids=[message for _, message in CASES])
def test_refused_by_name(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("call, message", [
    (lambda e: e([]), "prompts are [], expected a string or a non-empty list of strings"),
    (lambda e: e(["a", 3]), "prompts are ['a', 3], expected a string or a non-empty list of strings"),
    (lambda e: flowclip.CLIPTextEncoder("ViT-B-32-quickgel"),
     "'ViT-B-32-quickgel' is not a model with CLIP's own text tower; near it: "
     "ViT-B-32-quickgelu, ViT-B-16-quickgelu, ViT-L-14-quickgelu"),
    (lambda e: flowclip.CLIPTextEncoder("zzzz"),
     "'zzzz' is not a model with CLIP's own text tower; near it: ViT-B-32-quickgelu"),
    (lambda e: flowclip.CLIPTextEncoder("roberta-ViT-B-32", "untrained"), None),
    (lambda e: flowclip.CLIPTextEncoder("coca_ViT-B-32", "untrained"), None),
    (lambda e: flowclip.CLIPTextEncoder("ViT-B-32", "openai"),
     "'openai' weights have another activation than ViT-B-32: see ViT-B-32-quickgelu"),
    (lambda e: flowclip.CLIPTextEncoder("ViT-S-32-alt", "no.pt"),
     "CLIP weights 'no.pt': no such file, and no tag of ViT-S-32-alt ()"),
    (lambda e: flowclip.CLIPTextEncoder("RN50-quickgelu", "no.pt"),
     "CLIP weights 'no.pt': no such file, and no tag of RN50-quickgelu (openai, yfcc15m, cc12m)"),
])  # fmt: skip
def test_text_towers_are_refused_by_name(small_encoder, call, message):
    with pytest.raises(ValueError) as caught:
        call(small_encoder)
    if message:
        assert str(caught.value) == message
    else:
        assert "is not a model with CLIP's own text tower; near it: " in str(caught.value)
