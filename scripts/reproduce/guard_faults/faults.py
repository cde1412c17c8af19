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
    """What happens to the folder of a run while no process is there: to the files that a run goes on from."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if fault == "newest checkpoint cut in half":
        pieces_of = [*newest.glob("*/*.distcp"), *newest.glob("global_step*/*.pt")]
        largest = max(pieces_of or newest.glob("model*.safetensors"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif fault == "NaN in the newest checkpoint":
        _break(newest)
    elif fault == "line of the history cut in half":
        history = folder / "rksp_history.jsonl"
        if history.exists():
            data = history.read_bytes()
            history.write_bytes(data[: len(data) - len(data.splitlines()[-1]) // 2])


@torch.no_grad()
def _break(newest: Path) -> None:
    """Write NaN into the weights of a checkpoint, in whatever format the run goes on from."""
    from safetensors.torch import load_file, save_file

    for model in newest.glob("model*.safetensors"):
        tensors = load_file(model)
        next(iter(tensors.values())).view(-1)[0] = math.nan
        save_file(tensors, model, {"format": "pt"})
    for piece in newest.glob("global_step*/*.pt"):  # DeepSpeed
        data = torch.load(piece, weights_only=False)
        for tensor in _tensors(data):
            tensor.view(-1)[0] = math.nan
        torch.save(data, piece)
    for shards in newest.glob("pytorch_model_fsdp_*"):  # FSDP
        from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

        whole = newest / "whole.pt"
        dcp_to_torch_save(shards, whole)
        data = torch.load(whole, weights_only=False)
        next(iter(_tensors(data))).view(-1)[0] = math.nan
        torch.save(data, whole)
        shutil.rmtree(shards)
        torch_save_to_dcp(whole, shards)
        whole.unlink()


def _tensors(data: Any) -> Iterator[Tensor]:
    """Weights in nested objects: of the model and in single precision, and no moments."""
    if isinstance(data, Tensor):
        if data.is_floating_point() and data.numel() > 1:
            yield data
    elif isinstance(data, dict):
        for name, part in data.items():
            if name not in ("base_optimizer_state", "state", "lr_scheduler"):
                yield from _tensors(part)
    elif isinstance(data, (list, tuple)):
        for part in data:
            yield from _tensors(part)


def finite(model: nn.Module) -> bool:
    """Whether every weight is finite; on one process, or what this one has."""
    return all(bool(piece.isfinite().all()) for weight in model.parameters() for piece in pieces(weight))
