"""Chapter 4: data and captions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import strategies as draw


@pytest.mark.spec("DATA-1", "DATA-2")
@given(draw.names)
def test_captions(name):
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    assert flowclip.make_captions([name, "dog"]) == [f"a photo of {article} {name}", "a photo of a dog"]


@pytest.mark.spec("DATA-3")
def test_cifar10_captions():
    names = ["an airplane", "an automobile", "a bird", "a cat", "a deer", "a dog", "a frog", "a horse", "a ship", "a truck"]
    assert flowclip.make_cifar10_captions(torch.arange(10)) == [f"a photo of {name}" for name in names]
    assert flowclip.make_cifar10_captions([5, 0]) == ["a photo of a dog", "a photo of an airplane"]
    for bad in ([10], [-1]):
        with pytest.raises(ValueError, match="expected 0..9"):
            flowclip.make_cifar10_captions(bad)


@pytest.mark.spec("DATA-4", "DATA-5")
def test_every_pixel_value_comes_back():
    with pytest.raises(ValueError, match="^images has dtype torch.float32, expected torch.uint8$"):
        flowclip.normalize_images(torch.ones(3))
    u = torch.arange(256, dtype=torch.uint8)
    x = flowclip.normalize_images(u)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    torch.testing.assert_close(x.double(), torch.tensor([2 * n / 255 - 1 for n in range(256)]).double(), atol=1e-6, rtol=0)
    assert torch.equal(flowclip.denormalize_images(x), u)


@pytest.mark.spec("DATA-5")
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=8))
def test_outside_is_clamped_not_wrapped(values):
    out = flowclip.denormalize_images(torch.tensor(values))
    assert out.dtype == torch.uint8
    for value, u in zip(torch.tensor(values).tolist(), out.tolist()):
        assert abs(u - min(255, max(0, (value + 1) * 127.5))) <= 0.5 + 1e-4


@pytest.mark.spec("DATA-6")
def test_captions_of_files(tmp_path):
    folder = tmp_path / "fire_truck"
    folder.mkdir()
    (folder / "0002.txt").write_text("  ein rotes Auto, 赤い車\n", encoding="utf-8")
    assert flowclip.caption_of_file(folder / "0001.png") == "a photo of a fire truck"
    assert flowclip.caption_of_file(str(folder / "0002.png")) == "ein rotes Auto, 赤い車"
    assert flowclip.caption_of_file(tmp_path / "elk" / "a.b.jpg") == "a photo of an elk"


@pytest.mark.spec("DATA-6")
@given(st.lists(st.text("aeiouxyzAEIOU0é猫", min_size=1, max_size=5), min_size=1, max_size=3), draw.prompts)
def test_a_folder_is_a_caption_unless_a_text_stands_beside_the_image(tmp_path, parts, caption):
    folder = tmp_path / "_".join(parts)
    article = "an" if parts[0][0] in "aeiouAEIOU" else "a"
    assert flowclip.caption_of_file(folder / "no.text.png") == f"a photo of {article} {' '.join(parts)}"
    folder.mkdir(exist_ok=True)
    (folder / "with.text.txt").write_text(f" {caption}\n", encoding="utf-8")
    if caption.strip():
        assert flowclip.caption_of_file(folder / "with.text.png") == caption.strip()


@pytest.mark.spec("DATA-6")
@pytest.mark.parametrize("content", [b"", b" \n", b"caf\xe9", 10_000 * b"word "], ids=["empty", "blank", "latin-1", "a book"])
def test_what_is_no_caption_is_refused_by_name(tmp_path, content):
    (tmp_path / "1.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.txt is not a caption: 1 to 2,000 characters in UTF-8$"):
        flowclip.caption_of_file(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("\ufeffa red square", encoding="utf-8")  # as some editors begin a file
    assert flowclip.caption_of_file(tmp_path / "1.png") == "a red square"
    (tmp_path / "1.txt").write_text(2001 * "é", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a caption"):
        flowclip.caption_of_file(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text(2000 * "é", encoding="utf-8")
    assert flowclip.caption_of_file(tmp_path / "1.png") == 2000 * "é"
