"""`SyncTransport`: the exchange over blocking sockets, requests-style.

`_Call` is the loop between an exchange and the network; what it does at each step is said in
`deltawire.exchange`. One transport may be used by many threads, each of its streams by one.
"""

from __future__ import annotations

import math
import socket
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
from deltawire.transports.http import (
    Decompressor,
    Library,
    can_decode,
    content_coding,
    request_arguments,
)
from deltawire.transports.settings import NOTHING, OnAttempt, Settings, Transport
from deltawire.transports.watchdog import Watch, Watchdog, shut_down

Out = TypeVar("Out")
Item = TypeVar("Item")

_now = time.monotonic


class _Call(Generic[Out]):
    """One exchange on its way over the network."""

    def __init__(
        self, exchange: Exchange[Out], client: Any, library: Library, watchdog: Watchdog
    ) -> None:
        self.exchange = exchange
        self._client = client
        self._library = library
        self._watchdog = watchdog
        self._answer: Any = None
        self._body: Iterator[bytes] = iter(())
        self._decompressor: Decompressor | None = None
        self._peer: socket.socket | None = None
        self._watch: Watch | None = None
        # The peer is only another thread's to shut down while it is this call's.
        self._parting = threading.Lock()
        self._hung_up = threading.Event()
        # Of the phase that is watched over; no limit equals this one.
        self._limit = math.nan

    def next_output(self) -> Out | None:
        """What is to be handed out next; None once there is no more."""
        exchange = self.exchange
        while True:
            if self._hung_up.is_set():
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
                hung_up = self._hung_up.wait(max(0.0, step.until - _now()))
                out = None if hung_up else exchange.waited(_now())
            else:
                return None
            if out:
                return out

    def leave(self) -> None:
        """The caller wants nothing more."""
        self.exchange.leave(_now())
        while self.next_output() is not None:
            pass

    def hang_up(self) -> None:
        """Make the thread that is in `next_output` leave; to be called by another one."""
        with self._parting:
            self._hung_up.set()
            if self._peer is not None:
                shut_down(self._peer)

    def _open(self, step: Open) -> Out | None:
        exchange = self.exchange
        if isinstance(step.gate, Future):
            step.gate.result()
        wait = exchange.limit - _now()
        request = self._client.build_request(**request_arguments(step, wait))
        try:
            answer = self._client.send(request, stream=True, follow_redirects=False)
        except self._library.RequestError as error:
            return self._went_wrong(error, step)
        self._answer = answer
        out = exchange.receive_head(answer.status_code, answer.headers, _now())
        coding = content_coding(answer.headers)
        if coding is not None and not can_decode(coding):
            return exchange.receive_break(f"its content encoding {coding!r} is unknown", _now())
        # The stream is what `iter_raw` reads from; each layer costs a few us for each delta.
        self._body = iter(answer.stream)
        self._decompressor = None if coding is None else Decompressor(coding)
        network = answer.extensions.get("network_stream")
        with self._parting:
            self._peer = network and network.get_extra_info("socket")
        # httpx looks at this once more, when the reading of the body begins.
        request.extensions["timeout"]["read"] = exchange.idle if self._peer is None else None
        return out

    def _read(self) -> Out | None:
        exchange = self.exchange
        now = _now()
        if exchange.limit != self._limit:
            self._enter_phase(now)
        watch = self._watch
        if watch is not None:
            watch.until = exchange.deadline(now)
        elif now >= self._limit:
            return exchange.receive_timeout(now)
        try:
            data = next(self._body, None)
        except self._library.RequestError as error:
            return self._went_wrong(error, None)
        if self._hung_up.is_set():
            return None
        if watch is not None:
            # The caller may take its time with what it is given.
            watch.until = math.inf
        if data is None:
            return exchange.receive_eof(_now())
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data)
            except ValueError as error:
                return exchange.receive_break(str(error), _now())
        return exchange.receive_data(data, _now())

    def _went_wrong(self, error: Exception, step: Open | None) -> Out | None:
        if self._hung_up.is_set():
            return None
        too_late = self._watch is not None and self._watch.fired
        if too_late or self._library.is_timeout(error):
            return self.exchange.receive_timeout(_now(), self._library.lateness(error, step))
        return self.exchange.receive_break(self._library.reason(error, step), _now())

    def _close(self) -> None:
        self._unwatch()
        self._limit = math.nan
        with self._parting:
            self._peer = None
        try:
            if self._answer is not None:
                self._answer.close()
        except self._library.RequestError:
            # A connection that cannot be closed in good manners is closed all the same.
            pass
        finally:
            self._answer = None
            self.exchange.closed(_now())

    def _enter_phase(self, now: float) -> None:
        """Watch over the socket, if there is one; a caller's own client need not have any."""
        self._unwatch()
        exchange = self.exchange
        self._limit = exchange.limit
        until = exchange.deadline(now)
        if self._peer is not None and until != math.inf:
            self._watch = self._watchdog.watch(self._peer, until, until - now)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watchdog.cancel(self._watch)
            self._watch = None


class SyncStream(Answer[Out], Generic[Out, Item]):
    """The answer to one call, item by item; nothing is sent before the first is asked for.

    A context manager and an iterator; leaving the block, or dropping it, closes upstream. Raises
    UpstreamError and its children, and InvalidRequest for what is wrong with the request.
    """

    def __init__(
        self,
        begin: Callable[[], _Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
    ) -> None:
        super().__init__()
        self._calls: list[_Call[Out]] = []
        self._unwanted = threading.Event()
        self._iterator = self._iterate(begin, items, self._begun, self._calls, self._unwanted)

    @staticmethod
    def _iterate(
        begin: Callable[[], _Call[Out]],
        items: Callable[[Exchange[Out], Out], Iterable[Item]],
        begun: list[Exchange[Out]],
        calls: list[_Call[Out]],
        unwanted: threading.Event,
    ) -> Generator[Item, None, None]:
        call = begin()
        begun.append(call.exchange)
        calls.append(call)
        # Whoever hangs up looks the other way round, so that one of the two sees the other.
        if unwanted.is_set():
            call.hang_up()
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

        It ends without an error, its last attempt `cancelled`; nothing is drained. Until the head
        of an answer is there, httpx shows no socket that could be shut down: who waits for that
        goes on waiting, until it comes or a timeout passes, and leaves then. May be called again.
        """
        self._unwanted.set()
        for call in self._calls:
            call.hang_up()


class SyncTransport(Transport):
    """Chat Completions by a Responses upstream, over blocking sockets.

    Arguments are those of `Transport`; `client` is an `httpx.Client` or an `httpx2.Client`. A
    context manager; many threads may use one.
    """

    blocking: ClassVar[bool] = True
    extra: ClassVar[str] = "sync"

    def __init__(self, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self._watchdog = Watchdog()

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
            lambda: self._call(chat_request, AsEvents, affinity, on_attempt), chunks_of
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
            lambda: self._call(chat_request, AsFrames, affinity, on_attempt), frames_of
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
        return SyncStream(
            lambda: self._call(chat_request, AsCompletion, affinity, on_attempt, WITH_USAGE),
            completion_of,
        )

    def create(
        self,
        chat_request: Mapping[str, Any],
        *,
        affinity: str | None = None,
        on_attempt: OnAttempt | None = None,
    ) -> ChatCompletion:
        """The whole answer. Raises UpstreamError and its children, and InvalidRequest."""
        call = self._call(chat_request, AsCompletion, affinity, on_attempt, WITH_USAGE)
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
        options: Mapping[str, Any] = NOTHING,
    ) -> _Call[Out]:
        exchange = self._exchange(chat_request, rendering, _now(), affinity, on_attempt, options)
        return _Call(exchange, self._client, self._library, self._watchdog)

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
        self._watchdog.close()
        if self._owns_client:
            self._client.close()
