"""The HTTP interface: typed requests in; answers with back end, cache hit and latency out."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from tools_server import schemas
from tools_server.config import ServerConfig
from tools_server.failures import STATUS, ToolError
from tools_server.images import StoredImage
from tools_server.limits import deadline
from tools_server.middleware import DEADLINE, DOCS_FILES, GuardMiddleware, failure_answer
from tools_server.service import ToolService
from tools_server.tool_runner import Reply
from tools_server.uploads import sent_picture

log = logging.getLogger('tools_server')

FAILURES = {
    status: {'model': schemas.Failure} for status in (*STATUS.values(), 401, 404, 413, 415, 429)
}
_FILE = {'type': 'string', 'format': 'binary', 'description': 'an image file'}
IMAGE_BODY = {'requestBody': {'required': True, 'content': {
    'application/octet-stream': {'schema': _FILE}, 'image/*': {'schema': _FILE},
    'multipart/form-data': {'schema': {'type': 'object', 'properties': {'file': _FILE}}}}}}  # fmt: skip


def create_app(service: ToolService, config: ServerConfig) -> FastAPI:
    """The application around a service, which may still be loading."""
    mcp = None
    if config.mcp:
        from mcp.server.transport_security import TransportSecuritySettings

        from tools_server.mcp_server import create_mcp  # the library is an extra

        mcp = create_mcp(service, config.deadline_s)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mcp.session_manager.run() if mcp else contextlib.nullcontext():
            yield

    # With a token, the page of the API says how to send it. Its scripts come from here: a pod has
    # no internet.
    bearer = [Depends(HTTPBearer(auto_error=False))] if config.token_env else []
    app = FastAPIOffline(
        title='Tool server', description=__doc__, version='2', lifespan=lifespan, dependencies=bearer,
        redoc_url=None, static_url=DOCS_FILES,
    )  # fmt: skip

    async def timed(request: Request, call: Callable[[], Awaitable[Any]]) -> Any:
        """`call` within the server's deadline, or the caller's where that is earlier."""
        seconds = config.deadline_s
        if (asked := request.headers.get(DEADLINE)) is not None:
            try:
                longest = float(asked)
            except ValueError:
                longest = math.nan
            if math.isnan(longest):
                raise ToolError('caller', f'{DEADLINE}: {asked[:20]!r} is no number of seconds')
            seconds = min(seconds, longest)
        # what was read and checked until now counts too
        with deadline.within(seconds - _elapsed(request)):
            return await call()

    app.add_middleware(GuardMiddleware, config=config)

    def about(request: Request, reply: Reply) -> dict[str, Any]:
        return {
            'backend': reply.backend,
            'cache_hit': reply.cache_hit,
            'latency_s': _elapsed(request),
        }

    def found(request: Request, reply: Reply) -> dict[str, Any]:
        return about(request, reply) | {'degraded': list(reply.degraded)}

    def image_answer(request: Request, reply: Reply[StoredImage]) -> schemas.ImageAnswer:
        image = reply.value
        return schemas.ImageAnswer(
            sha256=image.sha256, width=image.width, height=image.height, **about(request, reply)
        )

    @app.post('/images', openapi_extra=IMAGE_BODY, responses=FAILURES)
    async def upload(request: Request) -> schemas.ImageAnswer:
        """Keeps an image; from then on it is named by its content hash.

        Sending it again is cheap.
        """

        async def call() -> Reply[StoredImage]:
            return await service.upload(await sent_picture(request))

        return image_answer(request, await timed(request, call))

    @app.get(
        '/images/{sha256}',
        responses=FAILURES | {200: {'content': {'image/*': {}}}},
        response_class=Response,
    )
    async def image(request: Request, sha256: schemas.Sha256, bare: bool = False) -> Response:
        """The image file: JPEG or PNG, upright, RGB. What other answers say in fields is in X-
        headers here.

        With `bare`, and for whoever comes with a signature, without camera data, place or text in
        it.
        """
        bare = bare or 'signature' in request.query_params
        reply = await timed(request, lambda: service.image(sha256, bare))
        kind = 'image/png' if reply.value.startswith(b'\x89PNG') else 'image/jpeg'
        headers = {
            'Cache-Control': 'public, max-age=31536000, immutable',
            'X-Content-Type-Options': 'nosniff',
        }
        for name, value in about(request, reply).items():
            headers['X-' + name.replace('_', '-').title()] = str(value).lower()
        return Response(reply.value, media_type=kind, headers=headers)

    @app.post('/crop', responses=FAILURES)
    async def crop(request: Request, body: schemas.CropRequest) -> schemas.ImageAnswer:
        """Cuts a part out of an image at full resolution, and keeps it as an image of its own."""
        return image_answer(
            request, await timed(request, lambda: service.crop(body.image, body.bbox))
        )

    @app.post('/text_search', responses=FAILURES)
    async def text_search(
        request: Request, body: schemas.TextSearchRequest
    ) -> schemas.TextSearchAnswer:
        """Passages for a query of any wording, best first."""
        reply = await timed(request, lambda: service.text_search(body.query, body.top_k))
        return schemas.TextSearchAnswer(results=reply.value, **found(request, reply))

    @app.post('/image_search', responses=FAILURES)
    async def image_search(
        request: Request, body: schemas.ImageSearchRequest
    ) -> schemas.ImageSearchAnswer:
        """Known pictures that look like an image or something large in it, best first."""
        reply = await timed(request, lambda: service.image_search(body.image, body.top_k))
        return schemas.ImageSearchAnswer(results=reply.value, **found(request, reply))

    @app.post('/judge', responses=FAILURES)
    async def judge(request: Request, body: schemas.JudgeRequest) -> schemas.JudgeAnswer:
        """Whether a response answers the question as one of the references does."""
        case = (body.question, body.references, body.response, body.images, body.choices)
        reply = await timed(request, lambda: service.judge(*case))
        return schemas.JudgeAnswer(verdict=reply.value, **found(request, reply))

    @app.get('/live')
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {'live': True}

    @app.get('/ready', responses={503: {'model': schemas.Ready}})
    async def ready(response: Response) -> schemas.Ready:
        """Whether calls can be answered; status 503 while the indexes are loading."""
        if not service.ready:
            response.status_code = 503
        return schemas.Ready(ready=service.ready)

    # In threads: what they read may be locked for a moment, which must not hold up the calls.
    def health_fields() -> dict[str, Any]:
        return {
            'ready': service.ready,
            'backends': service.backends(),
            'mode': service.mode,
            'cache': service.cache_statistics(),
        }

    @app.get('/health')
    def health() -> schemas.Health:
        """Whether the indexes are loaded, which back ends answer, and what the caches hold."""
        return schemas.Health(**health_fields())

    @app.get('/statistics')
    def statistics() -> schemas.Statistics:
        """Health, and what became of all calls so far."""
        return schemas.Statistics(
            **health_fields(), calls=service.statistics(), services=service.service_statistics()
        )

    @app.get('/metrics', response_class=Response, responses={200: {'content': {'text/plain': {}}}})
    def metrics() -> Response:
        """The same for Prometheus."""
        return Response(
            service.metrics.text(), media_type='text/plain; version=0.0.4; charset=utf-8'
        )

    def failure(request: Request, error: ToolError) -> JSONResponse:
        elapsed = _elapsed(request)
        if not error.counted:  # it came to no tool
            service.count(request.method, request.scope['path'], error.kind, elapsed, error.message)
        return failure_answer(error, elapsed)

    @app.exception_handler(ToolError)
    async def tool_error(request: Request, error: ToolError) -> JSONResponse:
        return failure(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        if first['loc'] == ('body',) and not kind.endswith('json'):
            sent = f'this one came as {kind[:60]!r}' if kind else 'this one came without a type'
            problem = f"send the body with the header 'Content-Type: application/json'; {sent}"
            return failure(request, ToolError('caller', problem))
        return failure(request, ToolError('caller', schemas.sentence(first)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = 'timeout' if error.status_code == 504 else 'caller'
        answer = failure(request, ToolError(kind, str(error.detail), error.status_code))
        if error.status_code in (413, 504):
            answer.headers['Connection'] = 'close'  # the rest of the body is not read
        return answer

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> JSONResponse:
        """One of this program: it must not look like one of the caller's."""
        log.error('%s failed', request.scope['path'], exc_info=error)
        return failure(
            request,
            ToolError('unavailable', f'the server failed ({type(error).__name__}); see its log'),
        )

    if mcp is not None:
        # Hosts and tokens are checked by the middleware, for these routes as for all others.
        security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        inner = mcp.streamable_http_app(
            stateless_http=True,
            json_response=True,
            max_request_body_size=2 * config.images.max_bytes,
            transport_security=security,
        )
        app.router.routes += inner.routes
    return app


def _elapsed(request: Request) -> float:
    """Seconds since the request came in."""
    return round(time.perf_counter() - request.state.start, 6)
