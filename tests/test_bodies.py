"""Bodies that are no event stream, or no good one: what they are taken for, and what is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltawire import ChatStream, Done, Failure, State, UpstreamError, completion_from_response
from wire import (
    Json,
    added,
    answer,
    call,
    created,
    deltas,
    message,
    parsed,
    plain,
    receive,
    stream_of,
    terminal,
    text_delta,
)

RESPONSE: Json = {
    "object": "response",
    "id": "resp_1",
    "status": "completed",
    "model": "gpt-5",
    "created_at": 1_700_000_000,
    "output": [message("Hello")],
}


def failure_of(data: bytes, **options: Any) -> Failure:
    _, events = receive(data, **options)
    assert isinstance(events[-1], Failure)
    return events[-1]


@pytest.mark.parametrize("lead", [b"", b"\n", b" \r\n\t", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_response_object_is_its_own_terminal_snapshot(lead: bytes, size: int) -> None:
    body = lead + json.dumps(RESPONSE, indent=1).encode()
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    stream, other = ChatStream(), ChatStream()
    events = [event for piece in pieces for event in stream.receive_data(piece)]
    assert events == []
    events = stream.receive_eof()
    assert deltas(events)[1] == {"content": "Hello"}
    assert isinstance(events[-1], Done)
    frames = b"".join(other.translate(piece) for piece in pieces) + other.translate_eof()
    assert parsed(frames) == plain(events)


@pytest.mark.parametrize("status", [None, "complete", "completed"])
def test_a_response_object_with_an_odd_status_is_complete(status: str | None) -> None:
    completion = completion_from_response({**RESPONSE, "status": status})
    assert completion.choices[0].finish_reason == "stop"
    assert json.loads(completion.to_json()) == completion.to_dict()


def test_a_response_object_without_its_kind_is_known_by_its_output() -> None:
    body = {key: value for key, value in RESPONSE.items() if key != "object"}
    assert completion_from_response(body).choices[0].message.content == "Hello"


def test_a_response_object_that_is_not_finished_is_a_failure() -> None:
    with pytest.raises(UpstreamError, match="in_progress") as caught:
        completion_from_response({**RESPONSE, "status": "in_progress"})
    assert caught.value.code == "upstream_truncated"


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ({"error": {"message": "No.", "code": 429}}, "No.", "429"),
        ({"error": "No."}, "No.", None),
        ({"error": {"code": True}}, "the upstream reported an error (None)", None),
        ({"error": ["odd"]}, "the upstream reported an error (None)", None),
        ({"type": "error", "message": "No.", "code": "x"}, "No.", "x"),
        ({**RESPONSE, "status": "failed", "error": {"message": "No."}}, "No.", None),
        ({"type": "response.failed", "response": {"error": {"message": "No."}}}, "No.", None),
    ],
)
def test_an_error_object_is_a_failure(body: Json, message: str, code: str | None) -> None:
    failure = failure_of(json.dumps(body).encode())
    assert (failure.message, failure.code) == (message, code)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b"\r\n", "it is empty"),
        (b"<html><body>Bad Gateway</body></html>", "b'<html><body>Bad Gateway"),
        (b'{"detail":"Not Found"}', '{"detail":"Not Found"}'),
        (b'{"object":"respon', '{"object":"respon'),
        (b"x" * 1000, "'" + "x" * 64 + "'"),
    ],
)
def test_a_body_that_is_neither_is_shown_in_the_failure(body: bytes, said: str) -> None:
    whole = failure_of(body)
    assert said in whole.message
    assert whole.code == "upstream_truncated"
    stream = ChatStream()
    for at in range(len(body)):
        assert stream.receive_data(body[at : at + 1]) == []
    assert stream.receive_eof() == [whole]


def test_a_stream_that_begins_like_json_is_still_a_stream() -> None:
    data = b"{}\n\n" + stream_of(created(), added(0, message()), text_delta("Hi"), terminal())
    assert answer(data)["content"] == "Hi"


def test_a_json_body_over_the_limit_is_a_failure() -> None:
    body = json.dumps({**RESPONSE, "output": [message("x" * 300)]}).encode()
    assert failure_of(body, max_event_size=256).code == "event_too_large"
    stream = ChatStream(max_event_size=256)
    said = [event for at in range(len(body)) for event in stream.receive_data(body[at : at + 1])]
    assert [type(event) for event in said] == [Failure]
    assert stream.receive_eof() == []


@pytest.mark.parametrize(
    "data",
    [
        b"data: 0123\ndata: 4567",
        b'{"x":1}\ndata: 012345678\n',
        b'{"x":\ndata: 01234\ndata: 5678',
    ],
)
def test_the_limit_holds_at_the_end_of_the_bytes_too(data: bytes) -> None:
    codes = {failure_of(data, max_event_size=size).code for size in range(10, 16)}
    assert "event_too_large" in codes


def test_a_bare_response_in_an_event_without_a_type() -> None:
    assert answer(b"data: " + json.dumps(RESPONSE).encode() + b"\n\n")["content"] == "Hello"


def test_an_event_that_is_nothing_is_counted() -> None:
    stream, _ = receive(b"data: {}\n\ndata:\n\ndata: nonsense\n\ndata: []\n\n: ping\n\n")
    assert stream.ignored_events == 3
    assert stream.skipped_events == 2


@pytest.mark.parametrize("name", ["response.created", "response.queued", "response.in_progress"])
@pytest.mark.parametrize(
    ("status", "end"),
    [("completed", "stop"), ("incomplete", "length"), ("failed", None), ("cancelled", None)],
)
def test_a_status_that_says_more_than_the_events_name(
    name: str, status: str, end: str | None
) -> None:
    first = created(status=status, output=[message("Hello")], error={"message": "No."})
    stream = ChatStream()
    events = stream.receive_data(stream_of({**first, "type": name}))
    if end is None:
        assert isinstance(events[-1], Failure)
    else:
        # The output may still come, so the end is not said before upstream stops.
        assert events == []
        assert deltas(stream.receive_eof())[-2:] == [{"content": "Hello"}, {}]
        assert answer(stream_of(first) + b"data: [DONE]\n\n")["finish_reason"] == end


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("completed", "incomplete", "length"),
        ("incomplete", "completed", "stop"),
        ("done", "incomplete", "length"),
        ("completed", "in_progress", "stop"),
        ("failed", "completed", "stop"),
    ],
)
def test_a_terminal_event_ends_as_its_status_says(name: str, status: str, reason: str) -> None:
    end = {"type": f"response.{name}", "response": {"status": status}}
    assert answer(stream_of(created(), end))["finish_reason"] == reason


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_tokens": 1, "output_tokens": 2}, (1, 2, 3)),
        ({"input_tokens": 1, "total_tokens": 3}, (1, 2, 3)),
        ({"output_tokens": 2, "total_tokens": 3}, (1, 2, 3)),
        ({"input_tokens": 1.5, "output_tokens": 2}, None),
        ({"input_tokens": 1}, None),
        ({"input_tokens": -1, "output_tokens": 2}, None),
        ({"input_tokens": 10**30, "output_tokens": 2}, None),
        ({"input_tokens": 5, "total_tokens": 3}, None),
        (None, None),
        ([], None),
    ],
)
def test_usage_is_never_invented(given: Any, said: tuple[int, int, int] | None) -> None:
    stream, events = receive(stream_of(created(), terminal(usage=given)), include_usage=True)
    usage = stream.usage
    if said is None:
        assert usage is None
        assert len(deltas(events)) == len(events) - 1
    else:
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == said


def test_usage_has_only_the_details_that_were_given() -> None:
    given = {
        "input_tokens": 1,
        "output_tokens": 2,
        "input_tokens_details": {"cache_write_tokens": 1, "cached_tokens": None},
        "output_tokens_details": {"reasoning_tokens": "x"},
    }
    stream, _ = receive(stream_of(created(), terminal(usage=given)))
    assert stream.usage is not None
    assert stream.usage.prompt_tokens_details is not None
    assert stream.usage.prompt_tokens_details.cached_tokens is None
    assert stream.usage.prompt_tokens_details.cache_write_tokens == 1
    assert stream.usage.completion_tokens_details is None
    stream, _ = receive(stream_of(created(), terminal(usage={**given, "input_tokens_details": {}})))
    assert stream.usage is not None
    assert stream.usage.prompt_tokens_details is None


def state_of(stream: ChatStream) -> State:
    return stream.state


def test_what_can_be_read_at_any_time() -> None:
    stream = ChatStream(default_model="grok")
    assert state_of(stream) is State.IDLE
    assert not stream.produced_output
    stream.receive_data(stream_of(created(model=None)))
    assert state_of(stream) is State.CREATED
    assert (stream.id, stream.created, stream.model) == ("chatcmpl-1", 1_700_000_000, "grok")
    stream.receive_data(stream_of(added(0, call())))
    assert state_of(stream) is State.STREAMING
    assert stream.produced_output
    # Too late: the chunks that were said have another model.
    stream.receive_data(stream_of({**created(), "type": "response.in_progress"}))
    assert stream.model == "grok"


def test_fields_of_the_wrong_type_cost_only_themselves() -> None:
    odd: list[Json] = [
        text_delta("a", item_id=5),
        text_delta("b", output_index="0"),
        text_delta("c", content_index=None, logprobs=5),
        text_delta("d", logprobs=[5, {"token": "d", "logprob": 10**400}, {"logprob": True}]),
        text_delta("e", obfuscation=[1]),
        text_delta("f", code={"no": "code"}),
    ]
    item = message("abcdef")
    item["content"] = [5, None, *item["content"], {"type": 5}]
    data = stream_of(created(created_at="x"), added(0, message()), *odd, terminal(output=[item]))
    stream, _ = receive(data)
    assert answer(data)["content"] == "abcdef"
    assert stream.divergences == []
    assert stream.created == 0


def test_invalid_utf8_becomes_the_replacement_character() -> None:
    delta = stream_of(text_delta("@")).replace(b"@", b"a\xff\xc3")
    data = stream_of(created(), added(0, message())) + delta + stream_of(terminal())
    assert answer(data)["content"] == "a\ufffd\ufffd"


def test_what_is_no_json_is_no_event() -> None:
    for value in (b"NaN", b"Infinity", b"1" * 5000, b"[" * 5000):
        bad = stream_of(text_delta("@")).replace(b'"@"', value)
        stream, _ = receive(stream_of(created()) + bad + stream_of(terminal()))
        assert stream.skipped_events == 1


def test_lone_surrogates_outside_of_deltas_are_replaced() -> None:
    data = stream_of(
        created(id="resp_\ud83d", model="m\ud83d\ude00"),
        added(0, call('{"\ud83d":["\ude00"]}')),
        terminal(),
    )
    said = answer(data)
    assert said["tool_calls"][0]["function"]["arguments"] == '{"\ufffd":["\ufffd"]}'
    nested = {**call(), "arguments": {"\ud83d": ["\ude00", 1]}}
    said = answer(stream_of(created(), added(0, nested), terminal()))
    assert said["tool_calls"][0]["function"]["arguments"] == '{"\ufffd":["\ufffd",1]}'
