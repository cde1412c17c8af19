"""KSS at work in a training run: hooks on the residual blocks, a solve at the end of each forward pass.

The states of all layers are projected, their r x r sums are added up over the processes, and each small eigenproblem
gives the gradient of the penalty at those sums. From there the two schedules part: "paper" makes a term of the loss of it,
"balanced" adds the gradient at the hidden states in the backward pass, sequence by sequence.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Layout, Layouts, Stack, TrainingTap, Transition, Unsettled, find_stacks
from hf_rksp.capture.agreement import agreed
from hf_rksp.config import KSSConfig
from hf_rksp.errors import CaptureError, InputError, RkspError
from hf_rksp.profile.gather import Key
from hf_rksp.ranks import sum_over_ranks, world_size
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
from hf_rksp.training.aside import Aside
from hf_rksp.training.extra_pass import settle
from hf_rksp.training.kss.accumulation import Survey
from hf_rksp.training.kss.streams import Stream, key_of, read_stream, readable_everywhere
from hf_rksp.training.kss.terms import Terms

#: How KSS is switched off, for its warnings.
_OFF = "kss=False (kss_weight=0) switches KSS off"
#: Why a step may go by unseen.
_NO_PASS = (
    "no forward pass of the model was seen in this step: it was compiled and run before KSS was there (torch.compile, "
    "model.compile()), or the loss calls parts of it instead of the model; compile it later, or call the model itself"
)
_NO_BLOCK = (
    "none of the residual blocks ran in training mode with gradients, where hooks see it: they were compiled and run before "
    "KSS was there, are in evaluation mode, or are checkpointed from outside"
)


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
        stacks: the blocks themselves, where they were found already.

    Attributes:
        aside: counts the layers that could not be read, and says why; a run is never ended after its first step.

    Raises:
        CaptureError, InputError: no residual blocks, or a rank above their width (from the forward passes of the first step).
            In `step`, after the first one: the term of the "paper" schedule was never added to a loss.
    """

    #: Relative excess over the threshold from which on the balanced schedule acts with its full weight.
    full_strength = 0.5

    def __init__(
        self,
        model: nn.Module,
        config: KSSConfig | None = None,
        blocks: str | Sequence[str] | None = None,
        stacks: Sequence[Stack] | None = None,
    ) -> None:
        self.config = config or KSSConfig()
        self.model, self.stacks = model, find_stacks(model, blocks) if stacks is None else stacks
        self.layouts = Layouts(model, self.stacks)
        self.aside = Aside("KSS", "kss/skipped", _OFF)
        self.steps = 0
        #: Of the batch, what the model itself is not given: labels that a loss of one's own takes out tell the padding too.
        self.unseen: Mapping[str, Any] = {}
        self._surveyed: dict[Key, _Surveyed] = {}
        self._passes = 1
        self._dropped = 0
        self._lost: Tensor | int = 0
        self._named = blocks is not None
        self._tap = TrainingTap(model, self.stacks, self._finish, self._refuse)
        self._terms = Terms(self.aside)
        self._seen: dict[str, list[float]] = {}
        self._refused: list[tuple[Block, CaptureError]] = []
        self._begin_run(opened=False)

    def _begin_run(self, opened: bool) -> None:
        self._opened = opened
        #: No optimizer step was made yet: settings that do not fit are refused, and later on stood aside for.
        self.first_step = True
        self._saw_pass = False
        self._refused = []
        self._terms.clear()

    def __enter__(self) -> SpectralShaper:
        self._begin_run(opened=True)
        self._tap.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tap.__exit__(kind, error, trace)
        self._begin_run(opened=False)

    @property
    def active(self) -> bool:
        """Whether KSS acts in the running step."""
        return self.config.weight > 0 and self.steps % self.config.every == 0

    @property
    def has_term(self) -> bool:
        """Whether the schedule adds to the loss; the balanced one acts in the backward pass alone."""
        return self.config.schedule == "paper"

    @property
    def pending(self) -> bool:
        """Whether a forward pass has left a term for the loss."""
        return bool(self._terms)

    @property
    def dropped(self) -> int:
        """Terms (a layer in a step) and gradients (a sequence in a layer) left out so far because they were not finite."""
        return self._dropped + int(self._lost)

    def term(self) -> Tensor:
        """What has to be added to the loss: ``weight * mean over layers of L_KSS`` (Eq. 15).

        It is that of the last forward pass, or the sum over all passes since it was asked for the last time, where a loss has
        several. Its gradient is that of the penalty on the tokens of all processes, for gradients that are averaged over
        processes as DDP, FSDP and DeepSpeed do. It is 0 in the balanced schedule, which acts in the backward pass by
        itself. Call it once a loss; with gradient accumulation divide it by the number of accumulated batches, which in a
        surveyed step has to be the number of passes of the survey.
        """
        return self._terms.take()

    def step(self) -> None:
        """Say that the optimizer has made a step."""
        if self._opened and self.active and not self._saw_pass:
            self.aside("a step", _NO_PASS, self._layers)
        self._terms.end_step(self.first_step)
        self.steps += 1
        self._surveyed, self._passes = {}, 1
        self._saw_pass = self.first_step = False

    @property
    def _layers(self) -> int:
        return sum(len(stack.blocks) for stack in self.stacks)

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
        """
        self._surveyed, self._passes = {}, 1
        survey = Survey(self.model, self.stacks, self.layouts, self.aside)
        with survey:
            yield survey
        if not self.active:
            return
        everywhere = agreed(self.stacks, survey.moments)
        kept = [key for key in survey.moments if key in everywhere]
        if not kept:
            return
        generator = self._generator()
        chosen = [kept[i] for i in self._positions(len(kept), generator)]
        self._passes = survey.passes
        for stack in self.stacks:
            keys = [key for key in chosen if key[0] == stack.path]
            moments = [survey.moments[key] for key in keys]
            if not moments:
                continue
            if not self._fits(stack, moments[0].dim, len(keys)):
                continue
            with self._standing_aside(stack, len(keys)):
                for layer in moments:
                    if world_size() > 1:
                        layer.all_reduce()
                config = self.config.fitted(moments[0].dim)
                directions = leading_directions_of_moments(moments, config.rank, generator, config.centred)
                sums = [projected_sums_of_moments(m, basis) for m, basis in zip(moments, directions, strict=True)]
                solved = self._solve(torch.stack(sums), config)
                parts = zip(directions, solved.eigenvalues, solved.penalties, solved.gradients, strict=True)
                self._surveyed |= {key: _Surveyed(*part) for key, part in zip(keys, parts, strict=True)}

    def pop_logs(self) -> dict[str, float]:
        """Means since the last call, under the keys ``kss/...``; what was dropped and skipped counts on, and is always there."""
        logs = {name: sum(values) / len(values) for name, values in self._seen.items() if values}
        if "kss/spectral_radius/max" in logs:
            logs["kss/spectral_radius/max"] = max(self._seen["kss/spectral_radius/max"])
        self._seen = {}
        return logs | {"kss/dropped": float(self.dropped), "kss/skipped": float(self.aside.count)}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers."""
        return {"steps": self.steps, "dropped": self.dropped, "skipped": self.aside.count, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps, self._dropped, self._lost = int(state["steps"]), int(state["dropped"]), 0
        self.aside.count = int(state.get("skipped", 0))
        self._seen = {name: list(values) for name, values in state["seen"].items()}

    def _refuse(self, stack: Stack, block: Block, error: CaptureError) -> None:
        self._refused.append((block, error))

    def _finish(self, seen: list[Transition], batch: Mapping[str, Any]) -> None:
        refused, self._refused = self._refused, []
        self._saw_pass = True
        if not self.active:
            return
        if refused and not seen and self.first_step and self._named:
            raise refused[0][1]  # a list that was named, and none of its members is a block
        for block, error in refused:
            self.aside(f"layer {block.path}", error)
        if not (seen or refused):
            self.aside("a forward pass", _NO_BLOCK, self._layers)
        streams = self._readable(seen, batch)
        layers = [t for t in seen if any(t in stream.layers for stream in streams)]
        generator = self._generator()
        chosen = [t for t in layers if key_of(t) in self._surveyed] if self._surveyed else self._draw(layers, generator)
        terms = []
        for stream in streams:
            drawn = [t for t in stream.layers if t in chosen]
            if not drawn:
                continue
            with self._standing_aside(stream.last.stack, len(drawn)), _no_autocast(drawn[0]):
                terms.append(self._shape(drawn, stream, generator))
        if self.has_term and terms:
            total = self.config.weight / (len(self._surveyed) or len(chosen)) * torch.stack(terms).sum()
            spend = self._terms.add(total, len(chosen))
            for stream in streams:
                stream.last.at_y = spend

    def _readable(self, seen: list[Transition], batch: Mapping[str, Any]) -> list[Stream]:
        """What KSS can read of a pass, on every process."""
        found = []
        for stack in self.stacks:
            transitions = self._of_one_text(stack, [t for t in seen if t.stack is stack], batch)
            read = functools.partial(self._layout, stack, batch)
            stream = read_stream(stack, transitions, read, self.aside) if transitions else None
            if stream and self._fits(stack, stream.width, len(stream.layers)):
                found.append(stream)
        # A surveyed step adds nothing up any more.
        return found if self._surveyed else readable_everywhere(self.stacks, found, self.aside)

    def _of_one_text(self, stack: Stack, seen: list[Transition], batch: Mapping[str, Any]) -> list[Transition]:
        """Without the runs of a shared encoder after the first, where nothing says which text they read."""
        later = [t for t in seen if t.block.index >= stack.members]
        cause = self.layouts.later_runs(stack, {**self.unseen, **batch}) if later else None
        if cause is None:
            return seen
        self.aside(f"later runs of {stack.path}", cause, len(later))
        return [t for t in seen if t.block.index < stack.members]

    def _layout(self, stack: Stack, batch: Mapping[str, Any], states: Tensor) -> Layout:
        """How the states of this pass are read; where sizes do not tell, the model is probed."""
        described = {**self.unseen, **batch}
        try:
            return self.layouts.of(stack, described, states)
        except Unsettled:
            settle(self.layouts, self.model, batch)
            return self.layouts.of(stack, described, states)

    @contextlib.contextmanager
    def _standing_aside(self, stack: Stack, layers: int) -> Iterator[None]:
        """Leave ``layers`` of ``stack`` out where they cannot be solved."""
        try:
            yield
        except Exception as error:
            # The others wait for this process in a sum: an error that they do not have must not be kept from the launcher.
            if world_size() > 1 and not isinstance(error, RkspError):
                raise
            self.aside(f"layers of {stack.path}", error, layers)

    def _generator(self) -> torch.Generator:
        """One of its own: the same numbers on every process and after a restart, and the run's are not touched.

        Accumulated batches of one step share the draw.
        """
        return torch.Generator().manual_seed(((self.config.seed << 40) + self.steps) % 2**63)

    def _share(self, layer: Transition, last: Transition) -> float:
        """Of the weight, what this block gets."""
        alone = len(layer.stack.blocks) == 1 and layer is last
        return self.config.first_block_weight if layer.block.index == 0 and not alone else 1.0

    def _strength(self, layer: Transition, last: Transition, radius: float) -> float:
        """Share of the task's gradient that the balanced schedule adds at a block of this spectral radius."""
        strength = (radius / self.config.upper_threshold - 1) / self.full_strength
        if not strength > 0:  # NaN too, of which min() would make 1
            return 0.0
        return min(1.0, strength) * self._share(layer, last) * self.config.weight

    def _positions(self, layers: int, generator: torch.Generator) -> list[int]:
        count = max(1, round(self.config.layer_fraction * layers))
        return sorted(torch.randperm(layers, generator=generator)[:count].tolist())

    def _draw(self, seen: list[Transition], generator: torch.Generator) -> list[Transition]:
        return [seen[i] for i in self._positions(len(seen), generator)]

    def _shape(self, layers: list[Transition], stream: Stream, generator: torch.Generator) -> Tensor:
        """Measure the chosen layers of one stack and let the schedule act on them; the sum of their penalties."""
        config, layout, last = self.config.fitted(stream.width), stream.layout, stream.last
        weights = None if layout.mask is None else layout.mask.reshape(-1, 1)
        surveyed = [self._surveyed[key_of(layer)] for layer in layers] if self._surveyed else []
        with torch.set_grad_enabled(self.has_term):
            states = [(layout.read(layer.x).flatten(0, 1), layout.read(layer.y).flatten(0, 1)) for layer in layers]
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
            solved = self._solve(sum_over_ranks(torch.stack(sums).detach()), config)
        if not self.has_term:
            self._push(layers, stream, directions, projected, weights, solved)
            return solved.penalties.sum()
        shares = solved.penalties.new_tensor([self._share(layer, last) for layer in layers])
        # The gradient at the sums of all processes is known, so that no collective has to run in the backward pass.
        # Gradients are averaged over the processes and over the passes of a surveyed step afterwards, hence the factor.
        total = (shares * solved.penalties).sum().to(sums[0])
        for own, gradient in zip(sums, (shares[:, None] * solved.gradients).to(sums[0]), strict=True):
            if gradient.any():  # of a layer that was dropped the sums may be NaN, and 0 times NaN is NaN
                total = total + ((own - own.detach()) * gradient).sum() * world_size() * self._passes
        return total

    def _fits(self, stack: Stack, width: int, layers: int) -> bool:
        """Whether the states have as many dimensions as were asked for.

        Raises:
            InputError: they have less, in the first step.
        """
        rank = self.config.rank
        if rank is None or rank <= width:
            return True
        cause = (
            f"kss_rank={rank} (rank={rank} of KSSConfig): the states of {stack.path} have {width} dimensions; pass {width} or "
            "less, or leave it out"
        )
        if self.first_step:
            raise InputError(cause)
        self.aside(f"the layers of {stack.path}", cause, layers)
        return False

    def _solve(self, sums: Tensor, config: KSSConfig) -> SolvedLayers:
        """Solve the sums of all processes, and note what was found."""
        sums = sums.cpu()
        few = (sums[:, 0] < 2 * config.rank) & sums.isfinite().all(-1)
        if few.any():
            self.aside("a batch of few tokens", _too_few(float(sums[few, 0].max()), config.rank), int(few.sum()))
        solved = solve_layers(sums, config)
        self._note(solved, solved.dropped - int(few.sum()))
        return solved

    def _note(self, solved: SolvedLayers, dropped: int) -> None:
        self._dropped += dropped
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
        stream: Stream,
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
        layout, last = stream.layout, stream.last
        radii = solved.eigenvalues.abs().amax(-1)
        for i, layer in enumerate(layers):
            share = self._strength(layer, last, float(radii[i]))
            if not share:
                continue
            at_p, at_q = state_gradients(*projected[i], solved.gradients[i], weights)
            layer.at_x = functools.partial(self._add, layout, at_p, directions[i], share, reference)
            layer.at_y = functools.partial(self._add, layout, at_q, directions[i], share, reference)
        own = last.at_y

        def take_reference(gradient: Tensor) -> Tensor | None:
            reference[:] = [_size(layout.read(gradient), layout)]  # anew where a graph is gone over twice
            return own and own(gradient)

        last.at_y = take_reference

    def _add(
        self,
        layout: Layout,
        projected: Tensor,
        basis: Tensor,
        share: float,
        reference: list[Tensor],
        gradient: Tensor,
    ) -> Tensor | None:
        """``gradient`` plus the penalty's, scaled for each sequence; what is not finite is left out and counted."""
        if not reference:  # the end of the stream got no gradient: it is frozen, or the loss does not see it
            return None
        rows = layout.read(gradient)
        projected = projected.reshape(*rows.shape[:2], -1)
        size = _size(projected, layout)
        scale = torch.where(size > 0, share * reference[0] / size, 0.0)
        good = scale.isfinite() & size.isfinite()
        self._lost = self._lost + (~good).sum()
        scale = torch.where(good, scale, 0.0)
        scale = (scale if layout.owner is None else scale[layout.owner]).reshape(-1, 1, 1)
        added = torch.where(scale > 0, scale * projected, 0.0) @ basis.mT
        return gradient + layout.write(added.to(gradient.dtype), gradient.shape)


def _too_few(tokens: float, rank: int) -> str:
    smaller = f", or kss_rank={int(tokens // 2)}" if tokens >= 2 else ""
    return f"{tokens:.0f} tokens do not determine an operator of rank {rank}; use batches of {2 * rank} tokens or more{smaller}"


def _no_autocast(layer: Transition) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(layer.x.device.type, enabled=False)


def _size(rows: Tensor, layout: Layout) -> Tensor:
    """Norm of each sequence of ``(n, t, ...)``, in float32 at least."""
    sizes = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
    if layout.owner is None:
        return sizes
    return sizes.new_zeros(layout.sequences).index_add(0, layout.owner, sizes.square()).sqrt()
