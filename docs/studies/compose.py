"""How much of a caption is drawn? python docs/studies/compose.py runs/shapes/checkpoint.pt

Draws captions of each kind of draw_shapes.py from a run on its pictures, looks at every image
(draw_shapes.score), and prints a table: the share that is right, with its standard error. The rows
are added to compose.csv in the run folder. --real judges real pictures instead: the judge's own
errors.
"""

import argparse
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce

sys.path.insert(0, str(Path(__file__).parents[2]))
import draw_shapes
import judge

import flowclip
import sample


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
    rows = [draw_shapes.score(caption, image) for caption, image in zip(captions, images)]
    table = {}
    for name in draw_shapes.SCORES:
        right = [row[name] for row in rows if row[name] is not None]
        if right:
            share = float(np.mean(right))
            table[name] = share, math.sqrt(share * (1 - share) / len(right))
    return table


def look(model, encoder, captions, w, steps=50, seed=0):
    """Where do the words of an object look, while captions of two objects are drawn?

    -> {(part of the walk, block): (share on its own object, on the other one, by chance)}, and how
    many pictures: those with both objects, of words of one token each. The share is that of a
    word's map, over the patches, which falls on the pixels of an object of the finished picture;
    chance is the share of the picture that the object covers.
    """
    maps = sample.record_attention(model, len(captions))
    images = draw(model, encoder, captions, w, steps, seed)
    A = rearrange(torch.stack(maps), "(s l) b n m -> s l b n m", s=steps)
    p = model.patch_size
    shares = []
    for b, (caption, image) in enumerate(zip(captions, images)):
        names, _ = draw_shapes.parse(caption)
        covers = {seen.name: cover for seen, cover in draw_shapes.find(image)}
        tokens = encoder.tokens(caption)
        if sorted(covers) != sorted(names) or len(tokens) != len(caption.split()) + 2:
            continue  # another picture than asked, or a word of two tokens ("cyan")
        pixels = np.stack([covers[name] for name in names])  # [2, H, W]
        cells = reduce(pixels, "o (h p) (w q) -> o (h w)", "mean", p=p, q=p)
        for k in range(len(names)):
            start = len(tokens) - 3 if k else 2  # [BOS] a red circle ... a blue square [EOS]
            for m in (start, start + 1):
                weights = A[:, :, b, :, m]
                weights = weights / weights.sum(dim=-1, keepdim=True)
                own, other = (weights @ torch.tensor(cells[o]).float() for o in (k, 1 - k))
                chance = torch.full_like(own, float(cells[k].mean()))
                shares.append(torch.stack([own, other, chance], dim=-1))  # [steps, blocks, 3]
    mean = torch.stack(shares).mean(dim=0)
    thirds = {"early": mean[: steps // 3], "middle": mean[steps // 3 : -(steps // 3)]}
    thirds["late"] = mean[-(steps // 3) :]
    return {
        (part, block): tuple(rows[:, block].mean(dim=0).tolist())
        for part, rows in thirds.items()
        for block in range(mean.shape[1])
    }, len(shares) // 4


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
    add("--look", action="store_true", help="where do the words look, in 200 drawings of two?")
    return parser.parse_args()


def main():
    args, begin = parse_args(), time.perf_counter()
    model, meta = flowclip.load_checkpoint(args.checkpoint, flowclip.get_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
    kinds, rand = draw_shapes.split_captions(), np.random.default_rng(args.seed)
    if args.look:
        table, count = look(model, encoder, choose(kinds["two"], 200, rand), args.cfg[0])
        print(line("part", "block", "own object", "the other", "chance"))
        print(line(*["---"] * 5))
        for (part, block), row in table.items():
            print(line(part, str(block + 1), *(f"{share:.1%}" for share in row)))
        print(f"{count} pictures of two objects")
        return
    print(line("captions", "w", *draw_shapes.SCORES))
    print(line(*["---"] * (2 + len(draw_shapes.SCORES))))
    for kind, captions in kinds.items():
        asked = choose(captions, args.n, rand)
        for w in args.cfg:
            if args.real:
                images = [draw_shapes.draw_caption(c, meta["image_shape"][-1], rand) for c in asked]
            else:
                images = draw(model, encoder, asked, w, args.steps, args.seed)
            table = shares(asked, images)
            cells = {name: f"{share:.1%} ± {error:.1%}" for name, (share, error) in table.items()}
            row = (cells.get(name, "") for name in draw_shapes.SCORES)
            print(line(kind, f"{w:g}", *row), flush=True)
            row = {"step": meta["step"], "kind": kind, "cfg": w, "n": args.n, "seed": args.seed}
            row |= {name: table.get(name, ("",))[0] for name in draw_shapes.SCORES}
            judge.add_row(args.checkpoint.with_name("compose.csv"), row)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    flowclip.run_script(main)
