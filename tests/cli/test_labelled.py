"""Labelled texts: classes, padding, and what is refused."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from hf_rksp.errors import InputError
from hf_rksp.inputs.labelled import cut_labelled, read_labelled
from hf_rksp.inputs.text import TextSource

TEXTS = [f"row {number} says {'yes, and more than that' if number % 2 else 'no'}" for number in range(40)]


def table(folder, labels, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps({"text": t, "kind": k}) + "\n" for t, k in zip(TEXTS, labels, strict=True)))
    return TextSource(str(path))


def test_labels_are_numbered_in_their_order(tmp_path):
    named = read_labelled(table(tmp_path, ["yes", "no"] * 20), "kind")
    assert named.classes == 2 and named.labels[:2] == (1, 0) and named.texts == tuple(TEXTS)
    stars = read_labelled(table(tmp_path, [1, 5, 2, 2] * 10), "kind")
    assert stars.classes == 3 and stars.labels[:4] == (0, 2, 1, 1)
    switched = read_labelled(table(tmp_path, [True, False] * 20), "kind")
    assert switched.classes == 2 and switched.labels[:2] == (1, 0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0] * 40, r"1 class\(es\) in 40 rows"), ([0, -1] * 20, "-1 is no class"), ([0.5, 1.5] * 20, "0.5 is no class"),
     ([0, None] * 20, "is no class")],
)  # fmt: skip
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        read_labelled(table(tmp_path, labels), "kind")


def test_what_has_no_labels_is_refused(tmp_path):
    with pytest.raises(InputError, match="built-in text has no labels"):
        read_labelled(TextSource(), "kind")
    with pytest.raises(InputError, match="column='mood'"):
        read_labelled(table(tmp_path, [0, 1] * 20), "mood")
    with pytest.raises(InputError, match="is the column of the texts"):
        read_labelled(table(tmp_path, [0, 1] * 20), "text")
    (tmp_path / "plain.txt").write_text("some text")
    with pytest.raises(InputError, match="has no columns"):
        read_labelled(TextSource(str(tmp_path / "plain.txt")), "kind")


class Tokenizer:
    pad_token, eos_token, unk_token = None, "</s>", None

    def __call__(self, texts, truncation, max_length, padding):
        rows = [list(map(ord, text))[:max_length] for text in texts]
        longest = max(map(len, rows))
        return {
            "input_ids": [row + [0] * (longest - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
        }


def test_texts_keep_their_labels_and_are_padded(tmp_path):
    source = table(tmp_path, ["yes", "no"] * 20)
    cut = cut_labelled(read_labelled(source, "kind"), Tokenizer(), 30, 16, 0, source)
    assert cut.ids.shape == cut.mask.shape == (16, 30) and cut.info["tokens"] == int(cut.mask.sum()) < 480
    for ids, mask, label in zip(cut.ids, cut.mask, cut.labels, strict=True):
        text = "".join(map(chr, ids[: int(mask.sum())].tolist()))
        assert ("yes" in text) == (int(label) == 0)
    first = cut.batches(4)[0]
    assert set(first) == {"input_ids", "attention_mask", "labels"} and torch.equal(first["labels"], cut.labels[:4])
    with pytest.raises(InputError, match="has 40 rows, and 64 are measured"):
        cut_labelled(read_labelled(source, "kind"), Tokenizer(), 30, 64, 0, source)


def test_a_classifier_is_answered_for(tmp_path, llama, rksp):
    code, _, err = rksp("risk", llama, "--lr", "1e-3", "--text", table(tmp_path, [0, 1] * 20).name, "--labels", "kind")
    assert code == 2 and "no token to pad with" in err
    folder = shutil.copytree(llama, tmp_path / "padded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(folder)
    source = table(tmp_path, ["yes", "no"] * 20)
    data = ["--text", source.name, "--labels", "kind", "--seq-len", "16", "--quiet", "--json", "-"]
    code, out, err = rksp("risk", folder, "--lr", "1e-3", "--steps", "150", *data)
    assert code == 0, err
    found = json.loads(out)
    assert found["plan"]["objective"] == "classification" and 0 < found["p_lost"] < 1
    tokens = found["plan"]["tokens"] / 8  # of a text; the plan has eight in a batch
    assert 4 < tokens <= 16 and found["features"]["label_share"] * tokens == pytest.approx(1, rel=0.05)
    assert any("drawn at random" in note for note in found["notes"])
    config = AutoConfig.from_pretrained(folder)
    config.num_labels, config.problem_type = 5, "multi_label_classification"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    code, out, err = rksp("risk", folder, "--lr", "1e-3", "--steps", "150", *data)
    assert code == 0, err
    assert any("score.weight" in note for note in json.loads(out)["notes"])  # five classes were, and two are
    code, _, err = rksp("risk", folder, "--lr", "1e-3", "--objective", "causal", *data)
    assert code == 2 and "labels='kind'" in err
