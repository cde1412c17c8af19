"""The processes of a job: one run for each fault, one after the other; the first process writes what became of each."""

# ruff: noqa: E402 - FSDP on a processor has to be arranged before anything is imported.
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
LAUNCHER, TOOL = task["launcher"], task["tool"]
if LAUNCHER == "fsdp2":
    # accelerate shards on accelerators alone, and on a processor falls back to DDP without a word.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate import DistributedType, PartialState

    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

import torch
from torch.utils.data import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_rksp import RKSPTrainer, RKSPTrainingArguments
from hf_rksp.doctor.health import to_go_on_from
from hf_rksp.errors import RunStoppedError
from hf_rksp.history.read import read_history
from scripts.reproduce.data import passages, wikitext
from scripts.reproduce.guard_faults.faults import FLOAT16, faulty, finite

torch.set_num_threads(1)
_HELD_OUT = 64


class Passages(Dataset):
    """Passages of the text, each at a place of its own that its number decides."""

    def __init__(self, settings: dict[str, Any], seed: int) -> None:
        draw = torch.Generator().manual_seed(1_000 + seed)
        self.rows = passages(wikitext("test"), draw, settings["sequences"] * settings["steps"] * 2, settings["length"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[place], "labels": self.rows[place]}


class Dies(TrainerCallback):
    """The last process ends without a word at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at and args.process_index == args.world_size - 1:
            os._exit(1)


def build(settings: dict[str, Any], seed: int, fault: str, folder: Path) -> Trainer:
    """The trainer of one run."""
    set_seed(seed)
    width = settings["width"]
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        max_position_embeddings=settings["length"],
    )
    model = LlamaForCausalLM(config)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    more: dict[str, Any] = {"use_cpu": True}
    if LAUNCHER == "fsdp2":
        more = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
    if LAUNCHER == "zero2":
        more["deepspeed"] = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 2},
        }
        if fault == FLOAT16:
            more["deepspeed"]["fp16"] = {"enabled": True, "initial_scale_power": 30, "hysteresis": 1}
            more["fp16"] = True
    guarded = TOOL == "guard"
    if guarded:
        more |= {"guard": settings["guard"], "kss": False, "spectrum": False, "run_report": False}
    kind = RKSPTrainingArguments if guarded else TrainingArguments
    arguments = kind(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["sequences"] // processes,
        learning_rate=settings["lr"],
        lr_scheduler_type="linear",
        warmup_steps=settings["warmup"],
        save_steps=settings["save_every"],
        save_total_limit=settings["keep"],
        logging_steps=10,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        dataloader_pin_memory=False,
        **more,
    )
    at = settings["fault_at"] + seed % 10
    trainer = faulty(RKSPTrainer if guarded else Trainer, fault, at)(
        model, arguments, train_dataset=Passages(settings, seed), **_tool(model, settings, folder)
    )
    trainer.remove_callback(PrinterCallback)
    if fault == "a process dies":
        trainer.add_callback(Dies(at))
    return trainer


def _tool(model: torch.nn.Module, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What another tool adds to a plain Trainer, as its documentation says."""
    if TOOL == "arc":
        from arc.api.integrations import HuggingFaceCallback

        return {"callbacks": [HuggingFaceCallback(verbose=False)]}
    adam = {"lr": settings["lr"], "weight_decay": 0.0}
    if TOOL == "stabilityguard":
        from stabilityguard import GuardedOptimizer

        class Guarded(GuardedOptimizer, torch.optim.Optimizer):  # accelerate takes optimizers of torch alone
            pass

        base = torch.optim.AdamW(model.parameters(), **adam)
        return {
            "optimizers": (Guarded(base, model, nan_action="skip", verbose=False, log_dir=str(folder / "logs")), None)
        }
    if TOOL == "olmo":
        from olmo_core.optim import SkipStepAdamW

        optimizer = SkipStepAdamW(model.parameters(), **adam)
        return {"optimizers": (optimizer, None), "callbacks": [Latest(optimizer)]}
    return {}


class Latest(TrainerCallback):
    """Tells OLMo-core's optimizer loss and gradient norm before its step, as its trainer does."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.losses = optimizer, []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.register_forward_hook(
            lambda module, args, output: self.losses.append(output.loss.detach()) if module.training else None
        )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.optimizer.latest_loss = self.losses[-1]
        self.optimizer.latest_grad_norm = torch.nn.utils.get_total_norm(
            [p.grad for p in model.parameters() if p.grad is not None]
        )


def outcome(settings: dict[str, Any], seed: int, fault: str, folder: Path, resume: bool) -> dict[str, Any]:
    """Train one run to its end; what became of it."""
    raised, trainer = None, None
    try:
        trainer = build(settings, seed, "none" if resume else fault, folder)
        trainer.train(resume_from_checkpoint=True if resume else None)
    except RunStoppedError:
        raised = "stopped"
    except Exception as error:
        raised = f"{type(error).__name__}: {str(error)[:200]}"
    loss = held_out(trainer, settings) if trainer is not None and trainer.model is not None else None
    events = read_history(folder).events if (folder / "rksp_history.jsonl").exists() else []
    rows = trainer.state.log_history if trainer is not None else []
    return {
        "raised": raised,
        "held_out": loss,
        "finite": trainer is not None and finite(trainer.model),
        "steps": trainer.state.global_step if trainer is not None else 0,
        "events": [[row["what"], row["step"]] for row in events if row["what"] not in ("alarm", "started", "left_out")],
        "alarms": sum(row["what"] == "alarm" for row in events),
        "skipped": _skipped(trainer),
        "scaled_away": max((int(row.get("guard/scaled_away", 0)) for row in rows), default=0),
        # Is there anything left to go on from?
        "healthy": to_go_on_from(folder).folder is not None,
    }


def _skipped(trainer: Any) -> int | None:
    """Steps that another tool says it has left out."""
    if TOOL == "arc" and trainer is not None:
        return next(
            int(one.skipped_steps) for one in trainer.callback_handler.callbacks if hasattr(one, "skipped_steps")
        )
    return None


@torch.no_grad()
def held_out(trainer: Any, settings: dict[str, Any]) -> float | None:
    """Loss on held-out text; ``None`` if it is not finite."""
    model = trainer.model_wrapped if LAUNCHER == "fsdp2" else trainer.model
    ids = passages(wikitext("validation"), torch.Generator().manual_seed(1), _HELD_OUT, settings["length"])
    model.eval()
    try:
        loss = float(model(input_ids=ids, labels=ids).loss)
    except Exception:
        return None
    return round(loss, 4) if loss == loss and abs(loss) < 1e30 else None


found = {}
for one in task["runs"]:
    place = Path(one["folder"])
    found[one["name"]] = outcome(task["settings"], one["seed"], one["fault"], place, one["resume"])
    if os.environ.get("RANK", "0") == "0":
        Path(task["answer"]).write_text(json.dumps(found))
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # some builds abort at teardown, after the work is done
