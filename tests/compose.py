"""How much of a caption is drawn? python tests/compose.py runs/shapes/checkpoint.pt

Draws captions of each kind of tests/shapes.py from a run on its pictures, looks at every image
(shapes.score), and prints a table: the share that is right, with its standard error. The rows are
added to compose.csv in the run folder. --real judges real pictures instead: the judge's own errors.
"""

import argparse
import csv
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).parent.parent))
import flowclip
from tests import shapes


def choose(captions, count, rand):
    """`count` of the captions, each as often as the others, but for one."""
    order = [i % len(captions) for i in range(count)]
    return [captions[i] for i in rand.permutation(order)]


def draw(model, encoder, captions, w, steps=50, seed=0):
    """-> uint8 images [B, H, W, 3] of B captions, 250 at a time."""
    device, rand = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    images = []
    for start in range(0, len(captions), 250):
        with flowclip.autocast(device):
            x = flowclip.sample_text_conditional(
                model, encoder, captions[start : start + 250], model.image_shape, steps, w,
                generator=rand,
            )  # fmt: skip
        images.append(flowclip.denormalize_images(x).cpu())
    return rearrange(torch.cat(images), "b c h w -> b h w c").numpy()


def shares(captions, images):
    """-> {score: (share that is right, its standard error)}, without what no caption asks for."""
    rows = [shapes.score(caption, image) for caption, image in zip(captions, images)]
    table = {}
    for name in shapes.SCORES:
        right = [row[name] for row in rows if row[name] is not None]
        if right:
            share = float(np.mean(right))
            table[name] = share, math.sqrt(share * (1 - share) / len(right))
    return table


def line(*cells):
    return "| " + " | ".join(cells) + " |"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--cfg", type=float, nargs="+", default=[3.0], metavar="W", help="guidance scales (3)")
    add("--n", type=int, default=500, metavar="N", help="prompts of each kind (500)")
    add("--steps", type=int, default=50, metavar="N", help="solver steps (50)")
    add("--seed", type=int, default=0, metavar="N", help="of captions and noise (0)")
    add("--real", action="store_true", help="judge real pictures, to see how often the judge errs")
    return parser.parse_args()


def main():
    args, begin = parse_args(), time.perf_counter()
    model, meta = flowclip.load_checkpoint(args.checkpoint, flowclip.get_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
    kinds, rand = shapes.split_captions(), np.random.default_rng(args.seed)
    print(line("captions", "w", *shapes.SCORES))
    print(line(*["---"] * (2 + len(shapes.SCORES))))
    for kind, captions in kinds.items():
        asked = choose(captions, args.n, rand)
        for w in args.cfg:
            if args.real:
                images = [shapes.draw_caption(c, meta["image_shape"][-1], rand) for c in asked]
            else:
                images = draw(model, encoder, asked, w, args.steps, args.seed)
            table = shares(asked, images)
            cells = {name: f"{share:.1%} ± {error:.1%}" for name, (share, error) in table.items()}
            row = (cells.get(name, "") for name in shapes.SCORES)
            print(line(kind, f"{w:g}", *row), flush=True)
            row = {"step": meta["step"], "kind": kind, "cfg": w, "n": args.n, "seed": args.seed}
            row |= {name: table.get(name, ("",))[0] for name in shapes.SCORES}
            path = args.checkpoint.with_name("compose.csv")
            new = not path.exists()
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    flowclip.run_script(main)
