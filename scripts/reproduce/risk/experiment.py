"""At which learning rate does a run fail, and what was measured before it began? One job is one configuration."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.profile import measure_step
from hf_rksp.profile.curvature import measure_curvature
from hf_rksp.profile.start import measure_start
from hf_rksp.risk.features import numbers_of
from scripts.reproduce.data import wikitext_file
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.risk import finetune, unseen
from scripts.reproduce.risk.dataset import case_of
from scripts.reproduce.risk.design import (
    COARSE,
    EVERY_RATE,
    FINE,
    FINE_SEEDS,
    FIRST_REPORTED,
    FURTHER_SEEDS,
    Configuration,
    draw,
    draw_long,
    parameters,
)
from scripts.reproduce.risk.ensemble import Recipe, train
from scripts.reproduce.risk.figures import between_seeds, paper
from scripts.reproduce.risk.labels import highest_surviving
from scripts.reproduce.risk.networks import FAMILIES, make
from scripts.reproduce.risk.tasks import TASKS, batch, objective_of

#: Batches that the measurement before step 0 takes.
BATCHES = 8
#: Seeds of batches that are measured on, so that no run is trained on them.
_UNSEEN = 1000
#: Weights of all runs that are trained side by side, at most; training takes some ten times their memory.
_MOST_WEIGHTS = 100_000_000
#: Steps of the learning-rate range test.
_RANGE = 100
#: What a proxy may cost, in training steps of the model: three quarters of what `rksp risk` costs (scripts/bench/risk.txt).
_MEASUREMENT = 27
#: Configurations that the tables of the paper need at least.
_ENOUGH = 90


def check(jobs: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """The text is there."""
    wikitext_file("validation")


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Measure and train one configuration: all learning rates at once, then those near the edge on three further seeds."""
    if job["part"] == "seeds":
        return repeated(job["seed"])
    configuration, coarse = configuration_of(job["part"], job["seed"])
    models = models_of(configuration, (0, *FINE_SEEDS))
    measured = {str(seed): measure(models[seed], configuration, seed) for seed in models}
    start = time.perf_counter()
    runs = trained(models, configuration, [(0, rate) for rate in coarse])
    survived = highest_surviving(runs, configuration)
    runs += trained(models, configuration, [(seed, survived * factor) for seed in FINE_SEEDS for factor in FINE])
    seconds = round(time.perf_counter() - start, 1)
    return {
        "configuration": configuration,
        "measured": measured,
        "runs": runs,
        "training_seconds": seconds,
        "rivals": rivals(models[0], configuration, coarse),
        "device": _device_name(),
    }


def repeated(number: int) -> dict[str, Any]:
    """A configuration that figures are reported on, at every learning rate, on two further seeds."""
    configuration = draw(FIRST_REPORTED + number)
    start = time.perf_counter()
    runs = trained(
        models_of(configuration, FURTHER_SEEDS),
        configuration,
        [(seed, rate) for seed in FURTHER_SEEDS for rate in EVERY_RATE],
    )
    seconds = round(time.perf_counter() - start, 1)
    return {"configuration": configuration, "runs": runs, "training_seconds": seconds, "device": _device_name()}


def configuration_of(part: str, number: int) -> tuple[Configuration, Sequence[float]]:
    """A configuration, and the learning rates of its first stage."""
    if part == "finetune":
        return finetune.draw(number), finetune.COARSE
    if part == "sealed":
        configuration = unseen.draw(number)
        return configuration, unseen.coarse_of(configuration)
    return (draw_long if part == "long" else draw)(number), COARSE


def models_of(configuration: Configuration, seeds: tuple[int, ...]) -> dict[int, nn.Module]:
    """The model of each seed, as it is before step 0."""
    if configuration["family"] == "minilm":
        return unseen.minilm(configuration, seeds)
    if configuration.get("start") == "pretrained":
        return finetune.models(configuration, seeds, device())
    family = (FAMILIES | unseen.FAMILIES)[configuration["family"]]
    return {seed: make(family, shape_of(configuration), seed) for seed in seeds}


def device() -> torch.device:
    """Where runs are trained; what is measured before step 0 is measured on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def rivals(model: nn.Module, configuration: Configuration, coarse: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """What others do to find the highest learning rate, on seed 0.

    Returns:
        "range": a learning-rate range test, one run of `_RANGE` steps with a rising rate. "short": every learning rate of the first
        stage for a tenth of the steps and of the warm-up. "proxy": a network of a quarter of the width and of the layers at those
        learning rates, for as many steps as cost about three quarters of `rksp risk`; trained weights have none.
    """
    steps, warmup = configuration["steps"], configuration["warmup"]
    swept = {"steps": _RANGE, "warmup": 0, "schedule": "range"}
    tenth = {"steps": max(steps // 10, 15), "warmup": warmup // 10}
    first = [(0, rate) for rate in coarse]
    found = {
        "range": trained({0: model}, configuration | swept, [(0, max(coarse))], points=_RANGE),
        "short": trained({0: model}, configuration | tenth, first),
    }
    if configuration.get("start") == "pretrained":
        return found
    small = configuration | {
        "width": max(configuration["width"] // 4, 16),
        "layers": max(configuration["layers"] // 4, 2),
        "heads": 2,
    }
    ratio = parameters(configuration) / parameters(small)
    length = min(max(round(_MEASUREMENT * ratio / len(coarse)), 5), steps)
    small |= {"steps": length, "warmup": round(warmup * length / steps)}
    return found | {"proxy": trained(models_of(small, (0,)), small, first)}


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
    if configuration["family"] in ("minilm", "vit"):
        return unseen.batch(configuration, seed, step)
    if configuration.get("start") == "pretrained":
        return finetune.batch(configuration, seed, step)
    return batch(configuration["task"], seed, step, configuration["sequences"], configuration["length"])


def measure(model: nn.Module, configuration: Configuration, seed: int) -> dict[str, Any]:
    """What `rksp risk` measures before step 0, for the optimizer's own first direction and for Adam's after warm-up."""
    drawn = [batch_of(configuration, _UNSEEN + seed, step) for step in range(BATCHES)]
    inputs = "pixel_values" if configuration["task"] == "cifar10" else "input_ids"
    batches = [{inputs: ids, "labels": labels} for ids, labels in drawn]
    direction = {"adamw": "adam"}.get(configuration["optimizer"], configuration["optimizer"])
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
    seconds = {"seconds": round(start.seconds, 2)}
    if seed == 0:  # for the comparison alone, and it takes longer than all the rest
        curvature = measure_curvature(model, None, batches, floors=(10.0,))
        numbers["lambda_max_after_warmup"] = curvature.at_floors[0].lambda_max_after_warmup
        seconds["curvature_seconds"] = round(curvature.seconds, 2)
    return {name: rounded(value) for name, value in numbers.items()} | seconds


def rounded(value: float | None) -> float | None:
    """Five digits: the rows are read by people too."""
    return None if value is None else float(f"{value:.5g}")


def trained(
    models: dict[int, nn.Module], configuration: Configuration, runs: Sequence[tuple[int, float]], points: int = 25
) -> list[dict[str, Any]]:
    """Train runs of (seed, learning rate) side by side, as many at a time as fit into memory."""
    weights = sum(p.numel() for p in next(iter(models.values())).parameters() if p.requires_grad)
    size = max(_MOST_WEIGHTS // weights, 1)
    parts = [runs[first : first + size] for first in range(0, len(runs), size)]
    return [row for part in parts for row in _trained(models, configuration, part, points)]


def _trained(
    models: dict[int, nn.Module], configuration: Configuration, runs: Sequence[tuple[int, float]], points: int
) -> list[dict[str, Any]]:
    places = sorted({seed for seed, _ in runs})
    index = torch.tensor([places.index(seed) for seed, _ in runs])

    def batches(step: int, first: int = 0) -> tuple[Tensor, Tensor]:
        each = [batch_of(configuration, first + seed, step) for seed in places]
        return torch.stack([ids for ids, _ in each])[index], torch.stack([labels for _, labels in each])[index]

    trained_before = configuration.get("start") == "pretrained"
    found = train(
        [models[seed] for seed, _ in runs],
        [rate for _, rate in runs],
        batches,
        recipe_of(configuration),
        objective_of(configuration),
        device(),
        [batches(step, _UNSEEN) for step in range(BATCHES)] if trained_before else (),
    )
    return [
        {"seed": seed, "lr": float(f"{rate:.6g}")} | row
        for (seed, rate), row in zip(runs, found.rows(points), strict=True)
    ]


def tables(rows: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Where configurations fail, by family; of the random design also the tables of the paper."""
    if rows[0]["part"] == "seeds":
        return between_seeds(rows)
    cases = [case_of(row) for row in rows]
    lines = []
    for family in dict.fromkeys(case.family for case in cases):
        mine = [case for case in cases if case.family == family]
        found = [cause for case in mine for cause in case.cause]
        edges = [case.edge for case in mine if case.judged and case.edge]
        ends = f"{min(edges):.2g} to {max(edges):.2g}" if edges else "-"
        lines.append(
            [
                family, str(len(mine)), str(sum(case.judged for case in mine)), str(len(found)), str(found.count("exploded")),
                str(found.count("useless")), str(found.count("damaged")),
                f"{statistics.median(edges):.2g}" if edges else "-", ends,
            ]
        )  # fmt: skip
    header = ("family", "configurations", "that learn", "runs", "exploded", "useless", "damaged", "median lr*", "range")
    text = "\n".join(table(header, lines)) + "\n"
    whole = len(cases) >= _ENOUGH and rows[0].get("part") == "random"
    return text + ("\n" + paper(cases) + "\n" if whole else "")
