"""The exchange over an event loop, whichever it is: the loop between exchange and network, once.

What asyncio and trio each have of their own, clock, deadlines and cancellation, is a `Runtime`; the
two are in files of their own. What a request goes out by is a `Network`.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, Unpack

from deltawire.chat import ChatCompletion, Chunk, Event
from deltawire.exchange import Exchange
from deltawire.renderings import AsCompletion, AsEvents, AsFrames, Machine, Rendering
from deltawire.steps import ENDED, Close, Open, Read, Wait
from deltawire.transports.answers import (
    WITH_USAGE,
    Answer,
    chunks_of,
    completion_of,
    frames_of,
    raise_unless_begun,
    whole,
)
from deltawire.transports.http import (
    Decompressor,
    Library,
    Routes,
    Target,
    can_decode,
    content_coding,
)
from deltawire.transports.network import HTTPXNetwork, Network, Response, Trouble
from deltawire.transports.settings import NOTHING, OnAttempt, Settings, Transport

Out = TypeVar("Out")
Item = TypeVar("Item")
T = TypeVar("T")


class Timer(Protocol):
    """Deadlines for one task, one after the other. `inf` is never."""

    async def within(self, deadline: float, awaitable: Awaitable[T]) -> T:
        """What it gives. Raises TimeoutError, and cancels it, once the deadline has passed."""

    def stop(self) -> None:
        """There is no deadline for now."""


class Runtime(Protocol):
    """What an event loop has of its own. Times are on its clock, in seconds; `inf` is never."""

    httpx_scopes: bool
    """Whether httpx's own limit for a read costs the same whether it is used or not."""

    def check(self) -> None:
        """Raise LocalProtocolError unless this runs in the event loop that was first used."""

    def now(self) -> float: ...

    def timer(self) -> Timer:
        """What keeps the deadlines of one call."""

    async def sleep_until(self, time: float) -> None: ...

    async def done(self, future: Future[Any]) -> None:
        """Wait for what another thread does. Raises its error."""

    def shielded(self) -> AbstractContextManager[object]:
        """Inside, a cancellation that has already come does not interrupt."""

    async def undisturbed(self, work: Awaitable[T]) -> T:
        """What it gives; a cancellation is raised when it is done. For what does not take long."""


class Call(Generic[Out]):
    """One exchange on its way over a network, which `route` finds for each URL."""

    __slots__ = (
        "_decompressor",
        "_errors",
        "_network",
        "_response",
        "_route",
        "_runtime",
        "_timer",
        "exchange",
    )

    def __init__(
        self, exchange: Exchange[Out], route: Callable[[str], Network], runtime: Runtime
    ) -> None:
        self.exchange = exchange
        self._route = route
        self._runtime = runtime
        self._timer = runtime.timer()
        self._network: Network | None = None
        self._errors: tuple[type[Exception], ...] = ()
        self._response: Response | None = None
        self._decompressor: Decompressor | None = None

    async def next_output(self) -> Out | None:
        """What is to be handed out next; None once there is no more."""
        exchange = self.exchange
        while True:
            step = exchange.step
            if isinstance(step, Read):
                out = await self._read()
            elif isinstance(step, Open):
                out = await self._open(step)
            elif isinstance(step, Close):
                await self._close()
                out = None
            elif isinstance(step, Wait):
                await self._runtime.sleep_until(step.until)
                out = exchange.waited(self._runtime.now())
            else:
                return None
            if out:
                return out

    async def leave(self) -> None:
        """The caller wants nothing more."""
        self.exchange.leave(self._runtime.now())
        if self.exchange.step is ENDED:
            return
        with self._runtime.shielded():
            try:
                while await self.next_output() is not None:
                    pass
            except BaseException:
                # Cancelled once more, while upstream is drained: then it is hung up on.
                self.exchange.leave(self._runtime.now())
                await self.next_output()
                raise

    async def _open(self, step: Open) -> Out | None:
        exchange, now = self.exchange, self._runtime.now
        if isinstance(step.gate, Future):
            await self._runtime.done(step.gate)
        limit = exchange.limit
        network = self._network = self._route(step.request.url)
        self._errors = network.errors
        try:
            response = await self._timer.within(limit, network.send(step, limit - now()))
        except TimeoutError:
            return exchange.receive_timeout(now())
        except network.errors as error:
            return self._went_wrong(network.trouble(error, step))
        self._response = response
        out = exchange.receive_head(response.status, response.headers, now())
        coding = content_coding(response.headers)
        if coding is not None and not can_decode(coding):
            return exchange.receive_break(f"its content encoding {coding!r} is unknown", now())
        self._decompressor = None if coding is None else Decompressor(coding)
        return out

    async def _read(self) -> Out | None:
        exchange, now = self.exchange, self._runtime.now
        response, network = self._response, self._network
        if response is None or network is None:
            return exchange.receive_eof(now())
        try:
            return await self._receive_next(response)
        except StopAsyncIteration:
            return exchange.receive_eof(now())
        except TimeoutError:
            return exchange.receive_timeout(now())
        except network.errors as error:
            return self._went_wrong(network.trouble(error, None))

    async def _receive_next(self, response: Response) -> Out | None:
        """What comes next, to the exchange. Raises what a read raises, and TimeoutError."""
        exchange, at = self.exchange, self._runtime.now()
        deadline = exchange.deadline(at)
        if response.patience is not None and exchange.limit - at > response.patience:
            # Only its being idle could end this read, and the network sees to that.
            deadline = math.inf
        return self._receive(await self._timer.within(deadline, response.read()))

    def _receive(self, data: bytes) -> Out | None:
        exchange, now = self.exchange, self._runtime.now
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data)
            except ValueError as error:
                return exchange.receive_break(str(error), now())
        return exchange.receive_data(data, now())

    def _went_wrong(self, trouble: Trouble) -> Out | None:
        now = self._runtime.now()
        if trouble.late:
            return self.exchange.receive_timeout(now, trouble.reason)
        return self.exchange.receive_break(trouble.reason or "the connection broke", now)

    async def _close(self) -> None:
        response = self._response
        try:
            if response is not None:
                await self._runtime.undisturbed(response.close())
        except self._errors:
            # A connection that cannot be closed in good manners is closed all the same.
            pass
        finally:
            self._response = None
            self._timer.stop()
            self.exchange.closed(self._runtime.now())


class AsyncStream(Answer[Out], Generic[Out, Item]):
    """The answer to one call, item by item; nothing is sent before the first is asked for.

    An async context manager and iterator; leaving the block, cancelling, or dropping it closes
    upstream. Raises UpstreamError and its children, and InvalidRequest for what is wrong with the
    request.
    """

    def __init__(
        self,
        begin: Callable[[], Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
    ) -> None:
        super().__init__()
        self._iterator = self._iterate(begin, items, self._begun)

    @staticmethod
    async def _iterate(
        begin: Callable[[], Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
        begun: list[Exchange[Out]],
    ) -> AsyncGenerator[Item, None]:
        call = begin()
        # It knows the request, which may be long.
        del begin
        begun.append(call.exchange)
        try:
            while (out := await call.next_output()) is not None:
                for item in items(call.exchange, out):
                    yield item
            raise_unless_begun(call.exchange)
        finally:
            await call.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._iterator

    def __anext__(self) -> Awaitable[Item]:
        return anext(self._iterator)

    async def aclose(self) -> None:
        """Hang up on upstream, or drain it, as the policy says. May be called again."""
        await self._iterator.aclose()


class AsyncTransport(Transport):
    """What `AsyncioTransport` and `TrioTransport` have in common; neither of them by itself."""

    blocking: ClassVar[bool] = False

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self._direct: Network | None = None
        super().__init__(**settings)
        runtime = self._runtime = self._make_runtime()
        patience = self._timeouts.idle if runtime.httpx_scopes else None
        self._network: Network = HTTPXNetwork(self._client, self._library, patience)

    def _make_runtime(self) -> Runtime:
        raise NotImplementedError

    def _make_direct(
        self, target: Callable[[str], Target], tls: ssl.SSLContext, limits: Mapping[str, Any]
    ) -> Network:
        """Connections of the transport's own."""
        raise NotImplementedError

    def _make_client(
        self, library: Library, network: Mapping[str, Any], proxy: str | None, tls: ssl.SSLContext
    ) -> Any:
        if proxy is None:
            self._routes = Routes(library)
            self._direct = self._make_direct(library.target, tls, network)
        return super()._make_client(library, network, proxy, tls)

    def _route(self, url: str) -> Network:
        """What a request to that URL goes by."""
        if self._direct is not None and self._routes.is_plain(url):
            return self._direct
        return self._network

    def stream(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> AsyncStream[list[Event], Chunk]:
        """The answer as chunks.

        affinity: calls with the same stay with one account. on_attempt: in place of the
        transport's own.
        """
        return AsyncStream(
            lambda: self._call(self._begin(chat_request, AsEvents, affinity, on_attempt)), chunks_of
        )

    def stream_wire(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> AsyncStream[bytes, bytes]:
        """The answer as frames of an event stream, ready to be sent to a Chat client.

        A failure before the first frame is raised; a later one is the last frame.
        """
        return AsyncStream(
            lambda: self._call(self._begin(chat_request, AsFrames, affinity, on_attempt)), frames_of
        )

    def stream_completion(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> AsyncStream[ChatCompletion | None, ChatCompletion]:
        """The whole answer as the only item, for who wants to know more of it than that.

        Failures are raised.
        """
        return AsyncStream(
            lambda: self._call(
                self._begin(chat_request, AsCompletion, affinity, on_attempt, WITH_USAGE)
            ),
            completion_of,
        )

    async def create(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> ChatCompletion:
        """The whole answer. Raises UpstreamError and its children, and InvalidRequest."""
        call = self._call(self._begin(chat_request, AsCompletion, affinity, on_attempt, WITH_USAGE))
        try:
            completion = await call.next_output()
            await call.next_output()
        finally:
            await call.leave()
        return whole(call.exchange, completion)

    def _call(self, exchange: Exchange[Out]) -> Call[Out]:
        return Call(exchange, self._route, self._runtime)

    def _begin(
        self,
        chat_request: Mapping[str, Any],
        rendering: Callable[[Machine], Rendering[Out]],
        affinity: str | None,
        on_attempt: OnAttempt | None,
        options: Mapping[str, Any] = NOTHING,
    ) -> Exchange[Out]:
        self._runtime.check()
        now = self._runtime.now()
        return self._exchange(chat_request, rendering, now, affinity, on_attempt, options)

    def _networks(self) -> tuple[Network, ...]:
        return (self._network,) if self._direct is None else (self._network, self._direct)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that are kept, unless the client is the caller's own."""
        if self._owns_client:
            self._runtime.check()
            for network in self._networks():
                await self._runtime.undisturbed(network.aclose())
