"""facebookresearch/DiT by our names: patches, positions, time, AdaLN, guidance.

ADAPT=../DiT pytest --impl=tests/adapters/dit.py      (needs timm)
"""

import math
from types import SimpleNamespace

import torch
from hypothesis import assume

from tests.adapters import given
from tests.adapters.given import checkout, patches_of

checkout()
import models  # noqa: E402

DEPARTS = {
    "CFG-1": "three channels are guided, the others not: for reproducibility, as it says itself",
    "POS-1": "the column before the row, sines before cosines",
    "DIT-1": "SiLU before the linear layer, the shift before the scale, an epsilon of 1e-6",
    "CFG-2": "both answers for every scale",
}


def patchify(images, patch_size):
    size = tuple(images.shape[2:])
    embed = models.PatchEmbed(size, patch_size, images.shape[1], patch_size**2 * images.shape[1])
    return patches_of(embed, images, patch_size)


def unpatchify(patches, patch_size, grid=None):
    side = math.isqrt(patches.shape[1])
    assume(grid in (None, (side, side)))  # square images alone
    channels = patches.shape[2] // patch_size**2
    its = SimpleNamespace(
        out_channels=channels, x_embedder=SimpleNamespace(patch_size=[patch_size])
    )
    return models.DiT.unpatchify(its, patches)


def position_embedding_2d(dim, grid):
    return torch.from_numpy(models.get_2d_sincos_pos_embed(dim, grid)).float()


def timestep_embedding(t, dim):
    return models.TimestepEmbedder.timestep_embedding(1000 * t.float(), dim)  # it counts steps


class AdaLN(given.AdaLN):
    last_layer = models.FinalLayer


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    if torch.is_tensor(cfg_scale):
        raise NotImplementedError("a scale for each sample")
    texts = torch.cat([context, null_context.expand_as(context)])
    masks = torch.cat([mask, null_mask.expand_as(mask)])
    its = SimpleNamespace(
        in_channels=x.shape[1], forward=lambda x, t, y: model(x, t, y["texts"], y["masks"])
    )
    both, times = torch.cat([x, x]), torch.cat([t, t])
    labels = {"texts": texts, "masks": masks}
    return models.DiT.forward_with_cfg(its, both, times, labels, cfg_scale)[: len(x)]
