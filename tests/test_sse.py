"""The laws of `SSEDecoder`: the WHATWG rules, any slicing, and two paths that agree."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from deltawire import EventTooLarge, LocalProtocolError, ServerSentEvent, SSEDecoder
from deltawire.testing.strategies import slicings

LINES = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data:  c ",
        b"data:",
        b"data",
        b"data: \xe2\x80\xa8\xc2\x85",
        b"event: name",
        b"event:",
        b"event: \xff",
        b"id: 7",
        b"id: a\x00b",
        b"id",
        b"retry: 100",
        b"retry: 1x",
        b"retry: " + b"9" * 5000,
        b": comment",
        b":",
        b"unknown: field",
        b" data: indented",
        b"\xef\xbb\xbfdata: bom",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=24).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
COMMON = st.lists(
    st.sampled_from([b"event: name\ndata: a\n\n", b"data: b\n\n", b"id: 1\n", b"\n", b"data: c"])
).map(b"".join)
ANY = STREAMS | COMMON | st.binary(max_size=60)


class Reference(SSEDecoder):
    """The decoder without its fast path."""

    def _whole_events(self, data: bytes, events: list[ServerSentEvent]) -> int:
        return 0


def by_the_standard(data: bytes) -> list[tuple[str, bytes, str, int | None]]:
    """WHATWG HTML 9.2.6 over the whole stream, as plainly as it can be written."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    *lines, _ = re.split(rb"\r\n|\n|\r", text)
    events: list[tuple[str, bytes, str, int | None]] = []
    last_id, name, retry, buffer = "", b"", None, b""
    for line in lines:
        if not line:
            if buffer:
                kind = name.decode("utf-8", "replace") or "message"
                events.append((kind, buffer[:-1], last_id, retry))
            name, retry, buffer = b"", None, b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            buffer += value + b"\n"
        elif field == b"id" and b"\x00" not in value:
            last_id = value.decode("utf-8", "replace")
        elif field == b"retry" and re.fullmatch(rb"[0-9]{1,15}", value):
            retry = int(value)
    return events


def decoded(decoder: SSEDecoder, pieces: list[bytes]) -> list[ServerSentEvent]:
    events = [event for piece in pieces for event in decoder.receive_data(piece)]
    return events + decoder.receive_eof()


def plain(events: list[ServerSentEvent]) -> list[tuple[str, bytes, str, int | None]]:
    return [(event.event, event.data, event.id, event.retry) for event in events]


@given(ANY)
@example(b"event: a\ndata: 1\n\ndata: 2\n\nevent: b")
@example(b"data: 1\n\nevent: data: 2\n\n")
def test_events_are_those_of_the_standard(data: bytes) -> None:
    assert plain(decoded(SSEDecoder(), [data])) == by_the_standard(data)


@given(ANY, st.booleans(), st.data())
def test_slicing_does_not_matter(data: bytes, flush: bool, draw: st.DataObject) -> None:
    pieces = draw.draw(slicings(data))
    sliced, whole = SSEDecoder(flush_at_eof=flush), SSEDecoder(flush_at_eof=flush)
    assert decoded(sliced, pieces) == decoded(whole, [data])
    assert sliced.comments == whole.comments


def outcome(decoder: SSEDecoder, *pieces: bytes) -> tuple[list[ServerSentEvent], bool]:
    """The events, and whether there was one too large among them."""
    events: list[ServerSentEvent] = []
    try:
        for piece in pieces:
            events += decoder.receive_data(piece)
    except EventTooLarge as error:
        return events + error.events, True
    return events, False


@given(ANY, st.integers(1, 40), st.data())
def test_both_paths_agree_and_so_does_every_slicing_of_a_limit(
    data: bytes, limit: int, draw: st.DataObject
) -> None:
    pieces = draw.draw(slicings(data))
    reference = outcome(Reference(max_event_size=limit), data)
    assert outcome(SSEDecoder(max_event_size=limit), data) == reference
    assert outcome(SSEDecoder(max_event_size=limit), *pieces) == reference


@given(ANY, st.data())
def test_a_line_that_has_begun_may_grow_by_its_room(data: bytes, draw: st.DataObject) -> None:
    # After a CR, whatever comes but LF is of another line.
    assume(not data.endswith(b"\r"))
    decoder = SSEDecoder(max_event_size=30)
    for piece in draw.draw(slicings(data)):
        if outcome(decoder, piece)[1]:
            assert decoder.room == 0
            return
    if decoder.room:
        assert decoder.receive_data(b"x" * decoder.room) == []
        with pytest.raises(EventTooLarge):
            decoder.receive_data(b"x")


@pytest.mark.parametrize("flush", [True, False])
def test_an_event_without_its_blank_line_counts_only_if_told_to(flush: bool) -> None:
    decoder = SSEDecoder(flush_at_eof=flush)
    events = decoded(decoder, [b"data: 1\n\ndata: 2\nevent: x"])
    assert [(each.event, each.data) for each in events] == [
        ("message", b"1"),
        *([("x", b"2")] if flush else []),
    ]


def test_an_unfinished_block_over_the_limit_at_the_end() -> None:
    decoder = SSEDecoder(max_event_size=10, flush_at_eof=True)
    decoder.receive_data(b"data: 12\ndata: 3456")
    with pytest.raises(EventTooLarge, match="10 bytes"):
        decoder.receive_eof()


def test_no_bytes_after_the_end_or_after_a_limit() -> None:
    ended, overflown = SSEDecoder(), SSEDecoder(max_event_size=3)
    ended.receive_eof()
    with pytest.raises(EventTooLarge):
        overflown.receive_data(b"data: 1")
    for decoder in (ended, overflown):
        assert decoder.room == 0
        with pytest.raises(LocalProtocolError, match="ended"):
            decoder.receive_data(b"")
        with pytest.raises(LocalProtocolError, match="ended"):
            decoder.receive_eof()


def test_the_last_event_id_stays_until_another_is_sent() -> None:
    decoder = SSEDecoder()
    events = decoder.receive_data(b"id: 1\ndata: a\n\ndata: b\n\nid:\ndata: c\n\n")
    assert [event.id for event in events] == ["1", "1", ""]
    assert decoder.last_event_id == ""
