"""What goes beside the main input: boxes, labels, the text of a decoder."""

from __future__ import annotations

from typing import Any

import torch


class NotThisWay(Exception):
    """The configuration says that the model is not called like that."""


def extra(maker: Any, but: Any = ()) -> dict[str, Any]:
    """Arguments that a forward needs, or that make sense beside the main ones."""
    made: dict[str, Any] = {}
    needed = {name for name, parameter in maker.names.items() if parameter.default is parameter.empty}
    length = maker.length
    if "bbox" in maker.names:
        corners = torch.randint(0, 50, (8, length, 2), generator=maker.generator)
        made["bbox"] = torch.cat(
            [corners, corners + torch.randint(1, 20, (8, length, 2), generator=maker.generator)], -1
        )
    if "decoder_input_ids" not in maker.names and "labels" in needed:
        made["labels"] = maker.ids(length)
    return {name: value for name, value in made.items() if name not in but}


def target(maker: Any) -> dict[str, Any]:
    if "decoder_input_ids" not in maker.names:
        return {}
    vocabulary = maker.find("tgt_vocab_size", "decoder_vocab_size", default=None)
    vocabulary = vocabulary if isinstance(vocabulary, int) else None
    ids = maker.ids(13, vocabulary)
    if "decoder_attention_mask" not in maker.names:
        return {"decoder_input_ids": ids}
    keep = maker.mask(13)
    padding = maker.find("pad_token_id", default=0)
    padding = padding if isinstance(padding, int) and 0 <= padding < maker.vocabulary else 0
    maker.padded["decoder_input_ids"] = keep
    return {"decoder_input_ids": torch.where(keep.bool(), ids, padding), "decoder_attention_mask": keep}
