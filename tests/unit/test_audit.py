"""One function audits a name, a source and a module in memory: facts and judgement side by side."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from hf_rksp.audit import Audit, audit
from hf_rksp.config import RiskConfig
from hf_rksp.errors import InputError
from hf_rksp.inputs import InputOptions, ModelSource
from hf_rksp.profile import profile_model
from hf_rksp.report import audit_from_dict, audit_to_dict, read_report, write_report
from hf_rksp.risk.thresholds import assess

TINY = "n_layer=3,n_embd=32,n_head=2,n_positions=64"
LITTLE = InputOptions(tokens=256, seq_len=32)
IDS = torch.randint(0, 64, (16, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=64, n_positions=32)).eval()


@pytest.fixture(scope="module")
def loaded():
    sentences = []
    source = ModelSource(init="gpt2", config_overrides=TINY)
    return audit(source, LITTLE, command="a command", note=sentences.append, progress=False), sentences


def test_a_model_that_is_loaded_here(loaded):
    result, sentences = loaded
    assert isinstance(result, Audit) and result.profile.model["source"] == "initialised"
    assert result.profile.setup["command"] == "a command" and result.profile.setup["text"]["tokens"] == 256
    assert any("Tokenizer" in sentence for sentence in sentences)
    assert set(sentences) <= set(result.profile.notes)


def test_a_module_in_memory_is_the_profile_and_its_verdict(model):
    result = audit(model, [IDS], untrained=True, groups=0, progress=False)
    profile = profile_model(model, [IDS], source="initialised", groups=0, progress=False)
    assert [layer.near_unit_mass for layer in result.profile.layers] == [
        layer.near_unit_mass for layer in profile.layers
    ]
    assert result.verdict == assess(profile)
    assert audit(model, [IDS], groups=0, progress=False).profile.model["source"] is None


def test_the_profile_holds_no_judgement_and_thresholds_change_no_fact(model):
    strict = RiskConfig(safe_near_unit_mass=1e-9, high_near_unit_mass=2e-9)
    one = audit(model, [IDS], untrained=True, groups=0, progress=False)
    other = audit(model, [IDS], untrained=True, groups=0, risk_config=strict, progress=False)
    assert one.verdict.band != other.verdict.band == "high"
    facts = [audit_to_dict(result)["profile"] for result in (one, other)]
    assert facts[0]["layers"] == facts[1]["layers"] and facts[0]["aggregates"] == facts[1]["aggregates"]
    assert 'near_unit_mass": 1e-09' not in json.dumps(facts[1]) and "verdict" not in facts[1]


def test_a_profile_alone_gets_the_verdict_of_the_published_thresholds(model, tmp_path):
    profile = profile_model(model, [IDS], source="initialised", progress=False)
    write_report(profile, tmp_path, "json")
    assert read_report(tmp_path).verdict == audit_from_dict(audit_to_dict(Audit(profile, assess(profile)))).verdict


@pytest.mark.parametrize(
    ("model_given", "data", "options", "message"),
    [
        ("module", None, {}, "needs the batches"),
        ("module", LITTLE, {}, "needs the batches"),
        ("module", [IDS], {"resume": "folder"}, "resume='folder'"),
        ("name", [IDS], {}, "pass InputOptions"),
        ("name", None, {"rank": "half"}, "rank='half'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(model, model_given, data, options, message):
    with pytest.raises(InputError, match=message):
        audit(model if model_given == "module" else "nobody/nothing", data, progress=False, **options)
