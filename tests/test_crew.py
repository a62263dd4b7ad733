"""`Crew`: threads of the server that do one piece of work after the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from deltawire.server.crew import Crew
from upstream import LIMIT

NAME = "a-crew-of-its-own"


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(NAME)
    yield crew
    crew.close()


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == NAME]


def until_idle(crew: Crew, count: int) -> None:
    late = threading.Event()
    timer = threading.Timer(LIMIT, late.set)
    timer.start()
    while len(crew._idle) != count:
        assert not late.is_set()
    timer.cancel()


def test_work_that_comes_one_after_the_other_is_done_by_one_thread(crew: Crew) -> None:
    done_by: list[int] = []
    for _ in range(10):
        crew.do(lambda: done_by.append(threading.get_ident()))
        until_idle(crew, 1)
    assert len(done_by) == 10
    assert len(set(done_by)) == 1


def test_work_that_blocks_holds_up_no_other(crew: Crew) -> None:
    together = threading.Barrier(5)
    for _ in range(3):
        for _ in range(4):
            crew.do(lambda: together.wait(LIMIT))
        together.wait(LIMIT)
        until_idle(crew, 4)
    assert len(threads()) == 4


def test_who_waits_goes_at_the_end_and_who_works_when_it_is_done(crew: Crew) -> None:
    go_on = threading.Event()
    crew.do(lambda: None)
    until_idle(crew, 1)
    crew.do(lambda: go_on.wait(LIMIT))
    (busy,) = threads()
    crew.do(lambda: None)
    until_idle(crew, 1)
    crew.close()
    assert threads() == [busy]
    go_on.set()
    busy.join(LIMIT)
    assert not busy.is_alive()
