"""Where each numbered statement stands in the code: python docs/build/links.py

Writes at the end of each document of docs/ a link for each [ATTN-3] in it, to its line on GitHub.
Run it when lines have moved; tests/documents/test_page.py says when.
"""

import re

from statements import DOCS, NAME, read_places


def with_links(text):
    """The document, and at its end a link to the code for each statement that it mentions."""
    body = re.sub(rf"^\[{NAME}\]: .*\n?", "", text, flags=re.M).rstrip() + "\n"
    first = {name: at[0] for name, at in read_places().items() if f"[{name}]" in body}
    links = [f"[{name}]: ../{file}#L{line}\n" for name, (file, line) in first.items()]
    return "\n".join([body, "".join(links)]) if links else body


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(with_links(path.read_text()))
