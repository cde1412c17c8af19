"""Ours beside the paper's: each figure, whether they agree, and the pattern over the depth, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hf_rksp.report.tables import QUANTITY_NAMES
from hf_rksp.report.text import DASH, share
from hf_rksp.zoo.published import PUBLISHED, THIRDS, Published, PublishedModel
from hf_rksp.zoo.shelf import Entry

#: Two figures agree within a tenth of the paper's, or, for shares, within .05: it prints two digits and no interval.
TOLERANCE, SHARE_TOLERANCE = 0.10, 0.05
#: A ratio that changes by less over the depth is level.
LEVEL = 0.02


@dataclass(frozen=True)
class Comparison:
    """One of the paper's figures beside ours."""

    published: Published
    ours: float | None
    audited: bool = True

    @property
    def name(self) -> str:
        """Quantity and third, for a reader."""
        title, symbol, _ = QUANTITY_NAMES[self.published.quantity]
        third = f", {self.published.third}" if self.published.third else ""
        return f"{title}{third}" + (f" ({symbol})" if symbol else "")

    @property
    def agrees(self) -> bool | None:
        """Whether the two agree; ``None`` where ours is not there."""
        if self.ours is None:
            return None
        of_share = QUANTITY_NAMES[self.published.quantity][2] is share
        allowed = SHARE_TOLERANCE if of_share else TOLERANCE * self.published.value
        return abs(self.ours - self.published.value) <= allowed

    @property
    def verdict(self) -> str:
        """In words."""
        if self.ours is None:
            return "not defined here" if self.audited else "not audited yet"
        if self.agrees:
            return "agrees"
        theirs = self.published.value
        if QUANTITY_NAMES[self.published.quantity][2] is share or abs(self.ours - theirs) < theirs:
            return f"differs: ours is {abs(self.ours - theirs):.2f} {'higher' if self.ours > theirs else 'lower'}"
        return f"differs: ours is {self.ours / theirs:,.1f} times as large"

    def cells(self) -> tuple[str, ...]:
        """Table, quantity, the paper's, ours, verdict."""
        form = QUANTITY_NAMES[self.published.quantity][2]
        ours = DASH if self.ours is None else form(self.ours)
        return (self.name, f"Table {self.published.table}", f"{self.published.value:g}", ours, self.verdict)


COLUMNS = ("Quantity", "Paper", "Published", "Ours", "In words")
NUMERIC = (2, 3)


def published_of(entry: Entry) -> PublishedModel | None:
    """The paper's figures for this architecture."""
    return PUBLISHED[entry.model.published] if entry.model.published else None


def comparisons(entry: Entry) -> Iterator[Comparison]:
    """Every figure that the paper gives for this architecture, beside the mean over our seeds."""
    published = published_of(entry)
    for figure in published.figures if published else ():
        yield Comparison(figure, entry.mean(figure.quantity, figure.third), bool(entry.audits))


def apart(entry: Entry) -> str:
    """Why ours may differ from the paper's, whatever came out."""
    published = published_of(entry)
    if published is None:
        return ""
    if published.setting.startswith("Pretrained") and entry.model.source != "pretrained":
        return (
            "The paper's figures are of the pretrained model, these are of random weights: they say what training adds, and "
            f"cannot confirm or refute it. {published.apart}"
        )
    return published.apart


def start_to_end(entry: Entry) -> tuple[str, tuple[float, ...]] | None:
    """Does the nonlinearity ratio rise from the early to the late third (the paper: start linear, end nonlinear)?

    Returns:
        "rises", "falls", "level" or "neither", with the three values; ``None`` without an audit.
    """
    values = tuple(value for third in THIRDS if (value := entry.mean("nonlinearity_ratio", third)) is not None)
    if len(values) < len(THIRDS):
        return None
    early, middle, late = values
    if max(values) - min(values) < LEVEL:
        return "level", values
    if early <= middle <= late:
        return "rises", values
    return ("falls" if early >= middle >= late else "neither"), values
