"""Does THIS model give the same moments alone and padded, in batches of 1 and 8, in float32 and bfloat16?

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
from hf_rksp.config import SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.inputs.prepare import with_decoder_inputs
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
        check: "alone_vs_padded", "batch_1_vs_8" or "float32_vs_bfloat16".
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
    padded = [_padded(ids[i : i + 8], lengths[i : i + 8]) for i in range(0, len(ids), 8)]
    ones = [_batch(ids[i : i + 1]) for i in range(len(ids))]
    eights = [_batch(part) for part in ids.split(8)]

    def run(variant: nn.Module, batches: Sequence[Mapping[str, Any]]) -> dict[Key, SecondMoments]:
        with untouched(variant), torch.compiler.set_stance("force_eager"):
            stacks = find_stacks(variant, blocks)
            batches = [with_decoder_inputs(variant, dict(batch)) for batch in batches]
            layers = survey(variant, batches[0], stacks)
            moments, _ = gather_moments(variant, batches, stacks, layers, groups=1)
        return {key: groups[0] for key, groups in moments.items()}

    base = run(model, eights)
    return [
        _compare("alone_vs_padded", run(model, alone), run(model, padded), FLOAT32_TOLERANCE),
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


def _padded(ids: Tensor, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Right-padded to the longest; the padding repeats token 0, which the mask hides."""
    mask = torch.stack([(torch.arange(ids.shape[1]) < n).long() for n in lengths])
    return {"input_ids": ids * mask, "attention_mask": mask}
