"""The page as a browser shows it, where one is installed: none is downloaded."""

import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vadexport.reporting.html_report import html_report
from vadexport.verification.evidence import weigh

pytest.importorskip("jinja2")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1180, "height": 900}
NAMES = (
    "good/" + 250 * "n" + ".png",
    "<script>document.title = 'run'</script><img src=x onerror=alert(1)>.png",
    "\"quoted' & \u202eright to left\u2069 测试 🔩/../%2e.png",
    "crack/" + "many words " * 20 + ".png",
    "b\udcff\x07\n.png",
)
#: Words of the page with their colour and the colour that they stand on, of those that are seen.
COLOURS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("title")) continue;
    const style = getComputedStyle(element);
    let ground = element, colour = "rgba(0, 0, 0, 0)";
    while (ground && colour === "rgba(0, 0, 0, 0)") {
      colour = getComputedStyle(ground).backgroundColor;
      ground = ground.parentElement;
    }
    const ink = element.closest("svg") ? style.fill : style.color;
    found.push([walker.currentNode.data.trim(), ink, colour]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def document(make, tmp_path_factory):
    """Address of a page with all its parts, and names that hurt."""
    rng = np.random.default_rng(0)
    records = [
        make.record(
            name, 1.5 + number / 5, 1.6 + number / 6, anomalous=(None, False, True)[number % 3]
        )
        for number, name in enumerate(NAMES)
    ]
    records += [
        make.record(f"{n}.png", score, score + 0.03, anomalous=score > 2)
        for n, score in enumerate(rng.normal(1.8, 0.4, 60))
    ]
    records.append(make.record("none.png", raw=float("nan")))
    broken = make.exhibit()
    broken.anomaly_map[:3] = np.nan
    exhibits = [replace(make.exhibit(), record=record) for record in records[:3]]
    v = make.verification(
        records=tuple(records),
        source_name=NAMES[1],
        exhibits=(*exhibits, replace(broken, record=records[3])),
        warnings=("the file is <another>",),
        evidence=weigh(records, 0.5),
        search=make.search(),
    )
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(html_report(v), encoding="utf-8", errors="replace")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed here: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, document):
    """Opens the page; `opened(viewport, color_scheme=…)`."""
    contexts = []

    def opened(viewport=DESK, **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.goto(document)
        return page

    yield opened
    for context in contexts:
        context.close()


def test_runs_nothing_and_asks_for_nothing(browser, document):
    with browser.new_context(viewport=DESK) as context:
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(document, wait_until="networkidle")
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [document]
        assert page.title().startswith("openvino:int8 against <script>")
        # What a name would have run, had it got through.
        page.evaluate("document.body.appendChild(document.createElement('script')).text = '1'")
        assert any("Content Security Policy" in line for line in said)


@pytest.mark.parametrize("width", [320, 360, 700, 1180])
def test_the_page_never_scrolls_sideways(opened, width):
    page = opened({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_text_stands_out(opened, scheme, viewport):
    page = opened(viewport, color_scheme=scheme)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    words = page.evaluate(COLOURS)
    page.locator("summary").first.click()
    words += page.evaluate(COLOURS)
    assert len(words) > 400
    assert {"Scores", "threshold", "raw score", "Close"} <= {text for text, *_ in words}
    faint = [one for one in words if contrast(*one[1:]) < 4.5]
    assert faint == []
    # Dark is dark.
    assert (luminance(words[0][2]) < 0.05) == (scheme == "dark")


def luminance(colour):
    """Relative luminance by WCAG 2.2 of what the browser calls a colour, which must be opaque."""
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour), colour
    shares = np.array([int(part) / 255 for part in re.findall(r"\d+", colour)])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(first, second):
    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)


class TestForScreenReaders:
    def test_plots_and_pictures_have_names(self, opened):
        page = opened()
        for name in (
            "Raw score of the artifact against the reference's, by image",
            "Distribution of the raw scores, by label",
            "Drift of the artifact against the reference's score",
            "Milliseconds of every timed call of reference and artifact",
            "Drift against speed-up, by how many layers are not INT8",
        ):
            assert page.get_by_role("img", name=name, exact=True).count() == 1
        pictures = page.locator("img, svg").count()
        assert pictures == page.get_by_role("img").count() == 5 + 4 * (4 + 3)
        assert page.get_by_role("img", name=re.compile(r"\w")).count() == pictures

    def test_headings_are_in_order(self, opened):
        headings = opened().locator("h1, h2, h3, h4, h5, h6")
        levels = [int(tag[1]) for tag in headings.evaluate_all("all => all.map(h => h.tagName)")]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert max(levels) == 3

    def test_tables_have_names_and_headers(self, opened):
        page = opened()
        tables = page.get_by_role("table").all()
        assert len(tables) == 7
        for table in tables:
            assert table.locator("caption").inner_text()
            rows = table.locator("tbody tr").count()
            assert table.get_by_role("rowheader").count() == rows > 0
            columns = table.get_by_role("columnheader").count()
            cells = table.locator("tbody tr").first.locator("td").count()
            # The table of the environment has names alone, no columns to tell apart.
            assert columns in {0, cells, cells + 1}
            assert columns or cells == 1

    def test_the_verdict_is_read_first(self, opened):
        read = opened().locator("body").aria_snapshot()
        assert read.index("heading") < read.index("Held: all 3 checks") < read.index("Warnings")
        assert "✓ held" not in read


class TestPictures:
    """A picture opens over the page, and goes back."""

    def big(self, page):
        """The picture's place where it is open, and whether the page below it is hidden."""
        hidden = page.locator("body").evaluate("one => getComputedStyle(one).visibility")
        return page.locator("details[open] img").bounding_box(), hidden == "hidden"

    def test_by_mouse(self, opened):
        page = opened()
        picture = page.locator("img[alt^='Anomaly map of the artifact']").nth(1)
        picture.scroll_into_view_if_needed()
        before = picture.bounding_box()
        picture.click()
        large, hidden = self.big(page)
        assert hidden
        assert large["height"] > 2.5 * before["height"]
        assert large["x"] >= 0
        assert large["x"] + large["width"] <= DESK["width"]
        assert picture.evaluate("one => getComputedStyle(one).imageRendering") == "pixelated"
        assert page.get_by_text("Close").count() == 4 * 4
        assert page.locator(".close:visible").count() == 1
        # Screen readers, too, meet nothing but the picture and its scale.
        assert page.get_by_role("img").count() == 2
        assert page.get_by_role("heading").count() == 0
        picture.click()
        assert page.locator("details[open]").count() == 0
        assert picture.bounding_box() == before

    def test_by_touch(self, opened):
        page = opened(PHONE, has_touch=True, is_mobile=True)
        picture = page.locator("img[alt^='Difference']").first
        picture.scroll_into_view_if_needed()
        before = picture.bounding_box()
        picture.tap()
        large, hidden = self.big(page)
        assert hidden
        assert large["width"] > 1.9 * before["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.locator(".close:visible").tap()
        assert page.locator("details[open]").count() == 0
        assert picture.bounding_box() == before

    @pytest.mark.parametrize("key", ["Enter", "Space"])
    def test_by_keyboard(self, opened, key):
        page = opened()
        picture = page.locator("summary").nth(2)
        picture.focus()
        place = page.evaluate("scrollY")
        page.keyboard.press(key)
        assert self.big(page)[1]
        # Nothing below can be reached, and the picture not lost.
        for _ in range(4):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.matches('body, [open] > summary')")
        picture.focus()
        page.keyboard.press(key)
        assert page.locator("details[open]").count() == 0
        assert picture.evaluate("one => one === document.activeElement")
        assert page.evaluate("scrollY") == place

    def test_focus_is_seen(self, opened):
        page = opened()
        stops = []
        while len(stops) < 100:
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            stop = page.evaluate("""() => {
                const one = document.activeElement, place = one.getBoundingClientRect();
                const style = getComputedStyle(one), behind = getComputedStyle(document.body);
                return {tag: one.tagName, line: style.outlineStyle, width: style.outlineWidth,
                    colour: style.outlineColor, behind: behind.backgroundColor,
                    seen: place.bottom > 0 && place.top < innerHeight};
            }""")
            stops.append(stop)
        assert sum(stop["tag"] == "SUMMARY" for stop in stops) == 4 * 4
        for stop in stops:
            assert stop["line"] == "solid"
            assert float(stop["width"].removesuffix("px")) >= 2
            assert contrast(stop["colour"], stop["behind"]) >= 3
            assert stop["seen"]


class TestPrint:
    def pages(self, page):
        return len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))

    def test_prints_dark_on_white(self, opened):
        page = opened(color_scheme="dark")
        page.emulate_media(media="print")
        words = page.evaluate(COLOURS)
        assert {ground for *_, ground in words} == {"rgb(255, 255, 255)"}
        assert [one for one in words if contrast(*one[1:]) < 4.5] == []
        assert 2 <= self.pages(page) <= 12

    def test_what_is_open_prints_in_its_place(self, opened):
        page = opened()
        before = self.pages(page)
        page.locator("summary").first.click()
        assert self.pages(page) == before
        page.emulate_media(media="print")
        assert page.get_by_role("heading", name="Environment").is_visible()
        assert not page.locator(".close:visible").count()
