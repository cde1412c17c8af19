"""Which tokenizer feeds a model: trained weights get their own or none at all, random ones may get a substitute that is named."""

import json
import shutil

import pytest
import torch

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs.tokenizers import TokenizerPlace, load_tokenizer, share_read

from .conftest import FAST

ENGLISH = "The spectrum of a residual block is what this sentence, and the next one, are about. " * 40
PROTEINS = "LAGVSERTIDPKQNFYMHWCXBUZO"


@pytest.fixture
def copy(llama, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(llama, folder)
    return folder


def cut(folder):
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:3000])


def newer(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["type"] = "BPE2"
    (folder / "tokenizer.json").write_text(json.dumps(values))


def pointer(folder):
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def empty(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"] |= {"vocab": {"@@": 0}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(values))


def gone(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


BROKEN = [
    (cut, "cannot be loaded: ", "line "),
    (newer, "cannot be loaded: ", "ModelUntagged"),
    (pointer, "tokenizer.json is a pointer of Git LFS", "git lfs pull"),
    (empty, "reads 0% of the text", "--text"),
    (gone, "holds no tokenizer", "--tokenizer"),
]


@pytest.mark.parametrize(("spoil", "cause", "remedy"), BROKEN)
def test_trained_weights_are_refused_with_the_cause(rksp, copy, spoil, cause, remedy):
    spoil(copy)
    code, out, err = rksp("audit", copy, "--out", "r", *FAST)
    assert code == 2 and out == "" and cause in err and remedy in err, err
    assert err.count("\n") == 1 and "--init" not in err


@pytest.mark.parametrize(("spoil", "cause", "remedy"), BROKEN)
def test_random_weights_take_a_substitute_that_is_named(rksp, tmp_path, copy, spoil, cause, remedy):
    spoil(copy)
    code, _, err = rksp("audit", "--init", copy, "--json", "r.json", *FAST)
    report = json.loads((tmp_path / "r.json").read_text())
    said = "comes with no tokenizer" if spoil is gone else "own tokenizer could not be used: the tokenizer "
    assert code == 0 and err.startswith("rksp: note: Tokenizer: byte-level BPE") and (spoil is gone or cause in err)
    assert said in report["profile"]["setup"]["tokenizer"]
    assert any("trained on this text" in note for note in report["profile"]["notes"])


def test_a_whole_tokenizer_is_not_spoken_of(rksp, llama):
    code, _, err = rksp("audit", "--init", llama, "--json", "r.json", *FAST)
    assert code == 0 and err == ""


def test_a_checkpoint_of_before_the_first_step_is_random(rksp, copy):
    gone(copy)
    code, _, err = rksp("audit", copy, "--untrained", "--json", "-", *FAST)
    assert code == 0 and "trained on this text" in err


@pytest.mark.parametrize("model", [["--init", "gpt2"], "folder"])
def test_a_tokenizer_that_is_asked_for_is_never_replaced(rksp, tmp_path, copy, llama, model):
    cut(copy)
    model = [llama] if model == "folder" else model
    code, _, err = rksp("audit", *model, "--tokenizer", copy, *FAST)
    assert code == 2 and f"tokenizer={str(copy)!r}" in err and "cannot be loaded" in err
    code, _, err = rksp("audit", *model, "--tokenizer", llama / "config.json", *FAST)
    assert code == 2 and "is a file: pass the folder" in err


def test_a_given_tokenizer_serves_a_model_without_one(rksp, copy, llama):
    gone(copy)
    reports = [
        rksp("audit", *model, "--json", "-", *FAST)
        for model in ([copy, "--tokenizer", llama], [copy, "--tokenizer", llama / "tokenizer.json"], [llama])
    ]
    assert [code for code, *_ in reports] == [0, 0, 0]
    first, *others = (json.loads(out)["profile"]["layers"] for _, out, _ in reports)
    assert all(first == other for other in others)


def test_an_adapter_is_read_by_its_own_tokenizer_or_that_of_its_base(rksp, adapter, llama, words, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(adapter, own)
    words.save_pretrained(own)
    for folder, where in ((adapter, llama), (own, own)):
        code, out, err = rksp("audit", folder, "--json", "-", *FAST)
        assert code == 0, err
        assert json.loads(out)["profile"]["setup"]["tokenizer"].endswith(f" of {where}")
    cut(own)
    assert rksp("audit", own, *FAST)[0] == 2


@pytest.fixture
def esm(tmp_path):
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *PROTEINS, ".", "-", "<null_1>", "<mask>"]
    folder = tmp_path / "esm"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = EsmConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=1, mask_token_id=len(vocabulary) - 1, position_embedding_type="rotary",
    )  # fmt: skip
    torch.manual_seed(0)
    EsmForMaskedLM(config).save_pretrained(folder)
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_small_alphabet_is_read_where_the_text_is_in_it(rksp, tmp_path, esm):
    code, out, err = rksp("audit", esm, *FAST)
    assert code == 2 and "--text in the model's own alphabet" in err and " L A G V " in err
    rows = torch.randint(0, 20, (40, 200), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "proteins.txt").write_text("\n".join("".join(PROTEINS[i] for i in row) for row in rows))
    code, out, err = rksp("audit", esm, "--text", "proteins.txt", "--json", "-", *FAST)
    assert code == 0 and err == "" and "EsmTokenizer" in json.loads(out)["profile"]["setup"]["tokenizer"]


def save(folder, config, tokenizer):
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_characters_and_bytes_need_no_table(rksp, tmp_path):
    from transformers import ByT5Tokenizer, CanineConfig, CanineTokenizer, MambaConfig, T5Config

    canine = CanineConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=128,
        num_hash_buckets=128, local_transformer_stride=32,
    )  # fmt: skip
    t5 = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=384)
    mamba = MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=259)
    for name, config, tokenizer in (
        ("canine", canine, CanineTokenizer()),
        ("byt5", t5, ByT5Tokenizer()),
        ("mamba", mamba, ByT5Tokenizer(extra_ids=0)),
    ):
        folder = save(tmp_path / name, config, tokenizer)
        code, out, err = rksp("audit", folder, "--json", "-", *FAST)
        assert code == 0 and err == "", err
        assert type(tokenizer).__name__ in json.loads(out)["profile"]["setup"]["tokenizer"]


def test_a_tokenizer_of_another_model_is_refused_by_its_ids(rksp, tmp_path, words):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    code, _, err = rksp("audit", save(tmp_path / "small", config, words), *FAST)
    assert code == 2 and "has 100 embeddings" in err


def test_share_read_counts_unknown_and_lost_characters(words, llama):
    assert share_read(words, ENGLISH) == 1.0
    assert share_read(words, "лес и поле") < 0.2
    assert load_tokenizer(str(llama), ENGLISH, 0)[1].endswith(f" of {llama}")
    with pytest.raises(ModelLoadError, match="reads 0% of the text"):
        load_tokenizer(TokenizerPlace(str(llama)), "лес и поле " * 20, 0)


def test_no_source_is_a_model_that_comes_without_one():
    tokenizer, origin = load_tokenizer(None, ENGLISH, 300)
    assert len(tokenizer) <= 300 and origin.endswith("the model comes with no tokenizer")


def test_a_partly_read_text_is_said(llama):
    text = "plain words again " * 20 + "поле" * 25
    origin = load_tokenizer(str(llama), text, 0)[1]
    assert "; it reads 7" in origin and origin.endswith("% of the text")
