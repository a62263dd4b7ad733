"""The upstream that the transports are tested against keeps to its script, whatever a client does.

Where bytes matter the client is a bare socket, where their meaning does it is httpx.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h11
import httpx
import pytest
import trustme

from deltawire.testing import Answer, write_stream
from upstream import (
    LIMIT,
    Gate,
    Hold,
    Reply,
    Reset,
    Upstream,
    error,
    gzipped,
    html,
    json_body,
    redirect,
    stream,
)

ANSWER = Answer("It rains in Rome, and it does not stop.")
BODY = write_stream(ANSWER)
PIECES = (b"data: one\n\n", b"data: two\n\n")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Upstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Upstream(context) as opened:
        yield opened


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def request(model: str = "gpt-5", key: str = "k", *headers: str) -> bytes:
    body = json.dumps({"model": model})
    lines = ["Host: upstream", f"Authorization: Bearer {key}", f"Content-Length: {len(body)}"]
    head = "\r\n".join(["POST /v1/responses HTTP/1.1", *lines, *headers])
    return f"{head}\r\n\r\n{body}".encode()


def connect(upstream: Upstream, trust: ssl.SSLContext | None = None) -> socket.socket:
    sock = socket.create_connection(upstream.address, timeout=LIMIT)
    return trust.wrap_socket(sock, server_hostname="127.0.0.1") if trust else sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = sock.recv(65536)
        assert more, f"the connection ended after {data!r}"
        data += more
    return data


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def answer_to(upstream: Upstream, data: bytes) -> bytes:
    """All that comes for it, until the server closes."""
    with connect(upstream) as sock:
        sock.sendall(data)
        return read_all(sock)


def post(upstream: Upstream, key: str = "k", **options: Any) -> httpx.Response:
    with httpx.Client(trust_env=False, **options) as client:
        return client.post(
            f"{upstream.base_url}/responses",
            json={"model": "gpt-5"},
            headers={"Authorization": f"Bearer {key}"},
        )


def test_what_the_client_sent_is_recorded(upstream: Upstream) -> None:
    upstream.play(json_body({}))
    assert post(upstream, "secret").json() == {}
    (received,) = upstream.requests
    assert (received.method, received.path) == ("POST", "/v1/responses")
    assert received.headers["content-type"] == "application/json"
    assert received.json == {"model": "gpt-5"}
    assert (received.model, received.key, received.connection) == ("gpt-5", "secret", 1)
    assert received.over.wait(LIMIT)
    assert not received.left.is_set()


@pytest.mark.parametrize(
    ("framing", "header", "body"),
    [
        ("chunked", b"Transfer-Encoding: chunked", b"3\r\none\r\n4\r\nfour\r\n0\r\n\r\n"),
        ("length", b"Content-Length: 7", b"onefour"),
        ("close", b"Connection: close", b"onefour"),
    ],
)
def test_each_framing_is_what_it_is_called(
    upstream: Upstream, framing: Any, header: bytes, body: bytes
) -> None:
    upstream.play(Reply((b"one", b"four"), framing=framing))
    with connect(upstream) as sock:
        sock.sendall(request("gpt-5", "k", *(["Connection: close"] * (framing != "close"))))
        head, _, rest = read_all(sock).partition(b"\r\n\r\n")
    status, *headers = head.lower().split(b"\r\n")
    assert status == b"http/1.1 200 ok"
    assert rest == body
    assert header.lower() in headers
    framed = [each for each in headers if each.startswith((b"transfer-", b"content-length"))]
    assert framed == ([] if framing == "close" else [header.lower()])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_every_framing_is_read_by_httpx(upstream: Upstream, framing: Any, version: Any) -> None:
    if (framing, version) == ("chunked", "1.0"):
        with pytest.raises(ValueError, match="no chunks"):
            stream(ANSWER, framing=framing, http_version=version)
        return
    upstream.play(stream(ANSWER, framing=framing, http_version=version))
    response = post(upstream)
    assert response.content == BODY
    assert response.http_version == f"HTTP/{version}"
    assert response.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize(
    ("ending", "failure"), [("cut", httpx.RemoteProtocolError), ("reset", httpx.ReadError)]
)
def test_an_end_that_is_not_clean_is_none_to_the_client(
    upstream: Upstream, framing: Any, ending: Any, failure: type[Exception]
) -> None:
    upstream.play(Reply(PIECES, framing=framing, ending=ending))
    got: list[bytes] = []
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", f"{upstream.base_url}/responses") as response,
        pytest.raises(failure),
    ):
        got.extend(response.iter_raw())
    assert b"".join(got) == b"".join(PIECES)
    assert upstream.requests[0].over.wait(LIMIT)
    assert not upstream.requests[0].left.is_set()
    upstream.wait_closed()


def test_without_length_and_chunks_a_cut_looks_clean(upstream: Upstream) -> None:
    upstream.play(Reply(PIECES, framing="close", ending="cut"))
    assert post(upstream).content == b"".join(PIECES)


def test_a_reset_comes_where_it_stands(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((b"one", Hold(gate), Reset(), b"never")))
    with connect(upstream) as sock:
        sock.sendall(request())
        read_until(sock, b"one\r\n")
        gate.set()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_hold_holds_back_what_comes_after_it_and_nothing_else(upstream: Upstream) -> None:
    head, body = Gate(), Gate()
    upstream.play(Reply((b"one", Hold(body), b"four"), head_hold=Hold(head)))
    with connect(upstream) as sock:
        sock.sendall(request())
        upstream.wait_for_requests(1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(LIMIT)
        head.set()
        assert read_until(sock, b"one\r\n").endswith(b"\r\n\r\n3\r\none\r\n")
        body.set()
        assert read_until(sock, b"0\r\n\r\n") == b"4\r\nfour\r\n0\r\n\r\n"


def test_one_gate_opens_for_all_who_wait_and_for_all_who_come(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((b"one", Hold(gate), b"four", Hold(gate))))
    with connect(upstream) as first, connect(upstream) as second, connect(upstream) as late:
        for sock in (first, second):
            sock.sendall(request())
            read_until(sock, b"one\r\n")
        gate.set()
        late.sendall(request())
        for sock in (first, second, late):
            read_until(sock, b"0\r\n\r\n")


@pytest.mark.parametrize("where", ["head", "body"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_during_a_hold_is_noticed(
    upstream: Upstream, where: str, how: str
) -> None:
    hold = Hold(Gate())
    upstream.play(Reply((b"one", hold)) if where == "body" else Reply((), head_hold=hold))
    sock = connect(upstream)
    sock.sendall(request())
    (received,) = upstream.wait_for_requests(1)
    if where == "body":
        read_until(sock, b"one\r\n")
    if how == "RST":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    assert received.left.wait(LIMIT)
    upstream.wait_closed()
    assert not received.over.is_set()


def test_a_client_that_leaves_is_noticed_at_the_next_write(upstream: Upstream) -> None:
    upstream.play(Reply((bytes(1 << 24),) * 4))
    with connect(upstream) as sock:
        sock.sendall(request())
        (received,) = upstream.wait_for_requests(1)
        sock.recv(1000)
    assert received.left.wait(LIMIT)
    upstream.wait_closed()


def test_connections_are_kept_and_counted(upstream: Upstream) -> None:
    upstream.play(stream(ANSWER), json_body({"a": 1}), error(500), stream(ANSWER, ending="cut"))
    with httpx.Client(trust_env=False, base_url=upstream.base_url) as client:
        for _ in range(3):
            client.post("/responses", json={})
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/responses", json={})
        client.post("/other")
        assert upstream.open_connections == 1
        with pytest.raises(AssertionError, match="1 connections are still open"):
            upstream.wait_closed(0)
    upstream.wait_closed()
    assert [each.connection for each in upstream.requests] == [1, 1, 1, 1, 2]
    assert (upstream.connections, upstream.open_connections) == (2, 0)


def test_what_a_client_says_during_a_hold_is_its_next_request(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((b"one", Hold(gate))), Reply((b"four",)))
    with connect(upstream) as sock:
        sock.sendall(request("first"))
        read_until(sock, b"one\r\n")
        sock.sendall(request("second"))
        gate.set()
        assert b"four" in read_until(sock, b"four\r\n0\r\n\r\n")
    assert [each.model for each in upstream.requests] == ["first", "second"]


def test_a_client_that_does_not_close_is_seen_although_the_server_did(upstream: Upstream) -> None:
    upstream.play(Reply(PIECES, framing="close"))
    with connect(upstream) as sock:
        sock.sendall(request())
        read_all(sock)
        assert upstream.requests[0].over.wait(LIMIT)
        assert upstream.open_connections == 1
    upstream.wait_closed()


def test_each_piece_can_be_decompressed_when_it_is_there(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(gzipped(Reply((PIECES[0], Hold(gate), PIECES[1]), framing="close")))
    with connect(upstream) as sock:
        sock.sendall(request())
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        data = read_until(sock, b"\x00\x00\xff\xff")
        assert unpacker.decompress(data.partition(b"\r\n\r\n")[2]) == PIECES[0]
        gate.set()
        assert unpacker.decompress(read_all(sock)) == PIECES[1]
        assert unpacker.eof


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_a_compressed_reply_is_read_by_httpx(upstream: Upstream, framing: Any) -> None:
    upstream.play(gzipped(stream(ANSWER, framing=framing)))
    response = post(upstream)
    assert response.content == BODY
    assert response.headers["content-encoding"] == "gzip"


def test_chunks_of_a_size_cut_pieces_but_are_not_held_back(upstream: Upstream) -> None:
    pieces = (b"one", b"four", Hold(Gate()), b"one", b"seventeen")
    upstream.play(Reply(pieces, chunk_size=5))
    with connect(upstream) as sock:
        sock.sendall(request())
        assert read_until(sock, b"ur\r\n").endswith(b"\r\n\r\n5\r\nonefo\r\n2\r\nur\r\n")
        pieces[2].gate.set()
        rest = b"5\r\nonese\r\n5\r\nvente\r\n2\r\nen\r\n0\r\n\r\n"
        assert read_until(sock, b"0\r\n\r\n") == rest


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_slices_cut_everything_on_the_wire(
    upstream: Upstream, framing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def sendall(sock: socket.socket, data: bytes) -> None:
        if sock.getsockname() == upstream.address:
            sizes.append(len(data))
        assert sock.send(data) == len(data)

    monkeypatch.setattr(socket.socket, "sendall", sendall)
    upstream.play(stream(ANSWER, framing=framing, slice=3))
    assert post(upstream).content == BODY
    assert max(sizes) == 3
    assert sum(sizes) > len(BODY)


def test_the_most_specific_script_is_played_and_its_last_reply_repeated(upstream: Upstream) -> None:
    upstream.play(json_body("any"))
    upstream.play(json_body("model"), model="m")
    upstream.play(json_body("key"), key="k")
    upstream.play(json_body("both"), json_body("both again"), model="m", key="k")
    with httpx.Client(trust_env=False, base_url=upstream.base_url) as client:

        def ask(model: str, key: str) -> Any:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post("/responses", json={"model": model}, headers=headers).json()

        assert [ask("m", "k") for _ in range(3)] == ["both", "both again", "both again"]
        assert [ask("x", "k"), ask("m", "x"), ask("x", "x")] == ["key", "model", "any"]
        upstream.play(json_body("new"), key="k")
        assert ask("x", "k") == "new"


def test_what_nobody_serves_is_not_found(upstream: Upstream) -> None:
    upstream.play(json_body({}), model="m")
    with httpx.Client(trust_env=False, base_url=upstream.base_url) as client:
        asked = [
            client.post("/responses", json={"model": "gpt-9"}),
            client.post("/responses", content=b"no JSON"),
            client.post("/embeddings", json={"model": "m"}),
            client.get("/responses"),
        ]
        assert client.post("/responses?api-version=v1", json={"model": "m"}).status_code == 200
    assert [each.status_code for each in asked] == [404] * 4
    assert {*asked[0].json()["error"]} == {"message", "type", "param", "code"}
    assert "`gpt-9`" in asked[0].json()["error"]["message"]
    assert [each.model for each in upstream.requests] == ["gpt-9", None, "m", None, "m"]


def test_refusals_have_their_usual_shapes(upstream: Upstream) -> None:
    upstream.play(
        error(429, "Slow down.", type="tokens", code="rate", headers=(("Retry-After", "7"),)),
        html(502),
        redirect("https://example.org/"),
        json_body({"detail": "no"}, status=422),
    )
    limited, proxy, moved, detail = (post(upstream) for _ in range(4))
    fault = {"message": "Slow down.", "type": "tokens", "param": None, "code": "rate"}
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert limited.json() == {"error": fault}
    assert (proxy.status_code, proxy.headers["content-type"]) == (502, "text/html")
    assert "502 Bad Gateway" in proxy.text
    assert (moved.status_code, moved.headers["location"]) == (307, "https://example.org/")
    assert (detail.status_code, detail.json()) == (422, {"detail": "no"})


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_tls_changes_nothing(secure: Upstream, trust: ssl.SSLContext, framing: Any) -> None:
    assert secure.base_url.startswith("https://")
    secure.play(gzipped(stream(ANSWER, framing=framing, slice=50)))
    assert post(secure, verify=trust).content == BODY
    secure.wait_closed()


@pytest.mark.parametrize("ending", ["clean", "cut", "reset"])
def test_under_tls_even_an_end_without_framing_can_be_told(
    secure: Upstream, trust: ssl.SSLContext, ending: Any
) -> None:
    trusting = trust.wrap_socket(
        socket.create_connection(secure.address),
        suppress_ragged_eofs=False,
        server_hostname="127.0.0.1",
    )
    secure.play(Reply(PIECES, framing="close", ending=ending))
    # In Python 3.11 ssl takes a reset for a cut.
    failures: dict[str, Any] = {
        "cut": ssl.SSLEOFError,
        "reset": (ssl.SSLEOFError, ConnectionResetError),
    }
    with trusting as sock:
        sock.sendall(request())
        with pytest.raises(failures[ending]) if ending in failures else contextlib.nullcontext():
            assert read_all(sock).endswith(PIECES[1])
    secure.wait_closed()


def test_a_reset_is_one_also_under_tls(secure: Upstream, trust: ssl.SSLContext) -> None:
    gate = Gate()
    secure.play(Reply((b"one", Hold(gate)), ending="reset"))
    with connect(secure, trust) as sock:
        sock.sendall(request())
        read_until(sock, b"one\r\n")
        gate.set()
        with pytest.raises(ConnectionResetError):
            socket.socket.recv(sock, 1)


def test_under_tls_a_client_that_leaves_is_noticed(secure: Upstream, trust: ssl.SSLContext) -> None:
    secure.play(Reply((b"one", Hold(Gate()))))
    with connect(secure, trust) as sock:
        sock.sendall(request())
        read_until(sock, b"one\r\n")
    assert secure.requests[0].left.wait(LIMIT)
    secure.wait_closed()


def test_a_client_that_does_not_trust_the_server_breaks_nothing(secure: Upstream) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        post(secure)
    with connect(secure) as sock:
        sock.sendall(request())
    secure.wait_closed()
    assert secure.requests == []


def test_a_hundred_streams_are_open_at_once(upstream: Upstream) -> None:
    gate = Gate()
    held = Reply((PIECES[0], Hold(gate), *PIECES))
    upstream.play(held)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(100) as pool:
        socks = [stack.enter_context(connect(upstream)) for _ in range(100)]

        def begin(sock: socket.socket) -> None:
            sock.sendall(request())
            read_until(sock, b"one\n\n\r\n")

        list(pool.map(begin, socks))
        assert upstream.open_connections == 100
        gate.set()
        for rest in pool.map(lambda sock: read_until(sock, b"0\r\n\r\n"), socks):
            assert re.findall(rb"data: \w+", rest) == [b"data: one", b"data: two"]
    upstream.wait_closed()
    assert {each.connection for each in upstream.requests} == {*range(1, 101)}


def test_a_thousand_streams_follow_each_other_over_one_connection(upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    with connect(upstream) as sock:
        for _ in range(1000):
            sock.sendall(request())
            read_until(sock, b"\r\n0\r\n\r\n")
    upstream.wait_closed()
    assert (len(upstream.requests), upstream.connections) == (1000, 1)


def test_a_thousand_connections_follow_each_other(upstream: Upstream) -> None:
    upstream.play(stream(ANSWER, ending="cut"))
    for _ in range(1000):
        with connect(upstream) as sock:
            sock.sendall(request())
            assert read_all(sock).count(b"data: ") == BODY.count(b"data: ")
    upstream.wait_closed()
    assert (len(upstream.requests), upstream.connections) == (1000, 1000)


def test_the_end_waits_for_no_client_and_leaves_no_thread() -> None:
    before = threading.enumerate()
    with Upstream() as upstream:
        upstream.play(Reply((b"one", Hold(Gate()))))
        upstream.play(Reply((bytes(1 << 26),)), model="unread")
        idle, held, unread = (connect(upstream) for _ in range(3))
        held.sendall(request())
        unread.sendall(request("unread"))
        read_until(held, b"one\r\n")
        upstream.wait_for_requests(2)
    assert threading.enumerate() == before
    with idle, held, unread:
        assert idle.recv(1) == b""
    assert not any(each.left.is_set() or each.over.is_set() for each in upstream.requests)


def test_a_breach_of_http_is_raised_at_the_end() -> None:
    with pytest.raises(h11.RemoteProtocolError, match="illegal"), Upstream() as upstream:
        answer_to(upstream, b"no HTTP\r\n\r\n")


def test_a_reply_that_http_does_not_allow_is_raised_at_the_end() -> None:
    upstream = Upstream()
    upstream.play(json_body("body", status=204))
    with pytest.raises(h11.LocalProtocolError), upstream:
        answer_to(upstream, request())
