"""The dashboard: a protocol that serves one page, its figures and the metrics over HTTP.

The figures are not here. A request for them goes as a message to the Erlang process that keeps
them, and the connection waits, without reading more, until the answer comes as a message.
"""

from __future__ import annotations

import re
import socket
import sys
from base64 import b64encode
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import cast

import erlang
from erlang import reactor
from erlang._http import Refused, Request, answer, refusal, take

__all__ = ["Dashboard"]

_KEEPER = "py_reactor_dashboard"
"""The name of the process that keeps the figures."""

_HEAD_TIMEOUT_S = 10.0
"""For a whole request, from its first byte; the first one from the beginning."""

_IDLE_TIMEOUT_S = 60.0
"""Between two requests. The page sends one every second."""

_KEEPER_TIMEOUT_S = 5.0
"""For the figures. As a rule they take less than a millisecond."""

_SINCE = re.compile(r"run=([0-9]{1,18})&since=([0-9]{1,15})")

_SECURITY = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_NOTHING_LOADS = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))


class Dashboard(reactor.Protocol):
    """One connection of a browser or a scraper.

    Args:
        hosts: what the header field ``Host`` may name besides the loopback names, in lower
            case; an IPv6 address stands in brackets. A page elsewhere, whose own name its
            owner lets point here, could read the figures otherwise (DNS rebinding).
        any_address: whether it may name any IP address. No name of somebody's is one.
    """

    __slots__ = ("_any_address", "_ended", "_hosts", "_input", "_number", "_timed", "_waits")

    def __init__(self, hosts: list[str] | None = None, any_address: bool = False) -> None:
        self._hosts = _LOOPBACK.union(hosts or [])
        self._any_address = any_address
        self._input = bytearray()
        self._ended = False
        self._timed: str | None = None  # what the timeout is for: a head, or silence
        self._number = 0  # of the last question to the keeper
        self._waits: tuple[Request, str] | None = None  # for its answer, of this type

    def connection_made(self, fd: int, client_info: dict[str, object]) -> reactor.Action:
        self._timed = "head"
        self.set_timeout(_HEAD_TIMEOUT_S)
        return "continue"

    def data_received(self, data: bytes) -> reactor.Action:
        self._input += data
        return self._serve("continue")

    def eof_received(self) -> reactor.Action:
        self._ended = True
        return self._serve("close")

    def write_ready(self) -> reactor.Action | None:
        action = super().write_ready()
        return self._serve("read_pending") if action == "read_pending" else action

    def timeout_expired(self) -> reactor.Action:
        if self._waits is not None:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "no figures came in time")
        if self._timed == "head" and self._input:
            return self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
        return "close"

    def message_received(self, message: object) -> reactor.Action:
        """The keeper's answer: ``(number, body)``."""
        number, body = cast("tuple[int, bytes]", message)
        if self._waits is None or number != self._number:
            return "continue"  # It came after its time was over.
        (request, kind), self._waits = self._waits, None
        return self._answer(request, kind, body, _NOTHING_LOADS)

    def _serve(self, otherwise: reactor.Action) -> reactor.Action:
        """Serve the next request, if there is one: the others wait until its answer is sent."""
        try:
            request = take(self._input)
            if request is not None:
                self._timed = None
                return self._route(request)
        except Refused as refused:
            return self._refuse(refused.status, refused.why, *refused.fields)
        if self._ended:
            return "close"
        self._wait_for_request()
        return otherwise

    def _wait_for_request(self) -> None:
        # Each time begins once: a byte now and then does not win more of it.
        if self._input and self._timed != "head":
            self._timed = "head"
            self.set_timeout(_HEAD_TIMEOUT_S)
        elif not self._input and self._timed is None:
            self._timed = "silence"
            self.set_timeout(_IDLE_TIMEOUT_S)

    def _route(self, request: Request) -> reactor.Action:
        if not self._is_known(request.host):
            raise Refused(HTTPStatus.FORBIDDEN, "this Host is not served here")
        if request.path == "/":
            body, policy = _page()
            return self._answer(request, "text/html; charset=utf-8", body, policy)
        if request.path == "/metrics":
            return self._ask(request, "text/plain; version=0.0.4; charset=utf-8", "metrics")
        if request.path == "/data":
            since = _SINCE.fullmatch(request.query or "run=0&since=0")
            if since is None:
                raise Refused(HTTPStatus.BAD_REQUEST, "the query is malformed")
            wanted = ("data", int(since[1]), int(since[2]))
            return self._ask(request, "application/json", wanted)
        body = b"Not Found: there are /, /metrics and /data\n"
        kind = "text/plain; charset=utf-8"
        return self._answer(request, kind, body, _NOTHING_LOADS, HTTPStatus.NOT_FOUND)

    def _is_known(self, host: str | None) -> bool:
        if host is None or host in self._hosts or host.endswith(".localhost"):
            return True
        return self._any_address and _is_address(host)

    def _ask(self, request: Request, kind: str, wanted: object) -> reactor.Action:
        self._number += 1
        try:
            erlang.send(_KEEPER, (wanted, self._number, self.connection))
        except LookupError:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the figures are not there") from None
        self._waits = (request, kind)
        self.set_timeout(_KEEPER_TIMEOUT_S)
        return "pause"

    def _answer(
        self,
        request: Request,
        kind: str,
        body: bytes,
        policy: tuple[str, str],
        status: HTTPStatus = HTTPStatus.OK,
    ) -> reactor.Action:
        self.set_timeout(None)  # Now it is for the listener's write_timeout.
        self.write_buffer += answer(
            status,
            body,
            ("Content-Type", kind),
            policy,
            *_SECURITY,
            head_only=request.method == "HEAD",
            keep_alive=request.keep_alive,
        )
        return "write_pending" if request.keep_alive else "close"

    def _refuse(self, status: HTTPStatus, why: str, *fields: tuple[str, str]) -> reactor.Action:
        self._input.clear()
        self.set_timeout(None)
        refused = Refused(status, why, *fields)
        self.write_buffer += refusal(refused, _NOTHING_LOADS, *_SECURITY)
        return "close"


def _is_address(host: str) -> bool:
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.inet_pton(family, host.removeprefix("[").removesuffix("]"))
    except OSError:
        return False
    return True


@cache
def _page() -> tuple[bytes, tuple[str, str]]:
    """The page, and the policy under which its own style and script run, and nothing else."""
    page = Path(__file__).with_name("_dashboard.html").read_bytes()
    page = page.replace(b"@PYTHON@", sys.version.split()[0].encode("ascii"))
    style, script = (_hash(page, tag) for tag in (b"style", b"script"))
    policy = (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, ("Content-Security-Policy", policy)


def _hash(page: bytes, tag: bytes) -> str:
    start = page.index(b"<%s>" % tag) + len(tag) + 2
    content = page[start : page.index(b"</%s>" % tag, start)]
    return f"'sha256-{b64encode(sha256(content).digest()).decode('ascii')}'"
