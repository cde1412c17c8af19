"""The page of rksp risk in a real browser: quiet, inside the window, legible, with labels that do not meet."""

import pytest

from hf_rksp.report.risk.page import write_risk
from tests.browser import test_report_page as audit

pytestmark = pytest.mark.browser


def answer(**changes):
    """What rksp risk writes."""
    rates = [10 ** (-4 + place / 10) for place in range(31)]
    curve = [[rate, place / 30, max(place / 30 - 0.1, 0), min(place / 30 + 0.1, 1)] for place, rate in enumerate(rates)]
    data = {
        "lr": 3e-3, "p_lost": 0.22, "p_lost_interval": [0.12, 0.34], "lr_max": 7.7e-4, "lr_half": 0.011, "curve": curve,
        "status": "extrapolated", "reasons": ["tokens per step: 10, the runs have 8 to 9"], "behind": ["300 configurations."],
        "contributions": [{"feature": "width", "title": "width", "value": 6.0, "factor": 0.8}],
        "features": {"critical_lr": 0.28, "coordinate_lr": 5.9e-5, "noise_scale": None}, "notes": ["A note."],
        "model": {"name": "gpt2", "class": "GPT2LMHeadModel", "source": "initialised"}, "plan": {"steps": 300, "clip": None},
    }  # fmt: skip
    return data | changes


HOSTILE = "</script><img src=x onerror=alert(1)>" * 3
SAMPLES = {
    "plain": answer(),
    "meeting": answer(lr=8e-4, features={"critical_lr": 6e-5, "coordinate_lr": 5.9e-5}),
    "no rate": answer(lr=None, p_lost=None, p_lost_interval=None),
    "refused": answer(
        curve=[], lr_max=None, lr_half=None, p_lost=None, contributions=[], features={}, status="not assessable"
    ),
    "hostile": answer(model={"name": HOSTILE, "class": HOSTILE}, reasons=[HOSTILE], notes=[HOSTILE]),
}


@pytest.fixture
def show(open_page, tmp_path):
    """Open the page of a sample."""
    return lambda sample, **options: open_page(write_risk(SAMPLES[sample], tmp_path / "risk.html"), **options)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [390, 1280])
def test_quiet_and_inside_the_window(show, sample, width):
    page = show(sample, width=width)
    page.wait_for_timeout(100)
    assert page.trouble == [] and page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.fig").count() == (sample != "refused")


@pytest.mark.parametrize(("theme", "paper"), audit.THEMES)
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast(show, theme, paper, width):
    audit.test_contrast(lambda data, **options: show("plain", **options), theme, paper, width)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("sample", ["plain", "meeting", "no rate"])
def test_labels_do_not_collide(show, sample, width):
    audit.test_labels_of_figures_do_not_collide(lambda data, **options: show(sample, **options), "plain", width)
