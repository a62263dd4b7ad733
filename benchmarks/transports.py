"""What a transport adds to bare httpx reading the same stream: `python -m benchmarks transports`.

A server in a process of its own sends one event of 2,000 in each TCP segment and gives the reader
time to be idle in between, so that each event is a read of its own. Every contender reads it once
in every round, in turn, so that a busy neighbour slows all of them; time is that of this process
(`time.process_time_ns`). httpx has the timeouts that it has by default; the transports have theirs.
The bar is on the frames as they go out, `stream_wire`, and on the chunks
of `stream`, both with all that the core does for an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import httpx
import trio

from benchmarks.core import kinds
from benchmarks.display import progress, table
from benchmarks.verdicts import Verdict, judged, of_pairs
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport

BAR: Final = 1.15
# Longer than any contender takes for an event.
PACE: Final = 0.0003

REQUEST: Final = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

BARE: Final = "bare httpx"


class Size(NamedTuple):
    """How much is measured: deltas of the stream, rounds."""

    deltas: int
    rounds: int


FULL: Final = Size(2000, 12)
QUICK: Final = Size(2000, 4)

Step = Callable[[str], None]


def _answer(peer: socket.socket, segments: list[bytes], pace: float) -> None:
    """Answer every request on this connection with the same segments."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with peer, contextlib.suppress(ConnectionError):
        while head := _request_head(peer):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = head.partition(b"\r\n\r\n")[2]
            while len(body) < length:
                body += peer.recv(65536)
            peer.sendall(HEAD)
            for segment in segments:
                peer.sendall(segment)
                until = time.perf_counter() + pace
                while time.perf_counter() < until:
                    pass


def _request_head(peer: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = peer.recv(65536)
        if not data:
            return b""
        head += data
    return head


def _serve(ports: Any, segments: list[bytes], pace: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports.send(server.getsockname()[1])
        while True:
            peer, _ = server.accept()
            arguments = (peer, segments, pace)
            threading.Thread(target=_answer, args=arguments, daemon=True).start()


@contextlib.contextmanager
def upstream(frames: list[bytes], pace: float = PACE) -> Iterator[str]:
    """The base URL of a server that answers with these frames, each in a chunk of its own."""
    segments = [b"%x\r\n%b\r\n" % (len(frame), frame) for frame in frames] + [b"0\r\n\r\n"]
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(theirs, segments, pace), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def _sync(url: str) -> Iterator[dict[str, Callable[[], int]]]:
    with httpx.Client() as client, SyncTransport(base_url=url) as transport:

        def bare() -> int:
            with client.stream("POST", f"{url}/responses", json=REQUEST) as answer:
                return sum(1 for _ in answer.iter_raw())

        def frames() -> int:
            with transport.stream_wire(REQUEST) as answer:
                return sum(frames.count(b"\n\n") for frames in answer)

        def chunks() -> int:
            with transport.stream(REQUEST) as answer:
                return sum(1 for _ in answer)

        yield {BARE: bare, "stream_wire": frames, "stream": chunks}


async def _async(
    url: str, kind: type[AsyncioTransport] | type[TrioTransport], size: Size, step: Step
) -> dict[str, list[float]]:
    async with httpx.AsyncClient() as client, kind(base_url=url) as transport:

        async def bare() -> int:
            async with client.stream("POST", f"{url}/responses", json=REQUEST) as answer:
                return len([None async for _ in answer.aiter_raw()])

        async def frames() -> int:
            async with transport.stream_wire(REQUEST) as answer:
                return sum([frames.count(b"\n\n") async for frames in answer])

        async def chunks() -> int:
            async with transport.stream(REQUEST) as answer:
                return len([None async for _ in answer])

        contenders = {BARE: bare, "stream_wire": frames, "stream": chunks}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(size.rounds):
            for name, contender in contenders.items():
                step(f"{kind.__name__}, {name}")
                gc.collect()
                start = time.process_time_ns()
                read = await contender()
                times[name].append((time.process_time_ns() - start) / size.deltas / 1000)
                assert read >= size.deltas
        return times


def _sync_times(url: str, size: Size, step: Step) -> dict[str, list[float]]:
    for contenders in _sync(url):
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(size.rounds):
            for name, contender in contenders.items():
                step(f"SyncTransport, {name}")
                gc.collect()
                start = time.process_time_ns()
                read = contender()
                times[name].append((time.process_time_ns() - start) / size.deltas / 1000)
                assert read >= size.deltas
    return times


def run(*, quick: bool = False, size: Size | None = None) -> dict[str, Any]:
    size = size or (QUICK if quick else FULL)
    with (
        upstream(kinds(size.deltas)["text"]) as url,
        progress("transports", 9 * size.rounds) as step,
    ):
        times = {
            "sync": _sync_times(url, size, step),
            "asyncio": asyncio.run(_async(url, AsyncioTransport, size, step)),
            "trio": trio.run(_async, url, TrioTransport, size, step),
        }
    figures = {name: _figures(each) for name, each in times.items()}
    table(
        "us of CPU per event, one event in a TCP segment",
        ("", "min", "median", "x bare"),
        [
            (f"{name}, {what}", f"{one['min']:.1f}", f"{one['median']:.1f}", f"{one['bares']:.2f}")
            for name, each in figures.items()
            for what, one in each.items()
        ],
    )
    bars = [
        Verdict(what=f"{name}, {what}, to bare httpx", value=one["bares"], most=BAR)
        for name, each in figures.items()
        for what, one in each.items()
        if what != BARE
    ]
    return {"unit": "us of CPU per event", **figures, "bars": judged(bars)}


def _figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        what: {
            "min": min(each),
            "median": statistics.median(each),
            "bares": of_pairs(each, times[BARE]),
        }
        for what, each in times.items()
    }
