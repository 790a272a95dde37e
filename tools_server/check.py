"""`--check`: asks every configured back end something small, and says which work and what came
back.

The back ends themselves are called: an answer that is kept somewhere says nothing about them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import numpy as np

from tools_server import degraded
from tools_server.failures import ToolError
from tools_server.images import StoredImage
from tools_server.limits import deadline
from tools_server.pictures.encode import encode
from tools_server.schemas import Match, Passage
from tools_server.service import ToolService

QUESTION = 'What is the capital of France?'
MOST_CHARS = 60  # of what came back, in a line


def check(service: ToolService, deadline_s: float) -> int:
    """Prints a line per tool; returns 0 if all that are configured work, else 1.

    Args:
        service: loaded.
        deadline_s: longest time of each call, in seconds.
    """
    return asyncio.run(_check(service, deadline_s))


async def _check(service: ToolService, deadline_s: float) -> int:
    picture = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    image = (await service.upload(picture)).value
    names = service.backends()
    half = image.sha256, (0.0, 0.0, 0.5, 0.5)
    calls: dict[str, Callable[[], str]] = {'crop': lambda: _size(service.images.crop(*half)[0])}
    if (text := service.backend('text_search')) is not None:
        calls['text_search'] = lambda: _found(text.search('capital of France', 1))
        summariser = getattr(text, 'summariser', None)
        if summariser is not None:
            # A search answers without it as well, with excerpts, so only a call of its own shows
            # whether it works.
            names['summariser'] = summariser.name
            page = 'capital of France', 'The capital of France is Paris.', 200
            calls['summariser'] = lambda: _shown(summariser.summarise(*page))
    if (pictures := service.backend('image_search')) is not None:
        calls['image_search'] = lambda: _found(pictures.search(image, 1))
    if (judge := service.backend('judge')) is not None:
        # A response that no rule accepts, so that a model is really asked.
        case = QUESTION, ['Paris'], 'the city of Paris', ()
        calls['judge'] = lambda: 'says Yes' if judge.judge(*case) else 'says No'
    failed = 0
    for tool, backend in sorted(names.items()):
        if backend == 'none':
            print(f'{tool}: not configured')
            continue
        if tool not in calls:  # in a replay, or offline
            print(f'{tool}: {backend}, answers what was kept')
            continue
        start = time.perf_counter()
        try:
            with deadline.within(deadline_s), degraded.collected() as lacking:
                came_back = await asyncio.to_thread(calls[tool])
        except ToolError as error:
            failed += 1
            print(f'{tool}: {backend} does NOT work ({error.kind}: {error.message})')
            continue
        in_part = f'; in part only: {"; ".join(lacking.reasons)}' if lacking.reasons else ''
        print(
            f'{tool}: {backend} works ({time.perf_counter() - start:.2f} s): {came_back}{in_part}'
        )
    return 1 if failed else 0


def _size(image: StoredImage) -> str:
    return f'{image.width}×{image.height} pixels'


def _found(results: Sequence[Passage] | Sequence[Match]) -> str:
    return f'found {_shown(results[0].title)}' if results else 'found nothing'


def _shown(text: str) -> str:
    return repr(text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + '…')
