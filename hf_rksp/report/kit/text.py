"""Numbers, names and paths as a reader sees them; the same text goes to HTML, Markdown and figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_rksp.json_data import finite
from hf_rksp.quantities import Quantity

#: Shown for a number that is null, missing or not finite.
DASH = "–"
#: Longer strings are cut: a report is read, and a name of a million characters would be all there is to see.
LONGEST = 300

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Control characters, lone surrogates and direction overrides: they cannot be encoded or would reorder the text around.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits; very large and very small ones as a power of ten."""
    value = finite(value)
    if value is None:
        return DASH
    if value == 0:
        return "0"
    size = abs(float(f"{value:.{digits - 1}e}"))
    if size >= 1e5 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        sign = {"1": "", "-1": "−"}.get(mantissa, _minus(f"{mantissa} × "))
        return sign + power_of_ten(int(exponent))
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    rounded = round(value, digits - 1 - math.floor(math.log10(size)))
    return _minus(f"{rounded:,.{decimals}f}")


def power_of_ten(exponent: int) -> str:
    """1, 10 and 100 in full, "10⁵" beyond."""
    return str(10**exponent) if 0 <= exponent <= 2 else f"10{str(exponent).translate(_SUPERSCRIPT)}"


def share(value: Any) -> str:
    """A share with three decimals, so that a column of them lines up."""
    value = finite(value)
    if value is None:
        return DASH
    return "<0.001" if 0 < value < 0.0005 else _minus(f"{value:.3f}")


def count(value: Any) -> str:
    """A whole number in full, with separators; anything else as `number`."""
    value = finite(value)
    if value is None:
        return DASH
    return f"{int(value):,}" if value == int(value) else number(value, 4)


def span(pair: Any, form: Any = number) -> str:
    """An interval, "0.21 to 0.25"."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        return DASH
    low, high = (finite(end) for end in pair)
    return DASH if low is None or high is None else f"{form(low)} to {form(high)}"


def seconds(value: Any) -> str:
    """A duration: "0.42 s", "54.5 s", "3 min 20 s", "2 h 05 min"."""
    value = finite(value)
    if value is None:
        return DASH
    if value < 99.5:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: Any) -> str:
    """Bytes in GiB, MiB or KiB."""
    value = finite(value)
    if value is None:
        return DASH
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 2**power:
            return f"{number(value / 2**power)} {unit}"
    return f"{number(value)} B"


def large(value: Any) -> str:
    """A parameter count: "124 M", "7.24 B"."""
    value = finite(value)
    if value is None:
        return DASH
    for unit, power in (("B", 9), ("M", 6), ("K", 3)):
        if value >= 0.9995 * 10**power:
            return f"{number(value / 10**power)} {unit}"
    return count(value)


def clean(value: Any, longest: int = LONGEST) -> str:
    """Any text without control characters, cut to ``longest``."""
    text = _UNSAFE.sub("\ufffd", str(value).replace("\r\n", "\n"))
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters in all)"


def line(value: Any, longest: int = LONGEST) -> str:
    """`clean` on one line."""
    return " ".join(clean(value, longest).split())


def anything(value: Any) -> str:
    """A value of the set-up, whatever type it has."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return line(value) if abs(value) < 10_000 or abs(value) >= 2**63 else f"{value:,}"
    if isinstance(value, float):
        return DASH if not math.isfinite(value) else line(f"{value:.6g}")
    if isinstance(value, Mapping):
        return ", ".join(f"{line(name)}: {anything(item)}" for name, item in list(value.items())[:20]) or DASH
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, (str, int, float, type(None))) for item in value):
            return line(", ".join(anything(item) for item in value)) or DASH
        return line("; ".join(anything(item) for item in value)) or DASH
    return line(value) if isinstance(value, str) else line(json.dumps(value, default=str))


def paths(names: Sequence[Any], most: int = 8) -> str:
    """Paths of layers with runs drawn together: "h.0 to h.7, h.9"."""
    runs: list[list[Any]] = []
    for name in map(line, names):
        stem, _, tail = name.rpartition(".")
        place = int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 6 else None
        if runs and place is not None and runs[-1][0] == stem and runs[-1][2] == place - 1:
            runs[-1][2:] = [place, name]
        else:
            runs.append([stem, name, place, name])
    shown = [first if first == last else f"{first} to {last}" for _, first, _, last in runs[:most]]
    return ", ".join(shown) + (f" and {len(runs) - most} more runs of layers" if len(runs) > most else "")


def _minus(text: str) -> str:
    return text.replace("-", "−")


#: How a quantity is written, by its unit.
_FORMS: dict[str, Callable[[Any], str]] = {"share": share, "number": number, "count": count}


def form_of(quantity: Quantity) -> Callable[[Any], str]:
    """The function that writes a value of ``quantity``."""
    return _FORMS[quantity.unit]
