"""The page of one model: its report, with the spread over seeds, the paper's values and the licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report import Section, Table, render_html, render_markdown
from hf_rksp.report.kit.markdown import Ready, command_block, markdown_environment
from hf_rksp.report.kit.text import DASH, form_of, number, seconds, share, size, span
from hf_rksp.report.risk import curve
from hf_rksp.report.risk.page import sentences as risk_sentences
from hf_rksp.risk.thresholds import NO_INTERVAL
from hf_rksp.zoo.pages.paper_comparison import RULE, compare_with_paper
from hf_rksp.zoo.pages.trends import LEVEL, over_depth
from hf_rksp.zoo.shelf import Entry

SOURCE_NAMES = {
    "initialised": "random weights",
    "trained": "small model, trained for the zoo",
    "pretrained": "pretrained weights",
}


def page_files(entry: Entry) -> dict[str, bytes]:
    """The files of a model's folder, from its audits alone."""
    if entry.report is None:
        return {"report.md": _not_audited(entry).encode()}
    data = _titled(entry)
    sections = [part for part in (_about(entry), _risk(entry), _seeds(entry), _paper(entry)) if part]
    text, figures = render_markdown(data, sections)
    files = {f"figures/{name}": figure.encode() for name, figure in figures.items()}
    return files | {"report.md": text.encode(), "report.html": render_html(data, sections).encode()}


def _titled(entry: Entry) -> Mapping[str, Any]:
    report = entry.report
    assert report is not None
    progress = entry.model.progress
    weights = {} if progress is None else {"source": f"trained for the zoo, {progress:.0%}", "declared": None}
    model = {**report["profile"]["model"], "name": entry.model.title, **weights}
    profile = {**report["profile"], "model": model}
    return {**report, "profile": profile, "verdict": _with_interval(entry, report["verdict"])}


def _with_interval(entry: Entry, verdict: Mapping[str, Any]) -> Mapping[str, Any]:
    """The verdict; one without an interval gets the interval over the seeds, and a reason that says so."""
    ends = entry.interval("near_unit_mass")
    if NO_INTERVAL not in verdict["reasons"] or ends is None:
        return verdict
    reason = (
        f"The interval belongs to the mean over {len(entry.reports)} seeds, {share(entry.mean('near_unit_mass'))}. This audit ran "
        "without the jackknife and has no interval itself."
    )
    reasons = [reason if text == NO_INTERVAL else text for text in verdict["reasons"]]
    return {**verdict, "interval": list(ends), "reasons": reasons}


def _about(entry: Entry) -> Section:
    model = entry.model
    facts = [f"{model.family}, {SOURCE_NAMES[model.source]}. Licence: {model.licence}."]
    if model.progress is not None:
        facts.append(
            f"After {model.progress:.0%} of its training."
            if model.progress
            else "Before its first training step: random weights."
        )
    if model.note:
        facts.append(model.note)
    if "$HF_RKSP_DATA" in model.command(model.seeds[0]):
        facts.append("The command reads text or images from the folder in the variable HF_RKSP_DATA.")
    if any("out/zoo/trained" in part for part in model.arguments):
        facts.append("`python scripts/train_zoo.py` trains the model. The repository does not contain its weights.")
    return Section("about", "About this model", tuple(facts))


def _risk(entry: Entry) -> Section:
    """P(lost) against the learning rate, or why it is not known."""
    model, data, title = entry.model, entry.risk, "Risk before training"
    known = [model.trained_by] if model.trained_by else []
    if data is None:
        return Section("risk", title, (f"There is no forecast yet: {model.risk_command()} makes it.",))
    reasons = [str(reason) for reason in data["reasons"]]
    figure = curve.figure(data)
    if figure is None:
        why = " ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in reasons)
        return Section("risk", title, (*known, f"P(lost) is {data['status']}. {why}"))
    plan = data["plan"]
    paragraphs = [
        *(
            known
            or [
                "No learning rate is published for a training run of this model. The curve is for a plan of 1,000 steps."
            ]
        ),
        f"The plan: {plan['objective']} language modelling from {plan['start']} weights with {plan['optimizer']}, in "
        f"{plan['steps']:,} steps of {plan['tokens']:,} tokens, {_warmup(plan['warmup'])}; schedule {plan['schedule']}.",
        *risk_sentences(data),
    ]
    if reasons:
        paragraphs.append(f"The answer is extrapolated. {'. '.join(f'{one[:1].upper()}{one[1:]}' for one in reasons)}.")
    return Section("risk", title, tuple(paragraphs), figures=(figure,))


def _warmup(steps: int) -> str:
    return f"{steps:,} of them warm-up" if steps else "without warm-up"


def _seeds(entry: Entry) -> Section | None:
    """Each seed, the mean over the seeds, and its interval; ``None`` for a model with one seed."""
    first = entry.profile
    if len(entry.model.seeds) < 2 or first is None:
        return None
    profiles = entry.profiles.values()
    missing = [seed for seed in entry.model.seeds if seed not in entry.reports]
    dashes = [DASH] * len(missing)
    rows = []
    for key in SEEDS:
        quantity, form = LAYER[key], form_of(LAYER[key])
        each = [form(data["aggregates"].get(key, {}).get("mean")) for data in profiles]
        name = f"{quantity.title} ({quantity.symbol})" if quantity.symbol else quantity.title
        summary = (form(entry.mean(key)), span(entry.interval(key), form), form(entry.deviation(key)))
        rows.append((name, *each, *dashes, *summary))
    times = [seconds(data["cost"]["seconds"]["profile"]) for data in profiles]
    memory = [size(data["cost"]["peak_memory_bytes"]) for data in profiles]
    rows += [("time of the profile", *times, *dashes, "", "", ""), ("peak memory", *memory, *dashes, "", "", "")]
    columns = ("Mean over layers", *(f"seed {seed}" for seed in (*entry.reports, *missing)))
    columns += ("mean of seeds", "95% interval", "std. dev.")
    table = Table(columns, tuple(rows), tuple(range(1, len(columns))))
    return Section("seeds", "Seeds", (_seeds_lead(entry, first),), (table,))


def _seeds_lead(entry: Entry, profile: Mapping[str, Any]) -> str:
    inputs = "images" if "images" in profile["setup"] else "passages of text"
    drawn = f"other {inputs}; the weights are the same"
    if entry.model.source == "initialised":
        drawn = f"other weights and other {inputs}"
    rest = "The rest of this page shows the first seed."
    if entry.model.published:
        rest = "The comparison with the paper uses the mean over the seeds; the rest of this page shows the first seed."
    return (
        f"Each seed draws {drawn}. The interval is Student's t over the seeds; with three seeds this interval is wide. {rest} The "
        "other seeds ran without the jackknife, which takes most of the time if it is on."
    )


def _paper(entry: Entry) -> Section | None:
    comparison = compare_with_paper(entry)
    if comparison is None:
        return None
    paragraphs = [
        f"The paper on {comparison.paper.name}: {comparison.paper.setting} {RULE} {comparison.score}.",
        comparison.why_different,
    ]
    if result := over_depth(entry):
        word, values = result
        thirds = ", ".join(number(value) for value in values)
        paragraphs.append(
            "In the paper, transformers start linear and end nonlinear: the nonlinearity ratio increases with the depth. Here it "
            f"{_OVER_DEPTH[word]} (early, middle and late third: {thirds})."
        )
    return Section("published", "Comparison with the paper", tuple(paragraphs), (comparison.table(),))


_OVER_DEPTH = {
    "increases": "increases too",
    "decreases": "decreases",
    "constant": f"is constant within {LEVEL}",
    "no clear trend": "has no clear trend",
}


def _not_audited(entry: Entry) -> str:
    """The page of a model without an audit; it shows no number of another model."""
    return (
        markdown_environment("hf_rksp.zoo.pages")
        .get_template("zoo_not_yet.md")
        .render(
            model=entry.model,
            command=Ready(command_block(entry.model.command(entry.model.seeds[0]))),
            failures=[(failure, Ready(command_block(str(failure["error"]), "text"))) for failure in entry.failures],
            comparison=compare_with_paper(entry),
        )
    )
