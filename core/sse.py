"""Server-sent events: bytes in, `ServerSentEvent` out. Nothing here knows what an event means.

The rules are those of the WHATWG HTML standard, section 9.2.6 "Interpreting an event stream".
Two of them are broken by nearly every hand-written reader: a line ends at CR, LF or CRLF and
nowhere else (U+2028 and U+0085 are data, so `str.splitlines` is wrong), and an empty `data:`
line is an event with empty data, not the end of the stream.

Two paths lead to the same events. `_whole_events` reads the shape that servers really send (LF,
an optional `event:` line, one `data:` line, a blank line); whatever it does not take as it is goes
to `_lines`, the reference, which is right for everything. A test holds them to the same output.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from deltawire.errors import EventTooLarge, LocalProtocolError

# The largest events seen are terminal snapshots that carry generated images in base64: a few MiB.
# Bridges with limits of 64 KiB and 1 MiB broke on them (openai-go#368, term-llm#347).
DEFAULT_MAX_EVENT_SIZE: Final = 16 * 1024 * 1024

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"
# Milliseconds of any sane reconnection time fit; int() of a longer run of digits would be a gift
# to an attacker.
_MAX_RETRY_DIGITS: Final = 15


class ServerSentEvent(Struct, frozen=True, gc=False):
    """One event, as the standard dispatches it.

    `event` is the type ("message" where the stream names none), `data` the undecoded bytes with
    the lines joined by LF, `id` the last event id seen so far, and `retry` the reconnection time
    in milliseconds if this event's block set one.
    """

    event: str
    data: bytes
    id: str = ""
    retry: int | None = None


class SSEDecoder:
    """An incremental decoder of `text/event-stream` bytes.

    `max_event_size` (bytes) bounds one line and the data of one event; over it `EventTooLarge` is
    raised. The standard drops an event that the end of the stream cuts off; with `flush_at_eof`
    it is dispatched, because relays are known to drop the last blank line.
    """

    __slots__ = (
        "_after_cr",
        "_closed",
        "_data",
        "_data_size",
        "_event",
        "_first_line",
        "_flush_at_eof",
        "_max_event_size",
        "_rest",
        "_retry",
        "comments",
        "idle",
        "last_event_id",
    )

    def __init__(
        self, *, max_event_size: int = DEFAULT_MAX_EVENT_SIZE, flush_at_eof: bool = False
    ) -> None:
        self._max_event_size = max_event_size
        self._flush_at_eof = flush_at_eof
        self._closed = False
        self._first_line = True
        # The unfinished line. It grows in place, so that a large event in tiny slices stays
        # linear, and costs no object for each of them.
        self._rest = bytearray()
        self._after_cr = False
        self._data: list[bytes] = []
        self._data_size = 0
        self._event = ""
        self._retry: int | None = None
        self.last_event_id = ""
        """The `id` that the next event will carry; it stays until another one is sent."""
        self.comments = 0
        """How many comment lines came so far."""
        self.idle = True
        """True between two events, with nothing of the next one received."""

    def receive_data(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete, in order.

        Raises EventTooLarge (with the events before it) and, after that or after the end,
        LocalProtocolError.
        """
        self._check_open()
        events: list[ServerSentEvent] = []
        try:
            if self.idle and b"\r" not in data:
                data = data[self._whole_events(data, events) :]
            if data:
                self._lines(data, events)
        except EventTooLarge as error:
            self._closed = True
            error.events = events
            raise
        return events

    @property
    def room(self) -> int:
        """By how many bytes a line that has begun may grow; 0 between two lines."""
        return 0 if self._closed or not self._rest else self._max_event_size - len(self._rest)

    def receive_eof(self) -> list[ServerSentEvent]:
        """The end of the stream: the cut-off event if `flush_at_eof`, else nothing.

        Raises EventTooLarge as `receive_data` does, and LocalProtocolError after the end.
        """
        self._check_open()
        self._closed = True
        events: list[ServerSentEvent] = []
        if self._flush_at_eof:
            if self._rest:
                self._line(bytes(self._rest), events)
            self._dispatch(events)
        return events

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError("the event stream has ended: no more bytes can be received")

    def _whole_events(self, data: bytes, events: list[ServerSentEvent]) -> int:
        """Append the leading events of the common shape; the number of bytes they took."""
        taken = 0
        find = data.find
        while True:
            name = b""
            line = taken
            if data.startswith(b"event: ", line):
                end = find(b"\n", line)
                if end < 0 or end - line > self._max_event_size:
                    return taken
                name = data[line + 7 : end]
                line = end + 1
            if not data.startswith(b"data: ", line):
                return taken
            end = find(b"\n", line)
            if end < 0 or data[end + 1 : end + 2] != b"\n" or end - line > self._max_event_size:
                return taken
            events.append(
                ServerSentEvent(
                    name.decode("utf-8", "replace") or "message",
                    data[line + 6 : end],
                    self.last_event_id,
                )
            )
            self._first_line = False
            taken = end + 2

    def _lines(self, data: bytes, events: list[ServerSentEvent]) -> None:
        if self._after_cr:
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if b"\n" not in data and b"\r" not in data:
            self._keep(data)
        else:
            data = bytes(self._rest) + data
            *lines, rest = _LINE_END.split(data)
            self._after_cr = data.endswith(b"\r")
            self._rest = bytearray()
            for line in lines:
                self._line(line, events)
            self._keep(rest)
        self.idle = not (
            self._rest or self._data or self._event or self._after_cr or self._retry is not None
        )

    def _keep(self, fragment: bytes) -> None:
        self._rest += fragment
        if len(self._rest) > self._max_event_size:
            raise EventTooLarge(self._max_event_size, [])

    def _line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if self._data_size + len(line) > self._max_event_size:
            raise EventTooLarge(self._max_event_size, [])
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        field, colon, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if field == b"data":
            self._data.append(value)
            self._data_size += len(value) + 1
        elif field == b"event":
            self._event = value.decode("utf-8", "replace")
        elif field == b"id":
            if b"\0" not in value:
                self.last_event_id = value.decode("utf-8", "replace")
        elif field == b"retry":
            if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry = int(value)
        elif colon and not field:
            self.comments += 1

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        if self._data:
            events.append(
                ServerSentEvent(
                    self._event or "message",
                    b"\n".join(self._data),
                    self.last_event_id,
                    self._retry,
                )
            )
        self._data = []
        self._data_size = 0
        self._event = ""
        self._retry = None
