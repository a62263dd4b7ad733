"""A tool loop with langchain-openai, streaming. BASE_URL says where."""

import os

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "sun"


@tool
def population(city: str) -> str:
    """The population of a city."""
    return "2800000"


tools = {each.name: each for each in (weather, population)}
model = ChatOpenAI(
    model="gpt-5",
    base_url=os.environ["BASE_URL"],
    api_key="none",
    max_retries=0,
    use_responses_api=False,
).bind_tools(list(tools.values()))
messages = [SystemMessage("Use the tools."), HumanMessage("How is Rome?")]
while True:
    answer = None
    for chunk in model.stream(messages):
        answer = chunk if answer is None else answer + chunk
    messages.append(answer)
    messages += [tools[call["name"]].invoke(call) for call in answer.tool_calls]
    if not answer.tool_calls:
        print(answer.text)
        break
