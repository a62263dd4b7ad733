"""What an upstream says that speaks Chat Completions itself, for tests over real sockets."""

from __future__ import annotations

import json
from typing import Any, Final

from deltawire import ChatStream, completion_from_response
from deltawire.testing import Answer, FunctionCall, write_response, write_stream
from upstream import Reply

ANSWER: Final = Answer("It rains in Rome, and it does not stop.")
TOOLS: Final = Answer(
    ("A look.", FunctionCall("look", '{"at":"Rome"}'), FunctionCall("look", '{"at":"Bari"}'))
)
EMPTY: Final = Answer(())
# What no machine here would say, so that it can only come from upstream.
MARK: Final = b'"system_fingerprint":"fp_1"'
ROLE: Final = 1


def frames(answer: Answer = ANSWER, *, usage: bool = True) -> tuple[bytes, ...]:
    """The answer as a stream, a frame each: the role, what is said, the finish, usage, the end."""
    machine = ChatStream(include_usage=usage)
    made = [*machine.receive_data(write_stream(answer)), *machine.receive_eof()]
    return tuple(each.to_wire().replace(b"}\n\n", b"," + MARK + b"}\n\n") for each in made)


def streamed(answer: Answer = ANSWER, **fields: Any) -> Reply:
    """The same as a reply."""
    return Reply(frames(answer), **fields)


def whole(answer: Answer = ANSWER) -> bytes:
    """The answer as a body, in a layout of its own."""
    completion = completion_from_response(write_response(answer)).to_dict()
    return json.dumps({**completion, "service_tier": "odd"}, indent=3).encode()


def completed(answer: Answer = ANSWER, **fields: Any) -> Reply:
    """The same as a reply."""
    headers = (("Content-Type", "application/json"),)
    return Reply((whole(answer),), headers=headers, framing="length", **fields)


def failed(message: str = "Oh dear.", code: str = "overloaded") -> bytes:
    """An error in the stream, with a blank where no machine here puts one."""
    fault = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: %b\n\n" % json.dumps({"error": fault}).encode()
