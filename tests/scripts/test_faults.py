"""Faults that a picky review found: each was silent, or spoke in Python's words."""

import copy
import os
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowclip
import train
from tests.conftest import TINY, one_line
from tests.spec import strategies as draw

RUN = ["--data", "digits", "--clip-weights", "untrained", "--patch-size", "2", *TINY]
DOG = ["dog", "a cat on a mat"]


class Integers(draw.StandIn):
    """An encoder whose mask is that of transformers: 0 and 1, in int64."""

    def forward(self, prompts):
        Z, mask = super().forward(prompts)
        return Z, mask.long()


class Zeros(draw.StandIn):
    """An encoder that gives the second token of each prompt the vector 0."""

    def forward(self, prompts):
        Z, mask = super().forward(prompts)
        Z[:, 1] = 0
        return Z, mask


def make_trainer(model, encoder=None, batches=(), captions=DOG, **options):
    encoder = encoder or draw.StandIn()
    caption_fn = lambda labels: [captions[label] for label in labels]  # noqa: E731
    return train.TextConditionalTrainer(
        model, encoder, batches, caption_fn, device="cpu", precision="fp32", **options
    )


# ---- Masks and captions --------------------------------------------------------------------------
@pytest.mark.parametrize("encoder", [Integers, Zeros])
def test_the_real_tokens_are_those_of_the_mask(make_model, encoder):
    expected_Z, expected_mask = encoder()([*DOG, ""])
    context, mask = make_trainer(make_model(), encoder()).context_of([*DOG, ""])
    assert mask.sum(dim=1).tolist() == expected_mask.sum(dim=1).tolist()
    assert torch.equal(context[mask], expected_Z[expected_mask.bool()])


def test_a_resumed_run_encodes_no_caption_again(make_model, tmp_path):
    begun = make_trainer(make_model())
    before = [*begun.context_of(DOG)]
    begun.save_checkpoint(tmp_path / "c.pt")
    encoder = draw.StandIn()
    resumed = make_trainer(make_model(), encoder)
    resumed.resume(tmp_path / "c.pt")
    assert all(map(torch.equal, resumed.context_of(DOG), before)) and encoder.asked == [""]


def test_attention_takes_a_mask_of_integers():
    attention = flowclip.CrossAttention(8, 4, 2)
    x, Z = torch.randn(2, 3, 8), torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    assert torch.equal(attention(x, Z, mask.long()), attention(x, Z, mask))


def test_captions_are_counted(make_model):
    with pytest.raises(ValueError, match="expected 4 captions"):
        make_trainer(make_model()).train_step(torch.zeros(4, 3, 8, 8), ["one"] * 3)


def test_a_scale_of_no_dimension_is_a_number(make_model):
    model, v = make_model(), []
    x, Z, mask = torch.randn(2, 3, 8, 8), torch.randn(3, 4, 12), torch.ones(3, 4, dtype=torch.bool)
    for w in (7.5, torch.tensor(7.5)):
        v.append(flowclip.cfg_velocity(
            model, x, torch.rand(2).fill_(0.5), Z[:2], mask[:2], Z[2:], mask[2:], w
        ))  # fmt: skip
    assert torch.equal(*v)


# ---- Flags ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [
    "--save-every -1", "--sample-every 0", "--max-steps 0", "--epochs 0", "--epochs -1",
    "--text-drop 1.5", "--text-drop -0.1", "--ema 1.5", "--heads 3", "--embed-dim 6",
    "--patch-size 3", "--max-steps nan", "--batch-size 0",
])  # fmt: skip
def test_a_number_that_trains_nothing_is_refused_by_name(command, flags):
    one_line(command(train, *RUN, *flags.split()), flags.split()[0].lstrip("-")[:5])


def test_a_stop_before_the_first_step_draws_nothing(command, monkeypatch):
    monkeypatch.setattr(train, "draw_pictures", None)
    begin = train.TextConditionalTrainer.train

    def stopped_at_once(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, *args)

    monkeypatch.setattr(train.TextConditionalTrainer, "train", stopped_at_once)
    status, out, _ = command(train, *RUN, "--out", "o")
    assert status == 143 and "stopped after step 0" in out


# ---- Who changes the file ------------------------------------------------------------------------
@pytest.mark.parametrize("error", [ValueError("too many values to unpack"), KeyError("x")])
def test_a_mistake_in_the_code_keeps_its_traceback(monkeypatch, error):
    def main():
        raise error

    with pytest.raises(type(error)):
        flowclip.run_script(main)


def test_a_classifier_is_rebuilt_from_its_config():
    model = flowclip.ConditionalDiT(8, 2, 3, 16, 1, 2, num_classes=5)
    again = flowclip.ConditionalDiT(**model.config)
    again.load_state_dict(model.state_dict())


class Deeper(flowclip.TextConditionalDiT):
    """A model of one's own, with an argument of its own."""

    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.config["extra"] = extra
        self.extra = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(extra))


class Bare(torch.nn.Module):
    """A model of one's own without a config."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, xt, t, context, mask):
        return self.weight * xt


@pytest.mark.parametrize("model", [
    Deeper(8, 2, 3, 16, 1, 2, context_dim=12, extra=3), Bare()
], ids=["a subclass", "without config"])  # fmt: skip
def test_a_model_of_one_s_own_is_saved_and_loaded(tmp_path, model):
    trainer = make_trainer(copy.deepcopy(model), lr=1e-3)
    trainer.train_step(torch.zeros(2, 3, 8, 8), DOG)
    trainer.save_checkpoint(tmp_path / "c.pt")
    loaded, meta = flowclip.load_checkpoint(tmp_path / "c.pt", model_class=type(model))
    assert meta["step"] == 1
    for weight, average in zip(loaded.parameters(), trainer.ema_model.parameters()):
        assert torch.equal(weight, average)


@pytest.mark.parametrize("number", [np.int64, np.float32, np.float64])
def test_every_number_of_numpy_can_be_saved(make_model, tmp_path, number):
    options = dict.fromkeys(["lr", "weight_decay", "text_drop_prob", "ema", "warmup"], number(1))
    options |= {"seed": np.int64(3), "total_steps": number(9), "cooldown": number(2)}
    trainer = make_trainer(make_model(), **options)
    trainer.train_step(torch.zeros(2, 3, 8, 8), DOG)
    trainer.save_checkpoint(tmp_path / "c.pt")
    make_trainer(make_model()).resume(tmp_path / "c.pt")
    fresh = make_trainer(make_model(), lr=number(1))
    fresh.save_checkpoint(tmp_path / "fresh.pt")  # before the first step sets the rate
    flowclip.load_checkpoint(tmp_path / "fresh.pt")


def test_captions_of_numpy_can_be_saved(make_model, tmp_path):
    trainer = make_trainer(make_model())
    trainer.train_step(torch.zeros(2, 3, 8, 8), np.array(["a dog", "a cat"]))
    trainer.save_checkpoint(tmp_path / "c.pt")
    assert flowclip.load_checkpoint(tmp_path / "c.pt")[1]["captions"] == ["a dog", "a cat"]


# ---- The run folder and the terminal -------------------------------------------------------------
@pytest.fixture
def recorded(make_model, tmp_path):
    """A trainer of ten steps an epoch, and its metrics.csv."""
    batches = [(torch.zeros(2, 3, 8, 8), [0, 1])] * 10
    metrics = tmp_path / "metrics.csv"
    return make_trainer(make_model(), batches=batches, metrics=metrics), metrics


def test_rows_that_could_not_be_written_come_later(recorded):
    trainer, metrics = recorded
    metrics.write_text("of an old run\n")
    trainer.train(2)
    before = metrics.read_text().splitlines()
    metrics.unlink()
    metrics.mkdir()  # what cannot be written to
    trainer.train(1)
    metrics.rmdir()
    trainer.train(1)
    steps = [row.split(",")[0] for row in metrics.read_text().splitlines()]
    assert before[0] == "step,epoch,loss,images_per_second" and len(before) == 3
    assert steps == ["step", "10", "20", "30", "40"], "those that waited, too"


def test_rows_are_appended(recorded):
    """A table that is written anew every 10 steps takes hours of a long run."""
    trainer, metrics = recorded
    trainer.train(1)
    metrics.write_text("kept\n")
    trainer.train(1)
    assert metrics.read_text().startswith("kept\n20,")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk here")
def test_rows_of_a_full_disk_come_later(recorded):
    trainer, metrics = recorded
    metrics.symlink_to("/dev/full")
    trainer.train(2)
    metrics.unlink()
    trainer.train(1)
    steps = [row.split(",")[0] for row in metrics.read_text().splitlines()]
    assert steps == ["step", "10", "20", "30"]


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Gone())
    train.say("lost")
    train.say("lost as well")
    train.say("what is no UTF-8: \udce9")


def test_a_picture_that_cannot_be_written_costs_no_other(command, tmp_path):
    (tmp_path / "o/loss.png").mkdir(parents=True)
    status, out, err = command(train, *RUN, "--out", "o", "--max-steps", "1")
    assert status == 0 and "o/loss.png" in out, err
    assert (tmp_path / "o/samples.png").is_file() and (tmp_path / "o/checkpoint.pt").is_file()


def test_a_folder_in_use_is_refused(command, tmp_path):
    (tmp_path / "o").mkdir()
    lock = train.FileLock(tmp_path / "o/in-use.lock")
    with lock:
        one_line(command(train, *RUN, "--out", "o", "--max-steps", "1"), "in-use.lock")
    assert command(train, *RUN, "--out", "o", "--max-steps", "1")[0] == 0
    assert command(train, *RUN, "--out", "o", "--max-steps", "2", "--resume")[0] == 0


def test_a_folder_is_let_go_whatever_ends_the_run(command, monkeypatch):
    """In a notebook the traceback lives on, and all that it holds."""
    run = [*RUN, "--out", "o", "--max-steps", "1"]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError) as error:
        patch.setattr(train.TextConditionalTrainer, "train", lambda *args: 1 / 0)
        command(train, *run)
    assert error.tb and command(train, *run)[0] == 0


def test_handlers_are_put_back(command):
    before = [signal.getsignal(number) for number in (1, 2, 15)]
    assert command(train, *RUN, "--max-steps", "1")[0] == 0
    assert [signal.getsignal(number) for number in (1, 2, 15)] == before


def test_the_next_line_is_one_for_a_shell(command, tmp_path):
    folder = tmp_path / "it's `here`"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (folder / "0.txt").write_text("it's `echo A` for $HOME")
    run = ["--data", folder, "--img-size", "8", *RUN[2:], "--batch-size", "1", "--max-steps", "1"]
    _, out, _ = command(train, *run)
    words = shlex.split(out.split("next: ")[1])
    assert words[2] == "it's `echo A` for $HOME" and words[-1].startswith("runs/it's `here`/")


def test_the_caption_that_changed_is_named(command, tmp_path):
    for n in range(20):
        path = tmp_path / f"p/{n}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        path.with_suffix(".txt").write_text(f"a very ordinary photograph of thing number {n}")
    run = ["--data", "p", "--img-size", "8", *RUN[2:], "--batch-size", "2", "--out", "o"]
    assert command(train, *run, "--max-steps", "1")[0] == 0
    (tmp_path / "p/7.txt").write_text("another")
    found = command(train, *run, "--max-steps", "2", "--resume")
    one_line(found, "captions", "thing number 7'", "another")
    assert "number 8" not in found[2]
