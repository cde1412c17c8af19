"""What one step of training would do, measured without taking it. Facts alone, no verdict.

model + batches -> gradients -> direction of the optimizer -> for pairs of batches (A, B): slope, curvature and critical
learning rate of the loss on B along the direction from A -> relative change of the outputs of the blocks
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from tqdm import tqdm

from hf_rksp.capture import Stack, find_stacks
from hf_rksp.capture.hvp import Method, inner, trainable
from hf_rksp.capture.virtual_step import virtual_step
from hf_rksp.errors import CaptureError, InputError
from hf_rksp.profile.directions import Direction, OptimizerLike, Rule, averaged_adam, direction_of
from hf_rksp.profile.gradients import GradientProbe, Loss, measuring, model_loss, require_measurable
from hf_rksp.profile.line_search import CoordinateCheck, coordinate_check, first_crossing
from hf_rksp.ranks import Ranks, agreeing, current_ranks

#: Of the size of the trainable weights: a copy of them, the sum of gradients, a direction, a gradient, a product.
_VECTORS = 5


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of ``n`` values."""

    n: int
    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class PairMeasurement:
    """The loss on one batch along the direction that another batch gives: ``L_B(weights - lr D_A)``.

    Attributes:
        direction_batch, loss_batch: indexes of A and B.
        loss: ``L_B`` at the weights.
        direction_norm: ``||D_A||``.
        slope: ``g_B . D_A``, in loss per learning rate: a small step lowers the loss by ``lr * slope``.
        curvature: ``D_A . H_B D_A``, in loss per squared learning rate.
        quadratic_critical_lr: ``2 slope / curvature``: a larger step raises the quadratic model of the loss. ``None`` if slope or
            curvature is not above zero.
        critical_lr: first learning rate at which the loss itself rises (`first_crossing`, to 1/32); ``None`` if the slope is not
            above zero, or if the loss does not rise within 40 doublings.
        forwards: forward passes of the line search.
    """

    direction_batch: int
    loss_batch: int
    loss: float
    direction_norm: float
    slope: float
    curvature: float
    quadratic_critical_lr: float | None
    critical_lr: float | None
    forwards: int


@dataclass(frozen=True)
class StepCost:
    """Passes of one batch through the model, Hessian products (their passes are among the others), and wall-clock seconds."""

    forwards: int
    backwards: int
    products: int
    seconds: float


@dataclass(frozen=True)
class StepMeasurement:
    """One step of training at fixed weights, in plain numbers.

    Attributes:
        optimizer: of the directions, see `hf_rksp.profile.directions.direction_of`.
        weight_decay: of each parameter group. The directions leave it out: decoupled decay moves the weights by another ``-lr *
            decay * weights``.
        eps: limit of ``share_below_eps``; that of the optimizer where it has one.
        parameters: trainable entries.
        weight_rms: root mean square of the entries of a trainable matrix, the median over those that are not zero throughout;
            ``None`` if there is none.
        training: whether modules kept their own mode, dropout included; else all were in evaluation mode.
        first_step: learning rate of the virtual step before the measurement; ``None`` if there was none.
        losses: of each batch, in the unit of the loss.
        gradient_norms: Euclidean norm of the gradient of each batch, in loss per unit of weight.
        noise_scale: ``tr(Sigma) / |G|^2`` in batches; ``None`` if the batches show noise alone (`GradientProbe.noise_scale`).
        share_below_eps: share of the gradient entries of all batches with ``|g| < eps``.
        share_without_gradient: share of the trainable entries in tensors whose gradient is zero throughout in all batches. In
            LoRA these are the matrices A while B is zero; ``first_step`` measures after one step of B.
        pairs: see `PairMeasurement`.
        without_descent: pairs with a slope that is not above zero: any small step raises the loss on B.
        without_curvature: pairs with a slope above zero and a curvature that is not above zero.
        without_crossing: pairs with a slope above zero whose loss does not rise within 40 doublings.
        quadratic_critical_lr, critical_lr: over the pairs that have one; ``None`` if no pair has.
        curvature_method: how Hessian products were computed.
        coordinate_check: along the direction of the first pair, on its second batch; ``None`` if ``notes`` says why.
        notes: what could not be measured, and why.
        cost: of the whole measurement.
    """

    optimizer: str
    weight_decay: tuple[float, ...]
    eps: float
    parameters: int
    weight_rms: float | None
    training: bool
    first_step: float | None
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    noise_scale: float | None
    share_below_eps: float
    share_without_gradient: float
    pairs: tuple[PairMeasurement, ...]
    without_descent: int
    without_curvature: int
    without_crossing: int
    quadratic_critical_lr: Summary | None
    critical_lr: Summary | None
    curvature_method: str
    coordinate_check: CoordinateCheck | None
    notes: tuple[str, ...]
    cost: StepCost


def measure_step(
    model: nn.Module,
    loss: Loss | None,
    batches: Sequence[Any],
    *,
    optimizer: OptimizerLike = "adam",
    pairs: int = 4,
    eps: float | None = None,
    first_step: float | None = None,
    training: bool = False,
    blocks: str | Sequence[str] | None = None,
    method: Method | Literal["auto"] = "auto",
    shared: bool = False,
    progress: bool = True,
) -> StepMeasurement:
    """Measure the step that ``optimizer`` would take from the present weights.

    Model, gradients, optimizer and random state are untouched to the bit. Beside the model and the graph of a product, memory holds
    at most five vectors of the size of the trainable weights: a copy of them, the sum of gradients, a direction, a gradient, a
    product. With at least ``2 * pairs`` batches, no two pairs share a batch. With fewer, each batch gives the direction for the
    next one.

    Args:
        model: with float32 (or float64) trainable weights, before any engine wraps it.
        loss: ``(model, batch) -> tensor`` with one number, or ``None`` for the loss of the model's own output. It is called in
            the same random state each time, so that dropout does not change between two learning rates.
        batches: at least two, and at least ``pairs``; what ``loss`` takes, mappings with labels by default.
        optimizer: "adam", "adam_averaged", "sgd", "muon", a torch optimizer, several, or a rule: see
            `hf_rksp.profile.directions.direction_of`. Gradient clipping is not applied.
        pairs: pairs of batches (A, B).
        eps: see `direction_of`.
        first_step: take one virtual step of this learning rate along the direction of the mean gradient first.
        training: leave each module in its present mode. Untrained models with batch norms need it.
        blocks: path(s) of the list(s) of residual blocks, if the search for them fails.
        method: of Hessian products, see `hf_rksp.capture.hvp.hessian_product`.
        shared: the processes of `torch.distributed` part the pairs among themselves, and sum what belongs to all batches. Each
            calls this with the same model and the same batches, and all get the same measurement. ``loss`` must have no
            collective of its own (`hf_rksp.profile.together.can_share`).
        progress: show a progress bar on stderr.

    Raises:
        InputError: an argument is not as above.
        NonFiniteError: the loss or a gradient of a batch is not finite; the message has its index.
    """
    require_measurable(model, batches, _VECTORS)
    count = len(batches)
    if isinstance(pairs, bool) or not isinstance(pairs, int) or not 1 <= pairs <= count:
        raise InputError(
            f"pairs={pairs!r}: pass a whole number from 1 to the number of batches, {count}, or more batches"
        )
    if first_step is not None and not (math.isfinite(first_step) and first_step > 0):
        raise InputError(f"first_step={first_step!r}: pass a finite learning rate above zero, or None")
    direction = direction_of(model, optimizer, eps)
    started, notes = time.perf_counter(), []
    ranks = current_ranks() if shared else Ranks()
    chosen = [(2 * i, 2 * i + 1) if count >= 2 * pairs else (i, (i + 1) % count) for i in range(pairs)]
    own = chosen[ranks.rank :: ranks.world]
    mine = _batches_of(chosen, count, ranks)
    probe = GradientProbe(model, loss or model_loss, batches, direction.eps, method, ranks, mine)
    with contextlib.ExitStack() as context:
        context.enter_context(measuring(model, training))
        stacks: list[Stack] = []
        try:
            stacks = find_stacks(model, blocks, probe=functools.partial(probe.run, 0))
        except CaptureError as error:
            notes.append(f"No coordinate check: {error}")
        if first_step is not None:
            moved = _rule(direction, probe)(probe.mean_gradient())
            context.enter_context(virtual_step(model, moved, first_step))
            probe.forget()
        rule = _rule(direction, probe)
        measured: list[PairMeasurement] = []
        check = None
        with agreeing(ranks):
            quiet = not progress or ranks.rank > 0
            for a, b in tqdm(own, desc="measuring a step", unit="pair", disable=quiet, leave=False):
                along = rule(probe.gradient(a))
                near = next((pair.critical_lr for pair in reversed(measured) if pair.critical_lr), None)
                pair = _measure_pair(probe, a, b, along, near)
                measured.append(pair)
                if stacks and pair.direction_norm and (a, b) == chosen[0]:
                    check = coordinate_check(model, stacks, functools.partial(probe.run, b), along, _guess(pair))
        parts = ranks.gather((measured, check, probe.method))
        check, used = parts[0][1:]  # process 0 has the first pair
        measured = sorted((pair for part in parts for pair in part[0]), key=lambda pair: chosen.index(_indexes(pair)))
        notes += [
            f"The direction from batch {one.direction_batch} is zero." for one in measured if not one.direction_norm
        ]
        if stacks and measured[0].direction_norm and check is None:
            notes.append("No coordinate check: no residual block returned a state; name the list with blocks=.")
        probe.see_all()
        probe.put_together()
        counts = ranks.gather((probe.forwards, probe.backwards, probe.products))
        forwards, backwards, products = map(sum, zip(*counts, strict=True))
    return StepMeasurement(
        optimizer=direction.name,
        weight_decay=direction.weight_decay,
        eps=direction.eps,
        parameters=sum(probe.sizes.values()),
        weight_rms=weight_rms(model),
        training=training,
        first_step=first_step,
        losses=tuple(probe.losses[index] for index in range(count)),
        gradient_norms=probe.norms(),
        noise_scale=probe.noise_scale(),
        share_below_eps=probe.share_below_eps(),
        share_without_gradient=probe.share_without_gradient(),
        pairs=tuple(measured),
        without_descent=sum(pair.slope <= 0 for pair in measured),
        without_curvature=sum(pair.slope > 0 >= pair.curvature for pair in measured),
        without_crossing=sum(pair.slope > 0 and pair.critical_lr is None for pair in measured),
        quadratic_critical_lr=summarise(pair.quadratic_critical_lr for pair in measured),
        critical_lr=summarise(pair.critical_lr for pair in measured),
        curvature_method=used,
        coordinate_check=check,
        notes=tuple(notes),
        cost=StepCost(forwards, backwards, products, time.perf_counter() - started),
    )


def _batches_of(chosen: Sequence[tuple[int, int]], count: int, ranks: Ranks) -> set[int]:
    """Batches whose statistics this process takes: those of its pairs that no earlier pair has, and a part of the rest."""
    owner = {index: index % ranks.world for index in range(count)}
    for place, pair in reversed(list(enumerate(chosen))):
        owner |= dict.fromkeys(pair, place % ranks.world)
    return {index for index, rank in owner.items() if rank == ranks.rank}


def _indexes(pair: PairMeasurement) -> tuple[int, int]:
    return pair.direction_batch, pair.loss_batch


def weight_rms(model: nn.Module) -> float | None:
    """See `StepMeasurement`; stacks of matrices (fused experts) count as one."""
    matrices = [weight for weight in trainable(model).values() if weight.ndim > 1]
    found = [norm / math.sqrt(weight.numel()) for weight in matrices if (norm := float(weight.detach().norm()))]
    return statistics.median(found) if found else None


def summarise(values: Iterable[float | None]) -> Summary | None:
    """Median and quartiles (linear between order statistics) of the values that are there; ``None`` if there are none."""
    present = sorted(value for value in values if value is not None)
    if not present:
        return None
    low, middle, high = statistics.quantiles(present, method="inclusive") if len(present) > 1 else present * 3
    return Summary(len(present), middle, low, high)


def _rule(direction: Direction, probe: GradientProbe) -> Rule:
    return direction.rule or averaged_adam(probe.second_moment(), direction.eps)


def _measure_pair(
    probe: GradientProbe, a: int, b: int, along: dict[str, Tensor], near: float | None
) -> PairMeasurement:
    """One pair; ``near`` is the critical learning rate of an earlier one."""
    product = probe.product(b, along)
    slope, curvature = inner(product.gradient, along), inner(product.product, along)
    norm, loss = math.sqrt(inner(along, along)), product.loss
    del product
    quadratic = 2 * slope / curvature if slope > 0 and curvature > 0 else None
    pair = PairMeasurement(a, b, loss, norm, slope, curvature, quadratic, None, 0)
    if not slope > 0:
        return pair
    # Not product.loss: the attention kernel of a double backward rounds differently.
    start = probe.run(b)

    def rises(lr: float) -> bool:
        with virtual_step(probe.model, along, lr):
            return not probe.run(b) <= start  # NaN counts as a rise

    # From below, so that the crossing is the first. The grid is that of this pair: its result does not depend on the others.
    guess = _guess(pair)
    doublings = math.floor(math.log2(near / guess)) - 1 if near else -2 if quadratic else 0
    crossing = first_crossing(rises, guess * 2.0**doublings)
    return dataclasses.replace(pair, critical_lr=crossing.lr, forwards=crossing.evaluations + 1)


def _guess(pair: PairMeasurement) -> float:
    """A first guess. It scales as ``1 / D``, so that the scale of a direction scales the results and changes nothing else."""
    if pair.critical_lr or pair.quadratic_critical_lr:
        return pair.critical_lr or pair.quadratic_critical_lr or 0.0
    return abs(pair.loss) / abs(pair.slope) if pair.loss and pair.slope else 1 / pair.direction_norm
