"""`TLSSession`: the client's side of TLS on one connection, without I/O.

asyncio has one of its own, which drops what was read together with what breaks the session, and
does not tell an end from a cut. Caller: `connection`.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Final

# Of a record no more than 16 KiB are data (RFC 8446 5.1).
_RECORD: Final = 16 * 1024


class TLSSession:
    """Bytes from the network to bytes of the peer, and the other way."""

    __slots__ = (
        "_received",
        "_session",
        "_to_send",
        "ended",
        "error",
        "established",
    )

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._received = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._received, self._to_send, server_hostname=host)
        self.established = False
        """Whether the handshake is done."""
        self.ended = False
        """Whether the peer said that it says nothing more."""
        self.error: ssl.SSLError | None = None
        """What broke the session, the certificate of the wrong one included."""

    def receive_data(self, data: bytes) -> bytes:
        """What the peer said in these bytes. Whatever happens, there may be something to send."""
        self._received.write(data)
        pieces: list[bytes] = []
        try:
            if not self.established:
                self._session.do_handshake()
                self.established = True
            while piece := self._session.read(_RECORD):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def start(self) -> bytes:
        """The beginning of the handshake."""
        self.receive_data(b"")
        return self.data_to_send()

    def send(self, data: bytes) -> bytes:
        """What is sent to say this. Raises ssl.SSLError."""
        view = memoryview(data)
        while view:
            view = view[self._session.write(view) :]
        return self.data_to_send()

    def end(self) -> bytes:
        """What is sent to say nothing more."""
        if self.established and self.error is None:
            # The peer's own end is not waited for.
            with contextlib.suppress(ssl.SSLError):
                self._session.unwrap()
        return self.data_to_send()

    def data_to_send(self) -> bytes:
        """What the session itself has to say."""
        return self._to_send.read()
