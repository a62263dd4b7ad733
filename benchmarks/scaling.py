"""How costs grow. What is ten times as long is to cost ten times as much and no more memory.

In the core: the length of a stream, the size of one event, the size of the slices it comes in.
Streams and events are made as they are read, in a process of its own for each case, whose peak
memory is read at its end; what it takes to make them is taken off. In the server on asyncio: how
many streams are open, each delta a wake of its own, what the requests cost left out.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import servers
from benchmarks.core import sliced
from benchmarks.display import progress, table
from benchmarks.processes import ROOT, Load, Upstream, bench, cpu
from benchmarks.servers import ASYNCIO, Server
from benchmarks.verdicts import Verdict, judged, of_pairs
from deltawire import ChatStream, State

PIECE: Final = 16384
SLICE: Final = 7
# Deltas or bytes, below which a case is run several times.
SHORT: Final = 20_000
MIB: Final = 1 << 20
METHODS: Final = ("translate", "receive_data")
# Costs are flat as long as the largest is this many times the smallest.
FLAT_BAR: Final = 1.5
# Memory of the longest stream over that of the shortest, in KiB.
KEPT_BAR: Final = 1024.0
# Bytes of memory for a byte of one event.
EVENT_BAR: Final = 4.0


class Size(NamedTuple):
    """How much is measured.

    deltas: the lengths of a stream, the first the one that the others are compared with; rounds of
    each; event: bytes of the largest event; slices: bytes of a read; sliced: deltas of that stream;
    streams: how many are open; events: so many deltas of all together; server_rounds;
    methods: of `ChatStream`.
    """

    deltas: tuple[int, ...]
    rounds: int
    event: int
    slices: tuple[int, ...]
    sliced: int
    streams: tuple[int, ...]
    events: int
    server_rounds: int
    methods: tuple[str, ...] = METHODS


SLICES: Final = (1, 7, 64, 512, 1460, 4096, 16384, 65536)
STREAMS: Final = (1, 10, 100, 1000)
FULL: Final = Size(
    deltas=(10**2, 10**3, 10**4, 10**5, 10**6),
    rounds=3,
    event=10 * MIB,
    slices=SLICES,
    sliced=2000,
    streams=STREAMS,
    events=20_000,
    server_rounds=3,
)
QUICK: Final = FULL._replace(
    deltas=(10**2, 10**3, 10**4, 10**5),
    rounds=1,
    event=MIB // 4,
    sliced=500,
    events=3000,
    server_rounds=1,
)


def deltas(count: int) -> Iterator[bytes]:
    """A stream of `count` deltas in 16 KiB pieces."""
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
    yield b'data: {"type":"response.output_text.delta","delta":"'
    for _ in range(size // SLICE):
        yield b"1234567"
    yield b'"}\n\n'
    yield b'data: {"type":"response.completed","response":{"status":"completed"}}\n\n'


CASES: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "deltas": deltas,
    "event": large_event,
}


def child(case: str, size: int, method: str, times: int) -> None:
    """Run one case so many times; print ns of CPU of one run and KiB of memory that it took."""
    take(case, size // 10, method)
    take(case, size, "nothing")
    before = _peak()
    spent = sum(take(case, size, method) for _ in range(times))
    kept = _peak() - before
    making = sum(take(case, size, "nothing") for _ in range(times))
    print(json.dumps({"ns": (spent - making) / times, "kib": kept}))


def take(case: str, size: int, method: str) -> int:
    """ns of CPU of one run, the making of the input included."""
    stream = ChatStream()
    receive = {"translate": stream.translate, "receive_data": stream.receive_data}.get(method, len)
    start = time.process_time_ns()
    for piece in CASES[case](size):
        receive(piece)
    spent = time.process_time_ns() - start
    assert receive is len or stream.state is State.COMPLETED, stream.state
    return spent


def _peak() -> int:
    """KiB. Not `ru_maxrss`, which begins with that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(case: str, size: int, method: str) -> dict[str, float]:
    """What `child` prints, of a process of its own."""
    # So short a run is mostly the clock's and the caches' own.
    times = max(1, SHORT // size)
    command = [sys.executable, "-m", "benchmarks.scaling", case, str(size), method, str(times)]
    figures: dict[str, float] = json.loads(subprocess.check_output(command, cwd=ROOT))
    return figures


def run(*, quick: bool = False, size: Size | None = None) -> dict[str, Any]:
    size = size or (QUICK if quick else FULL)
    lengths = _grown("deltas", size.deltas, size, 1000)
    _show(f"deltas in a stream, in pieces of {PIECE} bytes", "us", lengths)
    events = _grown("event", (size.event // 10, size.event), size, 1)
    _show(f"bytes in one event, in pieces of {SLICE} bytes", "ns", events)
    slices = _sliced(size)
    _show_slices(size, slices)
    streams = _open_streams(size)
    _show_streams(streams)
    bars = [
        *_flat("deltas in a stream", lengths),
        *_kept(lengths),
        *_flat("bytes in one event", events),
        *_kept_of_event(events),
        Verdict(
            what=f"server: {size.streams[-1]:,} open streams to {size.streams[0]}, per event",
            value=of_pairs(streams[size.streams[-1]], streams[size.streams[0]]),
            most=FLAT_BAR,
        ),
    ]
    figures = {"deltas": lengths, "event": events, "slices": slices, "streams": streams}
    return {"size": size._asdict(), **figures, "bars": judged(bars)}


# By method, by size: a figure of each round.
Grown = dict[str, dict[int, dict[str, list[float]]]]


def _grown(case: str, lengths: tuple[int, ...], size: Size, per: int) -> Grown:
    """What one of so many costs, in ns / per, and KiB."""
    grown: Grown = {
        method: {length: {"cost": [], "kib": []} for length in lengths} for method in size.methods
    }
    with progress(case, size.rounds * len(lengths) * len(size.methods)) as step:
        for _ in range(size.rounds):
            for method in size.methods:
                for length in lengths:
                    step(f"{method}, {length:,}")
                    figures = measure(case, length, method)
                    grown[method][length]["cost"].append(figures["ns"] / length / per)
                    grown[method][length]["kib"].append(figures["kib"])
    return grown


def _flat(what: str, grown: Grown) -> Iterator[Verdict]:
    for method, sizes in grown.items():
        smallest, largest = min(sizes), max(sizes)
        yield Verdict(
            what=f"{method}: {largest:,} {what} to {smallest:,}, per one",
            value=of_pairs(sizes[largest]["cost"], sizes[smallest]["cost"]),
            most=FLAT_BAR,
        )


def _kept(grown: Grown) -> Iterator[Verdict]:
    for method, sizes in grown.items():
        smallest, largest = min(sizes), max(sizes)
        yield Verdict(
            what=f"{method}: memory of {largest:,} deltas over that of {smallest:,}",
            value=max(0.0, min(sizes[largest]["kib"]) - min(sizes[smallest]["kib"])),
            most=KEPT_BAR,
            unit="KiB",
        )


def _kept_of_event(grown: Grown) -> Iterator[Verdict]:
    for method, sizes in grown.items():
        largest = max(sizes)
        yield Verdict(
            what=f"{method}: memory for a byte of an event of {largest:,}",
            value=min(sizes[largest]["kib"]) * 1024 / largest,
            most=EVENT_BAR,
            unit="bytes",
        )


def _show(what: str, unit: str, grown: Grown) -> None:
    table(
        f"{what}: {unit} of CPU for one",
        ("", "min", "median", "x first", "KiB"),
        [
            (
                f"{method}, {size:,}",
                f"{min(figures['cost']):.2f}",
                f"{statistics.median(figures['cost']):.2f}",
                f"{of_pairs(figures['cost'], sizes[min(sizes)]['cost']):.2f}",
                f"{min(figures['kib']):.0f}",
            )
            for method, sizes in grown.items()
            for size, figures in sizes.items()
        ],
    )


def _sliced(size: Size) -> dict[str, dict[int, list[float]]]:
    """us of CPU per event by method and by the size of the slices."""
    data = b"".join(deltas(size.sliced))
    costs: dict[str, dict[int, list[float]]] = {
        method: {slice_size: [] for slice_size in size.slices} for method in size.methods
    }
    with progress("slices", size.rounds * len(size.methods) * len(size.slices)) as step:
        for _ in range(size.rounds):
            for slice_size in size.slices:
                pieces = sliced(data, slice_size)
                for method in size.methods:
                    step(f"{method}, {slice_size} bytes")
                    gc.collect()
                    receive = getattr(ChatStream(), method)
                    start = time.process_time_ns()
                    for piece in pieces:
                        receive(piece)
                    spent = time.process_time_ns() - start
                    costs[method][slice_size].append(spent / size.sliced / 1000)
    return costs


def _show_slices(size: Size, costs: dict[str, dict[int, list[float]]]) -> None:
    table(
        f"a stream of {size.sliced:,} deltas of some 190 bytes, by the bytes of a slice:"
        " us of CPU per event",
        ("", *(f"{piece:,}" for piece in size.slices)),
        [
            (method, *(f"{statistics.median(each):.2f}" for each in pieces.values()))
            for method, pieces in costs.items()
        ],
    )


def _open_streams(size: Size) -> dict[int, list[float]]:
    """us of server CPU per delta by the number of open streams."""
    costs: dict[int, list[float]] = {streams: [] for streams in size.streams}
    steps = size.server_rounds * len(size.streams)
    with tempfile.TemporaryDirectory() as name, progress("server", steps) as step:
        folder = Path(name)
        with (
            bench(folder) as (upstream, load),
            servers.started([ASYNCIO], upstream.port, folder, []) as (running, _),
        ):
            server = running[ASYNCIO.name]
            _gated(server, upstream, load, 1, 100)
            for _ in range(size.server_rounds):
                for streams in size.streams:
                    step(f"{streams:,} open streams")
                    per_stream = max(1, size.events // streams)
                    costs[streams].append(_gated(server, upstream, load, streams, per_stream))
    return costs


def _gated(server: Server, upstream: Upstream, load: Load, streams: int, per_stream: int) -> float:
    """us of CPU per delta while so many streams are open, without what opening and ending cost."""
    asked = {"port": server.port, "path": server.path, "streams": streams}
    load.do("open", **asked, model=f"gated-{per_stream}")
    before = cpu(server.pid)
    # The first delta, and the others: an event each.
    load.order("reach", events=1 + per_stream)
    upstream.go()
    load.answer()
    spent = cpu(server.pid) - before
    load.order("finish")
    upstream.go()
    load.answer()
    return spent / streams / per_stream / 1000


def _show_streams(costs: dict[int, list[float]]) -> None:
    first = next(iter(costs.values()))
    table(
        "server on asyncio, a wake for each delta: us of CPU per delta",
        ("open streams", "min", "median", "x first"),
        [
            (
                f"{streams:,}",
                f"{min(each):.1f}",
                f"{statistics.median(each):.1f}",
                f"{of_pairs(each, first):.2f}",
            )
            for streams, each in costs.items()
        ],
    )


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
