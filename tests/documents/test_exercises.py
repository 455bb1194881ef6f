"""The exercises of the chapters, held to their answers.

Break: the change is made, and what fails is what the answer says. Predict: the code prints what the
answer says. Write: the answer's code, in place of flowclip.py's own, holds its part of the spec.
"""

import contextlib
import io
import re
import textwrap

import pytest
import torch
from statements import CHAPTERS, NAME, ROOT, read_statements

from tests.documents import several

CODE = (ROOT / "flowclip.py").read_text()
KINDS = "Break", "Derive", "Predict", "Write"


def exercises(path):
    """{kind: (the question, the answer)} of a chapter."""
    section = path.read_text().split("## Exercises\n")[1].split("\nSource")[0]
    found = {}
    for part in re.split(r"^\d\. ", section, flags=re.M)[1:]:
        question, answer = part.split("<details><summary>Answer</summary>")
        found[re.match(r"\*\*(\w+)\*\*", part)[1]] = question, answer
    return found


def block(text):
    """The indented lines of a question or an answer."""
    lines = [line for line in text.splitlines() if line.startswith(7 * " ") or not line]
    return textwrap.dedent("\n".join(lines)).strip()


def spec_of(text):
    return re.findall(r"`pytest --impl=mine.py --spec (\w+)`", " ".join(text.split()))[-1]


def breaks():
    """-> new code, old code, --spec and the answer's statements of each that changes a line."""
    for path in CHAPTERS:
        question, answer = exercises(path)["Break"]
        change = re.search(
            r"put `([^`]+)` in place of `([^`]+)`", " ".join(question.split())
        ).groups()
        statements = set(re.findall(NAME, answer.split(".")[0]))
        yield pytest.param(*change, spec_of(question), statements, id=path.stem)


def answers_in_code():
    """-> a whole file, in which the code of the answer is the last word, and --spec."""
    for path in CHAPTERS:
        question, answer = exercises(path)["Write"]
        yield pytest.param(f"{CODE}\n\n{block(answer)}\n", spec_of(question + answer), id=path.stem)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_chapter_has_an_exercise_of_each_kind(path):
    assert tuple(exercises(path)) == KINDS
    question, answer = exercises(path)["Write"]
    assert "python docs/build/blank.py" in question and block(answer), path.name


@pytest.mark.parametrize("new, old, part, answer", list(breaks()))
def test_what_an_exercise_changes_is_there(new, old, part, answer):
    assert CODE.count(old) == 1 and answer, old


@pytest.mark.heavy
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:this CLIP text tower")
def test_what_is_predicted_is_what_is_printed(path):
    question, answer = exercises(path)["Predict"]
    torch.manual_seed(0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block(question), path.name, "exec"), {})
    assert said.getvalue().strip() == block(answer)


@pytest.fixture(scope="module")
def verdicts(request, tmp_path_factory):
    """{code: (what fails, pytest's output)} of the exercises that are asked for."""
    chapter_of = {name.split("-")[0]: chapter for name, chapter in read_statements().items()}
    jobs = {}
    for item in request.session.items:
        if item.module is request.module and "verdicts" in item.fixturenames:
            asked = item.callspec.params
            code = asked.get("code") or CODE.replace(asked["old"], asked["new"])
            mine = tmp_path_factory.mktemp("exercise") / "mine.py"
            mine.write_text(code)
            profile = "brief" if "old" in asked else "few"
            tests = f"tests/spec/test_{chapter_of[asked['part']].replace('-', '_')}.py"
            jobs[code] = profile, [f"--impl={mine}", "--spec", asked["part"], tests]
    found = {}
    for code, (_, out, _) in several.start(jobs)().items():
        failed = " ".join(re.findall(r"^ +fail: (.*)", out, re.M)).split()
        found[code] = set(failed), out
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("new, old, part, answer", list(breaks()))
def test_what_fails_is_what_the_answer_says(new, old, part, answer, verdicts):
    failed, output = verdicts[CODE.replace(old, new)]
    assert failed == answer, output[-2000:]


@pytest.mark.heavy
@pytest.mark.parametrize("code, part", list(answers_in_code()))
def test_what_an_answer_writes_holds_its_part(code, part, verdicts):
    failed, output = verdicts[code]
    assert not failed and " passed" in output, output[-2000:]
