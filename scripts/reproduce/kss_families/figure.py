"""One picture of what ``kss="auto"`` does in the cells in which KSS acts."""

from __future__ import annotations

from hf_rksp.report.kit.svg import Figure
from scripts.reproduce.forest import Case, Value, figure
from scripts.reproduce.kss_families.tables import MARGIN, Row, harms_of

_NAMES = {
    "gemma3": "Gemma-3", "gpt2": "GPT-2", "llama": "LLaMA", "neox": "GPT-NeoX", "no norm": "GPT-2 without norms", "olmo2": "OLMo-2",
    "qwen3": "Qwen3",
}  # fmt: skip


def picture(rows: list[Row]) -> Figure:
    """Final loss minus that of clipping, and the runs that both lose."""
    cases, equal = [], 0
    for (family, schedule, lr, _), harm in harms_of(rows).items():
        if harm.verdict == "equal":
            equal += 1
            continue
        label = f"{_NAMES.get(family, family)}, {lr:g}{', cosine' if schedule == 'cosine' else ''}"
        lost = (
            f"{harm.clip_lost} of {harm.runs} lost, with KSS {harm.auto_lost}"
            if harm.clip_lost + harm.auto_lost
            else ""
        )
        cases.append(Case(label, [Value(*harm.minus_clipping[:3])], note=lost))
    return figure(
        "kss_families",
        'What does kss="auto" do to a network?',
        f"Each line is a network and a learning rate. At {equal} more KSS acts in no run.",
        cases,
        ("mean of the runs; line: 95% interval",),
        "final loss minus that with clipping alone",
        limit=(MARGIN, f"{MARGIN:g}: KSS is harmless if the interval ends below it"),
    )
