"""The comparison with the paper, against numbers that are known."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from hf_rksp import profile_model
from hf_rksp.paper import PaperFigure, read_paper
from hf_rksp.report import profile_to_dict
from hf_rksp.zoo import read_shelf
from hf_rksp.zoo.pages import paper_comparison
from hf_rksp.zoo.pages.paper_comparison import (
    WHY_DIFFERENT,
    Comparison,
    PaperComparison,
    compare_with_paper,
    without_residual,
)
from hf_rksp.zoo.render import all_models

RADIUS = PaperFigure(15, "spectral_radius", 1.15, "early")
RATIO = PaperFigure(10, "nonlinearity_ratio", 0.58, "middle")
MASS = PaperFigure(17, "near_unit_mass", 0.12)


class Residual(nn.Module):
    """One block, x + x W."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x + x @ self.weight


def test_eigenvalues_without_the_residual_path_are_those_of_f():
    """f is linear here, so that its map, and what the quantities are, is known beforehand."""
    torch.manual_seed(0)
    weights = [torch.randn(8, 8, dtype=torch.float64) * scale for scale in (0.15, 0.5)]
    model = nn.Sequential(*map(Residual, weights))
    data = profile_to_dict(profile_model(model, [torch.randn(8, 40, 8).double()], blocks="", groups=0, progress=False))
    moduli = [torch.linalg.eigvals(weight).abs() for weight in weights]
    shares = {
        "near_unit_mass": lambda m: (m >= 0.9) & (m <= 1.05),
        "expansive_mass": lambda m: m > 1.05,
        "contractive_mass": lambda m: m < 0.8,
    }
    for name, inside in shares.items():
        wanted = sum(inside(m).double().mean().item() for m in moduli) / 2
        assert without_residual(data, name) == pytest.approx(wanted)
    assert without_residual(data, "spectral_radius") == pytest.approx(sum(m.max().item() for m in moduli) / 2)
    assert without_residual(data, "nonlinearity_ratio") is None
    assert 0 < without_residual(data, "contractive_mass") < 1  # else the shares above show nothing


@pytest.mark.parametrize(
    ("ours", "outcome", "verdict"),
    [
        (1.16, "agrees", "agrees"),
        (1.30, "differs", "differs: our value is 0.15 higher"),
        (0.90, "differs", "differs: our value is 0.25 lower"),
        (11.5, "differs", "differs: our value is 10 times as large"),
        (None, "not audited", "not audited yet"),
    ],
)
def test_outcome_in_words(ours, outcome, verdict):
    comparison = Comparison(RADIUS, ours, audited=ours is not None)
    assert (comparison.outcome, comparison.verdict) == (outcome, verdict)


@pytest.mark.parametrize(
    ("ours", "bias", "outcome", "verdict"),
    [
        (0.60, 0.0, "agrees", "agrees"),
        (0.60, 0.3, "too few tokens", "not comparable: with so few tokens our value may be up to 30% too low"),
        (0.50, 0.3, "too few tokens", "not comparable: with so few tokens our value may be up to 30% too low"),
        (0.30, 0.3, "differs", "differs: our value is 0.28 lower"),
        (0.90, 0.3, "differs", "differs: our value is 0.32 higher"),
        (None, 0.3, "not defined", "not defined here"),
    ],
)
def test_outcome_with_few_tokens(ours, bias, outcome, verdict):
    comparison = Comparison(RATIO, ours, bias=bias)
    assert (comparison.outcome, comparison.verdict) == (outcome, verdict)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.14, "without the skip connection the value agrees"),
        (0.20, "without the skip connection the value is closer, but still differs"),
        (0.60, "without the skip connection the value is no closer"),
    ],
)
def test_value_without_the_skip_connection_in_words(value, words):
    comparison = Comparison(MASS, 0.40, without_skip=value)
    assert comparison.verdict == f"differs: our value is 0.28 higher; {words}"
    assert Comparison(MASS, None, without_skip=value).verdict == "not defined here"


def test_only_values_that_can_be_compared_count():
    values = (0.60, 0.30, None)
    comparisons = [Comparison(RATIO, value) for value in values] + [Comparison(RATIO, 0.60, bias=0.3)]
    whole = PaperComparison(read_paper().models["llama-2-7b"], tuple(comparisons), "", False)
    assert (whole.agreeing, whole.comparable, whole.score) == (1, 2, "1 of 2 values agrees")
    assert replace(whole, comparisons=()).score == "0 of 0 values agree"


def test_every_number_of_the_comparison_is_one_of_the_data_file(zoo, monkeypatch):
    """Another number in the file is another number on the page."""
    entry = read_shelf(zoo, all_models(zoo)).entries[0]
    paper = read_paper()
    model = paper.models["gpt2-124m"]
    printed = [row[2] for row in compare_with_paper(entry).table().rows]
    assert printed == [f"{figure.value:g}" for figure in model.figures] and len(printed) == 12
    raised = replace(model, figures=tuple(replace(figure, value=figure.value + 1) for figure in model.figures))
    other = replace(paper, models={"gpt2-124m": raised})
    monkeypatch.setattr(paper_comparison, "read_paper", lambda: other)
    assert [row[2] for row in compare_with_paper(entry).table().rows] == [f"{f.value:g}" for f in raised.figures]


def test_every_model_of_the_paper_says_why_values_may_differ():
    assert set(WHY_DIFFERENT) == set(read_paper().models) and all(WHY_DIFFERENT.values())


def test_the_column_without_the_skip_connection_is_for_models_that_may_lack_it():
    models = read_paper().models
    columns = {key: PaperComparison(model, (), "", False).table().columns for key, model in models.items()}
    assert [key for key, names in columns.items() if len(names) == 6] == ["mamba-d256"]


def test_how_much_too_low_our_value_may_be(zoo):
    entry = next(entry for entry in read_shelf(zoo, all_models(zoo)).entries if entry.model.id == "tiny-gpt2-init")

    def bias(tokens, per_direction):
        report = json.loads(json.dumps(entry.report))
        report["profile"]["layers"][0]["tokens"] = tokens
        next(check for check in report["verdict"]["checks"] if check["id"] == "tokens_per_direction")["value"] = (
            per_direction
        )
        return paper_comparison._token_bias(replace(entry, reports={1: report}))

    assert bias(8192, 1.1) == 0.0
    assert bias(2048, 8.0) == paper_comparison.TOKEN_BIAS  # the fit explains .06, repeated tokens the rest
    assert bias(2048, 1.25) == pytest.approx(1 - 0.2**0.5)
