"""What the adapters share: where the checkout is, and randomness that is handed in."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch


def checkout(*parts):
    """The folder that ADAPT names, put before all that can be imported."""
    if "ADAPT" not in os.environ:
        raise RuntimeError("ADAPT names no checkout: ADAPT=../PROJECT pytest --impl=...")
    folder = Path(os.environ["ADAPT"], *parts).resolve()
    sys.path.insert(0, str(folder))
    return folder


@contextmanager
def drawn(module, **given):
    """Inside, what `module` draws by torch.randn and the like is what was given, where it was."""
    given = {name: value for name, value in given.items() if value is not None}
    others = {name: getattr(torch, name) for name in dir(torch) if name not in given}
    draws = {name: lambda *_, value=value, **__: value for name, value in given.items()}
    module.torch = SimpleNamespace(**others, **draws)
    try:
        yield
    finally:
        module.torch = torch


class Calls(torch.nn.Module):
    """A function as a model, with a parameter that tells the device."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *args):
        return self.function(*args)


class AdaLN(torch.nn.Module):
    """That of a project's `last_layer`, as DiT has it, without the linear layer behind it."""

    def __init__(self, embed_dim, cond_dim):
        super().__init__()
        self.layer = self.last_layer(embed_dim, 1, 1)
        self.layer.adaLN_modulation[1] = torch.nn.Linear(cond_dim, 2 * embed_dim)
        self.layer.linear = torch.nn.Identity()

    @property
    def linear(self):
        return self.layer.adaLN_modulation[1]

    def forward(self, x, c):
        return self.layer(x, c)


def patches_of(embed, images, patch_size):
    """What a convolution with stride p cuts out: it is given weights that copy each number."""
    size = patch_size**2 * images.shape[1]
    copies = torch.eye(size).view(size, patch_size, patch_size, -1).permute(0, 3, 1, 2)
    embed.proj.weight.data, embed.proj.bias.data = copies.to(images), torch.zeros(size).to(images)
    return embed(images).detach()
