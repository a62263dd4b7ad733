"""`Output`: what upstream's output events mean for what is said.

Nearly all of them come down to two verbs:

* `_delta`: text that is new. It is said at once, unless its call has to wait for an earlier one.
* `_state`: the whole of a text that was, wholly or partly, already received. Only what it adds is
  said; where it contradicts what was said, nothing is, and a `Divergence` is recorded.

What may not live here: bytes, the life of the response (`stream`), who an item is (`items`), how a
chunk looks (`chunks`). `stream` is the only caller.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final, Literal, TypeVar

from msgspec import Struct

from deltawire import shapes
from deltawire.chat import ReasoningPlace, TokenLogprob
from deltawire.chunks import ChunkWriter
from deltawire.dialects import Dialect
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
from deltawire.responses import Annotation, OutputItem, StreamEvent, scrub
from deltawire.responses import TokenLogprob as GivenLogprob
from deltawire.tools import ClientTools


class Divergence(Struct, frozen=True):
    """What was sent of a text is no prefix of its final form. `sent`, `stated`: code points."""

    item: str
    sink: str
    sent: int
    stated: int


# An empty deque takes 0.6 KB; as long as a response has no calls, this is its own.
_NO_CALLS: Final[deque[CallItem]] = deque()


class Output:
    """The output items of one response on their way to the client.

    `client_tools`, `dialect`, `commentary` and `images` are options of `ChatStream`;
    `reasoning_sink` says whether reasoning is shown at all, `reasoning_details` whether its items
    are told in a form in which they can be sent back.
    """

    __slots__ = (
        "_calls",
        "_client_tools",
        "_commentary_sink",
        "_content_length",
        "_dialect",
        "_hosted",
        "_images",
        "_last_opened",
        "_messages",
        "_reasoning_details",
        "_reasoning_sink",
        "_reasonings",
        "_unfinished",
        "_writer",
        "divergences",
        "ignored",
        "latest",
    )

    def __init__(
        self,
        writer: ChunkWriter,
        *,
        client_tools: ClientTools | None,
        dialect: Dialect,
        reasoning_sink: Sink,
        reasoning_details: bool,
        commentary: Literal["reasoning", "content", "drop"],
        images: Literal["final", "partial"] | None,
    ) -> None:
        self._writer = writer
        self._client_tools = client_tools
        self._dialect = dialect
        self._reasoning_sink = reasoning_sink
        self._reasoning_details = reasoning_details
        self._commentary_sink = {
            "reasoning": reasoning_sink,
            "content": Sink.CONTENT,
            "drop": Sink.NOWHERE,
        }[commentary]
        self._images = images
        self._messages: Family[MessageItem] = Family()
        self._reasonings: Family[ReasoningItem] = Family()
        self._calls: Family[CallItem] = Family()
        self._hosted: Family[HostedItem] = Family()
        # How much content was received, in code points: where the next part begins in it.
        self._content_length = 0
        # Calls in order of their start, without those that are complete and said.
        self._unfinished = _NO_CALLS
        self._last_opened: CallItem | None = None
        self.divergences: list[Divergence] = []
        self.ignored = 0
        """Events that changed nothing."""
        self.latest: tuple[Channel, Part] | None = None
        """Where the text of the last event went, if it was a delta."""

    def receive(self, event: StreamEvent) -> bool:
        """Take in an event about output. False if it is none."""
        handler = _HANDLERS.get(event.type or "")
        self.latest = None
        if handler is not None:
            handler(self, event)
        return handler is not None

    def way_of(self, channel: Channel, part: Part) -> tuple[Sink, int] | None:
        """Where the next delta for this part goes, if that depends on nothing but its text.

        The second is the index of the tool call, for arguments.
        """
        sink, index = channel.sink, 0
        if isinstance(channel.item, CallItem):
            if not channel.item.opened:
                return None
            index = channel.item.position
        held = part.half or (sink is Sink.CONTENT and self._writer.holds_content)
        if held or sink is Sink.NOWHERE or self._writer.ended:
            return None
        return sink, index

    def account(self, channel: Channel, part: Part, text: str) -> None:
        """Count text as received."""
        if channel.sink is Sink.CONTENT:
            if not part.sent.length:
                part.offset = self._content_length
            self._content_length += len(text)
        channel.extend(part, text)

    def reconcile(self, output: list[OutputItem]) -> None:
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

    def close(self, *, cut: bool) -> None:
        """Nothing more comes; `cut`: because upstream stopped in the middle."""
        for item in chain(self._messages.items, self._reasonings.items, self._calls.items):
            for channel in item.channels:
                for part in channel.parts.values():
                    if part.half:
                        part.half = ""
                        self._grow(channel, part, "\ufffd")
        for call in self._unfinished:
            if not (cut or call.custom or call.arguments.sent.length):
                self._grow(call.arguments, call.arguments.streaming(0), "{}")
            call.complete = call.identified = True
            if not call.name:
                # No client could run it; the calls behind it must not wait for it.
                self._diverge(call.arguments, 0)
        if self._unfinished:
            self._unfinished = deque(call for call in self._unfinished if call.name)
            self._say_calls()
        self._writer.release()

    def abandon(self) -> None:
        """Upstream failed; what waits for its turn is said as it is."""
        for call in self._unfinished:
            if not call.opened and call.name:
                self._open_call(call, call.name)

    # The two verbs.

    def _delta(self, channel: Channel, index: int | None, event: StreamEvent) -> None:
        """Take in text that is new."""
        nothing = not event.delta and not event.logprobs
        part = None if nothing or channel.item.done else channel.streaming(index)
        if part is None or part.closed:
            self.ignored += 1
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
            self.latest = (channel, part)
        elif logprobs:
            self._writer.logprobs(logprobs)

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
            self._writer.logprobs(logprobs)
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

    def _grow(
        self, channel: Channel, part: Part, text: str, logprobs: list[TokenLogprob] | None = None
    ) -> None:
        """Account for new text and say it."""
        self.account(channel, part, text)
        sink = channel.sink
        if sink is Sink.CONTENT:
            self._writer.content(text, logprobs or [])
        elif sink is Sink.REASONING:
            self._say_reasoning(channel, part, text)
        elif sink is Sink.REFUSAL:
            self._writer.refusal(text)
        elif isinstance(channel.item, CallItem):
            self._say_arguments(channel.item, text)

    def _say_reasoning(self, channel: Channel, part: Part, text: str) -> None:
        item = channel.item
        block: Channel | Part = channel
        if isinstance(item, ReasoningItem):
            # Raw text or summary: what comes first is shown, and the other is not.
            if channel is item.summary:
                block = part
                item.raw.sink = Sink.NOWHERE
            else:
                item.summary.sink = Sink.NOWHERE
        self._writer.reasoning(text, block)

    def _diverge(self, channel: Channel, stated: int) -> None:
        item = channel.item
        if not item.diverged:
            item.diverged = True
            name = item.id or item.call_id or ""
            sent = channel.sent.length
            self.divergences.append(Divergence(name, channel.sink.value, sent, stated))

    @property
    def _place(self) -> tuple[int, int]:
        """How much content and how many calls were received so far."""
        # Of the unfinished calls only the first one may have been opened.
        opened = bool(self._unfinished) and self._unfinished[0].opened
        return self._content_length, self._writer.calls + len(self._unfinished) - opened

    def _tell(
        self,
        item: ReasoningItem | MessageItem,
        snapshot: OutputItem,
        *,
        texts: list[str],
        summaries: Iterable[str] = (),
        phase: Literal["commentary"] | None = None,
    ) -> None:
        """Say once, as a whole, an item that is shown as reasoning."""
        if self._reasoning_details and not item.done:
            self._writer.reasoning_details(
                snapshot.id or item.id,
                ReasoningPlace(*item.place),
                summaries=summaries,
                texts=texts,
                encrypted=snapshot.encrypted_content,
                phase=phase,
            )

    # Messages.

    def _begin_message(
        self, item_id: str | None, index: int | None, phase: str | None
    ) -> MessageItem:
        sink = self._commentary_sink if phase == "commentary" else Sink.CONTENT
        message = MessageItem(sink, self._place)
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
            self.ignored += 1
            return
        message = self._streaming_message(event)
        part = message.text.streaming(event.content_index)
        self._cite(message, self._offset(part), [event.annotation], Counter())

    def _offset(self, part: Part) -> int:
        """How much content was before the part."""
        return part.offset if part.sent.length else self._content_length

    def _cite(
        self,
        message: MessageItem,
        offset: int,
        annotations: list[Annotation],
        known: Counter[tuple[str, int | None, int | None]],
    ) -> None:
        """Say the citations that are not among the known ones.

        `offset` is how much content was before the part that they count in.
        """
        for annotation in annotations:
            citation = shapes.citation(annotation, offset)
            if citation is None or message.text.sink is not Sink.CONTENT:
                self.ignored += 1
                continue
            key = (citation.url, annotation.start_index, annotation.end_index)
            # xAI has sent annotations that had their indexes only in the snapshot.
            bare = (citation.url, None, None)
            match = key if known[key] else bare
            if known[match]:
                known[match] -= 1
                continue
            message.cited = message.cited or Counter()
            message.cited[key] += 1
            self._writer.annotation(citation)

    def _on_part_added(self, event: StreamEvent) -> None:
        part = event.part
        if part is None:
            self.ignored += 1
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
            self.ignored += 1
        elif part.type == "reasoning_text":
            self._on_raw_text(event, part.text)
        elif part.type == "refusal":
            self._on_message_refusal(event, part.refusal)
        else:
            message = self._on_message_text(event, part.text, part.logprobs)
            if message is not None and part.annotations:
                known = message.text.stated(event.content_index, part.text or "")
                self._cite(message, self._offset(known), part.annotations, Counter(message.cited))

    def _state_message(self, message: MessageItem, snapshot: OutputItem) -> None:
        texts, refusals = list(texts_of(snapshot)), list(refusals_of(snapshot))
        if texts:
            self._state_all(message.text, texts)
        logprobs = [] if message.done else self._missing_logprobs(message.text, snapshot)
        if logprobs:
            self._count_logprobs(message.text, message.text.last(), logprobs)
            self._writer.logprobs(logprobs)
        if refusals:
            self._state_all(message.refusal, refusals)
        if not message.done:
            self._state_citations(message, snapshot)
        self._writer.release()
        if message.text.sink is Sink.REASONING:
            self._tell(message, snapshot, texts=texts, phase="commentary")
        self._messages.finish(message, stated=bool(texts or refusals))

    def _missing_logprobs(self, channel: Channel, snapshot: OutputItem) -> list[TokenLogprob]:
        if channel.sink is not Sink.CONTENT:
            return []
        given = [
            entry
            for part in snapshot.content or ()
            if part.text is not None
            for entry in part.logprobs or ()
        ]
        return shapes.logprobs(given)[channel.logprobs :]

    def _state_citations(self, message: MessageItem, snapshot: OutputItem) -> None:
        parts = [part for part in snapshot.content or () if part.text is not None]
        if not any(part.annotations for part in parts):
            return
        known = Counter(message.cited)
        # Parts that are stated to be empty may never have been received as parts.
        received = deque(part for part in message.text.parts.values() if part.sent.length)
        end = received[0].offset if received else self._content_length
        for stated in parts:
            part = received.popleft() if stated.text and received else None
            offset = end if part is None else part.offset
            end = offset if part is None else offset + part.sent.length
            self._cite(message, offset, stated.annotations or [], known)

    # Reasoning.

    def _begin_reasoning(self, item_id: str | None, index: int | None) -> ReasoningItem:
        reasoning = ReasoningItem(self._reasoning_sink, self._place)
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
        self._tell(reasoning, snapshot, texts=raw, summaries=summary)
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
        call = CallItem(custom=custom)
        call.name = name or None
        self._calls.add(call)
        self._calls.register(call, item_id, index, call_id)
        if self._unfinished is _NO_CALLS:
            self._unfinished = deque()
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
            self.ignored += 1
            return
        call = self._calls.of_delta(event.item_id, event.output_index, event.call_id)
        if call is None:
            custom = event.type == "response.custom_tool_call_input.delta"
            call = self._begin_call(
                event.item_id, event.output_index, event.call_id, event.name, custom=custom
            )
        if call.complete:
            self.ignored += 1
            return
        self._delta(call.arguments, 0, event)
        self._say_calls()

    def _on_arguments_done(self, event: StreamEvent) -> None:
        custom = event.type == "response.custom_tool_call_input.done"
        text = event.input if custom else arguments_text(event.arguments)
        if text is None or self._is_hosted(event):
            self.ignored += 1
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

    def _say_arguments(self, call: CallItem, text: str) -> None:
        if call.opened:
            self._writer.arguments(text, call.position)
        else:
            call.waiting.append(text)

    def _say_calls(self) -> None:
        """Say the calls whose turn it is: each only after the one before is complete."""
        while self._unfinished:
            call = self._unfinished[0]
            if not call.opened:
                if not (call.name and call.identified):
                    return
                self._open_call(call, call.name)
            if not call.complete:
                return
            self._unfinished.popleft()

    def _open_call(self, call: CallItem, name: str) -> None:
        call.opened = True
        if self._client_tools is not None:
            name = self._client_tools.client_name(name)
        call.position = self._writer.open_call(call.call_id or call.id, name)
        self._last_opened = call
        if call.waiting:
            self._writer.arguments("".join(call.waiting), call.position)
            call.waiting = []

    def _state_arguments(self, call: CallItem, text: str) -> None:
        """Take in the whole arguments; a call that another one has followed cannot grow."""
        part = call.arguments.streaming(0)
        followed = call.complete and call.opened and call is not self._last_opened
        if followed and part.sent.remainder(text):
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
        if not call.done:
            self._calls.finish(call, stated=True)
            self._unfinished.remove(call)
            self._begin_hosted(call.id, call.index, call.call_id)
            self._say_calls()

    # Everything else an item can be.

    def _begin_hosted(
        self, item_id: str | None, index: int | None, call_id: str | None
    ) -> HostedItem:
        hosted = HostedItem()
        self._hosted.add(hosted)
        self._hosted.register(hosted, item_id, index, call_id)
        return hosted

    def _on_partial_image(self, event: StreamEvent) -> None:
        if not event.partial_image_b64 or self._images != "partial":
            self.ignored += 1
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
            self._writer.image(shapes.image_url(result, output_format))

    # Items as a whole.

    def _on_item_added(self, event: StreamEvent) -> None:
        item, index = event.item, event.output_index
        if item is None:
            self.ignored += 1
        elif item.type == "message":
            message = _announced(self._messages, item, index)
            message = message or self._begin_message(item.id, index, item.phase)
            message.announced = True
            for text in texts_of(item):
                self._prefill(message.text, message.text.vacant(), text)
        elif item.type == "reasoning":
            reasoning = _announced(self._reasonings, item, index)
            reasoning = reasoning or self._begin_reasoning(item.id, index)
            reasoning.announced = True
        elif self._is_call(item):
            call = _announced(self._calls, item, index) or self._begin_call(
                item.id, index, item.call_id, item.name, custom=item.type == "custom_tool_call"
            )
            call.announced = True
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
            self.ignored += 1
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

_HANDLERS: Final[dict[str, Callable[[Output, StreamEvent], None]]] = {
    "response.output_item.added": Output._on_item_added,
    "response.output_item.done": Output._on_item_done,
    "response.content_part.added": Output._on_part_added,
    "response.content_part.done": Output._on_part_done,
    "response.output_text.delta": Output._on_text_delta,
    "response.output_text.done": Output._on_text_done,
    "response.output_text.annotation.added": Output._on_annotation,
    "response.refusal.delta": Output._on_refusal_delta,
    "response.refusal.done": Output._on_refusal_done,
    "response.reasoning_text.delta": Output._on_raw_delta,
    "response.reasoning_text.done": Output._on_raw_done,
    "response.reasoning_summary_part.added": Output._on_summary_part_added,
    "response.reasoning_summary_part.done": Output._on_summary_part_done,
    "response.reasoning_summary_text.delta": Output._on_summary_delta,
    "response.reasoning_summary_text.done": Output._on_summary_done,
    "response.function_call_arguments.delta": Output._on_arguments_delta,
    "response.function_call_arguments.done": Output._on_arguments_done,
    "response.custom_tool_call_input.delta": Output._on_arguments_delta,
    "response.custom_tool_call_input.done": Output._on_arguments_done,
    "response.image_generation_call.partial_image": Output._on_partial_image,
}
_HANDLERS.update({name: _HANDLERS[known] for name, known in _SYNONYMS.items()})
