"""Profile a model while it trains: on the batch that it is trained on, or on a fixed set of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_rksp.capture import Block, Stack, Unsettled, capture_transitions, untouched
from hf_rksp.capture.agreement import agreed
from hf_rksp.capture.calling import forward, reshard
from hf_rksp.config import MonitorConfig, SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.profile import LayerProfile
from hf_rksp.profile.gather import Key, MomentSink
from hf_rksp.profile.layer import profile_layer
from hf_rksp.quantities import QUANTITIES, SPECTRUM, over_layers
from hf_rksp.ranks import current_ranks, world_size
from hf_rksp.spectral import SecondMoments
from hf_rksp.training.aside import Aside
from hf_rksp.training.extra_pass import settle
from hf_rksp.training.monitors.base import Logged, Measuring, Reading, none
from hf_rksp.training.watch import Watch

#: Quantities of a layer that a row of the history keeps, besides its eigenvalues.
_KEPT = ("stack", "index", "path", "rank", *QUANTITIES)
#: How the monitor is switched off, for its warnings.
OFF = "monitor=False (spectrum=False) switches the monitor off"
_NOTHING = (
    "no forward pass with residual blocks was seen: the loss calls parts of the model instead of the model, or the blocks are left "
    "out of the pass"
)


def require_used(probe: Sequence[Mapping[str, Any]] | None, config: MonitorConfig | None) -> None:
    """Raise `InputError` if there are batches to profile, and nothing or the training batch is profiled instead."""
    if probe and (config is None or config.data != "probe"):
        why = "the spectral monitor is off" if config is None else f"data={config.data!r} profiles the training batch"
        raise InputError(f"probe has {len(probe)} batches, and {why}: pass data='probe' (spectrum_data), or no probe")


class SpectralMonitor(Logged):
    """Measures the spectrum of every transition on a schedule; all processes together, exactly.

    Nothing of the run changes: the training batch is only looked at, and the probe runs in evaluation mode with the random
    state put back.

    Args:
        config: see `MonitorConfig`.
        probe: batches for ``config.data="probe"``; the processes share them out.

    Attributes:
        aside: counts the layers that could not be read, and says why; a monitor does not stop the run that it watches.

    Raises:
        InputError: "probe" without batches, or batches without "probe".
    """

    name = "spectrum"
    quantities = SPECTRUM

    def __init__(self, config: MonitorConfig | None = None, probe: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.config = config or MonitorConfig()
        if self.config.data == "probe" and not probe:
            raise InputError(
                "probe is empty: pass batches to profile, or data='batch' (spectrum_data) to profile the training batch"
            )
        require_used(probe, self.config)
        self.probe = list(probe or ())
        super().__init__(Aside("The monitor", "spectrum/skipped", OFF))

    def attach(self, watch: Watch) -> None:
        """Begin to measure the blocks of this run."""
        super().attach(watch)
        self.start()

    def due(self, step: int, last_step: int) -> bool:
        """The weights of step k are those before its update: a batch sees k up to the last but one, the probe the last too."""
        return self.config.due(step, last_step if self.config.data == "probe" else last_step - 1)

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """Begin anew. A probe runs now, and is solved now, so that its moments are gone when the step takes its memory."""
        self.start()
        return self._probe_reading(step, main_process) if self.config.data == "probe" else none()

    def looker(self, step: int) -> SpectralMonitor | None:
        """The monitor itself, if it profiles the training batch."""
        return self if self.config.data == "batch" else None

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """Solve what was seen in the step."""
        return self._reading(step, main_process) if self.config.data == "batch" else none()

    def run_end(self, step: int, main_process: bool) -> Measuring:
        """The probe runs once more at the very end."""
        if self.config.data != "probe" or not self.due(step, step):
            return none()
        self.start()
        return self._probe_reading(step, main_process)

    def _probe_reading(self, step: int, main_process: bool) -> Measuring:
        """The reading of the probe; none if it cannot be run."""
        try:
            self.run_probe()
        except Exception as error:
            # Before the first step it is a setting that does not fit. Later it is not worth a run; but the other processes wait.
            if step == 0 or world_size() > 1:
                raise
            self.aside("the probe", error, self.watch.layers)
            return none()
        return self._reading(step, main_process)

    def _reading(self, step: int, main_process: bool) -> Measuring:
        layers = yield from self.solve(main_process)
        if not main_process:
            return None
        self._log(summary(layers, self.config.per_layer))
        if not layers:
            return None
        rows = history_rows(layers)
        more: dict[str, str | int | list[str]] = {
            "data": self.config.data,
            "tokens": max(layer.tokens for layer in layers),
        }
        if reasons := self.aside.pop_reasons():
            more["left_out"] = reasons
        return Reading(self.name, step, over_layers(rows), rows, more)

    def start(self) -> None:
        """Forget what was seen, and begin a new profile."""
        self._sink = MomentSink(self.watch.layouts, 1)
        #: What can only be read when the pass is over: then the model is probed.
        self._waiting: list[tuple[Stack, Block, Tensor, Tensor]] = []
        self._broken: set[Key] = set()

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """A forward pass that is looked at begins."""
        self._sink.next_batch(self.watch.described(batch))

    def record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """Add one transition to the moments."""
        if (stack.path, block.index) in self._broken:
            return
        try:
            self._sink(stack, block, x, y)
        except Unsettled:
            self._waiting.append((stack, block, x, y.clone()))
        except Exception as error:
            self.refuse(stack, block, error)

    def refuse(self, stack: Stack, block: Block, error: Exception) -> None:
        """Leave a layer out of this profile."""
        self._broken.add((stack.path, block.index))
        self._sink.moments.pop((stack.path, block.index), None)
        self.aside(f"layer {block.path}", error)

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """The pass is over: probe the model if sizes did not tell, and read what waited for that."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        cause: Exception | None = None
        try:
            settle(self.watch.layouts, self.watch.model, batch)
        except Exception as error:
            cause = error
        for stack, block, x, y in waiting:
            if cause is not None:
                self.refuse(stack, block, cause)
                continue
            try:
                self._sink(stack, block, x, y)
            except Exception as error:
                self.refuse(stack, block, error)
        cause = None  # an exception and its own frame would keep each other, and the states, until garbage is collected

    def run_probe(self) -> None:
        """Run this process' share of the probe batches."""
        ranks, model = current_ranks(), self.watch.model
        with untouched(model):
            for start in range(0, len(self.probe), ranks.world):
                mine = start + ranks.rank < len(self.probe)
                batch = self.probe[start + ranks.rank] if mine else self.probe[start]
                if not mine:
                    # Sharded models gather their weights together: a process without a batch runs one along.
                    forward(model, batch)
                    continue
                with capture_transitions(self.watch.stacks, self.record, self.refuse) as runs:
                    runs.next_pass()
                    self._sink.next_batch(batch)
                    forward(model, batch)
                self.pass_end(batch)
        reshard(model)

    def solve(self, main_process: bool) -> Generator[Sequence[Tensor], Sequence[Tensor], list[LayerProfile]]:
        """Spectra of what was measured since `start`, over all processes; see `Measuring`.

        Only the main process solves; the others get an empty list. A layer that cannot be solved (too few tokens, not finite) is
        left out.
        """
        stacks, seen = self.watch.stacks, self._sink.moments
        everywhere = agreed(stacks, seen)
        if not (seen or self._broken):
            self.aside("a profile", _NOTHING, self.watch.layers)
        elif len(everywhere) < len(seen):
            self.aside("layers", "another process cannot read them", len(seen) - len(everywhere))
        keys = [
            (stack.path, index) for stack in stacks for index in sorted(i for p, i in everywhere if p == stack.path)
        ]
        moments = {key: seen.pop(key)[0] for key in keys}
        if world_size() > 1:
            reductions = [one.reduction() for one in moments.values()]
            heads = yield [next(one) for one in reductions]
            bodies = yield [one.send(head) for one, head in zip(reductions, heads, strict=True)]
            for one, body in zip(reductions, bodies, strict=True):
                with contextlib.suppress(StopIteration):
                    one.send(body)
        if not main_process:
            return []
        solved = []
        for stack in stacks:
            indices = [index for path, index in keys if path == stack.path]
            last = max(stack.members - 1, indices[-1]) if indices else 0
            for index in indices:
                depth = index / last if last else 0.0
                solved += self._solve(stack, stack.find(index), depth, moments.pop((stack.path, index)).cpu())
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
    """Numbers for a tracker, under the keys ``spectrum/...``."""
    values = over_layers([{name: getattr(layer, name) for name in QUANTITIES} for layer in layers])
    logs = {f"spectrum/{name}": value for name, value in values.items()}
    if per_layer:
        for layer in layers:
            logs[f"spectrum/near_unit_mass/{layer.path}"] = layer.near_unit_mass
            logs[f"spectrum/spectral_radius/{layer.path}"] = layer.spectral_radius
    return logs


def history_rows(layers: Sequence[LayerProfile]) -> list[dict[str, Any]]:
    """What the history keeps of each layer; eigenvalues with five significant digits."""
    rows = []
    for layer in layers:
        row = {name: getattr(layer, name) for name in _KEPT}
        row["eigenvalues"] = [[float(f"{v.real:.5g}"), float(f"{v.imag:.5g}")] for v in layer.eigenvalues.tolist()]
        rows.append(row)
    return rows
