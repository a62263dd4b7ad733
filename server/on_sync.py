"""The server on threads: an `HTTPConnection` behind a blocking thread for each client.

A thread reads its client's requests and answers them. While it is blocked on upstream it sees
nothing of its client; one more thread, the `Watcher`, does so for all of them, breaks silence, and
hangs up on upstream when the client leaves. What the two share of a connection is under its lock,
which is held for work that does not block, and for nothing else. Needs `poll`: not for Windows.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from deltawire.errors import DeltawireError
from deltawire.server.app import ChatCall, Reply
from deltawire.server.delivery import Delivery
from deltawire.server.door import LINGER, Door, shut_down
from deltawire.server.framing import Refused
from deltawire.server.http import Phase, Request
from deltawire.server.listening import listen
from deltawire.server.service import Service, Serving, host_of
from deltawire.server.unsent import bound_unsent
from deltawire.server.watcher import Watcher
from deltawire.transports import SyncTransport
from deltawire.transports.sync import SyncStream

_log: Final = logging.getLogger(__name__)

_READ: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)

T = TypeVar("T")

_now = time.monotonic


class _Gone(Exception):
    """The client left, or is to be treated as if it had."""


class Connection:
    """One client. Its thread is in `run`; the watcher calls `_look` and `_break_silence`."""

    def __init__(
        self,
        client: socket.socket,
        service: Service[SyncTransport],
        watcher: Watcher,
        tls: ssl.SSLContext | None,
        peer: object,
        on_over: Callable[[Connection], None],
    ) -> None:
        self._socket = client
        self._service = service
        self._watcher = watcher
        self._tls = tls
        self._lock = threading.Lock()
        self._http = service.connection()
        self._peer = host_of(peer)
        self._on_over = on_over
        self._unsent = bytearray()
        # While upstream is asked.
        self._answer: SyncStream[Any, Any] | None = None
        self._delivery: Delivery | None = None
        self._has_asked = False
        self._is_over = False
        self._asked = 0
        self._left = False

    def run(self) -> None:
        """Serve the client to its end."""
        try:
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound_unsent(self._socket, self._service.config.limits.buffer)
            if self._tls is not None:
                self._shake_hands(self._tls)
            while (answer := self._next_answer()) is not None:
                self._reply(answer)
            self._linger()
        except _Gone:
            self._reset_on_close()
        except Exception:
            _log.exception("a connection failed")
            self._reset_on_close()
        finally:
            self._socket.close()
            self._on_over(self)

    # Requests.

    def _next_answer(self) -> Reply | ChatCall | None:
        """What to say to the next request, which is not kept; None: there is none."""
        request = self._next_request()
        return None if request is None else self._service.answer(request, self._peer)

    def _next_request(self) -> Request | Refused | None:
        """None: there will be no more."""
        limits = self._service.config.limits
        bounds = {
            Phase.IDLE: limits.idle_timeout if self._has_asked else limits.head_timeout,
            Phase.HEAD: limits.head_timeout,
            Phase.BODY: limits.body_timeout,
        }
        phase, until = Phase.CLOSED, math.inf
        while True:
            with self._lock:
                if self._is_over:
                    return None
                request = self._http.next_request()
                self._unsent += b"" if request else self._http.data_to_send()
                before, phase = phase, self._http.phase
            self._has_asked = self._has_asked or request is not None
            if request is not None or phase is Phase.CLOSED:
                return request
            self._send()
            if phase is not before:
                until = _now() + bounds[phase]
            try:
                data = self._receive(until)
            except TimeoutError:
                if phase is not Phase.IDLE:
                    self._say(
                        partial(
                            self._service.respond, self._http, self._service.too_slow(self._peer)
                        )
                    )
                return None
            with self._lock:
                if data:
                    self._http.receive_data(data)
                else:
                    self._http.receive_eof()

    def _reply(self, answer: Reply | ChatCall) -> None:
        if isinstance(answer, Reply):
            self._say(partial(self._service.respond, self._http, answer))
            return
        delivery = Delivery(self._http, answer, self._service.config.server, _now())
        try:
            with self._service.serving(answer, delivery) as serving:
                try:
                    self._deliver(answer, serving, delivery)
                except DeltawireError as error:
                    self._unwatch()
                    self._say(partial(delivery.failure, error))
        except _Gone:
            raise
        except Exception:
            _log.exception("request %s", answer.request_id)
            raise _Gone from None
        finally:
            self._unwatch()

    def _deliver(self, call: ChatCall, serving: Serving[SyncTransport], delivery: Delivery) -> None:
        transport, on_attempt = serving.transport, serving.on_attempt
        if not call.streamed:
            with transport.stream_completion(call.chat_request, on_attempt=on_attempt) as whole:
                self._watch(whole, delivery)
                for completion in whole:
                    delivery.report = whole.report
                    self._unwatch()
                    self._say(partial(delivery.completion, completion))
            return
        with transport.stream_wire(call.take_request(), on_attempt=on_attempt) as answer:
            self._watch(answer, delivery)
            for frames in answer:
                if not delivery.begun:
                    delivery.report = answer.report
                over = answer.exchange.finished
                if over:
                    # What comes from here on is the next request, or a FIN that means no harm.
                    self._unwatch()
                self._say(partial(delivery.frames, frames, _now(), last=over))

    # What the watcher does meanwhile.

    def _watch(self, answer: SyncStream[Any, Any], delivery: Delivery) -> None:
        with self._lock:
            self._answer, self._delivery = answer, delivery
            self._asked += 1
            ring = partial(self._break_silence, self._asked)
            self._watcher.watch(self._socket, self._look, ring, self._next_ring(delivery, _now()))

    def _unwatch(self) -> None:
        """Raises _Gone if the client left meanwhile."""
        with self._lock:
            if self._answer is not None:
                self._watcher.unwatch(self._socket)
                self._answer = self._delivery = None
            if self._left:
                raise _Gone

    def _look(self) -> None:
        """Something came from the client: a further request, or its end."""
        with self._lock:
            if self._answer is None:
                return
            try:
                data = self._socket.recv(_READ)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                data = b""
            if data:
                self._http.receive_data(data)
            else:
                self._leave()

    def _break_silence(self, awaited: int, now: float) -> float:
        with self._lock:
            delivery = self._delivery
            # The time of an answer before this one may have come only now.
            if delivery is None or self._asked != awaited:
                return math.inf
            if now >= delivery.due:
                try:
                    self._break_silence_of(delivery, now)
                except _Gone:
                    self._leave()
                    return math.inf
            return self._next_ring(delivery, now)

    def _break_silence_of(self, delivery: Delivery, now: float) -> None:
        self._flush()
        if self._unsent:
            delivery.wait_on(now)
        else:
            self._unsent += delivery.silence(now)
            self._flush()

    def _next_ring(self, delivery: Delivery, now: float) -> float:
        """The first output ends the grace, which may be longer than the time between two pings."""
        ping = self._service.config.server.ping
        return delivery.due if ping is None else min(delivery.due, now + ping)

    def _leave(self) -> None:
        """The client is gone; so is what was asked for it."""
        self._left = True
        self._watcher.unwatch(self._socket)
        if self._answer is not None:
            self._answer.hang_up()
        if self._unsent:
            # The thread waits for room to send, not for upstream.
            shut_down(self._socket, socket.SHUT_RDWR)
        self._answer = self._delivery = None

    def finish(self) -> None:
        """Take no further request."""
        with self._lock:
            self._http.keep_alive = False
            if self._http.phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
                # What had come all the same would be read and asked of upstream, and the end
                # behind it taken for the client's leaving.
                self._is_over = True
                shut_down(self._socket, socket.SHUT_RD)

    def abort(self) -> None:
        """Break off, whatever is under way."""
        with self._lock:
            self._left = True
            if self._answer is not None:
                self._leave()
            shut_down(self._socket, socket.SHUT_RDWR)

    # The socket, which never blocks.

    def _shake_hands(self, tls: ssl.SSLContext) -> None:
        until = _now() + self._service.config.limits.head_timeout
        try:
            secured = tls.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        except OSError:
            raise _Gone from None
        with self._lock:
            self._socket = secured
        try:
            self._patiently(secured.do_handshake, until)
        except TimeoutError:
            raise _Gone from None

    def _receive(self, until: float) -> bytes:
        """b"": FIN. Raises TimeoutError."""
        return self._patiently(partial(self._socket.recv, _READ), until)

    def _say(self, said: Callable[[], bytes]) -> None:
        """Send what it gives. In one write, if there is room for it."""
        with self._lock:
            if self._left:
                raise _Gone
            data = said()
            if data and not self._unsent:
                data = data[self._send_some(data) :]
            self._unsent += data
            if not self._unsent:
                return
        self._send()

    def _send(self) -> None:
        """Send all there is; a client that does not read for too long is gone."""
        stall = self._service.config.server.write_stall
        while True:
            with self._lock:
                self._flush()
                if not self._unsent:
                    return
            # A TLS session that has to read first is not met: it has no renegotiation here.
            if not _wait(self._socket, select.POLLOUT, math.inf if stall is None else stall):
                raise _Gone

    def _flush(self) -> None:
        while self._unsent and (sent := self._send_some(self._unsent)):
            del self._unsent[:sent]

    def _send_some(self, data: bytes | bytearray) -> int:
        """How much of it there was room for."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            raise _Gone from None

    def _patiently(self, act: Callable[[], T], until: float) -> T:
        while True:
            try:
                return act()
            except (BlockingIOError, ssl.SSLWantReadError):
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            except OSError:
                raise _Gone from None
            if not _wait(self._socket, event, until - _now()):
                raise TimeoutError

    def _linger(self) -> None:
        """Close in good manners: what the client still sends is read, for a while."""
        if isinstance(self._socket, ssl.SSLSocket):
            # Sends TLS's own end; the client's is not waited for.
            with contextlib.suppress(OSError):
                self._socket.unwrap()
        if self._http.peer_closed:
            return
        shut_down(self._socket, socket.SHUT_WR)
        until = _now() + LINGER
        with contextlib.suppress(OSError):
            while _wait(self._socket, select.POLLIN, until - _now()):
                if not socket.socket.recv(self._socket, _READ):
                    return

    def _reset_on_close(self) -> None:
        self._http.abort()
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _wait(client: socket.socket, event: int, seconds: float) -> bool:
    """Whether it came in time."""
    poll = select.poll()
    poll.register(client, event)
    if seconds == math.inf:
        return bool(poll.poll())
    return bool(poll.poll(math.ceil(max(0.0, seconds) * 1000)))


def serve(
    service: Service[SyncTransport],
    stop: threading.Event,
    *,
    tls: ssl.SSLContext | None = None,
    started: Callable[[int], None] | None = None,
) -> None:
    """Serve until `stop` is set, and then for as long as running answers may take.

    started: is given the port. A thread that at the end waits for what cannot be interrupted, which
    `SyncStream.hang_up` names, is left behind; it holds no process up.
    """
    settings = service.config.server
    listener = listen(settings)
    watcher = Watcher()

    def connect(client: socket.socket, peer: object) -> Connection:
        return Connection(client, service, watcher, tls, peer, lambda it: door.discard(it))

    door = Door(service, listener, watcher, connect, speaks_plainly=tls is None)
    watching = threading.Thread(target=watcher.run, name="deltawire-watcher", daemon=True)
    watching.start()
    service.dispose = SyncTransport.close
    try:
        if started is not None:
            started(listener.getsockname()[1])
        stop.wait()
    finally:
        for connection in door.close():
            connection.finish()
        for connection in door.wait_empty(settings.shutdown):
            connection.abort()
        door.wait_empty(LINGER)
        door.dismiss()
        watcher.close()
        watching.join()
        watcher.release()
        for transport in service.transports:
            transport.close()
