"""The core does no I/O: it can be embedded anywhere because it brings nothing along."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import deltawire

CORE = Path(deltawire.__file__).parent

FORBIDDEN = {
    "anyio",
    "asyncio",
    "httpx",
    "io",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "threading",
    "time",
    "trio",
    "urllib",
    "uuid",
}


def modules() -> list[Path]:
    found = [*CORE.glob("*.py"), *CORE.glob("testing/*.py")]
    assert len(found) > 15
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_the_core_imports_nothing_that_touches_the_world() -> None:
    for path in modules():
        assert not {name.split(".")[0] for name in imported(path)} & FORBIDDEN, path


def test_the_core_opens_no_files() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "exec", "eval", "input", "print"), path


def test_dependencies_point_one_way() -> None:
    for path in modules():
        above = {"deltawire.transports", "deltawire.server"}
        if path.parent == CORE:
            above.add("deltawire.testing")
        for name in imported(path):
            assert not any(name == each or name.startswith(each + ".") for each in above), path


def test_the_transports_know_nothing_of_the_server() -> None:
    transports = list(CORE.joinpath("transports").glob("*.py"))
    assert len(transports) > 5
    for path in transports:
        for name in imported(path):
            assert not name.startswith("deltawire.server"), path


def test_hypothesis_is_needed_for_the_strategies_only() -> None:
    users = {path.name for path in modules() if "hypothesis" in imported(path)}
    assert users == {"strategies.py"}


def test_importing_deltawire_brings_no_network_along() -> None:
    heavy = ["anyio", "asyncio", "httpx", "hypothesis", "socket", "ssl", "threading", "trio"]
    script = (
        "import sys; before = set(sys.modules); import deltawire, deltawire.testing;"
        f"print(sorted((set(sys.modules) - before) & set({heavy})))"
    )
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"sys_path = {sys.path}; import sys; sys.path[:] = sys_path; {script}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"
