"""Towers that transformers does not mark, blocks that change the state, and stacks of which nobody can tell the tokens."""

import weakref

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_rksp import profile_model
from hf_rksp.capture import find_stacks, needs_probe, restore
from hf_rksp.check import check_model
from hf_rksp.errors import CaptureError
from tests.capture.models import Mix

B, T, D, VOCAB = 4, 6, 16, 40


def ids(n=B, seed=0):
    return torch.randint(3, VOCAB, (n, T), generator=torch.Generator().manual_seed(seed))


def images(n=B, patches=3):
    return torch.randn(n, patches, 5, generator=torch.Generator().manual_seed(1))


class Marked(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.mix = Mix()

    def forward(self, hidden_states):
        return self.mix(hidden_states)


class Reader(nn.Module):
    """A marked text tower, an image tower of other blocks, and heads; ``between`` acts between the image's blocks."""

    def __init__(self, between=lambda x: x, merge=lambda x: x, text=Marked):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.patch = nn.Embedding(VOCAB, D), nn.Linear(5, D)
        self.vision = nn.ModuleDict({"layers": nn.ModuleList(Mix() for _ in range(3))})
        self.text = nn.ModuleDict({"layers": nn.ModuleList(text() for _ in range(2))})
        self.heads = nn.ModuleList(Mix() for _ in range(2))
        self.between, self.merge = between, merge
        self.eval()

    def forward(self, input_ids=None, pixel_values=None):
        if pixel_values is not None:
            x = self.merge(self.patch(pixel_values))
            for block in self.vision["layers"]:
                x = self.between(block(x))
        x = self.embed(input_ids)
        for block in self.text["layers"]:
            x = block(x)
        return [head(x) for head in self.heads]


BATCH = {"input_ids": ids(), "pixel_values": images()}


def profiled(model, batch=None, **values):
    return profile_model(model, [batch or BATCH], rank=2, groups=0, progress=False, **values)


def tokens(profile):
    return {layer.path: layer.tokens for layer in profile.layers}


def test_a_tower_that_is_not_marked_is_found_by_running():
    model = Reader()
    assert needs_probe(model) and [stack.path for stack in find_stacks(model)] == ["text.layers"]
    found = tokens(profiled(model))
    assert found == {f"vision.layers.{i}": 3 * B for i in range(3)} | {f"text.layers.{i}": T * B for i in range(2)}


def test_a_tower_that_a_batch_does_not_reach_is_not_looked_at():
    assert set(tokens(profiled(Reader(), {"input_ids": ids()}))) == {"text.layers.0", "text.layers.1"}


def test_blocks_that_do_not_hand_on_their_state_are_named():
    with pytest.warns(
        UserWarning, match=r"vision.layers take and return states of one shape.*not profiled.*'vision.layers'"
    ):
        found = profiled(Reader(between=lambda x: x + 1))
    assert set(tokens(found)) == {"text.layers.0", "text.layers.1"}
    assert "vision.layers" in found.notes[0] and not any("heads" in note for note in found.notes)


def test_no_more_than_two_states_of_a_list_are_held_while_looking():
    kept = []

    def watch(x):
        kept.append(weakref.ref(x))
        assert sum(ref() is not None for ref in kept) <= 3
        return x

    model = Reader(between=watch)
    model.vision["layers"] = nn.ModuleList(Mix() for _ in range(8))
    assert [stack.path for stack in find_stacks(model, probe=lambda: model(**BATCH))] == [
        "vision.layers",
        "text.layers",
    ]


class Pooling(Marked):
    """Leaves one of two states, if there are as many as words."""

    def forward(self, hidden_states):
        y = self.mix(hidden_states)
        return y[:, ::2] if y.shape[1] == T else y


def test_a_marked_block_that_changes_the_state_is_left_out():
    model = Reader(text=Pooling)
    with pytest.warns(UserWarning, match=r"1 of 5 blocks change the shape of the state.*text.layers.0"):
        found = profiled(model)
    assert "text.layers.1" in tokens(found) and "text.layers.0" not in tokens(found)
    with pytest.raises(CaptureError, match=r"text.layers.0 \(Pooling\) took a state of shape \(4, 6, 16\)"):
        profiled(model, blocks="text.layers")  # who names a list means all of it


def test_a_named_list_is_refused_whatever_other_batches_reach():
    class Tied(Reader):
        def forward(self, input_ids=None, pixel_values=None):
            if pixel_values is not None:  # images pass through the same blocks, which pool them
                return self.text["layers"][0](self.patch(pixel_values))
            return super().forward(input_ids)

    model = Tied(text=Pooling)
    words = {"input_ids": ids()[:, :4]}  # so many the blocks do not pool
    with pytest.raises(CaptureError, match=r"text.layers.0 \(Pooling\) took a state of shape \(4, 6, 16\)"):
        profile_model(
            model,
            [words, {"pixel_values": images(patches=T)}],
            blocks="text.layers",
            rank=2,
            groups=0,
            progress=False,
        )


def test_a_stack_of_which_nobody_can_tell_the_tokens_leaves_the_others():
    mixed = Reader(merge=lambda x: (x + x.mean(0, keepdim=True)).repeat(1, 2, 1))
    with pytest.warns(UserWarning, match=r"The layers of vision.layers are left out: .*several sequences"):
        found = profiled(mixed)
    assert set(tokens(found)) == {"text.layers.0", "text.layers.1"}
    with pytest.raises(CaptureError, match="several sequences of the batch at once"):
        profiled(mixed, blocks=["vision.layers", "text.layers"])


def test_if_no_stack_can_be_read_the_profile_is_refused():
    mixed = Reader(merge=lambda x: (x + x.mean(0, keepdim=True)).repeat(1, 2, 1))
    mixed.text["layers"] = nn.ModuleList()
    with pytest.raises(CaptureError, match="several sequences of the batch at once"):
        profiled(mixed)


def test_a_stack_that_has_another_number_of_states_at_each_pass_leaves_the_others():
    def merge(x):
        return x[:, : 1 + int(x.sum() * 1000) % 3].repeat_interleave(2, 1)

    with pytest.warns(UserWarning, match=r"vision.layers are left out: the number of states of vision.layers changes"):
        found = profiled(Reader(merge=merge))
    assert set(tokens(found)) == {"text.layers.0", "text.layers.1"}


def test_stacks_are_restored_from_their_paths():
    model = Reader()
    found = restore(model, [{"text.layers": ("text.layers.0",)}, {"vision.layers": (), "text.layers": ()}])
    assert [stack.path for stack in found] == ["vision.layers", "text.layers"]
    assert [block.path for block in found[1].blocks] == ["text.layers.1"] and found[1].members == 2


def test_a_second_stream_beside_the_first_is_named():
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": D}
    config = transformers.LukeConfig(vocab_size=VOCAB, entity_vocab_size=9, entity_emb_size=D, **sizes)
    entities = {
        "entity_ids": torch.ones(B, 2).long(),
        "entity_attention_mask": torch.ones(B, 2).long(),
        "entity_position_ids": torch.zeros(B, 2, 3).long(),
    }
    model, words = (
        transformers.LukeModel(config).eval(),
        {"input_ids": ids(), "attention_mask": torch.ones(B, T).long()},
    )
    with pytest.warns(
        UserWarning, match=r"encoder.layer take and return a second stream of states, of shape \(4, 2, 16\)"
    ):
        assert set(tokens(profiled(model, words | entities)).values()) == {B * T}
    assert not profiled(model, words).notes


def test_check_finds_blocks_that_are_not_marked():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.config = transformers.PreTrainedConfig(pad_token_id=0)
            self.embed, self.layers = nn.Embedding(VOCAB, D), nn.ModuleList(Mix() for _ in range(2))

        def forward(self, input_ids, attention_mask=None):
            x = self.embed(input_ids)
            for block in self.layers:
                x = block(x)
            return x

    agreements = {found.check: found for found in check_model(Plain().eval(), ids(16))}
    assert agreements["alone_vs_padded"].agrees and agreements["batch_1_vs_8"].layer.startswith("layers.")


SMALL = {"vocab_size": VOCAB, "hidden_size": D, "num_attention_heads": 2, "intermediate_size": 16}


def test_a_model_of_one_shared_layer_that_runs_once():
    config = transformers.AlbertConfig(**SMALL, embedding_size=D, num_hidden_layers=1)
    found = profiled(transformers.AlbertModel(config).eval(), {"input_ids": ids()})
    assert tokens(found) == {"encoder.albert_layer_groups.0": B * T}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: transformers.XLMModel(transformers.XLMConfig(vocab_size=VOCAB, emb_dim=D, n_layers=3, n_heads=2)),
            "Each block is spread over them",
        ),
        (
            lambda: transformers.SqueezeBertModel(
                transformers.SqueezeBertConfig(**SMALL, embedding_size=D, num_hidden_layers=2)
            ),
            r"calls their forward\(\) itself",
        ),
    ],
    ids=["spread over lists", "past the hooks"],
)
def test_models_without_a_module_for_a_block_are_refused_with_the_reason(model, reason):
    with pytest.raises(CaptureError, match=rf"Looked at these lists of modules: .*{reason}") as error:
        profiled(model().eval(), {"input_ids": ids()})
    assert "blocks=" not in str(error.value)  # which could not help


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_tower_that_later_batches_reach_is_profiled(order):
    batches = [{"input_ids": ids()}, BATCH]
    found = profile_model(Reader(), [batches[i] for i in order], rank=2, groups=0, progress=False)
    assert tokens(found) == {f"vision.layers.{i}": 3 * B for i in range(3)} | {
        f"text.layers.{i}": 2 * T * B for i in range(2)
    }


@pytest.mark.parametrize("memory", [None, 1.0], ids=["one pass", "a layer a pass"])
def test_runs_that_later_batches_add_are_layers_too(memory):
    """A video of two frames runs the tower twice."""

    class Frames(Reader):
        def forward(self, input_ids=None, pixel_values=None):
            for frame in pixel_values.unbind(1):
                x = self.patch(frame)
                for block in self.vision["layers"]:
                    x = block(x)
            return x

    videos = [{"pixel_values": torch.randn(B, n, 3, 5, generator=torch.Generator().manual_seed(n))} for n in (1, 2)]
    found = profile_model(
        Frames(), videos, blocks="vision.layers", rank=2, groups=0, progress=False, moment_memory=memory
    )
    assert tokens(found) == {f"vision.layers.{i}": 6 * B for i in range(3)} | {
        f"vision.layers.{i} (run 2)": 3 * B for i in range(3)
    }
    assert [layer.path[-7:] == "(run 2)" for layer in found.layers] == [False] * 3 + [True] * 3


def test_a_model_may_write_into_its_inputs():
    class Scaling(Reader):
        def forward(self, input_ids=None, pixel_values=None):
            pixel_values *= 2
            return super().forward(input_ids, pixel_values)

    batch = {"input_ids": ids(), "pixel_values": images()}
    profiled(Scaling(), batch)
    assert torch.equal(batch["pixel_values"], images())


def test_generators_of_the_model_are_put_back():
    model = Reader()
    model.noise = torch.Generator().manual_seed(3)
    model.merge = lambda x: x + 0 * torch.rand(1, generator=model.noise)
    profiled(model)
    assert torch.equal(torch.rand(1, generator=model.noise), torch.rand(1, generator=torch.Generator().manual_seed(3)))
