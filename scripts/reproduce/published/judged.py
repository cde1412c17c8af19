"""What is said of every published run: by our forecast, by plan and shape alone, and by one learning rate for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_rksp.risk.calibrated import Prediction, shipped
from hf_rksp.risk.plan import Plan

from .models import FORWARD, UNMEASURED, model
from .runs import runs_of

Row = dict[str, Any]
#: What a plan of config.yaml may leave out.
_PLAN = {"dtype": "float32", "warmup": 0}
#: Before these runs were predicted `rksp risk` gave no answer if the 90% interval was wider than this.
_WIDEST = 0.9


def plan_of(run: dict[str, Any]) -> Plan:
    """How a published run was planned."""
    of = _PLAN | run
    return Plan(
        beta2=of["beta2"], weight_decay=of["decay"], warmup=of["warmup"], schedule=of["schedule"], steps=of["steps"],
        clip=of["clip"], tokens=of["batch"] * of["length"], dtype=of["dtype"],
    )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A published run and what is said of it.

    Attributes:
        run: see `runs_of`.
        row: of its network.
        ours: of the shipped model, or of that of forward passes; unmeasured: of plan and shape. Both are
            ``None`` if loss or gradient of the network are not finite before the first step.
    """

    run: dict[str, Any]
    row: Row
    ours: Prediction | None
    unmeasured: Prediction | None

    @property
    def lost(self) -> bool:
        """Its outcome."""
        return bool(self.run["outcome"] == "lost")

    @property
    def p(self) -> float | None:
        """P(lost)."""
        return None if self.ours is None else self.ours.p_lost(self.run["lr"])

    @property
    def p_unmeasured(self) -> float | None:
        """The same of plan and shape."""
        return None if self.unmeasured is None else self.unmeasured.p_lost(self.run["lr"])

    @property
    def says_nothing(self) -> bool:
        """Whether `rksp risk` gives no answer."""
        return self.ours is None or not self.ours.decides(self.run["lr"])

    @property
    def said_nothing(self) -> bool:
        """Whether it gave none by the rule that it had before these runs were predicted."""
        interval = None if self.ours is None else self.ours.interval(self.run["lr"])
        return interval is None or interval[1] - interval[0] > _WIDEST


def judged(rows: list[Row], settings: Mapping[str, Any]) -> list[Judged]:
    """Every run whose network was measured."""
    measured = {row["network"]: row for row in rows}
    found = []
    for run in runs_of(settings):
        row = measured.get(run["network"])
        if row is None:
            continue
        both: list[Prediction | None] = [None, None]
        if row["numbers"]:
            ours = model(FORWARD.name) if row["forward"] else shipped("initialised")
            both = [
                each.predict(row["numbers"], plan_of(run), row["architecture"])
                for each in (ours, model(UNMEASURED.name))
            ]
        found.append(Judged(run, row, *both))
    return found


def mean_rate() -> float:
    """The geometric mean of the learning rates at which the AdamW runs behind the model are lost: it needs no plan either."""
    return float(2 ** model("mean").bias)
