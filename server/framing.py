"""The bodies of requests, read piece by piece and strictly, and what is said of those refused.

A proxy and a server that read the same bytes as different requests can be made to pass on what
nobody allowed. So what could be read in two ways is refused here: lines that end in LF alone,
folded fields, control characters, sizes that are no plain hexadecimal number.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final, NoReturn

from msgspec import Struct

MAX_CHUNK_LINE: Final = 256
"""Bytes of a chunk's size and its extensions, which nobody reads."""

_ODD: Final = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|\n[ \t]|(?<!\r)\n")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t -~]*)?")

# Stands where the bytes ended; at last gives the body, and what h11 is told in its place.
BodyReader = Generator[None, None, tuple[bytes, bytes]]


class Refused(Struct, frozen=True):
    """A request that is not to be had; `respond()` with that status, and it was the last.

    `reason` says what was wrong and repeats no header's value. The client may still be sending:
    to close at once would reset the connection under the answer. Shut down the writing side, and
    go on reading (`receive_data()` forgets it all) for a second or two before closing.
    """

    status: int
    reason: str


class Refusal(Exception):
    """Carries a Refused to `next_request`."""

    def __init__(self, status: int, reason: str) -> None:
        self.refused = Refused(status, reason)


def refuse(status: int, reason: str) -> NoReturn:
    """Raise a Refusal."""
    raise Refusal(status, reason)


def sized_body(received: bytearray, length: int) -> BodyReader:
    """Collects a body whose length was announced; h11 is told it as it is."""
    content = bytearray()
    while _move(received, content, length - len(content)):
        yield
    return bytes(content), bytes(content)


def chunked_body(received: bytearray, max_body: int, max_trailers: int) -> BodyReader:
    """Collects a chunked body; h11 is told an empty one, with the trailers, and checks those.

    Lines end in CRLF here: what another reader takes for data would be smuggled.
    """
    content, trailers = bytearray(), bytearray()
    while size := _chunk_size((yield from _line(received, MAX_CHUNK_LINE, 400, "a chunk's size"))):
        whole = len(content) + size
        if whole > max_body:
            refuse(413, f"the body has more than the allowed {max_body} bytes")
        while _move(received, content, whole - len(content)):
            yield
        yield from _line(received, 0, 400, "behind the data of a chunk")
    while line := (yield from _line(received, max_trailers - len(trailers), 431, "the trailers")):
        trailers += line + b"\r\n"
    refuse_odd(bytes(trailers), "the trailers")
    return bytes(content), b"0\r\n%b\r\n" % bytes(trailers)


def _move(source: bytearray, target: bytearray, wanted: int) -> int:
    """Move so many bytes, or as many as there are; how many are still wanted."""
    taken = source[:wanted]
    del source[:wanted]
    target += taken
    return wanted - len(taken)


def _line(received: bytearray, most: int, status: int, what: str) -> Generator[None, None, bytes]:
    """The next line, without its end; refused with that status if it has more bytes than `most`."""
    while (end := received.find(b"\n", 0, most + 2)) < 0:
        if len(received) >= most + 2:
            refuse(status, f"{what}: more than {most} bytes")
        yield
    line = bytes(received[: end + 1])
    if not line.endswith(b"\r\n"):
        refuse(400, f"{what}: a line that ends in LF alone")
    del received[: end + 1]
    return line[:-2]


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        refuse(400, "a chunk's size: no hexadecimal number")
    return int(match[1], 16)


def refuse_odd(head: bytes, what: str) -> None:
    """Refuse what h11 lets pass: control characters, fields that are folded, and LF without CR.

    LF alone may be taken for the end of a line (RFC 9112 2.2), but a proxy that does not take it
    so would have passed on a value with a header in it.
    """
    odd = _ODD.search(head)
    if odd is None:
        return
    line = head.count(b"\n", 0, odd.start()) + 1
    if odd[0][:1] == b"\n":
        if odd[0] == b"\n":
            refuse(400, f"line {line} of {what} ends in LF alone")
        refuse(400, f"line {line + 1} of {what} is folded (it begins with a space or tab)")
    refuse(400, f"line {line} of {what} has the control character 0x{odd[0][0]:02x}")
