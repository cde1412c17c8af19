"""Model, data and plan -> the probability that the run is lost, and the highest safe learning rate, before the first step.

source -> inputs.prepare -> measure_start (facts) -> RiskModel.predict (judgement)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_rksp.capture.contents import IGNORED
from hf_rksp.errors import InputError
from hf_rksp.inputs.checkpoints import local_folder
from hf_rksp.inputs.configs import load_config
from hf_rksp.inputs.heads import head_of
from hf_rksp.inputs.prepare import InputOptions, Prepared, prepare
from hf_rksp.inputs.source import ModelSource
from hf_rksp.profile.directions import OptimizerLike
from hf_rksp.profile.gradients import Loss
from hf_rksp.profile.start import StartMeasurement, has_lora, measure_start
from hf_rksp.risk.calibrated import Prediction, RiskModel, shipped
from hf_rksp.risk.features import Numbers, numbers_of
from hf_rksp.risk.plan import OPTIMIZERS, Plan

#: Batches that a measurement takes: four pairs.
BATCHES = 8
#: Share of the tokens that masked language models are asked for (BERT).
_MASKED = 0.15


@dataclass(frozen=True)
class Forecast:
    """What will become of a run, as far as it can be told before the first step.

    Attributes:
        model: name, class and source of the model.
        plan: see `Plan`.
        start: what was measured; ``None`` if no measurement could lead to a prediction for this plan.
        numbers: the same in one flat mapping.
        prediction: see `Prediction`.
        notes: sentences that a reader of the numbers needs.
    """

    model: Mapping[str, Any]
    plan: Plan
    start: StartMeasurement | None
    numbers: Numbers
    prediction: Prediction
    notes: tuple[str, ...] = ()


def forecast(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    plan: Plan,
    *,
    loss: Loss | None = None,
    optimizer: OptimizerLike | None = None,
    blocks: str | Sequence[str] | None = None,
    risk_model: RiskModel | None = None,
    curvature: bool = False,
    shared: bool = False,
    progress: bool = True,
) -> Forecast:
    """Measure a model in memory and predict. The model is left unchanged, to the bit.

    Args:
        model: in float32, before an engine wraps it.
        batches: what ``loss`` takes; eight are right. The numbers are those of batches of this size.
        plan: how the run is planned.
        loss: ``(model, batch) -> tensor`` with one number; ``None`` for the loss of the model's own output.
        optimizer: the optimizer itself; ``None`` for a fresh one of the kind that the plan names.
        blocks: path(s) of the list(s) of residual blocks.
        risk_model: another one than the shipped one.
        curvature: also measure the largest eigenvalue of the preconditioned Hessian.
        shared: see `hf_rksp.profile.start.measure_start`.
        progress: show progress bars on stderr.

    Raises:
        What `hf_rksp.profile.start.measure_start` raises.
    """
    predictor = risk_model or shipped(plan.start)
    architecture = getattr(getattr(model, "config", None), "model_type", None)
    if predictor.refusals(plan, architecture):  # known without the minutes that a measurement takes
        return Forecast({"class": type(model).__name__}, plan, None, {}, predictor.predict({}, plan, architecture))
    direction: OptimizerLike = optimizer or ("muon" if OPTIMIZERS.get(plan.optimizer) == "muon" else "adam")
    pairs = max(min(4, len(batches) // 2), 1)
    start = measure_start(
        model,
        loss,
        batches,
        optimizer=direction,
        pairs=pairs,
        curvature=curvature,
        blocks=blocks,
        shared=shared,
        progress=progress,
    )
    numbers = numbers_of(start.profile, start.signals, start.step)
    numbers |= {"lora": float(has_lora(model)), "label_share": label_share(batches, plan.objective)}
    prediction = predictor.predict(numbers, plan, architecture)
    return Forecast(start.profile.model, plan, start, numbers, prediction, (*start.profile.notes, *start.step.notes))


def label_share(batches: Sequence[Mapping[str, Any]], objective: str) -> float | None:
    """Labels that are asked for per token that is no padding.

    ``None`` if the batches do not have ``labels`` and ``input_ids``.
    """
    asked = tokens = 0
    for batch in batches:
        labels, ids = batch.get("labels"), batch.get("input_ids")
        if not isinstance(labels, Tensor) or not isinstance(ids, Tensor):
            return None
        asked += int(((labels[:, 1:] if objective == "causal" and labels.ndim > 1 else labels) != IGNORED).sum())
        mask = batch.get("attention_mask")
        tokens += int(mask.sum()) if isinstance(mask, Tensor) and mask.ndim == 2 else ids.numel()
    return asked / max(tokens, 1)


def forecast_source(
    source: ModelSource,
    data: InputOptions,
    plan: Plan,
    *,
    untrained: bool = False,
    blocks: str | Sequence[str] | None = None,
    curvature: bool = False,
    step: Callable[[str], None] = lambda text: None,
    note: Callable[[str], None] = lambda text: None,
    progress: bool = True,
) -> Forecast:
    """Load a model with the head of its objective, read text, measure and predict.

    Args:
        source: which model; ``head`` "none" chooses the objective that its configuration suggests, and then ``plan`` gets it.
        data: which text; eight batches of ``data.batch_size`` sequences are read, whatever ``data.tokens`` says.
        plan: how the run is planned; ``start`` and ``dtype`` of the weights are those of ``source``.
        untrained: the checkpoint was saved before the first training step.
        blocks, curvature, progress: as for `forecast`.
        step: is called with a line before each part of the work.
        note: is called with each sentence about the inputs, before the measurement begins.

    Raises:
        InputError, ModelLoadError: what cannot be loaded; and what `forecast` raises.
    """
    config = _config_of(source)
    head: Any = (
        "classification" if data.labels else source.head if source.head != "none" else _suggested(source, config)
    )
    if head == "classification" and not data.labels:
        raise InputError("objective='classification' needs labelled data: pass --text TABLE --labels COLUMN")
    plan = replace(plan, objective=head, start="initialised" if source.init or untrained else "pretrained")
    architecture = getattr(config, "model_type", None)
    if shipped(plan.start).refusals(plan, architecture):  # known without the minutes that loading and measuring take
        info = {"name": source.name, "source": plan.start}
        return Forecast(info, plan, None, {}, shipped(plan.start).predict({}, plan, architecture))
    wanted = replace(data, tokens=BATCHES * data.batch_size * data.seq_len)
    prepared = prepare(
        replace(source, head=head, dtype="float32" if source.dtype == "auto" else source.dtype), wanted, step
    )
    for sentence in prepared.notes:
        note(sentence)
    step("measuring")
    if data.labels:  # texts are shorter than sequences that are cut
        cut: dict[str, Any] = prepared.sequences.info
        plan = replace(plan, tokens=max(round(plan.tokens / data.seq_len * cut["tokens"] / cut["sequences"]), 1))
    found = forecast(
        prepared.model, _labelled(prepared, head, data), plan, blocks=blocks, curvature=curvature, progress=progress
    )
    return replace(found, model={**found.model, **prepared.loaded.info}, notes=(*prepared.notes, *found.notes))


def _suggested(source: ModelSource, config: Any) -> Any:
    head = head_of(config)
    if head == "none":
        raise InputError(
            f"model={source.name!r} has no head for text (causal, masked or classification): pass the model and its batches to "
            "hf_rksp.forecast.forecast"
        )
    return head


def _config_of(source: ModelSource) -> Any:
    if source.init is not None:
        return load_config(source)
    from transformers import AutoConfig

    assert source.model is not None
    folder = local_folder(source.model)
    try:
        return AutoConfig.from_pretrained(folder or source.model, revision=source.revision)
    except Exception:  # what is wrong with it is said when it is loaded
        return None


def _labelled(prepared: Prepared, head: str, data: InputOptions) -> list[dict[str, Tensor]]:
    """Eight batches with the labels of the objective."""
    batches = prepared.batches(data.batch_size)[:BATCHES]
    if head == "classification":
        return batches
    if head == "causal":
        return [{**batch, "labels": batch["input_ids"]} for batch in batches]
    return [_masked(batch, prepared.mask_token, number) for number, batch in enumerate(batches)]


def _masked(batch: dict[str, Tensor], token: int | None, number: int) -> dict[str, Tensor]:
    if token is None:
        raise InputError(
            "objective='masked': the tokenizer has no mask token; pass --objective causal or another --tokenizer"
        )
    ids = batch["input_ids"]
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(number)) < _MASKED
    hidden[:, 0] |= ~hidden.any(1)  # each sequence is asked something
    return {**batch, "input_ids": ids.masked_fill(hidden, token), "labels": ids.masked_fill(~hidden, IGNORED)}
