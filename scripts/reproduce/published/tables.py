"""The tables of README.md from the rows of a results file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from sklearn.metrics import roc_auc_score

from hf_rksp.risk.calibrated import SAFE, Prediction
from scripts.reproduce.harness.markdown import table

from .judged import Judged, judged, mean_rate
from .models import FORWARD, UNMEASURED, model
from .runs import edges, pairs

Row = dict[str, Any]
#: Features of size alone.
_SIZES = frozenset({"width", "depth", "steps"})


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """Where runs begin to be lost; runs that differ in one thing; the scores of all runs; then the runs, one by one."""
    every = judged(rows, settings)
    here = {each.run["id"]: each for each in every}
    text = ["## Where runs begin to be lost", "", *_edges(every, here), ""]
    text += ["## What decides it", "", *_deciding(every), ""]
    text += ["## One thing differs", "", *_pairs(every, here, settings), ""]
    text += ["## All runs", "", *_scores(every), ""]
    if any(each.row["forward"] for each in every):
        text += [f"The model of forward passes alone: {model(FORWARD.name).description[2]}", ""]
    return "\n".join([*text, *_every(every)]) + "\n"


def _edges(every: list[Judged], here: dict[str, Judged]) -> list[str]:
    lines, errors = [], {}
    for fine, lost in edges([each.run for each in every]):
        one = here[fine["id"]]
        rates = _half_lost(one.ours, one.unmeasured)
        if rates is None:
            continue
        off = [_off(rate, fine["lr"], lost["lr"]) for rate in (*rates, mean_rate())]
        by_network = errors.setdefault(fine["source"], {}).setdefault(fine["network"], [])
        by_network.append([abs(math.log2(each)) for each in off])
        lines.append([fine["id"], f"{fine['lr']:g}", f"{lost['lr']:g}", f"{rates[0]:.2g}", *map(_times, off)])
    heads = [
        "the same plan as", "highest that was fine", "lowest that was lost", "half are lost at", "times the nearer of both",
        "of plan and shape alone", "of one rate for all",
    ]  # fmt: skip
    if not lines:
        return table(heads, lines)
    networks = {source: [_means(each) for each in mine.values()] for source, mine in errors.items()}
    all_networks = [each for mine in networks.values() for each in mine]
    factors = [f"{2**each:.2g}" for each in _means([_means(mine) for mine in networks.values()])]
    nearer = [sum(each[0] < each[place] for each in all_networks) for place in (1, 2)]
    count = len(all_networks)
    return [
        *table(heads, lines),
        "",
        f"Mean factor by which each is off, over {len(networks)} sources of {count} networks: hf_rksp {factors[0]}, plan and "
        f"shape alone {factors[1]}, one learning rate for all ({mean_rate():.2g}, the mean of the AdamW runs behind the model) "
        f"{factors[2]}. hf_rksp is nearer than plan and shape in {nearer[0]} of {count} networks, and nearer than one learning "
        f"rate in {nearer[1]}.",
    ]


def _deciding(every: list[Judged]) -> list[str]:
    """By what the learning rate of a network is multiplied, compared with the mean of the runs behind the model."""
    lines: dict[str, list[str]] = {}
    unmeasured = frozenset(UNMEASURED.features)
    for each in every:
        if each.ours is not None and each.run["network"] not in lines:  # the first plan of a network
            found = {one.key: one.factor for one in each.ours.contributions}
            parts = (_SIZES, unmeasured - _SIZES, found.keys() - unmeasured)
            factors = (math.prod(found[key] for key in part & found.keys()) for part in parts)
            lines[each.run["network"]] = [
                each.run["network"], each.run["id"], *(f"{factor:.2g}" for factor in factors), f"{each.ours.threshold:.2g}",
            ]  # fmt: skip
    heads = [
        "network",
        "plan of",
        "by width, depth and steps",
        "by the rest of the plan",
        "by what is measured",
        "half are lost at",
    ]
    return table(heads, list(lines.values()))


def _means(rows: list[list[float]]) -> list[float]:
    """Column by column."""
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def _off(rate: float, fine: float, lost: float) -> float:
    """How many times the nearer end of the bracket; 1 within it."""
    return 1.0 if fine <= rate <= lost else rate / fine if rate < fine else rate / lost


def _times(off: float) -> str:
    return "between" if off == 1 else f"{off:.2g}"


def _pairs(every: list[Judged], here: dict[str, Judged], settings: dict[str, Any]) -> list[str]:
    named = [names for names in settings["pairs"] if {*names} <= here.keys()]
    found = [(here[fine["id"]], here[lost["id"]]) for fine, lost in pairs([each.run for each in every], named)]
    heads = ["fine", "lost", "half are lost at, first", "second", "lower for the lost one", "by plan and shape"]
    text = []
    for title, same in (
        ("Another network", False),
        ("The same network, another plan (no measurement enters here)", True),
    ):
        lines = []
        for fine, lost in found:
            if (fine.row is lost.row) is not same:
                continue
            ours = _half_lost(fine.ours, lost.ours)
            lines.append(
                [
                    fine.run["id"], lost.run["id"], *([f"{rate:.2g}" for rate in ours] if ours else "--"),
                    _lower(ours), _lower(_half_lost(fine.unmeasured, lost.unmeasured)),
                ]
            )  # fmt: skip
        if lines:
            text += [f"{title}:", "", *table(heads, lines), ""]
    return text[:-1]


def _half_lost(one: Prediction | None, other: Prediction | None) -> tuple[float, float] | None:
    """The learning rates at which half of the runs are lost, by two predictions; ``None`` if one of them says none."""
    rates = [each.threshold for each in (one, other) if each is not None and each.threshold is not None]
    return (rates[0], rates[1]) if len(rates) == 2 else None


def _lower(rates: tuple[float, float] | None) -> str:
    return "-" if rates is None else "yes" if rates[1] < rates[0] else "no"


def _scores(every: list[Judged]) -> list[str]:
    """What is right, by source; beside it what needs no measurement."""
    known = [each for each in every if each.p is not None and each.p_unmeasured is not None]
    unmeasurable = [each for each in every if each.ours is None]
    text = []
    if unmeasurable:
        names = ", ".join(dict.fromkeys(each.run["network"] for each in unmeasurable))
        text += [
            f"{len(unmeasurable)} runs are not in the scores: loss or gradient of their network ({names}) is not finite before "
            f"the first step, and `rksp risk` says so. {sum(each.lost for each in unmeasurable)} of them were lost.",
            "",
        ]
    if not known:
        return text[:-1]
    lines, shares = [], []
    for source in dict.fromkeys(each.run["source"] for each in known):
        mine = [each for each in known if each.run["source"] == source]
        shares.append([_right(mine, rule) / len(mine) for rule in _RULES.values()])
        lines.append([source, *_counts(mine)])
    lines.append(["all", *_counts(known)])
    lines.append(["mean share of the sources", "", "", "", "", *(f"{share:.0%}" for share in _means(shares))])
    heads = ["source", "runs", "lost", "right where it answered", "right where it answers now"]
    text += table([*heads, *(f"right: {name}" for name in _RULES)], lines)
    labels = [each.lost for each in known]
    if len(set(labels)) == 2:
        share = statistics.fmean(labels)
        scores = {
            "hf_rksp": [each.p for each in known],
            "plan and shape": [each.p_unmeasured for each in known],
            "the learning rate": [each.run["lr"] for each in known],
        }
        areas = ", ".join(f"{name} {roc_auc_score(labels, values):.2f}" for name, values in scores.items())
        brier = [
            statistics.fmean((p - was) ** 2 for p, was in zip(scores[name], labels, strict=True)) for name in scores
        ]
        text += [
            "",
            f"AUROC over all runs: {areas}. Brier score: hf_rksp {brier[0]:.3f}, plan and shape {brier[1]:.3f}, the share of lost "
            f"runs alone {share * (1 - share):.3f}.",
        ]
    return text


def _counts(runs: list[Judged]) -> list[str]:
    """Runs, lost ones, how many with an answer are right (by the rule before and by that of today), and how many by each rule."""
    answered = [each for each in runs if not each.said_nothing]
    answers = [each for each in runs if not each.says_nothing]
    right = [_right(runs, rule) for rule in _RULES.values()]
    return [
        str(len(runs)),
        str(sum(each.lost for each in runs)),
        *(f"{_right(those, _ours)} of {len(those)}" for those in (answered, answers)),
        *map(str, right),
    ]


def _ours(each: Judged) -> bool:
    return each.p is not None and each.p >= 0.5


#: What says that a run will be lost.
_RULES: dict[str, Callable[[Judged], bool]] = {
    "hf_rksp": _ours,
    "plan and shape": lambda each: each.p_unmeasured is not None and each.p_unmeasured >= 0.5,
    "a learning rate above the mean": lambda each: each.run["lr"] >= mean_rate(),
    "always fine": lambda each: False,
}


def _right(runs: Iterable[Judged], rule: Callable[[Judged], bool]) -> int:
    return sum(rule(each) is each.lost for each in runs)


def _every(every: list[Judged]) -> list[str]:
    lines = []
    for each in every:
        run, ours = each.run, each.ours
        interval = None if ours is None else ours.interval(run["lr"])
        rates = ["-" if ours is None or (rate := ours.rate_at(at)) is None else f"{rate:.2g}" for at in (SAFE, 0.5)]
        state = (
            "not finite before the first step" if ours is None else "says nothing" if each.says_nothing else ours.status
        )
        lines.append(
            [
                run["id"], run["network"], f"{each.row['weights'] / 1e6:,.0f}", f"{run['lr']:g}",
                f"**{run['outcome']}** ({run['said']})", "-" if each.p is None else f"{each.p:.0%}",
                "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}", *rates, state,
                "forward passes" if each.row["forward"] else "all",
            ]
        )  # fmt: skip
    heads = [
        "run", "network", "million weights", "learning rate", "outcome (as published)", "P(lost)", "90% interval",
        "below 5% up to", "50% at", "state", "features",
    ]  # fmt: skip
    return table(heads, lines)
