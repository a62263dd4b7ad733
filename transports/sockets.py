"""`SocketNetwork`: connections to upstream that are blocking sockets of our own.

What may live here: the connections, the way of an answer's bytes from `recv` to whoever reads them,
waiting for a place. What may not: who gets which connection (`places`), how one is made
(`dialing`), bytes of HTTP (`wire`), policy (`deltawire.exchange`). Caller: `sync`, where neither a
client of the caller's own nor a proxy is in play.

Through httpx each delta passes a dozen generators, which takes 30 us.

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
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.blocking import Line
from deltawire.transports.dialing import Dialing
from deltawire.transports.failures import (
    CLOSED,
    CLOSED_EARLY,
    CLOSED_HERE,
    CUT_OFF,
    Failed,
    broken,
    no_connection,
    no_place,
    no_tls,
    too_slow,
)
from deltawire.transports.http import Origin, Target
from deltawire.transports.network import Trouble
from deltawire.transports.places import Places
from deltawire.transports.readiness import is_readable
from deltawire.transports.tls import TLSSession
from deltawire.transports.watchdog import Guard, Watchdog, shut_down
from deltawire.transports.wire import State, Wire, wire_for

# As much as httpx reads at once.
_READ: Final = 64 * 1024
_DIRECT: Final = getattr(socket, "MSG_DONTWAIT", 0)

_now = time.monotonic


class Connection:
    """One connection, for one answer after the other, and one thread at a time.

    on_gone: told once when it is of no use any more, before its socket is closed.
    """

    def __init__(
        self,
        origin: Origin,
        peer: socket.socket,
        tls: ssl.SSLContext,
        watchdog: Watchdog,
        on_gone: Callable[[Connection], None],
    ) -> None:
        self.origin = origin
        self.peer = peer
        self.guard = Guard(watchdog, peer)
        self.closed_here = False
        """Whether another thread has ended it, with its transport."""
        self.expires = math.inf
        self._on_gone: Callable[[Connection], None] | None = on_gone
        self._tls = TLSSession(tls, origin[1]) if origin[0] else None
        self._unsent = b""
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
        if self._on_gone is None or self.expires <= _now() or (session and session.ended):
            return False
        try:
            while is_readable(self.peer):
                # Under TLS there may be something that is for the session alone.
                if session is None or session.receive_data(self.peer.recv(_READ)):
                    return False
                self.send(session.data_to_send())
                if session.ended or session.error is not None:
                    return False
        except OSError:
            return False
        return True

    def keep(self, seconds: float | None) -> None:
        """It is of no use any more then; it is closed when somebody looks at it next."""
        self.expires = math.inf if seconds is None else _now() + seconds

    def unkeep(self) -> None:
        self.expires = math.inf

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
        self._unsent = self._unsent + data if self._unsent else data
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
        unsent = memoryview(self._unsent)
        try:
            while unsent:
                unsent = unsent[self.peer.send(unsent, _DIRECT) :]
        except BlockingIOError:
            pass
        except OSError:
            # It may have answered before, without reading to the end.
            self._is_heard = False
            unsent = unsent[:0]
        self._unsent = bytes(unsent)

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

    def __init__(
        self, connection: Connection, wire: Wire, release: Callable[[Connection], None]
    ) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._connection = connection
        self._guard = connection.guard
        self._wire = wire
        self._release: Callable[[Connection], None] | None = release
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
            raise Failed(broken(error, answered=False)) from None
        self._guard.rest()
        if wire.head is None:
            raise Failed(wire.reason)
        self.status, self.headers = wire.head.status, wire.head.headers

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
            raise Failed(broken(error, answered=wire.head is not None))
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


class SocketNetwork:
    """The connections of one transport.

    target: what a URL says. tls: for https. The limits are those of `Transport`.
    """

    errors: tuple[type[Exception], ...] = (Failed,)

    def __init__(
        self,
        target: Callable[[str], Target],
        tls: ssl.SSLContext,
        watchdog: Watchdog,
        *,
        max_connections: int | None,
        max_keepalive_connections: int | None,
        keepalive_expiry: float | None,
    ) -> None:
        self._target = target
        self._tls = tls
        # As httpx's client does it.
        tls.set_alpn_protocols(["http/1.1"])
        self._watchdog = watchdog
        # Of everything below. A connection that is closed under it comes back to `_forget`.
        self._lock = threading.RLock()
        self._closed = False
        self._connections: set[Connection] = set()
        self._dialing: set[Dialing] = set()
        self._places: Places[Connection] = Places(
            max_connections, max_keepalive_connections, keepalive_expiry
        )

    def send(self, step: Open, limit: float, now: float, line: Line) -> SocketResponse:
        target = self._target(step.request.url)
        wire = wire_for(target, step.request)
        connection = self._take_place(target.origin, step.connect, limit, line)
        if connection is None:
            connection = self._dial(target.origin, step.connect, limit, line)
        line.open(partial(shut_down, connection.peer))
        if line.cut:
            line.close()
            connection.abort()
            raise Failed(CLOSED)
        response = SocketResponse(connection, wire, self._release)
        try:
            response.ask(limit, now)
        except BaseException:
            line.close()
            connection.abort()
            raise
        return response

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        return Trouble(isinstance(error, Failed) and error.late, str(error) or None)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._places.end()
            for dialing in self._dialing:
                dialing.stop()
            while (idle := self._places.oldest) is not None:
                idle.close()
            for connection in self._connections:
                connection.shut_down()

    def _dial(self, origin: Origin, connect: float | None, limit: float, line: Line) -> Connection:
        """A new connection, for whoever has a place; the place is given back if there is none."""
        until = min(limit, _until(connect))
        dialing = Dialing()
        connection: Connection | None = None
        with self._lock:
            self._dialing.add(dialing)
        try:
            line.open(dialing.stop)
            if self._closed:
                raise Failed(CLOSED)
            peer = dialing.connect(origin[1], origin[2], until)
            connection = Connection(origin, peer, self._tls, self._watchdog, self._forget)
            connection.shake_hands(until)
            with self._lock:
                dialing.done()
                self._connections.add(connection)
        except BaseException as error:
            line.close()
            self._give_up(dialing, connection)
            if isinstance(error, TimeoutError):
                raise _late(limit, too_slow(connect)) from None
            if isinstance(error, OSError):
                raise Failed(no_connection(error)) from None
            raise
        finally:
            with self._lock:
                self._dialing.discard(dialing)
        return connection

    def _give_up(self, dialing: Dialing, connection: Connection | None) -> None:
        dialing.stop()
        if connection is not None:
            connection.abort()
        else:
            with self._lock:
                self._places.leave()

    # Places.

    def _take_place(
        self, origin: Origin, connect: float | None, limit: float, line: Line
    ) -> Connection | None:
        """A connection that was kept; None: there may be a new one."""
        places = self._places
        with self._lock:
            if self._closed:
                raise LocalProtocolError(CLOSED)
            self._drop_expired()
            if (kept := places.take_kept(origin)) is not None:
                return kept
            if places.take_new():
                return None
            waiting = _Waiting(origin)
            places.wait(waiting)
        until = min(limit, _until(connect))
        place = self._given(waiting, connect, until, limit, line)
        while place is not None and not place.usable:
            # Upstream has closed it on the way here.
            with self._lock:
                place.close()
                waiting = _Waiting(origin)
                places.wait_first(waiting)
            place = self._given(waiting, connect, until, limit, line)
        return place

    def _given(
        self, waiting: _Waiting, connect: float | None, until: float, limit: float, line: Line
    ) -> Connection | None:
        line.open(partial(waiting.give_up, Failed(CLOSED)))
        try:
            waiting.wait(until)
        except BaseException:
            with self._lock:
                if waiting.has_place:
                    self._places.give_back(waiting.place)
                waiting.give_up(Failed(CLOSED))
            raise
        finally:
            line.close()
        with self._lock:
            # Whoever wakes it has said why; if nobody has, it is late.
            waiting.give_up(_late(limit, no_place(connect)))
        if waiting.has_place:
            return waiting.place
        raise waiting.reason or Failed(CLOSED)

    def _drop_expired(self) -> None:
        now = _now()
        while (oldest := self._places.oldest) is not None and oldest.expires <= now:
            oldest.close()

    def _release(self, connection: Connection) -> None:
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._drop_expired()
            self._places.release(connection)

    def _forget(self, connection: Connection) -> None:
        """The connection is closed."""
        with self._lock:
            self._connections.discard(connection)
            self._places.forget(connection)


class _Waiting:
    """A thread that waits for a place: what it gets is a kept connection, or None."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.has_place = False
        self.place: Connection | None = None
        self.reason: Failed | None = None
        self._woken = threading.Event()

    @property
    def over(self) -> bool:
        return self.has_place or self.reason is not None

    def wait(self, until: float) -> None:
        seconds = min(max(0.0, until - _now()), threading.TIMEOUT_MAX)
        self._woken.wait(None if until == math.inf else seconds)

    def give(self, connection: Connection | None) -> None:
        self.place, self.has_place = connection, True
        self._woken.set()

    def give_up(self, reason: Failed) -> None:
        if not self.over:
            self.reason = reason
            self._woken.set()


def _until(seconds: float | None) -> float:
    return math.inf if seconds is None else _now() + seconds


def _late(limit: float, reason: Failed) -> Failed:
    """Of two deadlines the one that passed: that of the exchange, which knows it, or another."""
    return Failed("", late=True) if _now() >= limit else reason
