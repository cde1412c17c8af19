"""Model and text -> profile and verdict: the one way that the command line, the zoo, a notebook and a Trainer go.

source -> inputs.prepare -> profile_model (facts) -> assess (judgement)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from hf_rksp.config import RiskConfig, SpectralConfig
from hf_rksp.errors import InputError
from hf_rksp.inputs.prepare import InputOptions, prepare
from hf_rksp.inputs.source import ModelSource
from hf_rksp.machine import describe_machine, now
from hf_rksp.profile.model import ModelProfile, check_options, profile_model
from hf_rksp.profile.share import split
from hf_rksp.risk.thresholds import Verdict, assess


@dataclass(frozen=True)
class Audit:
    """What was measured, and what follows from it.

    Attributes:
        profile: facts: the spectrum of every layer, and all that the numbers depend on.
        verdict: judgement: what the published thresholds say about these facts.
    """

    profile: ModelProfile
    verdict: Verdict


def audit(
    model: str | ModelSource | nn.Module,
    data: InputOptions | Iterable[Mapping[str, Any] | Tensor] | None = None,
    *,
    blocks: str | Sequence[str] | None = None,
    rank: int | Literal["auto", "full"] = "auto",
    groups: int = 8,
    config: SpectralConfig | None = None,
    risk_config: RiskConfig | None = None,
    moment_memory: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    shared: bool = False,
    untrained: bool = False,
    command: str | None = None,
    step: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> Audit:
    """Profile a model and judge the profile.

    Args:
        model: a Hub id or folder, a `ModelSource`, or a module in memory.
        data: which text or images, as `InputOptions`; the built-in text without it. For a module in memory: the batches that
            it is called with.
        blocks, rank, groups, config, moment_memory, resume, shared, progress: as for `profile_model`. With ``shared`` every
            process calls this with the same arguments, and takes its own share of the batches.
        risk_config: thresholds of the verdict.
        untrained: the weights were saved before the first training step: they get the verdict for random weights.
        command: recorded in the profile as the command that makes it.
        step: is called with a line before each part of the work.
        note: is called with each sentence about the inputs that a reader of the profile has to know, before the profile begins.

    Raises:
        InputError: an argument does not fit, or batches are missing for a module in memory. ModelLoadError: the model cannot be
            loaded. And what `profile_model` raises.
    """
    check_options(rank, groups, moment_memory)
    options: dict[str, Any] = {
        "blocks": blocks,
        "rank": rank,
        "groups": groups,
        "config": config,
        "moment_memory": moment_memory,
        "shared": shared,
        "progress": progress,
    }
    recorded = {"date": now(), "machine": describe_machine()} | ({"command": command} if command else {})
    if isinstance(model, nn.Module):
        if data is None or isinstance(data, InputOptions):
            raise InputError(
                f"data={data!r}: a module in memory needs the batches that it is called with; pass a list of them, or pass "
                "the model as a Hub id or folder"
            )
        if resume is not None:
            raise InputError(
                f"resume={str(resume)!r}: a module in memory cannot be streamed; pass a ModelSource(stream=True)"
            )
        facts = {"declared": "untrained"} if untrained else None
        profile = profile_model(
            model,
            data,
            source="initialised" if untrained else None,
            model_info=facts,
            setup_info=recorded,
            **options,
        )
        return Audit(profile, assess(profile, risk_config))
    source = ModelSource(model=model) if isinstance(model, str) else model
    if not (data is None or isinstance(data, InputOptions)):
        raise InputError(
            f"data={type(data).__name__}: a model that is loaded here reads text or images; pass InputOptions"
        )
    inputs = data or InputOptions()
    prepared = prepare(source, replace(inputs, substitute=inputs.substitute or untrained), step)
    for sentence in prepared.notes:
        note(sentence)
    step("profiling")
    batches = prepared.batches(inputs.batch_size)
    info = prepared.loaded.info | ({"source": "initialised", "declared": "--untrained"} if untrained else {})
    profile = profile_model(
        prepared.model,
        split(batches) if shared else batches,
        weights=prepared.loaded.weights,
        resume=resume,
        source=info["source"],
        model_info=info,
        setup_info=prepared.setup | recorded,
        notes=prepared.notes,
        **options,
    )
    return Audit(profile, assess(profile, risk_config))
