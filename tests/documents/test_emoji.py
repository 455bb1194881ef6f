"""The emoji of emoji.py and their judge, on a package of a few pictures made here."""

import json
from pathlib import Path

import emoji
import judge_emoji
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import train
from tests.conftest import TINY

SKIN = {
    "1F3FB": (255, 230, 200), "1F3FC": (230, 190, 150), "1F3FD": (190, 140, 100),
    "1F3FE": (140, 90, 60), "1F3FF": (80, 50, 40),
}  # fmt: skip
YELLOW = (255, 210, 80)
ROLES = {"FIREFIGHTER": (200, 30, 30), "COOK": (60, 160, 220)}


def draw_face(path, skin, clothes, hair):
    """A face on a colour, on nothing: the corners are transparent."""
    image = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(image)
    pen.rectangle((8, 40, 56, 63), fill=clothes)
    pen.ellipse((14, 4, 50, 48), fill=skin)
    pen.rectangle((14, 4, 50, hair), fill=(90, 60, 20))
    image.save(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The form of emoji-datasource-twitter: emoji.json and img/twitter/64."""
    folder = tmp_path_factory.mktemp("package")
    pictures = folder / "img/twitter/64"
    pictures.mkdir(parents=True)
    rows = []

    def add(name, short_name, subcategory, clothes, hair=10, tones=SKIN):
        file = f"{short_name}.png"
        draw_face(pictures / file, YELLOW, clothes, hair)
        row = {
            "name": name,
            "short_name": short_name,
            "image": file,
            "subcategory": subcategory,
        }
        for key in tones:
            file = f"{short_name}-{key}.png"
            draw_face(pictures / file, SKIN[key.split("-")[0]], clothes, hair)
            row.setdefault("skin_variations", {})[key] = {"image": file}
        rows.append(row)

    for role, clothes in ROLES.items():
        for hair, kind in ((10, ""), (16, "MAN "), (24, "WOMAN ")):
            name = kind + role
            add(name, name.lower().replace(" ", "_"), "person-role", clothes, hair)
    add("MAN IN TUXEDO", "man_in_tuxedo", "person-role", (0, 0, 0))
    add("MAN IN TUXEDO", "person_in_tuxedo", "person-role", (0, 0, 0), hair=14)
    add("HANDSHAKE", "handshake", "hands", (90, 90, 90), tones=[*SKIN, "1F3FB-1F3FF"])
    add("Côte d’Ivoire Flag", "flag-ci", "country-flag", (250, 140, 0), tones=())
    add("RED APPLE", "apple", "food", (250, 0, 0), tones=())
    (folder / "emoji.json").write_text(json.dumps(rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "emoji"
    emoji.write(package, folder)
    return folder


def test_captions_are_read_back():
    """Who, what, in which tone; a woman who is nothing else is no kind of something."""
    for caption, parts in {
        "red apple": ("", "red apple", ""),
        "firefighter": ("", "firefighter", ""),
        "woman firefighter, dark skin tone": ("woman", "firefighter", "dark"),
        "woman, medium-light skin tone": ("", "woman", "medium-light"),
        "family: man, boy": ("", "family: man, boy", ""),
    }.items():
        assert emoji.parse(caption) == parts


def test_every_emoji_is_read_but_those_of_two_tones(package):
    """Each has a caption of its own: a name that occurs twice becomes two short names."""
    read = emoji.read_package(package)
    captions = [each.caption for each in read]
    assert len(captions) == len({*captions}) == 9 * 6 + 2
    assert {
        "man in tuxedo", "person in tuxedo, dark skin tone", "côte d’ivoire flag",
        "woman cook, medium-light skin tone", "handshake, light skin tone",
    } <= {*captions}  # fmt: skip
    assert {each.role for each in read} == {"", "firefighter", "cook"}, "no other profession"
    assert {each.name for each in read if each.role == "cook"} == {"cook", "man cook", "woman cook"}


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_apart_is_composed_of_what_is_shown(package, seed):
    """Each emoji loses a tone; one role loses it altogether, the other its men or its women."""
    read = emoji.read_package(package)
    kept = emoji.keep_apart(read, seed)
    assert kept == emoji.keep_apart(read, seed)
    for name in {each.name for each in read if each.tone}:
        assert any(each.tone for each in kept if each.name == name)
    shown = [each for each in read if each not in kept]
    lost = {why: [each for each in kept if kept[each] == why] for why in kept.values()}
    (role,) = {each.role for each in lost[emoji.ROLE_TONE]}
    (tone,) = {each.tone for each in lost[emoji.ROLE_TONE]}
    assert len(lost[emoji.ROLE_TONE]) == 3
    assert not any((each.role, each.tone) == (role, tone) for each in shown)
    (name,) = {each.name for each in lost[emoji.ROLE_KIND]}
    assert len(lost[emoji.ROLE_KIND]) == 6 and name not in {each.name for each in shown}
    for each in kept:
        assert any(each.tone == other.tone for other in shown)
        assert any(each.role == other.role for other in shown)


@pytest.mark.parametrize("size", [32, 64])
def test_the_folder_is_read_by_the_trainer(package, tmp_path, size):
    """Each picture with its own text, on white; what is kept apart lies beside it."""
    shown, kept = emoji.write(package, tmp_path / "emoji", size)
    images, labels, captions = train.load_data(str(tmp_path / "emoji"))
    _, _, others = train.load_data(str(tmp_path / "emoji-kept"))
    assert images.shape == (shown, 3, size, size) and len({*captions}) == shown
    assert len({*others}) == kept and not {*captions} & {*others}
    assert {*captions} | {*others} == {each.caption for each in emoji.read_package(package)}
    assert (images[:, :, 0, 0] == 255).all(), "what is transparent is white"
    apple = images[labels.tolist().index(captions.index("red apple"))]
    assert (apple[:, -2, size // 2] == torch.tensor([250, 0, 0])).all()


def test_the_judge_is_right_on_real_pictures_and_sees_what_is_wrong(folder):
    court = judge_emoji.Judge(folder)
    captions = sorted(court.place)
    moved = torch.roll(court.real(captions), (0, 1), dims=(-2, -1))
    moved[..., 0] = 255
    for drawn in (court.real(captions), moved):
        scores = court.score(captions, drawn)
        assert all(value for values in scores.values() for value in values if value is not None)

    def score(caption, drawn):
        scores = court.score([caption], court.real([drawn]))
        return {name for name, (value,) in scores.items() if value and name not in ("five", "new")}

    there = "woman firefighter, dark skin tone"
    assert score(there, there) == {"right", "what", "kind", "tone"}
    assert score(there, "woman firefighter, light skin tone") == {"what", "kind"}
    assert score(there, "man firefighter, dark skin tone") == {"what", "tone"}
    assert score(there, "woman cook, dark skin tone") == {"kind", "tone"}
    assert score(there, "red apple") == set()
    assert score("red apple", there) == set(), "it asks for no kind and no tone"


def test_new_is_what_is_nearer_than_all_that_was_shown(folder):
    court = judge_emoji.Judge(folder)
    kept = [caption for kind, some in court.kinds.items() if kind != "shown" for caption in some]
    assert court.score(kept, court.real(kept))["new"] == [True] * len(kept)
    assert court.score(kept, court.nearest_shown(kept))["new"] == [False] * len(kept)
    shown = court.kinds["shown"]
    assert court.score(shown, court.real(shown))["new"] == [None] * len(shown)


@pytest.mark.heavy
def test_a_run_is_judged(command, folder, monkeypatch):
    """From the folder to the table and the figures, with a model that has learned nothing."""
    status, out, err = command(
        train, "--data", folder, "--clip-weights", "untrained", *TINY, "--batch-size", 8,
        "--max-steps", 1, "--out", "run",
    )  # fmt: skip
    assert status == 0, err
    run = ["run/checkpoint.pt", folder, "--n", 4, "--steps", 1, "--cfg", 1]
    status, out, err = command(judge_emoji, *run)
    assert status == 0, err
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2 + 3 * 3, "two of what was shown, three of each kind that was not"
    assert len(np.loadtxt("run/emoji.csv", str, delimiter="\t")) == 1 + len(rows)
    captions = judge_emoji.Judge(folder).kinds["shown"]
    monkeypatch.setattr(judge_emoji, "GRID", captions[:8])
    for name in ("grid", "new"):
        status, _, err = command(judge_emoji, *run, "--picture", name, "--out", f"{name}.png")
        assert status == 0, err
        assert Path(f"{name}.png").exists()
