"""The tool server under load: requests/s, p50 and p99 of each tool, alone and with injected faults.

    python -m experiments.benchmarks.tool_load                             # 10,000 mixed, 64 clients, 30 % faults
    python -m experiments.benchmarks.tool_load --requests=300 --each=40    # a small one

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
import contextlib
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image

from experiments.benchmarks.stand_ins import Service, chat, served
from tools_server.launch import ToolServer

GALLERY = Path(__file__).parents[2] / 'sensesearch_jax/pocket/world/files/gallery.jsonl'
SHARES = {'text_search': 0.4, 'judge': 0.3, 'crop': 0.25, 'image_search': 0.05}
GRACE_S = 0.5
BINARY = {'Content-Type': 'application/octet-stream'}
KINDS = ('caller', 'refused', 'timeout', 'unavailable')


def stand_ins(share: float, slow_s: float) -> type[Service]:
    """A retriever and a judge that fail in a share of calls."""
    rng = random.Random(0)

    class Handler(Service):
        def do_POST(self) -> None:
            answer = json.dumps(self._right(self.body())).encode()
            faults = ('slow', '500', '429', 'half', 'nonsense')
            fault = rng.choice(faults) if rng.random() < share else None
            if fault == 'slow':
                time.sleep(slow_s)
            status = int(fault) if fault in ('500', '429') else 200
            answer = b'<html>it works!</html>' if fault == 'nonsense' else answer
            self.send(answer, 'application/json', status, half=fault == 'half')

        def _right(self, body: dict) -> dict:
            if self.path == '/retrieve':
                document = {'contents': f'{body["queries"][0]}\na text'}
                return {'result': [[{'document': document, 'score': 1.0}]]}
            number = int(json.loads(body['messages'][1]['content'])['response'].rpartition(' ')[2])
            return chat('Yes' if number % 2 else 'No')

    return Handler


class Call(NamedTuple):
    """One request to come, and whether an answer is one to exactly this request."""

    tool: str
    body: dict
    right: Callable[[dict], bool]


class Outcome(NamedTuple):
    """Fate of one request: 'ok', a kind of failure, 'lost' or 'wrong'; after how long."""

    outcome: str
    seconds: float


class Load:
    """Sends requests from many clients at once to the server at `url`; the command line tells their
    deadline, and `faults` what share of crops and image searches is sent wrong.
    """

    def __init__(self, url: str, options: argparse.Namespace, faults: float):
        self._url, self._options, self._faults = url, options, faults
        self._local = threading.local()
        noise = np.random.default_rng(0).integers(0, 256, (54, 96, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((3840, 2160)).save(file, 'JPEG', quality=92)
        sent = requests.post(url + '/images', data=file.getvalue(), headers=BINARY, timeout=30)
        self._image = sent.json()

    def run(
        self, calls: Sequence[Call], watch: Callable = lambda: None
    ) -> tuple[list[Outcome], float]:
        """Sends the requests, `watch` is called now and then; returns outcomes and seconds in all."""
        start, outcomes = time.perf_counter(), []
        with ThreadPoolExecutor(self._options.clients) as clients:
            for outcome in clients.map(self._request, calls):
                outcomes.append(outcome)
                if len(outcomes) % 250 == 0:
                    watch()
        return outcomes, time.perf_counter() - start

    def _request(self, call: Call) -> Outcome:
        if not hasattr(self._local, 'session'):
            self._local.session = requests.Session()
        deadline, start = self._options.deadline_s, time.perf_counter()
        how = {'headers': {'X-Deadline-S': str(deadline)}, 'timeout': deadline + 10}
        try:
            answer = self._local.session.post(f'{self._url}/{call.tool}', json=call.body, **how)
            content = answer.json()
        except (requests.RequestException, ValueError):
            return Outcome('lost', time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if answer.status_code == 200:
            return Outcome('ok' if call.right(content) else 'wrong', seconds)
        kind = content.get('kind')
        return Outcome(kind if kind in KINDS else 'lost', seconds)

    def call(self, number: int, tool: str) -> Call:
        """The request of this number; the crop to search in is cut now."""
        rng, image = np.random.default_rng(number), self._image
        wrong = bool(rng.random() < self._faults)
        if tool == 'text_search':
            query = f'query {number}'
            return Call(
                tool, {'query': query}, lambda a: [r['title'] for r in a['results']] == [query]
            )
        if tool == 'judge':
            body = {'question': f'q {number}', 'references': ['none of these']}
            body['response'] = f'response {number}'
            return Call(tool, body, lambda a: a['verdict'] is bool(number % 2))
        if tool == 'crop':
            # Width and height are together different for each of a million numbers.
            size = np.array((100 + number % 1000, 100 + number // 1000 % 1000))
            low = rng.uniform(0, 0.4, 2)
            high = low + size / (image['width'], image['height']) + 5 * wrong
            body = {'image': image['sha256'], 'bbox': [*low, *high]}
            return Call(tool, body, lambda a: np.abs(size - (a['width'], a['height'])).max() <= 1)
        left, top = rng.uniform(0, 0.8, 2)
        body = {'image': image['sha256'], 'bbox': [left, top, left + 0.15, top + 0.15]}
        part = requests.post(f'{self._url}/crop', json=body, timeout=60).json()['sha256']
        return Call(tool, {'image': 'f' * 64 if wrong else part}, lambda a: len(a['results']) <= 5)


def memory(url: str) -> float:
    """The server's resident memory, in MiB."""
    for line in requests.get(url + '/metrics', timeout=30).text.splitlines():
        if line.startswith('process_resident_memory_bytes'):
            return float(line.split()[1]) / 2**20
    return float('nan')


def show(name: str, outcomes: list[Outcome], seconds: float, deadline_s: float) -> bool:
    """Prints a line of the table; returns whether an answer was lost, wrong or late."""
    p50, p99, worst = np.quantile([o.seconds for o in outcomes], (0.5, 0.99, 1))
    counts = Counter(o.outcome for o in outcomes)
    said = ', '.join(f'{kind} {n}' for kind, n in sorted(counts.items()))
    n = len(outcomes)
    print(f'{name:28}{n:7}{n / seconds:9.0f}{1e3 * p50:9.1f}{1e3 * p99:9.1f}   {said}', flush=True)
    if lost := counts['lost'] + counts['wrong']:
        print(f'  {lost} answers were lost or wrong')
    if late := worst > deadline_s + GRACE_S:
        print(f'  the slowest took {worst:.2f} s of {deadline_s:g} s')
    return bool(lost or late)


def mixed(load: Load, url: str, first: int, options: argparse.Namespace) -> bool:
    """The tools mixed by their shares, numbered from `first`; returns whether a bar was missed."""
    tools = random.Random(1).choices(list(SHARES), list(SHARES.values()), k=options.requests)
    calls, before = [load.call(*pair) for pair in enumerate(tools, first)], sum_of_calls(url)
    used: list[float] = []
    outcomes, seconds = load.run(calls, lambda: used.append(memory(url)))
    failed = show(f'all, {options.faults:.0%} faults', outcomes, seconds, options.deadline_s)
    # Calls refused before they reach a tool (a box out of range) are counted by the caller only.
    counted, n = sum_of_calls(url) - before, len(outcomes)
    refused = sum(o.outcome == 'caller' for o in outcomes)
    print(f'{n} of {len(calls)} answered; the server counted {counted}, '
          f'and refused {refused} requests as wrong')  # fmt: skip
    failed |= n != len(calls) or not n - refused <= counted <= n
    if quarter := len(used) // 4:
        start, end = np.median(used[:quarter]), np.median(used[-quarter:])
        print(f'memory of the server: {start:.0f} MiB in the first quarter, {end:.0f} in the last')
        failed |= bool(end > 1.1 * start + 20)
    return failed


def sum_of_calls(url: str) -> int:
    calls = requests.get(url + '/statistics', timeout=30).json()['calls']
    return sum(n for tool in SHARES for name, n in calls[tool].items() if name in ('ok', *KINDS))


@contextlib.contextmanager
def running(faults: float, deadline_s: float) -> Iterator[str]:
    """The address of a tool server whose services fail in a share of calls."""
    with served(stand_ins, faults, deadline_s + 2) as url, tempfile.TemporaryDirectory() as folder:
        limits = {'concurrency': 64, 'retry_pause_s': 0.05, 'breaker_failures': 50}
        attempt = {'timeout_s': 0.3 * deadline_s, 'limits': limits}
        config = {
            'threads': 64,
            'text_search': {'backend': 'retriever', 'base_url': url} | attempt,
            'image_search': {'backend': 'local', 'gallery': str(GALLERY), 'upload_side': 640, 'min_share': 0.05,
                             'min_similarity': 0.93},
            'judge': {'backend': 'openai', 'base_url': url + '/v1', 'model': 'm'} | attempt,
        }  # fmt: skip
        with ToolServer.start(config, folder) as server:
            yield server.url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--requests', type=int, default=10_000, help='mixed ones, with faults')
    add('--each', type=int, default=600, help='of each tool alone, without and with faults')
    add('--clients', type=int, default=64)
    add('--faults', type=float, default=0.3)
    add('--deadline_s', type=float, default=5.0)
    options = parser.parse_args()
    print(f'{"":28}{"n":>7}{"n/s":>9}{"p50 ms":>9}{"p99 ms":>9}   answers')
    failed = False
    for faults in (0.0, options.faults):
        with running(faults, options.deadline_s) as url:
            load, first = Load(url, options, faults), 0
            for tool in SHARES:
                calls = [load.call(first + i, tool) for i in range(options.each)]
                outcomes, seconds = load.run(calls)
                first += options.each
                name = f'{tool}, {faults:.0%} faults'
                failed |= show(name, outcomes, seconds, options.deadline_s)
            failed |= bool(faults) and mixed(load, url, first, options)
    print('a bar is NOT met' if failed else 'all bars are met')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
