"""aiohttp, which by default gives a whole answer five minutes and no more."""

import asyncio
import os

import aiohttp

from deltawire import ChatStream


async def main() -> None:
    url = f"http://{os.environ.get('UPSTREAM', '127.0.0.1:8080')}/v1/responses"
    request = {"model": "gpt-5", "input": "Hello", "stream": True}
    patience = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=600)  # seconds
    stream = ChatStream()
    async with (
        aiohttp.ClientSession(timeout=patience) as session,
        session.post(url, json=request) as response,
    ):
        async for data in response.content.iter_any():
            print(stream.translate(data).decode(), end="", flush=True)
    print(stream.translate_eof().decode(), end="")


asyncio.run(main())
