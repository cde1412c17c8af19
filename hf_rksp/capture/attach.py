"""Put hooks on modules so that copies and pickles of the model go without them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: What `copy` and `pickle` ask an object for before they ask its class.
_REDUCE = "__reduce_ex__"


class Hook:
    """A hook of this package. ``torch.compile`` calls it as it is; a copy and a pickle of it do nothing."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Hand on what the module was called with."""
        self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


class ChangingHook(Hook):
    """A hook whose answer takes the place of what the module returned; a copy of it changes nothing."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function answers."""
        return self.function(*args, **kwargs)


@functools.cache
def _keep_out_of_graphs() -> None:
    # Not as a decorator: that loads the whole compiler, two seconds in which a command could have said what is wrong.
    Hook.__call__ = torch.compiler.disable(Hook.__call__)  # type: ignore[method-assign]  # once, for all hooks


class Attached:
    """Hooks of this package that are taken away together.

    While they are there, ``copy.deepcopy`` and ``pickle`` leave them out of what they make of the modules: a teacher, the best
    model so far, a whole model on disk and a model in a worker are those of a run that nobody watches. Hooks of others
    are copied as ever.
    """

    def __init__(self) -> None:
        _keep_out_of_graphs()
        self._handles: list[Any] = []
        self._tables: list[tuple[Any, Any]] = []

    def before(self, module: nn.Module, function: Callable[..., None]) -> None:
        """Call ``function(module, args, kwargs)`` before each forward pass of ``module``."""
        self._handles.append(module.register_forward_pre_hook(Hook(function), with_kwargs=True))
        self._hide(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)

    def after(self, module: nn.Module, function: Callable[..., None], always_call: bool = False) -> None:
        """Call ``function(module, args, kwargs, output)`` after it; with ``always_call`` after one that raised, too."""
        handle = module.register_forward_hook(Hook(function), with_kwargs=True, always_call=always_call)
        self._handles.append(handle)
        self._hide(module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called)

    def change(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Let what ``function(module, args, kwargs, output)`` returns take the place of the output; ``None`` leaves it."""
        self._handles.append(module.register_forward_hook(ChangingHook(function), with_kwargs=True))
        self._hide(module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called)

    def remove(self) -> None:
        """Take them away; the modules are as they were."""
        for handle in self._handles:
            handle.remove()
        for table, hooks in self._tables:
            # Two parts of the package may watch one module: the last that goes cleans up.
            if not any(isinstance(hook, Hook) for hook in hooks.values()):
                vars(table).pop(_REDUCE, None)
        self._handles, self._tables = [], []

    def _hide(self, hooks: Any, *flags: Any) -> None:
        # An attribute of the dict itself: handles that others hold refer to this very dict, so it cannot be exchanged for one of
        # another class, and a hook that is skipped when it is copied would still leave its key.
        for table in (hooks, *flags):
            vars(table).setdefault(_REDUCE, _WithoutOurs(table, hooks))
            self._tables.append((table, hooks))


class _WithoutOurs:
    """Reduces a dict of hooks, or of facts about them, to the entries of others."""

    def __init__(self, table: Any, hooks: Any) -> None:
        self.table, self.hooks = table, hooks

    def __call__(self, protocol: object) -> tuple[Any, ...]:
        others = [(key, value) for key, value in self.table.items() if not isinstance(self.hooks.get(key), Hook)]
        state = {name: value for name, value in vars(self.table).items() if name != _REDUCE}
        return type(self.table), (), state or None, None, iter(others)


def _nothing(*args: object, **kwargs: object) -> None:
    """What a copied hook does."""
