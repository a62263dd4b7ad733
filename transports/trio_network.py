"""`TrioNetwork`: connections to upstream over sockets that are read in the task that wants to read.

What may live here: what trio has of its own in making connections and waiting for what comes over
them. The rest is `direct` and `connection`. Caller: `on_trio`.

A delta wakes one task once: trio says that there is something, and it is read without asking trio
for more. What the system does not take of a request at once is sent while its answer is awaited.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import trio

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

_READ: Final = 64 * 1024


class TrioResponse(DirectResponse):
    """An answer whose bytes are fetched by who reads it."""

    __slots__ = ()

    _connection: TrioConnection

    async def _wait(self) -> None:
        await self._connection.receive_next()


class TrioConnection(Connection):
    """One connection. It does nothing by itself: what has come is there once somebody looks."""

    __slots__ = ("_is_ready", "_refusal", "_socket", "expires")

    response = TrioResponse

    def __init__(self, origin: Origin, tls: ssl.SSLContext, on_gone: Callable[[Any], None]) -> None:
        super().__init__(origin, tls, on_gone)
        self.expires = math.inf
        self._socket: _Socket | None = None
        self._is_ready = False
        self._refusal: Exception | None = None

    def made(self, sock: socket.socket) -> None:
        """It is connected; the socket does not block."""
        self._socket = _Socket(sock, self.connection_lost)
        self.begin(self._socket)

    async def ready(self) -> None:
        while not self._is_ready:
            await self.receive_next()
        if self._refusal is not None:
            raise self._refusal

    async def receive_next(self) -> None:
        """Wait until something comes, and take it in. Cancelled, it has taken nothing."""
        sock = self._socket
        if sock is not None:
            try:
                if sock.unsent:
                    await sock.readable()
                else:
                    await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:
                # Closed by somebody else.
                pass
        self.receive()

    def receive(self) -> None:
        """Take in what has come."""
        sock = self._socket
        if sock is None or sock.is_closing():
            # An answer that was to come may know of it already.
            self.connection_lost(None)
            return
        try:
            data = sock.receive()
        except BlockingIOError:
            return
        except OSError as error:
            self.connection_lost(error)
            sock.close()
            return
        if data:
            self.data_received(data)
        else:
            self.eof_received()
            sock.close()

    def _be_ready(self, error: Exception | None) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._refusal = error

    def _be_lost(self) -> None:
        self._socket = None

    def _has_unread(self) -> bool:
        # TLS may have said something that is nothing to us.
        while self._socket is not None and is_readable(self._socket):
            self.receive()
        return self._on_gone is None


class _Socket:
    """A socket to write to without waiting."""

    __slots__ = ("_on_close", "_socket", "unsent")

    def __init__(self, sock: socket.socket, on_close: Callable[[Exception | None], None]) -> None:
        self._socket = sock
        self._on_close = on_close
        self.unsent = memoryview(b"")
        """What the system has not taken yet."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> bytes:
        """What has come; nothing: there is no more. Raises OSError."""
        return self._socket.recv(_READ)

    async def readable(self) -> None:
        """Until there is something to read; what is unsent is sent meanwhile."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._socket)
            nursery.cancel_scope.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while self.unsent:
                await trio.lowlevel.wait_writable(self._socket)
                self._send_some()

    def _send_some(self) -> None:
        try:
            sent = self._socket.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            # Why, shows to who reads; there may even be an answer.
            sent = len(self.unsent)
        # An empty view would keep the whole of it.
        self.unsent = self.unsent[sent:] or memoryview(b"")

    # What a connection needs.

    def write(self, data: bytes) -> None:
        held, self.unsent = self.unsent, memoryview(data)
        if held:
            self.unsent = memoryview(bytes(held) + data)
        elif data:
            self._send_some()

    def is_closing(self) -> bool:
        return self._socket.fileno() < 0

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def pause_reading(self) -> None:
        """Nothing is read but what somebody wants."""

    def resume_reading(self) -> None:
        """Likewise."""

    def close(self) -> None:
        if not self.is_closing():
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._on_close(None)

    def abort(self) -> None:
        self.close()


class TrioNetwork(DirectNetwork[TrioConnection]):
    """The connections of one transport, in the run of trio that it is used in."""

    def __init__(self, *args: Any, **limits: Any) -> None:
        super().__init__(*args, **limits)
        self._dialing: set[trio.CancelScope] = set()
        # What closes connections whose time is over runs as long as some are kept.
        self._expiring: trio.CancelScope | None = None
        self._expired = trio.Event()

    async def _dial(self, target: Target, limit: float | None) -> TrioConnection:
        connection = self._made(TrioConnection, target)
        until = math.inf if limit is None else trio.current_time() + limit
        scope = trio.CancelScope(deadline=until)
        self._dialing.add(scope)
        try:
            with scope:
                await _connect(connection)
            if self._closed:
                raise Failed(CLOSED)
            if scope.cancelled_caught:
                raise too_late(limit)
        except Exception as error:
            connection.abort()
            raise no_connection(_cause(error)) from None
        except BaseException:
            connection.abort()
            raise
        finally:
            self._dialing.discard(scope)
        return connection

    async def _wait(self, waiting: Waiting[TrioConnection], limit: float | None) -> None:
        done = trio.Event()
        if waiting.done:
            return
        waiting.wake = done.set
        if waiting.until is None:
            waiting.until = math.inf if limit is None else trio.current_time() + limit
        with trio.move_on_at(waiting.until):
            await done.wait()
        waiting.give_up(no_place(limit))

    def _keep(self, connection: TrioConnection) -> None:
        if self._expiry is not None:
            connection.expires = trio.current_time() + self._expiry
            if self._expiring is None:
                self._expiring, self._expired = trio.CancelScope(), trio.Event()
                trio.lowlevel.spawn_system_task(self._expire, self._expiring, self._expired)

    async def _expire(self, scope: trio.CancelScope, ended: trio.Event) -> None:
        idle = self._places.idle
        with scope:
            while idle:
                await trio.sleep_until(idle[0].expires)
                while idle and idle[0].expires <= trio.current_time():
                    idle[0].close()
        self._expiring = None
        ended.set()

    def _forget(self, connection: TrioConnection) -> None:
        self._connections.discard(connection)
        super()._forget(connection)

    async def _end(self, connections: list[TrioConnection]) -> None:
        for scope in self._dialing:
            scope.cancel()
        if self._expiring is not None:
            self._expiring.cancel()
            await self._expired.wait()
        while self._dialing:
            await trio.lowlevel.checkpoint()


async def _connect(connection: TrioConnection) -> None:
    _, host, port = connection.origin
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    connection.made(sock)
    await secured(connection)


def _cause(error: Exception) -> BaseException:
    """What was wrong with the only address, where trio speaks of all of them."""
    causes = error.__cause__
    if isinstance(causes, BaseExceptionGroup) and len(causes.exceptions) == 1:
        return causes.exceptions[0]
    return error
