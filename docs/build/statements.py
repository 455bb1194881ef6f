"""What the documents state and where the code has it: the one reader for page, links and tests.

A statement is a line "- **[NAME]** ..." of a chapter; its name, as ATTN-3, stands in brackets at
the line of the code that implements it. A section of flowclip.py begins with a banner.
"""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
CHAPTERS = sorted(DOCS.glob("[1-7]-*.md"))  # those with statements
CODE = {file: (ROOT / file).read_text() for file in ("flowclip.py", "train.py")}
NAME = r"[A-Z]+-\d+"


def read_statements():
    """{name: chapter} of all statements, in their order; a chapter is the stem of its file."""
    found = [
        (name, path.stem)
        for path in CHAPTERS
        for name in re.findall(rf"^- \*\*\[({NAME})\]\*\*", path.read_text(), re.M)
    ]
    assert len(found) == len(dict(found)), "a number is used twice"
    return dict(found)


def read_places():
    """{name: [(file, line), ...]}: where the code has its number, below the title of the file."""
    places = {}
    for file, text in CODE.items():
        title = text.split('"""')[1].count("\n") + 1
        for line, code in enumerate(text.splitlines(), 1):
            for name in re.findall(rf"\[({NAME})\]", code) if line > title else []:
                places.setdefault(name, []).append((file, line))
    return places


def read_sections():
    """{chapter: its lines of flowclip.py, counted from 1}, without the empty ones at its end."""
    lines, sections = CODE["flowclip.py"].splitlines(), {}
    banners = [i for i, line in enumerate(lines, 1) if line.startswith("# ---- ")]
    for first, end in zip(banners, banners[1:]):
        if chapter := re.search(r"\(docs/(\S+)\.md\)", lines[first - 1]):
            sections[chapter[1]] = range(first, end - 2)
    return sections
