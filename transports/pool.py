"""`SocketNetwork`: connections to upstream that are blocking sockets of our own.

What may live here: which connections there are, and waiting for one. What may not: who gets which
(`places`), how one is made (`dialing`), what comes over it (`sockets`), policy
(`deltawire.exchange`). Caller: `sync`, where neither a client of the caller's own nor a proxy is in
play.

Through httpx each delta passes a dozen generators, which takes 30 us.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.blocking import Line
from deltawire.transports.dialing import Dialing
from deltawire.transports.failures import CLOSED, Failed, no_connection, no_place, too_slow
from deltawire.transports.http import Origin, Target
from deltawire.transports.network import Trouble
from deltawire.transports.places import Places
from deltawire.transports.sockets import Connection, SocketResponse
from deltawire.transports.watchdog import Watchdog, shut_down
from deltawire.transports.wire import wire_for

_now = time.monotonic


class SocketNetwork:
    """The connections of one transport.

    target: what a URL says. tls: for https.
    """

    errors: tuple[type[Exception], ...] = (Failed,)

    def __init__(
        self,
        watchdog: Watchdog,
        target: Callable[[str], Target],
        tls: ssl.SSLContext,
        places: Places[Connection],
    ) -> None:
        self._watchdog = watchdog
        self._target = target
        self._tls = tls
        # Of everything below. A connection that is closed under it comes back to `_forget`.
        self._lock = threading.RLock()
        self._closed = False
        self._connections: set[Connection] = set()
        self._dialing: set[Dialing] = set()
        self._places = places

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
