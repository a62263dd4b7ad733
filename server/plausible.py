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
# Deeper still nothing is, for a schema that demands itself has no value at all.
_ABYSS: Final = 40

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
    root = schema if isinstance(schema, Mapping) else {}
    return _value(root, root, "", number, 0)


def _value(node: object, root: Mapping[str, Any], name: str, number: int, depth: int) -> Any:
    if depth > _ABYSS:
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
        least = _integer(node.get("minItems"), 0)
        count = max(least, 0 if depth > _MAX_DEPTH else 1)
        most = _integer(node.get("maxItems"), count)
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


def _object(node: Mapping[str, Any], root: Mapping[str, Any], number: int, depth: int) -> Any:
    given, required = node.get("properties"), node.get("required")
    properties = given if isinstance(given, Mapping) else {}
    needed = [each for each in required if isinstance(each, str)] if required else []
    optional = [] if depth > _MAX_DEPTH else [each for each in properties if each not in needed]
    # In the order of the schema, as models write them.
    names = [each for each in properties if each in needed or each in optional]
    names += [each for each in needed if each not in properties]
    return {each: _value(properties.get(each, {}), root, each, number, depth + 1) for each in names}


def _number(node: Mapping[str, Any], number: int, *, whole: bool) -> int | float:
    step = node.get("multipleOf") or 1
    low = node.get("minimum", -math.inf)
    above = node.get("exclusiveMinimum", -math.inf)
    high = node.get("maximum", math.inf)
    below = node.get("exclusiveMaximum", math.inf)
    least, most = max(low, above), min(high, below)
    if least > -math.inf:
        count = math.ceil(least / step)
    else:
        count = 1 if most == math.inf else min(1, math.floor(most / step))
    if least > -math.inf and count * step <= above:
        count += 1
    if most < math.inf and count * step >= below:
        count -= 1
    further = count + number
    fits = further * step <= high and further * step < below
    value = (further if fits else count) * step
    if not whole and not least <= value <= most:
        value = (least + most) / 2
    return int(value) if whole else value


def _text(node: Mapping[str, Any], name: str, number: int) -> str:
    known = _BY_FORMAT.get(str(node.get("format"))) or _BY_NAME.get(name.lower())
    text = known[number % len(known)] if known else (name or "text") + (f" {number}" * (number > 0))
    least = _integer(node.get("minLength"), 0)
    return text.ljust(least, ".")[: _integer(node.get("maxLength"), max(len(text), least))]


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


def _merged(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
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
    if "properties" in one and "properties" in other:
        both["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        both["required"] = [*one["required"], *other["required"]]
    return both


def _referred(reference: object, root: Mapping[str, Any]) -> Any:
    node: Any = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or step not in node:
            return {}
        node = node[step]
    return node


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) else default
