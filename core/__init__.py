"""deltawire: Responses streams in, Chat Completions chunks out.

This package is the core: no sockets, no clock, no randomness, no threads. Feed `ChatStream` the
bytes of a `POST /v1/responses` stream; it gives the chunks of a `/v1/chat/completions` stream.
"""

from deltawire._version import __version__
from deltawire.accounts import Account, AccountPool
from deltawire.attempts import Attempt, Policy, Timeouts
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
from deltawire.dialects import (
    AZURE,
    COPILOT,
    DIALECTS,
    GENERIC,
    LMSTUDIO,
    OPENAI,
    OPENROUTER,
    VLLM,
    XAI,
    Dialect,
    dialect_for_url,
    dialect_named,
)
from deltawire.errors import (
    DeltawireError,
    EventTooLarge,
    InvalidRequest,
    InvalidSetting,
    LocalProtocolError,
    NoAccountReady,
    RemoteProtocolError,
    UnsupportedField,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from deltawire.exchange import Exchange
from deltawire.output import Divergence
from deltawire.reading import ReportEntry
from deltawire.relay import ChatRelay
from deltawire.renderings import AsCompletion, AsEvents, AsFrames
from deltawire.request import (
    Translated,
    refuses_encrypted_reasoning,
    to_responses_request,
    without_reasoning,
)
from deltawire.sse import DEFAULT_MAX_EVENT_SIZE, ServerSentEvent, SSEDecoder
from deltawire.stream import ChatStream, State
from deltawire.tools import ClientTools

__all__ = [
    "AZURE",
    "COPILOT",
    "DEFAULT_MAX_EVENT_SIZE",
    "DIALECTS",
    "GENERIC",
    "LMSTUDIO",
    "OPENAI",
    "OPENROUTER",
    "VLLM",
    "XAI",
    "Account",
    "AccountPool",
    "AsCompletion",
    "AsEvents",
    "AsFrames",
    "Attempt",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionFold",
    "ChatRelay",
    "ChatStream",
    "Chunk",
    "ClientTools",
    "DeltawireError",
    "Dialect",
    "Divergence",
    "Done",
    "Event",
    "EventTooLarge",
    "Exchange",
    "Failure",
    "InvalidRequest",
    "InvalidSetting",
    "LocalProtocolError",
    "NoAccountReady",
    "Policy",
    "RemoteProtocolError",
    "ReportEntry",
    "SSEDecoder",
    "ServerSentEvent",
    "State",
    "Timeouts",
    "Translated",
    "UnsupportedField",
    "UpstreamError",
    "UpstreamRejected",
    "UpstreamTimeout",
    "UpstreamTruncated",
    "UpstreamUnreachable",
    "Usage",
    "__version__",
    "completion_from_response",
    "dialect_for_url",
    "dialect_named",
    "fold",
    "refuses_encrypted_reasoning",
    "to_responses_request",
    "without_reasoning",
]
