"""One connection to upstream, and the answer that comes over it, whichever the event loop is.

What may live here: the way of an answer's bytes from `data_received` to whoever reads them, and how
a connection ends. What may not: which connections there are (`direct`), bytes of HTTP (`wire`), and
how one waits, which each event loop has of its own (`asyncio_network`, `trio_network`).

An answer is read piece by piece, or pushed to a receiver in the moment that it comes; then nothing
stands between the socket and the receiver, no task is woken, and nothing is queued.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol

from deltawire.transports.http import Origin
from deltawire.transports.network import Failed
from deltawire.transports.tls import TLSSession
from deltawire.transports.wire import State, Wire

# What an answer may be ahead of its reader: as much as httpx reads at once.
_MAX_QUEUED: Final = 64 * 1024
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
CLOSED_EARLY: Final = "the connection was closed while it was made"
CLOSED_HERE: Final = "the connection was closed here"
CUT_OFF: Final = "the connection was cut off"


class Receiver(Protocol):
    """Who is told what comes of an answer, in the moment it comes."""

    def receive_data(self, data: bytes) -> None: ...

    def receive_end(self, error: Failed | None) -> None:
        """There is no more: the answer is whole, or the error says why it is not."""


class Socket(Protocol):
    """What a connection writes to: of asyncio's transports, what is needed here."""

    def write(self, data: bytes, /) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        """Once what was written is gone."""

    def abort(self) -> None:
        """At once. Whatever closes it, `connection_lost` follows."""


class DirectResponse:
    """The answer to one request: read piece by piece, or pushed to a receiver."""

    __slots__ = (
        "_connection",
        "_error",
        "_queue",
        "_queued",
        "_receiver",
        "_wire",
        "headers",
        "status",
    )

    # Deadlines are kept by whoever reads.
    patience: float | None = None

    def __init__(self, connection: Connection, wire: Wire) -> None:
        self.status = 0
        self.headers = _NO_HEADERS
        self._connection = connection
        self._wire = wire
        self._queue: list[bytes] = []
        self._queued = 0
        self._receiver: Receiver | None = None
        self._error: Failed | None = None

    # For whoever asked.

    async def wait_for_head(self) -> None:
        while self._wire.head is None and self._error is None:
            await self._wait()
        head = self._wire.head
        if head is None:
            raise self._error or Failed("there is no answer")
        self.status, self.headers = head.status, head.headers
        self._wire.head = None

    async def read(self) -> bytes:
        """All that has come since the last read, or what comes next."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._wire.over:
                raise StopAsyncIteration
            await self._wait()
        return self._take()

    def push_to(self, receiver: Receiver) -> None:
        """Hand what has come, and from now on whatever comes, to the receiver."""
        self.headers = _NO_HEADERS
        self._receiver = receiver
        if self._queue:
            receiver.receive_data(self._take())
        if self._receiver is receiver and (self._wire.over or self._error is not None):
            receiver.receive_end(self._error)

    def pull(self) -> None:
        """Keep what comes for those who read."""
        self._receiver = None

    def pause(self) -> None:
        """Let upstream wait; for who is pushed to."""
        self._connection.pause_reading()

    def resume(self) -> None:
        self._connection.resume_reading()

    async def close(self) -> None:
        self._receiver = None
        self._connection.finish(self, self._wire)

    async def _wait(self) -> None:
        """Until something has come."""
        raise NotImplementedError

    def _wake(self) -> None:
        """Something has come."""

    def _take(self) -> bytes:
        # Upstreams send up to 2 KB of them; by now they were looked at.
        self.headers = _NO_HEADERS
        data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
        self._queue.clear()
        if self._queued > _MAX_QUEUED:
            self._connection.resume_reading()
        self._queued = 0
        return data

    # For the connection.

    def receive_data(self, data: bytes) -> None:
        body = self._wire.receive_data(data)
        if self._receiver is not None:
            if body:
                self._receiver.receive_data(body)
        elif body:
            self._queue.append(body)
            self._queued += len(body)
            if self._queued > _MAX_QUEUED:
                self._connection.pause_reading()
        if self._wire.over:
            self._finish()
        elif self._receiver is None:
            self._wake()

    def receive_eof(self, *, clean: bool) -> None:
        """The peer says nothing more. `clean`: it said so itself, as TLS can tell."""
        if not clean and not self._wire.over:
            self.receive_break(None)
        else:
            self._wire.receive_eof()
            self._finish()

    def receive_break(self, error: Exception | None) -> None:
        """The connection is gone."""
        if self._wire.over or self._error is not None:
            return
        self._error = Failed(broken(error, self._wire))
        self._finish()

    def _finish(self) -> None:
        if self._wire.state is State.BROKEN and self._error is None:
            self._error = Failed(self._wire.reason)
        self._wake()
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.receive_end(self._error)


class Connection:
    """One connection, for one answer after the other.

    on_gone: told once when it is of no use any more.
    """

    __slots__ = ("_on_gone", "_release", "_response", "_tls", "_transport", "origin")

    response: ClassVar[type[DirectResponse]]

    def __init__(self, origin: Origin, tls: ssl.SSLContext, on_gone: Callable[[Any], None]) -> None:
        self.origin = origin
        self._on_gone: Callable[[Any], None] | None = on_gone
        self._release: Callable[[Any], None] | None = None
        self._transport: Socket | None = None
        self._tls = TLSSession(tls, origin[1]) if origin[0] else None
        self._response: DirectResponse | None = None

    # What each event loop does in its own way.

    async def ready(self) -> None:
        """Until requests can be sent. Raises OSError if there will be no connection."""
        raise NotImplementedError

    def _be_ready(self, error: Exception | None) -> None:
        """Requests can be sent, or, if there is an error, never will be; the first word counts."""
        raise NotImplementedError

    def _be_lost(self) -> None:
        """Its socket is closed; may be said again."""
        raise NotImplementedError

    def _has_unread(self) -> bool:
        """Whether there is something to read that nobody asked for, an end included."""
        raise NotImplementedError

    # What the event loop calls.

    def begin(self, transport: Socket) -> None:
        self._transport = transport
        if self._on_gone is None:
            # Nobody waits for it any more.
            transport.abort()
        elif self._tls is None:
            self._be_ready(None)
        else:
            transport.write(self._tls.start())

    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            self._receive_secured(self._tls, data)
        elif self._response is not None:
            self._response.receive_data(data)
        else:
            # Nothing was asked.
            self.close()

    def eof_received(self) -> None:
        if self._response is not None:
            self._response.receive_eof(clean=self._tls is None or self._tls.ended)
        self._go()

    def connection_lost(self, error: Exception | None) -> None:
        if self._response is not None:
            self._response.receive_break(error)
        self._be_ready(error or ConnectionResetError(CLOSED_EARLY))
        self._go()
        self._transport = None
        self._be_lost()

    def _receive_secured(self, session: TLSSession, data: bytes) -> None:
        plain = session.receive_data(data)
        if self._transport is not None and (answer := session.data_to_send()):
            self._transport.write(answer)
        if session.established:
            self._be_ready(None)
        if plain and self._response is not None:
            self._response.receive_data(plain)
        if session.error is not None:
            self._be_ready(session.error)
            if self._response is not None:
                self._response.receive_break(session.error)
            self._go()
        elif session.ended:
            self.eof_received()
        if self._response is None and (plain or session.error is not None or session.ended):
            self.close()

    # What is done with it.

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known; a FIN may be there that nobody has read yet."""
        transport = self._transport
        if transport is None or self._on_gone is None or transport.is_closing():
            return False
        return not self._has_unread()

    def ask(self, wire: Wire, release: Callable[[Any], None]) -> DirectResponse:
        """Send a request. `release`: told when the connection is free for another one."""
        self._release = release
        self._response = self.response(self, wire)
        if self._transport is None or self._on_gone is None:
            self._response.receive_break(None)
            return self._response
        try:
            data = wire.data_to_send()
            self._transport.write(data if self._tls is None else self._tls.send(data))
        except ssl.SSLError as error:
            self._response.receive_break(error)
        return self._response

    def finish(self, response: DirectResponse, wire: Wire) -> None:
        """The answer is wanted no longer."""
        transport, release = self._transport, self._release
        if self._response is not response:
            return
        self._response = self._release = None
        kept = wire.state is State.ENDED and wire.reusable and self._on_gone is not None
        # An answer may come before the whole of its question was read.
        if not kept or transport is None or transport.get_write_buffer_size() or release is None:
            self.abort()
        else:
            transport.resume_reading()
            release(self)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """In good manners, but without waiting for the peer's. An answer under way is broken."""
        if self._response is not None:
            self._response.receive_break(ConnectionAbortedError(CLOSED_HERE))
        if self._transport is not None and not self._transport.is_closing():
            if self._tls is not None:
                self._transport.write(self._tls.end())
            self._transport.close()
        self.abort()

    def abort(self) -> None:
        """At once, whatever is on its way."""
        self._response = None
        if self._transport is not None:
            self._transport.abort()
        else:
            self._be_lost()
        self._go()

    def _go(self) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone(self)


def broken(error: Exception | None, wire: Wire) -> str:
    """The text of what ended a connection before it ended the answer."""
    text = str(error or "") or CUT_OFF
    return no_tls(text) if isinstance(error, ssl.SSLError) and wire.state is State.HEAD else text


def no_tls(text: str) -> str:
    """The text of an error of TLS, with the settings to look at."""
    return f"no TLS connection: {text} (verify, cert)"


def is_readable(sock: Any) -> bool:
    """Whether there is something to read, an end included."""
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
