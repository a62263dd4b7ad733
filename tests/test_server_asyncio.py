"""The server on asyncio, over real sockets, between real clients and a scripted upstream.

What happens when is up to gates, events and the clients; the times that the server itself keeps are
made short where they are to pass. Nothing here sleeps or looks at a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import h11
import openai
import pytest
import trustme

from deltawire.attempts import Policy
from deltawire.server.config import quick
from deltawire.server.on_asyncio import PHASE, Connection, serve
from deltawire.server.service import Service
from deltawire.server.settings import Config
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import AsyncioTransport
from servers import MESSAGES, Client, ask, chat
from upstream import LIMIT, Gate, Hold, Piece, Reply, Upstream, error, stream
from wire import added, created, frame, message, parsed, terminal, text_delta

ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = tuple(write_frames(ANSWER))
# The frames up to the second delta.
BEGUN: Final = 6
SHORT: Final = 0.05
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"
PIECE: Final = 16 * 1024


class Server(logging.Handler):
    """The server on a thread of its own. What it logs as an error is raised at the end."""

    def __init__(self, config: Config, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(logging.WARNING)
        self._config = config
        self._tls = tls
        self._errors: list[str] = []
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(self.format(record))

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as failure:
            self._errors.append(repr(failure))
            if not self._port.done():
                self._port.set_exception(failure)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        # One that is slow is none that is wrong.
        self._loop.slow_callback_duration = LIMIT
        self._stop = asyncio.Event()
        started: asyncio.Future[int] = self._loop.create_future()
        started.add_done_callback(lambda port: self._port.set_result(port.result()))
        service = Service(self._config, AsyncioTransport)
        await serve(service, self._stop, tls=self._tls, started=started)

    def __enter__(self) -> Self:
        for name in ("asyncio", "deltawire"):
            logging.getLogger(name).addHandler(self)
        self._thread.start()
        self.address = ("127.0.0.1", self._port.result(LIMIT))
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.address[1]}"
        return self

    def pass_time(self, seconds: float) -> None:
        """Put the server's clock forward, and let it do what is due then."""
        passed, done = self._loop.time, threading.Event()

        def jump() -> None:
            now = passed
            self._loop.time = lambda: now() + seconds  # type: ignore[method-assign]
            # What is due is done in the next round.
            self._loop.call_later(0, self._loop.call_soon, done.set)

        self._loop.call_soon_threadsafe(jump)
        assert done.wait(LIMIT)

    def stop(self) -> None:
        """What SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(RuntimeError):
            self.stop()
        self.join()
        for name in ("asyncio", "deltawire"):
            logging.getLogger(name).removeHandler(self)
        if kind is None:
            assert self._errors == []

    @contextlib.contextmanager
    def openai(self, verify: ssl.SSLContext | bool = True) -> Iterator[openai.OpenAI]:
        with (
            openai.DefaultHttpxClient(trust_env=False, verify=verify, timeout=LIMIT) as client,
            openai.OpenAI(
                api_key="none", base_url=f"{self.url}/v1", http_client=client, max_retries=0
            ) as made,
        ):
            yield made

    def check(self) -> None:
        """It serves others."""
        with Client(self) as client:
            client.send(ask("GET", "/health"))
            assert client.answer("GET").status == 200


def text_of(body: bytes) -> str:
    """The text of a stream that came to its good end, comments left out."""
    frames = parsed(body.replace(PING, b""))
    assert frames[-1] == "[DONE]"
    deltas = [each["choices"][0]["delta"] for each in frames[:-1] if each["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


def config(upstream: Upstream, limits: dict[str, Any] | None = None, **server: Any) -> Config:
    made = quick(upstream.base_url, environ={}, port=0)
    (only,) = made.upstreams
    return replace(
        made,
        server=replace(made.server, **server),
        limits=replace(made.limits, **(limits or {})),
        upstreams=(replace(only, policy=Policy(attempts=1, trail=LIMIT)),),
    )


def held(at: int, gate: Gate) -> Reply:
    return Reply((*FRAMES[:at], Hold(gate), *FRAMES[at:]))


def long_answer(pieces: int) -> tuple[Piece, ...]:
    """An answer of that many deltas of PIECE bytes."""
    delta = frame(text_delta("x" * PIECE))
    head = (frame(created()), frame(added(0, message())))
    return (*head, *[delta] * pieces, frame(terminal()))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


@pytest.fixture
def server(upstream: Upstream) -> Iterator[Server]:
    with Server(config(upstream)) as running:
        yield running


# Answers.


def test_openai_python_gets_a_stream(server: Server) -> None:
    with (
        server.openai() as client,
        client.chat.completions.create(model="gpt-5", messages=MESSAGES, stream=True) as chunks,
    ):
        said = list(chunks)
    assert "".join(each.choices[0].delta.content or "" for each in said) == TEXT
    assert said[-1].choices[0].finish_reason == "stop"


def test_openai_python_gets_a_whole_answer(server: Server) -> None:
    with server.openai() as client:
        raw = client.chat.completions.with_raw_response.create(model="gpt-5", messages=MESSAGES)
        assert raw.parse().choices[0].message.content == TEXT
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.headers["content-type"] == "application/json"


def test_openai_python_gets_the_models_and_errors(upstream: Upstream, server: Server) -> None:
    with server.openai() as client:
        assert list(client.models.list()) == []
        assert client.models.retrieve("gpt-5").id == "gpt-5"
        upstream.play(error(400, "Too long.", code="context_length_exceeded"))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert caught.value.code == "context_length_exceeded"


def test_requests_one_after_the_other_over_one_connection(server: Server) -> None:
    with Client(server) as client:
        for _ in range(3):
            client.send(chat())
            assert text_of(client.answer().body) == TEXT
            client.send(chat(stream=False))
            whole = json.loads(client.answer().body)
            assert whole["choices"][0]["message"]["content"] == TEXT
            client.send(ask("GET", "/version"))
            assert client.answer("GET").status == 200
            client.send(ask("HEAD", "/v1/models"))
            assert client.answer("HEAD").body == b""


def test_requests_that_come_at_once_are_answered_in_turn(
    upstream: Upstream, server: Server
) -> None:
    with Client(server) as client:
        client.send(chat() + ask("GET", "/version") + chat(stream=False) + chat())
        assert text_of(client.answer().body) == TEXT
        assert "version" in json.loads(client.answer("GET").body)
        assert json.loads(client.answer().body)["object"] == "chat.completion"
        assert text_of(client.answer().body) == TEXT
    assert len(upstream.requests) == 3


def test_a_request_may_come_byte_by_byte(server: Server) -> None:
    with Client(server) as client:
        for byte in chat():
            client.send(bytes([byte]))
        assert text_of(client.answer().body) == TEXT


def test_a_client_may_wait_to_be_told_to_go_on(server: Server) -> None:
    head, _, body = chat("Expect: 100-continue").partition(b"\r\n\r\n")
    with Client(server) as client:
        client.send(head + b"\r\n\r\n")
        assert client.socket.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert text_of(client.answer().body) == TEXT


def test_http_1_0_ends_with_the_connection(server: Server) -> None:
    with Client(server) as client:
        client.send(chat().replace(b"HTTP/1.1", b"HTTP/1.0"))
        got = client.head()
        assert got.headers["connection"] == "close"
        assert text_of(client.rest().body) == TEXT


def test_the_report_is_in_a_header_whatever_fields_are_called(server: Server) -> None:
    with Client(server) as client:
        odd: Any = {"a\r\nx-evil: 1": 1}
        client.send(chat(seed=1, **odd))
        got = client.answer()
        assert "dropped seed" in got.headers["x-deltawire-report"]
        assert "x-evil" not in got.headers
        assert text_of(got.body) == TEXT


def test_fifty_streams_at_once(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(BEGUN, gate))

    def run(client: openai.OpenAI) -> str:
        with client.chat.completions.create(
            model="gpt-5", messages=MESSAGES, stream=True
        ) as chunks:
            return "".join(each.choices[0].delta.content or "" for each in chunks)

    with server.openai() as client, ThreadPoolExecutor(50) as pool:
        running = [pool.submit(run, client) for _ in range(50)]
        upstream.wait_for_requests(50)
        gate.set()
        assert [each.result(LIMIT) for each in running] == [TEXT] * 50


# Errors.


@pytest.mark.parametrize("streamed", [True, False])
def test_an_error_before_output_is_a_status(
    upstream: Upstream, server: Server, streamed: bool
) -> None:
    upstream.play(
        error(429, "Slow down.", code="rate_limit_exceeded", headers=(("Retry-After", "7"),))
    )
    with Client(server) as client:
        client.send(chat(stream=streamed))
        got = client.answer()
        assert got.status == 429
        assert got.headers["retry-after"] == "7"
        assert got.headers["x-request-id"].startswith("req_")
        assert got.error["code"] == "rate_limit_exceeded"
        # The connection is as good as before.
        client.send(ask("GET", "/version"))
        assert client.answer("GET").status == 200


def test_an_error_midway_is_the_last_frame(upstream: Upstream, server: Server) -> None:
    upstream.play(Reply(FRAMES[:BEGUN], ending="reset"))
    with Client(server) as client:
        client.send(chat())
        got = client.answer()
        assert got.status == 200
        *before, last = parsed(got.body)
        assert list(last) == ["error"]
        assert all("choices" in each for each in before)
        client.send(ask("GET", "/version"))
        assert client.answer("GET").status == 200


def test_a_request_that_is_wrong_in_itself_asks_nobody(upstream: Upstream, server: Server) -> None:
    with Client(server) as client:
        client.send(chat(messages="Rain?"))
        got = client.answer()
        assert (got.status, got.error["param"]) == (400, "messages")
    assert upstream.requests == []


# Silence.


def test_the_status_waits_for_output(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(Reply(FRAMES, head_hold=Hold(gate)))
    with Client(server) as client:
        client.send(chat())
        upstream.wait_for_requests(1)
        server.check()
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        client.socket.settimeout(LIMIT)
        gate.set()
        assert text_of(client.answer().body) == TEXT


def test_silence_is_filled_after_the_grace(upstream: Upstream) -> None:
    first, second = Gate(), Gate()
    upstream.play(Reply((Hold(first), *FRAMES[:BEGUN], Hold(second), *FRAMES[BEGUN:])))
    with Server(config(upstream, grace=SHORT, ping=SHORT)) as server, Client(server) as client:
        client.send(chat())
        assert client.head().status == 200
        assert client.until(PING * 2).startswith(PING * 2)
        first.set()
        client.until(b"data:")
        client.until(b"\n\n" + PING * 2)
        second.set()
        assert text_of(client.rest().body) == TEXT


def test_an_error_after_the_grace_is_a_frame(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(replace(error(500), head_hold=Hold(gate)))
    with Server(config(upstream, grace=SHORT, ping=None)) as server, Client(server) as client:
        client.send(chat())
        client.head()
        client.until(PING)
        gate.set()
        body = client.rest().body
        (last,) = parsed(body.removeprefix(PING))
        assert list(last) == ["error"]


def test_blanks_before_a_whole_answer_where_told_to(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(0, gate))
    settings = config(upstream, grace=SHORT, ping=SHORT, ping_json=True)
    with Server(settings) as server, Client(server) as client:
        client.send(chat(stream=False))
        assert client.head().status == 200
        client.until(b"  ")
        gate.set()
        body = client.rest().body
        assert json.loads(body)["choices"][0]["message"]["content"] == TEXT


def test_the_end_does_not_wait_for_upstreams(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(len(FRAMES), gate), stream(ANSWER))
    with Client(server) as client:
        client.send(chat())
        assert text_of(client.answer().body) == TEXT
        client.send(chat())
        assert text_of(client.answer().body) == TEXT
        first, _ = upstream.requests
        assert not first.over.is_set()
        gate.set()
        assert first.over.wait(LIMIT)


# Leaving.


@pytest.mark.parametrize("how", ["fin", "half", "reset"])
@pytest.mark.parametrize("where", ["head", "silence", "middle", "whole"])
def test_leaving_closes_upstream(upstream: Upstream, server: Server, how: str, where: str) -> None:
    gate = Gate()
    upstream.play(
        Reply(FRAMES, head_hold=Hold(gate))
        if where == "head"
        else held(BEGUN if where == "middle" else 0, gate)
    )
    with Client(server) as client:
        client.send(chat(stream=where != "whole"))
        (request,) = upstream.wait_for_requests(1)
        if where == "middle":
            client.head()
            client.until(b"data:")
        if how == "reset":
            client.reset()
        elif how == "half":
            client.socket.shutdown(socket.SHUT_WR)
        else:
            client.socket.close()
        assert request.left.wait(LIMIT)
        if how == "half":
            # It is not kept open for nobody, and nothing more is said.
            with contextlib.suppress(ConnectionResetError):
                while client.socket.recv(65536):
                    pass
    assert not gate.is_set()
    upstream.wait_closed()
    server.check()


def test_leaving_is_seen_behind_pipelined_requests(upstream: Upstream, server: Server) -> None:
    gate = Gate()
    upstream.play(held(0, gate))
    with Client(server) as client:
        client.send(chat() * 3)
        (request,) = upstream.wait_for_requests(1)
        client.socket.close()
        assert request.left.wait(LIMIT)
    server.check()
    assert len(upstream.requests) == 1


def test_who_leaves_in_a_burst_is_no_news(upstream: Upstream, server: Server) -> None:
    """Nothing is logged of what was still said to them."""
    upstream.play(stream(Answer(" word" * 2000)))
    for _ in range(10):
        with Client(server) as client:
            client.send(chat())
            client.head()
            client.until(b"data:")
            client.reset()
    upstream.wait_closed()
    server.check()


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_leaving_after_done_is_no_cancel(upstream: Upstream, server: Server, how: str) -> None:
    gate = Gate()
    upstream.play(held(len(FRAMES), gate), stream(ANSWER))
    with Client(server) as client:
        client.send(chat())
        assert text_of(client.answer().body) == TEXT
        client.reset() if how == "reset" else client.socket.close()
    server.check()
    gate.set()
    (request,) = upstream.requests
    assert request.over.wait(LIMIT)
    assert not request.left.is_set()


# What is too much, and what is too slow.


@pytest.mark.parametrize("asked", [False, True])
def test_a_connection_that_says_nothing_is_closed(upstream: Upstream, asked: bool) -> None:
    limits = {"idle_timeout": SHORT} if asked else {"head_timeout": SHORT}
    with Server(config(upstream, limits=limits)) as server, Client(server) as client:
        if asked:
            client.send(ask("GET", "/health"))
            assert client.answer("GET").status == 200
        assert client.socket.recv(1) == b""


def test_each_request_has_a_time_of_its_own(upstream: Upstream) -> None:
    # The phase is the same before and after, but it is another one.
    made = config(upstream)

    async def run() -> tuple[float, float]:
        connection = Connection(Service(made, AsyncioTransport), set(), set())

        def timer() -> asyncio.TimerHandle:
            timer = connection._timers[PHASE]
            assert timer is not None
            return timer

        connection.connection_made(_Nowhere())
        before = timer().when()
        connection.data_received(ask("GET", "/health"))
        idle = timer()
        connection.data_received(ask("GET", "/health"))
        again = timer()
        assert idle.cancelled()
        connection.connection_lost(None)
        assert again.cancelled()
        return before, again.when()

    before, after = asyncio.run(run())
    assert after > before


def test_a_client_that_is_cut_off_gets_no_word_more(upstream: Upstream) -> None:
    # The socket says only later that it is gone; what runs till then would find HTTP closed.
    made = config(upstream)

    async def run() -> int:
        answers: set[asyncio.Task[None]] = set()
        connection = Connection(Service(made, AsyncioTransport), set(), answers)
        connection.connection_made(_Nowhere())
        connection.data_received(chat())
        (task,) = answers
        connection._abort()
        cancellations = task.cancelling()
        connection.connection_lost(None)
        await asyncio.wait([task])
        return cancellations

    assert asyncio.run(run()) == 1


class _Nowhere(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def test_a_connection_too_many_is_refused(upstream: Upstream) -> None:
    with (
        Server(config(upstream, limits={"connections": 1})) as server,
        Client(server) as first,
    ):
        first.send(ask("GET", "/health"))
        assert first.answer("GET").status == 200
        with Client(server) as second:
            got = second.answer("GET")
            assert got.status == 503
            assert got.headers["x-request-id"].startswith("req_")
            second.closed()
        first.send(ask("GET", "/health"))
        assert first.answer("GET").status == 200


# Clients that do not read.


class Counted(tuple[Piece, ...]):
    """Pieces that know how many were taken."""

    taken = 0

    def __iter__(self) -> Iterator[Piece]:
        for piece in super().__iter__():
            self.taken += 1
            yield piece


def test_a_client_that_does_not_read_is_cut_off(upstream: Upstream) -> None:
    upstream.play(Reply(long_answer(4000)))
    settings = config(upstream, write_stall=SHORT, ping=SHORT)
    with Server(settings) as server, Client(server, window=4096) as client:
        client.send(chat())
        (request,) = upstream.wait_for_requests(1)
        assert request.left.wait(LIMIT)
        assert not request.over.is_set()
        server.check()


def test_a_client_that_reads_slowly_but_steadily_gets_all_of_a_large_answer(
    upstream: Upstream,
) -> None:
    # One write; upstream is not in a hurry either, when the clock of the server jumps.
    size, step, stall = 12 * 2**20, 2 * 2**20, 3600.0
    upstream.play(stream(Answer("x" * size)))
    settings = config(upstream, write_stall=stall, ping=None, grace=None)
    with Server(settings) as server, Client(server, window=4096) as client:
        client.send(chat(stream=False))
        body = client.head().body
        while len(body) + step < size:
            body = client.read(step)
            server.pass_time(0.4 * stall)
        (message,) = json.loads(client.rest().body)["choices"]
        assert message["message"]["content"] == "x" * size


def test_a_client_that_stops_reading_a_large_answer_is_cut_off_in_time(upstream: Upstream) -> None:
    size, step, stall = 12 * 2**20, 2 * 2**20, 3600.0
    upstream.play(stream(Answer("x" * size)))
    settings = config(upstream, write_stall=stall, ping=None, grace=None)
    with Server(settings) as server, Client(server, window=4096) as client:
        client.send(chat(stream=False))
        client.head()
        client.read(step)
        for _ in range(12):
            server.pass_time(0.1 * stall)
        with pytest.raises(ConnectionResetError):
            client.rest()


def test_a_client_that_leaves_its_last_bytes_is_cut_off(upstream: Upstream) -> None:
    # Less than the buffer, so that nothing ever waits for it, and then it is closed.
    upstream.play(Reply(long_answer(600)))
    limits = {"buffer": 2**30, "idle_timeout": SHORT}
    settings = config(upstream, limits, write_stall=SHORT, shutdown=2 * LIMIT)
    with Server(settings) as server, Client(server, window=4096) as client:
        client.send(chat())
        (request,) = upstream.wait_for_requests(1)
        assert request.over.wait(LIMIT)
        server.check()
        # At its end the server waits for those who have not left; this one is gone by then.
        server.stop()
        server.join()


def test_upstream_waits_for_a_slow_client(upstream: Upstream) -> None:
    pieces = Counted(long_answer(3000))
    upstream.play(Reply(pieces), model="large")
    upstream.play(stream(ANSWER), model="gpt-5")
    settings = config(upstream, write_stall=None)
    with Server(settings) as server, Client(server, window=2**18) as slow:
        slow.send(chat(model="large"))
        slow.head()
        with Client(server) as client:
            before = -1
            while before != pieces.taken:
                before = pieces.taken
                for _ in range(10):
                    client.send(chat())
                    assert text_of(client.answer().body) == TEXT
        # What the kernel holds for three sockets is some of it, and the server next to nothing.
        assert pieces.taken < len(pieces)
        assert len(text_of(slow.rest().body)) == 3000 * PIECE
        assert upstream.requests[0].over.wait(LIMIT)


# The end.


def test_a_stop_lets_streams_finish(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(BEGUN, gate))
    with Server(config(upstream)) as server, Client(server) as idle, Client(server) as client:
        idle.send(ask("GET", "/health"))
        idle.answer("GET")
        client.send(chat())
        client.head()
        client.until(b"data:")
        server.stop()
        assert idle.socket.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.address)
        gate.set()
        assert text_of(client.rest().body) == TEXT
        client.closed()
        client.socket.close()
        server.join()
    upstream.wait_closed()


def test_a_stop_waits_no_longer_than_it_may(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(BEGUN, gate))
    with Server(config(upstream, shutdown=SHORT)) as server, Client(server) as client:
        client.send(chat())
        client.head()
        client.until(b"data:")
        server.stop()
        server.join()
        assert upstream.requests[0].left.wait(LIMIT)
        # It does not look like an end.
        with pytest.raises((ConnectionResetError, h11.RemoteProtocolError)):
            client.rest()
    upstream.wait_closed()


def test_a_stop_does_not_wait_for_what_nobody_does(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(held(len(FRAMES), gate))
    with Server(config(upstream)) as server:
        with Client(server) as client:
            client.send(chat())
            assert text_of(client.answer().body) == TEXT
        server.check()
        server.stop()
        server.join()
        assert upstream.requests[0].left.wait(LIMIT)
    upstream.wait_closed()


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the server, for its clients."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    return ours, theirs


def test_answers_over_tls(upstream: Upstream, authority: trustme.CA) -> None:
    ours, theirs = contexts(authority)
    with Server(config(upstream), ours) as server, server.openai(theirs) as client:
        for _ in range(2):
            with client.chat.completions.create(
                model="gpt-5", messages=MESSAGES, stream=True
            ) as chunks:
                assert "".join(each.choices[0].delta.content or "" for each in chunks) == TEXT
        whole = client.chat.completions.create(model="gpt-5", messages=MESSAGES)
        assert whole.choices[0].message.content == TEXT


@pytest.mark.parametrize("streamed", [True, False])
def test_leaving_over_tls_closes_upstream(
    upstream: Upstream, authority: trustme.CA, streamed: bool
) -> None:
    gate = Gate()
    upstream.play(held(BEGUN, gate))
    ours, theirs = contexts(authority)
    with Server(config(upstream), ours) as server, Client(server, tls=theirs) as client:
        client.send(chat(stream=streamed))
        (request,) = upstream.wait_for_requests(1)
        if streamed:
            client.head()
            client.until(b"data:")
        client.socket.close()
        assert request.left.wait(LIMIT)
    upstream.wait_closed()


def test_a_refusal_over_tls(upstream: Upstream, authority: trustme.CA) -> None:
    ours, theirs = contexts(authority)
    with Server(config(upstream), ours) as server, Client(server, tls=theirs) as client:
        client.send(ask("GET", "/health", "A: \0"))
        assert client.answer("GET").status == 400
