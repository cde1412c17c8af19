"""Train many learning rates and seeds of one network at once, as one model with a leading axis.

The weights of all runs are the rows of one matrix, so that the optimizer is a few operations on that matrix. Runs do not touch
each other: a run that is not finite leaves the others as they are. tests/reproduce holds a run to torch.optim and a plain loop.

A step reads nothing from the host but its batch. On a CUDA device it is therefore captured once, as a graph, and replayed.
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
_SGD_MOMENTUM = 0.9
_BETA1, _EPS = 0.9, 1e-8
#: Steps that run before the step is captured: libraries allocate in the first ones.
_EAGER = 3

Batches = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, but for the learning rate and the seed.

    Attributes:
        steps, warmup, schedule: linear warm-up, then "constant", or "cosine" to zero; "range" rises from 2^-13 of the peak to the
            peak, by the same factor at each step, and has no warm-up.
        optimizer: "adamw", "muon" (on the matrices of the blocks, AdamW on the rest, as `hf_rksp.profile.directions.muon`), or
            "sgd" with momentum .9.
        beta2: of AdamW.
        decay: decoupled weight decay of AdamW, which leaves out vectors as Trainer does; with "sgd" that of torch.optim.SGD, which
            adds it to the gradient.
        clip: largest gradient norm; ``None`` for none.
        dtype: "float32", or "bfloat16" for autocast.
    """

    steps: int
    warmup: int
    schedule: str = "constant"
    optimizer: str = "adamw"
    beta2: float | None = 0.999
    decay: float = 0.01
    clip: float | None = None
    dtype: str = "float32"

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at ``step``, from 0."""
        if self.schedule == "range":
            return float(2.0 ** (-13 * (1 - step / (self.steps - 1))))
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


@dataclass
class Runs:
    """What is kept of each run.

    Attributes:
        losses, norms: loss and gradient norm (before clipping) of every step, shape ``(steps, runs)``.
        before, after: mean loss on the held-out batches, shape ``(runs,)``; ``None`` if there are none.
        weights: the trainable weights at the end, by name, with the runs in front.
    """

    losses: Tensor
    norms: Tensor
    before: Tensor | None = None
    after: Tensor | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, points: int = 25) -> list[dict[str, Any]]:
        """Plain numbers per run; what is not finite is ``None``."""
        losses, norms = self.losses, self.norms
        steps = len(losses)
        tail = max(round(TAIL * steps), 1)
        beyond = ~((losses <= MOST_LOSS) & (norms <= MOST_NORM))
        every = max(steps // points, 1)
        rows = []
        for run in range(losses.shape[1]):
            lost = beyond[:, run].nonzero()
            curve = losses[: steps // every * every, run].reshape(-1, every).mean(1)
            row = {
                "first": _number(losses[0, run]),
                "final": _number(losses[-tail:, run].mean()),
                "exploded": int(lost[0]) if len(lost) else None,
                "max_loss": _number(losses[:, run].max()),
                "max_norm": _number(norms[:, run].max()),
                "curve": [_number(value) for value in curve],
            }
            if self.before is not None and self.after is not None:
                row |= {"before": _number(self.before[run]), "after": _number(self.after[run])}
            rows.append(row)
        return rows


def _number(value: Tensor) -> float | None:
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def train(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    batches: Batches,
    recipe: Recipe,
    objective: str = "causal",
    device: torch.device | str = "cpu",
    held_out: Sequence[tuple[Tensor, Tensor]] = (),
) -> Runs:
    """Train ``len(models)`` runs of one architecture side by side.

    Args:
        models: one per run; they are not changed, and runs may share one. Weights that need no gradient are those of the first.
        rates: peak learning rate per run.
        batches: step -> inputs and labels, shape ``(runs, sequences, length)`` each, on the CPU. Inputs are token ids, or images
            of shape ``(runs, images, channels, height, width)``.
        recipe: see `Recipe`.
        objective: "causal": labels are the ids, and each predicts the next. "masked": labels stand where they are asked for.
            "classification": labels of shape ``(runs, sequences)``.
        device: where the runs are trained.
        held_out: batches, as those of ``batches``, on which the runs are compared with themselves before and after.
    """
    where, batch = torch.device(device), batches(0)
    with where:
        step = _Step(models, rates, batch, recipe, objective)
        before = step.mean_loss(held_out)
    side = torch.cuda.Stream() if where.type == "cuda" else None  # a capture refuses the default stream
    if side is not None:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _run(step, batches, recipe.steps, where)
    if side is not None:
        torch.cuda.current_stream().wait_stream(side)
    with where:
        after = step.mean_loss(held_out)
    return Runs(step.losses.cpu(), step.norms.cpu(), before, after, step.weights)


def _run(step: _Step, batches: Batches, steps: int, where: torch.device) -> None:
    """Take all steps; on a CUDA device, all but the first ones are replays of one that is captured."""
    advance: Callable[[], None] = step
    for number in range(steps):
        for here, there in zip((step.inputs, step.labels), batches(number), strict=True):
            here.copy_(there)
        if where.type == "cuda" and number == _EAGER:
            graph = torch.cuda.CUDAGraph()
            with where, torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                step()
            advance = graph.replay
        with where:
            advance()


class _Step:
    """One optimizer step of all runs, in place."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        rates: Sequence[float],
        batch: tuple[Tensor, Tensor],
        recipe: Recipe,
        objective: str,
    ) -> None:
        first, self.recipe = models[0], recipe
        self.names = [name for name, p in first.named_parameters() if p.requires_grad]
        shapes = [p.shape for p in _trainable(first)]
        self.sizes = [shape.numel() for shape in shapes]
        self.inputs, self.labels = (torch.empty_like(part, device=_device()) for part in batch)
        self.flat = torch.stack(
            [torch.cat([p.detach().float().reshape(-1) for p in _trainable(one)]) for one in models]
        )
        self.flat = self.flat.to(_device())
        # Views of the one matrix that is updated in place.
        self.weights = {
            name: part.view(len(models), *shape)
            for name, part, shape in zip(self.names, self.flat.split(self.sizes, 1), shapes, strict=True)
        }
        self.loss = _loss(first, recipe.dtype, objective, batch[0].shape[-1])
        self.lr = torch.tensor(rates)[:, None]
        self.number = torch.zeros(1, dtype=torch.long)
        self.schedule = torch.tensor([recipe.rate(step) for step in range(recipe.steps)])
        self.losses, self.norms = torch.zeros(recipe.steps, len(models)), torch.zeros(recipe.steps, len(models))
        decayed = torch.cat([torch.full((shape.numel(),), float(len(shape) > 1)) for shape in shapes])
        self.decay = recipe.decay * decayed if recipe.decay else None
        self.optimizer = _Sgd(self.flat) if recipe.optimizer == "sgd" else _Adam(self.flat, recipe)
        self.muon = _Muon(first, self.names, shapes, len(models)) if recipe.optimizer == "muon" else None

    def __call__(self) -> None:
        """Take one step."""
        gradients, values = self.loss(self.weights, self.inputs, self.labels)
        gradient = torch.cat([gradients[name].reshape(len(self.flat), -1) for name in self.names], 1)
        norms = gradient.norm(dim=1)
        self.losses.index_copy_(0, self.number, values.detach()[None])
        self.norms.index_copy_(0, self.number, norms[None])
        if self.recipe.clip is not None:
            gradient *= (self.recipe.clip / (norms + 1e-6)).clamp(max=1.0)[:, None]
        if self.decay is not None and self.recipe.optimizer == "sgd":
            gradient += self.decay * self.flat
        update = self.optimizer.update(gradient, self.number)
        if self.muon is not None:
            self.muon.replace(update, gradient, self.sizes)
        now = self.lr * self.schedule[self.number]
        if self.decay is not None and self.recipe.optimizer != "sgd":
            self.flat -= now * self.decay * self.flat
        self.flat -= now * update
        self.number += 1

    def mean_loss(self, batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Of each run at its present weights."""
        losses = [
            self.loss(self.weights, *(part.to(_device()) for part in batch))[1].detach().cpu() for batch in batches
        ]
        return torch.stack(losses).mean(0) if losses else None


def _device() -> torch.device:
    """Where new tensors are made."""
    return torch.get_default_device()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _loss(model: nn.Module, dtype: str, objective: str, length: int) -> Callable[..., Any]:
    """Gradients and losses of all runs: mappings of weights with a leading axis, inputs and labels with one."""
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad} | dict(
        model.named_buffers()
    )
    fixed = {name: value.to(_device()) for name, value in fixed.items()}
    given = _given(model, length)
    low: Callable[[], Any] = contextlib.nullcontext
    if dtype == "bfloat16":

        def low() -> Any:
            # The cache of casts would outlive a captured step.
            return torch.autocast(_device().type, dtype=torch.bfloat16, cache_enabled=False)

    def one(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        with low():
            logits = functional_call(model, {**fixed, **weights}, (inputs,), given(len(inputs))).logits.float()
        if objective == "classification":
            return cross_entropy(logits, labels)
        if objective == "masked":
            return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        # A mean over what is asked: each run asks equally often.
        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    return vmap(grad_and_value(one))


def _given(model: nn.Module, length: int) -> Callable[[int], dict[str, Any]]:
    """Number of sequences -> what a model is called with beside its inputs.

    Masks that are made inside a model look at the values of a batch, which vmap cannot do: attention gets them ready-made.
    """
    kind = kind_of(model)
    if kind == "image":
        return lambda sequences: {}
    if kind == "recurrent":
        return lambda sequences: {"use_cache": False}
    forbidden = torch.full((length, length), -1e9).triu(1)
    mask = torch.zeros_like(forbidden)[None, None] if kind == "encoder" else forbidden[None, None]
    positions = torch.arange(length)[None]
    cache = {} if kind == "encoder" else {"use_cache": False}
    return lambda sequences: {
        "attention_mask": mask.expand(sequences, 1, length, length),
        "position_ids": positions,
        **cache,
    }


def kind_of(model: nn.Module) -> str:
    """How a model is called: "causal", "encoder" (attention sees later tokens too), "recurrent" or "image"."""
    kinds = {"bert": "encoder", "mamba": "recurrent", "vit": "image"}
    return kinds.get(model.config.model_type, "causal")  # type: ignore[union-attr]


class _Adam:
    """AdamW's update without its learning rate and decay, as torch.optim.AdamW makes it."""

    def __init__(self, flat: Tensor, recipe: Recipe) -> None:
        self.beta2 = recipe.beta2 or 0.999
        self.m, self.v = torch.zeros_like(flat), torch.zeros_like(flat)
        counts = range(1, recipe.steps + 1)
        self.first = torch.tensor([1 - _BETA1**count for count in counts])
        self.second = torch.tensor([math.sqrt(1 - self.beta2**count) for count in counts])

    def update(self, gradient: Tensor, number: Tensor) -> Tensor:
        self.m.lerp_(gradient, 1 - _BETA1)
        self.v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = self.v.sqrt().div_(self.second[number]).add_(_EPS)
        return self.m / root / self.first[number]


class _Sgd:
    """The update of torch.optim.SGD with momentum."""

    def __init__(self, flat: Tensor) -> None:
        self.momentum = torch.zeros_like(flat)

    def update(self, gradient: Tensor, number: Tensor) -> Tensor:
        return self.momentum.mul_(_SGD_MOMENTUM).add_(gradient)


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
