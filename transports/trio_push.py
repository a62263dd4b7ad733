"""`TrioPush`: an answer that is handed out by the task that reads it, on trio.

What may live here: the body of an answer on its way from a connection to the exchange, and on to
whoever wants it. What may not: everything else that a call does, for which `asynchronous` has the
loop; it runs here as well, and for each delta it is passed by.

One cancel scope serves many reads, for to make one takes as long as to read. It is left with the
deadline it has while bytes come; when that has passed, and the true one has not, there is another.
A read that is cancelled has read nothing, so that nothing is lost. What goes by httpx is read as
ever.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from deltawire.errors import LocalProtocolError
from deltawire.steps import READ
from deltawire.transports.answers import Answer, raise_unless_begun
from deltawire.transports.asynchronous import Call
from deltawire.transports.network import Response
from deltawire.transports.trio_network import TrioResponse

Out = TypeVar("Out")

HandOut = Callable[[Out], Awaitable[None] | None]


class TrioPushedCall(Call[Out]):
    """One exchange on its way over the network, whose output is handed out."""

    __slots__ = ("_hand_out",)

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
        # None: what comes is for nobody.
        self._hand_out: HandOut[Out] | None = None

    async def run(self, hand_out: HandOut[Out]) -> None:
        """Carry the call out to its end, or, if it is cancelled, to where its policy says.

        What `hand_out` gives is awaited before upstream is read again. Nothing is late meanwhile.
        """
        self._hand_out = hand_out
        try:
            while (out := await self.next_output()) is not None:
                if (room := hand_out(out)) is not None:
                    await room
            raise_unless_begun(self.exchange)
        finally:
            self._hand_out = None
            await self.leave()

    async def _receive_next(self, response: Response) -> Out | None:
        hand_out = self._hand_out
        if hand_out is None or not isinstance(response, TrioResponse):
            return await super()._receive_next(response)
        exchange, now = self.exchange, trio.current_time
        idle = math.inf if exchange.idle is None else exchange.idle
        last = now()
        while True:
            phase, room = exchange.phase, None
            until = exchange.deadline(last)
            with trio.CancelScope(deadline=until) as scope:
                while True:
                    data = await response.read()
                    last = now()
                    if self._decompressor is None:
                        out = exchange.receive_data(data, last)
                    else:
                        out = self._receive(data)
                    if exchange.step is not READ:
                        return out
                    if out and (room := hand_out(out)) is not None:
                        break
                    # They may be large, and the next may take long.
                    del data, out
                    is_new = exchange.phase is not phase or last + idle < until
                    if is_new and exchange.deadline(last) < until:
                        break
            if room is not None:
                await room
                last = now()
            elif scope.cancelled_caught and now() >= exchange.deadline(last):
                raise TimeoutError


class TrioPush(Answer[Out]):
    """The answer to one call, handed out as it comes; nothing is sent before `run`."""

    __slots__ = ("_begin", "_hand_out")

    def __init__(self, begin: Callable[[], TrioPushedCall[Out]], hand_out: HandOut[Out]) -> None:
        super().__init__()
        self._begin: Callable[[], TrioPushedCall[Out]] | None = begin
        self._hand_out = hand_out

    async def run(self) -> None:
        """Carry the call out. Once.

        Raises UpstreamError and its children for what fails before anything was handed out, and
        InvalidRequest for what is wrong with the request.
        """
        begin, self._begin = self._begin, None
        if begin is None:
            raise LocalProtocolError("run() was called before")
        call = begin()
        # It knows the request.
        del begin
        self._begun.append(call.exchange)
        await call.run(self._hand_out)
