"""`Watcher`: one thread that looks at many sockets, and rings when it is time.

Caller: the threaded driver, whose other threads each block on one thing and see nothing else.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable

Look = Callable[[], None]
"""Called whenever there is something to read."""
Ring = Callable[[float], float]
"""Called at its time, with the time; gives when to call it next, `inf`: never."""


class Watcher:
    """Both kinds of callbacks run on the thread that is in `run`, and must not block.

    Times are those of `time.monotonic`, in seconds. Everything but `run` and `release` may be
    called by any thread.
    """

    def __init__(self) -> None:
        # epoll and kqueue take changes from one thread while another one waits.
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._guard = threading.Lock()
        self._rings: list[tuple[float, int, Ring]] = []
        self._order = itertools.count()
        self._over = False
        self._bell.setblocking(False)
        self._rope.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, self._hear)

    def watch(self, sock: socket.socket, look: Look, ring: Ring | None, due: float) -> None:
        """Look whenever there is something to read, ring when it is time."""
        with self._guard:
            self._selector.register(sock, selectors.EVENT_READ, look)
            if ring is not None:
                self._push(due, ring)

    def unwatch(self, sock: socket.socket) -> None:
        """No more looking. May be called again, and of what was never looked at."""
        with self._guard, contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def ring_at(self, due: float, ring: Ring) -> None:
        """Ring when it is time."""
        with self._guard:
            self._push(due, ring)

    def run(self) -> None:
        """Until `close`."""
        while not self._over:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            if self._rings:
                self._ring_due()

    def close(self) -> None:
        """End `run`."""
        self._over = True
        self._wake()

    def release(self) -> None:
        """Close what was opened here, once `run` is over."""
        self._selector.close()
        self._bell.close()
        self._rope.close()

    def _patience(self) -> float | None:
        # Nobody else takes one away.
        return max(0.0, self._rings[0][0] - time.monotonic()) if self._rings else None

    def _push(self, due: float, ring: Ring) -> None:
        if due != math.inf:
            entry = (due, next(self._order), ring)
            heapq.heappush(self._rings, entry)
            if self._rings[0] is entry:
                self._wake()

    def _ring_due(self) -> None:
        now = time.monotonic()
        while self._rings and self._rings[0][0] <= now:
            with self._guard:
                _, _, ring = heapq.heappop(self._rings)
            self.ring_at(ring(now), ring)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._rope.send(b"!")

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
