"""`SocketConnection`: a blocking socket to upstream, and the answer that comes over it.

What may live here: the way of an answer's bytes from `recv` to whoever reads them, and how a
connection ends. What may not: which connections there are (`pool`), how one is made (`dialing`),
bytes of HTTP (`wire`).

A socket blocks, so that a read is one system call. Its deadline is kept by the watchdog, and who
hangs up does the same: the socket is shut down, and the thread that is blocked in it comes back.
Whatever does that is stopped before the socket is given back or closed, so that it never hits
another's.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final

from deltawire.transports.connection import (
    CLOSED_EARLY,
    CLOSED_HERE,
    CUT_OFF,
    broken,
    is_readable,
    no_tls,
)
from deltawire.transports.http import Origin
from deltawire.transports.network import Failed
from deltawire.transports.tls import TLSSession
from deltawire.transports.watchdog import Guard, Watchdog, shut_down
from deltawire.transports.wire import State, Wire

# As much as httpx reads at once.
_READ: Final = 64 * 1024
_AT_ONCE: Final = getattr(socket, "MSG_DONTWAIT", 0)

_now = time.monotonic


class SocketConnection:
    """One connection, for one answer after the other, and one thread at a time.

    on_gone: told once when it is of no use any more, before its socket is closed.
    """

    __slots__ = (
        "_is_heard",
        "_on_gone",
        "_tls",
        "_unsent",
        "closed_here",
        "expires",
        "guard",
        "origin",
        "peer",
    )

    def __init__(
        self,
        origin: Origin,
        peer: socket.socket,
        tls: ssl.SSLContext,
        watchdog: Watchdog,
        on_gone: Callable[[SocketConnection], None],
    ) -> None:
        self.origin = origin
        self.peer = peer
        self.guard = Guard(watchdog, peer)
        self.closed_here = False
        """Whether another thread has ended it, with its transport."""
        self.expires = math.inf
        """While it is kept: until when."""
        self._on_gone: Callable[[SocketConnection], None] | None = on_gone
        self._tls = TLSSession(tls, origin[1]) if origin[0] else None
        # A view, for a request may be large, and go out in many pieces.
        self._unsent = memoryview(b"")
        self._is_heard = True

    def shake_hands(self, until: float) -> None:
        """Be ready for requests. Raises Failed, and TimeoutError."""
        session = self._tls
        if session is None:
            return
        self.guard.set(until, _now())
        try:
            self.send(session.start())
            while not session.established:
                # Somebody is there, so that it is not the address that is wrong.
                if not (data := self._receive_raw()):
                    raise OSError(CLOSED_EARLY)
                plain = session.receive_data(data)
                self.send(session.data_to_send())
                if session.error is not None:
                    raise session.error
                if plain:
                    # Nothing was asked.
                    raise OSError(CUT_OFF)
        except OSError as error:
            if self.guard.fired:
                raise TimeoutError from None
            raise Failed(no_tls(str(error))) from None
        self.guard.stop()

    # What is kept.

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known: there is no FIN, nor what nobody asked for."""
        session = self._tls
        if self._on_gone is None or (session and session.ended):
            return False
        try:
            while is_readable(self.peer):
                # Under TLS there may be something that is for the session alone.
                if session is None or not (data := self.peer.recv(_READ)):
                    return False
                if session.receive_data(data):
                    return False
                self.send(session.data_to_send())
                if session.ended or session.error is not None:
                    return False
        except OSError:
            return False
        return True

    # What is sent and received.

    @property
    def is_clear(self) -> bool:
        """Whether all was read that was sent; an answer may come before that."""
        return self._is_heard and not self._unsent

    def say(self, data: bytes) -> None:
        """Send a request, as far as it can be sent at once; the rest while it is listened to."""
        self.send(data if self._tls is None else self._tls.send(data))

    def receive(self) -> bytes:
        """What upstream says next; b"" if it says no more. Raises Failed and OSError."""
        if self._tls is None:
            if self._unsent:
                self._send_on()
            return self.peer.recv(_READ)
        return self._receive_secured(self._tls)

    def send(self, data: bytes) -> None:
        self._unsent = memoryview(b"".join((self._unsent, data)) if self._unsent else data)
        self._flush()

    def _receive_secured(self, session: TLSSession) -> bytes:
        while True:
            if session.error is not None:
                raise session.error
            if session.ended:
                return b""
            if not (data := self._receive_raw()):
                raise OSError(CUT_OFF)
            plain = session.receive_data(data)
            if answer := session.data_to_send():
                self.send(answer)
            if plain:
                return plain

    def _receive_raw(self) -> bytes:
        if self._unsent:
            self._send_on()
        return self.peer.recv(_READ)

    def _send_on(self) -> None:
        """Send what is unsent, until there is something to read."""
        poll = select.poll()
        poll.register(self.peer, select.POLLIN | select.POLLOUT)
        while self._unsent:
            for _, event in poll.poll():
                if event & ~select.POLLOUT:
                    return
                self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.peer.send(self._unsent, _AT_ONCE) :]
        except BlockingIOError:
            pass
        except OSError:
            # It may have answered before, without reading to the end.
            self._is_heard = False
            self._unsent = memoryview(b"")

    # Its end.

    def close(self) -> None:
        """In good manners, but without waiting for the peer's."""
        if self._tls is not None and self._on_gone is not None and self.is_clear:
            self.send(self._tls.end())
        self.abort()

    def abort(self) -> None:
        """At once, whatever is on its way."""
        self.guard.stop()
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone(self)
        self.peer.close()

    def shut_down(self) -> None:
        """Let the thread that uses it come back."""
        self.closed_here = True
        shut_down(self.peer)


class SocketResponse:
    """The answer to one request."""

    __slots__ = ("_came", "_connection", "_guard", "_release", "_wire", "headers", "status")

    def __init__(
        self, connection: SocketConnection, wire: Wire, release: Callable[[SocketConnection], None]
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._connection = connection
        self._guard = connection.guard
        self._wire = wire
        self._release: Callable[[SocketConnection], None] | None = release
        # What came with the head.
        self._came = b""

    def ask(self, limit: float, now: float) -> None:
        """Send the request and wait for the head. Raises Failed."""
        connection, wire = self._connection, self._wire
        self._guard.set(limit, now)
        try:
            connection.say(wire.data_to_send())
            while wire.head is None and not wire.over:
                self._came = self._receive()
        except ssl.SSLError as error:
            raise Failed(broken(error, wire)) from None
        self._guard.rest()
        head, wire.head = wire.head, None
        if head is None:
            raise Failed(wire.reason)
        self.status, self.headers = head.status, head.headers

    def read(self, deadline: float, now: float) -> bytes:
        """What came next of the body, b"" at its end. Raises Failed."""
        if self._came:
            came, self._came = self._came, b""
            return came
        wire, guard = self._wire, self._guard
        if not wire.over:
            if now >= deadline:
                raise Failed("", late=True)
            guard.set(deadline, now)
            while not wire.over:
                if body := self._receive():
                    guard.rest()
                    return body
            guard.rest()
        if wire.state is State.BROKEN:
            raise Failed(wire.reason)
        return b""

    def _receive(self) -> bytes:
        connection, wire = self._connection, self._wire
        error: OSError | None = None
        try:
            if data := connection.receive():
                return wire.receive_data(data)
        except OSError as reason:
            error = reason
        # One that was shut down looks as if upstream had ended it.
        if self._guard.fired:
            raise Failed("", late=True)
        if connection.closed_here:
            raise Failed(CLOSED_HERE)
        if error is not None:
            raise Failed(broken(error, wire))
        wire.receive_eof()
        return b""

    def close(self) -> None:
        release, self._release = self._release, None
        if release is None:
            return
        connection, wire = self._connection, self._wire
        self._guard.stop()
        if wire.state is State.ENDED and wire.reusable and connection.is_clear:
            release(connection)
        else:
            connection.abort()
