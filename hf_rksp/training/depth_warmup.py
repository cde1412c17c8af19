"""Architecture warm-up: a network is shallow while the learning rate rises, and becomes deep later.

Source: arXiv:2606.16768. A locked block hands its input on, to the bit, because its weights are zero. Its gradients are zero, and
the optimizer does not see it. A block of zeros cannot learn: every gradient is a product with a zero factor. So its weights are
drawn anew, small, when it is unlocked.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block
from hf_rksp.capture.attach import Attached
from hf_rksp.capture.shards import is_flattened
from hf_rksp.capture.states import first_state, output_state, with_state
from hf_rksp.config import DepthWarmupConfig
from hf_rksp.errors import InputError
from hf_rksp.quantities import Quantity
from hf_rksp.ranks import from_main
from hf_rksp.training.depth_plan import DepthPlan, group_sizes
from hf_rksp.training.locks import Locks, is_zero, shares_weights, stays_in_the_optimizer
from hf_rksp.training.monitors.base import Alarm, Intervention, Measuring, Monitor, Reading
from hf_rksp.training.preconditioner import largest_rate
from hf_rksp.training.watch import Watch
from hf_rksp.training.weights import is_partitioned, pieces

logger = logging.getLogger(__name__)

_OFF = "depth_warmup='off' trains all blocks from the first step"


class DepthWarmup(Intervention):
    """Locks the deepest blocks of each stack at the first step, and unlocks them in groups.

    A locked block is the identity: all its weights are zero but the gains of its norms. The model keeps its graph, and no
    ``requires_grad`` changes, so DDP and ZeRO see the parameters that they were made for. A torch optimizer gets no gradient of a
    locked block: no update, no decay, no moment. With FSDP2 and ZeRO it gets gradients of zero, which leave weights of zero as
    they are; FSDP2's moments begin anew when a block is unlocked. ZeRO has flat groups and one step count for each.

    Args:
        config: see `DepthWarmupConfig`.

    Attributes:
        active: number of blocks that train, over all stacks.

    Raises:
        InputError: (when the first step begins) PEFT, trained weights, blocks that are not the identity when their weights
            are zero, a run that would end with locked blocks, or a stack of one block.
    """

    name = "depth_warmup"
    quantities = (Quantity("active", "blocks that train", unit="count"),)

    def __init__(self, config: DepthWarmupConfig | None = None) -> None:
        self.config = config or DepthWarmupConfig(schedule="paper")
        self._state: Mapping[str, Any] = {}
        self._hooks = Attached()
        self._of: weakref.ref[nn.Module] | None = None
        self._locks = Locks()

    def attach(self, watch: Watch) -> None:
        """Find out which blocks are locked, and see their forward passes from now on.

        Raises:
            InputError: PEFT, a loss of routers, weights that blocks share, or no stack of two blocks.
        """
        super().attach(watch)
        self._require(watch.model)
        self._groups: list[list[Block]] = []
        for stack in watch.stacks:
            sizes = group_sizes(len(stack.blocks), self.config.start, self.config.groups)
            place = sizes[0]
            for number, size in enumerate(sizes[1:]):
                self._groups += [[] for _ in range(number + 1 - len(self._groups))]
                self._groups[number] += stack.blocks[place : place + size]
                place += size
        if not self._groups:
            raise self._refusal(f"no stack has blocks to lock (start={self.config.start})")
        if shares_weights(watch.model, self._groups):
            raise self._refusal("blocks share weights with blocks that train earlier")
        if self._of is None or self._of() is not watch.model:
            # Else the same model is trained again, and what its locked blocks were is known from the first time.
            self._of, self._locks = weakref.ref(watch.model), Locks()
        watch.locked = {block.path for block in self._lockable()}
        self._state = {}
        self._plan: DepthPlan | None = None
        self._began: dict[str, int] = {}
        self._unchecked = set(watch.locked)
        self._readings: list[float] = []
        self._before: list[tuple[Tensor, Tensor, float]] = []
        self._step, self._last_step = 0, 0
        self._hooks = Attached()
        for block in self._lockable():
            self._hooks.change(block.module, self._gate(block))

    def _refusal(self, why: str) -> InputError:
        return InputError(f"depth_warmup={self.config.schedule!r}: {why}; {_OFF}")

    def _require(self, model: nn.Module) -> None:
        if hasattr(model, "peft_config"):
            raise self._refusal(
                "PEFT trains a few weights of a network that is trained already, and a locked block would lose what it has learnt"
            )
        if getattr(getattr(model, "config", None), "output_router_logits", False):
            raise self._refusal(
                "the loss of the routers (output_router_logits) does not go through the stream, so locked routers would be trained"
            )

    @property
    def active(self) -> int:
        """Number of blocks that train, over all stacks."""
        return self.watch.layers - len(self.watch.locked)

    def _lockable(self) -> Iterator[Block]:
        for group in self._groups:
            yield from group

    def _gate(self, block: Block) -> Any:
        """Let the state pass a locked block as it is, with a graph in which every gradient of the block is exactly zero."""

        def gate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
            if block.path not in self.watch.locked or not module.training or self._plan is None:
                return None
            x = first_state(args, kwargs)
            y = None if x is None else output_state(output, x)
            if x is None or y is None:
                self._locks.give_back()
                raise self._refusal(f"{block.path} hands on no state of the shape that it takes")
            if block.path in self._unchecked:
                if not torch.equal(x.detach(), y.detach()):
                    self._locks.give_back()
                    raise self._refusal(
                        f"{block.path} ({type(module).__name__}) is not the identity when its weights are zero"
                    )
                self._unchecked.discard(block.path)
                if not self._unchecked:
                    self._locks.forget()
            return with_state(output, x + 0.0 * (y - x))

        return gate

    def due(self, step: int, last_step: int) -> bool:
        """Every step, to look at the plan."""
        self._last_step = last_step
        return True

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """Lock in the first step; unlock what is due, and say so."""
        self._step, alarms = step, []
        if self._plan is None:
            self._make_plan()
            if not self._state:
                self._lock()
        assert self._plan is not None
        opened = self._plan.done
        wanted = self._plan.due(step, largest_rate(self.watch.optimizer), self._shared_readings(step))
        for number in range(opened, wanted):
            self._unlock(self._groups[number])
            alarms.append(self._event(self._groups[number]))
            if main_process:
                # Few lines per run, and what its owner has asked for; below a warning, logging shows nothing by default.
                logger.warning("Step %d: %s", step, alarms[-1].text)
        self._keep_ramping(step)
        return self._told(step, main_process, alarms)

    def _told(self, step: int, main_process: bool, alarms: Sequence[Alarm]) -> Measuring:
        return Reading(self.name, step, {}, alarms=alarms) if main_process and alarms else None
        yield []

    def _event(self, group: Sequence[Block]) -> Alarm:
        names = f"{group[0].path} to {group[-1].path}" if len(group) > 1 else group[0].path
        text = f"Unlocked {names}: {self.active} of {self.watch.layers} blocks train."
        return Alarm("unlocked", text, group[0].path, what="unlocked")

    def _make_plan(self) -> None:
        warmup = self.watch.warmup_steps or 0
        self._plan = DepthPlan(self.config, len(self._groups), self._last_step, warmup, self.watch.decays)
        if self._state and self._state["groups"] != self._paths():
            raise self._refusal(
                f"the checkpoint has the groups {self._state['groups']}, and these settings make {self._paths()}; pass start and "
                "groups as they were"
            )
        self._plan.done = int(self._state.get("done", 0))
        self._plan.peak = float(self._state.get("peak", 0.0))
        self._plan.below = int(self._state.get("below", 0))
        for group in self._groups[: self._plan.done]:
            self.watch.locked -= {block.path for block in group}

    def _paths(self) -> list[list[str]]:
        return [[block.path for block in group] for group in self._groups]

    def _shared_readings(self, step: int) -> list[float]:
        """New readings of the curvature, which the main process has, on every process; none where none are asked for."""
        readings, self._readings = self._readings, []
        if self._plan is None or not self._plan.listens(step):
            return []
        shared: list[float] = from_main(readings)
        return shared

    def _lock(self) -> None:
        if self._step:
            raise self._refusal(
                f"the run goes on from step {self._step} of a checkpoint that had no depth warm-up, and its blocks are trained"
            )
        if is_flattened(self.watch.model.parameters()):
            raise self._refusal("FSDP1 has made flat parts of the weights; use FSDP2 (fsdp_version: 2)")
        try:
            self._locks.lock(self._lockable())
        except InputError as error:
            raise self._refusal(str(error)) from None

    def _unlock(self, group: Sequence[Block]) -> None:
        for block in group:
            self._locks.unlock(block, self.watch.seed, self.config.seed_scale, self.watch.optimizer)
            self.watch.locked.discard(block.path)
            self._unchecked.discard(block.path)
            self._began[block.path] = self._step
        if not self._unchecked:
            self._locks.forget()

    def gradients_ready(self, step: int, readings: Sequence[Reading]) -> None:
        """Take the gradients of locked blocks from a torch optimizer; note readings of the curvature."""
        for reading in readings:
            if reading.monitor == "curvature" and "ratio_momentum" in reading.values:
                self._readings.append(reading.values["ratio_momentum"])
        for block in self._lockable():
            if block.path in self.watch.locked:
                for weight in block.module.parameters():
                    if not stays_in_the_optimizer(weight):
                        weight.grad = None

    def _keep_ramping(self, step: int) -> None:
        """Keep the weights of blocks whose updates are not at their full size yet."""
        self._before = []
        if not self.config.ramp:
            return
        for block in self._lockable():
            if block.path in self._began and step < self._began[block.path] + self.config.ramp:
                size = (step - self._began[block.path] + 1) / self.config.ramp
                for weight in block.module.parameters():
                    if is_partitioned(weight):
                        raise InputError(
                            f"depth_warmup_ramp={self.config.ramp}: ZeRO-3 spreads weights over the processes; pass 0"
                        )
                    self._before += [(piece, piece.clone(), size) for piece in pieces(weight)]

    def step_made(self) -> None:
        """Shorten the updates of blocks that were unlocked lately."""
        for piece, before, size in self._before:
            piece.copy_(before + size * (piece - before))
        self._before = []

    def pop_logs(self) -> dict[str, float]:
        """Number of blocks that train."""
        return {"depth_warmup/active": float(self.active)}

    def state_dict(self) -> dict[str, Any]:
        """Which groups are unlocked, and what unlocking the others needs."""
        if self._plan is None:
            return dict(self._state)
        return {
            "groups": self._paths(),
            "done": self._plan.done,
            "peak": self._plan.peak,
            "below": self._plan.below,
            **self._locks.state_dict(),
            "began": dict(self._began),
            "readings": list(self._readings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the weights are those of the checkpoint.

        Raises:
            KeyError: it is not of a depth warm-up.
        """
        self._locks.load_state_dict(state)
        self._began = dict(state["began"])
        self._readings, self._state = list(state["readings"]), dict(state)

    def close(self) -> None:
        """Let go of the blocks; those that are locked stay as they are."""
        self._hooks.remove()
        self._locks.forget()
        self._before = []
        if self._plan is None or self._step + 1 < self._last_step:
            return
        zero = [block.path for block in self._lockable() if is_zero(block)]
        if zero:
            why = (
                "were never unlocked" if self.watch.locked else "are those of an earlier checkpoint, loaded at the end"
            )
            logger.warning("The model ends with %d blocks that are zero and %s: %s", len(zero), why, ", ".join(zero))


def require_part(state: Mapping[str, Any] | None, parts: Sequence[Monitor]) -> None:
    """Refuse to go on from a checkpoint with locked blocks without a `DepthWarmup`: the blocks would stay zero for ever.

    Args:
        state: of the checkpoint, by part.
        parts: of the run that goes on.
    """
    own = (state or {}).get(DepthWarmup.name)
    if isinstance(own, Mapping) and not any(isinstance(part, DepthWarmup) for part in parts):
        left = [path for group in own.get("groups", ())[int(own.get("done", 0)) :] for path in group]
        if left:
            raise InputError(
                f"depth_warmup='off': the checkpoint has locked blocks ({', '.join(left)}), which would stay zero; pass "
                "depth_warmup as it was"
            )
