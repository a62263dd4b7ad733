"""An upstream that speaks Chat Completions, through all transports over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chat_upstream import ANSWER, EMPTY, TOOLS, completed, failed, frames, streamed, whole
from deltawire import ChatCompletion, Usage, fold
from deltawire.accounts import Account
from deltawire.attempts import Policy
from deltawire.dialects import OPENAI
from deltawire.errors import InvalidRequest, InvalidSetting, UpstreamRejected, UpstreamTruncated
from deltawire.testing import Answer, Incomplete
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from drivers import DRIVERS, Driver, Result
from upstream import LIMIT, Gate, Hold, Piece, Reply, Upstream, error, json_body

Json = dict[str, Any]

REQUEST: Json = {
    "model": "gpt-5",
    "messages": [{"role": "user", "content": "Does it rain?"}],
    "seed": 7,
    "vendor_option": {"a": [1, 2.5, None]},
}
FRAMES = frames()
SPENT = Usage(10, 5, 15)

pytestmark = pytest.mark.usefixtures("no_proxy")
every_driver = pytest.mark.parametrize("driver", DRIVERS, ids=str)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture
def settings(upstream: Upstream) -> Any:
    return {"base_url": upstream.base_url, "api": "chat", "api_key": "sk-very-secret"}


@pytest.fixture
def two(upstream: Upstream) -> Any:
    """Settings of a transport with two accounts, of which `a` is asked first."""
    accounts = [Account(name="a", key="key-of-a"), Account(name="b", key="key-of-b")]
    return {"base_url": upstream.base_url, "api": "chat", "accounts": accounts}


def assert_one(result: Result[Any], outcome: str, *, usage: bool = True) -> None:
    assert result.outcomes == [("default", outcome)]
    (attempt,) = result.attempts
    assert (attempt.used, attempt.status, attempt.model) == (True, 200, "gpt-5")
    assert (attempt.usage is not None) == usage
    assert attempt.first_event is not None
    assert result.report == []


@every_driver
@pytest.mark.parametrize("answer", [ANSWER, TOOLS, Answer("It rains and", Incomplete())])
def test_an_answer_is_passed_through_in_each_form(
    driver: Driver, upstream: Upstream, settings: Any, answer: Answer
) -> None:
    outcome = "incomplete" if isinstance(answer.end, Incomplete) else "completed"
    upstream.play(streamed(answer), streamed(answer), completed(answer))
    with driver.session(**settings) as session:
        wire, chunks = session.frames(REQUEST), session.chunks(REQUEST)
        completion = session.create(REQUEST)
    assert b"".join(wire.outputs) == b"".join(frames(answer))
    folded = fold(chunks.outputs).to_dict()
    assert completion.completion.to_json() == whole(answer)
    assert completion.completion.to_dict() == {**folded, "service_tier": "odd"}
    for result in (wire, chunks, completion):
        assert_one(result, outcome)
        assert result.usage == result.attempts[0].usage


@every_driver
def test_upstream_is_sent_the_request_as_it_is(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(streamed(), completed(), completed(), streamed())
    asked = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
    with driver.session(**settings) as session:
        session.frames(REQUEST)
        session.create(REQUEST)
        session.create(asked)
        session.chunks(asked)
    bodies = [received.json for received in upstream.requests]
    assert bodies == [{**REQUEST, "stream": True}, REQUEST, {**REQUEST, "stream": False}, asked]
    for received in upstream.requests:
        kind = "text/event-stream" if received.json.get("stream") else "application/json"
        assert (received.path, received.key) == ("/v1/chat/completions", "sk-very-secret")
        assert received.headers["accept"] == kind
        assert received.headers["accept-encoding"] == "identity"


@every_driver
def test_only_the_model_of_a_request_has_to_be_there(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(error(400, "messages: expected some", code="odd"))
    with driver.session(**settings) as session:
        missing = session.frames({"messages": []}).error
        unsendable = session.create({**REQUEST, "metadata": object()}).error
        refused = session.frames({"model": "gpt-5"}).failure
    for each in (missing, unsendable):
        assert isinstance(each, InvalidRequest)
    assert isinstance(refused, UpstreamRejected)
    assert (refused.status, refused.code) == (400, "odd")
    assert len(upstream.requests) == 1


@every_driver
@pytest.mark.parametrize(
    "reply",
    [
        error(429, "Slow down."),
        error(500),
        Reply(()),
        Reply(FRAMES[:1]),
        Reply(FRAMES[:1], ending="cut"),
        Reply(FRAMES[:1], ending="reset"),
        Reply((*FRAMES[:1], failed())),
        Reply((FRAMES[-1],)),
        streamed(EMPTY),
        json_body({"error": {"message": "Busy.", "code": "server_error"}}),
    ],
    ids=[
        *("429", "500", "nothing", "clean end", "cut", "reset", "error", "done only", "empty"),
        "JSON error",
    ],
)
def test_what_fails_before_the_first_output_is_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any, reply: Reply
) -> None:
    upstream.play(reply, key="key-of-a")
    upstream.play(streamed(), key="key-of-b")
    result = driver.frames(REQUEST, **two)
    assert b"".join(result.outputs) == b"".join(FRAMES)
    assert [account for account, _ in result.outcomes] == ["a", "b"]
    assert result.attempts[0].used == (reply.status == 200)
    assert result.attempts[1].outcome == "completed"


@every_driver
@pytest.mark.parametrize("ending", ["clean", "cut", "reset"])
def test_what_is_truncated_midway_is_told_after_the_last_whole_event(
    driver: Driver, upstream: Upstream, two: Any, ending: Any
) -> None:
    received = Gate()
    pieces: tuple[Piece, ...] = (*FRAMES[:3], Hold(received), FRAMES[3][:25])
    upstream.play(Reply(pieces, ending=ending))
    result = driver.frames(REQUEST, on_output=lambda _: received.set(), **two)
    passed = b"".join(FRAMES[:3])
    out = b"".join(result.outputs)
    assert out.startswith(passed + b'data: {"error":{')
    assert out.count(b"data: ") == 4
    assert b'"code":"upstream_truncated"' in out
    assert result.outcomes == [("a", "truncated")]
    assert result.attempts[0].used
    chunks = driver.chunks(REQUEST, **two)
    assert isinstance(chunks.failure, UpstreamTruncated)


@every_driver
def test_an_error_midway_is_passed_through(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(Reply((*FRAMES[:3], failed())))
    with driver.session(**settings) as session:
        wire, chunks = session.frames(REQUEST), session.chunks(REQUEST)
    assert b"".join(wire.outputs) == b"".join((*FRAMES[:3], failed()))
    assert (chunks.failure.message, chunks.failure.code) == ("Oh dear.", "overloaded")
    for result in (wire, chunks):
        assert_one(result, "failed", usage=False)
        assert result.attempts[0].code == "overloaded"


@every_driver
def test_each_event_is_handed_out_before_the_next_is_there(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    gates = [Gate() for _ in FRAMES]
    pieces: list[Piece] = []
    for frame, gate in zip(FRAMES, gates, strict=True):
        pieces += [frame, Hold(gate)]
    upstream.play(Reply(tuple(pieces)))
    # The role has to wait for the first word.
    gates[0].set()
    opened = iter(gates[1:])
    result = driver.frames(REQUEST, on_output=lambda _: next(opened).set(), **settings)
    assert result.outputs == [FRAMES[0] + FRAMES[1], *FRAMES[2:]]


@every_driver
@pytest.mark.parametrize("slice", [1, 7])
def test_slices_do_not_matter(
    driver: Driver, upstream: Upstream, settings: Any, slice: int
) -> None:
    upstream.play(streamed(TOOLS, chunk_size=slice))
    result = driver.frames(REQUEST, **settings)
    assert b"".join(result.outputs) == b"".join(frames(TOOLS))


@every_driver
def test_leaving_hangs_up_on_upstream(driver: Driver, upstream: Upstream, settings: Any) -> None:
    upstream.play(Reply((*FRAMES[:3], Hold(Gate()))))
    with driver.session(**settings) as session:
        result = session.frames(REQUEST, stop_after=1)
        assert upstream.requests[0].left.wait(LIMIT)
    assert_one(result, "cancelled", usage=False)


@every_driver
def test_who_is_left_may_be_listened_to_for_the_usage(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    gate = Gate()
    upstream.play(Reply((*FRAMES[:2], Hold(gate), *FRAMES[2:])))
    policy = Policy(drain=LIMIT)
    result = driver.frames(
        REQUEST, on_output=lambda _: gate.set(), stop_after=1, policy=policy, **settings
    )
    assert_one(result, "cancelled")


@every_driver
def test_an_upstream_that_answers_in_the_other_form_is_understood(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(completed(TOOLS), streamed(TOOLS))
    with driver.session(**settings) as session:
        chunks, completion = session.chunks(REQUEST), session.create(REQUEST)
    told = fold(chunks.outputs).choices[0]
    assert told.message == completion.completion.choices[0].message
    assert told.finish_reason == completion.completion.choices[0].finish_reason == "tool_calls"
    assert isinstance(completion.completion, ChatCompletion)
    for result in (chunks, completion):
        assert_one(result, "completed")


@every_driver
def test_an_upstream_that_cannot_stream_is_not_asked_to(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(completed())
    asked = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
    result = driver.frames(asked, policy=Policy(stream_upstream=False), **settings)
    out = b"".join(result.outputs)
    assert out.endswith(b"data: [DONE]\n\n")
    assert b'"usage":{' in out
    assert upstream.requests[0].json == {**REQUEST, "stream": False}


@every_driver
def test_an_empty_answer_that_nobody_can_better_is_passed_through(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(streamed(EMPTY))
    result = driver.frames(REQUEST, **two)
    assert b"".join(result.outputs) == b"".join(frames(EMPTY))
    assert result.outcomes == [("a", "empty"), ("b", "empty")]


@pytest.mark.parametrize("kind", [SyncTransport, AsyncioTransport, TrioTransport])
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"dialect": OPENAI}, "dialect"),
        ({"strict": True}, "strict"),
        ({"stream_options": {"reasoning": None}}, "stream_options.reasoning"),
        ({"stream_options": {"no_such": 1}}, "stream_options.no_such"),
        ({"base_url": "http://"}, "base_url"),
    ],
)
def test_settings_that_mean_nothing_are_named(kind: Any, more: Any, named: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        kind(**{"api": "chat", **more})
    assert raised.value.setting == named


def test_a_limit_for_events_means_something(upstream: Upstream, settings: Any) -> None:
    upstream.play(streamed())
    with SyncTransport(**settings, stream_options={"max_event_size": 20}) as transport:
        answer = transport.stream_wire(REQUEST)
        with pytest.raises(Exception, match="max_event_size"):
            list(answer)
    assert answer.attempts[0].code == "event_too_large"
