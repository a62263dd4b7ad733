"""Error answers: real ones in every shape, hostile ones, and what a client is told of each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltawire import Failure
from deltawire.rejection import (
    MAX_ERROR_BODY,
    NO_ACCOUNT_READY,
    TIMEOUT,
    UNREACHABLE,
    accepted,
    failure_of,
    of_the_request,
    retry_after,
    status_for_client,
    status_of,
)
from wire import SHARED, Json

STATUSES = st.integers(300, 599)


@dataclass(frozen=True)
class Case:
    """An error answer, and what it is to be."""

    name: str
    status: int
    body: Any
    message: str
    type: str | None = "upstream_error"
    code: str | None = None
    param: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def bytes(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management"
    " policy."
)
NGINX = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.24.0</center>\r\n"
    b"</body>\r\n</html>\r\n<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n"
)
CLOUDFLARE = b"""<!DOCTYPE html>
<!--[if lt IE 7]> <html class="no-js ie6 oldie" lang="en-US"> <![endif]-->
<!--[if gt IE 8]><!--> <html class="no-js" lang="en-US"> <!--<![endif]-->
<head>
<title>x.test | 524: A timeout occurred</title>
<meta charset="UTF-8" />
<style id="cf_styles-css">body{margin:0;padding:0} a > b {color:red}</style>
<script>
 (function(){if(1 < 2 && "<b>not shown</b>"){window.hidden="</b>"}})();
</script>
</head>
<body><SCRIPT type="text/javascript">var hidden = 1;</SCRIPT>
<h1><span>A timeout occurred</span> <span>Error code 524</span></h1></body></html>
"""

CASES = [
    Case(
        "OpenAI, parameter",
        400,
        {
            "error": {
                "message": "Unsupported parameter: 'x'.",
                "type": "invalid_request_error",
                "param": "x",
                "code": "unsupported_parameter",
            }
        },
        "Unsupported parameter: 'x'.",
        "invalid_request_error",
        "unsupported_parameter",
        "x",
    ),
    Case(
        "OpenAI, key",
        401,
        {
            "error": {
                "message": "Incorrect API key provided: sk-***.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }
        },
        "Incorrect API key provided: sk-***.",
        "invalid_request_error",
        "invalid_api_key",
    ),
    Case(
        "OpenAI, quota",
        429,
        {
            "error": {
                "message": "You exceeded your current quota.",
                "type": "insufficient_quota",
                "param": None,
                "code": "insufficient_quota",
            }
        },
        "You exceeded your current quota.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    Case(
        "OpenAI, overload",
        500,
        {"error": {"message": "Sorry", "type": "server_error", "param": None, "code": None}},
        "Sorry",
        "server_error",
    ),
    Case(
        "Azure, rate",
        429,
        {"error": {"code": "429", "message": "Requests to the API have exceeded the limit."}},
        "Requests to the API have exceeded the limit.",
        code="429",
    ),
    Case(
        "Azure, deployment",
        404,
        {"error": {"code": "DeploymentNotFound", "message": "No such deployment."}},
        "No such deployment.",
        "invalid_request_error",
        "DeploymentNotFound",
    ),
    Case(
        "Azure, content filter",
        400,
        {
            "error": {
                "message": FILTERED,
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
                },
            }
        },
        FILTERED,
        "invalid_request_error",
        "content_filter",
        "prompt",
    ),
    Case(
        "Azure, key",
        401,
        {"statusCode": 401, "message": "Unauthorized. Access token is missing."},
        "Unauthorized. Access token is missing.",
    ),
    Case(
        "xAI",
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "Incorrect API key provided: xa***. You can obtain one at https://x.test.",
        },
        "Incorrect API key provided: xa***. You can obtain one at https://x.test.",
        "invalid_request_error",
        "Client specified an invalid argument",
    ),
    Case(
        "vLLM, flat",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        "This model's maximum context length is 4096 tokens.",
        "BadRequestError",
        "400",
    ),
    Case(
        "vLLM, nested",
        404,
        {
            "error": {
                "message": "The model `x` does not exist.",
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
            }
        },
        "The model `x` does not exist.",
        "NotFoundError",
        "404",
        "model",
    ),
    Case("FastAPI, text", 404, {"detail": "Not Found"}, "Not Found", "invalid_request_error"),
    Case(
        "FastAPI, list",
        422,
        {"detail": [{"loc": ["body", "input"], "msg": "field required", "type": "missing"}]},
        '[{"loc":["body","input"],"msg":"field required","type":"missing"}]',
        "invalid_request_error",
    ),
    Case(
        "OpenRouter",
        402,
        {"error": {"code": 402, "message": "Insufficient credits", "metadata": {}}, "user_id": "u"},
        "Insufficient credits",
        code="402",
    ),
    Case(
        "Google's list",
        503,
        [{"error": {"code": 503, "message": "Overloaded.", "status": "UNAVAILABLE"}}],
        "Overloaded.",
        code="503",
    ),
    Case(
        "Anthropic's",
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
        "overloaded_error",
    ),
    Case(
        "beside the error",
        400,
        {"error": {"message": "No."}, "type": "odd", "code": 7, "param": "p"},
        "No.",
        "odd",
        "7",
        "p",
    ),
    # What was said beside the error was lost.
    Case(
        "OAuth",
        401,
        {"error": "invalid_token", "error_description": "The token has expired."},
        "invalid_token: The token has expired.",
    ),
    Case(
        "Fastify",
        400,
        {"statusCode": 400, "error": "Bad Request", "message": "body/input is missing"},
        "Bad Request: body/input is missing",
        "invalid_request_error",
    ),
    Case("a flag", 500, {"error": True, "message": "No."}, "No."),
    Case("a null", 500, {"error": None, "message": "No.", "code": 5}, "No.", code="5"),
    Case("an empty error", 500, {"error": {}, "message": "No."}, "No."),
    Case("RFC 9457", 503, {"type": "about:blank", "title": "Busy"}, "Busy", "about:blank"),
    # Nothing of these was told but the status.
    Case("AWS", 500, {"Message": "Try later."}, 'HTTP 500: {"Message": "Try later."}'),
    Case(
        "Cloudflare's API",
        500,
        {"success": False, "errors": [{"code": 7003}]},
        'HTTP 500: {"success": false, "errors": [{"code": 7003}]}',
    ),
    Case(
        "no message", 500, {"error": {"code": "x"}}, 'HTTP 500: {"error": {"code": "x"}}', code="x"
    ),
    Case("an empty message", 500, {"error": {"message": "", "detail": "No."}}, "No."),
    Case("an object for a message", 500, {"message": {"text": "No."}}, '{"text":"No."}'),
    Case("odd kinds", 500, {"error": {"message": "No.", "code": True, "type": []}}, "No."),
    Case("an empty object", 500, {}, "HTTP 500: {}"),
    Case("an empty list", 500, [], "HTTP 500: []"),
    Case("a list of lists", 500, [["x"]], 'HTTP 500: [["x"]]'),
    Case("a list of errors", 500, {"error": ["x"]}, 'HTTP 500: {"error": ["x"]}'),
    Case("a string", 500, "upstream connect error", "upstream connect error"),
    Case("an empty string", 500, "", 'HTTP 500: ""'),
    Case("a number", 500, 5, "HTTP 500: 5"),
    Case("null", 400, None, "HTTP 400: null", "invalid_request_error"),
    Case(
        "nginx",
        502,
        NGINX,
        "HTTP 502: 502 Bad Gateway 502 Bad Gateway nginx/1.24.0",
    ),
    Case(
        "Cloudflare",
        524,
        CLOUDFLARE,
        "HTTP 524: x.test | 524: A timeout occurred A timeout occurred Error code 524",
    ),
    Case("text", 503, b"no healthy\r\n\tupstream\n", "HTTP 503: no healthy upstream"),
    # All before the first "<" was lost, and all after one that begins no tag.
    Case("text and a tag", 502, b"no way to <b>x.test</b>!", "HTTP 502: no way to x.test !"),
    Case("a comparison", 500, b"1 < 2 > 1 <3", "HTTP 500: 1 < 2 > 1 <3"),
    Case("a tag cut off", 500, b"text <a href='x", "HTTP 500: text"),
    Case("blanks only", 500, b" \r\n\t", "HTTP 500 without a message"),
    Case("empty", 429, b"", "HTTP 429 without a message"),
    Case("tags only", 500, b"<html><body></body></html>", "HTTP 500 without a message"),
    Case("no UTF-8", 500, b"caf\xe9 \xff", "HTTP 500: caf\ufffd \ufffd"),
    Case(
        "no UTF-8 in JSON",
        500,
        b'{"error":{"message":"caf\xe9","code":"c"}}',
        "caf\ufffd",
        code="c",
    ),
    Case("a byte order mark", 500, b'\xef\xbb\xbf{"error":{"message":"No."}}', "No."),
    Case("JSON cut off", 500, b'{"error":{"mess', 'HTTP 500: {"error":{"mess'),
    Case("half a surrogate pair", 500, b'{"message":"\\ud83d"}', 'HTTP 500: {"message":"\\ud83d"}'),
    # These raised IndexError.
    Case("a tag of one odd blank", 500, b"<\x0b>x", "HTTP 500: < >x"),
    Case("a tag of a slash and a blank", 500, "</\u2003>x".encode(), "HTTP 500: x"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_error_answer_says_what_its_body_says(case: Case) -> None:
    failure = failure_of(case.status, {}, case.bytes)
    retryable = not of_the_request(case.status)
    assert failure == Failure(case.message, case.type, case.param, case.code, retryable)


def recorded_errors() -> list[Json]:
    found = []
    for path in sorted((SHARED / "corpus" / "bodies").rglob("*.json")):
        value = json.loads(path.read_bytes())
        if isinstance(value.get("error"), dict):
            found.append(value)
    return found


@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason="no recordings in ../shared/corpus")
def test_recorded_error_bodies_come_through_unchanged() -> None:
    errors = recorded_errors()
    assert errors
    for value in errors:
        failure = failure_of(400, {}, json.dumps(value).encode())
        assert failure.to_dict() == {"error": value["error"]}
        assert not failure.retryable


NAMES = st.none() | st.text(min_size=1)


@given(st.text(min_size=1), st.text(min_size=1), NAMES, NAMES, st.integers(400, 599))
def test_openais_own_shape_comes_through_unchanged(
    message: str, kind: str, param: str | None, code: str | None, status: int
) -> None:
    value = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    assert failure_of(status, {}, json.dumps(value).encode()).to_dict() == value


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "type", "code", "param", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
PAGES = st.lists(
    st.sampled_from([*"<>/! \n\x0b\x00a", "<script", "</script>", "<style>", "<!--", "\u2003"])
).map("".join)
BODIES = (
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode("utf-8", "replace"))
    | PAGES.map(str.encode)
)
HEADERS = st.dictionaries(
    st.sampled_from(["location", "retry-after", "retry-after-ms", "date"]), st.text(max_size=30)
)


@given(STATUSES, HEADERS, BODIES)
@example(500, {}, b"<\x0b>")
def test_any_answer_is_a_failure_that_says_something(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    failure = failure_of(status, headers, body)
    assert failure.message
    assert failure.type is not None
    assert failure.retryable != of_the_request(status)
    wire = json.loads(failure.to_wire().removeprefix(b"data: "))
    assert wire == failure.to_dict()
    delay = retry_after(headers, 1.7e9)
    assert delay is None or 0 <= delay < math.inf


@pytest.mark.parametrize(
    "piece", [b"<", b">", b"<a ", b"</", b"<script>", b"[", b'{"error":', b"{", b" ", b"\xff", b"9"]
)
def test_megabytes_of_anything_are_a_short_message(piece: bytes) -> None:
    body = piece * (1_000_000 // len(piece))
    assert 0 < len(failure_of(500, {}, body).message) < 600


@pytest.mark.parametrize("key", ["error", "detail", "message"])
def test_nesting_of_any_depth_is_a_short_message(key: str) -> None:
    # Each depth, because the one that is too deep depends on the interpreter.
    for depth in range(900, 1100):
        body = b'{"%s":%s1%s}' % (key.encode(), b"[" * depth, b"]" * depth)
        assert 0 < len(failure_of(500, {}, body).message) < 600
    assert MAX_ERROR_BODY > 1100


def test_a_key_is_not_cut_where_nobody_would_know_it() -> None:
    key = "sk-proj-" + "aB3_" * 20
    for room in range(380, 520, 3):
        for body in (
            b"x " * (room // 2) + b"y" * (room % 2) + key.encode() + b" z" * 300,
            json.dumps(
                {"detail": ["x " * (room // 2), "y" * (room % 2) + key, "z " * 300]}
            ).encode(),
        ):
            said = failure_of(500, {}, body).without([key]).message
            assert "sk-proj" not in said
            assert len(said) < 600


# Statuses.


@pytest.mark.parametrize("status", range(200, 600))
def test_the_table_of_statuses(status: int) -> None:
    kept = {400, 401, 403, 404, 408, 409, 413, 422, 429}
    told = status if status in kept else {402: 429}.get(status, 502)
    next_account = {401, 402, 403, 408, 429}
    assert accepted(status) == (status < 300)
    assert of_the_request(status) == (400 <= status < 500 and status not in next_account)
    if status >= 300:
        assert status_for_client(status) == told
        assert failure_of(status, {}, b"{}").retryable == (not of_the_request(status))


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (Failure("x", code="rate_limit_exceeded"), 429),
        (Failure("x", type="tokens", code=None), 429),
        (Failure("x", type="insufficient_quota", code="other"), 429),
        # Said 502.
        (Failure("x", type="rate_limit_error"), 429),
        (Failure("x", type="invalid_request_error", code="invalid_api_key", retryable=False), 401),
        (Failure("x", code="model_not_found", retryable=False), 404),
        (Failure("x", code="context_length_exceeded", retryable=False), 400),
        (Failure("x", code="event_too_large", retryable=False), 502),
        (Failure("x", code=TIMEOUT), 504),
        (Failure("x", code=UNREACHABLE), 502),
        (Failure("x", code=NO_ACCOUNT_READY), 429),
        (Failure("x", code="upstream_truncated"), 502),
        (Failure("x", type="server_error", code="server_error"), 502),
        (Failure("x"), 502),
        # OpenRouter's, Azure's and vLLM's codes are statuses; all were 502.
        (Failure("x", code="429"), 429),
        (Failure("x", code="402"), 429),
        (Failure("x", code="400"), 400),
        (Failure("x", code="503"), 502),
        (Failure("x", code="200"), 502),
        (Failure("x", code="4290"), 502),
        (Failure("x", code="\u0664\u0662\u0669"), 502),
    ],
)
def test_a_failure_in_a_stream_has_the_status_that_openai_answers_with(
    failure: Failure, status: int
) -> None:
    assert status_of(failure) == status


@given(st.none() | st.text(), st.none() | st.text(), st.booleans())
def test_every_failure_has_a_status_that_is_an_error(
    kind: str | None, code: str | None, retryable: bool
) -> None:
    status = status_of(Failure("x", type=kind, code=code, retryable=retryable))
    assert 400 <= status < 600


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_names_where_to_and_the_setting(status: int) -> None:
    there = "https://y.test/v1/responses"
    failure = failure_of(status, {"location": f"{there}?key=sk-SECRET-1"}, b"<html>moved</html>")
    assert there in failure.message
    assert f"HTTP {status}" in failure.message
    assert "base_url" in failure.message
    assert failure.retryable
    # Found in review: an upgrade to https repeats the query, which can hold a key.
    assert "SECRET" not in failure.message
    assert "nowhere" in failure_of(status, {}, b"").message
    assert len(failure_of(status, {"location": "x" * 100_000}, b"").message) < 1000


# Retry-After.

NOW = datetime(2025, 3, 1, 12, 0, 0, tzinfo=UTC)


def http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "20"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "20"}, 20.0),
        ({"retry-after-ms": "-1", "retry-after": "20"}, 20.0),
        ({"retry-after-ms": ""}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "9" * 100_000}, None),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sat, 01 Mar 2025 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Sat, 01 Mar 2025 11:59:60 GMT"}, 0.0),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:60 GMT"}, 60.0),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 UTC"}, None),
        ({"retry-after": "Sat, 01 Mrz 2025 12:00:30 GMT"}, None),
        ({"retry-after": "Sun, 30 Feb 2025 12:00:30 GMT"}, None),
        ({"retry-after": "Sat, 01 Mar 0000 12:00:30 GMT"}, None),
        ({"retry-after": "Sat, 01 Mar 2025 24:00:00 GMT"}, None),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 GMT", "date": "yesterday"}, 30.0),
        # The server's clock counts, not ours.
        (
            {
                "retry-after": "Wed, 01 Jan 2020 00:01:00 GMT",
                "date": "Wed, 01 Jan 2020 00:00:00 GMT",
            },
            60.0,
        ),
    ],
)
def test_how_long_upstream_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW.timestamp()) == seconds


@given(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 30), timezones=st.just(UTC)),
    st.integers(-100_000, 100_000),
)
def test_a_date_is_read_to_the_second(moment: datetime, after: int) -> None:
    moment = moment.replace(microsecond=0)
    headers = {"retry-after": http_date(moment + timedelta(seconds=after))}
    assert retry_after(headers, moment.timestamp()) == max(0, after)
    assert retry_after({**headers, "date": http_date(moment)}, 0.0) == max(0, after)


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4}.*"))
def test_any_delay_is_a_number_of_seconds_or_none(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        delay = retry_after({name: text, "date": text}, 0.0)
        assert delay is None or 0 <= delay < math.inf
