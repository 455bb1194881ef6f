"""How the spec is run: which file it judges (--impl), which part (--spec), the table at the end."""

import importlib.util
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from statements import ROOT, read_statements

from tests import lesson

torch.set_num_threads(1)  # tensors are small: a second thread would wait more than it works

quiet = {
    "deadline": None,
    "report_multiple_bugs": False,
    "phases": [phase for phase in Phase if phase != Phase.explain],  # which takes seconds
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


def pytest_addoption(parser):
    group = parser.getgroup("flowclip")
    group.addoption(
        "--impl", metavar="PATH",
        help="judge this file in place of flowclip.py; if it lies elsewhere, write --impl=PATH",
    )  # fmt: skip
    group.addoption(
        "--spec", metavar="NAME", help="run one part of the spec: ATTN, or one statement: ATTN-3"
    )
    group.addoption("--hint", metavar="NAME", help="print a hint on a statement: ATTN-3")
    group.addoption(
        "--pictures", metavar="DIR", help="draw images that are wrong below what was expected"
    )
    group.addoption(
        "--report", metavar="FILE", help="write each statement's verdict and message, as JSON"
    )


def pytest_cmdline_main(config):
    """--hint runs no test."""
    if name := config.getoption("--hint"):
        if name not in lesson.read_hints():
            raise pytest.UsageError(f"--hint {name}: no such statement in docs/")
        print(f"{name}: {lesson.read_hints()[name]}")
        return pytest.ExitCode.OK


def load(path):
    """-> the module to be judged. What it imports from flowclip is that of flowclip.py."""
    if not path.is_file():
        raise pytest.UsageError(f"--impl {path}: no such file")
    module_spec = importlib.util.spec_from_file_location("judged", path)
    sys.modules["judged"] = module = importlib.util.module_from_spec(module_spec)
    sys.path.append(str(path.parent))  # what lies beside it
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
        "markers",
        "heavy: minutes of fuzzing, killing, watching; the studies; pytest -m heavy runs them",
    )
    if config.getoption("--pictures"):
        import flowclip

        config.save_picture = flowclip.save_picture  # the repository's own
    if config.getoption("--impl"):
        sys.modules["flowclip"] = load(Path(config.getoption("--impl")).resolve())
    config.outcomes = {}  # test -> (its statements, its verdict, what is said)


def pytest_ignore_collect(collection_path, config):
    """Another file is judged by the chapters' tests alone; --spec reads what has its mark."""
    if config.getoption("--impl") and collection_path.name in ("scripts", "documents"):
        return True
    wanted = config.getoption("--spec")
    if wanted and collection_path.name.startswith("test_"):
        return f'"{wanted}' not in collection_path.read_text() or None


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
            if any(not wanted or wanted in (n, n.split("-")[0]) for n in lesson.statements_of(item))
        ]
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = sorted(keep, key=waits_for_others)


def waits_for_others(item):
    """What looks at other runs of pytest comes last: they go on beside the tests before it."""
    return "judged_runs" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session):
    asked = [item.module for item in session.items if waits_for_others(item)]
    if asked and not session.config.option.collectonly:
        session.config.elsewhere = tempfile.TemporaryDirectory()
        session.config.judged_runs = asked[0].begin(Path(session.config.elsewhere.name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    names, error = lesson.statements_of(item), call.excinfo and call.excinfo.value
    if report.failed and (said := lesson.departure(item, error)):
        report.outcome, report.longrepr = "skipped", (*item.location[:2], f"Skipped: {said}")
    elif report.failed and names and item.config.getoption("tbstyle") == "auto":
        report.longrepr = lesson.lesson(item, error)
    if report.when == "call" or report.outcome != "passed":
        item.config.outcomes[item.nodeid] = names, *lesson.judge(item, report, error)
    return report


def pytest_terminal_summary(terminalreporter, config):
    lesson.write_table(terminalreporter, config)


def pytest_sessionfinish(session):
    if path := session.config.getoption("--report"):
        lesson.write_report(path, session.config)


@pytest.fixture(scope="session", autouse=True)
def small_clip():
    """One more name that open_clip knows. A file without a text encoder need not wait for it."""
    if open_clip := sys.modules.get("open_clip"):
        open_clip.add_model_config(ROOT / "tests/small-clip.json")


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
        from tests.spec.strategies import randomise

        sizes = dict(img_size=8, patch_size=2, in_channels=3, embed_dim=16, depth=2, num_heads=2)
        if kind == "TextConditionalDiT":
            sizes["context_dim"] = 12
        return randomise(getattr(flowclip, kind)(**(sizes | changes)), seed, scale=0.2).eval()

    return make


TINY = ["--embed-dim", "16", "--depth", "1", "--heads", "2", "--no-held-out"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, small_encoder):
    """Run a script's main in this process, in an empty folder -> (status, stdout, stderr)."""
    import flowclip

    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)  # of the terminal or the cluster of who tests
    build = flowclip.CLIPTextEncoder

    def at_hand(name="ViT-B-32-quickgelu", pretrained="openai", device=None):
        if pretrained == "untrained":
            warnings.warn("this CLIP text tower is untrained, in this test", stacklevel=2)
            return small_encoder
        return build(name, pretrained, device)

    monkeypatch.setattr(flowclip, "CLIPTextEncoder", at_hand)
    usual = {1: signal.SIG_DFL, 2: signal.default_int_handler, 15: signal.SIG_DFL}
    handlers = {  # whoever started this may ignore some, as a shell does for what runs with &
        number: signal.signal(number, handler) for number, handler in usual.items()
    }

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
