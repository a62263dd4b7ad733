"""What an `Exchange` asks its driver to do, and the table of what may follow what.

Plain data: the phases of a call, the signals that move it, the steps that each phase asks for. What
moves it and when is decided in `exchange`; the transports carry the steps out.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from deltawire.accounts import Account
from deltawire.enums import direct


@direct
class Phase(enum.Enum):
    """Where the exchange is."""

    WAITING = "waiting"
    """An account has to come back before there is another attempt."""
    OPENING = "opening"
    """A request is on its way; nothing of its answer is there."""
    STREAMING = "streaming"
    """Upstream accepted the request and answers."""
    REFUSED = "refused"
    """Upstream refused the request and says why."""
    TRAILING = "trailing"
    """The last word was said; what is left of the body is read."""
    DRAINING = "draining"
    """The caller left; upstream is listened to so that usage is known."""
    CLOSING = "closing"
    """The attempt is settled; its connection is to be given back or closed."""
    ENDED = "ended"
    """Nothing more is to be done."""


@direct
class Signal(enum.Enum):
    """What moves the exchange."""

    ACCEPTED = "accepted"
    """A head with a status that is no error."""
    REFUSED = "refused"
    """A head with any other status."""
    FINISHED = "finished"
    """The stream said its last word."""
    SETTLED = "settled"
    """It is known what the attempt came to, and nothing of its answer is wanted any more."""
    LEFT = "left"
    """The caller left, and the policy says to listen on."""
    AGAIN = "again"
    """There is another attempt."""
    LATER = "later"
    """There is another attempt once an account is ready."""
    OVER = "over"
    """There is none."""


TRANSITIONS: Final = MappingProxyType(
    {
        Phase.WAITING: {
            Signal.AGAIN: Phase.OPENING,
            Signal.LATER: Phase.WAITING,
            Signal.OVER: Phase.ENDED,
        },
        Phase.OPENING: {
            Signal.ACCEPTED: Phase.STREAMING,
            Signal.REFUSED: Phase.REFUSED,
            Signal.SETTLED: Phase.CLOSING,
        },
        Phase.STREAMING: {
            Signal.FINISHED: Phase.TRAILING,
            Signal.LEFT: Phase.DRAINING,
            Signal.SETTLED: Phase.CLOSING,
        },
        Phase.REFUSED: {Signal.SETTLED: Phase.CLOSING},
        Phase.TRAILING: {Signal.SETTLED: Phase.CLOSING},
        Phase.DRAINING: {Signal.SETTLED: Phase.CLOSING},
        Phase.CLOSING: {
            Signal.AGAIN: Phase.OPENING,
            Signal.LATER: Phase.WAITING,
            Signal.OVER: Phase.ENDED,
        },
        Phase.ENDED: {},
    }
)
"""Phase -> signal -> next phase. A signal that is not in a phase's row does not reach it."""


class UpstreamRequest(Struct, frozen=True):
    """One request to upstream. `url` and `headers` may hold secrets and are not shown."""

    url: str
    headers: list[tuple[str, str]]
    body: bytes
    account: Account
    method: str = "POST"

    def __repr__(self) -> str:
        return (
            f"UpstreamRequest({self.method} {self.account.shown_url},"
            f" account {self.account.name!r}, {len(self.body)} bytes)"
        )


class Open(Struct, frozen=True):
    """Send the request, and report the head of its answer.

    connect: seconds for a connection; None: no limit. gate: what `on_attempt` gave for the attempt,
    for a driver that has to wait for it before anything is sent.
    """

    request: UpstreamRequest
    connect: float | None
    gate: object = None


class Read(Struct, frozen=True):
    """Wait for the next bytes of the body, and report them or its end."""


class Close(Struct, frozen=True):
    """Give the connection back, or close it where its body was not read to the end."""


class Wait(Struct, frozen=True):
    """Do nothing until that time on the caller's clock."""

    until: float


class Ended(Struct, frozen=True):
    """The call is over."""


Step = Open | Read | Close | Wait | Ended

READ: Final = Read()
CLOSE: Final = Close()
ENDED: Final = Ended()

READING: Final = frozenset({Phase.STREAMING, Phase.REFUSED, Phase.TRAILING, Phase.DRAINING})
