"""With uvloop, the extra `fast`, everything is as it is with asyncio's own event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trustme

from deltawire.errors import UpstreamTruncated, UpstreamUnreachable
from deltawire.server.serve import _loop_factory
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import AsyncioTransport
from upstream import LIMIT, Gate, Hold, Reply, Upstream, stream

uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed, or not for this platform")

REQUEST = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
ANSWER = Answer("It rains in Rome.")
FRAMES = tuple(write_frames(ANSWER))

pytestmark = pytest.mark.usefixtures("no_proxy")


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await main()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)
        runner.run(limited())


async def read(transport: AsyncioTransport) -> None:
    async with transport.stream(REQUEST) as chunks:
        async for _ in chunks:
            pass


@pytest.fixture(params=["http", "https"])
def secured(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext | None, Any]:
    """The upstream's TLS, if any, and the setting that trusts it."""
    if request.param == "http":
        return None, False
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_the_server_runs_on_it_and_answers_are_whole(
    secured: tuple[ssl.SSLContext | None, Any],
) -> None:
    tls, verify = secured

    async def main() -> None:
        async with AsyncioTransport(base_url=upstream.base_url, verify=verify) as transport:
            for _ in range(2):
                completion = await transport.create(REQUEST)
                assert completion.choices[0].message.content == expected(ANSWER).content
            pushed: list[bytes] = []
            await transport.push_wire(REQUEST, pushed.append).run()
            assert b"".join(pushed).endswith(b"data: [DONE]\n\n")

    with Upstream(tls) as upstream:
        upstream.play(stream(ANSWER))
        run(main)
        assert upstream.connections == 1
        upstream.wait_closed()


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_what_is_cut_is_truncated(ending: Any, secured: tuple[ssl.SSLContext | None, Any]) -> None:
    tls, verify = secured

    async def main() -> None:
        async with AsyncioTransport(base_url=upstream.base_url, verify=verify) as transport:
            with pytest.raises(UpstreamTruncated):
                await read(transport)

    with Upstream(tls) as upstream:
        framing: Any = "chunked" if tls is None else "close"
        upstream.play(Reply(FRAMES[:6], ending=ending, framing=framing))
        run(main)
        upstream.wait_closed()


def test_leaving_hangs_up(secured: tuple[ssl.SSLContext | None, Any]) -> None:
    tls, verify = secured

    async def main() -> None:
        async with AsyncioTransport(base_url=upstream.base_url, verify=verify) as transport:
            async with transport.stream(REQUEST) as chunks:
                async for _ in chunks:
                    break
            assert await asyncio.to_thread(upstream.requests[0].left.wait, LIMIT)

    with Upstream(tls) as upstream:
        upstream.play(Reply((*FRAMES[:6], Hold(Gate()))))
        run(main)
        upstream.wait_closed()


def test_nobody_there_is_told() -> None:
    async def main() -> None:
        async with AsyncioTransport(base_url="http://127.0.0.1:1/v1") as transport:
            with pytest.raises(UpstreamUnreachable, match="no connection: "):
                await transport.create(REQUEST)

    run(main)
