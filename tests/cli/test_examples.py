"""The examples run as a user would run them, at toy size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = Path(os.environ.get("HF_RKSP_DATA", ""))
needs_data = pytest.mark.skipif("HF_RKSP_DATA" not in os.environ, reason="HF_RKSP_DATA names no folder with real data")
SHORT = ["--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true", "--kss", "on",
         "--kss_rank", 8, "--spectrum_rank", 8, "--logging_steps", 1, "--max_steps", 3,
         "--per_device_train_batch_size", 4]  # fmt: skip


def run(tmp_path, name, *args):
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_profile_gpt2(tmp_path):
    out = run(tmp_path, "profile_gpt2.py", "--layers", 2, "--width", 48, "--out", tmp_path / "report")
    assert "h.1: near-unit mass" in out and "by the paper's thresholds: " in out
    assert (tmp_path / "report/report.html").is_file()


@needs_data
def test_profile_images(tmp_path):
    images = DATA / "cifar10/plain_text/test-00000-of-00001.parquet"
    out = run(tmp_path, "profile_images.py", "--images", images, "--layers", 2, "--width", 48, "--out", "report")
    assert "over 4160 tokens" in out  # 64 images of 8 x 8 patches and one class token
    assert (tmp_path / "report/report.html").is_file()


@needs_data
def test_run_clm_on_wikitext(tmp_path):
    text = ["--dataset", DATA / "wikitext/wikitext-103-v1", "--train_split", "test", "--max_tokens", 20000]
    size = ["--config_overrides", '{"n_layer": 2, "n_embd": 32, "n_head": 2}', "--vocab_size", 512, "--block_size", 32]
    out = run(tmp_path, "run_clm.py", *text, *size, *SHORT, "--output_dir", "clm", "--spectrum_every", 2)
    assert "world size 1" in out and "'kss/loss'" in out and "'spectrum/near_unit_mass/mean'" in out
    accuracy = float(re.search(r"token accuracy ([\d.]+)", out)[1])
    assert 0 <= accuracy <= 1
    assert (tmp_path / "clm/rksp_report.html").is_file() and (tmp_path / "clm/model.safetensors").is_file()


def test_the_command_line_wins_over_the_yaml_file(tmp_path):
    config = EXAMPLES / "configs/clm_tiny.yaml"
    size = ["--config_overrides", '{"n_layer": 2, "n_embd": 32, "n_head": 2}', "--vocab_size", 512, "--block_size", 32]
    out = run(tmp_path, "run_clm.py", "--config", config, *size, *SHORT, "--output_dir", "here", "--kss_weight", 0.125)
    assert "weight=0.125" in out and (tmp_path / "here/rksp_history.jsonl").is_file()
    assert not (tmp_path / yaml.safe_load(config.read_text())["output_dir"]).exists()


@needs_data
def test_run_image_classification(tmp_path):
    size = ["--train_images", 64, "--eval_images", 32, "--layers", 2, "--width", 48, "--patch", 8]
    out = run(
        tmp_path, "run_image_classification.py", "--dataset", DATA / "cifar10", *size, *SHORT, "--output_dir", "vit"
    )
    assert re.search(r"accuracy 0\.\d+", out) and "'kss/loss'" in out


def test_run_lora(tmp_path):
    out = run(tmp_path, "run_lora.py", "--vocab_size", 512, "--block_size", 32, *SHORT, "--output_dir", "lora")
    assert "65536 parameters trained" in out and "'kss/loss'" in out
    assert (tmp_path / "lora/adapter_model.safetensors").is_file()


def test_run_sft_trl(tmp_path):
    out = run(tmp_path, "run_sft_trl.py", "--max_length", 32, *SHORT, "--output_dir", "sft")
    assert "final loss" in out and "'kss/loss'" in out and "'mean_token_accuracy'" in out


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_plain_pytorch(tmp_path, schedule):
    out = run(tmp_path, "plain_pytorch.py", "--cpu", "--steps", 10, "--schedule", schedule, "--out", "model")
    assert "world size 1" in out and "kss/loss" in out
    assert (tmp_path / "model/model.safetensors").is_file()


def test_train_twice(tmp_path):
    out = run(tmp_path, "train_twice.py", "--steps", 8, "--out", "both")
    assert "Before the first step of the run without KSS: P(lost) at learning rate 0.005 is" in out
    assert out.count("largest loss") == 2
    page = (tmp_path / "both/divergence.html").read_text()
    assert "without KSS" in page and "with KSS" in page


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_help(script):
    done = subprocess.run([sys.executable, str(EXAMPLES / script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_a_wrong_line_in_the_yaml_file_is_named(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rat: 1e-3\n")
    command = [sys.executable, str(EXAMPLES / "run_clm.py"), "--config", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "there is no argument 'learning_rat'" in done.stderr


@pytest.mark.parametrize("path", sorted((EXAMPLES / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
