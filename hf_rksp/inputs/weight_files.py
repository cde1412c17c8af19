"""Which files of a folder are the weights, also where they are not called as transformers calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from hf_rksp.errors import ModelLoadError

#: What transformers looks for, in its order: one file, or an index of shards.
_STANDARD = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VARIANT = (
    re.compile(r"(?P<kept>model)\.(?P<variant>[\w-]+)(?P<end>\.safetensors)"),
    re.compile(r"(?P<kept>model\.safetensors\.index)\.(?P<variant>[\w-]+)(?P<end>\.json)"),
    re.compile(r"(?P<kept>pytorch_model)\.(?P<variant>[\w-]+)(?P<end>\.bin)"),
    re.compile(r"(?P<kept>pytorch_model\.bin\.index)\.(?P<variant>[\w-]+)(?P<end>\.json)"),
)
_SHARD = re.compile(r"(?P<stem>.+?)-(?P<number>\d+)-of-(?P<of>\d+)(?P<variant>(\.[\w-]+)?)(?P<end>\.safetensors|\.bin)")
#: What Trainer, accelerate and PEFT leave beside a model.
_BESIDE = re.compile(
    r"(adapter|optimizer|scheduler|scaler|training_args|random_states|rng_state|trainer_state|sampler)"
)
_TO_HERE = "save it as transformers does: model.save_pretrained(folder)"
#: Weights that cannot be loaded: endings, what they are, the way out.
_FOREIGN = (
    ((".h5", ".tflite", ".keras"), "of TensorFlow", "convert it with transformers 4: from_pretrained(folder, from_tf=True)"),
    ((".msgpack",), "of Flax", "convert it with transformers 4: from_pretrained(folder, from_flax=True)"),
    ((".ckpt", ".meta"), "a checkpoint of TensorFlow or Lightning", f"load it with the library that wrote it and {_TO_HERE}"),
    ((".onnx",), "of ONNX, a graph without modules", "pass the checkpoint that it was exported from"),
    ((".pt", ".pth", ".bin"), "of torch.save, under a name of its own", f"load it into its model with torch.load and {_TO_HERE}"),
    ((".nemo", ".distcp", ".ot", ".npz", ".engine", ".mlmodel", ".llamafile", ".safetensors"), "of another library",
     f"load it with the library that wrote it and {_TO_HERE}"),
)  # fmt: skip


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder.

    Attributes:
        files: to be looked over before they are read; for an index the index comes first.
        renamed: name that transformers knows -> name in the folder, where the two differ.
        shards: files of which no index says what is in them.
    """

    files: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    shards: tuple[str, ...] = ()


def find_weights(folder: Path) -> WeightFiles:
    """The weights in ``folder``.

    Raises:
        ModelLoadError: there are none, or none that can be loaded; the message names the files that are there.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() or path.is_symlink())
    for name in _STANDARD:
        if name in names:
            return WeightFiles((name,))
    names = [name for name in names if not _BESIDE.match(name)]
    return _variants(folder, names) or _shards(folder, names) or _single(folder, names) or _none(folder, names)


def _variants(folder: Path, names: list[str]) -> WeightFiles | None:
    for pattern in _VARIANT:
        found = {name: match for name in names if (match := pattern.fullmatch(name)) and not _SHARD.fullmatch(name)}
        if len(found) > 1:
            raise ModelLoadError(
                f"{str(folder)!r} holds the weights in several variants ({', '.join(found)}) and no plain one: rename the one "
                f"you mean to {_plain(next(iter(found.values())))}"
            )
        for name, match in found.items():
            return WeightFiles((name,), {_plain(match): name})
    return None


def _plain(match: re.Match[str]) -> str:
    return match["kept"] + match["end"]


def _shards(folder: Path, names: list[str]) -> WeightFiles | None:
    sets: dict[tuple[str, ...], dict[int, str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            key = (match["stem"], match["of"], match["variant"], match["end"])
            sets.setdefault(key, {})[int(match["number"])] = name
    if not sets:
        return None
    if len(sets) > 1:
        firsts = ", ".join(next(iter(numbered.values())) for numbered in sets.values())
        raise ModelLoadError(
            f"{str(folder)!r} holds several sets of shards without an index ({firsts}, ...): leave one in the folder"
        )
    ((_, of, _, end), numbered), *_ = sets.items()
    missing = [number for number in range(1, int(of) + 1) if number not in numbered]
    if missing:
        raise ModelLoadError(
            f"{str(folder)!r} has {len(numbered)} of {int(of)} shards ({', '.join(list(numbered.values())[:3])}) and no "
            f"{'model.safetensors' if end == '.safetensors' else 'pytorch_model.bin'}.index.json: number "
            f"{', '.join(map(str, missing[:5]))} is missing; download the checkpoint again"
        )
    files = tuple(numbered[number] for number in sorted(numbered))
    return WeightFiles(files, shards=files)


def _single(folder: Path, names: list[str]) -> WeightFiles | None:
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) > 1:
        raise ModelLoadError(
            f"{str(folder)!r} holds {', '.join(found[:5])} and none is called model.safetensors: rename the one with the weights"
        )
    return WeightFiles((found[0],), {"model.safetensors": found[0]}) if found else None


def _none(folder: Path, names: list[str]) -> WeightFiles:
    where = str(folder)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        raise ModelLoadError(f"{where!r} holds weights in GGUF: pass {str(folder / ggufs[0])!r}")
    for endings, what, remedy in _FOREIGN:
        if found := [name for name in names if name.endswith(endings)]:
            raise ModelLoadError(
                f"{where!r} has its weights in {', '.join(found[:3])}, {what}, which is not loaded: {remedy}"
            )
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    if parts := [path.name for path in below if path.name.startswith(("global_step", "pytorch_model_fsdp", "distcp"))]:
        raise ModelLoadError(
            f"{where!r} has its weights in pieces, one a process, in {parts[0]}: put them together with `python zero_to_fp32.py` "
            "(DeepSpeed) or `accelerate merge-weights` (FSDP)"
        )
    holders = [path for path in below if any(path.glob("*.safetensors")) or any(path.glob("*.bin"))]
    if holders:
        raise ModelLoadError(
            f"{where!r} itself holds no weights, its folder {holders[-1].name} does: pass {str(holders[-1])!r}"
        )
    raise ModelLoadError(f"{where!r} has no weights ({', '.join(_STANDARD)}); for random weights pass --init {folder}")
