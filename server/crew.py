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
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        # How many wait for work that nobody has given them yet.
        self._idle = 0
        self._closed = False

    def do(self, work: Work) -> None:
        """Do it on a thread of its own. Raises RuntimeError if there can be none more."""
        with self._guard:
            if self._idle:
                self._idle -= 1
                self._work.put(work)
                return
        thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        thread.start()

    def close(self) -> None:
        """Let those that wait go, and the others when their work is done."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, 0
            threads = list(self._threads)
        for _ in range(idle):
            self._work.put(None)
        for thread in threads:
            thread.join()

    def _run(self, work: Work | None) -> None:
        while work is not None:
            work()
            # Whatever it was done for is not to be kept until there is more to do.
            work = None
            work = self._next()

    def _next(self) -> Work | None:
        me = threading.current_thread()
        with self._guard:
            if self._closed:
                return None
            self._idle += 1
            self._threads.add(me)
        try:
            return self._work.get(timeout=_LINGER)
        except Empty:
            with self._guard:
                if self._idle:
                    self._idle -= 1
                    return None
            # Somebody has just given it something.
            return self._work.get()
        finally:
            with self._guard:
                self._threads.discard(me)
