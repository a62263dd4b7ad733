"""Calls of an upstream that speaks Chat Completions, over the simulated network."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire import (
    AsCompletion,
    AsEvents,
    AsFrames,
    ChatStream,
    InvalidRequest,
    completion_from_response,
)
from deltawire.accounts import Account, AccountPool, endpoint
from deltawire.attempts import Policy
from deltawire.calls import RelayedCall, asked_as_stream, asked_whole
from deltawire.chat import Failure
from deltawire.exchange import Exchange
from deltawire.steps import Open
from deltawire.testing import Answer, FunctionCall, write_response, write_stream
from simulation import JSON, Call, Caller, Reply, Script, Simulation, said

REQUEST: Final[dict[str, Any]] = {
    "model": "gpt-5",
    "messages": [{"role": "user", "content": "Sunny?"}],
    "stream": True,
    "seed": 7,
}
ANSWERS: Final = (Answer("It is sunny."), Answer(("A look.", FunctionCall("look"))), Answer(()))


def frames(answer: Answer) -> list[bytes]:
    machine = ChatStream(include_usage=True)
    made = [*machine.receive_data(write_stream(answer)), *machine.receive_eof()]
    return [each.to_wire() for each in made]


def body(answer: Answer) -> bytes:
    completion = completion_from_response(write_response(answer)).to_dict()
    return json.dumps(completion, indent=1).encode()


def reply(pieces: list[bytes], end: Any = "eof") -> Reply:
    return Reply(pieces=said(pieces), end=end)


GOOD: Final = frames(ANSWERS[0])
SCRIPTS: Final = st.one_of(
    st.builds(
        lambda answer, until, end: reply(frames(answer)[:until], end),
        st.sampled_from(ANSWERS),
        st.integers(0, 6),
        st.sampled_from(["eof", "reset", "stall"]),
    ),
    st.builds(
        lambda answer: Reply(headers=JSON, pieces=said([body(answer)])), st.sampled_from(ANSWERS)
    ),
    st.builds(lambda status: Reply(status, pieces=said([b"no"])), st.sampled_from([400, 429, 500])),
)


def call_of(*scripts: Script, rendering: Any = AsFrames, **more: Any) -> Call[Any]:
    world = Simulation(dict(zip("abc", scripts, strict=False)), **more)
    return world.call(REQUEST, rendering, api="chat")


@given(SCRIPTS, SCRIPTS, st.sampled_from([AsFrames, AsEvents, AsCompletion]), st.integers(0, 5))
def test_every_attempt_is_settled_once_and_closed_and_nothing_is_handed_out_twice(
    first: Reply, second: Reply, rendering: Any, leaves: int
) -> None:
    caller = Caller(leaves_after=leaves) if leaves else Caller()
    call = call_of(first, second, rendering=rendering, caller=caller)
    assert all(each.outcome is not None for each in call.attempts)
    assert len(call.told) == 2 * len(call.attempts)
    assert all(len(each.closed) == 1 for each in call.connections)
    handed_out_by = {number for _, number, _ in call.outputs}
    assert len(handed_out_by) <= 1
    assert call.exchange.report == []
    if rendering is AsFrames and call.outputs and not call.left:
        (number,) = handed_out_by
        read = b"".join(call.connections[number - 1].read)
        out = b"".join(call.said)
        failure = call.exchange.failure
        if failure is not None:
            out = out.removesuffix(failure.to_wire())
        if not read.startswith(b"{"):
            assert read.startswith(out) or "empty" in call.outcomes


def test_upstream_is_sent_the_request_and_the_key() -> None:
    call = call_of(reply(GOOD))
    (connection,) = call.connections
    assert json.loads(connection.body) == REQUEST
    headers = dict(connection.headers)
    assert headers["Accept"] == "text/event-stream"
    assert headers["Authorization"] == "Bearer sk-secret-of-a"
    assert call.outcomes == ["completed"]
    assert call.attempts[0].usage is not None
    assert b"".join(call.said) == b"".join(GOOD)


def test_after_a_failure_another_account_is_asked() -> None:
    call = call_of(reply(GOOD[:1]), Reply(429), reply(GOOD))
    assert call.outcomes == ["truncated", "rejected", "completed"]
    assert b"".join(call.said) == b"".join(GOOD)


def test_encrypted_reasoning_that_is_refused_is_left_as_it_is() -> None:
    fault = {"error": {"message": "no", "code": "invalid_encrypted_content"}}
    call = call_of(Reply(400, headers=JSON, pieces=said([json.dumps(fault).encode()])))
    assert call.outcomes == ["rejected"]
    relayed = RelayedCall(REQUEST, [Account()])
    assert not relayed.can_amend(Failure("no", code="invalid_encrypted_content"))
    with pytest.raises(AssertionError):
        relayed.amend()


def test_a_body_is_handed_out_whole() -> None:
    data = body(ANSWERS[0])
    world = Simulation({"a": Reply(headers=JSON, pieces=said([data[:9], data[9:]]))})
    call: Call[Any] = world.call({**REQUEST, "stream": False}, AsCompletion, api="chat")
    (completion,) = call.said
    assert completion.to_json() == data
    assert json.loads(call.connections[0].body) == {**REQUEST, "stream": False}


def test_an_upstream_that_cannot_stream_is_asked_for_a_body() -> None:
    call = call_of(
        Reply(headers=JSON, pieces=said([body(ANSWERS[0])])), policy=Policy(stream_upstream=False)
    )
    assert json.loads(call.connections[0].body) == {**REQUEST, "stream": False}
    assert dict(call.connections[0].headers)["Accept"] == "application/json"
    assert b"".join(call.said).endswith(b"data: [DONE]\n\n")


def test_what_a_request_says_of_its_stream_can_be_changed() -> None:
    options = {"include_usage": True}
    asked = {"model": "m", "stream": True, "stream_options": options}
    assert asked_whole(asked) == {"model": "m", "stream": False}
    assert asked_whole({"model": "m"}) == {"model": "m"}
    assert asked_as_stream({"model": "m"}) == {"model": "m", "stream": True}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"messages": []}, "model"),
        ({"model": 3}, "model"),
        ({"model": "m", "x": object()}, None),
        ({"model": "o3"}, "model"),
    ],
)
def test_a_request_that_cannot_be_sent_is_not(request_: Any, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        RelayedCall(request_, [Account(models=("m",))])
    assert raised.value.param == param


@pytest.mark.parametrize("n", [1, 2, None, "3", 10**9])
def test_all_choices_that_are_asked_for_are_waited_for(n: Any) -> None:
    call = Simulation({"a": reply(GOOD[:-1])}).call({**REQUEST, "n": n}, AsFrames, api="chat")
    assert call.outcomes == ["truncated" if n in (2, 10**9) else "completed"]


def test_calls_of_one_conversation_stay_with_one_account() -> None:
    pool = AccountPool([Account(name="a"), Account(name="b")])
    chosen = []
    for _ in range(3):
        exchange: Exchange[bytes] = Exchange(
            {**REQUEST, "prompt_cache_key": "c"},
            pool,
            AsFrames,
            api="chat",
            now=0.0,
            unix_time=0.0,
            call_id="1",
        )
        assert isinstance(exchange.step, Open)
        chosen.append(exchange.step.request.account.name)
    assert chosen == ["a"] * 3


def test_completions_are_asked_for_where_sdks_ask_for_them() -> None:
    for base_url, url in {
        "https://h": "https://h/v1/chat/completions",
        "https://h/v1/": "https://h/v1/chat/completions",
        "https://h/v1/chat/completions": "https://h/v1/chat/completions",
        "https://h/a/v1?k=1": "https://h/a/v1/chat/completions?k=1",
    }.items():
        assert endpoint(base_url, "chat") == Account(base_url=base_url).chat_url == url
