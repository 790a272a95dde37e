"""A run that is killed again and again ends as if nothing had happened."""

import json
import signal
import subprocess
import time

import numpy as np
import pytest
import toy_runs
from safetensors.numpy import load_file

from sensesearch_jax.runtime.metrics import read_metrics

SETTINGS = {
    'tools.config': 'configs/tools_pocket.yaml',  # the expert finds what it looks for
    'data.train': toy_runs.pocket('train', search=3, perception=1, search_only=1),
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'data.eval': toy_runs.pocket('test', search=1),
    'mine.samples': 2,
    'mine.answer_tokens': 4,
    'sft.batch': 2,
    'sft.micro_batch': 1,
    'sft.epochs': 3,
    'sft.checkpoint_every': 2,
    'rl.steps': 3,
    'rl.questions_per_step': 2,
    'rl.micro_batch': 1,
    'rl.checkpoint_every': 2,
    'evaluate.lanes': 2,
}


def lines(path):
    return path.read_text().count('\n') if path.is_file() else 0


def steps(workdir, stage):
    return len(read_metrics(workdir / 'metrics.jsonl', stage))


# When the process is killed, in the order in which a run comes by.
PAST_CHECKPOINTS = {
    'in SFT, past its checkpoint': lambda w: steps(w, 'sft') >= 3,
    'in RL, past its checkpoint': lambda w: lines(w / 'rl' / 'trajectories' / '00002.jsonl') >= 1,
}
BEFORE_CHECKPOINTS = {
    'while the expert works': lambda w: lines(w / 'cold_start' / 'expert.jsonl') >= 2,
    'while the first groups are sampled': lambda w: (
        lines(w / 'rl' / 'trajectories' / '00000.jsonl') >= 1
    ),
}


def trajectories(path):
    """By question and member, without clocks and what rounding moves."""
    found = {}
    for line in path.read_text().splitlines():
        value = json.loads(line)
        for turn in value['turns']:
            (turn['observation'] or {}).pop('latency_s', None)
            del turn['log_probs']
        value['question'].pop('images')
        key = value['question']['id'], value['member']
        assert key not in found, f'{key} is in {path} twice'
        found[key] = value
    return found


@pytest.fixture(scope='module')
def whole(policy_folder, tmp_path_factory):
    """The folder of a run in one go."""
    folder = tmp_path_factory.mktemp('whole')
    output = folder / 'output.txt'
    toy_runs.finish(
        toy_runs.start('pocket', folder / 'run', policy_folder, SETTINGS, output), output
    )
    return folder / 'run'


@pytest.mark.parametrize(
    'moments',
    [
        pytest.param(PAST_CHECKPOINTS, id='past checkpoints'),
        pytest.param(BEFORE_CHECKPOINTS, id='before checkpoints', marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_stage(moments, whole, policy_folder, tmp_path):
    """Each step and trajectory is there once, and the policies are those of a run in one go."""
    output, torn = tmp_path / 'output.txt', tmp_path / 'torn'

    def start(workdir):
        return toy_runs.start('pocket', workdir, policy_folder, SETTINGS, output)

    for moment, reached in moments.items():
        process = start(torn)
        while not reached(torn):
            assert process.poll() is None, (
                f'ended before it was killed {moment}: {output.read_text()[-3000:]}'
            )
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (torn / 'summary.json').exists()
    toy_runs.finish(start(torn), output)

    for stage in ('sft', 'rl'):
        ours, theirs = (read_metrics(folder / 'metrics.jsonl', stage) for folder in (torn, whole))
        assert (
            [r['step'] for r in ours]
            == [r['step'] for r in theirs]
            == list(range(1, 1 + len(theirs)))
        )
        assert len(theirs) > 2
        for one, other in zip(ours, theirs, strict=True):
            for name in (
                'loss',
                'entropy',
                'grad_norm',
                *(['reward', 'turns'] if stage == 'rl' else []),
            ):
                assert one['values'][name] == pytest.approx(
                    other['values'][name], rel=1e-3, abs=1e-6
                ), (stage, name)

    before = load_file(policy_folder / 'model.safetensors')
    for stage in ('sft', 'rl'):
        ours, theirs = (
            load_file(folder / stage / 'policy' / 'model.safetensors') for folder in (torn, whole)
        )
        assert ours.keys() == theirs.keys() == before.keys()

        def distance(one, other):
            return np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one))

        # Rounding differs with what happened to share a batch, nothing else; and there was
        # something to lose. Taken over all parameters: Adam makes steps of full size out of
        # gradients that are themselves only rounding.
        assert distance(ours, theirs) < 1e-2 * distance(theirs, before), stage
        assert distance(theirs, before) > 1e-1
        before = theirs

    files = sorted(
        p.relative_to(whole)
        for part in ('rl/trajectories', 'evaluation', 'cold_start')
        for p in (whole / part).glob('*.jsonl')
        if p.name not in ('mined.jsonl', 'turns.jsonl', 'verdicts.jsonl')
    )
    assert len(files) == 3 + 4 + 3
    called = set()
    for file in files:
        ours, theirs = trajectories(torn / file), trajectories(whole / file)
        assert ours == theirs, file
        called |= {turn['action']['type'] for value in theirs.values() for turn in value['turns']}
    assert {'TextSearch', 'ImageSearch', 'ImageCrop', 'Answer', 'FormatError'} <= called
    runs = [json.loads((folder / 'summary.json').read_text())['runs'] for folder in (torn, whole)]
    assert runs[0].keys() == runs[1].keys() == {'base', 'sft', 'rl', 'rl without crop'}
    assert (torn / 'report.html').stat().st_size > 10_000


def test_the_tool_servers_of_killed_runs_end_themselves(tmp_path):
    """Whatever a killed run left behind is gone soon after."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [
            line
            for line in subprocess.run(
                ['ps', '-eo', 'args'], capture_output=True, text=True
            ).stdout.split('\n')
            if '-m tools_server' in line and str(tmp_path.parent / 'test_killed') in line
        ]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)
