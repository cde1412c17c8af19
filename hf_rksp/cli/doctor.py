"""``rksp doctor``: what became of a run, from its log and its checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import add_output_options, new_parser
from hf_rksp.cli.output import check_json_target, progress, say_note, table, write_json
from hf_rksp.report.kit.text import line

if TYPE_CHECKING:
    from hf_rksp.doctor.checkpoint import Checkpoint, Tensors
    from hf_rksp.doctor.diagnose import Diagnosis
    from hf_rksp.doctor.log import Log

#: Tensors of a checkpoint that are named.
_NAMED = 3
#: Longest line with text from a file in it, whose control characters are left out.
_LONG = 1_000


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "doctor",
        "find out what became of a run, and which checkpoint is healthy",
        "Read the log (trainer_state.json), the checkpoints and, if there is one, the history of a run: the step of the first "
        "sign, weights and moments that are not finite, the last healthy checkpoint, and what to try. It works on any run of "
        "Trainer. Nothing is written, and no code in a file is run.",
        "rksp doctor out/lost_run",
    )
    parser.add_argument(
        "path", metavar="CHECKPOINT_OR_RUN", help="output_dir of a run, one of its checkpoints, or a trainer_state.json"
    )
    parser.add_argument(
        "--fail-if-broken", action="store_true", help="exit code 5 if the run is broken or a checkpoint is damaged"
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the log says, then what the checkpoints hold, then what to try."""
    from hf_rksp.doctor.log import read_log

    check_json_target(args.json)
    step, silent = progress(args.quiet), args.json == "-"
    log = read_log(Path(args.path))
    for note in log.notes:
        say_note(line(note, _LONG))
    if not silent:
        print("\n".join(_logged(log)), flush=True)  # before torch is loaded: a reader waits for the first words
    if log.checkpoints:
        step(f"reading {len(log.checkpoints)} checkpoint{'s' if len(log.checkpoints) > 1 else ''}")
    from hf_rksp.doctor.diagnose import diagnose

    found = diagnose(args.path, log, lambda text: step(line(text, _LONG)))
    if args.json:
        write_json(found.to_dict(), args.json)
    if not silent:
        print("\n".join(_looked(found)))
    return exit_codes.BROKEN if args.fail_if_broken and found.broken else exit_codes.OK


def _logged(log: Log) -> list[str]:
    if log.run is None:
        return ["No log was found."]
    planned = f" of {log.run.planned:,}" if log.run.planned else ""
    lines = [f"{line(str(log.run.source), _LONG)}: {log.run.step:,}{planned} steps"]
    if not log.run.series:
        lines.append("The run has logged nothing, so its loss is not known.")
    if not log.signs:
        return [*lines, "The log has no sign of a failure."] if log.run.series else lines
    lines += ["", "Signs, the first one first:" if any(sign.breaks for sign in log.signs) else "What happened:"]
    return lines + [f"  {'-' if sign.step is None else f'step {sign.step:,}':<14}{sign.text}" for sign in log.signs]


def _looked(found: Diagnosis) -> list[str]:
    lines = []
    if found.checkpoints:
        rows = [
            [
                line(one.path.name, _LONG), one.weights.kind, one.moments.kind,
                f"{one.weights.largest:.3g}" if one.weights.number else "–", found.verdict(one),
            ]
            for one in found.checkpoints
        ]  # fmt: skip
        lines += ["", table(["checkpoint", "weights", "moments", "largest weight", "verdict"], rows)]
        # Of a run that was lost, all later checkpoints look alike.
        damaged = [one for one in found.checkpoints if one.damaged] or [one for one in found.checkpoints if _notes(one)]
        for one in damaged[:1]:
            for part, tensors in (("weights", one.weights), ("moments", one.moments)):
                lines += [f"  {line(f'{one.path.name}, {part}: {text}', _LONG)}" for text in _wrong(tensors)]
        healthy = line(str(found.healthy.path), _LONG) if found.healthy else "none"
        lines += ["", f"Last healthy checkpoint: {healthy}"]
    if found.advice:
        lines += [
            "",
            "What to try:",
            *(f"  {place}. {line(text, _LONG)}" for place, text in enumerate(found.advice, 1)),
        ]
    return lines


def _notes(one: Checkpoint) -> str:
    return one.weights.note or one.moments.note


def _wrong(tensors: Tensors) -> list[str]:
    if len(tensors.broken) > _NAMED:
        names = ", ".join(one.name for one in tensors.broken[:_NAMED])
        lines = [f"{len(tensors.broken):,} of {tensors.number:,} tensors are not finite: {names}, ..."]
    else:
        lines = [f"{one.name} has {one.bad:,} of {one.total:,} numbers that are not finite" for one in tensors.broken]
    return lines + ([tensors.note] if tensors.note else [])
