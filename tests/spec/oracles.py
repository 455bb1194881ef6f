"""What the docs say, once more in plain Python numbers: float64 loops and closed forms.

There is no tensor algebra, and nothing comes from flowclip.py. An oracle takes lists or tensors and
answers with lists or float64 tensors.
"""

import itertools
import math

import torch


def clip_loss(images, texts, temperature):
    """[CLIP-15] for lists of vectors: the mean of both cross-entropies."""

    def cosine(u, v):
        dot = sum(a * b for a, b in zip(u, v))
        return dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))

    def entropy(asked, offered):
        total = 0.0
        for n, vector in enumerate(asked):
            scores = [cosine(vector, other) / temperature for other in offered]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[n]
        return total / len(asked)

    return (entropy(images, texts) + entropy(texts, images)) / 2


def sinusoids(u, d):
    """[cos(u f_0), ..., sin(u f_0), ...], f_i = 10000^(-i / (d / 2)): chapter 6."""
    frequencies = [10_000 ** (-i / (d // 2)) for i in range(d // 2)]
    return [math.cos(u * f) for f in frequencies] + [math.sin(u * f) for f in frequencies]


def positions(dim, grid):
    """[POS-1] for every patch, row by row."""
    place = [sinusoids(n, dim // 2) for n in range(grid)]
    return [row + column for row in place for column in place]


def patches(images, p):
    """[PATCH-1] {(sample, patch): its features}."""
    B, C, H, W = images.shape
    columns, found = W // p, {}
    for b in range(B):
        for n in range((H // p) * columns):
            top, left, found[b, n] = n // columns * p, n % columns * p, []
            for i, j, c in itertools.product(range(p), range(p), range(C)):
                found[b, n].append(images[b, c, top + i, left + j].item())
    return found


def linear(layer, vector):
    """W vector + b, of anything that has a weight and a bias."""
    W, b = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * u for w, u in zip(row, vector)) + offset for row, offset in zip(W, b)]


def attention(module, x, Z, mask):
    """[ATTN-1] to [ATTN-6], one number at a time -> (output, A)."""
    heads, d = module.num_heads, len(module.q_proj.weight) // module.num_heads
    outputs, weights = [], []
    for patches_b, tokens, real in zip(x.tolist(), Z.tolist(), mask.tolist()):
        keys = [linear(module.k_proj, z) for z in tokens]
        values = [linear(module.v_proj, z) for z in tokens]
        rows, A = [], [[] for _ in range(heads)]
        for patch in patches_b:
            q, joined = linear(module.q_proj, patch), []
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                scores = [sum(a * b for a, b in zip(q[part], k[part])) / math.sqrt(d) for k in keys]
                total = sum(math.exp(s) for s, r in zip(scores, real) if r)
                a = [math.exp(s) / total if r else 0.0 for s, r in zip(scores, real)]
                A[h].append(a)
                joined += [sum(w * v[part][i] for w, v in zip(a, values)) for i in range(d)]
            rows.append(linear(module.out_proj, joined))
        outputs.append(rows)
        weights.append(A)
    return torch.tensor(outputs, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def layer_norm(values):
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((u - mean) ** 2 for u in values) / len(values) + 1e-5)
    return [(u - mean) / deviation for u in values]


def adaln(layer, values, condition):
    """[DIT-1] of one patch."""
    out = linear(layer.linear, condition)
    scale, shift = out[: len(values)], out[len(values) :]
    return [(1 + s) * u + h for u, s, h in zip(layer_norm(values), scale, shift)]


def path(a, z, t):
    """[FLOW-1] [FLOW-2] of one pixel -> (x_t, v)."""
    return (1 - t) * a + t * z, z - a


def mean_square(said, truth):
    """[FLOW-3]."""
    errors = [(a - b) ** 2 for a, b in zip(said, truth)]
    return sum(errors) / len(errors)


def gaussian_velocity(m, s, t):
    """E[v | x_t] = intercept + slope x_t for x_0 ~ N(m, s^2): chapter 1 -> (intercept, slope)."""
    k = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
    return -m - k * (1 - t) * m, k


def gaussian_density(m, s, t, x):
    """P_t(x), the density of x_t, for x_0 ~ N(m, s^2)."""
    centre, variance = (1 - t) * m, (1 - t) ** 2 * s**2 + t**2
    return math.exp(-((x - centre) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def two_texts(mine, other, share, t, x):
    """Images of two texts, each a Gaussian (mean, deviation); `share` of all have mine: chapter 3.

    -> E[v | x_t, mine], E[v | x_t], and the gradient of log P_t(mine | x_t) by x_t.
    """
    a, b = share * gaussian_density(*mine, t, x), (1 - share) * gaussian_density(*other, t, x)
    sure = a / (a + b)
    v_mine, v_other = (
        intercept + slope * x
        for intercept, slope in (gaussian_velocity(*g, t) for g in (mine, other))
    )
    pulls = [  # of log density by x
        -(x - (1 - t) * m) / ((1 - t) ** 2 * s**2 + t**2) for m, s in (mine, other)
    ]
    return v_mine, sure * v_mine + (1 - sure) * v_other, (1 - sure) * (pulls[0] - pulls[1])


def mean_velocity(x, t, images):
    """[FLOW-6] of one x_t, a list of numbers, and a finite list of images."""
    far = [sum((b - (1 - t) * a) ** 2 for a, b in zip(image, x)) / (2 * t**2) for image in images]
    shares = [math.exp(min(far) - f) for f in far]
    mean = [sum(a * u for a, u in zip(shares, column)) / sum(shares) for column in zip(*images)]
    return [(b - a) / t for a, b in zip(mean, x)]


def solve(velocity, x, N, solver):
    """[SAMPLE-1] to [SAMPLE-3] for one number; velocity(x, t) of numbers."""
    for n in range(N):
        t, s = 1 - n / N, 1 - (n + 1) / N
        v = velocity(x, t)
        y = x + (s - t) * v
        x = y if solver == "euler" else x + (s - t) * (v + velocity(y, s)) / 2
    return x


def adamw_step(weight, grad, m, u, step, lr, decay):
    """Step 1, 2, ... of AdamW (Loshchilov & Hutter 2019) -> (weight, m, u).

    The betas are 0.9 and 0.999, epsilon is 1e-8.
    """
    m, u = 0.9 * m + 0.1 * grad, 0.999 * u + 0.001 * grad**2
    move = (m / (1 - 0.9**step)) / ((u / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return weight * (1 - lr * decay) - lr * move, m, u


def ema_decay(ema, step):
    """[TRAIN-6]."""
    return min(ema, (1 + step) / (10 + step))
