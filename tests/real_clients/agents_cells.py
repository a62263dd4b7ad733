"""The cells of openai-agents, whose runner makes the loop of every call."""

import asyncio
import json

from agents import (
    Agent,
    ItemHelpers,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.exceptions import ModelRefusalError
from cells import PATIENCE, RESULTS, SHORT, failure, known, run
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
# Each one of its own would read the authorities anew.
CLIENT = AsyncOpenAI(api_key="none")


class City(BaseModel):
    """What the case `structured` asks for."""

    city: str
    people: int


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return RESULTS["weather"]


@function_tool
def population(city: str) -> str:
    """The population of a city."""
    return RESULTS["population"]


def agent_for(cell):
    case = cell["case"]
    client = CLIENT.with_options(
        base_url=cell["base_url"],
        max_retries=2 if case == "retry" else 0,
        timeout={"silence": PATIENCE, "cancel": SHORT}.get(case, 60),
    )
    return Agent(
        name="guide",
        model=OpenAIChatCompletionsModel(model=cell["model"], openai_client=client),
        model_settings=ModelSettings(include_usage=case == "usage"),
        tools=[weather, population] if case in ("tools", "parallel", "loop") else [],
        output_type=City if case == "structured" else None,
    )


def of(response):
    """What an answer of the model shows."""
    usage, text, refusal, reasoning, calls = response.usage, "", "", "", []
    for item in response.output:
        if item.type == "message":
            text += ItemHelpers.extract_text(item) or ""
            refusal += ItemHelpers.extract_refusal(item) or ""
        elif item.type == "reasoning":
            reasoning += "".join(part.text for part in item.summary)
        elif item.type == "function_call":
            calls.append([item.call_id, item.name, json.loads(item.arguments)])
    return known(
        text=text,
        refusal=refusal,
        reasoning=reasoning,
        calls=calls,
        usage=usage.total_tokens
        and [
            usage.input_tokens,
            usage.output_tokens,
            usage.total_tokens,
            usage.input_tokens_details.cached_tokens,
            usage.output_tokens_details.reasoning_tokens,
        ],
    )


async def streamed(cell):
    text = ""
    ran = Runner.run_streamed(agent_for(cell), cell["question"])
    try:
        async for event in ran.stream_events():
            data = event.data if event.type == "raw_response_event" else None
            if data is not None and data.type == "response.output_text.delta":
                text += data.delta
                if cell["case"] == "cancel":
                    ran.cancel()
    except APIError as error:
        return failure(error, text=text)
    except ModelRefusalError as error:
        return {"error": type(error).__name__, "refusal": error.refusal}
    return {"left": True} if cell["case"] == "cancel" else shown(ran, cell)


async def whole(cell):
    try:
        ran = await Runner.run(agent_for(cell), cell["question"])
    except APIError as error:
        return failure(error)
    except ModelRefusalError as error:
        return {"error": type(error).__name__, "refusal": error.refusal}
    return shown(ran, cell)


def shown(ran, cell):
    if cell["case"] == "structured":
        return {"parsed": dict(ran.final_output)}
    answers = [of(each) for each in ran.raw_responses]
    return answers if cell["case"] == "loop" else answers[0]


WAYS = {each.__name__: each for each in (streamed, whole)}


async def program(cell):
    return await WAYS[cell["way"]](cell)


if __name__ == "__main__":
    asyncio.run(run(program))
