"""Chapter 7: data and captions."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

import flowclip
import train
from tests.spec import strategies as draw
from tests.spec.compare import close, equal

CIFAR10 = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip


@pytest.mark.spec("DATA-1")
@given(st.lists(draw.names, min_size=1, max_size=3))
def test_a_photo_of_a_name(names):
    captions = flowclip.make_captions(names)
    assert len(captions) == len(names), f"{len(captions)} captions of {len(names)} names"
    for name, said in zip(names, captions):
        fits = re.fullmatch(f"a photo of an? {re.escape(name)}", said)
        assert fits, f"of {name!r}: expected 'a photo of a {name}', found {said!r}"


@pytest.mark.spec("DATA-2")
@given(draw.names)
@example("unicorn")  # the letter, not the sound
@example("one")
@example("onion")
@example("Owl")
@example("hour")
@example("écu")
def test_the_article(name):
    expected = "an" if name[0] in "aeiouAEIOU" and name != "one" else "a"
    said = flowclip.make_captions([name])[0]
    found = said.removeprefix("a photo of ").split()[0]
    assert found == expected, f"of {name!r}: expected the article {expected!r}, found {said!r}"


@pytest.mark.spec("DATA-3")
def test_cifar10_captions():
    said = flowclip.make_cifar10_captions(torch.arange(10))
    for label, name in enumerate(CIFAR10):
        expected = flowclip.make_captions([name])[0]
        assert said[label] == expected, f"{label}: expected {expected!r}, found {said[label]!r}"
    for bad in (10, -1):
        try:
            said = flowclip.make_cifar10_captions([bad])
        except ValueError:
            continue
        raise AssertionError(f"the label {bad}: expected a ValueError, found {said!r}")


@pytest.mark.spec("DATA-4")
def test_every_pixel_value():
    u = torch.arange(256, dtype=torch.uint8)
    expected = [n / 127.5 - 1 for n in range(256)]
    close("the image of the pixels 0..255", flowclip.normalize_images(u), expected, atol=1e-6)


@pytest.mark.spec("DATA-5")
def test_every_pixel_value_comes_back():
    x = torch.arange(256) / 127.5 - 1  # [DATA-4]
    equal("the pixels of all 256 values", flowclip.denormalize_images(x), torch.arange(256))


@pytest.mark.spec("DATA-5")
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_outside_is_clamped_not_wrapped(values):
    out = flowclip.denormalize_images(torch.tensor(values)).tolist()
    for x, u in zip(torch.tensor(values).tolist(), out):
        exact = min(255, max(0, (x + 1) * 127.5))
        near = abs(u - exact) <= 0.5 + 1e-4
        assert near, f"of x = {x:.4g}: expected round({exact:.4f}), found {u}"


def write(path, content=None):
    """A text, or an image of one grey per name, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_text(content, encoding="utf-8")


def captions_of(folder, **given):
    """The caption of each image of a folder, in the order of their paths."""
    _, labels, captions = train.load_data(str(folder), **given)
    return [captions[label] for label in labels]


@pytest.mark.spec("DATA-6")
@given(
    st.lists(st.text("aeiouxyzAEIOU0é猫", min_size=1, max_size=5), min_size=1, max_size=3),
    st.text("aB _!é猫0\n", max_size=20),
)
@example(["my", "red", "car"], "Two lines,\n\nas it_stands")
def test_a_folder_is_a_caption_unless_a_text_stands_beside_the_image(
    of_train, tmp_path, parts, caption
):
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    folder = root / "_".join(parts)
    write(folder / "no.text.png")
    write(folder / "with.text.png")
    write(folder / "with.text.txt", f" {caption}\n")
    _, labels, captions = of_train("load_data")(str(root))
    found = sorted(captions[label] for label in labels)
    expected = sorted([*flowclip.make_captions([" ".join(parts)]), caption.strip()])
    assert found == expected, f"expected {expected}, found {found}"


def test_texts_of_other_encodings(tmp_path):
    write(tmp_path / "1.png")
    write(tmp_path / "1.txt", "\ufeffa red square")  # as some editors begin
    assert captions_of(tmp_path) == ["a red square"]
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=f"--data {tmp_path}/1.txt: .*utf-8"):
        captions_of(tmp_path)


ROWS = '{"file_name": "%s", "text": "one"}\n{"file_name": "%s", "text": "two, or\\u2028three"}\n'
LAYOUTS = {  # files: their captions
    "a folder per class": (
        {"fire_truck/0.png": None, "owl/deep/er/1.JPG": None},
        ["a photo of a fire truck", "a photo of an er"],
    ),
    "a flat folder, its texts beside": (
        {"0.JPG": None, "0.TXT": "one", "1.png": None, "1.caption": "two", "2.gif": None},
        ["one", "two", "a photo of a pics"],
    ),
    "a flat folder and one below": (
        {"0.png": None, "0.txt": "one", "z/1.png": None, "notes.txt": "none"},
        ["one", "a photo of a z"],
    ),
    "an empty text is the empty prompt": ({"a/0.png": None, "a/0.txt": " "}, [""]),
    "metadata.jsonl": (
        {"x/0.png": None, "x/1.png": None, "x/metadata.jsonl": ROWS % ("0.png", "1.png")},
        ["one", "two, or\u2028three"],
    ),
    "metadata above": (
        {"x/0.png": None, "x/1.png": None, "metadata.jsonl": ROWS % ("x/0.png", "./x/1.png")},
        ["one", "two, or\u2028three"],
    ),
    "metadata.csv": (
        {"0.png": None, "1.png": None, "metadata.csv": 'text,file_name\n"one, two",0.png\n'},
        ["one, two", "a photo of a pics"],
    ),
    "hidden names": (
        {
            "cat/0.png": None, "cat/.ipynb_checkpoints/0.png": None, "@eaDir/1/0.png": None,
            "cat/.thumbnails/a.png": None, "__MACOSX/cat/0.png": None, "cat/._0.jpg": "\0\5\26\7",
            "cat/Thumbs.db": "x", ".git/x.txt": "x",
        },
        ["a photo of a cat"],
    ),
    "other files": (
        {"cat/0.png": None, "cat/clip.mpg": "x", "cat/x.h5": "x", "cat/1.HEIC": "x", "README": "x"},
        ["a photo of a cat"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layouts_that_people_have(tmp_path, name):
    files, captions = LAYOUTS[name]
    for path, content in files.items():
        write(tmp_path / "pics" / path, content)
    assert captions_of(tmp_path / "pics") == captions


def test_a_folder_is_counted_before_it_is_read(tmp_path, monkeypatch, capsys):
    for name in ("0.png", "1.png", "2.png", "cat/3.png"):
        write(tmp_path / "pics" / name)
    for name in ("0.txt", "1.TXT", "clip.mpg", "a.heic", "b.heic", ".hidden"):
        write(tmp_path / "pics" / name, name)
    monkeypatch.chdir(tmp_path)
    assert captions_of("pics") == ["0.txt", "1.TXT", "a photo of a pics", "a photo of a cat"]
    said = "pics: 4 images, 2 texts, 2 called by their folder, as ['a photo of a pics']; "
    assert capsys.readouterr().out == f"{said}passed over: 4 ['.heic', '.mpg', 'hidden']\n"
    monkeypatch.chdir("pics")
    assert captions_of(".")[2] == "a photo of a pics"


def test_a_folder_of_no_image_says_what_is_there(tmp_path, capsys):
    write(tmp_path / "a.heic", "x")
    with pytest.raises(ValueError, match=f"^--data {tmp_path}: no image is there"):
        captions_of(tmp_path)
    said = "0 images, 0 texts, 0 called by their folder, as []; passed over: 1 ['.heic']"
    assert said in capsys.readouterr().out


def test_metadata_without_a_text_is_named(tmp_path):
    write(tmp_path / "0.png")
    write(tmp_path / "metadata.jsonl", '{"file_name": "0.png", "caption": "x"}')
    with pytest.raises(ValueError, match=f"--data {tmp_path}/metadata.jsonl: 'text'"):
        captions_of(tmp_path)


def test_links_are_followed_at_every_level(tmp_path):
    write(tmp_path / "store/9/0.png")
    write(tmp_path / "store/1.png")
    (tmp_path / "pics/cat").mkdir(parents=True)
    (tmp_path / "pics/cat/deep_er").symlink_to(tmp_path / "store/9")
    (tmp_path / "pics/cat/link.png").symlink_to(tmp_path / "store/1.png")
    (tmp_path / "pics/dog").symlink_to(tmp_path / "store/9")
    assert captions_of(tmp_path / "pics") == [
        "a photo of a deep er", "a photo of a cat", "a photo of a dog"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["cat/gone.png", "cat/gone", "gone", "cat/0.txt", "self"])
def test_a_link_to_nothing_is_named(tmp_path, name):
    write(tmp_path / "cat/0.png")
    (tmp_path / name).symlink_to("self" if name == "self" else "nowhere")
    with pytest.raises(ValueError, match=name):
        captions_of(tmp_path)
    (tmp_path / name).rename(tmp_path / ".lock")  # as editors leave them
    assert captions_of(tmp_path) == ["a photo of a cat"]


@pytest.mark.parametrize("size, given, fits", [
    ((40, 30), {}, 64), ((400, 300), {}, 64), ((400, 300), {"patch_size": 2}, 32),
    ((3, 9), {"patch_size": 8}, 128), ((8, 8), {"img_size": 30}, 64),
])  # fmt: skip
def test_a_size_that_does_not_fit_is_refused_before_the_second_image_is_read(
    tmp_path, size, given, fits
):
    for n in range(3):
        write(tmp_path / f"cat/{n}.png", "no image")
    Image.new("L", size).save(tmp_path / "cat/0.png")
    with pytest.raises(ValueError, match=f"cat/0.png: .* try --img-size {fits}$"):
        captions_of(tmp_path, **given)
    for n in range(3):
        Image.new("L", size).save(tmp_path / f"cat/{n}.png")
    assert len(captions_of(tmp_path, **given | {"img_size": fits})) == 3


CLASSES = {
    "cifar10": (["airplane"] * 6 + ["frog"], "a photo of a frog"),
    "cifar100": (["x"] * 6 + ["aquarium_fish"], "a photo of an aquarium fish"),
    "mnist": (datasets.MNIST.classes, "a photo of a six"),
    "fashion-mnist": (datasets.FashionMNIST.classes[3:], "a photo of an ankle boot"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_data_sets_by_their_name(monkeypatch, name):
    """Of torchvision's own class, here without its download."""
    classes, caption = CLASSES[name]
    pixels = np.arange(2 * 28 * 28 * 3, dtype=np.uint8).reshape(2, 28, 28, 3)
    if "mnist" in name:
        pixels = torch.from_numpy(pixels[..., 0])
    found = SimpleNamespace(data=pixels, targets=[6, 1], classes=classes)
    stub = lambda root, download: (root, download) == ("data", True) and found  # noqa: E731
    stub.classes = classes
    monkeypatch.setattr(datasets, train.TORCHVISION[name], stub)
    images, labels, captions = train.load_data(name)
    channels = 1 if "mnist" in name else 3
    assert images.shape == (2, channels, 28, 28) and images.dtype == torch.uint8
    assert (images[1, 0, 2] == torch.as_tensor(pixels)[1, 2].reshape(28, -1)[:, 0]).all()
    assert captions[labels[0]] == caption and len(captions) == len(classes)
    if name == "mnist":
        assert captions == train.load_data("digits")[2] and captions[1] == "a photo of a one"


def test_metadata_may_have_any_character_but_must_be_text(tmp_path):
    write(tmp_path / "a/0.png")
    write(tmp_path / "a/metadata.jsonl", '{"file_name": "0.png", "text": " one\u2028two "}\n')
    assert captions_of(tmp_path) == ["one\u2028two"]
    write(tmp_path / "a/metadata.jsonl", '{"file_name": "0.png", "text": null}\n')
    with pytest.raises(ValueError, match="metadata.jsonl"):
        captions_of(tmp_path)
