"""Do the weights of a checkpoint and the model of its configuration belong together?

What the model needs and the checkpoint lacks would be random numbers, so it is refused. What the checkpoint has and the
model does not take, blocks beyond the number in config.json for instance, is left out of the profile, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hf_rksp.capture import Stack, find_stacks
from hf_rksp.errors import CaptureError, ModelLoadError

#: Tables that older checkpoints carry and newer code makes by itself.
_TABLES = (
    "inv_freq",
    "masked_bias",
    "position_ids",
    "num_batches_tracked",
    "attn.bias",
    "attention.bias",
    "rotary_emb",
)
#: Parts before the blocks: without their weights the states that enter are random.
_EMBEDDINGS = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared)\.", re.IGNORECASE)


def mismatched_keys(loading: Mapping[str, Any]) -> list[str]:
    """Weights that the checkpoint has in another shape than the model."""
    return sorted(str(key[0] if isinstance(key, tuple) else key) for key in loading.get("mismatched_keys", ()))


def refuse_missing(model: nn.Module, loading: Mapping[str, Any], name: str | None, drawn: bool = False) -> None:
    """Refuse weights that would be random: in blocks, in embeddings. A missing head or pooler is off the residual stream.

    Args:
        drawn: weights of another shape may be drawn too, if they are neither in blocks nor in embeddings: those of a head.

    Raises:
        ModelLoadError: names the first of them.
    """
    stacks = _stacks(model)
    paths = tuple(stack.path + "." for stack in stacks) or ("",)
    keys = sorted(map(str, loading.get("missing_keys", ())))
    blocks = [key for key in keys if key.startswith(paths)]
    embeddings = [key for key in keys if key not in blocks and _EMBEDDINGS.search(key)]
    mismatched = mismatched_keys(loading)
    if drawn:
        mismatched = [key for key in mismatched if key.startswith(paths) or _EMBEDDINGS.search(key)]
    for what, found in (
        ("lacks {} weights of the residual blocks", blocks),
        ("lacks {} weights of the embeddings", embeddings),
        ("has another shape for {} weights of the model", mismatched),
    ):
        if found:
            raise ModelLoadError(
                f"the checkpoint {name!r} {what.format(len(found))} ({_some(found)}), which would be random: see that "
                "config.json belongs to these weights, and that they are named as transformers names them"
            )


def left_out(model: nn.Module, unexpected: Iterable[object], name: str | None) -> list[str]:
    """Sentences on weights of residual blocks that the checkpoint has and the model does not take.

    A head that the model does not have is no part of the residual stream, and not spoken of.
    """
    keys = sorted(str(key) for key in unexpected if not any(table in str(key) for table in _TABLES))
    stacks = _stacks(model)
    beyond: dict[str, set[int]] = {}
    inside: list[str] = []
    for key in keys:
        found = _block_of(key, stacks)
        if found is None:
            continue
        path, index, known = found
        if known:
            inside.append(key)
        else:
            beyond.setdefault(path, set()).add(index)
    notes = [
        f"The checkpoint {name!r} has weights of {len(indices)} more layers ({path}: {_span(indices)}), which its configuration "
        "does not have: they are not used, and this is no profile of them."
        for path, indices in beyond.items()
    ]
    if inside:
        notes.append(
            f"The checkpoint {name!r} has {len(inside)} weights in its blocks that the model of its configuration does not have "
            f"({_some(inside)}): they are not used."
        )
    return notes


def _block_of(key: str, stacks: list[Stack]) -> tuple[str, int, bool] | None:
    """Path and index of the block that a weight is of, and whether the model has that block.

    The checkpoint may have other prefixes than the model (``model.``, ``transformer.``, ``base_model.model.``).
    """
    for stack in sorted(stacks, key=lambda stack: -len(stack.path)):
        match = re.search(rf"(?:^|\.)({re.escape(stack.path)})\.(\d+)\.", key)
        if match:
            before, index = key[: match.end(1)], int(match[2])
            return before, index, index < len(stack.blocks) and _same_side(key[: match.start(1)], stacks)
    # A list of the same name elsewhere: the tower of another kind of input, or a stack that this class leaves out.
    names = {stack.path.rsplit(".", 1)[-1] for stack in stacks} - {""}
    for name in names:
        match = re.search(rf"(?:^|\.){re.escape(name)}\.(\d+)\.", key)
        if match:
            return key[: match.start(1) - 1], int(match[1]), False
    return None


def _same_side(prefix: str, stacks: list[Stack]) -> bool:
    """Whether a prefix is only that of a wrapper: ``vision_tower.encoder.`` before ``layers`` is another tower."""
    return prefix.rstrip(".") in (
        "",
        "model",
        "transformer",
        "base_model",
        "base_model.model",
        "base_model.model.model",
    ) or (prefix.count(".") <= 1 and not re.search("vision|visual|audio|speech|encoder|decoder", prefix))


def _stacks(model: nn.Module) -> list[Stack]:
    try:
        return find_stacks(model)
    except CaptureError:
        return []


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _span(indices: set[int]) -> str:
    first, last = min(indices), max(indices)
    return str(first) if first == last else f"{first} to {last}"
