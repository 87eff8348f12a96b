"""The command line: ``python -m erlang.reactor serve MODULE:CLASS`` and ``... bench HOST PORT``.

It exits with 0 when it was asked to end, with 2 when it was called wrongly or cannot import what it
is to serve, with 1 when something else goes wrong; and says why in one line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import _erlang

PROGRAM = "python -m erlang.reactor"

_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status.

    :param arguments: without the name of the program; by default those of this process.
    """
    _open_standard_streams()
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not hasattr(_erlang, "Server"):
        print(f"{PROGRAM}: this is the Python inside the Erlang VM", file=sys.stderr)
        return 1
    # Each command imports what it needs, and no more.
    match chosen.command:
        case "serve":
            if chosen.unix is not None and (chosen.host, chosen.port) != (None, None):
                parser.error("--unix stands in place of --host and --port")
            from erlang.reactor._serve import serve

            return serve(chosen)
        case "bench":
            from erlang.reactor._bench import bench

            return bench(chosen)
        case _:
            from erlang.reactor._worker import work

            return work(chosen.control)


def _open_standard_streams() -> None:
    """A descriptor 0, 1 or 2 that is closed would be that of the next socket, which then gets what
    somebody prints."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Serves protocols of erlang.reactor without Erlang, and loads such servers.",
    )
    version = f"py_reactor {_erlang.__version__} (Python {sys.version.split()[0]})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve a protocol class", description=_SERVE))
    _add_bench(commands.add_parser("bench", help="load an echo server", description=_BENCH))
    # For the supervisor of workers only, which is why it has no help.
    worker = commands.add_parser("worker")
    worker.add_argument("protocol")
    worker.add_argument("--control", type=int, required=True)
    return parser


_SERVE = """Serves each connection with an object of a class derived from erlang.reactor.Protocol.
Ctrl-C or SIGTERM lets the connections end; the second one closes them at once. Times are in
seconds, or have a unit: 500ms, 30s, 2min."""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "protocol",
        metavar="MODULE:CLASS",
        help="the class, or a callable that returns protocols; searched from the current folder on",
    )
    add("--host", help="address or name to listen on (127.0.0.1)")
    add("--port", type=_number(0, 65535), help="0: any that is free (8000)")
    add("--unix", metavar="PATH", help="listen on a Unix socket instead; @NAME is an abstract one")
    add(
        "--max-connections",
        type=_number(1),
        metavar="N",
        help="open at one time, in each worker; the rest waits (no limit)",
    )
    for name, default, text in (
        ("idle", None, "without a byte in either direction (no limit)"),
        ("handshake", None, "until the protocol says more than 'continue' (no limit)"),
        ("write", 60.0, "in which the peer takes nothing (1min)"),
    ):
        add(f"--{name}-timeout", type=_seconds, default=default, metavar="TIME", help=text)
    add(
        "--shutdown",
        type=_seconds,
        default=5.0,
        metavar="TIME",
        help="that connections have at the end (5s)",
    )
    add(
        "--workers",
        type=_number(1, 1024),
        default=1,
        metavar="N",
        help="processes that share the port (%(default)s)",
    )
    add(
        "--reload",
        action="store_true",
        help="start anew when a file of the program changes; connections end as at a shutdown",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        default="info",
        help="threshold of logging (%(default)s)",
    )


_BENCH = """Sends messages to a server that answers with the same bytes, over many connections, each
of which waits for its answer. The client is this engine itself, in Python: it needs as much of a
core as the server does."""


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("host", metavar="HOST", nargs="?", help="address or name of the server")
    add("port", metavar="PORT", nargs="?", type=_number(1, 65535))
    add("--unix", metavar="PATH", help="a Unix socket, in place of HOST and PORT")
    add("--connections", type=_number(1), default=50, metavar="N", help="(%(default)s)")
    add("--size", type=_number(1, 1 << 26), default=64, metavar="BYTES", help="(%(default)s)")
    add("--duration", type=_seconds, default=5.0, metavar="TIME", help="(5s)")
    add("--json", action="store_true", help="print one line of JSON")


def _number(least: int, most: int = 0x7FFFFFFF) -> type[int]:
    class number(int):  # noqa: N801  argparse calls the type by its name
        def __new__(cls, text: str) -> int:  # type: ignore[misc]
            value = int(text)
            if not least <= value <= most:
                raise argparse.ArgumentTypeError(f"{least} to {most}, not {value}")
            return value

    return number


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|min|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 500ms, 30s, 2min")
    value = float(match[1]) * _UNITS_S[match[2]]
    if not 0.001 <= value <= 2_147_483:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of 1 ms to 24 days")
    return value


def _flush_standard_streams() -> None:
    """What nobody reads any more would make Python exit with status 120, when it tries itself."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


if __name__ == "__main__":
    try:
        status = main()
    finally:
        _flush_standard_streams()
    sys.exit(status)
