"""Chat requests for tests: one of each kind, and by hypothesis any that the schema allows."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from schemas import values
from wire import Json

USER = {"role": "user", "content": "What is the weather?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
GRAMMAR = {
    "type": "custom",
    "custom": {
        "name": "sum",
        "description": "Adds numbers.",
        "format": {
            "type": "grammar",
            "grammar": {"syntax": "lark", "definition": 'start: NUMBER ("+" NUMBER)*'},
        },
    },
}


DEEP: Any = "bottom"
"""Deeper than any stack."""
for _ in range(300_000):
    DEEP = [DEEP]


def request(*messages: Json, **more: Any) -> Json:
    """A request with these messages, or with a plain one."""
    return {"model": "gpt-5", "messages": list(messages or (USER,)), **more}


def called(*calls: Json, **more: Any) -> Json:
    """An assistant's message that calls tools."""
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def call(call_id: str, arguments: str = "{}", name: str = "weather") -> Json:
    """A call of a function."""
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def result(call_id: str, content: Any = "sunny") -> Json:
    """What a tool answered."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


PLAIN = request(
    {"role": "system", "content": "Be brief."},
    USER,
    temperature=0.5,
    max_tokens=100,
    stream=True,
    stream_options={"include_usage": True},
)
VISION = request(
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.com/1.png"}},
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64,iVBOR", "detail": "low"},
            },
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:;base64,AAAA"}},
        ],
    }
)
PARALLEL = request(
    USER,
    called(call("call_1", '{"city":"Paris"}'), call("call_2", '{"city":"Rome"}')),
    result("call_2", "rain"),
    result("call_1", [{"type": "text", "text": "sun"}]),
    tools=[WEATHER],
    tool_choice={"type": "function", "function": {"name": "weather"}},
    parallel_tool_calls=True,
)
CUSTOM = request(
    USER,
    called({"id": "call_1", "type": "custom", "custom": {"name": "sum", "input": "1+1"}}),
    result("call_1", "2"),
    called(call("call_2", "2+2", "sum")),
    result("call_2", "4"),
    tools=[GRAMMAR, WEATHER],
    tool_choice={
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [
                {"type": "custom", "custom": {"name": "sum"}},
                {"type": "function", "function": {"name": "weather"}},
            ],
        },
    },
)
STRUCTURED = request(
    response_format={
        "type": "json_schema",
        "json_schema": {
            "name": "city",
            "description": "A city.",
            "schema": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": True,
        },
    },
    verbosity="low",
    logprobs=True,
    top_logprobs=2,
)
REASONING = request(
    USER,
    called(
        call("call_1"),
        reasoning_content="Look it up.",
        reasoning_details=[
            {"type": "reasoning.summary", "summary": "Look it up.", "id": "rs_1", "index": 0},
            {"type": "reasoning.encrypted", "data": "gAAAA", "id": "rs_1", "index": 1},
        ],
    ),
    result("call_1"),
    tools=[WEATHER],
    reasoning_effort="high",
    include=["reasoning.encrypted_content"],
)
SEARCH = request(
    web_search_options={
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"country": "FR"}},
    }
)
LEGACY = request(
    USER,
    {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "weather", "arguments": '{"city":"Rome"}'},
    },
    {"role": "function", "name": "weather", "content": "rain"},
    functions=[WEATHER["function"]],
    function_call={"name": "weather"},
)
EXAMPLES = {
    "plain": PLAIN,
    "vision": VISION,
    "parallel": PARALLEL,
    "custom": CUSTOM,
    "structured": STRUCTURED,
    "reasoning": REASONING,
    "search": SEARCH,
    "legacy": LEGACY,
}


@st.composite
def chat_requests(draw: st.DrawFn) -> Json:
    """Requests that are valid by the schema, and whose results belong to their calls."""
    drawn: Json = copy.deepcopy(draw(values("chat_completion_request")))
    drawn["n"] = 1
    drawn["model"] = drawn["model"] or "m"
    for key in ("max_tokens", "max_completion_tokens"):
        if drawn.get(key) is not None:
            drawn[key] = abs(drawn[key]) + 1
    ids: list[str] = []
    names: list[str] = []
    messages = []
    for message in drawn["messages"]:
        for called_tool in message.get("tool_calls") or ():
            called_tool["id"] = f"call_{len(ids)}"
            ids.append(called_tool["id"])
        if message["role"] == "assistant" and message.get("function_call"):
            message["function_call"]["name"] = f"function_{len(names)}"
            names.append(message["function_call"]["name"])
        if message["role"] == "tool":
            if not ids:
                continue
            message["tool_call_id"] = draw(st.sampled_from(ids))
        if message["role"] == "function":
            if not names:
                continue
            message["name"] = draw(st.sampled_from(names))
        messages.append(message)
    drawn["messages"] = messages or [USER]
    result: Json = named(drawn)
    return result


def named(value: Any) -> Any:
    """The same with a name wherever a tool has none, or an empty one."""
    if isinstance(value, list):
        return [named(each) for each in value]
    if isinstance(value, dict):
        return {
            key: (each or "tool") if key == "name" and isinstance(each, str) else named(each)
            for key, each in value.items()
        }
    return value
