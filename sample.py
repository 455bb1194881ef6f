"""Draw images from a trained checkpoint: python sample.py "a photo of a dog" --cfg 7.5. The mathematics is in flowclip.py."""

import argparse
import contextlib
import math
import re
import sys
import textwrap
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image

import flowclip

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def run_script(main, ways_on):
    """Run `main`; a mistake, or something that cannot be had, ends in one line on stderr and status 2."""
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        main()
    except (ValueError, OSError) as error:
        hint = f"; ways on: {ways_on}" if isinstance(error, ConnectionError | FileNotFoundError) else ""
        reason = str(error).strip().splitlines()[-1:]  # a worker's traceback ends in what matters
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(reason)}{hint}", file=sys.stderr)
        sys.exit(2)


def save_picture(path, images, columns, titles=None, rows=None):
    """A labelled grid of uint8 images [C, H, W] (None: an empty cell), every pixel a square of whole pixels."""
    zoom = -(-128 // images[0].shape[-1])  # a cell has at least 128 pixels
    cell, gap, left, top = images[0].shape[-1] * zoom, 8, 200 if rows else 8, 34 if titles else 8
    width, height = left + columns * (cell + gap), -(-len(images) // columns) * (cell + top) + gap
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    figure = plt.figure(figsize=((width + 0.5) / 100, (height + 0.5) / 100), dpi=100)

    def write(x, y, text, wrap, lines, **style):
        text = "\n".join(textwrap.wrap(text, wrap, max_lines=lines, placeholder=" ..."))
        figure.text(x / width, 1 - y / height, text, parse_math=False, **style)

    for i, image in enumerate(images):
        x, y = left + i % columns * (cell + gap), i // columns * (cell + top) + top
        if image is not None:
            pixels = repeat(image.cpu().expand(3, -1, -1), "c h w -> (h zh) (w zw) c", zh=zoom, zw=zoom)
            canvas[y : y + cell, x : x + cell] = pixels.numpy()
        if titles:
            write(x + cell / 2, y - 4, titles[i], 22, 2, ha="center", va="bottom", fontsize=8)
        if rows and i % columns == 0:
            write(x - 12, y + cell / 2, rows[i // columns], 26, 5, ha="right", va="center", fontsize=9)
    figure.figimage(canvas)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


@contextlib.contextmanager
def record_attention(model, batch):
    """While it is open, collects A [batch, N, M] of the first `batch` samples, a mean over heads, for every block and step."""
    maps = []

    def record(attention, inputs):
        maps.append(attention.attention_weights(*(tensor[:batch] for tensor in inputs)).float().mean(dim=1).cpu())

    with contextlib.ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.cross_attn.register_forward_pre_hook(record).remove)
        yield maps


def save_attention(path, images, A, tokens, prompts):
    """A row a prompt: its image, then for each token where it is looked at, as bright as its brightest patch, and its share."""
    columns, cells, titles = 1 + max(map(len, tokens)), [], []
    for image, weights, words in zip(images, A, tokens):
        gray, grid = image.float().mean(dim=0) / 255, math.isqrt(len(weights))
        heat = repeat(weights, "(h w) m -> m (h p) (w q)", h=grid, p=len(gray) // grid, q=len(gray) // grid)[: len(words)]
        color = torch.from_numpy(plt.get_cmap("inferno")(heat / heat.amax(dim=(1, 2), keepdim=True))[..., :3])
        overlay = rearrange((0.35 * gray[..., None] + 0.65 * color) * 255, "m h w c -> m c h w").to(torch.uint8)
        blank = columns - 1 - len(words)
        cells += [image, *overlay, *[None] * blank]
        titles += ["image", *(f"{word}  {share:.0%}" for word, share in zip(words, weights.mean(dim=0))), *[""] * blank]
    save_picture(path, cells, columns, titles, prompts)


def load(path=None, clip_weights=None):
    """-> (model, text encoder, meta) from a checkpoint alone; other text weights than the training's are refused."""
    found = sorted(Path("runs").glob("*/checkpoint.pt"), key=lambda checkpoint: checkpoint.stat().st_mtime)
    if not path and not found:
        raise FileNotFoundError("no checkpoint in runs/*/checkpoint.pt")
    path, device = path or found[-1], flowclip.get_device()
    model, meta = flowclip.load_checkpoint(path, device)
    weights = clip_weights or meta["clip_weights"]
    encoder = flowclip.CLIPTextEncoder(meta["clip"], weights, device)
    null = encoder.encode("", return_pooled=True)[1][0].cpu()
    if not torch.allclose(null, torch.tensor(meta.get("clip_null", null.tolist())), rtol=1e-2, atol=1e-2):
        raise ValueError(f"text weights {weights!r} differ from those that {path} was trained with, {meta['clip_weights']!r}")
    print(f"{path}: step {meta['step']:,}, text weights {meta['clip']} {weights!r}, on {device}")
    return model, encoder, meta


def parse_args():
    parser = argparse.ArgumentParser(description="Draw images of prompts from a trained checkpoint.")
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help='for example "a photo of a dog"; "" draws without text')
    add("--cfg", type=float, nargs="+", default=[7.5], metavar="W", help="guidance scales; several make columns (7.5)")
    add("--steps", type=int, default=50, help="solver steps (50)")
    add("--solver", choices=["euler", "heun"], default="euler", help="heun costs two evaluations a step (euler)")
    add("--n", type=int, default=1, help="images a prompt and scale (1)")
    add("--seed", type=int, default=0, help="of the noise, the same down each column (0)")
    add("--checkpoint", type=Path, metavar="PATH", help="default: the newest runs/*/checkpoint.pt")
    add("--clip-weights", metavar="PATH", help="where the text weights are, if not where training had them")
    add("--out", type=Path, default=Path("samples.png"), metavar="PATH", help="the labelled grid (samples.png)")
    add("--attention", type=Path, metavar="PATH", help="also a picture of where each token is looked at")
    add("--save-dir", type=Path, metavar="DIR", help="also each image alone, at its native size")
    args = parser.parse_args()
    if args.n < 1 or args.steps < 1:
        raise ValueError(f"--n is {args.n} and --steps is {args.steps}, expected at least 1")
    return args


def main():
    args = parse_args()
    model, encoder, meta = load(args.checkpoint, args.clip_weights)
    prompts, shape, device = args.prompts, meta["image_shape"], next(model.parameters()).device
    noise = torch.randn(args.n, *shape, generator=torch.Generator().manual_seed(args.seed))

    def draw(prompts, w, noise):
        with flowclip.autocast(device):
            x = flowclip.sample_text_conditional(model, encoder, prompts, shape, args.steps, w, noise=noise, solver=args.solver)
        return [*flowclip.denormalize_images(x).cpu()]

    jobs = [(prompt, w, i) for prompt in prompts for w in args.cfg for i in range(args.n)]  # row by row
    images = []
    for part in (jobs[k : k + 128] for k in range(0, len(jobs), 128)):
        texts, scales, draws = map(list, zip(*part))
        w = scales[0] if len(set(scales)) == 1 else torch.tensor(scales, device=device)
        images += draw(texts, w, noise[draws])

    few = max(1, 16 // len(args.cfg))  # draws in the picture; --save-dir keeps them all
    shown = [image for (_, _, i), image in zip(jobs, images) if i < few]
    first = [(w, i) for _, w, i in jobs[: len(args.cfg) * args.n] if i < few]
    headers = [f"w = {w:g}" + (f", draw {i + 1}" if args.n > 1 else "") for w, i in first]
    if len(headers) > 1:
        save_picture(args.out, shown, len(headers), headers + [""] * (len(shown) - len(headers)), rows=prompts)
    else:
        save_picture(args.out, shown, min(5, len(prompts)), titles=prompts)
    print(f"{args.out}: {len(shown)} of {len(images)} images, {args.steps} {args.solver} steps")

    if args.save_dir:
        args.save_dir.mkdir(parents=True, exist_ok=True)
        for number, ((prompt, w, _), image) in enumerate(zip(jobs, images)):
            slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")  # whatever the prompt, no path in it
            pixels = rearrange(image, "c h w -> h w c").numpy().squeeze()
            Image.fromarray(pixels).save(args.save_dir / f"{number:04d}-{slug}-w{w:g}.png")
        print(f"{args.save_dir}: {len(images)} images of {shape[2]}x{shape[1]}")
    if args.attention:
        w = next((w for w in args.cfg if w != 0), 1)  # w = 0 would not read the prompt
        with record_attention(model, len(prompts)) as maps:
            drawn = draw(prompts, w, noise[:1].expand(len(prompts), *shape))
        tokens = [encoder.tokens(prompt) for prompt in prompts]
        save_attention(args.attention, drawn, torch.stack(maps).mean(dim=0), tokens, prompts)
        print(f"{args.attention}: cross-attention at w = {w:g}, a mean over blocks, heads and steps")


if __name__ == "__main__":
    run_script(main, "--checkpoint PATH, --clip-weights PATH (a local copy), or first python train.py --demo")
