"""Errors for models and blocks that cannot be read, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from hf_rksp.capture.chains import ModuleLists, Run
from hf_rksp.errors import CaptureError

#: Remedies if it cannot be decided which states are tokens.
REMEDY = (
    "pass batches of one kind of input without padding, or name the lists of blocks that can be read with blocks=[...]"
)


def nothing_found(model: nn.Module, lists: ModuleLists, runs: Mapping[str, list[Run]]) -> CaptureError:
    """The error for a model in which no list carries a residual stream, with what its lists of modules do."""
    names = [f"{name!r} ({len(inner)} x {type(inner[0]).__name__})" for name, inner in lists.items()]
    looked = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    text = f"no residual blocks found in {type(model).__name__}. Looked at these lists of modules: {looked or 'none'}. "
    if runs and lists and not any(runs.values()):
        return CaptureError(
            f"{text}None of them was called in the forward pass: a model that calls their forward() itself goes past all hooks, "
            "and nothing can be looked at"
        )
    kinds = {name: {run.width_last for run in runs.get(name, ()) if any(run.module.children())} for name in lists}
    convolutions = [name for name, kind in kinds.items() if kind == {False}]
    if convolutions and not any(True in kind for kind in kinds.values()):
        return CaptureError(
            f"{text}The states of {convolutions[0]!r} have their channels in the second axis, as in a convolutional network: they "
            "are no residual stream of tokens"
        )
    lengths = {name: len(inner) for name, inner in lists.items() if "." not in name and len(inner) > 1}
    if len(lengths) > 2 and len({*lengths.values()}) == 1:
        return CaptureError(
            f"{text}Each block is spread over them, so no module takes a state and returns the next one: nothing can be looked at"
        )
    return CaptureError(
        f"{text}Name the list that carries the residual stream: blocks='path.to.list' (--blocks on the command line)"
    )


def not_residual(path: str, module: nn.Module, x: Tensor | None) -> CaptureError:
    """The error for a module that took no hidden state, or returned none of the shape of ``x``."""
    seen = "no hidden state" if x is None else f"a state of shape {tuple(x.shape)} but returned none"
    return CaptureError(
        f"block {path} ({type(module).__name__}) took {seen}: it is not a residual block. Name the list "
        "of residual blocks with blocks='path.to.list' (--blocks on the command line)"
    )


def no_tokens(path: str, states: Tensor) -> CaptureError:
    """The error for states whose second axis holds the channels."""
    return CaptureError(
        f"the states of {path} have shape {tuple(states.shape)} with the channels in the second axis, as in a "
        "convolutional network: they are no residual stream of tokens"
    )


def none_ran(paths: Iterable[str]) -> CaptureError:
    """The error for lists of blocks that no batch reaches."""
    return CaptureError(
        f"none of the blocks of {', '.join(paths)} ran in the forward pass: pass inputs that reach them, or name the list with "
        "blocks='path.to.list'"
    )
