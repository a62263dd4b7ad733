"""What a client may do wrong, over real sockets and on each driver: it is told so, nobody else
notices, and what stands behind it in the same bytes is never taken for a request.

Short times are settings of the server, which are there to pass; nothing here sleeps, and a clock
only ends what hangs. That nothing is logged as wrong is asserted at the end of every server.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import select
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_requests import BODY, CUT, HEAD, PLAIN, REFUSED, SIZE, TAKEN, VERSION, WRONG, chunked
from deltawire.server.keys import Client as Key
from deltawire.server.keys import hash_key
from deltawire.server.settings import TransportName
from deltawire.testing import Answer, write_frames
from servers import CHAT, TRANSPORTS, Client, Server, ask, chat, config
from upstream import LIMIT, Gate, Hold, Reply, Upstream, stream

ANSWER: Final = Answer("It rains in Rome.")
FRAMES: Final = tuple(write_frames(ANSWER))
# The frames up to the second delta.
BEGUN: Final = 6
DONE: Final = b"data: [DONE]\n\n"
SHORT: Final = 0.05
# In which many bytes can come one by one, and DRIPS cannot.
LONGER: Final = 0.2
DRIPS: Final = 10_000


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> TransportName:
    name: TransportName = request.param
    return name


@pytest.fixture(scope="module")
def server(upstream: Upstream, transport: TransportName) -> Iterator[Server]:
    """Small limits, the usual times, and one model."""
    made = config(upstream.base_url, transport, limits={"head": HEAD, "body": BODY})
    (only,) = made.upstreams
    with Server(replace(made, upstreams=(replace(only, models=("gpt-5",)),))) as running:
        yield running


# Requests that are none.


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_the_last_of_its_connection(
    server: Server, upstream: Upstream, name: str
) -> None:
    data, status = REFUSED[name]
    asked = len(upstream.requests)
    with Client(server) as client:
        client.send(data + VERSION + chat())
        got = client.answer()
        assert got.status == status
        assert got.headers["connection"] == "close"
        assert got.headers["content-type"] == "application/json"
        assert got.headers["x-request-id"].startswith("req_")
        assert got.error["message"]
        # With a code, it would have been the app's refusal of a request that was taken.
        kinds = (got.error["type"], got.error["param"], got.error["code"])
        assert kinds == ("invalid_request_error", None, None)
        client.closed()
        server.check()
    assert len(upstream.requests) == asked


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_only_odd_is_answered_and_so_is_the_next(server: Server, name: str) -> None:
    with Client(server) as client:
        client.send(TAKEN[name] + VERSION)
        assert client.answer().status == 200
        assert b'"version"' in client.answer().body


@pytest.mark.parametrize("whole", [VERSION, ask("POST", CHAT, body=PLAIN)], ids=["GET", "POST"])
def test_after_http_1_0_nothing_is_answered(server: Server, whole: bytes) -> None:
    with Client(server) as client:
        client.send(whole.replace(b"HTTP/1.1", b"HTTP/1.0") + VERSION)
        got = client.answer()
        assert (got.status, got.headers["connection"]) == (200, "close")
        client.closed()


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "chunked"])
def test_who_sends_too_much_is_told_and_may_finish(server: Server, sized: bool) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    with Client(server) as client:
        client.send(ask("POST", CHAT, "Content-Length: 1000000") if sized else chunked(chunk * 4))
        client.send(chunk * 800)
        got = client.answer()
        assert got.status == 413
        assert str(BODY) in got.error["message"]
        client.send(chunk * 100)
        client.closed()
    server.check()


# Requests that are wrong in what they say.


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_the_connection_kept(server: Server, name: str) -> None:
    data, status, fields = WRONG[name]
    with Client(server) as client:
        client.send(data + VERSION)
        got = client.answer()
        assert got.status == status
        assert got.headers["content-type"] == "application/json"
        assert "connection" not in got.headers
        assert got.error["message"]
        assert got.error["type"] == "invalid_request_error"
        assert fields.items() <= got.error.items()
        if "deep" in name:
            assert re.search("nesting|depth", got.error["message"])
        assert client.answer().status == 200
    server.check()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("PUT", "/v1/models", "GET, HEAD"), ("POST", "/health", "GET, HEAD")],
)
def test_a_wrong_method_is_told_the_right_ones(
    server: Server, method: str, path: str, allowed: str
) -> None:
    with Client(server) as client:
        client.send(ask(method, path))
        got = client.answer()
        assert (got.status, got.headers["allow"]) == (405, allowed)


# Keys.

KEYS: Final = ("dw-first", "dw-second", "dw-last")


@pytest.fixture
def locked(upstream: Upstream, transport: TransportName) -> Iterator[Server]:
    made = config(upstream.base_url, transport)
    clients = tuple(Key(name=key, key_hash=hash_key(key)) for key in KEYS)
    with Server(replace(made, clients=clients)) as running:
        yield running


def authorized(server: Server, *fields: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers without what differs each time, and body."""
    with Client(server) as client:
        client.send(ask("GET", "/v1/models", *fields))
        got = client.answer()
    headers = {name: each for name, each in got.headers.items() if name not in VARYING}
    return got.status, headers, got.body


VARYING: Final = {"date", "x-request-id"}


def test_no_wrong_key_gets_a_hint(locked: Server, upstream: Upstream) -> None:
    asked = len(upstream.requests)
    without = authorized(locked)
    assert without[0] == 401
    assert without[1]["www-authenticate"] == "Bearer"
    assert b'"code":"invalid_api_key"' in without[2]
    for value in (
        "",
        "Bearer",
        "Bearer dw-firs",
        "Bearer dw-first2",
        "Bearer DW-FIRST",
        f"Bearer {hash_key(KEYS[0])}",
        f"Bearer {'a' * 10000}",
        "Bearer \xe9\xff",
        f"Bearer {KEYS[0]} {KEYS[1]}",
        f"Basic {KEYS[0]}",
        KEYS[0],
    ):
        assert authorized(locked, f"Authorization: {value}") == without
    with Client(locked) as client:
        # Before anything of the body is looked at.
        for body in (PLAIN, b"no JSON"):
            client.send(ask("POST", CHAT, "Authorization: Bearer dw-no", body=body))
            assert client.answer().body == without[2]
    assert len(upstream.requests) == asked
    for key in KEYS:
        assert authorized(locked, f"Authorization: Bearer {key}")[0] == 200


def test_every_key_is_compared_with_all_and_only_by_its_hash(
    locked: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(known: bytes, presented: bytes) -> bool:
        compared.append((known, presented))
        return compare(known, presented)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    hashes = [hashlib.sha256(key.encode()).digest() for key in (*KEYS, "dw-nobody")]
    for key, presented in zip((*KEYS, "dw-nobody"), hashes, strict=True):
        compared.clear()
        authorized(locked, f"Authorization: Bearer {key}")
        assert compared == [(known, presented) for known in hashes[:-1]]


# Requests that do not end.


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_off_is_not_answered(server: Server, upstream: Upstream, name: str) -> None:
    asked = len(upstream.requests)
    with Client(server) as client, Client(server) as other:
        client.send(CUT[name])
        client.fin()
        client.closed()
        other.send(CUT[name])
        other.reset()
        server.check()
    assert len(upstream.requests) == asked


@pytest.fixture(scope="module")
def hasty(upstream: Upstream, transport: TransportName) -> Iterator[Server]:
    limits = {"head_timeout": SHORT, "body_timeout": SHORT}
    with Server(config(upstream.base_url, transport, limits=limits)) as running:
        yield running


@contextlib.contextmanager
def known(server: Server) -> Iterator[Client]:
    """A connection over which one request was answered: on a hasty server that takes some luck.

    From there on the time for a head begins with its first byte.
    """
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        with Client(server) as client:
            try:
                client.send(VERSION)
                client.answer()
            except (ConnectionError, h11.RemoteProtocolError):
                continue
            yield client
            return
    raise AssertionError("it answers nobody")


@pytest.mark.parametrize("name", [name for name in CUT if name != "at once"])
def test_what_stops_is_given_up(hasty: Server, name: str) -> None:
    with known(hasty) as client:
        client.send(CUT[name])
        got = client.answer()
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert got.headers["x-request-id"].startswith("req_")
        assert "too long" in got.error["message"]
        client.send(VERSION)
        client.closed()
    with known(hasty):
        assert hasty.errors == []


@pytest.mark.parametrize(
    "start",
    [b"", VERSION[:-2] + b"A: ", ask("POST", CHAT, f"Content-Length: {DRIPS}")],
    ids=["line", "head", "body"],
)
def test_what_drips_is_given_up_and_holds_up_nobody(
    transport: TransportName, upstream: Upstream, start: bytes
) -> None:
    # It is over long before the limits of size, which would be told in another way.
    limits = {"head_timeout": LONGER, "body_timeout": LONGER, "head": DRIPS}
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])), model="held")
    with (
        Server(config(upstream.base_url, transport, limits=limits)) as server,
        known(server) as slow,
        known(server) as other,
        known(server) as streamed,
    ):
        streamed.send(chat(model="held"))
        streamed.head()
        streamed.until(b"data:")
        slow.send(start)
        while not select.select([slow.socket], [], [], 0)[0]:
            slow.send(b"a")
            other.send(VERSION)
            assert other.answer().status == 200
        assert slow.answer().status == 408
        slow.closed()
        gate.set()
        assert DONE in streamed.rest().body


# Clients that say nothing.

CROWD: Final = 1000
FILES: Final = 2 * CROWD + 200


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many file descriptors as both ends of a crowd need."""
    resource = pytest.importorskip("resource", reason="only POSIX has a limit that can be raised")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"the machine allows {hard} file descriptors, both ends need {FILES}")
    if soft != resource.RLIM_INFINITY and soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_for(count: int, client: Client) -> None:
    """Until the server has so many connections, that client's included."""
    wanted, said = b"\ndeltawire_connections_open %d.0\n" % count, b""
    until = time.monotonic() + LIMIT
    while wanted not in said:
        assert time.monotonic() < until, said
        client.send(ask("GET", "/metrics"))
        said = client.answer().body


def test_a_thousand_that_say_nothing_hold_up_nobody(
    many_files: None, upstream: Upstream, transport: TransportName
) -> None:
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])), model="held")
    limits = {"connections": CROWD + 2, "head_timeout": 10 * LIMIT}
    with (
        Server(config(upstream.base_url, transport, limits=limits)) as server,
        contextlib.ExitStack() as crowd,
        Client(server) as asking,
        Client(server) as client,
    ):
        client.send(chat(model="held"))
        client.head()
        client.until(b"data:")
        for _ in range(CROWD):
            crowd.enter_context(Client(server))
        wait_for(CROWD + 2, asking)
        gate.set()
        assert client.rest().body.endswith(DONE)
        client.send(chat())
        assert client.answer().body.endswith(DONE)
        crowd.close()
        wait_for(2, asking)


def test_a_thousand_that_say_nothing_are_closed(
    many_files: None, upstream: Upstream, transport: TransportName
) -> None:
    limits = {"connections": CROWD + 2, "head_timeout": SHORT}
    with (
        Server(config(upstream.base_url, transport, limits=limits)) as server,
        contextlib.ExitStack() as crowd,
    ):
        silent = [crowd.enter_context(Client(server)) for _ in range(CROWD)]
        for each in silent:
            each.closed()
        # They have not closed themselves.
        with known(server) as asking:
            wait_for(1, asking)
            asking.send(chat())
            assert asking.answer().body.endswith(DONE)


# Anything.

VALID: Final = st.sampled_from(
    [
        VERSION,
        VERSION + chat(),
        ask("GET", "/v1/models/gpt-5", "Authorization: Bearer a", "Accept: */*"),
        ask("POST", CHAT, "Content-Type: application/json", body=PLAIN),
        chunked(SIZE + b";a=b\r\n" + PLAIN + b"\r\n0\r\nA: a\r\n\r\n") + VERSION,
        chat("Connection: close"),
    ]
)
BYTES: Final = st.sampled_from(b"\r\n\0 \t:;,/0af{}\x7f\xff") | st.integers(0, 255)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """What is left of a valid request."""
    data = bytearray(draw(VALID))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["delete", "duplicate", "insert", "replace"])):
            case "delete":
                del data[at]
            case "duplicate":
                data.insert(at, data[at])
            case "insert":
                data.insert(at, draw(BYTES))
            case _:
                data[at] = draw(BYTES)
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@settings(max_examples=40, deadline=None)
@given(data=damaged())
def test_no_damage_leaves_a_connection_open_or_harms_another(server: Server, data: bytes) -> None:
    with Client(server) as client:
        client.send(data)
        for got in client.last_answers():
            assert got.status < 400 or got.error["message"]
    server.check()
