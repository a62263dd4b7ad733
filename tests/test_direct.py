"""Connections to upstream that are our own: when one is made, kept, used again and closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.lowlevel import checkpoint
from anyio.streams.buffered import BufferedByteReceiveStream
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
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from deltawire.transports.asynchronous import AsyncTransport
from deltawire.transports.direct import OwnNetwork
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
# More than the system takes of a request that nobody reads.
LARGE: Final = {**REQUEST, "messages": [{"role": "user", "content": "x" * 20_000_000}]}

pytestmark = pytest.mark.usefixtures("no_proxy")


class Threaded:
    """A `SyncTransport`, each call of which is a thread; one that is cancelled is hung up on."""

    def __init__(self, **settings: Any) -> None:
        self.transport = SyncTransport(**settings)

    async def create(self, request: Any) -> ChatCompletion:
        answer = self.transport.stream_completion(request)
        called = asyncio.get_running_loop().run_in_executor(None, list, answer)
        try:
            await asyncio.wait([called])
        except asyncio.CancelledError:
            answer.hang_up()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([called])
            called.exception()
            raise
        (completion,) = await called
        return completion

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(self.transport.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


Own = AsyncTransport | Threaded

KINDS: Final[dict[str, type[AsyncioTransport] | type[TrioTransport] | type[Threaded]]] = {
    "asyncio": AsyncioTransport,
    "trio": TrioTransport,
    "threads": Threaded,
}
on_a_loop = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@pytest.fixture(params=KINDS)
def loop(request: pytest.FixtureRequest) -> str:
    """The event loop that a test runs in, or that threads are waited for in."""
    name: str = request.param
    return name


def network_of(transport: Own) -> OwnNetwork[Any]:
    """What the connections are of."""
    route = transport.transport if isinstance(transport, Threaded) else transport
    assert isinstance(route._direct, OwnNetwork)
    return route._direct


class Peer:
    """A connection as the server has it."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._received = BufferedByteReceiveStream(stream)

    async def head(self) -> bytes:
        return await self._received.receive_until(b"\r\n\r\n", 2**16)

    async def request(self) -> None:
        head = await self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await self._received.receive_exactly(int(length))

    async def end(self) -> None:
        """Read until there is no more."""
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                await self._received.receive()

    async def say(self, data: bytes) -> None:
        await self.stream.send(data)


Serve = Callable[["Server", Peer], Awaitable[None]]


class Server:
    """An upstream in the same event loop. `connections`: how many there were."""

    def __init__(self, serve: Serve, url: str) -> None:
        self._serve = serve
        self.url = url
        self.connections = 0
        self.open = 0
        self.may_read = anyio.Event()
        self._closed = deque[int]()
        self._closures = anyio.Semaphore(0)

    async def handle(self, stream: SocketStream) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        async with stream:
            with contextlib.suppress(
                anyio.BrokenResourceError, anyio.IncompleteRead, anyio.EndOfStream
            ):
                await self._serve(self, Peer(stream))
        self.open -= 1
        self._closed.append(number)
        self._closures.release()

    async def closed(self) -> int:
        """The number of the connection that was closed next."""
        await self._closures.acquire()
        return self._closed.popleft()


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[Server]:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(SocketAttribute.local_port)
        server = Server(serve, f"http://127.0.0.1:{port}/v1")
        tasks.start_soon(listener.serve, server.handle)
        yield server
        tasks.cancel_scope.cancel()


def always(answer: bytes) -> Serve:
    async def serve(server: Server, peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer)

    return serve


def once(answer: bytes) -> Serve:
    """One answer, and then the end of the connection."""

    async def serve(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(answer)

    return serve


async def silent(server: Server, peer: Peer) -> None:
    """No answer."""
    await peer.end()


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with contextlib.ExitStack() as stack:
            if loop == "threads":
                executor = stack.enter_context(ThreadPoolExecutor(32))
                asyncio.get_running_loop().set_default_executor(executor)
            with anyio.fail_after(LIMIT):
                await main()

    anyio.run(limited, backend="asyncio" if loop == "threads" else loop)


async def ask(transport: Own) -> None:
    completion = await transport.create(REQUEST)
    assert completion.choices[0].message.content == TEXT


async def ask_together(transport: Own, n: int) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(n):
            tasks.start_soon(ask, transport)


@contextlib.asynccontextmanager
async def serving(loop: str, serve: Serve, **settings: Any) -> AsyncIterator[tuple[Server, Own]]:
    async with (
        listening(serve) as server,
        KINDS[loop](base_url=server.url, **settings) as transport,
    ):
        yield server, transport


# Which connection is used.


def test_a_connection_that_upstream_closed_meanwhile_is_not_used(loop: str) -> None:
    async def main() -> None:
        async with serving(loop, once(WHOLE)) as (server, transport):
            for n in range(1, 4):
                await ask(transport)
                assert await server.closed() == n
            assert server.connections == 3

    run(loop, main)


@pytest.mark.parametrize("dirt", [b"HTTP/1.1 408 Too Slow\r\n\r\n", b"\0"])
def test_what_comes_unasked_ends_a_connection(loop: str, dirt: bytes) -> None:
    async def main() -> None:
        async with serving(loop, always(WHOLE + dirt)) as (server, transport):
            for n in range(1, 4):
                await ask(transport)
                assert await server.closed() == n

    run(loop, main)


def test_a_kept_connection_that_dies_under_a_request_is_no_answer(loop: str) -> None:
    """As with httpx: whether upstream saw the request cannot be known."""

    async def serve(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(WHOLE)
        await peer.request()

    async def main() -> None:
        async with serving(loop, serve) as (server, transport):
            await ask(transport)
            with pytest.raises(UpstreamUnreachable, match="closed without an answer"):
                await ask(transport)
            await ask(transport)
            assert server.connections == 2

    run(loop, main)


def test_a_connection_whose_request_was_not_read_is_not_used_again(loop: str) -> None:
    async def serve(server: Server, peer: Peer) -> None:
        await peer.head()
        await peer.say(WHOLE)
        # The end shows only behind the rest.
        await server.may_read.wait()
        await peer.end()

    async def main() -> None:
        async with serving(loop, serve) as (server, transport):
            for n in (1, 2):
                server.may_read = anyio.Event()
                await transport.create(LARGE)
                server.may_read.set()
                assert await server.closed() == n

    run(loop, main)


@on_a_loop
def test_a_connection_is_kept_no_longer_than_its_expiry(loop: str) -> None:
    async def main() -> None:
        async with serving(loop, always(WHOLE), keepalive_expiry=SOON) as (server, transport):
            await ask(transport)
            # Nothing else closes it.
            assert await server.closed() == 1
            await ask(transport)
            assert server.connections == 2

    run(loop, main)


def test_a_thread_closes_what_has_expired_when_it_looks_for_a_connection() -> None:
    async def main() -> None:
        settings: Any = {"keepalive_expiry": 1e-9}
        async with serving("threads", always(WHOLE), **settings) as (server, transport):
            for n in range(1, 4):
                await ask(transport)
                assert server.connections == n
            assert await server.closed() == 1
            assert await server.closed() == 2

    run("threads", main)


@pytest.mark.parametrize("settings", [{"max_keepalive_connections": 0}, {"keepalive_expiry": 0}])
def test_no_connection_may_be_kept(loop: str, settings: Any) -> None:
    async def main() -> None:
        async with serving(loop, always(WHOLE), **settings) as (server, transport):
            await ask(transport)
            assert await server.closed() == 1

    run(loop, main)


def test_of_many_connections_some_are_kept(loop: str) -> None:
    async def main() -> None:
        asked, all_asked = 0, anyio.Event()

        async def serve(server: Server, peer: Peer) -> None:
            nonlocal asked
            while True:
                await peer.request()
                asked += 1
                if asked == 5:
                    all_asked.set()
                await all_asked.wait()
                await peer.say(WHOLE)

        async with serving(loop, serve, max_keepalive_connections=2) as (server, transport):
            await ask_together(transport, 5)
            for _ in range(3):
                await server.closed()
            assert (server.connections, server.open) == (5, 2)

    run(loop, main)


# How many there may be.


def test_calls_wait_for_a_connection_in_turn(loop: str) -> None:
    async def main() -> None:
        async with serving(loop, always(WHOLE), max_connections=2) as (server, transport):
            await ask_together(transport, 20)
            assert server.connections <= 2

    run(loop, main)


def test_calls_wait_for_a_place_where_none_is_kept(loop: str) -> None:
    async def main() -> None:
        # Between threads, one that is handed on may be closed before its FIN is there.
        answer = LAST if loop == "threads" else WHOLE
        async with serving(loop, once(answer), max_connections=2) as (server, transport):
            most = 0

            async def watched() -> None:
                nonlocal most
                await ask(transport)
                most = max(most, server.open)

            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(watched)
            assert server.connections == 20
            assert most <= 2

    run(loop, main)


def test_a_connection_elsewhere_makes_room(loop: str) -> None:
    async def main() -> None:
        async with listening(always(WHOLE)) as one, listening(always(WHOLE)) as two:
            accounts = [Account(name="1", base_url=one.url), Account(name="2", base_url=two.url)]
            async with KINDS[loop](accounts=accounts, max_connections=1) as transport:
                for _ in range(10):
                    await ask(transport)
                await ask_together(transport, 10)
                # They take turns, and there is one place.
                assert one.connections > 1
                assert two.connections > 1

    run(loop, main)


def test_a_call_does_not_wait_for_ever_for_a_place(loop: str) -> None:
    async def main() -> None:
        held = anyio.Event()

        async def serve(server: Server, peer: Peer) -> None:
            await peer.request()
            await held.wait()
            await peer.say(WHOLE)

        timeouts = Timeouts(connect=SOON)
        async with serving(loop, serve, max_connections=1, timeouts=timeouts) as (
            server,
            transport,
        ):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, transport)
                while not server.connections:
                    await checkpoint()
                reason = r"no connection became free within 0\.2 s \(max_connections\)"
                with pytest.raises(UpstreamTimeout, match=reason):
                    await ask(transport)
                held.set()
            await ask(transport)

    run(loop, main)


@pytest.mark.parametrize("rounds", range(8))
def test_who_leaves_while_waiting_takes_no_place_along(loop: str, rounds: int) -> None:
    async def main() -> None:
        async with serving(loop, always(WHOLE), max_connections=1) as (server, transport):
            left = anyio.CancelScope()

            async def leave() -> None:
                with left:
                    await ask(transport)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, transport)
                tasks.start_soon(leave)
                for _ in range(rounds):
                    await checkpoint()
                left.cancel()
            await ask(transport)
            assert server.connections <= 2

    run(loop, main)


def test_a_connection_that_is_not_made_in_time_is_told(loop: str) -> None:
    async def main() -> None:
        async with listening(silent) as server:
            # TCP is there, and TLS never will be.
            url = server.url.replace("http:", "https:")
            timeouts = Timeouts(connect=SOON)
            async with KINDS[loop](base_url=url, timeouts=timeouts) as transport:
                reason = r"no connection within 0\.2 s \(timeouts\.connect\)"
                with pytest.raises(UpstreamTimeout, match=reason):
                    await ask(transport)
                assert await server.closed() == 1

    run(loop, main)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_cannot_be_is_told(loop: str, scheme: str) -> None:
    async def main() -> None:
        # No label of a name is so long.
        url = f"{scheme}://{'a' * 64}.test/v1"
        async with KINDS[loop](base_url=url, max_connections=1) as transport:
            for _ in range(2):
                with pytest.raises(UpstreamUnreachable, match=r"no connection: .*too long"):
                    await ask(transport)

    run(loop, main)


def test_a_place_is_given_back_where_nobody_listens(loop: str) -> None:
    async def main() -> None:
        async with listening(always(WHOLE)) as server:
            async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
                port = listener.extra(SocketAttribute.local_port)
            nowhere = Account(name="nowhere", base_url=f"http://127.0.0.1:{port}/v1")
            somewhere = Account(name="somewhere", base_url=server.url)
            async with KINDS[loop](accounts=[nowhere, somewhere], max_connections=1) as both:
                for _ in range(3):
                    await ask(both)

    run(loop, main)


def test_closing_the_transport_ends_what_is_under_way(loop: str) -> None:
    async def serve(server: Server, peer: Peer) -> None:
        await peer.request()
        await peer.say(HEAD + b"\r\n" + FRAMES[: len(FRAMES) // 2])
        await peer.end()

    async def main() -> None:
        async with listening(serve) as server:
            transport = KINDS[loop](base_url=server.url, max_connections=1)
            async with anyio.create_task_group() as tasks:
                for _ in ("under way", "waiting"):
                    tasks.start_soon(ask_in_vain, transport)
                while not (server.connections and network_of(transport)._places._waiting):
                    await checkpoint()
                await transport.aclose()
            assert await server.closed() == 1
            with pytest.raises(LocalProtocolError, match="closed"):
                await ask(transport)

    run(loop, main)


def test_closing_the_transport_ends_what_is_not_connected_yet(loop: str) -> None:
    async def main() -> None:
        async with listening(silent) as server:
            transport = KINDS[loop](base_url=server.url.replace("http:", "https:"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_in_vain, transport)
                while not server.connections:
                    await checkpoint()
                await transport.aclose()
            assert await server.closed() == 1

    run(loop, main)


async def ask_in_vain(transport: Own) -> None:
    with pytest.raises(UpstreamError, match="closed"):
        await ask(transport)


# A request that upstream does not read, so that it is not all sent.


def held_by(closing: anyio.Event) -> Serve:
    async def serve(server: Server, peer: Peer) -> None:
        await peer.head()
        await closing.wait()

    return serve


def test_a_deadline_ends_a_request_that_is_not_read(loop: str) -> None:
    async def main() -> None:
        limit = SOON
        reached = 0
        # On a busy machine it may pass before there is a connection.
        while not reached:
            closing = anyio.Event()
            timeouts = Timeouts(first_event=limit)
            async with serving(loop, held_by(closing), timeouts=timeouts) as (server, transport):
                with pytest.raises(UpstreamTimeout, match="first_event"):
                    await transport.create(LARGE)
                closing.set()
                reached = server.connections
                if reached:
                    assert await server.closed() == 1
            limit *= 4

    run(loop, main)


def test_a_request_that_is_not_read_can_be_cancelled(loop: str) -> None:
    async def main() -> None:
        closing = anyio.Event()
        async with serving(loop, held_by(closing)) as (server, transport):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(transport.create, LARGE)
                while not server.connections:
                    await checkpoint()
                tasks.cancel_scope.cancel()
            closing.set()
            assert await server.closed() == 1

    run(loop, main)


def test_an_upstream_that_closes_while_it_is_asked_is_told(loop: str) -> None:
    async def main() -> None:
        closing = anyio.Event()
        closing.set()
        async with serving(loop, held_by(closing)) as (server, transport):
            with pytest.raises(UpstreamUnreachable):
                await transport.create(LARGE)
            assert await server.closed() == 1

    run(loop, main)


# Memory.


@on_a_loop
def test_an_upstream_that_is_ahead_of_its_reader_waits(loop: str) -> None:
    choice = {"index": 0, "delta": {"content": "x" * 100_000}, "finish_reason": None}
    piece = b"data: %b\n\n" % json.dumps({"id": "1", "choices": [choice]}).encode()

    async def main() -> None:
        sent = 0

        async def serve(server: Server, peer: Peer) -> None:
            nonlocal sent
            await peer.request()
            await peer.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(1000):
                await peer.say(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += len(piece)
            await peer.say(b"0\r\n\r\n")

        async with serving(loop, serve, api="chat") as (_, transport):
            assert isinstance(transport, AsyncTransport)
            async with transport.stream_wire(REQUEST) as answer:
                read = len(await anext(aiter(answer)))
                before = -1
                while before != sent:
                    before = sent
                    # The server goes on as long as it can.
                    for _ in range(1000):
                        await checkpoint()
                assert sent < 1000 * len(piece) / 2
                async for frames in answer:
                    read += len(frames)
            assert read >= 1000 * len(piece)

    run(loop, main)


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


def test_a_proxy_of_the_environment_is_used(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with listening(always(WHOLE)) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            async with KINDS[loop](base_url="http://example.test/v1") as transport:
                await ask(transport)
            assert proxy.connections == 1
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            async with serving(loop, always(WHOLE)) as (server, transport):
                await ask(transport)
                assert network_of(transport)._connections
                assert server.connections == 1
            assert proxy.connections == 1

    run(loop, main)
