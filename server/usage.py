"""`deltawire usage`: what the ledger says was attempted, used and spent.

What may live here: questions to the ledger, and how the answers are shown. What may not: anything
that writes to it. The command line calls `add_arguments` and `run`; `summarize` is for everybody.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.exc import SQLAlchemyError

from deltawire.errors import InvalidSetting
from deltawire.server.database import LedgerUnavailable, explain, open_for_reading, parse_url
from deltawire.server.rows import INTERRUPTED, OPEN, attempts

By = Literal["account", "model", "day", "client", "upstream"]
BY: Final[tuple[By, ...]] = ("account", "model", "day", "client", "upstream")

FINISHED: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2

_FAILURES: Final = ("failed", "truncated", "rejected", "unreachable", INTERRUPTED)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class Summary(Struct, frozen=True, kw_only=True):
    """What a group of attempts came to.

    key: what they have in common, a day as `2026-11-01` (UTC); None: nothing was asked for, or
    they have no client. used: accepted by upstream, so that the account is charged. failures: ended
    without an answer and not by the client's leaving. open: not settled yet. Tokens are those that
    upstream reported.
    """

    key: str | None
    attempts: int
    used: int
    failures: int
    open: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int


_COUNTS: Final = Summary.__struct_fields__[1:]
_TITLES: Final = (
    "attempts",
    "used",
    "failures",
    "open",
    "prompt",
    "completion",
    "total",
    "cached",
    "reasoning",
)


def summarize(
    url: str, by: By | None = None, since: float | None = None, until: float | None = None
) -> list[Summary]:
    """The attempts that began from `since` to before `until` (Unix seconds), by what was asked for.

    In the order of the keys. Without `by` one summary, even of nothing. Raises InvalidSetting for
    a ledger that cannot be, LedgerUnavailable for one that cannot be read now.
    """
    columns = [_counted(name) for name in _COUNTS]
    query = select(*columns)
    if by is not None:
        query = query.add_columns(attempts.c[by]).group_by(attempts.c[by])
    if since is not None:
        query = query.where(attempts.c.started_at >= since)
    if until is not None:
        query = query.where(attempts.c.started_at < until)
    engine = open_for_reading(url)
    try:
        with engine.connect() as connection:
            found = connection.execute(query).all()
    except SQLAlchemyError as error:
        reason = explain(error, parse_url(url).password)
        raise LedgerUnavailable(f"the ledger cannot be read: {reason}") from None
    finally:
        engine.dispose()
    # Sorted here: databases have orders of their own, for None as for letters.
    found = sorted(found, key=lambda row: (row[-1] is not None, row[-1])) if by else found
    return [_summary(by, row) for row in found]


def _counted(name: str) -> ColumnElement[Any]:
    if name == "attempts":
        return func.count()
    if name == "used":
        return _how_many(attempts.c.used)
    if name == "failures":
        return _how_many(attempts.c.outcome.in_(_FAILURES))
    if name == "open":
        return _how_many(attempts.c.outcome == OPEN)
    return func.coalesce(func.sum(attempts.c[name]), 0)


def _how_many(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _summary(by: By | None, row: Sequence[Any]) -> Summary:
    key = row[-1] if by is not None else None
    if by == "day":
        key = str(date(1970, 1, 1) + timedelta(days=row[-1]))
    # PostgreSQL's sums are decimals.
    counts = {name: int(count) for name, count in zip(_COUNTS, row, strict=False)}
    return Summary(key=key, **counts)


def as_table(summaries: Sequence[Summary], by: By | None = None) -> str:
    """For people; with a line of totals where there is something to add up."""
    lines = [[by or "", *_TITLES]]
    lines += [[_shown(summary.key), *_counts(summary)] for summary in summaries]
    if by is not None and len(summaries) > 1:
        sums = [sum(getattr(summary, name) for summary in summaries) for name in _COUNTS]
        lines.append(["total", *(f"{count:,}" for count in sums)])
    if by is None:
        lines = [line[1:] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(_aligned(line, widths, by is not None) + "\n" for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int], keyed: bool) -> str:
    cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
    if keyed:
        cells[0] = line[0].ljust(widths[0])
    return "  ".join(cells)


def _counts(summary: Summary) -> list[str]:
    return [f"{getattr(summary, name):,}" for name in _COUNTS]


def _shown(key: str | None) -> str:
    """Names of models are what clients sent, and nothing that a terminal should obey."""
    if key is None:
        return "-"
    return "".join(letter if letter.isprintable() else "?" for letter in key)


def as_json(summaries: Sequence[Summary]) -> str:
    return msgspec.json.format(msgspec.json.encode(summaries)).decode() + "\n"


def as_csv(summaries: Sequence[Summary]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Summary.__struct_fields__)
    writer.writerows(msgspec.structs.astuple(summary) for summary in summaries)
    return out.getvalue()


def moment(said: str, now: float | None = None) -> float:
    """Unix seconds of `7d`, `24h`, `30m` (before now), `2026-11-01` or `2026-11-01T12:00+01:00`.

    What names no zone is UTC. Raises ValueError.
    """
    if ago := re.fullmatch(r"(\d{1,6})([smhdw])", said, re.ASCII):
        return (time.time() if now is None else now) - int(ago[1]) * _UNITS[ago[2]]
    then = datetime.fromisoformat(said)
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `deltawire usage`, for `run`."""
    parser.add_argument(
        "--ledger",
        metavar="URL",
        default="deltawire.db",
        help="a file, sqlite:///FILE or postgresql://... (default: deltawire.db)",
    )
    parser.add_argument("--by", choices=BY, help="a line for each")
    when = "7d, 24h, 2026-11-01 or 2026-11-01T12:00 (UTC unless it names a zone)"
    parser.add_argument("--since", metavar="WHEN", type=_moment, help=when)
    parser.add_argument("--until", metavar="WHEN", type=_moment, help="before then; as --since")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a list of objects")
    form.add_argument("--csv", action="store_true", help="with a line of names")


def _moment(said: str) -> float:
    try:
        return moment(said)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"expected a time such as 7d, 24h or 2026-11-01, got {said!r}"
        ) from None


def run(options: argparse.Namespace) -> int:
    """Print what was asked for. Exit status: 1 if the ledger cannot be read, 2 if there is none."""
    try:
        summaries = summarize(options.ledger, options.by, options.since, options.until)
    except (InvalidSetting, LedgerUnavailable) as error:
        print(f"deltawire: {error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, InvalidSetting) else FAILED
    if options.json:
        sys.stdout.write(as_json(summaries))
    elif options.csv:
        sys.stdout.write(as_csv(summaries))
    else:
        sys.stdout.write(as_table(summaries, options.by))
    return FINISHED
