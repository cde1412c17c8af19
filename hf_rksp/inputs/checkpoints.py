"""Look a local checkpoint over before it is loaded: every file that it needs is there and whole."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs.paths import as_path, written_like_a_path

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PACKAGE = "package:"
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def local_folder(name: str) -> Path | None:
    """``name`` as an existing path, or ``None`` if it can only be a Hub id.

    ``package:NAME/PATH`` is a folder of an installed Python package: some ship a checkpoint.

    Raises:
        ModelLoadError: it is written like a path, and nothing is there.
    """
    if name.startswith(_PACKAGE):
        return _in_package(name)
    path = as_path(name)
    try:
        if path.exists():
            return path
    except OSError:  # a name too long for a file is no Hub id either
        pass
    if written_like_a_path(name) or name.endswith((".json", ".gguf")) or not name.strip():
        raise ModelLoadError(
            f"{name!r} does not exist: pass an existing folder or file, or a Hub id such as openai-community/gpt2"
        )
    return None


def _in_package(name: str) -> Path:
    package, _, rest = name.removeprefix(_PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ModelLoadError(f"{name!r}: no Python package {package!r} is installed here; install it with pip")
    path = Path(folders[0]) / rest
    if not path.exists():
        raise ModelLoadError(f"{name!r}: the package {package!r} has no {rest!r}")
    return path


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks a file it needs, or whose weights are cut short.

    Raises:
        ModelLoadError: names the file and the remedy.
    """
    if not folder.is_dir():
        raise ModelLoadError(
            f"{str(folder)!r} is a file: pass the folder that holds config.json and the weights, or a .gguf file"
        )
    if (folder / "adapter_config.json").is_file():
        weights = [
            path for path in (folder / "adapter_model.safetensors", folder / "adapter_model.bin") if path.is_file()
        ]
        if not weights:
            raise ModelLoadError(f"{str(folder)!r} is an adapter without adapter_model.safetensors: copy it again")
        _check_weights(weights[0])
        return
    if not (folder / "config.json").is_file():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = (
            f"pass one of its GGUF files: {', '.join(ggufs)}"
            if ggufs
            else "a checkpoint as save_pretrained writes it has one"
        )
        raise ModelLoadError(f"{str(folder)!r} has no config.json: {hint}")
    _read_json(folder / "config.json")
    for name in _INDEXES:
        if (folder / name).is_file():
            index = _read_json(folder / name)
            shards = sorted(set(index.get("weight_map", {}).values())) if isinstance(index, dict) else []
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing or not shards:
                what = (
                    f"{len(missing)} of {len(shards)} shards are missing ({', '.join(missing[:3])})"
                    if shards
                    else "it lists no shards"
                )
                raise ModelLoadError(f"{str(folder / name)!r}: {what}; download the checkpoint again")
            for shard in shards:
                _check_weights(folder / shard)
            return
    whole = [folder / name for name in _SINGLE if (folder / name).is_file()]
    if not whole:
        raise ModelLoadError(
            f"{str(folder)!r} has no weights ({', '.join(_SINGLE + _INDEXES)}); for random weights pass --init {folder}"
        )
    _check_weights(whole[0])


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{str(path)!r} is not readable JSON ({error}): it may be half-written; copy it again"
        ) from None


def _check_weights(path: Path) -> None:
    """The header of a safetensors file names its length, so a file that was cut short is known without reading it."""
    if path.suffix != ".safetensors":
        if path.stat().st_size == 0:
            raise ModelLoadError(f"{str(path)!r} is empty: copy it again")
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as weights:
            if not list(weights.keys()):
                raise ModelLoadError(f"{str(path)!r} holds no tensors: copy it again")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{str(path)!r} is not a whole safetensors file ({error}): it may be half-written; copy it again"
        ) from None
