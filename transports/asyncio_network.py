"""`AsyncioNetwork`: connections to upstream that are asyncio protocols of our own.

What may live here: what asyncio has of its own in making connections and waiting for what comes
over them. The rest is `direct` and `connection`. Caller: `on_asyncio`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final, cast

from deltawire.transports.connection import Connection, DirectResponse, is_readable
from deltawire.transports.direct import (
    CLOSED,
    DirectNetwork,
    no_connection,
    no_place,
    secured,
    too_late,
)
from deltawire.transports.http import Origin, Target
from deltawire.transports.network import Failed
from deltawire.transports.places import Waiting
from deltawire.transports.wire import Wire

# RFC 8305 5: when the next address is tried while the first has not answered.
_HAPPY_EYEBALLS: Final = 0.25


class AsyncioResponse(DirectResponse):
    """An answer whose bytes asyncio brings."""

    __slots__ = ("_waiter",)

    def __init__(self, connection: Connection, wire: Wire) -> None:
        super().__init__(connection, wire)
        self._waiter: asyncio.Future[None] | None = None

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncioConnection(Connection, asyncio.Protocol):
    """One connection, as asyncio's loop knows it."""

    __slots__ = ("_is_lost", "_lost", "_ready", "_socket", "expiry")

    response = AsyncioResponse

    def __init__(self, origin: Origin, tls: ssl.SSLContext, on_gone: Callable[[Any], None]) -> None:
        super().__init__(origin, tls, on_gone)
        self._ready: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self._is_lost = False
        self._lost: asyncio.Future[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._socket: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport.get_extra_info("socket")
        self.begin(cast(asyncio.Transport, transport))

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when its socket is closed."""
        if self._lost is None:
            self._lost = asyncio.get_running_loop().create_future()
            if self._is_lost:
                self._lost.set_result(None)
        return self._lost

    async def ready(self) -> None:
        assert self._ready is not None
        await self._ready
        self._ready = None

    def _be_ready(self, error: Exception | None) -> None:
        if self._ready is None or self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            self._ready.set_exception(error)
            # Asked for, so that it is not missed if nobody waits for it any more.
            self._ready.exception()

    def _be_lost(self) -> None:
        self._is_lost = True
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _has_unread(self) -> bool:
        return is_readable(self._socket)


class AsyncioNetwork(DirectNetwork[AsyncioConnection]):
    """The connections of one transport, in the event loop that it is used in."""

    def __init__(self, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        self._dialing: set[asyncio.Task[Any]] = set()

    async def _dial(self, target: Target, limit: float | None) -> AsyncioConnection:
        loop = asyncio.get_running_loop()
        connection = self._made(AsyncioConnection, target)
        dialing = loop.create_task(_connect(connection))
        self._dialing.add(dialing)
        dialing.add_done_callback(self._dialed)
        try:
            await asyncio.wait([dialing], timeout=limit)
            if not dialing.done():
                raise too_late(limit)
            if dialing.cancelled() or self._closed:
                raise Failed(CLOSED)
            if (error := dialing.exception()) is not None:
                raise no_connection(error) from None
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

    async def _wait(self, waiting: Waiting[AsyncioConnection], limit: float | None) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if waiting.done:
            return
        waiting.wake = lambda: None if done.done() else done.set_result(None)
        timer = None
        if limit is not None:
            waiting.until = waiting.until or loop.time() + limit
            timer = loop.call_at(waiting.until, lambda: waiting.give_up(no_place(limit)))
        try:
            await done
        finally:
            if timer is not None:
                timer.cancel()

    def _keep(self, connection: AsyncioConnection) -> None:
        if self._expiry is not None:
            loop = asyncio.get_running_loop()
            connection.expiry = loop.call_later(self._expiry, connection.close)

    def _use(self, connection: AsyncioConnection) -> None:
        if connection.expiry is not None:
            connection.expiry.cancel()
            connection.expiry = None

    def _forget(self, connection: AsyncioConnection) -> None:
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        super()._forget(connection)

    async def _end(self, connections: list[AsyncioConnection]) -> None:
        for dialing in self._dialing:
            dialing.cancel()
        unfinished = [*self._dialing, *(each.lost for each in connections)]
        if unfinished:
            await asyncio.wait(unfinished)


async def _connect(connection: AsyncioConnection) -> None:
    loop = asyncio.get_running_loop()
    _, host, port = connection.origin
    options: dict[str, Any] = {}
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host):
        # Other loops do it as they like. Cancelled at the wrong moment, asyncio leaves a socket of
        # this race to the garbage collector; so it is not run where there is but one address.
        options["happy_eyeballs_delay"] = _HAPPY_EYEBALLS
    await loop.create_connection(lambda: connection, host, port, **options)
    await secured(connection)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
