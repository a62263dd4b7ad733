"""deltawire: Responses streams in, Chat Completions chunks out.

This package is the core: no sockets, no clock, no randomness, no threads. Feed `ChatStream` the
bytes of a `POST /v1/responses` stream; it gives the chunks of a `/v1/chat/completions` stream.
"""

from deltawire._version import __version__
from deltawire.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    Chunk,
    Done,
    Event,
    Failure,
    Usage,
)
from deltawire.completion import ChatCompletionFold, completion_from_response, fold
from deltawire.dialects import DIALECTS, GENERIC, OPENAI, XAI, Dialect, dialect_named
from deltawire.errors import (
    DeltawireError,
    EventTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    UpstreamError,
)
from deltawire.output import Divergence
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE, ServerSentEvent, SSEDecoder
from deltawire.stream import ChatStream, State

__all__ = [
    "DEFAULT_MAX_EVENT_SIZE",
    "DIALECTS",
    "GENERIC",
    "OPENAI",
    "XAI",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionFold",
    "ChatStream",
    "Chunk",
    "DeltawireError",
    "Dialect",
    "Divergence",
    "Done",
    "Event",
    "EventTooLarge",
    "Failure",
    "LocalProtocolError",
    "RemoteProtocolError",
    "SSEDecoder",
    "ServerSentEvent",
    "State",
    "UpstreamError",
    "Usage",
    "__version__",
    "completion_from_response",
    "dialect_named",
    "fold",
]
