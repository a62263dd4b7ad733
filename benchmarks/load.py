"""The clients of the server's benchmarks: `python -m benchmarks.load`, a process of its own.

Each line on standard input is a JSON object {"do": ..., ...}, answered with a line of JSON:

    open    port, path, model, streams, interval: open so many streams, one every `interval` s, and
            wait until each has said something. {"first": [seconds from request to first delta]}
    reach   events: wait until each stream has so many. {}
    finish  wait for the end of each, and hang up. {"events", "bytes"}; it is an error if a stream
            was cut short, or ended without `[DONE]` (Chat) or `response.completed` (Responses)
    drop    hang up on all. {}

An answer {"error": ...} says what went wrong; then all streams are gone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, cast

# Seconds to the next stream that has what is waited for; then the server is said to hang.
PATIENCE: Final = 60.0
ENDS: Final = {"chat": b"data: [DONE]", "responses": b'"type":"response.completed"'}

Json = dict[str, Any]


class Wrong(Exception):
    """A stream is not what it should be."""


class Stream(asyncio.Protocol):
    """One request and its answer, whose body is chunked."""

    def __init__(self, load: Load, path: str, model: str) -> None:
        self.first: float | None = None
        self.events = self.bytes = 0
        self.is_over = False
        self.socket: asyncio.Transport | None = None
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._asked = 0.0
        self._data = b""
        self._has_head = False
        # Bytes that are still to come of the present chunk with its CRLF.
        self._left = 0
        self._tail = b""
        self._has_end = False
        self._end = ENDS["chat" if path.endswith("chat/completions") else "responses"]
        self._request = _request(path, model)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.Transport, transport)
        self.socket.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked = self._loop.time()
        self.socket.write(self._request)

    def connection_lost(self, error: Exception | None) -> None:
        self.socket = None
        if not self.is_over:
            seen = f"{self.events} events" if self._has_head else "no head"
            self._load.fail(f"a stream was cut short after {seen}: {error or 'closed'}")

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        self._data = b""
        if not self._has_head:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._data = data
                return
            if b" 200 " not in head.split(b"\r\n")[0] or b"chunked" not in head.lower():
                self._load.fail(f"answered with {(head + rest)[:300]!r}")
                return
            self._has_head = True
            data = rest
        self._body(data)

    def _body(self, data: bytes) -> None:
        at = 0
        parts: list[bytes] = []
        while at < len(data):
            if self._left == 0:
                line = data.find(b"\r\n", at)
                if line < 0:
                    self._data = data[at:]
                    break
                size = int(data[at:line].split(b";")[0], 16)
                at = line + 2
                if size == 0:
                    self._say(b"".join(parts))
                    self._finish()
                    return
                self._left = size + 2
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            # The last two bytes of a chunk are its CRLF.
            parts.append(piece[: len(piece) - max(0, 2 - self._left)])
        self._say(b"".join(parts))

    def _say(self, said: bytes) -> None:
        if not said:
            return
        self.bytes += len(said)
        window = self._tail + said
        before = self.events
        # A marker that is cut by a read is seen whole with the next one, and none is seen twice.
        self.events += window.count(b"data: ") - self._tail.count(b"data: ")
        self._has_end = self._has_end or self._end in window
        self._tail = window[-64:]
        is_first = self.first is None and b'"delta":' in window
        if is_first:
            self.first = self._loop.time() - self._asked
        if is_first or before < self._load.goal <= self.events:
            self._load.news.set()

    def _finish(self) -> None:
        self.is_over = True
        if not self._has_end:
            self._load.fail(f"a stream ended with {self._tail!r}")
        self._load.news.set()


def _request(path: str, model: str) -> bytes:
    asked: Json = {"model": model, "stream": True}
    if path.endswith("chat/completions"):
        asked["messages"] = [{"role": "user", "content": "Hello"}]
    else:
        asked["input"] = "Hello"
    body = json.dumps(asked).encode()
    return (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer sk-bench\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), len(body), body)
    )


class Load:
    """All the streams of one measurement."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        # Events that each stream is to have.
        self.goal = 0
        # Set when a stream has what may have been waited for.
        self.news = asyncio.Event()
        self._wrong: str | None = None

    async def open(
        self, port: int, path: str, model: str, streams: int, interval: float = 0.0
    ) -> Json:
        loop = asyncio.get_running_loop()
        for _ in range(streams):
            _, stream = await loop.create_connection(
                lambda: Stream(self, path, model), "127.0.0.1", port
            )
            self.streams.append(stream)
            if interval:
                await asyncio.sleep(interval)
        await self._until(lambda: all(each.first is not None for each in self.streams))
        return {"first": [each.first for each in self.streams]}

    async def reach(self, events: int) -> Json:
        self.goal = events
        await self._until(lambda: all(each.events >= events for each in self.streams))
        return {}

    async def finish(self) -> Json:
        await self._until(lambda: all(each.is_over for each in self.streams))
        sums = {
            "events": sum(each.events for each in self.streams),
            "bytes": sum(each.bytes for each in self.streams),
        }
        await self.drop()
        return sums

    async def drop(self) -> Json:
        for stream in self.streams:
            stream.is_over = True
            if stream.socket is not None:
                stream.socket.abort()
        self.streams.clear()
        return {}

    async def _until(self, is_reached: Callable[[], bool]) -> None:
        while True:
            if self._wrong is not None:
                raise Wrong(self._wrong)
            if is_reached():
                return
            self.news.clear()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.news.wait()
            except TimeoutError:
                raise Wrong(f"nothing came for {PATIENCE:.0f} s") from None

    def fail(self, why: str) -> None:
        self._wrong = self._wrong or why
        self.news.set()


def main() -> None:
    loop = asyncio.new_event_loop()
    load = Load()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = loop.run_until_complete(getattr(load, order.pop("do"))(**order))
        except (Wrong, OSError) as error:
            answer = {"error": str(error)}
            loop.run_until_complete(load.drop())
            load = Load()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
