"""Draw images from a trained checkpoint: python sample.py "a photo of a dog" --cfg 7.5.

Read it from top to bottom: settings, load, picture, run. The equations are in flowclip.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import tyro
from einops import rearrange, repeat
from torchvision.io import write_png

import flowclip


# ---- Settings: one flag per field; the comment of a field is its help ----------------------------
@dataclass
class Config:
    """Draw images of prompts from a trained checkpoint."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()  # none: ten captions of the training
    cfg: tuple[float, ...] = (7.5,)  # guidance scales
    n: int = 1  # images per prompt and scale
    steps: int = 50  # solver steps
    solver: str = "euler"  # euler, or heun, which asks the model twice per step
    seed: int = 0  # of the noise, the same for each prompt and scale
    checkpoint: Path | None = None  # None: the newest runs/*/checkpoint.pt
    clip_weights: str | None = None  # PATH of the text weights; None: where training had them
    compile: bool = False  # torch.compile the model: for hundreds of images and more
    out: Path = Path("samples.png")  # a labelled grid: one row per prompt, for the first 16
    attention: Path | None = None  # also where each token is looked at, at the largest w
    save_dir: Path | None = None  # also each image alone, at its native size


# ---- Load ----------------------------------------------------------------------------------------
def load(path, clip_weights=None):
    """-> (model, text encoder, meta) from a checkpoint alone; None: that of the newest run."""
    runs = Path("runs").glob("*/checkpoint.pt")
    path = path or max(runs, key=lambda run: run.stat().st_mtime, default=None)
    if path is None:
        raise ValueError("no checkpoint in runs/: python train.py --demo makes one")
    device = flowclip.get_device()
    model, meta = flowclip.load_checkpoint(path, device)
    weights = clip_weights or meta["clip_weights"]
    encoder = flowclip.CLIPTextEncoder(meta["clip"], weights, device)
    null = encoder("")[0][0, -1].cpu()
    if not torch.allclose(null, torch.tensor(meta["clip_null"]), atol=0.05):
        raise ValueError(f"{path} was trained with other text weights than {weights!r}")
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


def save_image(folder, i, prompt, w, n, image):
    """Write draw n of prompt i at the scale w alone; no prompt names another folder."""
    slug = re.sub("[^a-z0-9]+", "-", prompt.lower())[:60].strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    write_png(image, str(folder / f"{i:04d}-{slug}-w{w:g}-{n}.png"))


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
    model, encoder, meta = load(config.checkpoint, config.clip_weights)
    if config.compile:
        for block in model.blocks:
            block.compile()

    def draw(prompts, noise, w):
        with flowclip.autocast(flowclip.get_device()):
            x = flowclip.sample_text_conditional(
                model, encoder, prompts, meta["image_shape"], config.steps, w,
                noise=noise, solver=config.solver,
            )  # fmt: skip
        return flowclip.denormalize_images(x).cpu()

    prompts = config.prompts or meta["captions"][:10]
    noise = torch.randn(  # the same for each prompt and w
        config.n, *meta["image_shape"], generator=torch.Generator().manual_seed(config.seed)
    )
    jobs = [(i, n) for i in range(len(prompts)) for n in range(config.n)]
    page = max(1, 16 // len(config.cfg))
    shown = {}  # (prompt, w, draw) -> image: what the grid shows
    for start in range(0, len(jobs), 128):  # so many fit into memory
        part = jobs[start : start + 128]
        for column, w in enumerate(config.cfg):
            images = draw([prompts[i] for i, _ in part], noise[[n for _, n in part]], w)
            for (i, n), image in zip(part, images):
                if config.save_dir:
                    save_image(config.save_dir, i, prompts[i], w, n, image)
                if i < 16 and n < page:
                    shown[i, column, n] = image
    cells = [shown[place] for place in sorted(shown)]
    titles = [f"w = {w:g}" for w in config.cfg for _ in range(min(page, config.n))]
    flowclip.save_picture(config.out, cells, len(titles), titles, prompts)
    print(f"{config.out}: {len(cells)} of {len(jobs) * len(config.cfg)} images")
    if config.attention:
        w = max(config.cfg) or 1  # w = 0 does not read the prompt
        prompts = prompts[:16]
        maps = record_attention(model, len(prompts))
        with torch.compiler.set_stance("force_eager"):  # hooks record nothing in compiled blocks
            images = draw(prompts, noise[:1].expand(len(prompts), -1, -1, -1), w)
        tokens = [encoder.tokens(prompt) for prompt in prompts]
        save_attention(config.attention, prompts, tokens, images, sum(maps) / len(maps))


if __name__ == "__main__":
    flowclip.run_script(main)
