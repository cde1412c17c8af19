"""The residual blocks of every architecture are found, and what is captured is the residual stream itself."""

from itertools import pairwise

import pytest
import torch

from hf_rksp.capture import find_stacks
from tests.capture.models import CASES, WIDTH, text, transitions
from tests.versions import OLD

#: transformers before 5.9 has other paths, another embedding, or a mistake (Zamba2).
_BUILT_OTHERWISE = ("vit", "swin", "gemma", "gemma2", "zamba2")


@pytest.fixture(autouse=True)
def _known_here(request):
    if OLD and request.node.name.partition("[")[2].removesuffix("]").removesuffix("-head") in _BUILT_OTHERWISE:
        pytest.skip("transformers before 5.9 builds it otherwise")


FORMS = [(name, head) for name, case in CASES.items() for head in ([False, True] if case.head else [False])]
IDS = [f"{name}-head" if head else name for name, head in FORMS]


def first_states(case, model, batch):
    """The state before the first block of each stack, from what the model itself reports, in the order of stacks."""
    with torch.no_grad():
        if case.embeds:
            return [model.get_submodule(case.embeds)(batch["pixel_values" if case.inputs == "image" else "input_ids"])]
        if case.inputs == "text+image":
            vision = model.vision_model
            images = vision.pre_layrnorm(vision.embeddings(batch["pixel_values"]))
            return [model.text_model.embeddings(batch["input_ids"]), images]
        output = model(**batch, output_hidden_states=True)
    if case.inputs.endswith(">text"):
        return [output.encoder_hidden_states[0], output.decoder_hidden_states[0]]
    return output.hidden_states[: len(case.stacks)]  # Swin reports one state a stage


@pytest.mark.parametrize(("name", "head"), FORMS, ids=IDS)
def test_blocks_are_found_in_order(name, head):
    case = CASES[name]
    model = case.build(head)
    stacks = find_stacks(model)
    assert [(stack.path, len(stack.blocks)) for stack in stacks] == list(case.paths(head).items())
    for stack in stacks:
        assert [block.index for block in stack.blocks] == list(range(len(stack.blocks)))
        assert all(model.get_submodule(block.path) is block.module for block in stack.blocks)


@pytest.mark.parametrize(("name", "head"), FORMS, ids=IDS)
def test_transitions_chain_and_move(name, head):
    case = CASES[name]
    batch = case.batch()
    seen = transitions(case.build(head), batch)
    assert {path: len(states) for path, states in seen.items()} == case.paths(head)
    for states in seen.values():
        assert all(x.shape[0] == 3 and x.ndim == 3 and x.shape == y.shape for x, y in states)
        assert all(not torch.equal(x, y) for x, y in states)
        assert all(torch.equal(before[1], after[0]) for before, after in pairwise(states))


@pytest.mark.parametrize("name", CASES)
def test_the_first_state_is_the_embedding(name):
    case = CASES[name]
    model, batch = case.build(), case.batch()
    expected = first_states(case, model, batch)
    seen = transitions(model, batch)
    assert len(expected) == len(seen)
    for states, embedding in zip(seen.values(), expected, strict=True):
        assert torch.equal(states[0][0], embedding)


def test_the_first_state_of_gpt2_is_word_plus_position():
    model, batch = CASES["gpt2"].build(), CASES["gpt2"].batch()
    x = transitions(model, batch)["h"][0][0]
    with torch.no_grad():
        positions = torch.arange(batch["input_ids"].shape[1])
        torch.testing.assert_close(x, model.wte(batch["input_ids"]) + model.wpe(positions))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.norm])
def test_the_last_state_is_before_the_final_norm(name):
    case = CASES[name]
    model, batch = case.build(), case.batch()
    *_, (_, y) = list(transitions(model, batch).values())[-1]
    with torch.no_grad():
        reported = model(**batch).last_hidden_state
        assert not torch.allclose(y, reported)
        assert torch.equal(model.get_submodule(case.norm)(y), reported)


def test_the_list_of_wav2vec2_convolutions_is_not_a_stack():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_conv_pos_embeddings": 4}
    model = Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embedding_groups=2)).eval()
    seen = transitions(model, {"input_values": torch.randn(2, 64)})
    assert {path: len(states) for path, states in seen.items()} == {"encoder.layers": 2}


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_hooks_do_not_change_what_the_model_computes(name):
    case = CASES[name]
    model, batch = case.build(), case.batch()
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        transitions(model, batch)
        assert torch.equal(model(**batch).last_hidden_state, before)


def test_the_batch_maker_pads():
    mask = text(4, torch.Generator().manual_seed(0))["attention_mask"]
    assert mask.sum(1).tolist() == [9, 8, 7, 6]
