"""HTTP/1.0 and 1.1 without bodies: a strict parser for GET and HEAD, and answers to them.

Strict, as it faces whatever finds the port: what RFC 9112 lets a server refuse is refused, and
whatever follows a refused request is never looked at, so that nobody can smuggle anything.
"""

from __future__ import annotations

import re
import time
from http import HTTPStatus
from typing import NamedTuple

MAX_HEAD_BYTES = 8192
"""Request line and header fields of one request. Browsers send some hundred bytes."""

MAX_FIELDS = 64
"""Header fields of one request."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%s) ([!-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_FIELD = re.compile(rb"(%s):[ \t]*([\t -~\x80-\xff]*?)[ \t]*" % _TOKEN)
_ABSOLUTE = re.compile(rb"http://([^/?#]*)([^#]*)", re.IGNORECASE)
_ORIGIN = re.compile(rb"/[^#]*")
_AUTHORITY = re.compile(rb"([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# What no head can hold: a control character, or half of a line end. The last byte may be the
# first half of one.
_FORBIDDEN = re.compile(rb"[^\t\r\n -~\x80-\xff]|(?<!\r)\n|\r(?!\n|\Z)")

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_PLAIN = "text/plain; charset=utf-8"


class Refused(Exception):
    """A request that is answered with an error, after which the connection is closed."""

    def __init__(self, status: HTTPStatus, why: str, *fields: tuple[str, str]) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.fields = fields


class Request(NamedTuple):
    """A request without a body."""

    method: str
    """``GET`` or ``HEAD``."""
    path: str
    """What stands before the ``?``, as it was sent."""
    query: str
    """What stands after it; empty if nothing does."""
    host: str | None
    """The host that was asked for, in lower case and without port; None in HTTP/1.0."""
    keep_alive: bool
    """Whether the client expects that the connection stays open."""


def take(buffer: bytearray) -> Request | None:
    """Take one request off the start of `buffer`.

    Returns:
        None if it is not complete yet.

    Raises:
        Refused: it never will be one.
    """
    while buffer.startswith(b"\r\n"):  # RFC 9112, section 2.2
        del buffer[:2]
    end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 4)
    head = bytes(buffer[: MAX_HEAD_BYTES + 1 if end < 0 else end + 2])
    if _FORBIDDEN.search(head):
        raise Refused(HTTPStatus.BAD_REQUEST, "not HTTP")
    if end < 0:
        if len(head) > MAX_HEAD_BYTES:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large")
        return None
    del buffer[: end + 4]
    line, *fields = head[:-2].split(b"\r\n")
    return _request(line, fields)


def answer(
    status: HTTPStatus,
    body: bytes,
    *fields: tuple[str, str],
    head_only: bool = False,
    keep_alive: bool = True,
) -> bytes:
    """An answer, complete with its body unless it answers a HEAD."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {_date()}",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + body


def refusal(refused: Refused, *fields: tuple[str, str], head_only: bool = False) -> bytes:
    """The answer to a request that is refused."""
    return answer(
        refused.status,
        f"{refused.status.phrase}: {refused.why}\n".encode(),
        ("Content-Type", _PLAIN),
        *refused.fields,
        *fields,
        head_only=head_only,
        keep_alive=False,
    )


def _date() -> str:
    now = time.gmtime()  # Not by strftime, which speaks the language of the locale.
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    clock = f"{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
    return f"{day}, {now.tm_mday:02} {month} {now.tm_year} {clock} GMT"


def _request(line: bytes, lines: list[bytes]) -> Request:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the request line is malformed")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and 1.1")
    persistent = minor != b"0"
    fields = _fields(lines)
    _refuse_body(fields)
    host = _only(fields, b"host")
    if host is None and persistent:
        raise Refused(HTTPStatus.BAD_REQUEST, "no Host")
    if method not in (b"GET", b"HEAD"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ("Allow", "GET, HEAD"))
    authority, target = _split(target, host)
    path, _, query = target.decode("ascii").partition("?")
    options = b",".join(fields.get(b"connection", [])).lower().split(b",")
    options = [option.strip() for option in options]
    return Request(
        method=method.decode("ascii"),
        path=path,
        query=query,
        host=_host(authority),
        keep_alive=b"close" not in options and (persistent or b"keep-alive" in options),
    )


def _fields(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    if len(lines) > MAX_FIELDS:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "a header field is malformed")
        fields.setdefault(match[1].lower(), []).append(match[2])
    return fields


def _refuse_body(fields: dict[bytes, list[bytes]]) -> None:
    length = _only(fields, b"content-length")
    if b"transfer-encoding" in fields or length not in (None, b"0"):
        raise Refused(HTTPStatus.BAD_REQUEST, "a request here has no body")


def _only(fields: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    values = fields.get(name, [])
    if len(values) > 1:
        raise Refused(HTTPStatus.BAD_REQUEST, f"more than one {name.decode('ascii')}")
    return values[0] if values else None


def _split(target: bytes, host: bytes | None) -> tuple[bytes | None, bytes]:
    """Authority and origin form of a target; the one within the target comes first."""
    match = _ABSOLUTE.fullmatch(target)
    if match is not None:
        origin = match[2] if match[2].startswith(b"/") else b"/" + match[2]
        return match[1], origin
    if _ORIGIN.fullmatch(target) is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the target is malformed")
    return host, target


def _host(authority: bytes | None) -> str | None:
    if authority is None:
        return None
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the Host is malformed")
    return match[1].decode("ascii").lower()
