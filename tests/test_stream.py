"""The laws of `ChatStream`: DESIGN's invariants over generated streams and over hostile bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from deltawire import ChatStream, Chunk, Done, Event, Failure, LocalProtocolError, State
from deltawire.stream import TRANSITIONS
from deltawire.testing import Answer, Expected, Habits, Truncated, expected, write_frames
from deltawire.testing.strategies import (
    answers,
    habits,
    hostile_bytes,
    readable,
    slicings,
    streams,
    texts,
)
from wire import (
    added,
    call,
    created,
    deltas,
    done,
    frame,
    message,
    parsed,
    plain,
    receive,
    stream_of,
    terminal,
    text_delta,
)

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "include_usage": st.booleans(),
        "client_tools": st.lists(st.sampled_from(["a", "b", "x_keyword_search"])),
        "reasoning": st.sampled_from(["reasoning_content", "reasoning", None]),
        "reasoning_details": st.booleans(),
        "commentary": st.sampled_from(["reasoning", "content", "drop"]),
        "images": st.sampled_from(["final", "partial", None]),
        "stop": st.lists(texts(3), max_size=2),
        "max_event_size": st.sampled_from([16, 64, 300, 2000]),
    },
)

# For laws that differ from another one only in how a stream ends.
FEWER = settings(max_examples=settings().max_examples // 3)


def received(pieces: list[bytes], **options: Any) -> tuple[ChatStream, list[Event]]:
    stream = ChatStream(**options)
    events = [event for piece in pieces for event in stream.receive_data(piece)]
    return stream, events + stream.receive_eof()


def translated(pieces: list[bytes], **options: Any) -> tuple[ChatStream, bytes]:
    stream = ChatStream(**options)
    frames = b"".join([stream.translate(piece) for piece in pieces])
    return stream, frames + stream.translate_eof()


def joined(events: list[Event]) -> dict[str, Any]:
    """All the deltas of a stream, put together by a reader that knows nothing of the stream."""
    shown: dict[str, Any] = {
        "content": "",
        "refusal": "",
        "reasoning": "",
        "tool_calls": [],
        "annotations": [],
        "images": [],
        "logprobs": [],
        "finish_reason": None,
        "usage": None,
    }
    for event in events:
        if not isinstance(event, Chunk):
            continue
        value = event.to_dict()
        shown["usage"] = value.get("usage") or shown["usage"]
        for choice in value["choices"]:
            delta = choice["delta"]
            shown["content"] += delta.get("content", "")
            shown["refusal"] += delta.get("refusal", "")
            shown["reasoning"] += delta.get("reasoning_content", "")
            for each in delta.get("tool_calls", []):
                if "id" in each:
                    assert each["index"] == len(shown["tool_calls"])
                    shown["tool_calls"].append([each["id"], each["function"]["name"], ""])
                assert each["index"] == len(shown["tool_calls"]) - 1, "calls are interleaved"
                shown["tool_calls"][-1][2] += each["function"]["arguments"]
            shown["annotations"] += delta.get("annotations", [])
            shown["images"] += delta.get("images", [])
            for token in choice.get("logprobs", {"content": []})["content"]:
                shown["logprobs"].append({k: v for k, v in token.items() if k != "top_logprobs"})
            assert not (choice["finish_reason"] and shown["finish_reason"])
            shown["finish_reason"] = choice["finish_reason"] or shown["finish_reason"]
    shown["tool_calls"] = [tuple(each) for each in shown["tool_calls"]]
    return shown


def check_shown(stream: ChatStream, events: list[Event], promised: Expected) -> None:
    shown = joined(events)
    if promised.partial:
        assert isinstance(events[-1], Failure)
        for key in ("content", "refusal"):
            assert getattr(promised, key).startswith(shown[key])
        return
    for key in ("content", "refusal", "reasoning", "finish_reason"):
        assert shown[key] == getattr(promised, key), key
    for key in ("tool_calls", "images", "logprobs"):
        assert shown[key] == list(getattr(promised, key)), key
    citations = sorted(json.dumps(each["url_citation"]) for each in shown["annotations"])
    assert citations == sorted(json.dumps(each["url_citation"]) for each in promised.annotations)
    assert stream.divergences == []
    assert (stream.usage is None) == (promised.usage is None)
    if promised.failure is None:
        assert isinstance(events[-1], Done)
        assert shown["usage"] == promised.usage
    else:
        failure = events[-1]
        assert isinstance(failure, Failure)
        assert failure.code == promised.failure.code
        if promised.failure.message is not None:
            assert failure.message == promised.failure.message


@given(streams())
def test_nothing_is_lost_doubled_or_invented(case: tuple[Answer, Habits, bytes]) -> None:
    answer, _, data = case
    note(data.decode(errors="replace"))
    stream, events = received([data], include_usage=True)
    check_shown(stream, events, expected(answer))


@given(streams(), OPTIONS, st.data())
def test_slicing_does_not_matter(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any], draw: st.DataObject
) -> None:
    _, _, data = case
    pieces = draw.draw(slicings(data))
    whole, events = received([data], **options)
    sliced, same = received(pieces, **options)
    assert same == events
    assert sliced.divergences == whole.divergences
    assert sliced.ignored_events == whole.ignored_events


@given(streams(), OPTIONS, st.data())
def test_both_renderings_say_the_same(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any], draw: st.DataObject
) -> None:
    _, _, data = case
    pieces = draw.draw(slicings(data))
    one, events = received(pieces, **options)
    other, frames = translated(pieces, **options)
    assert parsed(frames) == plain(events)
    for name in ("state", "usage", "failure", "divergences", "ignored_events", "wants_close"):
        assert getattr(one, name) == getattr(other, name), name


@given(streams(), OPTIONS)
def test_one_event_per_call_says_the_same(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any]
) -> None:
    answer, ways, _ = case
    pieces = write_frames(answer, ways)
    _, events = received(pieces, **options)
    assert parsed(translated(pieces, **options)[1]) == plain(events)


@given(hostile_bytes(), OPTIONS, st.data())
def test_every_byte_string_is_a_legal_call(
    data: bytes, options: dict[str, Any], draw: st.DataObject
) -> None:
    pieces = draw.draw(slicings(data))
    whole, events = received([data], **options)
    _, same = received(pieces, **options)
    assert same == events
    _, frames = translated(pieces, **options)
    assert parsed(frames) == plain(events)
    check_manners(events, include_usage=options.get("include_usage", False))
    assert whole.state is State.CLOSED


def check_manners(events: list[Event], *, include_usage: bool) -> None:
    """What clients demand of any stream, whatever is said in it (CLIENTS.md 1-10)."""
    *said, end = events
    assert isinstance(end, (Done, Failure)), "exactly one end"
    assert all(isinstance(event, Chunk) for event in said), "and nothing after it"
    chunks = [event.to_dict() for event in said if isinstance(event, Chunk)]
    for event in events:
        event.to_wire().decode()
    assert len({(each["id"], each["created"], each["model"]) for each in chunks}) <= 1
    assert all(each["id"] and each["model"] for each in chunks)
    if chunks:
        first = {"role": "assistant", "content": ""}
        assert chunks[0]["choices"][0]["delta"] == first
    finished = [each for each in chunks for c in each["choices"] if c["finish_reason"]]
    assert len(finished) == (0 if isinstance(end, Failure) else 1)
    opened: list[str] = []
    indexes: dict[str, list[int]] = {}
    for each in chunks[1:]:
        assert ("usage" in each) == include_usage
        for choice in each["choices"]:
            delta = choice["delta"]
            assert "role" not in delta
            assert "" not in delta.values()
            assert None not in delta.values()
            for key in ("reasoning_details", "annotations", "images"):
                indexes.setdefault(key, []).extend(one["index"] for one in delta.get(key, []))
            for one in delta.get("tool_calls", []):
                if "id" in one:
                    assert one["id"]
                    assert one["function"]["name"]
                    opened.append(one["id"])
                assert one["index"] == len(opened) - 1
    assert all(given == list(range(len(given))) for given in indexes.values())
    if isinstance(end, Done):
        tail = chunks[-2:] if chunks[-1]["choices"] == [] else chunks[-1:]
        assert tail[0]["choices"][0]["delta"] == {}
        assert tail[0]["choices"][0]["finish_reason"]


@given(streams(), OPTIONS)
def test_every_stream_has_the_manners_that_clients_demand(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any]
) -> None:
    _, events = received([case[2]], **options)
    check_manners(events, include_usage=options.get("include_usage", False))


@given(streams(), OPTIONS)
def test_reasoning_told_in_whole_changes_nothing_else(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any]
) -> None:
    # What is said between two pieces of content parts them for the search for stop sequences.
    options.pop("stop", None)
    _, without = received([case[2]], **{**options, "reasoning_details": False})
    _, told = received([case[2]], **{**options, "reasoning_details": True})
    rest = [
        event
        for event in told
        if not (
            isinstance(event, Chunk)
            and any(choice.delta.reasoning_details for choice in event.choices)
        )
    ]
    # Who the chunks are of is settled with the first of them, which may be earlier now; and where
    # nothing but reasoning was told before a failure, the role was said for its sake.
    said, other = (
        [getattr(each, "choices", each) for each in events] for events in (rest, without)
    )
    assert said in (other, [said[0], *other])


@given(answers(), habits())
def test_a_delta_is_said_in_the_call_that_brought_it(answer: Answer, ways: Habits) -> None:
    """What a call returns is what the events up to it make, whatever comes after."""
    frames = write_frames(answer, readable(ways, answer))
    stream = ChatStream()
    said: list[Event] = []
    for count, piece in enumerate(frames, 1):
        said += stream.receive_data(piece)
        alone = ChatStream()
        assert alone.receive_data(b"".join(frames[:count])) == said


@given(streams(), st.data())
def test_bytes_that_end_too_early_are_a_failure(
    case: tuple[Answer, Habits, bytes], draw: st.DataObject
) -> None:
    answer, ways, _ = case
    # Whole events, because a last event without its blank line counts.
    frames = write_frames(answer, replace(ways, done_marker=False))
    ends = isinstance(answer.end, Truncated) or frames[-1].startswith(b":")
    sent = draw.draw(st.integers(0, len(frames) if ends else len(frames) - 1))
    stream = ChatStream()
    said = stream.receive_data(b"".join(frames[:sent]))
    rest = stream.receive_eof()
    if any(isinstance(event, Failure | Done) for event in said):
        assert rest == []
    else:
        assert isinstance(rest[-1], Failure)
        assert rest[-1].code == "upstream_truncated"


@given(streams())
def test_what_comes_after_the_end_is_ignored_and_counted(
    case: tuple[Answer, Habits, bytes],
) -> None:
    answer, ways, data = case
    if isinstance(answer.end, Truncated) or not ways.final_blank_line:
        return
    stream = ChatStream()
    stream.receive_data(data)
    before = stream.ignored_events
    late = stream_of(created(id="resp_2"), text_delta("late"), terminal())
    assert stream.receive_data(late) == []
    assert stream.ignored_events == before + 3
    assert stream.receive_eof() == []


@given(texts(60), st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_content_ends_before_the_first_stop_sequence(text: str, stops: list[str]) -> None:
    text = text.replace("\x00", "a") + "ab b\na"
    places = [text.find(stop) for stop in stops if stop in text]
    frames = [created(), added(0, message()), *(text_delta(each) for each in text)]
    stream, events = receive(stream_of(*frames, terminal(output=[message(text)])), stop=stops)
    assert joined(events)["content"] == text[: min(places, default=len(text))]
    assert joined(events)["finish_reason"] == "stop"
    assert stream.wants_close == bool(places)


BREAK = Failure("no byte for 300 s", type="upstream_error", code="upstream_timeout")


def broken(pieces: list[bytes], **options: Any) -> tuple[ChatStream, list[Event]]:
    stream = ChatStream(**options)
    events = [event for piece in pieces for event in stream.receive_data(piece)]
    return stream, events + stream.receive_break(BREAK)


def check_break(data: bytes, options: dict[str, Any], draw: st.DataObject) -> None:
    pieces = draw.draw(slicings(data))
    _, expected = received([data], **options)
    end = expected[-1]
    if isinstance(end, Failure) and end.message.startswith("the upstream's stream ended without"):
        expected[-1] = BREAK
    one, events = broken([data], **options)
    assert events == expected
    assert one.failure == (events[-1] if isinstance(events[-1], Failure) else None)
    assert one.state is State.CLOSED
    _, same = broken(pieces, **options)
    assert same == events
    other = ChatStream(**options)
    frames = b"".join([other.translate(piece) for piece in pieces])
    assert parsed(frames + other.translate_break(BREAK)) == plain(events)
    assert (other.failure, other.end) == (one.failure, one.end)


@FEWER
@given(streams(), OPTIONS, st.data())
def test_a_break_ends_what_has_no_end_and_nothing_else(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any], draw: st.DataObject
) -> None:
    sent = draw.draw(st.integers(0, len(case[2])) | st.just(len(case[2])))
    check_break(case[2][:sent], options, draw)


@FEWER
@given(hostile_bytes(), OPTIONS, st.data())
def test_a_break_is_legal_after_every_byte_string(
    data: bytes, options: dict[str, Any], draw: st.DataObject
) -> None:
    check_break(data, options, draw)


@pytest.mark.parametrize(
    "data",
    [
        stream_of(created(), terminal(output=[message("Hi")])),
        # The last event is whole without its blank line, and so is a body of JSON.
        stream_of(created(), terminal(output=[message("Hi")])).rstrip(),
        json.dumps(terminal(output=[message("Hi")])["response"]).encode(),
        # The finished object came at the start.
        stream_of(created(status="completed", output=[message("Hi")])),
        stream_of(terminal("failed", error={"message": "No."})),
        stream_of({"type": "error", "message": "No."}),
    ],
)
def test_a_stream_that_has_its_end_is_not_broken(data: bytes) -> None:
    _, events = broken([data])
    assert events == received([data])[1]
    assert BREAK not in events


def test_a_break_says_first_what_had_come() -> None:
    data = stream_of(created(), added(0, message()), text_delta("Hel"), text_delta("lo ST"))
    _, events = broken([data], stop=["STOP"])
    assert joined(events)["content"] == "Hello ST"
    assert events[-1] == BREAK


@FEWER
@given(streams(), OPTIONS)
def test_the_end_stays_after_the_stream_is_closed(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any]
) -> None:
    stream = ChatStream(**options)
    events = stream.receive_data(case[2])
    seen = stream.state
    assert stream.end is (None if seen in {State.IDLE, State.CREATED, State.STREAMING} else seen)
    events += stream.receive_eof()
    assert stream.state is State.CLOSED
    assert stream.end is seen or stream.end in TRANSITIONS[State.IDLE].values()
    assert (stream.end is State.FAILED) == isinstance(events[-1], Failure)
    cut = {"length", "content_filter"}
    assert (stream.end is State.INCOMPLETE) == (joined_reason(events) in cut)


def joined_reason(events: list[Event]) -> str | None:
    chunks = [event for event in events if isinstance(event, Chunk)]
    reasons = [each.finish_reason for chunk in chunks for each in chunk.choices]
    return next(filter(None, reasons), None)


@FEWER
@given(streams(), OPTIONS)
def test_said_nothing_is_a_whole_answer_with_nothing_in_it(
    case: tuple[Answer, Habits, bytes], options: dict[str, Any]
) -> None:
    stream, events = received([case[2]], **options)
    bare = deltas(events) == [{"role": "assistant", "content": ""}, {}]
    whole = joined_reason(events) == "stop" and not stream.wants_close
    assert stream.said_nothing == (bare and whole)
    other, _ = translated([case[2]], **options)
    assert other.said_nothing == stream.said_nothing


REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "t"}]}
REFUSAL = {**message(), "content": [{"type": "refusal", "refusal": "No."}]}
IMAGE = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AA"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed"}


@pytest.mark.parametrize(
    ("end", "options", "nothing"),
    [
        (terminal(), {}, True),
        (terminal(output=[message()]), {}, True),
        (terminal(output=[SEARCH]), {}, True),
        (terminal(), {"stop": ["STOP"], "include_usage": True}, True),
        (terminal(output=[REASONING]), {"reasoning": None}, True),
        (terminal(output=[message("x")]), {}, False),
        (terminal(output=[REFUSAL]), {}, False),
        (terminal(output=[call("{}")]), {}, False),
        (terminal(output=[IMAGE]), {}, False),
        (terminal(output=[REASONING]), {}, False),
        (terminal(output=[message("STOP")]), {"stop": ["STOP"]}, False),
        # The longest stop sequence is waited for; the end of the answer settles which it was.
        (terminal(output=[message("ST")]), {"stop": ["STOP", "ST"]}, False),
        (terminal("incomplete"), {}, False),
        (terminal("failed"), {}, False),
        (terminal("cancelled"), {}, False),
    ],
)
def test_what_counts_as_nothing(end: Any, options: dict[str, Any], nothing: bool) -> None:
    data = stream_of(created(), end)
    for pieces in ([data], [frame(created()), frame(end)], [data[:-2]]):
        assert received(pieces, **options)[0].said_nothing == nothing
        assert translated(pieces, **options)[0].said_nothing == nothing
    assert not ChatStream().said_nothing
    assert not received([frame(created())])[0].said_nothing


# What keys consist of; nothing that JSON or a representation would write in another way.
SECRETS = st.text("abyzAZ019_-", min_size=5, max_size=40).map("sk-".__add__)
FIELDS = ["message", "type", "code", "param"]
WAYS = {
    "flat": lambda error: frame({**error, "type": "error"}),
    "nested": lambda error: frame({"type": "error", "error": error}),
    "a text": lambda error: frame({"type": "error", "error": error["message"]}),
    "failed": lambda error: frame(terminal("failed", error=error)),
    "failed at once": lambda error: frame(created(status="failed", error=error)),
    "without a name": lambda error: frame({"error": error}),
    "a body": lambda error: json.dumps({"error": error}).encode(),
}


@given(
    secret=SECRETS,
    around=st.tuples(st.text(" :'{", max_size=3), st.text(" .'}", max_size=3)),
    fields=st.sets(st.sampled_from(FIELDS)),
    way=st.sampled_from(sorted(WAYS)),
    begun=st.booleans(),
    draw=st.data(),
)
def test_no_failure_repeats_a_secret(
    secret: str,
    around: tuple[str, str],
    fields: set[str],
    way: str,
    begun: bool,
    draw: st.DataObject,
) -> None:
    error = dict.fromkeys(FIELDS, "plain")
    error.update((field, secret.join(around)) for field in fields)
    data = WAYS[way](error)
    if begun and way != "a body":
        data = stream_of(created(), added(0, message()), text_delta("Hi")) + data
    pieces = draw.draw(slicings(data))
    stream, events = received(pieces, secrets=["", secret])
    bare, shown = received(pieces)
    assert isinstance(events[-1], Failure)
    assert isinstance(shown[-1], Failure)
    hidden = {
        name: None if text is None else text.replace(secret, "***")
        for name, text in shown[-1].to_dict()["error"].items()
    }
    assert events[:-1] == shown[:-1]
    assert events[-1].to_dict()["error"] == hidden
    assert events[-1].retryable == shown[-1].retryable
    # Without being told, the machine repeats what it was given.
    given_on = {"flat": {"message", "code", "param"}, "a text": {"message"}}.get(way, set(FIELDS))
    assert (secret in str(bare.failure)) == bool(fields & given_on)
    _, frames = translated(pieces, secrets=[secret])
    assert parsed(frames) == plain(events)
    for said in (str(stream.failure), str(events[-1]), frames.split(b"\n\n")[-2].decode()):
        assert secret not in said


@given(SECRETS)
def test_a_break_repeats_no_secret(secret: str) -> None:
    stream = ChatStream(secrets=[secret])
    assert stream.receive_break(Failure(f"no way to {secret}")) == [Failure("no way to ***")]
    other = ChatStream(secrets=[secret])
    assert parsed(other.translate_break(Failure(secret)))[0]["error"]["message"] == "***"


@given(SECRETS, st.integers(0, 70), st.data())
def test_the_head_of_a_body_has_no_part_of_a_secret(
    secret: str, before: int, draw: st.DataObject
) -> None:
    """Found in review: a key across the end of what is shown was shown in part."""
    data = b"x " * (before // 2) + b"." * (before % 2) + f" {secret}".encode() + b" x" * 40
    _, events = received(draw.draw(slicings(data)), secrets=[secret])
    assert isinstance(events[-1], Failure)
    assert "begins with" in events[-1].message
    assert "sk-" not in events[-1].message


def test_calls_after_the_end_are_the_callers_mistake() -> None:
    stream = ChatStream()
    stream.receive_eof()
    for use in (stream.receive_data, stream.translate):
        with pytest.raises(LocalProtocolError, match="closed"):
            use(b"data: x\n\n")
    for end in (stream.receive_eof, stream.translate_eof):
        with pytest.raises(LocalProtocolError, match="closed"):
            end()


def test_every_state_and_signal_is_in_the_table() -> None:
    assert set(TRANSITIONS) == set(State)
    reached = {State.IDLE} | {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(State)


@pytest.mark.parametrize(
    "odd",
    [
        text_delta(
            "c", logprobs=[{"token": "c", "logprob": -1, "bytes": [99], "top_logprobs": []}]
        ),
        text_delta("c", item_id="msg_2"),
        text_delta("c", output_index=None),
        text_delta("", logprobs=[]),
        text_delta("\ud83d"),
        text_delta(None),
        {**text_delta("c"), "type": "response.refusal.delta"},
    ],
)
def test_a_delta_that_leaves_the_route_goes_the_long_way(odd: dict[str, Any]) -> None:
    first = stream_of(created(), added(0, message()), text_delta("a"), text_delta("b"))
    pieces = [first, stream_of(odd), stream_of(text_delta("d")), stream_of(terminal())]
    _, events = received(pieces)
    assert parsed(translated(pieces)[1]) == plain(events)
    crooked = stream_of(text_delta("c")).replace(b",", b",\r")
    pieces[1] = crooked.replace(b"event: response.output_text.delta\n", b"")
    _, events = received(pieces)
    assert parsed(translated(pieces)[1]) == plain(events)


def test_many_deltas_on_one_route_are_all_accounted_for() -> None:
    text = "word " * 200
    pieces = [stream_of(text_delta(word + " ")) for word in text.split()]
    end = stream_of(done(0, message(text)), terminal(output=[message(text)]))
    pieces = [stream_of(created(), added(0, message())), *pieces, end]
    stream, frames = translated(pieces)
    assert parsed(frames) == plain(received(pieces)[1])
    assert parsed(translated([b"".join(pieces)])[1]) == parsed(frames)
    assert stream.divergences == []


class TestFound:
    """Counter-examples that the laws found, and stay."""

    def test_a_call_that_turns_out_to_be_the_providers_is_stated_twice(self) -> None:
        item = {"type": "custom_tool_call", "id": "ct_1", "call_id": "c", "name": "A", "input": ""}
        delta = {"type": "response.custom_tool_call_input.done", "item_id": "ct_1", "input": "x"}
        _, events = receive(
            stream_of(created(), delta, done(0, item), terminal(output=[item])), client_tools=[]
        )
        assert joined(events)["tool_calls"] == []
        assert joined(events)["finish_reason"] == "stop"

    def test_many_lines_that_are_one_event_are_taken_once(self) -> None:
        for data in (b"\n:\n:\n:\ndata: {}\n\n", b":\n:\n:\n:\n:"):
            assert parsed(translated([data])[1]) == plain(received([data])[1])

    def test_two_images_with_the_same_data_are_two_images(self) -> None:
        images = [{"type": "image_generation_call", "id": f"ig_{n}", "result": "AA"} for n in "12"]
        _, events = receive(
            stream_of(
                created(),
                *(done(index, image) for index, image in enumerate(images)),
                terminal(output=images),
            )
        )
        assert [each["index"] for each in joined(events)["images"]] == [0, 1]

    def test_an_unannounced_call_waits_for_its_call_id(self) -> None:
        end = {
            "type": "response.function_call_arguments.done",
            "item_id": "fc_1",
            "output_index": 0,
            "name": "weather",
            "arguments": "{}",
        }
        _, events = receive(stream_of(created(), end, done(0, call("{}")), terminal()))
        assert joined(events)["tool_calls"] == [("call_1", "weather", "{}")]

    def test_the_end_by_marker_says_the_same_in_every_slicing(self) -> None:
        data = b"data:[DONE]\n\n" + stream_of(terminal())
        _, whole = received([data])
        _, sliced = received([data[at : at + 1] for at in range(len(data))])
        assert whole == sliced
        assert "[DONE]" in str(whole[0])

    def test_of_a_secret_that_has_another_in_it_nothing_is_left(self) -> None:
        failure = Failure("key-1234-5678", "key-1234", "5678", "x key-1234-5678")
        for secrets in (["key-1234", "key-1234-5678"], ["key-1234-5678", "key-1234"]):
            # Any iterable: the second field was compared with nothing where it was spent.
            hidden = failure.without(iter(secrets))
            assert hidden == Failure("***", "***", "5678", "x ***")


DELTA = {
    "type": "response.output_text.delta",
    "item_id": "msg_1",
    "output_index": 0,
    "content_index": 0,
    "delta": "x",
}


def test_nothing_takes_the_short_way_past_a_failure() -> None:
    """Found by the law of legal calls: only an event that is too large fails between events."""
    stream = ChatStream(max_event_size=200)
    assert stream.translate(frame(DELTA))
    large = b'data: {"type":"' + b"x" * 300
    said = stream.translate(large + b'"}\n\n' + frame(DELTA) + frame(DELTA))
    assert [each["error"]["code"] for each in parsed(said)] == ["event_too_large"]
    assert stream.translate(frame(DELTA)) == b""


def test_nothing_takes_the_short_way_past_the_end_of_the_bytes() -> None:
    stream = ChatStream()
    assert stream.translate(frame(DELTA))
    stream.translate_eof()
    with pytest.raises(LocalProtocolError):
        stream.translate(frame(DELTA))
