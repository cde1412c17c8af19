"""The configurations: a seeded random design. Configuration k is a pure function of k.

    python -m scripts.reproduce.risk.design          # the list, with the hours that each part should take

A grid would repeat the same few values; a random design has 300 different values of what is continuous.
"""

from __future__ import annotations

import random
from typing import Any

from scripts.reproduce.risk.networks import FAMILIES
from scripts.reproduce.risk.tasks import TASKS

#: First seed of the generator of the design.
SEED = 13
#: The features of the model were chosen on the configurations before this one; figures are those of the others.
FIRST_REPORTED = 150
#: Number of the first configuration that is drawn for long runs; the random design ends before.
FIRST_LONG = 300
#: Learning rates of the first stage: powers of two.
COARSE = tuple(2.0**-power for power in range(13, -1, -1))
#: Seeds of the second stage; the first stage has seed 0.
FINE_SEEDS = (1, 2, 3)
#: Learning rates of the second stage, relative to the highest that survives the first.
FINE = tuple(2.0 ** (power / 2) for power in range(-1, 4))
#: Seeds and learning rates of the runs that show how far lr* scatters between seeds.
FURTHER_SEEDS = (4, 5)
EVERY_RATE = tuple(2.0 ** (power / 2) for power in range(-26, 1))
#: Seconds of one thread per step and run: a constant, and one per (parameter x token), of runs of this code on two busy cores.
_SECONDS = (3e-3, 2.5e-10)
#: A configuration that would take longer is drawn with fewer tokens per step, down to 256.
_MOST_SECONDS = 260.0

Configuration = dict[str, Any]


def draw(number: int) -> Configuration:
    """Configuration ``number`` of the random design; families take turns, so that any beginning of the list is balanced."""
    dice = random.Random(f"{SEED}-{number}")
    family = list(FAMILIES)[number % len(FAMILIES)]
    task = dice.choices(("text", "recall"), (0.7, 0.3))[0]
    width = dice.choices((32, 48, 64, 96, 128), (0.35, 0.25, 0.2, 0.12, 0.08))[0]
    steps = dice.choice((150, 200, 300))
    optimizer = dice.choices(("adamw", "muon"), (0.8, 0.2))[0]
    configuration = {
        "family": family,
        "width": width,
        "layers": dice.choice((2, 3, 4, 6, 8)),
        "heads": dice.choice((2, 4)),
        "std": float(f"{10 ** dice.uniform(-2, -1):.3g}"),
        "task": task,
        "sequences": 32 if task == "recall" else dice.choice((8, 16, 32)),
        "length": TASKS[task].length or dice.choice((32, 64)),
        "steps": steps,
        "warmup": dice.choice((0, 20, 50, 100)),
        "schedule": dice.choice(("constant", "cosine")),
        "optimizer": optimizer,
        "beta2": dice.choice((0.95, 0.999)),
        "decay": dice.choice((0.0, 0.01, 0.1)),
        "clip": dice.choice((None, 1.0)),
        "dtype": dice.choices(("float32", "bfloat16"), (0.9, 0.1))[0],
    }
    while task == "text" and hours(configuration) * 3600 > _MOST_SECONDS and configuration["sequences"] > 8:
        configuration["sequences"] //= 2
    if task == "text" and hours(configuration) * 3600 > _MOST_SECONDS:
        configuration["length"] = 32
    return configuration


def draw_long(number: int) -> Configuration:
    """Configuration ``number`` of the long runs: 1200 steps, with four times the warm-up. None is in the random design."""
    configuration = draw(FIRST_LONG + number)
    return configuration | {"steps": 1200, "warmup": 4 * configuration["warmup"]}


def parameters(configuration: Configuration) -> float:
    """About how many weights the network has."""
    width, layers = configuration["width"], configuration["layers"]
    return 12 * layers * width**2 + (TASKS[configuration["task"]].vocabulary + configuration["length"]) * width


def hours(configuration: Configuration) -> float:
    """Predicted machine hours of one configuration, both stages."""
    runs = len(COARSE) + len(FINE) * len(FINE_SEEDS)
    tokens = configuration["sequences"] * configuration["length"]
    fixed, each = _SECONDS
    return runs * configuration["steps"] * (fixed + each * parameters(configuration) * tokens) / 3600


def main() -> None:
    """Print the design."""
    total = 0.0
    for number in range(FIRST_LONG):
        configuration = draw(number)
        total += hours(configuration)
        print(number, f"{hours(configuration):.3f}", *configuration.values())
    print(f"predicted machine hours: {total:.1f}")


if __name__ == "__main__":
    main()
