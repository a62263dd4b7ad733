"""What drives the core over a real network: `SyncTransport`, `AsyncioTransport`, `TrioTransport`.

All three have the same names and arguments, and none holds policy: what happens is decided by
`deltawire.exchange`, and a transport carries it out.

    with SyncTransport(base_url=..., api_key=...) as transport:
        with transport.stream({"model": ..., "messages": [...]}) as chunks:
            for chunk in chunks:
                print(chunk.choices[0].delta.content or "", end="")
        completion = transport.create({...})

Each is imported when it is asked for, because each needs packages of its own: the extras `sync`,
`asyncio` and `trio`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from deltawire.transports.on_asyncio import AsyncioTransport
    from deltawire.transports.on_trio import TrioTransport
    from deltawire.transports.sync import SyncTransport

__all__ = ["AsyncioTransport", "SyncTransport", "TrioTransport"]

_HOMES: Final = {
    "SyncTransport": ("deltawire.transports.sync", "sync"),
    "AsyncioTransport": ("deltawire.transports.on_asyncio", "asyncio"),
    "TrioTransport": ("deltawire.transports.on_trio", "trio"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the package {error.name!r}: pip install 'deltawire[{extra}]'",
            name=error.name,
        ) from None
