"""The caller's model comes back as it went in, also after an exception."""

import random

import numpy
import pytest
import torch

from hf_rksp.capture import capture_transitions, find_stacks, untouched
from hf_rksp.profile import profile_model
from tests.capture.models import CASES

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)


def state_of(model):
    """Everything that a profile might leave behind."""
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [list(getattr(module, kind)) for kind in HOOKS] for name, module in model.named_modules()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "weights": {name: (value.dtype, value.tolist()) for name, value in model.state_dict().items()},
        "config": model.config.to_dict(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [str(part) for part in numpy.random.get_state()],
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(params=["gpt2", "bart", "mixtral"])
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(case):
    """A model with dropout, some modules training and some not, one gradient, one frozen weight and its own hook."""
    model = case.build(head=True)
    model.train()
    stack = find_stacks(model)[-1]
    stack.blocks[0].module.eval()
    next(stack.blocks[1].module.children()).eval()
    first, second, *_ = model.parameters()
    first.grad = torch.ones_like(first)
    second.requires_grad_(False)
    stack.blocks[1].module.register_forward_hook(lambda *_: None)
    assert model.config.use_cache
    return model


def break_block(model, action):
    """Make ``action`` happen in the middle of the second block of the last stack."""
    inner = list(find_stacks(model)[-1].blocks[1].module.children())[-1]
    inner.forward = lambda *args, **kwargs: action()


def test_after_a_profile(model, case):
    before = state_of(model)
    profile_model(model, [case.batch(8)], groups=4, progress=False)
    assert state_of(model) == before


def test_after_a_profile_in_several_passes(model, case):
    before = state_of(model)
    profile_model(model, [case.batch(8)], groups=0, moment_memory=1, progress=False)
    assert state_of(model) == before


def test_after_a_block_that_raises(model, case):
    before = state_of(model)

    def raises():
        torch.rand(3)
        raise RuntimeError("the block is broken")

    break_block(model, raises)
    with pytest.raises(RuntimeError, match="the block is broken"):
        profile_model(model, [case.batch(8)], groups=0, progress=False)
    assert state_of(model) == before


def test_after_a_sink_that_raises(model, case):
    before = state_of(model)

    def sink(stack, block, x, y):
        if block.index == 1:
            raise KeyError("the sink is broken")

    with pytest.raises(KeyError, match="the sink is broken"), untouched(model):
        with capture_transitions(find_stacks(model), sink):
            model(**case.batch())
    assert state_of(model) == before


def test_after_an_input_that_is_refused(model, case):
    before = state_of(model)
    with pytest.raises((TypeError, ValueError), match=r"input_ids|no_such_input"):
        profile_model(model, [{"no_such_input": torch.zeros(1, 2)}], groups=0, progress=False)
    assert state_of(model) == before


def test_the_profile_sees_evaluation_mode(model, case):
    """Dropout is off: two profiles of a model in training agree, and gradients are off."""
    first, second = (profile_model(model, [case.batch(8)], groups=0, progress=False) for _ in range(2))
    assert [layer.spectral_radius for layer in first.layers] == [layer.spectral_radius for layer in second.layers]
    with untouched(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()


def test_a_module_that_overrides_train_is_not_called():
    model = CASES["llama"].build().train()
    model.layers[0].train = lambda mode=True: pytest.fail("train() was called")
    with untouched(model):
        assert not model.layers[0].mlp.training
    assert model.layers[0].mlp.training


def test_random_numbers_inside_do_not_move_the_state():
    model = CASES["gpt2"].build()
    before = torch.get_rng_state()
    with untouched(model):
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
