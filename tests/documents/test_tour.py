"""The notebook docs/tour.ipynb: it is what build/tour.py makes of the chapters, and it runs."""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from statements import DOCS, ROOT

from tests.documents.test_docs import EXAMPLES, split_example

NOTEBOOK = DOCS / "tour.ipynb"
PICTURES = 13


@pytest.fixture
def tour():
    return pytest.importorskip("tour", reason="needs docs/requirements-test.txt")


def sources(notebook):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def pictures(notebook):
    """How many pictures it shows."""
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
    )


def test_the_notebook_is_what_the_script_makes(tour):
    """python docs/build/tour.py writes it."""
    assert sources(json.loads(NOTEBOOK.read_text())) == sources(tour.make_notebook())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_notebook_prints_what_the_chapter_says(path):
    example, said = split_example(path)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    [cell] = [cell for cell in cells if "".join(cell["source"]).strip() == example.strip()]
    assert printed(cell).strip().endswith(said.strip())


def test_the_notebook_is_small_and_shows_its_pictures():
    text = NOTEBOOK.read_text()
    assert pictures(json.loads(text)) == PICTURES and len(text) < 400_000


def test_links_and_the_badge_lead_to_one_address(tour):
    """On Colab nothing lies beside the notebook: links are whole, once there is an address."""
    prose = [cell.source for cell in tour.make_notebook().cells if cell.cell_type == "markdown"]
    targets = re.findall(r"\]\(([^)#]+)", "".join(prose))
    assert len(targets) > 15
    for target in targets:
        assert (DOCS / target.removeprefix(tour.FOLDER)).exists(), target
    colab = tour.ADDRESS.replace("github.com", "colab.research.google.com/github")
    badge = f"{colab}/blob/main/docs/tour.ipynb"
    assert f"]({badge})" in (ROOT / "README.md").read_text()


def test_no_chapter_takes_a_name_of_the_opening(tour):
    """In test_docs.py the chapters' cells run alone."""
    cells = [cell.source for cell in tour.make_notebook().cells if cell.cell_type == "code"]
    opening = next(source for source in cells if "import flowclip" in source)
    for path in EXAMPLES:
        for node in ast.walk(ast.parse(split_example(path)[0])):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert not re.search(rf"import.*\b{node.id}\b", opening), f"{path.name}: {node.id}"


@pytest.mark.heavy
def test_the_notebook_runs_in_a_clean_folder(tour, tmp_path, monkeypatch):
    """Without an error; of the demo only thirty steps."""
    for name in ("flowclip.py", "train.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    programs = Path(sys.executable).parent  # "!python" shall be this one
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    notebook = tour.make_notebook()
    [switch] = [cell for cell in notebook.cells if cell.source.startswith("import torch\nSMALL = ")]
    switch.source = switch.source.replace("not torch.cuda.is_available()", "True")
    switch.source = switch.source.replace('"--demo"', '"--demo --max-steps 30"')
    tour.run(notebook, tmp_path / "docs")
    assert pictures(notebook) == PICTURES
    assert (tmp_path / "runs/demo/metrics.csv").read_text().splitlines()[-1].startswith("30,")
