"""Draw images from a trained checkpoint: python sample.py "a photo of a dog" --cfg 7.5.

Read it from top to bottom: settings, load, picture, run. The equations are in flowclip.py.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize, to_pil_image

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
    if not all(abs(w) < 1e4 for w in config.cfg):
        raise UserError(f"--cfg {config.cfg}: expected numbers below 10,000")
    if config.attention == config.out:
        raise UserError(f"--out and --attention are both {config.out}")
    for path in config.out, config.attention or config.out:
        if path.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UserError(f"--out or --attention {path}: expected a name like {path.stem}.png")


# ---- Load ----------------------------------------------------------------------------------------
def load(path, clip_weights=None):
    """-> (model, text encoder, meta) from a checkpoint alone; None: that of the newest run."""
    path = path or max(Path("runs").glob("*/checkpoint.pt"), key=os.path.getmtime, default=None)
    if path is None:
        raise UserError("no checkpoint in runs/: python train.py --demo makes one")
    device = flowclip.get_device()
    model, meta = flowclip.load_checkpoint(Path(path).expanduser(), device)
    weights = clip_weights or meta["clip_weights"]
    encoder = flowclip.CLIPTextEncoder(meta["clip"], weights, device)
    null = encoder("")[0][0, -1].cpu()
    if not torch.allclose(null, torch.tensor(meta["clip_null"]), atol=0.05):
        raise UserError(f"{path} was trained with other text weights than {weights!r}")
    print(f"{path}: step {meta['step']:,}, text weights {meta['clip']} {weights!r}, on {device}")
    return model, encoder, meta


# ---- Picture -------------------------------------------------------------------------------------
def image_path(config, prompt, w, n):
    """A name of its own for each prompt, draw, scale, seed, solver and number of steps.

    Of a long prompt it has the beginning; a hash tells it from those that begin alike.
    """
    words = re.sub(r"[^\w\x80-\U0010ffff]+|\s+", "-", prompt.lower())[:40].strip("-") or "image"
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    name = f"{words}-{mark}-w{w}-seed{config.seed}-{n}-{config.solver}{config.steps}.png"
    return config.save_dir.expanduser() / name


def record_attention(model, count):
    """-> a list to which each cross-attention adds A [count, N, M], a mean over its heads."""
    maps = []

    def record(attention, inputs):
        A = attention.attention_weights(*(tensor[:count] for tensor in inputs))
        maps.append(A.float().mean(dim=1).cpu())

    for block in model.blocks:
        block.cross_attn.register_forward_pre_hook(record)
    return maps


def save_attention(path, prompts, tokens, images, A):
    """A row a prompt: its image, and for each token the map of A [B, N, M] over the image.

    A map is as bright as its brightest patch; the number is the token's share.
    """
    orange = torch.tensor([1.0, 0.6, 0.1]).reshape(3, 1, 1)
    heat = flowclip.unpatchify(A / (A.amax(dim=1, keepdim=True) + 1e-9), 1)  # [B, M, h, w]
    heat = resize(heat, images[0].shape[1:], 0)  # [B, M, H, W], every patch a square
    cells = []
    titles = []
    for image, glow, shares, words in zip(images, heat, A.mean(dim=1), tokens):
        maps = 0.35 * image.float().mean(dim=0) + 0.65 * 255 * glow[:, None] * orange
        cells += [image, *maps.byte()]
        named = zip_longest(words, shares, fillvalue="padding")
        titles += ["image", *(f"{word}  {share:.0%}" for word, share in named)]
    flowclip.save_picture(path, cells, 1 + A.shape[2], titles, prompts)


# ---- The run -------------------------------------------------------------------------------------
def main():
    config = tyro.cli(Config, config=[tyro.conf.DisallowNone])
    check(config)
    model, encoder, meta = load(config.checkpoint, config.clip_weights)
    if config.compile:
        flowclip.compile_blocks(model)
    asked = config.prompts or meta["captions"][:10]
    prompts = dict.fromkeys(prompt.encode(errors="replace").decode() for prompt in asked)
    prompts = list(prompts)  # each once; half an emoji is "?"
    scales = dict.fromkeys(config.cfg)
    jobs = [*product(prompts, scales, range(config.n))]
    random = torch.Generator().manual_seed(config.seed % 2**63)
    noise = torch.randn(config.n, *meta["image_shape"], generator=random)

    def draw(jobs):
        """The uint8 images [C, H, W], as they come: 128 at a time fit into memory."""
        for texts, w, draws in DataLoader(jobs, 128):
            w = w if len(scales) > 1 else w[0]  # 0 or 1 alone asks once a step
            with flowclip.autocast(flowclip.get_device()):
                x = flowclip.sample_text_conditional(
                    model, encoder, texts, meta["image_shape"], config.steps, w,
                    noise=noise[draws], solver=config.solver,
                )  # fmt: skip
            yield from flowclip.denormalize_images(x).cpu()

    if config.save_dir:
        config.save_dir.expanduser().mkdir(parents=True, exist_ok=True)
        for path in (image_path(config, *job) for job in jobs):
            if path.exists():
                raise UserError(f"--save-dir: {path} is there, and nothing is overwritten")
    cells = []
    shown = 16 // len(scales) or 1  # draws of a prompt and scale in the grid
    for job, image in zip(jobs, draw(jobs)):
        if config.save_dir:
            to_pil_image(image).save(image_path(config, *job))
        if job[2] < shown and job[0] in prompts[:16]:
            cells.append(image)
    titles = [f"w = {w:g}" for w in scales for _ in range(config.n)[:shown]]
    flowclip.save_picture(config.out.expanduser(), cells, len(titles), titles, prompts)
    print(f"{config.out}: {len(cells)} of {len(jobs)} images")
    if config.attention:
        rows = prompts[:16]
        maps = record_attention(model, len(rows))
        with torch.compiler.set_stance("force_eager"):  # hooks record nothing in compiled blocks
            images = list(draw([(prompt, max(scales) or 1, 0) for prompt in rows]))
        tokens = [encoder.tokens(prompt) for prompt in rows]
        path = config.attention.expanduser()
        save_attention(path, rows, tokens, images, sum(maps) / len(maps))


if __name__ == "__main__":
    flowclip.run_script(main)
