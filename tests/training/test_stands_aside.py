"""What watches a run never ends it: what cannot be read is left out, said once, and counted."""

import gc
import json
import re
import types
import weakref

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)

from hf_rksp import RKSPCallback, RKSPTrainer, SpectralMonitor, SpectralShaper, TrainingRun
from hf_rksp.capture import layouts
from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.errors import CaptureError, InputError
from tests.training.common import (
    ALWAYS,
    Chain,
    assert_same_weights,
    gpt2,
    hooks,
    logged,
    moved,
    token_rows,
    trained,
    trainer,
)

IDS = torch.stack([row["input_ids"] for row in token_rows(4).rows])


def break_blocks(model):
    """Blocks 1 and 2 hand a flattened state to each other: neither is residual, and the model computes what it did."""
    model.layers[1].after = lambda y: y.flatten(0, 1)
    model.layers[2].before = lambda x: x.unflatten(0, (-1, 9))


class Breaks(TrainerCallback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.at:
            break_blocks(model)


def said(caplog, part=""):
    return [r.getMessage() for r in caplog.records if r.name.startswith("hf_rksp") and part in r.getMessage()]


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_layers_that_cannot_be_read_any_more(schedule, tmp_path, caplog):
    settings = {
        "residual_blocks": "layers",
        "spectrum_every": 1,
        "kss_schedule": schedule,
        "kss_every": 1,
        "max_steps": 5,
    }
    run = trained(tmp_path, Chain(), callbacks=[Breaks(2)], **settings, kss_layer_fraction=1.0)
    assert run.state.global_step == 5
    for name in ("kss/skipped", "spectrum/skipped"):
        assert logged(run, name) == [0, 0, 2, 4, 6]
    assert (
        len(logged(run, "kss/loss")) == len(logged(run, "spectrum/near_unit_mass/max")) == 5
    )  # the others are measured
    for part, setting in (("KSS", "kss='off'"), ("The monitor", "monitor=False")):
        texts = said(caplog, f"{part} leaves out layer layers.")
        assert len(texts) == len(set(texts)) == 2 and all(setting in text for text in texts)
    assert hooks(run.model) == 0


def test_a_callback_that_can_read_nothing_leaves_the_run_alone(tmp_path, caplog):
    runs = []
    for callbacks in ([], [RKSPCallback(MonitorConfig(every=1, rank=8), blocks="layers", report=False)]):
        model = Chain()
        for flattens, restores in (model.layers[:2], model.layers[2:]):
            flattens.after, restores.before = (lambda y: y.flatten(0, 1)), (lambda x: x.unflatten(0, (-1, 9)))
        runs.append(trained(tmp_path / str(len(runs)), model, None, Trainer, callbacks=callbacks))
    assert_same_weights(runs[0].model, runs[1].model)
    assert logged(runs[1], "spectrum/skipped") == [4, 8, 12, 16] and not logged(runs[1], "spectrum/near_unit_mass/max")
    assert said(caplog, "The monitor")


def test_kss_that_fails_at_numbers_of_its_own(tmp_path, monkeypatch, caplog):
    def fails(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("hf_rksp.training.kss.measure.leading_directions", fails)
    run = trained(tmp_path, gpt2(), spectrum=False)
    assert logged(run, "kss/skipped") == [3, 6, 9, 12]
    assert len(said(caplog, "RuntimeError: no such kernel")) == 1


def test_a_list_that_was_named_and_holds_no_block_is_refused_in_the_first_step(tmp_path):
    model = Chain()
    model.layers = torch.nn.ModuleList([model.layers[0]])
    break_blocks(types.SimpleNamespace(layers=[None, model.layers[0], Chain().layers[0]]))
    model.head.register_forward_pre_hook(lambda _, args: args[0].unflatten(0, (-1, 9)))
    run = trainer(tmp_path, model, residual_blocks="layers")
    with pytest.raises(CaptureError, match=r"layers\.0.*not a residual block"):
        run.train()
    assert run.state.global_step == 0 and hooks(model) == 1  # the one above


class Parts(RKSPTrainer):
    """The loss calls parts of the model, never the model itself."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        states = model.transformer(inputs["input_ids"]).last_hidden_state
        return torch.nn.functional.cross_entropy(model.lm_head(states).flatten(0, 1), inputs["labels"].flatten())


def test_a_loss_that_calls_parts_of_the_model(tmp_path, caplog):
    run = trained(tmp_path, gpt2(), kind=Parts, spectrum_every=1)
    assert logged(run, "kss/skipped") == [3, 6, 9, 12] == logged(run, "spectrum/skipped")
    assert not logged(run, "kss/loss")
    assert len(said(caplog, "calls parts of")) == 2


def test_a_model_that_was_compiled_and_run_before(caplog):
    torch.compiler.reset()
    model = Chain().train()
    model.compile(backend="eager")
    model(IDS, labels=IDS)
    with SpectralShaper(model, KSSConfig(rank=4), "layers") as kss:
        model(IDS, labels=IDS)["loss"].backward()
        kss.step()
    assert kss.pop_logs() == {"kss/dropped": 0, "kss/skipped": 4}
    assert len(said(caplog, "compiled and run before")) == 1
    torch.compiler.reset()


def test_blocks_in_evaluation_mode_are_said_to_be_none(caplog):
    model = gpt2().train()
    model.transformer.h.eval()
    with SpectralShaper(model, KSSConfig(rank=4)) as kss:
        model(input_ids=IDS, labels=IDS).loss.backward()
        kss.step()
    assert kss.aside.count == 3 and said(caplog, "evaluation mode")


def test_states_that_a_block_overwrites_are_counted_once(caplog):
    model = Chain(in_place=True).train()
    with SpectralShaper(model, KSSConfig(rank=4), "layers") as kss:
        counts = []
        for _ in range(2):
            model(IDS, labels=IDS)["loss"].backward()
            kss.step()
            counts.append((kss.aside.count, "kss/loss" in kss.pop_logs()))
    assert counts == [(4, False), (4, True)]


# Several runs of one module


def albert():
    set_seed(0)
    sizes = {"vocab_size": 48, "embedding_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    return AlbertForMaskedLM(AlbertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32))


def test_each_run_of_a_shared_module_is_a_layer(tmp_path):
    """In monitor and KSS alike, surveyed or not."""
    for exact in (False, True):
        settings = {"kss_exact_accumulation": exact, "gradient_accumulation_steps": 1 + exact, "max_steps": 1}
        run = trained(tmp_path / str(exact), albert(), residual_blocks="albert.encoder.albert_layer_groups", **settings)
        (row,) = [r for r in rows(tmp_path / str(exact)) if r["kind"] == "reading"]
        assert [layer["index"] for layer in row["layers"]] == [0, 1, 2, 3]
        assert row["tokens"] == 36 * (1 + exact)
        assert len({layer["path"] for layer in row["layers"]}) == 4
        assert len({layer["spectral_radius"] for layer in row["layers"]}) == 4
        assert logged(run, "kss/skipped") == [0]
        assert logged(run, "kss/layers_above") == [1]


def test_only_the_first_run_counts_as_first_block():
    model = albert().train()
    config = KSSConfig(rank=4, upper_threshold=0.01, first_block_weight=0.25)
    with SpectralShaper(model, config, "albert.encoder.albert_layer_groups") as kss:
        shares, schedule = [], kss.schedule
        act = schedule.act

        def watch(measured):
            shares.extend(schedule.block_weight(layer, measured.last) for layer in measured.layers)
            return act(measured)

        schedule.act = watch
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert shares == [0.25, 1, 1, 1]


def rows(folder, name="rksp_history.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# Rank


def test_a_rank_that_nobody_asked_for_fits(tmp_path):
    assert (
        KSSConfig().fitted(16).rank == 16
        and KSSConfig().fitted(500).rank == 32
        and KSSConfig(rank=4).fitted(9).rank == 4
    )
    default, asked = (trained(tmp_path / str(rank), gpt2(), kss_rank=rank) for rank in (None, 16))
    assert_same_weights(default.model, asked.model)
    assert len(logged(default, "kss/loss")) == 4


def test_a_narrow_tower_that_appears_later_is_left_out(caplog):
    model = Chain().train()
    with SpectralShaper(model, KSSConfig(rank=16), "layers") as kss:
        model(IDS, labels=IDS)["loss"].backward()
        kss.step()
        assert kss._fits(kss.watch.stacks[0], 8, 4) is False
    assert kss.aside.count == 4 and said(caplog, "kss_rank=16")


# The term of the paper's schedule


class Own(RKSPTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


PAPER = {"kss_schedule": "paper", "kss_every": 1, "kss_weight": 1.0, "spectrum": False}


def test_a_loss_of_ones_own_has_the_term(tmp_path):
    chain = {"residual_blocks": "layers", **PAPER}
    runs = [trained(tmp_path, Chain(), kind=kind, **chain) for kind in (RKSPTrainer, Own)]
    off = trained(tmp_path, Chain(), kind=Own, **chain | {"kss_weight": 0.0})
    assert_same_weights(runs[0].model, runs[1].model)
    assert logged(runs[0], "kss/task_loss") == logged(runs[1], "kss/task_loss")
    assert moved(runs[1].model, off.model) > 1e-4
    assert "compute_loss" not in vars(runs[1])
    patched = trainer(tmp_path, Chain(), **chain)  # as tutorials do
    patched.compute_loss = own = Own.compute_loss.__get__(patched)
    patched.train()
    assert_same_weights(patched.model, runs[0].model)
    assert patched.compute_loss is own


class Steps(Own):
    """Never asks the trainer for a loss."""

    def training_step(self, model, inputs, *args, **kwargs):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_step_that_never_asks_for_a_loss_is_refused_before_the_second(tmp_path):
    run = trainer(tmp_path, gpt2(), kind=Steps, **PAPER)
    with pytest.raises(InputError, match=r"kss_schedule='paper'.*not reached the loss"):
        run.train()
    assert run.state.global_step == 1 and hooks(run.model) == 0
    assert trained(tmp_path, gpt2(), kind=Steps, spectrum=False).state.global_step == 4  # "balanced" acts without


def gradient(passes, taken, schedule="paper"):
    """Of the penalty alone: the loss has no weight."""
    model = gpt2(dropout=0.0).double().train()
    config = KSSConfig(schedule, rank=8, every=1, layer_fraction=1.0, upper_threshold=ALWAYS)
    with SpectralShaper(model, config) as kss:
        losses = [model(input_ids=ids, labels=ids).loss for ids in passes]
        if taken == "late":
            torch.autograd.grad(losses[0], model.transformer.wte.weight)
            losses = losses[1:]
        (sum(losses) * 0.0 + kss.term()).backward()
        kss.step()
    return model.transformer.h[0].mlp.c_fc.weight.grad, kss


def test_passes_of_one_loss_add_up():
    one, two = IDS[:2], IDS[2:]
    both, _ = gradient([one, two], "all")
    apart = [gradient([ids], "all")[0] for ids in (one, two)]
    torch.testing.assert_close(both, apart[0] + apart[1])
    assert float(apart[0].norm()) > 0 and float((apart[0] - apart[1]).norm() / both.norm()) > 1e-3


def test_a_term_whose_graph_is_gone_is_left_out(caplog):
    late, kss = gradient([IDS[:2], IDS[2:]], "late")
    torch.testing.assert_close(late, gradient([IDS[2:]], "all")[0])
    assert kss.aside.count == 3 and said(caplog, "before its term was taken")


def test_terms_that_nobody_takes_do_not_pile_up(caplog):
    model = gpt2().train()
    with SpectralShaper(model, KSSConfig("paper", rank=4, every=1)) as kss:
        (model(input_ids=IDS, labels=IDS).loss + kss.term()).backward()
        kss.step()
        model(input_ids=IDS, labels=IDS).loss.backward()
        kss.step()
        assert not kss.pending
    assert said(caplog, "not reached the loss")


def test_a_graph_that_is_gone_over_twice_has_the_gradient_of_the_second_time():
    """Balanced: the reference is that of the running backward pass."""
    grads = []
    for first in (None, 1000.0):
        model = gpt2(dropout=0.0).double().train()
        with SpectralShaper(model, KSSConfig(rank=8, upper_threshold=ALWAYS)):
            loss = model(input_ids=IDS, labels=IDS).loss
            if first:
                torch.autograd.grad(first * loss, model.transformer.wte.weight, retain_graph=True)
            loss.backward()
        grads.append(model.transformer.h[0].mlp.c_fc.weight.grad)
    torch.testing.assert_close(*grads)


# Callbacks


def test_with_everything_off_no_callback_of_ours_is_there(tmp_path):
    def ours(run):
        return [c for c in run.callback_handler.callbacks if type(c).__module__.startswith("hf_rksp")]

    run = trainer(tmp_path, gpt2(), kss=False, monitor=False)
    assert ours(run) == []
    run.train()
    on = trained(tmp_path, gpt2())
    assert ours(run) == [] and ours(on) == [on.rksp]


def test_a_monitor_among_the_callbacks_is_the_monitor(tmp_path):
    mine = RKSPCallback(MonitorConfig(every=1, rank=8), report=False)
    run = trained(tmp_path, gpt2(), callbacks=[mine])
    assert run.rksp is mine
    steps = [row["step"] for row in rows(tmp_path) if row["kind"] == "reading"]
    assert steps == [0, 1, 2, 3] and not (tmp_path / "rksp_history_2.jsonl").exists()
    late = trainer(tmp_path / "late", gpt2())
    late.add_callback(mine)
    late.train()
    assert late.rksp is mine
    assert [row["step"] for row in rows(tmp_path / "late") if row["kind"] == "reading"] == [0, 1, 2, 3]


def test_two_monitors_are_refused_before_the_first_step(tmp_path):
    config = MonitorConfig()
    with pytest.raises(InputError, match="monitor="):
        trainer(tmp_path, gpt2(), monitor=config, callbacks=[RKSPCallback(config)])
    with pytest.raises(InputError, match="2 RKSPCallback"):
        trainer(tmp_path, gpt2(), callbacks=[RKSPCallback(config), RKSPCallback(config)])
    run = trainer(tmp_path, gpt2(), monitor=config)
    run.add_callback(RKSPCallback(config))
    with pytest.raises(InputError, match="callbacks"):
        run.train()
    assert run.state.global_step == 0


def test_a_trainer_whose_model_is_no_module(tmp_path, caplog):
    callback = RKSPCallback(MonitorConfig(every=1))
    wrapped = types.SimpleNamespace(body=gpt2())
    args, state, control = trainer(tmp_path, gpt2(), None, Trainer).args, TrainerState(max_steps=1), TrainerControl()
    for event in ("on_train_begin", "on_step_begin", "on_step_end", "on_train_end"):
        state.global_step = int(event in ("on_step_end", "on_train_end"))
        getattr(callback, event)(args, state, control, model=wrapped)
    callback.on_log(args, state, control, logs={"loss": 1.0})
    (text,) = said(caplog)
    assert re.search(r"SimpleNamespace.*torch\.nn\.Module", text) and not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("name", ["kss_rank", "kss_every", "kss_layer_fraction", "spectrum_every", "spectrum_rank"])
def test_errors_name_the_argument(name, tmp_path):
    with pytest.raises(InputError, match=rf"^{name}=-1"):
        trainer(tmp_path, None, **{name: -1})


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_batches_of_one_token(schedule, tmp_path, caplog):
    """Too few tokens are no fault of the numbers: counted as skipped, and no rank is named that cannot be."""
    settings = {"kss_schedule": schedule, "kss_every": 1, "kss_layer_fraction": 1.0, "per_device_train_batch_size": 1}
    run = trained(tmp_path, gpt2(), token_rows(tokens=1), spectrum_every=1, **settings)
    assert logged(run, "kss/skipped") == [3, 6, 9, 12] == logged(run, "spectrum/skipped")
    assert logged(run, "kss/dropped") == [0] * 4
    (text,) = said(caplog, "KSS leaves out")
    assert "1 tokens" in text and "16 tokens or more" in text and "kss_rank=" not in text


def test_a_stack_that_cannot_be_read_keeps_nothing_of_its_probe(tmp_path, monkeypatch):
    """Why it cannot is kept for the whole run; an error would keep the states that it saw."""
    probes = []

    def refuses(stack, contents, seen, *rest):
        probes.append(weakref.ref(seen))
        raise CaptureError("no probe tells the tokens")

    monkeypatch.setattr(layouts, "layout_of", refuses)
    monkeypatch.setattr(layouts.Layouts, "_by_sizes", lambda *rest: None)
    model = gpt2(0.0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gc.collect()
    gc.disable()
    try:
        with TrainingRun(model, tmp_path, 1, [SpectralMonitor(MonitorConfig(every=1))], optimizer=optimizer) as run:
            model(input_ids=IDS, labels=IDS).loss.backward()
            assert run.step()["spectrum/skipped"] > 0 and probes
            assert [probe() for probe in probes] == [None] * len(probes)
    finally:
        gc.enable()
