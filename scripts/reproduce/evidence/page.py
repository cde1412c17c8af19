"""The page of all claims: Markdown, and one figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hf_rksp.report.kit.svg import Figure, text
from scripts.reproduce.evidence.claim import Claim, Finding, Paper, Verdict
from scripts.reproduce.harness.markdown import table

#: Verdict -> the word for a reader, and the kind of its mark in the figure.
VERDICTS: dict[Verdict, str] = {
    "held": "held",
    "partly": "partly",
    "not": "not confirmed",
    "undecided": "undecided",
    "not tested": "not tested yet",
}
_COLOURS = {"held": "#2a9d5c", "partly": "#d29922", "not": "#cf4a4a", "undecided": "#7a6fb0", "not tested": "#9aa1a9"}
_CELL, _LABEL, _TOP = 26, 330, 8
#: Place of the words below, and from one to the next.
_LEGEND, _STEP = 60, 160

Judged = list[tuple[Paper, list[tuple[Claim, Finding]]]]


def judge(papers: Sequence[Paper]) -> Judged:
    """Every claim with what became of it."""
    return [(paper, [(claim, claim.finding()) for claim in paper.claims]) for paper in papers]


def markdown(judged: Judged, ours: Judged) -> str:
    """The page: the claims of the papers, which are counted, and then our own."""
    counts = Counter(finding.verdict for _, claims in judged for _, finding in claims)
    total = sum(counts.values())
    lines = [
        "# What became of the claims of the three papers", "",
        f"{total} claims: " + ", ".join(f"{counts[verdict]} {word}" for verdict, word in VERDICTS.items() if counts[verdict]) + ".",
        "The numbers are computed from the rows in this repository when this page is made (`python scripts/reproduce/render.py`),",
        "except where a test answers. A rule says what counts as held. Undecided: there are rows, and they cannot tell.",
        "Most rules were written after most of the results were known. The exceptions are those of Tables 4 to 9, 13 and 14 of",
        'the RKSP paper, of alignment against norms, of the warm-up that architecture warm-up replaces, and of `kss="auto"`.',
        "The networks are small (width 32 to 128 in most experiments, up to 1,000 steps): what is not confirmed here may hold",
        "for large models.",
        "",
        "![The claims by paper: held, partly, not confirmed, undecided, not tested yet](figures/claims.svg)", "",
    ]  # fmt: skip
    for paper, claims in [*judged, *ours]:
        lines += [f"## {paper.name}", "", f"{paper.source}.", "", *([paper.picture, ""] if paper.picture else [])]
        rows = [
            [
                str(place), claim.place, claim.says, f"**{VERDICTS[finding.verdict]}**", finding.text,
                f"`{claim.command}`: {links(claim.rows) if claim.has_rows else 'no rows yet'}" if claim.rows else "-",
            ]
            for place, (claim, finding) in enumerate(claims, 1)
        ]  # fmt: skip
        lines += [*table(["", "where", "claim", "result", "what was measured", "command and rows"], rows), ""]
        rules = [(place, claim.rule) for place, (claim, _) in enumerate(claims, 1) if claim.rows]
        lines += ["What counts:", "", *(f"- {place}: {rule}." for place, rule in rules), ""]
    return "\n".join(lines).rstrip() + "\n"


def links(rows: Sequence[str]) -> str:
    """Links from the folder of the page."""
    return ", ".join(f"[{name.rsplit('/', 2)[-2]}/{name.rsplit('/', 1)[-1]}](../../{name})" for name in rows) or "-"


def figure(judged: Judged) -> Figure:
    """A mark for each claim, in the order of the page."""
    parts, width = [], max(len(claims) for _, claims in judged)
    for row, (paper, claims) in enumerate(judged):
        y = _TOP + row * (_CELL + 10)
        parts.append(text(_LABEL - 12, y + _CELL / 2 + 4, paper.name, anchor="e"))
        for place, (_, finding) in enumerate(claims):
            x = _LABEL + place * (_CELL + 4)
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" rx="4" fill="{_COLOURS[finding.verdict]}"/>'
                + f'<text x="{x + _CELL / 2}" y="{y + _CELL / 2 + 4}" class="m" style="fill:#fff">{place + 1}</text>'
            )
    bottom = _TOP + len(judged) * (_CELL + 10) + 8
    for place, (verdict, word) in enumerate(VERDICTS.items()):
        x = _LEGEND + place * _STEP
        parts.append(f'<rect x="{x}" y="{bottom}" width="12" height="12" rx="2" fill="{_COLOURS[verdict]}"/>')
        parts.append(text(x + 18, bottom + 10, word))
    counts = "; ".join(
        f"{paper.name}: {', '.join(VERDICTS[finding.verdict] for _, finding in claims)}" for paper, claims in judged
    )
    size = max(_LABEL + width * (_CELL + 4), _LEGEND + len(VERDICTS) * _STEP)
    return Figure(
        "claims",
        "Claims of the three papers",
        "Numbers count the rows of the tables.",
        counts,
        size,
        bottom + 20,
        "".join(parts),
    )
