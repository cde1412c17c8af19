"""Models without weights, and single modules of them built once more with the numbers of their own constructors.

transformers draws most weights after a model is built, module by module. What it leaves alone keeps the number that the
module's constructor gave it: the activation of Apertus, tables of positions, weight-normalised convolutions. Those come
from building the model again with the modules in question on the CPU and the rest on the meta device, so that a model
larger than memory needs no more than those modules.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_rksp.inputs.heads import auto_class
from hf_rksp.machine import available_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: A module of a model: its class when it was built, and how many of that class were built before it.
Birth = tuple[type[nn.Module], int]


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, and what it takes to build it again.

    Attributes:
        model: without weights.
        births: the modules that a constructor made. Copies of modules (`copy.deepcopy`) are not among them.
    """

    model: PreTrainedModel
    config: Any
    dtype: torch.dtype
    trust_remote_code: bool
    births: dict[nn.Module, Birth]
    head: str = "none"

    def fits(self) -> bool:
        """Whether there is memory for all of it."""
        return available_memory() > sum(p.numel() * p.element_size() for p in self.model.parameters())

    def build(self, here: Collection[nn.Module] | None, away: Collection[nn.Module] = ()) -> nn.Module:
        """The model again, with the modules ``here`` on the CPU as their constructors leave them; None: all of it.

        ``away`` stay on the meta device even inside those. Memory that no constructor writes holds NaN.
        """
        places = {self.births[m]: "meta" for m in away if m in self.births}
        places |= {self.births[m]: "cpu" for m in here or ()}
        with torch.device("cpu" if here is None else "meta"), _placing(places), _unwritten_is_nan(), _undrawn():
            return _from_config(copy.deepcopy(self.config), self.dtype, self.trust_remote_code, self.head)


def skeleton(config: Any, dtype: torch.dtype, trust_remote_code: bool = False, head: str = "none") -> Skeleton:
    """The model of ``config`` without weights, on the meta device; ``head`` as in `hf_rksp.inputs.heads`."""
    again = copy.deepcopy(config)  # a constructor may write into its own
    try:
        with torch.device("meta"), drawing("skeleton"), _noting() as births:
            model = _from_config(config, dtype, trust_remote_code, head)
    except (RuntimeError, TypeError, ValueError) as error:
        if "meta" not in str(error):
            raise
        with drawing("skeleton"), _noting() as births:  # a constructor that reads numbers, which need a real device
            model = _from_config(copy.deepcopy(again), dtype, trust_remote_code, head)
            model.to("meta")  # type: ignore[arg-type]  # transformers wraps it: mypy sees no bound method
    inside = set(model.modules())
    births = {module: birth for module, birth in births.items() if module in inside}
    return Skeleton(model, again, dtype, trust_remote_code, births, head)


def _from_config(config: Any, dtype: torch.dtype, trust_remote_code: bool, head: str = "none") -> PreTrainedModel:
    auto = auto_class(head)
    model: PreTrainedModel = auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model


@contextlib.contextmanager
def _noting() -> Iterator[dict[nn.Module, Birth]]:
    """Fills the mapping that it gives with every module that is built."""
    births: dict[nn.Module, Birth] = {}
    count: Counter[type] = Counter()
    own = nn.Module.__init__

    @functools.wraps(own)
    def noted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if self not in births:  # two parents of one class may both call it
            births[self] = type(self), count[type(self)]
            count[type(self)] += 1
        own(self, *args, **kwargs)

    with _exchanged(nn.Module, "__init__", noted):
        yield births


@contextlib.contextmanager
def _placing(places: dict[Birth, str]) -> Iterator[None]:
    """Runs the constructor of each module of ``places`` with its device as the default one."""
    count: Counter[type] = Counter()

    def placed(cls: type[nn.Module]) -> Any:
        own = cls.__init__

        @functools.wraps(own)
        def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            place = None
            if type(self) is cls:
                place = places.get((cls, count[cls]))
                count[cls] += 1
            with torch.device(place) if place else contextlib.nullcontext():
                own(self, *args, **kwargs)

        return init

    with contextlib.ExitStack() as stack:
        for cls in {cls for cls, _ in places}:
            stack.enter_context(_exchanged(cls, "__init__", placed(cls)))
        yield


@contextlib.contextmanager
def _exchanged(cls: type, name: str, method: Callable[..., None]) -> Iterator[None]:
    """While the context is open, ``cls`` has another method ``name``."""
    own = vars(cls).get(name)
    setattr(cls, name, method)
    try:
        yield
    finally:
        if own is None:  # it was inherited
            delattr(cls, name)
        else:
            setattr(cls, name, own)


@contextlib.contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    """Fills what `torch.empty` and its like give: NaN, the largest integer, True."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # an object in the place of its module, which has no types
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


@contextlib.contextmanager
def _undrawn() -> Iterator[None]:
    """Leaves out what transformers draws at the end of a constructor: that is done module by module."""
    from transformers import PreTrainedModel

    with _exchanged(PreTrainedModel, "initialize_weights", lambda self: None):
        yield


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
    """Every random generator that a module may use starts from ``name``, and goes on afterwards as if nothing had been."""
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
