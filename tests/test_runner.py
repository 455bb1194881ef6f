"""The runner itself: --impl judges another file, --spec a part; a table says what holds."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, pytest_collection_modifyitems


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of pytest, side by side -> {name: (status, stdout, stderr)}."""
    broken, unfinished = (
        tmp_path_factory.mktemp("impl") / name for name in ("broken.py", "unfinished.py")
    )
    code = (ROOT / "flowclip.py").read_text()
    code = code.replace("def make_cifar10_captions", "def another_name").replace(
        "name.lower().startswith", "name.startswith"
    )
    broken.write_text(code)
    unfinished.write_text("def half(:\n")
    options = {
        "broken": [f"--impl={broken}", "--spec", "DATA"],
        "itself": ["--impl", "flowclip.py", "tests/test_4_data.py"],
        "unfinished": [f"--impl={unfinished}"],
    }
    started = {}
    for name, option in options.items():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *option]
        started[name] = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    said = {name: process.communicate(timeout=300) for name, process in started.items()}
    return {name: (process.returncode, *said[name]) for name, process in started.items()}


def test_another_file_is_judged_by_statement(runs):
    status, out, err = runs["broken"]
    assert status == 1 and "the spec of broken.py" in out, out + err
    assert re.search(r"4-data +6 +2 +4 +0 +0", out) and re.search(
        r"2-attention +9 +0 +0 +0 +9 +0", out
    )
    assert "fail: DATA-1 DATA-2 DATA-3 DATA-6\n" in out, (
        "the statements that need neither still hold"
    )


def test_the_file_itself_and_one_test_file(runs):
    status, out, err = runs["itself"]
    assert status == 0 and "the spec of flowclip.py" in out, out + err
    assert re.search(r"4-data +6 +6 +0 +0 +0 +\d+", out) and re.search(
        r"3-dit +16 +0 +0 +0 +16", out
    )
    assert "fail:" not in out


def test_mistakes_of_the_command_line(runs):
    status, _, err = runs["unfinished"]
    assert (
        status == 4
        and "unfinished.py cannot be imported: SyntaxError" in err
        and "Traceback" not in err
    ), err
    config = SimpleNamespace(getoption=lambda name: "NONSENSE-1")
    with pytest.raises(pytest.UsageError, match="--spec NONSENSE-1: no such statement"):
        pytest_collection_modifyitems(config, [])
