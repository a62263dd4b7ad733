"""`Service`: what the connections of one server share: the app, the upstreams, the books.

No I/O of its own beyond making the transports. Callers: the three drivers and the command line.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import Future
from email.utils import formatdate
from typing import Any, Generic, TypeVar

from msgspec.structs import replace

from deltawire.attempts import Attempt
from deltawire.server.app import App, ChatCall, Reply, error_reply
from deltawire.server.http import HTTPConnection, Phase, Refused, Request
from deltawire.server.ledger import Entry, Ledger
from deltawire.server.settings import Config
from deltawire.transports.settings import OnAttempt, Transport

T = TypeVar("T", bound=Transport)


class Service(Generic[T]):
    """One configuration at work.

    ledger: where each attempt is written down before it is sent; None: nowhere.
    """

    def __init__(self, config: Config, kind: type[T], ledger: Ledger | None = None) -> None:
        self.config = config
        self._ledger = ledger
        self.app = App(config, health=self._health)
        self.transports = {each.name: kind(**each.settings()) for each in config.upstreams}

    def connection(self) -> HTTPConnection:
        """The HTTP side of a new client."""
        limits = self.config.limits
        return HTTPConnection(max_head=limits.head, max_body=limits.body, date=_date)

    def answer(self, request: Request | Refused) -> Reply | ChatCall:
        """What to say to a request, or what to ask an upstream."""
        request_id = _request_id()
        answer = self.app.answer(request, request_id)
        return _named(answer, request_id) if isinstance(answer, Reply) else answer

    def respond(self, http: HTTPConnection, reply: Reply) -> bytes:
        """A whole answer, as it goes over the wire; nothing where there is nobody to hear it."""
        if http.phase is Phase.CLOSED:
            return b""
        return http.respond(reply.status, reply.headers, reply.body)

    def too_many(self) -> Reply:
        """For a client more than there may be."""
        return _named(error_reply(503, "too many connections", type="server_error"), _request_id())

    def too_slow(self) -> Reply:
        """For a client that takes too long to ask."""
        return _named(error_reply(408, "the request took too long"), _request_id())

    def transport(self, call: ChatCall) -> T:
        """The transport to the upstream of a call."""
        return self.transports[call.upstream.name]

    def on_attempt(self, call: ChatCall) -> OnAttempt | None:
        """What a transport tells the attempts of a call; it waits for what that gives."""
        ledger = self._ledger
        if ledger is None:
            return None
        ids: dict[int, str] = {}

        def write(attempt: Attempt) -> Future[None] | None:
            if attempt.outcome is not None:
                ledger.settle(ids[attempt.number], attempt)
                return None
            ids[attempt.number] = uuid.uuid4().hex
            return ledger.begin(
                Entry(
                    id=ids[attempt.number],
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

        return write

    def _health(self) -> tuple[bool, dict[str, Any]]:
        if self._ledger is None:
            return True, {"status": "ok"}
        health = self._ledger.health()
        # Where requests are served without it, a ledger that is gone is no reason to be taken out.
        well = health.ok or self.config.ledger.on_failure == "log"
        return well, {"status": "ok" if health.ok else "degraded", "ledger": health}


def _request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def _named(reply: Reply, request_id: str) -> Reply:
    """The reply with the id that a client can name it by."""
    return replace(reply, headers=(*reply.headers, ("x-request-id", request_id)))


def _date() -> str:
    return formatdate(usegmt=True)
