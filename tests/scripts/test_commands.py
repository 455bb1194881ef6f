"""train.py and sample.py as a user runs them, on tiny settings and without a network."""

import contextlib
import os
import re
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import flowclip
import sample
import train
from tests.conftest import TINY, one_line
from tests.scripts.forked import assert_same_end
from tests.spec import strategies as draw

DEMO = ["--demo", *TINY]


@pytest.fixture
def no_pictures(monkeypatch):
    """Training without the sampling at its end."""
    monkeypatch.setattr(train, "draw_pictures", lambda *args: None)


@pytest.fixture
def drawn(make_model, small_encoder, tmp_path):
    """A checkpoint c.pt of random weights, in the folder in which `command` works -> the folder."""
    model = make_model(in_channels=1, context_dim=64)
    meta = {
        "config": model.config, "image_shape": [1, 8, 8], "clip": "x", "clip_weights": "untrained",
        "clip_null": small_encoder("")[0][0, -1].tolist(), "captions": [*"abcdefghijkl"],
        "epoch": 0, "step": 0, "losses": [],
    }  # fmt: skip
    flowclip.save_checkpoint(tmp_path / "c.pt", model, meta)
    return tmp_path


@pytest.fixture
def pictures(monkeypatch):
    """What the labelled pictures would show: the arguments of each save_picture."""
    seen = []
    monkeypatch.setattr(flowclip, "save_picture", lambda *args: seen.append(args))
    return seen


@pytest.fixture
def fp32(monkeypatch):
    """Images of the same noise and prompt are the same in batches of any size."""
    monkeypatch.setattr(flowclip, "autocast", lambda *args: contextlib.nullcontext())


def assert_alike(image, other):
    assert (image.int() - other.int()).abs().max() <= 1


# ---- train.py ----
def test_what_a_run_says_and_leaves(command, tmp_path):
    options = ["--epochs", 1, "--batch-size", 150, "--out", "run"]
    status, out, _ = command(train, *DEMO, *options)
    lines = [said for said in out.splitlines() if not said.startswith("note: ")]
    assert status == 0 and len(lines) == 6
    assert "digits, 1,797 images 1x8x8, 10 captions like 'a photo of a zero'" in lines[0]
    assert re.fullmatch(r"Epoch 1: avg_loss = 1\.\d{4} \(epoch 1/step 11\)", lines[3])
    assert lines[5].startswith("next: python sample.py 'a photo of a nine' --cfg 1 3 7.5")
    names = {path.name for path in (tmp_path / "run").glob("*.*") if path.suffix != ".lock"}
    assert names == {"checkpoint.pt", "metrics.csv", "loss.png", "samples.png"}
    header, *rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert header == "step,epoch,loss,images_per_second"
    assert [row.split(",")[:2] for row in rows] == [["10", "1"], ["11", "1"]]
    _, meta = flowclip.load_checkpoint("run/checkpoint.pt")
    assert (meta["step"], meta["epoch"], len(meta["losses"])) == (11, 1, 1)
    assert (meta["clip"], meta["clip_weights"]) == ("small-clip", "untrained")
    assert meta["image_shape"] == [1, 8, 8] and meta["captions"][7] == "a photo of a seven"


@pytest.fixture
def trainers(monkeypatch):
    """The trainer of each step of training."""
    seen, step = [], train.TextConditionalTrainer.train_step
    watched = lambda trainer, *batch: seen.append(trainer) or step(trainer, *batch)  # noqa: E731
    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", watched)
    return seen


def test_settings_reach_the_trainer(command, no_pictures, trainers):
    """And win over the preset, on whichever side of --demo they stand."""
    options = [
        "--batch-size", 80, "--lr", 0.002, "--warmup", 6, "--weight-decay", 0.03, "--text-drop",
        0.4, "--ema", 0.5, "--seed", 7, "--img-size", 12, "--patch-size", 3, "--device", "cpu",
    ]  # fmt: skip
    assert command(train, *options, *DEMO, "--max-steps", 1)[0] == 0
    (trainer,) = trainers
    (group,) = trainer.optimizer.param_groups
    assert (trainer.lr, trainer.warmup, trainer.text_drop_prob) == (0.002, 6, 0.4)
    assert (trainer.ema, trainer.seed, trainer.device.type) == (0.5, 7, "cpu")
    assert group["weight_decay"] == 0.03
    assert (trainer.dataloader.batch_size, trainer.dataloader.seed) == (80, 7)
    assert trainer.model.config == {
        "img_size": 12, "patch_size": 3, "in_channels": 1, "embed_dim": 16, "depth": 1,
        "num_heads": 2, "mlp_ratio": 4.0, "context_dim": 64,
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_is_that_of_the_loss(command, monkeypatch, no_pictures, precision):
    seen, loss = [], flowclip.flow_matching_loss

    def watched(*args, **given):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(*args, **given)

    monkeypatch.setattr(flowclip, "flow_matching_loss", watched)
    options = ["--device", "cpu", "--max-steps", 1, "--precision", precision]
    status, out, _ = command(train, *DEMO, *options)
    assert status == 0 and f", {precision}\n" in out and seen == [precision == "bf16"]


def test_pictures_come_every_n_epochs_and_at_the_end(command, monkeypatch):
    drawn = []
    monkeypatch.setattr(train, "draw_pictures", lambda out, trainer, _: drawn.append(trainer.epoch))
    options = ["--batch-size", 900, "--epochs", 3, "--sample-every", 2]
    assert command(train, *DEMO, *options)[0] == 0
    assert drawn == [2, 3]


def test_a_run_in_parts_ends_as_the_whole_run(command, no_pictures):
    options = [*DEMO, "--epochs", 2, "--batch-size", 150, "--out"]
    status, _, err = command(train, *options, "whole")
    assert status == 0 and not err, err
    assert command(train, *options, "parts", "--max-steps", 14)[0] == 0
    assert command(train, *options, "parts", "--resume")[0] == 0
    assert_same_end("whole", "parts")


@pytest.mark.heavy
def test_compiled_and_not_are_the_same(command, monkeypatch):
    """The same losses and pictures; --attention, too, though hooks see no compiled block.

    The compiler of torch stops before it writes C++, which is most of its time and none of ours.
    """
    compiled, compile_block = [], torch.nn.Module.compile

    def traced(block):
        compiled.append(block)
        compile_block(block, backend="aot_eager")

    monkeypatch.setattr(flowclip.DiTBlock, "compile", traced)
    losses, images = [], []
    for flag in ("--no-compile", "--compile"):
        out = flag.strip("-")
        options = ["--epochs", 1, "--batch-size", 600, "--ema", 0, "--lr", 1e-2, "--out", out]
        assert command(train, *DEMO, *options, flag)[0] == 0
        losses += flowclip.load_checkpoint(f"{out}/checkpoint.pt")[1]["losses"]
        options = ["a photo of a three", "--steps", 3, "--checkpoint", "no-compile/checkpoint.pt"]
        places = ["--save-dir", out, "--attention", f"{out}/attention.png"]
        status, _, err = command(sample, *options, *places, flag)
        assert status == 0, err
        assert len(compiled) == (2 if flag == "--compile" else 0), "its one block, in each script"
        paths = sorted(Path(out).glob("a*.png"))  # the image alone, and attention.png
        assert len(paths) == 2
        images.append([np.asarray(Image.open(path)).astype(int) for path in paths])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for eager, traced in zip(*images):
        assert eager.std() > 0 and abs(eager - traced).max() <= 1


# ---- Data ----
def test_digits():
    images, labels, captions = train.load_data("digits")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8 and images.max() == 255
    assert captions[1] == "a photo of a one" and captions[8] == "a photo of an eight"
    assert labels[:10].tolist() == list(range(10))
    assert train.load_data("digits", 32)[0].shape == (1797, 1, 32, 32)


def test_cifar10_comes_from_torchvision(monkeypatch, tmp_path):
    """And two processes load it one after the other."""
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3)
    classes = flowclip.CIFAR10_CLASSES
    cifar = SimpleNamespace(data=pixels, targets=[6, 9, 0, 5], classes=classes)
    asked = []

    def stub(root, is_train, download):
        asked.append((root, is_train, download))
        with pytest.raises(OSError, match="lock"):
            train.FileLock("data/download.lock").acquire(blocking=False)
        return cifar

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", stub)
    images, labels, captions = train.load_data("cifar10")
    assert asked == [("data", True, True)] and images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8 and images[0, :, 0, 1].tolist() == [3, 4, 5]
    assert labels.tolist() == [6, 9, 0, 5] and captions[5] == "a photo of a dog"


def test_train_on_a_folder_then_sample(command, tmp_path):
    for name, color in {"fire_truck/a": "red", "fire_truck/b": "blue", "owl/c": "lime"}.items():
        path = tmp_path / "my" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(path)
    options = ["--data", "my", "--clip-weights", "untrained", "--batch-size", 2, "--max-steps", 2]
    status, out, _ = command(train, *TINY, *options)
    assert status == 0 and "3 images 3x8x8, 2 captions" in out
    assert (tmp_path / "runs/my/samples.png").is_file()
    status, out, _ = command(sample, "a photo of an owl", "--steps", 1)
    assert status == 0 and "runs/my/checkpoint.pt: step 2" in out
    assert (tmp_path / "samples.png").is_file()


def test_no_network_ends_in_one_line(command, monkeypatch, tmp_path):
    def refuse(*args, **given):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    monkeypatch.setattr(flowclip.open_clip, "download_pretrained", refuse)
    one_line(command(train), "--data cifar10", "--data digits", "--data DIR")
    result = command(train, "--data", "digits")
    one_line(result, "'openai'", "ViT-B-32", "'untrained'", "no network")
    assert not list(tmp_path.rglob("*.pt"))


# ---- sample.py ----
def test_each_image_is_that_of_its_prompt_scale_and_draw(
    command, drawn, pictures, fp32, small_encoder
):
    """Many images are drawn in parts, some are shown; each is what sampling it alone gives."""
    prompts, scales, n = ["a", "b c"], [1, 3], 70
    options = ["--cfg", *scales, "--n", n, "--steps", 2, "--solver", "heun", "--seed", 5]
    places = ["--checkpoint", "c.pt", "--save-dir", "each"]
    status, out, _ = command(sample, *prompts, *options, *places)
    assert status == 0 and "samples.png: 32 of 280 images" in out
    assert len(list((drawn / "each").iterdir())) == 280
    ((_, cells, columns, titles, rows),) = pictures
    assert columns == 16 and titles == 8 * ["w = 1"] + 8 * ["w = 3"] and list(rows) == prompts

    config = sample.Config(steps=2, solver="heun", seed=5, save_dir=Path("each"))
    model, _ = flowclip.load_checkpoint("c.pt")
    noise = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    for name, cell in {  # None: it is not in the picture
        (0, 0, 1.0): 0, (0, 7, 3.0): 15, (1, 2, 1.0): 16 + 2, (1, 0, 3.0): 16 + 8,
        (1, 58, 1.0): None, (1, 69, 3.0): None,
    }.items():  # fmt: skip
        p, i, w = name
        path = sample.image_path(config, prompts[p], w, i)
        alone = flowclip.sample_text_conditional(
            model, small_encoder, prompts[p], (1, 8, 8), 2, w,
            noise=noise[i][None], solver="heun",
        )  # fmt: skip
        alone = flowclip.denormalize_images(alone)[0]
        assert_alike(alone, torch.tensor(np.asarray(Image.open(path))))
        if cell is not None:
            assert_alike(alone, cells[cell])


def test_images_are_written_as_they_come(command, drawn, monkeypatch):
    parts, real = [], flowclip.sample_text_conditional

    def stopped(model, encoder, prompts, *args, **given):
        parts.append(len(prompts))
        if len(parts) == 3:
            raise OSError("no time left")
        return real(model, encoder, prompts, *args, **given)

    monkeypatch.setattr(flowclip, "sample_text_conditional", stopped)
    options = ["--steps", 1, "--checkpoint", "c.pt", "--save-dir", "each"]
    one_line(command(sample, *map(str, range(300)), *options), "no time left")
    names = [path.name.split("-")[0] for path in (drawn / "each").iterdir()]
    assert parts == [128, 128, 44] and sorted(map(int, names)) == list(range(256))


def test_no_prompt_means_ten_captions_of_the_training(command, drawn, pictures):
    assert command(sample, "--checkpoint", "c.pt", "--steps", 1)[0] == 0
    ((_, cells, columns, titles, rows),) = pictures
    assert rows == [*"abcdefghij"] and (len(cells), columns, titles) == (10, 1, ["w = 7.5"])


def test_pictures_show_sixteen_prompts(command, drawn, pictures):
    options = ["--steps", 1, "--checkpoint", "c.pt", "--attention", "b.png", "--save-dir", "each"]
    status, out, err = command(sample, *"abcdefghijklmnopqr", *options)
    assert status == 0 and "16 of 18 images" in out, err
    assert len(list((drawn / "each").iterdir())) == 18
    grid, attention = pictures
    assert len(grid[1]) == 16 and len(attention[1]) == 16 * attention[2]


def test_attention_has_a_column_a_token(command, drawn, pictures, fp32):
    options = ["--steps", 1, "--n", 2, "--checkpoint", "c.pt", "--attention", "b.png"]
    assert command(sample, "dog", "a red car", *options)[0] == 0
    path, cells, columns, titles, rows = pictures[1]
    words = [title.split("  ")[0] for title in titles]
    assert str(path) == "b.png" and columns == 6 and list(rows) == ["dog", "a red car"]
    assert words[:6] == ["image", "[BOS]", "dog", "[EOS]", "padding", "padding"]
    assert words[6:] == ["image", "[BOS]", "a", "red", "car", "[EOS]"]
    shares = [int(title.split("  ")[1].strip("%")) for title in titles if title != "image"]
    assert shares[3:5] == [0, 0] and abs(sum(shares[:5]) - 100) < 3 > abs(sum(shares[5:]) - 100)
    grid = pictures[0][1]
    assert_alike(cells[0], grid[0])  # the first draw of each prompt
    assert_alike(cells[6], grid[2])


@pytest.mark.parametrize("scales, w", [((1, 3, 2), 3), ((0,), 1)])
def test_attention_is_that_of_the_largest_scale(command, drawn, monkeypatch, pictures, scales, w):
    asked, real = [], flowclip.sample_text_conditional

    def watched(*args, **given):
        asked.append(args[5])
        return real(*args, **given)

    monkeypatch.setattr(flowclip, "sample_text_conditional", watched)
    options = ["--cfg", *scales, "--steps", 1, "--checkpoint", "c.pt", "--attention", "b.png"]
    assert command(sample, "dog", *options)[0] == 0
    assert asked[-1] == w


def test_a_map_is_bright_where_the_token_is_looked_at(pictures):
    A = torch.zeros(1, 4, 2)
    A[0, :, 0] = torch.tensor([0, 0, 1, 0.5])  # the lower left patch, the next one half as much
    A[0, :, 1] = 0.1
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    sample.save_attention("b.png", ["dog"], [["dog", "[EOS]"]], [image], A)
    _, dog, eos = pictures[0][1]
    brightness = dog.float().mean(dim=0)[::2, ::2]
    assert dog.shape == (3, 4, 4) and (dog[:, 2:, :2] == dog[:, 2:3, :1]).all()
    assert brightness[1, 0] > brightness[1, 1] > brightness[0, 0] == brightness[0, 1]
    assert (eos == dog[:, 2:3, :1]).all(), "as bright as its brightest patch"
    assert pictures[0][3] == ["image", "dog  38%", "[EOS]  10%"]


def test_the_newest_run_is_sampled(command, drawn):
    for name, time in {"old": 1, "new": 3, "between": 2}.items():
        path = drawn / "runs" / name / "checkpoint.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes((drawn / "c.pt").read_bytes())
        os.utime(path, (time, time))
    assert "runs/new/checkpoint.pt: step 0" in command(sample, "x", "--steps", 1)[1]


def test_the_picture_is_the_images_in_their_order(monkeypatch, tmp_path):
    figures, savefig = [], flowclip.Figure.savefig

    def noted(figure, path):
        figures.append(figure)
        savefig(figure, path)

    monkeypatch.setattr(flowclip.Figure, "savefig", noted)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    titles, path = ["one", "$\\frac$", 50 * "long "], tmp_path / "new/a.png"
    flowclip.save_picture(path, images, 3, titles, ["first", 20 * "w"])
    *axes, empty = figures[0].axes
    for axis, image in zip(axes, images, strict=True):
        (shown,) = axis.images
        assert (shown.get_array() == image[0].numpy()[..., None]).all()
        assert shown.get_interpolation() == "nearest", "every pixel a square"
    assert not empty.images
    assert [axis.get_title() for axis in axes[:2]] == titles[:2]
    assert len(axes[2].get_title().splitlines()) == 3 and axes[2].get_title().endswith("[...]")
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["first", "", "", 20 * "w", "", ""]
    saved = np.asarray(Image.open(path).convert("L"))
    assert saved.shape == pytest.approx((2 * 187, 3 * 154 + 220), abs=1), "an image and the names"
    border = [*saved[[0, -1]].flat, *saved[:, [0, -1]].flat]
    assert min(border) == 255, "a name is cut off"


def test_other_text_weights_are_refused(command, drawn, small_encoder):
    meta = torch.load("c.pt", weights_only=True)
    meta["meta"] |= {"clip": "small-clip", "clip_weights": "right.pt"}
    torch.save(meta, "c.pt")
    state = small_encoder.tower.state_dict()
    torch.save(state, "right.pt")
    other = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}
    torch.save(other, "wrong.pt")
    options = ["x", "--steps", 1, "--checkpoint", "c.pt"]
    said = "c.pt was trained with other text weights than 'wrong.pt'"
    one_line(command(sample, *options, "--clip-weights", "wrong.pt"), said)
    (drawn / "right.pt").rename("moved.pt")
    one_line(command(sample, *options), "right.pt' gives no text tower", "No such file")
    assert command(sample, *options, "--clip-weights", "moved.pt")[0] == 0


@pytest.mark.spec("TRAIN-6")
def test_the_pictures_are_of_the_averaged_weights(command, monkeypatch):
    seen, real = [], flowclip.sample_text_conditional

    def watched(model, *args, **given):
        seen.append(draw.flat(model))
        return real(model, *args, **given)

    monkeypatch.setattr(flowclip, "sample_text_conditional", watched)
    assert command(train, *DEMO, "--max-steps", 3, "--ema", 0.5)[0] == 0
    assert command(sample, "x", "--steps", 1)[0] == 0
    model, _ = flowclip.load_checkpoint("runs/demo/checkpoint.pt")
    assert len(seen) == 2 and all(torch.equal(weights, draw.flat(model)) for weights in seen)
    model.load_state_dict(flowclip.read_checkpoint("runs/demo/checkpoint.pt")["training"]["model"])
    assert not torch.equal(seen[0], draw.flat(model))
