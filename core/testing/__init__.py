"""Responses API streams as providers write them, from a short description of what the model says.

    answer = Answer((Reasoning("Sunny?"), "It is sunny.", FunctionCall("look", '{"at":"Rome"}')))
    data = write_stream(answer, PRESETS["xai"])
    expected(answer).content  # "It is sunny."

For testing whatever reads such streams: the bytes, and what a Chat Completions client must be shown
of them. Sans-I/O and deterministic: where choice is wanted, the caller passes the generator.
Nothing here may import the rest of deltawire, of which it is an independent judge. hypothesis is
needed by `deltawire.testing.strategies` only, which therefore is not imported here.
"""

from deltawire.testing.answer import (
    Answer,
    Cancelled,
    Completed,
    CustomToolCall,
    End,
    ErrorEvent,
    Failed,
    FunctionCall,
    HostedCall,
    Image,
    Incomplete,
    Item,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    TokenUsage,
    Truncated,
    UrlCitation,
)
from deltawire.testing.habits import (
    AZURE,
    BEDROCK,
    COPILOT,
    DEEPSEEK,
    LMSTUDIO,
    OPENAI,
    OPENROUTER,
    PRESETS,
    VLLM,
    XAI,
    Habits,
)
from deltawire.testing.hosted import HOSTED, Hosted
from deltawire.testing.oracle import Expected, Fault, expected
from deltawire.testing.writer import (
    Rng,
    write_events,
    write_frames,
    write_response,
    write_stream,
)

__all__ = [
    "AZURE",
    "BEDROCK",
    "COPILOT",
    "DEEPSEEK",
    "HOSTED",
    "LMSTUDIO",
    "OPENAI",
    "OPENROUTER",
    "PRESETS",
    "VLLM",
    "XAI",
    "Answer",
    "Cancelled",
    "Completed",
    "CustomToolCall",
    "End",
    "ErrorEvent",
    "Expected",
    "Failed",
    "Fault",
    "FunctionCall",
    "Habits",
    "Hosted",
    "HostedCall",
    "Image",
    "Incomplete",
    "Item",
    "Message",
    "Part",
    "Reasoning",
    "Refusal",
    "Rng",
    "Text",
    "TokenUsage",
    "Truncated",
    "UrlCitation",
    "expected",
    "write_events",
    "write_frames",
    "write_response",
    "write_stream",
]
