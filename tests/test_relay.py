"""The laws of `ChatRelay`: what goes out is what came in, and what it came to is read right."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltawire import ChatRelay, ChatStream, Chunk, Done, Event, Failure, Usage, fold
from deltawire.chat_input import told_as_stream
from deltawire.errors import LocalProtocolError
from deltawire.stream import State
from deltawire.testing import Answer, Completed, FunctionCall, Incomplete, Reasoning, write_stream
from deltawire.testing.strategies import hostile_bytes, slicings, streams
from wire import parsed, plain

Json = dict[str, Any]
DATA: Final = st.data()
DONE: Final = b"data: [DONE]\n\n"
ERROR: Final[Json] = {"message": "Too much.", "type": "t", "param": None, "code": "overloaded"}


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> bytes:
    """One frame, as OpenAI writes it."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return sse({**CHUNK, "choices": [choice], **more})


CHUNK: Final[Json] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "gpt-5",
}


def sse(value: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


ROLE: Final = chunk({"role": "assistant", "content": ""})
WORD: Final = chunk({"content": "It rains."})
STOP: Final = chunk(finish="stop")
SPENT: Final[Json] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
USAGE: Final = sse({**CHUNK, "choices": [], "usage": SPENT})
WHOLE: Final = ROLE + WORD + STOP + USAGE + DONE


def relayed(
    pieces: list[bytes], failure: Failure | None = None, **options: Any
) -> tuple[ChatRelay, bytes]:
    relay = ChatRelay(**options)
    out = b"".join([relay.translate(piece) for piece in pieces])
    out += relay.translate_eof() if failure is None else relay.translate_break(failure)
    return relay, out


def events(pieces: list[bytes], **options: Any) -> tuple[ChatRelay, list[Event]]:
    relay = ChatRelay(**options)
    found = [event for piece in pieces for event in relay.receive_data(piece)]
    return relay, [*found, *relay.receive_eof()]


def alone(data: bytes, **options: Any) -> tuple[ChatRelay, bytes]:
    return relayed([data], **options)


@st.composite
def chat_streams(draw: st.DrawFn) -> tuple[bytes, ChatStream]:
    """A chat stream, and the machine that made it."""
    _, _, data = draw(streams())
    machine = ChatStream(include_usage=draw(st.booleans()))
    frames = machine.translate(data) + machine.translate_eof()
    if draw(st.booleans()):
        frames = b": waiting\n\n" + frames
    if draw(st.booleans()):
        # As Python's json writes it.
        frames = frames.replace(b'"finish_reason":null', b'"finish_reason": null')
    return frames.replace(b"\n", draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))), machine


def boundaries(data: bytes) -> set[int]:
    """Where its events end."""
    for blank in (b"\r\n\r\n", b"\r\r", b"\n\n"):
        if blank in data:
            ends = [len(blank)]
            for each in data.split(blank)[:-1]:
                ends.append(ends[-1] + len(each) + len(blank))
            return {0, *(end - len(blank) for end in ends[1:])}
    return {0}


# The laws.


@given(chat_streams(), DATA)
def test_what_goes_out_is_what_came_in_however_it_was_cut(
    stream: tuple[bytes, ChatStream], data: st.DataObject
) -> None:
    frames, machine = stream
    relay, out = relayed(data.draw(slicings(frames)))
    assert relay.end is machine.end
    if machine.failure is None:
        assert out == frames
        assert relay.failure is None
    elif relay.produced_output:
        # Upstream's own words are passed on as they are.
        assert out == frames
    else:
        assert parsed(out) == [machine.failure.to_dict()]
    if machine.failure is not None:
        assert relay.failure is not None
        assert relay.failure.to_dict() == machine.failure.to_dict()


@given(chat_streams(), DATA)
def test_what_is_cut_off_ends_at_an_event_and_in_a_failure(
    stream: tuple[bytes, ChatStream], data: st.DataObject
) -> None:
    frames, machine = stream
    at = data.draw(st.integers(0, len(frames)))
    relay, out = relayed(data.draw(slicings(frames[:at])))
    assert relay.end in (State.COMPLETED, State.INCOMPLETE, State.FAILED)
    if relay.failure is None:
        # The finish was said. What is left of an event, if anything, was left out.
        if frames[:at].startswith(out):
            assert len(out) in boundaries(frames) or frames[:at] == out
        else:
            # One that lacks nothing but its blank line has one now.
            assert out.startswith(frames[:at])
            assert len(frames[:at].rstrip()) + len(b"\r\n\r\n") >= len(frames[:at])
            assert out[at:] in (b"\n", b"\n\n")
            assert len(normal(out)) in boundaries(normal(frames))
        return
    failure = relay.failure.to_wire()
    if out == frames:
        assert machine.failure is not None
        return
    assert out.endswith(failure)
    passed = out.removesuffix(failure)
    assert frames.startswith(passed)
    assert len(passed) in boundaries(frames)
    assert relay.produced_output == bool(passed)
    if machine.failure is None:
        assert relay.failure.code == "upstream_truncated"


@given(chat_streams(), DATA)
def test_it_says_of_the_answer_what_its_maker_said(
    stream: tuple[bytes, ChatStream], data: st.DataObject
) -> None:
    frames, machine = stream
    relay, _ = relayed(data.draw(slicings(frames)))
    if machine.failure is not None:
        return
    reasons = [
        choice["finish_reason"]
        for value in parsed(unadorned(frames))
        if isinstance(value, dict)
        for choice in value["choices"]
        if choice["finish_reason"]
    ]
    assert relay.finish_reasons == {0: reasons[0]}
    assert relay.said_nothing == machine.said_nothing
    if b'"usage":{' in frames:
        assert relay.usage == machine.usage
    assert not relay.wants_close
    assert relay.whole is None


@given(chat_streams(), DATA)
def test_the_events_are_what_can_be_read_from_the_bytes(
    stream: tuple[bytes, ChatStream], data: st.DataObject
) -> None:
    frames, _ = stream
    frames = frames[: data.draw(st.integers(0, len(frames)) | st.just(len(frames)))]
    pieces = data.draw(slicings(frames))
    one, out = relayed(pieces)
    other, found = events(pieces)
    assert (one.end, one.usage, one.failure) == (other.end, other.usage, other.failure)
    # Without `usage`, or with a null in its place, a chunk is the same.
    assert without_nulls(plain(found)) == without_nulls(parsed(unadorned(out)))


def normal(frames: bytes) -> bytes:
    """The frames with LF for their line ends."""
    return frames.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def unadorned(frames: bytes) -> bytes:
    """The frames with LF for their line ends, and without the comment."""
    return normal(frames).replace(b": waiting\n\n", b"")


def without_nulls(values: list[Any]) -> list[Any]:
    return [
        {k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each
        for each in values
    ]


@given(hostile_bytes() | st.binary(max_size=200), DATA)
def test_whatever_comes_in_it_ends_once_and_the_slicing_does_not_matter(
    hostile: bytes, data: st.DataObject
) -> None:
    hostile = data.draw(st.sampled_from([b"", ROLE, ROLE + WORD])) + hostile
    hostile = hostile.replace(b"response.", b"").replace(b'"type"', b'"choices"')
    whole, out = alone(hostile)
    sliced, same = relayed(data.draw(slicings(hostile)))
    assert out == same
    assert (whole.end, whole.failure) == (sliced.end, sliced.failure)
    assert whole.state is State.CLOSED
    assert events([hostile])[0].end is whole.end


# The commit point.


def test_nothing_is_handed_out_before_there_is_output() -> None:
    relay = ChatRelay()
    for early in (b": waiting\n\n", ROLE, chunk({"content": None}), chunk({"tool_calls": []})):
        assert relay.translate(early) == b""
    assert not relay.produced_output
    assert (
        relay.translate(WORD)
        == b": waiting\n\n" + ROLE + chunk({"content": None}) + chunk({"tool_calls": []}) + WORD
    )
    assert relay.produced_output
    assert relay.translate(b": waiting\n\n") == b": waiting\n\n"


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"refusal": "no"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": ""}}]},
        {"audio": {"id": "a"}},
        {"content": [{"type": "thinking"}]},
    ],
)
def test_whatever_a_client_could_use_is_output(delta: Json) -> None:
    relay = ChatRelay()
    relay.translate(ROLE)
    assert relay.translate(chunk(delta)) == ROLE + chunk(delta)


def test_a_comment_is_no_event_and_a_role_is_one() -> None:
    relay = ChatRelay()
    relay.translate(b": waiting\n\n\ndata: none\n\ndata:\n\n")
    assert relay.state is State.IDLE
    relay.translate(ROLE)
    assert str(relay.state) == str(State.CREATED)
    relay.translate(WORD)
    assert str(relay.state) == str(State.STREAMING)


def test_an_event_is_handed_out_with_its_last_byte_and_not_before() -> None:
    relay = ChatRelay()
    relay.translate(ROLE + WORD)
    assert relay.translate(WORD[:-1]) == b""
    assert relay.translate(WORD[-1:]) == WORD
    assert relay.translate(WORD + WORD[:9]) == WORD
    assert relay.translate(WORD[9:] + STOP) == WORD + STOP


# The end.


def test_an_answer_is_whole_with_its_finish_or_with_done() -> None:
    for data in (WHOLE, ROLE + WORD + DONE, ROLE + WORD + STOP):
        relay, out = alone(data)
        assert (relay.end, out) == (State.COMPLETED, data)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("data", [WHOLE, ROLE + WORD + STOP])
def test_the_last_event_gets_the_blank_line_that_it_lacks(data: bytes, line_end: bytes) -> None:
    """A client that goes by the standard would not read it."""
    for end in (b"", line_end, 2 * line_end):
        sent = data.removesuffix(b"\n\n").replace(b"\n", line_end) + end
        for pieces in ([sent], [sent[:-1], sent[-1:]]):
            relay, out = relayed(pieces)
            assert (relay.end, normal(out)) == (State.COMPLETED, data)
            assert out.startswith(sent)


def test_after_a_finish_half_an_event_is_left_out() -> None:
    for half in (USAGE[:-9], b"data: [DO", b": by"):
        relay, out = alone(ROLE + WORD + STOP + half)
        assert (relay.end, out) == (State.COMPLETED, ROLE + WORD + STOP)


def test_what_comes_after_the_end_is_not_passed_on() -> None:
    relay = ChatRelay()
    assert relay.translate(WHOLE + WORD + DONE) == WHOLE
    assert relay.translate(WORD) == b""
    assert relay.translate_eof() == b""
    with pytest.raises(LocalProtocolError):
        relay.translate(WORD)
    with pytest.raises(LocalProtocolError):
        relay.translate_eof()


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_short_is_incomplete_even_with_nothing_in_it(reason: str) -> None:
    relay, out = alone(ROLE + chunk(finish=reason) + DONE)
    assert relay.end is State.INCOMPLETE
    assert (relay.said_nothing, relay.produced_output) == (False, True)
    assert out == ROLE + chunk(finish=reason) + DONE


def test_an_answer_with_nothing_in_it_says_so() -> None:
    relay, out = alone(ROLE + STOP + USAGE + DONE)
    assert (relay.end, relay.said_nothing) == (State.COMPLETED, True)
    assert out == ROLE + STOP + USAGE + DONE


def test_a_done_with_nothing_before_it_is_no_answer() -> None:
    for data in (DONE, ROLE + DONE):
        relay, out = alone(data)
        assert relay.failure is not None
        assert relay.failure.code == "upstream_truncated"
        assert out == relay.failure.to_wire()


def test_without_done_all_choices_have_to_be_finished() -> None:
    def of(index: int, finish: str | None = None) -> bytes:
        delta = {} if finish else {"content": "a"}
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return sse({**CHUNK, "choices": [choice]})

    both = of(0) + of(1) + of(0, "stop")
    assert alone(both, choices=2)[0].end is State.FAILED
    relay, out = alone(both + of(1, "length"), choices=2)
    assert (relay.end, out) == (State.INCOMPLETE, both + of(1, "length"))
    assert relay.finish_reasons == {0: "stop", 1: "length"}
    # One event may have both.
    pair: list[Json] = [
        {"index": at, "delta": {}, "finish_reason": end} for at, end in ((0, None), (1, "a"))
    ]
    relay, _ = alone(of(0) + sse({**CHUNK, "choices": pair}) + of(0, "stop"), choices=2)
    assert relay.finish_reasons == {0: "stop", 1: "a"}


def test_who_knows_why_the_bytes_end_may_say_so() -> None:
    broken = Failure("It broke.", code="upstream_truncated")
    relay, out = relayed([ROLE + WORD + WORD[:20]], broken)
    assert (relay.failure, out) == (broken, ROLE + WORD + broken.to_wire())
    relay, out = relayed([WHOLE[:-2]], broken)
    assert (relay.failure, out) == (None, WHOLE)
    machine = ChatRelay()
    assert [*machine.receive_data(b'{"a'), *machine.receive_break(broken)] == [broken]


def test_what_came_instead_of_a_stream_is_shown() -> None:
    relay, _ = alone(b"<html>no</html>")
    assert relay.failure is not None
    assert "begins with b'<html>no</html>'" in relay.failure.message
    relay, _ = alone(b"")
    assert relay.failure is not None
    assert relay.failure.message.endswith("it is empty")
    relay, _ = alone(b"data: your key is sk-very-secret, is it\n\n" * 2, secrets=["sk-very-secret"])
    assert relay.failure is not None
    assert "sk-" not in relay.failure.message
    cut_off = b"data: " + b"x" * 50 + b" sk-very-secret"
    relay, _ = alone(cut_off, secrets=["sk-very-secret"])
    assert relay.failure is not None
    assert "sk-" not in relay.failure.message


# Errors.


@pytest.mark.parametrize(
    ("frame", "message", "code"),
    [
        (sse({"error": ERROR}), "Too much.", "overloaded"),
        (sse({"error": "Too much."}), "Too much.", None),
        (b"event: error\n" + sse(ERROR), "Too much.", "overloaded"),
        (sse({"object": "error", "message": "Too much.", "code": 400}), "Too much.", "400"),
        (sse({**CHUNK, "error": ERROR, "choices": []}), "Too much.", "overloaded"),
        (
            chunk(finish="error"),
            "the upstream's answer ended with finish_reason 'error'",
            "upstream_invalid_response",
        ),
    ],
)
def test_an_error_is_passed_on_as_it_is_and_is_the_end(
    frame: bytes, message: str, code: str | None
) -> None:
    relay, out = alone(ROLE + WORD + frame + DONE)
    assert out == ROLE + WORD + frame
    assert relay.end is State.FAILED
    assert relay.failure is not None
    assert (relay.failure.message, relay.failure.code) == (message, code)
    other, found = events([ROLE + WORD, frame + DONE])
    assert found[-1] == relay.failure == other.failure
    # Before any output, nothing was handed out.
    relay, out = alone(ROLE + frame)
    assert not relay.produced_output
    assert relay.failure is not None
    assert relay.failure.message == message


def test_an_error_without_its_blank_line_is_told_with_one() -> None:
    relay, out = alone(ROLE + WORD + sse({"error": ERROR})[:-2])
    assert relay.failure is not None
    assert out == ROLE + WORD + relay.failure.to_wire()
    assert relay.failure.code == "overloaded"


def test_an_error_that_is_null_is_none() -> None:
    for frame in (chunk({"content": "a"}, error=None), chunk({"content": "a"}, error={})):
        assert alone(ROLE + frame + STOP + DONE)[1] == ROLE + frame + STOP + DONE


def test_an_error_with_a_secret_in_it_is_told_without() -> None:
    frame = sse({"error": {**ERROR, "message": "The key sk-very-secret is wrong."}})
    _, out = alone(ROLE + WORD + frame, secrets=["sk-very-secret", ""])
    assert parsed(out.removeprefix(ROLE + WORD)) == [
        {"error": {**ERROR, "message": "The key *** is wrong."}}
    ]


def test_whose_fault_an_error_is_is_known() -> None:
    for code, retryable in (("context_length_exceeded", False), ("server_error", True)):
        relay, _ = alone(sse({"error": {"message": "No.", "code": code}}))
        assert relay.failure is not None
        assert relay.failure.retryable is retryable


# What an event may hold that is not what it seems.


def test_words_that_look_like_an_end_are_none() -> None:
    for text in ("[DONE]", '"finish_reason":"stop"', '{"error":{"message":"x"}}', "a\n\nb\r\n"):
        word = chunk({"content": text})
        relay, out = alone(ROLE + WORD + word + word)
        assert relay.failure is not None
        assert relay.failure.code == "upstream_truncated"
        assert out == ROLE + WORD + word + word + relay.failure.to_wire()


def test_of_texts_that_are_no_unicode_the_rest_is_read() -> None:
    odd = STOP.replace(b'"delta":{}', b'"delta":{"content":"\\ud83d"}')
    broken = STOP.replace(b'"delta":{}', b'"delta":{"content":"\xff"}')
    for frame in (odd, broken):
        relay, out = alone(ROLE + frame)
        assert (relay.end, out) == (State.COMPLETED, ROLE + frame)
        assert isinstance(events([ROLE + frame])[1][1], Chunk)


@pytest.mark.parametrize(
    "value",
    [
        {"choices": None},
        {"choices": {}},
        {"choices": [None, 1, []]},
        {"choices": [{"index": None, "delta": None, "finish_reason": 7}]},
        {"choices": [{"index": "a", "delta": [], "usage": 3}]},
        {"usage": 3},
        {"usage": {"prompt_tokens": "a", "completion_tokens": True, "total_tokens": -1}},
        {"usage": {"prompt_tokens_details": [], "completion_tokens_details": None}},
        {"created": "now", "id": 3, "model": None, "choices": [{"delta": {"content": 3}}]},
    ],
)
def test_what_is_odd_is_passed_on_and_harms_nothing(value: Json) -> None:
    frame = sse(value)
    relay, out = alone(ROLE + WORD + frame + STOP + DONE)
    assert (relay.end, out) == (State.COMPLETED, ROLE + WORD + frame + STOP + DONE)
    assert relay.usage is None
    _, found = events([ROLE + WORD + frame + STOP + DONE])
    assert found[-1] == Done()


def test_chunks_are_read_as_far_as_they_can_be() -> None:
    calls: list[Json] = [
        {"function": {"name": "look", "arguments": "{}"}, "id": "call_1", "type": "function"},
        {"function": {"name": "look", "arguments": 3}, "id": "call_2"},
    ]
    odd = {
        "choices": [
            {
                "index": 1.0,
                "delta": {"role": "model", "content": "a", "tool_calls": calls, "extra": 1},
                "finish_reason": "function_call",
                "logprobs": {"content": [{"token": 3}]},
            },
            {"delta": {"tool_calls": 3}, "finish_reason": "end_turn"},
        ],
        "usage": {**SPENT, "prompt_tokens_details": {"cached_tokens": 1}},
    }
    _, (first, *_) = events([sse(odd)])
    assert isinstance(first, Chunk)
    assert first.to_dict() == {
        "id": "",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "",
        "choices": [
            {
                "index": 1,
                "delta": {
                    "content": "a",
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "look", "arguments": "{}"},
                        },
                        {"index": 1, "id": "call_2"},
                    ],
                },
                "finish_reason": "tool_calls",
            },
            {"index": 1, "delta": {}, "finish_reason": "stop"},
        ],
        "usage": {**SPENT, "prompt_tokens_details": {"cached_tokens": 1}},
    }


def test_usage_is_read_wherever_it_is() -> None:
    spent = Usage(3, 2, 5)
    moonshot = {"index": 0, "delta": {}, "finish_reason": "stop", "usage": SPENT}
    partial = {"prompt_tokens": 3, "completion_tokens": 2}
    for data in (
        STOP + USAGE,
        chunk(finish="stop", usage=SPENT),
        sse({**CHUNK, "choices": [moonshot]}),
        chunk(finish="stop", usage=partial),
        # Of several, the last counts.
        chunk({}, usage={**SPENT, "total_tokens": 9})[:-2] + b"\n\n" + STOP + USAGE,
    ):
        assert alone(ROLE + WORD + data + DONE)[0].usage == spent
    assert alone(ROLE + WORD + STOP + DONE)[0].usage is None


# Bounds.


def test_an_event_over_the_limit_is_a_failure_wherever_it_is_cut() -> None:
    large = chunk({"content": "drip" * 100})
    size = len(large)
    for early in (b"", ROLE + WORD):
        for pieces in ([early + large], [early, large], [early, *[large[:9], large[9:]]]):
            _, out = relayed([*pieces, DONE], max_event_size=size)
            assert out == early + large + DONE
            relay, out = relayed([*pieces, DONE], max_event_size=size - 1)
            assert relay.failure is not None
            assert (relay.failure.code, relay.failure.retryable) == ("event_too_large", False)
            assert out == early + relay.failure.to_wire()
    # Before it has ended.
    relay = ChatRelay(max_event_size=100)
    assert relay.translate(b"data: " + b"x" * 95) == relay.failure.to_wire()  # type: ignore[union-attr]
    assert relay.translate(b"x" * 1000) == b""


def test_what_is_held_back_is_bounded() -> None:
    relay = ChatRelay(max_event_size=1000)
    out = [relay.translate(ROLE) for _ in range(10)]
    assert relay.failure is not None
    assert relay.failure.code == "event_too_large"
    assert b"".join(out) == relay.failure.to_wire()
    assert len(b"".join(relay._held)) < 2000


def test_a_body_over_the_limit_is_a_failure() -> None:
    for start in (b"{", b" "):
        relay = ChatRelay(max_event_size=100)
        out = relay.translate(start + b" " * 50) + relay.translate(b" " * 50)
        assert relay.failure is not None
        assert relay.failure.code == "event_too_large"
        assert out + relay.translate_eof() == relay.failure.to_wire()


# Bodies that are no stream.


def body(message: Json | None = None, finish: str | None = "stop", **more: Any) -> Json:
    said = {"role": "assistant", "content": "It rains.", "refusal": None, **(message or {})}
    choice = {"index": 0, "message": said, "finish_reason": finish, "logprobs": None}
    return {
        **CHUNK,
        "object": "chat.completion",
        "choices": [choice],
        "usage": SPENT,
        "system_fingerprint": "fp_1",
        **more,
    }


@given(
    slicings(json.dumps(body(), indent=1).encode()), st.sampled_from([b"", b"\n ", b"\xef\xbb\xbf"])
)
@settings(max_examples=50)
def test_a_completion_is_handed_out_byte_for_byte(pieces: list[bytes], blank: bytes) -> None:
    data = blank + b"".join(pieces)
    relay, _ = events([blank, *pieces])
    assert relay.whole is not None
    assert relay.whole.to_json() == data
    assert relay.whole.to_dict() == body()
    assert (relay.end, relay.usage) == (State.COMPLETED, Usage(3, 2, 5))
    assert relay.whole.choices[0].message.content == "It rains."
    assert relay.whole.usage == relay.usage


def test_a_completion_for_a_client_that_streams_is_told_as_a_stream() -> None:
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        for n in range(2)
    ]
    logprobs: Json = {"content": [], "refusal": None}
    value = body({"tool_calls": calls, "reasoning_content": "Hm."}, "tool_calls")
    value["choices"][0]["logprobs"] = logprobs
    relay, out = alone(json.dumps(value).encode(), include_usage=True)
    assert relay.produced_output
    frames = parsed(out)
    assert frames.pop() == "[DONE]"
    assert [frame["choices"] for frame in frames] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        [
            {
                "index": 0,
                "delta": {"content": "It rains.", "reasoning_content": "Hm."},
                "finish_reason": None,
                "logprobs": logprobs,
            }
        ],
        *(
            [{"index": 0, "delta": {"tool_calls": [{**call, "index": n}]}, "finish_reason": None}]
            for n, call in enumerate(calls)
        ),
        [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}],
        [],
    ]
    assert {frame["object"] for frame in frames} == {"chat.completion.chunk"}
    assert {frame["system_fingerprint"] for frame in frames} == {"fp_1"}
    assert [frame.get("usage") for frame in frames] == [None] * 5 + [SPENT]
    _, found = events([json.dumps(value).encode()])
    message = fold(found).choices[0].message
    assert (message.content, message.reasoning_content) == ("It rains.", "Hm.")
    assert [call.id for call in message.tool_calls or []] == ["call_0", "call_1"]


def test_what_is_odd_in_a_completion_is_told_as_far_as_it_goes() -> None:
    odd = {"choices": [{"message": {"content": None, "tool_calls": 3}}, {"message": 3}]}
    assert [frame["choices"] for frame in parsed(told_as_stream(odd, include_usage=True))[:-1]] == [
        [{"index": at, "delta": delta, "finish_reason": finish}]
        for at in range(2)
        for delta, finish in (({"role": "assistant", "content": ""}, None), ({}, "stop"))
    ]


def test_an_empty_completion_says_so_and_one_cut_short_too() -> None:
    relay, _ = alone(json.dumps(body({"content": ""})).encode())
    assert (relay.end, relay.said_nothing) == (State.COMPLETED, True)
    relay, _ = alone(json.dumps(body({"content": ""}, "length")).encode())
    assert (relay.end, relay.said_nothing) == (State.INCOMPLETE, False)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b'{"error":{"message":"Busy.","code":"c"}}', "c", "Busy."),
        (b'{"object":"error","message":"Busy.","code":"c"}', "c", "Busy."),
        (b'{"object":"response"}', "upstream_invalid_response", "is no completion"),
        (b'{"choices":[]}', "upstream_invalid_response", "is no completion"),
        (b'{"choices":[{"message":{', "upstream_truncated", "is no JSON"),
    ],
)
def test_a_body_that_is_no_completion_is_a_failure(data: bytes, code: str, message: str) -> None:
    relay, out = alone(data)
    assert relay.failure is not None
    assert relay.failure.code == code
    assert message in relay.failure.message
    assert out == relay.failure.to_wire()
    assert not relay.produced_output


# Answers as they are made here.


@pytest.mark.parametrize(
    "answer",
    [
        Answer("It rains."),
        Answer((Reasoning("Hm."), "It rains.", FunctionCall("look", '{"at":"Rome"}'))),
        Answer("It rains and", Incomplete()),
        Answer((), Completed()),
    ],
)
def test_a_relayed_answer_folds_to_the_same_completion(answer: Answer) -> None:
    machine = ChatStream(include_usage=True)
    made = [*machine.receive_data(write_stream(answer)), *machine.receive_eof()]
    relay, found = events([b"".join(event.to_wire() for event in made)])
    assert fold(found).to_dict() == fold(made).to_dict()
    assert relay.end is machine.end
