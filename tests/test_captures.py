"""What real clients send in a tool loop is caught on the wire and translated.

Each client runs in an environment of its own and talks HTTP to a server whose answers come through
`ChatStream`, so that its second request holds what it made of them.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from chat_server import serving
from deltawire import DIALECTS, Dialect, to_responses_request
from deltawire.testing import Answer, FunctionCall, Reasoning
from environments import client_program
from schemas import check, check_body
from wire import Json

ANSWERS = (
    Answer(
        (
            Reasoning("Two things to look up.", encrypted_content="gAAAA"),
            "Let me look.",
            FunctionCall("weather", '{"city":"Rome"}', "call_weather"),
            FunctionCall("population", '{"city":"Rome"}', "call_population"),
        )
    ),
    Answer("Sun over 2.8 million."),
)
PROGRAMS = {
    "openai-python": "openai_python.py",
    "langchain-openai": "langchain_loop.py",
    "pydantic-ai": "pydantic_ai_loop.py",
    "ai-sdk": "ai_sdk.mjs",
}


@pytest.fixture(scope="module", params=PROGRAMS)
def captured(request: pytest.FixtureRequest) -> list[Json]:
    """The two requests of a client's tool loop."""
    line = client_program(PROGRAMS[request.param])
    with serving(*ANSWERS) as (url, requests):
        done = subprocess.run(
            line,
            env={**os.environ, "BASE_URL": url},
            capture_output=True,
            text=True,
            check=False,
            # Only to end a client that hangs.
            timeout=300,
        )
        assert (done.returncode, done.stdout) == (0, "Sun over 2.8 million.\n"), done.stderr
        return requests


def test_the_client_sends_what_the_schema_allows(captured: list[Json]) -> None:
    assert len(captured) == 2
    for chat_request in captured:
        check("chat_completion_request", chat_request)


def test_nothing_is_lost_but_reasoning_that_upstream_cannot_take(captured: list[Json]) -> None:
    """openai-python sends back all that it got; others keep the text of the reasoning, or none."""
    lost = [
        entry.path
        for chat_request in captured
        for entry in to_responses_request(chat_request).report
    ]
    assert lost in ([], ["messages[2].reasoning_content"])
    items = to_responses_request(captured[1]).body["input"]
    encrypted = [item["encrypted_content"] for item in items if item.get("type") == "reasoning"]
    assert encrypted == (["gAAAA"] if "reasoning_details" in captured[1]["messages"][2] else [])


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_request_becomes_a_valid_one(captured: list[Json], dialect: Dialect) -> None:
    for chat_request in captured:
        check_body(to_responses_request(chat_request, dialect=dialect).body)


def test_the_loop_comes_back_as_its_items(captured: list[Json]) -> None:
    first, second = (to_responses_request(each).body for each in captured)
    assert [tool["name"] for tool in first["tools"]] == ["weather", "population"]
    assert {tool["type"] for tool in first["tools"]} == {"function"}
    assert all("city" in tool["parameters"]["properties"] for tool in first["tools"])
    assert second["input"][: len(first["input"])] == first["input"]
    items = second["input"][len(first["input"]) :]
    said = [item for item in items if item.get("role") == "assistant"]
    assert [item["content"] for item in said] in (["Let me look."], [])
    calls = [item for item in items if item.get("type") == "function_call"]
    # langchain-openai writes the arguments anew, with other blanks.
    assert [(item["call_id"], item["name"], json.loads(item["arguments"])) for item in calls] == [
        ("call_weather", "weather", {"city": "Rome"}),
        ("call_population", "population", {"city": "Rome"}),
    ]
    results = {item["call_id"]: item["output"] for item in items if "output" in item}
    assert set(results) == {"call_weather", "call_population"}
    assert "2800000" in results["call_population"]
    assert "sun" in results["call_weather"]
