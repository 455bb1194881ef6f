"""How the spec is run: which file it judges (--impl), which part (--spec), the table at the end."""

import importlib.util
import os
import re
import signal
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections import defaultdict
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "docs").glob("[1-7]-*.md"))
NAME = r"[A-Z]+-\d+"
sys.path.insert(0, str(ROOT))
open_clip.add_model_config(ROOT / "tests/small-clip.json")  # one more name that it knows
torch.set_num_threads(1)  # tensors are small: a second thread would wait more than it works

quiet = {
    "deadline": None,
    "report_multiple_bugs": False,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=20, derandomize=True, database=None, **quiet)
settings.register_profile("dev", max_examples=20, **quiet)
settings.register_profile("thorough", max_examples=300, **quiet)
settings.register_profile(
    "brief", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate]
)  # no shrinking
settings.register_profile("few", settings.get_profile("brief"), max_examples=5)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def read_statements():
    """{name: chapter} of every "- **[NAME]** ..." of docs/, in their order."""
    found = [
        (name, path.stem)
        for path in CHAPTERS
        for name in re.findall(rf"^- \*\*\[({NAME})\]\*\*", path.read_text(), re.M)
    ]
    assert len(found) == len(dict(found)), "a number is used twice"
    return dict(found)


def fraction(found):
    """A fraction on one line; a sum in it needs parentheses."""
    return " / ".join(f"({part})" if re.search(" [+-] ", part) else part for part in found.groups())


INNER = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
PLAIN = [  # LaTeX, and what a terminal shows in its place
    (r"\$", ""),
    (rf"\\(?:text|mathcal){INNER}", r"\1"),
    (rf"\\sqrt{INNER}", r"sqrt(\1)"),
    (rf"\\frac{INNER}{INNER}", fraction),
    (r"\\lfloor (.*?) \\rfloor", r"floor(\1)"),
    (r"\\(left|right|quad|qquad|cdot)\b", ""),
    (r"\\leftarrow", "<-"),
    (r"\\ldots", "..."),
    (r"\\sim", "~"),
    (r"\\(mid|[lr]vert|[lr]Vert)\b", "|"),
    (r"\\top", "T"),
    (r"\\bmod", "mod"),
    (r"\\([a-zA-Z]+)", r"\1"),  # \sigma, \sum, \min
]


def sentence_of(name):
    """What docs/ say of a statement, its equations as plain text."""
    text = "\n".join(path.read_text() for path in CHAPTERS)
    said = re.search(rf"^- \*\*\[{name}\]\*\* (.*(?:\n  .*)*)", text, re.M)[1]
    for tex, plain in PLAIN:
        said = re.sub(tex, plain, said)
    return " ".join(said.split())


def pytest_addoption(parser):
    group = parser.getgroup("flowclip")
    group.addoption(
        "--impl", metavar="PATH",
        help="judge this file in place of flowclip.py; of a file elsewhere write --impl=PATH",
    )  # fmt: skip
    group.addoption(
        "--spec", metavar="NAME", help="run one part of the spec: ATTN, or one statement: ATTN-3"
    )


def load(path):
    """-> the module to be judged. What it imports from flowclip is that of flowclip.py."""
    if not path.is_file():
        raise pytest.UsageError(f"--impl {path}: no such file")
    module_spec = importlib.util.spec_from_file_location("judged", path)
    sys.modules["judged"] = module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise pytest.UsageError(
            f"--impl {path} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    return module


def pytest_configure(config):
    if len(config.args) > 1 and config.args[0] == "tests":
        config.args.pop(0)  # the one of .pytest.ini: what the command line names is enough
    config.addinivalue_line(
        "markers", "spec(*statements): the numbered statements of docs/ that a test guards"
    )
    config.addinivalue_line(
        "markers", "heavy: minutes of fuzzing, killing and watching; run by pytest -m heavy"
    )
    if config.getoption("--impl"):
        sys.modules["flowclip"] = load(Path(config.getoption("--impl")).resolve())
    config.outcomes = {}  # test -> (its statements, outcome, reason)


def statements_of(item):
    return [name for mark in item.iter_markers("spec") for name in mark.args]


def pytest_ignore_collect(collection_path, config):
    """Another file is judged by the chapters' tests alone."""
    name = collection_path.name
    if config.getoption("--impl") and name.startswith("test_") and not name[5].isdigit():
        return True


def pytest_collection_modifyitems(config, items):
    """--spec keeps one part; --impl keeps what guards a statement, and nothing else."""
    wanted = config.getoption("--spec")
    if wanted and not any(wanted in (name, name.split("-")[0]) for name in read_statements()):
        raise pytest.UsageError(f"--spec {wanted}: no such statement in docs/")
    keep = items[:]
    if wanted or config.getoption("--impl"):
        keep = [
            item
            for item in items
            if any(not wanted or wanted in (n, n.split("-")[0]) for n in statements_of(item))
        ]
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = keep


def pytest_collection_finish(session):
    """The runs that tests/test_runner.py looks at begin now, beside the tests before it."""
    asked = [item.module for item in session.items if "judged_runs" in item.fixturenames]
    if asked and not session.config.option.collectonly:
        session.config.elsewhere = tempfile.TemporaryDirectory()
        session.config.judged_runs = asked[0].begin(Path(session.config.elsewhere.name))


def what_is_missing(error):
    """-> the name that the judged file lacks, or None."""
    found = re.match(r"module '(?:flowclip|judged)' has no attribute '(\w+)'", str(error))
    return found and found[1]


def what_was_wrong(error, file):
    """-> a few lines: the values that differ, or what could not be done, and in which line."""
    said = str(error).strip() or type(error).__name__
    lines = [line for line in said.splitlines() if line.strip()][:1]
    if isinstance(error, AssertionError):
        return lines
    mine = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    where = f", {file.name} line {mine[-1].lineno}: {mine[-1].line}" if mine else ""
    return [f"{type(error).__name__}{where}", *lines]


def drawn_values(error, fixtures):
    """-> the arguments that hypothesis drew; models and encoders have no place in a short text."""
    notes = "\n".join(getattr(error, "__notes__", []))
    found = re.findall(r"^    (\w+)=(.*),$|^(Draw \d+.*)$", notes, re.M)
    return [
        draw or f"{name} = {value}" for name, value, draw in found if name not in fixtures
    ]  # fmt: skip


def lesson(item, error):
    """What a learner reads when a test is red: the sentence, the first place that differs."""
    file = Path(item.config.getoption("--impl") or ROOT / "flowclip.py").resolve()
    if missing := what_is_missing(error):
        return f"{', '.join(statements_of(item))}: {file.name} has no `{missing}`"
    if isinstance(error, NotImplementedError):
        return f"{', '.join(statements_of(item))}: still to be written"
    lines = []
    for name in statements_of(item):
        lines += textwrap.wrap(f"[{name}] {sentence_of(name)}", 96, max_lines=6, placeholder=" ...")
    wrong = what_was_wrong(error, file)
    values = drawn_values(error, item.fixturenames)
    if values:
        wrong.append("where " + "; ".join(values))
    for line in wrong:
        lines += textwrap.wrap(line, 96, initial_indent="    ", subsequent_indent="    ",
                               max_lines=2, placeholder=" ...")  # fmt: skip
    path, line, _ = item.location
    return "\n".join([*lines, f"{path}:{line + 1}, {item.name} (--tb=short shows more)"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    missing = report.failed and what_is_missing(call.excinfo.value)
    if report.failed and statements_of(item) and item.config.getoption("tbstyle") == "auto":
        report.longrepr = lesson(item, call.excinfo.value)
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else missing or ""
        item.config.outcomes[item.nodeid] = statements_of(item), report.outcome, reason
    return report


def pytest_terminal_summary(terminalreporter, config):
    """One line a chapter; where something is red or skipped, which statements and why."""
    statements, seen = read_statements(), defaultdict(list)
    for names, outcome, reason in config.outcomes.values():
        for name in names:
            seen[name].append((outcome, reason))
    write = terminalreporter.write_line
    terminalreporter.section(
        f"the spec of {Path(config.getoption('--impl') or 'flowclip.py').name}"
    )
    names = "chapter", "statements", "hold", "fail", "skipped", "not run", "tests"
    table = "{:<14}{:>11}{:>7}{:>7}{:>9}{:>9}{:>7}"
    write(table.format(*names))
    for chapter in dict.fromkeys(statements.values()):
        names = [name for name, place in statements.items() if place == chapter]
        outcomes = {name: {outcome for outcome, _ in seen[name]} for name in names}
        failed = [name for name in names if "failed" in outcomes[name]]
        held = [name for name in names if name not in failed and "passed" in outcomes[name]]
        skipped = [name for name in names if outcomes[name] == {"skipped"}]
        tests = sum(
            any(statements.get(name) == chapter for name in guarded)
            for guarded, _, _ in config.outcomes.values()
        )
        rest = len(names) - len(failed) - len(held) - len(skipped)
        line = table.format(chapter, len(names), len(held), len(failed), len(skipped), rest, tests)
        write(line, green=bool(held) and not failed, red=bool(failed))
        if failed:
            write(f"    fail: {' '.join(failed)}", red=True)
        for reason in dict.fromkeys(seen[name][0][1] for name in skipped):
            alike = [name for name in skipped if seen[name][0][1] == reason]
            write(f"    skipped: {' '.join(alike)}, {reason}")
        lacks = {reason for name in failed for outcome, reason in seen[name] if outcome == "failed"}
        if lacks - {""}:
            write(f"    not there: {', '.join(sorted(lacks - {''}))}")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def of_train(pytestconfig):
    """of_train(name): what train.py calls so, or the file of --impl, where that has it."""
    import flowclip

    impl = pytestconfig.getoption("--impl")

    def get(name):
        if not impl:
            import train

            return getattr(train, name)
        if not hasattr(flowclip, name):
            pytest.skip(f"{Path(impl).name} has no `{name}`; train.py has")
        return getattr(flowclip, name)

    return get


def untrained(**given):
    import flowclip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flowclip.CLIPTextEncoder(pretrained="untrained", **given)


@pytest.fixture(scope="session")
def encoder():
    """Of the documented default: CLIP's ViT-B/32."""
    return untrained()


@pytest.fixture(scope="session")
def small_encoder():
    """CLIP's own text tower, of 3 layers and width 64: a twentieth of the cost."""
    return untrained(model_name="small-clip")


@pytest.fixture(scope="session")
def make_model():
    """A small model whose every parameter is random, so that nothing cancels by accident."""

    def make(kind="TextConditionalDiT", seed=0, **changes):
        import flowclip
        from tests.strategies import randomise

        sizes = dict(img_size=8, patch_size=2, in_channels=3, embed_dim=16, depth=2, num_heads=2)
        if kind == "TextConditionalDiT":
            sizes["context_dim"] = 12
        return randomise(getattr(flowclip, kind)(**(sizes | changes)), seed, scale=0.2).eval()

    return make


TINY = ["--embed-dim", "16", "--depth", "1", "--heads", "2"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, small_encoder):
    """Run a script's main in this process, in an empty folder -> (status, stdout, stderr)."""
    import flowclip

    monkeypatch.chdir(tmp_path)
    build = flowclip.CLIPTextEncoder

    def at_hand(name="ViT-B-32-quickgelu", pretrained="openai", device=None):
        if pretrained == "untrained":
            warnings.warn("this CLIP text tower is untrained, in this test", stacklevel=2)
            return small_encoder
        return build(name, pretrained, device)

    monkeypatch.setattr(flowclip, "CLIPTextEncoder", at_hand)
    handlers = {number: signal.getsignal(number) for number in {1, 2, 15}}

    def run(module, *argv):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, argv)])
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                flowclip.run_script(module.main)
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def one_line(result, *words):
    """A run of `command` that ended in one line on stderr, with these words, and status 2."""
    status, out, err = result
    assert status == 2 and len(err.splitlines()) == 1 and "Traceback" not in err, (status, err)
    assert all(word in err for word in words), err


def flag_refused(result, *words):
    """A run of `command` that ended in tyro's box about a flag, with these words, and status 2."""
    status, _, err = result
    said = " ".join(err.replace("│", " ").split())
    assert status == 2 and "Traceback" not in err, (status, err)
    assert all(word in said for word in words), said
