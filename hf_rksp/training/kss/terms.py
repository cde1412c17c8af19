"""Terms of a schedule that adds to the loss, such as "paper", that wait for the loss of their forward passes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rksp.capture.tap import GradientRule
from hf_rksp.errors import InputError
from hf_rksp.training.aside import Aside

_NOT_TAKEN = (
    "kss_schedule='paper': the term of KSS has not reached the loss of this step. Add kss.term() to the loss, or let compute_loss "
    "and training_step call the trainer's own; or pass kss_schedule='balanced', which acts in the backward pass, or kss_weight=0"
)
_SPENT = (
    "kss_schedule='paper': a backward pass went over a forward pass before its term was taken, so the term is too late; pass "
    "kss_schedule='balanced', or add kss.term() to the first loss that is differentiated"
)


class _Spent:
    """Whether a backward pass went over the graph of a term. The graph holds it, so it may not hold the term."""

    done = False

    def __call__(self, gradient: Tensor) -> None:
        self.done = True


@dataclass
class _Term:
    value: Tensor
    layers: int
    spent: _Spent


class Terms:
    """Keeps the term of each forward pass until a loss takes it."""

    def __init__(self, aside: Aside) -> None:
        self.aside = aside
        self._waiting: list[_Term] = []
        self._taken = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, value: Tensor, layers: int) -> GradientRule:
        """Keep the term of one forward pass.

        Returns:
            What has to see the gradients at the end of its streams: a term is of no use after a backward pass over its graph.
        """
        spent = _Spent()
        self._waiting.append(_Term(value, layers, spent))
        return spent

    def take(self) -> Tensor:
        """The sum of all terms since the last call."""
        terms, self._waiting, self._taken = self._waiting, [], True
        for term in terms:
            if term.spent.done:
                self.aside("the layers of a forward pass", _SPENT, term.layers)
        alive = [term.value for term in terms if not term.spent.done]
        return functools.reduce(torch.add, alive) if alive else torch.zeros(())

    def end_step(self, first: bool) -> None:
        """Let go of what no loss has taken.

        Raises:
            InputError: nothing was ever taken in the ``first`` step.
        """
        terms, self._waiting = self._waiting, []
        if terms and first and not self._taken:
            raise InputError(_NOT_TAKEN)
        if terms:
            self.aside("a step", _NOT_TAKEN, sum(term.layers for term in terms))

    def clear(self) -> None:
        """Forget everything: a run begins or ends."""
        self._waiting, self._taken = [], False
