"""The page in a real browser: offline, by mouse and keyboard, on a phone, printed, and without scripts."""

import shutil
from itertools import combinations

import pytest
from playwright.sync_api import sync_playwright
from report_samples import baselines, predicted, record, stages, structure, write

from recemb.report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Every visible text of the charts: what it says, its font size on the screen, and where it is.
CHART_TEXTS = """() => [...document.querySelectorAll("figure svg text")].filter(t => t.checkVisibility()).map(t => {
    const box = t.getBoundingClientRect(), svg = t.ownerSVGElement;
    return {text: t.textContent, chart: [...document.querySelectorAll("svg")].indexOf(svg),
            size: parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a,
            left: box.left, right: box.right, top: box.top, bottom: box.bottom};
})"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = baselines(folder / "runs", seeds=3)
    for share in (1 / 4, 1 / 16, 1 / 64):
        write(runs / f"multiplexed{share}", record("multiplexed", share))
    write(runs / "failed", record(status="failed", error="out of memory"))
    evil = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    write(runs / "evil", record(evil, 1 / 8, command=evil))
    return write_report([runs], folder / "out").html


@pytest.fixture(scope="module")
def pruned_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    for share in (1 / 4, 1 / 64):
        made = structure(share)
        made["per_table"]["a feature with a long name"] = made["per_table"].pop("C4")
        write(folder / "runs" / f"pruned{share}", record("optembed", share, structure=made, stages=stages()))
    return write_report([folder / "runs"], folder / "out").html


@pytest.fixture(scope="module")
def predicted_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    for method, share in (("full", 1), ("hashing", 1 / 4), ("hashing", 1 / 16), ("frequency", 1 / 16)):
        for seed in range(3):
            run = folder / "runs" / f"{method}{round(1 / share)}-{seed}"
            predicted(run, record(method, share, seed), skill=0.9 + share / 10)
    return write_report([folder / "runs"], folder / "runs", before=[folder / "runs"]).html


@pytest.fixture
def opened(browser, page_file):
    """Open the page in a window of a given width; in the end, nothing may have gone wrong or to the network."""
    contexts, troubles = [], []

    def open_page(width, height=900, file=page_file, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file://", "data:")) or troubles.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def column(page, number):
    return page.eval_on_selector_all(
        ".points tbody", "(bodies, n) => bodies.map(b => b.rows[0].cells[n].innerText.trim())", number
    )


def point(page, label):
    return page.locator(f'figure svg a[aria-label^="{label}:"]:visible').first


def test_it_opens_offline_and_runs_no_foreign_script(opened):
    page = opened(1200)
    assert page.locator("figure svg").count() == 4
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.get_by_text("failed: out of memory").is_visible()


def test_headers_sort_by_mouse_and_by_keyboard(opened):
    page = opened(1200)
    header = page.locator(".points thead th", has_text="Test AUC")
    header.locator("button").click()
    areas = [float(text.split()[0]) for text in column(page, 5)]
    assert areas == sorted(areas)
    assert header.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    areas = [float(text.split()[0]) for text in column(page, 5)]
    assert areas == sorted(areas, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    page.locator(".points thead th", has_text="Method").locator("button").focus()
    page.keyboard.press("Space")
    names = [name for name in column(page, 0) if name.isalpha()]
    assert names == sorted(names)
    assert names[0] == "frequency"
    assert page.locator("th[aria-sort]").count() == 1


def test_what_is_unknown_sorts_last_both_ways(opened):
    page = opened(1200)
    button = page.locator(".points thead th", has_text="AUC to full").locator("button")
    for _ in range(2):
        button.click()
        assert column(page, 6)[-1] == "–"
        assert "–" not in column(page, 6)[:-1]


def test_details_travel_with_their_rows(opened):
    page = opened(1200)
    page.locator(".points thead th", has_text="Serving bytes").locator("button").click()
    for body in page.locator(".points tbody").all()[:3]:
        name = body.locator("tr").first.locator("th").inner_text().strip()
        assert name in body.locator("summary").text_content()


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_the_page_fits_its_window_and_charts_stay_readable(opened, width):
    page = opened(width)
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg:visible").count() == 2
    texts = page.evaluate(CHART_TEXTS)
    assert {text["text"] for text in texts} >= {"hashing", "frequency", "Test AUC (higher is better)"}
    assert_readable(texts, width)


def assert_readable(texts, width):
    assert min(text["size"] for text in texts) >= 9
    for one, other in combinations(texts, 2):
        apart = one["right"] <= other["left"] + 1 or other["right"] <= one["left"] + 1
        apart = apart or one["bottom"] <= other["top"] + 3 or other["bottom"] <= one["top"] + 3
        assert apart or one["chart"] != other["chart"], (one, other)
    assert all(text["left"] >= -1 and text["right"] <= width + 1 for text in texts)


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_what_pruning_kept_fits_its_window_and_stays_readable(opened, pruned_file, width):
    page = opened(width, file=pruned_file)
    drawings = page.locator(".kept figure svg")
    assert [drawing.is_visible() for drawing in drawings.all()] == [True, False]
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.evaluate(CHART_TEXTS)
    assert {text["text"] for text in texts} >= {"C26", "keep a row", "of 16 floats", "1.5M"}
    assert_readable(texts, width)


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_intervals_and_reliability_fit_their_window_and_stay_readable(opened, predicted_file, width):
    page = opened(width, file=predicted_file)
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg:visible").count() == 3
    texts = page.evaluate(CHART_TEXTS)
    assert any(text["text"].startswith("full table ±") for text in texts)
    assert any(text["text"].startswith("error 0.") for text in texts)
    assert_readable(texts, width)


def test_a_point_leads_to_its_commands_and_its_config(opened, predicted_file):
    page = opened(1200, file=predicted_file)
    link = point(page, "hashing 1/16")
    link.locator("use").click()
    row = page.locator(f"tbody{link.get_attribute('href')}")
    assert row.locator("code").first.is_visible()
    assert row.get_by_role("link", name="config.yaml").count() == 3
    address = row.get_by_role("link", name="config.yaml").first.get_attribute("href")
    assert (predicted_file.parent / address).is_file()


def test_the_table_of_what_was_kept_lies_beside_its_drawing_and_sorts(opened, pruned_file):
    page = opened(1200, file=pruned_file)
    part = page.locator(".kept").first
    for name in ("C1", "C26"):
        drawn = part.locator("figure text").get_by_text(name, exact=True).bounding_box()
        row = part.locator("tbody", has=page.get_by_role("rowheader", name=name, exact=True)).bounding_box()
        assert drawn["y"] + drawn["height"] / 2 == pytest.approx(row["y"] + row["height"] / 2, abs=3)
        assert drawn["x"] < row["x"]
    part.locator("thead button", has_text="Ids").click()
    assert part.locator("tbody th").first.inner_text() == "C26"


def test_the_header_stays_in_sight_while_the_table_scrolls(opened):
    page = opened(390)
    page.locator(".points").evaluate("table => { table.scrollTop = 300; table.scrollLeft = 200; }")
    table, header = page.locator(".points").bounding_box(), page.locator(".points thead th").first.bounding_box()
    assert header["y"] == pytest.approx(table["y"] + 1, abs=2)
    assert header["x"] == pytest.approx(table["x"] + 1, abs=2)


@pytest.mark.parametrize("width", [390, 1200])
def test_a_point_leads_to_its_row(opened, width):
    page = opened(width, height=400)
    link = point(page, "frequency 1/16")
    anchor = link.get_attribute("href")
    link.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith(anchor)
    row = page.locator(f"tbody{anchor} tr").first
    assert "frequency" in row.inner_text()
    box = row.bounding_box()
    assert 0 <= box["y"] <= 400 - box["height"]
    header = page.locator(".points thead th").first.bounding_box()
    assert box["y"] >= header["y"] + header["height"] - 1  # not below the header that stays in sight
    assert page.evaluate("a => document.querySelector(a).matches(':target')", anchor)


def test_a_point_can_be_clicked(opened):
    page = opened(1200)
    link = point(page, "hashing 1/64")
    link.locator("use").click()
    assert page.url.endswith(link.get_attribute("href"))


def test_commands_can_be_read_and_selected(opened):
    page = opened(1200)
    command = "recemb train dataset=criteo model=dlrm table=frequency seed=1 budget=1/16"
    code = page.locator("details code", has_text=command)
    assert not code.is_visible()
    page.locator("summary", has_text="frequency 1/16").click()
    assert code.is_visible()
    assert (
        code.evaluate("code => { getSelection().selectAllChildren(code); return getSelection().toString() }") == command
    )


def test_print_shows_all_commands_and_cuts_nothing_off(opened):
    page = opened(1032, height=300)  # the width of A4 landscape within the margins
    page.emulate_media(media="print")
    commands = page.locator(".appendix code")
    assert commands.count() == 3 * 11 + 3 + 1
    assert commands.first.is_visible()
    assert not page.locator("summary").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1032
    assert page.locator(".points").evaluate("e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth")
    assert page.locator("figure").first.evaluate("e => getComputedStyle(e).breakInside") == "avoid"
    assert min(text["size"] for text in page.evaluate(CHART_TEXTS)) >= 9
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_scripts_it_is_a_plain_readable_page(opened):
    page = opened(1200, java_script_enabled=False)
    assert page.locator("thead button").count() == 0
    assert page.locator(".points thead th", has_text="Test AUC").is_visible()
    page.locator("summary").first.click()
    assert page.locator("details code").first.is_visible()
