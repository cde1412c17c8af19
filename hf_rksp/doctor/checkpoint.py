"""A checkpoint of Trainer: are its weights and moments finite, and can they be read at all? No code in a file is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hf_rksp.doctor.mark import read_mark, whole_in
from hf_rksp.errors import cause_of
from hf_rksp.inputs.damage import damage
from hf_rksp.json_data import section

#: Files with weights, in the order in which Trainer looks for them: of each line the first that is there.
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("adapter_model.safetensors", "adapter_model.bin"),
)
_MOMENTS = "optimizer.pt"
#: Weights and moments in pieces that hold objects of Python.
_PIECES = ("global_step*", "pytorch_model_fsdp_*", "optimizer_*")
#: Numbers that are looked at at once.
_PIECE = 2**24
#: Names of second moments, which are at least 0.
_SECOND = ("exp_avg_sq", "max_exp_avg_sq")
#: How deep a file may nest its tensors.
_DEEP = 8
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
        kind: "not read" if they are in a format that can hold code; "missing" if there are none.
        broken: the tensors that are not finite.
        number: how many tensors were read.
        largest: largest modulus of a finite number, and ``where`` it is.
        note: what could not be read, and why.
    """

    kind: Kind
    broken: tuple[Broken, ...] = ()
    number: int = 0
    largest: float = 0.0
    where: str = ""
    note: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        step: in the name of its folder; ``None`` if it is not.
        ill: why the guard of its run has marked it as ill; nothing if it has not.
        marked: whether the guard of its run has marked it as healthy, and all files of then are there.
    """

    path: Path
    step: int | None
    weights: Tensors
    moments: Tensors
    ill: str = ""
    marked: bool = False

    @property
    def sound(self) -> bool:
        """Whether the weights were read, and all that was read is finite."""
        return self.weights.kind == "finite" and self.moments.kind in ("finite", "not read", "missing")

    @property
    def damaged(self) -> bool:
        """Whether something in it is not finite, or cannot be read although it should be."""
        return any(part.kind in ("not finite", "unreadable") for part in (self.weights, self.moments))


def read_checkpoint(folder: Path, step: int | None) -> Checkpoint:
    """Look at every number of the weights and of the optimizer's state, one tensor in memory at a time."""
    mark = read_mark(folder)
    if mark is None or mark.step != step:
        return Checkpoint(folder, step, _weights(folder), _moments(folder))
    ill = mark.why if mark.healthy is False else ""
    return Checkpoint(
        folder, step, _weights(folder), _moments(folder), ill, bool(mark.healthy) and whole_in(folder, mark)
    )


def _weights(folder: Path) -> Tensors:
    try:
        names = [next((name for name in line if (folder / name).exists()), None) for line in _WEIGHTS]
        pieces = _pieces(folder)
        present = [name for name in names if name is not None]
        # An adapter with a name of its own has a folder of that name.
        adapters = sorted(one for name in _WEIGHTS[1] for one in folder.glob(f"*/{name}"))
        present += [one.relative_to(folder).as_posix() for one in adapters]
        if present:
            return _together([_file(folder / name) for name in present])
    except OSError as error:
        return Tensors("unreadable", note=cause_of(error))
    if pieces:
        return Tensors(
            "not read",
            note=f"in pieces, one per process, in {pieces}: put them together with `python zero_to_fp32.py` (DeepSpeed) or "
            "`accelerate merge-weights` (FSDP), and read the result",
        )
    return Tensors("missing", note="there is no file with weights in it")


def _file(file: Path) -> Tensors:
    if not file.name.endswith(".index.json"):
        return _looked_at([file], _tensors_of)
    try:
        listed = section(json.loads(file.read_text("utf-8")), "weight_map")
        if not listed or not all(isinstance(name, str) for name in listed.values()):
            raise ValueError("it lists no weights")
    except (OSError, ValueError, RecursionError) as error:
        return Tensors("unreadable", note=f"{file.name}: {cause_of(error)}")
    # A name with a folder in it would lead out of the checkpoint.
    files = [file.parent / Path(name).name for name in dict.fromkeys(listed.values())]
    seen: set[str] = set()
    found = _looked_at(files, _tensors_of, seen)
    lacking = [name for name in listed if name not in seen]
    if found.kind in ("finite", "not finite") and lacking:
        note = f"{len(lacking)} of the tensors in {file.name} are in no file, such as {lacking[0]}"
        return Tensors("unreadable", found.broken, found.number, found.largest, found.where, note)
    return found


def _moments(folder: Path) -> Tensors:
    try:
        if (folder / _MOMENTS).exists():
            found = _looked_at([folder / _MOMENTS], _state_of)
            return Tensors("missing") if found.kind == "missing" else found  # SGD without momentum keeps none
        pieces = _pieces(folder)
    except OSError as error:
        return Tensors("unreadable", note=cause_of(error))
    return Tensors("not read", note=f"in pieces, in {pieces}") if pieces else Tensors("missing")


def _pieces(folder: Path) -> str:
    return next((path.name for pattern in _PIECES for path in sorted(folder.glob(pattern)) if path.is_dir()), "")


def _together(parts: list[Tensors]) -> Tensors:
    """Weights in several files of their own, such as an adapter beside a model: the worst of them says what they are."""
    order: tuple[Kind, ...] = ("unreadable", "not finite", "missing", "not read", "finite")
    worst = min(parts, key=lambda part: order.index(part.kind))
    largest = max(parts, key=lambda part: part.largest)
    broken = tuple(one for part in parts for one in part.broken)
    return Tensors(worst.kind, broken, sum(part.number for part in parts), largest.largest, largest.where, worst.note)


def _looked_at(
    files: list[Path], read: Callable[[Path], Iterator[tuple[str, Tensor]]], seen: set[str] | None = None
) -> Tensors:
    broken, number, skipped, largest, where = [], 0, 0, 0.0, ""
    for file in files:
        try:
            if not file.exists():
                raise FileNotFoundError(f"{file.name} is missing")
            if words := damage(file):
                raise ValueError(f"{file.name} {words}")
            for name, tensor in read(file):
                if seen is not None:
                    seen.add(name)
                number += 1
                found = _bad(name, tensor)
                if found is None:
                    skipped += 1
                    continue
                bad, most = found
                if bad:
                    broken.append(Broken(name, bad, tensor.numel()))
                if most > largest:
                    largest, where = most, name
        except Exception as error:  # a format has many ways to be broken
            return Tensors("unreadable", tuple(broken), number, largest, where, _why(file, error))
    note = f"{skipped} of {number} tensors are of a kind that is not looked at" if skipped else ""
    if not number:
        return Tensors("missing", note=f"{files[0].name} holds no tensor")
    return Tensors("not finite" if broken else "finite", tuple(broken), number, largest, where, note)


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
        yield from _walk(_loaded(file), "")


def _state_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    data = _loaded(file)
    for number, state in dict(section(data, "state")).items():
        for name, tensor in _walk(state, ""):
            yield f"{name} of parameter {number}", tensor


def _loaded(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # as torch before 1.6 wrote it


def _walk(data: Any, name: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested objects, by the names on the way to them."""
    if isinstance(data, Tensor):
        yield name or "tensor", data
    elif depth < _DEEP:
        parts = (
            data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, (list, tuple)) else ()
        )
        for key, part in parts:
            yield from _walk(part, f"{name}.{key}" if name else str(key), depth + 1)


def _bad(name: str, tensor: Tensor) -> tuple[int, float] | None:
    """How many numbers are wrong, and the largest modulus of the others; ``None`` if torch cannot tell for this kind of tensor."""
    try:
        tensor = tensor.detach()
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return 0, 0.0
        bad, largest = 0, 0.0
        for piece in tensor.reshape(-1).split(_PIECE):
            numbers = piece if piece.element_size() > 1 else piece.float()
            wrong = ~numbers.isfinite()
            if name.startswith(_SECOND) and not numbers.is_complex():
                wrong |= numbers < 0
            bad += int(wrong.sum())
            if numbers.numel():
                largest = max(largest, float(numbers.masked_fill(wrong, 0).abs().max()))
        return bad, largest
    except (RuntimeError, NotImplementedError, TypeError):
        return None


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
