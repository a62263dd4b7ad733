"""`Door`: where the clients of the threaded driver come in, and which of them are there.

It is looked after by the watcher's thread; what a client says is for a thread of the crew.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from deltawire.server.crew import Crew
from deltawire.server.service import Service, host_of
from deltawire.server.watcher import Watcher

_log: Final = logging.getLogger(__name__)

LINGER: Final = 2.0
"""Seconds that a client which was refused may still be sending; to close at once would reset the
connection under the answer."""
# Nothing can be accepted for want of file descriptors; asyncio waits as long.
_PAUSE: Final = 1.0
_READ: Final = 65536

_now = time.monotonic


class Client(Protocol):
    """One that has come in."""

    def run(self) -> None:
        """Serve it to its end; blocks as long as that takes."""

    def finish(self) -> None:
        """Take no further request."""

    def abort(self) -> None:
        """Break off, whatever is under way."""


class Door:
    """Where clients come in, on the watcher's thread, and which of them are there."""

    def __init__(
        self,
        service: Service[Any],
        listener: socket.socket,
        watcher: Watcher,
        connect: Callable[[socket.socket, object], Client],
        *,
        speaks_plainly: bool,
    ) -> None:
        self._service = service
        self._listener = listener
        self._watcher = watcher
        self._connect = connect
        self._speaks_plainly = speaks_plainly
        self._crew = Crew("deltawire-client")
        self._changed = threading.Condition()
        self._clients: set[Client] = set()
        self._closing = False
        listener.setblocking(False)
        watcher.watch(listener, self._accept, None, math.inf)

    def discard(self, connection: Client) -> None:
        """It is over."""
        with self._changed:
            if connection in self._clients:
                self._clients.remove(connection)
                self._service.metrics.connections.dec()
            self._changed.notify_all()

    def close(self) -> list[Client]:
        """Accept no more; those that are there."""
        with self._changed:
            self._closing = True
            self._watcher.unwatch(self._listener)
            self._listener.close()
            return list(self._clients)

    def wait_empty(self, seconds: float) -> list[Client]:
        """Those that are still there after so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._clients, seconds)
            return list(self._clients)

    def dismiss(self) -> None:
        """Let the threads go that have no client."""
        self._crew.close()

    def _accept(self) -> None:
        try:
            client, peer = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            self._watcher.unwatch(self._listener)
            self._watcher.ring_at(_now() + _PAUSE, self._accept_again)
            return
        connection = self._connect(client, peer)
        with self._changed:
            full = len(self._clients) >= self._service.config.limits.connections
            closing = self._closing
            if not (full or closing):
                self._clients.add(connection)
                self._service.metrics.connections.inc()
        if closing:
            client.close()
            return
        if full:
            self._turn_away(client, host_of(peer))
            return
        try:
            self._crew.do(connection.run)
        except RuntimeError:
            _log.exception("no thread for a client")
            self.discard(connection)
            client.close()

    def _accept_again(self, now: float) -> float:
        # It may have been closed meanwhile.
        with self._changed, contextlib.suppress(ValueError):
            self._watcher.watch(self._listener, self._accept, None, math.inf)
        return math.inf

    def _turn_away(self, client: socket.socket, peer: str) -> None:
        """Say that there are too many, without a thread; under TLS that would take one."""
        if not self._speaks_plainly:
            client.close()
            return
        client.setblocking(False)
        service = self._service
        with contextlib.suppress(OSError):
            client.send(service.respond(service.connection(), service.too_many(peer)))
        shut_down(client, socket.SHUT_WR)

        def close(now: float = 0.0) -> float:
            self._watcher.unwatch(client)
            client.close()
            return math.inf

        def look() -> None:
            try:
                over = not client.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                over = True
            if over:
                close()

        self._watcher.watch(client, look, close, _now() + LINGER)


def shut_down(client: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        # Not the TLS socket's own method, which takes its session from under another thread.
        socket.socket.shutdown(client, how)
