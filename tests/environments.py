"""Environments of their own for real clients, made once and kept in `.clients`.

Clients do not agree on the versions of what they stand on, so that they cannot share one. Where one
cannot be made, the tests that need it are skipped and say why.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = Path(os.environ.get("DELTAWIRE_CLIENTS", ROOT / ".clients"))
SCRIPTS = Path(__file__).parent / "real_clients"


def python_with(*requirements: str) -> str:
    """A Python interpreter of an environment that has the requirements."""
    home = _home("python", sys.version + "\n".join(requirements))
    interpreter = home / "bin" / "python"
    with _made_by_one(home) as is_made:
        if not is_made:
            _run([sys.executable, "-m", "venv", "--clear", str(home)])
            _run([str(interpreter), "-m", "pip", "install", "--quiet", *requirements])
    return str(interpreter)


def node_with(manifest: Path) -> tuple[str, Path]:
    """The command `node`, and a folder with what the manifest asks for."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    home = _home("node", manifest.read_text())
    with _made_by_one(home) as is_made:
        if not is_made:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            shutil.copy(manifest, home / "package.json")
            _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(home)])
    return node, home


@contextlib.contextmanager
def _made_by_one(home: Path) -> Iterator[bool]:
    """Whether the environment is there; if not, it is to be made, while other processes wait."""
    CLIENTS.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_made = (home / "made").exists()
        yield is_made
        (home / "made").touch()


def _home(kind: str, needs: str) -> Path:
    return CLIENTS / f"{kind}-{hashlib.sha256(needs.encode()).hexdigest()[:12]}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"cannot be installed: {' '.join(command[-3:])}: {' '.join(last)}")
