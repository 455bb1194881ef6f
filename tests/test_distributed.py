"""Several processes are one run: the same losses, one checkpoint; and what happens when one of them dies."""

import json
import os
import subprocess
import sys

import pytest

import flowclip
from tests.conftest import ROOT, one_line

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"), pytest.mark.heavy]

SCRIPT = """
import json, os, time, train
from tests import forked

def note(trainer, loss):
    with open(f"losses-{trainer.world}-{trainer.rank}", "a") as file:
        file.write(f"{loss}\\n")

def die(trainer, loss):
    if trainer.rank == 1 and trainer.step == 9:
        os._exit(9)

def stop(trainer, loss):
    if trainer.rank == 1 and trainer.step == 3:
        os.kill(os.getpid(), 15)

load = train.load_data

def slow_first(*args):
    time.sleep(2 * (os.environ["RANK"] == "0"))  # as long as a download
    with open("loads", "a") as file:
        file.write(os.environ["RANK"])
    return load(*args)

statuses = {
    "one": forked.side_by_side(["--batch-size", "256", "--out", "one"], 1, note),
    "two": forked.side_by_side(["--batch-size", "256", "--out", "two"], 2, note),
    "dead": forked.side_by_side(["--batch-size", "256", "--out", "dead"], 2, die),
    "stopped": forked.side_by_side(["--batch-size", "256", "--out", "stopped"], 2, stop),
    "resumed": forked.side_by_side(["--batch-size", "256", "--out", "stopped", "--resume"], 2),
}
train.load_data = slow_first
statuses["first"] = forked.side_by_side(["--max-steps", "1", "--out", "first"], 2)
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """-> the folder of some runs, and the exit status of each of their processes."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


def weights(path):
    model, meta = flowclip.load_checkpoint(path)
    return meta, list(model.parameters())


@pytest.mark.spec("TRAIN-4")
def test_one_and_two_processes_have_the_same_losses_at_every_step(runs):
    folder, statuses = runs
    assert statuses["one"] == [0] and statuses["two"] == [0, 0]
    one, first, second = ([*map(float, (folder / f"losses-{n}").read_text().split())] for n in ("1-0", "2-0", "2-1"))
    assert len(one) == 14 and first == second, "each process knows the loss of all"
    assert max(abs(a - b) for a, b in zip(one, first, strict=True)) < 1e-4
    (meta, a), (other, b) = (weights(folder / name / "checkpoint.pt") for name in ("one", "two"))
    assert meta["step"] == other["step"] == 14 and max((x - y).abs().max() for x, y in zip(a, b)) < 1e-3
    rows = [(folder / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]], "one process writes"


def test_a_process_that_dies_ends_the_run_and_leaves_the_checkpoint(runs):
    folder, statuses = runs
    assert statuses["dead"][1] == 9 and statuses["dead"][0] not in (0, 9)
    assert weights(folder / "dead" / "checkpoint.pt")[0]["step"] == 7
    assert not list(folder.glob("*/*.part"))


def test_a_signal_stops_all_at_the_same_step_and_the_run_resumes(runs):
    folder, statuses = runs
    assert statuses["stopped"] == [143, 143] and statuses["resumed"] == [0, 0]
    (meta, a), (other, b) = (weights(folder / name / "checkpoint.pt") for name in ("two", "stopped"))
    assert meta["losses"] == other["losses"] and all((x == y).all() for x, y in zip(a, b))


def test_the_first_process_alone_downloads(runs):
    folder, statuses = runs
    assert statuses["first"] == [0, 0] and (folder / "loads").read_text() == "01", "the others wait for it"


def test_the_batch_must_be_divisible(command, monkeypatch):
    import train

    monkeypatch.setenv("WORLD_SIZE", "3")
    one_line(command(train, "--demo"), "--batch-size is 64, expected a multiple of the 3 processes")
