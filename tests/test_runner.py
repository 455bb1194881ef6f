"""The runner itself: --impl judges another file, --spec a part, and the table says which statements hold."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, pytest_collection_modifyitems


def run(*options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_another_file_is_judged_by_statement(tmp_path):
    code = (ROOT / "flowclip.py").read_text()
    broken = code.replace("def make_cifar10_captions", "def another_name").replace("name[:1].lower() in", "name[:1] in")
    (tmp_path / "broken.py").write_text(broken)
    done = run(f"--impl={tmp_path / 'broken.py'}", "--spec", "DATA")
    assert done.returncode == 1 and "the spec of broken.py" in done.stdout, done.stdout + done.stderr
    assert re.search(r"4-data +6 +3 +3 +0 +0", done.stdout) and re.search(r"2-attention +9 +0 +0 +0 +9 +0", done.stdout)
    assert "fail: DATA-1 DATA-2 DATA-3\n" in done.stdout, "the statements that need neither still hold"


def test_the_file_itself_and_one_test_file():
    done = run("--impl", "flowclip.py", "tests/test_4_data.py")
    assert done.returncode == 0 and "the spec of flowclip.py" in done.stdout, done.stdout + done.stderr
    assert re.search(r"4-data +6 +6 +0 +0 +0 +5", done.stdout) and re.search(r"3-dit +16 +0 +0 +0 +16", done.stdout)
    assert "fail:" not in done.stdout


def test_mistakes_of_the_command_line(tmp_path):
    (tmp_path / "unfinished.py").write_text("def half(:\n")
    done = run(f"--impl={tmp_path / 'unfinished.py'}")
    assert done.returncode == 4 and "unfinished.py cannot be imported: SyntaxError" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    config = SimpleNamespace(getoption=lambda name: "NONSENSE-1")
    with pytest.raises(pytest.UsageError, match="--spec NONSENSE-1: no such statement"):
        pytest_collection_modifyitems(config, [])
