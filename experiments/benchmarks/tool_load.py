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
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from experiments.benchmarks.stand_ins import Service, chat, served
from tools_server.launch import ToolServer

GALLERY = (
    Path(__file__).parents[2] / 'sensesearch_jax' / 'pocket' / 'world' / 'files' / 'gallery.jsonl'
)
SHARES = {'text_search': 0.4, 'judge': 0.3, 'crop': 0.25, 'image_search': 0.05}
GRACE_S = 0.5
BINARY = {'Content-Type': 'application/octet-stream'}
KINDS = ('caller', 'refused', 'timeout', 'unavailable')


def stand_ins(share: float, slow_s: float) -> type[Service]:
    """A retriever and a judge that fail in a share of calls."""
    rng = random.Random(0)

    class Handler(Service):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            answer = json.dumps(self._right(body)).encode()
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
            reply = 'Yes' if number % 2 else 'No'
            return chat(reply)

    return Handler


@dataclass
class Call:
    """One request to come."""

    tool: str
    body: dict
    right: Callable[[dict], bool]  # whether an answer is one to exactly this request


@dataclass
class Outcome:
    """What became of one request, and after how many seconds."""

    tool: str
    outcome: str  # 'ok', a kind of failure, 'lost' or 'wrong'
    seconds: float


class Load:
    """Sends requests from many clients at once.

    Args:
        url: of the tool server.
        image: hash of an uploaded picture; width and height in pixels.
        deadline_s: of each request, which the server is told.
        faults: share of crops and image searches that are sent wrong.
    """

    def __init__(self, url: str, image: dict, deadline_s: float, faults: float):
        self._url = url
        self._image = image
        self._deadline_s = deadline_s
        self._faults = faults
        self._local = threading.local()

    def calls(self, tools: list[str], first: int) -> list[Call]:
        """One request per entry of `tools`, numbered from `first`; crops to search in are cut now."""
        return [self._call(number, tool) for number, tool in enumerate(tools, first)]

    def run(
        self, calls: list[Call], clients: int, watch=lambda: None
    ) -> tuple[list[Outcome], float]:
        """Sends the requests, `watch` is called now and then; returns outcomes and seconds in all."""
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        for call in calls:
            waiting.put(call)
        outcomes: list[Outcome] = []

        def client() -> None:
            while True:
                try:
                    call = waiting.get_nowait()
                except queue.Empty:
                    return
                outcomes.append(self._request(call))
                if len(outcomes) % 250 == 0:
                    watch()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes, time.perf_counter() - start

    def _request(self, call: Call) -> Outcome:
        session = getattr(self._local, 'session', None)
        if session is None:
            session = self._local.session = requests.Session()
        headers = {'X-Deadline-S': str(self._deadline_s)}
        start = time.perf_counter()
        try:
            address, wait = f'{self._url}/{call.tool}', self._deadline_s + 10
            answer = session.post(address, json=call.body, headers=headers, timeout=wait)
            content = answer.json()
        except (requests.RequestException, ValueError):
            return Outcome(call.tool, 'lost', time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if answer.status_code == 200:
            return Outcome(call.tool, 'ok' if call.right(content) else 'wrong', seconds)
        return Outcome(
            call.tool, content['kind'] if content.get('kind') in KINDS else 'lost', seconds
        )

    def _call(self, number: int, tool: str) -> Call:
        rng = np.random.default_rng(number)
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
            width = 100 + number % 1000  # with the height, different for each of a million numbers
            height = 100 + number // 1000 % 1000
            low = rng.uniform(0, 0.4, 2)
            high = low + (width / self._image['width'], height / self._image['height'])
            box = [*low, *(high + 5 if wrong else high)]
            body = {'image': self._image['sha256'], 'bbox': box}
            return Call(
                tool,
                body,
                lambda a: abs(a['width'] - width) <= 1 and abs(a['height'] - height) <= 1,
            )
        image = 'f' * 64 if wrong else self._part(rng)
        return Call(tool, {'image': image}, lambda a: len(a['results']) <= 5)

    def _part(self, rng: np.random.Generator) -> str:
        left, top = rng.uniform(0, 0.8, 2)
        body = {'image': self._image['sha256'], 'bbox': [left, top, left + 0.15, top + 0.15]}
        return requests.post(f'{self._url}/crop', json=body, timeout=60).json()['sha256']


def memory(url: str) -> float:
    """The server's resident memory, in MiB."""
    for line in requests.get(url + '/metrics', timeout=30).text.splitlines():
        if line.startswith('process_resident_memory_bytes'):
            return float(line.split()[1]) / 2**20
    return float('nan')


def show(name: str, outcomes: list[Outcome], seconds: float) -> None:
    if not outcomes:
        return
    p50, p99 = np.quantile([1e3 * o.seconds for o in outcomes], (0.5, 0.99))
    counts = ', '.join(
        f'{kind} {n}' for kind, n in sorted(Counter(o.outcome for o in outcomes).items())
    )
    print(
        f'{name:28}{len(outcomes):7}{len(outcomes) / seconds:9.0f}{p50:9.1f}{p99:9.1f}   {counts}',
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--requests', type=int, default=10_000, help='mixed ones, with faults')
    parser.add_argument(
        '--each', type=int, default=600, help='of each tool alone, without and with faults'
    )
    parser.add_argument('--clients', type=int, default=64)
    parser.add_argument('--faults', type=float, default=0.3)
    parser.add_argument('--deadline_s', type=float, default=5.0)
    options = parser.parse_args()

    noise = np.random.default_rng(0).integers(0, 256, (54, 96, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).resize((3840, 2160)).save(picture, 'JPEG', quality=92)
    print(f'{"":28}{"n":>7}{"n/s":>9}{"p50 ms":>9}{"p99 ms":>9}   answers')
    failed = False
    for faults in (0.0, options.faults):
        with running(faults, options.deadline_s) as url:
            image = requests.post(
                url + '/images', data=picture.getvalue(), headers=BINARY, timeout=30
            ).json()
            load, first = Load(url, image, options.deadline_s, faults), 0
            for tool in SHARES:
                calls = load.calls([tool] * options.each, first)
                outcomes, seconds = load.run(calls, options.clients)
                first += options.each
                show(f'{tool}, {faults:.0%} faults', outcomes, seconds)
                failed |= bad(outcomes, options.deadline_s)
            if faults:
                failed |= mixed(load, url, first, options)
    print('a bar is NOT met' if failed else 'all bars are met')
    return int(failed)


def mixed(load: Load, url: str, first: int, options: argparse.Namespace) -> bool:
    """The tools mixed by their shares, numbered from `first`; returns whether a bar was missed."""
    tools = random.Random(1).choices(list(SHARES), list(SHARES.values()), k=options.requests)
    calls, before = load.calls(tools, first), sum_of_calls(url)
    used: list[float] = []
    outcomes, seconds = load.run(calls, options.clients, lambda: used.append(memory(url)))
    show(f'all, {options.faults:.0%} faults', outcomes, seconds)
    # Calls refused before they reach a tool (a box out of range) are counted by the caller only.
    counted = sum_of_calls(url) - before
    refused = sum(o.outcome == 'caller' for o in outcomes)
    print(f'{len(outcomes)} of {len(calls)} answered; the server counted {counted}, '
          f'and refused {refused} requests as wrong')  # fmt: skip
    failed = len(outcomes) != len(calls) or not len(outcomes) - refused <= counted <= len(outcomes)
    if len(used) >= 4:
        start, end = np.median(used[: len(used) // 4]), np.median(used[-(len(used) // 4) :])
        print(
            f'memory of the server: {start:.0f} MiB in the first quarter, {end:.0f} MiB in the last'
        )
        failed |= bool(end > 1.1 * start + 20)
    return bad(outcomes, options.deadline_s) or failed


def bad(outcomes: list[Outcome], deadline_s: float) -> bool:
    """Whether an answer was lost, wrong or late; says so."""
    worst = max(o.seconds for o in outcomes)
    lost = sum(o.outcome in ('lost', 'wrong') for o in outcomes)
    if lost:
        print(f'  {lost} answers were lost or wrong')
    if worst > deadline_s + GRACE_S:
        print(f'  the slowest took {worst:.2f} s of {deadline_s:g} s')
    return bool(lost) or worst > deadline_s + GRACE_S


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


if __name__ == '__main__':
    sys.exit(main())
