"""Who gets which connection, whatever the order of what happens."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deltawire.transports.http import Origin
from deltawire.transports.network import Failed
from deltawire.transports.places import Places, Waiting

HERE: Origin = False, "here.test", 80
THERE: Origin = False, "there.test", 80
CLOSED = "closed"


class Held:
    """A connection, as far as its place matters."""

    def __init__(self, world: World, origin: Origin) -> None:
        self.origin = origin
        self.usable = True
        self._world = world

    def close(self) -> None:
        if self in self._world.connections:
            self.usable = False
            self._world.connections.remove(self)
            self._world.places.forget(self)


class Turn:
    """What a caller that waits is suspended at."""

    def __await__(self) -> Generator[Turn, None, None]:
        yield self


class Caller:
    """One who asks: goes on once there is a place."""

    def __init__(self, world: World, origin: Origin) -> None:
        self.origin = origin
        self.connection: Held | None = None
        self.error: BaseException | None = None
        self.waiting: Waiting[Held] | None = None
        self._world = world
        self._take = world.places.take(origin, self._wait)
        self.is_over = False
        self._go_on(None)

    async def _wait(self, waiting: Waiting[Held]) -> None:
        self.waiting = waiting
        while not waiting.done:
            await Turn()

    def look(self) -> None:
        """It has its turn."""
        if self.waits and self.waiting is not None and self.waiting.done:
            self._go_on(None)

    @property
    def waits(self) -> bool:
        return not self.is_over and self.connection is None

    def leave(self) -> None:
        if self.waits:
            self._go_on(KeyboardInterrupt())

    def finish(self, *, kept: bool) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            self.is_over = True
            if kept and connection.usable:
                self._world.places.release(connection)
            else:
                connection.close()

    def _go_on(self, interruption: BaseException | None) -> None:
        try:
            if interruption is None:
                self._take.send(None)
            else:
                self._take.throw(interruption)
        except StopIteration as end:
            self.connection = end.value or self._world.connect(self.origin)
        except (KeyboardInterrupt, Failed) as error:
            self.is_over, self.error = True, error


class World:
    def __init__(self, most: int | None, most_idle: int | None) -> None:
        self.most = most
        self.connections: list[Held] = []
        self.callers: list[Caller] = []
        self.places: Places[Held] = Places(most, most_idle, self._keep, self._use)
        self.kept: list[Held] = []
        self.most_idle = most_idle

    def _keep(self, connection: Held) -> None:
        self.kept.append(connection)

    def _use(self, connection: Held) -> None:
        self.kept.remove(connection)

    def connect(self, origin: Origin) -> Held:
        connection = Held(self, origin)
        self.connections.append(connection)
        return connection

    def ask(self, origin: Origin) -> None:
        self.callers.append(Caller(self, origin))

    def check(self) -> None:
        assert self.most is None or len(self.connections) <= self.most
        assert self.kept == self.places.idle
        assert self.most_idle is None or len(self.kept) <= self.most_idle
        used = [each.connection for each in self.callers if each.connection is not None]
        assert len(set(used)) == len(used)
        assert not set(used) & set(self.kept)
        handed = [each for each in self.callers if each.waits and self._has_been_handed(each)]
        promised = [each for each in handed if each.waiting and each.waiting.place is None]
        assert self.places._taken == len(self.connections) + len(promised)
        # Who waits has been given nothing, so that there must be nothing to give.
        if any(each.waits and not self._has_been_handed(each) for each in self.callers):
            assert not self.kept
            assert self.places._taken == self.most

    @staticmethod
    def _has_been_handed(caller: Caller) -> bool:
        return caller.waiting is not None and caller.waiting.done


numbers = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([HERE, THERE])),
    st.tuples(st.sampled_from(["look", "leave", "finish", "finish and close", "die"]), numbers),
)


# What is wrong here shows in few orders of events, and each takes no time.
@settings(max_examples=1000)
@given(
    st.integers(1, 2), st.sampled_from([None, 0, 1, 2]), st.lists(steps, min_size=4, max_size=20)
)
def test_there_are_never_more_than_there_may_be_and_nobody_waits_for_nothing(
    most: int, most_idle: int | None, happens: list[tuple[str, Any]]
) -> None:
    world = World(most, most_idle)
    for what, which in happens:
        if what == "ask":
            world.ask(which)
        elif what == "die":
            # Upstream closes it, and nobody has noticed.
            for connection in world.connections[which : which + 1]:
                connection.usable = False
        elif what in ("look", "leave"):
            for caller in [each for each in world.callers if each.waits][which : which + 1]:
                caller.look() if what == "look" else caller.leave()
        else:
            for caller in [each for each in world.callers if each.connection][which : which + 1]:
                caller.finish(kept=what == "finish")
        world.check()
    # All come to an end: whoever has one finishes, whoever was handed one goes on.
    for _ in world.callers:
        for caller in world.callers:
            caller.look()
            caller.finish(kept=True)
            world.check()
    assert all(caller.is_over for caller in world.callers)
    assert set(world.connections) == set(world.kept)


@given(st.lists(st.sampled_from([HERE, THERE]), min_size=2, max_size=8), st.booleans())
def test_who_came_first_is_served_first(origins: list[Origin], kept: bool) -> None:
    world = World(1, None)
    for origin in origins:
        world.ask(origin)
    for at, caller in enumerate(world.callers):
        assert caller.connection is not None
        caller.finish(kept=kept)
        for later in reversed(world.callers):
            later.look()
        assert [each.connection is not None for each in world.callers[at + 1 :]] == [
            each is world.callers[at + 1] for each in world.callers[at + 1 :]
        ]


def test_who_waits_when_all_is_closed_is_told_so() -> None:
    world = World(1, None)
    for _ in range(3):
        world.ask(HERE)
    world.places.close(CLOSED)
    for caller in world.callers:
        caller.look()
    assert [str(each.error) for each in world.callers[1:]] == [CLOSED] * 2
    assert world.callers[1].error is not world.callers[2].error


def test_who_has_waited_longest_stays_first_if_what_it_got_is_gone() -> None:
    world = World(1, None)
    for _ in range(3):
        world.ask(HERE)
    first, second, third = world.callers
    first.finish(kept=True)
    # Upstream closes it on the way to who waits.
    for connection in world.connections:
        connection.usable = False
    second.look()
    third.look()
    second.look()
    assert second.connection is not None
    assert third.connection is None


def test_many_connections_that_are_gone_are_no_depth() -> None:
    world = World(None, None)
    for _ in range(2000):
        world.ask(HERE)
    for caller in world.callers:
        caller.finish(kept=True)
    for connection in world.connections:
        connection.usable = False
    world.ask(HERE)
    assert world.callers[-1].connection is not None
