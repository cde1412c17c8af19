"""What the tests of a training step share: a quadratic whose answers are known, a GPT-2, and everything that may not change."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import torch
import transformers
from torch import Tensor, nn

VOCAB = 32


class Quadratic(nn.Module):
    """Weights w of ``loss(w, c) = (w - c)^T A (w - c) / 2``, split over two parameters."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix
        self.first = nn.Parameter(torch.zeros(2, dtype=matrix.dtype))
        self.rest = nn.Parameter(torch.zeros(len(matrix) - 2, dtype=matrix.dtype))

    @property
    def weights(self) -> Tensor:
        return torch.cat([self.first, self.rest])


def quadratic_loss(model: Quadratic, centre: Tensor) -> Tensor:
    """Its gradient at zero is ``-A c``."""
    off = model.weights - centre
    return off @ model.matrix @ off / 2


def spd(size: int, seed: int = 0) -> Tensor:
    """A symmetric positive definite matrix, float64."""
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def centres(count: int, size: int, seed: int = 1) -> list[Tensor]:
    """Batches of the quadratic; they share a part, so that each is a descent direction for the others."""
    g = torch.Generator().manual_seed(seed)
    return [3 + torch.randn(size, generator=g, dtype=torch.float64) for _ in range(count)]


def tiny_gpt2(attention: str = "sdpa", dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A GPT-2 of two blocks with larger weights than at initialisation."""
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            **sizes, **drops, bos_token_id=1, eos_token_id=2, attn_implementation=attention
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    return model


def texts(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of three texts in which a token follows from the one before."""
    g = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        first = torch.randint(0, VOCAB, (3, 1), generator=g)
        ids = (first + torch.arange(12)) % VOCAB
        batches.append({"input_ids": ids, "labels": ids.clone()})
    return batches


def bits(tensor: Tensor | None) -> bytes | None:
    """A tensor to the bit: NaN equals itself, and -0.0 is not 0.0."""
    return None if tensor is None else tensor.detach().clone().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def everything(model: nn.Module, *optimizers: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a measurement might leave behind."""

    def plain(value: object) -> object:
        return bits(value) if isinstance(value, Tensor) else copy.copy(value)

    return {
        "weights": {name: bits(value) for name, value in model.named_parameters()},
        "objects": [id(value) for value in (*model.parameters(), *model.buffers())],
        "buffers": {name: bits(value) for name, value in model.named_buffers()},
        "gradients": {name: bits(value.grad) for name, value in model.named_parameters()},
        "trainable": {name: value.requires_grad for name, value in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()],
        "states": [
            [{name: plain(value) for name, value in state.items()} for state in one.state.values()]
            for one in optimizers
        ],
        "groups": [
            [{name: value for name, value in group.items() if name != "params"} for group in one.param_groups]
            for one in optimizers
        ],
        "steps": [vars(one).get("_opt_called") for one in optimizers],
        "torch": bits(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": [str(part) for part in numpy.random.get_state()],
        "grad mode": torch.is_grad_enabled(),
    }
