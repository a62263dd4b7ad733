"""What a caller sees of an answer, the same for blocking and for awaited ones. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from deltawire.attempts import Attempt
from deltawire.chat import ChatCompletion, Chunk, Event, Failure, Usage
from deltawire.errors import LocalProtocolError, UpstreamError
from deltawire.exchange import Exchange
from deltawire.reading import ReportEntry

Out = TypeVar("Out")

WITH_USAGE: Final[Mapping[str, Any]] = {"include_usage": True}
"""A whole completion has its usage whether or not it is asked for."""


class Answer(Generic[Out]):
    """What can be read of a stream at any time, and after its end."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        # What iterates fills it and must not know the stream, or dropping that would close nothing.
        self._begun: list[Exchange[Out]] = []

    @property
    def exchange(self) -> Exchange[Out]:
        """The exchange behind it. Raises LocalProtocolError before anything was asked for."""
        if not self._begun:
            raise LocalProtocolError("nothing was asked for yet: iterate over the stream first")
        return self._begun[0]

    @property
    def attempts(self) -> list[Attempt]:
        """What was tried, in order, with what each came to."""
        return self.exchange.attempts

    @property
    def usage(self) -> Usage | None:
        """What the answer cost, once upstream said so, whether or not the request asks for it."""
        stream = self.exchange.stream
        return None if stream is None else stream.usage

    @property
    def report(self) -> list[ReportEntry]:
        """What of the request could not be carried over."""
        return self.exchange.report

    @property
    def completion(self) -> ChatCompletion:
        """The completion as far as it has come. Frames are not kept; of those there is none."""
        return self.exchange.partial

    @property
    def error(self) -> UpstreamError | None:
        """The error that the answer ended in, if it did."""
        return self.exchange.error


def chunks_of(exchange: Exchange[list[Event]], events: Iterable[Event]) -> Iterator[Chunk]:
    """The chunks among the events. Raises the UpstreamError that a Failure stands for."""
    for event in events:
        if isinstance(event, Chunk):
            yield event
        elif isinstance(event, Failure) and (error := exchange.error) is not None:
            raise error


def frames_of(exchange: Exchange[bytes], frames: bytes) -> tuple[bytes]:
    """The frames as they are, a failure among them."""
    return (frames,)


def completion_of(
    exchange: Exchange[ChatCompletion | None], completion: ChatCompletion | None
) -> Iterator[ChatCompletion]:
    yield whole(exchange, completion)


def raise_unless_begun(exchange: Exchange[Any]) -> None:
    """Raise the error of a call that failed before anything of its answer was handed out."""
    error = exchange.error
    if error is not None and not exchange.handed_out:
        raise error


def whole(exchange: Exchange[Any], completion: ChatCompletion | None) -> ChatCompletion:
    """The completion, or the error why there is none."""
    if completion is not None:
        return completion
    raise exchange.error or LocalProtocolError("the call was left before it had an answer")
