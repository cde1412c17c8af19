"""The first batches of a run, read before it begins, and a trainer that is as it was afterwards."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import Trainer

from hf_rksp.capture.virtual_step import restored
from hf_rksp.errors import InputError, first_line
from hf_rksp.ranks import current_ranks, from_main


@contextlib.contextmanager
def as_before(trainer: Trainer) -> Iterator[None]:
    """What reading batches and computing losses changes is put back afterwards.

    That is the random state, buffers, every attribute of the trainer that holds plain data, and the generators that the collator
    and the dataset hold. What they count elsewhere stays counted.
    """
    model: Any = trainer.model
    steps, loaders, collator = trainer.state.max_steps, list(trainer.accelerator._dataloaders), trainer.data_collator
    with contextlib.suppress(Exception):  # a collator may hold a generator of its own
        trainer.data_collator = copy.deepcopy(collator)
    rewind = [back for value in getattr(trainer.train_dataset, "__dict__", {}).values() for back in _rewinding(value)]
    try:
        with restored(model), same_numbers(trainer):
            yield
    finally:
        trainer.data_collator = collator
        for back in rewind:
            back()
        trainer.accelerator._dataloaders[:] = loaders
        trainer.state.max_steps = steps


@contextlib.contextmanager
def same_numbers(trainer: Trainer) -> Iterator[None]:
    """What a loss counts and logs in attributes of ``trainer`` is put back afterwards: numbers, texts, tensors, containers of them.

    Containers and tensors stay the same objects, because others may hold them too. New attributes are gone again.
    """
    own = vars(trainer)
    names = set(own)
    kept = {name: (value, _copied(value)) for name, value in own.items() if _is_plain(value)}
    try:
        yield
    finally:
        for name in set(own) - names:
            del own[name]
        for name, (value, before) in kept.items():
            own[name] = _put_back(value, before)


def _copied(value: Any) -> Any:
    """A copy of plain data; of a tensor without its graph."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_copied(one) for one in value]
    return value


def _put_back(value: Any, before: Any) -> Any:
    """``value`` with the content ``before``; its containers are the same objects."""
    if isinstance(value, Tensor):
        if value.requires_grad:  # of a graph: it was not written to
            return value
        with torch.no_grad():
            if value.shape == before.shape and not torch.equal(value, before):
                value.copy_(before)
        return value
    if isinstance(value, MutableMapping):
        for key in list(value):
            if key not in before:
                del value[key]
        for key, one in before.items():
            value[key] = _restored(value.get(key), one)
        return value
    if isinstance(value, list):
        value[:] = [_restored(value[at] if at < len(value) else None, one) for at, one in enumerate(before)]
        return value
    if isinstance(value, set):
        value.clear()
        value.update(before)
        return value
    return value if isinstance(value, (tuple, Mapping)) else before


def _restored(now: Any, before: Any) -> Any:
    """An entry of a container, the same object if it still stands there."""
    return (
        _put_back(now, before)
        if isinstance(now, (MutableMapping, list, set, Tensor)) and type(before) in (dict, list, Tensor)
        else before
    )


def _is_plain(value: object) -> bool:
    """Whether it is numbers, texts and tensors, or containers of such: what a subclass counts and logs."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple, set)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def _rewinding(value: object) -> Iterator[Callable[[], object]]:
    """How a generator of random numbers is put back, if ``value`` is one."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: value.set_state(state)
    elif isinstance(value, numpy.random.Generator):
        bits, before = value.bit_generator, copy.deepcopy(value.bit_generator.state)
        yield lambda: setattr(bits, "state", before)
    elif isinstance(value, random.Random):
        own = value.getstate()
        yield lambda: value.setstate(own)


def first_batches(trainer: Trainer, count: int) -> tuple[list[dict[str, Any]], int]:
    """The first ``count`` batches of the main process, and the number of steps of the run.

    Raises:
        InputError: the data can be read only once, or makes no mapping; on every process if it is so on one.
    """
    batches: list[dict[str, Any]] = []
    problem, max_steps = "", 0
    dataset: Any = trainer.train_dataset
    once = isinstance(dataset, torch.utils.data.IterableDataset) and iter(dataset) is iter(dataset)
    if hasattr(dataset, "__next__") or once:
        problem = "train_dataset can be read only once; pass a dataset that can be read again"
    else:
        try:
            loader = trainer.get_train_dataloader()
            max_steps = _steps_of(trainer, loader)
            batches = list(itertools.islice(iter(loader), count))
        except Exception as error:
            problem = first_line(error)
        if not problem and len(batches) < 2:
            problem = f"the data makes {len(batches)} batches, and two are needed"
        elif not problem and not all(isinstance(batch, Mapping) for batch in batches):
            problem = f"a batch is a {type(batches[0]).__name__}, and mappings are needed"
    if problems := list(filter(None, current_ranks().gather(problem))):
        raise InputError(problems[0])
    return [_on_cpu(batch) for batch in from_main([_on_cpu(batch) for batch in batches])], max_steps


def _steps_of(trainer: Any, loader: Any) -> int:
    """The number of steps of the run, as Trainer will count it."""
    count, arguments = trainer.set_initial_training_values, [trainer.args, loader]
    if "total_train_batch_size" in inspect.signature(count).parameters:  # transformers before 5.3 wants it
        arguments.append(trainer.get_total_train_batch_size(trainer.args))
    return int(count(*arguments)[-1])


def _on_cpu(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()}
