"""A Chat Completions request -> a Responses request, and a report of what could not go over.

What may live here: the fields of the request itself. What may not: messages (`history`), tools
(`tools`), how a value is checked (`reading`), which fields there are (`fields`), how providers
differ (`dialects`). Callers: the exchange, the command line, and anybody with a request to send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from deltawire.chat import Failure
from deltawire.dialects import OPENAI, Dialect
from deltawire.errors import InvalidRequest, UnsupportedField
from deltawire.history import History
from deltawire.reading import Json, Reader, ReportEntry, join, wrong_type
from deltawire.stream import ChatStream
from deltawire.tools import ClientTools, Tools

_LOGPROBS: Final = "message.output_text.logprobs"
_ENCRYPTED: Final = "reasoning.encrypted_content"

# As many as Chat Completions takes; each of them costs time with every delta of the answer.
_MAX_STOPS: Final = 4


class Translated(Struct, frozen=True):
    """A chat request, translated.

    `body` is the Responses request, `report` what of the chat request is not in it as it was
    asked for, `client_tools` what `ChatStream` needs to know of the client's tools. The others
    are what the answer owes to the request: `include_usage` and `stop` as options of
    `ChatStream`, and the dialect of the upstream.
    """

    body: dict[str, Any]
    report: list[ReportEntry]
    client_tools: ClientTools
    include_usage: bool = False
    stop: tuple[str, ...] = ()
    dialect: Dialect = OPENAI

    def chat_stream(self, **options: Any) -> ChatStream:
        """The stream machine for the answer. `options` are further ones of `ChatStream`.

        Encrypted reasoning is passed on to the client if the request asks for it.
        """
        include = self.body.get("include", ())
        return ChatStream(
            **{
                "client_tools": self.client_tools,
                "dialect": self.dialect,
                "include_usage": self.include_usage,
                "stop": self.stop,
                "reasoning_details": _ENCRYPTED in include,
                **options,
            }
        )


def to_responses_request(
    chat_request: Mapping[str, Any], *, dialect: Dialect = OPENAI, strict: bool = False
) -> Translated:
    """Translate a chat request, as decoded from JSON, for an upstream of that dialect.

    The request is not changed, and nothing of it vanishes: what is not in the body as it was
    asked for is in the report. Raises InvalidRequest for a request that is wrong in itself, and
    UnsupportedField, if `strict`, for one of which anything is dropped or adjusted.
    """
    translation = _Translation(dialect)
    translation.read(chat_request)
    report = translation.reader.report
    lost = [entry for entry in report if entry.action != "emulated"]
    if strict and lost:
        raise UnsupportedField(lost, report)
    return Translated(
        translation.body,
        report,
        translation.tools.client_tools,
        translation.include_usage,
        translation.stop,
        dialect,
    )


def without_reasoning(body: Mapping[str, Any]) -> dict[str, Any]:
    """The Responses request without what models thought before.

    For another attempt, once, after an upstream has refused what another account's or another
    provider's model thought (`refuses_encrypted_reasoning`). All of it goes: items that have lost
    their encrypted content are refused for the same reason (Wei-Shaw/sub2api issue 3138). `body`
    is not changed.
    """
    given = body.get("input")
    if not isinstance(given, list):
        return dict(body)
    return {**body, "input": [item for item in given if item.get("type") != "reasoning"]}


def refuses_encrypted_reasoning(failure: Failure) -> bool:
    """Whether upstream could not read the encrypted reasoning in the request.

    Some gateways keep the message and lose the code (opencodex issue 2247).
    """
    if failure.code is not None:
        return failure.code == "invalid_encrypted_content"
    message = failure.message.lower()
    return "encrypted content" in message and "could not be" in message


class _Translation:
    """One chat request on its way to `body`."""

    __slots__ = (
        "_dialect",
        "_included",
        "_max_tokens",
        "body",
        "include_usage",
        "reader",
        "stop",
        "tools",
    )

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.reader = Reader()
        self.tools = Tools(self.reader, dialect)
        self.body: Json = {}
        self.include_usage = False
        self.stop: tuple[str, ...] = ()
        self._max_tokens: int | None = None
        self._included: set[str] = set()

    def read(self, chat_request: object) -> None:
        """Take in the request."""
        request = dict(self.reader.mapping(chat_request, ""))
        # What this upstream takes beyond the Responses API, it takes as it is.
        accepted = [name for name in self._dialect.accepts if request.get(name) is not None]
        extra = {name: self.reader.free(request.pop(name), name) for name in accepted}
        fields = self.reader.fields(request, "", "")
        for name, expected in (("model", "the name of a model"), ("messages", "a list")):
            self.reader.required(fields, name, "", expected)
        for name, read in _FIELDS.items():
            if name in fields:
                read(self, fields[name], name)
        if self.tools.sent:
            self._put("tools", self.tools.sent, "tools")
        if "store" not in fields:
            # Without a word, Chat Completions does not store and the Responses API does.
            self._put("store", False, None)
        self._ask_for_summary()
        self.body |= extra

    # Into the body.

    def _put(self, place: str, value: object, path: str | None) -> None:
        """Set a field of the body, such as `text.verbosity`, unless this upstream refuses it.

        `path` is where it comes from in the chat request, None if it was not asked for.
        """
        refused = self._dialect.refusal(place)
        if refused is not None:
            if path is not None:
                self.reader.drop(path, refused)
            return
        target = self.body
        *outer, name = place.split(".")
        for key in outer:
            target = target.setdefault(key, {})
        target[name] = value

    def _include(self, value: str, path: str) -> None:
        refused = self._dialect.refusal("include") or self._dialect.refusal(f"include[{value}]")
        if refused is not None:
            self.reader.drop(path, refused)
        elif value not in self._included:
            self._included.add(value)
            self.body.setdefault("include", []).append(value)

    # What is said, and with what.

    def _read_messages(self, value: object, path: str) -> None:
        continued = "previous_response_id" in self.body or "conversation" in self.body
        history = History(self.reader, self.tools, self._dialect, continued=continued)
        history.read(value, path)
        instructions = history.take_instructions() if self._dialect.instructions else None
        if instructions is not None:
            self._put("instructions", instructions, path)
        self._put("input", history.items, path)

    def _read_tools(self, value: object, path: str) -> None:
        self.tools.offer(value, path)

    def _read_functions(self, value: object, path: str) -> None:
        self.tools.offer_functions(value, path)

    def _read_web_search(self, value: object, path: str) -> None:
        self.tools.offer_web_search(value, path)

    def _read_tool_choice(self, value: object, path: str) -> None:
        choice = self.tools.choice(value, path)
        if choice is not None:
            self._put("tool_choice", choice, path)

    def _read_function_choice(self, value: object, path: str) -> None:
        choice = self.tools.function_choice(value, path)
        if self.body.get("tool_choice", choice) != choice:
            self.reader.drop(path, "there is a tool_choice as well")
        else:
            self._put("tool_choice", choice, path)

    # How the answer is to look.

    def _read_response_format(self, value: object, path: str) -> None:
        kind = self.reader.kind(value, path)
        self.reader.one_of(kind, join(path, "type"), ("text", "json_schema", "json_object"))
        fields = self.reader.fields(value, path, f"response_format[{kind}]")
        sent: Json = {"type": kind}
        if kind == "json_schema":
            where = join(path, kind)
            given = self.reader.required(fields, kind, path, "an object")
            schema = self.reader.fields(given, where, f"response_format[{kind}].{kind}")
            self.reader.required(schema, "name", where, "a name for the schema")
            # Chat Completions can do without a schema, the Responses API wants one.
            for name, read in _SCHEMA.items():
                if name in schema or name == "schema":
                    sent[name] = read(self.reader, schema.get(name, {}), join(where, name))
        self._put("text.format", sent, path)

    def _read_reasoning(self, value: object, path: str) -> None:
        for name, given in self.reader.fields(value, path, path).items():
            self._put(f"reasoning.{name}", self.reader.string(given, join(path, name)), path)

    def _read_effort(self, value: object, path: str) -> None:
        effort = self.reader.string(value, path)
        if self.body.get("reasoning", {}).get("effort", effort) != effort:
            self.reader.drop("reasoning.effort", "there is a reasoning_effort as well")
        self._put("reasoning.effort", effort, path)

    def _ask_for_summary(self) -> None:
        """Ask for what shows the reasoning, of a model that is known to reason."""
        reasoning = self.body.get("reasoning", {})
        wanted = self._dialect.reasoning_summary
        if wanted and reasoning.get("effort", "none") != "none" and "summary" not in reasoning:
            self._put("reasoning.summary", wanted, None)

    def _read_max_tokens(self, value: object, path: str) -> None:
        given = self.reader.integer(value, path)
        if given < 1:
            raise InvalidRequest(
                f"{path}: expected an integer of at least 1, found {given}", path, "invalid_value"
            )
        if path == "max_tokens" and self._max_tokens is not None:
            if given != self._max_tokens:
                self.reader.drop(path, "there is a max_completion_tokens as well")
            return
        self._max_tokens = given
        least = self._dialect.min_output_tokens
        if given < least:
            self.reader.adjust(path, f"raised from {given} to {least}, the least upstream takes")
        self._put("max_output_tokens", max(given, least), path)

    def _read_logprobs(self, value: object, path: str) -> None:
        if self.reader.boolean(value, path):
            self._include(_LOGPROBS, path)

    def _read_include(self, value: object, path: str) -> None:
        for given, where in self.reader.elements(value, path):
            self._include(self.reader.string(given, where), where)

    def _read_stop(self, value: object, path: str) -> None:
        if isinstance(value, str):
            given = [self.reader.string(value, path)]
        elif isinstance(value, list | tuple):
            given = [self.reader.string(*each) for each in self.reader.elements(value, path)]
            if len(given) > _MAX_STOPS:
                raise InvalidRequest(
                    f"{path}: expected at most {_MAX_STOPS} strings, found {len(given)}",
                    path,
                    "invalid_value",
                )
        else:
            raise wrong_type(path, "a string or a list of strings", value)
        self.stop = tuple(text for text in given if text)
        if self.stop:
            self.reader.emulate(path, "the answer is cut at the first one as it passes through")

    def _read_n(self, value: object, path: str) -> None:
        number = self.reader.integer(value, path)
        if number != 1:
            raise InvalidRequest(
                f"{path}: expected 1, because a response has one choice; found {number}",
                path,
                "unsupported_value",
            )

    def _read_modalities(self, value: object, path: str) -> None:
        for given, where in self.reader.elements(value, path):
            modality = self.reader.string(given, where)
            if modality != "text":
                self.reader.drop(where, "the Responses API answers with text")

    def _read_stream_options(self, value: object, path: str) -> None:
        for name, given in self.reader.fields(value, path, path).items():
            wanted = self.reader.boolean(given, join(path, name))
            if name == "include_usage":
                self.include_usage = wanted
            else:
                self._put(join(path, name), wanted, join(path, name))


Read = Callable[[_Translation, object, str], None]


def _copied(read: Callable[[Reader, object, str], Any], place: str | None = None) -> Read:
    """A field that goes to `place` of the body, or to where it is, as it is."""

    def copy(translation: _Translation, value: object, path: str) -> None:
        translation._put(place or path, read(translation.reader, value, path), path)

    return copy


_SCHEMA: Final[Mapping[str, Callable[[Reader, object, str], Any]]] = {
    "name": Reader.string,
    "description": Reader.string,
    "schema": Reader.free_object,
    "strict": Reader.boolean,
}

# In the order in which they are read: the messages need to know the tools, and the second of two
# fields with one meaning the first.
_FIELDS: Final[Mapping[str, Read]] = {
    "model": _copied(Reader.name),
    "previous_response_id": _copied(Reader.string),
    "conversation": _copied(Reader.free),
    "tools": _Translation._read_tools,
    "functions": _Translation._read_functions,
    "web_search_options": _Translation._read_web_search,
    "messages": _Translation._read_messages,
    "tool_choice": _Translation._read_tool_choice,
    "function_call": _Translation._read_function_choice,
    "parallel_tool_calls": _copied(Reader.boolean),
    "max_tool_calls": _copied(Reader.integer),
    "response_format": _Translation._read_response_format,
    "verbosity": _copied(Reader.string, "text.verbosity"),
    "reasoning": _Translation._read_reasoning,
    "reasoning_effort": _Translation._read_effort,
    "max_completion_tokens": _Translation._read_max_tokens,
    "max_tokens": _Translation._read_max_tokens,
    "include": _Translation._read_include,
    "logprobs": _Translation._read_logprobs,
    "top_logprobs": _copied(Reader.integer),
    "stop": _Translation._read_stop,
    "n": _Translation._read_n,
    "modalities": _Translation._read_modalities,
    "stream": _copied(Reader.boolean),
    "stream_options": _Translation._read_stream_options,
    "temperature": _copied(Reader.number),
    "top_p": _copied(Reader.number),
    "truncation": _copied(Reader.string),
    "store": _copied(Reader.boolean),
    "metadata": _copied(Reader.free_object),
    "user": _copied(Reader.string),
    "safety_identifier": _copied(Reader.string),
    "service_tier": _copied(Reader.string),
    "prompt_cache_key": _copied(Reader.string),
    "prompt_cache_retention": _copied(Reader.string),
    "prompt_cache_options": _copied(Reader.free_object),
    "moderation": _copied(Reader.free_object),
}
