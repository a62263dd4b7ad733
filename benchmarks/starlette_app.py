"""A pass-through of Starlette and httpx, as one writes it: a peer, run by uvicorn.

UPSTREAM is the base URL of what it passes through.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with httpx.AsyncClient(
        base_url=os.environ["UPSTREAM"], limits=LIMITS, timeout=600.0
    ) as client:
        app.state.client = client
        yield


async def pass_through(request: Request) -> StreamingResponse:
    client: httpx.AsyncClient = request.app.state.client
    body = await request.body()
    headers = {"content-type": "application/json"}
    asked = client.build_request("POST", request.url.path, content=body, headers=headers)
    answer = await client.send(asked, stream=True)
    return StreamingResponse(
        answer.aiter_raw(),
        status_code=answer.status_code,
        media_type=answer.headers["content-type"],
        background=BackgroundTask(answer.aclose),
    )


app = Starlette(
    routes=[Route("/v1/{rest:path}", pass_through, methods=["POST"])], lifespan=lifespan
)
