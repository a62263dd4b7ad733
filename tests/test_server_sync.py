"""The server on threads, over real sockets: what a client is told, and what upstream sees of it.

What holds an answer up is a `Gate`; nothing here sleeps or looks at a clock. Short times are there
to be passed, and what is asserted then is what came of it, never when.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
import trustme

from deltawire.attempts import Attempt, Policy
from deltawire.server.config import quick
from deltawire.server.on_sync import serve
from deltawire.server.service import Service, Serving
from deltawire.server.settings import Config
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import SyncTransport
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = tuple(write_frames(ANSWER))
BEGUN: Final = 6
ASKED: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
STREAMED: Final = {**ASKED, "stream": True}
HOUR: Final = 3600.0
SOON: Final = 0.05
DONE: Final = b"data: [DONE]\n\n"


class Server:
    """The server in a thread of its own."""

    def __init__(self, config: Config, tls: ssl.SSLContext | None) -> None:
        self.service = Service(config, SyncTransport)
        self.stop = threading.Event()
        self._started = threading.Event()
        self.port = 0
        self.thread = threading.Thread(
            target=serve,
            args=(self.service, self.stop),
            kwargs={"tls": tls, "started": self._begun},
            daemon=True,
        )
        self.thread.start()
        assert self._started.wait(LIMIT)

    def _begun(self, port: int) -> None:
        self.port = port
        self._started.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def end(self) -> None:
        self.stop.set()
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(
    upstream: Upstream,
    tls: ssl.SSLContext | None = None,
    *,
    policy: Policy | None = None,
    **own: Any,
) -> Iterator[Server]:
    """own: fields of `Limits` and of `ServerSettings`."""
    config = quick(upstream.base_url, environ={}, port=0, transport="sync")
    limits = {name: own.pop(name) for name in list(own) if hasattr(config.limits, name)}
    upstreams = config.upstreams
    if policy is not None:
        upstreams = tuple(replace(each, policy=policy) for each in upstreams)
    config = replace(
        config,
        server=replace(config.server, **own),
        limits=replace(config.limits, **limits),
        upstreams=upstreams,
    )
    server = Server(config, tls)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


def request(body: object = STREAMED, *, version: str = "1.1", head: str = "") -> bytes:
    """As it goes over the wire."""
    content = json.dumps(body).encode()
    lines = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n{head}"
    return f"{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Client:
    """A raw connection."""

    def __init__(self, server: Server, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(LIMIT)
        self.socket.connect(("127.0.0.1", server.port))
        self.received = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        """What came up to there, and is taken out."""
        while (at := self.received.find(end)) < 0:
            data = self.socket.recv(65536)
            assert data, f"closed before {end!r}: {bytes(self.received)!r}"
            self.received += data
        taken = bytes(self.received[: at + len(end)])
        del self.received[: at + len(end)]
        return taken

    def read_to_eof(self) -> bytes:
        while data := self.socket.recv(65536):
            self.received += data
        return bytes(self.received)

    def read_answer(self) -> tuple[int, bytes]:
        """Status and body."""
        head = self.read_until(b"\r\n\r\n")
        status = int(head.split()[1])
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
                while len(self.received) < length:
                    data = self.socket.recv(65536)
                    assert data
                    self.received += data
                body = bytes(self.received[:length])
                del self.received[:length]
                return status, body
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            while len(self.received) < size + 2:
                data = self.socket.recv(65536)
                assert data
                self.received += data
            body += self.received[:size]
            del self.received[: size + 2]
        self.read_until(b"\r\n")
        return status, body

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def text_of(body: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


# Answers.


def test_a_stream_reaches_its_client(upstream: Upstream) -> None:
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=STREAMED)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"].startswith("req_")
        assert text_of(answer.content) == TEXT
        assert answer.content.endswith(DONE)


def test_a_whole_answer_reaches_its_client(upstream: Upstream) -> None:
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=ASKED)
        assert answer.status_code == 200
        said = answer.json()
        assert said["choices"][0]["message"]["content"] == TEXT
        assert said["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_openais_client_gets_both(upstream: Upstream, streamed: bool) -> None:
    with (
        serving(upstream) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        answer: Any = client.chat.completions.create(**ASKED, stream=streamed)  # type: ignore[call-overload]
        if streamed:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content
        assert text == TEXT


def test_what_was_lost_of_a_request_is_in_a_header_of_both_answers(upstream: Upstream) -> None:
    with serving(upstream) as server:
        for body in (ASKED, STREAMED):
            answer = httpx.post(f"{server.url}/chat/completions", json={**body, "seed": 1})
            if body is STREAMED:
                assert "seed" in answer.headers["x-deltawire-report"]
            assert answer.status_code == 200


def test_a_connection_is_kept_for_the_next_request(upstream: Upstream) -> None:
    with serving(upstream) as server, Client(server) as client:
        for body in (STREAMED, ASKED, STREAMED):
            client.send(request(body))
            status, said = client.read_answer()
            assert status == 200
            assert TEXT in (text_of(said) if body is STREAMED else said.decode())
        assert upstream.connections == 1


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_old_client_is_answered_until_the_connection_ends(
    upstream: Upstream, body: object
) -> None:
    with serving(upstream) as server, Client(server) as client:
        client.send(request(body, version="1.0"))
        answer = client.read_to_eof()
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert answer.endswith(b"}" if body is ASKED else DONE)


def test_requests_that_are_sent_at_once_are_answered_in_turn(upstream: Upstream) -> None:
    with serving(upstream) as server, Client(server) as client:
        client.send(
            request(STREAMED) + request(ASKED) + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert text_of(client.read_answer()[1]) == TEXT
        assert TEXT in client.read_answer()[1].decode()
        assert b"deltawire" in client.read_answer()[1]


def test_a_request_that_comes_during_an_answer_is_answered_after_it(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])), stream(ANSWER))
    with serving(upstream) as server, Client(server) as client:
        client.send(request())
        head = client.read_until(b"data: ")
        client.send(request(ASKED))
        gate.set()
        client.received[:0] = head
        assert text_of(client.read_answer()[1]) == TEXT
        assert TEXT in client.read_answer()[1].decode()


def test_continue_is_said_to_who_waits_for_it(upstream: Upstream) -> None:
    with serving(upstream) as server, Client(server) as client:
        head, body = request(ASKED, head="Expect: 100-continue\r\n").split(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(body)
        assert client.read_answer()[0] == 200


def test_done_and_the_end_of_the_body_are_one_write(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    send = socket.socket.send

    def recorded(sock: socket.socket, data: Any, *flags: int) -> int:
        writes.append(bytes(data))
        return send(sock, data, *flags)

    monkeypatch.setattr(socket.socket, "send", recorded)
    with serving(upstream) as server, Client(server) as client:
        client.send(request())
        client.read_answer()
    (last,) = (each for each in writes if DONE in each)
    assert last.endswith(DONE + b"\r\n0\r\n\r\n")


# Errors.


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_error_before_the_answer_is_a_status(upstream: Upstream, body: object) -> None:
    upstream.play(error(429, "Slow down.", code="rate_limited", headers=(("Retry-After", "7"),)))
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=body)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["code"] == "rate_limited"


def test_an_error_in_the_middle_is_the_last_frame(upstream: Upstream) -> None:
    upstream.play(Reply(FRAMES[:BEGUN], ending="cut"))
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=STREAMED)
        assert answer.status_code == 200
        last = answer.content.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert set(json.loads(last.removeprefix(b"data: "))) == {"error"}
        assert DONE not in answer.content


@pytest.mark.parametrize("body", [{"model": "gpt-5"}, {**STREAMED, "messages": 1}, [], {}])
def test_a_request_that_nobody_could_answer_is_refused(upstream: Upstream, body: object) -> None:
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
        assert not upstream.requests


def test_other_routes_are_answered(upstream: Upstream) -> None:
    with serving(upstream) as server:
        root = server.url.removesuffix("/v1")
        assert httpx.get(f"{root}/health").status_code == 200
        assert httpx.head(f"{root}/health").content == b""
        assert httpx.get(f"{server.url}/models").json()["object"] == "list"
        assert httpx.get(f"{root}/nothing").status_code == 404
        assert httpx.get(f"{server.url}/chat/completions").status_code == 405


# Silence.


@pytest.mark.parametrize("grace", [None, HOUR, SOON])
def test_silence_is_broken_with_comments(upstream: Upstream, grace: float | None) -> None:
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])))
    with serving(upstream, grace=grace, ping=SOON) as server, Client(server) as client:
        client.send(request())
        told = client.read_until(b": ping\n\n") + client.read_until(b": ping\n\n")
        gate.set()
        client.received[:0] = told
        assert text_of(client.read_answer()[1]) == TEXT


@pytest.mark.parametrize("point", ["head", "silence"])
def test_the_status_is_told_after_the_grace(upstream: Upstream, point: str) -> None:
    gate = Gate()
    held = Hold(gate)
    upstream.play(Reply(FRAMES, head_hold=held) if point == "head" else Reply((held, *FRAMES)))
    with serving(upstream, grace=SOON, ping=SOON) as server, Client(server) as client:
        client.send(request())
        told = client.read_until(b": ping\n\n")
        assert told.startswith(b"HTTP/1.1 200 ")
        gate.set()
        client.received[:0] = told
        assert text_of(client.read_answer()[1]) == TEXT


def test_an_error_after_the_grace_is_the_last_frame(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(replace(error(429, "Slow down."), head_hold=Hold(gate)))
    with serving(upstream, grace=SOON) as server, Client(server) as client:
        client.send(request())
        told = client.read_until(b": ping\n\n")
        gate.set()
        client.received[:0] = told
        status, body = client.read_answer()
        assert status == 200
        assert b'data: {"error"' in body


def test_a_whole_answer_is_waited_for_with_blanks_where_told_to(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((Hold(gate), *FRAMES)))
    with (
        serving(upstream, grace=SOON, ping=SOON, ping_json=True) as server,
        Client(server) as client,
    ):
        client.send(request(ASKED))
        told = client.read_until(b"1\r\n \r\n")
        gate.set()
        client.received[:0] = told
        status, body = client.read_answer()
        assert status == 200
        assert body.startswith(b" ")
        assert json.loads(body)["choices"][0]["message"]["content"] == TEXT


# Leaving.


@contextlib.contextmanager
def told_attempts() -> Iterator[list[Attempt]]:
    """What is told of the attempts of all servers, while it lasts."""
    told: list[Attempt] = []

    def on_attempt(serving: object, attempt: Attempt) -> None:
        told.append(attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Serving, "on_attempt", on_attempt)
        yield told


@pytest.mark.parametrize("how", ["fin", "half", "rst"])
@pytest.mark.parametrize("point", ["head", "silence", "middle", "whole"])
def test_a_client_that_leaves_takes_upstream_along(
    upstream: Upstream, point: str, how: str
) -> None:
    at = BEGUN if point == "middle" else 0
    gate = Gate()
    head_hold = Hold(gate) if point == "head" else None
    upstream.play(Reply((*FRAMES[:at], Hold(gate), *FRAMES[at:]), head_hold=head_hold))
    with told_attempts() as told, serving(upstream) as server, Client(server) as client:
        client.send(request(ASKED if point == "whole" else STREAMED))
        upstream.wait_for_requests(1)
        if point == "middle":
            client.read_until(b"data: ")
        if how == "fin":
            client.socket.close()
        elif how == "half":
            client.socket.shutdown(socket.SHUT_WR)
        else:
            client.reset()
        upstream.wait_closed()
        assert upstream.requests[0].left.is_set()
        if how == "half":
            with contextlib.suppress(ConnectionError):
                assert b"\r\n0\r\n\r\n" not in client.read_to_eof()
    assert told[-1].outcome == "cancelled"
    assert len(upstream.requests) == 1


def test_a_client_that_leaves_is_not_waited_for_by_an_upstream_that_is_drained(
    upstream: Upstream,
) -> None:
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(Gate()))))
    with serving(upstream, policy=Policy(drain=HOUR)) as server, Client(server) as client:
        client.send(request())
        client.read_until(b"data: ")
        client.reset()
        upstream.wait_closed()
        assert upstream.requests[0].left.is_set()


def test_leaving_ends_the_wait_for_an_account(upstream: Upstream) -> None:
    upstream.play(error(429, headers=(("Retry-After", "600"),)))
    policy = Policy(wait=HOUR, attempts_per_account=2)
    with serving(upstream, policy=policy) as server, Client(server) as client:
        client.send(request())
        upstream.wait_for_requests(1)
        client.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert client.read_to_eof() == b""
    assert len(upstream.requests) == 1


def test_leaving_after_done_is_no_leaving(upstream: Upstream) -> None:
    with told_attempts() as told, serving(upstream) as server, Client(server) as client:
        client.send(request())
        client.read_until(DONE)
    assert told[-1].outcome == "completed"


def test_a_client_that_does_not_read_is_cut_off(upstream: Upstream) -> None:
    (delta,) = [frame for frame in FRAMES if b"output_text.delta" in frame][:1]
    name, data = delta.rstrip().split(b"data: ")
    event = {**json.loads(data), "delta": "x" * 65536}
    long = b"%bdata: %b\n\n" % (name, json.dumps(event).encode())
    at = FRAMES.index(delta)
    # More than the buffers of two connections hold.
    upstream.play(Reply((*FRAMES[:at], *[long] * 400, Hold(Gate()))))
    with (
        serving(upstream, write_stall=SOON) as server,
        Client(server, receive_buffer=4096) as client,
    ):
        client.send(request())
        upstream.wait_for_requests(1)
        upstream.wait_closed()
        assert not upstream.requests[0].over.is_set()
        with pytest.raises(ConnectionResetError):
            client.read_to_eof()


# Limits.


@pytest.mark.parametrize("asked", [False, True])
def test_a_silent_client_is_closed_without_a_word(upstream: Upstream, asked: bool) -> None:
    bounds: dict[str, Any] = {"idle_timeout" if asked else "head_timeout": SOON}
    with serving(upstream, **bounds) as server, Client(server) as client:
        if asked:
            client.send(request(ASKED))
            assert client.read_answer()[0] == 200
        assert client.read_to_eof() == b""


def test_a_client_too_many_is_told_so_and_the_others_are_served(upstream: Upstream) -> None:
    with serving(upstream, connections=1) as server, Client(server) as client:
        client.send(request(ASKED))
        assert client.read_answer()[0] == 200
        with Client(server) as other:
            assert other.read_to_eof().startswith(b"HTTP/1.1 503 ")
        client.send(request(ASKED))
        assert client.read_answer()[0] == 200


# Many, and the end.


def test_fifty_clients_are_served_at_once(upstream: Upstream) -> None:
    count = 50
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])))

    def ask(body: dict[str, Any]) -> str:
        answer = httpx.post(f"{server.url}/chat/completions", json=body, timeout=LIMIT)
        if body is STREAMED:
            return text_of(answer.content)
        return str(answer.json()["choices"][0]["message"]["content"])

    with serving(upstream) as server, ThreadPoolExecutor(count) as pool:
        texts = [pool.submit(ask, (ASKED, STREAMED)[index % 2]) for index in range(count)]
        upstream.wait_for_requests(count)
        gate.set()
        assert [text.result() for text in texts] == [TEXT] * count


def test_what_was_asked_of_upstream_when_it_stops_is_answered(upstream: Upstream) -> None:
    """Who asks while connections are being closed is answered, or nobody is asked."""
    answered: list[bytes] = []
    barrier = threading.Barrier(21)

    def ask() -> None:
        with Client(server) as client, contextlib.suppress(ConnectionError):
            client.send(request())
            client.read_until(DONE)
            barrier.wait(LIMIT)
            client.send(request())
            answered.append(client.read_until(DONE))

    for _ in range(4):
        before = len(upstream.requests)
        answered.clear()
        with ThreadPoolExecutor(20) as pool, serving(upstream) as server:
            asked = [pool.submit(ask) for _ in range(20)]
            barrier.wait(LIMIT)
            server.stop.set()
            for each in asked:
                each.exception(LIMIT)
        assert len(upstream.requests) - before == 20 + len(answered)


def test_a_server_that_stops_finishes_its_streams_and_closes_the_rest(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])))
    with serving(upstream) as server, Client(server) as client, Client(server) as idle:
        idle.send(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.read_answer()[0] == 200
        client.send(request())
        head = client.read_until(b"data: ")
        server.stop.set()
        assert idle.read_to_eof() == b""
        gate.set()
        client.received[:0] = head
        assert text_of(client.read_answer()[1]) == TEXT
        assert client.read_to_eof() == b""
        client.socket.shutdown(socket.SHUT_WR)
        server.thread.join(LIMIT)
        assert not server.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_a_stream_that_outlasts_the_end_is_broken_off(upstream: Upstream) -> None:
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(Gate()))))
    with serving(upstream, shutdown=SOON) as server, Client(server) as client:
        client.send(request())
        client.read_until(b"data: ")
        server.stop.set()
        upstream.wait_closed()
        with contextlib.suppress(ConnectionResetError):
            assert b"\r\n0\r\n\r\n" not in client.read_to_eof()
    assert upstream.requests[0].left.is_set()


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_each_attempt_is_in_the_ledger(
    upstream: Upstream, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []

    def on_attempt(serving: Serving[SyncTransport], attempt: Attempt) -> None:
        told.append((serving._call.request_id, attempt.outcome))

    monkeypatch.setattr(Serving, "on_attempt", on_attempt)
    with serving(upstream) as server:
        answer = httpx.post(f"{server.url}/chat/completions", json=body)
    name = answer.headers["x-request-id"]
    assert told == [(name, None), (name, "completed")]


def test_no_thread_is_left_behind(upstream: Upstream) -> None:
    # Transports of other tests may not be closed yet.
    before = set(threading.enumerate())
    with serving(upstream) as server, Client(server) as client:
        client.send(request())
        client.read_answer()
    left = set(threading.enumerate()) - before
    assert not [each for each in left if each.name.startswith("deltawire-")]


def test_a_fault_of_our_own_breaks_off_one_answer_only(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(serving: object, attempt: Attempt) -> None:
        raise ZeroDivisionError

    with serving(upstream) as server:
        with (
            pytest.MonkeyPatch.context() as patch,
            Client(server) as client,
            caplog.at_level(logging.CRITICAL + 1),
        ):
            patch.setattr(Serving, "on_attempt", fault)
            client.send(request())
            with pytest.raises(ConnectionResetError):
                client.read_to_eof()
        assert httpx.post(f"{server.url}/chat/completions", json=ASKED).status_code == 200


def test_the_same_over_tls(upstream: Upstream, tmp_path: Path) -> None:
    authority = trustme.CA()
    here, there = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(here)
    authority.issue_cert("127.0.0.1").configure_cert(there)
    gate = Gate()
    with (
        serving(upstream, there, ping=SOON) as server,
        httpx.Client(verify=here, timeout=LIMIT) as client,
    ):
        url = f"https://127.0.0.1:{server.port}/v1/chat/completions"
        assert text_of(client.post(url, json=STREAMED).content) == TEXT
        assert client.post(url, json=ASKED).json()["choices"][0]["message"]["content"] == TEXT
        upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate), *FRAMES[BEGUN:])))
        with client.stream("POST", url, json=STREAMED) as answer:
            pieces = answer.iter_bytes()
            body = b""
            while b": ping" not in body:
                body += next(pieces)
            gate.set()
            assert text_of(body + b"".join(pieces)) == TEXT
        upstream.play(Reply((*FRAMES[:BEGUN], Hold(Gate()))))
        with client.stream("POST", url, json=STREAMED) as answer:
            next(answer.iter_bytes())
        upstream.wait_closed()
        assert upstream.requests[-1].left.is_set()
