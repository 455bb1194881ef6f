"""Pictures whose words can be checked: python docs/studies/draw_shapes.py shapes --n 20000

Writes a folder that `train.py --data shapes` reads: an image beside its text, of one object ("a
red circle") or of two ("a red circle left of a blue square", "... above ..."). Three pairs of a
colour and a shape never occur, and a fifth of the captions of two objects are left out, too:
what a model draws for these, it has composed. No download; from a seed; anti-aliased.

`see` is the judge: it looks at the pixels of an image, not through a network, and says which
objects are there. `score` compares them with a caption, in GenEval's terms (Ghosh et al. 2023).
"""

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255),
    "yellow": (255, 255, 0), "purple": (255, 0, 255), "cyan": (0, 255, 255),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "above")
HELD_OUT = ("red square", "green circle", "blue triangle")
FINE = 8  # an image is drawn so many times finer, and averaged down: anti-aliasing


# ---- Captions ----
def objects(held_out=HELD_OUT):
    """Every "COLOUR SHAPE" that may occur."""
    pairs = (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    return [pair for pair in pairs if pair not in held_out]


def caption_of(*names, relation=""):
    """("red circle", "blue square"), "above" -> "a red circle above a blue square"."""
    return f" {relation} ".join(f"a {name}" for name in names)


def parse(caption):
    """ "a red circle above a blue square" -> (["red circle", "blue square"], "above")."""
    relation = next((relation for relation in RELATIONS if f" {relation} " in caption), "")
    names = caption.split(f" {relation} ") if relation else [caption]
    return [name.removeprefix("a ") for name in names], relation


def split_captions(held_out=HELD_OUT, seed=0):
    """-> {"one", "two", "two, new", "one, held out", "two, one held out"}: lists of captions.

    The first two are those to train on. "two, new": left out, but both objects occur elsewhere.
    """
    seen, rand = objects(held_out), np.random.default_rng(seed)
    pairs = [
        caption_of(a, b, relation=relation)
        for a, b in itertools.permutations(seen, 2)
        for relation in RELATIONS
    ]
    rand.shuffle(pairs)
    fifth = len(pairs) // 5
    mixed = [
        caption_of(*names, relation=relation)
        for a, b in itertools.product(held_out, seen)
        for names in ((a, b), (b, a))
        for relation in RELATIONS
    ]
    return {
        "one": [caption_of(name) for name in seen],
        "two": sorted(pairs[fifth:]),
        "two, new": sorted(pairs[:fifth]),
        "one, held out": [caption_of(name) for name in held_out],
        "two, one held out": mixed,
    }


# ---- Pictures ----
def outline(shape, x, y, radius):
    """The polygon of a shape about (x, y), in pixels; a circle as one of 64 sides."""
    if shape == "square":
        r = 0.9 * radius
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    sides, turn = {"circle": (64, 0.0), "triangle": (3, -math.pi / 2)}[shape]
    angles = [turn + 2 * math.pi * k / sides for k in range(sides)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def render(items, size):
    """[(name, x, y, radius), ...] -> uint8 [size, size, 3], objects on black."""
    image = Image.new("RGB", (size * FINE, size * FINE))
    for name, x, y, radius in items:
        colour, shape = name.split()
        points = [(FINE * u, FINE * v) for u, v in outline(shape, x, y, radius)]
        ImageDraw.Draw(image).polygon(points, fill=COLOURS[colour])
    return np.asarray(image.reduce(FINE))


def place(caption, size, rand):
    """A caption -> [(name, x, y, radius), ...], drawn from `rand`; objects do not touch."""
    names, relation = parse(caption)
    if not relation:
        radius = rand.uniform(0.2, 0.36) * size
        x, y = rand.uniform(radius, size - radius, 2)
        return [(names[0], x, y, radius)]
    radii = rand.uniform(0.15, 0.21, 2) * size
    room = size - 2 * radii.sum()  # along the relation: r0, r0, gap, r1, r1
    start, gap = rand.uniform(0, room / 2), rand.uniform(1.5, room / 2)
    along = start + radii[0], start + 2 * radii[0] + gap + radii[1]
    across = [rand.uniform(radius, size - radius) for radius in radii]
    places = zip(along, across) if relation == "left of" else zip(across, along)
    return [(name, x, y, radius) for name, (x, y), radius in zip(names, places, radii)]


def draw_caption(caption, size, rand):
    """-> uint8 [size, size, 3]."""
    return render(place(caption, size, rand), size)


# ---- The judge ----
@dataclass
class Seen:
    """An object that the judge found: what, where (in pixels), and how much of the image."""

    colour: str
    shape: str
    x: float
    y: float
    area: float

    @property
    def name(self):
        return f"{self.colour} {self.shape}"


@cache
def template(shape, radius, size):
    """The coverage of a shape in the middle of [size, size], in [0, 1], and its centre of mass."""
    middle = size / 2
    cover = render([(f"red {shape}", middle, middle, radius)], size)[..., 0] / 255
    return cover, ndimage.center_of_mass(cover)


def shape_of(cover):
    """Coverage [H, W] of one object -> the shape whose template overlaps it best."""
    size, best = len(cover), {}
    y, x = ndimage.center_of_mass(cover)
    for shape in SHAPES:
        fill = {"circle": math.pi, "square": 3.24, "triangle": 1.299}[shape]  # area / radius^2
        radius = round(math.sqrt(cover.sum() / fill), 1)  # of the same area
        model, (v, u) = template(shape, radius, size)
        moved = ndimage.shift(model, (y - v, x - u), order=1)
        best[shape] = np.minimum(moved, cover).sum() / np.maximum(moved, cover).sum()
    return max(best, key=best.get)


def see(image):
    """uint8 image [H, W, 3] -> [Seen, ...], the largest first."""
    return [seen for seen, _ in find(image)]


def find(image, faint=0.35, small=0.012):
    """uint8 image [H, W, 3] -> [(Seen, its coverage [H, W] in [0, 1]), ...], the largest first.

    A pixel on an edge is a mixture of an object's colour with black: a darker shade of the same
    colour, so that its direction tells the colour and its length the coverage.
    """
    pixels, names = image / 255, list(COLOURS)
    pure = np.array([COLOURS[name] for name in names]) / 255
    strength = np.clip(pixels @ pure.T / (pure**2).sum(axis=1), 0, 1)  # [H, W, colours]
    error = ((pixels[..., None, :] - strength[..., None] * pure) ** 2).sum(axis=-1)
    which, found = error.argmin(axis=-1), []
    cover = np.take_along_axis(strength, which[..., None], axis=-1)[..., 0]
    for k, colour in enumerate(names):
        parts, count = ndimage.label((which == k) & (cover > faint), np.ones((3, 3)))
        for part in range(1, count + 1):
            here = ndimage.binary_dilation(parts == part, np.ones((3, 3))) & (which == k)
            object_cover = np.where(here, cover, 0)
            area = object_cover.sum() / cover.size
            if area > small:
                y, x = ndimage.center_of_mass(object_cover)
                seen = Seen(colour, shape_of(object_cover), x, y, area)
                found.append((seen, object_cover))
    return sorted(found, key=lambda pair: -pair[0].area)


SCORES = ("object", "colour", "shape", "position", "binding", "all")


def score(caption, image):
    """-> {"object": as many as asked, "colour", "shape", "position", "binding", "all"}: bools.

    colour and shape: the right ones, in any combination. binding: each shape in its colour.
    position: the relation holds (None where there is none). all: object, binding and position.
    """
    names, relation = parse(caption)
    found = see(image)
    colours, shapes = ([name.split()[part] for name in names] for part in (0, 1))
    right = {
        "object": len(found) == len(names),
        "colour": sorted(seen.colour for seen in found) == sorted(colours),
        "shape": sorted(seen.shape for seen in found) == sorted(shapes),
        "binding": sorted(seen.name for seen in found) == sorted(names),
        "position": None,
    }
    if relation:
        right["position"] = len(found) == 2 and stands(names, found, relation)
    right["all"] = right["object"] and right["binding"] and right["position"] is not False
    return right


def stands(names, found, relation):
    """Does the first of `names` stand left of (above) the second? Told apart by what differs."""
    (colour, shape), (other_colour, _) = (name.split() for name in names)
    key, wanted = ("colour", colour) if colour != other_colour else ("shape", shape)
    first, second = sorted(found, key=lambda seen: getattr(seen, key) != wanted)
    if getattr(first, key) != wanted:
        return False
    return bool(first.x < second.x if relation == "left of" else first.y < second.y)


# ---- The folder ----
def write(folder, count, size=24, held_out=HELD_OUT, seed=0):
    """`count` images, each beside its text: a fifth of them of one object, else of two."""
    captions, rand = split_captions(held_out), np.random.default_rng(seed)
    place = Path(folder) / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        kind = "one" if rand.random() < 0.2 else "two"
        caption = captions[kind][rand.integers(len(captions[kind]))]
        Image.fromarray(draw_caption(caption, size, rand)).save(place / f"{i:06d}.png")
        (place / f"{i:06d}.txt").write_text(caption)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("--n", type=int, default=20_000, metavar="N", help="images (20,000)")
    add("--size", type=int, choices=(24, 32), default=24, help="pixels a side (24)")
    add("--held-out", nargs="*", default=HELD_OUT, metavar="PAIR", help="never shown (three pairs)")
    add("--seed", type=int, default=0, metavar="N", help="of captions, places and sizes (0)")
    return parser.parse_args()


def main():
    args = parse_args()
    unknown = set(args.held_out) - set(objects(()))
    if unknown:
        sys.exit(f"--held-out {', '.join(sorted(unknown))}: expected a colour and a shape")
    write(args.folder, args.n, args.size, tuple(args.held_out), args.seed)
    print(f"{args.folder}: {args.n:,} images of {args.size}x{args.size}")


if __name__ == "__main__":
    main()
