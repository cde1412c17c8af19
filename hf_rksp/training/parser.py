"""Command lines with a YAML file behind them: ``--config run.yaml --learning_rate 1e-3``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.hf_argparser import DataClassType, HfArgumentParser

from hf_rksp.errors import InputError


def parse_arguments(
    types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[Any, ...]:
    """One instance of each dataclass of ``types``; what is on the command line wins over what is in ``--config FILE``.

    Args:
        types: dataclasses, as for ``HfArgumentParser``.
        argv: arguments, those of the process without it.
        description: shown by ``--help``.

    Raises:
        InputError: the file is not there, is no YAML mapping, or names an argument that does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    file = first.parse_known_args(argv)[0].config
    parser = HfArgumentParser([DataClassType(kind) for kind in types], description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these arguments; the command line wins")
    if file:
        known = {action.dest for action in parser._actions}
        settings = _read(file)
        if unknown := [name for name in settings if name not in known]:
            raise InputError(f"--config {file}: there is no argument {unknown[0]!r}; see --help")
        for action in parser._actions:
            action.required = action.required and action.dest not in settings
        # As text where argparse has a type, so that 1e-3 in YAML, which is a string there, becomes a number.
        parser.set_defaults(**{name: str(v) if isinstance(v, (int, float, str)) else v for name, v in settings.items()})
    return parser.parse_args_into_dataclasses(argv)[: len(types)]


def _read(file: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"--config {file}: cannot be read as YAML ({error}); pass a file of `name: value` lines"
        ) from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {file}: it has to be a mapping, `name: value` lines")
    return settings
