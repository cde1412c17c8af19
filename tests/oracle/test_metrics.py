"""The metrics for `evaluate` equal scikit-learn's, and load by their path."""

import numpy
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from hf_rksp.errors import InputError
from hf_rksp.metrics import NAMES, path_of

evaluate = pytest.importorskip("evaluate")


@pytest.fixture(scope="module")
def data():
    dice = numpy.random.default_rng(0)
    p = dice.random(400)
    return p, (dice.random(400) < p**1.5).astype(int)


@pytest.fixture(scope="module")
def metrics():
    return {name: evaluate.load(path_of(name)) for name in NAMES}


def test_auroc(metrics, data):
    p, lost = data
    found = metrics["divergence_auroc"].compute(predictions=p, references=lost, draws=300)
    assert found["auroc"] == pytest.approx(roc_auc_score(lost, p))
    low, high = found["interval"]
    assert low < found["auroc"] < high and high - low == pytest.approx(2 * 1.96 * 0.022, rel=0.3)  # Hanley and McNeil
    again = metrics["divergence_auroc"].compute(predictions=p, references=lost, draws=300)
    assert again == found
    groups = numpy.repeat(numpy.arange(20), 20)
    doubled = metrics["divergence_auroc"].compute(predictions=p, references=lost, draws=300, groups=groups)
    assert doubled["auroc"] == found["auroc"] and doubled["interval"] != found["interval"]
    assert metrics["divergence_auroc"].compute(predictions=p, references=lost, draws=0)["interval"] is None


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_error(metrics, data, equal_mass):
    p, lost = data
    found = metrics["calibration_error"].compute(predictions=p, references=lost, equal_mass=equal_mass)
    share, mean = calibration_curve(lost, p, n_bins=10, strategy="quantile" if equal_mass else "uniform")
    sizes = numpy.full(10, 40) if equal_mass else numpy.histogram(p, 10, (0, 1))[0]
    assert found["calibration_error"] == pytest.approx(float((sizes * abs(share - mean)).sum() / 400), rel=1e-6)


def test_brier_score(metrics, data):
    p, lost = data
    found = metrics["brier_score"].compute(predictions=p, references=lost)
    assert found["brier_score"] == pytest.approx(brier_score_loss(lost, p)) and 0 < found["skill"] < 1
    assert metrics["brier_score"].compute(predictions=[0.5, 0.5], references=[1, 1])["skill"] is None


def test_what_cannot_be_scored_is_refused(metrics):
    with pytest.raises(ValueError, match="at least one of each"):
        metrics["divergence_auroc"].compute(predictions=[0.1, 0.2], references=[1, 1])
    with pytest.raises(ValueError, match="groups has 1"):
        metrics["divergence_auroc"].compute(predictions=[0.1, 0.2], references=[0, 1], groups=["a"])
    with pytest.raises(ValueError, match="from 0 to 1"):
        metrics["calibration_error"].compute(predictions=[1.5], references=[1])
    with pytest.raises(InputError, match="name='f1'"):
        path_of("f1")
