"""The folders of a run's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

_NUMBER = re.compile(r"checkpoint-(\d+)")
#: Files of a checkpoint whose folder has another name.
_WEIGHTS = ("*model*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "global_step*")


def checkpoints_in(path: Path) -> list[Path]:
    """The folders ``checkpoint-N`` in a run by rising N; ``path`` itself if it is a checkpoint. A link counts by its own name."""
    if path.is_file():
        return []
    found = [(step, folder) for folder in path.iterdir() if (step := step_in(folder)) is not None and folder.is_dir()]
    if found:
        return [folder for _, folder in sorted(found)]
    return [path] if holds_weights(path) or step_in(path) is not None else []


def holds_weights(folder: Path) -> bool:
    """Whether a file or a folder with weights is in ``folder``."""
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def step_in(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; ``None`` if there is none."""
    match = _NUMBER.fullmatch(folder.absolute().name)
    return int(match[1]) if match else None
