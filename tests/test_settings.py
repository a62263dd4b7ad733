"""What is wrong with a setting is said with its name, before anything is sent; a key never is.

Where a setting can only be found wrong by the network, it is the error of the call that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import h11
import httpx
import httpx2
import pytest
import trustme

from deltawire.accounts import Account, AccountPool
from deltawire.attempts import Policy, Timeouts
from deltawire.calls import TranslatedCall
from deltawire.errors import DeltawireError, InvalidSetting
from deltawire.steps import UpstreamRequest
from deltawire.testing import Answer, ErrorEvent, Failed, write_frames
from deltawire.transports import AsyncioTransport, SyncTransport, TrioTransport
from drivers import DRIVERS, OWN_CLIENT, Driver, Result
from upstream import Reply, Upstream, error, html, json_body, redirect, stream

KEY: Final = "sk-proj-0123456789abcdefNOT"
REQUEST: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
ANSWER: Final = Answer("It rains.")
TRANSPORTS: Final = (SyncTransport, AsyncioTransport, TrioTransport)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def secured(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


own_client = pytest.mark.parametrize("driver", OWN_CLIENT, ids=str)
each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=str)
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


# What can be seen at once.

WRONG: Final[list[tuple[str, dict[str, Any]]]] = [
    ("base_url", {"base_url": ""}),
    ("base_url", {"base_url": "api.example.com/v1"}),
    ("base_url", {"base_url": KEY}),
    ("base_url", {"base_url": "ftp://example.com"}),
    ("base_url", {"base_url": "https://"}),
    ("base_url", {"base_url": f"https://user:{KEY}@example.com"}),
    ("base_url", {"base_url": "https://example.com:99999"}),
    ("base_url", {"base_url": "https://exam ple.com"}),
    ("base_url", {"base_url": f"https://example.com/v1#{KEY}"}),
    ("api_key", {"api_key": f"{KEY}\n"}),
    ("api_key", {"api_key": f"{KEY}\r\nX-Other: 1"}),
    ("api_key", {"api_key": f" {KEY}"}),
    ("api_key", {"api_key": f"{KEY}\u20ac"}),
    ("api_key", {"api_key": ""}),
    ("api_key", {"api_key": KEY, "accounts": [Account(name="a", key=KEY)]}),
    ("accounts", {"accounts": []}),
    ("accounts", {"accounts": [Account(name="a"), Account(name="a")]}),
    ("headers", {"headers": {f"Bearer {KEY}": "x"}}),
    ("headers[X-Key]", {"headers": {"X-Key": f"{KEY}\n"}}),
    ("proxy", {"proxy": "example.com"}),
    ("proxy", {"proxy": f"ftp://user:{KEY}@example.com"}),
    ("proxy", {"proxy": f"http://user:{KEY}@example.com:port"}),
    ("proxy", {"proxy": f"http://user:{KEY}@example.com:99999"}),
    ("proxy", {"proxy": "http://"}),
    ("verify", {"verify": "/nowhere/authorities.pem"}),
    ("cert", {"cert": "/nowhere/client.pem"}),
    ("cert", {"cert": ("/nowhere/client.pem", "/nowhere/client.key")}),
    ("cert", {"cert": ("/nowhere/client.pem", "/nowhere/client.key", KEY)}),
    ("client", {"client": object()}),
    ("client", {"client": "https://example.com"}),
    ("client", {"client": ssl.create_default_context()}),
    ("stream_options.nonsense", {"stream_options": {"nonsense": 1}}),
    ("max_connections", {"max_connections": 0}),
    ("max_connections", {"max_connections": -1}),
    ("max_connections", {"max_connections": "many"}),
    ("max_connections", {"max_connections": 1.5}),
    ("max_keepalive_connections", {"max_keepalive_connections": -1}),
    ("max_keepalive_connections", {"max_keepalive_connections": "all"}),
    ("keepalive_expiry", {"keepalive_expiry": -1.0}),
    ("keepalive_expiry", {"keepalive_expiry": "long"}),
    ("keepalive_expiry", {"keepalive_expiry": float("nan")}),
]


@pytest.mark.parametrize(("setting", "settings"), WRONG)
@each_transport
def test_a_setting_that_cannot_work_is_named(
    transport: type[Any], setting: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidSetting) as raised:
        transport(**{"verify": False, **settings})
    assert raised.value.setting == setting
    assert str(raised.value).startswith(f"{setting}: ")
    assert_hidden(raised.value)


@pytest.mark.parametrize("setting", ["verify", "cert"])
@each_transport
def test_a_file_without_a_certificate_is_named(
    transport: type[Any], setting: str, tmp_path: Path
) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("Nothing of the kind.\n")
    with pytest.raises(InvalidSetting, match=f"^{setting}: "):
        transport(**{setting: str(path)})


@each_transport
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_client_of_the_other_kind_is_refused(transport: type[Any], library: Any) -> None:
    blocking = transport is SyncTransport
    client = library.AsyncClient(verify=False) if blocking else library.Client(verify=False)
    wanted = "Client" if blocking else "AsyncClient"
    with pytest.raises(InvalidSetting, match=rf"^client: expected an httpx\.{wanted} "):
        transport(client=client)
    if blocking:
        asyncio.run(client.aclose())
    else:
        client.close()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("proxy", "http://127.0.0.1:1"), ("verify", False), ("cert", "/nowhere/client.pem")],
)
def test_what_a_client_has_itself_is_refused_beside_it(setting: str, value: Any) -> None:
    with (
        httpx.Client(verify=False) as client,
        pytest.raises(InvalidSetting, match=f"^{setting}: expected none beside client"),
    ):
        SyncTransport(client=client, **{setting: value})


BLOCKER: Final = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import deltawire.transports
try:
    deltawire.transports.{transport}()
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("transport", "blocked", "extra"),
    [
        ("SyncTransport", ("httpx", "httpx2"), "sync"),
        ("AsyncioTransport", ("httpx", "httpx2"), "asyncio"),
        ("AsyncioTransport", ("httpx", "httpx2", "anyio"), "asyncio"),
        ("TrioTransport", ("httpx", "httpx2"), "trio"),
        ("TrioTransport", ("trio",), "trio"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    transport: str, blocked: tuple[str, ...], extra: str
) -> None:
    code = BLOCKER.format(blocked=set(blocked), transport=transport)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'deltawire[{extra}]'" in ran.stdout
    assert transport in ran.stdout


# What the network says.


@each_driver
def test_a_host_that_does_not_exist_is_the_base_url(driver: Driver) -> None:
    result = driver.create(REQUEST, base_url="http://nothing.invalid/v1", api_key=KEY)
    assert_unreachable(result, "base_url http://nothing.invalid/v1")


@each_driver
def test_a_port_where_nobody_listens_is_the_base_url(driver: Driver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = driver.create(REQUEST, base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
    assert_unreachable(result, f"base_url http://127.0.0.1:{port}/v1")


@each_driver
def test_a_certificate_of_nobody_we_trust_is_verify(driver: Driver, authority: trustme.CA) -> None:
    with Upstream(secured(authority, "127.0.0.1")) as upstream:
        result = driver.create(REQUEST, base_url=upstream.base_url, api_key=KEY)
        assert_unreachable(result, f"base_url {upstream.base_url}", "verify")
        assert upstream.requests == []


@each_driver
def test_a_certificate_of_another_host_is_verify(driver: Driver, authority: trustme.CA) -> None:
    with Upstream(secured(authority, "example.com")) as upstream:
        result = driver.create(
            REQUEST, base_url=upstream.base_url, api_key=KEY, verify=trusting(authority)
        )
        assert_unreachable(result, f"base_url {upstream.base_url}", "verify")
        assert upstream.requests == []


@own_client
def test_an_authority_can_be_a_file(driver: Driver, authority: trustme.CA, tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    with Upstream(secured(authority, "127.0.0.1")) as upstream:
        upstream.play(stream(ANSWER))
        result = driver.create(REQUEST, base_url=upstream.base_url, verify=str(path))
        assert result.completion.choices[0].message.content == "It rains."


@each_driver
def test_tls_where_there_is_none_is_said(driver: Driver) -> None:
    # What the upstream makes of a TLS hello is that it is no HTTP.
    with contextlib.suppress(h11.RemoteProtocolError), Upstream() as upstream:
        url = upstream.base_url.replace("http://", "https://")
        result = driver.create(REQUEST, base_url=url, api_key=KEY)
        assert_unreachable(result, f"base_url {url}", "TLS")
        assert upstream.requests == []


@each_driver
# httpcore drops the generator of a request's body whose sending fails.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
def test_no_tls_where_there_is_some_is_said(driver: Driver, authority: trustme.CA) -> None:
    with Upstream(secured(authority, "127.0.0.1")) as upstream:
        url = upstream.base_url.replace("https://", "http://")
        result = driver.create(REQUEST, base_url=url, api_key=KEY)
        assert_unreachable(result, f"base_url {url}")
        assert upstream.requests == []


@own_client
def test_a_proxy_that_is_not_there_is_named(driver: Driver, upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    proxy = f"http://user:{KEY}@127.0.0.1:{port}"
    result = driver.create(REQUEST, base_url=upstream.base_url, proxy=proxy, api_key=KEY)
    assert_unreachable(result, "base_url")
    assert upstream.requests == []


@own_client
def test_a_proxy_that_refuses_is_named(driver: Driver, upstream: Upstream) -> None:
    # The upstream knows no CONNECT, and says 404.
    host, port = upstream.address
    result = driver.create(
        REQUEST, base_url="https://example.com", proxy=f"http://user:{KEY}@{host}:{port}"
    )
    assert_unreachable(result, "base_url https://example.com", "proxy")


def assert_unreachable(result: Result[Any], *words: str) -> None:
    failure = result.failure
    for word in words:
        assert word in failure.message, failure.message
    assert (failure.status, failure.code) == (502, "upstream_unreachable")
    assert [attempt.outcome for attempt in result.attempts] == ["unreachable"]
    assert not result.attempts[0].used
    assert_hidden(failure)


# Keys.


def assert_hidden(error: BaseException) -> None:
    """Nothing that can be seen of an error has the key, nor has an object of ours in it."""
    for text in (str(error), repr(error), repr(error.args), repr(vars(error))):
        assert KEY not in text
    rendered = traceback.TracebackException.from_exception(error, capture_locals=True, compact=True)
    cause: traceback.TracebackException | None = rendered
    while cause is not None:
        for frame in cause.stack:
            if "deltawire" in frame.filename.split("/"):
                for name, value in (frame.locals or {}).items():
                    # What the caller gave is there as long as it is looked at.
                    given = name in GIVEN or frame.name == "__post_init__"
                    assert KEY not in value or given, (frame.name, name, value)
        cause = cause.__cause__ or cause.__context__


GIVEN: Final = frozenset(
    {
        *("api_key", "key", "value", "proxy", "cert", "base_url", "headers", "own_headers"),
        *("settings", "name", "url", "path", "rest", "authority", "parts", "scheme"),
    }
)

FRAMES: Final = tuple(write_frames(ANSWER))
MESSAGE: Final = f"Incorrect API key provided: {KEY}. See https://example.com/?key={KEY}"
ECHOES: Final[dict[str, Reply]] = {
    "401": error(401, MESSAGE, code=KEY, param=KEY, type=KEY),
    "400": error(400, MESSAGE, type=KEY),
    "500": json_body({"detail": [{"msg": MESSAGE}]}, status=500),
    "500-text": Reply((MESSAGE.encode(),), status=500, headers=(("Content-Type", "text/plain"),)),
    "502-cut": Reply((b"x" * 490 + KEY.encode(),), status=502),
    "html": html(503),
    "redirect": redirect(f"https://example.com/{KEY}?key={KEY}"),
    "error-event": stream(Answer((), end=ErrorEvent(message=MESSAGE, code=KEY))),
    "error-later": stream(Answer("It rains.", end=ErrorEvent(message=MESSAGE, code=KEY))),
    "failed": stream(Answer("It rains.", end=Failed(message=MESSAGE, code=KEY))),
    "coding": Reply(FRAMES, headers=(("Content-Encoding", KEY),)),
    "status": Reply((b"",), status=302, headers=(("Location", KEY),)),
}


@pytest.mark.parametrize("echo", ECHOES)
@each_driver
def test_a_key_that_upstream_repeats_is_not_shown(
    driver: Driver, echo: str, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.play(ECHOES[echo])
    with (
        caplog.at_level(logging.DEBUG),
        driver.session(base_url=upstream.base_url, api_key=KEY) as session,
    ):
        results: list[Result[Any]] = [
            session.create(REQUEST),
            session.chunks(REQUEST),
            session.frames(REQUEST),
        ]
    assert upstream.requests[0].key == KEY
    for result in results:
        for text in (repr(result), repr(result.attempts), repr(result.outputs)):
            assert KEY not in text
        if result.error is not None:
            assert_hidden(result.error)
            assert KEY not in repr(result.failure.to_dict())
    assert_unlogged(caplog)


def test_a_key_that_upstream_gives_as_the_id_of_a_request_is_not_shown(upstream: Upstream) -> None:
    upstream.play(error(401, "No.", headers=(("X-Request-Id", KEY),)))
    result = OWN_CLIENT[0].create(REQUEST, base_url=upstream.base_url, api_key=KEY)
    assert KEY not in repr(result.attempts)


@each_driver
def test_no_key_is_logged(
    driver: Driver, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        result = driver.chunks(REQUEST, base_url=upstream.base_url, api_key=KEY)
    assert result.error is None
    assert upstream.requests[0].key == KEY
    assert KEY not in caplog.text


def assert_unlogged(caplog: pytest.LogCaptureFixture) -> None:
    """Of a whole head, what httpcore logs of it at DEBUG is what upstream said there, not us."""
    for record in caplog.records:
        if not record.name.startswith(("httpcore", "httpcore2")):
            assert KEY not in record.getMessage(), record


def test_no_key_is_shown_by_what_has_it(upstream: Upstream) -> None:
    account = Account(
        name="a",
        key=KEY,
        base_url=f"{upstream.base_url}?key={KEY}",
        headers=(("X-Key", KEY),),
    )
    pool = AccountPool([account])
    requests: list[UpstreamRequest] = []
    shown: list[object] = [account, pool, pool.accounts]
    with SyncTransport(
        accounts=pool, verify=False, policy=Policy(), timeouts=Timeouts()
    ) as transport:
        answer = transport.stream(REQUEST)
        for _ in answer:
            break
        shown += [transport, transport.pool, answer, answer.exchange, answer.exchange.step]
        shown += [answer.attempts, answer.report, answer.completion, vars(answer)]
        answer.close()
        wire = transport.stream_wire(REQUEST)
        call = TranslatedCall(REQUEST, pool.accounts, strict=False)
        requests.append(call.request(account, stream=True))
        shown += [wire, requests, requests[0]]
    for loop_transport in (AsyncioTransport, TrioTransport):
        made = loop_transport(accounts=pool, verify=False)
        shown += [made, made.stream(REQUEST), made.stream_wire(REQUEST)]
    for each in shown:
        for text in (str(each), repr(each), f"{each}"):
            assert KEY not in text, type(each)


@each_driver
def test_an_error_of_the_caller_shows_no_key(driver: Driver) -> None:
    result = driver.create({"model": "gpt-5"}, base_url="http://127.0.0.1:1", api_key=KEY)
    assert isinstance(result.error, DeltawireError)
    assert_hidden(result.error)


@pytest.mark.parametrize(
    ("setting", "make"),
    [
        ("timeouts.connect", lambda: Timeouts(connect=-1)),
        ("timeouts.idle", lambda: Timeouts(idle="x")),  # type: ignore[arg-type]
        ("timeouts.total", lambda: Timeouts(total=0)),
        ("timeouts.first_event", lambda: Timeouts(first_event=float("nan"))),
        ("policy.attempts", lambda: Policy(attempts=0)),
        ("policy.attempts_per_account", lambda: Policy(attempts_per_account=0)),
        ("policy.wait", lambda: Policy(wait=-0.1)),
        ("policy.drain", lambda: Policy(drain=True)),
    ],
)
def test_a_number_that_cannot_be_is_refused(setting: str, make: Callable[[], object]) -> None:
    with pytest.raises(InvalidSetting, match=f"^{setting}: ") as raised:
        make()
    assert raised.value.setting == setting
