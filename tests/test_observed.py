"""What the server tells of itself: the access log, `/metrics`, and SIGHUP, on each transport."""

from __future__ import annotations

import json
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from deltawire.attempts import Attempt
from deltawire.server.keys import hash_key
from deltawire.server.records import whole_duration
from deltawire.testing import Answer
from upstream import LIMIT, Gate, Hold, Reply, Upstream, error, stream

TRANSPORTS = ["asyncio", "sync", "trio"]
SECRET = "sk-account-5f1e"
CLIENT_KEY = "dw-client-77aa"
CONTENT = "the quick brown fox"
CHAT = "/v1/chat/completions"


class Server:
    """`deltawire serve` as a process; every line that it says can be waited for."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deltawire.server.cli", "serve"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.line("deltawire serves").split()[2].removesuffix(CHAT)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            for line in out:
                self._lines.put(line.rstrip("\n"))

    def line(self, text: str) -> str:
        """The next line that has the text."""
        while True:
            line = self._lines.get(timeout=LIMIT)
            self.said.append(line)
            if text in line:
                return line

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT) == 0
        self._reader.join()
        while not self._lines.empty():
            self.said.append(self._lines.get())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as served:
        served.play(stream(Answer("Hello there.")))
        yield served


def configuration(upstream: Upstream, transport: str, *, log: str = "human", more: str = "") -> str:
    return f"""
        {more}
        [server]
        port = 0
        transport = "{transport}"
        log = "{log}"
        [ledger]
        url = ""
        [[clients]]
        name = "ann"
        key_hash = "{hash_key(CLIENT_KEY)}"
        [[upstreams]]
        name = "here"
        base_url = "{upstream.base_url}"
        models = ["gpt-*", "said twice"]
        accounts = [
            {{ name = "first", key = "{SECRET}-1" }},
            {{ name = "second", key = "{SECRET}-2" }},
        ]
        """


Start = Callable[[str], Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server with that configuration."""
    servers: list[Server] = []

    def started(text: str) -> Server:
        (tmp_path / "deltawire.toml").write_text(text)
        servers.append(Server(tmp_path))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


def body(model: str = "gpt-5", *, streamed: bool = True) -> dict[str, Any]:
    return {
        "model": model,
        "stream": streamed,
        "messages": [{"role": "user", "content": CONTENT}],
    }


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(
        base_url=server.url, timeout=LIMIT, headers={"authorization": f"Bearer {CLIENT_KEY}"}
    )


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_lost_is_in_a_header(
    transport: str, streamed: bool, upstream: Upstream, start: Start
) -> None:
    server = start(configuration(upstream, transport))
    with client_of(server) as client:
        got = client.post(CHAT, json={**body(streamed=streamed), "seed": 1})
        assert got.headers["x-deltawire-report"] == "dropped seed"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_request_is_a_line_for_people(
    transport: str, upstream: Upstream, start: Start
) -> None:
    upstream.play(error(429, "Slow down.", code="slow_down"), key=f"{SECRET}-1")
    server = start(configuration(upstream, transport))
    with client_of(server) as client:
        got = client.post(CHAT, json=body())
        line = server.line(got.headers["x-request-id"])
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 200 POST /v1/chat/completions \d+\.\d{3}s"
            r" gpt-5 here/first=rejected\(slow_down\) here/second=completed first=\d+\.\d{3}s"
            r" tokens=\d+\+\d+ client=ann from=127\.0\.0\.1 req_[0-9a-f]{32}",
            line,
        )
        got = client.get("/v1/models/none?key=hidden")
        line = server.line(got.headers["x-request-id"])
        assert re.search(r" 404 GET /v1/models/none \d+\.\d{3}s ", line)
        got = client.post(CHAT, json=body("said twice\n200 POST"))
        assert got.status_code == 404
        # What could be taken for a line, or for a word of one, cannot be.
        assert "\n" not in server.line(got.headers["x-request-id"])
        got = client.post(CHAT, json=body("said twice"))
        assert ' "said twice" here/' in server.line(got.headers["x-request-id"])
    server.stop()
    everything = "\n".join(server.said)
    for hidden in (SECRET, CLIENT_KEY, CONTENT, "Hello", "hidden"):
        assert hidden not in everything


def test_no_part_of_a_request_takes_longer_than_the_whole() -> None:
    """The event loop's clock, which attempts have, may go in steps of a millisecond."""
    first = Attempt(number=1, account="a", model="m", started=7.0, duration=0.001)
    second = Attempt(number=2, account="b", model="m", started=7.001, duration=0.003)
    assert whole_duration(0.0029, []) == 0.0029
    assert whole_duration(0.0009, [first]) == first.duration
    assert whole_duration(0.0029, [first, second]) == pytest.approx(0.004)
    assert whole_duration(0.5, [first, second]) == 0.5
    unsettled = Attempt(number=1, account="a", model="m", started=7.0)
    assert whole_duration(0.0029, [unsettled]) == 0.0029


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_request_is_an_object(transport: str, upstream: Upstream, start: Start) -> None:
    server = start(configuration(upstream, transport, log="json"))
    with client_of(server) as client:
        got = client.post(CHAT, json=body(streamed=False))
        line = json.loads(server.line(got.headers["x-request-id"]))
        usage = got.json()["usage"]
        refused = client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        other = json.loads(server.line(refused.headers["x-request-id"]))
    (attempt,) = line["attempts"]
    assert 0 < line["first_event"] <= line["duration"]
    assert attempt["duration"] <= line["duration"]
    assert {key: line[key] for key in ("method", "path", "status", "model", "client", "peer")} == {
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "model": "gpt-5",
        "client": "ann",
        "peer": "127.0.0.1",
    }
    assert (line["upstream"], line["stream"], "left" in line) == ("here", False, False)
    assert (attempt["account"], attempt["outcome"], attempt["status"]) == (
        "first",
        "completed",
        200,
    )
    assert attempt["usage"]["total_tokens"] == usage["total_tokens"]
    assert (other["status"], "attempts" in other) == (400, False)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_left_is_in_the_line_and_in_the_metrics(
    transport: str, upstream: Upstream, start: Start
) -> None:
    pieces = stream(Answer("Hello there.")).pieces
    upstream.play(Reply((*pieces[:5], Hold(Gate()), *pieces[5:])), model="gpt-held")
    upstream.play(Reply((Hold(Gate()),)), model="gpt-silent")
    server = start(configuration(upstream, transport, log="json"))
    with client_of(server) as client:
        with client.stream("POST", CHAT, json=body("gpt-held")) as got:
            frames = got.iter_raw()
            assert b'"role":"assistant"' in next(frames)
            assert value(client, "deltawire_streams_open") == 1
            assert value(client, "deltawire_connections_open") == 2
        line = json.loads(server.line(got.headers["x-request-id"]))
        assert (line["left"], line["status"]) == (True, 200)
        assert line["attempts"][0]["outcome"] == "cancelled"
        leaving = httpx.Timeout(LIMIT, read=0.2)
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body("gpt-silent"), timeout=leaving)
        line = json.loads(server.line("gpt-silent"))
        assert (line["left"], line["status"]) == (True, 499)
        assert value(client, "deltawire_clients_left_total", upstream="here") == 2
        assert value(client, "deltawire_streams_open") == 0


def value(client: httpx.Client, name: str, **labels: str) -> float | None:
    got = client.get("/metrics")
    assert got.status_code == 200
    assert got.headers["content-type"].startswith("text/plain")
    for family in text_string_to_metric_families(got.text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_metrics_count_what_was_served(transport: str, upstream: Upstream, start: Start) -> None:
    upstream.play(error(429, "Slow down."), key=f"{SECRET}-1")
    server = start(configuration(upstream, transport))
    with client_of(server) as client:
        events = client.post(CHAT, json=body()).text.count("data: ")
        usage = client.post(CHAT, json=body(streamed=False)).json()["usage"]
        client.get("/nothing/at/all")
        client.get("/nothing/else")
        for name, labels, expected in [
            ("requests_total", {"route": CHAT, "status": "200"}, 2),
            ("requests_total", {"route": "other", "status": "404"}, 2),
            ("attempts_total", {"upstream": "here", "outcome": "rejected"}, 1),
            ("attempts_total", {"upstream": "here", "outcome": "completed"}, 2),
            ("events_total", {"upstream": "here"}, events),
            ("tokens_total", {"kind": "prompt"}, 2 * usage["prompt_tokens"]),
            ("tokens_total", {"kind": "completion"}, 2 * usage["completion_tokens"]),
            ("first_event_seconds_count", {"upstream": "here"}, 2),
            ("chat_duration_seconds_count", {"upstream": "here"}, 2),
            ("streams_open", {}, 0),
        ]:
            assert value(client, f"deltawire_{name}", **labels) == expected, name
        everything = client.get("/metrics").text
    for hidden in (SECRET, CLIENT_KEY, "gpt-5", "nothing"):
        assert hidden not in everything


@pytest.mark.parametrize(
    ("setting", "statuses"), [("open", (200, 200)), ("clients", (401, 200)), ("none", (404, 404))]
)
def test_who_may_ask_for_metrics(
    setting: str, statuses: tuple[int, int], upstream: Upstream, start: Start
) -> None:
    text = configuration(upstream, "asyncio").replace("log =", f'metrics = "{setting}"\nlog =')
    server = start(text)
    with client_of(server) as client:
        anybody = httpx.get(f"{server.url}/metrics")
        assert (anybody.status_code, client.get("/metrics").status_code) == statuses


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reload_changes_what_is_new_and_leaves_what_runs(
    transport: str, upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    gate = Gate()
    sent = stream(Answer("Hello there.")).pieces
    upstream.play(Reply((*sent[:5], Hold(gate), *sent[5:])), model="gpt-held")
    text = configuration(upstream, transport)
    server = start(text)
    with Upstream() as other, client_of(server) as client:
        other.play(stream(Answer("From the other one.")))
        with client.stream("POST", CHAT, json=body("gpt-held")) as got:
            pieces = got.iter_raw()
            began = next(pieces)
            changed = text.replace(upstream.base_url, other.base_url).replace(
                "port = 0", "port = 1"
            )
            (tmp_path / "deltawire.toml").write_text(changed)
            server.process.send_signal(signal.SIGHUP)
            server.line("server.port was changed, which takes a restart")
            server.line("serving by the configuration as it is now")
            assert "From the other one." in client.post(CHAT, json=body(streamed=False)).text
            gate.set()
            whole = (began + b"".join(pieces)).decode()
        said = "".join(
            json.loads(each.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
            for each in whole.split("\n\n")[:-2]
        )
        assert said == "Hello there."
        # The connections to what is no longer asked are given up.
        upstream.wait_closed()
        assert not upstream.requests[1:]
    server.stop()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_reload_that_is_wrong_changes_nothing(
    transport: str, upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    text = configuration(upstream, transport)
    server = start(text)
    (tmp_path / "deltawire.toml").write_text(text.replace("[server]", "[serve]"))
    server.process.send_signal(signal.SIGHUP)
    server.line("the configuration stays as it was: deltawire.toml: serve: ")
    with client_of(server) as client:
        assert client.post(CHAT, json=body(streamed=False)).status_code == 200
    server.stop()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_certificate_is_read_again(
    transport: str, upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def put(name: str) -> None:
        made = authority.issue_cert("localhost", common_name=name)
        made.cert_chain_pems[0].write_to_path(certificate)
        made.private_key_pem.write_to_path(key)

    def shown() -> str:
        port = int(server.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port), LIMIT) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            subject: Any = (client.getpeercert() or {})["subject"]
            return str(dict(pair for (pair,) in subject)["commonName"])

    put("first")
    text = configuration(upstream, transport).replace(
        "port = 0", f'port = 0\ntls_cert = "{certificate}"\ntls_key = "{key}"'
    )
    server = start(text)
    assert shown() == "first"
    key.write_bytes(authority.issue_cert("localhost").private_key_pem.bytes())
    server.process.send_signal(signal.SIGHUP)
    server.line("the configuration stays as it was: server.tls_cert: cannot be loaded: ")
    assert shown() == "first"
    put("second")
    server.process.send_signal(signal.SIGHUP)
    server.line("serving by the configuration as it is now")
    assert shown() == "second"
    server.stop()


def test_an_upstream_that_stays_keeps_its_connection(
    upstream: Upstream, start: Start, tmp_path: Path
) -> None:
    text = configuration(upstream, "asyncio")
    server = start(text)
    with client_of(server) as client:
        assert client.post(CHAT, json=body()).status_code == 200
        (tmp_path / "deltawire.toml").write_text(text.replace('name = "ann"', 'name = "eve"'))
        server.process.send_signal(signal.SIGHUP)
        server.line("serving by the configuration as it is now")
        assert client.post(CHAT, json=body()).status_code == 200
        server.line("client=eve")
    assert upstream.connections == 1
    server.stop()


def test_a_log_that_nobody_reads_holds_nothing_up(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "deltawire.toml").write_text(configuration(upstream, "asyncio"))
    process = subprocess.Popen(
        [sys.executable, "-m", "deltawire.server.cli", "serve"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split()[2].removesuffix(CHAT)
        with httpx.Client(base_url=url, timeout=LIMIT) as client:
            # More than a pipe holds.
            for _ in range(1000):
                assert client.get(f"/{'a' * 70}").status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
