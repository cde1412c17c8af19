"""profile_model: chunks, random models, options, and what it leaves behind."""

import json
import math

import pytest
import torch
from torch import nn

from hf_rksp import profile_model
from hf_rksp.audit import Audit
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.profile.model import default_moment_memory
from hf_rksp.report import audit_from_dict, audit_to_dict
from hf_rksp.report.profile.schema import SchemaError
from hf_rksp.risk.thresholds import assess


def gpt2(layers=3):
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=layers, n_embd=16, n_head=2, vocab_size=64, n_positions=32))


IDS = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(0))


def radii(profile):
    return [layer.spectral_radius for layer in profile.layers]


@pytest.fixture(scope="module")
def profile():
    return profile_model(gpt2(), [IDS[:4], IDS[4:]], source="initialised", progress=False)


class Noisy(nn.Module):
    """A model that draws numbers in evaluation mode, as masked autoencoders do."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = x + torch.randn(x.shape)
        for block in self.blocks:
            x = block(x)
        return x


def test_chunks_give_the_same_numbers(profile):
    one_at_a_time = profile_model(gpt2(), [IDS[:4], IDS[4:]], moment_memory=1, progress=False)
    assert radii(one_at_a_time) == radii(profile)


def test_chunks_of_a_random_model_see_the_same_draws():
    torch.manual_seed(0)
    model, x = Noisy(), torch.randn(8, 20, 8)
    runs = []
    for memory in (2**29, 1):
        torch.manual_seed(1)
        runs.append(radii(profile_model(model, [{"x": x}], blocks="blocks", moment_memory=memory, progress=False)))
    assert runs[0] == runs[1]


def test_memory_bounds_the_layers_of_one_pass(monkeypatch):
    """Also for a module without a configuration; each layer takes groups * 3 * width^2 * 8 bytes."""
    from hf_rksp.profile import passes as module

    parts, gather = [], module.gather_moments
    monkeypatch.setattr(
        module, "gather_moments", lambda m, b, s, part, *more: parts.append(len(part)) or gather(m, b, s, part, *more)
    )
    torch.manual_seed(0)
    memory = 2 * 4 * 3 * 8**2 * 8
    profile_model(
        Noisy(), [{"x": torch.randn(8, 20, 8)}], blocks="blocks", groups=4, moment_memory=memory, progress=False
    )
    assert parts == [2, 1]


@pytest.mark.parametrize(("weights", "gib"), [(2**20, 0.5), (2**30, 2.0)])
def test_memory_for_moments_grows_with_the_model(weights, gib):
    model = nn.ParameterList([torch.empty(weights), torch.empty(2**40, device="meta")])  # float32; one that is on disk
    assert default_moment_memory(model) == gib * 2**30
    x = torch.randn(8, 20, 8)
    profile = profile_model(Noisy(), [{"x": x}], blocks="blocks", progress=False)
    assert profile.cost["moment_memory_bytes"] == 2**29


def test_blocks_that_the_input_does_not_reach_are_left_out():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))

        def forward(self, x):
            for block in self.used:
                x = block(x)
            return x

    x = torch.randn(8, 20, 8)
    profile = profile_model(Towers(), [{"x": x}], blocks=["unused", "used"], moment_memory=1, progress=False)
    assert [layer.path for layer in profile.layers] == ["used.0", "used.1"]
    with pytest.raises(CaptureError, match="none of the blocks of unused ran"):
        profile_model(Towers(), [{"x": x}], blocks="unused", progress=False)


def test_each_run_of_a_shared_layer_is_a_layer():
    from transformers import AlbertConfig, AlbertModel

    sizes = {
        "hidden_size": 16,
        "embedding_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    model = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=3)).eval()
    for blocks in (None, "encoder.albert_layer_groups.0.albert_layers"):
        layers = profile_model(model, [IDS], blocks=blocks, rank=4, groups=0, progress=False).layers
        assert [layer.depth for layer in layers] == [0.0, 0.5, 1.0]
        assert [layer.path.removeprefix(layers[0].path) for layer in layers] == ["", " (run 2)", " (run 3)"]
        assert [layer.tokens for layer in layers] == [IDS.numel()] * 3
        assert len({layer.spectral_radius for layer in layers}) == 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 17}, "16 dimensions"),
        ({"rank": 0}, "rank=0"),
        ({"rank": "half"}, "rank='half'"),
        ({"groups": 1}, "groups=1"),
        ({"groups": -2}, "groups=-2"),
        ({"moment_memory": 0}, "moment_memory=0"),
        ({"source": "pretained"}, "source='pretained'"),
        ({"blocks": ["h", "h"]}, "named twice"),
        ({"batches": []}, "batches is empty"),
    ],
)
def test_bad_options(kwargs, message):
    kwargs = dict(kwargs)
    with pytest.raises(InputError, match=message):
        profile_model(gpt2(), kwargs.pop("batches", [IDS]), progress=False, **kwargs)


def test_few_modes_carry_no_verdict():
    profile = profile_model(gpt2(), [IDS[:4, :2]], source="initialised", progress=False)
    verdict = assess(profile)
    assert verdict.band == "not_assessable"
    assert any("fewer than 8" in reason for reason in verdict.reasons)
    assert any("projected on" in reason for reason in verdict.reasons)


def test_few_sequences_have_no_errors_and_say_so(profile):
    few = profile_model(gpt2(), [IDS[:3]], progress=False)
    assert few.setup["groups_used"] == 0 and not few.layers[0].standard_errors
    assert profile.setup["groups_used"] == 8
    none = profile_model(gpt2(), [IDS], groups=0, progress=False)
    assert not none.layers[0].intervals and assess(none).interval is None


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        profile_model(gpt2(), [IDS], progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_round_trip(profile):
    audit = Audit(profile, assess(profile))
    data = audit_to_dict(audit)
    read = audit_from_dict(json.loads(json.dumps(data)))
    assert audit_to_dict(read) == data
    assert read.verdict == audit.verdict
    assert read.profile.layers[0].intervals == profile.layers[0].intervals
    assert math.isnan(read.profile.aggregates["eigenvector_condition"]["standard_error"])


@pytest.mark.parametrize("section", ["aggregates", "model", "layers", "verdict"])
def test_an_emptied_section_is_refused(profile, section):
    data = audit_to_dict(Audit(profile, assess(profile)))
    holder = data if section == "verdict" else data["profile"]
    holder[section] = [] if section == "layers" else {}
    with pytest.raises(SchemaError, match="does not fit schema"):
        audit_from_dict(data)
    with pytest.raises(SchemaError, match="schema_version=True"):
        audit_from_dict(data | {"schema_version": True})


def test_peak_memory_is_in_bytes(profile):
    import psutil

    resident = psutil.Process().memory_info().rss
    assert 0.5 * resident < profile.cost["peak_memory_bytes"] < 100 * resident
