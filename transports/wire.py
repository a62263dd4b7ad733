"""`Wire`: the client's side of one HTTP/1.1 request and its answer, without I/O.

What may live here: a request to bytes, bytes to the head and the body of its answer, and whether
the connection can be used again. What may not: sockets, clocks, and what an answer means. Callers:
`direct` and `pool`.

Theory of operation
-------------------
h11 writes the head of the request and reads that of the answer. The body is read here: to pull a
chunk through h11 takes 13 us, and here, where one read has one or several whole chunks, about 1.
Nothing of a body is held back but what could be the beginning of a chunk's size: any slicing of the
bytes gives the same body and the same end.

    HEAD --> BODY --> ENDED     the answer is whole
      |        '----> BROKEN    `reason` says why it is not
      '-------------> BROKEN

Chunks are read strictly, for two who read them differently see two answers: a size is a hexadecimal
number, lines end in CRLF, data has its length. What comes after the end was never asked for: the
connection is not used again.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final

import h11
from msgspec import Struct

from deltawire.enums import direct
from deltawire.steps import UpstreamRequest
from deltawire.transports.http import Target
from deltawire.transports.network import Failed

MAX_HEAD: Final = 100 * 1024
"""Bytes of a head, those with a status of 1xx before it included; httpcore has the same."""
MAX_CHUNK_LINE: Final = 4096
"""Bytes of a chunk's size with its extensions, which nobody reads; nginx reads as much."""
MAX_TRAILERS: Final = 16 * 1024
"""Bytes of the fields behind the last chunk, which nobody reads either; what h11 has for a head."""

# Whole lines only, within MAX_CHUNK_LINE. A line that is no match is looked at again, to say why.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]{0,16}(?:;[^\r\n]{0,4000})?\r\n")
# A pattern splits twice as fast as `bytes` by more than one byte.
_CRLF: Final = re.compile(rb"\r\n")
_HEXADECIMAL: Final = b"0123456789ABCDEFabcdef"
_BODILESS: Final = frozenset({204, 304})
# Sizes of chunks that were read, but for 0, as they were written; of all connections, for what a
# size says depends on nothing else.
_SIZES: Final[dict[bytes, int]] = {}
_MAX_SIZES: Final = 4096


@direct
class State(enum.Enum):
    """Where the answer is."""

    HEAD = "head"
    """Its head is not there yet."""
    BODY = "body"
    """There may be more of its body."""
    ENDED = "ended"
    """It is whole."""
    BROKEN = "broken"
    """It will never be whole."""


class Head(Struct, frozen=True):
    """Status and fields; the names are in lower case, fields of one name are joined by commas."""

    status: int
    headers: Mapping[str, str]


@direct
class _Framing(enum.Enum):
    """How it is known where a body ends (RFC 9112 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


# What is to come next of a chunked body, as a number of bytes of data, or one of these.
_SIZE: Final = 0
_DATA_END: Final = -1
_TRAILERS: Final = -2


class Wire:
    """One request and its answer.

    target: the path, with the query. Raises h11.LocalProtocolError for what HTTP cannot carry.
    """

    __slots__ = (
        "_framing",
        "_h11",
        "_head_size",
        "_held",
        "_in_chunks",
        "_left",
        "_method",
        "_to_send",
        "_trailers",
        "head",
        "over",
        "reason",
        "reusable",
        "state",
    )

    def __init__(
        self, method: str, target: bytes, headers: Iterable[tuple[str, str]], body: bytes
    ) -> None:
        # A length of its own is looked at below.
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**62)
        self._to_send = _request(connection, method, target, list(headers), body)
        self._h11: h11.Connection | None = connection
        self.state = State.HEAD
        self.over = False
        """Whether nothing more of the answer will come: it has ended, or is broken."""
        self.head: Head | None = None
        self.reason = ""
        """Why the answer is broken, for people."""
        self.reusable = False
        """Whether the connection is good for another request, once this answer has ended."""
        self._method = method
        self._head_size = 0
        self._framing = _Framing.NONE
        self._in_chunks = False
        self._left = 0
        self._held = b""
        self._trailers = 0

    def data_to_send(self) -> bytes:
        """The whole request, once; it is not kept as long as its answer takes."""
        data, self._to_send = self._to_send, b""
        return data

    def receive_data(self, data: bytes) -> bytes:
        """What of the body is in these bytes."""
        if self._in_chunks:
            if self._left == _SIZE and not self._held:
                # One whole chunk, as most reads are; the rest is for all others.
                line, _, rest = data.partition(b"\r\n")
                if len(rest) - 2 == _SIZES.get(line) and rest.endswith(b"\r\n"):
                    return rest[:-2]
            return self._receive_chunks(data)
        if self.state is State.HEAD:
            return self._receive_head(data)
        if self.state is not State.BODY:
            self.reusable = self.reusable and not data
            return b""
        if self._framing is _Framing.CLOSE:
            return data
        body = data[: self._left]
        self._left -= len(body)
        if not self._left:
            self._end(len(data) > len(body))
        return body

    def receive_eof(self) -> None:
        """The peer sends nothing more. What is over is so."""
        if self.state is State.HEAD:
            place = "within the head of the answer" if self._head_size else "without an answer"
            self._break(f"the connection was closed {place}")
        elif self.state is State.BODY and self._framing is _Framing.CLOSE:
            self._end(False)
        elif self.state is State.BODY:
            self._break("the connection was closed before the end of the answer")
        self.reusable = False

    # The head.

    def _receive_head(self, data: bytes) -> bytes:
        connection = self._h11
        assert connection is not None
        self._head_size += len(data)
        try:
            connection.receive_data(data)
            while isinstance(event := connection.next_event(), h11.InformationalResponse):
                pass
        except h11.RemoteProtocolError as error:
            return self._break(str(error))
        rest, _ = connection.trailing_data
        too_long = self._head_size - len(rest) > MAX_HEAD
        if not isinstance(event, h11.Response):
            too_long = self._head_size > MAX_HEAD
        if too_long:
            return self._break(f"the head of the answer is longer than {MAX_HEAD} bytes")
        if not isinstance(event, h11.Response):
            return b""
        self.head = Head(event.status_code, _joined(event.headers))
        self.reusable = connection.our_state is h11.DONE
        self._h11 = None
        self._frame(self.head)
        if self._framing is _Framing.NONE:
            self._end(bool(rest))
            return b""
        self.state = State.BODY
        self._in_chunks = self._framing is _Framing.CHUNKED
        return self.receive_data(bytes(rest)) if rest else b""

    def _frame(self, head: Head) -> None:
        length = head.headers.get("content-length")
        if self._method == "HEAD" or head.status in _BODILESS:
            self._framing = _Framing.NONE
        elif "transfer-encoding" in head.headers:
            # h11 knows no other coding. With a length beside it, it may be a smuggled one.
            self._framing = _Framing.CHUNKED
            self.reusable = self.reusable and length is None
        elif length is None:
            self._framing = _Framing.CLOSE
            self.reusable = False
        else:
            self._left = int(length)
            self._framing = _Framing.LENGTH if self._left else _Framing.NONE

    # The body, if it is chunked.

    def _receive_chunks(self, data: bytes) -> bytes:
        if self._held:
            data, self._held = self._held + data, b""
        at, size, left = 0, len(data), self._left
        pieces: list[bytes] = []
        sought = False
        while at < size:
            if left > 0:
                piece = data[at : at + left]
                pieces.append(piece)
                at += len(piece)
                left = left - len(piece) or _DATA_END
            elif left == _SIZE and not sought:
                sought = True
                chunks, taken = _whole_chunks(data[at:])
                pieces += chunks
                at += taken
            elif left == _SIZE and (line := _CHUNK_LINE.match(data, at)) is not None:
                at = line.end()
                left = int(line[1], 16) or _TRAILERS
                if left > 0:
                    _remember(line[1], left)
            elif left == _DATA_END and data.startswith(b"\r\n", at):
                at += 2
                left = _SIZE
            elif left == _TRAILERS and data.startswith(b"\r\n", at):
                self._end(size > at + 2)
                break
            elif (line_size := self._line(data, at, left)) == 0:
                break
            else:
                at += line_size
                self._trailers += line_size
        self._left = left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, data: bytes, at: int, expected: int) -> int:
        """How long the line of a trailer is. 0: it is no such line, or not all of it is there."""
        most = {_SIZE: MAX_CHUNK_LINE, _DATA_END: 0}.get(expected, MAX_TRAILERS - self._trailers)
        end = data.find(b"\n", at, at + most + 2)
        if end < 0 and len(data) - at < most + 2:
            self._held = data[at:]
            if expected != _DATA_END or self._held == b"\r":
                return 0
        if expected == _DATA_END:
            self._break("there is more in a chunk of the answer than its size says")
        elif end < 0:
            what = "the line of a chunk's size" if expected == _SIZE else "what follows its chunks"
            self._break(f"{what} in the answer is longer than {most} bytes")
        elif expected == _SIZE:
            self._break("the size of a chunk of the answer is no hexadecimal number")
        elif data[end - 1 : end] != b"\r":
            self._break("a line behind the chunks of the answer ends in LF alone")
        else:
            return end + 1 - at
        return 0

    # The end.

    def _end(self, more: bool) -> None:
        self.state = State.ENDED
        self.over = True
        self._in_chunks = False
        self.reusable = self.reusable and not more

    def _break(self, reason: str) -> bytes:
        self.state = State.BROKEN
        self.over = True
        self.reason = reason
        self.reusable = self._in_chunks = False
        self._held = b""
        return b""


def _request(
    connection: h11.Connection,
    method: str,
    target: bytes,
    fields: list[tuple[str, str]],
    body: bytes,
) -> bytes:
    length = "Content-Length", str(len(body))
    if length not in fields or any(name.lower() == "transfer-encoding" for name, _ in fields):
        head = connection.send(_head(method, target, tuple(fields)))
        parts = [head, connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
        return b"".join(part for part in parts if part)
    # Of requests to one upstream only the length differs. To h11 this one has no body.
    fields.remove(length)
    head = connection.send(_head(method, target, tuple(fields)))
    connection.send(h11.EndOfMessage())
    assert head is not None
    return b"%bContent-Length: %d\r\n\r\n%b" % (head[:-2], len(body), body)


# To look at each field takes h11 5 us.
@functools.lru_cache
def _head(method: str, target: bytes, fields: tuple[tuple[str, str], ...]) -> h11.Request:
    return h11.Request(method=method, target=target, headers=list(fields))


def _whole_chunks(data: bytes) -> tuple[list[bytes], int]:
    """The data of the chunks that these bytes begin with, and the bytes that they take.

    Some may be left out, for the steps of one chunk; together they take a quarter as long as by
    those.
    """
    # Between two line ends is a size and then its data, as long as that has the length; where there
    # is a line end in the data it has not.
    *parts, rest = _CRLF.split(data)
    if len(parts) % 2:
        rest = parts.pop() + b"\r\n" + rest
    lines, chunks = parts[::2], parts[1::2]
    # To look a size up takes half of reading it.
    sizes = list(map(_SIZES.get, lines))
    lengths = list(map(len, chunks))
    if sizes == lengths:
        return chunks, len(data) - len(rest)
    taken = 0
    for at, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        digits = 0 < len(line) <= 16 and not line.strip(_HEXADECIMAL)
        if not (digits and length) or int(line, 16) != length:
            return chunks[:at], taken
        taken += len(line) + length + 4
        _remember(line, length)
    return chunks, taken


def _remember(line: bytes, size: int) -> None:
    if len(_SIZES) >= _MAX_SIZES:
        _SIZES.clear()
    _SIZES[line] = size


def wire_for(target: Target, request: UpstreamRequest) -> Wire:
    """The request on its way to the target. Raises Failed for what HTTP cannot carry."""
    headers = target.headers(request.headers, request.body)
    try:
        return Wire(request.method, target.path, headers, request.body)
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise Failed(str(error)) from None


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("ascii"), _text(raw_value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
