"""Whether `rksp audit --init` draws the weights that ``AutoModel.from_config`` draws.

`check_init(config)` gives what is wrong, a sentence each, and nothing where all is right:

- every parameter and buffer is there, none holds NaN where transformers' own does not, and the same ones are tied;
- what is the same in every draw of transformers is the same here, to the bit;
- mean and standard deviation of each other tensor lie within 5 standard errors of those of transformers' draws;
- the same seed gives the same bytes over other memory, and block by block.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.errors import RkspError
from hf_rksp.inputs.initialise import Initialiser, skeleton

#: Standard errors that a mean or a standard deviation may be off.
BOUND = 5.0
#: Draws of transformers and of ours: first, and where the first ones leave a doubt.
DRAWS = ((4, 1), (40, 20))


def check_init(config: Any) -> list[str]:
    """What is wrong with the random weights of ``config``; a refusal is one sentence that starts with "refused"."""
    try:
        problems = _check_bytes(config)
    except RkspError as error:
        return [f"refused: {error}"]
    for theirs, ours in DRAWS:
        found = _check_draws(config, theirs, ours)
        if not found:
            return problems
    return problems + found


def _check_bytes(config: Any) -> list[str]:
    with unwritten(1.0):
        one = tensors(_made(config, 0))
    with unwritten(-7.0):
        two = tensors(_made(config, 0))
        pieces = Initialiser(skeleton(copy.deepcopy(config), torch.float32), 0)
        pieces.make_rest()
    problems = [f"{name}: the same seed gives other bytes" for name in one if not _same(one[name], two[name])]
    for block in pieces.blocks:
        pieces.make(block)
        alone = {f"{block.path}.{name}": tensor for name, tensor in tensors(block.module).items()}
        problems += [f"{name}: other bytes alone" for name in alone if not _same(one[name], alone[name])]
        pieces.drop(block)
    return problems


def _check_draws(config: Any, theirs: int, ours: int) -> list[str]:
    with unwritten(math.nan):
        reference = Draws(_drawn(config, seed) for seed in range(theirs))
    got = Draws(_made(config, seed) for seed in range(1, ours + 1))
    if reference.first.keys() != got.first.keys():
        return [f"tensors {sorted(reference.first.keys() ^ got.first.keys())[:4]} are not in both"]
    problems = [problem for name in reference.first for problem in _compare(name, reference, got)]
    if reference.tied != got.tied:
        problems.append(f"tied: {sorted(map(sorted, reference.tied ^ got.tied))[:3]} not in both")
    return problems


class Draws:
    """Statistics of several draws of one model, tensor by tensor.

    Attributes:
        first: the first draw. constant: elements that are the same in all of them.
        means, deviations: one number a draw. noise: mean over the elements of the variance between draws.
        tail: kurtosis of the first draw. tied: names of one and the same parameter.
    """

    def __init__(self, models: Iterator[nn.Module]) -> None:
        self.first: dict[str, Tensor] = {}
        self.constant: dict[str, Tensor] = {}
        self.means: dict[str, list[float]] = {}
        self.deviations: dict[str, list[float]] = {}
        self.tied: set[frozenset[str]] = set()
        total: dict[str, tuple[Tensor, Tensor]] = {}
        for count, model in enumerate(models, 1):
            if not self.first:
                self.tied = _tied(model)
            for name, raw in tensors(model).items():
                tensor = _real(raw)
                first = self.first.setdefault(name, tensor)
                if first.shape != tensor.shape:
                    raise ValueError(f"{name} has shape {tuple(tensor.shape)} and {tuple(first.shape)}")
                same = (tensor == first) | (tensor.isnan() & first.isnan())
                self.constant[name] = self.constant.get(name, torch.ones_like(same)) & same
                self.means.setdefault(name, []).append(float(tensor.mean()))
                self.deviations.setdefault(name, []).append(float(tensor.std(correction=0)))
                mean, square = total.get(name, (torch.zeros_like(tensor), torch.zeros_like(tensor)))
                step = tensor - mean
                mean = mean + step / count
                total[name] = mean, square + step * (tensor - mean)
        self.count = count
        self.noise = {name: float(square.mean()) / max(count - 1, 1) for name, (_, square) in total.items()}
        self.tail = {name: _kurtosis(tensor) for name, tensor in self.first.items()}


def _compare(name: str, reference: Draws, got: Draws) -> Iterator[str]:
    theirs, ours, constant = reference.first[name], got.first[name], reference.constant[name]
    if theirs.shape != ours.shape:
        yield f"{name}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        return
    if theirs.isnan().any():
        yield f"{name}: transformers itself draws nothing"
        return
    if ours.isnan().any():
        yield f"{name}: NaN"
        return
    if not (torch.equal(theirs[constant], ours[constant]) and bool(got.constant[name][constant].all())):
        yield f"{name}: not the constant that transformers sets"
        return
    if constant.all():
        return
    share = 1 / reference.count + 1 / got.count
    between = {"mean": math.sqrt(reference.noise[name] / theirs.numel() * share)}
    spread = sum(reference.deviations[name]) / reference.count
    between["deviation"] = spread * math.sqrt(max(reference.tail[name] - 1, 0) / 4 / theirs.numel() * share)
    for what, one, other in (
        ("mean", reference.means[name], got.means[name]),
        ("deviation", reference.deviations[name], got.deviations[name]),
    ):
        drawn = torch.tensor(one, dtype=torch.float64)
        error = max(between[what], float(drawn.std()) * math.sqrt(share), 1e-9 * float(theirs.abs().max()))
        off = sum(other) / got.count - float(drawn.mean())
        if abs(off) > BOUND * error:
            yield f"{name}: {what} {sum(other) / got.count:.5g}, transformers has {float(drawn.mean()):.5g} +- {error:.2g}"


def _made(config: Any, seed: int) -> nn.Module:
    return Initialiser(skeleton(copy.deepcopy(config), torch.float32), seed).make_all()


def _drawn(config: Any, seed: int) -> nn.Module:
    from transformers import AutoModel

    torch.manual_seed(seed)
    return AutoModel.from_config(copy.deepcopy(config), dtype=torch.float32)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that the modules hold: parameters, buffers, and tensors that are plain attributes."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}".lstrip(".")] = value
    return {name: tensor.detach() for name, tensor in found.items() if tensor.numel()}


@contextlib.contextmanager
def unwritten(value: float) -> Iterator[None]:
    """Memory that torch does not write holds ``value`` (a whole number where it cannot be NaN)."""
    own = torch.empty_like

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = own(*args, **kwargs)
        if not tensor.is_meta:
            tensor.fill_(value if tensor.is_floating_point() or tensor.is_complex() else int(value == value and value))
        return tensor

    was = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.empty_like = filled  # what Module.to_empty calls
    if math.isnan(value):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.empty_like = own
        torch.use_deterministic_algorithms(was[0])
        torch.utils.deterministic.fill_uninitialized_memory = was[1]


def _tied(model: nn.Module) -> set[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.to(torch.float64)


def _kurtosis(tensor: Tensor) -> float:
    centred = tensor - tensor.mean()
    variance = float((centred**2).mean())
    return float((centred**4).mean()) / variance**2 if variance > 0 else 1.0


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.is_meta or other.is_meta:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _summary(problems: Mapping[str, list[str]]) -> str:
    return "\n".join(f"{name}: {found[0]} ({len(found)})" for name, found in problems.items() if found)
