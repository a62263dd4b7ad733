"""Processes of a benchmark: what they cost, and lines to and from them. Linux only."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

# `python -m benchmarks` works from here.
ROOT: Final = Path(__file__).parents[1]
# Clients, upstream and server hold both ends of 1,000 streams and more.
FILES: Final = 65536
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# A clock of the CPU time of any process, as `clock_getcpuclockid` makes it.
_CPU_CLOCK: Final = 2


def raise_file_limit() -> None:
    """For this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            # A thread may end meanwhile.
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def cpu(pid: int) -> int:
    """ns of CPU, user and system, of the process and all that run below it, threads that ended too.

    The same as utime + stime of `/proc/PID/stat`, which count in ticks of 10 ms.
    """
    return sum(time.clock_gettime_ns((~each << 3) | _CPU_CLOCK) for each in tree(pid))


def resident(pid: int) -> int:
    """Bytes of memory of the process and all that run below it."""
    return sum(
        int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE for each in tree(pid)
    )


def environment(**more: str) -> dict[str, str]:
    """This one without proxies: everything here is on this machine."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **more}


class Failed(Exception):
    """A process or a stream is not what it should be."""


class Program:
    """A process that is killed at the end; what it says on standard error is kept in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environ: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self._log = log
        with log.open("w") as said:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environ or environment(),
                cwd=cwd,
            )
        self.pid: Final = self._process.pid

    def read(self) -> str:
        """The next line. Raises Failed if there is none."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            self._process.wait()
            raise Failed(self.complaint())
        return line

    def write(self, line: str) -> None:
        pipe = _pipe(self._process.stdin)
        pipe.write(line + "\n")
        pipe.flush()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def complaint(self) -> str:
        """The last that it said."""
        return " ".join(self._log.read_text().splitlines()[-2:]) or "said nothing"

    def close(self) -> None:
        below = tree(self.pid)[1:] if self.is_running() else []
        with contextlib.suppress(BrokenPipeError), self._process:
            self._process.kill()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


class Upstream(Program):
    """`benchmarks.upstream`."""

    def __init__(self, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.upstream"], folder / "upstream.log")
        self.port: Final = int(self.read())

    def go(self) -> None:
        self.write("")
        self.read()


class Load(Program):
    """`benchmarks.load`."""

    def __init__(self, folder: Path) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.load"], folder / "load.log")

    def order(self, do: str, **what: Any) -> None:
        self.write(json.dumps({"do": do, **what}))

    def answer(self) -> dict[str, Any]:
        """Raises Failed if a stream was not what it should be."""
        said: dict[str, Any] = json.loads(self.read())
        if "error" in said:
            raise Failed(said["error"])
        return said

    def do(self, do: str, **what: Any) -> dict[str, Any]:
        self.order(do, **what)
        return self.answer()


@contextlib.contextmanager
def bench(folder: Path) -> Iterator[tuple[Upstream, Load]]:
    """An upstream and its clients."""
    raise_file_limit()
    with Upstream(folder) as upstream, Load(folder) as load:
        yield upstream, load
