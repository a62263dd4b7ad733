"""Reading a chat request that anybody may have sent: checked, complete, and in bounded stack.

A `Reader` hands out the values of a request field by field, each of the type that was expected;
anything else is an `InvalidRequest` that names the place, what was found and what was expected.
Strings and numbers of an application's own types (an `Enum` of roles) are handed out as what they
stand for.
What nobody asks for is in the `report`, because `fields` says what may be asked for at all. Which
values become what is decided in `request` and `history`, its only callers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from deltawire.errors import InvalidRequest
from deltawire.fields import fields_of

Json = dict[str, Any]

# Deeper than any schema that a model could follow, and what serde_json, which many gateways and
# servers parse with, takes by default.
MAX_DEPTH: Final = 128

_SHOWN: Final = 40


class ReportEntry(Struct, frozen=True):
    """Something of the chat request that is not in the Responses request as it was asked for.

    `dropped`: it is not there. `adjusted`: it is there with another meaning. `emulated`: it is
    not there, or in another form, and is made good otherwise; nothing is lost.
    """

    path: str
    action: Literal["dropped", "adjusted", "emulated"]
    reason: str


class Reader:
    """The values of one chat request, and what could not be carried over of them.

    Where a path is called for, it is the one that the client would write: `messages[0].content`.
    """

    __slots__ = ("report",)

    def __init__(self) -> None:
        self.report: list[ReportEntry] = []

    def drop(self, path: str, reason: str) -> None:
        """Report a loss."""
        self.report.append(ReportEntry(path, "dropped", reason))

    def adjust(self, path: str, reason: str) -> None:
        """Report that something means less, or something else, than was asked for."""
        self.report.append(ReportEntry(path, "adjusted", reason))

    def emulate(self, path: str, reason: str) -> None:
        """Report that something is made good in another way."""
        self.report.append(ReportEntry(path, "emulated", reason))

    def fields(self, value: object, path: str, kind: str) -> Json:
        """The fields of an object that are to be dealt with: known, not null, not dropped.

        `kind` is the place in `fields` whose entries the object may have; the rest is reported.
        """
        known = fields_of(kind)
        result = {}
        for name, content in self.mapping(value, path).items():
            if content is None:
                # A null is what clients write for a field that they do not use.
                continue
            field = known.get(name)
            if field is None:
                self.drop(join(path, _shown(name)), "unknown field")
            elif field.fate == "dropped":
                self.drop(join(path, name), field.note)
            else:
                result[name] = content
        return result

    def mapping(self, value: object, path: str) -> Mapping[str, Any]:
        """An object."""
        if not isinstance(value, Mapping):
            raise wrong_type(path, "an object", value)
        for name in value:
            if not isinstance(name, str):
                raise InvalidRequest(
                    f"{path or 'the request'}: expected names that are strings,"
                    f" found {described(name)}",
                    path or None,
                    "invalid_type",
                )
        return value

    def elements(self, value: object, path: str) -> Iterator[tuple[Any, str]]:
        """The elements of a list, each with its path."""
        if not isinstance(value, list | tuple):
            raise wrong_type(path, "a list", value)
        return ((element, f"{path}[{at}]") for at, element in enumerate(value))

    def string(self, value: object, path: str) -> str:
        """A string that can be sent: valid Unicode."""
        if not isinstance(value, str):
            raise wrong_type(path, "a string", value)
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"{path}: expected valid Unicode, found half of a surrogate pair"
                    f" at character {error.start}",
                    path,
                    "invalid_value",
                ) from None
        return value if type(value) is str else str.__str__(value)

    def name(self, value: object, path: str) -> str:
        """A string that is not empty."""
        name = self.string(value, path)
        if not name:
            raise InvalidRequest(
                f"{path}: expected a string that is not empty, found an empty one",
                path,
                "invalid_value",
            )
        return name

    def one_of(self, value: object, path: str, choices: tuple[str, ...]) -> str:
        """One of several strings."""
        for choice in choices:
            if isinstance(value, str) and choice == value:
                return choice
        expected = ", ".join(repr(choice) for choice in choices)
        raise InvalidRequest(
            f"{path}: expected one of {expected}, found {described(value)}",
            path,
            "invalid_value" if isinstance(value, str) else "invalid_type",
        )

    def boolean(self, value: object, path: str) -> bool:
        """A boolean."""
        if not isinstance(value, bool):
            raise wrong_type(path, "a boolean", value)
        return value

    def integer(self, value: object, path: str) -> int:
        """An integer, also where it is written `100.0`."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(path, "an integer", value)
        return self._fitting(value, path)

    def number(self, value: object, path: str) -> int | float:
        """A number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(path, "a number", value)
        if isinstance(value, int):
            return self._fitting(value, path)
        if not math.isfinite(value):
            raise wrong_type(path, "a finite number", value)
        return float(value)

    def _fitting(self, value: int, path: str) -> int:
        if not -(2**63) <= value < 2**64:
            raise wrong_type(path, "an integer of at most 64 bits", value)
        return int(value)

    def required(self, fields: Mapping[str, Any], name: str, path: str, expected: str) -> Any:
        """The field of that name, which has to be there."""
        if name not in fields:
            where = join(path, name)
            raise InvalidRequest(
                f"{where}: expected {expected}, found nothing", where, "missing_required_parameter"
            )
        return fields[name]

    def kind(self, value: object, path: str, key: str = "type") -> str:
        """The `type` of an object, or whatever else says what it is."""
        kind = self.required(self.mapping(value, path), key, path, f"the {key}")
        return self.name(kind, join(path, key))

    def free_object(self, value: object, path: str) -> Json:
        """A copy of an object whose content is the client's own, such as a JSON Schema."""
        self.mapping(value, path)
        copied: Json = self.free(value, path)
        return copied

    def free(self, value: object, path: str, depth: int = 1) -> Any:
        """A copy of any JSON value."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.string(value, path)
        if isinstance(value, int | float):
            return self.number(value, path)
        if depth > MAX_DEPTH:
            raise InvalidRequest(
                f"{path}: expected at most {MAX_DEPTH} levels of nesting, found more",
                path,
                "invalid_value",
            )
        # The path is that of the value as a whole: one of every level would cost as much as
        # the value has levels, for each of its values.
        if isinstance(value, list | tuple):
            return [self.free(element, path, depth + 1) for element in value]
        if isinstance(value, Mapping):
            return {
                self.string(name, path): self.free(content, path, depth + 1)
                for name, content in self.mapping(value, path).items()
            }
        raise wrong_type(path, "a JSON value", value)


def join(path: str, name: str) -> str:
    """The path of a field of the object at `path`."""
    return f"{path}.{name}" if path else name


def described(value: object) -> str:
    """What a value is, for a message: its JSON type, and the value where it is a short one."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the string '{_shown(value)}'"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int):
        # The digits of a very long one would take a while.
        return f"the number {value}" if value.bit_length() <= 64 else "a very large number"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a Python {type(value).__name__}"


def wrong_type(path: str, expected: str, value: object) -> InvalidRequest:
    """The error for a value of another JSON type than was expected."""
    return InvalidRequest(
        f"{path or 'the request'}: expected {expected}, found {described(value)}",
        path or None,
        "invalid_type",
    )


def _shown(text: str) -> str:
    """As much of a string as a message, a header or a log may repeat, and in a form that it may."""
    kept = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return kept if kept.isprintable() else repr(kept)[1:-1]
