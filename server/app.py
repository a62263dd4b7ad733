"""`App`: what the server answers, whichever driver asks. No I/O.

What may live here: routes, who may ask what, and the answers that need no upstream. What may not:
HTTP itself (`http`), how an answer from upstream is sent (`delivery`), sockets (the drivers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from deltawire import __version__
from deltawire.chat import error_object
from deltawire.server.framing import Refused
from deltawire.server.http import Headers, Request
from deltawire.server.keys import Client, ClientKeys
from deltawire.server.settings import Config, Upstream

COMPLETIONS: Final = "/v1/chat/completions"
_MODELS: Final = "/v1/models"
_OTHERS: Final = ("/health", "/metrics", "/version")
_JSON: Final = (("content-type", "application/json"),)
_SHOWN: Final = 80


class Reply(Struct, frozen=True):
    """A whole answer."""

    status: int
    body: bytes
    headers: Headers = _JSON


class ChatCall(Struct):
    """A chat request for an upstream.

    model: the name that the client asked for; `chat_request` has the upstream's.
    client: the name of its key. peer: its address.
    """

    upstream: Upstream
    chat_request: dict[str, Any]
    model: str
    client: str | None
    request_id: str
    streamed: bool
    peer: str = ""

    def take_request(self) -> dict[str, Any]:
        """The chat request, once: it may be long, and is not kept as long as its answer takes."""
        taken, self.chat_request = self.chat_request, _TAKEN
        return taken


_TAKEN: Final[dict[str, Any]] = {}


def route_of(path: str) -> str:
    """Which of the few routes it is, whatever a client made of it; "other" where it is none."""
    path = path.rstrip("/")
    if path in (COMPLETIONS, *_OTHERS):
        return path
    return _MODELS if path == _MODELS or path.startswith(_MODELS + "/") else "other"


def bearer_key(request: Request) -> str | None:
    """The key that a request comes with, as SDKs send it."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


class Rejection(Exception):
    """A request that is answered with an error; carries the Reply."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


def error_reply(
    status: int,
    message: str,
    *,
    type: str | None = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Headers = (),
) -> Reply:
    """An error in OpenAI's shape."""
    body = msgspec.json.encode(error_object(message, type, param, code))
    return Reply(status, body, (*_JSON, *headers))


def json_reply(value: object, status: int = 200) -> Reply:
    """Any value as JSON."""
    return Reply(status, msgspec.json.encode(value))


class App:
    """The routes, for one configuration.

    health: whether all is well, and what `/health` says.
    metrics: what `/metrics` says.
    """

    def __init__(
        self,
        config: Config,
        *,
        health: Callable[[], tuple[bool, dict[str, Any]]],
        metrics: Callable[[], Reply],
    ) -> None:
        self.config = config
        self._keys = ClientKeys(config.clients)
        self._health = health
        self._metrics = metrics

    def answer(
        self, request: Request | Refused, request_id: str, peer: str = ""
    ) -> Reply | ChatCall:
        """What to say to a request, or what to ask an upstream."""
        if isinstance(request, Refused):
            return error_reply(request.status, request.reason)
        try:
            return self._route(request, request_id, peer)
        except Rejection as rejection:
            return rejection.reply

    def _route(self, request: Request, request_id: str, peer: str) -> Reply | ChatCall:
        path = request.path.rstrip("/")
        if path == COMPLETIONS:
            _only(request, "POST")
            return self._chat(request, self._client(request), request_id, peer)
        if path == "/health":
            _only(request, "GET", "HEAD")
            well, said = self._health()
            return json_reply(said, 200 if well else 503)
        if path == "/metrics" and self.config.server.metrics != "none":
            _only(request, "GET", "HEAD")
            if self.config.server.metrics == "clients":
                self._client(request)
            return self._metrics()
        if path == "/version":
            _only(request, "GET", "HEAD")
            return json_reply({"name": "deltawire", "version": __version__})
        if path == _MODELS or path.startswith(_MODELS + "/"):
            _only(request, "GET", "HEAD")
            return self._models(self._client(request), path.removeprefix(_MODELS).lstrip("/"))
        raise Rejection(error_reply(404, f"there is nothing at {_shown(request.path)}"))

    def _client(self, request: Request) -> Client | None:
        """Who asks; None where no client has a key. A wrong key gets no hint."""
        if not len(self._keys):
            return None
        client = self._keys.find(bearer_key(request))
        if client is None:
            raise Rejection(
                error_reply(
                    401,
                    "expected the key of a client: Authorization: Bearer <key>",
                    code="invalid_api_key",
                    headers=(("www-authenticate", "Bearer"),),
                )
            )
        return client

    # Models.

    def _models(self, client: Client | None, name: str) -> Reply:
        listed = [each for each in self.config.models() if client is None or client.may_use(each)]
        if not name:
            return json_reply({"object": "list", "data": [self._model(each) for each in listed]})
        name = unquote(name)
        self._upstream(name, client)
        return json_reply(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        route = self.config.route(name)
        owner = "deltawire" if route is None else route[0].name
        return {"id": name, "object": "model", "created": 0, "owned_by": owner}

    def _upstream(self, model: str, client: Client | None) -> tuple[Upstream, str]:
        route = self.config.route(model)
        if route is None or not (client is None or client.may_use(model)):
            raise Rejection(
                error_reply(
                    404,
                    f"there is no model {_shown(model)} here, or not for this key",
                    param="model",
                    code="model_not_found",
                )
            )
        return route

    # Chat.

    def _chat(
        self, request: Request, client: Client | None, request_id: str, peer: str
    ) -> ChatCall:
        chat_request = _decoded(request)
        model = chat_request.get("model")
        if not isinstance(model, str) or not model:
            raise Rejection(
                error_reply(
                    400,
                    "model: expected the name of a model",
                    param="model",
                    code="missing_required_parameter",
                )
            )
        streamed = chat_request.get("stream")
        if not (streamed is None or isinstance(streamed, bool)):
            raise Rejection(
                error_reply(400, "stream: expected a boolean", param="stream", code="invalid_type")
            )
        upstream, upstream_model = self._upstream(model, client)
        return ChatCall(
            upstream,
            {**chat_request, "model": upstream_model},
            model,
            None if client is None else client.name,
            request_id,
            bool(streamed),
            peer,
        )


def _decoded(request: Request) -> dict[str, Any]:
    """The body as JSON."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Rejection(
            error_reply(415, f"expected a body of type application/json, found {_shown(kind)}")
        )
    if (coding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Rejection(error_reply(415, f"expected a plain body, found one in {_shown(coding)}"))
    try:
        value = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejection(
            error_reply(400, f"the body is no JSON that can be read: {error}", code="invalid_json")
        ) from None
    if not isinstance(value, dict):
        raise Rejection(error_reply(400, "the body: expected an object", code="invalid_type"))
    return value


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise Rejection(
            error_reply(
                405,
                f"expected {' or '.join(methods)}, found {_shown(request.method)}",
                headers=(("allow", ", ".join(methods)),),
            )
        )


def _shown(text: str) -> str:
    """As much of what a client sent as an answer may repeat."""
    kept = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return repr(kept)
