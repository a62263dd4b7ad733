"""What a request goes out by, under an event loop: `Network`, and the one that is httpx's.

The loop between exchange and network is in `asynchronous`, which knows no more of a network than is
said here. The others are those of `direct`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct

from deltawire.steps import Open
from deltawire.transports.http import Library, request_arguments

# The pieces that httpx may still hold of a body that is left; it reads 64 KiB at a time.
_MAX_LEFT: Final = 1000


class Failed(Exception):
    """There is no answer, or no more of it; the text says why."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class Trouble(Struct, frozen=True):
    """Why there is no answer, or no more of it.

    late: whether a deadline passed. reason: for people, with the setting to look at; None: the
    exchange knows better which deadline it was.
    """

    late: bool
    reason: str | None


class Answered(Protocol):
    """The head of an answer."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The names are in lower case, or do not care."""


class Response(Answered, Protocol):
    """The answer to one request, once its head is there."""

    @property
    def patience(self) -> float | None:
        """The seconds after which a read gives up by itself; None: it never does."""

    def read(self) -> Awaitable[bytes]:
        """What came next of the body. Raises StopAsyncIteration at its end, and `errors`."""

    async def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""


class Network(Protocol):
    """What requests are sent by."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What `send`, `read` and `close` raise if the network or the peer fails."""

    async def send(self, step: Open, wait: float) -> Response:
        """The head of the answer. `wait`: seconds that it may be waited for; `inf` is for ever."""

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        """What one of the errors says. `step`: what was being sent, if nothing had come yet."""

    async def aclose(self) -> None:
        """Close all connections."""


class HTTPXNetwork:
    """A client of httpx, or of httpx2.

    patience: the seconds that a read may take before httpx gives it up.
    """

    def __init__(self, client: Any, library: Library, patience: float | None) -> None:
        self._client = client
        self._library = library
        self._patience = patience
        self.errors = library.RequestError

    async def send(self, step: Open, wait: float) -> HTTPXResponse:
        request = self._client.build_request(**request_arguments(step, wait))
        request.stream = self._library.body(step.request.body)
        answer = await self._client.send(request, stream=True, follow_redirects=False)
        # httpx looks at this once more, when the reading of the body begins.
        request.extensions["timeout"]["read"] = self._patience
        return HTTPXResponse(answer, self.errors, self._patience)

    def trouble(self, error: Exception, step: Open | None) -> Trouble:
        if self._library.is_timeout(error):
            return Trouble(True, self._library.lateness(error, step))
        return Trouble(False, self._library.reason(error, step))

    async def aclose(self) -> None:
        await self._client.aclose()


class HTTPXResponse:
    """An answer that httpx reads."""

    __slots__ = (
        "_answer",
        "_body",
        "_errors",
        "headers",
        "patience",
        "status",
    )

    def __init__(
        self, answer: Any, errors: tuple[type[Exception], ...], patience: float | None
    ) -> None:
        self.status: int = answer.status_code
        self.headers: Mapping[str, str] = answer.headers
        self.patience = patience
        self._answer = answer
        self._errors = errors
        self._body: AsyncIterator[bytes] | None = None

    def read(self) -> Awaitable[bytes]:
        if self._body is None:
            # The stream is what `aiter_raw` reads from; each layer costs a few us for each delta.
            self._body = aiter(self._answer.stream)
        return self._body.__anext__()

    async def close(self) -> None:
        await self._answer.aclose()
        await self._finish_body()

    async def _finish_body(self) -> None:
        """Let httpx's generators find out that there is no more.

        They stand one in the other, and an outer one that is closed drops the inner ones to the
        garbage collector, which may neither wait nor tell in which task it runs.
        """
        body, self._body = self._body, None
        if body is not None:
            with contextlib.suppress(StopAsyncIteration, *self._errors):
                for _ in range(_MAX_LEFT):
                    await body.__anext__()
