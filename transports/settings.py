"""What the three transports are told: accounts, limits, and the HTTP client they stand on.

No I/O happens here. `Transport` is their common part; what is wrong with a setting is an
`InvalidSetting` that names it, before anything is sent.
"""

from __future__ import annotations

import random
import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from inspect import signature
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypedDict, TypeVar
from urllib.parse import urlsplit

from deltawire.accounts import OPENAI_URL, Account, AccountPool, Api
from deltawire.attempts import DEFAULT_POLICY, DEFAULT_TIMEOUTS, Attempt, Policy, Timeouts
from deltawire.calls import asked_as_stream, asked_whole
from deltawire.dialects import Dialect
from deltawire.errors import InvalidSetting
from deltawire.exchange import Exchange
from deltawire.relay import ChatRelay
from deltawire.renderings import AsCompletion, Machine, Rendering
from deltawire.stream import ChatStream
from deltawire.transports.http import Library, installed_library, library_of

Out = TypeVar("Out")

OnAttempt = Callable[[Attempt], "Future[Any] | None"]

Verify = bool | str | ssl.SSLContext
Cert = str | tuple[str, str] | tuple[str, str, str]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Settings(TypedDict, total=False):
    """The arguments of a transport, all keyword-only; what they mean is said at `Transport`."""

    base_url: str
    api: Api
    api_key: str | None
    accounts: Iterable[Account] | AccountPool | None
    dialect: Dialect | None
    headers: Headers
    timeouts: Timeouts
    policy: Policy
    strict: bool
    max_connections: int | None
    max_keepalive_connections: int | None
    keepalive_expiry: float | None
    proxy: str | None
    verify: Verify
    cert: Cert | None
    client: Any
    on_attempt: OnAttempt | None
    stream_options: Mapping[str, Any]


class Transport:
    """The settings of a transport, all keyword-only.

    base_url: of the upstream, as SDKs have it; `/v1` is added to a URL without a path.
    api: what the upstream speaks; "chat": Chat Completions, which is passed through byte for byte.
        `dialect` and `strict` have no meaning then, nor have stream options but `max_event_size`.
    api_key: sent as `Authorization: Bearer`; None: no such header.
    accounts: instead of a key, the accounts that can serve, or a pool of them.
    dialect: how the upstream differs; None: what its URL says.
    headers: further ones for every request.
    timeouts: deadlines, in seconds.
    policy: attempts, and what happens when the caller leaves.
    strict: refuse a request of which anything would be lost.
    max_connections: at most so many at once; None: no limit.
    max_keepalive_connections, keepalive_expiry (seconds): how many idle ones are kept how long.
    proxy: the URL of one; None: what the environment says.
    verify: whether the upstream's certificate is checked, a file of authorities, or an SSLContext.
    cert: the client's certificate: a file, or (file, key file), or with the key's password.
    client: an `httpx` or `httpx2` client of the caller's own, in place of the last six settings;
        it is not closed here.
    on_attempt: told each attempt when it begins and, the same object, when it is settled. If it
        gives a `concurrent.futures.Future` at the beginning, nothing is sent before that is done,
        and nothing at all if it fails, with its error.
    stream_options: further options of `ChatStream`.
    """

    blocking: ClassVar[bool]
    extra: ClassVar[str]
    """The extra of the distribution that brings what it needs."""

    def __init__(
        self,
        *,
        base_url: str = OPENAI_URL,
        api: Api = "responses",
        api_key: str | None = None,
        accounts: Iterable[Account] | AccountPool | None = None,
        dialect: Dialect | None = None,
        headers: Headers = (),
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        policy: Policy = DEFAULT_POLICY,
        strict: bool = False,
        max_connections: int | None = None,
        max_keepalive_connections: int | None = 100,
        keepalive_expiry: float | None = 5.0,
        proxy: str | None = None,
        verify: Verify = True,
        cert: Cert | None = None,
        client: Any = None,
        on_attempt: OnAttempt | None = None,
        stream_options: Mapping[str, Any] = NOTHING,
    ) -> None:
        own_headers = tuple(headers.items() if isinstance(headers, Mapping) else headers)
        common = Account(key=api_key, base_url=base_url, headers=own_headers, dialect=dialect)
        if accounts is None:
            self.pool = AccountPool([common], guard=self._guard())
        elif api_key is not None:
            raise InvalidSetting("api_key", "expected none beside accounts, which have their own")
        elif isinstance(accounts, AccountPool):
            self.pool = accounts
        else:
            whole = (
                each.completed(base_url=base_url, dialect=dialect, headers=own_headers)
                for each in accounts
            )
            self.pool = AccountPool(whole, guard=self._guard())
        if api == "chat":
            _check_relay(dialect, strict, stream_options)
        else:
            _check_stream_options(stream_options)
        self._api = api
        self._timeouts = timeouts
        self._policy = policy
        self._strict = strict
        self._on_attempt = on_attempt
        self._stream_options = stream_options
        self._owns_client = client is None
        _check_number("max_connections", max_connections, 1, whole=True)
        _check_number("max_keepalive_connections", max_keepalive_connections, 0, whole=True)
        _check_number("keepalive_expiry", keepalive_expiry, 0, whole=False)
        network = {
            "max_connections": max_connections,
            "max_keepalive_connections": max_keepalive_connections,
            "keepalive_expiry": keepalive_expiry,
        }
        if client is None:
            library = self._find_library()
            tls = library.tls(_tls(verify, cert))
            self._client = self._make_client(library, network, proxy, tls)
        else:
            library = library_of(client, blocking=self.blocking)
            _refuse_beside_client(proxy=proxy, verify=verify is not True, cert=cert)
            self._client = client
        self._library = library
        for account in self.pool.accounts:
            library.check_url(account.chat_url if api == "chat" else account.url)

    def __repr__(self) -> str:
        # Of one whose settings are wrong there is no more than this, and tracebacks show it.
        accounts = self.pool.accounts if hasattr(self, "pool") else "no accounts yet"
        return f"{type(self).__name__}({accounts})"

    def _guard(self) -> AbstractContextManager[object] | None:
        """What is held while the pool is looked at; None where nobody could interfere."""
        return None

    def _find_library(self) -> Library:
        try:
            return installed_library()
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{type(self).__name__} needs the package {error.name!r}:"
                f" pip install 'deltawire[{self.extra}]'",
                name=error.name,
            ) from None

    def _make_client(
        self,
        library: Library,
        network: Mapping[str, Any],
        proxy: str | None,
        tls: ssl.SSLContext,
    ) -> Any:
        kind = library.Client if self.blocking else library.AsyncClient
        if proxy is not None:
            _check_proxy(proxy)
        try:
            return kind(
                limits=library.Limits(**network),
                proxy=proxy,
                verify=tls,
                # Cookies of one account's upstream are nothing for the next.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                # Each request has its own timeouts.
                timeout=None,
            )
        except (ValueError, ImportError, library.InvalidURL) as error:
            if isinstance(error, InvalidSetting) or proxy is None:
                raise
            reason = str(error).replace(proxy, "***")
            raise InvalidSetting("proxy", f"expected the URL of a proxy: {reason}") from None

    def _exchange(
        self,
        chat_request: Mapping[str, Any],
        rendering: Callable[[Machine], Rendering[Out]],
        now: float,
        affinity: str | None,
        on_attempt: OnAttempt | None,
        options: Mapping[str, Any] = NOTHING,
    ) -> Exchange[Out]:
        if self._api == "chat":
            # Here it says how upstream is to answer.
            kind: object = rendering
            asked = asked_whole if kind is AsCompletion else asked_as_stream
            chat_request = asked(chat_request)
        return Exchange(
            chat_request,
            self.pool,
            rendering,
            api=self._api,
            now=now,
            unix_time=time.time(),
            call_id=secrets.token_hex(16),
            jitter=random.random(),
            policy=self._policy,
            timeouts=self._timeouts,
            strict=self._strict,
            affinity=affinity,
            on_attempt=on_attempt or self._on_attempt,
            stream_options={**self._stream_options, **options} if options else self._stream_options,
        )


def _check_stream_options(options: Mapping[str, Any]) -> None:
    """Say here what would be found with the first answer."""
    known = signature(ChatStream).parameters
    for name in options:
        if name not in known:
            raise InvalidSetting(f"stream_options.{name}", "expected an option of ChatStream")
    ChatStream(**options)


def _check_relay(dialect: Dialect | None, strict: bool, options: Mapping[str, Any]) -> None:
    """What passes through is not changed."""
    others = {f"stream_options.{name}": True for name in options if name != "max_event_size"}
    for setting, value in {"dialect": dialect is not None, "strict": strict, **others}.items():
        if value:
            raise InvalidSetting(setting, 'expected none beside api="chat", found one')
    ChatRelay(**options)


def _check_number(setting: str, value: object, least: int, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if value is not None and not (isinstance(value, kinds) and value >= least):
        kind = "a whole number" if whole else "a number"
        raise InvalidSetting(setting, f"expected {kind} from {least} on, or None, found {value!r}")


def _check_proxy(url: str) -> None:
    """httpx finds out when it connects. Nothing is repeated: there may be a password in it."""
    try:
        parts = urlsplit(url)
        found = bool(parts.hostname) and parts.port != 0
    except ValueError:
        found = False
    if not found:
        raise InvalidSetting("proxy", "expected the URL of a proxy, with its host and port")


def _refuse_beside_client(**settings: object) -> None:
    for name, value in settings.items():
        if value:
            raise InvalidSetting(name, "expected none beside client, which has its own")


def _tls(verify: Verify, cert: Cert | None) -> bool | ssl.SSLContext:
    if isinstance(verify, bool) and cert is None:
        return verify
    context = verify if isinstance(verify, ssl.SSLContext) else _context(verify)
    if cert is not None:
        try:
            context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting("cert", f"cannot be loaded: {_reason(error)}") from None
    return context


def _context(verify: bool | str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting("verify", f"cannot be loaded: {_reason(error)}") from None
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
