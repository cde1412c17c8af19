"""Which tokens of a batch count in which stack: padding never enters the statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_rksp.capture.blocks import Stack
from hf_rksp.errors import CaptureError

#: The label of a token without a loss, in every loss of transformers.
_IGNORED = -100


def token_mask(batch: Mapping[str, object], stack: Stack, states: Tensor) -> Tensor | None:
    """The mask of shape ``(batch, tokens)`` for ``states`` of this stack, or ``None`` if every token counts.

    It is the entry ``stack.mask`` of the batch. In the decoder of an encoder-decoder, which collators give none, the
    tokens with a label count. Learnt tokens of prompt tuning are the same in every sequence: they are left out. Image
    and audio towers take every position.

    Raises:
        CaptureError: something is padding, but the mask has another shape than the states.
    """
    if stack.mask is None:
        return None
    mask = batch.get(stack.mask)
    labels = batch.get("labels")
    if mask is None and stack.mask == "decoder_attention_mask" and isinstance(labels, Tensor) and labels.ndim == 2:
        mask = labels != _IGNORED
    elif mask is None and stack.mask == "decoder_attention_mask" and "decoder_input_ids" not in batch:
        # The model makes decoder inputs of its own (BART): the text, shifted by the start token, and as long.
        text = batch.get("attention_mask")
        mask = text if isinstance(text, Tensor) and text.shape == states.shape[:-1] else None
    if mask is None and stack.prepended:
        ids = batch.get(stack.mask.replace("attention_mask", "input_ids"))
        mask = torch.ones_like(ids) if isinstance(ids, Tensor) else None
    if not isinstance(mask, Tensor):
        return None
    # Prefix tuning has learnt tokens too, but in the cache: they are in front only where the length says so.
    if mask.ndim == 2 and stack.prepended and mask.shape[1] + stack.prepended == states.shape[1]:
        mask = torch.nn.functional.pad(mask, (stack.prepended, 0))
    if mask.shape == states.shape[:-1]:
        return mask.to(states.device)
    if bool(mask.all()):
        return None
    raise CaptureError(
        f"{stack.mask} has shape {tuple(mask.shape)} but the states of {stack.path} have {tuple(states.shape[:-1])}, "
        "so it does not say which of them are padding: pass batches without padding"
    )
