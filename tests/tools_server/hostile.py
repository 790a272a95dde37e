"""The tool server with attackers beside honest clients: what the honest ones notice.

    python tests/tools_server/hostile.py                  # ten minutes, 50 honest clients
    python tests/tools_server/hostile.py --minutes=1

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
import functools
import itertools
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import hostile_texts
import numpy as np
import picture_bombs
import psutil
import requests
from small_world import encoded, picture
from stand_ins import as_json, chat
from tool_clients import FACT, Clients, Outcome, in_threads, served, show, uploaded, verdict

from tools_server.launch import ToolServer

P99_S = 1.0
MOST_BYTES = 10**9
SPARE = 3  # descriptors and threads that may come and go by themselves
HOSTILE = 'hostile'  # begins every query, question and address of an attacker
COUNTED = ('descriptors', 'threads', 'processes')
PAUSE_S = 1.0  # between two calls of a client, in the mean
WARM_S = 20.0  # of peace, and of attack, before any is counted
QUIET_S = 15.0  # after the attack, before what is left is counted
PAGE = f'<html><body><p>{FACT}</p><p>It stands in Paris.</p></body></html>'.encode()
# Attacks by name, with how many attackers do each.
ATTACKERS = {'pages': 4, 'thumbnails': 2, 'pictures': 3, 'judged': 3, 'deep': 1, 'upload': 50}
ATTACKERS |= {'heads': 12}


def stand_ins(web: str) -> Mapping[str, Callable[[dict], tuple]]:
    """Serper, the web behind it at the same address, and a model."""
    rng = random.Random(0)
    pages = {f'/page/{n}': make() for n, make in enumerate(hostile_texts.PAGES.values())}
    bombs = {f'/bomb/{n}': make() for n, make in enumerate(picture_bombs.BOMBS.values())}
    links, snippets = list(hostile_texts.LINKS.values()), list(hostile_texts.SNIPPETS.values())
    replies = list(hostile_texts.REPLIES.values())

    def lens(_: dict) -> tuple:
        places = [web + path for path in bombs] + links
        thumbnails = [rng.choice(places) for _ in range(5)]
        results = [{'title': None, 'thumbnailUrl': address} for address in thumbnails]
        return as_json({'organic': results})({})

    def search(body: dict) -> tuple:
        if not body['q'].startswith(HOSTILE):
            found = {'title': body['q'], 'snippet': 'A tower.', 'link': web + '/page/good'}
            return as_json({'organic': [found]})(body)
        places = [web + path for path in pages] + links
        # Surrogates are written as escapes, which is how services send them.
        return as_json({'organic': [
            {'title': rng.choice(snippets)(), 'snippet': rng.choice(snippets)(), 'link': rng.choice(places)}
            for _ in range(5)
        ]})(body)  # fmt: skip

    def model(body: dict) -> tuple:
        hostile = HOSTILE in json.dumps(body['messages'][1]['content'])
        return chat(rng.choice(replies)())(body) if hostile else verdict(body)

    def file(content: bytes, kind: str) -> Callable[[dict], tuple]:
        return lambda _: (200, content, {'Content-Type': kind})

    return {
        '/lens': lens, '/search': search, '/v1/chat/completions': model, '/page/good': file(PAGE, 'text/html'),
        **{path: file(content, 'text/html') for path, content in pages.items()},
        **{path: file(content, 'image/jpeg') for path, content in bombs.items()},
    }  # fmt: skip


def attack(url: str, seconds: float) -> None:
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
    works = [work for work in kinds for _ in range(ATTACKERS[work.__name__])]
    in_threads(again, works, seconds + 20)


def honest(clients: Clients, count: int, seconds: float) -> list[Outcome]:
    """Calls of `count` clients that use the tools as a run does, with pauses of PAUSE_S in the mean."""
    end, outcomes, numbers = time.monotonic() + seconds, [], itertools.count()

    def client(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            time.sleep(rng.expovariate(1 / PAUSE_S))
            if time.monotonic() > end:
                return
            tool = rng.choice(('live', 'crop', 'text_search', 'judge'))
            outcomes.append(clients.send(clients.call(next(numbers), tool)))

    in_threads(client, range(count))
    return outcomes


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


def under_attack(
    server: ToolServer, seconds: float, clients: Callable[[float], list[Outcome]]
) -> tuple[list[Outcome], list[dict[str, int]]]:
    """Outcomes of the honest clients beside the attackers, and what is held every half second."""
    attackers = multiprocessing.Process(target=attack, args=(server.url, seconds), daemon=True)
    attackers.start()
    with ThreadPoolExecutor(1) as thread:
        run, samples = thread.submit(clients, seconds), []
        while not run.done():
            samples.append(held(server.process.pid))
            time.sleep(0.5)
    attackers.join(60)
    attackers.kill()
    attackers.join()
    return run.result(), samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--clients', type=int, default=50)
    options = parser.parse_args()
    long_s, os.environ['SERPER_API_KEY'] = 60 * options.minutes, 'k'
    short_s = min(WARM_S, long_s)
    with (
        served(stand_ins) as web,
        tempfile.TemporaryDirectory() as folder,
        ToolServer.start(configured(web), folder) as server,
    ):
        clients = Clients(server.url, encoded(picture(7)), 30)
        calls = functools.partial(honest, clients, options.clients)
        show('in peace', calls(short_s))
        left = []
        for seconds in (short_s, long_s, short_s):
            found = under_attack(server, seconds, calls)
            time.sleep(QUIET_S)
            left.append(held(server.process.pid))
            if len(left) == 2:
                outcomes, memory = found
        alive = server.alive()
    show('under attack', outcomes)
    p99 = float(np.quantile([o.seconds for o in outcomes], 0.99))
    lost = sum(o.outcome != 'ok' for o in outcomes)
    print(f'99th percentile {p99:.2f} s (bar {P99_S:g} s), lost or wrong {lost} (bar 0)')
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
