"""What a request goes out by while its thread blocks: `Network`, and the one that is httpx's.

The loop between exchange and network is in `sync`, which knows no more of a network than is said
here. The other one is `pool`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from deltawire.steps import Open
from deltawire.transports.http import Library, request_arguments
from deltawire.transports.network import Answered, Failed, Trouble
from deltawire.transports.watchdog import Guard, Watchdog, shut_down


class Line:
    """What a call is blocked in, for another thread to hang up.

    `cut`: whether it was; read without a lock by the thread of the call, whenever it comes back.
    """

    __slots__ = ("_guard", "_interrupt", "cut")

    def __init__(self) -> None:
        self.cut = False
        self._guard = threading.Lock()
        self._interrupt: Callable[[], object] | None = None

    def open(self, interrupt: Callable[[], object]) -> None:
        """From here on, and at once if it was cut already, this ends what the call is blocked in.

        It must not block, and may be called more than once.
        """
        with self._guard:
            self._interrupt = interrupt
            if self.cut:
                interrupt()

    def close(self) -> None:
        """What was blocked in is another's from here on."""
        with self._guard:
            self._interrupt = None

    def hang_up(self) -> None:
        with self._guard:
            self.cut = True
            if self._interrupt is not None:
                self._interrupt()


class Response(Answered, Protocol):
    """The answer to one request, once its head is there."""

    def read(self, deadline: float, now: float) -> bytes:
        """What came next of the body, b"" at its end. Raises the network's errors.

        Until the deadline, on the monotonic clock, which shows `now`.
        """

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""


class Network(Protocol):
    """What requests are sent by. Many threads may use one."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What `send`, `read` and `close` raise if the network or the peer fails."""

    def send(self, step: Open, limit: float, now: float, line: Line) -> Response:
        """The head of the answer, until the limit. The line is open from here to its `close`."""

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        """What one of the errors says. `step`: what was being sent, if nothing had come yet."""

    def close(self) -> None:
        """Close all connections."""


class HTTPXNetwork:
    """A client of httpx, or of httpx2.

    Until the head of an answer is there, it shows no socket that could be shut down: who waits for
    that cannot be hung up.

    patience: the seconds that a read may take before httpx gives it up, where it shows no socket.
    """

    def __init__(
        self, client: Any, library: Library, patience: float | None, watchdog: Watchdog
    ) -> None:
        self._client = client
        self._library = library
        self._patience = patience
        self._watchdog = watchdog
        self.errors = (*library.RequestError, Failed)

    def send(self, step: Open, limit: float, now: float, line: Line) -> HTTPXResponse:
        request = self._client.build_request(**request_arguments(step, limit - now))
        answer = self._client.send(request, stream=True, follow_redirects=False)
        network = answer.extensions.get("network_stream")
        # A caller's own client need not have one.
        peer = network and network.get_extra_info("socket")
        if peer is not None:
            line.open(partial(shut_down, peer))
        # httpx looks at this once more, when the reading of the body begins.
        request.extensions["timeout"]["read"] = self._patience if peer is None else None
        return HTTPXResponse(answer, None if peer is None else Guard(self._watchdog, peer))

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        if isinstance(error, Failed):
            return Trouble(error.late, str(error) or None)
        if self._library.is_timeout(error):
            return Trouble(True, self._library.lateness(error, step))
        return Trouble(False, self._library.reason(error, step))

    def close(self) -> None:
        self._client.close()


class HTTPXResponse:
    """An answer that httpx reads."""

    def __init__(self, answer: Any, guard: Guard | None) -> None:
        self.status: int = answer.status_code
        self.headers: Mapping[str, str] = answer.headers
        self._answer = answer
        self._guard = guard
        # The stream is what `iter_raw` reads from; each layer costs a few us for each delta.
        self._body: Iterator[bytes] = iter(answer.stream)

    def read(self, deadline: float, now: float) -> bytes:
        if self._guard is None:
            if now >= deadline:
                raise Failed("", late=True)
            return self._next()
        self._guard.set(deadline, now)
        try:
            data = self._next()
        except Exception:
            if self._guard.fired:
                raise Failed("", late=True) from None
            raise
        if not data and self._guard.fired:
            raise Failed("", late=True)
        self._guard.rest()
        return data

    def close(self) -> None:
        if self._guard is not None:
            self._guard.stop()
        self._answer.close()

    def _next(self) -> bytes:
        for data in self._body:
            if data:
                return data
        return b""
