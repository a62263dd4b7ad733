"""The server on asyncio: an `HTTPConnection` behind an `asyncio.Protocol`, a task for each answer.

Protocols, not streams: what upstream said is written to the client in the moment that it comes. The
task only opens and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
import struct
from collections.abc import Awaitable
from typing import Final, cast

from deltawire.errors import DeltawireError
from deltawire.server.app import ChatCall, Reply
from deltawire.server.delivery import Delivery
from deltawire.server.framing import Refused
from deltawire.server.http import Phase, Request
from deltawire.server.listening import BACKLOG
from deltawire.server.service import Service, Serving, host_of
from deltawire.server.unsent import bound_unsent
from deltawire.transports import AsyncioTransport
from deltawire.transports.push import PushedStream

_log: Final = logging.getLogger(__name__)

# A client that was refused may still be sending; to close at once would reset the connection under
# the answer.
_LINGER: Final = 2.0
# What leaves is looked at that often within the time that a client may take nothing.
_LOOKS: Final = 8
# What each of the timers bounds.
PHASE: Final = 0
SILENCE: Final = 1
STALL: Final = 2
TIMERS: Final = 3
# What the system has not sent is dropped, and the client is told by RST.
_RESET: Final = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_answers",
        "_clients",
        "_delivery",
        "_gone",
        "_has_asked",
        "_http",
        "_loop",
        "_moved",
        "_peer",
        "_phase",
        "_refused",
        "_service",
        "_socket",
        "_stream",
        "_task",
        "_timers",
        "_writable",
        "_written",
    )

    def __init__(
        self,
        service: Service[AsyncioTransport],
        clients: set[Connection],
        answers: set[asyncio.Task[None]],
    ) -> None:
        self._service = service
        self._clients = clients
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._http = service.connection()
        self._peer = ""
        self._socket: asyncio.Transport | None = None
        # The present one; what is left of one before is no business of this client any more.
        self._task: asyncio.Task[None] | None = None
        self._delivery: Delivery | None = None
        self._phase: Phase | None = None
        self._has_asked = False
        self._refused = False
        self._stream: PushedStream[bytes] | None = None
        self._timers: list[asyncio.TimerHandle | None] = [None] * TIMERS
        # Bytes given to the socket, how many of them it was seen to be rid of, and when.
        self._written = 0
        self._gone = 0
        self._moved = 0.0
        self._writable = True

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._peer = host_of(transport.get_extra_info("peername"))
        limits = self._service.config.limits
        self._socket.set_write_buffer_limits(high=limits.buffer)
        bound_unsent(self._socket.get_extra_info("socket"), limits.buffer)
        self._clients.add(self)
        self._service.metrics.connections.inc()
        if len(self._clients) > limits.connections:
            self._refused = True
            self._write(self._service.respond(self._http, self._service.too_many(self._peer)))
        self._follow_phase()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._look()

    def eof_received(self) -> None:
        if self._http.phase is Phase.ANSWERING:
            # Nothing is written to it any more, so that nothing else would end it.
            self._abort()
            return
        self._http.receive_eof()
        # Once what was said is written.
        self._close()

    def connection_lost(self, error: Exception | None) -> None:
        self._socket = None
        self._clients.discard(self)
        self._service.metrics.connections.dec()
        self._http.receive_eof()
        self._leave()
        for timer in range(TIMERS):
            self._stop_timer(timer)

    def pause_writing(self) -> None:
        self._writable = False
        if self._stream is not None:
            self._stream.pause()
        self._expect_progress()

    def resume_writing(self) -> None:
        self._writable = True
        if self._stream is not None:
            self._stream.resume()
        self._stop_timer(STALL)

    # Requests.

    def _look(self) -> None:
        """Answer what has come, one request at a time."""
        while (request := self._http.next_request()) is not None:
            self._has_asked = True
            self._refused = isinstance(request, Refused)
            # The same phase of the next request has a time of its own.
            self._phase = None
            self._answer(request)
        self._write(self._http.data_to_send())
        self._follow_phase()

    def _answer(self, request: Request | Refused) -> None:
        answer = self._service.answer(request, self._peer)
        if isinstance(answer, Reply):
            self._write(self._service.respond(self._http, answer))
            return
        self._task = self._loop.create_task(self._deliver(answer))
        self._answers.add(self._task)
        self._task.add_done_callback(self._answers.discard)

    async def _deliver(self, call: ChatCall) -> None:
        service, now = self._service, self._loop.time
        delivery = Delivery(self._http, call, service.config.server, now())
        self._delivery = delivery
        self._wait_for_silence(delivery)
        try:
            with service.serving(call, delivery) as serving:
                try:
                    await self._ask(call, serving, delivery)
                except DeltawireError as error:
                    self._write(delivery.failure(error))
        except Exception:
            _log.exception("request %s", call.request_id)
            self._abort()
        self._conclude(delivery)

    def _conclude(self, delivery: Delivery) -> None:
        """All is said; the client may ask again, while upstream's connection is given back."""
        if self._delivery is delivery:
            self._delivery = self._task = None
            self._stop_timer(SILENCE)
            if self._stream is not None:
                # Nothing more of it goes to the client, which can hold it up no longer.
                self._stream.resume()
                self._stream = None
        self._look()

    def _ask(
        self, call: ChatCall, serving: Serving[AsyncioTransport], delivery: Delivery
    ) -> Awaitable[None]:
        if not call.streamed:
            return self._ask_whole(call, serving, delivery)
        stream = self._stream = serving.transport.push_wire(
            call.take_request(), self._hand_out, on_attempt=serving.on_attempt
        )
        if not self._writable:
            stream.pause()
        return stream.run()

    async def _ask_whole(
        self, call: ChatCall, serving: Serving[AsyncioTransport], delivery: Delivery
    ) -> None:
        async with serving.transport.stream_completion(
            call.chat_request, on_attempt=serving.on_attempt
        ) as whole:
            async for completion in whole:
                delivery.report = whole.report
                self._write(delivery.completion(completion))
                self._conclude(delivery)

    def _hand_out(self, frames: bytes) -> None:
        """Of the present stream; one that is concluded has no more, one that is left is stopped."""
        stream, delivery = self._stream, self._delivery
        assert stream is not None
        assert delivery is not None
        first = not delivery.begun
        if first:
            delivery.report = stream.report
        over = stream.exchange.finished
        self._write(delivery.frames(frames, self._loop.time(), last=over))
        if first:
            # Silence from here on is another than that before the first word.
            self._wait_for_silence(delivery)
        if over:
            self._conclude(delivery)

    def _leave(self) -> None:
        """The client is gone; so is whatever was asked for it."""
        if self._stream is not None:
            # The task is cancelled when it has its turn, and upstream may say something before.
            self._stream.stop()
            self._stream = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # Time.

    def _follow_phase(self) -> None:
        """Bound each phase from its beginning, and close when nothing more is to come."""
        phase = self._http.phase
        if phase is self._phase or self._socket is None:
            return
        self._phase = phase
        limits = self._service.config.limits
        self._stop_timer(PHASE)
        if phase is Phase.IDLE:
            idle = limits.idle_timeout if self._has_asked else limits.head_timeout
            self._set_timer(PHASE, idle, self._close)
        elif phase is Phase.HEAD:
            self._set_timer(PHASE, limits.head_timeout, self._too_slow)
        elif phase is Phase.BODY:
            self._set_timer(PHASE, limits.body_timeout, self._too_slow)
        elif phase is Phase.CLOSED:
            # TLS has no end of one direction that clients know.
            half_closes = self._socket.can_write_eof()
            if self._http.peer_closed or not (half_closes or self._refused):
                self._close()
                return
            if half_closes:
                self._socket.write_eof()
            self._set_timer(PHASE, _LINGER, self._close)

    def _too_slow(self) -> None:
        self._refused = True
        self._write(self._service.respond(self._http, self._service.too_slow(self._peer)))
        self._follow_phase()

    def _wait_for_silence(self, delivery: Delivery) -> None:
        if delivery.due == math.inf:
            self._stop_timer(SILENCE)
        else:
            wait = max(0.0, delivery.due - self._loop.time())
            self._set_timer(SILENCE, wait, self._break_silence, delivery)

    def _break_silence(self, delivery: Delivery) -> None:
        now = self._loop.time()
        # What was said meanwhile has moved it on; a client that does not read needs no more.
        if now >= delivery.due and self._writable:
            self._write(delivery.silence(now))
        elif now >= delivery.due:
            delivery.wait_on(now)
        self._wait_for_silence(delivery)

    def _set_timer(self, which: int, seconds: float | None, call: object, *args: object) -> None:
        self._stop_timer(which)
        if seconds is not None:
            self._timers[which] = self._loop.call_later(seconds, call, *args)  # type: ignore[arg-type]

    def _stop_timer(self, which: int) -> None:
        if (timer := self._timers[which]) is not None:
            timer.cancel()
            self._timers[which] = None

    # The socket.

    def _write(self, data: bytes) -> None:
        # Of a client that has left asyncio says so only once the burst is over, and logs meanwhile.
        if data and self._socket is not None and not self._socket.is_closing():
            self._written += len(data)
            self._socket.write(data)

    def _expect_progress(self) -> None:
        """From now on, give up a client that takes nothing for too long."""
        self._gone, self._moved = -1, self._loop.time()
        self._look_for_progress()

    def _look_for_progress(self) -> None:
        stall, now = self._service.config.server.write_stall, self._loop.time()
        if stall is None or self._socket is None:
            return
        gone = self._written - self._socket.get_write_buffer_size()
        if gone != self._gone:
            self._gone, self._moved = gone, now
        if now - self._moved >= stall:
            self._abort()
        else:
            self._set_timer(STALL, stall / _LOOKS, self._look_for_progress)

    def _close(self) -> None:
        if self._socket is None:
            return
        if self._socket.get_write_buffer_size() and self._timers[STALL] is None:
            # It closes once all is read, which a client can put off for ever.
            self._expect_progress()
        self._socket.close()

    def _abort(self) -> None:
        self._http.abort()
        # Now, not when the socket says so: till then it would find the connection closed.
        self._leave()
        if self._socket is not None:
            client = self._socket.get_extra_info("socket")
            if client is not None:
                # A FIN would be the good end of an answer without a length; some systems refuse
                # the option once the client is gone.
                with contextlib.suppress(OSError):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.abort()

    def finish(self) -> None:
        """Take no further request."""
        self._http.keep_alive = False
        if self._http.phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
            self._close()


async def serve(
    service: Service[AsyncioTransport],
    stop: asyncio.Event,
    *,
    tls: ssl.SSLContext | None = None,
    started: asyncio.Future[int] | None = None,
) -> None:
    """Serve until `stop` is set, and then for as long as running answers may take.

    started: is given the port.
    """
    settings = service.config.server
    loop = asyncio.get_running_loop()
    clients: set[Connection] = set()
    answers: set[asyncio.Task[None]] = set()
    server = await loop.create_server(
        lambda: Connection(service, clients, answers),
        settings.host,
        settings.port,
        ssl=tls,
        backlog=BACKLOG,
        reuse_port=settings.workers > 1 or None,
    )
    closing: set[asyncio.Task[None]] = set()

    def close(transport: AsyncioTransport) -> None:
        task = loop.create_task(transport.aclose())
        closing.add(task)
        task.add_done_callback(closing.discard)

    service.dispose = close
    if started is not None:
        started.set_result(server.sockets[0].getsockname()[1])
    await stop.wait()
    server.close()
    for client in list(clients):
        client.finish()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.shutdown):
            while clients:
                await asyncio.sleep(0.05)
    for client in list(clients):
        client._abort()
    for task in answers:
        task.cancel()
    if answers:
        # They have upstream's connections.
        await asyncio.wait(answers)
    for transport in service.transports:
        await transport.aclose()
    if closing:
        await asyncio.wait(closing)
