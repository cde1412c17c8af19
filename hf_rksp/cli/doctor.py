"""``rksp doctor``: what became of a run, from its log and its checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import add_output_options, new_parser
from hf_rksp.cli.output import check_json_target, progress, say_note, table, write_json

if TYPE_CHECKING:
    from hf_rksp.doctor.checkpoint import Tensors
    from hf_rksp.doctor.diagnose import Diagnosis
    from hf_rksp.doctor.log import Log

#: Tensors of a checkpoint that are named.
_NAMED = 3


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
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the log says, then what the checkpoints hold, then what to try."""
    from hf_rksp.doctor.log import read_run

    check_json_target(args.json)
    step, silent = progress(args.quiet), args.json == "-"
    log, folders = read_run(Path(args.path))
    for note in log.notes:
        say_note(note)
    if not silent:
        print("\n".join(_logged(log)), flush=True)  # before torch is loaded: a reader waits for the first words
    if folders:
        step(f"reading {len(folders)} checkpoint{'s' if len(folders) > 1 else ''}")
    from hf_rksp.doctor.diagnose import diagnose

    found = diagnose(args.path, step)
    if args.json:
        write_json(found.to_dict(), args.json)
    if not silent:
        print("\n".join(_looked(found)))
    return exit_codes.OK


def _logged(log: Log) -> list[str]:
    if log.run is None:
        return ["No log was found."]
    planned = f" of {log.run.planned:,}" if log.run.planned else ""
    lines = [f"{log.run.source}: {log.run.step:,}{planned} steps"]
    if not log.signs:
        return [*lines, "The log has no sign of a failure."]
    lines += ["", "Signs, the first one first:"]
    lines += [f"  {'-' if sign.step is None else f'step {sign.step:,}':<14}{sign.text}" for sign in log.signs]
    return lines


def _looked(found: Diagnosis) -> list[str]:
    lines = []
    if found.checkpoints:
        rows = [
            [
                one.path.name, one.weights.kind, one.moments.kind,
                f"{one.weights.largest:.3g}" if one.weights.number else "–", found.verdict(one),
            ]
            for one in found.checkpoints
        ]  # fmt: skip
        lines += ["", table(["checkpoint", "weights", "moments", "largest weight", "verdict"], rows)]
        unsound = [one for one in found.checkpoints if not one.sound or one.moments.note]
        for one in unsound[:1]:  # of a run that was lost, all later ones look alike
            for part, tensors in (("weights", one.weights), ("moments", one.moments)):
                lines += [f"  {one.path.name}, {part}: {text}" for text in _wrong(tensors)]
        lines += ["", f"Last healthy checkpoint: {found.healthy.path if found.healthy else 'none'}"]
    if found.advice:
        lines += ["", "What to try:", *(f"  {place}. {text}" for place, text in enumerate(found.advice, 1))]
    return lines


def _wrong(tensors: Tensors) -> list[str]:
    if len(tensors.broken) > _NAMED:
        names = ", ".join(one.name for one in tensors.broken[:_NAMED])
        lines = [f"{len(tensors.broken):,} of {tensors.number:,} tensors are not finite: {names}, ..."]
    else:
        lines = [f"{one.name} has {one.bad:,} of {one.total:,} numbers that are not finite" for one in tensors.broken]
    return lines + ([tensors.note] if tensors.note else [])
