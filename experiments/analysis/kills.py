"""RL runs that are killed at random moments: each ends with the policy of a run in one go, bit for bit.

    python -m experiments.analysis.kills --kills=200 --pair_kills=20

A toy policy (tests/shared/toy_policy.py) learns by RL, with a tool server whose answers take up to
0.3 s. Its process gets SIGKILL at a moment drawn evenly from the time that an undisturbed run takes,
and is started again, until the run is over; then comes another run, until there were so many kills.
Of two processes one is killed, and the other has to end by itself. Prints a line for every kill, and
exits with 1 if a policy or a step's metrics differ, if a trajectory is in a step twice, or if a
process that is left does not end within a minute. What happens to share a batch moves the last bits of a
rollout, with kills and without, so one group is sampled at a time. 2 cores: about 10 s a kill.
"""

from __future__ import annotations

import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from absl import app, flags
from safetensors.numpy import load_file

from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN

sys.path.insert(0, str(Path(__file__).parents[2] / 'tests' / 'shared'))
toy_policy, toy_runs = (importlib.import_module(name) for name in ('toy_policy', 'toy_runs'))

KILLS = flags.DEFINE_integer('kills', 200, 'Kills of a run of one process.')
PAIR_KILLS = flags.DEFINE_integer('pair_kills', 20, 'Kills of one of two processes.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

MINUTE = 60.0
SETTINGS = {
    'data.rl': toy_runs.pocket('validation', search=5, perception=3, search_only=2),
    'rl.steps': 8,
    'rl.questions_per_step': 4,
    'rl.micro_batch': 2,
    'rl.checkpoint_every': 2,
    'rollout.groups': 1,
    'rollout.engines': 1,
    # All lanes, and one length of the caches, in every pass: its shape does not hang on the tools' pace.
    'rollout.extend_lanes': 3,
    'rollout.suffix_capacity': 384,
    'rollout.warm_up': False,
}
PAIR = {'multi_host': True, 'peer_timeout_s': 10.0, 'mesh.fsdp': 2}
# Of a step, without clocks and what depends on how much of it was still to be sampled.
COMPARED = 'loss', 'grad_norm', 'reward', 'turns', 'entropy', 'sampler_gap', 'trained_share'


def main(_) -> None:
    chance, faults = random.Random(SEED.value), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toy_policy.write_toy_policy(folder / 'policy')
        for count, kills in ((1, KILLS.value), (2, PAIR_KILLS.value)):
            if kills:
                faults += study(folder, count, kills, chance)
    print('\n'.join(faults) or '\nEvery run ended as the undisturbed one, bit for bit.')
    sys.exit(bool(faults))


def study(folder: Path, count: int, kills: int, chance: random.Random) -> list[str]:
    """The faults of as many kills of runs of `count` processes; every kill is printed."""
    whole = folder / f'whole-{count}'
    # The first start fills the cache of compiled programs; the second shows that runs are alike at all.
    for again in (False, True):
        began = time.monotonic()
        wait_all(start(folder, whole.with_name(f'{whole.name}-again') if again else whole, count))
        seconds = time.monotonic() - began
    faults = differences(whole.with_name(f'{whole.name}-again'), whole)
    print(f'\n{count} process(es), undisturbed in {seconds:.0f} s.\n')
    print(
        '| kill | run | seconds after start | steps saved | trajectories of the next | the other process |'
    )
    print('|---|---|---|---|---|---|', flush=True)
    done = runs = 0
    while done < kills:
        runs += 1
        torn = folder / f'torn-{count}-{runs}'
        while done < kills:
            processes = start(folder, torn, count)
            moment = chance.uniform(0, seconds)
            if not ends_within(processes, moment):
                done += 1
                left, state = kill(processes, chance), progress(torn)
                faults += [f'Kill {done}: {left}'] if 'did not' in left else []
                print(f'| {done} | {runs} | {moment:.1f} | {state} | {left} |', flush=True)
            elif any(process.returncode for process in processes):
                sys.exit((folder / 'output.txt').read_text()[-3000:])
            else:
                break
        else:
            wait_all(start(folder, torn, count))
        faults += differences(torn, whole)
        print(f'Run {runs}: {"; ".join(faults) or "the same policy"}.', flush=True)
        for path in folder.glob(f'{torn.name}*'):
            shutil.rmtree(path)
    return faults


def start(folder: Path, workdir: Path, count: int) -> list[subprocess.Popen]:
    """The processes of a run; of two, when they have met."""
    settings, address = SETTINGS | (PAIR if count > 1 else {}), toy_runs.free_address()
    several = {
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(count),
        'JAX_NUM_CPU_DEVICES': '1',
    }
    processes = [
        toy_runs.start(
            'rl',
            workdir,
            folder / 'policy',
            settings,
            folder / 'output.txt',
            TOY_TOOLS_S='0.3',
            **(several | {'JAX_PROCESS_ID': str(i)} if count > 1 else {}),
        )
        for i in range(count)
    ]
    return processes


def ends_within(processes: list[subprocess.Popen], seconds: float) -> bool:
    """Whether all of them end in so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(process.poll() is not None for process in processes):
            return True
        time.sleep(0.01)
    return False


def wait_all(processes: list[subprocess.Popen]) -> None:
    """Waits for a good end of all of them."""
    if any(process.wait() for process in processes):
        sys.exit('An undisturbed run failed.')


def kill(processes: list[subprocess.Popen], chance: random.Random) -> str:
    """SIGKILL to one of them; how the others ended."""
    victim = chance.choice(processes)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    began, said = time.monotonic(), []
    for other in (process for process in processes if process is not victim):
        try:
            code = other.wait(MINUTE)
            well = 'ended' if code in (0, EXIT_AGAIN) else 'did not end well'
            said.append(f'{well}, code {code}, after {time.monotonic() - began:.0f} s')
        except subprocess.TimeoutExpired:
            other.kill()
            said.append('did not end within a minute')
    return ', '.join(said) or 'none'


def progress(workdir: Path) -> str:
    """Steps in the newest checkpoint, and trajectories of the first step behind it that is there."""
    saved = max(
        (int(p.name) for p in (workdir / 'rl' / 'checkpoints').glob('*') if p.name.isdigit()),
        default=0,
    )
    step = len(read_metrics(workdir / 'metrics.jsonl', 'rl'))
    file = workdir / 'rl' / 'trajectories' / f'{step:05d}.jsonl'
    return f'{saved} | {file.read_text().count(chr(10)) if file.is_file() else 0}'


def differences(torn: Path, whole: Path) -> list[str]:
    """Sentences on what a run has otherwise than the undisturbed one."""
    found = []
    ours, theirs = (load_file(run / 'rl' / 'policy' / 'model.safetensors') for run in (torn, whole))
    other = [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]
    if other or ours.keys() != theirs.keys():
        found.append(f'{torn.name}: the policy differs in {len(other)} of {len(theirs)} tensors')
    steps = [
        [
            {name: r['values'][name] for name in COMPARED}
            for r in read_metrics(run / 'metrics.jsonl', 'rl')
        ]
        for run in (torn, whole)
    ]
    if steps[0] != steps[1]:
        found.append(f'{torn.name}: the metrics differ')
    for file in sorted(torn.parent.glob(f'{torn.name}*/rl/trajectories/*.jsonl')):
        named = [(t['question']['id'], t['member']) for t in map(json.loads, file.open())]
        twice = [name for name, times in Counter(named).items() if times > 1]
        if twice:
            found.append(f'{torn.name}: {twice[0]} is twice in {file.name}')
    return found


if __name__ == '__main__':
    app.run(main)
