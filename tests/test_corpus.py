"""Streams and bodies that servers really sent, against what they themselves say at their end.

The recordings are beside the project, not in it (`../shared/corpus`, `../shared/spec`). Where they
are absent, these tests are skipped and say so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltawire import (
    ChatStream,
    Chunk,
    Done,
    Failure,
    UpstreamError,
    completion_from_response,
    fold,
)
from wire import SHARED, parsed, plain

STREAMS = sorted(SHARED.glob("corpus/streams/*/*.sse"))
BODIES = sorted(SHARED.glob("corpus/bodies/*/*.json"))
ABSENT = "the recorded streams are not there (../shared/corpus)"

# Not whole in themselves: a hand-made stream whose first and last events are broken JSON, and one
# that ends in an error.
BROKEN = "vercel-ai__parallel-tool-call-wrapper.1"
ERROR = "vercel-ai__openai-error.1"


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def received(path: Path, size: int) -> tuple[ChatStream, list[Any]]:
    data = path.read_bytes()
    stream = ChatStream(include_usage=True)
    events = []
    for at in range(0, len(data), size):
        events += stream.receive_data(data[at : at + size])
    return stream, events + stream.receive_eof()


def terminal_response(path: Path) -> dict[str, Any]:
    for line in reversed(path.read_bytes().split(b"\n")):
        if line.startswith(b"data: {"):
            event: dict[str, Any] = json.loads(line[6:])
            if event["type"] in ("response.completed", "response.incomplete"):
                response: dict[str, Any] = event["response"]
                return response
    raise AssertionError("no terminal event")


@pytest.mark.skipif(not STREAMS, reason=ABSENT)
@pytest.mark.parametrize("path", STREAMS, ids=name)
def test_recorded_streams_come_out_whole(path: Path) -> None:
    stream, events = received(path, 16384)
    if path.stem in (BROKEN, ERROR):
        assert isinstance(events[-1], Failure)
        assert stream.skipped_events == (2 if path.stem == BROKEN else 0)
        return
    final = terminal_response(path)
    completion = fold(events).to_dict()
    message = completion["choices"][0]["message"]
    messages = [item for item in final["output"] if item["type"] == "message"]
    parts = [
        part for item in messages if item.get("phase") != "commentary" for part in item["content"]
    ]
    said = "".join(part["text"] for part in parts if part["type"] == "output_text")
    refused = "".join(part["refusal"] for part in parts if part["type"] == "refusal")
    called = [
        (item["call_id"], item["name"], item.get("arguments", item.get("input")))
        for item in final["output"]
        if item["type"] in ("function_call", "custom_tool_call")
    ]
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", [])
    ]
    assert (message["content"] or "") == said
    assert (message["refusal"] or "") == refused
    assert calls == called
    for key, theirs in (
        ("prompt_tokens", "input_tokens"),
        ("completion_tokens", "output_tokens"),
        ("total_tokens", "total_tokens"),
    ):
        assert completion["usage"][key] == final["usage"][theirs]
    assert stream.divergences == []
    assert stream.skipped_events == 0


@pytest.mark.skipif(not STREAMS, reason=ABSENT)
@pytest.mark.parametrize("path", STREAMS, ids=name)
def test_recorded_streams_are_the_same_in_every_slicing_and_rendering(path: Path) -> None:
    data = path.read_bytes()
    _, whole = received(path, len(data))
    for size in (1, 7, 1400):
        if len(data) // size > 40_000:
            continue
        assert received(path, size)[1] == whole
        stream = ChatStream(include_usage=True)
        frames = [stream.translate(data[at : at + size]) for at in range(0, len(data), size)]
        assert parsed(b"".join(frames) + stream.translate_eof()) == plain(whole)


@pytest.mark.skipif(not BODIES, reason=ABSENT)
@pytest.mark.parametrize("path", BODIES, ids=name)
def test_recorded_bodies_are_completions_or_errors(path: Path) -> None:
    body = json.loads(path.read_bytes())
    if body.get("object") != "response":
        with pytest.raises(UpstreamError) as caught:
            completion_from_response(body)
        assert caught.value.message == body["error"]["message"]
        return
    message = completion_from_response(path.read_bytes()).choices[0].message
    texts = [
        part["text"]
        for item in body["output"]
        if item["type"] == "message" and item.get("phase") != "commentary"
        for part in item["content"]
        if part["type"] == "output_text"
    ]
    assert (message.content or "") == "".join(texts)


def schema(name: str) -> Any:
    """A validator for one of the wire types."""
    from jsonschema import Draft202012Validator

    path = SHARED / "spec" / f"{name}.schema.json"
    if not path.exists():
        pytest.skip("the JSON Schemas are not there (../shared/spec)")
    return Draft202012Validator(json.loads(path.read_bytes()))


@pytest.mark.skipif(not STREAMS, reason=ABSENT)
def test_every_chunk_is_valid_by_the_schema() -> None:
    validator = schema("chat_completion_chunk")
    for path in STREAMS:
        chunks = [event.to_dict() for event in received(path, 16384)[1] if isinstance(event, Chunk)]
        # Chunks of one stream differ in their delta only; a few of each kind will do.
        kinds = {json.dumps(sorted(_keys(chunk))): chunk for chunk in chunks}
        for chunk in kinds.values():
            validator.validate(chunk)


def _keys(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [key for name, each in value.items() for key in _keys(each, f"{path}.{name}")]
    if isinstance(value, list):
        return [key for each in value for key in _keys(each, f"{path}[]")]
    return [path]


@pytest.mark.skipif(not STREAMS, reason=ABSENT)
def test_every_completion_is_valid_by_the_schema() -> None:
    validator = schema("chat_completion")
    for path in STREAMS:
        _, events = received(path, 16384)
        if isinstance(events[-1], Done):
            validator.validate(fold(events).to_dict())
