"""Images that are held out (docs/7-data.md): never trained on, their loss said and drawn."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import flowclip
import train
from tests.conftest import TINY
from tests.scripts.forked import assert_same_end
from tests.spec import strategies as draw

DEMO = ["--demo", *TINY[:-1]]  # TINY ends with --no-held-out


def make_trainer(model, held_out):
    return train.TextConditionalTrainer(
        model, draw.StandIn(), [], lambda labels: [f"a {n}" for n in labels], device="cpu",
        precision="fp32", held_out=held_out,
    )  # fmt: skip


def batches_of(count, **given):
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return train.Batches(images, torch.arange(count), **given)


@pytest.fixture
def seen(monkeypatch):
    """The rows of --data that were trained on, and those that were held out."""
    rows = SimpleNamespace(trained=set(), held_out=set())
    images, _, _ = train.load_data("digits")
    images = flowclip.normalize_images(images)
    names = {image.numpy().tobytes(): n for n, image in enumerate(images)}
    step, loss = train.TextConditionalTrainer.train_step, train.TextConditionalTrainer.held_out_loss

    def watched_step(trainer, images, captions):
        rows.trained |= {names[image.numpy().tobytes()] for image in images}
        return step(trainer, images, captions)

    def watched_loss(trainer):
        rows.held_out = {
            names[image.numpy().tobytes()] for images, _ in trainer.held_out for image in images
        }
        return loss(trainer)

    monkeypatch.setattr(train.TextConditionalTrainer, "train_step", watched_step)
    monkeypatch.setattr(train.TextConditionalTrainer, "held_out_loss", watched_loss)
    monkeypatch.setattr(train, "draw_pictures", lambda *args: None)
    return rows


def test_one_image_in_fifty_is_never_trained_on(command, seen):
    options = [*DEMO, "--epochs", 3, "--batch-size", 150]
    status, out, err = command(train, *options)
    assert status == 0, err
    first = seen.held_out
    assert len(first) == 1797 // 50 and not first & seen.trained
    assert len(seen.trained) > 1600, "what the last batch drops differs from epoch to epoch"
    said = re.findall(r"avg_loss = \d\.\d{4}, held_out_loss = (\d\.\d{4}) \(epoch", out)
    assert len(set(said)) == 3
    assert command(train, *options, "--epochs", 1, "--overwrite")[0] == 0
    assert seen.held_out == first, "by the seed"
    assert command(train, *options, "--epochs", 1, "--overwrite", "--seed", 1)[0] == 0
    assert len(seen.held_out & first) < 10, "by the seed"


def test_a_flag_switches_it_off(command, seen):
    status, out, _ = command(train, *DEMO, "--epochs", 1, "--batch-size", 599, "--no-held-out")
    assert status == 0 and len(seen.trained) == 1797 and "held_out" not in out


def test_a_run_in_parts_has_the_same_held_out_losses(command, monkeypatch):
    monkeypatch.setattr(train, "draw_pictures", lambda *args: None)
    options = [*DEMO, "--epochs", 2, "--batch-size", 150, "--out"]
    assert command(train, *options, "whole")[0] == 0
    assert command(train, *options, "parts", "--max-steps", 14)[0] == 0
    assert command(train, *options, "parts", "--resume")[0] == 0
    assert_same_end("whole", "parts")
    whole, parts = (
        flowclip.read_checkpoint(f"{out}/checkpoint.pt")["training"]["state"]["held_out_losses"]
        for out in ("whole", "parts")
    )
    assert whole == parts and [step for step, _ in whole] == [11, 22]


def test_of_a_download_it_is_the_test_set(command, monkeypatch):
    random = np.random.default_rng(0)
    sets = {
        train: SimpleNamespace(
            data=random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
            targets=[n % 10 for n in range(count)], classes=flowclip.CIFAR10_CLASSES,
        )
        for train, count in ((True, 100), (False, 40))
    }  # fmt: skip
    made = []
    stub = lambda root, train, download: sets[train]  # noqa: E731
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", stub)
    monkeypatch.setattr(train, "draw_pictures", lambda out, trainer, _: made.append(trainer))
    options = ["--clip-weights", "untrained", *TINY[:-1], "--batch-size", 10, "--epochs", 1]
    status, out, err = command(train, *options)
    assert status == 0 and "held_out_loss" in out, err
    (trainer,) = made
    for batches, part in ((trainer.dataloader, sets[True]), (trainer.held_out, sets[False])):
        pixels = torch.cat([flowclip.denormalize_images(images) for images, _ in batches])
        assert len(pixels) == len(part.data) and pixels.sum() == part.data.sum()


def test_it_is_of_the_averaged_weights_at_fixed_times_and_noise(make_model):
    trainer = make_trainer(make_model(), batches_of(9, batch_size=3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loss = trainer.held_out_loss()
    assert torch.equal(torch.get_rng_state(), state), "others' randomness stays as it was"
    torch.manual_seed(6)
    draw.randomise(trainer.model, 1)
    assert trainer.held_out_loss() == loss
    draw.randomise(trainer.ema_model, 2)
    assert trainer.held_out_loss() != loss
    assert not any(weight.grad_fn for weight in trainer.ema_model.parameters())
    loss = trainer.held_out_loss()
    trainer.text_drop_prob = 1
    assert trainer.held_out_loss() == loss, "no text is dropped"
    (batch, *_) = trainer.held_out
    trainer.held_out = [batch, batch]
    twice = trainer.held_out_loss()
    trainer.held_out = [batch]
    assert trainer.held_out_loss() != twice, "each batch has noise of its own"


@pytest.mark.parametrize("flags, held_out", [([], [11, 22]), (["--no-held-out"], [])])
def test_loss_png_draws_both(command, monkeypatch, flags, held_out):
    lines = []
    save = train.Figure.savefig

    def watched(figure, path, *args, **given):
        if path.name == "loss.png":
            lines.extend(line.get_xydata() for line in figure.axes[0].lines)
        save(figure, path, *args, **given)

    monkeypatch.setattr(train.Figure, "savefig", watched)
    assert command(train, *DEMO, "--epochs", 2, "--batch-size", 150, *flags)[0] == 0
    assert lines[0][:, 0].tolist() == [10, 20, 22]
    assert [step for line in lines[1:] for step in line[:, 0]] == held_out


def test_a_folder_called_as_a_data_set_holds_its_own_images_out(command, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(train, "draw_pictures", lambda out, trainer, _: made.append(trainer))
    for n in range(100):
        path = tmp_path / f"mnist/cat/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(path)
    options = ["--data", "mnist", "--clip-weights", "untrained", *TINY[:-1], "--batch-size", 2]
    status, out, err = command(train, *options, "--epochs", 1)
    assert status == 0 and out.count("folder mnist") == 1, err
    (trainer,) = made
    trained, held_out = set(trainer.dataloader.rows.tolist()), set(trainer.held_out.rows.tolist())
    assert len(trained) == 98 and len(held_out) == 2 and not trained & held_out


def test_rows_choose_among_the_images():
    batches = batches_of(20, batch_size=2, rows=torch.tensor([3, 7, 11, 15]))
    labels = {label.item() for _, labels in batches for label in labels}
    assert len(batches) == 2 and labels == {3, 7, 11, 15}
    images, labels = next(iter(batches))
    assert torch.equal(flowclip.denormalize_images(images)[:, 0, 0, 0].long(), labels)
