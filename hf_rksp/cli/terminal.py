"""Terminals that do not take every sign: a C locale, the code pages of Windows, names of files that are no text.

`speak_plainly` is called once, before anything is printed; whatever is printed afterwards, by argparse, tqdm, warnings
or tracebacks too, comes out in signs that the terminal has, and never as a UnicodeEncodeError.
"""

from __future__ import annotations

import codecs
import re
import sys

#: Signs of ours with something that looks alike in ASCII; others are written as an escape.
_ALIKE = str.maketrans(
    {
        "±": "+/-", "–": "-", "—": "-", "−": "-", "‑": "-", "⁻": "-", "─": "-", "×": "x", "·": ".", "•": "*", "…": "...",
        "→": "->", "←": "<-", "≥": ">=", "≤": "<=", "≈": "~", "∞": "inf", "√": "sqrt", "│": "|", "█": "#",
        "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "\u00a0": " ", "\u202f": " ",
        "κ": "kappa", "ρ": "rho", "η": "eta", "λ": "lambda", "σ": "sigma", "τ": "tau",
    }
)  # fmt: skip
_ERRORS = "hf_rksp.alike"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def speak_plainly() -> None:
    """Let stdout and stderr write what they cannot encode in other signs."""
    codecs.register_error(_ERRORS, _alike)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(
            stream, "reconfigure", None
        )  # a test, a notebook or a service may have put another in place
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def json_for(text: str, encoding: str | None) -> str:
    """JSON ``text`` for a stream of ``encoding``: UTF-8 as it is, else in ASCII, which every reader of JSON takes."""
    utf8 = (encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")
    # Half a character, as in a file name that is no text, is nothing that UTF-8 can hold.
    return (_SURROGATE if utf8 else _NOT_ASCII).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end].translate(_ALIKE)
    return bad.encode("ascii", "backslashreplace").decode("ascii"), error.end
