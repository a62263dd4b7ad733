"""`Dialing`: one connection in the making, over blocking sockets.

What may live here: which address is tried when. What may not: what a connection is for. Caller:
`pool`.

All addresses of a name are tried, each one a moment after the one before it (RFC 8305 5), so that
one that does not answer does not take all the time; the first that answers wins. The system's
resolver cannot be interrupted, and takes no deadline.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
from typing import Any, Final

from deltawire.transports.direct import CLOSED
from deltawire.transports.network import Failed
from deltawire.transports.watchdog import shut_down

_HAPPY_EYEBALLS: Final = 0.25
_HOUR: Final = 3600.0
_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR})

_now = time.monotonic


class Dialing:
    """The sockets that are tried; `stop` may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._stopped = False
        self._errors: list[str] = []
        self._poll = select.poll()

    def stop(self) -> None:
        """There is to be no connection, or none any more as long as it is not `done`."""
        with self._lock:
            self._stopped = True
            for each in self._sockets.values():
                shut_down(each)

    def done(self) -> None:
        """What was dialed is another's to stop, and to close. Raises Failed if it was stopped."""
        with self._lock:
            self._sockets.clear()
            if self._stopped:
                raise Failed(CLOSED)

    def connect(self, host: str, port: int, until: float) -> socket.socket:
        """A socket that is connected, and blocks.

        Raises OSError, TimeoutError once the time has passed, and Failed if it was stopped.
        """
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise OSError(str(error)) from None
        winner: socket.socket | None = None
        try:
            winner = self._race(addresses, until)
            winner.setblocking(True)
            winner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            winner = None
            raise
        finally:
            for each in list(self._sockets.values()):
                if each is not winner:
                    self._drop(each)
        return winner

    def _race(self, addresses: list[Any], until: float) -> socket.socket:
        next_one = -math.inf
        while not self._stopped:
            now = _now()
            if now >= until:
                raise TimeoutError
            if addresses and (now >= next_one or not self._sockets):
                self._try(*addresses.pop(0))
                next_one = now + _HAPPY_EYEBALLS
            elif not self._sockets:
                raise OSError("; ".join(dict.fromkeys(self._errors)))
            else:
                wait = min(until, next_one if addresses else math.inf) - now
                for number, _ in self._poll.poll(math.ceil(1000 * min(wait, _HOUR))):
                    sock = self._sockets[number]
                    reason = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not reason:
                        return sock
                    self._fail(sock, reason)
        raise Failed(CLOSED)

    def _try(
        self, family: int, kind: int, protocol: int, _: object, address: tuple[Any, ...]
    ) -> None:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            # A system may have no such family.
            self._errors.append(str(error))
            return
        with self._lock:
            self._sockets[sock.fileno()] = sock
        sock.setblocking(False)
        self._poll.register(sock, select.POLLOUT)
        number = sock.connect_ex(address)
        with self._lock:
            # What is not connecting yet cannot be shut down.
            if self._stopped:
                shut_down(sock)
        if number not in _UNDER_WAY:
            self._fail(sock, number)

    def _fail(self, sock: socket.socket, reason: int) -> None:
        self._errors.append(str(OSError(reason, os.strerror(reason))))
        self._poll.unregister(sock)
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        with self._lock:
            del self._sockets[sock.fileno()]
        sock.close()
