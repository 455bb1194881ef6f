"""Draw images from a trained checkpoint: python sample.py "a photo of a dog" --cfg 7.5. The mathematics is in flowclip.py."""

import argparse
import importlib.util
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import warnings
from pathlib import Path

import matplotlib
import torch
from einops import rearrange, repeat
from matplotlib.figure import Figure
from PIL import Image

import flowclip


def run_script(main, ways_on):
    """Run `main`; a mistake, or something that cannot be had, ends in one line on stderr and status 2."""
    warnings.showwarning = lambda message, *_: print(f"note: {message}")
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # a label shows a box for it
    try:
        main()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise  # a mistake of ours
        hint = f"; ways on: {ways_on}" if type(error) in (ConnectionError, FileNotFoundError) else ""
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())[:500]}{hint}", file=sys.stderr)
        sys.exit(2)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(f"{message}; --help shows all options")


def number(kind, low, high=math.inf):
    """The argparse type of an int or a float from `low` to `high`."""
    def convert(text):
        value = kind(text)
        if not low <= value <= high:  # nan is outside, too
            raise argparse.ArgumentTypeError(f"{text!r} is not from {low:g} to {high:g}")
        return value

    convert.__name__ = kind.__name__
    return convert


def check_place(path):
    """ValueError unless a file can be made at `path`, together with the folders above it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"no file can be written at {path}")


def can_compile(device):
    """Is there what torch.compile needs: a C++ compiler and, for a GPU, Triton?"""
    compiler = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")))
    return compiler and (device.type != "cuda" or importlib.util.find_spec("triton") is not None)


def compile_blocks(model):
    """torch.compile, in place. Equal blocks share one compilation, which takes a fraction of the time of the whole model's."""
    device = next(model.parameters()).device
    if not can_compile(device):
        raise ValueError(f"--compile: no C++ compiler{' or no Triton' if device.type == 'cuda' else ''} is here")
    for block in model.blocks:
        block.compile()


def save_picture(path, images, columns, titles=(), rows=()):
    """A labelled grid of uint8 images [C, H, W] (None: an empty cell), every pixel a square."""
    height = -(-len(images) // columns)
    figure = Figure(figsize=(1.4 * columns + 2 * bool(rows), 1.7 * height), dpi=110, layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images):
        if image is not None:
            axis.imshow(rearrange(image.cpu().expand(3, -1, -1), "c h w -> h w c").numpy(), interpolation="nearest")
    for axis, title in zip(axes.flat, titles):
        axis.set_title(textwrap.fill(title, 22, max_lines=2, placeholder=" ..."), fontsize=8, parse_math=False)
    for axis, row in zip(axes[:, 0], rows):
        text = textwrap.fill(row, 26, max_lines=5, placeholder=" ...")
        axis.text(-0.1, 0.5, text, fontsize=9, ha="right", va="center", transform=axis.transAxes, parse_math=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def record_attention(model, count):
    """-> a list to which each cross-attention adds its A for the first `count` images, a mean over heads: [count, N, M]."""
    maps = []

    def record(attention, inputs):
        maps.append(attention.attention_weights(*(tensor[:count] for tensor in inputs)).float().mean(dim=1).cpu())

    for block in model.blocks:
        block.cross_attn.register_forward_pre_hook(record)
    return maps


def save_attention(path, prompts, tokens, images, A):
    """A row per prompt: its image, then for each token where it is looked at, as bright as its brightest patch, and its share
    of A [B, N, M]."""
    columns, cells, titles = 1 + max(map(len, tokens)), [], []
    for image, weights, words in zip(images, A, tokens):
        gray, grid = image.float().mean(dim=0) / 255, math.isqrt(len(weights))
        heat = repeat(weights, "(h w) m -> m (h p) (w q)", h=grid, p=len(gray) // grid, q=len(gray) // grid)[: len(words)]
        color = torch.from_numpy(matplotlib.colormaps["inferno"](heat / heat.amax(dim=(1, 2), keepdim=True))[..., :3])
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
    if not torch.allclose(null, torch.tensor(meta["clip_null"]), rtol=1e-2, atol=1e-2):
        raise ValueError(f"text weights {weights!r} differ from those that {path} was trained with, {meta['clip_weights']!r}")
    print(f"{path}: step {meta['step']:,}, text weights {meta['clip']} {weights!r}, on {device}")
    return model, encoder, meta


def parse_args():
    parser = Parser(description="Draw images of prompts from a trained checkpoint.")
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT", help='for example "a photo of a dog"; "" draws without text')
    add("--cfg", type=number(float, -1000, 1000), nargs="+", default=[7.5], metavar="W", help="guidance scales: columns (7.5)")
    add("--steps", type=number(int, 1, 10_000), default=50, metavar="N", help="solver steps (50)")
    add("--solver", choices=["euler", "heun"], default="euler", help="heun costs two evaluations a step (euler)")
    add("--n", type=number(int, 1, 10_000), default=1, metavar="N", help="images a prompt and scale (1)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N", help="of the noise, the same down each column (0)")
    add("--checkpoint", type=Path, metavar="PATH", help="default: the newest runs/*/checkpoint.pt")
    add("--clip-weights", metavar="PATH", help="where the text weights are, if not where training had them")
    add("--compile", action="store_true", help="torch.compile the model: for hundreds of images and more")
    add("--out", type=Path, default=Path("samples.png"), metavar="PATH", help="the labelled grid (samples.png)")
    add("--attention", type=Path, metavar="PATH", help="also a picture of where each token is looked at")
    add("--save-dir", type=Path, metavar="DIR", help="also each image alone, at its native size")
    args = parser.parse_args()
    for path in filter(None, (args.out, args.attention)):
        check_place(path)
        if path.suffix.lower() not in (".png", ".jpg", ".pdf"):
            raise ValueError(f"{path} is no name of a picture, expected one that ends in .png, .jpg or .pdf")
    if args.save_dir:
        check_place(args.save_dir / "0.png")
    for prompt in args.prompts:
        if not prompt.encode().strip():  # (UnicodeEncodeError: bytes that are no text)
            print('note: the prompt "" is drawn without text')
    return args


def main():
    args = parse_args()
    model, encoder, meta = load(args.checkpoint, args.clip_weights)
    if args.compile:
        compile_blocks(model)
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
        images += draw(texts, scales[0] if len(set(scales)) == 1 else torch.tensor(scales, device=device), noise[draws])

    few = max(1, 16 // len(args.cfg))  # draws in the picture; --save-dir keeps them all
    shown = [image for (_, _, i), image in zip(jobs, images) if i < few]
    columns = [(w, i) for _, w, i in jobs[: len(args.cfg) * args.n] if i < few]
    titles = [f"w = {w:g}" + (f", draw {i + 1}" if args.n > 1 else "") for w, i in columns]
    save_picture(args.out, shown, len(columns), titles, prompts)
    print(f"{args.out}: {len(shown)} of {len(images)} images, {args.steps} {args.solver} steps")

    if args.save_dir:
        args.save_dir.mkdir(parents=True, exist_ok=True)
        for index, ((prompt, w, _), image) in enumerate(zip(jobs, images)):
            slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")  # whatever the prompt, no path in it
            pixels = rearrange(image, "c h w -> h w c").numpy().squeeze()
            Image.fromarray(pixels).save(args.save_dir / f"{index:04d}-{slug}-w{w:g}.png")
        print(f"{args.save_dir}: {len(images)} images of {shape[2]}x{shape[1]}")
    if args.attention:
        w = next((w for w in args.cfg if w != 0), 1)  # w = 0 would not read the prompt
        tokens, maps = [encoder.tokens(prompt) for prompt in prompts], record_attention(model, len(prompts))
        with torch.compiler.set_stance("force_eager"):  # else it records nothing
            images = draw(prompts, w, noise[:1].expand(len(prompts), *shape))
        save_attention(args.attention, prompts, tokens, images, sum(maps) / len(maps))
        print(f"{args.attention}: cross-attention at w = {w:g}")


if __name__ == "__main__":
    run_script(main, "--checkpoint PATH, --clip-weights PATH (a local copy), or first python train.py --demo")
