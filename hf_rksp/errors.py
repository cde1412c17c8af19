"""Errors of the package. Each message names the argument, the value that was given and the remedy."""

import traceback
from pathlib import Path

#: Characters of somebody else's error that are quoted: some list every weight of a model.
_LONGEST = 700
#: Characters of a whole message: a name in a broken file can be as long as the file.
_MOST = 4000
#: Exit code of a script whose run the guard has stopped.
STOPPED = 6


class RkspError(Exception):
    """Base of every error that hf_rksp raises on purpose."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(f"{arg[:_MOST]} ..." if isinstance(arg, str) and len(arg) > _MOST else arg for arg in args))


class InputError(RkspError, ValueError):
    """An argument, a text or a file is not what the call needs."""


class NonFiniteError(RkspError, ValueError):
    """NaN or inf reached a statistic; nothing of the offending batch was added."""


class TooFewTokensError(RkspError, ValueError):
    """The tokens at hand cannot determine the operator that was asked for."""


class DegenerateMomentsError(RkspError, ValueError):
    """The states do not vary, so there is no direction to whiten."""


class CaptureError(RkspError, RuntimeError):
    """The residual blocks of a model were not found, or did not run."""


class ModelLoadError(RkspError, RuntimeError):
    """A model, its configuration or its tokenizer cannot be loaded."""


class SchemaError(RkspError, ValueError):
    """A report file has another schema version, or is not a report."""


class RunStoppedError(RkspError, SystemExit):
    """The guard has ended a run that failed and could not be saved.

    It is a `SystemExit` too: a script that does not catch it ends with exit code 6, which no error of Python has.
    """

    code: int

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = STOPPED


class OutputError(RkspError, OSError):
    """A result cannot be written where it was asked for."""


def cause_of(error: BaseException) -> str:
    """Somebody else's error in full, on one line, to be quoted in one of ours.

    Validators put the cause below a heading, and wrappers into the error that theirs comes from: both are in it. An error
    that says nothing by itself, a missing key for instance, comes with its type and its line of code.
    """
    text = _one_line(error)
    inner = error.__cause__
    if inner is not None and (below := _one_line(inner)) not in text:
        text = f"{text} ({below})"
    return text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + " ..."


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".:")
    if text and not isinstance(error, (LookupError, AttributeError)):
        return text
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].line:
        return text
    return f"{text} at `{frames[-1].line}` ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


#: The name that training/ knows it by.
first_line = cause_of
