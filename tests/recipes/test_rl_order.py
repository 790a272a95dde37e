"""Questions of RL, step by step, and mining's seeds: every question as often, none twice at once, the
same after a restart."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from scripted_tools import ScriptedTools

from sensesearch_jax.agent.trajectory import Question, SampleState, Trajectory
from sensesearch_jax.recipes import cold_start
from sensesearch_jax.recipes.rl import question_order
from sensesearch_jax.recipes.session import Session
from sensesearch_jax.runtime.mesh import make_mesh
from sensesearch_jax.runtime.metrics import MetricWriter
from sensesearch_jax.runtime.workdir import Workdir


def asked(count, size, steps, seed=0, start=0, training_seed=0):
    config = ConfigDict(
        {'seed': training_seed, 'questions': {'seed': seed}, 'rl': {'questions_per_step': size}}
    )
    order = question_order(config, range(count))
    return [order(step) for step in range(start, steps)]


@pytest.mark.parametrize('count, size', [(24, 10), (160, 128), (5, 4), (7, 7), (12, 4), (9, 8)])
def test_no_step_asks_a_question_twice_and_none_is_skipped(count, size):
    steps = asked(count, size, 60)
    assert all(len(set(step)) == size for step in steps)
    flat = [i for step in steps for i in step]
    for begin in range(0, len(flat) - count, count):
        assert sorted(flat[begin : begin + count]) == list(range(count))
    assert flat[:count] != flat[count : 2 * count] or count == 1


def test_a_step_that_asks_more_than_there_are_asks_all_as_often_as_can_be():
    for step in asked(3, 8, 20):
        assert set(Counter(step).values()) <= {2, 3}


def test_a_run_that_goes_on_asks_what_it_would_have_asked():
    assert asked(24, 10, 40, start=17) == asked(24, 10, 40)[17:]


def test_the_order_is_of_the_questions_seed_and_not_of_the_training():
    assert asked(24, 10, 5, training_seed=1) == asked(24, 10, 5) != asked(24, 10, 5, seed=1)


def test_mining_that_was_interrupted_goes_on_with_the_seeds_that_it_would_have_had(
    tmp_path, monkeypatch
):
    config = runpy.run_path(str(Path(__file__).parents[2] / 'configs' / 'cold_start.py'))[
        'get_config'
    ]()
    questions = [
        Question(f'q{i}', 'What?', (), ('it',), category='search', difficulty='1') for i in range(4)
    ]
    seen = []
    monkeypatch.setattr(Session, 'engines', lambda *_, **__: [])

    def sampled(tasks, *_, on_group, **__):
        seen.append({t.question.id: t.seeds for t in tasks})
        for task in tasks:
            wrong = {'accuracy': 0.0}
            on_group([Trajectory(task.question, 0, 0, [], SampleState.OK, [], [], wrong, None)])

    monkeypatch.setattr(cold_start, 'rollout', sampled)

    def mine(folder, mined):
        with (
            Workdir.open(folder, config) as workdir,
            MetricWriter(workdir / 'metrics.jsonl') as metrics,
        ):
            (workdir / 'cold_start').mkdir()
            (workdir / 'cold_start' / 'mined.jsonl').write_text(
                ''.join(json.dumps({'id': i, 'right': 0}) + '\n' for i in mined)
            )
            loaded = type('LoadedPolicy', (), {'chat': None})
            session = Session(config, workdir, ScriptedTools(), metrics, make_mesh(config.mesh))
            answers = cold_start.policy_answers(session, loaded, None)
            cold_start.mine(session, answers, questions, [], None)

    mine(tmp_path / 'whole', [])
    mine(tmp_path / 'torn', ['q0', 'q2'])
    assert set(seen[1]) == {'q1', 'q3'} and seen[1].items() <= seen[0].items()
    assert len({seed for seeds in seen[0].values() for seed in seeds}) == 4 * config.mine.samples
