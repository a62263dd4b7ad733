"""A chat request becomes a Responses request, and nothing vanishes."""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from chat_requests import (
    CUSTOM,
    DEEP,
    EXAMPLES,
    GRAMMAR,
    LEGACY,
    PARALLEL,
    PLAIN,
    REASONING,
    SEARCH,
    STRUCTURED,
    USER,
    VISION,
    WEATHER,
    call,
    called,
    chat_requests,
    request,
    result,
)
from deltawire import (
    DIALECTS,
    GENERIC,
    OPENAI,
    VLLM,
    XAI,
    Dialect,
    Failure,
    InvalidRequest,
    ReportEntry,
    Translated,
    UnsupportedField,
    fold,
    refuses_encrypted_reasoning,
    to_responses_request,
    without_reasoning,
)
from deltawire.chat import ChatCompletion, Function, ToolCall
from deltawire.reading import MAX_DEPTH
from deltawire.testing import Answer, CustomToolCall, FunctionCall, write_stream
from schemas import check_body
from wire import Json


def translated(chat_request: Json, dialect: Dialect = OPENAI) -> Translated:
    return to_responses_request(chat_request, dialect=dialect)


def body(chat_request: Json, dialect: Dialect = OPENAI) -> Json:
    return translated(chat_request, dialect).body


def reported(chat_request: Json, dialect: Dialect = OPENAI) -> list[tuple[str, str]]:
    return [(entry.action, entry.path) for entry in translated(chat_request, dialect).report]


# One of each kind.


def test_a_plain_chat() -> None:
    assert body(PLAIN) == {
        "model": "gpt-5",
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the weather?"},
        ],
        "temperature": 0.5,
        "max_output_tokens": 100,
        "stream": True,
        "store": False,
    }
    assert translated(PLAIN).report == []
    assert translated(PLAIN).include_usage


def test_a_vision_request() -> None:
    (message,) = body(VISION)["input"]
    assert message["content"] == [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": "https://example.com/1.png", "detail": "auto"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBOR", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:;base64,AAAA"},
    ]


def test_parallel_tools_with_results_in_another_order() -> None:
    sent = body(PARALLEL)
    assert sent["input"][1:] == [
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city":"Paris"}',
        },
        {
            "type": "function_call",
            "call_id": "call_2",
            "name": "weather",
            "arguments": '{"city":"Rome"}',
        },
        {"type": "function_call_output", "call_id": "call_2", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [{"type": "input_text", "text": "sun"}],
        },
    ]
    assert sent["tools"] == [
        {
            "type": "function",
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            "strict": False,
        }
    ]
    assert sent["tool_choice"] == {"type": "function", "name": "weather"}
    assert sent["parallel_tool_calls"] is True


def test_a_custom_tool_with_a_grammar() -> None:
    sent = body(CUSTOM)
    assert sent["tools"][0] == {
        "type": "custom",
        "name": "sum",
        "description": "Adds numbers.",
        "format": {
            "type": "grammar",
            "syntax": "lark",
            "definition": 'start: NUMBER ("+" NUMBER)*',
        },
    }
    # The second call is as an answer shows it: as a function's.
    assert [item["type"] for item in sent["input"][1:]] == [
        "custom_tool_call",
        "custom_tool_call_output",
    ] * 2
    assert [item["input"] for item in sent["input"][1::2]] == ["1+1", "2+2"]
    assert sent["tool_choice"] == {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "custom", "name": "sum"}, {"type": "function", "name": "weather"}],
    }
    assert set(translated(CUSTOM).client_tools) == {"sum"}


def test_structured_output() -> None:
    sent = body(STRUCTURED)
    assert sent["text"] == {
        "format": {
            "type": "json_schema",
            "name": "city",
            "description": "A city.",
            "schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": True,
        },
        "verbosity": "low",
    }
    assert (sent["include"], sent["top_logprobs"]) == (["message.output_text.logprobs"], 2)


def test_a_schema_may_be_no_more_than_its_name() -> None:
    named = {"type": "json_schema", "json_schema": {"name": "x"}}
    expected = {"type": "json_schema", "name": "x", "schema": {}}
    assert body(request(response_format=named))["text"]["format"] == expected
    for kind in ("text", "json_object"):
        plain = {"type": kind}
        assert body(request(response_format=plain))["text"]["format"] == plain


def test_reasoning_with_encrypted_history() -> None:
    sent = body(REASONING)
    assert sent["input"][1] == {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Look it up."}],
        "encrypted_content": "gAAAA",
    }
    assert [item.get("type") for item in sent["input"][2:]] == [
        "function_call",
        "function_call_output",
    ]
    assert sent["reasoning"] == {"effort": "high"}
    assert translated(REASONING).report == []


def test_web_search_options() -> None:
    assert body(SEARCH)["tools"] == [
        {
            "type": "web_search",
            "search_context_size": "low",
            "user_location": {"type": "approximate", "country": "FR"},
        }
    ]


def test_legacy_functions() -> None:
    sent = body(LEGACY)
    calling, answer = sent["input"][1:]
    assert (calling["name"], calling["arguments"]) == ("weather", '{"city":"Rome"}')
    assert answer == {
        "type": "function_call_output",
        "call_id": calling["call_id"],
        "output": "rain",
    }
    assert sent["tools"][0]["name"] == "weather"
    assert sent["tool_choice"] == {"type": "function", "name": "weather"}
    assert reported(LEGACY) == [("emulated", "functions")]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_the_body_is_valid_for_every_upstream(name: str, dialect: Dialect) -> None:
    check_body(body(EXAMPLES[name], dialect))


# Laws.


@given(chat_requests(), st.sampled_from(list(DIALECTS.values())))
def test_whatever_the_schema_allows_is_translated_or_refused(
    chat_request: Json, dialect: Dialect
) -> None:
    before = copy.deepcopy(chat_request)
    outcome = attempted(chat_request, dialect)
    if isinstance(outcome, InvalidRequest):
        event(f"refused: {outcome.message[:60]}")
        assert exists(chat_request, outcome.param or "")
    else:
        event("translated")
        json.dumps(outcome.body, allow_nan=False).encode()
        if outcome.body.get("max_output_tokens", 16) >= 16:
            check_body(outcome.body)
    assert chat_request == before


def attempted(chat_request: Json, dialect: Dialect = OPENAI) -> Translated | InvalidRequest:
    try:
        return translated(chat_request, dialect)
    except InvalidRequest as error:
        return error


def exists(value: Any, path: str) -> bool:
    """Whether the path leads somewhere, or to a field that might be added."""
    for name in path.replace("[", ".[").split("."):
        if name.startswith("["):
            value = value[int(name[1:-1])]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return isinstance(value, dict)
    return True


@given(chat_requests())
def test_nothing_vanishes(chat_request: Json) -> None:
    """Every text is in the body or in what the answer owes, or the report names its place."""
    count = 0

    def marked(value: Any) -> Any:
        nonlocal count
        if isinstance(value, list):
            return [marked(each) for each in value]
        if isinstance(value, dict):
            return {key: marked_field(key, each) for key, each in value.items()}
        return value

    def marked_field(key: str, value: Any) -> Any:
        nonlocal count
        texts = ("text", "refusal", "arguments", "input", "url", "description", "definition")
        names = ("file_data", "file_id", "filename", "user", "prompt_cache_key", "city", "stop")
        if key in (*texts, *names) and isinstance(value, str):
            count += 1
            return f"mark{count}."
        return marked(value)

    chat_request = marked(chat_request)
    if isinstance(chat_request.get("content"), str):
        chat_request["content"] = "mark0."
    done = attempted(chat_request)
    assume(isinstance(done, Translated))
    assert isinstance(done, Translated)
    paths = [entry.path for entry in done.report]
    kept = json.dumps([done.body, done.stop])
    for path, text in leaves(chat_request, ""):
        if text.startswith("mark") and text not in kept:
            assert any(f"{path}.".startswith((f"{lost}.", f"{lost}[")) for lost in paths), path


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from leaves(each, f"{path}[{at}]")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}" if path else key)


@given(st.data())
def test_no_wrong_type_anywhere_is_more_than_an_invalid_request(data: st.DataObject) -> None:
    chat_request = copy.deepcopy(data.draw(st.sampled_from(list(EXAMPLES.values()))))
    places = [*slots(chat_request)]
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(
        st.sampled_from([None, True, 0, -1, 1.5, float("nan"), 10**30, "", "\ud800", [], {}, b""])
        | st.just([[]])
        | st.just([{}])
    )
    outcome = attempted(chat_request)
    if isinstance(outcome, InvalidRequest):
        assert exists(chat_request, outcome.param or "")
        assert (outcome.param or "the request").split("[")[0] in outcome.message
    else:
        json.dumps(outcome.body, allow_nan=False).encode()


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value where another one might stand."""
    keys: list[Any] = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = list(range(len(value)))
    for key in keys:
        yield value, key
        yield from slots(value[key])


# Defaults that differ, fields with a fate of their own.


def test_r15_strict_and_store_are_said_out_loud() -> None:
    sent = body(request(tools=[WEATHER]))
    assert (sent["tools"][0]["strict"], sent["store"]) == (False, False)
    strict: Json = copy.deepcopy(WEATHER)
    strict["function"]["strict"] = True
    assert body(request(tools=[strict], store=True))["tools"][0]["strict"] is True
    assert body(request(tools=[strict], store=True))["store"] is True
    assert body(request(tools=[{"type": "function", "function": {"name": "f"}}]))["tools"] == [
        {
            "type": "function",
            "name": "f",
            "parameters": {"type": "object", "properties": {}},
            "strict": False,
        }
    ]


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_r16_a_tool_choice_that_is_a_word_stays_one(choice: str) -> None:
    assert body(request(tools=[WEATHER], tool_choice=choice))["tool_choice"] == choice


def test_r16_a_tool_choice_is_flat() -> None:
    function = {"type": "function", "function": {"name": "weather"}}
    assert body(request(tools=[WEATHER], tool_choice=function))["tool_choice"] == {
        "type": "function",
        "name": "weather",
    }
    custom = {"type": "custom", "custom": {"name": "sum"}}
    assert body(request(tools=[GRAMMAR], tool_choice=custom))["tool_choice"] == {
        "type": "custom",
        "name": "sum",
    }
    hosted = {"type": "web_search_preview"}
    assert body(request(tool_choice=hosted))["tool_choice"] == hosted
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [hosted]}}
    assert body(request(tool_choice=allowed))["tool_choice"]["tools"] == [hosted]


def test_r16_a_legacy_function_call_is_a_tool_choice() -> None:
    legacy = {"functions": [WEATHER["function"]]}
    assert body(request(**legacy, function_call="none"))["tool_choice"] == "none"
    both = request(**legacy, function_call="none", tool_choice="auto")
    assert body(both)["tool_choice"] == "auto"
    assert ("dropped", "function_call") in reported(both)


def test_r17_what_is_all_text_is_one_string_where_parts_are_not_understood() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = (
        {"role": "user", "content": parts},
        {"role": "assistant", "content": parts},
        called(call("call_1")),
        result("call_1", parts),
    )
    for dialect in (VLLM, GENERIC):
        sent = body(request(*messages), dialect)["input"]
        assert [item.get("content", item.get("output")) for item in sent] == [
            "a\nb",
            "ab",
            None,
            "a\nb",
        ]
    assert body(request(*messages))["input"][1] == {"role": "assistant", "content": "ab"}


def test_r20_nothing_is_said_before_there_is_something_to_say() -> None:
    """The pings are the server's; the stream for a request is silent until the first output."""
    stream = translated(PLAIN).chat_stream()
    upstream = write_stream(Answer("Hello."))
    before, _, after = upstream.partition(b"event: response.output_item.added")
    assert stream.receive_data(before) == []
    assert not stream.produced_output
    assert stream.receive_data(b"event: response.output_item.added" + after)[0].to_wire()


def test_r23_encrypted_reasoning_is_stripped_for_another_account() -> None:
    sent = body(REASONING)
    before = copy.deepcopy(sent)
    stripped = without_reasoning(sent)
    assert [item.get("type") for item in stripped["input"]] == [
        None,
        "function_call",
        "function_call_output",
    ]
    assert {**stripped, "input": 0} == {**sent, "input": 0}
    assert sent == before
    bare = {"type": "reasoning", "id": "rs_1", "summary": []}
    assert without_reasoning({"input": [bare, {"role": "user"}]}) == {"input": [{"role": "user"}]}
    assert without_reasoning(stripped) == stripped
    assert without_reasoning({"input": "Hello"}) == {"input": "Hello"}


@pytest.mark.parametrize(
    ("failure", "refused"),
    [
        (Failure("The encrypted content gAA...", code="invalid_encrypted_content"), True),
        (Failure("The encrypted content gAA... could not be verified."), True),
        (Failure("Encrypted content could not be decrypted or parsed."), True),
        (Failure("The image could not be read."), False),
        (Failure("encrypted content could not be verified", code="server_error"), False),
    ],
)
def test_r23_a_refusal_of_encrypted_reasoning_is_known(failure: Failure, refused: bool) -> None:
    assert refuses_encrypted_reasoning(failure) is refused


def test_stop_is_left_to_the_answer() -> None:
    done = translated(request(stop=["END", "", "\n"]))
    assert ("stop" in done.body, done.stop) == (False, ("END", "\n"))
    assert reported(request(stop="END")) == [("emulated", "stop")]
    assert translated(request(stop=[])).report == []
    events = done.chat_stream().receive_data(write_stream(Answer("one END two")))
    assert fold(events).choices[0].message.content == "one "


def test_tokens_are_raised_to_what_upstream_takes() -> None:
    assert body(request(max_tokens=5))["max_output_tokens"] == 16
    assert reported(request(max_tokens=5)) == [("adjusted", "max_tokens")]
    assert body(request(max_tokens=5), VLLM)["max_output_tokens"] == 5
    assert body(request(max_tokens=16.0))["max_output_tokens"] == 16


def test_of_two_limits_the_newer_counts() -> None:
    both = request(max_tokens=50, max_completion_tokens=60)
    assert body(both)["max_output_tokens"] == 60
    assert reported(both) == [("dropped", "max_tokens")]
    assert reported(request(max_tokens=50, max_completion_tokens=50)) == []


def test_fields_without_a_place_are_reported() -> None:
    lost = {
        "seed": 1,
        "logit_bias": {"1": 2},
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "prediction": {"type": "content", "content": "x"},
        "audio": {"voice": "alloy", "format": "mp3"},
        "surprise": {"deep": [1]},
    }
    done = translated(request(**lost, modalities=["text", "audio"]))
    assert [(entry.action, entry.path) for entry in done.report] == [
        *(("dropped", name) for name in lost),
        ("dropped", "modalities[1]"),
    ]
    assert set(done.body) == {"model", "input", "store"}


def test_the_name_of_an_unknown_field_is_shown_so_that_a_log_can_take_it() -> None:
    strange = {"a\nb": 1, "\ud800": 1, "x" * 100: 1, "\x1b[2J": 1}
    assert [path for _, path in reported(request(**strange))] == [
        "a\\nb",
        "\\ud800",
        "x" * 40 + "...",
        "\\x1b[2J",
    ]


def test_null_is_as_good_as_nothing() -> None:
    nothing = dict.fromkeys(["seed", "stop", "n", "tools", "surprise", "audio", "store"])
    assert translated(request(**nothing)) == translated(request())


def test_fields_of_the_responses_api_pass() -> None:
    own = {
        "previous_response_id": "resp_1",
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "max_tool_calls": 3,
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    sent = body(request(result("call_1"), **own))
    assert {name: sent[name] for name in own} == own
    assert sent["input"][0]["call_id"] == "call_1"
    both = request(reasoning={"effort": "low"}, reasoning_effort="high")
    assert body(both)["reasoning"] == {"effort": "high"}
    assert reported(both) == [("dropped", "reasoning.effort")]
    assert body(request(conversation={"id": "conv_1"}))["conversation"] == {"id": "conv_1"}


def test_what_belongs_to_whom_passes() -> None:
    same = {
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
        "moderation": {"model": "m", "policy": {"input": {"mode": "block"}}},
        "top_p": 0.5,
    }
    sent = body(request(**same))
    assert {name: sent[name] for name in same} == same
    assert reported(request(**same)) == []


class Named(str, enum.Enum):  # noqa: UP042  (a StrEnum says its value, this one its own name)
    """Strings as applications name them."""

    MODEL = "gpt-5"
    ROLE = "assistant"
    KIND = "function"
    CALL = "call_1"
    TOOL = "weather"
    RESULT = "tool"


class Count(enum.IntEnum):
    LIMIT = 100


class Temperature(float):
    """A number that says what it is."""


class Text(str):
    """A string that says what it is."""


def test_strings_and_numbers_of_types_of_their_own_are_what_they_stand_for() -> None:
    function = {"name": Named.TOOL, "arguments": Text("{}")}
    given = {
        "model": Named.MODEL,
        "messages": [
            {**USER, "content": Text("Hi.")},
            {
                "role": Named.ROLE,
                "tool_calls": [{"id": Named.CALL, "type": Named.KIND, "function": function}],
            },
            {"role": Named.RESULT, "tool_call_id": Named.CALL, "content": Text("sunny")},
        ],
        "tools": [{"type": Named.KIND, "function": {"name": Named.TOOL}}],
        "metadata": {Text("a"): Text("b")},
        "max_tokens": Count.LIMIT,
        "temperature": Temperature(0.5),
    }
    plain = {
        "model": "gpt-5",
        "messages": [{**USER, "content": "Hi."}, called(call("call_1")), result("call_1")],
        "tools": [{"type": "function", "function": {"name": "weather"}}],
        "metadata": {"a": "b"},
        "max_tokens": 100,
        "temperature": 0.5,
    }
    assert msgspec.json.encode(body(given)) == msgspec.json.encode(body(plain))
    custom = {"type": "custom", "custom": {"name": Named.TOOL}}
    asked = request(USER, called(call("call_1", "x")), result("call_1"), tools=[custom])
    assert [item.get("type") for item in body(asked)["input"][1:]] == [
        "custom_tool_call",
        "custom_tool_call_output",
    ]


def test_stream_options_that_upstream_knows_pass() -> None:
    done = translated(request(stream=True, stream_options={"include_obfuscation": False}))
    assert done.body["stream_options"] == {"include_obfuscation": False}
    assert not done.include_usage


def test_hosted_tools_pass_as_they_are() -> None:
    hosted = {"type": "mcp", "server_label": "x", "server_url": "https://example.com"}
    assert body(request(tools=[hosted]))["tools"] == [hosted]
    search = request(tools=[{"type": "web_search"}], web_search_options={})
    assert body(search)["tools"] == [{"type": "web_search"}]
    assert reported(search) == [("dropped", "web_search_options")]


def test_a_custom_tool_may_take_plain_text() -> None:
    tools = [
        {"type": "custom", "custom": {"name": "a"}},
        {"type": "custom", "custom": {"name": "b", "format": {"type": "text"}}},
    ]
    assert body(request(tools=tools))["tools"] == [
        {"type": "custom", "name": "a"},
        {"type": "custom", "name": "b", "format": {"type": "text"}},
    ]


ANY_CUSTOM = {"type": "custom", "custom": {"name": "sum"}}


def test_what_is_left_of_the_tools_is_all_that_can_be_asked_for() -> None:
    one_of_them = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [ANY_CUSTOM]},
    }
    for choice in ("required", one_of_them):
        asked = request(tools=[ANY_CUSTOM], tool_choice=choice)
        assert "tool_choice" not in body(asked, XAI)
        assert ("dropped", "tool_choice") in reported(asked, XAI)
        assert "tool_choice" in body(asked)
        both = request(tools=[ANY_CUSTOM, WEATHER], tool_choice=choice)
        assert ("tool_choice" in body(both, XAI)) == (choice == "required")
    assert body(request(tools=[ANY_CUSTOM], tool_choice="none"), XAI)["tool_choice"] == "none"


# Names.


def calls_of(completion: ChatCompletion) -> list[ToolCall]:
    return completion.choices[0].message.tool_calls or []


LONG = "mcp__a_server_with_a_long_name__a_tool_whose_name_says_all_that_it_does"


def test_a_long_name_is_shortened_and_restored() -> None:
    tool = {"type": "function", "function": {"name": LONG}}
    done = translated(
        request(
            USER,
            called(call("call_1", name=LONG)),
            result("call_1"),
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": LONG}},
        )
    )
    short = done.body["tools"][0]["name"]
    assert len(short) == 64
    assert done.body["input"][1]["name"] == done.body["tool_choice"]["name"] == short
    assert {(entry.action, entry.path) for entry in done.report} == {
        ("emulated", "tools[0].function.name"),
        ("emulated", "tool_choice.function.name"),
        ("emulated", "messages[1].tool_calls[0].function.name"),
    }
    stream = done.chat_stream()
    completion = fold(stream.receive_data(write_stream(Answer(FunctionCall(short, "{}")))))
    assert [each.function.name for each in calls_of(completion)] == [LONG]


def test_a_long_name_of_a_custom_tool_is_restored_too() -> None:
    done = translated(request(tools=[{"type": "custom", "custom": {"name": LONG}}]))
    (short,) = done.client_tools
    answer = Answer(CustomToolCall(short, "1+1"))
    completion = fold(done.chat_stream().receive_data(write_stream(answer)))
    assert [each.function for each in calls_of(completion)] == [Function(LONG, "1+1")]


def test_client_tools_say_what_they_are() -> None:
    done = translated(request(tools=[{"type": "custom", "custom": {"name": LONG}}]))
    (short,) = done.client_tools
    assert repr(done.client_tools) == f"ClientTools(['{short}'], {{'{short}': '{LONG}'}})"


@given(st.lists(st.text("ab", min_size=60, max_size=80), unique=True, max_size=8))
def test_names_stay_apart(names: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    done = translated(request(tools=tools))
    sent = [tool["name"] for tool in done.body.get("tools", [])]
    assert len(set(sent)) == len(names)
    assert all(len(name) <= 64 for name in sent)
    assert [done.client_tools.client_name(name) for name in sent] == names


def test_a_name_that_looks_like_a_shortened_one_is_refused() -> None:
    long = {"type": "function", "function": {"name": LONG}}
    short = body(request(tools=[long]))["tools"][0]["name"]
    both = [long, {"type": "function", "function": {"name": short}}]
    with pytest.raises(InvalidRequest, match=r"^tools\[1\]\.function\.name: expected a name"):
        translated(request(tools=both))


def test_a_custom_call_of_a_name_that_is_a_functions_is_the_providers() -> None:
    done = translated(request(tools=[{"type": "function", "function": {"name": "view_image"}}]))
    assert "view_image" not in done.client_tools
    events = done.chat_stream().receive_data(write_stream(Answer(CustomToolCall("view_image"))))
    assert fold(events).choices[0].message.tool_calls is None


# The report.


def test_strict_names_every_loss_at_once() -> None:
    lossy = request({**USER, "name": "ann"}, seed=1, stop="E", max_tokens=2)
    with pytest.raises(UnsupportedField) as raised:
        to_responses_request(lossy, strict=True)
    error = raised.value
    for path in ("seed", "messages[0].name", "max_tokens"):
        assert path in error.message
    assert "stop" not in error.message
    assert error.param == "seed"
    assert error.report == translated(lossy).report
    assert error.to_dict()["error"]["code"] == "unsupported_parameter"


def test_strict_lets_pass_what_loses_nothing() -> None:
    emulated = request(stop="E", functions=[WEATHER["function"]])
    assert to_responses_request(emulated, strict=True) == translated(emulated)


def test_entries_say_where_what_and_why() -> None:
    (entry,) = translated(request(seed=1)).report
    assert entry == ReportEntry("seed", "dropped", "the Responses API has no such sampling setting")


# What is wrong in itself.

WRONG: list[tuple[str, Any, str, str]] = [
    ("no object", [], "", "the request: expected an object, found a list"),
    ("no model", {"messages": [USER]}, "model", "expected the name of a model, found nothing"),
    ("no messages", {"model": "m"}, "messages", "expected a list, found nothing"),
    ("null messages", {"model": "m", "messages": None}, "messages", "found nothing"),
    ("empty messages", {"model": "m", "messages": []}, "messages", "at least one message"),
    ("messages no list", {"model": "m", "messages": "hi"}, "messages", "found the string 'hi'"),
    ("message no object", request("hi"), "messages[0]", "expected an object"),  # type: ignore[arg-type]
    ("no role", request({"content": "x"}), "messages[0].role", "expected the role"),
    (
        "unknown role",
        request({"role": "robot", "content": "x"}),
        "messages[0].role",
        "expected one of 'developer', 'system', 'user', 'assistant', 'tool', 'function',"
        " found the string 'robot'",
    ),
    ("no content", request({"role": "user"}), "messages[0].content", "found nothing"),
    ("content", request({"role": "user", "content": 5}), "messages[0].content", "the number 5"),
    ("no parts", request({"role": "user", "content": []}), "messages[0].content", "one part"),
    (
        "unknown part",
        request({"role": "user", "content": [{"type": "video"}]}),
        "messages[0].content[0].type",
        "expected one of 'text', 'image_url', 'file', 'input_audio', found the string 'video'",
    ),
    (
        "unknown part of an answer",
        request({"role": "assistant", "content": [{"type": "image_url"}]}),
        "messages[0].content[0].type",
        "expected one of 'text', 'refusal'",
    ),
    (
        "content of an answer",
        request({"role": "assistant", "content": 1}),
        "messages[0].content",
        "the number 1",
    ),
    (
        "image without url",
        request({"role": "user", "content": [{"type": "image_url", "image_url": "https://x"}]}),
        "messages[0].content[0].image_url",
        "expected an object, found the string 'https://x'",
    ),
    (
        "result without a call",
        request(USER, result("call_9")),
        "messages[1].tool_call_id",
        "found the string 'call_9'",
    ),
    (
        "result before its call",
        request(result("call_1"), called(call("call_1"))),
        "messages[0].tool_call_id",
        "expected the id of a call in a message before it",
    ),
    (
        "the same id twice",
        request(called(call("call_1"), call("call_1"))),
        "messages[0].tool_calls[1].id",
        "expected an id that no other call has",
    ),
    (
        "function without a call",
        request({"role": "function", "name": "f", "content": "x"}),
        "messages[0].name",
        "expected the name of a function called",
    ),
    ("call without id", request(called({"type": "function"})), "messages[0].tool_calls[0].id", ""),
    (
        "arguments no text",
        request(called({**call("c"), "function": {"name": "f", "arguments": {}}})),
        "messages[0].tool_calls[0].function.arguments",
        "expected a string, found an object",
    ),
    ("n", request(n=2), "n", "expected 1"),
    ("no n", request(n="1"), "n", "expected an integer, found the string '1'"),
    ("tools no list", request(tools={}), "tools", "expected a list, found an object"),
    ("tool without type", request(tools=[{}]), "tools[0].type", "expected the type"),
    (
        "schema no object",
        request(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
        "tools[0].function.parameters",
        "expected an object, found a list",
    ),
    (
        "empty name",
        request(tools=[{"type": "function", "function": {"name": ""}}]),
        "tools[0].function.name",
        "not empty",
    ),
    (
        "name no string",
        request(tools=[{"type": "function", "function": {"name": ["f"]}}]),
        "tools[0].function.name",
        "found a list",
    ),
    ("format", request(response_format={"type": "xml"}), "response_format.type", "'xml'"),
    ("tool choice", request(tool_choice="any"), "tool_choice", "found the string 'any'"),
    ("tool choice type", request(tool_choice=1), "tool_choice", "a string or an object"),
    ("tokens", request(max_tokens=-1), "max_tokens", "an integer of at least 1, found -1"),
    (
        "place of another kind",
        request(web_search_options={"user_location": {"type": "exact", "approximate": {}}}),
        "web_search_options.user_location.type",
        "expected one of 'approximate', found the string 'exact'",
    ),
    ("boolean", request(stream="yes"), "stream", "expected a boolean, found the string 'yes'"),
    ("number", request(temperature=True), "temperature", "found the boolean true"),
    ("not finite", request(top_p=float("inf")), "top_p", "expected a finite number"),
    ("too large", request(max_tokens=10**400), "max_tokens", "at most 64 bits, found a very"),
    ("too large, with a point", request(max_tokens=1e300), "max_tokens", "at most 64 bits"),
    ("large", request(temperature=2**64), "temperature", "at most 64 bits"),
    ("stop", request(stop=7), "stop", "expected a string or a list of strings"),
    ("stops", request(stop=list("abcde")), "stop", "at most 4 strings, found 5"),
    ("stop inside", request(stop=["a", None]), "stop[1]", "expected a string, found null"),
    ("surrogate", request({"role": "user", "content": "a\ud800"}), "messages[0].content", "half"),
    ("metadata key", request(metadata={1: "x"}), "metadata", "names that are strings"),
    ("bytes", request(metadata={"a": b"x"}), "metadata", "found a Python bytes"),
    ("deep", request(metadata={"a": DEEP}), "metadata", f"at most {MAX_DEPTH} levels"),
    ("deep messages", {"model": "m", "messages": DEEP}, "messages[0]", "found a list"),
    ("deep content", request({"role": "user", "content": DEEP}), "messages[0].content[0]", ""),
]


@pytest.mark.parametrize(
    ("chat_request", "param", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_what_is_wrong_is_named(chat_request: Any, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        to_responses_request(chat_request)
    error = raised.value
    assert (error.param or "") == param
    assert error.message.startswith(param or "the request")
    assert message in error.message
    assert len(error.message) < 300
    assert error.to_dict()["error"]["type"] == "invalid_request_error"


def test_a_schema_as_deep_as_allowed_passes() -> None:
    deep: Any = {}
    for _ in range(MAX_DEPTH - 1):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    assert body(request(tools=[tool]))["tools"][0]["parameters"] == deep
    tool["function"]["parameters"] = {"a": deep}  # type: ignore[index]
    with pytest.raises(InvalidRequest, match=r"tools\[0\]\.function\.parameters"):
        body(request(tools=[tool]))


def test_a_long_string_is_not_repeated_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as raised:
        body(request(tool_choice="x" * 1000))
    assert len(raised.value.message) < 200


def test_a_message_of_which_nothing_is_left_is_refused() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    with pytest.raises(UnsupportedField) as raised:
        body(request({"role": "user", "content": [sound]}))
    assert raised.value.param == "messages[0].content"
    mixed = request({"role": "user", "content": [sound, {"type": "text", "text": "x"}]})
    assert body(mixed)["input"][0]["content"] == [{"type": "input_text", "text": "x"}]
    assert reported(mixed) == [("dropped", "messages[0].content[0].input_audio")]


def test_the_body_shares_nothing_with_the_request() -> None:
    mine = copy.deepcopy(PARALLEL)
    sent = body(mine)
    sent["tools"][0]["parameters"]["properties"].clear()
    sent["input"].clear()
    assert mine == PARALLEL


def test_options_of_the_stream_can_be_set_and_overridden() -> None:
    done = translated(REASONING, XAI)
    stream = done.chat_stream(include_usage=True, reasoning=None)
    events = stream.receive_data(write_stream(Answer("Hi.")))
    assert fold(events).usage is not None
