"""Everything that can be wrong with the input: exit code 2, one line that names it and the remedy, nothing written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from .conftest import FAST, TINY

GPT2 = ("--init", "gpt2", "--config-overrides", TINY)


def refused(rksp, tmp_path, *args, code=2):
    got, out, err = rksp("audit", "--out", tmp_path / "out", *args, *FAST)
    assert got == code, err
    assert out == "" and "Traceback" not in err
    assert err.count("\n") == 1 and err.startswith("rksp: error: "), err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    return err


@pytest.fixture
def broken(llama, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(llama, folder)
    return folder


def test_no_model_and_two_models(rksp, tmp_path, llama):
    assert "either a model" in refused(rksp, tmp_path)
    assert "either a model" in refused(rksp, tmp_path, llama, "--init", "gpt2")


def test_missing_folder(rksp, tmp_path):
    assert "does not exist" in refused(rksp, tmp_path, "./nowhere")


def test_hub_id_without_network(rksp, tmp_path):
    err = refused(rksp, tmp_path, "nobody/no-such-model")
    assert "'nobody/no-such-model' cannot be loaded" in err and "Hub id" in err


def test_empty_folder(rksp, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(rksp, tmp_path, tmp_path / "empty")


def test_folder_without_weights(rksp, tmp_path, broken):
    (broken / "model.safetensors").unlink()
    assert "has no weights" in refused(rksp, tmp_path, broken)


@pytest.mark.parametrize("keep", [0, 4, 1000, 20000])
def test_half_written_weights(rksp, tmp_path, broken, keep):
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:keep])
    err = refused(rksp, tmp_path, broken)
    assert "model.safetensors" in err and "half-written" in err


def test_half_written_config(rksp, tmp_path, broken):
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(text[: len(text) // 2])
    assert "config.json" in refused(rksp, tmp_path, broken)


def test_config_of_another_size(rksp, tmp_path, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    refused(rksp, tmp_path, broken)


def test_config_with_more_layers_than_weights(rksp, tmp_path, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    err = refused(rksp, tmp_path, broken)
    assert "lacks 18 weights of the residual blocks" in err and "layers.3" in err


def test_unknown_architecture(rksp, tmp_path, broken):
    (broken / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in refused(rksp, tmp_path, broken)


def test_one_shard_missing(rksp, tmp_path, sharded):
    folder = tmp_path / "broken"
    shutil.copytree(sharded, folder)
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    err = refused(rksp, tmp_path, folder)
    assert victim.name in err and "missing" in err


def test_adapter_without_weights(rksp, tmp_path, adapter):
    folder = tmp_path / "broken"
    shutil.copytree(adapter, folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter without adapter_model.safetensors" in refused(rksp, tmp_path, folder)


def test_adapter_whose_base_is_gone(rksp, tmp_path, adapter):
    folder = tmp_path / "broken"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "names no base model: pass --base-model" in refused(rksp, tmp_path, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_name_the_layer(rksp, tmp_path, broken, value):
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    err = refused(rksp, tmp_path, broken)
    assert "layer layers.1:" in err and "NaN or inf" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("n_layer", "is not key=value"),
        ("no_such_key=1", "is not a key of a gpt2"),
        ("n_layer=two", "has to be a int"),
        ("n_layer=2.5", "has to be a int"),
        ("n_head=5", "gpt2"),
    ],
)
def test_bad_overrides(rksp, tmp_path, overrides, message):
    assert message in refused(rksp, tmp_path, "--init", "gpt2", "--config-overrides", overrides)


def test_unknown_preset_lists_the_presets(rksp, tmp_path):
    assert "llama-2-7b" in refused(rksp, tmp_path, "--init", "gpt-17")


def test_model_larger_than_memory(rksp, tmp_path):
    err = refused(rksp, tmp_path, "--init", "llama-2-7b", "--config-overrides", "num_hidden_layers=2000")
    assert "GiB are free" in err and "--dtype bfloat16" in err


def test_empty_text(rksp, tmp_path):
    (tmp_path / "empty.txt").write_text("  \n")
    assert "is empty" in refused(rksp, tmp_path, *GPT2, "--text", tmp_path / "empty.txt")


def test_binary_text(rksp, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00binary")
    assert "UTF-8" in refused(rksp, tmp_path, *GPT2, "--text", tmp_path / "a.txt")


def test_missing_text(rksp, tmp_path):
    assert "does not exist" in refused(rksp, tmp_path, *GPT2, "--text", "./nothing.txt")
    assert "cannot be loaded" in refused(rksp, tmp_path, *GPT2, "--text", "nobody/no-such-dataset")


def test_text_shorter_than_one_sequence(rksp, tmp_path):
    (tmp_path / "short.txt").write_text("To be, or not to be.")
    assert "fewer than one sequence of 32" in refused(rksp, tmp_path, *GPT2, "--text", tmp_path / "short.txt")


def test_text_with_too_few_distinct_sequences(rksp, tmp_path):
    (tmp_path / "same.txt").write_text("abcdefghijklmnopqrstuvwxyz 0123456789 " * 2000)
    err = refused(rksp, tmp_path, *GPT2, "--text", tmp_path / "same.txt")
    assert "distinct sequences" in err and "or less" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rank", "33"], "rank=33"),
        (["--rank", "0"], "rank=0"),
        (["--rank", "most"], "rank='most'"),
        (["--tokens", "40", "--seq-len", "20", "--rank", "full"], "at least 64 tokens"),
        (["--tokens", "1"], "tokens=1"),
        (["--seq-len", "1"], "seq_len=1"),
        (["--seq-len", "100"], "64 positions"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--groups", "1"], "groups=1"),
        (["--moment-memory", "0"], "moment_memory=0"),
        (["--formats", "pdf"], "formats='pdf'"),
        (["--device", "cuda:77"], "device='cuda:77'"),
        (["--blocks", "wte.no"], "blocks='wte.no'"),
        (["--seed", "-1"], "seed=-1"),
        (["--tokenizer", "./nothing"], "tokenizer='./nothing'"),
    ],
)
def test_bad_options(rksp, tmp_path, args, message):
    got, out, err = rksp("audit", *GPT2, "--out", tmp_path / "out", *FAST, *args)
    assert got == 2 and out == "" and message in err and "Traceback" not in err


def test_unknown_flags_are_errors(rksp):
    for args in (("audit", "--no-such-flag"), ("audit", *GPT2, "--tok", "9"), ("nonsense",), ()):
        assert rksp(*args)[0] == 2


def test_all_padding():
    from transformers import AutoModel, GPT2Config

    from hf_rksp import profile_model
    from hf_rksp.errors import InputError

    model = AutoModel.from_config(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    ids = torch.randint(0, 50, (4, 16))
    with pytest.raises(InputError, match="padding"):
        profile_model(model, [{"input_ids": ids, "attention_mask": torch.zeros_like(ids)}], progress=False)


def test_unwritable_folder(rksp, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, _, err = rksp("audit", *GPT2, "--out", tmp_path / "file/below", *FAST)
    assert code == 1 and "file/below" in err and "Traceback" not in err


def test_push_without_login_is_refused_before_the_work(rksp, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    start = time.monotonic()
    code, _, err = rksp("audit", "--init", "gpt2", "--out", tmp_path / "o", "--push-to-hub", "me/reports", "--quiet")
    assert code == 1 and "hf auth login" in err
    assert time.monotonic() - start < 20


def run_limited(tmp_path, *args, size=None):
    def limit():
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = [sys.executable, "-m", "hf_rksp.cli.main", "audit", *GPT2, *FAST, *args]
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit, env=env)


def test_disk_full_leaves_no_half_report(tmp_path):
    done = run_limited(tmp_path, "--out", "r", size=3000)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "rksp: error:" in done.stderr
    assert not [p for p in (tmp_path / "r").rglob("*") if p.is_file()] if (tmp_path / "r").exists() else True


def test_interrupt_leaves_no_half_report_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "hf_rksp.cli.main", "audit", "--init", "gpt2", "--out", "r"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell starts its background jobs with Ctrl-C ignored, and children inherit that: a test run may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "profiling" in line:
            break
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "interrupted" in err and out == ""
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_model_for_images_is_sent_to_the_api(rksp, tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64).save_pretrained(
        tmp_path / "vit"
    )
    err = refused(rksp, tmp_path, "--init", tmp_path / "vit")
    assert "pixel_values" in err and "profile_model" in err


def test_refused_runs_leave_no_folder(rksp, tmp_path):
    assert rksp("audit", "nobody/nothing", *FAST)[0] == 2
    assert rksp("audit", *GPT2, "--rank", "33", *FAST)[0] == 2
    assert not list(tmp_path.iterdir())


def test_json_target_is_checked_before_the_work(rksp, tmp_path):
    for target in (tmp_path / "no/such/folder.json", tmp_path):
        code, _, err = rksp("audit", "--init", "gpt2", "--json", target, "--quiet")
        assert code == 1 and "--json" in err


def test_split_that_is_not_there(rksp, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-00000.parquet").write_bytes(b"")
    err = refused(rksp, tmp_path, *GPT2, "--text", tmp_path / "data", "--text-split", "train")
    assert "split='train'" in err and "test-00000.parquet" in err


def test_options_of_another_kind_of_model(rksp, tmp_path, llama):
    assert "revision='main'" in refused(rksp, tmp_path, llama, "--revision", "main")
    assert "base_model='gpt2'" in refused(rksp, tmp_path, llama, "--base-model", "gpt2")
    assert "device='meta'" in refused(rksp, tmp_path, *GPT2, "--device", "meta")


@pytest.mark.parametrize("command", ["rksp env | true", "rksp env --json - | true", "rksp --version | true"])
def test_a_reader_that_leaves(tmp_path, command):
    run = f"set -o pipefail; {command.replace('rksp', sys.executable + ' -m hf_rksp.cli.main', 1)}; echo ${{PIPESTATUS[0]}} >&2"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, env=env)
    assert done.stderr.strip() in ("0", "1"), done.stderr


@pytest.mark.parametrize("unbuffered", [False, True])
def test_full_stdout(unbuffered):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | (
        {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hf_rksp.cli.main", "env"], stdout=full, stderr=subprocess.PIPE, text=True, env=env
        )
    assert done.returncode == 1 and "stdout cannot be written" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "~nobody-of-this-name/x"])
@pytest.mark.parametrize("option", ["MODEL", "--init", "--text", "--tokenizer"])
def test_names_of_nothing(rksp, tmp_path, name, option):
    args = {"MODEL": [name], "--init": ["--init", name]}.get(option, [*GPT2, option, name])
    code, out, err = rksp("audit", "--out", tmp_path / "out", *args, *FAST)
    assert code == 2 and out == "" and err.startswith("rksp: error: ") and "Traceback" not in err


def test_links_to_nothing_and_in_a_circle(rksp, tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("gone", "circle"):
        assert "is a link to" in refused(rksp, tmp_path, name)
        assert "does not exist" in refused(rksp, tmp_path, *GPT2, "--text", name)


def test_json_that_nests_too_deeply(rksp, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for args in (["report"], ["compare", "deep.json"], ["zoo", "run"], ["audit", "--init"]):
        code, _, err = rksp(*args, "deep.json")
        assert code == 2 and "Traceback" not in err


def test_an_adapters_base_for_random_weights(rksp, tmp_path):
    assert "base_model='x' is for a PEFT adapter" in refused(rksp, tmp_path, *GPT2, "--base-model", "x")


def test_text_with_a_mark_in_front_is_the_text(tmp_path):
    from hf_rksp.inputs import TextSource, read_text

    (tmp_path / "a.txt").write_text("some text", encoding="utf-8-sig")
    assert read_text(TextSource(str(tmp_path / "a.txt")), 4) == "some text"
