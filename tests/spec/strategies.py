"""What hypothesis draws: small sizes, and draws that have names.

Numbers come from seeded generators and differ everywhere.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 10**6)
steps = st.integers(1, 12)
scales = st.floats(-3, 20)
image_shapes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
prompts = st.text(st.sampled_from("abc !?,é猫0"), max_size=30)
word = st.text("abcdefgxyzé猫", min_size=1, max_size=7)
words = st.lists(word | st.sampled_from(["!", "?!", "7", "42", "猫"]), max_size=5)
caption = st.sampled_from(["", "dog", "a red car", "a very long sentence", "猫"])
captions = st.lists(caption, min_size=1, max_size=3)
names = st.text("abeiouxyzAEIOUB _", min_size=1, max_size=12)


@dataclass
class Grid:
    """An image of `rows` x `columns` patches of p x p pixels."""

    B: int
    C: int
    rows: int
    columns: int
    p: int

    def images(self):
        size = self.B, self.C, self.rows * self.p, self.columns * self.p
        return torch.arange(torch.Size(size).numel(), dtype=torch.float32).view(size)


grids = st.builds(
    Grid, B=st.integers(1, 2), C=st.integers(1, 3), rows=st.integers(1, 4),
    columns=st.integers(1, 4), p=st.integers(1, 3),
)  # fmt: skip


@dataclass
class Reading:
    """B images of N patches that read M tokens of width D_z, with `heads` heads of d features."""

    B: int
    N: int
    M: int
    heads: int
    d: int
    D_z: int
    seed: int

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def tensors(self):
        """x, Z in float64, and a mask: at least one real token a sample, not always in front."""
        g = self.generator()
        x = torch.randn(self.B, self.N, self.heads * self.d, generator=g).double()
        Z = torch.randn(self.B, self.M, self.D_z, generator=g).double()
        mask = torch.rand(self.B, self.M, generator=g) < 0.6
        mask[torch.arange(self.B), torch.randint(self.M, (self.B,), generator=g)] = True
        return x, Z, mask


readings = st.builds(
    Reading, B=st.integers(1, 3), N=st.integers(1, 5), M=st.integers(1, 5),
    heads=st.integers(1, 3), d=st.integers(1, 4), D_z=st.integers(1, 6), seed=seeds,
)  # fmt: skip


@dataclass
class Texts:
    """A batch of B texts of M tokens, a null text, and which samples to drop."""

    B: int
    M: int
    D: int
    seed: int

    def tensors(self):
        g = torch.Generator().manual_seed(self.seed)
        context = torch.randn(self.B, self.M, self.D, generator=g)
        null_context = torch.randn(1, self.M, self.D, generator=g)
        mask = torch.rand(self.B, self.M, generator=g) < 0.7
        null_mask = torch.arange(self.M)[None] < 1
        drop = torch.rand(self.B, generator=g) < 0.5
        return context, mask, null_context, null_mask, drop

    def images(self):
        g = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.B, 5, 3, 3, generator=g), torch.rand(self.B, generator=g)


texts = st.builds(Texts, B=st.integers(1, 4), M=st.integers(1, 4), D=st.integers(1, 3), seed=seeds)


def randomise(module, seed, scale=1.0):
    """Every parameter gets random values, also where it was 0: nothing cancels by accident."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * scale)
    return module


def pair(shape, seed):
    """x_0 and x_1 of `shape`, and a t a sample."""
    g = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    return x0, x1, torch.rand(shape[0], generator=g)


class StandIn(torch.nn.Module):
    """A text encoder without CLIP's cost; it remembers what it was asked.

    It gives all of its 9 places, where CLIPTextEncoder stops at the longest prompt.
    """

    model_name, pretrained, embed_dim, max_length = "stand-in", "none", 12, 9

    def __init__(self):
        super().__init__()
        self.asked = []
        table = torch.randn(256, 12, generator=torch.Generator().manual_seed(3))
        self.table = torch.nn.Parameter(table, requires_grad=False)

    def forward(self, prompts):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        self.asked += prompts
        ids = torch.zeros(len(prompts), 9, dtype=torch.long)
        lengths = []
        for row, prompt in enumerate(prompts):
            words = [sum(map(ord, word)) % 256 for word in prompt.split()[:7]]
            real = [1, *words, 2]  # BOS and EOS are not as the padding is
            ids[row, : len(real)] = torch.tensor(real)
            lengths.append(len(real))
        return self.table[ids], torch.arange(9) < torch.tensor(lengths)[:, None]


class Velocity:
    """A velocity model that depends, sample by sample, on all it is given; it counts its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, context, mask):
        self.calls.append(len(x))
        said = (context * mask[..., None]).sum((1, 2)) + 0.1 * mask.sum(1)
        return torch.sin(x + said[:, None, None, None]) * (1 + t[:, None, None, None])


def flat(model):
    """All parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
