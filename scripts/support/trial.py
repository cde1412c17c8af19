"""One model type at work: built, fed, profiled, trained; what came out is one row.

The stages go on from each other, and a row says how far it came:

    build    the class with a tiny configuration
    feed     an input that its own forward takes
    profile  `hf_rksp.profile_model`: the blocks' states are the model's own, the tokens counted are those that there are
    train    `--init` draws what transformers draws; five steps with KSS beside plain Trainer
"""

from __future__ import annotations

import re
import time
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from hf_rksp import RkspError, profile_model
from support import checks, inputs, models, tiny, training
from support.init_check import check_init

STAGES = ("build", "feed", "profile", "train")


def trial(model_type: str, last: str = "train", draws: bool = True) -> dict[str, Any]:
    """What came out of ``model_type``, up to the stage ``last``: its outcome, the reason, and what was seen.

    ``draws=False`` leaves out the look at the random weights of `--init`, which takes as long as all the rest.
    """
    row: dict[str, Any] = {"type": model_type, "stage": last}
    started = time.perf_counter()
    try:
        row |= _outcome(row, model_type, last, draws)
    except _Stop as stop:
        row |= {"outcome": stop.outcome, "reason": stop.reason}
    return row | {"seconds": round(time.perf_counter() - started, 2)}


class _Stop(Exception):
    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


def _outcome(row: dict[str, Any], model_type: str, last: str, draws: bool) -> dict[str, Any]:
    model, config = _built(row, model_type)
    if last == "build":
        return {"outcome": "built"}
    feed = _fed(row, model, model_type)
    if last == "feed":
        return {"outcome": "fed"}
    refused, notes = _profiled(row, model, feed)
    if last == "profile":
        return _named(refused, notes, None)
    if draws:
        notes += _drawn(row, model_type, config)
    trained = training.compare(model_type, type(model), config, inputs.to_train(model, feed, model_type))
    row["training"] = trained.seen
    if trained.fault:
        raise _Stop("fault", f"training: {trained.fault}")
    if trained.untrained and not refused:
        raise _Stop("not tried", trained.untrained)
    return _named(refused, notes + trained.notes, trained.refused)


def _drawn(row: dict[str, Any], model_type: str, config: Any) -> list[str]:
    """What there is to say of `rksp audit --init`, which builds what AutoModel gives."""
    if model_type not in modeling_auto.MODEL_MAPPING_NAMES or model_type in models.INNER or row["parameters"] > 5e6:
        row["init"] = "not checked"
        return []
    try:
        with torch.random.fork_rng():
            wrong = check_init(config)
    except Exception as error:  # not what AutoModel builds
        row["init"] = f"not checked: {training.short(error)}"
        return []
    refused = [problem for problem in wrong if problem.startswith("refused: ")]
    wrong = [problem for problem in wrong if problem not in refused and "transformers itself" not in problem]
    row["init"] = (refused + wrong)[:3] or "drawn in full"
    if wrong:
        raise _Stop("fault", f"--init: {wrong[0]}")
    return [f"--init is {problem}" for problem in refused]


def _named(refused: str | None, notes: list[str], untrained: str | None) -> dict[str, Any]:
    if refused or untrained:
        return {"outcome": "refused", "reason": refused or f"in training: {untrained}"}
    if notes:
        return {"outcome": "works with a note", "reason": "; ".join(dict.fromkeys(notes))}
    return {"outcome": "works", "reason": ""}


def _built(row: dict[str, Any], model_type: str) -> tuple[nn.Module, Any]:
    try:
        kind = models.base_class(model_type)
    except ImportError as error:
        raise _Stop("not tried", _unbuilt(error)) from error
    if kind is None:
        row["whole"] = models.whole_of(model_type)
        raise _Stop("part", f"no model of its own: tried as a part of {row['whole']}")
    try:
        transformers.set_seed(0)
        config = models.inner_config(model_type, tiny.tiny_config(model_type))
        model = models.build(kind, config).eval()
    except Exception as error:
        raise _Stop("not tried", _unbuilt(error)) from error
    row["class"], row["parameters"] = kind.__name__, sum(p.numel() for p in model.parameters())
    return model, config


def _unbuilt(error: Exception) -> str:
    package = re.search(r"requires the (\w+) library|No module named '(\w+)'", str(error))
    if isinstance(error, ImportError) and package:
        return f"it needs the package {package[1] or package[2]}, which is not installed here"
    return f"not built: {training.short(error)}"


def _fed(row: dict[str, Any], model: nn.Module, model_type: str) -> inputs.Feed:
    reason = models.NOT_CALLED.get(model_type) or models.without_forward(type(model))
    if reason:
        raise _Stop("not tried", reason)
    try:
        feed = inputs.feed(model, model_type=model_type)
    except inputs.NotFed as error:
        raise _Stop("not tried", f"no input found: {training.short(error)}") from error
    row["input"] = {name: list(getattr(value, "shape", ())) for name, value in feed.batches[0].items()}
    row["way"] = feed.kind
    return feed


def _profiled(row: dict[str, Any], model: nn.Module, feed: inputs.Feed) -> tuple[str | None, list[str]]:
    """The sentence with which the product refuses, or ``None``; and what it says beside."""
    with training.said() as words:
        try:
            profile = profile_model(model, feed.batches, rank=8, groups=4, progress=False)
        except RkspError as error:
            return f"{type(error).__name__}: {error}", []
        except Exception as error:
            raise _Stop("fault", f"profile: {training.short(error, where=True)}") from error
    row["stacks"] = [f"{stack['path']} {stack['blocks']}" for stack in profile.model["stacks"]]
    fault = checks.compare(row, model, feed, profile)
    if fault:
        raise _Stop("fault", fault)
    return None, words + list(profile.notes)
