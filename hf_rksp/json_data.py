"""JSON as this project writes it (strict, plain types), and access to JSON that may hold anything in any place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(data: Mapping[str, Any]) -> str:
    """Strict JSON, one key and one array a line, so that files stay small and diffs readable."""
    return _lines(data, "\n") + "\n"


def _lines(value: Any, start: str) -> str:
    """``value`` where a line starts with ``start``; arrays without objects in them stay on one line."""
    if isinstance(value, dict) and value:
        inner = start + " "
        rows = (f"{inner}{_compact(name)}: {_lines(item, inner)}" for name, item in value.items())
        return "{" + ",".join(rows) + start + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = start + " "
        return "[" + ",".join(inner + _lines(item, inner) for item in value) + start + "]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def rounded(value: float, digits: int = 6) -> float:
    """``value`` to so many significant digits."""
    return float(f"{value:.{digits}g}")


def plain(value: Any) -> Any:
    """Strict JSON types: tuples to lists, numbers of torch and numpy to plain ones, not finite ones to None, else text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if (found := unboxed(value)) is not value:
        return plain(found)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def unboxed(value: Any) -> Any:
    """A number of torch or numpy as one of Python; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def finite(value: Any) -> float | None:
    """``value`` as a float, or ``None`` where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def section(data: Any, name: str) -> Mapping[str, Any]:
    """``data[name]`` where it is a mapping, else an empty one."""
    found = data.get(name) if isinstance(data, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def items(data: Any, name: str) -> list[Any]:
    """``data[name]`` where it is a list, else an empty one."""
    found = data.get(name) if isinstance(data, Mapping) else None
    return list(found) if isinstance(found, (list, tuple)) else []
