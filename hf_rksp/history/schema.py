"""The rows of ``rksp_history.jsonl``, schema 2: one strict-JSON object per line, appended as the run goes, never rewritten.

    {"kind": "run", "schema_version": 2, "attempt": 0, "model": .., "setup": .., "versions": .., "quantities": {..}}
    {"kind": "log", "step": 10, "loss": ..}
    {"kind": "reading", "monitor": "spectrum", "step": 500, "values": {"near_unit_mass/max": ..}, "layers": [..]}
    {"kind": "event", "step": 612, "by": "guard", "what": "alarm", "layer": "h.7", "text": "one sentence"}
    {"kind": "event", "step": 500, "by": "run", "what": "resume", "to": 500, "attempt": 1, "text": ".."}

``quantities`` describes what the readings hold (`hf_rksp.quantities.Quantity.description`): ``spectrum/near_unit_mass/max`` is the
entry of ``values``, and ``spectrum/near_unit_mass`` with ``per_layer`` the entry of each row of ``layers``. An event that has
``to`` goes back to that step: what came after it belongs to an abandoned attempt. A reader keeps kinds that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NoReturn

from hf_rksp.quantities import SPECTRUM, Quantity, over_layers

FILE_NAME = "rksp_history.jsonl"
SCHEMA_VERSION = 2
Row = Mapping[str, Any]


class Kind(StrEnum):
    """What a row holds."""

    RUN = "run"  # what is trained, how, and what is measured; the first row, and one per resume
    LOG = "log"  # what Trainer logged at a step
    READING = "reading"  # what a monitor measured at a step
    EVENT = "event"  # what happened at a step


def parse(raw: bytes) -> dict[str, Any]:
    """One line as a row of schema 2; a ``profile`` of schema 1 becomes a reading.

    Raises:
        json.JSONDecodeError, UnicodeDecodeError: the line is not JSON. ValueError: it is JSON, and no row.
    """
    row = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        raise ValueError("it has no kind")
    kind = row["kind"]
    if kind == Kind.RUN:
        return row | ({"quantities": _FIRST_QUANTITIES} if row.get("schema_version") == 1 else {})
    step = row.get("step")
    known = kind in (*Kind, "profile")
    if known and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53):
        raise ValueError(f"step={str(step)[:40]}: pass a whole number of at least 0 and below 2^53")
    if kind == "profile":
        row = row | {"kind": Kind.READING.value, "monitor": _FIRST}
    if row["kind"] == Kind.READING:
        layers = row.setdefault("layers", [])
        if not (isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers)):
            raise ValueError("layers has to be a list of objects")
        if not isinstance(row.get("monitor"), str):
            raise ValueError("a reading names no monitor")
        if not isinstance(row.setdefault("values", over_layers(layers)), dict):
            raise ValueError("values has to be an object")
    return row


def refusal(version: object) -> str | None:
    """Why a run of this ``schema_version`` cannot be read; ``None`` if it can."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        return f"schema_version={version!r}, and this release reads 1 to {SCHEMA_VERSION}"
    if version > SCHEMA_VERSION:
        return f"schema_version={version} is of a newer release, and this one reads 1 to {SCHEMA_VERSION}; install the newer one"
    return None


def described(monitor: str, quantities: Iterable[Quantity]) -> dict[str, dict[str, Any]]:
    """The ``quantities`` of a monitor as the run row has them."""
    return {f"{monitor}/{quantity.key}": quantity.description() for quantity in quantities}


#: The one monitor that wrote rows of schema 1.
_FIRST = "spectrum"
_FIRST_QUANTITIES = described(_FIRST, SPECTRUM)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")
