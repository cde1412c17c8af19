"""Output for terminals that cannot show every character: a C locale, Windows code pages, undecodable file names.

`speak_plainly` is called once, before anything is printed. What argparse, tqdm, warnings and tracebacks print afterwards uses
characters that the terminal has, and never raises UnicodeEncodeError.
"""

from __future__ import annotations

import codecs
import re
import sys

#: Characters that we print, each with a similar ASCII text; other characters are written as an escape.
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
    """Let stdout and stderr replace characters that they cannot encode."""
    codecs.register_error(_ERRORS, _alike)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a test or a notebook may have replaced the stream
        if reconfigure is not None:
            reconfigure(errors=_ERRORS)


def json_for(text: str, encoding: str | None) -> str:
    """JSON ``text`` for a stream of ``encoding``: unchanged for UTF-8, else in ASCII, which every JSON reader accepts."""
    utf8 = (encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")
    # UTF-8 cannot hold a lone surrogate, which stands for a byte of an undecodable file name.
    return (_SURROGATE if utf8 else _NOT_ASCII).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end].translate(_ALIKE)
    return bad.encode("ascii", "backslashreplace").decode("ascii"), error.end
