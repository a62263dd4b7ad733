"""urllib3: `read1` gives what is there, where `stream` and `read` wait until they have enough."""

import os

import urllib3

from deltawire import ChatStream

upstream = os.environ.get("UPSTREAM", "127.0.0.1:8080")
request = {"model": "gpt-5", "input": "Hello", "stream": True}
stream = ChatStream()
with (
    # A pool of one's own: leaving a PoolManager does not close connections that are idle.
    urllib3.connection_from_url(f"http://{upstream}") as pool,
    pool.request("POST", "/v1/responses", json=request, preload_content=False) as response,
):
    while data := response.read1():
        print(stream.translate(data).decode(), end="", flush=True)
print(stream.translate_eof().decode(), end="")
