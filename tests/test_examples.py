"""Every example runs, prints what has arrived when it has arrived, and closes what it opened.

Upstream is a real HTTP server which keeps the second half of its answer until the test has read
from the example all that the first half makes. The halves are cut in the middle of an event, and
in some framings in the middle of an HTTP chunk, so that what waits for more than there is waits
for ever. What an example leaves open is a warning, which is an error; where the library says
nothing of it, upstream sees that the connection is still there when the example is over.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trio.testing

from deltawire import ChatStream
from deltawire.testing import Answer, write_frames
from wire import Json, parsed

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OVER_HTTP = ("requests_stream", "urllib3_stream", "aiohttp_stream", "h11_socket")
WITHOUT_NETWORK = ("trio_memory",)
COMPRESSING = ("requests_stream", "aiohttp_stream")  # which say that they take gzip

# Seconds until upstream gives up on an example that waits for the end. Nothing that is right takes
# any of them: they are there so that what is wrong fails rather than hangs.
GIVE_UP = 60

FRAMES = write_frames(Answer("Hello there."))
HELLO = next(at for at, frame in enumerate(FRAMES) if b"output_text.delta" in frame)
CUT = len(b"".join(FRAMES[: HELLO + 1])) + 20
FIRST, REST = b"".join(FRAMES)[:CUT], b"".join(FRAMES)[CUT:]


def translated(*slices: bytes) -> bytes:
    stream = ChatStream()
    return b"".join(map(stream.translate, slices)) + stream.translate_eof()


PRINTED_FIRST = ChatStream().translate(FIRST)
PRINTED = translated(FIRST, REST)


class Framed(NamedTuple):
    """The halves of a body as they go over the wire, and the headers that say so."""

    headers: dict[str, str]
    first: bytes
    rest: bytes


def until_the_close(first: bytes, rest: bytes) -> Framed:
    return Framed({"Connection": "close"}, first, rest)


def of_known_length(first: bytes, rest: bytes) -> Framed:
    return Framed({"Content-Length": str(len(first + rest))}, first, rest)


def in_two_chunks(first: bytes, rest: bytes) -> Framed:
    return Framed({"Transfer-Encoding": "chunked"}, _chunk(first), _chunk(rest) + _chunk(b""))


def in_one_chunk(first: bytes, rest: bytes) -> Framed:
    chunk = _chunk(first + rest)
    cut = chunk.index(first) + len(first)
    return Framed({"Transfer-Encoding": "chunked"}, chunk[:cut], chunk[cut:] + _chunk(b""))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


FRAMINGS = (until_the_close, of_known_length, in_two_chunks, in_one_chunk)


class Upstream(HTTPServer):
    """Answers one request: the first half at once, the rest when it may."""

    timeout = GIVE_UP

    def __init__(self, answer: Framed, status: int) -> None:
        self.answer = answer
        self.status = status
        self.rest_may_come = threading.Event()
        self.asked: list[tuple[str, Json]] = []
        self.accepted_encoding = ""
        self.hung_up_on = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = GIVE_UP
    server: Upstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, json.loads(body)))
        self.server.accepted_encoding = self.headers.get("Accept-Encoding", "")
        headers, first, rest = self.server.answer
        self.send_response(self.server.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(first)
        if rest and self.server.rest_may_come.wait(GIVE_UP):
            self.wfile.write(rest)
        else:
            self.close_connection = True
        if self.close_connection:
            self.connection.shutdown(socket.SHUT_WR)
        self.close_connection = True
        if self.rfile.read(1) == b"":
            self.server.hung_up_on.set()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(answer: Framed, status: int = 200) -> Iterator[Upstream]:
    with Upstream(answer, status) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            yield server
        finally:
            server.rest_may_come.set()
            thread.join()


@contextlib.contextmanager
def running(
    example: str, upstream: Upstream | None = None, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"UPSTREAM": f"127.0.0.1:{upstream.server_port}"} if upstream else {}
    with subprocess.Popen(
        [sys.executable, "-W", "error", *options, str(EXAMPLES / f"{example}.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        no_end = threading.Timer(3 * GIVE_UP, child.kill)
        no_end.start()
        try:
            yield child
        finally:
            no_end.cancel()


def outcome(example: str, upstream: Upstream | None = None) -> tuple[int, bytes, str]:
    """Exit status, standard output and standard error."""
    with running(example, upstream) as child:
        out, err = child.communicate()
    return child.returncode, out, err.decode()


def check_that_nothing_waits(example: str, upstream: Upstream) -> None:
    with running(example, upstream) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        first = child.stdout.read(len(PRINTED_FIRST))
        upstream.rest_may_come.set()
        rest, errors = child.stdout.read(), child.stderr.read()
    assert (child.returncode, errors.decode()) == (0, "")
    assert (first, first + rest) == (PRINTED_FIRST, PRINTED)


def test_these_are_the_examples() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*OVER_HTTP, *WITHOUT_NETWORK}


def test_the_halves_are_of_use() -> None:
    said = [chunk["choices"][0]["delta"].get("content") for chunk in parsed(PRINTED_FIRST)]
    assert said == ["", "Hello"]
    assert PRINTED.startswith(PRINTED_FIRST)
    assert PRINTED.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("example", OVER_HTTP)
def test_what_has_arrived_is_printed_before_more_is_sent(
    example: str, framing: Callable[[bytes, bytes], Framed]
) -> None:
    with serving(framing(FIRST, REST)) as upstream:
        check_that_nothing_waits(example, upstream)
    request = {"model": "gpt-5", "input": "Hello", "stream": True}
    assert upstream.asked == [("/v1/responses", request)]
    assert ("gzip" in upstream.accepted_encoding) == (example in COMPRESSING)


@pytest.mark.parametrize("example", COMPRESSING)
def test_compression_holds_nothing_back(example: str) -> None:
    gzip = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    first = gzip.compress(FIRST) + gzip.flush(zlib.Z_SYNC_FLUSH)
    headers, *halves = in_two_chunks(first, gzip.compress(REST) + gzip.flush())
    with serving(Framed({**headers, "Content-Encoding": "gzip"}, *halves)) as upstream:
        check_that_nothing_waits(example, upstream)


@pytest.mark.parametrize("example", OVER_HTTP)
def test_an_answer_that_ends_too_soon_where_http_ends_is_a_failure_in_the_stream(
    example: str,
) -> None:
    with serving(until_the_close(FIRST, b"")) as upstream:
        assert outcome(example, upstream) == (0, translated(FIRST), "")
    assert parsed(translated(FIRST))[-1]["error"]["code"] == "upstream_truncated"


@pytest.mark.parametrize("framing", [of_known_length, in_two_chunks, in_one_chunk])
@pytest.mark.parametrize("example", OVER_HTTP)
def test_a_connection_that_breaks_is_no_finish_and_is_closed(
    example: str, framing: Callable[[bytes, bytes], Framed]
) -> None:
    headers, first, _ = framing(FIRST, REST)
    with serving(Framed(headers, first, b"")) as upstream:
        status, out, errors = outcome(example, upstream)
    if status == 0:
        assert (out, errors) == (translated(FIRST), "")
    else:
        assert (status, out) == (1, PRINTED_FIRST)
    assert "unclosed" not in errors.lower()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "broken off"])
@pytest.mark.parametrize("example", OVER_HTTP)
def test_the_connection_is_closed_by_the_example_not_by_its_exit(example: str, whole: bool) -> None:
    headers, first, last = in_two_chunks(FIRST, REST)
    with serving(Framed(headers, first, last if whole else b"")) as upstream:
        upstream.rest_may_come.set()
        # Python stays when the script is over, with all its variables, until its input ends.
        with running(example, upstream, "-i") as child:
            assert upstream.hung_up_on.wait(GIVE_UP)
            out, _ = child.communicate()
    assert out == (PRINTED if whole else PRINTED_FIRST)


@pytest.mark.parametrize("example", OVER_HTTP)
def test_a_refusal_is_a_failure_in_the_stream(example: str) -> None:
    error = {"message": "No such key.", "type": "invalid_request_error", "code": "invalid_api_key"}
    refusal = json.dumps({"error": error}).encode()
    with serving(of_known_length(refusal, b""), status=401) as upstream:
        status, out, errors = outcome(example, upstream)
    assert (status, errors) == (0, "")
    [failure] = parsed(out)
    assert failure["error"] == {**error, "param": None}


def test_the_one_without_network_prints_its_stream() -> None:
    assert outcome("trio_memory") == (0, PRINTED, "")


def test_the_one_without_network_waits_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "trio_memory.py"))

    async def play_in_halves() -> None:
        sender, receiver = trio.testing.memory_stream_one_way_pair()
        async with trio.open_nursery() as nursery, sender:
            nursery.start_soon(example["translate"], receiver)
            await sender.send_all(FIRST)
            await trio.testing.wait_all_tasks_blocked()
            assert capsys.readouterr().out.encode() == PRINTED_FIRST
            await sender.send_all(REST)

    trio.run(play_in_halves)
    assert PRINTED_FIRST + capsys.readouterr().out.encode() == PRINTED
