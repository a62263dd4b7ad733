"""The fold: the events of a stream -> one `ChatCompletion`.

Answers that come without streaming go through the stream machine as well, so that both ways of
asking get the same answer. Nothing here decides anything; it only puts together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from deltawire import chat
from deltawire.errors import UpstreamError
from deltawire.stream import ChatStream


class ChatCompletionFold:
    """Puts the chunks of one stream together.

    >>> fold = ChatCompletionFold()
    >>> for event in events: fold.add(event)
    >>> completion = fold.completion
    """

    __slots__ = (
        "_annotations",
        "_calls",
        "_details",
        "_finish_reason",
        "_first",
        "_images",
        "_logprobs",
        "_texts",
        "_usage",
    )

    def __init__(self) -> None:
        self._first: chat.Chunk | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, tuple[chat.ToolCallDelta, list[str]]] = {}
        self._details: list[chat.ReasoningDetail] = []
        self._annotations: list[chat.Annotation] = []
        self._images: list[chat.Image] = []
        self._logprobs: list[chat.TokenLogprob] = []
        self._finish_reason: chat.FinishReason | None = None
        self._usage: chat.Usage | None = None

    def add(self, event: chat.Event) -> None:
        """Take in the next event. Raises UpstreamError on a Failure."""
        if isinstance(event, chat.Failure):
            raise UpstreamError(event, self.completion)
        if isinstance(event, chat.Chunk):
            self._first = self._first or event
            self._usage = event.usage or self._usage
            for choice in event.choices:
                self._add_choice(choice)

    def _add_choice(self, choice: chat.ChunkChoice) -> None:
        delta = choice.delta
        for key in _TEXT_KEYS:
            if (text := getattr(delta, key)) is not None:
                self._texts.setdefault(key, []).append(text)
        for call in delta.tool_calls or ():
            _, arguments = self._calls.setdefault(call.index, (call, []))
            arguments.append((call.function and call.function.arguments) or "")
        self._details += delta.reasoning_details or ()
        for annotation in delta.annotations or ():
            self._annotations.append(chat.Annotation(annotation.type, annotation.url_citation))
        for image in delta.images or ():
            self._images.append(chat.Image(image.type, image.image_url))
        if choice.logprobs is not None:
            self._logprobs += choice.logprobs.content
        self._finish_reason = choice.finish_reason or self._finish_reason

    @property
    def completion(self) -> chat.ChatCompletion:
        """The completion as far as it has come; its `finish_reason` is None until the finish."""
        texts = {key: "".join(pieces) for key, pieces in self._texts.items()}
        calls = [_call(opening, arguments) for opening, arguments in self._calls.values()]
        said_otherwise = bool(calls or self._images or "refusal" in texts)
        message = chat.Message(
            role="assistant",
            content=texts.get("content") or (None if said_otherwise else ""),
            refusal=texts.get("refusal"),
            reasoning_content=texts.get("reasoning_content"),
            reasoning=texts.get("reasoning"),
            reasoning_details=self._details or None,
            tool_calls=calls or None,
            annotations=self._annotations or None,
            images=self._images or None,
        )
        logprobs = chat.Logprobs(self._logprobs) if self._logprobs else None
        first = self._first
        return chat.ChatCompletion(
            id=first.id if first else "",
            object="chat.completion",
            created=first.created if first else 0,
            model=first.model if first else "",
            choices=[chat.Choice(0, message, self._finish_reason, logprobs)],
            usage=self._usage,
        )


_TEXT_KEYS = ("content", "refusal", "reasoning_content", "reasoning")


def _call(opening: chat.ToolCallDelta, arguments: list[str]) -> chat.ToolCall:
    name = (opening.function and opening.function.name) or ""
    return chat.ToolCall(opening.id or "", "function", chat.Function(name, "".join(arguments)))


def fold(events: Iterable[chat.Event]) -> chat.ChatCompletion:
    """The completion that a whole stream of events makes.

    Raises UpstreamError, with what had come until then, if the stream failed.
    """
    together = ChatCompletionFold()
    for event in events:
        together.add(event)
    return together.completion


def completion_from_response(
    body: bytes | Mapping[str, Any], **options: Any
) -> chat.ChatCompletion:
    """The completion for a Response object that came without streaming.

    `body` is its JSON or the decoded object; `options` are those of `ChatStream`. Usage is in
    the completion whether or not it is asked for. Raises UpstreamError if the response failed, or
    if the body is no response.
    """
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    stream = ChatStream(**{**options, "include_usage": True})
    return fold([*stream.receive_data(data), *stream.receive_eof()])
