"""The strongest published rivals of Spectral Alignment: the change of queries and keys, and the largest attention logit.

Effective rank of the change of queries times keys: arXiv:2606.28116. Largest logit: Wortsman et al., arXiv:2309.14322.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from hf_rksp.baseline import Baseline
from hf_rksp.capture.attention import AttentionLogits
from hf_rksp.capture.linears import QueryKey, find_linears, query_key_pairs
from hf_rksp.config import AttentionConfig
from hf_rksp.quantities import ATTENTION
from hf_rksp.ranks import current_ranks
from hf_rksp.spectral.query_key import change_gram, effective_rank_of_grams
from hf_rksp.training.aside import Aside
from hf_rksp.training.host import to_host
from hf_rksp.training.monitors.base import Alarm, Measuring, Reading, Regular, none
from hf_rksp.training.watch import Watch

#: How the monitor is switched off, for its warnings.
OFF = "attention_every=0 switches the monitor off"
#: Series are compared in powers of two; less scatter than this is none.
_FLOOR = 0.05
_NOTHING = (
    "queries and keys were not found as maps of their own, or the configuration does not give the number of heads"
)


class AttentionMonitor(Regular):
    """Follows how queries and keys change from reading to reading, and the largest attention logit of the training batch.

    It keeps a copy of the weights of queries and keys of the last reading: ``2 d^2`` numbers per block. The copies are not part of
    a checkpoint: the first reading after a resumption has no change. Nothing of the run changes.

    Args:
        config: see `AttentionConfig`.

    Attributes:
        pairs: what is watched, once the run has begun.
        aside: counts what could not be read, and says why.
    """

    name = "attention"
    quantities = ATTENTION
    config: AttentionConfig

    def __init__(self, config: AttentionConfig | None = None) -> None:
        self.config = config or AttentionConfig(every=10)
        super().__init__(Aside("The attention monitor", "attention/skipped", OFF))
        self.pairs: list[QueryKey] = []

    def attach(self, watch: Watch) -> None:
        """Find queries and keys; what an earlier run has left is forgotten."""
        super().attach(watch)
        config = getattr(watch.model, "config", None)
        self.pairs = query_key_pairs(find_linears(watch.stacks, config), config)
        if not self.pairs:
            self.aside("queries and keys", _NOTHING, watch.layers)
        self._before: list[tuple[Tensor, Tensor] | None] = [None] * len(self.pairs)
        self._found: list[Tensor | None] = [None] * len(self.pairs)
        #: The change of the product in each layer, the norm of the change, the logit.
        self._baseline = Baseline(
            len(self.pairs) + 2, _FLOOR, self.config.limit, window=self.config.window, dwell=self.config.dwell
        )
        self._logits: Tensor | None = None
        self._seeing = contextlib.ExitStack()

    def step_begin(self, step: int, main_process: bool) -> Measuring:
        """Compare queries and keys with those of the last reading."""
        self._logits = None
        changes: dict[int, tuple[Tensor, Tensor]] = {}
        for place, pair in enumerate(self.pairs):
            try:
                found = self._changed(place, pair)
            except Exception as error:
                found = None
                self.aside(f"layer {pair.query.path}", error)
            if found is not None:
                changes[place] = found
        self._found = self._ranked(changes)
        return none()

    def _ranked(self, changes: Mapping[int, tuple[Tensor, Tensor]]) -> list[Tensor | None]:
        """For each layer the smallest and the mean effective rank over its heads, and the squared norm of its change.

        Layers whose heads have one size share a decomposition.
        """
        found: list[Tensor | None] = [None] * len(self.pairs)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, (gram, _) in changes.items():
            groups.setdefault((gram.shape[-1], gram.dtype, gram.device), []).append(place)
        for places in groups.values():
            grams = [changes[place][0] for place in places]
            ranks = effective_rank_of_grams(torch.cat(grams)).split([len(gram) for gram in grams])
            for place, one in zip(places, ranks, strict=True):
                found[place] = torch.stack([one.amin(), one.mean(), changes[place][1].double()])
        return found

    def _changed(self, place: int, pair: QueryKey) -> tuple[Tensor, Tensor] | None:
        """`change_gram` of the heads, and the squared norm of the change."""
        with torch.no_grad():
            query, key = pair.by_head()
            before, self._before[place] = self._before[place], (query, key)
            if before is None:
                return None
            changes = query - before[0], key - before[1]
            norm = changes[0].square().sum() + changes[1].square().sum() * (pair.key_heads / pair.heads)
            return change_gram(*before, *changes), norm

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """See the logits of the pass that begins."""
        self._seeing.close()
        mask = batch.get("attention_mask")
        padded = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._mode = self._seeing.enter_context(AttentionLogits(padded))

    def pass_end(self, batch: Mapping[str, Any]) -> None:
        """The pass is over."""
        self._seeing.close()
        seen = self._mode.on_device
        if self._mode.unread is not None:
            self.aside("attention logits", self._mode.unread)
        elif seen is not None:
            self._logits = seen if self._logits is None else torch.maximum(self._logits, seen.to(self._logits.device))

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """The reading of the step; the logit is the largest over all processes."""
        return self._reading(step, main_process)

    def _reading(self, step: int, main_process: bool) -> Measuring:
        self._seeing.close()
        ranks = current_ranks()
        device = next(self.watch.model.parameters()).device
        mine = torch.zeros(ranks.world, dtype=torch.float64, device=device)
        mine[ranks.rank] = math.nan if self._logits is None else self._logits.to(device)
        (logits,) = yield [mine]
        if not main_process:
            return None
        unknown = torch.full((3,), math.nan, dtype=torch.float64, device=device)
        changes = [unknown if one is None else one.to(device) for one in self._found]
        host_logits, numbers = to_host(
            logits, torch.stack(changes) if changes else torch.zeros(0, 3).double().to(device)
        )
        found = numbers.numpy().reshape(-1, 3)
        logit = float(numpy.fmax.reduce(host_logits.numpy()))  # NaN if no process has seen one
        norm = float(numpy.sqrt(numpy.nansum(found[:, 2]))) if numpy.isfinite(found[:, 2]).any() else math.nan
        # A healthy effective rank may rise and not fall, so it is judged with the other sign.
        series = numpy.concatenate([-_log2(found[:, 0]), [_log2(norm), _log2(logit)]])
        judged = self._baseline.judge(series)
        rows = [
            {"stack": pair.query.stack.path, "index": pair.query.block.index, "path": pair.query.block.path}
            | ({"effective_rank": one[0], "update_norm": math.sqrt(one[2])} if math.isfinite(one[0]) else {})
            for pair, one in zip(self.pairs, found.tolist(), strict=True)
        ]
        known = found[numpy.isfinite(found[:, 0])]
        values = {"update_norm": norm, "largest_logit": logit}
        if len(known):
            values |= {"effective_rank/min": float(known[:, 0].min()), "effective_rank/mean": float(known[:, 1].mean())}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._log({f"attention/{name}": value for name, value in values.items()})
        alarms = [self._alarm(place, values, rows) for place in judged.began]
        return Reading(self.name, step, values, rows, {}, alarms)

    def _alarm(self, place: int, values: Mapping[str, float], rows: list[dict[str, Any]]) -> Alarm:
        if place < len(self.pairs):
            row = rows[place]
            text = f"The change of queries times keys in {row['path']} has an effective rank of {row['effective_rank']:.3g}"
            return Alarm("effective rank", f"{text}, far below this run's own past.", row["path"])
        name, words = (
            ("update_norm", "The change of queries and keys"),
            ("largest_logit", "The largest attention logit"),
        )[place - len(self.pairs)]
        return Alarm(name.replace("_", " "), f"{words} is {values[name]:.3g}, far above this run's own past.")

    def state_dict(self) -> dict[str, Any]:
        """The past of each series, and what waits for the next log."""
        return super().state_dict() | {"past": self._baseline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError: it is of a model with other layers.
        """
        self._baseline.load_state_dict(state["past"])
        super().load_state_dict(state)

    def close(self) -> None:
        """See no more logits, and let go of the copies."""
        self._seeing.close()
        self._before = [None] * len(self.pairs)


def _log2(value: Any) -> Any:
    """log2; NaN for what is not above zero."""
    found = numpy.asarray(value, dtype=float)
    return numpy.log2(numpy.where(found > 0, found, numpy.nan))
