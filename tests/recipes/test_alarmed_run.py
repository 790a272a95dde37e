"""A run whose tools are switched off midway raises its alarm within two steps and stops by the rule."""

import json
import time

import toy_runs
from scripted_tools import noise_file

from sensesearch_jax.runtime.alarm_log import read_alarms
from sensesearch_jax.runtime.metrics import read_metrics
from tools_server.launch import ToolServer

SETTINGS = {
    'rl.steps': 20,
    'rl.questions_per_step': 2,
    'rl.max_failed_steps': 20,
    'rl.checkpoint_every': 99,
    'tools.deadline_s': 5.0,
    'alarms.stop_on': "('non_finite', 'tools_down')",
}


def world(folder):
    """Questions with a picture each, and the configuration of tools that know one thing."""
    lines = []
    for i in range(4):
        noise_file(folder / f'{i}.png', 80 + i, 60, i)
        record = {'id': f'q{i}', 'question': f'What is {i}?', 'image': f'{i}.png', 'answer': 'it'}
        lines.append(json.dumps(record) + '\n')
    (folder / 'questions.jsonl').write_text(''.join(lines))
    passage = {'id': 'a', 'title': 'A flag', 'text': 'It is a flag.'}
    (folder / 'passages.jsonl').write_text(json.dumps(passage) + '\n')
    picture = {'id': '0', 'title': 'A flag', 'file': '0.png'}
    (folder / 'gallery.jsonl').write_text(json.dumps(picture) + '\n')
    return {
        'text_search': {'backend': 'local', 'passages': str(folder / 'passages.jsonl')},
        'image_search': {'backend': 'local', 'gallery': str(folder / 'gallery.jsonl')},
        'judge': {'backend': 'rules'},
    }


def test_tools_that_are_switched_off_stop_the_run_by_the_rule(policy_folder, tmp_path):
    workdir, output = tmp_path / 'run', tmp_path / 'output.txt'

    def made():
        return len(read_metrics(workdir / 'metrics.jsonl', 'rl'))

    with ToolServer.start(world(tmp_path), tmp_path / 'tools') as server:
        told = {'alarms.command': f'echo $ALARM_NAME at $ALARM_STEP >> {tmp_path}/told'}
        settings = SETTINGS | told | {'tools.url': server.url}
        settings['data.rl'] = str(tmp_path / 'questions.jsonl')
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
    raised = [a for a in read_alarms(workdir / 'alarms.jsonl') if a['alarm'] == 'tools_down']
    (alarm,) = raised
    assert good < alarm['step'] <= good + 2
    assert made() == alarm['step']
    said = output.read_text()
    assert f'ALARM tools_down (rl, step {made()}): The tools failed on ' in said
    assert f'sensesearch_jax: The alarm tools_down stopped the run at step {made()} of rl' in said
    assert f'tools_down at {made()}' in (tmp_path / 'told').read_text().splitlines()
    # what was learned before is there to go on from
    assert [int(f.name) for f in (workdir / 'rl' / 'checkpoints').iterdir()][0] >= good
    assert not (workdir / 'rl' / 'policy').exists()
