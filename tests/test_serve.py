"""`deltawire serve` as a user starts it: a process of its own, a real upstream, a real client."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deltawire.testing import Answer
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

DELTAWIRE = [sys.executable, "-m", "deltawire.server.cli"]
TRANSPORTS = ["asyncio", "sync", "trio"]
REQUEST = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as served:
        served.play(stream(Answer("Hello there.")))
        yield served


class Server:
    """One process; `url` is where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.said = process.stdout.readline()
        self.url = self.said.split()[2].removesuffix("/v1/chat/completions")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT)


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, before: Sequence[str] = (), stderr: int | None = None
) -> Iterator[Server]:
    process = subprocess.Popen(
        [*before, *DELTAWIRE, "serve", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()


def usage(folder: Path, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [*DELTAWIRE, "usage", "--json", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_command_serves_and_what_it_served_is_in_the_ledger(
    transport: str, upstream: Upstream, tmp_path: Path
) -> None:
    arguments = ("--upstream", upstream.base_url, "--port", "0", "--transport", transport)
    with serving(tmp_path, *arguments) as server, httpx.Client(base_url=server.url) as client:
        assert server.said.rstrip().endswith(f"by {transport}")
        with client.stream("POST", "/v1/chat/completions", json={**REQUEST, "stream": True}) as got:
            frames = got.read().decode()
        whole = client.post("/v1/chat/completions", json=REQUEST).json()
        assert client.get("/health").json()["status"] == "ok"
        assert server.stop() == 0
    assert frames.startswith("data: {")
    assert frames.endswith('"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    assert whole["choices"][0]["message"]["content"] == "Hello there."
    (row,) = usage(tmp_path, "--by", "model")
    assert (row["key"], row["attempts"], row["used"], row["open"]) == ("gpt-5", 2, 2, 0)
    assert row["total_tokens"] == 2 * whole["usage"]["total_tokens"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stop_lets_a_running_answer_finish(
    transport: str, upstream: Upstream, tmp_path: Path
) -> None:
    gate = Gate()
    first, *rest = stream(Answer("Hello there.")).pieces
    pieces = (first, *rest[:3], Hold(gate), *rest[3:])
    upstream.play(Reply(pieces))
    arguments = ("--upstream", upstream.base_url, "--port", "0", "--transport", transport)
    with (
        serving(tmp_path, *arguments, "--no-ledger") as server,
        httpx.Client(base_url=server.url, timeout=LIMIT) as client,
        client.stream("POST", "/v1/chat/completions", json={**REQUEST, "stream": True}) as got,
    ):
        lines = got.iter_raw()
        beginning = next(lines)
        server.process.send_signal(signal.SIGINT)
        gate.set()
        frames = beginning + b"".join(lines)
        assert server.process.wait(LIMIT) == 0
    assert frames.endswith(b"data: [DONE]\n\n")
    assert not (tmp_path / "deltawire.db").exists()


def test_after_a_kill_the_next_start_says_what_was_interrupted(
    upstream: Upstream, tmp_path: Path
) -> None:
    upstream.play(Reply((Hold(Gate()),)), model="stalled")
    arguments = ("--upstream", upstream.base_url, "--port", "0")
    request = {**REQUEST, "model": "stalled", "stream": True}
    with serving(tmp_path, *arguments) as server, ThreadPoolExecutor() as pool:
        url = f"{server.url}/v1/chat/completions"
        asked = pool.submit(httpx.post, url, json=request, timeout=LIMIT)
        upstream.wait_for_requests(1)
        server.stop(signal.SIGKILL)
        assert isinstance(asked.exception(LIMIT), httpx.TransportError)
    assert outcomes(tmp_path) == ["open"]
    with serving(tmp_path, *arguments) as server:
        assert server.stop() == 0
    assert outcomes(tmp_path) == ["interrupted"]


def outcomes(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "deltawire.db")) as database:
        return [row[0] for row in database.execute("SELECT outcome FROM deltawire_attempts")]


def test_a_file_says_it_all(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    (tmp_path / "deltawire.toml").write_text(
        f"""
        [server]
        port = 0
        [ledger]
        url = ""
        [[upstreams]]
        name = "here"
        base_url = "{upstream.base_url}"
        models = ["gpt-5"]
        aliases = {{ fast = "gpt-5" }}
        [[upstreams.accounts]]
        name = "mine"
        key_file = "key"
        """
    )
    upstream.play(error(429, "Slow down.", headers=(("Retry-After", "7"),)), key="other")
    with serving(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post("/v1/chat/completions", json={**REQUEST, "model": "fast"})
        unknown = client.post("/v1/chat/completions", json={**REQUEST, "model": "slow"})
        models = client.get("/v1/models").json()
        assert server.stop() == 0
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there."
    assert (upstream.requests[0].key, upstream.requests[0].model) == ("sk-secret", "gpt-5")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert [each["id"] for each in models["data"]] == ["fast", "gpt-5"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--upstream", "api.openai.com"], "--upstream"),
        (["--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0"], "0.0.0.0"),
        (["--upstream", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH"], "NO_SUCH"),
        (["--config", "missing.toml"], "missing.toml"),
        ([], "deltawire.toml"),
    ],
)
def test_what_cannot_be_served_is_named(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*DELTAWIRE, "serve", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named() -> None:
    script = (
        "import sys; sys.modules['h11'] = None; from deltawire.server.cli import main;"
        "sys.exit(main(['serve', '--upstream', 'http://127.0.0.1:1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        done.stderr == "deltawire: serve needs the package 'h11': pip install 'deltawire[server]'\n"
    )
