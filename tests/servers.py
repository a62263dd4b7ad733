"""The server on any driver, in a thread of its own, and a client whose every byte is the test's.

Which driver it is, `server.transport` of the configuration says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

import h11
import trio

from deltawire.server import on_asyncio, on_sync, on_trio
from deltawire.server.config import quick
from deltawire.server.service import Service
from deltawire.server.settings import Config, TransportName
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from upstream import LIMIT

TRANSPORTS: Final[tuple[TransportName, ...]] = ("asyncio", "sync", "trio")
CHAT: Final = "/v1/chat/completions"
MESSAGES: Final[Any] = [{"role": "user", "content": "Rain?"}]

# The port, and how to stop: what SIGTERM does.
_Started = Callable[[int, Callable[[], object]], None]


def _serve_on_asyncio(config: Config, started: _Started) -> None:
    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        ready: asyncio.Future[int] = loop.create_future()
        end = partial(loop.call_soon_threadsafe, stop.set)
        ready.add_done_callback(lambda port: started(port.result(), end))
        await on_asyncio.serve(Service(config, AsyncioTransport), stop, started=ready)

    asyncio.run(main())


def _serve_on_trio(config: Config, started: _Started) -> None:
    stop = trio.Event()

    def ready(port: int) -> None:
        token = trio.lowlevel.current_trio_token()
        started(port, partial(token.run_sync_soon, stop.set))

    trio.run(partial(on_trio.serve, Service(config, TrioTransport), stop, started=ready))


def _serve_on_sync(config: Config, started: _Started) -> None:
    stop = threading.Event()
    on_sync.serve(
        Service(config, SyncTransport), stop, started=lambda port: started(port, stop.set)
    )


_SERVES: Final[dict[TransportName, Callable[[Config, _Started], None]]] = {
    "asyncio": _serve_on_asyncio,
    "sync": _serve_on_sync,
    "trio": _serve_on_trio,
}


def config(
    base_url: str,
    transport: TransportName,
    *,
    limits: dict[str, Any] | None = None,
    **server: Any,
) -> Config:
    """One upstream, any free port; fields of `Limits` and of `ServerSettings`."""
    made = quick(base_url, environ={}, port=0, transport=transport)
    return replace(
        made,
        server=replace(made.server, **server),
        limits=replace(made.limits, **(limits or {})),
    )


class Server(logging.Handler):
    """The server at work. What it raises or logs as wrong is raised at the end."""

    def __init__(self, config: Config) -> None:
        super().__init__(logging.WARNING)
        self._config = config
        self._stop: Callable[[], object] = bool
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))

    def _run(self) -> None:
        try:
            _SERVES[self._config.server.transport](self._config, self._begun)
        except BaseException as failure:
            self.errors.append(repr(failure))
            if not self._port.done():
                self._port.set_exception(failure)

    def _begun(self, port: int, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._port.set_result(port)

    def __enter__(self) -> Self:
        for name in ("asyncio", "deltawire", "trio"):
            logging.getLogger(name).addHandler(self)
        self._thread.start()
        self.address = ("127.0.0.1", self._port.result(LIMIT))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # It may have come to its end already.
        with contextlib.suppress(RuntimeError, trio.RunFinishedError):
            self._stop()
        self._thread.join(LIMIT)
        for name in ("asyncio", "deltawire", "trio"):
            logging.getLogger(name).removeHandler(self)
        if kind is None:
            assert not self._thread.is_alive()
            assert self.errors == []

    def check(self) -> None:
        """It serves, and nothing went wrong in it so far."""
        with Client(self) as client:
            client.send(ask("GET", "/version"))
            assert client.answer().status == 200
        assert self.errors == []


class Got:
    """One answer: as much of it as was read."""

    def __init__(self, head: h11.Response) -> None:
        self.status = head.status_code
        self.headers = {name.decode(): value.decode() for name, value in head.headers}
        self.body = b""

    @property
    def error(self) -> dict[str, Any]:
        """What is wrong, in OpenAI's shape."""
        (whole,) = json.loads(self.body).items()
        assert whole[0] == "error"
        assert set(whole[1]) == {"message", "type", "param", "code"}
        result: dict[str, Any] = whole[1]
        return result


class _Addressed(Protocol):
    address: tuple[str, int]


class Client:
    """A socket that is written by hand and read by h11."""

    def __init__(
        self, server: _Addressed, *, window: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(LIMIT)
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.connect(server.address)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._http = h11.Connection(h11.CLIENT)
        self._got: Got | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self.socket.recv(65536))
        return event

    def head(self, method: str = "GET") -> Got:
        """The head of the next answer."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        self._http.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        self._http.send(h11.EndOfMessage())
        event = self._event()
        while isinstance(event, h11.InformationalResponse):
            event = self._event()
        assert isinstance(event, h11.Response), event
        self._got = Got(event)
        return self._got

    def until(self, text: bytes) -> bytes:
        """Read on until that is in the body."""
        got = self._got
        assert got is not None
        while text not in got.body:
            event = self._event()
            assert isinstance(event, h11.Data), (event, got.body[-200:])
            got.body += event.data
        return got.body

    def read(self, size: int) -> bytes:
        """Read so much more of the body; all that was read of it."""
        got, parts, left = self._got, list[bytes](), size
        assert got is not None
        while left > 0:
            event = self._event()
            assert isinstance(event, h11.Data), event
            parts.append(event.data)
            left -= len(event.data)
        got.body += b"".join(parts)
        return got.body

    def rest(self) -> Got:
        """Read the answer to its end."""
        got = self._got
        assert got is not None
        parts = [got.body]
        while isinstance(event := self._event(), h11.Data):
            parts.append(event.data)
        assert isinstance(event, h11.EndOfMessage)
        got.body = b"".join(parts)
        return got

    def answer(self, method: str = "GET") -> Got:
        """The next answer, whole."""
        self.head(method)
        return self.rest()

    def closed(self) -> None:
        """The server closes, and has nothing more to say."""
        assert self._http.trailing_data[0] == b""
        assert self.socket.recv(1) == b""

    def fin(self) -> None:
        """Say no more."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def last_answers(self) -> list[Got]:
        """Say no more, and read what is still said, up to the end of the connection.

        A reset may take answers along.
        """
        got = []
        with contextlib.suppress(ConnectionError):
            with contextlib.suppress(OSError):
                # Not connected any more.
                self.fin()
            while self._http.trailing_data[0] or self.socket.recv(1, socket.MSG_PEEK):
                got.append(self.answer())
        return got


def ask(method: str, path: str, *fields: str, body: bytes | None = None) -> bytes:
    """A request as it goes over the wire."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", *fields]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + (body or b"")


def chat(*fields: str, **more: Any) -> bytes:
    """A chat request, streamed unless it says otherwise."""
    body = {"model": "gpt-5", "messages": MESSAGES, "stream": True, **more}
    return ask("POST", CHAT, *fields, body=json.dumps(body).encode())
