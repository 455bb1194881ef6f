"""cloneofsimo/minRF by our names: the path, the loss, the walk, guidance, patches, time, AdaLN.

ADAPT=../minRF pytest --impl=tests/adapters/minrf.py
"""

import math
from types import SimpleNamespace

import torch
from hypothesis import assume

from tests.adapters import given
from tests.adapters.given import checkout, drawn

checkout()
import dit  # noqa: E402
import rf  # noqa: E402

DEPARTS = {
    "SAMPLE-6": "a state that came in bfloat16 is asked for in bfloat16 at the first step",
    "CFG-2": "both answers for every scale",
    "DIT-1": "SiLU before the linear layer, the shift before the scale, an epsilon of 1e-6",
    "PATCH-1": "inside a patch channels, rows, columns",
    "PATCH-2": "the way back has rows, columns, channels: a learned layer stands on either side",
    "TIME-2": "times in float64 stay so",
}


def interpolate(x0, x1, t):
    """xt is what the model is asked at, v where the loss pulls an answer of 0 to."""
    kind, asked = x0.dtype, []
    x0, x1, t = x0.double(), x1.double(), t.double()
    answer = torch.zeros_like(x0, requires_grad=True)
    loss = flow_matching_loss(
        lambda xt, *_: asked.append(xt) or answer, x0, None, None, x1=x1, t=t
    )
    (pull,) = torch.autograd.grad(loss, answer)
    return asked[0].to(kind), (-pull * pull.numel() / 2).to(kind)


def flow_matching_loss(model, x0, context, mask, *, x1=None, t=None):
    """With times that are uniform: RF(model, ln=False); by default they are logit-normal."""
    with drawn(rf, randn_like=x1, rand=t):
        return rf.RF(lambda xt, t, cond: model(xt, t, *cond), ln=False).forward(
            x0, (context, mask)
        )[0]


def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    if solver != "euler":
        raise NotImplementedError(solver)
    states = rf.RF(lambda x, t, cond: velocity(x, t)).sample(x1, None, None, num_steps)
    for n, x in enumerate(states[1:], 1):
        if callback:
            callback(n, 1 - n / num_steps, x)
    return states[-1]


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
    return dit.DiT_Llama.forward_with_cfg(its, both, times, labels, cfg_scale)[: len(x)]


def patchify(images, patch_size):
    return dit.DiT_Llama.patchify(SimpleNamespace(patch_size=patch_size), images)


def unpatchify(patches, patch_size, grid=None):
    side = math.isqrt(patches.shape[1])
    assume(grid in (None, (side, side)))  # square images alone
    channels = patches.shape[2] // patch_size**2
    its = SimpleNamespace(out_channels=channels, patch_size=patch_size)
    return dit.DiT_Llama.unpatchify(its, patches)


def timestep_embedding(t, dim):
    return dit.TimestepEmbedder.timestep_embedding(t, dim)


class AdaLN(given.AdaLN):
    last_layer = dit.FinalLayer
