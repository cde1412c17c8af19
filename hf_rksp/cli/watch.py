"""``rksp watch``: the page of a training run while it goes on."""

from __future__ import annotations

import argparse
from typing import Any

from hf_rksp.cli import exit_codes
from hf_rksp.cli.options import new_parser
from hf_rksp.cli.output import say_note
from hf_rksp.errors import InputError

#: Port unless another one is asked for; if it is taken, any free one.
_PORT = 8763


def add_parser(commands: Any) -> None:
    """Add the command and its options."""
    parser = new_parser(
        commands,
        "watch",
        "show a training run while it goes on",
        "Serve the page of a run at 127.0.0.1 and keep it up to date until Ctrl-C. At the end of the run it equals "
        "rksp_report.html. Only new lines of the history are read, and nothing is written. Every user of this machine can open it.",
        "rksp watch out/my_run",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="output_dir of a run, or a .jsonl history; several share the axes. The folder may still be empty",
    )
    parser.add_argument(
        "--port", type=int, default=None, metavar="N", help=f"port (default: {_PORT}, or any free one if it is taken)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from hf_rksp.report.run.live import LivePage
    from hf_rksp.report.run.server import LiveServer

    page = LivePage(args.runs)
    try:
        server = LiveServer(page, _PORT if args.port is None else args.port)
    except InputError:
        if args.port is not None:
            raise
        server = LiveServer(page, 0)
        say_note(f"port {_PORT} is taken")
    port = server.server_address[1]
    with server:
        print(f"watching {', '.join(str(run.path) for run in page.runs)}: {server.address} (Ctrl-C ends)", flush=True)
        print(f"from another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, then the same address", flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say_note("stopped; training is not affected")
    return exit_codes.OK
