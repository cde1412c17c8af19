"""What a probe goes by where padding is mixed with what is real, or where the model itself adds it."""

import pytest
import torch
from torch import nn

from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.capture.contents import contents_of
from hf_rksp.capture.polarity import what_is_marked
from hf_rksp.profile.gather import gather_moments
from tests.capture.test_layouts import BATCH, REAL, B, D, Net, T, counts, images, padded

FRAMES = 8


# --- Texts ------------------------------------------------------------------------------------------------------------


def grams(x, reach=2):
    """Each state sees the words before it as well, as hashes of n-grams do."""
    return sum(nn.functional.pad(x, (0, 0, k, 0))[:, : x.shape[1]] * (k + 1) for k in range(reach + 1))


def test_padding_that_n_grams_mix_with_words_is_padding():
    front = lambda net, t, i: torch.cat([grams(t), net.own[:1].expand(len(t), 1, -1)], 1)  # noqa: E731
    assert set(counts(Net(front), BATCH).values()) == {REAL}


def test_words_that_a_window_mixes_with_padding_are_words():
    """A window that looks both ways: then a state counts if any word moves it."""
    both = lambda net, t, i: torch.cat([grams(t) + grams(t.flip(1)).flip(1), net.own[:1].expand(len(t), 1, -1)], 1)  # noqa: E731
    assert set(counts(Net(both), BATCH).values()) == {int(sum(min(T, int(row.sum()) + 2) for row in padded()))}


def test_the_place_of_an_image_that_looks_like_any_other_is_a_word():
    """The codes of images are few: here another image leaves a state as it is."""

    def front(net, t, i):
        x = t.clone()
        x[:, 1] = i[:, 0]
        x[0, 1] = 1.0
        return x

    batch = BATCH | {"pixel_values": images()}
    assert set(counts(Net(front), batch).values()) == {REAL}


# --- Images -----------------------------------------------------------------------------------------------------------


def filled(net, t, i, own=0):
    """Patches, then zeros up to a size, after the model's own tokens."""
    tokens = net.own[:1].expand(len(i), own, -1)
    return torch.cat([tokens, i, torch.zeros(len(i), 3, D, dtype=i.dtype)], 1)


@pytest.mark.parametrize("own", [0, 1])
def test_zeros_behind_the_places_of_an_image_are_padding(own):
    model = Net(lambda net, t, i: filled(net, t, i, own))
    assert set(counts(model, {"pixel_values": images()}).values()) == {(3 + own) * B}


def test_zeros_in_front_are_registers_that_have_not_been_trained():
    model = Net(lambda net, t, i: torch.cat([net.own[:1].expand(B, 1, -1), torch.zeros(B, 2, D).double(), i], 1))
    assert set(counts(model, {"pixel_values": images()}).values()) == {6 * B}


def test_zeros_behind_that_will_be_trained_are_tokens():
    """YOLOS puts tokens for its boxes behind the places of an image, and they begin at zero."""
    model = Net(lambda net, t, i: torch.cat([i, net.boxes.expand(len(i), -1, -1)], 1))
    model.boxes = nn.Parameter(torch.zeros(1, 2, D).double())
    assert set(counts(model, {"pixel_values": images()}).values()) == {5 * B}
    assert not model.boxes.any()


class Two(Net):
    """Something is added to all states between two stacks."""

    def __init__(self, front):
        super().__init__(front)
        self.later = nn.ModuleList(type(self.blocks[0])() for _ in range(2)).double()

    def forward(self, input_ids=None, pixel_values=None, **other):
        x = super().forward(pixel_values=pixel_values) + self.own[0]
        for block in self.later:
            x = block(x)
        return x


def test_padding_is_padding_in_the_stacks_behind_too():
    model = Two(filled)
    layers = [("blocks", 0), ("blocks", 1), ("later", 0), ("later", 1)]
    with untouched(model):
        found, _ = gather_moments(
            model, [{"pixel_values": images()}], find_stacks(model, ["blocks", "later"]), layers, 1
        )
    assert {layer: kept[0].count for layer, kept in found.items()} == dict.fromkeys(layers, 3 * B)


def test_numbers_of_rows_and_columns_stay_as_they_are():
    """Patches as Pix2Struct has them: the first two numbers of each are its row and column, and index a table."""
    patches = torch.cat([torch.tensor([[1.0, 1], [1, 2], [2, 1]]).double().expand(B, -1, -1), images()[..., :3]], 2)
    model = Net(lambda net, t, i: torch.cat([i, t], 1))
    plain = model.forward

    def forward(pixel_values=None, **other):
        rows = nn.functional.embedding(pixel_values[..., 0].long(), model.own[:3])
        return plain(pixel_values=pixel_values + rows[..., :5], **other)

    model.forward = forward
    assert set(counts(model, BATCH | {"pixel_values": patches}).values()) == {REAL + 3 * B}


# --- Masks ------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Reads the states that ``keep`` says, and no others."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, hidden_states, audio_mask):
        kept = hidden_states * audio_mask[..., None]
        return hidden_states + torch.tanh(self.inner(kept.cumsum(1) + kept.flip(1).cumsum(1).flip(1)))


class Listener(nn.Module):
    """Two samples make a frame; ``turned``: its mask is 1 where there is padding."""

    def __init__(self, turned):
        super().__init__()
        torch.manual_seed(0)
        self.join, self.blocks = nn.Linear(6, D), nn.ModuleList(Attention() for _ in range(2))
        self.turned = turned
        self.double().eval()

    def forward(self, mel, mel_mask):
        x = self.join(mel.unflatten(1, (-1, 2)).flatten(2))
        mask = mel_mask.bool()[:, ::2]
        for block in self.blocks:
            x = block(x, ~mask if self.turned else mask)
        return x


def sounds():
    """Frames of which 8, 7, 6, 5 are real, of two samples each."""
    real = torch.stack([torch.arange(2 * FRAMES) < 2 * (FRAMES - i) for i in range(B)])
    mel = torch.randn(B, 2 * FRAMES, 3, generator=torch.Generator().manual_seed(0)).double()
    return mel * real[..., None], real


@pytest.mark.parametrize("turned", [False, True])
def test_what_a_mask_marks_is_seen_in_the_blocks(turned):
    model, (mel, real) = Listener(turned), sounds()
    batch = {"mel": mel, "mel_mask": ~real if turned else real}
    stacks = find_stacks(model, "blocks")
    (content,) = contents_of(batch)
    assert torch.equal(content.real, batch["mel_mask"])  # by its name it is the mask of mel
    with untouched(model):
        reading = what_is_marked(lambda inputs: forward(model, inputs), batch, content, stacks, None)
    assert reading == ("padding" if turned else "real")
    assert set(counts(model, batch).values()) == {int(real.sum()) // 2}


# --- Batches of several kinds -----------------------------------------------------------------------------------------


def counted(model, *batches, blocks="blocks"):
    stacks = find_stacks(model, blocks)
    layers = [(stack.path, index) for stack in stacks for index in range(2)]
    with untouched(model):
        moments, _ = gather_moments(model, batches, stacks, layers, 1)
    return {path: moments[path, 0][0].count for path, _ in layers}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_padding_inside_the_model_depends_on_the_size_of_a_batch(order):
    """Up to 6 places: images of 6 patches fill them, those of 3 do not."""

    def front(net, t, i):
        return torch.cat([i, torch.zeros(len(i), 6 - i.shape[1], D).double()], 1)

    batches = [{"pixel_values": images(patches=6)}, {"pixel_values": images()}]
    assert counted(Net(front), *(batches[i] for i in order)) == {"blocks": 9 * B}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_what_a_probe_found_out_holds_for_its_size_of_batch(order):
    """As many images as places: sizes do not tell, and what a probe finds for full images does not hold for small ones."""
    front = lambda net, t, i: torch.cat([i, torch.zeros(len(i), B - i.shape[1], D).double()], 1)  # noqa: E731
    batches = [{"pixel_values": images(patches=B)}, {"pixel_values": images(patches=B - 1)}]
    assert counted(Net(front), *(batches[i] for i in order)) == {"blocks": B * B + B * (B - 1)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_what_holds_for_images_alone_does_not_hold_for_images_and_text(order):
    def front(net, t, i):
        filled = torch.cat([i, torch.zeros(len(i), 1, D).double()], 1)
        return filled if t is None else torch.cat([filled, t], 1)

    batches = [{"pixel_values": images()}, BATCH | {"pixel_values": images()}]
    # The zero between image and text is what a class token that has not been trained looks like: it counts.
    alone, both = (counted(Net(front), batch)["blocks"] for batch in batches)
    assert counted(Net(front), *(batches[i] for i in order)) == {"blocks": alone + both}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_images_of_several_sizes_in_front_of_a_text(order):
    model = Net(lambda net, t, i: torch.cat([i, t], 1))
    batches = [BATCH | {"pixel_values": images(patches=n)} for n in (3, 5)]
    assert counted(model, *(batches[i] for i in order)) == {"blocks": 2 * REAL + 8 * B}


def test_towers_side_by_side_have_padding_of_their_own():
    class Beside(Two):
        def forward(self, input_ids=None, pixel_values=None, **other):
            super(Two, self).forward(pixel_values=pixel_values)
            x = torch.cat([self.patch(pixel_values), self.own[:3].expand(len(pixel_values), -1, -1)], 1)
            for block in self.later:
                x = block(x)
            return x

    assert counted(Beside(filled), {"pixel_values": images()}, blocks=["blocks", "later"]) == {
        "blocks": 3 * B,
        "later": 6 * B,  # learnt tokens, where the other tower has zeros
    }
