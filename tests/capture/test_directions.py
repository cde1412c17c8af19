"""Directions are the updates that optimizers make."""

import copy

import pytest
import torch
from torch import nn

from hf_rksp.errors import InputError
from hf_rksp.profile.directions import averaged_adam, direction_of, muon
from tests.capture.steps import everything, tiny_gpt2
from tests.versions import needs_muon

OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {},
    "AdamW": {"amsgrad": True},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {},
    "Adafactor": {},
}


def small(name=""):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False))
    weights = [w for w in model.parameters() if w.ndim == 2 or name != "Muon"]
    return model, weights


def gradients_for(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(w.shape, generator=g) for name, w in model.named_parameters()}


def take_step(model, optimizer, gradients):
    for name, weight in model.named_parameters():
        weight.grad = gradients[name].clone()
    optimizer.step()


@pytest.mark.parametrize("name", [*OPTIMIZERS, pytest.param("Muon", marks=needs_muon)])
@pytest.mark.parametrize("earlier", [0, 3])
def test_the_direction_is_the_step_that_follows(name, earlier):
    model, weights = small(name)
    optimizer = getattr(torch.optim, name)(weights, lr=1e-2, weight_decay=0.0, **OPTIMIZERS.get(name, {}))
    for seed in range(earlier):
        take_step(model, optimizer, gradients_for(model, seed + 1))
    gradients, before = gradients_for(model), everything(model, optimizer)
    direction = direction_of(model, optimizer).rule(gradients)
    assert everything(model, optimizer) == before
    old = {n: w.detach().clone() for n, w in model.named_parameters()}
    take_step(model, optimizer, gradients)
    assert {n for n, w in model.named_parameters() if w.ndim == 2 or name != "Muon"} == set(direction)
    for n in direction:
        assert torch.allclose(old[n] - 1e-2 * direction[n], dict(model.named_parameters())[n], rtol=0, atol=2e-7), n


def test_adam_begins_with_the_sign():
    model, weights = small()
    gradients = gradients_for(model)
    gradients["0.weight"][0, 0], gradients["0.weight"][0, 1] = 0.0, 1e-8
    ours = direction_of(model, "adam").rule(gradients)
    torchs = direction_of(model, torch.optim.Adam(weights)).rule(gradients)
    for name in ours:
        assert torch.allclose(ours[name], torchs[name], rtol=1e-6, atol=0)
    assert ours["0.weight"][0, :2].tolist() == pytest.approx([0.0, 0.5])
    assert direction_of(model, "adam", eps=1.0).rule({"w": torch.tensor([1.0])})["w"].item() == 0.5


def test_averaged_adam_is_what_adam_tends_to():
    """Thousands of steps on the same few gradients at learning rate zero: v is their mean square, and m is near their mean."""
    model, weights = small()
    batches = [gradients_for(model, seed) for seed in range(4)]
    optimizer = torch.optim.Adam(weights, lr=0.0, betas=(0.0, 0.999))
    for step in range(12_000):
        take_step(model, optimizer, batches[step % 4])
    optimizer.param_groups[0]["lr"] = 1e-3
    second = {name: sum(g[name].square() for g in batches) / 4 for name in batches[0]}
    ours, torchs = averaged_adam(second, 1e-8)(batches[0]), direction_of(model, optimizer).rule(batches[0])
    for name in ours:
        assert torch.allclose(ours[name], torchs[name], rtol=1e-2)


def test_weight_decay_is_kept_apart_and_stated():
    model, weights = small()
    gradients, plain = gradients_for(model), direction_of(model, torch.optim.AdamW(weights, weight_decay=0.0))
    for kind in (torch.optim.AdamW, torch.optim.Adam):
        optimizer = kind([{"params": weights[:1], "weight_decay": 0.5}, {"params": weights[1:]}], weight_decay=0.25)
        result = direction_of(model, optimizer)
        assert result.weight_decay == (0.5, 0.25)
        for name, value in result.rule(gradients).items():
            assert torch.equal(value, plain.rule(gradients)[name])


def test_learning_rates_of_groups_keep_their_ratio():
    model, weights = small()
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.4}])
    gradients = gradients_for(model)
    direction = direction_of(model, optimizer).rule(gradients)
    assert torch.allclose(direction["0.weight"], gradients["0.weight"])
    assert torch.allclose(direction["0.bias"], 4 * gradients["0.bias"])


def test_a_warm_up_that_begins_at_zero_does_not_matter():
    model, weights = small()
    optimizer = torch.optim.SGD(weights, lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    gradients = gradients_for(model)
    assert torch.allclose(direction_of(model, optimizer).rule(gradients)["1.weight"], gradients["1.weight"])
    with pytest.raises(InputError, match=r"lr=0\.0"):
        direction_of(model, torch.optim.SGD(weights, lr=0.0))


def test_no_hook_and_no_attribute_of_the_optimizer_is_used_up():
    model, weights = small()

    class Counting(torch.optim.SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.factor = 3.0

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.sub_(weight.grad, alpha=self.factor * group["lr"])

    optimizer, called = Counting(weights, lr=0.1), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    gradients = gradients_for(model)
    assert torch.allclose(direction_of(model, optimizer).rule(gradients)["1.weight"], 3 * gradients["1.weight"])
    assert not called


def test_an_optimizer_inside_another_is_found():
    from accelerate import Accelerator

    model, weights = small()
    inner = torch.optim.SGD(weights, lr=0.1, weight_decay=0.1)
    wrapped = Accelerator(cpu=True).prepare(inner)
    assert wrapped is not inner
    result = direction_of(model, wrapped)
    assert result.name == "SGD" and result.weight_decay == (0.1,)


@needs_muon
def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = tiny_gpt2()
    names = {id(weight): name for name, weight in model.named_parameters()}
    first, second = muon(model)
    matrices = {names[id(w)] for w in first.param_groups[0]["params"]}
    others = {names[id(w)] for w in second.param_groups[0]["params"]}
    assert matrices == {
        n for n in names.values() if n.startswith("transformer.h.") and n.endswith("weight") and ".c_" in n
    }
    assert matrices | others == set(names.values()) and not matrices & others
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= others  # the first is the output layer too
    gradients = gradients_for(model)
    direction = direction_of(model, "muon").rule(gradients)
    before = copy.deepcopy(dict(model.named_parameters()))
    for name, weight in model.named_parameters():
        weight.grad = gradients[name]
    first.step(), second.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(before[name] - 1e-3 * direction[name], weight, rtol=0, atol=2e-6), name
    matrix = direction["transformer.h.0.mlp.c_fc.weight"]
    values = torch.linalg.svdvals(matrix / (0.2 * max(matrix.shape) ** 0.5))  # near orthogonal
    assert 0.5 < float(values.min()) and float(values.max()) < 1.5


def test_refusals():
    model, weights = small()
    with pytest.raises(InputError, match="LBFGS takes no step from a gradient alone"):
        direction_of(model, torch.optim.LBFGS(weights)).rule(gradients_for(model))


@needs_muon
def test_muon_without_a_matrix_is_refused():
    with pytest.raises(InputError, match="no trainable matrix"):
        direction_of(nn.LayerNorm(3), "muon")
