"""`DirectNetwork`: connections to upstream that are asyncio protocols of our own.

What may live here: connecting, and which connections there are. What may not: which are kept
(`places`), what comes over them (`connection`), bytes of HTTP (`wire`), policy
(`deltawire.exchange`). Caller: `on_asyncio`, where neither a client of the caller's own nor a proxy
is in play.

Through httpx each delta passes a dozen generators and a cancel scope, which takes 30 us.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.connection import Connection, DirectResponse
from deltawire.transports.failures import (
    CLOSED,
    Failed,
    no_connection,
    no_place,
    no_tls,
    too_slow,
)
from deltawire.transports.http import Origin, Target
from deltawire.transports.network import Trouble
from deltawire.transports.places import Places
from deltawire.transports.wire import wire_for

# RFC 8305 5: when the next address is tried while the first has not answered.
_HAPPY_EYEBALLS: Final = 0.25


class DirectNetwork:
    """The connections of one transport.

    target: what a URL says. tls: for https.
    """

    errors: tuple[type[Exception], ...] = (Failed,)

    def __init__(
        self,
        target: Callable[[str], Target],
        tls: ssl.SSLContext,
        places: Places[Connection],
    ) -> None:
        self._target = target
        self._tls = tls
        self._closed = False
        self._connections: set[Connection] = set()
        self._dialing: set[asyncio.Task[Any]] = set()
        self._places = places

    # Requests.

    async def send(self, step: Open, wait: float) -> DirectResponse:
        if self._closed:
            raise LocalProtocolError(CLOSED)
        target = self._target(step.request.url)
        wire = wire_for(target, step.request)
        connection = await self._take_place(target.origin, step.connect)
        if connection is None:
            connection = await self._dial(target, step.connect)
        response = connection.ask(wire, self._places.release)
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
        self._places.end()
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
                raise too_slow(limit)
            if dialing.cancelled() or self._closed:
                raise Failed(CLOSED)
            if (error := dialing.exception()) is not None:
                raise Failed(no_connection(error)) from None
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
        places = self._places
        if (kept := places.take_kept(origin)) is not None:
            return kept
        if places.take_new():
            return None
        until = math.inf if limit is None else asyncio.get_running_loop().time() + limit
        waiting = _Waiting(origin, until, no_place(limit))
        places.wait(waiting)
        place = await self._given(waiting)
        while place is not None and not place.usable:
            # Upstream has closed it on the way here.
            place.close()
            waiting = _Waiting(origin, until, no_place(limit))
            places.wait_first(waiting)
            place = await self._given(waiting)
        return place

    async def _given(self, waiting: _Waiting) -> Connection | None:
        try:
            return await waiting.place
        except BaseException:
            place = waiting.place
            if not (place.cancel() or place.cancelled() or place.exception() is not None):
                # It came in the moment of leaving.
                self._places.give_back(place.result())
            raise
        finally:
            waiting.stop()

    def _forget(self, connection: Connection) -> None:
        """The connection is closed."""
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        self._places.forget(connection)


class _Waiting:
    """Who waits for a place, and until when: what it gets is a kept connection, or None."""

    def __init__(self, origin: Origin, until: float, late: Failed) -> None:
        loop = asyncio.get_running_loop()
        self.origin = origin
        self.place: asyncio.Future[Connection | None] = loop.create_future()
        self._timer = None if until == math.inf else loop.call_at(until, self.give_up, late)

    @property
    def over(self) -> bool:
        return self.place.done()

    def give(self, connection: Connection | None) -> None:
        self.place.set_result(connection)

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
        await connection.ready
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
