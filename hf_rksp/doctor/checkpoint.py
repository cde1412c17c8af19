"""A checkpoint of Trainer: are its weights and moments finite, and can they be read at all? No code in a file is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rksp.errors import cause_of
from hf_rksp.inputs.damage import damage
from hf_rksp.json_data import section

#: Files with weights: whole ones and indices of shards, those of adapters too.
_WEIGHTS = (
    "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin",
    "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
_MOMENTS = "optimizer.pt"
#: Weights and moments in pieces that hold objects of Python.
_PIECES = ("global_step*", "pytorch_model_fsdp_*", "optimizer_*")
#: Numbers that are looked at at once.
_PIECE = 2**24
Kind = Literal["finite", "not finite", "unreadable", "not read", "missing"]


@dataclass(frozen=True)
class Broken:
    """A tensor with numbers that are not finite, or second moments below zero."""

    name: str
    bad: int
    total: int


@dataclass(frozen=True)
class Tensors:
    """What was found in the weights, or in the moments.

    Attributes:
        kind: "not read" if they are in a format that can hold code.
        broken: the tensors that are not finite.
        number: how many tensors were read.
        largest: largest modulus of a finite number, and ``where`` it is.
        note: why they could not be read.
    """

    kind: Kind
    broken: tuple[Broken, ...] = ()
    number: int = 0
    largest: float = 0.0
    where: str = ""
    note: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint. ``step`` is in the name of its folder, else in its state; ``None`` if it is nowhere."""

    path: Path
    step: int | None
    weights: Tensors
    moments: Tensors

    @property
    def sound(self) -> bool:
        """Whether all that was read is finite, and the weights were read."""
        return self.weights.kind == "finite" and self.moments.kind in ("finite", "not read", "missing")


def read_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    """Look at every number of the weights and of the optimizer's state, one tensor in memory at a time."""
    return Checkpoint(folder, step, _weights(folder), _moments(folder))


def _weights(folder: Path) -> Tensors:
    name = next((name for name in _WEIGHTS if (folder / name).exists()), None)
    if name is None:
        pieces = _pieces(folder)
        if pieces:
            return Tensors(
                "not read",
                note=f"in pieces, one per process, in {pieces}: put them together with `python zero_to_fp32.py` (DeepSpeed) or "
                "`accelerate merge-weights` (FSDP)",
            )
        return Tensors("missing", note="there is no file with weights")
    try:
        files = _shards(folder / name) if name.endswith(".index.json") else [folder / name]
    except (OSError, ValueError) as error:
        return Tensors("unreadable", note=f"{name}: {cause_of(error)}")
    return _looked_at(files, _tensors_of)


def _moments(folder: Path) -> Tensors:
    if (folder / _MOMENTS).exists():
        return _looked_at([folder / _MOMENTS], _state_of)
    pieces = _pieces(folder)
    return Tensors("not read", note=f"in pieces, in {pieces}") if pieces else Tensors("missing")


def _pieces(folder: Path) -> str:
    return next((path.name for pattern in _PIECES for path in sorted(folder.glob(pattern)) if path.is_dir()), "")


def _shards(index: Path) -> list[Path]:
    listed = section(json.loads(index.read_text("utf-8")), "weight_map")
    if not listed:
        raise ValueError("it lists no weights")
    # A name with a folder in it would lead out of the checkpoint.
    return [index.parent / Path(str(name)).name for name in dict.fromkeys(listed.values())]


def _looked_at(files: list[Path], read: Callable[[Path], Iterator[tuple[str, Tensor]]]) -> Tensors:
    broken, number, largest, where = [], 0, 0.0, ""
    for file in files:
        try:
            if not file.exists():
                raise FileNotFoundError(f"{file.name} is missing")
            if words := damage(file):
                raise ValueError(f"{file.name} {words}")
            for name, tensor in read(file):
                bad, most = _bad(name, tensor)
                number += 1
                if bad:
                    broken.append(Broken(name, bad, tensor.numel()))
                if most > largest:
                    largest, where = most, name
        except Exception as error:  # a format has many ways to be broken
            return Tensors("unreadable", tuple(broken), number, largest, where, _why(file, error))
    return Tensors("not finite" if broken else "finite", tuple(broken), number, largest, where)


def _why(file: Path, error: Exception) -> str:
    text = cause_of(error)
    if "Weights only load failed" in text or "Unsupported" in text:
        return f"{file.name} holds objects of Python, which are not loaded"
    return text if file.name in text else f"{file.name}: {text}"


def _tensors_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)
    else:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        yield from ((str(name), value) for name, value in data.items() if isinstance(value, Tensor))


def _state_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for number, state in dict(data.get("state", {})).items():
        for name, value in dict(state).items():
            if isinstance(value, Tensor):
                yield f"{name} of parameter {number}", value


def _bad(name: str, tensor: Tensor) -> tuple[int, float]:
    """How many numbers are wrong, and the largest modulus of the others."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0, 0.0
    bad, largest = 0, 0.0
    second = name.startswith(("exp_avg_sq", "max_exp_avg_sq"))
    for piece in tensor.detach().reshape(-1).split(_PIECE):
        numbers = piece if piece.element_size() > 1 else piece.float()
        wrong = ~numbers.isfinite()
        if second:
            wrong |= numbers < 0
        bad += int(wrong.sum())
        if numbers.numel():
            largest = max(largest, float(numbers.masked_fill(wrong, 0).abs().max()))
    return bad, largest


def described(tensors: Tensors) -> dict[str, Any]:
    """Plain values."""
    return {
        "kind": tensors.kind,
        "tensors": tensors.number,
        "not_finite": [{"name": one.name, "numbers": one.bad, "of": one.total} for one in tensors.broken],
        "largest": tensors.largest,
        "largest_in": tensors.where,
        "note": tensors.note,
    }
