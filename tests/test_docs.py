"""Diagrams and tables in the documents are those of the code."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

from deltawire.attempts import Outcome, Policy, Timeouts
from deltawire.steps import TRANSITIONS, Phase
from deltawire.transports.settings import Settings, Transport

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "transports.md").read_text()


def phases() -> str:
    """The table of phases as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {Phase.OPENING.name}", f"    [*] --> {Phase.WAITING.name}"]
    lines += [
        f"    {before.name} --> {after.name}: {signal.value}"
        for before, row in TRANSITIONS.items()
        for signal, after in row.items()
    ]
    return "\n".join([*lines, "```"])


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the tables under a heading."""
    section = TEXT.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [row.split("`")[1] for row in rows]


def test_the_diagram_is_that_of_the_table() -> None:
    drawn = TEXT.partition("<!-- phases -->\n")[2].partition("\n<!-- /phases -->")[0]
    assert drawn == phases()


def test_every_setting_is_described_and_typed() -> None:
    parameters = list(inspect.signature(Transport.__init__).parameters)[1:]
    assert first_cells("## Settings") == parameters
    assert list(Settings.__annotations__) == parameters


def test_every_timeout_and_policy_is_described() -> None:
    for kind in (Timeouts, Policy):
        for name in kind.__struct_fields__:
            assert f"`{name}`" in TEXT


def test_every_outcome_is_described() -> None:
    assert first_cells("## Accounts") == list(get_args(Outcome))
