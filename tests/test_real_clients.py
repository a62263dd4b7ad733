"""Real clients, each in each case, through the server on each transport, with a simulated upstream.

Every client is one process for all cases and transports; what its own API showed is compared as a
whole with what it has to show (`client_cases`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from client_cases import (
    CLIENTS,
    MANY,
    MODELS,
    OWN_QUESTION,
    RETRY_AFTER,
    TRANSPORTS,
    Client,
    Saw,
)
from deltawire.server.simulate import simulated
from environments import PYTHON_CLIENTS, ROOT, SCRIPTS, client_program, client_version
from test_serve import serving
from upstream import LIMIT

# Long enough for an error to be a status on a machine that is busy, short of the clients' patience.
GRACE, PING = 3.0, 0.5
# Most of the time, a client waits.
AT_ONCE = 2


Cell = dict[str, Any]


class Bridge:
    """A server on each transport in front of one simulated upstream, and what clients saw there."""

    def __init__(self, upstream: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self._simulation = httpx.Client(base_url=upstream.removesuffix("/v1"), timeout=LIMIT)
        stack.enter_context(self._simulation)
        self._urls = {}
        for transport in TRANSPORTS:
            home = folder / transport
            home.mkdir()
            (home / "deltawire.toml").write_text(_configuration(transport, upstream))
            self._urls[transport] = f"{stack.enter_context(serving(home)).url}/v1"
        self._pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        self._runs: dict[str, Future[dict[tuple[str, str], dict[str, Cell]]]] = {}

    def start(self, client: Client) -> None:
        """Run its program, some time."""
        if client.name not in self._runs:
            self._runs[client.name] = self._pool.submit(self._run, client)

    def cells(self, client: Client, case: str, transport: str) -> dict[str, Cell]:
        """By the client's ways to ask: the cells of its program, with `seconds` and `saw`."""
        return self._runs[client.name].result()[case, transport]

    def requests(self, case: str, client: Client, way: str, transport: str) -> list[Any]:
        """What upstream saw, once it is over."""
        model = _model(case, client, way, transport)
        answer = self._simulation.get(
            "/simulate/requests", params={"model": model, "settled": "1"}
        ).json()
        requests: list[Any] = answer["requests"]
        return requests

    def _run(self, client: Client) -> dict[tuple[str, str], dict[str, Cell]]:
        cells = [
            {
                "case": case,
                "way": way,
                "transport": transport,
                "base_url": self._urls[transport],
                "model": _alias(client, way)
                if case == "retry"
                else _model(case, client, way, transport),
            }
            for transport in TRANSPORTS
            for case in MODELS
            for way in client.ways_in(case)
        ]
        done = subprocess.run(
            client_program(client.program),
            env={**os.environ, "CELLS": json.dumps(cells)},
            capture_output=True,
            text=True,
            check=False,
            # Only to end a client that hangs; beside eight busy processes one took five minutes.
            timeout=20 * LIMIT,
        )
        assert done.returncode == 0, done.stderr
        ran: dict[tuple[str, str], dict[str, Cell]] = {}
        for line in done.stdout.splitlines():
            cell = json.loads(line)
            ran.setdefault((cell["case"], cell["transport"]), {})[cell["way"]] = cell
        return ran


def _model(case: str, client: Client, way: str, transport: str) -> str:
    return f"{MODELS[case]};key={case}/{client.program}/{way}/{transport}"


def _alias(client: Client, way: str) -> str:
    return f"limited/{client.program}/{way}"


def _configuration(transport: str, upstream: str) -> str:
    """Whoever is to be told to try again has an upstream to itself, whose account may rest."""
    tables = [
        f'[server]\nport = 0\ntransport = "{transport}"\ngrace = {GRACE}\nping = {PING}\n'
        f'ping_json = true\nlog = "none"\n[ledger]\nurl = ""\n'
        f'[[upstreams]]\nname = "upstream"\nbase_url = "{upstream}"\n'
    ]
    for client in CLIENTS:
        for way in client.ways:
            alias, model = _alias(client, way), _model("retry", client, way, transport)
            tables.append(
                f'[[upstreams]]\nname = "{len(tables)}"\nbase_url = "{upstream}"\n'
                f'aliases = {{ "{alias}" = "{model}" }}\n'
            )
    return "".join(tables)


@pytest.fixture(scope="module")
def bridge(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bridge]:
    with simulated() as upstream, contextlib.ExitStack() as stack:
        bridge = Bridge(upstream, tmp_path_factory.mktemp("servers"), stack)
        # All that will be asked for, so that they need not wait for each other.
        for item in request.session.items:
            if item.path == request.path and isinstance(item, pytest.Function):
                client = item.callspec.params["client"]
                assert isinstance(client, Client)
                bridge.start(client)
        yield bridge


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_shows_what_upstream_said(
    client: Client,
    case: str,
    transport: str,
    bridge: Bridge,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("cell", (client.name, case, transport))
    cells = bridge.cells(client, case, transport)
    assert set(cells) == set(client.ways_in(case))
    for way, cell in cells.items():
        answers = cell["saw"] if isinstance(cell["saw"], list) else [cell["saw"]]
        expected = client.answers(case, way)
        if case == "many":
            expected *= MANY
            for number, answer in enumerate(answers):
                if answer.get("text") == f"How is Rome? ({number})":
                    answer["text"] = OWN_QUESTION
        assert [_comparable(each) for each in answers] == expected, way
        if case == "cancel":
            (request,) = bridge.requests(case, client, way, transport)
            assert request["left"], way
        if case == "retry":
            requests = bridge.requests(case, client, way, transport)
            assert [request["status"] for request in requests] == [429, 200], way
            assert cell["seconds"] >= RETRY_AFTER, way


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_readme_names_the_version_that_is_tried(client: Client) -> None:
    named = f"{client.name.partition(' (')[0]} {client.version}"
    assert re.search(rf"\b{re.escape(named)}[,:]", (ROOT / "README.md").read_text())
    if client.program.endswith(".mjs"):
        needs = json.loads((SCRIPTS / "package.json").read_text())["dependencies"]
        assert needs[client.package].startswith(f"~{client.version}.")
    elif client.package == "openai":
        assert client_version(client.program, "openai").startswith(f"{client.version}.")
    else:
        name = re.escape(client.package)
        pattern = rf"{name}(\[\w+\])?~={re.escape(client.version)}\.\d+"
        assert any(re.fullmatch(pattern, each) for each in PYTHON_CLIENTS)


def _comparable(saw: Saw) -> Saw:
    """Without the number of input tokens, which are the client's own affair; their sum is right."""
    if "usage" in saw:
        read, written, total, *more = saw["usage"]
        assert read > 0
        assert total == read + written
        saw["usage"] = [written, *more]
    return saw
