"""What a simulated model calls tools with: values that the schema takes."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from deltawire.server.plausible import plausible

BOUNDS = st.none() | st.integers(-100, 100)


@given(st.sampled_from(["integer", "number"]), BOUNDS, BOUNDS, st.integers(0, 3))
@example("integer", None, None, 0)
def test_a_number_is_within_whatever_bounds_there_are(
    kind: str, low: int | None, high: int | None, number: int
) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    schema: dict[str, Any] = {"type": kind}
    schema |= {} if low is None else {"minimum": low}
    schema |= {} if high is None else {"maximum": high}
    jsonschema.validate(plausible(schema, number), schema)


KEYWORDS = [
    "type",
    "enum",
    "const",
    "required",
    "properties",
    "items",
    "$ref",
    "$defs",
    "anyOf",
    "oneOf",
    "allOf",
    "minimum",
    "maximum",
    "format",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "prefixItems",
    "additionalProperties",
]
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["string", "object", "array", "integer", "number", "#", "#/$defs/a", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ODD, st.integers(0, 3))
@example({"type": "string", "minLength": 10**18}, 0)
@example({"type": "array", "minItems": 10**18}, 0)
def test_whatever_is_given_for_a_schema_there_is_a_value(schema: object, number: int) -> None:
    msgspec.json.encode(plausible(schema, number))
