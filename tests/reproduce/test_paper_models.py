"""paper_models: what a lost run counts as, and that the gradient of KSS loses none."""

import math

import pytest
import torch
import yaml

from hf_rksp import SpectralShaper
from scripts.reproduce.harness.cli import ROOT
from scripts.reproduce.paper_models import experiment
from scripts.reproduce.paper_models.figure import picture
from scripts.reproduce.paper_models.tables import difference, final, tables

SETTINGS = yaml.safe_load((ROOT / "paper_models/config.yaml").read_text(encoding="utf-8"))["settings"]
SPECTRA = [dict.fromkeys(("nonlinearity_ratio", "near_unit_mass", "contractive_mass", "spectral_radius"), 0.5)] * 2
SPECTRA = [found | {"reliable_fraction": 1.0} for found in SPECTRA]


def row(model, arm, seed, held_out):
    return {
        "model": model, "arm": arm, "seed": seed, "lr": 0.01, "lost": None if held_out else 7, "held_out": held_out,
        "accuracy": None, "spectra": SPECTRA if held_out else SPECTRA[:1],
    }  # fmt: skip


def passages(images, draw, settings, held_out=False):
    ids = torch.randint(256, (4, 16), generator=draw)
    return {"input_ids": ids, "labels": ids}


def test_a_lost_run_counts_as_guessing():
    assert final(row("ViT, Pre-LN", "clip", 0, None)) == math.log(10)
    assert final(row("GPT-2", "clip", 0, None)) == pytest.approx(3.192)
    runs = {0: row("GPT-2", "paper + clip", 0, 2.0), 1: row("GPT-2", "paper + clip", 1, None)}
    control = {0: row("GPT-2", "clip", 0, 2.5), 1: row("GPT-2", "clip", 1, 2.5)}
    assert difference(runs, control).value == pytest.approx((-0.5 + 0.692) / 2)
    lines = tables([*control.values(), *runs.values()], SETTINGS).splitlines()
    assert "| GPT-2 | 0.01 | paper + clip | 1 of 2 " in lines[3] and "0.096" in lines[3]


def test_accuracies_are_compared_by_seed_and_a_lost_run_guesses():
    runs = [row("ViT, Pre-LN", arm, seed, 1.5) | {"accuracy": right} for arm, seed, right in
            (("clip", 0, 0.4), ("clip", 1, 0.5), ("paper + clip", 0, 0.6))]  # fmt: skip
    runs.append(row("ViT, Pre-LN", "paper + clip", 1, None) | {"spectra": [None]})
    lines = [line.split(" | ") for line in tables(runs, SETTINGS).splitlines()[2:4]]
    assert lines[0][6].startswith("0.450") and lines[0][7] == "-"
    assert lines[1][6].startswith("0.350") and lines[1][7].startswith("-0.100")


def test_the_picture_has_the_models_with_both_forms_of_kss():
    runs = [row("GPT-2", arm, seed, 1.0 + seed + more) for arm, more in (("clip", 0), ("paper + clip", 0.5), ("kss + clip", -0.25))
            for seed in (0, 1)]  # fmt: skip
    made = picture([*runs, *[row("Mamba", arm, 0, 2.0) for arm in ("clip", "paper + clip")]])
    assert made.alt.startswith("GPT-2, 0.01: ") and "Mamba" not in made.alt
    assert "paper, and clipping 0.5, " in made.alt and made.alt.endswith("our default, and clipping -0.25")


def test_states_that_do_not_vary_have_no_spectrum(monkeypatch):
    model = experiment.network(SETTINGS["models"]["GPT-2"], 16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    batch = {"input_ids": torch.zeros(2, 16, dtype=torch.long)}
    assert experiment.spectrum(model, batch) is None


def test_a_run_is_not_lost_by_the_gradient_of_kss(monkeypatch):
    monkeypatch.setattr(experiment, "MOST_NORM", 20.0)  # as if the term of KSS were that much larger
    monkeypatch.setattr(experiment, "task_gradient_norm", lambda model, batch: 3.0)
    monkeypatch.setattr(experiment, "_batch", passages)
    settings = SETTINGS | {"steps": 3, "length": 16, "fewer_steps": {}}
    found = experiment.run({"model": "GPT-2", "arm": "paper + clip", "lr": 1e-3, "seed": 0}, settings)
    assert found["lost"] is None and found["largest_gradient_norm"] == 3.0 and len(found["spectra"]) == 2
    assert found["skipped"] == found["dropped"] == 0
    monkeypatch.setattr(SpectralShaper, "dropped", 3)
    settings |= {"steps": 1}
    assert experiment.run({"model": "GPT-2", "arm": "paper + clip", "lr": 1e-3, "seed": 0}, settings)["dropped"] == 3
