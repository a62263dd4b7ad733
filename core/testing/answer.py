"""What a model says, described without any wire format.

Tests, benchmarks and the demo build an `Answer`; `writer` turns it into a Responses stream and
`oracle` into what a Chat Completions client must get. Nothing here knows how either looks.

Texts must be valid Unicode (no lone surrogates). Wherever a tuple stands, a single member may
stand alone, and a plain string stands for a message with that text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

_WORD: Final = re.compile(r"\s*\S+|\s+")


def words(text: str) -> list[str]:
    """The text cut before its blanks, the way models cut it into tokens; joined, the text again."""
    return _WORD.findall(text)


@dataclass(frozen=True, slots=True)
class UrlCitation:
    """A `url_citation` annotation; what is None is left out, as xAI's early recordings do.

    The indexes count characters of the text part that the annotation belongs to.
    """

    url: str
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """An `output_text` part. With `logprobs` every word is a token with a log probability."""

    text: str
    annotations: tuple[UrlCitation, ...] = ()
    logprobs: bool = False

    @property
    def tokens(self) -> list[str]:
        """The tokens that have log probabilities; each of them is -0.5."""
        return words(self.text) if self.logprobs else []


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `refusal` part."""

    text: str


Part: TypeAlias = Text | Refusal


@dataclass(frozen=True, slots=True)
class Message:
    """A `message` item: `Message("hi")`, `Message((Text("hi"), Refusal("no")), phase=...)`."""

    content: str | Part | tuple[str | Part, ...]
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content with plain strings as `Text`."""
        content = self.content if isinstance(self.content, tuple) else (self.content,)
        return tuple(Text(part) if isinstance(part, str) else part for part in content)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A `reasoning` item: summary parts, raw text parts (gpt-oss, DeepSeek), either or both."""

    summary: str | tuple[str, ...] = ()
    text: str | tuple[str, ...] = ()
    encrypted_content: str | None = None

    @property
    def summaries(self) -> tuple[str, ...]:
        """The summary parts."""
        return (self.summary,) if isinstance(self.summary, str) else self.summary

    @property
    def texts(self) -> tuple[str, ...]:
        """The raw text parts."""
        return (self.text,) if isinstance(self.text, str) else self.text


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of one of the client's functions; `arguments` is JSON text, "" for none at all."""

    name: str
    arguments: str = ""
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class CustomToolCall:
    """A call of one of the client's custom tools; `input` is free text."""

    name: str
    input: str = ""
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class HostedCall:
    """What has no Chat form, most of it run by the provider; `kind` is a key of `hosted.HOSTED`."""

    kind: str


@dataclass(frozen=True, slots=True)
class Image:
    """An `image_generation_call` item; `b64` and `partials` are base64 data, written as given."""

    b64: str
    output_format: str = "png"
    partials: tuple[str, ...] = ()


Item: TypeAlias = Message | Reasoning | FunctionCall | CustomToolCall | HostedCall | Image


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer ends well."""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The answer was cut off in its last item; None: the provider does not say why.

    The specification's reasons are "max_output_tokens" and "content_filter".
    """

    reason: str | None = "max_output_tokens"


@dataclass(frozen=True, slots=True)
class Failed:
    """`response.failed`; `code` None: the provider sends `"error": null`."""

    code: str | None = "server_error"
    message: str = "The server had an error while processing your request."


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """An `error` event, `flat` as documented or `nested` as OpenAI's recordings have it.

    A flat one has no room for `type`. `then_failed`: a `response.failed` that says the same
    follows, as in OpenAI's recordings.
    """

    code: str | None = "server_error"
    message: str = "The server had an error while processing your request."
    type: str | None = "server_error"
    param: str | None = None
    shape: Literal["flat", "nested"] = "flat"
    then_failed: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`response.cancelled`: a background response that someone cancelled."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """The stream ends without a terminal event, after at most `after_events` events."""

    after_events: int | None = None


End: TypeAlias = Completed | Incomplete | Failed | ErrorEvent | Cancelled | Truncated


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What the answer cost, in tokens; the total is the sum of the first two."""

    input_tokens: int = 10
    output_tokens: int = 5
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One response of a model; `created_at` in Unix seconds, `usage` None: not reported."""

    items: str | Item | tuple[str | Item, ...] = ()
    end: End = Completed()
    id: str = "resp_0123456789abcdef"
    model: str = "gpt-5"
    created_at: int = 1_700_000_000
    usage: TokenUsage | None = TokenUsage()

    @property
    def output(self) -> tuple[Item, ...]:
        """The items with plain strings as messages."""
        items = self.items if isinstance(self.items, tuple) else (self.items,)
        return tuple(Message(item) if isinstance(item, str) else item for item in items)

    def call_id(self, position: int, call: FunctionCall | CustomToolCall) -> str:
        """The `call_id` of the call at `position` of `output`."""
        return f"call_{position}" if call.call_id is None else call.call_id

    def is_cut(self, position: int) -> bool:
        """Whether the item at `position` of `output` is the one the answer was cut off in."""
        return isinstance(self.end, Incomplete) and position == len(self.output) - 1
