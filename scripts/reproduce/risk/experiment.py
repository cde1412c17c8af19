"""At which learning rate does a run fail, and what was measured before it began? One job is one configuration."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.profile import measure_step
from hf_rksp.profile.start import measure_start
from hf_rksp.risk.features import numbers_of
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.risk import finetune
from scripts.reproduce.risk.design import COARSE, FINE, FINE_SEEDS, Configuration, draw
from scripts.reproduce.risk.ensemble import Recipe, train
from scripts.reproduce.risk.labels import edge, outcomes
from scripts.reproduce.risk.networks import make
from scripts.reproduce.risk.tasks import TASKS, batch

#: Batches that the measurement before step 0 takes.
BATCHES = 8
#: Seeds of batches that are measured on, so that no run is trained on them.
_UNSEEN = 1000


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there."""
    wikitext_file("validation")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Measure and train one configuration: all learning rates at once, then those near the edge on three further seeds."""
    seeds = (0, *FINE_SEEDS)
    if job["part"] == "finetune":
        configuration, coarse = finetune.draw(job["seed"]), finetune.COARSE
        models = finetune.models(configuration, seeds)
    else:
        configuration, coarse = draw(job["seed"]), COARSE
        models = {seed: make(configuration["family"], shape_of(configuration), seed) for seed in seeds}
    measured = {str(seed): measure(models[seed], configuration, seed) for seed in seeds}
    start = time.perf_counter()
    runs = trained(models, configuration, [(0, rate) for rate in coarse])
    survived = edge(runs, configuration)
    runs += trained(models, configuration, [(seed, survived * factor) for seed in FINE_SEEDS for factor in FINE])
    seconds = round(time.perf_counter() - start, 1)
    return {"configuration": configuration, "measured": measured, "runs": runs, "training_seconds": seconds}


def shape_of(configuration: Configuration) -> dict[str, Any]:
    """What `networks.make` takes."""
    names = ("width", "layers", "heads", "std", "length")
    return {name: configuration[name] for name in names} | {"vocabulary": TASKS[configuration["task"]].vocabulary}


def recipe_of(configuration: Configuration) -> Recipe:
    """How the configuration is trained."""
    names = ("steps", "warmup", "schedule", "optimizer", "beta2", "decay", "clip", "dtype")
    return Recipe(**{name: configuration[name] for name in names})


def batch_of(configuration: Configuration, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Ids and labels of one batch."""
    if configuration.get("start") == "pretrained":
        return finetune.batch(configuration, seed, step)
    return batch(configuration["task"], seed, step, configuration["sequences"], configuration["length"])


def measure(model: nn.Module, configuration: Configuration, seed: int) -> dict[str, Any]:
    """What `rksp risk` measures before step 0, for the optimizer's own first direction and for Adam's after warm-up."""
    drawn = [batch_of(configuration, _UNSEEN + seed, step) for step in range(BATCHES)]
    batches = [{"input_ids": ids, "labels": labels} for ids, labels in drawn]
    direction = "muon" if configuration["optimizer"] == "muon" else "adam"
    start = measure_start(model, None, batches, optimizer=direction, progress=False)
    numbers: dict[str, Any] = dict(numbers_of(start.profile, start.signals, start.step))
    averaged = measure_step(
        model, None, batches, optimizer="adam_averaged", first_step=start.step.first_step, progress=False
    )
    check = averaged.coordinate_check
    numbers |= {
        "averaged_critical_lr": averaged.critical_lr.median if averaged.critical_lr else None,
        "averaged_quadratic_critical_lr": averaged.quadratic_critical_lr.median
        if averaged.quadratic_critical_lr
        else None,
        "averaged_coordinate_lr": check.lr if check else None,
    }
    return {name: rounded(value) for name, value in numbers.items()} | {"seconds": round(start.seconds, 2)}


def rounded(value: float | None) -> float | None:
    """Five digits: the rows are read by people too."""
    return None if value is None else float(f"{value:.5g}")


def trained(
    models: dict[int, nn.Module], configuration: Configuration, runs: Sequence[tuple[int, float]]
) -> list[dict[str, Any]]:
    """Train runs of (seed, learning rate) side by side."""
    places = sorted({seed for seed, _ in runs})
    index = torch.tensor([places.index(seed) for seed, _ in runs])

    def batches(step: int) -> tuple[Tensor, Tensor]:
        each = [batch_of(configuration, seed, step) for seed in places]
        return torch.stack([ids for ids, _ in each])[index], torch.stack([labels for _, labels in each])[index]

    found = train(
        [models[seed] for seed, _ in runs],
        [rate for _, rate in runs],
        batches,
        recipe_of(configuration),
        configuration.get("objective", "causal"),
    )
    return [
        {"seed": seed, "lr": float(f"{rate:.6g}")} | row for (seed, rate), row in zip(runs, found.rows(), strict=True)
    ]


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """How many configurations fail where, by family."""
    lines = []
    for family in dict.fromkeys(row["configuration"]["family"] for row in rows):
        mine = [row for row in rows if row["configuration"]["family"] == family]
        found = [one for row in mine for one in outcomes(row["runs"], row["configuration"])]
        edges = [edge(row["runs"], row["configuration"]) for row in mine]
        lines.append(
            [
                family, str(len(mine)), str(len(found)), str(found.count("exploded")),
                str(found.count("useless") + found.count("damaged")),
                f"{statistics.median(edges):.3g}", f"{min(edges):.3g} to {max(edges):.3g}",
            ]
        )  # fmt: skip
    header = [
        "family",
        "configurations",
        "runs",
        "exploded",
        "useless or damaged",
        "median highest surviving rate",
        "range",
    ]
    return "\n".join(table(header, lines)) + "\n"
