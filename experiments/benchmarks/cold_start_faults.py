"""A whole cold start by served models with faults, killed and out of budget: what is lost, or paid twice?

    python -m experiments.benchmarks.cold_start_faults --questions=10000

Mining, expert and review ask a local stand-in of a model service, of whose requests 30 % get a status
503, half an answer, nonsense, or nothing at all until the client gives up. Tools are a real server on a
made-up world. The run is killed (SIGKILL to its process group) while it mines and twice while the
expert works; then stopped by a budget of calls, then by one of money, then finished. The service keeps
an account of its own, with which the run's ledger is compared. Two cores: about 10 minutes.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import app, flags

from experiments.benchmarks.chat_service import (
    INPUT_USD,
    OUTPUT_USD,
    chat_service,
    code_of,
    is_hard,
    text_of,
)
from experiments.benchmarks.stand_ins import served
from sensesearch_jax.agent.trajectory import Question
from tools_server.launch import ToolServer

ROOT = Path(__file__).parents[2]
PICTURES = 8
FAULT_SHARE = 0.3


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


def pool(folder: Path, questions: int) -> list[Question]:
    """The questions."""
    pictures = [(str(folder / f'{i}.png'),) for i in range(PICTURES)]
    return [
        Question(f'q{i:05d}', text_of(i), pictures[i % PICTURES], (code_of(i),))
        for i in range(questions)
    ]


def run_once(folder: Path, settings: dict[str, Any]) -> None:
    """One start of the run, in this process."""
    from sensesearch_jax.config.checks import check_served
    from sensesearch_jax.config.resuming import may_change
    from sensesearch_jax.errors import UserError
    from sensesearch_jax.recipes.cold_start import cold_start
    from sensesearch_jax.recipes.session import load_tokenizer, open_session
    from sensesearch_jax.runtime.workdir import Workdir

    config = runpy.run_path(str(ROOT / 'configs' / 'cold_start.py'))['get_config']()
    config.tools.url = settings['tools']
    config.budget.update(settings['budget'])
    for stage in ('mine', 'expert', 'validate'):
        config[stage].update(
            kind='openai', url=settings['models'], model='stand-in', key_env='', attempts=8,
            timeout_s=settings['timeout_s'], retry_pause_s=0.02, input_usd=INPUT_USD,
            output_usd=OUTPUT_USD,
        )  # fmt: skip
    config.mine.update(most_right=1, threads=settings['threads'])
    config.expert.update(questions=settings['questions'], threads=settings['threads'])
    check_served(config)
    with (
        Workdir.open(folder / 'run', config.to_dict(), ignore=may_change(config)) as workdir,
        open_session(config, workdir) as session,
    ):
        try:
            cold_start(
                session, load_tokenizer('', config), None, pool(folder, settings['questions'])
            )
        except UserError as error:
            print(error, flush=True)
            sys.exit(2)


class Runs:
    """Starts of one run.

    Args:
        folder: of the world, the run and its output.
        settings: of all starts.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.starts = folder, settings, 0
        self.files = folder / 'run' / 'cold_start'

    def start(self, usd: float = 0.0, calls: int = 0) -> subprocess.Popen:
        """A start with a budget."""
        self.starts += 1
        settings = json.dumps(self.settings | {'budget': {'usd': usd, 'calls': calls}})
        with open(self.folder / 'output.txt', 'ab') as file:
            return subprocess.Popen(
                [sys.executable, '-m', __spec__.name, f'--run={settings}', f'--folder={self.folder}'],
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


def account(url: str) -> dict[str, Any]:
    """The service's own account."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def measure(
    folder: Path, questions: int, threads: int, timeout_s: float, kills: list[tuple[str, float]]
) -> dict[str, Any]:
    """The figures.

    Args:
        folder: an empty one.
        questions: in the pool.
        threads: requests at a time.
        timeout_s: of one attempt, in seconds.
        kills: file of the cold start, and share of its last length at which the run is killed.
    """
    began = time.monotonic()
    hard = sum(map(is_hard, range(questions)))
    config = write_world(folder, questions)
    with served(chat_service, FAULT_SHARE) as models, ToolServer.start(config, folder) as tools:
        settings = {
            'models': f'{models}/v1', 'tools': tools.url, 'questions': questions,
            'threads': threads, 'timeout_s': timeout_s,
        }  # fmt: skip
        runs = Runs(folder, settings)
        for name, share in kills:
            runs.kill_at(name, max(1, int(share * (questions if name == 'mined.jsonl' else hard))))
        # The requests that the killed run had sent are settled by the time the next one is over.
        calls = runs.spent()[0] + max(3, questions // 20)
        runs.finish(2, calls=calls)
        after_calls = account(models)['requests']
        usd = runs.spent()[1] * 1.05
        runs.finish(2, usd=usd)
        _, after_usd, dearest = runs.spent()
        runs.finish(0)
        theirs = account(models)
    ours, faults = runs.spent(), sum(theirs['faults'].values())
    mined, verdicts = runs.ids('mined.jsonl'), runs.ids('verdicts.jsonl')
    return {
        'questions': questions, 'hard': hard, 'starts': runs.starts, 'kills': len(kills),
        'seconds': round(time.monotonic() - began), 'requests': theirs['requests'],
        'faults': theirs['faults'], 'fault_share': faults / theirs['requests'],
        'lost': questions - len(set(mined)) + hard - len(set(verdicts)),
        'made_twice': len(mined) + len(verdicts) - len(set(mined)) - len(set(verdicts)),
        'kept': len(runs.read('kept.jsonl')), 'rejected': len(runs.read('rejected.jsonl')),
        'most_paid_for_one_request': theirs['paid_most'],
        'calls_beyond_budget': after_calls - calls, 'calls_not_in_ledger': theirs['requests'] - ours[0],
        'usd_beyond_budget': after_usd - usd, 'usd_of_the_dearest_call': dearest,
        'usd_of_the_ledger': ours[1], 'usd_of_whole_replies': theirs['usd'],
        'usd_of_all_that_was_begun': theirs['usd_begun'],
    }  # fmt: skip


QUESTIONS = flags.DEFINE_integer('questions', 10_000, 'Questions in the pool.')
THREADS = flags.DEFINE_integer('threads', 32, 'Requests at a time.')
TIMEOUT_S = flags.DEFINE_float('timeout_s', 6.0, 'Seconds of one attempt.')
FOLDER = flags.DEFINE_string('folder', None, 'Where all is written; a temporary one if not given.')
RUN = flags.DEFINE_string('run', None, 'Settings of one start, for the starts of this script.')
KILLS = [('mined.jsonl', 0.3), ('expert.jsonl', 0.2), ('expert.jsonl', 0.6)]


def main(_: list[str]) -> None:
    """Measures, or is one of the starts."""
    if RUN.value:
        run_once(Path(FOLDER.value), json.loads(RUN.value))
        return
    folder = Path(FOLDER.value or tempfile.mkdtemp(prefix='cold-start-'))
    print(f'Writing to {folder}', file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    found = measure(folder, QUESTIONS.value, THREADS.value, TIMEOUT_S.value, KILLS)
    for name, value in found.items():
        print(f'{name:28s} {value}')


if __name__ == '__main__':
    app.run(main)
