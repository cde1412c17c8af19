"""Somebody else's error, quoted in one of ours: in full, on one line."""

from hf_rksp.errors import InputError, OutputError, RunStoppedError, SchemaError, cause_of


def caught(function):
    try:
        function()
    except Exception as error:
        return cause_of(error)
    raise AssertionError("nothing was raised")


def test_every_line_counts():
    assert (
        cause_of(ValueError("Validation error:\n   ValueError: 5 heads.\n")) == "Validation error: ValueError: 5 heads"
    )


def test_an_error_that_says_nothing_comes_with_its_code():
    table = {}
    text = caught(lambda: table["mine"])
    assert text.startswith("KeyError: 'mine' at `text = caught(lambda: table[\"mine\"])` (test_errors.py, line ")
    assert cause_of(ValueError()) == "ValueError"


def test_a_wrapper_says_what_it_wraps():
    def wrapped():
        try:
            raise ValueError("line 3 is cut short")
        except ValueError as error:
            raise OSError("cannot load the file.") from error

    assert caught(wrapped) == "cannot load the file (line 3 is cut short)"


def test_long_errors_are_cut():
    assert len(cause_of(ValueError("weight " * 5000))) < 800


def test_a_message_is_never_as_long_as_a_file():
    for kind in (InputError, SchemaError, OutputError, RunStoppedError):
        text = str(kind("a name " + "[" * 100_000))
        assert text.startswith("a name [[") and text.endswith(" ...") and len(text) < 4100
    assert str(InputError("short")) == "short" and OutputError("short").args == ("short",)
