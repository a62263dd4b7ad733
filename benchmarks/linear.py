"""How cost and memory grow: ten times the stream must cost ten times the time and no more memory.

Each case runs in a process of its own, whose peak memory is read at its end; a process that only
imports and makes the input is taken off.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

PIECE: Final = 16384
SLICE: Final = 7


def deltas(count: int) -> Iterator[bytes]:
    """A stream of `count` deltas in 16 KiB pieces, made as it is read."""
    start = b'data: {"type":"response.created","response":{"id":"resp_1","model":"m"}}\n\n'
    end = b'data: {"type":"response.completed","response":{"status":"completed"}}\n\n'
    piece = bytearray(start)
    for number in range(count):
        piece += (
            b"event: response.output_text.delta\n"
            b'data: {"type":"response.output_text.delta","content_index":0,"delta":" word",'
            b'"item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":%d}\n\n' % number
        )
        if len(piece) >= PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + end


def large_event(size: int) -> Iterator[bytes]:
    """One delta of `size` bytes in 7-byte slices."""
    start = b'data: {"type":"response.output_text.delta","delta":"'
    yield start
    for _ in range(size // SLICE):
        yield b"1234567"
    yield b'"}\n\n'
    yield b'data: {"type":"response.completed","response":{"status":"completed"}}\n\n'


CASES: Final = {"deltas": deltas, "event": large_event}


def child(case: str, size: int, method: str) -> None:
    """Run one case and print its figures."""
    from deltawire import ChatStream

    stream = ChatStream()
    take = {"translate": stream.translate, "receive_data": stream.receive_data, "nothing": len}[
        method
    ]
    total = 0
    start = time.process_time_ns()
    for piece in CASES[case](size):
        total += len(piece)
        take(piece)
    spent = time.process_time_ns() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"ns": spent, "bytes": total, "kib": peak, "state": stream.state.value}))


def measure(case: str, size: int, method: str) -> dict[str, Any]:
    """The figures of one case: ns of CPU per byte and KiB of memory, the input's own taken off."""

    def run(method: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.linear", case, str(size), method]
        figures: dict[str, Any] = json.loads(subprocess.check_output(command))
        return figures

    with_it, without = [min((run(each) for _ in range(3)), key=_ns) for each in (method, "nothing")]
    return {
        "ns_per_byte": (with_it["ns"] - without["ns"]) / with_it["bytes"],
        "kib": with_it["kib"] - without["kib"],
        "state": with_it["state"],
    }


def _ns(figures: dict[str, Any]) -> int:
    spent: int = figures["ns"]
    return spent


def run(*, quick: bool) -> dict[str, Any]:
    scale = 10 if quick else 1
    cases = {
        "deltas": (1_000_000 // scale, "deltas, 16 KiB pieces"),
        "event": (10 * 2**20 // scale, "bytes in one event, 7-byte slices"),
    }
    figures: dict[str, Any] = {}
    print(f"{'':56}{'ns/byte':>9}{'KiB':>9}")
    for case, (size, what) in cases.items():
        for method in ("translate", "receive_data"):
            small, large = measure(case, size // 10, method), measure(case, size, method)
            for count, each in ((size // 10, small), (size, large)):
                label = f"{method}, {count:,} {what}"
                print(f"{label:56}{each['ns_per_byte']:9.2f}{each['kib']:9}")
            ratio = large["ns_per_byte"] / small["ns_per_byte"]
            print(f"  ten times the size costs {ratio:.2f}x per byte")
            figures[f"{case}, {method}"] = {"tenth": small, "whole": large, "ratio": ratio}
    return figures


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
