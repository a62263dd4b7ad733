"""`Call`: what of one chat call depends on what its upstream speaks.

There are two kinds: `TranslatedCall`, for a Responses upstream, and `RelayedCall`, for one that
speaks Chat Completions itself. What may live here: what upstream is sent, and the machine for what
it answers. What may not: attempts and their order, which is `exchange`'s, the only caller.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from deltawire._version import __version__
from deltawire.accounts import Account
from deltawire.chat import Failure
from deltawire.errors import InvalidRequest, UnsupportedField
from deltawire.reading import Reader, ReportEntry
from deltawire.relay import ChatRelay
from deltawire.renderings import Machine
from deltawire.request import (
    Translated,
    refuses_encrypted_reasoning,
    to_responses_request,
    without_reasoning,
)
from deltawire.steps import UpstreamRequest

Json = dict[str, Any]

# Of the options of `ChatStream`, those that a relay has too.
_RELAY_OPTIONS: Final = ("include_usage", "max_event_size", "secrets")
# More choices than OpenAI takes; whatever is asked for, that many are waited for at most.
_MAX_CHOICES: Final = 128


class Call(Protocol):
    """One chat request, on its way to whichever account serves it.

    model: as upstream is asked for it. affinity: what the request says of the cache or the
    conversation that it belongs to.
    """

    model: str
    affinity: str | None

    @property
    def report(self) -> list[ReportEntry]:
        """What of the request could not be carried over, to the account asked last."""

    def fits(self, account: Account) -> bool:
        """Whether its upstream can take the request."""

    def request(self, account: Account, *, stream: bool) -> UpstreamRequest:
        """What the account is sent. stream: whether upstream can stream."""

    def machine(self, options: Mapping[str, Any]) -> Machine:
        """What its answer goes through; the options are those of `ChatStream`."""

    def can_amend(self, failure: Failure) -> bool:
        """Whether the request can be changed so that the same account may take it after all."""

    def amend(self) -> None:
        """Change it so."""


class TranslatedCall:
    """A call of a Responses upstream.

    Raises InvalidRequest for a request that nobody could answer, UnsupportedField, if `strict`,
    for one of which anything is lost whoever is asked.
    """

    __slots__ = (
        "_chat_request",
        "_strict",
        "_translation",
        "_translations",
        "_without_reasoning",
        "affinity",
        "model",
    )

    def __init__(
        self, chat_request: Mapping[str, Any], accounts: Sequence[Account], *, strict: bool
    ) -> None:
        self._chat_request = chat_request
        self._strict = strict
        self._translations: dict[int, Translated] = {}
        self._without_reasoning = False
        self.model: str = self._first_translation(accounts).body["model"]
        self._translation = self._first_translation(_serving(self.model, accounts))
        self.affinity = _affinity(self._translation.body)

    @property
    def report(self) -> list[ReportEntry]:
        return self._translation.report

    def fits(self, account: Account) -> bool:
        try:
            self._translated(account)
        except UnsupportedField:
            return False
        return True

    def request(self, account: Account, *, stream: bool) -> UpstreamRequest:
        self._translation = self._translated(account)
        body = self._translation.body
        if self._without_reasoning:
            body = without_reasoning(body)
        data = msgspec.json.encode({**body, "stream": stream})
        return _upstream_request(account, account.url, data, stream)

    def machine(self, options: Mapping[str, Any]) -> Machine:
        return self._translation.chat_stream(**options)

    def can_amend(self, failure: Failure) -> bool:
        if self._without_reasoning or not refuses_encrypted_reasoning(failure):
            return False
        given = self._translation.body.get("input")
        return isinstance(given, list) and any(item.get("type") == "reasoning" for item in given)

    def amend(self) -> None:
        self._without_reasoning = True

    def _first_translation(self, accounts: Iterable[Account]) -> Translated:
        """For the first of them whose upstream can take it; the error, if none can."""
        errors: list[UnsupportedField] = []
        for account in accounts:
            try:
                return self._translated(account)
            except UnsupportedField as error:
                errors.append(error)
        raise errors[0]

    def _translated(self, account: Account) -> Translated:
        dialect = account.speaks
        known = self._translations.get(id(dialect))
        if known is None:
            known = to_responses_request(self._chat_request, dialect=dialect, strict=self._strict)
            self._translations[id(dialect)] = known
        return known


class RelayedCall:
    """A call of an upstream that speaks Chat Completions: it is sent the request as it is.

    What is wrong with the request, but for its model, is for upstream to say. Raises
    InvalidRequest for one that cannot be sent.
    """

    __slots__ = (
        "_body",
        "_data",
        "affinity",
        "model",
    )

    def __init__(self, chat_request: Mapping[str, Any], accounts: Sequence[Account]) -> None:
        reader = Reader()
        self._body = dict(reader.mapping(chat_request, ""))
        model = reader.required(self._body, "model", "", "the name of a model")
        self.model = reader.string(model, "model")
        self.affinity = _affinity(self._body)
        self._data = _encoded(self._body)
        _serving(self.model, accounts)

    @property
    def report(self) -> list[ReportEntry]:
        return []

    def fits(self, account: Account) -> bool:
        return True

    def request(self, account: Account, *, stream: bool) -> UpstreamRequest:
        streamed = stream and bool(self._body.get("stream"))
        changed = bool(self._body.get("stream")) and not streamed
        data = _encoded(asked_whole(self._body)) if changed else self._data
        return _upstream_request(account, account.chat_url, data, streamed)

    def machine(self, options: Mapping[str, Any]) -> Machine:
        asked = self._body.get("stream_options")
        usage = isinstance(asked, Mapping) and bool(asked.get("include_usage"))
        n = self._body.get("n")
        known = {name: options[name] for name in _RELAY_OPTIONS if name in options}
        choices = min(n, _MAX_CHOICES) if isinstance(n, int) and n > 0 else 1
        return ChatRelay(**{"include_usage": usage, **known}, choices=choices)

    def can_amend(self, failure: Failure) -> bool:
        return False

    def amend(self) -> None:
        raise AssertionError("there is nothing to change about it")


def asked_whole(chat_request: Mapping[str, Any]) -> Json:
    """The chat request, for an answer that does not come as a stream."""
    if not chat_request.get("stream"):
        return dict(chat_request)
    # OpenAI refuses stream_options without a stream.
    return {
        **{name: value for name, value in chat_request.items() if name != "stream_options"},
        "stream": False,
    }


def asked_as_stream(chat_request: Mapping[str, Any]) -> Json:
    """The chat request, for a stream."""
    return {**chat_request, "stream": True}


def _serving(model: str, accounts: Iterable[Account]) -> list[Account]:
    serving = [account for account in accounts if account.serves(model)]
    if not serving:
        raise InvalidRequest(
            f"model: expected one that an account serves, found {model[:80]!r}",
            "model",
            "model_not_found",
        )
    return serving


def _upstream_request(account: Account, url: str, data: bytes, streamed: bool) -> UpstreamRequest:
    headers = list(_headers(account.headers, account.key, streamed))
    return UpstreamRequest(url, headers, data, account)


@functools.lru_cache
def _headers(
    given: tuple[tuple[str, str], ...], key: str | None, streamed: bool
) -> tuple[tuple[str, str], ...]:
    headers = [
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream" if streamed else "application/json"),
        # A stream that is compressed arrives in lumps.
        ("Accept-Encoding", "identity"),
        ("User-Agent", f"deltawire/{__version__}"),
    ]
    own = {name.lower() for name, _ in given}
    headers = [each for each in headers if each[0].lower() not in own]
    if key is not None and "authorization" not in own:
        headers.append(("Authorization", f"Bearer {key}"))
    return (*headers, *given)


def _encoded(body: Json) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be sent as JSON: {error}") from None


def _affinity(body: Mapping[str, Any]) -> str | None:
    for key in ("prompt_cache_key", "conversation", "previous_response_id"):
        value = body.get(key)
        if isinstance(value, Mapping):
            value = value.get("id")
        if isinstance(value, str) and value:
            return f"{key}:{value}"
    return None
