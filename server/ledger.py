"""`Ledger`: a row for each attempt, written before it is sent and settled after it.

What may live here: when something is written, and what happens if it cannot be. What may not: what
is written (`rows`), what differs between databases (`database`), queries (`usage`), HTTP. The
server calls it, from threads and from event loops; no call waits for the database except `close`.

Theory of operation
-------------------
    ledger = Ledger("deltawire.db")
    begun = ledger.begin(entry)         # a Future; the attempt is sent when it is done
    ledger.settle(entry.id, attempt)    # a Future too, that nobody needs to wait for
    ledger.close()

One thread writes, on one connection. Whatever has been queued while it wrote the last transaction
is its next one (group commit), so that more load makes larger transactions and not more of them.
Futures are done in the order of the calls. They are waited for as `concurrent.futures` are: by
`begun.result()` in a thread, `await asyncio.wrap_future(begun)`, and in trio

    done, token = trio.Event(), trio.lowlevel.current_trio_token()
    begun.add_done_callback(lambda _: token.run_sync_soon(done.set))

Callbacks are run by the thread that writes and must not block it.

A row is "open" until it is settled. Rows that were left open by an instance that is gone become
"interrupted" (`database` says how that is known): at the start, and again every now and then,
because PostgreSQL may take a moment to notice a death. A settlement has the last word even then,
and where the row is not there, having been logged instead or lost with its file, it is written
whole.

When the database cannot be written, `begin` is answered as the policy says: "refuse" fails the
future, so that nothing is sent that would not be accounted for; "log" writes the row as a line of
JSON to the log and lets the call go on. After a failure the ledger rests, for longer each time, and
meanwhile answers without trying. Settlements are kept and tried again; those beyond the bound, and
those left at the end, are logged in full. `health` counts all of it.

To be made in the process that uses it: threads and locks do not come along through a fork.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import uuid4

import msgspec
from msgspec import Struct
from sqlalchemy import Connection
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

from deltawire.attempts import Attempt
from deltawire.errors import InvalidSetting, LocalProtocolError
from deltawire.server import rows
from deltawire.server.database import LedgerUnavailable, open_database
from deltawire.server.rows import Entry, Row

__all__ = ["Entry", "Health", "Ledger", "LedgerUnavailable", "OnFailure"]

OnFailure = Literal["refuse", "log"]

LOG: Final = logging.getLogger("deltawire.ledger")

# What says that the database cannot be written now, and not that it does not like an entry.
_DATABASE_ERRORS: Final = (OperationalError, InterfaceError, InternalError, OSError)

_CLOSED: Final = "the ledger is closed"
_FULL: Final = "too much is waiting to be written"
_SILENT: Final = "the database does not answer"
# Timeouts: one for a connection and one for a statement. Longer waits are for what cannot be timed.
_PATIENCE: Final = 2
_LEAST_WAIT: Final = 0.05


class Health(Struct, frozen=True, kw_only=True):
    """How a ledger is.

    ok: whether what was written last could be, and the next would be tried.
    pending: entries that wait to be written.
    failed: entries that were not begun in the database: refused, or logged, as the policy says.
    logged: lines of JSON that were logged in the place of rows.
    last_error: why it is not ok, without secrets; None if it is.
    """

    ok: bool
    pending: int
    failed: int
    logged: int
    last_error: str | None


@dataclass(eq=False)
class _Write:
    kind: Literal["begin", "settle"]
    row: Row
    future: Future[None] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Ledger:
    """The ledger in one database, for one instance of the server.

    url: `sqlite:///FILE`, the path of a file, or `postgresql://...`.
    on_failure: how `begin` is answered when the database cannot be written.
    timeout: seconds that the database is waited for: a connection, a lock, a statement.
    max_pending: entries of each kind that are kept until they can be written; some 2 KB each.
    retry: seconds to rest after the first failure, and at most; twice as long after each.
    look_after: seconds from one search for instances that are gone to the next.

    opened: done when the database was opened for the first time, or failed with LedgerUnavailable,
    in which case it is tried again all the same. instance: the name in this ledger's rows.

    Raises InvalidSetting for what cannot work; a database that is not there now is no such thing.
    """

    def __init__(
        self,
        url: str,
        *,
        on_failure: OnFailure = "refuse",
        timeout: float = 5.0,
        max_pending: int = 10_000,
        retry: tuple[float, float] = (0.1, 5.0),
        look_after: float = 10.0,
    ) -> None:
        if on_failure not in ("refuse", "log"):
            raise InvalidSetting("on_failure", f"expected refuse or log, got {on_failure!r}")
        self.instance = uuid4().hex
        self.opened: Future[None] = Future()
        self._on_failure = on_failure
        self._timeout = timeout
        self._max_pending = max_pending
        self._retry = retry
        self._look_after = look_after
        # Of the thread that writes; the rest is guarded by the condition.
        self._database = open_database(url, timeout)
        self._connection: Connection | None = None
        self._withdrawn: list[str] = []
        self._pause = 0.0

        self._changed = threading.Condition()
        self._open: dict[str, Row] = {}
        self._begins: list[_Write] = []
        self._settlements: list[_Write] = []
        self._in_hand: list[_Write] = []
        self._busy_since = math.inf
        self._wake = -math.inf
        self._error: str | None = None
        self._failed = 0
        self._logged = 0
        self._closes_at: float | None = None
        self._closed = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deltawire-ledger", daemon=True)
        self._thread.start()
        self._patience = threading.Thread(
            target=self._lose_patience, name="deltawire-ledger-patience", daemon=True
        )
        self._patience.start()

    def begin(self, entry: Entry) -> Future[None]:
        """Write an attempt down before it is sent.

        The future is done when that is committed, or logged instead; LedgerUnavailable: the call
        is to be refused. To cancel the future while the entry is queued takes it back; once that
        is too late, whoever leaves settles. It is done in any case some two and a half timeouts
        later, as the policy says, even if the database is stopped and lets nobody know.
        """
        write = _Write("begin", rows.begun(entry, self.instance))
        write.future.add_done_callback(lambda future: self._forget(entry.id, future))
        with self._changed:
            if entry.id in self._open:
                write.future.set_exception(LocalProtocolError(f"{entry.id} is begun already"))
                return write.future
            self._open[entry.id] = write.row
            reason = self._why_not()
            if reason is None:
                self._begins.append(write)
                self._changed.notify()
        if reason is not None:
            self._decline(write, reason)
        return write.future

    def settle(self, id: str, attempt: Attempt) -> Future[None]:
        """Write down what a begun attempt came to, once; `attempt` is read at once.

        The future is done when that is committed. It fails with LedgerUnavailable if it was logged
        instead, and with LocalProtocolError for an attempt that is not open here: one that was
        settled, refused or taken back.
        """
        with self._changed:
            row = self._open.pop(id, None) if attempt.outcome is not None else None
            write = _Write("settle", rows.settled(row or {}, attempt))
            # It can not be cancelled, for nothing would then say what became of the row.
            write.future.set_running_or_notify_cancel()
            if row is None:
                write.future.set_exception(LocalProtocolError(f"attempt {id} is not to be settled"))
                return write.future
            if len(self._settlements) < self._max_pending and not self._closed:
                self._settlements.append(write)
                self._changed.notify()
                return write.future
            reason = _CLOSED if self._closed else self._error or _FULL
        self._give_up(write, reason)
        return write.future

    def _why_not(self) -> str | None:
        """Why a beginning need not even be queued."""
        if self._closes_at is not None:
            return _CLOSED
        if time.monotonic() > self._busy_since + _PATIENCE * self._timeout:
            return _SILENT
        return _FULL if len(self._begins) >= self._max_pending else None

    def health(self) -> Health:
        """How it is now. Does not ask the database."""
        with self._changed:
            in_hand = _undone(self._in_hand)
            error = self._error or self._why_not()
            return Health(
                ok=error is None,
                pending=len(in_hand) + len(self._begins) + len(self._settlements),
                failed=self._failed,
                logged=self._logged,
                last_error=error,
            )

    def close(self, timeout: float = 10.0) -> Health:
        """Write what is left, for so many seconds; log the rest. Blocks until then.

        Own rows that are still open become "interrupted". What was being written at the end of the
        time is logged, and may be in the database all the same.
        """
        with self._changed:
            self._closes_at = time.monotonic() + timeout
            self._wake = -math.inf
            self._changed.notify()
        self._thread.join(timeout)
        self._over.set()
        self._patience.join()
        with self._changed:
            self._closed = True
            left = [*self._in_hand, *self._begins, *self._settlements]
            self._begins, self._settlements = [], []
            reason = self._error or _SILENT
        for write in left:
            if not write.future.done():
                (self._decline if write.kind == "begin" else self._give_up)(write, reason)
        return self.health()

    def _lose_patience(self) -> None:
        """Answer beginnings that the thread that writes, waiting for the database, does not."""
        patience = _PATIENCE * self._timeout
        while not self._over.wait(max(_LEAST_WAIT, patience / 4)):
            with self._changed:
                since = time.monotonic() - patience
                late = [
                    write
                    for write in [*self._in_hand, *self._begins]
                    if write.kind == "begin" and write.since < since and not write.future.done()
                ]
                self._begins = [write for write in self._begins if write.since >= since]
            for write in late:
                self._decline(write, _SILENT)

    # What follows is done by the thread that writes, up to _decline.

    def _run(self) -> None:
        while self._wait():
            with self._changed:
                resting = self._error is not None and time.monotonic() < self._wake
                begins, self._begins = self._begins, []
                settlements: list[_Write] = []
                if not resting:
                    settlements, self._settlements = self._settlements, []
                begins = [w for w in begins if w.future.set_running_or_notify_cancel()]
                self._in_hand = [*begins, *settlements]
                self._busy_since = time.monotonic()
                reason = self._error
            if resting:
                for write in begins:
                    self._decline(write, reason or "")
            else:
                self._write(begins, settlements)
        self._leave()

    def _wait(self) -> bool:
        """Until there is something to do; False if that is to leave."""
        with self._changed:
            self._in_hand, self._busy_since = [], math.inf
            while True:
                now = time.monotonic()
                resting = self._error is not None and now < self._wake
                if self._begins or (self._settlements and not resting):
                    return self._closes_at is None or now < self._closes_at or self._shut()
                if self._closes_at is not None and (
                    not self._settlements or now >= self._closes_at
                ):
                    return self._shut()
                if now >= self._wake:
                    return True
                until = self._wake if self._closes_at is None else min(self._wake, self._closes_at)
                self._changed.wait(until - now)

    def _shut(self) -> bool:
        self._closed = True
        return False

    def _write(self, begins: list[_Write], settlements: list[_Write]) -> None:
        worked_before = self._connection is not None
        try:
            try:
                self._commit(self._connect(), begins, settlements)
            except Exception:
                self._disconnect()
                # Whether the commit went through may be unknown.
                self._withdrawn += [write.row["id"] for write in _undone(begins)]
                if not worked_before:
                    raise
                # A connection may have died of old age; the database is gone if a new one fails.
                self._commit(self._connect(), _undone(begins), _undone(settlements))
            if time.monotonic() >= self._wake:
                self._look_after_others(self._connect())
        except Exception as error:
            # Whatever it is, it must not end the thread.
            self._rest(error, begins, settlements)
            return
        if self._error is not None:
            LOG.warning("the ledger can be written again")
        with self._changed:
            self._error = None
            self._pause = 0.0
        if not self.opened.done():
            self.opened.set_result(None)

    def _commit(
        self, connection: Connection, begins: Sequence[_Write], settlements: Sequence[_Write]
    ) -> None:
        """All of it in one transaction; if the database dislikes an entry, each in its own."""
        writes = [*begins, *settlements]
        if not (writes or self._withdrawn or self._error):
            return
        try:
            with connection.begin():
                rows.write(
                    connection,
                    withdrawn=self._withdrawn,
                    begun=[write.row for write in begins],
                    settled=[write.row for write in settlements],
                )
        except Exception as error:
            if isinstance(error, _DATABASE_ERRORS) or not writes:
                raise
            if len(writes) == 1:
                (self._decline if begins else self._give_up)(
                    writes[0], self._database.explain(error)
                )
                return
            for write in begins:
                self._commit(connection, [write], [])
            for write in settlements:
                self._commit(connection, [], [write])
            return
        # Those that were refused meanwhile, because the database took its time, were not to be.
        self._withdrawn = [
            write.row["id"]
            for write in begins
            if not _finish(write.future) and write.future.exception()
        ]
        for write in settlements:
            _finish(write.future)

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._database.connect()
            self._database.hold(self._connection, self.instance)
        self._database.check()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None

    def _look_after_others(self, connection: Connection) -> None:
        self._database.hold(connection, self.instance)
        self._database.interrupt_gone(connection, self.instance)
        with self._changed:
            self._wake = time.monotonic() + self._look_after

    def _rest(
        self, error: Exception, begins: Sequence[_Write], settlements: Sequence[_Write]
    ) -> None:
        reason = self._database.explain(error)
        self._disconnect()
        first, longest = self._retry
        self._pause = min(max(first, 2 * self._pause), longest)
        del self._withdrawn[: -self._max_pending]
        with self._changed:
            if self._error is None:
                LOG.error("the ledger cannot be written: %s", reason)
            self._error = reason
            self._wake = time.monotonic() + self._pause
            self._settlements[:0] = _undone(settlements)
            self._in_hand = list(begins)
        for write in _undone(begins):
            self._decline(write, reason)
        if not self.opened.done():
            self.opened.set_exception(LedgerUnavailable(reason))

    def _leave(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception), self._connection.begin():
                rows.interrupt(self._connection, self.instance)
        self._disconnect()
        self._database.release()
        if not self.opened.done():
            self.opened.set_exception(LedgerUnavailable(_CLOSED))

    # By any thread.

    def _decline(self, write: _Write, reason: str) -> None:
        """Answer a beginning that was not written as the policy says."""
        with self._changed:
            self._failed += 1
            if self._on_failure == "refuse":
                self._open.pop(write.row["id"], None)
        if self._on_failure == "log":
            self._log(write, reason)
            _finish(write.future)
        else:
            _finish(write.future, LedgerUnavailable(reason))

    def _give_up(self, write: _Write, reason: str) -> None:
        """Log a settlement that will not be written."""
        self._log(write, reason)
        _finish(write.future, LedgerUnavailable(reason))

    def _log(self, write: _Write, reason: str) -> None:
        with self._changed:
            self._logged += 1
        line = {"ledger": write.kind, "reason": reason, **write.row}
        LOG.error("%s", msgspec.json.encode(line).decode())

    def _forget(self, id: str, begun: Future[None]) -> None:
        if begun.cancelled():
            with self._changed:
                self._open.pop(id, None)


def _undone(writes: Sequence[_Write]) -> list[_Write]:
    return [write for write in writes if not write.future.done()]


def _finish(future: Future[None], error: Exception | None = None) -> bool:
    """Whether it was not done already: by `close`, or whoever did not want to wait any longer."""
    try:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
    except InvalidStateError:
        return False
    return True
