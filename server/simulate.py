"""`deltawire simulate`: an upstream that costs nothing, over real HTTP, for trying and for tests.

It speaks both APIs, `POST /v1/responses` and `POST /v1/chat/completions`. What it answers is chosen
by the name of the model (`scenarios`); what it was asked, and what became of that, is told by
`GET /simulate/requests`. One thread on asyncio, no task per stream: hundreds of streams at once are
its business.

    with simulated() as base_url:            # in a thread of its own, on a free port
        SyncTransport(base_url=base_url)...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, Final, cast

from deltawire.server.app import Reply
from deltawire.server.framing import Refused
from deltawire.server.http import HTTPConnection, Phase, Request
from deltawire.server.scenarios import summaries
from deltawire.server.simulation import Simulation, Streamed, Waiting

_MAX_HEAD: Final = 64 * 1024
_MAX_BODY: Final = 64 * 1024 * 1024
_BACKLOG: Final = 1024
# Without a pace, so many bytes are one write.
_BURST: Final = 16 * 1024


class Connection(asyncio.Protocol):
    """One client of the simulated upstream."""

    def __init__(self, simulation: Simulation, clients: set[Connection]) -> None:
        self._simulation = simulation
        self._clients = clients
        self._loop = asyncio.get_running_loop()
        self._http = HTTPConnection(max_head=_MAX_HEAD, max_body=_MAX_BODY, date=_date)
        self._socket: asyncio.Transport | None = None
        self._streamed: Streamed | None = None
        self._waiting: Waiting | None = None
        self._next: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._is_writable = True

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._clients.add(self)

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._look()

    def eof_received(self) -> None:
        self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.close()
        self._clients.discard(self)

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        if self._streamed is not None and self._next is None:
            self._go_on()

    # What it does.

    def close(self, *, reset: bool = False) -> None:
        """End the connection, and whatever was to be said on it."""
        if self._streamed is not None:
            self._simulation.ended(self._streamed.seen, left=not reset)
            self._streamed = None
        if self._waiting is not None:
            self._simulation.forget(self._waiting)
            self._waiting = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._http.abort()
        if self._socket is not None:
            self._socket.abort() if reset else self._socket.close()
            self._socket = None

    def _look(self) -> None:
        while (request := self._http.next_request()) is not None:
            self._answer(request)
        self._write(self._http.data_to_send())
        if self._http.phase is Phase.CLOSED and self._streamed is None:
            self.close()

    def _answer(self, request: Request | Refused) -> None:
        answer = self._simulation.answer(request, int(time.time()))
        if isinstance(answer, Reply):
            self._write(self._http.respond(answer.status, answer.headers, answer.body))
        elif isinstance(answer, Waiting):
            self._waiting = answer
            answer.then = self._told
        else:
            self._streamed = answer
            self._write(self._http.begin(200, answer.headers))
            self._due = self._loop.time()
            self._wait(answer.silence)

    def _told(self, reply: Reply) -> None:
        self._waiting = None
        self._write(self._http.respond(reply.status, reply.headers, reply.body))
        self._look()

    def _wait(self, seconds: float) -> None:
        # From when the last one was due, so that a pace is kept.
        self._due = max(self._due + seconds, self._loop.time() - seconds)
        if seconds:
            self._next = self._loop.call_at(self._due, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Say what is due, as far as the client reads."""
        self._next = None
        streamed = self._streamed
        while streamed is not None and self._is_writable:
            data = streamed.next(1 if streamed.pace else _BURST)
            if not data:
                self._finish(streamed)
                return
            self._write(self._http.frame(data))
            if streamed.pace:
                self._wait(streamed.pace)
                return

    def _finish(self, streamed: Streamed) -> None:
        if streamed.then == "wait":
            return
        if streamed.then == "reset":
            self.close(reset=True)
            return
        self._write(self._http.end())
        self._streamed = None
        self._simulation.ended(streamed.seen, left=False)
        self._look()

    def _write(self, data: bytes) -> None:
        # Of a client that has left asyncio says so only once the burst is over, and logs meanwhile.
        if data and self._socket is not None and not self._socket.is_closing():
            self._socket.write(data)


def _date() -> str:
    return formatdate(usegmt=True)


async def serve(
    simulation: Simulation,
    stop: asyncio.Event,
    *,
    host: str,
    port: int,
    started: asyncio.Future[int],
) -> None:
    """Serve until `stop` is set, and hang up on everybody. `started` is given the port."""
    clients: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(simulation, clients), host, port, backlog=_BACKLOG
    )
    started.set_result(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    for client in list(clients):
        client.close(reset=True)


@contextlib.contextmanager
def simulated(*, pace: float = 0.0, api_key: str | None = None) -> Iterator[str]:
    """A simulated upstream in a thread of its own: its base URL, `http://127.0.0.1:PORT/v1`."""
    ready = threading.Event()
    shared: dict[str, Any] = {}

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        started: asyncio.Future[int] = loop.create_future()

        def say(port: asyncio.Future[int]) -> None:
            shared.update(loop=loop, stop=stop, port=port.result())
            ready.set()

        started.add_done_callback(say)
        simulation = Simulation(pace=pace, api_key=api_key)
        await serve(simulation, stop, host="127.0.0.1", port=0, started=started)

    def run() -> None:
        try:
            asyncio.run(main())
        except OSError as error:
            shared["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="deltawire-simulate", daemon=True)
    thread.start()
    ready.wait()
    if "error" in shared:
        raise shared["error"]
    try:
        yield f"http://127.0.0.1:{shared['port']}/v1"
    finally:
        shared["loop"].call_soon_threadsafe(shared["stop"].set)
        thread.join()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `deltawire simulate`, for `run`."""
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8081, help="(default: 8081; 0: any)")
    parser.add_argument(
        "--pace",
        metavar="SECONDS",
        type=float,
        default=0.02,
        help="between two events (default: 0.02)",
    )
    parser.add_argument("--api-key", metavar="KEY", help="demand this key (default: any, or none)")
    parser.add_argument(
        "--list", action="store_true", help="say what models there are, and nothing else"
    )
    parser.epilog = "models: " + ", ".join(name for name, _ in summaries()) + "; see --list"


def run(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Exit status: 1 if it cannot listen."""
    if options.list:
        for name, summary in summaries():
            print(f"{name:18} {summary}")
        print(
            "\nOptions follow the name, as in plain;deltas=200;pace=0.01: pace, silence (seconds),"
            "\ndeltas (how many), size (characters of each), provider, retry (seconds), code, key"
        )
        return 0
    try:
        asyncio.run(_main(options))
    except OSError as error:
        print(f"deltawire: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _main(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    started: asyncio.Future[int] = loop.create_future()
    host = f"[{options.host}]" if ":" in options.host else options.host
    started.add_done_callback(
        lambda port: print(f"deltawire simulates http://{host}:{port.result()}/v1", flush=True)
    )
    simulation = Simulation(pace=options.pace, api_key=options.api_key)
    await serve(simulation, stop, host=options.host, port=options.port, started=started)
