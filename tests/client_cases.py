"""Which real clients are tried against the server, in which cases, and what each must show.

A case is a request by all of a client's ways to ask. What they show is compared as a whole: a field
that is not expected must not be there. `EXPECTED` says it for the client that shows everything;
where one shows less, or in other words, it is in its `Client`, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from deltawire.server.plausible import plausible
from deltawire.server.scenarios import scenario_of
from deltawire.testing import expected as shown

Saw = dict[str, Any]

TRANSPORTS: Final = ("asyncio", "trio", "sync")
SILENCE: Final = 7.0
"""Seconds; longer than the clients' patience, and far longer than the server's."""
RETRY_AFTER: Final = 1
MANY: Final = 50

MODELS: Final = {
    "plain": "plain",
    "tools": "tools",
    "parallel": "parallel",
    "loop": "parallel",
    "reasoning": "reasoning",
    "structured": "structured",
    "refusal": "refusal",
    "length": "length",
    "usage": "reasoning",
    "error-before": "error-before",
    "error-during": "error-during",
    "retry": f"rate-limited-once;retry={RETRY_AFTER}",
    "silence": f"silent;silence={SILENCE:g}",
    "cancel": "stall",
    "many": "echo",
}
"""The simulated model of each case."""
OWN_QUESTION: Final = "what was asked"
"""What stands for the text of an answer that repeats the question, each another one."""


def _said(model: str) -> Any:
    return shown(scenario_of({"model": model, "input": "Hello"}).answer)


_SAID: Final = _said("plain").content
_CALLS: Final = [
    ["call_0", "weather", {"city": "Paris"}],
    ["call_1", "population", {"city": "Paris"}],
]
_CITY: Final = plausible(
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["city", "people"],
    }
)
_THOUGHT: Final = _said("reasoning").reasoning
_FAILED: Final = {
    "code": "rate_limit_exceeded",
    "type": "upstream_error",
    "message": "Rate limit reached, simulated.",
}

_STREAMED: Final[Mapping[str, Any]] = {
    "plain": {"text": _SAID, "finish": "stop"},
    "tools": {"calls": _CALLS[:1], "finish": "tool_calls"},
    "parallel": {"calls": _CALLS, "finish": "tool_calls"},
    "loop": [
        {"calls": _CALLS, "finish": "tool_calls"},
        {"text": "The tools say: sun; 2800000.", "finish": "stop"},
    ],
    "reasoning": {"text": _SAID, "reasoning": _THOUGHT, "finish": "stop"},
    "structured": {"text": json.dumps(_CITY), "parsed": _CITY, "finish": "stop"},
    "refusal": {"refusal": _said("refusal").refusal, "finish": "stop"},
    "length": {"text": _said("length").content, "finish": "length"},
    "usage": {"text": _SAID, "reasoning": _THOUGHT, "finish": "stop", "usage": [39, 0, 9]},
    "error-before": {
        "error": "InternalServerError",
        "status": 502,
        "code": "server_error",
        "type": "server_error",
        "message": "Internal Server Error, simulated.",
    },
    "error-during": {"error": "APIError", "text": _SAID, **_FAILED},
    "retry": {"text": _SAID, "finish": "stop"},
    "silence": {"text": _SAID, "finish": "stop"},
    "cancel": {"left": True},
    "many": {"text": OWN_QUESTION, "finish": "stop"},
}

# Tokens of an answer that is not streamed: output, cached, reasoning.
_TOKENS: Final[Mapping[str, list[list[int]]]] = {
    "plain": [[30, 0, 0]],
    "tools": [[3, 0, 0]],
    "parallel": [[6, 0, 0]],
    "loop": [[6, 0, 0], [5, 0, 0]],
    "reasoning": [[39, 0, 9]],
    "structured": [[4, 0, 0]],
    "refusal": [[8, 0, 0]],
    "length": [[4, 0, 0]],
    "usage": [[39, 0, 9]],
    "retry": [[30, 0, 0]],
    "silence": [[30, 0, 0]],
    "many": [[4, 0, 0]],
}


def _answers(case: str, *, streamed: bool, with_usage: bool) -> list[Saw]:
    """What a client shows that shows everything."""
    if case == "error-during" and not streamed:
        return [{"error": "RateLimitError", "status": 429, **_FAILED}]
    said = _STREAMED[case] if isinstance(_STREAMED[case], list) else [_STREAMED[case]]
    if not with_usage or case not in _TOKENS:
        return [dict(each) for each in said]
    return [{**each, "usage": tokens} for each, tokens in zip(said, _TOKENS[case], strict=True)]


Change = Callable[[Saw], Saw]


def _without(*keys: str) -> Change:
    return lambda saw: {key: value for key, value in saw.items() if key not in keys}


def _with(**more: Any) -> Change:
    return lambda saw: {**saw, **more}


def _only(*keys: str) -> Change:
    return lambda saw: {key: value for key, value in saw.items() if key in keys}


def _finish(**names: str) -> Change:
    """Its own words for why an answer ended."""
    return lambda saw: (
        {**saw, "finish": names.get(saw["finish"], saw["finish"])} if "finish" in saw else saw
    )


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client, and how what it shows differs from `_answers`.

    package: what it is installed as. program: of `real_clients`. streamed, whole:
    its ways to ask, by the names of the program. changes: what is done to what is expected, in this
    order, each for a case and a way, of which either may be "": any. asks_for_usage: of every
    stream. lacks: cases that it cannot express, and why; of these, the rest is compared. notes:
    what else it shows less of, by case; "": in all of them.
    """

    name: str
    package: str
    version: str
    program: str
    streamed: tuple[str, ...]
    whole: tuple[str, ...]
    changes: tuple[tuple[str, str, Change], ...] = ()
    asks_for_usage: bool = False
    lacks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def ways(self) -> tuple[str, ...]:
        return self.streamed + self.whole

    def ways_in(self, case: str) -> tuple[str, ...]:
        """Those that are tried; what costs most is asked for by one of either kind."""
        return (self.streamed[0], self.whole[0]) if case == "many" else self.ways

    def answers(self, case: str, way: str) -> list[Saw]:
        """What it is to show, of each answer."""
        shows_usage = way in self.whole or self.asks_for_usage
        found = _answers(case, streamed=way in self.streamed, with_usage=shows_usage)
        for for_case, for_way, change in self.changes:
            if for_case in ("", case) and for_way in ("", way):
                found = [change(each) for each in found]
        return found


def _each(case: str, ways: tuple[str, ...], change: Change) -> tuple[tuple[str, str, Change], ...]:
    return tuple((case, way, change) for way in ways)


_OPENAI_PYTHON: Final = (
    # The client's own types are for its own helpers alone.
    *_each("structured", ("streamed", "lines", "create", "raw"), _without("parsed")),
    # Which raise when an answer was cut off.
    ("length", "helper", lambda saw: {"error": "LengthFinishReasonError", "text": saw["text"]}),
    ("length", "parse", _with(error="LengthFinishReasonError")),
    # An error in a stream is read by hand here.
    ("error-during", "lines", _with(error={**_FAILED, "param": None})),
    ("error-during", "lines", _without("code", "type", "message")),
    ("silence", "lines", _with(pinged=True)),
    *_each("cancel", ("create", "parse", "raw"), lambda _: {"error": "APITimeoutError"}),
    *((case, "raw", _with(named=True)) for case in _TOKENS),
)

# The first one to be installed is first, so that others run in the meantime.
CLIENTS: Final = (
    Client(
        name="langchain-openai",
        package="langchain-openai",
        version="1.7",
        program="langchain_cells.py",
        streamed=("stream", "astream"),
        whole=("invoke", "ainvoke"),
        changes=(
            ("", "", _without("reasoning")),
            ("structured", "", _only("parsed")),
            ("error-before", "", _with(error="OpenAIAPIError")),
            *_each("error-during", ("invoke", "ainvoke"), _with(error="OpenAIRateLimitError")),
            *_each("cancel", ("invoke", "ainvoke"), lambda _: {"error": "OpenAITimeoutError"}),
            # It leaves out the refusal of a stream.
            *_each("refusal", ("stream", "astream"), _without("refusal")),
        ),
        lacks=MappingProxyType({"reasoning": "has no field for it"}),
        notes=MappingProxyType({"refusal": "drops it from streams, though not from whole answers"}),
    ),
    Client(
        name="openai-python (async)",
        package="openai",
        version="3",
        program="openai_async.py",
        streamed=("streamed", "helper", "lines"),
        whole=("create", "parse", "raw"),
        changes=_OPENAI_PYTHON,
    ),
    Client(
        name="openai-python (sync)",
        package="openai",
        version="3",
        program="openai_sync.py",
        streamed=("streamed", "helper", "lines"),
        whole=("create", "parse", "raw"),
        changes=_OPENAI_PYTHON,
    ),
    Client(
        name="npm openai",
        package="openai",
        version="7.57",
        program="openai_node.mjs",
        streamed=("streamed", "stream"),
        whole=("create", "parse"),
        changes=(
            *_each("structured", ("streamed", "create"), _without("parsed")),
            (
                "length",
                "parse",
                lambda _: {
                    "error": "LengthFinishReasonError",
                    "message": "Could not parse response content as the length limit was reached",
                },
            ),
            # It assigns each delta of a field that it has no type for over the one before.
            *(
                (case, "stream", _with(reasoning=_THOUGHT[_THOUGHT.rindex(" ") :]))
                for case in ("reasoning", "usage")
            ),
            ("silence", "", _with(pinged=True)),
        ),
        notes=MappingProxyType({"reasoning": "keeps only the last delta in its helper `stream`"}),
    ),
    Client(
        name="Vercel AI SDK",
        package="ai",
        version="6.0",
        program="ai_sdk_cells.mjs",
        streamed=("stream",),
        whole=("generate",),
        changes=(
            ("", "", _finish(tool_calls="tool-calls")),
            ("error-before", "", _with(error="AI_APICallError")),
            ("error-during", "generate", _with(error="AI_APICallError")),
            # It hands out the error object as it came.
            ("error-during", "stream", _without("error")),
            ("silence", "", _with(pinged=True)),
            (
                "refusal",
                "",
                lambda saw: {
                    "text": saw["refusal"],
                    "finish": "content-filter",
                    **_only("usage")(saw),
                },
            ),
        ),
        notes=MappingProxyType({"refusal": "shows it as text"}),
    ),
    Client(
        name="pydantic-ai",
        package="pydantic-ai-slim",
        version="2.68",
        program="pydantic_ai_cells.py",
        streamed=("stream",),
        whole=("request",),
        changes=(
            ("", "", _finish(tool_calls="tool_call")),
            ("structured", "", _only("parsed")),
            ("refusal", "", _with(finish="content_filter")),
            ("error-before", "", _with(error="ModelServerError")),
            ("error-during", "", _with(error="ModelRateLimitError", status=429)),
            (
                "cancel",
                "request",
                lambda _: {"error": "ModelTimeoutError", "message": "Request timed out."},
            ),
        ),
        asks_for_usage=True,
    ),
    Client(
        name="openai-agents",
        package="openai-agents",
        version="0.24",
        program="agents_cells.py",
        streamed=("streamed",),
        whole=("whole",),
        changes=(
            ("", "", _without("finish")),
            ("structured", "", _only("parsed")),
            ("refusal", "", lambda saw: {"error": "ModelRefusalError", "refusal": saw["refusal"]}),
            ("cancel", "whole", lambda _: {"error": "APITimeoutError"}),
        ),
        notes=MappingProxyType({"": "does not say why an answer ended"}),
    ),
)
