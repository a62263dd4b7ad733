"""Deadlines for blocking reads: one thread that hangs up on sockets whose time has come.

httpx has a limit for each read but none for a phase or a whole call, and a blocked read cannot be
interrupted from outside, except by shutting the socket down under it. It is also the cheaper way:
with a limit of its own each read is two system calls, the first of them to wait. Callers:
`blocking` and `sockets`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import socket
import threading
import time
from typing import Final

# The thread waits that long for more to do; starting one costs as much as a few hundred watches.
_LINGER: Final = 5.0
# A deadline may have passed before it is watched; without a pause, a watch that was moved on
# meanwhile would be looked at again and again, under the lock.
_LEAST_PATIENCE: Final = 0.01
# Cancelled watches stay in the heap until they are that many and the greater part of it.
_MANY: Final = 256


class Watch:
    """A socket, and until when it may be used.

    `until` is moved on by the thread that reads, without a lock: `inf` while nothing is awaited. It
    is looked at every `patience` seconds, so that by that much at least it is to be moved on.
    """

    __slots__ = ("fired", "patience", "peer", "until")

    def __init__(self, peer: socket.socket, until: float, patience: float) -> None:
        self.peer: socket.socket | None = peer
        self.until = until
        self.patience = max(_LEAST_PATIENCE, patience)
        self.fired = False


class Watchdog:
    """The watches of one transport."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Watch]] = []
        self._order = itertools.count()
        self._cancelled = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, peer: socket.socket, until: float, patience: float) -> Watch:
        """Shut the socket down when `until` passes on the monotonic clock, unless cancelled."""
        watch = Watch(peer, until, patience)
        with self._changed:
            first = min(until, time.monotonic() + watch.patience)
            heapq.heappush(self._heap, (first, next(self._order), watch))
            self._closed = False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="deltawire-watchdog", daemon=True
                )
                self._thread.start()
            elif self._heap[0][2] is watch:
                self._changed.notify_all()
        return watch

    def cancel(self, watch: Watch) -> None:
        """Nothing happens to the socket from here on; it may be used for something else."""
        with self._changed:
            if watch.peer is not None:
                watch.peer = None
                self._cancelled += 1
                if self._cancelled > max(_MANY, len(self._heap) // 2):
                    self._heap = [entry for entry in self._heap if entry[2].peer is not None]
                    heapq.heapify(self._heap)
                    self._cancelled = 0

    def close(self) -> None:
        """End the thread. A later watch starts it again."""
        with self._changed:
            if (thread := self._thread) is None:
                return
            self._closed = True
            self._changed.notify_all()
            # One that is given something to watch meanwhile goes on.
            self._changed.wait_for(lambda: self._thread is not thread or not self._closed)
            ended = self._thread is not thread
        if ended:
            thread.join()

    def _run(self) -> None:
        with self._changed:
            idle_until = time.monotonic() + _LINGER
            while not self._closed:
                now = time.monotonic()
                while self._heap and (self._heap[0][2].peer is None or self._heap[0][0] <= now):
                    self._look_at(heapq.heappop(self._heap)[2], now)
                if self._heap:
                    idle_until = now + _LINGER
                    self._changed.wait(min(self._heap[0][0] - now, threading.TIMEOUT_MAX))
                elif now < idle_until:
                    self._changed.wait(idle_until - now)
                else:
                    break
            self._thread = None
            self._changed.notify_all()

    def _look_at(self, watch: Watch, now: float) -> None:
        if watch.peer is None:
            self._cancelled = max(0, self._cancelled - 1)
        elif watch.until > now:
            again = min(watch.until, now + watch.patience)
            heapq.heappush(self._heap, (again, next(self._order), watch))
        else:
            watch.fired = True
            shut_down(watch.peer)
            watch.peer = None


class Guard:
    """The deadlines of one socket, for the thread that uses it: one after the other."""

    __slots__ = ("_fired", "_peer", "_watch", "_watchdog")

    def __init__(self, watchdog: Watchdog, peer: socket.socket) -> None:
        self._watchdog = watchdog
        self._peer = peer
        self._watch: Watch | None = None
        self._fired = False

    @property
    def fired(self) -> bool:
        """Whether a deadline has passed, so that the socket was shut down."""
        return self._fired or (self._watch is not None and self._watch.fired)

    def set(self, deadline: float, now: float) -> None:
        """It is shut down then, unless the deadline is moved on; `inf`: never."""
        watch = self._watch
        if watch is not None and deadline - now >= watch.patience:
            watch.until = deadline
        elif watch is not None or deadline != math.inf:
            self.stop()
            # Half of it, so that the deadlines that follow, of about as long, only move a number.
            patience = (deadline - now) / 2
            self._watch = self._watchdog.watch(self._peer, deadline, patience)

    def rest(self) -> None:
        """There is no deadline for now: the caller may take its time with what it is given."""
        if self._watch is not None:
            self._watch.until = math.inf

    def stop(self) -> None:
        """The socket is another's from here on."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._watchdog.cancel(watch)
            self._fired = self._fired or watch.fired


def shut_down(peer: socket.socket) -> None:
    """End a read that another thread is blocked in."""
    with contextlib.suppress(OSError):
        # Not the TLS socket's own method, which takes its session from under the reader.
        socket.socket.shutdown(peer, socket.SHUT_RDWR)
