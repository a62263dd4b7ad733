"""`kill -9` of a server under load: what upstream saw, and what the ledger says, are the same.

`DELTAWIRE_KILLS` says how many kills there are for each database (three by default), by turns of
each driver; `DELTAWIRE_SEED` draws what was drawn in a run before. Which write a kill falls into is
drawn by nobody, so that the same seed may have to be tried more than once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from deltawire.server.database import open_database, open_for_reading
from deltawire.server.rows import INTERRUPTED, OPEN, attempts
from load import DELTAWIRE, FINISHED, KINDS, Load, Seen, Simulator, kind_of, probe, simulating
from postgres import Postgres, postgres  # noqa: F401
from upstream import LIMIT

KILLS = int(os.environ.get("DELTAWIRE_KILLS", "3"))
SEED = int(os.environ.get("DELTAWIRE_SEED", random.SystemRandom().getrandbits(32)))
TRANSPORTS = ("asyncio", "trio", "sync")
# Many, because one that has failed rests a while, and nothing is sent when all do.
KEYS = {
    f"{upstream}-{number}": f"sk-{upstream}-{number}"
    for upstream in ("responses", "chat")
    for number in range(50)
}

Row = dict[str, Any]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


def configuration(upstream: str, ledger: str) -> str:
    parts = [f'[server]\nport = 0\nlog = "none"\n[ledger]\nurl = "{ledger}"\n']
    for api in ("responses", "chat"):
        parts.append(
            f'[[upstreams]]\nname = "{api}"\napi = "{api}"\nbase_url = "{upstream}/v1"\n'
            f'models = ["*;key={api}-*"]\npolicy = {{ attempts = 3 }}\n'
        )
        parts += [
            f'[[upstreams.accounts]]\nname = "{name}"\nkey = "{key}"\n'
            for name, key in KEYS.items()
            if name.startswith(api)
        ]
    return "".join(parts)


@contextlib.contextmanager
def serving(folder: Path, start: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that has looked for rows that were left open, and its URL.

    start: how many there were before. What it complains of is appended to `errors`.
    """
    command = [*DELTAWIRE, "serve", "--transport", TRANSPORTS[start % len(TRANSPORTS)]]
    with (
        (folder / "errors").open("a") as errors,
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[2].removesuffix("/v1/chat/completions")
            # The second is begun after the search.
            for number in range(2):
                probe(url, f"plain;deltas=4;key=chat-probe-{start}-{number}")
            yield process, url
        finally:
            process.kill()


@dataclass
class Books:
    """What is known of all rounds so far, apart from the ledger."""

    simulator: Simulator
    url: str
    folder: Path
    seen: list[Seen] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    def rows(self, before: float) -> list[Row]:
        """Of attempts that began before then, in their order."""
        engine = open_for_reading(self.url)
        with engine.connect() as connection:
            query = select(attempts).where(attempts.c.started_at < before)
            found = connection.execute(query.order_by("request_id", "number"))
            rows = [dict(row._mapping) for row in found]
        engine.dispose()
        return rows

    def compare_all(self, before: float) -> list[Row]:
        """Hold everything against the ledger; its rows."""
        rows = self.rows(before)
        self.compare(rows)
        self.compare_usage(rows, before)
        return rows

    def compare(self, rows: list[Row]) -> None:
        """The law."""
        saw = Counter((each.model, each.account) for each in self.seen)
        wrote = Counter((row["model"], row["account"]) for row in rows)
        assert not [key for key, count in saw.items() if count > 1]
        assert not [key for key, count in wrote.items() if count > 1]
        assert not saw.keys() - wrote.keys()
        assert len({row["id"] for row in rows}) == len(rows)
        seen = {(each.model, each.account): each for each in self.seen}
        for row in rows:
            self._compare_one(row, seen.get((row["model"], row["account"])))
        for model in self.answered:
            ends = [row["outcome"] for row in rows if row["model"] == model]
            assert ends[-1] in FINISHED | {INTERRUPTED}, model
        for row, after in itertools.pairwise(rows):
            if row["request_id"] == after["request_id"]:
                # Whatever became of the last attempt, those before it had been settled.
                assert after["number"] == row["number"] + 1
                assert row["outcome"] != INTERRUPTED, row
            else:
                assert after["number"] == 1

    def _compare_one(self, row: Row, seen: Seen | None) -> None:
        outcome = row["outcome"]
        if outcome == INTERRUPTED:
            return
        if outcome == "cancelled":
            assert row["model"] in self.left, row
            return
        # Nothing else is known of an attempt that was never sent.
        assert seen is not None, row
        assert outcome == ("rejected" if seen.status >= 400 else KINDS[kind_of(seen.model)]), row
        assert row["used"] == (seen.status < 400), row
        if outcome in FINISHED:
            assert self.simulator.said_all(seen), (row, seen)
            # A Chat stream has no usage unless its client asks for it.
            assert (row["total_tokens"] or 0) > 0 or (seen.api, seen.stream) == ("chat", True), row

    def compare_usage(self, rows: list[Row], before: float) -> None:
        """That `deltawire usage` adds up the same rows."""
        until = datetime.fromtimestamp(before, UTC).isoformat()
        command = [*DELTAWIRE, "usage", "--ledger", self.url, "--json", "--until", until]
        for by in ([], ["--by", "account"]):
            done = subprocess.run(
                [*command, *by], cwd=self.folder, capture_output=True, text=True, check=True
            )
            groups: dict[str | None, list[Row]] = {} if by else {None: rows}
            for row in rows if by else []:
                groups.setdefault(row["account"], []).append(row)
            assert json.loads(done.stdout) == [
                summary(key, groups[key]) for key in sorted(groups, key=str)
            ]


def summary(key: str | None, rows: list[Row]) -> dict[str, object]:
    counts = Counter(row["outcome"] for row in rows)
    tokens = ("prompt", "completion", "total", "cached", "reasoning")
    return {
        "key": key,
        "attempts": len(rows),
        "used": sum(row["used"] for row in rows),
        "failures": sum(
            counts[each] for each in ("failed", "truncated", "rejected", "unreachable", INTERRUPTED)
        ),
        "open": counts[OPEN],
        **{f"{each}_tokens": sum(row[f"{each}_tokens"] or 0 for row in rows) for each in tokens},
    }


def wait_for_deaths(url: str) -> None:
    """PostgreSQL may take a moment to notice that a process is gone."""
    if not url.startswith("postgresql"):
        return
    connection = open_database(url, LIMIT).connect()
    with connection.begin():
        left_open = select(attempts.c.instance).where(attempts.c.outcome == OPEN).distinct()
        for instance in [*connection.scalars(left_open)]:
            key = int.from_bytes(UUID(instance).bytes[:8], signed=True)
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    connection.close()


def now() -> float:
    return datetime.now(UTC).timestamp()


def kill(process: subprocess.Popen[str], load: Load, chance: random.Random) -> None:
    """Under load, and for some while they are about to stop anyway."""
    load.start()
    load.wait(int(10 ** chance.uniform(0.5, 3.3)))
    is_stopping = chance.random() < 0.2
    if is_stopping:
        load.signal(process, signal.SIGTERM)
        load.wait(chance.randrange(1, 50))
    load.signal(process, signal.SIGKILL)
    load.join()
    assert load.errors == []
    assert process.wait(LIMIT) == -signal.SIGKILL or is_stopping


def test_every_attempt_that_upstream_saw_has_one_row_whenever_the_server_dies(
    url: str, tmp_path: Path
) -> None:
    print(f"DELTAWIRE_SEED={SEED}")
    chance = random.Random(SEED)
    statuses: Counter[int] = Counter()
    with simulating(KEYS) as simulator:
        simulator.learn()
        (tmp_path / "deltawire.toml").write_text(configuration(simulator.url, url))
        books = Books(simulator, url, tmp_path)
        for start in range(KILLS):
            began = now()
            with serving(tmp_path, start) as (process, server):
                books.compare_all(began)
                load = Load(server, chance, str(start))
                kill(process, load, chance)
            books.answered |= load.answered
            books.left |= load.left
            books.seen += simulator.report()
            statuses += load.statuses
            wait_for_deaths(url)
        with serving(tmp_path, KILLS) as (process, _):
            process.terminate()
            assert process.wait(LIMIT) == 0
            books.seen += simulator.report()
        rows = books.compare_all(now())
    outcomes = Counter(row["outcome"] for row in rows)
    print(
        f"{KILLS} kills: upstream saw {len(books.seen)} attempts; {len(rows)} rows:"
        f" {dict(outcomes.most_common())}; clients: {len(books.answered)} whole answers,"
        f" {len(books.left)} left, statuses {dict(statuses)}"
    )
    assert (tmp_path / "errors").read_text() == ""
    # The load was one, and the deaths were real.
    assert outcomes[INTERRUPTED]
    assert outcomes["completed"] > 2 * (KILLS + 1)
