"""`--check`: asks every configured back end something small, and says which work."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from tools_server.failures import ToolError
from tools_server.imaging import encode
from tools_server.limits import deadline
from tools_server.service import ToolService


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
    names = service.backends()
    summariser = getattr(service.backend('text_search'), 'summariser', None)
    if summariser is not None:
        # A search answers without it as well, with excerpts, so only a call of its own shows whether it works.
        names['summariser'] = summariser.name
        page = 'capital of France', 'The capital of France is Paris.', 200
        calls['summariser'] = lambda: asyncio.to_thread(summariser.summarise, *page)
    failed = 0
    for tool, backend in sorted(names.items()):
        if backend == 'none':
            print(f'{tool}: not configured')
            continue
        start = time.perf_counter()
        try:
            with deadline.within(deadline_s):
                await calls[tool]()
        except ToolError as error:
            if service.mode in ('replay', 'offline') and backend in ('recording', 'cache'):
                print(f'{tool}: {backend}, answers what was kept')
                continue
            failed += 1
            print(f'{tool}: {backend} does NOT work ({error.kind}: {error.message})')
            continue
        print(f'{tool}: {backend} works ({time.perf_counter() - start:.2f} s)')
    return 1 if failed else 0
