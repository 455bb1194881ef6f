"""Chapter 7: data and captions."""

import re
import string
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
@example("one way")
@example("onesie")
@example("Owl")
@example("hour")
@example("écu")
def test_the_article(name):
    expected = "an" if name[0] in "aeiouAEIOU" and name != "one" else "a"
    said = flowclip.make_captions([name])[0]
    found = said.removeprefix("a photo of ").split()[0]
    assert found == expected, f"of {name!r}: expected the article {expected!r}, found {said!r}"


@pytest.mark.spec("DATA-2")
def test_every_first_letter():
    for letter in string.ascii_letters:
        said = flowclip.make_captions(["b", f"{letter}xo"])[1]
        expected = f"a photo of {'an' if letter in 'aeiouAEIOU' else 'a'} {letter}xo"
        assert said == expected, f"expected {expected!r}, found {said!r}"


@pytest.mark.spec("DATA-3")
@pytest.mark.parametrize("labels", [torch.arange(10), [3, 3, 0, 9, 1], torch.tensor([8])])
def test_cifar10_captions(labels):
    said = flowclip.make_cifar10_captions(labels)
    expected = flowclip.make_captions([CIFAR10[label] for label in labels])
    assert said == expected, f"of {labels}: expected {expected}, found {said}"


@pytest.mark.spec("DATA-3")
def test_labels_that_cifar10_does_not_have():
    for bad in ([10], [-1], [3, 10], [3, -1, 4], torch.tensor([9, 11])):
        try:
            said = flowclip.make_cifar10_captions(bad)
        except ValueError:
            continue
        raise AssertionError(f"the labels {bad}: expected a ValueError, found {said!r}")


@pytest.mark.spec("DATA-4")
def test_every_pixel_value():
    u = torch.arange(256, dtype=torch.uint8)
    expected = [n / 127.5 - 1 for n in range(256)]
    x = flowclip.normalize_images(u)
    assert x.dtype == torch.float32, f"it is in {x.dtype}"
    close("the image of the pixels 0..255", x, expected, atol=1e-6)
    few = u[80:120].view(2, 5, 2, 2)  # neither the darkest nor the brightest
    close("an image of grey pixels", flowclip.normalize_images(few), few / 127.5 - 1, atol=1e-6)


@pytest.mark.spec("DATA-5")
def test_every_pixel_value_comes_back():
    x = torch.arange(256) / 127.5 - 1  # [DATA-4]
    u = flowclip.denormalize_images(x)
    assert u.dtype == torch.uint8, f"the pixels are in {u.dtype}"
    equal("the pixels of all 256 values", u, torch.arange(256))


@pytest.mark.spec("DATA-5")
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_outside_is_clamped_not_wrapped(values):
    out = flowclip.denormalize_images(torch.tensor(values)).tolist()
    for x, u in zip(torch.tensor(values).tolist(), out):
        exact = min(255, max(0, (x + 1) * 127.5))
        near = abs(u - exact) <= 0.5 + 1e-4
        assert near, f"of x = {x:.4g}: expected round({exact:.4f}), found {u}"


def write(path, content):
    """A text, or an image of one grey, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        Image.new("RGB", (4, 4), (content, content, content)).save(path)
    else:
        path.write_text(content, encoding="utf-8")


def greys_and_captions(load_data, folder):
    """What is learned from a folder: (the grey of an image, its caption), sorted."""
    images, labels, captions = load_data(str(folder))
    assert len(images) == len(labels), f"{len(images)} images, {len(labels)} labels"
    greys = [image.float().mean().item() for image in images]
    return sorted((grey, captions[label]) for grey, label in zip(greys, labels))


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
    write(folder / "no.text.png", 50)
    write(folder / "with.text.png", 100)
    write(folder / "with.text.txt", f" {caption}\n")
    found = greys_and_captions(of_train("load_data"), root)
    expected = [(50, *flowclip.make_captions([" ".join(parts)])), (100, caption.strip())]
    assert found == expected, f"expected {expected}, found {found}"


@pytest.mark.spec("DATA-6")
@pytest.mark.parametrize("metadata, rows", [
    ("metadata.csv", 'file_name,text\nold_boat/a.png,"a row, in quotes"\nold_boat/f.png,two\n'),
    ("metadata.jsonl", '{"file_name": "old_boat/a.png", "text": "a row, in quotes"}\n'
     '{"file_name": "old_boat/f.png", "text": "two"}\n'),
])  # fmt: skip
def test_each_image_has_its_own_text_and_a_row_comes_first(of_train, tmp_path, metadata, rows):
    """Some images are alike, and have other texts; names recur in another folder."""
    write(tmp_path / metadata, rows)
    files = {
        "old_boat/a": (10, "not read, as there is a row"), "old_boat/b": (10, "of b"),
        "old_boat/c": (10, None), "old_boat/f": (20, None), "axe/b": (30, None),
        "axe/a": (40, "of the other a"), "axe/d": (40, "of d"), "axe/old_boat": (50, None),
        "old_boat/owl/a": (60, None),
    }  # fmt: skip
    for name, (grey, text) in files.items():
        write(tmp_path / f"{name}.png", grey)
        if text:
            write(tmp_path / f"{name}.txt", text)
    found = greys_and_captions(of_train("load_data"), tmp_path)
    expected = sorted([
        (10, "a row, in quotes"), (10, "of b"), (10, "a photo of an old boat"), (20, "two"),
        (30, "a photo of an axe"), (40, "of the other a"), (40, "of d"), (50, "a photo of an axe"),
        (60, "a photo of an owl"),
    ])  # fmt: skip
    assert found == expected, f"expected {expected}, found {found}"


CLASSES = {
    "cifar10": (["airplane"] * 6 + ["frog"], "a photo of a frog"),
    "cifar100": (["x"] * 6 + ["aquarium_fish"], "a photo of an aquarium fish"),
    "mnist": (datasets.MNIST.classes, "a photo of a six"),
    "fashion-mnist": (datasets.FashionMNIST.classes[3:], "a photo of an ankle boot"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_data_sets_by_their_name(monkeypatch, tmp_path, name):
    """Of torchvision's own class, here without its download."""
    import train  # not above: a file that is judged need not have what train.py imports

    monkeypatch.chdir(tmp_path)  # where data/ is made
    classes, caption = CLASSES[name]
    pixels = np.arange(2 * 28 * 28 * 3, dtype=np.uint8).reshape(2, 28, 28, 3)
    if "mnist" in name:
        pixels = torch.from_numpy(pixels[..., 0])
    found = SimpleNamespace(data=pixels, targets=[6, 1], classes=classes)
    stub = lambda *args, download: (args, download) == (("data", True), True) and found  # noqa: E731
    stub.classes = classes
    monkeypatch.setattr(datasets, train.TORCHVISION[name], stub)
    images, labels, captions = train.load_data(name)
    channels = 1 if "mnist" in name else 3
    assert images.shape == (2, channels, 28, 28) and images.dtype == torch.uint8
    assert (images[1, 0, 2] == torch.as_tensor(pixels)[1, 2].reshape(28, -1)[:, 0]).all()
    assert captions[labels[0]] == caption and len(captions) == len(classes)
    if name == "mnist":
        assert captions == train.load_data("digits")[2] and captions[1] == "a photo of a one"
