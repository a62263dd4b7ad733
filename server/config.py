"""The configuration: `deltawire.toml`, or the options of a command, read into `Config`.

What may live here: the reading, and what is told of a file that is wrong. What may not: what can be
set, which is in `settings`. Callers: the command line, and the server, which reads it again on
SIGHUP.

A reader walks the document and the types of `settings` together and collects what is wrong by key
path (`upstreams[0].accounts[1].key_env`), so that all of it is told at once. Where a value cannot
be taken, its default stands in while the rest is looked at. A message says what was expected and
what was found, but never the text of a string that could be a secret.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from deltawire.accounts import Account
from deltawire.dialects import DIALECTS, Dialect
from deltawire.errors import DeltawireError, InvalidSetting
from deltawire.server.keys import Client, Name
from deltawire.server.settings import (
    CORE_KINDS,
    Config,
    Count,
    File,
    LedgerSettings,
    Limit,
    Limits,
    ServerSettings,
    StreamOptions,
    Text,
    TransportName,
    Upstream,
    Variable,
    Verify,
)

__all__ = [
    "Config",
    "ConfigError",
    "LedgerSettings",
    "Limits",
    "Problem",
    "ServerSettings",
    "StreamOptions",
    "Upstream",
    "load",
    "parse",
    "quick",
]


class Problem(NamedTuple):
    """What is wrong at one place: a key path, or "" for the file as a whole."""

    path: str
    message: str


class ConfigError(DeltawireError):
    """A configuration with which the server cannot be started; all that is wrong with it.

    where: the file, or what else it was read from.
    """

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(
                ": ".join(part for part in (where, *problem) if part) for problem in self.problems
            )
        )


def load(path: str | Path, environ: Mapping[str, str]) -> Config:
    """The configuration in the file of that name. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), [Problem("", _unreadable(error))]) from None
    return parse(text, environ, str(path))


def parse(text: str, environ: Mapping[str, str], where: str = "deltawire.toml") -> Config:
    """The configuration that the text is, in TOML. Raises ConfigError.

    environ: where `key_env` is looked up. where: what errors call the text; files that it names are
    found from the directory of that path.
    """
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(where, [Problem("", "it is nested too deeply")]) from None
    except ValueError as error:
        # Among them, numbers that are longer than Python reads.
        raise ConfigError(where, [Problem("", f"it is not valid TOML: {error}")]) from None
    reader = _Reader(environ, Path(where).parent)
    config = reader.config(document)
    if reader.problems:
        raise ConfigError(where, [Problem(*each) for each in reader.problems.items()])
    return config


_OPTIONS: Final = {
    "server.host": "--host",
    "server.port": "--port",
    "server.transport": "--transport",
    "upstreams[0].base_url": "--upstream",
    "upstreams[0].accounts[0].key_env": "--api-key-env",
}


def quick(
    upstream_url: str,
    *,
    environ: Mapping[str, str],
    host: str = "127.0.0.1",
    port: int = 8080,
    public: bool = False,
    transport: TransportName = "asyncio",
    api_key_env: str | None = None,
) -> Config:
    """The configuration without a file: one upstream, asked for any model under its own name.

    api_key_env: the variable with its key, which has to be set; None: `OPENAI_API_KEY`, if that is
    set. Raises ConfigError, whose problems name the options of `deltawire serve`.
    """
    account = {"name": "default"}
    if api_key_env is not None:
        account["key_env"] = api_key_env
    elif environ.get("OPENAI_API_KEY"):
        account["key_env"] = "OPENAI_API_KEY"
    reader = _Reader(environ, Path())
    config = reader.config(
        {
            "server": {"host": host, "port": port, "transport": transport, "public": public},
            "upstreams": [{"name": "upstream", "base_url": upstream_url, "accounts": [account]}],
        }
    )
    if reader.problems:
        raise ConfigError(
            "",
            [
                Problem(_OPTIONS.get(path, path), message)
                for path, message in reader.problems.items()
            ],
        )
    return config


@dataclass(frozen=True, kw_only=True)
class _AccountTable:
    """An account as the file has it; at most one of the keys is given."""

    name: Name
    key: Text | None = None
    key_env: Variable | None = None
    key_file: File | None = None
    base_url: Text | None = None
    models: tuple[Text, ...] = ()
    headers: Mapping[str, Text] = field(default_factory=lambda: MappingProxyType({}))


_DIALECT: Final[Any] = Literal[tuple(sorted(DIALECTS))]
_KEYS: Final = ("key", "key_env", "key_file")
# A value that could not be read.
_NOTHING: Final[Any] = object()


class _Reader:
    """One document on its way to a `Config`. `problems`: a message by key path, the first of each.

    What reads a part of it gives `_NOTHING` for what cannot be one, after saying so.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self.problems: dict[str, str] = {}
        self._environ = environ
        self._folder = folder
        self._taken: dict[tuple[str, str], str] = {}
        self._readers: dict[Any, Callable[[Any, str], Any]] = {
            Account: self._account,
            Client: self._client,
            Dialect: self._dialect,
            Upstream: self._upstream,
        }

    def config(self, document: dict[str, Any]) -> Config:
        config: Config = self._table(Config, document, "")
        server = config.server
        if not document.get("upstreams"):
            self._say("upstreams", "expected at least one [[upstreams]], found none")
        self._pair("server", tls_cert=server.tls_cert, tls_key=server.tls_key)
        # Clients with something wrong in them are clients all the same.
        told = server.public or "server.public" in self.problems or document.get("clients")
        if not told and not _is_loopback(server.host):
            self._say(
                "server.host",
                f"expected client keys ([[clients]]) to listen beyond this machine, on"
                f" {server.host}, or public = true; found neither",
            )
        return config

    def _say(self, path: str, message: str) -> None:
        self.problems.setdefault(path, message)

    def _read(self, kind: Any, found: Any, path: str) -> Any:
        limitless = ""
        if NoneType in get_args(kind):
            kind = next(each for each in get_args(kind) if each is not NoneType)
            if kind in (Limit, Count):
                limitless = ", or inf for no limit"
                if found == math.inf:
                    return None
        origin = get_origin(kind)
        if kind in self._readers:
            return self._readers[kind](found, path)
        if origin is tuple:
            return self._array(get_args(kind)[0], found, path)
        if origin is Mapping:
            return self._mapping(get_args(kind)[1], found, path)
        if _is_table(kind):
            return self._table(kind, found, path)
        try:
            value = msgspec.convert(found, kind)
        except msgspec.ValidationError:
            self._say(path, f"expected {_expected(kind)}{limitless}, found {_shown(found, kind)}")
            return _NOTHING
        if kind in (File, Verify) and isinstance(value, str):
            return self._file(value, path)
        return value

    def _table(self, kind: type, found: Any, path: str) -> Any:
        if not isinstance(found, dict):
            self._say(path, f"expected a table, found {_type_of(found)}")
            return _NOTHING
        kinds, required = _schema(kind)
        values = {}
        for key, value in found.items():
            at = _join(path, key)
            if key not in kinds:
                self._say(at, _unknown(key, kinds))
            elif (read := self._read(kinds[key], value, at)) is not _NOTHING:
                values[key] = read
        for key in (key for key in required if key not in values):
            self._say(_join(path, key), f"expected {_expected(kinds[key])}, found nothing")
            values[key] = ""
        return kind(**values)

    def _array(self, kind: Any, found: Any, path: str) -> Any:
        if not isinstance(found, list):
            self._say(path, f"expected {_array_of(kind, path)}, found {_type_of(found)}")
            return _NOTHING
        items = (self._read(kind, item, f"{path}[{place}]") for place, item in enumerate(found))
        return tuple(item for item in items if item is not _NOTHING)

    def _mapping(self, kind: Any, found: Any, path: str) -> Any:
        if not isinstance(found, dict):
            self._say(path, f"expected a table of strings, found {_type_of(found)}")
            return _NOTHING
        items = {key: self._read(kind, value, _join(path, key)) for key, value in found.items()}
        return MappingProxyType({k: item for k, item in items.items() if item is not _NOTHING})

    def _file(self, name: str, path: str) -> Any:
        file = self._folder / name
        try:
            file.open("rb").close()
        except (OSError, ValueError) as error:
            self._say(path, f"{_unreadable(error)}: {name!r}")
            return _NOTHING
        return str(file)

    def _dialect(self, found: Any, path: str) -> Any:
        name = self._read(_DIALECT, found, path)
        return name if name is _NOTHING else DIALECTS[name]

    def _client(self, found: Any, path: str) -> Any:
        client = self._table(Client, found, path)
        if client is not _NOTHING:
            self._distinct("client", client.name, _join(path, "name"))
            self._distinct("key", client.key_hash, _join(path, "key_hash"))
        return client

    def _upstream(self, found: Any, path: str) -> Any:
        upstream = self._table(Upstream, found, path)
        if upstream is _NOTHING:
            return _NOTHING
        self._distinct("upstream", upstream.name, _join(path, "name"))
        for alias in upstream.aliases:
            self._distinct("alias", alias, _join(path, "aliases", alias))
        if upstream.cert is None:
            self._pair(path, cert=None, cert_key=upstream.cert_key)
        if upstream.api == "chat":
            for key in ("dialect", "strict", "stream_options"):
                if key in found:
                    self._say(_join(path, key), 'expected none beside api = "chat", found one')
        common = self._headers(upstream.headers, path)
        if not found.get("accounts"):
            # It has one all the same, without a key, which is called as the upstream is.
            self._distinct("account", upstream.name, _join(path, "name"))
        if not self._sendable(_join(path, "base_url"), base_url=upstream.base_url):
            return upstream
        accounts = upstream.accounts or (Account(name=upstream.name),)
        complete = (
            each.completed(base_url=upstream.base_url, dialect=upstream.dialect, headers=common)
            for each in accounts
        )
        return replace(upstream, accounts=tuple(complete))

    def _account(self, found: Any, path: str) -> Any:
        table = self._table(_AccountTable, found, path)
        if table is _NOTHING:
            return _NOTHING
        self._distinct("account", table.name, _join(path, "name"))
        url: str | None = table.base_url
        if url is not None and not self._sendable(_join(path, "base_url"), base_url=url):
            url = None
        return Account(
            name=table.name,
            key=self._key(table, [key for key in found if key in _KEYS], path),
            base_url=url,
            models=table.models,
            headers=self._headers(table.headers, path),
        )

    def _key(self, table: _AccountTable, given: list[str], path: str) -> str | None:
        if len(given) > 1:
            found = " and ".join(given)
            self._say(_join(path, given[-1]), f"expected one of {', '.join(_KEYS)}, found {found}")
            return None
        key = table.key
        if table.key_env is not None:
            key = self._environ.get(table.key_env)
            if not key:
                found = "it empty" if key == "" else "no such variable"
                self._say(
                    _join(path, "key_env"),
                    f"expected a key in the environment variable {table.key_env}, found {found}",
                )
        elif table.key_file is not None:
            try:
                text = Path(table.key_file).read_text(encoding="utf-8")
            except ValueError as error:
                self._say(_join(path, "key_file"), f"{_unreadable(error)}: {table.key_file!r}")
            else:
                key = text.removesuffix("\n")
        return key if key and self._sendable(_join(path, given[0]), key=key) else None

    def _headers(self, headers: Mapping[str, str], path: str) -> tuple[tuple[str, str], ...]:
        sendable = [
            (name, value)
            for name, value in headers.items()
            if self._sendable(_join(path, "headers", name), headers=(("x", value),))
        ]
        # A name that is none may be a whole line, with a key in it, which no path is to show.
        named = self._sendable(_join(path, "headers"), headers=[(name, "x") for name in headers])
        return tuple(sendable) if named else ()

    def _sendable(self, path: str, **setting: Any) -> bool:
        """Whether an account could have that setting."""
        try:
            Account(**setting)
        except InvalidSetting as error:
            self._say(path, str(error).removeprefix(f"{error.setting}: "))
            return False
        return True

    def _distinct(self, what: str, name: str, path: str) -> None:
        first = self._taken.setdefault((what, name), path)
        if first != path:
            found = "the same" if what == "key" else f"{_quoted(name)} in both"
            self._say(path, f"expected one that differs from {first}, found {found}")

    def _pair(self, path: str, **files: str | None) -> None:
        given = [key for key, file in files.items() if file is not None]
        if len(given) == 1:
            missing = next(key for key in files if key not in given)
            self._say(_join(path, missing), f"expected one beside {given[0]}, found nothing")


@cache
def _schema(kind: type) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys of a table with their types, and those that have to be there, all of them texts."""
    kinds = {**get_type_hints(kind, include_extras=True), **CORE_KINDS.get(kind, {})}
    parameters = inspect.signature(kind).parameters.values()
    required = (each.name for each in parameters if each.default is each.empty)
    return kinds, tuple(required)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Of other names nobody can say where they lead to tomorrow.
        return host == "localhost"


def _is_table(kind: Any) -> bool:
    return is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))


def _unreadable(error: Exception) -> str:
    match error:
        case OSError():
            reason = str(error.strerror)
        case UnicodeDecodeError():
            # What stands there is not repeated: it may be a key.
            reason = f"no UTF-8 at byte {error.start}"
        case _:
            reason = str(error)
    return f"it cannot be read ({reason})"


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _join(path: str, *keys: str) -> str:
    return ".".join(part for part in (path, *map(_quoted, keys)) if part)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(json.dumps(each) for each in get_args(kind))}"
    if get_origin(kind) is Annotated:
        return str(get_args(kind)[1].description)
    return {str: "a string", bool: "true or false"}[kind]


def _shown(found: Any, kind: Any) -> str:
    """What was found; itself only where neither it nor what it was meant as could be a secret."""
    if get_origin(kind) is Literal and isinstance(found, str):
        return json.dumps(found[:40], ensure_ascii=False)
    if get_args(kind)[:1] in ((int,), (float,)) and type(found) in (int, float):
        return f"{found:.10g}"
    return "an empty string" if found == "" else _type_of(found)


def _type_of(found: Any) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(found), "a date or time")


def _array_of(kind: Any, path: str) -> str:
    return f"an array of tables, [[{path}]]" if _is_table(kind) else "an array of strings"


def _unknown(key: str, known: Iterable[str]) -> str:
    close = get_close_matches(key, known, 1, 0.5)
    return (
        f"unknown; did you mean {close[0]}?" if close else f"unknown; known are {', '.join(known)}"
    )
