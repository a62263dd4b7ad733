"""One peer in an environment of its own: `python peer_worker.py NAME FRAMES_FILE`.

FRAMES_FILE has the frames of a stream as a JSON list of strings. Each line "go" on standard input
is one run over all of them, answered with its ns of CPU; the first line out is the peer's version.
Nothing of deltawire is imported here: it is not installed where this runs.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Run = Callable[[], None]


def httpx_sse(frames: list[bytes]) -> Run:
    decoder_type = importlib.import_module("httpx_sse._decoders").SSEDecoder
    lines = [line for frame in frames for line in frame.decode().split("\n")[:-1]]

    def run() -> None:
        decoder = decoder_type()
        for line in lines:
            decoder.decode(line)

    return run


def _http() -> Any:
    # openai-python is built on httpx or, since version 3, on its successor.
    return importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")


def _answering(http: Any, frames: list[bytes]) -> Any:
    """A client's transport that answers every request with the frames, each a read of its own."""

    class Body(http.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Any:
            return iter(frames)

    head = {"content-type": "text/event-stream"}
    return http.MockTransport(lambda request: http.Response(200, headers=head, stream=Body()))


def openai(frames: list[bytes]) -> Run:
    http = _http()
    module = importlib.import_module("openai")
    client = module.OpenAI(
        api_key="none", http_client=http.Client(transport=_answering(http, frames))
    )

    def run() -> None:
        for _ in client.responses.create(model="m", input="Hello", stream=True):
            pass

    return run


def langchain(frames: list[bytes]) -> Run:
    http = _http()
    model = importlib.import_module("langchain_openai").ChatOpenAI(
        model="m",
        api_key="none",
        use_responses_api=True,
        http_client=http.Client(transport=_answering(http, frames)),
    )

    def run() -> None:
        for _ in model.stream("Hello"):
            pass

    return run


def litellm_bridge(frames: list[bytes]) -> Run:
    bridge_type = importlib.import_module(
        "litellm.completion_extras.litellm_responses_transformation.transformation"
    ).OpenAiResponsesToChatCompletionStreamIterator
    payloads = [frame.split(b"data: ", 1)[1].decode() for frame in frames]

    def run() -> None:
        bridge = bridge_type(streaming_response=iter(()), sync_stream=True)
        for payload in payloads:
            bridge.chunk_parser(json.loads(payload))

    return run


def litellm_sdk(frames: list[bytes]) -> Run:
    litellm = importlib.import_module("litellm")
    http = importlib.import_module("httpx")
    handler_type = importlib.import_module("litellm.llms.custom_httpx.http_handler").HTTPHandler
    client = handler_type(client=http.Client(transport=_answering(http, frames)))
    messages = [{"role": "user", "content": "Hello"}]

    def run() -> None:
        chunks = 0
        for _ in litellm.completion(
            model="openai/responses/gpt-5",
            messages=messages,
            stream=True,
            api_key="none",
            client=client,
        ):
            chunks += 1
        if chunks < len(frames) // 2:
            raise SystemExit(f"only {chunks} chunks came of {len(frames)} frames")

    return run


MAKERS: Final = {
    "httpx-sse": (httpx_sse, "httpx-sse"),
    "openai": (openai, "openai"),
    "langchain-openai": (langchain, "langchain-openai"),
    "litellm-bridge": (litellm_bridge, "litellm"),
    "litellm-sdk": (litellm_sdk, "litellm"),
}


def main(name: str, file: str) -> None:
    # Or it would ask the network for its price list.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    # It takes a word said a hundred times for a model gone mad.
    os.environ["REPEATED_STREAMING_CHUNK_LIMIT"] = "1000000"
    out = os.fdopen(os.dup(1), "w")
    # What a peer prints is not an answer.
    os.dup2(2, 1)
    maker, distribution = MAKERS[name]
    run = maker([frame.encode() for frame in json.loads(Path(file).read_text())])
    run()
    print(importlib.metadata.version(distribution), file=out, flush=True)
    for _ in sys.stdin:
        gc.collect()
        start = time.process_time_ns()
        run()
        print(time.process_time_ns() - start, file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
