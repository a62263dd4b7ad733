"""A real Chat Completions server on this machine, which answers by deltawire and remembers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from deltawire import completion_from_response, to_responses_request
from deltawire.testing import Answer, write_response, write_stream
from wire import Json


@contextlib.contextmanager
def serving(*answers: Answer) -> Iterator[tuple[str, list[Json]]]:
    """The base URL of a server that gives these answers in turn, and what it is asked."""
    requests: list[Json] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            chat_request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(chat_request)
            if len(requests) > len(answers):
                self.send_error(500, "there is no further answer")
                return
            translated = to_responses_request(chat_request)
            answer = answers[len(requests) - 1]
            if chat_request.get("stream"):
                stream = translated.chat_stream(reasoning_details=True)
                body = stream.translate(write_stream(answer)) + stream.translate_eof()
                kind = "text/event-stream"
            else:
                body = completion_from_response(write_response(answer)).to_json()
                kind = "application/json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", requests
        finally:
            server.shutdown()
            thread.join()
