"""Connections to upstream that are our own: when one is made, kept, used again and closed.

Upstream runs in an event loop, and so do the calls: those that block, each in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire.accounts import Account
from deltawire.attempts import Timeouts
from deltawire.chat import ChatCompletion
from deltawire.errors import (
    LocalProtocolError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import AsyncioTransport, SyncTransport
from deltawire.transports.http import installed_library, proxy_applies
from upstream import LIMIT

REQUEST: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = b"".join(write_frames(ANSWER))
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
WHOLE: Final = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(FRAMES), FRAMES)
LAST: Final = WHOLE.replace(HEAD, HEAD + b"Connection: close\r\n")
SOON: Final = 0.2

pytestmark = pytest.mark.usefixtures("no_proxy")

Serve = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """An upstream in the same event loop. `connections`: how many there were."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.open = 0
        self.may_read = asyncio.Event()
        self.closed: asyncio.Queue[int] = asyncio.Queue()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(self, reader, writer)
        writer.close()
        self.open -= 1
        self.closed.put_nowait(number)


async def next_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))


def always(answer: bytes) -> Serve:
    async def serve(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await next_request(reader)
            writer.write(answer)

    return serve


def once(answer: bytes) -> Serve:
    """One answer, and then the end of the connection."""

    async def serve(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await next_request(reader)
        writer.write(answer)

    return serve


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        with ThreadPoolExecutor(32) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            async with asyncio.timeout(LIMIT):
                await main

    asyncio.run(limited())


Kind = type[AsyncioTransport] | type[SyncTransport]
Transport = AsyncioTransport | SyncTransport

every_kind = pytest.mark.parametrize("kind", [AsyncioTransport, SyncTransport])


async def create(transport: Transport, request: Any = REQUEST) -> ChatCompletion:
    if isinstance(transport, SyncTransport):
        return await asyncio.to_thread(transport.create, request)
    return await transport.create(request)


async def ask(transport: Transport) -> None:
    completion = await create(transport)
    assert completion.choices[0].message.content == TEXT


async def close(transport: Transport) -> None:
    if isinstance(transport, SyncTransport):
        await asyncio.to_thread(transport.close)
    else:
        await transport.aclose()


@contextlib.asynccontextmanager
async def opened(kind: Kind, **settings: Any) -> AsyncIterator[Transport]:
    transport = kind(**settings)
    try:
        yield transport
    finally:
        await close(transport)


@contextlib.asynccontextmanager
async def serving(
    kind: Kind, serve: Serve, **settings: Any
) -> AsyncIterator[tuple[Server, Transport]]:
    async with Server(serve) as server, opened(kind, base_url=server.url, **settings) as transport:
        yield server, transport


# Which connection is used.


@every_kind
def test_a_connection_that_upstream_closed_meanwhile_is_not_used(kind: Kind) -> None:
    async def main() -> None:
        async with serving(kind, once(WHOLE)) as (server, transport):
            for n in range(1, 4):
                await ask(transport)
                assert await server.closed.get() == n
            assert server.connections == 3

    run(main())


@pytest.mark.parametrize("dirt", [b"HTTP/1.1 408 Too Slow\r\n\r\n", b"\0"])
@every_kind
def test_what_comes_unasked_ends_a_connection(kind: Kind, dirt: bytes) -> None:
    async def main() -> None:
        async with serving(kind, always(WHOLE + dirt)) as (server, transport):
            for n in range(1, 4):
                await ask(transport)
                assert await server.closed.get() == n

    run(main())


@every_kind
def test_a_kept_connection_that_dies_under_a_request_is_no_answer(kind: Kind) -> None:
    """As with httpx: whether upstream saw the request cannot be known."""

    async def serve(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await next_request(reader)
        writer.write(WHOLE)
        await next_request(reader)

    async def main() -> None:
        async with serving(kind, serve) as (server, transport):
            await ask(transport)
            with pytest.raises(UpstreamUnreachable, match="closed without an answer"):
                await ask(transport)
            await ask(transport)
            assert server.connections == 2

    run(main())


@every_kind
def test_a_connection_whose_request_was_not_read_is_not_used_again(kind: Kind) -> None:
    async def serve(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        # The end shows only behind the rest.
        await server.may_read.wait()
        while await reader.read(2**20):
            pass

    async def main() -> None:
        async with serving(kind, serve) as (server, transport):
            message = {"role": "user", "content": "x" * 20_000_000}
            for n in (1, 2):
                server.may_read.clear()
                await create(transport, {**REQUEST, "messages": [message]})
                server.may_read.set()
                assert await server.closed.get() == n

    run(main())


def test_a_connection_is_closed_when_its_expiry_has_passed() -> None:
    kind = AsyncioTransport

    async def main() -> None:
        async with serving(kind, always(WHOLE), keepalive_expiry=SOON) as (server, transport):
            await ask(transport)
            # Nothing else closes it.
            assert await server.closed.get() == 1
            await ask(transport)
            assert server.connections == 2

    run(main())


def test_a_connection_of_threads_is_closed_when_one_is_looked_for_after_its_expiry() -> None:
    async def main() -> None:
        async with serving(SyncTransport, always(WHOLE), keepalive_expiry=1e-9) as (
            server,
            transport,
        ):
            for n in range(1, 4):
                await ask(transport)
                assert server.connections == n
            assert await server.closed.get() == 1
            assert await server.closed.get() == 2

    run(main())


@pytest.mark.parametrize("settings", [{"max_keepalive_connections": 0}, {"keepalive_expiry": 0}])
@every_kind
def test_no_connection_may_be_kept(kind: Kind, settings: Any) -> None:
    async def main() -> None:
        async with serving(kind, always(WHOLE), **settings) as (server, transport):
            await ask(transport)
            assert await server.closed.get() == 1

    run(main())


@every_kind
def test_of_many_connections_some_are_kept(kind: Kind) -> None:
    async def main() -> None:
        together = asyncio.Barrier(5)

        async def serve(
            server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            while True:
                await next_request(reader)
                await together.wait()
                writer.write(WHOLE)

        async with serving(kind, serve, max_keepalive_connections=2) as (server, transport):
            await asyncio.gather(*(ask(transport) for _ in range(5)))
            for _ in range(3):
                await server.closed.get()
            assert (server.connections, server.open) == (5, 2)

    run(main())


# How many there may be.


@every_kind
def test_calls_wait_for_a_connection_in_turn(kind: Kind) -> None:
    async def main() -> None:
        async with serving(kind, always(WHOLE), max_connections=2) as (server, transport):
            await asyncio.gather(*(ask(transport) for _ in range(20)))
            assert server.connections <= 2

    run(main())


@every_kind
def test_calls_wait_for_a_place_where_none_is_kept(kind: Kind) -> None:
    async def main() -> None:
        # Between threads, one that is handed on may be closed before its FIN is there.
        answer = LAST if kind is SyncTransport else WHOLE
        async with serving(kind, once(answer), max_connections=2) as (server, transport):
            most = 0

            async def watched() -> None:
                nonlocal most
                await ask(transport)
                most = max(most, server.open)

            await asyncio.gather(*(watched() for _ in range(20)))
            assert server.connections == 20
            assert most <= 2

    run(main())


@every_kind
def test_a_connection_elsewhere_makes_room(kind: Kind) -> None:
    async def main() -> None:
        async with Server(always(WHOLE)) as one, Server(always(WHOLE)) as two:
            accounts = [Account(name="1", base_url=one.url), Account(name="2", base_url=two.url)]
            async with opened(kind, accounts=accounts, max_connections=1) as transport:
                for _ in range(10):
                    await ask(transport)
                await asyncio.gather(*(ask(transport) for _ in range(10)))
                # They take turns, and there is one place.
                assert one.connections > 1
                assert two.connections > 1

    run(main())


@every_kind
def test_a_call_does_not_wait_for_ever_for_a_place(kind: Kind) -> None:
    async def main() -> None:
        held = asyncio.Event()

        async def serve(
            server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await next_request(reader)
            await held.wait()
            writer.write(WHOLE)

        timeouts = Timeouts(connect=SOON)
        settings: Any = {"max_connections": 1, "timeouts": timeouts}
        async with serving(kind, serve, **settings) as (server, transport):
            first = asyncio.create_task(ask(transport))
            while not server.connections:
                await asyncio.sleep(0)
            reason = r"no connection became free within 0\.2 s \(max_connections\)"
            with pytest.raises(UpstreamTimeout, match=reason):
                await ask(transport)
            held.set()
            await first
            await ask(transport)

    run(main())


@pytest.mark.parametrize("rounds", range(8))
def test_who_leaves_while_waiting_takes_no_place_along(rounds: int) -> None:
    async def main() -> None:
        async with serving(AsyncioTransport, always(WHOLE), max_connections=1) as (
            server,
            transport,
        ):
            first = asyncio.create_task(ask(transport))
            second = asyncio.create_task(ask(transport))
            for _ in range(rounds):
                await asyncio.sleep(0)
            second.cancel()
            await first
            with contextlib.suppress(asyncio.CancelledError):
                await second
            await ask(transport)
            assert server.connections <= 2

    run(main())


@every_kind
def test_a_connection_that_is_not_made_in_time_is_told(kind: Kind) -> None:
    async def silent(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read()

    async def main() -> None:
        async with Server(silent) as server:
            # TCP is there, and TLS never will be.
            url = server.url.replace("http:", "https:")
            timeouts = Timeouts(connect=SOON)
            async with opened(kind, base_url=url, timeouts=timeouts) as transport:
                reason = r"no connection within 0\.2 s \(timeouts\.connect\)"
                with pytest.raises(UpstreamTimeout, match=reason):
                    await ask(transport)
                assert await server.closed.get() == 1

    run(main())


@every_kind
def test_closing_the_transport_ends_what_is_under_way(kind: Kind) -> None:
    async def silent(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await next_request(reader)
        writer.write(HEAD + b"\r\n" + FRAMES[: len(FRAMES) // 2])
        await reader.read()

    async def main() -> None:
        async with Server(silent) as server:
            transport = kind(base_url=server.url, max_connections=1)
            under_way = asyncio.create_task(ask(transport))
            waiting = asyncio.create_task(ask(transport))
            while not (server.connections and _who_waits(transport)):
                await asyncio.sleep(0)
            await close(transport)
            for task in (under_way, waiting):
                with pytest.raises(UpstreamError, match="closed"):
                    await task
            assert await server.closed.get() == 1
            with pytest.raises(LocalProtocolError, match="closed"):
                await ask(transport)

    run(main())


def _who_waits(transport: Transport) -> int:
    assert transport._direct is not None
    return len(transport._direct._places._waiting)


# Memory.


def test_an_upstream_that_is_ahead_of_its_reader_waits() -> None:
    choice = {"index": 0, "delta": {"content": "x" * 100_000}, "finish_reason": None}
    piece = b"data: %b\n\n" % json.dumps({"id": "1", "choices": [choice]}).encode()

    async def main() -> None:
        sent = 0

        async def serve(
            server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            nonlocal sent
            await next_request(reader)
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(1000):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                sent += len(piece)
            writer.write(b"0\r\n\r\n")

        async with (
            Server(serve) as server,
            AsyncioTransport(base_url=server.url, api="chat") as transport,
        ):
            async with transport.stream_wire(REQUEST) as answer:
                read = len(await anext(aiter(answer)))
                before = -1
                while before != sent:
                    before = sent
                    # The server goes on as long as it can.
                    for _ in range(1000):
                        await asyncio.sleep(0)
                assert sent < 1000 * len(piece) / 2
                async for frames in answer:
                    read += len(frames)
            assert read >= 1000 * len(piece)

    run(main())


# Whether a proxy is in play.

hosts = st.sampled_from(["127.0.0.1", "::1", "localhost", "example.com", "a.example.com", "b.org"])
proxies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), st.just("http://p.test:8080")),
        "no_proxy": st.lists(
            st.sampled_from(
                [
                    *("*", "", " localhost ", "127.0.0.1", "::1", "com", ".example.com"),
                    *("example.com", "A.example.com", "ample.com", "http://b.org", "b.org:80"),
                ]
            ),
            max_size=3,
        ).map(",".join),
    },
)


@given(st.sampled_from(["http", "https"]), hosts, proxies)
def test_where_httpx_would_use_a_proxy_none_is_passed_by(
    scheme: str, host: str, environment: dict[str, str]
) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}/v1/responses"
    found = {name.removesuffix("_proxy"): value for name, value in environment.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = httpx.Client(verify=False)
    with client:
        by_proxy = client._transport_for_url(httpx.URL(url)) is not client._transport
    target = installed_library().target(url)
    if by_proxy:
        assert proxy_applies(found, target.scheme, target.origin[1])
    if not environment.keys() - {"no_proxy"}:
        assert not proxy_applies(found, target.scheme, target.origin[1])


@every_kind
def test_a_proxy_of_the_environment_is_used(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Server(always(WHOLE)) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            async with opened(kind, base_url="http://example.test/v1") as transport:
                await ask(transport)
            assert proxy.connections == 1
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            async with serving(kind, always(WHOLE)) as (server, transport):
                await ask(transport)
                assert transport._route(server.url) is transport._direct
                assert server.connections == 1
            assert proxy.connections == 1

    run(main())
