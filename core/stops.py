"""Stop sequences, for upstreams that do not know them: where the content has to end.

Pure text in, text out; `stream.py` feeds it the content of a message and hangs up on a hit.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopSequences:
    """Finds the first of several stop sequences in text that comes in pieces.

    Text that may be the beginning of a stop sequence is held until the next piece decides.
    """

    __slots__ = (
        "_held",
        "_longest",
        "_stops",
    )

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What of the text so far can be shown now, and whether it ends at a stop sequence."""
        text = self._held + text
        cut = self._first(text)
        pending = self._pending(text)
        if cut is not None and cut <= pending:
            self._held = ""
            return text[:cut], True
        self._held = text[pending:]
        return text[:pending], False

    def release(self) -> tuple[str, bool]:
        """What was held, now that nothing can follow it, and whether it ends at a stop sequence."""
        text, self._held = self._held, ""
        cut = self._first(text)
        return text[:cut], cut is not None

    def _first(self, text: str) -> int | None:
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return min(places, default=None)

    def _pending(self, text: str) -> int:
        """Where an unfinished stop sequence may begin; the length of the text if nowhere."""
        for place in range(max(0, len(text) - self._longest + 1), len(text)):
            rest = text[place:]
            if any(len(rest) < len(stop) and stop.startswith(rest) for stop in self._stops):
                return place
        return len(text)
