"""Which model is asked for, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hf_rksp.errors import InputError
from hf_rksp.inputs.paths import as_path, is_there

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Folder names that say nothing of the model: the name of the folder above goes in front.
_GENERIC_NAMES = ("model", "checkpoint", "final", "output", "config.json")


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how to load it. Exactly one of ``model`` and ``init`` is given.

    Attributes:
        model: Hub id, local folder, or a ``.gguf`` file.
        init: a preset, a Hub id, a folder or a ``config.json``: random weights of that configuration.
        config_overrides: ``key=value,key=value`` for ``init``.
        seed: of the random weights.
        dtype: "auto" (the checkpoint's own; float32 for random weights) or a name of `DTYPES`.
        device: where the model goes, for example "cpu" or "cuda:0"; "auto" spreads it over what accelerate finds.
        revision: of the Hub repository.
        base_model: base model of a PEFT adapter, if the one named in the adapter is not available.
        trust_remote_code: run code from the repository. Off unless asked for.
        stream: keep one residual block in memory at a time, for a model larger than memory.
        head: "none" for the residual stream alone, or the head of an objective: "causal", "masked", "classification". What a
            checkpoint lacks of it is drawn at random.
        classes: of a classification head; ``None`` for those of the configuration.
    """

    model: str | None = None
    init: str | None = None
    config_overrides: str | None = None
    seed: int = 42
    dtype: str = "auto"
    device: str = "cpu"
    revision: str | None = None
    base_model: str | None = None
    trust_remote_code: bool = False
    stream: bool = False
    head: str = "none"
    classes: int | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise InputError(
                "pass either a model (Hub id or folder) or --init CONFIG for random weights, not both and not neither"
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise InputError(f"dtype={self.dtype!r}: choose among auto, {', '.join(DTYPES)}")
        if self.config_overrides and self.init is None:
            raise InputError("config_overrides (--config-overrides) changes a configuration, so it needs --init CONFIG")
        if self.base_model is not None and self.init is not None:
            raise InputError(
                f"base_model={self.base_model!r} is for a PEFT adapter, and --init makes a model anew: leave it out"
            )
        if self.stream and self.device != "cpu":
            raise InputError(f"stream (--stream) keeps the blocks off a device: leave device={self.device!r} out")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: pass a whole number from 0 to 2^63 - 1")

    @property
    def head_options(self) -> dict[str, Any]:
        """What a configuration gets for a head with ``classes``; nothing without them."""
        if self.classes is None:
            return {}
        return {"num_labels": self.classes, "problem_type": "single_label_classification"}

    @property
    def loading_options(self) -> dict[str, Any]:
        """The same for a checkpoint: a head of other classes is drawn."""
        return self.head_options | ({"ignore_mismatched_sizes": True} if self.classes is not None else {})

    @property
    def name(self) -> str:
        """Short name for titles and file names."""
        given = self.model or self.init or ""
        path = as_path(given)
        if not is_there(path):
            return given
        path = path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name in _GENERIC_NAMES else path.name
