"""KSS at work in a training run: hooks on the residual blocks, a solve at the end of each forward pass.

The states of all layers are projected, their r x r sums are added up over the processes, and each small eigenproblem
gives the gradient of the penalty at those sums. From there the two schedules part: "paper" makes a term of the loss of it,
"balanced" adds the gradient at the hidden states in the backward pass, sequence by sequence.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Stack, TrainingTap, Transition, find_stacks, token_mask
from hf_rksp.config import KSSConfig
from hf_rksp.errors import InputError
from hf_rksp.profile.gather import Key
from hf_rksp.spectral.shaping import (
    SolvedLayers,
    leading_directions,
    leading_directions_of_moments,
    project,
    projected_sums,
    projected_sums_of_moments,
    solve_layers,
    state_gradients,
)
from hf_rksp.training.distributed import sum_over_ranks, world_size
from hf_rksp.training.survey import Survey


@dataclass(frozen=True)
class _Surveyed:
    """What a block is shaped by in all passes of a surveyed step: directions of shape ``(d, r)``, and its spectrum."""

    directions: Tensor
    eigenvalues: Tensor
    penalty: Tensor
    gradient: Tensor


class SpectralShaper:
    """Context manager that applies KSS to every training forward pass of a model while it is open.

    With Trainer, `RKSPTrainer` does all of this. In a loop of your own::

        with SpectralShaper(model, KSSConfig()) as kss:
            for batch in loader:
                loss = model(**batch).loss + kss.term()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                kss.step()

    With gradient accumulation the operator is that of each microbatch, unless the step is surveyed first (`survey`).

    All processes have to make the same forward passes. Every draw (directions, layers) is seeded by the number of the
    step, so that processes agree and a resumed run draws what the uninterrupted one drew.

    Args:
        model: the module itself, before or after DDP, FSDP2, DeepSpeed or ``torch.compile`` wrapped it; PEFT included.
        config: see `KSSConfig`.
        blocks: path(s) of the list(s) of residual blocks; found without help in transformers models.

    Raises:
        CaptureError, InputError: no residual blocks, or a rank above their width (from the first forward pass).
    """

    #: Relative excess over the threshold from which on the balanced schedule acts with its full weight.
    full_strength = 0.5

    def __init__(self, model: nn.Module, config: KSSConfig | None = None, blocks: str | Sequence[str] | None = None):
        self.config = config or KSSConfig()
        self.model, self.stacks = model, find_stacks(model, blocks)
        self.steps = 0
        #: Of the batch, what the model itself is not given: labels that a loss of one's own takes out tell the padding too.
        self.unseen: Mapping[str, Any] = {}
        self._surveyed: dict[Key, _Surveyed] = {}
        self._passes = 1
        self._dropped = 0
        self._lost: Tensor | int = 0
        self._warned = False
        self._tap = TrainingTap(model, self.stacks, self._finish)
        self._term: Tensor | None = None
        self._seen: dict[str, list[float]] = {}

    def __enter__(self) -> SpectralShaper:
        self._tap.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tap.__exit__(kind, error, trace)
        self._term = None

    @property
    def active(self) -> bool:
        """Whether KSS acts in the running step."""
        return self.config.weight > 0 and self.steps % self.config.every == 0

    @property
    def has_term(self) -> bool:
        """Whether the schedule adds to the loss; the balanced one acts in the backward pass alone."""
        return self.config.schedule == "paper"

    @property
    def dropped(self) -> int:
        """Terms (a layer in a step) and gradients (a sequence in a layer) left out so far because they were not finite."""
        return self._dropped + int(self._lost)

    def term(self) -> Tensor:
        """What has to be added to the loss of the last forward pass: ``weight * mean over layers of L_KSS`` (Eq. 15).

        Its gradient is that of the penalty on the tokens of all processes, for gradients that are averaged over processes
        as DDP, FSDP and DeepSpeed do. It is 0 in the balanced schedule, which acts in the backward pass by itself. Call it
        once a forward pass; with gradient accumulation divide it by the number of accumulated batches, which in a surveyed step
        has to be the number of passes of the survey.
        """
        term, self._term = self._term, None
        return torch.zeros(()) if term is None else term

    def step(self) -> None:
        """Say that the optimizer has made a step."""
        self.steps += 1
        self._surveyed, self._passes = {}, 1

    @contextlib.contextmanager
    def survey(self) -> Iterator[Survey]:
        """Measure the batches of a whole step together, before they are trained on one by one::

            with kss.survey():
                for batch in microbatches:
                    model(**batch)

        The step then has the operator of all of them, as one large batch would have. It costs a forward pass for each, and float64
        moments of 24 d^2 bytes for each layer. Inside there are no gradients; afterwards the random state is as before, so that the
        training passes draw the same dropout. The training passes have to be those of the survey: `term` counts on it.
        Where KSS does not act in the step, ``active`` is false, and the survey may be left out.

        Raises:
            CaptureError: a block runs several times in one forward pass.
        """
        self._surveyed, self._passes = {}, 1
        survey = Survey(self.model, self.stacks)
        with survey:
            yield survey
        if not (self.active and survey.moments):
            return
        generator = self._generator()
        kept = list(survey.moments)
        chosen = [kept[i] for i in self._positions(len(kept), generator)]
        self._passes = survey.passes
        for stack in self.stacks:
            keys = [key for key in chosen if key[0] == stack.path]
            moments = [survey.moments[key] for key in keys]
            if not moments:
                continue
            self._check_rank(stack, moments[0].dim)
            for layer in moments:
                if world_size() > 1:
                    layer.all_reduce()
            directions = leading_directions_of_moments(moments, self.config.rank, generator, self.config.centred)
            sums = [projected_sums_of_moments(m, basis) for m, basis in zip(moments, directions, strict=True)]
            solved = self._solve(torch.stack(sums))
            parts = zip(directions, solved.eigenvalues, solved.penalties, solved.gradients, strict=True)
            self._surveyed |= {key: _Surveyed(*part) for key, part in zip(keys, parts, strict=True)}

    def pop_logs(self) -> dict[str, float]:
        """Means since the last call, under the keys ``kss/...``; ``kss/dropped`` counts on, and is there at every call."""
        logs = {name: sum(values) / len(values) for name, values in self._seen.items() if values}
        if "kss/spectral_radius/max" in logs:
            logs["kss/spectral_radius/max"] = max(self._seen["kss/spectral_radius/max"])
        self._seen = {}
        return logs | {"kss/dropped": float(self.dropped)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers."""
        return {"steps": self.steps, "dropped": self.dropped, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps, self._dropped, self._lost = int(state["steps"]), int(state["dropped"]), 0
        self._seen = {name: list(values) for name, values in state["seen"].items()}

    def _finish(self, seen: list[Transition], batch: Mapping[str, Any]) -> None:
        self._term = None
        if not (self.active and seen):
            return
        batch = {**self.unseen, **batch}
        generator = self._generator()
        chosen = [t for t in seen if _key(t) in self._surveyed] if self._surveyed else self._draw(seen, generator)
        terms = []
        with torch.autocast(seen[0].x.device.type, enabled=False):
            for stack in self.stacks:
                stream = [transition for transition in seen if transition.stack is stack]
                layers = [transition for transition in stream if transition in chosen]
                if layers:
                    terms.append(self._shape(layers, stream[-1], batch, generator))
        if self.has_term and terms:
            self._term = self.config.weight / (len(self._surveyed) or len(chosen)) * torch.stack(terms).sum()

    def _generator(self) -> torch.Generator:
        """One of its own: the same numbers on every process and after a restart, and the run's are not touched.

        Accumulated batches of one step share the draw.
        """
        return torch.Generator().manual_seed(((self.config.seed << 40) + self.steps) % 2**63)

    def _share(self, layer: Transition) -> float:
        """Of the weight, what this block gets."""
        first = layer.block.index == 0 and len(layer.stack.blocks) > 1
        return self.config.first_block_weight if first else 1.0

    def _strength(self, layer: Transition, radius: float) -> float:
        """Share of the task's gradient that the balanced schedule adds at a block of this spectral radius."""
        strength = (radius / self.config.upper_threshold - 1) / self.full_strength
        if not strength > 0:  # NaN too, of which min() would make 1
            return 0.0
        return min(1.0, strength) * self._share(layer) * self.config.weight

    def _positions(self, layers: int, generator: torch.Generator) -> list[int]:
        count = max(1, round(self.config.layer_fraction * layers))
        return sorted(torch.randperm(layers, generator=generator)[:count].tolist())

    def _draw(self, seen: list[Transition], generator: torch.Generator) -> list[Transition]:
        return [seen[i] for i in self._positions(len(seen), generator)]

    def _shape(
        self, layers: list[Transition], last: Transition, batch: Mapping[str, Any], generator: torch.Generator
    ) -> Tensor:
        """Measure the chosen layers of one stack and let the schedule act on them; the sum of their penalties."""
        config, stack = self.config, layers[0].stack
        self._check_rank(stack, layers[0].x.shape[-1])
        mask = token_mask(batch, stack, layers[0].x)
        weights = None if mask is None else mask.reshape(-1, 1)
        surveyed = [self._surveyed[_key(layer)] for layer in layers] if self._surveyed else []
        with torch.set_grad_enabled(self.has_term):
            states = [(layer.x.flatten(0, -2), layer.y.flatten(0, -2)) for layer in layers]
            if surveyed:
                dtype = torch.promote_types(layers[0].x.dtype, torch.float32)
                directions = torch.stack([found.directions for found in surveyed]).to(dtype)
            else:
                directions = leading_directions(
                    [x.detach() for x, _ in states], config.rank, generator, config.centred, weights, sum_over_ranks
                )
            projected = [
                (project(x, basis, weights), project(y, basis, weights))
                for (x, y), basis in zip(states, directions, strict=True)
            ]
            sums = [projected_sums(p, q, weights) for p, q in projected]
        if surveyed:
            parts = ([getattr(found, part) for found in surveyed] for part in ("eigenvalues", "penalty", "gradient"))
            solved = SolvedLayers(*map(torch.stack, parts), dropped=0)
        else:
            solved = self._solve(sum_over_ranks(torch.stack(sums).detach()))
        if not self.has_term:
            self._push(layers, last, directions, projected, weights, solved)
            return solved.penalties.sum()
        shares = solved.penalties.new_tensor([self._share(layer) for layer in layers])
        # The gradient at the sums of all processes is known, so that no collective has to run in the backward pass.
        # Gradients are averaged over the processes and over the passes of a surveyed step afterwards, hence the factor.
        total = (shares * solved.penalties).sum().to(sums[0])
        for own, gradient in zip(sums, (shares[:, None] * solved.gradients).to(sums[0]), strict=True):
            if gradient.any():  # of a layer that was dropped the sums may be NaN, and 0 times NaN is NaN
                total = total + ((own - own.detach()) * gradient).sum() * world_size() * self._passes
        return total

    def _check_rank(self, stack: Stack, width: int) -> None:
        if self.config.rank > width:
            raise InputError(
                f"rank={self.config.rank}: the states of {stack.path} have {width} dimensions; pass {width} or less"
            )

    def _solve(self, sums: Tensor) -> SolvedLayers:
        """Solve the sums of all processes, and note what was found."""
        sums = sums.cpu()
        self._check_tokens(float(sums[:, 0].max()))
        solved = solve_layers(sums, self.config)
        self._note(solved)
        return solved

    def _check_tokens(self, tokens: float) -> None:
        if 0 < tokens < 2 * self.config.rank and not self._warned:
            self._warned = True
            warnings.warn(
                f"KSS is left out of batches like this one: {tokens:.0f} tokens do not determine an operator of rank "
                f"{self.config.rank}. Use batches of {2 * self.config.rank} tokens or more, or kss_rank={int(tokens // 2)}",
                stacklevel=2,
            )

    def _note(self, solved: SolvedLayers) -> None:
        self._dropped += solved.dropped
        moduli = solved.eigenvalues.abs()
        finite = moduli[~moduli.isnan().any(-1)]
        if len(finite):
            self._log("kss/loss", float(solved.penalties.sum()) / len(finite))
            self._log("kss/spectral_radius/max", float(finite.max()))
            self._log("kss/layers_above", float((finite.amax(-1) > self.config.upper_threshold).double().mean()))

    def _log(self, name: str, value: float) -> None:
        self._seen.setdefault(name, []).append(value)

    def _push(
        self,
        layers: list[Transition],
        last: Transition,
        directions: Tensor,
        projected: list[tuple[Tensor, Tensor]],
        weights: Tensor | None,
        solved: SolvedLayers,
    ) -> None:
        """Set what the backward pass adds at the states of the layers that are above the threshold.

        Each sequence's gradient of the penalty is scaled to ``weight`` times that sequence's gradient of the task at the end
        of the stream, to which this stream has added nothing yet. That is the same however sequences are spread over
        microbatches and processes and however the loss is scaled, and one bad sequence does not outweigh the rest.
        """
        reference: list[Tensor] = []
        radii = solved.eigenvalues.abs().amax(-1)
        for i, layer in enumerate(layers):
            share = self._strength(layer, float(radii[i]))
            if not share:
                continue
            at_p, at_q = state_gradients(*projected[i], solved.gradients[i], weights)
            layer.at_x = functools.partial(self._add, at_p, directions[i], share, reference)
            layer.at_y = functools.partial(self._add, at_q, directions[i], share, reference)
        own = last.at_y

        def take_reference(gradient: Tensor) -> Tensor | None:
            reference.append(_size(gradient))
            return own and own(gradient)

        last.at_y = take_reference

    def _add(
        self, projected: Tensor, basis: Tensor, share: float, reference: list[Tensor], gradient: Tensor
    ) -> Tensor | None:
        """``gradient`` plus the penalty's, scaled for each sequence; what is not finite is left out and counted."""
        if not reference:  # the end of the stream got no gradient: it is frozen, or the loss does not see it
            return None
        projected = projected.reshape(*gradient.shape[:-1], -1)
        size = _size(projected)
        scale = torch.where(size > 0, share * reference[0] / size, 0.0)
        good = scale.isfinite() & size.isfinite()
        self._lost = self._lost + (~good).sum()
        scale = torch.where(good, scale, 0.0).reshape(-1, *[1] * (gradient.ndim - 1))
        added = torch.where(scale > 0, scale * projected, 0.0) @ basis.mT
        return gradient + added.to(gradient.dtype)


def _key(transition: Transition) -> Key:
    return transition.stack.path, transition.block.index


def _size(states: Tensor) -> Tensor:
    """Norm of each sequence of ``(batch, tokens, ...)``, in float32 at least."""
    return torch.linalg.vector_norm(states.flatten(1), dim=1, dtype=torch.promote_types(states.dtype, torch.float32))
