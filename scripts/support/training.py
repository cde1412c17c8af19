"""Five steps of training with KSS, beside plain Trainer on the same data and seed."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import hf_rksp
from hf_rksp import RkspError, RKSPTrainerMixin
from support import models
from support.inputs import DECODER, Feed

STEPS = 5


@dataclass
class Compared:
    """What came out: ``fault``, ``refused`` and ``untrained`` are sentences, ``seen`` is for the row."""

    fault: str | None = None
    refused: str | None = None
    untrained: str | None = None
    notes: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What hf_rksp says while this is open, by its logger and by warnings."""
    words: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hf_rksp")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield words
    finally:
        logger.removeHandler(handler)
        words += [str(item.message) for item in caught if Path(item.filename).is_relative_to(_PACKAGE)]


_PACKAGE = Path(hf_rksp.__file__).parent


class NoTraining(Exception):
    """Plain Trainer cannot train this model on this input."""


class _LossTrainer(Trainer):
    """The model's own loss where it gives one, else the mean square of all that it returns."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.get("loss") if hasattr(outputs, "get") else None
        if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
            parts = [
                value.float().square().mean()
                for value in _tensors(outputs)
                if value.is_floating_point() and value.requires_grad
            ]
            if not parts:
                raise NoTraining("no output carries a gradient")
            loss = torch.stack(parts).sum()
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """None: Trainer counts them by the name of a model's main input, and for OneFormer that is a list."""
        return 0


class _ShapedTrainer(RKSPTrainerMixin, _LossTrainer):
    """The same with KSS, whatever "auto" would decide, and the monitor."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(kss="on", **arguments)


def compare(model_type: str, kind: type, config: Any, feed: Feed) -> Compared:
    """Plain Trainer first; where it trains, the other has to."""
    reason = "no class to train"
    for head, labels in [*models.head_classes(model_type), (kind, None)]:
        try:
            batches = [_labelled(batch, labels, feed.sequences) for batch in feed.batches]
            first, second, third = _alike(head, config)
            plain = _train(_LossTrainer, first, batches)
            if not all(math.isfinite(loss) for loss in plain.losses):
                raise NoTraining(f"plain Trainer's losses are {plain.losses}")
            break
        except Exception as error:
            reason = f"{head.__name__}: {type(error).__name__}: {str(error)[:150]}"
    else:
        return Compared(untrained=f"plain Trainer cannot train it here: {_line(reason)}", seen={"plain": reason})
    return _shaped(second, third, batches, plain)


def _alike(head: type, config: Any) -> list[nn.Module]:
    """Three models of the same weights, also where transformers leaves some of them undrawn."""
    made = []
    for _ in range(3):
        transformers.set_seed(0)
        made.append(models.build(head, config))
        made[-1].load_state_dict(made[0].state_dict())
    return made


@dataclass
class _Run:
    losses: list[float]
    logs: list[dict[str, Any]]
    warnings: list[str]


def _train(trainer_class: type[Trainer], model: nn.Module, batches: list[dict[str, Any]]) -> _Run:
    transformers.set_seed(0)
    with tempfile.TemporaryDirectory() as folder, said() as words:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=1,
            logging_steps=1,
            learning_rate=1e-4,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        data = [batches[i % len(batches)] for i in range(STEPS)]
        trainer = trainer_class(model=model, args=arguments, train_dataset=data, data_collator=lambda items: items[0])
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return _Run([log["loss"] for log in logs], logs, words)


def _shaped(model: nn.Module, spare: nn.Module, batches: list[dict[str, Any]], plain: _Run) -> Compared:
    seen: dict[str, Any] = {"class": type(model).__name__}
    try:
        shaped = _train(_ShapedTrainer, model, batches)
    except RkspError as error:
        return Compared(refused=f"{type(error).__name__}: {_line(str(error), 600)}", seen=seen)
    except Exception as error:
        return Compared(fault=f"RKSPTrainer dies where Trainer trains: {short(error, where=True)}", seen=seen)
    told = ["kss/loss" in log for log in shaped.logs]
    skipped = max((float(log.get("kss/skipped", 0)) for log in shaped.logs), default=0.0)
    seen |= {
        "losses": shaped.losses,
        "plain": plain.losses,
        "kss": told,
        "skipped": skipped,
        "warnings": shaped.warnings[:4],
    }
    if len(shaped.losses) != STEPS:
        return Compared(fault=f"{len(shaped.losses)} steps of {STEPS}", seen=seen)
    if shaped.losses[0] != plain.losses[0] and _repeats(spare, batches, plain):
        return Compared(fault=f"the first loss is {shaped.losses[0]}, plain Trainer's {plain.losses[0]}", seen=seen)
    if not all(map(math.isfinite, shaped.losses)):
        return Compared(fault=f"losses not finite: {shaped.losses}", seen=seen)
    notes = [_line(text, 400) for text in dict.fromkeys(shaped.warnings)]
    if not all(told):
        sentence = f"KSS acted in {sum(told)} of {STEPS} steps"
        return (
            Compared(refused=f"{sentence}: {notes[0]}", seen=seen)
            if notes
            else Compared(fault=f"{sentence}, without a word", seen=seen)
        )
    if skipped and not notes:
        return Compared(fault=f"kss/skipped is {skipped:.0f}, without a word", seen=seen)
    return Compared(notes=notes, seen=seen)


def _repeats(model: nn.Module, batches: list[dict[str, Any]], plain: _Run) -> bool:
    """Whether plain Trainer comes to the same loss again: Reformer draws a seed from the clock."""
    return _train(_LossTrainer, model, batches).losses[0] == plain.losses[0]


def _labelled(batch: dict[str, Any], labels: str | None, sequences: int) -> dict[str, Any]:
    """The batch with what the head calls labels."""
    batch = dict(batch)
    if labels is None or "labels" in batch:
        return batch
    if labels == "tokens":
        mask = batch.get("attention_mask")
        ids = batch["input_ids"]
        batch["labels"] = ids if mask is None or mask.shape != ids.shape else ids.masked_fill(mask == 0, -100)
    elif labels == "target":
        ids = batch.pop("decoder_input_ids", None)
        mask = batch.pop("decoder_attention_mask", None)
        if ids is None:
            ids = torch.randint(3, 100, (sequences, DECODER), generator=torch.Generator().manual_seed(1))
        batch["labels"] = ids if mask is None else ids.masked_fill(mask == 0, -100)
    elif labels == "characters":
        batch["labels"] = torch.randint(3, 30, (sequences, 5), generator=torch.Generator().manual_seed(1))
    else:
        batch["labels"] = torch.arange(sequences) % 2
    return batch


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in values for tensor in _tensors(item)]


def short(error: BaseException, where: bool = False, limit: int = 300) -> str:
    """The type and the message of an error on one line, with the place where it was raised."""
    place = ""
    if where:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
        place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}"
    return f"{type(error).__name__}: {_line(str(error), limit)}{place}"


def _line(text: str, limit: int = 200) -> str:
    return re.sub(r"\s+", " ", text).strip()[:limit]
