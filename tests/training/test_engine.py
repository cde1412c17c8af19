"""What the parts of a run can rely on, whoever drives it."""

import gc
import logging

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_rksp import KSSConfig, MonitorConfig, RKSPCallback, RKSPTrainer, SpectralShaper
from hf_rksp.errors import InputError
from hf_rksp.flat import joined
from hf_rksp.history.read import read_history
from hf_rksp.training import SpectralMonitor, TrainingRun
from hf_rksp.training.aside import Aside
from hf_rksp.training.kss.schedule import Schedule
from hf_rksp.training.monitors.base import Intervention, Monitor, Reading, none
from hf_rksp.training.unharmed import Unharmed
from tests.training.common import arguments, assert_same_weights, gpt2, hooks, token_rows, trained, trainer

STEPS = 3


def batch():
    rows = token_rows(4).rows
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Counts(Monitor):
    """Reads the number of the step."""

    name = "counts"

    def due(self, step, last_step):
        return True

    def step_end(self, step, main_process):
        return Reading("counts", step, {"step": float(step)})
        yield []


class Listens(Intervention):
    """Keeps the readings that it is given."""

    name = "listens"

    def __init__(self):
        self.given = []

    def gradients_ready(self, step, readings):
        self.given.append([(reading.monitor, reading.step) for reading in readings])


def run_through(run):
    for _ in range(STEPS):
        (run.model(**batch()).loss + run.term()).backward()
        run.gradients_ready()
        run.step(loss=1.0, accuracy=0.5)


def test_interventions_get_the_readings_of_the_step_before(tmp_path):
    listens = Listens()
    with TrainingRun(gpt2().train(), tmp_path, STEPS, [Counts(), listens]) as run:
        run_through(run)
    assert listens.given == [[], [("counts", 0)], [("counts", 1)]]
    assert [row["accuracy"] for row in read_history(tmp_path).logs] == [0.5] * STEPS  # what the caller logs is kept


def test_parts_of_one_name_are_refused(tmp_path):
    with (
        pytest.raises(InputError, match="called 'counts'"),
        TrainingRun(gpt2().train(), tmp_path, STEPS, [Counts(), Counts()]),
    ):
        pass


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path):
    model, bad = gpt2().train(), batch()
    bad["input_ids"] = bad["input_ids"] + 1000
    monitor = SpectralMonitor(MonitorConfig(data="probe"), [bad])
    with pytest.raises(IndexError), TrainingRun(model, tmp_path, STEPS, [monitor], KSSConfig(rank=8)):
        pass
    assert hooks(model) == 0 and torch._dynamo.eval_frame._stance.stance == "default"


def test_what_was_withheld_is_of_one_step(tmp_path):
    with TrainingRun(gpt2().train(), tmp_path, STEPS) as run:
        run.microbatch({"labels": batch()["labels"]})
        assert run.engine.watch.withheld
        run.step()
        assert not run.engine.watch.withheld


def test_what_is_left_out_is_an_event(tmp_path):
    with TrainingRun(gpt2().train(), tmp_path, STEPS, [SpectralMonitor()], KSSConfig(rank=16)) as run:
        run.model(input_ids=batch()["input_ids"][:1, :4], labels=batch()["labels"][:1, :4]).loss.backward()
        run.step()
    assert [(event["by"], event["what"]) for event in read_history(tmp_path).events] == [("kss", "left_out")]


def test_a_probe_that_fails_later_is_counted_once(tmp_path, caplog):
    probe = [batch()]
    monitor = SpectralMonitor(MonitorConfig(every=1, data="probe", rank=4, at_end=False), probe)
    with caplog.at_level(logging.WARNING), TrainingRun(gpt2().train(), tmp_path, 3, [monitor]) as run:
        probe[0]["input_ids"].fill_(1000)
        run.step()
        run.step()
    # Three layers in each of two steps, and at the end, which comes early.
    assert monitor.aside.count == 9 and [row["step"] for row in read_history(tmp_path).readings] == [0]
    assert "no forward pass" not in caplog.text


def alive():
    return sum(torch.is_tensor(thing) for thing in gc.get_objects())


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_no_graph_outlives_its_step(schedule):
    """Without the garbage collector: a rule that held its graph would keep the states of a step until that comes by."""
    model = gpt2(dropout=0.0).train()
    with SpectralShaper(model, KSSConfig(schedule, rank=8, every=1, upper_threshold=0.91)) as kss:

        def step():
            (model(**batch()).loss + kss.term()).backward()
            model.zero_grad()
            kss.step()

        step()
        gc.collect()
        gc.disable()
        try:
            before = alive()
            for _ in range(5):
                step()
            grown = alive() - before
        finally:
            gc.enable()
    assert grown <= 5  # the counter of lost gradients and the like


def test_a_schedule_that_fails_costs_the_step_and_not_the_run():
    class Fails(Schedule):
        def act(self, measured):
            raise ArithmeticError("planned")

    model, config = gpt2().train(), KSSConfig(rank=8)
    with SpectralShaper(model, config, schedule=Fails(config)) as kss:
        model(**batch()).loss.backward()
        kss.step()
    assert kss.aside.count == 3


def test_a_callback_of_ours_in_a_plain_trainer_changes_nothing(tmp_path):
    """Also after `RKSPTrainer` has had it, which gave it KSS."""
    mine = RKSPCallback(MonitorConfig(every=1, rank=8), report=False)
    trained(tmp_path / "ours", gpt2(), callbacks=[mine])
    plain = trained(tmp_path / "plain", gpt2(), kind=Trainer)
    watched = trained(tmp_path / "watched", gpt2(), kind=Trainer, callbacks=[mine])
    assert_same_weights(plain.model, watched.model)


def test_nothing_is_asked_of_the_device_between_logs(tmp_path, monkeypatch):
    """The state of KSS holds a count that lies on the device: it is read for logs and checkpoints alone."""
    asked = []
    monkeypatch.setattr(SpectralShaper, "dropped", property(lambda kss: asked.append(kss.steps) or 0))

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            asked.append("step")

    trained(tmp_path, gpt2(), kind=RKSPTrainer, callbacks=[Ends()], logging_steps=4)
    assert [what for what in asked if what != "step"] == [4]


@pytest.mark.parametrize("bad", [{"schedule": None}, {"centred": "no"}, {"exact_accumulation": 1}])
def test_settings_of_another_kind_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        KSSConfig(**bad)


def test_a_probe_is_solved_before_its_step_and_its_moments_are_gone(tmp_path):
    monitor, held = SpectralMonitor(MonitorConfig(every=1, data="probe", rank=4, at_end=False), [batch()]), []
    model = gpt2().train()
    model.register_forward_pre_hook(
        lambda *_: held.append(len(monitor._sink.moments)) if torch.is_grad_enabled() else None
    )
    with TrainingRun(model, tmp_path, STEPS, [monitor]) as run:
        assert [row["step"] for row in read_history(tmp_path).readings] == [0]  # also if the step never ends
        run_through(run)
    assert held == [0] * STEPS and [row["step"] for row in read_history(tmp_path).readings] == [0, 1, 2, 3]


SAVED = {"save_strategy": "steps", "save_steps": 2, "spectrum_every": 1}


def test_a_plain_trainer_goes_on_in_the_history_of_rksp_trainer(tmp_path):
    """Two runs share the folder; the second, which has a file of its own, is resumed with the callback alone."""
    trained(tmp_path, gpt2(), **SAVED)
    trained(tmp_path, gpt2(), **SAVED)
    first, second = (tmp_path / name for name in ("rksp_history.jsonl", "rksp_history_2.jsonl"))
    before = first.read_bytes(), len(second.read_bytes())
    mine = RKSPCallback(MonitorConfig(every=1, rank=8), report=False)
    run = trainer(tmp_path, gpt2(), kind=Trainer, callbacks=[mine])
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert mine.path == second and first.read_bytes() == before[0] and len(second.read_bytes()) > before[1]
    assert [event["what"] for event in read_history(second).events] == ["resume"]


def test_no_page_is_drawn_if_the_arguments_say_so(tmp_path):
    """Also if the callback of the user would draw one."""
    trained(tmp_path, gpt2(), callbacks=[RKSPCallback(MonitorConfig(every=1, rank=8))], run_report=False)
    assert not (tmp_path / "rksp_report.html").exists()


@pytest.mark.parametrize("name", ["kss", "spectrum", "run_report"])
def test_a_switch_that_is_text_is_refused(tmp_path, name):
    """In YAML and JSON 'no' in quotes is a text, and a text is true."""
    with pytest.raises(InputError, match=f"{name}='no'"):
        arguments(tmp_path, **{name: "no"})


def test_settings_in_place_of_a_switch_are_refused(tmp_path):
    """They would be true, and not read."""
    with pytest.raises(InputError, match=r"kss=.*RKSPTrainer\(kss="):
        arguments(tmp_path, kss=KSSConfig(rank=4))


def test_sums_and_transfers_join_what_can_be_joined():
    tensors = [torch.ones(2, 3), torch.full((4,), 2.0), torch.ones(1, dtype=torch.float64), torch.zeros(0)]
    seen = []
    found = joined(tensors, lambda flat: (seen.append(flat.numel()), 2 * flat)[1])
    assert seen == [10, 1, 0] and all(torch.equal(new, 2 * old) for new, old in zip(found, tensors, strict=True))
    assert [new.shape for new in found] == [old.shape for old in tensors]


class Breaks(Monitor):
    """Raises at one place what nobody has foreseen."""

    name = "breaks"

    def __init__(self, where, error=RuntimeError):
        self.where, self.error, self.aside = where, error, Aside("The test", "breaks/skipped", "leave it out")

    def _at(self, where):
        if where == self.where:
            raise self.error(f"at {where}")

    def attach(self, watch):
        super().attach(watch)
        self._at("attach")

    def due(self, step, last_step):
        self._at("due")
        return True

    def looker(self, step):
        self._at("looker")
        return self

    def pop_logs(self):
        self._at("pop_logs")
        return {}

    def state_dict(self):
        self._at("state_dict")
        return {}

    def close(self):
        self._at("close")

    def step_begin(self, step, main_process):
        if step:  # before the first step everything is refused
            self._at("step_begin")
        return none()

    def pass_begin(self, batch):
        self._at("pass_begin")

    def record(self, stack, block, x, y):
        self._at("record")

    def refuse(self, stack, block, error):
        pass

    def pass_end(self, batch):
        self._at("pass_end")

    def step_end(self, step, main_process):
        yield []
        self._at("step_end")
        return Reading("breaks", step, {"step": float(step)})

    def run_end(self, step, main_process):
        self._at("run_end")
        return none()


PLACES = ["attach", "due", "looker", "step_begin", "pass_begin", "record", "pass_end", "step_end", "run_end"]
PLACES += ["pop_logs", "state_dict", "close"]
#: Places after which the step of the monitor has no reading.
_UNREAD = {"attach", "due", "looker", "pass_begin", "record", "pass_end", "step_end"}


@pytest.mark.parametrize("where", PLACES)
def test_a_monitor_that_breaks_ends_no_run(tmp_path, where, caplog):
    model, plain = gpt2().train(), gpt2().train()
    for one, parts in ((model, [Breaks(where), Counts()]), (plain, [])):
        torch.manual_seed(0)
        with TrainingRun(one, tmp_path / str(len(parts)), STEPS, parts) as run:
            optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
            for _ in range(STEPS):
                one(**batch()).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                run.step()
            run.state_dict()
    assert_same_weights(model, plain)
    read = read_history(tmp_path / "2")
    own = [row["step"] for row in read.of("breaks")]
    assert own == ([] if where in _UNREAD else [0] if where == "step_begin" else list(range(STEPS)))
    assert [row["step"] for row in read.of("counts")] == list(range(STEPS)), "the other monitor reads on"
    assert f"RuntimeError: at {where}" in caplog.text and hooks(model) == 0
    said = [event["text"] for event in read.events if event["what"] == "left_out"]
    assert len(said) == (where != "attach"), "said once; a history is not open yet when a part is attached"


@pytest.mark.parametrize("where", PLACES)
def test_what_a_monitor_refuses_is_raised(tmp_path, where):
    with pytest.raises(InputError, match=f"at {where}"):
        with TrainingRun(gpt2().train(), tmp_path, STEPS, [Breaks(where, InputError)]) as run:
            run_through(run)
            run.state_dict()


@pytest.mark.parametrize("where", ["pass_begin", "record", "pass_end"])
def test_a_looker_that_has_failed_hears_of_the_end_alone(where):
    """There it lets go of hooks; what else it would see is of a pass that is not whole."""
    heard, failed = [], []

    class Looks:
        def __getattr__(self, name):
            def call(*args):
                heard.append(name)
                if name == where:
                    raise ValueError(name)

            return call

    looker = Unharmed(Looks(), failed.append)
    looker.pass_begin({})
    for _ in range(2):
        looker.record(None, None, None, None)
    looker.refuse(None, None, None)
    looker.pass_end({})
    whole = ["pass_begin", "record", "record", "refuse", "pass_end"]
    before = whole[: whole.index(where) + 1]
    assert heard == [*before, *(["pass_end"] if where != "pass_end" else [])]
    assert [str(error) for error in failed] == [where]
