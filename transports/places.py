"""`Places`: which connections there may be, which of them are kept, and who waits for one.

What may live here: the choice. What may not: sockets, clocks, an event loop, locks. Callers:
`direct` and `pool`.

A place is what `max_connections` counts: a connection has one from before it is made until it is
closed. Whoever finds none waits, first come first served, and is handed a kept connection or the
place of one that is gone. So as long as somebody waits, no connection is idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from deltawire.transports.http import Origin
from deltawire.transports.network import Failed


class Kept(Protocol):
    """What a connection is to this."""

    origin: Origin

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as is known."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Kept)


class Waiting(Generic[C]):
    """Who waits for a place: what it gets is a kept connection, or None.

    wake: called once it is `done`. until: on the clock of who waits, as soon as that has looked at
    it. Both are for who waits to set.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.until: float | None = None
        self.done = False
        self.place: C | None = None
        self.error: Failed | None = None
        self.wake: Callable[[], object] = bool

    def hand(self, place: C | None) -> None:
        self.done = True
        self.place = place
        self.wake()

    def give_up(self, reason: Failed) -> None:
        if not self.done:
            self.done = True
            self.error = reason
            self.wake()


class Places(Generic[C]):
    """The places of one network.

    most, most_idle: how many connections there may be, and how many idle ones are kept; None: any.
    keep, use: told of a connection that it is idle from now on, and that it is not any more.
    """

    def __init__(
        self,
        most: int | None,
        most_idle: int | None,
        keep: Callable[[C], None],
        use: Callable[[C], None],
    ) -> None:
        self._most = most
        self._most_idle = most_idle
        self._keep = keep
        self._use = use
        # The last was used last; a place may be taken before there is a connection.
        self.idle: list[C] = []
        self._taken = 0
        self._waiting: deque[Waiting[C]] = deque()
        # Why there are no more.
        self._closed: str | None = None

    async def take(
        self, origin: Origin, wait: Callable[[Waiting[C]], Awaitable[object]]
    ) -> C | None:
        """A connection that was kept; None: there may be a new one.

        wait: comes back once the waiting is done.
        """
        if (waiting := self.ask(origin)).done:
            return waiting.place
        while True:
            try:
                await wait(waiting)
            except BaseException:
                self.leave(waiting)
                raise
            if self.received(waiting):
                return waiting.place

    def ask(self, origin: Origin) -> Waiting[C]:
        """A place at once, if there is one; else in its turn."""
        waiting = Waiting[C](origin)
        if (kept := self._take_idle(origin)) is not None:
            waiting.hand(kept)
            return waiting
        if self._most is not None and self._taken >= self._most and self.idle:
            self.idle[0].close()
        if self._most is None or self._taken < self._most:
            self._taken += 1
            waiting.hand(None)
        else:
            self._waiting.append(waiting)
        return waiting

    def received(self, waiting: Waiting[C]) -> bool:
        """Whether who has waited has something of use; if not, it is the next. Raises Failed."""
        if waiting.error is not None:
            raise waiting.error
        place = waiting.place
        if place is None or place.usable:
            return True
        # Upstream has closed it on the way here.
        if self._closed is None:
            waiting.done = False
            self._waiting.appendleft(waiting)
        place.close()
        if self._closed is not None:
            raise Failed(self._closed)
        self._hand_on()
        return False

    def leave(self, waiting: Waiting[C]) -> None:
        """It waits no longer."""
        if waiting.done and waiting.error is None:
            # It came in the moment of leaving.
            self.give_back(waiting.place)
        waiting.done = True

    def _take_idle(self, origin: Origin) -> C | None:
        for connection in [each for each in reversed(self.idle) if each.origin == origin]:
            self._stop_keeping(connection)
            if connection.usable:
                return connection
            connection.close()
        return None

    def give_back(self, connection: C | None) -> None:
        """What is not used after all."""
        if connection is None:
            self._taken -= 1
            self._hand_on()
        else:
            self.release(connection)

    def release(self, connection: C) -> None:
        """The connection is free."""
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()
        if self._waiting and self._waiting[0].origin == connection.origin:
            self._waiting.popleft().hand(connection)
        elif self._waiting or self._most_idle == 0:
            connection.close()
        else:
            self.idle.append(connection)
            self._keep(connection)
            if self._most_idle is not None and len(self.idle) > self._most_idle:
                self.idle[0].close()

    def forget(self, connection: C) -> None:
        """The connection is closed."""
        self._stop_keeping(connection)
        self._taken -= 1
        self._hand_on()

    def close(self, reason: str) -> None:
        """There are no more places for those who wait."""
        self._closed = reason
        for waiting in self._waiting:
            waiting.give_up(Failed(reason))
        self._waiting.clear()

    def _stop_keeping(self, connection: C) -> None:
        if connection in self.idle:
            self.idle.remove(connection)
            self._use(connection)

    def _hand_on(self) -> None:
        """The place of a connection that is gone is for who has waited longest."""
        while self._waiting and (self._most is None or self._taken < self._most):
            waiting = self._waiting.popleft()
            if not waiting.done:
                self._taken += 1
                waiting.hand(None)
