"""Is a run of two processes the run of one?"""

from __future__ import annotations

import math
from typing import Any

import torch

Run = dict[str, Any]

#: How far two runs may part that would be one without rounding: shapes, processors and numbers of processes decide in
#: which order a sum is added up. The longest sums have 192 terms, the tokens of a step, so they round by about sqrt(192) eps.
#: What a run makes of noise of the relative size d in every gradient and weight of every step was measured in float64, where
#: no processor makes a difference. At most, over five draws of the noise and the four steps that are trained in float32:
#:     9.3 d in the norm of the gradient, 2.5 d in the root of KSS's loss, 2.9 d in its radius, 13 d in a profile's numbers.
#: Four times that is allowed. (In twenty steps the norm parts by 310 d: near a defective operator; so float64 alone has them.)
#: Weights round by eps a step and not by a sum's: 8.4 d in the largest of them, 0.16 d in the mean.
EPS = torch.finfo(torch.float32).eps
ROUNDING = 14 * EPS
#: Trainer logs a loss in float32 whatever the model is in: that of a microbatch, of a process, and their mean.
LOSS = 8 * EPS
Bounds = dict[str, float]
LOGS: Bounds = {"grad_norm": 37 * ROUNDING, "kss/loss": 10 * ROUNDING, "kss/spectral_radius/max": 12 * ROUNDING}
LOGS |= dict.fromkeys(("loss", "kss/task_loss"), LOSS + ROUNDING)
PROFILE = 52 * ROUNDING
#: Largest and mean difference of the weights, relative to the largest weight.
WEIGHTS = (34 * EPS, 4 * EPS)
#: In float64 the same estimate is 1e-12 for the norm of the gradient after twenty steps. No fault is as small as 1e-10.
SHARP = 1e-10
SHARP_LOGS: Bounds = dict.fromkeys(("grad_norm", "kss/loss", "kss/spectral_radius/max"), SHARP)
SHARP_LOGS |= dict.fromkeys(("loss", "kss/task_loss"), LOSS)
SHARP_WEIGHTS = (1e-12, 1e-13)


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Largest and mean difference of the weights, relative to the largest weight."""
    apart = (one["weights"] - other["weights"]).abs() / one["weights"].abs().max()
    return float(apart.max()), float(apart.mean())


def assert_same_weights(one: Run, other: Run, allowed: tuple[float, float] = SHARP_WEIGHTS) -> None:
    found = difference(one, other)
    assert found[0] <= allowed[0] and found[1] <= allowed[1], f"weights differ by {found} (largest, mean)"


def assert_same_run(ranks: list[Run], one: Run, kind: str, sharp: bool) -> None:
    """The same samples in every step, the same logs, draws and final weights; and really two processes of ``kind``."""
    assert one["world_size"] == 1 and one["kind"] == "one"
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["kind"] for rank in ranks] == [kind, kind]
    assert_same_samples(ranks, one)
    for rank in ranks:
        assert rank["drawn"] == one["drawn"]
        assert_same_logs(one, rank, SHARP_LOGS if sharp else LOGS)
        assert_same_weights(one, rank, SHARP_WEIGHTS if sharp else WEIGHTS)


def assert_same_logs(one: Run, other: Run, allowed: Bounds = SHARP_LOGS) -> None:
    """What was logged in every step. KSS's loss is a sum of squares, so a small one says little: its root is compared."""
    for name, bound in allowed.items():
        for step, (left, right) in enumerate(zip(one["logs"], other["logs"], strict=True)):
            assert (name in left) == (name in right)
            if name not in left:
                continue
            if name == "kss/loss":
                same = abs(math.sqrt(left[name]) - math.sqrt(right[name])) <= bound
            else:
                same = math.isclose(left[name], right[name], rel_tol=bound, abs_tol=1e-12)
            assert same, f"{name} of step {step}: {left[name]} in the one run, {right[name]} in the other"


def assert_same_samples(ranks: list[Run], one: Run) -> None:
    """In every microbatch the ranks together had the samples of the one process; a resumed run had those of its end."""
    steps = len(ranks[0]["given"])
    for left, *right in zip(one["given"][-steps:], *(rank["given"] for rank in ranks), strict=True):
        assert sorted(left["texts"]) == sorted(text for part in right for text in part["texts"])
        assert sum(part["labels"] for part in right) == left["labels"]


def readings_of(run: Run, monitor: str) -> list[dict[str, Any]]:
    return [row for row in run["readings"] if row["monitor"] == monitor]


def assert_same_alignment(one: Run, other: Run, sharp: bool, first: bool = False) -> None:
    """The readings of Spectral Alignment, or the ``first`` alone."""
    left, right = (readings_of(run, "alignment")[: 1 if first else None] for run in (one, other))
    assert [row["step"] for row in left] == [row["step"] for row in right] and len(left) >= (1 if first else 2)
    bound = 1e-8 if sharp else 1e-3
    for a, b in zip(left, right, strict=True):
        assert a["tokens"] == b["tokens"]
        for x, y in zip(a["layers"], b["layers"], strict=True):
            assert x["path"] == y["path"]
            # A token whose alignment is zero up to rounding may have either sign.
            assert abs(x["majority_share"] - y["majority_share"]) <= (0 if sharp else 1.01 / a["tokens"])
            for name in ("spectral_norm", "mean_absolute"):
                assert math.isclose(x[name], y[name], rel_tol=bound), (a["step"], x["path"], name)
            assert math.isclose(x.get("growth", 0), y.get("growth", 0), abs_tol=bound), (a["step"], x["path"])


def assert_same_attention(one: Run, other: Run, sharp: bool) -> None:
    """The readings of queries, keys and logits. The change of a step is small, so its numbers round more than the weights do."""
    left, right = (readings_of(run, "attention") for run in (one, other))
    assert [row["step"] for row in left] == [row["step"] for row in right] and len(left) >= 2
    bound = 1e-6 if sharp else 0.02
    for a, b in zip(left, right, strict=True):
        assert a["values"].keys() == b["values"].keys() and "largest_logit" in a["values"]
        for name, value in a["values"].items():
            assert math.isclose(value, b["values"][name], rel_tol=bound), (a["step"], name, value, b["values"][name])
    assert "effective_rank/min" in left[1]["values"]


def assert_same_curvature(one: Run, other: Run, along: float, method: str) -> None:
    """The readings of the curvature: ``along`` is the relative bound of that along the update. Eigenvalues are found to 1%."""
    left, right = (readings_of(run, "curvature") for run in (one, other))
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(4))
    for a, b in zip(left, right, strict=True):
        assert b["method"] == method
        for name, bound in (("lambda_direction", along), ("lambda_max", 0.02), ("left_out", 0.01)):
            assert math.isclose(
                a["values"][name], b["values"][name], rel_tol=bound, abs_tol=1e-3 * (name == "left_out")
            ), (
                a["step"],
                name,
                a["values"][name],
                b["values"][name],
            )


def assert_same_profiles(one: Run, other: Run, sharp: bool, first: bool = False) -> None:
    """The profile rows of the history, or the ``first`` alone. ``sharp``: the model is in float64."""
    profiles = [readings_of(run, "spectrum") for run in (one, other)]
    if first:
        profiles = [rows[:1] for rows in profiles]
    assert len(profiles[0]) >= (1 if first else 3)
    allowed = SHARP if sharp else PROFILE
    for left, right in zip(*profiles, strict=True):
        assert (left["step"], left["tokens"]) == (right["step"], right["tokens"])
        for a, b in zip(left["layers"], right["layers"], strict=True):
            assert (a["path"], a["rank"]) == (b["path"], b["rank"])
            # A share of 16 modes: rounding may carry one over the edge of a band, but not where there is none.
            assert abs(a["near_unit_mass"] - b["near_unit_mass"]) <= (SHARP if sharp else 1.01 / a["rank"])
            for name in ("spectral_radius", "nonlinearity_ratio", "henrici_departure"):
                assert math.isclose(a[name], b[name], rel_tol=allowed), (left["step"], a["path"], name)
            moduli = [
                torch.tensor([math.hypot(*value) for value in row["eigenvalues"]]).sort().values for row in (a, b)
            ]
            # The history keeps five digits of an eigenvalue: of 1.0000 the last one is 1e-4.
            torch.testing.assert_close(*moduli, rtol=1e-4 + 10 * allowed, atol=0)
