"""Draw images from a trained checkpoint: python sample.py "a photo of a dog" --cfg 7.5.

Read it from top to bottom: settings, load, picture, run. The equations are in flowclip.py.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import torch
import tyro
from einops import rearrange, repeat
from torchvision.io import write_png

import flowclip
from flowclip import UserError


# ---- Settings: one flag per field; the comment of a field is its help ----------------------------
@dataclass
class Config:
    """Draw images of prompts from a trained checkpoint."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  # none: ten captions of the training
    cfg: tuple[float, ...] = (7.5,)  # guidance scales
    n: int = 1  # images per prompt and scale
    steps: int = 50  # solver steps
    solver: Literal["euler", "heun"] = "euler"  # heun asks the model twice per step
    seed: int = 0  # of the noise, the same for each prompt and scale
    checkpoint: Path | None = None  # None: the newest runs/*/checkpoint.pt
    clip_weights: str | None = None  # PATH of the text weights; None: where training had them
    compile: bool = False  # torch.compile the model: for hundreds of images and more
    out: Path = Path("samples.png")  # a labelled grid: one row per prompt, for the first 16
    attention: Path | None = None  # also where each token is looked at, at the largest w
    save_dir: Path | None = None  # also each image alone, at its native size; none is overwritten


def check(config):
    """UserError for what would show after the drawing, or never."""
    if min(config.n, config.steps, len(config.cfg)) < 1:
        raise UserError("--n, --steps and the number of --cfg begin at 1")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"--seed is {config.seed}, expected 0 to below 2^63")
    if not all(abs(w) < 1e4 for w in config.cfg):
        raise UserError(f"--cfg {config.cfg}: expected numbers below 10,000")
    for path in filter(None, (config.out, config.attention)):
        if path.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UserError(f"{path}: expected a name like {path.stem}.png")


# ---- Load ----------------------------------------------------------------------------------------
def load(path, clip_weights=None):
    """-> (model, text encoder, meta) from a checkpoint alone; None: that of the newest run."""
    runs = Path("runs").glob("*/checkpoint.pt")
    path = path or max(runs, key=lambda run: run.stat().st_mtime, default=None)
    if path is None:
        raise UserError("no checkpoint in runs/: python train.py --demo makes one")
    device = flowclip.get_device()
    model, meta = flowclip.load_checkpoint(Path(path).expanduser(), device)
    weights = os.path.expanduser(clip_weights or meta["clip_weights"])
    encoder = flowclip.CLIPTextEncoder(meta["clip"], weights, device)
    null = encoder("")[0][0, -1].cpu()
    if not torch.allclose(null, torch.tensor(meta["clip_null"]), atol=0.05):
        raise UserError(f"{path} was trained with other text weights than {weights!r}")
    print(f"{path}: step {meta['step']:,}, text weights {meta['clip']} {weights!r}, on {device}")
    return model, encoder, meta


# ---- Picture -------------------------------------------------------------------------------------
def record_attention(model, count):
    """-> a list to which each cross-attention adds A [count, N, M], a mean over its heads."""
    maps = []

    def record(attention, inputs):
        A = attention.attention_weights(*(tensor[:count] for tensor in inputs))
        maps.append(A.float().mean(dim=1).cpu())

    for block in model.blocks:
        block.cross_attn.register_forward_pre_hook(record)
    return maps


def image_path(config, prompt, n, w):
    """A name of its own for each prompt, draw, scale, seed, solver and number of steps.

    Of a long prompt it has the beginning; a hash tells it from those that begin alike.
    """
    words = re.sub(r"[^\w\x80-\U0010ffff]+|\s+", "-", prompt.lower())[:40].strip("-") or "image"
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    name = f"{words}-{mark}-w{w}-seed{config.seed}-{n}-{config.solver}{config.steps}.png"
    return config.save_dir.expanduser() / name


def save_attention(path, prompts, tokens, images, A):
    """A row a prompt: its image, and for each token the map of A [B, N, M] over the image.

    A map is as bright as its brightest patch; the number is the token's share.
    """
    cells = []
    titles = []
    for image, weights, words in zip(images, A, tokens):
        gray = image.float().mean(dim=0) / 255
        grid = int(len(weights) ** 0.5)
        p = len(gray) // grid
        heat = repeat(weights, "(h w) m -> m (h p) (w q)", h=grid, p=p, q=p)
        heat = heat / (heat.amax(dim=(1, 2), keepdim=True) + 1e-9)
        color = torch.from_numpy(matplotlib.colormaps["inferno"](heat.numpy())[..., :3])
        maps = rearrange(0.35 * gray[..., None] + 0.65 * color, "m h w c -> m c h w")
        cells += [image, *(255 * maps).to(torch.uint8)]
        words += ["padding"] * (len(maps) - len(words))
        shares = zip(words, weights.mean(dim=0))
        titles += ["image", *(f"{word}  {share:.0%}" for word, share in shares)]
    flowclip.save_picture(path, cells, 1 + A.shape[2], titles, prompts)


# ---- The run -------------------------------------------------------------------------------------
def main():
    config = tyro.cli(Config, config=[tyro.conf.DisallowNone])
    check(config)
    model, encoder, meta = load(config.checkpoint, config.clip_weights)
    if config.compile:
        flowclip.compile_blocks(model)
    asked = config.prompts or meta["captions"][:10]
    prompts = [prompt.encode(errors="replace").decode() for prompt in asked]  # half an emoji: "?"
    prompts = list(dict.fromkeys(prompts))
    scales = list(dict.fromkeys(config.cfg))
    draws = [(prompt, n) for prompt in prompts for n in range(config.n)]
    noise = torch.randn(  # the same for each prompt and w
        config.n, *meta["image_shape"], generator=torch.Generator().manual_seed(config.seed)
    )

    def draw(draws, w):
        """The uint8 images [C, H, W], as they come: 128 at a time fit into memory."""
        for start in range(0, len(draws), 128):
            some, numbers = zip(*draws[start : start + 128])
            with flowclip.autocast(flowclip.get_device()):
                x = flowclip.sample_text_conditional(
                    model, encoder, some, meta["image_shape"], config.steps, w,
                    noise=noise[list(numbers)], solver=config.solver,
                )  # fmt: skip
            yield from flowclip.denormalize_images(x).cpu()

    if config.save_dir:
        for path in (image_path(config, *each, w) for w in scales for each in draws):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise UserError(f"--save-dir: {path} is there, and nothing is overwritten")
    columns = []
    most = max(1, 16 // len(scales))  # draws of a prompt and scale that the grid shows
    for w in scales:
        images = []
        for each, image in zip(draws, draw(draws, w)):
            images.append(image)
            if config.save_dir:
                write_png(image, str(image_path(config, *each, w)))
        columns.append(rearrange(images, "(p n) c h x -> p n c h x", n=config.n)[:16, :most])
    cells = rearrange(columns, "w p n c h x -> (p w n) c h x")
    titles = [f"w = {w:g}" for w in scales for _ in range(min(most, config.n))]
    flowclip.save_picture(config.out.expanduser(), cells, len(titles), titles, prompts)
    print(f"{config.out}: {len(cells)} of {len(draws) * len(scales)} images")
    if config.attention:
        w = max(scales) or 1  # w = 0 does not read the prompt
        rows = prompts[:16]
        maps = record_attention(model, len(rows))
        with torch.compiler.set_stance("force_eager"):  # hooks record nothing in compiled blocks
            images = list(draw([(prompt, 0) for prompt in rows], w))
        tokens = [encoder.tokens(prompt) for prompt in rows]
        path = config.attention.expanduser()
        save_attention(path, rows, tokens, images, sum(maps) / len(maps))


if __name__ == "__main__":
    flowclip.run_script(main)
