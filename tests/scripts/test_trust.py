"""Nothing lost, nothing let in, every mistake answered (docs/checkpoints.md).

Bad input, faults, fuzzing, long runs.
"""

import contextlib
import csv
import gc
import io
import itertools
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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import flowclip
import sample
import train
from tests.conftest import ROOT, TINY, flag_refused, one_line
from tests.scripts import test_commands
from tests.spec import strategies as draw

heavy = pytest.mark.heavy
DEMO = ["--demo", *TINY]
drawn, pictures = test_commands.drawn, test_commands.pictures
no_pictures = test_commands.no_pictures


def picture(path, color="red", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def everything(folder):
    """{path: content} of all files below: nothing may be created or changed by a mistake."""
    paths = sorted(Path(folder).rglob("*"))
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


# ---- Images and captions ----
def pixels(path, size=8):
    """The one image of a folder."""
    images, _, _ = train.load_data(str(path.parent), size)
    return images[0].permute(1, 2, 0).numpy().astype(int)


def palette():
    """One color, red, declared transparent."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0])
    image.info["transparency"] = 0
    return image


WHITE, RED, CLEAR_RED = (255, 255, 255), (255, 0, 0), (255, 0, 0, 0)


@pytest.mark.parametrize("name, image, color", [
    ("gray.png", Image.new("L", (8, 8), 77), (77, 77, 77)),
    ("bits.png", Image.new("1", (8, 8), 1), WHITE),
    ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED),
    ("opaque.png", Image.new("RGBA", (8, 8), (*RED, 255)), RED),
    ("half.png", Image.new("RGBA", (8, 8), (*RED, 128)), (255, 127, 127)),
    ("clear.png", Image.new("RGBA", (8, 8), CLEAR_RED), WHITE),
    ("palette.png", palette(), WHITE),
])  # fmt: skip
def test_images_become_rgb_on_white(tmp_path, name, image, color):
    image.save(tmp_path / name, quality=100)
    read = pixels(tmp_path / name)
    assert read.shape == (8, 8, 3) and abs(read - color).max() < 5


@pytest.mark.parametrize("mode, name", [("I;16", "a.png"), ("I", "a.tiff"), ("F", "a.tiff")])
def test_pixels_of_more_bits_are_refused(tmp_path, mode, name):
    Image.new(mode, (8, 8)).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"--data {tmp_path / name}: .* 8 bits"):
        train.load_data(str(tmp_path))


def test_a_photo_of_a_telephone_on_its_side_is_upright(tmp_path):
    image, exif = Image.new("RGB", (8, 8), "black"), Image.Exif()
    image.paste("white", (0, 0, 8, 4))  # above
    exif[0x0112] = 6  # above is right
    image.save(tmp_path / "a.png", exif=exif)
    read = pixels(tmp_path / "a.png")
    assert (read[:, 4:] == 255).all() and (read[:, :4] == 0).all()


def test_the_middle_of_an_image_is_kept(tmp_path):
    image = Image.new("RGB", (24, 8), "black")
    image.paste("white", (8, 0, 16, 8))
    image.save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 255).all()
    assert (pixels(tmp_path / "a.png", 4) > 200).all()


def huge_png(path, side=60_000):
    """A PNG of 60,000 x 60,000 pixels in a few bytes: 10.8 GB when unpacked."""

    def chunk(kind, data):
        length, checksum = len(data), zlib.crc32(kind + data)
        return struct.pack(">I", length) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("name, spoil", [
    ("1.png", lambda path: path.write_text("not an image")),
    ("1.png", lambda path: path.write_bytes(b"")),
    ("1.png", lambda path: path.write_bytes(path.read_bytes()[:-30])),
    ("1.png", huge_png),
    ("0.png", huge_png),
], ids=["text", "empty", "cut", "huge", "first"])  # fmt: skip
def test_a_broken_file_is_named(command, tmp_path, name, spoil):
    for n in range(3):
        picture(tmp_path / f"my/dog/{n}.png")
    spoil(tmp_path / "my/dog" / name)
    before = everything(tmp_path)
    result = command(train, "--data", "my", "--clip-weights", "untrained", *TINY)
    one_line(result, "--data my", f"my/dog/{name}")
    assert everything(tmp_path) == before


def test_many_images_keep_their_order(tmp_path):
    """Threads decode them beside each other."""
    for n in range(300):
        picture(tmp_path / f"dog/{n:03}.png", (n % 256, n // 256, 0))
    images, _, _ = train.load_data(str(tmp_path))
    assert [r + 256 * g for r, g, _ in images[:, :, 0, 0].tolist()] == [*range(300)]


@pytest.mark.parametrize("data", ["nowhere", "file"])
def test_folders_that_are_none(command, data):
    Path("file").write_text("x")
    one_line(command(train, "--data", data, "--clip-weights", "untrained", *TINY), f"--data {data}")
    assert [*Path().iterdir()] == [Path("file")]


def test_one_image_is_enough_for_a_batch_of_one(command, no_pictures, tmp_path):
    picture(tmp_path / "my/dog/a.png")
    options = ["--data", "my", "--clip-weights", "untrained", *TINY, "--max-steps", 1]
    one_line(command(train, *options), "no batch: fewer images than --batch-size")
    assert command(train, *options, "--batch-size", 1)[0] == 0


def test_links_that_lead_back_end(tmp_path):
    picture(tmp_path / "dog/a.png")
    for name in ("cat", "dog/up", "dog/self"):  # if they were followed: 2^40 paths
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    assert len(train.load_data(str(tmp_path))[0]) <= 2


# ---- Command lines ----
@pytest.mark.parametrize("module, argv, words", [
    (train, ["--epochs", "many"], ["--epochs", "many"]),
    (train, ["--lr", "fast"], ["--lr", "fast"]),
    (train, ["--device", "tpu"], ["--device", "tpu"]),
    (train, ["--nonsense"], ["--nonsense"]),
    (sample, ["x", "--n", "two"], ["--n", "two"]),
    (sample, ["x", "--cfg", 1, "much"], ["--cfg", "much"]),
])  # fmt: skip
def test_flags_that_cannot_be_read(command, module, argv, words):
    flag_refused(command(module, *argv), *words)


@pytest.mark.parametrize("argv, said", [
    (["--embed-dim", 20, "--heads", 3], "--embed-dim 20"),
    (["--patch-size", 3], "--patch-size 3"),
    (["--clip", "ViT-B-23", "--clip-weights", "x"], "'ViT-B-23'"),
    (["--clip", "small-clip", "--clip-weights", "no.pt"], "'no.pt'"),
    (["--clip", "small-clip", "--clip-weights", "other.pt"], "'other.pt'"),
    (["--out", "other.pt"], "other.pt"),
    (["--out", "other.pt/run"], "other.pt/run"),
])  # fmt: skip
def test_train_refuses_in_one_line(command, argv, said):
    torch.save({"token_embedding.weight": torch.zeros(3, 3)}, "other.pt")
    before = Path("other.pt").read_bytes()
    one_line(command(train, *DEMO, *argv), said)
    assert Path("other.pt").read_bytes() == before and not [*Path().rglob("checkpoint*")]


@pytest.mark.parametrize("argv, said", [
    (["x"], "no checkpoint in runs/"),
    (["x", "--checkpoint", "no.pt"], "no.pt is not a whole flowclip checkpoint"),
    (["x", "--checkpoint", "."], ". is not a whole flowclip checkpoint"),
    (["x", "--checkpoint", "c.pt", "--steps", 0], "--steps"),
    (["x", "--checkpoint", "c.pt", "--n", 0], "--n"),
    (["x", "--checkpoint", "c.pt", "--out", "x"], "x.png"),
    (["x", "--checkpoint", "c.pt", "--out", "x.txt"], "txt"),
    (["x", "--checkpoint", "c.pt", "--out", "c.pt/x.png"], "c.pt"),
    (["x", "--checkpoint", "c.pt", "--save-dir", "c.pt"], "c.pt"),
])  # fmt: skip
def test_sample_refuses_in_one_line(command, drawn, argv, said):
    before = everything(drawn)
    one_line(command(sample, *argv, "--cfg", 1), said)
    assert everything(drawn) == before


def test_a_long_prompt_is_cut_with_a_note(command, drawn):
    status, out, err = command(sample, 99 * "dog ", "", "--checkpoint", "c.pt", "--steps", 1)
    assert status == 0 and not err and "note: 1 prompts cut at 77 tokens\n" in out


ODD = [
    "", "../../x", "a\0b", "two\nlines", "\N{GRINNING FACE}", "מילה עברית", "猫", "$\\frac$", "-",
    "C:\\x", "a/../b", "/etc/x",
]  # fmt: skip


def test_any_prompt_is_drawn_and_stays_in_its_folder(command, drawn):
    places = ["--checkpoint", "c.pt", "--save-dir", "deep/each", "--out", "deep/a.png"]
    status, _, err = command(sample, *places, "--steps", 1, "--", *ODD)
    assert status == 0 and not err, err
    assert {path.name for path in drawn.iterdir()} == {"c.pt", "deep"}
    assert {path.name for path in (drawn / "deep").iterdir()} == {"a.png", "each"}
    names = sorted(path.name for path in (drawn / "deep/each").iterdir())
    assert len(names) == len(ODD) and all(name.endswith(".png") for name in names)


def test_the_attention_of_any_prompt_is_drawn(command, drawn, pictures):
    places = ["--checkpoint", "c.pt", "--attention", "b.png"]
    status, _, err = command(sample, *places, "--steps", 1, "--", *ODD)
    assert status == 0 and not err, err
    assert len(pictures[1][1]) == len(ODD) * pictures[1][2]


# ---- Faults ----
def test_a_run_is_not_overwritten_by_accident(command, no_pictures):
    options = [*DEMO, "--max-steps", 3]
    assert "steps are done" not in command(train, *options, "--resume")[1], "there was none yet"
    before = everything("runs")
    one_line(command(train, *options), "runs/demo/checkpoint.pt", "--resume", "--overwrite")
    one_line(command(train, *options, "--resume", "--overwrite"), "runs/demo/checkpoint.pt")
    one_line(command(train, *options, "--overwrite", "--clip-weights", "no.pt"), "no.pt")
    assert everything("runs") == before
    again = command(train, *options, "--resume")[1]
    assert "\n--resume: 3 steps are done\n" in again and "resume was" not in again
    assert "steps are done" not in command(train, *options, "--overwrite")[1]


def test_text_vectors_are_the_same_after_a_resume(command, no_pictures, tmp_path):
    """Which captions share a call of CLIP decides how their vectors are rounded [TRAIN-7]."""
    for n, words in enumerate(["dog", "a very old dog", "cats", "a ship at sea, far away"] * 3):
        picture(tmp_path / f"my/{n}.png")
        (tmp_path / f"my/{n}.txt").write_text(f"{words} {n}")
    texts, options = [], ["--data", "my", "--batch-size", 2, "--clip-weights", "untrained", *TINY]
    save = train.TextConditionalTrainer.save_checkpoint

    def noted(trainer, *args, **settings):
        texts.append(dict(trainer.tokens))
        return save(trainer, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.TextConditionalTrainer, "save_checkpoint", noted)
        for run in (["--max-steps", 2], ["--max-steps", 4, "--resume"]):
            status, _, err = command(train, *options, *run)
            assert status == 0, err
    assert len(texts) == 2 and list(texts[0]) == list(texts[1]) and len(texts[0]) == 13
    for caption, Z in texts[0].items():
        assert torch.equal(texts[1][caption], Z), caption


def test_a_run_goes_on_with_its_own_settings(command, no_pictures):
    assert command(train, *DEMO, "--max-steps", 3)[0] == 0
    before = everything("runs")
    picture(Path("my/dog/a.png"))
    for argv, said in [
        (["--depth", 2], "depth was 1 and now is 2"),
        (["--img-size", 16], "img_size was 8 and now is 16"),
        (["--seed", 4], "seed was 0 and now is 4"),
        (["--warmup", 9], "warmup was 100 and now is 9"),
        (["--clip", "other"], "clip was 'ViT-B-32-quickgelu' and now is 'other'"),
        (["--data", "my", "--batch-size", 1, "--patch-size", 4], "images was 1797 and now is 1"),
    ]:
        one_line(command(train, *DEMO, "--resume", *argv), f"--resume: {said}")
    assert everything("runs") == before


def test_what_may_change_when_a_run_goes_on(command, no_pictures):
    assert command(train, *DEMO, "--max-steps", 3)[0] == 0
    Path("runs/demo").rename("moved")
    options = [
        "--epochs", 99, "--device", "cpu", "--precision", "bf16", "--out", "moved", "--max-steps",
        4, "--save-every", 2, "--sample-every", 3, "--lr", 1e-4,
    ]  # fmt: skip
    status, out, _ = command(train, *DEMO, "--resume", *options)
    assert status == 0 and "--resume: lr was 0.001 and now is 0.0001\n" in out
    rate = torch.load("moved/checkpoint.pt")["training"]["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(1e-4 * 4 / 100), "the fourth of 100 steps of the warm-up"
    assert flowclip.load_checkpoint("moved/checkpoint.pt")[1]["step"] == 4


def test_other_pictures_are_another_run(command, no_pictures, tmp_path):
    picture(tmp_path / "my/dog/a.png")
    options = ["--data", "my", "--clip-weights", "untrained", *TINY, "--batch-size", 1]
    assert command(train, *options, "--max-steps", 1)[0] == 0
    (tmp_path / "my/dog").rename(tmp_path / "my/cat")
    one_line(command(train, *options, "--resume"), "captions", "a dog", "a cat")
    picture(tmp_path / "my/cat/b.png")
    one_line(command(train, *options, "--resume"), "images was 1 and now is 2")


def test_the_same_files_by_another_path_go_on(command, no_pictures, small_encoder, tmp_path):
    """Pictures and text weights are known by what they hold, not by where they lie."""
    picture(tmp_path / "my/dog/a.png")
    state = small_encoder.tower.state_dict()
    torch.save(state, "right.pt")
    torch.save({name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()},
               "wrong.pt")  # fmt: skip
    options = [*TINY, "--clip", "small-clip", "--batch-size", 1, "--out", "run", "--resume"]
    first = ["--data", "my", "--clip-weights", "right.pt", "--max-steps", 1]
    assert command(train, *options, *first)[0] == 0
    (tmp_path / "my").rename("moved")
    Path("right.pt").rename("moved.pt")
    for n, (data, weights) in enumerate([
        ("moved/", "moved.pt"), (tmp_path / "moved", "./moved.pt")
    ], start=2):  # fmt: skip
        moved = ["--data", data, "--clip-weights", weights, "--max-steps", n]
        status, out, err = command(train, *options, *moved)
        assert status == 0 and "--resume: data was " in out, err
    assert flowclip.load_checkpoint("run/checkpoint.pt")[1]["step"] == 3
    wrong = ["--data", "moved", "--clip-weights", "wrong.pt", "--max-steps", 4]
    one_line(command(train, *options, *wrong), "other text weights")


def test_checkpoints_every_n_steps_and_each_epoch(command, monkeypatch, no_pictures):
    saved, save = [], flowclip.save_checkpoint

    def noted(path, model, meta, training):
        saved.append((meta["step"], meta["epoch"]))
        save(path, model, meta, training)

    monkeypatch.setattr(flowclip, "save_checkpoint", noted)
    assert command(train, *DEMO, "--save-every", 10, "--max-steps", 45)[0] == 0
    assert saved == [(10, 0), (20, 0), (28, 1), (38, 1), (45, 1)]


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_step_and_keeps_it(command, monkeypatch, number, status):
    step = train.TextConditionalTrainer.train_step

    def interrupted(self, *batch):
        if self.step == 2:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_DFL, "a second one stops at once"
        return step(self, *batch)

    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", interrupted)
    said, out, err = command(train, *DEMO, "--out", "run")
    assert said == status and not err
    assert "step 3;" in out.splitlines()[-1] and "run/checkpoint.pt" in out.splitlines()[-1]
    assert "\nepoch" not in out
    assert not Path("run/samples.png").exists()
    assert flowclip.load_checkpoint("run/checkpoint.pt")[1]["step"] == 3


def test_a_signal_that_is_ignored_stays_so(command, no_pictures):
    """As nohup ignores SIGHUP for what it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command(train, *DEMO, "--max-steps", 1)[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_another_launcher_left_makes_no_process_group(command, no_pictures, monkeypatch):
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "3", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    status, out, err = command(train, *DEMO, "--max-steps", 1)
    assert status == 0 and "made in" in out, err


def test_a_terminal_of_other_letters_ends_no_run(no_pictures, monkeypatch, tmp_path, small_encoder):
    picture(tmp_path / "\N{CJK UNIFIED IDEOGRAPH-72AC}/a.png")
    screen = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(flowclip, "CLIPTextEncoder", lambda *args: small_encoder)
    options = ["--data", tmp_path, *TINY, "--batch-size", 1, "--max-steps", 1, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options), "--out", str(tmp_path / "x")])
    flowclip.run_script(train.main)
    screen.flush()
    said = screen.buffer.getvalue().decode("cp1252")
    assert "captions like 'a photo of a \\u72ac'" in said and "next: python sample.py" in said


@pytest.mark.parametrize("images", [
    torch.full((2, 3, 8, 8), 59).byte(), torch.eye(8).mul(255).expand(2, 3, 8, 8),
    torch.full((2, 3, 8, 8), torch.nan),
], ids=["uint8", "0 to 255", "not a number"])  # fmt: skip
def test_what_another_loader_gives_is_looked_at(make_model, images):
    trainer = train.TextConditionalTrainer(make_model(), draw.StandIn(), [(images, [0, 1])], list)
    trainer.caption_fn = lambda labels: ["dog", "cat"]
    with pytest.raises(ValueError, match="(?s)images are tensor.*-1 and 1") as caught:
        trainer.train(1)
    assert len(str(caught.value)) < 250


def test_one_caption_for_a_batch_is_refused(make_model):
    """It would be read letter by letter."""
    trainer = train.TextConditionalTrainer(make_model(), draw.StandIn(), [], None)
    with pytest.raises(ValueError, match="'a photo of a dog'.* 16 captions"):  # of 16 letters
        trainer.train_step(torch.zeros(16, 3, 8, 8), "a photo of a dog")


def test_many_long_captions_are_one_note(command, no_pictures, tmp_path):
    for n in range(40):
        picture(tmp_path / f"my/{n}.png")
        (tmp_path / f"my/{n}.txt").write_text(f"{n} " + 90 * "dog ")
    options = ["--data", "my", "--clip", "small-clip", "--clip-weights", "w.pt", *TINY]
    torch.save(flowclip.CLIPTextEncoder("small-clip", "untrained").tower.state_dict(), "w.pt")
    status, out, err = command(train, *options, "--batch-size", 8, "--max-steps", 5)
    assert status == 0, err
    assert [line for line in out.splitlines() if "note" in line] == [
        "note: 40 prompts cut at 77 tokens"
    ]


@pytest.mark.parametrize("value, limit, found", [
    (float("nan"), 20, 10),  # at the next row of metrics.csv
    (float("inf"), 9, 9),  # before the checkpoint is written
])  # fmt: skip
def test_a_loss_that_is_not_finite_stops_the_run(
    command, monkeypatch, no_pictures, value, limit, found
):
    assert command(train, *DEMO, "--max-steps", 3)[0] == 0
    before = Path("runs/demo/checkpoint.pt").read_bytes()
    loss, steps = flowclip.flow_matching_loss, itertools.count(4)

    def poisoned(*args, **given):
        return loss(*args, **given) * (value if next(steps) == 7 else 1)

    monkeypatch.setattr(flowclip, "flow_matching_loss", poisoned)
    result = command(train, *DEMO, "--resume", "--max-steps", limit)
    one_line(result, "not finite", f"step {found}", "--lr")
    assert Path("runs/demo/checkpoint.pt").read_bytes() == before, "the last good one stays"


def test_weights_that_are_not_finite_are_not_saved(command, monkeypatch, no_pictures):
    step = train.TextConditionalTrainer.train_step

    def poisoned(self, *batch):
        loss = step(self, *batch)
        if self.step == 6:
            self.model.final_linear.bias.data[0] = float("inf")
        return loss

    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", poisoned)
    result = command(train, *DEMO, "--save-every", 3)
    one_line(result, "not finite", "step 6", "--lr")
    assert flowclip.load_checkpoint("runs/demo/checkpoint.pt")[1]["step"] == 3


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


def test_a_full_disk_leaves_the_checkpoint_as_it_was(command, no_pictures):
    assert command(train, *DEMO, "--max-steps", 3)[0] == 0
    before = everything("runs")
    for size in (0, 10_000):
        with room(size):
            result = command(train, *DEMO, "--max-steps", 6, "--resume")
        one_line(result, "runs/demo/checkpoint.pt")
        assert everything("runs") == before, "and no part of a new one is left"
    assert command(train, *DEMO, "--max-steps", 6, "--resume")[0] == 0


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    model = flowclip.TextConditionalDiT(
        np.int64(4), np.int64(2), np.int32(1), np.int64(8), 1, 1, np.float32(1), context_dim=12
    )
    flowclip.save_checkpoint(tmp_path / "c.pt", model, {"config": model.config})
    loaded, meta = flowclip.load_checkpoint(tmp_path / "c.pt")
    assert {type(value) for value in meta["config"].values()} == {int, float}
    assert torch.equal(draw.flat(loaded), draw.flat(model))


# ---- Fuzzing ----
@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """-> its path, its bytes, the model and meta in it."""
    path = tmp_path_factory.mktemp("fuzz") / "c.pt"
    model = draw.randomise(flowclip.TextConditionalDiT(4, 2, 1, 4, 1, 1, 1.0, context_dim=2), 0)
    meta = {"config": model.config, "captions": ["dog"], "losses": [0.5]}
    flowclip.save_checkpoint(path, model, meta)
    return path, path.read_bytes(), model, meta


def flip(content, place, bits=1):
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def is_refused(path, content):
    """Whether load_checkpoint refuses it, in its one line."""
    path.write_bytes(content)
    try:
        flowclip.load_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    return False


@given(cut=st.integers(0))
def test_a_cut_checkpoint_is_refused(small_checkpoint, cut):
    path, content, _, _ = small_checkpoint
    assert is_refused(path, content[: cut % len(content)])


@settings(max_examples=100)
@given(flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_damaged_checkpoint_is_refused_or_the_same(small_checkpoint, flips):
    """The same where the bytes are none that a reader of zip files looks at."""
    path, content, model, meta = small_checkpoint
    for place, bits in flips:
        content = flip(content, place % len(content), bits)
    if not is_refused(path, content):
        loaded, read = flowclip.load_checkpoint(path)
        assert read == meta and torch.equal(draw.flat(loaded), draw.flat(model))


def test_every_part_of_a_checkpoint_is_guarded(small_checkpoint):
    """The first, the middle and the last byte of each stored tensor and of the pickle."""
    path, content, _, _ = small_checkpoint
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [part for part in archive.infolist() if part.file_size]
    assert len(parts) > 40
    for part in parts:
        lengths = content[part.header_offset + 26 : part.header_offset + 30]
        start = part.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        for place in (start, start + part.file_size // 2, start + part.file_size - 1):
            assert is_refused(path, flip(content, place)), part.filename


FLAGS = {
    train: {
        "--data": ["digits", "my", "nowhere", "empty", "."], "--resume": [], "--overwrite": [],
        "--clip": ["ViT-B-32-quickgelu", "ViT-S-32-alt", "none"], "--what": [1],
        "--clip-weights": ["untrained", "no.pt", "c.pt", ""], "--epochs": [1, 2, 0, "x"],
        "--batch-size": [1, 64, 0, 10**6], "--lr": [1e-3, 0, -1, "nan", "1e400", "x"],
        "--warmup": [0, 3, -1], "--weight-decay": [0, 0.1, -1, "inf"], "--ema": [0, 0.5, 1, 2],
        "--text-drop": [0, 0.5, 1, 2], "--embed-dim": [4, 16, 18, 0], "--depth": [1, 2, 0],
        "--heads": [1, 2, 3, 0], "--patch-size": [1, 2, 4, 5, 0], "--img-size": [4, 8, 16, 7, 0],
        "--seed": [0, 7, -1, 2**70], "--precision": ["fp32", "bf16", "fp8"],
        "--device": ["cpu", "auto", "tpu"], "--out": ["run", "c.pt", "c.pt/run", "new/run"],
        "--max-steps": [1, 3, 0, "x"], "--save-every": [1, 2], "--sample-every": [1, 0],
    },
    sample: {
        "--cfg": [0, 1, 7.5, -1, "nan", "x"], "--steps": [1, 2, 0, -1, "x"],
        "--solver": ["euler", "heun", "rk4"], "--n": [1, 3, 0], "--seed": [0, -1, 2**70],
        "--clip-weights": ["untrained", "no.pt", "c.pt"], "--what": [1],
        "--out": ["a.png", "a.txt", "a", "my/a.jpg", "c.pt/a.png", "."],
        "--attention": ["b.png", "b.txt"], "--save-dir": ["my", "c.pt"],
        "--checkpoint": ["c.pt", "my", "no.pt", "empty"],
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
@settings(max_examples=100)
@given(data=st.data())
def test_100_command_lines_end_in_0_or_2(command, drawn, no_pictures, module, data):
    """A mistake in one line, or in tyro's box."""
    picture(drawn / "my/dog/a.png")
    (drawn / "empty").mkdir(exist_ok=True)
    argv = data.draw(command_lines(module), label="argv")
    if module is train:
        argv = [*DEMO, "--max-steps", 2, *argv]
    else:
        prompt = data.draw(st.text(max_size=9), label="prompt")
        argv = ["--checkpoint", "c.pt", "--steps", 1, "--cfg", 2, *argv, "--", prompt]
    status, _, err = command(module, *argv)
    assert (status, bool(err)) in [(0, False), (2, True)] and "Traceback" not in err, (status, err)
    assert len(err.splitlines()) < 2 or "--help" in err, err


@heavy
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_15_kills_lose_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "tests/scripts/forked.py"), "--kills", "15"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.match(r"15 kills of \d+ runs, (\d+) of them during a save", done.stdout)
    assert int(said[1]) > 0, done.stdout


# ---- Long runs ----
def held():
    """Files, threads and bytes of memory that this process holds."""
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), threading.active_count(), memory


def assert_holds_no_more(before):
    files, threads, memory = held()
    assert (files, threads) == before[:2] and memory - before[2] < 4 * 2**20


@heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_long_training_holds_no_more_than_short(make_model, tmp_path):
    images, labels = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8), torch.arange(2000) % 3
    trainer = train.TextConditionalTrainer(
        make_model().train(), draw.StandIn(), train.Batches(images, labels, 8),
        lambda labels: [f"number {n}" for n in labels], device="cpu",
        metrics=tmp_path / "metrics.csv",
    )  # fmt: skip
    trainer.train(1, max_steps=40)
    before = held()
    trainer.train(1, max_steps=240)
    assert_holds_no_more(before)
    with open(tmp_path / "metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [*range(10, 241, 10)]


@heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_many_samples_hold_no_more_than_few(make_model):
    model, encoder = make_model(), draw.StandIn()

    def sample_often(count):
        for _ in range(count):
            flowclip.sample_text_conditional(model, encoder, ["dog", ""], (3, 8, 8), 2, 3.0)

    sample_often(20)
    before = held()
    sample_often(100)
    assert_holds_no_more(before)


def test_a_notebook_prints_into_what_is_no_terminal():
    said = io.StringIO()  # it has no `reconfigure`
    with contextlib.redirect_stdout(said):
        flowclip.run_script(lambda: print("made"))
    assert said.getvalue() == "made\n"
