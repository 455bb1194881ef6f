"""zhubert/opticus, the original, by our names.

ADAPT=../opticus pytest --impl=tests/adapters/opticus.py

Not connected: its CLIPTextEncoder, whose weights are downloaded, and its trainer, whose step and
whose dropping of texts are no functions of their own.
"""

import math
from types import SimpleNamespace

import torch
from hypothesis import assume

from tests.adapters.given import Calls, checkout, drawn, patches_of

checkout()
from text_to_image import dit, flow, sampling, train  # noqa: E402
from text_to_image.text_encoder import make_cifar10_captions  # noqa: E402, F401

sampling.tqdm = lambda steps, **_: steps  # no bars between the lines of pytest

DEPARTS = {
    "POS-1": "sines before cosines, and the slowest of them has a wavelength of 2 pi 10,000",
    "SAMPLE-4": "noise of torch.randn alone, without a generator",
    "SAMPLE-6": "the state stays in the type in which it came",
    "CFG-2": "both answers for every scale",
    "CFG-3": "two passes",
    "CFG-4": "one scale for all samples",
    "DATA-3": "a label above 9 is an IndexError, -1 the last class, as Python's lists have it",
    "SAMPLE-7": "the model is in eval mode afterwards",
    "TIME-2": "times in float64 stay so",
    "DIT-7": "all linear layers begin by Xavier's law, the convolution as PyTorch has it",
}


# ---- 1. The objective ----
def interpolate(x0, x1, t):
    return flow.FlowMatching().forward_process(x0, x1, t)


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    """x0 as [B, C, H, W], since it knows no other shape."""
    shape, full = x0.shape, (*x0.shape, 1, 1, 1)[: max(4, x0.ndim)]
    its = SimpleNamespace(
        model=lambda xt, t, *text: model(xt.reshape(shape), t, *text).reshape(full)
    )
    x1 = None if x1 is None else x1.reshape(full)
    with drawn(train, randn_like=x1, rand=t):
        return train.TextConditionalTrainer._get_text_conditional_loss(
            its, x0.reshape(full), context, mask
        )


# ---- 2. Sampling ----
def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    if solver != "euler":
        raise NotImplementedError(solver)
    with drawn(sampling, randn=x1):
        _, states = sampling.sample(
            Calls(velocity), len(x1), x1.shape[1:], num_steps, return_trajectory=True
        )
    for n, x in enumerate(states[1:], 1):
        if callback:
            callback(n, 1 - n / num_steps, x)
    return states[-1]


def sample_text_conditional(
    model, text_encoder, prompts, image_shape=(3, 32, 32), num_steps=50, cfg_scale=7.5, device=None,
    *, noise=None, generator=None, solver="euler", progress=True,
):  # fmt: skip
    if generator or solver != "euler":
        raise NotImplementedError("a generator, or another solver")
    if torch.is_tensor(cfg_scale):
        assume(False)  # one scale for all samples
    with drawn(sampling, randn=noise):
        return sampling.sample_text_conditional(
            model, text_encoder, prompts, image_shape, num_steps, cfg_scale, device
        )


# ---- 3. Guidance ----
def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    """x less the end of one step of length 1 from there, sample by sample, at the time t."""
    scales, ends = torch.as_tensor(cfg_scale).expand(len(x)).tolist(), []
    for b in range(len(x)):
        text = context[b : b + 1], mask[b : b + 1]
        encoder = {("text",): text, ("",): (null_context, null_mask)}
        with drawn(sampling, randn=x[b : b + 1], linspace=t[b : b + 1]):
            ends.append(sampling.sample_text_conditional(
                Calls(model), lambda prompts, known=encoder: known[tuple(prompts)],
                "text", x.shape[1:], 1, scales[b],
            ))  # fmt: skip
    return x - torch.cat(ends)


# ---- 5. Cross-attention ----
class CrossAttention(dit.CrossAttention):
    def attention_weights(self, x, context, mask=None):
        """What goes through its dropout."""
        found = []
        hook = self.dropout.register_forward_hook(lambda _, args, A: found.append(A))
        self(x, context, mask)
        hook.remove()
        return found[0]


class SelfAttention(torch.nn.MultiheadAttention):
    """torch's, which is called with queries, keys and values, by our call and names."""

    def forward(self, q, k, v=None):
        answer = super().forward(q, k, k)
        return answer if v is not None else answer[0]

    def linear(self, part):
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return SimpleNamespace(weight=weight, bias=bias)

    q_proj = property(lambda self: self.linear(0))
    k_proj = property(lambda self: self.linear(1))
    v_proj = property(lambda self: self.linear(2))


# ---- 6. The transformer ----
def patchify(images, patch_size):
    embed = dit.PatchEmbed(images.shape[2], patch_size, images.shape[1],
                           patch_size**2 * images.shape[1])  # fmt: skip
    return patches_of(embed, images, patch_size)


def unpatchify(patches, patch_size, grid=None):
    side = math.isqrt(patches.shape[1])
    assume(grid in (None, (side, side)))  # square images alone
    its = SimpleNamespace(
        patch_size=patch_size, img_size=patch_size * side,
        in_channels=patches.shape[2] // patch_size**2,
    )  # fmt: skip
    return dit.DiT.unpatchify(its, patches)


def position_embedding_2d(dim, grid):
    return dit.SinusoidalPosEmb2D(dim, grid).pos_embed


def timestep_embedding(t, dim):
    if dim == 2:
        assume(False)  # where it would divide by zero
    embed = dit.TimestepEmbedding(dim)
    embed.mlp = torch.nn.Identity()
    return embed(t)


class AdaLN(dit.AdaLN):
    @property
    def linear(self):
        return self.proj


class View:
    """A part of theirs, called as theirs, read as ours."""

    def __init__(self, part, **ours):
        vars(self).update(part=part, **ours)

    def __call__(self, *args):
        return self.part(*args)

    def __getattr__(self, name):
        return getattr(self.part, name)

    def __getitem__(self, place):
        return self.part[{0: 0, 2: 3}[place]]  # a dropout stands between


class Block(dit.DiTBlock):
    @property
    def norm3(self):
        return self.norm2

    @property
    def self_attn(self):
        return self.attn

    @property
    def mlp(self):
        return View(self._modules["mlp"])


class TextBlock(dit.TextConditionedDiTBlock):
    @property
    def mlp(self):
        return View(self._modules["mlp"])


class Names:
    """The parts of one of their models by our names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for block in self.blocks:
            has_text = isinstance(block, dit.TextConditionedDiTBlock)
            block.__class__ = TextBlock if has_text else Block
            for norm in block._modules.values():
                if isinstance(norm, dit.AdaLN):
                    norm.__class__ = AdaLN
            block.self_attn.__class__ = SelfAttention
            if has_text:
                block.cross_attn.__class__ = CrossAttention

    @property
    def patch_embed(self):
        part = self._modules["patch_embed"]
        weight = part.proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, C, p, p] -> [D, p p C]
        return View(part, weight=weight, bias=part.proj.bias)

    @property
    def time_mlp(self):
        return self.time_embed.mlp

    @property
    def final_linear(self):
        return self.final_proj


class DiT(Names, dit.DiT):
    def __init__(self, img_size=32, patch_size=4, in_channels=3, *args, **kwargs):
        super().__init__(img_size, patch_size, in_channels, *args, **kwargs)


class ConditionalDiT(Names, dit.ConditionalDiT):
    def __init__(self, img_size=32, patch_size=4, in_channels=3, *args, num_classes=10, **kwargs):
        super().__init__(num_classes, img_size, patch_size, in_channels, *args, **kwargs)

    @property
    def label_embedding(self):
        return self.class_embed.embed


class TextConditionalDiT(Names, dit.TextConditionalDiT):
    @property
    def context_proj(self):
        return self.text_proj
