"""`Exchange`: one chat call against the accounts that can serve it. All policy, no I/O.

What may live here: which attempt is made when, what each came to, when the call is over and what
the client is told. What may not: bytes of a stream (`stream`, `relay`), what an upstream is sent
(`calls`), the choice of an account (`accounts`), what an error answer says (`rejection`), what a
failure means (`verdicts`), sockets and clocks (the transports).

Theory of operation
-------------------
An exchange always says what is to be done next, in `step`; whoever drives it does that and reports
what came of it, with the time on its own clock:

    while (step := exchange.step) is not ENDED:
        Open   send step.request           -> receive_head, receive_break, receive_timeout
        Read   wait for bytes              -> receive_data, receive_eof, receive_break,
                                              receive_timeout
        Close  close the answer, if any    -> closed
        Wait   until step.until            -> waited

Open and Read until `deadline(now)`, and `leave` is allowed at any time. Every report gives what is
to be handed to the client now, as the rendering has it: events, frames or a whole completion.

Up to the first output, the commit point, the call may go on with another account; what was said of
a failed attempt is then not handed out. Whether there is another attempt is decided the moment an
attempt settles, so that what is handed out then is the last word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from deltawire import rejection, shapes
from deltawire.accounts import Account, AccountPool, Api, Unready
from deltawire.attempts import (
    DEFAULT_POLICY,
    DEFAULT_TIMEOUTS,
    Attempt,
    Outcome,
    Policy,
    Timeouts,
)
from deltawire.calls import Call, RelayedCall, TranslatedCall
from deltawire.chat import ChatCompletion, Failure, without_secrets
from deltawire.completion import ChatCompletionFold
from deltawire.errors import LocalProtocolError, UpstreamError, UpstreamRejected
from deltawire.reading import ReportEntry
from deltawire.renderings import Machine, Rendering
from deltawire.steps import (
    CLOSE,
    ENDED,
    READ,
    READING,
    TRANSITIONS,
    Open,
    Phase,
    Signal,
    Step,
    Wait,
)
from deltawire.stream import State
from deltawire.verdicts import ERRORS, Verdict, health, late, unready

Out = TypeVar("Out")

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Exchange(Generic[Out]):
    """One chat call.

    chat_request: as decoded from JSON.
    pool: the accounts; shared with other calls.
    rendering: AsEvents, AsFrames or AsCompletion.
    api: what the accounts' upstreams speak. One that speaks Chat Completions is sent the request as
        it is, `stream` included, and its answer is passed on byte for byte.
    now: the time on the caller's clock, seconds; every report has it.
    unix_time, call_id: for what upstream does not give of time and identity.
    jitter: from 0 to 1, at random.
    affinity: calls with the same stay with one account; None: what the request says of its cache
        or conversation.
    on_attempt: told each attempt when it begins and, the same object, when it is settled; what it
        gives at the beginning is the `gate` of the step that sends it.
    stream_options: further options of `ChatStream`.

    Raises InvalidRequest for a request that nobody could answer, UnsupportedField, if `strict`,
    for one of which anything is lost.
    """

    __slots__ = (
        "_account",
        "_affinity",
        "_answer",
        "_began",
        "_call",
        "_call_id",
        "_empty_answer",
        "_error_body",
        "_headers",
        "_idle",
        "_jitter",
        "_left",
        "_limit",
        "_model",
        "_on_attempt",
        "_patience",
        "_policy",
        "_pool",
        "_rendering",
        "_report",
        "_retry_after",
        "_silent",
        "_stream",
        "_stream_options",
        "_timeouts",
        "_total",
        "_unix_time",
        "_upcoming",
        "_verdict",
        "attempts",
        "phase",
        "step",
    )

    def __init__(
        self,
        chat_request: Mapping[str, Any],
        pool: AccountPool,
        rendering: Callable[[Machine], Rendering[Out]],
        *,
        api: Api = "responses",
        now: float,
        unix_time: float,
        call_id: str,
        jitter: float = 0.5,
        policy: Policy = DEFAULT_POLICY,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        strict: bool = False,
        affinity: str | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
        stream_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._pool = pool
        self._rendering = rendering
        self._began = now
        self._unix_time = unix_time
        self._call_id = call_id
        self._jitter = jitter
        self._policy = policy
        self._timeouts = timeouts
        self._on_attempt = on_attempt
        self._stream_options = stream_options

        self.attempts: list[Attempt] = []
        """What was tried, in order; all but the last are settled."""
        self.step: Step = ENDED
        """What is to be done next."""

        # None once it is sent no more.
        self._call: Call | None
        call = self._call = (
            TranslatedCall(chat_request, pool.accounts, strict=strict)
            if api == "responses"
            else RelayedCall(chat_request, pool.accounts)
        )
        self._report: list[ReportEntry] = []
        self._model = call.model
        self._affinity = affinity or call.affinity

        self._total = now + _seconds(timeouts.total)
        self._patience = now + policy.wait
        # Each is for the attempt or the phase that goes on.
        self._limit = math.inf
        self._idle = _seconds(timeouts.idle)
        self._silent = True
        self._account: Account | None = None
        self._stream: Machine | None = None
        self._answer: Rendering[Out] | None = None
        self._headers = _NO_HEADERS
        # Of an answer that is an error.
        self._error_body: bytearray
        self._retry_after: float | None = None

        self._upcoming: Account | Unready | None = None
        self._left = False
        self._verdict: Verdict | None = None
        self._empty_answer: tuple[Rendering[Out], Machine, Out] | None = None
        self.phase = Phase.WAITING
        """Where the exchange is."""
        self._find_account(now)
        self._go_on(now)

    # What can be read at any time.

    @property
    def report(self) -> list[ReportEntry]:
        """What of the request could not be carried over, to the upstream of the last attempt."""
        return self._report if self._call is None else self._call.report

    @property
    def stream(self) -> Machine | None:
        """The machine of what was handed out, else of the last attempt that was accepted."""
        return self._stream

    @property
    def handed_out(self) -> bool:
        """Whether the client has something of the answer: the commit point is passed."""
        return self._answer is not None and self._answer.handed_out

    @property
    def partial(self) -> ChatCompletion:
        """The completion as far as it has come; AsFrames does not keep it."""
        answer = self._answer
        return ChatCompletionFold().completion if answer is None else answer.partial

    @property
    def finished(self) -> bool:
        """Whether all that is to be handed out was; what is left is to give the connection back."""
        phase = self.phase
        if phase is Phase.STREAMING:
            # It is asked for every piece of every answer.
            return False
        return phase in (Phase.TRAILING, Phase.ENDED) or (
            phase is Phase.CLOSING and self._upcoming is None
        )

    @property
    def failure(self) -> Failure | None:
        """Why the call failed, once it has."""
        return self._verdict.failure if self._verdict is not None and self.finished else None

    @property
    def error(self) -> UpstreamError | None:
        """The failure as an exception, with the status that tells a client the same."""
        verdict = self._verdict
        if verdict is None or not self.finished:
            return None
        return verdict.kind(
            verdict.failure,
            verdict.partial or ChatCompletionFold().completion,
            status=verdict.status,
            retry_after=verdict.retry_after,
            attempts=self.attempts,
        )

    @property
    def limit(self) -> float:
        """When the present phase must be over, whatever comes meanwhile; `inf`: never."""
        return min(self._limit, self._total)

    @property
    def idle(self) -> float | None:
        """How many seconds a read may take once the answer has begun; None: no limit."""
        return self._timeouts.idle

    def deadline(self, now: float) -> float:
        """Until when the present step may take, if it begins now; `inf`: as long as it likes."""
        if self.phase is Phase.STREAMING and not self._silent:
            # From now, not from the last bytes: a caller may take its time with what it was given.
            return min(now + self._idle, self._total)
        return self.limit

    # Reports.

    def receive_head(self, status: int, headers: Mapping[str, str], now: float) -> Out | None:
        """The head of an answer; the names of headers are in lower case, or do not care."""
        self._expect(Phase.OPENING)
        attempt = self.attempts[-1]
        attempt.status = status
        attempt.request_id = without_secrets(headers.get("x-request-id"), self._current().secrets)
        # The one place where it is decided whether an account is charged.
        attempt.used = rejection.accepted(status)
        self._headers = headers
        if attempt.used:
            self._begin_answer(now)
            self._advance(Signal.ACCEPTED)
        else:
            unix_time = self._unix_time + now - self._began
            self._retry_after = rejection.retry_after(headers, unix_time)
            self._error_body = bytearray()
            self._limit = now + self._policy.error_body
            self._advance(Signal.REFUSED)
        return None

    def receive_data(self, data: bytes, now: float) -> Out | None:
        """Bytes of the body."""
        stream, answer = self._stream, self._answer
        if self.phase is not Phase.STREAMING or stream is None or answer is None:
            return self._receive_other_data(data, now)
        out = answer.receive_data(data)
        if self._silent:
            self._look_for_first_event(data, now)
        if stream.end is not None:
            return self._finish(out, now)
        if self._call is not None and answer.handed_out:
            self._commit(self._call)
        return out

    def _commit(self, call: Call) -> None:
        """There is no other attempt. What was asked, which may be long, is not kept any longer."""
        self._report, self._call = call.report, None
        self._call_id = ""
        self._headers = _NO_HEADERS

    def receive_eof(self, now: float) -> Out | None:
        """The end of the body."""
        self._expect(*READING)
        if self.phase is Phase.STREAMING and self._answer is not None:
            return self._finish(self._answer.receive_eof(), now)
        return self._end_other(now)

    def receive_break(self, reason: str, now: float) -> Out | None:
        """There is no connection, or it broke. `reason` is for people."""
        self._expect(Phase.OPENING, *READING)
        if self.phase is Phase.OPENING:
            return self._not_reached(reason, rejection.UNREACHABLE, now)
        return self._break_off(f"the upstream's answer broke off: {reason}", None, now)

    def receive_timeout(self, now: float, reason: str | None = None) -> Out | None:
        """The deadline passed; `reason`, for people, where it is one that only the caller knows."""
        self._expect(Phase.OPENING, *READING)
        if self.phase is Phase.OPENING:
            return self._not_reached(reason or self._lateness(now), rejection.TIMEOUT, now)
        return self._break_off(self._lateness(now), rejection.TIMEOUT, now)

    def leave(self, now: float) -> None:
        """The caller wants nothing more. What is left to be done is to close, or to drain."""
        self._left = True
        if not self.finished:
            self._verdict = None
        self._upcoming = None
        if self.phase is Phase.WAITING:
            self._advance(Signal.OVER)
        elif self.phase is Phase.STREAMING and self._policy.drain > 0:
            self._limit = now + self._policy.drain
            self._advance(Signal.LEFT)
        elif self.phase in (Phase.OPENING, Phase.STREAMING, Phase.REFUSED, Phase.DRAINING):
            self._settle("cancelled", now)
            self._advance(Signal.SETTLED)
        elif self.phase is Phase.TRAILING:
            self._advance(Signal.SETTLED)

    def closed(self, now: float) -> None:
        """The connection was given back or closed."""
        self._expect(Phase.CLOSING)
        self._go_on(now)

    def waited(self, now: float) -> Out | None:
        """The time to wait is over."""
        self._expect(Phase.WAITING)
        self._find_account(now)
        self._go_on(now)
        return self._last_word()

    # An attempt, from its beginning to its end.

    def _begin(self, account: Account, now: float) -> None:
        self._account = account
        self._limit = now + _seconds(self._timeouts.first_event)
        self._silent = True
        self._retry_after = None
        # What the last attempt had is of no interest any more.
        self._answer = None
        attempt = Attempt(
            number=len(self.attempts) + 1, account=account.name, model=self._model, started=now
        )
        self.attempts.append(attempt)
        request = self._asked().request(account, stream=self._policy.stream_upstream)
        gate = None if self._on_attempt is None else self._on_attempt(attempt)
        self.step = Open(request, self._timeouts.connect, gate)

    def _begin_answer(self, now: float) -> None:
        account = self._current()
        self._stream = self._asked().machine(
            {
                "default_id": f"chatcmpl-{self._call_id}",
                "default_created": int(self._unix_time),
                "default_model": self._model,
                "secrets": account.secrets,
                **self._stream_options,
            }
        )
        self._answer = self._rendering(self._stream)

    def _look_for_first_event(self, data: bytes, now: float) -> None:
        """A comment is no event: a gateway that only says that it waits may not do so for ever."""
        body = "json" in self._headers.get("content-type", "")
        if self._stream is not None and (self._stream.state is not State.IDLE or (body and data)):
            self._silent = False
            self._limit = math.inf
            self.attempts[-1].first_event = now - self.attempts[-1].started

    def _finish(self, out: Out, now: float) -> Out | None:
        """The stream is over, by its own words or by the end of its bytes."""
        stream, answer = self._stream, self._answer
        assert stream is not None
        assert answer is not None
        failure = stream.failure
        if failure is None:
            outcome: Outcome = "incomplete" if stream.end is State.INCOMPLETE else "completed"
            if stream.said_nothing:
                outcome = "empty"
            return self._succeed(outcome, out, now)
        truncated = failure.code in (shapes.TRUNCATED, rejection.TIMEOUT)
        verdict = Verdict(
            failure,
            rejection.status_of(failure),
            kind=ERRORS.get(failure.code, UpstreamError),
            partial=answer.partial,
        )
        final = self._fail("truncated" if truncated else "failed", verdict, now)
        return out if answer.handed_out else final

    def _succeed(self, outcome: Outcome, out: Out, now: float) -> Out | None:
        stream, answer = self._stream, self._answer
        assert stream is not None
        assert answer is not None
        self._settle(outcome, now)
        if outcome == "empty" and self._policy.retry_empty:
            self._find_account(now)
            if self._upcoming is not None:
                self._empty_answer = self._empty_answer or (answer, stream, out)
                self._answer = None
                self._advance(Signal.SETTLED)
                return None
        self._verdict = None
        if stream.wants_close or stream.state is State.CLOSED:
            self._advance(Signal.SETTLED)
        else:
            self._limit = now + self._policy.trail
            self._advance(Signal.FINISHED)
        return out

    def _fail(self, outcome: Outcome, verdict: Verdict, now: float) -> Out | None:
        """What is handed out in place of what the attempt said."""
        if self._verdict is None or verdict.worth >= self._verdict.worth:
            self._verdict = verdict
        final = self._answer is not None and self._answer.handed_out
        again = not final and self._may_go_on(now) and self._asked().can_amend(verdict.failure)
        of_the_request = not (verdict.failure.retryable or again)
        self._settle(outcome, now, verdict)
        if final or of_the_request:
            self._verdict = verdict
        elif again:
            self._asked().amend()
            self._upcoming = self._current()
        else:
            self._find_account(now)
        self._advance(Signal.SETTLED)
        return None if final else self._last_word()

    def _settle(self, outcome: Outcome, now: float, verdict: Verdict | None = None) -> None:
        """Say what the attempt came to. Every attempt passes here once."""
        attempt, stream = self.attempts[-1], self._stream
        attempt.outcome = outcome
        attempt.duration = now - attempt.started
        if self._answer is not None and stream is not None:
            attempt.usage = stream.usage
        if verdict is not None:
            attempt.code = verdict.failure.code
        self._pool.settle(
            self._current(),
            health(outcome, attempt.status, verdict),
            now,
            model=self._model,
            retry_after=self._retry_after,
            failure=None if verdict is None else verdict.failure,
            status=None if verdict is None else verdict.status,
            jitter=self._jitter,
        )
        if self._on_attempt is not None:
            self._on_attempt(attempt)

    # Ends that are no end of a stream.

    def _receive_other_data(self, data: bytes, now: float) -> Out | None:
        self._expect(*READING)
        if self.phase is Phase.REFUSED:
            room = rejection.MAX_ERROR_BODY - len(self._error_body)
            self._error_body += data[:room]
            if len(data) >= room:
                return self._reject(now)
        elif self.phase is Phase.DRAINING and self._stream is not None:
            self._stream.translate(data)
            if self._stream.end is not None:
                self._end_other(now)
        return None

    def _end_other(self, now: float) -> Out | None:
        """The body of an answer ended, or is wanted no longer, that is not handed out."""
        if self.phase is Phase.REFUSED:
            return self._reject(now)
        if self.phase is Phase.DRAINING and self._stream is not None:
            # A last event without its blank line, or a body that is no stream, ends here.
            self._stream.translate_eof()
            self._settle("cancelled", now)
        self._advance(Signal.SETTLED)
        return None

    def _reject(self, now: float) -> Out | None:
        status = self.attempts[-1].status or 0
        failure = rejection.failure_of(status, self._headers, bytes(self._error_body))
        verdict = Verdict(
            failure.without(self._current().secrets),
            rejection.status_for_client(status),
            self._retry_after,
            UpstreamRejected,
        )
        return self._fail("rejected", verdict, now)

    def _not_reached(self, reason: str, code: str, now: float) -> Out | None:
        account = self._current()
        where = f"base_url {account.shown_url}: "
        failure = Failure(where + reason, type=shapes.UPSTREAM_ERROR, code=code)
        failure = failure.without(account.secrets)
        verdict = Verdict(failure, rejection.status_of(failure), kind=ERRORS[code])
        return self._fail("unreachable", verdict, now)

    def _break_off(self, reason: str, code: str | None, now: float) -> Out | None:
        if self.phase is Phase.STREAMING and self._answer is not None:
            failure = Failure(reason, type=shapes.UPSTREAM_ERROR, code=code or shapes.TRUNCATED)
            return self._finish(self._answer.receive_break(failure), now)
        return self._end_other(now)

    def _lateness(self, now: float) -> str:
        timeouts = self._timeouts
        if now >= self._total:
            return f"no end of the answer within {timeouts.total} s (timeouts.total)"
        if self.attempts[-1].first_event is None:
            return f"no event of the answer within {timeouts.first_event} s (timeouts.first_event)"
        return f"no byte of the answer for {timeouts.idle} s (timeouts.idle)"

    # What comes after an attempt.

    def _find_account(self, now: float) -> None:
        """Decide on the next attempt: an account, one to be waited for, or none."""
        self._upcoming = None
        if not self._may_go_on(now):
            if now >= self._total and not self.attempts:
                self._verdict = late(self._lateness(now))
            return
        found = self._choose(now)
        if isinstance(found, Account) or found.until < min(self._patience, self._total):
            self._upcoming = found
        elif self._verdict is None and not self.attempts:
            self._verdict = unready(found, now)

    def _may_go_on(self, now: float) -> bool:
        """Whether there may be one more attempt, whoever makes it."""
        most = self._policy.attempts
        return not self._left and now < self._total and (most is None or len(self.attempts) < most)

    def _choose(self, now: float) -> Account | Unready:
        """An account that may be tried, and whose upstream can take the request."""
        tried = [attempt.account for attempt in self.attempts]
        exclude = {name for name in tried if tried.count(name) >= self._policy.attempts_per_account}
        while True:
            found = self._pool.choose(self._model, now, affinity=self._affinity, exclude=exclude)
            if isinstance(found, Unready):
                return found
            if self._asked().fits(found):
                return found
            exclude.add(found.name)

    def _go_on(self, now: float) -> None:
        upcoming, self._upcoming = self._upcoming, None
        if upcoming is None:
            self._advance(Signal.OVER)
        elif isinstance(upcoming, Account):
            self._advance(Signal.AGAIN)
            self._begin(upcoming, now)
        else:
            self._advance(Signal.LATER)
            self.step = Wait(upcoming.until)

    def _last_word(self) -> Out | None:
        """If there is no other attempt, an answer with nothing in it is better than a failure."""
        more = self._upcoming is not None or isinstance(self.step, Open)
        if more or self._empty_answer is None:
            return None
        self._verdict = None
        self._answer, self._stream, out = self._empty_answer
        return out

    def _advance(self, signal: Signal) -> None:
        self.phase = TRANSITIONS[self.phase][signal]
        if self.phase in READING:
            self.step = READ
        elif self.phase is Phase.CLOSING:
            self.step = CLOSE
        elif self.phase is Phase.ENDED:
            self.step = ENDED

    def _expect(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise LocalProtocolError(
                f"this report does not fit an exchange that is {self.phase.value}"
            )

    def _asked(self) -> Call:
        assert self._call is not None
        return self._call

    def _current(self) -> Account:
        assert self._account is not None
        return self._account


def _seconds(limit: float | None) -> float:
    return math.inf if limit is None else limit
