"""`ChatRelay`: a Chat Completions answer on its way to a client, byte for byte.

What may live here: where upstream's events begin and end, which of them matter, and what happens
when they stop. What may not: what their JSON says (`chat_input`). Caller: the exchange, where an
upstream speaks Chat Completions itself; it takes the place of `ChatStream` there.

Theory of operation
-------------------
The bytes go out as they came in, cut at the ends of events and nowhere else: of an event that is
not whole a client could make nothing, and after it no failure could be told. Until there is output,
whole events are held back as well, since with nothing handed out another account can be asked. To
the last event the blank line is added that it may lack, without which clients do not read it.

Of all events only a few matter: the first with output, the finish, the usage, an error, `[DONE]`.
While the answer streams, an event is a mere delta if it is one line of `data` with a
`"finish_reason":null` in it, which cannot be mistaken: within a string its quotes were escaped. To
look for that costs a fraction of decoding. All other events are decoded.

The states are those of `ChatStream`, and so is their table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, Literal

from deltawire import chat_input, shapes
from deltawire.chat import Done, Event, Failure, Usage
from deltawire.errors import LocalProtocolError
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE, SSEDecoder
from deltawire.stream import TRANSITIONS, Signal, State

# A line end, and one more with nothing between. A CR at the end of the bytes is left alone until it
# is known whether an LF follows: it would belong to the same line end.
_BOUNDARY: Final = re.compile(rb"(?:\r\n|\n|\r(?=[^\n])){2}")
# As compact writers and as Python's have it.
_NO_FINISH: Final = (b'"finish_reason":null', b'"finish_reason": null')
_CUT_SHORT: Final = frozenset({"length", "content_filter"})
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}\Z")
_DONE: Final = b"[DONE]"
_LF: Final = ord("\n")
_CR: Final = ord("\r")
# What is read again is bounded before.
_ENDLESS: Final = 2**62
# Enough of a body to recognize it in an error message, and no beginning of a secret at its end.
_HEAD_SIZE: Final = 64
_LAST_WORD: Final = re.compile(rb"[\w.~+/=-]+\Z")


class ChatRelay:
    """One Chat Completions answer from upstream to client.

    Feed it the bytes of the answer, an event stream or one JSON body, then `receive_eof()`. Use
    either the `translate*` methods (bytes for a client) or the `receive_*` methods (events, which
    are what can be read from those bytes). It raises LocalProtocolError after the end and nothing
    else.

    choices: how many the request asks for; without `[DONE]`, all of them have to be finished.
    include_usage: end with a usage chunk where a JSON body is told as a stream.
    max_event_size: bytes; a larger event is a Failure `event_too_large`, and so is a larger body,
        or more that is held back.
    secrets: texts that no failure repeats.
    """

    __slots__ = (
        "_choices",
        "_decoder",
        "_finished",
        "_held",
        "_held_size",
        "_include_usage",
        "_kind",
        "_last_frame",
        "_max_event_size",
        "_no_finish",
        "_reader",
        "_rest",
        "_secrets",
        "end",
        "failure",
        "produced_output",
        "said_nothing",
        "state",
        "usage",
        "whole",
    )

    def __init__(
        self,
        *,
        choices: int = 1,
        include_usage: bool = False,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        secrets: Iterable[str] = (),
    ) -> None:
        self._choices = choices
        self._include_usage = include_usage
        self._max_event_size = max_event_size
        self._secrets = tuple(filter(None, secrets))
        # Of what matters, and of what is handed out; the latter is for `receive_*` alone.
        self._decoder = SSEDecoder(max_event_size=max_event_size, flush_at_eof=True)
        self._reader = SSEDecoder(max_event_size=_ENDLESS, flush_at_eof=True)
        self._kind: Literal["blank", "stream", "body"] = "blank"
        # An event that is not whole, or a body. It grows in place, so that one in tiny slices stays
        # linear.
        self._rest = bytearray()
        self._held: list[bytes] = []
        self._held_size = 0
        # b"": events have to be decoded.
        self._no_finish = b""
        self._finished: dict[Any, Any] = {}
        self._last_frame = b""

        self.state = State.IDLE
        self.end: State | None = None
        """COMPLETED, INCOMPLETE or FAILED, once one of them is reached; it stays after CLOSED."""
        self.usage: Usage | None = None
        """What the answer cost, if upstream said so."""
        self.failure: Failure | None = None
        """The failure, if that was the end."""
        self.produced_output = False
        """Whether anything was handed out, so that another attempt would repeat it."""
        self.said_nothing = False
        """The answer is complete, and there was nothing in it."""
        self.whole: chat_input.RelayedCompletion | None = None
        """The completion, if the answer was one JSON body."""

    @property
    def wants_close(self) -> bool:
        """Never: an answer ends where upstream ends it."""
        return False

    @property
    def finish_reasons(self) -> dict[Any, Any]:
        """What upstream said of the end of each choice, by its index."""
        return dict(self._finished)

    # The two renderings.

    def translate(self, data: bytes) -> bytes:
        """What may be handed out now: upstream's bytes, and a failure if there is one."""
        # Most reads bring one event: what it costs is these lines.
        if self._no_finish and not self._rest and self._is_delta(data):
            return data
        return self._receive(data) + self._take_last_frame()

    def translate_eof(self) -> bytes:
        """The end of upstream's bytes. A failure `upstream_truncated` if no end came before."""
        return self._close(None) + self._take_last_frame()

    def translate_break(self, failure: Failure) -> bytes:
        """As `translate_eof`, where the caller knows why no more bytes come."""
        return self._close(failure) + self._take_last_frame()

    def receive_data(self, data: bytes) -> list[Event]:
        """The events in what `translate` would give."""
        return self._read(self._receive(data))

    def receive_eof(self) -> list[Event]:
        """As `translate_eof`."""
        return self._read(self._close(None), last=True)

    def receive_break(self, failure: Failure) -> list[Event]:
        """As `translate_break`."""
        return self._read(self._close(failure), last=True)

    def _read(self, frames: bytes, *, last: bool = False) -> list[Event]:
        found = self._reader.receive_data(frames)
        if last:
            found += self._reader.receive_eof()
        events: list[Event] = []
        for sse in found:
            if sse.data == _DONE:
                events.append(Done())
            elif (value := chat_input.decoded(sse.data)) is not None and "choices" in value:
                events.append(chat_input.chunk(value))
        if self._take_last_frame() and self.failure is not None:
            events.append(self.failure)
        return events

    def _take_last_frame(self) -> bytes:
        frame, self._last_frame = self._last_frame, b""
        return frame

    # From bytes to events.

    def _is_delta(self, data: bytes) -> bool:
        """Whether it is one whole event that may pass unread."""
        size = len(data)
        # Single bytes as numbers: that is half the time.
        return (
            size <= self._max_event_size
            and data.find(_LF) == size - 2
            and data[-1:] == b"\n"
            and data[:6] == b"data: "
            # It stands near the end.
            and data.rfind(self._no_finish) > 0
            and _CR not in data
        )

    def _receive(self, data: bytes) -> bytes:
        self._check_open()
        if self.end is not None:
            return b""
        out: list[bytes] = []
        for event in self._events(data):
            if self._no_finish and self._is_delta(event):
                out.append(event)
            else:
                out += self._receive_event(event)
                if self.end is not None:
                    # Nothing that comes after the end is read by anybody.
                    break
        if self.end is None and len(self._rest) > self._max_event_size:
            self._fail_by_size()
        return self._handed_out(out)

    def _check_open(self) -> None:
        if self.state is State.CLOSED:
            raise LocalProtocolError("the stream is closed: receive_eof() was called before")

    def _handed_out(self, out: list[bytes]) -> bytes:
        if out:
            self.produced_output = True
        return b"".join(out)

    def _events(self, data: bytes) -> list[bytes]:
        """The events that are whole with these bytes; the rest of them is kept."""
        if self._kind == "blank" and (first := data.lstrip(chat_input.BLANK)[:1]):
            # No field of an event stream begins with a brace.
            self._kind = "body" if first == b"{" else "stream"
        # A blank line may be cut anywhere.
        near = bytes(self._rest[-3:]) + data
        if self._kind != "stream" or not _BOUNDARY.search(near):
            self._rest += data
            return []
        data = bytes(self._rest) + data
        if b"\r" not in data:
            *events, rest = data.split(b"\n\n")
            self._rest = bytearray(rest)
            return [event + b"\n\n" for event in events]
        ends = [boundary.end() for boundary in _BOUNDARY.finditer(data)]
        self._rest = bytearray(data[ends[-1] :])
        return [data[a:b] for a, b in pairwise([0, *ends])]

    def _receive_event(self, event: bytes) -> list[bytes]:
        """What may be handed out once this event has come."""
        if len(event) > self._max_event_size:
            self._fail_by_size()
            return []
        for sse in self._decoder.receive_data(event):
            self._receive_data(sse.event, sse.data, event)
        if self.end is State.FAILED:
            return []
        self._held.append(event)
        if self.state in (State.IDLE, State.CREATED):
            self._held_size += len(event)
            if self._held_size > self._max_event_size:
                self._fail_by_size()
            return []
        if self._choices == 1 and self.state is State.STREAMING:
            self._no_finish = next((each for each in _NO_FINISH if each in event), self._no_finish)
        return self._take_held()

    def _take_held(self) -> list[bytes]:
        held, self._held = self._held, []
        return held

    def _receive_data(self, name: str, data: bytes, event: bytes) -> bool:
        """Take in what an event says; False if it is nothing that could be read."""
        if data == _DONE:
            if not self._finished and self.state is not State.STREAMING:
                self._fail(_truncated("the upstream said [DONE] and nothing before it"))
            else:
                self._finish()
            return True
        value = chat_input.decoded(data)
        if value is None:
            return False
        if self.state is State.IDLE:
            self._advance(Signal.LIFECYCLE)
        error = chat_input.error_of(value, name)
        if error is not None:
            self._fail(shapes.failure(error), event)
            return True
        self.usage = chat_input.usage_of(value) or self.usage
        self._receive_choices(value, "delta")
        if "error" in self._finished.values():
            self._fail(_failed("the upstream's answer ended with finish_reason 'error'"), event)
        return True

    def _receive_choices(self, value: dict[str, Any], said: str) -> None:
        for place, choice in enumerate(chat_input.choices_of(value)):
            if chat_input.says_something(choice.get(said)):
                self._advance(Signal.OUTPUT)
            if isinstance(reason := choice.get("finish_reason"), str):
                index = choice.get("index")
                self._finished[index if isinstance(index, int) else place] = reason

    # The end.

    def _close(self, broken: Failure | None) -> bytes:
        self._check_open()
        out = b""
        if self.end is None:
            end = self._receive_body if self._kind == "body" else self._receive_rest
            out = end(bytes(self._rest), broken)
        self._advance(Signal.EOF)
        return out

    def _receive_rest(self, rest: bytes, broken: Failure | None) -> bytes:
        """What is left has no blank line at its end; upstreams are known to drop the last one."""
        found = [*self._decoder.receive_data(rest), *self._decoder.receive_eof()]
        readable = not rest.strip()
        for sse in found:
            # Only of a CR it was not known whether the blank line ends with it.
            event = rest if rest.endswith(b"\r\r") else b""
            readable = self._receive_data(sse.event, sse.data, event)
        if self.end is None:
            if len(self._finished) >= self._choices:
                self._finish()
            else:
                self._fail(broken or _truncated(self._how_it_ended(rest)))
        if self.end is State.FAILED:
            return b""
        return self._handed_out([*self._take_held(), *([_ended(rest)] if readable else [])])

    def _receive_body(self, body: bytes, broken: Failure | None) -> bytes:
        value = chat_input.decoded(body)
        if value is None:
            how = f"the upstream's answer is no JSON: it {_begins(body, self._secrets)}"
            self._fail(broken or _truncated(how))
            return b""
        choices = chat_input.choices_of(value)
        if not any(isinstance(choice.get("message"), dict) for choice in choices):
            error = chat_input.error_of(value)
            unfit = f"the upstream's answer is no completion: it {_begins(body, self._secrets)}"
            self._fail(_failed(unfit) if error is None else shapes.failure(error))
            return b""
        self.usage = chat_input.usage_of(value)
        self._receive_choices(value, "message")
        self._finish()
        self.whole = chat_input.completion(value, body)
        frames = chat_input.told_as_stream(value, include_usage=self._include_usage)
        return self._handed_out([frames])

    def _how_it_ended(self, rest: bytes) -> str:
        how = "the upstream's stream ended without its last word"
        if self.state is not State.IDLE:
            return how
        body = b"".join(self._held) + rest
        return f"{how}; it {_begins(body, self._secrets)}" if body else f"{how}: it is empty"

    def _advance(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state][signal]

    def _finish(self) -> None:
        cut_short = not _CUT_SHORT.isdisjoint(self._finished.values())
        self.said_nothing = self.state is not State.STREAMING and not cut_short
        self._end(Signal.INCOMPLETE if cut_short else Signal.COMPLETED)

    def _fail(self, failure: Failure, event: bytes = b"") -> None:
        """The end is a failure. `event`: what upstream said of it, which is passed on as it is."""
        self.failure = failure.without(self._secrets)
        hidden = any(secret.encode() in event for secret in self._secrets)
        self._last_frame = event if event and not hidden else self.failure.to_wire()
        self._end(Signal.FAILED)

    def _fail_by_size(self) -> None:
        self._fail(
            Failure(
                f"an upstream event is larger than max_event_size ({self._max_event_size} bytes)",
                type=shapes.UPSTREAM_ERROR,
                code=shapes.EVENT_TOO_LARGE,
                retryable=False,
            )
        )

    def _end(self, signal: Signal) -> None:
        self._advance(signal)
        self.end = self.state
        self._no_finish = b""


def _ended(event: bytes) -> bytes:
    """The event with the blank line without which no client reads it."""
    if not event.strip() or _BLANK_LINE.search(event):
        return event
    return event + (b"\n" if event.endswith(b"\n") else b"\n\n")


def _begins(body: bytes, secrets: tuple[str, ...]) -> str:
    head = body[:_HEAD_SIZE]
    if secrets and len(head) == _HEAD_SIZE:
        # The word that was cut off may be the beginning of a secret.
        head = _LAST_WORD.sub(b"", head)
    return f"begins with {head!r}"


def _truncated(how: str) -> Failure:
    return Failure(how, type=shapes.UPSTREAM_ERROR, code=shapes.TRUNCATED)


def _failed(how: str) -> Failure:
    return Failure(how, type=shapes.UPSTREAM_ERROR, code=shapes.INVALID_RESPONSE)
