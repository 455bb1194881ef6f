"""Folders as people have them (docs/7-data.md): what becomes a caption, and what is refused."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin

import flowclip
import train
from tests.conftest import TINY


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


CSV, JSONL = "metadata.csv", "metadata.jsonl"
CAFE = [unicodedata.normalize(form, "café.png") for form in ("NFD", "NFC")]


def row(image, text):
    return json.dumps({"file_name": image, "text": text}) + "\n"


READ = {  # files (an image where there is no text): the captions in their order
    "a blank before a quote": ({"0.png": None, CSV: 'file_name, text\n0.png, "a, b"\n'}, ["a, b"]),
    "blank lines": (
        {"0.png": None, "1.png": None, CSV: "\nfile_name,text\n\n0.png,one\n\n1.png,two\n\n"},
        ["one", "two"],
    ),
    "blank lines of JSON": (
        {"0.png": None, "1.png": None, JSONL: row("0.png", "one") + "\n" + row("1.png", "two")},
        ["one", "two"],
    ),
    "a text of two lines": ({"0.png": None, CSV: 'file_name,text\n0.png,"a\nb"\n'}, ["a\nb"]),
    "a row each for many captions": (
        {"0.png": None, "1.png": None, CSV: "file_name,text\n0.png,a\n1.png,b\n0.png,c\n"},
        ["a", "c", "b"],
    ),
    "letters composed or not": ({CAFE[0]: None, JSONL: row(CAFE[1], "coffee")}, ["coffee"]),
    "not composed or composed": ({CAFE[1]: None, JSONL: row(CAFE[0], "coffee")}, ["coffee"]),
    "backslashes": ({"x/0.png": None, JSONL: row(".\\x\\0.png", "one")}, ["one"]),
    "an ending in capitals": ({"0.JPG": None, JSONL: row("0.jpg", "one")}, ["one"]),
    "rows in a folder beside": ({"x/0.png": None, "y/" + JSONL: row("../x/0.png", "a")}, ["a"]),
    "a row before a text beside": (
        {"0.png": None, "0.txt": "beside", JSONL: row("0.png", "row")}, ["row"]
    ),
    "a name in capitals": ({"0.png": None, "Metadata.CSV": "file_name,text\n0.png,a\n"}, ["a"]),
    "a dot in its name": ({"Dr. Who.png": None, "Dr. Who.txt": "a doctor"}, ["a doctor"]),
    "a blank before a comma": ({"0.png": None, CSV: "file_name,text\n0.png ,one\n"}, ["one"]),
    "columns without a name": ({"0.png": None, CSV: "file_name,text,,\n0.png,a,,\n"}, ["a"]),
    "a last row of commas": ({"0.png": None, CSV: "file_name,text\n0.png,a\n,\n"}, ["a"]),
    "half an emoji": ({"0.png": None, JSONL: row("0.png", "happy \ud83d")}, ["happy ?"]),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_folder_is_read(tmp_path, name):
    files, captions = READ[name]
    for path, content in files.items():
        write(tmp_path / path, content)
    assert captions_of(tmp_path) == captions


REFUSED = {  # the name of a file beside 0.png, its text: the line that is named, what was found
    "unquoted commas": (CSV, "file_name,text\n0.png,1girl, solo\n", 2, "0.png,1girl, solo"),
    "after a text of two lines": (CSV, 'file_name,text\n0.png,"a\n\nb"\n\n1,2,3\n', 6, "1,2,3"),
    "too few fields": (CSV, "file_name,text,of\n0.png,a\n", 2, "0.png,a"),
    "a quote never closed": (CSV, 'file_name,text\n0.png,"a cat\n1.png,a dog\n', 2, '0.png,"a cat'),
    "words after a quote": (CSV, 'file_name,text\n0.png,"a" cat\n', 2, '0.png,"a" cat'),
    "two columns of one name": (CSV, "text,file_name,text\n0.png,a,b\n", 1, "text,file_name,text"),
    "no header": (CSV, "0.png,one\n", 1, "0.png,one"),
    "other columns": (CSV, "image_id,label\n0,7\n", 1, "image_id,label"),
    "semicolons": (CSV, "file_name;text\n0.png;one\n", 1, "file_name;text"),
    "tabs": (CSV, "file_name\ttext\n0.png\tone\n", 1, "file_name\ttext"),
    "a JSON array": (JSONL, "[\n" + row("0.png", "one") + "]", 1, "["),
    "other keys": (JSONL, row("0.png", "a") + '{"image": "0.png"}', 2, '{"image": "0.png"}'),
    "a number": (JSONL, row("0.png", 7), 1, row("0.png", 7).strip()),
    "several texts": (JSONL, row("0.png", ["a", "b"]), 1, row("0.png", ["a", "b"]).strip()),
    "no text": (JSONL, row("0.png", None), 1, row("0.png", None).strip()),
    "a name that is none": (JSONL, row(7, "a"), 1, row(7, "a").strip()),
    "no object": (JSONL, "7\n", 1, "7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_is_refused_by_its_line(tmp_path, name):
    file, text, line, found = REFUSED[name]
    write(tmp_path / "0.png")
    write(tmp_path / file, text)
    with pytest.raises(flowclip.UserError) as caught:
        captions_of(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"--data {tmp_path}/{file}: line {line}: expected "), said
    assert said.endswith(f", found {found}"), said


@pytest.mark.parametrize("files, named", [
    ({"images/0.png": None, "captions/0.txt": "one"}, "captions/0"),
    ({"Images/0.png": None, "captions.txt": "image,caption\n0.png,a dog\n"}, "captions"),
    ({"0.png": None, JSONL: row("train/0.png", "one")}, "train/0.png"),
])  # fmt: skip
def test_texts_of_which_none_is_taken_are_refused(tmp_path, files, named):
    for path, content in files.items():
        write(tmp_path / path, content)
    with pytest.raises(flowclip.UserError, match=f"^--data {tmp_path}: .*{tmp_path}/{named}'"):
        captions_of(tmp_path)


def test_texts_that_no_image_takes_are_counted(tmp_path, capsys):
    write(tmp_path / "0.png")
    write(tmp_path / JSONL, row("0.png", "one") + row("gone.png", "two") + row("gone.png", "three"))
    assert captions_of(tmp_path) == ["one"]
    said = f" 1 images, 3 texts, 2 of them taken by no image ['{tmp_path}/gone.png']; 0 called by"
    assert said in capsys.readouterr().out
    write(tmp_path / CSV, "file_name,text\n0.png,four\n")
    assert captions_of(tmp_path) == ["four", "one"]
    assert " 1 images, 4 texts, 2 of them" in capsys.readouterr().out, "a header is no text"


def test_a_folder_that_is_there_comes_before_a_data_set(tmp_path, monkeypatch, capsys):
    write(tmp_path / "digits/cat/0.png")
    monkeypatch.chdir(tmp_path)
    assert train.load_data("digits")[2] == ["a photo of a cat"]
    assert capsys.readouterr().out.startswith("folder digits: 1 images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.load_data("~/digits")[2] == ["a photo of a cat"]
    Path("mnist").write_text("no folder")
    assert len(train.load_data("~/../" + tmp_path.name + "/digits")[0]) == 1


def test_a_folder_whose_name_is_not_utf8_is_trained_on_and_drawn(command, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/my/caf\xe9")
    try:
        write(Path(folder, "0.png"))
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    options = ["--data", "my", "--clip-weights", "untrained", *TINY, "--batch-size", 1]
    status, out, err = command(train, *options, "--max-steps", 1)
    assert status == 0 and "a photo of a caf?" in out and not err, err


def test_what_is_not_pixels_is_no_reason_to_refuse(tmp_path):
    image, big = Image.new("RGB", (8, 8), "red"), "x" * 2**21
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", big, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", big, zip=True)
    image.save(tmp_path / "texts.png", pnginfo=texts)
    many = PngImagePlugin.PngInfo()
    for n in range(80):
        many.add_text(f"{n}", big[: 2**20], zip=True)
    image.save(tmp_path / "many.png", pnginfo=many)
    image.save(tmp_path / "profile.png", icc_profile=bytes(2**21))
    image.save(tmp_path / "exif.png", exif=b"no exif at all")
    images, _, _ = train.load_data(str(tmp_path))
    assert torch.equal(images, torch.tensor([255, 0, 0]).reshape(3, 1, 1).expand(4, 3, 8, 8))


def test_texts_of_other_encodings(tmp_path):
    write(tmp_path / "1.png")
    write(tmp_path / "1.txt", "\ufeffa red square")  # as some editors begin
    assert captions_of(tmp_path) == ["a red square"]
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=f"--data {tmp_path}/1.txt: .*'utf-8'"):
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
    assert capsys.readouterr().out == (
        "folder pics: 4 images, 2 texts, 0 of them taken by no image []; 2 called by their folder, "
        "as ['a photo of a pics']; passed over: 3 ['.heic', '.mpg']\n"
    )
    monkeypatch.chdir("pics")
    assert captions_of(".")[2] == "a photo of a pics"


def test_pictures_of_a_run_are_no_data(command, tmp_path):
    """Its folder may be that of the images, or lie among them, as with --data . --out run."""
    for name in ("cat/0.png", "cat/1.png", "dog/loss.png"):
        write(tmp_path / name)
    run = ["--data", ".", "--img-size", 8, "--clip-weights", "untrained", "--patch-size", 2, *TINY]
    run += ["--batch-size", 2, "--max-steps", 1]
    for out in ("run", "cat", "."):
        assert command(train, *run, "--out", out)[0] == 0
        assert (tmp_path / out / "samples.png").is_file()
    assert captions_of(tmp_path) == 2 * ["a photo of a cat"] + ["a photo of a dog"]


def test_a_folder_of_no_image_says_what_is_there(tmp_path, capsys):
    write(tmp_path / "a.heic", "x")
    with pytest.raises(ValueError, match=f"^--data {tmp_path}: 0 images"):
        captions_of(tmp_path)
    assert "passed over: 1 ['.heic']\n" in capsys.readouterr().out


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


@pytest.mark.parametrize("size, given, pixels", [
    ((40, 30), 0, 24), ((4, 4), 0, 8), ((400, 300), 0, 64), ((400, 300), 128, 128),
    ((8, 8), 30, 30),
])  # fmt: skip
def test_images_are_as_large_as_the_first_but_at_most_64(tmp_path, size, given, pixels):
    for n in range(3):
        write(tmp_path / f"cat/{n}.png")
    Image.new("L", size).save(tmp_path / "cat/0.png")
    images, _, _ = train.load_data(str(tmp_path), given)
    assert images.shape == (3, 3, pixels, pixels)
