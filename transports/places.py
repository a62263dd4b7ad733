"""`Places`: which connections are kept, and who waits for one. No I/O, no clock, no locks.

Callers: `direct` and `pool`, which make the connections and wait; the rule of who gets what is
here, once.

A place is what `max_connections` counts: a connection has one from before it is made until it is
closed. Whoever finds none waits, first come first served, and is handed a kept connection or the
place of one that is gone. So as long as somebody waits, no connection is idle.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from deltawire.transports.failures import CLOSED, Failed
from deltawire.transports.http import Origin


class Kept(Protocol):
    """A connection, as far as it can be kept."""

    origin: Origin

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known."""

    def keep(self, seconds: float | None) -> None:
        """It is idle, and may be so for so long."""

    def unkeep(self) -> None:
        """It is idle no longer."""

    def close(self) -> None:
        """Whoever made it tells the places so, by `forget`."""


C = TypeVar("C", bound=Kept)
Given = TypeVar("Given", bound=Kept, contravariant=True)


class Waiter(Protocol[Given]):
    """Who waits for a place."""

    origin: Origin

    @property
    def over(self) -> bool:
        """Whether it has one, or waits no longer."""

    def give(self, connection: Given | None) -> None:
        """A kept connection, or the place for a new one."""

    def give_up(self, reason: Failed) -> None:
        """There will be none."""


class Places(Generic[C]):
    """Those of one transport, whose limits they have."""

    def __init__(
        self,
        *,
        max_connections: int | None,
        max_keepalive_connections: int | None,
        keepalive_expiry: float | None,
    ) -> None:
        self._most = max_connections
        self._most_idle = max_keepalive_connections
        self._expiry = keepalive_expiry
        # The last was used last; a place may be taken before there is a connection.
        self._idle: list[C] = []
        self._taken = 0
        self._waiting: deque[Waiter[C]] = deque()

    @property
    def oldest(self) -> C | None:
        """The connection that has been idle for longest."""
        return self._idle[0] if self._idle else None

    def take_kept(self, origin: Origin) -> C | None:
        """A connection that was kept, the last used."""
        for connection in reversed(self._idle):
            if connection.origin == origin:
                self._stop_keeping(connection)
                if connection.usable:
                    return connection
                connection.close()
                return self.take_kept(origin)
        return None

    def take_new(self) -> bool:
        """Whether there may be a new connection; one that is kept elsewhere makes room for it."""
        if self._most is not None and self._taken >= self._most and self._idle:
            self._idle[0].close()
        if self._most is None or self._taken < self._most:
            self._taken += 1
            return True
        return False

    def wait(self, waiter: Waiter[C]) -> None:
        """Give it a place in its turn."""
        self._waiting.append(waiter)

    def wait_first(self, waiter: Waiter[C]) -> None:
        """Give it the next one, for what it was given was of no use."""
        self._waiting.appendleft(waiter)
        self._hand_on()

    def give_back(self, connection: C | None) -> None:
        """What was given to a waiter that does not want it."""
        if connection is None:
            self.leave()
        else:
            self.release(connection)

    def release(self, connection: C) -> None:
        """The connection is free."""
        while self._waiting and self._waiting[0].over:
            self._waiting.popleft()
        if self._waiting and self._waiting[0].origin == connection.origin:
            self._waiting.popleft().give(connection)
        elif self._waiting or self._most_idle == 0 or self._expiry == 0:
            connection.close()
        else:
            self._idle.append(connection)
            connection.keep(self._expiry)
            if self._most_idle is not None and len(self._idle) > self._most_idle:
                self._idle[0].close()

    def forget(self, connection: C) -> None:
        """The connection is closed."""
        self._stop_keeping(connection)
        self.leave()

    def leave(self) -> None:
        """The place of a connection that is gone is for who has waited longest."""
        self._taken -= 1
        self._hand_on()

    def end(self) -> None:
        """Nobody will be given anything any more."""
        for waiter in self._waiting:
            waiter.give_up(Failed(CLOSED))
        self._waiting.clear()

    def _stop_keeping(self, connection: C) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        connection.unkeep()

    def _hand_on(self) -> None:
        while self._waiting and (self._most is None or self._taken < self._most):
            waiter = self._waiting.popleft()
            if not waiter.over:
                self._taken += 1
                waiter.give(None)
