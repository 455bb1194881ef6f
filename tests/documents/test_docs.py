"""The documents are held to the code: statements, commands, examples, links."""

import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
import textwrap
import tokenize
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from statements import CHAPTERS, NAME, ROOT, read_statements

import flowclip
import train
from tests.spec import strategies as draw

EXAMPLES = sorted((ROOT / "docs").glob("[0-9]-*.md"))  # the chapters, with and without statements
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def marks():
    """The statements that tests are marked with."""
    tests = [path.read_text() for path in (ROOT / "tests/spec").glob("test_*.py")]
    lines = [line for text in tests for line in re.findall(r"@pytest\.mark\.spec\((.*)\)", text)]
    return {name for line in lines for name in re.findall(NAME, line)}


def comments(path):
    """The statements that stand in a comment or a docstring of the code, after its own title."""
    text = path.read_text().split('"""', 2)[2]
    return set(re.findall(rf"\[({NAME})\]", text))


def test_every_statement_has_a_test_and_every_mark_a_statement():
    assert marks() == set(read_statements())


def test_every_statement_stands_in_the_code():
    training = {name for name in read_statements() if name.startswith("TRAIN-")} | {"DATA-6"}
    assert comments(ROOT / "flowclip.py") == set(read_statements()) - training
    assert comments(ROOT / "train.py") == training


def test_numbers_are_counted_without_a_gap():
    numbers = {}
    for name in read_statements():
        prefix, number = name.split("-")
        numbers.setdefault(prefix, []).append(int(number))
    for prefix, counted in numbers.items():
        assert sorted(counted) == list(range(1, len(counted) + 1)), prefix


def numbers_in(text):
    """{FLOW: [1, 2, ...]} of the statements that stand in a text."""
    found = {}
    for prefix, number in re.findall(r"^- \*\*\[([A-Z]+)-(\d+)\]\*\*", text, re.M):
        found.setdefault(prefix, []).append(int(number))
    return found


def test_the_core_is_in_view_and_what_is_folded_stands_in_order():
    """So does what is in view; docs/README.md says how many statements have a star."""
    stars = 0
    for path in CHAPTERS:
        before, rest = path.read_text().split("<details><summary>What an implementation must also")
        folded, after = rest.split("</details>", 1)
        for text in (before + after, folded):
            assert all(numbers == sorted(numbers) for numbers in numbers_in(text).values()), path
        assert numbers_in(folded) and "★" not in folded, path.name
        stars += len(re.findall(rf"^- \*\*\[{NAME}\]\*\* ★ ", before + after, re.M))
    page = (ROOT / "docs/README.md").read_text()
    assert f"the {stars} of {len(read_statements())} that carry the idea" in " ".join(page.split())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_mentioned_statements_exist(path):
    assert set(re.findall(rf"\[({NAME})\]", path.read_text())) <= set(read_statements())


INTERFACE = ROOT / "docs/interface.md"


def signatures():
    """Every line of docs/interface.md like `Name.method(...)` -> (name, arguments)."""
    return re.findall(r"^    ([\w.]+)\((.*)\)$", INTERFACE.read_text(), re.M)


def arguments_of(name):
    """What Python says of a name of flowclip.py or train.py, in the words of the page."""
    owner, _, method = name.partition(".")
    place = flowclip if hasattr(flowclip, owner) else train
    parameters = inspect.signature(getattr(place, owner)).parameters.values()
    if method:
        parameters = inspect.signature(getattr(getattr(place, owner), method)).parameters.values()
        parameters = list(parameters)[1:]  # without self
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))[1:-1]


@pytest.mark.parametrize("name, said", signatures(), ids=[name for name, _ in signatures()])
def test_the_interface_has_the_signatures_of_the_code(name, said):
    arguments = arguments_of(name)
    for python, page in {  # what the page leaves out
        "DiT": (", *, context_dim=None", ""),
        "ConditionalDiT": ("*args, num_classes=10, **kwargs", "..., num_classes=10"),
        "TextConditionalDiT": ("*args, context_dim=512, **kwargs", "..., context_dim=512"),
        "Batches": (", rows=None", ""),
        "TextConditionalTrainer.save_checkpoint": (", **settings", ""),
        "TextConditionalTrainer.resume": (", **settings", ""),
    }.items():
        if name == python:
            assert page[0] in arguments
            arguments = arguments.replace(*page)
    assert said == arguments


def test_a_marked_test_asks_for_no_wording():
    for path in (ROOT / "tests/spec").glob("test_*.py"):
        for marked in re.split(r"^@pytest\.mark\.spec", path.read_text(), flags=re.M)[1:]:
            body = re.split(r"\n\n\n", marked)[0]
            assert "match=" not in body and "issubclass" not in body, f"{path.name}: {body}"


def test_the_interface_has_every_name_that_a_statement_needs():
    """What marked tests take of the file that is judged: flowclip.NAME, of_train("NAME")."""
    said = {name for name, _ in signatures()} | {"Config"}  # of train.py's own recipe
    for path in (ROOT / "tests/spec").glob("test_*.py"):
        text = path.read_text().split("# ---- Beyond the statements ----")[0]
        found = re.findall(r"\bflowclip\.(\w+)|of_train\(\"(\w+)\"\)", text)
        assert {a or b for a, b in found} <= said, path.name


def split_example(path):
    """The experiment of a chapter: indented code, and after it, indented too, what it prints."""
    section = path.read_text().split("## Try it\n")[1].split("\n## Exercises")[0]
    parts = [part for part in section.strip("\n").split("\n\n") if part.startswith("    ")]
    return tuple(
        re.sub(r"^    ", "", part, flags=re.M) for part in ("\n\n".join(parts[:-1]), parts[-1])
    )


@pytest.mark.heavy
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_prints_what_the_chapter_says(path, recwarn):
    example, printed = split_example(path)
    torch.manual_seed(0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(example, path.name, "exec"), {})
    assert said.getvalue().strip() == printed.strip()


def commands(path):
    """Every call of a script and of pytest, in a code block or between backticks."""
    lines = path.read_text().splitlines()
    block = [line.split("  #")[0] for line in lines if line.startswith("    ")]
    prose = "\n".join(line for line in lines if not line.startswith("    "))
    inline = [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]
    for line in [*block, *inline]:
        for part in map(str.strip, line.split("&&")):
            part = re.sub(r"^([A-Z_]+=\S+ )+", "", part)  # HYPOTHESIS_PROFILE=dev pytest
            part = re.sub(r"^torchrun .* (train\.py.*)", r"python \1", part)
            if re.match(r"(python \S+\.py|pytest)( |$)", part):
                yield part


def read_flags(path):
    """What a script makes of sys.argv before it begins; SystemExit where a flag is wrong."""
    module = importlib.import_module(Path(path).stem)
    if hasattr(module, "Config"):
        tyro.cli(module.Config)
    elif hasattr(module, "parse_args"):
        module.parse_args()
    elif path == "docs/build/blank.py":
        module.blank(*sys.argv[1 : sys.argv.index(">")])
    else:
        assert sys.argv[1:] == [], f"{path} takes no flag"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_use_flags_that_exist(path, monkeypatch, pytestconfig):
    wanted = {name.split("-")[0] for name in read_statements()} | {*read_statements(), None}
    found = [shlex.split(command) for command in commands(path)]
    assert path.parent != ROOT or len(found) >= 10
    for words in found:
        if words[0] == "pytest":
            given = pytestconfig._parser.parse_known_args(words[1:])
            assert given.spec in wanted, words
            assert not any(word.startswith("-") for word in given.file_or_dir), words
            continue
        assert (ROOT / words[1]).is_file(), words
        monkeypatch.setattr("sys.argv", words[1:])
        try:
            read_flags(words[1])
        except SystemExit as stop:
            assert stop.code == 0, f"{path.name}: {words}"


def test_the_python_of_the_closing_page_runs():
    block = re.search(r"(?:^    .*\n)+", (ROOT / "docs/onward.md").read_text(), re.M)[0]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(textwrap.dedent(block), {})
    assert said.getvalue() == "torch.Size([1, 4, 32, 32])\n"


def test_the_python_of_the_readme_runs(make_model, tmp_path, monkeypatch):
    """It starts from a model, an encoder and a dataloader, which are here small ones."""
    readme = (ROOT / "README.md").read_text()
    block = readme.split("From Python,")[1].split("\n\n")[1]
    images, labels = torch.zeros(4, 3, 8, 8), torch.arange(4)
    given = {"model": make_model(), "encoder": draw.StandIn(), "dataloader": [(images, labels)]}
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(block), given | {"train": train, "flowclip": flowclip})
    assert flowclip.load_checkpoint("mine.pt")[1]["step"] == 30


def test_a_new_run_begins_with_old_weights(make_model, small_encoder, tmp_path, monkeypatch):
    """The code of checkpoints.md, on 64 small pictures that it did not see before."""
    text = (ROOT / "docs/checkpoints.md").read_text().split("## A new run from old weights")[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flowclip, "CLIPTextEncoder", lambda *_: small_encoder)
    Path("runs/old").mkdir(parents=True)
    old = train.TextConditionalTrainer(
        flowclip.TextConditionalDiT(8, 4, 3, 16, 1, 2, context_dim=small_encoder.embed_dim),
        small_encoder, [(torch.zeros(2, 3, 8, 8), [0, 1])], lambda labels: ["a", "b"],
    )  # fmt: skip
    old.train(1)
    old.save_checkpoint("runs/old/checkpoint.pt")
    Path("my-pictures").mkdir()
    for n in range(64):
        Image.new("RGB", (8, 8), (n, n, n)).save(f"my-pictures/{n}.png")
    exec(textwrap.dedent(re.search(r"(?:^    .*\n)+", text, re.M)[0]), {})
    assert flowclip.load_checkpoint("runs/new.pt")[1]["step"] == 3


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_resolve(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} points to {target}"
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 300_000, picture


FAT = "other people's files, terminals and shells came in, and nothing has left for them yet"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="since 3.12 an f-string is many tokens")
@pytest.mark.parametrize("name, most", [
    ("flowclip.py", 4400),
    pytest.param("train.py", 3900, marks=pytest.mark.xfail(reason=FAT, strict=True)),
    pytest.param("sample.py", 1150, marks=pytest.mark.xfail(reason=FAT, strict=True)),
])  # fmt: skip
def test_the_three_files_are_thin(name, most):
    """Tokens are counted, without comments and docstrings: lines can be packed, tokens cannot."""
    text = (ROOT / name).read_text()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in layout and not token.string.startswith('"""') and token.string
    ]
    assert len(tokens) <= most and max(map(len, text.splitlines())) <= 100


def test_sizes_are_as_promised():
    readme = (ROOT / "README.md").read_text()
    for name in ("flowclip.py", "train.py", "sample.py"):
        lines = len((ROOT / name).read_text().splitlines())
        assert f"({name}) | {lines} |" in readme, f"{name} has {lines} lines"
    assert f"with {len(read_statements())} numbered statements" in readme
