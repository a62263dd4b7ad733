"""Chat Completions, the side that upstreams write: their chunks and completions, read leniently.

What may live here: how upstream's JSON becomes the types of `chat`, and how a completion that came
whole is told as a stream. What may not: bytes and events (`relay`). Whatever is odd in one field
costs that field, never the chunk; what is read here goes to callers who want objects, while clients
are sent upstream's own bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from deltawire import chat, responses, shapes

Json = dict[str, Any]

# White space, and the bytes of a byte order mark.
BLANK: Final = b"\xef\xbb\xbf \t\r\n"

_encode: Final = msgspec.json.Encoder().encode
# Only made, so that `convert` meets no type for the first time: see the decoders of `responses`.
_DECODERS: Final = [
    msgspec.json.Decoder(kind)
    for kind in (chat.Choice, chat.Delta, chat.Message, chat.ToolCallDelta)
]
_REASONS: Final[Mapping[Any, chat.FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    # What preceded tool calls.
    "function_call": "tool_calls",
}


class RelayedCompletion(chat.ChatCompletion):
    """A completion that upstream gave whole. `body` is what it said, to the byte."""

    body: bytes = b"{}"

    def to_dict(self) -> Json:
        """What upstream said, with all that it said beside the fields that are known here."""
        return decoded(self.body) or {}

    def to_json(self) -> bytes:
        """The body, byte for byte."""
        return self.body


def decoded(payload: bytes) -> Json | None:
    """The JSON object in it, or None."""
    payload = payload.lstrip(BLANK)
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = _mended(payload)
    return value if isinstance(value, dict) else None


def _mended(payload: bytes) -> Any:
    """JSON in which texts are no Unicode: halves of surrogate pairs, bytes that are no UTF-8."""
    try:
        text = json.dumps(json.loads(payload.decode(errors="replace")), ensure_ascii=False)
        return msgspec.json.decode(text.encode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def choices_of(value: Json) -> list[Json]:
    """Those of its choices that are objects."""
    given = value.get("choices")
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def error_of(value: Json, event: str = "message") -> Any:
    """The error that an object is or has; None if it is about something else."""
    error = value.get("error")
    if isinstance(error, dict | str) and error:
        return error
    # vLLM's, until 2025, was the object itself.
    return value if event == "error" or value.get("object") == "error" else None


def says_something(message: Any) -> bool:
    """Whether there is anything in a delta or a message that a client would show or use."""
    return isinstance(message, dict) and any(said for key, said in message.items() if key != "role")


def usage(given: Any) -> chat.Usage | None:
    """Usage, or None unless two of the three totals are there to tell all of them."""
    if not isinstance(given, dict):
        return None
    prompt, completion = (
        each if isinstance(each := given.get(f"{name}_tokens_details"), dict) else {}
        for name in ("prompt", "completion")
    )
    return shapes.usage(
        responses.TokenUsage(
            _number(given.get("prompt_tokens")),
            _number(given.get("completion_tokens")),
            _number(given.get("total_tokens")),
            responses.InputTokensDetails(
                _number(prompt.get("cached_tokens")), _number(prompt.get("cache_write_tokens"))
            ),
            responses.OutputTokensDetails(_number(completion.get("reasoning_tokens"))),
        )
    )


def usage_of(value: Json) -> chat.Usage | None:
    """The usage in a chunk or a completion."""
    if (found := usage(value.get("usage"))) is not None:
        return found
    # Moonshot's place for it.
    return next(filter(None, (usage(each.get("usage")) for each in choices_of(value))), None)


def chunk(value: Json) -> chat.Chunk:
    """The chunk, as far as it is one."""
    return chat.ChatCompletionChunk(
        _text(value.get("id")),
        "chat.completion.chunk",
        _number(value.get("created")) or 0,
        _text(value.get("model")),
        [_chunk_choice(each, place) for place, each in enumerate(choices_of(value))],
        usage_of(value),
    )


def completion(value: Json, body: bytes) -> RelayedCompletion:
    """The completion, as far as it is one; `body` is where it was read."""
    return RelayedCompletion(
        _text(value.get("id")),
        "chat.completion",
        _number(value.get("created")) or 0,
        _text(value.get("model")),
        [_choice(each, place) for place, each in enumerate(choices_of(value))],
        usage_of(value),
        body,
    )


def told_as_stream(value: Json, *, include_usage: bool) -> bytes:
    """A completion that came whole, as frames for a client that has asked for a stream."""
    common = {**value, "object": "chat.completion.chunk"}
    spent = common.pop("usage", None)
    frames = [
        _frame({**common, "choices": [choice]})
        for place, given in enumerate(choices_of(value))
        for choice in _told(given, place)
    ]
    if include_usage and spent is not None:
        frames.append(_frame({**common, "choices": [], "usage": spent}))
    return b"".join([*frames, chat.Done().to_wire()])


def _told(given: Json, place: int) -> Iterator[Json]:
    index = given.get("index", place)
    message = given["message"] if isinstance(given.get("message"), dict) else {}
    said = {key: each for key, each in message.items() if each is not None}
    calls = said.pop("tool_calls", None)
    deltas: list[Json] = [{"role": said.pop("role", "assistant"), "content": ""}]
    if says_something(said):
        deltas.append(said)
    # Each in a chunk of its own: some clients tear apart what comes together.
    listed = calls if isinstance(calls, list) else []
    objects = (call for call in listed if isinstance(call, dict))
    deltas += ({"tool_calls": [{**call, "index": at}]} for at, call in enumerate(objects))
    logprobs = given.get("logprobs")
    for number, delta in enumerate(deltas):
        choice = {"index": index, "delta": delta, "finish_reason": None}
        yield {**choice, "logprobs": logprobs} if logprobs and number == 1 else choice
    yield {"index": index, "delta": {}, "finish_reason": given.get("finish_reason") or "stop"}


def _frame(value: Json) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def _chunk_choice(given: Json, place: int) -> chat.ChunkChoice:
    delta = given.get("delta")
    said = _fitting(delta, chat.Delta)
    if isinstance(delta, dict) and isinstance(delta.get("tool_calls"), list):
        said.setdefault("tool_calls", _call_deltas(delta["tool_calls"]) or None)
    return chat.ChunkChoice(
        _index(given, place),
        chat.Delta(**said),
        _reason(given),
        _logprobs(given),
    )


def _call_deltas(given: list[Any]) -> list[chat.ToolCallDelta]:
    """Calls with something odd, or without the index that Google leaves out."""
    calls = []
    for place, each in enumerate(given):
        fitting = {"index": place, **_fitting(each, chat.ToolCallDelta)}
        calls.append(chat.ToolCallDelta(**fitting))
    return calls


def _choice(given: Json, place: int) -> chat.Choice:
    said = _fitting(given.get("message"), chat.Message)
    message = chat.Message(**{"content": None, "refusal": None, **said, "role": "assistant"})
    return chat.Choice(_index(given, place), message, _reason(given), _logprobs(given))


def _fitting(given: Any, kind: type[Struct]) -> Json:
    """Those fields of an object that are as `kind` has them."""
    found: Json = {}
    if isinstance(given, dict):
        for field in msgspec.structs.fields(kind):
            if given.get(field.name) is not None:
                try:
                    found[field.name] = msgspec.convert(given[field.name], field.type)
                except msgspec.ValidationError:
                    continue
    return found


def _logprobs(given: Json) -> chat.Logprobs | None:
    found: chat.Logprobs | None = _fitting({"logprobs": given.get("logprobs")}, chat.Choice).get(
        "logprobs"
    )
    return found


def _index(given: Json, place: int) -> int:
    index = _number(given.get("index"))
    return place if index is None else index


def _reason(given: Json) -> chat.FinishReason | None:
    reason = given.get("finish_reason")
    return _REASONS.get(reason if isinstance(reason, str) else None, "stop") if reason else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return shapes.count(value) if number else None
