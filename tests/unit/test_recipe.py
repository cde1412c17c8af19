"""The recipe of a monitor: a page draws a monitor that it has never heard of, and no file of the pages names one."""

import json
import re
from pathlib import Path

import pytest

import hf_rksp.report
from hf_rksp.report import read_history, render_timeline
from tests.unit.test_report_render import Page

ROOT = Path(hf_rksp.report.__file__).parent
#: Monitors and interventions that are there or planned.
NAMES = ("spectrum", "alignment", "attention", "curvature", "kss", "guard", "depth_warmup")
QUANTITIES = {
    "weather/rain/max": {"title": "rain, largest layer", "unit": "number", "limit": 10.0, "limit_title": "flood"},
    "weather/sunshine": {"title": "sunshine", "unit": "share", "note": "Share of the day."},
    "weather/rain": {"title": "rain", "unit": "number", "limit": 10.0, "per_layer": True},
    "umbrella/holes": {"title": "holes of the umbrella", "unit": "count"},
}


def named(text):
    return re.findall(rf"[\"'](?:{'|'.join(NAMES)})\b[^\"']*[\"']?", text)


def history(folder, quantities=QUANTITIES):
    """A run with a monitor `weather` and a part `umbrella`, of which nothing in the package knows."""
    rows = [{"kind": "run", "schema_version": 2, "attempt": 0, "model": {"name": "tiny"}, "quantities": quantities}]
    for step in range(10, 210, 10):
        rows.append(
            {"kind": "log", "step": step, "loss": 4 - step / 100, "grad_norm": 1.0, "umbrella/holes": step // 50}
        )
        if step % 20 == 0:
            layers = [{"path": f"h.{i}", "stack": "h", "index": i, "rain": step * (i + 1) / 20} for i in range(3)]
            values = {"rain/max": step * 3 / 20, "sunshine": 1 - step / 400, "fog": step / 2}
            rows.append({"kind": "reading", "monitor": "weather", "step": step, "values": values, "layers": layers})
    text = "Rain of 12 is above 10."
    rows.append({"kind": "event", "step": 80, "by": "weather", "what": "alarm", "layer": "h.2", "text": text})
    file = folder / "rksp_history.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_history(file)


def test_no_file_of_the_pages_names_a_monitor():
    files = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 50
    assert {str(path.relative_to(ROOT)): found for path in files if (found := named(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize("text", ['"spectrum/skipped"', "row['kss']", 'id="spectrum"', '"guard"'])
def test_a_name_would_be_found(text):
    assert named(text)


@pytest.mark.parametrize("text", ['"spectral_radius"', "spectra of KSS", '"guardian"', "`kss`"])
def test_other_words_are_none(text):
    assert not named(text)


def test_a_monitor_that_no_page_knows_is_drawn(tmp_path):
    page = render_timeline([history(tmp_path)])
    text = " ".join(" ".join(Page(page).text).split())
    for part in (
        "Alarm (weather) at step 80 in h.2: Rain of 12 is above 10.",  # in words
        "Weather was measured 10 times, step 20 to 200: rain, largest layer 3.00 → 30.0; sunshine 0.950 → 0.500",
        "Events and loss",
        "step 80, weather: alarm.",  # the title of its mark
        "Rain by layer and step",
        "Rain, largest layer",
        "Dashed: flood.",
        "Share of the day.",
        "weather/fog",  # not described: its key is its title
        "Holes of the umbrella",
        "Umbrella",
    ):
        assert part in text, part
    data = json.loads(re.search(r'<script type="application/json" id="frames">(.*?)</script>', page)[1])
    (heat,) = data["heats"]
    assert heat["layers"] == ["h.0", "h.1", "h.2"] and heat["steps"] == list(range(20, 220, 20))
    assert heat["texts"][0] == ["1.00", "2.00", "3.00"] and data["steps"] == []
    assert re.search(r"<tr><th scope=\"row\">20 <i>h\.2</i></th><td>3\.00</td>", page)  # the table of layers
    assert "paper" not in text  # its definitions are of eigenvalues, and there are none


def test_its_quantities_are_what_describes_it(tmp_path):
    """The comparison means something: without them the page has the keys alone, and no map by layer."""
    text = " ".join(Page(render_timeline([history(tmp_path, {})])).text)
    assert "weather/rain/max" in text and "Rain, largest layer" not in text and "by layer and step" not in text
