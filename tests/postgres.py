"""A PostgreSQL server of the tests' own, from the system's package, on the loopback interface only.

    from postgres import postgres

    def test_it(postgres: Postgres) -> None:
        url = postgres.database()           # an empty one
        postgres.stop(); postgres.start()   # the data stays

It has a password, so that tests can see that it is shown nowhere. Where PostgreSQL is not installed
the tests that need it are skipped and say so.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import NullPool, create_engine

PASSWORD: Final = f"pass/word-{secrets.token_hex(8)}"
"""As it is; in a URL the slash is `%2F`."""

_BINARIES: Final = Path("/usr/lib/postgresql")
# It refuses to be run by root.
_USERS: Final = ("postgres", "nobody")


class Postgres:
    """One server; its data is gone after `remove`."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = _unprivileged_user()
        self._home = Path(tempfile.mkdtemp(prefix="deltawire-postgres-"))
        self._data = self._home / "data"
        password = self._home / "password"
        password.write_text(PASSWORD)
        if self._user is not None:
            for path in (self._home, password):
                shutil.chown(path, self._user)
        self._run(
            "initdb", "--no-sync", "--auth=scram-sha-256", "--username=deltawire",
            f"--pwfile={password}", "--encoding=UTF8", "--no-locale", f"--pgdata={self._data}",
        )  # fmt: skip
        self.port = _free_port()
        self.start()

    def start(self) -> None:
        """Returns when it takes connections."""
        # What is tested is the death of its clients, never that of the machine.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += " -c full_page_writes=off -c unix_socket_directories=''"
        log = self._home / "log"
        self._run("pg_ctl", "start", "-w", "-D", str(self._data), "-l", str(log), "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is a crash; `fast` ends its sessions in order."""
        self._run("pg_ctl", "stop", "-w", "-D", str(self._data), "-m", mode)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, none of its processes runs, and no connection is told."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        # A stopped postmaster starts no more of them.
        os.kill(postmaster, signal.SIGSTOP)
        processes = [postmaster, *_children(postmaster)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    def database(self) -> str:
        """The URL of the one database, which is empty now: to make one costs a third of a second.

        The slash of the password is `%2F` in it.
        """
        password = PASSWORD.replace("/", "%2F")
        address = f"://deltawire:{password}@127.0.0.1:{self.port}/postgres"
        engine = create_engine(f"postgresql+psycopg{address}", poolclass=NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        return f"postgresql{address}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def _run(self, command: str, *arguments: str) -> None:
        # No pipes: the server would keep them open, and the end of them would never come.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [self._binaries / command, *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                user=self._user, cwd=self._home, check=False,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            )  # fmt: skip
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


def _children(process: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        # One that ends meanwhile is none.
        with contextlib.suppress(OSError):
            id, _, rest = file.read_text().partition(" (")
            if int(rest.rpartition(") ")[2].split()[1]) == process:
                found.append(int(id))
    return found


def _unprivileged_user() -> str | None:
    """None: whoever runs the tests will do."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in _USERS if user in known)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _newest() -> Path | None:
    found = [path.parent for path in _BINARIES.glob("*/bin/pg_ctl")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = _newest()
    if binaries is None:
        pytest.skip(f"PostgreSQL is not installed: nothing in {_BINARIES}/*/bin")
    server = Postgres(binaries)
    yield server
    server.remove()
