"""The figures of the risk model: tables of what was predicted for configurations that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, get_args

import numpy
from scipy.stats import fisher_exact
from sklearn.metrics import roc_auc_score

from hf_rksp.risk.calibrated import RiskModel
from hf_rksp.risk.plan import Start
from scripts.reproduce.harness.markdown import table as markdown
from scripts.reproduce.risk.crossval import left_out, predict
from scripts.reproduce.risk.dataset import Case, edge_of
from scripts.reproduce.risk.design import FURTHER_SEEDS
from scripts.reproduce.risk.labels import LEAST, LOST, learnt, outcomes
from scripts.reproduce.risk.methods import NOTHING, OURS, RAW, Method
from scripts.reproduce.risk.networks import FAMILIES
from scripts.reproduce.risk.scores import Predicted, Scores, bootstrap, score, within

Key = Callable[[Case], Hashable]
#: Learning rate of the first stage at which runs are pooled over the families for the tables of the paper.
_POOLED = 2.0**-6


def group(case: Case) -> Hashable:
    """Families that are left out together."""
    return case.group


def tenth(case: Case) -> Hashable:
    """A tenth of the design; each has all families."""
    return case.row["seed"] // 9 % 10


def eighth(case: Case) -> Hashable:
    """An eighth of the design of fine-tuning; each has all families."""
    return case.row["seed"] // 4 % 8


def compared(methods: Sequence[Method], cases: Sequence[Case], key: Key, first: int, by_family: bool) -> list[str]:
    """A line per method, over the configurations from number ``first`` on."""
    heads = ("AUROC", "within factor 2 (95%)", "median", "Brier", "ECE", "ECE all", "skill", "cost")
    widths = (6, 22, 7, 6, 6, 8, 6, 6)
    lines = [f"{'':42s} " + " ".join(f"{head:>{width}s}" for head, width in zip(heads, widths, strict=True))]
    reference = None
    for method in methods:
        predicted = [one for one in left_out(method, cases, key) if one.case.row["seed"] >= first]
        found = score(predicted)
        reference = reference if reference is not None else found.log_loss
        low, high = bootstrap(predicted, within, by_family=by_family)
        cells = (
            f"{found.auroc:.2f}", f"{found.within_2:.2f} ({low:.2f} to {high:.2f})", f"x{found.median_factor:.2f}",
            f"{found.brier:.3f}", f"{found.ece:.3f}", f"{found.coarse_ece:.3f}", f"{1 - found.log_loss / reference:.2f}",
            f"{numpy.mean([method.cost(one.case) for one in predicted]):.1f}",
        )  # fmt: skip
        lines.append(
            f"{method.name:42s} " + " ".join(f"{cell:>{width}s}" for cell, width in zip(cells, widths, strict=True))
        )
    return lines


def raw(cases: Sequence[Case]) -> list[str]:
    """Learning rates that others read off without a fit."""
    lines = []
    for name, value in RAW.items():
        pairs = [(case, at) for case in cases if case.edge and (at := value(case)) is not None]
        errors = numpy.array([abs(at - math.log2(case.edge or 1)) for case, at in pairs])
        lines.append(f"{name:42s} {_errors(errors)}")
    return lines


def _errors(errors: numpy.ndarray) -> str:
    return f"within factor 2 {(errors <= 1).mean():.2f}, median x{2 ** numpy.median(errors):.2f} ({len(errors)} configurations)"


def sizes(cases: Sequence[Case]) -> list[str]:
    """Error against the ratio of sizes: fits to width 32."""
    small = [case for case in cases if case.configuration["width"] == 32]
    lines = []
    for ratio in (1, 2, 4):
        asked = [case for case in cases if case.configuration["width"] == 32 * ratio]
        for method in (NOTHING, OURS):
            predicted = left_out(method, small, tenth) if ratio == 1 else predict(method, small, asked)
            found = score(predicted)
            lines.append(
                f"width {32 * ratio:3d}, {ratio}x, {len(predicted):3d} configurations: {method.name:20s} within factor 2 "
                f"{found.within_2:.2f}, median x{found.median_factor:.2f}"
            )
    return lines


def others(cases: Sequence[Case], asked: Sequence[Case], ours: Method) -> list[str]:
    """Predictions of fits to ``cases`` for configurations of another kind."""
    lines = []
    for method in (NOTHING, ours):
        found = score(predict(method, cases, asked))
        lines.append(
            f"{method.name:20s} within factor 2 {found.within_2:.2f}, median x{found.median_factor:.2f}, AUROC {found.auroc:.2f}"
        )
    return lines


def prototype(cases: Sequence[Case], predicted: Sequence[Predicted]) -> str:
    """The same predictions, scored by the label of the first prototype: a final loss .3 nats above the best."""
    errors = []
    for one in predicted:
        runs = one.case.row["runs"]
        whole = [run for run in runs if run["exploded"] is None and run["final"] is not None]
        best = min(whole, key=lambda run: run["final"])
        lost = [
            run["lr"] > best["lr"]
            and not (run["exploded"] is None and (run["final"] or math.inf) <= best["final"] + 0.3)
            for run in runs
        ]
        edge = edge_of(one.case.lr, numpy.array(lost))
        if edge:
            errors.append(abs(one.log2_threshold - math.log2(edge)))
    return f"within factor 2 {numpy.mean(numpy.array(errors) <= 1):.2f} of {len(errors)} configurations"


def check(predicted: Sequence[Predicted], thresholds: dict[int, float]) -> str:
    """How close the learning rates of another likelihood are to those of ours, and how good."""
    pairs = [
        (one.log2_threshold, thresholds[int(one.case.row["seed"])], math.log2(one.case.edge))
        for one in predicted
        if one.case.edge
    ]
    ours, other, edges = numpy.array(pairs).T
    apart = 2 ** numpy.quantile(abs(ours - other), (0.5, 0.95))
    return (
        f"{_errors(abs(other - edges))}; from the shipped likelihood its answers differ by x{apart[0]:.2f} in the median, by less "
        f"than x{apart[1]:.2f} in 95%"
    )


def sealed(cases: Sequence[Case], models: dict[str, RiskModel]) -> tuple[list[str], numpy.ndarray]:
    """Shipped models on what they have never seen: a line per configuration, and log2 errors where the plan is assessable.

    The errors are those of the model as it was frozen: the rule that refuses networks without attention is younger.
    """
    lines, errors = [], []
    for case in sorted(cases, key=lambda case: int(case.row["seed"])):
        model = models[case.plan.start]
        status = model.predict(case.numbers, case.plan, case.architecture).status
        threshold = model.unchecked(case.numbers, case.plan).threshold
        line = f"{case.configuration['name']:28s} {status:15s} "
        if not case.judged or case.edge is None or threshold is None:
            lines.append(
                line + ("nothing is learnt" if not case.judged else "no learning rate parts survivors from lost runs")
            )
            continue
        error = math.log2(threshold / case.edge)
        errors.append(("plan refused" if model.refusals(case.plan) else "frozen model", case.plan.start, error))
        way = "high" if error > 0 else "low"
        lines.append(f"{line}lr* {case.edge:8.2g}, predicted {threshold:8.2g}: {2 ** abs(error):.1f} times too {way}")
    for kind in dict.fromkeys(kind for kind, _, _ in errors):
        for starts in (get_args(Start), *((start,) for start in get_args(Start))):
            if mine := [abs(error) for other, start, error in errors if other == kind and start in starts]:
                lines.append(f"{kind}, {' or '.join(starts)}: {_errors(numpy.array(mine))}")
    return lines, numpy.array([error for kind, _, error in errors if kind == "frozen model"])


def between_seeds(rows: Sequence[dict[str, Any]]) -> str:
    """How far lr* scatters between two seeds of one configuration, each from its own runs at all learning rates.

    No forecast that does not know the seed can do better than a lr* that scatters by as much against the median of the seeds.
    """
    lines, octaves = [], []
    for row in rows:
        configuration = row["configuration"]
        edges = []
        for seed in FURTHER_SEEDS:
            runs = [run for run in row["runs"] if run["seed"] == seed]
            if learnt(runs, configuration) >= LEAST:
                lost = [outcome in LOST for outcome in outcomes(runs, configuration)]
                edges.append(edge_of(numpy.array([run["lr"] for run in runs]), numpy.array(lost)))
        if len(edges) == len(FURTHER_SEEDS) and all(edges):
            octaves.append((configuration["family"], abs(math.log2(edges[0] / edges[1]))))
    for family in dict.fromkeys(row["configuration"]["family"] for row in rows):
        mine = [distance for name, distance in octaves if name == family]
        lines.append([family, str(len(mine)), *_agreement(mine)])
    every = [distance for _, distance in octaves]
    lines.append(["all", str(len(every)), *_agreement(every)])
    heads = ["family", "configurations", "same lr*", "within a factor 1.5", "within a factor 2", "median factor"]
    return "\n".join(markdown(heads, lines)) + "\n"


def _agreement(octaves: Sequence[float]) -> list[str]:
    found = numpy.array(octaves)
    if not len(found):
        return ["-"] * 4
    shares = [f"{(found <= limit).mean():.0%}" for limit in (1e-3, math.log2(1.5), 1 + 1e-3)]
    return [*shares, f"x{2 ** numpy.median(found):.2f}"]


def pooled(cases: Sequence[Case]) -> tuple[list[Case], numpy.ndarray, numpy.ndarray]:
    """The runs of Tables 1 and 2: AdamW alone, at one learning rate, seed 0; and which of them were lost, and which exploded."""
    own = [case for case in cases if case.plan.optimizer == "adamw"]
    at = {id(case): int(numpy.flatnonzero(case.coarse & (case.lr == _POOLED))[0]) for case in own}
    lost = numpy.array([bool(case.lost[at[id(case)]]) for case in own])
    exploded = numpy.array([case.cause[at[id(case)]] == "exploded" for case in own])
    return own, lost, exploded


def paper(cases: Sequence[Case]) -> str:
    """Tables 1 and 2 of the paper from these runs."""
    own, lost, exploded = pooled(cases)
    rows = []
    for family in FAMILIES:
        mine = [place for place, case in enumerate(own) if case.family == family]
        means = [
            f"{numpy.mean([own[place].numbers[name] or 0.0 for place in mine]):.2f}"
            for name in ("near_unit_mass", "expansive_mass", "spectral_radius")
        ]
        rows.append([family, str(len(mine)), *means, f"{exploded[mine].mean():.0%}", f"{lost[mine].mean():.0%}"])
    first = markdown(["family", "n", "M~1", "M>1", "rho", "exploded", "lost"], rows)
    values = {
        "M~1": [case.numbers["near_unit_mass"] for case in own],
        "M~1 log kappa": [_with_condition(case) for case in own],
        "rho": [case.numbers["spectral_radius"] for case in own],
        "kappa": [case.numbers["eigenvector_condition_max"] for case in own],
        "gradient norm": [case.numbers["gradient_norm"] for case in own],
    }
    second = markdown(
        ["at initialisation", "AUROC, exploded", "AUROC, lost"],
        [
            [name, *(f"{roc_auc_score(label, value):.2f}" for label in (exploded, lost))]
            for name, value in values.items()
        ],
    )
    none = numpy.array([case.family == "none" for case in own])
    counts = [[int((exploded & side).sum()), int((~exploded & side).sum())] for side in (none, ~none)]
    test = fisher_exact(counts)
    title = f"AdamW, learning rate 2^-6 = {_POOLED:.3g}, seed 0, {len(own)} configurations"
    return "\n".join(
        [
            f"Signatures of the families (Table 1 of the paper). {title}.", "", *first, "",
            "One number for all families (Table 2 of the paper), over the same runs.", "", *second, "",
            f"Explosions without a norm against those with one: {counts[0][0]} of {sum(counts[0])} and {counts[1][0]} of "
            f"{sum(counts[1])}; Fisher's exact test, p = {test.pvalue:.2g}.",
        ]
    )  # fmt: skip


def _with_condition(case: Case) -> float:
    return (case.numbers["near_unit_mass"] or 0.0) * math.log10(
        max(case.numbers["eigenvector_condition_max"] or 1.0, 1.0)
    )


def summary(predicted: Sequence[Predicted], found: Scores) -> str:
    """The last line."""
    low, high = bootstrap(predicted, within)
    ends = bootstrap(predicted, lambda drawn: score(drawn).auroc, draws=100)
    return (
        f"summary, families left out: AUROC {found.auroc:.2f} (95% {ends[0]:.2f} to {ends[1]:.2f}; target .90), within a factor 2 "
        f"{found.within_2:.0%} ({low:.0%} to {high:.0%}; target 80%), ECE {found.ece:.3f} near the edge and "
        f"{found.coarse_ece:.3f} over all learning rates (target .05)"
    )
