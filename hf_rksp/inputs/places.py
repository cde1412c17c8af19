"""Where the model's own tokenizer lies, found out before any weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_rksp.errors import ModelLoadError, cause_of
from hf_rksp.inputs.adapters import adapter_config
from hf_rksp.inputs.checkpoints import check_folder, check_gguf, is_adapter, local_folder
from hf_rksp.inputs.configs import config_place
from hf_rksp.inputs.models import check_on_hub
from hf_rksp.inputs.presets import PRESETS
from hf_rksp.inputs.source import ModelSource
from hf_rksp.inputs.tokenizers import TokenizerPlace


def own_tokenizer(source: ModelSource) -> TokenizerPlace | None:
    """The place of the tokenizer that belongs to the model, or ``None`` if nothing lies with it.

    Raises:
        ModelLoadError: the model itself is not there, or its files are broken.
    """
    if source.init is not None:
        place = None if source.init in PRESETS else config_place(source.init)
        return TokenizerPlace(place) if place else None
    assert source.model is not None
    folder = local_folder(source.model)
    if folder is None:
        check_on_hub(source)
        return TokenizerPlace(source.model)
    if folder.suffix == ".gguf":
        check_gguf(folder)
        return TokenizerPlace(str(folder.parent), folder.name)
    check_folder(folder)
    if not is_adapter(folder):
        _check_config(source, folder)
    if is_adapter(folder) and not TokenizerPlace(str(folder)).files:
        _, base, base_folder = adapter_config(source, folder)
        try:
            return own_tokenizer(replace(source, model=str(base_folder or base), base_model=None, revision=None))
        except ModelLoadError as error:
            raise ModelLoadError(
                f"adapter {source.model!r}: its base model {base!r} cannot be loaded ({error}); pass --base-model ID_OR_FOLDER"
            ) from None
    return TokenizerPlace(str(folder))


def _check_config(source: ModelSource, folder: Path) -> None:
    """Say what is wrong with a configuration here: its tokenizer reads it too, and would be called the one that is broken."""
    from transformers import AutoConfig

    import hf_rksp.architectures  # noqa: F401 - registers them

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # configurations are validated by code of every model, each with its own exceptions
        if "trust_remote_code" not in str(error):
            raise ModelLoadError(f"model={source.model!r} cannot be loaded: {cause_of(error)}") from None


def given_tokenizer(name: str) -> TokenizerPlace:
    """The place that ``--tokenizer`` names: a folder, a Hub id, a GGUF file, or tokenizer.json itself.

    Raises:
        ModelLoadError: nothing is there.
    """
    try:
        path = local_folder(name)
    except ModelLoadError as error:
        raise ModelLoadError(f"tokenizer={name!r} (--tokenizer): {error}") from None
    if path is None:
        return TokenizerPlace(name)
    if path.is_dir():
        return TokenizerPlace(str(path))
    if path.suffix == ".gguf":
        return TokenizerPlace(str(path.parent), path.name)
    if Path(path).name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        return TokenizerPlace(str(path.parent))
    raise ModelLoadError(f"tokenizer={name!r} (--tokenizer) is a file: pass the folder that holds tokenizer.json")
