"""The items that have no Chat form: their fields and the progress events they come with, as data.

`writer` is the only caller. Sources: the specification's OutputItem union and event union; for
x_search, code_execution and the x_* tools vercel/ai's xai provider; apply_patch recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

_JSON = '{"query":"deltas on a wire"}'


@dataclass(frozen=True, slots=True)
class Hosted:
    """One kind of item.

    `fields` are those of the finished item (a `call_id` gets the item's position appended);
    `progress` the events between its added and done events, by the last word of their type.
    `streams` names a text that the item streams, as (event type without `.delta`, field of the
    done event, text, further fields); the word "*" in `progress` says when.
    """

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    progress: tuple[str, ...] = ()
    streams: tuple[str, str, str, Mapping[str, Any]] = ("", "", "", MappingProxyType({}))


_SEARCH = ("in_progress", "searching", "completed")
_QUERY = {"type": "search", "query": "deltas on a wire"}
_DIFF = "+one line\n+another line\n"

_KINDS = (
    Hosted("web_search_call", {"action": _QUERY}, _SEARCH),
    Hosted("x_search_call", {"name": "x_semantic_search", "arguments": _JSON}, _SEARCH),
    Hosted("file_search_call", {"queries": ["deltas"], "results": None}, _SEARCH),
    Hosted(
        "code_interpreter_call",
        {"code": "print(6 * 7)", "container_id": "cntr_1", "outputs": None},
        ("in_progress", "*", "interpreting", "completed"),
        ("response.code_interpreter_call_code", "code", "print(6 * 7)", {}),
    ),
    Hosted("code_execution_call", {"code": "1"}, ("in_progress", "executing", "completed")),
    Hosted(
        "mcp_call",
        {"server_label": "s", "name": "f", "arguments": _JSON, "output": "ok", "error": None},
        ("in_progress", "*", "completed"),
        ("response.mcp_call_arguments", "arguments", _JSON, {}),
    ),
    Hosted("mcp_list_tools", {"server_label": "s", "tools": []}, ("in_progress", "completed")),
    Hosted("mcp_approval_request", {"server_label": "s", "name": "f", "arguments": _JSON}),
    Hosted(
        "computer_call",
        {"call_id": "call_c", "action": {"type": "screenshot"}, "pending_safety_checks": []},
    ),
    Hosted(
        "local_shell_call",
        {"call_id": "call_l", "action": {"type": "exec", "command": ["ls"], "env": {}}},
    ),
    Hosted(
        "shell_call",
        {
            "call_id": "call_s",
            "action": {"commands": ["ls -l"], "timeout_ms": None, "max_output_length": None},
            "environment": None,
        },
        ("*",),
        ("response.shell_call_command", "command", "ls -l", {"command_index": 0}),
    ),
    Hosted(
        "apply_patch_call",
        {
            "call_id": "call_p",
            "operation": {"type": "create_file", "path": "a.txt", "diff": _DIFF},
        },
        ("*",),
        ("response.apply_patch_call_operation_diff", "diff", _DIFF, {}),
    ),
    Hosted("tool_search_call", {"call_id": "call_t", "execution": "server", "arguments": {}}),
    Hosted("compaction", {"encrypted_content": "gAAAA"}),
)

_X_TOOLS = (
    "x_keyword_search",
    "x_semantic_search",
    "x_user_search",
    "x_thread_fetch",
    "view_x_video",
    "view_image",
)

# xAI's own tools come as custom tool calls; only the names and the call ids tell them apart.
HOSTED: Final[Mapping[str, Hosted]] = MappingProxyType(
    {kind.type: kind for kind in _KINDS}
    | {
        name: Hosted(
            "custom_tool_call",
            {"name": name, "call_id": "xs_call_", "input": _JSON},
            ("*",),
            ("response.custom_tool_call_input", "input", _JSON, {}),
        )
        for name in _X_TOOLS
    }
)
"""By the kind that `HostedCall` names: the item's type, or the name of one of xAI's own tools."""
