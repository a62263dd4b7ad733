"""The access log: a line for each request, for people or as JSON.

No line has a key, a query, or anything of a message. Lines are written by a thread of their own:
a terminal that stands still, or a pipe that nobody reads, holds up no stream.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

from deltawire.attempts import Attempt
from deltawire.server.records import Served

LOGGER: Final = logging.getLogger("deltawire.access")

_MAX_SHOWN: Final = 80
_PLAIN: Final = re.compile(r"[\w./:@+-]+", re.ASCII)
# Some minutes of a busy server, and a few MB.
_MAX_WAITING: Final = 10_000
# Seconds to get rid of them at the end.
_PATIENCE: Final = 1.0


def for_people(served: Served) -> str:
    """The line, with what is of interest first."""
    words = [
        _time(served.time),
        str(served.status),
        served.method,
        shown(served.path),
        f"{served.duration:.3f}s",
    ]
    if served.call is not None:
        words.append(shown(served.call.model))
        words += [_attempt(served.call.upstream.name, each) for each in served.attempts]
        if served.left:
            words.append("left")
        if served.first_event is not None:
            words.append(f"first={served.first_event:.3f}s")
        words += _usage(served)
        if served.call.client is not None:
            words.append(f"client={served.call.client}")
    words += [f"from={served.peer or '-'}", served.request_id]
    return " ".join(words)


def _attempt(upstream: str, attempt: Attempt) -> str:
    reason = attempt.code or attempt.status
    told = f"({shown(str(reason))})" if attempt.outcome != "completed" and reason else ""
    return f"{upstream}/{attempt.account}={attempt.outcome}{told}"


def _usage(served: Served) -> list[str]:
    for attempt in reversed(served.attempts):
        if attempt.usage is not None:
            return [f"tokens={attempt.usage.prompt_tokens}+{attempt.usage.completion_tokens}"]
    return []


def as_json(served: Served) -> str:
    """The line as an object; what there is nothing to say of is left out."""
    call = served.call
    value: dict[str, Any] = {
        "time": _time(served.time),
        "request_id": served.request_id,
        "peer": served.peer or None,
        "method": served.method,
        "path": served.path[:_MAX_SHOWN],
        "status": served.status,
        "duration": round(served.duration, 6),
    }
    if call is not None:
        value |= {
            "client": call.client,
            "model": call.model[:_MAX_SHOWN],
            "upstream": call.upstream.name,
            "stream": call.streamed,
            "events": served.events or None,
            "left": served.left or None,
            "first_event": served.first_event and round(served.first_event, 6),
            "attempts": [_without_nones(_attempt_as_json(each)) for each in served.attempts],
        }
    return msgspec.json.encode(_without_nones(value)).decode()


def _attempt_as_json(attempt: Attempt) -> dict[str, Any]:
    return {
        "account": attempt.account,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "code": attempt.code,
        "duration": attempt.duration and round(attempt.duration, 6),
        "usage": attempt.usage,
    }


def _without_nones(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each is not None}


def _time(unix_time: float) -> str:
    moment = datetime.fromtimestamp(unix_time, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(text: str) -> str:
    """A client's own text as one word of a line: nothing in it can look like another word."""
    kept = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
    return kept if _PLAIN.fullmatch(kept) else msgspec.json.encode(kept).decode()


class _Writer(logging.Handler):
    """Gives lines to a thread that writes them; those that it has no room for are counted."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        # Where nobody reads, it stands still for ever, and may not hold up the end of the process.
        self._thread = threading.Thread(target=self._write, name="deltawire-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                self._lines.put_nowait(f"{self._lost} lines of this log were lost: nobody read it")
                self._lost = 0
            self._lines.put_nowait(record.getMessage())
        except queue.Full:
            self._lost += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            # A reader that left is no reason to serve no more.
            with contextlib.suppress(OSError, ValueError):
                # Each by itself: several workers may write to the same pipe.
                self._out.write(line + "\n")
                self._out.flush()

    def close(self) -> None:
        """Write what waits, if that goes on at all."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE)
            self._thread.join(_PATIENCE)
        super().close()


@contextlib.contextmanager
def written(out: TextIO) -> Iterator[None]:
    """While it lasts, the lines go there, and nowhere else."""
    writer = _Writer(out)
    LOGGER.addHandler(writer)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(writer)
        writer.close()
