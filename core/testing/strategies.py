"""hypothesis strategies: answers, habits, streams, slicings, and what no provider should send.

The only module here that needs hypothesis. The generated streams are those that can be read
without guessing; `readable` says which are not, and why.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final, get_args, get_type_hints

from hypothesis import strategies as st

from deltawire.testing.answer import (
    Answer,
    Cancelled,
    Completed,
    CustomToolCall,
    End,
    ErrorEvent,
    Failed,
    FunctionCall,
    HostedCall,
    Image,
    Incomplete,
    Item,
    Message,
    Reasoning,
    Refusal,
    Text,
    TokenUsage,
    Truncated,
    UrlCitation,
)
from deltawire.testing.habits import PRESETS, Habits
from deltawire.testing.hosted import HOSTED
from deltawire.testing.writer import Event, write_events, write_stream

# What readers of event streams and writers of JSON have stumbled over: quotes, escapes, every line
# end of Unicode that is none of the event stream's, characters beyond the BMP, NUL, the BOM.
_AWKWARD = 'ab  "\\/\n\r\t\x00\x7f\x85\u2028\u2029\ufeff\ufffdé\u4e16\U0001f600\U0001d4b3{}[]:,'

_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,15}", fullmatch=True)
_FAILURES = st.sampled_from(["server_error", "rate_limit_exceeded", "invalid_prompt", "odd"])

# Every deviation there is, all of them equally likely to be drawn.
_CHANGES: Final[list[tuple[str, Any]]] = [
    (name, value)
    for name, kind in get_type_hints(Habits).items()
    for value in get_args(kind) or {bool: (True, False), int: (0, 7)}[kind]
    if name != "opening" and value != getattr(Habits(), name)
] + [("opening", opening) for opening in ((), ("created",), ("queued", "created"))]


def texts(max_size: int = 24) -> st.SearchStrategy[str]:
    """Valid Unicode of at most `max_size` characters, also none."""
    anything = st.characters(exclude_categories=["Cs"])
    return st.text(_AWKWARD, max_size=max_size) | st.text(anything, max_size=max_size)


def answers() -> st.SearchStrategy[Answer]:
    """Answers of up to five items of every kind, with every end.

    Refusals, citations and logprobs are not in commentary messages, where no rule says what they
    mean; and no custom tool of the client's has the name of one of xAI's own.
    """
    return st.builds(
        Answer,
        st.lists(_items(), max_size=5).map(tuple),
        _ends(),
        model=st.sampled_from(["gpt-5", "grok-4.3", "openai/gpt-oss-20b"]),
        usage=st.none() | st.builds(TokenUsage, *[st.integers(0, 10**6)] * 5),
    )


def habits() -> st.SearchStrategy[Habits]:
    """The specification's or a preset's habits with up to eight changes, made readable."""
    return st.builds(
        lambda base, changes: readable(replace(base, **dict(changes))),
        st.sampled_from([Habits(), *PRESETS.values()]),
        st.lists(st.sampled_from(_CHANGES), max_size=8),
    )


def readable(habits: Habits, answer: Answer | None = None) -> Habits:
    """The habits without what makes a stream, or this `answer`'s, unreadable except by guessing.

    Each rule below takes back one habit. None of them says what readers must do with such a
    stream, only that no expectation can be derived from the answer.
    """

    def fix(**changes: Any) -> None:
        nonlocal habits
        habits = replace(habits, **changes)

    # Without either, no event has a type.
    if not habits.event_lines:
        fix(type_in_json=True)
    # A shifted index names the next item, so that only ids are left, and only if they are stable
    # and were seen with the right index first.
    if habits.output_index == "shifted_on_done":
        fix(item_ids="stable", terminal_ids="same", announce_items=True)
    if answer is not None:
        items = answer.output
        # The phase of a message that is not announced comes after its text.
        if any(isinstance(item, Message) and item.phase == "commentary" for item in items):
            fix(announce_items=True)
        # Parts that are not told apart: the done event of the second has to be taken for a
        # correction of the first.
        if habits.content_index in ("rising", "absent") and any(
            (isinstance(item, Message) and len(item.parts) > 1)
            or (isinstance(item, Reasoning) and len(item.texts) > 1)
            for item in items
        ):
            fix(content_index="stable")
        # What only the terminal event says is lost without one, and after a failure its snapshot
        # is no promise.
        if not isinstance(answer.end, (Completed, Incomplete)):
            fix(text="done" if habits.text == "terminal" else habits.text)
            fix(close_items="late" if habits.close_items == "never" else habits.close_items)
    if habits.text == "terminal" or habits.close_items == "never":
        fix(terminal_output="whole")
    # Nothing names the item of an event: it is the open one, if exactly one is and was announced.
    # The terminal snapshot cannot be laid over the stream then.
    if habits.item_ids != "stable" and habits.output_index == "absent":
        fix(announce_items=True, close_items="at_once", interleave=False)
        fix(text="done" if habits.text == "terminal" else habits.text)
        fix(terminal_output="empty")
    # A snapshot is laid over the stream by the items' positions, else by ids: one must be stable.
    if habits.output_index == "absent":
        fix(terminal_ids="same")
    # Calls that nothing announces appear in the order in which they end.
    if not habits.announce_items:
        fix(interleave=False)
    # The first call id to be seen is the one that counts; it must be the stream's.
    if not habits.announce_items and habits.close_items == "never":
        fix(new_call_ids=False)
    return habits


@st.composite
def streams(draw: st.DrawFn) -> tuple[Answer, Habits, bytes]:
    """An answer, readable habits and the stream, with texts cut word by word or anywhere."""
    answer = draw(answers())
    chosen = readable(draw(habits()), answer)
    # Only a seed is drawn, so that the number of cuts does not count as choices to shrink.
    rng = draw(st.none() | st.randoms(use_true_random=True))
    return answer, chosen, write_stream(answer, chosen, rng)


def slicings(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """The data in pieces: whole, one byte each, cut anywhere with empty pieces between."""
    cuts = st.lists(st.integers(0, len(data)), max_size=30).map(sorted)
    return st.one_of(
        st.just([data]),
        st.just([data[at : at + 1] for at in range(len(data))]),
        cuts.map(lambda at: [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]),
    )


@st.composite
def hostile_events(draw: st.DrawFn) -> list[Event]:
    """Events of one or two responses: any lost, doubled, displaced or with values of wrong types.

    Every event is an object with a `type`, which may be of a wrong type too.
    """
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 2))):
        answer = draw(answers())
        events += write_events(answer, draw(habits()))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(events) - 1)) if events else 0
        harm = draw(st.sampled_from(["lose", "double", "move", "spoil", "invent"]))
        taken = events[at : at + 1]
        if harm in ("lose", "move"):
            del events[at : at + 1]
        if harm == "spoil":
            # Of an event that lost all it had there is nothing left to spoil.
            events[at : at + 1] = [draw(_spoilt(event)) if event else event for event in taken]
        if harm in ("double", "move"):
            place = draw(st.integers(0, len(events)))
            events[place:place] = taken
        if harm == "invent":
            events.insert(at, draw(_invented()))
    return events


@st.composite
def hostile_bytes(draw: st.DrawFn) -> bytes:
    """Hostile events as bytes, with frames cut short, garbage and invalid UTF-8 among them."""
    frames = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in draw(hostile_events())]
    garbage = st.binary(max_size=40) | st.sampled_from(
        [
            b"\xef\xbb\xbf",
            b"\x00",
            b"\xff\xfe",
            b"\r",
            b"data: [DONE]\n\n",
            b"data: [DONE] \n\n",
            b"data:\n\n",
            b"data: null\n\n",
            b"data: []\n\n",
            b'data: {"type":\n\n',
            b'data: {"type":"response.output_text.delta","delta":"\xff\xc3"}\n\n',
            b'data: {"type":"response.output_text.delta","delta":"\\ud83d"}\n\n',
            b"event: response.completed\n\n",
            b"event: response.output_text.delta\ndata: {}\n\n",
            b"id: \x00\nretry: 1x\n: \xff\n\n",
            b'{"error":{"message":"no event stream","type":"t","code":null}}',
        ]
    )
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(frames)))
        for frame in frames[at : at + 1]:
            frames[at] = frame[: draw(st.integers(0, len(frame)))]
        frames.insert(at, draw(garbage))
    return b"".join(frames)


def _items() -> st.SearchStrategy[Item | str]:
    some = texts(6)
    b64 = st.sampled_from(["iVBORw0KGgo=", "/9j/4AAQSkZJRg==", "UklGRg=="])
    citation = st.builds(
        UrlCitation,
        st.just("https://example.org/a?b=c&d=%20"),
        title=st.none() | some,
        start_index=st.none() | st.integers(0, 50),
        end_index=st.none() | st.integers(0, 50),
    )
    text = st.builds(
        Text, texts(), st.lists(citation, max_size=2).map(tuple), logprobs=st.booleans()
    )
    parts = st.lists(text | texts() | st.builds(Refusal, texts()), max_size=3).map(tuple)
    blocks = st.lists(texts(), max_size=3).map(tuple)
    objects = st.dictionaries(some, st.none() | st.integers() | st.booleans() | some, max_size=3)
    arguments = st.just("") | objects.map(lambda value: json.dumps(value, ensure_ascii=False))
    return st.one_of(
        texts(),
        st.builds(Message, parts, phase=st.sampled_from([None, "final_answer"])),
        st.builds(Message, st.lists(texts(), max_size=2).map(tuple), phase=st.just("commentary")),
        st.builds(Reasoning, blocks, blocks, st.none() | st.just("gAAAA")),
        st.builds(FunctionCall, _NAMES, arguments),
        st.builds(CustomToolCall, _NAMES.filter(lambda name: name not in HOSTED), texts()),
        st.builds(HostedCall, st.sampled_from(sorted(HOSTED))),
        st.builds(Image, b64, st.just("png"), st.sampled_from([(), ("AAAA",), ("AAAA", "BBBB")])),
    )


def _ends() -> st.SearchStrategy[End]:
    said = texts().map(lambda text: text + "!")
    return st.one_of(
        st.just(Completed()),
        st.builds(Incomplete, st.sampled_from(["max_output_tokens", "content_filter", None])),
        st.builds(Failed, st.none() | _FAILURES, said),
        st.builds(
            ErrorEvent,
            st.none() | _FAILURES,
            said,
            st.none() | _FAILURES,
            st.none() | st.just("input"),
            shape=st.sampled_from(["flat", "nested"]),
            then_failed=st.booleans(),
        ),
        st.just(Cancelled()),
        st.builds(Truncated, st.none() | st.integers(0, 40)),
    )


def _json() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts(6)
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts(4), inner)
    )


@st.composite
def _spoilt(draw: st.DrawFn, event: Event) -> Event:
    """The event with one value, at any depth, replaced or removed."""
    spoilt: Event = json.loads(json.dumps(event))
    place: Any = spoilt
    key = draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
    if draw(st.booleans()):
        place[key] = draw(_json())
    else:
        del place[key]
    return spoilt


def _invented() -> st.SearchStrategy[Event]:
    """An event that no provider sends: a known or unknown type and whatever fields."""
    kinds = st.sampled_from(
        [
            "response.output_text.delta",
            "response.function_call_arguments.delta",
            "response.output_item.added",
            "response.output_item.done",
            "response.completed",
            "response.failed",
            "error",
            "vendor.event",
        ]
    )
    index = st.integers(-1, 3) | _json()
    fields = {"delta": _json(), "item": _json(), "response": _json(), "error": _json()}
    indexes = {"output_index": index, "content_index": index, "item_id": _json()}
    return st.fixed_dictionaries({"type": kinds | _json()}, optional=fields | indexes)
