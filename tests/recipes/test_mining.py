"""Mining of hard questions: what tools or judge failed on is not known to be hard."""

import json
import runpy
from pathlib import Path

import pytest
from scripted_tools import DOWN, ScriptedTools, noise_file

from sensesearch_jax.agent.trajectory import Question
from sensesearch_jax.errors import UserError
from sensesearch_jax.recipes.cold_start import mine, policy_answers
from sensesearch_jax.recipes.session import Session, load_policy_directory
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir


@pytest.fixture
def run(policy_folder, tmp_path, monkeypatch):
    """Mines three questions with given tools, in one workdir; gives the names of those that are
    hard."""
    config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'cold_start.py'))[
        'get_config'
    ]()
    config.mine.update(samples=2, most_right=1, answer_tokens=4)
    config.rollout.update(
        groups=3, engines=1, chunk=4, extend_lanes=2, prompt_capacity=256, suffix_capacity=16
    )
    files = [noise_file(tmp_path / f'{i}.png', 84, 56, i) for i in range(3)]
    asked = [
        Question(f'q{i}', f'What is {i}?', (file,), ('it',), category='perception', difficulty='1')
        for i, file in enumerate(files)
    ]
    mesh = make_mesh(config.mesh)
    loaded = load_policy_directory(policy_folder, config, mesh, 'float32')

    def run(tools):
        with (
            Workdir.open(tmp_path / 'run', config) as workdir,
            MetricWriter(workdir / 'metrics.jsonl') as metrics,
        ):
            session = Session(config, workdir, tools, metrics, mesh)
            answers = policy_answers(session, loaded, session.features(loaded))
            hard = mine(session, answers, asked, [], None)
            lines = (workdir / 'cold_start' / 'mined.jsonl').read_text().splitlines()
            return {q.id for q in hard}, {json.loads(line)['id'] for line in lines}

    return run


@pytest.mark.parametrize('method, what', [('upload', '1.png'), ('judge', 'What is 1?')])
def test_what_failed_is_neither_hard_nor_known(run, method, what):
    tools = ScriptedTools(fails=lambda *call: DOWN if call == (method, what) else None)
    assert run(tools) == ({'q0', 'q2'}, {'q0', 'q2'})
    tools.fails = lambda *call: None
    assert run(tools) == ({'q0', 'q1', 'q2'}, {'q0', 'q1', 'q2'})


def test_a_judge_that_takes_every_answer_leaves_nothing_hard(run, monkeypatch):
    """The verdicts are the run's judge's, as they are for the reward."""
    monkeypatch.setattr(
        ScriptedTools, 'judge', lambda self, question, references, response, image=None: True
    )
    assert run(ScriptedTools()) == (set(), {'q0', 'q1', 'q2'})


def test_tools_that_fail_on_all_are_said(run):
    with pytest.raises(UserError, match='failed on each of 3 questions.*mend .*start again'):
        run(ScriptedTools(fails=lambda method, what: DOWN if method == 'upload' else None))
