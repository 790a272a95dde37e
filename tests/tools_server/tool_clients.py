"""Clients of a tool server that is measured, and the stand-ins of services that it asks.

The clients' calls know their right answers, so that one lost, doubled or given to another is seen.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import requests
from stand_ins import StandIn, chat

FACT = 'The tower is 330 m high.'  # answers every text search, under the query as its title
KINDS = ('caller', 'refused', 'timeout', 'unavailable')
COLUMNS = ''.join(f'{name:>9}' for name in ('n', 'p50 ms', 'p99 ms', 'max ms'))


class Call(NamedTuple):
    """One request to come, a GET where it has no body; `right` knows the answer to exactly this one."""

    tool: str
    body: dict | None
    right: Callable[[dict], bool]


class Outcome(NamedTuple):
    """Fate of one request: 'ok', a kind of failure, 'lost' or 'wrong'; after how long."""

    tool: str
    outcome: str
    seconds: float


def verdict(body: dict) -> tuple:
    """A model's answer to the judge of a response that `Clients` sent: odd ones are right."""
    response = json.loads(body['messages'][1]['content'])['response']
    return chat('Yes' if int(response.rpartition(' ')[2]) % 2 else 'No')(body)


def _serve(make: Callable, address: multiprocessing.Queue, arguments: tuple) -> None:
    service = StandIn()
    service.answers = make(service.url, *arguments)
    address.put(service.url)
    threading.Event().wait()


@contextlib.contextmanager
def served(make: Callable, *arguments: object) -> Iterator[str]:
    """The address of a stand-in in a process of its own, while the block runs; `make(address,
    *arguments)` gives its answers.
    """
    address: multiprocessing.Queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=_serve, args=(make, address, arguments), daemon=True)
    process.start()
    try:
        yield address.get()
    finally:
        process.terminate()


def in_threads(work: Callable, arguments: Iterable, most_s: float = 1e6) -> None:
    """Calls `work` of each argument side by side, and waits for all of them, for so long at most."""
    end = time.monotonic() + most_s
    threads = [threading.Thread(target=work, args=(x,), daemon=True) for x in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def uploaded(url: str, data: bytes) -> dict:
    """The server's answer to an upload.

    Raises:
        requests.HTTPError: it was turned away.
    """
    headers = {'Content-Type': 'image/png', 'X-Deadline-S': '10'}
    answer = requests.post(url + '/images', data=data, headers=headers, timeout=30)
    answer.raise_for_status()
    return answer.json()


class Clients:
    """Clients of the server at `url`, each thread with a connection of its own, who crop `picture`
    and give every call `deadline_s` seconds.
    """

    def __init__(self, url: str, picture: bytes, deadline_s: float):
        self._url, self._deadline_s, self._local = url, deadline_s, threading.local()
        self._image = uploaded(url, picture)

    def call(self, number: int, tool: str, wrong: bool = False) -> Call:
        """The request of this number, a crop or image search `wrong` by its caller.

        An image search's crop is cut now. Numbers are each request's own, so that answers given to
        another are seen.
        """
        rng, image = np.random.default_rng(number), self._image
        if tool == 'live':
            return Call(tool, None, lambda a: a == {'live': True})
        if tool == 'text_search':
            query = f'How high is the tower {number}?'

            def found(a: dict) -> bool:
                return a['results'][0]['title'] == query and FACT in a['results'][0]['text']

            return Call(tool, {'query': query}, found)
        if tool == 'judge':
            body = {'question': f'q {number}', 'references': ['none of these']}
            body['response'] = f'response {number}'
            return Call(tool, body, lambda a: a['verdict'] is bool(number % 2))
        low, share = rng.uniform(0, 0.4, 2), rng.uniform(0.12, 0.6, 2)  # 28 pixels at least
        if tool == 'crop':
            size = share * (image['width'], image['height'])
            body = {'image': image['sha256'], 'bbox': [*low, *(low + share + 5 * wrong)]}
            return Call(tool, body, lambda a: np.abs(size - (a['width'], a['height'])).max() <= 1)
        body = {'image': image['sha256'], 'bbox': [*2 * low, *(2 * low + 0.15)]}
        part = requests.post(f'{self._url}/crop', json=body, timeout=60).json()['sha256']
        return Call(tool, {'image': 'f' * 64 if wrong else part}, lambda a: len(a['results']) <= 5)

    def send(self, call: Call) -> Outcome:
        """Sends a request and waits for its answer, well beyond its deadline."""
        if not hasattr(self._local, 'session'):
            self._local.session = requests.Session()
        method, address = 'POST' if call.body else 'GET', f'{self._url}/{call.tool}'
        how = {'headers': {'X-Deadline-S': str(self._deadline_s)}, 'timeout': self._deadline_s + 10}
        start = time.perf_counter()
        try:
            answer = self._local.session.request(method, address, json=call.body, **how)
            content = answer.json()
        except (requests.RequestException, ValueError):
            return Outcome(call.tool, 'lost', time.perf_counter() - start)
        seconds = time.perf_counter() - start
        if answer.status_code == 200:
            return Outcome(call.tool, 'ok' if call.right(content) else 'wrong', seconds)
        kind = content.get('kind')
        return Outcome(call.tool, kind if kind in KINDS else 'lost', seconds)


def show(title: str, outcomes: Sequence[Outcome]) -> None:
    """Prints a table: all outcomes, and those of each tool."""
    print(f'{title:28}{COLUMNS}   answers')
    for name in ('all', *sorted({o.tool for o in outcomes})):
        chosen = [o for o in outcomes if name in ('all', o.tool)]
        times = 1e3 * np.quantile([o.seconds for o in chosen], (0.5, 0.99, 1))
        said = ', '.join(f'{kind} {n}' for kind, n in Counter(o.outcome for o in chosen).items())
        numbers = f'{len(chosen):9}' + ''.join(f'{t:9.1f}' for t in times)
        print(f'  {name:26}{numbers}   {said}', flush=True)
