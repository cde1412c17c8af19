"""The learning rate at which a fifth of the runs is lost, from all probes of an arm, and the table of README.md."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from scripts.reproduce.harness.config import section
from scripts.reproduce.harness.intervals import LEVEL, Estimate
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.harness.progress import progress
from scripts.reproduce.kss_default.tables import lost

Row = dict[str, Any]
Array = np.ndarray[Any, np.dtype[np.float64]]
#: Share of the runs that may be lost at the highest learning rate of an arm: the paper's.
SHARE = 0.2
#: Arms with KSS -> the control that differs in KSS alone.
CONTROLS = {"paper": "none", "paper + clip": "clip", "kss + clip": "clip"}
#: The arms of the paper's six cases.
PAPER = ("paper", "paper + clip")
#: Draws of seeds of a bootstrap, points of the grid per factor of two of the learning rate, and how far beyond the range it goes.
_DRAWS, _FINE, _BEYOND = 2000, 24, 2.0
#: Widths of the rise from "none is lost" to "all are lost", as the standard deviation of the logarithm of the learning rate.
_WIDTHS = np.geomspace(0.05, 1.5, 16)


@dataclass(frozen=True)
class Likelihoods:
    """Of one arm, the log likelihood of the probes of each seed on a grid.

    A run at learning rate r is lost with probability ``Phi((log r - m) / s)`` (Finney, Probit Analysis, 1947). The grid has the
    learning rate at which a share `SHARE` is lost, in place of m, and s.

    Attributes:
        rates: the learning rates of the grid, shape ``(R,)``.
        values: seed -> array of shape ``(R, S)``.
    """

    rates: Array
    values: dict[int, Array]

    def best(self, weights: Array, seeds: list[int]) -> Array:
        """The most likely learning rate at which a fifth is lost, for each draw of the seeds.

        Args:
            weights: how often each seed counts, shape ``(draws, seeds)``.
        """
        stacked = np.stack([self.values[seed].ravel() for seed in seeds])
        place = np.argmax(weights @ stacked, axis=1) // len(_WIDTHS)
        return self.rates[place]


def likelihoods(rows: list[Row], between: tuple[float, float]) -> Likelihoods:
    """Of the rows of one arm.

    Args:
        between: the ends of the first bracket.
    """
    low, high = between[0] / _BEYOND, between[1] * _BEYOND
    rates = np.geomspace(low, high, round(_FINE * np.log2(high / low)) + 1)
    middles = np.log(rates)[:, None] - stats.norm.ppf(SHARE) * _WIDTHS  # m of each point, shape (R, S)
    values: dict[int, Array] = {}
    for row in rows:
        sign = np.array([1.0 if probe["lost"] else -1.0 for probe in row["probes"]])
        at = np.log([probe["lr"] for probe in row["probes"]])
        found = stats.norm.logcdf(sign * (at - middles[..., None]) / _WIDTHS[:, None]).sum(-1)
        values[row["seed"]] = values.get(row["seed"], 0.0) + found
    return Likelihoods(rates, values)


def highest(arm: Likelihoods) -> Estimate:
    """The learning rate at which a fifth of the runs is lost, with the interval of its profile likelihood."""
    profile = np.sum(list(arm.values.values()), axis=0).max(1)
    inside = np.flatnonzero(profile >= profile.max() - stats.chi2.ppf(LEVEL, 1) / 2)
    low, high = max(inside[0] - 1, 0), min(inside[-1] + 1, len(profile) - 1)  # the next points of the grid lie outside
    return Estimate(*(float(arm.rates[place]) for place in (profile.argmax(), low, high)), len(arm.values))


def ratio(arm: Likelihoods, control: Likelihoods) -> Estimate | None:
    """How many times that of the control; the interval is a bootstrap of the seeds of both; ``None`` without a common seed."""
    seeds = sorted(arm.values.keys() & control.values.keys())
    if not seeds:
        return None
    found = (arm.best(weights, seeds) / control.best(weights, seeds) for weights in _draws(len(seeds)))
    return _estimate(*found, count=len(seeds))


def _draws(count: int) -> tuple[Array, Array]:
    """Each seed once, and how often each is drawn in a bootstrap."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _DRAWS)
    return np.ones((1, count)), drawn.astype(float)


def _estimate(whole: Array, drawn: Array, count: int) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(whole[0]), float(low), float(high), count)


#: Task and arm -> likelihoods.
Arms = dict[tuple[str, str], Likelihoods]


@functools.cache
def grid() -> list[Row]:
    """The runs of `kss_default` in the same form: one probe per row."""
    names = ("lost_by_loss", "lost_by_gradient", "skipped")
    return [
        {key: row[key] for key in ("task", "arm", "seed")}
        | {"probes": [{"lr": row["lr"], "lost": lost(row)} | {name: row.get(name) for name in names}]}
        for row in progress(section(Path(__file__).parents[1] / "kss_default")).done
    ]


def with_grid(rows: list[Row], settings: dict[str, Any]) -> list[Row]:
    """These rows and those of `kss_default` with the same arms."""
    return [*rows, *(row for row in grid() if row["arm"] in settings["arms"])]


def arms_of(rows: list[Row], settings: dict[str, Any]) -> Arms:
    """The likelihoods of all probes of these rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["arm"]), []).append(row)
    return {(task, arm): likelihoods(mine, settings["between"][task]) for (task, arm), mine in groups.items()}


def cases(arms: Arms, settings: dict[str, Any]) -> dict[tuple[str, str], Estimate]:
    """The six cases of Table 5: task and arm -> how many times that without KSS; those that have rows."""
    pairs = [(task, arm) for arm in PAPER for task in settings["between"]]
    known = [(task, arm) for task, arm in pairs if {(task, arm), (task, CONTROLS[arm])} <= arms.keys()]
    found = {(task, arm): ratio(arms[task, arm], arms[task, CONTROLS[arm]]) for task, arm in known}
    return {key: times for key, times in found.items() if times is not None}


def verdict(
    found: dict[tuple[str, str], Estimate], settings: dict[str, Any]
) -> Literal["held", "partly", "not"] | None:
    """Table 5, by the rule in README.md; ``None`` if a case has no rows."""
    if len(found) < len(PAPER) * len(settings["between"]):
        return None
    above = sum(times.low > 1 for times in found.values())
    return "held" if above == len(found) else "partly" if above >= len(found) / 2 else "not"


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """Of these rows and those of `kss_default`."""
    return table_of(with_grid(rows, settings), settings)


def table_of(rows: list[Row], settings: dict[str, Any]) -> str:
    """By task and arm: the highest learning rate with fewer than 20% lost, and how many times that of the control it is."""
    arms, lines = arms_of(rows, settings), []
    for (task, arm), found in sorted(arms.items()):
        mine = [probe for row in rows if (row["task"], row["arm"]) == (task, arm) for probe in row["probes"]]
        control = arms.get((task, CONTROLS.get(arm, "")))
        times = None if control is None else ratio(found, control)
        gone = [probe for probe in mine if probe["lost"]]
        by_paper = sum(probe["lost_by_loss"] is not None or probe["lost_by_gradient"] is not None for probe in gone)
        lines.append(
            [
                task, arm, str(len(found.values)), _rate(found), "-" if times is None else times.text(2),
                f"{len(gone)} of {len(mine)}", str(by_paper), str(sum(bool(probe["skipped"]) for probe in mine)),
            ]
        )  # fmt: skip
    heads = [
        "task", "arm", "seeds", "a fifth is lost at", "times that without KSS", "runs that were lost",
        "of these by loss or gradient", "runs in which KSS left out a layer",
    ]  # fmt: skip
    judged = verdict(cases(arms, settings), settings)
    return (
        "\n".join([*table(heads, lines), *(["", f"Table 5 by the rule of README.md: {judged}."] if judged else [])])
        + "\n"
    )


def _rate(arm: Likelihoods) -> str:
    """An end that lies at an end of the grid is none."""
    found = highest(arm)
    low, high = ("-" if end in arm.rates[[0, -1]] else f"{end:.2g}" for end in (found.low, found.high))
    return f"{found.value:.2g} [{low}, {high}]"
