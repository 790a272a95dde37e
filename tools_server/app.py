"""The HTTP interface: typed requests in; answers with back end, cache hit and latency out."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from tools_server import schemas
from tools_server.failures import STATUS, ToolError
from tools_server.images import StoredImage
from tools_server.service import Reply, ToolService

T = TypeVar('T')
log = logging.getLogger('tools_server')

FAILURES = {status: {'model': schemas.Failure} for status in (*STATUS.values(), 404, 413)}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {
    "schema": {"type": "string", "format": "binary", "description": "an image file"}}}}}  # fmt: skip


def create_app(service: ToolService, threads: int, deadline_s: float, max_body: int) -> FastAPI:
    """The application around a service.

    Args:
        service: answers the calls; it may still be loading.
        threads: calls worked on at the same time; the others wait.
        deadline_s: longest time a call may take, waiting included, in seconds.
        max_body: largest upload in bytes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.limiter = anyio.CapacityLimiter(threads)
        yield

    app = FastAPI(title='Tool server', description=__doc__, version='1', lifespan=lifespan)

    async def work(call: Callable[..., T], *arguments: Any) -> T:
        """Runs blocking work in a thread, so that it holds up neither the event loop nor a call beyond its
        deadline."""
        try:
            with anyio.fail_after(deadline_s):
                return await anyio.to_thread.run_sync(
                    lambda: call(*arguments), limiter=app.state.limiter, abandon_on_cancel=True
                )
        except TimeoutError:
            raise ToolError('timeout', f'the call was not done within {deadline_s:g} s') from None
        except ToolError:
            raise
        except (
            Exception
        ) as error:  # a mistake in here must not look like one of the caller's, nor stop the server
            log.exception('a call failed')
            raise ToolError(
                'unavailable', f'the server failed ({type(error).__name__}); see its log'
            ) from error

    app.add_middleware(_Clock)

    def about(request: Request, reply: Reply) -> dict[str, Any]:
        return {'backend': reply.backend, 'cache_hit': reply.cache_hit, 'latency_ms': _elapsed(request)}

    def image_answer(request: Request, reply: Reply[StoredImage]) -> schemas.ImageAnswer:
        image = reply.value
        return schemas.ImageAnswer(
            sha256=image.sha256, width=image.width, height=image.height, **about(request, reply)
        )

    @app.post('/images', openapi_extra=IMAGE_BODY, responses=FAILURES)
    async def upload(request: Request) -> schemas.ImageAnswer:
        """Keeps an image; from then on it is named by its content hash. Sending it again is cheap."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_body:
                raise ToolError('caller', f'the image has more than the allowed {max_body} bytes', 413)
        return image_answer(request, await work(service.upload, bytes(data)))

    @app.get(
        '/images/{sha256}', responses=FAILURES | {200: {'content': {'image/*': {}}}}, response_class=Response
    )
    async def image(sha256: schemas.Sha256) -> Response:
        """The image file: JPEG or PNG, upright, RGB."""
        data = await work(lambda: service.images.get(sha256).encoded())
        kind = 'image/png' if data.startswith(b'\x89PNG') else 'image/jpeg'
        return Response(
            data, media_type=kind, headers={'Cache-Control': 'public, max-age=31536000, immutable'}
        )

    @app.post('/crop', responses=FAILURES)
    async def crop(request: Request, body: schemas.CropRequest) -> schemas.ImageAnswer:
        """Cuts a part out of an image at full resolution, and keeps it as an image of its own."""
        return image_answer(request, await work(service.crop, body.image, body.bbox))

    @app.post('/text_search', responses=FAILURES)
    async def text_search(request: Request, body: schemas.TextSearchRequest) -> schemas.TextSearchAnswer:
        """Passages for a query of any wording, best first."""
        reply = await work(service.text_search, body.query, body.top_k)
        return schemas.TextSearchAnswer(results=reply.value, **about(request, reply))

    @app.post('/image_search', responses=FAILURES)
    async def image_search(request: Request, body: schemas.ImageSearchRequest) -> schemas.ImageSearchAnswer:
        """Known pictures that look like an image or something large in it, best first."""
        reply = await work(service.image_search, body.image, body.top_k)
        return schemas.ImageSearchAnswer(results=reply.value, **about(request, reply))

    @app.post('/judge', responses=FAILURES)
    async def judge(request: Request, body: schemas.JudgeRequest) -> schemas.JudgeAnswer:
        """Whether a response answers the question as one of the references does."""
        reply = await work(service.judge, body.question, body.references, body.response, body.image)
        return schemas.JudgeAnswer(verdict=reply.value, **about(request, reply))

    @app.get('/health')
    async def health() -> schemas.Health:
        """Whether the indexes are loaded, which back ends answer, and what the caches hold."""
        return schemas.Health(ready=service.ready, backends=service.backends(), cache=service.statistics())

    @app.exception_handler(ToolError)
    async def tool_error(request: Request, error: ToolError) -> JSONResponse:
        return _failure(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc'] if part not in ('body', 'path'))
        problem = first['msg'].removeprefix('Value error, ')
        return _failure(request, ToolError('caller', f'{where}: {problem}' if where else problem))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return _failure(request, ToolError('caller', str(error.detail), error.status_code))

    return app


class _Clock:
    """Notes when a request came in."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault('state', {})['start'] = time.perf_counter()
        await self._app(scope, receive, send)


def _failure(request: Request, error: ToolError) -> JSONResponse:
    body = schemas.Failure(kind=error.kind, message=error.message, latency_ms=_elapsed(request))
    return JSONResponse(body.model_dump(), status_code=error.status)


def _elapsed(request: Request) -> float:
    """Milliseconds since the request came in."""
    return round(1e3 * (time.perf_counter() - request.state.start), 3)
