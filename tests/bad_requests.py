"""Requests with something wrong in them, as bytes, each with what is to come of it.

They are for a server with these limits, one model, `gpt-5`, and no client keys.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, Final

from servers import CHAT, ask, chat

HEAD: Final = 16384
BODY: Final = 4096
"""The limits of a head and of a body, in bytes."""
VERSION: Final = ask("GET", "/version")
CHUNKED: Final = "Transfer-Encoding: chunked"


def chunked(body: bytes, *fields: str) -> bytes:
    return ask("POST", CHAT, CHUNKED, *fields) + body


def client_hello() -> bytes:
    """What a client says first that takes the port for one with TLS."""
    said = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname="a")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()


REFUSED: Final[dict[str, tuple[bytes, int]]] = {
    # Too much.
    "announced": (ask("POST", CHAT, f"Content-Length: {BODY + 1}"), 413),
    "announced, immense": (ask("POST", CHAT, "Content-Length: " + "9" * 20), 413),
    "one chunk": (chunked(b"%x\r\n" % (BODY + 1)), 413),
    "growing": (chunked((b"400\r\n" + b" " * 1024 + b"\r\n") * 5), 413),
    "huge chunk": (chunked(b"f" * 16 + b"\r\n"), 413),
    "line": (ask("GET", "/" + "a" * 8192), 414),
    "head": (ask("GET", "/version", "A: " + "a" * HEAD), 431),
    "fields": (ask("GET", "/version", *["A: a"] * 100), 431),
    "trailers": (chunked(b"0\r\nA: " + b"a" * HEAD), 431),
    # Bodies with two ends.
    "two lengths": (ask("POST", CHAT, "Content-Length: 2", "Content-Length: 3") + b"{}", 400),
    "list of lengths": (ask("POST", CHAT, "Content-Length: 2, 3") + b"{}", 400),
    "length and chunks": (ask("POST", CHAT, "Content-Length: 5", CHUNKED) + b"0\r\n\r\n", 400),
    "chunks and length": (ask("POST", CHAT, CHUNKED, "Content-Length: 5") + b"0\r\n\r\n", 400),
    "length 0 and chunks": (ask("POST", CHAT, "Content-Length: 0", CHUNKED) + b"0\r\n\r\n", 400),
    "signed length": (ask("POST", CHAT, "Content-Length: +2") + b"{}", 400),
    "negative length": (ask("POST", CHAT, "Content-Length: -2") + b"{}", 400),
    "hexadecimal length": (ask("POST", CHAT, "Content-Length: 0x2") + b"{}", 400),
    "no length": (ask("POST", CHAT, "Content-Length:") + b"{}", 400),
    "chunked twice": (ask("POST", CHAT, CHUNKED, CHUNKED) + b"0\r\n\r\n", 501),
    "gzip, chunked": (ask("POST", CHAT, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 501),
    "xchunked": (ask("POST", CHAT, "Transfer-Encoding: xchunked") + b"0\r\n\r\n", 501),
    "chunked, with a tab": (ask("POST", CHAT, "Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n", 400),
    "chunks in 1.0": (chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    # Chunks with two sizes.
    "signed size": (chunked(b"+2\r\n{}\r\n0\r\n\r\n"), 400),
    "negative size": (chunked(b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    "0x": (chunked(b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    "endless size": (chunked(b"0" * 16 + b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "space behind": (chunked(b"2 \r\n{}\r\n0\r\n\r\n"), 400),
    "space before": (chunked(b" 2\r\n{}\r\n0\r\n\r\n"), 400),
    "space and extension": (chunked(b"2 ;a=b\r\n{}\r\n0\r\n\r\n"), 400),
    "no size": (chunked(b";a=b\r\n{}\r\n0\r\n\r\n"), 400),
    "NUL in an extension": (chunked(b"2;\0\r\n{}\r\n0\r\n\r\n"), 400),
    "LF in an extension": (chunked(b"2;a\nb\r\n{}\r\n0\r\n\r\n"), 400),
    "CR in an extension": (chunked(b"2;a\rb\r\n{}\r\n0\r\n\r\n"), 400),
    "long extension": (chunked(b"2;" + b"a" * 300), 400),
    "LF behind a size": (chunked(b"2\n{}\r\n0\r\n\r\n"), 400),
    "LF behind a chunk": (chunked(b"2\r\n{}\n0\r\n\r\n"), 400),
    "more than the size": (chunked(b"2\r\n{}}\r\n0\r\n\r\n"), 400),
    "LF at the end": (chunked(b"2\r\n{}\r\n0\r\n\n"), 400),
    "folded trailer": (chunked(b"0\r\nA: a\r\n b\r\n\r\n"), 400),
    "request for trailers": (chunked(b"0\r\n"), 400),
    # Heads with two readings.
    "folded": (ask("GET", "/version", "A: a", " b"), 400),
    "folded by a tab": (ask("GET", "/version", "A: a", "\tb"), 400),
    "space before a name": (ask("GET", "/version", " A: a"), 400),
    "space before a colon": (ask("GET", "/version", "A : a"), 400),
    "coding with a space": (ask("POST", CHAT, "Transfer-Encoding : chunked") + b"0\r\n\r\n", 400),
    "no colon": (ask("GET", "/version", "A"), 400),
    "no name": (ask("GET", "/version", ": a"), 400),
    "LF for CRLF": (VERSION.replace(b"\r\n", b"\n"), 400),
    "LF in a value": (ask("POST", CHAT, f"A: a\n{CHUNKED}") + b"0\r\n\r\n", 400),
    "LF at the end of a head": (VERSION[:-2] + b"\n", 400),
    "CR in a value": (ask("POST", CHAT, f"A: a\r{CHUNKED}") + b"0\r\n\r\n", 400),
    "NUL in a line": (ask("GET", "/version\0"), 400),
    "NUL in a name": (ask("GET", "/version", "A\0: a"), 400),
    "NUL in a value": (ask("GET", "/version", "A: \0"), 400),
    "control in a line": (ask("GET", "/ver\x01sion"), 400),
    "control in a name": (ask("GET", "/version", "A\x1f: a"), 400),
    "control in a value": (ask("GET", "/version", "A: a\x0bb"), 400),
    "DEL in a value": (ask("GET", "/version", "A: \x7f"), 400),
    "two hosts": (ask("GET", "/version", "Host: b"), 400),
    "no host": (VERSION.replace(b"Host: a\r\n", b""), 400),
    "two keys": (ask("GET", "/version", "Authorization: a", "Authorization: b"), 400),
    # What is spoken elsewhere.
    "expectation": (ask("POST", CHAT, "Expect: miracles", body=b"{}"), 417),
    "expectations": (ask("POST", CHAT, "Expect: 100-continue, miracles", body=b"{}"), 417),
    "tunnel": (ask("CONNECT", "a:1"), 501),
    "HTTP/0.9": (b"GET /version\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
    "TLS": (client_hello(), 400),
    "bytes": (b"\xfe\xff" * 5000, 414),
    "bytes in lines": (b"\x80\x81\x82\r\n\x83\r\n\r\n", 400),
    "empty lines": (b"\r\n\r\n", 400),
}
"""What is no request that can be had; with the status."""


PLAIN: Final = b'{"model":"gpt-5","messages":[{"role":"user","content":"Rain?"}]}'
SIZE: Final = b"%x" % len(PLAIN)
TAKEN: Final[dict[str, bytes]] = {
    "at the limit": ask("POST", CHAT, body=PLAIN.ljust(BODY)),
    "fields": ask("GET", "/version", *["A: a"] * 99),
    "the same length twice": ask("POST", CHAT, *[f"Content-Length: {len(PLAIN)}"] * 2) + PLAIN,
    "extension": chunked(SIZE + b";a=b\r\n" + PLAIN + b"\r\n0\r\n\r\n"),
    "quoted extension": chunked(SIZE + b';a="b c"\r\n' + PLAIN + b"\r\n0;a\r\n\r\n"),
    "empty extension": chunked(SIZE + b";\r\n" + PLAIN + b"\r\n0\r\n\r\n"),
    "zeros and capitals": chunked(b"000" + SIZE.upper() + b"\r\n" + PLAIN + b"\r\n000\r\n\r\n"),
    "trailers": chunked(SIZE + b"\r\n" + PLAIN + b"\r\n0\r\nA: a\r\n\r\n"),
    "empty line": b"\r\n" + VERSION,
    "bytes in a value": ask("GET", "/version", "A: \xe9"),
    "expectation": ask("POST", CHAT, "Expect: 100-continue", body=PLAIN),
    "whole URL": ask("GET", "http://b/version"),
}
"""What is odd, and right all the same."""


DEEP: Final = BODY // 2 - 100
DEEP_TOOL: Final = b',"tools":[{"type":"function","function":{"name":"a","parameters":%b1%b}}]}' % (
    b'{"":' * 200,
    b"}" * 200,
)
WRONG: Final[dict[str, tuple[bytes, int, dict[str, Any]]]] = {
    "no JSON": (ask("POST", CHAT, body=b"Rain?"), 400, {"code": "invalid_json"}),
    "no UTF-8": (ask("POST", CHAT, body=b'{"a":"\xff"}'), 400, {"code": "invalid_json"}),
    "nothing": (ask("POST", CHAT), 400, {"code": "invalid_json"}),
    "half": (ask("POST", CHAT, body=PLAIN[:-1]), 400, {"code": "invalid_json"}),
    "two": (ask("POST", CHAT, body=b"{}{}"), 400, {"code": "invalid_json"}),
    "list": (ask("POST", CHAT, body=b"[1]"), 400, {"code": "invalid_type"}),
    "string": (ask("POST", CHAT, body=b'"a"'), 400, {"code": "invalid_type"}),
    "deep": (ask("POST", CHAT, body=b"[" * DEEP + b"]" * DEEP), 400, {"code": "invalid_json"}),
    "deep, open": (ask("POST", CHAT, body=b'{"":' * (BODY // 4)), 400, {"code": "invalid_json"}),
    "deep tool": (ask("POST", CHAT, body=PLAIN[:-1] + DEEP_TOOL), 400, {"code": "invalid_value"}),
    "big number": (chat(top_p=10**30), 400, {"param": "top_p"}),
    "messages": (chat(messages="Rain?"), 400, {"param": "messages"}),
    "no model": (ask("POST", CHAT, body=b"{}"), 400, {"param": "model"}),
    "unknown model": (chat(model="gpt-6"), 404, {"param": "model", "code": "model_not_found"}),
    "model not there": (ask("GET", "/v1/models/a%00"), 404, {"code": "model_not_found"}),
    "route": (ask("GET", "/v1/nothing"), 404, {"code": None}),
    "method": (ask("GET", CHAT), 405, {"code": None}),
    "other method": (ask("BREW", "/version"), 405, {"code": None}),
    "type": (ask("POST", CHAT, "Content-Type: text/plain", body=PLAIN), 415, {"code": None}),
    "coding": (ask("POST", CHAT, "Content-Encoding: gzip", body=PLAIN), 415, {"code": None}),
}
"""Requests that ask for what there is not; with the status, and fields of the error."""


CUT: Final = {
    "at once": b"",
    "line": b"GET /ver",
    "head": VERSION[:-2],
    "body": ask("POST", CHAT, body=PLAIN)[:-1],
    "no body": ask("POST", CHAT, f"Content-Length: {len(PLAIN)}"),
    "size": chunked(b"2"),
    "chunk": chunked(b"2\r\n{"),
    "chunks": chunked(b"2\r\n{}\r\n"),
    "trailers": chunked(b"2\r\n{}\r\n0\r\nA: a\r\n"),
}
"""Requests that are not whole."""
