"""`Served`: a request that is over, as data, for those who tell of it: access log and metrics.

Nothing here acts. What a client sent is in it only as far as a line of a log may have it: no key,
no query, no body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from deltawire.attempts import Attempt
from deltawire.server.app import ChatCall

LEFT: Final = 499
"""The status of a request whose client left before it was told one; nginx has the number too."""


class Served(Struct, frozen=True, kw_only=True):
    """One request.

    time: when it was there as a whole, Unix time.
    duration: seconds from then to the last word of the answer; see `whole_duration`.
    peer: the address of the client.
    method, path: "-" where the request was none.
    status: what the client was told, or LEFT.
    call: None where no upstream was to be asked.
    attempts: what was tried for the call, in order.
    left: whether the client was gone before the end.
    events: frames of a stream.
    """

    time: float
    duration: float
    request_id: str
    peer: str
    method: str
    path: str
    status: int
    call: ChatCall | None = None
    attempts: tuple[Attempt, ...] = ()
    left: bool = False
    events: int = 0

    @property
    def first_event(self) -> float | None:
        """Seconds from the beginning of the request to the first event of the answer."""
        if not self.attempts or (last := self.attempts[-1]).first_event is None:
            return None
        return last.started - self.attempts[0].started + last.first_event


def whole_duration(measured: float, attempts: Sequence[Attempt]) -> float:
    """Seconds that a request took: those measured, and no fewer than its attempts took.

    They have the clock of the event loop, and uvloop's goes in steps of a millisecond.
    """
    if not attempts:
        return measured
    last = attempts[-1]
    return max(measured, last.started - attempts[0].started + (last.duration or 0.0))
