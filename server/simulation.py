"""`Simulation`: what a simulated upstream answers, and what it remembers of requests. No I/O.

What may live here: the routes of both APIs, the error shapes, the memory. What may not: sockets and
clocks (`simulate`), and what models say (`scenarios`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote

import msgspec
from msgspec import Struct

from deltawire import (
    DIALECTS,
    ChatStream,
    InvalidRequest,
    UpstreamError,
    completion_from_response,
    dialect_named,
    to_responses_request,
)
from deltawire.server.app import Rejection, Reply, bearer_key, error_reply, json_reply
from deltawire.server.delivery import reply_of
from deltawire.server.framing import Refused
from deltawire.server.http import Headers, Request
from deltawire.server.model_names import read_model
from deltawire.server.scenarios import CREATED, ID, SCENARIOS, Scenario, scenario_of

_EVENT_STREAM: Final = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
_JSON: Final = (("content-type", "application/json"),)
# Of as many requests it is known what became of them.
_MEMORY: Final = 10_000


class Seen(Struct):
    """A request, and what became of it. The key itself is not kept."""

    number: int
    api: Literal["responses", "chat"]
    model: str
    stream: bool
    key_hint: str | None
    """Eight characters of the key's SHA-256; None: there was no key."""
    status: int = 200
    frames: int = 0
    """Sent so far; of an answer that is no stream, 1 for all of it."""
    open: bool = True
    left: bool = False
    """The client hung up before the end."""


class Streamed(Struct):
    """An answer whose body is said bit by bit."""

    headers: Headers
    pieces: Iterator[bytes]
    seen: Seen
    pace: float
    silence: float
    then: Literal["end", "reset", "wait"]

    def next(self, least: int) -> bytes:
        """The next piece, and further ones until there are so many bytes; nothing: it was all."""
        taken: list[bytes] = []
        size = 0
        for piece in self.pieces:
            taken.append(piece)
            size += len(piece)
            self.seen.frames += 1
            if size >= least:
                break
        return b"".join(taken)


class Waiting:
    """Somebody who wants to know once requests for that model (None: any) have all ended."""

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.then: Callable[[Reply], None] = lambda reply: None


class Simulation:
    """One simulated upstream.

    pace: seconds between two events where the model's name does not say. api_key: the one that is
    demanded; None: any will do, or none.
    """

    def __init__(self, *, pace: float = 0.0, api_key: str | None = None) -> None:
        self._pace = pace
        self._api_key = api_key
        self._seen: deque[Seen] = deque(maxlen=_MEMORY)
        self._total = 0
        # A dict, for its order.
        self._limited: dict[tuple[object, ...], None] = {}
        self._waiting: list[Waiting] = []

    def answer(self, request: Request | Refused, now: int) -> Reply | Streamed | Waiting:
        """What to say to a request; `now` in Unix seconds."""
        if isinstance(request, Refused):
            return error_reply(request.status, request.reason)
        try:
            return self._route(request, now)
        except Rejection as rejection:
            return rejection.reply
        except InvalidRequest as error:
            return reply_of(error)

    def _route(self, request: Request, now: int) -> Reply | Streamed | Waiting:
        asked = request.method, request.path.rstrip("/")
        if asked == ("GET", "/simulate/requests"):
            return self._told(request.query)
        if asked == ("DELETE", "/simulate/requests"):
            self._seen.clear()
            return json_reply({})
        if asked == ("GET", "/health"):
            return json_reply({"status": "ok"})
        self._check_key(request)
        if asked == ("GET", "/v1/models"):
            return json_reply({"object": "list", "data": [_model(name) for name in SCENARIOS]})
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            name = unquote(request.path.removeprefix("/v1/models/"))
            read_model(name, SCENARIOS)
            return json_reply(_model(name))
        if asked == ("POST", "/v1/responses"):
            return self._responses(request, now)
        if asked == ("POST", "/v1/chat/completions"):
            return self._chat(request, now)
        return error_reply(404, f"Invalid URL ({request.method} {request.path[:80]})")

    def _check_key(self, request: Request) -> None:
        key = _key_of(request) or ""
        if self._api_key is not None and not hmac.compare_digest(
            key.encode(), self._api_key.encode()
        ):
            raise Rejection(error_reply(401, "Incorrect API key provided.", code="invalid_api_key"))

    # The two APIs.

    def _responses(self, request: Request, now: int) -> Reply | Streamed:
        body = _body_of(request)
        if not any(key in body for key in ("input", "previous_response_id", "prompt")):
            raise InvalidRequest("input: expected a text or items, found nothing", "input")
        for name in ("input", "tools"):
            if not (name == "input" and isinstance(body.get(name), str)):
                _check_objects(body, name)
        scenario = scenario_of(body)
        seen = self._see(request, "responses", body["model"], bool(body.get("stream")))
        if (error := self._error(scenario, seen, body)) is not None:
            return error
        identity = _Identity(f"resp_{seen.number:024x}", now)
        if not seen.stream:
            response = msgspec.json.encode(scenario.response())
            return self._whole(scenario, seen, identity.given(response))
        frames, last = scenario.frames()
        if last and scenario.then != "wait":
            frames = [*frames, last[: len(last) // 2]]
        pieces = (identity.given(frame) for frame in frames)
        return self._streamed(scenario, seen, pieces)

    def _chat(self, request: Request, now: int) -> Reply | Streamed:
        body = _body_of(request)
        translated = to_responses_request(body)
        scenario = scenario_of(translated.body)
        seen = self._see(request, "chat", body["model"], bool(body.get("stream")))
        if (error := self._error(scenario, seen, translated.body)) is not None:
            return error
        dialect = dialect_named(scenario.provider if scenario.provider in DIALECTS else "generic")
        identity = _Identity(f"resp_{seen.number:024x}", now)
        if not seen.stream:
            response = identity.given(msgspec.json.encode(scenario.response()))
            try:
                completion = completion_from_response(response, dialect=dialect)
            except UpstreamError as failed:
                self.ended(seen, left=False)
                reply = reply_of(failed)
                seen.status = reply.status
                return reply
            return self._whole(scenario, seen, completion.to_json())
        stream = translated.chat_stream(dialect=dialect)
        return self._streamed(scenario, seen, _chat_pieces(scenario, stream, identity))

    def _error(self, scenario: Scenario, seen: Seen, body: Mapping[str, Any]) -> Reply | None:
        """The error status of the scenario, if it has one, and it is its turn."""
        if scenario.status < 400:
            return None
        if scenario.once:
            names = ("model", "user", "safety_identifier", "prompt_cache_key")
            key = tuple(body.get(name) for name in names)
            if key in self._limited:
                return None
            self._limited[key] = None
            while len(self._limited) > _MEMORY:
                del self._limited[next(iter(self._limited))]
        retry = scenario.retry_after
        self.ended(seen, left=False)
        seen.status = scenario.status
        return error_reply(
            scenario.status,
            scenario.message,
            type="server_error" if scenario.status >= 500 else "invalid_request_error",
            code=scenario.code,
            headers=() if retry is None else (("retry-after", str(retry)),),
        )

    def _whole(self, scenario: Scenario, seen: Seen, body: bytes) -> Reply | Streamed:
        if scenario.cut_after is not None:
            return self._streamed(scenario, seen, iter([body[: len(body) // 2]]), _JSON)
        if scenario.silence:
            return self._streamed(scenario, seen, iter([body]), _JSON)
        seen.frames = 1
        self.ended(seen, left=False)
        return Reply(200, body)

    def _streamed(
        self,
        scenario: Scenario,
        seen: Seen,
        pieces: Iterator[bytes],
        headers: Headers = _EVENT_STREAM,
    ) -> Streamed:
        pace = self._pace if scenario.pace is None else scenario.pace
        return Streamed(headers, pieces, seen, pace, scenario.silence, scenario.then)

    # The memory.

    def _see(
        self, request: Request, api: Literal["responses", "chat"], model: str, stream: bool
    ) -> Seen:
        self._total += 1
        key = _key_of(request)
        hint = None if key is None else hashlib.sha256(key.encode()).hexdigest()[:8]
        seen = Seen(self._total, api, model, stream, hint)
        self._seen.append(seen)
        return seen

    def ended(self, seen: Seen, *, left: bool) -> None:
        """An answer is over; `left`: for the client before it was for us."""
        seen.open = False
        seen.left = left
        for waiting in list(self._waiting):
            if self._settled(waiting.model):
                self.forget(waiting)
                waiting.then(self._report(waiting.model))

    def forget(self, waiting: Waiting) -> None:
        """Nobody is there any more to be told."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _told(self, query: str) -> Reply | Waiting:
        asked = parse_qs(query, separator="&")
        model = asked["model"][-1] if "model" in asked else None
        if "settled" not in asked or self._settled(model):
            return self._report(model)
        waiting = Waiting(model)
        self._waiting.append(waiting)
        return waiting

    def _about(self, model: str | None) -> list[Seen]:
        return [each for each in self._seen if model is None or each.model == model]

    def _settled(self, model: str | None) -> bool:
        seen = self._about(model)
        return bool(seen) and not any(each.open for each in seen)

    def _report(self, model: str | None) -> Reply:
        seen = self._about(model)
        still = sum(each.open for each in seen)
        return json_reply({"total": len(seen), "open": still, "requests": seen})


class _Identity:
    """What each answer has of its own."""

    def __init__(self, response_id: str, now: int) -> None:
        # With the key's quotes, which no text in JSON can have before it.
        self._parts = (
            (b'"id":"%b' % ID.encode(), b'"id":"%b' % response_id.encode()),
            (b'"created_at":%d' % CREATED, b'"created_at":%d' % now),
            (b'"completed_at":%d' % (CREATED + 1), b'"completed_at":%d' % now),
        )

    def given(self, data: bytes) -> bytes:
        """A frame or object with the id and the time."""
        if b'"created_at":' in data:
            for placeholder, own in self._parts:
                data = data.replace(placeholder, own, 1)
        return data


def _chat_pieces(scenario: Scenario, stream: ChatStream, identity: _Identity) -> Iterator[bytes]:
    frames, last = scenario.frames()
    for frame in frames:
        if wire := stream.translate(identity.given(frame)):
            yield wire
        if stream.wants_close:
            break
    if scenario.cut_after is None:
        if wire := stream.translate_eof():
            yield wire
    elif scenario.then != "wait":
        wire = stream.translate(last)
        if half := wire[: len(wire) // 2]:
            yield half


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "deltawire"}


def _key_of(request: Request) -> str | None:
    return bearer_key(request) or request.headers.get("api-key")


def _body_of(request: Request) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON that can be read: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body: expected an object")
    if not isinstance(body.get("model"), str):
        raise InvalidRequest(
            "model: expected the name of a model", "model", "missing_required_parameter"
        )
    if not isinstance(body.get("stream"), bool | None):
        raise InvalidRequest("stream: expected a boolean", "stream", "invalid_type")
    return body


def _check_objects(body: Mapping[str, Any], name: str) -> None:
    given = body.get(name)
    if given is None:
        return
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise InvalidRequest(f"{name}: expected a list of objects", name, "invalid_type")
