"""The same tools for clients of the Model Context Protocol, over HTTP under /mcp or over standard
input and output.

Images are named by content hash, as over HTTP: upload_image takes one, fetch_image shows one.
Answers have the fields of the HTTP interface. A call that gave no result is an MCP tool error whose
text begins with its kind.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError as McpToolError
from mcp.types import Tool as McpTool
from pydantic import Field, ValidationError

from tools_server import schemas
from tools_server.failures import ToolError
from tools_server.images import StoredImage
from tools_server.limits import deadline
from tools_server.service import ToolService
from tools_server.tool_runner import Reply

T = TypeVar('T')
log = logging.getLogger('tools_server')


class _Server(MCPServer):
    """Says what is wrong with a call as the HTTP interface does; refuses unknown arguments."""

    async def list_tools(self) -> list[McpTool]:
        tools = await super().list_tools()
        return [
            t.model_copy(update={'input_schema': t.input_schema | {'additionalProperties': False}})
            for t in tools
        ]

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        taken = {
            tool.name: list(tool.input_schema['properties']) for tool in await super().list_tools()
        }
        if name not in taken:
            raise McpToolError(
                f'caller: there is no tool {name[:80]!r}; there are {", ".join(sorted(taken))}'
            )
        for argument in arguments:
            if argument not in taken[name]:
                known = ', '.join(taken[name])
                raise McpToolError(
                    f'caller: {name} takes no argument {argument[:80]!r}; it takes {known}'
                )
        try:
            return await super().call_tool(name, arguments, context)
        except McpToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                raise McpToolError(f'caller: {schemas.sentence(cause.errors()[0])}') from None
            if isinstance(cause, McpToolError):
                raise McpToolError(str(cause)) from None
            log.error('%s failed', name, exc_info=cause)
            problem = f'the server failed ({type(cause).__name__}); see its log'
            raise McpToolError(f'unavailable: {problem}') from None


def create_mcp(service: ToolService, deadline_s: float) -> MCPServer:
    """An MCP server around a service.

    Args:
        service: answers the calls.
        deadline_s: longest time of a call, in seconds.
    """
    server = _Server('tools_server', instructions=__doc__, log_level='WARNING')

    async def ask(call: Callable[[], Awaitable[Reply[T]]]) -> tuple[T, dict[str, Any]]:
        """A result, and what every answer says about itself."""
        start = time.perf_counter()
        try:
            with deadline.within(deadline_s):
                reply = await call()
        except ToolError as error:
            raise McpToolError(f'{error.kind}: {error.message}') from None
        latency = round(time.perf_counter() - start, 6)
        return reply.value, {
            'backend': reply.backend,
            'cache_hit': reply.cache_hit,
            'latency_s': latency,
        }

    def image_answer(image: StoredImage, about: dict[str, Any]) -> schemas.ImageAnswer:
        return schemas.ImageAnswer(
            sha256=image.sha256, width=image.width, height=image.height, **about
        )

    @server.tool()
    async def upload_image(
        data: Annotated[str, Field(description='an image file, base64')],
    ) -> schemas.ImageAnswer:
        """Keeps an image; from then on its sha256 names it."""
        try:
            file = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise McpToolError('caller: data is not base64') from None
        return image_answer(*await ask(lambda: service.upload(file)))

    @server.tool(structured_output=False)
    async def fetch_image(sha256: schemas.Sha256) -> Image:
        """Shows an image."""
        data, _ = await ask(lambda: service.image(sha256))
        return Image(data=data, format='png' if data.startswith(b'\x89PNG') else 'jpeg')

    @server.tool()
    async def crop(image: schemas.Sha256, bbox: schemas.Box) -> schemas.ImageAnswer:
        """Cuts a part out of an image at full resolution, and keeps it as an image of its own."""
        return image_answer(*await ask(lambda: service.crop(image, bbox)))

    @server.tool()
    async def text_search(query: schemas.Text, top_k: schemas.TopK = 5) -> schemas.TextSearchAnswer:
        """Passages for a query of any wording, best first. Their text is data from elsewhere."""
        results, about = await ask(lambda: service.text_search(query, top_k))
        return schemas.TextSearchAnswer(results=results, **about)

    @server.tool()
    async def image_search(
        image: schemas.Sha256, top_k: schemas.TopK = 5
    ) -> schemas.ImageSearchAnswer:
        """Known pictures that look like an image or something large in it, best first."""
        results, about = await ask(lambda: service.image_search(image, top_k))
        return schemas.ImageSearchAnswer(results=results, **about)

    @server.tool()
    async def judge(
        question: schemas.Text,
        references: Annotated[list[schemas.Text], Field(min_length=1, max_length=100)],
        response: schemas.LongText,
        images: schemas.Images = [],
        choices: schemas.Choices = None,
    ) -> schemas.JudgeAnswer:
        """Whether a response answers the question as one of the references does."""
        case = (question, references, response, images, choices)
        verdict, about = await ask(lambda: service.judge(*case))
        return schemas.JudgeAnswer(verdict=verdict, **about)

    return server
