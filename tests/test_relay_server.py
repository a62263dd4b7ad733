"""`deltawire serve` in front of an upstream that speaks Chat Completions, as a process of its own:
what the client receives is what upstream sent, and what it came to is in the ledger.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from chat_upstream import ANSWER, TOOLS, completed, failed, frames, streamed, whole
from deltawire.testing import Answer
from upstream import LIMIT, Gate, Hold, Piece, Reply, Upstream, error

REQUEST: Final[dict[str, Any]] = {
    "model": "fast",
    "messages": [{"role": "user", "content": "Does it rain?"}],
    "vendor_option": {"a": [1, 2.5, None]},
}
STREAMED: Final = {**REQUEST, "stream": True}
FRAMES: Final = frames()

CONFIG: Final = """
[server]
port = 0
transport = "{transport}"
grace = 60.0
[[upstreams]]
name = "here"
base_url = "{url}"
api = "chat"
aliases = {{ fast = "model-1" }}
models = ["model-*"]
[[upstreams.accounts]]
name = "a"
key = "key-of-a"
[[upstreams.accounts]]
name = "b"
key = "key-of-b"
"""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


class Server:
    """The process, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, client: httpx.Client) -> None:
        self._process = process
        self._folder = folder
        self._client = client

    def ask(self, request: dict[str, Any]) -> httpx.Response:
        return self._client.post("", json=request)

    def open(self, request: dict[str, Any]) -> contextlib.AbstractContextManager[httpx.Response]:
        return self._client.stream("POST", "", json=request, headers={"x-mine": "1"})

    def rows(self) -> list[tuple[Any, ...]]:
        """The ledger, once the server has stopped, so that nothing of it is still to be written."""
        self._process.terminate()
        assert self._process.wait(LIMIT) == 0
        with contextlib.closing(sqlite3.connect(self._folder / "deltawire.db")) as database:
            return database.execute(
                "SELECT account, model, upstream_model, outcome, used, status, code, total_tokens"
                " FROM deltawire_attempts ORDER BY started_at, number"
            ).fetchall()


@pytest.fixture(params=["asyncio", "sync", "trio"])
def server(request: pytest.FixtureRequest, upstream: Upstream, tmp_path: Path) -> Iterator[Server]:
    config = CONFIG.format(transport=request.param, url=upstream.base_url)
    (tmp_path / "deltawire.toml").write_text(config)
    command = [sys.executable, "-m", "deltawire.server.cli", "serve"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2]
        with httpx.Client(base_url=url, timeout=LIMIT, trust_env=False) as client:
            yield Server(process, tmp_path, client)
        process.terminate()


@pytest.mark.parametrize("answer", [ANSWER, TOOLS], ids=["text", "tools"])
def test_a_stream_and_a_body_are_passed_through(
    server: Server, upstream: Upstream, answer: Answer
) -> None:
    upstream.play(streamed(answer), completed(answer))
    stream = server.ask(STREAMED)
    body = server.ask(REQUEST)
    assert stream.content == b"".join(frames(answer))
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert body.content == whole(answer)
    assert body.headers["content-type"] == "application/json"
    for got in (stream, body):
        assert got.status_code == 200
        assert "x-deltawire-report" not in got.headers
    sent = [received.json for received in upstream.requests]
    assert sent == [{**STREAMED, "model": "model-1"}, {**REQUEST, "model": "model-1"}]
    settled = ("fast", "model-1", "completed", 1, 200, None, 15)
    assert server.rows() == [("a", *settled), ("b", *settled)]


def test_each_event_is_there_before_the_next(server: Server, upstream: Upstream) -> None:
    gates = [Gate() for _ in FRAMES]
    pieces: list[Piece] = []
    for frame, gate in zip(FRAMES, gates, strict=True):
        pieces += [frame, Hold(gate)]
    gates[0].set()
    upstream.play(Reply(tuple(pieces)))
    opened = iter(gates[1:])
    received = b""
    with server.open(STREAMED) as got:
        for data in got.iter_raw():
            received += data
            assert b"".join(FRAMES).startswith(received)
            if received.endswith(b"\n\n"):
                next(opened).set()
            if received.endswith(b"[DONE]\n\n"):
                break
    assert received == b"".join(FRAMES)
    assert "x-mine" not in upstream.requests[0].headers


@pytest.mark.parametrize("first", [error(429), error(500), Reply(FRAMES[:1])], ids=str)
def test_another_account_answers(server: Server, upstream: Upstream, first: Reply) -> None:
    upstream.play(first, key="key-of-a")
    upstream.play(streamed(), key="key-of-b")
    assert server.ask(STREAMED).content == b"".join(FRAMES)
    outcomes = [(row[0], row[3]) for row in server.rows()]
    assert outcomes == [
        ("a", "truncated" if first.status == 200 else "rejected"),
        ("b", "completed"),
    ]


def test_a_refusal_is_a_status(server: Server, upstream: Upstream) -> None:
    upstream.play(error(400, "Not this way.", code="odd", param="messages"))
    got = server.ask(STREAMED)
    assert got.status_code == 400
    assert (got.json()["error"]["code"], got.json()["error"]["param"]) == ("odd", "messages")
    assert server.rows() == [("a", "fast", "model-1", "rejected", 0, 400, "odd", None)]


@pytest.mark.parametrize("how", ["error", "cut"])
def test_what_fails_midway_is_told_after_the_last_whole_event(
    server: Server, upstream: Upstream, how: str
) -> None:
    passed = b"".join(FRAMES[:3])
    ends = failed() if how == "error" else FRAMES[3][:20]
    upstream.play(Reply((passed, ends)))
    got = server.ask(STREAMED).content
    (row,) = server.rows()
    if how == "error":
        assert got == passed + failed()
        assert row[3:7] == ("failed", 1, 200, "overloaded")
    else:
        last = got.removeprefix(passed)
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_truncated"
        assert row[3:7] == ("truncated", 1, 200, "upstream_truncated")


def test_who_leaves_hangs_up_on_upstream(server: Server, upstream: Upstream) -> None:
    upstream.play(Reply((*FRAMES[:3], Hold(Gate()))))
    with server.open(STREAMED) as got:
        assert next(got.iter_raw()).startswith(FRAMES[0])
    assert upstream.requests[0].left.wait(LIMIT)
