"""`Crew`: threads that do one piece of work after the other, because to start one takes longer.

Caller: the threaded driver, whose clients each have a thread as long as they are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

Work = Callable[[], object]

# Seconds that a thread waits for more to do.
_LINGER: Final = 5.0


class Crew:
    """name: of its threads. They hold no process up."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._guard = threading.Lock()
        # Those that wait; the last began last, and is the first to be given something.
        self._idle: list[_Hand] = []
        self._closed = False

    def do(self, work: Work) -> None:
        """Do it on a thread of its own. Raises RuntimeError if there can be none more."""
        with self._guard:
            if self._idle:
                self._idle.pop().given.put(work)
                return
        hand = _Hand(self._run, self._name)
        hand.given.put(work)
        hand.thread.start()

    def close(self) -> None:
        """Let those that wait go, and the others when their work is done."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for hand in idle:
            hand.given.put(None)
        for hand in idle:
            hand.thread.join()

    def _run(self, hand: _Hand) -> None:
        work = hand.given.get()
        while work is not None:
            work()
            # What it was done for is not to be kept until there is more to do.
            work = None
            work = self._next(hand)

    def _next(self, hand: _Hand) -> Work | None:
        with self._guard:
            if self._closed:
                return None
            self._idle.append(hand)
        try:
            return hand.given.get(timeout=_LINGER)
        except Empty:
            with self._guard:
                if hand in self._idle:
                    self._idle.remove(hand)
                    return None
        # Just now it was given something.
        return hand.given.get()


class _Hand:
    """One of the threads, and what it is given to do; None: nothing more."""

    def __init__(self, run: Callable[[_Hand], None], name: str) -> None:
        self.given: SimpleQueue[Work | None] = SimpleQueue()
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)
