"""What does not fit is refused by name: what it was and what it should have been."""

import einops
import pytest
import torch
from torch import ones

import flowclip
from tests.spec import strategies as draw


def yes(*shape):
    return ones(shape, dtype=torch.bool)


def text_model(xt, t, context):
    flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)(xt, t, context)


def sample(noise):
    model = flowclip.TextConditionalDiT(8, 2, 3, 16, 1, 2, context_dim=12)
    flowclip.sample_text_conditional(model, draw.StandIn(), "dog", (3, 8, 8), noise=noise)


Z, mask, null, null_mask = ones(3, 5, 4), yes(3, 5), ones(1, 5, 4), yes(1, 5)
images, t, context = ones(2, 3, 8, 8), ones(2), ones(2, 4, 12)
CASES = [  # a call; the argument that is wrong, what it was, what it should have been
    (lambda: text_model(ones(2, 1, 8, 8), t, context), "xt", "[2, 1, 8, 8]", "[B, 3, 8, 8]"),
    (lambda: text_model(images, t, ones(1, 4, 12)), "context", "[1, 4, 12]", "[2, M, 12]"),
    (lambda: text_model(images, t, ones(2, 12)), "context", "[2, 12]", "[2, M, 12]"),
    (lambda: flowclip.make_cifar10_captions([3, 10]), "labels", "[3, 10]", "0 to 9"),
    (lambda: flowclip.make_cifar10_captions([-1]), "labels", "[-1]", "0 to 9"),
    (lambda: flowclip.drop_text(Z, mask, null, null_mask, yes(2)), "drop", "[2]", "[3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 4), t), "x1", "[2, 4]", "[2, 3]"),
    (lambda: flowclip.interpolate(ones(2, 3), ones(2, 3), ones(3)), "t", "[3]", "[2]"),
    (lambda: flowclip.integrate(None, t, 5, "rk4"), "solver", "'rk4'", "heun"),
    (lambda: flowclip.integrate(None, t, 0), "num_steps", "0", "1"),
    (lambda: sample(images), "context", "[2, 9, 12]", "[4, M, 12]"),
    (lambda: flowclip.CLIPTextEncoder("ViT-B-32", "openai"), "'openai'", "ViT-B-32-quickgelu"),
    (lambda: flowclip.CLIPTextEncoder("small-clip", "no.pt"), "small-clip", "'no.pt'",
     "No such file", "open_clip_model.safetensors", "'untrained'"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", [(call, words) for call, *words in CASES],
                         ids=[" ".join(words[:2]) for _, *words in CASES])  # fmt: skip
def test_refused_by_name(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", [
    "zzzz", "openai/clip-vit-base-patch32", "roberta-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP",
])  # fmt: skip
def test_other_text_towers_are_refused(name):
    """Unknown to open_clip, as transformers' names are; of another library; with other parts."""
    with pytest.raises(ValueError, match=f"'{name}'.*ViT-B-32-quickgelu"):
        flowclip.CLIPTextEncoder(name, "untrained")


@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (1, 3, 8, 7)])
def test_patches_that_do_not_fit_are_refused(shape):
    with pytest.raises(einops.EinopsError):
        flowclip.patchify(ones(shape), 2)
