"""What else a Trainer does, with ours in its place: best model, trackers, searches, the Hub, parsers, other trainers."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_rksp import RKSPArguments, RKSPTrainer, RKSPTrainerMixin, RKSPTrainingArguments
from hf_rksp.errors import InputError
from hf_rksp.report import read_history
from tests.capture.models import CASES
from tests.training.common import (
    OURS,
    RUN,
    Rows,
    assert_same_weights,
    gpt2,
    hooks,
    logged,
    moved,
    token_rows,
    trained,
    trainer,
)


def history_of(folder, name="rksp_history.jsonl"):
    return [json.loads(line) for line in Path(folder, name).read_text().splitlines()]


def test_best_model_is_loaded_at_the_end(tmp_path):
    """The largest loss counts as best, so that it is an early checkpoint whose weights are left at the end."""
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = trained(tmp_path, gpt2(), eval_dataset=token_rows(8), **every_step, **best)
    losses = logged(run, "eval_loss")
    best = losses.index(max(losses)) + 1
    assert best < 4 and run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert_same_weights(run.model, type(run.model).from_pretrained(tmp_path / f"checkpoint-{best}"))
    assert [row["eval_loss"] for row in history_of(tmp_path) if "eval_loss" in row] == losses


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    run = trained(tmp_path, gpt2(), report_to="tensorboard", spectrum_per_layer=True)
    (file,) = (tmp_path / "tb").rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    tags = set(events.Tags()["scalars"])
    ours = {name for row in run.state.log_history for name in row if name.startswith(("kss/", "spectrum/"))}
    assert {
        "kss/loss",
        "kss/dropped",
        "spectrum/near_unit_mass/max",
        "spectrum/spectral_radius/transformer.h.0",
    } <= ours
    assert {f"train/{name}" for name in ours} <= tags
    for name in sorted(ours):
        sent = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        kept = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in run.state.log_history if name in row]
        assert sent == kept, name


def test_trackio_gets_our_numbers(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    sent = []
    monkeypatch.setattr(trackio, "log", lambda metrics, *args, **kwargs: sent.append(metrics))
    trained(tmp_path, gpt2(), report_to="trackio")
    assert {"train/kss/loss", "train/spectrum/near_unit_mass/max"} <= {name for row in sent for name in row}


def test_search_keeps_a_history_for_each_trial(tmp_path):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models = []
    run = trainer(
        tmp_path,
        None,
        model_init=lambda: models.append(gpt2()) or models[-1],
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=token_rows(8, seed=9),
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    rates, weights = iter((1e-3, 1e-2)), iter((0.125, 0.5))
    run.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": next(rates), "kss_weight": next(weights)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=2,
        direction="minimize",
    )
    trials = [history_of(tmp_path, f"rksp_history_trial_{number}.jsonl") for number in (1, 2)]
    assert [rows[0]["setup"]["learning_rate"] for rows in trials] == [1e-3, 1e-2]
    assert [rows[0]["setup"]["kss"]["weight"] for rows in trials] == [0.125, 0.5]
    for rows in trials:
        assert [row["step"] for row in rows if row["kind"] == "reading"] == [0, 1]
    assert len(list(tmp_path.rglob("rksp_state.json"))) == 2
    assert not (tmp_path / "rksp_history.jsonl").exists()
    assert [hooks(model) for model in models] == [0] * len(models) and len(models) >= 2


def test_push_to_hub_offline_fails_as_trainer_does(tmp_path, monkeypatch):
    errors = []
    for kind, settings in ((Trainer, TrainingArguments), (RKSPTrainer, RKSPTrainingArguments)):
        steps = []

        class Steps(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                steps.append(1)  # noqa: B023 read before the next round

        with pytest.raises(Exception) as caught:
            trained(tmp_path, gpt2(), None, kind, settings, push_to_hub=True, hub_model_id="a/b", callbacks=[Steps()])
        assert not steps
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert not isinstance(errors[1], InputError)


VALUES = {
    "kss_weight": 0.2,
    "kss_every": 3,
    "kss_schedule": "paper",
    "spectrum_data": "batch",
    "spectrum_per_layer": True,
}


class TestArguments:
    def parsed(self, how, folder, **values):
        parser, values = HfArgumentParser(RKSPTrainingArguments), {"output_dir": str(folder), "use_cpu": True} | values
        if how == "command line":
            words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
            return parser.parse_args_into_dataclasses(words)[0]
        file = Path(folder, f"run.{how}")
        file.write_text(json.dumps(values))  # which is YAML too
        return (parser.parse_json_file if how == "json" else parser.parse_yaml_file)(str(file))[0]

    @pytest.mark.parametrize("how", ["command line", "json", "yaml"])
    def test_are_parsed(self, how, tmp_path):
        args = self.parsed(how, tmp_path, **VALUES)
        assert {name: getattr(args, name) for name in VALUES} == VALUES
        config = args.kss_config()
        assert (config.schedule, config.weight, config.every, config.layer_fraction) == ("paper", 0.2, 3, 0.5)
        assert self.parsed(how, tmp_path, kss=False).kss_config() is None
        assert self.parsed(how, tmp_path, kss_weight=0.0).kss_config() is None

    @pytest.mark.parametrize("how", ["command line", "json", "yaml"])
    @pytest.mark.parametrize(
        "name, value",
        [
            ("kss_schedule", "papers"),
            ("kss_weight", -0.1),
            ("kss_weight", float("nan")),
            ("kss_every", 0),
            ("kss_rank", 0),
            ("kss_layer_fraction", 1.5),
            ("kss_upper_threshold", -1.0),
            ("kss_near_unit_target", 2.0),
            ("kss_ridge", 0.0),
            ("kss_seed", -1),
            ("spectrum_every", -1),
            ("spectrum_data", "validation"),
            ("spectrum_rank", 0),
        ],
    )
    def test_bad_values_are_refused_by_name_before_a_model_is_there(self, how, name, value, tmp_path):
        """Also with KSS off: a run that is switched on later should not find out then."""
        for off in ({}, {"kss": False, "spectrum": False}):
            chosen = how == "command line" and name in ("kss_schedule", "spectrum_data")  # argparse knows the choices
            with pytest.raises(SystemExit if chosen else InputError, match=None if chosen else name.split("_", 1)[1]):
                self.parsed(how, tmp_path, **{name: value}, **off)

    def test_survive_training_args_bin(self, tmp_path):
        run = trained(tmp_path, gpt2(), save_strategy="steps", save_steps=4)
        again = torch.load(tmp_path / "checkpoint-4" / "training_args.bin", weights_only=False)
        assert type(again) is RKSPTrainingArguments
        assert again.kss_config() == run.kss and again.kss_rank == OURS["kss_rank"]
        assert again.to_dict() == run.args.to_dict()

    def test_probe_without_batches_is_refused_before_training(self, tmp_path):
        with pytest.raises(InputError, match="probe"):
            trained(tmp_path, gpt2(), spectrum_data="probe")

    def test_rank_above_the_width_is_refused_in_the_first_step_and_leaves_no_hook(self, tmp_path):
        run = trainer(tmp_path, gpt2(), kss_rank=17)
        with pytest.raises(InputError, match=r"kss_rank=17.*16"):
            run.train()
        assert run.state.global_step == 0 and hooks(run.model) == 0


class OurSeq2SeqTrainer(RKSPTrainerMixin, Seq2SeqTrainer):
    pass


@dataclass
class OurSeq2SeqArguments(RKSPArguments, Seq2SeqTrainingArguments):
    pass


def test_mixin_on_seq2seq_trainer_generates_in_evaluation(tmp_path):
    model = CASES["t5"].build(head=True, num_layers=3)  # generation wants stacks of one length
    rows = Rows({"input_ids": r["input_ids"], "labels": r["labels"]} for r in token_rows(16).rows)
    seen = []
    settings = {
        "predict_with_generate": True,
        "generation_max_length": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": rows,
        "compute_metrics": lambda p: seen.append(p.predictions.shape) or {},
    }
    run = trained(tmp_path, model, rows, OurSeq2SeqTrainer, OurSeq2SeqArguments, **settings)
    assert len(logged(run, "kss/loss")) == 4 and len(seen) == 2
    profiles = [row for row in history_of(tmp_path) if row["kind"] == "reading"]
    assert {layer["stack"] for layer in profiles[0]["layers"]} == {"encoder.block", "decoder.block"}
    assert hooks(run.model) == 0


@pytest.mark.parametrize("packing", [False, True])
def test_mixin_on_sft_trainer(packing, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    class OurTrainer(RKSPTrainerMixin, trl.SFTTrainer):
        pass

    @dataclass
    class OurArguments(RKSPArguments, trl.SFTConfig):
        pass

    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(48)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0", eos_token="w2", unk_token="w0")
    texts = [" ".join(f"w{int(i)}" for i in row["input_ids"][: 4 + n % 5]) for n, row in enumerate(token_rows().rows)]
    dataset = Dataset.from_dict({"text": texts})
    models_ = []
    for settings in ({}, {"kss": False, "spectrum": False}):
        sft = {
            "max_length": 16,
            "packing": packing,
            "bf16": False,
            "gradient_checkpointing": False,
            "packing_strategy": "wrapped",
        }
        args = OurArguments(output_dir=str(tmp_path), **{**RUN, **OURS, "max_steps": 2, **sft, **settings})
        run = OurTrainer(model=gpt2(dropout=0.0), args=args, train_dataset=dataset, processing_class=words)
        run.train()
        models_.append(run.model)
        assert len(logged(run, "kss/loss")) == (0 if settings else 2)
        assert len(logged(run, "mean_token_accuracy")) == 2  # TRL's own numbers are still there
        assert hooks(run.model) == 0
    assert moved(*models_) > 1e-5


def test_second_run_of_a_trainer_starts_a_new_history(tmp_path):
    run = trained(tmp_path, gpt2(), run_report=True)
    first = (tmp_path / "rksp_history.jsonl").read_bytes()
    run.train()
    second = history_of(tmp_path, "rksp_history_2.jsonl")
    assert [row["step"] for row in second if row["kind"] == "reading"] == [0, 2, 3]
    assert (tmp_path / "rksp_history.jsonl").read_bytes() == first and len(second) == len(history_of(tmp_path))
    assert (tmp_path / "rksp_report_2.html").exists()


def test_report_of_the_run_is_written_at_the_end(tmp_path):
    """And a run whose report cannot be drawn is a good run all the same."""
    run = trained(tmp_path, gpt2(), run_report=True)
    page = (tmp_path / "rksp_report.html").read_text()
    read = read_history(tmp_path / "rksp_history.jsonl")
    assert [profile["step"] for profile in read.spectra] == [0, 2, 3]
    assert "transformer.h" in page and len(logged(run, "kss/loss")) == 4

    class Spoils(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                (tmp_path / "bad" / "rksp_history.jsonl").write_text("not a history\n")

    bad = trained(tmp_path / "bad", gpt2(), run_report=True, callbacks=[Spoils()])
    assert bad.state.global_step == 4 and not (tmp_path / "bad" / "rksp_report.html").exists()


def test_without_arguments_of_ours_the_defaults_hold(tmp_path):
    run = trainer(tmp_path, gpt2(), None, RKSPTrainer, TrainingArguments)
    assert run.kss.schedule == "balanced" and run.kss.weight == 1.0 and run.rksp.config.every == 500
