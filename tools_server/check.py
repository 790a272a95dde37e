"""`--check`: asks every configured back end something small, and says which work."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from tools_server.failures import ToolError
from tools_server.imaging import encode
from tools_server.limits import deadline
from tools_server.service import ToolService
from tools_server.tool import Reply


def check(service: ToolService, deadline_s: float) -> int:
    """Prints a line per tool; returns 0 if all that are configured work, else 1.

    Args:
        service: loaded. deadline_s: longest time of each call, in seconds.
    """
    return asyncio.run(_check(service, deadline_s))


async def _check(service: ToolService, deadline_s: float) -> int:
    picture = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    image = (await service.upload(picture)).value
    calls = {
        'crop': lambda: service.crop(image.sha256, (0.0, 0.0, 0.5, 0.5)),
        'text_search': lambda: service.text_search('capital of France', 1),
        'image_search': lambda: service.image_search(image.sha256, 1),
        # A response that no rule accepts, so that a model is really asked.
        'judge': lambda: service.judge('What is the capital of France?', ['Paris'], 'the city of Paris'),
    }
    failed = 0
    for tool, backend in sorted(service.backends().items()):
        if backend == 'none':
            print(f'{tool}: not configured')
            continue
        start = time.perf_counter()
        try:
            with deadline.within(deadline_s):
                reply: Reply = await calls[tool]()
        except ToolError as error:
            if service.mode in ('replay', 'offline') and backend in ('recording', 'cache'):
                print(f'{tool}: {backend}, answers what was kept')
                continue
            failed += 1
            print(f'{tool}: {backend} does NOT work ({error.kind}: {error.message})')
            continue
        print(f'{tool}: {reply.backend} works ({time.perf_counter() - start:.2f} s)')
    return 1 if failed else 0
