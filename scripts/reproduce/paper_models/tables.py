"""The tables of README.md from the rows of a results file. Intervals are 95%."""

from __future__ import annotations

import math
from typing import Any

from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of
from scripts.reproduce.harness.intervals import Estimate, mean, paired, share
from scripts.reproduce.harness.markdown import table
from scripts.reproduce.kss_default.tables import GUESSING

Row = dict[str, Any]
#: Share of right images of a network that guesses.
CHANCE = 0.1
#: Mean over the blocks; the paper has them in Tables 11 and 16 to 18.
QUANTITIES = ("nonlinearity_ratio", "near_unit_mass", "contractive_mass", "spectral_radius", "reliable_fraction")


def is_vit(model: str) -> bool:
    """Whether a model of config.yaml learns images."""
    return model.startswith("ViT")


def final(row: Row) -> float:
    """Loss on held-out data; a lost run counts as guessing (images), or as knowing how often each byte occurs (text)."""
    guessing = math.log(10) if is_vit(row["model"]) else GUESSING["text-preln"]
    return guessing if row["lost"] is not None else min(float(row["held_out"]), guessing)


def difference(runs: dict[int, Row], control: dict[int, Row]) -> Estimate:
    """`final` minus that of the control, paired by seed."""
    return paired(*({seed: final(row) for seed, row in each.items()} for each in (runs, control)))


def cells_of(rows: list[Row]) -> dict[tuple[str, float], dict[str, dict[int, Row]]]:
    """Model and learning rate -> arm -> seed -> row."""
    cells: dict[tuple[str, float], dict[str, dict[int, Row]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["lr"]), {}).setdefault(row["arm"], {})[row["seed"]] = row
    return cells


def tables(rows: list[Row], settings: dict[str, Any]) -> str:
    """Runs lost and what was learnt, seed by seed against clipping; then the spectra before and after."""
    lines, spectra = [], []
    for (model, lr), arms in cells_of(rows).items():
        for arm, runs in arms.items():
            count = sum(row["lost"] is not None for row in runs.values())
            ended = [row for row in runs.values() if row["lost"] is None]
            beside = difference(runs, arms.get("clip", {}))
            right = _accuracies(runs)
            more = paired(right, _accuracies(arms.get("clip", {})))
            lines.append(
                [
                    model, f"{lr:g}", arm, f"{count} of {len(runs)} {share(count, len(runs)).text(2)}",
                    mean(list(map(final, runs.values()))).text(),
                    beside.text() if arm != "clip" and beside.count > 1 else "-",
                    mean(list(right.values())).text() if right else "-",
                    more.text() if arm != "clip" and more.count > 1 else "-", _left_out(runs),
                ]
            )  # fmt: skip
            for place, when in ((0, "before"), (1, "after")):
                found = [each for row in ended if (each := row["spectra"][place]) is not None]
                if found and (when == "after" or arm == "clip"):
                    means = [form_of(LAYER[name])(sum(one[name] for one in found) / len(found)) for name in QUANTITIES]
                    spectra.append([model, f"{lr:g}", "-" if when == "before" else arm, when, *means])
    heads = [
        "model", "learning rate", "arm", "lost", "held-out loss", "minus clipping", "accuracy", "minus clipping", "KSS left out",
    ]  # fmt: skip
    titles = [LAYER[name].title for name in QUANTITIES]
    text = [*table(heads, lines), "", "Mean over the blocks of the runs that end:", ""]
    return "\n".join([*text, *table(["model", "learning rate", "arm", "training", *titles], spectra)]) + "\n"


def _accuracies(runs: dict[int, Row]) -> dict[int, float]:
    """Share of the held-out images that is right, by seed; a lost run counts as guessing. Text has none."""
    images = {seed: row for seed, row in runs.items() if is_vit(row["model"])}
    return {seed: CHANCE if row["lost"] is not None else row["accuracy"] for seed, row in images.items()}


def _left_out(runs: dict[int, Row]) -> str:
    """Layers and terms that KSS did not act on, over all runs."""
    return str(sum(row["skipped"] + row["dropped"] for row in runs.values() if "skipped" in row))
