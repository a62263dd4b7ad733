"""What users of other bridges reported, one test each, named after the requirement."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltawire import Done, EventTooLarge, Failure, SSEDecoder, UpstreamError
from deltawire.completion import completion_from_response, fold
from wire import (
    Json,
    added,
    answer,
    arguments_delta,
    arguments_done,
    call,
    calls,
    created,
    deltas,
    done,
    frame,
    message,
    receive,
    stream_of,
    terminal,
    text_delta,
)

PARIS = '{"city":"Paris"}'
ROME = '{"city":"Rome"}'


def test_r1_parallel_calls_have_dense_indexes_in_order_of_appearance() -> None:
    _, events = receive(
        stream_of(
            created(),
            added(3, call(n=1)),
            arguments_done(PARIS, n=1, index=3),
            added(7, call(n=2)),
            arguments_done(ROME, n=2, index=7),
            terminal(),
        )
    )
    indexes = [each["tool_calls"][0]["index"] for each in deltas(events) if "tool_calls" in each]
    assert indexes == [0, 0, 1, 1]


def test_r2_one_finish_reason_at_the_terminal_event_only() -> None:
    _, events = receive(
        stream_of(
            created(),
            added(0, message()),
            text_delta("Let me look."),
            done(0, message("Let me look.")),
            added(1, call()),
            arguments_done(PARIS, index=1),
            done(1, call(PARIS)),
            terminal(output=[message("Let me look."), call(PARIS)]),
        )
    )
    reasons = [
        choice["finish_reason"]
        for event in events
        if not isinstance(event, Done)
        for choice in event.to_dict()["choices"]
    ]
    assert [reason for reason in reasons if reason] == ["tool_calls"]
    assert reasons[-1] == "tool_calls"


@pytest.mark.parametrize(
    "ending",
    [
        [arguments_done(PARIS)],
        [done(0, call(PARIS))],
        [],
        [arguments_delta(PARIS[:5]), arguments_done(PARIS)],
        [arguments_delta(PARIS[:5]), done(0, call(PARIS))],
        [arguments_delta(PARIS[:5])],
    ],
    ids=["done", "item", "terminal", "rest in done", "rest in item", "rest in terminal"],
)
def test_r3_arguments_only_in_done(ending: list[Json]) -> None:
    data = stream_of(created(), added(0, call()), *ending, terminal(output=[call(PARIS)]))
    assert calls(data) == [("call_1", "weather", PARIS)]


def test_r4_empty_deltas_are_no_ops() -> None:
    data = stream_of(
        created(),
        added(0, call()),
        arguments_delta(""),
        arguments_delta(PARIS),
        arguments_delta(""),
        arguments_done(PARIS),
        terminal(),
    )
    _, events = receive(data)
    assert calls(data) == [("call_1", "weather", PARIS)]
    said = [each["tool_calls"][0]["function"] for each in deltas(events) if "tool_calls" in each]
    assert said == [{"name": "weather", "arguments": ""}, {"arguments": PARIS}]


def test_r5_snapshots_only_reconcile_known_calls() -> None:
    stream, events = receive(
        stream_of(
            created(),
            added(0, call()),
            arguments_delta(PARIS),
            arguments_done(PARIS),
            done(0, call(PARIS)),
            terminal(output=[call(PARIS)]),
        )
    )
    completion = fold(events).to_dict()
    (only,) = completion["choices"][0]["message"]["tool_calls"]
    assert only["function"]["arguments"] == PARIS
    assert stream.divergences == []


def test_r6_id_name_type_and_role_come_once_and_are_absent_afterwards() -> None:
    _, events = receive(
        stream_of(
            created(),
            added(0, call()),
            arguments_delta(PARIS[:4]),
            arguments_delta(PARIS[4:]),
            arguments_done(PARIS),
            terminal(),
        )
    )
    first, opening, *rest = deltas(events)
    assert first == {"role": "assistant", "content": ""}
    assert opening["tool_calls"] == [
        {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
    ]
    assert rest == [
        {"tool_calls": [{"index": 0, "function": {"arguments": PARIS[:4]}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": PARIS[4:]}}]},
        {},
    ]


@pytest.mark.parametrize("already", [[], [added(0, message()), text_delta("Hel")]])
def test_r7_a_failed_response_is_an_error_and_never_a_finish(already: list[Json]) -> None:
    error = {"code": "server_error", "message": "The model had a stroke."}
    _, events = receive(stream_of(created(), *already, terminal("failed", error=error)))
    assert events[-1] == Failure(
        "The model had a stroke.", type="upstream_error", code="server_error"
    )
    assert not any(isinstance(event, Done) for event in events)
    assert not any(
        choice["finish_reason"]
        for event in events[:-1]
        if not isinstance(event, Done)
        for choice in event.to_dict()["choices"]
    )


USAGE: Json = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 12,
}
CHAT_USAGE: Json = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"reason": "max_output_tokens"}, "length"),
        ({"reason": "content_filter"}, "content_filter"),
        ({"reason": "something new"}, "length"),
        (None, "length"),
    ],
)
def test_r8_an_incomplete_response_says_why_and_has_its_usage(details: Any, reason: str) -> None:
    end = terminal("incomplete", incomplete_details=details, usage=USAGE)
    _, events = receive(
        stream_of(created(), added(0, message()), text_delta("Hel"), end), include_usage=True
    )
    completion = fold(events).to_dict()
    assert completion["choices"][0]["finish_reason"] == reason
    assert completion["usage"] == CHAT_USAGE
    usage_chunk, end_of_stream = events[-2:]
    assert usage_chunk.to_dict()["choices"] == []  # type: ignore[union-attr]
    assert isinstance(end_of_stream, Done)


def test_r9_an_answer_without_streaming_is_the_fold_of_the_same_machine() -> None:
    output = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        message("Let me look."),
        call(PARIS),
    ]
    response = terminal(output=output, model="gpt-5", created_at=5, usage=USAGE)["response"]
    whole = completion_from_response({"object": "response", **response})
    _, events = receive(
        stream_of(
            created(created_at=5),
            added(0, {"type": "reasoning", "id": "rs_1", "summary": []}),
            added(1, message()),
            text_delta("Let me look.", index=1),
            added(2, call()),
            terminal(output=output, usage=USAGE),
        ),
        include_usage=True,
    )
    streamed = fold(events)
    assert whole.choices[0].message.tool_calls == streamed.choices[0].message.tool_calls
    assert whole == streamed


def test_r10_incomplete_beats_tool_calls() -> None:
    data = stream_of(
        created(),
        added(0, call()),
        arguments_delta(PARIS[:6]),
        terminal("incomplete", incomplete_details={"reason": "max_output_tokens"}),
    )
    assert answer(data)["finish_reason"] == "length"
    assert calls(data) == [("call_1", "weather", PARIS[:6])]


@pytest.mark.parametrize(
    ("commentary", "content", "reasoning"),
    [
        ("reasoning", "It rains.", "I will look."),
        ("content", "I will look.It rains.", None),
        ("drop", "It rains.", None),
    ],
)
def test_r11_commentary_goes_where_it_is_told_to(
    commentary: str, content: str, reasoning: str | None
) -> None:
    data = stream_of(
        created(),
        added(0, message(id="a", phase="commentary")),
        text_delta("I will look.", id="a"),
        done(0, message("I will look.", id="a", phase="commentary")),
        added(1, message(id="b", phase="final_answer")),
        text_delta("It rains.", id="b", index=1),
        done(1, message("It rains.", id="b", phase="final_answer")),
        terminal(
            output=[
                message("I will look.", id="a", phase="commentary"),
                message("It rains.", id="b", phase="final_answer"),
            ]
        ),
    )
    said = answer(data, commentary=commentary)
    assert said["content"] == content
    assert said.get("reasoning_content") == reasoning


def reasoning_delta(kind: str, delta: str) -> Json:
    place = "content_index" if kind == "reasoning_text" else "summary_index"
    return {
        "type": f"response.{kind}.delta",
        "item_id": "rs_1",
        "output_index": 0,
        place: 0,
        "delta": delta,
    }


REASONING: Json = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "In short."}],
    "content": [{"type": "reasoning_text", "text": "At length."}],
}


@pytest.mark.parametrize(
    ("streamed", "shown"),
    [
        (["reasoning_text"], "At length."),
        (["reasoning_summary_text"], "In short."),
        (["reasoning_text", "reasoning_summary_text"], "At length."),
        (["reasoning_summary_text", "reasoning_text"], "In short."),
        ([], "At length."),
    ],
)
def test_r12_reasoning_of_both_kinds_is_shown_once(streamed: list[str], shown: str) -> None:
    texts = {"reasoning_text": "At length.", "reasoning_summary_text": "In short."}
    data = stream_of(
        created(),
        added(0, {"type": "reasoning", "id": "rs_1", "summary": []}),
        *(reasoning_delta(kind, texts[kind]) for kind in streamed),
        done(0, REASONING),
        terminal(output=[REASONING]),
    )
    assert answer(data)["reasoning_content"] == shown


def test_r13_ids_that_rotate_and_indexes_that_drift() -> None:
    data = stream_of(
        created(),
        added(0, message(id="a")),
        text_delta("Hel", id="b"),
        text_delta("lo", id="c"),
        {**text_delta(None, id="d"), "type": "response.output_text.done", "text": "Hello"},
        done(4, message("Hello", id="e")),
        added(1, call()),
        arguments_delta(PARIS, index=1),
        done(9, call(PARIS)),
        terminal(output=[message("Hello", id="f"), call(PARIS)]),
    )
    stream, events = receive(data)
    assert answer(data)["content"] == "Hello"
    assert calls(data) == [("call_1", "weather", PARIS)]
    assert stream.divergences == []
    assert isinstance(events[-1], Done)


def test_r14_interleaved_deltas_reach_their_own_call_and_wait_their_turn() -> None:
    data = stream_of(
        created(),
        added(0, call(n=1)),
        added(1, call(n=2)),
        arguments_delta(PARIS[:5], n=1, index=0),
        arguments_delta(ROME[:5], n=2, index=1),
        arguments_delta(PARIS[5:], n=1, index=0),
        arguments_delta(ROME[5:], n=2, index=1),
        arguments_done(ROME, n=2, index=1),
        arguments_done(PARIS, n=1, index=0),
        terminal(output=[call(PARIS, n=1), call(ROME, n=2)]),
    )
    _, events = receive(data)
    said = [each["tool_calls"][0]["index"] for each in deltas(events) if "tool_calls" in each]
    assert said == sorted(said)
    assert calls(data) == [("call_1", "weather", PARIS), ("call_2", "weather", ROME)]


def test_r18_an_event_over_the_limit_is_a_typed_error_after_what_came_before() -> None:
    data = stream_of(created(), added(0, message()), text_delta("Hello"))
    stream, events = receive(data + b"data: " + b"x" * 5000, max_event_size=4096)
    assert deltas(events)[-1] == {"content": "Hello"}
    assert events[-1] == stream.failure
    assert stream.failure is not None
    assert stream.failure.code == "event_too_large"
    assert "4096" in stream.failure.message
    with pytest.raises(EventTooLarge) as caught:
        SSEDecoder(max_event_size=10).receive_data(b"data: 1\n\ndata: 12345\n\n")
    assert [event.data for event in caught.value.events] == [b"1"]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u2029", "\x0b", "\x0c", "\x1c"])
def test_r19_only_cr_and_lf_end_a_line(separator: str) -> None:
    (event,) = SSEDecoder().receive_data(f"data: a{separator}b\n\n".encode())
    assert event.data.decode() == f"a{separator}b"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "server_is_overloaded", "message": "Later.", "param": None},
        {"type": "error", "error": {"code": "server_is_overloaded", "message": "Later."}},
        {"error": {"code": "server_is_overloaded", "message": "Later."}},
        terminal("failed", error={"code": "server_is_overloaded", "message": "Later."}),
    ],
    ids=["flat", "nested", "without a type", "in the response"],
)
def test_r24_errors_are_found_in_all_their_places(event: Json) -> None:
    stream, events = receive(stream_of(created()) + frame(event))
    (failure,) = events
    assert isinstance(failure, Failure)
    assert (failure.message, failure.code) == ("Later.", "server_is_overloaded")
    assert failure.retryable
    assert not stream.produced_output


@pytest.mark.parametrize(
    "error",
    [
        {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "Long."},
        # vLLM's codes are HTTP statuses.
        {"type": "BadRequestError", "code": 400, "message": "Bad."},
    ],
)
def test_r24_a_fault_of_the_request_is_not_retryable(error: Json) -> None:
    (failure,) = receive(stream_of(created(), {"type": "error", "error": error}))[1]
    assert isinstance(failure, Failure)
    assert not failure.retryable


def test_r25_upstreams_code_and_type_are_kept_and_nothing_follows_the_error() -> None:
    error = {"type": "tokens", "code": "rate_limit_exceeded", "message": "Slow.", "param": "x"}
    _, events = receive(
        stream_of(
            created(),
            added(0, message()),
            text_delta("Hel"),
            {"type": "error", "error": error},
            terminal("failed", error={"code": "other", "message": "Again."}),
        )
    )
    assert json.loads(events[-1].to_wire()[6:]) == {"error": error}
    assert [isinstance(event, Failure) for event in events].count(True) == 1


def test_r26_r30_a_done_item_is_frozen() -> None:
    data = stream_of(
        created(),
        added(0, call()),
        arguments_done(PARIS),
        arguments_delta("garbage"),
        done(0, call(PARIS)),
        arguments_delta("garbage"),
        added(1, message()),
        text_delta("Hi", index=1),
        done(1, message("Hi")),
        text_delta("garbage", index=1),
        terminal(output=[call(PARIS), message("Hi")]),
    )
    stream, _ = receive(data)
    assert calls(data) == [("call_1", "weather", PARIS)]
    assert answer(data)["content"] == "Hi"
    assert stream.ignored_events == 3


def test_r28_no_chunk_before_identity_is_known() -> None:
    _, events = receive(
        stream_of(text_delta("Hi"), terminal()),
        default_id="chatcmpl-abc",
        default_created=7,
        default_model="grok",
    )
    assert {(event.id, event.created, event.model) for event in events[:-1]} == {  # type: ignore[union-attr]
        ("chatcmpl-abc", 7, "grok")
    }


def test_r28_what_upstream_leaves_empty_is_filled_in() -> None:
    _, events = receive(stream_of(created(id="", model="", created_at=None), terminal()))
    assert all(event.id and event.model for event in events[:-1])  # type: ignore[union-attr]


def test_r25_a_stream_cut_off_ends_in_an_error_and_without_done() -> None:
    _, events = receive(stream_of(created(), added(0, message()), text_delta("Hel")))
    assert isinstance(events[-1], Failure)
    assert events[-1].code == "upstream_truncated"


def test_r31_a_snapshot_with_another_call_id_is_the_same_call() -> None:
    stream, events = receive(
        stream_of(
            created(),
            added(0, call()),
            arguments_delta(PARIS),
            arguments_done(PARIS),
            done(0, call(PARIS)),
            terminal(output=[{**call(PARIS, n=9), "call_id": "call_other"}]),
        )
    )
    completion = fold(events).to_dict()
    (only,) = completion["choices"][0]["message"]["tool_calls"]
    assert only["id"] == "call_1"
    assert stream.divergences == []


class TestR34:
    """The first design of this bridge, and what its review found.

    What it says of closing responses, of counting use and of the bodies of 4xx and 5xx answers is
    for the transports; there is no network here.
    """

    def test_event_name_is_not_carried_over_to_the_next_block(self) -> None:
        events = SSEDecoder().receive_data(b"event: a\ndata: 1\n\ndata: 2\n\n")
        assert [event.event for event in events] == ["a", "message"]

    def test_event_name_is_not_carried_over_from_a_block_without_data(self) -> None:
        events = SSEDecoder().receive_data(b"event: a\n\ndata: 2\n\n")
        assert [event.event for event in events] == ["message"]

    def test_empty_data_is_not_the_end(self) -> None:
        data = stream_of(created()) + b"data:\n\n" + stream_of(text_delta("Hi"), terminal())
        assert answer(data)["content"] == "Hi"

    def test_multi_line_data_is_joined(self) -> None:
        pretty = json.dumps(text_delta("Hi"), indent=1).encode()
        lines = b"".join(b"data: %b\n" % line for line in pretty.split(b"\n"))
        data = stream_of(created()) + lines + b"\n" + stream_of(terminal())
        assert answer(data)["content"] == "Hi"

    def test_payload_is_not_stripped(self) -> None:
        (event,) = SSEDecoder().receive_data(b"data:  a \n\n")
        assert event.data == b" a "

    def test_only_known_event_types_are_text(self) -> None:
        data = stream_of(
            created(),
            {**text_delta("x"), "type": "response.reasoning_magic.delta"},
            {**text_delta("x"), "type": "response.code_interpreter_call_code.delta"},
            {**text_delta("x"), "type": "response.audio.transcript.delta"},
            text_delta("Hi"),
            terminal(),
        )
        said = answer(data)
        assert said["content"] == "Hi"
        assert "reasoning_content" not in said

    def test_text_is_said_in_the_call_that_brought_it(self) -> None:
        from deltawire import ChatStream

        stream = ChatStream()
        stream.receive_data(stream_of(created(), added(0, message())))
        said = frame(text_delta("Hi"))
        assert stream.receive_data(said[:-1]) == []
        assert deltas(stream.receive_data(said[-1:])) == [
            {"role": "assistant", "content": ""},
            {"content": "Hi"},
        ]

    def test_a_failure_midway_says_what_had_come(self) -> None:
        _, events = receive(stream_of(created(), added(0, message()), text_delta("Hel")))
        with pytest.raises(UpstreamError) as caught:
            fold(events)
        assert caught.value.partial.choices[0].message.content == "Hel"
        assert caught.value.partial.choices[0].finish_reason is None
