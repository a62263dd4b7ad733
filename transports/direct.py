"""`DirectNetwork`: connections to upstream that are asyncio protocols of our own.

What may live here: connecting, which connections there are and which are kept. What may not: what
comes over them (`connection`), bytes of HTTP (`wire`), policy (`deltawire.exchange`). Caller:
`on_asyncio`, where neither a client of the caller's own nor a proxy is in play.

Through httpx each delta passes a dozen generators and a cancel scope, which takes 30 us.

A place is what `max_connections` counts: a connection has one from before it is made until it is
closed. Whoever finds none waits, first come first served, and is handed a kept connection or the
place of one that is gone. So as long as somebody waits, no connection is idle.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

import h11

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.connection import Connection, DirectResponse, Failed, no_tls
from deltawire.transports.http import Origin, Target
from deltawire.transports.network import Trouble
from deltawire.transports.wire import Wire

# RFC 8305 5: when the next address is tried while the first has not answered.
_HAPPY_EYEBALLS: Final = 0.25
_CLOSED: Final = "the transport was closed"


class DirectNetwork:
    """The connections of one transport.

    target: what a URL says. tls: for https. The limits are those of `Transport`.
    """

    errors: tuple[type[Exception], ...] = (Failed,)

    def __init__(
        self,
        target: Callable[[str], Target],
        tls: ssl.SSLContext,
        *,
        max_connections: int | None,
        max_keepalive_connections: int | None,
        keepalive_expiry: float | None,
    ) -> None:
        self._target = target
        self._tls = tls
        # As httpx's client does it.
        tls.set_alpn_protocols(["http/1.1"])
        self._closed = False
        self._most = max_connections
        self._most_idle = max_keepalive_connections
        self._expiry = keepalive_expiry
        self._connections: set[Connection] = set()
        self._dialing: set[asyncio.Task[Any]] = set()
        # The last was used last; a place may be taken before there is a connection.
        self._idle: list[Connection] = []
        self._places = 0
        self._waiting: deque[_Waiting] = deque()

    # Requests.

    async def send(self, step: Open, wait: float) -> DirectResponse:
        if self._closed:
            raise LocalProtocolError(_CLOSED)
        request = step.request
        target = self._target(request.url)
        try:
            wire = Wire(
                request.method,
                target.path,
                target.headers(request.headers, request.body),
                request.body,
            )
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise Failed(str(error)) from None
        connection = await self._take_place(target.origin, step.connect)
        if connection is None:
            connection = await self._dial(target, step.connect)
        response = connection.ask(wire, self._release)
        try:
            await response.wait_for_head()
        except BaseException:
            connection.abort()
            raise
        return response

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        return Trouble(isinstance(error, Failed) and error.late, str(error))

    async def aclose(self) -> None:
        self._closed = True
        for waiting in self._waiting:
            waiting.give_up(Failed(_CLOSED))
        self._waiting.clear()
        for dialing in self._dialing:
            dialing.cancel()
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        unfinished = [*self._dialing, *(each.lost for each in connections)]
        if unfinished:
            await asyncio.wait(unfinished)

    async def _dial(self, target: Target, limit: float | None) -> Connection:
        """A new connection, for whoever has a place; the place is given back if there is none."""
        loop = asyncio.get_running_loop()
        connection = Connection(target.origin, self._tls, self._forget)
        self._connections.add(connection)
        dialing = loop.create_task(_connect(connection))
        self._dialing.add(dialing)
        dialing.add_done_callback(self._dialed)
        try:
            await asyncio.wait([dialing], timeout=limit)
            if not dialing.done():
                raise Failed(f"no connection within {limit} s (timeouts.connect)", late=True)
            if dialing.cancelled() or self._closed:
                raise Failed(_CLOSED)
            if (error := dialing.exception()) is not None:
                raise Failed(_no_connection(error)) from None
        except BaseException:
            dialing.cancel()
            connection.abort()
            raise
        return connection

    def _dialed(self, dialing: asyncio.Task[Any]) -> None:
        self._dialing.discard(dialing)
        if not dialing.cancelled():
            # Asked for, so that it is not missed if nobody waits for it any more.
            dialing.exception()

    # Places.

    async def _take_place(self, origin: Origin, limit: float | None) -> Connection | None:
        """A connection that was kept; None: there may be a new one."""
        if (kept := self._take_idle(origin)) is not None:
            return kept
        if self._most is not None and self._places >= self._most and self._idle:
            self._idle[0].close()
        if self._most is None or self._places < self._most:
            self._places += 1
            return None
        until = math.inf if limit is None else asyncio.get_running_loop().time() + limit
        late = Failed(f"no connection became free within {limit} s (max_connections)", late=True)
        place = await self._wait(_Waiting(origin, until, late))
        while place is not None and not place.usable:
            # Upstream has closed it on the way here.
            place.close()
            place = await self._wait(_Waiting(origin, until, late), first=True)
        return place

    async def _wait(self, waiting: _Waiting, *, first: bool = False) -> Connection | None:
        if first:
            self._waiting.appendleft(waiting)
            self._hand_on()
        else:
            self._waiting.append(waiting)
        try:
            return await waiting.place
        except BaseException:
            place = waiting.place
            if not (place.cancel() or place.cancelled() or place.exception() is not None):
                # It came in the moment of leaving.
                self._give_back(place.result())
            raise
        finally:
            waiting.stop()

    def _take_idle(self, origin: Origin) -> Connection | None:
        for connection in reversed(self._idle):
            if connection.origin == origin:
                self._stop_keeping(connection)
                if connection.usable:
                    return connection
                connection.close()
                return self._take_idle(origin)
        return None

    def _give_back(self, connection: Connection | None) -> None:
        if connection is None:
            self._places -= 1
            self._hand_on()
        else:
            self._release(connection)

    def _release(self, connection: Connection) -> None:
        """The connection is free."""
        while self._waiting and self._waiting[0].place.done():
            self._waiting.popleft()
        if self._waiting and self._waiting[0].origin == connection.origin:
            self._waiting.popleft().place.set_result(connection)
        elif self._waiting or self._most_idle == 0 or self._expiry == 0:
            connection.close()
        else:
            self._idle.append(connection)
            if self._expiry is not None:
                loop = asyncio.get_running_loop()
                connection.expiry = loop.call_later(self._expiry, connection.close)
            if self._most_idle is not None and len(self._idle) > self._most_idle:
                self._idle[0].close()

    def _forget(self, connection: Connection) -> None:
        """The connection is closed."""
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        self._stop_keeping(connection)
        self._places -= 1
        self._hand_on()

    def _stop_keeping(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.expiry is not None:
            connection.expiry.cancel()
            connection.expiry = None

    def _hand_on(self) -> None:
        """The place of a connection that is gone is for who has waited longest."""
        while self._waiting and (self._most is None or self._places < self._most):
            place = self._waiting.popleft().place
            if not place.done():
                self._places += 1
                place.set_result(None)


class _Waiting:
    """Who waits for a place, and until when: what it gets is a kept connection, or None."""

    def __init__(self, origin: Origin, until: float, late: Failed) -> None:
        loop = asyncio.get_running_loop()
        self.origin = origin
        self.place: asyncio.Future[Connection | None] = loop.create_future()
        self._timer = None if until == math.inf else loop.call_at(until, self.give_up, late)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def give_up(self, reason: Failed) -> None:
        if not self.place.done():
            self.place.set_exception(reason)


async def _connect(connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    _, host, port = connection.origin
    options: dict[str, Any] = {}
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host):
        # Other loops do it as they like. Cancelled at the wrong moment, asyncio leaves a socket of
        # this race to the garbage collector; so it is not run where there is but one address.
        options["happy_eyeballs_delay"] = _HAPPY_EYEBALLS
    await loop.create_connection(lambda: connection, host, port, **options)
    try:
        await connection.wait_until_ready()
    except ssl.SSLError:
        raise
    except OSError as error:
        # Somebody was there, so that it is not the address that is wrong.
        raise Failed(no_tls(str(error))) from None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _no_connection(error: BaseException) -> str:
    if isinstance(error, Failed):
        return str(error)
    return no_tls(str(error)) if isinstance(error, ssl.SSLError) else f"no connection: {error}"
