"""What a stream costs does not depend on the clock: calls are counted, and memory that is kept.

The seconds and the bytes of very large streams are shown by `python -m benchmarks scaling`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltawire import ChatStream
from deltawire.server.config import quick
from deltawire.server.on_asyncio import serve
from deltawire.server.service import Service
from deltawire.testing import PRESETS, Answer, FunctionCall, Habits, Item, Reasoning, write_frames
from deltawire.transports import AsyncioTransport

# What one stream costs whatever its length, in calls: its first events.
FIXED = 1000
# What is kept between calls, in bytes; less than the texts of these tests would take.
KEPT = 8 * 1024
# What an open stream of the server keeps, in bytes, and how long the request and the head of
# upstream's answer are of which it should keep nothing.
OPEN = 17 * 1024
LONG = 50_000

KINDS: dict[str, Callable[[str], str | Item]] = {
    "text": lambda words: words,
    "summary": lambda words: Reasoning(words),
    "raw": lambda words: Reasoning(text=words),
    "arguments": lambda words: FunctionCall("f", f'{{"a":"{words}"}}'),
}
kinds = st.sampled_from(sorted(KINDS))
habits = st.sampled_from(sorted(PRESETS))
methods = st.sampled_from(["translate", "receive_data"])
sizes = st.sampled_from([7, 100, 1400, 16384])


def deltas(kind: str, preset: Habits, count: int) -> list[bytes]:
    """The frames of a stream that says so many words, without its end, which says them all again.

    Of providers that send no deltas of this kind there is nothing here.
    """
    frames = write_frames(Answer(KINDS[kind]("word " * count)), preset)
    last = max((at for at, frame in enumerate(frames) if b'"delta":' in frame), default=-1)
    return frames[: last + 1]


def sliced(frames: list[bytes], size: int) -> list[bytes]:
    data = b"".join(frames)
    return [data[at : at + size] for at in range(0, len(data), size)]


def calls(pieces: list[bytes], method: str) -> int:
    """How many functions were called, Python's and C's."""
    take = getattr(ChatStream(), method)
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        for piece in pieces:
            take(piece)
    finally:
        sys.setprofile(None)
    return count


@settings(max_examples=20)
@given(kinds, habits, methods, sizes)
def test_twice_the_stream_makes_at_most_twice_the_calls(
    kind: str, preset: str, method: str, size: int
) -> None:
    once, twice = (
        calls(sliced(deltas(kind, PRESETS[preset], count), size), method) for count in (150, 300)
    )
    assert twice <= 2 * once + FIXED


def kept(pieces: list[bytes], method: str) -> int:
    """How many bytes a stream holds after these pieces."""
    stream = ChatStream()
    take = getattr(stream, method)
    gc.collect()
    tracemalloc.start()
    try:
        for piece in pieces:
            take(piece)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@settings(max_examples=20)
@given(kinds, habits, methods, sizes)
def test_a_stream_keeps_no_more_of_a_longer_answer(
    kind: str, preset: str, method: str, size: int
) -> None:
    pieces = sliced(deltas(kind, PRESETS[preset], 2000), size)
    # What is made once for all streams is made by the first.
    kept(pieces[:10], method)
    assert kept(pieces, method) < KEPT


@pytest.mark.parametrize("method", ["translate", "receive_data"])
def test_what_is_kept_of_a_long_event_goes_with_it(method: str) -> None:
    long = b'data: {"type":"response.output_text.delta","delta":"' + b"x" * 1_000_000
    pieces = sliced([long], 4096)
    assert kept(pieces, method) > len(long)
    # What a call gave out is kept until the next one.
    assert kept([*pieces, b'"}\n\n', b"data: {}\n\n"], method) < KEPT


@pytest.mark.parametrize("text", [b"x", rb"\n", rb"\u00e9"])
@pytest.mark.parametrize("method", ["translate", "receive_data"])
def test_a_long_event_takes_a_few_times_its_own_memory(method: str, text: bytes) -> None:
    long = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % (text * 100_000)
    take = getattr(ChatStream(), method)
    tracemalloc.start()
    try:
        take(long)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(long)


def first_frames(count: int) -> bytes:
    frames = write_frames(Answer(" word" * 9), PRESETS["openai"])
    deltas = [at for at, frame in enumerate(frames) if b'"delta":' in frame]
    return b"".join(frames[: deltas[count - 1] + 1])


async def open_streams(port: int, upstream: socket.socket, count: int) -> list[socket.socket]:
    """So many streams that have said two words, each the answer to a long question."""
    loop = asyncio.get_running_loop()
    question = [{"role": "user", "content": "x" * LONG}]
    body = json.dumps({"model": "m", "stream": True, "messages": question}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    request = head % len(body) + body
    said = first_frames(2)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Long: %b\r\n" % (b"x" * LONG)
    answer += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(said), said)
    sockets = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, request)
        served, _ = await loop.sock_accept(upstream)
        served.setblocking(False)
        received = 0
        while received < LONG:
            received += len(await loop.sock_recv(served, 65536))
        await loop.sock_sendall(served, answer)
        while (await loop.sock_recv(client, 65536)).count(b" word") < 2:
            pass
        sockets += [client, served]
    return sockets


async def kept_by_open_streams(count: int) -> int:
    """Bytes of each, server and transport included."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as upstream, ExitStack() as sockets:
        upstream.setblocking(False)
        url = f"http://127.0.0.1:{upstream.getsockname()[1]}/v1"
        config = quick(url, environ={}, port=0)
        settings = replace(config.server, log="none", shutdown=0.0)
        service = Service(replace(config, server=settings), AsyncioTransport)
        started: asyncio.Future[int] = loop.create_future()
        stop = asyncio.Event()
        server = loop.create_task(serve(service, stop, started=started))
        port = await started
        # What is made once for all streams is made by the first.
        for each in await open_streams(port, upstream, 20):
            sockets.enter_context(each)
        gc.collect()
        tracemalloc.start()
        try:
            opened = await open_streams(port, upstream, count)
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        for each in opened:
            sockets.enter_context(each)
        stop.set()
        await server
        return kept // count


def test_an_open_stream_keeps_little_and_nothing_of_what_was_asked() -> None:
    assert asyncio.run(kept_by_open_streams(100)) < OPEN
