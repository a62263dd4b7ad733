"""The laws of `HTTPConnection`, with h11's client to read what it says."""

from __future__ import annotations

import ast
import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltawire import LocalProtocolError
from deltawire.server import http
from deltawire.server.framing import MAX_CHUNK_LINE, Refused
from deltawire.server.http import (
    MAX_FIELDS,
    MAX_PIPELINED,
    MAX_REQUEST_LINE,
    HTTPConnection,
    Phase,
    Request,
)
from deltawire.testing.strategies import slicings

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
MAX_HEAD = 16 * 1024
MAX_BODY = 4096
HOST = b"Host: a\r\n"
Result = Request | Refused


def connection(max_head: int = MAX_HEAD, max_body: int = MAX_BODY) -> HTTPConnection:
    return HTTPConnection(max_head=max_head, max_body=max_body, date=lambda: DATE)


def head(start: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([start, *fields, b"", b""])


def get(*fields: bytes) -> bytes:
    return head(b"GET / HTTP/1.1", b"Host: a", *fields)


def post(body: bytes, *fields: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return head(b"POST /p HTTP/1.1", b"Host: a", length, *fields) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    """A request with that chunked body, its framing included."""
    return head(b"POST /c HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked", *fields) + body


def whole(http: HTTPConnection, result: Result) -> bytes:
    """An answer that says what was asked, in one piece."""
    if isinstance(result, Refused):
        return http.respond(result.status, [("x-kind", "refused")], result.reason.encode())
    return http.respond(200, [("x-kind", "whole")], b"%s " % result.path.encode() + result.body)


def streamed(http: HTTPConnection, result: Result) -> bytes:
    """The same in frames."""
    if isinstance(result, Refused):
        return whole(http, result)
    frames = [result.path.encode(), b"", b" "]
    wire = http.begin(200, [("x-kind", "streamed")])
    return wire + b"".join(map(http.frame, frames)) + http.end(result.body)


Answering = Callable[[HTTPConnection, Result], bytes]


def converse(
    http: HTTPConnection, pieces: Iterable[bytes], answer: Answering = whole
) -> tuple[list[Result], bytes]:
    """What comes of these bytes where everything is answered at once: the results, the output."""
    results: list[Result] = []
    output = b""
    for piece in pieces:
        http.receive_data(piece)
        while (result := http.next_request()) is not None:
            results.append(result)
            output += http.data_to_send() + answer(http, result)
        output += http.data_to_send()
    return results, output


def only(data: bytes, **limits: int) -> Result:
    """The one result of these bytes, the same however they are sliced."""
    results, output = converse(connection(**limits), [data])
    slowly = converse(connection(**limits), [data[at : at + 1] for at in range(len(data))])
    assert slowly == (results, output)
    (result,) = results
    if isinstance(result, Refused):
        (answer,) = parsed(output, ["GET" if not data.startswith(b"HEAD ") else "HEAD"])
        assert answer.status == result.status
        assert answer.headers[b"connection"] == b"close"
    return result


def refused(data: bytes, **limits: int) -> Refused:
    result = only(data, **limits)
    assert isinstance(result, Refused), result
    return result


def taken(data: bytes, **limits: int) -> Request:
    result = only(data, **limits)
    assert isinstance(result, Request), result
    return result


def phase_of(http: HTTPConnection) -> Phase:
    """Its phase now: mypy takes a property for constant."""
    return http.phase


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    informed: int
    """How many 1xx came before."""


def parsed(output: bytes, methods: Iterable[str], closed: bool = True) -> list[Answer]:
    """The output as an h11 client reads it that asked so; anything left over is an error."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(output)
    if closed:
        client.receive_data(b"")
    answers: list[Answer] = []
    for method in methods:
        if answers:
            client.start_next_cycle()
        client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        informed, response, body = 0, None, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.InformationalResponse):
                informed += 1
            elif isinstance(event, h11.Response):
                response = event
            else:
                assert isinstance(event, h11.Data), event
                body += event.data
        assert response is not None
        names = [name for name, _ in response.headers]
        assert len(names) == len(set(names)), names
        answers.append(Answer(response.status_code, dict(response.headers), body, informed))
    assert client.trailing_data[0] == b""
    return answers


# What is sent: well-formed requests, and what becomes of them.

BODIES = st.binary(max_size=40)
GOOD = st.one_of(
    st.sampled_from(
        [
            get(),
            get(b"Upgrade: h2c", b"Connection: Upgrade"),
            head(b"GET http://b:80/x?y HTTP/1.1", b"Host: a"),
            head(b"HEAD /h?q=1 HTTP/1.1", b"Host: a"),
            head(b"OPTIONS * HTTP/1.1", b"Host: a"),
            b"\r\n" + get(b"X: 1", b"X: 2"),
            post(b"{}", b"Expect: 100-continue"),
            chunked(b"0\r\n\r\n", b"Expect: 100-continue"),
            chunked(b"5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n"),
        ]
    ),
    BODIES.map(post),
    st.lists(BODIES.filter(bool), max_size=5).map(
        lambda parts: chunked(
            b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        )
    ),
)
LAST = st.sampled_from(
    [
        get(b"Connection: close"),
        head(b"GET /old HTTP/1.0"),
        head(b"HEAD /old HTTP/1.0", b"Connection: keep-alive"),
        head(b"POST /old HTTP/1.0", b"Content-Length: 2") + b"{}",
    ]
)
FRAGMENTS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\0",
            b":",
            b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"\r\n\r\n",
            b"\r\n folded",
            b"\r\nContent-Length: 3",
            b"\r\nContent-Length: +3",
            b"\r\nTransfer-Encoding: chunked",
            b"\r\nTransfer-Encoding: gzip, chunked",
            b"\r\nConnection: close",
            b"\r\nUpgrade: x",
            b"\r\nExpect: 100-continue",
            b"\r\nExpect: miracles",
            b"\r\nHost: b",
            b"HTTP/1.0",
            b"HEAD ",
            b"CONNECT a:1",
            b"PRI * HTTP/2.0",
        ]
    ),
)


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """Requests of which pieces are lost, doubled, swapped or put in."""
    data = b"".join(draw(st.lists(GOOD | LAST, min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        harm = draw(st.sampled_from(["lose", "double", "put", "replace"]))
        if harm == "lose":
            data = data[:at] + data[to:]
        elif harm == "double":
            data = data[:to] + data[at:]
        else:
            data = data[:at] + draw(FRAGMENTS) + data[at if harm == "put" else to :]
    return data


CONVERSATIONS = st.one_of(
    st.lists(GOOD, max_size=5).map(b"".join),
    st.tuples(st.lists(GOOD, max_size=3).map(b"".join), LAST).map(b"".join),
    hostile(),
    st.binary(max_size=80),
)
ANSWERING = st.sampled_from([whole, streamed])


# The laws.


@given(CONVERSATIONS, ANSWERING, st.data())
@example(b"\r\n\r\n" + get(), whole, None)
def test_slicing_does_not_matter(data: bytes, answer: Answering, draw: Any) -> None:
    pieces = draw.draw(slicings(data)) if draw else [data[at : at + 1] for at in range(len(data))]
    once, sliced = connection(), connection()
    assert converse(once, [data], answer) == converse(sliced, pieces, answer)
    assert once.phase is sliced.phase
    assert once.keep_alive is sliced.keep_alive


@given(CONVERSATIONS, ANSWERING)
def test_an_answer_that_comes_late_changes_nothing(data: bytes, answer: Answering) -> None:
    prompt, late = connection(), connection()
    results, output = converse(prompt, [data], answer)
    seen: list[Result] = []
    said = b""
    for at in range(len(data)):
        late.receive_data(data[at : at + 1])
        if (result := late.next_request()) is not None:
            seen.append(result)
    while late.phase is Phase.ANSWERING:
        said += late.data_to_send() + answer(late, seen[-1])
        if (result := late.next_request()) is not None:
            seen.append(result)
    assert seen == results
    assert said + late.data_to_send() == output


@given(CONVERSATIONS | hostile())
@example(chunked(b"5 ;a=b\r\nhello\r\n0\r\n\r\n"))
def test_nothing_is_taken_that_h11_would_not_take(data: bytes) -> None:
    results, _ = converse(connection(), [data])
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    for result in results:
        if isinstance(result, Refused):
            break
        if (rest := server.trailing_data[0]).startswith(b"\r\n"):
            # An empty line before a request is all that is taken and h11 would refuse.
            server = h11.Connection(h11.SERVER)
            server.receive_data(rest[2:])
        event = server.next_event()
        assert isinstance(event, h11.Request)
        assert event.method.decode() == result.method
        assert result.path in event.target.decode() or result.path == "/"
        body = b""
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            body += event.data
        assert body == result.body
        server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        server.send(h11.EndOfMessage())
        if server.our_state is h11.DONE:
            server.start_next_cycle()


def method_of(result: Result, rest: bytes) -> str:
    """What the client asked; of what was refused only the answer tells."""
    if isinstance(result, Request):
        return result.method
    start, _, body = rest.partition(b"\r\n\r\n")
    return "HEAD" if not body and b"ontent-length: 0" not in start.lower() else "GET"


@given(CONVERSATIONS | hostile(), ANSWERING)
@example(get() + head(b"POST / HTTP/1.0", b"Content-Length: 2"), whole)
def test_whatever_comes_in_valid_answers_go_out(data: bytes, answer: Answering) -> None:
    http = connection()
    output = b""
    methods = []
    results: list[Result] = []
    closes = []
    http.receive_data(data)
    while (result := http.next_request()) is not None:
        assert phase_of(http) is Phase.ANSWERING
        results.append(result)
        wire = http.data_to_send() + answer(http, result)
        methods.append(method_of(result, wire.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")))
        output += wire
        closes.append(not http.keep_alive)
        assert (phase_of(http) is Phase.CLOSED) is not http.keep_alive
    # A request that is not whole by now may have been told to go on.
    rest = http.data_to_send()
    assert rest in (b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    answers = parsed(output, methods)
    for result, answered, close in zip(results, answers, closes, strict=True):
        assert (b"connection" in answered.headers) is close
        if isinstance(result, Refused):
            assert result is results[-1]
            assert answered.status == result.status
            assert answered.headers[b"connection"] == b"close"
            assert answered.body == b"" or answered.body == result.reason.encode()
            assert result.reason.isascii()
            assert result.reason.isprintable()
        else:
            said = result.path.encode() + b" " + result.body
            assert answered.body == (b"" if result.method == "HEAD" else said)
        assert answered.headers[b"date"] == DATE.encode()
    http.receive_eof()
    assert http.next_request() is None
    assert http.phase is Phase.CLOSED


@given(st.lists(st.tuples(GOOD, ANSWERING), max_size=8))
def test_pipelined_requests_are_answered_in_their_order(
    asked: list[tuple[bytes, Answering]],
) -> None:
    one_by_one = [converse(connection(), [data], answer) for data, answer in asked]
    http = connection()
    http.receive_data(b"".join(data for data, _ in asked))
    for (_, answer), (results, output) in zip(asked, one_by_one, strict=True):
        result = http.next_request()
        assert [result] == results
        assert result is not None
        assert http.next_request() is None
        assert answer(http, result) == output
    assert http.phase is Phase.IDLE


REQUESTS = st.sampled_from(
    [
        get(),
        head(b"HEAD / HTTP/1.1", b"Host: a"),
        head(b"GET / HTTP/1.0"),
        get(b"Connection: close"),
        post(b"{}"),
    ]
)
FRAMES = st.lists(st.binary(max_size=300), max_size=6)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "X-Request-Id", "cache-control"]),
        st.sampled_from(["", "a", "text/event-stream; charset=utf-8"]),
    ),
    max_size=3,
    unique_by=lambda field: field[0],
)


@given(REQUESTS, st.sampled_from([200, 204, 304, 404, 529]), FIELDS, FRAMES, BODIES)
def test_frames_are_those_that_h11_writes(
    asked: bytes, status: int, fields: list[tuple[str, str]], frames: list[bytes], last: bytes
) -> None:
    http = connection()
    http.receive_data(asked)
    assert isinstance(http.next_request(), Request)
    wire = http.begin(status, fields) + b"".join(map(http.frame, frames)) + http.end(last)

    server = h11.Connection(h11.SERVER)
    server.receive_data(asked)
    while not isinstance(server.next_event(), h11.EndOfMessage):
        pass
    own = [("date", DATE)]
    if b"Connection: close" in asked or b"HTTP/1.0" in asked:
        own.append(("connection", "close"))
    reason = {200: "OK", 204: "No Content", 304: "Not Modified", 404: "Not Found"}.get(status, "")
    expected = server.send(h11.Response(status_code=status, headers=fields + own, reason=reason))
    for data in [*frames, last]:
        if not (asked.startswith(b"HEAD") or status in (204, 304)):
            expected += server.send(h11.Data(data=data))
    expected += server.send(h11.EndOfMessage())
    got, wanted = wire.partition(b"\r\n\r\n"), expected.partition(b"\r\n\r\n")
    assert got[1:] == wanted[1:]
    # The order of the fields is not h11's, but the first line is, and which fields there are.
    assert got[0].split(b"\r\n")[0] == wanted[0].split(b"\r\n")[0]
    assert sorted(got[0].split(b"\r\n")) == sorted(wanted[0].split(b"\r\n"))
    (answer,) = parsed(wire, ["HEAD" if asked.startswith(b"HEAD") else "GET"])
    if not (asked.startswith(b"HEAD") or status in (204, 304)):
        assert answer.body == b"".join([*frames, last])


@given(st.binary(max_size=200), st.sampled_from([200, 204, 304, 404]), st.booleans())
def test_an_answer_to_head_never_has_a_body(body: bytes, status: int, in_frames: bool) -> None:
    http = connection()
    http.receive_data(head(b"HEAD / HTTP/1.1", b"Host: a") + get())
    assert isinstance(http.next_request(), Request)
    if in_frames:
        wire = http.begin(status, []) + http.frame(body) + http.end(body)
    else:
        wire = http.respond(status, [], body)
        if status in (200, 404):
            assert b"content-length: %d\r\n" % len(body) in wire
    assert wire.endswith(b"\r\n\r\n")
    assert wire.count(b"\r\n\r\n") == 1
    assert isinstance(http.next_request(), Request)


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD /" + b"x" * 9000,
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"HEAD / HTTP/2.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n",
    ],
)
def test_nor_has_the_refusal_of_one(data: bytes) -> None:
    results, output = converse(connection(), [data])
    (answer,) = parsed(output, ["HEAD"])
    assert isinstance(results[0], Refused)
    assert answer.body == b""


# What is taken.


def test_a_request_is_what_was_sent() -> None:
    data = post(b'{"a":1}', b"X-A:  1 ", b"x-a: 2", b"Cookie: a=1", b"Cookie: b=2", b"X-B: \xe9")
    request = taken(data.replace(b"/p", b"/v1/models/a%2Fb?x=1&y=?"))
    assert request.method == "POST"
    assert request.path == "/v1/models/a%2Fb"
    assert request.query == "x=1&y=?"
    assert request.headers == {
        "host": "a",
        "content-length": "7",
        "x-a": "1, 2",
        "cookie": "a=1; b=2",
        "x-b": "é",
    }
    assert request.body == b'{"a":1}'
    assert request.http_version == "1.1"
    assert repr(request) == "Request(POST /v1/models/a%2Fb, 7 bytes)"


def test_chunks_become_the_body() -> None:
    body = b"5\r\nhello\r\n00006; a=b\r\n world\r\nA;x\r\n0123456789\r\n0\r\nX: 1\r\n\r\n"
    assert taken(chunked(body)).body == b"hello world0123456789"


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://b.example:8080/x/y?z", "b.example:8080", "/x/y", "z"),
        (b"HTTPS://b", "b", "/", ""),
        (b"http://b?z", "b", "/", "z"),
        (b"http://[::1]:80/", "[::1]:80", "/", ""),
        (b"//x/y", "a", "//x/y", ""),
    ],
)
def test_the_target_may_be_a_url_and_then_has_the_host(
    target: bytes, host: str, path: str, query: str
) -> None:
    request = taken(head(b"GET %s HTTP/1.1" % target, b"Host: a"))
    assert (request.headers["host"], request.path, request.query) == (host, path, query)


def test_an_asterisk_is_for_options() -> None:
    assert taken(head(b"OPTIONS * HTTP/1.1", b"Host: a")).path == "*"
    assert refused(head(b"GET * HTTP/1.1", b"Host: a")).status == 400


def test_the_app_says_what_methods_there_are() -> None:
    assert taken(head(b"BREW /pot HTTP/1.1", b"Host: a")).method == "BREW"


def test_the_same_length_twice_is_one() -> None:
    assert taken(head(b"POST / HTTP/1.1", HOST + b"Content-Length: 2, 2") + b"{}").body == b"{}"


def test_one_empty_line_may_stand_before_a_request() -> None:
    assert isinstance(taken(b"\r\n" + get()), Request)
    assert refused(b"\r\n\r\n" + get()).status == 400
    assert refused(b"\rGET").status == 400
    results, _ = converse(connection(), [post(b"{}") + b"\r\n" + get() + b"\r\n" + get()])
    assert len(results) == 3


def test_upgrade_is_not_taken_up() -> None:
    upgrade = get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA")
    results, output = converse(connection(), [upgrade + get()])
    assert [answer.status for answer in parsed(output, ["GET", "GET"])] == [200, 200]
    assert len(results) == 2


# What is refused.

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CL5 = b"Content-Length: 5"
TE = b"Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([b"Content-Length: 5", b"Content-Length: 6"], 400),
        ([b"Content-Length: 5, 6"], 400),
        ([b"Content-Length: +5"], 400),
        ([b"Content-Length: -5"], 400),
        ([b"Content-Length: 0x5"], 400),
        ([b"Content-Length: 5_0"], 400),
        ([b"Content-Length: \xb2"], 400),
        ([b"Content-Length:"], 400),
        ([b"Content-Length: " + b"0" * 30 + b"5"], 400),
        ([b"Content-Length: " + b"9" * 20], 413),
        ([CL5, TE], 400),
        ([TE, CL5], 400),
        ([TE, b"Content-Length: 0"], 400),
        ([TE, TE], 501),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Transfer-Encoding: chunked, identity"], 501),
        ([b"Transfer-Encoding: xchunked"], 501),
        ([b"Transfer-Encoding: \x0bchunked"], 400),
        ([b"Transfer-Encoding : chunked"], 400),
        ([b"Transfer-Encoding:\r\n chunked"], 400),
        ([b"X: a\rTransfer-Encoding: chunked"], 400),
        ([b"Host: b"], 400),
        ([b"Host: a"], 400),
        ([b"Authorization: Bearer a", b"Authorization: Bearer b"], 400),
        ([b"Content-Type: a/b", b"Content-Type: a/c"], 400),
        ([b"X: \0"], 400),
        ([b"X: a\x01b"], 400),
        ([b"X: a\x7fb"], 400),
        ([b"X\x00: a"], 400),
        ([b"X\xe9: a"], 400),
        ([b"X: a\nTransfer-Encoding: chunked"], 400),
        ([b"X: a\n folded"], 400),
        ([b"X: a", b" folded"], 400),
        ([b"X: a", b"\tfolded"], 400),
        ([b" X: a"], 400),
        ([b"no colon"], 400),
        ([b": no name"], 400),
        ([b"Expect: 200-ok"], 417),
        ([b"Expect: 100-continue, 200-ok"], 417),
        ([b"Expect:"], 417),
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(fields: list[bytes], status: int) -> None:
    data = head(b"POST / HTTP/1.1", b"Host: a", *fields) + b"0\r\n\r\n" + SMUGGLED
    assert refused(data).status == status


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/0.9", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"CONNECT a:443 HTTP/1.1", 501),
        (b"GET a:443 HTTP/1.1", 400),
        (b"GET ftp://a/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://u@b/ HTTP/1.1", 400),
        (b"GET path HTTP/1.1", 400),
        (b"GET  HTTP/1.1", 400),
        (b"GET /", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / http/1.1", 400),
        (b"GET / x HTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GE(T / HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\nX: 1", 400),
    ],
)
def test_a_request_line_that_is_none_is_refused(start: bytes, status: int) -> None:
    assert refused(head(start, b"Host: a")).status == status


def test_the_preface_of_http_2_is_told_what_is_spoken() -> None:
    answer = refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 20)
    assert answer == Refused(505, "HTTP/2.0 is not spoken here, HTTP/1.1 is")


def test_tls_is_noticed_at_its_first_byte() -> None:
    answer = refused(b"\x16\x03\x01\x02\x00\x01")
    assert answer == Refused(400, "a request begins with its method, not 0x16 (TLS?)")


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a@b", b"a,b c", b"a:b", b"[::1", b"a\\b", b'"'])
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    assert refused(head(b"GET / HTTP/1.1", b"Host: " + host)).status == 400


def test_without_a_host_only_the_old_version_goes() -> None:
    assert refused(head(b"GET / HTTP/1.1")).status == 400
    assert taken(head(b"GET / HTTP/1.0")).http_version == "1.0"
    assert refused(head(b"GET / HTTP/1.0", b"Host: a", b"Host: b")).status == 400


def test_the_old_version_has_no_chunks() -> None:
    assert refused(head(b"POST / HTTP/1.0", TE) + b"0\r\n\r\n").status == 400


BIG = b"1" * 100_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"0x10\r\n", 400),
        (b"+5\r\n", 400),
        (b"-5\r\n", 400),
        (b"5 \r\n", 400),
        (b" 5\r\n", 400),
        (b"5\t\r\n", 400),
        (b"5 ;a=b\r\n", 400),
        (b"\r\n", 400),
        (b";a\r\n", 400),
        (b"5_0\r\n", 400),
        (b"\xb2\r\n", 400),
        (b"g\r\n", 400),
        (b"5,5\r\n", 400),
        (b"5\rhello\r\n", 400),
        (b"5\nhello\r\n0\r\n\r\n", 400),
        (b"5;a\nb\r\nhello\r\n0\r\n\r\n", 400),
        (b"5;\0\r\nhello\r\n0\r\n\r\n", 400),
        (b"5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
        (b"0" * 17 + b"\r\n", 400),
        (b"f" * 16 + b"\r\n", 413),
        (b"f" * 17 + b"\r\n", 400),
        (BIG, 400),
        (b"5;" + BIG, 400),
        (b"5;" + BIG + b"\r\nhello\r\n0\r\n\r\n", 400),
        (b"5\r\nhell", None),
        (b"5\r\nhello0\r\n\r\n", 400),
        (b"5\r\nhello!\r\n0\r\n\r\n", 400),
        (b"5\r\nhello\n0\r\n\r\n", 400),
        (b"5\r\nhello\r0\r\n\r\n", 400),
        (b"1001\r\n", 413),
        (b"fff\r\n" + b"x" * 4095 + b"\r\n2\r\n", 413),
        (b"0\r\n\n", 400),
        (b"0\r\nX: 1\n\r\n", 400),
        (b"0\r\n X: 1\r\n\r\n", 400),
        (b"0\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"0\r\nX: \0\r\n\r\n", 400),
        (b"0\r\nX: \r\r\n\r\n", 400),
        (b"0\r\n" + SMUGGLED, 400),
        (b"0\r\nX: " + BIG, 431),
        (b"0\r\n" + b"X: 1\r\n" * 10_000, 431),
    ],
)
def test_odd_chunks_are_refused(body: bytes, status: int | None) -> None:
    if status is None:
        assert converse(connection(), [chunked(body)]) == ([], b"")
    else:
        assert refused(chunked(body)).status == status


def test_limits_are_met_exactly() -> None:
    line = b"GET /" + b"x" * (MAX_REQUEST_LINE - 16) + b" HTTP/1.1\r\n"
    assert len(line) == MAX_REQUEST_LINE
    assert isinstance(taken(line + HOST + b"\r\n"), Request)
    assert refused(line.replace(b"/", b"/x") + HOST + b"\r\n").status == 414
    assert refused(line.replace(b"/", b"/x")).status == 414

    assert isinstance(taken(get(), max_head=len(get())), Request)
    assert refused(get(), max_head=len(get()) - 1).status == 431
    assert refused(get()[:-1], max_head=len(get()) - 2).status == 431

    fields = [b"x: %d" % at for at in range(MAX_FIELDS - 1)]
    assert len(taken(get(*fields)).headers) == 2
    assert refused(get(*fields, b"x: last")).status == 431

    assert len(taken(post(b"x" * MAX_BODY)).body) == MAX_BODY
    assert refused(post(b"x" * MAX_BODY + b"x")).status == 413
    for size, fits in [(MAX_BODY, True), (MAX_BODY + 1, False)]:
        data = chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
        assert isinstance(only(data), Request) is fits

    longest = b"1;" + b"x" * (MAX_CHUNK_LINE - 2)
    assert taken(chunked(longest + b"\r\n!\r\n0\r\n\r\n")).body == b"!"
    assert refused(chunked(longest + b"x\r\n!\r\n0\r\n\r\n")).status == 400


@pytest.mark.parametrize("line", [b"x:\r\n", b"x:\n", b"a: b\r\n"])
def test_many_tiny_fields_are_refused(line: bytes) -> None:
    assert refused(b"GET / HTTP/1.1\r\n" + HOST + line * 20_000).status == 431


def test_a_body_too_large_is_refused_before_it_comes() -> None:
    start = head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 4097", b"Expect: 100-continue")
    http = connection()
    results, output = converse(http, [start])
    assert results == [Refused(413, "the body has 4097 bytes, 4096 are allowed")]
    assert [answer.informed for answer in parsed(output, ["POST"])] == [0]
    assert http.phase is Phase.CLOSED
    assert converse(http, [b"x" * 4097, get()]) == ([], b"")


@pytest.mark.parametrize(
    "data",
    [
        get(b"Authorization : Bearer sk-secret"),
        get(b"Authorization Bearer sk-secret"),
        get(b"Authorization: Bearer sk-\x01secret"),
        get(b"Authorization: Bearer sk-\rsecret"),
        get(b"Authorization: Bearer sk-secret", b"Authorization: Bearer sk-secret"),
        get(b"Expect: sk-secret"),
        head(b"GET /?key=sk-secret\x01 HTTP/1.1", b"Host: a"),
        head(b"GET ?key=sk-secret HTTP/1.1", b"Host: a"),
        head(b"GET /?key= sk-secret HTTP/1.1", b"Host: a"),
        head(b"GET http://sk-secret@a/ HTTP/1.1", b"Host: a"),
        chunked(b"0\r\nAuthorization Bearer sk-secret\r\n\r\n"),
        chunked(b"sk-secret\r\n"),
    ],
)
def test_a_refusal_does_not_repeat_what_may_be_a_key(data: bytes) -> None:
    assert "secret" not in refused(data).reason


def test_reasons_say_where() -> None:
    assert refused(get(b"X: 1", b"Y: \x02")).reason == (
        "line 4 of the head has the control character 0x02"
    )
    assert refused(get(b"X: 1", b" 2")).reason == (
        "line 4 of the head is folded (it begins with a space or tab)"
    )
    assert refused(get(b"X: 1\nY: 2")).reason == "line 3 of the head ends in LF alone"
    assert refused(get().replace(b"\r\n", b"\n")).reason == "line 1 of the head ends in LF alone"
    assert refused(get()[:-2] + b"\n").reason == "line 3 of the head ends in LF alone"
    assert refused(chunked(b"0\r\nX: 1\r\nY: \x02\r\n\r\n")).reason == (
        "line 2 of the trailers has the control character 0x02"
    )
    assert refused(get(b"no colon")).reason == "illegal header line"
    assert refused(head(b"GET / HTTP/1.1")).reason == "Missing mandatory Host: header"


# The life of a connection.


def test_phases_are_what_the_driver_waits_for() -> None:
    http = connection()
    assert phase_of(http) is Phase.IDLE
    converse(http, [b"P"])
    assert phase_of(http) is Phase.HEAD
    converse(http, [post(b"{}")[1:-1]])
    assert phase_of(http) is Phase.BODY
    http.receive_data(b"}G")
    assert isinstance(http.next_request(), Request)
    assert phase_of(http) is Phase.ANSWERING
    http.begin(200, [])
    http.frame(b"x")
    assert phase_of(http) is Phase.ANSWERING
    http.end()
    assert phase_of(http) is Phase.HEAD
    converse(http, [get()[1:]])
    assert phase_of(http) is Phase.IDLE
    http.receive_eof()
    assert phase_of(http) is Phase.CLOSED


def test_to_go_on_is_said_once_and_before_the_answer() -> None:
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    data = post(b"{}", b"Expect: 100-Continue")
    http = connection()
    http.receive_data(data[:-2])
    assert http.next_request() is None
    assert http.data_to_send() == go_on
    http.receive_data(data[-2:])
    assert isinstance(http.next_request(), Request)
    assert http.data_to_send() == b""
    assert go_on not in http.respond(200, [])
    # Who forgets to fetch it sends it with the answer.
    http.receive_data(data)
    assert isinstance(http.next_request(), Request)
    assert http.respond(200, []).startswith(go_on)
    # Nobody waits where there is no body, or before 1.1.
    for unasked in (get(b"Expect: 100-continue"), post(b"", b"Expect: 100-continue")):
        assert go_on not in converse(connection(), [unasked])[1]
    old = head(b"POST / HTTP/1.0", CL5, b"Expect: 100-continue") + b"hello"
    assert go_on not in converse(connection(), [old])[1]


@pytest.mark.parametrize("answer", [whole, streamed])
@pytest.mark.parametrize(
    "data",
    [
        get(b"Connection: close"),
        get(b"Connection: x, Close"),
        get(b"Connection: x", b"Connection: close"),
        head(b"GET / HTTP/1.0"),
        head(b"GET / HTTP/1.0", b"Connection: keep-alive"),
        # To h11 these two might switch protocols, and so do not have to close.
        head(b"GET / HTTP/1.0", b"Connection: upgrade", b"Upgrade: x"),
        get(b"Connection: close, upgrade", b"Upgrade: x"),
    ],
)
def test_what_comes_after_the_last_request_is_not_answered(data: bytes, answer: Answering) -> None:
    http = connection()
    http.receive_data(data + get())
    result = http.next_request()
    assert result is not None
    assert not http.keep_alive
    output = answer(http, result)
    assert http.next_request() is None
    assert http.phase is Phase.CLOSED
    assert b"onnection: close" in output
    assert parsed(output, ["GET"])[0].body == b"/ "


def test_an_old_client_gets_a_stream_up_to_the_end_of_the_connection() -> None:
    http = connection()
    http.receive_data(head(b"GET / HTTP/1.0"))
    http.next_request()
    start = http.begin(200, [])
    assert b"chunked" not in start
    assert http.frame(b"data: 1\n\n") == b"data: 1\n\n"
    assert http.end(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert http.phase is Phase.CLOSED


def test_the_last_frame_and_the_end_are_one() -> None:
    http = connection()
    http.receive_data(get())
    http.next_request()
    http.begin(200, [])
    assert http.end(b"data: [DONE]\n\n") == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def test_an_answer_that_is_given_up_has_no_end() -> None:
    http = connection()
    http.receive_data(get())
    http.next_request()
    wire = http.begin(200, []) + http.frame(b"half")
    http.abort()
    assert http.phase is Phase.CLOSED
    with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked read"):
        parsed(wire, ["GET"])
    mistakes: list[Callable[[], bytes]] = [
        lambda: http.frame(b"x"),
        http.end,
        lambda: http.respond(500, []),
    ]
    for act in mistakes:
        with pytest.raises(LocalProtocolError):
            act()


@pytest.mark.parametrize("data", [b"", b"GET", post(b"{}")[:-1], chunked(b"5\r\nhel")])
def test_a_request_that_is_cut_off_is_none(data: bytes) -> None:
    http = connection()
    assert converse(http, [data]) == ([], b"")
    http.receive_eof()
    assert http.phase is Phase.CLOSED
    assert http.next_request() is None


@pytest.mark.parametrize("begun", [False, True])
def test_who_left_is_noticed_while_answering_also_behind_a_flood(begun: bool) -> None:
    http = connection()
    http.receive_data(get())
    http.next_request()
    if begun:
        http.begin(200, [])
    for _ in range(10):
        http.receive_data(get() * 1000)
    assert not http.peer_closed
    http.receive_eof()
    assert http.peer_closed
    assert http.phase is Phase.ANSWERING
    wire = http.end() if begun else http.respond(200, [])
    assert begun or b"connection: close" in wire
    assert http.phase is Phase.CLOSED


def test_of_a_flood_nothing_is_answered_and_nothing_kept() -> None:
    waiting = get() * (MAX_PIPELINED // len(get()))
    for data in (waiting, waiting + b"x" * (MAX_PIPELINED - len(waiting))):
        http = connection()
        results, _ = converse(http, [get() + data])
        assert len(results) == 1 + MAX_PIPELINED // len(get())
    for pieces in ([get() + waiting + get()], [get(), waiting, get()]):
        http = connection()
        http.receive_data(pieces[0])
        http.next_request()
        for piece in pieces[1:]:
            http.receive_data(piece)
        assert b"connection: close" in http.respond(200, [])
        assert http.phase is Phase.CLOSED


def test_the_caller_may_end_the_connection() -> None:
    http = connection()
    http.receive_data(get() + get())
    http.next_request()
    http.keep_alive = False
    assert b"connection: close" in http.respond(200, [])
    assert http.phase is Phase.CLOSED


@pytest.mark.parametrize("data", [b"", b"GET / HT", b"HEAD / ", post(b"{}")[:-1]])
def test_a_timeout_can_be_answered_in_every_phase(data: bytes) -> None:
    http = connection()
    converse(http, [data])
    wire = http.respond(408, [], b"too slow")
    (answer,) = parsed(wire, ["HEAD" if data.startswith(b"HEAD") else "POST"])
    assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
    assert answer.body == (b"" if data.startswith(b"HEAD") else b"too slow")
    assert http.phase is Phase.CLOSED


def test_answers_out_of_turn_are_the_callers_mistake() -> None:
    http = connection()
    early: list[Callable[[], bytes]] = [
        lambda: http.begin(200, []),
        lambda: http.frame(b"x"),
        http.end,
    ]
    for act in early:
        with pytest.raises(LocalProtocolError):
            act()
    http.receive_data(get() + get(b"no colon"))
    http.next_request()
    http.begin(200, [])
    for act in (lambda: http.begin(200, []), lambda: http.respond(200, [])):
        with pytest.raises(LocalProtocolError):
            act()
    http.end()
    assert isinstance(http.next_request(), Refused)
    with pytest.raises(LocalProtocolError):
        http.begin(400, [])
    http.respond(400, [])
    with pytest.raises(LocalProtocolError):
        http.respond(400, [])
    # 200 would make a tunnel of it.
    http = connection()
    http.receive_data(head(b"CONNECT a:1 HTTP/1.1", b"Host: a"))
    http.next_request()
    with pytest.raises(LocalProtocolError):
        http.respond(200, [])


@pytest.mark.parametrize(
    ("status", "fields", "named"),
    [
        (200, [("x-a", "1"), ("x-b", "sk-secret\r\nx: y")], "x-b"),
        (200, [("x-b", "sk-secret\u2713")], "x-b"),
        (200, [("x b", "sk-secret")], "x b"),
        (200, [("Content-Length", "5")], "Content-Length"),
        (200, [("transfer-encoding", "chunked")], "transfer-encoding"),
        (200, [("connection", "close")], "connection"),
        (101, [("x-b", "sk-secret")], "101"),
    ],
)
@pytest.mark.parametrize("in_frames", [False, True])
def test_a_head_that_cannot_be_sent_is_named_and_does_no_harm(
    status: int, fields: list[tuple[str, str]], named: str, in_frames: bool
) -> None:
    http = connection()
    http.receive_data(get() + get())
    http.next_request()
    with pytest.raises(LocalProtocolError, match=named) as raised:
        http.begin(status, fields) if in_frames else http.respond(status, fields)
    assert "secret" not in str(raised.value)
    (answer,) = parsed(http.respond(500, [], b"sorry"), ["GET"])
    assert (answer.status, answer.body) == (500, b"sorry")
    assert isinstance(http.next_request(), Request)


# What it costs. Calls are counted, Python's and C's: seconds would depend on the machine.


def calls(pieces: list[bytes], **limits: int) -> int:
    http = connection(**limits)
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        converse(http, pieces)
    finally:
        sys.setprofile(None)
    return count


def sliced(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 1000, 10**9])
@pytest.mark.parametrize(
    "data",
    [
        lambda n: b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * n + b"\r\n\r\n",
        lambda n: post(b"x" * n),
        lambda n: chunked(b"1\r\nx\r\n" * n + b"0\r\n\r\n"),
        lambda n: chunked(b"1\r\nx\r\n0\r\nX: " + b"x" * n + b"\r\n\r\n"),
        lambda n: get() * (n // 20),
    ],
    ids=["head", "body", "chunks", "trailer", "pipelined"],
)
def test_twice_the_bytes_make_at_most_twice_the_calls(
    data: Callable[[int], bytes], size: int
) -> None:
    once, twice = (
        calls(sliced(data(count), size), max_head=8192, max_body=8192) for count in (2000, 4000)
    )
    assert twice <= 2 * once + 100


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"GET / HTTP/1.1 "),
        (b"GET / HTTP/1.1\r\n", b"X: 1\r\n"),
        (chunked(b""), b"1"),
        (chunked(b"1;"), b"x"),
        (chunked(b""), b"1;" + b"x" * 200 + b"\r\nx\r\n"),
        (chunked(b"0\r\n"), b"X: 1\r\n"),
        (post(b"x" * 5000), b"x"),
        (get(b"Connection: close"), get()),
    ],
)
@pytest.mark.parametrize("answered", [True, False])
def test_no_flood_is_kept(start: bytes, more: bytes, answered: bool) -> None:
    http = connection()
    gc.collect()
    tracemalloc.start()
    try:
        http.receive_data(start)
        flood = more * (65536 // len(more))
        for _ in range(100):
            if (result := http.next_request()) is not None and answered:
                whole(http, result)
            http.receive_data(flood)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    assert not http.keep_alive


def test_it_brings_no_io_along() -> None:
    tree = ast.parse(Path(http.__file__).read_bytes())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    assert imported <= {
        "__future__",
        "collections",
        "deltawire",
        "enum",
        "functools",
        "h11",
        "http",
        "msgspec",
        "re",
        "typing",
    }
