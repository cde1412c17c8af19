"""A manifest is checked as a whole before anything runs; the message names file, model, key and remedy."""

import json
from pathlib import Path

import pytest

from hf_rksp.errors import InputError
from hf_rksp.zoo import read_manifest
from hf_rksp.zoo.render import all_models
from tests.zoo.conftest import model

ROOT = Path(__file__).parents[2] / "zoo_reports"


def write(path, *models):
    path.write_text(json.dumps({"models": list(models)}))
    return path


def test_read(tmp_path):
    found = read_manifest(write(tmp_path / "m.json", model())).models[0]
    assert found.seeds == (1, 2)
    assert found.command(2).startswith("rksp audit --init gpt2 --config-overrides ")
    assert found.command(2).endswith("--tokens 256 --seq-len 32 --groups 0 --seed 2")


def test_further_seeds_go_without_the_jackknife(tmp_path):
    found = read_manifest(write(tmp_path / "m.json", model(arguments=["--init", "gpt2"]))).models[0]
    assert found.command(1) == "rksp audit --init gpt2 --seed 1"
    assert found.command(2) == "rksp audit --init gpt2 --groups 0 --seed 2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "../up"}, "id='../up': the id names a folder"),
        ({"source": "finetuned"}, "source='finetuned' is none of initialised, trained, pretrained"),
        ({"title": ""}, "title='': pass a text"),
        ({"seeds": []}, r"seeds=\[\]: pass a list of whole numbers"),
        ({"seeds": [1, 1]}, "a seed appears twice"),
        ({"arguments": "gpt2"}, "arguments='gpt2': pass the arguments of `rksp audit` as a list"),
        ({"arguments": ["gpt2", "--seed", "1"]}, "the runner adds '--seed' itself"),
        ({"published": "gpt5"}, "published='gpt5' is none of llama-2-7b"),
        ({"memory_gib": -1}, "memory_gib=-1: pass a number of at least 0"),
        ({"memory_gib": None}, "memory_gib=None: pass a number"),
        ({"progress": 7}, "progress=7: pass a fraction from 0 to 1"),
        ({"step": 0.5}, "'step' is none of arguments"),
        ({"note": 5}, "note=5: pass a text"),
        ({"needs_hub": "false"}, "needs_hub='false': pass true or false"),
        ({"needs_hub": True}, "add --revision with the commit on the Hub"),
        ({"needs_hub": True, "arguments": ["a/b", "--revision", "main"]}, "add --revision with the commit on the Hub"),
        ({"id": "manifests"}, "id='manifests': the id names a folder"),
        ({"tier": 1}, "'tier' is none of arguments"),
    ],
)
def test_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_manifest(write(tmp_path / "m.json", model() | changes))
    assert "m.json" in str(error.value)


def test_files_that_are_no_manifests(tmp_path):
    with pytest.raises(InputError, match="pass a file of zoo_reports/manifests"):
        read_manifest(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"models": [')
    with pytest.raises(InputError, match="not JSON"):
        read_manifest(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="at least one model"):
        read_manifest(tmp_path / "list.json")
    with pytest.raises(InputError, match="id='tiny-gpt2-init' appears twice"):
        read_manifest(write(tmp_path / "m.json", model(), model()))


def test_one_id_is_one_model_in_all_manifests(tmp_path):
    (tmp_path / "manifests").mkdir()
    write(tmp_path / "manifests" / "a.json", model())
    write(tmp_path / "manifests" / "b.json", model(title="Another"))
    with pytest.raises(InputError, match="'tiny-gpt2-init' is another model in another manifest"):
        all_models(tmp_path)


def test_the_manifests_of_the_zoo_name_every_family_of_the_paper():
    models = all_models(ROOT)
    assert {found.family for found in models} >= {"GPT-2", "LLaMA-2", "Mixture of experts", "Mamba", "KAN", "ViT"}
    assert all(len(found.seeds) == 3 for found in models if found.source == "initialised")
    for found in models:
        assert ("--init" in found.arguments) == (found.source == "initialised"), found.id
        assert found.id.endswith("-init") or found.source != "initialised" or found.family == "Mixture of experts"
        assert ("(init)" in found.title) == (found.source == "initialised"), found.title
