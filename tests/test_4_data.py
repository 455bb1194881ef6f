"""Chapter 4: data and captions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
import train
from tests import strategies as draw


@pytest.mark.spec("DATA-1", "DATA-2")
@given(draw.names)
def test_captions(name):
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    captions = [f"a photo of {article} {name}", "a photo of a dog"]
    assert flowclip.make_captions([name, "dog"]) == captions


@pytest.mark.spec("DATA-3")
def test_cifar10_captions():
    an, a = "airplane automobile", "bird cat deer dog frog horse ship truck"
    captions = [f"a photo of an {name}" for name in an.split()]
    captions += [f"a photo of a {name}" for name in a.split()]
    assert flowclip.make_cifar10_captions(torch.arange(10)) == captions
    assert flowclip.make_cifar10_captions([5, 0]) == ["a photo of a dog", "a photo of an airplane"]
    for bad in ([10], [-1]):
        with pytest.raises(ValueError):
            flowclip.make_cifar10_captions(bad)


@pytest.mark.spec("DATA-4", "DATA-5")
def test_every_pixel_value_comes_back():
    u = torch.arange(256, dtype=torch.uint8)
    x = flowclip.normalize_images(u)
    expected = torch.tensor([n / 127.5 - 1 for n in range(256)])
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)
    assert torch.equal(flowclip.denormalize_images(x), u)


@pytest.mark.spec("DATA-5")
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_outside_is_clamped_not_wrapped(values):
    out = flowclip.denormalize_images(torch.tensor(values))
    assert out.dtype == torch.uint8
    for value, u in zip(torch.tensor(values).tolist(), out.tolist()):
        assert abs(u - min(255, max(0, (value + 1) * 127.5))) <= 0.5 + 1e-4


@pytest.mark.spec("DATA-6")
@given(
    st.lists(st.text("aeiouxyzAEIOU0é猫", min_size=1, max_size=5), min_size=1, max_size=3),
    draw.prompts,
)
def test_a_folder_is_a_caption_unless_a_text_stands_beside_the_image(tmp_path, parts, caption):
    folder = tmp_path / "_".join(parts)
    article = "an" if parts[0][0] in "aeiouAEIOU" else "a"
    named = f"a photo of {article} {' '.join(parts)}"
    assert train.caption_of_file(folder / "no.text.png") == named
    folder.mkdir(exist_ok=True)
    (folder / "with.text.txt").write_text(f" {caption}\n", encoding="utf-8")
    assert train.caption_of_file(folder / "with.text.png") == caption.strip()


def test_texts_of_other_encodings(tmp_path):
    (tmp_path / "1.txt").write_text("\ufeffa red square", encoding="utf-8")  # as some editors begin
    assert train.caption_of_file(tmp_path / "1.png") == "a red square"
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError):
        train.caption_of_file(tmp_path / "1.png")
