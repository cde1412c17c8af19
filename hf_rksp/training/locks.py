"""Weights of blocks that are locked: made zero, drawn anew, and given back if the run cannot begin.

A block of zeros is the identity, and cannot learn: every gradient is a product with a zero factor.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block
from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.shards import is_sharded, local
from hf_rksp.errors import InputError
from hf_rksp.profile.directions import unwrapped
from hf_rksp.training.weights import is_partitioned, pieces, read_whole, write_whole

#: Parameters that shape a block and carry nothing through it: those of state-space mixers, and scales of residual branches.
_SHAPE = re.compile(r"(^|\.)(A_log|D|dt_bias|dt_proj\.bias|lambda1)$")


class Locks:
    """What is known of the weights of locked blocks. Every process makes the same calls."""

    def __init__(self) -> None:
        #: Standard deviation of each matrix at initialisation.
        self._deviations: dict[str, float] = {}
        #: Gains of norms at initialisation: an optimizer that keeps locked blocks in its groups may let them decay.
        self._constants: dict[str, float] = {}
        self._originals: list[tuple[Tensor, Tensor]] = []

    def lock(self, blocks: Iterable[Block]) -> None:
        """Make ``blocks`` the identity; first see that none of them was trained.

        Raises:
            InputError: one was, or is zero already; then all are as they were.
        """
        blocks = list(blocks)
        for block in blocks:
            _require_untrained(block)
        for block in blocks:
            for name, gain in _gains(block):
                self._constants[name] = float(read_whole(gain).reshape(-1)[0])
            for name, weight in _carrying(block):
                values = read_whole(weight)
                if values.ndim > 1 and bool(values.any()):
                    self._deviations[name] = float(values.double().std())
                if not is_partitioned(weight):
                    self._originals += [(piece, piece.cpu().clone()) for piece in pieces(weight)]
                write_whole(weight, torch.zeros_like(values))
            if not any(self._deviations.get(name) for name, _ in _carrying(block)):
                self.give_back()
                raise InputError(f"{block.path} is zero already, as an earlier run has left it; make the model anew")

    def give_back(self) -> None:
        """The run does not begin: the weights are what they were, but for those that ZeRO-3 has spread."""
        for piece, before in self._originals:
            piece.copy_(before)
        self.forget()

    def forget(self) -> None:
        """The run has begun: what the weights were is not needed any more."""
        self._originals = []

    def unlock(self, block: Block, seed: int, scale: float, optimizer: object) -> None:
        """Draw small weights, which depend on the seed and on their names alone.

        Args:
            block: to unlock.
            seed: of the run.
            scale: standard deviation, relative to that at initialisation.
            optimizer: of the run; it forgets the moments of zero that it has of weights that FSDP2 spreads.
        """
        for name, weight in _carrying(block):
            if name in self._deviations:
                draw = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
                write_whole(weight, torch.randn(_shape(weight), generator=draw).mul_(scale * self._deviations[name]))
        for name, gain in _gains(block):
            if name in self._constants:
                write_whole(gain, torch.full(_shape(gain), self._constants[name]))
        for weight in block.module.parameters():
            if is_sharded(weight) and optimizer is not None:
                unwrapped(optimizer).state.pop(weight, None)

    def state_dict(self) -> dict[str, Any]:
        """What unlocking needs in a resumed run."""
        return {"deviations": dict(self._deviations), "constants": dict(self._constants)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._deviations, self._constants = dict(state["deviations"]), dict(state["constants"])


def shares_weights(model: nn.Module, groups: Sequence[Sequence[Block]]) -> bool:
    """Whether a block shares a weight with another group or with the rest of the network, from which locking would take it."""
    places = {block.path: number for number, group in enumerate(groups) for block in group}
    owners: dict[int, set[int | None]] = {}
    for path, weight in model.named_parameters(remove_duplicate=False):
        number = next((one for block, one in places.items() if path.startswith(f"{block}.")), None)
        owners.setdefault(id(weight), set()).add(number)
    return any(len(found) > 1 for found in owners.values())


def stays_in_the_optimizer(weight: nn.Parameter) -> bool:
    """Whether a locked weight has gradients of zero instead of none.

    ZeRO has flat groups. A checkpoint of FSDP2 has to have a state of every weight.
    """
    return hasattr(weight, "_hp_mapping") or is_partitioned(weight) or is_sharded(weight)


def is_zero(block: Block) -> bool:
    """Whether all weights that carry something are zero; of weights that ZeRO-3 has spread it is not known."""
    weights = [weight for _, weight in _carrying(block)]
    return not any(is_partitioned(weight) for weight in weights) and not any(
        bool(local(weight.detach()).any()) for weight in weights
    )


def _require_untrained(block: Block) -> None:
    """Gains of norms, and biases, are constant at initialisation."""
    told = False
    for name, weight, gain in _parts(block):
        if not gain and not (name.endswith(".bias") and not _SHAPE.search(name)):
            continue
        values, told = read_whole(weight).reshape(-1), True
        if bool((values != values[0]).any()):
            raise InputError(f"{name} has been trained, and a locked block would lose what it has learnt")
    if not told:
        raise InputError(
            f"{block.path} has neither gains of norms nor biases, which tell new weights from trained ones"
        )


def _shape(weight: Tensor) -> torch.Size:
    """Of the whole weight; ZeRO-3 leaves an empty tensor here."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return torch.Size(shape)


def _parts(block: Block) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name, parameter, and whether it is the gain of a norm."""
    for path, module in uncompiled(block.module).named_modules():
        for name, weight in module.named_parameters(recurse=False):
            gain = "norm" in type(module).__name__.lower() and name == "weight"
            yield ".".join(filter(None, [block.path, path, name])), weight, gain


def _carrying(block: Block) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that carry something through the block: zero makes it the identity."""
    for name, weight, gain in _parts(block):
        if not gain and not _SHAPE.search(name):
            yield name, weight


def _gains(block: Block) -> Iterator[tuple[str, nn.Parameter]]:
    for name, weight, gain in _parts(block):
        if gain:
            yield name, weight
