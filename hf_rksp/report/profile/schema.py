"""``report.json``: a profile and its verdict as plain, strict JSON, with a schema version.

Numbers that are not finite, or not defined for a layer, are ``null``. Eigenvalues and residuals are rounded to six
significant digits, which is far below their standard errors; everything else is written as computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from hf_rksp.audit import Audit
from hf_rksp.errors import SchemaError
from hf_rksp.json_data import plain, rounded
from hf_rksp.profile.layer import LayerProfile
from hf_rksp.profile.model import ModelProfile
from hf_rksp.quantities import QUANTITIES
from hf_rksp.risk.thresholds import Check, Verdict
from hf_rksp.spectral import KreissBracket, Masses

SCHEMA_VERSION = 2
_FACTS = ("model", "setup", "layers", "aggregates", "thirds", "cost", "notes")


def audit_to_dict(audit: Audit) -> dict[str, Any]:
    """Plain JSON types, in a fixed order: schema_version, profile, verdict."""
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": profile_to_dict(audit.profile),
        "verdict": plain(asdict(audit.verdict)),
    }


def profile_to_dict(profile: ModelProfile) -> dict[str, Any]:
    """Plain JSON types, in a fixed order: model, setup, layers, aggregates, thirds, cost, notes."""
    facts = {name: getattr(profile, name) for name in _FACTS}
    facts["layers"] = [_layer_to_dict(layer) for layer in profile.layers]
    plain_facts: dict[str, Any] = plain(facts)
    return plain_facts


def audit_from_dict(data: object) -> Audit:
    """What `audit_to_dict` wrote; ``null`` numbers come back as NaN.

    Raises:
        SchemaError: not a report, or of another schema version.
    """
    if not isinstance(data, Mapping) or "schema_version" not in data:
        raise SchemaError("this is not an hf_rksp report: it has no schema_version; pass a report.json of `rksp audit`")
    check_version(data)
    if data.get("kind"):
        raise SchemaError(
            f"this is a report {data['kind']}, as the zoo keeps of further seeds: pass the report.json of the same folder"
        )
    missing = [name for name in ("profile", "verdict") if not isinstance(data.get(name), Mapping)]
    missing += [f"profile.{name}" for name in _FACTS if not missing and name not in data["profile"]]
    if missing:
        raise SchemaError(
            f"the report has no {', '.join(missing)}: the file is cut short or was edited; run `rksp audit` again"
        )
    try:
        return Audit(profile_from_dict(data["profile"]), _verdict_from_dict(data["verdict"]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise SchemaError(f"the report does not fit schema {SCHEMA_VERSION}: {error}; run `rksp audit` again") from None


def check_version(data: object) -> None:
    """Raise `SchemaError` unless ``data`` is the dict of a report of this schema version."""
    found = data.get("schema_version") if isinstance(data, Mapping) else type(data).__name__
    if found != SCHEMA_VERSION or isinstance(found, bool):
        raise SchemaError(
            f"schema_version={found!r}: this release reads {SCHEMA_VERSION}; run `rksp audit` again, or install the release of "
            "hf_rksp that the report names under setup.versions"
        )


def profile_from_dict(data: Mapping[str, Any]) -> ModelProfile:
    """The profile that `profile_to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not whole.
    """
    for name in QUANTITIES:
        data["aggregates"][name]["mean"], data["aggregates"][name]["standard_error"]
    for name in ("name", "class", "parameters"):
        data["model"][name]
    if not data["layers"]:
        raise ValueError("it has no layers")
    return ModelProfile(
        model=dict(data["model"]),
        setup=dict(data["setup"]),
        layers=tuple(_layer_from_dict(layer) for layer in data["layers"]),
        aggregates={name: _numbers(row) for name, row in data["aggregates"].items()},
        thirds={name: _numbers(row) for name, row in data["thirds"].items()},
        cost=dict(data["cost"]),
        notes=tuple(data["notes"]),
    )


def _verdict_from_dict(data: Mapping[str, Any]) -> Verdict:
    verdict = dict(data)
    verdict["checks"] = tuple(Check(**check | {"layers": tuple(check["layers"])}) for check in verdict["checks"])
    for name in ("reasons", "conditions"):
        verdict[name] = tuple(verdict[name])
    verdict["interval"] = tuple(verdict["interval"]) if verdict["interval"] else None
    return Verdict(**verdict)


def _layer_to_dict(layer: LayerProfile) -> dict[str, Any]:
    fields = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
    fields["filtered_masses"] = asdict(layer.filtered_masses)
    fields["kreiss_constant"] = asdict(layer.kreiss_constant)
    fields["eigenvalues"] = [[rounded(value.real), rounded(value.imag)] for value in layer.eigenvalues.tolist()]
    fields["residuals"] = [rounded(value) for value in layer.residuals.tolist()]
    return fields


def _layer_from_dict(data: Mapping[str, Any]) -> LayerProfile:
    fields = _numbers(data)
    fields["filtered_masses"] = Masses(**_numbers(data["filtered_masses"]))
    fields["kreiss_constant"] = KreissBracket(**_numbers(data["kreiss_constant"]))
    values = [complex(*pair) for pair in data["eigenvalues"]]
    fields["eigenvalues"] = torch.tensor(values, dtype=torch.complex128)
    fields["residuals"] = torch.tensor([math.inf if r is None else r for r in data["residuals"]], dtype=torch.float64)
    fields["standard_errors"] = _numbers(data["standard_errors"])
    fields["replicates"] = {
        name: [math.nan if value is None else value for value in values] for name, values in data["replicates"].items()
    }
    fields["intervals"] = {
        name: tuple(math.nan if end is None else end for end in pair) for name, pair in data["intervals"].items()
    }
    return LayerProfile(**fields)


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        name: math.nan if value is None and name != "interval" else value for name, value in row.items()
    }
    if numbers.get("interval"):
        numbers["interval"] = tuple(numbers["interval"])
    return numbers
