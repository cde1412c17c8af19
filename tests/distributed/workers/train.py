"""Trains some of the cases on the processes that it is started with; every rank saves what it saw."""

# ruff: noqa: E402 - FSDP on a processor has to be arranged before anything is imported.
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("mode", choices=["one", "ddp", "fsdp2", "zero"])
parser.add_argument("processes", type=int)
parser.add_argument("folder", type=Path)
parser.add_argument("cases", nargs="+", help="a case, or stage:case with ZeRO")
options = parser.parse_args()

if options.mode == "fsdp2":
    # accelerate shards on accelerators alone, and on a processor falls back to DDP without a word.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate import DistributedType, PartialState

    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

if options.mode == "zero":
    # On a processor with float16 DeepSpeed refuses a model in float64, and on others it does not.
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: False

import torch
from cases import CASES, LAYERS, LONG, SEQUENCES, TOKENS, VOCABULARY, WIDTH, Case
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback

from hf_rksp.config import KSSConfig, MonitorConfig
from hf_rksp.history.read import read_history
from hf_rksp.training import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.training.kss.balanced import Balanced
from hf_rksp.training.kss.paper import Paper
from hf_rksp.training.kss.schedule import Measured

IGNORED = -100


def samples(case: Case) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = LONG if case.data in ("long", "copies") else TOKENS
    made = []
    for _ in range(1 if case.data == "copies" else SEQUENCES * case.steps):
        ids = torch.randint(1, VOCABULARY, (tokens,), generator=generator)
        labels = ids.clone()
        if case.data == "unequal":
            length, prompt = (int(torch.randint(*ends, (), generator=generator)) for ends in ((9, TOKENS), (0, 8)))
            ids, labels = ids[:length], labels[:length]
            labels[:prompt] = IGNORED
        made.append({"input_ids": ids, "labels": labels})
    return made * SEQUENCES * case.steps if case.data == "copies" else made


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pads to the longest of this process' own rows, as collators do."""

    def pad(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
        "labels": pad([row["labels"] for row in rows], IGNORED),
    }


def probe() -> list[dict[str, torch.Tensor]]:
    """Three batches, so that one of two processes has none in the last round."""
    rows = samples(Case())
    return [collate(rows[start : start + SEQUENCES]) for start in range(0, 3 * SEQUENCES, SEQUENCES)]


def double_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """Cross entropy in the dtype of the model; the one of transformers rounds to float32."""
    return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


def double_mean(logits: torch.Tensor, labels: torch.Tensor, **ignored: Any) -> torch.Tensor:
    """The same as the model's own loss, where Trainer gives it no number of labels."""
    return cross_entropy(logits, labels, reduction="mean")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


class Recorder(RKSPTrainer):
    """Notes which samples this process was given, one entry a microbatch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: list[dict[str, Any]] = []
        self.nan_at = -1

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows, labels = inputs["input_ids"], inputs["labels"]
        texts = [row[row > 0].tolist() for row in rows]
        self.given.append({"texts": texts, "width": rows.shape[1], "labels": int((labels != IGNORED).sum())})
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        last = self.args.process_index == options.processes - 1
        return loss * float("nan") if self.state.global_step == self.nan_at and last and model.training else loss


class KeepWeights(TrainerCallback):
    """The weights at the beginning and at the end of each step, and when the gradients are there."""

    def __init__(self, trainer: Recorder) -> None:
        self.trainer, self.begun, self.ready, self.ended = trainer, [], [], []
        guard = trainer._the_guard
        ready = guard.gradients_ready

        def noted(*args: Any) -> None:
            self.ready.append(weights(trainer))
            ready(*args)

        guard.gradients_ready = noted  # type: ignore[method-assign]

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun.append(weights(self.trainer))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended.append(weights(self.trainer))

    def kept(self) -> dict[str, list[torch.Tensor]]:
        return {"begun": self.begun, "ready": self.ready, "ended": self.ended}


class StopHalfway(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= state.max_steps // 2


def build(case: Case, stage: int, folder: Path) -> Recorder:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LONG,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        # Wide enough that eigenvalues lie above the threshold and KSS acts: radius 1.5 at the start. Much wider, or many
        # steps more, and operators come near a defective one, where the gradient of an eigenvalue blows up rounding.
        initializer_range=0.15,
        # Draws of dropout differ from rank to rank.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).to(torch.float64 if case.double else torch.float32)
    more: dict[str, Any] = {"use_cpu": True}
    if options.mode == "fsdp2":
        more = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]}}
    if stage:
        more["deepspeed"] = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,  # SGD
            # Parameters below the threshold are not partitioned, and these are tiny.
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }
    arguments = RKSPTrainingArguments(
        output_dir=str(folder),
        max_steps=case.steps,
        per_device_train_batch_size=case.batch // options.processes,
        gradient_accumulation_steps=case.accumulate,
        learning_rate=0.05,
        max_grad_norm=1e3,  # the norm is measured, and never clipped
        logging_steps=1,
        save_strategy="steps" if case.resume or case.guard == "rollback" else "no",
        save_steps=case.steps // 2 if case.resume else 2,
        guard=case.guard,
        guard_healthy=1,
        disable_tqdm=True,
        report_to="none",
        alignment_every=2 if case.monitor else 0,
        attention_every=2 if case.monitor else 0,
        curvature_every=int(case.curvature),
        curvature_products=8,
        depth_warmup="paper" if case.depth else "off",
        depth_warmup_begin=case.steps // 2,
        depth_warmup_ramp=case.ramp,
        dataloader_pin_memory=False,
        **more,
    )
    assert arguments.world_size == options.processes, f"{arguments.world_size} processes instead of {options.processes}"
    trainer = Recorder(
        model,
        arguments,
        train_dataset=samples(case),
        data_collator=collate,
        kss=KSSConfig(**case.kss) if case.kss else False,
        monitor=MonitorConfig(**case.monitor) if case.monitor else False,
        probe=probe() if (case.monitor or {}).get("data") == "probe" else None,
        compute_loss_func=double_loss if case.double and not case.mean else None,
        # Adam divides by the size of the gradient: it would hide a wrong factor, and blow up the rounding of gradients that
        # are zero in theory (the bias of the keys). In SGD weights follow gradients; momentum is a state to resume.
        # Only the curvature needs Adam, and few steps of it.
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 1e-3})
        if case.curvature
        else (torch.optim.SGD, {"lr": arguments.learning_rate, "momentum": 0.5}),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.nan_at = case.nan_at
    if case.mean:
        trainer.model_accepts_loss_kwargs = False
        if case.double:
            model.loss_function = double_mean
    return trainer


def weights(trainer: Recorder) -> torch.Tensor:
    """All weights in one vector, whole on every rank."""
    parts = []
    for parameter in trainer.model.parameters():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                parts.append(parameter.detach().clone())
        else:
            parts.append(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)
    return torch.cat([part.detach().double().flatten() for part in parts])


def kind(trainer: Recorder) -> str:
    """What the training really ran as, by the wrapped model and not by the settings."""
    wrapped, parameter = trainer.model_wrapped, next(trainer.model.parameters())
    if hasattr(wrapped, "zero_optimization_stage"):
        stage = wrapped.zero_optimization_stage()
        assert (stage == 3) == (hasattr(parameter, "ds_id") and parameter.numel() == 0), "what is partitioned?"
        return f"zero{stage}"
    if isinstance(parameter, DTensor):
        assert parameter.to_local().numel() * options.processes == parameter.numel(), "FSDP2 has sharded nothing"
        return "fsdp2"
    return "ddp" if isinstance(wrapped, torch.nn.parallel.DistributedDataParallel) else "one"


def train(case: Case, stage: int, folder: Path) -> dict[str, Any]:
    drawn: list[list[int]] = []
    acts = {schedule: schedule.act for schedule in (Balanced, Paper)}

    def noting(act: Any) -> Any:
        def noted(schedule: Any, measured: Measured) -> Any:
            drawn.append([layer.block.index for layer in measured.layers])
            return act(schedule, measured)

        return noted

    for schedule, act in acts.items():
        schedule.act = noting(act)
    try:
        trainer = build(case, stage, folder)
        keeps = KeepWeights(trainer) if case.guard != "off" else None
        if keeps is not None:
            trainer.add_callback(keeps)
        if case.resume:
            trainer.add_callback(StopHalfway())
            trainer.train()
            trainer = build(case, stage, folder)
            trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{case.steps // 2}"))
        else:
            trainer.train()
    finally:
        for schedule, act in acts.items():
            schedule.act = act
    assert trainer.state.global_step == case.steps
    history = folder / "rksp_history.jsonl"
    distributed = torch.distributed.is_initialized()
    return {
        "world_size": torch.distributed.get_world_size() if distributed else 1,
        "kind": kind(trainer),
        "logs": [row for row in trainer.state.log_history if "loss" in row],
        "weights": weights(trainer),
        "given": trainer.given,
        "drawn": drawn,
        "kept": keeps.kept() if keeps is not None else {},
        "events": [dict(row) for row in read_history(history).events] if history.exists() else [],
        "readings": [dict(row) for row in read_history(history).readings] if history.exists() else [],
    }


results = {}
for name in options.cases:
    stage, _, case = name.rpartition(":")
    folder = options.folder / name.replace(" ", "_").replace(":", "_")
    results[name] = train(CASES[case], int(stage or 0), folder)
torch.save(results, options.folder / f"{os.environ.get('RANK', 0)}.pt")
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # some builds abort at teardown, after the work is done
