"""`TrioTransport`: what trio has of its own."""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import trio

from deltawire.errors import LocalProtocolError
from deltawire.renderings import AsFrames
from deltawire.transports.asynchronous import AsyncTransport, Runtime, Timer
from deltawire.transports.http import Target
from deltawire.transports.network import Network
from deltawire.transports.settings import OnAttempt
from deltawire.transports.trio_network import TrioNetwork
from deltawire.transports.trio_push import HandOut, TrioPush, TrioPushedCall

T = TypeVar("T")


class TrioTransport(AsyncTransport):
    """Chat Completions by a Responses upstream, for trio.

    Arguments are those of `Transport`; `client` is an `httpx.AsyncClient` or an
    `httpx2.AsyncClient`. An async context manager, of the trio run that it is first used in.

    Without a client, and where no proxy applies, it has connections of its own: `direct`.
    """

    extra: ClassVar[str] = "trio"

    def _make_direct(
        self, target: Callable[[str], Target], tls: ssl.SSLContext, limits: Mapping[str, Any]
    ) -> Network:
        return TrioNetwork(target, tls, **limits)

    def _make_runtime(self) -> Runtime:
        return TrioRuntime()

    def push_wire(
        self,
        chat_request: Mapping[str, Any],
        hand_out: HandOut[bytes],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> TrioPush[bytes]:
        """The frames of `stream_wire`, each handed out by the task that reads it.

        hand_out: must not fail; what it gives is awaited before upstream is read again.
        """

        def begin() -> TrioPushedCall[bytes]:
            exchange = self._begin(chat_request, AsFrames, affinity, on_attempt)
            return TrioPushedCall(exchange, self._route, self._runtime)

        return TrioPush(begin, hand_out)


class TrioRuntime:
    """One run of trio."""

    # A cancel scope around each read in any case.
    httpx_scopes = True

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None

    def check(self) -> None:
        try:
            token = trio.lowlevel.current_trio_token()
        except RuntimeError:
            raise LocalProtocolError(
                "TrioTransport runs under trio.run(), and that is not running here"
            ) from None
        if self._token is None:
            self._token = token
        elif self._token is not token:
            raise LocalProtocolError(
                "this TrioTransport belongs to another trio.run(), and so do its connections:"
                " make one for each"
            )

    def now(self) -> float:
        return trio.current_time()

    def timer(self) -> Timer:
        return TrioTimer()

    async def sleep_until(self, time: float) -> None:
        await trio.sleep_until(time)

    async def done(self, future: Future[Any]) -> None:
        event, token = trio.Event(), trio.lowlevel.current_trio_token()
        future.add_done_callback(lambda _: token.run_sync_soon(event.set))
        await event.wait()
        future.result()

    def shielded(self) -> AbstractContextManager[object]:
        # Closing what is closed does not wait for the peer; draining has its own deadline.
        return trio.CancelScope(shield=True)

    async def undisturbed(self, work: Awaitable[T]) -> T:
        with trio.CancelScope(shield=True):
            return await work
        raise AssertionError("nothing cancels this scope")


class TrioTimer:
    """A cancel scope for each await."""

    async def within(self, deadline: float, awaitable: Awaitable[T]) -> T:
        if deadline == math.inf:
            return await awaitable
        with trio.CancelScope(deadline=deadline) as scope:
            return await awaitable
        if scope.cancelled_caught:
            raise TimeoutError
        raise AssertionError("a cancel scope that caught nothing has returned")

    def stop(self) -> None:
        pass
