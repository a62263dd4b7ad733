"""How much the system holds for a client that does not read: as little as the server itself.

Left to itself, Linux lets a socket's buffer grow to 4 MiB, for each client that is slow, and calls
the socket writable again only when a third of that is free: so that a client that reads steadily,
but less than that in the time of `write_stall`, would look as if it did not read at all.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final, Protocol

# Not every system has it.
_OPTION: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class _Socket(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def bound_unsent(client: _Socket | None, size: int) -> None:
    """Take no more than some `size` bytes that cannot be sent yet; None: there is no socket."""
    if client is not None and _OPTION is not None:
        # A client that is gone already has no options; that it is gone shows soon enough.
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, _OPTION, size)
