"""A process that writes to a ledger until it is killed: `python ledger_child.py URL SEED`.

It begins attempts and settles them in random order, several at once, and says on standard output
what was acknowledged, a line each, as soon as it was:

    begun ID
    settled ID OUTCOME
"""

from __future__ import annotations

import os
import random
import sys
import threading
from concurrent.futures import Future
from typing import get_args
from uuid import UUID

from deltawire.attempts import Attempt, Outcome
from deltawire.chat import Usage
from deltawire.server.ledger import Entry, Ledger


def main(url: str, seed: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger(url)
    ledger.opened.result()
    room = threading.Semaphore(50)
    begun: list[str] = []
    while True:
        room.acquire()
        if begun and chance.random() < 0.45:
            id = begun.pop(chance.randrange(len(begun)))
            outcome: Outcome = chance.choice(get_args(Outcome))
            _say_when(ledger.settle(id, attempt(outcome)), f"settled {id} {outcome}", room)
        else:
            id = str(UUID(int=chance.getrandbits(128), version=4))
            begun.append(id)
            _say_when(ledger.begin(entry(id)), f"begun {id}", room)


def entry(id: str) -> Entry:
    return Entry(
        id=id, request_id="req_1", number=1, upstream="one", account="a", model="m",
        started_at=1_700_000_000.0,
    )  # fmt: skip


def attempt(outcome: Outcome) -> Attempt:
    return Attempt(
        number=1, account="a", model="m", started=0.0, outcome=outcome, usage=Usage(1, 2, 3)
    )


def _say_when(future: Future[None], said: str, room: threading.Semaphore) -> None:
    def say(done: Future[None]) -> None:
        done.result()
        # One write, so that a line is there whole or not at all.
        os.write(1, f"{said}\n".encode())
        room.release()

    future.add_done_callback(say)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
