"""`HTTPConnection`: the server's side of one HTTP/1.1 connection, without I/O.

What may live here: bytes to requests, answers to bytes, and when a connection has to end. What may
not: sockets, clocks, routes, and what an answer says. Callers: the asyncio, trio and threaded
drivers, all three in the same way:

    feed     `receive_data()`, then `next_request()`; write what `data_to_send()` has
    answer   `respond()`, or `begin()`, `frame()`..., `end()`; then `next_request()` again, since
             the next one may have come already
    end      close once `phase` is CLOSED and what was given out is written

Theory of operation
-------------------
h11 parses heads, writes heads, and knows whether a connection may be kept. It gets whole messages
only: the bytes wait in a buffer of ours until a head is complete, so that no limit depends on how
the network sliced them. A body is collected here and told to h11 at its end. Chunks are read by
`chunked_body`, which is stricter than h11 (no space after a size, no line over MAX_CHUNK_LINE), and
h11 is told an empty chunked body with the trailers in their place: it keeps no body anyway.

The frames of a streamed answer are written by hand between h11's Response and EndOfMessage: h11
takes 6 us for a chunk, `frame()` 0.3. That h11 would have written the same is a law in the tests.
It says the end together with the head and is dropped, as it is after each answer: what it holds
would be 1 KB of every open stream. What it says once is remembered, for there are few such heads.

                 a byte          head read         body read
    IDLE ---------------> HEAD ------------> BODY -----------> ANSWERING ---> CLOSED
     ^                     |                  |                 ^   |
     |                     '------ refused ---'-----------------'   |  answered, and to be kept
     '--------------------------------------------------------------'

One request is answered at a time. What comes meanwhile waits, up to MAX_PIPELINED bytes; of more
nothing is kept, and the connection ends after the present answer, as RFC 9112 9.3.2 lets it. So a
driver never has to stop reading for the sake of memory, and while it reads it sees a FIN: that is
how a client's leaving shows, and it would be hidden behind bytes that nobody reads.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final

import h11
from msgspec import Struct
from msgspec.structs import replace

from deltawire.enums import direct
from deltawire.errors import LocalProtocolError
from deltawire.server.framing import (
    BodyReader,
    Refusal,
    Refused,
    chunked_body,
    refuse,
    refuse_odd,
    sized_body,
)

MAX_REQUEST_LINE: Final = 8192
"""Bytes; RFC 9112 3 asks for 8000 at least. Apache has 8190, nginx 8192."""
MAX_FIELDS: Final = 100
"""Header fields in a head, as Apache and gunicorn have it; h11 takes 3 us for each."""
MAX_PIPELINED: Final = 64 * 1024
"""Bytes that wait behind a request while it is answered."""

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")  # where h11 sees the end of a head
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)(/[^?]*)?(?:\?(.*))?", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[-\w.~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
# Fields that are no lists: two of them would be one that nobody sent (RFC 9110 5.3).
_SINGLE: Final = frozenset({"authorization", "content-type"})
_OWN_FIELDS: Final = frozenset({"connection", "content-length", "date", "transfer-encoding"})
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"(?:[!-~]+(?:[ \t]+[!-~]+)*)?")

Headers = Iterable[tuple[str, str]]


@direct
class Phase(enum.Enum):
    """What the driver waits for; bound each by the time since it began, not since the last byte."""

    IDLE = "idle"
    """The first byte of a request. May be closed at any time without a word."""
    HEAD = "head"
    """The rest of a head. What takes too long is answered with `respond(408, ...)`."""
    BODY = "body"
    """The rest of a body. What takes too long is answered with `respond(408, ...)`."""
    ANSWERING = "answering"
    """The caller's answer. `peer_closed` says whether anybody still wants it."""
    CLOSED = "closed"
    """Nothing: close the connection, after what was given out is written."""


class Request(Struct, frozen=True):
    """One whole request. Headers and body may hold secrets and are not shown."""

    method: str
    path: str
    """As sent, percent-encoding included; `*` in `OPTIONS *`."""
    query: str
    """As sent, without the question mark."""
    headers: dict[str, str]
    """Lower-case names; several fields of one name are joined by commas."""
    body: bytes
    http_version: str
    """`1.0` or `1.1`."""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path}, {len(self.body)} bytes)"


@direct
class _Framing(enum.Enum):
    """How the body of a streamed answer is delimited."""

    CHUNKED = "chunked"
    """By its last chunk."""
    CLOSE = "close"
    """By the end of the connection: HTTP/1.0."""
    NONE = "none"
    """There is no body: an answer to HEAD, or a status without one."""


class HTTPConnection:
    """One connection from a client. It raises LocalProtocolError and nothing else.

    max_head: bytes of a request line and its headers, and of a chunked body's trailers.
    max_body: bytes of a request's body, without its chunks' framing.
    date: gives the value of the Date header, such as `email.utils.formatdate(usegmt=True)`.
    """

    __slots__ = (
        "_blank_line_seen",
        "_body",
        "_date",
        "_ending",
        "_framing",
        "_h11",
        "_is_head",
        "_is_old",
        "_max_body",
        "_max_head",
        "_phase",
        "_received",
        "_request",
        "_searched",
        "_to_send",
        "keep_alive",
        "peer_closed",
    )

    def __init__(self, *, max_head: int, max_body: int, date: Callable[[], str]) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._date = date
        self._h11: h11.Connection | None = None
        self._phase = Phase.IDLE
        self._received = bytearray()
        self._searched = 0
        self._blank_line_seen = False
        self._request: Request | None = None
        self._body: BodyReader | None = None
        self._to_send = b""
        self._is_head = False
        self._is_old = False
        self._framing: _Framing | None = None
        self._ending = b""

        self.keep_alive = True
        """Set it to False to end the connection after the present answer."""
        self.peer_closed = False
        """The client sent FIN. One whose request is being answered is taken to have left."""

    @property
    def phase(self) -> Phase:
        """What the driver waits for."""
        if self._phase is Phase.IDLE and self._received:
            return Phase.HEAD
        return self._phase

    @property
    def _parser(self) -> h11.Connection:
        """h11's side of the present request and its answer."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.SERVER)
        return self._h11

    # What comes in.

    def receive_data(self, data: bytes) -> None:
        """Bytes from the client. Call `next_request` after each, and read on in every phase."""
        if self._phase is Phase.CLOSED:
            return
        if self._phase is not Phase.ANSWERING:
            self._received += data
        elif self.keep_alive:
            self._received += data[: MAX_PIPELINED + 1 - len(self._received)]
            self._bound_pipelined()

    def receive_eof(self) -> None:
        """The client's FIN. A request that is not whole by now never will be."""
        self.peer_closed = True
        self.keep_alive = False
        if self._phase is not Phase.ANSWERING:
            self._close()

    def next_request(self) -> Request | Refused | None:
        """The next request once it is whole; None: not yet, or the one before is unanswered."""
        if self._phase is Phase.ANSWERING or self._phase is Phase.CLOSED:
            return None
        try:
            return self._read_request()
        except Refusal as refusal:
            refused = refusal.refused
        except h11.RemoteProtocolError as error:
            # What h11 quotes may be a key, if only a misspelled one.
            reason = str(error).partition(": bytearray(")[0]
            refused = Refused(error.error_status_hint, reason)
        self.keep_alive = False
        self._phase = Phase.ANSWERING
        self._request = self._body = None
        return refused

    def _read_request(self) -> Request | None:
        if self._request is None or self._body is None:
            head = self._read_head()
            if head is None:
                return None
            self._request, self._body = self._open(head)
            self._phase = Phase.BODY
        try:
            next(self._body)
        except StopIteration as stop:
            content, told = stop.value
        else:
            return None
        parser = self._parser
        if told:  # to h11, nothing is the end of the connection
            parser.receive_data(told)
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
        request = replace(self._request, body=content)
        self._request = self._body = None
        self._phase = Phase.ANSWERING
        self._bound_pipelined()
        return request

    def _read_head(self) -> h11.Request | None:
        received = self._received
        # RFC 9112 2.2: an empty line before a request is not held against the client.
        if not self._blank_line_seen and received.startswith(b"\r\n"):
            self._blank_line_seen = True
            del received[:2]
        if not received or (received == b"\r" and not self._blank_line_seen):
            return None
        if received[0] <= ord(" "):
            refuse(400, f"a request begins with its method, not 0x{received[0]:02x} (TLS?)")
        longest = min(MAX_REQUEST_LINE, self._max_head)
        if len(received) >= longest and received.find(b"\n", 0, longest) < 0:
            refuse(414, f"the request line is longer than {longest} bytes")
        blank_line = _BLANK_LINE.search(received, self._searched)
        end = len(received) if blank_line is None else blank_line.end()
        if end > self._max_head:
            refuse(431, f"the head of the request is longer than {self._max_head} bytes")
        if blank_line is None:
            self._searched = max(0, end - 2)
            return None
        head = bytes(received[:end])
        if head.count(b"\n") - 2 > MAX_FIELDS:
            refuse(431, f"the head of the request has more than {MAX_FIELDS} fields")
        refuse_odd(head, "the head")
        self._parser.receive_data(head)
        request = self._parser.next_event()
        assert isinstance(request, h11.Request)
        # Not before it was parsed: an answer to what cannot be looks here for HEAD.
        del received[:end]
        self._searched = 0
        self._blank_line_seen = False
        return request

    def _open(self, head: h11.Request) -> tuple[Request, BodyReader]:
        """The request without its body, and what will collect that."""
        method, version = head.method.decode(), head.http_version.decode()
        self._is_head = method == "HEAD"
        self._is_old = version < "1.1"
        if version not in ("1.0", "1.1"):
            refuse(505, f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        if method == "CONNECT":
            refuse(501, "this is no proxy: CONNECT is not implemented")
        headers = _joined(head.headers)
        # h11's state does not say so while the client also proposes an upgrade.
        options = headers.get("connection", "").lower().split(",")
        if self._is_old or "close" in map(str.strip, options):
            self.keep_alive = False
        host, path, query = _target(method, head.target.decode())
        if host is not None:
            headers["host"] = host
        if not _HOST.fullmatch(headers.get("host", "")):
            refuse(400, "the host of the request is no host")
        length = int(headers.get("content-length", "0"))
        chunked = "transfer-encoding" in headers
        if chunked and "content-length" in headers:
            refuse(400, "a request has Content-Length or Transfer-Encoding, not both")
        if chunked and self._is_old:
            refuse(400, "Transfer-Encoding is not for HTTP/1.0")
        if length > self._max_body:
            refuse(413, f"the body has {length} bytes, {self._max_body} are allowed")
        if "expect" in headers and not self._is_old:
            if headers["expect"].lower() != "100-continue":
                refuse(417, "the only expectation that can be met is 100-continue")
            if chunked or length:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                self._to_send = self._send(go_on)
        body = (
            chunked_body(self._received, self._max_body, self._max_head)
            if chunked
            else sized_body(self._received, length)
        )
        return Request(method, path, query, headers, b"", version), body

    def _bound_pipelined(self) -> None:
        if len(self._received) > MAX_PIPELINED:
            self.keep_alive = False
        if not self.keep_alive:
            self._received.clear()

    # What goes out.

    def data_to_send(self) -> bytes:
        """What the connection itself has to say: 100 Continue. An answer brings it along, too."""
        data, self._to_send = self._to_send, b""
        return data

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> bytes:
        """A whole answer; the body is left out where there is none, as after HEAD.

        In any phase but CLOSED; before the request is whole, it is the last one (408, 503).
        """
        if self._framing is not None or self._phase is Phase.CLOSED:
            raise LocalProtocolError("respond() after the answer was begun, or all was said")
        if self._phase is not Phase.ANSWERING:
            self.keep_alive = False
        if self._parser.our_state is h11.IDLE:
            self._is_head = self._received.startswith(b"HEAD ")
            # h11 did not see it was HEAD, and would miss the body.
            body = b"" if self._is_head else body
        bodiless = status in _BODILESS
        length = [] if bodiless else [("content-length", str(len(body)))]
        data = self._send_head(status, headers, length)
        if body and not (bodiless or self._is_head):
            data += self._send(h11.Data(data=body))
        data += self._send(h11.EndOfMessage())
        self._finish()
        return data

    def begin(self, status: int, headers: Headers) -> bytes:
        """The head of an answer whose body follows in frames."""
        wanted = self._framing is None and self._parser.our_state is h11.SEND_RESPONSE
        if not wanted or self._phase is not Phase.ANSWERING:
            raise LocalProtocolError("begin() without a request, or twice for one")
        fields = self._fields(headers)
        try:
            lines = b"".join([_line(name, value) for name, value in fields])
            head, self._ending, kept = self._around(status)
        except (h11.LocalProtocolError, UnicodeEncodeError):
            raise LocalProtocolError(_unsendable(status, fields)) from None
        if self._is_head or status in _BODILESS:
            self._framing = _Framing.NONE
        else:
            self._framing = _Framing.CLOSE if self._is_old else _Framing.CHUNKED
        self.keep_alive = self.keep_alive and kept
        self._h11 = None
        return self.data_to_send() + head + lines + b"\r\n"

    def _around(self, status: int) -> tuple[bytes, bytes, bool]:
        """What h11 writes before the lines of a streamed answer, what at its end, and whether the
        connection may be kept. h11 is of no use for anything else after this.
        """
        parser = self._parser
        key = status, self.keep_alive, self._is_head, self._is_old, parser.their_state
        around = _AROUND.get(key)
        if around is None:
            own = [] if self.keep_alive else [("connection", "close")]
            head = self._send(_head(status, own))[:-2]
            ending = self._send(h11.EndOfMessage())
            around = head, ending, parser.our_state is h11.DONE
            # In other states, such as that of an upgrade, it depends on more than the key has.
            if parser.their_state in (h11.DONE, h11.MUST_CLOSE):
                _AROUND[key] = around
        return around

    def frame(self, data: bytes) -> bytes:
        """A piece of the body as it goes over the wire; nothing for nothing."""
        if self._framing is _Framing.CHUNKED:
            # An empty chunk would be the last one.
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._framing is None:
            raise LocalProtocolError("frame() or end() before begin()")
        return data if self._framing is _Framing.CLOSE else b""

    def end(self, data: bytes = b"") -> bytes:
        """The last piece of the body, if any, and its end: one write."""
        last = self.frame(data) + self._ending
        self._finish()
        return last

    def abort(self) -> None:
        """Give the connection up. An answer stays without its end, so that nobody takes it for one.

        Over HTTP/1.0 the end of the connection is the end of the body: only a reset says more.
        """
        if self._h11 is not None:
            self._h11.send_failed()
        self._close()

    def _send_head(self, status: int, headers: Headers, own: list[tuple[str, str]]) -> bytes:
        fields = self._fields(headers)
        if not self.keep_alive:
            own = [*own, ("connection", "close")]
        try:
            response = _head(status, [*fields, *own])
        except (h11.LocalProtocolError, UnicodeEncodeError):
            raise LocalProtocolError(_unsendable(status, fields)) from None
        return self.data_to_send() + self._send(response)

    def _fields(self, headers: Headers) -> list[tuple[str, str]]:
        fields = list(headers)
        for name, _ in fields:
            if name.lower() in _OWN_FIELDS:
                raise LocalProtocolError(f"the header {name!r} is the connection's own")
        return [*fields, ("date", self._date())]

    def _send(self, event: h11.Event) -> bytes:
        try:
            return self._parser.send(event) or b""
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error)) from None

    def _finish(self) -> None:
        self._framing = None
        if not self.keep_alive or (self._h11 is not None and self._h11.our_state is not h11.DONE):
            self._close()
            return
        # For the next request there is another.
        self._h11 = None
        self._phase = Phase.IDLE

    def _close(self) -> None:
        self._phase = Phase.CLOSED
        self._framing = None
        self._received.clear()
        self._request = self._body = None


def _head(status: int, fields: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=fields, reason=_REASONS.get(status, ""))


# To look at each field takes h11 5 us, and to write the head of an answer and its end 25, though of
# a streamed one they are the same but for the fields that it does not have to know.
_AROUND: Final[dict[tuple[object, ...], tuple[bytes, bytes, bool]]] = {}


@functools.lru_cache
def _line(name: str, value: str) -> bytes:
    """A line of a head. Raises h11.LocalProtocolError for one that HTTP cannot carry."""
    if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
        raise h11.LocalProtocolError("no header")
    return f"{name}: {value}\r\n".encode("ascii")


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            refuse(400, f"the header {name!r} is there twice")
        else:
            headers[name] += ("; " if name == "cookie" else ", ") + value
    return headers


def _target(method: str, target: str) -> tuple[str | None, str, str]:
    """Host (None: the header says it), path and query."""
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return None, path, query
    if target == "*" and method == "OPTIONS":
        return None, target, ""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        refuse(400, "the target of a request is a path or an http URL")
    return absolute[1], absolute[2] or "/", absolute[3] or ""


def _unsendable(status: int, fields: list[tuple[str, str]]) -> str:
    """Why h11 does not take the head of an answer. A value is not repeated: it may be a secret."""
    for field in fields:
        try:
            h11.Response(status_code=200, headers=[field])
        except (h11.LocalProtocolError, UnicodeEncodeError):
            return f"the header {field[0]!r} is no name and value that HTTP can carry"
    return f"{status} is not the status of an answer"
