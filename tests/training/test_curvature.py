"""The curvature monitor on real steps: the eigenvalue of the dense operator, no effect on the run, and what it refuses."""

import gc
import json
import math
import weakref

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_rksp import (
    AlignmentConfig,
    AlignmentMonitor,
    AttentionConfig,
    AttentionMonitor,
    CurvatureConfig,
    CurvatureMonitor,
    RKSPCallback,
    RKSPTrainer,
)
from hf_rksp.capture.calling import untouched
from hf_rksp.capture.hvp import Hessian, hessian_at, trainable
from hf_rksp.errors import InputError
from hf_rksp.history.read import read_history
from hf_rksp.training import TrainingRun
from hf_rksp.training.extra_pass import loss_beside
from hf_rksp.training.preconditioner import read_preconditioner
from tests.training.common import assert_same_weights, gpt2, hooks, token_rows, trained, trainer
from tests.training.test_alignment import batches

SMALL = {"vocab_size": 12, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 9}


def small(dropout=0.0, seed=0):
    return gpt2(dropout, seed, **SMALL).double()


def rows(count, vocabulary=12, seed=0):
    ids = torch.randint(3, vocabulary, (count, 9), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": part, "labels": part.clone()} for part in ids.split(4)]


class Counting(RKSPTrainer):
    """Counts and averages what its loss was, in plain attributes; the loss is divided by the average."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.seen.append(float(loss.detach()))
        self.kinds["train" if self.model.training else "eval"].append(1)
        self.mean = loss.detach() if self.mean is None else 0.9 * self.mean + 0.1 * loss.detach()
        return loss / self.mean


def adam(model, lr=1e-2, **changes):
    return torch.optim.AdamW(model.parameters(), lr=lr, **changes)


def loop(folder, model, data, optimizer, config=None, state=None, stop=None, watched=True, after=None):
    """Train; the readings of the history, and the last state."""
    before = hooks(model)
    monitors = [CurvatureMonitor(config or CurvatureConfig(every=1))] if watched else []
    with TrainingRun(model, folder, len(data), monitors, state=state, optimizer=optimizer) as run:
        while run.step_number < (stop or len(data)):
            batch = data[run.step_number]
            model(**batch).loss.backward()
            optimizer.step()
            if after is not None:
                after(batch)
            optimizer.zero_grad()
            run.step()
        state = json.loads(json.dumps(run.state_dict()))
    assert hooks(model) == before
    return (read_history(folder).of("curvature") if watched else ()), state


def dense(model, batch, optimizer, floor=10):
    """Largest eigenvalue, and Rayleigh quotient at the gradient, of the whole matrix ``P^(-1/2) H P^(-1/2)``."""
    weights = trainable(model)
    size = sum(weight.numel() for weight in weights.values())
    flat = lambda values: torch.cat(  # noqa: E731
        [values.get(name, torch.zeros_like(weight)).reshape(-1) for name, weight in weights.items()]
    )
    with untouched(model), hessian_at(model, lambda: model(**batch).loss) as hessian:
        columns, gradient = [], flat(hessian.gradient)
        for unit in torch.eye(size, dtype=torch.float64):
            parts = unit.split([weight.numel() for weight in weights.values()])
            named = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
            columns.append(flat(hessian.product(named)))
    group = optimizer.param_groups[0]
    state = [optimizer.state[weight] for weight in weights.values()]
    root = torch.cat([(one["exp_avg_sq"] / (1 - group["betas"][1] ** float(one["step"]))).reshape(-1) for one in state])
    root = root.sqrt()
    scale = torch.where(root >= floor * group["eps"], (root + group["eps"]).rsqrt(), 0)
    operator = scale[:, None] * torch.stack(columns) * scale
    g = scale * gradient
    return float(torch.linalg.eigvalsh((operator + operator.T) / 2)[-1]), float(g @ operator @ g / (g @ g)), root


def test_a_reading_is_that_of_the_dense_operator(tmp_path):
    model, found = small(), []
    optimizer = adam(model)
    data = rows(12)
    readings, _ = loop(
        tmp_path, model, data, optimizer, after=lambda batch: found.append(dense(model.train(), batch, optimizer))
    )
    for step, (reading, (largest, along, root)) in enumerate(zip(readings, found, strict=True), 1):
        values = reading["values"]
        assert values["lambda_max"] == pytest.approx(largest, rel=3e-2), step
        assert values["lambda_max"] <= largest * (1 + 1e-9), "a Ritz value is a lower bound"
        assert values["lambda_direction"] == pytest.approx(along, rel=1e-6)
        assert values["ratio_step"] == pytest.approx(1e-2 * values["lambda_max"] / 2)
        assert values["ratio_momentum"] == pytest.approx(1e-2 * values["lambda_max"] / (1 - 0.9**step) / 38)
        assert values["left_out"] == pytest.approx(float((root < 1e-7).double().mean()))
        assert values["residual"] <= 0.05 and 5 <= reading["products"] <= (65 if step == 1 else 17)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_is_the_same_with_it_and_without(tmp_path, dropout):
    data, models = batches(token_rows(24).rows), [gpt2(dropout).train(), gpt2(dropout).train()]
    for model, watched in zip(models, (True, False), strict=True):
        torch.manual_seed(1)
        loop(tmp_path / str(watched), model, data, adam(model), watched=watched)
    assert_same_weights(*models)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_a_trainer_and_in_a_callback(tmp_path, accumulate):
    """The trainer hands over its own loss; a callback takes that of the model.

    Trainer divides that of a GPT-2 by all nine tokens, and the model by the eight that are predicted.
    """
    found, more = [], {"gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 4 // accumulate}
    for kind in ("trainer", "callback"):
        folder = tmp_path / kind
        if kind == "trainer":
            one = trainer(folder, gpt2(0.0), token_rows(16), kss=False, spectrum=False, curvature_every=2, **more)
        else:
            callback = RKSPCallback(False, monitors=[CurvatureMonitor(CurvatureConfig(every=2))])
            one = trainer(folder, gpt2(0.0), token_rows(16), Trainer, TrainingArguments, callbacks=[callback], **more)
        one.train()
        found.append(read_history(folder).of("curvature"))
    assert len(found[0]) == 2
    for a, b in zip(*found, strict=True):
        scaled = {
            key: value * (8 / 9 if key not in ("residual", "left_out") else 1) for key, value in b["values"].items()
        }
        assert a["values"] == pytest.approx(scaled, rel=1e-5)


def test_what_a_loss_counts_is_put_back(tmp_path):
    found = []
    for every in (0, 1):
        seen = []
        one = trainer(
            tmp_path / str(every), gpt2(0.0), token_rows(16), Counting, kss=False, spectrum=False, curvature_every=every
        )
        one.seen, one.kinds, one.mean = seen, {"train": [], "eval": []}, None
        kinds = one.kinds
        one.train()
        assert one.seen is seen and one.kinds is kinds and len(seen) == len(kinds["train"]) == 4 and not kinds["eval"]
        found.append(one)
    assert_same_weights(*(one.model for one in found))
    assert float(found[0].mean) == float(found[1].mean)


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path, caplog):
    model = gpt2(0.0).train()
    monitor = CurvatureMonitor(CurvatureConfig(every=1, sequences=2))
    with TrainingRun(model, tmp_path, 2, [monitor], optimizer=adam(model)) as run:
        run.microbatch({"patches": torch.zeros(64, 3)})
        model(**batches(token_rows(4).rows)[0]).loss.backward()
        run.step()
    assert "curvature_sequences=2: the tensors of the batch have" in caplog.text


def test_differences_in_half_precision_are_refused(tmp_path, caplog):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return Once.apply(model(**batch).loss)

    model = gpt2(0.0).train()
    optimizer = adam(model)
    with TrainingRun(model, tmp_path, 2, [CurvatureMonitor()], optimizer=optimizer, loss=loss) as run:
        model(**batches(token_rows(4).rows)[0]).loss.backward()
        optimizer.step()
        numbers = run.step()
    assert numbers["curvature/skipped"] == 1 and "half precision" in caplog.text


def test_a_larger_eigenvalue_elsewhere_is_found(tmp_path):
    """Two parts of a network that do not touch each other: the old eigenvector stays one, and is not the largest."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(40, dtype=torch.float64))
            self.h = nn.ModuleList([nn.Identity(), nn.Identity()])
            self.scale = torch.ones(40, dtype=torch.float64)
            self.scale[0] = 10.0

        def forward(self, x):
            for block in self.h:
                x = block(x)
            return (self.scale * (self.weight - 3).square()).sum() / 2 + 0 * x.sum()

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    monitor = CurvatureMonitor(CurvatureConfig(every=1))
    with TrainingRun(
        model, tmp_path, 4, [monitor], blocks="h", optimizer=optimizer, loss=lambda batch: model(batch["x"])
    ) as run:
        for step in range(4):
            if step == 2:
                model.scale[1] = 60.0
            model(torch.zeros(2, 3, 4)).backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
    assert read_history(tmp_path).of("curvature")[-1]["values"]["lambda_max"] == pytest.approx(60, rel=0.02)


def test_kss_is_no_part_of_the_loss(tmp_path):
    """Its term and its hooks are of the run: a reading at the same weights is the same with KSS and without."""
    found = []
    for kss in (True, False):
        folder = tmp_path / str(kss)
        one = trainer(folder, gpt2(0.0), token_rows(4), kss=kss, spectrum=False, curvature_every=1, max_steps=1,
                      learning_rate=1e-9, kss_schedule="paper", kss_every=1)  # fmt: skip
        one.train()
        found.append(read_history(folder).of("curvature")[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)


def test_accumulated_batches_and_a_part_of_a_batch(tmp_path):
    model = gpt2(0.0).train()
    data = batches(token_rows(8).rows)
    (whole, *_), _ = loop(tmp_path / "whole", model, data[:1], adam(model, 1e-9))
    model = gpt2(0.0).train()
    (part, *_), _ = loop(tmp_path / "part", model, data[:1], adam(model, 1e-9), CurvatureConfig(every=1, sequences=2))
    assert part["loss"] != whole["loss"]
    with untouched(model):
        assert part["loss"] == pytest.approx(
            float(model(**{name: value[:2] for name, value in data[0].items()}).loss), abs=1e-5
        )


def test_the_first_batch_in_every_reading(tmp_path):
    model = gpt2(0.0).train()
    readings, _ = loop(
        tmp_path, model, batches(token_rows(12).rows), adam(model, 1e-12), CurvatureConfig(every=1, data="first")
    )
    assert len({round(row["loss"], 6) for row in readings}) == 1
    model = gpt2(0.0).train()
    readings, _ = loop(tmp_path / "batch", model, batches(token_rows(12).rows), adam(model, 1e-12))
    assert len({round(row["loss"], 6) for row in readings}) == 3


def test_a_resumed_run_reads_what_an_uninterrupted_one_does(tmp_path):
    """As far as both have converged: the eigenvector is not in a checkpoint."""
    data = batches(token_rows(24).rows)
    model = gpt2(0.0).train()
    whole, _ = loop(tmp_path / "whole", model, data, adam(model))
    model = gpt2(0.0).train()
    optimizer = adam(model)
    _, state = loop(tmp_path / "cut", model, data, optimizer, stop=3)
    readings, _ = loop(tmp_path / "cut", model, data, optimizer, state=state)
    assert [row["step"] for row in readings] == list(range(6))
    for a, b in zip(readings, whole, strict=True):
        assert a["values"]["lambda_direction"] == pytest.approx(b["values"]["lambda_direction"], rel=1e-5)
        assert a["values"]["lambda_max"] == pytest.approx(b["values"]["lambda_max"], rel=0.15)


def test_groups_with_learning_rates_of_their_own(tmp_path):
    """The operator has their ratio in it: a group that does not move has no curvature."""
    model = small()
    named = dict(model.named_parameters())
    slow = [weight for name, weight in named.items() if "mlp" in name]
    rest = [weight for name, weight in named.items() if "mlp" not in name]
    optimizer = torch.optim.Adam([{"params": rest}, {"params": slow, "lr": 0.0}], lr=1e-2)
    (reading,), _ = loop(tmp_path / "groups", model, rows(4), optimizer)
    frozen = small()
    for name, weight in frozen.named_parameters():
        weight.requires_grad = "mlp" not in name
    only = torch.optim.Adam([weight for weight in frozen.parameters() if weight.requires_grad], lr=1e-2)
    (alone,), _ = loop(tmp_path / "alone", frozen, rows(4), only)
    for name in ("lambda_max", "lambda_direction"):
        assert reading["values"][name] == pytest.approx(alone["values"][name], rel=2e-2)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 2.0), ({"momentum": 0.9}, 3.8), ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8)],
)
def test_sgd_has_no_preconditioner(tmp_path, settings, limit):
    model = small()
    (reading,), _ = loop(tmp_path, model, rows(4), torch.optim.SGD(model.parameters(), lr=1e-3, **settings))
    values = reading["values"]
    assert values["ratio_momentum"] == pytest.approx(1e-3 * values["lambda_max"] / limit)
    assert values["left_out"] == 0


def test_a_quadratic_becomes_unstable_at_the_limit_that_is_stated():
    """Each a little below its limit and a little above; dampening makes the momentum a mean, as that of Adam is."""
    heavy = {"momentum": 0.9}
    for settings in ({}, heavy, heavy | {"nesterov": True}, heavy | {"dampening": 0.9}):
        group = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0, **settings)
        limit = read_preconditioner(group, {"w": group.param_groups[0]["params"][0]}).momentum_limit
        ends = []
        for factor in (0.98, 1.02):
            weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = torch.optim.SGD([weight], lr=1.0, **settings)
            for _ in range(2000):
                weight.grad = factor * limit * weight.detach()
                optimizer.step()
            ends.append(float(weight.detach().abs()))
        assert ends[0] < 1e-3 and not ends[1] < 1e3


def test_power_iteration_as_published(tmp_path):
    model = small()
    optimizer = adam(model)
    config = CurvatureConfig(every=1, method="power", products=5)
    readings, _ = loop(tmp_path, model, rows(12), optimizer, config)
    assert all(row["products"] <= 6 for row in readings[1:])
    assert all(math.isfinite(row["values"]["lambda_max"]) for row in readings)


def test_an_overshooting_run_is_an_alarm(tmp_path):
    model = gpt2(0.0).train()
    data = [batches(token_rows(4).rows)[0]] * 40
    config = CurvatureConfig(every=1, limit=1.0)
    loop(tmp_path, model, data, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), config)
    assert not [row for row in read_history(tmp_path).events if row["what"] == "alarm"]
    model = gpt2(0.0).train()
    loop(tmp_path / "large", model, data, torch.optim.SGD(model.parameters(), lr=3.0), config)
    events = [row for row in read_history(tmp_path / "large").events if row["what"] == "alarm"]
    assert events and events[0]["rule"] == "curvature" and "stability limit" in events[0]["text"]
    model = gpt2(0.0).train()
    loop(tmp_path / "silent", model, data[:8], torch.optim.SGD(model.parameters(), lr=3.0))
    assert not read_history(tmp_path / "silent").events, "no alarms unless they are asked for"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: None, "optimizer=None"),
        (lambda model: torch.optim.Adagrad(model.parameters()), "optimizer=Adagrad"),
        (lambda model: torch.optim.AdamW([nn.Parameter(torch.ones(1))]), "moves no trainable parameter"),
    ],
)
def test_what_cannot_be_read_is_said_once_and_the_run_goes_on(tmp_path, caplog, change, words):
    model = gpt2(0.0).train()
    with TrainingRun(model, tmp_path, 3, [CurvatureMonitor()], optimizer=change(model)) as run:
        run.parts[0].config = CurvatureConfig(every=1)
        for batch in batches(token_rows(12).rows):
            model(**batch).loss.backward()
            numbers = run.step()
    assert numbers == {"curvature/skipped": 3.0}
    assert caplog.text.count(words) == 1 and "curvature_every=0" in caplog.text
    assert not read_history(tmp_path).of("curvature")


@pytest.mark.parametrize("product", [1, 2, 4])
def test_a_reading_that_runs_out_of_memory_keeps_nothing_of_it(tmp_path, monkeypatch, product):
    """The graph of a reading is as large as that of a step: if it stayed, the next step would fail."""
    model, graphs, calls = gpt2(0.0).train(), [], [0]
    multiply = Hessian.product

    def failing(self, vectors):
        graphs.append(weakref.ref(self))
        calls[0] += 1
        if calls[0] == product:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return multiply(self, vectors)

    monkeypatch.setattr(Hessian, "product", failing)
    optimizer = adam(model)
    gc.collect()
    gc.disable()
    try:
        with TrainingRun(model, tmp_path, 2, [CurvatureMonitor(CurvatureConfig(every=1))], optimizer=optimizer) as run:
            model(**batches(token_rows(4).rows)[0]).loss.backward()
            optimizer.step()
            numbers = run.step()
            assert numbers["curvature/skipped"] == 1 and calls[0] == product
            assert [graph() for graph in graphs] == [None] * product
    finally:
        gc.enable()


def test_weights_that_are_not_finite(tmp_path, caplog):
    model = gpt2(0.0).train()
    optimizer = adam(model)

    def broken(batch):
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)

    readings, _ = loop(tmp_path, model, batches(token_rows(4).rows), optimizer, after=broken)
    assert not readings and "has to be finite" in caplog.text


@pytest.mark.parametrize(
    ("monitor", "config"),
    [(CurvatureMonitor, CurvatureConfig), (AlignmentMonitor, AlignmentConfig), (AttentionMonitor, AttentionConfig)],
)
def test_a_monitor_that_would_never_read_is_refused(monitor, config):
    with pytest.raises(InputError, match="every=0"):
        monitor(config(dwell=2))


def test_settings_are_checked_by_the_names_of_the_arguments(tmp_path):
    for name, value in (
        ("products", 0),
        ("dwell", 0),
        ("data", "probe"),
        ("method", "qr"),
        ("limit", 0.0),
        ("sequences", 0),
    ):
        with pytest.raises(InputError, match=f"curvature_{name}="):
            trainer(tmp_path, gpt2(), **{f"curvature_{name}": value})


def test_a_weight_that_is_thawed_begins_the_search_anew(tmp_path, caplog):
    model = small()
    frozen = list(model.parameters())[-2:]
    for weight in frozen:
        weight.requires_grad_(False)

    def thaw(run, step):
        for weight in frozen:
            weight.requires_grad_(step >= 1)

    optimizer = adam(model)
    data = rows(16)
    with TrainingRun(model, tmp_path, 4, [CurvatureMonitor(CurvatureConfig(every=1))], optimizer=optimizer) as run:
        for step in range(4):
            thaw(run, step)
            model(**data[step]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
    assert len(read_history(tmp_path).of("curvature")) == 4 and "must match" not in caplog.text


@pytest.mark.parametrize("needs", [True, False])
def test_a_loss_of_ones_own_gets_the_number_of_its_tokens(tmp_path, needs):
    """As in training and evaluation. A sum of losses would have a curvature that is as many times too large."""

    def own(outputs, labels, num_items_in_batch=None):
        logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return (
            total / num_items_in_batch if needs else total / (1 if num_items_in_batch is None else num_items_in_batch)
        )

    found = []
    for more in ({}, {"compute_loss_func": own}):
        run = trained(
            tmp_path / str(len(more)), gpt2(dropout=0.0), kss="off", curvature_every=1, max_steps=2, risk="warn", **more
        )
        said = [event for event in read_history(tmp_path / str(len(more))).events if event["by"] == "risk"]
        found.append([row["curvature/lambda_max"] for row in run.state.log_history if "curvature/lambda_max" in row])
        found[-1].append(said[0]["p_lost"])
        assert run.args.average_tokens_across_devices
    assert found[0] == pytest.approx(found[1], rel=1e-2)


class Shares(RKSPTrainer):
    """Adds a term that it divides by the accumulated batches if it knows the tokens of all, as TRL's SFTTrainer does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss + 3.0 / (self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_loss_beside_the_run_is_that_of_one_batch_on_one_device(tmp_path, devices):
    one = trainer(tmp_path, gpt2(0.0), kind=Shares)
    batch = {name: torch.stack([row[name] for row in token_rows(4).rows]) for name in ("input_ids", "labels")}
    one.args._n_gpu = devices
    with torch.no_grad():
        mean = float(one.model(**batch).loss)
        assert float(loss_beside(one, one.model, batch)) == pytest.approx(
            8 / 9 * mean + 3.0
        )  # nine tokens, eight predicted
        assert not hasattr(one, "current_gradient_accumulation_steps")
        one.current_gradient_accumulation_steps = 4
        assert float(loss_beside(one, one.model, batch)) == pytest.approx(8 / 9 * mean + 3.0)
    assert one.current_gradient_accumulation_steps == 4 and one.args._n_gpu == devices
    assert one.args.average_tokens_across_devices
