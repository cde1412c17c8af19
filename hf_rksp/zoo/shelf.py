"""Reads zoo_reports: models, the audits of their seeds, and failures.

zoo_reports/ID/model.json    the entry of the model in its manifest
zoo_reports/ID/report.json   the audit of its first seed, eigenvalues to four digits
zoo_reports/ID/seed-N.json   the audits of the other seeds, without eigenvalues
zoo_reports/ID/risk.json     the forecast of its first seed, or why there is none
zoo_reports/failures/        audits that failed
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_rksp.errors import InputError, SchemaError
from hf_rksp.json_data import finite, plain, rounded, section
from hf_rksp.profile.layer import interval as student_interval
from hf_rksp.report.kit.reading import layers_of
from hf_rksp.report.profile.schema import check_version
from hf_rksp.zoo.manifest import ZooModel

FAILURES = "failures"
#: Significant digits of stored eigenvalues and residuals.
DIGITS = 4
#: Most of the size of a report; only its figures need them.
_HEAVY = ("eigenvalues", "residuals", "replicates")


@dataclass(frozen=True)
class Entry:
    """A model of the zoo with its audits.

    Attributes:
        model: from the manifest.
        reports: seed -> report's dict. The first seed's has eigenvalues; without that one the others are left out too.
        failures: failed audits of the other seeds.
        risk: the JSON of ``rksp risk``, or its ``status`` and ``reasons`` if nothing was measured; ``None`` before it ran.
    """

    model: ZooModel
    reports: Mapping[int, Mapping[str, Any]]
    failures: tuple[Mapping[str, Any], ...]
    risk: Mapping[str, Any] | None = None

    @property
    def report(self) -> Mapping[str, Any] | None:
        """The whole report of the first seed, if there is one."""
        return self.reports.get(self.model.seeds[0])

    @property
    def profiles(self) -> dict[int, Mapping[str, Any]]:
        """Seed -> the facts of its report."""
        return {seed: report["profile"] for seed, report in self.reports.items()}

    @property
    def profile(self) -> Mapping[str, Any] | None:
        """The facts of the first seed, if there are any."""
        return self.profiles.get(self.model.seeds[0])

    def values(self, quantity: str, third: str | None = None) -> list[float]:
        """The quantity in each seed: mean over the layers, or over a third of the depth."""
        values = [
            finite(
                section(data["aggregates"], quantity).get("mean")
                if third is None
                else section(data["thirds"], third).get(quantity)
            )
            for data in self.profiles.values()
        ]
        return [value for value in values if value is not None]

    def _complete(self, quantity: str, third: str | None) -> list[float]:
        """The values; none if one seed has none, because the mean over the others would favour well-behaved seeds."""
        values = self.values(quantity, third)
        return values if len(values) == len(self.reports) else []

    def mean(self, quantity: str, third: str | None = None) -> float | None:
        """Mean over the seeds; ``None`` if one has no value."""
        values = self._complete(quantity, third)
        return statistics.fmean(values) if values else None

    def deviation(self, quantity: str, third: str | None = None) -> float | None:
        """Standard deviation over the seeds; needs two, and that each has a value."""
        values = self._complete(quantity, third)
        return statistics.stdev(values) if len(values) > 1 else None

    def interval(self, quantity: str) -> tuple[float, float] | None:
        """95% interval of the mean over seeds; needs two, and that each has a value."""
        return interval(self._complete(quantity, None), quantity)


@dataclass(frozen=True)
class Shelf:
    """All entries, by family in the order of the manifests."""

    folder: Path
    entries: tuple[Entry, ...]

    @property
    def families(self) -> dict[str, list[Entry]]:
        """Family -> its entries."""
        families: dict[str, list[Entry]] = {}
        for entry in self.entries:
            families.setdefault(entry.model.family, []).append(entry)
        return families


def result_path(folder: Path, model: ZooModel, seed: int) -> Path:
    """The file of the audit of a seed."""
    return folder / model.id / ("report.json" if seed == model.seeds[0] else f"seed-{seed}.json")


def risk_path(folder: Path, model: ZooModel) -> Path:
    """The file of the forecast of a model."""
    return folder / model.id / "risk.json"


def failure_path(folder: Path, model: ZooModel, seed: int) -> Path:
    """The file of a failed audit; it exists until the audit succeeds."""
    return folder / FAILURES / f"{model.id}-{seed}.json"


def describe_model(model: ZooModel) -> dict[str, Any]:
    """``model.json``."""
    return plain(asdict(model))  # type: ignore[no-any-return]


def shortened(data: Mapping[str, Any]) -> dict[str, Any]:
    """A report's dict with eigenvalues and residuals to four digits: enough for figures, and a third smaller."""

    layers = [
        {
            **layer,
            "eigenvalues": [[rounded(part, DIGITS) for part in pair] for pair in layer["eigenvalues"]],
            "residuals": [None if value is None else rounded(value, DIGITS) for value in layer["residuals"]],
        }
        for layer in layers_of(data["profile"])
    ]
    setup = {**data["profile"]["setup"], "eigenvalue_digits": DIGITS}
    return {**data, "profile": {**data["profile"], "setup": setup, "layers": layers}}


def without_spectrum(data: Mapping[str, Any]) -> dict[str, Any]:
    """A report's dict without the parts that only figures need."""
    layers = [
        {name: value for name, value in layer.items() if name not in _HEAVY} for layer in layers_of(data["profile"])
    ]
    return {**data, "kind": "without eigenvalues", "profile": {**data["profile"], "layers": layers}}


def read_shelf(folder: Path, models: tuple[ZooModel, ...]) -> Shelf:
    """The stored audits of ``models``.

    Raises:
        InputError: the folder is missing. SchemaError: a file is not a report.
    """
    if not folder.is_dir():
        raise InputError(f"folder={str(folder)!r} does not exist: pass the zoo_reports of a clone")
    entries = []
    for model in models:
        audits = {seed: data for seed in model.seeds if (data := read_result(folder, model, seed))}
        if model.seeds[0] not in audits:
            audits = {}  # the page of a model is that of its first seed
        paths = [failure_path(folder, model, seed) for seed in model.seeds]
        failures = tuple(_failure(path) for path in paths if path.is_file())
        entries.append(Entry(model, audits, failures, read_risk(folder, model)))
    return Shelf(folder, tuple(entries))


def read_result(folder: Path, model: ZooModel, seed: int) -> Mapping[str, Any] | None:
    """The audit of a seed; ``None`` without one.

    Raises:
        SchemaError: the file is not a report.
    """
    path = result_path(folder, model, seed)
    return _read(path) if path.is_file() else None


def read_risk(folder: Path, model: ZooModel) -> Mapping[str, Any] | None:
    """The forecast of a model; ``None`` without one.

    Raises:
        SchemaError: the file is not a forecast.
    """
    path = risk_path(folder, model)
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for name in ("status", "reasons", "command"):
            data[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: not the JSON of `rksp risk` ({error}); delete it and run `rksp zoo risk` again"
        ) from None
    return data  # type: ignore[no-any-return]


def _failure(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(data[name]) for name in ("id", "seed", "error", "date")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: not a failure written by the runner ({error}); delete it and run the manifest again"
        ) from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        check_version(data)
        for name in ("model", "setup", "layers", "aggregates", "thirds", "cost"):
            data["profile"][name]
        data["verdict"]["band"]
    except (SchemaError, OSError, ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            f"{path}: not a report of `rksp audit` ({error}); delete it and run the manifest again"
        ) from None
    return data  # type: ignore[no-any-return]


def interval(values: list[float], quantity: str) -> tuple[float, float] | None:
    """95% interval of the mean over seeds, Student's t, within the limits of the quantity; needs two seeds."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    return student_interval(quantity, statistics.fmean(values), error, len(values))
