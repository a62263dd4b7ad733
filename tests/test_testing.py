"""`deltawire.testing` itself: its plain output is what the specification says.

The JSON Schemas are beside the project (`../shared/spec`); where they are absent, the tests that
need them are skipped and say so.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from deltawire import completion_from_response, fold
from deltawire.testing import (
    PRESETS,
    Answer,
    Completed,
    CustomToolCall,
    FunctionCall,
    Habits,
    Image,
    Message,
    Reasoning,
    Refusal,
    Text,
    UrlCitation,
    expected,
    write_events,
    write_response,
    write_stream,
)
from deltawire.testing.strategies import answers, readable
from wire import SHARED, receive

RICH = Answer(
    (
        Reasoning(("One.", "Two.")),
        Message("I look.", phase="commentary"),
        Message(
            (Text("It rains.", (UrlCitation("https://a.example/", "A", 0, 2),), logprobs=True),)
        ),
        Message(Refusal("No more.")),
        FunctionCall("weather", '{"city":"Rome"}'),
        CustomToolCall("sql", "SELECT 1"),
        Image("iVBORw0KGgo=", partials=("AAAA", "BBBB")),
    )
)


def validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    path = SHARED / "spec" / f"{name}.schema.json"
    if not path.exists():
        pytest.skip("the JSON Schemas are not there (../shared/spec)")
    return Draft202012Validator(json.loads(path.read_bytes()))


def test_plain_events_are_valid_by_the_specification() -> None:
    valid = validator("response_stream_event")
    for event in write_events(RICH):
        valid.validate(event)


def test_a_plain_response_is_valid_by_the_specification() -> None:
    validator("response").validate(write_response(RICH))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("commentary", ["reasoning", "content", "drop"])
@pytest.mark.parametrize("images", ["final", "partial", None])
@pytest.mark.parametrize("client_tools", [None, ["sql"], []])
def test_every_preset_says_what_is_expected(
    name: str, commentary: Any, images: Any, client_tools: list[str] | None
) -> None:
    options = {"commentary": commentary, "images": images, "client_tools": client_tools}
    promised = expected(RICH, **options)
    _, events = receive(write_stream(RICH, PRESETS[name]), **options)
    message = fold(events).to_dict()["choices"][0]["message"]
    assert message.get("content") == promised.content
    assert message.get("reasoning_content") == promised.reasoning
    assert len(message.get("images", [])) == len(promised.images)
    assert len(message["tool_calls"]) == len(promised.tool_calls)


def test_a_citation_is_expected_with_what_it_has() -> None:
    bare = UrlCitation("https://example.org")
    whole = UrlCitation("https://example.org/2", "Two", 1, 2)
    answer = Answer((Message("One."), Message(Text("Two.", (bare, whole)))))
    assert [each["url_citation"] for each in expected(answer).annotations] == [
        {"url": "https://example.org"},
        {"url": "https://example.org/2", "title": "Two", "start_index": 5, "end_index": 6},
    ]


@settings(max_examples=settings().max_examples // 3)
@given(answers())
def test_a_whole_response_and_its_stream_say_the_same(answer: Answer) -> None:
    if isinstance(answer.end, Completed):
        _, events = receive(write_stream(answer), include_usage=True)
        whole = completion_from_response(write_response(answer))
        streamed = fold(events)
        assert whole.choices[0].message.content == streamed.choices[0].message.content
        assert whole.choices[0].message.tool_calls == streamed.choices[0].message.tool_calls
        assert whole.usage == streamed.usage


def test_habits_that_no_reader_could_follow_are_taken_back() -> None:
    two_parts = Answer(Message(("a", "b")))
    assert readable(Habits(content_index="absent"), two_parts).content_index == "stable"
    silent = Habits(announce_items=False, close_items="never", new_call_ids=True)
    assert not readable(silent).new_call_ids
