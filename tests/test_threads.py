"""The core in many threads at once, from the first event that a process sees."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Threads take turns as often as they can, so that they meet where a type is used first.
SCRIPT = """
import sys, threading
from deltawire import ChatStream
from deltawire.relay import ChatRelay
from deltawire.testing import Answer, write_frames

frames = b"".join(write_frames(Answer("Hello there, all of you.")))
chunk = (
    b'data: {{"id":"a","choices":[{{"index":0,"delta":{{"content":"a","tool_calls":[{{"index":0,'
    b'"id":"b","type":"function","function":{{"name":"c","arguments":"d"}}}}]}},"logprobs":'
    b'{{"content":[{{"token":"a","logprob":-1.0,"bytes":[1],"top_logprobs":[]}}]}}}}]}}\\n\\n'
)
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(12)

def use():
    barrier.wait()
    for _ in range(3):
        {use}

threads = [threading.Thread(target=use) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize(
    "use", ["ChatStream().receive_data(frames)", "ChatRelay().receive_data(chunk)"]
)
def test_the_first_events_may_come_in_many_threads_at_once(use: str) -> None:
    """A type that a thread finds half looked into by another one crashes the process."""
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", SCRIPT.format(use=use)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
