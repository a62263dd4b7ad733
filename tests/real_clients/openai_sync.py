"""The cells of openai-python's blocking client."""

import asyncio

from cells import failure, run
from openai import APIError, LengthFinishReasonError, OpenAI
from openai_requests import Chunks, of_completion, options, request, with_results


def streamed(client, wanted, leaves):
    chunks = Chunks()
    try:
        stream = client.chat.completions.create(stream=True, **wanted)
        for chunk in stream:
            chunks.add(chunk)
            if leaves and chunks.text:
                stream.close()
                return {"left": True}, None
    except APIError as error:
        return failure(error, text=chunks.text), None
    return chunks.saw(), chunks.message()


def helper(client, wanted, leaves):
    text = ""
    try:
        with client.chat.completions.stream(**wanted) as stream:
            for event in stream:
                text += event.delta if event.type == "content.delta" else ""
                if leaves and text:
                    return {"left": True}, None
            completion = stream.get_final_completion()
    except APIError as error:
        return failure(error, text=text), None
    except LengthFinishReasonError as error:
        return {"error": type(error).__name__, "text": text}, None
    return of_completion(completion), completion.choices[0].message.to_dict()


def lines(client, wanted, leaves):
    chunks = Chunks()
    create = client.chat.completions.with_streaming_response.create
    try:
        with create(stream=True, **wanted) as response:
            for line in response.iter_lines():
                chunks.add_line(line)
                if leaves and chunks.text:
                    return {"left": True}, None
    except APIError as error:
        return failure(error, text=chunks.text), None
    return chunks.saw(), chunks.message()


def create(client, wanted, leaves):
    return _whole(client.chat.completions.create, wanted)


def parse(client, wanted, leaves):
    return _whole(client.chat.completions.parse, wanted)


def _whole(create, wanted):
    try:
        completion = create(**wanted)
    except APIError as error:
        return failure(error), None
    except LengthFinishReasonError as error:
        return {"error": type(error).__name__, **of_completion(error.completion)}, None
    return of_completion(completion), completion.choices[0].message.to_dict()


def raw(client, wanted, leaves):
    try:
        response = client.chat.completions.with_raw_response.create(**wanted)
    except APIError as error:
        return failure(error), None
    completion = response.parse()
    saw = {**of_completion(completion), "named": bool(response.headers["x-request-id"])}
    return saw, completion.choices[0].message.to_dict()


# Each one of its own would read the authorities anew.
CLIENT = OpenAI(api_key="none")
WAYS = {each.__name__: each for each in (streamed, helper, lines, create, parse, raw)}


def program(cell):
    ask, wanted, seen = WAYS[cell["way"]], request(cell), []
    client = CLIENT.with_options(**options(cell))
    while True:
        saw, message = ask(client, wanted, cell["case"] == "cancel")
        seen.append(saw)
        if cell["case"] != "loop" or "calls" not in saw:
            return seen if cell["case"] == "loop" else saw
        wanted["messages"] = with_results(wanted["messages"], saw["calls"], message)


if __name__ == "__main__":
    asyncio.run(run(program))
