"""However and wherever a caller leaves, upstream is hung up on, and the attempt says so.

Over real sockets. What holds an answer up is a `Gate`, what waits is woken by a condition, and the
clock of an event loop is moved on by hand; so nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import FrameType, ModuleType
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import httpx2
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from deltawire import ChatStream
from deltawire.accounts import Account, AccountPool, Health
from deltawire.attempts import Attempt, Policy, Timeouts
from deltawire.errors import UpstreamTimeout
from deltawire.steps import Phase
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from deltawire.transports.asynchronous import AsyncStream, AsyncTransport
from deltawire.transports.on_asyncio import AsyncioTimer
from deltawire.transports.sockets import SocketConnection
from deltawire.transports.sync import SyncStream
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

T = TypeVar("T")

REQUEST: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = tuple(write_frames(ANSWER))
# The frames up to the second delta, and what a client is given for them.
BEGUN: Final = 6
CHUNKS: Final = len(ChatStream().receive_data(b"".join(FRAMES[:BEGUN])))

HOUR: Final = 3600.0
NO_TIMEOUTS: Final = Timeouts(connect=None, first_event=None, idle=None, total=None)
PATIENT: Final = Policy(trail=HOUR)
STREAMS: Final = int(os.environ.get("DELTAWIRE_STREAMS", "200"))

Loop = Literal["asyncio", "trio"]
LOOPS: Final[tuple[Loop, ...]] = ("asyncio", "trio")
LIBRARIES: Final = (httpx, httpx2)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


# Where a call is left.

Point = Literal["head", "silence", "middle", "trail"]
POINTS: Final[tuple[Point, ...]] = ("head", "silence", "middle", "trail")


def held(point: Point, gate: Gate) -> Reply:
    """An answer that stops there until the gate is set."""
    if point == "head":
        return Reply(FRAMES, head_hold=Hold(gate))
    at = {"silence": 0, "middle": BEGUN, "trail": len(FRAMES)}[point]
    return Reply((*FRAMES[:at], Hold(gate), *FRAMES[at:]))


@dataclass
class Call(Generic[T]):
    """A call under way: what the transport said of its attempts, and what the caller was given."""

    attempts: list[Attempt] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def on_attempt(self, attempt: Attempt) -> None:
        if attempt.outcome is None:
            self.attempts.append(attempt)

    @property
    def text(self) -> str:
        return "".join(chunk.choices[0].delta.content or "" for chunk in self.outputs)

    def has_reached(self, point: Point, kind: Kind, upstream: Upstream) -> bool:
        if point == "head":
            return len(upstream.requests) > 0
        if not self.attempts:
            return False
        attempt = self.attempts[-1]
        if point == "silence":
            return attempt.status is not None
        if point == "trail":
            return attempt.outcome is not None
        if kind == "create":
            return attempt.first_event is not None
        if kind == "stream":
            return len(self.outputs) == CHUNKS
        return b"".join(self.outputs).count(b"data:") == CHUNKS


def assert_left(call: Call[Any], point: Point, upstream: Upstream) -> None:
    """Once upstream saw the close."""
    (attempt,) = call.attempts
    assert attempt.outcome == ("completed" if point == "trail" else "cancelled")
    assert attempt.used == (point != "head")
    assert (attempt.status is None) == (point == "head")
    assert attempt.duration is not None
    assert upstream.requests[0].left.is_set()
    assert not upstream.requests[0].over.is_set()


# The calls, by an event loop.

Kind = Literal["stream", "wire", "create"]
KINDS: Final[tuple[Kind, ...]] = ("stream", "wire", "create")


async def call_by(transport: AsyncTransport, kind: Kind, outputs: list[Any]) -> None:
    """One call, to its end."""
    if kind == "create":
        outputs.append(await transport.create(REQUEST))
        return
    answer: AsyncStream[Any, Any] = (
        transport.stream(REQUEST) if kind == "stream" else transport.stream_wire(REQUEST)
    )
    async with answer:
        async for output in answer:
            outputs.append(output)


async def until(condition: Callable[[], bool]) -> None:
    """Let others go on until it holds."""
    with anyio.CancelScope(shield=True):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def seen(*events: threading.Event) -> None:
    """Wait until upstream saw it, while the event loop goes on."""
    with anyio.CancelScope(shield=True):
        for event in events:
            assert await anyio.to_thread.run_sync(event.wait, LIMIT)


async def assert_usable(transport: AsyncTransport, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    completion = await transport.create(REQUEST)
    assert completion.choices[0].message.content == TEXT


class MovedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved on."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run(loop: Loop, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """In an event loop of its own."""
    if loop == "trio":
        return trio.run(main, clock=trio.testing.MockClock())
    with asyncio.Runner(loop_factory=MovedLoop) as runner:
        return runner.run(main())


async def move_clock(seconds: float) -> None:
    """All deadlines within so many seconds pass at once."""
    if trio.lowlevel.in_trio_run():
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)
    else:
        moved = asyncio.get_running_loop()
        assert isinstance(moved, MovedLoop)
        moved.ahead += seconds


def transport_for(
    loop: Loop, upstream: Upstream, call: Call[Any], policy: Policy = PATIENT, **settings: Any
) -> AsyncTransport:
    kind = AsyncioTransport if loop == "asyncio" else TrioTransport
    return kind(
        **{
            "base_url": upstream.base_url,
            "timeouts": NO_TIMEOUTS,
            "policy": policy,
            "on_attempt": call.on_attempt,
            **({} if "client" in settings else {"verify": False}),
            **settings,
        }
    )


# The ways to leave.

Started = Callable[[], Coroutine[Any, Any, None]]
Reached = Callable[[], Awaitable[None]]


async def by_cancel(call: Started, reached: Reached) -> None:
    task = asyncio.create_task(call())
    await reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1


async def by_two_cancels(call: Started, reached: Reached) -> None:
    task = asyncio.create_task(call())
    await reached()
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 2


async def by_cancel_after_cancel(call: Started, reached: Reached) -> None:
    task = asyncio.create_task(call())
    await reached()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(call: Started, reached: Reached) -> None:
    async def timed() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR) as deadline:
                await call()
        assert deadline.expired()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    task = asyncio.create_task(timed())
    await reached()
    await move_clock(HOUR)
    await task


async def by_wait_for(call: Started, reached: Reached) -> None:
    async def timed() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(), HOUR)

    task = asyncio.create_task(timed())
    await reached()
    await move_clock(HOUR)
    await task


async def by_task_group(call: Started, reached: Reached) -> None:
    async def fail() -> None:
        await reached()
        raise LookupError

    tasks: list[asyncio.Task[None]] = []

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            tasks.append(group.create_task(call()))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as raised:
        await together()
    assert raised.group_contains(LookupError)
    assert tasks[0].cancelled()


async def by_move_on_after(call: Started, reached: Reached) -> None:
    async with anyio.create_task_group() as group:

        async def timed() -> None:
            with anyio.move_on_after(HOUR) as scope:
                await call()
            assert scope.cancelled_caught

        group.start_soon(timed)
        await reached()
        await move_clock(HOUR)


async def by_fail_after(call: Started, reached: Reached) -> None:
    async with anyio.create_task_group() as group:

        async def timed() -> None:
            with pytest.raises(TimeoutError), anyio.fail_after(HOUR):
                await call()

        group.start_soon(timed)
        await reached()
        await move_clock(HOUR)


async def by_scope(call: Started, reached: Reached) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await reached()
        group.cancel_scope.cancel()


async def by_trio_move_on_after(call: Started, reached: Reached) -> None:
    async def timed() -> None:
        with trio.move_on_after(HOUR) as scope:
            await call()
        assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timed)
        await reached()
        await move_clock(HOUR)


async def by_sibling(call: Started, reached: Reached) -> None:
    async def together() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await reached()
            raise LookupError

    with pytest.raises(ExceptionGroup) as raised:
        await together()
    assert raised.group_contains(LookupError)


Way = Callable[[Started, Reached], Awaitable[None]]
CANCELS: Final[tuple[tuple[Loop, Way], ...]] = (
    ("asyncio", by_cancel),
    ("asyncio", by_two_cancels),
    ("asyncio", by_cancel_after_cancel),
    ("asyncio", by_timeout),
    ("asyncio", by_wait_for),
    ("asyncio", by_task_group),
    ("asyncio", by_move_on_after),
    ("asyncio", by_fail_after),
    ("asyncio", by_scope),
    ("trio", by_scope),
    ("trio", by_trio_move_on_after),
    ("trio", by_sibling),
)
CANCELS_AGAIN: Final = (by_two_cancels, by_cancel_after_cancel)
cancelled = pytest.mark.parametrize(
    ("loop", "way"), CANCELS, ids=[f"{loop}-{way.__name__}" for loop, way in CANCELS]
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", KINDS)
@cancelled
def test_a_call_that_is_cancelled_hangs_up_wherever_it_waits(
    loop: Loop, way: Way, kind: Kind, point: Point, upstream: Upstream
) -> None:
    upstream.play(held(point, Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call) as transport:
            await way(
                partial(call_by, transport, kind, call.outputs),
                partial(until, lambda: call.has_reached(point, kind, upstream)),
            )
            await seen(upstream.requests[0].left)
            assert_left(call, point, upstream)
            await assert_usable(transport, upstream)

    run(loop, main)
    assert upstream.connections == 2
    upstream.wait_closed()


@cancelled
def test_a_caller_that_is_cancelled_at_its_own_work_hangs_up(
    loop: Loop, way: Way, upstream: Upstream
) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call) as transport:

            async def work() -> None:
                async with transport.stream(REQUEST) as chunks:
                    async for chunk in chunks:
                        call.outputs.append(chunk)
                        await anyio.sleep_forever()

            await way(work, partial(until, lambda: bool(call.outputs)))
            await seen(upstream.requests[0].left)
            assert_left(call, "middle", upstream)
            await assert_usable(transport, upstream)

    run(loop, main)
    upstream.wait_closed()


@pytest.mark.parametrize("kind", KINDS)
@cancelled
def test_a_call_that_waits_for_an_account_can_be_cancelled(
    loop: Loop, way: Way, kind: Kind, upstream: Upstream
) -> None:
    account = Account(base_url=upstream.base_url)
    pool = AccountPool([account])
    call = Call[Any]()

    async def main() -> None:
        policy = Policy(wait=10 * HOUR)
        async with transport_for(loop, upstream, call, policy, accounts=pool) as transport:
            now = transport._runtime.now()
            pool.settle(account, Health.TIRED, now, model="gpt-5", retry_after=2 * HOUR)
            task_waits = itertools.count()
            await way(
                partial(call_by, transport, kind, call.outputs),
                partial(until, lambda: next(task_waits) > 5),
            )
            assert call.attempts == []
            await move_clock(3 * HOUR)
            await assert_usable(transport, upstream)

    run(loop, main)
    assert len(upstream.requests) == 1
    upstream.wait_closed()


# At every await point.


class Interrupt(Protocol):
    def __call__(self) -> object: ...


class Interrupted:
    """A coroutine that is interrupted each time that it comes to wait, `times` times from `first`.

    `late`: what is waited for is there by then, but the task has not gone on.
    """

    def __init__(
        self, work: Coroutine[Any, Any, T], first: int, times: int, late: bool, interrupt: Interrupt
    ) -> None:
        self._work = work
        self._interrupt = interrupt
        self._points = range(first, first + times)
        self._late = late
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on = partial(self._work.send, None)
        while True:
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits in self._points:
                if self._late and isinstance(waits_for, asyncio.Future):
                    # The task itself adds its own callback after this one.
                    waits_for.add_done_callback(lambda _: self._interrupt())
                else:
                    self._interrupt()
            try:
                go_on = partial(self._work.send, (yield waits_for))
            except BaseException as error:
                go_on = partial(self._work.throw, error)


async def interrupted_in_asyncio(
    work: Coroutine[Any, Any, None], first: int, times: int, late: bool
) -> tuple[bool, int]:
    """Whether it was cancelled, and how often it waited."""

    async def main() -> None:
        await made

    made: Interrupted = Interrupted(work, first, times, late, lambda: task.cancel())
    task: asyncio.Task[None] = asyncio.create_task(main())
    await asyncio.wait([task])
    assert made.waits >= first or not task.cancelled()
    if not task.cancelled():
        task.result()
    return task.cancelled(), made.waits


async def interrupted_in_trio(
    work: Coroutine[Any, Any, None], first: int, times: int, late: bool
) -> tuple[bool, int]:
    with trio.CancelScope() as scope:
        made = Interrupted(work, first, times, late, scope.cancel)
        await made
        # What came while something was shielded counts as soon as it is not.
        await trio.lowlevel.checkpoint_if_cancelled()
    return scope.cancelled_caught, made.waits


# What the attempts may have come to, of which the first is refused.
LEGAL: Final = {
    True: (["cancelled"], ["rejected"], ["rejected", "cancelled"], ["rejected", "completed"]),
    False: (["rejected", "completed"],),
}
INTERRUPTIONS: Final = (
    ("asyncio", 1, False),
    ("asyncio", 1, True),
    ("asyncio", 2, False),
    ("asyncio", 1000, False),
    ("trio", 1, False),
)


# httpcore drops the generator of a request's body that is cancelled while it is sent.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
@pytest.mark.parametrize(
    "library", [*LIBRARIES, None], ids=lambda each: each.__name__ if each else "own"
)
@pytest.mark.parametrize("kind", ["stream", "create"])
@pytest.mark.parametrize(("loop", "times", "late"), INTERRUPTIONS)
def test_a_call_can_be_cancelled_wherever_it_awaits(
    loop: Loop,
    times: int,
    late: bool,
    kind: Kind,
    library: ModuleType | None,
    upstream: Upstream,
) -> None:
    interrupted = interrupted_in_asyncio if loop == "asyncio" else interrupted_in_trio
    # In few pieces, for there is a run for each of them.
    whole = b"".join(FRAMES)
    reply = Reply((FRAMES[0], whole[len(FRAMES[0]) :]))

    async def left_at(first: int) -> bool:
        """Whether the call came to await so often."""
        upstream.play(error(503, headers=(("Retry-After", "0"),)), reply)
        call = Call[Any]()
        # No connection is kept, so that one that is open is one that was forgotten.
        policy = Policy(attempts_per_account=2, trail=HOUR)
        timeouts = Timeouts(connect=None, first_event=HOUR, idle=HOUR, total=HOUR)
        async with contextlib.AsyncExitStack() as stack:
            settings: dict[str, Any] = {"max_keepalive_connections": 0}
            if library is not None:
                limits = library.Limits(max_keepalive_connections=0)
                client = library.AsyncClient(verify=False, limits=limits)
                settings = {"client": await stack.enter_async_context(client)}
            transport = await stack.enter_async_context(
                transport_for(loop, upstream, call, policy, timeouts=timeouts, **settings)
            )
            was_cancelled, waits = await interrupted(
                call_by(transport, kind, call.outputs), first, times, late
            )
            assert was_cancelled == (waits >= first)
            outcomes = [attempt.outcome for attempt in call.attempts]
            assert outcomes in LEGAL[was_cancelled], outcomes
            for attempt in call.attempts:
                assert attempt.used == (attempt.status == 200)
            if library is None or (loop == "asyncio" and library is not httpx):
                # httpcore 1 and, under trio, httpcore2 forget a connection whose task is cancelled
                # after it was made and before the request is sent, until the client is closed.
                await anyio.to_thread.run_sync(upstream.wait_closed)
            await assert_usable(transport, upstream)
        # What a call that was left has sent must not be answered in place of the next one's.
        await anyio.to_thread.run_sync(upstream.wait_closed)
        return was_cancelled

    async def main() -> int:
        first = 1
        while await left_at(first):
            first += 1
        return first

    # To connect, to send, the head, the body, its end, twice; own connections do not wait to send,
    # nor for what has come.
    assert run(loop, main) > (4 if library is None else 8)
    upstream.wait_closed()


@pytest.mark.parametrize("ring_first", [False, True])
@pytest.mark.parametrize("point", ["head", "silence", "middle"])
def test_a_deadline_that_passes_with_a_cancel_does_not_swallow_it(
    point: Point, ring_first: bool, upstream: Upstream
) -> None:
    upstream.play(held(point, Gate()))
    call = Call[Any]()
    timeouts = Timeouts(connect=None, first_event=HOUR, idle=HOUR, total=None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with transport_for("asyncio", upstream, call, timeouts=timeouts) as transport:
            task = asyncio.create_task(call_by(transport, "stream", call.outputs))
            await until(lambda: call.has_reached(point, "stream", upstream))
            if ring_first:
                # In the same round of the loop, in which timers go by their time.
                loop.call_at(loop.time() + 2 * HOUR, task.cancel)
                await move_clock(3 * HOUR)
            else:
                await move_clock(3 * HOUR)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelling() == 1
            await seen(upstream.requests[0].left)
            assert_left(call, point, upstream)

    run("asyncio", main)
    upstream.wait_closed()


@pytest.mark.parametrize("point", ["head", "silence", "middle"])
def test_a_deadline_that_passes_with_a_cancel_does_not_swallow_it_in_trio(
    point: Point, upstream: Upstream
) -> None:
    upstream.play(held(point, Gate()))
    call = Call[Any]()
    timeouts = Timeouts(connect=None, first_event=HOUR, idle=HOUR, total=None)

    async def main() -> None:
        async with (
            transport_for("trio", upstream, call, timeouts=timeouts) as transport,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(call_by, transport, "stream", call.outputs)
            await until(lambda: call.has_reached(point, "stream", upstream))
            await move_clock(3 * HOUR)
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        await seen(upstream.requests[0].left)
        assert_left(call, point, upstream)

    run("trio", main)
    upstream.wait_closed()


# Leaving without being cancelled.

Leaving = Literal["break", "exception", "close", "drop"]
LEAVINGS: Final[tuple[Leaving, ...]] = ("break", "exception", "close", "drop")


async def leave_by(leaving: Leaving, answer: AsyncStream[Any, Any]) -> None:
    """After the first output."""
    if leaving == "drop":
        await anext(answer)
        return
    with contextlib.suppress(LookupError):
        async with answer:
            async for _ in answer:
                if leaving == "break":
                    break
                if leaving == "exception":
                    raise LookupError
                await answer.aclose()


# trio says of each generator that is dropped that it should not be.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("kind", ["stream", "wire"])
@pytest.mark.parametrize("leaving", LEAVINGS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_that_is_left_hangs_up(
    loop: Loop, leaving: Leaving, kind: Kind, upstream: Upstream
) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call) as transport:
            begin = transport.stream if kind == "stream" else transport.stream_wire
            await leave_by(leaving, begin(REQUEST))
            await seen(upstream.requests[0].left)
            await until(lambda: call.attempts[0].outcome is not None)
            assert_left(call, "middle", upstream)
            await assert_usable(transport, upstream)

    run(loop, main)
    upstream.wait_closed()


@pytest.mark.parametrize("loop", LOOPS)
def test_of_a_stream_that_nobody_reads_nothing_is_sent(loop: Loop, upstream: Upstream) -> None:
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call) as transport:
            async with transport.stream(REQUEST):
                pass
            transport.stream(REQUEST)

    run(loop, main)
    assert call.attempts == []
    assert upstream.connections == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_whole_answer_is_waited_for_no_longer_than_its_trail(
    loop: Loop, kind: Kind, upstream: Upstream
) -> None:
    upstream.play(held("trail", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call, Policy(trail=HOUR)) as transport:
            async with anyio.create_task_group() as group:
                group.start_soon(call_by, transport, kind, call.outputs)
                await until(lambda: call.has_reached("trail", kind, upstream))
                await move_clock(HOUR)
            await seen(upstream.requests[0].left)
            assert_left(call, "trail", upstream)

    run(loop, main)
    upstream.wait_closed()


# Draining.


@pytest.mark.parametrize("leaving", LEAVINGS[:3])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_that_is_left_is_drained_so_that_its_usage_is_known(
    loop: Loop, leaving: Leaving, upstream: Upstream
) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        policy = Policy(drain=HOUR, trail=HOUR)
        async with transport_for(loop, upstream, call, policy) as transport:
            answer = transport.stream(REQUEST)
            async with anyio.create_task_group() as group:
                group.start_soon(leave_by, leaving, answer)
                await until(lambda: bool(call.attempts and answer._begun))
                await until(lambda: answer.exchange.phase is Phase.DRAINING)
                gate.set()
            assert answer.usage is not None

    run(loop, main)
    (attempt,) = call.attempts
    assert (attempt.outcome, attempt.used) == ("cancelled", True)
    assert attempt.usage is not None
    upstream.wait_closed()


@pytest.mark.parametrize(
    ("loop", "way"), [each for each in CANCELS if each[1] not in CANCELS_AGAIN]
)
def test_a_caller_that_is_cancelled_at_its_own_work_is_drained(
    loop: Loop, way: Way, upstream: Upstream
) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        policy = Policy(drain=HOUR * 10, trail=HOUR)
        async with transport_for(loop, upstream, call, policy) as transport:
            answer = transport.stream(REQUEST)

            async def work() -> None:
                async with answer:
                    async for chunk in answer:
                        call.outputs.append(chunk)
                        await anyio.sleep_forever()

            async def release() -> None:
                await until(lambda: bool(call.outputs) and answer.exchange.phase is Phase.DRAINING)
                gate.set()

            async with anyio.create_task_group() as group:
                group.start_soon(release)
                await way(work, partial(until, lambda: bool(call.outputs)))

    run(loop, main)
    (attempt,) = call.attempts
    assert (attempt.outcome, attempt.used) == ("cancelled", True)
    assert attempt.usage is not None
    upstream.wait_closed()


def test_a_second_cancel_ends_the_draining(upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for("asyncio", upstream, call, Policy(drain=HOUR)) as transport:
            answer = transport.stream(REQUEST)
            task = asyncio.create_task(leave_by("break", answer))
            await until(lambda: bool(call.attempts and answer._begun))
            await until(lambda: answer.exchange.phase is Phase.DRAINING)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await seen(upstream.requests[0].left)
            assert_left(call, "middle", upstream)
            await assert_usable(transport, upstream)

    run("asyncio", main)
    upstream.wait_closed()


@pytest.mark.parametrize("loop", LOOPS)
def test_draining_ends_in_time(loop: Loop, upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport_for(loop, upstream, call, Policy(drain=HOUR)) as transport:
            answer = transport.stream(REQUEST)
            async with anyio.create_task_group() as group:
                group.start_soon(leave_by, "break", answer)
                await until(lambda: bool(call.attempts and answer._begun))
                await until(lambda: answer.exchange.phase is Phase.DRAINING)
                await move_clock(HOUR)
            await seen(upstream.requests[0].left)
            assert_left(call, "middle", upstream)
            assert call.attempts[0].usage is None
            await assert_usable(transport, upstream)

    run(loop, main)
    upstream.wait_closed()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_cancelled_while_it_reads_is_drained(loop: Loop, upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        policy = Policy(drain=HOUR, trail=HOUR)
        async with transport_for(loop, upstream, call, policy) as transport:
            async with anyio.create_task_group() as group:
                group.start_soon(call_by, transport, "stream", call.outputs)
                await until(lambda: call.has_reached("middle", "stream", upstream))
                group.cancel_scope.cancel()
                gate.set()
            assert call.attempts[0].usage is not None

    run(loop, main)


# Blocking.


@pytest.fixture
def blocking(upstream: Upstream) -> Iterator[tuple[SyncTransport, Call[Any]]]:
    call = Call[Any]()
    with SyncTransport(
        base_url=upstream.base_url, timeouts=NO_TIMEOUTS, on_attempt=call.on_attempt, verify=False
    ) as transport:
        yield transport, call
    upstream.wait_closed()


def read_by(transport: SyncTransport, kind: Kind, outputs: list[Any]) -> None:
    if kind == "create":
        outputs.append(transport.create(REQUEST))
        return
    answer: SyncStream[Any, Any] = (
        transport.stream(REQUEST) if kind == "stream" else transport.stream_wire(REQUEST)
    )
    with answer:
        for output in answer:
            outputs.append(output)


def assert_usable_still(transport: SyncTransport, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    assert transport.create(REQUEST).choices[0].message.content == TEXT


def leave_blocking(leaving: Leaving, answer: SyncStream[Any, Any]) -> None:
    """After the first output."""
    if leaving == "drop":
        next(answer)
        return
    with contextlib.suppress(LookupError), answer:
        for _ in answer:
            if leaving == "break":
                break
            if leaving == "exception":
                raise LookupError
            answer.close()


@pytest.mark.parametrize("kind", ["stream", "wire"])
@pytest.mark.parametrize("leaving", LEAVINGS)
def test_a_blocking_stream_that_is_left_hangs_up(
    leaving: Leaving, kind: Kind, blocking: tuple[SyncTransport, Call[Any]], upstream: Upstream
) -> None:
    transport, call = blocking
    upstream.play(held("middle", Gate()))
    leave_blocking(
        leaving, transport.stream(REQUEST) if kind == "stream" else transport.stream_wire(REQUEST)
    )
    assert upstream.requests[0].left.wait(LIMIT)
    assert_left(call, "middle", upstream)
    assert_usable_still(transport, upstream)


@pytest.mark.parametrize("leaving", LEAVINGS)
def test_a_blocking_stream_that_is_left_is_drained(leaving: Leaving, upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()
    policy = Policy(drain=LIMIT)
    with SyncTransport(
        base_url=upstream.base_url, policy=policy, on_attempt=call.on_attempt, verify=False
    ) as transport:
        answer = transport.stream(REQUEST)
        next(answer)
        gate.set()
        leave_blocking(leaving, answer)
        del answer
    assert (call.attempts[0].outcome, call.attempts[0].used) == ("cancelled", True)
    assert call.attempts[0].usage is not None
    upstream.wait_closed()


def test_blocking_draining_ends_in_time(upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()
    policy = Policy(drain=0.02)
    with SyncTransport(
        base_url=upstream.base_url, policy=policy, on_attempt=call.on_attempt, verify=False
    ) as transport:
        with transport.stream(REQUEST) as answer:
            next(answer)
        assert upstream.requests[0].left.wait(LIMIT)
        assert_left(call, "middle", upstream)
        assert call.attempts[0].usage is None
        assert_usable_still(transport, upstream)
    upstream.wait_closed()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_answer_is_waited_for_no_longer_than_its_trail_while_blocking(
    kind: Kind, upstream: Upstream
) -> None:
    upstream.play(held("trail", Gate()))
    call = Call[Any]()
    policy = Policy(trail=0.02)
    with SyncTransport(
        base_url=upstream.base_url, policy=policy, on_attempt=call.on_attempt, verify=False
    ) as transport:
        read_by(transport, kind, call.outputs)
        assert upstream.requests[0].left.wait(LIMIT)
        assert_left(call, "trail", upstream)
    upstream.wait_closed()


class Stop(BaseException):
    """What is raised out of a call that blocks, as KeyboardInterrupt is."""


@contextlib.contextmanager
def stopped(upstream: Upstream, reached: Callable[[], bool]) -> Iterator[None]:
    """Stop is raised in this thread once it blocks in a read and that point is reached."""
    done = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not done.is_set():
            done.set()
            raise Stop

    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        upstream.wait_for_requests(1)
        while not _reads_in(sys._current_frames()[main]) or not reached():
            pass
        # One that comes just before the system call does not end it.
        while not done.wait(0.01):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(Stop):
            yield
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["head", "silence", "middle"])
def test_a_signal_ends_a_call_that_blocks(
    point: Point, kind: Kind, blocking: tuple[SyncTransport, Call[Any]], upstream: Upstream
) -> None:
    transport, call = blocking
    upstream.play(held(point, Gate()))
    with stopped(upstream, lambda: call.has_reached(point, kind, upstream)):
        read_by(transport, kind, call.outputs)
    assert upstream.requests[0].left.wait(LIMIT)
    assert_left(call, point, upstream)
    assert_usable_still(transport, upstream)


def test_a_signal_ends_the_draining_and_gives_the_connection_s_place_back(
    upstream: Upstream,
) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()
    with SyncTransport(
        base_url=upstream.base_url,
        policy=Policy(drain=HOUR),
        timeouts=NO_TIMEOUTS,
        max_connections=1,
        on_attempt=call.on_attempt,
        verify=False,
    ) as transport:
        answer = transport.stream(REQUEST)
        with stopped(upstream, lambda: answer.exchange.phase is Phase.DRAINING), answer:
            next(answer)
        assert upstream.requests[0].left.wait(LIMIT)
        assert_left(call, "middle", upstream)
        assert_usable_still(transport, upstream)
    upstream.wait_closed()


def test_deadlines_of_a_caller_s_own_client_are_kept_past_the_transport_s_end(
    upstream: Upstream,
) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    with httpx.Client(verify=False, trust_env=False) as client, ThreadPoolExecutor(1) as pool:
        transport = SyncTransport(
            base_url=upstream.base_url,
            client=client,
            timeouts=Timeouts(connect=None, first_event=None, idle=0.2, total=None),
        )
        answer = transport.stream(REQUEST)

        def read_past_the_end() -> None:
            next(answer)
            transport.close()
            list(answer)

        reading = pool.submit(read_past_the_end)
        try:
            with pytest.raises(UpstreamTimeout):
                reading.result(LIMIT)
        finally:
            gate.set()
    upstream.wait_closed()


def _reads_in(frame: FrameType) -> bool:
    return frame.f_code is SocketConnection.receive.__code__


class InterruptedSockets:
    """Sockets of this thread, of which the n-th call that could block raises Stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, late: bool) -> None:
        self.calls = 0
        self._at = at
        self._late = late
        self._thread = threading.get_ident()
        for name in ("connect", "connect_ex", "sendall", "send", "recv"):
            monkeypatch.setattr(socket.socket, name, self._wrapped(getattr(socket.socket, name)))

    def _wrapped(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if threading.get_ident() != self._thread:
                return method(*arguments)
            self.calls += 1
            if self.calls == self._at and not self._late:
                raise Stop
            given = method(*arguments)
            if self.calls == self._at:
                raise Stop
            return given

        return call


@pytest.mark.parametrize(
    "library", [*LIBRARIES, None], ids=lambda each: each.__name__ if each else "own"
)
# socket.create_connection leaves a socket that is interrupted to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["stream", "create"])
def test_a_blocking_call_can_be_interrupted_wherever_it_blocks(
    kind: Kind, late: bool, library: ModuleType | None, upstream: Upstream
) -> None:
    def left_at(at: int) -> bool:
        upstream.play(error(503, headers=(("Retry-After", "0"),)), stream(ANSWER))
        call = Call[Any]()
        with contextlib.ExitStack() as stack:
            own: Any = {"verify": False, "max_keepalive_connections": 0}
            if library is not None:
                limits = library.Limits(max_keepalive_connections=0)
                own = {"client": library.Client(verify=False, limits=limits)}
                stack.enter_context(own["client"])
            transport = SyncTransport(
                base_url=upstream.base_url,
                policy=Policy(attempts_per_account=2),
                on_attempt=call.on_attempt,
                **own,
            )
            stack.enter_context(transport)
            stopped = False
            with pytest.MonkeyPatch.context() as monkeypatch:
                sockets = InterruptedSockets(monkeypatch, at, late)
                try:
                    read_by(transport, kind, call.outputs)
                except Stop:
                    stopped = True
            assert stopped == (sockets.calls >= at)
            outcomes = [attempt.outcome for attempt in call.attempts]
            assert outcomes in LEGAL[stopped], outcomes
            for attempt in call.attempts:
                assert attempt.used == (attempt.status == 200)
            gc.collect()
            upstream.wait_closed()
            assert_usable_still(transport, upstream)
        return stopped

    at = 1
    while left_at(at):
        at += 1
    assert at > 6
    upstream.wait_closed()


# The timer of asyncio.

When = int


@dataclass(frozen=True)
class Awaited:
    """Something to be awaited: when it is there, if ever, and by when."""

    done: When | None
    deadline: When | None
    cleanup: bool


class TimedLoop(asyncio.SelectorEventLoop):
    """Its time is what the test says."""

    clock = 0.0

    def time(self) -> float:
        return self.clock


class ReferenceTimer:
    """asyncio's own, one for each await."""

    async def within(self, deadline: float, awaitable: Awaitable[T]) -> T:
        async with asyncio.timeout_at(None if deadline == math.inf else deadline):
            return await awaitable


def outcomes_with(
    timer: Callable[[asyncio.AbstractEventLoop], AsyncioTimer | ReferenceTimer],
    awaited: tuple[Awaited, ...],
    cancels: tuple[When, ...],
    outer: When | None,
    at_once: bool,
) -> list[object]:
    """What comes of each await, and whether the task is being cancelled after it."""
    came: list[object] = []

    def arrive(future: asyncio.Future[str]) -> None:
        if not future.done():
            future.set_result("there")

    async def await_one(each: Awaited, loop: asyncio.AbstractEventLoop) -> str:
        future: asyncio.Future[str] = loop.create_future()
        if each.done is not None:
            loop.call_at(each.done, arrive, future)
        if not each.cleanup:
            return await future
        try:
            return await future
        finally:
            await asyncio.sleep(0)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        clock = timer(loop)
        try:
            async with asyncio.timeout_at(outer):
                for each in awaited:
                    deadline = math.inf if each.deadline is None else each.deadline
                    try:
                        came.append(await clock.within(deadline, await_one(each, loop)))
                    except TimeoutError:
                        came.append("late")
                    except asyncio.CancelledError:
                        came.append("cancelled")
                        came.append(task.cancelling())
                        raise
                    came.append(task.cancelling())
        except TimeoutError:
            came.append("too late")
        came.append(task.cancelling())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimedLoop)
        task = asyncio.create_task(work())
        for when in cancels:
            loop.call_at(when, task.cancel)
        for now in [1000] if at_once else range(1, 1000, 1):
            for _ in range(8):
                await asyncio.sleep(0)
            if task.done():
                break
            loop.clock = float(now)
            if now > 40:
                loop.clock = 1000.0
        for _ in range(8):
            await asyncio.sleep(0)
        if not task.done():
            came.append("waits")
            for _ in range(3):
                task.cancel()
        await asyncio.wait([task])
        came.append(task.cancelled())

    with asyncio.Runner(loop_factory=TimedLoop, debug=False) as runner:
        runner.run(main())
    return came


@given(data=st.data(), at_once=st.booleans(), cleanup=st.booleans())
def test_the_timer_gives_what_a_timeout_for_each_await_gives(
    data: st.DataObject, at_once: bool, cleanup: bool
) -> None:
    # No two at the same time: which comes first is not said then.
    times = iter(data.draw(st.permutations(range(1, 12))))
    maybe = st.booleans()

    def some_time() -> When | None:
        return next(times) if data.draw(maybe) else None

    awaited = tuple(
        Awaited(some_time(), some_time(), cleanup) for _ in range(data.draw(st.integers(1, 3)))
    )
    cancels = tuple(next(times) for _ in range(data.draw(st.integers(0, 2))))
    outer = some_time()
    given_ = outcomes_with(AsyncioTimer, awaited, cancels, outer, at_once)
    assert given_ == outcomes_with(lambda _: ReferenceTimer(), awaited, cancels, outer, at_once)


# Nothing is left.


@dataclass(frozen=True)
class Held:
    """What this process holds, each by a name of its own."""

    sockets: frozenset[str]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        names = set()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.add(os.readlink(f"/proc/self/fd/{number}"))
        sockets = frozenset(name for name in names if name.startswith("socket:"))
        return cls(sockets, frozenset(threading.enumerate()))

    def __str__(self) -> str:
        return f"{len(self.sockets)} sockets, {len(self.threads)} threads"


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
AT_ONCE: Final = 20


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = Held.now()
    yield
    after = Held.now()
    print(f"{STREAMS} streams: before {before}, after {after}")
    # A thread of a test before this one may end meanwhile.
    assert not after.sockets - before.sockets
    assert not after.threads - before.threads


@linux
@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_left_of_many_streams(loop: Loop, nothing_left: None) -> None:
    call = Call[Any]()

    async def whole(transport: AsyncTransport) -> None:
        async with transport.stream(REQUEST) as chunks:
            async for _ in chunks:
                pass

    async def cut_off(transport: AsyncTransport) -> None:
        with anyio.CancelScope() as scope:
            async with transport.stream(REQUEST) as chunks:
                async for _ in chunks:
                    scope.cancel()

    async def broken_off(transport: AsyncTransport) -> None:
        async with transport.stream(REQUEST) as chunks:
            async for _ in chunks:
                break

    def tasks() -> int:
        if loop == "trio":
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())

    async def main() -> None:
        before = tasks()
        with Upstream() as upstream:
            upstream.play(Reply((b"".join(FRAMES[:BEGUN]), b"".join(FRAMES[BEGUN:]))))
            async with transport_for(loop, upstream, call, Policy()) as transport:
                ways = itertools.cycle((whole, cut_off, whole, broken_off))
                for _ in range(STREAMS // AT_ONCE):
                    async with anyio.create_task_group() as group:
                        for _ in range(AT_ONCE):
                            group.start_soon(next(ways), transport)
            await until(lambda: upstream.open_connections == 0)
        print(f"tasks: before {before}, after {tasks()}")
        assert tasks() == before

    if loop == "trio":
        trio.run(main)
    else:
        asyncio.run(main())
    outcomes = [attempt.outcome for attempt in call.attempts]
    assert len(outcomes) == STREAMS // AT_ONCE * AT_ONCE
    assert outcomes.count("completed") >= len(outcomes) // 2
    assert set(outcomes) <= {"completed", "cancelled"}


@linux
def test_nothing_is_left_of_many_blocking_streams(nothing_left: None) -> None:
    call = Call[Any]()
    with Upstream() as upstream:
        upstream.play(stream(ANSWER))
        upstream.play(held("middle", Gate()), model="held")
        with SyncTransport(
            base_url=upstream.base_url, on_attempt=call.on_attempt, verify=False
        ) as transport:
            ways = itertools.cycle((None, *LEAVINGS[:2], None, *LEAVINGS[2:], None, None))
            used = list(itertools.islice(ways, STREAMS))
            for leaving in used:
                if leaving is None:
                    read_by(transport, "stream", [])
                else:
                    leave_blocking(leaving, transport.stream({**REQUEST, "model": "held"}))
        upstream.wait_closed()
    outcomes = ["completed" if leaving is None else "cancelled" for leaving in used]
    assert [attempt.outcome for attempt in call.attempts] == outcomes
