"""What the translation of a request costs, beside decoding and encoding its JSON.

Five shapes of a large request, each at 0.5 and at 5 MiB: ten times the request must cost ten times
the time. Figures are ns of CPU per byte of JSON, the least of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from deltawire import InvalidRequest, to_responses_request

Json = dict[str, Any]

MIB: Final = 1 << 20


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


def run(*, quick: bool) -> dict[str, Any]:
    """Print the table; its figures."""
    rounds, large = (2, MIB) if quick else (5, 5 * MIB)
    figures: dict[str, Any] = {}
    print(f"{'ns of CPU per byte':20} {'small':>8} {'large':>8} {'ratio':>7} {'JSON':>8} {'ms':>8}")
    for shape in SHAPES:
        small, _, _ = _per_byte(shape, large // 10, rounds)
        big, recoding, spent = _per_byte(shape, large, rounds)
        name = shape.__name__.strip("_")
        print(f"{name:20} {small:8.2f} {big:8.2f} {big / small:6.2f}x {recoding:8.2f} {spent:8.1f}")
        figures[name] = {"small": small, "large": big, "json": recoding, "ms": spent}
    return {**figures, "nesting": _nesting(large)}


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
    print(f"\n{size} levels of nesting are refused after {spent:.2f} ms")
    return spent
