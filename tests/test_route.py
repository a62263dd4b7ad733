"""The law of `route`: a stream in which deltas take the short way is one in which none does.

Every call is compared, not only the whole, because nothing may be said later for having been held.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire import ChatStream, Event
from deltawire.responses import StreamEvent, parse
from deltawire.route import Template, learn
from deltawire.sse import ServerSentEvent
from deltawire.testing import PRESETS, Answer, FunctionCall, Item, Reasoning, write_frames
from deltawire.testing.strategies import slicings
from wire import created, frame, text_delta


class LongWay(ChatStream):
    """A stream without routes, and without anything held back."""

    def _remember(self, sse: ServerSentEvent, event: StreamEvent) -> None:
        pass

    def _receive_rest_of_piece(self, rest: bytes) -> list[Event]:
        return self._receive_plainly(rest)


KINDS: dict[str, Callable[[str], str | Item]] = {
    "text": lambda words: words,
    "summary": lambda words: Reasoning(words),
    "raw": lambda words: Reasoning(text=words),
    "arguments": lambda words: FunctionCall("f", words),
}

Change = Callable[[bytes], bytes]


def replacing(pattern: bytes, by: bytes) -> Change:
    return lambda given: re.sub(pattern, lambda _: by, given, count=1)


def delta(raw: bytes) -> Change:
    return replacing(rb'(?<="delta":)"(?:[^"\\]|\\.)*"', raw)


def first_key(raw: bytes) -> Change:
    return replacing(rb"(?<=data: \{)", raw)


def last_key(raw: bytes) -> Change:
    return replacing(rb"(?=\}\n\n)", raw)


CHANGES: dict[str, Change] = {
    "another text": delta(b'"other"'),
    "escaped quotes": delta(rb'"a\"b\\"'),
    "quotes and the next key in the text": delta(rb'"\",\"item_id\":\"x\""'),
    "a text that ends in a backslash": delta(rb'"x\\"'),
    "a string that does not end": delta(rb'"x\"'),
    "an escape that JSON does not know": delta(rb'"\x"'),
    "an escaped slash": delta(rb'"\/"'),
    "escapes of what needs none": delta(rb'"\u0041\u00e9\u000a"'),
    "a surrogate pair": delta(rb'"\ud83d\ude00"'),
    "the first half of a pair": delta(rb'"\ud83d"'),
    "the second half of a pair": delta(rb'"\ude00"'),
    "UTF-8": delta('"héllo 😀"'.encode()),
    "what is not UTF-8": delta(b'"\xff"'),
    "a surrogate in UTF-8": delta(b'"\xed\xa0\x80"'),
    "a control character": delta(b'"a\x01b"'),
    "DEL": delta(b'"\x7f"'),
    "line separators": delta('"a\u2028b\u0085c"'.encode()),
    "an empty text": delta(b'""'),
    "two strings": delta(b'"a","b"'),
    "a string cut in two": delta(b'"a'),
    "null": delta(b"null"),
    "a number": delta(b"5"),
    "an object": delta(b'{"delta":"x"}'),
    "white space around": delta(b' "x" '),
    "a line end behind": delta(b'"x"\n'),
    "a line end before": delta(b'\n"x"'),
    "a CR behind": delta(b'"x"\r'),
    "a long text": delta(b'"' + b"x" * 5000 + b'"'),
    "a very long text": delta(b'"' + b"y" * 40_000 + b'"'),
    "no number": replacing(rb'"sequence_number":\d+,?', b""),
    "a number out of order": replacing(rb'(?<="sequence_number":)\d+', b"7"),
    "number zero": replacing(rb'(?<="sequence_number":)\d+', b"0"),
    "a number with a zero in front": replacing(rb'(?<="sequence_number":)', b"0"),
    "a number that is none": replacing(rb'(?<="sequence_number":)\d+', b""),
    "a number in letters": replacing(rb'(?<="sequence_number":)', b"x"),
    "a fraction": replacing(rb'(?<="sequence_number":\d)', b".5"),
    "a number of very many digits": replacing(rb'(?<="sequence_number":)', b"9" * 400),
    "no padding": replacing(rb'"obfuscation":"[^"]*",?', b""),
    "an empty padding": replacing(rb'(?<="obfuscation":")[^"]*', b""),
    "another padding": replacing(rb'(?<="obfuscation":")[^"]*', b"aZ09"),
    "a padding with more in it": replacing(rb'(?<="obfuscation":")', rb"\"-"),
    "another item": replacing(rb'(?<="item_id":")', b"x"),
    "another index": replacing(rb'(?<="output_index":)\d', b"3"),
    "another part": replacing(rb'(?<="(?:content|summary)_index":)\d', b"2"),
    "another type": replacing(rb'(?<="type":"response)\.', b"_"),
    "another event name": replacing(rb"(?<=event: response)\.", b"_"),
    "no event name": replacing(rb"event: [^\n]*\n", b""),
    "a key in front": first_key(b'"x":1,'),
    "a key at the end": last_key(b',"x":1'),
    "a second text": last_key(b',"delta":"z"'),
    "a second text in front": first_key(b'"delta":"z",'),
    "a second item": last_key(b',"item_id":"msg_9"'),
    "a second type": last_key(b',"type":"error"'),
    "logprobs": last_key(b',"logprobs":[{"token":"x","logprob":-1,"top_logprobs":[]}]'),
    "something that is no JSON": last_key(b"!"),
    "white space in the object": first_key(b"  "),
    "no head": replacing(rb'(?s)^.*"delta":', b""),
    "no frame around": replacing(rb"(?s)^.*data: ", b""),
    "no space behind the colon": replacing(rb"data: ", b"data:"),
    "CRLF": lambda given: given.replace(b"\n", b"\r\n"),
    "CR": lambda given: given.replace(b"\n", b"\r"),
    "a comment in front": lambda given: b": ping\n" + given,
    "a comment within": replacing(rb"(?<=\n)data", b": ping\ndata"),
    "a comment behind": lambda given: given + b": ping\n\n",
    "an id": replacing(rb"(?<=\n)data", b"id: 5\ndata"),
    "a retry": lambda given: b"retry: 5\n" + given,
    "a second line of data": replacing(rb"\n\n", b"\ndata: x\n\n"),
    "a second line of nothing": replacing(rb"\n\n", b"\ndata\n\n"),
    "no blank line": lambda given: given.removesuffix(b"\n"),
    "one more blank line": lambda given: given + b"\n",
    "no end": lambda given: given.removesuffix(b"}\n\n") + b"\n\n",
    "twice": lambda given: given + given,
    "nothing": lambda given: b"",
}

WORDS = st.lists(st.sampled_from(["a", " word", '"', "\\", "\n", "é", "😀", "/"]), max_size=30)


@st.composite
def changed_streams(draw: st.DrawFn) -> bytes:
    """A stream with a few frames that are not quite like their neighbours."""
    ways = PRESETS[draw(st.sampled_from(sorted(PRESETS)))]
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=2))
    items = [KINDS[kind](" a b".join(["", *draw(WORDS), ""]) + " c d e") for kind in kinds]
    frames = write_frames(Answer(tuple(items)), ways)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(frames) - 1))
        frames[at] = CHANGES[draw(st.sampled_from(sorted(CHANGES)))](frames[at])
    return b"".join(frames)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "include_usage": st.booleans(),
        "reasoning": st.sampled_from(["reasoning_content", "reasoning", None]),
        "max_event_size": st.sampled_from([200, 2000, 6000]),
    },
)
SEEN = ("state", "end", "failure", "usage", "skipped_events", "ignored_events", "divergences")


def check(pieces: list[bytes], options: dict[str, Any]) -> None:
    """Both renderings say in every call what the long way says, and know the same."""
    short, events = ChatStream(**options), ChatStream(**options)
    long, plain = LongWay(**options), LongWay(**options)
    for piece in pieces:
        assert short.translate(piece) == long.translate(piece)
        assert events.receive_data(piece) == plain.receive_data(piece)
        for name in SEEN:
            assert getattr(short, name) == getattr(events, name) == getattr(long, name), name
    assert short.translate_eof() == long.translate_eof()
    assert events.receive_eof() == plain.receive_eof()
    for name in SEEN:
        assert getattr(short, name) == getattr(events, name) == getattr(long, name), name


@given(changed_streams(), OPTIONS, st.data())
def test_the_short_way_says_what_the_long_way_says(
    data: bytes, options: dict[str, Any], draw: st.DataObject
) -> None:
    check(draw.draw(slicings(data)), options)


@pytest.mark.parametrize("change", sorted(CHANGES))
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("preset", ["openai", "xai", "bedrock"])
@pytest.mark.parametrize("place", [6, -1])
def test_a_frame_that_is_not_quite_like_the_others(
    place: int, preset: str, kind: str, change: str
) -> None:
    frames = write_frames(Answer(KINDS[kind](" word" * 12)), PRESETS[preset])
    deltas = [at for at, each in enumerate(frames) if b'"delta":' in each]
    for at in deltas[place:][:1]:
        frames[at] = CHANGES[change](frames[at])
        if place == -1:
            # What comes behind says all of it once more.
            del frames[at + 1 :]
    data = b"".join(frames)
    check(frames, {})
    check([data], {})
    check([data[at : at + 7] for at in range(0, len(data), 7)], {})


@pytest.mark.parametrize("limit", [250, 300, 4000, 4096, 5000])
def test_an_event_over_the_limit_fails_in_the_call_that_brings_it_over(limit: int) -> None:
    frames = write_frames(Answer(" word" * 12), PRESETS["xai"])
    frames[8] = CHANGES["a long text"](frames[8])
    data = b"".join(frames)
    check([data[at : at + 7] for at in range(0, len(data), 7)], {"max_event_size": limit})
    check(frames, {"max_event_size": limit})


def delta_event(keys: str, number: int) -> dict[str, Any]:
    """A delta with these keys in this order."""
    values = {
        "delta": f"word {number} }}",
        "item_id": "m",
        # Now and then there is nothing to be padded.
        "obfuscation": "Xyz"[number % 4 :],
        "output_index": 0,
        "sequence_number": number + 5,
    }
    return {"type": "response.output_text.delta"} | {key: values[key] for key in keys.split()}


KEYS = (
    "delta item_id obfuscation output_index sequence_number",
    "delta item_id sequence_number obfuscation",
    "sequence_number delta item_id output_index",
    "sequence_number delta item_id obfuscation",
    "obfuscation delta item_id sequence_number",
    "sequence_number item_id delta",
    "delta sequence_number",
    "item_id delta output_index",
    "delta",
)


@pytest.mark.parametrize("keys", KEYS)
def test_a_frame_that_is_cut_is_none_yet(keys: str) -> None:
    """A piece may end where a whole frame could, but for its end: in the padding, in the number."""
    first, second, third = (frame(delta_event(keys, number)) for number in range(3))
    for at in range(1, len(second)):
        check([frame(created()), first, second[:at], second[at:] + third], {})
        check([frame(created()), first, second[:at]], {})


@pytest.mark.parametrize("keys", KEYS)
def test_every_order_of_the_keys_has_a_route(keys: str) -> None:
    events = [delta_event(keys, number) for number in range(60)]
    frames = [frame(created()), *map(frame, events)]
    stream = ChatStream()
    for each in frames[:2]:
        stream.translate(each)
    route = stream._route
    assert route is not None
    for each in frames[2:]:
        stream.translate(each)
    assert stream._route is route
    frames.append(frame(delta_event(keys, 60)).replace(b"word 60", rb"\x"))
    data = b"".join(frames)
    check(frames, {})
    check([data], {})
    check([data[at : at + 7] for at in range(0, len(data), 7)], {})


def learned(raw: bytes) -> Template | None:
    event = parse(raw, StreamEvent)
    assert event is not None
    return learn(b"data: ", raw, event)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"delta":"a","logprobs":[{"token":"a","logprob":-1}]}',
        b'{"delt\\u0061":"a"}',
        b'{"x":{"delta":"a"},"delt\\u0061":"b"}',
        b'{"delta":"a","x":{"delta":"b"}}',
        b'{"sequence_number":1,"obfuscation":"a","delta":"b"}',
    ],
)
def test_what_has_no_template(raw: bytes) -> None:
    assert learned(raw) is None


def test_a_stream_whose_frames_never_fit_stops_to_learn() -> None:
    stream = ChatStream()
    stream.translate(frame(created()))
    for number in range(40):
        stream.translate(frame(text_delta("a", id=f"msg_{number}")))
    assert stream._route is None
