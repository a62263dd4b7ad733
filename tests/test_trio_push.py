"""On trio, what is pushed is what would be read, by the task that reads; and it can be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest
import trio

from deltawire.attempts import Policy, Timeouts
from deltawire.errors import UpstreamRejected, UpstreamTimeout
from deltawire.steps import Phase
from deltawire.transports import TrioTransport
from test_leaving import (
    BEGUN,
    FRAMES,
    HOUR,
    POINTS,
    REQUEST,
    Call,
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
from test_push import REPLIES, ended
from upstream import Gate, Hold, Reply, Upstream
from wire import parsed

TIMEOUTS: Final = Timeouts(connect=None, first_event=10 * HOUR, idle=HOUR, total=None)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


def transport(upstream: Upstream, call: Call[Any], **settings: Any) -> TrioTransport:
    made = transport_for("trio", upstream, call, **settings)
    assert isinstance(made, TrioTransport)
    return made


async def nothing_happens() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("client", [None, httpx.AsyncClient])
@pytest.mark.parametrize("name", REPLIES)
def test_what_is_pushed_is_what_is_read(name: str, client: Any, upstream: Upstream) -> None:
    policy = Policy(attempts_per_account=2, trail=HOUR)

    async def read(made: TrioTransport, call: Call[Any]) -> None:
        async with made.stream_wire(REQUEST) as answer:
            async for frames in answer:
                call.outputs.append(frames)

    async def push(made: TrioTransport, call: Call[Any]) -> None:
        await made.push_wire(REQUEST, call.outputs.append).run()

    async def outcome_of(way: Callable[..., Any]) -> tuple[Any, ...]:
        upstream.play(REPLIES[name](), Reply(FRAMES))
        call = Call[Any]()
        settings = {} if client is None else {"client": client(trust_env=False)}
        failure: BaseException | None = None
        async with transport(upstream, call, policy=policy, **settings) as made:
            try:
                await way(made, call)
            except UpstreamRejected as rejected:
                failure = rejected
        if client is not None:
            await settings["client"].aclose()
        return ended(call, failure)

    async def main() -> None:
        assert await outcome_of(read) == await outcome_of(push)

    run("trio", main)
    upstream.wait_closed()


@pytest.mark.parametrize("point", POINTS)
def test_who_leaves_hangs_up(point: Point, upstream: Upstream) -> None:
    upstream.play(held(point, Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call) as made:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.push_wire(REQUEST, call.outputs.append).run)
                await until(lambda: call.has_reached(point, "wire", upstream))
                nursery.cancel_scope.cancel()
            await seen(upstream.requests[0].left)
            assert_left(call, point, upstream)
            await assert_usable(made, upstream)

    run("trio", main)
    upstream.wait_closed()


def test_who_leaves_is_told_nothing_more_while_upstream_is_drained(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held("middle", gate))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call, policy=Policy(drain=HOUR, trail=HOUR)) as made:
            stream = made.push_wire(REQUEST, call.outputs.append)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.run)
                await until(lambda: call.has_reached("middle", "wire", upstream))
                before = len(call.outputs)
                nursery.cancel_scope.cancel()
                await until(lambda: stream.exchange.phase is Phase.DRAINING)
                gate.set()
            assert len(call.outputs) == before

    run("trio", main)
    (attempt,) = call.attempts
    assert attempt.outcome == "cancelled"
    assert attempt.usage is not None
    upstream.wait_closed()


def test_what_falls_silent_is_given_up_but_not_while_it_speaks(upstream: Upstream) -> None:
    gates = Gate(), Gate()
    at = BEGUN + 1
    upstream.play(
        Reply(
            (*FRAMES[:BEGUN], Hold(gates[0]), *FRAMES[BEGUN:at], Hold(gates[1]), *FRAMES[at:]),
        )
    )
    call = Call[Any]()

    async def main() -> None:
        async with (
            transport(upstream, call, timeouts=TIMEOUTS) as made,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(made.push_wire(REQUEST, call.outputs.append).run)
            await until(lambda: call.has_reached("middle", "wire", upstream))
            await move_clock(0.75 * HOUR)
            said = len(call.outputs)
            gates[0].set()
            await until(lambda: len(call.outputs) > said)
            # The deadline of the reads before has passed, but not that of this one.
            await move_clock(0.75 * HOUR)
            await nothing_happens()
            assert call.attempts[0].outcome is None
            await move_clock(0.25 * HOUR)
        await seen(upstream.requests[0].left)

    run("trio", main)
    assert parsed(call.outputs[-1])[-1]["error"]["code"] == "upstream_timeout"
    assert call.attempts[0].outcome == "truncated"
    upstream.wait_closed()


def test_what_never_begins_is_given_up(upstream: Upstream) -> None:
    upstream.play(held("silence", Gate()))
    call = Call[Any]()

    async def main() -> None:
        async with transport(upstream, call, timeouts=TIMEOUTS) as made:

            async def in_vain() -> None:
                with pytest.raises(UpstreamTimeout, match="first_event"):
                    await made.push_wire(REQUEST, call.outputs.append).run()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_vain)
                await until(lambda: call.has_reached("silence", "wire", upstream))
                await move_clock(9 * HOUR)
                await nothing_happens()
                assert call.attempts[0].outcome is None
                await move_clock(HOUR)

    run("trio", main)
    upstream.wait_closed()


def test_upstream_waits_for_who_takes_it_and_is_not_late_meanwhile(upstream: Upstream) -> None:
    upstream.play(held("middle", gate := Gate()))
    call = Call[Any]()
    taken = 0

    async def main() -> None:
        room = trio.Event()

        async def wait() -> None:
            nonlocal taken
            await room.wait()
            taken += 1

        def hand_out(frames: bytes) -> Any:
            call.outputs.append(frames)
            return wait()

        async with (
            transport(upstream, call, timeouts=TIMEOUTS) as made,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(made.push_wire(REQUEST, hand_out).run)
            await until(lambda: bool(call.outputs))
            gate.set()
            await seen(upstream.requests[0].over)
            await move_clock(2 * HOUR)
            await nothing_happens()
            assert (len(call.outputs), taken) == (1, 0)
            room.set()
        assert taken == len(call.outputs)

    run("trio", main)
    assert parsed(b"".join(call.outputs))[-1] == "[DONE]"
    upstream.wait_closed()


def test_what_takes_it_may_fail(upstream: Upstream) -> None:
    upstream.play(held("middle", Gate()))
    call = Call[Any]()

    def hand_out(frames: bytes) -> None:
        raise LookupError

    async def main() -> None:
        async with transport(upstream, call) as made:
            with pytest.raises(LookupError):
                await made.push_wire(REQUEST, hand_out).run()
            await seen(upstream.requests[0].left)
            await assert_usable(made, upstream)

    run("trio", main)
    assert call.attempts[0].outcome == "cancelled"
    upstream.wait_closed()
