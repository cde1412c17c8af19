"""Preconditioned curvature of a run: the largest eigenvalue, followed from reading to reading, and the curvature along the update.

Source: Cohen et al., arXiv:2207.14484 (operator and limit), arXiv:2606.16768 (warm start). The eigenvector ``u`` is kept as
``w = P^(-1/2) u``: ``P_t^(1/2) w`` of a later reading, made a unit vector, is where the search goes on, and no old P is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from hf_rksp.capture.calling import untouched
from hf_rksp.capture.hvp import Hessian, trainable
from hf_rksp.capture.shards import to_vector
from hf_rksp.config import CurvatureConfig
from hf_rksp.errors import InputError, NonFiniteError, RkspError
from hf_rksp.profile.gradients import model_loss
from hf_rksp.quantities import CURVATURE
from hf_rksp.ranks import agreeing, current_ranks
from hf_rksp.spectral.curvature import LargestEigenvalue, dot, largest_eigenvalue, power_iteration
from hf_rksp.training.aside import Aside
from hf_rksp.training.monitors.base import Alarm, Measuring, Reading, Regular
from hf_rksp.training.operator import Spread, preconditioned, require_readable
from hf_rksp.training.preconditioner import Preconditioner, largest_rate, read_preconditioner
from hf_rksp.training.watch import Watch

#: How the monitor is switched off, for its warnings.
OFF = "curvature_every=0 switches the monitor off"
#: A search that begins at a random vector takes up to so many times the products of one that goes on.
_COLD = 4
#: Relative residual at which a search ends early.
_TOLERANCE = 0.05
#: Products before which a search does not end: the last eigenvector has a small residual also if another one is the largest now.
_LEAST = 4
#: Share of noise in the start of a search that goes on.
_NOISE = 0.05
#: Vectors in the memory of a search.
_BASIS = 4


class CurvatureMonitor(Regular):
    """Follows the largest eigenvalue of the preconditioned Hessian, and the curvature along the update.

    A reading is made when the optimizer has made its step: P is that of the step, so the gradient of the step is in it, and the
    Hessian is that of the batch of the step at the new weights. The model is in evaluation mode for it; a loss divides by the batch
    alone. Nothing of the run changes. Between readings one vector of the size of the trainable weights is kept. It is not in a
    checkpoint: the first reading after a resumption searches anew, and agrees with that of an uninterrupted run as far as both
    have converged.

    It needs the optimizer, and a loss: that of the trainer (`RKSPTrainer`), or else the one that the model returns.

    Args:
        config: see `CurvatureConfig`.

    Attributes:
        aside: counts the readings that could not be made, and says why.
    """

    name = "curvature"
    quantities = CURVATURE
    config: CurvatureConfig

    def __init__(self, config: CurvatureConfig | None = None) -> None:
        self.config = config or CurvatureConfig(every=500)
        super().__init__(Aside("The curvature monitor", "curvature/skipped", OFF))
        self._flagged = self._calm = 0
        self._alarmed = False

    def attach(self, watch: Watch) -> None:
        """The run begins; what an earlier one has left is forgotten."""
        super().attach(watch)
        self._seen: Mapping[str, Any] | None = None
        self._first: Mapping[str, Any] | None = None
        self._kept: Tensor | None = None
        self._rate: float | None = None
        self._half = False
        self._flagged = self._calm = 0
        self._alarmed = False

    def pass_begin(self, batch: Mapping[str, Any]) -> None:
        """A pass over ``batch`` begins."""
        # Trainer divides by the labels of a whole step, of which this is one batch.
        self._seen = {
            name: value for name, value in self.watch.described(batch).items() if name != "num_items_in_batch"
        }
        self._rate = largest_rate(self.watch.optimizer)

    def step_end(self, step: int, main_process: bool) -> Measuring:
        """The reading of the step, of all processes together."""
        return self._reading(step, main_process)

    def _reading(self, step: int, main_process: bool) -> Measuring:
        try:
            values, more = self._measure()
            self._seen = None
        except Exception as error:  # every process has one, or none
            self._kept = None
            self.aside("a reading", error)
            self._log({})
            return None
        alarms = self._judge(values["ratio_momentum"])
        if not main_process:
            return None
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._log({f"curvature/{name}": value for name, value in values.items()})
        return Reading(self.name, step, values, (), more, alarms)
        yield []

    def _measure(self) -> tuple[dict[str, float], dict[str, Any]]:
        weights = trainable(self.watch.model)
        with agreeing(current_ranks()):
            require_readable(weights)
            if self.watch.optimizer is None:
                raise InputError("optimizer=None: pass it, as TrainingRun(optimizer=...)")
            batch = self._chosen()
        by = read_preconditioner(self.watch.optimizer, weights)
        spread = Spread(weights)
        with untouched(self.watch.model), spread.hessian(self.watch.model, lambda: self._loss(batch)) as hessian:
            self._require_precision(hessian)
            operator = preconditioned(hessian, weights, by.scale, spread)
            gradient = spread.mean(to_vector(hessian.gradient, weights, by.scale.dtype)).mul_(by.scale)
            hessian.gradient.clear()  # as large as the weights, as is every vector here
            try:
                along = _along(operator, gradient, spread)
                start, products = self._start(by, gradient, spread)
                del gradient
                found = self._search(operator, start, products, spread)
            except NonFiniteError:
                if spread.error is not None:
                    raise RkspError(spread.error) from None
                raise
            method, loss = hessian.method, hessian.loss
        self._kept = found.vector.mul_(by.scale)
        rate = by.lr if self._rate is None else self._rate
        values = {
            "lambda_max": found.value,
            "lambda_direction": along,
            "ratio_step": rate * found.value / by.one_step_limit,
            "ratio_momentum": rate * found.value / by.warm / by.momentum_limit,
            "ratio_direction": rate * along / by.one_step_limit,
            "residual": found.residual / abs(found.value) if found.value else math.nan,
            "left_out": spread.sum((by.scale == 0).sum()) / spread.sum(by.scale.new_tensor(len(by.scale))),
        }
        return values, {"products": found.products + 1, "method": method, "loss": loss}

    def _chosen(self) -> Mapping[str, Any]:
        """The batch of the reading, cut to the sequences that are asked for."""
        if self._first is not None:
            return self._first
        batch = self._seen if self.watch.batch is None else self.watch.batch
        if batch is None:
            raise InputError("no batch was seen: the loss does not call the model; pass loss= to TrainingRun")
        wanted = self.config.sequences
        sizes = {name: len(value) for name, value in batch.items() if isinstance(value, Tensor) and value.ndim}
        if wanted is not None and sizes:
            if len(set(sizes.values())) > 1:
                raise InputError(
                    f"curvature_sequences={wanted}: the tensors of the batch have {sizes} entries, so a part of it cannot be cut "
                    "out; leave curvature_sequences out"
                )
            batch = {name: value[:wanted] if name in sizes else value for name, value in batch.items()}
        if self.config.data == "first":
            self._first = batch
        return batch

    def _require_precision(self, hessian: Hessian) -> None:
        """Differences of gradients in half precision are noise.

        Raises:
            InputError: on every process, because all compute in one precision.
        """
        if hessian.method == "central_differences" and self._half:
            raise InputError(
                "the model computes in half precision, and part of its loss has no second derivative (FSDP2, FlashAttention, a "
                "fused kernel): differences of gradients would be noise"
            )

    def _loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Of a batch; notes whether products of matrices are in half precision."""
        linear = next((m for m in self.watch.model.modules() if isinstance(m, (torch.nn.Linear, Conv1D))), None)
        handle = None if linear is None else linear.register_forward_hook(self._note_precision)
        try:
            return self._task_loss(batch)
        finally:
            if handle is not None:
                handle.remove()

    def _note_precision(self, module: torch.nn.Module, args: Any, output: Tensor) -> None:
        self._half = output.dtype in (torch.float16, torch.bfloat16)

    def _task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        # Copies: a model or a loss may write into its inputs.
        inputs = {name: value.clone() if isinstance(value, Tensor) else value for name, value in batch.items()}
        return model_loss(self.watch.model, inputs) if self.watch.loss is None else self.watch.loss(inputs)

    def _start(self, by: Preconditioner, gradient: Tensor, spread: Spread) -> tuple[Tensor, int]:
        """Where the search begins, and products: at the last eigenvector, or else at the gradient and a random vector."""
        draw = torch.Generator(by.scale.device).manual_seed(spread.seed)
        noise = torch.randn(by.scale.shape, generator=draw, dtype=by.scale.dtype, device=by.scale.device)
        noise.mul_(by.scale > 0)
        square = spread.sum(dot(noise, noise))
        kept, self._kept = self._kept, None
        if kept is not None and len(kept) == len(by.scale):  # it is another vector once a weight was frozen or thawed
            kept.div_(by.scale).masked_fill_(by.scale == 0, 0.0)
            length = spread.sum(dot(kept, kept))
            if length > 0:
                # An eigenvector that has become the second one would otherwise be found again for ever.
                return kept.add_(noise, alpha=_NOISE * math.sqrt(length / square)), self.config.products
        size = math.sqrt(square / max(spread.sum(dot(gradient, gradient)), 1e-30))
        return gradient.mul_(size).add_(noise), _COLD * self.config.products

    def _search(
        self, operator: Callable[[Tensor], Tensor], start: Tensor, products: int, spread: Spread
    ) -> LargestEigenvalue:
        shared: dict[str, Any] = {
            "tolerance": _TOLERANCE,
            "max_products": products,
            "total": spread.total,
            "overwrite_start": True,
        }
        if self.config.method == "power":
            return power_iteration(operator, start, **shared)
        return largest_eigenvalue(operator, start, min_products=min(_LEAST, products), basis=_BASIS, **shared)

    def _judge(self, ratio: float) -> list[Alarm]:
        """An alarm when so many readings in a row were flagged; it has ended when as many were not."""
        if self.config.limit is None or not math.isfinite(ratio):  # neither healthy nor flagged
            return []
        above = ratio > self.config.limit
        self._flagged, self._calm = (self._flagged + 1, 0) if above else (0, self._calm + 1)
        if self._alarmed:
            self._alarmed = self._calm < self.config.dwell
            return []
        self._alarmed = self._flagged >= self.config.dwell
        text = (
            f"Learning rate times curvature is {ratio:.3g} times the stability limit of the optimizer, above {self.config.limit:g} "
            f"in {self.config.dwell} readings in a row."
        )
        return [Alarm("curvature", text)] if self._alarmed else []

    def state_dict(self) -> dict[str, Any]:
        """What waits for the next log, and where an alarm stands."""
        own = {"flagged": self._flagged, "calm": self._calm, "alarmed": self._alarmed}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._flagged, self._calm = int(state["flagged"]), int(state["calm"])
        self._alarmed = bool(state["alarmed"])
        super().load_state_dict(state)

    def close(self) -> None:
        """Let go of the batch and of the eigenvector."""
        self._seen = self._first = self._kept = None


def _along(operator: Callable[[Tensor], Tensor], gradient: Tensor, spread: Spread) -> float:
    """``D^T H D / D^T g`` with ``D = P^(-1) g``: the Rayleigh quotient of the operator at ``P^(-1/2) g``."""
    bent = operator(gradient)
    up, down = spread.total(torch.stack([dot(gradient, bent), dot(gradient, gradient)])).tolist()
    if not math.isfinite(up):
        raise NonFiniteError("the Hessian product along the update is not finite; check the loss and the weights")
    return up / down if down else math.nan
