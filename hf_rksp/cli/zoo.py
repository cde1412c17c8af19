"""``rksp zoo``: audits and forecasts the models of a manifest, renders their pages, publishes them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import new_parser
from hf_rksp.cli.output import hush_libraries, number, progress, table

_FOLDER = "zoo_reports"
#: The command that audits one model, in its own process.
AUDIT = (sys.executable, "-m", "hf_rksp", "audit")
#: The command that forecasts one model.
RISK = (sys.executable, "-m", "hf_rksp", "risk")


def add_parser(commands: Any) -> None:
    """Add the command, its parts and their options."""
    parser = new_parser(
        commands,
        "zoo",
        "audit many models and publish their reports",
        "Run the audits of a manifest, render all pages from the results, or push them to the Hub.",
        "rksp zoo run zoo_reports/manifests/gpt2.json && rksp zoo render",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    part = new_parser(
        parts,
        "run",
        "audit the models of a manifest",
        "Run the missing audits of a manifest, each in its own process. A failed audit is stored in failures/ with its error, "
        "and the next audit runs.",
        "rksp zoo run zoo_reports/manifests/gpt2.json --dry-run",
    )
    part.add_argument("--dry-run", action="store_true", help="list the audits and their commands, and stop")
    part.add_argument(
        "--memory-cap",
        type=float,
        default=0.0,
        metavar="GIB",
        help="stop an audit that takes more memory (default: no cap)",
    )
    _chosen(part)
    part.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="run the first N seeds of each model (default: all)"
    )
    part.add_argument(
        "--again", action="store_true", help="repeat audits that already have results, to measure time and memory again"
    )
    part.add_argument(
        "--work",
        default="out/zoo",
        metavar="FOLDER",
        help="folder for the progress of unfinished audits (default: out/zoo)",
    )
    _common(part)
    part.set_defaults(run=run_models)
    part = new_parser(
        parts,
        "risk",
        "forecast the models of a manifest",
        "Measure each model of a manifest before its first step, in its own process, and store P(lost) against the learning rate. "
        "A model that needs more memory than there is gets the reason instead.",
        "rksp zoo risk zoo_reports/manifests/gpt2.json",
    )
    part.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    part.add_argument(
        "--memory-cap",
        type=float,
        default=0.0,
        metavar="GIB",
        help="measure no model that needs more memory (default: the memory of this machine)",
    )
    _chosen(part)
    part.add_argument("--again", action="store_true", help="repeat forecasts that are there already")
    part.add_argument(
        "--work", default="out/zoo", metavar="FOLDER", help="folder for unfinished forecasts (default: out/zoo)"
    )
    _common(part)
    part.set_defaults(run=forecast_models)
    part = new_parser(
        parts,
        "render",
        "render all pages from the results",
        "Render all pages, the index, the comparison with the paper and the parquet files from the JSON files alone.",
        "rksp zoo render",
    )
    _common(part)
    part.set_defaults(run=render)
    part = new_parser(
        parts,
        "publish",
        "push reports and tables to the Hub",
        "Push the rendered zoo to a dataset repository, with a dataset card.",
        "rksp zoo publish --repo-id my-org/rksp-zoo",
    )
    part.add_argument(
        "--repo-id", required=True, metavar="REPO", help="dataset repository; created if it does not exist"
    )
    part.add_argument("--private", action="store_true", help="make a new repository private")
    _common(part)
    part.set_defaults(run=publish)


def _chosen(parser: argparse.ArgumentParser) -> None:
    """Which models of which manifest."""
    parser.add_argument("manifest", metavar="MANIFEST", help="a file of zoo_reports/manifests")
    parser.add_argument("--with-hub", action="store_true", help="include models whose weights are on the Hub")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ID", help="run this model; can be given several times"
    )
    parser.add_argument(
        "--size", default="", metavar="SIZE", help="run models with this part in their id, such as 7b, 124m, small"
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default=_FOLDER, metavar="FOLDER", help=f"folder of the zoo (default: {_FOLDER})")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run_models(args: argparse.Namespace) -> int:
    """Run or list the audits; exit code 1 if one failed."""
    from hf_rksp.report.kit.text import seconds
    from hf_rksp.zoo import RunnerOptions, read_manifest, run_manifest
    from hf_rksp.zoo.runner import plan

    manifest = read_manifest(Path(args.manifest))
    options = RunnerOptions(
        Path(args.folder),
        args.memory_cap,
        args.with_hub,
        tuple(args.only),
        args.size,
        args.seeds,
        args.again,
        Path(args.work),
        args.quiet,
    )
    # A running audit must end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    jobs = plan(manifest, options)
    if args.dry_run:
        rows = [
            [
                job.model.id,
                str(job.seed),
                job.state,
                f"{job.model.memory_gib:g} GiB",
                seconds(job.audit["profile"]["cost"]["seconds"]["profile"] if job.audit else None),
                job.model.command(job.seed),
            ]
            for job in jobs
        ]
        print(table(["model", "seed", "state", "memory", "took", "command"], rows))
        return exit_codes.OK
    done, failed = run_manifest(manifest, options, AUDIT, progress(args.quiet))
    print(_results(plan(manifest, replace(options, again=False)), options.folder))
    before = sum(job.state == "done" for job in jobs)
    skipped = sum(job.state == "skipped" for job in jobs)
    print(f"{done} audits done, {before} already had results, {failed} failed, {skipped} need the Hub (--with-hub)")
    return exit_codes.FAILED if failed else exit_codes.OK


def forecast_models(args: argparse.Namespace) -> int:
    """Run the missing forecasts; exit code 1 if one failed."""
    from hf_rksp.zoo import RunnerOptions, read_manifest, run_forecasts

    options = RunnerOptions(
        Path(args.folder),
        args.memory_cap,
        args.with_hub,
        tuple(args.only),
        args.size,
        again=args.again,
        work=Path(args.work),
        quiet=args.quiet,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = run_forecasts(read_manifest(Path(args.manifest)), options, RISK, args.device, progress(args.quiet))
    print(f"{found.done} forecasts made, {found.unmeasured} models not measured, {found.failed} failed")
    return exit_codes.FAILED if found.failed else exit_codes.OK


def _results(jobs: Sequence[Any], folder: Path) -> str:
    """The results with their cost; no numbers for an audit whose last attempt failed."""
    from hf_rksp.zoo.shelf import failure_path

    rows = []
    for job in jobs:
        data, row = job.audit, [job.model.title, str(job.seed)]
        if job.state != "done" or failure_path(folder, job.model, job.seed).is_file():
            rows.append([*row, *[""] * 4, "skipped" if job.state == "skipped" else "failed"])
            continue
        means, cost = data["profile"]["aggregates"], data["profile"]["cost"]
        row += [number(means[name]["mean"]) for name in ("near_unit_mass", "spectral_radius")]
        row += [f"{cost['seconds']['profile']:.0f} s", f"{cost['peak_memory_bytes'] / 2**30:.2f} GiB"]
        rows.append([*row, data["verdict"]["band"].replace("_", " ")])
    return table(["model", "seed", "M~1", "radius", "time", "peak memory", "risk"], rows)


def render(args: argparse.Namespace) -> int:
    """Render all pages and print how many models and bytes there are."""
    from hf_rksp.zoo import render_zoo
    from hf_rksp.zoo.render import weight

    hush_libraries()
    folder = Path(args.folder)
    shelf = render_zoo(folder, progress(args.quiet))
    audited = sum(bool(entry.reports) for entry in shelf.entries)
    sizes = weight(folder)
    print(
        f"{audited} of {len(shelf.entries)} models audited; index.html {sizes['index.html'] / 2**20:.2f} MiB, "
        f"{folder} {sizes['all'] / 2**20:.1f} MiB"
    )
    return exit_codes.OK


def publish(args: argparse.Namespace) -> int:
    """Push the zoo and print its address."""
    from hf_rksp.report.profile.hub import check_access
    from hf_rksp.zoo.publish import publish as push

    check_access("repo_id")
    print(f"pushed to {push(Path(args.folder), args.repo_id, args.private)}")
    return exit_codes.OK
