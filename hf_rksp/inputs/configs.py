"""The configuration of a model with random weights: a preset, a file, a folder or a Hub id, with overrides."""

from __future__ import annotations

import json
from typing import Any

from hf_rksp.errors import InputError, ModelLoadError, first_line
from hf_rksp.inputs.checkpoints import local_folder
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.source import ModelSource


def load_config(source: ModelSource) -> Any:
    """The configuration of ``source.init`` with its overrides; derived values are derived anew."""
    from transformers import AutoConfig, PreTrainedConfig

    import hf_rksp.architectures  # noqa: F401 - registers them

    assert source.init is not None
    if source.init in PRESETS:
        values = dict(PRESETS[source.init])
    else:
        folder = local_folder(source.init)
        try:
            if folder is not None and folder.is_file():
                values = json.loads(folder.read_text(encoding="utf-8"))
            else:
                values, _ = PreTrainedConfig.get_config_dict(str(folder or source.init), revision=source.revision)
        except (OSError, ValueError) as error:
            raise ModelLoadError(
                f"no configuration for init={source.init!r}: {first_line(error)}. Pass a preset ({', '.join(PRESETS)}), a "
                "folder or file with a config.json, or a Hub id (which needs a network)"
            ) from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelLoadError(
            f"init={source.init!r}: the configuration has no model_type; pass a config.json as transformers saves it"
        )
    values.pop("transformers_version", None)
    try:
        if "auto_map" in values:
            plain = AutoConfig.from_pretrained(
                source.init, trust_remote_code=source.trust_remote_code, revision=source.revision
            )
        else:
            plain = AutoConfig.for_model(**values)
        overrides = _parse_overrides(source.config_overrides, plain)
        if not overrides:
            return plain
        return AutoConfig.for_model(**(values | overrides))
    except InputError:
        raise
    except Exception as error:  # configurations are validated by code of every model, each with its own exceptions
        raise ModelLoadError(
            f"init={source.init!r} with config_overrides={source.config_overrides!r}: {first_line(error)}"
        ) from None


def _parse_overrides(text: str | None, config: Any) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise InputError(f"config_overrides: {item!r} is not key=value; write key=value,key=value")
        if not hasattr(config, key):
            raise InputError(f"config_overrides: {key!r} is not a key of a {config.model_type} configuration")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
        old = getattr(config, key)
        for kind in (bool, int, float):
            if isinstance(old, kind):
                fits = (
                    isinstance(parsed, bool)
                    if kind is bool
                    else isinstance(parsed, (int, float)) and not isinstance(parsed, bool)
                )
                if kind is int and isinstance(parsed, float):
                    fits = False
                if not fits:
                    raise InputError(
                        f"config_overrides: {key}={value!r} has to be a {kind.__name__}, like the default {old!r}"
                    )
                break
        overrides[key] = parsed
    return overrides
