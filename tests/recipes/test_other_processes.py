"""Runs that are stopped go on in another number of processes, on another mesh, and end as one that was
left alone."""

import json
import signal
import time
from collections import Counter

import memorized
import numpy as np
import pytest
import toy_forks
import toy_runs
from safetensors.numpy import load_file
from torn_runs import differences

from sensesearch_jax.runtime.metrics import read_metrics
from sensesearch_jax.runtime.stopping import EXIT_AGAIN
from tools_server.launch import ToolServer

pytestmark = pytest.mark.slow

MEMBERS, STEPS, QUESTIONS = 3, 4, 4
SETTINGS = {
    'rl.members': MEMBERS,
    'rl.steps': STEPS,
    'rl.questions_per_step': QUESTIONS,
    'rl.sampling_rounds': 2,  # all groups have spread, so that the second one is never asked
    'rl.micro_batch': 2,
    'rl.checkpoint_every': 2,
    'rollout.groups': 1,
    'rollout.engines': 1,
    'rollout.extend_lanes': MEMBERS,  # whatever the tools' pace
    'rollout.suffix_capacity': 384,
    'rollout.warm_up': False,
}


@pytest.fixture(scope='module')
def runs(policy_folder, tmp_path_factory):
    """The folder of all runs, and a function that starts one of them in so many processes."""
    folder = tmp_path_factory.mktemp('runs')
    questions = toy_forks.write_questions(folder, 12)
    with ToolServer.start(toy_runs.TOOLS, folder / 'tools') as server:
        shared = SETTINGS | {'data.rl': questions, 'tools.url': server.url}

        def start(name, count, told='', **more):
            settings = shared | {key.replace('__', '.'): value for key, value in more.items()}
            if count > 1:
                settings |= {'multi_host': True, 'meet_timeout_s': 60.0, 'mesh.fsdp': count}
            output = folder / f'{name}.txt'
            environment = {'TOY_TOOLS_S': '0.1', 'TOY_TOLD': told}
            return toy_forks.start(
                folder / name, policy_folder, settings, output, count, **environment
            )

        yield folder, start


def end(processes, output, code=0):
    """Waits until all have ended, with this code."""
    for process in processes:
        process.join(120)
    assert {process.exitcode for process in processes} == {code}, output.read_text()[-3000:]


def trajectories(workdir):
    """Step, question and member of each trajectory on disk -> its lines, of all processes."""
    found = {}
    files = [
        file
        for folder in (workdir, workdir.with_name(f'{workdir.name}-process-1'))
        for file in folder.glob('rl/trajectories/*.jsonl')
    ]
    for file in files:
        data = file.read_bytes()
        for line in data[: data.rfind(b'\n') + 1].splitlines():
            value = json.loads(line)
            key = int(file.stem), value['question']['id'], value['member']
            found.setdefault(key, []).append(value)
    return found


def stop(processes, workdir, output, order, step):
    """Stops a run as soon as each process has a group of a step; the step, question and member of all
    trajectories of whole groups on disk."""

    def sampling():
        folders = [workdir, workdir.with_name(f'{workdir.name}-process-1')][: len(processes)]
        files = [folder / 'rl' / 'trajectories' / f'{step:05d}.jsonl' for folder in folders]
        return all(file.is_file() and file.stat().st_size for file in files)

    while not sampling():
        assert all(p.exitcode is None for p in processes), output.read_text()[-3000:]
        time.sleep(0.005)
    if order == signal.SIGKILL:
        for process in processes:
            process.kill()
        end(processes, output, -signal.SIGKILL)
    else:
        processes[-1].terminate()
        end(processes, output, EXIT_AGAIN)
    found = trajectories(workdir)
    sizes = Counter(key[:2] for key in found)
    return {key: value for key, value in found.items() if sizes[key[:2]] == MEMBERS}


def saved(stage):
    """Whether a stage has a checkpoint."""
    return any(path.name.isdigit() for path in (stage / 'checkpoints').glob('*'))


def distance(one, other):
    return np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one))


@pytest.fixture(scope='module')
def whole(runs):
    folder, start = runs
    end(start('whole', 1), folder / 'whole.txt')
    return folder / 'whole'


@pytest.mark.parametrize(
    'counts, orders',
    [((1, 2, 1), (signal.SIGKILL, signal.SIGTERM)), ((2, 1, 2), (signal.SIGTERM, signal.SIGKILL))],
)
def test_a_run_goes_on_in_another_number_of_processes(runs, whole, policy_folder, counts, orders):
    folder, start = runs
    torn = folder / 'torn-{}-{}-{}'.format(*counts)
    output, kept = folder / f'{torn.name}.txt', {}
    for count, order, step in zip(counts, orders, (1, 3)):
        kept |= stop(start(torn.name, count), torn, output, order, step)
    end(start(torn.name, counts[-1]), output)
    found, theirs = trajectories(torn), trajectories(whole)
    # Each is there once, also where it was sampled before a stop, in whichever process.
    assert {key: len(value) for key, value in found.items()} == dict.fromkeys(theirs, 1)
    assert Counter(step for step, *_ in found) == dict.fromkeys(range(STEPS), QUESTIONS * MEMBERS)
    assert all(found[key] == value for key, value in kept.items())
    for key, (trajectory,) in found.items():
        one, other = ([t['tokens'] for t in x['turns']] for x in (trajectory, *theirs[key]))
        assert one == other, key
    ours, theirs = (read_metrics(path / 'metrics.jsonl', 'rl') for path in (torn, whole))
    assert [r['step'] for r in ours] == [1, 2, 3, 4]
    for one, other in zip(ours, theirs, strict=True):
        for name in ('reward', 'turns', 'entropy', 'grad_norm'):
            assert one['values'][name] == pytest.approx(other['values'][name], rel=1e-4), name
    before, ours, theirs = (
        load_file(path / 'model.safetensors')
        for path in (policy_folder, torn / 'rl' / 'policy', whole / 'rl' / 'policy')
    )
    assert distance(ours, theirs) < 1e-4 * distance(before, theirs)


def test_two_processes_whose_steps_overlap_go_on(runs):
    """Killed while they sample a step, whose questions they have asked in the step before."""
    folder, start = runs
    settings = {'rl__max_staleness': 1, 'rl__importance': 'token', 'rl__checkpoint_every': 1}
    settings |= {'rl__minibatches': 2}
    torn, output = folder / 'overlap', folder / 'overlap.txt'
    kept = stop(start('overlap', 2, **settings), torn, output, signal.SIGKILL, 2)
    end(start('overlap', 2, **settings), output)
    found = trajectories(torn)
    assert Counter(step for step, *_ in found) == dict.fromkeys(range(STEPS), QUESTIONS * MEMBERS)
    assert all(found[key] == value for key, value in kept.items())
    records = read_metrics(torn / 'metrics.jsonl', 'rl')
    assert [record['step'] for record in records] == [1, 2, 3, 4]
    for name in ('importance_weight', 'importance_truncated', 'grad_norm'):
        assert all(np.isfinite(record['values'][name]) for record in records), name
    assert max(record['values']['staleness'] for record in records) > 0


def test_an_alarm_that_stops_a_run_stops_all_of_its_processes(runs):
    """It compares with steps that one process alone has made."""
    folder, start = runs
    fields = {
        'rl__checkpoint_every': 1,
        'rl__steps': 3,
        'alarms__window': 1,
        'alarms__reference': 1,
    }
    torn, output = folder / 'alarmed', folder / 'alarmed.txt'
    stop(start('alarmed', 1, **fields), torn, output, signal.SIGTERM, 1)
    stopped = start(
        'alarmed', 2, alarms__entropy_high=1e-3, alarms__stop_on="('entropy',)", **fields
    )
    end(stopped, output, 2)
    assert output.read_text().count('The alarm entropy stopped the run at step 2 of rl') == 2


@pytest.mark.parametrize('count', [1, 2])
def test_a_run_that_jaxs_preemption_service_stops_goes_on(runs, count):
    """The order comes while the run starts, to the last of its processes; the same command ends as if it
    had never come, bit for bit."""
    folder, start = runs
    left_alone, torn = folder / f'whole-{count}', folder / f'preempted-{count}'
    output = folder / f'{torn.name}.txt'
    end(start(left_alone.name, count, multi_host=True), folder / f'{left_alone.name}.txt')
    end(start(torn.name, count, told=str(count - 1), multi_host=True), output, EXIT_AGAIN)
    said = "stopped by jax's preemption service, and everything is saved; start the same command"
    assert output.read_text().count(said) == count
    assert [path.name for path in (torn / 'rl' / 'checkpoints').iterdir()] == ['1']
    end(start(torn.name, count, multi_host=True), output)
    assert not differences(folder, torn, left_alone)


@pytest.mark.parametrize('counts', [(1, 2), (2, 1)])
def test_sft_goes_on_in_another_number_of_processes(counts, policy_folder, tmp_path):
    """Four steps with a checkpoint behind the second, killed behind the third."""
    config, output = memorized.config_of_sft(), tmp_path / 'output.txt'
    loaded = memorized.load(policy_folder, config)
    kept, _ = memorized.write_memorized(tmp_path, loaded, config.agent.tools, 8, 0)
    with ToolServer.start(toy_runs.TOOLS, tmp_path / 'tools') as server:

        def start(name, count, **environment):
            settings = (
                memorized.FEW_STEPS
                | {'sft.batch': 2, 'sft.micro_batch': 2}
                | {'sft.data': kept, 'tools.url': server.url}
            )
            settings |= {'multi_host': True, 'mesh.fsdp': count} if count > 1 else {}
            workdir = tmp_path / name
            return toy_forks.start(
                workdir, policy_folder, settings, output, count, 'sft', **environment
            )

        end(start('whole', 1), output)
        processes, metrics = (
            start('torn', counts[0], TOY_STEPS='3'),
            tmp_path / 'torn/metrics.jsonl',
        )
        while len(read_metrics(metrics)) < 3 or not saved(tmp_path / 'torn' / 'sft'):
            assert all(p.exitcode is None for p in processes), output.read_text()[-3000:]
            time.sleep(0.05)
        for process in processes:
            process.kill()
        end(processes, output, -signal.SIGKILL)
        made = read_metrics(metrics)
        end(start('torn', counts[1]), output)
    ours, theirs = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('torn', 'whole'))
    assert [r['step'] for r in ours] == [1, 2, 3, 4] and ours[:2] == made[:2]
    for one, other in zip(ours, theirs, strict=True):
        assert one['values']['loss'] == pytest.approx(other['values']['loss'], rel=1e-5)
    before, ours, theirs = (
        load_file(path / 'model.safetensors')
        for path in (policy_folder, tmp_path / 'torn/sft/policy', tmp_path / 'whole/sft/policy')
    )
    assert distance(ours, theirs) < 1e-4 * distance(before, theirs)


def test_an_evaluation_goes_on_in_fewer_processes(policy_folder, tmp_path):
    """No sample is asked again, and all are in the files of the one that is left."""
    questions, output = toy_forks.write_questions(tmp_path, 8), tmp_path / 'output.txt'
    torn = tmp_path / 'torn'
    files = [tmp_path / name / 'evaluation' / 'policy.jsonl' for name in ('torn', 'torn-process-1')]
    with ToolServer.start(toy_runs.TOOLS, tmp_path / 'tools') as server:
        settings = {'data.eval': questions, 'tools.url': server.url, 'evaluate.lanes': 1}

        def start(count):
            more = {'multi_host': True, 'mesh.fsdp': count} if count > 1 else {}
            return toy_forks.start(
                torn, policy_folder, settings | more, output, count, 'evaluate', TOY_TOOLS_S='0.1'
            )

        processes = start(2)
        while not all(file.is_file() and file.stat().st_size for file in files):
            assert all(p.exitcode is None for p in processes), output.read_text()[-3000:]
            time.sleep(0.005)
        for process in processes:
            process.kill()
        end(processes, output, -signal.SIGKILL)
        kept = [line for file in files for line in file.read_bytes().splitlines(True)]
        kept = [line for line in kept if line.endswith(b'\n')]
        end(start(1), output)
    lines = files[0].read_bytes().splitlines(True)
    assert len(kept) < len(lines) == 8 and set(kept) < set(lines)
    assert len((torn / 'results.jsonl').read_text().splitlines()) == 8
