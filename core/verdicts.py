"""`Verdict`: what a failed attempt means, to the client and to its account.

Pure functions from outcomes and failures; `exchange` decides when each is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from deltawire import rejection, shapes
from deltawire.accounts import Health, Unready
from deltawire.attempts import Outcome
from deltawire.chat import ChatCompletion, Failure
from deltawire.errors import (
    NoAccountReady,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from deltawire.request import refuses_encrypted_reasoning

ERRORS: Final[Mapping[str | None, type[UpstreamError]]] = {
    shapes.TRUNCATED: UpstreamTruncated,
    rejection.TIMEOUT: UpstreamTimeout,
    rejection.UNREACHABLE: UpstreamUnreachable,
    rejection.NO_ACCOUNT_READY: NoAccountReady,
}


class Verdict(Struct, frozen=True):
    """A failure with what a client is told of it."""

    failure: Failure
    status: int
    retry_after: float | None = None
    kind: type[UpstreamError] = UpstreamError
    partial: ChatCompletion | None = None

    @property
    def worth(self) -> int:
        """Which of several failures is told: one that says when to come back, none of a key."""
        if self.status == 429:
            return 2 if self.retry_after is None else 3
        return 0 if self.status in (401, 403) else 1


def health(outcome: Outcome, status: int | None, verdict: Verdict | None) -> Health:
    if outcome == "cancelled":
        return Health.UNKNOWN
    if verdict is None:
        return Health.WELL
    if status in (401, 403):
        return Health.REFUSED
    failure = verdict.failure
    # Another account's reasoning says nothing of this one.
    tired = failure.retryable and not refuses_encrypted_reasoning(failure)
    return Health.TIRED if tired else Health.WELL


def late(message: str) -> Verdict:
    """What a call is told whose time was over before anybody could serve it."""
    failure = Failure(message, type=shapes.UPSTREAM_ERROR, code=rejection.TIMEOUT)
    return Verdict(failure, rejection.status_of(failure), kind=UpstreamTimeout)


def unready(found: Unready, now: float) -> Verdict:
    """What a call is told that nobody can serve now."""
    if found.refused and found.failure is not None:
        return Verdict(found.failure, found.status or 502, kind=UpstreamRejected)
    wait = max(0.0, found.until - now)
    last = "" if found.failure is None else f"; it last said: {found.failure.message}"
    return Verdict(
        Failure(
            f"every account rests; the first is back in {wait:.1f} s{last}",
            type="rate_limit_error",
            code=rejection.NO_ACCOUNT_READY,
        ),
        429,
        wait,
        NoAccountReady,
    )
