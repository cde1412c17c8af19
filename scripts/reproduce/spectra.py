"""The spectra of a network as several experiments record them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_rksp import profile_model
from hf_rksp.errors import DegenerateMomentsError, NonFiniteError


def means_of_blocks(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, float] | None:
    """Mean over the blocks of every quantity, on one batch; ``None`` if the states are not finite or do not vary."""
    try:
        found = profile_model(model, [inputs], groups=0, progress=False).aggregates
    except (NonFiniteError, DegenerateMomentsError):
        return None
    return {name: round(float(each["mean"]), 4) for name, each in found.items() if each["mean"] is not None}
