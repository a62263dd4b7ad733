"""What else reads such streams, each in an environment of its own: `benchmarks/.peers/NAME`.

`python -m benchmarks peers install` makes them. They do not agree with deltawire, or with each
other, on the versions of what they stand on. Each peer does less than `translate` does: httpx-sse
only splits events, openai-python makes typed Responses events of them, langchain-openai makes
chunks of its own of those, LiteLLM's bridge turns the JSON of events into chat chunks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

HOME: Final = Path(__file__).parent / ".peers"
WORKER: Final = Path(__file__).with_name("peer_worker.py")

# Environment: what pip is asked for.
ENVIRONMENTS: Final = {
    "httpx-sse": ["httpx-sse", "httpx"],
    "openai": ["openai"],
    "langchain-openai": ["langchain-openai"],
    "starlette": ["starlette", "httpx", "uvicorn[standard]"],
    "litellm": ["litellm[proxy]"],
}
# Row of a table: the worker's peer, its environment.
IN_PROCESS: Final = {
    "httpx-sse (events only)": ("httpx-sse", "httpx-sse"),
    "openai-python (typed events)": ("openai", "openai"),
    "langchain-openai (its own chunks)": ("langchain-openai", "langchain-openai"),
    "LiteLLM's bridge (JSON to chunks)": ("litellm-bridge", "litellm"),
    "LiteLLM's SDK (bytes to chunks)": ("litellm-sdk", "litellm"),
}


class Missing(Exception):
    """A peer cannot be run; the message is what its row says."""


def program(environment: str, name: str = "python") -> Path:
    """A program of an environment. Raises Missing where it is not installed."""
    found = HOME / environment / "bin" / name
    if not (HOME / environment / "made").exists() or not found.exists():
        raise Missing("not installed")
    return found


def nginx() -> str:
    """The command nginx, which Debian puts where users do not look."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing("not installed")
    return found


def install() -> int:
    """Make what is not there yet; the exit status is 1 if anything is still missing."""
    failed = [name for name, needs in ENVIRONMENTS.items() if not _made(name, needs)]
    try:
        print(f"nginx: {nginx()}")
    except Missing:
        if os.geteuid() == 0 and shutil.which("apt-get"):
            subprocess.run(["apt-get", "update", "-q"], check=False)
            subprocess.run(["apt-get", "install", "-q", "-y", "nginx-light"], check=False)
        else:
            print("nginx: apt-get install nginx-light, as root")
        failed += [] if shutil.which("nginx", path="/usr/sbin:/usr/bin") else ["nginx"]
    for name in failed:
        print(f"{name}: could not be installed", file=sys.stderr)
    return 1 if failed else 0


def _made(name: str, needs: list[str]) -> bool:
    home = HOME / name
    mark = home / "made"
    if mark.exists() and mark.read_text() == " ".join(needs):
        print(f"{name}: is there")
        return True
    print(f"{name}: pip install {' '.join(needs)}", flush=True)
    venv = [sys.executable, "-m", "venv", str(home)]
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *needs]
    if any(subprocess.run(command, check=False).returncode for command in (venv, pip)):
        return False
    mark.write_text(" ".join(needs))
    return True


class Peer:
    """One peer in a process of its own, which reads these frames whenever it is told to.

    Raises Missing where it is not installed or cannot be started.
    """

    def __init__(self, name: str, environment: str, frames: list[bytes]) -> None:
        python = program(environment)
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "frames.json"
        file.write_text(json.dumps([frame.decode() for frame in frames]))
        self._said = (Path(self._folder.name) / "stderr").open("w+")
        self._process = subprocess.Popen(
            [str(python), str(WORKER), name, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.version = self._answer()
        except Missing:
            self.close()
            raise

    def run(self) -> int:
        """ns of CPU of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise Missing(f"failed: {' '.join(self._said.read().splitlines()[-1:])}")
        return line.strip()

    def close(self) -> None:
        with self._process:
            self._process.kill()
        self._said.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
