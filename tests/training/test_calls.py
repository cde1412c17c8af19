"""How a loss calls the model: by place, with a mapping, and in one pass inside another."""

import inspect
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2LMHeadModel

from hf_rksp import RKSPTrainer
from tests.training.common import assert_same_weights, gpt2, logged, padded_rows, trained


class ByName(RKSPTrainer):
    """A loss of one's own: the labels stay with it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = self.call(model, inputs["input_ids"], inputs["attention_mask"]).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())

    def call(self, model, ids, mask):
        return model(input_ids=ids, attention_mask=mask)


class ByPlace(ByName):
    def call(self, model, ids, mask):
        names = list(inspect.signature(GPT2LMHeadModel.forward).parameters)  # self, input_ids, ...
        return model(ids, *[None] * (names.index("attention_mask") - 2), mask)


class FirstByPlace(ByName):
    def call(self, model, ids, mask):
        return model(ids, attention_mask=mask)


class ByPlaceInPeft(ByName):
    def call(self, model, ids, mask):
        return model(ids, mask)


class MappingAndFlag(ByName):
    def call(self, model, ids, mask):
        return model({"input_ids": ids, "attention_mask": mask}, flag=True)


class Features(nn.Module):
    """Takes the entries of a batch as one argument, as sentence-transformers does."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2()

    def forward(self, features, flag=False):
        return self.inner(**features)


def lora(task):
    return get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn"], task_type=task, fan_in_fan_out=True))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (ByName, gpt2),
        (ByPlace, gpt2),
        (FirstByPlace, gpt2),
        (MappingAndFlag, Features),
        (ByPlaceInPeft, lambda: lora("CAUSAL_LM")),
        (ByPlace, lambda: lora(None)),  # its forward takes *args and hands them on
    ],
)
def test_padding_is_known_however_the_model_is_called(kind, make, tmp_path):
    run = trained(
        tmp_path, make(), padded_rows(), kind=kind, spectrum_every=1, max_steps=2, remove_unused_columns=False
    )
    rows = [json.loads(line) for line in (tmp_path / "rksp_history.jsonl").open()]
    assert [row["tokens"] for row in rows if row["kind"] == "reading"] == [31, 28]
    assert logged(run, "kss/skipped") == logged(run, "spectrum/skipped") == [0, 0]


def test_a_pass_inside_a_pass_is_one_of_its_own(tmp_path):
    """A hook on the model runs it again, to look at its outputs without dropout's gradient or for a teacher."""

    def again(module, args, kwargs, output):
        if torch.is_grad_enabled():
            with torch.no_grad(), torch.random.fork_rng():
                module(*args, **kwargs)

    model = gpt2()
    model.register_forward_hook(again, with_kwargs=True)
    run, usual = (trained(tmp_path / name, m, spectrum_every=1) for name, m in (("a", model), ("b", gpt2())))
    assert_same_weights(run.model, usual.model)
    assert logged(run, "kss/skipped") == logged(run, "spectrum/skipped") == [0] * 4
    assert len(logged(run, "kss/loss")) == 4


def test_a_pass_that_raises_leaves_nothing_behind(tmp_path):
    class Tries(RKSPTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            with pytest.raises(IndexError):
                model(input_ids=inputs["input_ids"] + 1000, labels=inputs["labels"])
            assert not self.shaper.watch.tap._passes
            return super().compute_loss(model, inputs, *args, **kwargs)

    run = trained(tmp_path, gpt2(), kind=Tries, max_steps=2, spectrum_every=1)
    assert logged(run, "kss/skipped") == [0, 0] and len(logged(run, "kss/loss")) == 2
