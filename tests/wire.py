"""Writing an upstream by hand, for tests that need one exact event, and reading what came of it.

Everything that a provider would really send is written by `deltawire.testing` instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltawire import ChatStream, Chunk, Event, fold

SHARED = Path(__file__).resolve().parents[2] / "shared"

Json = dict[str, Any]


def frame(event: Json, *, name: bool = True) -> bytes:
    """One event as recorded OpenAI streams frame it."""
    line = f"event: {event['type']}\n" if name and "type" in event else ""
    return f"{line}data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()


def stream_of(*events: Json) -> bytes:
    return b"".join(frame(event) for event in events)


def created(**more: Any) -> Json:
    response = {"id": "resp_1", "created_at": 1_700_000_000, "model": "gpt-5", "output": []}
    return {"type": "response.created", "response": {**response, "status": "in_progress", **more}}


def terminal(name: str = "completed", output: Iterable[Json] = (), **more: Any) -> Json:
    response = {"id": "resp_1", "status": name, "output": list(output), **more}
    return {"type": f"response.{name}", "response": response}


def added(index: int, item: Json) -> Json:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: int, item: Json) -> Json:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def message(text: str = "", *, id: str = "msg_1", **more: Any) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    return {"type": "message", "id": id, "role": "assistant", "content": content, **more}


def call(
    arguments: str = "", *, n: int = 1, name: str = "weather", call_id: str | None = None
) -> Json:
    return {
        "type": "function_call",
        "id": f"fc_{n}",
        "call_id": call_id or f"call_{n}",
        "name": name,
        "arguments": arguments,
    }


def text_delta(delta: Any, *, index: int = 0, id: str = "msg_1", **more: Any) -> Json:
    return {
        "type": "response.output_text.delta",
        "item_id": id,
        "output_index": index,
        "content_index": 0,
        "delta": delta,
        **more,
    }


def arguments_delta(delta: Any, *, n: int = 1, index: int = 0) -> Json:
    return {
        "type": "response.function_call_arguments.delta",
        "item_id": f"fc_{n}",
        "output_index": index,
        "delta": delta,
    }


def arguments_done(arguments: str, *, n: int = 1, index: int = 0) -> Json:
    return {
        "type": "response.function_call_arguments.done",
        "item_id": f"fc_{n}",
        "output_index": index,
        "arguments": arguments,
    }


def receive(data: bytes, **options: Any) -> tuple[ChatStream, list[Event]]:
    """The whole of `data` in one piece, and the end."""
    stream = ChatStream(**options)
    return stream, [*stream.receive_data(data), *stream.receive_eof()]


def answer(data: bytes, **options: Any) -> Json:
    """The message that comes of `data`, with the finish reason beside it."""
    _, events = receive(data, **options)
    choice = fold(events).to_dict()["choices"][0]
    return {**choice["message"], "finish_reason": choice["finish_reason"]}


def calls(data: bytes, **options: Any) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of each call."""
    return [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in answer(data, **options).get("tool_calls", [])
    ]


def deltas(events: Iterable[Event]) -> list[Json]:
    """The delta of every chunk that has one."""
    return [
        choice["delta"]
        for event in events
        if isinstance(event, Chunk)
        for choice in event.to_dict()["choices"]
    ]


def parsed(frames: bytes) -> list[Any]:
    """Frames as a Chat client reads them: JSON values, and the string "[DONE]"."""
    payloads = [each.removeprefix(b"data: ") for each in frames.split(b"\n\n") if each]
    return ["[DONE]" if each == b"[DONE]" else json.loads(each) for each in payloads]


def plain(events: Iterable[Event]) -> list[Any]:
    """Events as `parsed` gives the frames of the same stream."""
    return [each.to_dict() if hasattr(each, "to_dict") else "[DONE]" for each in events]
