"""`deltawire serve --workers N`: N processes share one port, and this one looks after them.

Each worker is `deltawire serve` itself, with its own transports, its own accounts and its own
instance in the ledger; the system gives each new connection to one of them (SO_REUSEPORT). What
they share is the port and, for `/metrics`, a folder of prometheus-client's. A worker that dies is
replaced; if this process dies, so do they.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from deltawire.errors import InvalidSetting
from deltawire.server.settings import ServerSettings

_log: Final = logging.getLogger("deltawire.server")

_LOST: Final = 1
# One that dies as soon as it starts would otherwise be started some ten times a second.
_PAUSE: Final = 1.0
_TICK: Final = 0.2
# Beyond the time that running answers are given.
_SPARE: Final = 10.0


class Worker:
    """What a worker is told by the process that looks after it, as one word of its command line.

    port: of all workers. ready: a pipe to write to once it listens. life: one whose end means that
    there is nobody left to look after it.
    """

    def __init__(self, port: int, ready: int, life: int) -> None:
        self.port = port
        self._ready = ready
        self._life = life

    def __str__(self) -> str:
        return f"{self.port},{self._ready},{self._life}"

    @classmethod
    def parse(cls, word: str) -> Worker:
        """The opposite of `str`."""
        return cls(*map(int, word.split(",")))

    def listens(self) -> None:
        """Tell that connections are accepted from now on."""
        # To one that has taken another's place, nobody listens.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ready, b".")
        os.close(self._ready)

    def end_with_parent(self) -> None:
        """End as by SIGTERM when there is nobody left to look after it."""

        def wait() -> None:
            while os.read(self._life, 1):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, name="deltawire-life", daemon=True).start()


def look_after(
    server: ServerSettings, command: Sequence[str], started: Callable[[int], None]
) -> int:
    """Run `command` as often as there are to be workers, until SIGTERM or SIGINT.

    command: that of one worker but for its last word. started: is given the port, once all of them
    listen. The exit status: 1 if one of them could not even start. Raises OSError for a port that
    is taken, and InvalidSetting where ports cannot be shared.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidSetting("server.workers", "this system cannot share a port: expected 1")
    # Bound, it keeps the port; not listening, it gets no connections.
    with _bound(server) as placeholder, tempfile.TemporaryDirectory("-deltawire") as folder:
        return _Team(server, command, placeholder.getsockname()[1], folder).run(started)


def _bound(server: ServerSettings) -> socket.socket:
    found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    placeholder = socket.socket(family, kind, protocol)
    try:
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Without sharing, to see whether the port is free: others may share theirs.
        placeholder.bind(address)
        port = placeholder.getsockname()[1]
        placeholder.close()
        placeholder = socket.socket(family, kind, protocol)
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind((address[0], port, *address[2:]))
    except BaseException:
        placeholder.close()
        raise
    return placeholder


class _Team:
    def __init__(
        self, server: ServerSettings, command: Sequence[str], port: int, folder: str
    ) -> None:
        self._server = server
        self._command = command
        self._port = port
        self._folder = folder
        # Nobody writes to it; the other end shows that this process is gone.
        self._life, self._lifeline = os.pipe()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._ending = False

    def run(self, started: Callable[[int], None]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, lambda number, _: self._tell(number))
        try:
            ready = [self._start() for _ in range(self._server.workers)]
            # Each says a byte; of one that could not start there is none.
            if b"" in [os.read(pipe, 1) for pipe in ready] and not self._ending:
                return _LOST
            for pipe in ready:
                os.close(pipe)
            if not self._ending:
                started(self._port)
            while not self._ending:
                time.sleep(_TICK)
                self._replace_the_dead()
            return 0
        finally:
            self._end()
            self._wait()
            os.close(self._lifeline)
            os.close(self._life)

    def _start(self) -> int:
        """A pipe that has a byte once the worker listens, and an end if it cannot."""
        pipe, ready = os.pipe()
        worker = Worker(self._port, ready, self._life)
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._folder}
        process = subprocess.Popen(
            [*self._command, str(worker)], env=environment, pass_fds=(ready, self._life)
        )
        os.close(ready)
        self._workers.append(process)
        if self._ending:
            # The signal came before there was this one to be told.
            process.terminate()
        return pipe

    def _replace_the_dead(self) -> None:
        for worker in [each for each in self._workers if each.poll() is not None]:
            self._workers.remove(worker)
            _log.error("worker %d ended with status %s", worker.pid, worker.returncode)
            # What it counted stays; what it had open at that time is no more.
            mark_process_dead(worker.pid, self._folder)  # type: ignore[no-untyped-call]
            time.sleep(_PAUSE)
            if not self._ending:
                # Whether it listens is nobody's to wait for.
                os.close(self._start())

    def _end(self, *_: object) -> None:
        self._ending = True
        self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for worker in self._workers:
            worker.send_signal(number)

    def _wait(self) -> None:
        until = time.monotonic() + self._server.shutdown + _SPARE
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, until - time.monotonic()))
            worker.kill()
            worker.wait()
