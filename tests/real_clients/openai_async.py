"""The cells of openai-python's asynchronous client."""

import asyncio

from cells import failure, run
from openai import APIError, AsyncOpenAI, LengthFinishReasonError
from openai_requests import Chunks, of_completion, options, request, with_results


async def streamed(client, wanted, leaves):
    chunks = Chunks()
    try:
        async for chunk in await client.chat.completions.create(stream=True, **wanted):
            chunks.add(chunk)
            if leaves and chunks.text:
                # Once it waits for the next chunk.
                asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
    except APIError as error:
        return failure(error, text=chunks.text), None
    except asyncio.CancelledError:
        return {"left": True}, None
    return chunks.saw(), chunks.message()


async def helper(client, wanted, leaves):
    text = ""
    try:
        async with client.chat.completions.stream(**wanted) as stream:
            async for event in stream:
                text += event.delta if event.type == "content.delta" else ""
                if leaves and text:
                    return {"left": True}, None
            completion = await stream.get_final_completion()
    except APIError as error:
        return failure(error, text=text), None
    except LengthFinishReasonError as error:
        return {"error": type(error).__name__, "text": text}, None
    return of_completion(completion), completion.choices[0].message.to_dict()


async def lines(client, wanted, leaves):
    chunks = Chunks()
    create = client.chat.completions.with_streaming_response.create
    try:
        async with create(stream=True, **wanted) as response:
            async for line in response.iter_lines():
                chunks.add_line(line)
                if leaves and chunks.text:
                    return {"left": True}, None
    except APIError as error:
        return failure(error, text=chunks.text), None
    return chunks.saw(), chunks.message()


async def create(client, wanted, leaves):
    return await _whole(client.chat.completions.create(**wanted))


async def parse(client, wanted, leaves):
    return await _whole(client.chat.completions.parse(**wanted))


async def _whole(call):
    try:
        completion = await call
    except APIError as error:
        return failure(error), None
    except LengthFinishReasonError as error:
        return {"error": type(error).__name__, **of_completion(error.completion)}, None
    return of_completion(completion), completion.choices[0].message.to_dict()


async def raw(client, wanted, leaves):
    try:
        response = await client.chat.completions.with_raw_response.create(**wanted)
    except APIError as error:
        return failure(error), None
    completion = response.parse()
    saw = {**of_completion(completion), "named": bool(response.headers["x-request-id"])}
    return saw, completion.choices[0].message.to_dict()


# Each one of its own would read the authorities anew.
CLIENT = AsyncOpenAI(api_key="none")
WAYS = {each.__name__: each for each in (streamed, helper, lines, create, parse, raw)}


async def program(cell):
    ask, wanted, seen = WAYS[cell["way"]], request(cell), []
    client = CLIENT.with_options(**options(cell))
    while True:
        saw, message = await ask(client, wanted, cell["case"] == "cancel")
        seen.append(saw)
        if cell["case"] != "loop" or "calls" not in saw:
            return seen if cell["case"] == "loop" else saw
        wanted["messages"] = with_results(wanted["messages"], saw["calls"], message)


if __name__ == "__main__":
    asyncio.run(run(program))
