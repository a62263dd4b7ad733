"""What `App` answers, without a socket: routes, keys, models, and bodies that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deltawire import __version__
from deltawire.server.app import App, ChatCall, Reply, error_reply
from deltawire.server.config import parse
from deltawire.server.framing import Refused
from deltawire.server.http import Request
from deltawire.server.keys import hash_key
from deltawire.server.service import Service
from deltawire.transports import AsyncioTransport

KEY = "dw-all-models"
FEW = "dw-few-models"
ID = "req_1"
CHAT = "/v1/chat/completions"

UPSTREAMS = """
[[upstreams]]
name = "one"
base_url = "http://127.0.0.1:1/v1"
models = ["gpt-5", "gpt-5-*"]
aliases = { fast = "gpt-5-mini", "vendor/best" = "gpt-5-pro" }
accounts = [{ name = "a", key = "sk-a" }]

[[upstreams]]
name = "two"
base_url = "http://127.0.0.1:2/v1"
models = ["grok-4"]
accounts = [{ name = "b", key = "sk-b" }]
"""
CLIENTS = f"""
[[clients]]
name = "ann"
key_hash = "{hash_key(KEY)}"

[[clients]]
name = "bob"
key_hash = "{hash_key(FEW)}"
models = ["fast", "grok-*"]
"""


def app(text: str = UPSTREAMS, *, well: bool = True) -> App:
    return App(
        parse(text, {}),
        health=lambda: (well, {"status": "ok" if well else "degraded"}),
        metrics=lambda: Reply(200, b"numbers"),
    )


def ask(
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: bytes = b"",
    to: App | None = None,
    **headers: str,
) -> Reply | ChatCall:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        fields["authorization"] = f"Bearer {key}"
    return (to or app()).answer(Request(method, path, "", fields, body, "1.1"), ID)


def reply(answer: Reply | ChatCall) -> Reply:
    assert isinstance(answer, Reply), answer
    return answer


def call(answer: Reply | ChatCall) -> ChatCall:
    assert isinstance(answer, ChatCall), answer
    return answer


def fault(answer: Reply | ChatCall, status: int) -> dict[str, Any]:
    """The error object of an answer, whose shape is OpenAI's."""
    given = reply(answer)
    assert given.status == status
    assert dict(given.headers)["content-type"] == "application/json"
    (whole,) = json.loads(given.body).items()
    assert whole[0] == "error"
    error: dict[str, Any] = whole[1]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def chat(**fields: Any) -> bytes:
    messages = [{"role": "user", "content": "Rain?"}]
    return json.dumps({"model": "gpt-5", "messages": messages, **fields}).encode()


# Routes.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_pages_about_the_server_need_no_key(method: str) -> None:
    locked = app(UPSTREAMS + CLIENTS)
    health = reply(ask(method, "/health", to=locked))
    assert (health.status, json.loads(health.body)) == (200, {"status": "ok"})
    version = reply(ask(method, "/version", to=locked))
    assert json.loads(version.body) == {"name": "deltawire", "version": __version__}


def test_what_is_not_well_is_503() -> None:
    assert reply(ask("GET", "/health", to=app(well=False))).status == 503


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/completions", "/v1/modelsx", "*", "/%00"])
def test_other_paths_are_404(path: str) -> None:
    error = fault(ask("GET", path), 404)
    assert repr(path) in error["message"]
    assert error["type"] == "invalid_request_error"


def test_no_more_of_a_path_is_repeated_than_a_line() -> None:
    assert len(fault(ask("GET", "/" + "a" * 8000), 404)["message"]) < 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/gpt-5", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("PUT", "/version", "GET, HEAD"),
    ],
)
def test_other_methods_are_405_with_those_that_there_are(
    method: str, path: str, allowed: str
) -> None:
    answer = ask(method, path)
    fault(answer, 405)
    assert dict(reply(answer).headers)["allow"] == allowed


@pytest.mark.parametrize("status", [400, 408, 413, 414, 417, 431, 501, 505])
def test_what_http_refuses_has_openais_shape(status: int) -> None:
    error = fault(app().answer(Refused(status, "because"), ID), status)
    assert error["message"] == "because"


def test_every_reply_has_a_request_id_of_its_own() -> None:
    service = Service(parse(UPSTREAMS, {}), AsyncioTransport)
    request = Request("GET", "/nothing", "", {}, b"", "1.1")
    replies = [service.answer(request), service.answer(request)]
    replies += [service.too_many(), service.too_slow(), service.answer(Refused(400, "no"))]
    ids = {dict(reply(each).headers)["x-request-id"] for each in replies}
    assert len(ids) == len(replies)
    assert all(each.startswith("req_") for each in ids)


# Keys.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer dw-wrong"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}, Bearer {KEY}"},
        {"authorization": "Bearer \xff\x00"},
        {"x_api_key": KEY},
    ],
)
def test_no_key_and_any_wrong_one_get_the_same_answer(headers: dict[str, str]) -> None:
    locked = app(UPSTREAMS + CLIENTS)
    answer = ask("POST", CHAT, to=locked, body=chat(), **headers)
    assert fault(answer, 401)["code"] == "invalid_api_key"
    assert dict(reply(answer).headers)["www-authenticate"] == "Bearer"
    assert answer == ask("POST", CHAT, to=locked, body=b"no JSON")
    assert answer == ask("GET", "/v1/models", to=locked)


def test_a_right_key_says_who_asks() -> None:
    locked = app(UPSTREAMS + CLIENTS)
    assert call(ask("POST", CHAT, to=locked, body=chat(), key=KEY)).client == "ann"
    loud = {"authorization": f"BEARER  {FEW} "}
    assert call(ask("POST", CHAT, to=locked, body=chat(model="fast"), **loud)).client == "bob"


def test_without_clients_no_key_is_looked_at() -> None:
    assert call(ask("POST", CHAT, body=chat(), key="sk-anything")).client is None


# Models.


def test_models_are_listed() -> None:
    said = json.loads(reply(ask("GET", "/v1/models/")).body)
    assert said["object"] == "list"
    assert [(each["id"], each["owned_by"]) for each in said["data"]] == [
        ("fast", "one"),
        ("vendor/best", "one"),
        ("gpt-5", "one"),
        ("grok-4", "two"),
    ]
    assert {each["object"] for each in said["data"]} == {"model"}
    assert {each["created"] for each in said["data"]} == {0}


def test_a_client_sees_its_own_models_only() -> None:
    locked = app(UPSTREAMS + CLIENTS)
    said = json.loads(reply(ask("GET", "/v1/models", to=locked, key=FEW)).body)
    assert [each["id"] for each in said["data"]] == ["fast", "grok-4"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("gpt-5-nano", "gpt-5-nano"),
        ("vendor/best", "vendor/best"),
        ("vendor%2Fbest", "vendor/best"),
    ],
)
def test_one_model(path: str, name: str) -> None:
    said = json.loads(reply(ask("GET", f"/v1/models/{path}")).body)
    assert said == {"id": name, "object": "model", "created": 0, "owned_by": "one"}


def test_a_model_that_is_not_there_or_not_allowed_is_the_same_404() -> None:
    locked = app(UPSTREAMS + CLIENTS)
    for model in ("gpt-5", "nothing"):
        errors = [
            fault(ask("GET", f"/v1/models/{model}", to=locked, key=FEW), 404),
            fault(ask("POST", CHAT, to=locked, key=FEW, body=chat(model=model)), 404),
        ]
        for error in errors:
            assert error.pop("message") == f"there is no model '{model}' here, or not for this key"
            assert error == {
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }


def test_an_alias_is_asked_for_by_its_own_name_upstream() -> None:
    asked = call(ask("POST", CHAT, body=chat(model="fast", stream=True, seed=1)))
    assert (asked.model, asked.chat_request["model"]) == ("fast", "gpt-5-mini")
    assert (asked.upstream.name, asked.streamed, asked.request_id) == ("one", True, ID)
    assert asked.chat_request["seed"] == 1


@pytest.mark.parametrize(("stream", "streamed"), [(None, False), (False, False), (True, True)])
def test_whether_it_is_streamed(stream: bool | None, streamed: bool) -> None:
    assert call(ask("POST", CHAT + "/", body=chat(stream=stream))).streamed is streamed


# Bodies.


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"model": "gpt-5"} {}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'"model"', "invalid_type"),
        (b"{}", "missing_required_parameter"),
        (b'{"model": ""}', "missing_required_parameter"),
        (b'{"model": ["gpt-5"]}', "missing_required_parameter"),
        (b'{"model": "gpt-5", "stream": "yes"}', "invalid_type"),
        (b'{"model": "gpt-5", "stream": 1}', "invalid_type"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_is_no_request_is_400(body: bytes, code: str) -> None:
    assert fault(ask("POST", CHAT, body=body), 400)["code"] == code


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/json-seq"},
        {"content_encoding": "gzip"},
    ],
)
def test_a_body_of_another_type_is_415(headers: dict[str, Any]) -> None:
    fault(ask("POST", CHAT, body=chat(), **headers), 415)


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "application/json"},
        {"content_type": "Application/JSON; charset=utf-8"},
        {"content_type": "application/vnd.api+json"},
        {"content_encoding": "Identity"},
    ],
)
def test_json_has_several_names(headers: dict[str, Any]) -> None:
    call(ask("POST", CHAT, body=chat(), **headers))


def test_an_error_reply_has_its_headers_beside_the_type() -> None:
    error = error_reply(429, "slow", type="t", param="p", code="c", headers=(("retry-after", "1"),))
    assert dict(error.headers) == {"content-type": "application/json", "retry-after": "1"}
    assert json.loads(error.body)["error"] == {
        "message": "slow",
        "type": "t",
        "param": "p",
        "code": "c",
    }
