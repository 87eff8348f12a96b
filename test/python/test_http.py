"""The parser of the dashboard: what it takes, what it refuses, and that nothing else comes out."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erlang._http import MAX_FIELDS, MAX_HEAD_BYTES, Refused, Request, answer, refusal, take

GET = b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"


def refused(data: bytes) -> HTTPStatus:
    with pytest.raises(Refused) as caught:
        take(bytearray(data))
    return caught.value.status


def test_a_request_is_taken_off_the_buffer() -> None:
    buffer = bytearray(GET + b"HEAD /metrics?a=b HTTP/1.0\r\n\r\nGET")
    assert take(buffer) == Request("GET", "/", "", "localhost", True)
    assert take(buffer) == Request("HEAD", "/metrics", "a=b", None, False)
    assert take(buffer) is None
    assert buffer == b"GET"


@given(st.integers(min_value=0, max_value=len(GET) - 1))
def test_a_part_of_a_request_is_not_refused(size: int) -> None:
    buffer = bytearray(GET[:size])
    assert take(buffer) is None
    buffer += GET[size:]
    assert take(buffer) is not None
    assert not buffer


@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", GET]))
def test_garbage_is_refused_or_waits_for_more(garbage: bytes, before: bytes) -> None:
    buffer = bytearray(before + garbage)
    try:
        while (request := take(buffer)) is not None:
            assert request.method in ("GET", "HEAD")
    except Refused:
        pass


@given(st.lists(st.sampled_from([GET, b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n"])), st.data())
def test_requests_are_the_same_in_whatever_pieces_they_come(
    requests: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    buffer = bytearray()
    taken = []
    for piece in pieces:
        buffer += piece
        while (request := take(buffer)) is not None:
            taken.append(request.method)
    assert taken == [request.split(b" ")[0].decode() for request in requests]


@pytest.mark.parametrize(
    "head",
    [
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h/evil\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET index.html HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /#top HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\xe4 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / http/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\n",
    ],
)
def test_what_is_not_quite_http_is_refused(head: bytes) -> None:
    assert refused(head) is HTTPStatus.BAD_REQUEST


def test_other_methods_and_versions_are_refused_by_name() -> None:
    with pytest.raises(Refused) as caught:
        take(bytearray(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert caught.value.status is HTTPStatus.METHOD_NOT_ALLOWED
    assert caught.value.fields == (("Allow", "GET, HEAD"),)
    assert b"\r\nAllow: GET, HEAD\r\n" in refusal(caught.value)
    http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert refused(http2) is HTTPStatus.HTTP_VERSION_NOT_SUPPORTED


def test_a_head_has_bounds() -> None:
    line = b"GET / HTTP/1.1\r\nHost: h\r\nX: "
    most = line + b"x" * (MAX_HEAD_BYTES - len(line))
    assert take(bytearray(most + b"\r\n\r\n")) is not None
    too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    assert refused(most + b"x\r\n\r\n") is too_large
    assert refused(most + b"x") is too_large
    fields = b"X: y\r\n" * (MAX_FIELDS - 1)
    start = b"GET / HTTP/1.1\r\nHost: h\r\n"
    assert take(bytearray(start + fields + b"\r\n")) is not None
    assert refused(start + fields + b"X: y\r\n\r\n") is too_large


def test_the_host_of_the_target_comes_before_that_of_the_field() -> None:
    request = take(bytearray(b"GET http://Evil.example:80/x?y HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert request == Request("GET", "/x", "y", "evil.example", True)
    bare = take(bytearray(b"GET http://[::1]:80 HTTP/1.1\r\nHost: h\r\n\r\n"))
    assert bare == Request("GET", "/", "", "[::1]", True)


@pytest.mark.parametrize(
    ("version", "field", "keep_alive"),
    [
        (b"1.1", b"X: y", True),
        (b"1.1", b"Connection: Close", False),
        (b"1.1", b"Connection: keep-alive, close", False),
        (b"1.0", b"X: y", False),
        (b"1.0", b"Connection: Keep-Alive", True),
        (b"1.2", b"X: y", True),
    ],
)
def test_the_connection_stays_open_if_both_want_it(
    version: bytes, field: bytes, keep_alive: bool
) -> None:
    request = take(bytearray(b"GET / HTTP/%s\r\nHost: h\r\n%s\r\n\r\n" % (version, field)))
    assert request is not None
    assert request.keep_alive is keep_alive


def test_an_answer_to_head_has_no_body_but_its_length() -> None:
    head = answer(HTTPStatus.OK, b"12345", ("Content-Type", "text/plain"), head_only=True)
    assert head.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: 5\r\n" in head
    assert head + b"12345" == answer(HTTPStatus.OK, b"12345", ("Content-Type", "text/plain"))
