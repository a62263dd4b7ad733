"""What a blocking connection of our own knows of its peer."""

from __future__ import annotations

import math
import socket
import ssl
import threading

import trustme

from deltawire.transports.sockets import SocketConnection
from deltawire.transports.watchdog import Watchdog
from upstream import LIMIT


def test_a_kept_connection_that_ends_without_a_word_of_tls_is_not_used() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert("localhost").configure_cert(theirs)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            peer, _ = listener.accept()
            with theirs.wrap_socket(peer, server_side=True) as secured:
                # FIN, and no close_notify, as most servers do it.
                socket.socket.shutdown(secured, socket.SHUT_WR)
                ended.set()
                secured.recv(1)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        port = listener.getsockname()[1]
        peer = socket.create_connection(("127.0.0.1", port), LIMIT)
        peer.settimeout(None)
        gone: list[SocketConnection] = []
        connection = SocketConnection(
            (True, "localhost", port), peer, ours, Watchdog(), gone.append
        )
        connection.shake_hands(math.inf)
        assert ended.wait(LIMIT)
        found: list[bool] = []
        # In a thread, so that one that looks for ever is no test that hangs.
        look = threading.Thread(target=lambda: found.append(connection.usable), daemon=True)
        look.start()
        look.join(LIMIT)
        assert found == [False]
        connection.abort()
        assert gone == [connection]
        server.join(LIMIT)
