"""On trio, it is the task that reads that hands out; it can be left, and it may have to wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from deltawire.attempts import Policy
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
    until,
)
from test_push import TIMEOUTS, of_either
from upstream import Gate, Hold, Reply, Upstream
from wire import parsed


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


def transport(upstream: Upstream, call: Call[Any], **settings: Any) -> TrioTransport:
    made = of_either("trio", upstream, call, **settings)
    assert isinstance(made, TrioTransport)
    return made


async def nothing_happens() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()


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
