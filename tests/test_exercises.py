"""The exercises of the chapters: each change to flowclip.py is made, and what falls is what the answer says."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import CHAPTERS, NAME, ROOT

CODE = (ROOT / "flowclip.py").read_text()


def read_exercises():
    """-> (chapter and number, new code, old code, --spec, the statements of the answer) of all that change a line."""
    for path in CHAPTERS:
        text = path.read_text().split("## Exercises\n")[1].split("\nSource")[0]
        for exercise in map(" ".join, map(str.split, re.split(r"\n(?=\d\. )", text)[1:])):
            change = re.search(r"put `([^`]+)` in place of `([^`]+)`", exercise)
            if change:
                part = re.search(r"`pytest --impl mine.py --spec (\w+)`", exercise)[1]
                answer = re.search(r"Answer</summary>([^.<]*)", exercise)[1]
                yield pytest.param(*change.groups(), part, set(re.findall(NAME, answer)), id=f"{path.stem}-{exercise[0]}")


EXERCISES = list(read_exercises())


def test_each_chapter_has_two_exercises_or_three():
    for path in CHAPTERS:
        text = path.read_text().split("## Exercises\n")[1]
        assert 2 <= text.count("<summary>Answer</summary>") <= 3 and "pytest" in text, path.name


@pytest.mark.parametrize("new, old, part, answer", EXERCISES)
def test_what_an_exercise_changes_is_there(new, old, part, answer):
    assert CODE.count(old) == 1 and answer, old


@pytest.mark.heavy
@pytest.mark.parametrize("new, old, part, answer", EXERCISES)
def test_what_falls_is_what_the_answer_says(new, old, part, answer, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(CODE.replace(old, new))
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--impl={mine}", "--spec", part]
    done = subprocess.run(run, cwd=ROOT, env=os.environ | {"HYPOTHESIS_PROFILE": "ci"}, capture_output=True, text=True)
    fallen = {name for line in re.findall(r"^ +fail: (.*)", done.stdout, re.M) for name in line.split()}
    assert fallen == answer, done.stdout[-2000:]
