"""Tiny checkpoints in the Hub's format, and a runner of the command line in this process."""

import pytest
import torch

from hf_rksp.cli.main import main

TINY = "n_layer=2,n_embd=32,n_head=2,vocab_size=300,n_positions=64"
FAST = ["--groups", "4", "--tokens", "512", "--seq-len", "32", "--quiet"]


@pytest.fixture
def rksp(capsys, monkeypatch, tmp_path):
    """Run ``rksp`` in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture(scope="session")
def words():
    """A small tokenizer that reads English."""
    from hf_rksp.inputs import TextSource, read_text, train_byte_level_bpe

    return train_byte_level_bpe(read_text(TextSource(), 100)[:200_000], 320)


@pytest.fixture(scope="session")
def llama(tmp_path_factory, words):
    """A tiny LLaMA, saved whole, with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=320,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("models") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded(llama, words, tmp_path_factory):
    """The same, in shards."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "sharded"
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="20KB")
    words.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def adapter(llama, tmp_path_factory):
    """A LoRA adapter with weights that do something, on the tiny LLaMA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(llama)
    torch.manual_seed(1)
    model = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    )
    folder = tmp_path_factory.mktemp("models") / "adapter"
    model.save_pretrained(folder)
    return folder
