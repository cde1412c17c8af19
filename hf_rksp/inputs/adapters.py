"""A PEFT adapter on its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hf_rksp.errors import ModelLoadError, cause_of
from hf_rksp.inputs.checkpoints import as_transformers_wants, check_folder, local_folder, tensor_names
from hf_rksp.inputs.fit import left_out, refuse_missing
from hf_rksp.inputs.heads import auto_class
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.source import DTYPES, ModelSource

_PEFT_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def adapter_config(source: ModelSource, folder: Path) -> tuple[Any, str, Path | None]:
    """The adapter's configuration, its base model, and the folder of that if it is on this disk.

    Raises:
        ModelLoadError: the configuration cannot be read, or there is no base model.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r}: adapter_config.json cannot be read: {cause_of(error)}"
        ) from error
    base = source.base_model or config.base_model_name_or_path
    if not base or not isinstance(base, str):
        raise ModelLoadError(f"adapter {source.model!r} names no base model: pass --base-model ID_OR_FOLDER")
    try:
        return config, base, local_folder(base)
    except ModelLoadError as error:
        raise ModelLoadError(f"adapter {source.model!r}: its base model {error}: pass --base-model") from None


def load_adapter(source: ModelSource, folder: Path) -> tuple[nn.Module, dict[str, Any], str, list[str]]:
    """Model, what the report says of it, folder or id of the base, and notes.

    Raises:
        ModelLoadError: the adapter or its base cannot be loaded, or they do not fit.
    """
    import transformers
    from peft import PeftModel

    config, base, base_folder = adapter_config(source, folder)
    found = check_folder(base_folder) if base_folder is not None else None
    auto = getattr(transformers, _PEFT_CLASSES.get(str(config.task_type).removeprefix("TaskType."), "AutoModel"))
    if source.head != "none" and auto is not auto_class(source.head):
        raise ModelLoadError(
            f"adapter {source.model!r} is for task_type={config.task_type!r}, and the objective is {source.head}: pass the "
            "--objective that the adapter was trained for, or the base model"
        )
    options: dict[str, Any] = {
        "dtype": DTYPES.get(source.dtype, "auto"),
        "trust_remote_code": source.trust_remote_code,
        "output_loading_info": True,
        **source.loading_options,
    }
    try:
        with hub_or_cache(needed=base_folder is None):
            if base_folder is not None and found is not None:
                with as_transformers_wants(base_folder, found) as view:
                    model, loading = auto.from_pretrained(str(view), **options)
            else:
                model, loading = auto.from_pretrained(base, **options)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r}: its base model {base!r} cannot be loaded ({cause_of(error)})"
            f"{hint() if base_folder is None else ''}; pass --base-model ID_OR_FOLDER"
        ) from error
    refuse_missing(model, loading, base, drawn=source.classes is not None)
    notes = left_out(model, loading.get("unexpected_keys", ()), base)
    try:
        model = PeftModel.from_pretrained(model, str(folder), is_trainable=source.head != "none")
    except Exception as error:
        raise ModelLoadError(
            f"adapter {source.model!r} does not fit its base model {base!r}: {cause_of(error)}"
        ) from error
    notes += _without_a_place(model, source, folder)
    info = {
        "name": source.name,
        "source": "pretrained",
        "path": source.model,
        "base_model": base,
        "adapter": str(config.peft_type),
    }
    return model, info, str(base_folder or base), notes


def _without_a_place(model: Any, source: ModelSource, folder: Path) -> list[str]:
    """Notes on weights of the adapter for layers that the base does not have, which PEFT passes over in silence."""
    from peft import get_peft_model_state_dict

    files = [path for path in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if path.is_file()]
    taken = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    return left_out(model, set(tensor_names(files[0])) - taken, source.model)
