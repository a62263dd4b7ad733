"""Chat Completions, the side that clients read: chunks, the whole completion, usage, errors.

Plain data with its wire form, and nothing that knows where it came from. The attribute paths are
those of openai-python's types, so `chunk.choices[0].delta.content` reads the same here; keys that
CLIENTS demand to be absent rather than null are left out of the wire form when they are None.
Sources: OpenAI's OpenAPI document (CreateChatCompletionStreamResponse and neighbours); the
`reasoning_content`, `reasoning`, `annotations` and `images` keys are the extensions that DeepSeek,
xAI, OpenRouter and their clients agree on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

_encode = msgspec.json.Encoder().encode


def _frame(value: object) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def error_object(
    message: str, type: str | None, param: str | None, code: str | None
) -> dict[str, Any]:
    """The one shape of an error that every client reads."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def without_secrets(text: str | None, secrets: Iterable[str]) -> str | None:
    """The text with `***` in place of each secret."""
    # The longest first: one may be a part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text and text.replace(secret, "***")
    return text


class PromptTokensDetails(Struct, omit_defaults=True):
    """Counts in tokens, each only if upstream gave it."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class CompletionTokensDetails(Struct, omit_defaults=True):
    """Counts in tokens, each only if upstream gave it."""

    reasoning_tokens: int | None = None


class Usage(Struct, omit_defaults=True):
    """What a response cost, in tokens; never estimated here."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class FunctionDelta(Struct, omit_defaults=True):
    """The name comes once, with the first delta of a call; `arguments` is a piece of JSON text."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, omit_defaults=True):
    """`id`, `type` and the name are on the first delta of a call only: clients concatenate."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class UrlCitation(Struct, omit_defaults=True):
    """`start_index` and `end_index` count characters of the whole message content."""

    url: str
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class AnnotationDelta(Struct):
    """`index` is unique in the completion: accumulators merge list entries by it."""

    index: int
    type: Literal["url_citation"]
    url_citation: UrlCitation


class ImageURL(Struct):
    """A `data:` URL, or what upstream gave as a URL."""

    url: str


class ImageDelta(Struct):
    """`index` is unique in the completion: accumulators merge list entries by it."""

    index: int
    type: Literal["image_url"]
    image_url: ImageURL


class TopLogprob(Struct):
    """One alternative at a token's place; `bytes` are the token's UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    """One token of the content; `bytes` are its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(Struct):
    """The logprobs of a chunk or a completion; the Responses API has none for refusals."""

    content: list[TokenLogprob]
    refusal: None = None


class ReasoningPlace(Struct, omit_defaults=True):
    """What was before a reasoning item: so much content (code points), so many tool calls."""

    content: int = 0
    tool_calls: int = 0


DetailType = Literal["reasoning.summary", "reasoning.text", "reasoning.encrypted"]


class ReasoningDetail(Struct, omit_defaults=True):
    """A part of a reasoning item, in the form that OpenRouter gave it and its clients send back.

    `index` is unique in the completion; what has the same `id` is of one item. A summary part has
    a `summary`, raw reasoning a `text`, and encrypted reasoning is the `data`. Our own are `after`,
    left out where nothing was before the item, and `phase`, for the text of a commentary that is
    shown as reasoning.
    """

    index: int
    type: DetailType
    id: str | None = None
    format: str | None = None
    summary: str | None = None
    text: str | None = None
    data: str | None = None
    after: ReasoningPlace | None = None
    phase: Literal["commentary"] | None = None


class Delta(Struct, omit_defaults=True):
    """What a chunk adds to the message. None means the key is not there."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[ToolCallDelta] | None = None
    annotations: list[AnnotationDelta] | None = None
    images: list[ImageDelta] | None = None


class ChunkChoice(Struct, omit_defaults=True):
    """The one choice of a chunk; `finish_reason` is None until the finish chunk."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Logprobs | None = None


class ChatCompletionChunk(Struct, omit_defaults=True):
    """One `chat.completion.chunk`. `created` is in Unix seconds."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None

    def to_dict(self) -> dict[str, Any]:
        """The chunk as plain dicts and lists, as its JSON has it."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result

    def to_wire(self) -> bytes:
        """The chunk as one server-sent event."""
        return _frame(self)


class ChunkWithUsage(ChatCompletionChunk, kw_only=True):
    """A chunk of a stream whose client asked for usage: the key is there on every one."""

    usage: Usage | None


Chunk = ChatCompletionChunk
"""The name used throughout the interface of the stream."""


class Failure(Struct, frozen=True):
    """The stream's end when there is no finish: OpenAI's error object.

    `type` and `code` are upstream's own where it gave any. `retryable` says whether another
    attempt at the same request could succeed (it is not on the wire).
    """

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None
    retryable: bool = True

    def without(self, secrets: Iterable[str]) -> Failure:
        """The failure with `***` where an upstream repeats a secret, such as its key."""
        known = tuple(secrets)
        return Failure(
            without_secrets(self.message, known) or "",
            without_secrets(self.type, known),
            without_secrets(self.param, known),
            without_secrets(self.code, known),
            self.retryable,
        )

    def to_dict(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return error_object(self.message, self.type, self.param, self.code)

    def to_wire(self) -> bytes:
        """The failure as one server-sent event, the shape on which every client raises."""
        return _frame(self.to_dict())


class Done(Struct, frozen=True):
    """The end of a stream that finished; a failed stream has none."""

    def to_wire(self) -> bytes:
        """`[DONE]` as one server-sent event."""
        return b"data: [DONE]\n\n"


Event = Chunk | Failure | Done
"""What a stream consists of."""


class Function(Struct):
    """`arguments` is JSON text for a function, the raw input for a custom tool."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A whole call; `id` is what the tool's result must name."""

    id: str
    type: Literal["function"]
    function: Function


class Annotation(Struct):
    """An annotation of a whole message."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class Image(Struct):
    """A generated image of a whole message."""

    type: Literal["image_url"]
    image_url: ImageURL


class _OptionalMessageParts(Struct, omit_defaults=True, kw_only=True):
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: list[Annotation] | None = None
    images: list[Image] | None = None


class Message(_OptionalMessageParts, kw_only=True):
    """The assistant's message. `content` is None only where something else was said instead."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None


class Choice(Struct):
    """The one choice of a completion."""

    index: int
    message: Message
    finish_reason: FinishReason | None
    logprobs: Logprobs | None


class ChatCompletion(Struct, omit_defaults=True):
    """A whole `chat.completion`. `created` is in Unix seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None

    def to_dict(self) -> dict[str, Any]:
        """The completion as plain dicts and lists, as its JSON has it."""
        result: dict[str, Any] = msgspec.to_builtins(self)
        return result

    def to_json(self) -> bytes:
        """The completion as the body of an HTTP answer."""
        return _encode(self)
