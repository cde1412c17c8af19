"""What a mask marks: by its name where that is sure, else by what the blocks let through, else by what stands in its places."""

import pytest
import torch
from torch import nn

from hf_rksp import profile_model
from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import forward
from hf_rksp.capture.contents import contents_of
from hf_rksp.capture.polarity import what_is_marked
from tests.capture.models import Mix

B, T, D, VOCAB = 6, 8, 16, 40


def ids(n=B, t=T, seed=0):
    return torch.randint(3, VOCAB, (n, t), generator=torch.Generator().manual_seed(seed))


def real(n=B, t=T, less=1):
    return torch.stack([torch.arange(t) < t - less * (i % 4) for i in range(n)])


def tokens(model, *batches, **values):
    """Tokens of each stack, and what is said of them."""
    found = profile_model(model.eval(), list(batches), rank=2, groups=0, progress=False, **values)
    return {layer.path: layer.tokens for layer in found.layers}, " ".join(found.notes)


class Encoder(nn.Module):
    """torch's own encoder, whose masks are true where there is padding; ``name`` is what the mask is called."""

    def __init__(self, name, text=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, D) if text else nn.Linear(5, D)
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2)
        self.name = name

    def forward(self, src, **masks):
        return self.enc(self.embed(src), src_key_padding_mask=masks.get(self.name))


@pytest.mark.filterwarnings("ignore:.* is 1 where there is padding", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["src_key_padding_mask", "key_padding_mask", "padding_mask", "mask"])
@pytest.mark.parametrize("text", [True, False], ids=["words", "features"])
def test_masks_of_torch_are_true_at_the_padding(name, text):
    src = ids() * real() if text else torch.randn(B, T, 5)
    found, notes = tokens(Encoder(name, text), {"src": src, name: ~real()})
    assert set(found.values()) == {int(real().sum())} and f"{name} is 1 where there is padding" in notes


@pytest.mark.filterwarnings("ignore:.* is 1 where there is padding")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_a_batch_without_padding_does_not_settle_what_a_mask_marks(order):
    batches = [
        {"src": ids(), "padding_mask": torch.zeros(B, T).bool()},
        {"src": ids(seed=1) * real(), "padding_mask": ~real()},
    ]
    found, _ = tokens(Encoder("padding_mask"), *(batches[i] for i in order))
    assert set(found.values()) == {B * T + int(real().sum())}


class Reader(nn.Module):
    """Blocks that make nothing of a mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layers = nn.Embedding(VOCAB, D), nn.ModuleList(Mix() for _ in range(2))

    def forward(self, input_ids, **other):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "masks",
    [
        {"mask": real()},
        {"src_mask": real().long()},
        {"padding_mask": real().float()},
        {"padding_mask": torch.zeros(B, T).masked_fill(~real(), -1e4)},
        {"lengths": real().sum(1)},
    ],
    ids=["mask", "src_mask", "padding_mask", "additive", "lengths"],
)
def test_what_the_model_makes_nothing_of_is_read_by_its_places(masks):
    found, notes = tokens(Reader(), {"input_ids": ids() * real(), **masks})
    assert set(found.values()) == {int(real().sum())} and not notes


@pytest.mark.filterwarnings("ignore:.* is 1 where there is padding")
def test_padding_that_is_true_is_seen_in_its_places_too():
    found, _ = tokens(Reader(), {"input_ids": ids() * real(), "padding_mask": ~real()})
    assert set(found.values()) == {int(real().sum())}


def test_a_mask_of_which_nothing_tells_is_named():
    with pytest.warns(
        UserWarning, match="text_mask may mark padding, but neither .* so every place of input_ids counts"
    ):
        found, _ = tokens(Reader(), {"input_ids": ids(), "text_mask": real()})
    assert set(found.values()) == {B * T}


def test_a_mask_for_the_loss_is_none_of_padding():
    """The prompt moves the answer, and in a causal model the answer does not move the prompt: it would pass for a turned mask."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.LlamaModel(config).eval()
    answer = torch.arange(T)[None].expand(B, T) >= 3
    batch = {"input_ids": ids(), "answer_mask": answer}
    (content,) = contents_of(batch)
    assert content.mask == "answer_mask"
    with untouched(model):
        run = lambda inputs: forward(model, {"input_ids": inputs["input_ids"]})  # noqa: E731
        assert what_is_marked(run, batch, content, find_stacks(model), model.config) is None


class Pair(nn.Module):
    """Two towers of one shape, each with a text of its own."""

    def __init__(self, names):
        super().__init__()
        self.query, self.doc, self.names = Reader(), Reader(), names

    def forward(self, **batch):
        return self.query(batch[self.names[0]]), self.doc(batch[self.names[2]])


@pytest.mark.parametrize(
    "names",
    [
        ("src", "src_mask", "tgt", "tgt_mask"),
        ("query_ids", "query_attention_mask", "doc_ids", "doc_attention_mask"),
        ("src", "src_padding_mask", "tgt", "tgt_padding_mask"),
        ("input_ids_a", "attention_mask_a", "input_ids_b", "attention_mask_b"),
    ],
    ids=lambda names: names[1],
)
def test_each_text_has_the_mask_of_its_name(names):
    query, doc = real(less=2), real(less=1)
    batch = {names[0]: ids() * query, names[1]: query.long(), names[2]: ids(seed=1) * doc, names[3]: doc.long()}
    found, _ = tokens(Pair(names), batch, blocks=["query.layers", "doc.layers"])
    assert found["query.layers.0"] == int(query.sum()) and found["doc.layers.0"] == int(doc.sum())


class Shared(nn.Module):
    """One encoder that reads two texts, one after the other."""

    def __init__(self):
        super().__init__()
        self.encoder = Reader()

    def forward(self, input_ids, positive_input_ids, **masks):
        return self.encoder(input_ids), self.encoder(positive_input_ids)


def test_a_shared_encoder_is_read_once_and_says_so():
    one, other = real(less=1), real(less=2)
    batch = {"input_ids": ids() * one, "attention_mask": one.long()}
    batch |= {"positive_input_ids": ids(seed=1) * other, "positive_attention_mask": other.long()}
    with pytest.warns(UserWarning, match=r"encoder.layers \(run 2\) are left out: .*several texts"):
        found, _ = tokens(Shared(), batch)
    assert found == {f"encoder.layers.{i}": int(one.sum()) for i in range(2)}


def test_a_prompt_without_a_loss_is_no_padding():
    labels = ids()
    labels[:, :2] = -100
    labels[~real()] = -100
    made = contents_of({"input_ids": ids(), "decoder_input_ids": ids(), "labels": labels}, True)
    (decoder,) = (content for content in made if content.decoder)
    assert torch.equal(decoder.real, real())
    padded = ids()
    padded[:, :2] = 0  # the same id in front of each: padding on the left
    made = contents_of({"input_ids": ids(), "decoder_input_ids": padded, "labels": labels}, True)
    (decoder,) = (content for content in made if content.decoder)
    assert torch.equal(decoder.real, real() & (torch.arange(T) >= 2))
