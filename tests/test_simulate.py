"""The simulated upstream, over real sockets: what each model says, each fault, and what it saw."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from deltawire import ChatStream, UpstreamError, completion_from_response, fold
from deltawire.server.plausible import plausible
from deltawire.server.scenarios import SCENARIOS, scenario_of
from deltawire.server.simulate import simulated
from deltawire.testing import PRESETS, expected
from schemas import check
from wire import Json, parsed

COMMAND = [sys.executable, "-m", "deltawire.server.cli"]
# Only turns a hang into a failure.
LIMIT = 60.0
TOOLS: list[Json] = [
    {
        "type": "function",
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    }
]
SCHEMA: Json = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "array", "items": {"type": "number"}}},
    "required": ["ok", "n"],
}
CUT = ("truncated", "reset", "stall")
REFUSED = ("error-before", "rate-limited", "rate-limited-once")
WHOLE = [name for name in SCENARIOS if name not in (*CUT, *REFUSED)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with simulated() as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(upstream: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=upstream, timeout=LIMIT, trust_env=False) as client:
        yield client


def body(model: str, **more: Any) -> Json:
    text = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}
    return {"model": model, "input": "Hi there", "tools": TOOLS, "text": text, **more}


def chat(model: str, **more: Any) -> Json:
    tools = [{"type": "function", "function": {k: v for k, v in TOOLS[0].items() if k != "type"}}]
    messages = [{"role": "user", "content": "Hi there"}]
    return {"model": model, "messages": messages, "tools": tools, **more}


def seen(client: httpx.Client, model: str) -> Json:
    """The last request for that model, once no request for it is open any more."""
    url = str(client.base_url).replace("/v1/", "/simulate/requests")
    answer = client.get(url, params={"model": model, "settled": "1"}).json()
    last: Json = answer["requests"][-1]
    return last


@pytest.mark.parametrize("provider", PRESETS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_stream_shows_what_its_answer_says(
    client: httpx.Client, name: str, provider: str
) -> None:
    asked = body(f"{name};silence=0;deltas=5;provider={provider}", stream=True)
    answer = client.post("responses", json=asked)
    assert answer.status_code == 200
    stream = ChatStream(include_usage=True)
    events = [*stream.receive_data(answer.content), *stream.receive_eof()]
    told = expected(scenario_of(asked).answer)
    if told.failure is not None:
        assert stream.failure is not None
        assert stream.failure.code == told.failure.code
        return
    completion = fold(events).to_dict()
    message = completion["choices"][0]["message"]
    assert (message["content"] or "") == told.content
    assert (message.get("refusal") or "") == told.refusal
    assert message.get("reasoning_content", "") == told.reasoning
    assert completion["choices"][0]["finish_reason"] == told.finish_reason
    assert completion["usage"] == told.usage
    calls = [each["function"]["name"] for each in message.get("tool_calls", ())]
    assert calls == [name for _, name, _ in told.tool_calls]


@pytest.mark.parametrize("name", WHOLE)
def test_whole_and_streamed_answers_of_both_apis_agree(client: httpx.Client, name: str) -> None:
    model = f"{name};silence=0"
    response = client.post("responses", json=body(model)).json()
    check("response", response)
    text = {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}
    text["response_format"]["json_schema"]["schema"] = SCHEMA  # type: ignore[index]
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    whole = client.post("chat/completions", json=chat(model, **text))
    streamed = client.post("chat/completions", json=chat(model, **text, **usage))
    assert streamed.status_code == 200
    if response["status"] == "failed":
        assert whole.status_code >= 400
        assert whole.json()["error"]["code"] == response["error"]["code"]
        assert b'"error"' in streamed.content
        assert b"[DONE]" not in streamed.content
        return
    told = completion_from_response(response).to_dict()["choices"][0]
    assert whole.json()["choices"][0] == told
    *chunks, end = parsed(streamed.content)
    assert end == "[DONE]"
    for chunk in chunks:
        check("chat_completion_chunk", chunk)
    said = [choice["delta"].get("content") or "" for each in chunks for choice in each["choices"]]
    assert "".join(said) == (told["message"]["content"] or "")
    assert chunks[-1]["usage"]["completion_tokens"] == whole.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("name", ["tools", "parallel"])
def test_tools_are_called_and_their_results_told(client: httpx.Client, name: str) -> None:
    first = client.post("responses", json=body(name)).json()["output"]
    assert len(first) == (2 if name == "parallel" else 1)
    for call in first:
        jsonschema.validate(json.loads(call["arguments"]), TOOLS[0]["parameters"])
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": f"{at} degrees"}
        for at, call in enumerate(first)
    ]
    assert len({call["call_id"] for call in first}) == len(first)
    items = [{"role": "user", "content": "Hi"}, *first, *results]
    second = client.post("responses", json=body(name, input=items)).json()["output"]
    for result in results:
        assert result["output"] in second[0]["content"][0]["text"]


def test_structured_answers_are_valid_for_their_schema(client: httpx.Client) -> None:
    answer = client.post("responses", json=body("structured")).json()
    jsonschema.validate(json.loads(answer["output"][0]["content"][0]["text"]), SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 20, "maxLength": 25},
        {"enum": ["a", "b"]},
        {"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer"},
        {"type": "integer", "maximum": -3},
        {"type": "number", "multipleOf": 0.5, "exclusiveMaximum": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3},
        {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        {"type": ["string", "null"], "format": "date"},
        {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"const": 3}}}]},
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {
                        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                    },
                    "required": ["next", "children"],
                }
            },
        },
    ],
)
def test_plausible_values_are_valid(schema: Json) -> None:
    for number in range(3):
        jsonschema.validate(plausible(schema, number), schema)


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
def test_errors_have_their_status_and_shape(client: httpx.Client, path: str) -> None:
    make = body if path == "responses" else chat
    for model, status in (("error-before", 500), ("rate-limited", 429), ("status-418", 418)):
        answer = client.post(path, json=make(model, stream=True))
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert ("retry-after" in answer.headers) == (status == 429)
    model = f"rate-limited-once;key={path}"
    assert [client.post(path, json=make(model)).status_code for _ in range(3)] == [429, 200, 200]
    missing = client.post(path, json=make("gpt-5"))
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert "plain" in missing.json()["error"]["message"]
    wrong: list[Any] = [[], {}, {"model": 1}, make("plain", stream=1), make("plain;deltas=x")]
    wrong += [make("plain;color=red"), {"model": "plain"}]
    for given in wrong:
        answer = client.post(path, json=given)
        assert (answer.status_code, "message" in answer.json()["error"]) == (400, True), given
    assert client.post(path, content=b"{").status_code == 400


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
def test_what_is_cut_has_no_end(client: httpx.Client, path: str) -> None:
    make = body if path == "responses" else chat
    cut = client.post(path, json=make("truncated;deltas=4", stream=True)).content
    assert cut.count(b"....") == 4
    assert b"[DONE]" not in cut
    assert not cut.endswith(b"\n\n")
    with pytest.raises(httpx.RemoteProtocolError), httpx.Client(trust_env=False) as other:
        other.post(f"{client.base_url}{path}", json=make("reset", stream=True), timeout=LIMIT)
    stream = ChatStream()
    if path == "responses":
        with pytest.raises(UpstreamError):
            fold([*stream.receive_data(cut), *stream.receive_eof()])


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
def test_who_leaves_is_seen_to_have_left(client: httpx.Client, path: str) -> None:
    model = f"stall;key={path}"
    make = body if path == "responses" else chat
    key = {"authorization": "Bearer sk-secret"}
    asked = make(model, stream=True)
    with client.stream("POST", path, json=asked, headers=key) as answer:
        assert next(answer.iter_lines())
    told = seen(client, model)
    assert (told["left"], told["open"], told["stream"]) == (True, False, True)
    assert re.fullmatch("[0-9a-f]{8}", told["key_hint"])
    client.post(path, json=make("plain;key=stays", stream=True))
    assert seen(client, "plain;key=stays")["left"] is False


def test_a_hundred_at_once_get_what_one_gets(client: httpx.Client, upstream: str) -> None:
    asked = body("long;deltas=300;size=20;pace=0.001", stream=True)

    async def main() -> list[bytes]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=LIMIT, limits=limits) as many:
            answers = await asyncio.gather(
                *(many.post(f"{upstream}/responses", json=asked) for _ in range(100))
            )
        return [answer.content for answer in answers]

    bodies = asyncio.run(main())
    told = expected(scenario_of(asked).answer).content
    ids = set()
    for data in bodies:
        stream = ChatStream()
        completion = fold([*stream.receive_data(data), *stream.receive_eof()])
        assert completion.choices[0].message.content == told
        ids.add(completion.id)
    assert len(ids) == 100


def test_a_key_is_demanded_where_one_is_set() -> None:
    with simulated(api_key="sk-right") as url:
        for key, status in (("sk-wrong", 401), ("sk-right", 200)):
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.get(f"{url}/models", headers=headers, trust_env=False)
            assert answer.status_code == status
    assert "plain" in [each["id"] for each in answer.json()["data"]]


def test_the_command_says_where_it_listens_and_ends_at_a_signal() -> None:
    with subprocess.Popen(
        [*COMMAND, "simulate", "--port", "0", "--pace", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"deltawire simulates (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert match is not None
        answer = httpx.post(f"{match[1]}/responses", json=body("echo"), trust_env=False)
        assert answer.json()["output"][0]["content"][0]["text"] == "Hi there"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    listed = subprocess.run([*COMMAND, "simulate", "--list"], capture_output=True, text=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()[: len(SCENARIOS)]] == [
        *SCENARIOS
    ]


def test_the_demo_shows_an_answer_on_each_transport() -> None:
    result = subprocess.run([*COMMAND, "demo", "--pace", "0"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    for transport in ("asyncio", "trio", "sync"):
        shown = result.stdout.partition(f"\n\n{transport}\n")[2].partition("\n\n")[0]
        assert "nothing was paid." in shown
        assert re.search(r"first token after \d+ ms, all after \d+ ms: 39 tokens", shown)
    assert 'weather({"city": "Rome"})' in result.stdout
    assert "upstream was hung up on" in result.stdout
    assert "HTTP 429, retry-after: 1" in result.stdout
