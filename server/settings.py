"""The settings of the server: what `deltawire.toml` may say, with every default and its reason.

What may live here: the file's tables, as dataclasses whose types are its schema, and what follows
from them alone. What may not: how they are read (`config`), and anything that acts on one. Callers:
`config`, which makes them, and the server, which is made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from deltawire.accounts import Account
from deltawire.attempts import DEFAULT_POLICY, DEFAULT_TIMEOUTS, Policy, Timeouts
from deltawire.dialects import Dialect
from deltawire.server.keys import Client, Name
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE

if TYPE_CHECKING:
    from deltawire.transports.settings import Cert, Settings

# A longer time is a mistake in the unit.
_DAY: Final = 24 * 3600

Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
File = Annotated[str, Meta(min_length=1, description="the path of a file")]
Verify = Annotated[bool | str, Meta(description="true, false, or the path of a file")]
# No key that was put there by mistake looks like one, so that it can be named.
Variable = Annotated[
    str, Meta(pattern=r"\A[A-Za-z_]\w*\Z", description="the name of an environment variable")
]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port from 0 to 65535")]
Size = Annotated[int, Meta(ge=1, le=2**40, description="a number of bytes, 1 or more")]
Count = Annotated[int, Meta(ge=1, le=2**31, description="a whole number, 1 or more")]
Seconds = Annotated[float, Meta(ge=0, le=_DAY, description=f"seconds from 0 to {_DAY}")]
Limit = Annotated[float, Meta(gt=0, le=_DAY, description=f"seconds over 0, to {_DAY}")]
Proxy = Annotated[
    str,
    Meta(pattern=r"\A(https?|socks5h?)://.", description="an http://, https:// or socks5:// URL"),
]
Database = Annotated[
    str,
    Meta(
        pattern=r"\A((sqlite|postgresql)(\+\w+)?://.*)?\Z",
        description='a sqlite:// or postgresql:// URL, or "" for no ledger',
    ),
]
TransportName = Literal["asyncio", "sync", "trio"]

# The core does not say how large its times and numbers may be.
CORE_KINDS: Final[Mapping[type, Mapping[str, Any]]] = {
    Timeouts: dict.fromkeys(("connect", "first_event", "idle", "total"), Limit | None),
    Policy: {
        "attempts": Count | None,
        "attempts_per_account": Count,
        **dict.fromkeys(("wait", "drain", "trail", "error_body"), Seconds),
    },
}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the server listens and how it treats a client. Times are in seconds.

    host, port: what it listens on; port 0: any that is free.
    transport: what upstreams are asked with, and clients listened to.
    workers: processes that share the port. Each has its own connections to the upstreams, keeps its
        own account of what they refuse, and may have as many clients as the limits say.
    public: whether anybody may ask who reaches it. Otherwise it listens beyond the machine itself
        only if there are client keys: who asks it spends what the accounts pay for.
    tls_cert, tls_key: files of its certificate, with what it is signed by, and of its key.
    grace: how long the status is held back while upstream has said nothing, so that an error can
        still be an HTTP status, which clients try again; a comment in the body ends that. None: as
        long as it takes. Proxies give up on a silent server after a minute, some after 30 s.
    ping: silence before such a comment, and between two; None: none. It is to be shorter than any
        read timeout on the way.
    ping_json: whether a client that waits for a whole answer is sent blanks in silence as well.
        JSON may begin with them, but they settle the status.
    write_stall: how long a client may not read before it is taken as gone; None: for ever. A full
        window is all that is seen of one that left without a word. That it reads shows each time
        it has made room for `limits.buffer`: less than that in this time is taken for nothing.
    shutdown: how long running answers may go on after SIGTERM. Kubernetes kills after 30 s.
    log: one line a request on standard output, for people or in JSON, or none.
    metrics: who may ask for `/metrics`: anybody, those with a client's key, or nobody. It has
        numbers and the names of upstreams, nothing of a request.
    report_header: whether answers say in `x-deltawire-report` what of a request was lost.
    """

    host: Text = "127.0.0.1"
    port: Port = 8080
    transport: TransportName = "asyncio"
    workers: Count = 1
    public: bool = False
    tls_cert: File | None = None
    tls_key: File | None = None
    grace: Limit | None = 5.0
    ping: Limit | None = 15.0
    ping_json: bool = False
    write_stall: Limit | None = 60.0
    shutdown: Seconds = 30.0
    log: Literal["human", "json", "none"] = "human"
    metrics: Literal["open", "clients", "none"] = "open"
    report_header: bool = True


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may take of the server. Sizes are in bytes, times in seconds.

    body: of a request. A long conversation is some 2 MiB; images in base64 are what is large.
        Anthropic takes 32 MB; nginx 1 MiB unless told otherwise.
    head: request line and headers; only those who also ask for pages have cookies to fill it.
        h11 takes 16 KiB, Apache 8 KiB a line, node.js once took 80.
    head_timeout: until a head is there, from its first byte, or from the connection. It is one
        packet; nginx waits 60 s for it, but a slow one costs it less than it costs a thread.
    body_timeout: for the whole body, however steadily it drips: the largest takes 4.5 Mbit/s.
        nginx gives 60 s to each pause, which a byte a minute can use for years.
    idle_timeout: between two requests of a connection. It is longer than the 60 s after which
        load balancers close theirs, so that none sends into a connection just closed. nginx: 75 s.
    connections: at once; each may need a second one, to an upstream, so that this many need twice
        as many file descriptors: `deltawire serve` raises its soft limit (`ulimit -Sn`) to what
        they may take. nginx has 512 for both together, uvicorn no limit.
    buffer: what is held for a client that reads slower than upstream writes, before upstream is
        made to wait; what asyncio has as its mark for this, and some 300 frames.
    """

    body: Size = 32 * 2**20
    head: Size = 64 * 2**10
    head_timeout: Limit = 10.0
    body_timeout: Limit = 60.0
    idle_timeout: Limit = 75.0
    connections: Count = 1000
    buffer: Size = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class LedgerSettings:
    """Where each attempt is written down.

    url: of a database, as SQLAlchemy has it; "": there is no ledger. A file that it names is found
        from the directory that the server runs in.
    on_failure: what happens to requests while it cannot be written: they are refused, or served,
        and what was not written is in the log.
    """

    url: Database = field(default="sqlite:///deltawire.db", repr=False)
    on_failure: Literal["refuse", "log"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What a client is shown of an answer; more on each at `ChatStream`."""

    reasoning: Literal["reasoning_content", "reasoning", "none"] = "reasoning_content"
    commentary: Literal["reasoning", "content", "drop"] = "reasoning"
    images: Literal["final", "partial", "none"] = "final"
    max_event_size: Size = DEFAULT_MAX_EVENT_SIZE

    def arguments(self) -> dict[str, Any]:
        """The same as `ChatStream` has it."""
        return {
            "reasoning": None if self.reasoning == "none" else self.reasoning,
            "commentary": self.commentary,
            "images": None if self.images == "none" else self.images,
            "max_event_size": self.max_event_size,
        }


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One API that models are served by.

    api: what it speaks; "chat" is passed through as it is, so that `dialect`, `strict` and
        `stream_options` are not to be set beside it.
    base_url: as SDKs have it; `/v1` is added to a URL without a path.
    dialect: how it differs; None: what its URL says.
    models: patterns (`gpt-5*`) of the models it serves; none: all.
    aliases: names that clients may use, and the models that they stand for here.
    headers: further ones for every request.
    timeouts, policy, strict, max_connections, proxy: as a transport has them.
    verify: whether its certificate is checked, or a file of the authorities to check it by.
    cert, cert_key: files of the certificate it is shown, and of its key, if that is in another.
    accounts: complete, each with the URL, headers and dialect of the upstream where it has none of
        its own. Their names, which the ledger has, differ throughout the configuration.
    """

    name: Name
    base_url: Text = field(repr=False)
    api: Literal["responses", "chat"] = "responses"
    dialect: Dialect | None = field(default=None, repr=False)
    models: tuple[Text, ...] = ()
    aliases: Mapping[str, Text] = field(default_factory=lambda: MappingProxyType({}))
    headers: Mapping[str, Text] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    policy: Policy = DEFAULT_POLICY
    strict: bool = False
    accounts: tuple[Account, ...] = ()
    max_connections: Count | None = None
    proxy: Proxy | None = field(default=None, repr=False)
    verify: Verify = True
    cert: File | None = None
    cert_key: File | None = None
    stream_options: StreamOptions = StreamOptions()

    def serves(self, model: str) -> bool:
        """Whether the model is one of its models."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def settings(self) -> Settings:
        """The arguments of a transport to it."""
        cert: Cert | None = self.cert
        if self.cert is not None and self.cert_key is not None:
            cert = (self.cert, self.cert_key)
        return {
            "base_url": self.base_url,
            "api": self.api,
            "accounts": self.accounts,
            "timeouts": self.timeouts,
            "policy": self.policy,
            "strict": self.strict,
            "max_connections": self.max_connections,
            "proxy": self.proxy,
            "verify": self.verify,
            "cert": cert,
            "stream_options": {} if self.api == "chat" else self.stream_options.arguments(),
        }


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of it; what cannot work is not in it. It does not change: a reload makes another."""

    server: ServerSettings = ServerSettings()
    limits: Limits = Limits()
    ledger: LedgerSettings = LedgerSettings()
    clients: tuple[Client, ...] = ()
    upstreams: tuple[Upstream, ...] = ()

    def route(self, model: str) -> tuple[Upstream, str] | None:
        """Which upstream a model is asked of, and under which name; None: there is none for it.

        An alias goes before all patterns; of those, the first upstream's that match.
        """
        for upstream in self.upstreams:
            if model in upstream.aliases:
                return upstream, upstream.aliases[model]
        for upstream in self.upstreams:
            if upstream.serves(model):
                return upstream, model
        return None

    def models(self) -> list[str]:
        """The names that can be listed: aliases, and models without a wildcard, each once."""
        names = [
            name
            for upstream in self.upstreams
            for name in (*upstream.aliases, *upstream.models)
            if name in upstream.aliases or not set("*?[") & set(name)
        ]
        return list(dict.fromkeys(names))
