"""Find the residual blocks of a model: the members of the list that carries the residual stream.

In transformers every such member is a ``GradientCheckpointingLayer``; a list of nothing but those is a stack. Models
without one (your own, or remote code) are probed: a list whose members hand a tensor of one shape to each other is a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_rksp.errors import CaptureError, InputError

#: model_type -> paths of its stacks, where the rule above picks the wrong lists.
#: Swin nests its blocks in stages that change the width between them, so each stage is a stack of its own.
_NESTED_STACKS = {"swin", "swinv2", "donut-swin", "maskformer-swin"}


@dataclass(frozen=True)
class Block:
    """One residual block: its position in the stack, its path in the model, and the module."""

    index: int
    path: str
    module: nn.Module


@dataclass(frozen=True)
class Stack:
    """The blocks along one residual stream, in the order of depth; ``path`` names their list in the model."""

    path: str
    blocks: tuple[Block, ...]


def find_stacks(
    model: nn.Module, blocks: str | Sequence[str] | None = None, probe: Callable[[], object] | None = None
) -> list[Stack]:
    """The stacks of residual blocks of ``model``, outermost lists only, in the order of their registration.

    Args:
        model: any module; PEFT, DDP and ``torch.compile`` wrappers are looked through.
        blocks: path or paths of the lists, for a model whose blocks are not found: ``"encoder.blocks"``.
        probe: runs one forward pass of the model; used only where nothing else is found.

    Raises:
        InputError: ``blocks`` names no list of modules.
        CaptureError: nothing was found; the message says what was looked at.
    """
    model = getattr(model, "_orig_mod", model)
    if blocks is not None:
        return [_named_stack(model, path) for path in ([blocks] if isinstance(blocks, str) else blocks)]
    lists = {name: module for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)}
    nested = getattr(getattr(model, "config", None), "model_type", None) in _NESTED_STACKS
    found = [name for name, members in lists.items() if all(_is_block(member) for member in members)]
    found = _innermost(found) if nested else _outermost(found)
    if not found and probe is not None:
        found = _outermost(_chained_lists(lists, probe))
    if not found:
        looked = ", ".join(f"{name} ({len(members)} x {type(members[0]).__name__})" for name, members in lists.items())
        raise CaptureError(
            f"no residual blocks found in {type(model).__name__}. Looked at these lists of modules: {looked or 'none'}. "
            "Name the list that carries the residual stream: blocks='path.to.list' (--blocks on the command line)"
        )
    return [_stack(name, lists[name]) for name in found]


def _is_block(module: nn.Module) -> bool:
    # By name, so that this works without transformers and under FSDP, which swaps the class for a subclass of it.
    return any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)


def _stack(path: str, members: nn.Module) -> Stack:
    blocks = (Block(i, f"{path}.{i}" if path else str(i), block) for i, block in enumerate(members.children()))
    return Stack(path, tuple(blocks))


def _named_stack(model: nn.Module, path: str) -> Stack:
    try:
        members = model.get_submodule(path)
    except AttributeError:
        members = None
    if not isinstance(members, (nn.ModuleList, nn.Sequential)) or not len(members):
        lists = [name for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)]
        raise InputError(
            f"blocks={path!r} is not a non-empty ModuleList or Sequential of {type(model).__name__}: "
            f"choose among {', '.join(repr(name) for name in lists) or 'none, the model has no such list'}"
        )
    return _stack(path, members)


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(_inside(name, other) for other in names)]


def _innermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(_inside(other, name) for other in names)]


def _inside(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(other + "."))


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
        runs = [calls.get(member, []) for member in container]
        if len(runs) < 2 or any(len(run) != 1 or run[0][1] is None for run in runs):
            return False
        return all(before[0][1] is after[0][0] for before, after in zip(runs, runs[1:], strict=False))

    return [name for name, container in lists.items() if chains(container)]
