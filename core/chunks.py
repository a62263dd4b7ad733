"""`ChunkWriter`: what is said to the client, chunk by chunk, in the manner clients demand.

It keeps the promises that hold for every stream whatever upstream does: one identity on all chunks,
the role chunk first, dense indexes, a blank line between blocks of reasoning, no text after a stop
sequence, exactly one end. What is to be said, and when, is decided in `output` and `stream`, which
are its only callers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Final, Literal

import msgspec

from deltawire import shapes
from deltawire.chat import (
    AnnotationDelta,
    ChatCompletionChunk,
    Chunk,
    ChunkChoice,
    ChunkWithUsage,
    Delta,
    DetailType,
    Done,
    Event,
    Failure,
    FinishReason,
    FunctionDelta,
    ImageDelta,
    ImageURL,
    Logprobs,
    ReasoningDetail,
    ReasoningPlace,
    TokenLogprob,
    ToolCallDelta,
    UrlCitation,
    Usage,
)
from deltawire.items import Sink
from deltawire.responses import Response
from deltawire.stops import StopSequences

# OpenRouter's name for reasoning that is an item of a Responses API.
_ITEM_FORMAT: Final = "openai-responses-v1"

# Stands for the text in a frame while the frame is being prepared; encoded, it cannot be mistaken.
_MARK: Final = "\0"


_NOT_NEEDED: Final = "", 0, ""


class ChunkWriter:
    """The chunks of one completion. After its end, whatever it is told is not said."""

    __slots__ = (
        "_annotations",
        "_created",
        "_defaults",
        "_details",
        "_held_logprobs",
        "_id",
        "_images",
        "_include_usage",
        "_model",
        "_out",
        "_reasoning_block",
        "_reasoning_key",
        "_stops",
        "calls",
        "empty",
        "ended",
        "started",
        "stopped",
    )

    def __init__(
        self,
        *,
        include_usage: bool,
        reasoning: Literal["reasoning_content", "reasoning"] | None,
        stop: Iterable[str],
        default_id: str,
        default_created: int,
        default_model: str,
    ) -> None:
        self._include_usage = include_usage
        self._reasoning_key = reasoning
        self._stops = StopSequences(stop) if any(stop) else None
        self._defaults = (default_id, default_created, default_model)
        self._id: str | None = None
        self._created: int | None = None
        self._model: str | None = None
        self._reasoning_block: Hashable | None = None
        self._held_logprobs: list[TokenLogprob]
        if self._stops is not None:
            self._held_logprobs = []
        self._details = 0
        self._annotations = 0
        self._images = 0
        self._out: list[Event] = []
        self.started = False
        """The role chunk was said."""
        self.ended = False
        """The finish or a failure was said."""
        self.stopped = False
        """The content ended at a stop sequence."""
        self.empty = False
        """The answer is complete, and its finish was the first that was said."""
        self.calls = 0
        """How many tool calls were opened."""

    @property
    def id(self) -> str:
        """The id of every chunk."""
        return self._defaults[0] if self._id is None else self._id

    @property
    def created(self) -> int:
        """Unix seconds, the same on every chunk."""
        return self._defaults[1] if self._created is None else self._created

    @property
    def model(self) -> str:
        """The model on every chunk."""
        return self._defaults[2] if self._model is None else self._model

    @property
    def holds_content(self) -> bool:
        """Whether content may be held back, in case it begins a stop sequence."""
        return self._stops is not None

    def take(self) -> list[Event]:
        """What was said since this was last asked for."""
        said, self._out = self._out, []
        return said

    def identify(self, response: Response) -> None:
        """Fill in what is not known yet; after the first chunk, nothing changes any more."""
        if self.started:
            return
        if self._id is None and response.id:
            self._id = "chatcmpl-" + response.id.removeprefix("resp_")
        if self._created is None:
            self._created = shapes.count(response.created_at)
        if self._model is None:
            self._model = response.model or None

    def content(self, text: str, logprobs: list[TokenLogprob]) -> None:
        """Say content, up to the first stop sequence."""
        if self._stops is None:
            self._say(Delta(content=text), logprobs=logprobs)
        else:
            self._held_logprobs += logprobs
            self._say_until_stop(*self._stops.feed(text))

    def release(self) -> None:
        """Say the content that was held back: nothing follows that could complete a stop."""
        if self._stops is not None:
            self._say_until_stop(*self._stops.release())

    def _say_until_stop(self, text: str, hit: bool) -> None:
        if text:
            held, self._held_logprobs = self._held_logprobs, []
            self._say(Delta(content=text), logprobs=held)
        if hit and not self.ended:
            self.stopped = True
            self.finish("stop", None)

    def logprobs(self, logprobs: list[TokenLogprob]) -> None:
        """Say logprobs that came after their content."""
        self._say(Delta(), logprobs=logprobs)

    def refusal(self, text: str) -> None:
        """Say a piece of a refusal."""
        self._say(_refusal_delta(text))

    def reasoning(self, text: str, block: Hashable) -> None:
        """Say a piece of reasoning; another block than the last begins after a blank line."""
        if self._reasoning_block not in (None, block):
            text = "\n\n" + text
        self._reasoning_block = block
        self._say(self._reasoning_delta(text))

    def _reasoning_delta(self, text: str) -> Delta:
        if self._reasoning_key == "reasoning":
            return Delta(reasoning=text)
        return Delta(reasoning_content=text)

    def reasoning_details(
        self,
        item_id: str | None,
        place: ReasoningPlace,
        *,
        summaries: Iterable[str] = (),
        texts: Iterable[str] = (),
        encrypted: str | None = None,
        phase: Literal["commentary"] | None = None,
    ) -> None:
        """Say a whole item of what is shown as reasoning, in a form that can be sent back."""
        parts: list[ReasoningDetail] = []

        def add(kind: DetailType, **said: str) -> None:
            parts.append(
                ReasoningDetail(
                    self._details + len(parts),
                    kind,
                    id=item_id,
                    format=_ITEM_FORMAT,
                    after=None if place == ReasoningPlace() else place,
                    phase=phase,
                    **said,
                )
            )

        for summary in filter(None, summaries):
            add("reasoning.summary", summary=summary)
        for text in filter(None, texts):
            add("reasoning.text", text=text)
        if encrypted is not None:
            add("reasoning.encrypted", data=encrypted)
        if parts:
            self._details += len(parts)
            self._say(Delta(reasoning_details=parts))

    def open_call(self, call_id: str | None, name: str) -> int:
        """Open the next tool call; its index. An id is made where upstream gave none."""
        index = self.calls
        self.calls += 1
        opening = ToolCallDelta(
            index,
            id=call_id or f"call_{self.id.removeprefix('chatcmpl-')}_{index}",
            type="function",
            function=FunctionDelta(name=name, arguments=""),
        )
        self._say(Delta(tool_calls=[opening]))
        return index

    def arguments(self, text: str, index: int) -> None:
        """Say a piece of the arguments of an open call."""
        self._say(_arguments_delta(text, index))

    def annotation(self, citation: UrlCitation) -> None:
        """Say a citation."""
        delta = AnnotationDelta(self._annotations, "url_citation", citation)
        self._annotations += 1
        self._say(Delta(annotations=[delta]))

    def image(self, url: str) -> None:
        """Say an image."""
        delta = ImageDelta(self._images, "image_url", ImageURL(url))
        self._images += 1
        self._say(Delta(images=[delta]))

    def finish(self, reason: FinishReason, usage: Usage | None) -> None:
        """Say the finish, the usage if it is asked for and known, and that it is done."""
        self.release()
        self.empty = reason == "stop" and not (self.started or self.ended or self.stopped)
        self._say(Delta(), finish_reason=reason)
        if not self.ended:
            self.ended = True
            if self._include_usage and usage is not None:
                self._out.append(self._chunk([], usage))
            self._out.append(Done())

    def fail(self, failure: Failure) -> None:
        """Say the failure; nothing follows it."""
        self.release()
        if not self.ended:
            self.ended = True
            self._out.append(failure)

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
            self.release()
        if self.ended:
            return
        if not self.started:
            self.started = True
            self._id, self._created, self._model = self.id, self.created, self.model
            self._defaults = _NOT_NEEDED
            role = Delta(role="assistant", content="")
            self._out.append(self._chunk([ChunkChoice(0, role, None)]))
        choice = ChunkChoice(0, delta, finish_reason, Logprobs(logprobs) if logprobs else None)
        self._out.append(self._chunk([choice]))

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> Chunk:
        kind: Final = "chat.completion.chunk"
        if self._include_usage:
            return ChunkWithUsage(self.id, kind, self.created, self.model, choices, usage=usage)
        return ChatCompletionChunk(self.id, kind, self.created, self.model, choices)

    def around(self, sink: Sink, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in the frame of a delta.

        `index` is that of the tool call; the delta is one in the middle of its block.
        """
        frame = self.chunk_maker(sink, index)(_MARK).to_wire()
        prefix, _, suffix = frame.rpartition(msgspec.json.encode(_MARK))
        return prefix, _shared(suffix)

    def chunk_maker(self, sink: Sink, index: int) -> Callable[[str], Chunk]:
        """What makes a chunk of the text of such a delta."""
        delta: Callable[[str], Delta] = _content_delta
        if sink is Sink.REFUSAL:
            delta = _refusal_delta
        elif sink is Sink.REASONING:
            delta = self._reasoning_delta
        elif sink is Sink.ARGUMENTS:
            delta = functools.partial(_arguments_delta, index=index)
        kind: Final = "chat.completion.chunk"
        make = ChunkWithUsage if self._include_usage else ChatCompletionChunk
        id, created, model = self.id, self.created, self.model

        def chunk(text: str) -> Chunk:
            return make(id, kind, created, model, [ChunkChoice(0, delta(text), None)], usage=None)

        return chunk


@functools.lru_cache
def _shared(data: bytes) -> bytes:
    """One object for all that are equal: there are few, and many streams."""
    return data


def _content_delta(text: str) -> Delta:
    return Delta(None, text)


def _refusal_delta(text: str) -> Delta:
    return Delta(refusal=text)


def _arguments_delta(text: str, index: int) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index, function=FunctionDelta(arguments=text))])
