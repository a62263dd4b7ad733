"""Environments of their own for real clients, made once and kept in `.clients`.

Clients do not agree on the versions of what they stand on, so that they cannot share one. Where one
cannot be made, the tests that need it are skipped and say why.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = Path(os.environ.get("DELTAWIRE_CLIENTS", ROOT / ".clients"))
SCRIPTS = Path(__file__).parent / "real_clients"


def python_with(*requirements: str) -> str:
    """A Python interpreter of an environment that has the requirements."""
    home = _home("python", sys.version + "\n".join(requirements))
    interpreter = home / "bin" / "python"
    if not (home / "made").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(home)])
        _run([str(interpreter), "-m", "pip", "install", "--quiet", *requirements])
        (home / "made").touch()
    return str(interpreter)


def node_with(manifest: Path) -> tuple[str, Path]:
    """The command `node`, and a folder with what the manifest asks for."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    home = _home("node", manifest.read_text())
    if not (home / "made").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(manifest, home / "package.json")
        _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(home)])
        (home / "made").touch()
    return node, home


def _home(kind: str, needs: str) -> Path:
    return CLIENTS / f"{kind}-{hashlib.sha256(needs.encode()).hexdigest()[:12]}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"cannot be installed: {' '.join(command[-3:])}: {' '.join(last)}")
