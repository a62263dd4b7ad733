"""Every field of a chat request has a fate, and the reference says which."""

from __future__ import annotations

from pathlib import Path

from deltawire.fields import CHAT_FIELDS, FIELDS, fields_of
from deltawire.request import _FIELDS
from reference import reference
from schemas import properties

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "request.md"


def test_every_property_of_the_schema_at_every_depth_is_decided_on() -> None:
    assert [path for path, field in properties("chat_completion_request") if field is None] == []


def test_no_field_is_said_to_be_openais_that_is_not() -> None:
    found = {field.path for _, field in properties("chat_completion_request") if field is not None}
    assert {field.path for field in CHAT_FIELDS} == found


def test_a_field_has_one_fate() -> None:
    paths = [field.path for field in FIELDS]
    assert len(paths) == len(set(paths))


def test_every_field_that_is_not_dropped_is_read() -> None:
    fates = fields_of("")
    assert {name for name, field in fates.items() if field.fate != "dropped"} == set(_FIELDS)


def test_a_kind_has_the_fields_of_all_kinds_and_its_own() -> None:
    assert set(fields_of("messages[tool]")) == {"role", "content", "name", "tool_call_id"}
    assert fields_of("messages[function]")["name"].fate == "mapped"
    assert fields_of("messages[user]")["name"].fate == "dropped"


def test_the_reference_is_made_from_the_tables() -> None:
    assert REFERENCE.read_text() == reference()
