"""A run whose tools are switched off midway raises its alarm within two steps and stops by the rule."""

import time
from pathlib import Path

import toy_runs

from sensesearch_jax.runtime.alarm_log import read_alarms
from sensesearch_jax.runtime.metrics import read_metrics
from tools_server.launch import ToolServer

POCKET = Path(__file__).parents[2] / 'configs' / 'tools_pocket.yaml'
SETTINGS = {
    'data.rl': toy_runs.pocket('validation', search=3, perception=1, search_only=1),
    'rl.steps': 20,
    'rl.questions_per_step': 2,
    'rl.max_failed_steps': 20,
    'rl.checkpoint_every': 99,
    'tools.deadline_s': 5.0,
    'alarms.stop_on': "('non_finite', 'tools_down')",
}


def test_tools_that_are_switched_off_stop_the_run_by_the_rule(policy_folder, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'output.txt'

    def made():
        return len(read_metrics(workdir / 'metrics.jsonl', 'rl'))

    with ToolServer.start(POCKET, tmp_path / 'tools') as server:
        told = {'alarms.command': f'echo $ALARM_NAME at $ALARM_STEP > {tmp_path}/told'}
        settings = SETTINGS | told | {'tools.url': server.url}
        process = toy_runs.start('rl', workdir, policy_folder, settings, output)
        try:
            while made() < 2:
                assert process.poll() is None, output.read_text()[-3000:]
                time.sleep(0.01)
            server.process.kill()
            good = made()
            assert process.wait(120) == 2
        finally:
            process.kill()
    (alarm,) = read_alarms(workdir / 'alarms.jsonl')
    assert alarm['alarm'] == 'tools_down' and good < alarm['step'] <= good + 2
    assert made() == alarm['step']
    said = output.read_text()
    assert f'ALARM tools_down (rl, step {made()}): The tools failed on ' in said
    assert f'sensesearch_jax: The alarm tools_down stopped the run at step {made()} of rl' in said
    assert (tmp_path / 'told').read_text() == f'tools_down at {made()}\n'
    # what was learned before is there to go on from
    assert [int(f.name) for f in (workdir / 'rl' / 'checkpoints').iterdir()][0] >= good
    assert not (workdir / 'rl' / 'policy').exists()
