"""`ChatStream`: the state machine from a Responses stream to a Chat Completions stream.

What may live here: what an upstream event means for the client, and in which order it is said.
What may not: bytes and lines (`sse`), the shape of upstream's JSON (`responses`), who an item is
and what is already known of it (`items`), how values change their shape (`shapes`). Callers: the
fold, the transports, the server, and anybody with bytes of their own.

Theory of operation
-------------------
Bytes become server-sent events, each becomes a `StreamEvent`, and `_HANDLERS` names the method
that takes it. Nearly all of them come down to three verbs:

* `_delta`: text that is new. It is said at once, unless its call has to wait for an earlier one.
* `_state`: the whole of a text that was, wholly or partly, already received. Only what it adds is
  said; where it contradicts what was said, nothing is, and a `Divergence` is recorded.
* `_say`: put a chunk out, the role chunk before the first.

`TRANSITIONS` says what each kind of event may do in each state; `COMPLETED`, `INCOMPLETE` and
`FAILED` have said their last word and only wait for the end of the bytes.

Two paths, one machine. Most events are a delta for the same part as the one before. Once such a
delta has gone the long way, its `_Route` is remembered: the identity that it came with and the
frame around its text. An event with the very same identity takes the same route, its JSON string
spliced into the frame as it is; anything else forgets the route and goes the long way again. A
spliced text is accounted for later, in `_settle`, before anything looks at the account.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import chain
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from deltawire import shapes
from deltawire.chat import (
    AnnotationDelta,
    ChatCompletionChunk,
    Chunk,
    ChunkChoice,
    ChunkWithUsage,
    Delta,
    Done,
    Failure,
    FinishReason,
    FunctionDelta,
    ImageDelta,
    ImageURL,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from deltawire.dialects import GENERIC, Dialect
from deltawire.errors import EventTooLarge, LocalProtocolError
from deltawire.items import (
    CallItem,
    Channel,
    Family,
    HostedItem,
    Item,
    MessageItem,
    Part,
    ReasoningItem,
    Sink,
    arguments_of,
    arguments_text,
    digest,
    refusals_of,
    summaries_of,
    texts_of,
)
from deltawire.responses import (
    Annotation,
    OutputItem,
    Response,
    StreamEvent,
    parse,
    scrub,
)
from deltawire.responses import TokenLogprob as GivenLogprob
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE, ServerSentEvent, SSEDecoder
from deltawire.stops import StopSequences

Event = Chunk | Failure | Done


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


class Divergence(Struct, frozen=True):
    """What was sent of a text is no prefix of its final form. `sent`, `stated`: code points."""

    item: str
    sink: str
    sent: int
    stated: int


class _DeltaEvent(Struct, gc=False):
    """A delta event read only as far as routing needs; `logprobs` has to be empty to fit."""

    delta: str
    type: str | None = None
    item_id: str | None = None
    call_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    logprobs: tuple[()] = ()


_decode_delta: Final = msgspec.json.Decoder(_DeltaEvent).decode
# What a decoder raises for a payload that is not of the expected kind, and an index at the end.
_UNFIT: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError)
_encode: Final = msgspec.json.Encoder().encode

# Spliced texts wait to be accounted for. 64 of at most 4 KiB are few enough to keep and enough
# to make the cost of the digest per delta small; in a larger event the splice would save little.
_MAX_UNSETTLED: Final = 64
_MAX_SPLICED: Final = 4096

# Enough of a body that is no event stream to recognize it in an error message.
_HEAD_SIZE: Final = 64

_LF: Final = ord("\n")

# Stands for the text in a frame while the frame is being prepared; encoded, it cannot be mistaken.
_MARK: Final = "\0"


class _Route(NamedTuple):
    """How the last delta went, for events of the same identity. A tuple, to be unpacked at once."""

    head: bytes
    """What stands before the payload of such an event."""
    head_size: int
    limit: int
    """How large the payload may be."""
    identity: _DeltaEvent
    prefix: bytes
    """What stands before the text in its frame."""
    suffix: bytes
    unsettled: list[str]
    """The stream's own list of texts to be accounted for."""


class ChatStream:
    """One upstream response on its way to a Chat Completions client.

    Feed it the bytes of a Responses event stream in any slicing, then `receive_eof()`. Use either
    the `receive_*` methods (events) or the `translate*` methods (ready frames); both are the same
    machine. It raises LocalProtocolError after `receive_eof()` and nothing else.

    Options, all keyword-only:

    include_usage: end with a usage chunk, as `stream_options.include_usage` asks for.
    client_tools: names of the custom tools the client offered. A `custom_tool_call` of another
        name is the provider's own. None: not known, `dialect` decides.
    dialect: how this upstream differs.
    reasoning: the key for reasoning text in a delta, None to leave reasoning out.
    commentary: where messages of phase `commentary` go.
    images: `final` images only, `partial` ones too, or None.
    stop: content ends before the first of these; see `wants_close`.
    max_event_size: bytes; a larger event is a Failure `event_too_large`.
    default_id, default_created (Unix seconds), default_model: for what upstream does not give.
    """

    def __init__(
        self,
        *,
        include_usage: bool = False,
        client_tools: Iterable[str] | None = None,
        dialect: Dialect = GENERIC,
        reasoning: Literal["reasoning_content", "reasoning"] | None = "reasoning_content",
        commentary: Literal["reasoning", "content", "drop"] = "reasoning",
        images: Literal["final", "partial"] | None = "final",
        stop: str | Iterable[str] | None = None,
        max_event_size: int = DEFAULT_MAX_EVENT_SIZE,
        default_id: str = "chatcmpl-unknown",
        default_created: int = 0,
        default_model: str = "unknown",
    ) -> None:
        self._include_usage = include_usage
        self._client_tools = None if client_tools is None else frozenset(client_tools)
        self._dialect = dialect
        self._reasoning_key = reasoning
        self._reasoning_sink = Sink.NOWHERE if reasoning is None else Sink.REASONING
        self._commentary_sink = {
            "reasoning": self._reasoning_sink,
            "content": Sink.CONTENT,
            "drop": Sink.NOWHERE,
        }[commentary]
        self._images = images
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self._stops = StopSequences(stops) if any(stops) else None
        self._max_event_size = max_event_size
        self._default_id = default_id
        self._default_created = default_created
        self._default_model = default_model

        self._decoder = SSEDecoder(max_event_size=max_event_size, flush_at_eof=True)
        self._overflown = False
        # The first bytes tell an event stream from a JSON body, and say in the message of a
        # failure what came instead of either.
        self._head = b""
        self._body: list[bytes] | None = None
        self._body_size = 0

        self._id: str | None = None
        self._created: int | None = None
        self._model: str | None = None
        self._said_anything = False
        self._out: list[Event] = []
        self._early_end: Response | None = None

        self._messages: Family[MessageItem] = Family()
        self._reasonings: Family[ReasoningItem] = Family()
        self._calls: Family[CallItem] = Family()
        self._hosted: Family[HostedItem] = Family()

        self._content_length = 0
        self._reasoning_block: Channel | Part | None = None
        # Calls in order of their start, without those that are complete and said.
        self._unfinished: deque[CallItem] = deque()
        self._last_opened: CallItem | None = None
        self._calls_said = 0
        self._annotations_said = 0
        self._images_said = 0
        self._held_logprobs: list[TokenLogprob] = []

        # The channel and part of the delta in hand, where it went the plainest way.
        self._latest: tuple[Channel, Part] | None = None
        self._route: _Route | None = None
        self._target: tuple[Channel, Part] | None = None
        self._unsettled: list[str] = []
        self._frames: dict[tuple[Sink, int], tuple[bytes, bytes]] = {}

        self.state = State.IDLE
        self.usage: Usage | None = None
        """What the response cost, once upstream said so."""
        self.failure: Failure | None = None
        """The failure, if that was the end."""
        self.skipped_events = 0
        """Events whose data was no JSON object."""
        self.divergences: list[Divergence] = []
        """Texts whose final form contradicts what was sent of them."""
        self.wants_close = False
        """A stop sequence was found: upstream may be hung up on."""
        self._ignored = 0

    # What can be read at any time.

    @property
    def id(self) -> str:
        """The id of every chunk."""
        return self._default_id if self._id is None else self._id

    @property
    def created(self) -> int:
        """Unix seconds, the same on every chunk."""
        return self._default_created if self._created is None else self._created

    @property
    def model(self) -> str:
        """The model on every chunk."""
        return self._default_model if self._model is None else self._model

    @property
    def produced_output(self) -> bool:
        """Whether a chunk was handed out, so that another attempt would repeat it."""
        return self._said_anything

    @property
    def ignored_events(self) -> int:
        """Unknown events, keepalives, comments, and all that came too late."""
        return self._ignored + self._decoder.comments

    # The two renderings.

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes make: chunks, and at the end Failure or Done."""
        events = self._out = []
        for sse in self._decode(data):
            self._receive(sse)
        self._check_overflow()
        return events

    def receive_eof(self) -> list[Event]:
        """The end of upstream's bytes. A Failure `upstream_truncated` if no end came before."""
        self._check_open()
        events = self._out = []
        self._receive_rest()
        if self.state not in _ENDED:
            self._end_of_upstream()
        self._advance(Signal.EOF)
        return events

    def translate(self, data: bytes) -> bytes:
        """As `receive_data`, rendered as server-sent events."""
        if _LF not in data and self.state is not State.IDLE and self._decoder.hold(data):
            return b""
        frames: list[bytes] = []
        taken, total = 0, len(data)
        decode, encode = _decode_delta, _encode
        while taken < total:
            route = self._route
            # No method calls here: this loop is what a stream costs.
            if route is not None and self._decoder.idle:
                head, start, limit, identity, prefix, suffix, unsettled = route
                start += taken
                while data.startswith(head, taken):
                    end = data.find(b"\n", start)
                    if not 0 < end - start < limit:
                        break
                    try:
                        event = decode(data[start:end])
                        blank_line_follows = data[end + 1] == _LF
                    except _UNFIT:
                        break
                    text = event.delta
                    event.delta = ""
                    if event != identity or not text or not blank_line_follows:
                        break
                    unsettled.append(text)
                    if len(unsettled) == _MAX_UNSETTLED:
                        self._settle()
                    frame = prefix + encode(text) + suffix
                    end += 2
                    if end == total and not frames:
                        return frame
                    frames.append(frame)
                    start += end - taken
                    taken = end
                if taken == total:
                    break
            taken = self._translate_next(data, taken, frames)
        return b"".join(frames)

    def _translate_next(self, data: bytes, taken: int, frames: list[bytes]) -> int:
        """Take the next event the long way, or all the bytes if where it ends is not plain."""
        end = data.find(b"\n\n", taken) + 2
        if end == 1 or b"\r" in data:
            end = len(data)
        frames += [event.to_wire() for event in self.receive_data(data[taken:end])]
        return end

    def translate_eof(self) -> bytes:
        """As `receive_eof`, rendered as server-sent events."""
        return b"".join(event.to_wire() for event in self.receive_eof())

    # From bytes to events.

    def _check_open(self) -> None:
        if self.state is State.CLOSED:
            raise LocalProtocolError("the stream is closed: receive_eof() was called before")

    def _decode(self, data: bytes) -> list[ServerSentEvent]:
        self._check_open()
        if self.state is State.IDLE:
            data = self._open(data)
        if self._overflown:
            return []
        try:
            return self._decoder.receive_data(data)
        except EventTooLarge as error:
            self._overflown = True
            return error.events

    def _check_overflow(self) -> None:
        if self._overflown and self.state not in _ENDED:
            self._settle()
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
            more = data if self._head else data.lstrip(b"\xef\xbb\xbf \t\r\n")
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
            body = b"".join(self._body)
            self._body = None
            if self._receive_bare(body):
                return
            # A stream may begin with a line that only looks like JSON; nothing of it is lost.
            for sse in self._decode_again(body):
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

    def _decode_again(self, body: bytes) -> list[ServerSentEvent]:
        try:
            return self._decoder.receive_data(body)
        except EventTooLarge as error:
            self._overflown = True
            return error.events

    def _remember(
        self, line: str, name: str, event: StreamEvent, channel: Channel, part: Part
    ) -> None:
        """Let events of the same identity take the same route, if it is a plain one."""
        sink = channel.sink
        position = 0
        if sink is Sink.ARGUMENTS:
            call = channel.item
            assert isinstance(call, CallItem)
            position = call.position
            plain = call.opened
        else:
            plain = sink is not Sink.NOWHERE and (sink is not Sink.CONTENT or not self._stops)
        if not plain or part.half or self.state in _ENDED:
            return
        if (sink, position) not in self._frames:
            self._frames[sink, position] = self._frame_around(sink, position)
        identity = _DeltaEvent(
            "",
            name,
            event.item_id,
            event.call_id,
            event.output_index,
            event.content_index,
            event.summary_index,
        )
        head = b"data: " if line == "message" else b"event: %b\ndata: " % line.encode()
        # The decoder's limit is on the whole line.
        limit = min(self._max_event_size - len(b"data: ") + 1, _MAX_SPLICED)
        prefix, suffix = self._frames[sink, position]
        self._route = _Route(head, len(head), limit, identity, prefix, suffix, self._unsettled)
        self._target = (channel, part)

    def _frame_around(self, sink: Sink, position: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in a frame of this kind."""
        delta = Delta(content=_MARK)
        if sink is Sink.REFUSAL:
            delta = Delta(refusal=_MARK)
        elif sink is Sink.REASONING:
            delta = self._reasoning_delta(_MARK)
        elif sink is Sink.ARGUMENTS:
            function = FunctionDelta(arguments=_MARK)
            delta = Delta(tool_calls=[ToolCallDelta(position, function=function)])
        frame = self._chunk([ChunkChoice(0, delta, None)]).to_wire()
        prefix, _, suffix = frame.rpartition(msgspec.json.encode(_MARK))
        return prefix, suffix

    def _settle(self) -> None:
        """Account for the spliced texts."""
        if self._unsettled and self._target is not None:
            text = "".join(self._unsettled)
            self._unsettled.clear()
            self._account(*self._target, text)

    def _account(self, channel: Channel, part: Part, text: str) -> None:
        if channel.sink is Sink.CONTENT:
            if not part.sent.length:
                part.offset = self._content_length
            self._content_length += len(text)
        part.sent.extend(text)
        channel.sent.extend(text)

    def _receive(self, sse: ServerSentEvent) -> None:
        self._settle()
        self._route = None
        if self.state in _ENDED:
            self._ignored += 1
            return
        if sse.data == b"[DONE]":
            self._end_of_upstream()
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
        event.type = _SYNONYMS.get(name, name)
        handler = _HANDLERS.get(event.type)
        if handler is None:
            self._ignored += 1
        else:
            self._latest = None
            handler(self, event)
            if self._latest is not None:
                self._remember(sse.event, name, event, *self._latest)

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

    def _end_of_upstream(self) -> None:
        """Upstream stopped; without a terminal event before, that is a failure."""
        if (response := self._early_end) is not None:
            self._end(response.status or "", response)
            return
        detail = ""
        if self.state is State.IDLE:
            detail = f"; its body begins with {self._head!r}" if self._head else "; it was empty"
        self._fail(
            Failure(
                f"the upstream's stream ended without a terminal event{detail}",
                type=shapes.UPSTREAM_ERROR,
                code=shapes.TRUNCATED,
            )
        )

    # The life of the response.

    def _advance(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state][signal]

    def _identify(self, response: Response) -> None:
        """Fill in what is not known yet; after the first chunk, nothing changes any more."""
        if self._said_anything:
            return
        if self._id is None and response.id:
            self._id = "chatcmpl-" + response.id.removeprefix("resp_")
        if self._created is None:
            self._created = shapes.count(response.created_at)
        if self._model is None:
            self._model = response.model or None

    def _on_lifecycle(self, event: StreamEvent) -> None:
        self._advance(Signal.LIFECYCLE)
        if (response := event.response) is not None:
            self._identify(response)
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
        self._identify(response)
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
            self._reconcile(response.output or [])
            if status == "completed":
                self._finish(Signal.COMPLETED, None)
            else:
                details = response.incomplete_details
                filtered = details is not None and details.reason == "content_filter"
                self._finish(Signal.INCOMPLETE, "content_filter" if filtered else "length")
        else:
            self._fail(
                Failure(
                    f"the upstream answered with a response that is {response.status}",
                    type=shapes.UPSTREAM_ERROR,
                    code=shapes.TRUNCATED,
                )
            )

    def _finish(self, signal: Signal, reason: FinishReason | None) -> None:
        cut = signal is Signal.INCOMPLETE
        for item in self._items():
            for channel in item.channels:
                for part in channel.parts.values():
                    if part.half:
                        part.half = ""
                        self._grow(channel, part, "\ufffd")
        for call in self._unfinished:
            if not (cut or call.custom or call.arguments.sent.length):
                self._grow(call.arguments, call.arguments.streaming(0), "{}")
            call.complete = call.identified = True
        self._say_calls()
        for call in self._unfinished:
            # Without a name it is no call that a client could run.
            self._diverge(call.arguments, 0)
        self._release_stops()
        if self.state in _ENDED:
            return
        self._say_finish(signal, reason or ("tool_calls" if self._calls_said else "stop"))

    def _say_finish(self, signal: Signal, reason: FinishReason) -> None:
        self._say(Delta(), finish_reason=reason)
        if self._include_usage and self.usage is not None:
            self._out.append(self._chunk([], self.usage))
        self._out.append(Done())
        self._advance(signal)

    def _fail(self, failure: Failure) -> None:
        for call in self._unfinished:
            if not call.opened and call.name:
                self._open_call(call)
        self._release_stops()
        if self.state in _ENDED:
            return
        self.failure = failure
        self._out.append(failure)
        self._advance(Signal.FAILED)

    def _items(self) -> Iterable[Item]:
        return chain(self._messages.items, self._reasonings.items, self._calls.items)

    # What is said.

    def _say(
        self,
        delta: Delta,
        *,
        finish_reason: FinishReason | None = None,
        logprobs: list[TokenLogprob] | None = None,
    ) -> None:
        """Put out a chunk, and the role chunk before the first."""
        if delta.content is None:
            # What was held back in case it began a stop sequence was before this.
            self._release_stops()
        if self.state in _ENDED:
            return
        if not self._said_anything:
            self._said_anything = True
            role = Delta(role="assistant", content="")
            self._out.append(self._chunk([ChunkChoice(0, role, None)]))
        choice = ChunkChoice(0, delta, finish_reason, Logprobs(logprobs) if logprobs else None)
        self._out.append(self._chunk([choice]))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> Chunk:
        kind: Final = "chat.completion.chunk"
        if self._include_usage:
            return ChunkWithUsage(self.id, kind, self.created, self.model, choices, usage=usage)
        return ChatCompletionChunk(self.id, kind, self.created, self.model, choices)

    def _grow(
        self, channel: Channel, part: Part, text: str, logprobs: list[TokenLogprob] | None = None
    ) -> None:
        """Account for new text and say it."""
        self._account(channel, part, text)
        sink = channel.sink
        if sink is Sink.CONTENT:
            self._say_content(text, logprobs or [])
        elif sink is Sink.REASONING:
            self._say_reasoning(channel, part, text)
        elif sink is Sink.REFUSAL:
            self._say(Delta(refusal=text))
        elif sink is Sink.ARGUMENTS:
            self._say_arguments(channel, text)

    def _say_content(self, text: str, logprobs: list[TokenLogprob]) -> None:
        if self._stops is None:
            self._say(Delta(content=text), logprobs=logprobs)
            return
        self._held_logprobs += logprobs
        self._say_until_stop(*self._stops.feed(text))

    def _release_stops(self) -> None:
        if self._stops is not None:
            self._say_until_stop(*self._stops.release())

    def _say_until_stop(self, text: str, hit: bool) -> None:
        if text:
            held, self._held_logprobs = self._held_logprobs, []
            self._say(Delta(content=text), logprobs=held)
        if hit and self.state not in _ENDED:
            self.wants_close = True
            self._say_finish(Signal.COMPLETED, "stop")

    def _say_reasoning(self, channel: Channel, part: Part, text: str) -> None:
        """Say reasoning; a new block of it (a summary part, an item) begins after a blank line."""
        item = channel.item
        block: Channel | Part = channel
        if isinstance(item, ReasoningItem):
            if channel is item.summary:
                block = part
                item.raw.sink = Sink.NOWHERE
            else:
                item.summary.sink = Sink.NOWHERE
        if self._reasoning_block not in (None, block):
            text = "\n\n" + text
        self._reasoning_block = block
        self._say(self._reasoning_delta(text))

    def _reasoning_delta(self, text: str) -> Delta:
        if self._reasoning_key == "reasoning":
            return Delta(reasoning=text)
        return Delta(reasoning_content=text)

    def _say_arguments(self, channel: Channel, text: str) -> None:
        call = channel.item
        assert isinstance(call, CallItem)
        if call.opened:
            function = FunctionDelta(arguments=text)
            self._say(Delta(tool_calls=[ToolCallDelta(call.position, function=function)]))
        else:
            call.waiting.append(text)

    def _say_calls(self) -> None:
        """Say the calls whose turn it is: each only after the one before is complete."""
        while self._unfinished:
            call = self._unfinished[0]
            if not call.opened:
                if not (call.name and call.identified):
                    return
                self._open_call(call)
            if not call.complete:
                return
            self._unfinished.popleft()

    def _open_call(self, call: CallItem) -> None:
        call.opened = True
        call.position = self._calls_said
        self._calls_said += 1
        self._last_opened = call
        call_id = call.call_id or call.id
        if not call_id:
            call_id = f"call_{self.id.removeprefix('chatcmpl-')}_{call.position}"
        function = FunctionDelta(name=call.name, arguments="")
        opening = ToolCallDelta(call.position, id=call_id, type="function", function=function)
        self._say(Delta(tool_calls=[opening]))
        if call.waiting:
            self._say_arguments(call.arguments, "".join(call.waiting))
            call.waiting = []

    def _diverge(self, channel: Channel, stated: int) -> None:
        item = channel.item
        if not item.diverged:
            item.diverged = True
            name = item.id or item.call_id or ""
            sent = channel.sent.length
            self.divergences.append(Divergence(name, channel.sink.value, sent, stated))

    # The three verbs.

    def _delta(self, channel: Channel, index: int | None, event: StreamEvent) -> None:
        """Take in text that is new."""
        if not event.delta and not event.logprobs:
            self._ignored += 1
            return
        part = channel.streaming(index)
        if channel.item.done or part.closed:
            self._ignored += 1
            return
        text, part.half = _whole_pairs(part.half + (event.delta or ""))
        if part.replay is not None:
            if part.replay.startswith(text, part.replayed):
                part.replayed += len(text)
                return
            text = part.replay[: part.replayed] + text
            part.replay = None
        logprobs = self._count_logprobs(channel, part, shapes.logprobs(event.logprobs))
        if text:
            self._grow(channel, part, text, logprobs)
            self._latest = (channel, part)
        elif logprobs:
            self._say(Delta(), logprobs=logprobs)

    def _count_logprobs(
        self, channel: Channel, part: Part, logprobs: list[TokenLogprob]
    ) -> list[TokenLogprob]:
        part.logprobs += len(logprobs)
        channel.logprobs += len(logprobs)
        return logprobs

    def _prefill(self, channel: Channel, part: Part, text: str) -> None:
        """Take in text that came with an announcement; more may follow, or it all once more."""
        if text and not part.sent.length:
            part.replay = text
            self._grow(channel, part, text)

    def _state(
        self,
        channel: Channel,
        part: Part,
        text: str,
        given: list[GivenLogprob] | None = None,
    ) -> None:
        """Take in the whole text of a part: say what it adds, and close the part."""
        rest = part.sent.remainder(text)
        stated = shapes.logprobs(given)[part.logprobs :]
        logprobs = self._count_logprobs(channel, part, stated)
        if rest is None or (rest and channel.item.frozen):
            self._diverge(channel, len(text))
        elif rest:
            self._grow(channel, part, rest, logprobs)
        elif logprobs and channel.sink is Sink.CONTENT:
            self._say(Delta(), logprobs=logprobs)
        part.half = ""
        channel.close(part)

    def _state_all(self, channel: Channel, texts: list[str]) -> None:
        """Take in the whole text of a channel, in the parts that its item is stated to have."""
        whole = "".join(texts)
        rest = channel.sent.remainder(whole)
        if rest is None or (rest and channel.item.frozen):
            self._diverge(channel, len(whole))
        elif rest:
            known = channel.sent.length
            for text in texts:
                if known >= len(text):
                    known -= len(text)
                else:
                    part = channel.last() if known else channel.vacant()
                    self._grow(channel, part, text[known:])
                    known = 0
        for part in list(channel.open):
            part.half = ""
            channel.close(part)

    # Messages.

    def _begin_message(
        self, item_id: str | None, index: int | None, phase: str | None
    ) -> MessageItem:
        self._advance(Signal.OUTPUT)
        message = MessageItem(self._commentary_sink if phase == "commentary" else Sink.CONTENT)
        self._messages.add(message)
        self._messages.register(message, item_id, index, None)
        return message

    def _streaming_message(self, event: StreamEvent) -> MessageItem:
        found = self._messages.of_delta(event.item_id, event.output_index, None)
        return found or self._begin_message(event.item_id, event.output_index, None)

    def _stated_message(
        self, event: StreamEvent, agrees: Callable[[MessageItem], bool]
    ) -> MessageItem:
        found = self._messages.of_statement(event.item_id, event.output_index, None, agrees)
        return found or self._begin_message(event.item_id, event.output_index, None)

    def _on_text_delta(self, event: StreamEvent) -> None:
        self._delta(self._streaming_message(event).text, event.content_index, event)

    def _on_refusal_delta(self, event: StreamEvent) -> None:
        self._delta(self._streaming_message(event).refusal, event.content_index, event)

    def _on_text_done(self, event: StreamEvent) -> None:
        self._on_message_text(event, event.text, event.logprobs)

    def _on_refusal_done(self, event: StreamEvent) -> None:
        self._on_message_refusal(event, event.refusal)

    def _on_message_text(
        self, event: StreamEvent, text: str | None, logprobs: list[GivenLogprob] | None
    ) -> MessageItem | None:
        if text is None:
            return None
        message = self._stated_message(event, lambda item: _grew_into(item.text, text))
        channel = message.text
        self._state(channel, channel.stated(event.content_index, text), text, logprobs)
        return message

    def _on_message_refusal(self, event: StreamEvent, text: str | None) -> None:
        if text is not None:
            message = self._stated_message(event, lambda item: _grew_into(item.refusal, text))
            channel = message.refusal
            self._state(channel, channel.stated(event.content_index, text), text)

    def _on_annotation(self, event: StreamEvent) -> None:
        if event.annotation is None:
            self._ignored += 1
            return
        message = self._streaming_message(event)
        part = message.text.streaming(event.content_index)
        self._cite(message, part, [event.annotation], Counter())

    def _cite(
        self,
        message: MessageItem,
        part: Part,
        annotations: list[Annotation],
        known: Counter[tuple[str, int | None, int | None]],
    ) -> None:
        """Say the citations that are not among the known ones."""
        offset = part.offset if part.sent.length else self._content_length
        for annotation in annotations:
            citation = shapes.citation(annotation, offset)
            if citation is None or message.text.sink is not Sink.CONTENT:
                self._ignored += 1
                continue
            key = (citation.url, annotation.start_index, annotation.end_index)
            # xAI has sent annotations that had their indexes only in the snapshot.
            bare = (citation.url, None, None)
            match = key if known[key] else bare
            if known[match]:
                known[match] -= 1
                continue
            message.cited[key] += 1
            delta = AnnotationDelta(self._annotations_said, "url_citation", citation)
            self._annotations_said += 1
            self._say(Delta(annotations=[delta]))

    def _on_part_added(self, event: StreamEvent) -> None:
        part = event.part
        if part is None:
            self._ignored += 1
        elif part.type == "reasoning_text":
            reasoning = self._streaming_reasoning(event)
            self._prefill(
                reasoning.raw, reasoning.raw.announce(event.content_index), part.text or ""
            )
        elif part.type == "refusal":
            message = self._streaming_message(event)
            self._prefill(
                message.refusal, message.refusal.announce(event.content_index), part.refusal or ""
            )
        else:
            message = self._streaming_message(event)
            self._prefill(message.text, message.text.announce(event.content_index), part.text or "")

    def _on_part_done(self, event: StreamEvent) -> None:
        part = event.part
        if part is None:
            self._ignored += 1
        elif part.type == "reasoning_text":
            self._on_raw_text(event, part.text)
        elif part.type == "refusal":
            self._on_message_refusal(event, part.refusal)
        else:
            message = self._on_message_text(event, part.text, part.logprobs)
            if message is not None and part.annotations:
                known = message.text.stated(event.content_index, part.text or "")
                self._cite(message, known, part.annotations, Counter(message.cited))

    def _state_message(self, message: MessageItem, snapshot: OutputItem) -> None:
        texts, refusals = list(texts_of(snapshot)), list(refusals_of(snapshot))
        parts = [part for part in snapshot.content or () if part.text is not None]
        logprobs = shapes.logprobs([entry for part in parts for entry in part.logprobs or ()])
        missing = logprobs[message.text.logprobs :]
        if texts:
            self._state_all(message.text, texts)
        if missing and message.text.sink is Sink.CONTENT and not message.done:
            self._count_logprobs(message.text, message.text.last(), missing)
            self._say(Delta(), logprobs=missing)
        if refusals:
            self._state_all(message.refusal, refusals)
        known = Counter(message.cited)
        for part, stated in zip(message.text.parts.values(), parts, strict=False):
            if stated.annotations and not message.done:
                self._cite(message, part, stated.annotations, known)
        self._release_stops()
        self._messages.finish(message, stated=bool(texts or refusals))

    # Reasoning.

    def _begin_reasoning(self, item_id: str | None, index: int | None) -> ReasoningItem:
        self._advance(Signal.OUTPUT)
        reasoning = ReasoningItem(self._reasoning_sink)
        self._reasonings.add(reasoning)
        self._reasonings.register(reasoning, item_id, index, None)
        return reasoning

    def _streaming_reasoning(self, event: StreamEvent) -> ReasoningItem:
        found = self._reasonings.of_delta(event.item_id, event.output_index, None)
        return found or self._begin_reasoning(event.item_id, event.output_index)

    def _stated_reasoning(
        self, event: StreamEvent, agrees: Callable[[ReasoningItem], bool]
    ) -> ReasoningItem:
        found = self._reasonings.of_statement(event.item_id, event.output_index, None, agrees)
        return found or self._begin_reasoning(event.item_id, event.output_index)

    def _on_raw_delta(self, event: StreamEvent) -> None:
        self._delta(self._streaming_reasoning(event).raw, event.content_index, event)

    def _on_summary_delta(self, event: StreamEvent) -> None:
        self._delta(self._streaming_reasoning(event).summary, event.summary_index, event)

    def _on_raw_done(self, event: StreamEvent) -> None:
        self._on_raw_text(event, event.text)

    def _on_raw_text(self, event: StreamEvent, text: str | None) -> None:
        if text is not None:
            reasoning = self._stated_reasoning(event, lambda item: _grew_into(item.raw, text))
            channel = reasoning.raw
            self._state(channel, channel.stated(event.content_index, text), text)

    def _on_summary_done(self, event: StreamEvent) -> None:
        self._on_summary_text(event, event.text)

    def _on_summary_text(self, event: StreamEvent, text: str | None) -> None:
        if text is not None:
            reasoning = self._stated_reasoning(event, lambda item: _grew_into(item.summary, text))
            channel = reasoning.summary
            self._state(channel, channel.stated(event.summary_index, text), text)

    def _on_summary_part_added(self, event: StreamEvent) -> None:
        reasoning = self._streaming_reasoning(event)
        text = event.part.text if event.part is not None else None
        self._prefill(
            reasoning.summary, reasoning.summary.announce(event.summary_index), text or ""
        )

    def _on_summary_part_done(self, event: StreamEvent) -> None:
        if event.part is not None:
            self._on_summary_text(event, event.part.text)

    def _state_reasoning(self, reasoning: ReasoningItem, snapshot: OutputItem) -> None:
        raw, summary = list(texts_of(snapshot)), list(summaries_of(snapshot))
        # Raw first: where nothing was shown yet, it is the raw text that is shown.
        if raw:
            self._state_all(reasoning.raw, raw)
        if summary:
            self._state_all(reasoning.summary, summary)
        self._reasonings.finish(reasoning, stated=bool(raw or summary))

    # Calls.

    def _begin_call(
        self,
        item_id: str | None,
        index: int | None,
        call_id: str | None,
        name: str | None,
        *,
        custom: bool,
    ) -> CallItem:
        self._advance(Signal.OUTPUT)
        call = CallItem(custom=custom)
        call.name = name or None
        self._calls.add(call)
        self._calls.register(call, item_id, index, call_id)
        self._unfinished.append(call)
        return call

    def _is_hosted(self, event: StreamEvent) -> bool:
        if self._hosted.named(event.item_id, event.call_id):
            return True
        at_index = self._hosted.at(event.output_index)
        return at_index is not None and self._calls.at(event.output_index) is None

    def _is_clients(self, name: str | None, call_id: str | None) -> bool:
        """Whether a custom tool call is for the client to run."""
        if self._client_tools is not None:
            return name is None or name in self._client_tools
        return not self._dialect.runs_tool(name or "", call_id or "")

    def _on_arguments_delta(self, event: StreamEvent) -> None:
        if self._is_hosted(event):
            self._ignored += 1
            return
        call = self._calls.of_delta(event.item_id, event.output_index, event.call_id)
        if call is None:
            custom = event.type == "response.custom_tool_call_input.delta"
            call = self._begin_call(
                event.item_id, event.output_index, event.call_id, event.name, custom=custom
            )
        if call.complete:
            self._ignored += 1
            return
        self._delta(call.arguments, 0, event)
        self._say_calls()

    def _on_arguments_done(self, event: StreamEvent) -> None:
        custom = event.type == "response.custom_tool_call_input.done"
        text = event.input if custom else arguments_text(event.arguments)
        if text is None or self._is_hosted(event):
            self._ignored += 1
            return
        call = self._calls.of_statement(
            event.item_id,
            event.output_index,
            event.call_id,
            lambda item: _grew_into(item.arguments, text) and item.name in (None, event.name),
        )
        if call is None:
            call = self._begin_call(
                event.item_id, event.output_index, event.call_id, event.name, custom=custom
            )
        call.name = call.name or event.name or None
        if text or call.arguments.sent.length:
            self._state_arguments(call, text)
        self._say_calls()

    def _state_arguments(self, call: CallItem, text: str) -> None:
        """Take in the whole arguments; a call that another one has followed cannot grow."""
        part = call.arguments.streaming(0)
        followed = call.complete and call.opened and call is not self._last_opened
        rest = part.sent.remainder(text)
        if followed and rest:
            self._diverge(call.arguments, len(text))
        else:
            self._state(call.arguments, part, text)
        call.complete = True

    def _state_call(self, call: CallItem, snapshot: OutputItem) -> None:
        self._calls.register(call, snapshot.id, None, snapshot.call_id)
        call.name = call.name or snapshot.name or None
        if call.custom and not self._is_clients(call.name, call.call_id):
            self._hand_to_provider(call)
            return
        text = arguments_of(snapshot)
        cut = snapshot.status == "incomplete"
        if text == "" and not call.custom and not cut:
            text = "{}"
        if text is not None and not (cut and not text):
            self._state_arguments(call, text)
        if text is not None or call.arguments.sent.length:
            call.complete = True
        call.identified = True
        self._calls.finish(call, stated=text is not None)
        self._say_calls()

    def _hand_to_provider(self, call: CallItem) -> None:
        """A call whose name, when it came, said that it is not the client's."""
        self._calls.finish(call, stated=True)
        self._unfinished.remove(call)
        self._begin_hosted(call.id, call.index, call.call_id)
        self._say_calls()

    # Everything else an item can be.

    def _begin_hosted(
        self, item_id: str | None, index: int | None, call_id: str | None
    ) -> HostedItem:
        self._advance(Signal.OUTPUT)
        hosted = HostedItem()
        self._hosted.add(hosted)
        self._hosted.register(hosted, item_id, index, call_id)
        return hosted

    def _on_partial_image(self, event: StreamEvent) -> None:
        if not event.partial_image_b64 or self._images != "partial":
            self._ignored += 1
            return
        hosted = self._hosted.of_delta(event.item_id, event.output_index, None)
        if hosted is None:
            hosted = self._begin_hosted(event.item_id, event.output_index, None)
        if not hosted.done:
            self._say_image(hosted, event.partial_image_b64, event.output_format)

    def _state_image(self, hosted: HostedItem, snapshot: OutputItem) -> None:
        if snapshot.result and self._images and not hosted.done:
            self._say_image(hosted, snapshot.result, snapshot.output_format)
        self._hosted.finish(hosted, stated=True)

    def _say_image(self, hosted: HostedItem, result: str, output_format: str | None) -> None:
        """Say an image, unless it is the partial one that was said last."""
        image = digest(result)
        if hosted.image != image:
            hosted.image = image
            url = ImageURL(shapes.image_url(result, output_format))
            delta = ImageDelta(self._images_said, "image_url", url)
            self._images_said += 1
            self._say(Delta(images=[delta]))

    # Items as a whole.

    def _on_item_added(self, event: StreamEvent) -> None:
        item, index = event.item, event.output_index
        if item is None:
            self._ignored += 1
        elif item.type == "message":
            message = _announced(self._messages, item, index)
            message = message or self._begin_message(item.id, index, item.phase)
            for text in texts_of(item):
                self._prefill(message.text, message.text.vacant(), text)
        elif item.type == "reasoning":
            if not _announced(self._reasonings, item, index):
                self._begin_reasoning(item.id, index)
        elif self._is_call(item):
            call = _announced(self._calls, item, index) or self._begin_call(
                item.id, index, item.call_id, item.name, custom=item.type == "custom_tool_call"
            )
            call.identified = bool(call.call_id or call.id)
            self._prefill(call.arguments, call.arguments.streaming(0), arguments_of(item) or "")
            self._say_calls()
        else:
            self._begin_hosted(item.id, index, item.call_id)

    def _is_call(self, item: OutputItem) -> bool:
        if item.type == "custom_tool_call":
            return self._is_clients(item.name, item.call_id)
        return item.type == "function_call"

    def _on_item_done(self, event: StreamEvent) -> None:
        item, index = event.item, event.output_index
        if item is None:
            self._ignored += 1
        elif item.type == "message":
            found = _stated(self._messages, item, index)
            self._state_message(found or self._begin_message(item.id, index, item.phase), item)
        elif item.type == "reasoning":
            reasoning = _stated(self._reasonings, item, index)
            self._state_reasoning(reasoning or self._begin_reasoning(item.id, index), item)
        elif item.type in ("function_call", "custom_tool_call"):
            self._state_tool(_stated(self._calls, item, index), item, index)
        elif item.type == "image_generation_call":
            hosted = _stated(self._hosted, item, index)
            self._state_image(hosted or self._begin_hosted(item.id, index, None), item)

    def _state_tool(self, call: CallItem | None, item: OutputItem, index: int | None) -> None:
        if call is None and self._is_call(item):
            call = self._begin_call(
                item.id, index, item.call_id, item.name, custom=item.type == "custom_tool_call"
            )
        if call is not None:
            self._state_call(call, item)

    def _reconcile(self, output: list[OutputItem]) -> None:
        """Take in the output of a terminal response."""
        messages = self._messages.match(_of_type(output, "message"))
        reasonings = self._reasonings.match(_of_type(output, "reasoning"))
        calls = self._calls.match(_of_type(output, "function_call", "custom_tool_call"))
        images = self._hosted.match(_of_type(output, "image_generation_call"))
        for position, item in enumerate(output):
            if item.type == "message":
                message = messages.get(position)
                message = message or self._begin_message(item.id, None, item.phase)
                self._state_message(message, item)
            elif item.type == "reasoning":
                reasoning = reasonings.get(position)
                self._state_reasoning(reasoning or self._begin_reasoning(item.id, None), item)
            elif item.type in ("function_call", "custom_tool_call"):
                self._state_tool(calls.get(position), item, None)
            elif item.type == "image_generation_call":
                hosted = images.get(position)
                self._state_image(hosted or self._begin_hosted(item.id, None, None), item)


def _whole_pairs(text: str) -> tuple[str, str]:
    """`text` as valid Unicode, and the half of a surrogate pair that it ends with, if it does."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    return scrub(text[: len(text) - len(half)]), half


def _grew_into(channel: Channel, text: str) -> bool:
    """Whether `text` may be the final form of the channel or of its one open part."""
    if channel.sent.remainder(text) is not None:
        return True
    return len(channel.open) == 1 and next(iter(channel.open)).sent.remainder(text) is not None


I = TypeVar("I", bound=Item)  # noqa: E741


def _announced(family: Family[I], item: OutputItem, index: int | None) -> I | None:
    """The known item that upstream announces once more, if it does."""
    if found := family.named(item.id, item.call_id):
        return found
    at_index = family.at(index)
    if at_index is None or at_index.done:
        return None
    return at_index if at_index.announced_as(item) else None


def _stated(family: Family[I], item: OutputItem, index: int | None) -> I | None:
    """The known item of which `item` is a later form."""
    return family.of_statement(
        item.id,
        index,
        item.call_id,
        lambda known: known.agrees(item),
        lambda known: known.announced_as(item),
    )


def _of_type(output: list[OutputItem], *types: str) -> dict[int, OutputItem]:
    return {place: item for place, item in enumerate(output) if item.type in types}


_SYNONYMS: Final = {
    # Open Responses' name for raw reasoning, and an older name for summaries.
    "response.reasoning.delta": "response.reasoning_text.delta",
    "response.reasoning.done": "response.reasoning_text.done",
    "response.reasoning_summary.delta": "response.reasoning_summary_text.delta",
    "response.reasoning_summary.done": "response.reasoning_summary_text.done",
}

_TERMINALS: Final = {
    "response.completed": "completed",
    "response.done": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
}
_FINAL_STATUSES: Final = frozenset(_TERMINALS.values())
_UNFINISHED_STATUSES: Final = frozenset({"queued", "in_progress"})

_HANDLERS: Final[dict[str, Callable[[ChatStream, StreamEvent], None]]] = {
    "response.created": ChatStream._on_lifecycle,
    "response.queued": ChatStream._on_lifecycle,
    "response.in_progress": ChatStream._on_lifecycle,
    "response.output_item.added": ChatStream._on_item_added,
    "response.output_item.done": ChatStream._on_item_done,
    "response.content_part.added": ChatStream._on_part_added,
    "response.content_part.done": ChatStream._on_part_done,
    "response.output_text.delta": ChatStream._on_text_delta,
    "response.output_text.done": ChatStream._on_text_done,
    "response.output_text.annotation.added": ChatStream._on_annotation,
    "response.refusal.delta": ChatStream._on_refusal_delta,
    "response.refusal.done": ChatStream._on_refusal_done,
    "response.reasoning_text.delta": ChatStream._on_raw_delta,
    "response.reasoning_text.done": ChatStream._on_raw_done,
    "response.reasoning_summary_part.added": ChatStream._on_summary_part_added,
    "response.reasoning_summary_part.done": ChatStream._on_summary_part_done,
    "response.reasoning_summary_text.delta": ChatStream._on_summary_delta,
    "response.reasoning_summary_text.done": ChatStream._on_summary_done,
    "response.function_call_arguments.delta": ChatStream._on_arguments_delta,
    "response.function_call_arguments.done": ChatStream._on_arguments_done,
    "response.custom_tool_call_input.delta": ChatStream._on_arguments_delta,
    "response.custom_tool_call_input.done": ChatStream._on_arguments_done,
    "response.image_generation_call.partial_image": ChatStream._on_partial_image,
    "error": ChatStream._on_error,
    **dict.fromkeys(_TERMINALS, ChatStream._on_terminal),
}
