"""`deltawire serve --workers N`: processes that share a port, over real sockets and signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_observed import (
    CHAT,
    TRANSPORTS,
    Server,
    Start,
    body,
    client_of,
    configuration,
    start,  # noqa: F401
)

from deltawire.testing import Answer
from upstream import LIMIT, Gate, Hold, Reply, Upstream, stream

WORKERS = 2


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as served:
        served.play(stream(Answer("Hello there.")))
        yield served


def with_workers(upstream: Upstream, transport: str) -> str:
    text = configuration(upstream, transport)
    return text.replace("port = 0", f"port = 0\nworkers = {WORKERS}")


def children(server: Server) -> list[int]:
    pid = server.process.pid
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def sockets(pid: int) -> set[str]:
    """As the links of its descriptors name them: `socket:[inode]`."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may close one while they are read.
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def other_end(got: httpx.Response) -> str:
    """The server's socket of the connection that this answer came by."""
    _, port = got.extensions["network_stream"].get_extra_info("client_addr")
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == port:
            return f"socket:[{fields[9]}]"
    raise AssertionError(f"no connection from port {port}")


def ask(server: Server) -> None:
    """By a connection of its own, so that any of the workers may get it."""
    with client_of(server) as client:
        got = client.post(CHAT, json=body())
        assert got.status_code == 200
        assert got.text.endswith("data: [DONE]\n\n")
        # It is counted when there is a line of it.
        server.line(got.headers["x-request-id"])


def counted(server: Server, name: str) -> float:
    with client_of(server) as client:
        text = client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("route", CHAT) == CHAT
    )


def wait_until_gone(pid: int) -> None:
    """It need not be a child of this process."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([process], [], [], LIMIT)
        assert ended
    finally:
        os.close(process)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_of_them_serve_and_count_together(
    transport: str,
    upstream: Upstream,
    start: Start,  # noqa: F811
) -> None:
    server = start(with_workers(upstream, transport))
    workers = children(server)
    assert len(workers) == WORKERS
    for _ in range(10):
        ask(server)
    # Whoever of them is asked tells of all.
    assert [counted(server, "deltawire_requests_total") for _ in range(8)] == [10] * 8
    with contextlib.ExitStack() as held:
        connections = set()
        # That one of two gets none of them has a chance of one in half a million.
        for _ in range(20):
            client = held.enter_context(client_of(server))
            connections.add(other_end(held.enter_context(client.stream("GET", "/health"))))
        for pid in workers:
            assert connections & sockets(pid)
    server.stop()
    for pid in workers:
        wait_until_gone(pid)


def test_one_that_dies_is_replaced(upstream: Upstream, start: Start) -> None:  # noqa: F811
    server = start(with_workers(upstream, "asyncio"))
    ask(server)
    dead, living = children(server)
    os.kill(dead, signal.SIGKILL)
    server.line(f"worker {dead} ended with status -9")
    ask(server)
    while len(now := children(server)) < WORKERS:
        with client_of(server) as client:
            client.get("/health")
    assert living in now
    assert dead not in now
    # What the dead one had counted is not lost.
    assert counted(server, "deltawire_requests_total") == 2
    server.stop()


def test_what_runs_may_end_when_all_end(upstream: Upstream, start: Start) -> None:  # noqa: F811
    gate = Gate()
    sent = stream(Answer("Hello there.")).pieces
    upstream.play(Reply((*sent[:5], Hold(gate), *sent[5:])))
    server = start(with_workers(upstream, "asyncio"))
    with client_of(server) as client, client.stream("POST", CHAT, json=body()) as got:
        pieces = got.iter_raw()
        next(pieces)
        server.process.send_signal(signal.SIGTERM)
        refused(server)
        gate.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    server.stop()


def refused(server: Server) -> None:
    """Wait until nobody listens any more."""
    port = int(server.url.rpartition(":")[2])
    with contextlib.suppress(ConnectionError):
        while True:
            socket.create_connection(("127.0.0.1", port), LIMIT).close()


def test_all_read_their_configuration_again(
    upstream: Upstream,
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = with_workers(upstream, "asyncio")
    server = start(text)
    (tmp_path / "deltawire.toml").write_text(text.replace('name = "ann"', 'name = "eve"'))
    server.process.send_signal(signal.SIGHUP)
    for _ in range(WORKERS):
        # And the port that they have in the place of 0 has not changed.
        assert "takes a restart" not in server.line("SIGHUP")
    for _ in range(8):
        with client_of(server) as client:
            client.post(CHAT, json=body())
        assert "client=eve" in server.line(" 200 POST ")
    server.stop()


def test_nobody_is_left_when_who_looks_after_them_is_killed(
    upstream: Upstream,
    start: Start,  # noqa: F811
) -> None:
    server = start(with_workers(upstream, "asyncio"))
    workers = children(server)
    server.kill()
    for pid in workers:
        wait_until_gone(pid)


def test_a_port_that_is_taken_is_said_once(upstream: Upstream, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = with_workers(upstream, "asyncio").replace("port = 0", f"port = {port}")
        (tmp_path / "deltawire.toml").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "deltawire.server.cli", "serve"],
            cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "deltawire: Address already in use\n"
