"""What goes to stdout (results) and to stderr (progress), and small tables for the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_rksp.cli.terminal import json_for
from hf_rksp.errors import OutputError


def progress(quiet: bool) -> Callable[[str], None]:
    """A function that prints its text to stderr as progress; with ``quiet``, one that prints nothing."""
    return (lambda text: None) if quiet else (lambda text: print(f"rksp: {text} ...", file=sys.stderr, flush=True))


def say_note(note: str) -> None:
    """Print a note about the result to stderr, with ``--quiet`` too: that option is about progress alone."""
    print(f"rksp: note: {note}", file=sys.stderr, flush=True)


def hush_libraries() -> None:
    """Switch off the notices and progress bars of the libraries; our own warnings remain."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets is loaded later, if a dataset is read
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def check_json_target(target: str | None) -> None:
    """Refuse a ``--json`` file that cannot be written, before any work starts.

    Raises:
        OutputError: its folder is missing or not writable, or it is a folder.
    """
    if target in (None, "-"):
        return
    path = Path(target)
    if path.is_dir() or not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise OutputError(f"--json {target}: cannot be written; pass a file in a writable folder, or -")


def write_json(data: Any, target: str) -> None:
    """Write strict JSON to stdout (``-``) or to a file, which is moved into place when complete."""
    from hf_rksp.files import put_file
    from hf_rksp.json_data import dumps, plain

    text = data if isinstance(data, str) else dumps(plain(data))
    if target == "-":
        sys.stdout.write(json_for(text, sys.stdout.encoding))
        sys.stdout.flush()
        return
    try:
        put_file(Path(target), json_for(text, "utf-8").encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"--json {target}: cannot be written ({error.strerror}); pass a file in a writable folder, or -"
        ) from None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column is aligned left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three significant digits; an en dash if the number is not defined."""
    return "–" if value is None or value != value else f"{value:.3g}"
