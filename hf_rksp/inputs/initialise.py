"""Random weights, drawn piece by piece: every residual block, and the rest of the model, has a seed of its own.

So a block has the same weights whether the whole model is made or this block alone, which is what lets a model larger
than memory be profiled block by block. The scheme is transformers' own for the architecture.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from hf_rksp.capture import Block, find_stacks
from hf_rksp.errors import CaptureError


def skeleton(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """The model of ``config`` without weights, on the meta device."""
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


class Initialiser:
    """Puts random weights into a `skeleton`, or takes them away again.

    Args:
        model: from `skeleton`, in the dtype that numbers are drawn in.
        seed: names the weights, together with the path of a block.
        double: make float64 of the numbers. Drawn in float64 they would be others, and a seed has to name one model.
    """

    def __init__(self, model: nn.Module, seed: int, double: bool = False) -> None:
        self.model, self.seed, self.double = model, seed, double
        try:
            self.blocks: tuple[Block, ...] = tuple(block for stack in find_stacks(model) for block in stack.blocks)
        except CaptureError:  # blocks that only a forward pass can tell: the model is one piece
            self.blocks = ()
        self._owners = _owners(model)
        inner = {module for block in self.blocks for module in block.module.modules()}
        #: The modules outside the blocks.
        self.rest = {module for module in model.modules() if module not in inner}

    def identity(self) -> object:
        """The seed; the configuration is the model's."""
        return [self.seed, self.double]

    def make_all(self) -> nn.Module:
        """The whole model, in evaluation mode."""
        self.make_rest()
        for block in self.blocks:
            self.make(block)
        return self.model.eval()

    def make_rest(self) -> None:
        """Everything but the blocks: embeddings, norms, tables of positions."""
        for module in self.rest:
            _allocate(module)
        self._draw(f"{self.seed}", self.rest)
        self.model.tie_weights()
        if self.double:
            for module in self.rest:
                _cast(module, torch.float64)

    def make(self, block: Block) -> None:
        """The weights of one block."""
        for module in block.module.modules():
            if self.double:
                _cast(module, torch.float32)
            _allocate(module)
        self._draw(f"{self.seed}/{block.path}", set(block.module.modules()))
        if self.double:
            block.module.double()

    def _draw(self, name: str, modules: Collection[nn.Module]) -> None:
        """As transformers does: inner modules first, each by the model that it is a part of."""
        with _drawing(name):
            for module, owner in self._owners.items():
                if module in modules:
                    owner._initialize_weights(module)

    def drop(self, block: Block) -> None:
        """Let go of the memory of a block."""
        for module in block.module.modules():
            module._is_hf_initialized = False
        block.module.to("meta")


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    from transformers import initialization

    with torch.random.fork_rng(devices=[]), torch.no_grad(), initialization.guard_torch_init_functions():
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1)
        yield


def _allocate(module: nn.Module) -> None:
    module.to_empty(device="cpu", recurse=False)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """The module's own numbers, not those of its children."""
    module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, recurse=False)


def _owners(model: nn.Module) -> dict[nn.Module, Any]:
    """For each module, inner ones first, the innermost transformers model that it is a part of: its scheme applies."""
    from transformers import PreTrainedModel

    owners: dict[nn.Module, Any] = {}

    def visit(module: nn.Module, owner: nn.Module) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child in module.children():
            visit(child, owner)
        owners.setdefault(module, owner)

    visit(model, model)
    return owners
