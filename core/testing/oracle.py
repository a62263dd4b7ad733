"""What a Chat Completions client must be shown of an `Answer`, written down as plainly as possible.

This is the judge, so it shares nothing with the translation: it reads the description, never a
stream. The rules are those of the deltawire documentation for `ChatStream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from deltawire.testing.answer import (
    Answer,
    Cancelled,
    Completed,
    CustomToolCall,
    ErrorEvent,
    Failed,
    FunctionCall,
    Image,
    Incomplete,
    Message,
    Reasoning,
    Refusal,
    Truncated,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer that ends in a failure: what upstream says of it, None where it says nothing."""

    code: str | None
    message: str | None = None
    type: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the client must be shown, all deltas joined; "" and () where there is nothing.

    `tool_calls` are (id, name, arguments). `annotations`, `images` and `usage` are objects as they
    stand in Chat Completions, `logprobs` its tokens without their empty `top_logprobs`. Exactly one
    of `finish_reason` and `failure` is None. `partial`: the stream may end inside any item, so that
    all of this is only what the client's view must be a prefix of.
    """

    content: str
    refusal: str
    reasoning: str
    tool_calls: tuple[tuple[str, str, str], ...]
    annotations: tuple[dict[str, Any], ...]
    images: tuple[dict[str, Any], ...]
    logprobs: tuple[dict[str, Any], ...]
    finish_reason: str | None
    failure: Fault | None
    usage: dict[str, Any] | None
    partial: bool


def expected(
    answer: Answer,
    *,
    client_tools: Iterable[str] | None = None,
    commentary: Literal["reasoning", "content", "drop"] = "reasoning",
    images: Literal["final", "partial"] | None = "final",
) -> Expected:
    """What `answer` must look like to a client.

    `client_tools`: the names of the client's custom tools, None: every `CustomToolCall` is its
    own. `commentary`: where the text of commentary messages goes. `images`: the final ones, the
    partial ones before them, or none.
    """
    customs = None if client_tools is None else set(client_tools)
    content = refusal = ""
    reasoning: list[str] = []
    calls: list[tuple[str, str, str]] = []
    citations: list[dict[str, Any]] = []
    urls: list[str] = []
    logprobs: list[dict[str, Any]] = []
    for position, item in enumerate(answer.output):
        if isinstance(item, Message):
            aside = ""
            for part in item.parts:
                if isinstance(part, Refusal):
                    refusal += part.text
                elif item.phase == "commentary" and commentary != "content":
                    aside += part.text
                else:
                    # Citations count in their part; the client sees all parts as one text.
                    for given in part.annotations:
                        citation: dict[str, Any] = {"url": given.url}
                        if given.title is not None:
                            citation["title"] = given.title
                        if given.start_index is not None:
                            citation["start_index"] = given.start_index + len(content)
                        if given.end_index is not None:
                            citation["end_index"] = given.end_index + len(content)
                        citations.append(citation)
                    logprobs += [
                        {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
                        for token in part.tokens
                    ]
                    content += part.text
            if commentary == "reasoning":
                reasoning.append(aside)
        elif isinstance(item, Reasoning):
            raw = "".join(item.texts)
            reasoning += [raw] if raw else item.summaries
        elif isinstance(item, FunctionCall):
            unfinished = "" if answer.is_cut(position) else "{}"
            arguments = item.arguments or unfinished
            calls.append((answer.call_id(position, item), item.name, arguments))
        elif isinstance(item, CustomToolCall):
            if customs is None or item.name in customs:
                calls.append((answer.call_id(position, item), item.name, item.input))
        elif isinstance(item, Image) and images is not None:
            shown = (*item.partials, item.b64) if images == "partial" else (item.b64,)
            urls += [f"data:image/{item.output_format};base64,{b64}" for b64 in shown]

    return Expected(
        content=content,
        refusal=refusal,
        reasoning="\n\n".join(block for block in reasoning if block),
        tool_calls=tuple(calls),
        annotations=tuple(
            {"index": index, "type": "url_citation", "url_citation": citation}
            for index, citation in enumerate(citations)
        ),
        images=tuple(
            {"index": index, "type": "image_url", "image_url": {"url": url}}
            for index, url in enumerate(urls)
        ),
        logprobs=tuple(logprobs),
        finish_reason=_finish_reason(answer, has_calls=bool(calls)),
        failure=_failure(answer),
        usage=_usage(answer),
        partial=isinstance(answer.end, Truncated) and answer.end.after_events is not None,
    )


def _finish_reason(answer: Answer, *, has_calls: bool) -> str | None:
    if isinstance(answer.end, Incomplete):
        return "content_filter" if answer.end.reason == "content_filter" else "length"
    if isinstance(answer.end, Completed):
        return "tool_calls" if has_calls else "stop"
    return None


def _failure(answer: Answer) -> Fault | None:
    end = answer.end
    if isinstance(end, Failed):
        return Fault(end.code, None if end.code is None else end.message)
    if isinstance(end, ErrorEvent):
        kind = end.type if end.shape == "nested" else None
        return Fault(end.code, end.message, kind, end.param)
    if isinstance(end, Cancelled):
        return Fault("response_cancelled")
    if isinstance(end, Truncated):
        return Fault("upstream_truncated")
    return None


def _usage(answer: Answer) -> dict[str, Any] | None:
    given = answer.usage
    if given is None or isinstance(answer.end, (ErrorEvent, Truncated)):
        return None
    return {
        "prompt_tokens": given.input_tokens,
        "completion_tokens": given.output_tokens,
        "total_tokens": given.input_tokens + given.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": given.cached_tokens,
            "cache_write_tokens": given.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": given.reasoning_tokens},
    }
