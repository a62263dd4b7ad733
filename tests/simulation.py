"""A network that is only played, on a clock that is only counted: what drives an `Exchange` here.

    call = Simulation({"a": Reply(500), "b": Reply(pieces=said(frames))}).call(REQUEST, AsEvents)
    call.outputs, call.exchange.attempts, call.connections, call.now

What an account's upstream does is a script. The driver carries the steps of an exchange out as they
are documented there, and writes down what it did and when. Nothing here does I/O or sleeps; times
are seconds of the virtual clock, which goes on where something is waited for and nowhere else.

Bytes arrive when the script says, read or not; who reads late finds them waiting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar

from deltawire.accounts import Account, AccountPool, Health
from deltawire.attempts import DEFAULT_POLICY, DEFAULT_TIMEOUTS, Attempt, Policy, Timeouts
from deltawire.exchange import Exchange
from deltawire.renderings import Machine, Rendering
from deltawire.steps import TRANSITIONS, Close, Ended, Open, Phase, Read, Signal, Wait

Out = TypeVar("Out")
Piece = tuple[float, bytes]

START: Final = 1000.0
"""When calls begin. Not 0, so that nobody takes a time for a duration."""
UNIX_TIME: Final = 1_700_000_000.0

EVENT_STREAM: Final[Mapping[str, str]] = MappingProxyType({"content-type": "text/event-stream"})
JSON: Final[Mapping[str, str]] = MappingProxyType({"content-type": "application/json"})

# Steps of one call. The longest that is played here has a tenth of it.
_MAX_STEPS: Final = 20_000


@dataclass(frozen=True)
class Refuse:
    """No connection: `after` so many seconds it is refused; `inf`: nobody ever answers."""

    after: float = 0.0


@dataclass(frozen=True)
class Reply:
    """An answer over a connection.

    connect: seconds until there is a connection.
    think: seconds from then until the head; `inf`: there is none.
    pieces: seconds since what came before, and what comes then.
    tail: a piece that comes again and again after the others.
    end: how the body ends; stall: nothing comes any more. `after`: seconds after the last piece.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: EVENT_STREAM)
    connect: float = 0.0
    think: float = 0.0
    pieces: tuple[Piece, ...] = ()
    tail: Piece | None = None
    end: Literal["eof", "reset", "stall"] = "eof"
    after: float = 0.0

    @property
    def arrivals(self) -> Iterator[Piece]:
        """Seconds since the head, and what is there by then."""
        moment = 0.0
        for delay, data in chain(self.pieces, repeat(self.tail) if self.tail else ()):
            moment += delay
            yield moment, data


Script = Refuse | Reply


def said(pieces: Iterable[bytes], each: float = 0.0) -> tuple[Piece, ...]:
    """Pieces of a body, `each` so many seconds after the one before."""
    return tuple((each, data) for data in pieces)


@dataclass(frozen=True)
class Caller:
    """What the caller does, apart from reading on.

    leaves_at: seconds since the beginning of the call when it leaves, whatever goes on.
    leaves_at_step: it leaves when so many steps were carried out, before the next is begun.
    leaves_after: it leaves when it was given so many outputs; 0: at once.
    leaves_again: seconds from then until it wants not even to wait for what is drained.
    takes: seconds that it takes for each output before it asks for more.
    """

    leaves_at: float = math.inf
    leaves_at_step: int | None = None
    leaves_after: int | None = None
    leaves_again: float = math.inf
    takes: float = 0.0


@dataclass
class Connection:
    """One request, and what came of it. `head` and `closed` are times, None until then."""

    account: str
    body: bytes
    headers: list[tuple[str, str]]
    script: Script
    opened: float
    status: int | None = None
    head: float | None = None
    read: list[bytes] = field(default_factory=list)
    ended: Literal["eof", "break", "timeout"] | None = None
    closed: list[float] = field(default_factory=list)
    _arrivals: Iterator[Piece] = field(default_factory=lambda: iter(()))
    _next: Piece | None = None

    def next(self) -> tuple[float, bytes | Literal["eof", "reset"]]:
        """What comes next of the body, and when; it stays the next until it is taken."""
        assert isinstance(self.script, Reply)
        assert self.head is not None
        if self._next is None:
            self._next = next(self._arrivals, None)
        if self._next is not None:
            return self.head + self._next[0], self._next[1]
        if self.script.end == "stall":
            return math.inf, "eof"
        length = sum(delay for delay, _ in self.script.pieces)
        return self.head + length + self.script.after, self.script.end

    def take(self, data: bytes) -> None:
        self._next = None
        self.read.append(data)

    def begin(self, script: Reply, now: float) -> None:
        self.status, self.head = script.status, now
        self._arrivals = script.arrivals


@dataclass(frozen=True)
class Done:
    """A step that was carried out: `began` and `ended` are times, `report` what was reported."""

    phase: Phase
    silent: bool
    began: float
    ended: float
    deadline: float
    report: str


@dataclass(frozen=True)
class Left:
    """When the caller left, in which phase, and how much there was until then."""

    time: float
    phase: Phase
    steps: int
    told: int
    outputs: int
    attempts: int


class Watched(Exchange[Out]):
    """An exchange that is seen passing through its phases."""

    passed: list[tuple[Phase, Signal, Phase]]

    def _advance(self, signal: Signal) -> None:
        if not hasattr(self, "passed"):
            self.passed = []
        self.passed.append((self.phase, signal, TRANSITIONS[self.phase][signal]))
        super()._advance(signal)


@dataclass
class Call(Generic[Out]):
    """One call, played to its end, and all that was seen of it.

    told: every attempt as `on_attempt` was told it, copied, with the connections there were then.
    outputs: when, of which attempt (counted from 1), and what.
    left: each time that the caller left.
    """

    exchange: Watched[Out] = field(init=False)
    now: float = START
    connections: list[Connection] = field(default_factory=list)
    told: list[tuple[Attempt, int]] = field(default_factory=list)
    outputs: list[tuple[float, int, Out]] = field(default_factory=list)
    steps: list[Done] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    @property
    def attempts(self) -> list[Attempt]:
        return self.exchange.attempts

    @property
    def outcomes(self) -> list[str | None]:
        return [attempt.outcome for attempt in self.attempts]

    @property
    def said(self) -> list[Out]:
        """What was handed out."""
        return [out for _, _, out in self.outputs]

    @property
    def took(self) -> float:
        """Seconds from beginning to end."""
        return self.now - START


@dataclass
class Simulation:
    """A pool of accounts, what the upstream of each does, and what the caller does.

    scripts: by the name of the account: what its upstream does with each request, the last again
        and again.
    resting: seconds that an account still rests when the call begins.
    before_step: called with the call before each of its steps.
    """

    scripts: Mapping[str, Script | tuple[Script, ...]]
    caller: Caller = Caller()
    policy: Policy = DEFAULT_POLICY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    resting: Mapping[str, float] = field(default_factory=dict)
    accounts: tuple[Account, ...] = ()
    before_step: Callable[[Call[Any]], None] = lambda call: None

    def call(
        self,
        chat_request: Mapping[str, Any],
        rendering: Callable[[Machine], Rendering[Out]],
        **options: Any,
    ) -> Call[Out]:
        """Play one call with a pool of its own, to its end."""
        accounts = self.accounts or tuple(
            Account(name=name, key=f"sk-secret-of-{name}") for name in self.scripts
        )
        pool = AccountPool(accounts)
        for account in accounts:
            if account.name in self.resting:
                pool.settle(
                    account,
                    Health.TIRED,
                    START,
                    model=chat_request["model"],
                    retry_after=self.resting[account.name],
                )
        return self.call_of(pool, chat_request, rendering, **options)

    def call_of(
        self,
        pool: AccountPool,
        chat_request: Mapping[str, Any],
        rendering: Callable[[Machine], Rendering[Out]],
        **options: Any,
    ) -> Call[Out]:
        """Play one call, to its end, with that pool."""
        call = Call[Out]()
        call.exchange = Watched(
            chat_request,
            pool,
            rendering,
            now=START,
            unix_time=UNIX_TIME,
            call_id="call-1",
            policy=self.policy,
            timeouts=self.timeouts,
            on_attempt=lambda attempt: call.told.append((_copy(attempt), len(call.connections))),
            **options,
        )
        _Driver(self, call).run()
        return call


def _copy(attempt: Attempt) -> Attempt:
    return Attempt(**{name: getattr(attempt, name) for name in Attempt.__struct_fields__})


class _Driver(Generic[Out]):
    """Carries out the steps of one call."""

    def __init__(self, simulation: Simulation, call: Call[Out]) -> None:
        self._simulation = simulation
        self._call = call
        self._connection: Connection | None = None
        self._leaves_at = START + simulation.caller.leaves_at
        if simulation.caller.leaves_after == 0:
            self._leaves_at = START

    def run(self) -> None:
        call, exchange, simulation = self._call, self._call.exchange, self._simulation
        for _ in range(_MAX_STEPS):
            simulation.before_step(call)
            step = exchange.step
            if isinstance(step, Ended):
                return
            if simulation.caller.leaves_at_step == len(call.steps) and not call.left:
                self._leaves_at = call.now
            if call.now >= self._leaves_at:
                self._leave()
                continue
            began, phase, deadline = call.now, exchange.phase, exchange.deadline(call.now)
            silent = bool(call.attempts) and call.attempts[-1].first_event is None
            when, report, carry_out = self._foresee(step, deadline)
            if when > self._leaves_at:
                self._leave()
                continue
            call.now = when
            out = carry_out()
            call.steps.append(Done(phase, silent, began, when, deadline, report))
            if out:
                self._hand_out(out)
        raise AssertionError("the call does not end")

    def _leave(self) -> None:
        call = self._call
        call.now = max(call.now, self._leaves_at)
        seen = len(call.steps), len(call.told), len(call.outputs), len(call.attempts)
        call.left.append(Left(call.now, call.exchange.phase, *seen))
        call.exchange.leave(call.now)
        again = self._simulation.caller.leaves_again
        self._leaves_at = call.now + again if len(call.left) == 1 else math.inf

    def _hand_out(self, out: Out) -> None:
        call, caller = self._call, self._simulation.caller
        call.outputs.append((call.now, len(call.attempts), out))
        call.now += caller.takes
        if caller.leaves_after == len(call.outputs):
            self._leaves_at = call.now

    def _foresee(
        self, step: Open | Read | Close | Wait, deadline: float
    ) -> tuple[float, str, Callable[[], Out | None]]:
        """When the step will be over, what will be reported then, and what does it."""
        if isinstance(step, Open):
            return self._open(step, deadline)
        if isinstance(step, Read):
            return self._read(deadline)
        if isinstance(step, Close):
            return self._call.now, "closed", self._close
        until = max(self._call.now, step.until)
        return until, "waited", lambda: self._call.exchange.waited(self._call.now)

    def _open(self, step: Open, deadline: float) -> tuple[float, str, Callable[[], Out | None]]:
        call, exchange = self._call, self._call.exchange
        name = step.request.account.name
        given = self._simulation.scripts[name]
        scripts = given if isinstance(given, tuple) else (given,)
        before = sum(connection.account == name for connection in call.connections)
        script = scripts[min(before, len(scripts) - 1)]
        request = step.request
        connection = Connection(name, request.body, request.headers, script, call.now)
        call.connections.append(connection)
        self._connection = connection

        connect = math.inf if step.connect is None else step.connect
        until = script.after if isinstance(script, Refuse) else script.connect
        if call.now + min(until, connect) >= deadline:
            return self._late(connection, deadline)
        if until > connect:
            reason = f"no connection within {step.connect} s (timeouts.connect)"
            return call.now + connect, "break", lambda: exchange.receive_break(reason, call.now)
        if isinstance(script, Refuse):
            refused = "no connection: refused"
            return call.now + until, "break", lambda: exchange.receive_break(refused, call.now)
        if call.now + until + script.think >= deadline:
            return self._late(connection, deadline)
        head = script

        def receive_head() -> Out | None:
            connection.begin(head, call.now)
            return exchange.receive_head(head.status, head.headers, call.now)

        return call.now + until + script.think, "head", receive_head

    def _read(self, deadline: float) -> tuple[float, str, Callable[[], Out | None]]:
        call, exchange, connection = self._call, self._call.exchange, self._call.connections[-1]
        arrival, what = connection.next()
        when = max(call.now, arrival)
        if when >= deadline:
            return self._late(connection, deadline)
        if isinstance(what, bytes):
            data = what

            def receive_data() -> Out | None:
                connection.take(data)
                return exchange.receive_data(data, call.now)

            return when, "data", receive_data

        def receive_end() -> Out | None:
            connection.ended = "eof" if what == "eof" else "break"
            if what == "eof":
                return exchange.receive_eof(call.now)
            return exchange.receive_break("the connection was reset", call.now)

        return when, "eof" if what == "eof" else "break", receive_end

    def _late(
        self, connection: Connection, deadline: float
    ) -> tuple[float, str, Callable[[], Out | None]]:
        def receive_timeout() -> Out | None:
            connection.ended = "timeout"
            return self._call.exchange.receive_timeout(self._call.now)

        return max(self._call.now, deadline), "timeout", receive_timeout

    def _close(self) -> None:
        # One that was left before its request was sent has nothing to close.
        if self._connection is not None:
            self._connection.closed.append(self._call.now)
            self._connection = None
        self._call.exchange.closed(self._call.now)
