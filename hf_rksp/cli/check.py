"""``rksp check``: check that padding, batch size and precision do not change the statistics."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import (
    add_model_options,
    add_output_options,
    add_text_options,
    model_source,
    new_parser,
    text_options,
)
from hf_rksp.cli.output import check_json_target, hush_libraries, number, progress, say_note, table, write_json


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "check",
        "check that padding, batch size and precision do not change the statistics",
        "Run the same sequences unpadded and padded on either side, in batches of 1 and of 8, in float32 and in bfloat16, and "
        "compare the second moments of every layer. The weights are read as float32.",
        "rksp check --init gpt2 --config-overrides n_layer=2",
    )
    add_model_options(parser)
    add_text_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 if all checks agree, 3 if one differs."""
    from hf_rksp.check import check_model
    from hf_rksp.errors import InputError
    from hf_rksp.inputs import Sequences, prepare

    check_json_target(args.json)
    if args.dtype not in ("auto", "float32"):
        raise InputError(
            f"dtype={args.dtype!r}: `rksp check` compares float32 with bfloat16 by itself; leave --dtype out"
        )
    args.dtype = "float32"
    source, options = model_source(args), text_options(args)
    hush_libraries()
    step = progress(args.quiet)
    prepared = prepare(source, options, step)
    for note in prepared.notes:
        say_note(note)
    step("running the same sequences in different ways")
    assert isinstance(prepared.sequences, Sequences)  # its options name no images
    results = check_model(prepared.model, prepared.sequences.ids, args.blocks)
    agrees = all(result.agrees for result in results)
    if args.json:
        rows = [dataclasses.asdict(result) for result in results]
        write_json({"model": prepared.loaded.info["name"], "agrees": agrees, "checks": rows}, args.json)
    if args.json != "-":
        print(_render(prepared.loaded.info["name"], results, agrees))
    return exit_codes.OK if agrees else exit_codes.DIFFERS


def _render(name: str, results: Any, agrees: bool) -> str:
    rows = [
        [
            result.check.replace("_", " "),
            number(result.moment_difference),
            f"{result.moment_tolerance:g}",
            number(result.mass_difference),
            f"{result.mass_tolerance:g}",
            result.layer,
            "same" if result.agrees else "DIFFERS",
        ]
        for result in results
    ]
    header = ["check", "moments", "tolerance", "near-unit mass", "tolerance", "worst layer", "result"]
    ending = (
        "gives the same statistics for every padding, batch size and precision"
        if agrees
        else "does NOT give the same statistics: see the rows marked DIFFERS"
    )
    positions = "".join(f"{line}\n" for line in _positions(results))
    legend = "(moments: largest relative difference; near-unit mass: largest absolute difference)"
    return f"{table(header, rows)}\n\n{name} {ending}\n{positions}{legend}"


def _positions(results: Any) -> list[str]:
    """What padding on the left does to the positions, and whether ``position_ids`` repair it."""
    agrees = {result.check: result.agrees for result in results}
    if agrees.get("right_vs_left_padding", True):
        return []
    repaired = agrees.get("right_vs_left_with_position_ids")
    if repaired:
        return [
            "With padding on the left, this model counts positions from the padding. Pass position_ids counted from the "
            "attention mask (that row agrees), or pad on the right."
        ]
    return [
        "With padding on the left, the states of this model change"
        + ("" if repaired is None else ", even with position_ids counted from the attention mask")
        + ": pad on the right."
    ]
