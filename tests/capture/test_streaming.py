"""A model whose blocks are in memory one at a time gives the moments of the whole model, to the bit."""

import threading

import pytest
import torch

from hf_rksp.capture import find_stacks, lock_step, untouched
from hf_rksp.errors import CaptureError
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.profile.gather import gather_moments, stream_moments, survey
from tests.capture import models

#: One of each kind of block: dense, mixture of experts, state space, two stacks.
NAMES = ["gpt2", "llama", "mixtral", "olmoe", "mamba", "mamba2", "bert", "t5", "bart"]
TENSORS = ("mean_x", "mean_y", "cxx", "cyx", "cyy")


def config_of(name):
    return models.CASES[name].build().config


class Watched(Initialiser):
    """Notes which blocks had weights while batches went through."""

    def __init__(self, *args):
        super().__init__(*args)
        self.most = 0

    def make(self, block):
        super().make(block)
        there = [b for b in self.blocks if not any(p.is_meta for p in b.module.parameters())]
        self.most = max(self.most, len(there))


@pytest.mark.parametrize("name", NAMES)
def test_streamed_moments_are_those_of_the_whole_model(name):
    case = models.CASES[name]
    batches = [case.batch(3, seed) for seed in range(3)]
    whole = Initialiser(skeleton(config_of(name), torch.float32), 5).make_all()
    stacks = find_stacks(whole)
    with untouched(whole):
        layers = list(survey(whole, batches[0], stacks))
        want, _ = gather_moments(whole, batches, stacks, layers, 2)

    weights = Watched(skeleton(config_of(name), torch.float32), 5)
    weights.make_rest()
    model = weights.model.eval()
    with untouched(model):
        got = {key: moments for key, moments, _ in stream_moments(model, batches, find_stacks(model), 2, weights)}
    assert list(got) == layers
    for key in layers:
        for one, other in zip(got[key], want[key], strict=True):
            assert one.count == other.count > 0
            assert all(torch.equal(getattr(one, tensor), getattr(other, tensor)) for tensor in TENSORS), key
    assert weights.most == 1
    assert torch._dynamo.eval_frame._stance.stance == "default"  # the compiler's, which is the process's own
    assert all(p.is_meta for block in weights.blocks for p in block.module.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_have_the_distribution_of_transformers():
    """Scaled output projections, S4D, experts: seen by the spread of every tensor."""
    for name in NAMES:
        theirs = type(models.CASES[name].build().base_model)(config_of(name))
        ours = Initialiser(skeleton(config_of(name), torch.float32), 0).make_all()
        mine = dict(ours.named_parameters())
        for path, tensor in theirs.named_parameters():
            assert not mine[path].is_meta, (name, path)
            if tensor.numel() >= 256 and float(tensor.std()) > 0:
                assert float(mine[path].std() / tensor.std()) == pytest.approx(1, abs=0.25), (name, path)
            elif tensor.unique().numel() == 1:
                assert torch.equal(mine[path], tensor), (name, path)
        for path, tensor in theirs.named_buffers():
            assert torch.equal(dict(ours.named_buffers())[path], tensor), (name, path)


def test_a_seed_names_the_weights():
    config = config_of("gpt2")
    one, same, other = (Initialiser(skeleton(config, torch.float32), seed).make_all() for seed in (1, 1, 2))
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not torch.equal(one.h[0].attn.c_attn.weight, other.h[0].attn.c_attn.weight)
    assert not torch.equal(one.h[0].attn.c_attn.weight, one.h[1].attn.c_attn.weight)
    doubled = Initialiser(skeleton(config, torch.float32), 1, double=True)
    doubled.make_all()
    block = doubled.blocks[0]
    for _ in range(2):
        assert torch.equal(block.module.attn.c_attn.weight, one.h[0].attn.c_attn.weight.double())
        doubled.drop(block)
        doubled.make(block)


def chain(*passes):
    """A model of three blocks, and calls of it."""
    torch.manual_seed(0)
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    stacks = find_stacks(torch.nn.ModuleDict({"layers": model}), "layers")
    return model, stacks[0].blocks, [lambda call=call: call(model) for call in passes]


def run(model, x=None):
    x = torch.ones(1, 2) if x is None else x
    for block in model:
        x = block(x)
    return x


def test_all_batches_pass_a_block_before_any_enters_the_next():
    seen = []
    _, blocks, passes = chain(run, run)
    for block, advance in lock_step(blocks, passes):
        seen.append(block.index)
        advance(lambda number: seen.append(f"batch {number}"))
    assert seen == [0, "batch 0", "batch 1", 1, "batch 0", "batch 1", 2, "batch 0", "batch 1"]


@pytest.mark.parametrize("at", [0, 2])
def test_an_exception_in_a_batch_comes_out_and_ends_the_others(at):
    def fails(model):
        run(model[:at])
        raise ZeroDivisionError

    model, blocks, passes = chain(run, fails, run)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        for _, advance in lock_step(blocks, passes):
            advance(lambda number: None)
    assert threading.active_count() == before
    assert not any(block._forward_pre_hooks for block in model)


def test_the_caller_may_leave_in_the_middle():
    model, blocks, passes = chain(run, run)
    before = threading.active_count()
    stages = lock_step(blocks, passes)
    next(stages)
    stages.close()
    assert threading.active_count() == before
    assert not any(block._forward_pre_hooks for block in model)
    assert run(model).requires_grad


def test_batches_that_part_ways_are_refused():
    _, blocks, passes = chain(run, lambda model: run(model[1:]))
    with pytest.raises(CaptureError, match="part ways"):
        for _, advance in lock_step(blocks, passes):
            advance(lambda number: None)


def test_the_random_state_is_left_alone():
    random = torch.get_rng_state()
    Initialiser(skeleton(config_of("gpt2"), torch.float32), 0).make_all()
    assert torch.equal(torch.get_rng_state(), random)
