"""`SocketNetwork`: connections to upstream that are blocking sockets of our own.

What may live here: which connections there are, and waiting for one. What may not: who gets which
(`places`), how one is made (`dialing`), what comes over it (`sockets`), policy
(`deltawire.exchange`). Caller: `sync`, where neither a client of the caller's own nor a proxy is in
play.

Through httpx each delta passes a dozen generators, which takes 30 us.
"""

from __future__ import annotations

import math
import threading
import time
from functools import partial
from typing import Any

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.blocking import Line
from deltawire.transports.dialing import Dialing
from deltawire.transports.direct import (
    CLOSED,
    OwnNetwork,
    no_connection,
    no_place,
    too_late,
)
from deltawire.transports.http import Origin
from deltawire.transports.network import Failed
from deltawire.transports.places import Waiting
from deltawire.transports.sockets import SocketConnection, SocketResponse
from deltawire.transports.watchdog import Watchdog, shut_down
from deltawire.transports.wire import wire_for

_now = time.monotonic


class SocketNetwork(OwnNetwork[SocketConnection]):
    """The connections of one transport. Many threads may use it."""

    def __init__(self, watchdog: Watchdog, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        self._watchdog = watchdog
        # Of all that is here. A connection that is closed under it comes back to `_forget`.
        self._lock = threading.RLock()
        self._dialing: set[Dialing] = set()

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

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._places.close(CLOSED)
            for dialing in self._dialing:
                dialing.stop()
            for idle in list(self._places.idle):
                idle.close()
            for connection in self._connections:
                connection.shut_down()

    def _dial(
        self, origin: Origin, connect: float | None, limit: float, line: Line
    ) -> SocketConnection:
        """A new connection, for whoever has a place; the place is given back if there is none."""
        until = min(limit, _until(connect))
        dialing = Dialing()
        connection: SocketConnection | None = None
        with self._lock:
            self._dialing.add(dialing)
        try:
            line.open(dialing.stop)
            if self._closed:
                raise Failed(CLOSED)
            peer = dialing.connect(origin[1], origin[2], until)
            connection = SocketConnection(origin, peer, self._tls, self._watchdog, self._forget)
            connection.shake_hands(until)
            with self._lock:
                dialing.done()
                self._connections.add(connection)
        except BaseException as error:
            line.close()
            self._give_up(dialing, connection)
            if isinstance(error, TimeoutError):
                raise _late(limit, too_late(connect)) from None
            if isinstance(error, OSError):
                raise no_connection(error) from None
            raise
        finally:
            with self._lock:
                self._dialing.discard(dialing)
        return connection

    def _give_up(self, dialing: Dialing, connection: SocketConnection | None) -> None:
        dialing.stop()
        if connection is not None:
            connection.abort()
        else:
            with self._lock:
                self._places.give_back(None)

    # Places.

    def _take_place(
        self, origin: Origin, connect: float | None, limit: float, line: Line
    ) -> SocketConnection | None:
        """A connection that was kept; None: there may be a new one."""
        places = self._places
        with self._lock:
            if self._closed:
                raise LocalProtocolError(CLOSED)
            self._drop_expired()
            if (waiting := places.ask(origin)).done:
                return waiting.place
        until = min(limit, _until(connect))
        while True:
            try:
                self._wait(waiting, until, line)
            except BaseException:
                with self._lock:
                    places.leave(waiting)
                raise
            with self._lock:
                waiting.give_up(Failed(CLOSED) if line.cut else _late(limit, no_place(connect)))
                if places.received(waiting):
                    return waiting.place

    def _wait(self, waiting: Waiting[SocketConnection], until: float, line: Line) -> None:
        """Until it is done, or the line is cut, or the time is over."""
        woken = threading.Event()
        with self._lock:
            if waiting.done:
                return
            waiting.wake = woken.set
        line.open(woken.set)
        try:
            seconds = min(max(0.0, until - _now()), threading.TIMEOUT_MAX)
            woken.wait(None if until == math.inf else seconds)
        finally:
            line.close()

    def _drop_expired(self) -> None:
        now, idle = _now(), self._places.idle
        while idle and idle[0].expires <= now:
            idle[0].close()

    def _keep(self, connection: SocketConnection) -> None:
        # It is closed when a connection is looked for next.
        connection.expires = _until(self._expiry)

    def _release(self, connection: SocketConnection) -> None:
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._drop_expired()
            self._places.release(connection)

    def _forget(self, connection: SocketConnection) -> None:
        """The connection is closed."""
        with self._lock:
            self._connections.discard(connection)
            super()._forget(connection)


def _until(seconds: float | None) -> float:
    return math.inf if seconds is None else _now() + seconds


def _late(limit: float, reason: Failed) -> Failed:
    """Of two deadlines the one that passed: that of the exchange, which knows it, or another."""
    return Failed("", late=True) if _now() >= limit else reason
