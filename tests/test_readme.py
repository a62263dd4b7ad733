"""Every command and example of the README runs.

`./run` and `./test` are run by CI rather than here: the one installs the package, the other runs
these tests.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from deltawire.stream import TRANSITIONS, State
from deltawire.testing import Answer, write_stream
from wire import parsed

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, body) for kind, body in FENCED.findall(TEXT) if kind != "mermaid"]
EXAMPLES = [
    (body, BLOCKS[at + 1][1] if BLOCKS[at + 1 : at + 2] and BLOCKS[at + 1][0] == "text" else None)
    for at, (kind, body) in enumerate(BLOCKS)
    if kind == "python"
]


class Upstream(BaseHTTPRequestHandler):
    """A real HTTP server that answers whatever it is asked with one stream."""

    def do_POST(self) -> None:
        # What is left unread at the end would reset the connection.
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(write_stream(Answer("Hello there.")))

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(upstream: str) -> Iterator[str]:
    """The URL of the server as the README starts it, in front of that upstream."""
    _, _, shell = [body for kind, body in BLOCKS if kind == "sh"]
    command = shell.replace("https://api.openai.com", f"http://{upstream}").replace("8080", "0")
    program, *arguments = command.split()
    assert program == "deltawire"
    process = subprocess.Popen(
        [sys.executable, "-m", "deltawire.server.cli", *arguments, "--no-ledger"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[2].removesuffix("/v1/chat/completions")
        process.terminate()


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_examples_run_and_print_what_they_say(
    code: str, printed: str | None, upstream: str, server: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"UPSTREAM": upstream, "SERVER": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    if printed is not None:
        assert result.stdout == printed
    elif "SERVER" in code:
        assert result.stdout == "Hello there."
    elif "UPSTREAM" in code:
        *chunks, end = parsed(result.stdout.encode())
        said = [choice["delta"].get("content", "") for each in chunks for choice in each["choices"]]
        assert ("".join(said), end) == ("Hello there.", "[DONE]")


def test_the_example_with_h11_is_the_one_that_is_tested() -> None:
    assert (README.parent / "examples" / "h11_socket.py").read_text() in [
        body for kind, body in BLOCKS if kind == "python"
    ]


def test_the_shell_example_names_a_command_and_options_that_exist() -> None:
    shell, _, _ = [body for kind, body in BLOCKS if kind == "sh"]
    command = shell.rpartition("| ")[2].split()
    assert command[0] == "deltawire"
    result = subprocess.run(
        [sys.executable, "-m", "deltawire.server.cli", *command[1:]],
        input=write_stream(Answer("Hello there.")),
        capture_output=True,
        check=True,
    )
    assert result.stdout == b"Hello there.\n"


def test_the_shell_example_of_a_request_does_what_it_says(tmp_path: Path) -> None:
    _, shell, _ = [body for kind, body in BLOCKS if kind == "sh"]
    command = shell.partition(" |")[0].split()
    assert command[0] == "deltawire"
    (tmp_path / "chat.json").write_text(
        '{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    )
    result = subprocess.run(
        [sys.executable, "-m", "deltawire.server.cli", *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert json.loads(result.stdout) == {
        "model": "m",
        "input": [{"role": "user", "content": "x"}],
        "store": False,
    }


def test_the_commands_that_need_no_key_answer() -> None:
    (block,) = [body for kind, body in BLOCKS if kind == "bash"]
    simulate, serve, curl = [shlex.split(line) for line in block.splitlines()]

    def start(command: list[str], upstream: str = "") -> subprocess.Popen[str]:
        assert command[0] == "deltawire"
        arguments = ["0" if each in ("8080", "8081") else each for each in command[1:]]
        arguments = [upstream if each.startswith("http:") else each for each in arguments]
        return subprocess.Popen(
            [sys.executable, "-m", "deltawire.server.cli", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )

    def url(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().split()[2]

    with start(simulate) as simulated:
        try:
            with start(serve, url(simulated)) as server:
                try:
                    assert curl[:2] == ["curl", "-N"]
                    answer = httpx.post(
                        url(server), json=json.loads(curl[-1]), trust_env=False, timeout=60
                    )
                finally:
                    server.terminate()
        finally:
            simulated.terminate()
    *chunks, end = parsed(answer.content)
    said = [choice["delta"].get("content", "") for each in chunks for choice in each["choices"]]
    assert ("".join(said)[:18], end) == ("A delta is what ha", "[DONE]")


def test_the_commands_are_the_two_scripts() -> None:
    commands = [line for kind, body in BLOCKS if kind == "console" for line in body.splitlines()]
    assert commands == ["$ ./run", "$ ./test"]
    for command in commands:
        assert (README.parent / command.removeprefix("$ ./")).stat().st_mode & 0o111


def states() -> str:
    """The state table as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.IDLE.name}"]
    lines += [
        f"    {before.name} --> {after.name}: {signal.value}"
        for before, row in TRANSITIONS.items()
        for signal, after in row.items()
    ]
    return "\n".join([*lines, "```"])


def test_the_diagram_is_that_of_the_table() -> None:
    drawn = TEXT.partition("<!-- states -->\n")[2].partition("\n<!-- /states -->")[0]
    assert drawn == states()
