"""KSS written out once more, slowly: in float64, with ZCA whitening, and with autograd all the way from the states.

Of the code under test it takes the random part alone: which directions and which layers were drawn (`Draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.config import KSSConfig
from hf_rksp.training.kss.balanced import Balanced
from hf_rksp.training.kss.paper import Paper
from hf_rksp.training.kss.schedule import Measured


class Draws:
    """Watches a run: the inputs, the directions and the chosen layers of every stack in every forward pass."""

    def __init__(self, monkeypatch: Any, model: nn.Module) -> None:
        self.batches: list[dict[str, Any]] = []
        self.directions: list[Tensor] = []
        self.chosen: list[list[int]] = []
        for schedule in (Balanced, Paper):
            monkeypatch.setattr(schedule, "act", self._watched(schedule.act))
        model.register_forward_pre_hook(lambda _, args, kwargs: self.batches.append(dict(kwargs)), with_kwargs=True)

    def _watched(self, act: Callable[[Any, Measured], Any]) -> Callable[[Any, Measured], Any]:
        def watched(schedule: Any, measured: Measured) -> Any:
            self.directions.append(measured.directions)
            self.chosen.append([layer.block.index for layer in measured.layers])
            return act(schedule, measured)

        return watched


def states(model: nn.Module, blocks: Sequence[nn.Module], batch: Mapping[str, Any]) -> tuple[list[Tensor], Any]:
    """The states before the first block and after every block, with their graph, and the output of the model."""
    (seen,), output = stack_states(model, [blocks], batch)
    return seen, output


def stack_states(
    model: nn.Module, stacks: Sequence[Sequence[nn.Module]], batch: Mapping[str, Any]
) -> tuple[list[list[Tensor]], Any]:
    """The same for a model of several stacks."""
    seen: list[list[Tensor]] = [[] for _ in stacks]
    handles = []
    for own, blocks in zip(seen, stacks, strict=True):

        def before(_: Any, args: Any, kwargs: Any, own: list[Tensor] = own) -> None:
            own.append(args[0] if args else kwargs["hidden_states"])

        def after(_: Any, args: Any, out: Any, own: list[Tensor] = own) -> None:
            own.append(out[0] if isinstance(out, tuple) else out)

        handles.append(blocks[0].register_forward_pre_hook(before, with_kwargs=True))
        handles += [block.register_forward_hook(after) for block in blocks]
    output = model(**batch)
    for handle in handles:
        handle.remove()
    return seen, output


def moduli(x: Tensor, y: Tensor, directions: Tensor, mask: Tensor, config: KSSConfig) -> Tensor:
    """Moduli of the eigenvalues of the whitened operator of one block, from its states ``(batch, tokens, d)``."""
    p, q = x[mask.bool()] @ directions, y[mask.bool()] @ directions
    if config.centred:
        p, q = p - p.mean(0), q - q.mean(0)
    covariance, cross = p.T @ p / len(p), q.T @ p / len(p)
    ridge = 1e-5 if config.schedule == "paper" else 1e-2 * covariance.trace() / len(covariance)
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance), dtype=p.dtype))
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    return torch.linalg.eigvals(whiten @ cross @ whiten).abs()


def equation_14(rho: Tensor, config: KSSConfig) -> Tensor:
    """L_KSS as the paper has it."""
    up, low, t = config.upper_threshold, config.lower_threshold, config.temperature
    unstable = (torch.sigmoid(t * (rho - up)) * torch.log1p(torch.exp(rho - up)) ** 2).sum()
    near_unit = (torch.sigmoid(t * (rho - low)) * torch.sigmoid(t * (up - rho))).mean()
    return unstable + config.near_unit_weight * (near_unit - config.near_unit_target) ** 2


def hinge(rho: Tensor, config: KSSConfig) -> Tensor:
    """The penalty of the balanced schedule."""
    return ((rho - config.upper_threshold).clamp_min(0) ** 2).sum()


def share(layer: int, config: KSSConfig) -> float:
    """Of the weight, in a stack of several blocks."""
    return config.first_block_weight if layer == 0 else 1.0


def paper_term(seen: list[Tensor], mask: Tensor, directions: Tensor, chosen: list[int], config: KSSConfig) -> Tensor:
    """Eq. 15's addition to the loss: ``alpha`` times the mean over the chosen layers."""
    pairs = zip(chosen, directions, strict=True)
    terms = [share(i, config) * equation_14(moduli(seen[i], seen[i + 1], v, mask, config), config) for i, v in pairs]
    return config.weight * torch.stack(terms).mean()


def balanced_surrogate(
    seen: list[Tensor], loss: Tensor, mask: Tensor, directions: Tensor, chosen: list[int], config: KSSConfig
) -> Tensor:
    """A scalar whose gradient at the states is what the balanced schedule adds there.

    Each layer's penalty gradient at x, and at y, is scaled for each sequence to ``strength * weight`` times the norm of
    that sequence's task gradient at the end of the stream; the strength grows from 0 at the threshold to 1 at 1.5 of it.
    """
    (end,) = torch.autograd.grad(loss, seen[-1], retain_graph=True)
    reference = end.flatten(1).norm(dim=1)
    total = loss.new_zeros(())
    for i, v in zip(chosen, directions, strict=True):
        x, y = seen[i].detach().requires_grad_(), seen[i + 1].detach().requires_grad_()
        rho = moduli(x, y, v, mask, config)
        strength = min(1.0, (float(rho.detach().max()) / config.upper_threshold - 1) / 0.5)
        if strength <= 0:
            continue
        for state, gradient in zip(seen[i : i + 2], torch.autograd.grad(hinge(rho, config), (x, y)), strict=True):
            scale = share(i, config) * strength * config.weight * reference / gradient.flatten(1).norm(dim=1)
            total = total + (scale[:, None, None] * gradient * state).sum()
    return total


def gradients_of(total: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Gradients at the weights that ``total`` depends on."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}
