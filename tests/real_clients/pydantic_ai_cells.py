"""The cells of pydantic-ai: requests to its model, and for loops and structured output an agent."""

import asyncio

from cells import PATIENCE, RESULTS, SHORT, TOOLS, known, run
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    ThinkingPart,
    ToolCallPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

# Each one of its own would read the authorities anew.
CLIENT = AsyncOpenAI(api_key="none")
PARAMETERS = ModelRequestParameters(
    function_tools=[
        ToolDefinition(
            name=each["function"]["name"],
            description=each["function"]["description"],
            parameters_json_schema=each["function"]["parameters"],
        )
        for each in TOOLS
    ]
)


class City(BaseModel):
    """What the case `structured` asks for."""

    city: str
    people: int


def weather(city: str) -> str:
    """The weather of a city."""
    return RESULTS["weather"]


def population(city: str) -> str:
    """The population of a city."""
    return RESULTS["population"]


def model_for(cell):
    case = cell["case"]
    client = CLIENT.with_options(
        base_url=cell["base_url"],
        max_retries=2 if case == "retry" else 0,
        timeout={"silence": PATIENCE, "cancel": SHORT}.get(case, 60),
    )
    return OpenAIChatModel(cell["model"], provider=OpenAIProvider(openai_client=client))


def of(response):
    """What an answer shows."""
    details, usage = response.provider_details or {}, response.usage
    return known(
        text=response.text,
        refusal=details.get("refusal"),
        reasoning="".join(p.content for p in response.parts if isinstance(p, ThinkingPart)),
        calls=[
            [part.tool_call_id, part.tool_name, part.args_as_dict()]
            for part in response.parts
            if isinstance(part, ToolCallPart)
        ],
        finish=response.finish_reason,
        usage=[
            usage.input_tokens,
            usage.output_tokens,
            usage.total_tokens,
            usage.cache_read_tokens,
            usage.details.get("reasoning_tokens", 0),
        ],
    )


def failure(error, **saw):
    body = getattr(error, "body", None) or {}
    return known(
        error=type(error).__name__,
        status=getattr(error, "status_code", None),
        code=body.get("code"),
        type=body.get("type"),
        message=body.get("message") or error.message,
        **saw,
    )


async def stream(cell, parameters):
    response = None
    try:
        async with model_request_stream(
            model_for(cell),
            [ModelRequest.user_text_prompt(cell["question"])],
            model_request_parameters=parameters,
        ) as events:
            async for _ in events:
                response = events.get()
                if cell["case"] == "cancel" and response.text:
                    return {"left": True}
            return of(events.get())
    except ModelAPIError as error:
        return failure(error, text=response and response.text)


async def request(cell, parameters):
    try:
        return of(
            await model_request(
                model_for(cell),
                [ModelRequest.user_text_prompt(cell["question"])],
                model_request_parameters=parameters,
            )
        )
    except ModelAPIError as error:
        return failure(error)


async def receive(context, events):
    async for _ in events:
        pass


async def agent(cell):
    """Its answers in turn, and what came of them."""
    structured = cell["case"] == "structured"
    agent = Agent(
        model_for(cell),
        tools=[] if structured else [weather, population],
        output_type=NativeOutput(City) if structured else str,
    )
    # With a handler of events, a run streams; run_stream would end at the first text.
    handler = receive if cell["way"] == "stream" else None
    ran = await agent.run(cell["question"], event_stream_handler=handler)
    messages = ran.all_messages()
    assert not any(isinstance(part, RetryPromptPart) for each in messages for part in each.parts)
    if structured:
        return {"parsed": dict(ran.output)}
    return [of(each) for each in messages if isinstance(each, ModelResponse)]


WAYS = {each.__name__: each for each in (stream, request)}


async def program(cell):
    if cell["case"] in ("loop", "structured"):
        return await agent(cell)
    wants_tools = cell["case"] in ("tools", "parallel")
    return await WAYS[cell["way"]](cell, PARAMETERS if wants_tools else ModelRequestParameters())


if __name__ == "__main__":
    asyncio.run(run(program))
