"""How a model is called, and how it is left unchanged."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_lock, _stance = threading.Lock(), contextlib.ExitStack()
_open = 0


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Functions made by ``torch.compile`` run eagerly inside: hooks that are added after compilation never fire.

    The stance of the compiler is the process's own. Contexts may end in any order (two runs watched side by side): the last
    one puts the stance back.
    """
    global _open
    with _lock:
        if not _open:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _stance.close()


def uncompiled(model: nn.Module) -> nn.Module:
    """The module itself, without what ``torch.compile`` wraps around it."""
    return getattr(model, "_orig_mod", model)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the forward method of ``model`` has an argument ``name``; that of PEFT hands on whatever comes."""
    base_of = getattr(model, "get_base_model", None)
    base = model if base_of is None else base_of()
    return name in inspect.signature(uncompiled(base).forward).parameters


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards every training flag and the random state are as before."""
    training = [(module, module.training) for module in model.modules()]
    try:
        with forked_random_state(model), torch.no_grad(), _no_nested_tensors():
            # Not model.eval(): a module may override it, and merge adapters there for instance.
            for module, _ in training:
                module.training = False
            yield
    finally:
        for module, flag in training:
            module.training = flag


@contextlib.contextmanager
def _no_nested_tensors() -> Iterator[None]:
    """torch's own TransformerEncoder drops padding in evaluation mode, and its states then have no shape."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def forked_random_state(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Torch's random state, and that of generators that modules of ``model`` hold, is put back afterwards."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    stack = contextlib.ExitStack()
    stack.enter_context(torch.random.fork_rng(devices=devices))
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                stack.callback(value.set_state, value.get_state())
    return stack


def model_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """What ``module`` was called with, by the names of its forward method; a mapping among the arguments as its own entries."""
    named: dict[str, Any] = dict(zip(_names_of(module), args, strict=False))
    inner: dict[str, Any] = {}
    for name, value in {**named, **kwargs}.items():
        inner |= value if isinstance(value, Mapping) else {name: value}
    for value in args[len(named) :]:  # taken by *args, which have no names
        inner |= value if isinstance(value, Mapping) else {}
    return inner


def _names_of(module: nn.Module) -> list[str]:
    """Names of the arguments that ``module`` takes by their place."""
    try:
        kinds = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a function without a signature
        return []
    names = [one.name for one in kinds if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    base = getattr(module, "get_base_model", None)  # PEFT hands on whatever comes
    return names if names or base is None else _names_of(base())


def forward(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """One forward pass, most often for its states alone; the inputs go to the device of the model's first weights."""
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    # Copies: a model may write into its inputs, and the batches are the caller's.
    inputs = {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in batch.items()
    }
    if not hasattr(model, "config") and list(inputs) == ["input_ids"]:
        return model(inputs["input_ids"])  # a plain module calls its first argument what it likes
    if takes(model, "use_cache"):
        inputs.setdefault("use_cache", False)
    return model(**inputs)


def with_decoder_inputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add decoder inputs (the text shifted by the start token) for an encoder-decoder; else the batch as it is."""
    config = model.config
    if "input_ids" not in batch or not getattr(config, "is_encoder_decoder", False):
        return batch
    ids, mask = batch["input_ids"], batch["attention_mask"]
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    start = next((token for name in names if (token := getattr(config, name, None)) is not None), 0)
    shifted = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return batch | {"decoder_input_ids": shifted, "decoder_attention_mask": mask}


def reshard(model: nn.Module) -> None:
    """Let go of the gathered weights that FSDP2 keeps after a pass without gradients."""
    for module in model.modules():
        method = getattr(module, "reshard", None)
        if method is not None:
            method()
