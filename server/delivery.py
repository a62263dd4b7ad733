"""`Delivery`: the answer of an upstream on its way to one client. No I/O; the clock is passed in.

The manners of a stream are here, once for all drivers: the status is held back until there is
something to say, silence is filled with comments, the last frame and the end of the body are one
write, and a failure is a status as long as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from deltawire.chat import ChatCompletion
from deltawire.errors import DeltawireError, InvalidRequest, UpstreamError
from deltawire.reading import ReportEntry
from deltawire.server.app import ChatCall, Reply, error_reply
from deltawire.server.http import HTTPConnection
from deltawire.server.settings import ServerSettings

PING: Final = b": ping\n\n"
_BLANK: Final = b" "
_STREAM_HEADERS: Final = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    # nginx holds streams back otherwise.
    ("x-accel-buffering", "no"),
)
_JSON_HEADERS: Final = (("content-type", "application/json"),)
# Servers and proxies take 8 KiB of a header, and a log line of that length nobody reads.
_MAX_REPORT: Final = 1024


class Delivery:
    """One answer; `now` is the time on the driver's clock, in seconds.

    Every call gives the bytes to be written now.
    """

    __slots__ = (
        "_call",
        "_connection",
        "_ping",
        "_settings",
        "begun",
        "due",
        "ended",
        "events",
        "report",
        "status",
    )

    def __init__(
        self, connection: HTTPConnection, call: ChatCall, settings: ServerSettings, now: float
    ) -> None:
        self._connection = connection
        self._call = call
        self._settings = settings
        self._ping = math.inf if settings.ping is None else settings.ping
        self.begun = False
        """Whether the client was told a status."""
        silent = settings.grace if call.streamed or settings.ping_json else None
        self.due = math.inf if silent is None else now + silent
        """When `silence` is to be called, if nothing else comes before."""
        self.report: list[ReportEntry] = []
        """What of the request was lost, for a header; to be set before anything is sent."""
        self.status = 200
        """What the client was told."""
        self.ended = False
        """Whether the client was told all of it."""
        self.events = 0
        """How many frames of a stream."""

    def frames(self, frames: bytes, now: float, *, last: bool) -> bytes:
        """A piece of a stream; `last`: nothing follows it."""
        head = b"" if self.begun else self._begin()
        self.due = now + self._ping
        if self._call.upstream.api == "chat":
            # As they came; they may have more lines than one.
            self.events += frames.count(b"\n\n")
        else:
            # Ours have one, and a blank one.
            self.events += frames.count(b"\n") // 2
        return head + (self._end(frames) if last else self._connection.frame(frames))

    def completion(self, completion: ChatCompletion) -> bytes:
        """A whole answer."""
        return self._whole(Reply(200, completion.to_json()))

    def failure(self, error: DeltawireError) -> bytes:
        """An error in place of the answer, or of the rest of it."""
        reply = reply_of(error)
        if not self.begun:
            self.status = reply.status
            return self._whole(reply)
        body = b"data: %b\n\n" % reply.body if self._call.streamed else reply.body
        return self._end(body)

    def silence(self, now: float) -> bytes:
        """A sign of life, once `due` has passed."""
        head = b"" if self.begun else self._begin()
        self.due = now + self._ping
        return head + self._connection.frame(PING if self._call.streamed else _BLANK)

    def wait_on(self, now: float) -> None:
        """It is no silence: the client has not read what was said."""
        self.due = now + self._ping

    def _begin(self) -> bytes:
        self.begun = True
        headers = _STREAM_HEADERS if self._call.streamed else _JSON_HEADERS
        return self._connection.begin(200, [*headers, *self._own_headers()])

    def _end(self, data: bytes) -> bytes:
        self.due = math.inf
        self.ended = True
        return self._connection.end(data)

    def _whole(self, reply: Reply) -> bytes:
        if self.begun:
            return self._end(reply.body)
        self.due = math.inf
        self.ended = True
        headers = [*reply.headers, *self._own_headers()]
        return self._connection.respond(reply.status, headers, reply.body)

    def _own_headers(self) -> list[tuple[str, str]]:
        headers = [("x-request-id", self._call.request_id)]
        if self.report and self._settings.report_header:
            headers.append(("x-deltawire-report", shown_report(self.report)))
        return headers


def reply_of(error: DeltawireError) -> Reply:
    """The HTTP answer for an error that ends a call."""
    if isinstance(error, UpstreamError):
        headers = []
        if error.retry_after is not None:
            headers.append(("retry-after", str(math.ceil(error.retry_after))))
            headers.append(("retry-after-ms", str(math.ceil(error.retry_after * 1000))))
        return error_reply(
            error.status or 502,
            error.message,
            type=error.type,
            param=error.param,
            code=error.code,
            headers=tuple(headers),
        )
    if isinstance(error, InvalidRequest):
        status = 404 if error.code == "model_not_found" else 400
        return error_reply(status, error.message, param=error.param, code=error.code)
    return error_reply(503, str(error), type="server_error")


def shown_report(report: Iterable[ReportEntry]) -> str:
    """The report in a form that a header may have: `dropped seed; adjusted max_tokens`."""
    text = "; ".join(f"{entry.action} {entry.path}" for entry in report)
    # A path has the client's own names in it, and those may have any character.
    plain = text.encode("unicode_escape").decode().strip()
    return plain if len(plain) <= _MAX_REPORT else plain[: _MAX_REPORT - 3] + "..."
