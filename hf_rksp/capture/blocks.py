"""Find the residual blocks of a model: the members of the lists that carry the residual stream.

In transformers most such members are a ``GradientCheckpointingLayer``; a list of nothing but those is a stack. Models
with lists of other blocks (your own, remote code, a tower that transformers does not mark), and models in stages, are run
once: a list whose members hand their state to each other is a stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hf_rksp.capture.calling import uncompiled
from hf_rksp.capture.chains import ModuleLists, Run, chained, looks_like_one_block, looks_residual, record_runs
from hf_rksp.capture.refusals import nothing_found
from hf_rksp.errors import InputError

#: Class names of layers that transformers checkpoints but that are no residual blocks, by their endings. Both change
#: the shape of the state: stages of image models (Swin's own blocks lie inside), and the convolutions before Wav2Vec2.
_NOT_RESIDUAL = ("Stage", "ConvLayer")


@dataclass(frozen=True)
class Block:
    """One residual block: its position in the stack, its path in the model, and the module.

    A module that runs several times in one forward pass is a block for each run; see `Stack.layer`.
    """

    index: int
    path: str
    module: nn.Module


@dataclass(frozen=True)
class Stack:
    """The blocks along one residual stream, in the order of depth.

    Attributes:
        path: of their list in the model.
        blocks: in the order of registration; a module that is in the list twice is one block.
        side: "encoder" or "decoder" of an encoder-decoder, as the model itself says; ``None`` elsewhere.
        prepended: learnt tokens that PEFT's prompt tuning puts before each sequence.
        left_out: paths of members of the list that change the shape of the state: they have no operator from a space to itself.
        members: number of modules in the list.
        unchained: of the first stack: lists anywhere in the model whose members look like residual blocks, but do not hand
            their state to each other, so that they are in no stack.
    """

    path: str
    blocks: tuple[Block, ...]
    side: str | None = None
    prepended: int = 0
    left_out: tuple[str, ...] = ()
    members: int = 0
    unchained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            object.__setattr__(self, "members", 1 + max((block.index for block in self.blocks), default=0))

    def layer(self, block: Block, run: int) -> Block:
        """``block`` in its run number ``run`` (from 0) of one forward pass; each run is one layer."""
        if run == 0:
            return block
        return Block(block.index + run * self.members, f"{block.path} (run {run + 1})", block.module)

    def find(self, index: int) -> Block:
        """The layer of that index: the inverse of `layer`."""
        run, member = divmod(index, self.members)
        return self.layer(next(block for block in self.blocks if block.index == member), run)

    def holds(self, block: Block, layer: tuple[str, int]) -> bool:
        """Whether a layer (path of a stack, index) is a run of ``block`` of this stack."""
        return layer[0] == self.path and layer[1] % self.members == block.index


def find_stacks(
    model: nn.Module, blocks: str | Sequence[str] | None = None, probe: Callable[[], object] | None = None
) -> list[Stack]:
    """The stacks of residual blocks of ``model``, in the order of their registration.

    Args:
        model: any module; PEFT, DDP and ``torch.compile`` wrappers are looked through.
        blocks: path or paths of the lists, for a model whose blocks are not found: ``"encoder.blocks"``.
        probe: runs one forward pass of the model; used where the modules alone do not tell.

    Raises:
        InputError: ``blocks`` names no list of modules.
        CaptureError: nothing was found; the message says what was looked at.
    """
    model = uncompiled(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)
    }
    if blocks is not None:
        return [_stack(model, path, lists[path]) for path in _named(model, lists, blocks)]
    found = outermost(name for name, members in lists.items() if _are_blocks(members))
    left_out: Mapping[str, tuple[str, ...]] = {}
    unchained: tuple[str, ...] = ()
    runs: dict[str, list[Run]] = {}
    if probe is not None and (not found or needs_probe(model)):
        runs = record_runs(lists, probe)
        found, left_out = _by_running(lists, found, runs)
        unchained = tuple(name for name in unmarked(model) if not _touches(name, found) and looks_residual(runs[name]))
    if not found:
        found = outermost(name for name in runs if looks_like_one_block(runs[name]))
    if not found:
        raise nothing_found(model, lists, runs)
    stacks = [_stack(model, path, lists[path], left_out.get(path, ())) for path in found]
    return [dataclasses.replace(stacks[0], unchained=unchained), *stacks[1:]]


def restore(model: nn.Module, parts: Iterable[Mapping[str, tuple[str, ...]]]) -> list[Stack]:
    """The stacks that any process, or any batch, has found: of each part the paths of its stacks, with what is left out of each."""
    model = uncompiled(model)
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        found = {**part, **found}
    lists, kept = dict(model.named_modules()), outermost(found)
    return [_stack(model, path, lists[path], found[path]) for path in lists if path in kept]


def without(stacks: Sequence[Stack], blocks: Sequence[Block]) -> list[Stack]:
    """``stacks`` with these blocks left out, and without those that have no other."""
    lost = {
        stack.path: [b for b in stack.blocks if any(b.module is block.module for block in blocks)] for stack in stacks
    }
    kept = [
        dataclasses.replace(
            stack,
            blocks=tuple(block for block in stack.blocks if block not in lost[stack.path]),
            left_out=stack.left_out + tuple(block.path for block in lost[stack.path]),
        )
        for stack in stacks
    ]
    gone = tuple(path for stack in kept if not stack.blocks for path in stack.left_out)
    kept = [stack for stack in kept if stack.blocks]
    return [dataclasses.replace(kept[0], left_out=kept[0].left_out + gone), *kept[1:]] if kept else []


def needs_probe(model: nn.Module) -> bool:
    """Whether the modules alone leave it open which are the residual blocks.

    So it is if none are marked, if other lists may hold blocks too, or if blocks may lie in blocks.
    """
    model = uncompiled(model)
    lists = [module for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)]
    marked = [members for members in lists if _are_blocks(members)]
    inner = (
        part
        for members in marked
        for member in members
        for part in member.modules()
        if isinstance(part, (nn.ModuleList, nn.Sequential)) and len(part)
    )
    return not marked or any(map(_alike, inner)) or bool(unmarked(model))


def unmarked(model: nn.Module) -> list[str]:
    """Paths of the outermost lists beside those that transformers marks whose members could be residual blocks.

    They have at least two members, all of one class, each with parts of its own. Whether they are blocks only a forward
    pass can tell.
    """
    model = uncompiled(model)
    lists = {name: part for name, part in model.named_modules() if isinstance(part, (nn.ModuleList, nn.Sequential))}
    marked = [name for name, members in lists.items() if len(members) and _are_blocks(members)]
    other = [name for name, members in lists.items() if len(members) > 1 and _alike(members)]
    return outermost(name for name in other if not _touches(name, marked))


def _alike(members: nn.Module) -> bool:
    """Whether all members of a list are of one class and have parts of their own."""
    listed = list(members.children())
    return all(any(member.children()) for member in listed) and len({*map(type, listed)}) == 1


def _touches(name: str, others: Iterable[str]) -> bool:
    """Whether a list is one of the others, lies in one of them, or holds one."""
    return any(name == other or inside(name, other) or inside(other, name) for other in others)


def _named(model: nn.Module, lists: Mapping[str, nn.Module], blocks: str | Sequence[str]) -> list[str]:
    found = [blocks] if isinstance(blocks, str) else list(blocks)
    for path in found:
        if path not in lists:
            raise InputError(
                f"blocks={path!r} is not a non-empty ModuleList or Sequential of {type(model).__name__}: "
                f"choose among {', '.join(map(repr, lists)) or 'none, the model has no such list'}"
            )
    if len(outermost(found)) < len(found) or len(set(found)) < len(found):
        raise InputError(f"blocks={found!r}: a list is named twice, or lies inside another one; name each stream once")
    return found


def _are_blocks(members: nn.Module) -> bool:
    """Whether all members are residual blocks by their class, or have one wrapped around (PEFT, control vectors)."""
    kinds = {type(member) for member in members.children() if _is_block(member)}
    return all(
        _is_block(member) or _wraps_a_block(member) or any(type(part) in kinds for part in member.modules())
        for member in members.children()
    )


def _wraps_a_block(module: nn.Module) -> bool:
    """Whether a module holds one block, and not in a list: those that hold a list are stages."""
    if type(module).__name__.endswith(_NOT_RESIDUAL) or isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    inner = [child for child in module.children() if _is_block(child) or _wraps_a_block(child)]
    return len(inner) == 1


def _is_block(module: nn.Module) -> bool:
    # By name, so that this works without transformers and under FSDP, which swaps the class for a subclass of it.
    names = [base.__name__ for base in type(uncompiled(module)).__mro__]
    return "GradientCheckpointingLayer" in names and not names[0].endswith(_NOT_RESIDUAL)


def outermost(names: Iterable[str]) -> list[str]:
    """``names`` without those that lie inside another one: the feed-forward lists of a block are not a stream."""
    names = list(names)
    return [name for name in names if not any(name != other and inside(name, other) for other in names)]


def inside(name: str, other: str) -> bool:
    """Whether the module ``name`` lies in the module ``other``."""
    return name.startswith(f"{other}." if other else "")


def _by_running(
    lists: ModuleLists, marked: Sequence[str], runs: Mapping[str, list[Run]]
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The lists that carry a residual stream by what ran, and what of each changes the shape of the state.

    A list whose members all keep the shape of the state is whole. Where some do not (stages), the lists inside are looked at.
    """
    found = {name: chained(members, runs[name], name in marked) for name, members in lists.items()}
    whole = {name for name, chain in found.items() if chain.is_stream and not chain.changing}
    broken = {name for name, chain in found.items() if chain.is_stream and chain.changing}
    if marked:  # what transformers marks is right, if it keeps the shape, and so is nothing inside or around it
        trusted = [name for name in marked if name in whole or not found[name].ran]
        whole = {name for name in whole if not _touches(name, trusted)} | set(trusted)
        broken = {name for name in broken if not _touches(name, trusted)}
    chosen = outermost(name for name in lists if name in whole)
    # A list of stages may hold lists of blocks; then it is not the stream itself.
    parts = [
        name
        for name in lists
        if name in broken and not any(inside(other, name) for other in whole | broken if other != name)
    ]
    chosen = [name for name in lists if name in chosen or name in parts]
    kinds = {type(member) for name in chosen for member in lists[name] if any(member.children())}
    for name, members in lists.items():  # a stage of one block, or of one that changes the shape
        alone = len(members) == 1 and type(members[0]) in kinds and found[name].ran
        if alone and not _touches(name, chosen):
            chosen.append(name)
    chosen = outermost(name for name in lists if name in chosen)
    left_out = {
        name: tuple(f"{name}.{i}".lstrip(".") for i, m in lists[name].named_children() if m in found[name].changing)
        for name in chosen
    }
    kept = [name for name in chosen if len(left_out[name]) < len(list(lists[name].children()))]
    lost = tuple(path for name in chosen if name not in kept for path in left_out[name])
    if kept and lost:
        left_out[kept[0]] += lost
    return kept, left_out


def _stack(model: nn.Module, path: str, members: nn.Module, left_out: tuple[str, ...] = ()) -> Stack:
    named = enumerate(members.named_children())
    blocks = tuple(Block(i, f"{path}.{name}" if path else name, block) for i, (name, block) in named)
    prompt = _attribute(model, "active_peft_config")
    return Stack(
        path,
        tuple(block for block in blocks if block.path not in left_out),
        _side(model, members),
        getattr(prompt, "num_virtual_tokens", None) or 0,
        left_out,
    )


def _side(model: nn.Module, members: nn.Module) -> str | None:
    """Whether the list lies in the encoder or in the decoder of an encoder-decoder; ``None`` if the model does not say."""
    owner = next((m for m in model.modules() if hasattr(m, "config") and hasattr(m, "get_encoder")), None)
    if owner is None or not getattr(owner.config, "is_encoder_decoder", False):
        return None
    sides = []
    for side in ("encoder", "decoder"):
        part = getattr(owner, f"get_{side}")()
        if part is not owner and isinstance(part, nn.Module) and any(module is members for module in part.modules()):
            sides.append(side)
    return sides[0] if len(sides) == 1 else None


def _attribute(model: nn.Module, name: str) -> object:
    """The attribute of the outermost module that has it, whatever wraps that module."""
    return next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)
