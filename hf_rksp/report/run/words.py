"""A history in words: what happened, and what to know before more is read into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from hf_rksp.history.read import History, Row, layers_at
from hf_rksp.json_data import section
from hf_rksp.report.kit.svg import median
from hf_rksp.report.kit.text import DASH, count, large, line, number, share
from hf_rksp.report.run.numbers import Series, gaps, layer_names, logged, mean, peak
from hf_rksp.report.run.tables import radius, tokens

#: Counts in the log, what they count, and by whom it was left out.
_COUNTS = (
    ("kss/skipped", "layers of training passes that it could not read", "KSS"),
    ("kss/dropped", "terms and gradients that were not finite", "KSS"),
    ("spectrum/skipped", "layers of profiles that it could not read or solve", "The monitor"),
)


def title(histories: Sequence[History]) -> str:
    """The model's name, where it is one."""
    models = [section(history.run, "model") for history in histories]
    return _common(line(model.get("name") or model.get("class") or "", 120) for model in models) or "unnamed model"


def facts(histories: Sequence[History]) -> list[tuple[str, str]]:
    """The line under the title."""
    models = [section(history.run, "model") for history in histories]
    steps = [row["step"] for history in histories for row in (*history.logs, *history.spectra)]
    found = [
        ("class", _common(line(model.get("class") or "", 80) for model in models)),
        ("parameters", _common(large(model.get("parameters")) for model in models)),
        ("layers", count(len(layer_names(histories))) if layer_names(histories) else ""),
        ("steps", f"{count(min(steps))} to {count(max(steps))}" if steps else ""),
        ("profiles", " + ".join(count(len(history.spectra)) for history in histories)),
    ]
    return [(name, value) for name, value in found if value and value != DASH]


def _common(values: Iterable[str]) -> str:
    return " and ".join(value for value in dict.fromkeys(values) if value)


def story(history: History) -> list[str]:
    """What happened, one thing a sentence, and no judgement."""
    return [*_loss(history), *_gradient(history), *_spectrum(history), *_unprofiled(history), *_left_out(history)]


def _loss(history: History) -> list[str]:
    series = logged(history, "loss")
    known = [(step, value) for step, value in series if value is not None]
    if not series:
        return ["No loss was logged."]
    if not known:
        return [f"The loss is not a finite number at any of {count(len(series))} logged steps."]
    (first, start), (last, end) = known[0], known[-1]
    if len(known) == 1:
        told = f"The one finite loss is {number(start)}, at step {count(first)}."
    else:
        told = f"Loss {number(start)} at step {count(first)}, {number(end)} at step {count(last)}."
    return [told, *_lost("The loss", series)]


def _lost(what: str, series: Series) -> list[str]:
    found = gaps(series)
    if not found:
        return []
    start, missing = count(found[0][0]), sum(value is None for _, value in series)
    if len(found) == 1 and series[-1][1] is None and missing > 1:
        return [f"{what} is not a finite number from step {start} to the end, step {count(series[-1][0])}."]
    where = f"first at step {start}" if missing > 1 else f"step {start}"
    return [f"{what} is not a finite number at {count(missing)} of {count(len(series))} logged steps, {where}."]


def _gradient(history: History) -> list[str]:
    series = logged(history, "grad_norm")
    found = peak(series)
    if not found:
        return []
    return [
        f"Largest gradient norm {number(found.value)}, at step {count(found.where)}.",
        *_lost("The gradient norm", series),
    ]


def _spectrum(history: History) -> list[str]:
    if not history.spectra:
        return ["No profile was made."]
    first, last = history.spectra[0], history.spectra[-1]
    if first is last:
        return [
            f"Profiled once, at step {count(first['step'])}: mean near-unit mass {share(mean(first, 'near_unit_mass'))}, "
            f"largest spectral radius {radius(first)}."
        ]
    told = [
        f"Mean near-unit mass {share(mean(first, 'near_unit_mass'))} → {share(mean(last, 'near_unit_mass'))} and largest "
        f"spectral radius {radius(first)} → {radius(last)}, from the profile of step {count(first['step'])} to that of "
        f"step {count(last['step'])}."
    ]
    layers = len(layer_names([history]))
    short = [profile["step"] for profile in history.spectra if len(layers_at(profile)) < layers]
    if short:
        told.append(
            f"In {count(len(short))} of {count(len(history.spectra))} profiles a layer is missing, first at step "
            f"{count(short[0])}: it could not be solved (too few tokens, or not finite)."
        )
    return told


def _unprofiled(history: History) -> list[str]:
    """The profiles can end before the run does: states that are not finite have no spectrum."""
    steps = [profile["step"] for profile in history.spectra]
    if len(steps) < 2 or not history.logs:
        return []
    usual = median(after - before for before, after in pairwise(steps))
    end = history.logs[-1]["step"]
    if end <= steps[-1] + usual:
        return []
    return [f"No profile after step {count(steps[-1])}; the log goes on to step {count(end)}."]


def _left_out(history: History) -> list[str]:
    """What the log counts of layers that could not be read or solved."""
    told = []
    for name, left, by in _COUNTS:
        series = [(step, value) for step, value in logged(history, name) if value is not None]
        above = [(step, value) for step, value in series if value > 0]
        if above:
            told.append(
                f"{by} left out {count(int(above[-1][1]))} {left} ({name}), first seen at step {count(above[0][0])}."
            )
    return told


def cautions(histories: Sequence[History]) -> list[str]:
    """What must be known so that the curves are not read for more than they say."""
    profiles: list[Row] = [row for history in histories for row in history.spectra]
    kinds = {str(row.get("data")) for row in profiles}
    told = [
        "These are single runs without error bars: a difference between two of them can be chance."
        if len(histories) > 1
        else "This is a single run without error bars: with another seed it can look different."
    ]
    if "batch" in kinds:
        told.append(
            "A profile of the training batch sees other tokens at every step, with dropout on: part of what moves is the "
            "choice of tokens."
        )
    if len(kinds) > 1:
        told.append("Some profiles are of the training batch and some of a fixed probe: these are not comparable.")
    if len({tokens(history).partition(", ")[0] for history in histories if history.spectra}) > 1:
        told.append("The runs profiled different numbers of tokens; with fewer tokens the spectrum is wider.")
    told.append(
        "A logged loss is a mean over the steps since the line before. Trainer leaves losses that are not finite out of it "
        "unless told otherwise (logging_nan_inf_filter); the gradient norm then shows them first."
    )
    if any(section(section(history.run, "setup"), "kss").get("schedule") == "paper" for history in histories):
        told.append(
            "On its published schedule KSS adds its term to the logged loss: compare the loss without that term."
        )
    return told
