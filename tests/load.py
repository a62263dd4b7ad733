"""Load for a server that is about to be killed, and what the upstream behind it saw of that.

    with simulating() as upstream:                      # `deltawire simulate`, its own process
        load = Load(server_url, random.Random(1), "round-1")
        load.start()
        load.wait(500)                                  # so many things have happened to clients
        load.signal(process, SIGKILL)
        load.join()
        upstream.report()                               # what it was asked, and what it answered

Each request has a model of its own, `KIND;key=...`: with the account it names one attempt, to the
upstream as in the ledger. What a client does next is drawn; when it does it is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from upstream import LIMIT

DELTAWIRE: Final = [sys.executable, "-m", "deltawire.server.cli"]
CLIENTS: Final = 12

KINDS: Final = {
    "plain;deltas=4": "completed",
    "plain;deltas=40;pace=0.005": "completed",
    "long;deltas=400": "completed",
    "silent;silence=0.02": "completed",
    "rate-limited-once": "completed",
    "length": "incomplete",
    "empty": "empty",
    "error-first": "failed",
    "error-during;deltas=5": "failed",
    "truncated;deltas=5": "truncated",
    "reset;deltas=5": "truncated",
    "status-500;retry=0": "rejected",
    "status-400": "rejected",
    # Only a client that leaves ends it.
    "stall;deltas=5": "cancelled",
}
"""What is asked for, and what an attempt at it comes to if upstream does not refuse it."""
FINISHED: Final = frozenset({"completed", "incomplete", "empty"})
"""Outcomes of which upstream has said all there was."""
_ERROR: Final = 400


def kind_of(model: str) -> str:
    """The kind that a request's model is of."""
    return model.partition(";key=")[0]


@dataclass(frozen=True)
class Seen:
    """One request as upstream saw it; `account`: whose key it had."""

    model: str
    account: str
    api: str
    stream: bool
    status: int
    frames: int


class Simulator:
    """The upstream."""

    def __init__(self, url: str, keys: dict[str, str]) -> None:
        self.url = url
        self._accounts = {
            hashlib.sha256(key.encode()).hexdigest()[:8]: name for name, key in keys.items()
        }
        self._frames: dict[tuple[str, str, bool], int] = {}

    def report(self) -> list[Seen]:
        """What it was asked since the last report, once all of it is over; something must be."""
        found = _asked(self.url, "GET", "/simulate/requests?settled=1")["requests"]
        _asked(self.url, "DELETE", "/simulate/requests")
        return [
            Seen(
                each["model"],
                self._accounts.get(each["key_hint"], ""),
                each["api"],
                each["stream"],
                each["status"],
                each["frames"],
            )
            for each in found
        ]

    def learn(self) -> None:
        """See how many frames the whole answers have."""
        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        for kind in (kind for kind, outcome in KINDS.items() if outcome in FINISHED):
            for stream in (True, False):
                request = {"model": f"{kind};key=learn-{stream}", "stream": stream}
                # The first of some is refused.
                for _ in range(2):
                    _ask_whole(self.url, "/v1/responses", {**request, "input": "Hello"})
                    _ask_whole(self.url, "/v1/chat/completions", {**request, **chat})
        for each in self.report():
            if each.status < _ERROR:
                self._frames[each.api, kind_of(each.model), each.stream] = each.frames

    def said_all(self, seen: Seen) -> bool:
        """Whether an answer was given to its end."""
        whole = self._frames[seen.api, kind_of(seen.model), seen.stream]
        return seen.status < _ERROR and seen.frames == whole


@contextlib.contextmanager
def simulating(keys: dict[str, str]) -> Iterator[Simulator]:
    """The upstream in its process; `keys` of the accounts by their names."""
    command = [*DELTAWIRE, "simulate", "--port", "0", "--pace", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Simulator(process.stdout.readline().split()[-1].removesuffix("/v1"), keys)
        finally:
            process.kill()


def _connection(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=LIMIT)


def _asked(url: str, method: str, path: str) -> Any:
    with contextlib.closing(_connection(url)) as connection:
        connection.request(method, path)
        return json.loads(connection.getresponse().read())


def _ask_whole(url: str, path: str, request: dict[str, Any]) -> None:
    with contextlib.closing(_connection(url)) as connection:
        connection.request("POST", path, json.dumps(request))
        connection.getresponse().read()


def probe(url: str, model: str) -> None:
    """One request, to be answered whole. Raises AssertionError if it is not."""
    request = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    with contextlib.closing(_connection(url)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(request))
        response = connection.getresponse()
        said = response.read()
        assert response.status == 200, said


@dataclass(frozen=True)
class _Ask:
    model: str
    stream: bool
    leaves_after: int | None
    """So many pieces of the answer; 0: before its status."""


class Load:
    """Clients of one server. `name` is in their models' names."""

    def __init__(self, url: str, chance: random.Random, name: str) -> None:
        self._url = url
        self._name = name
        self._changed = threading.Condition()
        self._happened = 0
        self._killed = False
        self._running = CLIENTS
        self.answered: set[str] = set()
        """Models whose answers a client has had whole."""
        self.left: set[str] = set()
        """Models whose answers a client did not wait for."""
        self.statuses: Counter[int] = Counter()
        self.errors: list[Exception] = []
        """What happened to clients before the server was killed, and should not have."""
        seeds = [(number, chance.getrandbits(64)) for number in range(CLIENTS)]
        self._threads = [threading.Thread(target=self._client, args=each) for each in seeds]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait(self, events: int) -> None:
        """Until so many more things have happened to clients, or all have left."""
        with self._changed:
            until = self._happened + events
            self._changed.wait_for(lambda: self._happened >= until or not self._running, LIMIT)

    def signal(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        """From now on clients may be hung up on."""
        with self._changed:
            self._killed = True
        process.send_signal(number)

    def join(self) -> None:
        """Until the clients have noticed that the server is gone."""
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()

    def _note(self) -> None:
        with self._changed:
            self._happened += 1
            self._changed.notify_all()

    def _client(self, number: int, seed: int) -> None:
        chance = random.Random(seed)
        connection = _connection(self._url)
        try:
            for count in range(sys.maxsize):
                self._ask(connection, self._drawn(chance, f"{self._name}-{number}-{count}"))
        except (OSError, http.client.HTTPException) as error:
            with self._changed:
                if not self._killed:
                    self.errors.append(error)
        finally:
            connection.close()
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _drawn(self, chance: random.Random, key: str) -> _Ask:
        weights = [9 if outcome in FINISHED else 2 for outcome in KINDS.values()]
        (kind,) = chance.choices([*KINDS], weights)
        leaves = KINDS[kind] == "cancelled" or chance.random() < 0.2
        model = f"{kind};key={chance.choice(('responses', 'chat'))}-{key}"
        stream = KINDS[kind] == "cancelled" or chance.random() < 0.7
        return _Ask(model, stream, chance.randrange(4) if leaves else None)

    def _ask(self, connection: http.client.HTTPConnection, ask: _Ask) -> None:
        request = {
            "model": ask.model,
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": ask.stream,
        }
        if ask.leaves_after is not None:
            self.left.add(ask.model)
        connection.request("POST", "/v1/chat/completions", json.dumps(request))
        self._note()
        if ask.leaves_after == 0:
            connection.close()
            return
        response = connection.getresponse()
        self.statuses[response.status] += 1
        said = b""
        pieces = 0
        while piece := response.read1(4096):
            self._note()
            said += piece
            pieces += 1
            if pieces == ask.leaves_after:
                # The response has a hold on the socket of its own.
                response.close()
                connection.close()
                return
        # It does not notice the end by itself where there is a length (CPython 3.11).
        response.close()
        if response.status == 200 and (not ask.stream or said.endswith(b"data: [DONE]\n\n")):
            self.answered.add(ask.model)
