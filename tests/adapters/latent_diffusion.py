"""apapiu/transformer_latent_diffusion by our names: guidance and time.

ADAPT=../transformer_latent_diffusion pytest --impl=tests/adapters/latent_diffusion.py
"""

import sys
from types import ModuleType, SimpleNamespace

import torch

from tests.adapters.given import checkout

checkout()
for name, part in (("clip", "load"), ("diffusers", "AutoencoderKL"), ("requests", "get")):
    sys.modules.setdefault(name, ModuleType(name))  # what downloads is not asked for here
    if not hasattr(sys.modules[name], part):
        setattr(sys.modules[name], part, None)
from tld.diffusion import DiffusionGenerator  # noqa: E402
from tld.transformer_blocks import SinusoidalEmbedding  # noqa: E402

DEPARTS = {
    "TIME-1": "frequencies of 1 to 1,000 turns on [0, 1], sines before cosines",
    "TIME-2": "times in float64 stay so",
    "CFG-2": "both answers for every scale",
}


def timestep_embedding(t, dim):
    return SinusoidalEmbedding(embedding_dims=dim)(t[:, None])


def cfg_velocity(model, x, t, context, mask, null_context, null_mask, cfg_scale):
    """Its model has no mask, and is given one number for the time of all: neither is judged."""
    if torch.is_tensor(cfg_scale):
        raise NotImplementedError("a scale for each sample")
    texts = torch.cat([context, null_context.expand_as(context)])
    masks = torch.cat([mask, null_mask.expand_as(mask)])
    answers = model(torch.cat([x, x]), torch.cat([t, t]), texts, masks)
    its = SimpleNamespace()
    return DiffusionGenerator.apply_classifier_free_guidance(its, answers, len(x), cfg_scale)
