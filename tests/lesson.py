"""What a learner reads: a red statement in words, and the table at the end of a run."""

import re
import sys
import textwrap
import traceback
from collections import defaultdict
from pathlib import Path

from statements import CHAPTERS, ROOT, read_statements


# ---- A statement as a terminal shows it: its equations as plain text -----------------------------
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


# ---- A red test ----------------------------------------------------------------------------------
def statements_of(item):
    return [name for mark in item.iter_markers("spec") for name in mark.args]


def what_is_missing(error):
    """-> the name that the judged file lacks, or None."""
    found = re.match(r"module '(?:flowclip|judged)' has no attribute '(\w+)'", str(error))
    return found and found[1]


def departure(item, error):
    """An adapter of another project declares what it does otherwise: -> that, or what it lacks.

    It defines DEPARTS = {"TIME-1": "sines first"}. What has no place in the project is no name
    of the adapter, or a NotImplementedError that says why.
    """
    declared = getattr(sys.modules.get("judged"), "DEPARTS", None)
    if declared is None:
        return None  # a learner's file
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


# ---- The table at the end ------------------------------------------------------------------------
def write_table(terminalreporter, config):
    """One line a chapter; where something is red or skipped, which statements and why."""
    statements, seen = read_statements(), defaultdict(list)
    for names, outcome, reason in config.outcomes.values():
        for name in names:
            seen[name].append((outcome, reason))
    write = terminalreporter.write_line
    terminalreporter.section(
        f"the spec of {Path(config.getoption('--impl') or 'flowclip.py').name}"
    )
    names = ["chapter", "statements", "hold", "fail", "skipped", "not run", "tests"]
    table = "{:<14}{:>11}{:>7}{:>7}{:>9}{:>9}{:>7}"
    is_adapter = hasattr(sys.modules.get("judged"), "DEPARTS")
    if is_adapter:
        names[4:5] = "departs", "has not"
        table = "{:<14}{:>11}{:>7}{:>7}{:>9}{:>9}{:>9}{:>7}"
    write(table.format(*names))
    for chapter in dict.fromkeys(statements.values()):
        names = [name for name, place in statements.items() if place == chapter]
        outcomes = {name: {outcome for outcome, _ in seen[name]} for name in names}
        failed = [name for name in names if "failed" in outcomes[name]]
        departs = [
            name
            for name in names
            if name not in failed and any(said.startswith("departs: ") for _, said in seen[name])
        ]
        held = [
            name for name in names if name not in failed + departs and "passed" in outcomes[name]
        ]
        skipped = [name for name in names if name in departs or outcomes[name] == {"skipped"}]
        tests = sum(
            any(statements.get(name) == chapter for name in guarded)
            for guarded, _, _ in config.outcomes.values()
        )
        rest = len(names) - len(failed) - len(held) - len(skipped)
        counts = [len(names), len(held), len(failed), len(skipped), rest, tests]
        if is_adapter:
            counts[3:4] = len(departs), len(skipped) - len(departs)
        line = table.format(chapter, *counts)
        write(line, green=bool(held) and not failed, red=bool(failed))
        if failed:
            write(f"    fail: {' '.join(failed)}", red=True)
        reasons = {
            name: next(said for outcome, said in seen[name] if outcome == "skipped")
            for name in skipped
        }
        for reason in dict.fromkeys(reasons.values()):
            alike = [name for name in skipped if reasons[name] == reason]
            write(f"    {'' if is_adapter else 'skipped: '}{' '.join(alike)}, {reason}")
        lacks = {reason for name in failed for outcome, reason in seen[name] if outcome == "failed"}
        if lacks - {""}:
            write(f"    not there: {', '.join(sorted(lacks - {''}))}")
