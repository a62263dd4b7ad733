"""What the translation of a request costs, beside decoding and encoding its JSON.

Five shapes of a large request, each at 0.5 and at 5 MiB: ten times the request must cost ten times
the time. Figures are ns of CPU per byte of JSON, the least of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.display import progress, table
from benchmarks.verdicts import Verdict, judged
from deltawire import InvalidRequest, to_responses_request

Json = dict[str, Any]

MIB: Final = 1 << 20
# Ten times the request, per byte; the caches of a core are smaller than the larger one.
FLAT_BAR: Final = 2.0


class Size(NamedTuple):
    """How much is measured: bytes of the larger request, rounds."""

    large: int
    rounds: int


FULL: Final = Size(5 * MIB, 5)
QUICK: Final = Size(MIB, 2)


def _request(messages: list[Json], **more: Any) -> Json:
    return {"model": "gpt-5", "messages": messages, **more}


def _turns(size: int) -> Json:
    """Many short turns."""
    turn = [{"role": "user", "content": "How is it?"}, {"role": "assistant", "content": "Fine."}]
    return _request(turn * (size // 90))


def _tool_loop(size: int) -> Json:
    """Many calls, each with its result."""
    messages: list[Json] = [{"role": "user", "content": "Go."}]
    for number in range(size // 230):
        function = {"name": "read", "arguments": '{"path":"/tmp/a"}'}
        calls = [{"id": f"call_{number}", "type": "function", "function": function}]
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": "x" * 20})
    return _request(messages)


def _one_text(size: int) -> Json:
    """One message as large as the request."""
    return _request([{"role": "user", "content": "é" * (size // 2)}])


def _schemas(size: int) -> Json:
    """Many tools with schemas."""
    properties = {f"field_{number}": {"type": "string"} for number in range(30)}
    schema = {"type": "object", "properties": properties}
    tools = [
        {"type": "function", "function": {"name": f"tool_{number}", "parameters": schema}}
        for number in range(size // 1000)
    ]
    return _request([{"role": "user", "content": "Go."}], tools=tools)


def _losses(size: int) -> Json:
    """A loss in every message: the longest of reports."""
    return _request([{"role": "user", "content": "x", "name": "ann"}] * (size // 46))


SHAPES: Final[tuple[Callable[[int], Json], ...]] = (
    _turns,
    _tool_loop,
    _one_text,
    _schemas,
    _losses,
)


def _least(action: Callable[[], object], rounds: int) -> int:
    """The least time of several rounds, in ns of CPU."""
    spent = []
    for _ in range(rounds):
        start = time.process_time_ns()
        action()
        spent.append(time.process_time_ns() - start)
    return min(spent)


def _per_byte(shape: Callable[[int], Json], size: int, rounds: int) -> tuple[float, float, float]:
    """ns per byte of the translation and of its JSON, and ms of the whole translation."""
    given = shape(size)
    data = msgspec.json.encode(given)
    translation = _least(lambda: to_responses_request(given), rounds)
    recoding = _least(lambda: msgspec.json.encode(msgspec.json.decode(data)), rounds)
    return translation / len(data), recoding / len(data), translation / 1e6


def run(*, quick: bool = False, size: Size | None = None) -> dict[str, Any]:
    large, rounds = size or (QUICK if quick else FULL)
    figures: dict[str, dict[str, float]] = {}
    with progress("request", len(SHAPES)) as step:
        for shape in SHAPES:
            name = shape.__name__.strip("_")
            step(name)
            small, _, _ = _per_byte(shape, large // 10, rounds)
            big, recoding, spent = _per_byte(shape, large, rounds)
            figures[name] = {"small": small, "large": big, "json": recoding, "ms": spent}
    table(
        f"a request of {large / MIB:.1f} MiB: ns of CPU per byte",
        ("", "a tenth", "whole", "ratio", "its JSON", "ms"),
        [
            (
                name,
                f"{each['small']:.2f}",
                f"{each['large']:.2f}",
                f"{each['large'] / each['small']:.2f}",
                f"{each['json']:.2f}",
                f"{each['ms']:.1f}",
            )
            for name, each in figures.items()
        ],
    )
    bars = [
        Verdict(
            what=f"{name}: ten times the request, per byte",
            value=each["large"] / each["small"],
            most=FLAT_BAR,
        )
        for name, each in figures.items()
    ]
    return {"shapes": figures, "nesting": _nesting(large), "bars": judged(bars)}


def _nesting(size: int) -> float:
    """ms to refuse a request of nothing but nesting."""
    nested: Any = []
    for _ in range(size):
        nested = [nested]
    chat_request = _request([{"role": "user", "content": "x"}], metadata={"a": nested})

    def refuse() -> None:
        try:
            to_responses_request(chat_request)
        except InvalidRequest:
            return
        raise AssertionError("the request should have been refused")

    spent = _least(refuse, 3) / 1e6
    print(f"{size:,} levels of nesting are refused after {spent:.2f} ms")
    return spent
