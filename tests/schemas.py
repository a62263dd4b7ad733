"""The JSON Schemas of the wire types, in `../shared/spec`: checking by them, and drawing from them.

Where they are absent, every test that needs one is skipped and says so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import strategies as st

from deltawire.fields import Field, fields_of
from wire import SHARED, Json

SPEC = SHARED / "spec"


@functools.cache
def schema(name: str) -> Json:
    path = SPEC / f"{name}.schema.json"
    if not path.is_file():
        pytest.skip("the schemas are not here: ../shared/spec is absent")
    loaded: Json = json.loads(path.read_text())
    return loaded


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name))


def check(name: str, value: object) -> None:
    """Fail unless the value is valid, with the most telling of the reasons."""
    error = jsonschema.exceptions.best_match(validator(name).iter_errors(value))
    assert error is None, f"{error.json_path}: {error.message[:300]}"


def check_body(body: Json) -> None:
    """Fail unless it is a valid Responses request, but for ids of reasoning.

    The schema wants one; some upstreams refuse it, and all take reasoning without.
    """
    given = body["input"]
    assert isinstance(given, list)
    with_ids = [
        {"id": "rs_1", **each} if each.get("type") == "reasoning" else each for each in given
    ]
    check("response_request", {**body, "input": with_ids})


def resolved(node: Json, root: Json) -> Json:
    """A schema without `$ref` and `allOf` at its top."""
    if "$ref" in node:
        return resolved(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    if "allOf" not in node:
        return node
    merged: Json = {"type": "object", "properties": {}, "required": []}
    for part in node["allOf"]:
        each = resolved(part, root)
        merged["properties"] |= each.get("properties", {})
        merged["required"] += each.get("required", [])
    return merged


def variants(node: Json, root: Json) -> Iterator[Json]:
    """The schemas that a value may have, without any `anyOf`."""
    node = resolved(node, root)
    for part in node.get("anyOf", ()):
        yield from variants(part, root)
    if "anyOf" not in node:
        yield node


def properties(name: str) -> Iterator[tuple[str, Field | None]]:
    """Every property of the schema at every depth, and what is decided of it.

    Below a property that is dropped, or of which nothing is decided, nothing is looked at.
    """
    root = schema(name)
    yield from _properties(resolved(root, root), "", root)


def _properties(node: Json, kind: str, root: Json) -> Iterator[tuple[str, Field | None]]:
    for each in variants(node, root):
        if each.get("type") == "array":
            yield from _properties(each["items"], f"{kind}[]", root)
        given = each.get("properties", {})
        tags = [given[key]["enum"] for key in ("role", "type") if "enum" in given.get(key, {})]
        place = kind
        if tags and len(tags[0]) == 1:
            place = f"{kind.removesuffix('[]')}[{tags[0][0]}]"
        for name, below in given.items():
            field = fields_of(place).get(name)
            yield (f"{place}.{name}" if place else name), field
            if field is not None and field.fate != "dropped":
                yield from _properties(below, field.path, root)


# Drawing.

# One in so many objects gets a property that no schema knows.
_STRANGERS = 6


def values(name: str) -> st.SearchStrategy[Any]:
    """Values of the schema, now and then with an unknown property somewhere."""
    root = schema(name)
    return _values(resolved(root, root), root)


def _values(node: Json, root: Json, depth: int = 0) -> st.SearchStrategy[Any]:
    return st.deferred(
        lambda: st.one_of([_value(each, root, depth) for each in variants(node, root)])
    )


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _value(node: Json, root: Json, depth: int) -> st.SearchStrategy[Any]:
    if "enum" in node:
        return st.sampled_from(node["enum"])
    kind = node.get("type")
    if kind == "object":
        return _object(node, root, depth)
    if kind == "array":
        items = _values(node["items"], root, depth + 1)
        return st.lists(items, min_size=node.get("minItems", 0), max_size=4)
    if kind in ("integer", "number"):
        low, high = node.get("minimum", -1000), node.get("maximum", 1000)
        if kind == "integer":
            return st.integers(max(int(low), -(2**63)), min(int(high), 2**63 - 1))
        return st.floats(low, high)
    return {"string": TEXTS, "boolean": st.booleans(), "null": st.none()}[str(kind)]


@st.composite
def _object(draw: st.DrawFn, node: Json, root: Json, depth: int) -> Json:
    given = node.get("properties", {})
    required = node.get("required", ())
    if not given:
        names = TEXTS if node.get("additionalProperties") is not False else st.nothing()
        content = node.get("additionalProperties", True)
        inner = FREE if content is True else _values(content, root, depth + 1)
        return draw(st.dictionaries(names, inner, max_size=3))
    # All of a large object at once would be too much to shrink, and hide one field behind another.
    wanted = [name for name in given if name not in required]
    chosen = draw(st.lists(st.sampled_from(wanted), unique=True, max_size=5)) if wanted else []
    result = {name: draw(_values(given[name], root, depth + 1)) for name in (*required, *chosen)}
    if draw(st.integers(0, _STRANGERS)) == _STRANGERS:
        result[draw(st.sampled_from(["x_top", "stranger", "cache_control"]))] = draw(FREE)
    return result
