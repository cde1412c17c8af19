"""Forecast the models of a manifest, one process per model, and store the answers, or why there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rksp.files import check_writable
from hf_rksp.json_data import rounded
from hf_rksp.risk.calibrated import shipped
from hf_rksp.risk.plan import Plan
from hf_rksp.zoo.manifest import Manifest, ZooModel
from hf_rksp.zoo.runner import RunnerOptions, plan, reason, watched, write_json
from hf_rksp.zoo.shelf import read_result, read_risk, risk_path

#: What a measurement takes at its peak per weight: GPT-2 124M took 5.8 GiB (scripts/bench/risk.txt).
BYTES_PER_WEIGHT = 48
#: Significant digits of what is stored.
DIGITS = 5
_VISION = "every run behind the model learns from text, and this model sees images"


@dataclass(frozen=True)
class Forecasts:
    """What `run_forecasts` did: how many models were measured, how many cannot be, and how many failed."""

    done: int
    unmeasured: int
    failed: int


def run_forecasts(
    manifest: Manifest,
    options: RunnerOptions,
    command: Sequence[str],
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> Forecasts:
    """Forecast the models of a manifest that have no forecast yet, or whose command has changed.

    Args:
        manifest: the models; each forecast belongs to the first seed.
        options: as for audits; ``memory_cap_gib`` 0 is the memory of this machine.
        command: the command that forecasts one model; its options and ``--json FILE`` are added.
        device: where the models are measured.
        say: called with each line of progress.
    """
    check_writable(options.folder)
    models = list({job.model.id: job.model for job in plan(manifest, options) if job.state != "skipped"}.values())
    done = unmeasured = failed = 0
    for number, model in enumerate(models, 1):
        stored = read_risk(options.folder, model)
        if stored and stored["command"] == model.risk_command() and not options.again:
            continue
        say(f"[{number}/{len(models)}] {model.title}: {model.risk_command()}")
        started = time.monotonic()
        if why := why_not(model, options):
            unmeasured += 1
            _store(options.folder, model, {"status": "not measured", "reasons": [why]})
            say(f"    not measured: {why}")
            continue
        data, problem = _forecast(model, options, command, device)
        if data is None:
            failed += 1
            say(f"    failed: {problem}")
            continue
        done += 1
        _store(options.folder, model, data)
        say(f"    {data['status']}, done in {time.monotonic() - started:.0f} s")
    return Forecasts(done, unmeasured, failed)


def why_not(model: ZooModel, options: RunnerOptions) -> str | None:
    """Why a model is not measured at all; ``None`` if it is."""
    if any(part.split("=")[0] == "--images" for part in model.arguments):
        return _VISION
    audit = read_result(options.folder, model, model.seeds[0])
    facts = audit["profile"]["model"] if audit else {}
    if refusals := shipped("initialised").refusals(Plan(), facts.get("model_type")):
        return refusals[0]  # without its weights, which may be large or far away
    weights = facts.get("parameters")
    needed, there = (weights or 0) * BYTES_PER_WEIGHT / 2**30, options.memory_cap_gib or _memory() / 2**30
    if not weights or needed <= there:
        return None
    return (
        f"gradients and steps take about {needed:,.0f} GiB for the {weights / 1e9:.1f} billion weights of this model, and the "
        f"machine had {there:,.0f} GiB; the audit needs forward passes alone"
    )


def _memory() -> float:
    import psutil

    return float(psutil.virtual_memory().total)


def _forecast(
    model: ZooModel, options: RunnerOptions, command: Sequence[str], device: str
) -> tuple[dict[str, Any] | None, str]:
    """The JSON of one forecast, or why it failed."""
    result = options.work / f"{model.id}-risk.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    line = [*command, *model.risk_arguments(), "--device", device, "--json", str(result)]
    code, tail, capped = watched([*line, *(["--quiet"] if options.quiet else [])], options.memory_cap_gib)
    if code or not result.is_file():
        return None, reason(code, tail, capped, options.memory_cap_gib)
    data = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return data | {"device": device}, ""


def _store(folder: Path, model: ZooModel, data: dict[str, Any]) -> None:
    short = {name: _short(value) for name, value in data.items()}
    write_json(risk_path(folder, model), {"command": model.risk_command()} | short)


def _short(value: Any) -> Any:
    """Floats with `DIGITS` digits, at any depth."""
    if isinstance(value, float):
        return rounded(value, DIGITS)
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value
