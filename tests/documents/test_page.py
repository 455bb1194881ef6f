"""The page of docs/build/page.py, and the mathematics and links that GitHub shows: all resolve."""

import re
import shutil
import time
from html.parser import HTMLParser
from xml.etree import ElementTree

import exact
import links
import live
import pytest
import torch
from statements import NAME, read_places, read_statements

import flowclip
import sample
from tests.conftest import ROOT
from tests.lesson import sentence_of
from tests.spec.compare import close

DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)


def prose(path):
    """A document without its code."""
    text = re.sub(r"^    .*$", "", path.read_text(), flags=re.M)
    return re.sub(r"`[^`]*`", "", text)


def formulas(path):
    """-> (what stands before, the dollars, the formula, what stands after) of each."""
    text = prose(path)
    for found in re.finditer(r"(\$\$?)([^$]+)\1", text):
        yield text[found.start() - 1], *found.groups(), text[found.end()]


# ---- GitHub --------------------------------------------------------------------------------------
@each_document
def test_each_number_links_to_its_line(path):
    """python docs/build/links.py writes them."""
    assert path.read_text() == links.with_links(path.read_text()), "run python docs/build/links.py"


def test_a_link_leads_to_a_line_with_the_number():
    text = (ROOT / "docs/1-objective.md").read_text()
    file, line = re.search(r"^\[FLOW-3\]: \.\./(\S+)#L(\d+)$", text, re.M).groups()
    assert "[FLOW-3]" in (ROOT / file).read_text().splitlines()[int(line) - 1]


@each_document
def test_no_formula_can_be_taken_for_something_else(path):
    """GitHub sees dollars between spaces and punctuation; \\, \\{ \\| < * mean something to it."""
    assert prose(path).count("$") % 2 == 0
    for before, _, formula, after in formulas(path):
        assert before in "\n (" and after in "\n .,;:)?", formula
        assert not re.search(r"\\[^a-zA-Z]|[<>*|~]|\]\(|^\s|\s$", formula), formula


@each_document
def test_plain_markdown_leaves_each_formula_whole(path):
    """A program that knows no mathematics hands every formula on as it was written."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    page = Reader(markdown.render(path.read_text()))
    for _, dollars, formula, _ in formulas(path):
        assert f"{dollars}{formula}{dollars}" in page.text, formula


def test_a_terminal_shows_a_statement_without_latex():
    for name in read_statements():
        assert not re.search(r"[$\\]", sentence_of(name)), sentence_of(name)
    assert sentence_of("SAMPLE-9").split("Euler ")[1].startswith("v(x, t) = (x - a) / t, the")


# ---- The page ------------------------------------------------------------------------------------
class Reader(HTMLParser):
    """Of a page: what it links to and shows, the names of its places, its text without code."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.ids, self.text, self.inside = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[key] for key in ("href", "src") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag in ("code", "pre", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that python docs/build/page.py writes, elsewhere."""
    page = pytest.importorskip("page", reason="needs docs/requirements.txt")
    folder = tmp_path_factory.mktemp("page")
    page.write_pages(folder)
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.name: Reader(path.read_text()) for path in site.glob("*.html")}


def test_every_document_is_a_page_and_every_link_resolves(site, pages):
    assert len(pages) == len(DOCUMENTS)
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), f"{name}: a place has the name of another"
        for target in page.targets:
            file, _, place = target.partition("#")
            if re.match("https?:|data:", target):
                continue
            assert (site / (file or name)).is_file(), f"{name}: {target}"
            assert not place or place in pages[file or name].ids, f"{name}: {target}"


def test_every_statement_stands_beside_its_line(pages):
    for name, chapter in read_statements().items():
        page = pages[f"{chapter}.html"]
        assert name in page.ids, name
        if name in read_places():
            assert f"{name}-code" in page.ids, name
            assert {f"{chapter}.html#{name}", f"#{name}-code"} <= set(page.targets), name


def test_a_document_without_code_has_the_whole_width(site):
    assert '<main class="one">' in (site / "results.html").read_text()
    assert '<main class="two">' in (site / "1-objective.html").read_text()


def test_every_formula_is_typeset(site):
    for path in DOCUMENTS:
        name = "index" if path.stem == "README" else path.stem
        found = re.findall("<math.*?</math>", (site / f"{name}.html").read_text())
        assert len(found) == len(list(formulas(path))), path.stem
        for formula in found:
            ElementTree.fromstring(formula)
            assert "\\" not in formula, formula


def test_no_markdown_is_left_over(pages):
    for name, page in pages.items():
        assert not re.findall(rf".{{0,20}}(?:[`$]|\*\*|\[{NAME}\]).{{0,20}}", page.text), name


# ---- In a browser --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs docs/requirements-test.txt")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs Chromium and its driver (Debian: apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture
def visit(browser, site):
    """visit(page, width): open it; when the test ends the console must have stayed silent."""

    def go(name, width=1600):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((site / name).as_uri())
        return browser

    yield go
    assert browser.get_log("browser") == []


LIT = """
const lines = [...document.querySelectorAll(".line")];
const lit = lines.filter(line => line.matches(".lit"));
const box = lit[0]?.getBoundingClientRect();
const colour = line => getComputedStyle(line).backgroundColor;
return [lit.map(line => line.textContent).join(""),
        box && box.top > 0 && box.bottom < innerHeight,
        box && colour(lit[0]) != colour(lines[0])]
"""


def lit(browser):
    """-> (the code that is lit, whether it is in view, whether its colour differs)."""
    return browser.execute_script(LIT)


@pytest.mark.heavy
def test_a_formula_has_a_height(visit):
    script = "return [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect())"
    boxes = visit("1-objective.html").execute_script(script)
    assert len(boxes) > 20 and all(box["height"] > 5 and box["width"] > 4 for box in boxes)
    assert max(box["height"] for box in boxes) > 35, "a fraction has two storeys"


@pytest.mark.heavy
@pytest.mark.parametrize("width", [1600, 390])
def test_a_click_on_a_statement_lights_its_line_and_back(visit, width):
    browser = visit("1-objective.html", width)
    assert lit(browser)[0] == ""
    label = browser.find_element("css selector", "#FLOW-3 a")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", label)
    label.click()
    code, in_view, coloured = lit(browser)
    assert "return error.square().mean()" in code and "interpolate" not in code
    assert in_view and coloured
    browser.find_element("id", "FLOW-3-code").click()
    statement = browser.find_element("id", "FLOW-3")
    assert "lit" in statement.get_attribute("class") and browser.current_url.endswith("#FLOW-3")
    assert browser.execute_script("return arguments[0].getBoundingClientRect().top", statement) > 0


@pytest.mark.heavy
def test_the_keyboard_lights_what_it_comes_to(visit):
    browser = visit("2-sampling.html")
    seen = ""
    for _ in range(20):
        browser.switch_to.active_element.send_keys("\ue004")  # tab
        seen += lit(browser)[0]
    assert "[SAMPLE-1]" in seen and "[SAMPLE-3]" in seen


WIDE = """
document.querySelectorAll("details").forEach(details => details.open = true);
const boxes = [document.documentElement, ...document.querySelectorAll(".math.block, pre")];
const wide = box => box.scrollWidth > Math.max(box.clientWidth, innerWidth * (box == boxes[0])) + 1;
return new Promise(done => setTimeout(() => done(
  boxes.filter(wide).map(box => box.scrollWidth + " px: " + box.textContent.slice(0, 60)))));
"""


@pytest.mark.heavy
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_is_wider_than_its_column(visit, pages, width):
    for name in pages:
        browser = visit(name, width)
        assert browser.execute_script(WIDE) == [], name
    names = "return ['scrollWidth', 'clientWidth'].map(key => document.querySelector('nav')[key])"
    inner, outer = browser.execute_script(names)
    assert inner <= outer or width < 1440, "the navigation needs more than a row"


@pytest.mark.heavy
@pytest.mark.parametrize("width", [1440, 390])
def test_a_reader_may_have_letters_of_twice_the_size(visit, browser, width):
    sizes = {"fontSizes": {"standard": 32, "fixed": 26}}
    browser.execute_cdp_cmd("Page.setFontSizes", sizes)
    try:
        visit("1-objective.html", width)
        size = "return getComputedStyle(document.querySelector('#FLOW-3')).fontSize"
        assert browser.execute_script(size) == "34px"
        below = "return code.getBoundingClientRect().top > innerHeight"
        assert browser.execute_script(below), "two columns have no room"
        assert browser.execute_script(WIDE.replace(", pre", "")) == []
    finally:
        sizes = {"fontSizes": {"standard": 16, "fixed": 13}}
        browser.execute_cdp_cmd("Page.setFontSizes", sizes)


# ---- Where one is --------------------------------------------------------------------------------
PLACES = """
const inView = id => {
  const node = document.getElementById(id), box = node.getBoundingClientRect();
  const pane = node.closest("#text, #code").getBoundingClientRect();
  return box.top >= pane.top - 1 && box.top < pane.bottom;
};
return [text.scrollTop, code.scrollTop, scrollY, inView("FLOW-3"), inView("FLOW-3-code")];
"""


def places(browser):
    """-> how far text, code and page are scrolled; whether FLOW-3 and its line are in view."""
    return browser.execute_script(PLACES)


def comes_to(expected, look):
    """Whether what is seen becomes what is expected, within three seconds."""
    end = time.monotonic() + 3
    while look() != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert look() == expected


def click(browser, selector):
    link = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", link)
    before = places(browser)
    link.click()
    return before


@pytest.mark.heavy
def test_a_mention_leads_to_text_and_code_and_back_to_where_one_was(visit):
    browser = visit("1-objective.html", 1440)
    browser.execute_script("code.scrollTop = 1e6")
    before = click(browser, "td a[data-names=FLOW-3]")
    assert before[3:] == [False, False]
    comes_to([True, True], lambda: places(browser)[3:])
    there = places(browser)
    browser.back()
    comes_to(before, lambda: places(browser))
    browser.forward()
    comes_to(there, lambda: places(browser))
    browser.find_element("partial link text", "Next: 2. Sampling").click()
    assert "2-sampling" in browser.current_url
    browser.back()
    comes_to(True, lambda: places(browser)[0] > there[0])  # where the link was


@pytest.mark.heavy
@pytest.mark.parametrize("key", [" ", "\ue00f"], ids=["space", "page down"])
def test_a_key_scrolls_the_text_of_a_page_just_opened(visit, key):
    browser = visit("1-objective.html", 1440)
    browser.switch_to.active_element.send_keys(key)
    comes_to(True, lambda: places(browser)[0] > 300)


@pytest.mark.heavy
def test_on_a_telephone_text_after_code_is_where_one_was(visit):
    browser = visit("1-objective.html", 390)
    browser.execute_script("scrollTo(0, 3000)")
    text, code = browser.find_elements("css selector", ".parts a")
    code.click()
    comes_to(True, lambda: places(browser)[2] > 5000)
    there = places(browser)[2]
    browser.execute_script("scrollBy(0, 500)")
    text.click()
    comes_to(3000, lambda: places(browser)[2])
    code.click()
    comes_to(there + 500, lambda: places(browser)[2])


# ---- The field -----------------------------------------------------------------------------------
@pytest.fixture
def dots():
    """Six dots of two words -> the exact model of them, as images of one row and two columns."""
    rand = torch.Generator().manual_seed(0)
    places = torch.randn(6, 1, 1, 2, generator=rand, dtype=torch.float64)
    return exact.ExactModel(places, torch.tensor([0, 0, 0, 1, 1, 1]))


ANSWERS = """
const [points, times, dots, noises] = arguments;
const chosen = dots.slice(0, 3), scales = [0, 1, 7.5];
const answer = w => (x, t) => field.velocity(x, t, dots, chosen, w);
return [scales.map(w => points.map((x, i) => answer(w)(x, times[i]))),
        scales.map(w => noises.map(x => field.walk(x, 20, "euler", answer(w)))),
        noises.map(x => field.walk(x, 4, "heun", answer(3)).at(-1))];
"""


@pytest.mark.heavy
def test_the_field_has_the_numbers_of_the_exact_model(visit, dots):
    rand = torch.Generator().manual_seed(1)
    x, noises = torch.randn(2, 50, 1, 1, 2, generator=rand, dtype=torch.float64)
    t = 0.02 + 0.98 * torch.rand(50, generator=rand, dtype=torch.float64)
    rows = [each.flatten(1).tolist() for each in (x, noises, dots.images)]
    found = visit("0-idea.html").execute_script(ANSWERS, rows[0], t.tolist(), rows[2], rows[1])
    velocities, walks, heun = (torch.tensor(numbers, dtype=torch.float64) for numbers in found)
    text, mask = dots.texts(torch.zeros(50, dtype=torch.long)), torch.ones(50, 1)

    def velocity(x, t, w):
        return flowclip.cfg_velocity(dots, x, t, text, mask, dots.null, mask[:1], w)

    for n, w in enumerate((0, 1, 7.5)):
        close(f"v at w = {w}", velocities[n], velocity(x, t, w).flatten(1), atol=1e-6)
        states = [noises]
        flowclip.integrate(
            lambda x, t, w=w: velocity(x, t, w), noises, 20,
            callback=lambda n, t, x, states=states: states.append(x),
        )  # fmt: skip
        close(f"states at w = {w}", walks[n], torch.stack(states, 1).flatten(2), atol=1e-6)

    answers = []

    def velocity_or_last(x, t):  # at t = 0 there is none: Heun's last step is Euler's
        answers.append(velocity(x, t, 3) if t[0] > 0 else answers[-1])
        return answers[-1]

    ends = flowclip.integrate(velocity_or_last, noises, 4, "heun")
    close("the end of Heun's walk", heun, ends.flatten(1), atol=1e-6)


@pytest.mark.heavy
def test_the_field_shows_what_chapter_0_says_of_its_four_panels(visit, site):
    text = (site / "0-idea.html").read_text()
    assert "all 24 paths end at the mean of the dots" in " ".join(text.split())
    assert "20 of the 24 end within 0.02 of a dot" in " ".join(text.split())
    script = """
    const dots = field.sets.two(), v = (x, t) => field.velocity(x, t, dots, dots, 1);
    return [1, 4].map(steps => field.noises.map(x => field.walk(x, steps, "euler", v).at(-1)));
    """
    one, four = torch.tensor(visit("0-idea.html").execute_script(script), dtype=torch.float64)
    assert one.abs().max() < 1e-9
    away = torch.cdist(four, torch.tensor([[0, -1], [0, 1]], dtype=torch.float64)).amin(dim=1)
    assert (away < 0.02).sum() == 20


@pytest.mark.heavy
def test_of_the_upper_moon_guidance_finds_fewer_dots(visit):
    script = """
    const dots = field.sets.moons(), upper = dots.filter(dot => dot[2] == 1);
    const ends = w => field.noises.map(noise =>
      field.walk(noise, 50, "euler", (x, t) => field.velocity(x, t, dots, upper, w)).at(-1));
    return [[1, 7.5].map(ends), upper.map(dot => dot.slice(0, 2))];
    """
    found = visit("3-guidance.html").execute_script(script)
    ends, upper = (torch.tensor(numbers, dtype=torch.float64) for numbers in found)
    far, which = torch.cdist(ends, upper).min(dim=-1)
    assert far.max() < 1e-3
    assert [len(row.unique()) for row in which] == [7, 4]


@pytest.mark.heavy
def test_the_field_is_moved_by_keys_and_by_hand(visit):
    browser = visit("3-guidance.html", 390)
    picture = "return document.querySelector('canvas').toDataURL()"
    browser.find_element("css selector", "[name=t]").send_keys("\ue011")  # home: t = 0
    pictures = [browser.execute_script(picture)]
    browser.find_element("css selector", "[name=w]").send_keys("\ue012")  # left
    assert browser.find_element("name", "w-shown").text == "7"
    pictures.append(browser.execute_script(picture))
    canvas = browser.find_element("css selector", "canvas")
    scale = canvas.size["height"] / 4.4
    actions = pytest.importorskip("selenium.webdriver").ActionChains(browser)
    actions.move_to_element_with_offset(canvas, -0.5 * scale, -0.8 * scale)  # an upper dot
    actions.click_and_hold().move_by_offset(0, 40).release().perform()
    pictures.append(browser.execute_script(picture))
    assert len(set(pictures)) == 3


# ---- The model at work ---------------------------------------------------------------------------
def test_pages_lead_to_the_model_at_work_where_it_is(tmp_path):
    page = pytest.importorskip("page", reason="needs docs/requirements.txt")
    assert not page.link_to_live(tmp_path)
    (tmp_path / "live.html").touch()
    assert "live.html" in page.link_to_live(tmp_path)
    page.write_pages(tmp_path)
    for name in ("index.html", "0-idea.html", "results.html"):
        assert 'href="live.html"' in (tmp_path / name).read_text(), name


@pytest.fixture
def live_page(tmp_path, small_encoder, make_model, monkeypatch):
    """live.html of a tiny model -> its path, the model and its captions. Nine patches: no multiple
    of the four that live.js takes at a time."""
    model = make_model(img_size=12, patch_size=4, context_dim=small_encoder.embed_dim)
    captions = ["a photo of a dog", "a photo of a big airplane"]
    meta = {
        "config": model.config, "clip": "small-clip", "clip_weights": "untrained", "step": 0,
        "clip_null": small_encoder("")[0][0, -1].tolist(), "captions": captions,
    }  # fmt: skip
    flowclip.save_checkpoint(tmp_path / "checkpoint.pt", model, meta)
    monkeypatch.setattr(flowclip, "CLIPTextEncoder", lambda *_: small_encoder)
    live.write_page(tmp_path / "checkpoint.pt", tmp_path / "live.html")
    return tmp_path / "live.html", model, captions


def last_image(browser):
    """What the page has drawn, when it has."""
    for _ in range(200):
        if browser.execute_script("return state.done == steps && state.step == steps"):
            return torch.tensor(browser.execute_script("return [...walk.x[steps]]"))
        time.sleep(0.05)
    raise AssertionError("nothing was drawn in ten seconds")


@pytest.mark.heavy
def test_the_page_draws_what_the_model_draws(visit, live_page, small_encoder):
    path, model, captions = live_page
    noise = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    browser = visit(path, 390)
    browser.find_element("css selector", "[name=caption][value='0'] + span").click()
    Z, mask = small_encoder([captions[0], ""])
    scales = dict.fromkeys(range(50), 3)

    def velocity(x, t):
        w = scales[round(50 - 50 * t.item())]
        return flowclip.cfg_velocity(model, x, t, Z[:1], mask[:1], Z[1:], mask[1:], w)

    with torch.no_grad():
        expected = flowclip.integrate(velocity, noise, 50).flatten()
        close("the image", last_image(browser), expected, atol=1e-4)
        scales[20] = 100
        browser.execute_script("setScale(20, 100)")
        changed = flowclip.integrate(velocity, noise, 50).flatten()
    assert (changed - expected).abs().max() > 0.05
    close("the image after w of one step", last_image(browser), changed, atol=1e-4)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide == 390, f"it is {wide} px wide"


@pytest.mark.heavy
def test_the_page_shows_where_each_token_is_read(visit, live_page, small_encoder):
    path, model, captions = live_page
    browser = visit(path, 1440)  # it begins with the last caption
    last_image(browser)
    x = torch.tensor(browser.execute_script("return [...walk.x[7]]"))
    maps = sample.record_attention(model, 1)
    Z, mask = small_encoder([captions[1]])
    with torch.no_grad():
        model(x.view(1, 3, 12, 12), torch.tensor([1 - 7 / 50]), Z, mask)
    A = torch.tensor(browser.execute_script("return [...walk.A[7]]"))
    close("A", A, sum(maps).flatten() / len(maps), atol=1e-4)
    tiles = browser.find_elements("css selector", "#words b")
    assert [tile.text for tile in tiles] == small_encoder.tokens(captions[1])
