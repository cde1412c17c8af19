"""Which class of transformers a model is made as: with the head that an objective needs, or without one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from hf_rksp.errors import InputError

Head = Literal["none", "causal", "masked", "classification"]
_CLASSES = {
    "none": "AutoModel",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
}


def auto_class(head: str) -> Any:
    """The auto class of transformers for ``head``.

    Raises:
        InputError: no such head.
    """
    import transformers

    if head not in _CLASSES:
        raise InputError(f"head={head!r}: choose among {', '.join(_CLASSES)}")
    return getattr(transformers, _CLASSES[head])


def head_of(config: Any) -> Head:
    """The head that a configuration suggests: that of its ``architectures``, else that of its kind of model.

    "causal" for ``None``.
    """
    if config is None:
        return "causal"
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    named = " ".join(getattr(config, "architectures", None) or ())
    if "SequenceClassification" in named:
        return "classification"
    if "MaskedLM" in named:
        return "masked"
    if "CausalLM" in named or "LMHeadModel" in named:
        return "causal"
    # Encoders can be made to predict the next token too (BertLMHeadModel), and nobody does.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        return "masked"
    return "causal" if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else "none"


def drawn(missing: Iterable[object]) -> list[str]:
    """A sentence on the weights of a head that the checkpoint lacks, or nothing."""
    keys = sorted(map(str, missing))
    if not keys:
        return []
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return [f"The checkpoint has no such head: its weights are drawn at random ({', '.join(keys[:3])}{more})."]
