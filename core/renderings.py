"""How the answer of one attempt is handed out: as events, as frames, or as a whole completion.

Each is a thin view of one `Machine`, with the same three calls; the exchange makes one for each
attempt and decides whether what it gives is handed out at all.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

from deltawire.chat import ChatCompletion, Event, Failure, Usage
from deltawire.completion import ChatCompletionFold
from deltawire.stream import State

Out = TypeVar("Out", covariant=True)


class Machine(Protocol):
    """What an answer goes through: a `ChatStream`, or a `ChatRelay`, which say more on each."""

    state: State
    end: State | None
    usage: Usage | None
    failure: Failure | None

    def receive_data(self, data: bytes) -> list[Event]: ...
    def receive_eof(self) -> list[Event]: ...
    def receive_break(self, failure: Failure) -> list[Event]: ...
    def translate(self, data: bytes) -> bytes: ...
    def translate_eof(self) -> bytes: ...
    def translate_break(self, failure: Failure) -> bytes: ...

    @property
    def produced_output(self) -> bool: ...
    @property
    def said_nothing(self) -> bool: ...
    @property
    def wants_close(self) -> bool: ...

    @property
    def whole(self) -> ChatCompletion | None:
        """The completion, where it came as one and is to be handed out as it came."""


class Rendering(Protocol[Out]):
    """How the answer of one attempt is handed out. One is made for each attempt."""

    def receive_data(self, data: bytes) -> Out: ...
    def receive_eof(self) -> Out: ...
    def receive_break(self, failure: Failure) -> Out: ...

    @property
    def handed_out(self) -> bool:
        """Whether the client has something of this attempt, so that there can be no other."""

    @property
    def partial(self) -> ChatCompletion:
        """What had come, as far as it is known."""


class AsEvents:
    """The answer as a list of `Chunk | Failure | Done`."""

    __slots__ = (
        "_fold",
        "_said",
        "_stream",
    )

    def __init__(self, stream: Machine) -> None:
        self._stream = stream
        self._said: list[Event] = []
        self._fold = ChatCompletionFold()

    def receive_data(self, data: bytes) -> list[Event]:
        return self._keep(self._stream.receive_data(data))

    def receive_eof(self) -> list[Event]:
        return self._keep(self._stream.receive_eof())

    def receive_break(self, failure: Failure) -> list[Event]:
        return self._keep(self._stream.receive_break(failure))

    def _keep(self, events: list[Event]) -> list[Event]:
        self._said += events
        if len(self._said) > _MAX_UNFOLDED:
            _ = self.partial
        return events

    @property
    def handed_out(self) -> bool:
        return self._stream.produced_output

    @property
    def partial(self) -> ChatCompletion:
        for event in self._said:
            if not isinstance(event, Failure):
                self._fold.add(event)
        self._said.clear()
        return self._fold.completion


# Chunks are kept until somebody asks for what they make, and folded before they are many: text
# alone takes a tenth of their memory.
_MAX_UNFOLDED: Final = 512


class AsFrames:
    """The answer as bytes: server-sent events for a Chat client. What was said is not kept."""

    __slots__ = ("_stream", "receive_data")

    def __init__(self, stream: Machine) -> None:
        self._stream = stream
        # Bound once: this is called for every piece of every answer.
        self.receive_data = stream.translate

    def receive_eof(self) -> bytes:
        return self._stream.translate_eof()

    def receive_break(self, failure: Failure) -> bytes:
        return self._stream.translate_break(failure)

    @property
    def handed_out(self) -> bool:
        return self._stream.produced_output

    @property
    def partial(self) -> ChatCompletion:
        return ChatCompletionFold().completion


class AsCompletion:
    """The answer as one `ChatCompletion`, None until it is whole. Nothing is handed out before.

    Usage is in it if the stream has `include_usage`.
    """

    __slots__ = (
        "_fold",
        "_stream",
    )

    def __init__(self, stream: Machine) -> None:
        self._stream = stream
        self._fold = ChatCompletionFold()

    def receive_data(self, data: bytes) -> ChatCompletion | None:
        return self._add(self._stream.receive_data(data))

    def receive_eof(self) -> ChatCompletion | None:
        return self._add(self._stream.receive_eof())

    def receive_break(self, failure: Failure) -> ChatCompletion | None:
        return self._add(self._stream.receive_break(failure))

    def _add(self, events: list[Event]) -> ChatCompletion | None:
        for event in events:
            if not isinstance(event, Failure):
                self._fold.add(event)
        said = self._stream.end in _FINISHED and bool(events)
        return self._stream.whole or self._fold.completion if said else None

    @property
    def handed_out(self) -> bool:
        return False

    @property
    def partial(self) -> ChatCompletion:
        return self._fold.completion


_FINISHED: Final = frozenset({State.COMPLETED, State.INCOMPLETE})
