"""Which tokens of a batch count in which stack: padding never enters the statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.errors import CaptureError


def token_mask(batch: Mapping[str, object], stack: Stack, states: Tensor) -> Tensor | None:
    """The mask of shape ``(batch, tokens)`` for ``states`` of this stack, or ``None`` if every token counts.

    A stack with "decoder" in its path reads ``decoder_attention_mask`` where the batch has one or has decoder inputs.
    Prompt and prefix tuning prepend learnt tokens that are the same in every sample: those are left out. A mask that
    belongs to another modality (a text mask beside an image tower) has another length and another role, so towers
    named after vision or audio take every token.

    Raises:
        CaptureError: the mask is longer than the states, so it cannot be told which tokens are padding.
    """
    path = stack.path.lower()
    if any(tower in path for tower in ("vision", "visual", "image", "audio")):
        return None
    if "decoder" in path and any(str(name).startswith("decoder_") for name in batch):
        mask = batch.get("decoder_attention_mask")
    else:
        mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or states.ndim != 3:
        return None
    tokens = states.shape[1]
    if mask.shape == states.shape[:2]:
        return mask.to(states.device)
    if mask.shape[0] == states.shape[0] and mask.shape[1] < tokens:
        prepended = torch.zeros(mask.shape[0], tokens - mask.shape[1], dtype=mask.dtype, device=mask.device)
        return torch.cat([prepended, mask], 1).to(states.device)
    if bool(mask.all()):
        return None
    raise CaptureError(
        f"the attention mask has shape {tuple(mask.shape)} but the states of {stack.path} have {tuple(states.shape[:2])}: "
        "pass batches without padding"
    )
