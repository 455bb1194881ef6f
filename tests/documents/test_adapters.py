"""Other people's projects: what docs/judged.md says of them; with a checkout, whether it is so."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from statements import DOCS, ROOT, read_statements

from tests.lesson import departure

ADAPTERS = "dit", "opticus", "minrf", "flow_matching", "latent_diffusion"
VERDICTS = "holds", "departs", "fails", "has not"
each_adapter = pytest.mark.parametrize("name", ADAPTERS)


def group(statement):
    return statement.split("-")[0]


def declared(name):
    """The DEPARTS of an adapter, which cannot be imported without its project."""
    for node in ast.parse((ROOT / f"tests/adapters/{name}.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEPARTS":
            return ast.literal_eval(node.value)


def judged(name):
    """Four rows of the table: {verdict: {group: number of statements, "all": their sum}}."""
    lines = (DOCS / "judged.md").read_text().splitlines()
    heading = next(line for line in lines if line.startswith("| project | verdict |"))
    first = next(n for n, line in enumerate(lines) if f"{name}](https" in line.lower())
    rows = {}
    for line in lines[first : first + 4]:
        _, verdict, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        groups = [cell.strip() for cell in heading.strip("|").split("|")][2:]
        rows[verdict] = {name: int(number or 0) for name, number in zip(groups, numbers)}
    return rows


@each_adapter
def test_a_departure_is_of_a_statement_and_has_a_reason(name):
    assert set(declared(name)) <= set(read_statements()) and all(declared(name).values())


@each_adapter
def test_the_table_adds_up(name):
    rows, statements = judged(name), Counter(map(group, read_statements()))
    assert tuple(rows) == VERDICTS
    for part, count in (statements | {"all": statements.total()}).items():
        assert sum(rows[verdict][part] for verdict in VERDICTS) == count, part
    for verdict, numbers in rows.items():
        assert sum(numbers.values()) == 2 * numbers["all"], verdict
    departs = Counter(part for name in declared(name) for part in (group(name), "all"))
    assert {part: departs[part] for part in rows["departs"]} == rows["departs"]


@each_adapter
def test_a_checkout_is_judged_as_the_table_says(name, tmp_path):
    folder = os.environ.get(f"ADAPT_{name.upper()}")
    if not folder:
        pytest.skip(f"ADAPT_{name.upper()} names no checkout")
    command = [sys.executable, "-m", "pytest", "-q", f"--impl=tests/adapters/{name}.py"]
    command += ["-p", "no:cacheprovider", "tests/spec", f"--report={tmp_path / 'report.json'}"]
    env = os.environ | {"ADAPT": folder}
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert said.returncode in (0, 1), said.stdout + said.stderr
    found = {verdict: Counter() for verdict in VERDICTS}
    for row in json.loads((tmp_path / "report.json").read_text()):
        verdict = row["verdict"].replace("skipped", "has not")
        found[verdict].update([group(row["statement"]), "all"])
    for verdict, numbers in judged(name).items():
        assert {part: found[verdict][part] for part in numbers} == numbers, verdict


@pytest.mark.parametrize("error, said", [
    (AssertionError("values differ"), "departs: sines first"),
    (AttributeError("module 'judged' has no attribute 'DiT'"), "has not: DiT"),
])  # fmt: skip
def test_what_is_declared_is_no_failure(monkeypatch, error, said):
    def item(*names):
        return SimpleNamespace(iter_markers=lambda _: [SimpleNamespace(args=names)])

    monkeypatch.setitem(sys.modules, "judged", SimpleNamespace())
    assert departure(item("TIME-1"), error) is None, "a learner's file declares nothing"
    monkeypatch.setitem(sys.modules, "judged", SimpleNamespace(DEPARTS={"TIME-1": "sines first"}))
    assert departure(item("TIME-2", "TIME-1"), error) == said
    assert departure(item("TIME-2"), AssertionError("values differ")) is None
    assert departure(item("TIME-2"), NotImplementedError("heun")) == "has not: heun"
