"""`ChatStream`: the state machine from a Responses stream to a Chat Completions stream.

What may live here: the life of the response, from the first byte to the end, and the two
renderings. What may not: lines (`sse`), the shape of upstream's JSON (`responses`), what an event
about output means (`output`), how a chunk looks (`chunks`). Callers: the fold, the transports, the
server, and anybody with bytes of their own.

Theory of operation
-------------------
Bytes become server-sent events, each becomes a `StreamEvent`, and that is either about output,
which `Output` takes, or about the life of the response, which is handled here. `TRANSITIONS` says
what each may do in each state; `COMPLETED`, `INCOMPLETE` and `FAILED` have said their last word
and only wait for the end of the bytes.

Two paths, one machine. Most events are a delta for the same part as the one before. Once such a
delta has gone the long way, its `Route` is remembered, and a frame that differs in nothing but its
text takes it: the text is put into the frame or chunk that the writer gave for it. Anything else
forgets the route and goes the long way again. A text that took the route is accounted for
later, before anything looks at the account.

Bytes that only lengthen what has begun, a frame for the route or a line of the decoder's, are held
back and looked at together. No line ends in them but the first of such a frame, so nothing that
could be said is ever late.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from deltawire import shapes
from deltawire.chat import Chunk, Event, Failure, FinishReason, Usage
from deltawire.chunks import ChunkWriter
from deltawire.dialects import GENERIC, Dialect
from deltawire.enums import direct
from deltawire.errors import EventTooLarge, LocalProtocolError
from deltawire.items import Sink
from deltawire.output import Divergence, Output
from deltawire.responses import Response, StreamEvent, parse
from deltawire.route import Route, learn
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE, ServerSentEvent, SSEDecoder
from deltawire.tools import ClientTools


@direct
class State(enum.Enum):
    """Where the stream is."""

    IDLE = "idle"
    """Nothing of the response is known."""
    CREATED = "created"
    """The response exists; it has no output yet."""
    STREAMING = "streaming"
    """Output items have begun."""
    COMPLETED = "completed"
    """The finish was said; the answer is whole, or ended at a stop sequence."""
    INCOMPLETE = "incomplete"
    """The finish was said; upstream cut the answer short and says why."""
    FAILED = "failed"
    """A failure was said."""
    CLOSED = "closed"
    """The end of the bytes was received; nothing more may be."""


@direct
class Signal(enum.Enum):
    """What an upstream event means to the state of the stream."""

    LIFECYCLE = "lifecycle"
    """`response.created`, `response.queued`, `response.in_progress`."""
    OUTPUT = "output"
    """Anything about an output item that this bridge reads."""
    COMPLETED = "completed"
    """A terminal event whose response is complete, or a stop sequence in the content."""
    INCOMPLETE = "incomplete"
    """A terminal event whose response is incomplete."""
    FAILED = "failed"
    """An error, a failed or cancelled response, a limit, or bytes that end too early."""
    EOF = "eof"
    """The end of the bytes, after the end of the response."""


_LIVE: Final = {
    Signal.OUTPUT: State.STREAMING,
    Signal.COMPLETED: State.COMPLETED,
    Signal.INCOMPLETE: State.INCOMPLETE,
    Signal.FAILED: State.FAILED,
}

TRANSITIONS: Final = MappingProxyType(
    {
        State.IDLE: {Signal.LIFECYCLE: State.CREATED, **_LIVE},
        State.CREATED: {Signal.LIFECYCLE: State.CREATED, **_LIVE},
        State.STREAMING: {Signal.LIFECYCLE: State.STREAMING, **_LIVE},
        State.COMPLETED: {Signal.EOF: State.CLOSED},
        State.INCOMPLETE: {Signal.EOF: State.CLOSED},
        State.FAILED: {Signal.EOF: State.CLOSED},
        State.CLOSED: {},
    }
)
"""State -> signal -> next state. A signal that is not in a state's row does not reach it."""

_ENDED: Final = frozenset({State.COMPLETED, State.INCOMPLETE, State.FAILED})


_encode: Final = msgspec.json.Encoder().encode

# How many bytes are held back before they are looked at; longer frames take no route.
_MAX_HELD: Final = 4096
# So many routes in a row that nothing took, and the stream is one that has none.
_MAX_UNUSED: Final = 8

# Enough of a body that is no event stream to recognize it in an error message.
_HEAD_SIZE: Final = 64
_LAST_WORD: Final = re.compile(rb"[\w.~+/=-]+\Z")
# White space, and the bytes of a byte order mark.
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"

_LF: Final = ord("\n")
_CR: Final = ord("\r")


class ChatStream:
    """One upstream response on its way to a Chat Completions client.

    Feed it the bytes of a Responses event stream in any slicing, then `receive_eof()`. Use either
    the `receive_*` methods (events) or the `translate*` methods (ready frames); both are the same
    machine. It raises LocalProtocolError after `receive_eof()` and nothing else.

    Options, all keyword-only:

    include_usage: end with a usage chunk, as `stream_options.include_usage` asks for.
    client_tools: names of the custom tools the client offered, or the ClientTools of its
        translated request, which also knows which names were shortened. A `custom_tool_call` of
        another name is the provider's own. None: not known, `dialect` decides.
    dialect: how this upstream differs.
    reasoning: the key for reasoning text in a delta, None to leave reasoning out.
    reasoning_details: also tell each reasoning item as a whole, encrypted content included, so
        that the client can send it back.
    commentary: where messages of phase `commentary` go.
    images: `final` images only, `partial` ones too, or None.
    stop: content ends before the first of these; see `wants_close`.
    max_event_size: bytes; a larger event is a Failure `event_too_large`.
    secrets: texts that no Failure repeats, such as the key that upstream was sent.
    default_id, default_created (Unix seconds), default_model: for what upstream does not give.
    """

    __slots__ = (
        "_around",
        "_body",
        "_body_size",
        "_chunk",
        "_decoder",
        "_early_end",
        "_head",
        "_held",
        "_ignored",
        "_max_event_size",
        "_output",
        "_overflown",
        "_read",
        "_route",
        "_secrets",
        "_unused",
        "_way",
        "_writer",
        "end",
        "failure",
        "skipped_events",
        "state",
        "usage",
    )

    def __init__(
        self,
        *,
        include_usage: bool = False,
        client_tools: Iterable[str] | None = None,
        dialect: Dialect = GENERIC,
        reasoning: Literal["reasoning_content", "reasoning"] | None = "reasoning_content",
        reasoning_details: bool = False,
        commentary: Literal["reasoning", "content", "drop"] = "reasoning",
        images: Literal["final", "partial"] | None = "final",
        stop: str | Iterable[str] | None = None,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        secrets: Iterable[str] = (),
        default_id: str = "chatcmpl-unknown",
        default_created: int = 0,
        default_model: str = "unknown",
    ) -> None:
        self._writer = ChunkWriter(
            include_usage=include_usage,
            reasoning=reasoning,
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
            default_id=default_id,
            default_created=default_created,
            default_model=default_model,
        )
        self._output = Output(
            self._writer,
            client_tools=_known(client_tools),
            dialect=dialect,
            reasoning_details=reasoning_details,
            reasoning_sink=Sink.NOWHERE if reasoning is None else Sink.REASONING,
            commentary=commentary,
            images=images,
        )
        self._max_event_size = max_event_size
        self._secrets = tuple(filter(None, secrets))
        self._decoder = SSEDecoder(max_event_size=max_event_size, flush_at_eof=True)
        self._overflown = False
        # The first bytes tell an event stream from a JSON body, and say in the message of a
        # failure what came instead of either.
        self._head = b""
        self._body: list[bytes] | None = None
        self._body_size = 0
        self._early_end: Response | None = None
        self._ignored = 0

        self._route: Route | None = None
        # What reads the text of a frame that takes the route; None while that is not possible.
        self._read: Callable[[bytes], str] | None = None
        # Where such a text goes, what stands before and after it in its frame, and, if somebody
        # wants chunks, what makes one of it.
        self._way: tuple[Sink, int]
        self._around: tuple[bytes, bytes]
        self._chunk: Callable[[str], Chunk] | None = None
        self._unused = 0
        # The beginning of a frame or the rest of a line; None where nothing may be held back.
        self._held: bytearray | None = None

        self.state = State.IDLE
        self.end: State | None = None
        """COMPLETED, INCOMPLETE or FAILED, once one of them is reached; it stays after CLOSED."""
        self.usage: Usage | None = None
        """What the response cost, once upstream said so."""
        self.failure: Failure | None = None
        """The failure, if that was the end."""
        self.skipped_events = 0
        """Events whose data was no JSON object."""

    # What can be read at any time.

    @property
    def id(self) -> str:
        """The id of every chunk."""
        return self._writer.id

    @property
    def created(self) -> int:
        """Unix seconds, the same on every chunk."""
        return self._writer.created

    @property
    def model(self) -> str:
        """The model on every chunk."""
        return self._writer.model

    @property
    def produced_output(self) -> bool:
        """Whether a chunk was handed out, so that another attempt would repeat it."""
        return self._writer.started

    @property
    def said_nothing(self) -> bool:
        """The response completed, and there was nothing in it that a client could be shown."""
        return self._writer.empty

    @property
    def wants_close(self) -> bool:
        """A stop sequence was found: upstream may be hung up on."""
        return self._writer.stopped

    @property
    def whole(self) -> None:
        """None: what is handed out is made here, also of an answer that came whole."""

    @property
    def divergences(self) -> list[Divergence]:
        """Texts whose final form contradicts what was sent of them."""
        return self._output.divergences

    @property
    def ignored_events(self) -> int:
        """Unknown events, keepalives, comments, and all that came too late."""
        return self._ignored + self._output.ignored + self._decoder.comments

    # The two renderings. One event in one call, or a few bytes of one, is how streams arrive: what
    # is written out here is that, and nothing is called that need not be.

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes make: chunks, and at the end Failure or Done."""
        read = self._read
        if read is not None:
            if text := read(data):
                return [(self._chunk or self._chunk_maker())(text)]
        elif (
            (held := self._held) is not None
            and _LF not in data
            and _CR not in data
            and len(held) + len(data) <= _MAX_HELD
        ):
            held += data
            return []
        said: list[Event] = []
        for texts, _, events in self._pieces(data):
            if texts:
                said += map(self._chunk or self._chunk_maker(), texts)
            said += events
        return said

    def receive_eof(self) -> list[Event]:
        """The end of upstream's bytes. A Failure `upstream_truncated` if no end came before."""
        return self._close(None)

    def receive_break(self, failure: Failure) -> list[Event]:
        """As `receive_eof`, where the caller knows why no more bytes come.

        A stream that has its end by now ends as it would have; any other ends in `failure`.
        """
        return self._close(failure)

    def _close(self, broken: Failure | None) -> list[Event]:
        self._check_open()
        events = self._receive_plainly(self._release())
        self._receive_rest()
        if self.state not in _ENDED:
            self._end_of_upstream(broken or _truncated(self._end_of_bytes()))
        self._advance(Signal.EOF)
        return events + self._writer.take()

    def translate(self, data: bytes) -> bytes:
        """As `receive_data`, rendered as server-sent events."""
        read = self._read
        if read is not None:
            if text := read(data):
                # Joining a constant pair costs half of adding to both ends.
                return _encode(text).join(self._around)
        elif (
            (held := self._held) is not None
            and _LF not in data
            and _CR not in data
            and len(held) + len(data) <= _MAX_HELD
        ):
            held += data
            return b""
        frames: list[bytes] = []
        for _, encoded, events in self._pieces(data):
            if encoded:
                before, after = self._around
                frames += before, (after + before).join(encoded), after
            frames += [event.to_wire() for event in events]
        return b"".join(frames)

    def translate_eof(self) -> bytes:
        """As `receive_eof`, rendered as server-sent events."""
        return _rendered(self.receive_eof())

    def translate_break(self, failure: Failure) -> bytes:
        """As `receive_break`, rendered as server-sent events."""
        return _rendered(self.receive_break(failure))

    # From bytes to events.

    def _check_open(self) -> None:
        if self.state is State.CLOSED:
            raise LocalProtocolError("the stream is closed: receive_eof() was called before")

    def _pieces(self, data: bytes) -> Iterator[tuple[list[str], list[bytes], list[Event]]]:
        """What these bytes make, in order: texts that take the route, also as JSON, and events."""
        self._check_open()
        if self._held is not None:
            data = self._release() + data
        elif (
            data.endswith(b"\n\n")
            and data.find(b"\n", data.find(b"\n") + 1) >= len(data) - 2
            and _CR not in data
        ):
            # One event, which does not take the route: that was tried. To look for pairs of line
            # ends in a large one costs as much as to read it.
            yield [], [], self._receive_plainly(data)
            return
        at = 0
        while (end := data.find(b"\n\n", at) + 2) > 1:
            frame, at = data[at:end], end
            if self._read is not None and (text := self._read(frame)):
                yield [text], [_encode(text)], []
                if at < len(data) and self._route is not None:
                    texts, encoded, at = self._route.read_run(data, at)
                    yield texts, encoded, []
            else:
                yield [], [], self._receive_plainly(frame)
        if at < len(data) or not data:
            yield [], [], self._receive_rest_of_piece(data[at:])

    def _receive_rest_of_piece(self, rest: bytes) -> list[Event]:
        """Take in the beginning of an event, or more of one."""
        route = self._route
        # What is held back is not held to the limit of an event, so that one must be larger.
        may_hold = len(rest) < _MAX_HELD <= self._max_event_size
        if self._read is not None and may_hold and route is not None and route.may_begin(rest):
            self._read = None
            self._held = bytearray(rest)
            return []
        events = self._receive_plainly(rest)
        if self._decoder.room > _MAX_HELD and self.state is not State.IDLE:
            self._held = bytearray()
        return events

    def _release(self) -> bytes:
        """The bytes that were held back, which are not any more."""
        held, self._held = self._held, None
        if self._route is not None and self._decoder.idle:
            self._read = self._route.read
        return bytes(held or b"")

    def _receive_plainly(self, data: bytes) -> list[Event]:
        """Take in bytes the long way."""
        self._read = None
        if self.state is State.IDLE:
            data = self._open(data)
        for sse in self._feed(data):
            self._receive(sse)
        self._check_overflow()
        if self._route is not None and self._decoder.idle:
            self._read = self._route.read
        return self._writer.take()

    def _feed(self, data: bytes) -> list[ServerSentEvent]:
        if self._overflown:
            return []
        try:
            return self._decoder.receive_data(data)
        except EventTooLarge as error:
            self._overflown = True
            return error.events

    def _check_overflow(self) -> None:
        if self._overflown and self.state not in _ENDED:
            self._forget()
            self._fail(
                Failure(
                    f"an upstream event is larger than max_event_size"
                    f" ({self._max_event_size} bytes)",
                    type=shapes.UPSTREAM_ERROR,
                    code=shapes.EVENT_TOO_LARGE,
                    retryable=False,
                )
            )

    def _open(self, data: bytes) -> bytes:
        """Look at the first bytes; keep them back if they are a JSON body.

        No field of an event stream begins with a brace, so one look at the first byte that is
        neither white space nor a byte order mark decides.
        """
        if self._body is None:
            more = data if self._head else data.lstrip(_BLANK)
            if self._head or not more.startswith(b"{"):
                self._head = (self._head + more[:_HEAD_SIZE])[:_HEAD_SIZE]
                return data
            self._body = []
        self._body.append(data)
        self._body_size += len(data)
        if self._body_size > self._max_event_size:
            self._overflown = True
            self._body = None
        return b""

    def _receive_rest(self) -> None:
        if self._body is not None:
            body = b"".join(self._body).lstrip(_BLANK)
            self._body = None
            if self._receive_bare(body):
                return
            self._head = body[:_HEAD_SIZE]
            # A stream may begin with a line that only looks like JSON; nothing of it is lost.
            for sse in self._feed(body):
                self._receive(sse)
        if not self._overflown:
            try:
                rest = self._decoder.receive_eof()
            except EventTooLarge:
                self._overflown = True
            else:
                for sse in rest:
                    self._receive(sse)
        self._check_overflow()

    def _remember(self, sse: ServerSentEvent, event: StreamEvent) -> None:
        """Let frames like this one take the same way as it, if that is a plain one."""
        place = self._output.latest
        if place is None or self._unused == _MAX_UNUSED:
            return
        way = self._output.way_of(*place)
        name = b"" if sse.event == "message" else b"event: %b\n" % sse.event.encode()
        template = None if way is None else learn(name + b"data: ", sse.data, event)
        if way is None or template is None:
            return
        self._route = Route(template, self._output.account, place, self._max_event_size)
        self._way, self._around, self._chunk = way, self._writer.around(*way), None

    def _chunk_maker(self) -> Callable[[str], Chunk]:
        self._chunk = self._writer.chunk_maker(*self._way)
        return self._chunk

    def _forget(self) -> None:
        """Let nothing take the route any more."""
        if self._route is not None:
            self._route.settle()
            self._unused = 0 if self._route.used else self._unused + 1
            self._route = self._read = None

    def _receive(self, sse: ServerSentEvent) -> None:
        self._forget()
        if self.state in _ENDED:
            self._ignored += 1
            return
        if sse.data == b"[DONE]":
            self._end_of_upstream(_truncated("the upstream said [DONE] without a terminal event"))
            return
        event = parse(sse.data, StreamEvent)
        if event is None:
            if sse.data.strip():
                self.skipped_events += 1
            else:
                self._ignored += 1
            return
        name = event.type or (sse.event if sse.event != "message" else "")
        if not name:
            if not self._receive_bare(sse.data):
                self._ignored += 1
            return
        event.type = name
        if self._output.receive(event):
            self._advance(Signal.OUTPUT)
            if self._writer.ended:
                self._advance(Signal.COMPLETED)
            else:
                self._remember(sse, event)
        elif name in _LIFECYCLE:
            self._on_lifecycle(event)
        elif name in _TERMINALS:
            self._on_terminal(event)
        elif name == "error":
            self._on_error(event)
        else:
            self._ignored += 1

    def _receive_bare(self, payload: bytes) -> bool:
        """Take a JSON object that is no event: a response, or an error. False if it is neither.

        A body that is one event in itself is taken as that.
        """
        event = parse(payload, StreamEvent)
        response = parse(payload, Response)
        if event is None or response is None:
            return False
        if event.type in _TERMINALS:
            self._on_terminal(event)
        elif event.type == "error" or (event.error and response.object != "response"):
            self._on_error(event)
        elif response.object == "response" or response.output is not None:
            if response.status in _UNFINISHED_STATUSES or response.status in _FINAL_STATUSES:
                self._end(response.status, response)
            else:
                # Some servers leave the status out, or write "complete".
                self._end("completed", response)
        else:
            return False
        return True

    def _end_of_upstream(self, failure: Failure) -> None:
        """Upstream stopped; without a terminal event before, that is a failure."""
        if (response := self._early_end) is not None:
            self._end(response.status or "", response)
        else:
            self._fail(failure)

    def _end_of_bytes(self) -> str:
        how = "the upstream's stream ended without a terminal event"
        if self.state is not State.IDLE:
            return how
        head = self._head
        if self._secrets and len(head) == _HEAD_SIZE:
            # The word that was cut off may be the beginning of a secret.
            head = _LAST_WORD.sub(b"", head)
        return f"{how}; its body begins with {head!r}" if self._head else f"{how}: it is empty"

    # The life of the response.

    def _advance(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state][signal]
        if self.state in _ENDED:
            self.end = self.state
        if signal is not Signal.OUTPUT:
            # Nothing takes the short way past the end.
            self._forget()
            self._head = b""

    def _on_lifecycle(self, event: StreamEvent) -> None:
        self._advance(Signal.LIFECYCLE)
        if (response := event.response) is not None:
            self._writer.identify(response)
            if response.status in ("failed", "cancelled"):
                self._end(response.status, response)
            elif response.status in _FINAL_STATUSES:
                # Some servers send the finished object at the start; the output may still come.
                self._early_end = response

    def _on_terminal(self, event: StreamEvent) -> None:
        response = event.response or Response()
        named = _TERMINALS[event.type or ""]
        status = response.status if response.status in _FINAL_STATUSES else named
        self._end(status, response)

    def _on_error(self, event: StreamEvent) -> None:
        self._fail(shapes.failure(event.error, event))

    def _end(self, status: str, response: Response) -> None:
        self._writer.identify(response)
        if response.usage is not None:
            self.usage = shapes.usage(response.usage)
        if status == "failed":
            self._fail(shapes.failure(response.error))
        elif status == "cancelled":
            self._fail(
                Failure(
                    "the upstream cancelled the response",
                    type=shapes.UPSTREAM_ERROR,
                    code=shapes.CANCELLED,
                )
            )
        elif status in _FINAL_STATUSES:
            self._output.reconcile(response.output or [])
            self._output.close(cut=status == "incomplete")
            self._writer.finish(self._finish_reason(status, response), self.usage)
            whole = status == "completed" or self._writer.stopped
            self._advance(Signal.COMPLETED if whole else Signal.INCOMPLETE)
        else:
            self._fail(
                Failure(
                    f"the upstream answered with a response that is {response.status}",
                    type=shapes.UPSTREAM_ERROR,
                    code=shapes.TRUNCATED,
                )
            )

    def _finish_reason(self, status: str, response: Response) -> FinishReason:
        if status == "incomplete":
            details = response.incomplete_details
            filtered = details is not None and details.reason == "content_filter"
            return "content_filter" if filtered else "length"
        return "tool_calls" if self._writer.calls else "stop"

    def _fail(self, failure: Failure) -> None:
        failure = failure.without(self._secrets)
        self._output.abandon()
        self._writer.fail(failure)
        if self._writer.stopped:
            # What was held back turned out to end at a stop sequence: the answer is whole.
            self._advance(Signal.COMPLETED)
        else:
            self.failure = failure
            self._advance(Signal.FAILED)


def _known(client_tools: Iterable[str] | None) -> ClientTools | None:
    if client_tools is None or isinstance(client_tools, ClientTools):
        return client_tools
    return ClientTools(client_tools)


def _truncated(how: str) -> Failure:
    return Failure(how, type=shapes.UPSTREAM_ERROR, code=shapes.TRUNCATED)


def _rendered(events: list[Event]) -> bytes:
    return b"".join([event.to_wire() for event in events])


_LIFECYCLE: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_TERMINALS: Final = {
    "response.completed": "completed",
    "response.done": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_FINAL_STATUSES: Final = frozenset(_TERMINALS.values())
_UNFINISHED_STATUSES: Final = frozenset({"queued", "in_progress"})
