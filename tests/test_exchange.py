"""The laws of `Exchange`, over a simulated network with a virtual clock; and its named cases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltawire import (
    GENERIC,
    OPENAI,
    XAI,
    ChatCompletion,
    ChatStream,
    Chunk,
    Done,
    Event,
    Failure,
    InvalidRequest,
    LocalProtocolError,
    UnsupportedField,
    UpstreamError,
    fold,
    to_responses_request,
)
from deltawire.accounts import Account, AccountPool, Health
from deltawire.attempts import Outcome, Policy, Timeouts
from deltawire.errors import (
    NoAccountReady,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from deltawire.exchange import Exchange
from deltawire.renderings import AsCompletion, AsEvents, AsFrames
from deltawire.steps import READING, TRANSITIONS, Open, Phase, Read, Signal, Wait
from deltawire.testing import (
    Answer,
    Cancelled,
    CustomToolCall,
    ErrorEvent,
    Expected,
    Failed,
    FunctionCall,
    Habits,
    Incomplete,
    Reasoning,
    Truncated,
    expected,
    write_frames,
    write_response,
    write_stream,
)
from deltawire.testing.habits import OPENAI as OPENAI_HABITS
from deltawire.testing.habits import OPENROUTER as OPENROUTER_HABITS
from deltawire.testing.strategies import slicings, streams
from simulation import (
    EVENT_STREAM,
    JSON,
    START,
    UNIX_TIME,
    Call,
    Caller,
    Piece,
    Refuse,
    Reply,
    Script,
    Simulation,
    said,
)
from wire import created, parsed, plain, stream_of, terminal, text_delta

Json = dict[str, Any]

REQUEST: Final[Json] = {"model": "gpt-5", "messages": [{"role": "user", "content": "Sunny?"}]}
COUNTED: Final[Json] = {**REQUEST, "stream_options": {"include_usage": True}}
REASONED: Final[Json] = {
    "model": "gpt-5",
    "messages": [
        {"role": "user", "content": "Sunny?"},
        {
            "role": "assistant",
            "content": "Where?",
            "reasoning_details": [
                {"index": 0, "type": "reasoning.encrypted", "id": "rs_1", "data": "gAAAA"}
            ],
        },
        {"role": "user", "content": "Rome."},
    ],
}
RENDERINGS: Final = (AsEvents, AsFrames, AsCompletion)

QUICK: Final = Timeouts(connect=2.0, first_event=8.0, idle=4.0, total=30.0)
# Nothing is waited for any longer than this by any policy drawn here.
POLICY: Final = Policy(error_body=3.0, trail=1.0)


# What upstreams do.


def answering(*items: Any, each: float = 0.0, **more: Any) -> Reply:
    """A good answer; a plain one if nothing is said of it."""
    return Reply(pieces=said(write_frames(Answer(items or "It is sunny.")), each), **more)


def ending(answer: Answer, habits: Habits = OPENAI_HABITS) -> Reply:
    return Reply(pieces=said(write_frames(answer, habits)))


def refusing(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
    """An HTTP error, with an error object in OpenAI's shape unless a body is given."""
    if body is None:
        body = {"error": {"message": f"no: {status}", "type": "t", "code": "c", "param": "p"}}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, headers={**JSON, **(headers or {})}, pieces=((0.0, data),))


ANSWERS: Final = (
    Answer("It is sunny."),
    Answer((Reasoning("Look outside."), "It is sunny.")),
    Answer(("A look.", FunctionCall("look", '{"at":"Rome"}'))),
    Answer(("One. Two. Three. Four.",), Incomplete()),
    Answer(()),
    Answer((), Incomplete("content_filter")),
    Answer("It", Failed()),
    Answer((), Failed()),
    Answer((), Failed(None)),
    Answer((), Failed("invalid_prompt", "The prompt is wrong.")),
    Answer((), ErrorEvent("server_is_overloaded", shape="nested")),
    Answer((), ErrorEvent("rate_limit_exceeded", then_failed=True)),
    Answer("It is", ErrorEvent()),
    Answer((), Cancelled()),
    Answer("It is sunny.", Truncated(5)),
    Answer("It is sunny.", Truncated(2)),
)
WAYS: Final = (
    OPENAI_HABITS,
    OPENROUTER_HABITS,
    Habits(event_lines=False, newline="\r\n"),
    Habits(final_blank_line=False),
    Habits(text="terminal", opening=()),
    Habits(keepalives="json", done_marker=True, bom=True),
)
ERROR_BODIES: Final = (
    b"",
    b'{"error":{"message":"no","type":"t","code":"c","param":"p"}}',
    b'{"error":"no"}',
    b'{"detail":[{"loc":["body"],"msg":"missing"}]}',
    b'[{"error":{"message":"no","status":"PERMISSION_DENIED"}}]',
    b'{"error":{"message":',
    b"null",
    b"<html><head><title>502</title></head><body>Bad gateway</body></html>",
    b"\xff\xfe\x00",
)
STATUSES: Final = (400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 500, 502, 503, 529, 302)
COMMENT: Final = b": still thinking\n\n"

BODIES: Final = (
    *(write_stream(answer, ways) for answer in ANSWERS[:4] * 4 + ANSWERS[4:] for ways in WAYS),
    *(json.dumps(write_response(answer)).encode() for answer in ANSWERS),
    *ERROR_BODIES,
)
"""What a server may say to a request that it accepted."""


def cut(data: bytes, cuts: list[int] | None, delays: list[float]) -> tuple[Piece, ...]:
    """The data in pieces: one to an event, or cut at so many thousandths; each after its time."""
    if cuts is None:
        pieces = [piece + b"\n\n" for piece in data.split(b"\n\n")]
        pieces[-1] = pieces[-1][:-2]
    else:
        at = [len(data) * each // 1000 for each in sorted(cuts)]
        pieces = [data[a:b] for a, b in pairwise([0, *at, len(data)])]
    return tuple((delays[n] if n < len(delays) else 0.0, piece) for n, piece in enumerate(pieces))


def reply(
    data: bytes, until: int, cuts: list[int] | None, delays: list[float], **more: Any
) -> Reply:
    """An answer with that body, of which so many thousandths are sent."""
    return Reply(pieces=cut(data[: len(data) * until // 1000], cuts, delays), **more)


# Strategies are made once and none depends on what another gave: that is half of what they cost.
MOMENTS: Final = st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.25, 1.0, 3.5, 10.0])
ENDS: Final = st.sampled_from(["eof", "eof", "reset", "stall"])
HEADERS: Final = st.sampled_from([EVENT_STREAM, EVENT_STREAM, JSON, {}, {"content-type": "a/b"}])
UNTIL: Final = st.sampled_from(
    [1000] * 30 + [0, 1, 60, 200, 333, 500, 640, 800, 900, 970, 990, 999]
)
CUTS: Final = st.none() | st.lists(st.integers(0, 1000), max_size=4)
DELAYS: Final[st.SearchStrategy[list[float]]] = st.just([]) | st.lists(MOMENTS, max_size=8)

ACCEPTING: Final = st.builds(
    reply,
    st.sampled_from(BODIES),
    UNTIL,
    CUTS,
    DELAYS,
    status=st.sampled_from([200, 200, 200, 201]),
    headers=HEADERS,
    think=MOMENTS,
    tail=st.sampled_from([None, None, None, None, (0.5, COMMENT), (1.0, b"x" * 99)]),
    end=ENDS,
    after=MOMENTS,
)
REJECTING: Final = st.builds(
    reply,
    st.sampled_from(ERROR_BODIES),
    UNTIL,
    CUTS,
    DELAYS,
    status=st.sampled_from(STATUSES),
    headers=st.sampled_from([{}, {"retry-after": "2"}, {"retry-after-ms": "500"}]),
    think=MOMENTS,
    tail=st.sampled_from([None, None, None, (0.0, b"x" * 10_000), (1.0, b"<p>" * 999)]),
    end=ENDS,
    after=MOMENTS,
)
SILENT: Final[list[Script]] = [
    Refuse(),
    Refuse(1.0),
    Refuse(5.0),
    Refuse(math.inf),
    Reply(think=math.inf),
    Reply(connect=5.0),
    Reply(tail=(0.5, COMMENT)),
]
SCRIPTS: Final[st.SearchStrategy[Script]] = st.sampled_from(
    [ACCEPTING] * 7 + [REJECTING] * 2 + [st.sampled_from(SILENT)]
).flatmap(lambda kind: kind)

AGAIN: Final = st.sampled_from([math.inf, math.inf, 0.0, 0.5])
LEAVERS: Final = st.one_of(
    st.builds(Caller, leaves_after=st.integers(0, 4), leaves_again=AGAIN),
    st.builds(Caller, leaves_at_step=st.integers(0, 14), leaves_again=AGAIN),
    st.builds(
        Caller,
        leaves_at=st.sampled_from([0.0, 0.25, 1.0, 2.0, 4.0, 9.0]),
        leaves_again=AGAIN,
        takes=st.sampled_from([0.0, 0.5]),
    ),
)
READERS: Final = st.sampled_from([Caller(), Caller(takes=0.5), Caller(takes=6.0)])
CALLERS: Final = st.one_of(READERS, READERS, LEAVERS)

POLICIES: Final = st.builds(
    Policy,
    attempts=st.sampled_from([None, None, 1, 2]),
    attempts_per_account=st.sampled_from([1, 1, 2]),
    wait=st.sampled_from([0.0, 3.0, 60.0]),
    drain=st.sampled_from([0.0, 2.0]),
    trail=st.sampled_from([0.0, 1.0]),
    error_body=st.just(3.0),
    stream_upstream=st.booleans(),
    retry_empty=st.booleans(),
)
TIMEOUTS: Final = st.builds(
    Timeouts,
    connect=st.sampled_from([2.0, None]),
    first_event=st.sampled_from([8.0, 8.0, 1.0, None]),
    idle=st.sampled_from([4.0, 2.0, None]),
    total=st.sampled_from([30.0, 30.0, 5.0]),
)
RESTING: Final[st.SearchStrategy[dict[str, float]]] = st.just({}) | st.dictionaries(
    st.sampled_from("abc"), st.sampled_from([0.5, 2.0, 9.0])
)


def _by_name(scripts: list[tuple[Script, ...]]) -> dict[str, tuple[Script, ...]]:
    return dict(zip("abc", scripts, strict=False))


def worlds(callers: st.SearchStrategy[Caller] = CALLERS) -> st.SearchStrategy[Simulation]:
    """One to three accounts, each with an upstream that does one thing and then another."""
    each = st.lists(SCRIPTS, min_size=1, max_size=2).map(tuple)
    return st.builds(
        Simulation,
        st.lists(each, min_size=1, max_size=3).map(_by_name),
        caller=callers,
        policy=POLICIES,
        timeouts=TIMEOUTS,
        resting=RESTING,
    )


REQUESTS: Final = st.sampled_from([REQUEST, COUNTED, REASONED, {**REQUEST, "stop": ["sun"]}])


# What is seen of a call.


def alone(call: Call[Any], request: Json, number: int) -> tuple[ChatStream, list[Event]]:
    """What the stream machine alone makes of what was read for that attempt (counted from 1)."""
    connection = call.connections[number - 1]
    stream = to_responses_request(request).chat_stream(
        default_id="chatcmpl-call-1",
        default_created=int(UNIX_TIME),
        default_model="gpt-5",
        secrets=[f"sk-secret-of-{connection.account}"],
    )
    events: list[Event] = []
    for data in connection.read:
        if stream.end is None:
            events += stream.receive_data(data)
    if stream.end is None and connection.ended == "eof":
        events += stream.receive_eof()
    elif stream.end is None and connection.ended is not None:
        events += stream.receive_break(call.exchange.failure or Failure("broke"))
    return stream, events


def flat(call: Call[list[Event]]) -> list[Event]:
    return [event for events in call.said for event in events]


def text_of(events: Iterable[Event]) -> str:
    deltas = [choice.delta for each in events if isinstance(each, Chunk) for choice in each.choices]
    return "".join(delta.content or "" for delta in deltas)


def seen(call: Call[Any]) -> Json:
    """All that the same call must come to again."""
    failure = call.exchange.failure
    return {
        "attempts": call.attempts,
        "failure": failure,
        "status": call.exchange.error and call.exchange.error.status,
        "took": call.took,
        "handed_out": call.exchange.handed_out,
    }


# The laws.


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_every_attempt_has_exactly_one_outcome(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    assert len(call.told) == 2 * len(call.attempts)
    for number, attempt in enumerate(call.attempts, 1):
        (begun, connections), (settled, later) = call.told[2 * number - 2 : 2 * number]
        assert (begun.number, begun.outcome, begun.duration) == (number, None, None)
        assert connections == number - 1, "it is told before anything is sent"
        assert later in (number - 1, number), "and settled before the next"
        assert settled == attempt
        assert settled.outcome in get_args(Outcome)
        assert settled.duration is not None
        assert settled.duration >= 0
        assert settled.first_event is None or settled.first_event <= settled.duration


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_an_account_is_used_if_and_only_if_it_accepted_the_request(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    for attempt, connection in zip(call.attempts, call.connections, strict=False):
        assert attempt.account == connection.account
        assert attempt.status == connection.status
        accepted = connection.status is not None and connection.status < 300
        assert attempt.used == accepted
        if attempt.outcome in ("rejected", "unreachable"):
            assert not accepted
        elif attempt.outcome != "cancelled":
            assert accepted
    # One that was left before it was sent was never used.
    assert not any(attempt.used for attempt in call.attempts[len(call.connections) :])


@given(worlds(), REQUESTS)
def test_what_is_handed_out_is_what_the_stream_makes_of_one_attempt(
    world: Simulation, request: Json
) -> None:
    call = world.call(request, AsEvents)
    events = flat(call)
    assert len({number for _, number, _ in call.outputs}) <= 1
    if not events:
        return
    assert call.outputs[-1][1] == len(call.attempts), "and no other is tried after it"
    # The last, or if that came to nothing, the first with nothing in it.
    candidates = [len(call.attempts)] if call.attempts[-1].used else []
    candidates += [n for n, outcome in enumerate(call.outcomes, 1) if outcome == "empty"][:1]
    made = [alone(call, request, number)[1] for number in candidates]
    if call.left:
        assert events in [each[: len(events)] for each in made]
    else:
        assert events in made
        assert isinstance(events[-1], (Failure, Done))


@given(worlds(), REQUESTS)
def test_frames_and_events_say_the_same(world: Simulation, request: Json) -> None:
    one, other = world.call(request, AsEvents), world.call(request, AsFrames)
    assert parsed(b"".join(other.said)) == plain(flat(one))
    assert [(when, n) for when, n, _ in one.outputs] == [(when, n) for when, n, _ in other.outputs]
    assert seen(one) == seen(other)
    assert one.steps == other.steps


@given(worlds(), REQUESTS)
def test_a_completion_is_the_fold_of_the_events(world: Simulation, request: Json) -> None:
    call = world.call(request, AsCompletion)
    assert len(call.outputs) <= 1
    assert not call.exchange.handed_out
    finished = ("completed", "incomplete", "empty")
    for completion in call.said:
        assert completion is not None
        ends = [n for n, outcome in enumerate(call.outcomes, 1) if outcome in finished]
        assert completion in [fold(alone(call, request, number)[1]) for number in ends]
        assert completion.choices[0].finish_reason
    if not call.said and call.attempts and call.attempts[-1].used:
        kept = [e for e in alone(call, request, len(call.attempts))[1] if isinstance(e, Chunk)]
        # What is drained is not for the caller.
        if not call.left:
            assert call.exchange.partial == fold(kept)


@given(worlds(), REQUESTS)
def test_the_partial_completion_is_the_fold_of_what_was_handed_out(
    world: Simulation, request: Json
) -> None:
    call = world.call(request, AsEvents)
    events = [event for event in flat(call) if not isinstance(event, Failure)]
    drained = call.left and world.policy.drain
    assert drained or call.exchange.handed_out == bool(events)
    if events:
        assert call.exchange.partial == fold(events)
        error = call.exchange.error
        assert error is None or error.partial == fold(events)


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_every_connection_is_closed_once_and_before_the_next(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    assert call.exchange.phase is Phase.ENDED
    assert [len(connection.closed) for connection in call.connections] == [1] * len(
        call.connections
    )
    for one, other in pairwise(call.connections):
        assert one.closed[0] <= other.opened
    steps = [step.report for step in call.steps if step.phase in (Phase.OPENING, Phase.CLOSING)]
    opened = [report for report in steps if report != "closed"]
    assert all("closed" in pair for pair in pairwise(steps)), "no two are open at once"
    assert len(opened) <= len(call.connections)


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_a_call_ends_in_an_answer_or_in_an_error_and_never_in_silence(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    error, failure = call.exchange.error, call.exchange.failure
    assert call.exchange.finished
    assert (error is None) == (failure is None)
    if call.left:
        return
    whole = [outcome in ("completed", "incomplete", "empty") for outcome in call.outcomes]
    # One that was empty is handed out where those after it failed.
    empty = call.exchange.stream is not None and call.exchange.stream.said_nothing
    answered = bool(call.said) and (whole[-1] or empty or not call.exchange.handed_out)
    assert answered == (error is None)
    if error is not None:
        assert error.failure is failure
        assert error.attempts == call.attempts
        assert error.status is not None
        assert 400 <= error.status < 600
        assert str(error)
    if rendering is AsEvents and call.said:
        last = flat(call)[-1]
        assert last == failure if error is not None else isinstance(last, Done)


def deadline_of(call: Call[Any], world: Simulation, index: int) -> float:
    """Until when that step may take, worked out from the settings and what was seen."""
    step = call.steps[index]
    timeouts, policy = world.timeouts, world.policy
    number = sum(before.report == "closed" for before in call.steps[:index])
    attempt = call.attempts[number]
    assert attempt.duration is not None
    starts: dict[Phase, tuple[float, float | None]] = {
        Phase.OPENING: (attempt.started, timeouts.first_event),
        Phase.STREAMING: (attempt.started, timeouts.first_event)
        if step.silent
        else (step.began, timeouts.idle),
        Phase.REFUSED: (call.connections[number].head or 0.0, policy.error_body),
        Phase.TRAILING: (attempt.started + attempt.duration, policy.trail),
        Phase.DRAINING: (call.left[0].time if call.left else 0.0, policy.drain),
    }
    begun, seconds = starts[step.phase]
    return min(begun + (math.inf if seconds is None else seconds), START + (timeouts.total or 0))


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_no_step_goes_on_beyond_its_deadline(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    for index, step in enumerate(call.steps):
        if step.phase in (Phase.WAITING, Phase.CLOSING):
            continue
        deadline = deadline_of(call, world, index)
        assert step.deadline == deadline
        assert step.ended <= max(step.began, deadline)
        if step.report == "timeout":
            assert step.ended == max(step.began, deadline)


@given(worlds(st.just(Caller()) | LEAVERS), REQUESTS, st.sampled_from(RENDERINGS))
def test_a_call_ends_within_its_total(world: Simulation, request: Json, rendering: Any) -> None:
    call = world.call(request, rendering)
    total = world.timeouts.total
    assert total is not None
    # What a caller does with its outputs, an exchange cannot shorten.
    held = world.caller.takes * len(call.outputs)
    assert call.took <= total + held
    for connection in call.connections:
        assert connection.opened < START + total + held


@given(worlds(LEAVERS), REQUESTS, st.sampled_from(RENDERINGS))
def test_the_callers_leaving_closes_upstream_at_once_or_after_a_bounded_drain(
    world: Simulation, request: Json, rendering: Any
) -> None:
    call = world.call(request, rendering)
    if not call.left:
        return
    left, *again = call.left
    assert len(call.outputs) == left.outputs, "nothing more is handed out"
    assert len(call.attempts) == left.attempts, "and nothing more is tried"
    after = [step.phase for step in call.steps[left.steps :]]
    drained = left.phase is Phase.STREAMING and world.policy.drain > 0
    if drained:
        assert set(after) <= {Phase.DRAINING, Phase.CLOSING}
        bounds = [left.time + world.policy.drain, *(each.time for each in again)]
        # Closed by the deadline that is first, but not before it was left.
        total = START + (world.timeouts.total or 0)
        assert call.now <= max(left.time, min(*bounds, total))
    else:
        assert after in ([], [Phase.CLOSING])
        assert call.now == left.time
    settled_before = left.told == 2 * left.attempts
    if call.attempts:
        assert settled_before or call.outcomes[-1] == "cancelled"
    if not settled_before:
        assert call.exchange.failure is None


@given(worlds(LEAVERS), REQUESTS, st.sampled_from(RENDERINGS))
def test_usage_is_learned_if_upstream_ends_while_it_is_drained(
    world: Simulation, request: Json, rendering: Any
) -> None:
    world = replace(world, policy=replace_policy(world.policy, drain=2.0))
    call = world.call(request, rendering)
    for number, attempt in enumerate(call.attempts, 1):
        if attempt.used and number <= len(call.connections):
            stream, _ = alone(call, request, number)
            assert attempt.usage == stream.usage


def replace_policy(policy: Policy, **changes: Any) -> Policy:
    return Policy(**{name: getattr(policy, name) for name in Policy.__struct_fields__} | changes)


@given(worlds(), REQUESTS)
def test_policy_bounds_the_attempts(world: Simulation, request: Json) -> None:
    call = world.call(request, AsEvents)
    if world.policy.attempts is not None:
        assert len(call.attempts) <= world.policy.attempts
    names = [attempt.account for attempt in call.attempts]
    stripped = request is REASONED and any(
        "reasoning" in kinds(one.body) and "reasoning" not in kinds(other.body)
        for one, other in pairwise(call.connections)
    )
    for name in names:
        assert names.count(name) <= world.policy.attempts_per_account + stripped


def kinds(body: bytes) -> list[str]:
    """The types of the input items of a request."""
    return [item.get("type", "message") for item in json.loads(body)["input"]]


def pair_of(
    status: int, data: bytes, more: int, cuts: list[int], headers: Any, end: Any, after: float
) -> tuple[Reply, Reply]:
    """An answer, and the same one in other pieces."""
    if status != 200 and more:
        data += b"x" * more
    whole = Reply(status, headers, pieces=((0.0, data),), end=end, after=after)
    return whole, replace(whole, pieces=cut(data, cuts, []))


PAIRS: Final = st.builds(
    pair_of,
    st.sampled_from([200, 200, 200, 400, 429, 500, 302]),
    st.sampled_from(BODIES),
    st.sampled_from([0, 0, 65_535, 65_536, 65_537, 200_000]),
    st.lists(st.integers(0, 1000), max_size=6),
    HEADERS,
    ENDS,
    MOMENTS,
)


@given(PAIRS, st.none() | SCRIPTS, REQUESTS, st.sampled_from(RENDERINGS))
def test_slicing_of_bytes_does_not_change_anything(
    pair: tuple[Reply, Reply], second: Script | None, request: Json, rendering: Any
) -> None:
    calls = []
    for first in pair:
        given: dict[str, Script | tuple[Script, ...]] = {"a": first}
        if second is not None:
            given["b"] = second
        world = Simulation(given, policy=POLICY, timeouts=QUICK)
        calls.append(world.call(request, rendering))
    one, other = calls
    assert seen(one) == seen(other)
    if rendering is AsCompletion:
        assert one.said == other.said
    elif rendering is AsFrames:
        assert b"".join(one.said) == b"".join(other.said)
    else:
        assert flat(one) == flat(other)


# Whole streams are costly to make, and the stream's own tests make them in numbers.
@settings(max_examples=settings().max_examples // 5)
@given(streams(), st.data())
def test_a_client_is_shown_what_the_model_said(
    case: tuple[Answer, Habits, bytes], draw: st.DataObject
) -> None:
    answer, _, data = case
    pieces = draw.draw(slicings(data))
    tools = [{"type": "custom", "custom": {"name": n}} for n in custom_tools(answer)]
    request = {**COUNTED, **({"tools": tools} if tools else {})}
    call = Simulation({"a": Reply(pieces=said(pieces))}).call(request, AsCompletion)
    promised = expected(answer)
    if promised.failure is None:
        (completion,) = call.said
        assert completion is not None
        check_completion(completion, promised)
        assert call.outcomes in (["completed"], ["incomplete"], ["empty"])
    else:
        assert call.said == []
        assert call.exchange.failure is not None
        assert call.exchange.failure.code == promised.failure.code
        assert call.outcomes in (["failed"], ["truncated"])


def custom_tools(answer: Answer) -> list[str]:
    return sorted({item.name for item in answer.output if isinstance(item, CustomToolCall)})


def check_completion(completion: ChatCompletion, promised: Expected) -> None:
    choice = completion.to_dict()["choices"][0]
    message = choice["message"]
    assert (message["content"] or "") == promised.content
    assert (message["refusal"] or "") == promised.refusal
    assert message.get("reasoning_content", "") == promised.reasoning
    calls = [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in message.get("tool_calls", [])
    ]
    assert calls == list(promised.tool_calls)
    assert choice["finish_reason"] == promised.finish_reason
    assert completion.to_dict().get("usage") == promised.usage


@given(
    st.sampled_from(ANSWERS[:4]),
    st.sampled_from(WAYS),
    st.sampled_from([0.0, 0.5, 3.75]),
    st.sampled_from([0.0, 3.0, 500.0]),
)
def test_a_slow_consumer_is_not_taken_for_an_idle_upstream(
    answer: Answer, ways: Habits, each: float, takes: float
) -> None:
    reply = Reply(pieces=said(write_frames(answer, ways), each))
    timeouts = Timeouts(connect=2.0, first_event=60.0, idle=4.0, total=None)
    world = Simulation({"a": reply}, timeouts=timeouts)
    quick = world.call(REQUEST, AsEvents)
    slow = replace(world, caller=Caller(takes=takes)).call(REQUEST, AsEvents)
    assert flat(slow) == flat(quick)
    assert slow.outcomes == quick.outcomes
    assert slow.exchange.failure is None


FITTING: Final[dict[Phase, set[str]]] = {
    Phase.WAITING: {"waited"},
    Phase.OPENING: {"head", "break", "timeout"},
    Phase.STREAMING: {"data", "eof", "break", "timeout"},
    Phase.REFUSED: {"data", "eof", "break", "timeout"},
    Phase.TRAILING: {"data", "eof", "break", "timeout"},
    Phase.DRAINING: {"data", "eof", "break", "timeout"},
    Phase.CLOSING: {"closed"},
    Phase.ENDED: set(),
}


def reports(exchange: Exchange[Any], now: float) -> dict[str, Callable[[], object]]:
    return {
        "head": lambda: exchange.receive_head(200, EVENT_STREAM, now),
        "data": lambda: exchange.receive_data(b"data: x\n\n", now),
        "eof": lambda: exchange.receive_eof(now),
        "break": lambda: exchange.receive_break("it broke", now),
        "timeout": lambda: exchange.receive_timeout(now),
        "closed": lambda: exchange.closed(now),
        "waited": lambda: exchange.waited(now),
    }


@given(worlds(), REQUESTS, st.sampled_from(RENDERINGS))
def test_a_report_that_does_not_fit_is_the_drivers_mistake_and_changes_nothing(
    world: Simulation, request: Json, rendering: Any
) -> None:
    def misreport(call: Call[Any]) -> None:
        exchange = call.exchange
        for name, report in reports(exchange, call.now).items():
            if name not in FITTING[exchange.phase]:
                before = exchange.phase, exchange.step
                with pytest.raises(LocalProtocolError, match=exchange.phase.value):
                    report()
                assert (exchange.phase, exchange.step) == before

    undisturbed = world.call(request, rendering)
    call = replace(world, before_step=misreport).call(request, rendering)
    assert seen(call) == seen(undisturbed)
    assert call.said == undisturbed.said
    assert {(step.phase, step.report) for step in call.steps} <= {
        (phase, report) for phase, fitting in FITTING.items() for report in fitting
    }


def test_every_phase_and_signal_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {signal for row in TRANSITIONS.values() for signal in row} == set(Signal)
    reached = {Phase.WAITING} | {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(Phase)
    assert {phase for phase, fitting in FITTING.items() if "data" in fitting} == set(READING)


PASSAGES: Final = (
    Simulation({"a": Reply(500), "b": Reply(pieces=said(write_frames(ANSWERS[0])))}),
    Simulation({"a": Reply(500), "b": Refuse()}, policy=Policy(wait=9.0), resting={"b": 2.0}),
    Simulation({"a": Refuse()}, policy=Policy(wait=9.0), resting={"a": 2.0}),
    Simulation({"a": Refuse()}, resting={"a": 2.0}),
    Simulation(
        {"a": Reply(pieces=said(write_frames(ANSWERS[0]), 1.0))},
        policy=Policy(drain=2.0),
        caller=Caller(leaves_after=1),
    ),
    Simulation({"a": Reply(pieces=said(write_frames(ANSWERS[6])))}),
)


def test_the_simulation_passes_through_the_whole_table() -> None:
    passed: set[tuple[Phase, Signal, Phase]] = set()
    for passage in PASSAGES:
        passed.update(passage.call(REQUEST, AsEvents).exchange.passed)

    @given(worlds(), REQUESTS)
    def wander(world: Simulation, request: Json) -> None:
        passed.update(world.call(request, AsEvents).exchange.passed)

    wander()
    assert passed == {
        (before, signal, after)
        for before, row in TRANSITIONS.items()
        for signal, after in row.items()
    }


# Faults: of the account, or of the request.


@dataclass(frozen=True)
class Fault:
    """What goes wrong before anything is handed out, and what it comes to if nothing is left."""

    script: Script
    outcome: str
    status: int
    error: type[UpstreamError]
    code: str | None = None


def failing(code: str | None, **more: Any) -> Reply:
    return ending(Answer((), ErrorEvent(code, "told by upstream", **more)))


OF_THE_ACCOUNT: Final[Mapping[str, Fault]] = {
    "401": Fault(refusing(401), "rejected", 401, UpstreamRejected, "c"),
    "402": Fault(refusing(402), "rejected", 429, UpstreamRejected, "c"),
    "403": Fault(refusing(403), "rejected", 403, UpstreamRejected, "c"),
    "408": Fault(refusing(408), "rejected", 408, UpstreamRejected, "c"),
    "429": Fault(refusing(429), "rejected", 429, UpstreamRejected, "c"),
    "500": Fault(refusing(500), "rejected", 502, UpstreamRejected, "c"),
    "502 in HTML": Fault(refusing(502, b"<h1>Bad"), "rejected", 502, UpstreamRejected),
    "503 with nothing": Fault(refusing(503, b""), "rejected", 502, UpstreamRejected),
    "529": Fault(refusing(529, {"detail": "busy"}), "rejected", 502, UpstreamRejected),
    "a redirect": Fault(refusing(307, b""), "rejected", 502, UpstreamRejected),
    "no connection": Fault(
        Refuse(), "unreachable", 502, UpstreamUnreachable, "upstream_unreachable"
    ),
    "no connection in time": Fault(
        Refuse(math.inf), "unreachable", 502, UpstreamUnreachable, "upstream_unreachable"
    ),
    "no answer in time": Fault(
        Reply(think=math.inf), "unreachable", 504, UpstreamTimeout, "upstream_timeout"
    ),
    "no event in time": Fault(
        Reply(tail=(0.5, COMMENT)), "truncated", 504, UpstreamTimeout, "upstream_timeout"
    ),
    "idle before output": Fault(
        Reply(pieces=((0.0, stream_of(created())),), end="stall"),
        "truncated",
        504,
        UpstreamTimeout,
        "upstream_timeout",
    ),
    "an empty body": Fault(Reply(), "truncated", 502, UpstreamTruncated, "upstream_truncated"),
    "a body that is a page": Fault(
        Reply(headers={"content-type": "text/html"}, pieces=((0.0, b"<html>Log in"),)),
        "truncated",
        502,
        UpstreamTruncated,
        "upstream_truncated",
    ),
    "a reset before output": Fault(
        Reply(pieces=((0.0, stream_of(created())),), end="reset"),
        "truncated",
        502,
        UpstreamTruncated,
        "upstream_truncated",
    ),
    "an error object with 200": Fault(
        Reply(headers=JSON, pieces=((0.0, b'{"error":{"message":"busy","code":"busy"}}'),)),
        "failed",
        502,
        UpstreamError,
        "busy",
    ),
    "server_error": Fault(failing("server_error"), "failed", 502, UpstreamError, "server_error"),
    "rate_limit_exceeded": Fault(
        failing("rate_limit_exceeded", shape="nested"),
        "failed",
        429,
        UpstreamError,
        "rate_limit_exceeded",
    ),
    "response.failed": Fault(
        ending(Answer((), Failed())), "failed", 502, UpstreamError, "server_error"
    ),
    "response.cancelled": Fault(
        ending(Answer((), Cancelled())), "failed", 502, UpstreamError, "response_cancelled"
    ),
}
OF_THE_REQUEST: Final[Mapping[str, Fault]] = {
    **{
        str(status): Fault(refusing(status), "rejected", told, UpstreamRejected, "c")
        for status, told in {400: 400, 404: 404, 409: 409, 413: 413, 418: 502, 422: 422}.items()
    },
    "400 in HTML": Fault(refusing(400, b"<h1>Bad"), "rejected", 400, UpstreamRejected),
    "invalid_prompt": Fault(
        ending(Answer((), Failed("invalid_prompt"))), "failed", 400, UpstreamError, "invalid_prompt"
    ),
    "invalid_request_error": Fault(
        failing(None, type="invalid_request_error", shape="nested"), "failed", 400, UpstreamError
    ),
    "model_not_found": Fault(
        failing("model_not_found"), "failed", 404, UpstreamError, "model_not_found"
    ),
}
FAULTS: Final = {**OF_THE_ACCOUNT, **OF_THE_REQUEST}


def play(
    *scripts: Script | tuple[Script, ...],
    request: Json = REQUEST,
    rendering: Any = AsEvents,
    policy: Policy = POLICY,
    timeouts: Timeouts = QUICK,
    **more: Any,
) -> Call[Any]:
    """One call with an account for each script."""
    world = Simulation(
        dict(zip("abcdef", scripts, strict=False)), policy=policy, timeouts=timeouts, **more
    )
    return world.call(request, rendering)


def error_of(call: Call[Any]) -> UpstreamError:
    assert call.exchange.error is not None
    return call.exchange.error


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", FAULTS)
def test_with_one_account_a_client_is_told_the_fault_itself(name: str, rendering: Any) -> None:
    fault = FAULTS[name]
    call = play(fault.script, rendering=rendering)
    assert call.outcomes == [fault.outcome]
    assert call.said == []
    error = error_of(call)
    assert (error.status, type(error), error.code) == (fault.status, fault.error, fault.code)
    assert call.attempts[0].code == fault.code
    if fault.code == "c":
        kept = {"message": f"no: {call.attempts[0].status}", "type": "t", "code": "c", "param": "p"}
        assert error.to_dict() == {"error": kept}


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", OF_THE_ACCOUNT)
def test_a_fault_of_the_account_moves_on_to_the_next(name: str, rendering: Any) -> None:
    fault = OF_THE_ACCOUNT[name]
    call = play(fault.script, answering(), rendering=rendering)
    assert call.outcomes == [fault.outcome, "completed"]
    assert call.exchange.error is None
    assert call.exchange.failure is None
    assert {number for _, number, _ in call.outputs} == {2}


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", OF_THE_REQUEST)
def test_a_fault_of_the_request_is_told_at_once(name: str, rendering: Any) -> None:
    fault = OF_THE_REQUEST[name]
    call = play(fault.script, answering(), rendering=rendering)
    assert call.outcomes == [fault.outcome]
    assert error_of(call).status == fault.status
    assert not error_of(call).retryable


@given(st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=4), st.booleans())
def test_attempts_go_on_until_one_is_answered_or_the_request_is_at_fault(
    names: list[str], good: bool
) -> None:
    faults = [FAULTS[name] for name in names]
    stops = next((n for n, name in enumerate(names) if name in OF_THE_REQUEST), None)
    tried = faults if stops is None else faults[: stops + 1]
    timeouts = Timeouts(connect=2.0, first_event=8.0, idle=4.0)
    last = [answering()] if good else []
    call = play(*[fault.script for fault in faults], *last, timeouts=timeouts)
    if good and stops is None:
        assert call.outcomes == [*(fault.outcome for fault in tried), "completed"]
        assert text_of(flat(call)) == "It is sunny."
        return
    assert call.outcomes == [fault.outcome for fault in tried]
    told = error_of(call)
    if stops is not None:
        assert (told.status, told.code) == (tried[-1].status, tried[-1].code)
    else:
        # Of several, what says that it will pass; of a key only if there is nothing else.
        worth = [2 if f.status == 429 else f.status not in (401, 403) for f in tried]
        best = [fault for fault, each in zip(tried, worth, strict=True) if each == max(worth)]
        assert (told.status, told.code) == (best[-1].status, best[-1].code)


@given(
    st.sampled_from(sorted(OF_THE_ACCOUNT)),
    st.sampled_from(["eof", "reset", "stall", "failed", "invalid_prompt"]),
    st.sampled_from([AsEvents, AsFrames]),
)
def test_after_the_commit_point_there_is_no_other_attempt(
    before: str, how: str, rendering: Any
) -> None:
    begun = [created(), text_delta("It is")]
    if how in ("failed", "invalid_prompt"):
        begun.append(terminal("failed", error={"code": how, "message": "told"}))
    end: Any = how if how in ("reset", "stall") else "eof"
    broken = Reply(pieces=((0.5, stream_of(*begun)),), end=end)
    call = play(
        OF_THE_ACCOUNT[before].script, broken, answering(), rendering=rendering,
        timeouts=Timeouts(connect=2.0, first_event=8.0, idle=4.0, total=100.0),
    )  # fmt: skip
    assert call.outcomes[1:] == ["failed" if how in ("failed", "invalid_prompt") else "truncated"]
    assert call.exchange.handed_out
    error = error_of(call)
    if rendering is AsEvents:
        assert flat(call)[-1] == call.exchange.failure
        assert text_of(flat(call)) == error.partial.choices[0].message.content == "It is"
    else:
        assert parsed(b"".join(call.said))[-1] == error.to_dict()
        assert error.partial == call.exchange.partial == fold([])
    assert error.status == {"stall": 504, "invalid_prompt": 400}.get(how, 502)


def test_a_whole_answer_has_no_commit_point_before_its_end() -> None:
    broken = Reply(pieces=((0.5, stream_of(created(), text_delta("It is"))),))
    call = play(broken, answering(), rendering=AsCompletion)
    assert call.outcomes == ["truncated", "completed"]
    (completion,) = call.said
    assert completion.choices[0].message.content == "It is sunny."


# Deadlines, to the second.


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize(
    ("script", "ended", "message"),
    [
        (Refuse(1.5), 1.5, "no connection: refused"),
        (Refuse(math.inf), 2.0, "no connection within 2.0 s (timeouts.connect)"),
        (Reply(connect=5.0), 2.0, "no connection within 2.0 s (timeouts.connect)"),
        (Reply(think=math.inf), 8.0, "no event of the answer within 8.0 s (timeouts.first_event)"),
        (
            Reply(think=7.0, tail=(0.25, COMMENT)),
            8.0,
            "no event of the answer within 8.0 s (timeouts.first_event)",
        ),
        (
            Reply(think=7.0, end="stall"),
            8.0,
            "no event of the answer within 8.0 s (timeouts.first_event)",
        ),
        (
            Reply(think=1.0, pieces=((1.5, stream_of(created())),), end="stall"),
            6.5,
            "no byte of the answer for 4.0 s (timeouts.idle)",
        ),
        (
            Reply(think=1.0, pieces=((1.5, stream_of(created())),), tail=(0.5, COMMENT)),
            30.0,
            "no end of the answer within 30.0 s (timeouts.total)",
        ),
        (
            Reply(429, think=1.0, pieces=((2.0, b'{"error":{"message":"no"}}'),), end="stall"),
            4.0,
            "no",
        ),
        (Reply(429, think=1.0, tail=(0.5, b" ")), 4.0, "HTTP 429 without a message"),
    ],
)
def test_deadlines_fire_at_their_second(
    script: Script, ended: float, message: str, rendering: Any
) -> None:
    call = play(script, rendering=rendering)
    assert call.attempts[0].duration == call.took == ended
    assert error_of(call).message.endswith(message)


def test_the_deadlines_of_an_attempt_begin_anew_with_the_next_and_the_total_does_not() -> None:
    call = play(*[Reply(think=math.inf)] * 6)
    assert [attempt.started - START for attempt in call.attempts] == [0.0, 8.0, 16.0, 24.0]
    assert call.attempts[-1].duration == 6.0
    assert call.took == 30.0
    assert "timeouts.total" in error_of(call).message
    assert error_of(call).status == 504


def test_none_is_no_deadline() -> None:
    timeouts = Timeouts(connect=None, first_event=None, idle=None, total=None)
    slow = Reply(connect=1e5, think=1e6, pieces=said(write_frames(Answer("It is sunny.")), 1e7))
    call = play(slow, timeouts=timeouts)
    assert call.outcomes == ["completed"]
    assert call.exchange.idle is None
    assert call.exchange.limit == math.inf or call.exchange.phase is Phase.ENDED
    # Of what no setting bounds, the policy does.
    call = play(Reply(503, tail=(1.0, b" ")), timeouts=timeouts)
    assert call.took == POLICY.error_body


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize(
    ("end", "took"),
    [
        ({"end": "eof"}, 0.0),
        ({"end": "eof", "after": 0.5}, 0.5),
        ({"end": "reset", "after": 0.5}, 0.5),
        ({"end": "stall"}, 1.0),
        ({"tail": (0.25, COMMENT)}, 1.0),
    ],
)
def test_the_end_of_a_body_is_waited_for_but_not_for_long(
    end: Json, took: float, rendering: Any
) -> None:
    call = play(answering(**end), rendering=rendering)
    assert call.outcomes == ["completed"]
    assert call.attempts[0].duration == 0.0
    assert call.outputs[-1][0] == START, "the last word is not held back for it"
    assert call.took == took
    assert call.exchange.error is None


def test_an_answer_that_ends_at_a_stop_sequence_is_hung_up_on() -> None:
    call = play(answering(end="stall"), request={**REQUEST, "stop": [" sun"]})
    assert text_of(flat(call)) == "It is"
    assert call.outcomes == ["completed"]
    assert Phase.TRAILING not in {step.phase for step in call.steps}
    assert call.took == 0.0


# Waiting for accounts.


def test_an_account_that_rests_is_waited_for_as_long_as_the_policy_says() -> None:
    patient = Policy(wait=3.0)
    call = play(answering(), policy=patient, resting={"a": 2.5})
    assert call.outcomes == ["completed"]
    assert call.attempts[0].started == START + 2.5
    call = play(answering(), policy=patient, resting={"a": 3.0})
    assert (call.attempts, call.connections) == ([], [])
    error = error_of(call)
    assert isinstance(error, NoAccountReady)
    assert (error.status, error.code, error.retry_after) == (429, "no_account_ready", 3.0)
    assert "3.0 s" in error.message
    assert call.took == 0.0


def test_a_wait_is_not_begun_that_would_go_beyond_the_total() -> None:
    call = play(answering(), policy=Policy(wait=60.0), resting={"a": 30.0})
    assert isinstance(error_of(call), NoAccountReady)
    assert call.took == 0.0


def test_between_attempts_an_account_is_waited_for_too() -> None:
    call = play(refusing(500), answering(), policy=Policy(wait=5.0), resting={"b": 2.0})
    assert call.outcomes == ["rejected", "completed"]
    assert [attempt.account for attempt in call.attempts] == ["a", "b"]
    assert call.attempts[1].started == START + 2.0


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_an_account_that_still_rests_when_its_time_has_come_is_waited_for_again(
    rendering: Any,
) -> None:
    """Another call found it tired meanwhile."""
    pool = AccountPool([Account(name="a", key="sk-secret-of-a")])
    for wait, outcomes in ((9.0, ["completed"]), (2.5, [])):
        pool = AccountPool([Account(name="a", key="sk-secret-of-a")])
        tire(pool, 2.0, START)
        tired: list[float] = []

        def meanwhile(call: Call[Any], pool: AccountPool = pool, tired: Any = tired) -> None:
            if isinstance(call.exchange.step, Wait) and not tired:
                tired.append(call.now)
                tire(pool, 4.0, START)

        world = Simulation({"a": answering()}, policy=Policy(wait=wait), before_step=meanwhile)
        call = world.call_of(pool, REQUEST, rendering)
        assert call.outcomes == outcomes
        assert call.took == (4.0 if outcomes else 2.0)
        if not outcomes:
            assert isinstance(error_of(call), NoAccountReady)
            assert error_of(call).retry_after == 2.0


def tire(pool: AccountPool, rest: float, now: float) -> None:
    (account,) = pool.accounts
    pool.settle(account, Health.TIRED, now, model="gpt-5", retry_after=rest)


def test_a_driver_that_oversleeps_the_total_gets_an_error_and_no_silence() -> None:
    pool = AccountPool([Account(name="a")])
    tire(pool, 4.0, START)
    exchange = exchange_of(pool, policy=Policy(wait=9.0), timeouts=Timeouts(total=5.0))
    assert exchange.step == Wait(START + 4.0)
    assert exchange.waited(START + 6.0) is None
    assert exchange.phase is Phase.ENDED
    error = exchange.error
    assert isinstance(error, UpstreamTimeout)
    assert error.status == 504
    assert "timeouts.total" in error.message


def exchange_of(pool: AccountPool, request: Json = REQUEST, **options: Any) -> Exchange[Any]:
    given: Json = {"now": START, "unix_time": UNIX_TIME, "call_id": "call-1", **options}
    return Exchange(request, pool, AsEvents, **given)


def test_where_all_accounts_are_parked_a_call_is_told_what_parked_them() -> None:
    pool = AccountPool([Account(name="a"), Account(name="b")])
    world = Simulation({"a": refusing(401), "b": refusing(401)})
    assert world.call_of(pool, REQUEST, AsEvents).outcomes == ["rejected", "rejected"]
    call = world.call_of(pool, REQUEST, AsEvents)
    assert call.attempts == []
    error = error_of(call)
    assert (type(error), error.status, error.message) == (UpstreamRejected, 401, "no: 401")


def test_attempts_per_account_are_made_one_after_the_other() -> None:
    call = play((refusing(500), answering()), policy=Policy(attempts_per_account=2))
    assert call.outcomes == ["rejected", "completed"]
    call = play((refusing(500), answering()))
    assert call.outcomes == ["rejected"]
    limited = (refusing(429, headers={"retry-after": "2"}), answering())
    call = play(limited, policy=Policy(attempts_per_account=2, wait=5.0))
    assert call.outcomes == ["rejected", "completed"]
    assert call.attempts[1].started == START + 2.0
    call = play(limited, policy=Policy(attempts_per_account=2))
    assert call.outcomes == ["rejected"]
    assert error_of(call).retry_after == 2.0


@pytest.mark.parametrize("most", [1, 2, 3])
def test_attempts_are_bounded(most: int) -> None:
    call = play(*[refusing(500)] * 4, policy=Policy(attempts=most))
    assert call.outcomes == ["rejected"] * most


def test_a_429_keeps_its_retry_after() -> None:
    for headers, seconds in (
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.0),
        ({}, None),
    ):
        error = error_of(play(refusing(429, headers=headers)))
        assert (error.status, error.retry_after) == (429, seconds)


def test_a_retry_after_is_of_its_own_account_only() -> None:
    pool = AccountPool([Account(name="a"), Account(name="b")])
    limited = refusing(429, headers={"retry-after": "60"})
    world = Simulation({"a": limited, "b": Refuse()})
    assert world.call_of(pool, REQUEST, AsEvents).outcomes == ["rejected", "unreachable"]
    assert pool.choose("gpt-5", START + 2.0) is pool.accounts[1]
    assert pool.choose("gpt-5", START + 59.0, exclude={"b"}) not in pool.accounts
    assert pool.choose("gpt-5", START + 60.0, exclude={"b"}) is pool.accounts[0]


def test_of_several_429_the_one_is_told_that_says_when_to_come_back() -> None:
    known = refusing(429, headers={"retry-after": "7"})
    for scripts in ([known, refusing(402)], [refusing(429), known], [known, refusing(500)]):
        error = error_of(play(*scripts))
        assert (error.status, error.retry_after) == (429, 7.0)


# What is sent.


def test_what_is_sent_to_an_upstream() -> None:
    account = Account(
        name="a", key="sk-1234567", base_url="https://example.org/api?k=s", headers=(("X-A", "b"),)
    )
    pool = AccountPool([account])
    step = exchange_of(pool).step
    assert isinstance(step, Open)
    request = step.request
    assert request.url == "https://example.org/api/responses?k=s"
    assert dict(request.headers) == {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "User-Agent": dict(request.headers)["User-Agent"],
        "Authorization": "Bearer sk-1234567",
        "X-A": "b",
    }
    body = json.loads(request.body)
    assert body == {**to_responses_request(REQUEST, dialect=GENERIC).body, "stream": True}
    assert repr(step).count("sk-1234567") == 0
    assert "k=s" not in repr(request)
    assert repr(request).startswith("UpstreamRequest(POST https://example.org/api, account 'a'")


def test_headers_of_an_account_stand_in_place_of_our_own() -> None:
    headers = (("authorization", "Basic abcdefgh"), ("user-agent", "mine"))
    for key in ("sk-1234567", None):
        step = exchange_of(AccountPool([Account(key=key, headers=headers)])).step
        assert isinstance(step, Open)
        names = [name.lower() for name, _ in step.request.headers]
        assert len(names) == len(set(names))
        assert dict(step.request.headers)["authorization"] == "Basic abcdefgh"
    step = exchange_of(AccountPool([Account()])).step
    assert isinstance(step, Open)
    assert "Authorization" not in dict(step.request.headers)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_an_upstream_that_cannot_stream_is_asked_for_a_whole_answer(rendering: Any) -> None:
    answer = Answer("It is sunny.")
    reply = Reply(headers=JSON, pieces=cut(json.dumps(write_response(answer)).encode(), [500], []))
    call = play(reply, rendering=rendering, policy=Policy(stream_upstream=False))
    assert call.outcomes == ["completed"]
    (sent,) = call.connections
    assert json.loads(sent.body)["stream"] is False
    assert dict(sent.headers)["Accept"] == "application/json"
    assert call.attempts[0].usage is not None
    if rendering is AsEvents:
        assert text_of(flat(call)) == "It is sunny."


def test_the_first_bytes_of_a_whole_answer_are_its_first_event() -> None:
    """A server that computes all of it before it says anything is idle, not silent."""
    data = json.dumps(write_response(Answer("It is sunny."))).encode()
    pieces = ((1.0, b""), (1.0, data[:9]), (3.5, data[9:99]), (3.5, data[99:]))
    call = play(Reply(headers=JSON, pieces=pieces))
    assert call.attempts[0].first_event == 2.0
    assert call.outcomes == ["completed"]
    call = play(Reply(pieces=pieces))
    assert call.attempts[0].first_event is None
    assert call.outcomes == ["truncated"]


def test_each_dialect_has_its_own_translation_and_report() -> None:
    request = {**REQUEST, "seed": 7, "metadata": {"a": "b"}}
    accounts = (Account(name="a", dialect=OPENAI), Account(name="b", dialect=XAI))
    world = Simulation({"a": refusing(500), "b": answering()}, accounts=accounts)
    call = world.call(request, AsEvents)
    assert call.outcomes == ["rejected", "completed"]
    bodies = [json.loads(connection.body) for connection in call.connections]
    for body, dialect in zip(bodies, (OPENAI, XAI), strict=True):
        assert body == {**to_responses_request(request, dialect=dialect).body, "stream": True}
    assert call.exchange.report == to_responses_request(request, dialect=XAI).report


def refused_by(dialect: Any) -> Json:
    """A request with a field that this dialect refuses and OpenAI's takes."""
    for name, value in (("metadata", {"a": "b"}), ("service_tier", "flex"), ("truncation", "auto")):
        request = {**REQUEST, name: value}
        if to_responses_request(request, dialect=dialect).report:
            assert not to_responses_request(request, dialect=OPENAI).report
            return request
    raise AssertionError("this dialect refuses nothing")


def test_strict_calls_go_only_to_upstreams_that_can_take_all_of_the_request() -> None:
    request = refused_by(XAI)
    for first, second in ((XAI, OPENAI), (OPENAI, XAI)):
        accounts = (Account(name="a", dialect=first), Account(name="b", dialect=second))
        taken = "a" if first is OPENAI else "b"
        script = (refusing(500), answering())
        world = Simulation({"a": script, "b": script}, accounts=accounts)
        call = world.call(request, AsEvents, strict=True)
        assert [attempt.account for attempt in call.attempts] == [taken]
    with pytest.raises(UnsupportedField):
        exchange_of(AccountPool([Account(dialect=XAI)]), request, strict=True)


def test_a_strict_call_that_only_an_account_without_its_model_could_take_is_unsupported() -> None:
    request = refused_by(XAI)
    accounts = [
        Account(name="other", dialect=OPENAI, models=("o3",)),
        Account(name="serving", dialect=XAI),
    ]
    with pytest.raises(UnsupportedField):
        exchange_of(AccountPool(accounts), request, strict=True)


def test_a_model_that_no_account_serves_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="gpt-5") as caught:
        exchange_of(AccountPool([Account(models=("o3",))]))
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({"prompt_cache_key": "k"}, {}),
        ({"previous_response_id": "resp_1"}, {}),
        ({"conversation": "conv_1"}, {}),
        ({"conversation": {"id": "conv_1"}}, {}),
        ({}, {"affinity": "mine"}),
    ],
)
def test_calls_of_one_conversation_stay_with_one_account(more: Json, options: Json) -> None:
    pool = AccountPool([Account(name="a"), Account(name="b")])
    world = Simulation({"a": answering(), "b": answering()})
    request = {**REQUEST, **more}
    first = [world.call_of(pool, request, AsEvents, **options) for _ in range(3)]
    assert len({call.attempts[0].account for call in first}) == 1
    spread = [world.call_of(pool, REQUEST, AsEvents) for _ in range(2)]
    assert len({call.attempts[0].account for call in spread}) == 2


def test_options_of_the_stream_are_passed_on() -> None:
    answer = ending(Answer((Reasoning("Hm."), "Yes.")))
    world = Simulation({"a": answer})
    call = world.call(REQUEST, AsEvents, stream_options={"reasoning": None, "default_id": "x"})
    assert not any("reasoning_content" in str(each) for each in plain(flat(call)))


# The caller leaves.


@pytest.mark.parametrize("drain", [0.0, 2.0])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_caller_may_leave_at_every_step(rendering: Any, drain: float) -> None:
    world = Simulation(
        {"a": refusing(500), "b": answering(each=0.5, end="stall")},
        policy=Policy(drain=drain, wait=9.0),
        timeouts=QUICK,
        resting={"a": 0.5, "b": 1.5},
    )
    undisturbed = world.call(REQUEST, rendering)
    assert {step.phase for step in undisturbed.steps} == set(Phase) - {
        Phase.DRAINING,
        Phase.ENDED,
    }
    for number, step in enumerate(undisturbed.steps):
        ways = [Caller(leaves_at_step=number)]
        if step.ended > step.began:
            ways.append(Caller(leaves_at=(step.began + step.ended) / 2 - START))
        for caller in ways:
            call = replace(world, caller=caller).call(REQUEST, rendering)
            (left,) = call.left
            assert left.phase is step.phase
            assert call.exchange.phase is Phase.ENDED
            assert all(len(connection.closed) == 1 for connection in call.connections)
            assert len(call.told) == 2 * len(call.attempts)
            assert call.said == undisturbed.said[: len(call.said)]
            settled = step.phase in (Phase.WAITING, Phase.CLOSING, Phase.TRAILING)
            if not settled:
                assert call.outcomes[-1] == "cancelled"
            if not (drain and step.phase is Phase.STREAMING):
                assert call.now == left.time


def test_leaving_while_it_is_drained_ends_the_draining() -> None:
    reply = answering(each=0.5)
    for again, took in ((math.inf, 3.0), (1.0, 2.0)):
        call = play(
            reply,
            policy=Policy(drain=2.0),
            caller=Caller(leaves_at=1.0, leaves_again=again),
        )
        assert call.outcomes == ["cancelled"]
        assert call.attempts[0].usage is None
        assert call.took == took
    call = play(reply, policy=Policy(drain=60.0), caller=Caller(leaves_at=1.0))
    assert call.outcomes == ["cancelled"]
    assert call.attempts[0].usage is not None
    assert call.said == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(
            pieces=said(write_frames(Answer("It is sunny."), Habits(final_blank_line=False)), 0.25)
        ),
        Reply(
            headers=JSON,
            pieces=cut(json.dumps(write_response(Answer("Hi"))).encode(), [100], [0.5, 0.5]),
        ),
        Reply(
            pieces=said(write_frames(Answer("It is sunny."), Habits(final_blank_line=False)), 0.25),
            end="reset",
        ),
    ],
)
def test_what_ends_with_the_bytes_is_learned_while_it_is_drained(reply: Reply) -> None:
    """Found by the law of usage: relays drop the last blank line, and a body has no other end."""
    call = play(reply, policy=Policy(drain=9.0), caller=Caller(leaves_at=0.75))
    assert call.outcomes == ["cancelled"]
    assert call.attempts[0].usage is not None


def test_leaving_says_nothing_of_the_account() -> None:
    pool = AccountPool([Account(name="a"), Account(name="b")])
    world = Simulation({"a": Reply(think=5.0), "b": Reply(think=5.0)}, caller=Caller(leaves_at=1.0))
    for _ in range(4):
        call = world.call_of(pool, REQUEST, AsEvents)
        assert call.outcomes == ["cancelled"]
        assert call.attempts[0].used is False


def test_leaving_after_the_end_changes_nothing() -> None:
    for script in (answering(), refusing(429)):
        call = play(script)
        before = seen(call)
        call.exchange.leave(call.now)
        assert seen(call) == before
        assert call.exchange.phase is Phase.ENDED


# Encrypted reasoning that another account cannot read.


REFUSED: Final = refusing(400, {"error": {"message": "x", "code": "invalid_encrypted_content"}})
REFUSALS: Final[Mapping[str, Script]] = {
    "HTTP 400": REFUSED,
    "in the stream": failing("invalid_encrypted_content", shape="nested"),
    "response.failed": ending(Answer((), Failed("invalid_encrypted_content"))),
    "the message alone": refusing(
        400,
        {"error": {"message": "The encrypted content gAAA could not be verified.", "code": None}},
    ),
    "the message alone, in the stream": ending(
        Answer((), ErrorEvent(None, "The encrypted content gAAA could not be decrypted."))
    ),
}


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", REFUSALS)
def test_encrypted_reasoning_is_left_out_once_if_it_cannot_be_read(
    name: str, rendering: Any
) -> None:
    refusal = REFUSALS[name]
    call = play((refusal, answering()), answering(), request=REASONED, rendering=rendering)
    assert [attempt.account for attempt in call.attempts] == ["a", "a"]
    assert call.outcomes[-1] == "completed"
    assert ["reasoning" in kinds(each.body) for each in call.connections] == [True, False]
    assert call.exchange.error is None

    call = play((refusal, refusal, answering()), request=REASONED, rendering=rendering)
    assert len(call.attempts) == 2, "never twice"
    assert error_of(call).code in ("invalid_encrypted_content", None)

    call = play((refusal, answering()), rendering=rendering)
    assert len(call.attempts) == 1, "there is nothing to leave out"


def test_what_was_left_out_stays_out_with_the_next_account() -> None:
    call = play((REFUSED, refusing(500)), answering(), request=REASONED)
    assert [attempt.account for attempt in call.attempts] == ["a", "a", "b"]
    assert ["reasoning" in kinds(each.body) for each in call.connections] == [True, False, False]
    assert call.outcomes == ["rejected", "rejected", "completed"]


def test_a_refusal_after_the_commit_point_is_told() -> None:
    error = {"code": "invalid_encrypted_content", "message": "told"}
    late = stream_of(created(), text_delta("It is"), terminal("failed", error=error))
    call = play((Reply(pieces=((0.0, late),)), answering()), request=REASONED)
    assert call.outcomes == ["failed"]
    assert error_of(call).code == "invalid_encrypted_content"


def test_leaving_reasoning_out_is_an_attempt_like_any_other() -> None:
    """Neither the number of attempts nor the total is overdrawn for it."""
    script = (REFUSED, answering())
    call = play(script, request=REASONED, policy=Policy(attempts=1))
    assert call.outcomes == ["rejected"]
    assert (error_of(call).status, error_of(call).code) == (400, "invalid_encrypted_content")

    slow = Reply(400, think=4.0, pieces=REFUSED.pieces, end="stall")
    call = play((slow, answering()), request=REASONED, timeouts=Timeouts(total=5.0))
    assert call.outcomes == ["rejected"]
    assert call.took == 5.0
    assert error_of(call).code == "invalid_encrypted_content"


def test_a_caller_that_leaves_is_not_tried_again_for() -> None:
    slow = Reply(400, pieces=REFUSED.pieces, end="stall")
    call = play((slow, answering()), request=REASONED, caller=Caller(leaves_at=1.0))
    assert call.outcomes == ["cancelled"]


def test_an_account_is_not_set_aside_for_reasoning_that_it_cannot_read() -> None:
    for name, refusal in REFUSALS.items():
        pool = AccountPool([Account(name="a"), Account(name="b")])
        world = Simulation({"a": (refusal, answering()), "b": answering()})
        world.call_of(pool, REASONED, AsEvents)
        ready = pool.choose("gpt-5", START, exclude={"b"})
        assert ready is pool.accounts[0], name


# No secrets.


def everything(call: Call[Any]) -> str:
    """All that may be shown or logged of a call."""
    exchange = call.exchange
    shown: list[object] = [exchange.failure, exchange.step, exchange.report, exchange.partial]
    shown += [*call.attempts, *(attempt for attempt, _ in call.told), repr(exchange)]
    if (error := exchange.error) is not None:
        shown += [str(error), repr(error), error.args, error.to_dict(), error.failure.to_wire()]
        shown += [error.partial, error.attempts, vars(error)]
    shown += call.said
    return " ".join(map(repr, shown))


KEY: Final = "sk-secret-of-a"


def echoes(echo: str) -> Mapping[str, Script]:
    error = {"message": echo, "type": echo, "code": echo, "param": echo}
    failed = terminal("failed", error=error)
    return {
        "error object": refusing(400, {"error": error}),
        "flat error": refusing(429, error),
        "detail": refusing(422, {"detail": [{"input": {"key": echo}}]}),
        "page": refusing(500, f"<p>{echo}</p>".encode()),
        "redirect": refusing(302, b"", {"location": f"https://example.org/{echo}/"}),
        "error event": Reply(pieces=((0.0, stream_of({"type": "error", **error})),)),
        "nested": Reply(pieces=((0.0, stream_of({"type": "error", "error": error})),)),
        "failed": Reply(pieces=((0.0, stream_of(created(), failed)),)),
        "failed midway": Reply(pieces=((0.0, stream_of(created(), text_delta("a"), failed)),)),
        "bare": Reply(headers=JSON, pieces=((0.0, json.dumps({"error": error}).encode()),)),
        "no stream": Reply(pieces=((0.0, echo.encode()),)),
    }


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("name", echoes(""))
def test_no_key_is_shown_even_if_upstream_repeats_it(name: str, rendering: Any) -> None:
    for second in ([], [refusing(500)], [Refuse()]):
        call = play(echoes(f"bad key: {KEY}!")[name], *second, rendering=rendering)
        assert KEY not in everything(call)
        assert call.exchange.error is not None
    assert "***" in everything(play(echoes(f"bad key: {KEY}!")[name], rendering=rendering))


def test_no_key_is_shown_that_the_network_repeats() -> None:
    pool = AccountPool([Account(name="a", key=KEY)])
    exchange = exchange_of(pool)
    exchange.receive_break(f"Illegal header value b'Bearer {KEY}'", START)
    assert exchange.error is not None
    assert KEY not in str(exchange.error)
    assert "Bearer ***" in str(exchange.error)


@given(st.integers(0, 600), st.sampled_from([200, 400, 500]), st.sampled_from(["", "<p>", "x "]))
def test_no_part_of_a_key_is_shown_where_a_body_is_cut(before: int, status: int, tag: str) -> None:
    key = "sk-0123456789abcdefghijklmnopqrstuv"
    body = (tag + "x" * before + key + "y" * 600).encode()
    accounts = (Account(name="a", key=key),)
    call = Simulation({"a": refusing(status, body)}, accounts=accounts).call(REQUEST, AsEvents)
    assert "sk-0" not in everything(call)


# Bounds on memory.


@pytest.mark.parametrize("size", [16, 1000, 65_536, 10_000_000])
def test_an_error_body_is_cut_at_64_kib_and_settles_at_once(size: int) -> None:
    call = play(Reply(500, tail=(0.0, b"abc " * (size // 4))))
    assert call.outcomes == ["rejected"]
    assert call.took == 0.0
    (connection,) = call.connections
    read = sum(map(len, connection.read))
    assert 65_536 <= read < 65_536 + size
    assert error_of(call).message.startswith("HTTP 500: abc abc")
    assert len(error_of(call).message) < 600


def test_an_error_body_that_fits_is_read_to_its_end() -> None:
    body = {"error": {"message": "m" * 60_000, "code": "c"}}
    assert error_of(play(refusing(400, body))).message == "m" * 60_000


def test_many_chunks_are_folded_before_they_are_many() -> None:
    frames = [created(), *(text_delta("ab ") for _ in range(2000)), terminal()]
    call = play(Reply(pieces=said([stream_of(each) for each in frames])))
    assert call.exchange.partial == fold(flat(call))
    assert call.exchange.partial.choices[0].message.content == "ab " * 2000


# What can be read at any time.


def test_the_state_of_a_call_can_be_read_from_its_beginning() -> None:
    exchange = exchange_of(AccountPool([Account()]))
    assert exchange.phase is Phase.OPENING
    assert exchange.stream is None
    assert exchange.partial == fold([])
    assert not exchange.handed_out
    assert not exchange.finished
    assert exchange.failure is None
    assert exchange.error is None
    exchange.receive_head(200, EVENT_STREAM, START)
    assert exchange.step == Read()
    assert exchange.limit == START + 300.0
    exchange.receive_data(stream_of(created(), text_delta("It is")), START)
    assert exchange.limit == START + 3600.0, "what is idle is another matter than what is late"
    assert exchange.deadline(START + 7.0) == START + 307.0
    assert exchange.handed_out
    assert exchange.partial.choices[0].message.content == "It is"
    assert exchange.stream is not None


def test_a_failure_is_no_failure_of_the_call_while_there_is_another_attempt() -> None:
    between: list[tuple[Phase, bool, object]] = []

    def look(call: Call[Any]) -> None:
        exchange = call.exchange
        between.append((exchange.phase, exchange.finished, exchange.failure or exchange.error))

    play(refusing(500), answering(), before_step=look)
    assert (Phase.CLOSING, False, None) in between
    assert all(failure is None for _, _, failure in between)
    assert (Phase.TRAILING, True, None) in between


def test_what_upstream_calls_the_request_is_kept() -> None:
    script = refusing(500, headers={"x-request-id": "req_1"})
    assert play(script).attempts[0].request_id == "req_1"


# PITFALLS.md


@pytest.mark.parametrize("rendering", [AsEvents, AsFrames])
def test_r20_keepalives_before_the_first_output_do_not_commit(rendering: Any) -> None:
    """A comment is handed to nobody, so that a failure after it can still move on."""
    waiting = [COMMENT, COMMENT, stream_of(created()), b"event: ping\n\n", COMMENT]
    keepalive = stream_of({"type": "keepalive"})
    failed = stream_of(terminal("failed", error={"code": "server_error", "message": "x"}))
    first = Reply(pieces=said([*waiting, keepalive, failed], 1.0))
    call = play(first, answering(), rendering=rendering)
    assert call.outcomes == ["failed", "completed"]
    assert {number for _, number, _ in call.outputs} == {2}


def test_r20_a_gateway_that_only_says_that_it_waits_is_not_waited_for_forever() -> None:
    call = play(Reply(tail=(0.5, COMMENT)), answering())
    assert call.outcomes == ["truncated", "completed"]
    assert call.attempts[0].duration == QUICK.first_event


def test_r20_keepalives_in_the_middle_keep_an_answer_from_being_idle() -> None:
    frames = write_frames(Answer("It is sunny."))
    pieces = said([each for frame in frames for each in (frame, COMMENT)], 3.0)
    timeouts = Timeouts(connect=2.0, first_event=8.0, idle=4.0)
    call = play(Reply(pieces=pieces), timeouts=timeouts)
    assert call.outcomes == ["completed"]
    assert text_of(flat(call)) == "It is sunny."


def test_r21_leaving_hangs_up_at_once_or_drains_to_a_bound() -> None:
    reply = answering(each=0.5)
    hung_up = play(reply, caller=Caller(leaves_after=1))
    (output,) = hung_up.outputs
    assert hung_up.connections[0].closed == [output[0]]
    assert hung_up.attempts[0].usage is None
    drained = play(reply, caller=Caller(leaves_after=1), policy=Policy(drain=60.0))
    assert drained.attempts[0].usage is not None
    assert drained.now > output[0]
    stalled = play(
        answering(each=0.5, end="stall"),
        caller=Caller(leaves_after=1),
        policy=Policy(drain=0.75),
    )
    assert stalled.now == output[0] + 0.75
    for call in (hung_up, drained, stalled):
        assert call.outcomes == ["cancelled"]
        assert call.attempts[0].used
        assert len(call.said) == 1
        assert call.exchange.error is None


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_r22_an_answer_with_nothing_in_it_is_tried_elsewhere(rendering: Any) -> None:
    empty = ending(Answer(()))
    call = play(empty, answering(), rendering=rendering)
    assert call.outcomes == ["empty", "completed"]
    assert all(attempt.used for attempt in call.attempts)
    assert {number for _, number, _ in call.outputs} == {2}


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("then", [[], ["500"], ["no connection"], ["429", "401"], ["400"]])
def test_r22_an_empty_answer_is_better_than_a_failure(then: list[str], rendering: Any) -> None:
    rest = [FAULTS[name].script for name in then]
    call = play(ending(Answer(())), *rest, rendering=rendering)
    assert call.outcomes == ["empty", *(FAULTS[name].outcome for name in then)]
    assert call.exchange.error is None
    assert call.exchange.failure is None
    (out,) = call.said
    made = alone(call, REQUEST, 1)[1]
    # All that can be read of the call is of the answer that was handed out.
    assert call.exchange.handed_out == (rendering is not AsCompletion)
    assert call.exchange.stream is not None
    assert call.exchange.stream.usage is not None
    assert call.exchange.partial == fold([] if rendering is AsFrames else made)
    if rendering is AsEvents:
        assert out == made
    elif rendering is AsFrames:
        assert parsed(out) == plain(made)
    else:
        assert out == fold(made)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_r22_an_empty_answer_is_handed_out_when_the_account_waited_for_does_not_come(
    rendering: Any,
) -> None:
    tired: list[float] = []
    pool = AccountPool([Account(name="a"), Account(name="b")])
    second = pool.accounts[1]
    pool.settle(second, Health.TIRED, START, model="gpt-5", retry_after=2.0)

    def meanwhile(call: Call[Any]) -> None:
        if isinstance(call.exchange.step, Wait) and not tired:
            tired.append(call.now)
            pool.settle(second, Health.TIRED, START, model="gpt-5", retry_after=60.0)

    world = Simulation(
        {"a": ending(Answer(())), "b": answering()},
        policy=Policy(wait=5.0),
        before_step=meanwhile,
    )
    call = world.call_of(pool, REQUEST, rendering)
    assert call.outcomes == ["empty"]
    assert len(call.said) == 1
    assert call.outputs[0][0] == START + 2.0
    assert call.exchange.error is None


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_r22_an_empty_answer_is_kept_back_while_another_account_is_waited_for(
    rendering: Any,
) -> None:
    call = play(
        ending(Answer(())),
        answering(),
        rendering=rendering,
        policy=Policy(wait=5.0),
        resting={"b": 2.0},
    )
    assert call.outcomes == ["empty", "completed"]
    assert call.said == play(answering(), rendering=rendering).said
    assert call.attempts[1].started == START + 2.0


def test_r22_an_empty_answer_that_is_kept_back_was_not_handed_out() -> None:
    """Found by the law of the partial completion: the caller leaves before the next attempt."""
    call = play(ending(Answer(())), answering(), caller=Caller(leaves_at_step=4))
    assert call.outcomes == ["empty"]
    assert call.left[0].phase is Phase.CLOSING
    assert call.said == []
    assert not call.exchange.handed_out
    assert call.exchange.partial == fold([])


def test_r22_an_empty_answer_is_tried_elsewhere_only_if_the_policy_says_so() -> None:
    empty = ending(Answer(()))
    call = play(empty, answering(), policy=Policy(retry_empty=False))
    assert call.outcomes == ["empty"]
    assert len(call.said) == 1
    call = play(empty, answering(), policy=Policy(attempts=1))
    assert call.outcomes == ["empty"]
    assert len(call.said) == 1


def test_r22_what_was_cut_off_before_it_said_anything_is_incomplete_and_not_empty() -> None:
    call = play(ending(Answer((), Incomplete("content_filter"))), answering())
    assert call.outcomes == ["incomplete"]


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("place", ["top", "error", "response.error"])
@pytest.mark.parametrize(
    ("code", "status", "moves_on"),
    [
        ("server_is_overloaded", 502, True),
        ("rate_limit_exceeded", 429, True),
        ("invalid_prompt", 400, False),
    ],
)
def test_r24_an_error_in_a_stream_is_found_wherever_it_stands(
    place: str, code: str, status: int, moves_on: bool, rendering: Any
) -> None:
    error = {"code": code, "message": "told"}
    events: dict[str, Json] = {
        "top": {"type": "error", **error},
        "error": {"type": "error", "error": error},
        "response.error": terminal("failed", error=error),
    }
    reply = Reply(pieces=((0.0, stream_of(created(), events[place])),))
    call = play(reply, rendering=rendering)
    assert call.outcomes == ["failed"]
    assert (error_of(call).status, error_of(call).code) == (status, code)
    assert error_of(call).message == "told"
    call = play(reply, answering(), rendering=rendering)
    assert call.outcomes == (["failed", "completed"] if moves_on else ["failed"])


@pytest.mark.parametrize("end", ["eof", "reset", "stall"])
def test_r27_a_stream_that_breaks_midway_is_a_clean_error_and_not_resumed(end: Any) -> None:
    begun = stream_of(created(), text_delta("It is"))
    call = play(Reply(pieces=((0.0, begun),), end=end), answering())
    assert call.outcomes == ["truncated"]
    assert len(call.connections) == 1
    *chunks, last = flat(call)
    assert isinstance(last, Failure)
    assert text_of(chunks) == "It is"
    error = error_of(call)
    assert isinstance(error, UpstreamTimeout if end == "stall" else UpstreamTruncated)
    assert error.partial.choices[0].message.content == "It is"
    assert error.partial.choices[0].finish_reason is None


@pytest.mark.parametrize("place", ["error", "failed"])
def test_r29_an_error_midway_keeps_its_code_and_ends_the_stream(place: str) -> None:
    error = {"code": "vector_store_timeout", "message": "told", "type": "odd", "param": "tools"}
    event: Json = {"type": "error", "error": error}
    if place == "failed":
        event = terminal("failed", error=error)
    data = stream_of(created(), text_delta("It is"), event) + b"data: [DONE]\n\n"
    call = play(Reply(pieces=((0.0, data),)), answering(), rendering=AsFrames)
    assert call.outcomes == ["failed"]
    assert call.attempts[0].code == "vector_store_timeout"
    frames = parsed(b"".join(call.said))
    assert frames[-1] == {"error": error}
    assert "[DONE]" not in frames
    assert error_of(call).to_dict() == {"error": error}
