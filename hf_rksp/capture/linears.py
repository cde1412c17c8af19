"""The linear maps inside residual blocks, whatever holds their weights: torch, GPT-2's Conv1D, a fused qkv, fused experts, LoRA.

A map is ``y = W x`` with ``W`` of shape ``(out, in)``. Weights that an engine has spread over the processes are gathered for one
map at a time.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_rksp.capture.blocks import Block, Stack
from hf_rksp.spectral.alignment import Products

#: Names of modules whose output is queries, keys and values in one, one after the other.
_CONTIGUOUS = ("c_attn", "qkv_proj", "Wqkv", "qkv", "in_proj")
#: The same, by head: the queries of a head, its keys, its values, then the next head.
_BY_HEAD = ("query_key_value",)
#: Models (``model_type``) that order a module of these names by head. Others with such names are not cut.
_KNOWN_BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")
_PARTS = ("q", "k", "v")
#: Names of separate maps of queries and of keys.
_NAMES = {"q": ("q_proj", "query", "q_lin", "to_q", "wq"), "k": ("k_proj", "key", "k_lin", "to_k", "wk")}
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LinearMap:
    """One linear map.

    Attributes:
        path: of its module in the model, with ``[q]``, ``[k]`` or ``[v]`` if it is a part of a fused one.
        module: the module that is called with the inputs of the map.
        stack, block: where it is.
        rows: of the weight of the module: a slice, or their numbers if they do not stand together; ``None`` for all.
        expert: number of the expert whose first map this is, in a module that holds the weights of several. It is called with
            all tokens, and with the numbers of the experts of each.
    """

    path: str
    module: nn.Module
    stack: Stack
    block: Block
    rows: slice | Tensor | None = None
    expert: int | None = None

    @property
    def height(self) -> int:
        """Length of an output."""
        if isinstance(self.rows, slice):
            return int(self.rows.stop - self.rows.start)
        return _out(_base(self.module)) if self.rows is None else len(self.rows)

    @property
    def width(self) -> int:
        """Length of an input."""
        return _width(_base(self.module))

    def own(self, args: tuple[Any, ...]) -> Tensor | None:
        """Which inputs are of this map in a call of its module with ``args``; ``None`` for all."""
        return None if self.expert is None else (args[1] == self.expert).any(-1)

    @contextlib.contextmanager
    def matrix(self) -> Iterator[Tensor]:
        """``W`` itself, shape ``(out, in)``, in float32 or the weight's own wider dtype, with what LoRA adds.

        If the weights are spread over processes, every process has to enter it.
        """
        with self._factors() as (matrix, pairs):
            yield sum((scale * (b @ a) for a, b, scale in pairs), matrix)

    @contextlib.contextmanager
    def products(self) -> Iterator[Products]:
        """``v -> W v`` and ``u -> W^T u``; see `matrix`."""
        with self._factors() as (matrix, pairs):

            def forth(v: Tensor) -> Tensor:
                return sum((scale * (b @ (a @ v)) for a, b, scale in pairs), matrix @ v)

            def back(u: Tensor) -> Tensor:
                return sum((scale * (a.mT @ (b.mT @ u)) for a, b, scale in pairs), matrix.mT @ u)

            yield forth, back

    @contextlib.contextmanager
    def _factors(self) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor, float]]]]:
        """The weight, and A, B and the scale of each LoRA."""
        adapters = _adapters(self.module)
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(whole(_weight(_base(self.module))))
            weight = _oriented(_base(self.module), held if self.expert is None else held[self.expert])
            matrix = _wide(_part(weight, self.rows))
            pairs = []
            for first, second, scale in adapters:
                a, b = (_wide(stack.enter_context(whole(one))) for one in (first, second))
                pairs.append((a, _part(b, self.rows), scale))
            yield matrix, pairs

    @property
    def dtype(self) -> torch.dtype:
        """Of its products."""
        dtype = _weight(_base(self.module)).dtype
        return torch.float32 if dtype in _HALF else dtype

    @property
    def device(self) -> torch.device:
        """Of its weight."""
        return _weight(_base(self.module)).device


def find_linears(stacks: Sequence[Stack], config: Any = None) -> list[LinearMap]:
    """The linear maps inside the blocks of ``stacks``, in the order of their registration.

    Args:
        stacks: from `hf_rksp.capture.find_stacks`.
        config: of the model; it says how many heads a fused module has.

    Returns:
        Not those with weights that are no floating-point matrix (quantised ones), nor those that only LoRA itself has. Of
        fused experts the map that sees the residual stream (gate and up); the inputs of the other never leave the module.
    """
    found: list[LinearMap] = []
    for stack in stacks:
        for block in stack.blocks:
            inside: list[str] = []
            for name, module in block.module.named_modules():
                if any(name.startswith(f"{outer}.") for outer in inside):
                    continue
                if _is_experts(module):
                    number = _shape(_weight(module))[0]
                    found += [
                        LinearMap(f"{block.path}.{name}[{one}]", module, stack, block, expert=one)
                        for one in range(number)
                    ]
                    continue
                if not _is_map(module):
                    continue
                inside.append(name)  # what LoRA wraps is a part of it
                path = f"{block.path}.{name}"
                parts = _cut(name.rpartition(".")[2], _out(_base(module)), _width(_base(module)), config)
                found += [
                    LinearMap(path if rows is None else f"{path}[{part}]", module, stack, block, rows)
                    for part, rows in parts
                ]
    return found


@dataclass(frozen=True)
class QueryKey:
    """The maps that make the queries and the keys of one block.

    Attributes:
        query, key: the maps.
        heads, key_heads: of each; several heads of queries share one of the keys.
    """

    query: LinearMap
    key: LinearMap
    heads: int
    key_heads: int

    def by_head(self) -> tuple[Tensor, Tensor]:
        """Copies of the weights of queries and keys, shape ``(heads, head size, in)``; see `LinearMap.matrix`."""
        with self.query.matrix() as weight:
            query = weight.clone()
        with self.key.matrix() as weight:  # of the same parameter, if it is fused: ZeRO-3 gathers it once at a time
            key = weight.clone()
        split = key.view(self.key_heads, -1, key.shape[-1])
        return query.view(self.heads, -1, query.shape[-1]), split.repeat_interleave(self.heads // self.key_heads, 0)


def query_key_pairs(maps: Sequence[LinearMap], config: Any) -> list[QueryKey]:
    """The pairs of queries and keys among ``maps``; none if ``config`` does not say how many heads there are."""
    heads = getattr(config, "num_attention_heads", None)
    keys = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
    if not (isinstance(heads, int) and isinstance(keys, int) and heads > 0 and keys > 0):  # Swin has a list, by stage
        return []
    by_place: dict[tuple[str, str], dict[str, LinearMap]] = {}
    for one in maps:
        parent, _, name = one.path.rpartition(".")
        place = f"{parent}.{name.partition('[')[0]}" if "[" in name else parent
        kind = next((kind for kind, names in _NAMES.items() if name in names or name.endswith(f"[{kind}]")), None)
        if kind:
            by_place.setdefault((one.stack.path, place), {})[kind] = one
    pairs = [QueryKey(found["q"], found["k"], heads, keys) for found in by_place.values() if len(found) == len(_NAMES)]
    return [pair for pair in pairs if _heads_fit(pair)]


def _heads_fit(pair: QueryKey) -> bool:
    """Whether the rows of both maps are whole heads of one size."""
    sizes = [one.height / heads for one, heads in ((pair.query, pair.heads), (pair.key, pair.key_heads))]
    return sizes[0] == sizes[1] == int(sizes[0]) and pair.heads % pair.key_heads == 0


@contextlib.contextmanager
def whole(weight: Tensor) -> Iterator[Tensor]:
    """All of a weight, also if FSDP2 or ZeRO-3 has spread it over the processes. Then every process has to enter it."""
    if hasattr(weight, "full_tensor"):
        yield weight.detach().full_tensor()  # type: ignore[attr-defined]
    elif hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            yield weight.detach()
    else:
        yield weight.detach()


def _is_map(module: nn.Module) -> bool:
    base = _base(module)
    if not isinstance(base, (nn.Linear, Conv1D)):
        return False
    weight = _weight(base)
    return weight.is_floating_point() and len(_shape(weight)) == 2


def _is_experts(module: nn.Module) -> bool:
    weight = getattr(module, "gate_up_proj", None)
    return isinstance(weight, nn.Parameter) and len(_shape(weight)) == 3 and weight.is_floating_point()


def _base(module: nn.Module) -> nn.Module:
    """The module that LoRA wraps; else the module itself."""
    layer = getattr(module, "base_layer", None)
    return layer if isinstance(layer, nn.Module) else module


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    weight = module.gate_up_proj if weight is None else weight
    assert isinstance(weight, Tensor)
    return weight


def _shape(weight: Tensor) -> tuple[int, ...]:
    """Of the whole weight, also if ZeRO-3 has left this process none of it."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _adapters(module: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    """A, B and the scale of each LoRA that acts; none if they are merged into the weight."""
    if not hasattr(module, "lora_A") or getattr(module, "merged", False) or getattr(module, "disable_adapters", False):
        return []
    layer: Any = module
    return [
        (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


def _oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """``W`` of shape ``(out, in)``."""
    if _is_experts(module):
        return weight if weight.shape[-1] == _width(module) else weight.mT
    return weight.mT if isinstance(module, Conv1D) else weight


def _width(module: nn.Module) -> int:
    if _is_experts(module):
        return int(getattr(module, "hidden_dim", None) or module.hidden_size)  # type: ignore[arg-type]
    return int(module.nx if isinstance(module, Conv1D) else module.in_features)  # type: ignore[arg-type]


def _out(module: nn.Module) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def _part(matrix: Tensor, rows: slice | Tensor | None) -> Tensor:
    return matrix if rows is None else matrix[rows.to(matrix.device) if isinstance(rows, Tensor) else rows]


def _wide(weight: Tensor) -> Tensor:
    return weight.float() if weight.dtype in _HALF else weight


def _cut(name: str, out: int, width: int, config: Any) -> list[tuple[str, slice | Tensor | None]]:
    """The parts of a fused map with their rows; the map itself if it is none, or if its order is not known."""
    heads = getattr(config, "num_attention_heads", None)
    kind = getattr(config, "model_type", "")
    if name in _BY_HEAD and kind in _KNOWN_BY_HEAD and heads and out % (3 * heads) == 0:
        order = torch.arange(out).view(heads, 3, -1)
        return [(part, order[:, place].reshape(-1)) for place, part in enumerate(_PARTS)]
    if name in _CONTIGUOUS and (sizes := _sizes(out, width, heads, config)):
        ends = list(itertools.accumulate(sizes, initial=0))
        return [(part, slice(*pair)) for part, pair in zip(_PARTS, itertools.pairwise(ends), strict=True)]
    return [("", None)]


def _sizes(out: int, width: int, heads: int | None, config: Any) -> list[int] | None:
    """Rows of queries, keys and values that stand one after the other."""
    if heads:
        keys = getattr(config, "num_key_value_heads", None) or (1 if getattr(config, "multi_query", False) else heads)
        head = getattr(config, "head_dim", None) or width // heads
        if (heads + 2 * keys) * head == out:
            return [heads * head, keys * head, keys * head]
    return [out // 3] * 3 if out == 3 * width else None
