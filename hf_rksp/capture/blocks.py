"""Find the residual blocks of a model: the members of the list that carries the residual stream.

In transformers every such member is a ``GradientCheckpointingLayer``; a list of nothing but those is a stack. Models
without one (your own, or remote code) are probed: a list whose members hand a state of one shape to each other is a
stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hf_rksp.errors import CaptureError, InputError

#: Class names of layers that transformers checkpoints but that are no residual blocks, by their endings. Both change
#: the shape of the state: stages of image models (Swin's own blocks lie inside), and the convolutions before Wav2Vec2.
_NOT_RESIDUAL = ("Stage", "ConvLayer")
#: Towers that see no text, by a word in their path: a text mask in the batch is not about them.
_NOT_TEXT = re.compile("vision|visual|image|video|audio|speech", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One residual block: its position in the stack, its path in the model, and the module.

    A module that runs several times in one forward pass is a block for each run; see `Stack.layer`.
    """

    index: int
    path: str
    module: nn.Module


@dataclass(frozen=True)
class Stack:
    """The blocks along one residual stream, in the order of depth.

    Attributes:
        path: of their list in the model.
        blocks: in the order of registration; a module that is in the list twice is one block.
        mask: name in the batch of the mask that tells padding from tokens, ``None`` for an image or audio tower.
        prepended: learnt tokens that PEFT's prompt tuning puts before each sequence.
        members: number of modules in the list.
    """

    path: str
    blocks: tuple[Block, ...]
    mask: str | None = "attention_mask"
    prepended: int = 0
    members: int = 0

    def __post_init__(self) -> None:
        if not self.members:
            object.__setattr__(self, "members", 1 + max((block.index for block in self.blocks), default=0))

    def layer(self, block: Block, run: int) -> Block:
        """``block`` in its run number ``run`` (from 0) of one forward pass: each run is a layer of its own."""
        if run == 0:
            return block
        return Block(block.index + run * self.members, f"{block.path} (run {run + 1})", block.module)

    def find(self, index: int) -> Block:
        """The layer of that index: the inverse of `layer`."""
        run, member = divmod(index, self.members)
        return self.layer(next(block for block in self.blocks if block.index == member), run)


def find_stacks(
    model: nn.Module, blocks: str | Sequence[str] | None = None, probe: Callable[[], object] | None = None
) -> list[Stack]:
    """The stacks of residual blocks of ``model``, in the order of their registration.

    Args:
        model: any module; PEFT, DDP and ``torch.compile`` wrappers are looked through.
        blocks: path or paths of the lists, for a model whose blocks are not found: ``"encoder.blocks"``.
        probe: runs one forward pass of the model; used only where nothing else is found.

    Raises:
        InputError: ``blocks`` names no list of modules.
        CaptureError: nothing was found; the message says what was looked at.
    """
    model = getattr(model, "_orig_mod", model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)
    }
    if blocks is not None:
        found = [blocks] if isinstance(blocks, str) else list(blocks)
        for path in found:
            if path not in lists:
                raise InputError(
                    f"blocks={path!r} is not a non-empty ModuleList or Sequential of {type(model).__name__}: "
                    f"choose among {', '.join(map(repr, lists)) or 'none, the model has no such list'}"
                )
        if len(_outermost(found)) < len(found) or len(set(found)) < len(found):
            raise InputError(
                f"blocks={found!r}: a list is named twice, or lies inside another one; name each stream once"
            )
    else:
        found = _outermost(name for name, members in lists.items() if all(map(_is_block, members)))
        if not found and probe is not None:
            found = _outermost(_chained_lists(lists, probe))
    if not found:
        looked = ", ".join(f"{name!r} ({len(inner)} x {type(inner[0]).__name__})" for name, inner in lists.items())
        raise CaptureError(
            f"no residual blocks found in {type(model).__name__}. Looked at these lists of modules: "
            f"{looked or 'none'}. Name the list that carries the residual stream: blocks='path.to.list' "
            "(--blocks on the command line)"
        )
    return [_stack(model, path, lists[path]) for path in found]


def _is_block(module: nn.Module) -> bool:
    # By name, so that this works without transformers and under FSDP, which swaps the class for a subclass of it.
    names = [base.__name__ for base in type(getattr(module, "_orig_mod", module)).__mro__]
    return "GradientCheckpointingLayer" in names and not names[0].endswith(_NOT_RESIDUAL)


def _outermost(names: Iterable[str]) -> list[str]:
    """``names`` without those that lie inside another one: the feed-forward lists of a block are not a stream."""
    names = list(names)
    prefixes = {name: f"{name}." if name else "" for name in names}
    return [name for name in names if not any(name != other and name.startswith(prefixes[other]) for other in names)]


def _stack(model: nn.Module, path: str, members: nn.Module) -> Stack:
    named = enumerate(members.named_children())
    blocks = tuple(Block(i, f"{path}.{name}" if path else name, block) for i, (name, block) in named)
    mask: str | None = "attention_mask"
    if _NOT_TEXT.search(path):
        mask = None
    elif getattr(_attribute(model, "config"), "is_encoder_decoder", False):
        side = re.search("encoder|decoder", path)
        mask = "decoder_attention_mask" if side and side[0] == "decoder" else mask
    prompt = _attribute(model, "active_peft_config")
    return Stack(path, blocks, mask, getattr(prompt, "num_virtual_tokens", None) or 0)


def _attribute(model: nn.Module, name: str) -> object:
    """The attribute of the outermost module that has it, whatever wraps that module."""
    return next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)


def _chained_lists(lists: dict[str, nn.Module], probe: Callable[[], object]) -> list[str]:
    """Names of the lists each of whose members ran once and took, unchanged, what the one before it returned."""
    from hf_rksp.capture.hooks import first_state, output_state

    calls: dict[nn.Module, list[tuple[Tensor | None, Tensor | None]]] = {}

    def record(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        x = first_state(args, kwargs)
        calls.setdefault(module, []).append((x, None if x is None else output_state(output, x)))

    members = {member for container in lists.values() for member in container}
    handles = [member.register_forward_hook(record, with_kwargs=True) for member in members]
    try:
        with torch.no_grad():
            probe()
    finally:
        for handle in handles:
            handle.remove()

    def chains(container: nn.Module) -> bool:
        # A bare layer is no block: Sequential(Linear, ReLU, Linear) chains as well. Nor are channels-first images.
        runs = [calls.get(member, []) if any(member.children()) else [] for member in container]
        if len(runs) < 2 or any(len(run) != 1 or run[0][1] is None or run[0][1].ndim > 3 for run in runs):
            return False
        return all(before[0][1] is after[0][0] for before, after in pairwise(runs))

    return [name for name, container in lists.items() if chains(container)]
