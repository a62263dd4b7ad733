"""`SyncStream.hang_up`: whatever a call is blocked in, another thread can end it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import pytest
import trustme

from deltawire.attempts import Attempt, Policy, Timeouts
from deltawire.errors import UpstreamUnreachable
from deltawire.testing import Answer, expected, write_frames
from deltawire.transports import SyncTransport
from deltawire.transports.sync import SyncStream
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

ANSWER: Final = Answer("It rains in Rome.")
TEXT: Final = expected(ANSWER).content
FRAMES: Final = tuple(write_frames(ANSWER))
BEGUN: Final = 6
REQUEST: Final = {"model": "gpt-5", "messages": [{"role": "user", "content": "Rain?"}]}
NO_TIMEOUTS: Final = Timeouts(connect=None, first_event=None, idle=None, total=None)

pytestmark = pytest.mark.usefixtures("no_proxy")
every_kind = pytest.mark.parametrize("kind", ["stream", "stream_wire", "stream_completion"])

Stream = SyncStream[Any, Any]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        opened.play(stream(ANSWER))
        yield opened


@contextlib.contextmanager
def read(answer: Stream) -> Iterator[Future[list[Any]]]:
    """What it gives, read by another thread."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: list(answer))
        try:
            yield reading
        finally:
            answer.hang_up()
            reading.exception(LIMIT)


def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    late = threading.Event()
    timer = threading.Timer(LIMIT, late.set)
    timer.start()
    while not condition():
        assert not late.is_set()
    timer.cancel()


def transport_to(base_url: str, **settings: Any) -> SyncTransport:
    return SyncTransport(base_url=base_url, timeouts=NO_TIMEOUTS, verify=False, **settings)


def assert_hung_up(answer: Stream, reading: Future[list[Any]]) -> None:
    """It ended without an error."""
    reading.result(LIMIT)
    assert [each.outcome for each in answer.attempts] == ["cancelled"]


def assert_usable_still(transport: SyncTransport, upstream: Upstream) -> None:
    upstream.play(stream(ANSWER))
    assert transport.create(REQUEST).choices[0].message.content == TEXT


@every_kind
@pytest.mark.parametrize("point", ["head", "silence", "middle"])
def test_upstream_sees_at_once_that_it_is_hung_up_on(
    upstream: Upstream, kind: str, point: str
) -> None:
    at = BEGUN if point == "middle" else 0
    hold = Hold(Gate())
    held = Reply(FRAMES, head_hold=hold)
    upstream.play(held if point == "head" else Reply((*FRAMES[:at], hold)))
    with transport_to(upstream.base_url) as transport:
        answer: Stream = getattr(transport, kind)(REQUEST)
        with read(answer) as reading:
            upstream.wait_for_requests(1)
            if point == "middle":
                until(lambda: answer.attempts and answer.attempts[0].first_event)
            answer.hang_up()
            assert upstream.requests[0].left.wait(LIMIT)
            assert_hung_up(answer, reading)
        assert_usable_still(transport, upstream)
    upstream.wait_closed()


@pytest.mark.parametrize("point", ["head", "silence"])
@pytest.mark.parametrize("secure", [False, True])
def test_on_a_kept_connection_as_well(secure: bool, point: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    hold = Hold(Gate())
    held = Reply(FRAMES, head_hold=hold) if point == "head" else Reply((hold,))
    with (
        Upstream(context if secure else None) as upstream,
        transport_to(upstream.base_url) as transport,
    ):
        upstream.play(stream(ANSWER), held)
        assert transport.create(REQUEST).choices[0].message.content == TEXT
        answer = transport.stream(REQUEST)
        with read(answer) as reading:
            upstream.wait_for_requests(2)
            answer.hang_up()
            assert upstream.requests[1].left.wait(LIMIT)
            assert_hung_up(answer, reading)
        assert upstream.connections == 1
        assert_usable_still(transport, upstream)
        assert upstream.connections == 2


@pytest.mark.parametrize("drain", [0.0, 3600.0])
def test_nothing_is_drained(upstream: Upstream, drain: float) -> None:
    upstream.play(Reply((*FRAMES[:BEGUN], Hold(Gate()))))
    with transport_to(upstream.base_url, policy=Policy(drain=drain)) as transport:
        answer = transport.stream(REQUEST)
        with read(answer):
            until(lambda: answer._begun and answer.attempts[0].first_event)
            answer.hang_up()
            assert upstream.requests[0].left.wait(LIMIT)


def test_the_wait_for_a_connection_is_ended(upstream: Upstream) -> None:
    gate = Gate()
    upstream.play(Reply(FRAMES, head_hold=Hold(gate)))
    with transport_to(upstream.base_url, max_connections=1) as transport:
        first, second = transport.stream(REQUEST), transport.stream(REQUEST)
        with read(first) as its:
            upstream.wait_for_requests(1)
            assert transport._direct is not None
            waiting = transport._direct._places._waiting
            with read(second) as reading:
                until(lambda: waiting)
                second.hang_up()
                assert_hung_up(second, reading)
            gate.set()
            assert its.result(LIMIT)
        assert_usable_still(transport, upstream)
        assert upstream.connections == 1


def test_the_wait_for_an_account_is_ended(upstream: Upstream) -> None:
    upstream.play(error(429, headers=(("Retry-After", "600"),)))
    policy = Policy(wait=3600.0, attempts_per_account=2)
    with transport_to(upstream.base_url, policy=policy) as transport:
        answer = transport.stream(REQUEST)
        with read(answer) as reading:
            until(lambda: answer._begun and answer.attempts and answer.attempts[0].outcome)
            answer.hang_up()
            assert reading.result(LIMIT) == []


def test_what_is_hung_up_on_before_it_begins_is_not_sent(upstream: Upstream) -> None:
    with SyncTransport(base_url=upstream.base_url) as transport:
        answer = transport.stream_wire(REQUEST)
        answer.hang_up()
        assert list(answer) == []
        assert answer.attempts[-1].outcome == "cancelled"
        assert not upstream.requests


@every_kind
def test_hanging_up_twice_and_after_the_end_does_no_harm(upstream: Upstream, kind: str) -> None:
    with SyncTransport(base_url=upstream.base_url) as transport:
        for _ in range(2):
            answer = getattr(transport, kind)(REQUEST)
            assert list(answer)
            answer.hang_up()
            answer.hang_up()
            answer.close()
            assert answer.attempts[-1].outcome == "completed"
        assert upstream.connections == 1


@contextlib.contextmanager
def deaf() -> Iterator[socket.socket]:
    """One whom no connection reaches: its queue is full."""
    with contextlib.ExitStack() as stack:
        nobody = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(nobody.getsockname())
        yield nobody


def is_dialing(transport: SyncTransport) -> bool:
    direct = transport._direct
    return direct is not None and any(each._sockets for each in list(direct._dialing))


@pytest.mark.parametrize("ending", ["hang up", "close"])
def test_a_connection_in_the_making_is_given_up(ending: str) -> None:
    with deaf() as nobody, contextlib.ExitStack() as stack:
        transport = transport_to(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1")
        stack.callback(transport.close)
        answer = transport.stream(REQUEST)
        with read(answer) as reading:
            until(lambda: is_dialing(transport))
            if ending == "hang up":
                answer.hang_up()
                assert_hung_up(answer, reading)
            else:
                transport.close()
                with pytest.raises(UpstreamUnreachable, match="closed"):
                    reading.result(LIMIT)
        assert not is_dialing(transport)


def test_so_is_one_whose_tls_is_in_the_making() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT)
        with transport_to(f"https://127.0.0.1:{silent.getsockname()[1]}/v1") as transport:
            answer = transport.stream(REQUEST)
            with read(answer) as reading:
                peer, _ = silent.accept()
                with peer:
                    peer.settimeout(LIMIT)
                    assert peer.recv(1)
                    answer.hang_up()
                    while peer.recv(65536):
                        pass
                assert_hung_up(answer, reading)


def test_a_signal_of_one_call_is_none_for_the_next(upstream: Upstream) -> None:
    """The connection of a call that has ended is another's."""
    with transport_to(upstream.base_url) as transport:
        first = transport.stream(REQUEST)
        assert list(first)
        upstream.play(Reply((*FRAMES[:BEGUN], Hold(gate := Gate()), *FRAMES[BEGUN:])))
        second = transport.stream(REQUEST)
        with read(second) as reading:
            upstream.wait_for_requests(2)
            first.hang_up()
            gate.set()
            assert reading.result(LIMIT)
        assert second.attempts[0].outcome == "completed"
        assert upstream.connections == 1


# Where a name has several addresses.


@pytest.mark.parametrize("first", ["deaf", "refuses"])
def test_an_address_that_is_of_no_use_does_not_keep_from_the_next(
    upstream: Upstream, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(upstream.base_url.split(":")[2].partition("/")[0])
    with deaf() as nobody, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        of_no_use = (nobody if first == "deaf" else closed).getsockname()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found(of_no_use, port))
        attempts: list[Attempt] = []
        with transport_to("http://two.test/v1", on_attempt=attempts.append) as transport:
            assert transport.create(REQUEST).choices[0].message.content == TEXT
    assert {attempt.outcome for attempt in attempts} == {"completed"}


def found(of_no_use: tuple[str, int], port: int) -> list[Any]:
    kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    return [(*kind, of_no_use), (*kind, ("127.0.0.1", port))]
