"""How the ledger's database is opened, and which of those that write to it are alive.

What may live here: all that differs between SQLite and PostgreSQL. What may not: the tables
(`rows`), when something is written (`ledger`), what is asked (`usage`). The last two call it.

Who is alive
------------
Several servers may share one database. Each `Ledger` is an *instance* with a name of its own, which
its rows carry, and holds a lock by that name for as long as it lives. The system lets go of a lock
when its holder dies, however it dies, so that whoever gets the lock of another instance knows that
it is gone: no heartbeat, no clocks to compare, no process id that another process may have by now.

SQLite: the lock is on a file `DATABASE.INSTANCE.lock` beside the database. It is taken by SQLite
itself (`BEGIN EXCLUSIVE` in an empty database), because its locks work wherever the database does,
and because they keep two ledgers of one process apart, which POSIX locks alone do not.

PostgreSQL: an advisory lock of the session that writes. If that connection breaks while its process
lives, another instance may take this one for gone and say of its rows that they were interrupted;
each is put right when it is settled. A pooler in front must leave sessions whole: PgBouncer's
`pool_mode = session`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    create_engine,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from deltawire.errors import DeltawireError, InvalidSetting
from deltawire.server.rows import METADATA, OPEN, VERSION, attempts, interrupt, schema

# Of the advisory lock that the schema is made under; any number that nobody else uses will do.
_SCHEMA_LOCK: Final = int.from_bytes(b"deltawir")


class LedgerUnavailable(DeltawireError):
    """The ledger could not be written or read; the message says why, without secrets."""


# To lock a file that others may remove meanwhile; one more has been enough so far.
_TRIES: Final = 100
# Seconds between two looks at what cannot be waited for.
_A_MOMENT: Final = 0.005


class Database(ABC):
    """One database. Not for several threads at once."""

    def __init__(self, url: URL, engine: Engine) -> None:
        self._password = url.password
        self._engine = engine

    def connect(self) -> Connection:
        """A connection to a database that has the tables.

        Raises LedgerUnavailable for tables of a later version, and whatever SQLAlchemy does.
        """
        connection = self._engine.connect()
        try:
            with connection.begin():
                self._lock_schema(connection)
                METADATA.create_all(connection)
                _check_version(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def explain(self, error: BaseException) -> str:
        """What is wrong, in a line, without secrets."""
        return explain(error, self._password)

    def interrupt_gone(self, connection: Connection, instance: str) -> None:
        """Say of what others left open that it was interrupted, if they are gone."""
        left_open = select(attempts.c.instance).where(attempts.c.outcome == OPEN).distinct()
        with connection.begin():
            known = self.remains().union(connection.scalars(left_open))
        for other in known - {instance}:
            with connection.begin(), self.gone(connection, other) as gone:
                if gone:
                    interrupt(connection, other)

    @abstractmethod
    def check(self) -> None:
        """Raise OSError if what is connected to is not the database any more."""

    @abstractmethod
    def hold(self, connection: Connection, instance: str) -> None:
        """Take the lock of an instance, if it is not held yet. May be in vain for a while."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the lock, if closing the connection does not."""

    @abstractmethod
    def remains(self) -> set[str]:
        """Instances that are known to have been, apart from those of open rows."""

    @abstractmethod
    def gone(
        self, connection: Connection, instance: str
    ) -> contextlib.AbstractContextManager[bool]:
        """Whether another instance is gone. As long as this lasts nobody else is told that."""

    @abstractmethod
    def _lock_schema(self, connection: Connection) -> None:
        """Make others that would create the schema now wait for the end of the transaction."""


def explain(error: BaseException, password: str | None) -> str:
    """What is wrong, in a line, without the statement, its values or the password."""
    # SQLAlchemy adds the statement; the driver's own words are in `orig`.
    said = str(getattr(error, "orig", None) or error) or type(error).__name__
    for secret in {password, quote(password, safe="")} if password else ():
        said = said.replace(secret, "***")
    return " ".join(said.split())[:300]


def _check_version(connection: Connection) -> None:
    version = connection.scalar(select(schema.c.version).where(schema.c.name == "ledger"))
    if version is None:
        connection.execute(insert(schema), {"name": "ledger", "version": VERSION})
    elif version != VERSION:
        raise LedgerUnavailable(
            f"the ledger's tables are of version {version}; this deltawire knows {VERSION}"
        )


class _SQLite(Database):
    """A file. WAL, so that reading and writing do not wait for each other.

    `synchronous=NORMAL`: a commit has been handed to the system when it returns, and what the
    system has survives the death of the process, `kill -9` included. Only when the machine itself
    stops may the last commits be missing (the database stays whole); to wait for the disk at each
    commit, which is what FULL adds, would guard against nothing else.
    """

    def __init__(self, url: URL, timeout: float) -> None:
        if not url.database or url.database == ":memory:":
            raise InvalidSetting("ledger", "a ledger in memory would keep nothing; name a file")
        self._path = Path(url.database).absolute()
        self._file: tuple[int, int] | None = None
        self._timeout = timeout
        self._lock: sqlite3.Connection | None = None
        self._lock_path: Path | None = None
        engine = create_engine(
            url.set(drivername="sqlite"),
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"timeout": timeout},
        )
        event.listen(engine, "connect", partial(_set_up_sqlite, timeout))
        # The default begins by reading; two that go on to write would then be told "locked" at
        # once, without the wait.
        event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        super().__init__(url, engine)

    def connect(self) -> Connection:
        connection = super().connect()
        self._file = self._identity()
        return connection

    def check(self) -> None:
        # Who writes to a file that was removed is told by nobody.
        if self._identity() != self._file:
            raise FileNotFoundError(f"{self._path} was moved or removed")

    def _lock_schema(self, connection: Connection) -> None:
        # Every transaction is the only one that writes.
        pass

    def _identity(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_dev, status.st_ino

    def hold(self, connection: Connection, instance: str) -> None:
        if self._lock is not None and not self._lock_file(instance).exists():
            # Gone together with the database; nobody else can find it any more.
            self._lock.close()
            self._lock = None
        path = self._lock_file(instance)
        for _ in range(_TRIES):
            if self._lock is not None:
                return
            lock = _lock(path, self._timeout)
            # Between its making and its locking another instance may have taken it for a remnant.
            if lock is not None and path.exists():
                self._lock, self._lock_path = lock, path
            elif lock is not None:
                lock.close()
        raise OSError(f"{path} cannot be locked")

    def release(self) -> None:
        if self._lock is not None and self._lock_path is not None:
            self._lock_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def remains(self) -> set[str]:
        # No other file may be taken for one of these: they are removed.
        lock_file = re.compile(re.escape(self._path.name) + r"\.([0-9a-f]{32})\.lock")
        names = os.listdir(self._path.parent)
        return {found[1] for name in names if (found := lock_file.fullmatch(name))}

    @contextlib.contextmanager
    def gone(self, connection: Connection, instance: str) -> Iterator[bool]:
        path = self._lock_file(instance)
        lock = _lock(path, 0)
        if lock is None:
            yield False
            return
        try:
            yield True
            path.unlink(missing_ok=True)
        finally:
            lock.close()

    def _lock_file(self, instance: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{instance}.lock")


def _set_up_sqlite(timeout: float, connection: sqlite3.Connection, _record: object) -> None:
    # No transactions of the driver's own: "BEGIN IMMEDIATE" is said by us.
    connection.isolation_level = None
    until = time.monotonic() + timeout
    # The change to WAL is the one thing that SQLite does not wait for a lock to do.
    while not _has_wal(connection):
        if time.monotonic() >= until:
            raise TimeoutError("the database is locked")
        time.sleep(_A_MOMENT)
    connection.execute("PRAGMA synchronous=NORMAL")


def _has_wal(connection: sqlite3.Connection) -> bool:
    """False while others keep it from being changed to that."""
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    # Where the file system is not up to it, it stays as it was, and as safe.
    return True


def _lock(path: Path, timeout: float) -> sqlite3.Connection | None:
    """None if another holds it, or has just removed it."""
    lock = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        code = error.sqlite_errorcode
        if code & 0xFF == sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_IOERR_FSTAT:
            return None
        raise
    return lock


class _PostgreSQL(Database):
    """A server, by psycopg 3.

    It is asked to give up a statement after `timeout` seconds, and the system to give up a
    connection whose other end is silent that long, so that a database that hangs is one that is
    gone.
    """

    def __init__(self, url: URL, timeout: float) -> None:
        whole = max(2, math.ceil(timeout))  # libpq takes no shorter one
        arguments: dict[str, Any] = {
            "connect_timeout": whole,
            "tcp_user_timeout": whole * 1000,
            "keepalives_idle": whole,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "deltawire",
        }
        self._statement_timeout = f"SET statement_timeout = {whole * 1000}"
        self._holder: Connection | None = None
        super().__init__(
            url,
            create_engine(
                url.set(drivername="postgresql+psycopg"),
                poolclass=NullPool,
                hide_parameters=True,
                # What the URL says comes first.
                connect_args={k: v for k, v in arguments.items() if k not in url.query},
            ),
        )

    def connect(self) -> Connection:
        connection = super().connect()
        with connection.begin():
            connection.exec_driver_sql(self._statement_timeout)
        return connection

    def check(self) -> None:
        # A connection that leads nowhere says so itself.
        pass

    def hold(self, connection: Connection, instance: str) -> None:
        if self._holder is connection:
            return
        # In vain while the server has not noticed that an earlier connection of ours is gone.
        with connection.begin():
            if _call(connection, "pg_try_advisory_lock", _key(instance)):
                self._holder = connection

    def release(self) -> None:
        self._holder = None

    def remains(self) -> set[str]:
        return set()

    @contextlib.contextmanager
    def gone(self, connection: Connection, instance: str) -> Iterator[bool]:
        # Let go of with the transaction, so that it covers what is written in it.
        yield _call(connection, "pg_try_advisory_xact_lock", _key(instance))

    def _lock_schema(self, connection: Connection) -> None:
        _call(connection, "pg_advisory_xact_lock", _SCHEMA_LOCK)


def _call(connection: Connection, function: str, key: int) -> bool:
    return bool(connection.scalar(text(f"SELECT {function}(:key)"), {"key": key}))


def _key(instance: str) -> int:
    """Advisory locks are known by 64 bits with a sign."""
    return int.from_bytes(UUID(instance).bytes[:8], signed=True)


def open_database(url: str, timeout: float) -> Database:
    """The database of a URL (`sqlite:///FILE`, `postgresql://...`) or of a file's path.

    timeout: seconds that a connection, a lock or a statement is waited for.

    Nothing is connected to yet. Raises InvalidSetting for a URL that cannot work.
    """
    parsed = parse_url(url)
    kind = _PostgreSQL if parsed.get_backend_name() == "postgresql" else _SQLite
    try:
        return kind(parsed, timeout)
    except ImportError as error:
        raise InvalidSetting("ledger", f"{error.name} is not installed") from None


def open_for_reading(url: str) -> Engine:
    """The same, to ask it something. Neither a file nor a table is made.

    Raises InvalidSetting for a URL that cannot work, and for a file that is not there.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    else:
        if not Path(parsed.database or "").is_file():
            raise InvalidSetting("ledger", f"there is no file {parsed.database or ''!r}")
        file = f"file:{quote(str(parsed.database))}"
        parsed = parsed.set(database=file, query={"mode": "ro", "uri": "true"})
    try:
        return create_engine(parsed, poolclass=NullPool, hide_parameters=True)
    except ImportError as error:
        raise InvalidSetting("ledger", f"{error.name} is not installed") from None


def parse_url(url: str) -> URL:
    """The parts of a URL, or of the path of an SQLite file. Raises InvalidSetting."""
    if "://" not in url:
        return URL.create("sqlite", database=url)
    # SQLAlchemy does not know the short name that many hosts hand out.
    if url.startswith("postgres://"):
        url = "postgresql" + url.removeprefix("postgres")
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Their messages may have the URL in them, and that a password.
        backend = None
    if backend not in {"sqlite", "postgresql"}:
        raise InvalidSetting("ledger", "expected a file, sqlite:///FILE or postgresql://...")
    return parsed
