"""What is pushed is what would be read, in the moment that it comes; and it can be left as well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import anyio
import anyio.lowlevel
import httpx
import pytest

from deltawire.attempts import Policy, Timeouts
from deltawire.errors import UpstreamRejected, UpstreamTimeout
from deltawire.steps import Phase
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import AsyncioTransport, TrioTransport
from deltawire.transports.push import PushedStream
from test_leaving import (
    BEGUN,
    FRAMES,
    HOUR,
    LOOPS,
    POINTS,
    REQUEST,
    Call,
    Loop,
    Point,
    assert_left,
    assert_usable,
    held,
    move_clock,
    run,
    seen,
    transport_for,
    until,
)
from upstream import Gate, Reply, Upstream, error, gzipped
from wire import parsed

TIMEOUTS: Final = Timeouts(connect=None, first_event=10 * HOUR, idle=HOUR, total=None)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    """The event loop that a test runs in."""
    name: Loop = request.param
    return name


def of_either(
    loop: Loop, upstream: Upstream, call: Call[Any], **settings: Any
) -> AsyncioTransport | TrioTransport:
    made = transport_for(loop, upstream, call, **settings)
    assert isinstance(made, (AsyncioTransport, TrioTransport))
    return made


def transport(upstream: Upstream, call: Call[Any], **settings: Any) -> AsyncioTransport:
    made = of_either("asyncio", upstream, call, **settings)
    assert isinstance(made, AsyncioTransport)
    return made


def push(made: AsyncioTransport, call: Call[Any]) -> PushedStream[bytes]:
    return made.push_wire(REQUEST, call.outputs.append)


REPLIES: Final[dict[str, Callable[[], Reply]]] = {
    "plain": lambda: Reply(FRAMES),
    "one byte at a time": lambda: Reply(FRAMES, slice=1),
    "length": lambda: Reply(FRAMES, framing="length"),
    "close": lambda: Reply(FRAMES, framing="close"),
    "gzip": lambda: gzipped(Reply(FRAMES)),
    "cut": lambda: Reply(FRAMES[:BEGUN], ending="cut"),
    "reset": lambda: Reply(FRAMES[:BEGUN], ending="reset", framing="close"),
    "cut, gzip": lambda: gzipped(Reply(FRAMES[:BEGUN], ending="cut")),
    "no gzip": lambda: Reply(FRAMES, headers=(("Content-Encoding", "gzip"),)),
    "refused": lambda: error(401),
    "refused, then not": lambda: error(503),
}


def ended(call: Call[Any], failure: BaseException | None) -> tuple[Any, ...]:
    frames = b"".join(call.outputs)
    outcomes = [attempt.outcome for attempt in call.attempts]
    return parsed(frames), outcomes, type(failure), str(failure)


@pytest.mark.parametrize("client", [None, httpx.AsyncClient])
@pytest.mark.parametrize("name", REPLIES)
def test_what_is_pushed_is_what_is_read(
    loop: Loop, name: str, client: Any, upstream: Upstream
) -> None:
    policy = Policy(attempts_per_account=2, trail=HOUR)

    async def main() -> None:
        ends = []
        for way in ("read", "pushed"):
            upstream.play(REPLIES[name](), Reply(FRAMES))
            call = Call[Any]()
            settings = {} if client is None else {"client": client(trust_env=False)}
            failure: BaseException | None = None
            async with of_either(loop, upstream, call, policy=policy, **settings) as made:
                try:
                    if way == "pushed":
                        await made.push_wire(REQUEST, call.outputs.append).run()
                    else:
                        async with made.stream_wire(REQUEST) as answer:
                            async for frames in answer:
                                call.outputs.append(frames)
                except UpstreamRejected as rejected:
                    failure = rejected
            if client is not None:
                await settings["client"].aclose()
            ends.append(ended(call, failure))
        assert ends[0] == ends[1]

    run(loop, main)
    upstream.wait_closed()


@pytest.mark.parametrize("point", POINTS)
def test_who_leaves_hangs_up(point: Point, upstream: Upstream) -> None:
    upstream.play(held(point, Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call) as made:
            stream = push(made, call)
            task = asyncio.create_task(stream.run())
            await until(lambda: call.has_reached(point, "wire", upstream))
            stream.stop()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await seen(upstream.requests[0].left)
            assert_left(call, point, upstream)
            await assert_usable(made, upstream)

    run("asyncio", main)
    upstream.wait_closed()


def test_who_leaves_is_told_nothing_more_while_upstream_is_drained(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call, policy=Policy(drain=HOUR, trail=HOUR)) as made:
            stream = push(made, call)
            task = asyncio.create_task(stream.run())
            await until(lambda: call.has_reached("middle", "wire", upstream))
            before = len(call.outputs)
            # Nor does it matter that upstream was to wait.
            stream.pause()
            task.cancel()
            await until(lambda: stream.exchange.phase is Phase.DRAINING)
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(call.outputs) == before

    run("asyncio", main)
    (attempt,) = call.attempts
    assert attempt.outcome == "cancelled"
    assert attempt.usage is not None
    upstream.wait_closed()


def test_what_falls_silent_is_given_up(loop: Loop, upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with of_either(loop, upstream, call, timeouts=TIMEOUTS) as made:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.push_wire(REQUEST, call.outputs.append).run)
                await until(lambda: call.has_reached("middle", "wire", upstream))
                await move_clock(HOUR)
            await seen(upstream.requests[0].left)

    run(loop, main)
    assert parsed(call.outputs[-1])[-1]["error"]["code"] == "upstream_timeout"
    assert call.attempts[0].outcome == "truncated"
    upstream.wait_closed()


def test_what_never_begins_is_given_up(loop: Loop, upstream: Upstream) -> None:
    upstream.play(held("silence", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with of_either(loop, upstream, call, timeouts=TIMEOUTS) as made:

            async def in_vain() -> None:
                with pytest.raises(UpstreamTimeout, match="first_event"):
                    await made.push_wire(REQUEST, call.outputs.append).run()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(in_vain)
                await until(lambda: call.has_reached("silence", "wire", upstream))
                await move_clock(9 * HOUR)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert call.attempts[0].outcome is None
                await move_clock(HOUR)

    run(loop, main)
    upstream.wait_closed()


def test_nothing_is_late_while_upstream_is_to_wait(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call, timeouts=TIMEOUTS) as made:
            stream = push(made, call)
            task = asyncio.create_task(stream.run())
            await until(lambda: call.has_reached("middle", "wire", upstream))
            before = len(call.outputs)
            stream.pause()
            gate.set()
            await seen(upstream.requests[0].over)
            await move_clock(2 * HOUR)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(call.outputs) == before
            stream.resume()
            await task

    run("asyncio", main)
    assert parsed(b"".join(call.outputs))[-1] == "[DONE]"
    upstream.wait_closed()


def test_what_is_to_wait_before_it_begins_waits(upstream: Upstream) -> None:
    answer = Answer(" word" * 20_000)
    upstream.play(Reply(tuple(write_frames(answer))))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call) as made:
            stream = push(made, call)
            stream.pause()
            task = asyncio.create_task(stream.run())
            await until(lambda: stream._call is not None and stream._call._pushed is not None)
            assert stream._call is not None
            assert stream._call._pushed is not None
            connection = stream._call._pushed._connection._transport
            assert isinstance(connection, asyncio.ReadTransport)
            assert not connection.is_reading()
            stream.resume()
            await task

    run("asyncio", main)
    *chunks, end = parsed(b"".join(call.outputs))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == expected(answer).content
    assert end == "[DONE]"
    upstream.wait_closed()


def test_what_takes_it_may_fail(loop: Loop, upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    def hand_out(frames: bytes) -> None:
        raise LookupError

    async def main() -> None:
        async with of_either(loop, upstream, call) as made:
            with pytest.raises(LookupError):
                await made.push_wire(REQUEST, hand_out).run()
            await seen(upstream.requests[0].left)
            await assert_usable(made, upstream)

    run(loop, main)
    assert call.attempts[0].outcome == "cancelled"
    upstream.wait_closed()
