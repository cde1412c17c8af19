"""How far the numbers depend on the amount of text: the models of the paper's trends and of the scaling figure, with more tokens.

    python scripts/reproduce/tokens/run.py            # half an hour on 2 quiet cores; goes on where it was stopped
    python scripts/reproduce/tokens/run.py --table    # the tables alone, from results.jsonl

All else is as in zoo_reports: random weights, the same seeds, passages of 128 tokens of the same text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_rksp import profile_model
from hf_rksp.inputs import InputOptions, ModelSource, prepare
from hf_rksp.machine import now, versions
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of

HERE = Path(__file__).parent
TOKENS, SEEDS = (2048, 4096, 8192), (42, 123, 456)
QUANTITIES = ("near_unit_mass", "spectral_radius", "nonlinearity_ratio")
#: Table -> the models that it puts beside each other.
TRENDS: dict[str, dict[str, dict[str, str]]] = {
    "MoE-Small: experts of 8 a token": {
        f"{k}": {"init": "moe-small", "config_overrides": f"num_experts_per_tok={k}"} for k in (1, 2, 4)
    },
    "MoE-Medium: experts of 8 a token": {
        f"{k}": {"init": "moe-medium", "config_overrides": f"num_experts_per_tok={k}"} for k in (1, 2, 4)
    },
    "KAN GPT-2: order of the splines": {
        f"{order}": {"init": "gpt2-kan", "config_overrides": f"spline_order={order}"} for order in (4, 8)
    },
    "LLaMA: size": {size: {"init": f"llama-{size}"} for size in ("25m", "85m", "125m", "350m")},
}


def main() -> None:
    """Run what results.jsonl does not have, and write results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    path = HERE / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not parser.parse_args().table:
        done = {(row["table"], row["model"], row["tokens"], row["seed"]) for row in rows}
        todo = [
            (table, name, tokens, seed)
            for (table, models), tokens, seed in itertools.product(TRENDS.items(), TOKENS, SEEDS)
            for name in models
            if (table, name, tokens, seed) not in done
        ]
        for table, name, tokens, seed in tqdm(todo, unit="profile"):
            rows.append(measured(table, name, tokens, seed))
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        (HERE / "results.md").write_text(tables(rows))
    print(tables(rows))


def measured(table: str, name: str, tokens: int, seed: int) -> dict[str, Any]:
    """One profile: means over the layers."""
    prepared = prepare(ModelSource(**TRENDS[table][name], seed=seed), InputOptions(tokens=tokens, seed=seed))  # type: ignore[arg-type]
    profile = profile_model(prepared.model, prepared.batches(8), groups=0, source="initialised", progress=False)
    return {
        "table": table,
        "model": name,
        "tokens": tokens,
        "seed": seed,
        "distinct_tokens": prepared.setup["text"]["distinct_tokens"],
        "rank": max(layer.rank for layer in profile.layers),
        "date": now(),
        "versions": versions(),
    } | {quantity: profile.aggregates[quantity]["mean"] for quantity in QUANTITIES}


def tables(rows: list[dict[str, Any]]) -> str:
    """Mean over the seeds with the standard deviation, a line for each number of tokens."""
    text = ["Mean over layers and seeds " + ", ".join(map(str, SEEDS)) + " ± standard deviation over the seeds.\n"]
    for table, models in TRENDS.items():
        for quantity in QUANTITIES:
            title, form = LAYER[quantity].title, form_of(LAYER[quantity])
            text += [f"## {table}: {title}", ""]
            text += [f"| tokens | {' | '.join(models)} |", "| ---: " + "| ---: " * len(models) + "|"]
            for tokens in TOKENS:
                cells = []
                for name in models:
                    found = [
                        row for row in rows if (row["table"], row["model"], row["tokens"]) == (table, name, tokens)
                    ]
                    values = [row[quantity] for row in found]
                    spread = f" ± {form(statistics.stdev(values))}" if len(values) > 1 else ""
                    each = (
                        f" ({tokens / found[0]['rank']:.0f} a direction)" if table.startswith("LLaMA") and found else ""
                    )
                    cells.append(form(statistics.fmean(values)) + spread + each if values else "–")
                text.append(f"| {tokens:,} | {' | '.join(cells)} |")
            text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main()
