"""Text and code side by side: python docs/build/page.py writes docs/page/.

Each document is a static page. A chapter stands beside its section of flowclip.py, and a statement
leads to its line and back. Needs docs/requirements.txt; docs/build/page.html is the frame, with its
style.
"""

import ast
import html
import re
import shutil
from string import Template

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from statements import CODE, DOCS, NAME, read_places, read_sections, read_statements

PLACES, STATEMENTS = read_places(), read_statements()
NUMBER = rf"\[({NAME})\]"


# ---- The code ------------------------------------------------------------------------------------
def parts_of(chapter):
    """[(file, lines)]: its section, and functions beyond all sections that have its statements.

    main() has numbers where a run keeps to them, and none of its own.
    """
    sections = read_sections()
    parts = [("flowclip.py", sections[chapter])] if chapter in sections else []
    mine = [places for name, places in PLACES.items() if STATEMENTS[name] == chapter]
    for file, line in sum(mine, []):
        if file == "flowclip.py" and any(line in lines for lines in sections.values()):
            continue
        around = [
            range(node.lineno, node.end_lineno + 1)
            for node in ast.walk(ast.parse(CODE[file]))
            if isinstance(node, ast.FunctionDef) and node.name != "main"
        ]
        parts += [(file, lines) for lines in around if line in lines][-1:]  # the innermost
    return sorted(set(parts), key=lambda part: (part[0], part[1][0]))


def colour(code):
    return highlight(code, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))


def code_of(chapter):
    """Its code as HTML; each number in it leads to its statement."""

    def link(found):
        name = found[1]
        here = f' id="{name}-code"' if PLACES[name][0] == (file, number) else ""
        return f'[<a{here} href="{STATEMENTS[name]}.html#{name}">{name}</a>]'

    page = ""
    for file, numbers in parts_of(chapter):
        plain, lines = CODE[file].splitlines(), colour(CODE[file]).splitlines()
        page += f"<h2>{file}, lines {numbers[0]} to {numbers[-1]}</h2>\n<pre>"
        for number in numbers:
            code, line = plain[number - 1], lines[number - 1]
            names = " ".join(re.findall(NUMBER, code))
            page += f'<span class="line" data-number="{number}" data-names="{names}"'
            page += f" {indent_of(code)}>{re.sub(NUMBER, link, line)}\n</span>"
        page += "</pre>\n"
    return page


# ---- The text ------------------------------------------------------------------------------------
def typeset(tex, options):
    math = convert(tex, display="block" if options["display_mode"] else "inline")
    return math.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')  # a norm's


def displayed(_, tokens, i, *__):
    """$$...$$ inside of a paragraph."""
    return f'<span class="math block">{typeset(tokens[i].content, {"display_mode": True})}</span>'


def indent_of(line):
    return f'style="--indent: {len(line) - len(line.lstrip())}ch"'


def code_block(_, tokens, i, *__):
    """A drawing stays whole; the lines of anything else wrap, and go on below their beginning."""
    text = tokens[i].content
    is_code = re.search("^(import|class) ", text, re.M)
    is_narrow = all(len(line) < 100 for line in text.splitlines())
    if is_narrow and not is_code and re.search(r"\S {3,}\S|-->", text):
        return f'<pre class="drawn" tabindex="0">{html.escape(text)}</pre>\n'
    lines = zip(text.splitlines(), (colour(text) if is_code else html.escape(text)).splitlines())
    code = "".join(f"<span {indent_of(plain)}>{line}\n</span>" for plain, line in lines)
    return f"<pre>{code}</pre>\n"


def whole(found):
    """A formula with its full stop; a long one has a line of its own on a telephone."""
    long = " long" * (len(html.unescape(re.sub("<.*?>", "", found[0]))) > 40)
    return f'<span class="whole{long}">{found[0]}</span>'


def statement(found):
    """The number before a statement leads to its line, if it has one."""
    start, name = found.groups()
    target = f' href="#{name}-code"' if name in PLACES else ""
    return f'<li id="{name}" data-names="{name}">{start}<a{target}'


def text_of(text):
    """A document as HTML; a statement leads to its line, a mention of it to the statement."""
    markdown = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=3)
    dollars = dict(allow_labels=False, allow_digits=False, double_inline=True)
    markdown.use(dollarmath_plugin, renderer=typeset, **dollars)
    markdown.add_render_rule("math_inline_double", displayed)
    markdown.add_render_rule("code_block", code_block)
    links = {name: {"href": f"{at}.html#{name}", "title": ""} for name, at in STATEMENTS.items()}
    page = markdown.render(text, {"references": links})
    formula = r'\(?<span class="math inline">.*?</span>[.,;:?)]*'  # with its full stop
    page = re.sub(formula, whole, page)
    page = page.replace('href="README.md', 'href="index.html')
    page = page.replace('href="../tests/slips/', 'href="slips/')
    page = re.sub(r'(href="[\w-]+)\.md', r"\1.html", page)
    page = re.sub(r'<a (href="[^"]*#([A-Z]+-\d+)")', r'<a data-names="\2" \1', page)
    return re.sub(r'<li>(\s*(?:<p>)?<strong>)<a data-names="(\S+)" href="[^"]*"', statement, page)


def style(name):
    return HtmlFormatter(style=name).get_style_defs("pre")


# ---- The field -----------------------------------------------------------------------------------
FIELDS = {  # document: what its field takes the place of, the dots, and which panel is open
    "README": ("(?<=</h1>\n)", "moons", 2),
    "0-idea": (r'<p><img src="images/idea.png".*?</p>\n<p><em>.*?</p>\n', "two", 1),
    "3-guidance": (r'(?=<p><img src="images/cfg.png")', "moons", 6),
}


def with_field(name, page, live):
    """A document that has a field shows it; without JavaScript it shows what it had before."""
    if name not in FIELDS:
        return page
    place, dots, panel = FIELDS[name]
    start, end = re.search(place, page, re.S).span()
    field = Template((DOCS / "build/field.html").read_text())
    field = field.substitute(
        set=dots, panel=panel, still=page[start:end],
        live=live and f"<p>No toy: {live}, drawing in your browser.</p>",
    )  # fmt: skip
    return page[:start] + field + page[end:]


def link_to_live(folder):
    """docs/build/live.py's page is linked to where it is."""
    link = '<a href="live.html">the trained model at work</a>'
    return link if (folder / "live.html").exists() else ""


def write_pages(folder):
    """Write it all, with the pictures, so that the folder may be moved or published."""
    shutil.copytree(DOCS / "images", folder / "images", dirs_exist_ok=True)
    shutil.copytree(DOCS.parent / "tests/slips", folder / "slips", dirs_exist_ok=True)
    shutil.copy(DOCS / "tour.ipynb", folder)
    shutil.copy(DOCS / "build/field.js", folder)
    frame = Template((DOCS / "build/page.html").read_text())
    light, dark = map(style, ("vs", "github-dark"))
    texts = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    titles = {name: re.search("# (.*)", text)[1] for name, text in texts.items()}
    chapters = [name for name in titles if name[0].isdigit()]
    after = dict(zip(["README", *chapters], chapters))
    live = link_to_live(folder)
    for name, text in texts.items():
        navigation = [
            f'<a href="{chapter}.html" title="{titles[chapter]}"'
            f"{' aria-current=page' * (chapter == name)}>{chapter.replace('-', ' ')}</a>"
            for chapter in chapters
        ]
        body, code = with_field(name, text_of(text), live), code_of(name)
        if name in after:
            title = titles[after[name]]
            body += f'<p class="next"><a href="{after[name]}.html">Next: {title}</a></p>\n'
        page = frame.substitute(
            title=titles[name], chapters="\n".join([*navigation, live]), light=light, dark=dark,
            text=body, code=code, columns="two" if code else "one",
        )  # fmt: skip
        path = folder / f"{name}.html" if name != "README" else folder / "index.html"
        path.write_text(page)
        print(path)


if __name__ == "__main__":
    write_pages(DOCS / "page")
