"""Is it the emoji that was asked for? python docs/studies/judge_emoji.py CHECKPOINT emoji

Draws captions of the folder that docs/studies/emoji.py wrote, those shown and those kept apart. The
judge looks at pixels, not through a network: of all pictures, shown or not, which is nearest to
the drawing, or to the drawing moved by one pixel? A table follows: the share of the drawings whose
nearest picture is the one asked for, or is like it. The rows are added to emoji.csv in the run
folder. --picture draws one of the figures of docs/9-emoji.md instead.
"""

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[2]))
import compose
import emoji
import judge

import flowclip

GRID = (  # four rows that were shown; the last one never, nor any man (or woman) of the role
    "slice of pizza", "red apple", "banana", "strawberry",
    "watermelon", "hot beverage", "hamburger", "birthday cake",
    "broken heart", "fire", "sunflower", "mushroom",
    "christmas tree", "crescent moon", "rainbow", "snowflake",
    "dog face", "cat face", "pig face", "panda face",
    "frog face", "penguin", "octopus", "lady beetle",
    "grinning face with smiling eyes", "smiling face with sunglasses", "jack-o-lantern", "ghost",
    "rocket", "automobile", "france flag", "japan flag",
    "woman astronaut, dark skin tone", "man firefighter, medium skin tone",
    "woman judge, medium-dark skin tone", "man singer, dark skin tone",
    "woman police officer, light skin tone", "man teacher",
    "woman detective, medium-light skin tone", "man scientist, light skin tone",
)  # fmt: skip


class Judge:
    """All pictures of a folder, shown or kept apart; of equal ones (34, mostly flags) one."""

    def __init__(self, folder):
        rows, images = [], []
        for place in (folder, emoji.kept_folder(folder)):
            for line in (place / "metadata.jsonl").read_text("utf-8").splitlines():
                rows.append(json.loads(line))
                images.append(np.asarray(Image.open(place / rows[-1]["file_name"])))
        images = rearrange(torch.from_numpy(np.stack(images)), "n h w c -> n c h w")
        self.images, places = images.unique(dim=0, return_inverse=True)
        self.place = {row["text"]: k for row, k in zip(rows, places.tolist())}
        self.names = [[] for _ in self.images]  # of each picture, (kind, what, tone)
        kinds = "shown", emoji.A_TONE, emoji.ROLE_TONE, emoji.ROLE_KIND
        self.kinds = {kind: [] for kind in kinds}  # shown, or why they are kept apart: captions
        self.shown = torch.zeros(len(self.images), dtype=torch.bool)
        for row in rows:
            self.names[self.place[row["text"]]].append(emoji.parse(row["text"]))
            self.kinds[row["kept"] or "shown"].append(row["text"])
            self.shown[self.place[row["text"]]] |= not row["kept"]

    def real(self, captions):
        """-> their pictures, uint8 [B, C, H, W]."""
        return self.images[[self.place[caption] for caption in captions]]

    def distances(self, drawn):
        """uint8 [B, C, H, W] -> to each picture [B, N], the least of the nine moves."""
        size = drawn.shape[-1]
        pictures = rearrange(self.images.float(), "n c h w -> n (c h w)")
        padded = v2.functional.pad(drawn, [1], fill=255)  # white
        best = torch.full((len(drawn), len(pictures)), math.inf)
        for y, x in itertools.product(range(3), repeat=2):
            moved = padded[..., y : y + size, x : x + size].float()
            best = best.minimum(torch.cdist(rearrange(moved, "b c h w -> b (c h w)"), pictures))
        return best

    def score(self, captions, drawn):
        """-> {score: [B] bool, or None where the caption does not ask for it}.

        right: the nearest is the one asked for; five: it is among the five nearest; new: it is
        nearer than all that was shown. what, kind, tone: the nearest has the same, alone.
        """
        distances = self.distances(drawn)
        asked = torch.tensor([self.place[caption] for caption in captions])
        five = distances.topk(5, largest=False).indices
        own = distances.gather(1, asked[:, None])[:, 0]
        shown = distances.masked_fill(~self.shown, math.inf).amin(dim=1)
        scores = {
            "right": (five[:, 0] == asked).tolist(),
            "five": (five == asked[:, None]).any(dim=1).tolist(),
            "new": [
                None if self.shown[k] else bool(mine < other)
                for k, mine, other in zip(asked, own, shown)
            ],
        }
        wanted = [emoji.parse(caption) for caption in captions]
        found = [self.names[k] for k in five[:, 0]]
        for part, name in enumerate(("kind", "what", "tone")):
            scores[name] = [
                any(has[part] == want[part] for has in names) if want[part] else None
                for want, names in zip(wanted, found)
            ]
        return scores

    def nearest_shown(self, captions):
        """-> of each caption the shown picture that is nearest to its own, uint8 [B, C, H, W]."""
        distances = self.distances(self.real(captions)).masked_fill(~self.shown, math.inf)
        return self.images[distances.argmin(dim=1)]


SCORES = ("right", "five", "new", "what", "kind", "tone")


def shares(scores):
    """-> {score: (share, its standard error)}, without what no caption asks for."""
    table = {}
    for name, values in scores.items():
        asked = [value for value in values if value is not None]
        if asked:
            share = sum(asked) / len(asked)
            table[name] = share, math.sqrt(share * (1 - share) / len(asked))
    return table


def draw(model, encoder, captions, w, steps, seed=0):
    """-> uint8 images [B, C, H, W]."""
    images = compose.draw(model, encoder, captions, w, steps, seed)
    return rearrange(torch.from_numpy(images), "b h w c -> b c h w")


def spread(captions, count):
    """`count` of them, evenly over their order."""
    return [captions[k * len(captions) // count] for k in range(count)]


def tables(court, model, meta, encoder, args):
    """Print a row for each kind of captions and each w, and the controls."""
    rand = np.random.default_rng(args.seed)
    print(compose.line("captions", "drawn", "n", *SCORES))
    print(compose.line(*["---"] * (3 + len(SCORES))))
    for kind, captions in court.kinds.items():
        asked = compose.choose(list(rand.permutation(captions)), args.n, rand)
        trials = {}
        for w in args.cfg:
            trials[f"w = {w:g}"] = asked, draw(model, encoder, asked, w, args.steps, args.seed)
        drawn = trials[f"w = {args.cfg[-1]:g}"][1]
        trials["captions shuffled"] = list(rand.permutation(asked)), drawn
        if kind != "shown":
            trials["the nearest shown"] = asked, court.nearest_shown(asked)
        for trial, (texts, images) in trials.items():
            table = shares(court.score(texts, images))
            cells = {name: f"{share:.0%} ± {error:.0%}" for name, (share, error) in table.items()}
            row = (cells.get(name, "") for name in SCORES)
            print(compose.line(kind, trial, str(len(texts)), *row), flush=True)
            row = {"step": meta["step"], "kind": kind, "drawn": trial, "n": len(texts)}
            row |= {name: table.get(name, ("",))[0] for name in SCORES}
            judge.add_row(args.checkpoint.with_name("emoji.csv"), row)


def calibrate(court, count=1000):
    """Real pictures, moved and with other colours: how often does the judge err?"""
    every = sorted(court.place)
    captions = spread(every, min(count, len(every)))
    real = court.real(captions)
    away = [(y, x) for y, x in itertools.product((-1, 0, 1), repeat=2) if y or x]
    moved = torch.stack(
        [
            v2.functional.affine(image, 0, away[k % 8], 1, [0, 0], fill=255)
            for k, image in enumerate(real)
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        jitter = v2.ColorJitter(0.15, 0.15, 0.15, 0.02)
        coloured = torch.stack([jitter(image) for image in real])
    for name, images in (("moved by a pixel", moved), ("with other colours", coloured)):
        table = shares(court.score(captions, images))
        print(
            f"{len(captions)} real pictures {name}: "
            + ", ".join(f"{score} {table[score][0]:.1%}" for score in SCORES if score in table)
        )


# ---- Figures ----
def grid(court, model, encoder, args):
    """Forty captions that everybody knows, one noise each."""
    images = draw(model, encoder, GRID, args.cfg[0], args.steps, args.seed)
    flowclip.save_picture(args.out, images, 8, GRID)


def new(court, model, encoder, args, columns=8):
    """Captions that were never shown: 16 that lost a tone, 8 and 8 of the professions.

    A row of drawings, and below it the pictures that were kept apart.
    """
    kinds = court.kinds
    asked = spread(kinds[emoji.A_TONE], 2 * columns)
    asked += spread(kinds[emoji.ROLE_TONE], columns) + spread(kinds[emoji.ROLE_KIND], columns)
    images = draw(model, encoder, asked, args.cfg[0], args.steps, args.seed)
    pairs = rearrange([images, court.real(asked)], "p (r c) ... -> (r p c) ...", c=columns)
    titles = rearrange(np.array([asked, [""] * len(asked)]), "p (r c) -> (r p c)", c=columns)
    rows = ["drawn", "kept apart"] * (len(asked) // columns)
    flowclip.save_picture(args.out, pairs, columns, titles.tolist(), rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("folder", type=Path, help="that docs/studies/emoji.py wrote; FOLDER-kept is beside it")
    add("--cfg", type=float, nargs="+", default=[3.0], metavar="W", help="guidance scales (3)")
    add("--n", type=int, default=300, metavar="N", help="drawings of each kind of captions (300)")
    add("--steps", type=int, default=50, metavar="N", help="solver steps (50)")
    add("--seed", type=int, default=0, metavar="N", help="of captions and noise (0)")
    add("--picture", choices=["grid", "new"], help="draw this figure in place of the tables")
    add("--out", type=Path, default=Path("emoji.png"), metavar="PATH", help="of the figure")
    return parser.parse_args()


def main():
    args, begin = parse_args(), time.perf_counter()
    court = Judge(args.folder)
    model, meta = flowclip.load_checkpoint(args.checkpoint, flowclip.get_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
    if args.picture:
        {"grid": grid, "new": new}[args.picture](court, model, encoder, args)
        print(f"{args.out} (graphics: Twemoji, CC BY 4.0)")
        return
    calibrate(court)
    tables(court, model, meta, encoder, args)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    flowclip.run_script(main)
