"""A trained model in a page: python docs/build/live.py --checkpoint runs/demo/checkpoint.pt

writes docs/page/live.html, which draws in the browser, from a folder and without a network. Texts
and times are known beforehand: what depends on them alone (Z's keys and values, AdaLN's scales and
shifts) is stored in place of the layers that compute it, all in float32. The frame is
docs/build/live.html; docs/build/live.js computes the rest. (onnxruntime-web would bring 14 MB.)
"""

import argparse
import base64
import json
import os
import re
import sys
from pathlib import Path
from string import Template

import torch
from statements import DOCS, ROOT

sys.path.insert(0, str(ROOT))
import flowclip  # noqa: E402
import sample  # noqa: E402

STEPS = 50
LIMIT = 9_000_000  # bytes of numbers, in the page 12 MB


def linear(name, *layers):
    """Layers that read the same, as one."""
    weight = torch.cat([layer.weight for layer in layers])
    return {f"{name}.weight": weight, f"{name}.bias": torch.cat([layer.bias for layer in layers])}


@torch.no_grad()
def numbers_of(model, Z, mask):
    """{name: tensor} of all that docs/build/live.js needs; the last row of Z is the null text."""
    context = model.context_proj(Z)
    times = 1 - torch.arange(STEPS) / STEPS
    c = model.time_mlp(flowclip.timestep_embedding(times, model.embed_dim))
    found = {
        "positions": model.positions, "mask": mask.float(),
        **linear("embed", model.patch_embed),
        "norm": torch.stack([model.final_norm.weight - 1, model.final_norm.bias]),
        **linear("final", model.final_linear),
    }  # fmt: skip
    for n, block in enumerate(model.blocks):
        own, text = block.self_attn, block.cross_attn
        norms = [norm.linear(c) for norm in (block.norm1, block.norm2, block.norm3)]
        found |= {
            f"{n}.norms": torch.stack(norms, dim=1),  # [steps, 3, 2 D_x]: scale, then shift
            f"{n}.keys": text.k_proj(context), f"{n}.values": text.v_proj(context),
            **linear(f"{n}.qkv", own.q_proj, own.k_proj, own.v_proj),
            **linear(f"{n}.out", own.out_proj), **linear(f"{n}.query", text.q_proj),
            **linear(f"{n}.read", text.out_proj), **linear(f"{n}.wide", block.mlp[0]),
            **linear(f"{n}.narrow", block.mlp[2]),
        }  # fmt: skip
    return found


def write_page(checkpoint, out):
    model, encoder, meta = sample.load(checkpoint)
    model, captions = model.cpu(), meta["captions"][:10]
    Z, mask = (tensor.cpu() for tensor in encoder([*captions, ""]))
    noise = torch.randn(1, *model.image_shape, generator=torch.Generator().manual_seed(0))
    found = {"noise": noise, **numbers_of(model, Z, mask)}
    places, start = {}, 0
    for name, tensor in found.items():
        places[name] = start, list(tensor.shape)
        start += tensor.numel()
    if 4 * start > LIMIT:
        raise flowclip.UserError(
            f"{4 * start:,} bytes are too many for a page; --checkpoint names a smaller model"
        )
    numbers = torch.cat([tensor.flatten() for tensor in found.values()]).numpy()
    tokens = [encoder.tokens(caption) for caption in captions]
    common = os.path.commonprefix(captions).rpartition(" ")[0]
    settings = model.config | dict(steps=STEPS, places=places, captions=captions, tokens=tokens)
    frame = Template((DOCS / "build/live.html").read_text())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(frame.substitute(
        settings=json.dumps(settings | dict(common=common)).replace("<", "\\u003c"),
        numbers=base64.b64encode(numbers.astype("<f4").tobytes()).decode(),
        script=(DOCS / "build/live.js").read_text(), steps=STEPS,
        style=re.findall("<style>(.*?)</style>", (DOCS / "build/page.html").read_text(), re.S)[1],
        count=f"{sum(weight.numel() for weight in model.parameters()):,}",
    ))  # fmt: skip
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def parse_args():
    parser = argparse.ArgumentParser(description="Write a page in which a trained model draws.")
    parser.add_argument("--checkpoint", metavar="PATH", help="(default: the newest in runs/)")
    parser.add_argument("--out", type=Path, default=DOCS / "page/live.html", metavar="PATH")
    return parser.parse_args()


def main():
    args = parse_args()
    write_page(args.checkpoint, args.out)


if __name__ == "__main__":
    flowclip.run_script(main)
