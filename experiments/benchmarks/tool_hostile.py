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
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import requests

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests' / 'tools_server'))

import hostile_texts
import picture_bombs
from small_world import encoded, picture

from experiments.benchmarks.stand_ins import Service, chat, served
from tools_server.launch import ToolServer

P99_S = 1.0
MOST_BYTES = 10**9
SPARE = 3  # descriptors and threads that may come and go by themselves
HOSTILE = 'hostile'  # begins every query, question and address of an attacker
COUNTED = ('descriptors', 'threads', 'processes')
QUIET_S = 15.0  # after the attack, before what is left is counted
PAGE = b'<html><body><p>The tower is 330 m high.</p><p>It stands in Paris.</p></body></html>'


def stand_ins() -> type[Service]:
    """Serper, the web behind it, and a model."""
    rng = random.Random(0)
    pages = {str(n): make() for n, make in enumerate(hostile_texts.PAGES.values())}
    bombs = {str(n): make() for n, make in enumerate(picture_bombs.BOMBS.values())}

    class Handler(Service):
        def do_GET(self) -> None:
            kind, _, name = self.path[1:].partition('/')
            content = {'page': pages, 'bomb': bombs}.get(kind, {}).get(name, PAGE)
            self.send(content, 'image/jpeg' if kind == 'bomb' else 'text/html')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            searches = {'/search': self._search, '/lens': self._lens}
            answer = searches.get(self.path, self._reply)
            self.send(json.dumps(answer(body)).encode(), 'application/json')

        def _search(self, body: dict) -> dict:
            if not body['q'].startswith(HOSTILE):
                found = {'title': body['q'], 'snippet': 'A tower.'}
                return {'organic': [found | {'link': self._address('page/good')}]}
            links = [self._address(f'page/{name}') for name in pages] + list(
                hostile_texts.LINKS.values()
            )
            snippets = list(hostile_texts.SNIPPETS.values())
            return {'organic': [
                {'title': rng.choice(snippets)(), 'snippet': rng.choice(snippets)(), 'link': rng.choice(links)}
                for _ in range(5)
            ]}  # fmt: skip

        def _lens(self, body: dict) -> dict:
            places = [self._address(f'bomb/{name}') for name in bombs] + list(
                hostile_texts.LINKS.values()
            )
            return {
                'organic': [{'title': None, 'thumbnailUrl': rng.choice(places)} for _ in range(5)]
            }

        def _reply(self, body: dict) -> dict:
            hostile = HOSTILE in json.dumps(body['messages'][1]['content'])
            reply = rng.choice(list(hostile_texts.REPLIES.values()))() if hostile else 'Yes'
            return chat(reply)

        def _address(self, path: str) -> str:
            return f'http://127.0.0.1:{self.server.server_address[1]}/{path}'

    # _search's surrogates are written as escapes, which is how services send them.
    return Handler


# Attacks by name, with how many attackers do each.
ATTACKERS = {'pages': 4, 'thumbnails': 2, 'pictures': 3, 'judged': 3, 'deep': 1, 'upload': 50}
ATTACKERS |= {'heads': 12}


def attack(url: str, seconds: float, names: list[str]) -> None:
    """The attacks side by side for so long; runs in a process of its own."""
    end = time.monotonic() + seconds
    rng = random.Random(1)
    numbers = itertools.count()
    bombs = [make() for make in picture_bombs.BOMBS.values()]
    responses = [make() for make in hostile_texts.RESPONSES.values()]
    good = uploaded(url, encoded(picture(9)))['sha256']
    host, port = url.removeprefix('http://').split(':')

    def post(path: str, **body: object) -> None:
        requests.post(url + path, headers={'X-Deadline-S': '10'}, timeout=30, **body)

    def pages() -> None:
        post('/text_search', json={'query': f'{HOSTILE} {next(numbers)} tower', 'top_k': 5})

    def thumbnails() -> None:
        left = rng.uniform(0, 0.5)
        part = {'image': good, 'bbox': [left, 0.0, left + 0.3, 0.9]}
        crop = requests.post(url + '/crop', json=part, timeout=30).json()
        post('/image_search', json={'image': crop['sha256'], 'top_k': 5})

    def pictures() -> None:
        uploaded(url, rng.choice(bombs) + b'%d' % next(numbers))

    def judged() -> None:
        response = rng.choice(responses)
        post('/judge', json={'question': f'{HOSTILE} {next(numbers)}', 'references': ['1 000', 'Paris'],
                             'response': response})  # fmt: skip

    def deep() -> None:
        requests.post(url + '/judge', data=b'[' * 4_000_000, timeout=30,
                      headers={'Content-Type': 'application/json'})  # fmt: skip

    def upload() -> None:
        """20 MB, so slowly that all of these are there at once."""
        with socket.create_connection((host, int(port)), 10) as connection:
            head = f'POST /images HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n'
            connection.sendall(f'{head}Content-Length: 20000000\r\n\r\n'.encode())
            for _ in range(40):
                connection.sendall(bytes(500_000))
                time.sleep(0.25)

    def heads() -> None:
        """Half a head on each of many connections, a byte now and then; some leave a body
        unfinished.
        """
        with contextlib.ExitStack() as stack:
            held = []
            for number in range(100):
                connection = stack.enter_context(socket.create_connection((host, int(port)), 10))
                length = (
                    b'Content-Type: application/json\r\nContent-Length: 900\r\n\r\n{'
                    if number % 2
                    else b''
                )
                connection.sendall(b'POST /judge HTTP/1.1\r\nHost: localhost\r\n' + length)
                held.append(connection)
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
    threads = [
        threading.Thread(target=again, args=(work,), daemon=True)
        for work in kinds
        for _ in range(ATTACKERS[work.__name__] if work.__name__ in names else 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end + 20 - time.monotonic()))


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
    """Clients that use the tools as a run does, and note how long each call took.

    Args:
        url: of the server. pause_s: mean time between two calls of a client, in seconds.
    """

    def __init__(self, url: str, pause_s: float):
        self._url, self._pause_s = url, pause_s
        self._image = uploaded(url, encoded(picture(7)))
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.problems: Counter[str] = Counter()

    def run(self, clients: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(number, end)) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int, end: float) -> None:
        rng, session = random.Random(number), requests.Session()
        for call in itertools.count():
            time.sleep(rng.expovariate(1 / self._pause_s))
            if time.monotonic() > end:
                return
            tool, body, right = self._call(rng, f'{number} {call}')
            start = time.monotonic()
            try:
                answer = session.request(
                    'POST' if body else 'GET', f'{self._url}/{tool}', json=body, timeout=60
                )
                good = answer.status_code == 200 and right(answer.json())
                if not good:
                    self.problems[f'{tool}: {answer.status_code} {answer.text[:120]}'] += 1
            except (requests.RequestException, ValueError) as error:
                self.problems[f'{tool}: {type(error).__name__}'] += 1
            self.seconds[tool].append(time.monotonic() - start)

    def _call(
        self, rng: random.Random, name: str
    ) -> tuple[str, dict | None, Callable[[dict], bool]]:
        kind = rng.choice(('live', 'crop', 'text_search', 'judge'))
        if kind == 'live':
            return kind, None, lambda answer: answer == {'live': True}
        if kind == 'crop':
            left = rng.uniform(0, 0.5)
            box = [left, 0.1, left + rng.uniform(0.2, 0.5), 0.9]
            return (
                kind,
                {'image': self._image['sha256'], 'bbox': box},
                lambda answer: answer['height'] == 216,
            )
        if kind == 'text_search':
            query = f'How high is the tower {name}?'
            return kind, {'query': query}, lambda answer: (
                answer['results'][0]['title'] == query and '330 m' in answer['results'][0]['text'])  # fmt: skip
        body = {'references': ['Paris'], 'response': 'the French capital'}
        return (
            kind,
            body | {'question': f'Which city {name}?'},
            lambda answer: answer['verdict'] is True,
        )


def family(process: int) -> list[int]:
    """A process and all that it started, as far as they live."""
    found = [process]
    for parent in found:
        with contextlib.suppress(OSError):
            children = Path(f'/proc/{parent}/task/{parent}/children').read_text().split()
            for task in Path(f'/proc/{parent}/task').iterdir():
                children += (task / 'children').read_text().split()
            found += sorted(set(map(int, children)) - set(found))
    return found


def held(process: int) -> dict[str, int]:
    """Bytes of memory (shared ones divided), descriptors, threads and processes of a process and
    its own.
    """
    sums = Counter({'bytes': 0, 'descriptors': 0, 'threads': 0, 'processes': 0})
    for member in family(process):
        with contextlib.suppress(OSError):
            status = Path(f'/proc/{member}/smaps_rollup').read_text()
            size = 1024 * int(status.partition('\nPss:')[2].split()[0])
            sums['bytes'] += size
            if member == process:
                sums['server_bytes'] = size
            sums['descriptors'] += len(os.listdir(f'/proc/{member}/fd'))
            sums['threads'] += len(os.listdir(f'/proc/{member}/task'))
            sums['processes'] += 1
    return dict(sums)


@contextlib.contextmanager
def watched(process: int) -> Iterator[list[dict[str, int]]]:
    """What a process and its own hold, every half second while the block runs."""
    samples, stop = [held(process)], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            samples.append(held(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        stop.set()
        watcher.join()


def show(title: str, honest: Honest) -> float:
    """Prints the calls of each tool; returns the 99th percentile of all, in seconds."""
    for tool, seconds in sorted(honest.seconds.items()):
        p50, p99 = np.quantile(seconds, (0.5, 0.99))
        print(f'{title} {tool:12} {len(seconds):6} calls, median {1e3 * p50:6.1f} ms, '
              f'99th percentile {1e3 * p99:7.1f} ms, slowest {max(seconds):6.2f} s')  # fmt: skip
    return float(np.quantile([s for seconds in honest.seconds.values() for s in seconds], 0.99))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--clients', type=int, default=50)
    parser.add_argument(
        '--pause_s', type=float, default=1.0, help='mean, between calls of a client'
    )
    parser.add_argument(
        '--warm_s', type=float, default=20.0, help='of attack before any is counted'
    )
    parser.add_argument('--attacks', nargs='+', choices=ATTACKERS, default=list(ATTACKERS))
    options = parser.parse_args()
    os.environ['SERPER_API_KEY'] = 'k'
    with (
        served(stand_ins) as web,
        tempfile.TemporaryDirectory() as folder,
        ToolServer.start(configured(web), folder) as server,
    ):
        process = server.process.pid
        quiet = Honest(server.url, options.pause_s)
        quiet.run(options.clients, options.warm_s)
        show('in peace:    ', quiet)
        warm = Honest(server.url, options.pause_s)
        under_attack(server.url, options.warm_s, options.attacks, warm, options.clients)
        time.sleep(QUIET_S)
        before = held(process)
        honest = Honest(server.url, options.pause_s)
        with watched(process) as memory:
            under_attack(server.url, 60 * options.minutes, options.attacks, honest, options.clients)
        time.sleep(QUIET_S)
        after = held(process)
        second = Honest(server.url, options.pause_s)
        under_attack(server.url, options.warm_s, options.attacks, second, options.clients)
        time.sleep(QUIET_S)
        last = held(process)
        p99 = show('under attack:', honest)
        count, lost = sum(map(len, honest.seconds.values())), sum(honest.problems.values())
        print(
            f'honest calls: {count}, 99th percentile {p99:.2f} s (bar {P99_S:g} s), lost or wrong {lost} (bar 0)'
        )
        for problem, times in honest.problems.most_common(5):
            print(f'  {times} × {problem}')
        most = max(memory, key=lambda sample: sample['bytes'])
        print(f'memory: highest {most["bytes"] / 1e6:.0f} MB (bar {MOST_BYTES / 1e6:.0f} MB), '
              f'{most["server_bytes"] / 1e6:.0f} MB of them the server itself, with {most["processes"] - 1} workers')  # fmt: skip  # noqa: E501
        counts = ', '.join(
            f'{name} {before[name]}, {after[name]}, {last[name]}' for name in COUNTED
        )
        print(f'before, after, and after a second attack: {counts}')
        left = any(last[name] > after[name] + SPARE for name in COUNTED)
        alive = server.alive()
    failed = p99 > P99_S or lost > 0 or most['bytes'] > MOST_BYTES or left or not alive
    print('a bar is NOT met' if failed else 'all bars are met')
    return int(failed)


def configured(web: str) -> dict:
    """The tool server's configuration with the stand-ins at `web`."""
    limits = {'attempts': 1, 'breaker_failures': 10**6}
    serper = {'backend': 'serper', 'base_url': web, 'allow_private_pages': True, 'limits': limits}
    return {
        'deadline_s': 30,
        'images': {
            'decoded_bytes': 128 * 2**20
        },  # without it, pictures alone may take half of the memory
        'text_search': serper | {'summariser': 'extractive'},
        'image_search': serper | {'public_url': 'https://tools.example'},
        'judge': {'backend': 'openai', 'base_url': web + '/v1', 'model': 'm', 'limits': limits},
    }


def under_attack(url: str, seconds: float, names: list[str], honest: Honest, clients: int) -> None:
    """The honest clients with the attackers beside them."""
    attackers = multiprocessing.Process(target=attack, args=(url, seconds, names), daemon=True)
    attackers.start()
    honest.run(clients, seconds)
    attackers.join(60)
    if attackers.is_alive():
        attackers.kill()
        attackers.join()


if __name__ == '__main__':
    sys.exit(main())
