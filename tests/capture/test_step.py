"""What a step would do: closed forms on a quadratic, invariances, everything untouched, refusals."""

import dataclasses
import json
import math
import types

import pytest
import torch
from torch import nn

from hf_rksp.capture.hvp import trainable
from hf_rksp.errors import InputError, NonFiniteError
from hf_rksp.profile import measure_step
from hf_rksp.profile.line_search import CoordinateCheck, first_crossing
from hf_rksp.profile.step import Summary, summarise
from tests.capture.steps import Quadratic, centres, everything, quadratic_loss, spd, texts, tiny_gpt2
from tests.versions import needs_muon

SIZE = 5


def quadratic(count=8, **changes):
    """A quadratic, its batches and the measurement of a step of gradient descent on it."""
    model, batches = Quadratic(spd(SIZE)), centres(count, SIZE)
    settings = {"optimizer": "sgd", "progress": False, **changes}
    return model, batches, measure_step(model, quadratic_loss, batches, **settings)


def gradients(model, batches):
    return [-model.matrix @ centre for centre in batches]


def test_a_quadratic_has_closed_forms():
    model, batches, measured = quadratic()
    g = gradients(model, batches)
    assert [(pair.direction_batch, pair.loss_batch) for pair in measured.pairs] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    for pair in measured.pairs:
        a, b = g[pair.direction_batch], g[pair.loss_batch]
        slope, bend = float(a @ b), float(a @ model.matrix @ a)
        assert pair.slope == pytest.approx(slope, rel=1e-12)
        assert pair.curvature == pytest.approx(bend, rel=1e-12)
        assert pair.quadratic_critical_lr == pytest.approx(2 * slope / bend, rel=1e-12)
        assert pair.critical_lr == pytest.approx(2 * slope / bend, rel=1 / 32)
        assert pair.direction_norm == pytest.approx(float(a.norm()), rel=1e-12)
        assert pair.loss == pytest.approx(float(batches[pair.loss_batch] @ -b / 2), rel=1e-12)
    assert measured.losses == pytest.approx([float(c @ model.matrix @ c / 2) for c in batches], rel=1e-12)
    assert measured.gradient_norms == pytest.approx([float(v.norm()) for v in g], rel=1e-12)
    every = torch.stack(g)
    noise = float(every.var(dim=0).sum())
    signal = float(every.mean(0).square().sum()) - noise / len(g)
    assert measured.noise_scale == pytest.approx(noise / signal, rel=1e-10)
    assert (measured.without_descent, measured.without_curvature, measured.without_crossing) == (0, 0, 0)
    assert measured.parameters == SIZE and measured.share_without_gradient == 0


def test_the_summary_is_that_of_the_pairs():
    measured = quadratic()[2]
    rates = sorted(pair.critical_lr for pair in measured.pairs)
    assert measured.critical_lr.n == 4
    assert measured.critical_lr.median == pytest.approx((rates[1] + rates[2]) / 2)
    assert measured.critical_lr.lower == pytest.approx(rates[0] + 0.75 * (rates[1] - rates[0]))
    assert summarise([None, 3.0]) == Summary(1, 3.0, 3.0, 3.0)
    assert summarise([None]) is None


def test_fewer_batches_go_round():
    measured = quadratic(3, pairs=3)[2]
    assert [(pair.direction_batch, pair.loss_batch) for pair in measured.pairs] == [(0, 1), (1, 2), (2, 0)]


def test_the_order_of_pairs_and_of_batches_changes_no_summary():
    model, batches, measured = quadratic()
    turned = measure_step(model, quadratic_loss, batches[4:] + batches[:4], optimizer="sgd", progress=False)
    assert turned.losses == measured.losses[4:] + measured.losses[:4]
    assert turned.pairs[0].slope == measured.pairs[2].slope
    for pair, same in zip(turned.pairs, measured.pairs[2:] + measured.pairs[:2], strict=True):
        assert pair.critical_lr == pytest.approx(same.critical_lr, rel=1e-12)  # each on the grid of its own
        assert pair.forwards <= 9
    for name in ("critical_lr", "quadratic_critical_lr"):
        assert dataclasses.astuple(getattr(turned, name)) == pytest.approx(dataclasses.astuple(getattr(measured, name)))
    assert turned.noise_scale == pytest.approx(measured.noise_scale, rel=1e-12)
    # Any order leaves what belongs to batches alone.
    mixed = measure_step(model, quadratic_loss, batches[::-1], optimizer="adam_averaged", progress=False)
    same = measure_step(model, quadratic_loss, batches, optimizer="adam_averaged", progress=False)
    assert mixed.noise_scale == pytest.approx(same.noise_scale, rel=1e-12)
    assert mixed.share_below_eps == same.share_below_eps


@pytest.mark.parametrize("factor", [8.0, 0.3])
def test_a_longer_direction_has_a_smaller_learning_rate(factor):
    plain = quadratic()[2]
    longer = quadratic(optimizer=lambda gradients: {name: factor * g for name, g in gradients.items()})[2]
    for pair, other in zip(plain.pairs, longer.pairs, strict=True):
        assert other.slope == pytest.approx(factor * pair.slope)
        assert other.curvature == pytest.approx(factor**2 * pair.curvature)
        assert other.quadratic_critical_lr == pytest.approx(pair.quadratic_critical_lr / factor)
        # The search begins at the critical learning rate of the quadratic, where rounding says on which side it is.
        assert other.critical_lr == pytest.approx(pair.critical_lr / factor, rel=1 / 16)
        assert abs(other.forwards - pair.forwards) <= 1


def test_no_descent_no_curvature_no_crossing():
    size = 4
    ascent = quadratic(optimizer=lambda gradients: {name: -g for name, g in gradients.items()})[2]
    assert ascent.without_descent == 4 and ascent.critical_lr is None and ascent.quadratic_critical_lr is None
    assert all(pair.slope < 0 < pair.curvature and pair.forwards == 0 for pair in ascent.pairs)

    model, batches = Quadratic(-torch.eye(size, dtype=torch.float64)), centres(8, size)
    falling = measure_step(model, quadratic_loss, batches, optimizer="sgd", progress=False)
    assert falling.without_curvature == falling.without_crossing == 4 and falling.without_descent == 0
    assert falling.pairs[0].curvature < 0 and falling.critical_lr is None

    still = quadratic(optimizer=lambda gradients: {name: 0 * g for name, g in gradients.items()})[2]
    assert still.without_descent == 4 and "The direction from batch 0 is zero." in still.notes

    rising = measure_step(
        model, quadratic_loss, batches, optimizer=lambda g: {n: -v for n, v in g.items()}, progress=False
    )
    assert rising.without_descent == 4 and rising.without_curvature == 0 and rising.pairs[0].curvature < 0


@pytest.mark.parametrize("constant", [0.0, 1.4375], ids=["some loss", "no loss"])
def test_without_curvature_the_search_still_goes_by_the_scale(constant):
    """``w^4 - 6 w^2`` is concave at .5 and falls until it rises again behind its minimum."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor(0.5).double())})
    loss = lambda model, batch: model["w"] ** 4 - 6 * model["w"] ** 2 + constant  # noqa: E731
    step = math.sqrt(6 - 0.25) - 0.5  # where the loss is again what it was
    for factor in (1.0, 0.7, 1e-4):
        rule = lambda gradients, factor=factor: {"w": factor * gradients["w"]}  # noqa: E731
        (pair,) = measure_step(model, loss, [0, 0], optimizer=rule, pairs=1, progress=False).pairs
        assert pair.quadratic_critical_lr is None and pair.curvature < 0
        assert pair.critical_lr == pytest.approx(step / (5.5 * factor), rel=1 / 32)
        assert pair.forwards <= 11


def test_noise_alone_has_no_scale():
    model = Quadratic(torch.eye(4, dtype=torch.float64))
    centre = torch.arange(1, 5, dtype=torch.float64)
    assert measure_step(model, quadratic_loss, [centre, -centre], pairs=1, progress=False).noise_scale is None


def test_a_loss_that_is_not_a_number_has_risen():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    loss = lambda model, batch: (model.weight - batch).log().sum()  # noqa: E731
    measured = measure_step(model, loss, [torch.tensor(0.0)] * 2, optimizer="sgd", pairs=1, progress=False)
    assert measured.critical_lr.median == pytest.approx(1, rel=1 / 16)  # at 1 the logarithm ends


def test_entries_below_eps_and_tensors_without_gradient():
    model = nn.ParameterDict({name: nn.Parameter(torch.ones(4)) for name in ("moves", "rests", "unused")})
    factors = torch.tensor([1.0, 1e-4, 1e-6, 0.0])
    loss = lambda model, batch: (factors * model["moves"]).sum() ** 2 * batch + 0 * model["rests"].sum()  # noqa: E731
    measured = measure_step(model, loss, [1.0, 1.0], pairs=1, eps=1e-3, progress=False)
    assert measured.share_without_gradient == pytest.approx(2 / 3)
    assert measured.share_below_eps == pytest.approx(11 / 12)
    assert measured.eps == 1e-3


def test_first_crossing():
    seen = []

    def crossed(lr):
        seen.append(lr)
        return lr >= 5

    for start in (0.01, 1.0, 5.0, 700.0):
        seen.clear()
        result = first_crossing(crossed, start)
        assert result.lr == pytest.approx(5, rel=1 / 32) and result.evaluations == len(seen)
    assert first_crossing(lambda lr: False, 1.0) == first_crossing(lambda lr: True, 1.0)
    assert first_crossing(lambda lr: False, 1.0).lr is None
    with pytest.raises(InputError, match=r"start=0\.0"):
        first_crossing(crossed, 0.0)
    with pytest.raises(InputError, match="start=inf"):
        first_crossing(crossed, math.inf)


class Residual(nn.Module):
    """Blocks ``h -> h + W h``, the second one ten times as strong."""

    class Block(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.inner = nn.Linear(3, 3, bias=False).double()
            self.size = size
            nn.init.zeros_(self.inner.weight)

        def forward(self, x):
            return x + self.size * self.inner(x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(size) for size in (0.1, 1.0)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_the_coordinate_check_of_a_linear_block():
    """With ``W = -lr * (-I)`` in both blocks the outputs change by ``.1 lr`` and by ``(1 + .1 lr)(1 + lr) - 1``."""
    model, batch = Residual(), torch.ones(2, 4, 3, dtype=torch.float64)
    direction = {name: -torch.eye(3, dtype=torch.float64) for name in trainable(model)}
    loss = lambda model, batch: model(batch).square().mean()  # noqa: E731
    measured = measure_step(model, loss, [batch, 2 * batch], optimizer=lambda _: direction, pairs=1, progress=False)
    expected = (-1.1 + math.sqrt(1.1**2 + 4 * 0.1 * 0.1)) / 0.2
    check = measured.coordinate_check
    assert check.block == "blocks.1" and check.threshold == 0.1
    assert check.lr == pytest.approx(expected, rel=1 / 32)
    assert measured.notes == ()


def test_a_step_that_moves_no_block_has_no_learning_rate():
    model, batch = Residual(), torch.ones(2, 4, 3, dtype=torch.float64)
    model.head = nn.Parameter(torch.ones(1, dtype=torch.float64))
    loss = lambda model, batch: model(batch).sum() * model.head.square().sum()  # noqa: E731
    rule = lambda gradients: {"head": gradients["head"]}  # noqa: E731
    measured = measure_step(model, loss, [batch, batch], optimizer=rule, pairs=1, progress=False)
    assert measured.coordinate_check == CoordinateCheck(None, None, 0.1, 43)


def test_a_model_without_blocks_says_so():
    measured = quadratic()[2]
    assert measured.coordinate_check is None
    assert len(measured.notes) == 1 and measured.notes[0].startswith("No coordinate check: ")


class Halved(torch.autograd.Function):
    """A function whose derivative is written in Python."""

    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, g):
        return g / 2


def test_cost_is_what_was_called():
    model, batches, calls = Quadratic(spd(SIZE)), centres(8, SIZE), []

    def loss(model, batch):
        calls.append(batch)
        return quadratic_loss(model, batch)

    def once(model, batch):
        calls.append(batch)
        return Halved.apply(model.weights - batch) @ (model.weights - batch)

    for function, settings in (
        (loss, {}),
        (loss, {"optimizer": "adam_averaged"}),
        (loss, {"method": "central_differences"}),
        (loss, {"pairs": 2, "first_step": 0.1}),
        (once, {}),
    ):
        calls.clear()
        measured = measure_step(model, function, batches, progress=False, **settings)
        assert measured.cost.forwards == len(calls)
        assert measured.cost.products == len(measured.pairs) and measured.cost.seconds > 0
    # What cannot be differentiated twice is tried once: a forward pass, and three for each product.
    line_searches = sum(pair.forwards for pair in measured.pairs)
    assert measured.cost.forwards == 1 + 1 + 4 + 4 * 3 + line_searches


@pytest.mark.parametrize(
    "optimizer", ["adam", "adam_averaged", "sgd", pytest.param("muon", marks=needs_muon), "object"]
)
@pytest.mark.parametrize("training", [False, True])
def test_all_of_it_is_untouched(optimizer, training):
    model, batches = tiny_gpt2(dropout=0.1).train(), texts(4)
    model.transformer.h[0].eval()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in batches[:2]:
        model(**batch).loss.backward()
        theirs.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 0.5)  # gradients and a counter are there
    before, inputs = everything(model, theirs), [{n: v.clone() for n, v in b.items()} for b in batches]
    which = theirs if optimizer == "object" else optimizer
    measured = measure_step(model, None, batches, optimizer=which, first_step=1e-3, training=training, progress=False)
    assert everything(model, theirs) == before and scheduler.last_epoch == 0
    assert all(torch.equal(v, i[n]) for b, i in zip(batches, inputs, strict=True) for n, v in b.items())
    assert measured.coordinate_check.block.startswith("transformer.h.")
    json.dumps(dataclasses.asdict(measured), allow_nan=False)  # plain numbers


def test_a_model_that_writes_into_its_inputs():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            x.add_(1)
            return types.SimpleNamespace(loss=(self.weight * x).square().sum())

    batches = [{"x": torch.ones(3)}, {"x": torch.ones(3)}]
    measured = measure_step(Writes(), None, batches, pairs=1, progress=False)
    assert measured.losses == (12, 12) and all(torch.equal(batch["x"], torch.ones(3)) for batch in batches)


def test_settings_are_refused_before_any_work():
    calls = []
    for settings in ({"method": "exact"}, {"pairs": 9}, {"optimizer": "lion"}, {"first_step": -1.0}, {"eps": 0.0}):
        with pytest.raises(InputError):
            measure_step(tiny_gpt2(), lambda *_: calls.append(1), texts(4), progress=False, **settings)
    assert not calls


def test_untouched_after_an_exception():
    model, batches, calls = tiny_gpt2().train(), texts(4), []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == 9:
            raise KeyError("the loss is broken")
        return model(**batch).loss

    before = everything(model)
    with pytest.raises(KeyError, match="the loss is broken"):
        measure_step(model, loss, batches, progress=False)
    assert everything(model) == before


def test_dropout_is_off_unless_asked_for_and_then_the_same_in_every_pass():
    model, batches = tiny_gpt2("eager", dropout=0.2).train(), texts(2)
    settings = {"optimizer": "sgd", "pairs": 2, "progress": False}
    off, on = (measure_step(model, None, batches, training=flag, **settings) for flag in (False, True))
    again = measure_step(model, None, batches, training=True, **settings)
    assert off.losses == measure_step(model.eval(), None, batches, **settings).losses
    assert on.losses != off.losses and on.pairs == again.pairs
    for pair in on.pairs:  # one loss function: its slope is seen in the line search too
        assert pair.critical_lr is None or 0.01 < pair.critical_lr / pair.quadratic_critical_lr < 100


def test_central_differences_measure_the_same():
    model, batches = tiny_gpt2(), texts(4)
    exact, differences = (
        measure_step(model, None, batches, method=method, progress=False)
        for method in ("double_backward", "central_differences")
    )
    assert exact.curvature_method == "double_backward" and differences.curvature_method == "central_differences"
    for pair, other in zip(exact.pairs, differences.pairs, strict=True):
        assert other.slope == pytest.approx(pair.slope, rel=1e-4)
        scale = pair.direction_norm**2 * 1e-2
        assert other.curvature == pytest.approx(pair.curvature, rel=1e-2, abs=scale)


def test_lora_is_measured_after_a_step_of_b():
    from peft import LoraConfig, get_peft_model

    model, batches = (
        get_peft_model(tiny_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)),
        texts(4),
    )
    a = sum(w.numel() for name, w in trainable(model).items() if "lora_A" in name)
    total = sum(w.numel() for w in trainable(model).values())
    before = everything(model)
    still = measure_step(model, None, batches, progress=False)
    moved = measure_step(model, None, batches, first_step=1e-2, progress=False)
    assert everything(model) == before
    assert still.share_without_gradient == pytest.approx(a / total) and still.first_step is None
    assert moved.share_without_gradient == 0 and moved.first_step == 1e-2
    assert moved.losses[0] < still.losses[0]  # the step went down


def test_the_first_step_is_along_the_mean_gradient():
    model, batches, measured = quadratic(first_step=0.1)
    w = -0.1 * torch.stack(gradients(model, batches)).mean(0)
    expected = [float((w - c) @ model.matrix @ (w - c) / 2) for c in batches]
    assert measured.losses == pytest.approx(expected, rel=1e-12)
    slope = float((model.matrix @ (w - batches[0])) @ (model.matrix @ (w - batches[1])))
    assert measured.pairs[0].slope == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"batches": texts(1)}, InputError, "batches: got 1; pass at least two"),
        ({"pairs": 5}, InputError, "pairs=5: .* from 1 to the number of batches, 4"),
        ({"pairs": 0}, InputError, "pairs=0"),
        ({"first_step": 0.0}, InputError, r"first_step=0\.0"),
        ({"eps": 0.0}, InputError, r"eps=0\.0"),
        ({"optimizer": "lion"}, InputError, "optimizer='lion': pass 'adam'"),
        ({"optimizer": 3}, InputError, "optimizer=3: pass 'adam'"),
        ({"method": "exact"}, InputError, "method='exact'"),
        ({"blocks": "layers"}, InputError, "blocks='layers'"),
        ({"model": tiny_gpt2().requires_grad_(False)}, InputError, "no trainable parameter"),
        ({"model": tiny_gpt2().bfloat16()}, InputError, r"'transformer.wte.weight' is torch.bfloat16"),
        ({"batches": [{"input_ids": b["input_ids"]} for b in texts(4)]}, InputError, "loss=None: .* add labels"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)}, InputError, "no trainable parameter"),
        ({"loss": lambda model, batch: model(**batch).logits}, InputError, r"it returned \(3, 12, 32\)"),
        ({"loss": lambda model, batch: model(**batch).loss * math.nan}, NonFiniteError, r"batches\[0\]: loss=nan"),
    ],
)
def test_refusals(changes, error, match):
    arguments = {"model": tiny_gpt2(), "loss": None, "batches": texts(4), "progress": False, **changes}
    model = arguments.pop("model")
    before = everything(model)
    with pytest.raises(error, match=match):
        measure_step(model, arguments.pop("loss"), arguments.pop("batches"), **arguments)
    assert everything(model) == before


def test_memory_for_the_vectors_is_asked_for_before_the_first_pass(monkeypatch):
    model = tiny_gpt2()
    needed = 5 * 4 * sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr("hf_rksp.profile.gradients.available_memory", lambda: needed - 1)
    with pytest.raises(InputError, match=r"5 vectors of its [\d,]+ trainable weights take .* GiB are free"):
        measure_step(model, lambda *_: pytest.fail("a pass"), texts(4), progress=False)
    model.transformer.wte.weight.requires_grad_(False)  # as fine-tuning of a part does
    assert 0 < measure_step(model, None, texts(2), pairs=1, progress=False).parameters < needed / 20
