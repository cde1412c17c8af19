"""The page of a training run in a real browser: the movie by keyboard, quiet, legible, inside the window of a phone."""

import pytest

from hf_rksp.report import write_timeline
from tests.browser import test_report_page as audit
from tests.browser.histories import bare, broken, calm, eventful, hostile, hostile_events, read, shaped

pytestmark = pytest.mark.browser
SAMPLES = {
    "one": (calm,),
    "two": (calm, shaped),
    "broken": (calm, broken),
    "hostile": (hostile, hostile),
    "hostile events": (hostile_events,),
    "bare": (bare,),
    "deep": (lambda: calm(steps=40, every=1, layers=40),),
    "eventful": (eventful, calm),
    "long": (lambda: calm(steps=100_000, every=20_000)[:-1],),
    "unknown": (eventful,),
}


@pytest.fixture
def show(open_page, tmp_path):
    """Open the page of a sample."""

    def show_sample(sample, *args, **options):
        file = write_timeline(read(tmp_path, *(make() for make in SAMPLES[sample])), tmp_path / "page.html")
        return open_page(file, *args, **options)

    return show_sample


def drawn(page, run=0):
    """Points of each layer that the movie shows."""
    return page.eval_on_selector_all(
        f'[data-run="{run}"] .clouds .pts',
        "all => all.map(e => [...e.querySelectorAll('path')].map(p => (p.getAttribute('d') || '').split('h0').length - 1))",
    )


def wait_until(page, holds):
    """Playwright's own waiting evaluates a string, which the policy of the page refuses."""
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("waited for 5 s")


@pytest.mark.parametrize("sample", SAMPLES)
def test_quiet_and_no_request(show, sample):
    page = show(sample)
    if page.locator("#step").count():
        page.locator("#step").focus()
        page.keyboard.press("End")
    page.wait_for_timeout(150)
    assert page.trouble == []
    assert page.locator("img").count() == 0


def test_slider_by_keyboard(show):
    page = show("two")
    slider = page.locator("#step")
    assert page.locator("#at").text_content() == "step 0"
    slider.focus()
    before = page.eval_on_selector(".clouds", "e => e.innerHTML")
    page.keyboard.press("ArrowRight")
    assert page.locator("#at").text_content() == "step 5"
    assert page.eval_on_selector(".clouds", "e => e.innerHTML") != before
    assert slider.get_attribute("aria-valuetext") == (
        "step 5; calm: near-unit mass, mean 0.370, spectral radius, largest 1.55; "
        "with KSS: near-unit mass, mean 0.370, spectral radius, largest 1.55"
    )
    page.keyboard.press("End")
    assert page.locator("#at").text_content() == "step 20" and "60.0" in slider.get_attribute("aria-valuetext")
    assert drawn(page, 0) == [[8, 0]] * 3
    assert sum(outside for _, outside in drawn(page, 1)) > 0  # squares on the frame
    page.keyboard.press("Home")
    assert page.eval_on_selector(".clouds", "e => e.innerHTML") == before
    assert page.trouble == []


def test_layer_selection(show):
    page = show("one")
    page.locator("#layer").select_option("1")
    assert page.eval_on_selector_all(".clouds .on title", "all => all.map(e => e.textContent)") == ["h.1"]
    assert page.locator(".readout dd").first.text_content() == "0.220"
    assert "h.1" in page.locator("#step").get_attribute("aria-valuetext")
    page.wait_for_timeout(250)
    seen = page.eval_on_selector_all(".clouds .pts", "all => all.map(e => Number(getComputedStyle(e).opacity))")
    assert seen[1] == 1 and max(seen[0], seen[2]) < 0.2
    page.locator("#layer").select_option("-1")
    assert page.locator(".on").count() == 0


def test_play_and_pause(show):
    page = show("deep")
    play = page.locator("#play")
    play.click()
    assert play.text_content() == "Pause"
    wait_until(page, lambda: int(page.locator("#step").input_value()) > 1)
    play.click()
    at = page.locator("#at").text_content()
    page.wait_for_timeout(600)
    assert page.locator("#at").text_content() == at and play.text_content() == "Play"


def test_play_ends_at_the_last_profile(show):
    page = show("one")
    page.locator("#step").fill("3")
    page.locator("#play").click()
    wait_until(page, lambda: page.locator("#play").text_content() == "Play")
    assert page.locator("#at").text_content() == "step 20" and page.trouble == []


def test_less_motion(show):
    page = show("one", reduced_motion="reduce")
    play = page.locator("#play")
    assert play.text_content() == "Next" and page.locator("#motion").is_visible()
    play.click()
    page.wait_for_timeout(800)
    assert page.locator("#at").text_content() == "step 5"  # one profile a press, nothing moves by itself


def test_runs_with_other_steps(show):
    page = show("broken")
    slider = page.locator("#step")
    slider.fill("1")
    assert page.locator("#at").text_content() == "step 4"
    assert page.locator(".shown").all_text_contents() == ["step 0, the reading before", "step 4"]
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".shown").all_text_contents() == ["step 20", "step 12, its last reading"]


def test_charts_and_heat_map_answer_to_the_pointer(show):
    page = show("one")
    figure = page.locator('[data-kind="curve"] .stage svg').first
    box = figure.bounding_box()
    figure.click(position={"x": box["width"] * 0.96, "y": box["height"] / 2})
    assert page.locator("#at").text_content() == "step 20"
    heat = page.locator('[data-kind="heat"] .stage svg').first
    box = heat.bounding_box()
    heat.click(position={"x": box["width"] * 0.12, "y": box["height"] * 0.1})
    assert page.locator("#at").text_content() == "step 0" and page.locator("#layer").input_value() == "2"
    tip = page.locator('[data-kind="heat"] .tip').first
    assert tip.is_visible() and tip.text_content() == "h.2, step 0: 0.240"
    assert page.trouble == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize(("sample", "last"), [("eventful", "1,000"), ("long", "100,000")])
def test_the_last_tick_is_whole(show, sample, last, width):
    """Labels that reach beyond the drawing are cut by it: "1,00("."""
    page = show(sample, width=width)
    ends = page.eval_on_selector_all(
        '[data-kind="curve"] .stage > svg',
        """all => all.map(figure => { const edge = figure.getBoundingClientRect().right;
        return [...figure.querySelectorAll('text')].map(e => [e.textContent, edge - e.getBoundingClientRect().right]) })""",
    )
    for labels in ends:
        rooms = [room for text, room in labels if text == last]
        assert len(rooms) == 1 and rooms[0] >= 0


@pytest.mark.parametrize("sample", SAMPLES)
def test_fits_the_window(show, sample):
    assert show(sample, width=1280).evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_map_says_its_numbers_without_a_movie(show):
    page = show("unknown")
    assert page.locator("#movie").count() == 0
    heat = page.locator('[data-kind="heat"] .stage svg')
    box = heat.bounding_box()
    heat.click(position={"x": box["width"] * 0.12, "y": box["height"] * 0.1})
    assert page.locator('[data-kind="heat"] .tip').text_content() == "h.2, step 50: 3.00"
    assert page.trouble == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_phone(show, sample, theme):
    page = show(sample, width=360, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    wide = page.eval_on_selector_all(
        "main *",
        """all => all.filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > 361)
        .map(e => e.outerHTML.slice(0, 80))""",
    )
    assert wide == []


@pytest.mark.parametrize(("theme", "paper"), audit.THEMES)
@pytest.mark.parametrize("width", [360, 1280])
def test_contrast(show, theme, paper, width):
    audit.test_contrast(lambda data, **options: show("broken", **options), theme, paper, width)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("sample", ["one", "two", "deep", "eventful", "long"])
def test_labels_of_figures_do_not_collide(show, sample, width):
    audit.test_labels_of_figures_do_not_collide(lambda data, **options: show(sample, **options), "plain", width)


def test_reads_without_scripts(show):
    page = show("two", java_script_enabled=False)
    assert page.locator("#step").is_hidden() and page.locator("#play").is_hidden()
    stills = page.locator(".stills figure")
    assert stills.locator("h3").all_text_contents() == [
        "calm, step 0",
        "calm, step 20",
        "with KSS, step 0",
        "with KSS, step 20",
    ]
    assert stills.first.is_visible() and stills.first.locator(".pts path").count() >= 3


def test_print_shows_the_stills(show):
    page = show("one")
    assert page.locator(".stills").is_hidden()
    page.emulate_media(media="print")
    assert page.locator(".stills").is_visible() and page.locator(".player").is_hidden()
