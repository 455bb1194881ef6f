"""Emoji, each with a sentence of its own: python docs/studies/emoji.py PACKAGE emoji

PACKAGE is the unpacked npm package emoji-datasource-twitter (graphics: Twemoji, CC BY 4.0):

    npm pack emoji-datasource-twitter@16.0.0
    tar xzf emoji-datasource-twitter-16.0.0.tgz    # makes the folder `package`

Writes a folder that `train.py --data emoji` reads: pictures on white beside a metadata.jsonl with
their names ("woman firefighter, dark skin tone"). Some are kept apart, by a seed, in a second
folder, emoji-kept: what a model draws for these, it has composed.
"""

import argparse
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip

TONES = {  # as Unicode numbers them; emoji of two tones have other keys
    "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium",
    "1F3FE": "medium-dark", "1F3FF": "dark",
}  # fmt: skip
KINDS = ("man", "woman", "person")
A_TONE = "a tone"  # why a picture is kept apart: an emoji was never shown in this tone,
ROLE_TONE = "a role in a tone"  # neither a man nor a woman nor a person of this role was,
ROLE_KIND = "a role of a man or a woman"  # no man (or no woman) of this role was, in any tone


# ---- Captions ----
@dataclass(frozen=True)
class Emoji:
    """One picture of the package: which file, what it shows, in which tone ("" for none)."""

    file: str
    name: str
    tone: str
    role: str  # "firefighter" for a person, a man and a woman; "" where it is no profession

    @property
    def caption(self):
        return f"{self.name}, {self.tone} skin tone" if self.tone else self.name


def parse(caption):
    """ "woman firefighter, dark skin tone" -> ("woman", "firefighter", "dark").

    The kind is "" where a caption names none ("firefighter"), the tone where it has none.
    """
    name, _, tone = caption.removesuffix(" skin tone").rpartition(", ")
    if not caption.endswith(" skin tone"):
        name, tone = caption, ""
    kind, _, what = name.partition(" ")
    return (kind, what, tone) if kind in KINDS and what else ("", name, tone)


def read_package(package):
    """-> [Emoji, ...]: all of the package but those of two tones."""
    rows = json.loads((package / "emoji.json").read_text("utf-8"))
    count = Counter(row["name"] for row in rows)
    toned = {row["name"] for row in rows if "skin_variations" in row}
    emoji = []
    for row in rows:
        name = row["name"] if count[row["name"]] == 1 else row["short_name"].replace("_", " ")
        kind, _, role = row["name"].rpartition("MAN ")  # of a man, a woman, or neither
        profession = row["subcategory"] == "person-role" and kind in ("", "WO")
        if not (profession and {role, f"MAN {role}", f"WOMAN {role}"} <= toned):
            role = ""
        pictures = {"": row} | row.get("skin_variations", {})
        emoji += [
            Emoji(pictures[key]["image"], name.lower(), TONES.get(key, ""), role.lower())
            for key in ("", *TONES)
            if key in pictures
        ]
    return emoji


# ---- What is kept apart ----
def keep_apart(emoji, seed=0):
    """-> {Emoji: why it is never shown}, by a seed.

    Each emoji with tones loses one of them. Of the professions every other one is never shown in
    one tone more, nor a man nor a woman of it; the rest never with a man, or never with a woman.
    """
    rand = random.Random(seed)
    kept = {}
    names = sorted({each.name for each in emoji if each.tone})
    for name in names:
        kept[rand.choice([each for each in emoji if each.name == name and each.tone])] = A_TONE
    roles = sorted({each.role for each in emoji if each.role})
    rand.shuffle(roles)
    for k, role in enumerate(roles):
        people = [each for each in emoji if each.role == role]
        lost = {each.tone for each in people if each in kept}
        if k % 2:
            tone = rand.choice([tone for tone in TONES.values() if tone not in lost])
            kept |= {each: ROLE_TONE for each in people if each.tone == tone}
        else:
            kind = rand.choice(["man", "woman"])
            kept |= {each: ROLE_KIND for each in people if parse(each.name)[0] == kind}
    return kept


# ---- The folders ----
def kept_folder(folder):
    """emoji -> emoji-kept, beside it."""
    return folder.with_name(f"{folder.name}-kept")


def read_picture(path, size):
    """-> a PIL image in RGB, on white."""
    drawn = Image.open(path).convert("RGBA")
    picture = Image.new("RGBA", drawn.size, "white")
    picture.alpha_composite(drawn)
    return picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def write(package, folder, size=32, seed=0):
    """-> how many pictures are in the folder, and how many in that of the kept ones."""
    emoji = read_package(package)
    kept = keep_apart(emoji, seed)
    shown = [each for each in emoji if each not in kept]
    for place, part in ((folder, shown), (kept_folder(folder), list(kept))):
        place.mkdir(parents=True, exist_ok=True)
        lines = []
        for each in part:
            picture = read_picture(package / "img/twitter/64" / each.file, size)
            picture.save(place / each.file)
            row = {"file_name": each.file, "text": each.caption, "kept": kept.get(each, "")}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (place / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return len(shown), len(kept)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("package", type=Path, help="the unpacked npm package emoji-datasource-twitter")
    add("folder", type=Path, help="of the pictures; those kept apart are put into FOLDER-kept")
    add("--size", type=int, choices=(32, 64), default=32, help="pixels a side (32)")
    add("--seed", type=int, default=0, metavar="N", help="of what is kept apart (0)")
    return parser.parse_args()


def main():
    args = parse_args()
    shown, kept = write(args.package, args.folder, args.size, args.seed)
    print(
        f"{args.folder}: {shown:,} pictures of {args.size}x{args.size}; "
        f"{kept_folder(args.folder)}: {kept} kept apart (graphics: Twemoji, CC BY 4.0)"
    )


if __name__ == "__main__":
    flowclip.run_script(main)
