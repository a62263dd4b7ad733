"""The exceptions of deltawire, and whose fault each one is.

An upstream that misbehaves in the middle of a stream is reported as a `Failure` *event*, in order
after everything that came before it. Exceptions are for what cannot be an event:

    DeltawireError
    |-- InvalidRequest           the client's mistake: a chat request that is wrong in itself
    |   `-- UnsupportedField     nothing is wrong with it, but upstream has no place for all of it
    |-- InvalidSetting           the user's mistake: an account or a transport that cannot work
    |-- LocalProtocolError       the caller's mistake: a call after the stream was closed
    `-- RemoteProtocolError      upstream's fault
        |-- EventTooLarge        raised by SSEDecoder; ChatStream turns it into a Failure
        `-- UpstreamError        a Failure, raised by transports and by whole answers
            |-- UpstreamRejected      an HTTP status that is an error
            |-- UpstreamUnreachable   no connection, or none that lasted until the answer began
            |-- UpstreamTimeout       a deadline passed
            |-- UpstreamTruncated     the answer stopped before its end
            `-- NoAccountReady        all accounts rest; nothing was sent
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltawire.chat import error_object

if TYPE_CHECKING:
    from deltawire.attempts import Attempt
    from deltawire.chat import ChatCompletion, Failure
    from deltawire.reading import ReportEntry
    from deltawire.sse import ServerSentEvent


class DeltawireError(Exception):
    """The root of everything this package raises on purpose."""


class InvalidRequest(DeltawireError):
    """A chat request that no upstream could answer; an HTTP status 400.

    The message says where, what was found and what was expected; `param` is the JSON path of the
    field, and `code` one of those that OpenAI answers with.
    """

    type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def to_dict(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`, the body of the answer."""
        return error_object(self.message, self.type, self.param, self.code)


class UnsupportedField(InvalidRequest):
    """What was asked for cannot be carried over, and a loss is not to be put up with.

    The message names every field that is lost, `param` the first of them; `report` is all that
    was reported of the request.
    """

    def __init__(self, lost: list[ReportEntry], report: list[ReportEntry]) -> None:
        named = "; ".join(f"{entry.path} ({entry.reason})" for entry in lost)
        super().__init__(
            f"not supported by the upstream: {named}", lost[0].path, "unsupported_parameter"
        )
        self.report = report


class LocalProtocolError(DeltawireError):
    """The caller did what the protocol does not allow, such as feeding a closed stream."""


class RemoteProtocolError(DeltawireError):
    """The peer did what the protocol does not allow."""


class EventTooLarge(RemoteProtocolError):
    """One server-sent event grew over `limit` bytes.

    `events` holds what was complete before it in the same call, so that nothing is lost.
    """

    def __init__(self, limit: int, events: list[ServerSentEvent]) -> None:
        super().__init__(f"a server-sent event is larger than max_event_size ({limit} bytes)")
        self.limit = limit
        self.events = events


class InvalidSetting(DeltawireError, ValueError):
    """A setting with which nothing could be sent. `setting` is its name; no key is repeated."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


class UpstreamError(RemoteProtocolError):
    """The upstream answered with an error, or stopped before its answer was whole.

    `message`, `type`, `param` and `code` are those of the error object; `retryable` says whether
    another attempt could succeed; `partial` is what had come so far, its `finish_reason` None.
    Where it comes from a transport, `status` is the HTTP status that tells a client the same,
    `retry_after` the seconds that upstream asks to wait, and `attempts` what was tried.
    """

    def __init__(
        self,
        failure: Failure,
        partial: ChatCompletion,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        attempts: Sequence[Attempt] = (),
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.message = failure.message
        self.type = failure.type
        self.param = failure.param
        self.code = failure.code
        self.retryable = failure.retryable
        self.partial = partial
        self.status = status
        self.retry_after = retry_after
        self.attempts = list(attempts)

    def to_dict(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`, the body of an answer."""
        return self.failure.to_dict()


class UpstreamRejected(UpstreamError):
    """The upstream answered with an HTTP status that is an error."""


class UpstreamUnreachable(UpstreamError):
    """There was no connection to the upstream, or none that lasted until the answer began."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed: first event, idle or total."""


class UpstreamTruncated(UpstreamError):
    """The upstream stopped before its answer was whole."""


class NoAccountReady(UpstreamError):
    """All accounts that serve the model rest; nothing was sent. See `retry_after`."""
