"""The fit of thresholds finds what was planted; predictions are what their definition says."""

import json
import math

import numpy
import pytest
from scipy.stats import norm

from hf_rksp.errors import InputError
from hf_rksp.risk.calibrated import SAFE, RiskModel, read_models
from hf_rksp.risk.features import FEATURES
from hf_rksp.risk.fit import Outcomes, fit
from hf_rksp.risk.plan import Plan


def planted(configurations=400, runs=12, within=0.5, between=0.8, seed=0):
    dice = numpy.random.default_rng(seed)
    x = dice.normal(size=(configurations, 3)) * [1.0, 2.0, 0.1] + [0.0, 5.0, -1.0]
    threshold = -6 + 1.5 * x[:, 0] - 0.4 * (x[:, 1] - 5) + between * dice.normal(size=configurations)
    lr = [at + dice.uniform(-3, 3, runs) for at in threshold]
    lost = [dice.random(runs) < norm.cdf((rates - at) / within) for rates, at in zip(lr, threshold, strict=True)]
    return Outcomes(x, lr, lost)


def test_what_was_planted_is_found():
    made = fit(planted(), ridge=1e-3)
    assert made.weights == pytest.approx([1.5, -0.8, 0], abs=0.15)  # per standard deviation
    assert made.log2_threshold(numpy.array([[0.0, 5.0, -1.0]]))[0] == pytest.approx(-6, abs=0.15)
    assert made.within == pytest.approx(0.5, rel=0.15) and made.between == pytest.approx(0.8, rel=0.15)
    assert made.spread == pytest.approx(math.hypot(made.within, made.between))


def test_thirty_runs_of_one_configuration_are_one_observation_of_its_threshold():
    few, many = planted(60, 6, between=1.5), planted(60, 60, between=1.5)
    assert fit(many).between == pytest.approx(1.5, rel=0.3) and fit(few).between == pytest.approx(1.5, rel=0.35)


def test_a_ridge_draws_weights_to_zero():
    data = planted(30)
    assert numpy.abs(fit(data, ridge=1e4).weights).max() < 0.1 * numpy.abs(fit(data, ridge=0.1).weights).max()


def test_rows_that_cannot_be_fitted_are_refused():
    data = planted(5)
    with pytest.raises(InputError, match="no run is lost"):
        fit(Outcomes(data.features, data.log2_lr, [numpy.zeros(12, bool)] * 5))
    with pytest.raises(InputError, match="not finite"):
        Outcomes(data.features * math.nan, data.log2_lr, data.lost)
    with pytest.raises(InputError, match="one entry per configuration"):
        Outcomes(data.features, data.log2_lr[:2], data.lost)


def model(**changes):
    data = {
        "description": ["made up"], "trained_on": {}, "features": ["near_unit_mass", "width"],
        "mean": [0.5, 6.0], "scale": [0.1, 1.0], "weights": [-1.0, -0.5], "ranges": [[0.2, 0.8], [5.0, 7.0]], "bias": -7.0,
        "spread": 1.0, "resampled": [[-1.0, -0.5, -6.7], [-1.0, -0.5, -7.3]], "per_doubling": {"width": 1.0},
        "also_ranges": {"depth": [1.0, 3.0]}, "other_architecture": 0.5,
        "trained": {"optimizer": ["adamw"], "objective": ["causal"], "start": ["initialised"], "dtype": ["float32"],
                    "architecture": ["gpt2", "llama"]},
    }  # fmt: skip
    return RiskModel.from_data(data | changes)


NUMBERS = {"near_unit_mass": 0.6, "width": 64.0, "largest_attention_logit": 1.0}


def test_a_prediction_is_its_definition():
    found = model().predict(NUMBERS, Plan())
    assert found.status == "in range" and not found.reasons
    assert found.threshold == pytest.approx(2.0**-8)  # one standard deviation more mass, at the mean width
    assert found.p_lost(2.0**-8) == pytest.approx(0.5)
    assert found.p_lost(2.0**-7) == pytest.approx(norm.cdf(1))
    assert found.p_lost(found.rate_at()) == pytest.approx(SAFE)
    low, high = found.interval(2.0**-8)
    assert low < 0.5 < high and found.interval(2.0**-8, level=0.5)[0] > low
    first = found.contributions[0]
    assert (first.key, first.factor) == ("near_unit_mass", pytest.approx(0.5))
    rates = numpy.geomspace(1e-6, 1, 50)
    assert (numpy.diff([found.p_lost(rate) for rate in rates]) > 0).all()


def test_outside_the_range_the_prediction_says_so_and_widens():
    near, far = (model().predict(NUMBERS | {"width": width}, Plan()) for width in (128.0, 1024.0))
    assert near.status == "in range" and far.status == "extrapolated"
    assert far.reasons[0] == "width: 1,024, and the runs behind the model have 32 to 128"
    assert far.uncertainty > near.uncertainty + 1
    assert far.rate_at() / far.threshold < near.rate_at() / near.threshold


@pytest.mark.parametrize(
    ("numbers", "plan", "reason"),
    [
        (NUMBERS, Plan(optimizer="sgd"), "optimizer 'sgd'"),
        (NUMBERS, Plan(objective="masked"), "objective 'masked'"),
        (NUMBERS, Plan(start="pretrained"), "start 'pretrained'"),
        (NUMBERS, Plan(dtype="float16"), "dtype 'float16'"),
        (NUMBERS | {"near_unit_mass": None}, Plan(), "near-unit mass could not be measured"),
        (NUMBERS | {"largest_attention_logit": None}, Plan(), "no attention was seen"),
    ],
)
def test_what_no_run_tells_is_not_assessable(numbers, plan, reason):
    found = model().predict(numbers, plan)
    assert found.status == "not assessable" and any(reason in text for text in found.reasons)
    assert found.threshold is found.p_lost(1e-3) is found.rate_at() is found.interval(1e-3) is None


def test_a_range_counts_where_the_model_has_no_weight():
    deep = model().predict(NUMBERS | {"depth": 96.0}, Plan())
    assert deep.status == "extrapolated" and deep.reasons == (
        "number of layers: 96, and the runs behind the model have 2 to 8",
    )


def test_what_is_no_is_named_as_such():
    muon = FEATURES["muon"]
    assert muon.named(1.0) == "Muon" and muon.named(0.0) == "AdamW" and FEATURES["width"].named(0.0) == "width"


def test_another_architecture_is_extrapolated():
    known, other = (model().predict(NUMBERS, Plan(), name) for name in ("llama", "gpt_neox"))
    assert known.status == "in range" and other.status == "extrapolated" and other.threshold == known.threshold
    assert other.uncertainty == pytest.approx(math.hypot(known.uncertainty, 0.5))
    assert other.reasons[0] == "architecture: gpt_neox, and the runs behind the model have gpt2, llama"


def test_files_of_other_versions_are_refused():
    with pytest.raises(InputError, match="version=99"):
        read_models(json.dumps({"version": 99}))
    with pytest.raises(InputError, match="'phase_of_the_moon'"):
        model(features=["phase_of_the_moon", "width"])


@pytest.mark.parametrize(
    ("values", "name"),
    [({"steps": 0}, "steps"), ({"warmup": 2000}, "warmup"), ({"beta2": 1.0}, "beta2"), ({"clip": 0.0}, "clip"),
     ({"schedule": "staircase"}, "schedule"), ({"schedule": "constant", "warmup": 5}, "warmup"),
     ({"weight_decay": -1.0}, "weight_decay"), ({"dtype": "int8"}, "dtype")],
)  # fmt: skip
def test_plans_that_no_run_can_have_are_refused(values, name):
    with pytest.raises(InputError, match=f"{name}="):
        Plan(**values)
