"""What a row of the ledger says, and the statements that write it; the same for every database.

What may live here: the tables, how an attempt becomes a row, the statements. What may not: how a
database is opened (`database`), when something is written (`ledger`), what is asked (`usage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    delete,
    insert,
    update,
)

from deltawire.attempts import Attempt

OPEN: Final = "open"
INTERRUPTED: Final = "interrupted"

METADATA: Final = MetaData()

attempts: Final = Table(
    "deltawire_attempts",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("instance", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("client", Text),
    Column("upstream", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("upstream_model", Text),
    # Unix seconds.
    Column("started_at", Double, nullable=False, index=True),
    # Days since 1970 in UTC: the two databases have no way in common to round down.
    Column("day", Integer, nullable=False),
    # "open", one of `deltawire.attempts.Outcome`, or "interrupted".
    Column("outcome", Text, nullable=False),
    Column("used", Boolean, nullable=False),
    Column("status", Integer),
    Column("code", Text),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Column("total_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    # Seconds since the beginning of the attempt.
    Column("first_event", Double),
    Column("duration", Double),
    Column("upstream_request_id", Text),
)
# Only of open rows, which are few: what was settled costs the search for them nothing.
Index(
    "deltawire_attempts_open",
    attempts.c.instance,
    sqlite_where=attempts.c.outcome == OPEN,
    postgresql_where=attempts.c.outcome == OPEN,
)

schema: Final = Table(
    "deltawire_schema",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("version", Integer, nullable=False),
)
VERSION: Final = 1
"""Of the tables above. A later one comes with the steps that lead to it from each earlier one."""

_SETTLED: Final = [column.name for column in attempts.columns][11:]
"""What a settlement changes: from the outcome on."""

# Model names and codes come from strangers; none that is meant is longer.
_MAX_TEXT: Final = 256
# More tokens than that are a mistake, and a few of them would be more than a sum can hold.
_MAX_TOKENS: Final = 2**40
_SECONDS_A_DAY: Final = 86_400

_BEGIN: Final = insert(attempts)
_SETTLE: Final = update(attempts).where(attempts.c.id == bindparam("key"))
_WITHDRAW: Final = delete(attempts).where(attempts.c.id == bindparam("key"))
# Changes nothing, but only where something could be changed: a full disk does not show in reading.
_PROBE: Final = update(schema).values(version=schema.c.version)

Row = dict[str, Any]


class Entry(Struct, frozen=True, kw_only=True):
    """What is known of an attempt before it is sent.

    id: of the row, a UUID's text, new for each attempt.
    request_id: of the call, ours.
    number: 1 for the first attempt of its call.
    client: the name of the client's key; None: nobody asked for one.
    upstream: its name in the configuration; account: the account's.
    model: as the client named it; upstream_model: as upstream is asked for it.
    started_at: Unix seconds.
    """

    id: str
    request_id: str
    number: int
    client: str | None = None
    upstream: str
    account: str
    model: str
    upstream_model: str | None = None
    started_at: float


def begun(entry: Entry, instance: str) -> Row:
    """The row of an attempt that is about to be sent."""
    return {
        "id": _text(entry.id),
        "instance": instance,
        "request_id": _text(entry.request_id),
        "number": entry.number,
        "client": _text(entry.client),
        "upstream": _text(entry.upstream),
        "account": _text(entry.account),
        "model": _text(entry.model),
        "upstream_model": _text(entry.upstream_model),
        "started_at": entry.started_at,
        "day": int(entry.started_at // _SECONDS_A_DAY),
        **dict.fromkeys(_SETTLED),
        "outcome": OPEN,
        "used": False,
    }


def settled(row: Row, attempt: Attempt) -> Row:
    """The same row, whole."""
    usage = attempt.usage
    prompt = usage.prompt_tokens_details if usage else None
    completion = usage.completion_tokens_details if usage else None
    return {
        **row,
        "outcome": attempt.outcome,
        "used": attempt.used,
        "status": attempt.status,
        "code": _text(attempt.code),
        "prompt_tokens": _tokens(usage.prompt_tokens if usage else None),
        "completion_tokens": _tokens(usage.completion_tokens if usage else None),
        "total_tokens": _tokens(usage.total_tokens if usage else None),
        "cached_tokens": _tokens(prompt.cached_tokens if prompt else None),
        "reasoning_tokens": _tokens(completion.reasoning_tokens if completion else None),
        "first_event": attempt.first_event,
        "duration": attempt.duration,
        "upstream_request_id": _text(attempt.request_id),
    }


def _text(value: str | None) -> str | None:
    """What every database takes: PostgreSQL has no NUL, and UTF-8 has no lone surrogates."""
    if value is None:
        return None
    return value[:_MAX_TEXT].replace("\0", "?").encode(errors="replace").decode()


def _tokens(count: int | None) -> int | None:
    return count if count is not None and 0 <= count <= _MAX_TOKENS else None


def write(
    connection: Connection,
    *,
    withdrawn: Sequence[str] = (),
    begun: Sequence[Row] = (),
    settled: Sequence[Row] = (),
) -> None:
    """Delete the withdrawn, then write the others; where there is nothing, see whether one could.

    A settlement goes over its row as it was begun, or is written whole where that is not there.
    """
    if withdrawn:
        connection.execute(_WITHDRAW, [{"key": id} for id in withdrawn])
    if begun:
        connection.execute(_BEGIN, begun)
    if settled:
        _settle(connection, settled)
    if not (begun or settled):
        connection.execute(_PROBE)


def _settle(connection: Connection, rows: Sequence[Row]) -> None:
    changes = [{"key": row["id"], **{name: row[name] for name in _SETTLED}} for row in rows]
    if connection.execute(_SETTLE, changes).rowcount == len(rows):
        return
    for row, change in zip(rows, changes, strict=True):
        if not connection.execute(_SETTLE, change).rowcount:
            connection.execute(_BEGIN, row)


def interrupt(connection: Connection, instance: str) -> None:
    """Of what an instance left open, say so."""
    left_open = (attempts.c.instance == instance) & (attempts.c.outcome == OPEN)
    connection.execute(update(attempts).where(left_open).values(outcome=INTERRUPTED))
