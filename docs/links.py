"""Where each numbered statement stands in the code: python docs/links.py

Writes at the end of each document of docs/ a link for each [ATTN-3] in it, to its line on GitHub.
Run it when lines have moved; tests/test_page.py says when.
"""

import re
from pathlib import Path

DOCS = Path(__file__).parent
CODE = {file: (DOCS.parent / file).read_text() for file in ("flowclip.py", "train.py")}
NAME = r"\[([A-Z]+-\d+)\]"


def read_statements():
    """{name: the chapter} of every "- **[NAME]** ..."; a chapter is the stem of its file."""
    return {
        name: path.stem
        for path in sorted(DOCS.glob("[0-9]-*.md"))
        for name in re.findall(rf"^- \*\*{NAME}\*\*", path.read_text(), re.M)
    }


def read_places():
    """{name: [(file, line), ...]}: where the code has its number, below the title of the file."""
    places = {}
    for file, text in CODE.items():
        title = text.split('"""')[1].count("\n") + 1
        for line, code in enumerate(text.splitlines(), 1):
            for name in re.findall(NAME, code) if line > title else []:
                places.setdefault(name, []).append((file, line))
    return places


def with_links(text):
    """The document, and at its end a link to the code for each statement that it mentions."""
    body = re.sub(rf"^{NAME}: .*\n?", "", text, flags=re.M).rstrip() + "\n"
    first = {name: at[0] for name, at in read_places().items() if f"[{name}]" in body}
    links = [f"[{name}]: ../{file}#L{line}\n" for name, (file, line) in first.items()]
    return "\n".join([body, "".join(links)]) if links else body


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(with_links(path.read_text()))
