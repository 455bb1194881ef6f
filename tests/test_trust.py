"""Nothing lost, nothing let in, every mistake answered: bad input, faults, fuzzing, long runs (docs/checkpoints.md)."""

import contextlib
import csv
import gc
import io
import itertools
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import flowclip
import sample
import train
from tests import strategies as draw
from tests.conftest import ROOT, TINY, one_line

heavy = pytest.mark.heavy
root = hasattr(os, "geteuid") and os.geteuid() == 0


def picture(path, color="red", size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def everything(folder):
    """{path: content} of all files below: nothing may be created or changed by a mistake."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


# ---- Images and captions ----
def test_images_of_every_kind_are_converted(tmp_path):
    gray = torch.arange(64).view(8, 8).numpy() * 4.0
    Image.fromarray((gray * 257).astype(np.uint16)).save(tmp_path / "16bit.png")
    Image.fromarray(gray.astype(np.uint8)).save(tmp_path / "gray.png")
    for name in ("16bit.png", "gray.png"):
        read = np.asarray(train.read_image(tmp_path / name))
        assert read.shape == (8, 8, 3) and (read == gray[..., None]).all(), name
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red below, but not to be seen
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    half.save(tmp_path / "alpha.png")
    half.convert("P").save(tmp_path / "palette.png", transparency=half.convert("P").getpixel((7, 7)))
    for name in ("alpha.png", "palette.png"):
        read = np.asarray(train.read_image(tmp_path / name)).astype(int)
        assert abs(read[0, 0] - [0, 0, 255]).max() < 5 and (read[0, 7] == 255).all(), (name, "white shows where nothing is")
    Image.new("I", (8, 8), 70_000).save(tmp_path / "32bit.tiff")
    assert np.asarray(train.read_image(tmp_path / "32bit.tiff")).min() == 255
    Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="float.tiff is not .*: its pixels are floating point numbers of an unknown scale"):
        train.read_image(tmp_path / "float.tiff")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    assert abs(np.asarray(train.read_image(tmp_path / "cmyk.jpg")).astype(int)[0, 0] - [255, 0, 0]).max() < 5
    assert np.asarray(train.read_image(tmp_path / "bits.png")).min() == 255
    upright, exif = Image.new("RGB", (4, 8), "lime"), Image.Exif()
    exif[0x0112] = 6  # a telephone on its side
    upright.save(tmp_path / "exif.jpg", exif=exif)
    assert train.read_image(tmp_path / "exif.jpg").size == (8, 4)
    assert train.read_image(tmp_path / "exif.jpg", 2).size == (2, 2)


def huge_png(path, side=60_000):
    """A PNG of 60,000 x 60,000 pixels in a few bytes: 10.8 GB when unpacked."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


BAD_FILES = {
    "text.png": lambda path: path.write_text("not an image"),
    "empty.png": lambda path: path.write_bytes(b""),
    "cut.jpg": lambda path: (picture(path, size=(99, 99)), path.write_bytes(path.read_bytes()[:-99])),
    "huge.png": huge_png,
    "0.txt": lambda path: path.write_bytes(b""),
    "1.txt": lambda path: path.write_bytes(b"caf\xe9"),
    "2.txt": lambda path: path.write_text(10_000 * "word "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_broken_file_is_named(command, tmp_path, name):
    for n in range(3):
        picture(tmp_path / f"my/dog/{n}.png", size=(16, 16))
    BAD_FILES[name](tmp_path / "my/dog" / name)
    before = everything(tmp_path)
    said = "is not a caption: 1 to 2,000 characters in UTF-8" if name.endswith("txt") else "is not an image that can be read"
    one_line(command(train, "--data", "my", "--clip-weights", "untrained", *TINY, "--batch-size", 2), f"my/dog/{name} {said}")
    assert everything(tmp_path) == before


@heavy
def test_a_broken_file_among_many_is_named(command, tmp_path):
    for n in range(600):  # enough for processes that decode beside each other
        picture(tmp_path / f"my/dog/{n}.png", color=(n % 256, n // 256, 0))
    images, _, captions = train.load_data("my")
    assert len(images) == 600 and captions == ["a photo of a dog"]
    names = sorted(str(n) + ".png" for n in range(600))
    assert [f"{r + 256 * g}.png" for r, g, _ in images[:, :, 0, 0].tolist()] == names
    (tmp_path / "my/dog/77.png").write_text("not an image")
    one_line(command(train, "--data", "my", "--clip-weights", "untrained"), "my/dog/77.png is not an image that can be read: ")
    (tmp_path / "my/dog/77.png").unlink()
    os.mkfifo(tmp_path / "my/dog/77.png")  # which would never end
    assert len(train.load_data("my")[0]) == 599


def test_folders_that_are_none(command, tmp_path):
    picture(tmp_path / "one/dog/a.png")
    picture(tmp_path / "small/dog/a.png", size=(2, 2))
    picture(tmp_path / "flat/a.png")
    picture(tmp_path / "loop/dog/a.png")
    (tmp_path / "loop/cat").symlink_to(tmp_path / "loop", target_is_directory=True)
    picture(tmp_path / "links/dog/a.png")
    for name in ("up", "self", "too"):  # below a class, links are not followed: two of them would be 2^40 paths
        (tmp_path / "links/dog" / name).symlink_to(tmp_path / "links", target_is_directory=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "classless/dog").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    before = everything(tmp_path)
    options = ["--clip-weights", "untrained", *TINY]
    one_line(command(train, "--data", "nowhere", *options), "--data nowhere: neither cifar10, digits, nor a folder that exists")
    one_line(command(train, "--data", "file", *options), "--data file: neither cifar10, digits, nor a folder that exists")
    none = "no image is there, expected a sub-folder of images a class"
    one_line(command(train, "--data", "empty", *options), f"--data empty: {none}")
    one_line(command(train, "--data", "classless", *options), f"--data classless: {none}")
    one_line(command(train, "--data", "flat", *options), f"--data flat: {none}")
    one_line(command(train, "--data", "", *options), "--data : neither cifar10, digits, nor a folder that exists")
    one_line(command(train, "--data", "one", *options), "--batch-size is 64, expected 1 to 1, the number of images")
    few = ["--batch-size", 1]
    one_line(command(train, "--data", "small", *options, *few), "img_size is 2, expected a multiple of patch_size = 4")
    one_line(command(train, "--data", "loop", *options, *few), "--data loop: loop/cat is a link that leads back")
    assert len(train.load_data("links")[0]) == 1
    assert everything(tmp_path) == before
    status, out, _ = command(train, "--data", "one", *options, *few, "--max-steps", 1)
    assert status == 0 and "1 images 3x8x8" in out, "one image is enough for a batch of one"


# ---- Command lines ----
@pytest.mark.parametrize("argv, words", [
    (["--batch-size", 0], "argument --batch-size: '0' is not from 1 to 1e+09"),
    (["--batch-size", -4], "argument --batch-size: '-4' is not from 1 to 1e+09"),
    (["--batch-size", 1798], "--batch-size is 1798, expected 1 to 1797, the number of images"),
    (["--epochs", 0], "argument --epochs: '0' is not from 1 to 1e+09"),
    (["--img-size", 10**24], "argument --img-size: '1000000000000000000000000' is not from 1 to 4096"),
    (["--seed", 10**24], "argument --seed: '1000000000000000000000000' is not from 0 to 9.22337e+18"),
    (["--clip", "hf-hub:foo/bar", "--clip-weights", "x"], "'hf-hub:foo/bar' is not a model with CLIP's own text tower"),
    (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    (["--lr=-1e-4"], "argument --lr: '-1e-4' is not from 1e-12 to 10"),
    (["--lr", 0], "argument --lr: '0' is not from 1e-12 to 10"),
    (["--lr", "nan"], "argument --lr: 'nan' is not from 1e-12 to 10"),
    (["--text-drop", 1.1], "argument --text-drop: '1.1' is not from 0 to 1"),
    (["--text-drop", -0.1], "argument --text-drop: '-0.1' is not from 0 to 1"),
    (["--embed-dim", 20, "--heads", 3], "embed_dim is 20, expected a multiple of num_heads = 3"),
    (["--embed-dim", 6, "--heads", 2], "dim is 6 (embed_dim of a model), expected a multiple of 4"),
    (["--patch-size", 3], "img_size is 8, expected a multiple of patch_size = 3"),
    (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    (["--clip", "ViT-B-23", "--clip-weights", "x"], "'ViT-B-23' is not a model with CLIP's own text tower; near it: ViT-B-32"),
    (["--clip-weights", "other.pt"], "other.pt holds no text tower of ViT-B-32-quickgelu"),
    (["--out", "other.pt"], "no file can be written at other.pt/checkpoint.pt"),
    (["--out", "other.pt/run"], "no file can be written at other.pt/run/checkpoint.pt"),
    (["--resume", "--overwrite"], "argument --overwrite: not allowed with argument --resume"),
    (["--nonsense"], "unrecognized arguments: --nonsense"),
])  # fmt: skip
def test_train_refuses_in_one_line(command, tmp_path, argv, words):
    torch.save({"token_embedding.weight": torch.zeros(3, 3)}, "other.pt")
    before = everything(tmp_path)
    one_line(command(train, "--demo", *TINY, *argv), words)
    assert everything(tmp_path) == before


@pytest.mark.skipif(root, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(command, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    one_line(command(train, "--demo", *TINY, "--out", "locked/run"), "no file can be written at locked/run/checkpoint.pt")


@pytest.fixture
def drawn(make_model, small_encoder, tmp_path, monkeypatch):
    """A checkpoint in the folder in which `command` works."""
    model = make_model(in_channels=1, context_dim=256)
    meta = {"config": model.config, "clip": "x", "clip_weights": "untrained", "captions": ["dog"], "image_shape": [1, 8, 8]}
    meta["clip_null"] = small_encoder.encode("", return_pooled=True)[1][0].tolist()
    flowclip.save_checkpoint(tmp_path / "c.pt", model, meta | {"epoch": 0, "step": 0, "losses": []})
    return tmp_path


@pytest.mark.parametrize("argv, words", [
    ([], "the following arguments are required: PROMPT"),
    (["x", "--steps", 0], "argument --steps: '0' is not from 1 to 10000"),
    (["x", "--n", 0], "argument --n: '0' is not from 1 to 10000"),
    (["x", "--n", 10**9], "argument --n: '1000000000' is not from 1 to 10000"),
    (["x", "--cfg", "nan"], "argument --cfg: 'nan' is not from -1000 to 1000"),
    (["x", "--cfg", 1, "inf"], "argument --cfg: 'inf' is not from -1000 to 1000"),
    (["x", "--seed", -1], "argument --seed: '-1' is not from 0 to "),
    (["x", "--checkpoint", "no.pt"], "no checkpoint file at no.pt"),
    (["x", "--checkpoint", "."], "no checkpoint file at ."),
    (["x", "--out", "x.txt"], "x.txt is no name of a picture, expected one that ends in .png, .jpg or .pdf"),
    (["x", "--out", "x"], "x is no name of a picture"),
    (["x", "--attention", "x.mp4"], "x.mp4 is no name of a picture"),
    (["x", "--out", "c.pt/x.png", "--save-dir", "new"], "no file can be written at c.pt/x.png"),
    (["x", "--out", ".", "--save-dir", "new"], "no file can be written at ."),
    (["x", "--out", "x.png", "--attention", "c.pt/x.png"], "no file can be written at c.pt/x.png"),
    (["x", "--save-dir", "c.pt"], "no file can be written at c.pt/0.png"),
    (["a", "\udcff", "--save-dir", "new"], "surrogates not allowed"),
])  # fmt: skip
def test_sample_refuses_in_one_line(command, drawn, argv, words):
    before = everything(drawn)
    one_line(command(sample, "--checkpoint", "c.pt", "--steps", 1, *argv), words)
    assert everything(drawn) == before


def test_an_empty_prompt_and_a_long_one(command, drawn):
    status, out, err = command(sample, "", "--checkpoint", "c.pt", "--steps", 1, "--out", "new/folder/grid.png")
    assert status == 0 and not err and out.startswith('note: the prompt "" is drawn without text\n')
    assert (drawn / "new/folder/grid.png").is_file()
    status, out, err = command(sample, 99 * "dog ", "--checkpoint", "c.pt", "--steps", 1)
    assert status == 0 and not err and "note: prompt cut at 77 tokens: 'dog dog " in out


ODD = ["../../x", "a\0b", "two\nlines", "\N{GRINNING FACE}", "מילה עברית", "猫", "$\\frac{", "-", "C:\\x", "a/../b"]


@settings(max_examples=5)
@given(st.lists(st.sampled_from(ODD) | st.text(max_size=9), min_size=1, max_size=2))
@example(ODD)
def test_any_prompt_is_drawn_and_stays_in_its_folder(command, drawn, prompts):
    (drawn / "deep/er").mkdir(parents=True, exist_ok=True)
    before = {path for path in drawn.rglob("*") if not path.is_relative_to(drawn / "deep")}
    places = ["--save-dir", "deep/er/each", "--out", "deep/er/grid.png", "--attention", "deep/er/attention.png"]
    result = command(sample, "--checkpoint", "c.pt", "--steps", 1, *places, "--", *prompts)
    assert result[0] == 0 and not result[2], result
    assert all(path.suffix == ".png" and "/" not in path.name for path in (drawn / "deep/er/each").iterdir())
    assert {path for path in drawn.rglob("*") if not path.is_relative_to(drawn / "deep")} == before


# ---- Faults ----
def test_a_run_is_not_overwritten_by_accident(command, monkeypatch):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    options = ["--demo", *TINY, "--max-steps", 3]
    assert "; 0 steps are done" in command(train, *options, "--resume")[1], "where there is none yet, --resume begins"
    before = everything("runs")
    one_line(command(train, *options), "runs/demo/checkpoint.pt exists: --resume goes on from it, --overwrite starts anew")
    one_line(command(train, *options, "--overwrite", "--clip-weights", "no.pt"), "no such file")
    one_line(command(train, *options, "--resume", "--depth", 2), "was trained with depth 1, and now it is 2")
    one_line(command(train, *options, "--resume", "--img-size", 16), "was trained with img_size 8, and now it is 16")
    one_line(command(train, *options, "--resume", "--seed", 4), "was trained with seed 0, and now it is 4")
    other = ["--clip", "ViT-S-32-alt"]
    one_line(command(train, *options, "--resume", *other), "trained with clip 'ViT-B-32-quickgelu', and")
    picture(Path("my/dog/a.png"))
    gray = ["--resume", "--out", "runs/demo", "--data", "my", "--batch-size", 1]
    one_line(command(train, *options, *gray), "was trained with data 'digits', and now it is 'my'")
    assert everything("runs") == before
    assert "; 3 steps are done" in command(train, *options, "--resume")[1]
    old = Path("runs/demo/checkpoint.pt").read_bytes()
    assert "; 0 steps are done" in command(train, *options, "--overwrite")[1]
    assert Path("runs/demo/checkpoint.old.pt").read_bytes() == old, "set aside, not lost"
    assert flowclip.load_checkpoint("runs/demo/checkpoint.pt")[1]["step"] == 3


def test_other_pictures_are_another_run(command, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    picture(tmp_path / "my/dog/a.png")
    options = ["--data", "my", "--clip-weights", "untrained", *TINY, "--batch-size", 1, "--max-steps", 1]
    assert command(train, *options)[0] == 0
    (tmp_path / "my/dog").rename(tmp_path / "my/cat")
    said = "was trained with captions ['a photo of a dog'], and now it is ['a photo of a cat']"
    one_line(command(train, *options, "--resume"), said)
    picture(tmp_path / "my/cat/b.png")
    one_line(command(train, *options, "--resume"), "was trained with images 1, and now it is 2")


def test_checkpoints_every_n_steps_and_each_epoch(command, monkeypatch):
    saved, save = [], flowclip.save_checkpoint

    def noted(path, model, meta, training):
        saved.append((meta["step"], meta["epoch"]))
        save(path, model, meta, training)

    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    monkeypatch.setattr(flowclip, "save_checkpoint", noted)
    assert command(train, "--demo", *TINY, "--save-every", 10, "--max-steps", 45)[0] == 0
    assert saved == [(10, 0), (20, 0), (28, 1), (30, 1), (40, 1), (45, 1)]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_keeps_it(command, monkeypatch, tmp_path, number, status):
    step = train.TextConditionalTrainer.train_step

    def interrupted(self, *args):
        if self.step == 2:
            os.kill(os.getpid(), number)
        return step(self, *args)

    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", interrupted)
    said, out, err = command(train, "--demo", *TINY, "--out", "run")
    assert said == status and not err
    assert out.splitlines()[-1] == "stopped after step 3; run/checkpoint.pt is written, and --resume goes on from it"
    assert not any(line.startswith("epoch") for line in out.splitlines()) and not (tmp_path / "run/samples.png").exists()
    assert flowclip.load_checkpoint("run/checkpoint.pt")[1]["step"] == 3


def test_ctrl_c_before_the_first_step(command, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_data", interrupted)
    assert command(train, "--demo") == (130, "", "train.py: stopped\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(command, monkeypatch, value):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    assert command(train, "--demo", *TINY, "--epochs", 1)[0] == 0
    before, loss, calls = Path("runs/demo/checkpoint.pt").read_bytes(), flowclip.flow_matching_loss, itertools.count(29)
    poison = lambda *args, **given: loss(*args, **given) * (value if next(calls) == 33 else 1)  # noqa: E731
    monkeypatch.setattr(flowclip, "flow_matching_loss", poison)
    for limit in ([], ["--max-steps", 35]):  # found at the next row, or before the checkpoint is written
        calls = itertools.count(29)
        result = command(train, "--demo", *TINY, "--resume", "--epochs", 2, *limit)
        one_line(result, "step 33 is not finite at learning rate 0.00033; try a lower --lr")
        assert Path("runs/demo/checkpoint.pt").read_bytes() == before, "the last good one stays"


def test_weights_that_are_not_finite_are_not_saved(command, monkeypatch):
    """The loss of a step is that of the weights before it: a bad step shows in the weights first."""
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    step = train.TextConditionalTrainer.train_step

    def poisoned(self, *args):
        loss = step(self, *args)
        if self.step == 6:
            self.model.final_linear.bias.data[0] = float("inf")
        return loss

    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", poisoned)
    result = command(train, "--demo", *TINY, "--save-every", 3)
    one_line(result, "step 6 is not finite at learning rate 6e-05; try a lower --lr")
    assert flowclip.load_checkpoint("runs/demo/checkpoint.pt")[1]["step"] == 3


def test_a_signal_before_the_first_step_is_answered_truly(command, monkeypatch):
    real = signal.signal

    def at_once(number, action):
        real(number, action)
        if number == signal.SIGTERM and callable(action):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(signal, "signal", at_once)
    status, out, _ = command(train, "--demo", *TINY)
    assert status == 143 and "stopped after step 0" in out
    assert flowclip.load_checkpoint("runs/demo/checkpoint.pt")[1]["step"] == 0


def test_a_checkpoint_without_what_resuming_needs(command, drawn):
    Path("runs/demo").mkdir(parents=True)
    Path("c.pt").rename("runs/demo/checkpoint.pt")
    one_line(command(train, "--demo", *TINY, "--resume"), "--resume: runs/demo/checkpoint.pt holds only what sampling needs")


@contextlib.contextmanager
def room(size):
    """No file may grow beyond `size` bytes: a full disk, as far as a process can tell."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_checkpoint_as_it_was(command, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    assert command(train, "--demo", *TINY, "--max-steps", 3)[0] == 0
    before = everything("runs")
    for size in (0, 10_000):
        with room(size):
            result = command(train, "--demo", *TINY, "--max-steps", 6, "--resume")
        one_line(result, "could not write runs/demo/checkpoint.pt" if size else "", "[Errno 27] File too large")
        after = everything("runs")
        assert after.keys() == before.keys(), "no part of a new one is left"
        assert after[Path("runs/demo/checkpoint.pt")] == before[Path("runs/demo/checkpoint.pt")]
    assert command(train, "--demo", *TINY, "--max-steps", 6, "--resume")[0] == 0


def test_what_cannot_be_written_is_named(make_model, tmp_path):
    path = tmp_path / "missing" / "c.pt"
    with pytest.raises(OSError, match=rf"could not write {path}, what was there is as it was: \[Errno 2\] No such file"):
        flowclip.save_checkpoint(path, make_model(), {})
    assert everything(tmp_path) == {}


# ---- Fuzzing ----
def same(a, b):
    """Whether two (model, meta) are the same to the last bit."""
    weights = [model.state_dict() for model in (a[0], b[0])]
    return a[1] == b[1] and all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def fuzz_checkpoint(path, whole, good, data):
    """Cut the file or flip some of its bytes: it loads identically, or is refused in the clear line."""
    if data.draw(st.booleans(), label="cut"):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    else:
        broken = bytearray(whole)
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3), label="places"):
            broken[place] ^= data.draw(st.integers(1, 255), label="flip")
    path.write_bytes(broken)
    try:
        loaded = flowclip.load_checkpoint(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} is not a whole flowclip checkpoint: ") and len(str(error).splitlines()) == 1
        return "refused"
    assert same(loaded, good)
    return "the same"


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "c.pt"
    model = draw.randomise(flowclip.TextConditionalDiT(4, 2, 1, 4, 1, 1, 1.0, 2), 0)
    flowclip.save_checkpoint(path, model, {"config": model.config, "captions": ["dog"], "losses": [0.5]})
    return path, path.read_bytes(), flowclip.load_checkpoint(path)


@given(data=st.data())
def test_a_damaged_checkpoint_is_refused(small_checkpoint, data):
    fuzz_checkpoint(*small_checkpoint, data)


@heavy
@settings(max_examples=300)
@given(data=st.data())
def test_300_damaged_checkpoints(small_checkpoint, data):
    fuzz_checkpoint(*small_checkpoint, data)


@heavy
def test_every_bit_of_the_contents_is_guarded(small_checkpoint, tmp_path):
    """Wherever a byte of a stored tensor or of the pickle is flipped, it is noticed; so are all lengths near a border."""
    path, whole, good = small_checkpoint
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", whole[info.header_offset + 26 : info.header_offset + 30])
            start = info.header_offset + 30 + name + extra
            for place in {start, start + info.file_size // 2, start + info.file_size - 1} if info.file_size else ():
                broken = bytearray(whole)
                broken[place] ^= 1
                (tmp_path / "flipped.pt").write_bytes(broken)
                with pytest.raises(ValueError, match="flipped.pt is not a whole flowclip checkpoint: "):
                    flowclip.load_checkpoint(tmp_path / "flipped.pt")
    for length in {0, 1, 2, 100, len(whole) // 2, len(whole) - 100, len(whole) - 22, len(whole) - 2, len(whole) - 1}:
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.pt is not a whole flowclip checkpoint: "):
            flowclip.load_checkpoint(tmp_path / "cut.pt")


FLAGS = {
    train: {
        "--data": ["digits", "my", "nowhere", "empty", "", "."], "--clip": ["ViT-B-32-quickgelu", "ViT-S-32-alt", "none"],
        "--clip-weights": ["untrained", "no.pt", "c.pt", ""], "--epochs": [1, 0, -1, "x"], "--batch-size": [1, 64, 0, 10**6],
        "--lr": [1e-3, 0, "nan", "1e400"], "--warmup": [0, 3, -1], "--weight-decay": [0, 0.1, -1, "inf"],
        "--text-drop": [0, 0.5, 1, 2], "--ema": [0, 0.5, 1, -1], "--embed-dim": [4, 16, 18, 0], "--depth": [1, 2, 0],
        "--heads": [1, 2, 3, 0], "--patch-size": [1, 2, 4, 5, 0], "--img-size": [4, 8, 16, 7, 0], "--seed": [0, 7, -1, 2**70],
        "--precision": ["fp32", "bf16", "fp8"], "--device": ["cpu", "auto", "tpu"], "--out": ["run", "c.pt", "new/run"],
        "--save-every": [1, 2, 0], "--sample-every": [1, 0], "--resume": [], "--overwrite": [], "--what": [1],
    },
    sample: {
        "--cfg": [0, 1, 7.5, "nan", "x"], "--steps": [1, 2, 0, 10**9], "--solver": ["euler", "heun", "rk4"],
        "--n": [1, 3, 0, 10**9], "--seed": [0, -1, 2**70], "--clip-weights": ["untrained", "no.pt", "c.pt"],
        "--out": ["a.png", "a.txt", "my/a.jpg", "c.pt/a.png", ""], "--attention": ["b.png", "b"], "--save-dir": ["my", "c.pt"],
        "--checkpoint": ["c.pt", "my", "no.pt", "empty"], "--what": [1],
    },
}  # fmt: skip


@st.composite
def command_lines(data, module):
    flags, argv = FLAGS[module], []
    for name in data(st.lists(st.sampled_from(sorted(flags)), max_size=5, unique=True)):
        argv += [name, data(st.sampled_from(flags[name]))] if flags[name] else [name]
    return argv


@heavy
@pytest.mark.parametrize("module", [train, sample], ids=["train.py", "sample.py"])
@settings(max_examples=300)
@given(data=st.data())
def test_300_command_lines_end_in_0_or_2(command, drawn, monkeypatch, module, data):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    picture(drawn / "my/dog/a.png")
    (drawn / "empty").mkdir(exist_ok=True)
    argv = data.draw(command_lines(module), label="argv")
    if module is train:
        argv = ["--demo", *TINY, "--max-steps", 2, *argv]
    else:
        argv = ["--checkpoint", "c.pt", "--steps", 1, "--cfg", 2, *argv, "--", data.draw(st.text(max_size=9), label="prompt")]
    status, _, err = command(module, *argv)
    assert status in (0, 2) and "Traceback" not in err, (status, err)
    assert len(err.splitlines()) == (status == 2), err


@heavy
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_50_kills_lose_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "forked.py"), "--kills", "50"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, saving = map(int, re.match(r"(\d+) kills of \d+ runs, (\d+) of them during a save", done.stdout).groups())
    assert kills == 50 and saving > 0
    print(done.stdout)


# ---- Long runs ----
def resident():
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_long_runs_hold_no_more_than_short_ones(make_model, tmp_path):
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 3
    trainer = train.TextConditionalTrainer(
        make_model().train(), draw.StandIn(), train.Batches(images, labels, 8),
        lambda labels: [f"number {n}" for n in labels.tolist()], device="cpu", metrics=tmp_path / "metrics.csv",
    )  # fmt: skip
    model = make_model()

    def sample_once():
        flowclip.sample_text_conditional(model, draw.StandIn(), ["dog", ""], (3, 8, 8), 2, 3.0, progress=False)

    trainer.train(25)
    for _ in range(20):
        sample_once()
    files, threads, memory = len(os.listdir("/proc/self/fd")), threading.active_count(), resident()
    trainer.train(250)
    assert trainer.step == 2200
    after_training = resident()
    for _ in range(200):
        sample_once()
    grown = after_training - memory, resident() - after_training
    print(json.dumps({"2,000 steps": grown[0], "200 samples": grown[1]}))
    assert max(grown) < 8 * 2**20, grown
    assert len(os.listdir("/proc/self/fd")) == files and threading.active_count() == threads
    with open(tmp_path / "metrics.csv") as file:
        assert [int(row[0]) for row in csv.reader(file)] == list(range(10, 2201, 10))
