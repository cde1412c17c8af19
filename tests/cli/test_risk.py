"""rksp risk: the answer on the terminal, as JSON and as a page; exit codes; what is refused before any work."""

import json

import pytest
import torch

from hf_rksp.cli import exit_codes, main
from hf_rksp.cli import risk as cli_risk
from hf_rksp.forecast import Forecast, _masked
from hf_rksp.report.risk.curve import figure
from hf_rksp.report.risk.page import sentences
from hf_rksp.risk.calibrated import NO_ANSWER, NO_RATE, Prediction, names_rate
from hf_rksp.risk.plan import Plan

from .conftest import TINY

SMALL = ["--init", "gpt2", "--config-overrides", TINY, "--measured", "2", "--seq-len", "16", "--quiet"]


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """What one measurement gives: the JSON and the page."""
    folder = tmp_path_factory.mktemp("risk")
    code = main.main(
        ["risk", *SMALL, "--lr", "3e-3", "--json", str(folder / "risk.json"), "--out", str(folder / "risk.html")]
    )
    assert code == exit_codes.OK
    return json.loads((folder / "risk.json").read_text()), (folder / "risk.html").read_text()


def test_the_json_has_the_answer_and_what_it_rests_on(answer):
    data, _ = answer
    assert data["status"] in ("in range", "extrapolated") and data["lr"] == 3e-3
    low, high = data["p_lost_interval"]
    assert 0 <= low <= data["p_lost"] <= high <= 1 or data["status"] == "extrapolated"
    assert 0 < data["lr_max"] < data["lr_half"]
    assert data["features"]["depth"] == 2 and data["features"]["critical_lr"] is not None
    assert data["plan"]["objective"] == "causal" and data["plan"]["start"] == "initialised"
    probabilities = [point[1] for point in data["curve"]]
    assert probabilities == sorted(probabilities) and probabilities[0] < 0.02 < 0.98 < probabilities[-1]
    assert {one["feature"] for one in data["contributions"]} >= {"near_unit_mass_max", "coordinate_lr"}


def test_the_page_shows_the_same(answer):
    data, page = answer
    assert f"learning rate 0.003 is lost with probability {data['p_lost']:.0%}" in page
    assert "planned 0.003" in page and "one step raises the loss" in page and "<script src" not in page


def test_find_lr_and_the_exit_code_for_ci(rksp):
    code, out, _ = rksp("risk", *SMALL, "--find-lr")
    assert code == 0 and "highest learning rate with P(lost) below 5%" in out and "P(lost) at" not in out
    code, out, _ = rksp("risk", *SMALL, "--lr", "50", "--fail-above", "0.2")
    assert code == exit_codes.LIKELY_LOST == 4 and "above 99%" in out


def test_a_rate_that_is_not_known_is_no_recommendation(answer):
    data, _ = answer
    wide = [[rate, p, 0.0, 1.0] for rate, p, *_ in data["curve"]]
    assert NO_RATE not in sentences(data) and data["names_rate"]
    words = sentences(data | {"curve": wide})
    assert NO_RATE in words and not any("below 5%" in one for one in words)
    half = {"p_lost_interval": [0.2, 0.9]}
    assert NO_ANSWER in sentences(data | half | {"curve": wide}) and NO_ANSWER not in sentences(data | half)
    assert "5% at" in figure(data).body and "5% at" not in figure(data | {"curve": wide}).body
    for uncertainty, said in ((0.5, False), (2.0, True)):
        found = Forecast({}, Plan(), None, {}, Prediction("extrapolated", (), 1e-3, 1.0, uncertainty, ()))
        assert (NO_RATE in (text := cli_risk.answer(found, None))) == said != ("below 5%" in text)
        assert cli_risk.as_json(found, 1e-3)["decides"] != said and not cli_risk.as_json(found, None)["decides"]
        assert names_rate(cli_risk.as_json(found, None)["curve"]) == cli_risk.as_json(found, None)["names_rate"] != said


def test_what_no_run_tells_is_said_before_anything_is_measured(rksp, monkeypatch):
    monkeypatch.setattr("hf_rksp.forecast.prepare", None)
    code, out, _ = rksp("risk", *SMALL, "--lr", "1e-3", "--optimizer", "adafactor")
    assert code == 0 and "not assessable" in out and "optimizer 'adafactor'" in out
    code, out, _ = rksp("risk", *SMALL, "--lr", "1e-3", "--optimizer", "adafactor", "--fail-above", "0.9")
    assert code == exit_codes.LIKELY_LOST, "what cannot be assessed passes no gate"


@pytest.mark.parametrize(
    ("lr", "uncertainty", "passes"), [(1e-5, 0.5, True), (1e-5, 4.0, True), (1.0, 0.5, False), (2e-4, 2.5, False)]
)
def test_only_a_probability_that_is_known_passes_a_gate(lr, uncertainty, passes):
    prediction = Prediction("extrapolated", (), 1e-3, 1.0, uncertainty, ())
    assert cli_risk._known_to_be_below(prediction, lr, 0.2) == passes
    assert not cli_risk._known_to_be_below(Prediction("not assessable", (), None, 1.0, 0.5, ()), lr, 0.2)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "lr: pass"),
        (["--lr", "0"], "lr=0.0"),
        (["--lr", "nan"], "lr=nan"),
        (["--find-lr", "--fail-above", "0.1"], "fail_above=0.1"),
        (["--lr", "1", "--steps", "0"], "steps=0"),
        (["--lr", "1", "--warmup", "2000"], "warmup=2000"),
        (["--lr", "1", "--lr-schedule", "staircase"], "schedule='staircase'"),
        (["--lr", "1", "--measured", "0"], "measured=0"),
    ],
)
def test_bad_input_is_refused_before_any_work(rksp, monkeypatch, more, name):
    monkeypatch.setattr("hf_rksp.forecast.prepare", None)
    code, out, err = rksp("risk", *SMALL, *more)
    assert code == exit_codes.BAD_INPUT and name in err and not out


def test_a_masked_objective_needs_a_mask_token(rksp, monkeypatch):
    bert = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64,vocab_size=300,max_position_embeddings=64"
    monkeypatch.setattr("hf_rksp.risk.calibrated.RiskModel.refusals", lambda self, plan, architecture=None: [])
    code, _, err = rksp("risk", "--init", "bert-base", "--config-overrides", bert, *SMALL[4:], "--lr", "1e-3")
    assert code == exit_codes.BAD_INPUT and "no mask token" in err and "--objective causal" in err


def test_a_classifier_needs_labels(rksp, tmp_path):
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2ForSequenceClassification"],
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = rksp("risk", "--init", tmp_path / "config.json", "--lr", "1e-3")
    assert code == exit_codes.BAD_INPUT and "needs labelled data" in err and "--labels COLUMN" in err


def test_masked_batches_ask_for_what_they_hide():
    ids = torch.arange(4, 404).reshape(4, 100)
    batch = _masked({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 3, 0)
    hidden = batch["input_ids"] == 3
    assert 0.08 < hidden.float().mean() < 0.22 and hidden.any(1).all()
    assert torch.equal(batch["labels"][hidden], ids[hidden]) and (batch["labels"][~hidden] == -100).all()
    assert torch.equal(batch["input_ids"][~hidden], ids[~hidden])


def test_an_adapter_is_measured_as_it_would_be_trained(rksp, adapter):
    fast = ["--measured", "2", "--seq-len", "16", "--steps", "150", "--quiet", "--json", "-"]
    code, out, err = rksp("risk", adapter, "--lr", "1e-3", *fast)
    assert code == 0, err
    data = json.loads(out)
    assert data["reasons"] == [] or data["status"] == "extrapolated", data["reasons"]
    assert data["plan"]["start"] == "pretrained" and data["features"]["lora"] == 1 and data["p_lost"] is not None
    code, _, err = rksp("risk", adapter, "--lr", "1e-3", "--objective", "masked", *fast)
    assert code != 0 and "task_type='CAUSAL_LM'" in err
