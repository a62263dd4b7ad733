"""The cells of langchain-openai, blocking and asynchronous."""

import asyncio

from cells import PATIENCE, RESULTS, SHORT, failure, known, run
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIError
from pydantic import BaseModel


class City(BaseModel):
    """What the case `structured` asks for."""

    city: str
    people: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return RESULTS["weather"]


@tool
def population(city: str) -> str:
    """The population of a city."""
    return RESULTS["population"]


TOOLS = {each.name: each for each in (weather, population)}


def stream(model, messages, leaves):
    answer = None
    chunks = model.stream(messages)
    try:
        for chunk in chunks:
            answer = chunk if answer is None else answer + chunk
            if leaves and answer.text:
                chunks.close()
                return {"left": True}, None
    except APIError as error:
        return failure(error, text=answer and answer.text), None
    return of(answer), answer


async def astream(model, messages, leaves):
    answer = None
    try:
        async for chunk in model.astream(messages):
            answer = chunk if answer is None else answer + chunk
            if leaves and answer.text:
                # Once it waits for the next chunk.
                asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    except APIError as error:
        return failure(error, text=answer and answer.text), None
    except asyncio.CancelledError:
        return {"left": True}, None
    return of(answer), answer


def invoke(model, messages, leaves):
    try:
        answer = model.invoke(messages)
    except APIError as error:
        return failure(error), None
    return of(answer), answer


async def ainvoke(model, messages, leaves):
    try:
        answer = await model.ainvoke(messages)
    except APIError as error:
        return failure(error), None
    return of(answer), answer


WAYS = {each.__name__: each for each in (stream, astream, invoke, ainvoke)}


def of(answer):
    """What an answer shows."""
    if isinstance(answer, City):
        return {"parsed": dict(answer)}
    usage = answer.usage_metadata
    return known(
        text=answer.text,
        refusal=answer.additional_kwargs.get("refusal"),
        calls=[[call["id"], call["name"], call["args"]] for call in answer.tool_calls],
        finish=answer.response_metadata.get("finish_reason"),
        usage=usage
        and [
            usage["input_tokens"],
            usage["output_tokens"],
            usage["total_tokens"],
            usage["input_token_details"]["cache_read"],
            usage["output_token_details"]["reasoning"],
        ],
    )


def model_for(cell):
    case = cell["case"]
    model = ChatOpenAI(
        model=cell["model"],
        base_url=cell["base_url"],
        api_key="none",
        max_retries=2 if case == "retry" else 0,
        timeout={"silence": PATIENCE, "cancel": SHORT}.get(case, 60),
        use_responses_api=False,
        stream_usage=case == "usage",
    )
    if case in ("tools", "parallel", "loop"):
        return model.bind_tools(list(TOOLS.values()))
    if case == "structured":
        return model.with_structured_output(City, method="json_schema")
    return model


async def program(cell):
    ask, model = WAYS[cell["way"]], model_for(cell)
    messages, seen = [HumanMessage(cell["question"])], []
    while True:
        arguments = (model, messages, cell["case"] == "cancel")
        if asyncio.iscoroutinefunction(ask):
            saw, answer = await ask(*arguments)
        else:
            saw, answer = await asyncio.to_thread(ask, *arguments)
        seen.append(saw)
        if cell["case"] != "loop" or "calls" not in saw:
            return seen if cell["case"] == "loop" else saw
        results = [TOOLS[call["name"]].invoke(call) for call in answer.tool_calls]
        messages = [*messages, answer, *results]


if __name__ == "__main__":
    asyncio.run(run(program))
