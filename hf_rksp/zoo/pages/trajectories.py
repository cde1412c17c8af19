"""How training moves the spectrum: the models that were audited at several points of their training, as a figure and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_rksp.json_data import finite, section
from hf_rksp.quantities import LAYER
from hf_rksp.report import Table
from hf_rksp.report.kit import svg
from hf_rksp.report.kit.svg import Figure, Scale, coordinate
from hf_rksp.report.kit.text import line, number
from hf_rksp.zoo.pages.charts import MOST_LINES, SHEET
from hf_rksp.zoo.pages.paper_comparison import LEVEL
from hf_rksp.zoo.pages.rows import Row

#: Panels: quantity, lowest and highest value, whether in powers of ten.
_PANELS = (
    ("near_unit_mass", 0.0, 1.0, False),
    ("expansive_mass", 0.0, 1.0, False),
    ("contractive_mass", 0.0, 1.0, False),
    ("nonlinearity_ratio", 0.0, 1.0, False),
    ("reliable_fraction", 0.0, 1.0, False),
    ("spectral_radius", 1.0, 100.0, True),
)
_COLUMNS, _CELL, _LINE = 3, 240, 196
_LEFT, _RIGHT, _TOP, _BASE = 34, 14, 34, 166
_NAME = 20


def courses(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Line of the manifest, or family -> its audits in the order of training; at least two points make a course."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        model = row.entry.model
        if row.entry.reports and model.step is not None:
            found.setdefault(model.line or model.family, []).append(row)
    return [
        (name, sorted(members, key=lambda row: float(row.entry.model.step or 0)))
        for name, members in found.items()
        if len(members) > 1
    ]


def movement(known: Sequence[tuple[str, Sequence[Row]]]) -> Figure:
    """Means over the layers against the share of the training that is done, a line a family, a panel a quantity."""
    known = known[:MOST_LINES]
    shares = sorted({float(row.entry.model.step or 0) for _, rows in known for row in rows})
    body = []
    legend = -(-len(known) // _COLUMNS) * _NAME
    for place, (name, _) in enumerate(known):
        x, y = place % _COLUMNS * _CELL + _LEFT, place // _COLUMNS * _NAME + 10
        body.append(svg.segment(x, y, x + 16, y, f"fam{place}"))
        body.append(svg.text(x + 22, y + 4, line(name, 24), f"fam{place} name"))
    for place, panel in enumerate(_PANELS):
        left, top = place % _COLUMNS * _CELL, place // _COLUMNS * _LINE + legend
        body += _panel(panel, known, shares, left, top)
    said = "; ".join(
        f"{name}: near-unit mass "
        + ", ".join(f"{row.entry.model.step:.0%} {row.shown('near_unit_mass')}" for row in rows)
        for name, rows in known
    )
    return Figure(
        "training",
        "What training moves",
        f"Small models of {len(known)} families, trained for the zoo and audited on text or images that they were not trained "
        "on: means over the layers. Bars: 95% jackknife interval over groups of sequences, of one training run each. Points of "
        "training are not to scale.",
        f"Six quantities against the share of training done. {said}.",
        _COLUMNS * _CELL,
        -(-len(_PANELS) // _COLUMNS) * _LINE + legend,
        "".join(body),
        SHEET,
    )


def _panel(
    panel: tuple[str, float, float, bool],
    known: Sequence[tuple[str, Sequence[Row]]],
    shares: Sequence[float],
    left: float,
    top: float,
) -> list[str]:
    quantity, low, high, log = panel
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    up = Scale(*ends, top + _BASE, top + _TOP, log=log)
    first, last = left + _LEFT, left + _CELL - _RIGHT
    title, symbol = LAYER[quantity].title, LAYER[quantity].symbol
    body = [svg.text(first, top + 22, f"{title} {symbol}".strip(), "stack")]
    for y, tick in up.ticks(2):
        body += [svg.segment(first, y, last, y, "grid"), svg.text(first - 5, y + 4, tick, anchor="e")]
    across = {
        share: first + 12 + (last - first - 24) * place / max(1, len(shares) - 1) for place, share in enumerate(shares)
    }
    body += [svg.text(x, top + _BASE + 16, f"{share:.0%}", anchor="m") for share, x in across.items()]
    for place, (_, rows) in enumerate(known):
        # Lines that lie on each other are told apart by their bars: each stands a little beside the next.
        aside = 2.4 * (place - (len(known) - 1) / 2)
        points = []
        for row in rows:
            value = row.means[quantity]
            if value is None or row.entry.profile is None:
                continue
            x = across[float(row.entry.model.step or 0)] + aside
            points.append((x, up(value)))
            interval = section(row.entry.profile["aggregates"], quantity).get("interval")
            if isinstance(interval, list) and all(finite(end) is not None for end in interval):
                body.append(svg.segment(x, up(interval[0]), x, up(interval[1]), f"fam{place}"))
            told = f"{line(row.entry.model.title, 60)}: {row.shown(quantity)}"
            dot = f'<circle class="fam{place}" cx="{coordinate(x)}" cy="{coordinate(up(value))}" r="2.6"/>'
            body.append(f"<g><title>{svg.escape(told)}</title>{dot}</g>")
        if points:
            path = "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
            body.append(f'<path class="fam{place}" d="M{path}"/>')
    return body


def late_gains(known: Sequence[tuple[str, Sequence[Row]]]) -> tuple[list[str], int]:
    """Families whose late third gains on the early one in nonlinearity ratio, from the first to the last point, and of how many.

    Gains of less than `LEVEL` in late over early do not count.
    """
    gaining, of = [], 0
    for name, rows in known:
        first, last = (_late_over_early(row) for row in (rows[0], rows[-1]))
        if first is not None and last is not None:
            of += 1
            gaining += [name] if last - first > LEVEL else []
    return gaining, of


def _late_over_early(row: Row) -> float | None:
    early, late = (row.entry.mean("nonlinearity_ratio", third) for third in ("early", "late"))
    return late / early if early and late is not None else None


def movement_table(known: Sequence[tuple[str, Sequence[Row]]]) -> Table:
    """The same in numbers, with the nonlinearity ratio of the thirds."""
    quantities = [quantity for quantity, *_ in _PANELS]
    heads = [LAYER[quantity].symbol or "reliable" for quantity in quantities]
    rows = []
    for name, members in known:
        for row in members:
            thirds = (row.entry.mean("nonlinearity_ratio", third) for third in ("early", "middle", "late"))
            shown = ", ".join(number(value) for value in thirds)
            rows.append((name, f"{row.entry.model.step:.0%}", *(row.shown(quantity) for quantity in quantities), shown))
    return Table(
        ("Model", "Trained", *heads, "η_nl early, middle, late"), tuple(rows), numeric=tuple(range(1, len(heads) + 3))
    )
