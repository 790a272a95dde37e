"""A whole cold start by served models with faults, killed and out of budget: what is lost, or paid twice?

    python tests/shared/cold_start_faults.py --questions=10000

Mining, expert and review ask a local stand-in of a model service, of whose requests 30 % get a status
503, half an answer, nonsense, or nothing at all until the client gives up. Tools are a real server on a
made-up world. The run is killed (SIGKILL to its process group) while it mines and twice while the
expert works; then stopped by a budget of calls, then by one of money, then finished. The service keeps
an account of its own, with which the run's ledger is compared. Two cores: about 10 minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import app, flags
from chat_stand_in import Request, chat_stand_in, completion

from sensesearch_jax.agent.actions import Answer, ImageCrop, TextSearch
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.cold_start.mining import PLAIN_SYSTEM
from sensesearch_jax.cold_start.review import INSTRUCTION
from tools_server.launch import ToolServer

ROOT = Path(__file__).parents[2]
PICTURES = 8
HARD, WRONG, ILLOGICAL = 5, 11, 13  # every so manieth thing (two in five are hard)
INPUT_USD, OUTPUT_USD = 0.3, 2.5  # for a million tokens
FAULT_SHARE = 0.3
# Shares of the faults: a status, half an answer, nonsense, and none until the client gives up.
FAULTS = {503: 0.35, 'cut': 0.3, b'<html>not now</html>': 0.25, 'late': 0.1}


def code_of(number: int) -> str:
    """The right answer to the question about a thing."""
    return f'K{number * 7919 % 100_003:05d}'


def is_hard(number: int) -> bool:
    """Whether plain answers are wrong."""
    return number % HARD < 2


def texts_of(messages: list[dict], choices: int) -> list[str]:
    """The replies of all choices, by the conversation alone."""
    system = messages[0]['content']
    number = int(re.search(r'code of thing (\d+)', json.dumps(messages[1]['content']))[1])
    if system == PLAIN_SYSTEM:
        return ['K' if is_hard(number) else code_of(number)] * choices
    if system == INSTRUCTION:
        holds = number % ILLOGICAL != 0
        review = {'format': True, 'logic': holds, 'answer': True, 'why': 'Seen by the stand-in.'}
        return [json.dumps(review)]
    written = sum(message['role'] == 'assistant' for message in messages)
    action = (
        ImageCrop((0.1, 0.1, 0.6, 0.6)),
        TextSearch(f'code of thing {number}'),
        Answer(code_of(number + (number % WRONG == 0))),
    )[written]
    return [DEFAULT.render_action('I look for the code of the thing, step by step.', action)]


class Models:
    """Replies of a model service that take `delay_s` seconds, with faults, and its own account."""

    def __init__(self, delay_s: float):
        self.delay_s, self._lock = delay_s, threading.Lock()
        self.requests, self.usd, self.usd_begun = 0, 0.0, 0.0
        self.faults: Counter[Any] = Counter()
        self._attempts: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()  # whole replies by request

    def reply(self, request: Request) -> Any:
        """The reply to an attempt, or a fault in its place."""
        key = hashlib.sha256(json.dumps(request.body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            self._attempts[key] += 1
            self.requests += 1
            draw = random.Random(f'{key} {self._attempts[key]}')
        time.sleep(self.delay_s)
        messages = request.body['messages']
        texts = texts_of(messages, request.body.get('n', 1))
        prompt, written = 200 + 100 * len(messages), 20 * len(texts)
        usd, fault = (prompt * INPUT_USD + written * OUTPUT_USD) / 1e6, None
        if draw.random() < FAULT_SHARE:
            fault = draw.choices(list(FAULTS), list(FAULTS.values()))[0]
        with self._lock:
            self.usd_begun += usd * (fault != 503)
            self.faults.update([fault] if fault else [])
            self.usd += usd * (not fault)
            self.paid[key] += not fault
        return fault or completion(*texts, prompt=prompt, written=written)


def write_world(folder: Path, questions: int) -> dict[str, Any]:
    """Pictures, passages with every thing's code, and a tool server's configuration for them."""
    for number in range(PICTURES):
        patches = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = cv2.resize(patches, (360, 270), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{number}.png'), picture)
    entry = {'id': '0', 'title': 'Picture 0', 'file': '0.png'}
    (folder / 'gallery.jsonl').write_text(json.dumps(entry))
    passages = (
        {'id': str(i), 'title': f'Thing {i}', 'text': f'The code of thing {i} is {code_of(i)}.'}
        for i in range(questions + 1)
    )
    (folder / 'passages.jsonl').write_text('\n'.join(map(json.dumps, passages)))
    return {
        'text_search': {'backend': 'local', 'passages': str(folder / 'passages.jsonl')},
        'image_search': {'backend': 'local', 'gallery': str(folder / 'gallery.jsonl')},
        'judge': {'backend': 'rules'},
    }


def write_pool(file: Path, questions: int) -> None:
    """The questions, in the plain format."""
    records = (
        {
            'id': f'q{i:05d}',
            'question': f'What is the code of thing {i}?',
            'image': f'{i % PICTURES}.png',
            'answer': code_of(i),
        }
        for i in range(questions)
    )
    file.write_text('\n'.join(map(json.dumps, records)))


def fields_of(
    models: str, tools: str, pool: Path, threads: int, timeout_s: float
) -> dict[str, Any]:
    """The config's fields of all starts."""
    served = {
        'kind': 'openai', 'url': models, 'model': 'stand-in', 'attempts': 8,
        'timeout_s': timeout_s, 'retry_pause_s': 0.02, 'input_usd': INPUT_USD, 'output_usd': OUTPUT_USD,
    }  # fmt: skip
    stages = ('mine', 'expert', 'validate')
    return {
        'data.train': pool, 'tools.url': tools, 'mine.most_right': 1, 'mine.threads': threads,
        'expert.threads': threads, 'expert.questions': 10**6,
        **{f'{stage}.{name}': value for stage in stages for name, value in served.items()},
    }  # fmt: skip


class Runs:
    """Starts of one run.

    Args:
        folder: of the run and its output.
        fields: of its config.
    """

    def __init__(self, folder: Path, fields: dict[str, Any]) -> None:
        self.folder, self.fields, self.starts = folder, fields, 0
        self.files = folder / 'run' / 'cold_start'

    def start(self, usd: float = 0.0, calls: int = 0) -> subprocess.Popen:
        """A start with a budget."""
        self.starts += 1
        fields = self.fields | {'budget.usd': usd, 'budget.calls': calls}
        with open(self.folder / 'output.txt', 'ab') as file:
            return subprocess.Popen(
                [
                    sys.executable, '-m', 'sensesearch_jax.main', '--config=configs/cold_start.py',
                    f'--workdir={self.folder / "run"}',
                    *(f'--config.{name}={value}' for name, value in fields.items()),
                ],
                cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | {'JAX_PLATFORMS': 'cpu'},
            )  # fmt: skip

    def kill_at(self, name: str, lines: int) -> None:
        """Starts, and kills once a file of the cold start has so many lines."""
        process = self.start()
        while not (self.files / name).is_file() or len(self.read(name)) < lines:
            if process.poll() is not None:
                raise RuntimeError(f'ended before it was killed, see {self.folder / "output.txt"}')
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def finish(self, code: int, **budget: float) -> None:
        """Starts, and waits for the end, which has to be with this exit code."""
        if self.start(**budget).wait() != code:
            raise RuntimeError(f'ended otherwise, see {self.folder / "output.txt"}')

    def read(self, name: str) -> list[bytes]:
        """Whole lines of a file of the cold start."""
        return (self.files / name).read_bytes().split(b'\n')[:-1]

    def ids(self, name: str) -> list[str]:
        """Of the questions in such a file."""
        return [json.loads(line)['id'] for line in self.read(name)]

    def spent(self) -> tuple[int, float, float]:
        """Calls, US dollars and the dearest call of the ledger."""
        costs = [line['usd'] for line in map(json.loads, self.read('ledger.jsonl')) if 'of' in line]
        return len(self.read('ledger.jsonl')) - len(costs), sum(costs), max(costs)


def measure(
    folder: Path,
    questions: int,
    threads: int,
    timeout_s: float,
    delay_s: float,
    kills: list[tuple[str, float]],
) -> dict[str, Any]:
    """The figures.

    Args:
        folder: an empty one.
        questions: in the pool.
        threads: requests at a time.
        timeout_s: of one attempt, in seconds.
        delay_s: that the service takes for an answer.
        kills: file of the cold start, and share of its last length at which the run is killed.
    """
    began = time.monotonic()
    hard = sum(map(is_hard, range(questions)))
    config = write_world(folder, questions)
    with chat_stand_in() as service, ToolServer.start(config, folder) as tools:
        models = Models(delay_s)
        service.replies = models.reply
        write_pool(folder / 'pool.jsonl', questions)
        fields = fields_of(service.url, tools.url, folder / 'pool.jsonl', threads, timeout_s)
        runs = Runs(folder, fields)
        for name, share in kills:
            runs.kill_at(name, max(1, int(share * (questions if name == 'mined.jsonl' else hard))))
        # The requests that the killed run had sent are settled by the time the next one is over.
        calls = runs.spent()[0] + max(3, questions // 20)
        runs.finish(2, calls=calls)
        after_calls = models.requests
        _, usd, dearest = runs.spent()
        usd += max(2 * dearest, 0.02 * usd)
        runs.finish(2, usd=usd)
        _, after_usd, dearest = runs.spent()
        runs.finish(0)
    ours = runs.spent()
    mined, verdicts = runs.ids('mined.jsonl'), runs.ids('verdicts.jsonl')
    return {
        'questions': questions, 'hard': hard, 'starts': runs.starts, 'kills': len(kills),
        'seconds': round(time.monotonic() - began), 'requests': models.requests,
        'faults': {str(fault): n for fault, n in models.faults.items()},
        'fault_share': models.faults.total() / models.requests,
        'lost': questions - len(set(mined)) + hard - len(set(verdicts)),
        'made_twice': len(mined) + len(verdicts) - len(set(mined)) - len(set(verdicts)),
        'kept': len(runs.read('kept.jsonl')), 'rejected': len(runs.read('rejected.jsonl')),
        'most_paid_for_one_request': max(models.paid.values()),
        'calls_beyond_budget': after_calls - calls, 'calls_not_in_ledger': models.requests - ours[0],
        'usd_beyond_budget': after_usd - usd, 'usd_of_the_dearest_call': dearest,
        'usd_of_the_ledger': ours[1], 'usd_of_whole_replies': models.usd,
        'usd_of_all_that_was_begun': models.usd_begun,
    }  # fmt: skip


QUESTIONS = flags.DEFINE_integer('questions', 10_000, 'Questions in the pool.')
FOLDER = flags.DEFINE_string('folder', None, 'Where all is written; a temporary one if not given.')
KILLS = [('mined.jsonl', 0.3), ('expert.jsonl', 0.2), ('expert.jsonl', 0.6)]


def main(_: list[str]) -> None:
    """Measures and prints."""
    folder = Path(FOLDER.value or tempfile.mkdtemp(prefix='cold-start-'))
    print(f'Writing to {folder}', file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    found = measure(folder, QUESTIONS.value, 32, 6.0, 0.0, KILLS)
    for name, value in found.items():
        print(f'{name:28s} {value}')


if __name__ == '__main__':
    app.run(main)
