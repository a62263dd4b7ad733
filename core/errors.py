"""The exceptions of deltawire, and whose fault each one is.

An upstream that misbehaves in the middle of a stream is reported as a `Failure` *event*, in order
after everything that came before it. Exceptions are for what cannot be an event:

    DeltawireError
    |-- InvalidRequest           the client's mistake: a chat request that is wrong in itself
    |   `-- UnsupportedField     nothing is wrong with it, but upstream has no place for all of it
    |-- LocalProtocolError       the caller's mistake: a call after the stream was closed
    `-- RemoteProtocolError      upstream's fault
        |-- EventTooLarge        raised by SSEDecoder; ChatStream turns it into a Failure
        `-- UpstreamError        a Failure, raised where a caller asked for a whole answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltawire.chat import error_object

if TYPE_CHECKING:
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


class UpstreamError(RemoteProtocolError):
    """The upstream answered with an error, or stopped before its answer was whole.

    `message`, `type`, `param` and `code` are those of the error object; `retryable` says whether
    another attempt could succeed; `partial` is what had come so far, its `finish_reason` None.
    """

    def __init__(self, failure: Failure, partial: ChatCompletion) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.message = failure.message
        self.type = failure.type
        self.param = failure.param
        self.code = failure.code
        self.retryable = failure.retryable
        self.partial = partial
