"""Does THIS model give the same moments alone and padded on either side, in batches of 1 and 8, in float32 and bfloat16?

A profile is only as good as the states it is made of. Some models let padding or the company in a batch reach a
sequence's states (a wrong mask, capacity limits of experts, a fast path for one shape); this finds out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import find_stacks, untouched
from hf_rksp.capture.calling import eager, forward, takes, with_decoder_inputs
from hf_rksp.capture.refusals import none_ran
from hf_rksp.config import SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.profile.gather import Key, gather_moments, survey
from hf_rksp.spectral import SecondMoments, eigenvalue_masses, whitened_dmd

#: Rounding in float32 grows with depth to about 1e-5; a padding bug changes moments by more than 1e-2.
FLOAT32_TOLERANCE = 1e-3
#: bfloat16 keeps 8 bits: each state is off by up to 0.4%, products of two by twice that, summed over a few layers.
BFLOAT16_TOLERANCE = 5e-2
MASS_TOLERANCE = 0.05


@dataclass(frozen=True)
class Agreement:
    """How far two ways of running the same sequences are apart.

    Attributes:
        check: "alone_vs_padded", "right_vs_left_padding", "right_vs_left_with_position_ids" (only if the one before differs and
            the model takes them), "batch_1_vs_8" or "float32_vs_bfloat16".
        moment_difference: largest relative Frobenius difference of Cxx, Cyx, Cyy over the layers.
        mass_difference: largest absolute difference of a layer's near-unit mass.
        layer: the layer with the largest difference of moments.
        moment_tolerance, mass_tolerance: what counts as the same.
        agrees: both differences are within their tolerance.
    """

    check: str
    moment_difference: float
    mass_difference: float
    layer: str
    moment_tolerance: float
    mass_tolerance: float
    agrees: bool


def check_model(model: nn.Module, ids: Tensor, blocks: str | Sequence[str] | None = None) -> list[Agreement]:
    """Run the same sequences in different ways and compare the second moments of every layer.

    Args:
        model: a transformers model that takes ``input_ids`` and ``attention_mask``, in float32; a copy is cast to bfloat16.
        ids: token ids, shape ``(n, length)``, at least 8 sequences of at least 4 tokens.
        blocks: as in `hf_rksp.profile_model`.

    Raises:
        InputError: too few sequences. CaptureError: no block ran, or one ran several times in a forward pass.
    """
    if ids.ndim != 2 or ids.shape[0] < 8 or ids.shape[1] < 4:
        raise InputError(f"ids has shape {tuple(ids.shape)}: pass at least 8 sequences of at least 4 tokens")
    # Lengths from a half to the whole, so that a batch really is padded.
    length = ids.shape[1]
    lengths = [length - (length // 2) * (i % 4) // 3 for i in range(ids.shape[0])]
    alone = [_batch(ids[i : i + 1, : lengths[i]]) for i in range(len(ids))]
    padding = _padding_id(model)
    right = [_padded(ids[i : i + 8], lengths[i : i + 8], padding) for i in range(0, len(ids), 8)]
    left = [{name: _turned(value, batch["attention_mask"]) for name, value in batch.items()} for batch in right]
    ones = [_batch(ids[i : i + 1]) for i in range(len(ids))]
    eights = [_batch(part) for part in ids.split(8)]

    def run(variant: nn.Module, batches: Sequence[Mapping[str, Any]]) -> dict[Key, SecondMoments]:
        with untouched(variant), eager():
            batches = [with_decoder_inputs(variant, dict(batch)) for batch in batches]
            stacks = find_stacks(variant, blocks, probe=lambda: forward(variant, batches[0]))
            layers = survey(variant, batches[0], stacks)
            if not layers:
                raise none_ran(stack.path for stack in stacks)
            moments, _ = gather_moments(variant, batches, stacks, layers, groups=1)
        return {key: groups[0] for key, groups in moments.items()}

    base, to_the_right = run(model, eights), run(model, right)
    sides = [_compare("right_vs_left_padding", to_the_right, run(model, left), FLOAT32_TOLERANCE)]
    if not sides[0].agrees and takes(model, "position_ids"):
        told = [batch | {"position_ids": _positions(batch["attention_mask"])} for batch in left]
        sides.append(_compare("right_vs_left_with_position_ids", to_the_right, run(model, told), FLOAT32_TOLERANCE))
    return [
        _compare("alone_vs_padded", run(model, alone), to_the_right, FLOAT32_TOLERANCE),
        *sides,
        _compare("batch_1_vs_8", run(model, ones), base, FLOAT32_TOLERANCE),
        _compare("float32_vs_bfloat16", base, run(_in_bfloat16(model), eights), BFLOAT16_TOLERANCE),
    ]


def _compare(check: str, one: dict[Key, SecondMoments], other: dict[Key, SecondMoments], tolerance: float) -> Agreement:
    differences = {key: _relative_difference(one[key], other[key]) for key in one}
    worst = max(differences, key=lambda key: differences[key])
    mass = max(abs(_near_unit_mass(one[key]) - _near_unit_mass(other[key])) for key in one)
    agrees = differences[worst] <= tolerance and mass <= MASS_TOLERANCE
    return Agreement(check, differences[worst], mass, f"{worst[0]}.{worst[1]}", tolerance, MASS_TOLERANCE, agrees)


def _relative_difference(one: SecondMoments, other: SecondMoments) -> float:
    if one.count != other.count:
        return math.inf
    pairs = ((getattr(one, name), getattr(other, name)) for name in ("cxx", "cyx", "cyy"))
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def _near_unit_mass(moments: SecondMoments) -> float:
    masses, _ = eigenvalue_masses(whitened_dmd(moments, "auto", SpectralConfig()))
    return masses.near_unit_mass


def _in_bfloat16(model: nn.Module) -> nn.Module:
    """A copy with bfloat16 weights; buffers (rotary tables among them) keep their precision, as from_pretrained has it."""
    low = copy.deepcopy(model)
    for parameter in low.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    if hasattr(low, "config"):
        low.config.dtype = torch.bfloat16
    return low


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _padded(ids: Tensor, lengths: Sequence[int], padding: int) -> dict[str, Tensor]:
    """Padded on the right, to the longest."""
    mask = torch.stack([(torch.arange(ids.shape[1]) < n).long() for n in lengths])
    return {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}


def _turned(rows: Tensor, mask: Tensor) -> Tensor:
    """The same rows with their padding on the left."""
    return torch.stack([row.roll(int((keep == 0).sum())) for row, keep in zip(rows, mask, strict=True)])


def _positions(mask: Tensor) -> Tensor:
    """Counted from the first token that is none of padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _padding_id(model: nn.Module) -> int:
    """The model's own token for padding, which some count their positions by; 0 if it has none that it could look up."""
    token = getattr(getattr(model, "config", None), "pad_token_id", None)
    rows = getattr(getattr(model, "config", None), "vocab_size", None)
    return token if isinstance(token, int) and 0 <= token < (rows or token + 1) else 0
