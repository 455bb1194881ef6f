"""flowclip: how a sentence becomes a picture, in one file.

    prompt --CLIP--> Z --cross-attention--> DiT predicts v --guided Euler steps--> image

Read it beside docs/: a section is a chapter, and a numbered statement of the docs, such as [ATTN-3], stands at the line
that implements it. Symbols: images x_0 [B, C, H, W] in [-1, 1]; noise x_1; time t [B], 0 = image, 1 = noise; v = x_1 - x_0;
text vectors Z [B, M, D], called `context`; `mask` [B, M] bool, True = a real token; w is `cfg_scale`; N = (H/p)(W/p).
"""

import difflib
import math
import os
import warnings
import zipfile
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from einops import einsum, rearrange, repeat
from open_clip.transformer import QuickGELU, TextTransformer
from torch import nn
from tqdm import tqdm


def require(ok, message):
    if not ok:
        raise ValueError(message)


def check(name, tensor, *shape, dtype=float, near=None, inside=None):
    """ValueError unless its shape (a letter: any size), dtype (float: any such), device (that of `near`) and values fit."""
    seen = inside and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    if tensor.ndim != len(shape) or any(isinstance(s, int) and s != n for s, n in zip(shape, tensor.shape)):
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected [{', '.join(map(str, shape))}]")
    if dtype and not (tensor.is_floating_point() if dtype is float else tensor.dtype == dtype):
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {'a float' if dtype is float else dtype}")
    if near is not None and tensor.device != near.device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {near.device}")
    if seen and not ((tensor >= inside[0]) & (tensor <= inside[1])).all():
        raise ValueError(f"{name} is {tensor.tolist()!s:.80}, expected values from {inside[0]} to {inside[1]}")


# ---- 1. The CLIP text encoder (docs/1-clip.md): a prompt becomes token vectors Z and a mask ----------------
class CLIPTextEncoder(nn.Module):
    """The frozen text half of CLIP (Radford et al. 2021) of an open_clip `model_name`; OpenAI's weights need QuickGELU.
    pretrained: an open_clip tag, downloaded once; a file that holds the text tower; or "untrained", random weights from
    a fixed seed, which tell prompts apart but know no meaning. ConnectionError where a download fails."""
    def __init__(self, model_name="ViT-B-32-quickgelu", pretrained="openai", device=None):
        super().__init__()
        config = open_clip.get_model_config(model_name) if model_name in open_clip.list_models() else None
        known = config is not None and config["text_cfg"].keys() <= {"context_length", "vocab_size", "width", "heads", "layers"}
        near = difflib.get_close_matches(model_name, open_clip.list_models()) or ["ViT-B-32-quickgelu"]
        require(known, f"{model_name!r} is not a model with CLIP's own text tower; near it: {', '.join(near)}")
        activation = QuickGELU if config.get("quick_gelu") else nn.GELU  # [CLIP-10] x sigmoid(1.702 x)
        with torch.random.fork_rng(devices=[]):  # [CLIP-12] one fixed seed; the global RNG stays as it was
            torch.default_generator.manual_seed(0)
            self.tower = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"], act_layer=activation)
        if pretrained == "untrained":
            warnings.warn("this CLIP text tower is untrained: it tells prompts apart, but knows no meaning", stacklevel=2)
        else:
            load_tower(self.tower, model_name, pretrained)
        self.model_name, self.pretrained, self.tokenizer = model_name, str(pretrained), open_clip.get_tokenizer(model_name)
        self.embed_dim, self.max_length = self.tower.width, self.tower.context_length  # D and M
        self.requires_grad_(False).eval().to(device or "cpu")  # [CLIP-9] frozen

    def train(self, mode=True):
        return super().train(False)  # [CLIP-9] in eval mode for good

    def tokenize(self, prompts):
        """One string or a list -> ids [B, M]: BOS, byte-pair tokens, EOS, then 0. Too long: cut, with a warning."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        strings = all(isinstance(prompt, str) for prompt in prompts)
        require(prompts and strings, f"prompts are {prompts!r:.80}, expected a string or a non-empty list of strings")
        for prompt, one_more in zip(prompts, self.tokenizer(prompts, self.max_length + 1)):
            if one_more[-1] != 0:
                warnings.warn(f"prompt cut at {self.max_length} tokens: {prompt[:60]!r}...", stacklevel=2)
        return self.tokenizer(prompts, self.max_length).to(self.tower.token_embedding.weight.device)  # [CLIP-1] [CLIP-2]

    def tokens(self, prompt):
        """The real tokens of one prompt as text: ["[BOS]", "a", "red", "car", "[EOS]"]."""
        ids = self.tokenize(prompt)[0]
        return ["[BOS]", *(self.tokenizer.decode([i]).strip() for i in ids[1 : int(ids.argmax())].tolist()), "[EOS]"]

    def encode(self, prompts, return_pooled=False):
        """-> Z [B, M, D] float32, or (Z, pooled [B, D]) where pooled is Z at the EOS token."""
        Z, mask = self(prompts)
        return (Z, Z[torch.arange(len(Z)), mask.sum(dim=-1) - 1]) if return_pooled else Z  # [CLIP-7]

    @torch.no_grad()
    def forward(self, prompts):
        """-> (Z [B, M, D] float32, mask [B, M]), mask True from BOS to EOS, and Z 0 elsewhere. The null text is encoder("")."""
        ids = self.tokenize(prompts)
        tower, eos = self.tower, ids.argmax(dim=-1, keepdim=True)  # [CLIP-3] the largest id, as 0 is also a real "!"
        mask, n = torch.arange(self.max_length, device=ids.device) <= eos, int(eos.max()) + 1  # [CLIP-13] thanks to [CLIP-5]
        with torch.autocast(ids.device.type, enabled=False):
            x = tower.token_embedding(ids[:, :n]) + tower.positional_embedding[:n]
            Z = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:n, :n]))  # [CLIP-6] each row alone
        return nn.functional.pad(Z, (0, 0, 0, self.max_length - n)).masked_fill(~mask[..., None], 0), mask  # [CLIP-4] [CLIP-8]


def load_tower(tower, model_name, pretrained):
    """Fill the text tower from an open_clip tag, or from a file: a whole CLIP or its text tower, .safetensors or .pt."""
    tags, path = open_clip.list_pretrained_tags_by_model(model_name), pretrained
    known = pretrained in tags or Path(pretrained).is_file()
    require(known, f"CLIP weights {pretrained!r}: no such file, and no tag of {model_name} ({', '.join(tags)})")
    if pretrained in tags:
        cfg = open_clip.get_pretrained_cfg(model_name, pretrained)
        fits = cfg.get("quick_gelu", False) == open_clip.get_model_config(model_name).get("quick_gelu", False)  # [CLIP-10]
        require(fits, f"{pretrained!r} weights have another activation than {model_name}: see {model_name}-quickgelu")
        path = download_weights(cfg, f"{pretrained!r} of {model_name}")  # [CLIP-14]
    try:
        state = open_clip.factory.load_state_dict(str(path))  # tensors only: a pickle that carries code is refused
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
        tower.load_state_dict({name: state[name] for name in tower.state_dict()})  # [CLIP-11] all of it, or refused
    except Exception as error:
        raise ValueError(f"{path} holds no text tower of {model_name}: {' '.join(str(error).split())[-150:]}") from None


def download_weights(cfg, what):
    """-> path. Asks once whether the hub answers, and else looks at the cache alone: its own retries take a minute."""
    constants, was_offline = huggingface_hub.constants, huggingface_hub.constants.HF_HUB_OFFLINE
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        return open_clip.download_pretrained(cfg)
    except Exception:
        raise ConnectionError(f"could not download CLIP weights {what} from {constants.ENDPOINT}") from None
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def trim_context(Z, mask):
    """Cut Z [B, M, D] and mask [B, M] to the longest real prompt of the batch. Changes no output, saves most of M."""
    check("mask", mask, *Z.shape[:2], dtype=torch.bool, near=Z)
    length = int((mask * torch.arange(1, 1 + mask.shape[1], device=mask.device)).max())  # [CLIP-13] the last real token
    return Z[:, :length], mask[:, :length]


# ---- 2. Cross-attention (docs/2-attention.md): where an image patch reads the text -------------------------
class CrossAttention(nn.Module):
    """Multi-head attention from x [B, N, embed_dim] to context [B, M, context_dim] (Vaswani et al. 2017); chapter 2.
    mask [B, M] bool, True = may be read. Self-attention is the same equation with context = x."""
    def __init__(self, embed_dim, context_dim, num_heads=8):
        super().__init__()
        require(embed_dim % num_heads == 0, f"embed_dim is {embed_dim}, expected a multiple of num_heads = {num_heads}")
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.scale = self.head_dim**-0.5  # of one head, not of embed_dim
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(context_dim, embed_dim)
        self.v_proj = nn.Linear(context_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def split_heads(self, x):
        return rearrange(x, "b n (h d) -> b h n d", h=self.num_heads)  # [ATTN-2]

    def hide(self, context, mask):
        if mask is None:
            return context
        check("mask", mask, *context.shape[:2], dtype=torch.bool, near=context)
        return context.masked_fill(rearrange(~mask, "b m -> b m 1"), 0)  # [ATTN-4] a weight of 0 times NaN would be NaN

    def attention_weights(self, x, context, mask=None):
        """-> A [B, heads, N, M]: rows sum to 1, a masked token weighs exactly 0."""
        check("x", x, "B", "N", self.q_proj.in_features)
        check("context", context, len(x), "M", self.k_proj.in_features, near=x)
        q, k = self.split_heads(self.q_proj(x)), self.split_heads(self.k_proj(self.hide(context, mask)))  # [ATTN-1]
        scores = einsum(q, k, "b h n d, b h m d -> b h n m") * self.scale  # [ATTN-3]
        if mask is None:
            return scores.softmax(dim=-1)
        hidden = rearrange(~mask, "b m -> b 1 1 m")
        A = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1)
        return A.masked_fill(hidden, 0)  # [ATTN-4] exactly 0 [ATTN-5] nothing to read: a row of zeros, not NaN

    def forward(self, x, context, mask=None):
        """-> [B, N, embed_dim]. No position enters here: [ATTN-8] tokens and [ATTN-9] patches may be permuted."""
        A = self.attention_weights(x, context, mask)
        v = self.split_heads(self.v_proj(self.hide(context, mask)))  # [ATTN-1]
        heads = einsum(A, v, "b h n m, b h m d -> b h n d")
        return self.out_proj(rearrange(heads, "b h n d -> b n (h d)"))  # [ATTN-6]


# ---- 3. The Diffusion Transformer (docs/3-dit.md): from x_t, t and text to the velocity v ------------------
def patchify(images, patch_size):
    """[B, C, H, W] -> [B, N, p p C]: patches row by row, and inside a patch rows, columns, channels."""
    check("images", images, "B", "C", "H", "W", dtype=None)
    fits = images.shape[-2] % patch_size == images.shape[-1] % patch_size == 0
    require(fits, f"images has shape {list(images.shape)}, expected H and W divisible by patch_size = {patch_size}")
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)  # [PATCH-1]


def unpatchify(patches, patch_size, grid=None):
    """[B, N, p p C] -> [B, C, H, W], the exact inverse of patchify. `grid`: (H / p, W / p), default a square image."""
    rows, columns = grid or [math.isqrt(patches.shape[-2])] * 2
    check("patches", patches, "B", rows * columns, patches.shape[-1] // patch_size**2 * patch_size**2, dtype=None)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=patch_size, q=patch_size)  # [PATCH-2]


def sinusoids(values, dim):
    """values [...] -> [..., dim]: dim/2 cosines, then dim/2 sines, of wavelengths 2 pi to 2 pi 10,000; float32."""
    require(dim % 2 == 0, f"dim is {dim}, expected an even number")
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=values.device) / (dim // 2))
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def timestep_embedding(t, dim):
    """t [B] in [0, 1] -> [B, dim] float32, dim even. Unscaled, all of [0, 1] would look the same (Nichol & Dhariwal 2021)."""
    check("t", t, "B", inside=(0, 1))
    return sinusoids(1000 * t.float(), dim)  # [TIME-1] [TIME-2]


def position_embedding_2d(dim, grid):
    """-> [grid * grid, dim], fixed: half the features tell the row, half the column; dim divisible by 4."""
    require(dim % 4 == 0, f"dim is {dim} (embed_dim of a model), expected a multiple of 4")
    place = sinusoids(torch.arange(grid), dim // 2)
    rows, columns = repeat(place, "r d -> (r c) d", c=grid), repeat(place, "c d -> (r c) d", r=grid)
    return torch.cat([rows, columns], dim=-1)  # [POS-1]


class AdaLN(nn.Module):
    """LayerNorm whose scale and shift come from the condition c [B, cond_dim] (Peebles & Xie 2023)."""
    def __init__(self, embed_dim, cond_dim):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.linear = nn.Linear(cond_dim, 2 * embed_dim)

    def forward(self, x, c):
        scale, shift = rearrange(self.linear(c), "b (two d) -> two b 1 d", two=2)
        return (1 + scale) * self.norm(x) + shift  # [DIT-1]


class DiTBlock(nn.Module):
    """Three residual steps; without `context_dim` the second, which reads the text, is not there."""
    def __init__(self, embed_dim, cond_dim, num_heads, mlp_ratio, context_dim=None):
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.norm1 = AdaLN(embed_dim, cond_dim)
        self.self_attn = CrossAttention(embed_dim, embed_dim, num_heads)
        if context_dim is not None:
            self.norm2 = AdaLN(embed_dim, cond_dim)
            self.cross_attn = CrossAttention(embed_dim, context_dim, num_heads)
        self.norm3 = AdaLN(embed_dim, cond_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, x, c, context=None, mask=None):
        h = self.norm1(x, c)
        x = x + self.self_attn(h, h)  # [DIT-2] [ATTN-7] patches read patches
        if context is not None:
            x = x + self.cross_attn(self.norm2(x, c), context, mask)  # patches read the text
        return x + self.mlp(self.norm3(x, c))


class DiT(nn.Module):
    """The backbone, v = model(xt, t): no condition but time. 12,368,176 parameters with the defaults [DIT-8]."""
    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=256, depth=6, num_heads=8, mlp_ratio=4.0, *, context_dim=None
    ):
        super().__init__()
        require(img_size % patch_size == 0, f"img_size is {img_size}, expected a multiple of patch_size = {patch_size}")
        self.image_shape, self.patch_size, self.embed_dim = (in_channels, img_size, img_size), patch_size, embed_dim
        patch_dim, cond_dim = patch_size**2 * in_channels, 4 * embed_dim
        self.patch_embed = nn.Linear(patch_dim, embed_dim)
        self.register_buffer("positions", position_embedding_2d(embed_dim, img_size // patch_size), persistent=False)  # [POS-2]
        self.time_mlp = nn.Sequential(nn.Linear(embed_dim, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
        self.blocks = nn.ModuleList(DiTBlock(embed_dim, cond_dim, num_heads, mlp_ratio, context_dim) for _ in range(depth))
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
            nn.init.zeros_(module.linear.weight)  # [DIT-7] scale = shift = 0: a plain LayerNorm at the start

    def backbone(self, xt, t, e_y=0, context=None, mask=None):
        """xt [B, C, H, W], t [B] -> v of xt's shape. Each image of the batch goes its own way [DIT-9]."""
        check("xt", xt, "B", *self.image_shape)
        check("t", t, len(xt), near=xt)
        c = self.time_mlp(timestep_embedding(t, self.embed_dim)) + e_y  # [TIME-3] [DIT-3] c = h_t, or [DIT-4] h_t + e(y)
        x = self.patch_embed(patchify(xt, self.patch_size)) + self.positions  # [B, N, embed_dim]
        for block in self.blocks:
            x = block(x, c, context, mask)
        return unpatchify(self.final_linear(self.final_norm(x)), self.patch_size)  # [DIT-6]

    def forward(self, xt, t):
        """xt [B, C, H, W], t [B] -> v [B, C, H, W]."""
        return self.backbone(xt, t)


class ConditionalDiT(DiT):
    """Adds a class: c = h_t + e(y). Label `num_classes` is the null class. 12,379,440 parameters [DIT-8]."""
    def __init__(self, *args, num_classes=10, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_embedding = nn.Embedding(num_classes + 1, 4 * self.embed_dim)
        nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, xt, t, labels):
        """xt [B, C, H, W], t [B], labels [B] int64 -> v [B, C, H, W]."""
        check("labels", labels, len(xt), dtype=torch.int64, near=xt, inside=(0, self.label_embedding.num_embeddings - 1))
        return self.backbone(xt, t, e_y=self.label_embedding(labels))  # [DIT-4]


class TextConditionalDiT(DiT):
    """Adds text: every block reads Z by cross-attention. 18,145,072 parameters with the defaults [DIT-8]."""
    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=256, depth=6, num_heads=8, mlp_ratio=4.0, context_dim=512
    ):
        config = dict(img_size=img_size, patch_size=patch_size, in_channels=in_channels, embed_dim=embed_dim, depth=depth)
        config |= dict(num_heads=num_heads, mlp_ratio=mlp_ratio, context_dim=context_dim)
        super().__init__(**config)
        self.config = config  # from which a checkpoint builds the model again
        self.context_proj = nn.Linear(context_dim, context_dim)

    def forward(self, xt, t, context, mask=None):
        """xt [B, C, H, W], t [B], context [B, M, context_dim], mask [B, M] -> v [B, C, H, W]."""
        check("context", context, len(xt), "M", self.context_proj.in_features, near=xt)
        return self.backbone(xt, t, context=self.context_proj(context), mask=mask)  # [DIT-5]


# ---- 4. Data and captions (docs/4-data.md) -----------------------------------------------------------------
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def make_captions(names):
    """["dog", "airplane"] -> ["a photo of a dog", "a photo of an airplane"]; the first letter decides a or an."""
    return [f"a photo of {'an' if name[:1].lower() in set('aeiou') else 'a'} {name}" for name in names]  # [DATA-1] [DATA-2]


def make_cifar10_captions(labels):
    """Labels (ints or a tensor [B], 0..9) -> captions, for example 5 -> "a photo of a dog"."""
    labels = [int(label) for label in labels]
    require(all(0 <= label < 10 for label in labels), f"labels are {labels!r:.80}, expected 0..9")
    return make_captions(CIFAR10_CLASSES[label] for label in labels)  # [DATA-3]


def caption_of_file(path):
    """The text of NAME.txt beside the image NAME.*, else "a photo of a FOLDER", underscores read as spaces."""
    text = Path(path).with_suffix(".txt")
    if not text.is_file():
        return make_captions([text.parent.name.replace("_", " ")])[0]  # [DATA-6]
    caption = text.read_bytes().decode("utf-8-sig", errors="replace").strip()  # [DATA-6]
    require(0 < len(caption) <= 2000 and "\ufffd" not in caption, f"{text} is not a caption: 1 to 2,000 characters in UTF-8")
    return caption


def normalize_images(images):
    """uint8 [0, 255] -> float32 [-1, 1]."""
    require(images.dtype == torch.uint8, f"images has dtype {images.dtype}, expected torch.uint8")
    return images.float() / 127.5 - 1  # [DATA-4]


def denormalize_images(images):
    """Float [-1, 1] -> uint8 [0, 255], rounded; what lies outside is clamped, never wrapped around."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)  # [DATA-5]


# ---- 5. Classifier-free guidance (docs/5-guidance.md): one model, with and without the text ----------------
def drop_text(context, mask, null_context, null_mask, drop):
    """Where drop [B] bool is True, the null text replaces BOTH context [B, M, D] and mask [B, M] (Ho & Salimans 2022).
    null_context [1, M, D] and null_mask [1, M], or one per sample. Returns new tensors."""
    check("mask", mask, *context.shape[:2], dtype=torch.bool, near=context)
    check("null_context", null_context, "B", *context.shape[1:], near=context)
    check("null_mask", null_mask, len(null_context), *mask.shape[1:], dtype=torch.bool, near=context)
    check("drop", drop, len(context), dtype=torch.bool, near=context)
    context = torch.where(rearrange(drop, "b -> b 1 1"), null_context, context)  # [DROP-1] [DROP-2] sample by sample
    return context, torch.where(rearrange(drop, "b -> b 1"), null_mask, mask)  # [DROP-1] the mask goes with it


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    """v_uncond + w (v_cond - v_uncond) -> [B, C, H, W]: w = 0 ignores the text, w = 1 obeys it, w > 1 exaggerates it.
    x [B, C, H, W], t [B], context [B, M, D], mask [B, M], null_* as in drop_text; w a number or one per sample [B]."""
    null_context, null_mask = drop_text(context, mask, null_context, null_mask, torch.ones_like(t, dtype=torch.bool))
    if torch.is_tensor(cfg_scale):
        check("cfg_scale", cfg_scale, len(x), dtype=None)
        cfg_scale = rearrange(cfg_scale.to(x), "b -> b 1 1 1")  # [CFG-4] one w a sample
    elif cfg_scale == 1:
        return model(x, t, context, mask)  # [CFG-2] one pass
    elif cfg_scale == 0:
        return model(x, t, null_context, null_mask)  # [CFG-2]
    both = torch.cat([context, null_context]), torch.cat([mask, null_mask])
    v_cond, v_uncond = model(torch.cat([x, x]), torch.cat([t, t]), *both).to(x.dtype).chunk(2)  # [CFG-3] one batched pass
    return v_uncond + cfg_scale * (v_cond - v_uncond)  # [CFG-1]


# ---- 6. The training objective (docs/6-objective.md): flow matching ----------------------------------------
def interpolate(x0, x1, t):
    """The straight path: (x_t, v), both of x0's shape; t [B]."""
    check("x0", x0, *x0.shape)
    check("x1", x1, *x0.shape, near=x0)
    check("t", t, len(x0), near=x0)
    t = rearrange(t, "b -> b" + " 1" * (x0.ndim - 1))
    xt = (1 - t) * x0 + t * x1  # [FLOW-1]
    return xt, x1 - x0  # [FLOW-2] v = d x_t / d t


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    """The mean of |model(x_t, t, context, mask) - v|^2 over batch and pixels -> scalar (Lipman et al. 2023)."""
    x1 = torch.randn_like(x0) if x1 is None else x1  # [FLOW-4] x_1 ~ N(0, I), drawn unless it is given
    t = torch.rand(len(x0), device=x0.device) if t is None else t  # [FLOW-4] t ~ U[0, 1], one a sample
    xt, v = interpolate(x0, x1, t)
    return (model(xt, t, context, mask).float() - v).square().mean()  # [FLOW-3] least where it says E[v | x_t] [FLOW-5]


# ---- 7. Sampling (docs/7-sampling.md): walk the path back, from noise to image -----------------------------
def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    """Solve dx/dt = velocity(x, t [B]) from x1 at t = 1 down to t = 0 in `num_steps` equal steps -> x_0 of x1's shape.
    "euler": one evaluation a step, first order. "heun": two, second order (Karras et al. 2022). callback(n, t, x) sees
    the state x that step n = 1 .. num_steps has reached, at t = 1 - n / num_steps."""
    require(solver in ("euler", "heun"), f"solver is {solver!r}, expected 'euler' or 'heun'")
    require(num_steps >= 1, f"num_steps is {num_steps}, expected at least 1")
    x = x1.to(torch.promote_types(x1.dtype, torch.float32))  # [SAMPLE-6] the state keeps float32 under bf16
    times = [1 - n / num_steps for n in range(num_steps + 1)]  # [SAMPLE-1] N steps need N + 1 times
    for n, (t, t_next) in enumerate(zip(times, times[1:])):
        dt = t_next - t  # negative: back towards the image
        v = velocity(x, x.new_full((len(x),), t)).to(x.dtype)
        if solver == "heun":
            v_next = velocity(x + dt * v, x.new_full((len(x),), t_next)).to(x.dtype)
            v = (v + v_next) / 2  # [SAMPLE-3]
        x = x + dt * v  # [SAMPLE-2] exact on straight paths [SAMPLE-9]; the error falls as N^-1, Heun's as N^-2 [SAMPLE-8]
        if callback:
            callback(n + 1, t_next, x)
    return x


@torch.no_grad()
def sample_text_conditional(
    model, text_encoder, prompts, image_shape=(3, 32, 32), num_steps=50, cfg_scale=7.5, device=None, *,
    noise=None, generator=None, solver="euler", progress=True,
):  # fmt: skip
    """Prompts (a string or a list of B) -> images [B, C, H, W], about [-1, 1], by guided integration from noise.
    noise [B, C, H, W]: drawn from `generator` unless given. cfg_scale: a number or a tensor [B]. device: the model's."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = device or next(model.parameters()).device
    if noise is None:  # [SAMPLE-4]
        noise = torch.randn(len(prompts), *image_shape, generator=generator, device=generator.device if generator else device)
    check("noise", noise, len(prompts), *image_shape)
    texts = list(dict.fromkeys([*prompts, ""]))  # CLIP meets each text once
    Z, mask = (tensor.to(device)[[texts.index(p) for p in [*prompts, ""]]] for tensor in trim_context(*text_encoder(texts)))
    modes = {module: module.training for module in model.modules()}
    model.eval()

    def velocity(x, t):
        return cfg_velocity(model, x, t, Z[:-1], mask[:-1], Z[-1:], mask[-1:], cfg_scale)  # [SAMPLE-5]

    try:
        with tqdm(total=num_steps, desc="sampling", leave=False, disable=None if progress else True) as bar:
            return integrate(velocity, noise.to(device, torch.float32), num_steps, solver, lambda *_: bar.update())
    finally:
        for module, training in modes.items():
            module.training = training  # [SAMPLE-7]


# ---- Devices and checkpoints (docs/checkpoints.md) ---------------------------------------------------------
def get_device():
    """The best device at hand: cuda, mps or cpu."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device, precision="auto"):
    """Matrix products in bfloat16 ("bf16") or not ("fp32"); "auto": bf16 on a GPU or CPU (AMX) that torch says has it."""
    kind = torch.device(device).type
    cuda = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    native = cuda or (kind == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False))
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and native))


def save_checkpoint(path, model, meta, training=None):
    """Write the EMA `model`, `meta` (plain data) and what resuming needs: beside `path`, to the disk, then renamed."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": 1, "model": model.state_dict(), "meta": meta, "training": training}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError from an OSError
        part.unlink(missing_ok=True)
        raise OSError(f"could not write {path}, what was there is as it was: {error.__context__ or error}") from None


def load_checkpoint(path, device="cpu"):
    """-> (model, meta): the EMA model in eval mode, ready to sample, and meta, a dict with the keys config, clip,
    clip_weights, clip_null, captions, image_shape (C, H, W), epoch, step, losses (a mean an epoch). Never runs code."""
    require(Path(path).is_file(), f"no checkpoint file at {path}")
    try:
        require(zipfile.ZipFile(path).testzip() is None, "its checksums are wrong")  # which torch writes and does not read
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        require(checkpoint["format"] == 1, f"its format is {checkpoint['format']!r:.20}, and 1 is read here")
        model = TextConditionalDiT(**checkpoint["meta"]["config"])
        model.load_state_dict(checkpoint["model"])
    except Exception as error:
        raise ValueError(f"{path} is not a whole flowclip checkpoint: {error!r:.150}") from None
    return model.to(device).eval(), checkpoint["meta"]
