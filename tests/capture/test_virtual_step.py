"""A virtual step moves what it should, and everything is as before afterwards, to the bit."""

import math
import random

import numpy
import pytest
import torch
from torch import nn

from hf_rksp.capture.virtual_step import restored, virtual_step
from hf_rksp.errors import InputError
from tests.capture.steps import everything, texts, tiny_gpt2


class Restless(nn.Module):
    """A module whose forward pass changes all that one may change."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("absent", None)
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.absent = torch.ones(1)
        self.register_buffer("new", torch.ones(1))
        random.random(), numpy.random.rand(), torch.rand(1), torch.rand(1, generator=self.generator)
        return self.norm(self.inner(x))


def ones_for(model):
    return {name: torch.ones_like(weight) for name, weight in model.named_parameters()}


def state_of(model):
    return everything(model) | {"own": model.generator.get_state().tolist(), "names": list(model._buffers)}


def test_weights_move_by_the_learning_rate():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with virtual_step(model, {"weight": torch.full((2, 3), 2.0)}, 0.25):
        assert torch.equal(model.weight, before - 0.5)
    assert torch.equal(model.weight, before)


def test_everything_is_put_back():
    model = Restless()
    with torch.no_grad():
        model.inner.weight[0, 0], model.inner.weight[0, 1] = math.nan, -0.0
    before = state_of(model)
    with virtual_step(model, ones_for(model), 1e-7 / 3):
        model(torch.randn(4, 3))
        assert all(before[name] != now for name, now in state_of(model).items() if name in CHANGED)
    assert state_of(model) == before


#: What `Restless` and the step change: the test above has to see each of them.
CHANGED = ("weights", "buffers", "torch", "python", "numpy", "own", "names")


def test_after_an_exception_too():
    model = Restless()
    before = state_of(model)
    with pytest.raises(KeyError, match="the loss is broken"), virtual_step(model, ones_for(model), 0.1):
        model(torch.randn(4, 3))
        raise KeyError("the loss is broken")
    assert state_of(model) == before


def test_two_passes_in_two_contexts_draw_the_same():
    model, x = nn.Sequential(nn.Linear(3, 50), nn.Dropout()), torch.randn(4, 3)
    outputs = []
    for _ in range(2):
        with restored(model):
            outputs.append(model(x))
    assert torch.equal(*outputs)
    assert not torch.equal(model(x), model(x))  # without the context they would not


def test_a_tied_weight_moves_once():
    model = tiny_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    names, before = dict(model.named_parameters()), model.lm_head.weight.detach().clone()
    assert "lm_head.weight" not in names
    with virtual_step(model, ones_for(model), 1.0):
        assert torch.equal(model.lm_head.weight, before - 1)
    assert torch.equal(model.lm_head.weight, before)
    with pytest.raises(InputError, match=r"direction\['lm_head\.weight'\]: GPT2LMHeadModel has no such parameter"):
        with virtual_step(model, {"lm_head.weight": before}, 1.0):
            pass


def test_two_parameters_that_share_memory_move_as_under_an_optimizer():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight.data = model[0].weight.data
    before = model[0].weight.detach().clone()
    with virtual_step(model, ones_for(model), 1.0):
        assert torch.allclose(model[0].weight, before - 2)
    assert torch.equal(model[0].weight, before) and torch.equal(model[1].weight, before)


def test_steps_may_be_nested():
    model = nn.Linear(2, 2)
    before, direction = model.weight.detach().clone(), {"weight": torch.ones(2, 2)}
    with virtual_step(model, direction, 0.1):
        moved = model.weight.detach().clone()
        with virtual_step(model, direction, 0.3):
            assert torch.allclose(model.weight, before - 0.4)
        assert torch.equal(model.weight, moved)
    assert torch.equal(model.weight, before)


def test_a_small_step_takes_the_slope_off_the_loss():
    model, (batch,) = tiny_gpt2(), texts(1)
    loss = model(**batch).loss
    names, weights = zip(*model.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    expected = sum(float(g.square().sum()) for g in gradient.values())
    with virtual_step(model, gradient, 1e-3), torch.no_grad():
        slope = float(loss - model(**batch).loss) / 1e-3
    assert slope == pytest.approx(expected, rel=0.05)


def test_a_compiled_model_goes_by_the_names_inside():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with virtual_step(torch.compile(model, backend="eager"), {"weight": torch.ones(2, 2)}, 1.0):
        assert torch.equal(model.weight, before - 1)


@pytest.mark.parametrize(
    ("direction", "lr", "match"),
    [
        ({"weight": torch.ones(2, 2)}, math.nan, "lr=nan"),
        ({"other": torch.ones(2, 2)}, 1.0, r"direction\['other'\]"),
        ({"weight": torch.ones(2)}, 1.0, r"has shape \(2,\).*\(2, 2\)"),
    ],
)
def test_refusals(direction, lr, match):
    model = nn.Linear(2, 2)
    before = everything(model)
    with pytest.raises(InputError, match=match), virtual_step(model, direction, lr):
        pytest.fail("it went in")
    assert everything(model) == before


def test_a_model_that_hooks_its_blocks_in_its_first_pass_is_not_hooked_twice():
    """transformers does so for hidden states, and marks the model."""
    model, (batch,) = tiny_gpt2(), texts(1)
    tables = [dict(module._forward_hooks) for module in model.modules()]
    for _ in range(2):
        with restored(model), torch.no_grad():
            assert len(model(**batch, output_hidden_states=True).hidden_states) == model.config.n_layer + 1
        assert [dict(module._forward_hooks) for module in model.modules()] == tables
    with torch.no_grad():
        assert len(model(**batch, output_hidden_states=True).hidden_states) == model.config.n_layer + 1


def test_a_hook_that_was_there_stays_also_if_it_has_removed_itself():
    model, calls = nn.Linear(2, 2), []

    def once(module, args):
        calls.append(1)
        handle.remove()

    handle = model.register_forward_pre_hook(once)
    with restored(model):
        model(torch.zeros(1, 2))
    model(torch.zeros(1, 2))
    assert len(calls) == 2 and not model._forward_pre_hooks


def test_a_lazy_module_stays_what_it_has_become():
    model = nn.Sequential(nn.LazyLinear(3))
    with restored(model):
        model(torch.zeros(1, 2))
    assert model(torch.zeros(1, 2)).shape == (1, 3)


def test_what_is_merely_called_like_hooks_is_left_alone():
    model = nn.Linear(2, 2)
    model.my_hooks = {}
    with restored(model):
        model.my_hooks["a"] = 1
    assert model.my_hooks == {"a": 1}
