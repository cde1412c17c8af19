"""Forecasts of the zoo: made once, each by the command that its page shows, or a reason why there is none."""

import json

import pytest

from hf_rksp.cli.main import main
from hf_rksp.errors import InputError, SchemaError
from hf_rksp.zoo import RunnerOptions, read_manifest, render_zoo, risks, run_forecasts
from hf_rksp.zoo.shelf import read_risk
from tests.zoo.conftest import model
from tests.zoo.test_render import copied

TRAINING = ["--lr", "1e-3", "--steps", "200", "--measured", "2"]


@pytest.fixture(scope="module")
def forecast(zoo, tmp_path_factory):
    """A zoo with a forecast of its first model, what the command printed, and its manifest."""
    folder = copied(zoo, tmp_path_factory.mktemp("risks"), ["*/*.json"])
    manifest = folder / "manifests" / "tiny.json"
    models = json.loads(manifest.read_text())["models"]
    models[0] |= {"training": TRAINING, "trained_by": "It was trained at 1e-3 for this test."}
    manifest.write_text(json.dumps({"models": models}))
    work = ["--work", str(folder.parent / "risk-work"), "--folder", str(folder), "--quiet"]
    assert main(["zoo", "risk", str(manifest), "--only", "tiny-gpt2-init", *work]) == 0
    render_zoo(folder)
    return folder, manifest, work


def test_the_page_shows_the_curve_and_the_rate_of_the_training(forecast):
    folder, *_ = forecast
    data = json.loads((folder / "tiny-gpt2-init" / "risk.json").read_text())
    assert data["command"].startswith("rksp risk --init gpt2") and data["command"].endswith("--measured 2 --seed 1")
    assert data["lr"] == 1e-3 and 0 < data["p_lost"] < 1 and data["device"] == "cpu"
    text = (folder / "tiny-gpt2-init" / "report.md").read_text()
    assert "It was trained at 1e-3 for this test." in text and "](figures/p-lost.svg)" in text
    assert "planned 0.001" in (folder / "tiny-gpt2-init" / "figures" / "p-lost.svg").read_text()
    page = (folder / "tiny-gpt2-init" / "report.html").read_text()
    assert 'href="#risk"' in page and "planned 0.001" in page and ".fig .risk{" in page


def test_the_command_of_the_page_gives_the_same(forecast, tmp_path):
    folder, manifest, _ = forecast
    command = read_manifest(manifest).models[0].risk_arguments()
    assert main(["risk", *command, "--quiet", "--json", str(tmp_path / "r.json")]) == 0
    stored = read_risk(folder, read_manifest(manifest).models[0])
    assert json.loads((tmp_path / "r.json").read_text())["p_lost"] == pytest.approx(stored["p_lost"], rel=1e-4)


def test_a_forecast_is_made_once_and_again_if_the_command_changes(forecast, capsys):
    folder, manifest, work = forecast
    capsys.readouterr()
    assert main(["zoo", "risk", str(manifest), "--only", "tiny-gpt2-init", *work]) == 0
    assert capsys.readouterr().out == "0 forecasts made, 0 models not measured, 0 failed\n"
    called = []
    changed = json.loads(manifest.read_text())
    changed["models"][0]["training"] = ["--lr", "1e-2"]
    other = folder / "manifests" / "other.json"
    other.write_text(json.dumps({"models": changed["models"][:1]}))
    found = run_forecasts(read_manifest(other), RunnerOptions(folder, quiet=True), ["false"], say=called.append)
    other.unlink()
    assert found.failed == 1 and "--lr 1e-2" in called[0] and "failed" in called[1]
    assert read_risk(folder, read_manifest(manifest).models[0])["lr"] == 1e-3, "what is there stays there"


def test_what_is_not_measured_says_why(forecast, capsys):
    folder, manifest, work = forecast
    small = read_manifest(manifest).models[0]
    options = RunnerOptions(folder, memory_cap_gib=1e-5)
    assert "the machine had 0 GiB" in risks.why_not(small, options)
    assert risks.why_not(small, RunnerOptions(folder)) is None
    path = folder / "manifests" / "vision.json"
    path.write_text(json.dumps({"models": [model(id="v", arguments=["--init", "vit-base", "--images", "x"])]}))
    capsys.readouterr()
    assert main(["zoo", "risk", str(path), *work]) == 0
    assert "0 forecasts made, 1 models not measured" in capsys.readouterr().out
    assert "sees images" in read_risk(folder, read_manifest(path).models[0])["reasons"][0]
    path.unlink()


def test_options_of_the_audit_alone_are_left_out(tmp_path):
    arguments = [
        "--init",
        "llama-2-7b",
        "--stream",
        "--dtype",
        "bfloat16",
        "--groups=0",
        "--tokens",
        "64",
        "--seq-len",
        "48",
    ]
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [model(arguments=arguments)]}))
    (found,) = read_manifest(path).models
    assert found.risk_command() == "rksp risk --init llama-2-7b --seq-len 48 --find-lr --seed 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": "--lr 1"}, "training='--lr 1': pass arguments of `rksp risk` as a list"),
        ({"training": ["--lr", "1e-3"]}, "it needs --lr, and trained_by"),
        ({"training": ["--steps", "5"], "trained_by": "x"}, "it needs --lr, and trained_by"),
    ],
)
def test_a_training_needs_its_learning_rate_and_its_source(tmp_path, changes, message):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"models": [model() | changes]}))
    with pytest.raises(InputError, match=message):
        read_manifest(path)


def test_a_file_that_is_no_forecast(forecast, tmp_path):
    _, manifest, _ = forecast
    first = read_manifest(manifest).models[0]
    (tmp_path / first.id).mkdir()
    (tmp_path / first.id / "risk.json").write_text("{}")
    with pytest.raises(SchemaError, match="run `rksp zoo risk` again"):
        read_risk(tmp_path, first)
