"""`Service`: what the connections of one server share: the app, the upstreams, the books.

No I/O of its own beyond making the transports. Callers: the three drivers and the command line.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from msgspec import structs

from deltawire.attempts import Attempt
from deltawire.errors import InvalidRequest, InvalidSetting
from deltawire.server.access import LOGGER, as_json, for_people
from deltawire.server.app import COMPLETIONS, App, ChatCall, Reply, error_reply
from deltawire.server.delivery import Delivery
from deltawire.server.framing import Refused
from deltawire.server.http import HTTPConnection, Phase, Request
from deltawire.server.ledger import Entry, Ledger
from deltawire.server.metrics import Metrics
from deltawire.server.records import LEFT, Served, whole_duration
from deltawire.server.settings import Config, Upstream
from deltawire.transports.settings import Transport

T = TypeVar("T", bound=Transport)

# A driver listens once, and rows that were begun in one database are settled there.
_FIXED: Final = ("host", "port", "transport", "workers")


@dataclass(eq=False)
class _Shared(Generic[T]):
    """A transport, and how many calls use it."""

    upstream: Upstream
    transport: T
    calls: int = 0


class Service(Generic[T]):
    """One server at work.

    ledger: where each attempt is written down before it is sent; None: nowhere.
    """

    def __init__(self, config: Config, kind: type[T], ledger: Ledger | None = None) -> None:
        self._kind = kind
        self._ledger = ledger
        self._guard = threading.Lock()
        self.metrics = Metrics() if ledger is None else Metrics(ledger.health)
        self.dispose: Callable[[T], object] | None = None
        """How the driver closes a transport that a reload has made useless."""
        self.config = config
        self.app = self._app(config)
        self._shared = {each.name: self._share(each) for each in config.upstreams}
        self._retired: set[_Shared[T]] = set()

    def _app(self, config: Config) -> App:
        return App(config, health=self._health, metrics=self.metrics.reply)

    def _share(self, upstream: Upstream) -> _Shared[T]:
        return _Shared(upstream, self._kind(**upstream.settings()))

    # The configuration.

    def reload(self, config: Config) -> list[str]:
        """Take in a changed configuration; the settings that take a restart, and were not changed.

        Answers that are under way go on with what they began with. An upstream of which nothing
        has changed keeps its connections, and its accounts their rest. Raises InvalidSetting, and
        then nothing has changed.
        """
        old, new = self.config, config
        kept = {name: getattr(old.server, name) for name in _FIXED}
        fixed = [f"server.{name}" for name in _FIXED if getattr(new.server, name) != kept[name]]
        if new.ledger != old.ledger:
            fixed.append("ledger")
        new = replace(new, server=replace(new.server, **kept), ledger=old.ledger)
        before = self._shared
        shared: dict[str, _Shared[T]] = {}
        try:
            for upstream in new.upstreams:
                same = before.get(upstream.name)
                if same is None or same.upstream != upstream:
                    same = self._share(upstream)
                shared[upstream.name] = same
        except InvalidSetting:
            for made in shared.values():
                if made not in before.values():
                    self._dispose(made)
            raise
        with self._guard:
            self.config, self.app, self._shared = new, self._app(new), shared
            useless = [each for each in before.values() if each not in shared.values()]
            idle = [each for each in useless if not each.calls]
            self._retired.update(each for each in useless if each.calls)
        for each in idle:
            self._dispose(each)
        return fixed

    def _dispose(self, shared: _Shared[T]) -> None:
        if self.dispose is not None:
            self.dispose(shared.transport)

    @property
    def transports(self) -> list[T]:
        """All there are, those that a reload has replaced and that are still in use included."""
        with self._guard:
            return [each.transport for each in (*self._shared.values(), *self._retired)]

    # What is asked.

    def connection(self) -> HTTPConnection:
        """The HTTP side of a new client."""
        limits = self.config.limits
        return HTTPConnection(max_head=limits.head, max_body=limits.body, date=_date)

    def answer(self, request: Request | Refused, peer: str = "") -> Reply | ChatCall:
        """What to say to a request, or what to ask an upstream. `peer`: the client's address."""
        began, request_id = time.perf_counter(), _request_id()
        answer = self.app.answer(request, request_id, peer)
        if isinstance(answer, Reply):
            self._tell(request, peer, request_id, answer.status, began)
            return _named(answer, request_id)
        return answer

    def respond(self, http: HTTPConnection, reply: Reply) -> bytes:
        """A whole answer, as it goes over the wire; nothing where there is nobody to hear it."""
        if http.phase is Phase.CLOSED:
            return b""
        return http.respond(reply.status, reply.headers, reply.body)

    def too_many(self, peer: str = "") -> Reply:
        """For a client more than there may be."""
        return self._turned_away(
            error_reply(503, "too many connections", type="server_error"), peer
        )

    def too_slow(self, peer: str = "") -> Reply:
        """For a client that takes too long to ask."""
        return self._turned_away(error_reply(408, "the request took too long"), peer)

    def _turned_away(self, reply: Reply, peer: str) -> Reply:
        request_id = _request_id()
        self._tell(None, peer, request_id, reply.status, time.perf_counter())
        return _named(reply, request_id)

    def serving(self, call: ChatCall, delivery: Delivery) -> Serving[T]:
        """For the time that a call is answered; what came of it is told after that."""
        with self._guard:
            shared = self._shared.get(call.upstream.name)
            if shared is not None:
                shared.calls += 1
        return Serving(self, call, delivery, shared, self._ledger)

    def _release(self, shared: _Shared[T] | None) -> None:
        if shared is None:
            return
        with self._guard:
            shared.calls -= 1
            useless = shared in self._retired and not shared.calls
            if useless:
                self._retired.remove(shared)
        if useless:
            self._dispose(shared)

    # What is told.

    def _tell(
        self,
        request: Request | Refused | None,
        peer: str,
        request_id: str,
        status: int,
        began: float,
    ) -> None:
        method, path = ("-", "-")
        if isinstance(request, Request):
            method, path = request.method, request.path
        self._told(
            Served(
                time=time.time(),
                duration=time.perf_counter() - began,
                request_id=request_id,
                peer=peer,
                method=method,
                path=path,
                status=status,
            )
        )

    def _told(self, served: Served) -> None:
        self.metrics.count(served)
        form = self.config.server.log
        if form != "none" and LOGGER.isEnabledFor(logging.INFO):
            LOGGER.info("%s", as_json(served) if form == "json" else for_people(served))

    def _health(self) -> tuple[bool, dict[str, Any]]:
        if self._ledger is None:
            return True, {"status": "ok"}
        health = self._ledger.health()
        # Where requests are served without it, a ledger that is gone is no reason to be taken out.
        well = health.ok or self.config.ledger.on_failure == "log"
        return well, {"status": "ok" if health.ok else "degraded", "ledger": health}


class Serving(Generic[T]):
    """A call while it is answered: its transport, and where its attempts are written down."""

    __slots__ = (
        "_attempts",
        "_began",
        "_call",
        "_delivery",
        "_ids",
        "_ledger",
        "_over",
        "_service",
        "_shared",
        "_time",
    )

    def __init__(
        self,
        service: Service[T],
        call: ChatCall,
        delivery: Delivery,
        shared: _Shared[T] | None,
        ledger: Ledger | None,
    ) -> None:
        self._service = service
        self._call = call
        self._delivery = delivery
        self._shared = shared
        self._ledger = ledger
        self._attempts: tuple[Attempt, ...] = ()
        self._ids: tuple[str, ...] = ()
        self._time = time.time()
        self._began = time.perf_counter()
        # Upstream's connection is given back after the last word.
        self._over: float | None = None

    @property
    def transport(self) -> T:
        """Raises InvalidRequest where a reload has just taken the upstream away."""
        if self._shared is None:
            raise InvalidRequest(
                "model: its upstream was taken out of the configuration",
                "model",
                "model_not_found",
            )
        return self._shared.transport

    def on_attempt(self, attempt: Attempt) -> Future[None] | None:
        """What the transport tells the attempts; it waits for what that gives."""
        if attempt.outcome is not None:
            self._over = time.perf_counter()
            if self._ledger is not None:
                self._ledger.settle(self._ids[attempt.number - 1], attempt)
            return None
        self._attempts += (attempt,)
        if self._ledger is None:
            return None
        call = self._call
        self._ids += (secrets.token_hex(16),)
        return self._ledger.begin(
            Entry(
                id=self._ids[-1],
                request_id=call.request_id,
                number=attempt.number,
                client=call.client,
                upstream=call.upstream.name,
                account=attempt.account,
                model=call.model,
                upstream_model=attempt.model,
                started_at=time.time(),
            )
        )

    def __enter__(self) -> Self:
        if self._call.streamed:
            self._service.metrics.streams.inc()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        service, call, delivery = self._service, self._call, self._delivery
        if call.streamed:
            service.metrics.streams.dec()
        service._release(self._shared)
        over = self._over or time.perf_counter()
        service._told(
            Served(
                time=self._time,
                duration=whole_duration(over - self._began, self._attempts),
                request_id=call.request_id,
                peer=call.peer,
                method="POST",
                path=COMPLETIONS,
                status=delivery.status if delivery.begun or delivery.ended else LEFT,
                call=call,
                attempts=self._attempts,
                left=not delivery.ended,
                events=delivery.events,
            )
        )


def host_of(address: object) -> str:
    """The host of a socket's address, "" for one that has none."""
    return str(address[0]) if isinstance(address, tuple) and address else ""


def _request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def _named(reply: Reply, request_id: str) -> Reply:
    """The reply with the id that a client can name it by."""
    return structs.replace(reply, headers=(*reply.headers, ("x-request-id", request_id)))


def _date() -> str:
    return _date_of(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date_of(second: int) -> str:
    return formatdate(second, usegmt=True)
