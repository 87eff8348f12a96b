"""The way between the suite and a world: a stream of lines of JSON, beside the reactor.

What protocols do is told as it happens, by whatever thread. What the suite asks for is a function
of one of the modules here; each request has a thread of its own, so that one may wait
while others do not.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["serve_requests", "tell"]

_suite = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
# One line at a time, in the order of what happened.
_writing = threading.Lock()


def tell(what: str, of: int | None = None, **more: Any) -> None:
    """Says that something has happened.

    Args:
        what: a word for it.
        of: the serial number of the protocol that it happened to.
    """
    _send({"what": what, "of": of, "thread": threading.get_ident(), "more": more})


def serve_requests(path: str, functions: dict[str, Callable[..., Any]]) -> None:
    """Connects to the suite, which listens at `path`, and obeys it from now on."""
    _suite.connect(path)
    threading.Thread(target=_serve, args=(functions,), name="suite", daemon=True).start()


def _serve(functions: dict[str, Callable[..., Any]]) -> None:
    with _suite.makefile("rb") as lines:
        for line in lines:
            request = json.loads(line)
            threading.Thread(target=_obey, args=(functions, request), daemon=True).start()


def _obey(functions: dict[str, Callable[..., Any]], request: dict[str, Any]) -> None:
    answer: dict[str, Any]
    try:
        answer = {"value": functions[request["function"]](*request["arguments"])}
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    _send({"answer": request["id"], **answer})


def _send(message: dict[str, Any]) -> None:
    line = json.dumps(message, default=repr).encode() + b"\n"
    with _writing:
        _suite.sendall(line)
