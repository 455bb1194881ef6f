"""Several runs of pytest in as many processes as there are cores: each start takes seconds."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(profile, arguments):
    """One run, in this process -> (status, stdout, stderr). All of this repository is read anew."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("flowclip", "judged", "sample", "tests", "train"):
            del sys.modules[name]
    os.environ["HYPOTHESIS_PROFILE"] = profile
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = pytest.main(["-q", "-p", "no:cacheprovider", *arguments])
    return int(status), out.getvalue(), err.getvalue()


def start(jobs, count=None):
    """Begin {name: (hypothesis' profile, pytest's arguments)}, in so many processes.

    -> a function that waits for {name: (status, stdout, stderr)}.
    """
    names, processes = list(jobs), []
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "80"}
    count = count or os.cpu_count()
    for part in filter(None, (names[first::count] for first in range(count))):
        mine = json.dumps([jobs[name] for name in part])
        command = [sys.executable, "-m", "tests.documents.several", mine]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append((part, subprocess.Popen(command, cwd=ROOT, env=env, **pipes)))

    def wait():
        found = {}
        for part, process in processes:
            out, err = process.communicate()
            assert process.returncode == 0, out + err
            found |= zip(part, json.loads(out.splitlines()[-1]))
        return found

    return wait


if __name__ == "__main__":
    print("\n" + json.dumps([run(*job) for job in json.loads(sys.argv[1])]))
