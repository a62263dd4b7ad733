"""One way to call all transports: a test is written once, blocking, and each `Driver` runs it.

    @pytest.mark.parametrize("driver", DRIVERS, ids=str)
    def test_an_answer_is_whole(driver: Driver, upstream: Upstream) -> None:
        result = driver.chunks(REQUEST, base_url=upstream.base_url)
        assert result.attempts[0].outcome == "completed"

A driver is a transport with an HTTP client: its own, an `httpx` one, or an `httpx2` one. Those of
an event loop run it on a thread of its own for as long as the session, so that a test may wait for
something else, between calls or in `on_output`.
"""

from __future__ import annotations

import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from types import ModuleType
from typing import Any, Final, Generic, Literal, TypeVar, Unpack

import httpx
import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal

from deltawire.attempts import Attempt, Outcome
from deltawire.chat import ChatCompletion, Chunk, Usage
from deltawire.errors import DeltawireError, UpstreamError
from deltawire.reading import ReportEntry
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from deltawire.transports.answers import Answer
from deltawire.transports.asynchronous import AsyncStream, AsyncTransport
from deltawire.transports.settings import Settings
from deltawire.transports.sync import SyncStream

Item = TypeVar("Item")
Request = Mapping[str, Any]
Told = list[tuple[Attempt, Outcome | None]]
"""Attempts, each with its outcome at the time of telling: None when it began."""


@dataclass
class Result(Generic[Item]):
    """What a call gave.

    outputs: chunks, frames, or the one completion, as far as they came.
    error: what was raised after them.
    """

    outputs: list[Item] = field(default_factory=list)
    error: DeltawireError | None = None
    attempts: list[Attempt] = field(default_factory=list)
    usage: Usage | None = None
    report: list[ReportEntry] = field(default_factory=list)

    @property
    def failure(self) -> UpstreamError:
        """The error, which is upstream's."""
        assert isinstance(self.error, UpstreamError), self.error
        return self.error

    @property
    def completion(self) -> ChatCompletion:
        """The completion of a call of `create`."""
        if self.error is not None:
            raise self.error
        (completion,) = self.outputs
        assert isinstance(completion, ChatCompletion)
        return completion

    @property
    def outcomes(self) -> list[tuple[str, Outcome | None]]:
        """(account, outcome) of each attempt."""
        return [(attempt.account, attempt.outcome) for attempt in self.attempts]


@dataclass
class _Reader(Generic[Item]):
    """Whoever asks for a stream: how much it wants, and what it does meanwhile."""

    on_output: Callable[[Item], object] | None
    stop_after: int | None
    result: Result[Item] = field(default_factory=Result)

    def take(self, item: Item) -> bool:
        """Whether more is wanted."""
        self.result.outputs.append(item)
        if self.on_output is not None:
            self.on_output(item)
        return len(self.result.outputs) != self.stop_after

    def end(self, answer: Answer[Any]) -> Result[Item]:
        # The exchange is there once the request was found to be one that can be sent.
        if answer._begun:
            self.result.attempts = answer.attempts
            self.result.usage = answer.usage
            self.result.report = answer.report
        return self.result


class Session(ABC):
    """Calls by one transport, which share its connections and its accounts."""

    def __init__(self, told: Told) -> None:
        self.told = told
        """What `on_attempt` was told so far."""

    def chunks(
        self,
        request: Request,
        *,
        affinity: str | None = None,
        on_output: Callable[[Chunk], object] | None = None,
        stop_after: int | None = None,
    ) -> Result[Chunk]:
        """`stream()`, left after `stop_after` outputs; `on_output` is called before the next."""
        return self._chunks(request, affinity, _Reader(on_output, stop_after))

    def frames(
        self,
        request: Request,
        *,
        affinity: str | None = None,
        on_output: Callable[[bytes], object] | None = None,
        stop_after: int | None = None,
    ) -> Result[bytes]:
        """`stream_wire()`, likewise."""
        return self._frames(request, affinity, _Reader(on_output, stop_after))

    def create(self, request: Request, *, affinity: str | None = None) -> Result[ChatCompletion]:
        """`create()`. What was tried is known if no other call runs meanwhile."""
        before = len(self.told)
        result = Result[ChatCompletion]()
        try:
            result.outputs.append(self._create(request, affinity))
            result.usage = result.outputs[0].usage
        except DeltawireError as error:
            result.error = error
        result.attempts = [attempt for attempt, outcome in self.told[before:] if outcome is None]
        return result

    @abstractmethod
    def concurrently(self, n: int, request: Callable[[int], Request]) -> list[Result[Chunk]]:
        """`stream()` of request(0) to request(n - 1), all at once."""

    @abstractmethod
    def _chunks(
        self, request: Request, affinity: str | None, reader: _Reader[Chunk]
    ) -> Result[Chunk]: ...

    @abstractmethod
    def _frames(
        self, request: Request, affinity: str | None, reader: _Reader[bytes]
    ) -> Result[bytes]: ...

    @abstractmethod
    def _create(self, request: Request, affinity: str | None) -> ChatCompletion: ...


class _SyncSession(Session):
    def __init__(self, transport: SyncTransport, told: Told) -> None:
        super().__init__(told)
        self._transport = transport

    def concurrently(self, n: int, request: Callable[[int], Request]) -> list[Result[Chunk]]:
        with ThreadPoolExecutor(n) as pool:
            return list(pool.map(lambda i: self.chunks(request(i)), range(n)))

    def _chunks(
        self, request: Request, affinity: str | None, reader: _Reader[Chunk]
    ) -> Result[Chunk]:
        return _read(self._transport.stream(request, affinity=affinity), reader)

    def _frames(
        self, request: Request, affinity: str | None, reader: _Reader[bytes]
    ) -> Result[bytes]:
        return _read(self._transport.stream_wire(request, affinity=affinity), reader)

    def _create(self, request: Request, affinity: str | None) -> ChatCompletion:
        return self._transport.create(request, affinity=affinity)


def _read(answer: SyncStream[Any, Item], reader: _Reader[Item]) -> Result[Item]:
    try:
        with answer:
            for item in answer:
                if not reader.take(item):
                    break
    except DeltawireError as error:
        reader.result.error = error
    return reader.end(answer)


class _AsyncSession(Session):
    def __init__(self, transport: AsyncTransport, told: Told, portal: BlockingPortal) -> None:
        super().__init__(told)
        self._transport = transport
        self._portal = portal

    def concurrently(self, n: int, request: Callable[[int], Request]) -> list[Result[Chunk]]:
        calls = [
            self._portal.start_task_soon(
                _aread, self._transport.stream(request(i)), _Reader[Chunk](None, None)
            )
            for i in range(n)
        ]
        return [call.result() for call in calls]

    def _chunks(
        self, request: Request, affinity: str | None, reader: _Reader[Chunk]
    ) -> Result[Chunk]:
        answer = self._transport.stream(request, affinity=affinity)
        return self._portal.call(_aread, answer, reader)

    def _frames(
        self, request: Request, affinity: str | None, reader: _Reader[bytes]
    ) -> Result[bytes]:
        answer = self._transport.stream_wire(request, affinity=affinity)
        return self._portal.call(_aread, answer, reader)

    def _create(self, request: Request, affinity: str | None) -> ChatCompletion:
        return self._portal.call(partial(self._transport.create, request, affinity=affinity))


async def _aread(answer: AsyncStream[Any, Item], reader: _Reader[Item]) -> Result[Item]:
    try:
        async with answer:
            async for item in answer:
                if not reader.take(item):
                    break
    except DeltawireError as error:
        reader.result.error = error
    return reader.end(answer)


@dataclass(frozen=True)
class Driver:
    """A transport and its HTTP client.

    library: whose client is given to the transport; None: the transport makes its own.
    """

    transport: type[SyncTransport] | type[AsyncTransport]
    loop: Literal["asyncio", "trio"] | None
    library: ModuleType | None

    def __str__(self) -> str:
        client = "" if self.library is None else f"-{self.library.__name__}"
        return f"{self.loop or 'sync'}{client}"

    def chunks(
        self,
        request: Request,
        *,
        affinity: str | None = None,
        on_output: Callable[[Chunk], object] | None = None,
        stop_after: int | None = None,
        **settings: Unpack[Settings],
    ) -> Result[Chunk]:
        """The only call of a session."""
        with self.session(**settings) as session:
            return session.chunks(
                request, affinity=affinity, on_output=on_output, stop_after=stop_after
            )

    def frames(
        self,
        request: Request,
        *,
        affinity: str | None = None,
        on_output: Callable[[bytes], object] | None = None,
        stop_after: int | None = None,
        **settings: Unpack[Settings],
    ) -> Result[bytes]:
        """The only call of a session."""
        with self.session(**settings) as session:
            return session.frames(
                request, affinity=affinity, on_output=on_output, stop_after=stop_after
            )

    def create(
        self,
        request: Request,
        *,
        affinity: str | None = None,
        **settings: Unpack[Settings],
    ) -> Result[ChatCompletion]:
        """The only call of a session."""
        with self.session(**settings) as session:
            return session.create(request, affinity=affinity)

    @contextlib.contextmanager
    def session(self, **settings: Unpack[Settings]) -> Iterator[Session]:
        """A transport with these settings, closed at the end, and so is a client made for it.

        Where a client is made, it takes `verify`, which must not be a file then.
        """
        with contextlib.ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal(self.loop)) if self.loop else None
            if "client" not in settings:
                settings.setdefault("verify", _default_tls())
                if self.library is not None:
                    client = self.client(verify=settings.pop("verify"))
                    settings["client"] = client
                    close = client.close if portal is None else partial(portal.call, client.aclose)
                    stack.callback(close)
            yield stack.enter_context(self._session(portal, settings))

    def client(self, **options: Any) -> Any:
        """A client of the driver's library that the transport could be given."""
        assert self.library is not None
        kind = self.library.AsyncClient if self.loop else self.library.Client
        return kind(trust_env=False, **options)

    @contextlib.contextmanager
    def _session(self, portal: BlockingPortal | None, settings: Settings) -> Iterator[Session]:
        told: Told = []
        on_attempt = settings.pop("on_attempt", None)

        def tell(attempt: Attempt) -> Any:
            told.append((attempt, attempt.outcome))
            return None if on_attempt is None else on_attempt(attempt)

        settings["on_attempt"] = tell
        transport = self.transport(**settings)
        session: Session
        if isinstance(transport, SyncTransport):
            session, close = _SyncSession(transport, told), transport.close
        else:
            assert portal is not None
            session = _AsyncSession(transport, told, portal)
            close = partial(portal.call, transport.aclose)
        try:
            yield session
        finally:
            close()


@cache
def _default_tls() -> ssl.SSLContext:
    # To make one takes longer than most tests.
    return ssl.create_default_context()


_Loop = Literal["asyncio", "trio"] | None

_KINDS: Final[tuple[tuple[type[SyncTransport] | type[AsyncTransport], _Loop], ...]] = (
    (SyncTransport, None),
    (AsyncioTransport, "asyncio"),
    (TrioTransport, "trio"),
)

DRIVERS: Final = tuple(
    Driver(transport, loop, library)
    for transport, loop in _KINDS
    for library in (None, httpx, httpx2)
)
"""All of them."""

OWN_CLIENT: Final = tuple(driver for driver in DRIVERS if driver.library is None)
"""Those whose transport makes its client by its settings."""

GIVEN_CLIENT: Final = tuple(driver for driver in DRIVERS if driver.library is not None)
"""Those whose transport is given a client."""
