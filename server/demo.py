"""`deltawire demo`: all of it at work on this machine, without a key and without a network.

A simulated upstream in a thread, `deltawire serve` in front of it in processes of their own, once
for each transport, and a client that asks them over HTTP. Where the packages of the server are not
installed, the core alone shows what it does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from deltawire import ChatStream, Done, Event, Failure
from deltawire.testing import Answer, FunctionCall, Reasoning, TokenUsage, write_frames

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]

_TRANSPORTS: Final = ("asyncio", "trio", "sync")
_NEEDED: Final = ("httpx", "h11", "trio", "sqlalchemy", "prometheus_client")
_WIDTH: Final = 92
# What hangs is to end in an error, some time.
_PATIENCE: Final = 60.0
_WEATHER: Final[Json] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

_NOW_YOU: Final = """\
Now from your own client, each line in a terminal of its own:
  deltawire simulate
  deltawire serve --upstream http://127.0.0.1:8081/v1 --no-ledger
  curl -N http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "plain", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'
`deltawire simulate --list` names its other models. In front of real ones, with OPENAI_API_KEY set:
  deltawire serve --upstream https://api.openai.com/v1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `deltawire demo`, for `run`."""
    parser.add_argument(
        "--pace",
        metavar="SECONDS",
        type=float,
        default=0.02,
        help="between two upstream events (default: 0.02)",
    )
    parser.add_argument(
        "--core", action="store_true", help="only the translation of a stream, event by event"
    )


def run(options: argparse.Namespace) -> int:
    """Show it. Exit status: 1 where the demo itself does not work."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if options.core or missing:
        _show_core(options.pace)
    if options.core:
        return 0
    if missing:
        print(
            f"\nThis was the core alone, for want of {', '.join(missing)}."
            "\nWith the server: pip install 'deltawire[server]'"
        )
        return 0
    return _show_servers(options.pace)


# The servers.


class _Unexpected(Exception):
    """Something was answered that is not part of the show."""


def _show_servers(pace: float) -> int:
    import httpx

    from deltawire.server.simulate import simulated

    try:
        # No proxy between here and here.
        with (
            simulated(pace=pace) as upstream,
            _servers(upstream) as servers,
            httpx.Client(trust_env=False, timeout=_PATIENCE) as client,
        ):
            _show(client, upstream, servers)
    except (_Unexpected, httpx.HTTPError, OSError) as error:
        print(f"deltawire: the demo failed: {error}", file=sys.stderr)
        return 1
    print(f"\n{_NOW_YOU}")
    return 0


@contextlib.contextmanager
def _servers(upstream: str) -> Iterator[dict[str, str]]:
    """The base URLs of servers in front of that upstream, one on each transport."""
    environ = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "deltawire.server.cli", "serve", "--upstream", upstream]
    command += ["--port", "0", "--no-ledger", "--transport"]
    with contextlib.ExitStack() as stack:
        processes = {}
        for transport in _TRANSPORTS:
            process = subprocess.Popen(
                [*command, transport], env=environ, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            processes[transport] = process
        urls = {}
        for transport, process in processes.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise _Unexpected(f"there is no server on {transport}")
            urls[transport] = line.split()[2].removesuffix("/chat/completions")
        yield urls


def _show(client: httpx.Client, upstream: str, servers: Mapping[str, str]) -> None:
    print("deltawire demo: Chat Completions in front of a Responses API, over real HTTP.\n")
    print(f"upstream   {upstream}/responses, simulated: no key, no network")
    for transport, url in servers.items():
        print(f"{transport:10} {url}/chat/completions, by deltawire serve")
    asked = _request("reasoning", "What is a delta?")
    print(f"\nEach is asked: {asked['messages'][0]['content']}")
    for transport, url in servers.items():
        print(f"\n{transport}", flush=True)
        _Watched(client, url, asked).show()
    print()
    _show_tools(client, servers["asyncio"])
    _show_leaving(client, upstream, servers["trio"])
    _show_refusal(client, servers["sync"])


def _request(model: str, text: str, **more: Any) -> Json:
    messages = [{"role": "user", "content": text}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, **options, **more}


def _chunks(client: httpx.Client, url: str, chat_request: Json) -> Generator[Json, None, None]:
    """The chunks of an answer, each as soon as it is there."""
    with client.stream("POST", f"{url}/chat/completions", json=chat_request) as response:
        if response.status_code != 200:
            raise _Unexpected(f"HTTP {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


class _Watched:
    """One streamed answer, shown as it comes, and timed."""

    def __init__(self, client: httpx.Client, url: str, chat_request: Json) -> None:
        self._asked_at = time.monotonic()
        self._chunks = _chunks(client, url, chat_request)
        self._key = ""
        self._column = 0

    def show(self) -> None:
        """Everything that is said, and how long it took."""
        first: float | None = None
        count = tokens = 0
        for chunk in self._chunks:
            count += 1
            if "error" in chunk:
                raise _Unexpected(chunk["error"]["message"])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                for key in ("reasoning_content", "content"):
                    if text := choice["delta"].get(key):
                        first = first or time.monotonic()
                        self._say(key, text)
        if first is None:
            raise _Unexpected("there was no answer")
        whole = time.monotonic() - self._asked_at
        print(
            f"\n  first token after {1000 * (first - self._asked_at):.0f} ms,"
            f" all after {1000 * whole:.0f} ms: {tokens} tokens in {count} chunks",
            flush=True,
        )

    def _say(self, key: str, text: str) -> None:
        text = " ".join(text.split("\n\n")) if key == "reasoning_content" else text
        if key != self._key:
            end = "\n" if self._key else ""
            print(f"{end}  {'thinks:' if key == 'reasoning_content' else 'says:  '} ", end="")
            self._key, self._column = key, 10
            text = text.lstrip()
        if self._column + len(text) > _WIDTH:
            print("\n          ", end="")
            self._column, text = 10, text.lstrip()
        self._column += len(text)
        print(text, end="", flush=True)


def _show_tools(client: httpx.Client, url: str) -> None:
    """Two calls, whose results go back, and the answer to those."""
    asked = _request("parallel", "Is it warm in Paris and Rome?", tools=[_WEATHER])
    calls: list[Json] = []
    for chunk in _chunks(client, url, asked):
        for choice in chunk["choices"]:
            for delta in choice["delta"].get("tool_calls", ()):
                if delta["index"] == len(calls):
                    calls.append(delta)
                else:
                    arguments = delta["function"]["arguments"]
                    calls[delta["index"]]["function"]["arguments"] += arguments
    functions = [call["function"] for call in calls]
    print(
        "asyncio, tools:   "
        + ", ".join(f"{function['name']}({function['arguments']})" for function in functions)
    )
    said = [{"role": "assistant", "tool_calls": calls}]
    said += [
        {"role": "tool", "tool_call_id": call["id"], "content": degrees}
        for call, degrees in zip(calls, ("19 degrees", "26 degrees"), strict=True)
    ]
    texts = [
        choice["delta"].get("content") or ""
        for chunk in _chunks(client, url, {**asked, "messages": [*asked["messages"], *said]})
        for choice in chunk["choices"]
    ]
    print(f"                  {''.join(texts)}", flush=True)


def _show_leaving(client: httpx.Client, upstream: str, url: str) -> None:
    """A client that leaves in the middle; upstream is asked whether it noticed."""
    model = "stall;key=demo"
    asked = _request(model, "Talk, and then think.")
    with contextlib.closing(_chunks(client, url, asked)) as chunks:
        for chunk in chunks:
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                break
    seen = client.get(
        f"{upstream.removesuffix('/v1')}/simulate/requests",
        params={"model": model, "settled": "1"},
    ).json()["requests"][-1]
    if not seen["left"]:
        raise _Unexpected("upstream was not hung up on")
    print(
        "trio, leaving:    the client left in the middle, and upstream was hung up on", flush=True
    )


def _show_refusal(client: httpx.Client, url: str) -> None:
    """An upstream that refuses, before anything was said."""
    answer = client.post(f"{url}/chat/completions", json=_request("rate-limited", "Are you there?"))
    if answer.status_code != 429:
        raise _Unexpected(f"HTTP {answer.status_code} for a rate limit")
    print(
        f"sync, no quota:   HTTP 429, retry-after: {answer.headers['retry-after']},"
        f" {json.dumps(answer.json()['error']['message'])}"
    )


# The core.


def _show_core(pace: float) -> None:
    print("A sample Responses stream (left) and what a Chat Completions client gets (right).\n")
    stream = ChatStream(include_usage=True)
    for frame in write_frames(_sample()):
        kind = json.loads(frame.split(b"data: ", 1)[1])["type"].removeprefix("response.")
        said = [_short(event) for event in stream.receive_data(frame)] or [""]
        for left, right in zip([kind, *[""] * len(said)], said, strict=False):
            print(f"{left:34} {right}".rstrip(), flush=True)
        time.sleep(pace)
    stream.receive_eof()
    print(
        "\nThe same from anywhere:\n"
        "  curl -N $BASE_URL/v1/responses ... | deltawire translate\n"
        "  deltawire translate --format text recorded.sse"
    )


def _sample() -> Answer:
    return Answer(
        (
            Reasoning("Two cities, so two calls."),
            "Let me look at both.",
            FunctionCall("weather", '{"city":"Paris"}', "call_paris"),
            FunctionCall("weather", '{"city":"Rome"}', "call_rome"),
        ),
        usage=TokenUsage(38, 27, reasoning_tokens=6),
    )


def _short(event: Event) -> str:
    """The part of a frame that differs from the frames before it."""
    if isinstance(event, Done):
        return "[DONE]"
    value = event.to_dict()
    if isinstance(event, Failure) or not event.choices:
        return _json(value.get("error") or {"usage": value["usage"]})
    choice = value["choices"][0]
    reason = choice["finish_reason"]
    return _json({"finish_reason": reason} if reason else choice["delta"])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
