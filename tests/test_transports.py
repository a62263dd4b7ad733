"""All transports, with every HTTP client, do the same over real sockets: the conformance suite.

A scenario is written once and run by each of `DRIVERS`; where a setting is about the client, by
those that make their own. Nothing waits for a time to pass except where a deadline is the point,
and there it is the outcome that counts, not when it came.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import trio
import trustme

from deltawire import (
    GENERIC,
    OPENAI,
    ChatCompletion,
    ChatCompletionFold,
    Chunk,
    Failure,
    fold,
    to_responses_request,
)
from deltawire.accounts import Account
from deltawire.attempts import Attempt, Policy, Timeouts
from deltawire.errors import (
    InvalidRequest,
    LocalProtocolError,
    NoAccountReady,
    UnsupportedField,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from deltawire.testing import (
    OPENROUTER,
    Answer,
    ErrorEvent,
    Expected,
    Failed,
    FunctionCall,
    Habits,
    Incomplete,
    Message,
    Reasoning,
    Refusal,
    TokenUsage,
    expected,
    write_frames,
    write_response,
    write_stream,
)
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from deltawire.transports.http import installed_library
from deltawire.transports.watchdog import Watchdog
from drivers import DRIVERS, GIVEN_CLIENT, OWN_CLIENT, Driver, Result
from upstream import (
    LIMIT,
    Gate,
    Hold,
    Reply,
    Reset,
    Upstream,
    error,
    gzipped,
    html,
    json_body,
    redirect,
    stream,
)
from wire import created, deltas, frame, parsed, plain, stream_of

Json = dict[str, Any]

REQUEST: Json = {"model": "gpt-5", "messages": [{"role": "user", "content": "Does it rain?"}]}
KEY = "sk-very-secret"

ANSWER = Answer("It rains in Rome, and it does not stop.")
OTHER = Answer("The sun shines.", id="resp_other")
FRAMES = write_frames(ANSWER)
BODY = b"".join(FRAMES)
_FIRST = next(at for at, each in enumerate(FRAMES) if b"output_text.delta" in each)
# What comes before anything can be said, the first word, and the others. Each is one write, so
# that a client that has something of it has all of it.
OPENING = b"".join(FRAMES[:_FIRST])
FIRST = FRAMES[_FIRST]
REST = b"".join(FRAMES[_FIRST + 1 :])
TERMINAL = FRAMES[-1]

# As few bytes as an answer can have.
SHORT = Answer("It rains.")
TERSE = Habits(
    opening=(),
    announce_items=False,
    announce_parts=False,
    close_items="never",
    terminal_output="absent",
)

FAULTS = json_body({"error": {"message": "Bad.", "type": "t", "param": "p", "code": "c"}})

# Seconds, where a deadline is to pass.
SOON = 0.02

EMPTY = ChatCompletionFold().completion

pytestmark = pytest.mark.usefixtures("no_proxy")
every_driver = pytest.mark.parametrize("driver", DRIVERS, ids=str)
own_client = pytest.mark.parametrize("driver", OWN_CLIENT, ids=str)
given_client = pytest.mark.parametrize("driver", GIVEN_CLIENT, ids=str)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture
def settings(upstream: Upstream) -> Any:
    """Of a transport with one account."""
    return {"base_url": upstream.base_url, "api_key": KEY}


@pytest.fixture
def two(upstream: Upstream) -> Any:
    """Settings of a transport with two accounts, of which `a` is asked first."""
    accounts = [Account(name="a", key="key-of-a"), Account(name="b", key="key-of-b")]
    return {"base_url": upstream.base_url, "accounts": accounts}


def said(result: Result[Chunk]) -> Json:
    """The message that the chunks make, with the finish reason beside it."""
    assert result.error is None, result.error
    return spoken(fold(result.outputs))


def spoken(completion: ChatCompletion) -> Json:
    choice = completion.to_dict()["choices"][0]
    return {**choice["message"], "finish_reason": choice["finish_reason"]}


def text(result: Result[Chunk]) -> str:
    """The content of the chunks, whatever came after them."""
    return "".join(delta.get("content") or "" for delta in deltas(result.outputs))


def assert_shows(message: Json, judge: Expected) -> None:
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", [])
    ]
    assert (message["content"] or "") == judge.content
    assert (message["refusal"] or "") == judge.refusal
    assert message.get("reasoning_content", "") == judge.reasoning
    assert calls == [*judge.tool_calls]
    assert message["finish_reason"] == judge.finish_reason


def assert_whole(result: Result[Chunk], answer: Answer = ANSWER) -> None:
    assert_shows(said(result), expected(answer))


def alone(body: bytes, request: Json = REQUEST) -> bytes:
    """The frames that `ChatStream` makes of the body, without any transport."""
    machine = to_responses_request(request, dialect=GENERIC).chat_stream()
    return machine.translate(body) + machine.translate_eof()


# Answers that are as they should be.

ANSWERS = {
    "plain": ANSWER,
    "tools": Answer((FunctionCall("look", '{"at":"Rome"}'), FunctionCall("look", '{"at":"Bari"}'))),
    "reasoning": Answer((Reasoning(("Rome is wet.", "Is it?")), "It rains.")),
    "everything": Answer((Reasoning(text="Hm."), "Wait \u2028\U0001f327.", FunctionCall("look"))),
    "refusal": Answer(Message(Refusal("I cannot say."))),
    "incomplete": Answer("It rains and", end=Incomplete()),
    "large": Answer("drip drop " * 20 + "drop" * 30_000),
}


@every_driver
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_it_is_in_each_form(
    driver: Driver, upstream: Upstream, settings: Any, name: str
) -> None:
    answer = ANSWERS[name]
    upstream.play(stream(answer))
    with driver.session(**settings) as session:
        chunks, frames = session.chunks(REQUEST), session.frames(REQUEST)
        completion = session.create(REQUEST)
    assert_shows(said(chunks), expected(answer))
    assert b"".join(frames.outputs) == alone(write_stream(answer))
    assert [*plain(chunks.outputs), "[DONE]"] == parsed(b"".join(frames.outputs))
    # A whole completion has its usage, which a stream has only if it is asked for.
    folded = fold(chunks.outputs).to_dict()
    assert completion.completion.to_dict() == {**folded, "usage": expected(answer).usage}
    outcome = "incomplete" if name == "incomplete" else "completed"
    for result in (chunks, frames, completion):
        assert result.outcomes == [("default", outcome)]
        attempt = result.attempts[0]
        assert (attempt.used, attempt.status, attempt.code) == (True, 200, None)
        assert attempt.usage == result.usage
        assert result.usage is not None
        assert result.usage.total_tokens == 15


@every_driver
def test_frames_carry_usage_where_it_is_asked_for(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    request = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
    upstream.play(stream(ANSWER, OPENROUTER))
    result = driver.frames(request, **settings)
    assert b"".join(result.outputs) == alone(write_stream(ANSWER, OPENROUTER), request)
    assert parsed(b"".join(result.outputs))[-2]["usage"]["total_tokens"] == 15


@every_driver
def test_what_is_lost_of_a_request_is_reported(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(ANSWER))
    result = driver.chunks({**REQUEST, "seed": 7}, **settings)
    assert [entry.path for entry in result.report] == ["seed"]
    assert "seed" not in upstream.requests[0].json


@every_driver
def test_a_stop_sequence_ends_the_answer_and_hangs_up(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(Reply((OPENING + FIRST + REST.replace(TERMINAL, b""), Hold(Gate()))))
    result = driver.chunks({**REQUEST, "stop": [" Rome"]}, **settings)
    assert (said(result)["content"], said(result)["finish_reason"]) == ("It rains in", "stop")
    assert result.outcomes == [("default", "completed")]
    assert upstream.requests[0].left.wait(LIMIT)


# The same bytes, however they come.

WIRES: dict[str, list[Reply]] = {
    "gzip": [gzipped(stream(ANSWER)), gzipped(stream(ANSWER, slice=7))],
    "gzip in odd chunks": [gzipped(Reply((BODY,), chunk_size=7, framing="close"))],
    "odd chunks": [stream(ANSWER, chunk_size=size) for size in (3, 100, 1 << 20)],
    "sliced": [stream(SHORT, TERSE, slice=size) for size in range(1, 8)],
    "HTTP/1.0 without length": [stream(ANSWER, http_version="1.0", framing="close")],
    "HTTP/1.0 with length": [stream(ANSWER, http_version="1.0", framing="length")],
    "HTTP/1.1 without length": [stream(ANSWER, framing="close")],
    "Content-Length": [stream(ANSWER, framing="length"), Reply((BODY,), framing="length")],
    "identity": [stream(ANSWER, headers=(("Content-Encoding", "identity"),))],
    "no content type": [stream(ANSWER, headers=())],
    "JSON": [json_body(write_response(ANSWER))],
    "JSON without a content type": [Reply(json_body(write_response(ANSWER)).pieces, headers=())],
    # A length that was said before the body was compressed would be wrong.
    "gzipped JSON": [gzipped(Reply(json_body(write_response(ANSWER)).pieces))],
}


@every_driver
@pytest.mark.parametrize("name", WIRES)
def test_an_answer_does_not_depend_on_how_it_is_sent(
    driver: Driver, upstream: Upstream, settings: Any, name: str
) -> None:
    answer = SHORT if name == "sliced" else ANSWER
    upstream.play(*WIRES[name])
    with driver.session(**settings) as session:
        for _ in WIRES[name]:
            result = session.chunks(REQUEST)
            assert_whole(result, answer)
            assert result.outcomes == [("default", "completed")]
    upstream.wait_closed()


@every_driver
@pytest.mark.parametrize("compressed", [False, True])
def test_a_chunk_is_handed_out_before_the_next_is_sent(
    driver: Driver, upstream: Upstream, settings: Any, compressed: bool
) -> None:
    gates = [Gate() for _ in range(3)]
    second, others = FRAMES[_FIRST + 1], b"".join(FRAMES[_FIRST + 2 : -1])
    held = [Hold(gate) for gate in gates]
    reply = Reply((OPENING + FIRST, held[0], second, held[1], others, held[2], TERMINAL))
    upstream.play(gzipped(reply) if compressed else reply)
    opened = iter(gates)

    # Had the transport waited for more, it would wait for ever.
    def release(chunk: Chunk) -> None:
        if text_of(chunk) in ("It", " rains", " stop."):
            next(opened).set()

    result = driver.chunks(REQUEST, on_output=release, **settings)
    assert_whole(result)
    assert all(gate.is_set() for gate in gates)


def text_of(chunk: Chunk) -> str:
    return "".join(choice.delta.content or "" for choice in chunk.choices)


@every_driver
def test_a_frame_is_handed_out_before_the_next_is_sent(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    gate = Gate()
    upstream.play(Reply((OPENING + FIRST, Hold(gate), REST)))
    result = driver.frames(REQUEST, on_output=lambda _: gate.set(), **settings)
    assert b"".join(result.outputs) == alone(BODY)


@every_driver
def test_an_upstream_that_cannot_stream_is_asked_for_a_whole_answer(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    answer = ANSWERS["everything"]
    upstream.play(json_body(write_response(answer)))
    with driver.session(**settings, policy=Policy(stream_upstream=False)) as session:
        chunks, completion = session.chunks(REQUEST), session.create(REQUEST)
    assert_whole(chunks, answer)
    assert_shows(spoken(completion.completion), expected(answer))
    for received in upstream.requests:
        assert received.json["stream"] is False
        assert received.headers["accept"] == "application/json"


# What upstream is sent.


@every_driver
def test_upstream_is_sent_what_it_needs_and_nothing_else(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(ANSWER))
    driver.chunks(REQUEST, **settings, headers={"X-Title": "A test", "X-Empty-Not": "1"})
    (received,) = upstream.requests
    assert (received.method, received.path) == ("POST", "/v1/responses")
    body = to_responses_request(REQUEST, dialect=GENERIC).body
    assert received.json == {**body, "stream": True}
    headers = received.headers
    version = headers.pop("user-agent").removeprefix("deltawire/")
    assert version[0].isdigit()
    assert headers == {
        "host": upstream.base_url.split("/")[2],
        "authorization": f"Bearer {KEY}",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(received.body)),
        "connection": "keep-alive",
        "x-title": "A test",
        "x-empty-not": "1",
    }


@every_driver
def test_without_a_key_there_is_no_authorization(driver: Driver, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    assert_whole(driver.chunks(REQUEST, base_url=upstream.base_url))
    assert "authorization" not in upstream.requests[0].headers


@own_client
def test_cookies_are_not_sent_back(driver: Driver, upstream: Upstream, settings: Any) -> None:
    cookie = ("Set-Cookie", "session=of-an-account; Path=/")
    upstream.play(stream(ANSWER, headers=(("Content-Type", "text/event-stream"), cookie)))
    with driver.session(**settings) as session:
        for _ in range(2):
            assert_whole(session.chunks(REQUEST))
    assert [received.headers.get("cookie") for received in upstream.requests] == [None, None]


@every_driver
def test_a_base_url_keeps_its_path_and_its_query(driver: Driver, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    host = upstream.base_url.removesuffix("/v1")
    for base_url, path in {
        host: "/v1/responses",
        f"{host}/": "/v1/responses",
        f"{host}/openai/v1?api-version=2025-04-01&x=%20": (
            "/openai/v1/responses?api-version=2025-04-01&x=%20"
        ),
    }.items():
        assert_whole(driver.chunks(REQUEST, base_url=base_url))
        assert upstream.requests[-1].path == path


@every_driver
def test_a_request_that_nobody_could_answer_is_not_sent(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(ANSWER))
    with driver.session(**settings) as session:
        results: list[Result[Any]] = [
            session.chunks({**REQUEST, "n": 2}),
            session.frames({**REQUEST, "messages": []}),
            session.create({"messages": REQUEST["messages"]}),
        ]
    for result, param in zip(results, ("n", "messages", "model"), strict=True):
        assert isinstance(result.error, InvalidRequest)
        assert result.error.param == param
        assert (result.outputs, result.attempts) == ([], [])
    with driver.session(**settings, strict=True) as session:
        for call in (session.chunks, session.frames, session.create):
            lost: Result[Any] = call({**REQUEST, "seed": 7})
            assert isinstance(lost.error, UnsupportedField)
            assert lost.error.param == "seed"
    assert (upstream.requests, upstream.connections) == ([], 0)


@every_driver
def test_a_model_that_no_account_serves_is_not_asked_for(
    driver: Driver, upstream: Upstream
) -> None:
    accounts = [Account(key="key-of-a", models=("o3*",), base_url=upstream.base_url)]
    result = driver.chunks(REQUEST, accounts=accounts)
    assert isinstance(result.error, InvalidRequest)
    assert result.error.code == "model_not_found"
    assert upstream.connections == 0


# Connections.


@every_driver
def test_connections_are_used_again(driver: Driver, upstream: Upstream, settings: Any) -> None:
    refusal = error(400, "No such thing.", param="input")
    failed = stream(Answer(end=Failed()))
    upstream.play(stream(ANSWER), stream(ANSWER), refusal, failed, html(503), stream(ANSWER))
    with driver.session(**settings) as session:
        assert_whole(session.chunks(REQUEST))
        assert session.create(REQUEST).error is None
        assert session.create(REQUEST).failure.status == 400
        assert session.create(REQUEST).failure.status == 502
        assert session.chunks(REQUEST).failure.status == 502
        assert session.frames(REQUEST).error is None
        assert_whole(session.chunks(REQUEST))
        assert upstream.open_connections == 1
    assert len(upstream.requests) == 7
    upstream.wait_closed()


@every_driver
def test_a_body_that_does_not_end_after_the_last_word_holds_nothing_up(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(Reply((BODY, Hold(Gate()))))
    result = driver.chunks(REQUEST, **settings, policy=Policy(trail=SOON))
    assert_whole(result)
    assert result.outcomes == [("default", "completed")]
    assert upstream.requests[0].left.wait(LIMIT)


@every_driver
@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_what_happens_after_the_last_word_changes_nothing(
    driver: Driver, upstream: Upstream, settings: Any, ending: Any
) -> None:
    upstream.play(Reply((BODY,), ending=ending))
    result = driver.chunks(REQUEST, **settings)
    assert_whole(result)
    assert result.outcomes == [("default", "completed")]
    upstream.wait_closed()


@every_driver
def test_a_hundred_streams_at_once_have_each_their_own_answer(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    all_there = Gate()
    answers = [Answer(f"It rains on {i} roofs.", id=f"resp_{i}") for i in range(100)]
    for i, answer in enumerate(answers):
        opening, *rest = write_frames(answer)
        held = Reply((opening, Hold(all_there), b"".join(rest)))
        upstream.play(held, model=f"model-{i}")

    def release() -> None:
        upstream.wait_for_requests(100)
        all_there.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    with driver.session(**settings) as session:
        results = session.concurrently(100, lambda i: {**REQUEST, "model": f"model-{i}"})
    releasing.join()
    for i, (result, answer) in enumerate(zip(results, answers, strict=True)):
        assert_whole(result, answer)
        assert {chunk.id for chunk in result.outputs} == {f"chatcmpl-{i}"}
        assert result.outcomes == [("default", "completed")]
    assert upstream.connections == 100
    upstream.wait_closed()


def test_threads_may_share_a_sync_transport(upstream: Upstream, two: Any) -> None:
    upstream.play(stream(ANSWER))
    outcomes: list[str | None] = []
    together = threading.Barrier(2)
    with (
        SyncTransport(**two, on_attempt=lambda each: outcomes.append(each.outcome)) as transport,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(_: int) -> list[str]:
            together.wait(LIMIT)
            return [transport.create(REQUEST).choices[0].message.content or "" for _ in range(20)]

        contents = [content for each in pool.map(ask, range(2)) for content in each]
    assert contents == ["It rains in Rome, and it does not stop."] * 40
    assert sorted(map(str, outcomes)) == ["None"] * 40 + ["completed"] * 40
    # The accounts were asked in turn, whoever asked.
    keys = [received.key for received in upstream.requests]
    assert keys.count("key-of-a") == keys.count("key-of-b") == 20
    assert upstream.connections <= 2


# Refusals.


@every_driver
@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (error(400, "Not this way.", code="odd"), 400, "odd"),
        (error(401, "Who?", code="invalid_api_key"), 401, "invalid_api_key"),
        (error(402, "Pay."), 429, None),
        (error(403, "Not you."), 403, None),
        (error(404, "What?", code="model_not_found"), 404, "model_not_found"),
        (error(413, "Too much."), 413, None),
        (error(422, "What is that?"), 422, None),
        (json_body({"detail": "Oh."}, status=418), 502, None),
        (html(500), 502, None),
        (error(503, "Later.", code="overloaded"), 502, "overloaded"),
        (Reply((), status=500, framing="length"), 502, None),
        (gzipped(Reply(error(400, "Not this way.").pieces, status=400)), 400, None),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_a_refusal_is_told_with_a_status_that_means_the_same(
    driver: Driver, upstream: Upstream, settings: Any, reply: Reply, status: int, code: str | None
) -> None:
    upstream.play(reply)
    with driver.session(**settings) as session:
        results: list[Result[Any]] = [session.chunks(REQUEST), session.create(REQUEST)]
    for result in results:
        failure = result.failure
        assert isinstance(failure, UpstreamRejected)
        assert (failure.status, failure.code, failure.retry_after) == (status, code, None)
        assert failure.partial.choices[0].message.content == ""
        assert result.outputs == []
        assert result.outcomes == [("default", "rejected")]
        assert (result.attempts[0].used, result.attempts[0].status) == (False, reply.status)
    assert {*results[0].failure.to_dict()["error"]} == {"message", "type", "param", "code"}


@every_driver
def test_the_text_of_an_html_page_is_the_message(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(html(500))
    message = driver.chunks(REQUEST, **settings).failure.message
    assert "500 Internal Server Error" in message
    assert "<" not in message


@every_driver
def test_of_an_endless_refusal_only_the_beginning_is_read(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(Reply((b"oh dear " * (1 << 13), Hold(Gate())), status=500))
    failure = driver.chunks(REQUEST, **settings).failure
    assert failure.status == 502
    assert "oh dear" in failure.message
    assert upstream.requests[0].left.wait(LIMIT)


@every_driver
def test_a_refusal_that_is_not_told_to_its_end_is_one(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    pieces = error(403, "Not you.").pieces
    upstream.play(
        Reply((*pieces, Hold(Gate())), status=403),
        Reply(pieces, status=403, ending="cut"),
        Reply(pieces, status=403, ending="reset"),
        Reply(pieces, status=403, headers=(("Content-Encoding", "br"),)),
    )
    with driver.session(**settings, policy=Policy(error_body=SOON)) as session:
        failures = [session.chunks(REQUEST).failure for _ in range(4)]
    assert [failure.status for failure in failures] == [403] * 4


@every_driver
def test_after_a_429_another_account_answers_and_the_first_rests(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(error(429, "Slow down.", headers=(("Retry-After", "600"),)), key="key-of-a")
    upstream.play(stream(ANSWER), key="key-of-b")
    with driver.session(**two) as session:
        results = [session.chunks(REQUEST) for _ in range(3)]
    for result in results:
        assert_whole(result)
    assert [result.outcomes for result in results] == [
        [("a", "rejected"), ("b", "completed")],
        [("b", "completed")],
        [("b", "completed")],
    ]
    assert [received.key for received in upstream.requests] == ["key-of-a", *["key-of-b"] * 3]
    assert [attempt.used for attempt in results[0].attempts] == [False, True]


@every_driver
def test_with_one_account_a_429_is_told_and_then_obeyed(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(
        error(429, "Slow down.", code="rate_limit_exceeded", headers=(("Retry-After", "600"),)),
        stream(ANSWER),
    )
    with driver.session(**settings) as session:
        first, second = session.chunks(REQUEST).failure, session.create(REQUEST)
    assert isinstance(first, UpstreamRejected)
    assert (first.status, first.retry_after) == (429, 600)
    assert (first.message, first.code) == ("Slow down.", "rate_limit_exceeded")
    assert isinstance(second.error, NoAccountReady)
    assert second.error.status == 429
    assert second.error.retry_after is not None
    assert 0 < second.error.retry_after <= 600
    assert second.attempts == []
    assert len(upstream.requests) == 1


@every_driver
def test_a_call_may_wait_for_an_account(driver: Driver, upstream: Upstream, settings: Any) -> None:
    upstream.play(error(429, headers=(("retry-after-ms", "50"),)), stream(ANSWER))
    policy = Policy(wait=LIMIT, attempts_per_account=2)
    result = driver.chunks(REQUEST, **settings, policy=policy)
    assert_whole(result)
    assert result.outcomes == [("default", "rejected"), ("default", "completed")]


@every_driver
@pytest.mark.parametrize(
    "reply",
    [
        error(401),
        error(402),
        error(403),
        error(408),
        html(500),
        error(503),
        stream(Answer(end=Failed())),
        stream(Answer(end=ErrorEvent())),
        json_body({"error": {"message": "Busy.", "code": "server_error"}}),
        html(200),
        Reply(()),
        Reply((OPENING,)),
        Reply((OPENING,), ending="cut"),
        Reply((OPENING,), ending="reset"),
        Reply((Reset(),)),
        Reply((OPENING, BODY), headers=(("Content-Encoding", "br"),)),
        Reply((OPENING, BODY), headers=(("Content-Encoding", "gzip"),)),
        redirect("https://example.org/v1"),
    ],
    ids=[
        *("401", "402", "403", "408", "500", "503", "failed", "error", "JSON error", "HTML"),
        *("nothing", "clean end", "cut", "reset", "reset at once", "br", "no gzip", "redirect"),
    ],
)
def test_what_fails_before_the_first_output_is_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any, reply: Reply
) -> None:
    upstream.play(reply, key="key-of-a")
    upstream.play(stream(ANSWER), key="key-of-b")
    result = driver.chunks(REQUEST, **two)
    assert_whole(result)
    assert [account for account, _ in result.outcomes] == ["a", "b"]
    assert result.attempts[0].used == (reply.status == 200)
    assert result.attempts[1].outcome == "completed"


@every_driver
@pytest.mark.parametrize("reply", [error(400), error(404), error(413), error(422)])
def test_the_requests_own_fault_is_not_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any, reply: Reply
) -> None:
    upstream.play(reply, key="key-of-a")
    upstream.play(stream(ANSWER), key="key-of-b")
    result = driver.chunks(REQUEST, **two)
    assert result.failure.status == reply.status
    assert [received.key for received in upstream.requests] == ["key-of-a"]


@every_driver
def test_an_upstream_that_is_not_there_is_passed_over(driver: Driver, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    with socket.socket() as nobody:
        # Bound, so that nobody else is there; but not listening.
        nobody.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        accounts = [
            Account(name="a", base_url=nowhere),
            Account(name="b", base_url=upstream.base_url),
        ]
        both = driver.chunks(REQUEST, accounts=accounts)
        one = driver.chunks(REQUEST, accounts=accounts[:1])
    assert_whole(both)
    assert both.outcomes == [("a", "unreachable"), ("b", "completed")]
    assert [attempt.used for attempt in both.attempts] == [False, True]
    assert isinstance(one.failure, UpstreamUnreachable)
    assert one.failure.status == 502
    assert f"base_url {nowhere}" in one.failure.message


@every_driver
def test_a_redirect_is_not_followed(driver: Driver, upstream: Upstream, settings: Any) -> None:
    with Upstream() as elsewhere:
        elsewhere.play(stream(ANSWER))
        for status in (301, 302, 307, 308):
            upstream.play(redirect(f"{elsewhere.base_url}/responses?key=k", status=status))
            failure = driver.chunks(REQUEST, **settings).failure
            assert isinstance(failure, UpstreamRejected)
            assert failure.status == 502
            assert elsewhere.base_url in failure.message
            assert "base_url" in failure.message
        assert elsewhere.connections == 0


@every_driver
def test_no_error_repeats_the_key(driver: Driver, upstream: Upstream, settings: Any) -> None:
    told = f"Incorrect API key provided: {KEY}."
    upstream.play(
        error(401, told),
        json_body({"error": {"message": told}}),
        stream(Answer(end=Failed(message=told))),
        Reply((told.encode(),)),
    )
    with driver.session(**settings) as session:
        for _ in range(4):
            failure = session.chunks(REQUEST).failure
            assert KEY not in f"{failure!r} {failure.failure!r} {failure.attempts!r}"


# Answers that go wrong.


@every_driver
def test_what_is_no_event_stream_is_an_error_that_shows_it(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(html(200), Reply((b"hello",), headers=(("Content-Type", "text/plain"),)))
    with driver.session(**settings) as session:
        page, hello = session.chunks(REQUEST), session.create(REQUEST)
    for failure, shown in ((page.failure, "<html>"), (hello.failure, "hello")):
        assert failure.status == 502
        assert shown in failure.message
    assert page.attempts[0].used


@every_driver
def test_an_error_object_with_status_200_is_an_error(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(FAULTS)
    with driver.session(**settings) as session:
        results: list[Result[Any]] = [session.chunks(REQUEST), session.create(REQUEST)]
    for result in results:
        assert result.failure.to_dict() == FAULTS_AS_TOLD
        assert result.outputs == []
        assert result.outcomes == [("default", "failed")]
        assert result.attempts[0].used


FAULTS_AS_TOLD = {"error": {"message": "Bad.", "type": "t", "param": "p", "code": "c"}}


@every_driver
def test_an_encoding_that_is_not_known_is_named(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(ANSWER, headers=(("Content-Encoding", "br"),)))
    result = driver.chunks(REQUEST, **settings)
    assert "'br'" in result.failure.message
    assert result.failure.status == 502
    assert result.outputs == []
    upstream.wait_closed()


@every_driver
def test_a_body_that_is_not_compressed_as_it_says_is_an_error(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(ANSWER, headers=(("Content-Encoding", "gzip"),)))
    result = driver.chunks(REQUEST, **settings)
    assert isinstance(result.failure, UpstreamTruncated)
    assert result.failure.status == 502
    upstream.wait_closed()


@every_driver
@pytest.mark.parametrize(
    "end",
    [
        Failed(code="server_error", message="Oh."),
        ErrorEvent(code="server_error", message="Oh.", shape="flat"),
        ErrorEvent(code="server_error", message="Oh.", then_failed=True),
    ],
    ids=["failed", "error", "error then failed"],
)
def test_a_failure_midway_comes_after_what_was_said(
    driver: Driver, upstream: Upstream, two: Any, end: Failed | ErrorEvent
) -> None:
    body = write_stream(Answer("It rains", end=end))
    upstream.play(Reply((body,)))
    with driver.session(**two) as session:
        chunks, frames = session.chunks(REQUEST), session.frames(REQUEST)
    failure = chunks.failure
    assert text(chunks) == "It rains"
    assert (failure.code, failure.message, failure.status) == ("server_error", "Oh.", 502)
    assert failure.partial.choices[0].message.content == "It rains"
    assert failure.partial.choices[0].finish_reason is None
    assert [attempt.outcome for attempt in failure.attempts] == ["failed"]
    assert failure.attempts[0].used
    assert frames.error is None
    assert b"".join(frames.outputs) == alone(body)
    *_, last = parsed(b"".join(frames.outputs))
    assert last["error"]["code"] == "server_error"
    # Nothing of a whole completion was handed out, so that there may be another attempt.
    whole = driver.create(REQUEST, **two)
    assert whole.outcomes == [("a", "failed"), ("b", "failed")]
    assert whole.failure.partial.choices[0].message.content == "It rains"


BROKEN: dict[str, Callable[[bytes], Reply]] = {
    "clean, chunked": lambda body: Reply((body,)),
    "clean, no framing": lambda body: Reply((body,), framing="close"),
    "clean, gzip": lambda body: gzipped(Reply((body,))),
    "FIN, chunked": lambda body: Reply((body,), ending="cut"),
    "FIN, length": lambda body: Reply((body,), ending="cut", framing="length"),
    "FIN, gzip": lambda body: gzipped(Reply((body,), ending="cut")),
    "RST, chunked": lambda body: Reply((body,), ending="reset"),
    "RST, no framing": lambda body: Reply((body,), ending="reset", framing="close"),
}


@every_driver
@pytest.mark.parametrize("how", BROKEN)
def test_an_answer_that_stops_before_its_end_is_truncated(
    driver: Driver, upstream: Upstream, settings: Any, how: str
) -> None:
    broken = BROKEN[how]
    upstream.play(broken(OPENING), broken(OPENING + FIRST), broken(OPENING + FIRST))
    with driver.session(**settings) as session:
        before, after = session.chunks(REQUEST), session.chunks(REQUEST)
        frames = session.frames(REQUEST)
    assert before.outputs == []
    assert text(after) == "It"
    for result in (before, after):
        assert isinstance(result.failure, UpstreamTruncated)
        assert (result.failure.code, result.failure.status) == ("upstream_truncated", 502)
        assert result.failure.partial.choices[0].message.content == text(result)
        assert result.outcomes == [("default", "truncated")]
        assert result.attempts[0].used
    assert frames.error is None
    *_, word, last = parsed(b"".join(frames.outputs))
    assert word["choices"][0]["delta"] == {"content": "It"}
    assert last["error"]["code"] == "upstream_truncated"
    assert frames.outcomes == [("default", "truncated")]


@every_driver
def test_a_reset_midway_comes_after_what_was_said(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    gate = Gate()
    upstream.play(Reply((OPENING + FIRST, Hold(gate), Reset())))
    result = driver.chunks(REQUEST, on_output=lambda _: gate.set(), **settings)
    assert text(result) == "It"
    assert isinstance(result.failure, UpstreamTruncated)


# An upstream that says nothing any more. Whatever was to come before is in one piece with what the
# deadline is counted from.

COMMENT = b": thinking\n\n"
STALLED: dict[str, tuple[Reply, Timeouts, str, set[str]]] = {
    "no head": (
        Reply((), head_hold=Hold(Gate())),
        Timeouts(first_event=SOON),
        "timeouts.first_event",
        {"unreachable"},
    ),
    "no head, total": (
        Reply((), head_hold=Hold(Gate())),
        Timeouts(total=SOON),
        "timeouts.total",
        {"unreachable"},
    ),
    "no event": (
        Reply((COMMENT, Hold(Gate()))),
        Timeouts(first_event=2 * SOON),
        "timeouts.first_event",
        # On a machine that is busy there may be no head either.
        {"truncated", "unreachable"},
    ),
    "no output": (
        Reply((OPENING, Hold(Gate()))),
        Timeouts(idle=SOON),
        "timeouts.idle",
        {"truncated"},
    ),
    "no more output": (
        Reply((OPENING + FIRST, Hold(Gate()))),
        Timeouts(idle=SOON),
        "timeouts.idle",
        {"truncated"},
    ),
    "no more output, gzip": (
        gzipped(Reply((OPENING + FIRST, Hold(Gate())))),
        Timeouts(idle=SOON),
        "timeouts.idle",
        {"truncated"},
    ),
    "no end": (
        Reply((OPENING + FIRST, Hold(Gate()))),
        Timeouts(total=2 * SOON),
        "timeouts.total",
        {"truncated", "unreachable"},
    ),
}


@every_driver
@pytest.mark.parametrize("name", STALLED)
def test_an_upstream_that_falls_silent_is_given_up(
    driver: Driver, upstream: Upstream, settings: Any, name: str
) -> None:
    reply, timeouts, setting, outcomes = STALLED[name]
    upstream.play(reply)
    result = driver.chunks(REQUEST, **settings, timeouts=timeouts)
    failure = result.failure
    assert isinstance(failure, UpstreamTimeout)
    assert (failure.code, failure.status) == ("upstream_timeout", 504)
    assert setting in failure.message
    assert result.attempts[0].outcome in outcomes
    assert result.attempts[0].code == "upstream_timeout"
    assert result.attempts[0].used == (result.attempts[0].outcome == "truncated")
    if setting == "timeouts.idle":
        assert text(result) == ("It" if "more" in name else "")
    upstream.wait_closed()
    # On a machine that is busy the time may be over before anything was sent.
    assert all(received.left.is_set() for received in upstream.requests)


def test_a_deadline_that_has_passed_before_it_is_watched_holds_nothing_up() -> None:
    watchdog = Watchdog()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        now = time.monotonic()
        with watchdog._changed:
            # Before the other thread looks at it, its reader has moved it on.
            watchdog.watch(ours, now - 1, -1).until = math.inf
        closing = threading.Thread(target=watchdog.close, daemon=True)
        closing.start()
        closing.join(LIMIT)
        assert not closing.is_alive()


@every_driver
def test_an_upstream_that_does_not_read_is_given_up(driver: Driver) -> None:
    large = {**REQUEST, "messages": [{"role": "user", "content": "x" * 2**24}]}
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        timeouts = Timeouts(total=2 * SOON)
        result = driver.chunks(large, base_url=url, api_key=KEY, timeouts=timeouts)
    assert isinstance(result.failure, UpstreamTimeout)
    # What was dropped halfway is missed here, not in another test.
    gc.collect()


@every_driver
def test_what_falls_silent_before_the_first_output_is_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(Reply((OPENING, Hold(Gate()))), key="key-of-a")
    upstream.play(Reply((BODY,)), key="key-of-b")
    result = driver.chunks(REQUEST, **two, timeouts=Timeouts(idle=SOON))
    assert_whole(result)
    assert result.outcomes == [("a", "truncated"), ("b", "completed")]
    assert upstream.requests[0].left.wait(LIMIT)


# Accounts.


@every_driver
def test_accounts_take_turns_and_affinity_keeps_one(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(stream(ANSWER))
    cached = {**REQUEST, "prompt_cache_key": "a conversation"}
    with driver.session(**two) as session:
        for request in (REQUEST, cached, REQUEST, cached, cached):
            assert_whole(session.chunks(request))
        for _ in range(2):
            assert session.create(REQUEST, affinity="another").error is None
    keys = ["a", "b", "a", "b", "b", "a", "a"]
    assert [received.key for received in upstream.requests] == [f"key-of-{key}" for key in keys]


THOUGHT: Json = {
    "role": "assistant",
    "content": "Hello.",
    "reasoning_details": [{"type": "reasoning.encrypted", "data": "gAAAA", "id": "rs_1"}],
}


@every_driver
@pytest.mark.parametrize(
    "reply",
    [
        error(400, "No.", code="invalid_encrypted_content"),
        error(400, "The encrypted content gAAA could not be verified."),
    ],
    ids=["code", "text"],
)
def test_r23_encrypted_reasoning_that_is_refused_is_left_out_once(
    driver: Driver, upstream: Upstream, settings: Any, reply: Reply
) -> None:
    user = REQUEST["messages"][0]
    request = {**REQUEST, "messages": [user, THOUGHT, user]}
    upstream.play(reply, stream(ANSWER), reply, reply)
    with driver.session(**settings, dialect=OPENAI) as session:
        answered, refused = session.chunks(request), session.chunks(request)
    assert_whole(answered)
    assert answered.outcomes == [("default", "rejected"), ("default", "completed")]
    assert refused.failure.status == 400
    assert refused.outcomes == [("default", "rejected"), ("default", "rejected")]
    sent = [[item.get("type") for item in each.json["input"]] for each in upstream.requests]
    assert ["reasoning" in types for types in sent] == [True, False, True, False]


@every_driver
def test_attempts_are_told_when_they_begin_and_when_they_are_settled(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(error(503, code="busy"), key="key-of-a")
    upstream.play(
        stream(ANSWER, headers=(("Content-Type", "text/event-stream"), ("x-request-id", "req_1"))),
        key="key-of-b",
    )
    told: list[tuple[int, str, str | None]] = []
    with driver.session(
        **two, on_attempt=lambda each: told.append((each.number, each.account, each.outcome))
    ) as session:
        result = session.chunks(REQUEST)
        objects = [attempt for attempt, _ in session.told]
    assert told == [(1, "a", None), (1, "a", "rejected"), (2, "b", None), (2, "b", "completed")]
    first, second = result.attempts
    assert [*map(id, objects)] == [id(first), id(first), id(second), id(second)]
    assert (first.status, first.code, first.used, first.model) == (503, "busy", False, "gpt-5")
    assert (second.status, second.code, second.used) == (200, None, True)
    assert (first.request_id, second.request_id) == (None, "req_1")
    assert (first.first_event, first.usage) == (None, None)
    assert second.first_event is not None
    assert second.duration is not None
    assert second.first_event <= second.duration


@every_driver
def test_nothing_is_sent_before_the_attempt_is_written_down(
    driver: Driver, upstream: Upstream
) -> None:
    upstream.play(stream(ANSWER))
    written: Future[None] = Future()
    sent: list[int] = []

    def write() -> None:
        sent.append(len(upstream.requests))
        written.set_result(None)

    def begin(attempt: Attempt) -> Future[None] | None:
        if attempt.outcome is not None:
            return None
        # Somebody else writes it, meanwhile.
        threading.Thread(target=write).start()
        return written

    result = driver.chunks(REQUEST, base_url=upstream.base_url, on_attempt=begin)
    assert_whole(result)
    assert sent == [0]


@every_driver
def test_nothing_is_sent_if_the_attempt_cannot_be_written_down(
    driver: Driver, upstream: Upstream
) -> None:
    upstream.play(stream(ANSWER))
    written: Future[None] = Future()
    written.set_exception(NoAccountReady(Failure("The books are closed."), EMPTY))
    for ask in (driver.chunks, driver.create):
        result = ask(REQUEST, base_url=upstream.base_url, on_attempt=lambda _: written)
        assert str(result.error) == "The books are closed."
        assert result.outcomes == [("default", "cancelled")]
    assert not upstream.requests


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> str:
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def secure(server_tls: ssl.SSLContext) -> Iterator[Upstream]:
    with Upstream(server_tls) as opened:
        opened.play(stream(ANSWER))
        yield opened


@own_client
def test_verify_is_a_file_of_authorities_or_false(
    driver: Driver, secure: Upstream, authority_file: str
) -> None:
    for verify in (authority_file, False):
        with driver.session(base_url=secure.base_url, verify=verify) as session:
            for _ in range(2):
                assert_whole(session.chunks(REQUEST))
    assert [received.connection for received in secure.requests] == [1, 1, 2, 2]


@every_driver
def test_verify_is_a_context(driver: Driver, secure: Upstream, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with driver.session(base_url=secure.base_url, verify=context) as session:
        assert_whole(session.chunks(REQUEST))
        assert session.create(REQUEST).error is None
    assert secure.connections == 1
    secure.wait_closed()


@every_driver
def test_an_upstream_that_is_not_trusted_is_sent_nothing(driver: Driver, secure: Upstream) -> None:
    result = driver.chunks(REQUEST, base_url=secure.base_url, api_key=KEY, verify=True)
    assert isinstance(result.failure, UpstreamUnreachable)
    assert result.failure.status == 502
    assert "verify" in result.failure.message
    assert f"base_url {secure.base_url}" in result.failure.message
    assert result.outcomes == [("default", "unreachable")]
    assert secure.requests == []


@own_client
def test_cert_is_the_clients_certificate(
    driver: Driver,
    server_tls: ssl.SSLContext,
    authority: trustme.CA,
    authority_file: str,
    tmp_path: Path,
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED
    # In TLS 1.3 a client thinks that it has a connection before the server has seen who it is.
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.configure_trust(server_tls)
    mine, key, chain = (str(tmp_path / name) for name in ("mine.pem", "key.pem", "chain.pem"))
    issued = authority.issue_cert("client@example.org")
    issued.private_key_and_cert_chain_pem.write_to_path(mine)
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(chain)
    with Upstream(server_tls) as secure:
        secure.play(stream(ANSWER))
        for cert in (mine, (chain, key)):
            settings: Any = {"base_url": secure.base_url, "verify": authority_file, "cert": cert}
            assert_whole(driver.chunks(REQUEST, **settings))
        result = driver.chunks(REQUEST, base_url=secure.base_url, verify=authority_file)
        assert isinstance(result.failure, UpstreamUnreachable)
        assert "(verify, cert)" in result.failure.message
        assert len(secure.requests) == 2


@own_client
def test_without_a_certificate_that_is_asked_for_nothing_is_answered(
    driver: Driver, server_tls: ssl.SSLContext, authority: trustme.CA, authority_file: str
) -> None:
    server_tls.verify_mode = ssl.CERT_REQUIRED
    server_tls.minimum_version = ssl.TLSVersion.TLSv1_3
    with Upstream(server_tls) as secure:
        result = driver.chunks(REQUEST, base_url=secure.base_url, verify=authority_file)
        assert isinstance(result.failure, UpstreamUnreachable)
        assert f"base_url {secure.base_url}" in result.failure.message
        assert secure.requests == []


@every_driver
@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_under_tls_an_answer_that_is_cut_is_truncated(
    driver: Driver, secure: Upstream, authority: trustme.CA, ending: Any
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    secure.play(Reply((OPENING + FIRST,), framing="close", ending=ending))
    result = driver.chunks(REQUEST, base_url=secure.base_url, verify=context)
    assert text(result) == "It"
    assert isinstance(result.failure, UpstreamTruncated)


@every_driver
def test_what_is_no_tls_breaks_the_answer(
    driver: Driver, secure: Upstream, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = b"this is no TLS"
    send = ssl.SSLSocket.sendall

    def sendall(sock: ssl.SSLSocket, data: bytes) -> None:
        if mark in data:
            socket.socket.send(sock, mark)
        else:
            send(sock, data)

    monkeypatch.setattr(ssl.SSLSocket, "sendall", sendall)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    hold = Hold(Gate())
    secure.play(
        Reply((hold,), headers=(("X-Mark", mark.decode()),)),
        Reply((OPENING + FIRST, mark, hold), framing="close"),
    )
    settings: Any = {"base_url": secure.base_url, "verify": context}
    before, midway = driver.chunks(REQUEST, **settings), driver.chunks(REQUEST, **settings)
    assert isinstance(before.failure, UpstreamUnreachable)
    assert before.outcomes == [("default", "unreachable")]
    assert text(midway) == "It"
    assert isinstance(midway.failure, UpstreamTruncated)
    assert midway.outcomes == [("default", "truncated")]
    secure.wait_closed()


# The client that is given, and the one that is made.


@given_client
def test_a_given_client_is_not_closed(driver: Driver, upstream: Upstream, settings: Any) -> None:
    upstream.play(stream(ANSWER))
    url = f"{upstream.base_url}/responses"

    def blocking() -> None:
        with driver.client() as client:
            with SyncTransport(client=client, **settings) as transport:
                transport.create(REQUEST)
            assert client.post(url, json={}).status_code == 200

    async def awaited() -> None:
        assert driver.loop is not None
        kind = {"asyncio": AsyncioTransport, "trio": TrioTransport}[driver.loop]
        async with driver.client() as client:
            async with kind(client=client, **settings) as transport:
                await transport.create(REQUEST)
            assert (await client.post(url, json={})).status_code == 200

    if driver.loop is None:
        blocking()
    else:
        anyio.run(awaited, backend=driver.loop)
    # Nor were its connections.
    assert upstream.connections == 1
    upstream.wait_closed()


@own_client
def test_where_only_httpx2_is_installed_it_is_used(
    driver: Driver, upstream: Upstream, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "httpx" else find(name)
    )
    assert installed_library().Client is httpx2.Client
    cookie = (("Content-Type", "text/event-stream"), ("Set-Cookie", "session=1; Path=/"))
    upstream.play(stream(ANSWER, headers=cookie), gzipped(stream(ANSWER)))
    with driver.session(**settings) as session:
        for _ in range(2):
            assert_whole(session.chunks(REQUEST))
    assert upstream.connections == 1
    assert "cookie" not in upstream.requests[1].headers


# Event loops.


async def ask(transport: AsyncioTransport | TrioTransport) -> None:
    await transport.create(REQUEST)


async def ask_for_a_stream(transport: AsyncioTransport | TrioTransport) -> None:
    async with transport.stream(REQUEST) as chunks:
        async for _ in chunks:
            pass


both_calls = pytest.mark.parametrize("call", [ask, ask_for_a_stream], ids=["create", "stream"])


@both_calls
def test_an_event_loop_of_another_kind_is_refused(
    upstream: Upstream, settings: Any, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(LocalProtocolError, match="AsyncioTransport runs in an asyncio event loop"):
        trio.run(call, AsyncioTransport(**settings))
    with pytest.raises(LocalProtocolError, match=r"TrioTransport runs under trio\.run"):
        asyncio.run(call(TrioTransport(**settings)))
    assert upstream.connections == 0


@both_calls
def test_where_there_is_no_event_loop_none_is_used(
    upstream: Upstream, settings: Any, call: Callable[[Any], Any]
) -> None:
    for kind in (AsyncioTransport, TrioTransport):
        with pytest.raises(LocalProtocolError, match="running here"):
            call(kind(**settings)).send(None)
    assert upstream.connections == 0


@both_calls
@pytest.mark.parametrize("kind", [AsyncioTransport, TrioTransport])
def test_another_run_of_the_event_loop_is_refused(
    upstream: Upstream, settings: Any, call: Callable[[Any], Any], kind: Any
) -> None:
    upstream.play(stream(ANSWER))
    transport = kind(**settings)
    backend = "asyncio" if kind is AsyncioTransport else "trio"

    async def first() -> None:
        async with transport:
            await call(transport)

    anyio.run(first, backend=backend)
    with pytest.raises(LocalProtocolError, match="belongs to another"):
        anyio.run(call, transport, backend=backend)
    with pytest.raises(LocalProtocolError, match="belongs to another"):
        anyio.run(transport.aclose, backend=backend)
    assert len(upstream.requests) == 1


# By the numbers of PITFALLS.

KEEPALIVE = frame({"type": "keepalive", "sequence_number": 3})
NOTHING_YET = (COMMENT, stream_of(created()), KEEPALIVE, COMMENT, KEEPALIVE)


@every_driver
def test_r20_nothing_is_said_and_no_status_is_settled_before_the_first_output(
    driver: Driver, upstream: Upstream, two: Any, settings: Any
) -> None:
    overloaded = Answer(end=ErrorEvent(code="server_is_overloaded", message="Busy."))
    upstream.play(Reply((*NOTHING_YET, *write_frames(overloaded))))
    upstream.play(stream(ANSWER), key="key-of-b")
    for call in ("chunks", "frames"):
        elsewhere = getattr(driver, call)(REQUEST, **two)
        assert elsewhere.error is None
        assert elsewhere.outcomes == [("a", "failed"), ("b", "completed")]
        alone_here = getattr(driver, call)(REQUEST, **settings)
        # A server has said nothing yet, and can answer with this.
        assert alone_here.outputs == []
        assert (alone_here.failure.status, alone_here.failure.code) == (502, "server_is_overloaded")


@every_driver
def test_r20_the_first_output_settles_that_there_is_no_other_attempt(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    gate = Gate()
    upstream.play(Reply((*NOTHING_YET, OPENING + FIRST, Hold(gate), Reset())))
    result = driver.frames(REQUEST, on_output=lambda _: gate.set(), **two)
    assert result.error is None
    assert result.outcomes == [("a", "truncated")]
    assert len(upstream.requests) == 1


@every_driver
def test_r21_leaving_hangs_up(driver: Driver, upstream: Upstream, settings: Any) -> None:
    upstream.play(Reply((OPENING + FIRST, Hold(Gate()))))
    result = driver.chunks(REQUEST, stop_after=2, **settings)
    assert text(result) == "It"
    assert result.error is None
    assert result.outcomes == [("default", "cancelled")]
    assert (result.attempts[0].used, result.usage) == (True, None)
    assert upstream.requests[0].left.wait(LIMIT)
    upstream.wait_closed()


@every_driver
@pytest.mark.parametrize("call", ["chunks", "frames"])
def test_r21_leaving_with_a_drain_makes_usage_known(
    driver: Driver, upstream: Upstream, settings: Any, call: str
) -> None:
    gate = Gate()
    upstream.play(Reply((OPENING + FIRST, Hold(gate), *FRAMES[_FIRST + 1 :])))
    result = getattr(driver, call)(
        REQUEST,
        on_output=lambda _: gate.set(),
        stop_after=1,
        policy=Policy(drain=LIMIT),
        **settings,
    )
    assert len(result.outputs) == 1
    assert result.outcomes == [("default", "cancelled")]
    assert result.usage is not None
    assert result.usage.total_tokens == 15
    assert (result.attempts[0].usage, result.attempts[0].used) == (result.usage, True)
    assert gate.is_set()
    upstream.wait_closed()


@every_driver
def test_r21_a_drain_has_an_end(driver: Driver, upstream: Upstream, settings: Any) -> None:
    upstream.play(Reply((OPENING + FIRST, Hold(Gate()))))
    result = driver.chunks(REQUEST, stop_after=1, policy=Policy(drain=SOON), **settings)
    assert result.outcomes == [("default", "cancelled")]
    assert result.usage is None
    assert upstream.requests[0].left.wait(LIMIT)


@every_driver
def test_r22_an_answer_with_nothing_in_it_is_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(stream(Answer(usage=TokenUsage(7, 0))), key="key-of-a")
    upstream.play(stream(ANSWER), key="key-of-b")
    for call in ("chunks", "frames", "create"):
        result = getattr(driver, call)(REQUEST, **two)
        assert result.error is None
        assert result.outcomes == [("a", "empty"), ("b", "completed")]
        first = result.attempts[0]
        assert (first.used, first.usage.total_tokens) == (True, 7)
        if call == "chunks":
            assert_whole(result)
        elif call == "frames":
            assert b"".join(result.outputs) == alone(BODY)
        else:
            assert spoken(result.completion)["content"] == expected(ANSWER).content


@every_driver
def test_r22_with_one_account_an_answer_with_nothing_in_it_is_told_as_it_is(
    driver: Driver, upstream: Upstream, settings: Any
) -> None:
    upstream.play(stream(Answer()))
    with driver.session(**settings) as session:
        chunks, frames = session.chunks(REQUEST), session.frames(REQUEST)
        completion = session.create(REQUEST)
    assert deltas(chunks.outputs) == [{"role": "assistant", "content": ""}, {}]
    assert said(chunks)["finish_reason"] == "stop"
    assert b"".join(frames.outputs) == alone(write_stream(Answer()))
    assert spoken(completion.completion)["content"] == ""
    for result in (chunks, frames, completion):
        assert result.outcomes == [("default", "empty")]
        assert result.attempts[0].used


@every_driver
@pytest.mark.parametrize(
    "other",
    [error(503), stream(Answer(end=Failed())), stream(Answer())],
    ids=["503", "failed", "empty"],
)
def test_r22_nothing_is_better_than_a_failure(
    driver: Driver, upstream: Upstream, two: Any, other: Reply
) -> None:
    upstream.play(stream(Answer()), key="key-of-a")
    upstream.play(other, key="key-of-b")
    for call in ("chunks", "frames", "create"):
        result = getattr(driver, call)(REQUEST, **two)
        assert result.error is None
        assert [account for account, _ in result.outcomes] == ["a", "b"]
        assert len(result.outputs) == (2 if call == "chunks" else 1)
        if call == "frames":
            assert b"".join(result.outputs) == alone(write_stream(Answer()))


@every_driver
@pytest.mark.parametrize("shape", ["flat", "nested", "response", "body"])
def test_r24_an_error_is_found_wherever_upstream_puts_it(
    driver: Driver, upstream: Upstream, two: Any, settings: Any, shape: str
) -> None:
    fault = {"code": "server_is_overloaded", "message": "Busy."}
    events: dict[str, Json] = {
        "flat": {"type": "error", "sequence_number": 2, "param": None, **fault},
        "nested": {"type": "error", "error": {"type": "service_unavailable_error", **fault}},
        "response": {"type": "response.failed", "response": {"status": "failed", "error": fault}},
    }
    body = json_body({"error": fault})
    reply = body if shape == "body" else Reply((stream_of(created(), events[shape]),))
    upstream.play(reply)
    upstream.play(stream(ANSWER), key="key-of-b")
    result = driver.chunks(REQUEST, **settings)
    assert (result.failure.code, result.failure.message) == ("server_is_overloaded", "Busy.")
    assert result.failure.retryable
    assert result.failure.status == 502
    assert result.outcomes == [("default", "failed")]
    elsewhere = driver.chunks(REQUEST, **two)
    assert_whole(elsewhere)
    assert elsewhere.outcomes == [("a", "failed"), ("b", "completed")]
    assert elsewhere.attempts[0].code == "server_is_overloaded"


@every_driver
def test_r24_an_error_that_is_the_requests_fault_is_not_tried_elsewhere(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    upstream.play(stream(Answer(end=ErrorEvent(code="context_length_exceeded", message="Long."))))
    result = driver.chunks(REQUEST, **two)
    assert (result.failure.code, result.failure.status) == ("context_length_exceeded", 400)
    assert result.outcomes == [("a", "failed")]


@every_driver
def test_r27_there_is_no_resume_a_broken_stream_is_an_error(
    driver: Driver, upstream: Upstream, two: Any
) -> None:
    broken = Reply((OPENING + FIRST,), ending="cut")
    upstream.play(broken, stream(ANSWER))
    result = driver.chunks(REQUEST, **two)
    assert text(result) == "It"
    assert isinstance(result.failure, UpstreamTruncated)
    assert result.failure.partial.choices[0].message.content == "It"
    assert [(each.method, each.path) for each in upstream.requests] == [("POST", "/v1/responses")]


@every_driver
@pytest.mark.parametrize("shape", ["flat", "nested"])
def test_r29_an_error_midway_keeps_its_code_and_type_and_ends_the_stream(
    driver: Driver, upstream: Upstream, settings: Any, shape: Any
) -> None:
    end = ErrorEvent(code="tokens_gone", message="No more.", type="quota", param="x", shape=shape)
    answer = Answer("It rains", end=end)
    upstream.play(stream(answer))
    with driver.session(**settings) as session:
        chunks, frames = session.chunks(REQUEST), session.frames(REQUEST)
    told = {"message": "No more.", "type": "quota", "param": "x", "code": "tokens_gone"}
    if shape == "flat":
        # It has no room for a type of its own.
        told["type"] = chunks.failure.type or ""
    assert chunks.failure.to_dict() == {"error": told}
    assert chunks.attempts[0].code == "tokens_gone"
    *_, last = payloads = parsed(b"".join(frames.outputs))
    assert last == {"error": told}
    assert "[DONE]" not in payloads
    assert all(not choice["finish_reason"] for each in payloads[:-1] for choice in each["choices"])


def test_every_error_of_a_transport_is_an_upstream_error() -> None:
    kinds = (UpstreamRejected, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable)
    assert all(issubclass(kind, UpstreamError) for kind in (*kinds, NoAccountReady))
