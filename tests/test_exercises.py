"""The exercises of the chapters: each change is made, and what fails is what the answer says."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import CHAPTERS, NAME, ROOT

CODE = (ROOT / "flowclip.py").read_text()


def read_exercises():
    """-> new code, old code, --spec and the answer's statements of each that changes a line."""
    for path in CHAPTERS:
        text = path.read_text().split("## Exercises\n")[1].split("\nSource")[0]
        for exercise in map(" ".join, map(str.split, re.split(r"\n(?=\d\. )", text)[1:])):
            change = re.search(r"put `([^`]+)` in place of `([^`]+)`", exercise)
            if change:
                part = re.search(r"`pytest --impl=mine.py --spec (\w+)`", exercise)[1]
                answer = re.search(r"Answer</summary>([^.<]*)", exercise)[1]
                yield pytest.param(
                    *change.groups(),
                    part,
                    set(re.findall(NAME, answer)),
                    id=f"{path.stem}-{exercise[0]}",
                )


EXERCISES = list(read_exercises())


def test_each_chapter_has_two_exercises_or_three():
    for path in CHAPTERS:
        text = path.read_text().split("## Exercises\n")[1]
        assert 2 <= text.count("<summary>Answer</summary>") <= 3 and "pytest" in text, path.name


@pytest.mark.parametrize("new, old, part, answer", EXERCISES)
def test_what_an_exercise_changes_is_there(new, old, part, answer):
    assert CODE.count(old) == 1 and answer, old


def what_fails(exercise, mine):
    """-> (the statements that fail when its change is made in the file `mine`, pytest's output)."""
    mine.write_text(CODE.replace(exercise["old"], exercise["new"]))
    chapters = sorted(map(str, (ROOT / "tests").glob("test_[1-7]_*.py")))
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--impl={mine}"]
    run += ["--spec", exercise["part"], *chapters]
    env = os.environ | {"HYPOTHESIS_PROFILE": "brief", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True)
    return {
        name for line in re.findall(r"^ +fail: (.*)", done.stdout, re.M) for name in line.split()
    }, done.stdout


@pytest.fixture(scope="module")
def verdicts(request, tmp_path_factory):
    """{new code: what fails} of the exercises that are asked for, one a core at a time."""
    asked = [
        item.callspec.params for item in request.session.items if "verdicts" in item.fixturenames
    ]
    files = [tmp_path_factory.mktemp("exercise") / "mine.py" for _ in asked]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip((exercise["new"] for exercise in asked), pool.map(what_fails, asked, files))
        )


@pytest.mark.heavy
@pytest.mark.parametrize("new, old, part, answer", EXERCISES)
def test_what_fails_is_what_the_answer_says(new, old, part, answer, verdicts):
    failed, output = verdicts[new]
    assert failed == answer, output[-2000:]
