"""The tool server with attackers beside honest clients: what the honest ones notice.

    python -m experiments.benchmarks.tool_hostile                  # ten minutes, 50 honest clients
    python -m experiments.benchmarks.tool_hostile --minutes=1

Web, judge and summariser are local stand-ins. For attackers' queries they give hostile pages,
snippets, links, thumbnails and replies; attackers also upload picture bombs and large files slowly,
send responses to judge that are made to take long, and half of a request's head, on many
connections. Ends with status 1 where a bar is not met: 99 % of honest calls below 1 s, none lost or
wrong, memory of the server and its workers below 1 GB at its highest, and nothing left behind: after
the attack, a second, shorter one of every kind adds no descriptor, thread or process. (Pools grow to
their size when they are first needed and keep it, so the first attack may add some.)

On a machine with 2 cores, clients and attackers take as much of them as the server does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests' / 'tools_server'))

import hostile_texts
import picture_bombs
from small_world import encoded, picture

from experiments.benchmarks.stand_ins import Service, chat, in_threads, served
from tools_server.launch import ToolServer

P99_S = 1.0
MOST_BYTES = 10**9
SPARE = 3  # descriptors and threads that may come and go by themselves
HOSTILE = 'hostile'  # begins every query, question and address of an attacker
COUNTED = ('descriptors', 'threads', 'processes')
QUIET_S = 15.0  # after the attack, before what is left is counted
PAGE = b'<html><body><p>The tower is 330 m high.</p><p>It stands in Paris.</p></body></html>'
# Attacks by name, with how many attackers do each.
ATTACKERS = {'pages': 4, 'thumbnails': 2, 'pictures': 3, 'judged': 3, 'deep': 1, 'upload': 50}
ATTACKERS |= {'heads': 12}


def stand_ins() -> type[Service]:
    """Serper, the web behind it, and a model."""
    rng = random.Random(0)
    pages = {f'/page/{n}': make() for n, make in enumerate(hostile_texts.PAGES.values())}
    bombs = {f'/bomb/{n}': make() for n, make in enumerate(picture_bombs.BOMBS.values())}
    links, snippets = list(hostile_texts.LINKS.values()), list(hostile_texts.SNIPPETS.values())
    replies = list(hostile_texts.REPLIES.values())

    class Handler(Service):
        def do_GET(self) -> None:
            kind = 'image/jpeg' if self.path in bombs else 'text/html'
            self.send((bombs | pages).get(self.path, PAGE), kind)

        def answer(self, body: dict) -> dict:
            web = f'http://127.0.0.1:{self.server.server_address[1]}'
            if self.path == '/lens':
                places = [web + path for path in bombs] + links
                thumbnails = [rng.choice(places) for _ in range(5)]
                return {'organic': [{'title': None, 'thumbnailUrl': t} for t in thumbnails]}
            if self.path != '/search':
                hostile = HOSTILE in json.dumps(body['messages'][1]['content'])
                return chat(rng.choice(replies)() if hostile else 'Yes')
            if not body['q'].startswith(HOSTILE):
                found = {'title': body['q'], 'snippet': 'A tower.', 'link': web + '/page/good'}
                return {'organic': [found]}
            places = [web + path for path in pages] + links
            return {'organic': [
                {'title': rng.choice(snippets)(), 'snippet': rng.choice(snippets)(), 'link': rng.choice(places)}
                for _ in range(5)
            ]}  # fmt: skip

        def do_POST(self) -> None:
            # Surrogates are written as escapes, which is how services send them.
            self.send(json.dumps(self.answer(self.body())).encode(), 'application/json')

    return Handler


def attack(url: str, seconds: float, names: list[str]) -> None:
    """The attacks side by side for so long; runs in a process of its own."""
    end, rng, numbers = time.monotonic() + seconds, random.Random(1), itertools.count()
    bombs = [make() for make in picture_bombs.BOMBS.values()]
    responses = [make() for make in hostile_texts.RESPONSES.values()]
    good = uploaded(url, encoded(picture(9)))['sha256']
    host, port = url.removeprefix('http://').split(':')

    def post(path: str, **body: object) -> requests.Response:
        return requests.post(url + path, timeout=30, **{'headers': {'X-Deadline-S': '10'}} | body)

    def pages() -> None:
        post('/text_search', json={'query': f'{HOSTILE} {next(numbers)} tower', 'top_k': 5})

    def thumbnails() -> None:
        left = rng.uniform(0, 0.5)
        crop = post('/crop', json={'image': good, 'bbox': [left, 0.0, left + 0.3, 0.9]}).json()
        post('/image_search', json={'image': crop['sha256'], 'top_k': 5})

    def pictures() -> None:
        uploaded(url, rng.choice(bombs) + b'%d' % next(numbers))

    def judged() -> None:
        body = {'question': f'{HOSTILE} {next(numbers)}', 'references': ['1 000', 'Paris']}
        post('/judge', json=body | {'response': rng.choice(responses)})

    def deep() -> None:
        post('/judge', data=b'[' * 4_000_000, headers={'Content-Type': 'application/json'})

    def connected() -> socket.socket:
        return socket.create_connection((host, int(port)), 10)

    def upload() -> None:
        """20 MB, so slowly that all of these are there at once."""
        with connected() as connection:
            head = f'POST /images HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n'
            connection.sendall(f'{head}Content-Length: 20000000\r\n\r\n'.encode())
            for _ in range(40):
                connection.sendall(bytes(500_000))
                time.sleep(0.25)

    def heads() -> None:
        """Half a head on each of many connections, a byte now and then; some leave a body
        unfinished.
        """
        body = b'Content-Type: application/json\r\nContent-Length: 900\r\n\r\n{'
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(connected()) for _ in range(100)]
            for number, connection in enumerate(held):
                head = b'POST /judge HTTP/1.1\r\nHost: localhost\r\n'
                connection.sendall(head + (body if number % 2 else b''))
            for _ in range(10):
                time.sleep(1)
                for connection in held:
                    with contextlib.suppress(OSError):
                        connection.sendall(b' ' if random.random() < 0.5 else b'X')

    def again(work: Callable[[], None]) -> None:
        while time.monotonic() < end:
            try:
                work()
            except (OSError, ValueError, KeyError):
                time.sleep(0.2)  # turned away, which is right

    kinds = pages, thumbnails, pictures, judged, deep, upload, heads
    chosen = [work for work in kinds if work.__name__ in names]
    works = [work for work in chosen for _ in range(ATTACKERS[work.__name__])]
    in_threads(again, works, seconds + 20)


def uploaded(url: str, data: bytes) -> dict:
    """The server's answer to an upload.

    Raises:
        requests.HTTPError: it was turned away.
    """
    headers = {'Content-Type': 'image/png', 'X-Deadline-S': '10'}
    answer = requests.post(url + '/images', data=data, headers=headers, timeout=30)
    answer.raise_for_status()
    return answer.json()


class Honest:
    """Clients that use the tools as a run does, and note how long each call took; `pause_s` is the
    mean time between two calls of a client, in seconds.
    """

    def __init__(self, url: str, pause_s: float):
        self._url, self._pause_s = url, pause_s
        self._image = uploaded(url, encoded(picture(7)))['sha256']
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.problems: Counter[str] = Counter()

    def run(self, clients: int, seconds: float) -> Honest:
        end = time.monotonic() + seconds
        in_threads(lambda number: self._client(number, end), range(clients))
        return self

    def _client(self, number: int, end: float) -> None:
        rng, session = random.Random(number), requests.Session()
        for call in itertools.count():
            time.sleep(rng.expovariate(1 / self._pause_s))
            if time.monotonic() > end:
                return
            tool, body, right = self._call(rng, f'{number} {call}')
            start, method = time.monotonic(), 'POST' if body else 'GET'
            try:
                answer = session.request(method, f'{self._url}/{tool}', json=body, timeout=60)
                if answer.status_code != 200 or not right(answer.json()):
                    self.problems[f'{tool}: {answer.status_code} {answer.text[:120]}'] += 1
            except (requests.RequestException, ValueError) as error:
                self.problems[f'{tool}: {type(error).__name__}'] += 1
            self.seconds[tool].append(time.monotonic() - start)

    def _call(
        self, rng: random.Random, name: str
    ) -> tuple[str, dict | None, Callable[[dict], bool]]:
        left, query = rng.uniform(0, 0.5), f'How high is the tower {name}?'
        box = [left, 0.1, left + rng.uniform(0.2, 0.5), 0.9]
        judged = {'question': f'Which city {name}?', 'references': ['Paris']}
        judged |= {'response': 'the French capital'}

        def found(answer: dict) -> bool:
            first = answer['results'][0]
            return first['title'] == query and '330 m' in first['text']

        return rng.choice((
            ('live', None, lambda answer: answer == {'live': True}),
            ('crop', {'image': self._image, 'bbox': box}, lambda answer: answer['height'] == 216),
            ('text_search', {'query': query}, found),
            ('judge', judged, lambda answer: answer['verdict'] is True),
        ))  # fmt: skip


def held(server: int) -> dict[str, int]:
    """Bytes of memory (shared ones divided), descriptors, threads and processes of the server and
    all that it started.
    """
    sums: Counter[str] = Counter()
    for process in (psutil.Process(server), *psutil.Process(server).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            size = process.memory_full_info().pss
            sums.update(bytes=size, server_bytes=size * (process.pid == server), processes=1)
            sums.update(descriptors=process.num_fds(), threads=process.num_threads())
    return dict(sums)


def show(title: str, honest: Honest) -> float:
    """Prints the calls of each tool; returns the 99th percentile of all, in seconds."""
    for tool, seconds in sorted(honest.seconds.items()):
        p50, p99 = np.quantile(seconds, (0.5, 0.99))
        print(f'{title} {tool:12} {len(seconds):6} calls, median {1e3 * p50:6.1f} ms, '
              f'99th percentile {1e3 * p99:7.1f} ms, slowest {max(seconds):6.2f} s')  # fmt: skip
    return float(np.quantile(sum(honest.seconds.values(), []), 0.99))


def under_attack(
    server: ToolServer, seconds: float, options: argparse.Namespace
) -> tuple[Honest, list[dict[str, int]]]:
    """The honest clients with the attackers beside them, and what is held every half second."""
    honest, given = Honest(server.url, options.pause_s), (server.url, seconds, options.attacks)
    attackers = multiprocessing.Process(target=attack, args=given, daemon=True)
    attackers.start()
    with ThreadPoolExecutor(1) as clients:
        run, samples = clients.submit(honest.run, options.clients, seconds), []
        while not run.done():
            samples.append(held(server.process.pid))
            time.sleep(0.5)
    attackers.join(60)
    attackers.kill()
    attackers.join()
    return honest, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--minutes', type=float, default=10.0)
    add('--clients', type=int, default=50)
    add('--pause_s', type=float, default=1.0, help='mean, between calls of a client')
    add('--warm_s', type=float, default=20.0, help='of attack before any is counted')
    add('--attacks', nargs='+', choices=ATTACKERS, default=list(ATTACKERS))
    options = parser.parse_args()
    os.environ['SERPER_API_KEY'] = 'k'
    with (
        served(stand_ins) as web,
        tempfile.TemporaryDirectory() as folder,
        ToolServer.start(configured(web), folder) as server,
    ):
        quiet = Honest(server.url, options.pause_s).run(options.clients, options.warm_s)
        show('in peace:    ', quiet)
        left = []
        for seconds in (options.warm_s, 60 * options.minutes, options.warm_s):
            found = under_attack(server, seconds, options)
            time.sleep(QUIET_S)
            left.append(held(server.process.pid))
            if len(left) == 2:
                honest, memory = found
        alive = server.alive()
    p99 = show('under attack:', honest)
    count, lost = sum(map(len, honest.seconds.values())), sum(honest.problems.values())
    print(f'honest calls: {count}, 99th percentile {p99:.2f} s (bar {P99_S:g} s), lost or wrong {lost} (bar 0)')  # fmt: skip  # noqa: E501
    for problem, times in honest.problems.most_common(5):
        print(f'  {times} × {problem}')
    most = max(memory, key=lambda sample: sample['bytes'])
    print(f'memory: highest {most["bytes"] / 1e6:.0f} MB (bar {MOST_BYTES / 1e6:.0f} MB), '
          f'{most["server_bytes"] / 1e6:.0f} MB of them the server itself, with {most["processes"] - 1} workers')  # fmt: skip  # noqa: E501
    counts = ', '.join(f'{name} {", ".join(str(x[name]) for x in left)}' for name in COUNTED)
    print(f'before, after, and after a second attack: {counts}')
    more = any(left[2][name] > left[1][name] + SPARE for name in COUNTED)
    failed = p99 > P99_S or lost > 0 or most['bytes'] > MOST_BYTES or more or not alive
    print('a bar is NOT met' if failed else 'all bars are met')
    return int(failed)


def configured(web: str) -> dict:
    """The tool server's configuration with the stand-ins at `web`."""
    limits = {'attempts': 1, 'breaker_failures': 10**6}
    serper = {'backend': 'serper', 'base_url': web, 'allow_private_pages': True, 'limits': limits}
    return {
        'deadline_s': 30,
        'images': {'decoded_bytes': 128 * 2**20},  # else pictures may take half of the memory
        'text_search': serper | {'summariser': 'extractive'},
        'image_search': serper | {'public_url': 'https://tools.example'},
        'judge': {'backend': 'openai', 'base_url': web + '/v1', 'model': 'm', 'limits': limits},
    }


if __name__ == '__main__':
    sys.exit(main())
