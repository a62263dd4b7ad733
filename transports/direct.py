"""`DirectNetwork`: connections to upstream that are our own, whichever the event loop is.

What may live here: how a request is sent over a connection that is kept or made. What may not:
which of them that is (`places`), what comes over it (`connection`), bytes of HTTP (`wire`), policy
(`deltawire.exchange`), and how connections are made, which each event loop has of its own
(`asyncio_network`, `trio_network`). `OwnNetwork` is what they share with that of threads (`pool`).
Used where neither a client of the caller's own nor a proxy is in play.

Through httpx each delta passes a dozen generators and cancel scopes: 30 us on asyncio, 100 on trio.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Generic, TypeVar

from deltawire.errors import LocalProtocolError
from deltawire.steps import Open
from deltawire.transports.connection import Connection, DirectResponse, no_tls
from deltawire.transports.http import Target
from deltawire.transports.network import Failed, Trouble
from deltawire.transports.places import Kept, Places, Waiting
from deltawire.transports.wire import wire_for

CLOSED: Final = "the transport was closed"

K = TypeVar("K", bound=Kept)
C = TypeVar("C", bound=Connection)


class OwnNetwork(Generic[K]):
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
        # For each URL, which takes 30 us to take apart.
        self._target = cache(target)
        self._tls = tls
        # As httpx's client does it.
        tls.set_alpn_protocols(["http/1.1"])
        self._closed = False
        self._expiry = keepalive_expiry
        self._connections: set[K] = set()
        most_idle = 0 if keepalive_expiry == 0 else max_keepalive_connections
        self._places = Places[K](max_connections, most_idle, self._keep, self._use)

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        return Trouble(isinstance(error, Failed) and error.late, str(error) or None)

    def _keep(self, connection: K) -> None:
        """It is idle, and is closed when its time is over."""
        raise NotImplementedError

    def _use(self, connection: K) -> None:
        """It is idle no longer."""

    def _forget(self, connection: K) -> None:
        """It is of no use any more."""
        self._places.forget(connection)


class DirectNetwork(OwnNetwork[C]):
    """Those of an event loop."""

    def __init__(self, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        # What each connection is given; bound once, since there are many.
        self._on_gone = self._forget
        self._release = self._places.release

    def _made(self, kind: type[C], target: Target) -> C:
        """A connection that is still to be made, for whoever has a place."""
        try:
            connection = kind(target.origin, self._tls, self._on_gone)
        except ValueError as error:
            # A name that TLS knows for none.
            self._places.give_back(None)
            raise no_connection(error) from None
        self._connections.add(connection)
        return connection

    async def send(self, step: Open, wait: float) -> DirectResponse:
        if self._closed:
            raise LocalProtocolError(CLOSED)
        target = self._target(step.request.url)
        wire = wire_for(target, step.request)
        limit = step.connect
        connection = await self._places.take(
            target.origin, lambda waiting: self._wait(waiting, limit)
        )
        if connection is None:
            connection = await self._dial(target, limit)
        response = connection.ask(wire, self._release)
        try:
            await response.wait_for_head()
        except BaseException:
            connection.abort()
            raise
        return response

    async def aclose(self) -> None:
        self._closed = True
        self._places.close(CLOSED)
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        await self._end(connections)

    # What each event loop does in its own way.

    async def _dial(self, target: Target, limit: float | None) -> C:
        """A new connection, for whoever has a place; the place is given back if there is none."""
        raise NotImplementedError

    async def _wait(self, waiting: Waiting[C], limit: float | None) -> None:
        """Until it is done. It is given up after so many seconds."""
        raise NotImplementedError

    async def _end(self, connections: list[C]) -> None:
        """Stop dialing, and wait until that and all connections have ended."""
        raise NotImplementedError


def no_place(limit: float | None) -> Failed:
    """Nobody gave a connection away."""
    return Failed(f"no connection became free within {limit} s (max_connections)", late=True)


def too_late(limit: float | None) -> Failed:
    """Nobody answered."""
    return Failed(f"no connection within {limit} s (timeouts.connect)", late=True)


def no_connection(error: BaseException) -> Failed:
    """Why there is none."""
    if isinstance(error, Failed):
        return error
    text = str(error)
    return Failed(no_tls(text) if isinstance(error, ssl.SSLError) else f"no connection: {text}")


async def secured(connection: Connection) -> None:
    """Wait until requests can be sent over a connection that is made. Raises Failed, SSLError."""
    try:
        await connection.ready()
    except ssl.SSLError:
        raise
    except OSError as error:
        # Somebody was there, so that it is not the address that is wrong.
        raise Failed(no_tls(str(error))) from None
