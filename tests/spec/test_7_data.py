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
@example("one way")
@example("yak")
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
    for bad in ([10], [-1], [3, 10], [3, -1]):
        try:
            said = flowclip.make_cifar10_captions(bad)
        except ValueError:
            continue
        raise AssertionError(f"the labels {bad}: expected a ValueError, found {said!r}")


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
