"""RL runs that are killed at random moments: each ends with the policy of a run in one go, bit for bit.

    python tests/shared/kills.py --kills=200 --pair_kills=20 --store_kills=10

A toy policy (tests/shared/toy_policy.py) learns by RL, with tools whose answers take up to 0.3 s. Its
process gets SIGKILL at a moment drawn evenly from the time that an undisturbed run takes, and is
started again, until the run is over; then comes another run, until there were so many kills. Of two
processes one is killed, and the other has to end by itself. With a workdir in a store (moto, which
speaks S3) the machine is lost too: what it had on its disk is deleted. Exits with 1 if a policy or a
step's metrics differ, if a trajectory is in a step twice, or if a process that is left does not end
within a minute. What happens to share a batch moves the last bits of a rollout, with kills and
without, so one group is sampled at a time. On an idle core a kill takes about 5 s.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fsspec
import toy_forks
import toy_policy
import toy_runs
from absl import app, flags, logging
from moto.server import ThreadedMotoServer
from safetensors.numpy import load_file

from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN
from sensesearch_jax.runtime.storage import is_address, local_folder, local_input
from tools_server.launch import ToolServer

KILLS = flags.DEFINE_integer('kills', 200, 'Kills of a run of one process.')
PAIR_KILLS = flags.DEFINE_integer('pair_kills', 20, 'Kills of one of two processes.')
STORE_KILLS = flags.DEFINE_integer('store_kills', 10, 'Kills of a run whose workdir is in a store.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

MINUTE, BUCKET = 60.0, 'runs'
SETTINGS = {
    'rl.steps': 8,
    'rl.questions_per_step': 4,
    'rl.micro_batch': 2,
    'rl.checkpoint_every': 2,
    'rollout.groups': 1,
    'rollout.engines': 1,
    # Every pass has all lanes and one length of the caches, whatever the tools' pace.
    'rollout.extend_lanes': 3,
    'rollout.suffix_capacity': 384,
    'rollout.warm_up': False,
}
PAIR = {'multi_host': True, 'peer_timeout_s': 40.0, 'mesh.fsdp': 2}
# Of a step, without clocks and what depends on how much of it was still to be sampled.
COMPARED = 'loss', 'grad_norm', 'reward', 'turns', 'entropy', 'sampler_gap', 'trained_share'


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    logging.set_verbosity(logging.WARNING)
    store = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    store.start()
    os.environ |= toy_runs.QUICK | {
        'TOY_TOOLS_S': '0.3',
        'AWS_ENDPOINT_URL': 'http://{}:{}'.format(*store.get_host_and_port()),
        **dict.fromkeys(('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'), 'any'),
    }
    fsspec.filesystem('s3').mkdir(BUCKET)
    chance, faults = random.Random(SEED.value), []
    with (
        tempfile.TemporaryDirectory() as name,
        ToolServer.start('configs/tools_pocket.yaml', f'{name}/tools') as server,
    ):
        folder = Path(name)
        toy_policy.write_toy_policy(folder / 'policy')
        questions = toy_forks.write_questions(folder, 12)
        SETTINGS.update(
            {'data.rl': questions, 'tools.url': server.url, 'scratch': f'{name}/scratch'}
        )
        for title, base, count, kills in (
            ('One process', name, 1, KILLS.value),
            ('Two processes', name, 2, PAIR_KILLS.value),
            ('A workdir in a store', f's3://{BUCKET}', 1, STORE_KILLS.value),
        ):
            if kills:
                print(f'\n{title}.', flush=True)
                faults += study(folder, base, count, kills, chance)
    print('\n'.join(faults) or '\nEvery run ended as the undisturbed one, bit for bit.')
    sys.exit(bool(faults))


def study(folder: Path, base: str, count: int, kills: int, chance: random.Random) -> list[str]:
    """The faults of so many kills of runs of `count` processes in workdirs below `base`."""

    def begin(workdir):
        settings = SETTINGS | (PAIR if count > 1 else {})
        return toy_forks.start(workdir, folder / 'policy', settings, folder / 'output.txt', count)

    def end(processes):
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit('A run failed: ' + (folder / 'output.txt').read_text()[-3000:])

    whole, again = (f'{base}/whole-{count}{more}' for more in ('', '-again'))
    # The first start compiles; the second shows that undisturbed runs are alike at all.
    for workdir in (whole, again):
        began = time.monotonic()
        end(begin(workdir))
        seconds = time.monotonic() - began
    faults = differences(folder, again, whole)
    print('| kill | run | s after start | steps saved | sampled of the next | other process |')
    print('|---|---|---|---|---|---|', flush=True)
    done = runs = 0
    while done < kills:
        runs += 1
        torn = f'{base}/torn-{count}-{runs}'
        while True:
            processes, moment = begin(torn), chance.uniform(0, seconds)
            if done == kills or all_end_within(processes, moment):
                end(processes)
                break
            done += 1
            left, state = kill(processes, chance), progress(folder, torn)
            faults += [f'Kill {done}: {left}'] if 'not' in left else []
            print(f'| {done} | {runs} | {moment:.1f} | {state} | {left} |', flush=True)
            if is_address(torn):
                shutil.rmtree(folder / 'scratch', ignore_errors=True)
        found = differences(folder, torn, whole)
        faults += found
        print(f'Run {runs}: {"; ".join(found) or "the same policy"}.', flush=True)
    return faults


def all_end_within(processes: list, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(p.exitcode is None for p in processes):
        time.sleep(0.01)
    return all(process.exitcode is not None for process in processes)


def kill(processes: list, chance: random.Random) -> str:
    """SIGKILL to one of them; how the other ended, if there is one."""
    victim = chance.choice(processes)
    victim.kill()
    victim.join()
    began = time.monotonic()
    for other in (process for process in processes if process is not victim):
        other.join(MINUTE)
        code, after = other.exitcode, f'after {time.monotonic() - began:.0f} s'
        other.kill()
        return (
            f'code {code} {after}' if code in (0, EXIT_AGAIN) else f'not ended well: {code} {after}'
        )
    return ''


def progress(folder: Path, workdir: str) -> str:
    """Steps in the newest checkpoint, and trajectories of the step that is being made."""
    here = Path(workdir)
    if is_address(workdir):
        here = local_folder(workdir, f'{folder}/scratch')
    saved = [int(p.name) for p in (here / 'rl' / 'checkpoints').glob('*') if p.name.isdigit()]
    step = len(read_metrics(here / 'metrics.jsonl', 'rl'))
    file = here / 'rl' / 'trajectories' / f'{step:05d}.jsonl'
    return f'{max(saved, default=0)} | {file.read_text().count("turns") if file.is_file() else 0}'


def differences(folder: Path, torn: str, whole: str) -> list[str]:
    """Sentences on what a run has otherwise than the undisturbed one."""
    name, runs = Path(torn).name, [Path(local_input(w, f'{folder}/read')) for w in (torn, whole)]
    ours, theirs = (load_file(run / 'rl' / 'policy' / 'model.safetensors') for run in runs)
    other = [key for key in theirs if ours[key].tobytes() != theirs[key].tobytes()]
    steps, their_steps = (
        [[r['values'][key] for key in COMPARED] for r in read_metrics(run / 'metrics.jsonl', 'rl')]
        for run in runs
    )
    found = [f'{name}: {len(other)} of {len(theirs)} tensors differ'] if other else []
    found += [f'{name}: the metrics differ'] if steps != their_steps else []
    for file in runs[0].parent.glob(f'{runs[0].name}*/rl/trajectories/*.jsonl'):
        times = Counter((t['question']['id'], t['member']) for t in map(json.loads, file.open()))
        found += [f'{name}: {key} is twice in {file.name}' for key in times if times[key] > 1]
    return found


if __name__ == '__main__':
    app.run(main)
