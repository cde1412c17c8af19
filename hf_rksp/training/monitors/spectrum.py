"""Profile a model while it trains: on the batch that it is trained on, or on a fixed set of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hf_rksp.capture import Block, Layouts, Stack, Unsettled, capture_transitions, find_stacks, untouched
from hf_rksp.capture.agreement import agreed
from hf_rksp.capture.attach import Attached
from hf_rksp.capture.calling import forward, model_inputs, reshard, uncompiled
from hf_rksp.capture.hooks import Runs
from hf_rksp.config import MonitorConfig, SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.profile import LayerProfile
from hf_rksp.profile.gather import Key, MomentSink
from hf_rksp.profile.layer import profile_layer
from hf_rksp.quantities import QUANTITIES
from hf_rksp.ranks import current_ranks, world_size
from hf_rksp.spectral import SecondMoments
from hf_rksp.training.aside import Aside
from hf_rksp.training.extra_pass import settle

#: Quantities of a layer that a row of the history keeps, besides its eigenvalues.
_KEPT = ("stack", "index", "path", "rank", *QUANTITIES)
#: How the monitor is switched off, for its warnings.
OFF = "monitor=False (rksp_monitor=False) switches the monitor off"
_NOTHING = (
    "no forward pass with residual blocks was seen: the loss calls parts of the model instead of the model, or the blocks are left "
    "out of the pass"
)


class SpectralMonitor:
    """Measures the transitions of a model on demand; all processes together, exactly.

    Nothing of the run changes: the training batch is only looked at, and the probe runs in evaluation mode with the random
    state put back. Hooks are there while a forward pass is measured and at no other time.

    Args:
        model: without DDP or DeepSpeed around it.
        config: see `MonitorConfig`.
        probe: batches for ``config.data="probe"``; the processes share them out.
        blocks: path(s) of the list(s) of residual blocks.
        stacks: the blocks themselves, where they were found already.

    Attributes:
        aside: counts the layers that could not be read, and says why; a monitor does not stop the run that it watches.

    Raises:
        InputError: "probe" without batches. CaptureError: no residual blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        config: MonitorConfig,
        probe: Sequence[Mapping[str, Any]] | None = None,
        blocks: str | Sequence[str] | None = None,
        stacks: Sequence[Stack] | None = None,
    ) -> None:
        if config.data == "probe" and not probe:
            raise InputError(
                "probe is empty: pass batches to profile, or rksp_data='batch' to profile the training batch"
            )
        self.model, self.config = uncompiled(model), config
        self.probe = list(probe or ())
        self.stacks = find_stacks(model, blocks) if stacks is None else stacks
        self.layouts = Layouts(self.model, self.stacks)
        self.aside = Aside("The monitor", "spectrum/skipped", OFF)
        #: Of the batch, what the model itself is not given; see `SpectralShaper`.
        self.unseen: Mapping[str, Any] = {}
        self._watching: ExitStack | None = None
        self._start()

    def watch(self) -> None:
        """Look at the training forward pass that comes next; the hooks are gone when it ends, also by an exception."""
        self._start()
        self.watch_on()

    def watch_on(self) -> None:
        """Look at one more forward pass of the same step (gradient accumulation)."""
        self.close()
        self._watching = ExitStack()
        self._runs = self._watching.enter_context(capture_transitions(self.stacks, self._record, self._leave_out))
        hooks = Attached()
        self._watching.callback(hooks.remove)
        hooks.before(self.model, self._begin)
        hooks.after(self.model, self._end, always_call=True)

    def _start(self) -> None:
        self._runs = Runs()
        self._sink = MomentSink(self.layouts, 1)
        #: What can only be read when the pass is over: then the model is probed.
        self._waiting: list[tuple[Stack, Block, torch.Tensor, torch.Tensor]] = []
        self._broken: set[Key] = set()
        #: Whether the pass that goes on is looked at.
        self._looking = False
        #: Passes without gradients that go on, beside it or inside: those of a survey or a probe, which are not waited for.
        self._aside_passes = 0

    def _record(self, stack: Stack, block: Block, x: torch.Tensor, y: torch.Tensor) -> None:
        if self._looking and not self._aside_passes and (stack.path, block.index) not in self._broken:
            try:
                self._sink(stack, block, x, y)
            except Unsettled:
                self._waiting.append((stack, block, x, y.clone()))
            except Exception as error:
                self._leave_out(stack, block, error)

    def _leave_out(self, stack: Stack, block: Block, error: Exception) -> None:
        if self._looking and not self._aside_passes:
            self._broken.add((stack.path, block.index))
            self._sink.moments.pop((stack.path, block.index), None)
            self.aside(f"layer {block.path}", error)

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not torch.is_grad_enabled():
            self._aside_passes += 1
            return
        self._looking = True
        self._runs.next_pass()
        self._sink.next_batch({**self.unseen, **model_inputs(module, args, kwargs)})

    def _end(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        if self._aside_passes:
            self._aside_passes -= 1
        elif self._looking:
            self.close()
            self._read_waiting(model_inputs(module, args, kwargs))

    def _read_waiting(self, inputs: Mapping[str, Any]) -> None:
        """Probe the model, and read what waited for that."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        cause: Exception | None = None
        try:
            settle(self.layouts, self.model, inputs)
        except Exception as error:
            cause = error
        self._looking = True
        for stack, block, x, y in waiting:
            try:
                if cause:
                    raise cause
                self._sink(stack, block, x, y)
            except Exception as error:
                self._leave_out(stack, block, error)
        self._looking = False

    def close(self) -> None:
        """Remove the hooks, if there are any."""
        watching, self._watching, self._looking = self._watching, None, False
        if watching is not None:
            watching.close()

    def run_probe(self) -> None:
        """Run this process' share of the probe batches."""
        self._start()
        ranks = current_ranks()
        size, rank = ranks.world, ranks.rank
        with untouched(self.model):
            for start in range(0, len(self.probe), size):
                mine = start + rank < len(self.probe)
                batch = self.probe[start + rank] if mine else self.probe[start]
                # Sharded models gather their weights together: a process without a batch runs one along.
                with capture_transitions(self.stacks, self._record, self._leave_out) as runs:
                    self._looking = mine
                    runs.next_pass()
                    if mine:
                        self._sink.next_batch(batch)
                    forward(self.model, batch)
                self._read_waiting(batch)
        self._looking = False
        reshard(self.model)

    def solve(self, main_process: bool) -> list[LayerProfile]:
        """Spectra of what was measured since `watch` or `run_probe`, over all processes.

        Every process has to call it. Only the main one solves; the others get an empty list. A layer that cannot be
        solved (too few tokens, not finite) is left out.
        """
        self.close()
        seen = self._sink.moments
        everywhere = agreed(self.stacks, seen)
        if not (seen or self._broken):
            layers = sum(len(stack.blocks) for stack in self.stacks)
            self.aside("a profile", _NOTHING, layers)
        elif len(everywhere) < len(seen):
            self.aside("layers", "another process cannot read them", len(seen) - len(everywhere))
        solved = []
        for stack in self.stacks:
            indices = sorted(index for path, index in everywhere if path == stack.path)
            for index in indices:
                moments = seen.pop((stack.path, index))[0]
                if world_size() > 1:
                    moments.all_reduce()
                if main_process:
                    last = max(stack.members - 1, indices[-1])
                    solved += self._solve(stack, stack.find(index), index / last if last else 0.0, moments.cpu())
        return solved

    def _solve(self, stack: Stack, block: Block, depth: float, moments: SecondMoments) -> list[LayerProfile]:
        """The profile of one layer, or none."""
        try:
            layer = profile_layer(
                [moments],
                stack=stack.path,
                index=block.index,
                depth=depth,
                path=block.path,
                rank=min(self.config.rank, moments.dim, max(moments.count // 2, 1)),
                standard_errors=False,
                config=SpectralConfig(),
            )
        except Exception as error:
            self.aside(f"layer {block.path}", error)
            return []
        return [layer]


def summary(layers: Sequence[LayerProfile], per_layer: bool) -> dict[str, float]:
    """Numbers for a tracker, under the keys ``rksp/...``."""
    if not layers:
        return {}

    def values(name: str) -> list[float]:
        return [getattr(layer, name) for layer in layers]

    logs = {}
    for name in ("near_unit_mass", "expansive_mass", "nonlinearity_ratio"):
        logs[f"rksp/{name}/mean"] = sum(values(name)) / len(layers)
    for name in ("near_unit_mass", "spectral_radius", "eigenvector_condition"):
        logs[f"rksp/{name}/max"] = max(values(name))
    if per_layer:
        for layer in layers:
            logs[f"rksp/near_unit_mass/{layer.path}"] = layer.near_unit_mass
            logs[f"rksp/spectral_radius/{layer.path}"] = layer.spectral_radius
    return logs


def history_rows(layers: Sequence[LayerProfile]) -> list[dict[str, Any]]:
    """What the history keeps of each layer; eigenvalues with five significant digits."""
    rows = []
    for layer in layers:
        row = {name: getattr(layer, name) for name in _KEPT}
        row["eigenvalues"] = [[float(f"{v.real:.5g}"), float(f"{v.imag:.5g}")] for v in layer.eigenvalues.tolist()]
        rows.append(row)
    return rows
