"""What a benchmark promises: a bar, what was measured, and a line that says whether it holds.

Ratios are medians of pairs: each round has both contenders, so that a busy neighbour, who comes and
goes between the rounds, slows the two of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One bar. value is None where it could not be measured; the limit is `most` or `least`."""

    what: str
    value: float | None
    most: float | None = None
    least: float | None = None
    unit: str = "x"

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self._short <= 0

    @property
    def _short(self) -> float:
        """By which part of the bar the value is on its wrong side."""
        value = self.value or 0.0
        if self.most is not None:
            return value / self.most - 1
        return 1 - value / (self.least or 1.0)

    def __str__(self) -> str:
        bar = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        if self.value is None:
            return f"{self.what}: bar {bar} {self.unit}: not measured"
        said = "holds" if self.holds else f"falls short by {self._short:.0%}"
        return f"{self.what}: {self.value:.3g} {self.unit}, bar {bar}: {said}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def judged(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Print a line for each; what goes into the figures as `bars`."""
    verdicts = list(verdicts)
    for verdict in verdicts:
        print(f"  {verdict}")
    return [verdict.to_dict() for verdict in verdicts]


def of_pairs(these: Sequence[float], those: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def ratio(times: dict[str, list[float]], this: str, that: str) -> float | None:
    """The same by name; None where one of them was not measured."""
    if not times.get(this) or not times.get(that):
        return None
    return of_pairs(times[this], times[that])
