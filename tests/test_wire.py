"""A body is what was sent, however it was framed and cut; and an answer that is cut off is told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire.transports import wire as wires
from deltawire.transports.wire import MAX_CHUNK_LINE, MAX_HEAD, MAX_TRAILERS, State, Wire

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"


def asked() -> Wire:
    return Wire("POST", b"/v1/responses", [("Host", "x"), ("Content-Length", "2")], b"{}")


@dataclass
class Read:
    """What came of an answer."""

    wire: Wire
    body: bytes

    @property
    def end(self) -> tuple[State, str, bool]:
        return self.wire.state, self.wire.reason, self.wire.reusable


def read(*pieces: bytes, eof: bool = False) -> Read:
    wire = asked()
    body = b"".join([wire.receive_data(piece) for piece in pieces])
    if eof:
        wire.receive_eof()
    return Read(wire, body)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def every_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Answers, as a server may send them.

places = st.lists(st.integers(0, 10_000), max_size=30)
extensions = st.sampled_from([b"", b"", b" ", b";a=b", b';x="y z" \t'])
hexadecimal = st.sampled_from([b"%x", b"%X", b"0%x", b"%016x"])
heads = st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and how it goes over the wire."""
    some = st.sampled_from([EVENT, b"a\r\nb", b"\r\n", b"3\r\nabc\r\n"])
    chunks = draw(st.lists(st.one_of(some, st.binary(min_size=1, max_size=40))))
    # Most servers have no extensions at all, and then many chunks are taken apart at once.
    extension = draw(st.sampled_from([st.just(b""), extensions]))
    wire = b""
    for chunk in chunks:
        wire += draw(hexadecimal) % len(chunk) + draw(extension) + b"\r\n" + chunk + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"]))
    return b"".join(chunks), wire + b"0" + draw(extensions) + b"\r\n" + trailers + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """The body, the answer, and whether the end of the connection is its end."""
    how = draw(st.sampled_from(["chunked", "length", "close"]))
    head = draw(heads) + b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    if how == "chunked":
        body, wire = draw(chunked())
        return body, head + b"Transfer-Encoding: chunked\r\n\r\n" + wire, False
    body = draw(st.binary(max_size=200))
    if how == "length":
        return body, head + b"Content-Length: %d\r\n\r\n" % len(body) + body, False
    return body, head + b"\r\n" + body, True


@given(answers(), places)
def test_a_body_does_not_depend_on_framing_and_cuts(
    answer: tuple[bytes, bytes, bool], where: list[int]
) -> None:
    body, wire, eof = answer
    for pieces in ([wire], cut(wire, where), every_byte(wire)):
        came = read(*pieces, eof=eof)
        assert came.body == body
        assert came.end == (State.ENDED, "", not eof)
        assert came.wire.head is not None
        assert came.wire.head.headers["content-type"] == "text/event-stream"


@given(answers(), st.integers(0, 10_000), places)
def test_an_answer_that_is_cut_off_is_broken(
    answer: tuple[bytes, bytes, bool], at: int, where: list[int]
) -> None:
    body, wire, eof = answer
    if eof:
        wire = wire[: wire.index(b"\r\n\r\n") + 3]
    short = wire[: at % len(wire)]
    came = read(*cut(short, where), eof=True)
    assert came.wire.state is State.BROKEN
    assert "the connection was closed" in came.wire.reason
    assert not came.wire.reusable
    assert body.startswith(came.body)


@given(chunked(), st.binary(min_size=1, max_size=6), st.integers(0, 10_000), places)
def test_what_is_wrong_is_found_at_the_same_place_however_it_is_cut(
    answer: tuple[bytes, bytes], dirt: bytes, at: int, where: list[int]
) -> None:
    _, wire = answer
    at %= len(wire)
    dirty = CHUNKED + wire[:at] + dirt + wire[at:]
    whole, *others = (read(*pieces) for pieces in ([dirty], cut(dirty, where), every_byte(dirty)))
    for other in others:
        assert other.body == whole.body
        assert other.end == whole.end


@given(chunked())
def test_h11_reads_the_same(answer: tuple[bytes, bytes]) -> None:
    body, wire = answer
    other = h11.Connection(h11.CLIENT)
    other.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    other.send(h11.EndOfMessage())
    other.receive_data(CHUNKED + wire)
    told = b""
    while not isinstance(event := other.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            told += event.data
    assert told == body == read(CHUNKED + wire).body


# What comes when.


def test_data_is_handed_out_before_its_chunk_is_whole() -> None:
    wire = asked()
    assert wire.receive_data(CHUNKED + b"a\r\nda") == b"da"
    assert wire.receive_data(b"ta: {}\n") == b"ta: {}\n"
    assert wire.receive_data(b"\n\r\n5\r\nmore\n\r\n3") == b"\nmore\n"


def test_a_request_is_one_piece() -> None:
    wire = asked()
    head, _, body = wire.data_to_send().partition(b"\r\n\r\n")
    assert wire.data_to_send() == b""
    assert head == b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 2"
    assert body == b"{}"


def test_fields_of_one_name_are_joined() -> None:
    came = read(b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nX-B: \xc3\xa4\r\nX-C: \xe4\r\n\r\n")
    assert came.wire.head is not None
    assert came.wire.head.headers == {"x-a": "1, 2", "x-b": "ä", "x-c": "ä"}


# Whether the connection may be used again.

ONCE = {
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "both": CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "more": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 408 Slow\r\n\r\n",
    "more chunks": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n0\r\n\r\n",
    "204 with a body": b"HTTP/1.1 204 No Content\r\n\r\n{}",
}


@pytest.mark.parametrize("name", ONCE)
def test_a_connection_that_is_to_be_closed_is_not_used_again(name: str) -> None:
    came = read(*every_byte(ONCE[name]))
    assert came.end == read(ONCE[name]).end == (State.ENDED, "", False)


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_body_is_over_with_its_head(status: int) -> None:
    assert read(b"HTTP/1.1 %d No\r\n\r\n" % status).end == (State.ENDED, "", True)


def test_the_end_of_the_connection_is_no_error_after_the_end_of_the_answer() -> None:
    came = read(CHUNKED + b"0\r\n\r\n", eof=True)
    assert came.end == (State.ENDED, "", False)


def test_the_size_of_a_chunk_is_remembered_whatever_is_in_it() -> None:
    wires._SIZES.clear()
    wire = asked()
    wire.receive_data(CHUNKED)
    wire.receive_data(b"18\r\ndata: {}\r\n\r\ndata: {}\r\n\r\n\r\n")
    wire.receive_data(b"0a;a=b\r\ndata: {}\n\n\r\n")
    assert wires._SIZES == {b"18": 24, b"0a": 10}


def test_of_the_sizes_of_chunks_few_are_remembered() -> None:
    wire, longest = asked(), 3 * wires._MAX_SIZES // 2
    wire.receive_data(CHUNKED)
    for size in range(1, longest, 3):
        data = [b"x" * each for each in range(size, size + 3)]
        chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in data]
        assert wire.receive_data(b"".join(chunks)) == b"".join(data)
    assert 0 < len(wires._SIZES) <= wires._MAX_SIZES


# What is not put up with.

WRONG = {
    "no size": b"\r\n",
    "no number": b"g\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "an underscore": b"1_0\r\n",
    "a space before it": b" 5\r\nhello\r\n",
    "17 digits": b"00000000000000005\r\nhello\r\n",
    "LF": b"5\nhello\r\n",
    "data that is too long": b"5\r\nhello!\r\n",
    "data that is too long by CR": b"5\r\nhello\r\r\n",
    "data without an end": b"5\r\nhello5\r\n",
    "a trailer that ends in LF": b"0\r\nX: 1\n\r\n",
    "a line that is too long": b"5;" + b"x" * MAX_CHUNK_LINE + b"\r\nhello\r\n",
    "a line without an end": b"5;" + b"x" * MAX_CHUNK_LINE,
    "trailers that are too long": b"0\r\n" + b"X: 1\r\n" * (MAX_TRAILERS // 6 + 2) + b"\r\n",
}


@pytest.mark.parametrize("others", [0, 1, 5])
@pytest.mark.parametrize("name", WRONG)
def test_chunks_are_read_strictly(name: str, others: int) -> None:
    others_in_order = b"3\r\nabc\r\n" * others
    data = CHUNKED + others_in_order + WRONG[name] + others_in_order
    whole = read(data)
    assert whole.body.startswith(b"abc" * others)
    assert whole.wire.state is State.BROKEN
    assert "the answer" in whole.wire.reason
    sliced = read(*every_byte(data))
    assert (sliced.body, sliced.end) == (whole.body, whole.end)


HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "too long": b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "too many": b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD // 25 + 1),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_none_breaks_the_answer(name: str) -> None:
    came = read(HEADS[name])
    assert came.wire.state is State.BROKEN
    assert came.wire.reason
    assert came.wire.head is None


def test_a_chunk_may_be_larger_than_memory() -> None:
    wire = asked()
    assert wire.receive_data(CHUNKED + b"ffffffffffffffff\r\n" + EVENT) == EVENT
    assert wire.receive_data(EVENT) == EVENT
    wire.receive_eof()
    assert wire.state is State.BROKEN


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_what_http_cannot_carry_is_not_sent(body: bytes) -> None:
    with pytest.raises(h11.LocalProtocolError):
        Wire("POST", b"/v1", [("Host", "x"), ("X-Bad", "a\nb")], body)
