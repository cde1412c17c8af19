"""Where the model's own tokenizer lies, found out before any weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_rksp.errors import ModelLoadError
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
    if is_adapter(folder) and not TokenizerPlace(str(folder)).files:
        _, base, base_folder = adapter_config(source, folder)
        try:
            return own_tokenizer(replace(source, model=str(base_folder or base), base_model=None, revision=None))
        except ModelLoadError as error:
            raise ModelLoadError(
                f"adapter {source.model!r}: its base model {base!r} cannot be loaded ({error}); pass --base-model ID_OR_FOLDER"
            ) from None
    return TokenizerPlace(str(folder))


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
