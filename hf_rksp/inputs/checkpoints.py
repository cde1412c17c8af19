"""Look a local checkpoint over before it is loaded: every file that it needs is there and whole."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_rksp.errors import ModelLoadError, cause_of
from hf_rksp.inputs.damage import damage
from hf_rksp.inputs.paths import as_path, written_like_a_path
from hf_rksp.inputs.weight_files import WeightFiles, find_weights

_PACKAGE = "package:"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


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
        if name.strip() and path.exists():
            return path
        if path.is_symlink():
            raise ModelLoadError(
                f"{name!r} is a link to {os.readlink(path)!r}, where nothing is: pass an existing folder"
            )
    except (OSError, ValueError):  # a name too long for a file, or with a zero in it, is no Hub id either
        pass
    if written_like_a_path(name) or name.endswith((".json", ".gguf")) or not name.strip() or not _can_be_id(name):
        raise ModelLoadError(
            f"{name[:300]!r} does not exist: pass an existing folder or file, or a Hub id such as openai-community/gpt2"
        )
    return None


def _can_be_id(name: str) -> bool:
    return name.isprintable() and len(name) <= 200


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


def is_adapter(folder: Path | None) -> bool:
    """Whether a PEFT adapter lies there."""
    return folder is not None and (folder / "adapter_config.json").is_file()


def check_folder(folder: Path) -> WeightFiles:
    """Refuse a folder that lacks a file it needs, or whose weights are cut short; else say which files the weights are.

    Raises:
        ModelLoadError: names the file, what is wrong with it and the remedy.
    """
    if not folder.is_dir():
        raise ModelLoadError(
            f"{str(folder)!r} is a file: pass the folder that holds config.json and the weights, or a .gguf file"
        )
    if _is_no_text(str(folder.absolute())):
        raise ModelLoadError(
            f"{str(folder)!r}: its name is no text in this locale ({sys.getfilesystemencoding()}), and the libraries that read "
            "weights and tokenizers take text alone: set LC_ALL=C.UTF-8 (PYTHONUTF8=1), or rename the folder"
        )
    try:
        return _check_adapter(folder) if is_adapter(folder) else _check_model(folder)
    except OSError as error:
        raise ModelLoadError(f"{str(folder)!r} cannot be read ({cause_of(error)}): see its permissions") from None


def _is_no_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that Python could not read as characters
        return True
    return False


def check_gguf(path: Path) -> None:
    """Refuse a file that is no GGUF.

    Raises:
        ModelLoadError: says what it is instead.
    """
    what = damage(path)
    if not what:
        with path.open("rb") as stream:
            start = stream.read(4)
        what = None if start == b"GGUF" else "does not begin as a GGUF file does: download it again"
    if what:
        raise ModelLoadError(f"{str(path)!r} {what}")


def _check_adapter(folder: Path) -> WeightFiles:
    read_json(folder / "adapter_config.json")
    weights = [name for name in _ADAPTERS if (folder / name).is_file()]
    if not weights:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise ModelLoadError(
            f"{str(folder)!r} is an adapter without adapter_model.safetensors (it has {there}): copy it again"
        )
    check_weights(folder / weights[0])
    return WeightFiles((weights[0],))


def _check_model(folder: Path) -> WeightFiles:
    if not (folder / "config.json").exists():
        raise ModelLoadError(f"{str(folder)!r} has no config.json: {_instead(folder)}")
    if not isinstance(read_json(folder / "config.json"), dict):
        raise ModelLoadError(
            f"{str(folder / 'config.json')!r} is no configuration: a JSON object with a model_type is one"
        )
    found = find_weights(folder)
    for name in found.files:
        if name.endswith(".json"):
            _check_index(folder, name)
        else:
            check_weights(folder / name)
    return found


def _instead(folder: Path) -> str:
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return f"pass one of its GGUF files: {', '.join(ggufs)}"
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if below:
        return f"pass a folder in it that has one, such as {str(folder / below[-1])!r}"
    if (folder / "params.json").is_file():
        return "params.json is of the makers' own format; convert the checkpoint, or download the one for transformers"
    return "a checkpoint as save_pretrained writes it has one"


def _check_index(folder: Path, name: str) -> None:
    index = read_json(folder / name)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    shards = sorted({str(shard) for shard in listed.values()}) if isinstance(listed, dict) else []
    if not shards:
        raise ModelLoadError(f"{str(folder / name)!r}: it lists no shards; download the checkpoint again")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        raise ModelLoadError(
            f"{str(folder / name)!r}: {len(missing)} of {len(shards)} shards are missing ({', '.join(missing[:3])}; there are "
            f"{', '.join(there[:3]) or 'none'}); download the checkpoint again"
        )
    for shard in shards:
        check_weights(folder / shard)


def read_json(path: Path) -> object:
    """The value in a JSON file.

    Raises:
        ModelLoadError: it is no JSON; the message says what it is instead.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = damage(path) or f"is not readable JSON ({cause_of(error)}): it may be half-written; copy it again"
        raise ModelLoadError(f"{str(path)!r} {what}") from None


def check_weights(path: Path) -> None:
    """The header of a safetensors file names its length, so a file that was cut short is known without reading it."""
    if broken := damage(path):
        more = "" if path.stat().st_size else "; it may be half-written"
        raise ModelLoadError(f"{str(path)!r} {broken}{more}")
    if path.suffix == ".safetensors" and not tensor_names(path):
        raise ModelLoadError(f"{str(path)!r} holds no tensors: copy it again")


def tensor_names(path: Path) -> list[str]:
    """What a safetensors file holds, or one of torch.save.

    Raises:
        ModelLoadError: the file is not whole.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as weights:
                return list(weights.keys())
        import torch

        return [str(name) for name in torch.load(path, map_location="meta", mmap=True, weights_only=True)]
    except Exception as error:  # SafetensorError, or what pickle and zipfile raise
        kind = "safetensors file" if path.suffix == ".safetensors" else "file of torch.save"
        raise ModelLoadError(
            f"{str(path)!r} is not a whole {kind} ({cause_of(error)}): it may be half-written; copy it again"
        ) from None


@contextlib.contextmanager
def as_transformers_wants(folder: Path, found: WeightFiles) -> Iterator[Path]:
    """``folder``, or, where its weights go by other names, a folder of links to its files with an index of the shards.

    Raises:
        ModelLoadError: no links can be made here; the message says how to rename the files.
    """
    if not found.renamed and not found.shards:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rksp-") as name:
        view = Path(name)
        try:
            for path in folder.resolve().iterdir():
                (view / path.name).symlink_to(path)
            for wanted, own in found.renamed.items():
                (view / wanted).symlink_to(folder.resolve() / own)
        except OSError as error:
            raise ModelLoadError(
                f"{str(folder)!r} has its weights in {', '.join(found.files[:3])}, and no links can be made here "
                f"({cause_of(error)}): "
                + (f"rename it to {next(iter(found.renamed), '')}" if found.renamed else "write the index")
            ) from None
        if found.shards:
            held = {tensor: shard for shard in found.shards for tensor in tensor_names(folder / shard)}
            kind = "model.safetensors" if found.shards[0].endswith(".safetensors") else "pytorch_model.bin"
            index = {"metadata": {}, "weight_map": held}
            (view / f"{kind}.index.json").write_text(json.dumps(index), encoding="utf-8")
        yield view
