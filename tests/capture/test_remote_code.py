"""Code that comes with a model is not run unless its reader asks for it."""

import json

import pytest

from hf_rksp.errors import RkspError
from hf_rksp.inputs.models import load_model
from hf_rksp.inputs.source import ModelSource
from tests.training.common import gpt2

CODE = """
import pathlib
pathlib.Path(__file__).parent.joinpath("RAN").touch()
pathlib.Path({mark!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    gpt2(0.0).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "RAN")))
    return folder


def test_code_of_a_repository_runs_only_if_asked_for(repository, tmp_path):
    with pytest.raises(RkspError, match="--trust-remote-code"):
        load_model(ModelSource(model=str(repository)))
    assert not (tmp_path / "RAN").exists()
    assert load_model(ModelSource(model=str(repository), trust_remote_code=True)).model is not None
    assert (tmp_path / "RAN").exists()
