"""The Responses API, the side that upstreams write: its events and objects, only the fields read.

One flat `StreamEvent` stands for all event types, because providers deviate: a field may be
missing anywhere, and unknown fields and types pass by. `parse` is the only way in. It is typed
first; what upstream got wrong (a null delta, a number for an id, invalid UTF-8, half a surrogate
pair) then costs the field that is wrong and not the event it is in.
Source: OpenAI's OpenAPI document (ResponseStreamEvent, Response, OutputItem) and recordings.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T", bound=Struct)


class Annotation(Struct):
    """A citation; only `url_citation` has a form in Chat Completions."""

    type: str | None = None
    url: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class TopLogprob(Struct):
    """An alternative token. `bytes` is often left out."""

    token: str | None = None
    logprob: float | None = None
    bytes: list[int] | None = None


class TokenLogprob(Struct):
    """A token of output text. `bytes` and `top_logprobs` are often left out."""

    token: str | None = None
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] | None = None


class Part(Struct):
    """A part of a message's content, or of a reasoning item's content or summary."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    annotations: list[Annotation] | None = None
    logprobs: list[TokenLogprob] | None = None


class OutputItem(Struct):
    """An item of a response's output. Which fields it has depends on `type`."""

    type: str | None = None
    id: str | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    # JSON text in a function call, an object in a tool_search_call (and in some servers' calls).
    arguments: Any = None
    input: Any = None
    content: list[Part] | None = None
    summary: list[Part] | None = None
    phase: str | None = None
    encrypted_content: str | None = None
    # Base64 in an image generation call.
    result: str | None = None
    output_format: str | None = None


class InputTokensDetails(Struct):
    """Counts in tokens."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputTokensDetails(Struct):
    """Counts in tokens."""

    reasoning_tokens: int | None = None


class TokenUsage(Struct):
    """Counts in tokens."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: InputTokensDetails | None = None
    output_tokens_details: OutputTokensDetails | None = None


class IncompleteDetails(Struct):
    """`reason` is `max_output_tokens` or `content_filter` in the specification."""

    reason: str | None = None


class Response(Struct):
    """A response object, whole or as far as it has come. `created_at`: Unix seconds."""

    object: str | None = None
    id: str | None = None
    created_at: int | float | None = None
    model: str | None = None
    status: str | None = None
    output: list[OutputItem] | None = None
    # An object, null, or (in the wild) a string.
    error: Any = None
    incomplete_details: IncompleteDetails | None = None
    usage: TokenUsage | None = None


class StreamEvent(Struct):
    """Any event of a Responses stream."""

    type: str | None = None
    item_id: str | None = None
    call_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: Any = None
    input: str | None = None
    name: str | None = None
    logprobs: list[TokenLogprob] | None = None
    annotation: Annotation | None = None
    partial_image_b64: str | None = None
    output_format: str | None = None
    item: OutputItem | None = None
    part: Part | None = None
    response: Response | None = None
    # The error event is flat in the specification and nested in recordings.
    error: Any = None
    code: str | int | None = None
    message: str | None = None
    param: str | None = None


def parse(payload: bytes, kind: type[T]) -> T | None:
    """The JSON object in `payload` as a `kind`, or None if it is no JSON object.

    Never raises. Strings in the result are valid Unicode but for `delta`, which may hold half of
    a surrogate pair whose other half is in the next event.
    """
    try:
        typed: T = _DECODERS[kind].decode(payload)
        return typed
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(payload.decode("utf-8", "replace"), parse_constant=_no_constant)
        return _salvage_struct(value, kind) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def scrub(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# Made at import: msgspec (0.22) looks into a type at its first use, and another thread that comes
# upon one that is half looked into crashes the process.
_DECODERS: Final[dict[type[Any], msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(kind) for kind in (StreamEvent, Response)
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@functools.cache
def _fields(kind: type[Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _salvage_struct(value: dict[str, Any], kind: type[T]) -> T:
    fields = {
        name: _salvage(value[name], annotation)
        for name, annotation in _fields(kind).items()
        if name in value
    }
    if isinstance(value.get("delta"), str) and "delta" in fields:
        fields["delta"] = value["delta"]
    return kind(**fields)


def _salvage(value: Any, annotation: Any) -> Any:
    """As much of `value` as fits `annotation`; None where nothing does."""
    if annotation is Any:
        return _scrub_all(value)
    origin = typing.get_origin(annotation)
    if origin is types.UnionType:
        for member in typing.get_args(annotation):
            if (salvaged := _salvage(value, member)) is not None:
                return salvaged
        return None
    if origin is list:
        (element,) = typing.get_args(annotation)
        if not isinstance(value, list):
            return None
        return [kept for entry in value if (kept := _salvage(entry, element)) is not None]
    if annotation is str:
        return scrub(value) if isinstance(value, str) else None
    if isinstance(value, bool):
        return None
    if annotation is float:
        # An integer of a thousand digits is JSON, but no float.
        fits = isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 1000)
        return float(value) if fits else None
    if annotation is int:
        return value if isinstance(value, int) else None
    if isinstance(value, dict) and annotation is not type(None):
        return _salvage_struct(value, annotation)
    return None


def _scrub_all(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_scrub_all(entry) for entry in value]
    if isinstance(value, dict):
        return {scrub(key): _scrub_all(entry) for key, entry in value.items()}
    return value
