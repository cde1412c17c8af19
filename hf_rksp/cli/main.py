"""``rksp``: parse the arguments, run one command, turn errors into messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from hf_rksp import __version__
from hf_rksp.cli import audit, check, compare, doctor, env, exit_codes, report, risk, timeline, watch, zoo
from hf_rksp.cli.terminal import speak_plainly
from hf_rksp.errors import OutputError, RkspError

_COMMANDS = (risk, audit, check, compare, report, timeline, watch, doctor, zoo, env)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="rksp",
        description="Spectral profile of a transformer's residual blocks (residual Koopman spectral profiling).",
        epilog=exit_codes.EPILOG + "\nexample:\n  rksp audit --init gpt2 --seed 42\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rksp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rksp`` with ``argv`` (default: the process's own) and return its exit code."""
    speak_plainly()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            args = build_parser().parse_args(arguments)
            args.argv = arguments
            code = int(args.run(args))
        except SystemExit as stop:  # argparse exits by itself: 0 after --help, 2 for bad arguments
            code = int(stop.code or 0)
        sys.stdout.flush()  # here, so that a closed pipe or a full disk gives a message and not a traceback
        return code
    except OutputError as error:
        return _say(error, exit_codes.FAILED)
    except RkspError as error:
        return _say(error, exit_codes.BAD_INPUT)
    except KeyboardInterrupt:
        print("\nrksp: interrupted; no report was written", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (`rksp ... | head`): nobody would read a message.
        _drop_stdout()
        return exit_codes.FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_stdout()
        return _say(OutputError(f"stdout cannot be written: {error.strerror}"), exit_codes.FAILED)
    except Exception:
        traceback.print_exc()
        print(
            "rksp: this is a defect in hf_rksp; please report it with the lines above and the output of `rksp env`",
            file=sys.stderr,
        )
        return exit_codes.FAILED


def entry_point() -> None:
    """Console script.

    An interrupted run does not wait for its threads, because a LAPACK call cannot be interrupted. A run of several processes does
    not wait either: threads of a process group sometimes abort a process that is ending, although all results are written.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if code == exit_codes.INTERRUPTED or os.environ.get("WORLD_SIZE", "1") != "1":
        os._exit(code)
    sys.exit(code)


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not fail a second time."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error: RkspError, code: int) -> int:
    print(f"rksp: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry_point()
