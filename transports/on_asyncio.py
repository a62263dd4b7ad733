"""`AsyncioTransport`: what asyncio has of its own."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import coroutine
from typing import Any, ClassVar, TypeVar

import anyio

from deltawire.errors import LocalProtocolError
from deltawire.renderings import AsFrames
from deltawire.transports.asynchronous import AsyncTransport, Runtime, Timer
from deltawire.transports.asyncio_network import AsyncioNetwork
from deltawire.transports.http import Target
from deltawire.transports.network import Network
from deltawire.transports.push import PushedCall, PushedStream
from deltawire.transports.settings import OnAttempt

T = TypeVar("T")


class AsyncioTransport(AsyncTransport):
    """Chat Completions by a Responses upstream, for asyncio.

    Arguments are those of `Transport`; `client` is an `httpx.AsyncClient` or an
    `httpx2.AsyncClient`. An async context manager, of the event loop that it is first used in.

    Without a client, and where no proxy applies, it has connections of its own: `direct`.
    """

    extra: ClassVar[str] = "asyncio"

    def _make_direct(
        self, target: Callable[[str], Target], tls: ssl.SSLContext, limits: Mapping[str, Any]
    ) -> Network:
        return AsyncioNetwork(target, tls, **limits)

    def _make_runtime(self) -> Runtime:
        return AsyncioRuntime()

    def push_wire(
        self,
        chat_request: Mapping[str, Any],
        hand_out: Callable[[bytes], None],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> PushedStream[bytes]:
        """The frames of `stream_wire`, each handed out in the moment that it comes.

        hand_out: is called by the event loop, must not wait, and must not fail.
        """

        def begin() -> PushedCall[bytes]:
            exchange = self._begin(chat_request, AsFrames, affinity, on_attempt)
            return PushedCall(exchange, self._route, self._runtime, hand_out)

        return PushedStream(begin)


class AsyncioRuntime:
    """One asyncio event loop."""

    # A timer made and cancelled for each read, by anyio.
    httpx_scopes = False

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise LocalProtocolError(
                "AsyncioTransport runs in an asyncio event loop, and none is running here"
            ) from None
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise LocalProtocolError(
                "this AsyncioTransport belongs to another event loop, and so do its connections:"
                " make one for each"
            )

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def timer(self) -> Timer:
        return AsyncioTimer(asyncio.get_running_loop())

    async def sleep_until(self, time: float) -> None:
        await asyncio.sleep(max(0.0, time - self.now()))

    async def done(self, future: Future[Any]) -> None:
        await asyncio.wrap_future(future)

    def shielded(self) -> AbstractContextManager[object]:
        # asyncio's own cancellation comes once, but that of anyio's scopes again and again.
        return anyio.CancelScope(shield=True)

    async def undisturbed(self, work: Awaitable[T]) -> T:
        return await _undisturbed(work, is_cancelled=True)


class AsyncioTimer:
    """What `asyncio.timeout_at` does, for many awaits one after the other.

    One timer serves all of them. When it rings and the deadline has been moved on meanwhile, it is
    set again; to make and cancel one for each delta took 8 us, more than all else that is done for
    it.
    """

    __slots__ = (
        "_deadline",
        "_handle",
        "_loop",
        "_rang",
        "_task",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None
        self._deadline = math.inf
        self._task: asyncio.Task[Any] | None = None
        self._rang = False

    async def within(self, deadline: float, awaitable: Awaitable[T]) -> T:
        self._deadline = deadline
        if deadline != math.inf and (self._handle is None or self._handle.when() > deadline):
            self.stop()
            self._handle = self._loop.call_at(deadline, self._ring)
        task = self._task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            return await _undisturbed(awaitable)
        except asyncio.CancelledError:
            # If somebody else has cancelled the task as well, that is what counts.
            if self._rang and task.cancelling() <= cancellations + 1:
                raise TimeoutError from None
            raise
        finally:
            self._task = None
            if self._rang:
                self._rang = False
                task.uncancel()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        if self._task is None:
            # Nothing is awaited; what comes next sets it again.
            return
        if self._loop.time() < self._deadline:
            self._handle = self._loop.call_at(self._deadline, self._ring)
        else:
            self._rang = True
            self._task.cancel()


@coroutine
def _undisturbed(work: Awaitable[T], *, is_cancelled: bool = False) -> Generator[Any, Any, T]:
    """What it gives. It is cancelled at most once, and not at all if `is_cancelled`.

    Cancelled again while it closes a connection, httpcore leaves that open, and in its pool for
    good. So it may clean up first; what came meanwhile is raised when it is done. anyio's scopes,
    with which httpcore connects and is shielded, are not interfered with.
    """
    steps: Any = work.__await__()
    resume: Callable[[Any], Any] = steps.send
    argument: BaseException | None = None
    again: asyncio.CancelledError | None = None
    while True:
        try:
            waits_for = resume(argument)
        except StopIteration as end:
            if again is not None:
                raise again from None
            return end.value  # type: ignore[no-any-return]
        except Exception:
            if again is not None:
                raise again from None
            raise
        while True:
            try:
                if is_cancelled and waits_for is not None:
                    waits_for._asyncio_future_blocking = False
                    yield from asyncio.wait([waits_for]).__await__()
                else:
                    yield waits_for
            except asyncio.CancelledError as error:
                if is_cancelled and not _is_of_anyio(error):
                    again = error
                    if waits_for is not None and not waits_for.done():
                        continue
                    resume, argument = steps.send, None
                else:
                    is_cancelled = is_cancelled or not _is_of_anyio(error)
                    resume, argument = steps.throw, error
            except BaseException as thrown:
                resume, argument = steps.throw, thrown
            else:
                resume, argument = steps.send, None
            break


def _is_of_anyio(error: asyncio.CancelledError) -> bool:
    """Whether one of anyio's scopes has cancelled; it goes by this message itself."""
    return bool(error.args) and " cancel scope " in str(error.args[0])
