"""The limit of file descriptors that `deltawire serve` gives itself where it finds a low one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx
import pytest

from deltawire.server.descriptors import EACH, FURTHER
from test_serve import TRANSPORTS, Server, serving
from upstream import LIMIT

pytest.importorskip("resource", reason="only POSIX has such a limit")

FILE: Final = """
[server]
port = 0
transport = "{transport}"
[limits]
connections = {connections}
[ledger]
url = ""
[[upstreams]]
name = "here"
base_url = "http://127.0.0.1:1"
accounts = [{{ name = "mine" }}]
"""
SCRIPT: Final = """
import resource, sys
from deltawire.server.descriptors import raise_limit
said = raise_limit(int(sys.argv[1]))
print(*resource.getrlimit(resource.RLIMIT_NOFILE), said, sep="|")
"""


def limited(*options: str) -> list[str]:
    """A command with such limits, up to the command itself."""
    limits = " && ".join(f"ulimit {option}" for option in options)
    return ["sh", "-c", f'{limits} && exec "$@"', "sh"]


def needed(connections: int) -> int:
    return EACH * connections + FURTHER


def configure(folder: Path, connections: int, transport: str = "asyncio") -> None:
    text = FILE.format(transport=transport, connections=connections)
    (folder / "deltawire.toml").write_text(text)


def told(server: Server) -> list[str]:
    """The lines up to the one that a reload ends with, which it is told to do."""
    server.process.send_signal(signal.SIGHUP)
    lines: list[str] = []
    assert server.process.stderr is not None
    for line in server.process.stderr:
        if "serving by the configuration as it is now" in line:
            return lines
        lines.append(line)
    raise AssertionError(lines)


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (64, 1000, 100, needed(100)),
        (64, needed(100), 100, needed(100)),
        (needed(100), 1000, 100, needed(100)),
        (900, 1000, 100, 900),
        (64, 200, 100, 200),
        (200, 200, 100, 200),
    ],
)
def test_it_is_raised_as_far_as_needed_and_never_lowered(
    soft: int, hard: int, connections: int, raised: int
) -> None:
    done = subprocess.run(
        [*limited(f"-Sn {soft}", f"-Hn {hard}"), sys.executable, "-c", SCRIPT, str(connections)],
        capture_output=True,
        text=True,
        check=True,
    )
    now, highest, said = done.stdout.rstrip("\n").split("|")
    assert (int(now), int(highest)) == (raised, hard)
    if raised >= needed(connections):
        assert said == "None"
    else:
        assert f"limits.connections is {connections}," in said
        assert f" {needed(connections)} file descriptors" in said
        assert f" may have {raised}:" in said


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_as_many_are_served_as_are_allowed(transport: str, tmp_path: Path) -> None:
    configure(tmp_path, 100, transport)
    with (
        serving(tmp_path, before=limited("-Sn 64"), stderr=subprocess.PIPE) as server,
        contextlib.ExitStack() as clients,
    ):
        verify = httpx.create_ssl_context()
        for _ in range(100):
            client = httpx.Client(base_url=server.url, timeout=LIMIT, verify=verify)
            assert clients.enter_context(client).get("/version").status_code == 200
        assert told(server) == []


def test_what_cannot_be_enough_is_said_once(tmp_path: Path) -> None:
    configure(tmp_path, 10)
    with serving(tmp_path, before=limited("-n 200"), stderr=subprocess.PIPE) as server:
        assert told(server) == []
        configure(tmp_path, 1000)
        (line,) = told(server)
        assert "deltawire.server WARNING limits.connections is 1000, " in line
        assert httpx.get(f"{server.url}/version").status_code == 200
    with serving(tmp_path, before=limited("-n 200"), stderr=subprocess.PIPE) as server:
        assert server.process.stderr is not None
        assert "limits.connections is 1000, " in server.process.stderr.readline()
        server.stop()
        assert server.process.stderr.read() == ""
