"""The server on trio: an `HTTPConnection` behind a stream, a nursery for each client.

One task reads in every phase, since that is how a client's leaving shows; one answers, and breaks
the silence of what takes its time; and each chat request has one, in which what upstream said is
sent to the client as soon as it is read, without a task that is woken in between. Nothing more is
asked of upstream before that is on its way, so that a slow client slows upstream down.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from deltawire.errors import DeltawireError
from deltawire.server.app import ChatCall, Reply
from deltawire.server.delivery import Delivery
from deltawire.server.framing import Refused
from deltawire.server.http import Phase, Request
from deltawire.server.listening import BACKLOG, listen
from deltawire.server.service import Service, Serving, host_of
from deltawire.server.unsent import bound_unsent
from deltawire.transports import TrioTransport

_log: Final = logging.getLogger(__name__)

_READ: Final = 65536
# A client that was refused may still be sending; to close at once would reset the connection under
# the answer.
_LINGER: Final = 2.0
# What the system has not sent is dropped, and the client is told by RST.
_RESET: Final = struct.pack("ii", 1, 0)


class Connection:
    """One client."""

    __slots__ = (
        "_answers",
        "_asking",
        "_delivery",
        "_has_asked",
        "_http",
        "_is_last",
        "_news",
        "_peer",
        "_raw",
        "_refused",
        "_request",
        "_scope",
        "_sending",
        "_service",
        "_socket",
        "_stream",
        "_tls",
        "_unsent",
    )

    def __init__(
        self,
        service: Service[TrioTransport],
        accepted: trio.SocketStream,
        tls: ssl.SSLContext | None,
        answers: trio.Nursery,
    ) -> None:
        self._service = service
        # Not of the client: upstream's connection is given back even after it has left.
        self._answers = answers
        self._http = service.connection()
        # trio's own sockets cannot be told to send what goes at once, and no more.
        self._raw = socket.socket(fileno=accepted.socket.detach())
        # Without Nagle's algorithm: trio turns that off.
        sock = self._socket = trio.SocketStream(trio.socket.from_stdlib_socket(self._raw))
        self._peer = _peer_of(sock)
        bound_unsent(self._raw, service.config.limits.buffer)
        self._tls = (
            None
            if tls is None
            # Browsers and SDKs close without TLS's own end, or do not wait for ours.
            else trio.SSLStream(sock, tls, server_side=True, https_compatible=True)
        )
        self._stream: trio.abc.Stream = self._tls or sock
        self._scope = trio.CancelScope()
        self._asking: trio.CancelScope | None = None
        self._delivery: Delivery | None = None
        self._request: Request | Refused | None = None
        self._has_asked = False
        self._is_last = False
        self._refused = False
        self._news = trio.Event()
        # trio's locks are fair: what was made first goes out first.
        self._sending = trio.Lock()
        self._unsent = False

    async def run(self, *, welcome: bool) -> None:
        """Serve the client until one side closes; one that is not welcome is told so."""
        try:
            with self._scope:
                if self._tls is not None and not await self._shake_hands(self._tls):
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    if welcome:
                        await self._converse()
                    else:
                        await self._turn_away(self._service.too_many(self._peer))
                        await self._linger()
                    nursery.cancel_scope.cancel()
        finally:
            self._leave()
            await self._close()

    def finish(self) -> None:
        """Take no further request."""
        self._http.keep_alive = False
        self._is_last = True
        self._news.set()

    # What comes in.

    async def _shake_hands(self, tls: trio.SSLStream[trio.SocketStream]) -> bool:
        with trio.move_on_after(self._service.config.limits.head_timeout):
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError:
                return False
            return True
        return False

    async def _read(self) -> None:
        try:
            while data := await self._receive():
                self._http.receive_data(data)
                self._look()
        except (OSError, trio.BrokenResourceError):
            pass
        self._http.receive_eof()
        self._leave()
        self._news.set()

    async def _receive(self) -> bytes:
        if self._tls is not None:
            return bytes(await self._tls.receive_some(_READ))
        while True:
            await trio.lowlevel.wait_readable(self._raw)
            with contextlib.suppress(BlockingIOError):
                return self._raw.recv(_READ)

    def _leave(self) -> None:
        """The client is gone; so is what was asked for it."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def _look(self) -> None:
        """Take the next request if it is there: at once, since a FIN behind it takes the rest."""
        if self._request is None:
            self._request = self._http.next_request()
        self._news.set()

    # Requests.

    async def _converse(self) -> None:
        """Answer what comes, one request at a time, and bound each phase from its beginning."""
        http, phase, deadline = self._http, None, math.inf
        while True:
            self._look()
            self._news = trio.Event()
            await self._send(http.data_to_send())
            if self._request is not None:
                request, self._request = self._request, None
                # The same phase of the next request has a time of its own.
                phase = None
                self._has_asked = True
                await self._answer(request)
                # The answer may take long.
                del request
                continue
            if http.phase is Phase.ANSWERING:
                over = http.peer_closed
            else:
                over = http.phase is Phase.CLOSED or self._is_last
            if over:
                break
            if http.phase is not phase:
                phase, deadline = http.phase, trio.current_time() + self._bound(http.phase)
            until = self._silent_until() if phase is Phase.ANSWERING else deadline
            with trio.move_on_at(until) as scope:
                await self._news.wait()
            if scope.cancelled_caught and phase is Phase.ANSWERING:
                await self._break_silence()
            elif scope.cancelled_caught:
                if phase is not Phase.IDLE:
                    await self._turn_away(self._service.too_slow(self._peer))
                break
        await self._linger()

    def _bound(self, phase: Phase) -> float:
        limits = self._service.config.limits
        if phase is Phase.IDLE:
            return limits.idle_timeout if self._has_asked else limits.head_timeout
        if phase is Phase.HEAD:
            return limits.head_timeout
        return limits.body_timeout if phase is Phase.BODY else math.inf

    async def _turn_away(self, reply: Reply) -> None:
        self._refused = True
        await self._send(self._service.respond(self._http, reply))

    async def _answer(self, request: Request | Refused) -> None:
        self._refused = isinstance(request, Refused)
        answer = self._service.answer(request, self._peer)
        if isinstance(answer, Reply):
            await self._send(self._service.respond(self._http, answer))
        elif not self._http.peer_closed:
            settings, now = self._service.config.server, trio.current_time()
            self._asking = trio.CancelScope()
            self._delivery = Delivery(self._http, answer, settings, now)
            self._answers.start_soon(self._deliver, answer, self._delivery, self._asking)

    async def _deliver(self, call: ChatCall, delivery: Delivery, asking: trio.CancelScope) -> None:
        try:
            with asking, self._service.serving(call, delivery) as serving:
                try:
                    await self._ask(call, serving, delivery)
                except DeltawireError as error:
                    await self._send(delivery.failure(error))
                self._conclude(asking)
        except Exception:
            _log.exception("request %s", call.request_id)
            self._scope.cancel()

    def _conclude(self, asking: trio.CancelScope) -> None:
        """All is said, unless it was before."""
        if self._asking is asking:
            self._asking = None
            self._look()

    async def _ask(
        self, call: ChatCall, serving: Serving[TrioTransport], delivery: Delivery
    ) -> None:
        transport, on_attempt = serving.transport, serving.on_attempt
        if not call.streamed:
            async with transport.stream_completion(
                call.chat_request, on_attempt=on_attempt
            ) as whole:
                async for completion in whole:
                    delivery.report = whole.report
                    self._asking = None
                    await self._send(delivery.completion(completion))
                    self._look()
            return

        def hand_out(frames: bytes) -> Awaitable[None] | None:
            if not delivery.begun:
                delivery.report = answer.report
            over = answer.exchange.finished
            if over:
                # Who leaves after the last word has not left an answer.
                self._asking = None
            sent = self._write(delivery.frames(frames, trio.current_time(), last=over))
            if over:
                # The client may ask again, while upstream's connection is given back.
                self._look()
            return sent

        answer = transport.push_wire(call.take_request(), hand_out, on_attempt=on_attempt)
        await answer.run()

    def _silent_until(self) -> float:
        delivery, ping = self._delivery, self._service.config.server.ping
        if delivery is None or delivery.ended:
            return math.inf
        # Without a grace period, it is due only once something was said.
        return min(delivery.due, math.inf if ping is None else trio.current_time() + ping)

    async def _break_silence(self) -> None:
        delivery, now = self._delivery, trio.current_time()
        if delivery is None or now < delivery.due:
            return
        if self._sending.locked():
            # A client that does not read needs no more.
            delivery.wait_on(now)
        else:
            await self._send(delivery.silence(now))

    # What goes out.

    def _write(self, data: bytes) -> Awaitable[None] | None:
        """Send it, or give the client up. What does not go at once is sent by awaiting what this
        gives, before anything else is awaited: nor may anything be between its making and this.
        """
        if not data:
            return None
        if self._tls is not None or self._sending.locked():
            return self._send_in_turn(data)
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent = True
            self._give_up()
            return None
        if sent == len(data):
            return None
        self._sending.acquire_nowait()
        return self._send_rest(memoryview(data)[sent:])

    async def _send(self, data: bytes) -> None:
        if (sent := self._write(data)) is not None:
            await sent

    async def _send_in_turn(self, data: bytes) -> None:
        await self._sending.acquire()
        await self._send_rest(memoryview(data))

    async def _send_rest(self, rest: memoryview) -> None:
        """For who holds the lock."""
        settings, limits = self._service.config.server, self._service.config.limits
        stall = math.inf if settings.write_stall is None else settings.write_stall
        self._unsent = True
        try:
            # In pieces: a large answer takes its time, and only one that stands still is stalled.
            for start in range(0, len(rest), limits.buffer):
                with trio.move_on_after(stall) as scope:
                    try:
                        await self._stream.send_all(rest[start : start + limits.buffer])
                    except trio.BrokenResourceError:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                if scope.cancelled_caught:
                    self._give_up()
                    await trio.lowlevel.checkpoint()
                    return
            self._unsent = False
        finally:
            self._sending.release()

    def _give_up(self) -> None:
        self._leave()
        self._scope.cancel()

    async def _linger(self) -> None:
        """Tell the client that nothing follows, and let it finish what it says."""
        # An answer may be over, and its end still on its way.
        async with self._sending:
            if self._http.phase is not Phase.CLOSED or self._http.peer_closed:
                return
            # TLS has no end of one direction that clients know.
            if self._tls is not None and not self._refused:
                return
            if self._tls is None:
                try:
                    await self._socket.send_eof()
                except trio.BrokenResourceError:
                    return
        with trio.move_on_after(_LINGER):
            while not self._http.peer_closed:
                self._news = trio.Event()
                await self._news.wait()

    async def _close(self) -> None:
        if self._unsent or self._http.phase is Phase.ANSWERING:
            # Nobody is to take it for the end of the answer.
            self._http.abort()
            # Some systems refuse it once the client is gone.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await trio.aclose_forcefully(self._stream)
            return
        with trio.move_on_after(_LINGER):
            await self._stream.aclose()


def _peer_of(sock: trio.SocketStream) -> str:
    try:
        return host_of(sock.socket.getpeername())
    except OSError:
        # It is gone already.
        return ""


async def serve(
    service: Service[TrioTransport],
    stop: trio.Event,
    *,
    tls: ssl.SSLContext | None = None,
    started: Callable[[int], None] | None = None,
) -> None:
    """Serve until `stop` is set, and then for as long as running answers may take.

    started: is given the port.
    """
    settings, limits = service.config.server, service.config.limits
    clients: set[Connection] = set()

    async def welcome(sock: trio.SocketStream) -> None:
        client = Connection(service, sock, tls, connections)
        clients.add(client)
        connected.inc()
        if stop.is_set():
            client.finish()
        try:
            await client.run(welcome=len(clients) <= limits.connections)
        except Exception:
            _log.exception("a connection was given up")
        finally:
            clients.discard(client)
            connected.dec()

    connected = service.metrics.connections
    try:
        # Outside the nursery, whose errors are groups: a port that is taken is the caller's to say.
        if settings.workers > 1:
            # trio's own way cannot share a port.
            shared = trio.socket.from_stdlib_socket(listen(settings))
            listeners = [trio.SocketListener(shared)]
        else:
            listeners = await trio.open_tcp_listeners(
                settings.port, host=settings.host, backlog=BACKLOG
            )
        async with trio.open_nursery() as connections:
            service.dispose = lambda transport: connections.start_soon(transport.aclose)
            accept = partial(trio.serve_listeners, welcome, listeners, handler_nursery=connections)
            async with trio.open_nursery() as listening:
                listening.start_soon(accept)
                if started is not None:
                    started(listeners[0].socket.getsockname()[1])
                await stop.wait()
                listening.cancel_scope.cancel()
            for client in list(clients):
                client.finish()
            connections.cancel_scope.deadline = trio.current_time() + settings.shutdown
    finally:
        with trio.CancelScope(shield=True):
            for transport in service.transports:
                await transport.aclose()
