"""What slow and idle clients cost the server, and those beside them: `python -m benchmarks slow`.

For each transport `deltawire serve` runs in a process of its own, as does an upstream that answers
as fast as it is read. A crowd comes, from a third process: clients that ask for a stream of some
7 MB and read it at 1 KiB/s, as many that read its beginning and then nothing, and idle ones, whose
connection is kept open after a request. As long as they are there another client makes streamed
requests, one after the other, each of which must come whole. Then all leave, and a second crowd
comes for a shorter time: what it adds to the peak of the first is what was not given back.

Memory is that of the server's process, from /proc. The receive buffers of the slow clients are
small, so that what they do not read is the server's to hold. What the system holds for all sockets
is mostly the upstream's own. The server has its defaults but for `limits.connections`: of 1,000 the
crowd would be all, and whoever comes after it would be told 503. Given up are those that took less
than `limits.buffer` in the time of `server.write_stall`; 1 KiB/s is just below that.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.processes import raise_file_limit
from deltawire.testing import OPENAI, Answer, write_frames

TransportName = Literal["asyncio", "trio", "sync"]
TRANSPORTS: Final[tuple[TransportName, ...]] = ("asyncio", "trio", "sync")

LONG: Final = 40_000
"""Deltas of what the slow ones ask for."""
SHORT: Final = 200
_SEGMENT: Final = 65536
_RECEIVE_BUFFER: Final = 4096
_READ_A_SECOND: Final = 1024
# Seconds between two looks at the memory.
_LOOK: Final = 0.2
_LIMIT: Final = 60.0
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_BACKLOG: Final = 4096


# The upstream.


def _segments(deltas: int) -> list[bytes]:
    body = b"".join(write_frames(Answer(" word" * deltas), OPENAI))
    pieces = [body[at : at + _SEGMENT] for at in range(0, len(body), _SEGMENT)]
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]


def _answer(peer: socket.socket, answers: dict[bytes, list[bytes]]) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with peer, contextlib.suppress(ConnectionError):
        received = b""
        while data := peer.recv(65536):
            received += data
            head, end, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            if not end or length is None or len(body) < int(length[1]):
                continue
            received = b""
            (name,) = (name for name in answers if b'"%b"' % name in body)
            peer.sendall(_HEAD)
            for segment in answers[name]:
                peer.sendall(segment)


def _upstream(ports: Any) -> None:
    answers = {b"long": _segments(LONG), b"short": _segments(SHORT)}
    threading.stack_size(256 * 1024)
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as server:
        ports.send(server.getsockname()[1])
        while True:
            peer, _ = server.accept()
            threading.Thread(target=_answer, args=(peer, answers), daemon=True).start()


# The crowd.


class _Crowd:
    """So many of each; it says when all are there, and leaves when it is told."""

    def __init__(self, port: int, slow: int, idle: int) -> None:
        self._port = port
        self._slow = slow
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._there = 0
        self._hung_up: dict[str, int] = {"slow": 0, "stopped": 0, "idle": 0}
        self._refused = 0

    async def come_and_go(self, pipe: Any) -> None:
        reading = self._slow // 2
        kinds = ["slow"] * reading + ["stopped"] * (self._slow - reading) + ["idle"] * self._idle
        tasks = [asyncio.create_task(self._visit(kind)) for kind in kinds]
        while self._there + self._refused < len(tasks):
            await asyncio.sleep(0.05)
        pipe.send({"there": self._there, "refused": self._refused})
        await self._loop.run_in_executor(None, pipe.recv)
        pipe.send(self._hung_up)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _visit(self, kind: str) -> None:
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        with client:
            try:
                await self._loop.sock_connect(client, ("127.0.0.1", self._port))
                await self._loop.sock_sendall(client, _request(kind))
                first = await self._loop.sock_recv(client, 512)
            except OSError:
                first = b""
            if not first.startswith(b"HTTP/1.1 200"):
                self._refused += 1
                return
            self._there += 1
            with contextlib.suppress(ConnectionError):
                await self._stay(client, kind)
            self._hung_up[kind] += 1

    async def _stay(self, client: socket.socket, kind: str) -> None:
        """Until the server hangs up."""
        if kind == "stopped":
            # Whether it was given up shows only once something is sent.
            while not client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                await asyncio.sleep(1)
            return
        every = 0.0 if kind == "idle" else 1.0
        while await self._loop.sock_recv(client, _READ_A_SECOND):
            await asyncio.sleep(every)


def _request(kind: str) -> bytes:
    if kind == "idle":
        return b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
    body = json.dumps(_body("long")).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def _body(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
    }


def _crowd(port: int, slow: int, idle: int, pipe: Any) -> None:
    async def main() -> None:
        await _Crowd(port, slow, idle).come_and_go(pipe)

    asyncio.run(main())


# The client beside it.


@dataclass
class Normal:
    """Streamed requests, one after the other, until `stop`."""

    port: int
    served: int = 0
    failed: int = 0
    first_bytes: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, times: int = sys.maxsize) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LIMIT)
        for _ in range(times):
            if self.stop.is_set():
                break
            try:
                self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                self.failed += 1
                self.failures.append(repr(error))
                connection.close()
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(_body("short")))
        response = connection.getresponse()
        body = response.read1(65536)
        self.first_bytes.append(time.perf_counter() - began)
        body += response.read()
        response.close()
        whole = body.count(b'"content":" word"') == SHORT and body.endswith(b"data: [DONE]\n\n")
        self.served += whole
        if not whole:
            self.failed += 1
            self.failures.append(f"{response.status} {body[-200:]!r}")

    def percentile(self, share: float) -> float:
        """Milliseconds to the first byte."""
        if len(self.first_bytes) < 2:
            return float("nan")
        return 1000 * statistics.quantiles(self.first_bytes, n=100)[round(share * 100) - 1]


# The measurement.


@dataclass(frozen=True)
class Memory:
    """KiB: now, and at most so far."""

    rss: int
    peak: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        status = Path(f"/proc/{pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
        return cls(int(found["VmRSS"]), int(found["VmHWM"]))


def _sockets() -> int:
    """KiB that the system holds for all TCP sockets there are."""
    found = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    return int(found[1]) * resource.getpagesize() // 1024 if found else 0


@contextlib.contextmanager
def _serving(transport: TransportName, upstream: int) -> Iterator[tuple[int, int]]:
    """The server's process, and its port."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "deltawire.toml").write_text(
            f'[server]\nport = 0\nlog = "none"\ntransport = "{transport}"\n'
            "[limits]\nconnections = 3000\n"
            f'[[upstreams]]\nname = "here"\nbase_url = "http://127.0.0.1:{upstream}/v1"\n'
        )
        command = [sys.executable, "-m", "deltawire.server.cli", "serve"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                port = re.search(r":(\d+)/", process.stdout.readline())
                assert port is not None
                yield process.pid, int(port[1])
            finally:
                process.send_signal(signal.SIGKILL)


def _connections(port: int) -> int:
    """How many there are, apart from this one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        said = connection.getresponse().read()
    found = re.search(rb"^deltawire_connections_open (\d+)", said, re.MULTILINE)
    assert found is not None
    return int(found[1]) - 1


def _be_crowded(pid: int, port: int, slow: int, idle: int, seconds: float) -> dict[str, Any]:
    """A crowd for so long, once it is there; what that was like."""
    ours, theirs = multiprocessing.Pipe()
    crowd = multiprocessing.Process(target=_crowd, args=(port, slow, idle, theirs), daemon=True)
    crowd.start()
    normal = Normal(port)
    beside = threading.Thread(target=normal.run)
    beside.start()
    seen: list[int] = []
    sockets: list[int] = []

    def watch(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seen.append(Memory.of(pid).rss)
            sockets.append(_sockets())
            if ours.poll(_LOOK) and seconds == _LIMIT:
                return

    watch(_LIMIT)
    came = ours.recv()
    half = len(seen)
    watch(seconds)
    end = Memory.of(pid)
    ours.send("leave")
    hung_up = ours.recv()
    crowd.join()
    normal.stop.set()
    beside.join()
    while _connections(port):
        time.sleep(_LOOK)
    return {
        **came,
        "hung_up": hung_up,
        "max_kib": max(seen),
        "arrived_kib": seen[half - 1],
        "end_kib": end.rss,
        "after_kib": Memory.of(pid).rss,
        "sockets_kib": max(sockets),
        "served": normal.served,
        "failed": normal.failed,
        "failures": normal.failures,
        "p50_ms": normal.percentile(0.5),
        "p99_ms": normal.percentile(0.99),
    }


def _measure(transport: TransportName, upstream: int, *, quick: bool) -> dict[str, Any]:
    slow, idle, seconds = (100, 100, 10.0) if quick else (500, 500, 60.0)
    with _serving(transport, upstream) as (pid, port):
        alone = Normal(port)
        alone.run(times=100)
        before = Memory.of(pid)
        crowds = [_be_crowded(pid, port, slow, idle, each) for each in (seconds, seconds / 3)]
        afterwards = Normal(port)
        afterwards.run(times=100)
        after = Memory.of(pid)
    figures = {
        "slow": slow,
        "idle": idle,
        "seconds": seconds,
        "before_kib": before.rss,
        "crowds": crowds,
        "alone": {"p50_ms": alone.percentile(0.5), "p99_ms": alone.percentile(0.99)},
        "failed_alone": alone.failed + afterwards.failed,
        "after": asdict(after),
        "kib_per_slow": (crowds[0]["max_kib"] - before.rss) / slow,
        "kib_second_adds": crowds[1]["max_kib"] - crowds[0]["max_kib"],
    }
    _show(transport, figures)
    return figures


def _show(transport: str, figures: dict[str, Any]) -> None:
    alone = figures["alone"]
    print(
        f"{transport}: {figures['before_kib'] / 1024:.1f} MiB before; first byte after"
        f" {alone['p50_ms']:.1f} ms (p99 {alone['p99_ms']:.1f})"
    )
    for crowd in figures["crowds"]:
        hung_up = ", ".join(f"{count} {kind}" for kind, count in crowd["hung_up"].items())
        print(
            f"  crowd of {crowd['there']} ({crowd['refused']} refused): MiB, at most"
            f" {crowd['max_kib'] / 1024:.1f}, once all were there"
            f" {crowd['arrived_kib'] / 1024:.1f}, at the end {crowd['end_kib'] / 1024:.1f},"
            f" after it {crowd['after_kib'] / 1024:.1f};"
            f" all sockets of the system {crowd['sockets_kib'] / 1024:.0f}\n"
            f"    beside it {crowd['served']} served, {crowd['failed']} failed; first byte after"
            f" {crowd['p50_ms']:.1f} ms (p99 {crowd['p99_ms']:.1f}); given up: {hung_up}"
        )
        for failure in crowd["failures"]:
            print(f"    failed: {failure}")
    print(
        f"  {figures['kib_per_slow']:.0f} KiB for each slow one, with its share of the idle;"
        f" the second crowd adds {figures['kib_second_adds'] / 1024:.1f} MiB to the peak;"
        f" peak {figures['after']['peak'] / 1024:.1f} MiB"
    )


def run(*, quick: bool, transport: TransportName | Literal["all"] = "all") -> dict[str, Any]:
    raise_file_limit()
    ours, theirs = multiprocessing.Pipe()
    upstream = multiprocessing.Process(target=_upstream, args=(theirs,), daemon=True)
    upstream.start()
    try:
        port = ours.recv()
        names = TRANSPORTS if transport == "all" else (transport,)
        return {name: _measure(name, port, quick=quick) for name in names}
    finally:
        upstream.terminate()
        upstream.join()
