"""Padding never enters the statistics."""

import pytest
import torch
from torch import nn

from hf_rksp.capture import find_stacks
from hf_rksp.errors import InputError
from hf_rksp.profile.gather import gather_moments
from tests.capture.models import CASES, TOKENS, WIDTH, all_moments, relative_difference
from tests.versions import OLD

#: DeepSeek's router multiplies in float32, where the result depends on how many tokens there are.
TOLERANCE = dict.fromkeys(CASES, 1e-10) | {"deepseek_v3": 1e-6}


def one_by_one(batch):
    """The sequences of a batch, each alone and without its padding."""
    for i in range(len(next(iter(batch.values())))):
        alone = {}
        for name, value in batch.items():
            mask = batch.get(name.replace("input_ids", "attention_mask"))
            alone[name] = value[i : i + 1, mask[i].bool()] if name.endswith(("_ids", "_mask")) else value[i : i + 1]
        yield alone


def assert_same(padded, alone, tolerance=1e-10):
    assert padded.keys() == alone.keys()
    for layer in padded:
        assert relative_difference(padded[layer][0], alone[layer][0]) <= tolerance, layer


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "text" in case.inputs])
def test_a_padded_batch_equals_its_sequences_alone(name):
    if OLD and name == "zamba2":
        pytest.skip("transformers before 5.9 cannot run it")
    case = CASES[name]
    model = case.build(dtype=torch.float64)
    batch = case.batch(4, dtype=torch.float64)
    assert not all(mask.all() for key, mask in batch.items() if key.endswith("_mask"))
    assert_same(all_moments(model, [batch]), all_moments(model, list(one_by_one(batch))), TOLERANCE[name])


def test_padding_on_the_left():
    case = CASES["llama"]
    model, batch = case.build(), case.batch(4)
    flipped = {name: value.flip(1) for name, value in batch.items()}
    # In float32, because a row of nothing but padding is NaN in the eager attention of float64. Three blocks, whose sums of at
    # most 64 terms round by 8 eps each: 1e-5 is three times that. A token of padding is 1e-2 of the moments.
    assert_same(all_moments(model, [flipped]), all_moments(model, list(one_by_one(flipped))), 1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("shifted", [False, True], ids=["labels", "labels+inputs"])
def test_labels_tell_the_padding_of_a_decoder(name, shifted):
    """What DataCollatorForSeq2Seq gives: labels, perhaps decoder inputs, and never a decoder mask."""
    model, batch = CASES[name].build(head=True, dtype=torch.float64), CASES[name].batch(4)
    mask = batch.pop("decoder_attention_mask")
    batch["labels"] = batch.pop("decoder_input_ids").masked_fill(mask == 0, -100)
    alone = []
    for i in range(4):
        source, target = batch["attention_mask"][i].bool(), mask[i].bool()
        alone.append({"input_ids": batch["input_ids"][i : i + 1, source], "labels": batch["labels"][i : i + 1, target]})
    if shifted:
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    moments = all_moments(model, [batch])
    assert_same(moments, all_moments(model, alone))
    decoder = next(path for path, _ in moments if "decoder" in path)
    assert moments[decoder, 0][0].count == int(mask.sum())


def test_towers_count_their_own_tokens():
    model, batch = CASES["clip"].build(), CASES["clip"].batch(3)
    counts = {path: sets[0].count for (path, _), sets in all_moments(model, [batch]).items()}
    patches = 3 * (4 + 1)
    assert counts == {
        "text_model.encoder.layers": int(batch["attention_mask"].sum()),
        "vision_model.encoder.layers": patches,
    }


def test_a_tower_may_have_another_number_of_sequences():
    """One image for three texts: each stack counts its own sequences into groups."""
    model, case = CASES["clip"].build(dtype=torch.float64), CASES["clip"]
    images = case.batch(4, dtype=torch.float64)["pixel_values"]
    batches = [case.batch(3, seed=i) | {"pixel_values": images[i : i + 1]} for i in range(4)]
    moments = all_moments(model, batches, groups=3)
    assert [group.count for group in moments["vision_model.encoder.layers", 0]] == [10, 5, 5]


def test_a_speech_encoder_counts_every_frame():
    model, batch = CASES["whisper"].build(), CASES["whisper"].batch(3)
    counts = {path: sets[0].count for (path, _), sets in all_moments(model, [batch]).items()}
    assert counts == {"encoder.layers": 3 * 12, "decoder.layers": int(batch["decoder_attention_mask"].sum())}


class Tokenwise(nn.Module):
    """Blocks that keep the tokens apart, so that poison in the padding stays there."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return x


def test_poison_in_the_padding_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    model = Tokenwise().double()
    clean = torch.randn(4, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    mask = CASES["llama"].batch(4)["attention_mask"]
    poisoned = clean.masked_fill(mask[:, :, None] == 0, float("nan"))
    stacks = find_stacks(model, "blocks")

    def moments(x):
        with torch.no_grad():
            batch = {"x": x, "attention_mask": mask}
            return gather_moments(model, [batch], stacks, [("blocks", 0), ("blocks", 1)], 1)[0]

    assert_same(moments(poisoned), moments(clean), 0.0)


def test_without_a_mask_every_token_counts():
    model, batch = CASES["llama"].build(), CASES["llama"].batch(3)
    assert all_moments(model, [{"input_ids": batch["input_ids"]}])["layers", 0][0].count == 3 * TOKENS


def test_nothing_but_padding_is_refused():
    model, batch = CASES["t5"].build(), CASES["t5"].batch(3)
    batch["decoder_attention_mask"] = torch.zeros_like(batch["decoder_attention_mask"])
    with pytest.raises(InputError, match=r"every token that decoder\.block sees is padding"):
        all_moments(model, [batch])


def test_padding_of_decoder_inputs_that_the_model_makes_itself():
    """BART without decoder inputs shifts the text: what was padding there is padding here."""
    model, batch = CASES["bart"].build(dtype=torch.float64), CASES["bart"].batch(4)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    alone = [
        {name: value[i : i + 1, batch["attention_mask"][i].bool()] for name, value in batch.items()} for i in range(4)
    ]
    assert_same(all_moments(model, [batch]), all_moments(model, alone))
