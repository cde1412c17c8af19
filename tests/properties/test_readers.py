"""Files that are broken in any way: a reader says so with an error of its own, and a page that is drawn escapes what it shows."""

import copy
import functools
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hf_rksp
from hf_rksp import AlignmentConfig, AlignmentMonitor, DivergenceGuard, TrainingRun
from hf_rksp.check import check_model  # noqa: F401 - what reads reports is imported once, and not within an example
from hf_rksp.cli.main import main
from hf_rksp.doctor.checkpoint import read_checkpoint
from hf_rksp.doctor.diagnose import diagnose
from hf_rksp.doctor.health import to_go_on_from
from hf_rksp.doctor.mark import read_mark
from hf_rksp.errors import RkspError
from hf_rksp.report import (
    audit_from_dict,
    audit_to_dict,
    read_history,
    read_report,
    render_html,
    render_markdown,
    render_timeline,
)
from hf_rksp.risk.calibrated import read_models
from hf_rksp.zoo.manifest import read_manifest
from tests.training.common import gpt2, token_rows
from tests.training.test_alignment import batches

ROOT = Path(hf_rksp.__file__).parents[1]
SCRIPT = "<script>alert(1)</script>"
ODD = [
    None, True, "", "x" * 2000, SCRIPT, "\ud800", "../../../etc/passwd", -1, 0, 10**30, 1e308, -1e308, 5e-324, math.nan, math.inf,
    [], {}, [None], [[[[[[[[]]]]]]]], {"a": {"b": {}}}, "NaN", "1e999", 2**63,
]  # fmt: skip


@functools.cache
def sources():
    """Valid files of every kind, as text."""
    torch.manual_seed(0)
    model = gpt2(0.0).train()
    optimizer = torch.optim.AdamW(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        parts = [AlignmentMonitor(AlignmentConfig(every=2)), DivergenceGuard(), hf_rksp.SpectralMonitor()]
        with TrainingRun(model, folder, 8, parts) as run:
            for batch in batches(token_rows(32).rows):
                loss = model(**batch).loss
                loss.backward()
                run.gradients_ready()
                optimizer.step()
                optimizer.zero_grad()
                run.step(loss=loss.item(), grad_norm=1.0, learning_rate=1e-3)
            state = run.state_dict()
        history = Path(folder, "rksp_history.jsonl").read_text()
    log = [{"step": step, "loss": 3.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3} for step in range(1, 40)]
    return {
        "history": history,
        "state": json.dumps(state, default=lambda tensor: tensor.tolist()),
        "report": (ROOT / "zoo_reports/gpt2-small-000/report.json").read_text(),
        "manifest": next(iter(sorted((ROOT / "zoo_reports/manifests").glob("*.json")))).read_text(),
        "risk": (ROOT / "hf_rksp/risk/model.json").read_text(),
        "trainer": json.dumps({"global_step": 39, "max_steps": 100, "log_history": log}),
        "mark": json.dumps({"step": 5, "healthy": True, "why": "", "locked": 0}),
    }


def places(data, path=()):
    """Every place in nested JSON."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data[:4]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@functools.cache
def known_places(kind):
    return list(places(json.loads(sources()[kind])))[1:]


def changed(data, path, how, odd):
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if how == "delete":
        del inner[path[-1]]
    elif how == "rename" and isinstance(inner, dict):
        inner["x" + str(path[-1])] = inner.pop(path[-1])
    else:
        inner[path[-1]] = odd
    return data


@st.composite
def broken(draw, kind, lines=False):
    """A file of this kind with something wrong: in its JSON, or in its bytes."""
    text = sources()[kind]
    if draw(st.booleans()):
        if lines:
            rows = text.splitlines()
            row = draw(st.integers(0, len(rows) - 1))
            data = json.loads(rows[row])
            path = draw(st.sampled_from(list(places(data))[1:]))
            rows[row] = json.dumps(
                changed(data, path, draw(st.sampled_from(["delete", "rename", "odd"])), draw(st.sampled_from(ODD)))
            )
            return "\n".join(rows).encode("utf-8", "backslashreplace")
        data = json.loads(text)
        for _ in range(draw(st.integers(1, 2))):
            path = draw(st.sampled_from(known_places(kind)))
            try:
                data = changed(
                    data, path, draw(st.sampled_from(["delete", "rename", "odd"])), draw(st.sampled_from(ODD))
                )
            except (KeyError, IndexError, TypeError):  # the first change has taken this place away
                continue
        return json.dumps(data).encode("utf-8", "backslashreplace")
    raw = bytearray(text.encode())
    how, at = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "deep"])), draw(st.integers(0, len(raw) - 1))
    if how == "cut":
        del raw[at:]
    elif how == "flip":
        raw[at] ^= draw(st.integers(1, 255))
    elif how == "insert":
        raw[at:at] = draw(st.binary(min_size=1, max_size=12))
    elif how == "repeat":
        raw[at:at] = raw[at : at + 40]
    else:
        raw[at:at] = b"[" * 100_000
    return bytes(raw)


def refused(work, *args):
    """What ``work`` returns; ``None`` if it refuses with an error of this package. Anything else fails the test."""
    try:
        return work(*args)
    except RkspError as error:
        assert str(error) and len(str(error)) < 5000
        return None


def written(raw, name):
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name, name)
    file.write_bytes(raw)
    return folder, file


@given(broken("history", lines=True))
def test_history(raw):
    folder, file = written(raw, "rksp_history.jsonl")
    with folder:
        history = refused(read_history, file)
        page = history and refused(render_timeline, [history])
    assert not (page and SCRIPT in page)


@given(broken("report"))
def test_report(raw):
    folder, file = written(raw, "report.json")
    with folder:
        audit = refused(read_report, file)
        if audit is None:
            return
    data = audit_to_dict(audit)
    for draw_page in (render_html, render_markdown):
        page = refused(draw_page, data)
        assert not (isinstance(page, str) and SCRIPT in page)


@given(broken("report"))
def test_report_of_any_json(raw):
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return
    refused(audit_from_dict, data)


@given(broken("manifest"))
def test_manifest(raw):
    folder, file = written(raw, "models.json")
    with folder:
        refused(read_manifest, file)


@given(broken("risk"))
def test_risk_models(raw):
    refused(read_models, raw.decode("utf-8", "replace"))


@given(broken("trainer"))
def test_a_lost_run(raw):
    folder, file = written(raw, "trainer_state.json")
    with folder:
        refused(diagnose, file)
        refused(diagnose, file.parent)


@given(broken("mark"))
def test_health_mark(raw):
    folder, file = written(raw, "rksp_health.json")
    with folder:
        read_mark(file.parent)


@given(
    st.binary(max_size=200),
    st.sampled_from(["model.safetensors", "optimizer.pt", "pytorch_model.bin", "model.safetensors.index.json"]),
)
def test_a_checkpoint_of_any_bytes(raw, name):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "checkpoint-5")
        place.mkdir()
        (place / name).write_bytes(raw)
        (place / "trainer_state.json").write_text(sources()["trainer"])
        assert not (name == "model.safetensors" and read_checkpoint(place, 5).sound)
        to_go_on_from(Path(folder))


@given(broken("state"))
def test_state_of_a_checkpoint(raw):
    """A part whose state cannot be read begins anew; the run goes on."""
    try:
        state = json.loads(raw)
    except (ValueError, RecursionError):
        return
    if not isinstance(state, dict):
        return
    state["step"] = 0
    with tempfile.TemporaryDirectory() as folder:
        parts = [AlignmentMonitor(AlignmentConfig(every=2)), DivergenceGuard(), hf_rksp.SpectralMonitor()]
        with TrainingRun(gpt2(0.0).train(), folder, 8, parts, state=state):
            pass


@pytest.mark.parametrize(
    "payload", [b"cos\nsystem\n(S'touch HERE'\ntR.", b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"]
)
def test_nothing_in_a_file_is_run(tmp_path, payload, monkeypatch):
    """Pickles in every place that is read."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run" / "checkpoint-5"
    place.mkdir(parents=True)
    for name in (
        "optimizer.pt",
        "pytorch_model.bin",
        "model.safetensors",
        "scheduler.pt",
        "trainer_state.json",
        "rksp_health.json",
    ):
        (place / name).write_bytes(payload)
    refused(diagnose, place.parent)
    to_go_on_from(place.parent)
    assert main(["doctor", str(place.parent)]) in (0, 1, 2)
    assert not (tmp_path / "HERE").exists()
