"""How providers differ, as data. Nothing here acts; the stream reads it."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from msgspec import Struct


class Dialect(Struct, frozen=True):
    """One provider's ways.

    `server_side_tools` are the names of `custom_tool_call` items that the provider runs itself,
    `server_side_call_prefixes` how the `call_id` of such an item begins.
    """

    name: str
    server_side_tools: frozenset[str] = frozenset()
    server_side_call_prefixes: tuple[str, ...] = ()

    def runs_tool(self, name: str, call_id: str) -> bool:
        """Whether a custom tool call is the provider's own rather than the client's."""
        return name in self.server_side_tools or (
            bool(self.server_side_call_prefixes)
            and call_id.startswith(self.server_side_call_prefixes)
        )


OPENAI: Final = Dialect("openai")

# Names: the provider-executed tools in vercel/ai's xai-responses provider; prefix: recordings.
XAI: Final = Dialect(
    "xai",
    server_side_tools=frozenset(
        {
            "x_keyword_search",
            "x_semantic_search",
            "x_user_search",
            "x_thread_fetch",
            "view_x_video",
            "view_image",
        }
    ),
    server_side_call_prefixes=("xs_call_",),
)

# An upstream nobody told us about: what any provider marks unmistakably as its own is its own.
# The names alone do not do that (a client may well call its tool view_image), the prefix does.
GENERIC: Final = Dialect("generic", server_side_call_prefixes=XAI.server_side_call_prefixes)

DIALECTS: Final = MappingProxyType({dialect.name: dialect for dialect in (OPENAI, XAI, GENERIC)})


def dialect_named(name: str) -> Dialect:
    """The dialect of that name. Raises ValueError naming the ones there are."""
    try:
        return DIALECTS[name]
    except KeyError:
        known = ", ".join(sorted(DIALECTS))
        raise ValueError(f"unknown dialect {name!r}; known are: {known}") from None
