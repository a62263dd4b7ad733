"""The messages of a chat request -> the input items of a Responses request.

One message becomes one item, except an assistant's: its reasoning, its text and each of its calls
are items of their own in the Responses API. What `ChatStream` made one message of goes back as the
items it came from, in their order as far as the message tells it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from deltawire.dialects import Dialect
from deltawire.errors import InvalidRequest, UnsupportedField
from deltawire.reading import Json, Reader, ReportEntry, described, join, wrong_type
from deltawire.tools import MAX_NAME, Tools, shortened

_DETAILS: Final = ("auto", "low", "high", "original")
_PHASES: Final = ("commentary", "final_answer")
_BREAKPOINT: Final = "prompt_cache_breakpoint"


class History:
    """The messages of one request on their way to `items`.

    `continued`: an earlier response is continued, so that calls may be in it and not here.
    """

    __slots__ = (
        "_attached",
        "_continued",
        "_custom",
        "_dialect",
        "_nameless",
        "_reader",
        "_tools",
        "items",
    )

    def __init__(self, reader: Reader, tools: Tools, dialect: Dialect, *, continued: bool) -> None:
        self._reader = reader
        self._tools = tools
        self._dialect = dialect
        self._continued = continued
        # Of each call that was made: whether it is one of a custom tool.
        self._custom: dict[str, bool] = {}
        # Name -> id of the last call that was made without an id.
        self._nameless: dict[str, str] = {}
        # Images and files of results, which upstream takes from the user only.
        self._attached: list[Json] = []
        self.items: list[Json] = []

    def read(self, value: object, path: str) -> None:
        """Take in the list of messages."""
        for message, where in self._reader.elements(value, path):
            role = self._reader.kind(message, where, "role")
            read = _ROLES.get(role)
            if read is None:
                self._reader.one_of(role, join(where, "role"), tuple(_ROLES))
            else:
                if role not in ("tool", "function"):
                    self._attach()
                read(self, self._reader.fields(message, where, f"messages[{role}]"), where)
        self._attach()
        if not self.items:
            raise InvalidRequest(
                f"{path}: expected at least one message, found none", path, "invalid_value"
            )
        if self._dialect.typed_messages:
            self.items = [
                {"type": "message", **item} if "role" in item else item for item in self.items
            ]

    def take_instructions(self) -> str | None:
        """Take away the text of the messages that instruct the model before anybody speaks."""
        texts: list[str] = []
        taken = 0
        # There has to be some input left.
        for item in self.items[:-1]:
            content = item.get("content", ())
            parts = [{"text": content}] if isinstance(content, str) else content
            instructs = item.get("role") in ("system", "developer")
            if not (instructs and all("text" in part for part in parts)):
                break
            texts += [part["text"] for part in parts]
            taken += 1
        del self.items[:taken]
        return "\n\n".join(texts) or None

    def _attach(self) -> None:
        """Let the user show what came with results, once all results are said."""
        if self._attached:
            self.items.append({"role": "user", "content": self._attached})
            self._attached = []

    # Roles.

    def _read_input(self, message: Json, path: str) -> None:
        role = self._reader.name(message["role"], join(path, "role"))
        if role == "developer":
            role = self._dialect.developer_role
        content = self._content(message, path)
        self.items.append({"role": role, "content": content})

    def _read_result(self, message: Json, path: str) -> None:
        where = join(path, "tool_call_id")
        given = self._reader.required(message, "tool_call_id", path, "the id of a call")
        call_id = shortened(self._reader.name(given, where))
        if call_id not in self._custom and not self._continued:
            raise InvalidRequest(
                f"{where}: expected the id of a call in a message before it,"
                f" found {described(given)}",
                where,
                "invalid_value",
            )
        output = self._content(message, path)
        if not (self._dialect.result_parts or isinstance(output, str)):
            texts = [part["text"] for part in output if "text" in part]
            self._attached += [part for part in output if "text" not in part]
            output = (self._dialect.plain_text or "").join(texts)
            self._reader.emulate(
                join(path, "content"), "its images and files follow in a message of the user's"
            )
        self._answer(call_id, output)

    def _read_function_result(self, message: Json, path: str) -> None:
        where = join(path, "name")
        name = self._reader.name(
            self._reader.required(message, "name", path, "the name of a function"), where
        )
        call_id = self._nameless.get(name)
        if call_id is None:
            raise InvalidRequest(
                f"{where}: expected the name of a function called in a message before it,"
                f" found {described(name)}",
                where,
                "invalid_value",
            )
        output = self._reader.string(message.get("content", ""), join(path, "content"))
        self._answer(call_id, output)

    def _answer(self, call_id: str, output: str | list[Json]) -> None:
        kind = "custom_tool_call" if self._custom.get(call_id) else "function_call"
        self.items.append({"type": f"{kind}_output", "call_id": call_id, "output": output})

    def _read_answer(self, message: Json, path: str) -> None:
        texts, refusals = self._said(message, path)
        citations = self._citations(message, path, sum(map(len, texts)))
        if not self._dialect.output_messages:
            texts, refusals = self._plainly(texts, refusals, path), []
            if citations:
                self._reader.drop(join(path, "annotations"), "upstream takes plain text only")
                citations = []
        calls = self._calls(message, path)
        reasoning = self._reasoning(message, path)
        answer = _Answer("".join(texts), deque(citations), refusals, calls, len(self.items))
        for place, item in reasoning:
            self.items += answer.until(*place)
            self.items.append(item)
        self.items += answer.rest(alone=not (reasoning or calls))

    # Content.

    def _content(self, message: Json, path: str) -> str | list[Json]:
        """The content of a message that is no assistant's."""
        value = self._reader.required(message, "content", path, "a string or a list of parts")
        where = join(path, "content")
        if isinstance(value, str):
            return self._reader.string(value, where)
        if not isinstance(value, list | tuple):
            raise wrong_type(where, "a string or a list of parts", value)
        parts = []
        for part, place in self._reader.elements(value, where):
            kind = self._reader.kind(part, place)
            convert = _PARTS.get(kind)
            if convert is None:
                self._reader.one_of(kind, join(place, "type"), tuple(_PARTS))
            else:
                fields = self._reader.fields(part, place, f"messages[].content[{kind}]")
                if (converted := convert(self, fields, place)) is not None:
                    parts.append(self._with_breakpoint(converted, fields, place))
        if not value:
            raise InvalidRequest(
                f"{where}: expected at least one part, found none", where, "invalid_value"
            )
        if not parts:
            entry = ReportEntry(where, "dropped", "no part of it can be carried over")
            raise UnsupportedField([entry], [*self._reader.report, entry])
        if self._dialect.plain_text and all(list(part) == ["type", "text"] for part in parts):
            return self._dialect.plain_text.join(part["text"] for part in parts)
        return parts

    def _with_breakpoint(self, part: Json, fields: Json, path: str) -> Json:
        where = join(path, _BREAKPOINT)
        if _BREAKPOINT in fields and self._dialect.plain_text is not None:
            self._reader.drop(where, "upstream wants text as one string")
        elif _BREAKPOINT in fields:
            kind = f"messages[].content[].{_BREAKPOINT}"
            marked = self._reader.fields(fields[_BREAKPOINT], where, kind)
            mode = self._reader.required(marked, "mode", where, "'explicit'")
            part[_BREAKPOINT] = {"mode": self._reader.string(mode, join(where, "mode"))}
        return part

    def _text(self, part: Json, path: str) -> Json | None:
        text = self._reader.required(part, "text", path, "a string")
        return {"type": "input_text", "text": self._reader.string(text, join(path, "text"))}

    def _image(self, part: Json, path: str) -> Json | None:
        where = join(path, "image_url")
        given = self._reader.required(part, "image_url", path, "an object with a url")
        image = self._reader.fields(given, where, "messages[].content[image_url].image_url")
        url = self._reader.required(image, "url", where, "a URL")
        detail = image.get("detail", "auto")
        return {
            "type": "input_image",
            "image_url": self._reader.string(url, join(where, "url")),
            "detail": self._reader.one_of(detail, join(where, "detail"), _DETAILS),
        }

    def _file(self, part: Json, path: str) -> Json | None:
        where = join(path, "file")
        given = self._reader.required(part, "file", path, "an object")
        file = self._reader.fields(given, where, "messages[].content[file].file")
        strings = {
            name: self._reader.string(text, join(where, name)) for name, text in file.items()
        }
        return {"type": "input_file", **strings}

    def _audio(self, part: Json, path: str) -> Json | None:
        # The reader has said that the sound itself is dropped; nothing is left without it.
        return None

    # What an assistant said.

    def _said(self, message: Json, path: str) -> tuple[list[str], list[str]]:
        """The texts and the refusals of an assistant's message."""
        texts: list[str] = []
        refusals: list[str] = []
        where = join(path, "content")
        content = message.get("content", "")
        if isinstance(content, str):
            texts.append(self._reader.string(content, where))
        elif isinstance(content, list | tuple):
            for part, place in self._reader.elements(content, where):
                kind = self._reader.kind(part, place)
                self._reader.one_of(kind, join(place, "type"), ("text", "refusal"))
                fields = self._reader.fields(part, place, f"messages[].content[{kind}]")
                text = self._reader.required(fields, kind, place, "a string")
                said = texts if kind == "text" else refusals
                said.append(self._reader.string(text, join(place, kind)))
                if _BREAKPOINT in fields:
                    self._reader.drop(
                        join(place, _BREAKPOINT), "the text of an assistant has no place for it"
                    )
        else:
            raise wrong_type(where, "a string or a list of parts", content)
        if refusal := self._reader.string(message.get("refusal", ""), join(path, "refusal")):
            refusals.append(refusal)
        return texts, refusals

    def _plainly(self, texts: list[str], refusals: list[str], path: str) -> list[str]:
        """The refusals among the texts, for an upstream that knows no refusals in its input."""
        if refusals:
            self._reader.emulate(join(path, "refusal"), "said as plain text")
        return texts + refusals

    def _calls(self, message: Json, path: str) -> list[Json]:
        calls = []
        if "function_call" in message:
            calls.append(self._nameless_call(message["function_call"], join(path, "function_call")))
        where = join(path, "tool_calls")
        for call, place in self._reader.elements(message.get("tool_calls", ()), where):
            calls.append(self._call(call, place))
        return calls

    def _call(self, call: object, path: str) -> Json:
        kind = self._reader.kind(call, path)
        self._reader.one_of(kind, join(path, "type"), ("function", "custom"))
        place = f"messages[assistant].tool_calls[{kind}]"
        fields = self._reader.fields(call, path, place)
        call_id = self._call_id(fields, path)
        where = join(path, kind)
        called = self._reader.fields(
            self._reader.required(fields, kind, path, "an object"), where, f"{place}.{kind}"
        )
        key = "arguments" if kind == "function" else "input"
        given = self._reader.required(called, "name", where, "the name of a tool")
        name = self._reader.name(given, join(where, "name"))
        text = self._reader.required(called, key, where, "a string")
        return self._call_item(
            call_id,
            self._tools.upstream_name(name, join(where, "name")),
            self._reader.string(text, join(where, key)),
            custom=kind == "custom" or self._tools.is_custom(name),
        )

    def _call_id(self, fields: Json, path: str) -> str:
        where = join(path, "id")
        given = self._reader.name(self._reader.required(fields, "id", path, "a string"), where)
        call_id = shortened(given)
        if call_id in self._custom:
            raise InvalidRequest(
                f"{where}: expected an id that no other call has, found {described(given)}"
                " for the second time",
                where,
                "invalid_value",
            )
        if call_id != given:
            self._reader.emulate(where, f"longer than {MAX_NAME} characters: shortened upstream")
        return call_id

    def _nameless_call(self, value: object, path: str) -> Json:
        """A call from before calls had ids."""
        call = self._reader.fields(value, path, "messages[assistant].function_call")
        given = self._reader.required(call, "name", path, "the name of a function")
        name = self._reader.name(given, join(path, "name"))
        arguments = self._reader.required(call, "arguments", path, "a string")
        upstream_name = self._tools.upstream_name(name, join(path, "name"))
        call_id = f"call_{len(self.items)}_{len(self._custom)}"
        while call_id in self._custom:
            call_id += "_"
        self._nameless[name] = call_id
        return self._call_item(
            call_id,
            upstream_name,
            self._reader.string(arguments, join(path, "arguments")),
            custom=False,
        )

    def _call_item(self, call_id: str, name: str, text: str, *, custom: bool) -> Json:
        if custom and not self._dialect.custom_tools:
            # As good as the same thing for a model that reads it.
            custom, text = False, msgspec.json.encode({"input": text}).decode()
        self._custom[call_id] = custom
        if custom:
            return {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": text}
        return {"type": "function_call", "call_id": call_id, "name": name, "arguments": text}

    def _citations(self, message: Json, path: str, length: int) -> list[Json]:
        """The annotations of an assistant's message in the order of the text that they are about.

        Their indexes count the whole text, which has this length.
        """
        result: list[Json] = []
        where = join(path, "annotations")
        for annotation, place in self._reader.elements(message.get("annotations", ()), where):
            if self._reader.kind(annotation, place) != "url_citation":
                self._reader.drop(place, "only citations of URLs have a form in Chat Completions")
                continue
            kind = "messages[assistant].annotations[url_citation]"
            fields = self._reader.fields(annotation, place, kind)
            inner = join(place, "url_citation")
            given = self._reader.required(fields, "url_citation", place, "an object")
            citation = self._reader.fields(given, inner, f"{kind}.url_citation")
            if len(citation) < len(_CITATION):
                self._reader.drop(place, "upstream wants the url, the title and both indexes")
                continue
            values = {
                name: read(self._reader, citation[name], join(inner, name))
                for name, read in _CITATION.items()
            }
            if 0 <= values["start_index"] < length:
                result.append({"type": "url_citation", **values})
            else:
                self._reader.drop(place, "the message has no text there")
        return sorted(result, key=lambda each: each["start_index"])

    # What an assistant thought.

    def _reasoning(self, message: Json, path: str) -> list[tuple[tuple[int, int], Json]]:
        """The reasoning items of an assistant's message, each with its place in the answer.

        The place is the number of characters and of calls that were before it.
        """
        keys = ("reasoning_content", "reasoning")
        texts = {
            key: text
            for key in keys
            if (text := self._reader.string(message.get(key, ""), join(path, key)))
        }
        where = join(path, "reasoning_details")
        details = list(self._reader.elements(message.get("reasoning_details", ()), where))
        if taken := self._detailed(details):
            # They are what the text was made from.
            return taken
        shown = next(iter(texts.values()), "")
        for key, text in texts.items():
            if text != shown:
                self._reader.drop(join(path, key), "there is a reasoning_content as well")
            elif self._dialect.reasoning_history != "text":
                self._reader.drop(join(path, key), self._unwanted)
        if shown and self._dialect.reasoning_history == "text":
            return [((0, 0), _raw_reasoning(shown, f"rs_{len(self.items)}"))]
        return []

    def _detailed(self, details: list[tuple[Any, str]]) -> list[tuple[tuple[int, int], Json]]:
        found: list[tuple[tuple[int, int], Json, str]] = []
        last: object = None
        for detail, where in details:
            kind = self._reader.kind(detail, where)
            key = _DETAIL_KEYS.get(kind)
            if key is None:
                self._reader.drop(where, "no part of a reasoning item of the Responses API")
                continue
            known = f"messages[assistant].reasoning_details[{kind}]"
            fields = self._reader.fields(detail, where, known)
            made_by = self._reader.string(fields.get("format", _FORMAT), join(where, "format"))
            if key not in fields or not made_by.endswith(_FORMAT):
                self._reader.drop(where, "reasoning of another API, which upstream cannot read")
                continue
            place = self._place(fields.get("after", {}), join(where, "after"))
            names: Json = {
                name: self._reader.string(fields[name], join(where, name))
                for name in ("id", "phase")
                if name in fields
            }
            if not found or (names, place) != last or "encrypted_content" in found[-1][1]:
                last = (names, place)
                if "phase" in names:
                    self._reader.one_of(names["phase"], join(where, "phase"), _PHASES)
                found.append((place, {"type": "reasoning", "summary": [], **names}, where))
            text = self._reader.string(fields[key], join(where, key))
            _add_detail(found[-1][1], kind, text)
        result: list[tuple[tuple[int, int], Json]] = []
        for place, item, where in found:
            sent = self._as_taken(item, where, len(self.items) + len(result))
            if sent is None:
                self._reader.drop(where, self._unwanted)
            else:
                result.append((place, sent))
        return result

    def _as_taken(self, item: Json, path: str, position: int) -> Json | None:
        """The reasoning item as upstream takes it, None if it does not."""
        if "phase" in item:
            return self._commentary(item, path)
        form = self._dialect.reasoning_history
        if form == "encrypted" and "encrypted_content" in item:
            if "content" in item:
                # OpenAI refuses it (EasyMetaAu/helm-api pull request 879).
                del item["content"]
                self._reader.emulate(path, "its text is in its encrypted content")
            # OpenAI refuses ids of another form, and does without one (RubyLLM's recordings).
            known = self._dialect.reasoning_ids and str(item.get("id", "")).startswith("rs")
            return item if known else {name: item[name] for name in item if name != "id"}
        parts = item.get("content") or item["summary"]
        if form == "text" and parts:
            text = "\n\n".join(part["text"] for part in parts)
            return _raw_reasoning(text, item.get("id") or f"rs_{position}")
        return None

    def _commentary(self, item: Json, path: str) -> Json:
        """A message of an answer that was shown as reasoning."""
        text = "".join(part["text"] for part in item.get("content", ()))
        message = {"role": "assistant", "content": text}
        if self._dialect.output_messages:
            return {**message, "phase": item["phase"]}
        self._reader.drop(join(path, "phase"), "upstream takes only the plainest of messages")
        return message

    @property
    def _unwanted(self) -> str:
        """Why upstream does not get what the model thought."""
        return {
            "encrypted": "upstream takes reasoning back only if it is encrypted",
            "text": "upstream cannot read encrypted reasoning",
            "none": "it is not known that upstream takes reasoning back",
        }[self._dialect.reasoning_history]

    def _place(self, value: object, path: str) -> tuple[int, int]:
        after = self._reader.fields(value, path, "messages[assistant].reasoning_details[].after")
        content, calls = (
            max(0, self._reader.integer(after.get(name, 0), join(path, name)))
            for name in ("content", "tool_calls")
        )
        return content, calls


class _Answer:
    """The text and the calls of an assistant's message, to be taken in pieces."""

    def __init__(
        self,
        text: str,
        citations: deque[Json],
        refusals: list[str],
        calls: list[Json],
        position: int,
    ) -> None:
        # What makes the ids of its messages differ from those of all others.
        self._position = position
        self._text = text
        self._citations = citations
        self._refusals = refusals
        self._calls = calls
        self._said = 0
        self._called = 0

    def until(self, said: int, called: int) -> list[Json]:
        """The items up to so many characters and calls."""
        items = self._message(min(said, len(self._text)), [])
        if called > self._called:
            items += self._calls[self._called : called]
            self._called = called
        return items

    def rest(self, *, alone: bool) -> list[Json]:
        """The items that are left; if there is nothing else, a message with nothing in it."""
        items = self._message(len(self._text), self._refusals)
        if alone and not items and not self._said:
            items = [{"role": "assistant", "content": ""}]
        return items + self._calls[self._called :]

    def _message(self, end: int, refusals: list[str]) -> list[Json]:
        begin, text = self._said, self._text[self._said : end]
        if not (text or refusals):
            return []
        self._said = end
        cited = []
        while self._citations and self._citations[0]["start_index"] < end:
            cited.append(self._citations.popleft())
        if not (cited or refusals):
            return [{"role": "assistant", "content": text}]
        parts: list[Json] = [{"type": "refusal", "refusal": refusal} for refusal in refusals]
        if text:
            moved = [
                {**each, **{name: each[name] - begin for name in ("start_index", "end_index")}}
                for each in cited
            ]
            said = {"type": "output_text", "text": text, "annotations": moved, "logprobs": []}
            parts.insert(0, said)
        return [
            {
                "type": "message",
                "id": f"msg_{self._position}_{begin}",
                "role": "assistant",
                "status": "completed",
                "content": parts,
            }
        ]


def _raw_reasoning(text: str, item_id: str) -> Json:
    part = {"type": "reasoning_text", "text": text}
    return {"type": "reasoning", "id": item_id, "summary": [], "content": [part]}


def _add_detail(item: Json, kind: str, text: str) -> None:
    if kind == "reasoning.summary":
        item["summary"].append({"type": "summary_text", "text": text})
    elif kind == "reasoning.text":
        item.setdefault("content", []).append({"type": "reasoning_text", "text": text})
    else:
        item["encrypted_content"] = text


_DETAIL_KEYS: Final = {
    "reasoning.summary": "summary",
    "reasoning.text": "text",
    "reasoning.encrypted": "data",
}

# How the formats of reasoning details end that hold items of a Responses API.
_FORMAT: Final = "responses-v1"

_CITATION: Final[Mapping[str, Callable[[Reader, object, str], Any]]] = {
    "url": Reader.string,
    "title": Reader.string,
    "start_index": Reader.integer,
    "end_index": Reader.integer,
}

_PARTS: Final[Mapping[str, Callable[[History, Json, str], Json | None]]] = {
    "text": History._text,
    "image_url": History._image,
    "file": History._file,
    "input_audio": History._audio,
}

_ROLES: Final[Mapping[str, Callable[[History, Json, str], None]]] = {
    "developer": History._read_input,
    "system": History._read_input,
    "user": History._read_input,
    "assistant": History._read_answer,
    "tool": History._read_result,
    "function": History._read_function_result,
}
