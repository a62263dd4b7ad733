"""What `/metrics` says, in Prometheus's form. Numbers and configured names, nothing of a request.

Labels have no model and no client: whoever asks could make as many of them as he likes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar, cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from deltawire.chat import Usage
from deltawire.server.app import Reply, route_of
from deltawire.server.records import Served

if TYPE_CHECKING:
    from deltawire.server.ledger import Health

M = TypeVar("M", Counter, Histogram)

# Models think before the first event, and answer for minutes.
_FIRST: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_WHOLE: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The metrics of one server; safe to be used from several threads.

    ledger: how it is, asked whenever the metrics are; None: there is none.
    """

    def __init__(self, ledger: Callable[[], Health] | None = None) -> None:
        self._registry = CollectorRegistry()
        # Of several workers each counts in a file, and whichever is asked adds them up.
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if self._shared:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self._registry)
        registry = None if self._shared else self._registry
        self._requests = Counter(
            "deltawire_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._duration = Histogram(
            "deltawire_chat_duration_seconds",
            "From a chat request to the last word of its answer.",
            ["upstream"],
            buckets=_WHOLE,
            registry=registry,
        )
        self._first_event = Histogram(
            "deltawire_first_event_seconds",
            "From a chat request to the first event of its answer.",
            ["upstream"],
            buckets=_FIRST,
            registry=registry,
        )
        self._attempts = Counter(
            "deltawire_attempts",
            "Requests to upstreams, by what came of them.",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "deltawire_tokens",
            "Tokens that upstreams reported; cached is part of prompt, reasoning of completion.",
            ["upstream", "kind"],
            registry=registry,
        )
        self._events = Counter(
            "deltawire_events",
            "Events of the streams that clients were sent.",
            ["upstream"],
            registry=registry,
        )
        self._left = Counter(
            "deltawire_clients_left",
            "Answers whose client was gone before the end.",
            ["upstream"],
            registry=registry,
        )
        self.streams = Gauge(
            "deltawire_streams_open",
            "Streams to clients that are under way.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.connections = Gauge(
            "deltawire_connections_open",
            "Connections of clients.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._children: dict[tuple[object, tuple[str, ...]], object] = {}
        self._ledger = ledger
        if ledger is not None:
            self._ledger_ok = Gauge(
                "deltawire_ledger_ok",
                "Whether it can be written.",
                multiprocess_mode="livemin",
                registry=registry,
            )
            self._ledger_pending = Gauge(
                "deltawire_ledger_pending",
                "Entries that wait to be written.",
                multiprocess_mode="livesum",
                registry=registry,
            )
            self._ask_ledger()

    def count(self, served: Served) -> None:
        """Take in a request that is over."""
        if self._shared:
            self._ask_ledger()
        self._labelled(self._requests, route_of(served.path), str(served.status)).inc()
        if served.call is None:
            return
        upstream = served.call.upstream.name
        self._labelled(self._duration, upstream).observe(served.duration)
        if served.first_event is not None:
            self._labelled(self._first_event, upstream).observe(served.first_event)
        if served.events:
            self._labelled(self._events, upstream).inc(served.events)
        if served.left:
            self._labelled(self._left, upstream).inc()
        for attempt in served.attempts:
            self._labelled(self._attempts, upstream, attempt.outcome or "unknown").inc()
            if attempt.usage is not None:
                self._count_tokens(upstream, attempt.usage)

    def _labelled(self, metric: M, *labels: str) -> M:
        """The metric with these labels, for which the library takes 2 us."""
        child = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return cast(M, child)

    def _count_tokens(self, upstream: str, usage: Usage) -> None:
        prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached", prompt and prompt.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", completion and completion.reasoning_tokens),
        ):
            # A counter takes nothing below 0, which an upstream may say.
            if tokens and tokens > 0:
                self._labelled(self._tokens, upstream, kind).inc(tokens)

    def _ask_ledger(self) -> None:
        if self._ledger is not None:
            health = self._ledger()
            self._ledger_ok.set(health.ok)
            self._ledger_pending.set(health.pending)

    def reply(self) -> Reply:
        """All of them, as they are now; of another worker's ledger, as of its last request."""
        self._ask_ledger()
        return Reply(200, generate_latest(self._registry), (("content-type", CONTENT_TYPE_LATEST),))
