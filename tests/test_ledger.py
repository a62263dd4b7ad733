"""The ledger on real databases: no row is missing, none is there twice, whoever dies.

Most laws are stated for both databases; `url` is a new one of either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, insert, select, text, update
from sqlalchemy.exc import OperationalError

from deltawire.attempts import Attempt, Outcome
from deltawire.chat import CompletionTokensDetails, PromptTokensDetails, Usage
from deltawire.errors import InvalidSetting, LocalProtocolError
from deltawire.server import database
from deltawire.server import rows as ledger_rows
from deltawire.server.database import explain, open_database, open_for_reading
from deltawire.server.ledger import Entry, Ledger, LedgerUnavailable
from deltawire.server.rows import VERSION, attempts, begun, schema
from ledger_child import attempt, entry
from postgres import PASSWORD, Postgres, postgres  # noqa: F401

# Times that it dies, on each database.
KILLS = int(os.environ.get("DELTAWIRE_KILLS", "4"))
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
# Seconds. Only a ledger that hangs takes them.
LONG = 60.0

PROMPT: dict[str, Any] = {"timeout": 0.5, "retry": (0.01, 0.05)}
"""For tests in which the database is away: what is a matter of seconds otherwise."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@contextlib.contextmanager
def opened(url: str | Path, **options: Any) -> Iterator[Ledger]:
    ledger = Ledger(str(url), **options)
    try:
        ledger.opened.result(LONG)
        yield ledger
    finally:
        ledger.close(LONG)


def rows(url: str | Path) -> dict[str, dict[str, Any]]:
    engine = open_for_reading(str(url))
    with engine.connect() as connection:
        found = [dict(row._mapping) for row in connection.execute(select(attempts))]
    engine.dispose()
    by_id = {row["id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def outcomes(url: str | Path) -> dict[str, str]:
    return {id: row["outcome"] for id, row in rows(url).items()}


def hold(ledger: Ledger) -> threading.Event:
    """Keep the ledger from writing until the event is set."""
    held, release = threading.Event(), threading.Event()

    def wait(_: Future[None]) -> None:
        held.set()
        release.wait(LONG)

    # The thread that writes runs it.
    ledger.begin(entry(new_id())).add_done_callback(wait)
    held.wait(LONG)
    return release


def new_id() -> str:
    return str(uuid4())


# What a row says


def test_a_row_is_open_until_it_is_settled_and_then_says_all(url: str) -> None:
    usage = Usage(10, 20, 30, PromptTokensDetails(4), CompletionTokensDetails(5))
    with opened(url) as ledger:
        started = Entry(
            id=new_id(), request_id="req_1", number=2, client="alice", upstream="main",
            account="first", model="gpt", upstream_model="gpt-5", started_at=1_700_000_000.25,
        )  # fmt: skip
        ledger.begin(started).result(LONG)
        before = rows(url)[started.id]
        ended = Attempt(
            number=2, account="first", model="gpt-5", started=7.0, outcome="failed", used=True,
            status=200, code="server_error", usage=usage, first_event=0.5, duration=2.5,
            request_id="up_1",
        )  # fmt: skip
        ledger.settle(started.id, ended).result(LONG)
        after = rows(url)[started.id]
    assert before["outcome"] == "open"
    assert before["used"] is False
    assert after == {
        "id": started.id, "instance": ledger.instance, "request_id": "req_1", "number": 2,
        "client": "alice", "upstream": "main", "account": "first", "model": "gpt",
        "upstream_model": "gpt-5", "started_at": 1_700_000_000.25, "day": 19675,
        "outcome": "failed", "used": True, "status": 200, "code": "server_error",
        "prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "cached_tokens": 4,
        "reasoning_tokens": 5, "first_event": 0.5, "duration": 2.5, "upstream_request_id": "up_1",
    }  # fmt: skip


def test_what_strangers_send_can_be_written(url: str) -> None:
    id = new_id()
    odd = "nul\0 surrogate\ud800 " + "long" * 100_000
    ended = Attempt(
        number=1, account="a", model="m", started=0.0, outcome="failed", code=odd,
        usage=Usage(-1, 2**70, 3), request_id=odd,
    )  # fmt: skip
    with opened(url) as ledger:
        ledger.begin(
            Entry(
                id=id,
                request_id=odd,
                number=1,
                client=odd,
                upstream=odd,
                account=odd,
                model=odd,
                started_at=0.0,
            )
        ).result(LONG)
        ledger.settle(id, ended).result(LONG)
    row = rows(url)[id]
    assert row["model"].startswith("nul? surrogate? longlong")
    assert len(row["code"]) == 256
    assert (row["prompt_tokens"], row["completion_tokens"], row["total_tokens"]) == (None, None, 3)


# Any order


Step = tuple[str, int]
PLANS = st.integers(1, 12).flatmap(
    lambda size: st.lists(
        st.tuples(st.sampled_from(["begin", "settle", "wait"]), st.integers(0, size - 1)),
        max_size=40,
    )
)


def follow(ledger: Ledger, plan: list[Step]) -> dict[str, str]:
    """Carry out any plan, sensible or not; what the rows should say after it.

    Only that identifiers are new for each attempt is kept to.
    """
    ids = [new_id() for _ in range(12)]
    expected: dict[str, str] = {}
    futures: list[tuple[Future[None], bool]] = []
    for place, (step, which) in enumerate(plan):
        id = ids[which]
        if step == "begin" and expected.get(id, "open") == "open":
            futures.append((ledger.begin(entry(id)), id not in expected))
            expected.setdefault(id, "open")
        elif step == "settle":
            outcome = OUTCOMES[place % len(OUTCOMES)]
            futures.append((ledger.settle(id, attempt(outcome)), expected.get(id) == "open"))
            if expected.get(id) == "open":
                expected[id] = outcome
        elif futures:
            futures[-1][0].exception(LONG)
    for future, allowed in futures:
        error = future.exception(LONG)
        assert (error is None) == allowed, error
    return expected


@given(plan=PLANS)
@settings(max_examples=50)
def test_each_row_is_there_once_and_settled_once_in_any_order_on_sqlite(
    plan: list[Step], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with opened(url) as ledger:
        expected = follow(ledger, plan)
        assert outcomes(url) == expected
    closed = {id: "interrupted" if o == "open" else o for id, o in expected.items()}
    assert outcomes(url) == closed


def test_each_row_is_there_once_and_settled_once_in_any_order_on_postgresql(
    postgres: Postgres,  # noqa: F811
) -> None:
    url = postgres.database()
    with opened(url) as ledger:

        @given(plan=PLANS)
        @settings(max_examples=50)
        def law(plan: list[Step]) -> None:
            expected = follow(ledger, plan)
            assert expected.items() <= outcomes(url).items()

        law()


def test_many_threads_lose_nothing(url: str) -> None:
    def work(ledger: Ledger, seed: int, expected: dict[str, str]) -> None:
        chance = random.Random(seed)
        mine: dict[str, Future[None]] = {}
        for _ in range(100):
            id = new_id()
            begun = ledger.begin(entry(id))
            if chance.random() < 0.5:
                begun.result(LONG)
            outcome = chance.choice(OUTCOMES)
            mine[id] = ledger.settle(id, attempt(outcome))
            expected[id] = outcome
        for settled in mine.values():
            settled.result(LONG)

    kept: list[dict[str, str]] = [{} for _ in range(8)]
    with opened(url) as ledger:
        threads = [
            threading.Thread(target=work, args=(ledger, seed, expected))
            for seed, expected in enumerate(kept)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes(url) == {id: o for expected in kept for id, o in expected.items()}


def test_all_that_waits_is_one_transaction_and_in_order(url: str) -> None:
    commits: list[Connection] = []
    done: list[str] = []
    ids = [new_id() for _ in range(100)]

    def note_commit(connection: Connection) -> None:
        commits.append(connection)

    def note_done(id: str, _: Future[None]) -> None:
        done.append(id)

    with opened(url) as ledger:
        release = hold(ledger)
        futures = []
        for id in ids:
            future = ledger.begin(entry(id))
            future.add_done_callback(partial(note_done, id))
            futures += [future, ledger.settle(id, attempt("completed"))]
        event.listen(Engine, "commit", note_commit)
        try:
            release.set()
            for future in futures:
                future.result(LONG)
        finally:
            event.remove(Engine, "commit", note_commit)
    assert len(commits) == 1
    assert done == ids
    assert Counter(outcomes(url).values()) == {"completed": 100, "interrupted": 1}


def test_an_entry_that_the_database_dislikes_harms_no_other(url: str) -> None:
    """The row is there already, by another process that makes the same identifiers."""
    known, other = new_id(), new_id()
    with opened(url) as ledger:
        connection = open_database(url, LONG).connect()
        with connection.begin():
            connection.execute(insert(attempts), begun(entry(known), uuid4().hex))
        connection.close()
        release = hold(ledger)
        futures = [ledger.begin(entry(id)) for id in (known, other)]
        release.set()
        assert isinstance(futures[0].exception(LONG), LedgerUnavailable)
        assert futures[1].exception(LONG) is None
        assert ledger.health().ok
    assert rows(url).keys() >= {known, other}


def test_a_beginning_can_be_taken_back_while_it_is_queued(url: str) -> None:
    id = new_id()
    with opened(url) as ledger:
        release = hold(ledger)
        begun = ledger.begin(entry(id))
        assert begun.cancel()
        settled = ledger.settle(id, attempt("cancelled"))
        release.set()
        assert isinstance(settled.exception(LONG), LocalProtocolError)
        with pytest.raises(CancelledError):
            begun.result(LONG)
        # Nor is the thread that writes any the worse for it.
        ledger.begin(entry(id)).result(LONG)
    assert outcomes(url)[id] == "interrupted"


def test_a_settlement_cannot_be_cancelled_and_needs_an_outcome(file: Path) -> None:
    id = new_id()
    with opened(file) as ledger:
        ledger.begin(entry(id))
        unsettled = Attempt(number=1, account="a", model="m", started=0.0)
        assert isinstance(ledger.settle(id, unsettled).exception(), LocalProtocolError)
        settled = ledger.settle(id, attempt("completed"))
        assert not settled.cancel()
        settled.result(LONG)
    assert outcomes(file) == {id: "completed"}


# Who waits


def test_asyncio_can_wait(file: Path) -> None:
    async def call(ledger: Ledger) -> str:
        id = new_id()
        await asyncio.wrap_future(ledger.begin(entry(id)))
        assert outcomes(file)[id] == "open"
        await asyncio.wrap_future(ledger.settle(id, attempt("completed")))
        return id

    async def main() -> list[str]:
        return await asyncio.gather(*(call(ledger) for _ in range(20)))

    with opened(file) as ledger:
        ids = asyncio.run(main())
    assert outcomes(file) == dict.fromkeys(ids, "completed")


def test_trio_can_wait(file: Path) -> None:
    async def wait(future: Future[None]) -> None:
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await done.wait()
        future.result()

    async def call(ledger: Ledger, id: str) -> None:
        await wait(ledger.begin(entry(id)))
        assert outcomes(file)[id] == "open"
        await wait(ledger.settle(id, attempt("completed")))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for id in ids:
                nursery.start_soon(call, ledger, id)

    ids = [new_id() for _ in range(20)]
    with opened(file) as ledger:
        trio.run(main)
    assert outcomes(file) == dict.fromkeys(ids, "completed")


# Who is alive


def restart(url: str, living: str) -> None:
    """A server's start and stop, once the database has noticed all deaths but that of `living`."""
    if url.startswith("postgresql"):
        connection = open_database(url, LONG).connect()
        with connection.begin():
            left_open = select(attempts.c.instance).where(attempts.c.outcome == "open").distinct()
            for instance in {*connection.scalars(left_open)} - {living}:
                # Waits until whoever held it is gone.
                key = int.from_bytes(UUID(instance).bytes[:8], signed=True)
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        connection.close()
    with opened(url):
        pass


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(url: str) -> None:
    chance = random.Random(5)
    begun: set[str] = set()
    settled: dict[str, str] = {}
    living = new_id()
    child = str(Path(__file__).with_name("ledger_child.py"))
    with opened(url) as other:
        other.begin(entry(living)).result(LONG)
        for kill in range(KILLS):
            with subprocess.Popen(
                [sys.executable, child, url, str(kill)], stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                lines = iter(process.stdout.readline, b"")
                for _ in range(chance.randrange(1, 400)):
                    note(next(lines), begun, settled)
                process.send_signal(signal.SIGKILL)
                for line in lines:
                    note(line, begun, settled)
            assert process.returncode == -signal.SIGKILL
            restart(url, other.instance)
            found = outcomes(url)
            assert found.pop(living) == "open"
            assert begun <= found.keys()
            assert settled.items() <= found.items()
            assert set(found.values()) <= {*OUTCOMES, "interrupted"}
        # The 50 that may be under way at once; and the deaths were real ones.
        assert len(found) - len(begun) <= 50 * KILLS
        assert "interrupted" in found.values()
        other.settle(living, attempt("completed")).result(LONG)
    assert outcomes(url)[living] == "completed"


def note(line: bytes, begun: set[str], settled: dict[str, str]) -> None:
    match line.decode().split():
        case ["begun", id]:
            assert id not in begun
            begun.add(id)
        case ["settled", id, outcome]:
            assert id not in settled
            settled[id] = outcome
        case _:
            raise AssertionError(line)


def test_two_ledgers_on_one_database_leave_each_other_alone(url: str) -> None:
    ids = [new_id(), new_id()]
    with opened(url) as one:
        one.begin(entry(ids[0])).result(LONG)
        with opened(url) as two:
            two.begin(entry(ids[1])).result(LONG)
            assert outcomes(url) == dict.fromkeys(ids, "open")
        assert outcomes(url) == {ids[0]: "open", ids[1]: "interrupted"}
        with opened(url):
            assert outcomes(url)[ids[0]] == "open"
        one.settle(ids[0], attempt("completed")).result(LONG)
    assert outcomes(url) == {ids[0]: "completed", ids[1]: "interrupted"}


def test_a_death_is_noticed_while_running_too(url: str) -> None:
    """By the search that is made every now and then, not only by a start."""
    id = new_id()
    noticed = threading.Event()

    def look(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith("UPDATE") and gone in str(parameters):
            noticed.set()

    gone = uuid4().hex
    with opened(url, look_after=0.01):
        event.listen(Engine, "after_cursor_execute", look)
        try:
            connection = open_database(url, LONG).connect()
            with connection.begin():
                connection.execute(insert(attempts), begun(entry(id), gone))
            connection.close()
            assert noticed.wait(LONG)
        finally:
            event.remove(Engine, "after_cursor_execute", look)
    assert outcomes(url) == {id: "interrupted"}


def test_a_settlement_has_the_last_word(url: str) -> None:
    """Even after another instance took this one for gone."""
    id = new_id()
    with opened(url) as ledger:
        ledger.begin(entry(id)).result(LONG)
        connection = open_database(url, LONG).connect()
        with connection.begin():
            connection.execute(update(attempts).values(outcome="interrupted"))
        connection.close()
        ledger.settle(id, attempt("completed")).result(LONG)
    assert outcomes(url) == {id: "completed"}


def test_lock_files_go_with_those_who_held_them(file: Path) -> None:
    other = file.with_name("ledger.db.notes.lock")
    other.touch()
    child = str(Path(__file__).with_name("ledger_child.py"))
    with subprocess.Popen([sys.executable, child, str(file), "0"], stdout=subprocess.PIPE) as dead:
        assert dead.stdout is not None
        dead.stdout.readline()
        dead.kill()
    assert len(list(file.parent.glob("*.lock"))) == 2
    with opened(file) as ledger:
        mine = file.with_name(f"ledger.db.{ledger.instance}.lock")
        assert set(file.parent.glob("*.lock")) == {mine, other}
    assert list(file.parent.glob("*.lock")) == [other]


def test_a_lock_file_that_was_taken_for_a_remnant_is_made_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another instance, between its making and its locking."""
    lock = database._lock
    removed: list[Path] = []

    def remove_first(path: Path, timeout: float) -> sqlite3.Connection | None:
        held = lock(path, timeout)
        if not removed:
            path.unlink()
            removed.append(path)
        return held

    monkeypatch.setattr(database, "_lock", remove_first)
    with opened(file):
        assert removed[0].exists()


def test_several_may_start_at_once(url: str) -> None:
    ledgers = [Ledger(url) for _ in range(8)]
    ids = [new_id() for _ in ledgers]
    for ledger, id in zip(ledgers, ids, strict=True):
        ledger.opened.result(LONG)
        ledger.begin(entry(id)).result(LONG)
        ledger.settle(id, attempt("completed"))
    for ledger in ledgers:
        assert ledger.close(LONG).logged == 0
    assert outcomes(url) == dict.fromkeys(ids, "completed")


# The database is away


class Records(logging.Handler):
    """What the ledger logs, and the lines of JSON among it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(said) for said in self.said if said.startswith("{")]


@pytest.fixture
def log() -> Iterator[Records]:
    records = Records()
    logger = logging.getLogger("deltawire.ledger")
    logger.addHandler(records)
    yield records
    logger.removeHandler(records)


@dataclass
class Outage:
    """What takes the database of a URL away, and gives it back."""

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]


@pytest.fixture(
    params=["sqlite locked", "sqlite limited", "sqlite read-only", "disk full", "postgresql"]
)
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    file = tmp_path / "ledger.db"
    match request.param:
        case "sqlite locked":
            yield locked(file)
        case "sqlite limited":
            yield from limited(file, "max_page_count", 1, 2**30)
        case "sqlite read-only":
            yield from limited(file, "query_only", 1, 0)
        case "disk full":
            yield from full(tmp_path)
        case _:
            server: Postgres = request.getfixturevalue("postgres")
            yield Outage(server.database(), server.stop, server.start)


def locked(file: Path) -> Outage:
    other = sqlite3.connect(file, isolation_level=None)

    def begin() -> None:
        other.execute("BEGIN IMMEDIATE")

    return Outage(str(file), begin, other.rollback)


def limited(file: Path, pragma: str, away: int, back: int) -> Iterator[Outage]:
    value = back

    def limit(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA {pragma}={value}")

    def begin() -> None:
        nonlocal value
        value = away

    def end() -> None:
        nonlocal value
        value = back

    event.listen(Engine, "begin", limit)
    yield Outage(str(file), begin, end)
    event.remove(Engine, "begin", limit)


def full(folder: Path) -> Iterator[Outage]:
    disk = folder / "disk"
    disk.mkdir()
    # The write-ahead log alone may come to 4 MB.
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk to fill: {done.stderr.strip()}")
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as out, contextlib.suppress(OSError):
            while True:
                out.write(bytes(4096))

    yield Outage(str(disk / "ledger.db"), fill, ballast.unlink)
    subprocess.run(["umount", str(disk)], check=True)


def until(ledger: Ledger, wanted: Callable[[Future[None]], bool]) -> list[str]:
    """Begin attempts until one ends as wanted; which were begun up to there."""
    ids: list[str] = []
    while True:
        begun = ledger.begin(entry(id := new_id()))
        begun.exception(LONG)
        if wanted(begun):
            return ids
        ids.append(id)


def refused(begun: Future[None]) -> bool:
    return isinstance(begun.exception(), LedgerUnavailable)


def test_refuse_lets_nothing_begin_that_is_not_written(outage: Outage, log: Records) -> None:
    before, during = new_id(), new_id()
    with opened(outage.url, **PROMPT) as ledger:
        ledger.begin(entry(before)).result(LONG)
        outage.begin()
        written = until(ledger, refused)
        health = ledger.health()
        assert health.failed
        settled = ledger.settle(before, attempt("completed"))
        never = ledger.settle(during, attempt("completed"))
        assert isinstance(never.exception(LONG), LocalProtocolError)
        outage.end()
        settled.result(LONG)
        until(ledger, lambda begun: not refused(begun))
        assert ledger.health().ok
        assert ledger.health().last_error is None
        assert ledger.health().logged == 0
    found = outcomes(outage.url)
    assert found.pop(before) == "completed"
    # And the one that ended the outage.
    assert len(found) == len(written) + 1
    assert set(written) < found.keys()
    assert not log.lines
    assert PASSWORD not in repr([log.said, health, health.last_error])


def test_log_lets_calls_go_on_and_says_all_of_them(outage: Outage, log: Records) -> None:
    with opened(outage.url, **PROMPT, on_failure="log") as ledger:
        outage.begin()
        written = until(ledger, lambda begun: bool(log.lines))
        ledger_line = log.lines[0]
        id = ledger_line["id"]
        assert ledger_line["ledger"] == "begin"
        assert ledger_line["outcome"] == "open"
        assert ledger_line["reason"]
        assert ledger_line["account"] == "a"
        settled = ledger.settle(id, attempt("completed"))
        outage.end()
        settled.result(LONG)
        assert ledger.health().logged == ledger.health().failed == len(log.lines)
    found = outcomes(outage.url)
    assert found.pop(id) == "completed"
    assert set(written) == found.keys()
    assert PASSWORD not in repr(log.said)


def test_whatever_comes_and_goes_each_settlement_is_written(outage: Outage, log: Records) -> None:
    chance = random.Random(1)
    begun: list[str] = []
    expected: dict[str, str] = {}
    futures: list[Future[None]] = []
    with opened(outage.url, **PROMPT) as ledger:
        for _ in range(3):
            for change in (None, outage.begin, outage.end):
                if change is not None:
                    change()
                for _ in range(100):
                    id = new_id()
                    if ledger.begin(entry(id)).exception(LONG) is None:
                        begun.append(id)
                    if begun and chance.random() < 0.7:
                        id = begun.pop(chance.randrange(len(begun)))
                        expected[id] = chance.choice(OUTCOMES)
                        futures.append(ledger.settle(id, attempt(expected[id])))  # type: ignore[arg-type]
            for future in futures:
                future.result(LONG)
            assert expected.items() <= outcomes(outage.url).items()
    found = outcomes(outage.url)
    assert found == {**expected, **dict.fromkeys(begun, "interrupted")}
    assert not log.lines


def test_settlements_beyond_the_bound_are_logged_whole(file: Path, log: Records) -> None:
    outage = locked(file)
    ids = [new_id() for _ in range(30)]
    with opened(file, **PROMPT, max_pending=10) as ledger:
        for id in ids:
            ledger.begin(entry(id)).result(LONG)
        outage.begin()
        until(ledger, refused)
        futures = {id: ledger.settle(id, attempt("completed")) for id in ids}
        assert ledger.health().pending >= 10
        outage.end()
        lost = {id for id, future in futures.items() if future.exception(LONG) is not None}
    assert {line["id"] for line in log.lines} == lost
    assert 10 <= len(lost) <= 20
    assert all(line["outcome"] == "completed" for line in log.lines)
    assert all(line["total_tokens"] == 3 for line in log.lines)
    found = outcomes(file)
    assert {id for id in ids if found[id] == "completed"} == set(ids) - lost
    assert ledger.health().logged == len(lost)


def test_what_is_left_at_the_end_is_logged_whole(outage: Outage, log: Records) -> None:
    ids = [new_id() for _ in range(5)]
    ledger = Ledger(outage.url, **PROMPT)
    for id in ids:
        ledger.begin(entry(id)).result(LONG)
    outage.begin()
    until(ledger, refused)
    futures = [ledger.settle(id, attempt("completed")) for id in ids]
    # Where the disk has no room for another row, it may yet have some for these.
    health = ledger.close(0.3)
    lost = {id for id, future in zip(ids, futures, strict=True) if future.exception(0) is not None}
    assert {line["id"] for line in log.lines} == lost
    assert health.pending == 0
    assert health.logged == len(lost)
    outage.end()
    late = ledger.begin(entry(new_id()))
    assert refused(late)
    with opened(outage.url):
        pass
    # What was being written when the time was up may be there as well.
    written = {id for id, outcome in outcomes(outage.url).items() if outcome == "completed"}
    assert written | lost == set(ids)


def test_what_is_settled_after_the_end_is_logged(file: Path, log: Records) -> None:
    id = new_id()
    with opened(file) as ledger:
        ledger.begin(entry(id)).result(LONG)
    assert isinstance(ledger.settle(id, attempt("failed")).exception(0), LedgerUnavailable)
    assert [(line["id"], line["outcome"]) for line in log.lines] == [(id, "failed")]


def test_too_many_beginnings_are_answered_as_the_policy_says(file: Path) -> None:
    with opened(file, max_pending=3) as ledger:
        release = hold(ledger)
        futures = [ledger.begin(entry(new_id())) for _ in range(5)]
        assert [refused(future) for future in futures[3:]] == [True, True]
        assert ledger.health().pending == 3
        release.set()
        assert [future.result(LONG) for future in futures[:3]] == [None] * 3
        assert ledger.health().failed == 2


def test_what_waits_for_a_database_that_does_not_answer_is_answered(file: Path) -> None:
    with opened(file, timeout=1.0) as ledger:
        release = hold(ledger)
        waiting = [ledger.begin(entry(new_id())) for _ in range(3)]
        assert [refused(begun) for begun in waiting] == [True] * 3
        assert refused(ledger.begin(entry(new_id())))
        assert ledger.health().last_error == "the database does not answer"
        release.set()
        until(ledger, lambda begun: not refused(begun))


def test_what_a_stopped_database_was_being_told_is_taken_back(
    postgres: Postgres,  # noqa: F811
) -> None:
    url = postgres.database()
    kept, late, ended = new_id(), new_id(), new_id()
    with opened(url, timeout=1.0) as ledger:
        ledger.begin(entry(ended)).result(LONG)
        with postgres.frozen():
            begun = ledger.begin(entry(late))
            assert refused(begun)
            settled = ledger.settle(ended, attempt("completed"))
        settled.result(LONG)
        until(ledger, lambda begun: not refused(begun))
        ledger.begin(entry(kept)).result(LONG)
        found = outcomes(url)
        assert found[ended] == "completed"
        assert found[kept] == "open"
        assert late not in found


def test_a_database_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "later" / "ledger.db"
    ledger = Ledger(str(file), **PROMPT)
    assert isinstance(ledger.opened.exception(LONG), LedgerUnavailable)
    assert refused(ledger.begin(entry(new_id())))
    file.parent.mkdir()
    until(ledger, lambda begun: not refused(begun))
    ledger.close()
    assert len(rows(file)) == 1


def test_a_file_that_is_removed_is_made_anew(file: Path) -> None:
    ids = [new_id(), new_id()]
    with opened(file) as ledger:
        ledger.begin(entry(ids[0])).result(LONG)
        for path in file.parent.glob("ledger.db*"):
            path.unlink()
        ledger.begin(entry(ids[1])).result(LONG)
        ledger.settle(ids[0], attempt("completed")).result(LONG)
        assert outcomes(file) == {ids[0]: "completed", ids[1]: "open"}
        # Its lock went too, and is held again.
        with opened(file, look_after=LONG):
            assert outcomes(file)[ids[1]] == "open"


def test_a_connection_that_died_is_replaced_without_a_refusal(
    postgres: Postgres,  # noqa: F811
    log: Records,
) -> None:
    url = postgres.database()
    ids = [new_id(), new_id()]
    with opened(url) as ledger:
        ledger.begin(entry(ids[0])).result(LONG)
        postgres.stop()
        postgres.start()
        ledger.begin(entry(ids[1])).result(LONG)
        ledger.settle(ids[0], attempt("completed")).result(LONG)
        assert not log.said
    assert outcomes(url) == {ids[0]: "completed", ids[1]: "interrupted"}


@pytest.mark.parametrize("answers", [1, 2])
def test_a_commit_of_which_nobody_knows_leaves_one_row_or_none(
    url: str, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the commit and its answer: the first time, or each time."""
    write = ledger_rows.write
    left = answers

    def write_and_break(connection: Connection, **what: Any) -> None:
        nonlocal left
        write(connection, **what)
        if left and what["begun"]:
            left -= 1
            assert connection.connection.dbapi_connection is not None
            connection.connection.dbapi_connection.commit()
            raise OperationalError("COMMIT", {}, Exception("no answer"))

    id = new_id()
    with opened(url, **PROMPT) as ledger:
        monkeypatch.setattr(ledger_rows, "write", write_and_break)
        assert (ledger.begin(entry(id)).exception(LONG) is None) == (answers == 1)
        until(ledger, lambda begun: not refused(begun))
        found = outcomes(url)
    assert (id in found) == (answers == 1)
    assert len(found) == answers % 2 + 1


def test_a_wrong_password_is_said_without_it(
    postgres: Postgres,  # noqa: F811
    log: Records,
) -> None:
    url = postgres.database().replace("word", "word-wrong")
    ledger = Ledger(url, **PROMPT)
    error = ledger.opened.exception(LONG)
    assert isinstance(error, LedgerUnavailable)
    assert "password authentication failed" in str(error)
    assert "word-" not in repr([str(error), ledger.close(), log.said])


def test_no_driver_can_give_a_password_away() -> None:
    said = "cannot connect to x:p/w@h, postgresql://x:p%2Fw@h"
    assert explain(ValueError(said), "p/w") == "cannot connect to x:***@h, postgresql://x:***@h"


def test_tables_of_a_later_version_are_left_alone(url: str) -> None:
    with opened(url):
        pass
    connection = open_database(url, LONG).connect()
    with connection.begin():
        connection.execute(update(schema).values(version=VERSION + 1))
    connection.close()
    ledger = Ledger(url, **PROMPT)
    assert f"of version {VERSION + 1}" in str(ledger.opened.exception(LONG))
    assert refused(ledger.begin(entry(new_id())))
    ledger.close()
    assert rows(url) == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:geheim@h/d",
        "nonsense://geheim",
        "://geheim",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidSetting, match="ledger: ") as caught:
        Ledger(url)
    assert "geheim" not in str(caught.value)


def test_only_two_policies_are_known(file: Path) -> None:
    with pytest.raises(InvalidSetting, match="on_failure"):
        Ledger(str(file), on_failure="ignore")  # type: ignore[arg-type]


def test_the_same_attempt_begins_once(file: Path) -> None:
    id = new_id()
    with opened(file) as ledger:
        ledger.begin(entry(id)).result(LONG)
        assert isinstance(ledger.begin(entry(id)).exception(0), LocalProtocolError)


def test_closing_again_or_before_anything_happened_does_no_harm(file: Path) -> None:
    ledger = Ledger(str(file))
    ledger.close()
    assert ledger.opened.done()
    ledger.close()
