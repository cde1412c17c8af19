"""Layouts of models as they are in transformers: masks, sounds, images that are dropped, wrapped and looped blocks."""

import numpy
import pytest
import torch
import transformers
from torch import nn

from hf_rksp import profile_model
from hf_rksp.capture import Layouts, find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.capture.contents import contents_of, text_mask
from hf_rksp.capture.rules import Everything
from hf_rksp.errors import CaptureError, InputError
from tests.capture.models import Mix
from tests.versions import needs_transformers

B, T = 4, 10
TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE = {**{name: TEXT[name] for name in TEXT if name != "vocab_size"}, "image_size": 32, "patch_size": 8}
SOUND = {**TEXT, "feat_extract_norm": "layer", "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def ids(n=B, t=T, seed=0, last=99):
    return torch.randint(5, last, (n, t), generator=torch.Generator().manual_seed(seed))


def padded(n=B, t=T, less=2):
    return torch.stack([(torch.arange(t) < t - less * (i % 4)).long() for i in range(n)])


def built(cls, config):
    torch.manual_seed(0)
    return cls(config).eval()


def counts(model, batch, **values):
    """Tokens of each layer, by the path of its stack."""
    found = {}
    for layer in profile_model(model, [batch], rank=2, groups=0, progress=False, **values).layers:
        found.setdefault(layer.stack, []).append(layer.tokens)
    return found


# --- Masks ------------------------------------------------------------------------------------------------------------

CAUSAL = torch.tril(torch.ones(T, T)).bool()
ATTENTION = {
    "causal": CAUSAL,
    "in both directions": torch.ones(T, T).bool(),
    "a prefix in both directions": CAUSAL | (torch.arange(T) < 4),
}


def rows_of_padding(seen, real):
    """What a mask says in the rows of padding, by fashion."""
    eye, alike = torch.eye(T).bool(), ~real[:, :, None] & ~real[:, None]
    only = seen & real[:, None] & real[:, :, None]
    return {
        "real tokens": seen & real[:, None],
        "nothing": only,
        "themselves": only | eye,
        "their like": only | alike,
        "everything": only | ~only.any(-1, keepdim=True),
    }


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_four_dimensional_masks_of_every_fashion(attention, side):
    real = {"right": padded(), "left": padded().flip(1), "none": torch.ones(B, T)}[side].bool()
    text = ids() * real
    for fashion, seen in rows_of_padding(ATTENTION[attention], real).items():
        for dtype, low in (
            (torch.float32, torch.finfo(torch.float32).min),
            (torch.float32, -10000.0),
            (torch.float32, float("-inf")),
            (torch.float16, torch.finfo(torch.float16).min),
            (torch.bfloat16, -1e9),
            (torch.bool, None),
        ):
            mask = seen if low is None else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, low)
            assert torch.equal(text_mask(mask[:, None], text), real), (fashion, dtype, low)


def test_packed_texts_of_one_token_are_no_padding():
    texts = torch.tensor([[0] * 3 + [1] * 7, [0] + [1] * 9, [0] * 5 + [1] * 4 + [2], [0] * 10])
    seen = (texts[:, :, None] == texts[:, None]) & CAUSAL
    for mask in (seen[:, None], seen, CAUSAL[None, None]):
        assert int(text_mask(mask, ids()).sum()) == B * T


def test_what_a_mask_does_not_reach_is_padding():
    assert torch.equal(text_mask(torch.ones(B, 7), ids()), (torch.arange(T) < 7).expand(B, T))
    with pytest.raises(CaptureError, match=r"attention_mask has shape \(10,\).*ids of shape \(4, 10\)"):
        text_mask(torch.ones(T), ids())
    with pytest.raises(CaptureError, match=r"shape \(3, 10\)"):
        text_mask(torch.ones(3, T), ids())


def test_the_mask_of_xlnet_is_turned_round():
    (content,) = contents_of({"input_ids": ids(), "input_mask": 1.0 - padded()})
    assert torch.equal(content.real, padded().bool())


# --- What a batch may be ----------------------------------------------------------------------------------------------


def test_arrays_and_lists_are_batches():
    model = built(transformers.LlamaModel, transformers.LlamaConfig(**TEXT))
    mask = padded()
    for batch in (
        {"input_ids": ids().numpy(), "attention_mask": mask.numpy()},
        {"input_ids": ids().to(torch.int16), "attention_mask": mask.bool()},
        {"input_ids": list(ids()), "attention_mask": mask.tolist()},
    ):
        assert counts(model, batch) == {"layers": [int(mask.sum())] * 2}
    for batch in (ids().numpy(), ids().tolist(), ids().to(torch.uint8)):
        assert counts(model, batch) == {"layers": [B * T] * 2}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"input_ids": torch.rand(B, T)}], r"\['input_ids'\] is a tensor of float32: pass token ids"),
        ([torch.zeros(B, 0).long()], r"shape \(4, 0\)"),
        ([[[1, 2], [3]]], "makes no tensor"),
        ([numpy.array([["a"]])], "makes no tensor"),
        ([[ids(), padded()]], r"batches\[0\] is a list"),
        (5, "batches=5"),
    ],
)
def test_what_is_no_batch_is_told(batches, message):
    model = built(transformers.LlamaModel, transformers.LlamaConfig(**TEXT))
    with pytest.raises(InputError, match=message):
        profile_model(model, batches, rank=2, progress=False)


# --- Sounds -----------------------------------------------------------------------------------------------------------


def sounds():
    mask = padded(5, 16000, 2500)
    return {
        "input_values": torch.randn(5, 16000, generator=torch.Generator().manual_seed(0)) * mask,
        "attention_mask": mask,
    }


def test_a_method_that_counts_frames_of_one_sound_at_a_time():
    sizes = {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
    heads = {"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}
    config = transformers.MoonshineConfig(vocab_size=99, hidden_size=32, intermediate_size=64, **sizes, **heads)
    model, batch = built(transformers.MoonshineModel, config), sounds()
    frames = sum(model._get_feat_extract_output_lengths(int(n)) for n in batch["attention_mask"].sum(1))
    found = counts(model, {**batch, "decoder_input_ids": ids(5, 6)})
    assert found == {"encoder.layers": [frames] * 2, "decoder.layers": [30] * 2}


@needs_transformers
def test_the_mask_that_blocks_are_given_settles_what_convolutions_blur():
    config = transformers.SEWConfig(**SOUND, conv_dim=[16] * 7 + [32] * 6, squeeze_factor=2, mask_time_prob=0.0)
    model, batch = built(transformers.SEWModel, config), sounds()
    frames = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1))
    # Two frames make one, and the model takes it for real if any of them is; there is an even number of places.
    assert counts(model, batch) == {"encoder.layers": [int(((frames + 1) // 2).clamp(max=49 // 2).sum())] * 2}


# --- Images -----------------------------------------------------------------------------------------------------------


def idefics():
    config = transformers.Idefics3Config(
        vision_config=IMAGE,
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2),
        image_token_id=98,
        scale_factor=2,
    )
    return built(transformers.Idefics3ForConditionalGeneration, config)


def with_images(present):
    """Two places for images in each text; those that are absent are zero, and the model drops them."""
    text, mask = ids(4, 20, last=98), padded(4, 20)
    images = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for i, places in enumerate(present):
        for place, start in enumerate((1, 6)):
            if places[place]:
                text[i, start : start + 4] = 98
            else:
                images[i, place] = 0
    return {"input_ids": text * mask, "attention_mask": mask, "pixel_values": images}


def test_images_that_a_model_drops():
    model = idefics()
    (vision,) = (stack for stack in find_stacks(model) if "vision" in stack.path)
    layouts = Layouts(model, find_stacks(model))
    # The same sizes all through: 4 images of 16 patches. Whose they are differs.
    for present in ([(1, 0), (1, 1), (0, 0), (1, 0)], [(0, 0), (0, 0), (1, 1), (1, 1)]):
        batch = with_images(present)
        with untouched(model):
            layouts.learn(lambda inputs: forward(model, inputs), batch)
        found = layouts.of(vision, batch, torch.zeros(4, 16, 32))
        owners = [i for i, places in enumerate(present) for place in places if place]
        assert found.sequences == 4 and found.owner.tolist() == owners and found.mask is None
    assert counts(model, batch)["model.text_model.layers"] == [int(padded(4, 20).sum())] * 2


def test_the_owner_of_a_state_that_only_blocks_reach():
    """XCLIP's second tower takes the class token of each frame, which says nothing before the blocks of the first."""
    inner = {
        "mit_hidden_size": 32,
        "mit_intermediate_size": 64,
        "mit_num_attention_heads": 4,
        "mit_num_hidden_layers": 1,
    }
    config = transformers.XCLIPConfig(
        text_config=TEXT,
        vision_config={**IMAGE, "num_frames": 4, **inner},
        projection_dim=32,
        prompt_layers=1,
        prompt_num_attention_heads=4,
    )
    model = built(transformers.XCLIPModel, config)
    videos = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = counts(model, {"input_ids": ids(6), "attention_mask": padded(6), "pixel_values": videos})
    text = int(padded(6).sum())
    vision = {"vision_model.encoder.layers": [3 * 4 * 17] * 2, "mit.encoder.layers": [3 * 4]}
    assert found == {**vision, "text_model.encoder.layers": [text] * 2}


def test_behind_a_block_that_pools_all_states_count_if_all_did():
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    times = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}
    config = transformers.InformerConfig(d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, **sizes, **times)
    batch = {"past_values": torch.randn(5, 10), "past_time_features": torch.randn(5, 10, 1)}
    batch |= {"future_values": torch.randn(5, 4), "future_time_features": torch.randn(5, 4, 1)}
    batch["past_observed_mask"] = torch.ones(5, 10)
    found = counts(built(transformers.InformerModel, config), batch)
    assert found == {"encoder.layers": [40, 20], "decoder.layers": [20, 20]}


def test_black_frames_of_a_video_need_no_probe():
    videos = {"pixel_values": torch.ones(3, 4, 3, 8, 8)}
    videos["pixel_values"][1, 2:] = 0
    (content,) = contents_of(videos)
    assert content.blank is not None
    for rows in (3, 12):
        assert Everything("pixel_values").layout([content], (rows, 5)).sequences == 3
    videos["pixel_values"][:, 1:] = 0  # three images are left of twelve: perhaps one a video, perhaps not
    assert Everything("pixel_values").layout(contents_of(videos), (3, 5)) is None


def test_a_loss_that_does_not_take_other_contents_is_left_out_of_a_probe():
    model, batch = idefics(), with_images([(1, 1)] * 4) | {"labels": ids(4, 20)}
    plain = model.forward

    def forward(**inputs):
        if "labels" in inputs and not torch.equal(inputs["pixel_values"], batch["pixel_values"]):
            raise ValueError("boxes are not finite")
        return plain(**inputs)

    model.forward = forward
    assert counts(model, batch)["model.vision_model.encoder.layers"] == [4 * 2 * 16] * 2


# --- Blocks -----------------------------------------------------------------------------------------------------------


class Around(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)


def test_all_blocks_of_one_tower_are_wrapped():
    config = transformers.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    model = built(transformers.T5Model, config)
    for i in range(2):
        model.encoder.block[i] = Around(Around(model.encoder.block[i]))
    batch = {"input_ids": ids(), "attention_mask": padded(), "decoder_input_ids": ids(B, 5)}
    assert counts(model, batch) == {"encoder.block": [int(padded().sum())] * 2, "decoder.block": [B * 5] * 2}


def test_the_only_block_is_wrapped():
    model = built(transformers.LlamaModel, transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 1}))
    model.layers[0] = Around(model.layers[0])
    assert [stack.path for stack in find_stacks(model)] == ["layers"]


class Loop(nn.Module):
    """Goes through its blocks twice, with a norm in between."""

    def __init__(self, broken=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.between = nn.Embedding(99, 16), nn.LayerNorm(16)
        self.blocks = nn.ModuleList(Mix() for _ in range(3))
        self.broken = broken

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for _ in range(2):
            for block in self.blocks:
                x = block(self.between(x) if self.broken else x)
            x = self.between(x)
        return x


def test_a_loop_with_something_in_between_is_found():
    layers = profile_model(Loop(), [ids()], rank=2, groups=0, progress=False).layers
    paths = [f"blocks.{i}" for i in range(3)]
    assert [layer.path for layer in layers] == paths + [f"{path} (run 2)" for path in paths]
    with pytest.raises(CaptureError, match="no residual blocks"):  # members that do not hand on their state
        profile_model(Loop(broken=True), [ids()], rank=2, groups=0, progress=False)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_images_alone_and_images_with_text_are_read_by_rules_of_their_own(order):
    """LayoutLMv3's class token is zero before training, so that images alone are probed."""
    sizes = {
        "hidden_size": 36,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 99,
    }
    places = {
        "input_size": 16,
        "patch_size": 8,
        "coordinate_size": 6,
        "shape_size": 6,
        "max_2d_position_embeddings": 64,
    }
    model = built(transformers.LayoutLMv3Model, transformers.LayoutLMv3Config(**sizes, **places))
    mask = padded(6, 20, 3)
    alone = {"pixel_values": torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    boxes = torch.randint(0, 20, (6, 20, 4), generator=torch.Generator().manual_seed(1)).sort(-1)[0]
    both = {"input_ids": ids(6, 20) * mask, "attention_mask": mask, "bbox": boxes, **alone}
    found = profile_model(model, [(alone, both)[i] for i in order], rank=2, groups=0, progress=False)
    assert [layer.tokens for layer in found.layers] == [2 * 6 * 5 + int(mask.sum())]
