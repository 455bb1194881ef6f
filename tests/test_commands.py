"""train.py and sample.py as a user runs them, on tiny settings and without a network."""

import csv
import subprocess
import sys
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
from tests.conftest import ROOT, TINY, one_line


def read_rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.heavy
def test_the_demo_and_a_sample_from_the_shell(tmp_path):
    def shell(*argv):
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return [line for line in done.stdout.splitlines() if not line.startswith("note: ")]

    lines = shell("train.py", "--demo", "--epochs", "1", "--out", str(tmp_path / "demo"))
    assert lines[0] == "data: digits, 1,797 images 1x8x8, 10 captions like 'a photo of a zero'"
    assert lines[1] == "text: ViT-B-32-quickgelu, weights 'untrained'" and lines[2].startswith("model: ")
    assert lines[3].startswith("epoch 1/1: mean loss 1.") and "samples.png" in lines[-2]
    assert lines[-1].startswith("next: python sample.py 'a photo of a nine' --cfg 1 3 7.5")
    rows = read_rows(tmp_path / "demo" / "metrics.csv")
    assert list(rows[0]) == ["step", "epoch", "loss", "images_per_second"]
    assert [(row["step"], row["epoch"]) for row in rows] == [("10", "1"), ("20", "1"), ("28", "1")]
    for name in ("loss.png", "samples.png"):
        assert min(Image.open(tmp_path / "demo" / name).size) > 200

    prompts = ["a photo of a three", "../../$x^2$ \N{GRINNING FACE}"]
    options = ["--cfg", "1", "3", "--n", "2", "--steps", "2", "--checkpoint", str(tmp_path / "demo" / "checkpoint.pt")]
    places = {name: tmp_path / "new" / name for name in ("grid.png", "attention.png", "each")}
    files = ["--out", places["grid.png"], "--attention", places["attention.png"], "--save-dir", places["each"]]
    lines = shell("sample.py", *prompts, *options, *map(str, files))
    assert "step 28" in lines[0] and "'untrained'" in lines[0] and str(places["grid.png"]) in lines[1]
    images = sorted(places["each"].iterdir())
    assert len(images) == 8 and images[0].name == "0000-a-photo-of-a-three-w1.png" and images[4].name == "0004-x-2-w1.png"
    assert min(Image.open(places["grid.png"]).size) > 300 and Image.open(places["attention.png"]).size[0] > 1000


def test_the_picture_is_the_images_in_their_order(monkeypatch, tmp_path):
    figures, savefig = [], sample.Figure.savefig
    monkeypatch.setattr(sample.Figure, "savefig", lambda self, path: figures.append(self) or savefig(self, path))
    images = [torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8) for _ in range(6)]
    images[4] = None
    sample.save_picture(tmp_path / "new" / "grid.png", images, 3, ["one", "$x^2$", 50 * "long "], ["first", "second"])
    axes = figures[0].axes
    for axis, image in zip(axes, images):
        shown = [artist.get_array() for artist in axis.images]
        assert len(shown) == (image is not None) and all((array == image[0].numpy()[..., None]).all() for array in shown)
        assert all(artist.get_interpolation() == "nearest" for artist in axis.images), "every pixel a square"
    assert [axis.get_title() for axis in axes[:2]] == ["one", "$x^2$"] and len(axes[2].get_title().splitlines()) == 2
    assert [text.get_text() for axis in axes for text in axis.texts] == ["first", "second"]
    assert min(Image.open(tmp_path / "new" / "grid.png").size) > 2 * 128


def test_the_run_folder_resumes(command, monkeypatch):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    options = ["--demo", *TINY, "--lr", "1e-3", "--epochs", "2"]
    status, out, err = command(train, *options, "--out", "whole")
    assert status == 0 and not err, err
    assert command(train, *options, "--out", "parts", "--max-steps", "35")[0] == 0
    meta = flowclip.load_checkpoint("parts/checkpoint.pt")[1]
    assert (meta["step"], meta["epoch"], len(meta["losses"])) == (35, 1, 1)
    assert meta.keys() >= {"config", "clip", "clip_weights", "captions", "image_shape", "epoch", "step", "losses"}
    assert meta["image_shape"] == [1, 8, 8] and meta["captions"][7] == "a photo of a seven"
    status, _, err = command(train, *options, "--out", "parts", "--resume", "--lr", "2e-3")
    assert status == 2 and "trained with lr 0.001, and now it is 0.002" in err and len(err.splitlines()) == 1
    assert command(train, *options, "--out", "parts", "--resume")[0] == 0
    whole, parts = (flowclip.load_checkpoint(f"{name}/checkpoint.pt") for name in ("whole", "parts"))
    assert whole[1]["losses"] == parts[1]["losses"] and whole[1]["step"] == 56
    assert all(torch.equal(tensor, parts[0].state_dict()[name]) for name, tensor in whole[0].state_dict().items())
    rows = [[(row["step"], row["loss"]) for row in read_rows(f"{name}/metrics.csv")] for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) == 6, "no row is lost or doubled"


def test_digits():
    images, labels, captions = train.load_data("digits")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8 and images.max() == 255
    assert captions[1] == "a photo of a one" and captions[8] == "a photo of an eight"
    assert labels[:10].tolist() == list(range(10))
    assert train.load_data("digits", 32)[0].shape == (1797, 1, 32, 32)


@pytest.mark.spec("DATA-3")
def test_cifar10_comes_from_torchvision(monkeypatch):
    asked = []

    def stub(root, download):
        asked.append((root, download))
        return SimpleNamespace(data=np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3), targets=[6, 9, 0, 5])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", stub)
    images, labels, captions = train.load_data("cifar10")
    assert asked == [("data", True)] and images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8
    assert images[0, :, 0, 1].tolist() == [3, 4, 5] and labels.tolist() == [6, 9, 0, 5] and captions[5] == "a photo of a dog"


@pytest.mark.spec("DATA-6")
def test_a_folder_of_images(tmp_path):
    files = {"fire_truck/b.png": ((12, 8), "red"), "fire_truck/a.jpg": ((8, 8), "blue"), "owl/c.png": ((8, 16), "lime")}
    for name, (size, color) in files.items():
        path = tmp_path / "my" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path, quality=100)
    (tmp_path / "my/owl/c.txt").write_text("an owl at night\n")
    images, labels, captions = train.load_data(str(tmp_path / "my"))
    assert images.shape == (3, 3, 8, 8) and captions == ["a photo of a fire truck", "an owl at night"]
    assert labels.tolist() == [0, 0, 1]
    for image, color in zip(images, ([0, 0, 255], [255, 0, 0], [0, 255, 0])):  # in the order of their names
        assert (image.flatten(1).float().mean(1) - torch.tensor(color)).abs().max() < 4
    assert train.load_data(str(tmp_path / "my"), 4)[0].shape == (3, 3, 4, 4)


def test_training_on_a_folder(command, tmp_path):
    for name, color in {"fire_truck/a.png": "red", "fire_truck/b.png": "blue", "owl/c.png": "lime"}.items():
        (tmp_path / "my" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / "my" / name)
    options = ["--clip-weights", "untrained", "--patch-size", "4", "--batch-size", "2", *TINY, "--max-steps", "2"]
    status, out, err = command(train, "--data", "my", *options)
    assert status == 0 and "3 images 3x8x8, 2 captions" in out and (tmp_path / "runs/my/samples.png").is_file()
    status, out, _ = command(sample, "a photo of an owl", "--steps", "1")
    assert status == 0 and "runs/my/checkpoint.pt: step 2" in out and (tmp_path / "samples.png").is_file()


def test_no_network_ends_in_one_line(command, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    one_line(command(train, "--epochs", 30), "could not download CIFAR-10", "ways on: ")
    monkeypatch.setattr(flowclip.huggingface_hub, "get_session", refuse)
    monkeypatch.setattr(flowclip.open_clip, "download_pretrained", refuse)
    one_line(command(train, "--data", "digits"), "could not download CLIP weights 'openai'", "ways on: ")
    assert not list(tmp_path.iterdir()), "nothing was created"


def test_mistakes_end_in_one_line(command, tmp_path):
    (tmp_path / "empty").mkdir()
    one_line(command(sample, "a photo of a dog", "--cfg", 7.5), "no checkpoint in runs/*/checkpoint.pt", "ways on: ")
    one_line(command(sample, "x", "--checkpoint", "no.pt"), "no checkpoint file at no.pt")
    one_line(command(sample, "x", "--n", 0), "argument --n: '0' is not from 1 to 10000")
    one_line(command(train, "--data", "nowhere"), "neither cifar10, digits, nor a folder")
    one_line(command(train, "--data", "empty"), "--data empty: no image is there")
    one_line(command(train, "--demo", "--batch-size", 5000), "--batch-size is 5000, expected 1 to 1797")
    one_line(command(train, "--demo", "--heads", 3), "embed_dim is 128, expected a multiple of num_heads = 3")
    one_line(command(train, "--demo", "--heads", 0), "argument --heads: '0' is not from 1 to 4096")
    for option, value in {"--seed": -1, "--ema": 1.5, "--text-drop": 2.5, "--warmup": -5}.items():
        one_line(command(train, "--demo", option, value), f"argument {option}: '{value}' is not from 0 to ")
    one_line(command(train, "--demo", "--clip-weights", "no.pt"), "CLIP weights 'no.pt': no such file")
    if not torch.cuda.is_available():
        one_line(command(train, "--demo", "--device", "cuda"), "--device cuda: there is none here")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "nothing was created"
    (tmp_path / "broken" / "dog").mkdir(parents=True)
    (tmp_path / "broken/dog/1.png").write_text("not an image")
    one_line(command(train, "--data", "broken", "--clip-weights", "untrained"), "broken/dog/1.png")


def test_options_reach_the_trainer(command, monkeypatch):
    compiled, real, drawn = [], flowclip.flow_matching_loss, []
    monkeypatch.setattr(flowclip.DiTBlock, "compile", lambda block: compiled.append(block))
    seen = []
    monkeypatch.setattr(
        flowclip, "flow_matching_loss", lambda *a, **k: seen.append(torch.is_autocast_enabled("cpu")) or real(*a, **k)
    )
    monkeypatch.setattr(train, "draw_samples", lambda path, trainer, captions: drawn.append(trainer.epoch))
    options = ["--device", "cpu", "--batch-size", 600, "--epochs", 3, "--sample-every", 2]
    status, out, _ = command(train, "--demo", *TINY, *options, "--precision", "bf16", "--compile")
    assert status == 0 and "cpu, bf16" in out and len(compiled) == 1 and all(seen) and drawn == [2, 3]  # TINY has one block
    seen.clear()
    status, out, _ = command(train, "--demo", *TINY, "--device", "cpu", "--max-steps", 1, "--precision", "fp32", "--overwrite")
    assert status == 0 and "cpu, fp32" in out and not any(seen) and len(compiled) == 1


@pytest.mark.heavy
@pytest.mark.skipif(not sample.can_compile(torch.device("cpu")), reason="no C++ compiler here")
def test_compiled_and_not_are_the_same(command):
    """The same losses and pictures, and --attention, which hooks cannot record from compiled blocks, is drawn."""
    losses, images = [], []
    for way in ("--no-compile", "--compile"):
        options = ["--demo", *TINY, "--epochs", 1, "--batch-size", 600, "--ema", 0, "--lr", 1e-2, "--out", way[2:], way]
        assert command(train, *options)[0] == 0
        losses.append(torch.load(f"{way[2:]}/checkpoint.pt", weights_only=True)["meta"]["losses"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][0] > 0
    for out, way in ((Path("eager"), []), (Path("compiled"), ["--compile"])):
        options = ["a photo of a three", "--steps", 3, "--checkpoint", "compile/checkpoint.pt", "--save-dir", out / "each"]
        status, _, err = command(sample, *options, *way, "--attention", out / "attention.png")
        assert status == 0, err
        images.append([np.asarray(Image.open(path)) for path in sorted(out.rglob("*.png"))])
    assert [len(each) for each in images] == [2, 2]
    for eager, compiled in zip(*images):
        assert eager.std() > 0 and abs(eager.astype(int) - compiled).max() <= 1


def test_compile_without_a_compiler_is_refused(command, monkeypatch):
    monkeypatch.setattr(sample.shutil, "which", lambda name: None)
    one_line(command(train, "--demo", *TINY, "--compile"), "--compile: no C++ compiler is here")
    assert not sample.can_compile(torch.device("cpu"))
    monkeypatch.setattr(sample.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    assert sample.can_compile(torch.device("cpu")) and not sample.can_compile(torch.device("cuda")), "no Triton"


def test_a_wide_request_shows_some_draws_of_each_scale(command, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    assert command(train, "--demo", *TINY, "--max-steps", 1)[0] == 0
    status, out, _ = command(sample, "x", "--cfg", 1, 3, "--n", 9, "--steps", 1, "--save-dir", "each")
    assert status == 0 and "16 of 18 images" in out and len(list((tmp_path / "each").iterdir())) == 18
    assert Image.open("samples.png").size[0] > 16 * 128


def test_other_text_weights_are_refused(command, monkeypatch, small_encoder, tmp_path):
    monkeypatch.setattr(train, "draw_samples", lambda *args: None)
    state = small_encoder.tower.state_dict()
    torch.save(state, "right.pt")
    torch.save({name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in state.items()}, "wrong.pt")
    options = [*TINY, "--clip", "ViT-S-32-alt", "--data", "digits", "--patch-size", 4, "--max-steps", 1]
    assert command(train, *options, "--clip-weights", "right.pt")[0] == 0
    assert flowclip.load_checkpoint("runs/digits/checkpoint.pt")[1]["clip_weights"] == "right.pt"
    assert command(sample, "", "--steps", 1)[0] == 0
    one_line(command(sample, "x", "--clip-weights", "wrong.pt"), "'wrong.pt' differ from", "right.pt")
    (tmp_path / "right.pt").rename("moved.pt")
    one_line(command(sample, "x"), "CLIP weights 'right.pt': no such file")
    assert command(sample, "x", "--steps", 1, "--clip-weights", "moved.pt")[0] == 0


@pytest.mark.spec("TRAIN-6")
def test_the_picture_is_of_the_averaged_weights(command, monkeypatch):
    seen = []
    real = flowclip.sample_text_conditional
    monkeypatch.setattr(flowclip, "sample_text_conditional", lambda model, *a, **k: seen.append(model) or real(model, *a, **k))
    assert command(train, "--demo", *TINY, "--max-steps", 3, "--ema", 0.5)[0] == 0
    assert command(sample, "x", "--steps", 1)[0] == 0
    ema = flowclip.load_checkpoint("runs/demo/checkpoint.pt")[0]
    training = torch.load("runs/demo/checkpoint.pt", weights_only=True)["training"]
    for model in seen:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, ema.state_dict()[name])
    assert any(not torch.equal(ema.state_dict()[name], tensor) for name, tensor in training["model"].items()) and len(seen) == 2
