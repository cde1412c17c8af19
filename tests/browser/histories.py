"""Histories of training runs: calm, broken off, hostile, large."""

import json
import math
import random

from hf_rksp.report import read_history
from tests.browser.samples import HOSTILE


def layer(index, modes=8, radius=1.2, stack="h", **values):
    """A layer whose eigenvalues are conjugate pairs inside of ``radius``, the outermost one on it."""
    rng, pairs = random.Random(f"{index} {radius}"), [[radius, 0.0], [0.5, 0.0]]
    while len(pairs) < modes:
        size, angle = radius * math.sqrt(rng.random()), math.pi * rng.random()
        x, y = round(size * math.cos(angle), 5), round(size * math.sin(angle), 5)
        pairs += [[x, y], [x, -y]]
    return {
        "stack": stack,
        "index": index,
        "path": f"{stack}.{index}",
        "rank": modes,
        "near_unit_mass": 0.25,
        "expansive_mass": 0.25,
        "contractive_mass": 0.3,
        "intermediate_mass": 0.2,
        "spectral_radius": radius,
        "eigenvector_condition": 12.5,
        "nonlinearity_ratio": 0.2,
        "henrici_departure": 0.4,
        "reliable_fraction": 0.9,
        "eigenvalues": pairs,
    } | values


def run(name="calm", **setup):
    model = {"name": "tiny", "class": "GPT2LMHeadModel", "parameters": 312_320}
    setup = {"name": name, "learning_rate": 0.001, "kss": None, "monitor": {"every": 5, "data": "probe"}} | setup
    return {"kind": "run", "schema_version": 1, "model": model, "setup": setup, "versions": {"hf_rksp": "0.1.0"}}


def log(step, loss=None, grad_norm=1.0, **values):
    base = {"kind": "log", "step": step, "epoch": step / 100, "loss": loss, "grad_norm": grad_norm}
    return base | {"learning_rate": 0.001} | values


def profile(step, layers, **values):
    return (
        {"kind": "profile", "step": step, "epoch": step / 100, "data": "probe", "tokens": 512, "seconds": 0.5}
        | {"layers": layers}
        | values
    )


def calm(name="calm", steps=20, every=5, layers=3, modes=8, **setup):
    """Loss 4 falling; near-unit mass rising with the step and the layer; spectral radius above 1."""
    rows = [run(name, **setup)]
    for step in range(steps + 1):
        if step % every == 0:
            mass = [min(1.0, 0.2 + 0.6 * step / steps + 0.02 * place) for place in range(layers)]
            found = [layer(i, modes, 1.1 + 0.1 * i + step / steps, near_unit_mass=mass[i]) for i in range(layers)]
            rows.append(profile(step, found))
        if step:
            rows.append(log(step, 4 - step / steps, 0.5 + abs(math.sin(step))))
    return rows


def broken(name="broken"):
    """As `calm`, but not finite after step 12, and with other profiled steps."""
    rows = [row for row in calm(name, every=4) if row["kind"] != "profile" or row["step"] <= 12]
    return [
        row | {"loss": None, "grad_norm": None} if row.get("step", 0) > 12 and row["kind"] == "log" else row
        for row in rows
    ]


def shaped(name="with KSS"):
    """As `calm`, with what KSS logs, and one spectral radius far outside."""
    rows = calm(name, kss={"schedule": "paper", "weight": 0.15})
    rows[-2]["layers"][0] = layer(0, 8, 60.0)
    keys = ("kss/loss", "kss/spectral_radius/max", "kss/layers_above", "kss/dropped", "kss/own")
    return [row | dict.fromkeys(keys, 0.5 + row["step"]) if row["kind"] == "log" else row for row in rows]


def eventful(steps=1_000):
    """The loss leaves its minimum at step 700 and rises to 5; alarms of a monitor `weather`, and a step back to 600 at 820."""
    rng = random.Random(1)
    described = {
        "weather/rain/max": {"title": "rain, largest layer", "unit": "number", "limit": 10.0, "limit_title": "flood"},
        "weather/rain": {"title": "rain", "unit": "number", "limit": 10.0, "per_layer": True},
        "kss/loss": {"title": "KSS penalty", "unit": "number", "note": "Before its weight."},
    }
    first = run("eventful")
    rows = [first | {"schema_version": 2, "attempt": 0, "quantities": described}]

    def row(step):
        late = max(0, step - 700)
        loss = min(5.0, 0.4 + 4 * math.exp(-step / 100) + 0.001 * late**2) + rng.gauss(0, 0.002 if late < 10 else 0.1)
        grad_norm = (300.0 if step == 725 else 1.0) + rng.random()
        return log(step, loss if step < steps - 10 else None, grad_norm, **{"kss/loss": 0.1})

    def event(step, by, what, text, **more):
        return {"kind": "event", "step": step, "by": by, "what": what, "text": text} | more

    def reading(step):
        rain = [{"path": f"h.{i}", "stack": "h", "index": i, "rain": 1 + i + max(0, step - 690) / 20} for i in range(3)]
        values = {"rain/max": max(layer["rain"] for layer in rain)}
        return {"kind": "reading", "monitor": "weather", "step": step, "values": values, "layers": rain}

    def stretch(start, stop):
        for step in range(start, stop):
            yield from [reading(step)] if step % 50 == 0 else []
            yield row(step)

    rows += [*stretch(1, 721), event(721, "weather", "alarm", "Rain of 12.1 is above 10.", layer="h.2")]
    rows += [
        *stretch(721, 821),
        event(820, "umbrella", "rollback", "Training went back to step 600.", to=600, attempt=1),
    ]
    rows += [*stretch(601, 733), event(732, "weather", "alarm", "Rain of 11.0 is above 10.", layer="h.1")]
    return [*rows, *stretch(733, steps + 1)]


def hostile(rows=None):
    """Markup and control characters in every string from outside."""

    def infect(value, key=""):
        if isinstance(value, dict):
            more = {HOSTILE: HOSTILE} if key in ("model", "setup", "versions", "row") else {}
            return {name: infect(item, name) for name, item in value.items()} | more
        if isinstance(value, list):
            return [infect(item) for item in value]
        return HOSTILE if isinstance(value, str) and key != "kind" else value

    return [infect(row, "row" if row["kind"] == "log" else "") for row in rows or shaped()]


def hostile_events():
    """The same in events, readings, and quantities and their keys."""
    rows = eventful()
    value = {"title": HOSTILE, "note": HOSTILE, "limit": 1.0}
    layered = {"title": HOSTILE, "per_layer": True}
    rows[0]["quantities"] = {f"{HOSTILE}/{HOSTILE}": value, f"{HOSTILE}/rain": layered}
    for row in rows:
        if row["kind"] == "reading":
            row["values"] = {HOSTILE: row["step"] / 10}
    return hostile(rows)


def bare():
    """A run line alone."""
    return [{"kind": "run", "schema_version": 1}]


def write(folder, rows):
    """A history file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rksp_history.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read(folder, *runs):
    """The histories of these runs, each by way of a file."""
    return [read_history(write(folder / str(place), rows)) for place, rows in enumerate(runs)]
