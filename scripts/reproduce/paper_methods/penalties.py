"""Terms of the loss that the paper compares KSS with (Tables 4 and 6). It names them without formulas; these are ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Task loss, logits of shape ``(labels, vocabulary)``, states ``(layers + 1)`` of shape ``(batch, tokens, width)``, and random
#: numbers -> penalty.
Penalty = Callable[[Tensor, Tensor, tuple[Tensor, ...], torch.Generator], Tensor]
#: Directions of the random projection: as many as KSS has.
_RANK = 32


def gradient(loss: Tensor, logits: Tensor, states: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
    """Squared norm of the task's gradient at the embeddings, per token."""
    (at,) = torch.autograd.grad(loss, states[0], create_graph=True)
    return at.square().sum() * at.shape[0] * at.shape[1]


def jacobian(loss: Tensor, logits: Tensor, states: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
    """Squared Frobenius norm of the Jacobian of what one block adds to the states, per dimension.

    One random projection (arXiv:1908.02729). The skip is left out: a penalty of the sum would pull a block to minus the identity.
    """
    place = int(torch.randint(len(states) - 1, (), generator=draw))
    x, y = states[place], states[place + 1]
    noise = torch.randn(y.shape, generator=draw)
    (pulled,) = torch.autograd.grad(y, x, noise, create_graph=True)
    return (pulled - noise).square().mean()


def random_l2(loss: Tensor, logits: Tensor, states: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
    """Mean square of the states on random directions."""
    directions = torch.linalg.qr(torch.randn(states[0].shape[-1], _RANK, generator=draw))[0]
    return torch.stack([(y @ directions).square().mean() for y in states[1:]]).mean()


def activation_variance(loss: Tensor, logits: Tensor, states: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
    """Squared logarithm of how much a block changes the variance of the states."""
    variances = torch.stack([state.flatten(0, 1).var(0).mean() for state in states])
    return variances.clamp_min(1e-12).log().diff().square().mean()


def z_loss(loss: Tensor, logits: Tensor, states: tuple[Tensor, ...], draw: torch.Generator) -> Tensor:
    """Squared logarithm of the normaliser of the softmax, at the tokens that are asked for (arXiv:2204.02311)."""
    return logits.logsumexp(-1).square().mean()


PENALTIES: dict[str, Penalty] = {
    "gradient": gradient,
    "jacobian": jacobian,
    "random l2": random_l2,
    "activation variance": activation_variance,
    "z": z_loss,
}


def penalty_of(
    method: Mapping[str, Any],
    step: int,
    loss: Tensor,
    logits: Tensor,
    states: tuple[Tensor, ...],
    draw: torch.Generator,
) -> Tensor | None:
    """The weighted penalty of a method in one step; ``None`` if there is none."""
    if "penalty" not in method or step % method.get("penalty_every", 1):
        return None
    weight: float = method["penalty_weight"]
    return weight * PENALTIES[method["penalty"]](loss, logits, states, draw)
