"""Chapter 4: data and captions."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import strategies as draw
from tests.compare import close, equal

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
def test_the_article(name):
    expected = "an" if name[0] in "aeiouAEIOU" else "a"
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


@pytest.mark.spec("DATA-6")
@given(
    st.lists(st.text("aeiouxyzAEIOU0é猫", min_size=1, max_size=5), min_size=1, max_size=3),
    draw.prompts,
)
def test_a_folder_is_a_caption_unless_a_text_stands_beside_the_image(
    of_train, tmp_path, parts, caption
):
    folder, caption_of_file = tmp_path / "_".join(parts), of_train("caption_of_file")
    expected = flowclip.make_captions([" ".join(parts)])[0]
    found = caption_of_file(folder / "no.text.png")
    assert found == expected, f"without a text: expected {expected!r}, found {found!r}"
    folder.mkdir(exist_ok=True)
    (folder / "with.text.txt").write_text(f" {caption}\n", encoding="utf-8")
    found, expected = caption_of_file(folder / "with.text.png"), caption.strip()
    assert found == expected, f"beside a text: expected {expected!r}, found {found!r}"


# ---- Beyond the statements ----
def test_captions_of_lists():
    assert flowclip.make_cifar10_captions([5, 0]) == ["a photo of a dog", "a photo of an airplane"]


def test_types_of_images():
    x = flowclip.normalize_images(torch.tensor([0, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32 and x.tolist() == [-1, 1]
    assert flowclip.denormalize_images(x).dtype == torch.uint8


def test_texts_of_other_encodings(of_train, tmp_path):
    (tmp_path / "1.txt").write_text("\ufeffa red square", encoding="utf-8")  # as some editors begin
    assert of_train("caption_of_file")(tmp_path / "1.png") == "a red square"
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError):
        of_train("caption_of_file")(tmp_path / "1.png")
