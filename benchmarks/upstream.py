"""The upstream of the server's benchmarks: `python -m benchmarks.upstream`, a process of its own.

It answers `POST .../responses` and `POST .../chat/completions` with frames made beforehand, a write
for each delta, round robin over its open streams. What an answer is like is the name of the model:

    burst-D-N    D deltas, as fast as they are taken, once N streams are open
    paced-D-MS   D deltas, one every MS milliseconds
    gated-D      one delta; at "go" D more, one after another over all streams; at "go" the end
    idle         one delta, and silence

The first line on standard output is the port; each line on standard input is a "go", which is
answered with a line when all of it is written.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, cast

from benchmarks.core import kinds
from deltawire import ChatStream

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
# Seconds between two deltas after a "go", in which the server goes back to sleep: each delta is a
# wake and a read of its own, however many streams are open.
STEP: Final = 0.0002


@functools.cache
def segments(path: str, deltas: int) -> list[bytes]:
    """The writes of a body: the first delta with what is before it, each other delta, the end."""
    writes, before = [], b""
    for frame in kinds(deltas)["text"]:
        before += frame
        if b'"type":"response.output_text.delta"' in frame:
            writes.append(before)
            before = b""
    writes.append(before)
    assert len(writes) == deltas + 1
    if path.endswith("/chat/completions"):
        machine = ChatStream()
        writes = [machine.translate(each) for each in writes]
    chunks = [b"%x\r\n%b\r\n" % (len(each), each) for each in writes]
    return [*chunks[:-1], chunks[-1] + b"0\r\n\r\n"]


class Stream:
    """One answer on its way."""

    def __init__(self, client: Client, writes: list[bytes]) -> None:
        self.client = client
        self._writes = writes
        self._at = 0

    def step(self) -> bool:
        """Write the next of it; whether there is more."""
        if self.client.socket is None:
            return False
        self.client.socket.write(self._writes[self._at])
        self._at += 1
        return self._at < len(self._writes)


class Rounds:
    """All the streams that are open."""

    def __init__(self) -> None:
        self._waiting: list[Stream] = []
        self._bursting: list[Stream] = []
        self._held: list[Stream] = []
        self._deltas = 0
        self._some = asyncio.Event()

    def begin(self, client: Client, path: str, model: str) -> None:
        kind, *numbers = model.split("-")
        start: Callable[..., None] = getattr(self, f"_{kind}")
        start(client, path, *map(int, numbers))

    def _burst(self, client: Client, path: str, deltas: int, streams: int) -> None:
        self._waiting.append(Stream(client, segments(path, deltas)))
        if len(self._waiting) >= streams:
            self._bursting += self._waiting
            self._waiting.clear()
            self._some.set()

    def _paced(self, client: Client, path: str, deltas: int, pace: int) -> None:
        stream = Stream(client, segments(path, deltas))
        loop = asyncio.get_running_loop()
        at = loop.time()

        def tick() -> None:
            nonlocal at
            if stream.step():
                at += pace / 1000
                loop.call_at(at, tick)

        tick()

    def _gated(self, client: Client, path: str, deltas: int) -> None:
        stream = Stream(client, segments(path, deltas + 1))
        stream.step()
        self._deltas = deltas
        self._held.append(stream)

    def _idle(self, client: Client, path: str) -> None:
        Stream(client, segments(path, 1)).step()

    async def turn(self) -> None:
        """Round robin over the bursts, without end."""
        while True:
            await self._some.wait()
            moved = False
            for stream in list(self._bursting):
                if stream.client.writable:
                    moved = True
                    if not stream.step():
                        self._bursting.remove(stream)
            if not self._bursting:
                self._some.clear()
            # Where nobody takes anything there is nothing to do but wait.
            await asyncio.sleep(0 if moved else 0.001)

    def go(self) -> None:
        """What the gated streams wait for. Nothing else happens meanwhile."""
        for _ in range(self._deltas):
            for stream in self._held:
                stream.step()
                time.sleep(STEP)
        if self._deltas == 0:
            for stream in self._held:
                stream.step()
            self._held.clear()
        self._deltas = 0


class Client(asyncio.Protocol):
    """A connection, on which one request follows the other."""

    def __init__(self, rounds: Rounds) -> None:
        self.socket: asyncio.Transport | None = None
        self.writable = True
        self._rounds = rounds
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self.socket = None
        # Its streams are at their end: `step` sees to it.
        self.writable = True

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) < length:
            return
        self._data = body[length:]
        path = head.split(b" ", 2)[1].decode()
        assert self.socket is not None
        self.socket.write(HEAD)
        self._rounds.begin(self, path, json.loads(body[:length])["model"])


async def main() -> None:
    loop = asyncio.get_running_loop()
    rounds = Rounds()
    server = await loop.create_server(lambda: Client(rounds), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), os.fdopen(0, "rb"))
    turning = loop.create_task(rounds.turn())
    while await told.readline():
        rounds.go()
        print("done", flush=True)
    turning.cancel()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
