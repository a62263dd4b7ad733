"""What openai-python makes of the chunks: its own types, and its own accumulator.

The client reads our frames over real HTTP only from the transports on; here its types and its
stream state get what we say.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from openai._models import construct_type_unchecked
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deltawire import Chunk, Done, fold
from deltawire.testing import Answer, Habits
from deltawire.testing.strategies import streams
from wire import receive

# The client's own types cost ten times what ours do.
FEWER = settings(max_examples=settings().max_examples // 3)


@FEWER
@given(streams())
def test_openai_python_reads_every_chunk_as_it_is_meant(case: tuple[Answer, Habits, bytes]) -> None:
    _, events = receive(case[2], include_usage=True)
    for event in events:
        if isinstance(event, Chunk):
            value = event.to_dict()
            assert ChatCompletionChunk.model_validate(value).to_dict() == value


@FEWER
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
    # The snapshot, because the client raises for `length` and `content_filter`, rightly.
    theirs = state.current_completion_snapshot.to_dict()
    ours = fold(events).to_dict()
    mine, message = ours["choices"][0], theirs["choices"][0]["message"]
    assert (message.get("content") or "") == (mine["message"]["content"] or "")
    assert (message.get("refusal") or "") == (mine["message"]["refusal"] or "")
    assert message.get("reasoning_content") == mine["message"].get("reasoning_content")
    assert theirs["choices"][0]["finish_reason"] == mine["finish_reason"]
    assert theirs.get("usage") == ours.get("usage")
    for key in ("annotations", "images"):
        got = [_without_nones(each) for each in message.get(key) or []]
        said = [{"index": n, **each} for n, each in enumerate(mine["message"].get(key, []))]
        assert [{**each, "index": n} for n, each in enumerate(got)] == said
    calls = [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in message.get("tool_calls") or []
    ]
    assert calls == [
        (each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in mine["message"].get("tool_calls", [])
    ]


@FEWER
@given(streams())
def test_openai_python_reads_every_completion(case: tuple[Answer, Habits, bytes]) -> None:
    _, events = receive(case[2], include_usage=True)
    if isinstance(events[-1], Done):
        value = fold(events).to_dict()
        message = value["choices"][0]["message"]
        # What upstream leaves out of a citation stays out; the client, which does not validate,
        # reads it all the same, and only this model of it does not.
        known = [each for each in message.pop("annotations", []) if len(each["url_citation"]) == 4]
        message |= {"annotations": known} if known else {}
        read = json.loads(ChatCompletion.model_validate(value).model_dump_json(exclude_unset=True))
        assert read == value


def _without_nones(value: Any) -> Any:
    """The client fills in None for every key that is not there."""
    if isinstance(value, dict):
        return {key: _without_nones(each) for key, each in value.items() if each is not None}
    return value
