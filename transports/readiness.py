"""Whether a socket has something to say. Callers: `connection` and `sockets`."""

from __future__ import annotations

import select
from typing import Any


def is_readable(sock: Any) -> bool:
    """Whether there is something to read, an end included."""
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
