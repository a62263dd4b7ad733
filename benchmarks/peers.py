"""What else reads such streams, where it is installed (`pip install 'deltawire[bench]'`).

Each peer does less than `translate` does: httpx-sse only splits events, openai-python makes typed
Responses events of them, LiteLLM's bridge turns decoded events into chat chunks.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable

PEERS = {
    "httpx-sse (events only)": "httpx_sse",
    "openai-python (typed events)": "openai",
    "LiteLLM's bridge (JSON to chunks)": "litellm",
}


def absent() -> list[str]:
    return [name for name, module in PEERS.items() if not importlib.util.find_spec(module)]


def contenders(frames: list[bytes]) -> dict[str, Callable[[], None]]:
    makers = {"httpx_sse": _httpx_sse, "openai": _openai, "litellm": _litellm}
    return {
        name: makers[module](frames)
        for name, module in PEERS.items()
        if importlib.util.find_spec(module)
    }


def _httpx_sse(frames: list[bytes]) -> Callable[[], None]:
    decoder_type = importlib.import_module("httpx_sse._decoders").SSEDecoder
    lines = [line for frame in frames for line in frame.decode().split("\n")[:-1]]

    def run() -> None:
        decoder = decoder_type()
        for line in lines:
            decoder.decode(line)

    return run


def _openai(frames: list[bytes]) -> Callable[[], None]:
    openai = importlib.import_module("openai")
    stream_type = importlib.import_module("openai._streaming").Stream
    events = importlib.import_module("openai.types.responses").ResponseStreamEvent
    # openai-python is built on httpx or, since version 3, on its successor.
    http = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
    client = openai.OpenAI(api_key="none")

    def run() -> None:
        request = http.Request("POST", "http://localhost")
        response = http.Response(200, content=iter(frames), request=request)
        for _ in stream_type(cast_to=events, response=response, client=client):
            pass

    return run


def _litellm(frames: list[bytes]) -> Callable[[], None]:
    # Or it would ask the network for its price list.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    bridge_type = importlib.import_module(
        "litellm.completion_extras.litellm_responses_transformation.transformation"
    ).OpenAiResponsesToChatCompletionStreamIterator
    payloads = [frame.split(b"data: ", 1)[1].decode() for frame in frames]

    def run() -> None:
        bridge = bridge_type(streaming_response=iter(()), sync_stream=True)
        for payload in payloads:
            bridge.chunk_parser(json.loads(payload))

    return run
