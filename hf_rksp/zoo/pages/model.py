"""The page of one model: its report, with the spread over seeds, the paper's figures and the licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rksp.quantities import LAYER, SEEDS
from hf_rksp.report import Section, Table, render_html, render_markdown
from hf_rksp.report.kit.markdown import Ready, command_block, markdown_environment
from hf_rksp.report.kit.text import DASH, form_of, number, seconds, share, size, span
from hf_rksp.risk.thresholds import NO_INTERVAL
from hf_rksp.zoo.pages import paper_comparison as compare
from hf_rksp.zoo.shelf import Entry

SOURCE_NAMES = {
    "initialised": "random weights",
    "trained": "a small model, trained for the zoo",
    "pretrained": "pretrained weights",
}


def page_files(entry: Entry) -> dict[str, bytes]:
    """The files of a model's folder, from its audits alone."""
    if entry.report is None:
        return {"report.md": _not_yet(entry).encode()}
    data = _titled(entry)
    sections = [part for part in (_about(entry), _seeds(entry), _published(entry)) if part]
    text, figures = render_markdown(data, sections)
    files = {f"figures/{name}": figure.encode() for name, figure in figures.items()}
    return files | {"report.md": text.encode(), "report.html": render_html(data, sections).encode()}


def _titled(entry: Entry) -> Mapping[str, Any]:
    report = entry.report
    assert report is not None
    step = entry.model.step
    weights = {} if step is None else {"source": f"trained for the zoo, {step:.0%}", "declared": None}
    model = {**report["profile"]["model"], "name": entry.model.title, **weights}
    profile = {**report["profile"], "model": model}
    return {**report, "profile": profile, "verdict": _with_interval(entry, report["verdict"])}


def _with_interval(entry: Entry, verdict: Mapping[str, Any]) -> Mapping[str, Any]:
    """A verdict without an interval gets that of the seeds, and says so."""
    ends = entry.interval("near_unit_mass")
    if NO_INTERVAL not in verdict["reasons"] or ends is None:
        return verdict
    said = (
        f"The interval is that of the mean of {len(entry.reports)} seeds, {share(entry.mean('near_unit_mass'))}: this audit ran "
        "without the jackknife, and has none of its own."
    )
    return {**verdict, "interval": list(ends), "reasons": [said if r == NO_INTERVAL else r for r in verdict["reasons"]]}


def _about(entry: Entry) -> Section:
    model = entry.model
    facts = [f"{model.family}, {SOURCE_NAMES[model.source]}. Licence: {model.licence}."]
    if model.step is not None:
        facts.append(
            f"After {model.step:.0%} of its training." if model.step else "Before its first step: random weights."
        )
    if model.note:
        facts.append(model.note)
    if "$HF_RKSP_DATA" in model.command(model.seeds[0]):
        facts.append("The command reads the text or the images of the folder that the variable HF_RKSP_DATA names.")
    if any("out/zoo/trained" in part for part in model.arguments):
        facts.append("`python scripts/train_zoo.py` makes the weights, which are not kept here.")
    return Section("about", "About this model", tuple(facts))


def _seeds(entry: Entry) -> Section | None:
    """Each seed, their mean, and its interval."""
    data = entry.profile
    if len(entry.model.seeds) < 2 or data is None:
        return None
    rows = []
    for quantity in SEEDS:
        title, symbol, form = LAYER[quantity].title, LAYER[quantity].symbol, form_of(LAYER[quantity])
        each = [form(_of(data, quantity)) for data in entry.profiles.values()]
        each += [DASH] * (len(entry.model.seeds) - len(each))
        rows.append(
            (
                f"{title} ({symbol})" if symbol else title,
                *each,
                form(entry.mean(quantity)),
                span(entry.interval(quantity), form),
                form(entry.deviation(quantity)),
            )
        )
    cost = [seconds(data["cost"]["seconds"]["profile"]) for data in entry.profiles.values()]
    memory = [size(data["cost"]["peak_memory_bytes"]) for data in entry.profiles.values()]
    missing = [DASH] * (len(entry.model.seeds) - len(cost))
    rows += [("time of the profile", *cost, *missing, "", "", ""), ("peak memory", *memory, *missing, "", "", "")]
    columns = ("Mean over layers", *(f"seed {seed}" for seed in (*entry.reports, *_open_seeds(entry))))
    columns += ("mean of seeds", "95% interval", "std. dev.")
    inputs = "images" if "images" in data["setup"] else "passages of text"
    drawn = f"other {inputs}; the weights are the same"
    if entry.model.source == "initialised":
        drawn = f"other weights and other {inputs}"
    rest = (
        "The comparison with the paper is of the mean of the seeds; the rest" if entry.model.published else "The rest"
    )
    lead = (
        f"Each seed draws {drawn}. The interval is Student's t over the seeds: with three of them it is wide. {rest} of this page "
        "is the first seed. The others were run without the jackknife, which takes most of the time where there is one."
    )
    return Section("seeds", "Seeds", (lead,), (Table(columns, tuple(rows), tuple(range(1, len(columns)))),))


def _open_seeds(entry: Entry) -> list[int]:
    return [seed for seed in entry.model.seeds if seed not in entry.reports]


def _of(data: Mapping[str, Any], quantity: str) -> Any:
    return data["aggregates"].get(quantity, {}).get("mean")


def _published(entry: Entry) -> Section | None:
    beside = compare.beside(entry)
    if beside is None:
        return None
    lead = (
        f"The paper on {beside.published.name}: {beside.published.setting} Two figures agree here within a tenth, shares within "
        f".05. {beside.agree} of {beside.of} agree."
    )
    paragraphs = [lead, beside.apart]
    if found := compare.start_to_end(entry):
        word, values = found
        shown = ", ".join(number(value) for value in values)
        paragraphs.append(
            f"Start linear, end nonlinear: the paper sees the nonlinearity ratio rise with the depth. Here it "
            f"{_PATTERNS[word]} (early, middle, late: {shown})."
        )
    return Section("published", "Beside the paper", tuple(paragraphs), (beside.table(),))


_PATTERNS = {
    "rises": "rises too",
    "falls": "falls",
    "level": "stays level, within .02",
    "neither": "neither rises nor falls throughout",
}


def _not_yet(entry: Entry) -> str:
    """The page of a model without an audit: never the numbers of another."""
    return (
        markdown_environment("hf_rksp.zoo.pages")
        .get_template("zoo_not_yet.md")
        .render(
            model=entry.model,
            command=Ready(command_block(entry.model.command(entry.model.seeds[0]))),
            failures=[(failure, Ready(command_block(str(failure["error"]), "text"))) for failure in entry.failures],
            beside=compare.beside(entry),
        )
    )
