"""Everything before the first step: one call, the model as before, and a fresh LoRA after one virtual step."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp.forecast import label_share
from hf_rksp.profile.start import has_fresh_lora, has_lora, measure_start
from hf_rksp.risk.features import FEATURES, numbers_of
from hf_rksp.risk.plan import Plan


def model(lora):
    torch.manual_seed(0)
    made = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16)).eval()
    made.loss_type = "ForCausalLM"
    return get_peft_model(made, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)) if lora else made


BATCHES = [
    {"input_ids": ids, "labels": ids}
    for ids in torch.randint(0, 32, (4, 4, 16), generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("lora", [False, True])
def test_every_feature_is_measured_and_the_model_is_as_before(lora):
    made = model(lora)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    state = torch.get_rng_state()
    start = measure_start(made, None, BATCHES, pairs=2, curvature=not lora, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(p.grad is None for p in made.parameters())
    assert start.step.first_step == (1e-3 if lora else None) and start.step.share_without_gradient == 0
    assert (start.curvature is None) == lora and start.seconds > 0
    numbers = numbers_of(start.profile, start.signals, start.step) | {"lora": float(lora), "label_share": 1.0}
    assert has_lora(made) == lora
    assert [key for key, feature in FEATURES.items() if feature.value(numbers, Plan()) is None] == []
    assert numbers["depth"] == 2 and numbers["width"] == 16


def test_a_lora_that_has_learnt_is_not_fresh():
    made = model(True)
    assert has_fresh_lora(made)
    next(weight for name, weight in made.named_parameters() if "lora_B" in name).data.fill_(1e-3)
    assert not has_fresh_lora(made) and not has_fresh_lora(model(False))


def test_labels_are_counted_per_token_that_is_no_padding():
    ids, mask = torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long)
    mask[1, 4:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert label_share([batch], "causal") == pytest.approx((7 + 3) / 12)
    assert label_share([batch], "masked") == pytest.approx(1)
    assert label_share([batch | {"labels": torch.zeros(2)}], "classification") == pytest.approx(2 / 12)
    assert label_share([{"input_ids": ids}], "causal") is None
