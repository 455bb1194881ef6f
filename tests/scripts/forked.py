"""Runs of train.py in processes of their own: killed, or side by side.

They are cheap, because they are forked after the imports. The text encoder is a stand-in; all else
is train.py itself. By hand, in an empty folder: python tests/scripts/forked.py --kills 50. So many
SIGKILLs at random times; each time --resume goes on, and the end is the same to the last bit.
"""

import argparse
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import train
from tests.spec.strategies import StandIn

OPTIONS = "--demo --embed-dim 16 --depth 1 --heads 2 --epochs 2 --device cpu --no-held-out"


def start(options, at_step=None, **environment):
    """Fork a process that runs train.py -> its number. at_step(trainer, loss) follows each step."""
    child = os.fork()
    if child:
        return child
    os.environ.update(environment)
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    flowclip.CLIPTextEncoder = lambda *args: StandIn()
    train.draw_pictures = lambda *args: None
    step = train.TextConditionalTrainer.train_step

    def watched(self, *args):
        loss = step(self, *args)
        at_step(self, loss.item())
        return loss

    if at_step:
        train.TextConditionalTrainer.train_step = watched
    sys.argv = ["train.py", *OPTIONS.split(), *options]
    try:
        flowclip.run_script(train.main)
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
    finally:
        os._exit(70)  # a traceback


def wait(child):
    """-> the exit status of a process; of one that a signal has ended, minus its number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def side_by_side(options, processes, at_step=None):
    """What torchrun does, on this machine -> the exit status of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_RUN_ID": "x",  # by this train.py knows that it is one of several
    }
    ranks = map(str, range(processes))
    children = [start(options, at_step, RANK=rank, LOCAL_RANK=rank, **common) for rank in ranks]
    return [wait(child) for child in children]


def run(options, kill_after=None):
    """-> the exit status of one process, -9 if it was killed after so many seconds."""
    child = start(options)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return wait(child)


def leaves(tree):
    """All that lies in nested dicts and lists."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return [tree]
    return [leaf for branch in tree for leaf in leaves(branch)]


def assert_same_end(a, b):
    """Two run folders hold the same weights, averages, moments and losses.

    Their rows are the same, too, but for the last column, which is the speed.
    """
    numbers, rows = [], []
    for folder in map(Path, (a, b)):
        end = torch.load(folder / "checkpoint.pt", weights_only=True)
        training = end["training"]
        same = end["model"], end["meta"], training["model"], training["optimizer"]
        numbers.append(leaves(same))
        lines = (folder / "metrics.csv").read_text().splitlines()
        rows.append([line.rsplit(",", 1)[0] for line in lines])
    for x, y in zip(*numbers, strict=True):
        assert torch.equal(x, y) if torch.is_tensor(x) else x == y
    assert rows[0] == rows[1], "a row is lost or doubled"


def check_rows(path):
    """metrics.csv can be read at any moment: whole rows, and each step once."""
    rows = [row.split(",") for row in path.read_text().splitlines()]
    steps = [int(row[0]) for row in rows[1:]]
    assert all(len(row) == 4 for row in rows) and steps == sorted(set(steps)), rows


def kill(count, seed):
    """-> one line about `count` kills."""
    random.seed(seed)
    begin = time.perf_counter()
    assert run(["--out", "whole", "--save-every", "3"]) == 0
    seconds, kills, runs, saving, steps = time.perf_counter() - begin, 0, 0, 0, set()
    while kills < count:
        runs += 1
        out, status = Path(f"run{runs}"), -1
        options = ["--out", str(out), "--save-every", "3", "--resume"]
        while status and kills < count:
            status = run(options, random.uniform(0.05, 1) * seconds)
            assert status in (0, -signal.SIGKILL), status
            kills += status < 0
            saving += status < 0 and (out / "checkpoint.pt.part").exists()
            if (out / "checkpoint.pt").exists():
                steps.add(flowclip.load_checkpoint(out / "checkpoint.pt")[1]["step"])
            if (out / "metrics.csv").exists():
                check_rows(out / "metrics.csv")
        assert status == 0 or run(options) == 0
        assert_same_end(out, "whole")
    return f"{kills} kills of {runs} runs, {saving} of them during a save, at steps {sorted(steps)}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(kill(args.kills, args.seed))
