"""What a simulated model calls tools with: values that the schema takes."""

from __future__ import annotations

from typing import Any

import jsonschema
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
