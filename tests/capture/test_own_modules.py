"""Models that are not from transformers: named lists, the probe, and what the errors say."""

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_rksp.capture import capture_transitions, find_stacks
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.profile import profile_model
from tests.capture.models import CASES, VOCAB, WIDTH


class Mix(nn.Module):
    """A residual block of one's own; ``in_place`` adds to its input."""

    def __init__(self, in_place=False):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.in_place = in_place

    def forward(self, x):
        update = self.inner(x)
        if self.in_place:
            x += update
            return x
        return x + update


class Net(nn.Module):
    def __init__(self, blocks, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.trunk = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.head = head or nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, VOCAB))

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.trunk["layers"]:
            x = block(x)
        return self.head(x)


@pytest.fixture
def tokens():
    return torch.randint(VOCAB, (4, 10), generator=torch.Generator().manual_seed(0))


def run(model, tokens, stacks):
    seen = []
    with torch.no_grad(), capture_transitions(stacks, lambda stack, block, x, y: seen.append((block.path, x, y))):
        model(tokens)
    return seen


def test_a_named_list(tokens):
    model = Net([Mix(), Mix(), Mix()])
    seen = run(model, tokens, find_stacks(model, "trunk.layers"))
    assert [path for path, _, _ in seen] == ["trunk.layers.0", "trunk.layers.1", "trunk.layers.2"]
    assert torch.equal(seen[0][1], model.embed(tokens))
    assert torch.equal(seen[0][2], seen[1][1])


def test_several_named_lists():
    model = CASES["t5"].build()
    assert [stack.path for stack in find_stacks(model, ["decoder.block", "encoder.block"])] == [
        "decoder.block",
        "encoder.block",
    ]


def test_the_probe_finds_the_list_that_chains(tokens):
    # The head chains too where its width is that of the stream, but it is made of bare layers.
    model = Net([Mix(), Mix(), Mix()], nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)))
    stacks = find_stacks(model, probe=lambda: model(tokens))
    assert [(stack.path, len(stack.blocks)) for stack in stacks] == [("trunk.layers", 3)]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_profile_needs_no_path_where_the_probe_succeeds(tokens):
    model = Net([Mix(), Mix(), Mix()])
    found = profile_model(model, [tokens], rank=4, groups=0, progress=False)
    named = profile_model(model, [tokens], blocks="trunk.layers", rank=4, groups=0, progress=False)
    assert [layer.path for layer in found.layers] == ["trunk.layers.0", "trunk.layers.1", "trunk.layers.2"]
    assert [layer.near_unit_mass for layer in found.layers] == [layer.near_unit_mass for layer in named.layers]


def test_a_list_that_is_the_model(tokens):
    model = nn.Sequential(Mix(), Mix())
    x = torch.randn(2, 5, WIDTH)
    assert [stack.path for stack in find_stacks(model, probe=lambda: model(x))] == [""]
    assert [path for path, _, _ in run(model, x, find_stacks(model, ""))] == ["0", "1"]


def test_a_list_with_something_else_in_it_is_no_stack():
    class Layer(GradientCheckpointingLayer):
        pass

    assert [stack.path for stack in find_stacks(nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()])}))] == [
        "layers"
    ]
    with pytest.raises(CaptureError, match="no residual blocks found"):
        find_stacks(nn.ModuleDict({"parts": nn.ModuleList([Layer(), nn.Linear(2, 2)])}))


def test_a_list_inside_a_block_is_no_stream(tokens):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.halves = nn.ModuleList([Mix(), Mix()])

        def forward(self, x):
            for half in self.halves:
                x = half(x)
            return x

    model = Net([Two(), Two()])
    assert [stack.path for stack in find_stacks(model, probe=lambda: model(tokens))] == ["trunk.layers"]
    model = nn.Sequential(Two(), Two())
    assert [stack.path for stack in find_stacks(model, probe=lambda: model(torch.randn(2, 5, WIDTH)))] == [""]


def test_images_with_channels_first_are_no_stream():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return x + self.inner(x)

    model = nn.Sequential(Convolution(), Convolution())
    with pytest.raises(CaptureError, match="no residual blocks found"):
        find_stacks(model, probe=lambda: model(torch.randn(2, 3, 8, 8)))


def test_the_probe_leaves_no_hooks_after_an_exception():
    model = Net([Mix(), Mix()])
    with pytest.raises(ZeroDivisionError):
        find_stacks(model, probe=lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_nothing_found_says_what_was_looked_at(tokens):
    class Parallel(Net):
        def forward(self, tokens):
            x = self.embed(tokens)
            return sum(block(x) for block in self.trunk["layers"])

    model = Parallel([Mix(), Mix(), Mix()])
    with pytest.raises(CaptureError) as error:
        find_stacks(model, probe=lambda: model(tokens))
    for part in ("in Parallel", "'trunk.layers' (3 x Mix)", "'head' (3 x Linear)", "blocks='path.to.list'", "--blocks"):
        assert part in str(error.value)
    with pytest.raises(CaptureError, match="Looked at these lists of modules: none"):
        find_stacks(nn.Linear(2, 2))


def test_a_wrong_path_lists_the_choices():
    model = Net([Mix(), Mix()])
    with pytest.raises(InputError, match=r"blocks='trunk.layer' is not .* of Net: choose among 'trunk.layers', "):
        find_stacks(model, "trunk.layer")
    with pytest.raises(InputError, match=r"blocks='embed' is not"):
        find_stacks(model, "embed")
    with pytest.raises(InputError, match="the model has no such list"):
        find_stacks(nn.Linear(2, 2), "layers")


def test_a_list_that_changes_the_shape_is_refused(tokens):
    model = Net([Mix(), Mix()])
    with pytest.raises(CaptureError, match=r"block head.2 \(Linear\) took a state of shape \(4, 10, 16\).*blocks="):
        run(model, tokens, find_stacks(model, "head"))


def test_a_list_that_takes_no_state_is_refused(tokens):
    model = Net([Mix()])
    model.lookup = nn.ModuleList([model.embed])
    with pytest.raises(CaptureError, match=r"block lookup.0 \(Embedding\) took no hidden state"):
        run(model, tokens, find_stacks(model, "lookup"))


def test_blocks_that_do_not_run_are_refused(tokens):
    model = Net([Mix()])
    model.spare = nn.ModuleList([Mix(), Mix()])
    with pytest.raises(CaptureError, match=r"none of the blocks of spare ran"):
        profile_model(model, [tokens], blocks="spare", groups=0, progress=False)


def test_blocks_that_add_in_place(tokens):
    model, in_place = Net([Mix(), Mix()]), Net([Mix(in_place=True), Mix(in_place=True)])
    in_place.load_state_dict(model.state_dict())
    expected = run(model, tokens, find_stacks(model, "trunk.layers"))
    got = run(in_place, tokens, find_stacks(in_place, "trunk.layers"))
    assert torch.equal(got[0][1], expected[0][1])  # the input of the first block is not the embedding plus an update
    found = find_stacks(in_place, probe=lambda: in_place(tokens))
    assert [stack.path for stack in found] == ["trunk.layers"]


def test_hidden_states_by_name_go_before_other_tensors():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, position_bias, hidden_states):
            return {"hidden_states": hidden_states + self.inner(hidden_states), "position_bias": position_bias}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Named(), Named()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(torch.zeros(2, 7), hidden_states=x)["hidden_states"]
            return x

    x = torch.randn(2, 5, WIDTH)
    model = Model()
    assert torch.equal(run(model, x, find_stacks(model, "layers"))[0][1], x)


def test_each_run_of_a_block_that_is_in_the_list_twice_is_a_layer(tokens):
    shared = Mix()
    model = Net([shared, shared, Mix()])
    seen = run(model, tokens, find_stacks(model, "trunk.layers"))
    assert [path for path, _, _ in seen] == ["trunk.layers.0", "trunk.layers.0 (run 2)", "trunk.layers.2"]
