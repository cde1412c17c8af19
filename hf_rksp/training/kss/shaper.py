"""KSS at work in a training run: the blocks are measured at the end of each forward pass, and a schedule acts on what was found.

The states of all layers are projected, their r x r sums are added up over the processes and go to the host together, and each
small eigenproblem gives the gradient of the penalty at those sums. From there the schedules part.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, Stack, Transition
from hf_rksp.capture.agreement import agreed
from hf_rksp.config import KSSConfig
from hf_rksp.errors import CaptureError, InputError, RkspError
from hf_rksp.profile.gather import Key
from hf_rksp.quantities import Quantity
from hf_rksp.ranks import sums_over_ranks, world_size
from hf_rksp.training.aside import Aside
from hf_rksp.training.host import to_host
from hf_rksp.training.kss.accumulation import StepMoments
from hf_rksp.training.kss.balanced import Balanced
from hf_rksp.training.kss.measure import Projected, SolvedLayer, Solver, joined, project_layers, project_moments
from hf_rksp.training.kss.paper import Paper
from hf_rksp.training.kss.schedule import Measured, Schedule
from hf_rksp.training.kss.streams import Stream, key_of, read_stream, readable_everywhere
from hf_rksp.training.kss.terms import Terms
from hf_rksp.training.monitors.base import Intervention
from hf_rksp.training.watch import Watch

#: How KSS is switched off, for its warnings.
_OFF = "kss='off' switches KSS off"
#: Why a step may go by without a pass.
_NO_PASS = (
    "no forward pass of the model was seen in this step: it was compiled and run before KSS was there (torch.compile, "
    "model.compile()), or the loss calls parts of it instead of the model; compile it later, or call the model itself"
)
_NO_BLOCK = (
    "none of the residual blocks ran in training mode with gradients, where hooks see it: they were compiled and run before "
    "KSS was there, are in evaluation mode, or are checkpointed from outside; with transformers before 5.23 set "
    "gradient_checkpointing_kwargs={'use_reentrant': False}"
)
_SCHEDULES: dict[str, type[Schedule[Any]]] = {"balanced": Balanced, "paper": Paper}


class SpectralShaper(Intervention):
    """Applies KSS to every training forward pass of a model while it is open.

    With Trainer, `RKSPTrainer` does all of this. In a loop of your own::

        with SpectralShaper(model, KSSConfig()) as kss:
            for batch in loader:
                loss = model(**batch).loss + kss.term()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                kss.step()

    With gradient accumulation the operator is that of each microbatch, unless the step is measured first (`measure_step`).

    All processes have to make the same forward passes. Every draw (directions, layers) is seeded by the number of the
    step, so that processes agree and a resumed run draws what the uninterrupted one drew.

    Args:
        model: the module itself, before or after DDP, FSDP2, DeepSpeed or ``torch.compile`` wrapped it; PEFT included. ``None`` if
            `attach` will be called.
        config: see `KSSConfig`.
        blocks: path(s) of the list(s) of residual blocks; found automatically in transformers models.
        stacks: the blocks themselves, if they were found already.
        schedule: acts on what is measured; that of ``config`` unless an experiment passes its own.
        dormant: do nothing until `DivergenceGuard` switches it on.

    Attributes:
        aside: counts the layers that could not be read, and says why; a run is never ended after its first step.

    Raises:
        CaptureError, InputError: no residual blocks, or a rank above their width (from the forward passes of the first step).
            In `step`, after the first one: the term of the "paper" schedule was never added to a loss.
    """

    name = "kss"
    quantities = (
        Quantity("task_loss", "loss without the KSS term", note="What remains of the logged loss without KSS."),
        Quantity("loss", "KSS penalty", note="Before its weight. 0: no eigenvalue that KSS saw is penalised."),
        Quantity(
            "spectral_radius/max",
            "spectral radius seen by KSS, largest layer",
            "ρ",
            note="On the projection of KSS, so not to be compared with the profiles.",
            logarithmic=True,
        ),
        Quantity("layers_above", "layers above the KSS threshold", unit="share"),
        Quantity("dropped", "terms left out by KSS, total so far", unit="count", note="A number was not finite."),
        Quantity("skipped", "layers that KSS could not read, total so far", unit="count"),
    )

    def __init__(
        self,
        model: nn.Module | None = None,
        config: KSSConfig | None = None,
        blocks: str | Sequence[str] | None = None,
        stacks: Sequence[Stack] | None = None,
        schedule: Schedule[Any] | None = None,
        dormant: bool = False,
    ) -> None:
        self.dormant = dormant
        self.config = config or KSSConfig()
        self.schedule = schedule or _SCHEDULES[self.config.schedule](self.config)
        self.aside: Aside = Aside("KSS", "kss/skipped", _OFF)
        self.steps = 0
        self._step_solved: dict[Key, SolvedLayer] = {}
        self._passes = 1
        self._solver = Solver(self.aside)
        self._terms = Terms(self.aside)
        self._refused: list[tuple[Block, CaptureError]] = []
        self._begin_run(opened=False)
        if model is not None:
            super().attach(Watch(model, blocks, stacks))

    def attach(self, watch: Watch) -> None:
        """Act on the passes of this run from now on; `close` ends it."""
        super().attach(watch)
        self.__enter__()

    def begin(self, step: int) -> None:
        """Draw from now on what a run draws that has made ``step`` steps."""
        self.steps = step

    def close(self) -> None:
        """Let go of the hooks."""
        self.__exit__(None, None, None)

    def _begin_run(self, opened: bool) -> None:
        self._opened = opened
        #: No optimizer step was made yet: settings that do not fit are refused, and later on stood aside for.
        self.first_step = True
        self._saw_pass = False
        self._refused = []
        self._terms.clear()

    def __enter__(self) -> SpectralShaper:
        self._begin_run(opened=True)
        tap = self.watch.tap
        tap.finish, tap.refuse = self._finish, self._refuse
        tap.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watch.tap.__exit__(kind, error, trace)
        self._begin_run(opened=False)

    @property
    def active(self) -> bool:
        """Whether KSS acts in the running step."""
        return not self.dormant and self.config.weight > 0 and self.steps % self.config.every == 0

    @property
    def has_term(self) -> bool:
        """Whether the schedule adds to the loss; the balanced one acts in the backward pass alone."""
        return self.schedule.has_term

    @property
    def pending(self) -> bool:
        """Whether a forward pass has left a term for the loss."""
        return bool(self._terms)

    @property
    def dropped(self) -> int:
        """Terms (a layer in a step) and gradients (a sequence in a layer) left out so far because they were not finite."""
        return self._solver.dropped + int(self.schedule.lost)

    def term(self) -> Tensor:
        """What has to be added to the loss: ``weight * mean over layers of L_KSS`` (Eq. 15).

        It is that of the last forward pass, or the sum over all passes since it was asked for the last time, if a loss has
        several. Its gradient is that of the penalty on the tokens of all processes, for gradients that are averaged over
        processes as DDP, FSDP and DeepSpeed do. It is 0 in the balanced schedule, which acts in the backward pass by
        itself. Call it once per loss; with gradient accumulation divide it by the number of accumulated batches, which in a
        step that was measured has to be the number of its passes.
        """
        return self._terms.take()

    def step(self) -> None:
        """Say that the optimizer has made a step."""
        if self._opened and self.active and not self._saw_pass:
            self.aside("a step", _NO_PASS, self.watch.layers)
        self._terms.end_step(self.first_step)
        self.steps += 1
        self._step_solved, self._passes = {}, 1
        self._saw_pass = self.first_step = False

    def step_made(self) -> None:
        """The same, said by the engine."""
        self.step()

    @contextlib.contextmanager
    def measure_step(self) -> Iterator[StepMoments]:
        """Measure the batches of a whole step together, before they are trained on one by one::

            with kss.measure_step():
                for batch in microbatches:
                    model(**batch)

        The step then has the operator of all of them, as one large batch would have. It costs a forward pass for each, and float64
        moments of 24 d^2 bytes for each layer. Inside there are no gradients; afterwards the random state is as before, so that the
        training passes draw the same dropout. The training passes have to be those that were measured: `term` counts on it.
        If KSS does not act in the step, ``active`` is false, and the measuring may be left out.
        """
        self._step_solved, self._passes = {}, 1
        moments = StepMoments(self.watch, self.aside)
        with moments:
            yield moments
        if not self.active:
            return
        everywhere = agreed(self.watch.stacks, moments.moments)
        kept = [key for key in moments.moments if key in everywhere]
        if not kept:
            return
        generator = self._generator()
        chosen = [kept[i] for i in self._positions(len(kept), generator)]
        self._passes = moments.passes
        for stack in self.watch.stacks:
            self._solve_step(stack, moments, [key for key in chosen if key[0] == stack.path], generator)

    def _solve_step(self, stack: Stack, measured: StepMoments, keys: Sequence[Key], generator: torch.Generator) -> None:
        """Solve the chosen layers of one stack for all passes of the step."""
        moments = [measured.moments[key] for key in keys]
        if not moments or not self._fits(stack, moments[0].dim, len(keys)):
            return
        with self._standing_aside(stack, len(keys)):
            for layer in moments:
                if world_size() > 1:
                    layer.all_reduce()
            config = self.config.fitted(moments[0].dim)
            directions, sums = project_moments(moments, config, generator)
            (table,) = to_host(sums)
            solved = self._solver(table, config)
            for place, key in enumerate(keys):
                self._step_solved[key] = SolvedLayer(
                    directions[place],
                    solved.eigenvalues[place],
                    float(solved.penalties[place]),
                    solved.gradients[place],
                    bool(solved.good[place]),
                )

    def pop_logs(self) -> dict[str, float]:
        """Means since the last call, under the keys ``kss/...``; what was dropped and skipped counts on, and is always there."""
        counts = {"kss/dropped": float(self.dropped), "kss/skipped": float(self.aside.count)}
        return self._solver.pop_logs() | counts

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: plain numbers."""
        counts = {"steps": self.steps, "dropped": self.dropped, "skipped": self.aside.count}
        return counts | {"seen": self._solver.seen, "dormant": self.dormant}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        steps, dropped, skipped = int(state["steps"]), int(state["dropped"]), int(state.get("skipped", 0))
        seen = {name: list(values) for name, values in state["seen"].items()}
        self.dormant = self.dormant and bool(state.get("dormant", True))
        self.steps, self._solver.dropped, self.aside.count, self._solver.seen = steps, dropped, skipped, seen
        self.schedule.lost = 0

    def _refuse(self, stack: Stack, block: Block, error: CaptureError) -> None:
        self._refused.append((block, error))

    def _finish(self, seen: list[Transition], batch: Mapping[str, Any]) -> None:
        """A forward pass has ended: measure what can be read of it, and let the schedule act."""
        refused, self._refused = self._refused, []
        seen = [transition for transition in seen if transition.block.path not in self.watch.locked]
        self._saw_pass = True
        if not self.active:
            return
        if refused and not seen and self.first_step and self.watch.named:
            raise refused[0][1]  # a list that was named, and none of its members is a block
        for block, error in refused:
            self.aside(f"layer {block.path}", error)
        if not (seen or refused):
            self.aside("a forward pass", _NO_BLOCK, self.watch.layers)
        streams = self._readable(seen, batch)
        layers = [t for t in seen if any(t in stream.layers for stream in streams)]
        generator = self._generator()
        chosen = (
            [t for t in layers if key_of(t) in self._step_solved]
            if self._step_solved
            else [layers[i] for i in self._positions(len(layers), generator)]
        )
        projected = []
        for stream in streams:
            drawn = [t for t in stream.layers if t in chosen]
            if drawn:
                with self._standing_aside(stream.last.stack, len(drawn)), _no_autocast(drawn[0]):
                    solved = [self._step_solved[key_of(layer)] for layer in drawn] if self._step_solved else []
                    config = self.config.fitted(stream.width)
                    projected.append(project_layers(drawn, stream, config, generator, solved, self.has_term))
        terms = [term for term in self._act(projected) if term is not None]
        if terms:
            total = self.config.weight / (len(self._step_solved) or len(chosen)) * torch.stack(terms).sum()
            spend = self._terms.add(total, len(chosen))
            for stream in streams:
                stream.last.at_y = spend

    def _readable(self, seen: list[Transition], batch: Mapping[str, Any]) -> list[Stream]:
        """What KSS can read of a pass, on every process."""
        found = []
        for stack in self.watch.stacks:
            transitions = self._of_one_text(stack, [t for t in seen if t.stack is stack], batch)
            if not transitions:
                continue
            read = functools.partial(self.watch.layout, stack, batch)
            stream = read_stream(stack, transitions, read, self.aside)
            if stream and self._fits(stack, stream.width, len(stream.layers)):
                found.append(stream)
        # A step that was measured beforehand adds nothing up any more.
        return found if self._step_solved else readable_everywhere(self.watch.stacks, found, self.aside)

    def _of_one_text(self, stack: Stack, seen: list[Transition], batch: Mapping[str, Any]) -> list[Transition]:
        """Without the runs of a shared encoder after the first, if nothing says which text they read."""
        later = [t for t in seen if t.block.index >= stack.members]
        cause = self.watch.layouts.later_runs(stack, self.watch.described(batch)) if later else None
        if cause is None:
            return seen
        self.aside(f"later runs of {stack.path}", cause, len(later))
        return [t for t in seen if t.block.index < stack.members]

    @contextlib.contextmanager
    def _standing_aside(self, stack: Stack, layers: int) -> Iterator[None]:
        """Leave ``layers`` of ``stack`` out if they cannot be solved."""
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

    def _positions(self, layers: int, generator: torch.Generator) -> list[int]:
        """Which layers are drawn in this step."""
        count = max(1, round(self.config.layer_fraction * layers))
        return sorted(torch.randperm(layers, generator=generator)[:count].tolist())

    def _act(self, projected: Sequence[Projected]) -> list[Tensor | None]:
        """Solve all stacks of a pass, which takes one transfer to the host, and let the schedule act on each."""
        own = [torch.stack(part.sums).detach() for part in projected] if not self._step_solved else []
        tables = to_host(*sums_over_ranks(own)) if own else ()
        terms: list[Tensor | None] = []
        for place, part in enumerate(projected):
            with self._standing_aside(part.stream.last.stack, len(part.layers)), _no_autocast(part.layers[0]):
                if self._step_solved:
                    found = joined([self._step_solved[key_of(layer)] for layer in part.layers])
                else:
                    found = self._solver(tables[place], part.config)
                gradients = found.gradients.to(part.sums[0].device, non_blocking=True)
                copies = world_size() * self._passes
                rest = (part.stream.last, part.stream.layout, part.weights, part.directions, part.projected, part.sums)
                terms.append(self.schedule.act(Measured(part.layers, *rest, found, gradients, copies)))
        return terms

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


def _no_autocast(layer: Transition) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(layer.x.device.type, enabled=False)
