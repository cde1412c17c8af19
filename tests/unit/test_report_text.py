"""Numbers and names as text."""

import math

import pytest

from hf_rksp.report.kit.svg import Scale
from hf_rksp.report.kit.text import anything, clean, count, large, line, number, paths, seconds, share, size, span


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (True, "–"),
        ("1", "–"),
        (10**400, "–"),
        (0, "0"),
        (0.23133680555555555, "0.231"),
        (0.9996, "1.00"),
        (3844.66, "3,840"),
        (99_960.0, "10⁵"),
        (123_456, "1.23 × 10⁵"),
        (1e300, "10³⁰⁰"),
        (-0.5, "−0.500"),
        (0.00012345, "0.000123"),
        (1.5e-7, "1.5 × 10⁻⁷"),
    ],
)
def test_number(value, shown):
    assert number(value) == shown


def test_other_forms():
    assert [share(v) for v in (0.0, 0.00049, 0.0005, 1, None)] == ["0.000", "<0.001", "0.001", "1.000", "–"]
    assert [count(v) for v in (2048, 2048.0, 1234.56, None)] == ["2,048", "2,048", "1,235", "–"]
    assert [seconds(v) for v in (0.42, 54.5, 200, 7500, None)] == ["0.420 s", "54.5 s", "3 min 20 s", "2 h 05 min", "–"]
    assert [size(v) for v in (1886248960, 2**20, 12, None)] == ["1.76 GiB", "1.00 MiB", "12.0 B", "–"]
    assert [large(v) for v in (124_439_808, 7.24e9, 999, None)] == ["124 M", "7.24 B", "999", "–"]
    assert span([0.2, None]) == "–" and span("ab") == "–" and span([0.2, 0.3], share) == "0.200 to 0.300"


def test_paths_draw_runs_together():
    assert paths([f"h.{i}" for i in (0, 1, 2, 5)]) == "h.0 to h.2, h.5"
    assert paths(["encoder.0", "decoder.1"]) == "encoder.0, decoder.1"
    assert paths([f"a{i}.0" for i in range(100)]).endswith("and 92 more runs of layers")
    assert paths([]) == ""


def test_text_is_safe():
    assert clean("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd"
    assert line(" a\n b\t c ") == "a b c"
    assert len(line("x" * 10**6)) < 400
    assert anything({"a": [1, 2.5, None], "b": {"c": True}}) == "a: 1, 2.5, –, b: c: yes"


def test_scale_and_ticks():
    scale = Scale(0, 2, 100, 0)
    assert scale(1) == 50 and scale(-5) == 100 and scale(9) == 0
    assert [label for _, label in scale.ticks()] == ["0", "0.5", "1.0", "1.5", "2.0"]
    log = Scale(0, 6, 100, 0, log=True)
    assert log(1000) == 50 and log(0) == 100 and log(1e300) == 0
    assert [label for _, label in log.ticks()] == ["1", "100", "10⁴", "10⁶"]
