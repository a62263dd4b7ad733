"""`docs/request.md`, from the tables in the code: `python tests/reference.py > docs/request.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from deltawire import DIALECTS
from deltawire.fields import CHAT_FIELDS, EXTENSIONS, Field

HEAD = """\
# What becomes of a chat request

Made from the tables in `core/fields.py` and `core/dialects.py`; a test keeps it so.

`[]` is any element of a list, `[text]` a value whose `type` (of a message, whose `role`) is that.
*mapped* says where the field goes in the Responses request, *emulated* how it is made good,
*dropped* why it cannot be carried over (the report says so each time), *refused* why a request that
asks for more gets a 400. Fields below a dropped one share its fate; what is in no table is dropped
as an unknown field, and is in the report.
"""

DIALECT_HEAD = """\
## How upstreams differ

By name: `dialect=VLLM`, `dialect_named("vllm")`; by its URL: `dialect_for_url(url)`.
"""


def table(fields: Iterable[Field]) -> list[str]:
    rows = [f"| `{field.path}` | {field.fate} | {field.note} |" for field in fields]
    return ["| field | fate | |", "|---|---|---|", *rows]


def dialects() -> list[str]:
    lines: list[str] = []
    for dialect in DIALECTS.values():
        lines += [f"### {dialect.name}", ""]
        facts = {
            "hosts": ", ".join(dialect.hosts),
            "takes beyond the Responses API": ", ".join(dialect.accepts),
            "instructions": "the messages that begin" if dialect.instructions else "",
            "developer": dialect.developer_role,
            "messages say that they are": "yes" if dialect.typed_messages else "no",
            "text in parts": "no" if dialect.plain_text is not None else "yes",
            "assistant's messages in parts": "yes" if dialect.output_messages else "no",
            "results in parts": "yes" if dialect.result_parts else "no",
            "custom tools": "yes" if dialect.custom_tools else "no",
            "takes reasoning back": dialect.reasoning_history
            + ("" if dialect.reasoning_ids else ", without its id"),
            "reasoning summary": dialect.reasoning_summary or "",
            "least `max_output_tokens`": str(dialect.min_output_tokens),
            "web search": dialect.web_search_tool or "none",
            "its own custom tools": ", ".join(sorted(dialect.server_side_tools)),
            "its own calls begin with": ", ".join(dialect.server_side_call_prefixes),
            "usage": dialect.usage,
        }
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {fact} |" for name, fact in facts.items() if fact]
        lines += [
            f"| without `{each.field}` | {each.reason} ({each.source}) |"
            for each in dialect.refuses
        ]
        lines += ["", *(f"- {source}" for source in dialect.sources), ""]
    return lines


def reference() -> str:
    lines = [HEAD, "## OpenAI's fields", "", *table(CHAT_FIELDS), ""]
    lines += ["## Fields beyond OpenAI's", "", *table(EXTENSIONS), "", DIALECT_HEAD, *dialects()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
