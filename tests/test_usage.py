"""`deltawire usage`: what it adds up and how it shows it."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from deltawire.attempts import Attempt, Outcome
from deltawire.chat import CompletionTokensDetails, PromptTokensDetails, Usage
from deltawire.errors import InvalidSetting
from deltawire.server import usage
from deltawire.server.database import LedgerUnavailable, open_database
from deltawire.server.rows import Entry, Row, attempts, begun, settled
from deltawire.server.usage import Summary, moment, summarize
from postgres import PASSWORD, Postgres, postgres  # noqa: F401

DAY = 86_400
START = 20_000 * DAY
"""2024-10-04 00:00 UTC."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


def fill(url: str, rows: list[Row]) -> None:
    connection = open_database(url, 5.0).connect()
    with connection.begin():
        connection.execute(delete(attempts))
        if rows:
            connection.execute(insert(attempts), rows)
    connection.close()


def row(outcome: str = "completed", tokens: int | None = 1, used: bool = True, **key: Any) -> Row:
    given = {"account": "a", "model": "m", "upstream": "u", "client": None, "started_at": START}
    entry = Entry(id=str(uuid4()), request_id="r", number=1, **{**given, **key})
    beginning = begun(entry, uuid4().hex)
    if outcome == "open":
        return beginning
    spent = tokens and Usage(
        tokens,
        2 * tokens,
        3 * tokens,
        PromptTokensDetails(4 * tokens),
        CompletionTokensDetails(5 * tokens),
    )
    attempt = Attempt(number=1, account="a", model="m", started=0.0, used=used, usage=spent or None)
    return {**settled(beginning, attempt), "outcome": outcome}


OUTCOMES = [*get_args(Outcome), "open", "interrupted"]
ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(OUTCOMES),
        st.sampled_from([None, 1, 2**40]),
        st.booleans(),
        account=st.sampled_from(["a", "B", "é"]),
        client=st.sampled_from([None, "x", "y"]),
        started_at=st.sampled_from([START - 0.25, START, START + 0.75, START + DAY - 0.001]),
    ),
    max_size=12,
)


def expected(key: str | None, group: list[Row]) -> Summary:
    failures = {"failed", "truncated", "rejected", "unreachable", "interrupted"}
    kinds = ("prompt", "completion", "total", "cached", "reasoning")
    return Summary(
        key=key,
        attempts=len(group),
        used=sum(row["used"] for row in group),
        failures=sum(row["outcome"] in failures for row in group),
        open=sum(row["outcome"] == "open" for row in group),
        **{f"{kind}_tokens": sum(row[f"{kind}_tokens"] or 0 for row in group) for kind in kinds},
    )


def test_sums_are_those_of_the_rows_whatever_they_are_grouped_by(url: str) -> None:
    keys: dict[usage.By, Callable[[Row], str | None]] = {
        "account": lambda row: row["account"],
        "client": lambda row: row["client"],
        "model": lambda row: row["model"],
        "upstream": lambda row: row["upstream"],
        "day": lambda row: "2024-10-03" if row["started_at"] < START else "2024-10-04",
    }

    @given(rows=ROWS, since=st.sampled_from([None, START]), until=st.sampled_from([None, START]))
    @settings(max_examples=30)
    def law(rows: list[Row], since: float | None, until: float | None) -> None:
        fill(url, rows)
        chosen = [
            row
            for row in rows
            if (since is None or row["started_at"] >= since)
            and (until is None or row["started_at"] < until)
        ]
        assert summarize(url, None, since, until) == [expected(None, chosen)]
        for by, key in keys.items():
            found = {key(row) for row in chosen}
            wanted = [
                expected(name, [row for row in chosen if key(row) == name])
                for name in sorted(found, key=lambda name: (name is not None, name or ""))
            ]
            assert summarize(url, by, since, until) == wanted

    law()


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    usage.add_arguments(parser)
    return usage.run(parser.parse_args(arguments))


@pytest.fixture
def file(tmp_path: Path) -> str:
    file = str(tmp_path / "ledger.db")
    fill(
        file,
        [
            row("completed", 1000, model="gpt"),
            row("completed", 500, model="gpt", started_at=START + DAY),
            row("rejected", None, used=False, model="bad\x1b[31m"),
            row("open", model="gpt"),
        ],
    )
    return file


def test_the_table_is_aligned_totalled_and_harmless(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--ledger", file, "--by", "model") == 0
    assert capsys.readouterr().out == (
        "model     attempts  used  failures  open  prompt  completion  total  cached  reasoning\n"
        "bad?[31m         1     0         1     0       0           0      0       0          0\n"
        "gpt              3     2         0     1   1,500       3,000  4,500   6,000      7,500\n"
        "total            4     2         1     1   1,500       3,000  4,500   6,000      7,500\n"
    )


def test_without_a_key_the_table_is_one_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--ledger", file, "--since", "2024-10-05") == 0
    assert capsys.readouterr().out == (
        "attempts  used  failures  open  prompt  completion  total  cached  reasoning\n"
        "       1     1         0     0     500       1,000  1,500   2,000      2,500\n"
    )


def test_json_and_csv_say_the_same(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--ledger", file, "--by", "day", "--json") == 0
    objects = json.loads(capsys.readouterr().out)
    assert run("--ledger", file, "--by", "day", "--csv") == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [{k: str(v) for k, v in each.items()} for each in objects] == records
    assert [each["key"] for each in objects] == ["2024-10-04", "2024-10-05"]


def test_times_are_ago_or_utc_unless_they_name_a_zone() -> None:
    assert moment("7d", now=START) == START - 7 * DAY
    assert moment("90m", now=START) == START - 5400
    assert moment("2024-10-04") == START
    assert moment("2024-10-04T01:00") == START + 3600
    assert moment("2024-10-04T01:00+01:00") == START


@pytest.mark.parametrize(
    "said", ["", "yesterday", "7", "-7d", "7y", "2024-13-01", "\u0667d", "1e3d"]
)
def test_what_is_no_time_is_wrong_usage(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(f"--since={said}")
    assert caught.value.code == 2
    assert "expected a time such as 7d" in capsys.readouterr().err


def test_a_ledger_that_is_not_there_is_wrong_usage_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.db"
    assert run("--ledger", str(file)) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not file.exists()
    with pytest.raises(InvalidSetting):
        summarize(str(tmp_path))


def test_a_file_that_is_no_ledger_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.db"
    file.write_text("no database" * 100)
    assert run("--ledger", str(file)) == 1
    assert "cannot be read: file is not a database" in capsys.readouterr().err


def test_a_database_that_is_away_is_a_failure_without_secrets(
    postgres: Postgres,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = postgres.database()
    with pytest.raises(LedgerUnavailable, match="does not exist"):
        summarize(url)
    postgres.stop()
    try:
        assert run("--ledger", url) == 1
    finally:
        postgres.start()
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert PASSWORD not in said
    assert PASSWORD.replace("/", "%2F") not in said
