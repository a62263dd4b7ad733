"""The laws of the configuration: what is wrong in it is named, all of it, and nothing secret is.

The document that is broken in all ways is the example with everything in it that is commented out,
which is also held to name every setting there is.
"""

from __future__ import annotations

import copy
import datetime
import inspect
import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltawire import DIALECTS
from deltawire.accounts import Account
from deltawire.attempts import Policy, Timeouts
from deltawire.server import config_cli
from deltawire.server.config import ConfigError, load, parse, quick
from deltawire.server.config_cli import EXAMPLE
from deltawire.server.keys import Client, hash_key
from deltawire.server.settings import (
    CORE_KINDS,
    Config,
    LedgerSettings,
    Limits,
    ServerSettings,
    StreamOptions,
    Upstream,
)
from deltawire.transports import SyncTransport

Json = dict[str, Any]
Place = tuple[str | int, ...]

ENVIRON = {"OPENAI_API_KEY": "sk-of-the-environment"}
FULL = re.sub(r"(?m)^#(?=[\w\[])", "", EXAMPLE)
DOCUMENT: Json = tomllib.loads(FULL)
FREE_TABLES = {"aliases", "headers"}
SECRET = "very-secret-text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files are that the example names."""
    folder = tmp_path_factory.mktemp("config")
    for name in ("server.pem", "server.key", "client.pem", "client.key", "openai-2.key"):
        (folder / name).write_text("sk-of-the-file\n")
    return folder


def written(value: Any) -> str:
    """The value in TOML."""
    match value:
        case dict():
            pairs = (f"{json.dumps(key)} = {written(each)}" for key, each in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(written, value)) + "]"
        case str():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def text_of(document: Json) -> str:
    return "".join(f"{json.dumps(key)} = {written(each)}\n" for key, each in document.items())


def read(document: Json, folder: Path = Path(), environ: Any = ENVIRON) -> Config:
    return parse(text_of(document), environ, str(folder / "deltawire.toml"))


def problems(document: Json, folder: Path = Path(), environ: Any = ENVIRON) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(document, folder, environ)
    found = dict(caught.value.problems)
    assert len(found) == len(caught.value.problems)
    assert str(caught.value).count("deltawire.toml: ") == len(found)
    return found


def minimal(**more: Any) -> Json:
    return {"upstreams": [{"name": "a", "base_url": "http://127.0.0.1:1/v1", **more}]}


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*at, key))


def at(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def changed(document: Json, place: Place, value: Any) -> Json:
    document = copy.deepcopy(document)
    at(document, place[:-1])[place[-1]] = value
    return document


def path_of(place: Place) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)[1:]


PLACES = list(places(DOCUMENT))
LEAVES = [place for place in PLACES if not isinstance(at(DOCUMENT, place), dict | list)]
TABLES = [
    place
    for place in [(), *PLACES]
    if isinstance(at(DOCUMENT, place), dict) and not FREE_TABLES & set(place)
]
ONE_OF_EACH_TYPE = ["text", True, 3, 2.5, [], {}, datetime.date(2026, 1, 1)]


def wrong_values(place: Place) -> list[Any]:
    """One of each type that cannot stand there."""
    right: type = type(at(DOCUMENT, place))
    taken: tuple[type, ...] = {int: (int, float), float: (int, float)}.get(right, (right,))
    if place[-1] == "verify":
        taken = (bool, str)
    return [value for value in ONE_OF_EACH_TYPE if type(value) not in taken]


# The example.


def test_the_example_is_valid_as_it_stands() -> None:
    config = parse(EXAMPLE, ENVIRON)
    assert (config.server, config.limits) == (ServerSettings(), Limits())
    assert [account.key for account in config.upstreams[0].accounts] == ["sk-of-the-environment"]
    assert config.models() == ["fast", "gpt-5", "gpt-5-mini"]


def test_the_example_gives_defaults_where_it_gives_any(folder: Path) -> None:
    config = parse(FULL, ENVIRON, str(folder / "deltawire.toml"))
    tls = {"tls_cert": str(folder / "server.pem"), "tls_key": str(folder / "server.key")}
    assert config.server == ServerSettings(**tls)  # type: ignore[arg-type]
    assert config.limits == Limits()
    assert config.ledger == LedgerSettings()
    upstream = config.upstreams[0]
    plain = Upstream(name="", base_url="")
    for name in ("api", "timeouts", "policy", "strict", "max_connections", "verify"):
        assert getattr(upstream, name) == getattr(plain, name), name
    assert upstream.stream_options == plain.stream_options


def test_the_example_names_every_setting() -> None:
    upstream = DOCUMENT["upstreams"][0]
    tables = {
        ServerSettings: DOCUMENT["server"],
        Limits: DOCUMENT["limits"],
        LedgerSettings: DOCUMENT["ledger"],
        Client: DOCUMENT["clients"][0],
        Upstream: upstream,
        Timeouts: upstream["timeouts"],
        Policy: upstream["policy"],
        StreamOptions: upstream["stream_options"],
        Config: DOCUMENT,
    }
    for kind, table in tables.items():
        assert table.keys() == inspect.signature(kind).parameters.keys()
    keys = {key for account in upstream["accounts"] for key in account}
    own = inspect.signature(Account).parameters.keys() - {"dialect"}
    assert keys == own | {"key_env", "key_file"}


def test_every_number_of_the_core_has_its_bounds() -> None:
    for kind, kinds in CORE_KINDS.items():
        flags = {name for name, each in inspect.get_annotations(kind).items() if each == "bool"}
        assert kinds.keys() | flags == inspect.signature(kind).parameters.keys()


# The laws of what is wrong.


@pytest.mark.parametrize("place", PLACES, ids=path_of)
def test_a_wrong_type_anywhere_is_one_problem_of_that_path(place: Place, folder: Path) -> None:
    for value in wrong_values(place):
        found = problems(changed(DOCUMENT, place, value), folder)
        assert found.keys() == {path_of(place)}
        assert re.match(r"expected .+, found (an?|true|false|3|2\.5)\b", found[path_of(place)])


@given(st.sampled_from(TABLES), st.from_regex(r"\A[a-z_]{1,12}x\Z"))
def test_an_unknown_key_anywhere_is_one_problem_of_that_path(
    folder: Path, place: Place, key: str
) -> None:
    found = problems(changed(DOCUMENT, (*place, key), 1), folder)
    assert found.keys() == {path_of((*place, key))}
    assert found.popitem()[1].startswith("unknown; ")


@given(st.data())
def test_all_that_is_wrong_is_told_at_once(folder: Path, data: st.DataObject) -> None:
    broken = data.draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=12, unique=True))
    document = DOCUMENT
    for place in broken:
        document = changed(document, place, data.draw(st.sampled_from(wrong_values(place))))
    assert problems(document, folder).keys() == {path_of(place) for place in broken}


KNOWN_KEYS = sorted({key for place in PLACES for key in place if isinstance(key, str)})
SCALARS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.sampled_from([at(DOCUMENT, place) for place in LEAVES]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KNOWN_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(list(DOCUMENT)), VALUES), st.data())
def test_any_document_is_a_configuration_or_its_problems(document: Json, data: Any) -> None:
    place = data.draw(st.sampled_from(PLACES))
    for each in (document, changed(DOCUMENT, place, data.draw(VALUES))):
        try:
            read(each)
        except ConfigError as caught:
            error = caught
        else:
            continue
        assert error.problems


@given(st.text())
def test_any_text_is_a_configuration_or_its_problems(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert caught.value.problems


# Secrets.

SECRET_VALUES: dict[Place, list[Any]] = {
    ("clients", 0, "key_hash"): [SECRET],
    ("ledger", "url"): [f"mysql://u:{SECRET}@h/d", f"sqlite:/{SECRET}\n"],
    ("upstreams", 0, "base_url"): [SECRET, f"ftp://h/{SECRET}", f"http://u:{SECRET}@h"],
    ("upstreams", 0, "headers"): [{"X-Key": f"{SECRET}\n"}, {f"X-Key: {SECRET}": "x"}, SECRET],
    ("upstreams", 0, "proxy"): [SECRET, f"ftp://u:{SECRET}@h"],
    ("upstreams", 0, "accounts", 0, "base_url"): [f"https://{SECRET}@h"],
    ("upstreams", 0, "accounts", 0, "headers"): [{"X-Key": f" {SECRET}"}],
    ("upstreams", 0, "accounts", 0, "key_env"): [SECRET],
    ("upstreams", 0, "accounts", 2, "key"): [f"{SECRET}\n", [SECRET], {"key": SECRET}],
}


@pytest.mark.parametrize("place", SECRET_VALUES, ids=path_of)
def test_no_problem_shows_a_secret(place: Place, folder: Path) -> None:
    for value in SECRET_VALUES[place]:
        found = problems(changed(DOCUMENT, place, value), folder)
        assert next(iter(found)).startswith(path_of(place))
        assert SECRET not in str(found)


def test_a_number_where_a_key_is_expected_is_not_shown() -> None:
    found = problems(minimal(accounts=[{"name": "b", "key": 123456}]))
    assert found == {
        "upstreams[0].accounts[0].key": "expected a string that is not empty, found an integer"
    }


def test_what_is_wrong_with_a_key_from_outside_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n\n")
    (tmp_path / "bytes").write_bytes(SECRET.encode() + b"\xff")
    accounts = [
        {"name": "variable", "key_env": "KEY"},
        {"name": "file", "key_file": "key"},
        {"name": "bytes", "key_file": "bytes"},
    ]
    environ = {"KEY": f"{SECRET}é"}
    assert problems(minimal(accounts=accounts), tmp_path, environ) == {
        "upstreams[0].accounts[0].key_env": "expected what can stand in a header, found a control"
        " or non-ASCII character at character 16 of 17",
        "upstreams[0].accounts[1].key_file": "expected what can stand in a header, found a line"
        " break at character 16 of 17",
        "upstreams[0].accounts[2].key_file": "it cannot be read (no UTF-8 at byte 16):"
        f" {str(tmp_path / 'bytes')!r}",
    }


def test_no_repr_shows_a_secret() -> None:
    account = {"name": "b", "key": SECRET, "headers": {"X-Key": SECRET}}
    document = {
        **minimal(
            base_url=f"https://h/v1?key={SECRET}",
            headers={"X-Other": SECRET},
            proxy=f"http://user:{SECRET}@h",
            accounts=[account, {"name": "c", "key_env": "KEY"}],
        ),
        "ledger": {"url": f"postgresql://user:{SECRET}@h/d"},
        "clients": [{"name": "ann", "key_hash": hash_key(SECRET)}],
    }
    config = read(document, environ={"KEY": SECRET})
    assert SECRET not in f"{config!r} {config}"
    assert hash_key(SECRET) not in repr(config)
    assert "Account('b' at https://h/v1)" in repr(config)


# Single mistakes.

FILES = {"tls_cert": "server.pem", "tls_key": "server.key"}
HASH = hash_key("dw-1")
TWICE = minimal()["upstreams"] * 2


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ({}, "upstreams", "expected at least one [[upstreams]], found none"),
        ({"upstreams": []}, "upstreams", "expected at least one [[upstreams]], found none"),
        (
            {"upstreams": {"name": "a"}},
            "upstreams",
            "expected an array of tables, [[upstreams]], found a table",
        ),
        ({"upstreams": ["a"]}, "upstreams[0]", "expected a table, found a string"),
        (minimal() | {"sever": {}}, "sever", "unknown; did you mean server?"),
        (
            minimal() | {"zzz": 1},
            "zzz",
            "unknown; known are server, limits, ledger, clients, upstreams",
        ),
        (minimal() | {"server": {"a b": 1}}, 'server."a b"', None),
        (
            minimal() | {"server": {"port": 65536}},
            "server.port",
            "expected a port from 0 to 65535, found 65536",
        ),
        (
            minimal() | {"server": {"port": "80"}},
            "server.port",
            "expected a port from 0 to 65535, found a string",
        ),
        (minimal() | {"server": {"port": -1}}, "server.port", None),
        (
            minimal() | {"server": {"shutdown": -0.5}},
            "server.shutdown",
            "expected seconds from 0 to 86400, found -0.5",
        ),
        (
            minimal() | {"server": {"ping": 0}},
            "server.ping",
            "expected seconds over 0, to 86400, or inf for no limit, found 0",
        ),
        (minimal() | {"server": {"ping": math.nan}}, "server.ping", None),
        (minimal() | {"limits": {"head_timeout": math.inf}}, "limits.head_timeout", None),
        (minimal() | {"limits": {"body": 0}}, "limits.body", None),
        (minimal() | {"limits": {"body": 10**30}}, "limits.body", None),
        (
            minimal() | {"server": {"transport": "twisted"}},
            "server.transport",
            'expected one of "asyncio", "sync", "trio", found "twisted"',
        ),
        (
            minimal() | {"server": {"host": ""}},
            "server.host",
            "expected a string that is not empty, found an empty string",
        ),
        (
            minimal() | {"server": {"tls_cert": "server.pem"}},
            "server.tls_key",
            "expected one beside tls_cert, found nothing",
        ),
        (
            minimal() | {"server": {"tls_key": "server.key"}},
            "server.tls_cert",
            "expected one beside tls_key, found nothing",
        ),
        (
            minimal() | {"server": FILES | {"tls_key": "absent.key"}},
            "server.tls_key",
            "it cannot be read (No such file or directory): 'absent.key'",
        ),
        (
            minimal() | {"server": {"host": "0.0.0.0"}},
            "server.host",
            "expected client keys ([[clients]]) to listen beyond this machine, on 0.0.0.0,"
            " or public = true; found neither",
        ),
        (minimal() | {"server": {"host": "gateway.example"}}, "server.host", None),
        (minimal() | {"server": {"host": "::"}}, "server.host", None),
        (
            minimal() | {"ledger": {"url": "mysql://h/d"}},
            "ledger.url",
            'expected a sqlite:// or postgresql:// URL, or "" for no ledger, found a string',
        ),
        (
            minimal() | {"clients": [{"name": "ann", "key_hash": HASH, "key": "dw-1"}]},
            "clients[0].key",
            "unknown; did you mean key_hash?",
        ),
        (
            minimal() | {"clients": [{"name": "ann"}]},
            "clients[0].key_hash",
            'expected the hash of a key, "sha256:" and 64 hexadecimal digits in lower case,'
            " found nothing",
        ),
        (
            minimal() | {"clients": [{"name": "", "key_hash": HASH}]},
            "clients[0].name",
            "expected a name, found an empty string",
        ),
        (
            minimal() | {"clients": [{"name": "a", "key_hash": HASH, "models": "gpt-5"}]},
            "clients[0].models",
            "expected an array of strings, found a string",
        ),
        (
            minimal() | {"clients": [{"name": name, "key_hash": HASH} for name in "ab"]},
            "clients[1].key_hash",
            "expected one that differs from clients[0].key_hash, found the same",
        ),
        (
            minimal()
            | {"clients": [{"name": "ann", "key_hash": hash_key(key)} for key in ("1", "2")]},
            "clients[1].name",
            "expected one that differs from clients[0].name, found ann in both",
        ),
        (
            {"upstreams": TWICE},
            "upstreams[1].name",
            "expected one that differs from upstreams[0].name, found a in both",
        ),
        (
            minimal(accounts=[{"name": "b"}, {"name": "b"}]),
            "upstreams[0].accounts[1].name",
            "expected one that differs from upstreams[0].accounts[0].name, found b in both",
        ),
        (
            {"upstreams": [TWICE[0], TWICE[0] | {"name": "b", "accounts": [{"name": "a"}]}]},
            "upstreams[1].accounts[0].name",
            "expected one that differs from upstreams[0].name, found a in both",
        ),
        (
            {"upstreams": [{**TWICE[0], "name": name, "aliases": {"x.1": "y"}} for name in "ab"]},
            'upstreams[1].aliases."x.1"',
            'expected one that differs from upstreams[0].aliases."x.1", found "x.1" in both',
        ),
        (
            {"upstreams": [{"base_url": "http://h"}]},
            "upstreams[0].name",
            "expected a name, found nothing",
        ),
        (
            {"upstreams": [{"name": "a"}]},
            "upstreams[0].base_url",
            "expected a string that is not empty, found nothing",
        ),
        (
            minimal(base_url="api.openai.com/v1"),
            "upstreams[0].base_url",
            "expected a URL that begins with https:// or http://, found no scheme",
        ),
        (
            minimal(dialect="xaj"),
            "upstreams[0].dialect",
            f'expected one of {", ".join(map(json.dumps, sorted(DIALECTS)))}, found "xaj"',
        ),
        (minimal(proxy="127.0.0.1:3128"), "upstreams[0].proxy", None),
        (
            minimal(cert_key="client.key"),
            "upstreams[0].cert",
            "expected one beside cert_key, found nothing",
        ),
        (minimal(verify="absent.pem"), "upstreams[0].verify", None),
        (minimal(verify="a\0b"), "upstreams[0].verify", None),
        (
            minimal(headers={"X Y": "z"}),
            "upstreams[0].headers",
            "expected the name of a header, found something else at [0]",
        ),
        (minimal(headers={"X-Y": "z\n"}), "upstreams[0].headers.X-Y", None),
        (
            minimal(api="chat", dialect="openai"),
            "upstreams[0].dialect",
            'expected none beside api = "chat", found one',
        ),
        (minimal(api="chat", strict=False), "upstreams[0].strict", None),
        (minimal(policy={"attempts": 0}), "upstreams[0].policy.attempts", None),
        (minimal(policy={"wait": -1}), "upstreams[0].policy.wait", None),
        (minimal(timeouts={"idle": 0}), "upstreams[0].timeouts.idle", None),
        (
            minimal(accounts=[{"name": "b", "key_env": "MY_KEY"}]),
            "upstreams[0].accounts[0].key_env",
            "expected a key in the environment variable MY_KEY, found no such variable",
        ),
        (
            minimal(accounts=[{"name": "b", "key_env": "EMPTY"}]),
            "upstreams[0].accounts[0].key_env",
            "expected a key in the environment variable EMPTY, found it empty",
        ),
        (
            minimal(accounts=[{"name": "b", "key_file": "absent.key"}]),
            "upstreams[0].accounts[0].key_file",
            "it cannot be read (No such file or directory): 'absent.key'",
        ),
        (
            minimal(accounts=[{"name": "b", "key": "sk-1", "key_env": "EMPTY"}]),
            "upstreams[0].accounts[0].key_env",
            "expected one of key, key_env, key_file, found key and key_env",
        ),
        (
            minimal(accounts=[{"name": "b", "base_url": "h"}]),
            "upstreams[0].accounts[0].base_url",
            None,
        ),
    ],
)
def test_a_mistake_is_named(document: Json, path: str, message: str | None, folder: Path) -> None:
    found = problems(document, folder, {"EMPTY": ""})
    assert found.keys() == {path}
    assert message is None or found[path] == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = \n", "it is not valid TOML: Invalid value (at line 2, column 8)"),
        ("a = 1\na = 2\n", "it is not valid TOML: Cannot overwrite a value (at line 2, column 6)"),
        ("a = " + "[" * 100_000, "it is nested too deeply"),
    ],
)
def test_what_is_no_toml_is_named_by_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, {}, "gateway.toml")
    assert str(caught.value) == f"gateway.toml: {message}"


def test_a_number_that_is_too_long_to_be_read_is_no_toml() -> None:
    with pytest.raises(ConfigError, match="it is not valid TOML"):
        parse("a = " + "9" * 5000, {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    for name, reason in (
        ("absent.toml", "No such file or directory"),
        ("", "Is a directory"),
        ("latin.toml", "no UTF-8 at byte 5"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, {})
        assert str(caught.value) == f"{tmp_path / name}: it cannot be read ({reason})"


# What a file comes to.


@pytest.mark.parametrize(
    ("server", "clients"),
    [
        ({}, []),
        ({"host": "localhost"}, []),
        ({"host": "::1"}, []),
        ({"host": "127.0.0.53"}, []),
        ({"host": "0.0.0.0", "public": True}, []),
        ({"host": "0.0.0.0"}, [{"name": "ann", "key_hash": HASH}]),
    ],
)
def test_it_listens_where_only_those_can_ask_who_may(server: Json, clients: list[Json]) -> None:
    config = read(minimal() | {"server": server, "clients": clients})
    assert config.server.host == server.get("host", "127.0.0.1")
    assert [client.name for client in config.clients] == [each["name"] for each in clients]


def test_inf_is_no_limit() -> None:
    document = minimal(
        timeouts={"connect": math.inf, "idle": 5},
        policy={"attempts": math.inf},
        max_connections=math.inf,
    )
    config = read(document | {"server": {"grace": math.inf, "ping": math.inf}})
    assert (config.server.grace, config.server.ping) == (None, None)
    [upstream] = config.upstreams
    assert upstream.timeouts == Timeouts(connect=None, idle=5.0)
    assert (upstream.policy.attempts, upstream.max_connections) == (None, None)


def test_keys_come_from_the_file_the_environment_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "unix.key").write_bytes(b"sk-unix\n")
    (tmp_path / "windows.key").write_bytes(b"sk-windows\r\n")
    accounts = [
        {"name": "literal", "key": "sk-literal"},
        {"name": "variable", "key_env": "KEY"},
        {"name": "unix", "key_file": "unix.key"},
        {"name": "windows", "key_file": str(tmp_path / "windows.key")},
        {"name": "none"},
    ]
    path = tmp_path / "deltawire.toml"
    path.write_text(text_of(minimal(accounts=accounts)))
    [upstream] = load(path, {"KEY": "sk-variable"}).upstreams
    keys = [account.key for account in upstream.accounts]
    assert keys == ["sk-literal", "sk-variable", "sk-unix", "sk-windows", None]


def test_accounts_have_of_their_upstream_what_they_have_not_themselves() -> None:
    own = {"base_url": "http://other/v1", "headers": {"x-a": "own"}, "models": ["m*"]}
    document = minimal(
        headers={"X-A": "common", "X-B": "common"},
        dialect="vllm",
        accounts=[{"name": "plain"}, {"name": "own", **own}],
    )
    plain, other = read(document).upstreams[0].accounts
    assert plain == Account(
        name="plain",
        base_url="http://127.0.0.1:1/v1",
        headers=(("X-A", "common"), ("X-B", "common")),
        dialect=DIALECTS["vllm"],
    )
    assert other.url == "http://other/v1/responses"
    assert other.headers == (("x-a", "own"), ("X-B", "common"))
    assert other.models == ("m*",)


def test_an_upstream_without_accounts_has_one_without_a_key() -> None:
    [account] = read(minimal()).upstreams[0].accounts
    assert account == Account(name="a", base_url="http://127.0.0.1:1/v1")


def test_a_transport_takes_the_settings_of_an_upstream(folder: Path) -> None:
    document = minimal(
        accounts=[{"name": "b", "key": "sk-1"}],
        stream_options={"reasoning": "none", "images": "none"},
        timeouts={"total": 9.0},
    )
    [upstream] = read(document).upstreams
    assert upstream.settings()["timeouts"].total == 9.0
    with SyncTransport(**upstream.settings()) as transport:
        assert transport.pool.accounts == list(upstream.accounts)


def test_certificates_of_an_upstream_are_files_beside_the_configuration(folder: Path) -> None:
    files = {"cert": "client.pem", "verify": "server.pem"}
    [upstream] = read(minimal(**files), folder).upstreams
    settings = upstream.settings()
    assert settings["cert"] == str(folder / "client.pem")
    assert settings["verify"] == str(folder / "server.pem")
    [upstream] = read(minimal(**files, cert_key="client.key"), folder).upstreams
    assert upstream.settings()["cert"] == (str(folder / "client.pem"), str(folder / "client.key"))


def test_nothing_in_it_changes() -> None:
    config = parse(EXAMPLE, ENVIRON)
    with pytest.raises(FrozenInstanceError):
        config.server.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.upstreams[0].aliases["fast"] = "slow"  # type: ignore[index]
    assert config == parse(EXAMPLE, ENVIRON)
    assert config != parse(EXAMPLE, {"OPENAI_API_KEY": "sk-another"})


# Routes.


def routed(config: Config, model: str) -> tuple[str, str] | None:
    route = config.route(model)
    return route and (route[0].name, route[1])


def test_aliases_go_before_patterns_and_of_those_the_first_that_match() -> None:
    url = "http://127.0.0.1:1"
    config = read(
        {
            "upstreams": [
                {"name": "a", "base_url": url, "models": ["gpt-5*", "grok-4"]},
                {"name": "b", "base_url": url, "models": ["gpt-*"], "aliases": {"gpt-5": "x"}},
                {"name": "c", "base_url": url, "models": ["grok-4"], "aliases": {"f*": "y"}},
            ]
        }
    )
    assert routed(config, "gpt-5") == ("b", "x")
    assert routed(config, "gpt-5-mini") == ("a", "gpt-5-mini")
    assert routed(config, "gpt-4.1") == ("b", "gpt-4.1")
    assert routed(config, "grok-4") == ("a", "grok-4")
    assert routed(config, "f*") == ("c", "y")
    assert routed(config, "fast") is None
    assert config.models() == ["grok-4", "gpt-5", "f*"]


@given(st.text())
def test_an_upstream_without_patterns_takes_every_model(model: str) -> None:
    config = quick("http://127.0.0.1:1", environ={})
    assert routed(config, model) == ("upstream", model)


# Without a file.


def test_a_url_is_enough() -> None:
    config = quick("https://api.x.ai/v1", environ=ENVIRON)
    [account] = config.upstreams[0].accounts
    assert account.key == "sk-of-the-environment"
    assert account.url == "https://api.x.ai/v1/responses"
    assert account.speaks.name == "xai"
    assert (config.server, config.models()) == (ServerSettings(), [])


@pytest.mark.parametrize("environ", [{}, {"OPENAI_API_KEY": ""}])
def test_without_the_usual_variable_there_is_no_key(environ: dict[str, str]) -> None:
    [account] = quick("http://127.0.0.1:1", environ=environ).upstreams[0].accounts
    assert account.key is None


def test_options_say_what_a_file_would() -> None:
    config = quick(
        "http://127.0.0.1:1",
        environ={"KEY": "sk-1"},
        host="0.0.0.0",
        port=0,
        public=True,
        transport="trio",
        api_key_env="KEY",
    )
    assert config.server == ServerSettings(host="0.0.0.0", port=0, public=True, transport="trio")
    assert config.upstreams[0].accounts[0].key == "sk-1"


def test_what_is_wrong_with_options_is_said_of_them() -> None:
    with pytest.raises(ConfigError) as caught:
        quick("h", environ=ENVIRON, host="::", port=70000, api_key_env="ABSENT")
    assert [path for path, _ in caught.value.problems] == [
        "--port",
        "--api-key-env",
        "--upstream",
        "--host",
    ]
    assert str(caught.value).startswith("--port: expected a port from 0 to 65535, found 70000\n")


# The commands.


def test_a_valid_file_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deltawire.toml"
    path.write_text(EXAMPLE)
    assert config_cli.check(path, ENVIRON) == 0
    assert capsys.readouterr() == (
        "ok: 1 upstream, 1 account, 0 clients, 3 models by name,"
        " on http://127.0.0.1:8080 by asyncio\n",
        "",
    )
    path.write_text(text_of(minimal() | {"server": {"host": "::1", "transport": "sync"}}))
    assert config_cli.check(path, {}) == 0
    assert "on http://[::1]:8080 by sync" in capsys.readouterr().out


def test_of_a_wrong_file_all_problems_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deltawire.toml"
    path.write_text("[server]\nport = 'x'\nhots = ''\n")
    assert config_cli.check(path, {}) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{path}: server.port: expected a port from 0 to 65535, found a string",
        f"{path}: server.hots: unknown; did you mean host?",
        f"{path}: upstreams: expected at least one [[upstreams]], found none",
    ]


def test_the_example_and_a_key_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert config_cli.example() == 0
    assert capsys.readouterr().out == EXAMPLE
    assert config_cli.key() == 0
    match = re.fullmatch(r'key:      (\S+)\nkey_hash = "(\S+)"\n', capsys.readouterr().out)
    assert match is not None
    assert hash_key(match[1]) == match[2]
