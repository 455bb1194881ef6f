"""Chapters 5 to 2 by another hand: fused matrices, reshape, torch's own attention.

It is written from the docs and docs/interface.md alone. The spec must find nothing wrong with it.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel


# ---- 2 ----
def rows(layer, part, size):
    """One of several linear maps that lie in one matrix, below each other."""
    at = slice(part * size, (part + 1) * size)
    return SimpleNamespace(weight=layer.weight[at], bias=layer.bias[at])


def heads_first(x, num_heads):
    return x.reshape(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)


def heads_last(x):
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class CrossAttention(nn.Module):
    def __init__(self, embed_dim, context_dim, num_heads=8):
        super().__init__()
        self.dim, self.num_heads = embed_dim, num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(context_dim, 2 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    k_proj = property(lambda self: rows(self.kv, 0, self.dim))
    v_proj = property(lambda self: rows(self.kv, 1, self.dim))

    def queries_keys_values(self, x, context, mask):
        if mask is not None:
            context = torch.where(mask.unsqueeze(-1), context, torch.zeros_like(context))
        k, v = self.kv(context).split(self.dim, dim=-1)
        return (heads_first(u, self.num_heads) for u in (self.q_proj(x), k, v))

    def attention_weights(self, x, context, mask=None):
        q, k, _ = self.queries_keys_values(x, context, mask)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is None:
            return F.softmax(scores, dim=-1)
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return F.softmax(scores, dim=-1).nan_to_num(0.0)

    def forward(self, x, context, mask=None):
        q, k, v = self.queries_keys_values(x, context, mask)
        mask = None if mask is None else mask[:, None, None, :]
        return self.out_proj(heads_last(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class SelfAttention(nn.Module):
    """All three in one matrix."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.qkv, self.out_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    q_proj = property(lambda self: rows(self.qkv, 0, self.dim))
    k_proj = property(lambda self: rows(self.qkv, 1, self.dim))
    v_proj = property(lambda self: rows(self.qkv, 2, self.dim))

    def forward(self, x, _=None):
        q, k, v = (heads_first(u, self.num_heads) for u in self.qkv(x).chunk(3, dim=-1))
        return self.out_proj(heads_last(F.scaled_dot_product_attention(q, k, v)))


# ---- 3 ----
def patchify(images, patch_size):
    B, C, H, W = images.shape
    p = patch_size
    cut = images.reshape(B, C, H // p, p, W // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // p) * (W // p), p * p * C)


def unpatchify(patches, patch_size, grid=None):
    B, N, features = patches.shape
    p = patch_size
    h, w = grid if grid else (round(N**0.5), round(N**0.5))
    cut = patches.reshape(B, h, w, p, p, features // p**2)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(B, features // p**2, h * p, w * p)


def waves(u, d):
    w = 10_000.0 ** (-torch.arange(d // 2, dtype=torch.float32, device=u.device) / (d // 2))
    return torch.cat([torch.cos(u[:, None] * w), torch.sin(u[:, None] * w)], dim=1)


def timestep_embedding(t, dim):
    return waves(t.to(torch.float32) * 1000, dim)


def position_embedding_2d(dim, grid):
    n = torch.arange(grid * grid)
    places = torch.div(n, grid, rounding_mode="floor"), n % grid
    return torch.cat([waves(place.float(), dim // 2) for place in places], dim=1)


class AdaLN(nn.Module):
    def __init__(self, embed_dim, cond_dim):
        super().__init__()
        self.linear = nn.Linear(cond_dim, 2 * embed_dim)

    def forward(self, x, c):
        scale, shift = self.linear(c).unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class Block(nn.Module):
    def __init__(self, dim, num_heads, hidden, context_dim):
        super().__init__()
        self.norm1, self.norm3 = AdaLN(dim, 4 * dim), AdaLN(dim, 4 * dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.mlp = nn.ModuleList([nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)])
        self.reads = context_dim is not None
        if self.reads:
            self.norm2 = AdaLN(dim, 4 * dim)
            self.cross_attn = CrossAttention(dim, context_dim, num_heads)

    def forward(self, x, c, context=None, mask=None):
        h = self.norm1(x, c)
        x = x + self.self_attn(h, h)
        if self.reads:
            x = x + self.cross_attn(self.norm2(x, c), context, mask)
        h = self.norm3(x, c)
        for layer in self.mlp:
            h = layer(h)
        return x + h


class DiT(nn.Module):
    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=256, depth=6, num_heads=8,
        mlp_ratio=4.0, text=None,
    ):  # fmt: skip
        super().__init__()
        self.p, self.dim, self.side = patch_size, embed_dim, img_size // patch_size
        pixels = patch_size * patch_size * in_channels
        self.patch_embed = nn.Linear(pixels, embed_dim)
        self.time_mlp = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim), nn.SiLU(), nn.Linear(4 * embed_dim, 4 * embed_dim)
        )
        hidden = int(mlp_ratio * embed_dim)
        self.blocks = nn.ModuleList(
            [Block(embed_dim, num_heads, hidden, text) for _ in range(depth)]
        )
        self.final_norm = nn.LayerNorm(embed_dim)
        self.final_linear = nn.Linear(embed_dim, pixels)
        self.start()

    @torch.no_grad()
    def start(self):
        fused = {"qkv": 3, "kv": 2}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
                for part in layer.weight.chunk(fused.get(name.rsplit(".", 1)[-1], 1)):
                    nn.init.xavier_uniform_(part)
        for block in self.blocks:
            for norm in (m for m in block.modules() if isinstance(m, AdaLN)):
                norm.linear.weight.zero_()
        self.final_linear.weight.zero_()

    def velocity(self, xt, c, *text):
        x = self.patch_embed(patchify(xt, self.p))
        x = x + position_embedding_2d(self.dim, self.side).to(x)
        for block in self.blocks:
            x = block(x, c, *text)
        return unpatchify(self.final_linear(self.final_norm(x)), self.p)

    def h(self, t):
        return self.time_mlp(timestep_embedding(t, self.dim))

    def forward(self, xt, t):
        return self.velocity(xt, self.h(t))


class ConditionalDiT(DiT):
    def __init__(self, *sizes, num_classes=10, **more):
        super().__init__(*sizes, **more)
        self.label_embedding = nn.Embedding(num_classes + 1, 4 * self.dim)
        self.label_embedding.weight.data.normal_(0, 0.02)

    def forward(self, xt, t, labels):
        return self.velocity(xt, self.h(t) + self.label_embedding(labels))


class TextConditionalDiT(DiT):
    def __init__(self, *sizes, context_dim=512, **more):
        super().__init__(*sizes, text=context_dim, **more)
        self.context_proj = nn.Linear(context_dim, context_dim)

    def forward(self, xt, t, context, mask=None):
        return self.velocity(xt, self.h(t), self.context_proj(context), mask)


# ---- 4 ----
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip


def make_captions(names):
    said = ["a photo of a" + "n" * (name[0] in "AEIOUaeiou") + f" {name}" for name in names]
    return ["a photo of a one" if name == "one" else text for name, text in zip(names, said)]


def make_cifar10_captions(labels):
    table = dict(enumerate(make_captions(CLASSES)))
    try:
        return [table[label] for label in torch.as_tensor(labels).tolist()]
    except KeyError as unknown:
        raise ValueError(f"no class {unknown}") from None


def normalize_images(images):
    return torch.linspace(-1, 1, 256)[images.long()]


def denormalize_images(images):
    return (images.double().clamp(-1, 1) * 127.5 + 127.5).round().byte()


# ---- 5 ----
def drop_text(context, mask, null_context, null_mask, drop):
    context, mask = context.clone(), mask.clone()
    context[drop], mask[drop] = null_context[0], null_mask[0]
    return context, mask


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    nulls = null_context.repeat(len(x), 1, 1), null_mask.repeat(len(x), 1)
    if isinstance(cfg_scale, torch.Tensor):
        w = cfg_scale.to(x).reshape(-1, 1, 1, 1)
    elif cfg_scale in (0, 1):
        return model(x, t, *((context, mask) if cfg_scale else nulls))
    else:
        w = cfg_scale
    both = model(
        x.repeat(2, 1, 1, 1), t.repeat(2),
        torch.cat([nulls[0], context]), torch.cat([nulls[1], mask]),
    )  # fmt: skip
    without, with_text = both[: len(x)], both[len(x) :]
    return (1 - w) * without + w * with_text


# ---- 6 ----
def interpolate(x0, x1, t):
    shape = [-1] + [1] * (x0.dim() - 1)
    return torch.lerp(x0, x1, t.reshape(shape).expand_as(x0)), x1 - x0


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    if x1 is None:
        x1 = torch.randn(x0.shape, device=x0.device)
    if t is None:
        t = torch.rand(x0.shape[0], device=x0.device)
    xt, v = interpolate(x0, x1, t)
    return F.mse_loss(model(xt, t, context, mask).float(), v.float())


# ---- 7 ----
def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    x = x1 if x1.dtype == torch.float64 else x1.float()
    times = [(num_steps - n) / num_steps for n in range(num_steps + 1)]

    def ask(x, t):
        return velocity(x, torch.full((x.shape[0],), t, device=x.device)).to(x.dtype)

    for n, (t, s) in enumerate(zip(times[:-1], times[1:]), start=1):
        v = ask(x, t)
        y = x + (s - t) * v
        x = y if solver == "euler" else x + (s - t) / 2 * (v + ask(y, s))
        if callback is not None:
            callback(n, s, x)
    return x


@torch.inference_mode()
def sample_text_conditional(
    model, text_encoder, prompts, image_shape=(3, 32, 32), num_steps=50, cfg_scale=7.5,
    device=None, *, noise=None, generator=None, solver="euler", progress=True,
):  # fmt: skip
    if isinstance(prompts, str):
        prompts = [prompts]
    if device is None:
        device = next(model.parameters()).device
    if noise is None:
        noise = torch.stack([torch.randn(image_shape, generator=generator) for _ in prompts])
    Z, mask = (tensor.to(device) for tensor in text_encoder([""] + list(prompts)))
    texts = Z[1:], mask[1:], Z[:1], mask[:1]
    field = lambda x, t: cfg_velocity(model, x, t, *texts, cfg_scale)  # noqa: E731
    return integrate(field, noise.to(device).float(), num_steps, solver)


# ---- The training step ----
class TextConditionalTrainer:
    def __init__(
        self, model, text_encoder, dataloader, caption_fn, lr=1e-4, weight_decay=0.01,
        text_drop_prob=0.1, device=None, *, ema=0.999, warmup=0, precision="fp32", seed=0,
        total_steps=math.inf, cooldown=0,
    ):  # fmt: skip
        self.device = device or "cpu"
        self.model = model.to(self.device)
        self.ema_model = AveragedModel(self.model, multi_avg_fn=self.average)
        self.ema_model.n_averaged += 1  # else its first update is a copy
        self.text_encoder, self.dataloader, self.caption_fn = text_encoder, dataloader, caption_fn
        self.p, self.ema, self.seed = text_drop_prob, ema, seed
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr, weight_decay=weight_decay)

        def rate(s):
            up = (s + 1) / warmup if warmup else 1
            down = (total_steps - s) / cooldown if cooldown else 1
            return min(up, down, 1)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.known, self.losses, self.part, self.step, self.epoch = {}, [], [], 0, 0

    def average(self, slow, fast, count):
        torch._foreach_lerp_(slow, fast, 1 - min(self.ema, (1 + self.step) / (10 + self.step)))

    def vectors(self, captions):
        for caption in captions:
            if caption not in self.known:
                Z, mask = self.text_encoder([caption])
                self.known[caption] = Z[0, mask[0]]
        texts = [self.known[caption] for caption in captions]
        Z = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self.device)
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        return Z, torch.arange(Z.shape[1], device=self.device) < lengths[:, None]

    @torch.no_grad()
    def begin(self, images):
        end = getattr(self.model, "final_linear", None)
        if self.step == 0 and end is not None and float(end.weight.abs().max()) == 0:
            p = self.model.p
            squares = images.unfold(2, p, p).unfold(3, p, p)  # [B, C, h, w, p, p]
            end.bias.copy_(-squares.mean((0, 2, 3)).permute(1, 2, 0).flatten())

    def train_step(self, images, captions):
        self.begin(images)
        g = torch.Generator().manual_seed(self.seed * 100_003 + self.step)
        x1, B = torch.randn(images.shape, generator=g), len(images)
        t, drop = torch.rand(B, generator=g), torch.rand(B, generator=g) < self.p
        Z, mask = self.vectors([*captions, ""])
        x0, x1, t, drop = (tensor.to(self.device) for tensor in (images, x1, t, drop))
        text = drop_text(Z[:-1], mask[:-1], Z[-1:], mask[-1:], drop)
        loss = flow_matching_loss(self.model, x0, *text, x1=x1, t=t)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.ema_model.update_parameters(self.model)
        return loss.detach()

    def train(self, num_epochs, max_steps=float("inf")):
        for _ in range(num_epochs):
            if hasattr(self.dataloader, "epoch"):
                self.dataloader.epoch = self.epoch
            for n, (images, labels) in enumerate(self.dataloader):
                if n < len(self.part):
                    continue
                if self.step >= max_steps:
                    return self.losses
                self.part.append(self.train_step(images, self.caption_fn(labels)).item())
            self.losses.append(sum(self.part) / len(self.part))
            self.part, self.epoch = [], self.epoch + 1
        return self.losses

    def save_checkpoint(self, path):
        parts = self.model, self.ema_model, self.optimizer, self.schedule
        place = self.step, self.epoch, self.losses, self.part
        torch.save(([part.state_dict() for part in parts], place), path)

    def resume(self, path):
        states, (self.step, self.epoch, self.losses, self.part) = torch.load(path)
        parts = self.model, self.ema_model, self.optimizer, self.schedule
        for part, state in zip(parts, states):
            part.load_state_dict(state)
