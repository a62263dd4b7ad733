"""trio, and no network: one task plays a stream, another translates it as it comes."""

import trio
from trio.abc import ReceiveStream, SendStream
from trio.testing import memory_stream_one_way_pair

from deltawire import ChatStream
from deltawire.testing import Answer, write_frames


async def play(upstream: SendStream) -> None:
    async with upstream:
        for frame in write_frames(Answer("Hello there.")):
            await upstream.send_all(frame)


async def translate(upstream: ReceiveStream) -> None:
    stream = ChatStream()
    async with upstream:
        async for data in upstream:
            print(stream.translate(bytes(data)).decode(), end="", flush=True)
    print(stream.translate_eof().decode(), end="")


async def main() -> None:
    sender, receiver = memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play, sender)
        nursery.start_soon(translate, receiver)


if __name__ == "__main__":
    trio.run(main)
