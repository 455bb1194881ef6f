"""The pictures of the chapters: python docs/studies/figures.py NAME ... --checkpoint PATH

A function a figure. Each writes docs/images/NAME.png from one checkpoint; `idea`, `cosines`,
`sinusoids` and `growth` need none.
"""

import argparse
import copy
import csv
import math
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import benchmark
import draw_shapes
import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import flowclip  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402

PROMPTS = flowclip.make_captions(flowclip.CIFAR10_CLASSES)


class Artist:
    """The model of a checkpoint, its text encoder, and the velocity of a prompt at the scale w."""

    def __init__(self, path, w):
        self.w = w
        self.model, self.encoder, self.meta = sample.load(path)
        self.device, self.folder = next(self.model.parameters()).device, Path(path).parent
        self.shape = self.meta["image_shape"]
        training = flowclip.read_checkpoint(path)["training"]
        self.run, self.held_out = training["run"], training["state"].get("held_out_losses", [])

    def noise(self, count, seed=0):
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def draw(self, prompts, noise, w=None):
        """-> uint8 images [B, C, H, W]."""
        w = self.w if w is None else w
        with flowclip.autocast(self.device):
            x = flowclip.sample_text_conditional(
                self.model, self.encoder, prompts, self.shape, cfg_scale=w, noise=noise
            )
        return flowclip.denormalize_images(x).cpu()

    @torch.no_grad()
    def walk(self, prompts, noise, steps=50, callback=None):
        """integrate() with a callback(n, t, x), as sample_text_conditional does it."""
        Z, mask = self.encoder([*prompts, ""])

        def velocity(x, t):
            return flowclip.cfg_velocity(
                self.model, x, t, Z[:-1], mask[:-1], Z[-1:], mask[-1:], self.w
            )

        call = callback and (lambda n, t, x: callback(n, t, x, velocity))
        return flowclip.integrate(velocity, noise.to(self.device), steps, callback=call)


def show(axis, image, title=""):
    """One uint8 image [C, H, W], every pixel a square."""
    pixels = rearrange(image.cpu().expand(3, -1, -1), "c h w -> h w c")
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=8)


def bare(*axes):
    """Without ticks and frames."""
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def grid(rows, columns, width=1.1, height=1.25, left=1.0):
    figure = Figure(figsize=(width * columns + left, height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    bare(*axes.flat)
    return figure, axes


def name_rows(axes, names):
    for axis, name in zip(axes[:, 0], names):
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)


# ---- The idea ----
def two_dots(x, t):
    """E[v | x_t] of images that are a single number, -1 or 1, each as often: (x_t - E[x_0]) / t."""
    return (x - torch.tanh((1 - t) * x / t**2)) / t


def idea(_):
    """Two dots and a Gaussian: lines that cross, mean paths that do not, one step and four."""
    noise = torch.special.ndtri((torch.arange(24) + 0.5) / 24)  # evenly through a Gaussian
    figure = Figure(figsize=(11, 3), dpi=110, layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    for start, dot in zip(noise, torch.tensor([-1.0, 1.0]).repeat(12)):
        axes[0].plot([1, 0], [start, dot], "C0" if dot < 0 else "C1", linewidth=0.8)
    for axis, steps in zip(axes[1:], (200, 1, 4)):
        times, states = [1], [noise]

        def keep(n, t, x, times=times, states=states):
            times.append(t)
            states.append(x)

        flowclip.integrate(two_dots, noise, steps, callback=keep)
        for path in torch.stack(states).T:
            style = ("C0" if path[0] < 0 else "C1") + ("." if steps < 9 else "") + "-"
            axis.plot(times, path, style, linewidth=0.8)
    titles = "training: lines that cross", "the mean velocity", "one Euler step", "four Euler steps"
    for axis, title in zip(axes, titles):
        axis.plot([0, 0], [-1, 1], "ko", clip_on=False)
        axis.set(title=title, xlabel="t", xlim=(1, 0))
    axes[0].set_ylabel("$x_t$")
    return figure


# ---- Chapter 4 ----
# Between projected pooled vectors of the real ViT-B/32, "a airplane", "a car", "a bird" ...
# "a truck"; from the embeddings that facebookresearch/Detic publishes.
REAL = """
1.00 .88 .88 .85 .81 .86 .82 .86 .87 .86
.88 1.00 .88 .90 .83 .90 .84 .88 .88 .93
.88 .88 1.00 .91 .87 .91 .88 .90 .87 .87
.85 .90 .91 1.00 .87 .94 .86 .90 .86 .86
.81 .83 .87 .87 1.00 .88 .83 .89 .81 .83
.86 .90 .91 .94 .88 1.00 .88 .92 .87 .88
.82 .84 .88 .86 .83 .88 1.00 .85 .82 .83
.86 .88 .90 .90 .89 .92 .85 1.00 .86 .88
.87 .88 .87 .86 .81 .87 .82 .86 1.00 .88
.86 .93 .87 .86 .83 .88 .83 .88 .88 1.00
"""


def cosines(_):
    """Which prompts does the text tower hold for similar?

    The untrained one (computed here) beside the real ViT-B/32 (published).
    """
    encoder = flowclip.CLIPTextEncoder(pretrained="untrained")
    pooled = torch.nn.functional.normalize(encoder.encode(PROMPTS, return_pooled=True)[1], dim=-1)
    real = np.array(REAL.split(), dtype=float).reshape(10, 10)
    figure = Figure(figsize=(9.5, 4.6), dpi=110, layout="constrained")
    tables = {"untrained tower": (pooled @ pooled.T).numpy(), "OpenAI's ViT-B/32": real}
    for axis, (title, table) in zip(figure.subplots(1, 2), tables.items()):
        off = table[~np.eye(10, dtype=bool)]
        table = np.where(np.eye(10), np.nan, table)
        image = axis.imshow(table, cmap="viridis", vmin=off.min(), vmax=off.max())
        names = [name[:10] for name in flowclip.CIFAR10_CLASSES]
        axis.set_xticks(range(10), names, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(10), names, fontsize=8)
        axis.set_title(f"{title}: {off.min():.2f} to {off.max():.2f}", fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.8)
    return figure


# ---- Chapter 5 ----
def show_map(axis, weights, brightest, numbers=False):
    """The weights [N] of one token over the patches, black to white; in numbers if asked."""
    side = math.isqrt(len(weights))
    picture = axis.imshow(weights.view(side, side), cmap="inferno", vmin=0, vmax=brightest)
    for n, share in enumerate(weights if numbers else ()):
        colour = "black" if share > brightest / 2 else "white"
        place = dict(ha="center", va="center", fontsize=8)
        axis.text(n % side, n // side, f"{share:.0%}", color=colour, **place)
    return picture


def attention(artist):
    """From where one word is read: beside the image at its scale, then by each head alone.

    Cross-attention of the last word before [EOS], a mean over the steps.
    """
    prompt, steps, maps = "a photo of a three", 50, []
    artist = copy.deepcopy(artist)  # the other figures' model stays without hooks

    def keep(layer, inputs):
        maps.append(layer.attention_weights(*(tensor[:1] for tensor in inputs)).float().cpu())

    for block in artist.model.blocks:
        block.cross_attn.register_forward_pre_hook(keep)
    image = artist.draw([prompt], artist.noise(1))[0]
    A = rearrange(torch.stack(maps), "(step block) 1 h n m -> step block h n m", step=steps)
    words = artist.encoder.tokens(prompt)
    word, heads = words[-2], A[..., len(words) - 2].mean(dim=0)  # [blocks, heads, N]
    figure = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1.05))
    large, small = left.subplots(1, 2), right.subplots(*heads.shape[:2])
    show(large[0], image)
    for edge in range(artist.model.patch_size, image.shape[-1], artist.model.patch_size):
        large[0].axhline(edge - 0.5, color="0.5", linewidth=0.6)
        large[0].axvline(edge - 0.5, color="0.5", linewidth=0.6)
    large[0].set_title(f'drawn: "{prompt}"', fontsize=10)
    picture = show_map(large[1], heads.mean(dim=(0, 1)), 1, numbers=True)
    large[1].set_title(f'share of "{word}" in what a patch reads', fontsize=10)
    left.colorbar(picture, ax=large, shrink=0.8, format="{x:.0%}")
    for block, row in enumerate(small):
        for head, axis in enumerate(row):
            show_map(axis, heads[block, head], 1)
            axis.set_title(f"head {head + 1}" if block == 0 else "", fontsize=8)
        row[0].set_ylabel(f"block {block + 1}", fontsize=8)
    right.suptitle("the same, head by head", fontsize=10)
    bare(*large, *small.flat)
    return figure


def attention_in_time(artist):
    """From where the last word is read early, in the middle and late; and the share of each token.

    Cross-attention, a mean over heads and blocks; a map over a third of the steps, too.
    """
    prompt, steps, seen = "a photo of a horse", 51, []
    artist = copy.deepcopy(artist)  # the other figures' model stays without hooks
    maps = sample.record_attention(artist.model, 1)

    def keep(n, t, x, velocity):
        seen.append(x[0].cpu())

    artist.walk([prompt], artist.noise(1, 3), steps, callback=keep)
    A = rearrange(torch.stack(maps), "(step block) 1 n m -> step block n m", step=steps).mean(dim=1)
    words = artist.encoder.tokens(prompt)
    thirds = rearrange(A[:, :, -2], "(third step) n -> third step n", third=3).mean(dim=1)
    figure = Figure(figsize=(11, 4), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.55, 1))
    axes, axis = left.subplots(2, 3), right.subplots()
    for n, weights in enumerate(thirds):
        last = (n + 1) * steps // 3
        begin, end = 1 - n / 3, 1 - last / steps
        show(axes[0, n], flowclip.denormalize_images(seen[last - 1]))
        axes[0, n].set_title(f"t from {begin:.2f} to {end:.2f}", fontsize=10)
        picture = show_map(axes[1, n], weights, thirds.max())
    left.colorbar(picture, ax=axes[1], shrink=0.8, format="{x:.0%}")
    axes[0, 0].set_ylabel("x at its end", fontsize=10)
    axes[1, 0].set_ylabel(f'share of "{words[-2]}"', fontsize=10)
    bare(*axes.flat)
    times = 1 - torch.arange(steps) / steps
    for n, (word, share) in enumerate(zip(words, A.mean(dim=1).T)):
        width = 3 if n == len(words) - 2 else 1
        axis.plot(times, 100 * share, linewidth=width, label=f"{n + 1}. {word}")
    axis.set(xlabel="t", ylabel="share of each token, %", xlim=(1, 0), ylim=(0, None))
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---- Chapter 6 ----
def sinusoids(_):
    """Why times are multiplied by 1000, and how alike the position vectors of two patches are."""
    t = torch.linspace(0, 1, 200)
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    tables = {
        "sinusoids(1000 t): what the model is told": 1000 * t,
        "sinusoids(t): nearly constant": t,
    }
    for axis, (title, values) in zip(axes, tables.items()):
        table, place = flowclip.sinusoids(values, 256).T, (0, 1, 256, 0)
        axis.imshow(table, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, extent=place)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="t", ylabel="feature")
    place = flowclip.position_embedding_2d(256, 8)
    alike = torch.nn.functional.cosine_similarity(place[8 * 2 + 5][None], place, dim=-1)
    image = axes[2].imshow(alike.view(8, 8), cmap="viridis")
    axes[2].set_title("cosine to the patch in row 2, column 5", fontsize=10)
    figure.colorbar(image, ax=axes[2], shrink=0.8)
    return figure


# ---- Chapter 7 ----
def data(artist):
    """What is learned from: six training images of each caption."""
    images, labels, captions = train.load_data(artist.run["data"])
    figure, axes = grid(6, len(captions), width=0.8, height=0.8, left=0)
    for label, (caption, column) in enumerate(zip(captions, axes.T)):
        for axis, image in zip(column, images[labels == label]):
            show(axis, image, caption.removeprefix("a photo of ") if axis is column[0] else "")
    return figure


# ---- Chapter 3 ----
def sweep(artist):
    """The same noise at seven guidance scales."""
    prompts, scales = [PROMPTS[n] for n in (1, 4, 7, 8)], [0, 1, 3, 5, 7.5, 10, 15]
    figure, axes = grid(len(prompts), len(scales))
    noise = artist.noise(1, 1).expand(len(prompts), -1, -1, -1)
    for w, column in zip(scales, axes.T):
        for axis, image in zip(column, artist.draw(prompts, noise, w)):
            show(axis, image, f"w = {w:g}" if axis in axes[0] else "")
    name_rows(axes, prompts)
    return figure


def guidance(artist):
    """What guidance buys and costs: prompts kept, and Fréchet distance, against w.

    From judge.csv of the run.
    """
    with open(artist.folder / "judge.csv") as file:
        here = {"step": str(artist.meta["step"]), "solver": "euler", "steps": "50"}
        rows = [row for row in csv.DictReader(file) if here.items() <= row.items()]
    rows = list({row["cfg"]: row for row in rows}.values())  # the last of each w
    rows.sort(key=lambda row: float(row["cfg"]))
    columns = ("cfg", "kept", "frechet")
    w, kept, frechet = (np.array([float(row[name]) for row in rows]) for name in columns)
    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(w, 100 * kept, "o-")
    left.axhline(10, color="0.7", linestyle=":")
    left.set(xlabel="guidance scale w", ylabel="prompts kept, %", ylim=(0, 100))
    right.plot(w, frechet, "o-", color="C1")
    right.axhline(float(rows[0]["floor"]), color="0.7", linestyle=":")
    right.set(xlabel="guidance scale w", ylabel="Fréchet distance to real images", ylim=(0, None))
    return figure


# ---- Chapter 1 ----
def lines(artist):
    """One training pair: the image, the noise, the points between them, and the velocity.

    The velocity is the same everywhere.
    """
    images, _, _ = train.load_data(artist.run["data"])
    x0, x1 = flowclip.normalize_images(images[4:5]), artist.noise(1)
    figure, axes = grid(1, 8)
    for axis, t in zip(axes[0], (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)):
        xt, v = flowclip.interpolate(x0, x1, torch.tensor([t]))
        show(axis, flowclip.denormalize_images(xt)[0], f"t = {t:g}")
    axes[0, 0].set_title("$x_0$: t = 0", fontsize=8)
    axes[0, 6].set_title("$x_1$: t = 1", fontsize=8)
    show(axes[0, 7], flowclip.denormalize_images(v / 2)[0], "v / 2")
    return figure


# Epoch and loss of the notebook, on torchvision's CIFAR-10 with OpenAI's text weights
ORIGINAL = {
    1: 0.5415, 2: 0.2999, 3: 0.2795, 4: 0.2669, 5: 0.2573, 6: 0.2499, 7: 0.2462, 8: 0.2407,
    9: 0.2365, 10: 0.2327, 20: 0.2079, 30: 0.1997,
}  # fmt: skip


def losses(artist):
    """The loss of each epoch, trained on and held out, beside the original notebook's."""
    figure = Figure(figsize=(6.5, 3.6), dpi=110, layout="constrained")
    axis, ours = figure.subplots(), artist.meta["losses"]
    label = "original notebook (other pixels, OpenAI's text)"
    axis.plot(ORIGINAL.keys(), ORIGINAL.values(), "s", color="0.6", label=label)
    data = "/".join(Path(artist.run["data"]).parts[-2:])
    label = f"this run ({data}, text weights {artist.run['clip_weights']!r})"
    axis.plot(range(1, len(ours) + 1), ours, "o-", label=label)
    held_out = [loss for _, loss in artist.held_out]
    axis.plot(range(1, len(held_out) + 1), held_out, ".-", label="its loss of what is held out")
    axis.set(xlabel="epoch", ylabel="mean flow-matching loss")
    axis.legend(frameon=False, fontsize=9)
    return figure


# ---- Chapter 2 ----
def path(artist):
    """From noise to picture: the state x, and below it x - t v, where the model thinks it goes."""
    prompt, frames = "a photo of a ship", []

    def keep(n, t, x, velocity):
        if n % 5 == 0:
            frames.append((t, x[0], (x - t * velocity(x, x.new_full((1,), t)))[0]))

    artist.walk([prompt], artist.noise(1, 5), callback=keep)
    figure, axes = grid(2, len(frames))
    for column, (t, x, guess) in zip(axes.T, frames):
        show(column[0], flowclip.denormalize_images(x), f"t = {t:.1f}")
        show(column[1], flowclip.denormalize_images(guess))
    name_rows(axes, ["state x", "guess x - t v"])
    return figure


def solvers(artist):
    """Euler against Heun at an equal number of evaluations: pictures, and how far from the limit.

    In float32, as the rounding of bfloat16 would hide the order.
    """
    prompts, evaluations = [PROMPTS[n] for n in (1, 4, 7, 8)], [4, 8, 16, 32, 64]
    noise = artist.noise(len(prompts), 2)

    def run(solver, count):
        steps = count if solver == "euler" else count // 2
        return flowclip.sample_text_conditional(
            artist.model, artist.encoder, prompts, artist.shape, steps, artist.w, noise=noise,
            solver=solver,
        )  # fmt: skip

    limit = run("heun", 400)
    figure = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    pictures, plot = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes, axis = pictures.subplots(2, 1 + len(evaluations)), plot.subplots()
    for row, solver in zip(axes, ("euler", "heun")):
        results = [run(solver, count) for count in evaluations]
        for cell, x, title in zip(row, [*results, limit], [*evaluations, "limit"]):
            show(cell, flowclip.denormalize_images(x[2]), str(title))
            bare(cell)
        distance = [(x - limit).square().mean().sqrt().item() for x in results]
        axis.loglog(evaluations, distance, "o-", label=solver)
    name_rows(axes, ["Euler", "Heun"])
    axis.set(xlabel="evaluations of the model", ylabel="RMS distance from the limit")
    axis.set_xticks(evaluations, evaluations)
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


# ---- README ----
def prompts(artist):
    """Ten prompts, four draws each."""
    names, draws = artist.meta["captions"], 4
    figure, axes = grid(draws, len(names), left=0)
    each = [name for name in names for _ in range(draws)]
    images = artist.draw(each, artist.noise(draws).repeat(len(names), 1, 1, 1))
    for column, name, part in zip(axes.T, names, images.split(draws)):
        for axis, image in zip(column, part):
            show(axis, image, name.removeprefix("a photo of ") if axis is column[0] else "")
    return figure


def compositions(artist):
    """Prompts that no caption holds, each beside one that the training had, by the same noises."""
    asked = {
        "a photo of a cat": "a photo of a cat on a ship",
        "a photo of a bird": "a photo of a red bird",
        "a photo of a horse": "two horses",
        "a photo of an automobile": "a flying car",
        "a photo of a truck": "a fast truck",
    }
    figure = Figure(figsize=(9, 1.2 * len(asked)), dpi=110, layout="constrained")
    for half, column in zip(figure.subfigures(1, 2), (asked.keys(), asked.values())):
        axes = half.subplots(len(asked), 4)
        for row, prompt in zip(axes, column):
            for axis, image in zip(row, artist.draw([prompt] * 4, artist.noise(4))):
                show(axis, image)
            row[0].set_title(prompt, fontsize=10, loc="left")
        bare(*axes.flat)
    return figure


# ---- Composition ----
def sentences(artist):
    """Twenty sentences that no picture of the training had, and what is drawn for each."""
    asked = draw_shapes.split_captions()["two, new"][::4][:20]
    images = artist.draw(asked, artist.noise(20))
    figure, axes = grid(4, 5, width=1.5, height=1.65, left=0)
    for axis, image, caption in zip(axes.flat, images, asked):
        first, relation, second = re.split(" (left of|above) ", caption)
        show(axis, image, f"{first}\n{relation} {second}")
    return figure


def held_out(artist):
    """Six draws each of pairs of a colour and a shape that were never shown."""
    asked = [f"a {name}" for name in draw_shapes.HELD_OUT]
    asked += [
        "a red square left of a yellow circle",
        "a cyan triangle above a green circle",
        "a blue triangle left of a purple square",
    ]
    figure, axes = grid(len(asked), 6, left=2.2)
    for row, caption in zip(axes, asked):
        for axis, image in zip(row, artist.draw([caption] * 6, artist.noise(6))):
            show(axis, image)
    name_rows(axes, asked)
    return figure


def words(artist):
    """Where the words of a sentence look while it is drawn, on the finished picture.

    The share of a word's attention that each patch has, a mean over heads, blocks and steps; one
    scale for all. Sentences never seen, without "cyan", which is two tokens.
    """
    new = [caption for caption in draw_shapes.split_captions()["two, new"] if "cyan" not in caption]
    asked = new[:: len(new) // 4][:4]
    artist = copy.deepcopy(artist)  # the other figures' model stays without hooks
    maps = sample.record_attention(artist.model, len(asked))
    images = artist.draw(asked, artist.noise(len(asked)))
    A = torch.stack(maps).mean(dim=0)  # [B, N, M]
    A = A / A.sum(dim=1, keepdim=True)
    side = math.isqrt(A.shape[1])
    figure, axes = grid(len(asked), 6, width=1.3, height=1.4, left=0)
    cells = []
    for row, image, caption, weights in zip(axes, images, asked, A):
        tokens = artist.encoder.tokens(caption)
        named = [k for k, token in enumerate(tokens) if token not in ("a", "of", "[BOS]", "[EOS]")]
        show(row[0], image, "drawn")
        for axis, k in zip(row[1:], named):
            cells.append((axis, tokens[k], weights[:, k].view(side, side)))
    brightest = max(float(cell.max()) for _, _, cell in cells)
    for axis, word, cell in cells:
        axis.imshow(cell, cmap="inferno", vmin=0, vmax=brightest)
        axis.set_title(word, fontsize=10)
    return figure


def growth(_):
    """How the cost of a training step grows; measures for some minutes."""
    args = SimpleNamespace(precision="auto", compile=False, repeat=2)
    table = benchmark.grow(args, flowclip.get_device())
    figure = Figure(figsize=(11, 3), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(table), sharey=True)
    for axis, (name, rows) in zip(panels, table.items()):
        n, batch, ms, flop, _ = map(np.array, zip(*rows))
        best = flop * min(ms / flop)  # at the best rate seen
        axis.loglog(n, ms, "o-", label="measured")
        axis.loglog(n, best, ":", color="0.6", label="arithmetic alone")
        axis.set_xlabel(name)
        axis.set_xticks(n, n)
        axis.minorticks_off()
        axis.grid(axis="y", color="0.9")
    ticks = [100, 200, 500, 1000, 2000, 5000]
    panels[0].set_yticks(ticks, ticks)
    panels[0].set_ylabel("ms a training step")
    axis.legend(frameon=False, fontsize=8)
    return figure


FIGURES = {
    figure.__name__: figure
    for figure in (
        idea, cosines, attention, attention_in_time, sinusoids, data, lines, sweep, guidance,
        losses, path, solvers, prompts, compositions, sentences, held_out, words, growth,
    )
}  # fmt: skip


def main():
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    artist = None
    for name in args.names:
        if artist is None and name not in ("idea", "cosines", "sinusoids", "growth"):
            artist = Artist(args.checkpoint, args.cfg)
        figure = FIGURES[name](artist)
        figure.savefig(args.out / f"{name}.png")
        print(f"{args.out / name}.png", flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description="Draw the figures of the chapters.")
    add, usual = parser.add_argument, Path("runs/cifar10/checkpoint.pt")
    add("names", nargs="+", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    add("--checkpoint", type=Path, default=usual, metavar="PATH", help="(%(default)s)")
    add("--cfg", type=float, default=3, metavar="W", help="guidance scale (%(default)s)")
    add("--out", type=Path, default=ROOT / "docs/images", metavar="DIR", help="(docs/images)")
    return parser.parse_args()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flowclip.run_script(main)
