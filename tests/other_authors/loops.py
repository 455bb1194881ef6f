"""Chapters 5 to 2 by another hand: plain matrix products, and loops over heads and steps.

It is written from the docs and docs/interface.md alone. The spec must find nothing wrong with it.
"""

import copy
import math

import torch


class Linear(torch.nn.Module):
    """y = x W + b, where W is stored [in, out]. start: "xavier", "torch" or "zero"."""

    def __init__(self, inputs, outputs, start="xavier"):
        super().__init__()
        self.W = torch.nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))
        bound = {"xavier": (6 / (inputs + outputs)) ** 0.5, "torch": inputs**-0.5, "zero": 0}[start]
        self.W.data.uniform_(-bound, bound)
        if start == "torch":
            self.bias.data.uniform_(-bound, bound)

    weight = property(lambda self: self.W.T)

    def forward(self, x):
        return x @ self.W + self.bias


# ---- 2 ----
class CrossAttention(torch.nn.Module):
    def __init__(self, embed_dim, context_dim, num_heads=8):
        super().__init__()
        self.num_heads, self.head = num_heads, embed_dim // num_heads
        self.q_proj = Linear(embed_dim, embed_dim)
        self.k_proj = Linear(context_dim, embed_dim)
        self.v_proj = Linear(context_dim, embed_dim)
        self.out_proj = Linear(embed_dim, embed_dim)

    def weights_of_head(self, i, Q, K, mask):
        own = slice(i * self.head, (i + 1) * self.head)
        scores = torch.bmm(Q[..., own], K[..., own].mT) / self.head**0.5  # [B, N, M]
        real = mask[:, None].to(scores.dtype)
        scores = scores - scores.amax(-1, keepdim=True)
        powers = torch.exp(scores.clamp(min=-60)) * real
        total = powers.sum(-1, keepdim=True)
        return powers / torch.where(total > 0, total, torch.ones_like(total))

    def attend(self, x, context, mask):
        if mask is None:
            mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        context = context.clone()
        context[~mask] = 0
        Q, K, V = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        weights, outputs = [], []
        for i in range(self.num_heads):
            A = self.weights_of_head(i, Q, K, mask)
            weights.append(A)
            outputs.append(torch.bmm(A, V[..., i * self.head : (i + 1) * self.head]))
        return torch.stack(weights, 1), self.out_proj(torch.cat(outputs, -1))

    def attention_weights(self, x, context, mask=None):
        return self.attend(x, context, mask)[0]

    def forward(self, x, context, mask=None):
        return self.attend(x, context, mask)[1]


# ---- 3 ----
def patchify(images, patch_size):
    p, patches = patch_size, []
    for top in range(0, images.shape[2], p):
        for left in range(0, images.shape[3], p):
            cut = images[:, :, top : top + p, left : left + p]  # [B, C, p, p]
            patches.append(cut.movedim(1, 3).flatten(1))
    return torch.stack(patches, dim=1)


def unpatchify(patches, patch_size, grid=None):
    B, N, features = patches.shape
    p, C = patch_size, features // patch_size**2
    rows, columns = grid or (math.isqrt(N), math.isqrt(N))
    image = patches.new_zeros(B, C, rows * p, columns * p)
    for n in range(N):
        top, left = p * (n // columns), p * (n % columns)
        cut = patches[:, n].view(B, p, p, C).movedim(3, 1)
        image[:, :, top : top + p, left : left + p] = cut
    return image


def sinusoids(u, d):
    """Of a list of numbers."""
    w = [10_000 ** (-2 * k / d) for k in range(d // 2)]
    table = [[math.cos(x * f) for f in w] + [math.sin(x * f) for f in w] for x in u]
    return torch.tensor(table, dtype=torch.float32)


def timestep_embedding(t, dim):
    return sinusoids([1000 * time for time in t.tolist()], dim).to(t.device)


def position_embedding_2d(dim, grid):
    place = sinusoids(range(grid), dim // 2)
    return torch.stack([torch.cat([row, column]) for row in place for column in place])


def normalized(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


class AdaLN(torch.nn.Module):
    def __init__(self, embed_dim, cond_dim):
        super().__init__()
        self.dim, self.linear = embed_dim, Linear(cond_dim, 2 * embed_dim, "zero")

    def forward(self, x, c):
        both = self.linear(c)[:, None]
        return normalized(x) * (1 + both[..., : self.dim]) + both[..., self.dim :]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def silu(x):
    return x / (1 + torch.exp(-x))


class Layers(torch.nn.Module):
    """Layers by their numbers, some of which have no weights."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def __getitem__(self, number):
        return getattr(self, f"layer{number}")


class Block(torch.nn.Module):
    def __init__(self, d, num_heads, mlp_ratio):
        super().__init__()
        self.norm1, self.norm3 = AdaLN(d, 4 * d), AdaLN(d, 4 * d)
        self.self_attn = CrossAttention(d, d, num_heads)
        hidden = int(d * mlp_ratio)
        self.mlp = Layers(layer0=Linear(d, hidden), layer2=Linear(hidden, d))

    def forward(self, x, c):
        return self.think(self.look(x, c), c)

    def look(self, x, c):
        h = self.norm1(x, c)
        return x + self.self_attn(h, h)

    def think(self, x, c):
        return x + self.mlp[2](gelu(self.mlp[0](self.norm3(x, c))))


class ReadingBlock(Block):
    def __init__(self, d, num_heads, mlp_ratio, context_dim):
        super().__init__(d, num_heads, mlp_ratio)
        self.norm2 = AdaLN(d, 4 * d)
        self.cross_attn = CrossAttention(d, context_dim, num_heads)

    def forward(self, x, c, context, mask):
        x = self.look(x, c)
        x = x + self.cross_attn(self.norm2(x, c), context, mask)
        return self.think(x, c)


class DiT(torch.nn.Module):
    def __init__(
        self, img_size=32, patch_size=4, in_channels=3, embed_dim=256, depth=6, num_heads=8,
        mlp_ratio=4.0, make_block=Block,
    ):  # fmt: skip
        super().__init__()
        self.patch_size, self.d = patch_size, embed_dim
        features = patch_size**2 * in_channels
        self.patch_embed = Linear(features, embed_dim)
        self.time_mlp = Layers(
            layer0=Linear(embed_dim, 4 * embed_dim), layer2=Linear(4 * embed_dim, 4 * embed_dim)
        )
        self.blocks = torch.nn.ModuleList()
        for _ in range(depth):
            self.blocks.append(make_block(embed_dim, num_heads, mlp_ratio))
        self.final_norm = torch.nn.LayerNorm(embed_dim)
        self.final_linear = Linear(embed_dim, features, "zero")
        self.places = position_embedding_2d(embed_dim, img_size // patch_size)

    def condition(self, t):
        return self.time_mlp[2](silu(self.time_mlp[0](timestep_embedding(t, self.d))))

    def walk(self, xt, c, *text):
        x = self.patch_embed(patchify(xt, self.patch_size)) + self.places.to(xt.device)
        for block in self.blocks:
            x = block(x, c, *text)
        x = normalized(x) * self.final_norm.weight + self.final_norm.bias
        return unpatchify(self.final_linear(x), self.patch_size)

    def forward(self, xt, t):
        return self.walk(xt, self.condition(t))


class ConditionalDiT(DiT):
    def __init__(self, *args, num_classes=10, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_embedding = torch.nn.Embedding(num_classes + 1, 4 * self.d)
        with torch.no_grad():
            self.label_embedding.weight.mul_(0.02)

    def forward(self, xt, t, labels):
        return self.walk(xt, self.condition(t) + self.label_embedding.weight[labels])


class TextConditionalDiT(DiT):
    def __init__(self, *args, context_dim=512, **kwargs):
        make_block = lambda *sizes: ReadingBlock(*sizes, context_dim)  # noqa: E731
        super().__init__(*args, make_block=make_block, **kwargs)
        self.context_proj = Linear(context_dim, context_dim, "torch")

    def forward(self, xt, t, context, mask=None):
        return self.walk(xt, self.condition(t), self.context_proj(context), mask)


# ---- 4 ----
def make_captions(names):
    captions = []
    for name in names:
        captions.append("a photo of a " + name)
        for letter in "aeiouAEIOU":
            if name.startswith(letter) and name != "one":
                captions[-1] = "a photo of an " + name
    return captions


def make_cifar10_captions(labels):
    first, second = ["airplane", "automobile", "bird", "cat", "deer"], ["dog", "frog", "horse"]
    classes = first + second + ["ship", "truck"]
    for label in labels:
        if int(label) not in range(10):
            raise ValueError(label)
    return make_captions([classes[int(label)] for label in labels])


def normalize_images(images):
    return (2 * images.to(torch.float32) - 255) / 255


def denormalize_images(images):
    u = torch.floor(255 * (images.float() + 1) / 2 + 0.5)
    return torch.minimum(torch.maximum(u, torch.tensor(0.0)), torch.tensor(255.0)).to(torch.uint8)


# ---- 5 ----
def drop_text(context, mask, null_context, null_mask, drop):
    if not drop.any():
        return context, mask
    contexts, masks = [], []
    for b, dropped in enumerate(drop.tolist()):
        contexts.append(null_context[0] if dropped else context[b])
        masks.append(null_mask[0] if dropped else mask[b])
    return torch.stack(contexts), torch.stack(masks)


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    B = len(x)
    nothing = torch.cat(B * [null_context]), torch.cat(B * [null_mask])
    one_number = not torch.is_tensor(cfg_scale)
    if one_number and cfg_scale == 1:
        return model(x, t, context, mask)
    if one_number and cfg_scale == 0:
        return model(x, t, *nothing)
    texts = torch.cat([context, nothing[0]]), torch.cat([mask, nothing[1]])
    answers = model(torch.cat([x, x]), torch.cat([t, t]), *texts)
    scales = B * [cfg_scale] if one_number else cfg_scale
    v = [answers[B + b] + w * (answers[b] - answers[B + b]) for b, w in enumerate(scales)]
    return torch.stack(v)


# ---- 6 ----
def interpolate(x0, x1, t):
    xt = torch.stack([(1 - time) * a + time * b for time, a, b in zip(t, x0, x1)])
    return xt, x1 - x0


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    if x1 is None:
        x1 = x0.new_empty(x0.shape).normal_()
    if t is None:
        t = x0.new_empty(len(x0)).uniform_()
    xt, v = interpolate(x0, x1, t)
    errors = model(xt, t, context, mask).to(v.dtype) - v
    return (errors**2).sum() / errors.numel()


# ---- 7 ----
def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    kind = torch.float64 if x1.dtype == torch.float64 else torch.float32
    x, n = x1.to(kind, copy=True), 0
    while n < num_steps:
        t, after = 1 - n / num_steps, 1 - (n + 1) / num_steps
        v = velocity(x, torch.ones(len(x)) * t).to(kind)
        if solver == "heun":
            y = x + (after - t) * v
            v = 0.5 * v + 0.5 * velocity(y, torch.ones(len(x)) * after).to(kind)
        x += (after - t) * v  # in place
        n += 1
        if callback:
            callback(n, after, x)
    return x


def sample_text_conditional(
    model, text_encoder, prompts, image_shape=(3, 32, 32), num_steps=50, cfg_scale=7.5,
    device=None, *, noise=None, generator=None, solver="euler", progress=True,
):  # fmt: skip
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if noise is None:
        noise = torch.empty(len(prompts), *image_shape).normal_(generator=generator)
    Z, mask = text_encoder([*prompts, ""])
    B = len(prompts)

    def velocity(x, t):
        return cfg_velocity(model, x, t, Z[:B], mask[:B], Z[B:], mask[B:], cfg_scale)

    with torch.no_grad():
        return integrate(velocity, noise, num_steps, solver)


# ---- The training step ----
class TextConditionalTrainer:
    """AdamW by hand."""

    def __init__(
        self, model, text_encoder, dataloader, caption_fn, lr=1e-4, weight_decay=0.01,
        text_drop_prob=0.1, device=None, *, ema=0.999, warmup=0, precision="auto", seed=0,
        total_steps=math.inf, cooldown=0,
    ):  # fmt: skip
        self.model, self.ema_model = model, copy.deepcopy(model)
        self.text_encoder, self.dataloader, self.caption_fn = text_encoder, dataloader, caption_fn
        self.lr, self.weight_decay, self.text_drop_prob = lr, weight_decay, text_drop_prob
        self.ema, self.warmup, self.seed = ema, warmup, seed
        self.total_steps, self.cooldown, self.epoch = total_steps, cooldown, 0
        self.moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in model.parameters()]
        self.step, self.losses, self.of_this_epoch, self.texts = 0, [], [], {}
        self.remember([""])

    def remember(self, captions):
        new = sorted(set(captions) - set(self.texts))
        if new:
            Z, mask = self.text_encoder(new)
            for caption, vectors, real in zip(new, Z, mask):
                self.texts[caption] = vectors[: int(real.sum())].clone()

    def train_step(self, images, captions):
        self.remember(captions)
        last = getattr(self.model, "final_linear", None)
        if self.step == 0 and last is not None and not bool(last.weight.any()):
            with torch.no_grad():
                last.bias.copy_(-patchify(images, self.model.patch_size).flatten(0, 1).mean(0))
        g = torch.Generator()
        g.manual_seed(self.seed * 1_000_000 + self.step)
        x1 = torch.randn(images.shape, generator=g)
        t = torch.rand(len(images), generator=g)
        coins = torch.rand(len(images), generator=g)
        length = max(len(self.texts[caption]) for caption in captions)
        width = self.texts[""].shape[-1]
        context = torch.zeros(len(images), length, width)
        mask = torch.zeros(len(images), length, dtype=torch.bool)
        for b, caption in enumerate(captions):
            text = self.texts["" if coins[b] < self.text_drop_prob else caption]
            context[b, : len(text)] = text
            mask[b, : len(text)] = True
        loss = flow_matching_loss(self.model, images, context, mask, x1=x1, t=t)
        weights = list(self.model.parameters())
        self.adamw(weights, torch.autograd.grad(loss, weights, allow_unused=True))
        return loss.detach()

    @torch.no_grad()
    def adamw(self, weights, gradients):
        lr = self.lr
        if self.warmup and self.step + 1 < self.warmup:
            lr = self.lr * (self.step + 1) / self.warmup
        if self.cooldown:
            lr = min(lr, self.lr * (self.total_steps - self.step) / self.cooldown)
        self.step += 1
        for weight, gradient, (m, u) in zip(weights, gradients, self.moments):
            if gradient is None:
                continue
            m.copy_(0.9 * m + 0.1 * gradient)
            u.copy_(0.999 * u + 0.001 * gradient**2)
            up, down = m / (1 - 0.9**self.step), (u / (1 - 0.999**self.step)).sqrt() + 1e-8
            weight.copy_(weight - lr * self.weight_decay * weight - lr * up / down)
        b = min(self.ema, (1 + self.step) / (10 + self.step))
        for average, weight in zip(self.ema_model.parameters(), weights):
            average.copy_(b * average + (1 - b) * weight)

    def train(self, num_epochs, max_steps=math.inf):
        for _ in range(num_epochs):
            done = len(self.of_this_epoch)
            if hasattr(self.dataloader, "epoch"):
                self.dataloader.epoch = self.epoch
            for images, labels in list(self.dataloader)[done:]:
                if self.step >= max_steps:
                    return self.losses
                loss = self.train_step(images, self.caption_fn(labels))
                self.of_this_epoch.append(float(loss))
            self.losses.append(sum(self.of_this_epoch) / len(self.of_this_epoch))
            self.of_this_epoch, self.epoch = [], self.epoch + 1
        return self.losses

    def save_checkpoint(self, path):
        state = {name: getattr(self, name) for name in ("step", "epoch", "losses", "of_this_epoch")}
        for name in ("model", "ema_model"):
            state[name] = getattr(self, name).state_dict()
        torch.save(state | {"moments": self.moments}, path)

    def resume(self, path):
        state = torch.load(path)
        for name in ("model", "ema_model"):
            getattr(self, name).load_state_dict(state.pop(name))
        for name, value in state.items():
            setattr(self, name, value)
