"""A configuration from a file is the one from its folder; one that is refused is refused with its cause."""

import json
import math
import shutil

import pytest

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs import ModelSource, load_config

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 64, "vocab_size": 300}  # fmt: skip
MAMBA = {
    "model_type": "mamba2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "vocab_size": 300,
}


def write(tmp_path, values, encoding="utf-8"):
    (tmp_path / "config.json").write_text(values if isinstance(values, str) else json.dumps(values), encoding=encoding)
    return tmp_path


def load(path):
    return load_config(ModelSource(init=str(path)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("infinity", ['{"__float__": "Infinity"}', "Infinity"])
def test_infinity_in_a_file_and_in_its_folder(tmp_path, infinity, encoding):
    values = json.dumps(MAMBA)[:-1] + f', "time_step_limit": [0.0, {infinity}]}}'
    folder = write(tmp_path, values, encoding)
    for path in (folder, folder / "config.json"):
        assert tuple(load(path).time_step_limit) == (0.0, math.inf)


def test_what_transformers_saves(tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model(**MAMBA).save_pretrained(tmp_path)
    assert load(tmp_path).to_dict() == load(tmp_path / "config.json").to_dict()
    assert "__float__" in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (LLAMA | {"num_attention_heads": 5}, r"hidden size.*32.*attention heads.*5"),
        (LLAMA | {"hidden_size": "wide"}, r"hidden_size.*wide"),
        (LLAMA | {"model_type": "llama-9"}, "llama-9"),
        (LLAMA | {"model_type": 7}, "has no model_type"),
        ([LLAMA], "has no model_type"),
        ({}, "has no model_type"),
        ("{", "line 1 column 2"),
        ("<!doctype html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("", "is empty"),
    ],
)
def test_refused_with_the_cause(tmp_path, values, cause):
    folder = write(tmp_path, values)
    for path in (folder, folder / "config.json"):
        with pytest.raises(ModelLoadError, match=cause) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_rope_that_nobody_knows(rksp, tmp_path):
    write(tmp_path, LLAMA | {"rope_scaling": {"rope_type": "mine", "factor": 4.0}})
    code, _, err = rksp("audit", "--init", tmp_path, "--quiet")
    assert code == 2 and "mine" in err and "ROPE_INIT_FUNCTIONS" in err


def test_a_file_has_the_tokenizer_of_its_folder(rksp, llama):
    texts = []
    for path in (llama, llama / "config.json"):
        code, out, err = rksp(
            "audit", "--init", path, "--json", "-", "--groups", 0, "--tokens", 256, "--seq-len", 32, "--quiet"
        )
        assert code == 0 and err == ""
        texts.append(json.loads(out)["profile"]["setup"])
    assert texts[0]["tokenizer"] == texts[1]["tokenizer"] and texts[0]["text"] == texts[1]["text"]


@pytest.mark.parametrize("key", ["to_dict", "_name_or_path", "__class__"])
def test_overrides_name_entries_alone(rksp, key):
    code, _, err = rksp("audit", "--init", "gpt2", "--config-overrides", f"{key}=1", "--quiet")
    assert code == 2 and "is not a key of a gpt2" in err


@pytest.mark.parametrize(
    ("values", "encoding", "cause"),
    [
        (json.dumps(LLAMA), "utf-8-sig", "byte order mark"),
        (json.dumps(LLAMA), "utf-16", "UTF-16"),
        (LLAMA | {"hidden_size": "wide"}, "utf-8", "hidden_size"),
        (LLAMA | {"model_type": "llama-9"}, "utf-8", "llama-9"),
    ],
)
def test_a_configuration_beside_weights_is_what_is_named(rksp, tmp_path, llama, values, encoding, cause):
    """And not the tokenizer, which reads it as well."""
    folder = shutil.copytree(llama, tmp_path / "model")
    write(folder, values, encoding)
    code, _, err = rksp("audit", folder, "--quiet")
    assert code == 2 and cause in err and "the tokenizer" not in err and "half-written" not in err
