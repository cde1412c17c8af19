"""Errors of the package. Each message names the argument, the value that was given and the remedy."""


class RkspError(Exception):
    """Base of every error that hf_rksp raises on purpose."""


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


class OutputError(RkspError, OSError):
    """A result cannot be written where it was asked for."""


def first_line(error: BaseException) -> str:
    """The first line of somebody else's error, to be quoted in one of ours; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
