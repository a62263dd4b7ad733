"""Prints which real clients work in which cases on which transports, as a table in Markdown.

    EXTRAS=dev ./run python tests/client_table.py

It runs `test_real_clients.py` and says what came of it. The exit status is that of the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from client_cases import CLIENTS, MODELS, TRANSPORTS
from environments import client_version

TESTS = Path(__file__).parent
SIGNS = {"passed": "✓", "failed": "✗", "skipped": "-"}


class Results:
    """A plugin of pytest: an outcome for each client, case and transport."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cell" and (report.when == "call" or report.outcome != "passed"):
                assert isinstance(value, tuple)
                self.outcomes[value] = SIGNS[report.outcome]


def table(results: Results) -> str:
    """A row for each client, a column for each case."""
    lines = [f"| client | {' | '.join(MODELS)} |", f"|---|{'---|' * len(MODELS)}"]
    notes: list[str] = []

    def noted(text: str, note: str | None) -> str:
        if note is None:
            return text
        notes.append(note)
        return f"{text} ({len(notes)})"

    for client in CLIENTS:
        version = client_version(client.program, client.package)
        row = [noted(f"{client.name} {version}", client.notes.get(""))]
        for case in MODELS:
            marks = [results.outcomes.get((client.name, case, each), "?") for each in TRANSPORTS]
            if case in client.lacks:
                row.append(noted("n/a", f"{client.lacks[case]}; the rest is right"))
            else:
                row.append(noted("".join(marks), client.notes.get(case)))
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", f"Each mark is a transport: {', '.join(TRANSPORTS)}."]
    lines += [f"({number}) It {note}." for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


def main() -> int:
    results = Results()
    tests = str(TESTS / "test_real_clients.py")
    status = pytest.main(["-q", "--no-header", "--no-summary", tests], plugins=[results])
    print(f"\n{table(results)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
