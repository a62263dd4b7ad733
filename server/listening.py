"""Where a server listens, for the drivers whose library cannot share a port."""

from __future__ import annotations

import socket
from typing import Final

from deltawire.server.settings import ServerSettings

BACKLOG: Final = 1024
"""Clients that wait to be accepted; one that finds no room comes again after a second."""


def listen(server: ServerSettings) -> socket.socket:
    """A socket that listens; several processes have one each if there are to be workers."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    return socket.create_server(
        (server.host, server.port),
        family=family,
        backlog=BACKLOG,
        reuse_port=server.workers > 1,
    )
