"""`Failed`: what goes wrong on connections of our own, in the same words whoever drives them.

Callers: `connection` and `direct` on asyncio, `dialing`, `sockets` and `pool` on threads, `wire`.
"""

from __future__ import annotations

import ssl
from typing import Final

CLOSED: Final = "the transport was closed"
CLOSED_EARLY: Final = "the connection was closed while it was made"
CLOSED_HERE: Final = "the connection was closed here"
CUT_OFF: Final = "the connection was cut off"


class Failed(Exception):
    """There is no answer, or no more of it; the text says why.

    late: whether a deadline passed; without a text, one that the exchange knows.
    """

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


def no_tls(text: str) -> str:
    """The text of an error of TLS, with the settings to look at."""
    return f"no TLS connection: {text} (verify, cert)"


def no_connection(error: BaseException) -> str:
    """The text of whatever a connection could not be made for."""
    if isinstance(error, Failed):
        return str(error)
    return no_tls(str(error)) if isinstance(error, ssl.SSLError) else f"no connection: {error}"


def broken(error: BaseException | None, *, answered: bool) -> str:
    """The text of what broke a connection. answered: whether the head of an answer was there."""
    text = str(error or "") or CUT_OFF
    return no_tls(text) if isinstance(error, ssl.SSLError) and not answered else text


def too_slow(limit: float | None) -> Failed:
    """There is no connection in time."""
    return Failed(f"no connection within {limit} s (timeouts.connect)", late=True)


def no_place(limit: float | None) -> Failed:
    """There is no room for a connection in time."""
    return Failed(f"no connection became free within {limit} s (max_connections)", late=True)
