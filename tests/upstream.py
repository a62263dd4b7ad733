"""An upstream on this machine, over real sockets, that does what a script says.

    gate = Gate()
    with Upstream() as upstream:
        upstream.play(Reply((frames[0], Hold(gate), *frames[1:])), model="gpt-5")
        ...  # a client of upstream.base_url, which is given the second frame after gate.set()
        upstream.wait_closed()

For tests of whatever does its own I/O. What happens when is in the script alone: nothing here
sleeps or looks at a clock, except for the limit after which a wait is given up. h11 reads the
requests and frames the replies; a reply goes wrong where h11 is not told to end it.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from http.client import responses
from itertools import groupby
from typing import Any, Final, Literal

import h11

from deltawire.testing import OPENAI, Answer, Habits, write_frames

Headers = tuple[tuple[str, str], ...]

LIMIT: Final = 60.0
"""Seconds after which a wait is given up. Nothing takes so long but a mistake."""

_READ: Final = 65536
# What a socket says whose peer is gone. Any other OSError is a fault of our own, or of the machine.
_GONE: Final = (ConnectionError, ssl.SSLError)


class Gate(threading.Event):
    """What a `Hold` waits for: an Event that also wakes whoever waits for a socket. Never reset."""

    def __init__(self) -> None:
        super().__init__()
        self._ringing = threading.Lock()
        self._ropes: list[socket.socket] = []

    def set(self) -> None:
        with self._ringing:
            super().set()
            for rope in self._ropes:
                rope.send(b"!")

    @contextlib.contextmanager
    def bell(self) -> Iterator[socket.socket]:
        """A socket that has something to read once the gate is set."""
        bell, rope = socket.socketpair()
        with bell, rope:
            with self._ringing:
                self._ropes.append(rope)
                if self.is_set():
                    rope.send(b"!")
            try:
                yield bell
            finally:
                with self._ringing:
                    self._ropes.remove(rope)


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing more is sent until the gate is set, unless the client closes, be it one way only."""

    gate: Gate


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (RST), and the reply is over."""


Piece = bytes | Hold | Reset


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response, as it goes over the wire.

    pieces: the body. Bytes are one write and one HTTP chunk each, hence as a rule one TCP segment.
    framing: close: neither length nor chunks (RFC 9112 6.3, rule 8): the body ends with the
        connection, so that its clean end and a cut differ only under TLS, where `cut` says no
        close_notify.
    http_version: what the status line says. After a 1.0 the connection is closed.
    ending: cut: FIN before the body is over, which is without the last chunk, or one byte short of
        the promised length. reset: RST there.
    head_hold: the head is sent only then.
    slice: the most bytes in a write, wherever that cuts heads, chunk sizes and chunks.
    chunk_size: the bytes in an HTTP chunk and its write, wherever that cuts the pieces. What comes
        before a `Hold` is sent before it, so that the chunk there may be smaller.
    """

    pieces: tuple[Piece, ...]
    _: KW_ONLY
    status: int = 200
    headers: Headers = (("Content-Type", "text/event-stream"),)
    framing: Literal["chunked", "length", "close"] = "chunked"
    http_version: Literal["1.1", "1.0"] = "1.1"
    ending: Literal["clean", "cut", "reset"] = "clean"
    head_hold: Hold | None = None
    slice: int | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.framing == "chunked" and self.http_version == "1.0":
            raise ValueError("HTTP/1.0 has no chunks: framing='length' or 'close'")

    def length(self) -> int:
        """What Content-Length says: more than there is, if the end must never come."""
        body = sum(len(piece) for piece in self.pieces if isinstance(piece, bytes))
        return body + (self.ending != "clean" or Reset() in self.pieces)

    def writes(self) -> Iterable[Piece]:
        """The pieces as they are sent."""
        pieces = (*self.pieces, Reset()) if self.ending == "reset" else self.pieces
        return pieces if self.chunk_size is None else _recut(pieces, self.chunk_size)


def _recut(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    for are_bytes, run in groupby(pieces, lambda piece: isinstance(piece, bytes)):
        if are_bytes:
            yield from _cut(b"".join(piece for piece in run if isinstance(piece, bytes)), size)
        else:
            yield from run


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def stream(answer: Answer, habits: Habits = OPENAI, **fields: Any) -> Reply:
    """The answer as a provider of these habits streams it, a piece per frame; fields of `Reply`."""
    return Reply(tuple(write_frames(answer, habits)), **fields)


def json_body(value: object, *, status: int = 200, headers: Headers = ()) -> Reply:
    """The value as the whole body."""
    return _whole(json.dumps(value).encode(), "application/json", status, headers)


def error(
    status: int,
    message: str = "Oh dear.",
    *,
    type: str | None = None,
    code: str | None = None,
    param: str | None = None,
    headers: Headers = (),
) -> Reply:
    """A refusal in OpenAI's shape."""
    type = type or ("server_error" if status >= 500 else "invalid_request_error")
    fault = {"message": message, "type": type, "param": param, "code": code}
    return json_body({"error": fault}, status=status, headers=headers)


def html(status: int) -> Reply:
    """What a proxy in front of the provider says, as nginx puts it."""
    title = f"{status} {responses.get(status, '')}".strip()
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\r\n"
    return _whole(page.encode(), "text/html", status)


def redirect(location: str, *, status: int = 307) -> Reply:
    return _whole(b"", "text/plain", status, (("Location", location),))


def _whole(body: bytes, kind: str, status: int, headers: Headers = ()) -> Reply:
    headers = (("Content-Type", kind), *headers)
    return Reply((body,), status=status, headers=headers, framing="length")


def gzipped(reply: Reply) -> Reply:
    """The reply compressed so that whoever has the bytes of a piece can read all of that piece."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    pieces = [
        packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        if isinstance(piece, bytes)
        else piece
        for piece in reply.pieces
    ]
    if reply.ending == "clean":
        pieces.append(packer.flush())
    headers = (*reply.headers, ("Content-Encoding", "gzip"))
    return replace(reply, pieces=tuple(pieces), headers=headers)


@dataclass(eq=False, slots=True)
class Received:
    """A request as it came.

    headers: their names in lower case; of a name that came twice, the last.
    connection: which one it came over, counted from 1.
    left: set when the client is seen to have closed before the reply was over.
    over: set when the reply was sent to its end, whatever end the script gives it.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    left: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def key(self) -> str | None:
        """The bearer token."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    @property
    def model(self) -> str | None:
        """What the body asks for; None for a body that asks for no model."""
        with contextlib.suppress(ValueError):
            if isinstance(self.json, dict) and isinstance(model := self.json.get("model"), str):
                return model
        return None


class _Connection:
    """A client's connection, on a thread of its own, which alone reads, writes and closes it.

    Where `socket.socket` is named, it is to pass by ssl, which would end the session, or miss it.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.socket = sock
        self._number = number
        self._http = h11.Connection(h11.SERVER)
        self._hung_up = False

    def serve(self, reply_to: Callable[[Received], Reply]) -> None:
        """Answer requests until one side closes."""
        with contextlib.suppress(*_GONE):
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.do_handshake()
            while request := self._receive():
                try:
                    was_reset = self._play(reply_to(request))
                except _GONE:
                    if not self._hung_up:
                        request.left.set()
                    return
                request.over.set()
                if was_reset:
                    return
                if self._http.our_state is not h11.DONE:
                    self._await_close()
                    return
                self._http.start_next_cycle()

    def hang_up(self) -> None:
        """Wake the thread, from another one, wherever it is."""
        self._hung_up = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def _receive(self) -> Received | None:
        """The next request, whole; None if the client closes instead."""
        head, body = self._next_event(), bytearray()
        while isinstance(event := self._next_event(), h11.Data):
            body += event.data
        if event is None or not isinstance(head, h11.Request):
            return None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        method, path = head.method.decode(), head.target.decode()
        return Received(method, path, headers, bytes(body), self._number)

    def _next_event(self) -> object:
        """h11's, or None if the client closes."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = self.socket.recv(_READ)
            if not data:
                return None
            self._http.receive_data(data)
        return event

    def _play(self, reply: Reply) -> bool:
        """Send the reply; whether it ends in a reset. Raises one of `_GONE` if the client left."""
        if reply.head_hold is not None:
            self._wait(reply.head_hold.gate)
        self._write(self._head(reply), reply.slice)
        for piece in reply.writes():
            if isinstance(piece, Hold):
                self._wait(piece.gate)
            elif isinstance(piece, Reset):
                # RST instead of FIN when the socket is closed.
                linger = struct.pack("ii", 1, 0)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return True
            else:
                self._write(self._http.send(h11.Data(data=piece)), reply.slice)
        if reply.ending == "clean":
            self._write(self._http.send(h11.EndOfMessage()), reply.slice)
            if self._http.our_state is h11.DONE:
                return False
            self._notify_close()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
        return False

    def _head(self, reply: Reply) -> bytes:
        headers = list(reply.headers)
        if reply.framing == "length":
            headers.append(("Content-Length", str(reply.length())))
        elif reply.framing == "close":
            # What h11 sends without length and without chunks, it sends to HTTP/1.0 clients only.
            self._http.their_http_version = b"1.0"
        if reply.http_version == "1.0":
            headers.append(("Connection", "close"))
        reason = responses.get(reply.status, "")
        head = self._http.send(
            h11.Response(status_code=reply.status, headers=headers, reason=reason)
        )
        # h11 can only say 1.1.
        return head.replace(b"HTTP/1.1", f"HTTP/{reply.http_version}".encode(), 1)

    def _write(self, data: bytes | None, size: int | None) -> None:
        if not data:
            return
        # The first write to a client that closed would succeed.
        if self._has_left():
            raise ConnectionAbortedError
        for part in _cut(data, size or len(data)):
            self.socket.sendall(part)

    def _wait(self, gate: Gate) -> None:
        with gate.bell() as bell, selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            selector.register(self.socket, selectors.EVENT_READ)
            while True:
                if self._has_left():
                    raise ConnectionAbortedError
                if any(key.fileobj is bell for key, _ in selector.select()):
                    return

    def _has_left(self) -> bool:
        """Whether the client closed. What else came from it is the next request."""
        self.socket.setblocking(False)
        try:
            while data := self.socket.recv(_READ):
                self._http.receive_data(data)
            return True
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            self.socket.setblocking(True)

    def _notify_close(self) -> None:
        """TLS's own end, without which a FIN is a cut."""
        if isinstance(self.socket, ssl.SSLSocket):
            # Not to wait for the client's: some never send one.
            self.socket.setblocking(False)
            with contextlib.suppress(OSError):
                self.socket.unwrap()
            self.socket.setblocking(True)

    def _await_close(self) -> None:
        """The connection stays open until the client closes as well: if it does not, that shows."""
        while socket.socket.recv(self.socket, _READ):
            pass


class Upstream:
    """The server. As a context manager it opens a port of its own; at the end all threads are over.

    What goes wrong in a thread is raised at the end, a client's breach of HTTP
    (`h11.RemoteProtocolError`) included; a client may close and reset wherever it likes.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Received] = []
        """In the order of their arrival, also those that were refused."""
        self.connections = 0
        """How many were opened so far."""
        self._tls = tls
        self._scripts: dict[tuple[str | None, str | None], list[Reply]] = {}
        self._open: set[_Connection] = set()
        # Ports of connections that only say that all before them were accepted.
        self._markers: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._failures: list[Exception] = []
        self._stopping = False
        self._changed = threading.Condition()

    def __enter__(self) -> Upstream:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self._listener.getsockname()
        scheme = "http" if self._tls is None else "https"
        self.base_url = f"{scheme}://127.0.0.1:{self.address[1]}/v1"
        self._accepting = threading.Thread(target=self._guard, args=(self._accept,), daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        # `accept` returns for nothing else everywhere.
        socket.create_connection(self.address).close()
        self._accepting.join()
        self._listener.close()
        with self._changed:
            for connection in self._open:
                connection.hang_up()
        for thread in self._threads:
            thread.join()
        if kind is None and self._failures:
            raise self._failures[0]

    def play(self, *replies: Reply, model: str | None = None, key: str | None = None) -> None:
        """Answer requests for this model with this bearer token in turn, the last reply for good.

        None is any. What is said for both goes before what is said for the key, that before what is
        said for the model. Said again for the same ones, it replaces what is left of the script.
        """
        with self._changed:
            self._scripts[model, key] = list(replies)

    @property
    def open_connections(self) -> int:
        """How many the client has not closed, although the server may have; a reset closes both."""
        with self._changed:
            return len(self._open)

    def wait_closed(self, limit: float = LIMIT) -> None:
        """Return when no client has a connection open; AssertionError after `limit` seconds."""
        self._accept_all()
        with self._changed:
            closed = self._changed.wait_for(lambda: not self._open, limit)
            assert closed, f"{len(self._open)} connections are still open after {limit} s"

    def wait_for_requests(self, count: int, limit: float = LIMIT) -> list[Received]:
        """The requests, when there are so many; AssertionError after `limit` seconds."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.requests) >= count, limit)
            assert came, f"{len(self.requests)} requests, not {count}, came in {limit} s"
            return list(self.requests)

    def _accept_all(self) -> None:
        """Connections that the system has made and nobody has accepted yet are open, too."""
        if self._stopping:
            return
        with socket.socket() as last:
            last.bind(("127.0.0.1", 0))
            port = last.getsockname()[1]
            with self._changed:
                self._markers.add(port)
            last.connect(self.address)
            with self._changed:
                came = self._changed.wait_for(lambda: port not in self._markers, LIMIT)
                assert came, f"not all connections were accepted in {LIMIT} s"

    def _is_marker(self, port: int) -> bool:
        with self._changed:
            if port not in self._markers:
                return False
            self._markers.remove(port)
            self._changed.notify_all()
            return True

    def _accept(self) -> None:
        while True:
            sock, address = self._listener.accept()
            if self._stopping:
                sock.close()
                return
            if self._is_marker(address[1]):
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = sock if self._tls is None else _secured(sock, self._tls)
            if secured is not None:
                self._start(secured)

    def _start(self, sock: socket.socket) -> None:
        with self._changed:
            self.connections += 1
            connection = _Connection(sock, self.connections)
            self._open.add(connection)
        serve = threading.Thread(target=self._guard, args=(self._serve, connection), daemon=True)
        self._threads.append(serve)
        serve.start()

    def _serve(self, connection: _Connection) -> None:
        try:
            connection.serve(self._reply_to)
        finally:
            with self._changed:
                self._open.discard(connection)
                connection.socket.close()
                self._changed.notify_all()

    def _reply_to(self, request: Received) -> Reply:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            path = request.path.split("?")[0]
            if request.method != "POST" or not path.endswith(("/responses", "/chat/completions")):
                return error(404, f"Invalid URL ({request.method} {request.path})")
            model, key = request.model, request.key
            for asked in ((model, key), (None, key), (model, None), (None, None)):
                if script := self._scripts.get(asked):
                    return script.pop(0) if len(script) > 1 else script[0]
        return error(404, f"The model `{model}` does not exist", code="model_not_found")

    def _guard(self, target: Callable[..., None], *arguments: object) -> None:
        try:
            target(*arguments)
        except Exception as failure:
            self._failures.append(failure)


def _secured(sock: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket | None:
    """The socket under TLS, before the handshake; None if the client is gone already."""
    try:
        # ssl forgets to close a socket that it finds dead.
        sock.getpeername()
        return tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    except OSError:
        sock.close()
        return None
