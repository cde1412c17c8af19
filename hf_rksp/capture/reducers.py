"""How many frames do so many samples become? The model's own answer, as a mask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.blocks import Stack, inside
from hf_rksp.capture.rules import Reducer

#: Names that transformers has for "how many frames do so many samples become".
_REDUCERS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")


def reducer_of(model: nn.Module, stack: Stack) -> Reducer | None:
    """The way from samples to frames: of a module that the stack lies in, else of any."""
    owners = [
        (not name or inside(f"{stack.path}.", name), getattr(module, method))
        for name, module in model.named_modules()
        for method in _REDUCERS
        if hasattr(module, method)
    ]
    owners.sort(key=lambda pair: not pair[0])
    return _frames(owners[0][1]) if owners else None


def _frames(method: Callable[..., Any]) -> Reducer:
    """The mask over frames from the mask over samples, by a method of the model that counts frames."""

    def lengths(samples: Tensor) -> list[Tensor]:
        for more in ({"add_adapter": False}, {}):
            with contextlib.suppress(Exception):  # a method of the model's own, which may want another configuration
                found = method(samples, **more)
                each = found if isinstance(found, (tuple, list)) else [found]
                counted = [n for n in each if isinstance(n, Tensor) and n.shape == samples.shape]
                if counted:
                    return counted
        with contextlib.suppress(Exception):  # some count for one sound at a time
            return [samples.new_tensor([int(method(number)) for number in samples])]
        return []

    def reduce(real: Tensor, frames: int) -> Tensor | None:
        # Only padding at the end is a number of samples.
        ones = real.sum(1)
        if not bool((real == (torch.arange(real.shape[1], device=real.device) < ones[:, None])).all()):
            return None
        for whole, own in zip(lengths(ones.new_tensor([real.shape[1]])), lengths(ones), strict=False):
            if int(whole[0]) == frames:
                return torch.arange(frames, device=real.device) < own.to(real.device)[:, None]
        return None

    return reduce
