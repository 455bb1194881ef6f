"""What a learner reads: a red statement in words, and the table at the end of a run."""

import json
import re
import sys
import textwrap
import traceback
from pathlib import Path

import torch
from statements import CHAPTERS, NAME, ROOT, read_statements


# ---- A statement as a terminal shows it: its equations as plain text -----------------------------
def fraction(found):
    """A fraction on one line; a sum in it needs parentheses."""
    return " / ".join(f"({part})" if re.search(" [+-] ", part) else part for part in found.groups())


INNER = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
PLAIN = [  # LaTeX, and what a terminal shows in its place
    (r"\$|^★ ", ""),
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


def read_hints():
    """{statement: a hint that does not give its line away}, of tests/spec/hints.md."""
    text = (ROOT / "tests/spec/hints.md").read_text()
    found = re.findall(rf"^- \*\*({NAME})\*\* (.*(?:\n  .*)*)", text, re.M)
    return {name: " ".join(hint.split()) for name, hint in found}


# ---- A red test ----------------------------------------------------------------------------------
def statements_of(item):
    return [name for mark in item.iter_markers("spec") for name in mark.args]


def judged_file(config):
    return Path(config.getoption("--impl") or ROOT / "flowclip.py").resolve()


def what_is_missing(error):
    """-> the name that the judged file lacks, or None."""
    found = re.match(r"module '(?:flowclip|judged)' has no attribute '(\w+)'", str(error))
    return found and found[1]


def departures():
    """What an adapter of another project declares: DEPARTS = {"TIME-1": "sines first"}, or None."""
    return getattr(sys.modules.get("judged"), "DEPARTS", None)


def departure(item, error):
    """-> what a project does otherwise, or has not, of a test that is red with its adapter.

    What has no place in the project is no name of the adapter, or a NotImplementedError that says
    why. A learner's file declares nothing: -> None.
    """
    declared = departures()
    if declared is None:
        return None
    if missing := what_is_missing(error):
        return f"has not: {missing}"
    for name in statements_of(item):
        if name in declared:
            return f"departs: {declared[name]}"
    return f"has not: {error}" if isinstance(error, NotImplementedError) else None


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


def draw_images(item, error):
    """With --pictures, images that were wrong, below what was expected -> the PNG, or None.

    Grey is 0; white, or the brightest colour, is the largest number that was expected.
    """
    folder, pair = item.config.getoption("--pictures"), getattr(error, "compared", None)
    if not folder or pair is None or pair[0].ndim != 4 or not pair[0].numel():
        return None
    found, expected = pair
    if found.shape[1] not in (1, 3):  # each channel in grey
        found, expected = (images.flatten(0, 1)[:, None] for images in pair)
    largest = expected.nan_to_num(0, 0, 0).abs().max().clamp(min=1e-9)
    images = torch.cat([expected[:8], found[:8]]).nan_to_num(0) / largest
    pixels = ((images + 1) * 127.5).clamp(0, 255).byte()
    path = Path(folder) / (re.sub(r"\W+", "-", item.name).strip("-") + ".png")
    item.config.save_picture(path, pixels, len(pixels) // 2, rows=("expected", "found"))
    return path


def lesson(item, error):
    """What a learner reads when a test is red: the sentence, the first place that differs."""
    file = judged_file(item.config)
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
    if picture := draw_images(item, error):
        lines.append(f"    drawn: {picture}")
    path, line, _ = item.location
    return "\n".join([*lines, f"{path}:{line + 1}, {item.name} (--tb=short shows more)"])


# ---- The verdicts, the report and the table ------------------------------------------------------
def judge(item, report, error):
    """-> the verdict of one test, and what is said of it."""
    if report.passed:
        return "holds", ""
    if report.failed:
        if missing := what_is_missing(error):
            return "fails", f"no `{missing}`"
        return "fails", " ".join(what_was_wrong(error, judged_file(item.config)))
    said = ""
    if isinstance(report.longrepr, tuple):  # and no expected failure
        said = report.longrepr[2].removeprefix("Skipped: ")
    for verdict in ("departs", "has not"):
        if said.startswith(f"{verdict}: "):
            return verdict, said.removeprefix(f"{verdict}: ")
    return "skipped", said


ORDER = "fails", "departs", "holds", "has not", "skipped"


def verdicts(config):
    """{statement: (verdict, what is said)}: of its tests' verdicts, the first of these."""
    found = {name: {} for name in read_statements()}
    for names, verdict, said in config.outcomes.values():
        for name in found.keys() & names:
            found[name].setdefault(verdict, said)
    for name, said in found.items():
        first = [verdict for verdict in ORDER if verdict in said]
        found[name] = (first[0], said[first[0]]) if first else ("not run", "")
    return found


def write_report(path, config):
    """For graders: a list of the statements, their verdicts, and what is said of each."""
    rows = [
        {"statement": name, "verdict": verdict, "message": said}
        for name, (verdict, said) in verdicts(config).items()
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(rows, indent=1) + "\n")


def write_table(terminalreporter, config):
    """One line a chapter; where something is red or skipped, which statements and why."""
    columns = {"hold": ["holds"], "fail": ["fails"], "skipped": ["skipped"]}
    if departures() is not None:
        columns |= {"departs": ["departs"], "has not": ["has not", "skipped"]}
        del columns["skipped"]
    columns["not run"] = ["not run"]
    found, write = verdicts(config), terminalreporter.write_line
    terminalreporter.section(f"the spec of {judged_file(config).name}")

    def row(chapter, statements, *others):
        widths = [max(7, len(name) + 2) for name in (*columns, "tests")]
        rest = "".join(f"{other:>{width}}" for other, width in zip(others, widths))
        return f"{chapter:<14}{statements:>11}{rest}"

    write(row("chapter", "statements", *columns, "tests"))
    for path in CHAPTERS:
        names = [name for name, chapter in read_statements().items() if chapter == path.stem]
        counts = [sum(found[name][0] in kinds for name in names) for kinds in columns.values()]
        tests = [test for test in config.outcomes.values() if set(names) & set(test[0])]
        hold, fail = counts[:2]
        write(row(path.stem, len(names), *counts, len(tests)),
              green=bool(hold) and not fail, red=bool(fail))  # fmt: skip
        if fail:
            failed = [name for name in names if found[name][0] == "fails"]
            write(f"    fail: {' '.join(failed)}", red=True)
        for verdict, said in dict.fromkeys(found[name] for name in names):
            if verdict in ("departs", "has not", "skipped"):
                alike = [name for name in names if found[name] == (verdict, said)]
                write(f"    {verdict}: {' '.join(alike)}, {said}")
        lacks = {part for test in tests for part in re.findall(r"^no `(\w+)`$", test[2])}
        if lacks:
            write(f"    not there: {', '.join(sorted(lacks))}")
    if following := what_next(found):
        write(following)


def what_next(found):
    """-> the first statement that fails, in reading order, and its place in the text; or None."""
    for path in CHAPTERS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            name = re.match(rf"- \*\*\[({NAME})\]", line)
            if name and found[name[1]][0] == "fails":
                return f"next: {name[1]}, docs/{path.name} line {number}; pytest --hint {name[1]}"
