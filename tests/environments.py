"""Environments of their own for real clients, made once and kept in `.clients`.

Clients do not agree with our own tools on the versions of what they stand on. Where an environment
cannot be made, the tests that need it are skipped and say why.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
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
# One environment: these agree, and to install them is most of what they cost. What they show is
# compared word for word, so that a new minor version is taken in by hand.
PYTHON_CLIENTS = (
    "langchain-openai~=1.7.4",
    "openai-agents~=0.24.0",
    "pydantic-ai-slim[openai]~=2.68.0",
)


def client_program(script: str) -> list[str]:
    """The command that runs a program of `real_clients` with the client that it is for."""
    path = SCRIPTS / script
    if path.suffix == ".mjs":
        node, home = node_with(SCRIPTS / "package.json")
        # Node looks for packages beside the script.
        for each in SCRIPTS.glob("*.mjs"):
            _copy(each, home)
        return [node, str(home / script)]
    if script.startswith("openai_"):
        return [sys.executable, str(path)]
    return [python_with(*PYTHON_CLIENTS), str(path)]


def client_version(script: str, package: str) -> str:
    """Which version of the package the program runs with."""
    command = client_program(script)
    if script.endswith(".mjs"):
        manifest = Path(command[1]).parent / "node_modules" / package / "package.json"
        return str(json.loads(manifest.read_text())["version"])
    asked = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run([command[0], "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _copy(file: Path, folder: Path) -> None:
    """While another process may be reading the copy of a moment ago."""
    made = folder / f"{file.name}.{os.getpid()}"
    shutil.copy(file, made)
    made.replace(folder / file.name)


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
