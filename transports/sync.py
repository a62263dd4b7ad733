"""`SyncTransport`: the exchange over blocking sockets, requests-style.

`_Call` is the loop between an exchange and the network; what it does at each step is said in
`deltawire.exchange`. One transport may be used by many threads, each of its streams by one.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar, Unpack

from deltawire.chat import ChatCompletion, Chunk, Event
from deltawire.exchange import Exchange
from deltawire.renderings import AsCompletion, AsEvents, AsFrames, Machine, Rendering
from deltawire.steps import Close, Open, Read, Wait
from deltawire.transports.answers import (
    WITH_USAGE,
    Answer,
    chunks_of,
    completion_of,
    frames_of,
    raise_unless_begun,
    whole,
)
from deltawire.transports.blocking import HTTPXNetwork, Line, Network, Response
from deltawire.transports.http import (
    Decompressor,
    Library,
    Routes,
    can_decode,
    content_coding,
)
from deltawire.transports.pool import SocketNetwork
from deltawire.transports.settings import NOTHING, OnAttempt, Settings, Transport
from deltawire.transports.watchdog import Watchdog

Out = TypeVar("Out")
Item = TypeVar("Item")

_now = time.monotonic


class _Call(Generic[Out]):
    """One exchange on its way over a network, which `route` finds for each URL."""

    __slots__ = (
        "_decompressor",
        "_errors",
        "_line",
        "_network",
        "_response",
        "_route",
        "exchange",
    )

    def __init__(
        self, exchange: Exchange[Out], route: Callable[[str], Network], line: Line
    ) -> None:
        self.exchange = exchange
        self._route = route
        self._line = line
        self._network: Network | None = None
        self._errors: tuple[type[Exception], ...] = ()
        self._response: Response | None = None
        self._decompressor: Decompressor | None = None

    def next_output(self) -> Out | None:
        """What is to be handed out next; None once there is no more."""
        exchange, line = self.exchange, self._line
        while True:
            if line.cut:
                exchange.leave(_now())
            step = exchange.step
            if isinstance(step, Read):
                out = self._read()
            elif isinstance(step, Open):
                out = self._open(step)
            elif isinstance(step, Close):
                self._close()
                out = None
            elif isinstance(step, Wait):
                out = self._wait(step.until)
            else:
                return None
            if out:
                return out

    def leave(self) -> None:
        """The caller wants nothing more."""
        self.exchange.leave(_now())
        try:
            while self.next_output() is not None:
                pass
        except BaseException:
            # Interrupted while upstream is drained: then it is hung up on.
            self.exchange.leave(_now())
            self.next_output()
            raise

    def _open(self, step: Open) -> Out | None:
        exchange = self.exchange
        if isinstance(step.gate, Future):
            step.gate.result()
        network = self._network = self._route(step.request.url)
        self._errors = network.errors
        try:
            response = network.send(step, exchange.limit, _now(), self._line)
        except network.errors as error:
            return self._went_wrong(error, step)
        self._response = response
        out = exchange.receive_head(response.status, response.headers, _now())
        coding = content_coding(response.headers)
        if coding is not None and not can_decode(coding):
            return exchange.receive_break(f"its content encoding {coding!r} is unknown", _now())
        self._decompressor = None if coding is None else Decompressor(coding)
        return out

    def _read(self) -> Out | None:
        exchange, response, now = self.exchange, self._response, _now()
        if response is None:
            return exchange.receive_eof(now)
        try:
            data = response.read(exchange.deadline(now), now)
        except self._errors as error:
            return self._went_wrong(error, None)
        if self._line.cut:
            return None
        if not data:
            return exchange.receive_eof(_now())
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data)
            except ValueError as error:
                return exchange.receive_break(str(error), _now())
        return exchange.receive_data(data, _now())

    def _went_wrong(self, error: Exception, step: Open | None) -> Out | None:
        if self._line.cut or self._network is None:
            return None
        trouble = self._network.trouble(error, step)
        if trouble.late:
            return self.exchange.receive_timeout(_now(), trouble.reason)
        return self.exchange.receive_break(trouble.reason or "the connection broke", _now())

    def _close(self) -> None:
        response = self._response
        self._line.close()
        try:
            if response is not None:
                response.close()
        except self._errors:
            # A connection that cannot be closed in good manners is closed all the same.
            pass
        finally:
            self._response = None
            self.exchange.closed(_now())

    def _wait(self, until: float) -> Out | None:
        woken = threading.Event()
        self._line.open(woken.set)
        hung_up = woken.wait(max(0.0, until - _now()))
        self._line.close()
        return None if hung_up else self.exchange.waited(_now())


class SyncStream(Answer[Out], Generic[Out, Item]):
    """The answer to one call, item by item; nothing is sent before the first is asked for.

    A context manager and an iterator; leaving the block, or dropping it, closes upstream. Raises
    UpstreamError and its children, and InvalidRequest for what is wrong with the request.
    """

    def __init__(
        self,
        begin: Callable[[Line], _Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
    ) -> None:
        super().__init__()
        self._line = Line()
        self._iterator = self._iterate(begin, items, self._begun, self._line)

    @staticmethod
    def _iterate(
        begin: Callable[[Line], _Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
        begun: list[Exchange[Out]],
        line: Line,
    ) -> Generator[Item, None, None]:
        call = begin(line)
        # It has what was asked, which may be long.
        del begin
        begun.append(call.exchange)
        try:
            while (out := call.next_output()) is not None:
                yield from items(call.exchange, out)
            raise_unless_begun(call.exchange)
        finally:
            call.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self._iterator

    def __next__(self) -> Item:
        return next(self._iterator)

    def close(self) -> None:
        """Hang up on upstream, or drain it, as the policy says. May be called again."""
        self._iterator.close()

    def hang_up(self) -> None:
        """End the iteration, from another thread than the one that may be blocked in it.

        It ends without an error, its last attempt `cancelled`; nothing is drained. Two things go on
        to their end: the system's look-up of a name; and, where the request goes by httpx, which
        shows no socket before, the wait for the head of an answer, until it comes or a timeout
        passes. May be called again.
        """
        self._line.hang_up()


class SyncTransport(Transport):
    """Chat Completions by a Responses upstream, over blocking sockets.

    Arguments are those of `Transport`; `client` is an `httpx.Client` or an `httpx2.Client`. A
    context manager; many threads may use one.

    Without a client, where no proxy applies, and not on Windows, it has connections of its own:
    `pool`.
    """

    blocking: ClassVar[bool] = True
    extra: ClassVar[str] = "sync"
    _direct: SocketNetwork | None = None
    _routes: Routes

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self._watchdog = Watchdog()
        super().__init__(**settings)
        self._network = HTTPXNetwork(
            self._client, self._library, self._timeouts.idle, self._watchdog
        )

    def _make_client(
        self, library: Library, network: Mapping[str, Any], proxy: str | None, tls: ssl.SSLContext
    ) -> Any:
        if proxy is None and os.name == "posix":
            self._routes = Routes(library)
            self._direct = SocketNetwork(self._watchdog, library.target, tls, **network)
        return super()._make_client(library, network, proxy, tls)

    def _route(self, url: str) -> Network:
        if self._direct is not None and self._routes.is_plain(url):
            return self._direct
        return self._network

    def _guard(self) -> AbstractContextManager[object]:
        return threading.Lock()

    def stream(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> SyncStream[list[Event], Chunk]:
        """The answer as chunks.

        affinity: calls with the same stay with one account. on_attempt: in place of the
        transport's own.
        """
        return SyncStream(
            lambda line: self._call(chat_request, AsEvents, affinity, on_attempt, line), chunks_of
        )

    def stream_wire(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> SyncStream[bytes, bytes]:
        """The answer as frames of an event stream, ready to be sent to a Chat client.

        A failure before the first frame is raised; a later one is the last frame.
        """
        return SyncStream(
            lambda line: self._call(chat_request, AsFrames, affinity, on_attempt, line), frames_of
        )

    def stream_completion(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> SyncStream[ChatCompletion | None, ChatCompletion]:
        """The whole answer as the only item, for who has to be able to hang up on it.

        Failures are raised.
        """

        def begin(line: Line) -> _Call[ChatCompletion | None]:
            return self._call(chat_request, AsCompletion, affinity, on_attempt, line, WITH_USAGE)

        return SyncStream(begin, completion_of)

    def create(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> ChatCompletion:
        """The whole answer. Raises UpstreamError and its children, and InvalidRequest."""
        call = self._call(chat_request, AsCompletion, affinity, on_attempt, Line(), WITH_USAGE)
        try:
            completion = call.next_output()
            call.next_output()
        finally:
            call.leave()
        return whole(call.exchange, completion)

    def _call(
        self,
        chat_request: Mapping[str, Any],
        rendering: Callable[[Machine], Rendering[Out]],
        affinity: str | None,
        on_attempt: OnAttempt | None,
        line: Line,
        options: Mapping[str, Any] = NOTHING,
    ) -> _Call[Out]:
        exchange = self._exchange(chat_request, rendering, _now(), affinity, on_attempt, options)
        return _Call(exchange, self._route, line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept, unless the client is the caller's own."""
        if self._owns_client:
            self._network.close()
            if self._direct is not None:
                self._direct.close()
            self._watchdog.close()
