"""The hall of slips: bugs that were public, put into our files, turn the named statement red."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from statements import DOCS, ROOT, read_statements

from tests.documents import several

CHAPTERS = read_statements()


@dataclass
class Slip:
    """A file of tests/slips: the mistake, its address, what goes red, our file, and a diff."""
    path: Path

    def __post_init__(self):
        self.words, self.address, red, file, *diff = self.path.read_text().splitlines()
        self.statement, _, self.green = red.removeprefix("red: ").partition(", stays ")
        self.file = ROOT / file.removeprefix("--- ")
        self.old, self.new = (
            "".join(f"{line[1:]}\n" for line in diff if line[0] == sign) for sign in "-+"
        )

    def apply(self, path):
        """Write a file that has the mistake; train.py is judged with all that flowclip.py has."""
        rest = "" if self.file.name == "flowclip.py" else "from flowclip import *\n"
        path.write_text(rest + self.file.read_text().replace(self.old, self.new))

    def row(self):
        """Its line in docs/slips.md."""
        where = re.search(r"github\.com/([^/]+/[^/]+)/(?:issues|pull)?/?(\d*)", self.address)
        where = f"{where[1]} #{where[2]}" if where[2] else where[1]
        red = "none" if self.green else f"[{self.statement}]({CHAPTERS[self.statement]}.md)"
        diff = f"[{self.path.stem}](../tests/slips/{self.path.name})"
        return f"| {self.words} | [{where}]({self.address}) | {diff} | {red} |"


SLIPS = [Slip(path) for path in sorted((ROOT / "tests/slips").glob("*.diff"))]
each_slip = pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.path.stem)


@each_slip
def test_what_a_slip_changes_is_there_once(slip):
    assert slip.file.read_text().count(f"\n{slip.old}") == 1
    assert max(slip.old.count("\n"), slip.new.count("\n")) <= 3


def test_the_page_has_each_slip():
    rows = re.findall(r"^\| .*\.diff\).*\|$", (DOCS / "slips.md").read_text(), re.M)
    assert sorted(rows) == sorted(slip.row() for slip in SLIPS)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """{path of a slip: (status, stdout, stderr)}: each is judged by its statement alone."""
    folder = tmp_path_factory.mktemp("slips")
    jobs = {}
    for slip in SLIPS:
        mine = folder / f"{slip.path.stem}.py"
        slip.apply(mine)
        tests = f"tests/spec/test_{CHAPTERS[slip.statement].replace('-', '_')}.py"
        jobs[slip.path] = "few", [f"--impl={mine}", "--spec", slip.statement, tests]
    return several.start(jobs)()


@pytest.mark.heavy
@each_slip
def test_a_slip_turns_its_statement_red(verdicts, slip):
    status, out, err = verdicts[slip.path]
    if slip.green and status == 0:
        pytest.xfail("no statement sees it yet")
    assert status == 1 and re.search(rf"^    fail: .*\b{slip.statement}\b", out, re.M), out + err
    assert "not there:" not in out, "a test that misses a name judges nothing"
