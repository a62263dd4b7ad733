"""A tool loop with pydantic-ai, streaming. BASE_URL says where."""

import asyncio
import os
from collections.abc import AsyncIterable

from pydantic_ai import Agent, RunContext
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=os.environ["BASE_URL"], api_key="none")
agent = Agent(OpenAIChatModel("gpt-5", provider=provider), system_prompt="Use the tools.")


@agent.tool_plain
def weather(city: str) -> str:
    """The weather of a city."""
    return "sun"


@agent.tool_plain
def population(city: str) -> int:
    """The population of a city."""
    return 2800000


async def receive(context: RunContext, events: AsyncIterable) -> None:
    async for _ in events:
        pass


async def main() -> None:
    # With a handler of events, the run streams; run_stream would end at the first text.
    run = await agent.run("How is Rome?", event_stream_handler=receive)
    print(run.output)


asyncio.run(main())
