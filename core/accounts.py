"""`AccountPool`: which account the next attempt goes to, and which are set aside for how long.

What may live here: accounts, their order, their rest. What may not: what an attempt came to
(`exchange` decides that and says it as a `Health`). The clock is the caller's, in seconds from
anywhere; jitter is passed in. Callers: the exchange; the transports and the server, which make it.

An account rests for one of three reasons. Upstream said how long (`Retry-After`): then it rests so
long. It failed in a way that may pass: then it rests a little, twice as long after each further
failure. It was refused (401, 403): then it is parked. The last two are our own guess, and it is
acted on only where another account can serve the model instead; where there is none, waiting would
help nobody, and the next call's answer is upstream's own.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Final, Literal

from deltawire.chat import Failure
from deltawire.dialects import Dialect, dialect_for_url
from deltawire.enums import direct
from deltawire.errors import InvalidSetting

OPENAI_URL: Final = "https://api.openai.com/v1"

Api = Literal["responses", "chat"]
"""What an upstream speaks: the Responses API, or Chat Completions itself."""

_PATHS: Final = {"responses": "responses", "chat": "chat/completions"}

# A hundred times what a pool of a few accounts serves at once; an entry is some 100 bytes.
_MAX_AFFINITIES: Final = 10_000
# No header of a provider has asked for more; a broken one must not put an account away for good.
_MAX_REST: Final = 24 * 3600.0

# A name, an IPv4 or an IPv6 address, and a port; no user, and no second colon outside of brackets.
_AUTHORITY: Final = re.compile(r"(?:[\w.~%-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d*))?", re.ASCII)
_HEADER_NAME: Final = re.compile(r"[\w-]*[^\W_][\w-]*", re.ASCII)
# Shorter ones are no secrets: to hide "1" would make messages unreadable.
_SECRET_SIZE: Final = 6


@dataclass(frozen=True, kw_only=True, repr=False)
class Account:
    """One way to be served: a key at an upstream.

    name: what logs, errors and outcomes call it; unique in a pool.
    key: sent as `Authorization: Bearer`; None: no such header. Never shown.
    base_url: as SDKs have it; `/v1` is added to a URL without a path. None: the transport's, or
        OpenAI's.
    models: patterns (`gpt-5*`) of the models that it serves; none: all.
    headers: further ones to be sent. Their values are never shown.
    dialect: how the upstream differs; None: what its URL says.

    Raises InvalidSetting for what could not be sent.
    """

    name: str = "default"
    key: str | None = None
    base_url: str | None = None
    models: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    dialect: Dialect | None = None

    def __post_init__(self) -> None:
        endpoint(self._base_url)
        if isinstance(self.models, str):
            raise InvalidSetting("models", "expected a tuple of patterns, found a string")
        if self.key is not None:
            _check_header("api_key", self.key)
        for place, (name, value) in enumerate(self.headers):
            if not _HEADER_NAME.fullmatch(name):
                # Not repeated: it may be a whole line, with a key in it.
                raise InvalidSetting(
                    "headers", f"expected the name of a header, found something else at [{place}]"
                )
            _check_header(f"headers[{name}]", value)

    def __repr__(self) -> str:
        return f"Account({self.name!r} at {self.shown_url})"

    def serves(self, model: str) -> bool:
        """Whether the model is one of its models."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    @property
    def _base_url(self) -> str:
        # An empty one, as of a variable that is not set, is a mistake: the key would go to OpenAI.
        return OPENAI_URL if self.base_url is None else self.base_url

    def completed(
        self,
        *,
        base_url: str | None,
        dialect: Dialect | None,
        headers: Iterable[tuple[str, str]],
    ) -> Account:
        """The account, with these settings where it has none of its own."""
        own = {name.lower() for name, _ in self.headers}
        more = (each for each in headers if each[0].lower() not in own)
        return replace(
            self,
            base_url=self.base_url or base_url,
            dialect=self.dialect or dialect,
            headers=(*self.headers, *more),
        )

    # Asked for with every request, and the same every time.

    @cached_property
    def url(self) -> str:
        """Where responses are asked for."""
        return endpoint(self._base_url)

    @cached_property
    def chat_url(self) -> str:
        """Where completions are asked for, if the upstream speaks Chat Completions."""
        return endpoint(self._base_url, "chat")

    @property
    def shown_url(self) -> str:
        """The base URL in a form that messages may have: a query can hold a key."""
        return self._base_url.partition("?")[0]

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        values = [value for _, value in self.headers]
        # Of `Bearer sk-...`, an upstream repeats the key alone.
        words = [
            value.rpartition(" ")[2]
            for name, value in self.headers
            if name.lower().endswith("authorization")
        ]
        texts = (self.key or "", *values, *words)
        return tuple(text for text in texts if len(text) >= _SECRET_SIZE)

    @cached_property
    def speaks(self) -> Dialect:
        """The dialect of its upstream."""
        return self.dialect or dialect_for_url(self._base_url)


def endpoint(base_url: str, api: Api = "responses") -> str:
    """Where answers are asked for, at the upstream with that base URL.

    Raises InvalidSetting for what is no URL of an HTTP server.
    """
    scheme, separator, rest = base_url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        # Of what has no scheme nothing is repeated: it may be a key in the wrong place.
        found = repr(scheme[:12]) if separator else "no scheme"
        raise InvalidSetting(
            "base_url", f"expected a URL that begins with https:// or http://, found {found}"
        )
    rest, mark, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise InvalidSetting("base_url", "expected no user or password in it; use headers")
    parts = _AUTHORITY.fullmatch(authority)
    if not base_url.isascii() or not base_url.isprintable() or " " in base_url or "#" in base_url:
        raise InvalidSetting(
            "base_url", "expected no blank, fragment, control or non-ASCII character in it"
        )
    if parts is None:
        raise InvalidSetting("base_url", "expected a host, and if need be a port, after the scheme")
    port = parts["port"]
    if port is not None and (len(port) > 5 or not 0 < int(port or 0) < 2**16):
        raise InvalidSetting("base_url", f"expected a port from 1 to 65535, found {port[:6]!r}")
    path = path.rstrip("/") or "v1"
    if not f"/{path}".endswith(f"/{_PATHS[api]}"):
        path += f"/{_PATHS[api]}"
    return f"{scheme}://{authority}/{path}{mark}{query}"


def _check_header(setting: str, value: str) -> None:
    """Check without repeating the value, which may be a key."""
    if not value:
        raise InvalidSetting(setting, "expected something to send, found an empty string")
    for at, char in enumerate(value):
        if not char.isascii() or not char.isprintable():
            what = "a line break" if char in "\r\n" else "a control or non-ASCII character"
            raise InvalidSetting(
                setting,
                f"expected what can stand in a header, found {what} at character {at}"
                f" of {len(value)}",
            )
    if value != value.strip():
        raise InvalidSetting(setting, "expected no blank at its beginning or end, found one")


@direct
class Health(enum.Enum):
    """What an attempt says of its account."""

    WELL = "well"
    """It answered; what it answered may be that the request is wrong."""
    TIRED = "tired"
    """It failed in a way that may pass: too many requests, a server error, no connection."""
    REFUSED = "refused"
    """Its key is not accepted, or not for this."""
    UNKNOWN = "unknown"
    """The attempt says nothing of it: the caller left."""


@dataclass(frozen=True)
class Unready:
    """No account can take the attempt now.

    until: when the first comes back, on the caller's clock; `inf` where there is none to wait for.
    refused: all are parked, because upstream refused them; otherwise one is to be waited for.
    failure, status: what put away the first of those that are not parked, or of all.
    """

    until: float
    refused: bool
    failure: Failure | None = None
    status: int | None = None


@dataclass
class _Condition:
    """How an account is."""

    account: Account
    last_chosen: int = 0
    rests_until: float = -math.inf
    failures: int = 0
    refused: bool = False
    failure: Failure | None = None
    status: int | None = None


class AccountPool:
    """The accounts that can serve a call.

    first_rest, longest_rest: seconds that an account rests after its first failure, and at most;
        in between it doubles, and half of it is jitter.
    parking: seconds that a refused account (401, 403) is left alone; keys do come back, when
        somebody pays a bill.
    guard: held while the pool is looked at or changed; a lock, where threads share the pool.
    """

    def __init__(
        self,
        accounts: Iterable[Account],
        *,
        first_rest: float = 1.0,
        longest_rest: float = 60.0,
        parking: float = 300.0,
        guard: AbstractContextManager[object] | None = None,
    ) -> None:
        self._first_rest = first_rest
        self._longest_rest = longest_rest
        self._parking = parking
        self._guard = guard or nullcontext()
        self._conditions: dict[str, _Condition] = {}
        self._affinities: dict[int, str] = {}
        self._choices = 0
        for account in accounts:
            if account.name in self._conditions:
                raise InvalidSetting(
                    "accounts", f"expected names that differ, found {account.name!r} twice"
                )
            self._conditions[account.name] = _Condition(account)
        if not self._conditions:
            raise InvalidSetting("accounts", "expected at least one account, found none")

    @property
    def accounts(self) -> list[Account]:
        """All of them, in the order in which they were given."""
        return [condition.account for condition in self._conditions.values()]

    def choose(
        self,
        model: str,
        now: float,
        *,
        affinity: str | None = None,
        exclude: Collection[str] = (),
    ) -> Account | Unready:
        """The account for the next attempt: of those that are ready, the least recently used.

        `affinity`: what is cached upstream is found again by calls with the same; they stay with
        one account as long as it is ready. `exclude`: names of accounts that are not to be had.
        """
        with self._guard:
            able = [each for each in self._serving(model) if each.account.name not in exclude]
            ready = [each for each in able if each.rests_until <= now]
            if not ready:
                return _unready(able)
            chosen = min(ready, key=lambda each: each.last_chosen)
            if affinity is not None:
                # Clients choose how long theirs are; what is kept of them is not.
                caller = hash(affinity)
                kept = self._affinities.pop(caller, None)
                chosen = next((each for each in ready if each.account.name == kept), chosen)
                # Put last, so that what is longest unused is first.
                self._affinities[caller] = chosen.account.name
                if len(self._affinities) > _MAX_AFFINITIES:
                    del self._affinities[next(iter(self._affinities))]
            self._choices += 1
            chosen.last_chosen = self._choices
            return chosen.account

    def settle(
        self,
        account: Account,
        health: Health,
        now: float,
        *,
        model: str,
        retry_after: float | None = None,
        failure: Failure | None = None,
        status: int | None = None,
        jitter: float = 0.5,
    ) -> None:
        """Take in what an attempt at `model` says of its account.

        `retry_after`: seconds, as upstream said; `jitter`: from 0 to 1. `failure` and `status` are
        told to calls that find no account ready.
        """
        with self._guard:
            condition = self._conditions.get(account.name)
            if condition is None or health is Health.UNKNOWN:
                return
            if health is Health.WELL:
                if condition.rests_until <= now:
                    condition.failures = 0
                return
            rest = self._rest(condition, health, now, model, retry_after, jitter)
            if rest > 0 and now + rest > condition.rests_until:
                condition.rests_until = now + rest
                condition.refused = health is Health.REFUSED
                condition.failure = failure
                condition.status = status

    def _rest(
        self,
        condition: _Condition,
        health: Health,
        now: float,
        model: str,
        retry_after: float | None,
        jitter: float,
    ) -> float:
        """Seconds."""
        if retry_after is not None and health is Health.TIRED:
            return min(retry_after, _MAX_REST)
        if all(other is condition for other in self._serving(model)):
            return 0.0
        if health is Health.REFUSED:
            return self._parking
        if condition.rests_until > now:
            # One outage fails all calls that are under way; it counts once.
            return 0.0
        full = self._first_rest * 2.0 ** min(condition.failures, 32)
        condition.failures += 1
        return min(full, self._longest_rest) * (1 + jitter) / 2

    def _serving(self, model: str) -> list[_Condition]:
        return [each for each in self._conditions.values() if each.account.serves(model)]


def _unready(able: list[_Condition]) -> Unready:
    """When the first comes back; what is told is of the parked ones only if there are no others."""
    if not able:
        return Unready(math.inf, refused=False)
    told = min(able, key=lambda each: (each.refused, each.rests_until))
    until = min(each.rests_until for each in able)
    return Unready(until, told.refused, told.failure, told.status)
