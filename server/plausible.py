"""Plausible values for a JSON Schema: what a simulated model calls tools with.

Called by `scenarios`. Deterministic: the same schema and number give the same value. What schemas
of tools and of structured outputs use is understood (types, enum, const, required, items, $ref,
anyOf, oneOf, allOf, bounds, a few formats); a `pattern` is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

# Deeper, only what must be there is: a schema may contain itself.
_MAX_DEPTH: Final = 5
# Deeper still nothing is, for a schema that demands itself has no value at all; and one that does
# so twice would have no end in any depth.
_ABYSS: Final = 40
_MAX_VALUES: Final = 10_000
_MAX_LENGTH: Final = 10_000
# Beyond these, no schema that anybody means has bounds.
_FAR: Final = 1e15
_LEAST_STEP: Final = 1e-9

_BY_NAME: Final = {
    "city": ("Paris", "Rome"),
    "location": ("Paris", "Rome"),
    "place": ("Paris", "Rome"),
    "country": ("France", "Italy"),
    "name": ("Ada", "Grace"),
    "language": ("en", "fr"),
    "currency": ("EUR", "USD"),
    "query": ("deltas on a wire", "wires for deltas"),
    "url": ("https://example.com/a", "https://example.com/b"),
    "path": ("notes.txt", "more.txt"),
    "date": ("2025-01-31", "2025-02-28"),
}
_BY_FORMAT: Final = {
    "date": ("2025-01-31", "2025-02-28"),
    "date-time": ("2025-01-31T12:00:00Z", "2025-02-28T12:00:00Z"),
    "time": ("12:00:00Z", "13:00:00Z"),
    "duration": ("PT1H", "PT2H"),
    "email": ("ada@example.com", "grace@example.com"),
    "uri": ("https://example.com/a", "https://example.com/b"),
    "uuid": ("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "6ba7b811-9dad-41d1-80b4-00c04fd430c8"),
    "ipv4": ("192.0.2.1", "192.0.2.2"),
    "ipv6": ("2001:db8::1", "2001:db8::2"),
    "hostname": ("a.example.com", "b.example.com"),
}


def plausible(schema: object, number: int = 0) -> Any:
    """A value that the schema takes; another `number` gives another value where there is one."""
    root = _Root(schema if isinstance(schema, Mapping) else {})
    return _value(root.schema, root, "", number, 0)


class _Root:
    """What references are looked up in, and how many values there may still be."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self.left = _MAX_VALUES


def _value(node: object, root: _Root, name: str, number: int, depth: int) -> Any:
    root.left -= 1
    if depth > _ABYSS or root.left < 0:
        return None
    if not isinstance(node, Mapping):
        return name
    if "$ref" in node:
        return _value(_referred(node["$ref"], root), root, name, number, depth + 1)
    if "const" in node:
        return node["const"]
    if isinstance(node.get("enum"), list) and node["enum"]:
        return node["enum"][number % len(node["enum"])]
    if isinstance(node.get("allOf"), list):
        return _value(_merged(node, root), root, name, number, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(node.get(key), list) and node[key]:
            choice = _chosen(node[key], deep=depth > _MAX_DEPTH)
            if isinstance(choice, Mapping):
                rest = {k: v for k, v in node.items() if k != key}
                choice = _both(rest, choice)
            return _value(choice, root, name, number, depth + 1)
    kind = _kind(node, depth)
    if kind == "object":
        return _object(node, root, number, depth)
    if kind == "array":
        least = _length(node.get("minItems"), 0)
        count = max(least, 0 if depth > _MAX_DEPTH else 1)
        most = _length(node.get("maxItems"), count)
        fixed = node.get("prefixItems")
        before = fixed if isinstance(fixed, list) else []
        items = node.get("items", {})
        return [
            _value(before[at] if at < len(before) else items, root, name, number + at, depth + 1)
            for at in range(max(min(count, most), min(len(before), most)))
        ]
    if kind in ("integer", "number"):
        return _number(node, number, whole=kind == "integer")
    if kind == "boolean":
        return number % 2 == 0
    return None if kind == "null" else _text(node, name, number)


def _kind(node: Mapping[str, Any], depth: int) -> str:
    kinds = node.get("type")
    if isinstance(kinds, str):
        return kinds
    if isinstance(kinds, list) and kinds:
        if "null" in kinds and depth > _MAX_DEPTH:
            return "null"
        return str(next((each for each in kinds if each != "null"), "null"))
    if "properties" in node:
        return "object"
    return "array" if "items" in node else "string"


def _object(node: Mapping[str, Any], root: _Root, number: int, depth: int) -> Any:
    given, required = node.get("properties"), node.get("required")
    properties = given if isinstance(given, Mapping) else {}
    needed = (
        [each for each in required if isinstance(each, str)] if isinstance(required, list) else []
    )
    optional = [] if depth > _MAX_DEPTH else [each for each in properties if each not in needed]
    # In the order of the schema, as models write them.
    names = [each for each in properties if each in needed or each in optional]
    names += [each for each in needed if each not in properties]
    return {each: _value(properties.get(each, {}), root, each, number, depth + 1) for each in names}


def _number(node: Mapping[str, Any], number: int, *, whole: bool) -> int | float:
    low, above = _bound(node, "minimum", -math.inf), _bound(node, "exclusiveMinimum", -math.inf)
    high, below = _bound(node, "maximum", math.inf), _bound(node, "exclusiveMaximum", math.inf)
    step = _bound(node, "multipleOf", 1)
    step = step if step > _LEAST_STEP else 1

    def fits(count: int) -> bool:
        return low <= count * step <= high and above < count * step < below

    first = 1
    if max(low, above) > -math.inf:
        first = math.ceil(max(low, above) / step)
        first += not fits(first)
    elif min(high, below) < math.inf and not fits(first):
        first = math.floor(min(high, below) / step)
        first -= not fits(first)
    if whole or fits(first):
        value = (first + number if fits(first + number) else first) * step
        return int(value) if whole else value
    # Between two whole numbers.
    return (max(low, above) + min(high, below)) / 2


def _bound(node: Mapping[str, Any], key: str, default: float) -> float:
    """In draft 4, the exclusive bounds are no numbers."""
    value = node.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _FAR:
        return default
    return value


def _text(node: Mapping[str, Any], name: str, number: int) -> str:
    known = _BY_FORMAT.get(str(node.get("format"))) or _BY_NAME.get(name.lower())
    text = known[number % len(known)] if known else (name or "text") + (f" {number}" * (number > 0))
    least = _length(node.get("minLength"), 0)
    return text.ljust(least, ".")[: _length(node.get("maxLength"), max(len(text), least))]


def _chosen(choices: list[Any], *, deep: bool) -> Any:
    """The first choice that is not null; deep inside, null if it may be."""
    nulls = [each for each in choices if isinstance(each, Mapping) and each.get("type") == "null"]
    others = [each for each in choices if each not in nulls]
    if nulls and (deep or not others):
        return nulls[0]
    if deep:
        # What leads back into the schema is put off as long as there is anything else.
        others.sort(key=lambda each: isinstance(each, Mapping) and "$ref" in each)
    return others[0]


def _merged(node: Mapping[str, Any], root: _Root) -> Mapping[str, Any]:
    merged: Mapping[str, Any] = {key: value for key, value in node.items() if key != "allOf"}
    for part in node["allOf"]:
        for _ in range(_MAX_DEPTH):
            if not (isinstance(part, Mapping) and "$ref" in part):
                break
            part = _referred(part["$ref"], root)
        if isinstance(part, Mapping):
            merged = _both(merged, part)
    return merged


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    both = {**one, **other}
    ours, theirs = one.get("properties"), other.get("properties")
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        both["properties"] = {**ours, **theirs}
    ours, theirs = one.get("required"), other.get("required")
    if isinstance(ours, list) and isinstance(theirs, list):
        both["required"] = [*ours, *theirs]
    return both


def _referred(reference: object, root: _Root) -> Any:
    node: Any = root.schema
    for step in str(reference).removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or step not in node:
            return {}
        node = node[step]
    return node


def _length(value: object, default: int) -> int:
    return min(value, _MAX_LENGTH) if isinstance(value, int) and value >= 0 else default
