"""Is a run of two processes the run of one?"""

from __future__ import annotations

import math
from typing import Any

import torch

Run = dict[str, Any]

#: Largest relative difference in any step. float32 rounds to 6e-8; twenty steps and a solve make up to 4e-5 of it in the
#: norm of the gradient. In float64 what is left is 1e-13; a worker's own loss is summed in float32 by Trainer.
LOGS = {"loss": 1e-5, "kss/task_loss": 1e-5, "grad_norm": 3e-4, "kss/loss": 3e-4, "kss/spectral_radius/max": 1e-4}
SHARP_LOGS = {"loss": 1e-6, "kss/task_loss": 1e-6, "grad_norm": 1e-10, "kss/loss": 1e-10}
#: Largest and mean difference of the weights, relative to the largest weight. Measured: 1e-6 and 4e-8; in float64 8e-15.
WEIGHTS, SHARP_WEIGHTS = (1e-5, 1e-6), (1e-12, 1e-13)


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Largest and mean difference of the weights, relative to the largest weight."""
    apart = (one["weights"] - other["weights"]).abs() / one["weights"].abs().max()
    return float(apart.max()), float(apart.mean())


def assert_same_weights(one: Run, other: Run, sharp: bool = False) -> None:
    found, allowed = difference(one, other), SHARP_WEIGHTS if sharp else WEIGHTS
    assert found[0] <= allowed[0] and found[1] <= allowed[1], f"weights differ by {found} (largest, mean)"


def assert_same_run(ranks: list[Run], one: Run, kind: str, sharp: bool = False) -> None:
    """The same samples in every step, the same logs, draws and final weights; and really two processes of ``kind``."""
    assert one["world_size"] == 1 and one["kind"] == "one"
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["kind"] for rank in ranks] == [kind, kind]
    assert_same_samples(ranks, one)
    for rank in ranks:
        assert rank["drawn"] == one["drawn"]
        assert_same_logs(one, rank, sharp)
        assert_same_weights(one, rank, sharp)


def assert_same_logs(one: Run, other: Run, sharp: bool = False) -> None:
    """What was logged in every step."""
    for name, allowed in (SHARP_LOGS if sharp else LOGS).items():
        for step, (left, right) in enumerate(zip(one["logs"], other["logs"], strict=True)):
            assert (name in left) == (name in right)
            if name in left:
                assert math.isclose(left[name], right[name], rel_tol=allowed, abs_tol=1e-12), (
                    f"{name} of step {step}: {left[name]} in the one run, {right[name]} in the other"
                )


def assert_same_samples(ranks: list[Run], one: Run) -> None:
    """In every microbatch the ranks together had the samples of the one process; a resumed run had those of its end."""
    steps = len(ranks[0]["given"])
    for left, *right in zip(one["given"][-steps:], *(rank["given"] for rank in ranks), strict=True):
        assert sorted(left["texts"]) == sorted(text for part in right for text in part["texts"])
        assert sum(part["labels"] for part in right) == left["labels"]


def assert_same_profiles(one: Run, other: Run, sharp: bool) -> None:
    """The profile rows of the history. ``sharp``: in float64, where twenty steps leave no trace of rounding."""
    rows = [[row for row in run["history"] if row["kind"] == "profile"] for run in (one, other)]
    assert len(rows[0]) >= 3
    for left, right in zip(*rows, strict=True):
        assert (left["step"], left["tokens"]) == (right["step"], right["tokens"])
        # The weights of the first step are the same in any precision; later ones carry the rounding of float32 (seen: 2e-6).
        allowed = 1e-8 if sharp or left["step"] == 0 else 1e-4
        for a, b in zip(left["layers"], right["layers"], strict=True):
            assert (a["path"], a["rank"]) == (b["path"], b["rank"])
            # A share of 16 modes: rounding may carry one over the edge of a band, but not where there is none.
            assert abs(a["near_unit_mass"] - b["near_unit_mass"]) <= (1e-8 if allowed == 1e-8 else 1.01 / a["rank"])
            for name in ("spectral_radius", "nonlinearity_ratio", "henrici_departure"):
                assert math.isclose(a[name], b[name], rel_tol=allowed), (left["step"], a["path"], name)
            moduli = [
                torch.tensor([math.hypot(*value) for value in row["eigenvalues"]]).sort().values for row in (a, b)
            ]
            # The history keeps five digits of an eigenvalue.
            torch.testing.assert_close(*moduli, rtol=max(2e-5, 10 * allowed), atol=0)
