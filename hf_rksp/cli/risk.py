"""``rksp risk``: will this run be lost at this learning rate, and what is the highest safe one?"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import (
    add_model_options,
    add_output_options,
    add_text_source,
    add_untrained,
    check_untrained,
    model_source,
    new_parser,
    text_options,
)
from hf_rksp.cli.output import check_json_target, hush_libraries, progress, say_note, write_json

if TYPE_CHECKING:
    from hf_rksp.forecast import Forecast
    from hf_rksp.risk.calibrated import Prediction

#: Steps of the curve in the JSON.
_POINTS = 60
#: Contributions that the short answer names.
_NAMED = 3


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "risk",
        "probability that a run is lost at a learning rate, before its first step",
        "Measure a model, its data and its optimizer before the first step, and say with which probability a run at --lr is lost, "
        "and which learning rate is safe. A run is lost if it explodes, or ends useless at a learning rate above the best one.",
        "rksp risk --init gpt2 --lr 3e-4",
    )
    add_model_options(parser)
    group = parser.add_argument_group("planned run")
    add_untrained(group)
    group.add_argument("--lr", type=float, metavar="LR", help="planned peak learning rate")
    group.add_argument(
        "--find-lr", action="store_true", help="only find the highest safe learning rate; --lr is not needed"
    )
    group.add_argument(
        "--optimizer",
        default="adamw_torch",
        metavar="NAME",
        help="optim of Trainer, or muon (default: adamw_torch); AdamW can be assessed; Muon too if the weights are random",
    )
    group.add_argument("--beta2", type=float, default=0.999, help="of Adam (default: 0.999)")
    group.add_argument("--weight-decay", type=float, default=0.0, help="default: 0")
    group.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="steps of linear warm-up (default: 0)")
    group.add_argument(
        "--lr-schedule", default="linear", metavar="NAME", help="lr_scheduler_type of Trainer (default: linear)"
    )
    group.add_argument("--steps", type=int, default=1000, help="optimizer steps (default: 1000)")
    group.add_argument("--clip", type=float, default=1.0, metavar="NORM", help="max_grad_norm; 0 for none (default: 1)")
    group.add_argument("--batch-size", type=int, default=8, help="sequences per device and pass (default: 8)")
    group.add_argument("--accumulation", type=int, default=1, help="passes per optimizer step (default: 1)")
    group.add_argument("--devices", type=int, default=1, help="processes (default: 1)")
    group.add_argument(
        "--compute-dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of autocast (default: float32); float32 can be assessed; bfloat16 too if the weights are random",
    )
    group.add_argument(
        "--objective",
        choices=("causal", "masked", "classification"),
        help="what is learnt (default: what the model's configuration suggests); random weights: only causal can be assessed",
    )
    group = parser.add_argument_group("measurement")
    add_text_source(group)
    group.add_argument(
        "--labels", metavar="COLUMN", help="column with the classes of the texts; the objective is then classification"
    )
    group.add_argument(
        "--measured",
        type=int,
        default=4,
        metavar="N",
        help="sequences in each of the eight measured batches (default: 4)",
    )
    group.add_argument(
        "--curvature",
        choices=("step", "full"),
        default="step",
        help="full: also the largest eigenvalue of the preconditioned Hessian (some 40 Hessian products)",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FILE", help="also write the answer as a page, such as risk.html")
    group.add_argument(
        "--fail-above",
        type=float,
        metavar="P",
        help=f"exit code {exit_codes.LIKELY_LOST} if P(lost) is above P, is not assessable, or has too wide an interval",
    )
    add_output_options(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, predict, print."""
    from hf_rksp.errors import InputError
    from hf_rksp.files import check_writable

    if args.lr is None and not args.find_lr:
        raise InputError("lr: pass the planned learning rate (--lr 3e-4), or --find-lr for the highest safe one")
    if args.lr is not None and not 0 < args.lr < float("inf"):
        raise InputError(f"lr={args.lr!r}: pass a finite learning rate above 0")
    if args.fail_above is not None and (args.lr is None or not 0 <= args.fail_above < 1):
        raise InputError(f"fail_above={args.fail_above!r}: pass a probability from 0 to below 1, together with --lr")
    check_untrained(args)
    plan = _plan(args)
    source = replace(model_source(args), head=args.objective or "none")
    if args.labels and args.objective not in (None, "classification"):
        raise InputError(f"labels={args.labels!r}: they are for --objective classification, and not {args.objective}")
    options = replace(text_options(args, batch_size=args.measured), labels=args.labels)
    check_json_target(args.json)
    if args.out:
        check_writable(Path(args.out).absolute().parent)

    from hf_rksp.forecast import forecast_source

    hush_libraries()
    found = forecast_source(
        source,
        options,
        plan,
        untrained=args.untrained,
        blocks=args.blocks,
        curvature=args.curvature == "full",
        step=progress(args.quiet),
        note=say_note,
        progress=not args.quiet,
    )
    data = as_json(found, args.lr)
    if args.json:
        write_json(data, args.json)
    if args.json != "-":
        print(answer(found, args.lr))
    if args.out:
        from hf_rksp.report.risk.page import write_risk

        write_risk(data, args.out)
        if args.json != "-":
            print(f"wrote {args.out}")
    fails = args.fail_above is not None and not _known_to_be_below(found.prediction, args.lr, args.fail_above)
    return exit_codes.LIKELY_LOST if fails else exit_codes.OK


def _known_to_be_below(prediction: Prediction, lr: float, limit: float) -> bool:
    """Whether P(lost) is ``limit`` at most."""
    p = prediction.p_lost(lr)
    return p is not None and p <= limit and prediction.decides(lr)


def _plan(args: argparse.Namespace) -> Any:
    from hf_rksp.errors import InputError
    from hf_rksp.risk.plan import Plan

    for name in ("batch_size", "accumulation", "devices", "measured"):
        if getattr(args, name) < 1:
            raise InputError(f"{name}={getattr(args, name)}: pass a whole number of at least 1")
    return Plan(
        optimizer=args.optimizer,
        beta2=args.beta2,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        schedule=args.lr_schedule,
        steps=args.steps,
        clip=args.clip or None,
        tokens=args.batch_size * args.accumulation * args.devices * args.seq_len,
        dtype=args.compute_dtype,
    )


def as_json(found: Forecast, lr: float | None) -> dict[str, Any]:
    """Plain JSON types: the answer, what decided it, what was measured."""
    from hf_rksp.risk.calibrated import shipped

    prediction = found.prediction
    return {
        "lr": lr,
        "p_lost": None if lr is None else prediction.p_lost(lr),
        "p_lost_interval": None if lr is None else prediction.interval(lr),
        "decides": lr is not None and prediction.decides(lr),
        "lr_max": prediction.rate_at(),
        "names_rate": prediction.names_rate,
        "lr_half": prediction.threshold,
        "curve": _curve(prediction),
        "status": prediction.status,
        "reasons": list(prediction.reasons),
        "contributions": [
            {"feature": one.key, "title": one.title, "value": one.value, "factor": one.factor}
            for one in prediction.contributions
        ],
        "behind": list(shipped(found.plan.start).description),
        "features": dict(found.numbers),
        "curvature": asdict(found.start.curvature) if found.start and found.start.curvature else None,
        "plan": found.plan.as_dict(),
        "model": dict(found.model),
        "notes": list(found.notes),
        "seconds": found.start.seconds if found.start else 0.0,
    }


def _curve(prediction: Prediction) -> list[list[float]]:
    """Learning rate, probability and the ends of its interval, where the probability goes from 1% to 99%."""
    low, high = prediction.rate_at(0.01), prediction.rate_at(0.99)
    if low is None or high is None:
        return []
    rates = [low * (high / low) ** (place / _POINTS) for place in range(_POINTS + 1)]
    return [[rate, prediction.p_lost(rate) or 0.0, *(prediction.interval(rate) or (0.0, 1.0))] for rate in rates]


def answer(found: Forecast, lr: float | None) -> str:
    """The short answer."""
    from hf_rksp.risk.calibrated import NO_ANSWER, NO_RATE, effect, percent, shipped

    prediction, plan = found.prediction, found.plan
    title = found.model.get("name") or found.model.get("class")
    lines = [
        f"{title}: {plan.objective}, {plan.start} weights, {plan.optimizer}, {plan.steps} steps, {plan.warmup} of warm-up"
    ]
    if prediction.threshold is None:
        lines.append("P(lost): not assessable")
        return "\n".join(lines + [f"  {reason[0].upper()}{reason[1:]}." for reason in prediction.reasons])
    if lr is not None:
        p, (low, high) = prediction.p_lost(lr) or 0.0, prediction.interval(lr) or (0.0, 1.0)
        lines.append(f"P(lost) at learning rate {lr:g}: {percent(p)} (90% interval {percent(low)} to {percent(high)})")
        if not prediction.decides(lr):
            lines.append(f"  {NO_ANSWER}")
    if prediction.names_rate:
        lines.append(f"highest learning rate with P(lost) below 5%: {prediction.rate_at():.2g}")
        lines.append(f"learning rate with P(lost) = 50%: {prediction.threshold:.2g}")
    else:
        lines.append(NO_RATE)
        lines.append(
            f"  By the fit alone P(lost) is 5% at {prediction.rate_at():.2g} and 50% at {prediction.threshold:.2g}."
        )
    lines.append("what decided it, compared with the mean of the runs behind the model:")
    lines += [f"  {one.title}: {effect(one.factor)}" for one in prediction.contributions[:_NAMED]]
    lines.append(f"how far to trust it: {' '.join(shipped(plan.start).description[-2:])}")
    if prediction.status == "extrapolated":
        lines.append("extrapolated, outside the runs behind the model:")
        lines += [f"  {reason}" for reason in prediction.reasons]
    return "\n".join(lines)
