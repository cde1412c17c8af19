"""What all parts of a run share: one set of hooks on the model, and one answer to which states are tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_rksp.capture import Layout, Layouts, Stack, TrainingTap, Unsettled, find_stacks
from hf_rksp.training.extra_pass import settle
from hf_rksp.training.gate import StepGate


class Watch:
    """The tap on a model, the layouts of its states, and what of a batch the model itself is not given.

    Args:
        model: the module itself, before or after DDP, FSDP2, DeepSpeed or ``torch.compile`` wrapped it; PEFT included.
        blocks: path(s) of the list(s) of residual blocks; found automatically in transformers models.
        stacks: the blocks themselves, if they were found already.

    Attributes:
        withheld: entries of the coming batch that the model is not given: labels that a loss of one's own takes out tell the
            padding too.
        batch: the last batch that was trained on, as ``loss`` takes it, if the trainer has said so.
        loss: the task's loss of a batch, if the trainer has one of its own; else it is that of the model.
        warmup_steps: of the learning rate, if the trainer says so.
        decays: whether the learning rate falls after its warm-up; ``None`` if nobody has said.
        seed: of the run.
        locked: paths of blocks that an intervention keeps as identities: no part of the network yet.
        optimizer: of the run, as the trainer has it, with what an engine wraps around it; ``None`` if nobody has said.
        scaler: `torch.amp.GradScaler` of a loop that scales its loss itself.
        gate: stands before the optimizer's step, if the optimizer is known and there are interventions.
        losses: of the batches of this step that were trained on, as numbers on the device, if the trainer says them.
        says_losses: whether the trainer says them.
        folder: of the run, in which its checkpoints are; ``None`` if nobody has said.
        writes: whether this process writes checkpoints; ``None`` for the main process alone.
        lives: steps after which a checkpoint is deleted; ``None`` if it is not, or nobody has said.
        rewind: loads weights and moments of a checkpoint into the run, if the trainer can do that.
        acts: whether interventions may act; a callback alone may not.
        dormant: interventions that another one may switch on.
        kss_by_auto: whether KSS acts because ``kss="auto"`` has decided so.
        stopped: why an intervention ends the run, at the end of this step.

    Raises:
        CaptureError, InputError: no residual blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: str | Sequence[str] | None = None,
        stacks: Sequence[Stack] | None = None,
    ) -> None:
        self.stacks = tuple(find_stacks(model, blocks) if stacks is None else stacks)
        self.named = blocks is not None
        self.tap = TrainingTap(model, self.stacks)
        self.model = self.tap.model
        self.layouts = Layouts(self.model, self.stacks)
        self.withheld: Mapping[str, Any] = {}
        self.batch: Mapping[str, Any] | None = None
        self.loss: Callable[[Mapping[str, Any]], Tensor] | None = None
        self.optimizer: object = None
        self.warmup_steps: int | None = None
        self.seed = 0
        self.locked: set[str] = set()
        self.decays: bool | None = None
        self.scaler: Any = None
        self.gate: StepGate | None = None
        self.losses: list[Tensor] = []
        self.says_losses = False
        self.folder: Path | None = None
        self.writes: bool | None = None
        self.lives: float | None = None
        self.rewind: Callable[[Path], None] | None = None
        self.acts = True
        self.dormant: Sequence[Any] = ()
        self.kss_by_auto = False
        self.stopped: str | None = None

    @property
    def layers(self) -> int:
        """Number of blocks in all stacks."""
        return sum(len(stack.blocks) for stack in self.stacks)

    def described(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the model was called with, and what was withheld from it."""
        return {**self.withheld, **batch}

    def layout(self, stack: Stack, batch: Mapping[str, Any], states: Tensor) -> Layout:
        """How ``states`` of a pass over ``batch`` are read; if sizes do not tell, the model is probed.

        Raises:
            CaptureError: nothing tells.
        """
        try:
            return self.layouts.of(stack, self.described(batch), states)
        except Unsettled:
            settle(self.layouts, self.model, batch)
            return self.layouts.of(stack, self.described(batch), states)
