"""What settings are checked for, and how a setting says what the command line shows."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

from hf_rksp.errors import InputError


def require_positive(name: str, value: float) -> None:
    """Raise `InputError` unless ``value`` is a finite number above zero."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number above zero")


def require_whole(name: str, value: int, least: int, remedy: str = "") -> None:
    """Raise `InputError` unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: {remedy or f'pass a whole number of at least {least}'}")


def require_flag(name: str, value: bool) -> None:
    """Raise `InputError` unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}: pass True or False")


def require_kind(name: str, value: object, kind: type, remedy: str) -> None:
    """Raise `InputError` unless ``value`` is a ``kind`` or ``None``."""
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name}={str(value)[:100]!r}: pass {remedy}")


def switched(name: str, given: Any, default: Any, kind: type, remedy: str = "") -> Any:
    """Settings: ``default`` for ``None``, ``None`` for ``False``, a fresh ``kind`` for ``True``, else what was given.

    Raises:
        InputError: it is no ``kind``; ``remedy`` says what to pass instead.
    """
    if given is None or given is False:
        return default if given is None else None
    if given is True:
        return kind()
    require_kind(name, given, kind, remedy or f"{kind.__name__}(...), or False for none")
    return given


def require_not_negative(name: str, value: float) -> None:
    """Raise `InputError` unless ``value`` is a finite number of at least zero."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value!r}: it has to be a finite number, zero or more")


def setting(default: Any, text: str) -> Any:
    """A field with the help that the command line shows for it."""
    return field(default=default, metadata={"help": text})
