"""The server on trio, over real sockets, between real clients and a scripted upstream.

What holds an answer up is a `Gate`, and what is waited for is an event or the end of a connection;
so nothing here sleeps, and no clock is asked. Short limits are the settings of a server.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import pytest
import trio
import trustme

from deltawire.attempts import Policy
from deltawire.server.config import quick
from deltawire.server.on_trio import Connection, serve
from deltawire.server.service import Service, Serving
from deltawire.server.settings import Config
from deltawire.testing import Answer, ErrorEvent, expected, write_frames
from deltawire.transports import TrioTransport
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

REQUEST: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
STREAMED: Final = {**REQUEST, "stream": True}
ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = tuple(write_frames(ANSWER))
# The frames up to the second delta.
BEGUN: Final = 6
PATH: Final = "/v1/chat/completions"
DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
# For what is to happen; it is waited for no longer than it takes.
SOON: Final = 0.05


@dataclass(frozen=True)
class Server:
    """A running server: its port, and how it is told to stop and waited for."""

    port: int
    stop: Callable[[], None]
    join: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)

    def ask(self, body: dict[str, Any] = STREAMED) -> socket.socket:
        """A connection over which this was asked."""
        sock = self.connect()
        sock.sendall(request(body))
        return sock


@contextlib.contextmanager
def serving(
    upstream: Upstream,
    change: Callable[[Config], Config] = lambda config: config,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Server]:
    """A server on a thread of its own; what it raises is raised here."""
    config = change(quick(upstream.base_url, environ={}, port=0, transport="trio"))
    ready, failures = threading.Event(), list[BaseException]()
    port, token, stop = 0, None, trio.Event()

    def started(at: int) -> None:
        nonlocal port, token
        port, token = at, trio.lowlevel.current_trio_token()
        ready.set()

    def run() -> None:
        try:
            trio.run(lambda: serve(Service(config, TrioTransport), stop, tls=tls, started=started))
        except BaseException as failure:
            failures.append(failure)
        finally:
            ready.set()

    def tell() -> None:
        # It may have come to its end already.
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)

    def join() -> None:
        thread.join(LIMIT)
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(LIMIT)
    if failures:
        join()
    try:
        yield Server(port, tell, join)
    finally:
        tell()
        join()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


@pytest.fixture
def server(upstream: Upstream) -> Iterator[Server]:
    with serving(upstream) as opened:
        yield opened


def request(body: dict[str, Any], *more: str) -> bytes:
    """The request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = [
        f"POST {PATH} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


def read_until(sock: socket.socket, mark: bytes, data: bytes = b"") -> bytes:
    """What comes, until the mark is there."""
    while mark not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


def read_all(sock: socket.socket, data: bytes = b"") -> bytes:
    """What comes until FIN."""
    while piece := sock.recv(65536):
        data += piece
    return data


def said(body: bytes) -> list[Any]:
    """The data of each frame; comments left out."""
    return [
        json.loads(frame[6:]) if frame != "data: [DONE]" else "[DONE]"
        for frame in body.decode().split("\n\n")
        if frame.startswith("data: ")
    ]


def unchunked(data: bytes) -> bytes:
    """The body of a chunked answer, which is whole."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            assert rest.startswith(b"\r\n")
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def text(body: bytes) -> str:
    """What a streamed answer says."""
    return "".join(
        choice["delta"].get("content", "")
        for chunk in said(body)
        if chunk != "[DONE]"
        for choice in chunk["choices"]
    )


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fin(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def held(gate: Gate, begun: int = BEGUN) -> Reply:
    """An answer that stops after so many frames until the gate is set."""
    return Reply((*FRAMES[:begun], Hold(gate), *FRAMES[begun:]))


# Answers.


def test_a_streamed_answer_is_what_upstream_says(server: Server) -> None:
    answer = httpx.post(server.url, json=STREAMED)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"].startswith("req_")
    assert text(answer.content) == TEXT
    assert said(answer.content)[-1] == "[DONE]"


def test_a_whole_answer_is_what_upstream_says(server: Server) -> None:
    answer = httpx.post(server.url, json=REQUEST)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_frames_are_passed_on_as_they_come(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(gate))
    with server.ask() as sock:
        begun = read_until(sock, b'"content":"It')
        assert DONE not in begun
        gate.set()
        assert text(unchunked(read_until(sock, b"0\r\n\r\n", begun))) == TEXT


def test_the_end_of_the_body_is_in_one_write_with_done(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = Connection._write

    def noted(self: Connection, data: bytes) -> Awaitable[None] | None:
        writes.append(data)
        return write(self, data)

    monkeypatch.setattr(Connection, "_write", noted)
    httpx.post(server.url, json=STREAMED)
    (last,) = [write for write in writes if DONE in write]
    assert last.endswith(DONE + b"\r\n0\r\n\r\n")


def test_a_connection_is_kept(server: Server) -> None:
    with httpx.Client() as client, server.connect() as sock:
        for body in (STREAMED, REQUEST) * 2:
            assert client.post(server.url, json=body).status_code == 200
            sock.sendall(request(body))
            end = b"0\r\n\r\n" if body is STREAMED else b'"usage"'
            read_until(sock, end)


def test_pipelined_requests_are_answered_in_order(upstream: Upstream, server: Server) -> None:
    other = Answer("Two.")
    upstream.play(stream(other), model="gpt-4")
    with server.connect() as sock:
        asked = request(STREAMED), request({**STREAMED, "model": "gpt-4"}, "Connection: close")
        sock.sendall(b"".join(asked))
        first, mark, second = read_all(sock).partition(b"0\r\n\r\n")
    assert text(unchunked(first + mark)) == TEXT
    assert text(unchunked(second)) == "Two."


def test_a_request_may_come_in_any_pieces(server: Server) -> None:
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(REQUEST, "Connection: close"):
            sock.sendall(bytes([byte]))
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_expects_it_is_told_to_go_on(server: Server) -> None:
    head, _, body = request(REQUEST, "Connection: close", "Expect: 100-continue").partition(
        b"\r\n\r\n"
    )
    with server.connect() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_an_answer_without_upstream_reaches_a_client_that_has_sent_fin(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        fin(sock)
        assert read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_to_an_old_client_the_end_of_the_connection_is_the_end(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request(STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = read_all(sock)
    assert answer.endswith(DONE)
    assert text(answer.partition(b"\r\n\r\n")[2]) == TEXT


def test_fifty_at_once_are_served(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(gate))
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(httpx.post, server.url, json=STREAMED, timeout=LIMIT)] * 0
        for _ in range(50):
            asked.append(pool.submit(httpx.post, server.url, json=STREAMED, timeout=LIMIT))
        upstream.wait_for_requests(50)
        gate.set()
        assert [text(each.result(LIMIT).content) for each in asked] == [TEXT] * 50


def test_it_serves_over_tls(upstream: Upstream) -> None:
    authority = trustme.CA()
    tls, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(trusting)
    with serving(upstream, tls=tls) as server:
        # What is no TLS harms nobody else.
        with server.ask() as sock, contextlib.suppress(ConnectionError):
            read_all(sock)
        with httpx.Client(verify=trusting) as client:
            for _ in range(2):
                answer = client.post(server.url.replace("http", "https"), json=STREAMED)
                assert text(answer.content) == TEXT


# Errors.


@pytest.mark.parametrize("body", [STREAMED, REQUEST], ids=["streamed", "whole"])
def test_an_error_before_output_is_a_status(
    upstream: Upstream, server: Server, body: dict[str, Any]
) -> None:
    upstream.play(error(429, "Slow down.", code="rate", headers=(("Retry-After", "3600"),)))
    answer = httpx.post(server.url, json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3600"
    assert answer.json()["error"]["message"] == "Slow down."
    assert answer.json()["error"]["code"] == "rate"


def test_an_error_midway_is_the_last_frame(upstream: Upstream, server: Server) -> None:
    upstream.play(stream(Answer("It rains.", end=ErrorEvent(message="Oh dear."))))
    answer = httpx.post(server.url, json=STREAMED)
    assert answer.status_code == 200
    *_, last = said(answer.content)
    assert list(last) == ["error"]
    assert last["error"]["message"] == "Oh dear."
    assert DONE not in answer.content


def test_an_upstream_that_ends_early_is_an_error(upstream: Upstream, server: Server) -> None:
    upstream.play(Reply(FRAMES[:BEGUN], ending="cut"))
    answer = httpx.post(server.url, json=STREAMED)
    assert list(said(answer.content)[-1]) == ["error"]


def test_a_fault_of_ours_resets_the_connection_and_harms_no_other(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch, server.connect() as sock:
        patch.setattr(Serving, "transport", property(broken))
        sock.sendall(request(STREAMED))
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    assert httpx.post(server.url, json=STREAMED).status_code == 200


# Silence.


def test_silence_is_filled_with_comments(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((Hold(gate), *FRAMES)))
    with serving(upstream, server_with(grace=SOON, ping=SOON)) as server, server.ask() as sock:
        silent = read_until(sock, PING)
        assert silent.startswith(b"HTTP/1.1 200 ")
        silent = read_until(sock, PING + b"\r\n8\r\n" + PING, silent)
        gate.set()
        body = unchunked(read_until(sock, b"0\r\n\r\n", silent))
    assert text(body) == TEXT
    assert body.startswith(PING + PING)


def test_an_error_after_the_grace_period_is_a_frame(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(replace(error(400, "No."), head_hold=Hold(gate)))
    with serving(upstream, server_with(grace=SOON)) as server, server.ask() as sock:
        silent = read_until(sock, PING)
        gate.set()
        body = unchunked(read_until(sock, b"0\r\n\r\n", silent))
    assert [list(frame) for frame in said(body)] == [["error"]]


def test_silence_midway_is_filled_without_a_grace_period(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(gate))
    with serving(upstream, server_with(grace=None, ping=SOON)) as server, server.ask() as sock:
        begun = read_until(sock, PING)
        assert b'"content":"It' in begun
        gate.set()
        assert text(unchunked(read_until(sock, b"0\r\n\r\n", begun))) == TEXT


def test_a_whole_answer_may_begin_with_blanks(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((Hold(gate), *FRAMES)))
    blanks = server_with(grace=SOON, ping=SOON, ping_json=True)
    with serving(upstream, blanks) as server, server.ask(REQUEST) as sock:
        silent = read_until(sock, b"1\r\n \r\n1\r\n \r\n")
        gate.set()
        body = unchunked(read_until(sock, b"\r\n0\r\n\r\n", silent))
    assert json.loads(body)["choices"][0]["message"]["content"] == TEXT


# Leaving.


@pytest.mark.parametrize("leave", [fin, reset])
@pytest.mark.parametrize("body", [STREAMED, REQUEST], ids=["streamed", "whole"])
def test_leaving_before_the_first_output_closes_upstream(
    upstream: Upstream,
    server: Server,
    leave: Callable[[socket.socket], None],
    body: dict[str, Any],
) -> None:
    upstream.play(Reply((Hold(Gate()), *FRAMES)))
    with server.ask(body) as sock:
        (asked,) = upstream.wait_for_requests(1)
        leave(sock)
        assert asked.left.wait(LIMIT)
        upstream.wait_closed()
        if leave is fin:
            assert_nothing_more(sock)


@pytest.mark.parametrize("leave", [fin, reset])
def test_leaving_midway_closes_upstream(
    upstream: Upstream, server: Server, leave: Callable[[socket.socket], None]
) -> None:
    upstream.play(held(Gate()))
    with server.ask() as sock:
        begun = read_until(sock, b'"content":" rains')
        (asked,) = upstream.wait_for_requests(1)
        leave(sock)
        assert asked.left.wait(LIMIT)
        upstream.wait_closed()
        if leave is fin:
            assert begun.endswith(b"\r\n")
            assert_nothing_more(sock)


def assert_nothing_more(sock: socket.socket) -> None:
    """The connection is reset, so that nobody takes it for the end of an answer."""
    with pytest.raises(ConnectionResetError):
        assert not sock.recv(1)


def test_leaving_after_the_answer_is_no_cancel(upstream: Upstream, server: Server) -> None:
    with server.ask() as sock:
        read_until(sock, b"0\r\n\r\n")
        (asked,) = upstream.wait_for_requests(1)
        fin(sock)
        assert not read_all(sock)
    assert asked.over.wait(LIMIT)
    assert not asked.left.is_set()


# Limits.


def server_with(**settings: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, server=replace(config.server, **settings))


def limits_with(**limits: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, limits=replace(config.limits, **limits))


def test_an_idle_connection_is_closed(upstream: Upstream) -> None:
    with serving(upstream, limits_with(idle_timeout=SOON)) as server, server.ask() as sock:
        assert read_all(sock).endswith(DONE + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("garbage", [b"\0\1\2garbage\r\n\r\n", b"NO SUCH THING\r\n\r\n"])
def test_garbage_behind_a_request_is_refused_after_its_answer(
    server: Server, garbage: bytes
) -> None:
    with server.connect() as sock:
        sock.sendall(request(STREAMED) + garbage)
        first, _, second = read_all(sock).partition(b"0\r\n\r\n")
    assert DONE in first
    assert second.startswith(b"HTTP/1.1 400 ")


def test_more_clients_than_there_may_be_are_refused(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(gate))
    with serving(upstream, limits_with(connections=1)) as server, server.ask() as first:
        begun = read_until(first, b'"content":"It')
        with server.ask() as second:
            assert read_all(second).startswith(b"HTTP/1.1 503 ")
        gate.set()
        assert DONE in read_until(first, b"0\r\n\r\n", begun)


@pytest.mark.parametrize("body", [STREAMED, REQUEST], ids=["streamed", "whole"])
def test_a_client_that_does_not_read_is_cut_off(upstream: Upstream, body: dict[str, Any]) -> None:
    # More than the system holds between the two.
    upstream.play(stream(Answer("x" * 2**22)))
    stalled = server_with(write_stall=SOON, ping=None)
    with serving(upstream, stalled) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(LIMIT)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(request(body))
        assert_reset(sock)
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    upstream.wait_closed()


def test_a_large_answer_is_sent_whole(upstream: Upstream) -> None:
    upstream.play(stream(Answer("x" * 2**22)))
    with serving(upstream) as server, server.ask() as sock:
        body = unchunked(read_until(sock, b"0\r\n\r\n"))
    assert text(body) == "x" * 2**22


def test_the_last_answer_is_sent_whole_whatever_the_client_says_meanwhile(
    upstream: Upstream, server: Server
) -> None:
    upstream.play(stream(Answer("x" * 2**22)))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(LIMIT)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(request(REQUEST, "Connection: close"))
        begun = read_until(sock, b"\r\n\r\n")
        sock.sendall(b"x")
        body = read_all(sock, begun).partition(b"\r\n\r\n")[2]
    assert json.loads(body)["choices"][0]["message"]["content"] == "x" * 2**22


def assert_reset(sock: socket.socket) -> None:
    """Wait for it without reading."""
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(LIMIT * 1000)


# The end.


def test_a_port_that_is_taken_is_an_error(upstream: Upstream, server: Server) -> None:
    taken = server_with(port=server.port)
    with pytest.raises(OSError, match="in use"), serving(upstream, taken):
        pass


def test_a_running_answer_is_finished_when_it_stops(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(gate))
    with server.ask() as sock, server.connect() as idle:
        begun = read_until(sock, b'"content":"It')
        server.stop()
        assert not read_all(idle)
        with pytest.raises(ConnectionError):
            server.connect()
        gate.set()
        assert text(unchunked(read_all(sock, begun))) == TEXT
    server.join()


def test_an_answer_that_takes_too_long_is_cut_off_when_it_stops(upstream: Upstream) -> None:
    upstream.play(held(Gate()))
    with serving(upstream, server_with(shutdown=SOON)) as server, server.ask() as sock:
        read_until(sock, b'"content":"It')
        server.stop()
        with pytest.raises(ConnectionResetError):
            read_all(sock)
        server.join()
        upstream.wait_closed()


def test_the_client_may_ask_again_and_leave_while_upstream_is_given_back(
    upstream: Upstream,
) -> None:
    gate = Gate()
    trailing = Reply((*FRAMES, Hold(gate)))
    upstream.play(trailing, trailing, stream(ANSWER))

    def patient(config: Config) -> Config:
        (only,) = config.upstreams
        return replace(config, upstreams=(replace(only, policy=Policy(trail=3600.0)),))

    with serving(upstream, patient) as server:
        with server.ask() as sock:
            assert text(unchunked(read_until(sock, b"0\r\n\r\n"))) == TEXT
        with server.connect() as sock:
            sock.sendall(request(STREAMED) + request(STREAMED, "Connection: close"))
            assert read_all(sock).count(DONE) == 2
        first, second, _ = upstream.wait_for_requests(3)
        gate.set()
        for asked in (first, second):
            assert asked.over.wait(LIMIT)
            assert not asked.left.is_set()
