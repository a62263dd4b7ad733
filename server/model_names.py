"""The names of simulated models: `plain;deltas=200;pace=0.01;provider=xai`.

Called by `scenarios`, which knows what each of them does.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Final

from deltawire.errors import InvalidRequest
from deltawire.testing import PRESETS

_SHOWN: Final = 80
_ANY_STATUS: Final = re.compile(r"status-([45]\d\d)")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may follow the name of a model, each as `;NAME=VALUE`."""

    pace: float | None = None
    """Seconds between two events; without it, those of the server."""
    silence: float | None = None
    """Seconds before the first event; the head of the answer has been sent by then."""
    deltas: int | None = None
    """The text is so many deltas; where it is broken off, so many come."""
    size: int = 6
    """Characters of each of these deltas, at the least."""
    provider: str = "openai"
    """Whose way of writing a stream: a key of `deltawire.testing.PRESETS`."""
    retry: int | None = None
    """Seconds in Retry-After, with an answer that is an error status."""
    code: str | None = None
    """The error code of an answer that fails."""
    key: str = ""
    """Anything: makes a name of one's own, for `rate-limited-once` and to find a request by."""


_RANGES: Final = {
    "pace": (0, 3600),
    "silence": (0, 3600),
    "deltas": (1, 100_000),
    "size": (2, 10_000),
    "retry": (0, 86_400),
}
_WHOLE: Final = frozenset({"deltas", "size", "retry"})


def any_status(name: str) -> int | None:
    """The NNN of `status-NNN`."""
    match = _ANY_STATUS.fullmatch(name)
    return int(match[1]) if match else None


def read_model(model: str, known: Collection[str]) -> tuple[str, Options]:
    """The name of a model without its options, and those. Raises InvalidRequest."""
    name, *given = model.split(";")
    if name not in known and any_status(name) is None:
        names = ", ".join([*known, "status-NNN"])
        raise InvalidRequest(
            f"The model {name[:_SHOWN]!r} does not exist; these do: {names}.",
            "model",
            "model_not_found",
        )
    options: dict[str, Any] = {}
    for each in given:
        key, _, value = each.partition("=")
        options[key] = _option(key, value)
    return name, Options(**options)


_OPTIONS: Final = tuple(each.name for each in fields(Options))


def _option(key: str, value: str) -> Any:
    if key not in _OPTIONS:
        raise InvalidRequest(
            f"model: {key[:_SHOWN]!r} is no option; these are: {', '.join(_OPTIONS)}", "model"
        )
    if key == "provider" and value not in PRESETS:
        raise InvalidRequest(
            f"model: provider: expected one of {', '.join(PRESETS)}, found {value[:_SHOWN]!r}",
            "model",
        )
    if key not in _RANGES:
        return value
    low, high = _RANGES[key]
    kind = int if key in _WHOLE else float
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not low <= number <= high:
        raise InvalidRequest(
            f"model: {key}: expected a number from {low} to {high:,}, found {value[:_SHOWN]!r}",
            "model",
        )
    return number
