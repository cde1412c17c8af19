"""KSS is right in every kind of model: the gradients of a training step are the oracle's, in float64."""

from dataclasses import dataclass

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_rksp import RKSPArguments, RKSPTrainer, RKSPTrainerMixin
from hf_rksp.capture import TrainingTap, find_stacks
from hf_rksp.config import KSSConfig
from hf_rksp.training import SpectralShaper
from tests.capture.models import CASES
from tests.training.common import ALWAYS, Chain, Gradients, Rows, token_rows, trained
from tests.training.oracle import Draws, balanced_surrogate, gradients_of, paper_term, stack_states


class OurSeq2SeqTrainer(RKSPTrainerMixin, Seq2SeqTrainer):
    pass


@dataclass
class OurSeq2SeqArguments(RKSPArguments, Seq2SeqTrainingArguments):
    pass


def rows_of(case):
    """Rows with labels of the case's kind; padding has no label."""
    batch = case.batch(sequences=6)
    if case.inputs == "image":
        batch["labels"] = torch.arange(6) % 2
    else:
        prefix = "decoder_" if case.inputs == "text>text" else ""
        batch["labels"] = torch.where(batch[f"{prefix}attention_mask"].bool(), batch[f"{prefix}input_ids"], -100)
    return Rows({name: value[i] for name, value in batch.items()} for i in range(6))


def masks_of(stacks, batch, seen):
    """What counts in each stack; every position of an image."""
    masks = [batch.get("decoder_attention_mask" if stack.side == "decoder" else "attention_mask") for stack in stacks]
    return [
        torch.ones(states[0].shape[:-1]) if mask is None else mask for mask, states in zip(masks, seen, strict=True)
    ]


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "mamba", "falcon", "bert", "vit", "t5", "bart"])
def test_gradients_are_the_oracles(name, schedule, tmp_path, monkeypatch):
    case = CASES[name]
    changes = {"output_router_logits": True} if name == "mixtral" else {}
    # No dropout in either, so that the run can be computed again.
    changes |= {"dropout_rate": 0.0} if name == "t5" else {}
    if name in ("bart", "bert", "vit"):
        names = ("dropout", "attention_dropout", "activation_dropout") if name == "bart" else ()
        changes |= dict.fromkeys(names or ("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model, same = (case.build(head=True, dtype=torch.float64, **changes).train() for _ in range(2))
    several = case.inputs == "text>text"
    kinds = (OurSeq2SeqTrainer, OurSeq2SeqArguments) if several else ()
    draws, kept = Draws(monkeypatch, model), Gradients()
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "spectrum": False, "per_device_train_batch_size": 6}
    paper = {"kss_schedule": schedule, "kss_layer_fraction": 1.0}
    run = trained(tmp_path, model, rows_of(case), *kinds, callbacks=[kept], **settings, **paper)

    stacks = find_stacks(same)
    assert len(draws.directions) == len(stacks) == len(case.stacks)
    (batch,) = draws.batches
    if name == "vit":  # pixels are read in the dtype of the model
        batch["pixel_values"] = batch["pixel_values"].double()
    seen, output = stack_states(same, [[block.module for block in stack.blocks] for stack in stacks], batch)
    masks, count = masks_of(stacks, batch, seen), sum(len(stack.blocks) for stack in stacks)
    task = total = output.loss
    # The decoder comes first in the backward pass, and what KSS adds there flows on into the encoder's reference.
    for stack, states, mask, directions in reversed(list(zip(stacks, seen, masks, draws.directions, strict=True))):
        given = (mask, directions, range(len(stack.blocks)), run.kss)
        if schedule == "paper":
            total = total + paper_term(states, *given) * len(stack.blocks) / count
        else:
            total = total + balanced_surrogate(states, total, *given)
    want, plain = gradients_of(total, same), gradients_of(task, same)
    for parameter, gradient in want.items():
        torch.testing.assert_close(
            kept.steps[0][parameter],
            gradient,
            rtol=1e-5,
            atol=1e-8,
            msg=lambda text, parameter=parameter: f"{parameter}: {text}",
        )
    for stack in stacks:  # it acts in every stack
        inside = [p for p in want if p.startswith(stack.blocks[0].path) and plain[p].norm() > 1e-6]
        assert max(float((want[p] - plain[p]).norm() / plain[p].norm()) for p in inside) > 1e-3


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_blocks_that_change_their_input_in_place(schedule):
    """The tap shows the states that were, and KSS does what it does in the model that makes new tensors."""
    ids = torch.stack([row["input_ids"] for row in token_rows(4).rows])
    gradients, states = [], []
    for in_place in (False, True):
        model = Chain(in_place).train()
        seen = []
        tap = TrainingTap(
            model,
            find_stacks(model, "layers"),
            lambda now, _, seen=seen: seen.extend((t.x.clone(), t.y.clone()) for t in now),
        )
        with tap:
            model(ids, ids)
            seen.clear()  # the first pass finds out which blocks do it
            model(ids, ids)
        states.append(seen)
        with SpectralShaper(model, KSSConfig(schedule, rank=8, every=1, upper_threshold=ALWAYS), "layers") as kss:
            model(ids, ids)
            kss.term()
            kss.step()
            (model(ids, ids)["loss"] + kss.term()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert len(states[0]) == len(states[1]) == 4
    for (x, y), (in_x, in_y) in zip(*states, strict=True):
        assert torch.equal(x, in_x)
        assert torch.equal(y, in_y)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-4, atol=1e-6)


def test_kss_finds_the_named_blocks_of_an_own_model(tmp_path):
    run = trained(tmp_path, Chain(), token_rows(), RKSPTrainer, residual_blocks="layers")
    assert [row["kss/dropped"] for row in run.state.log_history if "kss/dropped" in row] == [0.0] * 4
