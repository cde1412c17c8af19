"""What `rksp risk` costs, compared with the training steps that it speaks about.

    make bench          # or: python scripts/bench/risk.py [--quick] [--json risk.json]

Each measurement is a process of its own. The steps of training are those of the same model with AdamW on the same number of
tokens, in another process; their median counts. Two targets: at most 180 s for GPT-2 124M, and less than 3% of 1,000 steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_rksp.machine import describe_machine, peak_memory, versions

#: Names, overrides of the configuration. All eight batches have 4 x 128 tokens.
SIZES = {"GPT-2 124M": "n_layer=12", "GPT-2, 4 layers of width 256": "n_layer=4,n_embd=256,n_head=4"}
_SEQUENCES, _LENGTH, _STEPS = 4, 128, 6
MOST_SECONDS, MOST_SHARE = 180.0, 0.03


def measured(overrides: str) -> dict[str, float]:
    """Seconds and peak memory of the command."""
    command = [
        sys.executable,
        "-c",
        _COMMAND,
        "--init",
        "gpt2",
        "--config-overrides",
        overrides,
        "--lr",
        "3e-4",
        "--quiet",
    ]
    start = time.perf_counter()
    out = json.loads(subprocess.run([*command, "--json", "-"], stdout=subprocess.PIPE, check=True).stdout)
    return {"wall": time.perf_counter() - start, "seconds": out["answer"]["seconds"], "peak_memory_bytes": out["peak"]}


#: The command, with the peak memory of its process in the answer.
_COMMAND = """
import contextlib, io, json, sys
from hf_rksp.cli.main import main
from hf_rksp.machine import peak_memory
out = io.StringIO()
with contextlib.redirect_stdout(out):
    code = main(["risk", *sys.argv[1:]])
print(json.dumps({"answer": json.loads(out.getvalue()), "peak": peak_memory()}))
sys.exit(code)
"""


def trained(overrides: str) -> dict[str, float]:
    """Seconds of a step, and peak memory of such a training."""
    command = [sys.executable, __file__, "--train", overrides]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def train(overrides: str) -> None:
    """Print the median seconds of a step; a process of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    values = dict(part.split("=") for part in overrides.split(","))
    config = GPT2Config(**{name: int(value) for name, value in values.items()})
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = []
    for _ in range(_STEPS):
        ids = torch.randint(config.vocab_size, (_SEQUENCES, _LENGTH))
        start = time.perf_counter()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"step": statistics.median(seconds[1:]), "peak_memory_bytes": peak_memory()}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model alone")
    parser.add_argument("--json", type=Path, help="also write the raw numbers here")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.train)
    machine = describe_machine()
    print(f"{machine['system']} {machine['architecture']}, {machine['cores']} cores, torch {versions()['torch']}")
    print(f"rksp risk, eight batches of {_SEQUENCES} x {_LENGTH} tokens, float32, new process each")
    rows = {}
    for name, overrides in list(SIZES.items())[1 if args.quick else 0 :]:
        risk, training = measured(overrides), trained(overrides)
        steps = risk["seconds"] / training["step"]
        print(
            f"  {name:30s} {risk['wall']:6.1f} s, of which measuring {risk['seconds']:6.1f} s = {steps:4.1f} training steps "
            f"({steps / 1000:.1%} of 1,000); peak memory {risk['peak_memory_bytes'] / 2**30:.2f} GiB, training "
            f"{training['peak_memory_bytes'] / 2**30:.2f} GiB",
            flush=True,
        )
        rows[name] = {"risk": risk, "training": training, "steps": steps}
    first = rows[next(iter(rows))]
    if not args.quick:
        met = first["risk"]["wall"] <= MOST_SECONDS
        print(f"  target at most {MOST_SECONDS:.0f} s for GPT-2 124M: {'met' if met else 'MISSED'}")
    met = all(row["steps"] < 1000 * MOST_SHARE for row in rows.values())
    print(f"  target below {MOST_SHARE:.0%} of 1,000 steps: {'met' if met else 'MISSED'}")
    if args.json:
        args.json.write_text(json.dumps({"versions": versions(), "sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
