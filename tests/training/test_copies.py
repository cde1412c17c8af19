"""Copies and pickles that are made of the model in the middle of a run: plain models, and the run does not change."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate
from transformers import TrainerCallback

from hf_rksp import RKSPTrainer
from hf_rksp.capture import TrainingTap, capture_transitions, find_stacks
from hf_rksp.training.aside import Aside
from hf_rksp.training.kss.accumulation import StepMoments
from hf_rksp.training.watch import Watch
from tests.training.common import assert_same_weights, gpt2, hooks, token_rows, trained

TABLES = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def hook_of_the_user(module, *rest):
    """Can be pickled, as hooks of others have to be."""


def ways(model):
    yield copy.deepcopy(model)
    yield pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


@pytest.fixture
def model():
    model = gpt2()
    for module in (model, model.transformer.h[1]):
        module.register_forward_hook(hook_of_the_user, with_kwargs=True, always_call=True)
        module.register_forward_pre_hook(hook_of_the_user, with_kwargs=True)
    return model


def opened(model, how):
    stacks = find_stacks(model)
    if how == "tap":
        return TrainingTap(model, stacks, lambda seen, batch: None)
    return (
        StepMoments(Watch(model, stacks=stacks), Aside("", "", ""))
        if how == "step"
        else capture_transitions(stacks, lambda *transition: None)
    )


@pytest.mark.parametrize("how", ["tap", "step", "capture"])
def test_copies_have_the_hooks_of_others_alone(model, how):
    before = hooks(model)
    with opened(model, how):
        assert hooks(model) > before
        for made in ways(model):
            assert hooks(made) == before
            assert {type(part._forward_hooks) for part in made.modules()} == {type(nn.Module()._forward_hooks)}
            assert hook_of_the_user in made.transformer.h[1]._forward_hooks.values()
            made(input_ids=token_rows(1).rows[0]["input_ids"][None])
        part = copy.deepcopy(model.transformer.h[0])
        assert hooks(part) == 0
    assert hooks(model) == before
    assert not any(vars(getattr(part, name)) for part in model.modules() for name in TABLES)


def test_hooks_of_others_come_and_go_meanwhile(model):
    """The tables of hooks are the ones that their handles know."""
    own = model.transformer.h[0].register_forward_hook(hook_of_the_user)
    with opened(model, "tap"):
        own.remove()
        added = model.transformer.h[2].register_forward_hook(hook_of_the_user)
        made = copy.deepcopy(model)
        assert len(made.transformer.h[0]._forward_hooks) == 0 and len(made.transformer.h[2]._forward_hooks) == 1
        # Both parts of the package at one module: copies stay free until the last is gone.
        with opened(model, "capture"):
            pass
        assert len(copy.deepcopy(model).transformer.h[2]._forward_hooks) == 1
    assert list(model.transformer.h[2]._forward_hooks) == [added.id] and not model.transformer.h[0]._forward_hooks


class Copies(TrainerCallback):
    """Copies the model at each event of each step."""

    def __init__(self):
        self.made = []

    def copy(self, args, state, control, model=None, **kwargs):
        self.made += list(ways(model))

    on_step_begin = on_pre_optimizer_step = on_step_end = on_substep_end = copy


class Teacher(RKSPTrainer):
    made = ()

    def compute_loss(self, model, inputs, *args, **kwargs):
        before = copy.deepcopy(self.model)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.made = [*self.made, before, copy.deepcopy(self.model)]
        return loss


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_a_run_with_copies_is_the_run_without(schedule, tmp_path):
    settings = {"kss_schedule": schedule, "kss_every": 1, "spectrum_every": 1, "max_steps": 2}
    usual = trained(tmp_path / "usual", gpt2(), gradient_accumulation_steps=2, **settings)
    copies = Copies()
    run = trained(
        tmp_path / "run", gpt2(), None, Teacher, gradient_accumulation_steps=2, callbacks=[copies], **settings
    )
    assert_same_weights(run.model, usual.model)
    assert len(copies.made) == 24 and len(run.made) == 8
    assert {hooks(made) for made in (*copies.made, *run.made)} == {0}


class Holds:
    """A collator that holds the model, as DataCollatorForSeq2Seq does."""

    def __init__(self, model):
        self.model = model

    def __call__(self, rows):
        assert isinstance(self.model, nn.Module)
        return default_collate(rows)


def test_spawned_workers_take_the_model_along(tmp_path):
    model, method = gpt2(), torch.multiprocessing.get_start_method(allow_none=True)
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        run = trained(tmp_path, model, data_collator=Holds(model), max_steps=1, dataloader_num_workers=1)
    finally:
        torch.multiprocessing.set_start_method(method, force=True)
    assert run.state.global_step == 1
