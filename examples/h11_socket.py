"""A bare socket, with h11 to read the HTTP: one sans-I/O protocol feeds the other."""

import json
import os
import socket

import h11

from deltawire import ChatStream

upstream = os.environ.get("UPSTREAM", "127.0.0.1:8080")
body = json.dumps({"model": "gpt-5", "input": "Hello", "stream": True}).encode()
headers = {"Host": upstream, "Content-Type": "application/json", "Content-Length": str(len(body))}
host, _, port = upstream.partition(":")
http, stream = h11.Connection(h11.CLIENT), ChatStream()
with socket.create_connection((host, int(port))) as connection:
    head = h11.Request(method="POST", target="/v1/responses", headers=list(headers.items()))
    for event in head, h11.Data(data=body), h11.EndOfMessage():
        connection.sendall(http.send(event) or b"")
    while not isinstance(received := http.next_event(), h11.EndOfMessage):
        if received is h11.NEED_DATA:
            http.receive_data(connection.recv(65536))
        elif isinstance(received, h11.Data):
            print(stream.translate(bytes(received.data)).decode(), end="", flush=True)
print(stream.translate_eof().decode(), end="")
