"""The page in a real browser: drawn, quiet, usable, and inside the window of a phone."""

import re

import pytest

from hf_rksp.report import render_markdown, write_report
from tests.browser.samples import HOSTILE, awkward, hostile, many_layers, report

pytestmark = pytest.mark.browser
THEMES = [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 26, 34)")]


@pytest.fixture
def show(open_page, tmp_path):
    """Open a report."""
    return lambda data, *args, **options: open_page(
        write_report(data, tmp_path / "report", ("html",))["html"], *args, **options
    )


def boxes(page, selector):
    return page.eval_on_selector_all(
        selector, "all => all.map(e => { const b = e.getBoundingClientRect(); return [b.width, b.height] })"
    )


SAMPLES = {
    "plain": report,
    "awkward": awkward,
    "hostile": hostile,
    "hundred": lambda: many_layers(100, 256),
    "one": lambda: many_layers(1, 8),
    "empty": lambda: {"schema_version": 2},
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_quiet_and_no_request(show, sample):
    page = show(SAMPLES[sample]())
    page.wait_for_timeout(200)
    assert page.trouble == []


def test_figures_are_drawn(show):
    data = report()
    page = show(data)
    layers = len(data["profile"]["layers"])
    assert page.locator("svg.fig:not(.ruler)").count() == 6
    for width, height in boxes(page, ".stage > svg"):
        assert width > 250 and height > 200
    dots = boxes(page, ".pts path")
    assert len(dots) >= layers and all(width > 1 and height > 1 for width, height in dots)
    drawn = page.eval_on_selector_all(".pts path", "all => all.map(e => e.getAttribute('d').split('h0').length - 1)")
    upper = sum(imag >= 0 for layer in data["profile"]["layers"] for _, imag in layer["eigenvalues"])
    assert 0.9 * upper <= sum(drawn) <= upper  # only modes on the very same spot are drawn once
    axis = page.eval_on_selector_all(
        ".pts",
        """all => all.map(e => {
        const [up, down] = [e.querySelector('g'), e.querySelector('use')].map(p => p.getBoundingClientRect());
        return [up.top < down.top, (up.top + down.bottom) / 2] })""",
    )
    assert all(above for above, _ in axis) and max(at for _, at in axis) - min(at for _, at in axis) < 1  # mirrored
    bars = boxes(page, '[data-kind="depth"] rect.near')
    assert len(bars) == layers + 1 and all(width > 3 and height > 1 for width, height in bars)
    assert len(boxes(page, '[data-kind="depth"] circle.dot')) == 4 * layers
    assert page.locator(".whisker").count() > layers


def test_dots_reach_the_screen(show):
    """Zero-length strokes with round caps: some renderer could draw nothing at all, so the pixels are counted."""
    from io import BytesIO

    image = pytest.importorskip("PIL.Image")
    data = report()
    page = show(data)
    stage = page.locator('[data-kind="plane"] .stage')

    def pixels():
        return image.open(BytesIO(stage.screenshot())).convert("L").tobytes()

    drawn = pixels()
    page.evaluate("document.querySelectorAll('.pts').forEach(e => { e.style.visibility = 'hidden' })")
    changed = sum(abs(a - b) > 20 for a, b in zip(drawn, pixels(), strict=True))
    assert changed > 3 * sum(len(layer["eigenvalues"]) for layer in data["profile"]["layers"])


def test_the_profile_leads_and_the_band_is_small(show):
    """What is seen first are eigenvalues and numbers; the band of the thresholds stands below, beside its caveats."""
    page = show(report())
    top = page.locator('[data-kind="plane"] .stage svg').bounding_box()
    band = page.locator("#thresholds .band .pill")
    assert top["y"] < 700
    assert band.bounding_box()["y"] > page.locator("#depth").bounding_box()["y"]
    sizes = page.eval_on_selector_all(
        "#thresholds .band, .keys dd", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert page.eval_on_selector("#thresholds .band .pill", "e => parseFloat(getComputedStyle(e).fontSize)") < max(
        sizes
    )
    assert page.locator("#thresholds .caveats li").count() >= 3


@pytest.mark.parametrize("sample", ["plain", "hundred"])
def test_fits_the_window(show, sample):
    page = show(SAMPLES[sample](), width=1280)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_slider_picks_one_layer_everywhere(show):
    page = show(report())
    slider = page.locator("#layer")
    assert slider.is_visible() and page.locator("#chosen").text_content() == "all layers"
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#chosen").text_content() == "h.1"
    assert page.eval_on_selector_all(".pts.on", "all => all.map(e => e.dataset.l)") == ["1"]
    assert page.eval_on_selector_all("#all-layers tr.on th", "all => all.map(e => e.textContent)") == ["h.1"]
    page.wait_for_timeout(250)
    seen = page.eval_on_selector_all(".pts", "all => all.map(e => Number(getComputedStyle(e).opacity))")
    assert seen[1] == 1 and max(seen[0], seen[2]) < 0.2
    assert page.locator("#readout").text_content().startswith("near-unit mass")
    assert page.locator("#all-layers tr.on td").first.text_content() in page.locator("#readout").text_content()
    page.locator("#clear").click()
    assert page.locator("#chosen").text_content() == "all layers" and page.locator(".on").count() == 0
    assert page.trouble == []


def test_charts_answer_to_pointer_and_keys(show):
    data = awkward()
    page = show(data)
    hit = page.locator(".hit").first
    hit.evaluate("e => e.scrollIntoView({behavior: 'instant', block: 'center'})")
    box = hit.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.15, box["y"] + 80)
    tip = page.locator(".tip").first
    assert tip.is_visible() and tip.text_content().startswith("stack0.layers.0: 0.")
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    hit.focus()
    page.keyboard.press("End")
    assert hit.get_attribute("aria-valuenow") == "8" and "stack1.layers.3" in hit.get_attribute("aria-valuetext")
    assert tip.is_visible()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#chosen").text_content() == "stack1.layers.2"
    page.keyboard.press("Escape")
    assert page.locator("#chosen").text_content() == "all layers"
    assert page.trouble == []


@pytest.mark.parametrize("width", [390, 1280])
def test_choosing_a_layer_moves_nothing(show, width):
    page = show(report(), width=width)

    def places():
        return page.eval_on_selector_all("h2", "all => all.map(e => e.getBoundingClientRect().top + scrollY)")

    before = places()
    page.locator("#layer").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        assert places() == before
    page.locator("#clear").click()
    assert places() == before


def test_row_picks_a_layer(show):
    page = show(report())
    page.locator("#all-layers tbody tr").nth(2).click()
    assert page.locator("#chosen").text_content() == "h.2"


def test_copy_command(show):
    page = show(report(), permissions=["clipboard-read", "clipboard-write"])
    page.locator("#copy").click()
    page.wait_for_function("document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == report()["profile"]["setup"]["command"]


def test_hostile_names_are_text(show):
    page = show(hostile())
    page.wait_for_timeout(300)
    assert page.locator("img").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("h1").text_content()
    page.locator("#layer").fill("2")
    assert page.trouble == []
    assert HOSTILE[:20] in page.locator("#command").text_content()


def test_policy_stops_a_script_that_got_through(show, tmp_path):
    """The second wall: were the escaping to fail, the browser would still refuse."""
    page = show(report())
    file = tmp_path / "report" / "report.html"
    through = "<h1><img src=x onerror=alert(1)><script>alert(2)</script></h1>"
    file.write_text(re.sub(r"<h1>.*?</h1>", through, file.read_text("utf-8")), encoding="utf-8")
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    assert not [entry for entry in page.trouble if entry.startswith(("dialog", "request: http"))]
    assert [entry for entry in page.trouble if "Content Security Policy" in entry]


@pytest.mark.parametrize(("theme", "paper"), THEMES)
@pytest.mark.parametrize("sample", ["plain", "awkward", "hostile", "hundred", "empty"])
def test_phone(show, sample, theme, paper):
    page = show(SAMPLES[sample](), width=390, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == paper
    wide = page.eval_on_selector_all(
        "main *",
        """all => all.filter(e => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > 391)
        .map(e => e.outerHTML.slice(0, 80))""",
    )
    assert wide == []
    if sample == "plain":  # the wide table scrolls in its own box
        assert page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.scroll.tall'))")


def test_reads_without_scripts(show):
    page = show(awkward(), java_script_enabled=False)
    assert page.locator("#layer").is_hidden() and page.locator("#copy").is_hidden()
    for selector in (
        ".keys",
        ".verdict .pill",
        "table.checks",
        ".stage > svg >> nth=0",
        "#readout",
        "#all-layers",
        "#command",
    ):
        assert page.locator(selector).is_visible()


@pytest.mark.parametrize(("theme", "paper"), THEMES)
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast(show, theme, paper, width):
    """Every text has at least 4.5 to 1 against what it stands on (WCAG AA)."""
    page = show(awkward(), theme=theme, width=width)
    failures = page.evaluate(
        """() => {
        const light = c => { const v = c.map(x => (x /= 255) <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
          return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
        const parse = c => c.match(/[\\d.]+/g).map(Number);
        const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
          if (c.length === 3 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
        const bad = [];
        document.querySelectorAll('body *').forEach(e => {
          if (!e.checkVisibility() || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) return;
          if (['title', 'desc', 'SCRIPT', 'STYLE'].includes(e.tagName)) return;
          const style = getComputedStyle(e), ink = parse(e.closest('svg') ? style.fill : style.color).slice(0, 3);
          const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
          if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 80)}`);
        });
        return bad }"""
    )
    assert failures == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("sample", ["plain", "awkward", "hundred"])
def test_labels_of_figures_do_not_collide(show, sample, width):
    page = show(SAMPLES[sample](), width=width)
    clashes = page.evaluate(
        """() => [...document.querySelectorAll('svg.fig')].flatMap(figure => {
        const frame = figure.getBoundingClientRect();
        const texts = [...figure.querySelectorAll('text')].map(e => [e.getBoundingClientRect(), e.textContent]);
        const bad = texts.filter(([b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1)
          .map(([, t]) => 'outside: ' + t);
        texts.forEach(([a, s], i) => texts.slice(i + 1).forEach(([b, t]) => {
          const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (across > 1 && down > 4) bad.push(`${s} / ${t}`) }));
        return bad })"""
    )
    assert clashes == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_svg_files_follow_the_theme(browser, tmp_path, theme):
    """As GitHub shows them: in an <img>, each by its own style."""
    from io import BytesIO

    image = pytest.importorskip("PIL.Image")
    _, figures = render_markdown(awkward())
    for name, figure in figures.items():
        (tmp_path / name).write_text(figure, encoding="utf-8")
    (tmp_path / "page.html").write_text("".join(f'<img src="{name}">' for name in figures))
    context = browser.new_context(color_scheme=theme)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    for place in range(len(figures)):
        shot = page.locator("img").nth(place)
        assert shot.evaluate("e => e.complete && e.naturalWidth") > 300
        picture = image.open(BytesIO(shot.screenshot())).convert("L")
        values = sorted(picture.tobytes())
        ground = values[len(values) // 2]
        assert ground > 240 if theme == "light" else ground < 40
        assert values[-1] - values[0] > 150
    context.close()
