"""The doctor on lost runs: the first sign, the last healthy checkpoint, files that are broken, and no code that is run."""

import json
import math
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from hf_rksp import diagnose
from hf_rksp.cli.main import main
from hf_rksp.doctor.log import read_log
from hf_rksp.doctor.mark import Mark, files_in, write_mark
from hf_rksp.doctor.signs import signs_in, signs_of
from hf_rksp.doctor.state import LoggedRun, series_of
from hf_rksp.errors import InputError, SchemaError
from tests.browser.histories import run, write

STEPS = 400


def healthy(seed=0):
    """Loss and gradient norm of each step."""
    dice = random.Random(seed)
    loss = [2 + 2 * math.exp(-step / 80) + dice.gauss(0, 0.02) for step in range(STEPS)]
    return loss, [math.exp(dice.gauss(0, 0.2)) for _ in range(STEPS)]


def state(folder, loss, norm, step=STEPS, lr=None, **more):
    """A trainer_state.json with a line per step; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rate = lr or (lambda step: 1e-3 * min(1, step / 50))
    rows = [
        {"epoch": at / STEPS, "step": at, "loss": loss[at - 1], "grad_norm": norm[at - 1], "learning_rate": rate(at)}
        for at in range(1, step + 1)
    ]
    data = {"log_history": rows, "global_step": step, "max_steps": 2 * STEPS, "logging_steps": 1} | more
    (folder / "trainer_state.json").write_text(json.dumps(data))
    return folder


def checkpoint(run, step, loss, norm, bad=None, moments=True, second=1.0):
    """A checkpoint; ``bad`` is put into one number of its weights."""
    folder = state(run / f"checkpoint-{step}", loss, norm, step)
    torch.manual_seed(step)
    weights = {f"h.{place}.weight": torch.randn(4, 6) for place in range(3)} | {"ids": torch.arange(5)}
    if bad is not None:
        weights["h.1.weight"][2, 3] = bad
    save_file(weights, folder / "model.safetensors")
    if moments:
        parts = {
            place: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
            for place in range(2)
        }
        parts[1]["exp_avg_sq"][0] = second
        torch.save({"state": parts, "param_groups": [{"lr": 1e-3}]}, folder / "optimizer.pt")
    return folder


def whats(found):
    return [sign.what for sign in found.log.signs]


def test_a_healthy_run_has_no_sign(tmp_path):
    for seed in range(8):
        loss, norm = healthy(seed)
        for step in (200, 400):
            checkpoint(tmp_path / str(seed), step, loss, norm)
        found = diagnose(tmp_path / str(seed))
        assert found.log.signs == () and found.advice == ()
        assert found.healthy.step == 400 and [found.verdict(one) for one in found.checkpoints] == ["healthy"] * 2


def test_a_divergence(tmp_path):
    loss, norm = healthy()
    norm[240:] = [30 * value for value in norm[240:]]
    loss[260:] = [value + 3 for value in loss[260:]]
    for step in (100, 200, 300, 400):
        checkpoint(tmp_path, step, loss, norm)
    found = diagnose(tmp_path)
    assert whats(found) == ["gradient norm leaves its past", "divergence"]
    assert 239 <= found.log.signs[0].step <= 243 and 250 <= found.log.breaks_at <= 261
    assert found.healthy.step == 200
    assert [found.verdict(one) for one in found.checkpoints[2:]] == ["finite, saved after the run broke"] * 2
    assert "checkpoint-200" in found.advice[0] and any(
        "rksp risk" in line and "--lr 0.0005" in line for line in found.advice
    )


def test_a_spike_that_came_back_breaks_nothing(tmp_path):
    loss, norm = healthy()
    loss[250:260] = [9.0] * 10
    checkpoint(tmp_path, 300, loss, norm)
    found = diagnose(tmp_path)
    assert whats(found) == ["spike"] and found.healthy.step == 300


@pytest.mark.parametrize("rising", [True, False])
def test_the_learning_rate_of_the_first_sign(tmp_path, rising):
    loss, norm = healthy()
    at = 40 if rising else 240
    loss[at:] = [60.0] * (STEPS - at)
    found = diagnose(state(tmp_path, loss, norm) / "trainer_state.json")
    assert "loss above 50" in whats(found)
    assert any(
        ("still rising" in line and "longer warm-up" in line) == rising for line in found.advice if "rksp risk" in line
    )


def test_what_a_filter_of_the_log_hides(tmp_path):
    """Trainer logs a mean for a loss that is not finite; the gradient norm of the same line says so."""
    loss, norm = healthy()
    norm[300:] = [math.nan] * 100
    loss[320:] = [0.0] * 80
    found = diagnose(state(tmp_path, loss, norm) / "trainer_state.json")
    assert whats(found) == ["not finite"] and found.log.breaks_at == 301
    assert "shows a loss of 0 there" in found.log.signs[0].text
    assert any("logging_nan_inf_filter=False" in line for line in found.advice)


def test_single_steps_that_a_scaler_skips_are_no_break(tmp_path):
    loss, norm = healthy()
    norm[10] = norm[200] = math.inf
    found = diagnose(state(tmp_path, loss, norm) / "trainer_state.json")
    assert whats(found) == ["not finite for a while"] and found.log.breaks_at is None and found.advice == ()


def test_a_loss_that_only_rises(tmp_path):
    dice = random.Random(0)
    loss = [4.0] + [dice.uniform(20, 400) for _ in range(STEPS - 1)]
    found = diagnose(state(tmp_path, loss, healthy()[1]) / "trainer_state.json")
    assert "divergence" in whats(found) and found.log.breaks_at == 1


@pytest.mark.parametrize(("bad", "second"), [(math.nan, 1.0), (math.inf, 1.0), (None, -1.0), (None, math.nan)])
def test_numbers_of_a_checkpoint(tmp_path, bad, second):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    checkpoint(tmp_path, 200, loss, norm, bad, second=second)
    found = diagnose(tmp_path)
    assert found.healthy.step == 100 and found.log.signs == ()
    part = found.checkpoints[1].weights if bad is not None else found.checkpoints[1].moments
    assert part.kind == "not finite" and [(one.bad, one.name) for one in part.broken] == [
        (1, "h.1.weight" if bad is not None else "exp_avg_sq of parameter 1")
    ]
    assert "not finite" in found.verdict(found.checkpoints[1]) and found.advice


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_costs_its_checkpoint_alone(tmp_path, name, share):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    file = checkpoint(tmp_path, 200, loss, norm) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    found = diagnose(tmp_path)
    if name == "trainer_state.json":
        assert found.log.run.step == 100 and "half-written" in found.log.notes[0]
    else:
        assert found.healthy.step == 100 and "unreadable" in found.verdict(found.checkpoints[1])


def test_shards_and_names_that_lead_out(tmp_path):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm)
    os.rename(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (found,) = diagnose(tmp_path).checkpoints
    assert found.weights.kind == "unreadable" and "model-00002-of-00002.safetensors is missing" in found.weights.note
    save_file({"secret": torch.ones(3)}, tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    (found,) = diagnose(tmp_path).checkpoints
    assert found.weights.kind == "unreadable" and found.weights.number == 0
    (folder / "model.safetensors.index.json").write_text("[1]")
    assert diagnose(tmp_path).checkpoints[0].weights.kind == "unreadable"


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "pytorch_model.bin", "training_args.bin", "scheduler.pt", "rng_state.pth"]
)
def test_no_code_in_a_file_is_run(tmp_path, name):
    loss, norm = healthy()
    folder = checkpoint(tmp_path / "run", 100, loss, norm, moments=False)
    mark = tmp_path / "done"
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    torch.save({"state": Evil(str(mark))}, folder / name)
    found = diagnose(tmp_path / "run").checkpoints[0]
    assert not mark.exists()
    if name in ("optimizer.pt", "pytorch_model.bin"):
        part = found.moments if name == "optimizer.pt" else found.weights
        assert part.kind == "unreadable" and "objects of Python" in part.note
    (folder / name).write_bytes(pickle.dumps(Evil(str(mark))))
    diagnose(tmp_path / "run")
    assert not mark.exists()


def test_pieces_of_several_processes_are_not_read(tmp_path):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm, moments=False)
    (folder / "model.safetensors").unlink()
    (folder / "global_step100").mkdir()
    found = diagnose(tmp_path)
    assert found.checkpoints[0].weights.kind == found.checkpoints[0].moments.kind == "not read"
    assert "zero_to_fp32.py" in found.checkpoints[0].weights.note and found.healthy is None


def test_an_adapter_and_a_checkpoint_alone(tmp_path):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm)
    os.rename(folder / "model.safetensors", folder / "adapter_model.safetensors")
    found = diagnose(folder)
    assert [one.step for one in found.checkpoints] == [100] and found.healthy is not None
    assert found.log.run.step == 100


def test_alarms_of_a_history_are_signs(tmp_path):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    alarm = {
        "kind": "event",
        "step": 70,
        "by": "alignment",
        "what": "alarm",
        "rule": "alignment",
        "text": "All on one side.",
    }
    rows = [{"kind": "run", "schema_version": 2, "model": {}, "setup": {}}, alarm, alarm | {"step": 80}]
    write(tmp_path, rows)
    (sign,) = diagnose(tmp_path).log.signs
    assert (sign.step, sign.by, sign.what) == (70, "alignment", "alarm: alignment")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"log_history": 3}', '{"log_history": [1, null, {"step": "x"}]}', "\x00"]
)
def test_a_state_that_is_none(tmp_path, text):
    file = tmp_path / "trainer_state.json"
    file.write_text(text)
    if "null" in text:
        assert diagnose(file).log.signs == ()
    else:
        with pytest.raises(SchemaError, match=r"trainer_state\.json"):
            diagnose(file)


def test_numbers_as_text_and_rows_that_were_made_again(tmp_path):
    rows = [
        {"step": 1, "loss": "3.5"},
        {"step": 2, "loss": "nan"},
        {"step": 2, "loss": "3.0"},
        {"step": 3, "loss": None, "note": "x"},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    log = read_log(tmp_path)
    assert list(log.run.of("loss")) == [(1, 3.5), (2, 3.0), (3, None)] and log.run.step == 3


def test_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="output_dir of a run"):
            diagnose(path)


def test_the_command(tmp_path, capsys):
    loss, norm = healthy()
    loss[260:] = [value + 3 for value in loss[260:]]
    checkpoint(tmp_path, 200, loss, norm)
    checkpoint(tmp_path, 300, loss, norm, math.nan)
    assert main(["doctor", str(tmp_path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.index("Signs, the first one first") < out.index("verdict") < out.index("What to try")
    assert f"Last healthy checkpoint: {tmp_path / 'checkpoint-200'}" in out
    assert "h.1.weight has 1 of 24 numbers that are not finite" in out
    assert main(["doctor", str(tmp_path), "--json", "-", "--quiet"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["healthy"].endswith("checkpoint-200") and data["signs"][0]["what"] == "divergence"
    assert data["checkpoints"][1]["weights"]["not_finite"] == [{"name": "h.1.weight", "numbers": 1, "of": 24}]
    assert data["broken"] and main(["doctor", str(tmp_path), "--fail-if-broken", "--quiet"]) == 5
    assert main(["doctor", str(checkpoint(tmp_path / "other", 100, loss, norm)), "--fail-if-broken", "--quiet"]) == 0
    assert main(["doctor", str(tmp_path / "missing")]) == 2


def test_the_first_words_need_no_torch(tmp_path):
    state(tmp_path, *healthy())
    code = (
        "import sys; from hf_rksp.doctor.log import read_log; from pathlib import Path; read_log(Path(sys.argv[1])); "
    )
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def curves(seed):
    """Losses and gradient norms of healthy runs of many kinds."""
    dice = numpy.random.default_rng(seed)
    steps = numpy.arange(500)
    fall = numpy.exp(-steps / 60)
    noise = dice.normal(0, 1, 500)
    norm = numpy.exp(dice.normal(0, 0.3, 500))
    kinds = {
        "pretraining": 2 + 8 * fall + 0.03 * noise,
        "one sequence a step": (1.1 + 0.3 * fall) * numpy.exp(0.35 * noise),
        "near zero": 0.012 * numpy.exp(0.8 * noise) + 0.5 * fall,
        "overfit": 2 * fall * numpy.exp(0.3 * noise),
        "rounded to zero": numpy.round(2 * fall * numpy.exp(0.3 * noise), 4),
        "heavy tail": dice.exponential(0.25 + 0.45 * fall),
        "warm restarts": 2.3 + 1.5 * fall - 0.35 * (steps % 100) / 100 + 0.02 * noise,
        "policy gradient": -0.02 + 0.03 * noise,
        "from zero": numpy.maximum(0, 4e-4 * steps / 500 * numpy.exp(0.4 * noise)),
        "contrastive": -0.9 + 0.01 * noise,
        "elbo": 80 * fall - 3 + 0.2 * noise,
        "preferences": 0.69 * numpy.exp(-steps / 200) * numpy.exp(0.9 * noise),
        "slow rise": 2 + 2 * fall + 1e-4 * steps + 0.03 * noise,
        "curriculum": 2 + 2 * fall + 0.1 * (steps > 250) + 0.03 * noise,
        "flat": 2.1 + 0.08 * noise,
        "ten lines": (1.2 + 0.6 * numpy.exp(-numpy.arange(10) / 3)) * numpy.exp(0.1 * noise[:10]),
    }
    return {name: (loss.tolist(), norm[: len(loss)].tolist()) for name, loss in kinds.items()}


@pytest.mark.parametrize("seed", range(5))
def test_healthy_runs_of_many_kinds_have_no_sign(seed):
    for name, (loss, norm) in curves(seed).items():
        rows = [{"step": at + 1, "loss": loss[at], "grad_norm": norm[at]} for at in range(len(loss))]
        assert signs_of(LoggedRun(Path(), len(rows), None, series_of(rows))) == [], name


def told(loss, norm):
    rows = [{"step": at + 1, "loss": loss[at], "grad_norm": norm[at]} for at in range(len(loss))]
    return [
        (sign.what, sign.step, sign.breaks) for sign in signs_of(LoggedRun(Path(), len(rows), None, series_of(rows)))
    ]


def test_what_came_back_is_no_break_and_what_lasts_is():
    loss, norm = healthy()
    once = list(loss)
    once[9] = math.nan
    assert told(once, norm) == [("not finite for a while", 10, False)]
    start = [math.inf] * 5 + norm[5:]
    assert told(loss, start) == [("not finite for a while", 1, False)]
    late = [math.inf if at == 2 or at >= 350 else value for at, value in enumerate(norm)]
    assert told(loss, late) == [("not finite for a while", 3, False), ("not finite", 351, True)]
    assert told([*loss[:-1], math.nan], norm)[-1] == ("not finite", STEPS, True)
    twice = [9.0 if 20 <= at < 30 else 6.5 if at >= 300 else value for at, value in enumerate(loss)]
    assert [what for what, _, breaks in told(twice, norm) if breaks] == ["divergence"]
    assert told([0.0] * 20, [0.0] * 20) == [("nothing is learnt", 1, True)]


def test_an_explosion_before_nan_breaks_the_run_where_it_began(tmp_path):
    """Trainer then logs zeros: the loss has not come back."""
    loss = [3.5, 3.6, 4.1, 17.0, 60.0, 4e3, 1e7, 1e9] + [0.0] * 12
    norm = [1.0, 2.0, 5.0, 40.0, 300.0, 1e4, 1e6, math.nan] + [math.nan] * 12
    for step in (2, 6, 8):
        checkpoint(tmp_path, step, loss, norm)
    state(tmp_path, loss, norm, 20)
    found = diagnose(tmp_path)
    assert found.log.breaks_at <= 3 and "divergence" in whats(found) and "not finite" in whats(found)
    assert found.healthy is None or found.healthy.step == 2


def test_weights_that_exploded_are_not_healthy(tmp_path):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    checkpoint(tmp_path, 200, loss, norm, 3e4)
    found = diagnose(tmp_path)
    assert found.healthy.step == 100 and "times as large as before" in found.verdict(found.checkpoints[1])


def test_what_was_not_read_is_not_broken(tmp_path):
    loss, norm = healthy()
    for step in (100, 200):
        folder = checkpoint(tmp_path, step, loss, norm, moments=False)
        (folder / "model.safetensors").unlink()
        (folder / f"global_step{step}").mkdir()
    found = diagnose(tmp_path)
    assert found.healthy is None and found.advice == ()


def test_a_checkpoint_by_itself_points_to_the_others(tmp_path):
    loss, norm = healthy()
    checkpoint(tmp_path / "my run", 100, loss, norm)
    found = diagnose(checkpoint(tmp_path / "my run", 200, loss, norm, math.nan))
    assert found.advice == (f"Look at the other checkpoints of the run: rksp doctor '{tmp_path / 'my run'}'",)


def test_the_history_goes_on_after_the_last_checkpoint(tmp_path):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    rows = [{"kind": "run", "schema_version": 2, "model": {}, "setup": {}}]
    rows += [
        {
            "kind": "log",
            "step": at + 1,
            "loss": loss[at] if at < 150 else None,
            "grad_norm": norm[at] if at < 150 else None,
        }
        for at in range(200)
    ]
    write(tmp_path, rows)
    found = diagnose(tmp_path)
    assert found.log.run.step == 200 and found.log.breaks_at == 151 and found.healthy.step == 100


def test_the_state_of_another_run_is_left_out(tmp_path):
    loss, norm = healthy()
    checkpoint(tmp_path, 100, loss, norm)
    state(tmp_path, [value + 1 for value in loss[:300]] + [math.nan] * 100, norm)
    found = diagnose(tmp_path)
    assert found.log.signs == () and "of another run" in found.log.notes[0] and found.log.run.step == 100


@pytest.mark.parametrize("later", ["history", "state"])
def test_what_an_earlier_run_has_left_does_not_speak_for_a_later_one(tmp_path, later):
    loss, norm = healthy()
    state(tmp_path, loss, norm, 100)
    rows = [{"kind": "run", "schema_version": 2, "model": {}, "setup": {}}]
    rows += [
        {"kind": "log", "step": at, "loss": 9.0 + at if at < 30 else None, "grad_norm": 1.0} for at in range(1, 60)
    ]
    write(tmp_path, rows)
    name = "trainer_state.json" if later == "history" else "rksp_history.jsonl"
    os.utime(tmp_path / name, (1, 1))
    found = diagnose(tmp_path)
    assert found.broken is (later == "history") and found.log.run.step == (59 if later == "history" else 100)
    assert "of an earlier run" in found.log.notes[0] and name in found.log.notes[0]


def test_a_mark_counts_where_weights_lie_in_pieces(tmp_path):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm, moments=False)
    (folder / "model.safetensors").unlink()
    (folder / "global_step100").mkdir()
    assert diagnose(tmp_path).healthy is None
    write_mark(folder, Mark(100, True, files=files_in(folder)))
    assert diagnose(tmp_path).healthy.step == 100


@pytest.mark.parametrize("cut", [False, True])
def test_a_mark_counts_where_weights_are_in_a_format_of_the_runs_own(tmp_path, cut):
    folder = tmp_path / "checkpoint-30"
    folder.mkdir()
    (folder / "all.pt").write_bytes(b"x" * 100)
    write_mark(folder, Mark(30, True, files=files_in(folder)))
    if cut:
        (folder / "all.pt").write_bytes(b"x" * 50)
    found = diagnose(tmp_path)
    assert (found.healthy is None) is cut and found.verdict(found.checkpoints[0]) == (
        "weights missing" if cut else "healthy"
    )


def test_an_alarm_that_the_run_went_back_from_is_no_sign():
    alarm = {"step": 118, "by": "alignment", "what": "alarm", "rule": "alignment", "text": "x"}
    assert signs_in([alarm, {"step": 120, "by": "guard", "what": "rollback", "to": 100}]) == []
    assert len(signs_in([alarm, {"step": 120, "by": "guard", "what": "skip"}])) == 1


@pytest.mark.parametrize("text", ['{"weight_map": {"a": ["x"]}}', '{"weight_map": ' + "[" * 100_000, "{}", "[1]"])
def test_an_index_that_is_none(tmp_path, text):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    assert diagnose(tmp_path).checkpoints[0].weights.kind == "unreadable"


def test_tensors_wherever_they_are(tmp_path):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm)
    torch.save({"state": {0: {"GG": [torch.full((3,), math.nan)]}}}, folder / "optimizer.pt")
    save_file({"lora": torch.full((2,), math.nan)}, folder / "adapter_model.safetensors")
    (found,) = diagnose(tmp_path).checkpoints
    assert found.weights.kind == found.moments.kind == "not finite"
    assert [one.name for one in (*found.weights.broken, *found.moments.broken)] == ["lora", "GG.0 of parameter 0"]
    (folder / "adapter_model.safetensors").unlink()
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {"w": torch.full((2,), math.nan)}}, folder / "pytorch_model.bin")
    assert diagnose(tmp_path).checkpoints[0].weights.kind == "not finite"


def test_names_in_files_cannot_write_to_the_terminal(tmp_path, capsys):
    loss, norm = healthy()
    folder = checkpoint(tmp_path, 100, loss, norm)
    save_file({"\x1b[31mx\nLast healthy checkpoint: /etc": torch.full((1,), math.nan)}, folder / "model.safetensors")
    assert main(["doctor", str(tmp_path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\nLast healthy checkpoint: /etc" not in out


def test_a_log_of_a_long_run_takes_seconds():
    loss, norm = curves(0)["pretraining"]
    rows = [{"step": at + 1, "loss": loss[min(at, 499)], "grad_norm": norm[at % 500]} for at in range(100_000)]
    rows[-1]["loss"] = rows[-1]["grad_norm"] = None
    start = time.process_time()
    assert signs_of(LoggedRun(Path(), len(rows), None, series_of(rows)))
    assert time.process_time() - start < 10


def test_a_run_that_has_logged_nothing_has_its_alarms(tmp_path, capsys):
    """Trainer logs every 500 steps unless it is asked to."""
    alarm = {
        "kind": "event",
        "step": 11,
        "by": "guard",
        "what": "alarm",
        "rule": "loss not finite",
        "text": "The loss is nan.",
    }
    write(tmp_path, [run(), alarm])
    log = read_log(tmp_path)
    assert log.run.step == 11 and [sign.text for sign in log.signs] == ["The loss is nan."]
    assert main(["doctor", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "has logged nothing" in said and "The loss is nan." in said and "no sign of a failure" not in said


def test_advice_on_the_filter_is_for_logs_that_hide(tmp_path):
    loss, norm = healthy()
    nan = math.nan
    for shown, hides in ((nan, False), (2.0, True)):
        folder = state(tmp_path / str(hides), loss[:200] + [shown] * 200, norm[:200] + [nan] * 200)
        advice = " ".join(diagnose(folder).advice)
        assert ("logging_nan_inf_filter" in advice) == hides


@pytest.mark.filterwarnings("error")
def test_a_log_of_losses_that_are_all_not_finite_warns_of_nothing():
    rows = [{"step": step, "loss": math.nan} for step in range(1, 7)] + [
        {"step": 7, "loss": 0.0},
        {"step": 8, "loss": 0.0},
    ]
    signs_of(LoggedRun(Path("log"), 8, 8, series_of(rows)))
