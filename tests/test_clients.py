"""What openai-python makes of the chunks: its own types, and its own accumulator.

The client reads our frames over real HTTP only from the transports on; here its types and its
stream state get what we say.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from openai._models import construct_type_unchecked
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deltawire import Chunk, Done, fold
from deltawire.testing import Answer, Habits
from deltawire.testing.strategies import streams
from wire import receive


@given(streams())
def test_openai_python_reads_every_chunk_as_it_is_meant(case: tuple[Answer, Habits, bytes]) -> None:
    _, events = receive(case[2], include_usage=True)
    for event in events:
        if isinstance(event, Chunk):
            value = event.to_dict()
            assert ChatCompletionChunk.model_validate(value).to_dict() == value


@given(streams())
def test_openai_pythons_accumulator_gets_what_the_fold_gets(
    case: tuple[Answer, Habits, bytes],
) -> None:
    _, events = receive(case[2], include_usage=True)
    if not isinstance(events[-1], Done):
        return
    state: Any = ChatCompletionStreamState(input_tools=[])
    for event in events:
        if isinstance(event, Chunk):
            # As the client itself makes it from a frame.
            chunk = construct_type_unchecked(value=event.to_dict(), type_=ChatCompletionChunk)
            state.handle_chunk(chunk)
    theirs = state.get_final_completion().to_dict()
    ours = fold(events).to_dict()
    mine, message = ours["choices"][0], theirs["choices"][0]["message"]
    assert (message.get("content") or "") == (mine["message"]["content"] or "")
    assert (message.get("refusal") or "") == (mine["message"]["refusal"] or "")
    assert message.get("reasoning_content") == mine["message"].get("reasoning_content")
    assert theirs["choices"][0]["finish_reason"] == mine["finish_reason"]
    assert theirs.get("usage") == ours.get("usage")
    for key in ("annotations", "images"):
        indexed = [dict(each) for each in message.get(key, [])]
        for each in indexed:
            each.pop("index", None)
        assert indexed == mine["message"].get(key, [])
    calls = [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in message.get("tool_calls") or []
    ]
    assert calls == [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in mine["message"].get("tool_calls", [])
    ]


@given(streams())
def test_openai_python_reads_every_completion(case: tuple[Answer, Habits, bytes]) -> None:
    _, events = receive(case[2], include_usage=True)
    if isinstance(events[-1], Done):
        value = fold(events).to_dict()
        read = json.loads(ChatCompletion.model_validate(value).model_dump_json(exclude_unset=True))
        assert read == value
