"""The client's tools: how they are offered upstream, and how a call of them is recognized.

`Tools` is what one request offers and calls, `ClientTools` what `ChatStream` needs to know of it.
Chat Completions wraps the definition of a tool in a key of its own (`{"type": "function",
"function": {...}}`), the Responses API has it flat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from deltawire.dialects import Dialect
from deltawire.errors import InvalidRequest
from deltawire.reading import Json, Reader, described, join, wrong_type

# OpenAI's limit for names of functions, custom tools and calls.
MAX_NAME: Final = 64
# Of sha256, in hexadecimal digits: enough that no two names of a request have the same.
_DIGEST: Final = 12

_NO_CUSTOM: Final = "upstream knows no tools that take free text"
_NOTHING_LEFT: Final = "upstream gets none of the tools to choose from"


_NO_NAMES: Final[frozenset[str]] = frozenset()


class ClientTools(Set[str]):
    """The names of the client's custom tools, and what the client calls its tools.

    As a set it holds the custom tools' names as upstream knows them; a `custom_tool_call` of any
    other name is the provider's own.
    """

    __slots__ = (
        "_client_names",
        "_custom",
    )

    def __init__(
        self, custom: Iterable[str] = (), client_names: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        # An empty set is as large as one of a few.
        self._custom = frozenset(custom) or _NO_NAMES
        self._client_names = client_names

    def __contains__(self, name: object) -> bool:
        return name in self._custom

    def __iter__(self) -> Iterator[str]:
        return iter(self._custom)

    def __len__(self) -> int:
        return len(self._custom)

    def client_name(self, name: str) -> str:
        """The name that the client gave the tool which upstream knows by this one."""
        return self._client_names.get(name, name)

    def __repr__(self) -> str:
        return f"ClientTools({sorted(self._custom)}, {dict(self._client_names)})"


def shortened(text: str) -> str:
    """`text`, or if that is too long its beginning and a digest of it: the same every time."""
    if len(text) <= MAX_NAME:
        return text
    digest = sha256(text.encode()).hexdigest()[:_DIGEST]
    return f"{text[: MAX_NAME - _DIGEST - 1]}_{digest}"


class Tools:
    """The tools of one request."""

    __slots__ = (
        "_client_names",
        "_custom",
        "_dialect",
        "_functions",
        "_reader",
        "sent",
    )

    def __init__(self, reader: Reader, dialect: Dialect) -> None:
        self._reader = reader
        self._dialect = dialect
        self._functions: set[str] = set()
        self._custom: set[str] = set()
        # Upstream's name -> the client's, of all tools that have a name.
        self._client_names: dict[str, str] = {}
        self.sent: list[Json] = []
        """The definitions for upstream."""

    @property
    def client_tools(self) -> ClientTools:
        """What `ChatStream` needs to know of these tools."""
        renamed = {sent: name for sent, name in self._client_names.items() if sent != name}
        return ClientTools(map(shortened, self._custom), renamed)

    def is_custom(self, name: str) -> bool:
        """Whether a call of this name is one of a custom tool, though it does not say so.

        Answers show all calls as `function`: the schema of a chunk knows no other type.
        """
        return name in self._custom and name not in self._functions

    def upstream_name(self, value: object, path: str) -> str:
        """The name to send for a tool that the client calls `value`."""
        name = self._reader.name(value, path)
        sent = shortened(name)
        known = self._client_names.setdefault(sent, name)
        if known != name:
            raise InvalidRequest(
                f"{path}: expected a name that is not what another one is shortened to,"
                f" found {described(name)}",
                path,
                "invalid_value",
            )
        if sent != name:
            self._reader.emulate(
                path, f"longer than {MAX_NAME} characters: shortened upstream, whole in the answer"
            )
        return sent

    # Definitions.

    def offer(self, value: object, path: str) -> None:
        """Take in the list of tools."""
        for tool, where in self._reader.elements(value, path):
            kind = self._reader.kind(tool, where)
            if kind == "function":
                self._offer_function(tool, where)
            elif kind == "custom":
                self._offer_custom(tool, where)
            else:
                # A tool that the provider runs: web_search, file_search, mcp and so on.
                self.sent.append(self._reader.free_object(tool, where))

    def offer_functions(self, value: object, path: str) -> None:
        """Take in the list of functions, which is how tools were offered before there were any."""
        for function, where in self._reader.elements(value, path):
            self._offer_definition(self._reader.fields(function, where, "functions[]"), where)
        self._reader.emulate(path, "offered as tools; the answer calls them in tool_calls")

    def offer_web_search(self, value: object, path: str) -> None:
        """Take in the options of the search that some chat models do before they answer."""
        fields = self._reader.fields(value, path, path)
        if self._dialect.web_search_tool is None:
            self._reader.drop(path, "upstream has no web search")
            return
        if any(tool["type"].startswith("web_search") for tool in self.sent):
            self._reader.drop(path, "there is a web search among the tools already")
            return
        tool: Json = {"type": self._dialect.web_search_tool}
        refused = self._dialect.refusal("tools[web_search].search_context_size")
        if "search_context_size" in fields and refused is not None:
            self._reader.drop(join(path, "search_context_size"), refused)
        elif "search_context_size" in fields:
            where = join(path, "search_context_size")
            tool["search_context_size"] = self._reader.one_of(
                fields["search_context_size"], where, ("low", "medium", "high")
            )
        if "user_location" in fields:
            where = join(path, "user_location")
            tool["user_location"] = self._location(fields["user_location"], where)
        self.sent.append(tool)

    def _location(self, value: object, path: str) -> Json:
        fields = self._reader.fields(value, path, path)
        place = self._reader.required(fields, "approximate", path, "an object")
        kind = fields.get("type", "approximate")
        self._reader.one_of(kind, join(path, "type"), ("approximate",))
        where = join(path, "approximate")
        names = self._reader.fields(place, where, where)
        return {
            "type": "approximate",
            **{name: self._reader.string(text, join(where, name)) for name, text in names.items()},
        }

    def _offer_function(self, tool: object, path: str) -> None:
        fields = self._reader.fields(tool, path, "tools[function]")
        function = self._reader.required(fields, "function", path, "an object")
        where = join(path, "function")
        self._offer_definition(
            self._reader.fields(function, where, "tools[function].function"), where
        )

    def _offer_definition(self, fields: Json, path: str) -> None:
        given = self._reader.required(fields, "name", path, "the name of the function")
        name = self._reader.name(given, join(path, "name"))
        tool: Json = {"type": "function", "name": self.upstream_name(name, join(path, "name"))}
        self._functions.add(name)
        self._describe(tool, fields, path)
        # A function without parameters takes none: so OpenAI's reference.
        tool["parameters"] = {"type": "object", "properties": {}}
        if "parameters" in fields:
            where = join(path, "parameters")
            tool["parameters"] = self._reader.free_object(fields["parameters"], where)
        # The Responses API takes no word for true, Chat Completions for false.
        tool["strict"] = self._reader.boolean(fields.get("strict", False), join(path, "strict"))
        self.sent.append(tool)

    def _offer_custom(self, tool: object, path: str) -> None:
        fields = self._reader.fields(tool, path, "tools[custom]")
        definition = self._reader.required(fields, "custom", path, "an object")
        where = join(path, "custom")
        fields = self._reader.fields(definition, where, "tools[custom].custom")
        given = self._reader.required(fields, "name", where, "the name of the tool")
        name = self._reader.name(given, join(where, "name"))
        sent: Json = {"type": "custom", "name": self.upstream_name(name, join(where, "name"))}
        self._custom.add(name)
        if not self._dialect.custom_tools:
            self._reader.drop(path, _NO_CUSTOM)
            return
        self._describe(sent, fields, where)
        if "format" in fields:
            sent["format"] = self._format(fields["format"], join(where, "format"))
        self.sent.append(sent)

    def _describe(self, tool: Json, fields: Json, path: str) -> None:
        if "description" in fields:
            where = join(path, "description")
            tool["description"] = self._reader.string(fields["description"], where)

    def _format(self, value: object, path: str) -> Json:
        kind = self._reader.kind(value, path)
        self._reader.one_of(kind, join(path, "type"), ("text", "grammar"))
        place = f"tools[custom].custom.format[{kind}]"
        fields = self._reader.fields(value, path, place)
        if kind == "text":
            return {"type": "text"}
        grammar = self._reader.required(fields, "grammar", path, "an object")
        where = join(path, "grammar")
        rules = self._reader.fields(grammar, where, f"{place}.grammar")
        return {
            "type": "grammar",
            **{
                name: self._reader.string(
                    self._reader.required(rules, name, where, "a string"), join(where, name)
                )
                for name in ("syntax", "definition")
            },
        }

    # The choice among them.

    def choice(self, value: object, path: str) -> str | Json | None:
        """The tool choice for upstream, None if there is nothing left to choose."""
        if isinstance(value, str):
            word = self._reader.one_of(value, path, ("none", "auto", "required"))
            if word == "required" and self._custom and not self.sent:
                self._reader.drop(path, _NOTHING_LEFT)
                return None
            return word
        if not isinstance(value, Mapping):
            raise wrong_type(path, "a string or an object", value)
        kind = self._reader.kind(value, path)
        if kind == "allowed_tools":
            return self._allowed(value, path)
        return self._flat(value, path)

    def function_choice(self, value: object, path: str) -> str | Json:
        """The tool choice for upstream, from how functions were chosen before there were tools."""
        if isinstance(value, str):
            return self._reader.one_of(value, path, ("none", "auto"))
        fields = self._reader.fields(value, path, "function_call")
        name = self._reader.required(fields, "name", path, "the name of a function")
        return {"type": "function", "name": self.upstream_name(name, join(path, "name"))}

    def _named(self, value: object, kind: str, path: str) -> Json:
        place = f"tool_choice[{kind}]"
        fields = self._reader.fields(value, path, place)
        where = join(path, kind)
        named = self._reader.required(fields, kind, path, "an object")
        names = self._reader.fields(named, where, f"{place}.{kind}")
        name = self._reader.required(names, "name", where, "the name of a tool")
        return {"type": kind, "name": self.upstream_name(name, join(where, "name"))}

    def _allowed(self, value: object, path: str) -> Json | None:
        place = "tool_choice[allowed_tools]"
        fields = self._reader.fields(value, path, place)
        where = join(path, "allowed_tools")
        allowed = self._reader.fields(
            self._reader.required(fields, "allowed_tools", path, "an object"),
            where,
            f"{place}.allowed_tools",
        )
        mode = self._reader.required(allowed, "mode", where, "'auto' or 'required'")
        mode = self._reader.one_of(mode, join(where, "mode"), ("auto", "required"))
        tools = self._reader.required(allowed, "tools", where, "a list of tools")
        sent = [
            flat
            for tool, place in self._reader.elements(tools, join(where, "tools"))
            if (flat := self._flat(tool, place)) is not None
        ]
        if tools and not sent:
            self._reader.drop(path, _NOTHING_LEFT)
            return None
        return {"type": "allowed_tools", "mode": mode, "tools": sent}

    def _flat(self, tool: object, path: str) -> Json | None:
        """A reference to a tool, without the key that it is wrapped in; None for one not sent."""
        kind = self._reader.kind(tool, path)
        if kind == "custom" and not self._dialect.custom_tools:
            self._reader.drop(path, _NO_CUSTOM)
            return None
        if kind in ("function", "custom"):
            return self._named(tool, kind, path)
        return self._reader.free_object(tool, path)
