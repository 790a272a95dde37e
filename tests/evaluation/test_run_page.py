"""The page of a training run: alarms, curves, trajectories and configuration in one file."""

from sensesearch_jax.agent.actions import Answer
from sensesearch_jax.agent.protocol import DEFAULT
from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory, Turn
from sensesearch_jax.evaluation.run_page import write_run_page

EVIL = '<script>alert(1)</script>'


def write(path, metrics, alarms, trajectories):
    write_run_page(
        path,
        'RL',
        metrics=metrics,
        alarms=alarms,
        trajectories=trajectories,
        about='They are of the last step.',
        image_loader=lambda sha: None,
        protocol=DEFAULT,
        config={'rl': {'steps': 2}, 'question': EVIL},
        machine='2 cores',
        command='python -m sensesearch_jax.main',
    )
    return path.read_text()


def test_a_run_s_page_has_its_alarms_curves_and_trajectories(tmp_path):
    turn = Turn([1], [0.0], f'<think>{EVIL}</think>', Answer('it'), None, [])
    question = Question('q', 'What is it?', answers=('it',))
    one = Trajectory(question, 0, 0, [turn], SampleState.OK, [1], [], {'accuracy': 1.0}, 'it')
    metrics = [
        {'step': s, 'stage': 'rl', 'time': 1e9 + 60 * s, 'values': {'reward': 0.1 * s}}
        for s in (1, 2)
    ]
    line = {'time': 0.0, 'stage': 'rl', 'step': 2, 'alarm': 'tools_down', 'over': False}
    text = write(tmp_path / 'a.html', metrics, [line | {'sentence': EVIL}], {'1': [one]})
    for part in ('tools down', 'id="curves"', 'Reward', 'What is it?', 'rl.steps', '2 steps'):
        assert part in text
    assert 'They are of the last step.' in text and EVIL not in text


def test_what_a_run_has_not_is_left_out(tmp_path):
    text = write(tmp_path / 'a.html', [], [], {})
    for part in ('id="alarms"', 'id="curves"', 'id="trajectories"'):
        assert part not in text
    assert 'id="run"' in text
