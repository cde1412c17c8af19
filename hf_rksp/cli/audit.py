"""``rksp audit``: profile a model and write its report."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import (
    add_model_options,
    add_output_options,
    add_text_options,
    add_untrained,
    check_untrained,
    formats,
    model_source,
    new_parser,
    text_options,
)
from hf_rksp.cli.output import check_json_target, hush_libraries, number, progress, say_note, table, write_json

if TYPE_CHECKING:
    from hf_rksp.audit import Audit


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "audit",
        "profile a model and write its report",
        "Profile every residual block of a model with one forward pass over real text, and write report.json, report.md and "
        "report.html. With --json but without --out, no report folder is written.",
        "rksp audit --init gpt2 --seed 42 --out gpt2_report",
    )
    add_model_options(parser)
    add_text_options(parser)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--images",
        metavar="SOURCE",
        help="images instead of text, for a vision model: parquet file, folder, or a dataset on the Hub (uoft-cs/cifar10); "
        "--tokens counts patches",
    )
    group.add_argument("--image-split", default="test", metavar="SPLIT", help="split of the dataset (default: test)")
    group = parser.add_argument_group("analysis and output")
    add_untrained(group)
    group.add_argument(
        "--rank",
        default="auto",
        metavar="R",
        help="full, or the number of directions that the states are projected on (default: auto, as many as the tokens allow)",
    )
    group.add_argument(
        "--groups",
        type=int,
        default=8,
        help="groups of sequences for the jackknife; 0: no standard errors, and much faster (default: 8)",
    )
    group.add_argument(
        "--moment-memory",
        type=float,
        metavar="GIB",
        help="memory limit for the accumulated statistics; if exceeded, the layers are processed in several forward passes "
        "(default: half the size of the weights, at least 0.5)",
    )
    group.add_argument(
        "--stream",
        action="store_true",
        help="keep one residual block in memory at a time, for a model larger than memory",
    )
    group.add_argument(
        "--resume",
        metavar="FOLDER",
        help="with --stream: save progress in FOLDER after each block; run the same command again to continue",
    )
    group.add_argument("--out", metavar="FOLDER", help="folder of the report (default: rksp_MODEL)")
    group.add_argument(
        "--formats", default="json,md,html", metavar="LIST", help="which of json,md,html to write (default: all)"
    )
    group.add_argument("--push-to-hub", metavar="REPO", help="upload the report to this dataset repository on the Hub")
    group.add_argument("--private", action="store_true", help="make that repository private if it is new")
    add_output_options(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Profile, write, print a short table."""
    from hf_rksp.inputs import ImageSource

    source, options = replace(model_source(args), stream=args.stream), text_options(args)
    if args.images:
        options = replace(options, images=ImageSource(args.images, args.image_split))
    rank = args.rank if args.rank in ("auto", "full") else _whole(args.rank)
    wanted = formats(args)
    folder = Path(args.out or f"rksp_{re.sub(r'[^A-Za-z0-9._-]+', '_', source.name)}")
    writes = bool(args.out) or args.json is None or bool(args.push_to_hub)

    from hf_rksp.errors import InputError
    from hf_rksp.files import check_writable
    from hf_rksp.json_data import dumps
    from hf_rksp.profile.model import check_options
    from hf_rksp.profile.resume import discard
    from hf_rksp.report import audit_to_dict, write_report
    from hf_rksp.report.profile.hub import check_access, push_report

    if args.resume and not args.stream:
        raise InputError(f"resume={args.resume!r} (--resume) saves progress after each block: add --stream")
    check_untrained(args)
    check_options(rank, args.groups, _bytes(args.moment_memory))
    check_json_target(args.json)
    state = _join_processes(source.device)
    leads = state is None or state.is_main_process
    made = writes and leads and not folder.exists()
    if writes and leads:
        check_writable(folder)
    try:
        if args.push_to_hub:
            check_access()
        data = audit_to_dict(result := _audit(args, source, options, rank, state))
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # this command made it, and it is empty
        raise
    finally:
        if state is not None:
            state.destroy_process_group()  # its threads would abort a process that ends before them
    if not leads:
        return exit_codes.OK
    paths = write_report(data, folder, wanted) if writes else {}
    if args.json:
        write_json(dumps(data), args.json)
    if args.resume:
        discard(args.resume)
    if args.json != "-":
        print(summary(result))
        if paths:
            print(f"wrote {folder}: {', '.join(path.name for path in paths.values())}")
    if args.push_to_hub:
        url = push_report(folder, data, args.push_to_hub, private=args.private, formats=wanted)
        if args.json != "-":
            print(f"pushed to {url}")
    return exit_codes.OK


def _join_processes(device: str) -> Any:
    """accelerate's state if `accelerate launch` or torchrun started several processes, else ``None``."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu")


def _audit(args: argparse.Namespace, source: Any, options: Any, rank: Any, state: Any) -> Audit:
    from hf_rksp.audit import audit
    from hf_rksp.machine import return_freed_memory

    hush_libraries()
    if args.stream:
        return_freed_memory()
    leads = state is None or state.is_main_process
    if state is not None and source.device == "cuda":
        source = replace(source, device=str(state.device))  # each process has its own
    return audit(
        source,
        options,
        blocks=args.blocks,
        rank=rank,
        groups=args.groups,
        moment_memory=_bytes(args.moment_memory),
        resume=args.resume,
        shared=state is not None,
        untrained=args.untrained,
        command=shlex.join(["rksp", *args.argv]),
        step=progress(args.quiet or not leads),
        note=say_note if leads else lambda text: None,
        progress=not args.quiet,
    )


def summary(audit: Audit) -> str:
    """The layers, the verdict and the cost, for the terminal."""
    profile, verdict = audit.profile, audit.verdict
    rows = [
        [
            f"{layer.path}{' (identity)' if layer.uninformative else ''}",
            number(layer.near_unit_mass) + _plus_minus(layer.standard_errors.get("near_unit_mass")),
            number(layer.expansive_mass),
            number(layer.contractive_mass),
            number(layer.spectral_radius),
            number(layer.eigenvector_condition),
            number(layer.nonlinearity_ratio),
        ]
        for layer in profile.layers
    ]
    header = ["layer", "M~1", "M>1", "M<1", "radius", "kappa(V)", "eta_nl"]
    model, seconds = profile.model, profile.cost["seconds"]
    band = verdict.band.replace("_", " ")
    score = "" if verdict.score is None else f", mean near-unit mass {verdict.score:.3f}"
    if verdict.interval:
        score += f" (95% interval {verdict.interval[0]:.3f} to {verdict.interval[1]:.3f})"
    total = sum(seconds[name] for name in ("forward", "moments", "spectra")) or 1.0
    shares = ", ".join(
        f"{name} {seconds[name]:.1f} s ({seconds[name] / total:.0%})" for name in ("forward", "moments", "spectra")
    )
    lines = [
        f"{model['name']}: {model['class']}, {model['parameters'] / 1e6:.1f} M parameters, {model['source']}",
        "",
        table(header, rows),
        "",
        f"by the paper's thresholds: {band}{score}",
        *(f"  {reason}" for reason in verdict.reasons),
        "",
        f"cost: {shares}; peak memory {profile.cost['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]
    return "\n".join(lines)


def _plus_minus(error: float | None) -> str:
    return "" if error is None or error != error else f" ±{error:.2g}"


def _bytes(gib: float | None) -> float | None:
    return None if gib is None else gib * 2**30


def _whole(text: str) -> int:
    from hf_rksp.errors import InputError

    try:
        return int(text)
    except ValueError:
        raise InputError(f"rank={text!r}: pass auto, full or a whole number") from None
