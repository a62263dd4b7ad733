"""What becomes of every field of a Chat Completions request, as data.

The translation reads this table: a field that is not in it, and one that is `dropped`, goes into
the report. `docs/request.md` is made from it, and a test walks the schema of the Chat request and
fails for a property that is not here. Nothing here acts.

A path names a field: `[]` is any element of a list, `[text]` a value whose `type` (of a message,
whose `role`) is that; what is said of `[]`, or without brackets, holds for all of them. Fields
below a dropped field, and of free-form objects such as JSON Schemas and metadata, have no entry of
their own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct

Fate = Literal["mapped", "emulated", "dropped", "refused"]


class Field(Struct, frozen=True):
    """One field of a Chat request.

    `note` says where a mapped field goes in the Responses request, how an emulated one is made
    good, and why another one is dropped, or refused with an InvalidRequest.
    """

    path: str
    fate: Fate
    note: str


def _mapped(path: str, to: str | None = None) -> Field:
    return Field(path, "mapped", f"`{path if to is None else to}`")


def _said(path: str, note: str) -> Field:
    return Field(path, "mapped", note)


def _emulated(path: str, how: str) -> Field:
    return Field(path, "emulated", how)


def _dropped(path: str, why: str) -> Field:
    return Field(path, "dropped", why)


def _refused(path: str, why: str) -> Field:
    return Field(path, "refused", why)


_NO_SAMPLING: Final = "the Responses API has no such sampling setting"
_MODE: Final = "prompt_cache_breakpoint.mode"

CHAT_FIELDS: Final = (
    _mapped("model"),
    _mapped("messages", "input"),
    _mapped("messages[].role", "input[].role"),
    _mapped("messages[].content", "input[].content"),
    _dropped("messages[].name", "the Responses API does not name the participants"),
    _mapped("messages[].content[].type", "input[].content[].type"),
    _mapped("messages[].content[].prompt_cache_breakpoint", "input[].content[]"),
    _mapped(f"messages[].content[].{_MODE}", f"input[].content[].{_MODE}"),
    _mapped("messages[].content[text].text", "input[].content[].text"),
    _mapped("messages[].content[refusal].refusal", "input[].content[].refusal"),
    _mapped("messages[].content[image_url].image_url", "input[].content[]"),
    _mapped("messages[].content[image_url].image_url.url", "input[].content[].image_url"),
    _mapped("messages[].content[image_url].image_url.detail", "input[].content[].detail"),
    _mapped("messages[].content[file].file", "input[].content[]"),
    _mapped("messages[].content[file].file.filename", "input[].content[].filename"),
    _mapped("messages[].content[file].file.file_data", "input[].content[].file_data"),
    _mapped("messages[].content[file].file.file_id", "input[].content[].file_id"),
    _dropped(
        "messages[].content[input_audio].input_audio", "the Responses API takes no audio input"
    ),
    _mapped("messages[assistant].refusal", "input[].content[].refusal"),
    _dropped("messages[assistant].audio", "the Responses API has no audio answers"),
    _mapped("messages[assistant].tool_calls", "input[]"),
    _mapped("messages[assistant].tool_calls[].id", "input[].call_id"),
    _mapped("messages[assistant].tool_calls[].type", "input[].type"),
    _mapped("messages[assistant].tool_calls[function].function", "input[]"),
    _mapped("messages[assistant].tool_calls[function].function.name", "input[].name"),
    _mapped("messages[assistant].tool_calls[function].function.arguments", "input[].arguments"),
    _mapped("messages[assistant].tool_calls[custom].custom", "input[]"),
    _mapped("messages[assistant].tool_calls[custom].custom.name", "input[].name"),
    _mapped("messages[assistant].tool_calls[custom].custom.input", "input[].input"),
    _mapped("messages[assistant].function_call", "input[]"),
    _mapped("messages[assistant].function_call.name", "input[].name"),
    _mapped("messages[assistant].function_call.arguments", "input[].arguments"),
    _mapped("messages[tool].tool_call_id", "input[].call_id"),
    _said("messages[function].name", "the `call_id` of the last call of that name"),
    # What may be said.
    _mapped("tools"),
    _mapped("tools[].type"),
    _mapped("tools[function].function", "tools[]"),
    _mapped("tools[function].function.name", "tools[].name"),
    _mapped("tools[function].function.description", "tools[].description"),
    _mapped("tools[function].function.parameters", "tools[].parameters"),
    _said("tools[function].function.strict", "`tools[].strict`, `false` where it is not given"),
    _mapped("tools[custom].custom", "tools[]"),
    _mapped("tools[custom].custom.name", "tools[].name"),
    _mapped("tools[custom].custom.description", "tools[].description"),
    _mapped("tools[custom].custom.format", "tools[].format"),
    _mapped("tools[custom].custom.format.type", "tools[].format.type"),
    _mapped("tools[custom].custom.format[grammar].grammar", "tools[].format"),
    _mapped("tools[custom].custom.format[grammar].grammar.definition", "tools[].format.definition"),
    _mapped("tools[custom].custom.format[grammar].grammar.syntax", "tools[].format.syntax"),
    _mapped("tool_choice"),
    _mapped("tool_choice.type"),
    _mapped("tool_choice[function].function", "tool_choice"),
    _mapped("tool_choice[function].function.name", "tool_choice.name"),
    _mapped("tool_choice[custom].custom", "tool_choice"),
    _mapped("tool_choice[custom].custom.name", "tool_choice.name"),
    _mapped("tool_choice[allowed_tools].allowed_tools", "tool_choice"),
    _mapped("tool_choice[allowed_tools].allowed_tools.mode", "tool_choice.mode"),
    _mapped("tool_choice[allowed_tools].allowed_tools.tools", "tool_choice.tools"),
    _mapped("parallel_tool_calls"),
    _emulated("functions", "offered as tools; the answer calls them in `tool_calls`"),
    _mapped("functions[].name", "tools[].name"),
    _mapped("functions[].description", "tools[].description"),
    _mapped("functions[].parameters", "tools[].parameters"),
    _mapped("function_call", "tool_choice"),
    _mapped("function_call.name", "tool_choice.name"),
    _said("web_search_options", "a tool of type `web_search`"),
    _mapped("web_search_options.search_context_size", "tools[].search_context_size"),
    _mapped("web_search_options.user_location", "tools[].user_location"),
    _mapped("web_search_options.user_location.type", "tools[].user_location.type"),
    _mapped("web_search_options.user_location.approximate", "tools[].user_location"),
    _mapped(
        "web_search_options.user_location.approximate.country", "tools[].user_location.country"
    ),
    _mapped("web_search_options.user_location.approximate.region", "tools[].user_location.region"),
    _mapped("web_search_options.user_location.approximate.city", "tools[].user_location.city"),
    _mapped(
        "web_search_options.user_location.approximate.timezone", "tools[].user_location.timezone"
    ),
    # How the answer is to look.
    _mapped("response_format", "text.format"),
    _mapped("response_format.type", "text.format.type"),
    _mapped("response_format[json_schema].json_schema", "text.format"),
    _mapped("response_format[json_schema].json_schema.name", "text.format.name"),
    _mapped("response_format[json_schema].json_schema.description", "text.format.description"),
    _mapped("response_format[json_schema].json_schema.schema", "text.format.schema"),
    _mapped("response_format[json_schema].json_schema.strict", "text.format.strict"),
    _mapped("verbosity", "text.verbosity"),
    _mapped("reasoning_effort", "reasoning.effort"),
    _said(
        "max_completion_tokens", "`max_output_tokens`, raised to the least that the upstream takes"
    ),
    _said("max_tokens", "`max_output_tokens`, where `max_completion_tokens` is not given"),
    _said("logprobs", '`include: ["message.output_text.logprobs"]`'),
    _mapped("top_logprobs"),
    _emulated("stop", "the answer is cut at the first stop sequence as it passes through"),
    _refused("n", "one choice is all that a response has"),
    _said("modalities", 'nothing to be said: `["text"]`; any other is dropped'),
    _dropped("audio", "the Responses API has no audio answers"),
    _mapped("stream"),
    _mapped("stream_options"),
    _said("stream_options.include_usage", "`ChatStream(include_usage=...)`"),
    _mapped("stream_options.include_obfuscation"),
    # How it is sampled.
    _mapped("temperature"),
    _mapped("top_p"),
    _dropped("frequency_penalty", _NO_SAMPLING),
    _dropped("presence_penalty", _NO_SAMPLING),
    _dropped("logit_bias", _NO_SAMPLING),
    _dropped("seed", _NO_SAMPLING),
    _dropped("prediction", "the Responses API takes no predicted output"),
    # Whose it is, and how it is handled.
    _said("store", "`store`, `false` where it is not given"),
    _mapped("metadata"),
    _mapped("user"),
    _mapped("safety_identifier"),
    _mapped("service_tier"),
    _mapped("prompt_cache_key"),
    _mapped("prompt_cache_retention"),
    _mapped("prompt_cache_options"),
    _mapped("prompt_cache_options.ttl"),
    _mapped("prompt_cache_options.mode"),
    _mapped("moderation"),
    _mapped("moderation.model"),
    _mapped("moderation.policy"),
    _mapped("moderation.policy.input"),
    _mapped("moderation.policy.input.mode"),
    _mapped("moderation.policy.output"),
    _mapped("moderation.policy.output.mode"),
)
"""The fields of OpenAI's Chat Completions request, each with its fate."""

_DETAIL: Final = "messages[assistant].reasoning_details"

EXTENSIONS: Final = (
    # What answers carry beyond OpenAI's fields, or openai-python adds, and clients send back.
    _said("messages[assistant].tool_calls[].index", "the order"),
    _said(
        "messages[assistant].tool_calls[function].function.parsed_arguments",
        "nothing to be said: the `arguments` have it",
    ),
    _said("messages[assistant].parsed", "nothing to be said: the `content` has it"),
    _said(
        "messages[assistant].reasoning_content",
        "a `reasoning` item, for upstreams that take its text",
    ),
    _said("messages[assistant].reasoning", "as `reasoning_content`"),
    _said(_DETAIL, "the `reasoning` items that they came from, encrypted content included"),
    _mapped(f"{_DETAIL}[].type", "input[].type"),
    _mapped(f"{_DETAIL}[].id", "input[].id"),
    _said(f"{_DETAIL}[].format", "nothing to be said"),
    _said(f"{_DETAIL}[].index", "the order"),
    _said(f"{_DETAIL}[].phase", "`input[].phase` of a message, which the detail then is"),
    _said(f"{_DETAIL}[].after", "the place among text and calls"),
    _said(f"{_DETAIL}[].after.content", "the place in the text"),
    _said(f"{_DETAIL}[].after.tool_calls", "the place among the calls"),
    _mapped(f"{_DETAIL}[reasoning.summary].summary", "input[].summary[].text"),
    _said(
        f"{_DETAIL}[reasoning.text].text",
        "`input[].content[].text`, unless the encrypted content, which says the same, goes over",
    ),
    _dropped(f"{_DETAIL}[reasoning.text].signature", "the Responses API has no signatures"),
    _mapped(f"{_DETAIL}[reasoning.encrypted].data", "input[].encrypted_content"),
    _mapped("messages[assistant].annotations", "input[].content[].annotations"),
    _mapped("messages[assistant].annotations[].type", "input[].content[].annotations[].type"),
    _said("messages[assistant].annotations[].index", "the order"),
    _mapped("messages[assistant].annotations[url_citation].url_citation", "annotations[]"),
    _mapped("messages[assistant].annotations[url_citation].url_citation.url", "annotations[].url"),
    _mapped(
        "messages[assistant].annotations[url_citation].url_citation.title", "annotations[].title"
    ),
    _mapped(
        "messages[assistant].annotations[url_citation].url_citation.start_index",
        "annotations[].start_index",
    ),
    _mapped(
        "messages[assistant].annotations[url_citation].url_citation.end_index",
        "annotations[].end_index",
    ),
    _dropped("messages[assistant].images", "an answer's images cannot be its input"),
    # What only the Responses API has, for those who know that it answers.
    _mapped("previous_response_id"),
    _mapped("conversation"),
    _mapped("include"),
    _mapped("truncation"),
    _mapped("max_tool_calls"),
    _mapped("reasoning"),
    _mapped("reasoning.effort"),
    _mapped("reasoning.summary"),
)
"""Fields that are no part of OpenAI's Chat Completions request and are understood all the same."""

FIELDS: Final = CHAT_FIELDS + EXTENSIONS


def _by_parent() -> dict[str, dict[str, Field]]:
    result: dict[str, dict[str, Field]] = {}
    for field in FIELDS:
        parent, _, name = field.path.rpartition(".")
        result.setdefault(parent, {})[name] = field
    return result


_CHILDREN: Final = _by_parent()


@functools.cache
def fields_of(kind: str) -> Mapping[str, Field]:
    """The fields that an object at this place may have.

    `kind` is its path, "" for the request itself; with a tag in its last brackets, the fields
    are those of all elements and those of an element of that type.
    """
    base = kind[: kind.rindex("[")] if kind.endswith("]") else kind
    return {name: field for each in (base, base + "[]", kind) for name, field in _in(each)}


def _in(kind: str) -> Iterable[tuple[str, Field]]:
    return _CHILDREN.get(kind, {}).items()
