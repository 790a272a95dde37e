"""RL runs that are killed at random moments: each ends with the policy of a run in one go, bit for bit.

    python tests/shared/kills.py --folder=runs/kills --kills=200 --pair_kills=20 --store_kills=10

A toy policy (tests/shared/toy_policy.py) learns by RL, with tools whose answers take up to 0.3 s. Its
process gets SIGKILL at a moment drawn evenly from the processor time that an undisturbed run takes
(and up to 0.3 s later, since waits take none), and is started again, until the run is over; then
comes another run, until there were so many kills. Of two processes one is killed, and the other has to
end by itself and to name it. With a workdir in a store (--store=s3 or gs, both served here) the machine is
lost too: what it had on its disk is deleted.

FOLDER/kills.jsonl is the log, with which the same command goes on; once it has the undisturbed run,
commands with other seeds may run beside it. A fault is a policy or a step's
metrics that differ, a trajectory that is in a step twice, or a process that is left and does not end
well within a minute; where there was one, the exit code is 1. What happens to share a batch moves the
last bits of a rollout, with kills and without, so one group is sampled at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import sys
import time
from pathlib import Path

import fsspec
import psutil
import stores
import toy_forks
import toy_policy
import toy_runs
from absl import app, flags, logging
from torn_runs import differences, of_all

from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN
from sensesearch_jax.runtime.storage import is_address, local_folder
from tools_server.launch import ToolServer

FOLDER = flags.DEFINE_string('folder', 'runs/kills', 'Where everything is kept.')
KILLS = flags.DEFINE_integer('kills', 200, 'Kills of a run of one process.')
PAIR_KILLS = flags.DEFINE_integer('pair_kills', 20, 'Kills of one of two processes.')
STORE_KILLS = flags.DEFINE_integer('store_kills', 10, 'Kills of a run whose workdir is in a store.')
STORE = flags.DEFINE_enum('store', 's3', list(stores.STORES), 'What that store speaks.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

MINUTE, TOOLS_S, BUCKET, SAYS = 60.0, 0.3, 'runs', 'sensesearch_jax: '
SETTINGS = {
    'rl.steps': 4,
    'rl.questions_per_step': 2,
    'rl.micro_batch': 2,
    'rl.checkpoint_every': 2,
    'rollout.groups': 1,
    'rollout.engines': 1,
    # Every pass has all lanes and one length of the caches, whatever the tools' pace.
    'rollout.extend_lanes': 3,
    'rollout.suffix_capacity': 384,
    'rollout.warm_up': False,
}
PAIR = {'multi_host': True, 'meet_timeout_s': 45.0, 'mesh.fsdp': 2}


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    folder = Path(FOLDER.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= toy_runs.QUICK | {
        'TOY_TOOLS_S': str(TOOLS_S),
        # What one start compiled no other one does.
        'JAX_COMPILATION_CACHE_DIR': f'{folder}/compiled',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
    }
    if not (folder / 'questions.jsonl').exists():
        toy_policy.write_toy_policy(folder / 'policy')
        toy_forks.write_questions(folder, 12)
    with (
        stores.STORES[STORE.value]() as environment,
        ToolServer.start('configs/tools_pocket.yaml', folder / 'tools') as server,
    ):
        os.environ |= environment
        fsspec.filesystem(STORE.value).mkdir(BUCKET)
        settings = SETTINGS | {
            'data.rl': folder / 'questions.jsonl',
            'tools.url': server.url,
            'scratch': folder / 'scratch',
        }
        faults = [
            fault
            for kind, base, count, kills in (
                ('one process', str(folder), 1, KILLS.value),
                ('two processes', str(folder), 2, PAIR_KILLS.value),
                ('a workdir in a store', f'{STORE.value}://{BUCKET}', 1, STORE_KILLS.value),
            )
            if kills
            for fault in Study(folder, kind, base, count, settings).faults_of(kills)
        ]
    print('\n'.join(faults) or 'Every run ended as the undisturbed one, bit for bit.')
    sys.exit(bool(faults))


class Study:
    """Kills of runs of `count` processes in workdirs below `base`; its lines in the log have its kind."""

    def __init__(self, folder: Path, kind: str, base: str, count: int, settings: dict):
        self.folder, self.kind, self.base, self.count = folder, kind, base, count
        self.settings = settings | (PAIR if count > 1 else {})
        self.output, self.log = folder / f'{kind} {SEED.value}.txt', folder / 'kills.jsonl'
        self.whole = f'{base}/whole-{count}'
        lines = map(json.loads, self.log.read_text().splitlines() if self.log.exists() else ())
        # The undisturbed run is that of every seed.
        self.lines = [
            line
            for line in lines
            if line['of'] == kind and (line['seed'] == SEED.value or 'undisturbed_cpu_s' in line)
        ]

    def note(self, **values) -> None:
        self.lines.append({'of': self.kind, 'seed': SEED.value} | values)
        with open(self.log, 'a') as file:
            file.write(json.dumps(self.lines[-1]) + '\n')
        print(self.lines[-1], flush=True)

    def noted(self, name: str) -> list:
        return [line[name] for line in self.lines if name in line]

    def faults_of(self, kills: int) -> list[str]:
        """The faults of so many kills, those of earlier starts among them."""
        if not self.noted('undisturbed_cpu_s'):
            # The first start compiles; the second shows that undisturbed runs are alike at all.
            for workdir in (self.whole, f'{self.whole}-again'):
                seconds = self.end(self.begin(workdir))
            found = differences(self.folder, f'{self.whole}-again', self.whole)
            self.note(undisturbed_cpu_s=round(seconds, 1), faults=found)
        (seconds,) = self.noted('undisturbed_cpu_s')
        while (done := len(self.noted('kill'))) < kills or self.unfinished():
            run = len(self.noted('ended')) + 1
            torn = f'{self.base}/torn-{self.count}-{SEED.value}-{run}'
            chance = random.Random(f'{SEED.value} {self.kind} {run} {done}')
            processes, moment = self.begin(torn), chance.uniform(0, seconds)
            if done < kills:
                used, pause = used_until(processes, moment), chance.uniform(0, TOOLS_S)
            if done >= kills or all_end_within(processes, pause):
                self.end(processes)
                found = differences(self.folder, torn, self.whole)
                self.note(ended=run, faults=found)
                continue
            found = self.kill(processes, chance)
            self.note(
                run=run, kill=done + 1, at_cpu_s=round(used, 1), **self.progress(torn), **found
            )
            if is_address(torn):
                shutil.rmtree(self.folder / 'scratch', ignore_errors=True)
        return [f'{self.kind}: {fault}' for faults in self.noted('faults') for fault in faults]

    def unfinished(self) -> bool:
        return 'ended' not in self.lines[-1]

    def begin(self, workdir: str) -> list:
        policy = self.folder / 'policy'
        return toy_forks.start(workdir, policy, self.settings, self.output, self.count)

    def end(self, processes: list) -> float:
        """Processor seconds until they had ended well."""
        seconds = used_until(processes, math.inf)
        if any(process.exitcode for process in processes):
            sys.exit('A run failed: ' + self.output.read_text()[-3000:])
        return seconds

    def kill(self, processes: list, chance: random.Random) -> dict:
        """SIGKILL to one of them; how the other ended, if there is one, and what is wrong with that."""
        gone, said = chance.randrange(self.count), self.output.stat().st_size
        processes[gone].kill()
        processes[gone].join()
        if self.count == 1:
            return {}
        other, began = processes[1 - gone], time.monotonic()
        other.join(MINUTE)
        found = {
            'killed': gone,
            'code': other.exitcode,
            'after_s': round(time.monotonic() - began, 1),
        }
        other.kill()
        other.join()
        words = [
            line for line in self.output.read_bytes()[said:].decode().splitlines() if SAYS in line
        ]
        found['said'] = words[-1].partition(SAYS)[2].split(',')[0] if words else ''
        well = found['code'] == 0 or (
            found['code'] == EXIT_AGAIN and f'process {gone}' in found['said']
        )
        return found | (
            {} if well else {'faults': [f'the other process did not end well: {found}']}
        )

    def progress(self, workdir: str) -> dict:
        """Steps in the newest checkpoint, and trajectories of the step that is being made."""
        here = Path(workdir)
        if is_address(workdir):
            here = local_folder(workdir, f'{self.folder}/scratch')
        saved = [int(p.name) for p in (here / 'rl' / 'checkpoints').glob('*') if p.name.isdigit()]
        step = len(read_metrics(here / 'metrics.jsonl', 'rl'))
        files = (path / 'rl' / 'trajectories' / f'{step:05d}.jsonl' for path in of_all(here))
        sampled = sum(file.read_text().count('"turns"') for file in files if file.is_file())
        return {'saved': max(saved, default=0), 'made': step, 'sampled': sampled}


def used_until(processes: list, seconds: float) -> float:
    """Waits until they have used so much processor time or have ended; what they had used by then."""
    used: dict[int, float] = {}
    while sum(used.values()) < seconds and any(p.exitcode is None for p in processes):
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it has ended
                used[process.pid] = sum(psutil.Process(process.pid).cpu_times()[:2])
        time.sleep(0.01)
    return sum(used.values())


def all_end_within(processes: list, seconds: float) -> bool:
    time.sleep(seconds)
    return all(process.exitcode is not None for process in processes)


if __name__ == '__main__':
    app.run(main)
