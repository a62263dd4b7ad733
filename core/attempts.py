"""Plain data of a call: how it is to be made, and what each attempt of it came to.

Nothing here acts; `exchange` reads the policy and writes the attempts, a ledger keeps them.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from deltawire.chat import Usage
from deltawire.errors import InvalidSetting

Outcome = Literal[
    "completed",
    "incomplete",
    "empty",
    "failed",
    "truncated",
    "cancelled",
    "rejected",
    "unreachable",
]
"""How an attempt ended.

completed: the answer is whole. incomplete: upstream cut it short and said why. empty: it completed
with nothing in it. failed: upstream reported an error in its answer. truncated: the answer stopped,
or went silent. cancelled: the caller left. rejected: an HTTP status that is an error. unreachable:
no connection, or no answer in time.
"""


class Attempt(Struct, kw_only=True):
    """One request to one account.

    number: 1 for the first of its call.
    started: when, on the clock of the exchange; the other times are seconds since then.
    outcome: None as long as it goes on.
    used: whether upstream accepted the request, so that the account is charged for it.
    status: upstream's own HTTP status, None if there was no answer.
    code: of the failure, upstream's own where it gave one.
    first_event: until the first event of the stream.
    request_id: upstream's `x-request-id`.
    """

    number: int
    account: str
    model: str
    started: float
    outcome: Outcome | None = None
    used: bool = False
    status: int | None = None
    code: str | None = None
    usage: Usage | None = None
    first_event: float | None = None
    duration: float | None = None
    request_id: str | None = None


class Timeouts(Struct, frozen=True, kw_only=True):
    """Deadlines in seconds; `None` is none.

    connect: for a connection, TLS included. Each further one begins with the attempt, except the
    last. first_event: until the first event of the answer; models think before it, though most
    upstreams say `response.created` at once. idle: between two pieces of the answer. total: for
    the call with all its attempts.
    """

    connect: float | None = 10.0
    first_event: float | None = 300.0
    idle: float | None = 300.0
    total: float | None = 3600.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _check(f"timeouts.{name}", getattr(self, name), over=0.0)


class Policy(Struct, frozen=True, kw_only=True):
    """How a call is made.

    attempts: at most so many of one call; None: as many as accounts allow.
    attempts_per_account: how often one account is tried for one call.
    wait: until so many seconds after its beginning, a call waits for an account that rests; then
        it is told when to come back.
    drain: seconds that are read on after the caller has left, so that usage is known; 0: upstream
        is hung up on at once.
    trail: seconds to wait for the end of a body whose last word was said, so that the connection
        can be used again.
    error_body: seconds to wait for the body of an error answer.
    stream_upstream: False for an upstream that cannot stream.
    retry_empty: whether another account is tried after an answer with nothing in it.
    """

    attempts: int | None = None
    attempts_per_account: int = 1
    wait: float = 0.0
    drain: float = 0.0
    trail: float = 1.0
    error_body: float = 10.0
    stream_upstream: bool = True
    retry_empty: bool = True

    def __post_init__(self) -> None:
        _check("policy.attempts", self.attempts, over=0)
        _check("policy.attempts_per_account", self.attempts_per_account, over=0)
        for name in ("wait", "drain", "trail", "error_body"):
            _check(f"policy.{name}", getattr(self, name))


def _check(setting: str, value: float | None, over: float | None = None) -> None:
    """A number from 0 on, or over `over`; `inf` and None are no limit."""
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 0 if over is None else value > over):
        least = "from 0 on" if over is None else f"over {over:g}"
        raise InvalidSetting(setting, f"expected a number {least}, found {value!r}")


DEFAULT_TIMEOUTS: Final = Timeouts()
DEFAULT_POLICY: Final = Policy()
