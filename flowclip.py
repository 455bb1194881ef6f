"""flowclip: how a sentence becomes a picture, in one file.

    prompt --CLIP--> Z --cross-attention--> DiT predicts v --guided Euler steps--> image

Read it beside docs/: a section is a chapter, and a numbered statement, such as [ATTN-3], stands at
the line that implements it. What is not an equation comes last, under "Plumbing".

Time runs from the image to the noise. Others, as flow_matching and MIT's notes, put the noise at 0.

    x0            [B, C, H, W]   an image, values in [-1, 1]
    x1            [B, C, H, W]   Gaussian noise
    t             [B]            time: 0 is the image, 1 is the noise
    xt            [B, C, H, W]   the point (1 - t) x0 + t x1 of the straight path between them
    v             [B, C, H, W]   the velocity x1 - x0 of that path, which the model predicts
    context       [B, M, D]      Z, the text: one vector per token, M tokens, D = 512 for ViT-B/32
    mask          [B, M]         True: a real token; False: padding
    null_context  [1, M, D]      the empty prompt, encoded with the others so that M is the same
    null_mask     [1, M]         its mask
    cfg_scale     number, [B]    w, how far guidance walks from the empty prompt to the prompt
    x             [B, C, H, W]   chapters 2 and 3: the state of the walk from x1 to an image
                  [B, N, D_x]    chapters 5 and 6: N = (H/p)(W/p) patches, D_x = embed_dim features
    c             [B, 4 D_x]     the condition of AdaLN: the time, in ConditionalDiT also the class
"""

import json
import math
import os
import re
import shutil
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import open_clip
import torch
from einops import einsum, rearrange, repeat
from matplotlib.figure import Figure
from open_clip.transformer import QuickGELU, TextTransformer
from torch import nn
from torch.nn.functional import cross_entropy, normalize, pad
from tqdm import tqdm


# ---- 1. The training objective (docs/1-objective.md): flow matching ------------------------------
def interpolate(x0, x1, t):
    """The straight path from x0 [B, ...] to x1 [B, ...] at t [B] -> (xt, v), both [B, ...]."""
    check_shape("x1", x1, *x0.shape)
    check_shape("t", t, len(x0))
    t = rearrange(t, "b -> b" + " 1" * (x0.ndim - 1))  # [B, 1, 1, 1]
    xt = (1 - t) * x0 + t * x1  # [FLOW-1]
    return xt, x1 - x0  # [FLOW-2] v = d xt / d t


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    """The mean of |model(xt, t, context, mask) - v|^2, a scalar (Lipman et al. 2023) [FLOW-3]."""
    x1 = torch.randn_like(x0) if x1 is None else x1  # [FLOW-4] N(0, I), unless it is given
    t = torch.rand(len(x0), device=x0.device) if t is None else t  # [FLOW-4] U[0, 1], each its own
    xt, v = interpolate(x0, x1, t)
    error = model(xt, t, context, mask).float() - v
    return error.square().mean()  # [FLOW-3] least where the model says E[v | xt] [FLOW-5] [FLOW-6]


# ---- 2. Sampling (docs/2-sampling.md): walk the path back, from noise to image -------------------
def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    """Solve dx/dt = velocity(x, t [B]) from x1 at t = 1 down to t = 0, in steps of equal length.

    "euler": one evaluation a step, first order. "heun": two, second order (Karras et al. 2022).
    callback(n, t, x): x is the state that step n = 1 .. num_steps has reached, at the time t.
    """
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver is {solver!r}, expected 'euler' or 'heun'")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, expected 1 or more")
    x = x1.to(torch.promote_types(x1.dtype, torch.float32))  # [SAMPLE-6] also under bfloat16
    dt = -1 / num_steps  # negative: back towards the image

    def velocity_at(x, t):
        return velocity(x, x.new_full([len(x)], t)).to(x.dtype)

    for n in range(num_steps):
        t = 1 - n / num_steps  # [SAMPLE-1]
        t_next = 1 - (n + 1) / num_steps
        v = velocity_at(x, t)
        if solver == "heun":
            v = (v + velocity_at(x + dt * v, t_next)) / 2  # [SAMPLE-3]
        x = x + dt * v  # [SAMPLE-2] exact where paths are straight [SAMPLE-9], else [SAMPLE-8]
        if callback:
            callback(n + 1, t_next, x)
    return x


@torch.no_grad()
def sample_text_conditional(
    model, text_encoder, prompts, image_shape=(3, 32, 32), num_steps=50, cfg_scale=7.5, device=None,
    *, noise=None, generator=None, solver="euler", progress=True,
):  # fmt: skip
    """Prompts (one string, or a list of B) -> images [B, C, H, W], values about [-1, 1].

    noise [B, C, H, W]: drawn on the CPU, from `generator`, unless it is given. cfg_scale: a number,
    or [B]. device: that of the model, unless given. Its train or eval mode stays [SAMPLE-7].
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = device or next(model.parameters()).device
    if noise is None:  # [SAMPLE-4]
        noise = torch.randn(len(prompts), *image_shape, generator=generator)
    texts = [*dict.fromkeys(["", *prompts])]  # each once; the first is the null text
    Z, mask = (tensor.to(device) for tensor in text_encoder(texts))  # [texts, M, D], [texts, M]
    rows = [texts.index(prompt) for prompt in prompts]

    def velocity(x, t):  # [SAMPLE-5]
        return cfg_velocity(model, x, t, Z[rows], mask[rows], Z[:1], mask[:1], cfg_scale)

    with tqdm(total=num_steps, leave=False, disable=not progress or None) as bar:
        return integrate(
            velocity, noise.to(device, torch.float32), num_steps, solver,
            lambda n, t, x: bar.update(),
        )  # fmt: skip


# ---- 3. Classifier-free guidance (docs/3-guidance.md): one model, with and without the text ------
def drop_text(context, mask, null_context, null_mask, drop):
    """Where drop [B] is True, the null text replaces context AND mask (Ho & Salimans 2022).

    context [B, M, D], mask [B, M], null_context [1, M, D], null_mask [1, M] -> context and mask.
    """
    check_shape("drop", drop, len(context))
    context = torch.where(rearrange(drop, "b -> b 1 1"), null_context, context)  # [DROP-1] [DROP-2]
    mask = torch.where(rearrange(drop, "b -> b 1"), null_mask, mask)  # [DROP-1] the mask goes too
    return context, mask


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    """v_uncond + w (v_cond - v_uncond): w = 0 ignores the text, 1 reads it plainly.

    x [B, C, H, W], t [B], texts as in drop_text, w a number or one per sample [B] -> [B, C, H, W].
    """
    null_context = null_context.expand_as(context)
    null_mask = null_mask.expand_as(mask)
    if torch.is_tensor(cfg_scale) and cfg_scale.ndim:
        cfg_scale = rearrange(cfg_scale.to(x), "b -> b 1 1 1")  # [CFG-4]
    elif cfg_scale == 1:
        return model(x, t, context, mask)  # [CFG-2] one pass
    elif cfg_scale == 0:
        return model(x, t, null_context, null_mask)  # [CFG-2]
    contexts = torch.cat([context, null_context])
    masks = torch.cat([mask, null_mask])
    v = model(torch.cat([x, x]), torch.cat([t, t]), contexts, masks)  # [2 B, C, H, W] [CFG-3]
    v_cond, v_uncond = v.to(x.dtype).chunk(2)
    return v_uncond + cfg_scale * (v_cond - v_uncond)  # [CFG-1] [CFG-5] where exact, a climb


# ---- 4. The CLIP text encoder (docs/4-text.md): a prompt becomes token vectors Z and a mask ------
def trim_context(Z, mask):
    """Cut Z [B, M, ...] and mask [B, M] to the longest real prompt: no output changes [CLIP-13]."""
    length = mask.any(dim=0).nonzero().max() + 1  # up to the last column with a real token
    return Z[:, :length], mask[:, :length]


class CLIPTextEncoder(nn.Module):
    """The frozen text half of CLIP (Radford et al. 2021).

    model_name: open_clip's; OpenAI's weights need QuickGELU [CLIP-10].
    pretrained: a tag of open_clip, downloaded once; or the path of a file, open_clip's or that of
    Hugging Face's transformers; or "untrained", random weights from a fixed seed, which tell
    prompts apart but know no meaning. ValueError for weights that do not fit, or are not there.
    """
    def __init__(self, model_name="ViT-B-32-quickgelu", pretrained="openai", device=None):
        super().__init__()
        self.model_name = model_name
        self.pretrained = os.path.expanduser(pretrained)
        self.tower = build_tower(model_name, self.pretrained)
        self.tokenizer = open_clip.get_tokenizer(model_name)
        self.embed_dim = self.tower.width  # D
        self.max_length = self.tower.context_length  # 77
        self.requires_grad_(False).eval().to(device)  # [CLIP-9] frozen

    def train(self, mode=True):
        """In eval mode for good [CLIP-9]."""
        return super().train(False)

    def tokenize(self, prompts):
        """One string, or a list of B -> ids [B, 77]: BOS, byte-pair tokens, EOS, then 0."""
        ids = self.tokenizer(prompts, self.max_length + 1)  # one place more, to see what is cut
        too_long = ids[:, -1] != 0
        ids = ids[:, :-1]  # [CLIP-1]
        if too_long.any():  # [CLIP-2]
            ids[too_long, -1] = self.tokenizer.eot_token_id
            warnings.warn(f"{too_long.sum()} prompts cut at {self.max_length} tokens")
        return ids

    def tokens(self, prompt):
        """The real tokens of one prompt as text: ["[BOS]", "a", "red", "car", "[EOS]"]."""
        ids = self.tokenize(prompt)[0]
        ids = ids[1 : ids.argmax()].tolist()  # between BOS and EOS
        return ["[BOS]", *(self.tokenizer.decode([i]).strip() for i in ids), "[EOS]"]

    @torch.no_grad()
    def forward(self, prompts):
        """-> Z [B, M, D] in float32 and mask [B, M], where M is the longest prompt of these B.

        Z is 0 at the padding [CLIP-4]. The null text is "" [CLIP-8]: encode it in the same call, as
        encoder([*prompts, ""]), and its M is the same.
        """
        tower = self.tower
        ids = self.tokenize(prompts).to(tower.token_embedding.weight.device)
        eos = ids.argmax(-1, keepdim=True)  # [CLIP-3] the largest id; 0 may be a real "!"
        mask = torch.arange(self.max_length, device=ids.device) <= eos
        ids, mask = trim_context(ids, mask)  # [B, M] [CLIP-13]
        M = ids.shape[1]
        with torch.autocast(ids.device.type, enabled=False):
            x = tower.token_embedding(ids) + tower.positional_embedding[:M]  # [..., M, D]
            x = tower.transformer(x, attn_mask=tower.attn_mask[:M, :M])  # [CLIP-5] [CLIP-6]
            return tower.ln_final(x).masked_fill(~mask[..., None], 0), mask

    def encode(self, prompts, return_pooled=False):
        """-> Z [B, 77, D], or (Z, pooled [B, D]), where pooled is Z at the EOS token."""
        Z, mask = self(prompts)
        pooled = Z[torch.arange(len(Z)), mask.sum(dim=-1) - 1]  # [CLIP-7]
        Z = pad(Z, (0, 0, 0, self.max_length - Z.shape[1]))
        return (Z, pooled) if return_pooled else Z


def clip_loss(image_vectors, text_vectors, temperature):
    """What CLIP was trained on: each of B images finds its text, and each text its image.

    image_vectors [B, D], text_vectors [B, D], row n of both a pair -> the loss, a scalar.
    """
    logits = normalize(image_vectors) @ normalize(text_vectors).T / temperature  # [B, B]
    pairs = torch.arange(len(logits), device=logits.device)  # the right ones: the diagonal
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2  # [CLIP-15]


# ---- 5. Cross-attention (docs/5-attention.md): where an image patch reads the text ---------------
class CrossAttention(nn.Module):
    """Multi-head attention from patches to tokens (Vaswani et al. 2017).

    Self-attention is the same equation with context = x [ATTN-7].
    """
    def __init__(self, embed_dim, context_dim, num_heads=8):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = self.head_dim**-0.5  # of one head, not of embed_dim
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(context_dim, embed_dim)
        self.v_proj = nn.Linear(context_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split_heads(self, x):
        return rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)  # [ATTN-2]

    def attention_weights(self, x, context, mask=None):
        """x [B, N, D_x], context [B, M, D], mask [B, M] -> A [B, h, N, M]."""
        q = self.split_heads(self.q_proj(x))  # [B, h, N, d] [ATTN-1]
        k = self.split_heads(self.k_proj(context))  # [B, h, M, d] [ATTN-1]
        scores = einsum(q, k, "b h n d, b h m d -> b h n m") * self.scale  # [ATTN-3]
        if mask is None:
            return scores.softmax(dim=-1)
        check_shape("mask", mask, *context.shape[:2])
        hidden = rearrange(~mask.bool(), "b m -> b 1 1 m")
        A = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        return A.masked_fill(hidden, 0)  # [ATTN-4] [ATTN-5] nothing to read: zeros, not NaN

    def forward(self, x, context, mask=None):
        """x [B, N, D_x], context [B, M, D], mask [B, M], True = may be read -> [B, N, D_x].

        No position enters here: tokens [ATTN-8] and patches [ATTN-9] may be permuted.
        """
        if mask is not None:  # 0, as a weight of 0 times NaN would be NaN [ATTN-4]
            context = context.masked_fill(~mask.bool()[..., None], 0)
        A = self.attention_weights(x, context, mask)  # [B, h, N, M]
        v = self.split_heads(self.v_proj(context))  # [B, h, M, d] [ATTN-1]
        heads = einsum(A, v, "b h n m, b h m d -> b h n d")
        return self.out_proj(rearrange(heads, "b h n d -> b n (h d)"))  # [B, N, D_x] [ATTN-6]


# ---- 6. The Diffusion Transformer (docs/6-transformer.md): from xt, t and text to the velocity v -
def patchify(images, patch_size):
    """[B, C, H, W] -> [B, N, p p C]: patches row by row, inside a patch rows, columns, channels."""
    p = patch_size
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)  # [PATCH-1]


def unpatchify(patches, patch_size, grid=None):
    """[B, N, p p C] -> [B, C, H, W], the inverse. grid: (H/p, W/p), by default a square image."""
    p = patch_size
    h, w = grid or [math.isqrt(patches.shape[1])] * 2
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)  # [PATCH-2]


def sinusoids(values, dim):
    """[...] -> [..., dim], dim even, float32: cosines, then sines (Vaswani et al. 2017)."""
    exponents = torch.arange(dim // 2, device=values.device) / (dim // 2)
    frequencies = 10_000**-exponents  # wavelengths 2 pi to 2 pi 10,000
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def timestep_embedding(t, dim):
    """t [B] in [0, 1] -> [B, dim], dim even; unscaled, all times would look the same."""
    return sinusoids(1000 * t.float(), dim)  # [TIME-1] [TIME-2]


def position_embedding_2d(dim, grid):
    """-> [grid * grid, dim], dim a multiple of 4: half tells a patch's row, half its column."""
    place = sinusoids(torch.arange(grid), dim // 2)
    rows = repeat(place, "r d -> (r c) d", c=grid)
    columns = repeat(place, "c d -> (r c) d", r=grid)
    return torch.cat([rows, columns], dim=-1)  # [POS-1]


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift come from the condition (Peebles & Xie 2023)."""
    def __init__(self, embed_dim, cond_dim):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.linear = nn.Linear(cond_dim, 2 * embed_dim)

    def forward(self, x, c):
        """x [B, N, D_x], c [B, cond_dim] -> [B, N, D_x]."""
        scale, shift = rearrange(self.linear(c), "b (two d) -> two b 1 d", two=2)
        return (1 + scale) * self.norm(x) + shift  # [DIT-1]


class DiTBlock(nn.Module):
    """Three residual steps; without `context_dim` there is no second one, to the text."""
    def __init__(self, embed_dim, cond_dim, num_heads, mlp_ratio, context_dim=None):
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.norm1 = AdaLN(embed_dim, cond_dim)
        self.self_attn = CrossAttention(embed_dim, embed_dim, num_heads)
        if context_dim is not None:
            self.norm2 = AdaLN(embed_dim, cond_dim)
            self.cross_attn = CrossAttention(embed_dim, context_dim, num_heads)
        self.norm3 = AdaLN(embed_dim, cond_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim)
        )

    def forward(self, x, c, context=None, mask=None):
        """x [B, N, D_x], c [B, cond_dim], context [B, M, D], mask [B, M] -> [B, N, D_x] [DIT-2]."""
        h = self.norm1(x, c)
        x = x + self.self_attn(h, h)  # patches read patches [ATTN-7]
        if context is not None:
            x = x + self.cross_attn(self.norm2(x, c), context, mask)  # patches read the text
        return x + self.mlp(self.norm3(x, c))


class DiT(nn.Module):
    """The backbone: it knows the time, and no other condition. 12,368,176 parameters [DIT-8]."""
    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=256, depth=6, num_heads=8,
        mlp_ratio=4.0, *, context_dim=None,
    ):  # fmt: skip
        super().__init__()
        self.config = dict(
            img_size=img_size, patch_size=patch_size, in_channels=in_channels, embed_dim=embed_dim,
            depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, context_dim=context_dim,
        )  # fmt: skip
        self.image_shape = in_channels, img_size, img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        cond_dim = 4 * embed_dim
        patch_dim = patch_size**2 * in_channels

        self.patch_embed = nn.Linear(patch_dim, embed_dim)
        self.register_buffer(  # [POS-2] fixed, not learned
            "positions", position_embedding_2d(embed_dim, img_size // patch_size), persistent=False
        )
        self.time_mlp = nn.Sequential(
            nn.Linear(embed_dim, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )
        self.blocks = nn.ModuleList(
            DiTBlock(embed_dim, cond_dim, num_heads, mlp_ratio, context_dim) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(embed_dim)
        self.final_linear = nn.Linear(embed_dim, patch_dim)
        self.apply(self.initialize_weights)
        nn.init.zeros_(self.final_linear.weight)  # [DIT-7] the first prediction is v = 0

    @staticmethod
    def initialize_weights(module):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, AdaLN):
            nn.init.zeros_(module.linear.weight)  # [DIT-7] scale = shift = 0: a plain LayerNorm

    def backbone(self, xt, t, e_y=0, context=None, mask=None):
        """xt [B, C, H, W], t [B] -> v [B, C, H, W]; each image goes its own way [DIT-9]."""
        check_shape("xt", xt, "B", *self.image_shape)
        h_t = self.time_mlp(timestep_embedding(t, self.embed_dim))  # [B, 4 D_x] [TIME-3]
        c = h_t + e_y  # [DIT-3] c = e(t), [DIT-4] or e(t) + e(y)
        x = patchify(xt, self.patch_size)  # [B, N, p p C]
        x = self.patch_embed(x) + self.positions  # [B, N, D_x] [POS-2]
        for block in self.blocks:
            x = block(x, c, context, mask)
        x = self.final_linear(self.final_norm(x))  # [B, N, p p C]
        return unpatchify(x, self.patch_size)  # [B, C, H, W] [DIT-6]

    def forward(self, xt, t):
        """xt [B, C, H, W], t [B] -> v [B, C, H, W]."""
        return self.backbone(xt, t)


class ConditionalDiT(DiT):
    """Adds a class: c = e(t) + e(y), label `num_classes` meaning none. 12,379,440 parameters."""
    def __init__(self, *args, num_classes=10, **kwargs):
        super().__init__(*args, **kwargs)
        self.config["num_classes"] = num_classes
        self.label_embedding = nn.Embedding(num_classes + 1, 4 * self.embed_dim)
        nn.init.normal_(self.label_embedding.weight, std=0.02)  # [DIT-7]

    def forward(self, xt, t, labels):
        """xt [B, C, H, W], t [B], labels [B] -> v [B, C, H, W]."""
        return self.backbone(xt, t, e_y=self.label_embedding(labels))  # [DIT-4]


class TextConditionalDiT(DiT):
    """Adds text: every block reads Z by cross-attention. 18,145,072 parameters."""
    def __init__(self, *args, context_dim=512, **kwargs):
        super().__init__(*args, context_dim=context_dim, **kwargs)
        self.context_proj = nn.Linear(context_dim, context_dim)

    def forward(self, xt, t, context, mask=None):
        """xt [B, C, H, W], t [B], context [B, M, D], mask [B, M] -> v [B, C, H, W]."""
        check_shape("context", context, len(xt), "M", self.context_proj.in_features)
        return self.backbone(xt, t, context=self.context_proj(context), mask=mask)  # [DIT-5]


# ---- 7. Data and captions (docs/7-data.md): what is learned from ---------------------------------
CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip


def make_captions(names):
    """["dog", "airplane"] -> ["a photo of a dog", "a photo of an airplane"]."""
    captions = []
    for name in names:
        # [DATA-2] by the first letter; "one" is the exception
        article = "an" if name.lower().startswith(tuple("aeiou")) and name != "one" else "a"
        captions.append(f"a photo of {article} {name}")  # [DATA-1]
    return captions


def make_cifar10_captions(labels):
    """Labels (one, a list or a tensor [B], 0..9) -> captions, as 5 -> ["a photo of a dog"]."""
    labels = torch.as_tensor(labels).flatten().tolist()
    if not all(0 <= label < 10 for label in labels):
        raise ValueError(f"labels are {labels}, expected 0 to 9")
    return make_captions([CIFAR10_CLASSES[label] for label in labels])  # [DATA-3]


def normalize_images(images):
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1  # [DATA-4]


def denormalize_images(images):
    """Float in [-1, 1] -> uint8 0..255; what lies outside is clamped, never wrapped around."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)  # [DATA-5]


# ---- Plumbing: what is checked, where it runs, weights, checkpoints, pictures --------------------
class UserError(ValueError):
    """A mistake of whoever runs a script: run_script says it in one line, without a traceback."""


def check_shape(name, tensor, *expected):
    """ValueError unless the tensor has the `expected` sizes; "B" and "M" stand for any."""
    wrong = [n for n, size in zip(tensor.shape, expected) if size not in (n, "B", "M")]
    if wrong or tensor.ndim != len(expected):
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}, expected [{', '.join(map(str, expected))}]"
        )


def get_device():
    """The best device at hand: cuda, mps ... or cpu."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def autocast(device, precision="auto"):
    """Matrix products in bfloat16: "bf16" yes, "fp32" no, "auto" where the device is fast in it."""
    device_type = torch.device(device).type
    is_fast = device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":  # what has AMX has AVX512-BF16, too
        is_fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
    enabled = precision == "bf16" or precision == "auto" and is_fast
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled)


def compile_blocks(model):
    """torch.compile each block; equal blocks share one compilation."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError("--compile needs a C++ compiler on the PATH; --no-compile needs none")
    for block in model.blocks:
        block.compile()


def build_tower(model_name, pretrained):
    """The text transformer of an open_clip model, with the weights that `pretrained` names."""
    config = open_clip.get_model_config(model_name)
    known = "context_length vocab_size width heads layers"
    if config is None or config["text_cfg"].keys() - known.split():
        raise UserError(
            f"{model_name!r} is no model of open_clip with CLIP's own text tower, as "
            "ViT-B-32-quickgelu is (OpenAI's clip-vit-base-patch32)"
        )
    quick_gelu = config.get("quick_gelu", False)
    source = open_clip.get_pretrained_cfg(model_name, pretrained)  # {} for what is no tag
    if source and source.get("quick_gelu", False) != quick_gelu:  # [CLIP-10]
        raise UserError(f"{pretrained!r} has another activation, see {model_name}-quickgelu")
    activation = QuickGELU if quick_gelu else nn.GELU  # [CLIP-10] x sigmoid(1.702 x)
    with torch.random.fork_rng(devices=[]):  # [CLIP-12] the global random state stays as it was
        torch.default_generator.manual_seed(0)
        tower = TextTransformer(**config["text_cfg"], output_dim=None, act_layer=activation)
    if pretrained == "untrained":
        warnings.warn("this CLIP text tower is untrained: it tells prompts apart, knows no meaning")
        return tower
    try:
        path = open_clip.download_pretrained(source) if source else pretrained  # [CLIP-14]
        state = open_clip.factory.load_state_dict(path)  # tensors only: code is refused
        state = {re.sub(r"^text(_model)?\.", "", name): state[name] for name in state}
        tower.load_state_dict({name: find_weight(state, name) for name in tower.state_dict()})
    except Exception as error:
        raise UserError(
            f"{pretrained!r} gives no text tower of {model_name}: {error!r:.180}. Take the path of "
            "open_clip's open_clip_model.safetensors or of transformers' model.safetensors, or "
            f"'untrained', or one of {open_clip.list_pretrained_tags_by_model(model_name)}"
        ) from None
    return tower


TRANSFORMERS = {  # part of a name in open_clip: in Hugging Face's transformers
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "transformer.resblocks": "encoder.layers",
    "attn.": "self_attn.",
    "ln_final": "final_layer_norm",
    "ln_": "layer_norm",
    "c_fc": "fc1",
    "c_proj": "fc2",
}


def find_weight(state, name):
    """What open_clip calls `name`, in a file of open_clip or of transformers [CLIP-11]."""
    theirs = name
    for part, other in TRANSFORMERS.items():
        theirs = theirs.replace(part, other)
    for found in name, theirs:
        if found in state:
            return state[found]
    return torch.cat([state[theirs.replace("in_proj_", f"{part}_proj.")] for part in "qkv"])


def save_checkpoint(path, model, meta, training=None):
    """Write the averaged `model`, `meta` (plain data), and in `training` what resuming needs.

    It is written beside `path`, to the disk, and renamed. OSError leaves what was there.
    """
    part = Path(f"{path}.part")
    try:
        meta = json.loads(json.dumps(meta, default=lambda number: number.item()))  # none of NumPy's
        with open(part, "wb") as file:
            torch.save({"model": model.state_dict(), "meta": meta, "training": training}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except Exception as error:
        part.unlink(missing_ok=True)
        raise OSError(  # torch's writer hides an OSError in a RuntimeError
            f"could not write {path}, what was there stays: {error.__context__ or error}"
        ) from None


def read_checkpoint(path):
    """-> the dict that save_checkpoint wrote. UserError for anything else."""
    try:
        if zipfile.ZipFile(path).testzip():
            raise ValueError("its checksums are wrong")  # which torch writes and does not read
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # never code
        if "meta" not in checkpoint:
            raise ValueError("it has no meta")
        return checkpoint
    except Exception as error:
        raise UserError(f"{path} is not a whole flowclip checkpoint: {error!r:.150}") from None


def load_checkpoint(path, device="cpu", model_class=TextConditionalDiT):
    """-> (model, meta): the averaged model, ready to sample, and all that else is needed for it.

    model_class: what was trained; it is built anew from its `config`. meta has the keys config,
    clip, clip_weights, clip_null (the pooled null text), captions, image_shape (C, H, W), epoch,
    step, losses (one mean per epoch).
    """
    checkpoint = read_checkpoint(path)
    model = model_class(**checkpoint["meta"]["config"])
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), checkpoint["meta"]


def save_picture(path, images, columns, titles=(), rows=()):
    """A labelled grid of uint8 images [C, H, W], every pixel a square."""
    height = math.ceil(len(images) / columns)
    figure = Figure((1.4 * columns + 2 * bool(rows), 1.7 * height), 110, layout="constrained")
    axes = figure.subplots(
        height, columns, squeeze=False, subplot_kw=dict(xticks=[], yticks=[], frame_on=False)
    )
    for axis, image in zip(axes.flat, images):
        axis.imshow(
            rearrange(image.cpu().expand(3, -1, -1).numpy(), "c h w -> h w c"),
            interpolation="nearest",  # every pixel a square
        )
    wrap = textwrap.TextWrapper(22, max_lines=3).fill
    for axis, title in zip(axes.flat, titles):
        axis.set_title(wrap(title), fontsize=8, parse_math=False)
    for axis, row in zip(axes[:, 0], rows):
        axis.set_ylabel(wrap(row), rotation=0, ha="right", va="center", parse_math=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run_script(main):
    """Run `main`: a mistake of its user ends in one line on stderr and status 2."""
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal shows what it can
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"note: {message}")
        try:
            main()
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            if not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
                print(f"error: {' '.join(str(error).split()):.500}", file=sys.stderr)
            sys.exit(2)
