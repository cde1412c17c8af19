"""Random weights, drawn piece by piece: every residual block, and the rest of the model, has a seed of its own.

So a block has the same weights whether the whole model is made or this block alone, which is what lets a model larger
than memory be profiled block by block. The scheme is transformers' own for the architecture. What that leaves undrawn
has the number that the constructor of its module gives it, as in ``AutoModel.from_config``; nothing keeps what memory held.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, find_stacks
from hf_rksp.errors import CaptureError, ModelLoadError, first_line
from hf_rksp.inputs.skeletons import Skeleton, skeleton

__all__ = ["Initialiser", "skeleton"]

#: A tensor of a model: its module and its name there.
Slot = tuple[nn.Module, str]


@dataclass(frozen=True)
class Piece:
    """What is drawn at a time.

    Attributes:
        name: seeds it.
        root: all of it lies under this module.
        modules: inner ones first.
        around: the modules that it lies in, inner ones first. Their own schemes may reach into it.
    """

    name: str
    root: nn.Module
    modules: Sequence[nn.Module]
    around: Sequence[nn.Module]


class Initialiser:
    """Puts random weights into a `skeleton`, or takes them away again.

    Args:
        bare: from `skeleton`, in the dtype that numbers are drawn in.
        seed: names the weights, together with the path of a block.
        double: make float64 of the numbers. Drawn in float64 they would be others, and a seed has to name one model.
    """

    def __init__(self, bare: Skeleton, seed: int, double: bool = False) -> None:
        self.bare, self.model, self.seed, self.double = bare, bare.model, seed, double
        try:
            self.blocks: tuple[Block, ...] = tuple(block for stack in find_stacks(self.model) for block in stack.blocks)
        except CaptureError:  # blocks that only a forward pass can tell: the model is one piece
            self.blocks = ()
        self._owners = _owners(self.model)
        self._paths = {module: path for path, module in self.model.named_modules()}
        self._loose = _loose_tensors(self.model)
        times = Counter(module for block in self.blocks for module in set(block.module.modules()))
        #: The modules outside the blocks; what several blocks share is one of them.
        self.rest = {module for module in self.model.modules() if times[module] != 1}

    def identity(self) -> object:
        """The seed; the configuration is the model's."""
        return [self.seed, self.double]

    def make_all(self) -> nn.Module:
        """The whole model, in evaluation mode."""
        self.make_rest()
        for block in self.blocks:
            self.make(block)
        return self.model.eval()

    def make_rest(self) -> None:
        """Everything but the blocks: embeddings, norms, tables of positions."""
        self._fill(Piece(f"{self.seed}", self.model, [module for module in self._owners if module in self.rest], []))
        self.model.tie_weights()
        if self.double:
            for module in self.rest:
                _cast(module, torch.float64)

    def make(self, block: Block) -> None:
        """The weights of one block."""
        piece = self._own(block)
        if self.double:
            for module in piece.modules:
                _cast(module, torch.float32)
        self._fill(piece)
        if self.double:
            for module in piece.modules:
                _cast(module, torch.float64)

    def drop(self, block: Block) -> None:
        """Let go of the memory of a block."""
        for module in self._own(block).modules:
            module._is_hf_initialized = False  # type: ignore[assignment]
            module._apply(lambda tensor: tensor.to("meta"), recurse=False)

    def _own(self, block: Block) -> Piece:
        inside = set(block.module.modules()) - self.rest
        modules = [module for module in self._owners if module in inside]
        parents = [block.path.rsplit(".", n)[0] for n in range(1, block.path.count(".") + 1)] + [""]
        around = [self.model.get_submodule(path) for path in parents]
        return Piece(f"{self.seed}/{block.path}", block.module, modules, around)

    def _fill(self, piece: Piece) -> None:
        """Draw the tensors of ``piece``.

        What is drawn does not depend on what was there, so numbers that stay as they were put there were not drawn.
        Integers have no NaN: those that follow what was put there were not.
        """
        self._draw(piece, 0)
        whole = {slot: tensor.clone() for slot, tensor in _slots(piece.modules) if not _can_be_nan(tensor)}
        undrawn = [slot for slot, tensor in _slots(piece.modules) if _has_nan(tensor)]
        if whole:
            self._draw(piece, 1)
            undrawn += [slot for slot, tensor in whole.items() if not torch.equal(_tensor(slot), tensor)]
        undrawn += [(module, name) for module in piece.modules for name in self._loose.get(module, ())]
        if undrawn:
            # Drawn once more, over them: a scheme may scale what a constructor has drawn.
            self._draw(piece, 0, self._constructed(piece, undrawn))
            left = [slot for slot in undrawn if _has_nan(_tensor(slot))]
            if left:
                raise ModelLoadError(f"{self._names(left)} never drawn by transformers itself; {_REMEDY}")

    def _draw(self, piece: Piece, whole: int, values: Mapping[Slot, Tensor] | None = None) -> None:
        """As transformers does: inner modules first, each by the model that it is a part of.

        Before, integers are ``whole``, other numbers NaN, and ``values`` are there.
        """
        for module in piece.modules:
            module._is_hf_initialized = False  # type: ignore[assignment]
            module.to_empty(device="cpu", recurse=False)
        with torch.no_grad():
            for _, tensor in _slots(piece.modules):
                tensor.fill_(torch.nan if _can_be_nan(tensor) else whole)
            for (module, name), value in (values or {}).items():
                if name in module._parameters or name in module._buffers:
                    _tensor((module, name)).copy_(value)
                else:
                    setattr(module, name, value)
        with _drawing(piece.name):
            for module in piece.modules:
                self._owners[module]._initialize_weights(module)
            if piece.around:
                with _hidden(self._owners.keys() - set(piece.modules)):
                    for module in piece.around:
                        module._is_hf_initialized = False  # type: ignore[assignment]
                        self._owners[module]._initialize_weights(module)

    def _constructed(self, piece: Piece, slots: Collection[Slot]) -> dict[Slot, Tensor]:
        """The tensors as the constructors of their modules leave them.

        The least of the model is built that has them all: their modules, the piece, the model.
        """
        away = [] if piece.root is not self.model else [block.module for block in self.blocks]
        problem = ""
        for here in ({module for module, _ in slots}, {piece.root}, None):
            if here is not None and not all(module in self.bare.births for module in here):
                continue
            try:
                with _drawing(f"{piece.name}/constructed"):
                    built = self.bare.build(here, away if here else ())
                values = {slot: _find(built, self._paths[slot[0]], slot[1]) for slot in slots}
            except Exception as error:
                problem = f" ({first_line(error)})"
                continue
            missing = [slot for slot, value in values.items() if value is None or value.is_meta]
            if not missing:
                return {slot: value for slot, value in values.items() if value is not None}
        raise ModelLoadError(f"{self._names(slots)} drawn by no constructor that could be run{problem}; {_REMEDY}")

    def _names(self, slots: Collection[Slot]) -> str:
        names = [f"{self._paths[module]}.{name}".lstrip(".") for module, name in slots]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{', '.join(names[:3])}{more} of {type(self.model).__name__} {'are' if len(names) > 1 else 'is'}"


_REMEDY = "random weights would be whatever the memory holds. Pass a checkpoint instead (rksp audit FOLDER_OR_ID)"


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    """Every random generator that a module may use starts from ``name``, and goes on afterwards as if nothing was."""
    import numpy as np
    from transformers import initialization

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1
    others = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), initialization.guard_torch_init_functions():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])


@contextlib.contextmanager
def _hidden(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Numbers of ``modules`` on the meta device, where nothing that is drawn can reach them."""
    stores: list[dict[str, Any]] = [store for module in modules for store in (module._parameters, module._buffers)]
    kept = [(store, dict(store)) for store in stores if any(t is not None and not t.is_meta for t in store.values())]
    try:
        for store, tensors in kept:
            for name, tensor in tensors.items():
                if tensor is not None:
                    bare = tensor.detach().to("meta")
                    store[name] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
        yield
    finally:
        for store, tensors in kept:
            store.update(tensors)


def _slots(modules: Iterable[nn.Module]) -> Iterator[tuple[Slot, Tensor]]:
    """The modules' own parameters and buffers."""
    for module in modules:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield (module, name), tensor


def _tensor(slot: Slot) -> Tensor:
    module, name = slot
    for own in (module._parameters, module._buffers, vars(module)):
        if isinstance(tensor := own.get(name), Tensor):
            return tensor
    raise KeyError(name)


def _find(model: nn.Module, path: str, name: str) -> Tensor | None:
    try:
        return _tensor((model.get_submodule(path), name)).detach()
    except (AttributeError, KeyError):
        return None


def _can_be_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _has_nan(tensor: Tensor) -> bool:
    if not _can_be_nan(tensor):
        return False
    return bool(torch.isnan(tensor if tensor.element_size() > 1 else tensor.float()).any())


def _loose_tensors(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Tensors that a module keeps as plain attributes: no method of `nn.Module` moves them off the meta device."""
    loose = {}
    for module in model.modules():
        names = [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_meta]
        if names:
            loose[module] = names
    return loose


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """The module's own numbers, not those of its children."""
    module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, recurse=False)


def _owners(model: nn.Module) -> dict[nn.Module, Any]:
    """For each module, inner ones first, the innermost transformers model that it is a part of: its scheme applies."""
    from transformers import PreTrainedModel

    owners: dict[nn.Module, Any] = {}

    def visit(module: nn.Module, owner: nn.Module) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child in module.children():
            visit(child, owner)
        owners.setdefault(module, owner)

    visit(model, model)
    return owners
