"""Weights that lie in a folder under other names, in pieces, or in another format: loaded, or named with what is wrong."""

import json
import os
import shutil

import pytest
import torch

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs import ModelSource, load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(llama, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(llama, path)
    return path


@pytest.fixture
def shards(sharded, tmp_path):
    path = tmp_path / "shards"
    shutil.copytree(sharded, path)
    return path


def weights(path, **more):
    return load_model(ModelSource(model=str(path), **more)).model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "consolidated.safetensors", "weights.safetensors"])
def test_one_file_by_another_name(folder, llama, name):
    (folder / "model.safetensors").rename(folder / name)
    before = sorted(path.name for path in folder.iterdir())
    loaded = load_model(ModelSource(model=str(folder)))
    assert same(loaded.model.state_dict(), weights(llama)) and loaded.model.config.name_or_path == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_shards_without_an_index_and_of_a_variant(shards, llama):
    index = shards / "model.safetensors.index.json"
    text = index.read_text()
    index.unlink()
    assert same(weights(shards), weights(llama))
    (shards / "model.safetensors.index.fp16.json").write_text(text)
    assert same(weights(shards), weights(llama))


def test_torch_files(folder, llama, shards):
    from safetensors.torch import load_file

    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(held, folder / "pytorch_model.fp16.bin")
    assert same(weights(folder), weights(llama))
    (folder / "pytorch_model.fp16.bin").unlink()
    names = sorted(held)
    for number, part in enumerate((names[:9], names[9:]), 1):
        torch.save({name: held[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    assert same(weights(folder), weights(llama))


def test_links_last_as_long_as_blocks_are_read(shards, llama):
    from hf_rksp import profile_model

    (shards / "model.safetensors.index.json").unlink()
    streamed = load_model(ModelSource(model=str(shards), stream=True))
    ids = torch.randint(5, 300, (8, 16), generator=torch.Generator().manual_seed(0))
    found = profile_model(streamed.model, ids, groups=0, rank=4, weights=streamed.weights, progress=False)
    plain = profile_model(load_model(ModelSource(model=str(llama))).model, ids, groups=0, rank=4, progress=False)
    assert [a.spectral_radius for a in found.layers] == [b.spectral_radius for b in plain.layers]


def refusal(path, **more):
    with pytest.raises(ModelLoadError) as error:
        load_model(ModelSource(model=str(path), **more))
    text = str(error.value).replace(str(path), "FOLDER")
    assert "rksp-" not in text, "a path of the links"
    return text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "is a pointer of Git LFS"),
        ("<!doctype html><html></html>", "is a web page (HTML)"),
        ("\n<html lang=en>", "is a web page (HTML)"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        ("Entry not found", "'Entry not found'"),
        ("", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_files_that_are_something_else(folder, content, said, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    text = refusal(folder)
    assert name in text and (said in text or (name == "config.json" and "is not readable JSON" in text))
    assert "has no weights" not in text and "--init" not in text


def test_a_file_of_torch_under_the_name_of_safetensors(folder):
    torch.save({"a": torch.ones(3)}, folder / "model.safetensors")
    assert "rename it to pytorch_model.bin" in refusal(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    assert "pytorch_model.bin' is cut short" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_model.h5", "of TensorFlow"),
        ("flax_model.msgpack", "of Flax"),
        ("model.ckpt", "Lightning"),
        ("model.onnx", "ONNX"),
        ("consolidated.00.pth", "torch.save"),
        ("model.bin", "torch.save"),
        ("tiny-Q4.gguf", "holds weights in GGUF: pass 'FOLDER/tiny-Q4.gguf'"),
        ("model.nemo", "of another library"),
    ],
)
def test_weights_of_another_kind_are_named(folder, name, said):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x08 weights \x00")
    for beside in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / beside).write_bytes(b"\x00")
    text = refusal(folder)
    assert name in text and said in text and "has no weights" not in text and "--init" not in text


def test_only_what_a_run_leaves_beside_a_model(folder):
    (folder / "model.safetensors").rename(folder / "optimizer.pt")
    assert "has no weights" in refusal(folder)


def test_weights_one_folder_below(folder):
    (folder / "checkpoint-20").mkdir()
    (folder / "model.safetensors").rename(folder / "checkpoint-20/model.safetensors")
    assert "pass 'FOLDER/checkpoint-20'" in refusal(folder)
    (folder / "checkpoint-20").rename(folder / "global_step20")
    assert "zero_to_fp32.py" in refusal(folder)


def test_names_that_leave_a_choice(folder, shards):
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "model.safetensors").rename(folder / "model.bf16.safetensors")
    text = refusal(folder)
    assert (
        "model.bf16.safetensors, model.fp16.safetensors" in text
        and "rename the one you mean to model.safetensors" in text
    )
    (shards / "model.safetensors.index.json").unlink()
    sorted(shards.glob("*.safetensors"))[1].unlink()
    assert "number 2 is missing" in refusal(shards)


def test_index_of_other_shards(shards):
    file = shards / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("model-", "part-"))
    text = refusal(shards)
    assert "shards are missing (part-00001" in text and "there are model-00001" in text
    file.write_text("[]")
    assert "it lists no shards" in refusal(shards)


def test_weights_by_names_of_another_library(folder):
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {name.replace("self_attn.", "attention.w").replace("model.", ""): value for name, value in held.items()}
    save_file(renamed, folder / "consolidated.safetensors", metadata={"format": "pt"})
    assert "lacks 12 weights of the residual blocks" in refusal(folder)
    del held["model.embed_tokens.weight"]
    save_file(held, folder / "consolidated.safetensors", metadata={"format": "pt"})
    assert "lacks 1 weights of the embeddings (embed_tokens.weight)" in refusal(folder)


def test_a_link_to_nothing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    assert "is a link to a file that is not there" in refusal(folder) or "model.safetensors" in refusal(folder)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a link to" in refusal(tmp_path / "link")


# --- Weights that the model of the configuration does not take ---------------------------------------------------------


def shorten(folder, **layers):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | layers))


def test_layers_that_the_configuration_does_not_name(folder, shards, rksp, tmp_path):
    for path in (folder, shards):
        shorten(path, num_hidden_layers=1)
        (note,) = load_model(ModelSource(model=str(path))).notes
        assert "2 more layers (model.layers: 1 to 2)" in note and "not used" in note
    code, _, err = rksp("audit", folder, "--out", "r", "--groups", 0, "--tokens", 128, "--seq-len", 32, "--quiet")
    assert code == 0 and "rksp: note: The checkpoint" in err and "2 more layers" in err
    assert "2 more layers" in (tmp_path / "r/report.md").read_text()


def test_layers_of_either_side_of_an_encoder_decoder(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=3, num_decoder_layers=3, num_heads=2, vocab_size=30)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert load_model(ModelSource(model=str(tmp_path))).notes == ()
    shorten(tmp_path, num_layers=1, num_decoder_layers=2)
    notes = sorted(load_model(ModelSource(model=str(tmp_path))).notes)
    assert "1 more layers (decoder.block: 2)" in notes[0] and "2 more layers (encoder.block: 1 to 2)" in notes[1]


def test_weights_without_a_place_inside_a_block(folder):
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    held["model.layers.1.self_attn.q_proj.bias"] = torch.ones(32)
    held["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    held["lm_head.bias"] = torch.ones(320)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    (note,) = load_model(ModelSource(model=str(folder))).notes
    assert "has 1 weights in its blocks" in note and "layers.1.self_attn.q_proj.bias" in note


def test_adapter_for_layers_that_its_base_lacks(adapter, folder):
    shorten(folder, num_hidden_layers=2)
    assert load_model(ModelSource(model=str(adapter))).notes == ()
    notes = load_model(ModelSource(model=str(adapter), base_model=str(folder))).notes
    assert len(notes) == 2 and all("1 more layers" in note for note in notes)
    assert f"The checkpoint {str(adapter)!r}" in notes[1]


def test_a_folder_whose_name_is_no_text(rksp, tmp_path, llama):
    """Rust takes no such name; what is wrong is the name, and not the tokenizer or the weights."""
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    try:
        shutil.copytree(llama, folder)
    except OSError:
        pytest.skip("this file system takes text alone")
    code, _, err = rksp("audit", folder, "--quiet")
    assert code == 2 and "its name is no text" in err and "LC_ALL" in err and "the tokenizer" not in err
