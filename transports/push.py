"""`PushedStream`: an answer that is handed out in the moment that its bytes come, on asyncio.

What may live here: the body of an answer on its way from a connection to the exchange, and on to
whoever wants it, within one call of the event loop. What may not: everything else that a call does,
for which `asynchronous` has the loop; it runs here as well, and for each delta it is passed by: no
task is woken, no future made, no timer set.

The deadlines of a body are one timer. When it rings and bytes have come meanwhile, it is set again.
What goes by httpx is read as ever and handed out in the same way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TypeVar

from deltawire.errors import LocalProtocolError
from deltawire.exchange import Exchange
from deltawire.steps import READ, Phase
from deltawire.transports.answers import Answer, raise_unless_begun
from deltawire.transports.asynchronous import Call, Runtime
from deltawire.transports.connection import DirectResponse
from deltawire.transports.network import Failed, Network, Trouble

Out = TypeVar("Out")


class PushedCall(Call[Out]):
    """One exchange on its way over the network, whose output goes to `hand_out`.

    `hand_out` must not wait for anything; what it raises is raised by whoever carries the call out.
    """

    __slots__ = (
        "_bell",
        "_hand_out",
        "_idle",
        "_last",
        "_loop",
        "_over",
        "_paused",
        "_phase",
        "_pushed",
        "_stopped",
        "_when",
    )

    def __init__(
        self,
        exchange: Exchange[Out],
        route: Callable[[str], Network],
        runtime: Runtime,
        hand_out: Callable[[Out], None],
    ) -> None:
        super().__init__(exchange, route, runtime)
        self._hand_out = hand_out
        self._loop = asyncio.get_running_loop()
        self._idle = math.inf if exchange.idle is None else exchange.idle
        # While an answer is pushed: whose it is, and what is done when it is over.
        self._pushed: DirectResponse | None = None
        self._over: asyncio.Future[None] | None = None
        self._last = 0.0
        self._phase: Phase | None = None
        self._bell: asyncio.TimerHandle | None = None
        self._when = math.inf
        # Set when it may go on; None where it may.
        self._paused: asyncio.Event | None = None
        self._stopped = False

    def hand_out(self, out: Out) -> None:
        """What `next_output` gave; what is pushed goes by itself."""
        if not self._stopped:
            self._hand_out(out)

    def pause(self) -> None:
        """Let upstream wait. Nothing is late meanwhile."""
        self._paused = self._paused or asyncio.Event()
        if self._pushed is not None:
            self._pushed.pause()

    def resume(self) -> None:
        """Go on."""
        if self._paused is not None:
            self._paused.set()
            self._paused = None
        if self._pushed is not None:
            self._last = self._loop.time()
            self._set_bell()
            self._pushed.resume()

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True
        if self._pushed is not None:
            self._pushed.pull()

    async def _read(self) -> Out | None:
        response = self._response
        if self._stopped or not isinstance(response, DirectResponse):
            if not self._stopped and self._paused is not None:
                await self._paused.wait()
            return await super()._read()
        # The deadline of the opening is over, and the bell has those of the body.
        self._timer.stop()
        self._pushed, over = response, self._loop.create_future()
        self._over = over
        self._last = self._loop.time()
        self._set_bell()
        response.push_to(self)
        # Not before: to take what has come lets upstream go on.
        if self._paused is not None and self._pushed is response:
            response.pause()
        try:
            await over
        except BaseException:
            # What is left of it, if anything, is read by the loop.
            self._stopped = True
            response.resume()
            raise
        finally:
            self._end_push()
        return None

    # What the connection calls.

    def receive_data(self, data: bytes) -> None:
        exchange = self.exchange
        now = self._last = self._loop.time()
        try:
            if self._decompressor is None:
                out = exchange.receive_data(data, now)
            else:
                out = self._receive(data)
            if out:
                self._hand_out(out)
        except BaseException as error:
            self._fail(error)
            return
        if exchange.step is not READ:
            self._finish()
        elif now + self._idle < self._when or exchange.phase is not self._phase:
            self._set_bell()

    def receive_end(self, error: Failed | None) -> None:
        if error is None:
            self._end_with(lambda: self.exchange.receive_eof(self._loop.time()))
        else:
            trouble = Trouble(error.late, str(error))
            self._end_with(lambda: self._went_wrong(trouble))

    # The end of it.

    def _end_with(self, report: Callable[[], Out | None]) -> None:
        try:
            out = report()
            if out:
                self._hand_out(out)
        except BaseException as error:
            self._fail(error)
        else:
            self._finish()

    def _finish(self) -> None:
        self._end_push()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self._end_push()
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    def _end_push(self) -> None:
        if self._pushed is not None:
            self._pushed.pull()
            self._pushed = None
        if self._bell is not None:
            self._bell.cancel()
            self._bell = None
        self._when = math.inf

    # Time.

    def _set_bell(self) -> None:
        self._phase = self.exchange.phase
        deadline = self.exchange.deadline(self._last)
        if deadline != self._when:
            if self._bell is not None:
                self._bell.cancel()
            self._when = deadline
            never = deadline == math.inf
            self._bell = None if never else self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._bell, self._when = None, math.inf
        if self._pushed is None or self._paused is not None:
            return
        now = self._loop.time()
        if now < self.exchange.deadline(self._last):
            self._set_bell()
        else:
            self._end_with(lambda: self.exchange.receive_timeout(now))


class PushedStream(Answer[Out]):
    """The answer to one call, handed out as it comes; nothing is sent before `run`."""

    __slots__ = (
        "_begin",
        "_call",
        "_is_paused",
    )

    def __init__(self, begin: Callable[[], PushedCall[Out]]) -> None:
        super().__init__()
        self._begin: Callable[[], PushedCall[Out]] | None = begin
        self._call: PushedCall[Out] | None = None
        self._is_paused = False

    async def run(self) -> None:
        """Carry the call out to its end, or, if it is cancelled, to where its policy says. Once.

        Raises UpstreamError and its children for what fails before anything was handed out, and
        InvalidRequest for what is wrong with the request.
        """
        begin, self._begin = self._begin, None
        if begin is None:
            raise LocalProtocolError("run() was called before")
        call = self._call = begin()
        # It knows the request.
        del begin
        self._begun.append(call.exchange)
        if self._is_paused:
            call.pause()
        try:
            while (out := await call.next_output()) is not None:
                call.hand_out(out)
            raise_unless_begun(call.exchange)
        finally:
            call.stop()
            await call.leave()

    def pause(self) -> None:
        """Let upstream wait; what it has sent already may still be handed out."""
        self._is_paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """Go on."""
        self._is_paused = False
        if self._call is not None:
            self._call.resume()

    def stop(self) -> None:
        """Hand out nothing more; for who is about to cancel `run`."""
        if self._call is not None:
            self._call.stop()
