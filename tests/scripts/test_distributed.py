"""Several processes are one run: the same losses, one checkpoint; one that dies ends them all."""

import json
import os
import subprocess
import sys

import pytest
import torch

import flowclip
import train
from tests.conftest import ROOT
from tests.spec import strategies as draw

heavy = pytest.mark.heavy

SCRIPT = """
import flowclip, json, os, time, train
from tests.scripts import forked

def note(trainer, loss):
    with open(f"losses-{trainer.world_size}-{trainer.rank}", "a") as file:
        file.write(f"{loss}\\n")

def die(trainer, loss):
    if trainer.rank == 1 and trainer.step == 9:
        os._exit(9)

def stop(trainer, loss):
    if trainer.rank == 1 and trainer.step == 3:
        os.kill(os.getpid(), 15)

def watch(module, name, before=lambda: None):
    real = getattr(module, name)

    def watched(*args):
        before()
        with open(name, "a") as file:
            file.write(os.environ["RANK"])
        return real(*args)

    setattr(module, name, watched)

def rows(trainer, loss):
    if trainer.metrics:
        with open("rows", "a") as file:
            file.write(os.environ["RANK"])

def run(name, processes, at_step=None, *more):
    options = ["--batch-size", "256", "--out", name, *more]
    return forked.side_by_side(options, processes, at_step)

statuses = {
    "one": run("one", 1, note),
    "two": run("two", 2, note),
    "dead": run("dead", 2, die),
    "stopped": run("stopped", 2, stop),
    "resumed": run("stopped", 2, None, "--resume"),
}
watch(flowclip, "save_checkpoint")
statuses["watched"] = run("watched", 2, rows, "--max-steps", "1")
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """-> the folder of some runs, and the exit status of each of their processes."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    folder = tmp_path_factory.mktemp("distributed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


def weights(path):
    """-> meta, and the averaged weights as one vector."""
    model, meta = flowclip.load_checkpoint(path)
    return meta, draw.flat(model)


@heavy
@pytest.mark.spec("TRAIN-4")
def test_one_and_two_processes_have_the_same_losses_at_every_step(runs):
    folder, statuses = runs
    assert statuses["one"] == [0] and statuses["two"] == [0, 0]
    one, first, second = (
        torch.tensor([*map(float, (folder / f"losses-{name}").read_text().split())])
        for name in ("1-0", "2-0", "2-1")
    )
    assert len(one) == 14 and first.equal(second), "each process knows the loss of all"
    assert (one - first).abs().max() < 1e-4
    (meta, a), (other, b) = (weights(folder / name / "checkpoint.pt") for name in ("one", "two"))
    assert meta["step"] == other["step"] == 14 and (a - b).abs().max() < 1e-3


@heavy
def test_a_process_that_dies_ends_the_run_and_leaves_the_checkpoint(runs):
    folder, statuses = runs
    assert statuses["dead"][1] == 9 and statuses["dead"][0] not in (0, 9)
    assert weights(folder / "dead" / "checkpoint.pt")[0]["step"] == 7
    assert not list(folder.glob("*/*.part"))


@heavy
def test_a_signal_stops_all_at_the_same_step_and_the_run_resumes(runs):
    folder, statuses = runs
    assert statuses["stopped"] == [143, 143] and statuses["resumed"] == [0, 0]
    (meta, a), (other, b) = (
        weights(folder / name / "checkpoint.pt") for name in ("two", "stopped")
    )
    assert meta["losses"] == other["losses"] and a.equal(b)


@heavy
def test_the_first_process_alone_writes(runs):
    folder, statuses = runs
    assert statuses["watched"] == [0, 0]
    assert (folder / "save_checkpoint").read_text() == (folder / "rows").read_text() == "0"


def test_the_batch_must_be_divisible(make_model):
    trainer = train.TextConditionalTrainer(make_model(), draw.StandIn(), [], None, device="cpu")
    trainer.world_size = 3
    with pytest.raises(ValueError, match="64.* 3"):
        trainer.train_step(torch.zeros(64, 3, 8, 8), 64 * ["dog"])
