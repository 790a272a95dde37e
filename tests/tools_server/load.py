"""The tool server under load, with services that fail: requests/s, p50 and p99 of each tool.

    python tests/tools_server/load.py                   # 10,000 requests, 64 clients, 30 % faults
    python tests/tools_server/load.py --requests=300    # a small one

Text search and judge ask local stand-ins (a retriever, an OpenAI-compatible server) that fail in a
share of calls: too slow, status 500 or 429, half an answer, nonsense. Crop and image search fail by
their callers: boxes out of range, unknown images. Every request is a new one, for image search in a
crop that is cut before the clock starts. The answers of all other tools tell which request they
answer, so that one lost, doubled or given to another is seen. Ends with status 1 where a bar is not
met: every request answered or failed with a kind, none more than 0.5 s beyond its deadline, memory
flat.

On a machine with 2 cores the clients take as much of them as the server does.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests
from small_world import encoded, picture
from tool_clients import FACT, KINDS, Clients, served, show, verdict

from tools_server.launch import ToolServer

GALLERY = Path(__file__).parents[2] / 'sensesearch_jax/pocket/world/files/gallery.jsonl'
SHARES = {'text_search': 0.4, 'judge': 0.3, 'crop': 0.25, 'image_search': 0.05}
DEADLINE_S, GRACE_S = 5.0, 0.5


def stand_ins(_: str, share: float) -> dict[str, Callable[[dict], tuple]]:
    """A retriever and a judge that fail in a share of calls."""
    rng = random.Random(0)

    def retrieved(body: dict) -> tuple:
        document = {'contents': f'{body["queries"][0]}\n{FACT}'}
        return 200, json.dumps({'result': [[{'document': document, 'score': 1.0}]]}).encode()

    def failing(right: Callable[[dict], tuple], body: dict) -> tuple:
        status, answer = right(body)
        faults = ('slow', '500', '429', 'half', 'nonsense')
        fault = rng.choice(faults) if rng.random() < share else None
        if fault == 'slow':
            time.sleep(DEADLINE_S + 2)
        if fault in ('500', '429'):
            return int(fault), answer
        if fault == 'half':
            return status, answer[: len(answer) // 2], {'Content-Length': str(len(answer))}
        return status, b'<html>it works!</html>' if fault == 'nonsense' else answer

    services = {'/retrieve': retrieved, '/v1/chat/completions': verdict}
    return {path: functools.partial(failing, right) for path, right in services.items()}


def configured(services: str) -> dict:
    """The tool server's configuration with the stand-ins at this address."""
    limits = {'concurrency': 64, 'retry_pause_s': 0.05, 'breaker_failures': 50}
    attempt = {'timeout_s': 0.3 * DEADLINE_S, 'limits': limits}
    return {
        'threads': 64,
        'text_search': {'backend': 'retriever', 'base_url': services} | attempt,
        'image_search': {'backend': 'local', 'gallery': str(GALLERY), 'upload_side': 640, 'min_share': 0.05,
                         'min_similarity': 0.93},
        'judge': {'backend': 'openai', 'base_url': services + '/v1', 'model': 'm'} | attempt,
    }  # fmt: skip


def measure(server: ToolServer, count: int, threads: int, faults: float) -> bool:
    """The tools mixed by their shares; prints what is seen.

    Args:
        server: the server.
        count: of the requests.
        threads: requests at a time.
        faults: share of crops and image searches that are sent wrong.

    Returns:
        whether a bar was missed.
    """
    rng, process = random.Random(1), psutil.Process(server.process.pid)
    clients = Clients(server.url, encoded(picture(0, 2160, 3840, (54, 96)), '.jpg'), DEADLINE_S)
    tools = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    calls = [clients.call(i, tool, rng.random() < faults) for i, tool in enumerate(tools)]
    before, start, outcomes, used = sum_of_calls(server.url), time.perf_counter(), [], []
    with ThreadPoolExecutor(threads) as pool:
        for outcome in pool.map(clients.send, calls):
            outcomes.append(outcome)
            used.append(process.memory_info().rss / 2**20)
    seconds, n = time.perf_counter() - start, len(outcomes)
    show(f'{n / seconds:.0f} requests a second', outcomes)
    # Calls refused before they reach a tool (a box out of range) are counted by the caller only.
    counted, refused = sum_of_calls(server.url) - before, sum(o[1] == 'caller' for o in outcomes)
    print(f'the server counted {counted} calls, and refused {refused} requests as wrong')
    lost = sum(o.outcome in ('lost', 'wrong') for o in outcomes)
    late = sum(o.seconds > DEADLINE_S + GRACE_S for o in outcomes)
    first, last = (float(np.median(part)) for part in (used[: n // 4], used[-n // 4 :]))
    print(f'memory of the server: {first:.0f} MiB in the first quarter, {last:.0f} in the last; '
          f'{lost} answers lost or wrong, {late} late')  # fmt: skip
    return lost > 0 or late > 0 or not n - refused <= counted <= n or last > 1.1 * first + 20


def sum_of_calls(url: str) -> int:
    """Calls that the server has counted."""
    calls = requests.get(url + '/statistics', timeout=30).json()['calls']
    return sum(n for tool in SHARES for name, n in calls[tool].items() if name in ('ok', *KINDS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--requests', type=int, default=10_000)
    parser.add_argument('--clients', type=int, default=64)
    parser.add_argument('--faults', type=float, default=0.3)
    options = parser.parse_args()
    with (
        served(stand_ins, options.faults) as services,
        tempfile.TemporaryDirectory() as folder,
        ToolServer.start(configured(services), folder) as server,
    ):
        failed = measure(server, options.requests, options.clients, options.faults)
    print('a bar is NOT met' if failed else 'all bars are met')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
