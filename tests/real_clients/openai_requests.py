"""What openai-python is asked in each case, and what it showed; for both of its clients."""

import json

from cells import PATIENCE, RESULTS, SHORT, TOOLS, known
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, ConfigDict


class City(BaseModel):
    """What the case `structured` asks for."""

    model_config = ConfigDict(extra="forbid")
    city: str
    people: int


def options(cell):
    """The options of a client."""
    return {
        "base_url": cell["base_url"],
        "max_retries": 2 if cell["case"] == "retry" else 0,
        "timeout": {"silence": PATIENCE, "cancel": SHORT}.get(cell["case"], 60),
    }


def request(cell):
    """The arguments of a call."""
    wanted = {"model": cell["model"], "messages": [{"role": "user", "content": cell["question"]}]}
    if cell["case"] in ("tools", "parallel", "loop"):
        wanted["tools"] = TOOLS
    if cell["case"] == "structured":
        schema = {"name": "City", "strict": True, "schema": City.model_json_schema()}
        of_its_own = cell["way"] in ("helper", "parse")
        wanted["response_format"] = (
            City if of_its_own else {"type": "json_schema", "json_schema": schema}
        )
    if cell["case"] == "usage" and cell["way"] in ("streamed", "helper", "lines"):
        wanted["stream_options"] = {"include_usage": True}
    return wanted


def with_results(messages, calls, message):
    """The messages of the next turn of a loop."""
    results = [
        {"role": "tool", "tool_call_id": id, "content": RESULTS[name]} for id, name, _ in calls
    ]
    return [*messages, message, *results]


def of_usage(usage):
    """Tokens: input, output, total, cached, reasoning."""
    if usage is None:
        return None
    return [
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens_details.reasoning_tokens,
    ]


def of_completion(completion):
    """What a whole answer shows."""
    (choice,) = completion.choices
    message = choice.message
    return known(
        text=message.content,
        refusal=message.refusal,
        reasoning=getattr(message, "reasoning_content", None),
        calls=[
            [call.id, call.function.name, json.loads(call.function.arguments)]
            for call in message.tool_calls or ()
        ],
        parsed=dict(message.parsed) if getattr(message, "parsed", None) else None,
        finish=choice.finish_reason,
        usage=of_usage(completion.usage),
    )


class Chunks:
    """Chunks put together by hand, as programs do that are older than the client's own helper."""

    def __init__(self):
        self.text = self.refusal = self.reasoning = ""
        self.calls = []
        self.finish = self.usage = None
        self.pings = 0
        self.error = None

    def add(self, chunk):
        self.usage = chunk.usage or self.usage
        if not chunk.choices:
            return
        delta = chunk.choices[0].delta
        self.text += delta.content or ""
        self.refusal += delta.refusal or ""
        self.reasoning += getattr(delta, "reasoning_content", None) or ""
        for part in delta.tool_calls or ():
            if part.id:
                self.calls.append([part.id, part.function.name, ""])
            self.calls[part.index][2] += part.function.arguments or ""
        self.finish = chunk.choices[0].finish_reason or self.finish

    def add_line(self, line):
        self.pings += line == ": ping"
        data = line.removeprefix("data: ")
        if data.startswith('{"error":'):
            self.error = json.loads(data)["error"]
        elif data != line and data != "[DONE]":
            self.add(ChatCompletionChunk.model_validate_json(data))

    def saw(self):
        calls = [[id, name, json.loads(arguments)] for id, name, arguments in self.calls]
        pinged = self.pings > 1 or None
        return known(
            text=self.text,
            refusal=self.refusal,
            reasoning=self.reasoning,
            calls=calls,
            finish=self.finish,
            usage=of_usage(self.usage),
            pinged=pinged,
            error=self.error,
        )

    def message(self):
        """It as a message of the next request."""
        calls = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in self.calls
        ]
        return known(role="assistant", content=self.text, tool_calls=calls)
