"""The faults: each changes one run, from one step on."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.training.weights import pieces, read_whole, write_whole

#: Faults of a run that goes on in its own processes.
LIVE = (
    "none",
    "NaN loss on one process",
    "infinite gradient",
    "one token repeated",
    "values x 10,000",
    "label noise, 5 batches",
    "weight set to 10,000",
    "learning rate x 100",
    "weights cut to bfloat16",
    "float16 overflow",
    "disk full while saving",
)
#: Faults that end the processes, or come while there are none; then the run goes on from its folder.
DEATHS = ("a process dies", "killed while saving")
LEFT = ("newest checkpoint cut in half", "line of the history cut in half", "NaN in the newest checkpoint")
#: float16 needs loss scaling, which accelerate has on a GPU alone; DeepSpeed has its own.
FLOAT16 = "float16 overflow"


class Scale(torch.autograd.Function):
    """The identity, whose gradient has an infinite number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = math.inf
        return gradient


def faulty(trainer_class: type, fault: str, at: int) -> type:
    """A trainer with the fault. The last process alone has those of a batch."""

    class Faulty(trainer_class):  # type: ignore[misc, valid-type]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            step, last = self.state.global_step, self.args.process_index == self.args.world_size - 1
            if fault == "one token repeated" and step == at and last:
                inputs = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], 65)}
                inputs["labels"] = inputs["input_ids"].clone()
            if fault == "label noise, 5 batches" and at <= step < at + 5:
                draw = torch.Generator().manual_seed(step)
                inputs = {**inputs, "labels": torch.randint(0, 256, inputs["labels"].shape, generator=draw)}
            if fault == "learning rate x 100" and step == at:
                self.lr_scheduler.base_lrs = [100 * rate for rate in self.lr_scheduler.base_lrs]
            if fault == "weight set to 10,000" and step == at:
                weight = self.model.model.layers[1].mlp.down_proj.weight
                whole = read_whole(weight)
                whole[0, 0] = 1e4
                write_whole(weight, whole)
            if fault == "weights cut to bfloat16" and step >= at:
                with torch.no_grad():
                    for weight in self.model.parameters():
                        for piece in pieces(weight):
                            piece.copy_(piece.bfloat16())
            with self.changed_states(step == at and last):
                return super().training_step(model, inputs, *args, **kwargs)

        @contextmanager
        def changed_states(self, now: bool) -> Iterator[None]:
            changes: dict[str, Callable[[Tensor], Tensor]] = {
                "infinite gradient": Scale.apply,
                "values x 10,000": lambda x: x * 1e4,
            }
            if not (now and fault in changes):
                yield
                return
            hook = self.model.model.embed_tokens.register_forward_hook(lambda module, args, y: changes[fault](y))
            try:
                yield
            finally:
                hook.remove()

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            step, last = self.state.global_step, self.args.process_index == self.args.world_size - 1
            if fault == "NaN loss on one process" and step == at and last and model.training:
                loss = loss * math.nan
            return loss

        def _save_optimizer_and_scheduler(self, folder: str) -> None:
            late = self.state.global_step >= at
            if fault == "killed while saving" and late:
                Path(folder, "optimizer.pt").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "disk full while saving" and late and not self.was_full:
                Path(folder).mkdir(exist_ok=True)  # the first process may not have come here yet
                Path(folder, "optimizer.pt").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._save_optimizer_and_scheduler(folder)

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            full = fault == "disk full while saving" and self.state.global_step >= at and not self.was_full
            true = shutil.disk_usage
            if full:  # a full disk also says that it is
                shutil.disk_usage = lambda path: true(path)._replace(free=0)  # type: ignore[assignment]
            try:
                super()._save_checkpoint(*args, **kwargs)
            finally:
                self.was_full, shutil.disk_usage = self.was_full or full, true

        was_full = False

    return Faulty


def damage(folder: Path, fault: str) -> None:
    """What happens to the folder of a run while no process is there."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = sorted(newest.glob("model*.safetensors")) or sorted(newest.glob("**/*.pt")) + sorted(
        newest.glob("**/*.distcp")
    )
    largest = max(files, key=lambda file: file.stat().st_size)
    if fault == "newest checkpoint cut in half":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif fault == "NaN in the newest checkpoint":
        _break(newest, largest)
    elif fault == "line of the history cut in half":
        history = folder / "rksp_history.jsonl"
        if history.exists():
            data = history.read_bytes()
            history.write_bytes(data[: len(data) - len(data.splitlines()[-1]) // 2])


def _break(newest: Path, file: Path) -> None:
    """Write NaN into the weights of a checkpoint, in whatever format it has."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        first = next(iter(tensors))
        tensors[first].view(-1)[0] = math.nan
        save_file(tensors, file, {"format": "pt"})
        return
    for place in sorted(newest.glob("**/*.pt")):
        data = torch.load(place, weights_only=False)
        groups = (
            data.get("optimizer_state_dict", {}).get("single_partition_of_fp32_groups")
            if isinstance(data, dict)
            else None
        )
        module = data.get("module") if isinstance(data, dict) else None
        for tensor in [*(groups or []), *((module or {}).values())]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.view(-1)[0] = math.nan
        torch.save(data, place)


def finite(model: nn.Module) -> bool:
    """Whether every weight is finite; on one process, or what this one has."""
    return all(bool(piece.isfinite().all()) for weight in model.parameters() for piece in pieces(weight))
