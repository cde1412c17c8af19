"""The configuration of a model with random weights: a preset, a file, a folder or a Hub id, with overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError, ModelLoadError, RkspError, cause_of
from hf_rksp.inputs.checkpoints import local_folder
from hf_rksp.inputs.damage import damage
from hf_rksp.inputs.hub import hint, hub_or_cache
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.source import ModelSource


def load_config(source: ModelSource) -> Any:
    """The configuration of ``source.init`` with its overrides; derived values are derived anew."""
    from transformers import AutoConfig

    import hf_rksp.architectures  # noqa: F401 - registers them

    assert source.init is not None
    folder = None if source.init in PRESETS else local_folder(source.init)
    values = dict(PRESETS[source.init]) if source.init in PRESETS else _values(source.init, source.revision, folder)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ModelLoadError(
            f"init={source.init!r}: the configuration has no model_type; pass a config.json as transformers saves it"
        )
    values.pop("transformers_version", None)
    try:
        if "auto_map" in values:
            with hub_or_cache(needed=folder is None):
                plain = AutoConfig.from_pretrained(
                    config_place(source.init) or source.init,
                    trust_remote_code=source.trust_remote_code,
                    revision=source.revision,
                )
        else:
            plain = AutoConfig.for_model(**values)
        overrides = _parse_overrides(source.config_overrides, plain)
        if not overrides:
            return plain
        return AutoConfig.for_model(**(values | overrides))
    except RkspError:
        raise
    except Exception as error:  # configurations are validated by code of every model, each with its own exceptions
        changed = f" with config_overrides={source.config_overrides!r}" if source.config_overrides else ""
        remedy = ": read its code, then pass --trust-remote-code" if "trust_remote_code" in str(error) else ""
        raise ModelLoadError(f"init={source.init!r}{changed}: {cause_of(error)}{remedy}") from None


def config_place(init: str) -> str | None:
    """Folder or Hub id of a configuration, with the files that belong to it; ``None`` for a single file."""
    path = local_folder(init)
    if path is None:
        return init
    if path.is_dir():
        return str(path)
    return str(path.parent) if path.name == "config.json" else None


def _values(init: str, revision: str | None, place: Path | None) -> Any:
    """The entries of a configuration; a file is read as its folder is."""
    from transformers import PreTrainedConfig

    file = place / "config.json" if place is not None and place.is_dir() else place
    try:
        if file is None:
            with hub_or_cache():
                return PreTrainedConfig.get_config_dict(init, revision=revision)[0]
        # utf-8-sig: editors put a mark in front of it.
        return json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_number)
    except Exception as error:  # of the file system, of JSON, of huggingface_hub
        what = damage(file) if file is not None else None
        cause = f"{file.name} {what}" if file is not None and what else cause_of(error)
        raise ModelLoadError(
            f"no configuration for init={init!r}: {cause}{hint() if file is None else ''}. Pass a preset "
            f"({', '.join(PRESETS)}), a folder or file with a config.json, or a Hub id (which needs a network)"
        ) from None


def _number(entry: dict[str, Any]) -> Any:
    """transformers writes what JSON lacks as ``{"__float__": "Infinity"}``; the bare words are read as well."""
    if list(entry) == ["__float__"] and entry["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(entry["__float__"])
    return entry


def _parse_overrides(text: str | None, config: Any) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise InputError(f"config_overrides: {item!r} is not key=value; write key=value,key=value")
        old = getattr(config, key, _parse_overrides)
        if callable(old) or key.startswith("_"):
            raise InputError(f"config_overrides: {key!r} is not a key of a {config.model_type} configuration")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
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
