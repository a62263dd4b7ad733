"""Dialects are found by name and by URL, and what they say is what is done."""

from __future__ import annotations

from typing import Any

import pytest

from chat_requests import USER, call, called, request, result
from deltawire import (
    AZURE,
    COPILOT,
    DIALECTS,
    GENERIC,
    OPENAI,
    OPENROUTER,
    VLLM,
    XAI,
    Dialect,
    dialect_for_url,
    dialect_named,
    to_responses_request,
)
from deltawire.dialects import Refusal
from wire import Json


def test_every_dialect_is_found_by_its_name() -> None:
    for name, dialect in DIALECTS.items():
        assert dialect_named(name) is dialect
    assert set(DIALECTS) >= {"openai", "azure", "xai", "vllm", "lmstudio", "openrouter", "copilot"}


def test_an_unknown_name_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'groq'.*generic.*openai.*xai"):
        dialect_named("groq")


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        ("https://api.openai.com/v1", OPENAI),
        ("https://API.OpenAI.com:443/v1/", OPENAI),
        ("https://mine.openai.azure.com/openai/v1/", AZURE),
        ("https://mine.cognitiveservices.azure.com/openai/v1/", AZURE),
        ("https://mine.openai.azure.com/openai/responses?api-version=preview", AZURE),
        ("https://us.api.x.ai/v1", XAI),
        ("https://key:secret@api.x.ai/v1", XAI),
        ("https://openrouter.ai/api/v1", OPENROUTER),
        ("api.individual.githubcopilot.com", COPILOT),
        ("https://api.x.ai./v1", XAI),
        ("http://127.0.0.1:1234/v1", GENERIC),
        ("http://[::1]:8000/v1", GENERIC),
        ("https://api.x.ai.example.org/v1", GENERIC),
        ("https://fakeapi.x.ai/v1", GENERIC),
        ("https://example.org/api.openai.com", GENERIC),
        ("https://example.org?api.openai.com", GENERIC),
        ("https://example.org#@api.openai.com", GENERIC),
        ("https://example.org\\@api.openai.com", GENERIC),
        ("", GENERIC),
    ],
)
def test_the_host_of_the_upstream_tells_its_dialect(url: str, dialect: Dialect) -> None:
    assert dialect_for_url(url).name == dialect.name


def test_facts_have_sources() -> None:
    for dialect in DIALECTS.values():
        assert dialect.sources, dialect.name
        assert all(refused.source and refused.reason for refused in dialect.refuses)


def test_xai_runs_its_own_tools_by_name_or_by_call_id() -> None:
    assert XAI.runs_tool("x_keyword_search", "call_1")
    assert XAI.runs_tool("anything", "xs_call_1")
    assert not XAI.runs_tool("sql", "call_1")


def translated(fields: Json, dialect: Dialect) -> tuple[Json, list[tuple[str, str]]]:
    done = to_responses_request(request(**fields), dialect=dialect)
    return done.body, [(entry.action, entry.path) for entry in done.report]


REFUSED: list[tuple[Dialect, Json, str]] = [
    (AZURE, {"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    (XAI, {"service_tier": "flex"}, "service_tier"),
    (XAI, {"metadata": {}}, "metadata"),
    (XAI, {"include": ["message.output_text.logprobs"]}, "include[0]"),
    (COPILOT, {"service_tier": "flex"}, "service_tier"),
    (COPILOT, {"web_search_options": {}}, "web_search_options"),
    (OPENROUTER, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (VLLM, {"safety_identifier": "s"}, "safety_identifier"),
    (VLLM, {"moderation": {"model": "m"}}, "moderation"),
    (VLLM, {"prompt_cache_key": "k"}, "prompt_cache_key"),
    (VLLM, {"prompt_cache_options": {}}, "prompt_cache_options"),
    (
        VLLM,
        {"stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    (VLLM, {"conversation": "conv_1"}, "conversation"),
    (VLLM, {"web_search_options": {}}, "web_search_options"),
]


@pytest.mark.parametrize(("dialect", "fields", "path"), REFUSED)
def test_what_an_upstream_refuses_is_not_sent_but_reported(
    dialect: Dialect, fields: Json, path: str
) -> None:
    sent, report = translated(fields, dialect)
    assert set(sent) == {"model", "input", "store"}
    assert report == [("dropped", path)]
    assert translated(fields, OPENAI)[1] == []


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (VLLM, {"seed": 1, "logit_bias": {"5": -100}, "top_k": 3}),
        (XAI, {"logprobs": True}),
        (OPENROUTER, {"provider": {"order": ["a"]}, "models": ["a", "b"]}),
    ],
)
def test_what_an_upstream_takes_beyond_the_responses_api_is_sent(
    dialect: Dialect, fields: dict[str, Any]
) -> None:
    sent, report = translated(fields, dialect)
    assert {name: sent[name] for name in fields} == fields
    assert report == []


def test_a_web_search_has_the_settings_that_upstream_knows() -> None:
    options = {
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"country": "FR"}},
    }
    sent, report = translated({"web_search_options": options}, XAI)
    location = {"type": "approximate", "country": "FR"}
    assert sent["tools"] == [{"type": "web_search", "user_location": location}]
    assert report == [("dropped", "web_search_options.search_context_size")]


def test_a_field_that_is_refused_is_refused_with_all_that_is_in_it() -> None:
    dialect = Dialect(name="x", refuses=VLLM.refuses)
    assert dialect.refusal("stream_options.include_obfuscation")
    assert dialect.refusal("stream_optionsx") is None
    assert XAI.refusal("include") is None


def test_what_was_not_asked_for_is_left_out_in_silence() -> None:
    no_store = Dialect(name="x", refuses=(Refusal("store", "no", "nobody"),))
    assert translated({}, no_store) == (
        {"model": "gpt-5", "input": [{"role": "user", "content": USER["content"]}]},
        [],
    )
    assert translated({"store": True}, no_store)[1] == [("dropped", "store")]


def test_a_summary_is_asked_for_where_the_model_reasons() -> None:
    summing = Dialect(name="x", reasoning_summary="auto")
    assert translated({"reasoning_effort": "low"}, summing)[0]["reasoning"] == {
        "effort": "low",
        "summary": "auto",
    }
    assert translated({"reasoning_effort": "none"}, summing)[0]["reasoning"] == {"effort": "none"}
    assert "reasoning" not in translated({}, summing)[0]
    own = {"reasoning_effort": "low", "reasoning": {"summary": "detailed"}}
    assert translated(own, summing)[0]["reasoning"]["summary"] == "detailed"


def test_messages_say_what_they_are_where_some_upstream_wants_to_know() -> None:
    messages = (USER, {"role": "assistant", "content": "x"}, called(call("c")), result("c"))
    items = to_responses_request(request(*messages), dialect=GENERIC).body["input"]
    assert [item["type"] for item in items] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
    ]
    plain = to_responses_request(request(*messages)).body["input"]
    assert [item.get("type") for item in plain[:2]] == [None, None]


def test_include_is_refused_as_a_whole_or_in_part() -> None:
    no_include = Dialect(name="x", refuses=(Refusal("include", "no", "nobody"),))
    sent, report = translated({"include": ["a"], "logprobs": True}, no_include)
    assert "include" not in sent
    assert report == [("dropped", "include[0]"), ("dropped", "logprobs")]
    twice = translated({"include": ["a", "a"], "logprobs": False}, OPENAI)[0]
    assert twice["include"] == ["a"]
