"""The manners of an answer, on a clock moved by hand; h11's client reads what is written."""

from __future__ import annotations

import json
import math
from typing import Any

import h11
import pytest

from deltawire import ChatStream, fold
from deltawire.chat import ChatCompletion, Failure
from deltawire.errors import InvalidRequest, LocalProtocolError, UpstreamError
from deltawire.reading import ReportEntry
from deltawire.server.app import ChatCall
from deltawire.server.config import quick
from deltawire.server.delivery import PING, Delivery, reply_of, shown_report
from deltawire.server.http import HTTPConnection, Phase, Request
from deltawire.server.settings import ServerSettings
from deltawire.testing import Answer, write_stream

UPSTREAM = quick("http://127.0.0.1:1", environ={}).upstreams[0]
SETTINGS = ServerSettings(grace=5.0, ping=15.0)
FRAME = b'data: {"x":1}\n\n'
DONE = b"data: [DONE]\n\n"
CHUNK = b"f\r\n" + FRAME + b"\r\n"


def completion() -> ChatCompletion:
    stream = ChatStream()
    return fold([*stream.receive_data(write_stream(Answer("Rain."))), *stream.receive_eof()])


class Desk:
    """One request, and what was written to its client so far."""

    def __init__(
        self, *, streamed: bool = True, settings: ServerSettings = SETTINGS, version: str = "1.1"
    ) -> None:
        self.http = HTTPConnection(max_head=8192, max_body=8192, date=lambda: "now")
        self.http.receive_data(b"POST /c HTTP/%s\r\nhost: a\r\n\r\n" % version.encode())
        assert isinstance(self.http.next_request(), Request)
        call = ChatCall(UPSTREAM, {}, "gpt-5", None, "req_1", streamed)
        self.delivery = Delivery(self.http, call, settings, 100.0)
        self.written = b""

    def write(self, data: bytes) -> bytes:
        self.written += data
        return data

    def read(self) -> tuple[int, dict[str, str], bytes, bool]:
        """Status, headers, body, and whether that is whole."""
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="POST", target="/c", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        client.receive_data(self.written)
        head = client.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return head.status_code, headers, body, isinstance(event, h11.EndOfMessage)


def failure(**more: Any) -> UpstreamError:
    return UpstreamError(Failure("Oh dear.", "t", "p", "c"), completion(), **more)


def test_nothing_is_said_before_there_is_something_to_say() -> None:
    desk = Desk()
    assert not desk.delivery.begun
    assert desk.delivery.due == 105.0
    desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    assert desk.delivery.begun
    status, headers, body, whole = desk.read()
    assert (status, body, whole) == (200, FRAME, False)
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-request-id"] == "req_1"


def test_the_last_frame_and_the_end_of_the_body_are_one_write() -> None:
    desk = Desk()
    desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    last = desk.write(desk.delivery.frames(DONE, 102.0, last=True))
    assert last == b"e\r\n" + DONE + b"\r\n0\r\n\r\n"
    assert desk.delivery.due == math.inf
    assert desk.http.phase is Phase.IDLE
    assert desk.read()[2:] == (FRAME + DONE, True)


def test_an_answer_may_be_one_write_altogether() -> None:
    desk = Desk()
    desk.write(desk.delivery.frames(FRAME + DONE, 101.0, last=True))
    assert desk.read()[2:] == (FRAME + DONE, True)


def test_a_frame_of_several_lines_is_one_event() -> None:
    desk = Desk()
    desk.write(desk.delivery.frames(b"event: e\n" + FRAME + FRAME, 101.0, last=False))
    desk.write(desk.delivery.silence(116.0))
    desk.write(desk.delivery.frames(DONE, 117.0, last=True))
    assert desk.delivery.events == 3


def test_silence_commits_the_status_after_the_grace_and_is_filled() -> None:
    desk = Desk()
    desk.write(desk.delivery.silence(105.0))
    assert desk.read()[2:] == (PING, False)
    assert desk.delivery.due == 120.0
    assert desk.write(desk.delivery.silence(120.0)) == b"8\r\n: ping\n\n\r\n"
    assert desk.delivery.due == 135.0
    assert desk.write(desk.delivery.frames(FRAME, 130.0, last=False)) == CHUNK
    assert desk.delivery.due == 145.0


def test_a_client_that_does_not_read_is_sent_no_comment() -> None:
    desk = Desk()
    desk.delivery.wait_on(105.0)
    assert (desk.delivery.due, desk.delivery.begun) == (120.0, False)


def test_without_pings_there_is_one_at_most() -> None:
    desk = Desk(settings=ServerSettings(grace=5.0, ping=None))
    desk.write(desk.delivery.silence(105.0))
    assert desk.delivery.due == math.inf


def test_without_grace_the_status_waits_as_long_as_it_takes() -> None:
    desk = Desk(settings=ServerSettings(grace=None))
    assert desk.delivery.due == math.inf
    desk.write(desk.delivery.frames(FRAME, 200.0, last=False))
    assert desk.delivery.due == 215.0


def test_a_failure_before_is_a_status() -> None:
    desk = Desk()
    desk.write(desk.delivery.failure(failure(status=429, retry_after=1.2)))
    status, headers, body, whole = desk.read()
    assert (status, whole, desk.delivery.status) == (429, True, 429)
    assert headers["retry-after"] == "2"
    assert headers["retry-after-ms"] == "1200"
    assert headers["x-request-id"] == "req_1"
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"] == {
        "message": "Oh dear.",
        "type": "t",
        "param": "p",
        "code": "c",
    }
    assert desk.delivery.due == math.inf


@pytest.mark.parametrize("after", ["frame", "ping"])
def test_a_failure_after_is_the_last_frame(after: str) -> None:
    desk = Desk()
    if after == "frame":
        said = FRAME
        desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    else:
        said = PING
        desk.write(desk.delivery.silence(105.0))
    desk.write(desk.delivery.failure(failure(status=429, retry_after=1.2)))
    status, _, body, whole = desk.read()
    assert (status, whole, desk.delivery.status) == (200, True, 200)
    frame = body.removeprefix(said)
    assert frame.startswith(b"data: {")
    assert frame.endswith(b"}\n\n")
    assert list(json.loads(frame[6:])) == ["error"]
    assert desk.delivery.due == math.inf


def test_a_whole_answer() -> None:
    desk = Desk(streamed=False)
    assert desk.delivery.due == math.inf
    desk.write(desk.delivery.completion(completion()))
    status, headers, body, whole = desk.read()
    assert (status, body, whole) == (200, completion().to_json(), True)
    assert headers["content-length"] == str(len(body))
    assert headers["content-type"] == "application/json"


def test_blanks_before_a_whole_answer_where_told_to() -> None:
    desk = Desk(streamed=False, settings=ServerSettings(grace=5.0, ping=15.0, ping_json=True))
    assert desk.delivery.due == 105.0
    desk.write(desk.delivery.silence(105.0))
    desk.write(desk.delivery.silence(120.0))
    desk.write(desk.delivery.completion(completion()))
    status, headers, body, whole = desk.read()
    assert (status, headers["content-type"], whole) == (200, "application/json", True)
    assert body == b"  " + completion().to_json()


def test_a_failure_after_blanks_is_the_body() -> None:
    desk = Desk(streamed=False, settings=ServerSettings(grace=5.0, ping_json=True))
    desk.write(desk.delivery.silence(105.0))
    desk.write(desk.delivery.failure(failure(status=500)))
    status, _, body, whole = desk.read()
    assert (status, whole) == (200, True)
    assert json.loads(body)["error"]["message"] == "Oh dear."


def test_http_1_0_gets_its_frames_as_they_are() -> None:
    desk = Desk(version="1.0")
    desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    assert desk.delivery.frames(DONE, 102.0, last=True) == DONE
    assert desk.http.phase is Phase.CLOSED


# The report.

REPORT = [ReportEntry("seed", "dropped", "no"), ReportEntry("n", "adjusted", "no")]


@pytest.mark.parametrize("shown", [True, False])
def test_what_of_the_request_was_lost_is_in_a_header(shown: bool) -> None:
    desk = Desk(settings=ServerSettings(report_header=shown))
    desk.delivery.report = REPORT
    desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    expected = "dropped seed; adjusted n" if shown else None
    assert desk.read()[1].get("x-deltawire-report") == expected


@pytest.mark.parametrize("path", ["a\r\nx-evil: 1", "a\0b", "\x7f", "ä€😀", "\ud800", " a ", "\t"])
def test_a_report_is_a_header_whatever_the_client_called_its_fields(path: str) -> None:
    desk = Desk()
    desk.delivery.report = [ReportEntry(path, "dropped", "no")]
    desk.write(desk.delivery.frames(FRAME, 101.0, last=False))
    _, headers, _, _ = desk.read()
    assert headers["x-deltawire-report"].startswith("dropped")
    assert "x-evil" not in headers


def test_a_long_report_is_cut() -> None:
    assert len(shown_report(REPORT * 1000)) == 1024
    assert shown_report(REPORT * 1000).endswith("...")


# Errors.


def test_an_upstream_error_without_a_status_is_502_without_retry_after() -> None:
    reply = reply_of(failure())
    assert reply.status == 502
    assert dict(reply.headers) == {"content-type": "application/json"}


@pytest.mark.parametrize(("code", "status"), [("model_not_found", 404), ("invalid_type", 400)])
def test_a_request_that_is_wrong_in_itself(code: str, status: int) -> None:
    reply = reply_of(InvalidRequest("n: no", "n", code))
    assert reply.status == status
    assert json.loads(reply.body)["error"] == {
        "message": "n: no",
        "type": "invalid_request_error",
        "param": "n",
        "code": code,
    }


def test_any_other_error_is_503() -> None:
    reply = reply_of(LocalProtocolError("closed"))
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["type"] == "server_error"
