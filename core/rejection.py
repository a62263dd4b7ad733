"""HTTP answers that are no stream: what they say, whose fault it is, and what a client is told.

Pure functions from a status, headers and a body to a `Failure`, a status and a delay. The exchange
is the only caller. Headers are a mapping with lower-case names (httpx's `Headers` will do).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from deltawire import shapes
from deltawire.chat import Failure

MAX_ERROR_BODY: Final = 64 * 1024
"""Bytes of an error's body that are read. OpenAI's have less than 1 KiB; a proxy's page fits."""

TIMEOUT: Final = "upstream_timeout"
UNREACHABLE: Final = "upstream_unreachable"
NO_ACCOUNT_READY: Final = "no_account_ready"

# Means the same to the client as it does here.
_KEPT: Final = frozenset({400, 401, 403, 404, 408, 409, 413, 422, 429})
# Another account may be served where this one was not; all other 4xx are about the request.
_OF_THE_ACCOUNT: Final = frozenset({401, 402, 403, 408, 429})
_BAD_GATEWAY: Final = 502
_GATEWAY_TIMEOUT: Final = 504

# Errors that come in a stream have no status; these are what OpenAI answers with for the same code
# (its error guide), so that clients raise the exception that fits.
_STATUSES: Final = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "rate_limit_error": 429,
    "model_not_found": 404,
    TIMEOUT: _GATEWAY_TIMEOUT,
    NO_ACCOUNT_READY: 429,
    shapes.EVENT_TOO_LARGE: _BAD_GATEWAY,
}

# What error objects are wrapped in: OpenAI's, FastAPI's, and what gateways make of them.
_MESSAGE_KEYS: Final = ("message", "detail", "error_description", "title", "msg")
_SHOWN: Final = 500

# What begins a tag or a comment after "<", as in HTML; anything else is text.
_TAG: Final = re.compile(r"[!?]|/?(?P<name>[A-Za-z][\w-]*)|/", re.ASCII)
_STATUS: Final = re.compile(r"[45]\d\d", re.ASCII)
# What may be in a key. A message is cut before it, so that no part of a key is left that nobody
# would recognize as one.
_LAST_WORD: Final = re.compile(r"[\w.~+/=-]+\Z")

_DATE: Final = re.compile(
    r"[A-Z][a-z]{2}, (?P<day>\d\d) (?P<month>[A-Z][a-z]{2}) (?P<year>\d{4})"
    r" (?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d) GMT",
    re.ASCII,
)
_MONTHS: Final = (
    *("", "Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


def accepted(status: int) -> bool:
    """Whether upstream took the request: the account counts as used."""
    return 200 <= status < 300


def of_the_request(status: int) -> bool:
    """Whether an error answer is about the request, so that every account would give it."""
    return 400 <= status < 500 and status not in _OF_THE_ACCOUNT


def status_for_client(status: int) -> int:
    """The status that tells a client what upstream's error status tells us."""
    if status == 402:
        # There is nothing that a client could pay; to come back later is what it can do.
        return 429
    return status if status in _KEPT else _BAD_GATEWAY


def status_of(failure: Failure) -> int:
    """The status for a failure that came without one."""
    for name in (failure.code, failure.type):
        if name in _STATUSES:
            return _STATUSES[name]
        if name and _STATUS.fullmatch(name):
            # OpenRouter, Azure and vLLM give the status itself as the code.
            return status_for_client(int(name))
    return _BAD_GATEWAY if failure.retryable else 400


def failure_of(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """The failure in an error answer, whatever its body looks like."""
    if 300 <= status < 400:
        # The query may be that of base_url, which can hold a key.
        location = headers.get("location", "nowhere").partition("?")[0]
        return Failure(
            f"the upstream redirects (HTTP {status}) to {_cut(location)!r};"
            " redirects are not followed, because the key would go there too: set base_url",
            type=shapes.UPSTREAM_ERROR,
        )
    value = _decoded(body)
    outer = value if isinstance(value, dict) else {}
    error = outer.get("error") or value
    if isinstance(error, str) and error:
        # Some have a mere name there and say more beside it.
        more = _message(outer)
        error = {"message": f"{error}: {more}" if more else error}
    if not isinstance(error, dict):
        error = outer
    message = _message(error) or _message(outer) or _plain(status, body)
    found = _with_outer(shapes.failure({**error, "message": message}), outer)
    kind = found.type
    if kind == shapes.UPSTREAM_ERROR and of_the_request(status):
        kind = "invalid_request_error"
    return Failure(found.message, kind, found.param, found.code, not of_the_request(status))


def _only(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value}


def _with_outer(found: Failure, outer: dict[str, Any]) -> Failure:
    """What stands beside the error object rather than in it."""
    beside = shapes.failure({"message": found.message, **_only(outer, "type", "code", "param")})
    kind = found.type if found.type != shapes.UPSTREAM_ERROR else beside.type
    return Failure(
        found.message, kind, found.param or beside.param, found.code or beside.code, found.retryable
    )


def _decoded(body: bytes) -> Any:
    try:
        value = msgspec.json.decode(body.decode("utf-8-sig", errors="replace"))
    except (msgspec.MsgspecError, RecursionError):
        return None
    # Google's gateways put the object into a list.
    return value[0] if isinstance(value, list) and value else value


def _message(error: dict[str, Any]) -> str | None:
    for key in _MESSAGE_KEYS:
        found = error.get(key)
        if isinstance(found, str) and found:
            return found
        if found:
            # FastAPI's detail is a list of what is wrong.
            return _cut(msgspec.json.encode(found).decode())
    return None


def _plain(status: int, body: bytes) -> str:
    """A message for a body that is no JSON object: what of it is text."""
    text = body.decode(errors="replace")
    if "<" in text:
        text = _untagged(text)
    text = " ".join(text.split())
    return f"HTTP {status}: {_cut(text)}" if text else f"HTTP {status} without a message"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else _LAST_WORD.sub("", text[:_SHOWN]) + "..."


def _untagged(page: str) -> str:
    """The text of an HTML page, styles and scripts left out. One pass, whatever the page."""
    first, *rest = page.split("<")
    pieces = [first]
    skipped = False
    for piece in rest:
        tag = _TAG.match(piece)
        # A tag that has no end was cut off.
        text = f"<{piece}" if tag is None else piece.partition(">")[2]
        if tag is not None and (tag["name"] or "").lower() in ("style", "script"):
            skipped = not piece.startswith("/")
        if not skipped:
            pieces.append(text)
    return " ".join(pieces)


def retry_after(headers: Mapping[str, str], unix_time: float) -> float | None:
    """Seconds until upstream wants to be asked again; None if it does not say.

    `unix_time`: what the time is, for a date that comes without the server's own.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return seconds
    until = _date(given)
    if until is None:
        return None
    since = _date(headers.get("date", ""))
    return max(0.0, until - (unix_time if since is None else since))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _date(text: str) -> float | None:
    """Unix seconds of a date in the form that HTTP servers send (RFC 9110, section 5.6.7)."""
    found = _DATE.fullmatch(text)
    if found is None or found["month"] not in _MONTHS:
        return None
    day, year, hour, minute, second = map(int, found.group("day", "year", "h", "m", "s"))
    try:
        moment = datetime(year, _MONTHS.index(found["month"]), day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    # A leap second is the first of the next minute.
    return moment.timestamp() + second
