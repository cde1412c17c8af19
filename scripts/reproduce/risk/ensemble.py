"""Train many learning rates and seeds of one network at once, as one model with a leading axis.

The weights of all runs are the rows of one matrix, so that the optimizer is a few operations on that matrix. Runs do not touch
each other: a run that is not finite leaves the others as they are. tests/reproduce holds a run to torch.optim and a plain loop.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy
from torch.optim._muon import _zeropower_via_newtonschulz as newton_schulz

#: A run has exploded at a step with a loss or a gradient norm above these (the paper's label), or without a finite one.
MOST_LOSS, MOST_NORM = 50.0, 500.0
#: Share of the steps at the end whose mean loss is the final loss.
TAIL = 0.1
#: torch.optim.Muon's own.
_MUON = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}
_MUON_MOMENTUM = 0.95


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, but for the learning rate and the seed.

    Attributes:
        steps, warmup, schedule: linear warm-up, then "constant", or "cosine" to zero.
        optimizer: "adamw", or "muon" (on the matrices of the blocks, AdamW on the rest, as `hf_rksp.profile.directions.muon`).
        beta2, decay: of AdamW. Decay leaves out vectors, as Trainer does.
        clip: largest gradient norm; ``None`` for none.
        dtype: "float32", or "bfloat16" for autocast.
    """

    steps: int
    warmup: int
    schedule: str = "constant"
    optimizer: str = "adamw"
    beta2: float = 0.999
    decay: float = 0.01
    clip: float | None = None
    dtype: str = "float32"

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step``, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


@dataclass
class Runs:
    """What is kept of each run: the loss and the gradient norm (before clipping) of every step, shape ``(steps, runs)``.

    ``weights`` are the trainable weights at the end, by name, with the runs in front.
    """

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, points: int = 25) -> list[dict[str, Any]]:
        """Plain numbers per run; what is not finite is ``None``."""
        losses, norms = torch.stack(self.losses), torch.stack(self.norms)
        steps = len(losses)
        tail = max(round(TAIL * steps), 1)
        beyond = ~((losses <= MOST_LOSS) & (norms <= MOST_NORM))
        every = max(steps // points, 1)
        rows = []
        for run in range(losses.shape[1]):
            lost = beyond[:, run].nonzero()
            curve = losses[: steps // every * every, run].reshape(-1, every).mean(1)
            rows.append(
                {
                    "first": _number(losses[0, run]),
                    "final": _number(losses[-tail:, run].mean()),
                    "exploded": int(lost[0]) if len(lost) else None,
                    "max_loss": _number(losses[:, run].max()),
                    "max_norm": _number(norms[:, run].max()),
                    "curve": [_number(value) for value in curve],
                }
            )
        return rows


def _number(value: Tensor) -> float | None:
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def train(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    batches: Callable[[int], tuple[Tensor, Tensor]],
    recipe: Recipe,
    objective: str = "causal",
) -> Runs:
    """Train ``len(models)`` runs of one architecture side by side.

    Args:
        models: one per run; they are not changed, and runs may share one. Weights that need no gradient are those of the first.
        rates: peak learning rate per run.
        batches: step -> token ids and labels, shape ``(runs, sequences, length)`` each.
        recipe: see `Recipe`.
        objective: "causal": labels are the ids, and each predicts the next. "masked": labels stand where they are asked for.
            "classification": labels of shape ``(runs, sequences)``.
    """
    first = models[0]
    names = [name for name, p in first.named_parameters() if p.requires_grad]
    flat = torch.stack([torch.cat([p.detach().float().reshape(-1) for p in _trainable(model)]) for model in models])
    shapes = [p.shape for p in _trainable(first)]
    sizes = [shape.numel() for shape in shapes]
    fixed = {name: p.detach() for name, p in first.named_parameters() if not p.requires_grad} | dict(
        first.named_buffers()
    )
    loss = _loss(first, fixed, batches(0)[0].shape[-1], recipe.dtype, objective)
    lr = torch.tensor(rates)[:, None]
    decayed = torch.cat([torch.full((shape.numel(),), float(len(shape) > 1)) for shape in shapes])
    adam = _Adam(flat, recipe)
    muon = _Muon(first, names, shapes, len(models)) if recipe.optimizer == "muon" else None
    runs = Runs()
    # Views of the one matrix that is updated in place.
    weights = {
        name: part.view(len(models), *shape)
        for name, part, shape in zip(names, flat.split(sizes, 1), shapes, strict=True)
    }
    for step in range(recipe.steps):
        ids, labels = batches(step)
        gradients, values = loss(weights, ids, labels)
        gradient = torch.cat([gradients[name].reshape(len(models), -1) for name in names], 1)
        norms = gradient.norm(dim=1)
        runs.losses.append(values.detach())
        runs.norms.append(norms)
        if recipe.clip is not None:
            gradient *= (recipe.clip / (norms + 1e-6)).clamp(max=1.0)[:, None]
        update = adam.update(gradient)
        if muon is not None:
            muon.replace(update, gradient, sizes)
        now = lr * recipe.rate(step)
        if recipe.decay:
            flat -= now * recipe.decay * decayed * flat
        flat -= now * update
    runs.weights = weights
    return runs


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _loss(model: nn.Module, fixed: dict[str, Tensor], length: int, dtype: str, objective: str) -> Callable[..., Any]:
    """Gradients and losses of all runs: mappings of weights with a leading axis, ids and labels with one."""
    # Masks that are made inside the model look at the values of a batch, which vmap cannot do.
    forbidden = torch.full((length, length), -1e9).triu(1)
    mask = torch.zeros_like(forbidden)[None, None] if both_ways(model) else forbidden[None, None]
    positions = torch.arange(length)[None]
    low = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def one(weights: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        given = {
            "attention_mask": mask.expand(len(ids), 1, length, length),
            "position_ids": positions,
        } | ({} if both_ways(model) else {"use_cache": False})
        with low:
            logits = functional_call(model, {**fixed, **weights}, (ids,), given).logits.float()
        if objective == "classification":
            return cross_entropy(logits, labels)
        if objective == "masked":
            return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        # A mean over what is asked: each run asks equally often.
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    return vmap(grad_and_value(one))


def both_ways(model: nn.Module) -> bool:
    """Whether attention sees later tokens too, as in an encoder."""
    return "Bert" in str(getattr(model.config, "architectures", None) or type(model).__name__)


class _Adam:
    """AdamW's update without its learning rate and decay, as torch.optim.AdamW makes it."""

    def __init__(self, flat: Tensor, recipe: Recipe) -> None:
        self.beta1, self.beta2, self.eps, self.step = 0.9, recipe.beta2, 1e-8, 0
        self.m, self.v = torch.zeros_like(flat), torch.zeros_like(flat)

    def update(self, gradient: Tensor) -> Tensor:
        self.step += 1
        self.m.lerp_(gradient, 1 - self.beta1)
        self.v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = self.v.sqrt().div_(math.sqrt(1 - self.beta2**self.step)).add_(self.eps)
        return self.m / root / (1 - self.beta1**self.step)


class _Muon:
    """torch.optim.Muon's update (Nesterov momentum, ``match_rms_adamw``) for the matrices of the blocks."""

    def __init__(self, model: nn.Module, names: Sequence[str], shapes: Sequence[torch.Size], runs: int) -> None:
        outer = {
            name + ".weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) or module is model.get_output_embeddings()
        }
        self.matrices = {
            place: torch.zeros(runs, *shape)
            for place, (name, shape) in enumerate(zip(names, shapes, strict=True))
            if len(shape) == 2 and name not in outer
        }
        self.shapes = shapes

    def replace(self, update: Tensor, gradient: Tensor, sizes: Sequence[int]) -> None:
        """Write the updates of the matrices into ``update``."""
        updates, gradients = update.split(list(sizes), 1), gradient.split(list(sizes), 1)
        for place, momentum in self.matrices.items():
            g = gradients[place].view_as(momentum)
            momentum.lerp_(g, 1 - _MUON_MOMENTUM)
            direction = torch.lerp(g, momentum, _MUON_MOMENTUM)
            orthogonal = vmap(lambda matrix: newton_schulz(matrix, **_MUON))(direction).float()  # type: ignore[arg-type]
            scale = 0.2 * math.sqrt(max(self.shapes[place]))
            updates[place].copy_((scale * orthogonal).reshape(len(momentum), -1))
