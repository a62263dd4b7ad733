"""Dialects are found by name, and an unknown name says which there are."""

from __future__ import annotations

import pytest

from deltawire import DIALECTS, XAI, dialect_named


def test_every_dialect_is_found_by_its_name() -> None:
    for name, dialect in DIALECTS.items():
        assert dialect_named(name) is dialect


def test_an_unknown_name_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'groq'.*generic.*openai.*xai"):
        dialect_named("groq")


def test_xai_runs_its_own_tools_by_name_or_by_call_id() -> None:
    assert XAI.runs_tool("x_keyword_search", "call_1")
    assert XAI.runs_tool("anything", "xs_call_1")
    assert not XAI.runs_tool("sql", "call_1")
