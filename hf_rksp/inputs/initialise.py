"""Random weights, drawn piece by piece: every residual block, and the rest of the model, has a seed of its own.

So a block has the same weights whether the whole model is made or this block alone, which is what lets a model larger
than memory be profiled block by block. The scheme is transformers' own for the architecture. What that leaves undrawn
has the number that the constructor of its module gives it, as in ``AutoModel.from_config``; nothing keeps what memory held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture import Block, find_stacks
from hf_rksp.errors import CaptureError, ModelLoadError, first_line
from hf_rksp.inputs import tensors
from hf_rksp.inputs.skeletons import Skeleton, drawing, skeleton
from hf_rksp.inputs.tensors import Slot

__all__ = ["Initialiser", "skeleton"]

_REMEDY = "random weights would be what the memory happens to hold. Audit a checkpoint of it instead (rksp audit FOLDER_OR_ID)"


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
    around: Sequence[nn.Module] = ()


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
        # Code from elsewhere: transformers from 5.13 on passes over its modules without tensors. This package's was published
        # without that.
        own = type(self.model).__module__.startswith("hf_rksp.")
        custom = getattr(self.model, "is_custom_code", lambda: False)
        self._custom = (True,) if not own and custom() else ()
        self._paths = {module: path for path, module in self.model.named_modules()}
        self._loose = tensors.loose(self.model)
        times = Counter(module for block in self.blocks for module in set(block.module.modules()))
        #: The modules outside the blocks; what several blocks share is one of them.
        self.rest = {module for module in self.model.modules() if times[module] != 1}
        self._homes = {m: b.path for b in self.blocks for m in b.module.modules() if m not in self.rest}
        self._shared = tensors.shared(self.model)
        self._lent: dict[Slot, Tensor] = {}

    def identity(self) -> object:
        """The seed; the configuration is the model's."""
        return [self.seed, self.double]

    def make_all(self) -> nn.Module:
        """The whole model, in evaluation mode."""
        self.make_rest()
        for block in self.blocks:
            self.make(block)
        self.model.eval()
        return self.model

    def make_rest(self) -> None:
        """Everything but the blocks: embeddings, norms, tables of positions, and tensors that several pieces share."""
        modules = [module for module in self._owners if module in self.rest]
        self._fill(Piece(f"{self.seed}", self.model, modules))
        drawn = dict(tensors.registered(modules))
        self.model.tie_weights()
        for slot, tensor in drawn.items():
            if tensors.get(slot).is_meta:  # tied to a block, which is not there yet
                tensors.put(slot, tensor)
        if self.double:
            tensors.cast(modules, torch.float64)
        self._join(None)
        self._lend()

    def make(self, block: Block) -> None:
        """The weights of one block."""
        piece = self._piece(block)
        lent = {slot: tensor for slot, tensor in self._lent.items() if self._homes[slot[0]] == block.path}
        for slot, tensor in lent.items():
            tensors.put(slot, tensors.bare(tensor))  # it is drawn all the same, but not into the other's memory
        if self.double:
            tensors.cast(piece.modules, torch.float32)
        self._fill(piece)
        if self.double:
            tensors.cast(piece.modules, torch.float64)
        self._join(block.path)
        for slot, tensor in lent.items():
            tensors.put(slot, tensor)

    def drop(self, block: Block) -> None:
        """Let go of the memory of a block."""
        modules = self._piece(block).modules
        for module in modules:
            _mark_undrawn(module)
        for slot, tensor in tensors.registered(modules):
            tensors.put(slot, tensors.bare(tensor))
        for slot, tensor in self._loose.items():
            if slot[0] in modules:
                tensors.put(slot, tensor)

    def _piece(self, block: Block) -> Piece:
        modules = [module for module in self._owners if self._homes.get(module) == block.path]
        parents = [block.path.rsplit(".", n)[0] for n in range(1, block.path.count(".") + 1)] + [""]
        around = [self.model.get_submodule(path) for path in parents]
        return Piece(f"{self.seed}/{block.path}", block.module, modules, around)

    def _join(self, home: str | None) -> None:
        """One tensor again in all places within a piece that share it: memory was given to each."""
        for group in self._shared:
            places = [slot for slot in group if self._homes.get(slot[0]) == home]
            for slot in places[1:]:
                tensors.put(slot, tensors.get(places[0]))

    def _lend(self) -> None:
        """Keep what blocks share with the rest or with each other: it is the rest's, or the first block's."""
        owned: dict[str | None, list[list[Slot]]] = {}
        for group in self._shared:
            homes = [self._homes.get(module) for module, _ in group]
            if len(set(homes)) > 1:
                owned.setdefault(None if None in homes else homes[0], []).append(group)
        for home, groups in owned.items():
            owner = next((block for block in self.blocks if block.path == home), None)
            if owner:
                self.make(owner)
            for group in groups:
                tensor = next(tensors.get(slot) for slot in group if self._homes.get(slot[0]) == home)
                self._lent |= {slot: tensor for slot in group if slot[0] in self._homes}
            if owner:
                self.drop(owner)

    def _fill(self, piece: Piece) -> None:
        """Draw the tensors of ``piece``.

        What is drawn does not depend on what was there, so numbers that stay as they were put there were not drawn.
        Integers have no NaN: those that follow what was put there were not.
        """
        self._draw(piece, 0)
        undrawn = [slot for slot, tensor in tensors.registered(piece.modules) if tensors.untouched(tensor)]
        whole = {s: t.clone() for s, t in tensors.registered(piece.modules) if not tensors.can_be_nan(t)}
        if whole:
            self._draw(piece, 1)
            undrawn += [slot for slot, tensor in whole.items() if not torch.equal(tensors.get(slot), tensor)]
        undrawn += [slot for slot in self._loose if slot[0] in piece.modules]
        if undrawn:
            # Drawn once more, over them: a scheme may scale what a constructor has drawn.
            self._draw(piece, 0, self._constructed(piece, undrawn))
            left = [slot for slot in undrawn if tensors.untouched(tensors.get(slot))]
            if left:
                raise ModelLoadError(f"{self._names(left)} never drawn, not by transformers itself either; {_REMEDY}")

    def _draw(self, piece: Piece, whole: int, values: Mapping[Slot, Tensor] | None = None) -> None:
        """As transformers does: inner modules first, each by the model that it is a part of.

        Before, integers are ``whole``, other numbers NaN, and ``values`` are there.
        """
        for module in piece.modules:
            _mark_undrawn(module)
            module.to_empty(device="cpu", recurse=False)
        with torch.no_grad():
            for _, tensor in tensors.registered(piece.modules):
                tensor.fill_(torch.nan if tensors.can_be_nan(tensor) else whole)
            for slot, value in (values or {}).items():
                if slot in self._loose:
                    tensors.put(slot, value)
                else:
                    tensors.get(slot).copy_(value)
        with drawing(piece.name):
            for module in piece.modules:
                self._owners[module]._initialize_weights(module, *self._custom)
            with tensors.hidden(self._owners.keys() - set(piece.modules) if piece.around else ()):
                for module in piece.around:
                    _mark_undrawn(module)
                    self._owners[module]._initialize_weights(module, *self._custom)

    def _constructed(self, piece: Piece, slots: Collection[Slot]) -> dict[Slot, Tensor]:
        """The tensors as the constructors of their modules leave them.

        The least of the model is built that has them all: their modules, the piece, the model.
        """
        away = [] if piece.around else [block.module for block in self.blocks]
        problem = ""
        for here in ({module for module, _ in slots}, {piece.root}, None):
            if here is None and not self.bare.fits():
                problem = " (the whole model would have to be built at once, and there is not memory enough)"
                continue
            if not all(module in self.bare.births for module in here or ()):
                continue
            try:
                with drawing(f"{piece.name}/constructed"):
                    built = self.bare.build(here, away if here else ())
            except Exception as error:
                problem = f" ({first_line(error)})"
                continue
            values = {
                slot: find for slot in slots if (find := tensors.find(built, self._paths[slot[0]], slot[1])) is not None
            }
            if len(values) == len(slots):
                return values
        raise ModelLoadError(f"{self._names(slots)} drawn by no constructor that could be run{problem}; {_REMEDY}")

    def _names(self, slots: Collection[Slot]) -> str:
        names = [f"{self._paths[module]}.{name}".lstrip(".") for module, name in slots]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"{', '.join(names[:3])}{more} of {type(self.model).__name__} {'are' if len(names) > 1 else 'is'}"


def _mark_undrawn(module: nn.Module) -> None:
    """Let transformers draw the weights of ``module``, though it may have drawn them before."""
    module._is_hf_initialized = False  # type: ignore[assignment]  # for torch, attributes are tensors or modules


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
