"""Whose each state is: from sizes, from the model's own count of frames, from a probe; and what follows from it."""

import pytest
import torch
from torch import nn

from hf_rksp import profile_model
from hf_rksp.capture import Layout, Layouts, Unsettled, find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.capture.contents import contents_of, text_mask
from hf_rksp.capture.rules import Entries, Everything, Grid, Parts, by_sizes
from hf_rksp.errors import CaptureError
from hf_rksp.profile.gather import gather_moments
from tests.capture.models import CASES, Mix, relative_difference

B, T, D, VOCAB = 4, 6, 16, 40


def ids(n=B, t=T, seed=0):
    return torch.randint(3, VOCAB, (n, t), generator=torch.Generator().manual_seed(seed))


def padded(n=B, t=T):
    return torch.stack([(torch.arange(t) < t - i % 3).long() for i in range(n)])


# --- Layouts ----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "text": ((B, T), Layout(B), (B, T, D)),
    "tokens first": ((T, B), Layout(B, axes=(1, 0)), (B, T, D)),
    "streams in front": ((3, B, T), Layout(B, axes=(1, 2, 0), streams=1), (B, T, 3 * D)),
    "streams behind": ((B, T, 3), Layout(B, axes=(0, 1, 2), streams=1), (B, T, 3 * D)),
    "channels": ((B, 3, T), Layout(B), (B, 3 * T, D)),
    "patches": ((B * T,), Layout(B, owner=torch.arange(B).repeat_interleave(T)), (B * T, 1, D)),
    "every state alone": ((B, T), Layout(B, owner=torch.arange(B).repeat_interleave(T), rows=2), (B * T, 1, D)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_are_written_back_where_they_were_read(name):
    lead, layout, shape = LAYOUTS[name]
    states = torch.randn(*lead, D)
    rows = layout.read(states)
    assert rows.shape == shape
    assert torch.equal(layout.write(rows, states.shape), states)
    assert sorted(rows.flatten().tolist()) == sorted(states.flatten().tolist())


def test_a_row_is_the_text_that_it_says():
    states = torch.arange(B * T).reshape(B, T, 1).expand(B, T, D).float()
    first = Layout(B, axes=(1, 0)).read(states.transpose(0, 1))
    assert torch.equal(first, states)
    streams = Layout(B, axes=(1, 2, 0), streams=1).read(torch.stack([states, states + 100]))
    assert torch.equal(streams, torch.cat([states, states + 100], -1))


# --- What a batch says ------------------------------------------------------------------------------------------------


def only(batch, encoder_decoder=False):
    (content,) = contents_of(batch, encoder_decoder)
    return content


def test_masks_are_told_from_other_entries():
    found = contents_of(
        {
            "input_ids": ids(),
            "attention_mask": padded(),
            "global_attention_mask": torch.zeros(B, T),
            "position_ids": ids(),
            "token_type_ids": ids(),
            "labels": ids(),
            "visual_embeds": torch.randn(B, 3, 8),
            "visual_attention_mask": torch.ones(B, 3),
        }
    )
    assert [content.name for content in found] == ["input_ids", "visual_embeds"]
    assert torch.equal(found[0].real, padded().bool())
    assert found[1].real.shape == (B, 3)


@pytest.mark.parametrize(
    ("mask", "real"),
    [
        (torch.tril(torch.ones(B, 1, T, T)).bool(), torch.ones(B, T).bool()),
        (torch.tril(torch.ones(T, T)).bool() & padded().bool()[:, None, None], padded().bool()),
        (
            torch.zeros(B, 1, T, T).masked_fill(padded()[:, None, None] == 0, torch.finfo(torch.float32).min),
            padded().bool(),
        ),
        ({"full_attention": padded()}, padded().bool()),
    ],
    ids=["causal", "boolean", "additive", "by kind of layer"],
)
def test_a_token_that_no_query_sees_is_padding(mask, real):
    assert torch.equal(text_mask(mask, ids()), real)


def test_the_tokens_of_a_cache_stand_in_front_in_the_mask():
    mask = torch.cat([torch.zeros(B, 2), padded()], 1)
    assert torch.equal(text_mask(mask, ids(), cached=True), padded().bool())
    with pytest.raises(CaptureError, match="attention_mask is a str"):
        text_mask("flex", ids())


def test_patches_of_one_tensor_belong_to_their_image():
    grid = torch.tensor([[1, 2, 2], [1, 2, 4]])
    content = only({"pixel_values": torch.randn(12, 5), "image_grid_thw": grid})
    assert content.sequence.tolist() == [0] * 4 + [1] * 8 and content.sequences == 2


def test_a_decoder_has_labels_for_its_mask():
    labels = ids().masked_fill(padded() == 0, -100)
    batch = {"input_ids": ids(), "attention_mask": padded(), "labels": labels}
    sides = {content.decoder: content for content in contents_of(batch, True)}
    assert sides[True].name == "labels" and torch.equal(sides[True].real, padded().bool())
    sides = {c.decoder: c for c in contents_of(batch | {"decoder_input_ids": ids(seed=1)}, True)}
    assert sides[True].name == "decoder_input_ids" and torch.equal(sides[True].real, padded().bool())
    sides = {c.decoder: c for c in contents_of({"input_ids": ids(), "attention_mask": padded()}, True)}
    assert torch.equal(sides[True].real, padded().bool())  # BART shifts the text


# --- Rules ------------------------------------------------------------------------------------------------------------


def text(n=B, t=T):
    return contents_of({"input_ids": ids(n, t), "attention_mask": padded(n, t)})


def rule_of(contents, lead):
    return by_sizes(contents, lead, 0, None)


def test_sizes_that_leave_no_doubt():
    assert rule_of(text(), (B, T)).layout(text(), (B, T)).axes is None
    assert rule_of(text(), (T, B)).layout(text(), (T, B)).axes == (1, 0)
    assert rule_of(text(), (3, B, T)).layout(text(), (3, B, T)).streams == 1
    choices = contents_of({"input_ids": ids(8, T).reshape(2, 4, T), "attention_mask": padded(8, T).reshape(2, 4, T)})
    found = rule_of(choices, (8, T)).layout(choices, (8, T))
    assert found.owner.tolist() == [0] * 4 + [1] * 4 and torch.equal(found.mask, padded(8, T).bool())
    images = contents_of({"pixel_values": torch.randn(B, 3, 8, 8)})
    assert isinstance(rule_of(images, (B, 5)), Everything)


@pytest.mark.parametrize(
    ("contents", "lead"),
    [
        (text(6, 6), (6, 6)),  # which axis is the text?
        (text(), (B, T + 2)),  # what are the two more?
        (text(), (B * T,)),
        (text() + contents_of({"pixel_values": torch.randn(B, 3, 8, 8)}), (B, T)),
        (contents_of({"pixel_values": torch.randn(B, 3, 8, 8)}), (B, B)),
        (contents_of({"input_values": torch.randn(B, 99), "attention_mask": torch.ones(B, 99)}), (B, 9)),
    ],
)
def test_sizes_that_do_not_tell(contents, lead):
    assert rule_of(contents, lead) is None


def test_learnt_columns_hold_for_other_lengths():
    rule = Parts((("input_ids", 2),), (True, False), (), True)
    for t, width in ((T, T + 2), (T, T + 5), (T + 3, T + 5)):
        found = rule.layout(text(B, t), (B, width))
        real = padded(B, t).bool()
        extra = torch.zeros(B, width - t - 2, dtype=torch.bool)
        want = torch.cat([torch.tensor([[True, False]]).expand(B, 2), real, extra], 1)
        assert torch.equal(found.mask, want)
    assert rule.layout(text(), (B, T + 1)) is None
    assert Parts((("input_ids", 0),), (), (True,), False).layout(text(), (B, T + 2)) is None


# --- The probe --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Blocks behind a front of one's own: ``front(embedded text, images)`` gives the states."""

    def __init__(self, front, back=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.patch = nn.Embedding(VOCAB, D), nn.Linear(5, D)
        self.own = nn.Parameter(torch.randn(9, D))
        self.blocks = nn.ModuleList(Mix() for _ in range(2))
        self.front, self.back = front, back
        self.double().eval()

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, labels=None, **other):
        text = None if input_ids is None else self.embed(input_ids)
        x = self.front(self, text, None if pixel_values is None else self.patch(pixel_values))
        for block in self.blocks:
            x = block(x)
        return self.back(x)


def cat_own(net, text, images, front=2, behind=3):
    own = net.own.expand(text.shape[0], -1, -1)
    return torch.cat([own[:, :front], text, own[:, :behind]], 1)


def images(n=B, patches=3, seed=0):
    return torch.randn(n, patches, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts(model, batch):
    stacks = find_stacks(model, "blocks")
    with untouched(model):
        moments, _ = gather_moments(model, [batch], stacks, [("blocks", 0), ("blocks", 1)], 1)
    return {layer: kept[0].count for layer, kept in moments.items()}


BATCH = {"input_ids": ids(), "attention_mask": padded()}
REAL = int(padded().sum())
FRONTS = {
    "padding and learnt states inside the model": (cat_own, BATCH, REAL),
    "images before the text": (
        lambda net, t, i: torch.cat([i, t], 1),
        BATCH | {"pixel_values": images()},
        REAL + 3 * B,
    ),
    "images and a class token behind": (
        lambda net, t, i: torch.cat([t, net.own[:1].expand(B, 1, -1), i], 1),
        BATCH | {"pixel_values": images()},
        REAL + 4 * B,
    ),
    "tokens first, as many as texts": (
        lambda net, t, i: t.transpose(0, 1),
        {"input_ids": ids(6, 6), "attention_mask": padded(6, 6)},
        int(padded(6, 6).sum()),
    ),
    "one row of all texts": (lambda net, t, i: t.flatten(0, 1), BATCH, REAL),
    "windows": (lambda net, t, i: t.reshape(B * 2, T // 2, D), BATCH, REAL),
    "windows in another order": (
        lambda net, t, i: t.reshape(B, 2, T // 2, D).transpose(0, 1).flatten(0, 1),
        BATCH,
        REAL,
    ),
    "images alone, folded": (lambda net, t, i: i.reshape(B * 3, 1, D), {"pixel_values": images()}, 3 * B),
}


@pytest.mark.parametrize("name", FRONTS)
def test_what_the_probe_finds(name):
    front, batch, real = FRONTS[name]
    assert set(counts(Net(front), batch).values()) == {real}


@pytest.mark.parametrize("name", ["tokens first, as many as texts", "windows in another order", "one row of all texts"])
def test_groups_are_groups_of_texts_whatever_the_layout(name):
    """The moments of each group are those of the same texts in a model that keeps them in rows."""
    front, batch, _ = FRONTS[name]
    layers = [("blocks", 0), ("blocks", 1)]
    found = []
    for model in (Net(front), Net(lambda net, t, i: t)):
        with untouched(model):
            found.append(gather_moments(model, [batch, batch], find_stacks(model, "blocks"), layers, 3)[0])
    for layer in layers:
        for one, other in zip(found[0][layer], found[1][layer], strict=True):
            assert one.count == other.count
            assert relative_difference(one, other) <= 1e-12


def test_states_of_the_models_own_are_named():
    with pytest.warns(UserWarning, match=r"5 states per sequence of blocks are the model's own"):
        found = profile_model(Net(cat_own), [BATCH], blocks="blocks", rank=4, groups=0, progress=False)
    assert found.notes and {layer.tokens for layer in found.layers} == {REAL}


def test_states_of_several_texts_belong_to_none():
    with pytest.raises(CaptureError, match="several sequences of the batch at once"):
        counts(Net(lambda net, t, i: t + t.mean(0, keepdim=True)), BATCH | {"pixel_values": images()})


def test_a_model_that_is_another_one_at_each_pass_is_refused():
    def front(net, t, i):
        net.calls = getattr(net, "calls", 0) + 1
        return cat_own(net, t, i) * net.calls

    with pytest.raises(CaptureError, match="differ between two passes"):
        counts(Net(front), BATCH)


def test_the_answer_of_a_probe_serves_batches_of_other_lengths():
    model = Net(cat_own)
    stacks = find_stacks(model, "blocks")
    layouts, runs = Layouts(model, stacks), []

    def run(batch):
        runs.append(batch)
        forward(model, batch)

    with untouched(model):
        layouts.learn(run, BATCH)
    probed = len(runs)
    other = {"input_ids": ids(3, T + 2), "attention_mask": padded(3, T + 2)}
    found = layouts.of(stacks[0], other, torch.zeros(3, T + 2 + 5, D))
    assert torch.equal(found.mask[:, 2 : T + 4], padded(3, T + 2).bool()) and int(found.mask.sum()) == int(
        padded(3, T + 2).sum()
    )
    assert len(runs) == probed and layouts.probes == 1
    with pytest.raises(Unsettled, match=r"input_ids \(4, 6\).*sizes alone"):
        Layouts(model, stacks).of(stacks[0], BATCH, torch.zeros(B, T + 5, D))


def test_a_probe_that_reaches_no_stack_keeps_no_rule():
    model = Net(cat_own)
    stacks = find_stacks(model, "blocks")
    layouts = Layouts(model, stacks)
    layouts.learn(lambda batch: None, BATCH)
    assert layouts.probes == 1 and not layouts.unread
    with pytest.raises(Unsettled, match="sizes alone"):
        layouts.of(stacks[0], BATCH, torch.zeros(B, T + 5, D))


def test_a_probe_leaves_the_model_as_it_was():
    model, case = CASES["clip"].build(dtype=torch.float64), CASES["clip"]
    batch = case.batch(3, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model.train()
    profile_model(model, [batch], rank=4, groups=0, progress=False)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_mask_with_the_shape_of_the_states_is_about_the_states():
    """A Q-Former is given one mask over its queries and the text."""
    mask = torch.cat([torch.ones(B, 2), padded()], 1).long()
    batch = {"pixel_values": images(patches=2), "input_ids": ids(), "attention_mask": mask}
    model = Net(lambda net, t, i: torch.cat([i, t], 1))
    assert set(counts(model, batch).values()) == {int(mask.sum())}


# --- Frames -----------------------------------------------------------------------------------------------------------


class Broken(Net):
    """Its own count of frames does not work here, as where a configuration lacks an entry."""

    def _get_feat_extract_output_lengths(self, samples):
        return self.config.stride

    def forward(self, input_values, attention_mask=None):
        x = self.patch(input_values.unfold(1, 5, 5))
        for block in self.blocks:
            x = block(x)
        return x


def test_a_count_of_frames_that_does_not_work_is_passed_over():
    mask = torch.stack([(torch.arange(20) < 20 - 5 * i).long() for i in range(3)])
    batch = {"input_values": torch.randn(3, 20, dtype=torch.float64), "attention_mask": mask}
    assert set(counts(Broken(None), batch).values()) == {4 + 3 + 2}


class Sounds(Net):
    """Two samples make a frame; a convolution over frames follows, which makes frames of padding move with real ones."""

    def __init__(self):
        super().__init__(None)
        self.turn = nn.Linear(2, D).double()
        self.smooth = nn.Conv1d(D, D, 3, padding=1).double()

    def _get_feat_extract_output_lengths(self, samples):
        return samples // 2

    def forward(self, input_values, attention_mask=None):
        x = self.turn(input_values.unfold(1, 2, 2))
        x = x + self.smooth(x.mT).mT
        for block in self.blocks:
            x = block(x)
        return x


def test_the_model_counts_its_own_frames():
    mask = torch.stack([(torch.arange(12) < 12 - 4 * i).long() for i in range(3)])
    batch = {"input_values": torch.randn(3, 12, dtype=torch.float64), "attention_mask": mask}
    assert set(counts(Sounds(), batch).values()) == {6 + 4 + 2}


# --- Several streams, KSS ---------------------------------------------------------------------------------------------


def shaped_gradients(front, back, batch):
    from hf_rksp import KSSConfig
    from hf_rksp.training import SpectralShaper

    model = Net(front, back)
    with torch.no_grad():
        for block in model.blocks:
            block.inner.weight.mul_(8)
    model.train()
    weights = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with SpectralShaper(model, KSSConfig(rank=4, upper_threshold=0.5), "blocks") as kss:
        x = model(**batch)
        (x * weights * torch.arange(1.0, 1 + len(x), dtype=torch.float64)[:, None, None]).pow(2).sum().backward()
        logs = kss.pop_logs()
    assert logs["kss/skipped"] == 0 and "kss/loss" in logs
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_kss_scales_each_text_by_itself_whatever_the_layout():
    plain = shaped_gradients(lambda net, t, i: t, lambda x: x, BATCH)
    for front, back in (
        (lambda net, t, i: t.transpose(0, 1), lambda x: x.transpose(0, 1)),
        (lambda net, t, i: t.reshape(B * 2, T // 2, D), lambda x: x.reshape(B, T, D)),
        (
            lambda net, t, i: t.reshape(B, 2, T // 2, D).transpose(0, 1).flatten(0, 1),
            lambda x: x.reshape(2, B, T // 2, D).transpose(0, 1).flatten(1, 2),
        ),
    ):
        other = shaped_gradients(front, back, BATCH)
        assert float((plain - other).abs().max() / plain.abs().max()) <= 1e-10
    off = shaped_gradients(lambda net, t, i: t.flatten(0, 1)[:, None], lambda x: x.reshape(B, T, D), BATCH)
    assert off.shape == plain.shape


def test_entries_are_for_tensors_without_a_batch():
    grid = torch.tensor([[1, 2, 2], [1, 1, 2]])
    contents = contents_of({"pixel_values": torch.randn(6, 5), "image_grid_thw": grid})
    found = Entries("pixel_values").layout(contents, (6,))
    assert found.sequences == 2 and found.owner.tolist() == [0, 0, 0, 0, 1, 1]
    assert Entries("pixel_values").layout(contents, (7,)) is None
    assert Grid("input_ids").layout(contents, (6,)) is None
