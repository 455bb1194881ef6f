"""A copy of flowclip.py with one chapter to be written by you: python docs/build/blank.py ATTN

Signatures and docstrings of the chapter stay, its bodies are emptied; all else is as it was.
Write it to a file of yours: python docs/build/blank.py ATTN > mine.py
"""

import ast
import sys

from statements import CODE, read_sections, read_statements


def chapter_of(part):
    """ATTN, or ATTN-3 -> the chapter that has such statements."""
    for name, chapter in read_statements().items():
        if name.split("-")[0] == part.split("-")[0]:
            return chapter
    raise SystemExit(f"error: no chapter has a statement {part}; try one of docs/README.md")


def functions(tree):
    """The functions of a module and the methods of its classes, but none inside of another."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node)


def blank(part):
    code = CODE["flowclip.py"]
    lines, section = code.splitlines(), read_sections()[chapter_of(part)]
    for function in reversed(list(functions(ast.parse(code)))):
        if function.lineno in section:
            begin = function.body[0].lineno - 1
            if ast.get_docstring(function):
                begin = function.body[0].end_lineno
            indent = " " * function.body[0].col_offset
            lines[begin : function.end_lineno] = [f"{indent}raise NotImplementedError"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__.splitlines()[0])
    print(blank(sys.argv[1]), end="")
