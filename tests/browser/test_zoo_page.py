"""The index of the zoo in a real browser: quiet, sorted, filtered, compared, by keyboard, in both themes, on a phone."""

from pathlib import Path

import pytest

from tests.zoo.conftest import run_zoo, zoo  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser
PUBLISHED = Path(__file__).parents[2] / "zoo_reports" / "index.html"


@pytest.fixture
def page(open_page, zoo):  # noqa: F811
    return open_page(zoo / "index.html")


def names(page):
    return page.eval_on_selector_all(
        "#zoo-table tbody tr:not([hidden])", "all => all.map(row => row.cells[0].dataset.v)"
    )


def test_quiet_and_no_request(page):
    page.wait_for_timeout(200)
    assert page.trouble == []
    assert page.locator("#zoo-table tbody tr").count() == 4


def test_titles_are_text(page):
    assert "Wide <b>GPT-2</b> | (init)" in names(page)
    assert page.locator("#zoo-table b").count() == 0


def test_sort_by_heading(page):
    button = page.get_by_role("button", name="spectral radius")
    button.focus()
    page.keyboard.press("Enter")
    head = page.locator("#zoo-table thead th").nth(5)
    assert head.get_attribute("aria-sort") == "ascending"
    column = "all => all.map(row => row.cells[5].dataset.v)"
    values = page.eval_on_selector_all("#zoo-table tbody tr", column)
    assert values[2:] == ["", ""]  # without an audit: last, whichever way
    assert float(values[0]) < float(values[1])
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.eval_on_selector_all("#zoo-table tbody tr", column) == [values[1], values[0], "", ""]


def test_filter(page):
    page.fill("#find", "wide")
    assert names(page) == ["Wide <b>GPT-2</b> | (init)"]
    assert page.text_content("#count") == "1 of 4 models"
    page.fill("#find", "")
    page.select_option("#weights", "pretrained")
    assert names(page) == ["GPT-2, pretrained"]
    page.select_option("#family", "Broken")
    assert names(page) == [] and page.is_visible("#none")


def test_compare_two(page):
    assert page.is_visible("#versus")
    heads = page.eval_on_selector_all("#versus-table thead th", "all => all.map(e => e.textContent)")
    assert heads == ["Quantity", "Tiny GPT-2 (init)", "Wide <b>GPT-2</b> | (init)"]
    assert page.locator("#radar path.first, #radar path.second").count() == 2
    drawn = page.get_attribute("#radar path.first", "d")
    page.select_option("#first", "wide-gpt2-init")
    assert page.get_attribute("#radar path.first", "d") == page.get_attribute("#radar path.second", "d") != drawn
    page.check('tr[data-id="tiny-gpt2-init"] input')
    assert page.input_value("#second") == "tiny-gpt2-init"
    cells = page.eval_on_selector_all(
        "#versus-table tbody tr", "all => all.map(row => [row.cells[0].textContent, row.cells[1].textContent])"
    )
    assert ["width", "48"] in cells
    assert {"near-unit mass", "time of the profile", "risk band"} < {name for name, _ in cells}
    assert not any(text in ("", "undefined") for row in cells for text in row)


def test_a_tick_can_be_taken_away(page):
    page.uncheck('tr[data-id="tiny-gpt2-init"] input')
    assert [page.input_value("#first"), page.input_value("#second")] == ["wide-gpt2-init"] * 2
    page.check('tr[data-id="tiny-gpt2-init"] input')
    assert [page.input_value("#first"), page.input_value("#second")] == ["wide-gpt2-init", "tiny-gpt2-init"]
    page.uncheck('tr[data-id="tiny-gpt2-init"] input')  # the second now
    assert [page.input_value("#first"), page.input_value("#second")] == ["wide-gpt2-init"] * 2


def test_links_lead_to_pages(page, zoo):  # noqa: F811
    links = page.eval_on_selector_all("#zoo-table a", "all => all.map(a => a.getAttribute('href'))")
    assert len(links) == 4 and all((zoo / link).is_file() for link in links)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_fits_the_window(open_page, zoo, width, theme):  # noqa: F811
    page = open_page(zoo / "index.html", width=width, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.trouble == []


def test_the_published_table_is_not_cut_at_1280(open_page):
    """64 models with long names; two scroll bars take 17 pixels each."""
    page = open_page(PUBLISHED, width=1280)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    region = page.locator("#models .scroll")
    region.evaluate("e => { e.style.width = `${e.clientWidth - 34}px`; }")
    assert region.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert page.locator("#zoo-table tbody tr").count() == 64
    assert page.trouble == []


def test_the_table_and_one_figure_stand_first(open_page):
    page = open_page(PUBLISHED, width=1280)
    tops = [page.locator(name).bounding_box()["y"] for name in ("#zoo-table", "#scaling svg", "#findings", "#limits")]
    assert tops == sorted(tops) and tops[0] < 600
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(e => e.id)")[:2] == ["models", "scaling"]


def test_figures_are_legible_on_a_phone(open_page, zoo):  # noqa: F811
    page = open_page(zoo / "index.html", width=390)
    assert page.locator("#scaling svg").bounding_box()["width"] >= 640
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_reads_without_scripts(open_page, zoo):  # noqa: F811
    page = open_page(zoo / "index.html", java_script_enabled=False)
    assert page.locator("#zoo-table tbody tr").count() == 4
    assert not page.is_visible("#filters") and not page.is_visible("#versus")
    assert page.is_visible("#scaling svg")


def test_every_control_has_a_name(page):
    for role in ("button", "combobox", "checkbox", "searchbox", "link"):
        for control in page.get_by_role(role).all():
            label = control.evaluate(
                """e => e.ariaLabel || (e.labels && e.labels.length
                ? [...e.labels[0].childNodes].filter(n => n.nodeType === 3).map(n => n.textContent).join("")
                : e.textContent).trim()"""
            )
            assert label, (role, control)


def test_page_of_a_model(open_page, zoo):  # noqa: F811
    page = open_page(zoo / "tiny-gpt2-init" / "report.html")
    assert page.trouble == []
    assert page.locator("#seeds tbody tr").count() == 9
    assert page.locator("#published tbody tr").count() == 12
