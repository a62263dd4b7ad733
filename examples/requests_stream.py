"""requests, by the urllib3 below it: `iter_content` waits for whole chunks, or for the end."""

import os

import requests

from deltawire import ChatStream


def main() -> None:
    # In a function, because a session that is closed leaves its connection to the last response.
    url = f"http://{os.environ.get('UPSTREAM', '127.0.0.1:8080')}/v1/responses"
    request: dict[str, str | bool] = {"model": "gpt-5", "input": "Hello", "stream": True}
    stream = ChatStream()
    with (
        requests.Session() as session,
        session.post(url, json=request, stream=True) as response,
    ):
        # requests has switched decompression off for reads that go past it.
        while data := response.raw.read1(decode_content=True):
            print(stream.translate(data).decode(), end="", flush=True)
    print(stream.translate_eof().decode(), end="")


main()
