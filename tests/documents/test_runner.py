"""The runner itself: --impl judges another file, --spec a part; a table says what holds."""

import json
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.image import imread
from statements import CHAPTERS, ROOT, read_statements

import flowclip
from tests.conftest import load, pytest_collection_modifyitems
from tests.documents import several
from tests.lesson import lesson, read_hints

PAGE = (ROOT / "docs/README.md").read_text()
SLIP = "math.sqrt(x.shape[-1])", "math.sqrt(q.shape[-1])"  # wrong, right: D_x in place of d_head


PROJECT = """from einops import rearrange

DEPARTS = {"PATCH-1": "channels first"}


def patchify(images, patch_size):
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(patches, patch_size, grid=(1, 1)):
    h, p = grid[0], patch_size
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)
"""


def transcript():
    """The learner's way in docs/README.md -> its indented parts: commands, tables and code."""
    section = PAGE.split("### A learner's way\n")[1].split("\n## ")[0]
    parts = re.findall(r"^    .*\n(?:\n*    .*\n)*", section, re.M)
    return [textwrap.dedent(part).strip("\n") for part in parts]


def adapter():
    """That of docs/interface.md."""
    section = (ROOT / "docs/interface.md").read_text().split("## An adapter\n")[1]
    return textwrap.dedent(re.search(r"^    .*\n(?:\n*    .*\n)*", section, re.M)[0])


def begin(folder):
    """Start runs of pytest -> a function that waits for {name: (status, stdout, stderr)}."""
    blank = [sys.executable, "docs/build/blank.py", "ATTN"]
    emptied = subprocess.run(blank, cwd=ROOT, capture_output=True, text=True).stdout
    code = transcript()[2]
    alone = f"import math\n\nimport torch\nfrom torch import nn\n\n\n{code}\n"
    files = {
        "blank": emptied,
        "slip": alone,
        "written": f"{emptied}\n\n{code.replace(*SLIP)}\n",
        "alone": alone.replace(*SLIP),
        "unfinished": "def half(:\n",
        "project": PROJECT,
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    names = {
        "CrossAttention": "Reader", "num_heads=8": "heads=8", "= num_heads": "= heads",
        "q_proj": "ask", "k_proj": "offer", "v_proj": "tell", "attention_weights": "weights",
    }  # fmt: skip
    own = alone.replace(*SLIP).replace("self.num_heads", "self.count")
    for ours, theirs in names.items():
        own = own.replace(ours, theirs)
    (folder / "mine.py").write_text(f"from flowclip import interpolate as straight_line\n{own}")
    (folder / "adapter.py").write_text(adapter())
    attention = {
        name: [f"--impl={folder / name}.py", "--spec", "ATTN"]
        for name in ("blank", "slip", "written")
    }
    return several.start({
        "alone": ("few", ["tests", "--impl", str(folder / "alone.py")]),
        "slip": ("ci", attention["slip"]),
        "adapter": ("few", [f"--impl={folder / 'adapter.py'}", "--spec", "ATTN"]),
        "written": ("few", attention["written"]),
        "blank": ("few", attention["blank"]),
        "inside": ("few", ["--impl", "tests/other_authors/loops.py", "--spec", "ATTN"]),
        "project": ("few", [
            f"--impl={folder / 'project.py'}", "--spec", "PATCH",
            f"--report={folder / 'report.json'}", f"--pictures={folder / 'pictures'}",
        ]),
        "hint": ("few", ["--hint", "ATTN-3"]),
        "unfinished": ("few", [f"--impl={folder / 'unfinished.py'}"]),
    }, count=1)  # fmt: skip


@pytest.fixture(scope="module")
def judged_runs(pytestconfig):
    return pytestconfig.judged_runs()


def table(out):
    """{chapter: [statements, hold, fail, skipped, not run, tests]} of pytest's output."""
    rows = re.findall(r"^(\d-\w+)((?: +\d+){6})$", out, re.M)
    return {chapter: [int(number) for number in numbers.split()] for chapter, numbers in rows}


def test_a_file_inside_needs_no_equals_sign(judged_runs):
    status, out, err = judged_runs["inside"]
    assert status == 0 and table(out)["5-attention"][:2] == [9, 9], out + err


def test_a_file_with_one_class_fails_nothing_but_what_needs_the_rest(judged_runs):
    status, out, err = judged_runs["alone"]
    found = table(out)
    assert status == 1 and found.pop("5-attention")[:3] == [9, 9, 0], out + err
    assert all(hold == 0 for _, hold, *_ in found.values()), out
    assert re.search(r"not there: AdaLN, .*TextConditionalDiT", out)
    assert "PATCH-1: alone.py has no `patchify`" in out
    training = len([name for name in read_statements() if name.startswith("TRAIN")])
    assert found["1-objective"][3] == training, "the training step is skipped, as it is optional"


def test_what_a_project_declares_is_counted_apart(judged_runs):
    status, out, err = judged_runs["project"]
    assert status == 1 and "    departs: PATCH-1, channels first\n" in out, out + err
    assert "    fail: PATCH-2\n" in out
    head, line = (re.search(start + ".*", out)[0].split() for start in ("chapter ", "6-transf"))
    assert head[2:5] == ["hold", "fail", "departs"] and line[2:5] == ["0", "1", "1"]


def test_the_table_ends_with_what_to_do_next(judged_runs):
    after = judged_runs["project"][1].split("\n7-data")[1].splitlines()[1]
    file, number = re.fullmatch(
        r"next: PATCH-2, (docs/\S+) line (\d+); pytest --hint PATCH-2", after
    ).groups()
    assert (ROOT / file).read_text().splitlines()[int(number) - 1].startswith("- **[PATCH-2]**")
    assert "next:" not in judged_runs["written"][1], "nothing fails there"


def test_a_report_for_graders(judged_runs, pytestconfig):
    rows = json.loads(Path(pytestconfig.elsewhere.name, "report.json").read_text())
    found = {row["statement"]: (row["verdict"], row["message"]) for row in rows}
    assert list(found) == list(read_statements())
    assert found.pop("PATCH-1") == ("departs", "channels first")
    verdict, message = found.pop("PATCH-2")
    assert verdict == "fails" and message.startswith("the images[0, 0, 0, 1]: expected 1, found")
    assert set(found.values()) == {("not run", "")}


def test_wrong_images_are_drawn(judged_runs, pytestconfig):
    picture = Path(pytestconfig.elsewhere.name, "pictures", "test_patches_and_back.png")
    assert f"drawn: {picture}" in re.sub(r"\n +", "", judged_runs["project"][1])
    greys = Counter(imread(picture)[..., 0].flatten().tolist())
    assert sum(count > 1000 for count in greys.values()) >= 4, "no pixels of several greys"


def test_each_statement_has_a_hint(judged_runs):
    hints = read_hints()
    assert set(hints) == set(read_statements())
    assert judged_runs["hint"] == [0, f"ATTN-3: {hints['ATTN-3']}\n", ""]


def test_an_adapter_of_a_file_with_its_own_names(judged_runs):
    status, out, err = judged_runs["adapter"]
    assert status == 0 and table(out)["5-attention"][:3] == [9, 9, 0], out + err
    assert len([line for line in adapter().splitlines() if line]) <= 12


def test_a_learner_s_way(judged_runs):
    """What docs/README.md shows of three runs is what they print."""
    _, first, _, second, third = transcript()
    for name, shown in (("blank", first), ("slip", second), ("written", third)):
        out = re.sub(rf"\b{name}\.py", "mine.py", judged_runs[name][1])
        out = re.sub(r"\d+ (?=deselected|failed|passed)|[\d.]+(?=s )", "", out)
        for line in shown.splitlines():
            assert line in out.splitlines(), f"{name}: {line!r} is not printed\n{out}"


def test_a_failure_is_a_lesson_of_a_few_lines(judged_runs):
    _, out, _ = judged_runs["slip"]
    failures = re.split(r"^_{3,} \w+ _{3,}$", out.split("== the spec of")[0], flags=re.M)[1:]
    assert len(failures) == 1, out
    words = failures[0].strip().splitlines()
    assert len(words) < 15 and max(map(len, words)) <= 110, failures[0]
    assert words[0].startswith("[ATTN-3] A = softmax(Q K^T / sqrt(d_head))")
    assert re.search(r"A\[0, 0, \d, \d\]: expected 0\.\d+, found 0\.\d+", failures[0])
    assert "where heads = " in failures[0] and "CrossAttention(" not in failures[0]


def test_the_longest_statement_and_a_long_error_stay_short():
    item = SimpleNamespace(
        config=SimpleNamespace(getoption=lambda name: None), fixturenames=["encoder"],
        location=("tests/test_x.py", 9, ""), name="test_x",
        iter_markers=lambda _: [SimpleNamespace(args=("DIT-7",))],
    )  # fmt: skip
    error = RuntimeError("\n".join(200 * ["Module(" + 200 * "x"]))
    drawn = "Falsifying example: f(\n    encoder=Encoder(\n        a\n    ),\n    w=1,\n)"
    error.__notes__ = [drawn]
    words = lesson(item, error).splitlines()
    assert len(words) < 15 and max(map(len, words)) <= 110, words
    assert any("where w = 1" in line for line in words)


def test_a_file_may_take_the_rest_from_flowclip(tmp_path):
    """And it replaces, in its own name alone, what it writes anew."""
    (tmp_path / "mine.py").write_text("from flowclip import *\n\ndef patchify(*_): return 1\n")
    judged = load(tmp_path / "mine.py")
    assert judged.unpatchify is flowclip.unpatchify
    assert judged.patchify() == 1 and flowclip.patchify is not judged.patchify


def test_mistakes_of_the_command_line(judged_runs):
    status, _, err = judged_runs["unfinished"]
    said = "unfinished.py cannot be imported: SyntaxError"
    assert status == 4 and said in err and "Traceback" not in err, err
    config = SimpleNamespace(getoption=lambda name: "NONSENSE-1")
    with pytest.raises(pytest.UsageError, match="--spec NONSENSE-1: no such statement"):
        pytest_collection_modifyitems(config, [])


@pytest.mark.parametrize("part, emptied, kept", [
    ("CLIP", "trim_context", "CrossAttention"),
    ("POS-2", "patchify", "make_captions"),
    ("SAMPLE", "integrate", "check_shape"),
    ("TRAIN", "TextConditionalTrainer", "integrate"),
])  # fmt: skip
def test_a_blank_keeps_all_but_the_bodies_of_its_chapter(part, emptied, kept):
    blank = [sys.executable, "docs/build/blank.py", part]
    text = subprocess.run(blank, cwd=ROOT, capture_output=True, text=True).stdout
    code = (ROOT / "flowclip.py").read_text()
    compile(text, "blank", "exec")

    def definition(name, text):
        return re.search(rf"^(?:def|class) {name}\b.*?(?=^\S|\Z)", text, re.M | re.S)[0]

    assert definition(kept, text) == definition(kept, code)
    body = definition(emptied, text)
    assert body.count("raise NotImplementedError") == 1 and '"""' in body
    assert len(CHAPTERS) == 7 and text.count("# ---- ") == code.count("# ---- ")
