"""Spectral Alignment of every linear map of the residual blocks, read from the training batch (arXiv:2510.04202)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from hf_rksp.baseline import Baseline
from hf_rksp.capture import Block, Layout, Stack, Unsettled
from hf_rksp.capture.attach import Attached
from hf_rksp.capture.linears import LinearMap, find_linears
from hf_rksp.config import AlignmentConfig
from hf_rksp.errors import CaptureError
from hf_rksp.quantities import ALIGNMENT
from hf_rksp.spectral.alignment import (
    SUMS,
    Alignment,
    Principal,
    alignment_sums,
    alignments,
    first_principal,
    principal,
)
from hf_rksp.training.aside import Aside
from hf_rksp.training.host import to_host
from hf_rksp.training.monitors.base import Alarm, Measuring, Reading, Regular, none
from hf_rksp.training.watch import Watch

#: How the monitor is switched off, for its warnings.
OFF = "alignment_every=0 switches the monitor off"
#: Scatter that a share has at least: less is no deviation.
_FLOOR = 0.01
_NOTHING = "the residual blocks have no linear map whose weight is a matrix of floating-point numbers"


class AlignmentMonitor(Regular):
    """Follows the principal direction of each linear map, and how the tokens of the training batch lie relative to it.

    A reading costs two products with each weight and one pass over the inputs of the maps. Nothing of the run changes. Of fused
    experts the map that sees the residual stream is watched.

    Args:
        config: see `AlignmentConfig`.

    Attributes:
        maps: what is watched, once the run has begun.
        aside: counts the maps that could not be read, and says why.
    """

    name = "alignment"
    quantities = ALIGNMENT
    config: AlignmentConfig

    def __init__(self, config: AlignmentConfig | None = None) -> None:
        self.config = config or AlignmentConfig(every=10)
        super().__init__(Aside("The alignment monitor", "alignment/skipped", OFF))
        self.maps: list[LinearMap] = []

    def attach(self, watch: Watch) -> None:
        """Find the maps; what an earlier run has left is forgotten."""
        super().attach(watch)
        self.maps = find_linears(watch.stacks, getattr(watch.model, "config", None))
        if not self.maps:
            self.aside("all layers", _NOTHING, watch.layers)
        #: Of the last reading, and of the one that goes on: a checkpoint may be saved in between.
        self._last: list[Principal | None] = [None] * len(self.maps)
        self._principal = list(self._last)
        self._baseline = Baseline(
            len(self.maps), _FLOOR, self.config.limit, window=self.config.window, dwell=self.config.dwell
        )
        self._hooks: Attached | None = None
        self._anew()

    def _anew(self) -> None:
        #: Sums over the tokens of some maps, by the places of these maps.
        self._sums: list[tuple[list[int], Tensor]] = []
        #: What was seen in a block, until the block is over and tells which tokens are padding.
        self._open: dict[nn.Module, list[_Seen]] = {}
        #: Blocks that are over, if sizes alone do not tell which of their states are tokens.
        self._waiting: list[tuple[nn.Module, Stack, Tensor]] = []

    def due(self, step: int, last_step: int) -> bool:
        """Every so many steps."""
        return bool(self.maps) and self.config.every > 0 and step % self.config.every == 0

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """Follow the principal directions of the weights that the step begins with."""
        self._anew()
        for place, one in enumerate(self.maps):
            try:
                self._principal[place] = self._followed(place)
            except Exception as error:
                self._principal[place] = None
                self.aside(f"layer {one.path}", error)
        return none()

    def _followed(self, place: int) -> Principal:
        """The principal direction of a map in the present weights, from that of the last reading."""
        one, old = self.maps[place], self._last[place]
        with one.products() as products, torch.no_grad():
            if old is not None:
                return principal(products, old, self.config.products)
            start = torch.randn(one.width, dtype=one.dtype, generator=torch.Generator().manual_seed(place))
            return first_principal(products, start.to(one.device))

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """A forward pass that is looked at begins: see the inputs of the maps."""
        self._let_go()
        self._batch = batch
        self._hooks = Attached()
        together: dict[nn.Module, list[int]] = {}
        for place, one in enumerate(self.maps):
            together.setdefault(one.module, []).append(place)
        for module, places in together.items():
            self._hooks.before(module, functools.partial(self._see, places))

    def _see(self, places: Sequence[int], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called: keep how its inputs lie, one number per token and map."""
        known = [place for place in places if self._principal[place] is not None]
        if not known:
            return
        maps = [self.maps[place] for place in known]
        try:
            inputs = args or tuple(kwargs.values())
            x: Tensor = inputs[0]
            directions = torch.stack([self._principal[place].v for place in known])  # type: ignore[union-attr]
            cosine = alignments(x, directions.to(x.device))
            own = [one.own(inputs) for one in maps]
            counts = None if own[0] is None else torch.stack([mask for mask in own if mask is not None])
            self._open.setdefault(maps[0].block.module, []).append(_Seen(known, cosine, counts))
        except Exception as error:
            self.aside(f"layer {maps[0].path}", error, len(maps))

    def record(self, stack: Stack, block: Block, x: Tensor, y: Tensor) -> None:
        """A block is over: its states tell which tokens count."""
        if block.module not in self._open:
            return
        try:
            mask = _mask(self.watch.layouts.of(stack, self.watch.described(self._batch), x), x)
        except Unsettled:  # the model has to be probed, and that cannot be done within a pass
            self._waiting.append((block.module, stack, x))
            return
        except CaptureError:
            mask = None
        self._add(block.module, mask)

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """The pass is over."""
        self._let_go()
        waiting, self._waiting = self._waiting, []
        for module, stack, x in waiting:
            mask: Tensor | None = None
            with contextlib.suppress(CaptureError):
                mask = _mask(self.watch.layout(stack, batch, x), x)
            if module in self._open:  # a block that ran twice had all of it added the first time
                self._add(module, mask)
        for module in list(self._open):
            self._add(module, None)

    def _add(self, module: nn.Module, mask: Tensor | None) -> None:
        """Add what was seen in a block to the sums; ``mask`` has the shape of its states. Maps of equal shapes go together."""
        alike: dict[tuple[Any, ...], list[_Seen]] = {}
        for seen in self._open.pop(module):
            alike.setdefault((seen.cosine.shape[1:], seen.cosine.device, seen.own is None), []).append(seen)
        for group in alike.values():
            cosine = torch.cat([seen.cosine for seen in group])
            counts = None
            if mask is not None and mask.numel() == cosine[0].numel():
                counts = mask.reshape(cosine.shape[1:])[None].to(cosine.device)
            if group[0].own is not None:
                own = torch.cat([seen.own for seen in group if seen.own is not None])
                counts = own if counts is None else own * counts
            places = [place for seen in group for place in seen.places]
            self._sums.append((places, alignment_sums(cosine, counts)))

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """The reading of the step, over all processes."""
        return self._reading(step, main_process)

    def _reading(self, step: int, main_process: bool) -> Measuring:
        self._let_go()
        self._last = list(self._principal)
        device = self.maps[0].device
        mine = torch.zeros(len(self.maps), SUMS, dtype=torch.float64, device=device)
        for places, sums in self._sums:
            mine.index_add_(0, torch.tensor(places, device=device), sums.to(device))
        (total,) = yield [mine]
        if not main_process:
            return None
        unknown = torch.full((3,), math.nan, dtype=torch.float64, device=device)
        numbers = torch.stack(
            [
                unknown if one is None else torch.stack([one.sigma, one.growth, one.residual]).double().to(device)
                for one in self._principal
            ]
        )
        totals, numbers = to_host(total, numbers)
        found = [Alignment.of(row) for row in totals]
        shares = numpy.array([math.nan if one is None else one.majority_share for one in found])
        judged = self._baseline.judge(shares)
        numbers_of = numpy.column_stack([numbers.numpy(), judged.deviation]).tolist()
        rows = [_row(one, of, *each) for one, of, each in zip(self.maps, found, numbers_of, strict=True)]
        values = _over_maps(rows) | {"flagged": float((numpy.nan_to_num(judged.deviation) > self.config.limit).sum())}
        self._log({f"alignment/{name}": value for name, value in values.items()})
        alarms = [_alarm(self.maps[place], rows[place]) for place in judged.began]
        alarms += [_shift(self.maps[place], rows[place]) for place in judged.shifted]
        tokens = max((one.tokens for one in found if one is not None), default=0)
        return Reading(self.name, step, values, rows, {"tokens": tokens}, alarms)

    def _let_go(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None

    def state_dict(self) -> dict[str, Any]:
        """Directions, the past of each map, and what waits for the next log."""
        kept = [None if one is None else [one.sigma.tolist(), one.u.tolist(), one.v.tolist()] for one in self._last]
        own = {"paths": [one.path for one in self.maps], "principal": kept, "past": self._baseline.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of a model with other maps.
        """
        if state["paths"] != [one.path for one in self.maps]:
            raise ValueError("it is of a model with other linear maps")
        self._baseline.load_state_dict(state["past"])
        for place, (one, kept) in enumerate(zip(self.maps, state["principal"], strict=True)):
            if kept is not None:
                sigma, u, v = (torch.tensor(part, dtype=one.dtype, device=one.device) for part in kept)
                unknown = torch.full_like(sigma, math.nan)
                self._last[place] = Principal(sigma, u, v, unknown, unknown)
        super().load_state_dict(state)

    def close(self) -> None:
        """Leave no hook behind."""
        self._let_go()


@dataclass(frozen=True)
class _Seen:
    """A module was called: ``cosine`` of shape ``(places, ...)``, and which tokens are of each map (``None`` for all)."""

    places: list[int]
    cosine: Tensor
    own: Tensor | None


def _mask(layout: Layout, states: Tensor) -> Tensor | None:
    """Which states count, in the shape of ``states`` without their last axis; ``None`` for all."""
    if layout.mask is None or layout.streams:
        return None
    return layout.write(layout.mask[..., None], torch.Size((*states.shape[:-1], 1)))[..., 0]


def _row(one: LinearMap, found: Alignment | None, *numbers: float) -> dict[str, Any]:
    """What the history keeps of a map; no entry for what is not known."""
    known = {} if found is None else {
        "majority_share": found.majority_share,
        "sign_entropy": found.sign_entropy,
        "mean_absolute": found.mean_absolute,
        "histogram": [float(f"{share:.4g}") for share in found.histogram],
    }  # fmt: skip
    named = dict(zip(("spectral_norm", "growth", "residual", "deviation"), numbers, strict=True))
    place = {"stack": one.stack.path, "index": one.block.index, "path": one.path}
    return place | known | {name: value for name, value in named.items() if math.isfinite(value)}


def _over_maps(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of the run; what no map has is left out."""
    values = {}
    for key, over in (
        ("majority_share", max), ("sign_entropy", min), ("mean_absolute", max), ("spectral_norm", max), ("growth", max),
    ):  # fmt: skip
        known = [row[key] for row in rows if key in row]
        if known:
            values[f"{key}/{over.__name__}"] = float(over(known))
            if key == "majority_share":
                values[f"{key}/mean"] = math.fsum(known) / len(known)
    return values


def _alarm(one: LinearMap, row: Mapping[str, Any]) -> Alarm:
    text = (
        f"{row['majority_share']:.0%} of the tokens lie on one side of the principal direction of {one.path}, "
        f"{row['deviation']:.0f} times the scatter of this run's own past above it."
    )
    return Alarm("alignment", text, one.path)


def _shift(one: LinearMap, row: Mapping[str, Any]) -> Alarm:
    text = f"The alignment of {one.path} stays at {row['majority_share']:.0%}: this is taken as its level from now on."
    return Alarm("level shift", text, one.path)
