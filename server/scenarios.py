"""What a simulated upstream answers: a scenario for each name of a model, as data. No I/O.

The name says it all, options included: `plain;deltas=200;pace=0.01;provider=xai`. `scenario_of`
turns a Responses request into a `Scenario`; `simulate` carries it out. The answers are written by
`deltawire.testing`, which also says what a Chat client must be shown of them (`expected`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Literal

from deltawire.server.model_names import Options, any_status, read_model
from deltawire.server.plausible import plausible
from deltawire.testing import (
    PRESETS,
    Answer,
    CustomToolCall,
    Failed,
    FunctionCall,
    Habits,
    HostedCall,
    Image,
    Incomplete,
    Message,
    Reasoning,
    Refusal,
    Text,
    TokenUsage,
    UrlCitation,
    write_frames,
    write_response,
)
from deltawire.testing.answer import Item

Json = dict[str, Any]

_SAID: Final = (
    "A delta is what has changed since the last word. This answer comes from a simulated model,"
    " which says the same to everybody. Nothing was thought, and nothing was paid."
)
_LONG: Final = 2000
_SILENCE: Final = 3.0
# Of a text that is broken off, as many deltas come.
_BEFORE_CUT: Final = 8
_PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
# What differs from answer to answer stands like this in frames that are written once for many.
ID: Final = "resp_simulated"
CREATED: Final = 1_700_000_000


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is done in answer to one request."""

    answer: Answer = field(default_factory=Answer)
    provider: str = "openai"
    pace: float | None = None
    silence: float = 0.0
    status: int = 200
    """If it is an error, that is all of the answer, and these are its parts."""
    message: str = ""
    code: str | None = None
    retry_after: int | None = None
    once: bool = False
    """The error is for the first request of its kind only."""
    cut_after: int | None = None
    """The answer is broken off after so many deltas; without any, before its last event."""
    then: Literal["end", "reset", "wait"] = "end"
    """What follows then: the end of the body, that of the connection, or nothing at all."""

    def frames(self) -> tuple[list[bytes], bytes]:
        """The frames of the Responses stream, and the one in which it is broken off, if it is."""
        frames = _frames(self.answer, PRESETS[self.provider])
        if self.cut_after is None:
            return frames, b""
        deltas = 0
        for at, frame in enumerate(frames):
            deltas += b'.delta"' in frame
            if deltas == self.cut_after:
                return frames[: at + 1], frames[at + 1]
        return frames[:-1], frames[-1]

    def response(self) -> Json:
        """The Response object."""
        return write_response(self.answer)


# The same stream is asked for again and again where it is a load.
@lru_cache(maxsize=16)
def _frames(answer: Answer, habits: Habits) -> list[bytes]:
    return write_frames(answer, habits)


@dataclass(frozen=True)
class Ask:
    """A Responses request as scenarios look at it."""

    model: str
    options: Options
    body: Mapping[str, Any]

    @property
    def input(self) -> list[Json]:
        """The items of the input."""
        given = self.body.get("input")
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        return given if isinstance(given, list) else []

    @property
    def said(self) -> str:
        """What the user said last."""
        for item in reversed(self.input):
            if item.get("role") == "user":
                return _text_of(item.get("content"))
        return ""

    @property
    def results(self) -> list[str]:
        """The results of tools that the input ends with."""
        results = []
        for item in reversed(self.input):
            if not str(item.get("type")).endswith("_call_output"):
                break
            results.append(_text_of(item.get("output")))
        return results[::-1]

    def calls(self, count: int) -> list[FunctionCall | CustomToolCall]:
        """So many calls of the client's tools; of the one that the request names, if it does."""
        given = self.body.get("tools")
        tools = [each for each in given or [] if each.get("type") in ("function", "custom")]
        choice = self.body.get("tool_choice")
        if isinstance(choice, dict) and choice.get("name"):
            tools = [each for each in tools if each.get("name") == choice["name"]]
        if choice == "none" or not tools:
            return []
        tools.sort(key=lambda each: each.get("type") != "function")
        # Ids that differ from those of the turns before.
        turn = sum(str(item.get("type")).endswith("_call") for item in self.input)
        return [
            _call(tools[number % len(tools)], number // len(tools), f"call_{turn + number}")
            for number in range(count)
        ]

    def text(self, text: str = _SAID) -> str:
        """A text; one of as many deltas as were asked for, if they were."""
        if self.options.deltas is None:
            return text
        return _numbered(self.options.deltas, self.options.size)

    def answer(self, *items: str | Item, **more: Any) -> Scenario:
        """A scenario that is an answer."""
        answer = Answer(items, id=ID, created_at=CREATED, model=self.model, **more)
        return Scenario(answer=replace(answer, usage=_usage(self, answer)))

    def broken(self, then: Literal["end", "reset", "wait"]) -> Scenario:
        """A scenario that is the beginning of an answer."""
        deltas = self.options.deltas or _BEFORE_CUT
        text = _SAID if self.options.deltas is None else _numbered(2 * deltas, self.options.size)
        return replace(self.answer(text), cut_after=deltas, then=then)


def _call(tool: Json, number: int, call_id: str) -> FunctionCall | CustomToolCall:
    name = str(tool.get("name"))
    if tool["type"] == "custom":
        return CustomToolCall(name, "print('deltas on a wire')", call_id)
    arguments = plausible(tool.get("parameters") or {"type": "object"}, number)
    return FunctionCall(name, json.dumps(arguments, ensure_ascii=False), call_id)


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part["text"]
        for part in parts
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _numbered(deltas: int, size: int) -> str:
    """Words that are a delta each, with numbers: what is lost or doubled shows."""
    words = [f"{number}".rjust(size - 1, ".") for number in range(1, deltas + 1)]
    return " ".join(["." + words[0], *words[1:]])


def _usage(ask: Ask, answer: Answer) -> TokenUsage:
    """A token for every four bytes of JSON in, and for every word out."""
    thought = said = 0
    for item in answer.output:
        if isinstance(item, Reasoning):
            thought += sum(_words(text) for text in (*item.summaries, *item.texts))
        elif isinstance(item, Message):
            said += sum(_words(part.text) for part in item.parts)
        elif isinstance(item, FunctionCall):
            said += 1 + _words(item.arguments)
        elif isinstance(item, CustomToolCall):
            said += 1 + _words(item.input)
    read = sum(len(json.dumps(ask.body.get(key))) for key in ("input", "tools", "instructions"))
    return TokenUsage(max(1, read // 4), thought + said, reasoning_tokens=thought)


def _words(text: str) -> int:
    return len(text.split())


# The scenarios. The first line of each is what `--list` says of it.


def _plain(ask: Ask) -> Scenario:
    """a few sentences"""
    return ask.answer(ask.text())


def _tools(ask: Ask) -> Scenario:
    """a call of the first function tool; after its result, an answer"""
    return _calling(ask, 1)


def _parallel(ask: Ask) -> Scenario:
    """two calls in one answer; after their results, an answer"""
    return _calling(ask, 2)


def _calling(ask: Ask, count: int) -> Scenario:
    if ask.results:
        return ask.answer(ask.text(f"The tools say: {'; '.join(ask.results)}."))
    calls = ask.calls(count)
    return ask.answer(*calls) if calls else ask.answer(ask.text("There is no tool to call."))


def _reasoning(ask: Ask) -> Scenario:
    """a summary of reasoning, encrypted reasoning if it is asked for, and text"""
    include = ask.body.get("include")
    wanted = isinstance(include, list) and "reasoning.encrypted_content" in include
    encrypted = "gAAAAsimulated" if wanted else None
    thought = Reasoning(
        ("The user wants an answer.", "Any answer will do."), encrypted_content=encrypted
    )
    return ask.answer(thought, ask.text())


def _structured(ask: Ask) -> Scenario:
    """JSON that is valid for the schema in text.format; without one, some object"""
    text = ask.body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    schema = form.get("schema") if isinstance(form, dict) else None
    value = {"answer": 42} if schema is None else plausible(schema)
    return ask.answer(json.dumps(value, ensure_ascii=False))


def _refusal(ask: Ask) -> Scenario:
    """a refusal"""
    return ask.answer(Message(Refusal("I'm sorry, but I cannot help with that.")))


def _length(ask: Ask) -> Scenario:
    """text that is cut off at max_output_tokens"""
    return ask.answer(ask.text("This sentence has no"), end=Incomplete("max_output_tokens"))


def _filtered(ask: Ask) -> Scenario:
    """text that is cut off by the content filter"""
    return ask.answer(ask.text("What comes next is"), end=Incomplete("content_filter"))


def _search(ask: Ask) -> Scenario:
    """a web search of the provider's own, and text that cites a page"""
    text = "Deltas travel on wires, says an example."
    citation = UrlCitation("https://example.com/deltas", "Deltas", 0, len(text))
    return ask.answer(HostedCall("web_search_call"), Message(Text(text, (citation,))))


def _image(ask: Ask) -> Scenario:
    """an image of one pixel, and text"""
    return ask.answer(Image(_PIXEL), ask.text("There it is."))


def _long(ask: Ask) -> Scenario:
    """text of 2,000 deltas, or as many as are asked for"""
    return ask.answer(_numbered(ask.options.deltas or _LONG, ask.options.size))


def _echo(ask: Ask) -> Scenario:
    """what the user said last"""
    return ask.answer(ask.said)


def _empty(ask: Ask) -> Scenario:
    """an answer that is complete and has nothing in it"""
    return ask.answer()


def _error_before(ask: Ask) -> Scenario:
    """HTTP 500"""
    return _status(ask, 500)


def _error_first(ask: Ask) -> Scenario:
    """HTTP 200, and then a failure before any output"""
    return ask.answer(end=Failed(ask.options.code or "server_error"))


def _error_during(ask: Ask) -> Scenario:
    """some text, and then a failure (rate_limit_exceeded)"""
    failed = Failed(ask.options.code or "rate_limit_exceeded", "Rate limit reached, simulated.")
    return ask.answer(ask.text(), end=failed)


def _truncated(ask: Ask) -> Scenario:
    """some text, and the body ends in the middle of an event"""
    return ask.broken("end")


def _reset(ask: Ask) -> Scenario:
    """some text, and the connection breaks in the middle of an event"""
    return ask.broken("reset")


def _stall(ask: Ask) -> Scenario:
    """some text, and then nothing more until it is hung up on"""
    return ask.broken("wait")


def _silent(ask: Ask) -> Scenario:
    """three seconds of silence, or as many as are asked for, and a few sentences"""
    return replace(ask.answer(ask.text()), silence=_SILENCE)


def _rate_limited(ask: Ask) -> Scenario:
    """HTTP 429 with Retry-After: 1, always"""
    return _status(ask, 429, retry_after=1)


def _rate_limited_once(ask: Ask) -> Scenario:
    """HTTP 429 with Retry-After: 0 for the first request with the same key, then a few sentences"""
    limited = _status(ask, 429, retry_after=0)
    return replace(limited, once=True, answer=ask.answer(ask.text()).answer)


def _status(ask: Ask, status: int, retry_after: int | None = None) -> Scenario:
    named = {429: "rate_limit_exceeded", 401: "invalid_api_key"}.get(status)
    code = ask.options.code or named or ("server_error" if status >= 500 else None)
    phrase = _PHRASES.get(status, "an error")
    return Scenario(
        status=status,
        message=f"{phrase}, simulated.",
        code=code,
        retry_after=retry_after,
    )


_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}

SCENARIOS: Final[Mapping[str, Callable[[Ask], Scenario]]] = {
    "plain": _plain,
    "tools": _tools,
    "parallel": _parallel,
    "reasoning": _reasoning,
    "structured": _structured,
    "refusal": _refusal,
    "length": _length,
    "filtered": _filtered,
    "search": _search,
    "image": _image,
    "long": _long,
    "echo": _echo,
    "empty": _empty,
    "error-before": _error_before,
    "error-first": _error_first,
    "error-during": _error_during,
    "truncated": _truncated,
    "reset": _reset,
    "stall": _stall,
    "silent": _silent,
    "rate-limited": _rate_limited,
    "rate-limited-once": _rate_limited_once,
}
"""By the name of the model."""


def scenario_of(body: Mapping[str, Any]) -> Scenario:
    """What is done in answer to a Responses request.

    Raises InvalidRequest: `model_not_found` for a model that is not there.
    """
    model = body["model"]
    name, options = read_model(model, SCENARIOS)
    ask = Ask(model, options, body)
    status = any_status(name)
    scenario = _status(ask, status) if status else SCENARIOS[name](ask)
    return replace(
        scenario,
        provider=options.provider,
        pace=options.pace,
        silence=scenario.silence if options.silence is None else options.silence,
        retry_after=scenario.retry_after if options.retry is None else options.retry,
    )


def summaries() -> Iterator[tuple[str, str]]:
    """Every name, and what it does."""
    for name, scenario in SCENARIOS.items():
        yield name, scenario.__doc__ or ""
    yield "status-NNN", "that HTTP status, from 400 to 599"
