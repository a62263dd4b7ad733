"""What `httpx` and `httpx2` have in common, and how their errors are told.

The two have the same calls and exception classes of their own; a `Library` is one of them. Nothing
of either is imported until a transport is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import ssl
import sys
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Self
from urllib.request import getproxies

from deltawire.errors import InvalidSetting
from deltawire.steps import Open

Origin = tuple[bool, str, int]
"""Whether by TLS, host and port."""

_NAMES: Final = ("httpx", "httpx2")
_LEAST_WAIT: Final = 0.001
# What Python decompresses by itself, piece by piece. Nothing is asked for but plain bytes.
_DECODED: Final = frozenset({"gzip", "x-gzip", "deflate"})


class Library:
    """httpx or httpx2, as far as it is used here."""

    def __init__(self, module: ModuleType) -> None:
        self.Client: Any = module.Client
        self.AsyncClient: Any = module.AsyncClient
        self.Limits: Any = module.Limits
        self.InvalidURL: type[Exception] = module.InvalidURL
        # Under asyncio, a TLS connection that breaks is an SSLError that httpx has not wrapped.
        self.RequestError: tuple[type[Exception], ...] = (module.RequestError, ssl.SSLError)
        """Whatever goes wrong with the network or the peer."""
        self.body: Any = _body_type(module.AsyncByteStream)
        """What is to be the stream of an asynchronous request, from its bytes."""
        self._url: Any = module.URL
        self._create_ssl_context: Any = module.create_ssl_context
        self._connect_timeout: type[Exception] = module.ConnectTimeout
        self._pool_timeout: type[Exception] = module.PoolTimeout
        self._timeouts: tuple[type[Exception], ...] = (
            module.ConnectTimeout,
            module.PoolTimeout,
            module.ReadTimeout,
            module.WriteTimeout,
        )
        self._connect_error: type[Exception] = module.ConnectError
        self._proxy_error: type[Exception] = module.ProxyError

    def check_url(self, url: str) -> None:
        """Raise InvalidSetting for a URL that the library cannot use."""
        try:
            self._url(url)
        except self.InvalidURL as error:
            raise InvalidSetting("base_url", str(error)) from None

    def target(self, url: str) -> Target:
        """What the URL says, as the library reads it."""
        return Target(self._url(url))

    def tls(self, verify: bool | ssl.SSLContext) -> ssl.SSLContext:
        """The context that the library would use."""
        context: ssl.SSLContext = self._create_ssl_context(verify=verify)
        return context

    def is_timeout(self, error: Exception) -> bool:
        """Whether it says that a deadline passed: for a connection, or one of the exchange."""
        return isinstance(error, self._timeouts)

    def lateness(self, error: Exception, step: Open | None) -> str | None:
        """What took too long, where the exchange cannot know."""
        if step is not None and isinstance(error, self._connect_timeout):
            return f"no connection within {step.connect} s (timeouts.connect)"
        if step is not None and isinstance(error, self._pool_timeout):
            return f"no connection became free within {step.connect} s (max_connections)"
        return None

    def reason(self, error: Exception, step: Open | None) -> str:
        """What went wrong, for people, with the setting to look at."""
        text = str(error) or f"the connection broke ({type(error).__name__})"
        if isinstance(error, self._proxy_error):
            return f"the proxy refuses: {text} (proxy)"
        if step is not None and _is_tls(error):
            return f"no TLS connection: {text} (verify, cert)"
        if isinstance(error, self._connect_error):
            return f"no connection: {text}"
        return text


class Target:
    """What a request is sent to.

    origin: whether by TLS, host and port. path: with the query. Either may hold a secret, so that
    it is not shown.
    """

    __slots__ = (
        "_authority",
        "origin",
        "path",
        "scheme",
    )

    def __init__(self, url: Any) -> None:
        self.scheme: str = url.scheme
        host: str = url.raw_host.decode("ascii")
        tls = self.scheme == "https"
        self.origin: Origin = tls, host, url.port or (443 if tls else 80)
        self.path: bytes = url.raw_path
        self._authority: str = url.netloc.decode("ascii")

    def headers(self, given: list[tuple[str, str]], body: bytes) -> list[tuple[str, str]]:
        """All headers of a request with that body."""
        named = {name.lower() for name, _ in given}
        own = [("Host", self._authority), ("Connection", "keep-alive")]
        if "transfer-encoding" not in named:
            own.append(("Content-Length", str(len(body))))
        return [*(each for each in own if each[0].lower() not in named), *given]


def _body_type(stream: Any) -> Any:
    """A stream without a generator, as httpx's own has one: a request that is cancelled while it is
    sent drops that to the garbage collector, which trio does not allow."""

    class Body(stream):  # type: ignore[misc]
        def __init__(self, data: bytes) -> None:
            self._data = data

        def __aiter__(self) -> _Once:
            return _Once(self._data)

    return Body


class _Once:
    """Gives these bytes, and no more."""

    def __init__(self, data: bytes) -> None:
        self._left = [data]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


def _is_tls(error: BaseException | None) -> bool:
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, ssl.SSLError) or "SSL" in str(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def installed_library() -> Library:
    """httpx if it is installed, else httpx2."""
    for name in _NAMES:
        if importlib.util.find_spec(name) is not None:
            return Library(importlib.import_module(name))
    raise ModuleNotFoundError("No module named 'httpx'", name="httpx")


def library_of(client: object, *, blocking: bool) -> Library:
    """The library that a caller's own client is of. Raises InvalidSetting for any other object."""
    wanted, other = ("Client", "AsyncClient") if blocking else ("AsyncClient", "Client")
    found = type(client).__name__
    for kind in type(client).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in _NAMES and kind.__name__ == wanted:
            return Library(sys.modules[root])
        if root in _NAMES and kind.__name__ == other:
            break
    raise InvalidSetting(
        "client", f"expected an httpx.{wanted} or an httpx2.{wanted}, found an object of {found}"
    )


def request_arguments(step: Open, wait: float) -> dict[str, Any]:
    """The arguments of `build_request`; `wait` is how many seconds an answer may be waited for."""
    request = step.request
    # To a socket, no time at all means that it does not block.
    read = None if wait == math.inf else max(_LEAST_WAIT, wait)
    return {
        "method": request.method,
        "url": request.url,
        "headers": request.headers,
        "content": request.body,
        # For a connection, a read, a write, and a free place in the pool.
        "timeout": (step.connect, read, read, step.connect),
    }


def proxy_applies(proxies: Mapping[str, str], scheme: str, host: str) -> bool:
    """Whether httpx may use one of the proxies, which are those of `urllib.request.getproxies`.

    Where the exceptions say something more than a host or a domain, it may.
    """
    if not (proxies.get(scheme) or proxies.get("all")):
        return False
    exceptions = [each.strip().lower() for each in proxies.get("no", "").split(",")]
    host = host.lower()
    return not any(
        each == "*" or each == host or (each and host.endswith("." + each.lstrip(".")))
        for each in exceptions
    )


class Routes:
    """Which URLs are reached without a proxy, where there is no other client."""

    def __init__(self, library: Library) -> None:
        self._library = library
        # Read once, as httpx does it.
        self._proxies: Mapping[str, str] = getproxies()
        self._plain: dict[str, bool] = {}

    def is_plain(self, url: str) -> bool:
        """Whether connections of our own reach it."""
        plain = self._plain.get(url)
        if plain is None:
            target = self._library.target(url)
            known = target.scheme in ("http", "https")
            applies = proxy_applies(self._proxies, target.scheme, target.origin[1])
            plain = self._plain[url] = known and not applies
        return plain


def content_coding(headers: Mapping[str, str]) -> str | None:
    """How the body is compressed, though nobody asked for it; None if it is not."""
    coding = headers.get("content-encoding", "").strip().lower()
    return None if coding in ("", "identity") else coding


class Decompressor:
    """A body that is compressed, though nobody asked for it, piece by piece.

    httpx's own is not used: where a body is not what it says, it drops the generators that it
    reads from, which under trio may not be left to the garbage collector.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        # 32: gzip or zlib, by the first bytes.
        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._begun = False

    def decompress(self, data: bytes) -> bytes:
        """What the piece holds. Raises ValueError, with the reason, if it is not compressed so."""
        try:
            return self._decompress(data)
        except zlib.error as error:
            raise ValueError(f"its body is not {self._coding}: {error}") from None

    def _decompress(self, data: bytes) -> bytes:
        try:
            found = self._zlib.decompress(data)
        except zlib.error:
            if self._begun or self._coding != "deflate":
                raise
            # Some take deflate to be without the frame that the standard has.
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
            found = self._zlib.decompress(data)
        self._begun = True
        return found


def can_decode(coding: str) -> bool:
    """Whether a body of that coding can be read here."""
    return coding in _DECODED
