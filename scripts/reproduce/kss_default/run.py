"""Does KSS keep runs that diverge without it, and do they learn more? Every run is one line of a results file.

    HF_RKSP_DATA=... python scripts/reproduce/kss_default/run.py --seeds 24          # the figures that are reported
    HF_RKSP_DATA=... python scripts/reproduce/kss_default/run.py --choose --seeds 3 --arms ARM ...   # other seeds, for choosing
    python scripts/reproduce/kss_default/run.py --table                              # print the tables, run nothing

Runs that are in the results file already are skipped, so it can be stopped and resumed. README.md says what is what.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm
from variants import VARIANTS

HERE = Path(__file__).parent
STEPS = 1000
#: The highest learning rate at which no run without control was lost, of three (recall: six) on the seeds for choosing.
STABLE = {"recall": 0.001, "text-preln": 0.002, "text-rmsnorm": 0.008}
#: What is reported, as multiples of it; at a quarter of it text-rmsnorm learns most without control.
MULTIPLES = {
    "recall": (1.0, 1.5, 2.0, 2.5),
    "text-preln": (1.0, 1.5, 2.0, 2.5),
    "text-rmsnorm": (0.25, 1.0, 1.5, 2.0, 2.5),
}
#: name -> clipping of the gradient norm, settings of KSS. `none` is the control, `clip` what Trainer does without being asked.
ARMS: dict[str, tuple[float | None, dict[str, Any] | None]] = {
    "none": (None, None),
    "clip": (1.0, None),
    "kss + clip": (1.0, {}),
    "kss": (None, {}),
    "kss, weight 0.3 + clip": (1.0, {"weight": 0.3, "first_block_weight": 1.0}),
    "kss, threshold 3 + clip": (1.0, {"weight": 3.0, "first_block_weight": 1.0, "upper_threshold": 3.0}),
    "paper": (None, {"schedule": "paper"}),
    "paper + clip": (1.0, {"schedule": "paper"}),
    "paper, every step + clip": (1.0, {"schedule": "paper", "every": 1}),
}
#: What is run unless --arms says otherwise.
REPORTED = ("none", "clip", "kss + clip", "paper + clip")
#: What the default was chosen among, on other seeds than those reported: weights with and without clipping, and one thing
#: changed at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    ", threshold 2.0": {"upper_threshold": 2.0},
    ", threshold 3.0": {"upper_threshold": 3.0},
    ", centred": {"centred": True},
} | {f", {name}": {"variant": name} for name in VARIANTS if name}
CANDIDATES: dict[str, tuple[float | None, dict[str, Any] | None]] = {"none": (None, None), "clip": (1.0, None)} | {
    f"weight {weight:g}, first {first:g}{name}{' + clip' if clip else ''}": (
        clip,
        {"weight": weight, "first_block_weight": first} | change,
    )
    for weight in (0.3, 1.0, 3.0, 10.0)
    for first in (0.0, 0.1, 0.3, 0.33, 1.0)
    for name, change in CHANGES.items()
    for clip in (1.0, None)
}
FIRST_CHOICE_SEED = 100


def jobs(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seeds in the outer loop, so that an unfinished file is balanced over the arms."""
    first = FIRST_CHOICE_SEED if args.choose else 0
    for seed in range(first, first + args.seeds):
        for task in args.tasks:
            for multiple in args.multiples or MULTIPLES[task]:
                for arm in args.arms or REPORTED:
                    lr = round(STABLE[task] * multiple, 8)
                    yield {"task": task, "arm": arm, "lr": lr, "seed": seed, "steps": args.steps}


def work(job: dict[str, Any], choose: bool) -> dict[str, Any]:
    """One run in a process of its own, on one thread."""
    import torch
    from train import run

    from hf_rksp.config import KSSConfig

    torch.set_num_threads(1)
    clip, kss = (CANDIDATES if choose else ARMS)[job["arm"]]
    row = run(job["task"], job["lr"], job["seed"], job["steps"], clip, kss)
    if kss is not None:  # what the defaults were in this run
        kss = kss | asdict(KSSConfig(**{name: value for name, value in kss.items() if name != "variant"}))
    return job | {"clip": clip, "kss": kss, "torch": torch.__version__} | row


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one run from another."""
    return tuple(row[name] for name in ("task", "arm", "lr", "seed", "steps"))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows that are there; a line cut short by a kill is left out."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=24, help="how many to run, and to show in the tables (default: 24)"
    )
    parser.add_argument("--tasks", nargs="+", default=list(STABLE), choices=list(STABLE))
    parser.add_argument("--multiples", nargs="+", type=float, help="of the highest stable learning rate")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="default: those that are reported")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--choose", action="store_true", help="run the candidates on the seeds for choosing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, run nothing")
    args = parser.parse_args()
    if unknown := [arm for arm in args.arms or [] if arm not in (CANDIDATES if args.choose else ARMS)]:
        parser.error(f"--arms {unknown[0]!r}: choose among {', '.join(CANDIDATES if args.choose else ARMS)}")
    if args.choose and not (args.arms or args.table):
        parser.error("--choose: name the candidates to run with --arms; README.md lists them")
    file = HERE / ("choose.jsonl" if args.choose else "results.jsonl")
    done = {key(row) for row in read(file)}
    todo = [] if args.table else [job for job in jobs(args) if key(job) not in done]
    if todo:
        with ProcessPoolExecutor(args.workers) as pool, file.open("a") as out:
            futures = [pool.submit(work, job, args.choose) for job in todo]
            for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
                out.write(json.dumps(future.result()) + "\n")
                out.flush()
    from table import tables

    last = (FIRST_CHOICE_SEED if args.choose else 0) + args.seeds
    print(tables([row for row in read(file) if row["seed"] < last]))


if __name__ == "__main__":
    main()
